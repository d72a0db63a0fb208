"""Networks that are ONNX files: onnxruntime runs them on the CPU, and they cannot be trained."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from noisyteacher.errors import FileFormatError, MismatchError, NoisyTeacherError, UsageError
from noisyteacher.io.files import read_bytes
from noisyteacher.models.classifier import Classifier, as_classifier, logits_of
from noisyteacher.models.preprocess import Resized, Scale, Shape, Untouched
from noisyteacher.text import size_bytes

FIRST_ANSWER_S = 300.0
"""Seconds that a model may take for its first batch."""
MAX_MEMORY = 2**33
"""Bytes that all models of a process may take together while they run."""
ONNX = "onnx"
"""Ending of such a file, and prefix of the network's name in an architecture."""
INPUT_TYPES = {
    "tensor(float)": torch.float32, "tensor(float16)": torch.float16,
    "tensor(double)": torch.float64, "tensor(uint8)": torch.uint8,
}  # fmt: skip
FLOATS_AND_BYTES = (1, 2, 3, 10, 11, 16)
"""TensorProto's numbers of the types that weights have."""
WEIGHT_INPUT = {
    "Conv": 1, "ConvTranspose": 1, "ConvInteger": 1, "QLinearConv": 3,
    "Gemm": 1, "MatMul": 1, "MatMulInteger": 1, "QLinearMatMul": 3,
}  # fmt: skip
"""Operation that multiplies -> which of its inputs is the second factor."""
NO_FORMULA = ("LSTM", "GRU", "RNN", "Einsum", "Attention", "If", "Loop", "Scan", "DeformConv")
"""Operations that multiply and have no formula here."""


def is_onnx_file(path: str | os.PathLike[str]) -> bool:
    """Whether the name is that of an ONNX model. `is_onnx_file("a.onnx")` is True."""
    return os.fspath(path).endswith(f".{ONNX}")


def load_onnx(
    path: str | os.PathLike[str],
    *,
    classes: int | None = None,
    input_shape: Shape | None = None,
    preprocess: nn.Module | None = None,
) -> Classifier:
    """The Classifier around a `.onnx` file; it has no parameters to train.

    A network that takes uint8 has its preprocessing inside; one that takes floats gets `preprocess`, by default
    x / 255, and images of another size than it takes are scaled. `input_shape` (C, H, W) may be omitted where the
    network states it. Raises UsageError, FileFormatError when the file is damaged or refers to files outside its
    folder, MismatchError when it does not take such images or has other classes.
    """
    data = read_bytes(path)
    try:
        model = _parse(data)
        from onnx import external_data_helper

        with _errors(FileFormatError, "its tensors cannot be read"):  # onnx refuses files outside the folder
            external_data_helper.load_external_data_for_model(model, os.path.dirname(os.path.abspath(path)))
            data = model.SerializeToString(deterministic=True)
        network = OnnxNetwork(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    except FileFormatError as error:
        raise FileFormatError(f"{path}: {error}") from error
    stated = network.image_shape
    shape = input_shape or tuple(size for size in stated if size is not None)
    if len(shape) != 3:
        raise UsageError(f"{path}: takes images of any size: pass the data, or input_shape=(C, H, W)")
    front: nn.Module = Scale() if preprocess is None else preprocess
    if network.dtype == torch.uint8:
        if preprocess is not None:
            raise UsageError(f"{path}: takes uint8 images, its preprocessing is inside: leave preprocess out")
        front = Untouched()
    elif stated[1] and stated[2] and stated[1:] != shape[1:] and not isinstance(front, Resized):
        front = Resized(front, (stated[1], stated[2]), "bilinear")
    name = f"{ONNX}:{Path(path).stem}"
    return as_classifier(network, classes=classes, input_shape=shape, preprocess=front, name=name)


class OnnxNetwork(nn.Module):
    """An ONNX model whose whole state is the bytes of its file (buffer `file`), saved like that of any network."""

    file: Tensor

    def __init__(self, file: Tensor) -> None:
        """Raises UsageError without onnxruntime, FileFormatError for a model that it cannot run."""
        super().__init__()
        self.register_buffer("file", file.detach().to("cpu", torch.uint8).reshape(-1).clone())
        for message in _messages(_parse(self._bytes())):
            if message.DESCRIPTOR.name == "TensorProto" and message.data_location == 1:
                raise FileFormatError("the ONNX model refers to other files, which are not read here")
        self._sessions: dict[int, Any] = {}
        self._has_answered = False
        inputs, outputs = self._session().get_inputs(), self._session().get_outputs()
        if len(inputs) != 1 or inputs[0].type not in INPUT_TYPES or len(inputs[0].shape) != 4:
            signature = ", ".join(f"{entry.name} {entry.type} {entry.shape}" for entry in inputs)
            raise FileFormatError(f"ONNX inputs {signature}: expected images alone, float or uint8 of rank 4")
        self.dtype = INPUT_TYPES[inputs[0].type]
        self.sizes = tuple(size if isinstance(size, int) and size > 0 else None for size in inputs[0].shape)
        """As the network states them, [B, C, H, W] or [B, H, W, C]; None where it takes any."""
        self.channels_last = self.sizes[3] in (1, 3, 4) and self.sizes[1] not in (1, 3, 4)
        names = [entry.name for entry in outputs]
        matrices = [entry.name for entry in outputs if len(entry.shape) == 2 and "float" in entry.type]
        self.output = "logits" if "logits" in names else (matrices or names)[0]

    @property
    def image_shape(self) -> tuple[int | None, int | None, int | None]:
        """(C, H, W), None where it takes any."""
        _, first, second, third = self.sizes
        return (third, first, second) if self.channels_last else (first, second, third)

    def forward(self, images: Tensor) -> Tensor:
        """Float32 logits `[B, K]` of images `[B, C, H, W]`, in batches of the size that the network takes."""
        x = images.detach().cpu().to(self.dtype)
        x = (x.permute(0, 2, 3, 1) if self.channels_last else x).contiguous()
        session, logits = self._session(), []
        for part in torch.split(x, self.sizes[0] or max(len(x), 1)):
            missing = (self.sizes[0] or len(part)) - len(part)
            padded = torch.cat([part, part[-1:].expand(missing, *part.shape[1:])]) if missing else part
            with (
                _errors(MismatchError, f"the ONNX model failed on images {list(padded.shape)}"),
                self._time_limit() as options,
            ):
                (output,) = session.run([self.output], {session.get_inputs()[0].name: padded.numpy()}, options)
            logits.append(logits_of(torch.from_numpy(output))[: len(part)])
        return torch.cat(logits).float().to(images.device)

    @contextlib.contextmanager
    def _time_limit(self) -> Iterator[Any]:
        """Options of a run that end it after FIRST_ANSWER_S: a graph may loop for ever. Later answers have no limit."""
        from onnxruntime import RunOptions

        options, begin = RunOptions(), time.monotonic()
        timer = threading.Timer(FIRST_ANSWER_S, setattr, (options, "terminate", True))
        timer.daemon = True
        if not self._has_answered:
            timer.start()
        try:
            yield options
            self._has_answered = True
        except Exception as error:
            if "Available memory of" in str(error):
                raise MemoryError(f"it takes more than {size_bytes(MAX_MEMORY)} of memory") from error
            if options.terminate:
                raise TimeoutError(f"no answer within {time.monotonic() - begin:.0f} s") from error
            raise
        finally:
            timer.cancel()

    def costs(self, shape: Shape) -> tuple[int, int, tuple[str, ...]]:
        """Elements of the weights, multiplications for one image (C, H, W), and the operations without a formula."""
        from onnx import inliner, shape_inference

        model = _parse(self._bytes())
        weights = sum(prod(tensor.dims) for tensor in model.graph.initializer if tensor.data_type in FLOATS_AND_BYTES)
        dims = model.graph.input[0].type.tensor_type.shape.dim
        batch = dims[0].dim_value or 1
        sizes = (shape[1], shape[2], shape[0]) if self.channels_last else shape
        for dim, size in zip(dims, (batch, *sizes), strict=False):
            dim.dim_value = size
        try:
            model = shape_inference.infer_shapes(inliner.inline_local_functions(model), data_prop=True)
        except Exception as error:  # protobuf's and onnx's own classes
            return weights, 0, (f"all operations ({type(error).__name__} while inferring shapes)",)
        shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
        for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
            shapes[value.name] = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        macs, unsupported = 0, dict[str, None]()
        for node in model.graph.node:
            kind = node.op_type
            if kind not in WEIGHT_INPUT:
                if kind in NO_FORMULA or node.domain == "com.microsoft":
                    unsupported[kind] = None
                continue
            names = (node.input[0], node.input[WEIGHT_INPUT[kind]], node.output[0])
            first, second, out = (shapes.get(name, ()) for name in names)
            if not (first and second and out) or 0 in (*first, *second, *out):
                unsupported[kind] = None
            elif "Conv" in kind:
                macs += prod(first if kind == "ConvTranspose" else out) * prod(second[1:])
            else:
                transposed = any(entry.name == "transA" and entry.i for entry in node.attribute)
                macs += prod(out) * (first[0] if transposed else first[-1])
        return weights, macs // batch, tuple(unsupported)

    def __reduce__(self) -> tuple[type[OnnxNetwork], tuple[Tensor]]:
        """A copy opens a session of its own."""
        return type(self), (self.file,)

    def _bytes(self) -> bytes:
        return bytes(self.file.cpu().numpy().tobytes())

    def _session(self) -> Any:
        """The session for as many threads as torch uses now."""
        threads = torch.get_num_threads()
        if threads not in self._sessions:
            with _errors(FileFormatError, "onnxruntime cannot run this ONNX model"):
                import onnxruntime

                options = onnxruntime.SessionOptions()
                options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 4
                _register_allocator()
                options.add_session_config_entry("session.use_env_allocators", "1")
                session = onnxruntime.InferenceSession(self._bytes(), options, providers=["CPUExecutionProvider"])
            self._sessions = {threads: session}
        return self._sessions[threads]


@cache
def _register_allocator() -> None:
    """Register an allocator of at most MAX_MEMORY bytes with onnxruntime; sessions that do not name it keep theirs."""
    import onnxruntime as ort

    info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    with contextlib.suppress(Exception):  # the process has registered one already, which sessions then take
        ort.create_and_register_allocator(info, ort.OrtArenaCfg({"max_mem": MAX_MEMORY, "arena_extend_strategy": 1}))


def _parse(data: bytes) -> Any:
    with _errors(FileFormatError, "not an ONNX model"):
        import onnx

        model = onnx.ModelProto.FromString(data)
    if not model.graph.node:
        raise FileFormatError("not an ONNX model: it contains no operation")
    return model


def _messages(message: Any) -> Iterator[Any]:
    """The message and all messages inside it; protobuf parses none that is nested deeper than 100."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in [value] if hasattr(value, "DESCRIPTOR") else value:
                yield from _messages(inner)


@contextlib.contextmanager
def _errors(kind: type[NoisyTeacherError], problem: str) -> Iterator[None]:
    """Raise `kind` for any error inside (onnx, onnxruntime and protobuf share no base class) but a missing package."""
    try:
        yield
    except ImportError as error:
        raise UsageError(f"{error.name} is not installed: pip install 'noisyteacher[export]'") from error
    except Exception as error:
        raise kind(f"{problem}: {' '.join(str(error).split())[:300]}") from error
