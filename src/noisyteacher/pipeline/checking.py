"""What is looked at before the first step: a teacher that answers as it should, and a lesson that can be learned."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from noisyteacher.config import Config, Teacher
from noisyteacher.data import Batch, Split, Splits, epoch_batches, expand_views
from noisyteacher.device import precision_context, resolve_device
from noisyteacher.errors import MismatchError
from noisyteacher.evaluate import judge
from noisyteacher.inference import channels_last, inference
from noisyteacher.models import as_classifier, weights_fingerprint
from noisyteacher.noise import Noise
from noisyteacher.objectives import distil
from noisyteacher.pipeline.class_order import (
    REORDER_FURTHER,
    REORDER_STORE,
    Check,
    class_assignment,
    class_order,
    natural_hint,
)
from noisyteacher.pipeline.given import network_of
from noisyteacher.pipeline.plan import Answers, Plan, taught_of
from noisyteacher.pipeline.training import Trained
from noisyteacher.rng import seeded
from noisyteacher.store import LogitStore
from noisyteacher.teachers import as_teacher

ROWS = 8
"""Images that the teacher is asked again."""
CHUNK = 8192
ABOVE_CHANCE = 3.0
"""Standard deviations above chance from which on an accuracy is no accident."""
CHECKING_TEACHER, CHECKING_STUDENT = "checking the teacher", "checking the student's first step"
"""What the checks are called while they run."""


def checked_teacher(plan: Plan, teacher: Trained, answers: Answers) -> list[dict[str, Any]]:
    """The checks of a teacher and its stored answers, JSON-able.

    Raises MismatchError with every one that does not hold, unless the settings say `run.checks = false`. The accuracy
    of a teacher that was trained here or in another run, with its preprocessing, is noted and ends nothing.
    """
    data, strict = plan.data, plan.config.run.checks
    store, val = answers.get("train"), answers.get("val")
    stored = store if isinstance(store, LogitStore) else None
    found = [
        teacher_frozen(teacher.model, data.train, stored),
        class_order(teacher.result.get("classes"), data.class_names, "the teacher", plan.config.teacher.class_order),
    ]
    if stored is not None:
        found.append(stored_is_live(teacher.model, data.train, stored))
    if not isinstance(val, LogitStore):
        return settled(found, strict)
    accuracy = plausible_accuracy(val, data.val)
    found.append(answers_are_logits(val))
    if teacher.run.info["kind"] == "given":
        found.append(class_assignment(predictions(val), data.val, "the teacher", plan.config.teacher.class_order))
    for role, further in answers.items():
        if role.startswith("train-") and isinstance(further, LogitStore):
            who = f"teacher {role.removeprefix('train-')}"
            found.append(class_assignment(predictions(further), data.train, who, remedy=REORDER_FURTHER))
    if teacher.run.info["kind"] == "given" and not teacher.run.info["parents"]:
        return settled([*found, accuracy], strict)
    return settled(found, strict) + settled([accuracy], strict=False)


def checked_lesson(
    config: Config,
    data: Splits,
    given: str | nn.Module,
    noise: Noise | None,
    source: Any,
    teacher: nn.Module | Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """The checks of what this student would learn in its first step with seed 0, JSON-able. Raises as the above.

    source: what `distil` is given. teacher: a model, or the architecture of one, for a student narrowed from it.
    """
    student = config.student
    place = resolve_device(config.run.device)
    own = copy.deepcopy(given) if isinstance(given, nn.Module) else given
    model = network_of(student, own, data, teacher=teacher).to(place)
    views = expand_views(student.views)
    objective = distil(source, noise=noise, **taught_of(config))
    objective.check(data.train, views, data.classes)
    batch = next(
        epoch_batches(
            data.train, views, seed=0, epoch=0, first=0, batches=1, batch_size=student.batch_size,
            every_view=student.every_view, total_steps=max(2, student.epochs), device=place,
        )
    )  # fmt: skip
    taught = taught_of(config) | {"label_weight": 0.0}
    targets = as_teacher(source, taught.get("combine", "mean")).logits(batch)
    same, _ = distil(source, **taught)(targets, batch)
    found = [_zero(float(same), targets), student_gradient(model, lambda logits: objective(logits, batch)[0], batch)]
    return settled(found, config.run.checks)


def settled(found: Sequence[Check], strict: bool) -> list[dict[str, Any]]:
    """The checks as a result keeps them. Raises MismatchError with those that do not hold where `strict`."""
    failed = [one.told for one in found if one.held is False]
    if failed and strict:
        raise MismatchError(
            f"before the first step, {len(failed)} of {len(found)} checks did not hold: {'; '.join(failed)}. If that "
            "is as it should be, say run.checks = false (--set run.checks=false)"
        )
    return [asdict(one) for one in found]


def told_of(checks: Iterable[Mapping[str, Any]]) -> list[str]:
    """The sentences of the checks that did not hold."""
    failed = [one for one in checks if one["held"] is False]
    return [f"Did not hold before the first step ({one['check']}): {one['told']}." for one in failed]


def store_order(store: LogitStore, data: Splits, strict: bool) -> list[dict[str, Any]]:
    """The checks of the class order of a store, of whose teacher nothing else is known. Raises as the above."""
    stated = store.meta.get("class_names")
    theirs = list(map(str, stated)) if isinstance(stated, list) else None
    found = [class_order(theirs, data.class_names, "the stored teacher")]
    if data.train.labels is not None:
        found.append(class_assignment(predictions(store), data.train, "the stored teacher", remedy=REORDER_STORE))
    return settled(found, strict)


def refuse_other_order(teacher: nn.Module, split: Split, settings: Teacher, device: str) -> None:
    """Raises MismatchError where the teacher's answers to a labelled split show another order of classes."""
    if split.labels is not None:
        predicted = judge(teacher, split, device=device)[1].argmax(1)
        settled([class_assignment(predicted, split, "the teacher", settings.class_order)], strict=True)


def teacher_frozen(teacher: nn.Module, split: Split, store: LogitStore | None) -> Check:
    """Whether the teacher answers in eval mode and without gradients, and is the one whose answers are stored."""
    name = "teacher frozen"
    with inference(teacher) as place:
        logits: Tensor = teacher(split.first_images(2).to(place))
        awake = [path or "the model" for path, part in teacher.named_modules() if part.training]
    if awake:
        return Check(name, False, f"the teacher's {awake[0]} stays in training mode when it is asked to answer")
    if logits.requires_grad:
        return Check(name, False, "the teacher's answers have gradients where none are asked for")
    if store is None:
        return Check(name, True, "in eval mode, without gradients; it answers at every step")
    if weights_fingerprint(teacher) != store.fingerprints["teacher"]:
        return Check(name, False, "the teacher's weights have changed since its answers were stored")
    return Check(name, True, "in eval mode, without gradients, with the weights whose answers are stored")


def stored_is_live(teacher: nn.Module, split: Split, store: LogitStore) -> Check:
    """Whether a few stored answers are what the teacher says now, within 1e-3 of the largest logit, and rounding."""
    rows = torch.linspace(0, len(split) - 1, min(ROWS, len(split))).long()
    view = store.views[-1]
    with inference(as_classifier(teacher)) as place:
        images = split.images_at(rows, view).to(place)
        with channels_last(teacher, images), precision_context(store.plan.precision, place):
            live = teacher(images).float().cpu()
    stored = store.logits(view, rows)
    apart, size = float((live - stored).abs().max()), float(stored.abs().max())
    told = (
        f"asked again for {len(rows)} stored answers ({view}), the teacher differs by at most {apart:.3g}, the largest "
        f"logit being {size:.3g}"
    )
    allowed = 1e-3 * (1 + size) + float(store.rounding(stored).max())
    return Check("stored answers are the teacher's", apart <= allowed, told)


def plausible_accuracy(store: LogitStore, val: Split) -> Check:
    """Accuracy against what the same answers would score if they had nothing to do with the labels."""
    name = "teacher's accuracy"
    if val.labels is None:
        return Check(name, None, "validation has no labels")
    chosen, labels = predictions(store), val.labels.cpu()
    n, classes = len(labels), val.classes
    hits = int((chosen == labels).sum())
    chance, variance = hits_by_chance(*(torch.bincount(one, minlength=classes) for one in (chosen, labels)))
    held = hits > chance + ABOVE_CHANCE * math.sqrt(variance)
    told = f"{100 * hits / n:.2f} % on validation (n = {n:,}), where {100 * chance / n:.2f} % would be chance"
    if held:
        return Check(name, True, told)
    return Check(
        name, False,
        f"the teacher's accuracy is {told}: a wrong normalisation or class order shows like this, and so does a "
        f"teacher that was hardly trained (see teacher.preprocess, teacher.mean){natural_hint(val.class_names)}",
    )  # fmt: skip


def predictions(store: LogitStore) -> Tensor:
    """The class with the largest stored logit for every row of the first view, int64 `[N]`."""
    return torch.cat([part.argmax(1) for part in _chunks(store)])


def hits_by_chance(answers: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean and variance of the hits when answers are dealt out to labels at random.

    `answers` and `labels` say how often each class occurs, `[K]`, with one sum n. The hits are a sum of hypergeometric
    counts, one a class, that share their draws.
    """
    ours, theirs, n = answers.double(), labels.double(), int(labels.sum())
    both = ours * theirs
    cross = both.sum().square() - both.square().sum()
    spread = (both * (n - ours) * (n - theirs)).sum() + cross
    return float(both.sum()) / n, float(spread) / (n * n * max(1, n - 1))


def answers_are_logits(store: LogitStore) -> Check:
    """Probabilities are between 0 and 1 and add up to 1 in every row; logits have no reason to."""
    low, off = math.inf, 0.0
    for part in _chunks(store):
        low, off = min(low, float(part.min())), max(off, float((part.sum(1) - 1).abs().max()))
    if low >= 0 and off < 1e-3:
        told = "the teacher's answers add up to 1 in every row: they are probabilities, and logits are needed"
        return Check("answers are logits", False, f"{told}: leave the softmax at its end out")
    return Check(
        "answers are logits", True, f"they do not add up to 1 (largest distance {off:.3g}; n = {store.rows:,})"
    )


def _chunks(store: LogitStore) -> Iterable[Tensor]:
    for rows in torch.arange(store.rows).split(CHUNK):  # type: ignore[no-untyped-call]
        yield store.logits(store.views[0], rows)


def _zero(loss: float, targets: Tensor) -> Check:
    size = float(targets.square().mean())
    told = f"the loss of a student that answers as the teacher does is {loss:.3g} (mean squared logit {size:.3g})"
    return Check("no loss where student equals teacher", abs(loss) <= 1e-5 * (1 + size), told)


def student_gradient(model: nn.Module, loss: Callable[[Tensor], Tensor], batch: Batch) -> Check:
    """The gradient of the first batch's loss in the student's weights; the student is a copy that is thrown away."""
    name = "student's gradient"
    learned = [one for one in model.parameters() if one.requires_grad]
    if not learned:
        return Check(name, False, "the student has no weights to learn")
    model.train(len(batch.rows) > 1)
    with seeded(0, "dropout", "check", device=batch.images.device):
        slopes = torch.autograd.grad(loss(model(batch.images).float()), learned, allow_unused=True)
    size = math.sqrt(sum(float(one.square().sum()) for one in slopes if one is not None))
    reached = sum(one is not None and bool(one.any()) for one in slopes)
    told = f"norm {size:.3g} in the first batch, in {reached} of {len(learned)} weight tensors"
    if math.isfinite(size) and size > 0:
        return Check(name, True, told)
    return Check(name, False, f"the student's gradient has {told}: there is nothing it could learn")
