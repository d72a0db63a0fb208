"""What a training run leaves behind: a line of numbers per epoch and the record `fit` returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from noisyteacher.progress import Watch
from noisyteacher.stopwatch import Stopwatch


@dataclass(frozen=True)
class Tick:
    """What `progress` is told after a step: how far the run is, in steps, and the newest numbers."""

    epoch: int
    epochs: int
    step: int
    total_steps: int
    loss: float
    val_error: float | None

    @property
    def note(self) -> str:
        """The epoch and the newest numbers in words."""
        judged = "" if self.val_error is None else f" val error {self.val_error:.2f} %"
        return f"epoch {self.epoch}/{self.epochs}{judged} loss {self.loss:.3g}"


def ticked(watch: Watch, title: str) -> Callable[[Tick], None]:
    """A callback for `fit` that reports one training as a stage."""
    return lambda tick: watch(title, tick.step, tick.total_steps, tick.note)


@dataclass(frozen=True)
class History:
    """What `fit` returns: a dict of numbers per epoch, which epoch was kept, and both sets of weights.

    `epochs[i]` holds `epoch`, `step`, `train/loss`, `val/error` (%), `val/nll` (nats), `lr`, `seconds`; where
    validation has no labels, `val/agreement` (%) and `val/kl` (nats) instead of error and NLL. `best_epoch` counts from
    1, chosen by the first of the two, then the second; 0 without validation. `seconds` is training time, validation
    left out. `stopped_early` tells whether patience ended the run. `profile` holds the seconds of
    every phase where `fit` was asked for them. `replayed` tells whether steps were replayed as a CUDA graph.
    """

    epochs: tuple[dict[str, Any], ...]
    best_epoch: int
    kept: str
    seconds: float
    stopped_early: bool
    best: dict[str, Tensor]
    last: dict[str, Tensor]
    profile: Stopwatch | None = None
    replayed: bool = False

    @property
    def val_error(self) -> float | None:
        """Validation error (%) of the weights that were kept; None without validation or labels."""
        if not self.best_epoch:
            return None
        epoch = self.best_epoch if self.kept == "best" else len(self.epochs)
        found = self.epochs[epoch - 1].get("val/error")
        return None if found is None else float(found)
