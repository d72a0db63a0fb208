"""Config -> teacher, logits, students, measurements: the only module that knows the whole way."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from torch import nn

from noisyteacher.config import Config, NoiseSettings, build_config, describe
from noisyteacher.data import load_data
from noisyteacher.errors import UsageError
from noisyteacher.io.locks import shared_lock
from noisyteacher.noise import Noise
from noisyteacher.pipeline.best import best_student, write_best
from noisyteacher.pipeline.budget import short
from noisyteacher.pipeline.checking import CHECKING_STUDENT, CHECKING_TEACHER, checked_lesson, checked_teacher
from noisyteacher.pipeline.choosing import choose_noise, planned
from noisyteacher.pipeline.conditions import (
    a_student,
    conditions_of,
    controls,
    further_answers,
    its_answers,
    taught_by,
    the_teacher,
    titles_of,
)
from noisyteacher.pipeline.labels_alone import (
    comparable,
    short_student,
    takes_short_run,
    warned_of_teacher,
    with_label_weight,
)
from noisyteacher.pipeline.outline import outline
from noisyteacher.pipeline.overlap import seen_before
from noisyteacher.pipeline.pacing import Pace
from noisyteacher.pipeline.plan import (
    Networks,
    Plan,
    called,
    considered,
    data_record,
    folder_for,
    lasting,
    module_record,
    network_name,
    noise_of,
    refuse_early,
    run_title,
    settled,
    to_choose,
)
from noisyteacher.pipeline.result import Result
from noisyteacher.pipeline.rows import measured, row_of
from noisyteacher.pipeline.searching import choose_student
from noisyteacher.pipeline.steps import hash_images, load_config_data
from noisyteacher.pipeline.summary import warnings_of
from noisyteacher.pipeline.training import Trained, errors_kept
from noisyteacher.progress import Watch, message, reported, stage, whole_watch
from noisyteacher.runs import Run
from noisyteacher.store import LogitStore

CLOCK = time.monotonic


def compress(
    teacher: str | nn.Module,
    student: str | nn.Module,
    data: Any,
    *,
    noise: Noise | str | None = None,
    seeds: int = 1,
    baselines: bool = True,
    loss: str | None = None,
    temperature: float | None = None,
    label_weight: float | str | None = None,
    target: Mapping[str, Any] | None = None,
    export: Sequence[str] = (),
    teacher_training: Mapping[str, Any] | None = None,
    output_dir: str | os.PathLike[str] = "runs",
    run: str | os.PathLike[str] | None = None,
    device: str = "auto",
    tensorboard: bool = False,
    allow_import: bool = False,
    checks: bool = True,
    progress: bool | Watch | None = True,
    **training: Any,
) -> Result:
    """The whole way in one call: teacher, stored logits, students over `seeds`, costs, a table, a run folder.

    teacher: a trained nn.Module, a run folder, a weights file, an ONNX model or a torch.export program, `hf:NAME` with
    its weights, or the name of another network, which is trained first (with the options `teacher_training` of `fit`;
    `weights` there, a file with its trained weights, stands for training, unless it is for other classes: all but its
    head is then where the training starts).
    student: a name, `pkg.module:factory`, or an nn.Module (every seed then starts from its weights). data: anything
    `load_data` takes. noise: the noise on the logits; None distils without noise; "auto" chooses sigma
    and alpha on validation, no noise among the candidates.
    baselines: also train the same students on labels and without noise, with the same seeds, so that the
    verdict can be paired. training: options of `fit` for the students, and `preset` ("standard", "paper", "modern"),
    which decides what is not named here, `loss` and `label_weight` included.
    target: with student "auto", what it may cost, as settings of `[target]`: `{"macs": "4x", "bytes": "8x"}`; the
    student is then chosen on validation. export: formats to write of the student that is best on validation ("onnx",
    "onnx-int8", "pte", "pte-int8", "pt2", "hub"), into the run's folder `best`, where its weights and its model card
    lie in any case. A format that fails is told in the result (`failed`) and costs no other.
    run: the folder of an interrupted call with the same arguments, to go on with it. allow_import: a teacher's file may
    name a factory, which is then imported and called, or be a torch.export program. checks: whether a check before the
    first step that does not hold ends the run; else it is noted in `.checks`. progress: True shows on stderr what is
    being done (a live line in a terminal, elsewhere a few plain ones), False shows nothing, a callable is told (stage,
    done, in all, note), where the stages `plan` and `warning` are sentences.
    Raises NoisyTeacherError; what was done before stays in the run folder.
    """
    if not (noise is None or isinstance(noise, Noise) or noise == "auto"):
        raise UsageError(f"noise={noise!r}: expected an nt.Noise, None, or 'auto'")
    named_by_user = {"loss": loss, "label_weight": label_weight}
    started = CLOCK()
    asked = build_config(
        {
            "noise": {"sigma": "auto", "alpha": "auto"},
            "teacher": {"name": called(teacher), **_listed(teacher_training or {})},
            "student": {
                "name": called(student), "temperature": temperature, **_listed(training),
                **{name: value for name, value in named_by_user.items() if value is not None},
            },
            "run": {
                "seeds": seeds, "baselines": baselines, "output_dir": os.fspath(output_dir), "device": device,
                "tensorboard": tensorboard, "export": list(export), "checks": checks,
            },
            "target": dict(target or {}),
        }
    )  # fmt: skip
    with reported(progress, whole_watch, delay_s=0.0) as watch:
        return _from_python(asked, teacher, student, data, noise, run, allow_import, watch, started)


def _from_python(
    asked: Config, teacher: str | nn.Module, student: str | nn.Module, data: Any, noise: Noise | str | None,
    run: str | os.PathLike[str] | None, allow_import: bool, watch: Watch | None, started: float,
) -> Result:  # fmt: skip
    """What `compress` does once its settings are checked."""
    with stage(watch, "reading the data"):
        splits = load_data(data)
    hash_images(splits, watch)
    config = settled(to_choose(asked), splits, label_weight=False)
    settings = describe(config) | {
        "call": "python",
        "data": data_record(splits),
        "noise": noise.describe() if isinstance(noise, Noise) else noise,
    }
    modules = {"teacher": teacher, "student": student}
    settings |= {f"{role}_module": module_record(one) for role, one in modules.items() if isinstance(one, nn.Module)}
    candidates = noise_of(config.noise, config.choice)[1] if noise == "auto" else ()
    named = noise_of(NoiseSettings(**asdict(noise)), config.choice)[0] if isinstance(noise, Noise) else None
    networks = refuse_early(teacher, student, splits, config, allow_import)
    search, warnings = considered(networks, student, splits, config, watch)
    _warn(watch, warnings)
    title = run_title(called(student), network_name(teacher), splits.name)
    folder = folder_for(run, config.run.output_dir, called(student), settings, None, title)
    return _compress(
        Plan(
            config, splits, teacher, student, named, candidates, settings, folder, watch, allow_import, search, warnings
        ),
        networks,
        started,
    )  # fmt: skip


def compress_config(
    config: Config,
    *,
    command: str | None = None,
    run: Run | None = None,
    begun: Callable[[Run], None] | None = None,
    watch: Watch | None = None,
    allow_import: bool = False,
) -> Result:
    """The same as `compress`, asked by a Config. `run` is an interrupted one to go on with; `begun` is told the run."""
    started, data = CLOCK(), load_config_data(config, watch)
    config = settled(to_choose(config), data, label_weight=False)
    noise, candidates = noise_of(config.noise, config.choice)
    settings = describe(config)
    teacher, student = config.teacher.name, config.student.name
    networks = refuse_early(teacher, student, data, config, allow_import)
    search, warnings = considered(networks, student, data, config, watch)
    _warn(watch, warnings)
    title = run_title(student, network_name(teacher), data.name)
    folder = folder_for(run, config.run.output_dir, student, settings, command, title)
    if begun is not None:
        begun(folder)
    return _compress(
        Plan(
            config, data, teacher, student, noise, candidates, settings, folder, watch, allow_import, search, warnings
        ),
        networks,
        started,
    )  # fmt: skip


def resume_compress(
    run: Run,
    begun: Callable[[Run], None] | None = None,
    watch: Watch | None = None,
    allow_import: bool = False,
) -> Result:
    """Go on with an interrupted compression from its own config.json; one that is done is only read."""
    if run.info["kind"] != "compress":
        raise UsageError(f"{run.path}: a {run.info['kind']} run, not a compression: nothing to resume here")
    if run.config.get("call") == "python":
        raise UsageError(f"{run.path}: was started in Python: call compress(..., run={str(run.path)!r}) there again")
    done = run.result()
    if done is not None:
        return Result.read(run.path, done)
    return compress_config(
        build_config(run.config, unused_noise=True), run=run, begun=begun, watch=watch, allow_import=allow_import
    )


def _compress(plan: Plan, networks: Networks, started: float) -> Result:
    with shared_lock(*plan.run.around, plan.run.path), errors_kept(plan.run):
        pace = Pace(plan, networks, started, CLOCK)
        result = _steps(pace.begin(), pace)
        plan.run.write_result(result.describe())
    return result


def _warn(watch: Watch | None, sentences: Sequence[str]) -> None:
    """Show warnings at once, besides keeping them in the result."""
    for sentence in sentences:
        message(watch, "warning", sentence)


def _steps(plan: Plan, pace: Pace) -> Result:
    for line in outline(plan):
        message(plan.watch, "plan", line)
    tries, formats, watch = pace.whole.tries, plan.config.run.export, plan.watch
    titles = titles_of(plan.config.student)
    total = 2 + tries + planned(plan) + len(conditions_of(plan)) * plan.config.run.seeds + bool(formats)
    total += takes_short_run(plan)
    teacher = the_teacher(plan, f"[1/{total}] teacher {called(plan.teacher)}")
    started = time.monotonic()
    answers = its_answers(plan, teacher.model, f"[2/{total}] teacher's logits")
    answers |= further_answers(plan, "teacher")
    extraction_s = time.monotonic() - started
    number, noise, choice, search = 2, plan.noise, None, None
    with stage(watch, CHECKING_TEACHER):
        checks = checked_teacher(plan, teacher, answers)
    warning: str | None = None
    if takes_short_run(plan):
        number += 1
        epochs = short(pace.decided.student_epochs, pace.decided.try_epochs)
        brief = short_student(plan, answers, epochs, f"[{number}/{total}] {titles['labels']}, short")
        warning = warned_of_teacher(plan, answers, brief)
        plan = with_label_weight(plan, answers, brief)
    if plan.search is not None:
        plan, search = choose_student(plan, answers, (number, total), pace)
        _warn(watch, plan.warnings)
        number += tries
    else:
        work = pace.again("student", replace(pace.whole, teacher_epochs=0, comparisons=0))
        plan = replace(plan, config=replace(plan.config, student=lasting(plan.config.student, work.student_epochs)))
    first = plan.candidates[-1] if plan.candidates else plan.noise
    with stage(watch, CHECKING_STUDENT):
        checks += checked_lesson(
            plan.config, plan.data, plan.student, first, taught_by(plan, answers)[0], teacher.model
        )
    on_labels: Trained | None = None
    if "labels" in controls(plan):
        number += 1
        title = f"[{number}/{total}] {titles['labels']}, seed 0"
        on_labels = a_student(plan, "labels-seed0", "labels", None, 0, answers, title)
        if comparable(plan):
            warning = warned_of_teacher(plan, answers, on_labels) or warning
            plan = with_label_weight(plan, answers, on_labels)
    if plan.candidates:
        if pace.decided.noise_epochs is not None:  # as many as the time allows
            trials = replace(plan.config.choice, epochs=pace.decided.noise_epochs)
            plan = replace(plan, config=replace(plan.config, choice=trials))
        noise, choice = choose_noise(plan, answers, (number, total))
        number += planned(plan)
    students = {**dict.fromkeys(controls(plan)), "noisy" if noise is not None else "clean": noise}
    trained: dict[str, list[Trained]] = {name: [] for name in students}
    for seed in range(plan.config.run.seeds):
        for name, its_noise in students.items():
            if name == "labels" and seed == 0 and on_labels is not None:
                trained[name].append(on_labels)
                continue
            number += 1
            title = f"[{number}/{total}] {titles[name]}, seed {seed}"
            trained[name].append(a_student(plan, f"{name}-seed{seed}", name, its_noise, seed, answers, title))
    best, record = best_student(plan, teacher, trained)
    overlap = seen_before(teacher.result.get("trained_on"), plan.data)
    warnings = [*plan.warnings, *(one for one in (warning, overlap) if one is not None)]
    record |= write_best(plan, best, f"[{total}/{total}] export", caveats=[overlap] if overlap else [])
    role = "val" if plan.data.test is None else "test"
    with stage(watch, "measuring costs"):
        costs = {
            name: measured(plan, name, model, warnings)
            for name, model in (("teacher", teacher.model), ("student", best.model))
        }
    rows = [row_of("teacher", f"teacher {called(plan.teacher)}", [teacher], costs["teacher"], role, plan.run)]
    rows += [row_of(name, titles[name], found, costs["student"], role, plan.run) for name, found in trained.items()]
    n = len(plan.data.val if plan.data.test is None else plan.data.test)
    noise_record = None if noise is None else noise.describe()
    stores = [one.path for one in (answers.get("train"), answers.get(role)) if isinstance(one, LogitStore)]
    place = os.path.relpath(stores[0], plan.run.path)
    scored = "error" if plan.data.parts[role].labels is not None else "disagreement"
    result = Result(
        plan.run.path,
        plan.data.name,
        role,
        n,
        tuple(rows),
        noise_record,
        extraction_s,
        place,
        choice,
        search=search,
        best=record,
        checks=tuple(checks),
        scored=scored,
        warnings=tuple(warnings),
        time=pace.record(plan.config.student, None if search is None else len(search["tried"])),
    )
    return replace(result, warnings=(*result.warnings, *warnings_of(result)))


def _listed(training: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `fit` as settings hold them: views as a list."""
    if "views" not in training:
        return dict(training)
    views = training["views"]
    return {**training, "views": views.split(",") if isinstance(views, str) else list(views)}
