"""What a model does on a split, with n beside every number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from noisyteacher import metrics
from noisyteacher.data import Batch, Split
from noisyteacher.device import precision_context, resolve_device
from noisyteacher.errors import DataError, MismatchError, TrainingError
from noisyteacher.inference import PROBE_BATCH, channels_last, inference
from noisyteacher.models import as_classifier
from noisyteacher.progress import counted, reported
from noisyteacher.stats import Quantity
from noisyteacher.teachers import COMBINE, LiveTeacher, SeveralTeachers, Teacher, as_teacher


@dataclass(frozen=True)
class Scores:
    """A model's scores on one split. `accuracy`, `error`, `ece`, `agreement` in %, `nll` in nats; None where unknown.

    Each is a float that carries its unit and n: `scores.error.n`.
    """

    split: str
    accuracy: Quantity | None
    error: Quantity | None
    nll: Quantity | None
    ece: Quantity | None
    agreement: Quantity | None

    def describe(self) -> dict[str, Any]:
        """The JSON-able form: every known score with value, unit and n."""
        known = {name: getattr(self, name) for name in ("accuracy", "error", "nll", "ece", "agreement")}
        return {"split": self.split, **{name: value.describe() for name, value in known.items() if value is not None}}


def predict(
    model: nn.Module,
    split: Split,
    *,
    batch_size: int = 512,
    device: str = "auto",
    precision: str = "fp32",
    progress: bool | Callable[[int, int], None] | None = True,
) -> Tensor:
    """The model's logits for every clean image of the split, `[N, K]` fp32 on the CPU, in row order.

    The model runs in eval mode without gradients; its own modes are as before afterwards. progress: True shows on
    stderr how far it is (a live line in a terminal; elsewhere a line every ten seconds, none for what takes under two),
    False shows nothing, a callable is told (images done, images in all).
    Raises MismatchError when it does not return `[B, K]`.
    """
    classifier = as_classifier(model)
    place = resolve_device(device)
    batches: list[Tensor] = []
    with (
        reported(progress, lambda watch: counted(watch, "evaluating", "images")) as tell,
        inference(classifier, place),
        channels_last(classifier, split.first_images(PROBE_BATCH).to(place)),
        precision_context(precision, place),
    ):
        for rows in torch.split(torch.arange(len(split)), batch_size):
            batches.append(classifier(split.images_at(rows).to(place)).float().cpu())
            if tell is not None:
                tell(int(rows[-1]) + 1, len(split))
    return torch.cat(batches)


def evaluate(
    model: nn.Module,
    split: Split,
    *,
    teacher: object = None,
    batch_size: int = 512,
    device: str = "auto",
    precision: str = "fp32",
    progress: bool | Callable[[int, int], None] | None = True,
) -> Scores:
    """The model's scores on the split: accuracy, error, nll and ece where there are labels, agreement with a teacher.

    `teacher`: anything `distil` takes. `progress` as in `predict`. Raises DataError with neither labels nor a teacher,
    MismatchError when classes differ, TrainingError for logits that are not finite.
    """
    return judge(
        model, split, teacher=teacher, batch_size=batch_size, device=device, precision=precision, progress=progress
    )[0]


def judge(
    model: nn.Module,
    split: Split,
    *,
    teacher: object = None,
    batch_size: int = 512,
    device: str = "auto",
    precision: str = "fp32",
    progress: bool | Callable[[int, int], None] | None = True,
) -> tuple[Scores, Tensor]:
    """The same as `evaluate`, and the logits `[N, K]` the scores were taken from."""
    if split.labels is None and teacher is None:
        raise DataError(f"the {split.role} split of {split.name!r} has no labels: give a teacher to agree with")
    logits = predict(model, split, batch_size=batch_size, device=device, precision=precision, progress=progress)
    _check_classes(logits, split)
    if not torch.isfinite(logits).all():
        row = int((~torch.isfinite(logits)).any(1).nonzero()[0])
        raise TrainingError(f"the model's logits are not finite, first in row {row} of {split.role}: it has diverged")
    agreement = None
    if teacher is not None:
        agreement = metrics.agreement(
            logits, answers_of(teacher, split, logits.shape[1], batch_size=batch_size, device=device)
        )
    return score(logits, split, agreement), logits


def score(logits: Tensor, split: Split, agreement: float | None = None) -> Scores:
    """The scores of logits `[N, K]` that belong to the split's rows. Raises MismatchError when classes differ."""
    _check_classes(logits, split)
    n = len(split)
    share = None if agreement is None else Quantity(agreement, "%", n)
    if split.labels is None:
        return Scores(split.role, None, None, None, None, share)
    labels = split.labels
    return Scores(
        split.role,
        Quantity(metrics.accuracy(logits, labels), "%", n),
        Quantity(metrics.error(logits, labels), "%", n),
        Quantity(metrics.nll(logits, labels), "nats", n),
        Quantity(metrics.ece(logits, labels), "%", n),
        share,
    )


def _check_classes(logits: Tensor, split: Split) -> None:
    if logits.shape[1] != split.classes:
        raise MismatchError(
            f"the model has {logits.shape[1]} class(es), the data {split.name!r} have {split.classes}: both must have "
            "the same classes in the same order"
        )


def answers_of(teacher: object, split: Split, classes: int, *, batch_size: int = 512, device: str = "auto") -> Tensor:
    """A teacher's logits for every clean image of the split, `[N, K]` fp32 on the CPU, in row order.

    `teacher`: anything `distil` takes. Raises MismatchError when it does not serve the split or has other classes.
    """
    if isinstance(teacher, nn.Module):
        return predict(teacher, split, batch_size=batch_size, device=device, progress=False)
    source = as_teacher(teacher)
    source.check(split, ("clean",), classes)
    return _answers(source, split, batch_size, device)


def _answers(source: Teacher, split: Split, batch_size: int, device: str) -> Tensor:
    """Of networks by `predict`, on the device and of all rows: at a training's step each would be asked for a share."""
    if isinstance(source, LiveTeacher):
        return predict(source.module, split, batch_size=batch_size, device=device, progress=False)
    if isinstance(source, SeveralTeachers):
        of_each = [_answers(one, split, batch_size, device) for one in source.teachers]
        return COMBINE[source.combine](torch.stack(of_each), 0)
    found = []
    for rows in torch.split(torch.arange(len(split)), batch_size):
        which = torch.zeros(len(rows), dtype=torch.int64)
        found.append(source.logits(Batch(split.images_at(rows), None, rows, ("clean",), which, 0, 0, len(split))))
    return torch.cat(found).float().cpu()
