"""What a training reports: a Tick after every step, the History, and where the time went."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from noisyteacher.device import matmul_peak
from noisyteacher.measure import measure
from noisyteacher.progress import Watch
from noisyteacher.tables import Table

STEP_PHASES = ("data", "forward", "noise", "backward", "checks", "optimizer", "logging")
"""The phases of a step, in order. `noise`: targets, noise and loss; `checks`: that gradients are finite."""
OTHER_PHASES = ("validation", "checkpoint")
"""Phases between steps."""
WORDS = {
    "data": "making the batch",
    "forward": "forward",
    "noise": "targets, noise, loss",
    "backward": "backward",
    "checks": "gradients finite?",
    "optimizer": "optimizer",
    "logging": "metrics, progress",
    "validation": "validation",
    "checkpoint": "checkpoints",
}


@dataclass(frozen=True)
class Tick:
    """What `progress` receives after a step: how far the run is, in steps, and the newest numbers."""

    epoch: int
    epochs: int
    step: int
    total_steps: int
    loss: float
    val_error: float | None

    @property
    def note(self) -> str:
        """The epoch and the newest numbers in words."""
        val_error = "" if self.val_error is None else f" val error {self.val_error:.2f} %"
        return f"epoch {self.epoch}/{self.epochs}{val_error} loss {self.loss:.3g}"


def ticked(watch: Watch, title: str) -> Callable[[Tick], None]:
    """A callback for `fit` that reports one training as a stage."""
    return lambda tick: watch(title, tick.step, tick.total_steps, tick.note)


@dataclass(frozen=True)
class History:
    """What `fit` returns: a dict of numbers per epoch, which epoch was kept, and both sets of weights.

    `epochs[i]` holds `epoch`, `step`, `train/loss`, `val/error` (%), `val/nll` (nats), `lr`, `seconds`; for validation
    without labels, `val/agreement` (%) and `val/kl` (nats) instead of error and NLL. `best_epoch` counts from 1,
    chosen by the setting `criterion`, then the NLL (or KL); 0 without validation. `seconds`: without validation.
    `stopped_early`: patience ended the run. `profile`: seconds of every phase, if `fit` was to measure them.
    `replayed`: steps were replayed as a CUDA graph.
    """

    epochs: tuple[dict[str, Any], ...]
    best_epoch: int
    kept: str
    seconds: float
    stopped_early: bool
    best: dict[str, Tensor]
    last: dict[str, Tensor]
    profile: PhaseTimer | None = None
    replayed: bool = False

    @property
    def val_error(self) -> float | None:
        """Validation error (%) of the weights that were kept; None without validation or labels."""
        if not self.best_epoch:
            return None
        epoch = self.best_epoch if self.kept == "best" else len(self.epochs)
        error = self.epochs[epoch - 1].get("val/error")
        return None if error is None else float(error)


@dataclass
class PhaseTimer:
    """Seconds by phase of a training. The first step is left out: memory is allocated and kernels are chosen in it."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys((*STEP_PHASES, *OTHER_PHASES), 0.0))
    steps: int = 0
    samples: int = 0
    cpu_seconds: float = 0.0
    """CPU time of all threads during the steps."""
    _last: float = 0.0
    _cpu: float = 0.0
    _warm: bool = False

    def start(self) -> None:
        """Start timing the next phase now."""
        self._last, self._cpu = self._now(), time.process_time()

    def mark(self, phase: str) -> None:
        """Count the time since the last mark to this phase."""
        now, cpu = self._now(), time.process_time()
        if self._warm:
            self.seconds[phase] += now - self._last
            if phase in STEP_PHASES:
                self.cpu_seconds += cpu - self._cpu
        self._last, self._cpu = now, cpu

    def step_done(self, samples: int) -> None:
        """Count a step of this many samples."""
        if self._warm:
            self.steps += 1
            self.samples += samples
        self._warm = True

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def profiled(model: nn.Module, watch: PhaseTimer, recipe: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record of a profile; None when fewer than two steps were trained, as the first is not counted.

    `phases` are seconds; `flop_per_step` counts the multiplications and additions of the network forward, and backward
    for weights and for inputs, where the first layer's input needs none; `peak_flops` is the machine's matrix product,
    measured now in the training's precision; `cores_idle` is the share of the threads' time in which they did not work
    (CPU only).
    """
    if not watch.steps:
        return None
    layers = [layer.macs for layer in measure(model, latency=False).layers if layer.macs]
    flop = 2 * (3 * sum(layers) - (layers[0] if layers else 0)) * watch.samples / watch.steps
    seconds = sum(watch.seconds[phase] for phase in STEP_PHASES)
    peak = matmul_peak(watch.device, recipe.get("precision", "fp32"))
    threads = torch.get_num_threads()
    return {
        "steps": watch.steps,
        "samples": watch.samples,
        "phases": dict(watch.seconds),
        "step_ms": 1000 * seconds / watch.steps,
        "flop_per_step": flop,
        "peak_flops": peak,
        "share_of_peak": flop * watch.steps / seconds / peak,
        "threads": threads,
        "cores_idle": None if watch.device.type != "cpu" else max(0.0, 1 - watch.cpu_seconds / (seconds * threads)),
    }


def profile_table(record: Mapping[str, Any]) -> Table:
    """A row per phase of a step with its milliseconds and its share; what is between steps has no share."""
    phases, steps = record["phases"], record["steps"]
    total = sum(phases[name] for name in STEP_PHASES)
    rows = [
        (WORDS[name], f"{1000 * phases[name] / steps:.2f}", f"{100 * phases[name] / total:.1f}") for name in STEP_PHASES
    ]
    rows.append(("a step", f"{record['step_ms']:.2f}", "100.0"))
    rows += [(WORDS[name], f"{1000 * phases[name] / steps:.2f}", "") for name in OTHER_PHASES]
    idle = record["cores_idle"]
    notes = (
        f"{steps:,} steps after the first, {record['samples'] / steps:.0f} samples each, "
        f"{record['threads']} thread(s){'' if idle is None else f', idle {100 * idle:.0f} % of the time'}.",
        f"A step's products, {record['flop_per_step'] / 1e9:.3g} GFLOP, run at {100 * record['share_of_peak']:.0f} % "
        f"of this machine's matrix-product peak, {record['peak_flops'] / 1e9:.0f} GFLOP/s, measured afterwards.",
    )
    return Table(("phase", "ms a step", "share %"), tuple(rows), notes=notes)
