"""What a compression is about to do, in one line per stage, said before it starts."""

from __future__ import annotations

from noisyteacher.config import Student
from noisyteacher.data import expand_views
from noisyteacher.pipeline.choosing import planned, shortened
from noisyteacher.pipeline.conditions import conditions_of, titles_of
from noisyteacher.pipeline.given import is_given
from noisyteacher.pipeline.labels_alone import takes_short_run
from noisyteacher.pipeline.plan import AUTO, LABEL_WEIGHT, WEAK_TEACHER_LABEL_WEIGHT, Plan, called
from noisyteacher.text import plural, size_bytes

LOGIT_BYTES = 4
"""Stores of a compression keep float32."""


def outline(plan: Plan) -> list[str]:
    """The stages with their counts: teacher, logits, search, noise, students, files; those that do not take place are
    left out.
    """
    lines = [_teacher(plan), *_logits(plan)]
    config = plan.config
    if takes_short_run(plan):
        lines.append("comparison: a short run on labels alone, to see whether the teacher is better")
    if plan.search is not None:
        epochs = shortened(config.student, config.target.epochs).epochs
        fitting = len(plan.search.fitting)
        tries = plural(min(config.target.search, fitting), "network")
        lines.append(
            f"search: short runs of {tries} at most, of {fitting} within the limits; {plural(epochs, 'epoch')} each"
        )
    if plan.candidates:
        epochs = shortened(config.student, config.choice.epochs).epochs
        lines.append(
            f"noise: {plural(planned(plan), 'short run')} ({plural(len(plan.candidates), 'noise')} and none, "
            f"{plural(config.choice.seeds, 'seed')} each); {plural(epochs, 'epoch')} each"
        )
    titles = titles_of(config.student)
    conditions = [name for name in titles if name in conditions_of(plan)]
    names = ", ".join(titles[name].removeprefix("student, ") for name in conditions)
    lines.append(
        f"students: {plural(len(conditions), 'condition')} ({names}) x {plural(config.run.seeds, 'seed')} = "
        f"{plural(len(conditions) * config.run.seeds, 'training')}; {plural(config.student.epochs, 'epoch')} each"
    )
    lines.append(_recipe(config.student))
    if config.run.export:
        lines.append(f"export: {', '.join(config.run.export)}")
    return lines


def _recipe(student: Student) -> str:
    """How a student learns, in one line."""
    loss = "logit regression"
    if student.loss == "soft_targets":
        loss = f"soft targets (temperature {4 if student.temperature is None else student.temperature:g})"
    labels = f", labels at weight {student.label_weight:g}" if student.label_weight not in (0, AUTO) else ""
    if student.label_weight == AUTO:
        labels = f", labels at weight {LABEL_WEIGHT:g} ({WEAK_TEACHER_LABEL_WEIGHT:g} if the teacher is weak)"
    rule = "muon or adamw" if student.optimizer == "auto" else student.optimizer
    return (
        f"recipe: {student.preset}: {loss}{labels}; {rule}, rate {student.lr:g}, batches of {student.batch_size}, "
        f"{plural(len(expand_views(student.views)), 'view')}"
    )


def _teacher(plan: Plan) -> str:
    names = [called(plan.teacher), *(called(name) for name in plan.config.teacher.also)]
    given = not isinstance(plan.teacher, str) or is_given(plan.teacher, plan.config.teacher, plan.data)
    how = "already trained" if given else f"trained for {plural(plan.config.teacher.epochs, 'epoch')}"
    images = f"{len(plan.data.train):,} images of {plan.data.name}"
    return f"teacher: {', '.join(names)}, {how}{'' if given else f' on {images}'}"


def _logits(plan: Plan) -> list[str]:
    """What is stored of the teacher's answers, and the size of it on disk."""
    views = len(expand_views(plan.config.student.views))
    counts = {role: len(split) * (views if role == "train" else 1) for role, split in plan.data.parts.items()}
    if plan.live:
        del counts["train"]
    answers = sum(counts.values()) + counts.get("train", 0) * len(plan.config.teacher.also)
    shares = ", ".join(f"{role} {count:,}" for role, count in counts.items())
    size = size_bytes(answers * len(plan.data.class_names) * LOGIT_BYTES)
    of = f"{shares}{f', {views} views of each training image' if views > 1 and not plan.live else ''}"
    return [f"logits: {answers:,} answers of the teacher ({of}), about {size}"]
