"""What a model costs: parameters, bytes, multiplications, latency and memory, each with its conditions."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from noisyteacher.device import resolve_device
from noisyteacher.errors import MismatchError, UsageError
from noisyteacher.measure.count import LiveBytes, MultiplicationCounter, undisguised
from noisyteacher.models import Classifier, Frozen, as_classifier, saved_bytes
from noisyteacher.modes import inference
from noisyteacher.rng import stream


@dataclass(frozen=True)
class LayerCost:
    """One module of the network: what it holds itself and what it multiplies for one image."""

    name: str
    """Its path in the network, as in `named_modules()`; "model" for the network itself."""
    kind: str
    """Its class."""
    output_shape: tuple[int, ...]
    """The shape of its answer for one image, without the batch; () when it was not called itself."""
    parameters: int
    """Its own parameters, without those of modules inside it; shared ones count at their first owner."""
    macs: int
    """Multiplications done in it, without those of modules inside it, per image."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one forward call, uint8 images to logits, with the conditions they were taken under."""

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
    """The four costs the paper's story needs side by side, and the memory.

    `macs` follows the paper: multiplications of convolutions and matrix products of the network, biases not counted,
    per image. What is not in it is said: `preprocess_macs` apart, and every operation without a formula in
    `unsupported`.
    """

    parameters: int
    """Elements of all parameters, each once."""
    bytes: int
    """The length of the file that `save_model` writes without an extra record: parameters, buffers and header."""
    macs: int
    preprocess_macs: int
    """The same count for the preprocessing in front (local contrast normalisation convolves too)."""
    layers: tuple[LayerCost, ...]
    unsupported: tuple[str, ...]
    """"layer: operation" for every operation with no formula: then `macs` is a lower bound."""
    latency_ms: Latency | None
    peak_memory_bytes: int
    """CPU: parameters, buffers, the images and the results of operations alive at once, without scratch memory inside
    kernels. CUDA: what torch's allocator held at most, scratch included. For one forward call of `batch` images."""
    batch: int
    """Images in the call that `peak_memory_bytes` and `latency_ms` speak of."""


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
    """The Costs of a model for images (C, H, W), asked in eval mode; the model is as before afterwards.

    A bare module gets float32 images in [0, 1] and needs `input_shape`. `threads` (CPU) is torch's own number by
    default; `device` is where the model is by default; for another it is moved there and back. `latency=False` leaves
    timing out. Raises UsageError for a missing or impossible setting, MismatchError when the model does not
    take such images.
    """
    for what, value in (("batch", batch), ("runs", runs), ("threads", 1 if threads is None else threads)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UsageError(f"{what} {value!r}: it must be a whole number of 1 or more")
    if input_shape is not None and not _is_shape(input_shape):
        raise UsageError(f"input_shape {input_shape!r}: it is (channels, height, width), three sizes of 1 or more")
    whole = as_classifier(model, input_shape=input_shape)
    shape = whole.input_shape
    if shape is None:
        raise UsageError("the model does not say which images it takes: pass input_shape=(channels, height, width)")
    with inference(whole, None if device is None else resolve_device(device)) as place:
        counter = MultiplicationCounter(whole)
        one = _images(1, shape, place)
        with undisguised(), counter.listening():
            whole(one)
        weights = _count_frozen(whole, counter, whole.preprocess(one).shape)
        images = _images(batch, shape, place)
        peak = _peak_memory(whole, images)
        timed = _time(whole, images, threads, runs) if latency else None
    layers = _layers(whole, counter)
    in_network = sum(layer.macs for layer in layers)
    return Costs(
        parameters=sum(parameter.numel() for parameter in whole.parameters()) + weights,
        bytes=saved_bytes(whole),
        macs=in_network,
        preprocess_macs=sum(counter.macs.values()) - in_network,
        layers=layers,
        unsupported=tuple(f"{_short(where)}: {what}" for where, what in counter.unsupported),
        latency_ms=timed,
        peak_memory_bytes=peak,
        batch=batch,
    )


def ratios(teacher: Costs, student: Costs) -> dict[str, float | None]:
    """Teacher over student for parameters, bytes, macs and latency_ms (medians): above 1, the student is the cheaper.

    None where the ratio would not be true: latency not measured, a zero, or macs that are only a lower bound. Raises
    MismatchError when the two latencies were taken under different conditions.
    """
    pairs: dict[str, tuple[float, float]] = {
        "parameters": (teacher.parameters, student.parameters),
        "bytes": (teacher.bytes, student.bytes),
        "macs": (0, 0) if teacher.unsupported or student.unsupported else (teacher.macs, student.macs),
        "latency_ms": (0, 0),
    }
    old, new = teacher.latency_ms, student.latency_ms
    if old is not None and new is not None:
        for what in ("batch", "threads", "device"):
            if getattr(old, what) != getattr(new, what):
                raise MismatchError(
                    f"latencies cannot be compared: {what} {getattr(old, what)!r} for the teacher, "
                    f"{getattr(new, what)!r} for the student; measure both alike"
                )
        pairs["latency_ms"] = (old.median, new.median)
    return {what: ours / theirs if ours and theirs else None for what, (ours, theirs) in pairs.items()}


def _is_shape(sizes: object) -> bool:
    whole = isinstance(sizes, Sequence) and all(isinstance(size, int) and size >= 1 for size in sizes)
    return whole and len(sizes) == 3  # type: ignore[arg-type]


def _layers(model: Classifier, counter: MultiplicationCounter) -> tuple[LayerCost, ...]:
    """A row for every module of the network that is a leaf, holds parameters of its own or multiplies itself."""
    rows: list[LayerCost] = []
    seen: set[int] = set()
    for name, module in model.named_modules():
        if name and name.split(".")[0] != "network":
            continue
        own = [parameter for parameter in module.parameters(recurse=False) if id(parameter) not in seen]
        seen.update(map(id, own))
        macs = counter.macs.get(name, 0)
        called_leaf = name in counter.shapes and not any(True for _ in module.children())
        if own or macs or called_leaf:
            rows.append(
                LayerCost(
                    name=_short(name),
                    kind=type(module).__name__,
                    output_shape=counter.shapes.get(name, ()),
                    parameters=sum(parameter.numel() for parameter in own),
                    macs=macs,
                )
            )
    return tuple(rows)


def _count_frozen(model: Classifier, counter: MultiplicationCounter, shape: Sequence[int]) -> int:
    """Elements of the weights of networks that are files; what they multiply for one image goes to the counter.

    Such a network may compute out of torch's sight, and for a whole batch of a fixed size whatever it is given.
    """
    total = 0
    for name, module in model.named_modules():
        if isinstance(module, Frozen):
            macs, unsupported = module.costs((shape[1], shape[2], shape[3]))
            counter.macs[name] = counter.macs[name] // module.port.smallest + macs
            counter.unsupported.update(dict.fromkeys((name, one) for one in unsupported))
            total += module.weights
    return total


def _short(name: str) -> str:
    """The path inside the network; "model" for the network itself."""
    return name.removeprefix("network.") if name not in ("", "network") else "model"


def _peak_memory(model: Classifier, images: Tensor) -> int:
    held = [*model.parameters(), *model.buffers()]
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in held}
    weights = sum(storages.values())
    if images.device.type == "cuda":
        model(images)  # libraries allocate their workspaces at the first call
        torch.cuda.synchronize(images.device)
        torch.cuda.reset_peak_memory_stats(images.device)
        before = torch.cuda.memory_allocated(images.device)  # other models may be there, too
        model(images)
        return weights + images.nbytes + int(torch.cuda.max_memory_allocated(images.device)) - before
    listener = LiveBytes(held)
    listener.follow(images)
    with listener:
        model(images)
    return weights + listener.peak


def _time(model: Classifier, images: Tensor, threads: int | None, runs: int) -> Latency:
    """Wall time of `runs` calls after a warm-up; the process's thread count is put back."""
    on_cuda = images.device.type == "cuda"
    before = torch.get_num_threads()
    times = []
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        used = torch.get_num_threads()
        for turn in range(-max(3, runs // 10), runs):
            if on_cuda:
                torch.cuda.synchronize(images.device)
            start = time.perf_counter_ns()
            model(images)
            if on_cuda:
                torch.cuda.synchronize(images.device)
            if turn >= 0:
                times.append((time.perf_counter_ns() - start) / 1e6)
    finally:
        torch.set_num_threads(before)
    return Latency(
        median=percentile(times, 50),
        p95=percentile(times, 95),
        batch=len(images),
        threads=used,
        device=torch.cuda.get_device_name(images.device) if on_cuda else images.device.type,
        runs=runs,
    )


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of the values that at least `percent` per cent of them do not exceed (nearest rank: a real one)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def _images(count: int, shape: tuple[int, int, int], device: torch.device) -> Tensor:
    """Uint8 noise images, the same every time: blank ones would let kernels meet denormals or skip zeros."""
    drawn = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=stream(0, "measure"))
    return drawn.to(device)
