"""Training objectives: what a student learns from a batch.

An objective is a frozen dataclass with two methods. `inputs` looks up and draws what a step needs besides the student's
logits, as named tensors, once per step and on the CPU. `loss` is pure arithmetic on those tensors. Because the inputs
have names, those of many students are stacked, mapped over and copied into a CUDA graph's buffers by name.

To add a loss on a teacher's logits: a function in `losses`, a subclass of `Distillation` with it as its `term`, a name
for it in `LOSSES`, in `config.schema.Loss` and in `LOSS_OPTIONS`. A `term` is a mean over the rows of the batch,
because processes share a batch by its rows; `torch.func.vmap` and `grad` go through it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from functools import lru_cache, partial
from typing import Any, ClassVar, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noisyteacher.config.schema import SCALES, wrong_loss_options, wrong_pairs
from noisyteacher.data import Batch, Split
from noisyteacher.errors import ConfigError, DataError, MismatchError, TrainingError, UsageError
from noisyteacher.io.files import Json
from noisyteacher.losses import (
    check_temperature,
    dist,
    dkd,
    logit_regression,
    soft_targets,
    standardized,
    ttm,
)
from noisyteacher.models import as_classifier
from noisyteacher.noise import TABLES, Noise, UnitNoise, perturb, unit_noise_at
from noisyteacher.rng import generator, seeded
from noisyteacher.teachers import Teacher, as_teacher, check_live, live_networks, logit_rms
from noisyteacher.text import unknown_name

Inputs = dict[str, Tensor]
"""What a loss needs besides the student's logits, by name."""
Metrics = dict[str, Tensor]
"""Numbers for the metrics of a step, scalars by name."""
Cache = dict[Hashable, Any]
"""Look-ups and draws of one step that students share."""


class Objective(ABC):
    """A loss of the student's logits `[B, K]` and a batch. Calling it returns the loss and its metrics as floats."""

    @abstractmethod
    def inputs(self, batch: Batch, cache: Cache) -> Inputs:
        """The tensors that `loss` needs for this batch; what other students of this step can use goes into `cache`."""

    @abstractmethod
    def loss(self, logits: Tensor, inputs: Inputs) -> tuple[Tensor, Metrics]:
        """The loss of logits `[B, K]`, a scalar, and numbers for the metrics. No look-ups, no draws."""

    @abstractmethod
    def describe(self) -> Json:
        """A JSON-able record: a resumed run must have the same."""

    @property
    def arithmetic(self) -> Hashable:
        """Students whose objectives have equal values here share one vmapped `loss` in a CUDA graph; by default none.

        `loss` may then differ between them in its inputs only.
        """
        return id(self)

    @property
    def live_networks(self) -> tuple[nn.Module, ...]:
        """Teacher networks that run at every step."""
        return ()

    @property
    def input_noise(self) -> Noise | None:
        """The noise on the preprocessed images that the student sees."""
        return None

    def check(self, split: Split, views: tuple[str, ...], classes: int, augment: str = "none") -> None:  # noqa: B027
        """Raises before the first step when this objective cannot be trained on the split."""

    def __call__(self, logits: Tensor, batch: Batch, cache: Cache | None = None) -> tuple[Tensor, dict[str, float]]:
        """The loss of one student, and its metrics as floats. cache: what students of the same step share."""
        on_cpu = self.inputs(batch, {} if cache is None else cache)
        inputs = {name: value.to(logits.device) for name, value in on_cpu.items()}
        loss, metrics = self.loss(logits, inputs)
        return loss, read_metrics(metrics)


@dataclass(frozen=True)
class Supervised(Objective):
    """Cross-entropy on the labels.

    label_noise: a fixed share of the rows has another class, drawn once per seed. label_smoothing: the share of
    each target that is spread evenly over all classes (Szegedy et al. 2016).
    """

    label_noise: float = 0.0
    label_smoothing: float = 0.0

    def inputs(self, batch: Batch, cache: Cache) -> Inputs:
        inputs = label_inputs(batch)
        if self.label_noise:
            inputs["flip"] = _label_flips(self.label_noise, batch.seed, batch.total_rows)[batch.rows.cpu()]
        return inputs

    def loss(self, logits: Tensor, inputs: Inputs) -> tuple[Tensor, Metrics]:
        if "flip" in inputs:
            classes, labels = logits.shape[-1], inputs["labels"]
            inputs = inputs | {"labels": (labels + (inputs["flip"] * (classes - 1)).ceil().long()) % classes}
        return label_term(logits, inputs, self.label_smoothing), {}

    def describe(self) -> Json:
        return {"objective": "supervised", **{name: share for name, share in vars(self).items() if share}}

    @property
    def arithmetic(self) -> Hashable:
        return "supervised", self.label_smoothing

    def check(self, split: Split, views: tuple[str, ...], classes: int, augment: str = "none") -> None:
        _need_labels(split, classes)
        if self.label_noise and augment == "mixup":
            raise ConfigError("label_noise with augment='mixup': the labels that are mixed in would stay clean")


@dataclass(frozen=True)
class Distillation(Objective):
    """(1 - label_weight) * loss_weight * term(student, teacher) + label_weight * cross-entropy, with noise on either
    side's logits.

    scale: `rms` divides the logits of both by the root mean square of the teacher's, `unit`, before noise and term see
    them; `prepared` measures it. `zscore` standardizes each row of both behind the noise. loss_weight: a number, or
    `auto`, which `weighed` measures. Fields that a subclass adds are constants of its term: JSON-able and hashable.
    Source: Sau & Balasubramanian 2016, Eqs. 1-3 and Algorithm 1; `zscore`: Sun et al., CVPR 2024.
    """

    needs_target: ClassVar[bool] = False
    """Whether `term` also takes a class for each row, int64 `[B]`: the label; without labels, and of mixed images, the
    class that the teacher prefers without noise."""

    teacher: Teacher
    noise: Noise | None = None
    label_weight: float = 0.0
    scale: str = "none"
    unit: float = 1.0
    loss_weight: float | str = 1.0

    @abstractmethod
    def term(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        """The teacher's term of the loss for logits `[B, K]` each, a scalar: a mean over the batch."""

    def goal(self, teacher: Tensor) -> Tensor:
        """The student's logits at which the term for these logits of the teacher is 0."""
        return teacher

    def term_gradient(self, student: Tensor, teacher: Tensor, *target: Tensor) -> Tensor:
        """The gradient of `scaled_term` in the student's logits times B, `[B, K]`."""
        gradient: Tensor = torch.func.grad(self.scaled_term)(student, teacher, *target)
        return gradient * len(student)

    def scaled_term(self, student: Tensor, teacher: Tensor, *target: Tensor) -> Tensor:
        """`term` of the logits, with the scale `zscore` of each row standardized."""
        if self.scale == "zscore":
            student, teacher = standardized(student), standardized(teacher)
        return self.term(student, teacher, *target)

    def inputs(self, batch: Batch, cache: Cache) -> Inputs:
        """`teacher` `[B, K]`; with labels `label_inputs`; `target` `[B]` and `loss_weight` `[]` where they act; with
        noise `sigma` `[2]`, `alpha` `[]` and the unit noise. Raises UsageError for a weight that is not measured.
        """
        key: Hashable = (self.teacher.key, self.unit, batch.seed)
        if key not in cache:
            logits = self.teacher.logits(batch).float()
            cache[key] = logits if self.unit == 1 else logits / self.unit
        teacher: Tensor = cache[key]
        inputs = {"teacher": teacher}
        if self.label_weight:
            inputs |= label_inputs(batch)
        if self.needs_target:
            inputs["target"] = teacher.argmax(1) if batch.labels is None or batch.blend else batch.labels
        if isinstance(self.loss_weight, str):
            raise UsageError("loss_weight='auto' is measured by fit; in a loop of your own call weighed(model, split)")
        if self.loss_weight != 1:
            inputs["loss_weight"] = _constant(self.loss_weight)
        noise = self.logit_noise
        if noise is not None:
            key = (noise.draw, noise.distribution, noise.frozen, noise.draws, batch.seed, teacher.shape[1])
            if key not in cache:
                cache[key] = _unit_noise(noise, batch, teacher.shape[1])
            inputs |= cache[key]._asdict()
            inputs["sigma"] = _constant(noise.sigma_at(batch.step, batch.total_steps or None))
            inputs["alpha"] = _constant(noise.alpha)
        return inputs

    def loss(self, logits: Tensor, inputs: Inputs) -> tuple[Tensor, Metrics]:
        """The weighted sum; of M draws of the noise the mean. Metrics: of the noise its realised share, flipped
        classes, its size, ||noisy - clean|| / ||clean|| of the gradients of the teacher's term in the logits, and the
        term without noise and weight; with labels both terms.
        """
        clean_student = logits if self.unit == 1 else logits / self.unit
        student, teacher = clean_student, inputs["teacher"]
        target = (inputs["target"],) if self.needs_target else ()
        metrics: Metrics = {}
        if self.logit_noise is not None:
            unit_noise = UnitNoise(inputs["chance"], inputs["position"], inputs["unit"])
            sigma, alpha, kind = inputs["sigma"], inputs["alpha"], self.logit_noise.kind
            on_teacher = self.logit_noise.target == "teacher"
            before = teacher if on_teacher else student.float()
            temperature = getattr(self, "temperature", 1.0)
            after = perturb(before, sigma=sigma, alpha=alpha, kind=kind, temperature=temperature, unit_noise=unit_noise)
            student, teacher = (student, after) if on_teacher else (after, teacher)
            student, teacher = (part.expand_as(after) for part in (student, teacher))
            with torch.no_grad():
                selected, xi = unit_noise.selected(alpha), unit_noise.xi(sigma)
                clean_gradient = self.term_gradient(clean_student.float(), inputs["teacher"], *target)
                gradient = _of_draws(self.term_gradient, student.float(), teacher, *target)
                if not on_teacher and kind == "multiplicative":  # the chain rule through g' = (1 + xi) g
                    gradient = torch.where(selected, gradient * (1 + xi), gradient)
                size = torch.linalg.vector_norm(clean_gradient)
                change = torch.linalg.vector_norm(gradient.view(-1, *before.shape).mean(0) - clean_gradient)
                metrics = {
                    "noise/selected_%": 100 * (selected & (sigma.amax() > 0)).float().mean(),
                    "noise/flipped_%": 100 * (before.argmax(-1) != after.argmax(-1)).float().mean(),
                    "noise/xi_rms": xi.square().mean().sqrt(),
                    "noise/gradient_ratio": torch.where(size > 0, change / size, 0.0),
                    "train/clean_loss": self.scaled_term(clean_student.float(), inputs["teacher"], *target),
                }
        loss = _of_draws(self.scaled_term, student, teacher, *target)
        if loss.dim():
            loss = loss.mean()
        if "loss_weight" in inputs:
            loss = inputs["loss_weight"] * loss
        if self.label_weight:
            labels = label_term(logits, inputs)
            metrics |= {"train/teacher_term": loss.detach(), "train/label_term": labels.detach()}
            loss = (1 - self.label_weight) * loss + self.label_weight * labels
        return loss, metrics

    @property
    def constants(self) -> Json:
        """The fields that the subclass adds, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)[len(fields(Distillation)) :]}

    def describe(self) -> Json:
        """Loss, teacher, weights, scale, noise and constants."""
        name = next((name for name, kind in LOSSES.items() if type(self) is kind), type(self).__name__)
        optional: Json = {} if self.noise is None else {"noise": self.noise.describe()}
        if self.loss_weight != 1:  # runs that are older than this field can be resumed
            optional["loss_weight"] = self.loss_weight
        record = {"objective": "distil", "loss": name, "teacher": self.teacher.describe(), "scale": self.scale}
        return {**record, "label_weight": self.label_weight, **optional, **self.constants}

    @property
    def arithmetic(self) -> Hashable:
        """The loss with its constants, the weight of the labels, and how the noise enters."""
        noise = self.logit_noise and (self.logit_noise.draw, self.logit_noise.kind, self.logit_noise.target)
        return type(self), self.label_weight, self.scale, self.unit, noise, *self.constants.values()

    @property
    def input_noise(self) -> Noise | None:
        return self.noise if self.noise is not None and self.noise.target == "input" else None

    @property
    def logit_noise(self) -> Noise | None:
        """The noise on logits."""
        return self.noise if self.input_noise is None else None

    @property
    def live_networks(self) -> tuple[nn.Module, ...]:
        return live_networks(self.teacher)

    def prepared(self, split: Split, views: Sequence[str], device: str | torch.device = "cpu") -> Distillation:
        """The objective with the unit of its scale, measured on the split under the first of the views; live networks
        run on the device.
        """
        return self if self.scale != "rms" else replace(self, unit=logit_rms(self.teacher, split, views[0], device))

    def weighed(self, model: nn.Module, split: Split, view: str = "clean") -> Distillation:
        """The objective with a number for the loss weight `auto`: the one by which the initial gradient of the
        teacher's term has the norm of that of REFERENCE on raw logits. Rounded to four digits.

        Both gradients are those of the clean terms in the outputs of the model's network, divided by `unit`, for
        WEIGHED_ROWS random rows; the model, in training mode, and its random state stay as they are. Raises
        TrainingError where the term has no gradient.
        """
        if self.loss_weight != "auto":
            return self
        rows = torch.randperm(len(split), generator=generator(0, "loss weight"))[:WEIGHED_ROWS]
        images, labels = split.images_at(rows, view), None if split.labels is None else split.labels_at(rows)
        batch = Batch(images, labels, rows, (view,), torch.zeros_like(rows), 0, 0, len(split))
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        with seeded(0, "loss weight", device=device), torch.no_grad():
            copy = as_classifier(deepcopy(model)).train()
            logits = copy(images.to(device)).float().to("cpu") / self.unit

        def norm(objective: Distillation) -> float:
            inputs = {name: value.to("cpu") for name, value in objective.inputs(batch, {}).items()}
            target = (inputs["target"],) if objective.needs_target else ()
            return float(torch.linalg.vector_norm(objective.term_gradient(logits, inputs["teacher"], *target)))

        size = norm(replace(self, noise=None, loss_weight=1.0))
        weight = norm(REFERENCE(self.teacher)) / size if size > 0 else math.inf
        if not 0 < weight < math.inf:
            raise TrainingError(
                f"loss_weight='auto': the initial gradient of the teacher's term has the norm {size:g}, and no weight "
                "makes it that of soft targets: give a number"
            )
        return replace(self, loss_weight=float(f"{weight:.4g}"))

    def check(self, split: Split, views: tuple[str, ...], classes: int, augment: str = "none") -> None:
        """Raises DataError for missing labels, MismatchError when the teacher cannot serve the split or its views."""
        if self.label_weight or (self.needs_target and split.labels is not None):
            _need_labels(split, classes)
        if augment != "none":
            check_live(self.teacher, augment)
        self.teacher.check(split, views, classes)


@dataclass(frozen=True)
class LogitRegression(Distillation):
    """The paper's objective: 1/(2B) sum ||g - z'||^2 (Eqs. 1 and 3)."""

    def term(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        return logit_regression(student, teacher)

    def term_gradient(self, student: Tensor, teacher: Tensor, *target: Tensor) -> Tensor:
        return super().term_gradient(student, teacher) if self.scale == "zscore" else student - teacher


@dataclass(frozen=True)
class SoftTargets(Distillation):
    """T^2 KL(softmax(z'/T) || softmax(g/T)) (Hinton, Vinyals & Dean 2015)."""

    temperature: float = 4.0

    def term(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        return soft_targets(student, teacher, self.temperature)

    def term_gradient(self, student: Tensor, teacher: Tensor, *target: Tensor) -> Tensor:
        if self.scale == "zscore":
            return super().term_gradient(student, teacher)
        t = self.temperature
        return t * ((student / t).softmax(1) - (teacher / t).softmax(1))


@dataclass(frozen=True)
class Dist(Distillation):
    """Correlations over classes and over the batch (`losses.dist`); processes correlate over rows of their own."""

    temperature: float = 1.0
    beta: float = 1.0
    gamma: float = 1.0

    def term(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        return dist(student, teacher, **self.constants)


@dataclass(frozen=True)
class DKD(Distillation):
    """The target's share of the divergence and that of the other classes, weighted (`losses.dkd`)."""

    needs_target: ClassVar[bool] = True
    temperature: float = 4.0
    alpha: float = 1.0
    beta: float = 8.0

    def term(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        return dkd(student, teacher, teacher.argmax(1) if target is None else target, **self.constants)


@dataclass(frozen=True)
class TTM(Distillation):
    """Soft targets whose teacher alone has a temperature (`losses.ttm`)."""

    temperature: float = 4.0
    weighted: bool = False

    def goal(self, teacher: Tensor) -> Tensor:
        return teacher / self.temperature

    def term(self, student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        return ttm(student, teacher, **self.constants)


LOSSES: dict[str, type[Distillation]] = {
    "logit_regression": LogitRegression,
    "soft_targets": SoftTargets,
    "dist": Dist,
    "dkd": DKD,
    "ttm": TTM,
}
"""Name of a loss in `distil` and in settings -> its objective."""
REFERENCE, WEIGHED_ROWS = SoftTargets, 512
"""The loss with whose initial gradient `loss_weight="auto"` compares, and on how many training rows."""


def supervised(*, label_noise: float = 0.0, label_smoothing: float = 0.0) -> Supervised:
    """Cross-entropy on the labels: how a teacher is trained, and the student's first control.

    label_noise: the share of the training rows that get another class, the same in every epoch, drawn by the run's
    seed. label_smoothing: the share of each target that is spread over all classes. Raises ConfigError for shares
    outside 0..1. Training raises DataError for a split without labels, MismatchError when the numbers of classes
    differ. Source: messy collaboration, Arani, Sarfraz & Zonooz 2021; Szegedy et al. 2016.
    """
    for name, share in (("label_noise", label_noise), ("label_smoothing", label_smoothing)):
        if not _is_number(share) or not 0 <= share <= 1:
            raise ConfigError(f"{name}={share!r}: expected a share, 0 to 1")
    return Supervised(label_noise, label_smoothing)


def distil(
    teacher: object,
    *,
    noise: Noise | None = None,
    loss: str = "logit_regression",
    temperature: float | None = None,
    label_weight: float = 0.0,
    combine: str = "mean",
    scale: str = "none",
    loss_weight: float | str = 1.0,
    loss_options: Mapping[str, float] | None = None,
) -> Distillation:
    """Learning from a teacher's logits, perturbed by `noise` if given.

    `teacher`: a LogitStore or its folder, a tensor of logits `[N, K]`, a live nn.Module, or a list of these, merged by
    `combine` (`mean`, `geometric`, `pick`, `pick-row`). `loss`: `logit_regression` (the paper), `soft_targets` (Hinton;
    `temperature`, default 4), `dist`, `dkd` or `ttm`, whose further numbers are `loss_options` (docs/method.md).
    `label_weight` w mixes the labels in: (1 - w) * teacher + w * cross-entropy.
    `scale`: `rms` lets noise and loss see the logits of both divided by the root mean square of the teacher's; `fit`
    then multiplies the outputs of the student's network by it, so that its logits have the teacher's units. `zscore`
    lets the loss see each row of both standardized. `loss_weight` multiplies the teacher's term; `auto`: `fit` measures
    the number that makes its initial gradient as large as that of soft targets at T = 4.
    Raises ConfigError for settings without effect, UnknownNameError, UsageError.
    Source: Sau & Balasubramanian 2016, Eqs. 1-3 and Algorithm 1; of the losses: `noisyteacher.losses`.
    """
    if loss not in LOSSES:
        raise unknown_name("loss", str(loss), LOSSES)
    if "temperature" in (loss_options or {}):
        raise ConfigError("loss_options: temperature is an option of its own: give temperature=")
    options = dict(loss_options or {}) | ({} if temperature is None else {"temperature": temperature})
    for name, problem in wrong_loss_options(loss, options):
        raise ConfigError(f"{name}={options[name]!r}: {problem}")
    if temperature is not None:
        check_temperature(temperature)
    if loss_weight != "auto" and not (_is_number(loss_weight) and 0 < loss_weight < math.inf):
        raise ConfigError(f"loss_weight={loss_weight!r}: expected a finite number above 0, or 'auto'")
    if not _is_number(label_weight) or not 0 <= label_weight < 1:
        raise ConfigError(f"label_weight={label_weight!r}: expected 0 <= w < 1 (for labels alone use supervised())")
    if scale not in SCALES:
        raise unknown_name("scale", str(scale), SCALES)
    if combine != "mean" and not isinstance(teacher, (list, tuple)):
        raise ConfigError(f"combine={combine!r} has no effect with one teacher: leave it out or give a list")
    if noise is not None and not isinstance(noise, Noise):
        raise UsageError(f"noise is an nt.Noise, given: {type(noise).__name__}")
    for name, problem in wrong_pairs(loss, scale, noise):
        raise ConfigError(f"{name}: {problem}")
    return LOSSES[loss](as_teacher(teacher, combine), noise, label_weight, scale, loss_weight=loss_weight, **options)


def _is_number(value: object) -> TypeGuard[float]:
    """Whether the value is a number; True and False are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _of_draws(function: Callable[..., Tensor], student: Tensor, teacher: Tensor, *target: Tensor) -> Tensor:
    """The function of logits `[B, K]`; of M draws of the noise, `[M, B, K]`, one value for each of them."""
    if student.dim() == 2:
        return function(student, teacher, *target)
    values: Tensor = torch.func.vmap(lambda *logits: function(*logits, *target))(student, teacher)
    return values


@lru_cache(maxsize=64)
def _constant(value: float | tuple[float, float]) -> Tensor:
    """The value as a tensor, the same one at every step; never changed in place."""
    return torch.tensor(value, dtype=torch.float32)


def _unit_noise(noise: Noise, batch: Batch, classes: int) -> UnitNoise:
    """That of the batch's rows; a process that has a share of a batch takes its rows of the whole batch's noise."""
    draw = partial(unit_noise_at, noise, seed=batch.seed, step=batch.step, classes=classes)
    if noise.frozen:
        return draw(batch=len(batch.rows), rows=batch.rows, total_rows=batch.total_rows)
    return draw(batch=batch.whole_size).rows(batch.share)


def input_noise_of(objective: object, batch: Batch) -> Callable[[Tensor], Tensor] | None:
    """What the noise of an objective does to the preprocessed images of a batch, or None without it.

    Source: soft randomisation, Arani, Sarfraz & Zonooz 2021: the student sees x + xi, its targets are those of x.
    """
    noise = getattr(objective, "input_noise", None)
    if noise is None:
        return None

    def perturbed(images: Tensor) -> Tensor:
        if not images.is_floating_point():
            raise UsageError("noise on the input is added to preprocessed images, and this model leaves them as pixels")
        flat, sigma = images.flatten(1), noise.sigma_at(batch.step, batch.total_steps or None)
        unit_noise = _unit_noise(noise, batch, flat.shape[1])
        return perturb(flat, sigma=sigma, alpha=noise.alpha, kind=noise.kind, unit_noise=unit_noise).view(images.shape)

    return perturbed


def label_inputs(batch: Batch) -> Inputs:
    """The labels `[B]` of a batch; with mixup also `partner_labels` and `share` `[B]`."""
    assert batch.labels is not None
    if batch.blend is None:
        return {"labels": batch.labels}
    partner_labels, share = batch.blend
    return {"labels": batch.labels, "partner_labels": partner_labels, "share": share}


@lru_cache(maxsize=TABLES)
def _label_flips(share: float, seed: int, rows: int) -> Tensor:
    """For each row 0 if its label stays, else a number in 0..1 that picks one of the other classes, `[N]`."""
    draws, flips = generator(seed, "label noise"), torch.zeros(rows, dtype=torch.float32)
    chosen = torch.randperm(rows, generator=draws)[: round(share * rows)]
    flips[chosen] = 1 - torch.rand(len(chosen), generator=draws, dtype=torch.float32)
    return flips


def label_term(logits: Tensor, inputs: Inputs, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy on the labels, a scalar in nats; with mixup on both labels, weighted by their shares."""
    term = partial(F.cross_entropy, logits.float(), label_smoothing=smoothing)
    if "share" not in inputs:
        return term(inputs["labels"])
    share = inputs["share"]
    first, second = (term(inputs[name], reduction="none") for name in ("labels", "partner_labels"))
    return (share * first + (1 - share) * second).mean()


def _need_labels(split: Split, classes: int) -> None:
    if split.labels is None:
        raise DataError(f"the {split.role} split of {split.name!r} has no labels: distil without label_weight instead")
    if classes != split.classes:
        raise MismatchError(f"the model has {classes} classes, the data {split.name!r} have {split.classes}")


def read_metrics(metrics: Metrics) -> dict[str, float]:
    """Metrics as floats, in one transfer from the device."""
    if not metrics:
        return {}
    values = torch.stack([value.float() for value in metrics.values()]).tolist()
    return dict(zip(metrics, values, strict=True))


def describe_objective(objective: object) -> Json:
    """What a resumed run must have in common with the saved one: an objective's record, or a callable's name.

    Raises UsageError for what cannot be called.
    """
    if isinstance(objective, Objective):
        return objective.describe()
    if not callable(objective):
        raise UsageError(
            f"objective is a {type(objective).__name__}: expected supervised(), distil(...), or a function of (logits, "
            "batch) that returns the loss"
        )
    return {"callable": _qualified_name(objective)}


def _qualified_name(function: Callable[..., Any]) -> str:
    """Module and qualified name of a function, of an object's class, or of what a partial calls."""
    if isinstance(function, partial):
        return f"functools.partial({_qualified_name(function.func)})"
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def loss_and_metrics(result: object) -> tuple[Tensor, dict[str, float]]:
    """The loss and the dict of numbers that a callable objective returned: a scalar tensor, or (loss, numbers).

    Raises UsageError for any other result and for a loss without a gradient.
    """
    returned = f"the objective returned a {type(result).__name__}"
    if isinstance(result, tuple) and len(result) != 2:
        raise UsageError(f"{returned} of {len(result)}: expected the loss, or (loss, dict of numbers)")
    loss, metrics = result if isinstance(result, tuple) else (result, {})
    if not isinstance(loss, Tensor):
        raise UsageError(f"{returned}: expected the loss as a tensor of one number, computed from the logits")
    if loss.numel() != 1:
        raise UsageError(f"the objective returned a tensor of shape {list(loss.shape)}: expected one number, a mean")
    if not loss.requires_grad:
        raise UsageError("the objective returned a loss without a gradient: compute it from the logits, not detached")
    if not isinstance(metrics, Mapping):
        raise UsageError(f"the objective's numbers are a {type(metrics).__name__}: expected a dict of floats")
    numbers = {}
    for name, value in metrics.items():
        try:
            numbers[str(name)] = float(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UsageError(f"the objective's number {name!r} is {value!r:.60}: expected a float") from error
    return loss, numbers
