"""Files made of a graph traced by torch.export: .pt2 for torch itself, .pte for ExecuTorch on phones and small boards.

A .pte file takes a single image per call, because memory is planned for the largest batch, and fixed shapes were faster
(docs/export.md); XNNPACK computes what it can. Its int8 is torchao's static quantization for XNNPACK: activations per
tensor, weights per output channel, preprocessing in fp32.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from noisyteacher.bench import load_pte
from noisyteacher.errors import ExportError, NoisyTeacherError
from noisyteacher.models import Classifier

Runner = Callable[[Tensor], Tensor]
"""Uint8 images `[B, C, H, W]` to float32 logits `[B, K]`, computed by the file's own runtime."""
INPUT_FORMAT = "uint8 [batch, channels, height, width], pixels 0..255; preprocessing is"
CALIBRATION_BATCH = 32
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


def traced(model: Classifier, batch: int | None = None) -> torch.export.ExportedProgram:
    """The model's graph by torch.export, for any batch size or for `batch` images. Raises ExportError."""
    assert model.input_shape is not None
    example = torch.zeros((batch or 2, *model.input_shape), dtype=torch.uint8)
    sizes = ({0: torch.export.Dim("batch", min=1)},) if batch is None else None
    cause = "its forward must not depend on the values of the images, nor (but for .pte) fix the batch size"
    with export_errors(f"{model.name!r} cannot be traced by torch.export: {cause}"):
        return torch.export.export(model, (example,), dynamic_shapes=sizes)


def write_pt2(model: Classifier, path: Path, class_names: Sequence[str], images: Tensor | None) -> None:
    """Write a .pt2 file, which takes any batch size. Raises ExportError."""
    torch.export.save(traced(model), path)


@contextlib.contextmanager
def run_pt2(path: Path, threads: int) -> Iterator[Runner]:
    """Yield a runner of the file by torch.export.load, on torch's own threads."""
    yield torch.export.load(path).module()


def write_pte(model: Classifier, path: Path, class_names: Sequence[str], images: Tensor | None) -> None:
    """Write a .pte file in fp32, or with the network in int8, calibrated on `images`. Raises ExportError."""
    # Quantization folds batch norms into weights, which a graph shares with its model.
    program = traced(model, batch=1) if images is None else traced(copy.deepcopy(model))
    if images is not None:
        with export_errors(f"{model.name!r} cannot be quantized by torchao"):
            program = _quantized(program, images)
    with export_errors(f"{model.name!r} cannot be written for ExecuTorch"):
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        path.write_bytes(lowered.to_executorch().buffer)


def _quantized(program: torch.export.ExportedProgram, images: Tensor) -> torch.export.ExportedProgram:
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    def in_network(node: Any) -> bool:
        stack = node.meta.get("nn_module_stack") or {}
        return not any(name.split(".")[-1] == "preprocess" for name, _ in stack.values())

    config = xnnpack_quantizer.get_symmetric_quantization_config(is_per_channel=True)
    quantizer = xnnpack_quantizer.XNNPACKQuantizer().set_global(config)
    quantizer.set_filter_function(in_network)
    prepared = prepare_pt2e(program.module(), quantizer)
    for batch in torch.split(images, CALIBRATION_BATCH):
        prepared(batch)
    return torch.export.export(convert_pt2e(prepared), (images[:1],))


@contextlib.contextmanager
def run_pte(path: Path, threads: int) -> Iterator[Runner]:
    """Yield a runner of the file by ExecuTorch's runtime, image by image, with so many threads in XNNPACK."""
    with load_pte(path, threads) as loaded:
        yield lambda images: torch.cat(
            [torch.from_numpy(loaded.run(image.numpy())) for image in torch.split(images, 1)]
        )
