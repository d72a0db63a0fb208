"""Networks that are files: an ONNX model or a torch.export program that answers and cannot be trained."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from noisyteacher.errors import FileFormatError, MismatchError, UsageError
from noisyteacher.files import read_bytes
from noisyteacher.models.classifier import Classifier, as_classifier, logits_of
from noisyteacher.models.onnxfile import check_onnx, onnx_costs, read_onnx
from noisyteacher.models.preprocess import Resized, Scale, Shape, Untouched
from noisyteacher.models.torchfile import archive_members

NEEDS_TRUST = (
    "torch.export programs may run code when they are read (torch unpickles parts of them and evaluates expressions in "
    "them): if you trust the file, pass --allow-import (in Python allow_import=True), or export the model to ONNX"
)
_ONNX_TYPES = {
    "tensor(float)": torch.float32, "tensor(float16)": torch.float16, "tensor(double)": torch.float64,
    "tensor(uint8)": torch.uint8,
}  # fmt: skip


@dataclass(frozen=True)
class Port:
    """What a frozen network's one input takes."""

    dtype: torch.dtype
    sizes: tuple[int | None, int | None, int | None, int | None]
    """As the network names them, [B, C, H, W] or [B, H, W, C]; None where any is taken."""
    least: int = 1
    """The smallest batch."""

    @property
    def smallest(self) -> int:
        """Images that it computes for when it is given one."""
        return self.sizes[0] or max(self.least, 1)

    @property
    def channels_last(self) -> bool:
        """Whether channels come last: the last size looks like channels and the second does not."""
        return self.sizes[3] in (1, 3, 4) and self.sizes[1] not in (1, 3, 4)

    @property
    def image(self) -> tuple[int | None, int | None, int | None]:
        """(C, H, W), None where any is taken."""
        _, first, second, third = self.sizes
        return (third, first, second) if self.channels_last else (first, second, third)


class Frozen(nn.Module):
    """A network whose whole state is the bytes of a file, kept in the buffer `file` (uint8).

    So it is saved, fingerprinted and told apart like any other. It has no parameters to learn, and computes on the CPU.
    """

    file: Tensor
    port: Port

    def __init__(self, file: Tensor) -> None:
        super().__init__()
        self.register_buffer("file", file.detach().to("cpu", torch.uint8).reshape(-1).clone())

    @property
    def weights(self) -> int:
        """Elements of the weights in the file."""
        raise NotImplementedError

    def costs(self, shape: Shape) -> tuple[int, tuple[str, ...]]:
        """Multiplications for one image of this shape that do not show as torch operations, and what is not in them."""
        return 0, ()

    def answer(self, images: Tensor) -> Tensor:
        """The network's logits for images just as its input takes them, on the CPU."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Float32 logits `[B, K]` of images `[B, C, H, W]`, in batches of the size that the network takes."""
        x = images.detach().cpu().to(self.port.dtype)
        if self.port.channels_last:
            x = x.permute(0, 2, 3, 1)
        x = x.contiguous()
        parts = []
        for part in torch.split(x, self.port.sizes[0] or max(len(x), 1)):
            short = self.port.smallest - len(part)
            padded = torch.cat([part, part[-1:].expand(short, *part.shape[1:])]) if short > 0 else part
            parts.append(self.answer(padded)[: len(part)])
        return torch.cat(parts).float().to(images.device)

    def __reduce__(self) -> tuple[type[Frozen], tuple[Tensor]]:
        """A copy opens the file anew."""
        return type(self), (self.file,)


class OnnxNetwork(Frozen):
    """An ONNX model, run by onnxruntime on the CPU."""

    def __init__(self, file: Tensor) -> None:
        """Raises UsageError without onnxruntime, FileFormatError for a model that it cannot run."""
        super().__init__(file)
        check_onnx(self._bytes(), "an ONNX network")
        self.opened: dict[int, Any] = {}
        session = self._session()
        inputs = session.get_inputs()
        if len(inputs) != 1 or inputs[0].type not in _ONNX_TYPES or len(inputs[0].shape) != 4:
            told = ", ".join(f"{one.name} {one.type} {one.shape}" for one in inputs)
            raise FileFormatError(
                f"an ONNX network with the inputs {told}: expected images alone, float or uint8 of rank 4"
            )
        sizes = [one if isinstance(one, int) and one > 0 else None for one in inputs[0].shape]
        self.port = Port(_ONNX_TYPES[inputs[0].type], tuple(sizes))  # type: ignore[arg-type]
        named = [one.name for one in session.get_outputs()]
        ranked = [one.name for one in session.get_outputs() if len(one.shape) == 2 and "float" in one.type]
        self.output = "logits" if "logits" in named else (ranked or named)[0]

    @property
    def weights(self) -> int:
        return onnx_costs(self._bytes(), None)[0]

    def costs(self, shape: Shape) -> tuple[int, tuple[str, ...]]:
        taken = (shape[1], shape[2], shape[0]) if self.port.channels_last else shape
        return onnx_costs(self._bytes(), taken)[1:]

    def answer(self, images: Tensor) -> Tensor:
        session = self._session()
        try:
            (found,) = session.run([self.output], {session.get_inputs()[0].name: images.numpy()})
        except Exception as error:  # onnxruntime's own kinds have no common base
            raise MismatchError(
                f"the ONNX network failed on images {list(images.shape)}: {' '.join(str(error).split())[:300]}"
            ) from error
        return logits_of(torch.from_numpy(found))

    def _bytes(self) -> bytes:
        return bytes(self.file.cpu().numpy().tobytes())

    def _session(self) -> Any:
        """The session for as many threads as torch uses now."""
        threads = torch.get_num_threads()
        if threads not in self.opened:
            try:
                import onnxruntime
            except ImportError as error:
                raise UsageError("onnxruntime is not installed: pip install 'noisyteacher[export]'") from error
            settings = onnxruntime.SessionOptions()
            settings.intra_op_num_threads, settings.inter_op_num_threads, settings.log_severity_level = threads, 1, 4
            try:
                made = onnxruntime.InferenceSession(self._bytes(), settings, providers=["CPUExecutionProvider"])
            except Exception as error:  # onnxruntime's own kinds have no common base
                told = " ".join(str(error).split())[:300]
                raise FileFormatError(f"onnxruntime cannot run this ONNX network: {told}") from error
            self.opened = {threads: made}
        return self.opened[threads]


@contextlib.contextmanager
def _no_future_warnings() -> Iterator[None]:
    """Inside, torch does not warn of what its own reader of programs will have to change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


class ProgramNetwork(Frozen):
    """A torch.export program, run by torch. Reading one may run code: only for files that are trusted."""

    def __init__(self, file: Tensor) -> None:
        """Raises FileFormatError for what torch.export cannot read."""
        super().__init__(file)
        data = self.file.numpy().tobytes()
        archive_members(data, "a torch.export program")
        try:
            with _no_future_warnings():
                program = torch.export.load(io.BytesIO(data))
                ran = program.module()
        except Exception as error:  # whatever a damaged program or a missing operator raises
            raise FileFormatError(f"torch.export cannot read this program: {type(error).__name__}: {error}") from error
        names = program.graph_signature.user_inputs
        inputs = [one.meta["val"] for one in program.graph.nodes if one.op == "placeholder" and one.name in names]
        if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or inputs[0].dim() != 4:
            raise FileFormatError(f"a torch.export program with {len(names)} inputs: expected images alone, of rank 4")
        sizes = tuple(size if isinstance(size, int) else None for size in inputs[0].shape)
        bounds = [
            one.lower for symbol, one in program.range_constraints.items() if str(symbol) == str(inputs[0].shape[0])
        ]
        self.port = Port(inputs[0].dtype, sizes, int(bounds[0]) if bounds else 1)  # type: ignore[arg-type]
        self._ran, self._weights = [ran], sum(one.numel() for one in program.parameters())

    @property
    def weights(self) -> int:
        return self._weights

    def answer(self, images: Tensor) -> Tensor:
        with _no_future_warnings():
            return logits_of(self._ran[0](images))


FROZEN: dict[str, type[Frozen]] = {"onnx": OnnxNetwork, "pt2": ProgramNetwork}
"""Ending of a file, and prefix of the name in an architecture -> the network that is such a file."""


def is_frozen_file(path: str | os.PathLike[str]) -> bool:
    """Whether the name is that of an ONNX model or a torch.export program. `is_frozen_file("a.onnx")` is True."""
    return os.fspath(path).rpartition(".")[2] in FROZEN


def load_frozen(
    path: str | os.PathLike[str],
    *,
    classes: int | None = None,
    input_shape: Shape | None = None,
    preprocess: nn.Module | None = None,
    allow_import: bool = False,
) -> Classifier:
    """The Classifier around a `.onnx` or `.pt2` file: it answers, and has nothing to train.

    A network that takes uint8 has its preprocessing inside; before one that takes floats stands `preprocess`, by
    default x / 255, and images of another size than it takes are scaled to that. `input_shape` (C, H, W) may be left
    out where the network states it. Raises UsageError without the extra `export`, and for a `.pt2` without
    `allow_import`; FileFormatError naming the file when it is damaged or refused, MismatchError when it does not take
    such images or has other classes.
    """
    ending = os.fspath(path).rpartition(".")[2]
    if ending == "pt2" and not allow_import:
        raise UsageError(f"{path}: {NEEDS_TRUST}")
    data = read_onnx(path) if ending == "onnx" else read_bytes(path)
    try:
        network = FROZEN[ending](torch.frombuffer(bytearray(data), dtype=torch.uint8))
    except FileFormatError as error:
        raise FileFormatError(f"{path}: {error}") from error
    stated = network.port.image
    shape = input_shape or tuple(size for size in stated if size is not None)
    if len(shape) != 3:
        raise UsageError(f"{path}: takes images of any size: give the data, or input_shape=(C, H, W)")
    front: nn.Module = Scale() if preprocess is None else preprocess
    if network.port.dtype == torch.uint8:
        if preprocess is not None:
            raise UsageError(f"{path}: takes uint8 images, so its preprocessing is inside: name no other")
        front = Untouched()
    elif stated[1] and stated[2] and stated[1:] != shape[1:] and not isinstance(front, Resized):
        front = Resized(front, (stated[1], stated[2]), "bilinear")
    return as_classifier(
        network, classes=classes, input_shape=shape, preprocess=front, name=f"{ending}:{Path(path).stem}"
    )
