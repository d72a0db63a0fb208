"""What a model costs: parameters, bytes, multiplications, latency and memory, each with its conditions."""

from __future__ import annotations

import contextlib
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from noisyteacher.device import check_count, cpu_threads, inference, resolve_device
from noisyteacher.errors import UsageError
from noisyteacher.models import Classifier, OnnxNetwork, as_classifier, saved_bytes
from noisyteacher.rng import generator


@dataclass(frozen=True)
class LayerCost:
    """A module of the network, without the modules inside it; shared parameters count at their first owner.

    name: path in the network, "model" for the network itself. output_shape: for one image; () when it was not called.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    macs: int


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one forward call of `batch` images, uint8 to logits, with the conditions of the measurement."""

    median: float
    p95: float
    batch: int
    threads: int
    device: str
    runs: int


@dataclass(frozen=True)
class Costs:
    """The size and the speed of a model.

    bytes: length of the file that `save_model` writes. macs: multiplications of convolutions and matrix products of
    the network per image, without biases, as in the paper; a lower bound where `unsupported` lists operations without
    a formula ("layer: operation"). peak_memory_bytes: for one forward call of `batch` images: parameters, buffers,
    images and results alive at once on a CPU (without scratch memory inside kernels), the allocator's peak on CUDA.
    """

    parameters: int
    bytes: int
    macs: int
    preprocess_macs: int
    layers: tuple[LayerCost, ...]
    unsupported: tuple[str, ...]
    latency_ms: Latency | None
    peak_memory_bytes: int
    batch: int


def measure(
    model: nn.Module,
    input_shape: Sequence[int] | None = None,
    *,
    batch: int = 1,
    threads: int | None = None,
    device: str | torch.device | None = None,
    runs: int = 50,
    latency: bool = True,
) -> Costs:
    """The Costs of a model for images (C, H, W) in eval mode; the model's mode and device are restored afterwards.

    A bare module gets float32 images in [0, 1] and needs `input_shape`. `threads` (CPU) defaults to torch's number of
    threads, `device` to the model's device. `latency=False` skips the timing. Raises UsageError for a missing or
    impossible setting, MismatchError when the model does not take such images.
    """
    for setting, value in (("batch", batch), ("runs", runs), ("threads", 1 if threads is None else threads)):
        check_count(setting, value)
    sizes = () if input_shape is None or isinstance(input_shape, int | str) else tuple(input_shape)
    if input_shape is not None and (len(sizes) != 3 or any(type(size) is not int or size < 1 for size in sizes)):
        raise UsageError(f"input_shape {input_shape!r}: expected (channels, height, width), three sizes of 1 or more")
    classifier = as_classifier(model, input_shape=input_shape)
    shape = classifier.input_shape
    if shape is None:
        raise UsageError("the model does not state its image size: pass input_shape=(channels, height, width)")
    with inference(classifier, None if device is None else resolve_device(device)) as used_device:
        # Noise, the same every time: with blank images kernels would meet denormals or skip zeros.
        images = torch.randint(0, 256, (batch, *shape), dtype=torch.uint8, generator=generator(0, "measure"))
        images = images.to(used_device)
        counter = MacCounter(classifier)
        counter.count(images[:1])
        onnx_weights = _count_onnx(classifier, counter, images[:1])
        peak = _peak_memory(classifier, images)
        timing = _time_calls(classifier, images, threads, runs) if latency else None
    layers = _layer_costs(classifier, counter)
    macs = sum(layer.macs for layer in layers)
    return Costs(
        parameters=sum(parameter.numel() for parameter in classifier.parameters()) + onnx_weights,
        bytes=saved_bytes(classifier),
        macs=macs,
        preprocess_macs=counter.macs.total() - macs,
        layers=layers,
        unsupported=tuple(f"{_layer_name(module)}: {operation}" for module, operation in counter.unsupported),
        latency_ms=timing,
        peak_memory_bytes=peak,
        batch=batch,
    )


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` per cent of the values do not exceed (nearest rank)."""
    return float(np.percentile(values, percent, method="inverted_cdf"))


COSTLY = re.compile(
    "(^|_)(fft|[cp]?dist|linalg|cholesky|(bi|tri)?linear|lstm|gru|rnn|[a-z]*(mm|mv|qr)|svd|eigh?|solve|lu|conv[a-z]*"
    "|attention|dot|matmul|matrix|inverse|householder)(_|$)"
)
"""Words in the names of torch's operations that multiply. Pooling, normalisation, activations, copies and resizing are
free by the paper's convention."""


def is_free(operation: Any) -> bool:
    """Whether the operation multiplies nothing by the paper's convention; operations of other libraries may."""
    namespace, _, name = operation._qualified_op_name.partition("::")
    return namespace == "aten" and not COSTLY.search(name)


class MacCounter(FlopCounterMode):
    """Adds up the multiplications of a model's forward call per module, and collects operations without a formula.

    `macs` and `shapes` are keyed by module name ("" is the whole model); `unsupported` holds (module, operation).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(display=False)
        self.model = model
        self.macs = Counter[str]()
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.unsupported: dict[tuple[str, str], None] = {}

    def count(self, images: Tensor) -> None:
        """Call the model. Attention and encoder layers run as the matrix products they consist of, not fused."""
        with contextlib.ExitStack() as stack:
            stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
            torch.backends.mha.set_fastpath_enabled(False)
            for name, module in self.model.named_modules():
                stack.callback(module.register_forward_hook(partial(self._note_shape, name)).remove)
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.enter_context(self)
            self.model(images)

    def _note_shape(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        self.shapes[name] = tuple(tensors[0].shape[1:]) if tensors else ()

    def _count_flops(self, func_packet: Any, out: Any, args: Any, kwargs: Any) -> Any:
        """Called by torch after every operation."""
        module = max(self.mod_tracker.parents, key=len).partition(".")[2]  # without the class of the whole model
        if func_packet in self.flop_registry:
            self.macs[module] += self.flop_registry[func_packet](*args, **kwargs, out_val=out) // 2
        elif not is_free(func_packet):
            self.unsupported[module, func_packet._qualified_op_name] = None
        return out


def _count_onnx(model: Classifier, counter: MacCounter, image: Tensor) -> int:
    """Elements of the weights of ONNX networks, whose multiplications for one image are added to the counter."""
    total = 0
    for name, module in model.named_modules():
        if isinstance(module, OnnxNetwork):
            _, channels, height, width = model.preprocess(image).shape
            weights, macs, unsupported = module.costs((channels, height, width))
            counter.macs[name] += macs
            counter.unsupported.update(dict.fromkeys((name, operation) for operation in unsupported))
            total += weights
    return total


def _layer_costs(model: Classifier, counter: MacCounter) -> tuple[LayerCost, ...]:
    """A row for every module of the network that is a leaf, has parameters outside its children, or multiplies."""
    layers: list[LayerCost] = []
    seen: set[nn.Parameter] = set()
    for name, module in model.named_modules():
        if name and name.split(".")[0] != "network":
            continue
        parameters = [parameter for parameter in module.parameters(recurse=False) if parameter not in seen]
        seen.update(parameters)
        shape, macs = counter.shapes.get(name), counter.macs[name]
        if parameters or macs or (shape is not None and not list(module.children())):
            size = sum(parameter.numel() for parameter in parameters)
            layers.append(LayerCost(_layer_name(name), type(module).__name__, shape or (), size, macs))
    return tuple(layers)


def _layer_name(module: str) -> str:
    return module.removeprefix("network.") if module not in ("", "network") else "model"


def _peak_memory(model: Classifier, images: Tensor) -> int:
    if images.device.type == "cuda":
        storages = [tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers())]
        weights = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
        model(images)  # libraries allocate their workspaces at the first call
        torch.cuda.synchronize(images.device)
        torch.cuda.reset_peak_memory_stats(images.device)
        before = torch.cuda.memory_allocated(images.device)  # other models may be there, too
        model(images)
        return weights + images.nbytes + int(torch.cuda.max_memory_allocated(images.device)) - before
    from torch.distributed._tools.mem_tracker import MemTracker  # half a second to import

    class Tracker(MemTracker):  # type: ignore[no-untyped-call]
        def _track_module_params_and_buffers(self, module: nn.Module, install_grad_hooks: bool = False) -> Any:
            # Hooks for gradients, of which there are none here, cannot be set on a frozen parameter.
            return super()._track_module_params_and_buffers(module, install_grad_hooks=False)

    tracker = Tracker()
    tracker.track_external(model, images)
    with tracker:
        model(images)
    return int(tracker.get_tracker_snapshot("peak")[images.device]["Total"])


def _time_calls(model: Classifier, images: Tensor, threads: int | None, runs: int) -> Latency:
    """Wall time of `runs` calls after a warm-up."""
    on_cuda, times = images.device.type == "cuda", []

    def now_ms() -> float:
        if on_cuda:
            torch.cuda.synchronize(images.device)
        return time.perf_counter_ns() / 1e6

    with cpu_threads(threads):
        used_threads = torch.get_num_threads()
        for _ in range(max(3, runs // 10) + runs):
            start = now_ms()
            model(images)
            times.append(now_ms() - start)
    return Latency(
        median=percentile(times[-runs:], 50),
        p95=percentile(times[-runs:], 95),
        batch=len(images),
        threads=used_threads,
        device=torch.cuda.get_device_name(images.device) if on_cuda else images.device.type,
        runs=runs,
    )
