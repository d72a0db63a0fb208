"""ExecuTorch files (.pte) for phones and small boards: one image a call, as much of the network as it can in XNNPACK.

One image and not a bounded batch: memory is planned for the largest batch, and fixed shapes were the faster ones
(docs/export.md). int8 is torchao's static quantisation as XNNPACK wants it: activations per tensor, weights per output
channel, the preprocessing left in fp32.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import Tensor

from noisyteacher.errors import ExportError
from noisyteacher.export.quiet import quiet
from noisyteacher.export.to_pt2 import Runner, told, traced
from noisyteacher.models import Classifier

CALIBRATION_BATCH = 32


def pte_bytes(model: Classifier, class_names: object = None, images: object = None) -> bytes:
    """The bytes of a .pte file in fp32. Raises ExportError."""
    return _lowered(traced(model, batch=1), model)


def pte_int8_bytes(model: Classifier, class_names: object, calibration: Tensor | None) -> bytes:
    """The bytes of a .pte file with the network in int8, calibrated on the images, uint8 `[n, C, H, W]`.

    Raises ExportError.
    """
    assert calibration is not None
    # Batch norms are folded into weights on the way, and a graph shares its weights with the model.
    program = traced(copy.deepcopy(model))
    try:
        with quiet():
            from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
                XNNPACKQuantizer,
                get_symmetric_quantization_config,
            )
            from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

            quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
            quantizer.set_filter_function(_of_network)
            prepared = prepare_pt2e(program.module(), quantizer)
            for part in torch.split(calibration, CALIBRATION_BATCH):
                prepared(part)
            converted = convert_pt2e(prepared)
            quantised = torch.export.export(converted, (calibration[:1],))
    except Exception as error:
        raise ExportError(f"{model.name!r} cannot be quantised by torchao ({told(error)})") from error
    return _lowered(quantised, model)


@contextmanager
def pte_runner(data: bytes, threads: int) -> Iterator[Runner]:
    """Yields what runs the file: ExecuTorch's runtime with so many threads in XNNPACK, image by image."""
    with quiet(), redirect_stderr(io.StringIO()):  # the runtime tells there what it finds out about the CPU
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime

        before = portable_lib._threadpool_get_thread_count()
        portable_lib._unsafe_reset_threadpool(threads)
    try:
        method = Runtime.get().load_program(data).load_method("forward")
        if method is None:
            raise ExportError("ExecuTorch finds no method 'forward' in the file it was given")

        def run(images: Tensor) -> Tensor:
            return torch.cat([method.execute([one])[0] for one in torch.split(images, 1)])

        yield run
    finally:
        with redirect_stderr(io.StringIO()):
            portable_lib._unsafe_reset_threadpool(before)


def _lowered(program: torch.export.ExportedProgram, model: Classifier) -> bytes:
    try:
        with quiet():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower

            lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
            return bytes(lowered.to_executorch().buffer)
    except Exception as error:
        raise ExportError(f"{model.name!r} cannot be written for ExecuTorch ({told(error)})") from error


def _of_network(node: Any) -> bool:
    """Whether a node of the graph belongs to the network and not to the preprocessing in front of it."""
    stack = node.meta.get("nn_module_stack") or {}
    return not any(path.split(".")[-1] == "preprocess" for path, _ in stack.values())
