"""Files made of a graph traced by torch.export: .pt2 for torch itself, .pte for ExecuTorch on phones and small boards.

A .pte file takes a single image per call, because memory is planned for the largest batch, and fixed shapes were faster
(docs/export.md); XNNPACK computes what it can. Its int8 is torchao's static quantization for XNNPACK: activations per
tensor, weights per output channel, preprocessing in fp32.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from noisyteacher.export.quantization import calibrated, in_int8
from noisyteacher.export.tracing import export_errors, traced
from noisyteacher.models import Classifier


def write_pt2(model: Classifier, path: Path, class_names: Sequence[str], images: Tensor | None) -> None:
    """Write a .pt2 file, which takes any batch size. Raises ExportError."""
    torch.export.save(traced(model), path)


def write_pte(model: Classifier, path: Path, class_names: Sequence[str], images: Tensor | None) -> None:
    """Write a .pte file in fp32, or with the network in int8, calibrated on `images`. Raises ExportError."""
    program = traced(model if images is None else in_int8(model, calibrated(model, images)), batch=1)
    with export_errors(f"{model.name!r} cannot be written for ExecuTorch"):
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        path.write_bytes(lowered.to_executorch().buffer)
