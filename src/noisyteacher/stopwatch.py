"""Where the time of a training goes, phase by phase."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch

STEP_PHASES = ("data", "forward", "noise", "backward", "checks", "optimizer", "logging")
"""The phases of a step, in their order. `noise`: targets, noise and loss; `checks`: that gradients are finite."""
OTHER_PHASES = ("validation", "checkpoint")
"""What comes between steps."""


@dataclass
class Stopwatch:
    """Seconds by phase. The first step is left out: memory is found and kernels are chosen in it."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys((*STEP_PHASES, *OTHER_PHASES), 0.0))
    steps: int = 0
    samples: int = 0
    cpu_seconds: float = 0.0
    """Seconds that the process's threads worked during the steps, all cores together."""
    _last: float = 0.0
    _cpu: float = 0.0
    _warm: bool = False

    def start(self) -> None:
        """What comes next begins now."""
        self._last, self._cpu = self._now(), time.process_time()

    def mark(self, phase: str) -> None:
        """What has run since the last mark was this phase."""
        now, cpu = self._now(), time.process_time()
        if self._warm:
            self.seconds[phase] += now - self._last
            if phase in STEP_PHASES:
                self.cpu_seconds += cpu - self._cpu
        self._last, self._cpu = now, cpu

    def step_done(self, samples: int) -> None:
        """A step of so many samples is over."""
        if self._warm:
            self.steps += 1
            self.samples += samples
        self._warm = True

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


class NoStopwatch(Stopwatch):
    """One that measures nothing, for trainings that nobody asks about."""

    def start(self) -> None: ...

    def mark(self, phase: str) -> None: ...

    def step_done(self, samples: int) -> None: ...
