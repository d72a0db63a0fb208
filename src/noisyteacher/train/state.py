"""The state of trainings: what students trained together have in common, where each stands, and what a step reports."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from noisyteacher.config.schema import HOLD, MOMENTUM, TrainSettings
from noisyteacher.data import Batch, Split, samples_of
from noisyteacher.distributed import World
from noisyteacher.errors import NoisyTeacherError, TrainingError
from noisyteacher.models import Classifier
from noisyteacher.noise import Noise
from noisyteacher.rng import derive_seed, seed_draws

if TYPE_CHECKING:  # loaded, it would be a fifth floor of this folder (tests/test_layers.py)
    from noisyteacher.train.validation import Validation

RATE_SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "constant": lambda done, hold: 1.0,
    "hold": lambda done, hold: 1.0 if done <= hold else (1.0 - done) / (1.0 - hold),
    "linear": lambda done, hold: 1.0 - done,
    "cosine": lambda done, hold: 0.5 * (1.0 + math.cos(math.pi * done)),
    "step": lambda done, hold: 1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01,
}
"""Schedule -> factor on the base learning rate after a share `done` (0..1) of the steps behind the warm-up; `hold` is
the share for which the schedule of that name does not fall."""
OWN_METRICS = ("epoch", "step", "samples", "train/loss", "lr", "seconds")
"""Names that the trainer itself uses for numbers of an epoch, besides those that begin with `val/`."""


@dataclass
class TrainingPlan:
    """What is the same for all students that are trained together."""

    settings: TrainSettings
    split: Split
    validation: Validation | None
    views: tuple[str, ...]
    device: torch.device
    precision: str
    world: World
    memory_format: torch.memory_format = torch.contiguous_format

    @property
    def keep(self) -> str:
        """Which weights are kept: `best` or `last`."""
        return self.settings.keep or ("last" if self.validation is None else "best")

    @cached_property
    def batches(self) -> int:
        """Batches per epoch."""
        return batches_per_epoch(self.split, self.views, self.settings)

    @property
    def total_steps(self) -> int:
        """Steps of the whole training."""
        return self.batches * self.settings.epochs

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step, from 0."""
        return learning_rate(self.settings, step, self.batches)

    def body_factor(self, step: int) -> float:
        """What the rate of all layers but the last is multiplied by at a step, from 0."""
        return 0.0 if step < round(self.settings.freeze_epochs * self.batches) else self.settings.body_rate


@dataclass
class Progress:
    """Where a run stands: the next step, the running epoch's sums, the finished epochs, the best one so far."""

    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    best_key: list[float] = field(default_factory=list)
    seconds: float = 0.0
    missing: dict[str, float] = field(default_factory=dict)
    """By name, the samples of the running epoch's steps in which the objective did not report that number."""

    def add(self, loss: float, numbers: dict[str, float], samples: int) -> None:
        """Count a step: add its loss and its numbers to the epoch's sums, those named `_rms` by their squares.

        Raises TrainingError for a number that is not finite, or has a name of the training's own metrics.
        """
        for name in numbers:
            if name in OWN_METRICS or name.startswith("val/"):
                raise TrainingError(
                    f"the objective's number {name!r} has the name of one of the training's own metrics: rename it, "
                    f"for example to 'objective/{name}'"
                )
        numbers, samples_before = {"train/loss": loss, **numbers}, self.sums.get("samples", 0.0)
        for name in self.sums.keys() - numbers.keys() - {"samples"}:
            self.missing[name] = self.missing.get(name, 0.0) + samples
        for name in numbers.keys() - self.sums.keys():
            self.missing[name] = samples_before
        for name, number in numbers.items():
            if not math.isfinite(number):
                raise TrainingError(f"the objective's number {name!r} is {number} at step {self.step + 1}")
            value = number**2 if name.endswith("_rms") else number
            self.sums[name] = self.sums.get(name, 0.0) + value * samples
        self.sums["samples"] = samples_before + samples
        self.step += 1

    def means(self) -> dict[str, float]:
        """Of the running epoch: each number's mean over the samples of the steps that reported it."""
        means = {
            name: total / (self.sums["samples"] - self.missing.get(name, 0.0))
            for name, total in self.sums.items()
            if name != "samples"
        }
        return {name: math.sqrt(mean) if name.endswith("_rms") else mean for name, mean in means.items()}


@dataclass(eq=False)
class Student:
    """A model in training, with its update rule, its objective, its run folder and its progress."""

    model: Classifier
    optimizer: torch.optim.Optimizer
    objective: Callable[[Tensor, Batch], Any]
    seed: int
    identity: dict[str, Any]
    """Settings, data and objective as JSON-able values: a resumed run must have the same."""
    reestimate_batch_norms: bool = False
    folder: Path | None = None
    """Where this process writes; None without a run folder, and in processes that do not lead."""
    progress: Progress = field(default_factory=Progress)
    best: dict[str, Tensor] = field(default_factory=dict)
    """Weights of the best epoch so far."""
    error: NoisyTeacherError | None = None
    """What ended this training."""

    @cached_property
    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters of the model."""
        return list(self.model.named_parameters())

    def is_over(self, plan: TrainingPlan) -> bool:
        """Whether every epoch is done, patience has run out, or the training has failed."""
        patience, done = plan.settings.patience, len(self.progress.epochs)
        stopped = patience is not None and 0 < done >= self.progress.best_epoch + patience
        return self.error is not None or done >= plan.settings.epochs or stopped


@dataclass
class StepReport:
    """Numbers of one step, by student: losses, metrics, and the error that ended a student's training in it."""

    step: int
    samples: int
    losses: list[float]
    metrics: list[dict[str, float]]
    errors: dict[int, NoisyTeacherError] = field(default_factory=dict)


def seeds_of(students: Sequence[Student]) -> tuple[list[int], list[int]]:
    """The distinct seeds, and each student's index among them."""
    seeds = list(dict.fromkeys(student.seed for student in students))
    return seeds, [seeds.index(student.seed) for student in students]


def batches_per_epoch(split: Split, views: Sequence[str], settings: TrainSettings) -> int:
    """Batches per epoch: a last batch of a single sample is left out, because batch norm cannot learn from it."""
    samples = samples_of(split, views, settings.every_view)
    return max(1, samples // settings.batch_size + (samples % settings.batch_size > 1))


def length_in_epochs(settings: TrainSettings, split: Split, views: Sequence[str]) -> int:
    """The epochs of a training: as many as `settings.steps` need, where it is given."""
    if settings.steps is None:
        return settings.epochs
    return math.ceil(settings.steps / batches_per_epoch(split, views, settings))


def rate_factor(schedule: str, step: int, total_steps: int, warmup_steps: int = 0, hold: float = HOLD) -> float:
    """The factor on the base learning rate at `step` (from 0), a number in (0, 1].

    The first `warmup_steps` rise linearly to 1; after them `constant` stays, `linear` falls to 0, `hold` stays for the
    share `hold` of the remaining steps and falls linearly to 0 then, `cosine` falls along half a cosine, `step` is
    divided by 10 at half and at three quarters. The last step is never at 0.
    `rate_factor("linear", 5, 10) == 0.5`.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return RATE_SCHEDULES[schedule]((step - warmup_steps) / max(1, total_steps - warmup_steps), hold)


def learning_rate(settings: TrainSettings, step: int, batches: int) -> float:
    """The learning rate of a step, from 0, of a training whose epochs have this many batches."""
    warmup, hold = round(settings.warmup_epochs * batches), HOLD if settings.hold is None else settings.hold
    return settings.lr * rate_factor(settings.schedule, step, batches * settings.epochs, warmup, hold)


def noise_clock(settings: TrainSettings, noise: Noise, batches: int, mean_square: float) -> float | None:
    """Q = 1/B * sum over steps of rate^2 alpha sigma^2 mean(z^2): how far noise has moved a student that has fitted its
    targets (docs/method.md, after the fit). None where no such number is known: for other optimizers than sgd, for
    noise on the student, and for noise that is frozen.

    batches: steps in an epoch; mean_square: of the logits in the units of the loss. Momentum m divides the rate by
    1 - m; the mean of several draws has the variance of a single one divided by their number. One xi per batch counts
    like one per row: gains were seen at the same numbers, though its rows' noises do not average out.
    """
    if settings.optimizer != "sgd" or noise.target != "teacher" or noise.frozen:
        return None
    steps, total = batches * settings.epochs, 0.0
    for step in range(steps):
        low, high = noise.sigma_at(step, steps)
        total += learning_rate(settings, step, batches) ** 2 * (low * low + low * high + high * high) / 3
    momentum = MOMENTUM if settings.momentum is None else settings.momentum
    return total / (1 - momentum) ** 2 * noise.alpha * mean_square / settings.batch_size / noise.draws


def loss_error(value: float, step: int, plan: TrainingPlan) -> TrainingError:
    """The error for a loss that is not finite at a step, from 0."""
    return TrainingError(
        f"the loss is {value} at step {step + 1} of {plan.total_steps} (epoch {step // plan.batches + 1}); the weights "
        f"were not updated. Try a lower lr (now {plan.settings.lr:g}), a warm-up, or precision fp32, and check the "
        "inputs for NaN"
    )


def gradient_error(name: str, step: int) -> TrainingError:
    """The error for a gradient that is not finite at a step, from 0."""
    return TrainingError(
        f"the gradient of {name} is not finite at step {step + 1}, though the loss is; the weights were not "
        "updated. Try precision fp32 or a lower lr, and look in the objective and the network for a root, a "
        "logarithm or a division at 0"
    )


def seed_step(seed: int, step: int, plan: TrainingPlan) -> None:
    """Seed torch's global generators for what network and objective draw at this step, such as dropout."""
    rank = (plan.world.rank,) if plan.world.rank else ()  # each process drops units of its own rows
    seed_draws(derive_seed(seed, "dropout", step, *rank), plan.device)
