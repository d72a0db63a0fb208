"""ONNX files looked through before anything runs them: one block of bytes, no foreign operators, and what they cost."""

from __future__ import annotations

import os
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from noisyteacher.errors import FileFormatError, UsageError
from noisyteacher.files import read_bytes

MOST_BYTES = 2_000_000_000
"""What protobuf can hold in one message, rounded down."""
DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
"""Operator sets that onnxruntime has built in; those of any other need a library that is not loaded."""
_WEIGHT = {
    "Conv": 1, "ConvTranspose": 1, "ConvInteger": 1, "QLinearConv": 3,
    "Gemm": 1, "MatMul": 1, "MatMulInteger": 1, "QLinearMatMul": 3,
}  # fmt: skip
"""Which input of an operation that multiplies holds its second factor."""
_UNKNOWN = ("LSTM", "GRU", "RNN", "Einsum", "Attention", "If", "Loop", "Scan", "DeformConv")
"""Operations that multiply and have no formula here."""


def read_onnx(path: str | os.PathLike[str]) -> bytes:
    """The model in one block, tensors that lie beside it in files of their own put in.

    Such files must lie in the model's own folder, links followed. Raises UsageError without onnx,
    FileFormatError naming the file when it is damaged, points outside its folder or behind a file's end, or has
    operators of others.
    """
    model = _parsed(read_bytes(path), path)
    total = 0
    for tensor in _tensors(model):
        if tensor.data_location == 1:
            data = _beside(Path(path), {entry.key: entry.value for entry in tensor.external_data})
            total += len(data)
            if total > MOST_BYTES:
                raise FileFormatError(f"{path}: its tensors take more than {MOST_BYTES:,} bytes: too large for this")
            tensor.raw_data = data
            del tensor.external_data[:]
            tensor.ClearField("data_location")
    whole: bytes = model.SerializeToString(deterministic=True)
    check_onnx(whole, path)
    return whole


def check_onnx(data: bytes, path: str | os.PathLike[str]) -> Any:
    """The parsed model. Raises FileFormatError for tensors in other files and for operators of others."""
    model = _parsed(data, path)
    if any(tensor.data_location == 1 for tensor in _tensors(model)):
        raise FileFormatError(f"{path}: the ONNX model in it points to other files, which is not followed here")
    local = {(function.domain, function.name) for function in model.functions}
    for message in _messages(model):
        if message.DESCRIPTOR.name != "NodeProto" or message.domain in DOMAINS:
            continue
        if (message.domain, message.op_type) not in local:
            raise FileFormatError(
                f"{path}: has the operator {message.op_type!r} of {message.domain!r}, which only a library of its own "
                "could run, and none is loaded: export the model with standard operators"
            )
    return model


def onnx_costs(data: bytes, shape: tuple[int, int, int] | None) -> tuple[int, int, tuple[str, ...]]:
    """Elements of the stored weights, multiplications for one image, and the operations that are not in these.

    `shape` is (C, H, W) as the model takes it, or (H, W, C). Weights are stored tensors of floating point or 8 bits.
    """
    import onnx
    from onnx import inliner, shape_inference

    model = onnx.load_model_from_string(data)
    weights = sum(prod(one.dims) for one in model.graph.initializer if one.data_type in (1, 2, 3, 10, 11, 16))
    first = model.graph.input[0].type.tensor_type.shape
    batch = first.dim[0].dim_value or 1
    for dimension, size in zip(first.dim, (batch, *(shape or ())), strict=False):
        dimension.dim_value = size
    try:
        model = shape_inference.infer_shapes(inliner.inline_local_functions(model), data_prop=True)
    except Exception as error:  # protobuf's and onnx's own kinds
        return weights, 0, (f"all operations ({type(error).__name__} while inferring shapes)",)
    graph = model.graph
    shapes = {one.name: tuple(one.dims) for one in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        dims = value.type.tensor_type.shape.dim
        shapes[value.name] = tuple(one.dim_value if one.HasField("dim_value") else 0 for one in dims)
    macs, unknown = 0, dict[str, None]()
    for node in graph.node:
        if node.op_type in _WEIGHT:
            left, right, out = (
                shapes.get(name, ()) for name in (node.input[0], node.input[_WEIGHT[node.op_type]], node.output[0])
            )
            if not (left and right and out) or 0 in (*left, *right, *out):
                unknown[node.op_type] = None
            elif "Conv" in node.op_type:
                macs += prod(left if node.op_type == "ConvTranspose" else out) * prod(right[1:])
            else:
                transposed = node.op_type == "Gemm" and any(one.name == "transA" and one.i for one in node.attribute)
                macs += prod(out) * (left[0] if transposed else left[-1])
        elif node.op_type in _UNKNOWN or node.domain == "com.microsoft":
            unknown[node.op_type] = None
    return weights, macs // batch, tuple(unknown)


def _parsed(data: bytes, path: str | os.PathLike[str]) -> Any:
    try:
        import onnx
    except ImportError as error:
        raise UsageError(f"{path}: onnx is not installed: pip install 'noisyteacher[export]'") from error
    try:
        model = onnx.ModelProto.FromString(data)
    except Exception as error:  # protobuf's DecodeError, which its several implementations keep in several places
        raise FileFormatError(f"{path}: not an ONNX model: {error}") from error
    if not model.graph.node:
        raise FileFormatError(f"{path}: not an ONNX model: there is no operation in it")
    return model


def _messages(message: Any) -> Iterator[Any]:
    """The message and all messages inside it; protobuf parses none that is nested deeper than 100."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in [value] if hasattr(value, "DESCRIPTOR") else value:
                yield from _messages(inner)


def _tensors(model: Any) -> Iterator[Any]:
    return (one for one in _messages(model) if one.DESCRIPTOR.name == "TensorProto")


def _beside(path: Path, place: dict[str, str]) -> bytes:
    """The bytes of a tensor that lies in a file of the model's folder."""
    location = place.get("location", "")
    folder, target = Path(os.path.realpath(path.parent)), Path(os.path.realpath(path.parent / location))
    if not location or "\\" in location or os.path.isabs(location) or folder not in target.parents:
        raise FileFormatError(
            f"{path}: keeps tensors in {location!r:.200}, outside its own folder, which is not read: save the model "
            "with its data beside it or inside it"
        )
    if not target.is_file():
        raise FileFormatError(f"{path}: its tensors should lie in {target}, and there is no such file")
    size = target.stat().st_size
    try:
        offset = int(place.get("offset", 0))
        length = int(place.get("length", size - offset))
    except ValueError:
        offset = length = -1
    if min(offset, length) < 0 or offset + length > size:
        raise FileFormatError(f"{path}: a tensor lies behind the end of {target} ({size} bytes): truncated or damaged")
    with target.open("rb") as stream:
        stream.seek(offset)
        return stream.read(length)
