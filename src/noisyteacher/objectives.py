"""What a student is taught by: closures over a batch, for `fit` and for nobody else's concern."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from noisyteacher.data import Batch, Split
from noisyteacher.errors import AskedWronglyError, ConfigError, DataError, MismatchError
from noisyteacher.losses import cross_entropy, logit_regression, soft_targets
from noisyteacher.noise import Draw, Noise, apply_noise, check_logits, is_number, step_draw
from noisyteacher.teachers import as_teacher, refuse_stored
from noisyteacher.text import unknown_name

LOSSES = ("logit_regression", "soft_targets")


@dataclass(frozen=True)
class Objective:
    """A loss of the student's logits `[B, K]` and the batch, with a check before the first step and a record of itself.

    `loss` returns the scalar to minimise and a dict of numbers worth a line in the metrics.
    """

    loss: Callable[[Tensor, Batch], tuple[Tensor, dict[str, float]]]
    check: Callable[..., None]
    """Asked with the split, the views and the number of classes, and `augment=` where images are augmented."""
    record: dict[str, Any] = field(default_factory=dict)

    def __call__(self, logits: Tensor, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """The loss and its numbers for one batch."""
        return self.loss(logits, batch)


def supervised() -> Objective:
    """Cross-entropy on the labels: how a teacher is trained, and the student's first control.

    Its check raises DataError for a split without labels, MismatchError when classes differ.
    """

    def loss(logits: Tensor, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        return labels_term(logits, batch), {}

    def check(split: Split, views: tuple[str, ...], classes: int, augment: str = "none") -> None:
        _need_labels(split, classes)

    return Objective(loss, check, {"objective": "supervised"})


def distil(
    teacher: object,
    *,
    noise: Noise | None = None,
    loss: str = "logit_regression",
    temperature: float | None = None,
    label_weight: float = 0.0,
    combine: str = "mean",
) -> Objective:
    """Learning from a teacher's logits, perturbed by `noise` where it is given.

    `teacher`: a LogitStore or its folder, a tensor of logits `[N, K]`, a live nn.Module, or a list of these, put
    together by `combine` (`mean`, `geometric`, `pick`). `loss`: `logit_regression` (the paper) or `soft_targets`
    (Hinton; `temperature`, default 4). `label_weight` w mixes the labels in: (1 - w) * teacher + w * cross-entropy.
    Raises ConfigError for settings without effect, UnknownNameError, AskedWronglyError.
    Source: Sau & Balasubramanian 2016, Eqs. 1-3 and Algorithm 1; Hinton, Vinyals & Dean 2015.
    """
    if loss not in LOSSES:
        raise unknown_name("loss", str(loss), LOSSES)
    if temperature is not None and loss != "soft_targets":
        raise ConfigError(f"temperature={temperature} has no effect with loss='{loss}': leave it out")
    if temperature is not None and not (is_number(temperature) and temperature > 0):
        raise ConfigError(f"temperature={temperature!r}: expected a finite number above 0")
    if not is_number(label_weight) or not 0 <= label_weight < 1:
        raise ConfigError(f"label_weight={label_weight!r}: expected 0 <= w < 1 (for labels alone use supervised())")
    if combine != "mean" and not isinstance(teacher, (list, tuple)):
        raise ConfigError(f"combine={combine!r} has no effect with one teacher: leave it out or give a list")
    if noise is not None and not isinstance(noise, Noise):
        raise AskedWronglyError(f"noise is an nt.Noise, given: {type(noise).__name__}")
    source = as_teacher(teacher, combine)
    softness = 4.0 if temperature is None else temperature
    slope = _regression_slope if loss == "logit_regression" else partial(_soft_slope, temperature=softness)

    def value(logits: Tensor, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        targets = source.logits(batch)
        check_logits(targets)
        numbers: dict[str, float] = {}
        if noise is not None:
            draw = _draw(noise, batch, targets.shape[1])
            student, clean = logits, targets
            if noise.target == "teacher":
                targets = apply_noise(targets, draw, noise.kind)
            else:
                logits = apply_noise(logits.float(), draw, noise.kind)
            with torch.no_grad():
                before, after = (clean, targets) if noise.target == "teacher" else (student, logits)
                numbers = {
                    "noise/selected_%": 100 * _share(draw.selected),
                    "noise/flipped_%": 100 * _share(before.argmax(1) != after.argmax(1)),
                    "noise/xi_rms": float(draw.xi.square().mean().sqrt()),
                    "noise/gradient_ratio": gradient_ratio(student, clean, logits, targets, draw, noise, slope),
                }
        term = (
            logit_regression(logits, targets) if loss == "logit_regression" else soft_targets(logits, targets, softness)
        )
        if label_weight:
            labelled = labels_term(logits, batch)
            numbers |= {"train/teacher_term": float(term.detach()), "train/label_term": float(labelled.detach())}
            term = (1 - label_weight) * term + label_weight * labelled
        return term, numbers

    def check(split: Split, views: tuple[str, ...], classes: int, augment: str = "none") -> None:
        if label_weight:
            _need_labels(split, classes)
        if augment != "none":
            refuse_stored(source, augment)
        source.check(split, views, classes)

    record = {"objective": "distil", "loss": loss, "teacher": source.describe(), "label_weight": label_weight}
    if loss == "soft_targets":
        record["temperature"] = softness
    if noise is not None:
        record["noise"] = noise.describe()
    return Objective(value, check, record)


def labels_term(logits: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy on the labels, a scalar in nats; where images are blended, of both labels by their shares."""
    assert batch.labels is not None
    if batch.blend is None:
        return cross_entropy(logits, batch.labels)
    partner, share = (one.to(logits.device) for one in batch.blend)
    each = [
        F.cross_entropy(logits.float(), labels, reduction="none") for labels in (batch.labels, batch.labels[partner])
    ]
    return (share * each[0] + (1 - share) * each[1]).mean()


def gradient_ratio(
    student: Tensor,
    teacher: Tensor,
    noisy_student: Tensor,
    noisy_teacher: Tensor,
    draw: Draw,
    noise: Noise,
    slope: Callable[[Tensor, Tensor], Tensor],
) -> float:
    """How large the noise is in the gradient: ||noisy - clean|| / ||clean|| over one batch, a number >= 0.

    The gradients are those of the teacher's term in the student's logits, `[B, K]` each, where both are exact and
    cheap. The ratio is 0 where the clean gradient is 0. `slope(student, teacher)` is the gradient times B.
    """
    clean = slope(student.float(), teacher)
    noisy = slope(noisy_student.float(), noisy_teacher)
    if noise.target == "student" and noise.kind == "multiplicative":  # the chain rule through g' = (1 + xi) g
        noisy = torch.where(draw.selected.to(noisy.device), noisy * (1 + draw.xi.to(noisy.device)), noisy)
    size = float(clean.norm())
    return float((noisy - clean).norm()) / size if size > 0 else 0.0


def _regression_slope(student: Tensor, teacher: Tensor) -> Tensor:
    return student - teacher


def _soft_slope(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return temperature * ((student / temperature).softmax(1) - (teacher / temperature).softmax(1))


def _draw(noise: Noise, batch: Batch, classes: int) -> Draw:
    return step_draw(
        noise,
        seed=batch.seed,
        step=batch.step,
        rows=batch.rows,
        total_rows=batch.total_rows,
        size=len(batch.rows),
        classes=classes,
        total_steps=batch.total_steps or None,
    )


def _share(flags: Tensor) -> float:
    return float(flags.to(torch.float32).mean())


def _need_labels(split: Split, classes: int) -> None:
    if split.labels is None:
        raise DataError(f"the {split.role} split of {split.name!r} has no labels: distil without label_weight instead")
    if classes != split.classes:
        raise MismatchError(f"the model has {classes} classes, the data {split.name!r} have {split.classes}")


def record_of(objective: object) -> dict[str, Any]:
    """What a resumed run must have in common with the saved one: an objective's own record, else a callable's name.

    Raises AskedWronglyError for what cannot be called.
    """
    if not callable(objective):
        raise AskedWronglyError(
            f"objective is a {type(objective).__name__}: expected supervised(), distil(...), or a function of (logits, "
            "batch) that returns the loss"
        )
    record = getattr(objective, "record", None)
    if isinstance(record, dict) and record:
        return record
    return {"callable": _called(objective.loss if isinstance(objective, Objective) else objective)}


def loss_and_numbers(answer: object) -> tuple[Tensor, dict[str, float]]:
    """The loss and the dict of numbers in an objective's answer: a scalar tensor, or (loss, numbers).

    Raises AskedWronglyError for any other answer and for a loss without a gradient.
    """
    told = f"the objective returned a {type(answer).__name__}"
    if isinstance(answer, tuple):
        if len(answer) != 2:
            raise AskedWronglyError(f"{told} of {len(answer)}: expected the loss, or (loss, dict of numbers)")
        loss, numbers = answer
    else:
        loss, numbers = answer, {}
    if not isinstance(loss, Tensor):
        raise AskedWronglyError(f"{told}: expected the loss as a tensor of one number, made from the logits")
    if loss.numel() != 1:
        raise AskedWronglyError(
            f"the objective returned a tensor of shape {list(loss.shape)}: expected one number, such as its .mean()"
        )
    if not loss.requires_grad:
        raise AskedWronglyError(
            "the objective returned a loss without a gradient: make it from the logits, without .detach(), .item() or "
            "torch.no_grad()"
        )
    if not isinstance(numbers, Mapping):
        raise AskedWronglyError(f"the objective's numbers are a {type(numbers).__name__}: expected a dict of them")
    return loss, {str(name): _number(name, value) for name, value in numbers.items()}


def _number(name: object, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise AskedWronglyError(f"the objective's number {name!r} is {value!r:.60}: expected a float") from error


def _called(function: Any) -> str:
    """Module and qualified name of a function, of an object's class, or of what a partial calls."""
    if isinstance(function, partial):
        return f"functools.partial({_called(function.func)})"
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"
