"""Whether a teacher is any better than a student trained on labels alone: found out before anything is distilled."""

from __future__ import annotations

from dataclasses import replace

import torch

from noisyteacher.evaluate import answers_of, predict
from noisyteacher.pipeline.conditions import a_student
from noisyteacher.pipeline.plan import AUTO, LABEL_WEIGHT, WEAK_TEACHER_LABEL_WEIGHT, Answers, Plan, lasting
from noisyteacher.pipeline.training import Trained
from noisyteacher.progress import message
from noisyteacher.stats import LEVEL, discordant_p
from noisyteacher.text import plural

SHORT_RUN = "labels-short"
GOOD_TEACHER = 0.75
"""A teacher has something to teach if its errors on validation are below this share of a student's on labels."""


def takes_short_run(plan: Plan) -> bool:
    """Whether a short student on labels is trained for the comparison alone.

    That is so where no student on labels of full length comes before the first distilled one, and there are labels to
    train and to judge it on.
    """
    return comparable(plan) and (plan.search is not None or not plan.config.run.baselines)


def comparable(plan: Plan) -> bool:
    """Whether there are labels to train a student on and to judge it by."""
    return plan.data.train.labels is not None and plan.data.val.labels is not None


def short_student(plan: Plan, answers: Answers, epochs: int, title: str) -> Trained:
    """The student after a short run on labels alone, with seed 0, in the child run `labels-short`.

    Where the student is yet to be chosen, it is the first candidate.
    """
    student = lasting(plan.config.student, epochs)
    short = plan
    if plan.search is not None:
        student = replace(student, name=plan.search.fitting[0].name)
        short = replace(plan, student=student.name)
    short = replace(short, config=replace(plan.config, student=student))
    return a_student(short, SHORT_RUN, "labels", None, 0, answers, title)


def warned_of_teacher(plan: Plan, answers: Answers, on_labels: Trained) -> str | None:
    """The warning of a teacher that is worse than this student on labels, shown at once."""
    warning = teacher_warning(plan, answers, on_labels)
    if warning is not None:
        message(plan.watch, "warning", warning)
    return warning


def with_label_weight(plan: Plan, answers: Answers, student: Trained) -> Plan:
    """The plan with the label weight that `auto` comes to beside this student on labels; as it is if decided already.

    A teacher with less than GOOD_TEACHER of the student's errors on validation has something to teach; of a weaker one
    the student learns more from the labels (docs/models.md has the trials).
    """
    settings = plan.config.student
    if settings.label_weight != AUTO:
        return plan
    teacher_errors, student_errors, _ = _compare(plan, answers, student)
    weight = LABEL_WEIGHT if teacher_errors < GOOD_TEACHER * student_errors else WEAK_TEACHER_LABEL_WEIGHT
    if weight != LABEL_WEIGHT:
        n = len(plan.data.val)
        message(
            plan.watch,
            "plan",
            f"label weight: {weight:g} instead of {LABEL_WEIGHT:g}, because the teacher's validation error "
            f"({100 * teacher_errors / n:.2f} %, n = {n:,}) is not below {GOOD_TEACHER:.0%} of that of a student on "
            f"labels ({100 * student_errors / n:.2f} %)",
        )
    return replace(plan, config=replace(plan.config, student=replace(settings, label_weight=weight)))


def _compare(plan: Plan, answers: Answers, student: Trained) -> tuple[int, int, float]:
    """Errors on validation of the teacher and of a student on labels, and McNemar's exact p-value."""
    val = plan.data.val
    labels = val.labels_at(torch.arange(len(val))).cpu()
    device = plan.config.run.device
    teacher_wrong = answers_of(answers["val"], val, val.classes, device=device).argmax(1) != labels
    student_wrong = predict(student.model, val, device=device, progress=False).argmax(1) != labels
    p = discordant_p(int((teacher_wrong & ~student_wrong).sum()), int((student_wrong & ~teacher_wrong).sum()))
    return int(teacher_wrong.sum()), int(student_wrong.sum()), p


def teacher_warning(plan: Plan, answers: Answers, student: Trained) -> str | None:
    """A sentence without its full stop where the teacher has more errors on validation than this student on labels.

    Both answer the same images, so the p-value is that of McNemar's exact test. None where the teacher is as good or
    better.
    """
    teacher_errors, student_errors, p = _compare(plan, answers, student)
    if teacher_errors <= student_errors:
        return None
    epochs = int(student.result["training"]["epochs"])
    brief = f" for {plural(epochs, 'epoch')}" if student.run.path.name == SHORT_RUN else ""
    which = "the first teacher" if plan.config.teacher.also else "the teacher"
    n = len(plan.data.val)
    errors = 100 * teacher_errors / n, 100 * student_errors / n
    compared = (
        f"{which} has {errors[0]:.2f} % error on validation (n = {n:,}), a student trained on labels alone{brief} "
        f"{errors[1]:.2f} %"
    )
    if p < LEVEL:
        return (
            f"{compared}: {which} is significantly worse (p = {p:.2g}, McNemar's exact test), and distilling can be "
            "expected to hurt; train the teacher longer, take another one, or check its preprocessing and the order of "
            "its classes"
        )
    return (
        f"{compared} (p = {p:.2g}, McNemar's exact test): distilling cannot be expected to help; train the teacher "
        "longer, or take a better one"
    )
