"""What a student is taught by: closures over a batch, for `fit` and for nobody else's concern."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noisyteacher.data import Batch, Split
from noisyteacher.errors import ConfigError, DataError, MismatchError, UsageError
from noisyteacher.losses import cross_entropy, logit_regression, soft_targets
from noisyteacher.noise import Draw, Noise, apply_noise, check_logits, is_number, scaled, step_units, strengths
from noisyteacher.teachers import answers_in_half, as_teacher, live_networks, refuse_stored
from noisyteacher.text import unknown_name

LOSSES = ("logit_regression", "soft_targets")


@dataclass(frozen=True)
class Parts:
    """An objective taken apart: what it needs of a batch, and arithmetic that `torch.vmap` can map over students."""

    kind: Hashable
    """Objectives of one kind have the same arithmetic, on inputs of the same shapes."""
    common: Callable[[Batch, dict[Any, Any]], tuple[Tensor, ...]]
    """The tensors that `terms` takes of a batch; what students of one step share of them is kept in the dict."""
    own: Callable[[Batch], tuple[float, ...]]
    """The numbers that `terms` takes behind them, this objective's at this step."""
    terms: Callable[..., tuple[Tensor, Tensor]]
    """The loss `[]` and the values `[n]` worth telling, of logits `[B, K]`, the tensors and the numbers."""
    told: Callable[[list[float]], dict[str, float]]
    """The values by name, as they go into the metrics."""
    half: bool = False
    """Whether tensors of a batch come in half precision: the arithmetic on such looks at its values."""
    asks: tuple[nn.Module, ...] = ()
    """Networks that are asked at every step."""

    def loss(self, logits: Tensor, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """The loss of one student and its numbers."""
        tensors = (one.to(logits.device) for one in self.common(batch, {}))
        loss, values = self.terms(logits, *tensors, *self.own(batch))
        return loss, self.told(values.tolist())


@dataclass(frozen=True)
class Objective:
    """A loss of the student's logits `[B, K]` and the batch, with a check before the first step and a record of itself.

    `loss` returns the scalar to minimise and a dict of numbers worth a line in the metrics. `parts` is the same for
    many students at once, where there is such a thing.
    """

    loss: Callable[[Tensor, Batch], tuple[Tensor, dict[str, float]]]
    check: Callable[..., None]
    """Asked with the split, the views and the number of classes, and `augment=` where images are augmented."""
    record: dict[str, Any] = field(default_factory=dict)
    parts: Parts | None = None

    def __call__(self, logits: Tensor, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """The loss and its numbers for one batch."""
        return self.loss(logits, batch)


def supervised() -> Objective:
    """Cross-entropy on the labels: how a teacher is trained, and the student's first control.

    Its check raises DataError for a split without labels, MismatchError when classes differ.
    """

    def check(split: Split, views: tuple[str, ...], classes: int, augment: str = "none") -> None:
        _need_labels(split, classes)

    def terms(logits: Tensor, *labelled: Tensor) -> tuple[Tensor, Tensor]:
        return labels_term(logits, *labelled), logits.new_empty(0)

    parts = Parts("supervised", lambda batch, shared: labels_of(batch), lambda batch: (), terms, lambda values: {})
    return Objective(parts.loss, check, {"objective": "supervised"}, parts)


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
    Raises ConfigError for settings without effect, UnknownNameError, UsageError.
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
        raise UsageError(f"noise is an nt.Noise, given: {type(noise).__name__}")
    source = as_teacher(teacher, combine)
    record = {"objective": "distil", "loss": loss, "teacher": source.describe(), "label_weight": label_weight}
    whose = repr(record["teacher"])
    softness = 4.0 if temperature is None else temperature
    slope = _regression_slope if loss == "logit_regression" else partial(_soft_slope, temperature=softness)

    def common(batch: Batch, shared: dict[Any, Any]) -> tuple[Tensor, ...]:
        key = (whose, batch.seed)
        if key not in shared:
            found = source.logits(batch)
            check_logits(found)
            shared[key] = found
        found, rows = shared[key], batch.rows
        labelled = labels_of(batch) if label_weight else ()
        if noise is None:
            return found, *labelled
        drawn = (noise.draw, noise.distribution, noise.frozen, batch.seed, found.shape[1])
        if drawn not in shared:
            shared[drawn] = step_units(noise, batch.seed, batch.step, len(rows), found.shape[1], rows, batch.total_rows)
        return found, *labelled, *shared[drawn]

    def own(batch: Batch) -> tuple[float, ...]:
        return () if noise is None else strengths(noise, batch.step, batch.total_steps or None)

    def terms(logits: Tensor, targets: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        values: tuple[Tensor, ...] = ()
        student, clean = logits, targets
        labelled, units, strength = (rest, (), ()) if noise is None else (rest[:-7], rest[-7:-4], rest[-4:])
        if noise is not None:
            draw = scaled(units, *strength)
            if noise.target == "teacher":
                targets = apply_noise(targets, draw, noise.kind)
            else:
                logits = apply_noise(logits.float(), draw, noise.kind)
            with torch.no_grad():
                before, after = (clean, targets) if noise.target == "teacher" else (student, logits)
                values = (
                    _share(draw.selected),
                    _share(before.argmax(1) != after.argmax(1)),
                    draw.xi.square().mean().sqrt(),
                    *gradient_change(student, clean, logits, targets, draw, noise, slope),
                )
        term = (
            logit_regression(logits, targets) if loss == "logit_regression" else soft_targets(logits, targets, softness)
        )
        if label_weight:
            both = term, labels_term(student, *labelled)
            term = (1 - label_weight) * both[0] + label_weight * both[1]
            values += tuple(one.detach() for one in both)
        return term, torch.stack([one.float() for one in values]) if values else logits.new_empty(0)

    def told(values: list[float]) -> dict[str, float]:
        found: dict[str, float] = {}
        if noise is not None:
            selected, flipped, rms, change, size = values[:5]
            found |= {
                "noise/selected_%": 100 * selected,
                "noise/flipped_%": 100 * flipped,
                "noise/xi_rms": rms,
                "noise/gradient_ratio": change / size if size > 0 else 0.0,
            }
        if label_weight:
            found |= dict(zip(("train/teacher_term", "train/label_term"), values[-2:], strict=True))
        return found

    kind = ("distil", loss, softness, label_weight, noise and (noise.draw, noise.kind, noise.target))
    whole = Parts(kind, common, own, terms, told, answers_in_half(source), live_networks(source))

    def check(split: Split, views: tuple[str, ...], classes: int, augment: str = "none") -> None:
        if label_weight:
            _need_labels(split, classes)
        if augment != "none":
            refuse_stored(source, augment)
        source.check(split, views, classes)

    if loss == "soft_targets":
        record["temperature"] = softness
    if noise is not None:
        record["noise"] = noise.describe()
    return Objective(whole.loss, check, record, whole)


def labels_of(batch: Batch) -> tuple[Tensor, ...]:
    """What `labels_term` takes of a batch: its labels `[B]`, and where images are blended the partners' and shares."""
    assert batch.labels is not None
    if batch.blend is None:
        return (batch.labels,)
    partner, share = batch.blend
    return batch.labels, batch.labels[partner], share


def labels_term(logits: Tensor, labels: Tensor, *blend: Tensor) -> Tensor:
    """Cross-entropy on the labels, a scalar in nats; where images are blended, of both labels by their shares."""
    if not blend:
        return cross_entropy(logits, labels)
    partners, share = blend
    each = [F.cross_entropy(logits.float(), one, reduction="none") for one in (labels, partners)]
    return (share * each[0] + (1 - share) * each[1]).mean()


def gradient_change(
    student: Tensor,
    teacher: Tensor,
    noisy_student: Tensor,
    noisy_teacher: Tensor,
    draw: Draw,
    noise: Noise,
    slope: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """How large the noise is in the gradient over one batch: ||noisy - clean|| and ||clean||, scalars.

    The gradients are those of the teacher's term in the student's logits, `[B, K]` each, where both are exact and
    cheap. `slope(student, teacher)` is the gradient times B.
    """
    clean = slope(student.float(), teacher)
    noisy = slope(noisy_student.float(), noisy_teacher)
    if noise.target == "student" and noise.kind == "multiplicative":  # the chain rule through g' = (1 + xi) g
        noisy = torch.where(draw.selected, noisy * (1 + draw.xi), noisy)
    return torch.linalg.vector_norm(noisy - clean), torch.linalg.vector_norm(clean)


def _regression_slope(student: Tensor, teacher: Tensor) -> Tensor:
    return student - teacher


def _soft_slope(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return temperature * ((student / temperature).softmax(1) - (teacher / temperature).softmax(1))


def _share(flags: Tensor) -> Tensor:
    return flags.to(torch.float32).mean()


def _need_labels(split: Split, classes: int) -> None:
    if split.labels is None:
        raise DataError(f"the {split.role} split of {split.name!r} has no labels: distil without label_weight instead")
    if classes != split.classes:
        raise MismatchError(f"the model has {classes} classes, the data {split.name!r} have {split.classes}")


def record_of(objective: object) -> dict[str, Any]:
    """What a resumed run must have in common with the saved one: an objective's own record, else a callable's name.

    Raises UsageError for what cannot be called.
    """
    if not callable(objective):
        raise UsageError(
            f"objective is a {type(objective).__name__}: expected supervised(), distil(...), or a function of (logits, "
            "batch) that returns the loss"
        )
    record = getattr(objective, "record", None)
    if isinstance(record, dict) and record:
        return record
    return {"callable": _called(objective.loss if isinstance(objective, Objective) else objective)}


def loss_and_numbers(answer: object) -> tuple[Tensor, dict[str, float]]:
    """The loss and the dict of numbers in an objective's answer: a scalar tensor, or (loss, numbers).

    Raises UsageError for any other answer and for a loss without a gradient.
    """
    told = f"the objective returned a {type(answer).__name__}"
    if isinstance(answer, tuple):
        if len(answer) != 2:
            raise UsageError(f"{told} of {len(answer)}: expected the loss, or (loss, dict of numbers)")
        loss, numbers = answer
    else:
        loss, numbers = answer, {}
    if not isinstance(loss, Tensor):
        raise UsageError(f"{told}: expected the loss as a tensor of one number, made from the logits")
    if loss.numel() != 1:
        raise UsageError(
            f"the objective returned a tensor of shape {list(loss.shape)}: expected one number, such as its .mean()"
        )
    if not loss.requires_grad:
        raise UsageError(
            "the objective returned a loss without a gradient: make it from the logits, without .detach(), .item() or "
            "torch.no_grad()"
        )
    if not isinstance(numbers, Mapping):
        raise UsageError(f"the objective's numbers are a {type(numbers).__name__}: expected a dict of them")
    return loss, {str(name): _number(name, value) for name, value in numbers.items()}


def _number(name: object, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"the objective's number {name!r} is {value!r:.60}: expected a float") from error


def _called(function: Any) -> str:
    """Module and qualified name of a function, of an object's class, or of what a partial calls."""
    if isinstance(function, partial):
        return f"functools.partial({_called(function.func)})"
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"
