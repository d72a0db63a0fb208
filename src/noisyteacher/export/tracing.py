"""What every format needs: graphs by torch.export, and the errors and logs of the libraries around it."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor, nn

from noisyteacher.bench import Loaded
from noisyteacher.errors import ExportError, NoisyTeacherError
from noisyteacher.models import Classifier

Runner = Callable[[Tensor], Tensor]
"""Uint8 images `[B, C, H, W]` to float32 logits `[B, K]`, computed by the file's own runtime."""
INPUT_FORMAT = "uint8 [batch, channels, height, width], pixels 0..255; preprocessing is"
NOISY_LOGGERS = ("torch", "torchao", "executorch", "onnxscript", "onnx_ir")


@contextlib.contextmanager
def export_errors(what: str) -> Iterator[None]:
    """Raise the libraries' errors, which are many, as an ExportError that begins with `what`.

    Inside, their deprecation warnings, which they cause in each other, and their logs below errors are silent.
    """
    null_handler, root = logging.NullHandler(), logging.getLogger()
    levels = {name: logging.getLogger(name).level for name in NOISY_LOGGERS}
    root.addHandler(null_handler)  # or `logging.warning` would install a handler for the whole process
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            yield
    except NoisyTeacherError:
        raise
    except Exception as error:
        lines = [type(error).__name__, *str(error).strip().splitlines()[:1]]
        raise ExportError(f"{what} ({': '.join(lines):.300})") from error
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        root.removeHandler(null_handler)


@contextlib.contextmanager
def run_file(load: Callable[[Path, int], AbstractContextManager[Loaded]], path: Path, threads: int) -> Iterator[Runner]:
    """Yield a runner of the file that `load` opens (`bench.load_onnx`, ...), in pieces of the size that it takes."""
    with load(path, threads) as loaded:
        size = loaded.shape[0]

        def run(images: Tensor) -> Tensor:
            pieces = torch.split(images, size if isinstance(size, int) else max(1, len(images)))
            return torch.cat([torch.from_numpy(loaded.run(piece.numpy())) for piece in pieces])

        yield run


def traced(model: Classifier, batch: int | None = None) -> torch.export.ExportedProgram:
    """The model's graph by torch.export, for any batch size or for `batch` images. Raises ExportError."""
    assert model.input_shape is not None
    return trace(model, torch.zeros((batch or 2, *model.input_shape), dtype=torch.uint8), model.name, batch is None)


def trace(module: nn.Module, example: Tensor, name: str, any_batch: bool = True) -> torch.export.ExportedProgram:
    """The graph of a module for inputs like the example, of `any_batch` size or its own. Raises ExportError."""
    sizes = ({0: torch.export.Dim("batch", min=1)},) if any_batch else None
    cause = "its forward must not depend on the values of the images, nor (but for .pte) fix the batch size"
    with export_errors(f"{name!r} cannot be traced by torch.export: {cause}"):
        return torch.export.export(module, (example,), dynamic_shapes=sizes)
