"""torch.export files (.pt2): the traced graph with its weights, any batch size, run by torch without this package."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from noisyteacher.errors import ExportError
from noisyteacher.export.quiet import quiet
from noisyteacher.models import Classifier

Runner = Callable[[Tensor], Tensor]
"""Uint8 images `[B, C, H, W]` to float32 logits `[B, K]`, as the file's own runtime computes them."""


def traced(model: Classifier, batch: int | None = None) -> torch.export.ExportedProgram:
    """The model's graph by torch.export, for any number of images or, with `batch`, for so many at once.

    Raises ExportError when torch cannot trace it, which names what torch said.
    """
    shape = model.input_shape
    assert shape is not None
    example = torch.zeros((2 if batch is None else batch, *shape), dtype=torch.uint8)
    sizes = ({0: torch.export.Dim("batch", min=1)},) if batch is None else None
    try:
        with quiet():
            return torch.export.export(model, (example,), dynamic_shapes=sizes)
    except Exception as error:  # the network is the user's, torch's reasons are many
        raise ExportError(
            f"{model.name!r} cannot be traced by torch.export ({told(error)}): its forward must not depend on the "
            "values of the images"
            + ("" if batch is not None else " or fix the number of them; .pte, for one image, may still do")
        ) from error


def told(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def pt2_bytes(model: Classifier, class_names: object = None, images: object = None) -> bytes:
    """The bytes of a .pt2 file. Raises ExportError."""
    program, buffer = traced(model), io.BytesIO()
    with quiet():
        torch.export.save(program, buffer)
    return buffer.getvalue()


@contextlib.contextmanager
def pt2_runner(data: bytes, threads: int) -> Iterator[Runner]:
    """Yields what runs the file: torch.export.load, on the threads that torch is set to."""
    with quiet():
        yield torch.export.load(io.BytesIO(data)).module()
