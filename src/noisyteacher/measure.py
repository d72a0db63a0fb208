"""What a model costs: parameters, bytes, multiplications, latency and memory, each with its conditions."""

from __future__ import annotations

import contextlib
import math
import time
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from noisyteacher.device import resolve_device
from noisyteacher.errors import MismatchError, UsageError
from noisyteacher.inference import inference
from noisyteacher.models import Classifier, OnnxNetwork, as_classifier, saved_bytes
from noisyteacher.rng import stream


@dataclass(frozen=True)
class LayerCost:
    """One module of the network: its own parameters, and the multiplications it does for one image."""

    name: str
    """Its path in the network, as in `named_modules()`; "model" for the network itself."""
    kind: str
    """Its class."""
    output_shape: tuple[int, ...]
    """The shape of its output for one image, without the batch; () when it was not called itself."""
    parameters: int
    """Its own parameters, without those of modules inside it; shared ones count at their first owner."""
    macs: int
    """Multiplications per image, without those of modules inside it."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one forward call, uint8 images to logits, with the conditions of the measurement."""

    median: float
    p95: float
    batch: int
    """Images per call: the times are per call, not per image."""
    threads: int
    """CPU threads within operations."""
    device: str
    runs: int


@dataclass(frozen=True)
class Costs:
    """The size and the speed of a model.

    `macs` follows the paper: multiplications of convolutions and matrix products of the network per image, without
    biases. Those of the preprocessing are in `preprocess_macs`; operations without a formula are in `unsupported`.
    """

    parameters: int
    """Elements of all parameters; a shared parameter counts once."""
    bytes: int
    """The length of the file that `save_model` writes without an extra record: parameters, buffers and header."""
    macs: int
    preprocess_macs: int
    """The same count for the preprocessing (local contrast normalisation convolves too)."""
    layers: tuple[LayerCost, ...]
    unsupported: tuple[str, ...]
    """"layer: operation" for every operation with no formula: `macs` is then a lower bound."""
    latency_ms: Latency | None
    peak_memory_bytes: int
    """For one forward call of `batch` images. CPU: parameters, buffers, images and the results of operations alive at
    once, without scratch memory inside kernels. CUDA: the peak of torch's allocator, scratch memory included."""
    batch: int
    """Images per call in `peak_memory_bytes` and `latency_ms`."""


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
    threads, `device` to the model's device; for another device the model is moved there and back. `latency=False`
    skips the timing. Raises UsageError for a missing or impossible setting, MismatchError when the model does not take
    such images.
    """
    for setting, value in (("batch", batch), ("runs", runs), ("threads", 1 if threads is None else threads)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UsageError(f"{setting} {value!r}: expected a whole number of 1 or more")
    if input_shape is not None and not _is_image_shape(input_shape):
        raise UsageError(f"input_shape {input_shape!r}: expected (channels, height, width), three sizes of 1 or more")
    classifier = as_classifier(model, input_shape=input_shape)
    shape = classifier.input_shape
    if shape is None:
        raise UsageError("the model does not state its image size: pass input_shape=(channels, height, width)")
    with inference(classifier, None if device is None else resolve_device(device)) as used_device:
        counter = MacCounter(classifier)
        image = _random_images(1, shape, used_device)
        with counter.count():
            classifier(image)
        onnx_weights = _count_onnx(classifier, counter, classifier.preprocess(image).shape)
        images = _random_images(batch, shape, used_device)
        peak = _peak_memory(classifier, images)
        timing = _time_calls(classifier, images, threads, runs) if latency else None
    layers = _layer_costs(classifier, counter)
    network_macs = sum(layer.macs for layer in layers)
    return Costs(
        parameters=sum(parameter.numel() for parameter in classifier.parameters()) + onnx_weights,
        bytes=saved_bytes(classifier),
        macs=network_macs,
        preprocess_macs=counter.macs.total() - network_macs,
        layers=layers,
        unsupported=tuple(f"{_layer_name(module)}: {operation}" for module, operation in counter.unsupported),
        latency_ms=timing,
        peak_memory_bytes=peak,
        batch=batch,
    )


def ratios(teacher: Costs, student: Costs) -> dict[str, float | None]:
    """Teacher over student for parameters, bytes, macs and latency_ms (medians): above 1, the student is cheaper.

    None where a ratio would be wrong: latency not measured, a zero, or macs that are only a lower bound. Raises
    MismatchError when the two latencies were measured under different conditions.
    """
    pairs: dict[str, tuple[float, float]] = {
        "parameters": (teacher.parameters, student.parameters),
        "bytes": (teacher.bytes, student.bytes),
        "macs": (0, 0) if teacher.unsupported or student.unsupported else (teacher.macs, student.macs),
        "latency_ms": (0, 0),
    }
    old, new = teacher.latency_ms, student.latency_ms
    if old is not None and new is not None:
        for condition in ("batch", "threads", "device"):
            if getattr(old, condition) != getattr(new, condition):
                raise MismatchError(
                    f"latencies cannot be compared: {condition} {getattr(old, condition)!r} for the teacher, "
                    f"{getattr(new, condition)!r} for the student; measure both under the same conditions"
                )
        pairs["latency_ms"] = (old.median, new.median)
    return {
        name: old_cost / new_cost if old_cost and new_cost else None for name, (old_cost, new_cost) in pairs.items()
    }


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` per cent of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


# ------------------------------------------------------------------------------------------------- multiplications

_aten = torch.ops.aten
FLOPS = FlopCounterMode(
    display=False,
    custom_mapping={
        _aten.mv: lambda matrix, vector, out_shape=None: 2 * math.prod(matrix),
        _aten.addmv: lambda bias, matrix, vector, out_shape=None, **_: 2 * math.prod(matrix),
        _aten.dot: lambda left, right, out_shape=None: 2 * math.prod(left),
        _aten.vdot: lambda left, right, out_shape=None: 2 * math.prod(left),
        _aten.addbmm: lambda bias, left, right, out_shape=None, **_: 2 * math.prod(left) * right[-1],
        _aten._int_mm: lambda left, right, out_shape=None: 2 * math.prod(left) * right[-1],
    },
).flop_registry
"""Operation -> torch's formula for its floating-point operations, two per multiplication; vectors are added here."""
FREE_WORDS = frozenset(
    """
    arange assert bernoulli bincount bucketize cat cell chunk col2im complex copy cummax cummin cumprod cumsum diag
    diagonal dropout embedding empty eye fill flip full gather glu grid hardswish histc im2col index is isin kthvalue
    lift linspace logcumsumexp median mode multinomial nanmedian new nonzero norm normal one ones pad padded polar pool
    prelu rand randint randn randperm renorm repeat reshape roll rot90 rrelu scalar scatter searchsorted select set
    shuffle sigmoid softmax sort split stack take to topk tril triu uniform unique unpool unshuffle upsample view zero
    zeros
    """.split()  # noqa: SIM905 - as a list it would be eighty lines
)
"""Words in the names of torch operations that cost nothing by the paper's convention: pooling, normalisation,
activations, random numbers, copies, resizing. torch itself marks element-wise operations, reductions and views."""


def is_free(operation: Any) -> bool:
    """Whether the operation multiplies nothing by the paper's convention."""
    namespace, _, name = operation._schema.name.partition("::")
    tags = {torch.Tag.pointwise, torch.Tag.reduction, torch.Tag.inplace_view}
    if not tags.isdisjoint(operation.tags) or getattr(operation, "is_view", False):
        return True
    words = {word.rstrip("d").rstrip("123") for word in name.split("_")} | set(name.split("_"))
    return namespace == "aten" and bool(words & FREE_WORDS)


class MacCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside `count()`: adds up multiplications per module, and collects the operations that have no formula.

    `macs` and `shapes` are keyed by module name ("" is the whole model); `unsupported` holds (module, operation).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model = model
        self.macs = Counter[str]()
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.unsupported: dict[tuple[str, str], None] = {}
        self._stack = [""]

    @contextlib.contextmanager
    def count(self) -> Iterator[None]:
        """Inside the block every forward call of the model is counted.

        Attention, LSTMs and encoder layers run as the matrix products they consist of, not as one fused operation.
        """
        fast_path, mkldnn = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
        handles: list[Any] = []
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
            for name, module in self.model.named_modules():
                handles.append(module.register_forward_pre_hook(lambda *_, name=name: self._stack.append(name)))
                handles.append(module.register_forward_hook(self._leave, always_call=True))
            with torch.backends.cudnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH), self:
                yield
        finally:
            for handle in handles:
                handle.remove()
            torch.backends.mha.set_fastpath_enabled(fast_path)
            torch.backends.mkldnn.enabled = mkldnn

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = FLOPS.get(func._overloadpacket)
        if formula is None and not is_free(func):
            # Composite operations may arrive whole: the operations they consist of come back here.
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
            self.unsupported[self._stack[-1], func._schema.name] = None
        result = func(*args, **kwargs)
        if formula is not None:
            self.macs[self._stack[-1]] += formula(*args, **kwargs, out_val=result) // 2
        return result

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        name = self._stack.pop()
        tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        if tensors:
            self.shapes[name] = tuple(tensors[0].shape[1:])


def _count_onnx(model: Classifier, counter: MacCounter, ready: Sequence[int]) -> int:
    """Elements of the weights of ONNX networks, whose multiplications for one image are added to the counter."""
    total = 0
    for name, module in model.named_modules():
        if isinstance(module, OnnxNetwork):
            weights, macs, unsupported = module.costs((ready[1], ready[2], ready[3]))
            counter.macs[name] += macs
            counter.unsupported.update(dict.fromkeys((name, operation) for operation in unsupported))
            total += weights
    return total


def _layer_costs(model: Classifier, counter: MacCounter) -> tuple[LayerCost, ...]:
    """A row for every module of the network that is a leaf, has parameters of its own or multiplies itself."""
    layers: list[LayerCost] = []
    seen: set[int] = set()
    for name, module in model.named_modules():
        if name and name.split(".")[0] != "network":
            continue
        parameters = [parameter for parameter in module.parameters(recurse=False) if id(parameter) not in seen]
        seen.update(map(id, parameters))
        macs = counter.macs[name]
        called_leaf = name in counter.shapes and not any(True for _ in module.children())
        if parameters or macs or called_leaf:
            layers.append(
                LayerCost(
                    name=_layer_name(name),
                    kind=type(module).__name__,
                    output_shape=counter.shapes.get(name, ()),
                    parameters=sum(parameter.numel() for parameter in parameters),
                    macs=macs,
                )
            )
    return tuple(layers)


def _layer_name(module: str) -> str:
    return module.removeprefix("network.") if module not in ("", "network") else "model"


# ------------------------------------------------------------------------------------------------ memory and time


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, follows the storages that operations allocate: `peak` is the most bytes alive at one moment.

    Storages of `existing` tensors (weights, buffers) are not followed; views and in-place results count once; scratch
    memory inside a kernel is not seen.
    """

    def __init__(self, existing: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self._existing = {tensor.untyped_storage()._cdata for tensor in existing}
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.follow(leaf)
        return result

    def follow(self, tensor: Tensor) -> None:
        """Count this tensor's storage until it is freed."""
        if tensor.layout is not torch.strided:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._existing or key in self._alive:
            return
        self._alive[key] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._freed, key).atexit = False

    def _freed(self, key: int) -> None:
        self.live -= self._alive.pop(key)


def _peak_memory(model: Classifier, images: Tensor) -> int:
    tensors = [*model.parameters(), *model.buffers()]
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    weights = sum(storages.values())
    if images.device.type == "cuda":
        model(images)  # libraries allocate their workspaces at the first call
        torch.cuda.synchronize(images.device)
        torch.cuda.reset_peak_memory_stats(images.device)
        before = torch.cuda.memory_allocated(images.device)  # other models may be there, too
        model(images)
        return weights + images.nbytes + int(torch.cuda.max_memory_allocated(images.device)) - before
    listener = LiveBytes(tensors)
    listener.follow(images)
    with listener:
        model(images)
    return weights + listener.peak


def _time_calls(model: Classifier, images: Tensor, threads: int | None, runs: int) -> Latency:
    """Wall time of `runs` calls after a warm-up; the process's thread count is restored."""
    on_cuda = images.device.type == "cuda"
    threads_before = torch.get_num_threads()
    times = []
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        used_threads = torch.get_num_threads()
        for run in range(-max(3, runs // 10), runs):
            if on_cuda:
                torch.cuda.synchronize(images.device)
            start = time.perf_counter_ns()
            model(images)
            if on_cuda:
                torch.cuda.synchronize(images.device)
            if run >= 0:
                times.append((time.perf_counter_ns() - start) / 1e6)
    finally:
        torch.set_num_threads(threads_before)
    return Latency(
        median=percentile(times, 50),
        p95=percentile(times, 95),
        batch=len(images),
        threads=used_threads,
        device=torch.cuda.get_device_name(images.device) if on_cuda else images.device.type,
        runs=runs,
    )


def _is_image_shape(sizes: object) -> bool:
    if not isinstance(sizes, Sequence) or len(sizes) != 3:
        return False
    return all(isinstance(size, int) and size >= 1 for size in sizes)


def _random_images(count: int, shape: tuple[int, int, int], device: torch.device) -> Tensor:
    """Uint8 noise images, the same every time: with blank ones kernels would meet denormals or skip zeros."""
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=stream(0, "measure")).to(device)
