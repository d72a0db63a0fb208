"""ONNX files: one file each, any batch size, uint8 images in; int8 by static quantization in QDQ form.

The settings of the quantization were measured (docs/export.md): a scale per output channel of each weight, weights in
seven bits (with eight, the integer products of CPUs without VNNI overflow and saturate), the range of each activation
from its smallest and largest value over the calibration images. The preprocessing stays in fp32.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from noisyteacher.errors import ExportError
from noisyteacher.export.quantization import CALIBRATION_BATCH
from noisyteacher.export.tracing import INPUT_FORMAT, export_errors, traced
from noisyteacher.models import Classifier

INPUT, OUTPUT, BATCH = "images", "logits", "batch"
MAX_BYTES = 2_000_000_000  # of a protobuf message


def write_onnx(model: Classifier, path: Path, class_names: Sequence[str], images: Tensor | None) -> None:
    """Write an .onnx file that onnx.checker accepts: in fp32, or with the network in int8, calibrated on `images`.

    Raises ExportError.
    """
    import onnx

    program = traced(model)
    with export_errors(f"{model.name!r} cannot be written as ONNX"):
        exported = torch.onnx.export(program, dynamo=True, verbose=False, input_names=[INPUT], output_names=[OUTPUT])
        assert exported is not None
        proto: Any = exported.model_proto
    if images is not None:
        with export_errors(f"{model.name!r} cannot be quantized by onnxruntime"):
            proto = _quantized(proto, path, images)
    graph = proto.graph
    for element in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        element.ClearField("metadata_props")  # paths of this machine
    graph.ClearField("value_info")  # it names the batch differently; every runtime infers the shapes itself
    for tensors in (graph.input, graph.output):
        tensors[0].type.tensor_type.shape.dim[0].dim_param = BATCH
    properties = {
        "noisyteacher.architecture": json.dumps(model.architecture),
        "noisyteacher.classes": json.dumps(list(class_names)),
        "noisyteacher.input": f"{INPUT_FORMAT} in the graph",
    }
    onnx.helper.set_model_props(proto, properties)
    if proto.ByteSize() > MAX_BYTES:
        raise ExportError(f"{model.name!r}: {proto.ByteSize():,} bytes as ONNX, a single file holds {MAX_BYTES:,}")
    data: bytes = proto.SerializeToString(deterministic=True)
    with export_errors(f"{model.name!r}: onnx.checker refuses the file"):
        onnx.checker.check_model(data, full_check=True)
    path.write_bytes(data)


def _quantized(proto: Any, path: Path, images: Tensor) -> Any:
    """The graph with the network in int8, calibrated on uint8 `[n, C, H, W]`; `path` is written on the way."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    batches = iter(torch.split(images, CALIBRATION_BATCH))
    preprocessing = [
        node.name
        for node in proto.graph.node
        if any(note.key.endswith("name_scopes") and "'preprocess'" in note.value for note in node.metadata_props)
    ]

    class Images(CalibrationDataReader):  # type: ignore[misc, unused-ignore]
        def get_next(self) -> dict[str, object] | None:
            batch = next(batches, None)
            return None if batch is None else {INPUT: batch.numpy()}

    quantize_static(
        proto,
        str(path),
        Images(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=preprocessing,
    )
    return type(proto).FromString(path.read_bytes())
