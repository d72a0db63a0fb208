"""A model's logits and scores on a split, with n beside every number."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from noisyteacher import metrics
from noisyteacher.data import Split, check_split
from noisyteacher.device import PROBE_BATCH, channels_last, check_count, inference, precision_context, resolve_device
from noisyteacher.errors import DataError, MismatchError, TrainingError, UsageError
from noisyteacher.models import Classifier, Rescaled, as_classifier, rescale
from noisyteacher.progress import counted, reported
from noisyteacher.stats import Quantity, binomial_interval
from noisyteacher.teachers import COMBINE, LiveTeacher, SeveralTeachers, Teacher, as_teacher, logits_at

TOP5_FROM = 6
"""Classes from which on scores have `top5`: with five it is always 100 %."""
Progress = bool | Callable[[int, int], None] | None


@dataclass(frozen=True)
class Scores:
    """A model's scores on one split, in %, `nll` in nats; None where unknown.

    Each is a float that carries its unit and n: `scores.error.n`. `balanced_accuracy`: the mean of the classes' recall.
    `top5`: the label is among the five most probable classes, of six or more. `recall`: by class, `[K]`, nan where it
    has no rows.
    """

    split: str
    accuracy: Quantity | None = None
    error: Quantity | None = None
    nll: Quantity | None = None
    ece: Quantity | None = None
    agreement: Quantity | None = None
    balanced_accuracy: Quantity | None = None
    top5: Quantity | None = None
    recall: Tensor | None = field(default=None, repr=False, compare=False)

    def describe(self) -> dict[str, object]:
        """Every known score but `recall` with value, unit and n, for JSON."""
        quantities = {name: score.describe() for name, score in vars(self).items() if isinstance(score, Quantity)}
        return {"split": self.split, **quantities}


def predict(
    model: nn.Module,
    split: Split,
    *,
    batch_size: int = 512,
    device: str = "auto",
    precision: str = "fp32",
    progress: Progress = True,
) -> Tensor:
    """The model's logits in eval mode for every clean image of the split, `[N, K]` fp32 on the CPU, in row order.

    progress: True reports on stderr, a function is called with (done, total). Raises UsageError for a wrong batch_size,
    MismatchError unless the model returns `[B, K]`.
    """
    check_count("batch_size", batch_size)
    check_split(split)
    classifier, target = as_classifier(model), resolve_device(device)
    batches: list[Tensor] = []
    with (
        reported(progress, lambda watch: counted(watch, "evaluating", "images")) as report,
        inference(classifier, target),
        channels_last(classifier, split.first_images(PROBE_BATCH).to(target)),
        precision_context(precision, target),
    ):
        for rows in torch.split(torch.arange(len(split)), batch_size):
            batches.append(classifier(split.images_at(rows).to(target)).detach().float().cpu())
            if report is not None:
                report(int(rows[-1]) + 1, len(split))
    return torch.cat(batches)


def evaluate(
    model: nn.Module,
    split: Split,
    *,
    teacher: object = None,
    batch_size: int = 512,
    device: str = "auto",
    precision: str = "fp32",
    progress: Progress = True,
) -> Scores:
    """The model's scores on the split: all but the agreement with a teacher where there are labels.

    `teacher`: anything `distil` takes. `progress` as in `predict`. Raises DataError with neither labels nor a teacher,
    MismatchError when classes differ, TrainingError for logits that are not finite.
    """
    options = {"batch_size": batch_size, "precision": precision, "progress": progress}
    return judge(model, split, teacher=teacher, device=device, **options)[0]


def judge(
    model: object, split: Split, *, teacher: object = None, device: str = "auto", **options: Any
) -> tuple[Scores, Tensor]:
    """The same as `evaluate`, and the logits `[N, K]` that the scores were computed from.

    model: a module, or its logits as anything else that `distil` takes as a teacher.
    """
    check_split(split)
    if split.labels is None and teacher is None:
        raise DataError(f"the {split.role} split of {split.name!r} has no labels: give a teacher to agree with")
    size = options.get("batch_size", 512)
    answers = partial(answers_of, split=split, classes=split.classes, batch_size=size, device=device)
    logits = predict(model, split, device=device, **options) if isinstance(model, nn.Module) else answers(model)
    scores = score(logits, split)
    if teacher is not None:
        scores = replace(scores, agreement=Quantity(metrics.agreement(logits, answers(teacher)), "%", len(split)))
    return scores, logits


def score(logits: Tensor, split: Split) -> Scores:
    """The scores of logits `[N, K]` that belong to the split's rows. Raises MismatchError when classes differ."""
    if logits.shape[1] != split.classes:
        raise MismatchError(
            f"the model has {logits.shape[1]} class(es), the data {split.name!r} have {split.classes}: both must have "
            "the same classes in the same order"
        )
    if not torch.isfinite(logits).all():
        row = int((~torch.isfinite(logits)).any(1).nonzero()[0])
        raise TrainingError(f"the model's logits are not finite, first in row {row} of {split.role}: it has diverged")
    if split.labels is None:
        return Scores(split.role)
    names = ["accuracy", "error", "nll", "ece", "balanced_accuracy", *(["top5"] if split.classes >= TOP5_FROM else [])]
    values = {name: getattr(metrics, name)(logits, split.labels) for name in names}
    units = {"nll": "nats"}
    quantities = {name: Quantity(value, units.get(name, "%"), len(split)) for name, value in values.items()}
    return Scores(split.role, **quantities, recall=metrics.recall(logits, split.labels))


def recall_by_class(scores: Scores, split: Split) -> dict[str, dict[str, float]]:
    """By name of each class that has rows: recall, bounds of its Wilson interval (%) and n; {} without labels."""
    if scores.recall is None or split.labels is None:
        return {}
    by_class: dict[str, dict[str, float]] = {}
    counts = split.labels.bincount(minlength=split.classes).tolist()
    for name, value, n in zip(split.class_names, scores.recall.tolist(), counts, strict=True):
        if n:
            low, high = binomial_interval(round(value * n / 100), n)
            by_class[name] = {"value": value, "low": low, "high": high, "n": n}
    return by_class


def calibrate(model: nn.Module, split: Split, **options: Any) -> tuple[Classifier, float]:
    """A copy of the model whose logits are divided by a temperature, and that temperature.

    It is the one in 0.05..20 with the lowest NLL on the split: confidences change, classes do not. options: of
    `predict`. Raises DataError without labels, UsageError for a split whose role is `test`.
    Source: Guo et al. 2017, section 4.2.
    """
    if split.labels is None:
        raise DataError(f"the {split.role} split of {split.name!r} has no labels: a temperature is fitted to labels")
    if split.role == "test":
        raise UsageError(f"a test split of {split.name!r} cannot be fitted to: fit on validation, report on test")
    logits = predict(model, split, **options)
    score(logits, split)
    temperature = metrics.best_temperature(logits, split.labels)
    classifier = copy.deepcopy(as_classifier(model))
    scale = float(classifier.network.output_scale) if isinstance(classifier.network, Rescaled) else 1.0
    return rescale(classifier, scale / temperature), temperature


def answers_of(teacher: object, split: Split, classes: int, *, batch_size: int = 512, device: str = "auto") -> Tensor:
    """The same as `predict` for anything `distil` takes as a teacher. Raises MismatchError when it does not fit."""
    check_count("batch_size", batch_size)
    source = as_teacher(teacher)
    source.check(split, ("clean",), classes)
    return _logits_of(source, split, batch_size, device)


def _logits_of(teacher: Teacher, split: Split, batch_size: int, device: str) -> Tensor:
    if isinstance(teacher, LiveTeacher):
        return predict(teacher.module, split, batch_size=batch_size, device=device, progress=False)
    if isinstance(teacher, SeveralTeachers):
        # `teacher.logits` would combine per training step; here `pick` takes the first teacher for all rows.
        members = [_logits_of(member, split, batch_size, device) for member in teacher.teachers]
        return COMBINE[teacher.combine](torch.stack(members), 0)
    batches = [logits_at(teacher, split, rows) for rows in torch.split(torch.arange(len(split)), batch_size)]
    return torch.cat(batches).float().cpu()
