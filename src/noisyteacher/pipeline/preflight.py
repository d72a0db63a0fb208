"""Checks before the first step: names, the teacher and its logits, the student's first step, labels alone."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from scipy.special import bdtrc, ndtr
from torch import Tensor, nn

from noisyteacher import models
from noisyteacher.config import Config, Teacher
from noisyteacher.data import DATASETS, Batch, Split, Splits, epoch_batches, expand_views
from noisyteacher.data.sources import FILES
from noisyteacher.device import AUTO, check_threads, inference, resolve_device
from noisyteacher.errors import MismatchError, UsageError
from noisyteacher.evaluate import answers_of, predict
from noisyteacher.io.files import Json
from noisyteacher.models import Classifier
from noisyteacher.objectives import Distillation
from noisyteacher.pipeline.class_order import Check, check_class_assignment, check_class_names
from noisyteacher.pipeline.experiment import Experiment, Logits, TrainedModel
from noisyteacher.pipeline.pretrained import class_names_of, is_model_path
from noisyteacher.pipeline.resolve import fit_options
from noisyteacher.rng import seeded
from noisyteacher.stats import LEVEL, discordant_p
from noisyteacher.store import LogitStore
from noisyteacher.text import plural, unknown_name

ROWS = 8  # images for which the teacher runs again
CHUNK = 8192  # rows of a store that are read at once
ABOVE_CHANCE = 3.0  # standard deviations above chance from which on an accuracy is no accident
GOOD_TEACHER = 0.75
"""A teacher has something to teach if its errors on validation are below this share of a student's on labels."""
CHECKING_TEACHER, CHECKING_STUDENT = "checking the teacher", "checking the student's first step"


def check_teacher(
    experiment: Experiment,
    teacher: TrainedModel,
    logits: Logits,
    more_teachers: Sequence[tuple[TrainedModel, LogitStore]] = (),
) -> list[Check]:
    """The checks of a teacher and its stored logits, and of the class order of further teachers.

    more_teachers: each with its logits for validation; those for training are among `logits`. The accuracy of a teacher
    that was trained here or in another run, with its preprocessing, is recorded and ends nothing. Raises MismatchError
    with every check that fails, unless the settings say `run.checks = false`.
    """
    data, order, strict = experiment.data, experiment.config.teacher.class_order, experiment.config.run.checks
    stores = {role: source for role, source in logits.items() if isinstance(source, LogitStore)}
    train, val, info = stores.get("train"), stores["val"], teacher.run.info
    checks = [
        check_frozen(teacher.model, data.train, train),
        check_class_names(teacher.result.get("classes"), data.class_names, "the teacher", order),
    ]
    if train is not None:
        checks.append(check_stored_logits(teacher.model, data.train, train))
    student, noise = experiment.config.student, experiment.config.noise
    needs_logits = not noise.off or student.loss == "logit_regression"
    checks.append(check_not_probabilities(val, needs_logits))
    if info["kind"] == "given":
        checks.append(check_class_assignment(predictions(val), data.val, "the teacher", order))
    for number, (further, further_val) in enumerate(more_teachers, 2):
        checks.append(check_class_names(further.result.get("classes"), data.class_names, f"teacher {number}"))
        further_train = stores.get(f"train-{number}")
        if further_train is not None and data.train.labels is not None:
            checks.append(check_class_assignment(predictions(further_train), data.train, f"teacher {number}"))
        else:
            checks.append(check_class_assignment(predictions(further_val), data.val, f"teacher {number}"))
    accuracy = check_accuracy(val, data.val)
    if info["kind"] == "given" and not info["parents"]:
        return raise_failed_checks([*checks, accuracy], strict)
    return [*raise_failed_checks(checks, strict), accuracy]


def check_first_step(config: Config, data: Splits, objective: Distillation, model: nn.Module) -> list[Check]:
    """The checks of what this student would learn in its first step with seed 0; the model is not changed.

    Raises MismatchError as `check_teacher` does.
    """
    student, device = config.student, resolve_device(config.run.device)
    views = expand_views(student.views)
    objective.check(data.train, views, data.classes)
    objective = objective.weighed(model, data.train, views[0])
    first: Json = {"seed": 0, "epoch": 0, "first": 0, "batches": 1, "total_steps": max(2, student.epochs)}
    sizes: Json = {"batch_size": fit_options(student, model, data)["batch_size"], "every_view": student.every_view}
    batch = next(epoch_batches(data.train, views, device=device, **first, **sizes))
    gradient = check_gradient(copy.deepcopy(model).to(device), lambda logits: objective(logits, batch)[0], batch)
    return raise_failed_checks([check_no_loss(objective, batch), gradient], config.run.checks)


def check_no_loss(objective: Distillation, batch: Batch) -> Check:
    """Whether the teacher's term of the loss is 0, without noise, for a student with the teacher's own logits."""
    logits = objective.teacher.logits(batch)
    alone = replace(objective, noise=None, label_weight=0.0, loss_weight=1.0)
    loss = float(alone(objective.goal(logits), batch)[0])
    size = float(logits.square().mean())
    message = f"the loss of a student that answers as the teacher does is {loss:.3g} (mean squared logit {size:.3g})"
    return Check("no loss where student equals teacher", abs(loss) <= 1e-5 * (1 + size), message)


def check_store_order(store: LogitStore, stated: object, data: Splits, strict: bool) -> list[Check]:
    """The checks of the class order of a store, of whose teacher nothing is known but the class names that are stated.

    Raises as `check_teacher`.
    """
    who = "the stored teacher"
    names = list(map(str, stated)) if isinstance(stated, list) else None
    checks = [check_class_names(names, data.class_names, who)]
    if data.train.labels is not None:
        checks.append(check_class_assignment(predictions(store), data.train, who))
    return raise_failed_checks(checks, strict)


def check_output_order(teacher: nn.Module, split: Split, settings: Teacher, device: str) -> None:
    """Raises MismatchError where the teacher's answers to a labelled split show another order of classes."""
    if split.labels is not None:
        predicted = predict(teacher, split, device=device).argmax(1)
        raise_failed_checks([check_class_assignment(predicted, split, "the teacher", settings.class_order)], True)


def check_stated_order(
    where: str, model: Classifier, data: Splits, settings: Teacher | None = None, who: str = "the model"
) -> None:
    """Raises MismatchError where a trained model names the classes in another order than the data (`class_names_of`).

    settings: those that the model was loaded with; None where it could not have been put in order.
    """
    order = None if settings is None else settings.class_order
    check = check_class_names(class_names_of(where, model, order or ()), data.class_names, who, order)
    if check.passed is False:
        raise MismatchError(check.message)


def raise_failed_checks(checks: list[Check], strict: bool) -> list[Check]:
    """The checks themselves. Raises MismatchError with those that fail where `strict`."""
    failed = [check.message for check in checks if check.passed is False]
    if failed and strict:
        counts = f"before the first step, {len(failed)} of {len(checks)} checks did not hold"
        raise MismatchError(
            f"{counts}: {'; '.join(failed)}. If that is right, say run.checks = false (in Python checks=False)"
        )
    return checks


def check_frozen(teacher: nn.Module, split: Split, store: LogitStore | None) -> Check:
    """Whether the teacher answers in eval mode and without gradients, and is the one whose logits are stored."""
    with inference(teacher) as device:
        logits: Tensor = teacher(split.first_images(2).to(device))
        training = [path or "the model" for path, part in teacher.named_modules() if part.training]
    problem = None
    if training:
        problem = f"the teacher's {training[0]} stays in training mode in eval()"
    elif logits.requires_grad:
        problem = "the teacher's answers have gradients under torch.no_grad()"
    elif store is not None and models.weights_fingerprint(teacher) != store.fingerprints["teacher"]:
        problem = "the teacher's weights have changed since its answers were stored"
    return Check("teacher frozen", problem is None, problem or "in eval mode, without gradients, weights unchanged")


def check_stored_logits(teacher: nn.Module, split: Split, store: LogitStore) -> Check:
    """Whether a few stored logits are what the teacher computes now, within 1e-3 of the largest logit, and rounding."""
    rows = torch.linspace(0, len(split) - 1, min(ROWS, len(split))).long()
    view = store.views[-1]
    live = store.recompute(models.as_classifier(teacher), split.images_at(rows, view))
    stored = store.logits(view, rows)
    difference, size = float((live - stored).abs().max()), float(stored.abs().max())
    message = (
        f"{len(rows)} stored answers ({view}) computed again differ by at most {difference:.3g}; the largest logit is "
        f"{size:.3g}"
    )
    allowed = 1e-3 * (1 + size) + float(store.rounding(stored).max())
    return Check("stored answers are the teacher's", difference <= allowed, message)


def check_accuracy(store: LogitStore, val: Split) -> Check:
    """Accuracy compared with what the same answers would score if they had nothing to do with the labels."""
    name = "teacher's accuracy"
    if val.labels is None:
        return Check(name, None, "validation has no labels")
    predicted, labels = predictions(store), val.labels.cpu()
    n, hits = len(labels), int((predicted == labels).sum())
    answers, truth = (torch.bincount(classes, minlength=val.classes) for classes in (predicted, labels))
    chance, variance = hits_by_chance(answers, truth)
    message = f"{100 * hits / n:.2f} % on validation (n = {n:,}), where {100 * chance / n:.2f} % would be chance"
    passed = _above_chance(hits, n, chance, variance)
    if not passed and not _above_chance(n, n, *hits_by_chance(truth, truth)):
        return Check(name, None, f"{message}: too few images or classes to tell them apart")
    if not passed:
        message = (
            f"the teacher's accuracy is {message}: a wrong normalisation or class order shows like this, and so does a "
            "teacher that was hardly trained (see teacher.preprocess, teacher.mean)"
        )
    return Check(name, passed, message)


def _above_chance(hits: int, n: int, chance: float, variance: float) -> bool:
    """Whether n images have more hits than chance explains: by the sd of dealt answers, or the exact binomial test."""
    p = float(bdtrc(hits - 1, n, chance / n))
    return hits > chance + ABOVE_CHANCE * math.sqrt(variance) or p < float(ndtr(-ABOVE_CHANCE))


def hits_by_chance(answers: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean and variance of the hits when answers are assigned to images at random: sums of hypergeometric counts.

    `answers` and `labels` say how often each class occurs, `[K]`, with one sum n.
    """
    ours, theirs, n = answers.double(), labels.double(), int(labels.sum())
    both = ours * theirs
    spread = (both * (n - ours) * (n - theirs)).sum() + both.sum().square() - both.square().sum()
    return float(both.sum()) / n, float(spread) / (n * n * max(1, n - 1))


def check_not_probabilities(store: LogitStore, needs_logits: bool) -> Check:
    """Probabilities, their logarithms and a sigmoid's outputs have sums or bounds that logits have no reason for.

    A log-softmax is noted only, not refused: soft targets without noise are the same as of logits.
    """
    name, rows = "answers are logits", min(store.rows, CHUNK)
    logits = store.logits(store.views[0], torch.arange(rows))
    distance = float((logits.sum(1) - 1).abs().max())
    if float(logits.min()) >= 0 and distance < 1e-3:
        problem = "the teacher's answers add up to 1 in every row: they are probabilities, and logits are needed"
        return Check(name, False, f"{problem}: leave the softmax at its end out")
    if float(logits.min()) >= 0 and float(logits.max()) <= 1:
        problem = "the teacher's answers all lie between 0 and 1, as a sigmoid's do, and logits are needed"
        return Check(name, False, f"{problem}: leave the sigmoid at its end out")
    if float(logits.logsumexp(1).abs().max()) < 1e-3:
        problem = "the teacher's answers are logarithms of probabilities: noise and logit regression need logits"
        return Check(name, False if needs_logits else None, f"{problem}: leave the log-softmax at its end out")
    return Check(name, True, f"they do not add up to 1 (largest distance {distance:.3g}; n = {rows:,})")


def predictions(store: LogitStore) -> Tensor:
    """The class with the largest stored logit for every row of the first view, int64 `[N]`."""
    chunks = torch.split(torch.arange(store.rows), CHUNK)
    return torch.cat([store.logits(store.views[0], rows).argmax(1) for rows in chunks])


def check_gradient(model: nn.Module, loss: Callable[[Tensor], Tensor], batch: Batch) -> Check:
    """Whether the first batch's loss has a gradient in the student's weights; the model is changed, so pass a copy."""
    name = "student's gradient"
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not weights:
        return Check(name, False, "the student has no weights to learn")
    model.train(len(batch.rows) > 1)
    with seeded(0, "dropout", "check", device=batch.images.device):
        gradients = torch.autograd.grad(loss(model(batch.images).float()), weights, allow_unused=True)
    norms = [0.0 if gradient is None else float(gradient.norm()) for gradient in gradients]
    norm = math.hypot(*norms)
    message = f"norm {norm:.3g} in the first batch, in {sum(map(bool, norms))} of {len(weights)} weight tensors"
    if math.isfinite(norm) and norm > 0:
        return Check(name, True, message)
    return Check(name, False, f"the student's gradient has {message}: there is nothing it could learn")


@dataclass(frozen=True)
class TeacherComparison:
    """Errors on validation of the teacher and of a student on labels alone, with McNemar's p."""

    teacher_errors: int
    student_errors: int
    n: int
    p: float
    student: str  # `a student trained on labels alone`, and how long

    @property
    def percentages(self) -> tuple[str, str]:
        """The errors of teacher and student as text. `("2.81 %", "1.90 %")`."""
        return f"{100 * self.teacher_errors / self.n:.2f} %", f"{100 * self.student_errors / self.n:.2f} %"

    def warning(self) -> str | None:
        """A sentence without its full stop where the teacher has more errors; None where it is as good or better."""
        if self.teacher_errors <= self.student_errors:
            return None
        teacher, student = self.percentages
        worse = "significantly worse" if self.p < LEVEL else "not better"
        return (
            f"the teacher has {teacher} error on validation (n = {self.n:,}), {self.student} {student}: it is {worse} "
            f"(p = {self.p:.2g}, McNemar's exact test), and distilling cannot be expected to help; train the teacher "
            "longer, take another one, or check its preprocessing and the order of its classes"
        )

    @property
    def weak(self) -> bool:
        """Whether the teacher has so many errors that a student learns more from the labels (docs/models.md)."""
        return self.teacher_errors >= GOOD_TEACHER * self.student_errors


def compare_teacher(experiment: Experiment, logits: Logits, student: TrainedModel, short: bool) -> TeacherComparison:
    """The teacher compared with a student on labels alone; `short`: which was trained in a short run."""
    val, device = experiment.data.val, experiment.config.run.device
    labels = val.labels_at(torch.arange(len(val))).cpu()
    teacher_wrong = answers_of(logits["val"], val, val.classes, device=device).argmax(1) != labels
    student_wrong = predict(student.model, val, device=device, progress=False).argmax(1) != labels
    p = discordant_p(int((teacher_wrong & ~student_wrong).sum()), int((student_wrong & ~teacher_wrong).sum()))
    epochs = f" for {plural(int(student.result['training']['epochs']), 'epoch')}" if short else ""
    inherited = " from the teacher's weights" if experiment.inherits else ""
    words = f"a student trained on labels alone{epochs}{inherited}"
    return TeacherComparison(int(teacher_wrong.sum()), int(student_wrong.sum()), len(val), p, words)


def wrong_names(config: Config) -> list[str]:
    """A sentence per setting whose name is not known, `KEY: ...`; files are not looked for. Empty when all are fine."""
    problems: list[str] = []

    def check(key: str, function: Callable[..., object], *values: object) -> None:
        try:
            function(*values)
        except UsageError as error:
            problems.append(f"{key}: {error}")

    name = config.data.name
    if name not in DATASETS and not name.endswith(FILES) and os.sep not in name and not os.path.exists(name):
        problems.append(f"data.name: {unknown_name('data set', name, [*DATASETS, 'a .npz or .csv file', 'a folder'])}")
    check("teacher.name", _check_network, config.teacher.name, True)
    for number, name in enumerate(config.teacher.also):
        check(f"teacher.also.{number}", _check_network, name, True)
    check("student.name", _check_network, config.student.name, False)
    for role, recipe in (("teacher", config.teacher), ("student", config.student)):
        front = recipe.preprocess
        if front and front != models.OWN and not models.is_preprocess(front):
            error = unknown_name("preprocessing", front, [*models.PREPROCESS, models.OWN])
            problems.append(f"{role}.preprocess: {error}")
        if recipe.views != [AUTO]:
            check(f"{role}.views", expand_views, recipe.views)
    check("run.device", resolve_device, config.run.device)
    check("run.threads", check_threads, config.run.threads or 1)
    return problems


def _check_network(name: str, may_be_a_file: bool) -> None:
    if name.startswith(models.SHRINK):
        models.ratio_of(name)
        if may_be_a_file:
            raise UsageError(f"{name!r} narrows a teacher and cannot be one: name it as the student")
    elif may_be_a_file or name not in ("", AUTO):
        models.without_width(name)
        if name not in models.MODELS and ":" not in name and not (may_be_a_file and is_model_path(name)):
            raise models.unknown_network(name, models.MODELS)
