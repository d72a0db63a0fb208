"""ONNX files: one file each, any batch size, uint8 images in; int8 by static quantisation in QDQ form.

The settings of the quantisation were measured (docs/export.md): a scale per output channel of each weight, weights in
seven bits (with eight, the integer products of CPUs without VNNI overflow and saturate), the range of each activation
from its least and largest value over the calibration images. The preprocessing stays in fp32.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from noisyteacher.errors import ExportError
from noisyteacher.export.quiet import quiet
from noisyteacher.export.to_pt2 import Runner, told, traced
from noisyteacher.io.files import read_bytes
from noisyteacher.models import Classifier

INPUT, OUTPUT, BATCH = "images", "logits", "batch"
MOST_BYTES = 2_000_000_000  # protobuf writes no larger message
CALIBRATION_BATCH = 32


def onnx_bytes(model: Classifier, class_names: Sequence[str], images: object = None) -> bytes:
    """The bytes of an .onnx file in fp32, once onnx.checker has found nothing wrong. Raises ExportError."""
    return _finished(_proto(model), model, class_names)


def onnx_int8_bytes(model: Classifier, class_names: Sequence[str], calibration: Tensor | None) -> bytes:
    """The bytes of an .onnx file with the network in int8, calibrated on the images, uint8 `[n, C, H, W]`.

    Raises ExportError.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    assert calibration is not None
    parts = iter(torch.split(calibration, CALIBRATION_BATCH))
    proto = _proto(model)

    class Images(CalibrationDataReader):  # type: ignore[misc, unused-ignore]
        """The calibration images, a few at a time."""

        def get_next(self) -> dict[str, Any] | None:
            part = next(parts, None)
            return None if part is None else {INPUT: part.numpy()}

    with tempfile.TemporaryDirectory() as folder, quiet():
        file = Path(folder) / "int8.onnx"
        try:
            quantize_static(
                proto,
                str(file),
                Images(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=_preprocessing(proto),
            )
        except Exception as error:
            raise ExportError(f"{model.name!r} cannot be quantised by onnxruntime ({told(error)})") from error
        quantised = type(proto).FromString(read_bytes(file))
    return _finished(quantised, model, class_names)


@contextlib.contextmanager
def onnx_runner(data: bytes, threads: int) -> Iterator[Runner]:
    """Yields what runs the file: onnxruntime on the CPU with so many threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])

    yield run


def _proto(model: Classifier) -> Any:
    """The model as an ONNX graph, still with the exporter's notes on where each node came from."""
    program = traced(model)
    try:
        with quiet():
            exported = torch.onnx.export(
                program, dynamo=True, verbose=False, input_names=[INPUT], output_names=[OUTPUT]
            )
            assert exported is not None
            return exported.model_proto
    except Exception as error:
        raise ExportError(f"{model.name!r} cannot be written as ONNX ({told(error)})") from error


def _preprocessing(proto: Any) -> list[str]:
    """The names of the nodes that belong to the preprocessing in front of the network."""
    found = []
    for node in proto.graph.node:
        scopes = [entry.value for entry in node.metadata_props if entry.key.endswith("name_scopes")]
        if any("'preprocess'" in scope for scope in scopes):
            found.append(node.name)
    return found


def _finished(proto: Any, model: Classifier, class_names: Sequence[str]) -> bytes:
    """The graph as bytes: batch dimensions by name, notes on this machine's paths taken out, ours put in, checked."""
    import onnx

    for place in (proto.graph, *proto.graph.node, *proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        place.ClearField("metadata_props")
    for tensor in proto.graph.initializer:
        tensor.ClearField("metadata_props")
    for ends in (proto.graph.input, proto.graph.output):
        ends[0].type.tensor_type.shape.dim[0].dim_param = BATCH
    proto.ClearField("metadata_props")
    proto.graph.ClearField("value_info")  # names the batch otherwise; every runtime infers the shapes itself
    said = {
        "noisyteacher.architecture": json.dumps(model.architecture),
        "noisyteacher.classes": json.dumps(list(class_names)),
        "noisyteacher.input": "uint8 [batch, channels, height, width], pixels 0..255; preprocessing is in the graph",
    }
    onnx.helper.set_model_props(proto, said)
    if proto.ByteSize() > MOST_BYTES:
        raise ExportError(f"{model.name!r}: {proto.ByteSize():,} bytes as ONNX, a single file holds {MOST_BYTES:,}")
    data: bytes = proto.SerializeToString(deterministic=True)
    try:
        onnx.checker.check_model(data, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{model.name!r}: onnx.checker refuses the file ({told(error)})") from error
    return data
