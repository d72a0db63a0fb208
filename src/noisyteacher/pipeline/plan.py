"""What a compression is about to do, in words, and how long its parts take on this machine."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence

from torch import nn

from noisyteacher.config import Recipe
from noisyteacher.data import expand_views, samples_of
from noisyteacher.models import Classifier
from noisyteacher.pipeline import pretrained, resolve
from noisyteacher.pipeline.experiment import Experiment
from noisyteacher.pipeline.pretrained import build_network, display_name
from noisyteacher.pipeline.timing import Clock, Speeds, seconds_per_answer, timed_seconds, training_seconds
from noisyteacher.text import plural

EXPORT_S = 5.0
"""Seconds that writing and checking an exported file is assumed to need."""
QAT_SLOWDOWN = 3.0
"""How much longer an epoch is assumed to take where everything is rounded to int8."""


def measure_speeds(
    experiment: Experiment, to_try: Sequence[str], teacher_network: Classifier, clock: Clock = time.monotonic
) -> Speeds | None:
    """The speeds of this machine for an experiment; None where a network cannot be timed.

    to_try: the networks among which the student is chosen; none where it is named.
    """
    config, data, device = experiment.config, experiment.data, experiment.config.run.device
    answer_s = seconds_per_answer(teacher_network, data.train, device, clock, config.teacher.logits_precision)
    students: Sequence[str | nn.Module] = to_try or [copy.deepcopy(experiment.student)]
    networks = [build_network(config.student, student, data, teacher=teacher_network) for student in students]
    trainings: list[tuple[Recipe, Classifier]] = [(config.student, network) for network in networks]
    if not experiment.teacher_is_trained:
        trainings.append((config.teacher, teacher_network))
    seconds, timed_s = [], timed_seconds(60 * (config.target.minutes or 0.0), len(trainings))
    for recipe, network in trainings:
        epoch_s = training_seconds(network, data, resolve.fit_options(recipe, network, data), device, clock, timed_s)
        if epoch_s is None:
            return None
        seconds.append(epoch_s)
    teacher_s = 0.0 if experiment.teacher_is_trained else seconds.pop()
    view_s = answer_s * len(data.train)
    live_s = view_s if experiment.live else 0.0
    others = sum(len(split) for role, split in data.parts.items() if role != "train")
    passes = 1 if experiment.teacher_is_trained else 2  # a trained teacher is scored by its stored logits
    logits_s = passes * answer_s * others
    if config.student.every_view and not experiment.live:
        logits_s += view_s * len(expand_views(config.student.views))
    samples = samples_of(data.train, expand_views(config.student.views), config.student.every_view)
    return Speeds(
        teacher=teacher_s,
        logits=logits_s,
        students=tuple(epoch_s + live_s for epoch_s in seconds),
        end=EXPORT_S * len(config.run.export) + QAT_SLOWDOWN * config.student.qat_epochs * max(seconds),
        view=view_s,
        scoring=max(seconds) * others / 3 / (samples + len(data.val) / 3),  # without a backward pass
    )


def outline(experiment: Experiment, tries: int, trials: int, short_run: bool, student_epochs: int) -> list[str]:
    """What is about to be done: the teacher, the short runs, the students.

    tries: of networks, where the student is chosen. trials: of noises, where the noise is chosen.
    """
    config, data = experiment.config, experiment.data
    names = ", ".join(display_name(name) for name, _ in pretrained.teachers_of(experiment.teacher, config))
    how = f"trained for {plural(config.teacher.epochs, 'epoch')} on {len(data.train):,} images of {data.name}"
    answers = "" if (precision := config.teacher.logits_precision) == "fp32" else f", scored by logits in {precision}"
    lines = [f"teacher: {names}, {f'already trained{answers}' if experiment.teacher_is_trained else how}"]
    short_runs = {"a student on labels": int(short_run), "the student": tries}
    words = ", ".join(f"{number} for {what}" for what, number in short_runs.items() if number)
    lines += [f"short runs: {words}"] if words else []
    lines += [f"trials that choose the noise: {trials}, clean and noisy"] if trials else []
    titles = [experiment.titles[name].removeprefix("student, ") for name in experiment.conditions]
    seeds, trainings = plural(config.run.seeds, "seed"), plural(len(titles) * config.run.seeds, "training")
    conditions, epochs = plural(len(titles), "condition"), plural(student_epochs, "epoch")
    lines += [f"students: {conditions} ({', '.join(titles)}) x {seeds} = {trainings}; {epochs} each"]
    qat = plural(config.student.qat_epochs, "epoch")
    return [*lines, *([f"quantization-aware training of the best: {qat}"] if config.student.qat_epochs else [])]
