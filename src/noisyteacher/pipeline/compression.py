"""The whole way: a teacher, its logits, students, their costs and errors, and the best student as files."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from noisyteacher import bench
from noisyteacher.config import Config, Teacher, TrainSettings, Values, build_config, describe
from noisyteacher.data import Splits, expand_views, load_data
from noisyteacher.device import AUTO, check_count, cpu_threads, refuse_autocast, refuse_no_gradients, resolve_device
from noisyteacher.distributed import world
from noisyteacher.errors import NoisyTeacherError, UsageError
from noisyteacher.export import FORMATS, check_formats, check_packages, fake_quantized
from noisyteacher.export.card import BENCH
from noisyteacher.io.files import Json, make_folder, write_bytes
from noisyteacher.models import PREFIX, Classifier, as_classifier, is_onnx_file
from noisyteacher.noise import Noise
from noisyteacher.objectives import distil
from noisyteacher.pipeline import experiment as steps
from noisyteacher.pipeline import preflight, pretrained, resolve
from noisyteacher.pipeline.class_order import Check
from noisyteacher.pipeline.compression_result import Result, judged
from noisyteacher.pipeline.experiment import Experiment, StudentTask, TrainedModel
from noisyteacher.pipeline.fairness import regime_of
from noisyteacher.pipeline.handover import choose_best, train_twin, write_best
from noisyteacher.pipeline.latency import TEACHER, Timings, read_record, timed_format, write_networks
from noisyteacher.pipeline.noise_choice import choose_noise, number_of_trials
from noisyteacher.pipeline.plan import measure_speeds, outline
from noisyteacher.pipeline.pretrained import build_network, display_name
from noisyteacher.pipeline.resolve import LABEL_WEIGHT, WEAK_TEACHER_LABEL_WEIGHT, with_epochs
from noisyteacher.pipeline.results import condition_of, run_name
from noisyteacher.pipeline.search import (
    StudentSearch,
    costs_of,
    larger_than_teacher,
    limited,
    price_candidates,
    search_student,
    within_latency,
)
from noisyteacher.pipeline.timing import MOST_EPOCHS, Pace, Speeds, StageTitles, Work
from noisyteacher.progress import Watch, message, reported, stage
from noisyteacher.runs import Run, as_json, is_run, new_run
from noisyteacher.store import LogitStore

CLOCK = time.monotonic
SHORT_RUN = "labels-short"
"""The child run of a short student on labels, which the teacher is compared with."""


def compress(
    teacher: str | os.PathLike[str] | nn.Module,
    student: str | os.PathLike[str] | nn.Module,
    data: Any,
    *,
    noise: Noise | str | None = None,
    seeds: int = 1,
    baselines: bool = True,
    loss: str | None = None,
    temperature: float | None = None,
    label_weight: float | str | None = None,
    scale: str | None = None,
    target: Mapping[str, Any] | None = None,
    export: str | Sequence[str] = (),
    teacher_training: Mapping[str, Any] | None = None,
    output_dir: str | os.PathLike[str] = "runs",
    run: str | os.PathLike[str] | None = None,
    device: str = "auto",
    track: str | Sequence[str] = (),
    allow_import: bool = False,
    checks: bool = True,
    jobs: int = 1,
    progress: bool | Watch | None = True,
    **training: Any,
) -> Result:
    """The whole way in one call: teacher, stored logits, students over `seeds`, costs, a table, a run folder.

    teacher: a trained nn.Module, a run folder, a weights file, an ONNX model, `hf:NAME` with its weights, or the name
    of another network, which is trained first with the options `teacher_training` of `fit` (`weights` there: a file
    with its trained weights, or, for other classes, with those of all but the head to start from).
    student: a name, `pkg.module:factory`, or an nn.Module (every seed then starts from its weights). data: anything
    `load_data` takes. noise: None distils without; "auto" chooses sigma and alpha, or no noise, on validation.
    baselines: also train the same students, with the same seeds, on labels and without noise, for a paired verdict.
    training: options of `fit` for the students, and `preset` ("standard", "paper", "modern", "patient"), which decides
    what is not named here, `loss` and `label_weight` included.
    target: what a student "auto", chosen on validation, may cost, as in `[target]`: `{"macs": "4x", "bytes": "8x"}`.
    export: formats to write of the student that is best on validation ("onnx", "tflite-int8", any of `export.FORMATS`)
    into the run's folder `best`, beside its weights and model card. Failed formats are in the result (`failed`).
    run: the folder of an interrupted call with the same arguments, to resume it. track: as in `fit`. allow_import: a
    teacher's file may name a factory, which is then imported and called. checks: whether a failed check before the
    first step ends the run; else it is recorded in `.checks`. jobs: processes that train students. progress: True shows
    progress on stderr, False shows nothing, a callable receives (stage, done, total, note), where the stages `plan` and
    `warning` are sentences.
    Raises NoisyTeacherError; what was done before stays in the run folder.
    """
    started = CLOCK()
    teacher, student = _model_or_name(teacher, "teacher"), _model_or_name(student, "student")
    if not (noise is None or isinstance(noise, Noise) or noise == AUTO):
        raise UsageError(f"noise={noise!r}: expected an nt.Noise, None, or 'auto'")
    distillation = {"temperature": temperature, "loss": loss, "label_weight": label_weight, "scale": scale}
    settings: Values = {
        "teacher": {"name": display_name(teacher), **(teacher_training or {})},
        "student": {"name": display_name(student), **training},
        "noise": asdict(noise) if isinstance(noise, Noise) else {"sigma": AUTO, "alpha": AUTO} if noise else {},
        "target": dict(target or {}),
        "run": {"seeds": seeds, "baselines": baselines, "output_dir": os.fspath(output_dir), "device": device},
    }
    settings["student"] |= {name: value for name, value in distillation.items() if value is not None}
    settings["run"] |= {"export": [export] if isinstance(export, str) else list(export), "checks": checks}
    settings["run"]["track"] = [track] if isinstance(track, str) else list(track)
    for part in ("teacher", "student"):
        if isinstance(views := settings[part].get("views"), str):
            settings[part]["views"] = views.split(",")
    config = build_config(settings, unused_noise=True)
    if run is not None and not is_run(Path(run)):
        raise UsageError(f"{run}: not a run folder: leave run= out to start a new run")
    interrupted = None if run is None else Run.open(Path(run))
    refuse_autocast(resolve_device(device))
    refuse_no_gradients()
    with reported(progress, delay_s=0.0) as on_progress:
        with stage(on_progress, "reading the data"):
            splits = load_data(data)
            record: Json = {"call": "python", "data": steps.data_record(splits)}
        if run is None:
            pretrained.refuse_teacher_training(teacher, teacher_training or {}, config, splits)
        record["noise"] = noise.describe() if isinstance(noise, Noise) else noise
        for role, model in (("teacher", teacher), ("student", student)):
            if isinstance(model, nn.Module):
                record[f"{role}_module"] = steps.module_record(model)
        return _compress_in_run(
            config, splits, teacher, student, record, started, run=interrupted, on_progress=on_progress,
            allow_import=allow_import, jobs=jobs,
        )  # fmt: skip


def _model_or_name(model: object, role: str) -> str | nn.Module:
    if not isinstance(model, (str, os.PathLike, nn.Module)):
        raise UsageError(f"{role}={model!r}: expected a network's name, the path of a trained model, or an nn.Module")
    return model if isinstance(model, nn.Module) else os.fspath(model)


def compress_config(config: Config, *, started: float | None = None, **options: Any) -> Result:
    """The same as `compress`, by a Config.

    started: the value of `time.monotonic` from which the minutes count (by default now). options: `run`, an interrupted
    run to resume; `on_run_created`, called with the run; `on_progress`, `command`, `allow_import`, `jobs`.
    """
    started = CLOCK() if started is None else started
    with cpu_threads(config.run.threads):
        data = resolve.load_config_data(config, options.get("on_progress"))
        return _compress_in_run(config, data, config.teacher.name, config.student.name, {}, started, **options)


def resume_compress(run: Run, **options: Any) -> Result:
    """Resume an interrupted compression with the settings of its own config.json; a finished run is only read.

    options: as those of `compress_config`.
    """
    if run.info["kind"] != "compress":
        raise UsageError(f"{run.path}: a {run.info['kind']} run, not a compression: nothing to resume here")
    if run.config.get("call") == "python":
        raise UsageError(f"{run.path}: was started in Python: call compress(..., run={str(run.path)!r}) there again")
    if (result := run.result()) is not None:
        return Result.read(run.path, result)
    return compress_config(build_config(run.config, unused_noise=True), run=run, **options)


def _compress_in_run(
    config: Config,
    data: Splits,
    teacher: str | nn.Module,
    student: str | nn.Module,
    record: Json,
    started: float,
    *,
    run: Run | None = None,
    on_progress: Watch | None = None,
    allow_import: bool = False,
    command: str | None = None,
    on_run_created: Callable[[Run], None] | None = None,
    jobs: int = 1,
) -> Result:
    """The result of a compression in a new run, or in an interrupted one.

    record: what config.json holds beside or in place of the settings. started: the time of CLOCK when it was called.
    """
    check_count("jobs", jobs)
    if config.run.control_seeds is not None:
        raise UsageError("run.control_seeds: has no effect on a compression, only on a sweep: leave it out")
    if run is not None:
        config = resolve.with_recorded_choices(config, run.config)
    config = resolve.resolve_auto(resolve.with_student_to_choose(config), data, decide_label_weight=False)
    student = config.student.name if student == "" else student
    record = describe(config) | record
    noise, candidates = resolve.resolve_noise(config.noise, config.choice)
    teacher_network, network = build_models(teacher, student, data, config, allow_import)
    search, warning, name = None, None, display_name(student)
    if network is None:
        with stage(on_progress, "pricing candidate networks"):
            search = price_candidates(config, teacher_network, data)
    else:
        if not config.student.decay_biases:  # refused where the network decides for an optimizer that decays none
            resolve.fit_options(config.student, network, data)
        with suppress(UsageError):  # a network that cannot be measured
            costs = [limited(costs_of(model, data)) for model in (network, teacher_network)]
            warning = larger_than_teacher(name, *costs)
    if run is None:
        if config.target.latency_record:
            read_record(config.target.latency_record)  # a damaged file is refused before a folder is made
        title = pretrained.run_title(name, pretrained.network_name(teacher), data.name)
        run = new_run(config.run.output_dir, "compress", name, record, command=command, title=title)
    else:
        resolve.refuse_other_settings(run, as_json(record, "config"))
    if on_run_created is not None:
        on_run_created(run)
    experiment = Experiment(
        config=config,
        data=data,
        teacher=teacher,
        student=student,
        run=run,
        on_progress=on_progress,
        allow_import=allow_import,
        noise=noise,
        noise_candidates=candidates,
    )
    with run.lock(shared=True), steps.errors_recorded(run):
        timings = None if config.target.latency is None else Timings(config, data, teacher_network, run)
        if search is not None and timings is not None:
            with stage(on_progress, "timing candidate networks"):
                build = partial(build_network, config.student, data=data, teacher=teacher_network)
                search = within_latency(search, timings, build)
        compression = Compression(experiment, search, teacher_network, started, jobs, timings)
        compression.warn(warning)
        result = compression.compress()
        run.write_result(result.describe())
    return result


def write_candidates(
    config: Config, folder: Path, on_progress: Watch | None = None, allow_import: bool = False
) -> list[Path]:
    """Write the teacher and the networks that `compress_config` would choose from, untrained, with what times them.

    The files are for `bench` on a device, whose record is `target.latency_record`. Raises UsageError without a limit
    on the latency, and where a student is named.
    """
    config = resolve.with_student_to_choose(config)
    if config.target.latency is None or config.student.name != AUTO or config.target.latency_record:
        problem = "they are for a student to be chosen by a latency that is yet to be measured"
        raise UsageError(f"candidates: {problem}: say target.latency, and neither a student nor a latency_record")
    if os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder}: is not an empty folder, and nothing in it is overwritten: name another one")
    data = resolve.load_config_data(config, on_progress)
    config = resolve.resolve_auto(config, data, decide_label_weight=False)
    teacher, _ = build_models(config.teacher.name, AUTO, data, config, allow_import)
    with stage(on_progress, "pricing candidate networks"):
        search = price_candidates(config, teacher, data)
    names = [candidate.name for candidate in search.fitting]
    networks = {name: build_network(config.student, name, data, teacher=teacher) for name in names}
    make_folder(folder)
    with stage(on_progress, "writing candidate networks"):
        files, _ = write_networks({TEACHER: teacher, **networks}, folder, config, data)
    write_bytes(folder / BENCH, Path(bench.__file__).read_bytes())
    return list(files.values())


def build_models(
    teacher: str | nn.Module, student: str | nn.Module, data: Splits, config: Config, allow_import: bool = False
) -> tuple[Classifier, Classifier | None]:
    """The teacher, with its weights where it is trained already, and the student, None where it is to be chosen.

    Raises what a wrong name would raise later, before a folder is made or a teacher trained.
    """
    resolve_device(config.run.device)
    check_formats(config.run.export)
    if config.student.qat_epochs:
        check_packages("student.qat_epochs")
        if world().size > 1:
            raise UsageError("student.qat_epochs: quantization-aware training runs in one process: leave it out")
    for recipe in (config.teacher, config.student):
        expand_views(recipe.views)
    weight, unlabelled = config.student.label_weight, ", ".join(resolve.unlabelled_roles(data))
    if unlabelled and weight not in (0.0, AUTO):
        raise UsageError(f"student.label_weight: {data.name!r} has no labels in {unlabelled}: leave {weight} out")
    teachers = pretrained.teachers_of(teacher, config)
    first, *_ = [_build_teacher(model, settings, data, allow_import) for model, settings in teachers]
    if student == AUTO:
        return first, None
    if isinstance(student, nn.Module) and any(isinstance(part, torch.jit.ScriptModule) for part in student.modules()):
        raise UsageError("the student has a torch.jit module, which cannot be copied for every seed: pass it as Python")
    network = build_network(config.student, student, data, teacher=first)
    check_formats(config.run.export, network)
    if config.student.qat_epochs:
        fake_quantized(network, data)  # raises what it would raise after all trainings
    return first, network


def _build_teacher(model: str | nn.Module, settings: Teacher, data: Splits, allow_import: bool) -> Classifier:
    """A teacher, with its weights where it is trained already. Raises UsageError for settings without effect."""
    if isinstance(model, nn.Module):
        if settings.weights:
            raise UsageError("teacher.weights: has no effect on a module that is passed in: leave it out")
        return pretrained.in_order(build_network(settings, model, data), settings)
    if pretrained.is_pretrained(model, settings, data):
        names = ("options",) if is_onnx_file(model) else ("options", "preprocess", "mean", "std")
        unused = next((name for name in names if getattr(settings, name)), None)
        if unused is not None and pretrained.is_model_path(model):
            raise UsageError(f"teacher.{unused}: has no effect on {model}, which is built already: leave it out")
        return pretrained.load_teacher(model, data, allow_import, settings)[0]
    if settings.class_order:
        raise UsageError(f"teacher.class_order: has no effect on {model!r}, which is trained here: leave it out")
    if data.train.labels is None:
        raise UsageError(f"teacher {model!r}: {data.name!r} has no labels to train it on: give a trained teacher")
    return build_network(settings, model, data)


class Compression:
    """A compression under way: its steps in order, and what they leave for the next."""

    def __init__(
        self,
        experiment: Experiment,
        search: StudentSearch | None,
        teacher_network: Classifier,
        started: float,
        jobs: int = 1,
        timings: Timings | None = None,
    ) -> None:
        config, data = experiment.config, experiment.data
        self.experiment, self.search, self.jobs, self.timings = experiment, search, jobs, timings
        self.comparable = data.train.labels is not None and data.val.labels is not None
        self.pace = self._pace(teacher_network, started)
        self.final_stages = bool(config.student.qat_epochs) + bool(config.run.export)
        self.trained: dict[str, list[TrainedModel]] = {}
        self.checks: list[Check] = []
        self.warnings: list[str] = []
        self.search_record: Json | None = None
        self.choice: Json | None = None
        self.best_noise = experiment.noise
        """The noise that students are trained under; where validation chose none, the best of those it tried."""

    def compress(self) -> Result:
        """All steps, from the plan to the result."""
        self.plan()
        self.prepare_teacher()
        self.choose_student()
        self.check_first_step()
        self.train_on_labels()
        self.choose_noise()
        self.train_students()
        self.hand_over()
        return self.result()

    def plan(self) -> None:
        """Fit the teacher's epochs and the views into the time, and say what is about to be done."""
        experiment, config, work = self.experiment, self.experiment.config, self.pace.begin()
        student, self.short_run = config.student, work.labels_epochs > 0
        if work.views < self.pace.whole.views:
            student = replace(student, views=list(expand_views(student.views)[: work.views]))
        teacher = with_epochs(config.teacher, work.teacher_epochs or config.teacher.epochs)
        self.experiment = replace(experiment, config=replace(config, teacher=teacher, student=student))
        tries, trials = self.pace.whole.tries, number_of_trials(self.experiment)
        trainings = trials + len(experiment.conditions) * config.run.seeds + self.short_run
        self.stages = StageTitles(2 + tries + trainings + self.final_stages)
        for line in outline(self.experiment, work.tries, trials, self.short_run, work.student_epochs):
            message(experiment.on_progress, "plan", line)

    def prepare_teacher(self) -> None:
        """Load or train the teacher, store its logits, check both."""
        experiment = self.experiment
        self.teacher = steps.prepare_teacher(
            experiment, self.stages.next(f"teacher {display_name(experiment.teacher)}")
        )
        started = time.monotonic()
        self.logits = steps.extract_logits(experiment, self.teacher.model, self.stages.next("teacher's logits"))
        self.extraction_s = time.monotonic() - started
        more_logits, more_teachers = steps.extract_more_teachers(experiment, "teacher")
        self.logits |= more_logits
        with stage(experiment.on_progress, preflight.CHECKING_TEACHER):
            self.checks += preflight.check_teacher(experiment, self.teacher, self.logits, more_teachers)

    def choose_student(self) -> None:
        """Choose the student where it is not named, and fit its epochs into the time.

        A short student on labels goes first where the choice, or training without baselines, depends on the teacher.
        """
        recipe, work = self.experiment.config.student, self.pace.decided
        if self.short_run:
            recipe = with_epochs(recipe, work.labels_epochs)
            short = self.experiment.with_recipe(recipe)
            if self.search is not None:
                short = self.experiment.with_student(self.search.fitting[0].name, recipe)
            title = self.stages.next(f"{self.experiment.titles['labels']}, short")
            student = steps.train_student(StudentTask(short, SHORT_RUN, "labels", None, 0, self.logits, title))
            self._compare_teacher(student, short)
        if self.search is None:
            speeds = () if self.pace.speeds is None else self.pace.speeds.students
            if self.short_run and speeds:
                training = student.result["training"]
                speeds = (max(training["seconds"] / training["epochs"], *speeds),)
            recipe, epochs = self.experiment.config.student, self.pace.again("student", speeds).student_epochs
            self.experiment = self.experiment.with_recipe(with_epochs(recipe, epochs))
            return
        outcome = search_student(self.experiment, self.search, self.logits, self.stages, self.pace)
        self.experiment, self.search_record = outcome
        chosen = next(network for network in self.search.candidates if network.name == self.experiment.student)
        self.warn(larger_than_teacher(chosen.name, vars(chosen), self.search.teacher))

    def check_first_step(self) -> None:
        """Check what the student would learn in its first step."""
        experiment = self.experiment
        with stage(experiment.on_progress, preflight.CHECKING_STUDENT):
            source = steps.distillation_source(experiment, self.logits)
            student = steps.first_student(experiment, self.logits)
            objective = distil(source, noise=experiment.noise, **resolve.distill_options(experiment.config))
            self.checks += preflight.check_first_step(experiment.config, experiment.data, objective, student)

    def train_on_labels(self) -> None:
        """Train the first student on labels, before anything is distilled, to see whether the teacher is better."""
        if "labels" in self.experiment.controls:
            self.trained["labels"] = [steps.train_student(self._task("labels", 0))]
            if self.comparable:
                self._compare_teacher(self.trained["labels"][0])

    def choose_noise(self) -> None:
        """Choose on validation the noise where it is not named, and the recipes of clean and noisy students."""
        if self.experiment.noise_candidates:
            config, epochs = self.experiment.config, self.pace.decided.noise_epochs
            config = replace(config, choice=replace(config.choice, epochs=epochs or config.choice.epochs))
            experiment = replace(self.experiment, config=config)
            self.experiment, self.choice = choose_noise(experiment, self.logits, self.stages, self.jobs)
            best = self.choice["noisy"]
            self.best_noise = next(
                noise
                for noise in experiment.noise_candidates
                if all(noise.describe()[name] == best[name] for name in ("sigma", "alpha"))
            )

    def train_students(self) -> None:
        """Train the students of all conditions, seed by seed."""
        conditions = self.experiment.conditions
        todo = [
            self._task(condition, seed)
            for seed in range(self.experiment.config.run.seeds)
            for condition in conditions
            if seed >= len(self.trained.get(condition, []))
        ]
        steps.train_ahead(todo, self.jobs, "training the students")
        for task in todo:
            self.trained.setdefault(task.condition, []).append(steps.train_student(task))
        self.trained = {condition: self.trained[condition] for condition in conditions}

    def hand_over(self) -> None:
        """Choose the best student on validation and write it as files."""
        self.best, self.best_record = choose_best(self.experiment, self.teacher, self.trained)
        who = "the teacher, and through its weights the student," if self.experiment.inherits else "the teacher"
        sources = {who: self.teacher.result.get("trained_on")}
        student = self.experiment.student
        if isinstance(student, str) and student.startswith(PREFIX):
            sources["the start of the student"] = pretrained.trained_on(student)
        overlaps = [pretrained.seen_before(source, self.experiment.data, who) for who, source in sources.items()]
        caveats = [overlap for overlap in overlaps if overlap is not None]
        self.warnings += caveats
        self.stages.number, twin = self.stages.total - self.final_stages, None
        if self.experiment.config.student.qat_epochs:
            condition, title = self.best_record["condition"], self.stages.next("quantization-aware training")
            try:
                twin, self.best_record["qat"] = train_twin(self.experiment, self.best, condition, self.logits, title)
            except NoisyTeacherError as error:  # the student is trained all the same
                self.warn(f"quantization-aware training failed, files in int8 are calibrated alone: {error}")
        title = self.stages.next("export")
        self.best_record["files"], self.failed = write_best(self.experiment, self.best, title, caveats, twin)
        if self.timings is not None:
            self.best_record["latency"] = self._latency(self.timings, self.best_record["files"])

    def _latency(self, timings: Timings, files: Sequence[Json]) -> Json | None:
        """The latency of the student's file beside the limit; None where that file could not be written."""
        form = FORMATS[timed_format(self.experiment.config)]
        timed = (file for file in files if (file["format"], file["precision"]) == (form.kind, form.precision))
        file = next(timed, None)
        if file is None:
            return None
        with stage(self.experiment.on_progress, "timing the student's file"):
            path = self.experiment.run.path / file["path"]
            timing = timings.of_file(file["sha256"], path, as_classifier(self.best.model))
        return None if timing is None else timing.describe()

    def result(self) -> Result:
        """Measure the costs, and judge the noise."""
        experiment, data, noise = self.experiment, self.experiment.data, self.experiment.noise
        teacher, student = pretrained.network_name(experiment.teacher), display_name(experiment.student)
        role = "val" if data.test is None else "test"
        stores = [source.path for source in map(self.logits.get, ("train", role)) if isinstance(source, LogitStore)]
        costs, conditions = [], []
        with stage(experiment.on_progress, "measuring costs"):
            for name, model in (("teacher", self.teacher.model), ("student", self.best.model)):
                measured, warning = steps.measure_costs(model, data, experiment.config.run.device, name)
                costs.append(measured)
                self.warnings += [warning] if warning else []
        noise_record = None if noise is None else noise.describe()
        for name, models in {"teacher": [self.teacher], **self.trained}.items():
            kind, _, family = name.partition("-")
            settings = {f"noise.{key}": value for key, value in (noise_record or {}).items() if kind == "noisy"}
            if kind in experiment.recipes:
                recipe = experiment.recipe(name)
                settings |= {"student.lr": recipe.lr, "student.weight_decay": recipe.weight_decay}
            condition = condition_of(
                name,
                experiment.titles.get(name, f"teacher {teacher}"),
                kind,
                {seed: model.result for seed, model in enumerate(models)},
                [os.path.relpath(model.run.path, experiment.run.path) for model in models],
                model=teacher if kind == "teacher" else student,
                settings=settings,
                family=family,
                data=data.name,
                costs=costs[kind != "teacher"],
            )
            conditions.append(condition)
        tried = None if self.search_record is None else len(self.search_record["tried"])
        result = Result(
            kind="compress",
            path=experiment.run.path,
            data=data.name,
            n={role: len(split) for role, split in data.parts.items()},
            role=role,
            teachers=(conditions[0],),
            conditions=tuple(conditions[1:]),
            noise=noise_record,
            choice=self.choice,
            search=self.search_record,
            best=self.best_record,
            failed=self.failed,
            checks=tuple(check.describe() for check in self.checks),
            warnings=tuple(self.warnings),
            time=self.pace.describe(experiment.config.student.epochs, tried),
            store=os.path.relpath(stores[0], experiment.run.path),
            extraction_s=self.extraction_s,
            regime=self._regime(),
        )
        return judged(result)

    def _regime(self) -> Json | None:
        """Of every noisy condition what says whether its question was fair (`regime_of`); None without noise.

        Where validation chose no noise, of the clean condition, as if with the best noise that was tried.
        """
        experiment, noise = self.experiment, self.best_noise
        if noise is None:
            return None
        combine = experiment.config.student.combine
        source = distil(steps.distillation_source(experiment, self.logits), scale="rms", combine=combine)
        unit = source.prepared(experiment.data.train, expand_views(experiment.config.student.views)).unit
        records = {}
        kind = "clean" if experiment.noise is None else "noisy"
        for name in (name for name in self.trained if name.startswith(kind)):
            clean = self.trained.get(name.replace("noisy", "clean")) or self.trained[name]
            lines = [model.run.metrics()[-1] for model in clean]
            trained: Json = self.trained[name][0].run.config["recipe"]  # with what auto meant
            decided = {key: trained[key] for key in ("batch_size", "optimizer", "lr")}
            recipe = replace(experiment.recipe(name), **decided)
            records[name] = regime_of(recipe, noise, experiment.data.classes, unit, lines)
        return records

    def warn(self, warning: str | None) -> None:
        """Show a warning at once and keep it for the result."""
        if warning is not None:
            self.warnings.append(warning)
            message(self.experiment.on_progress, "warning", warning)

    def _task(self, condition: str, seed: int) -> StudentTask:
        experiment = self.experiment
        title = self.stages.next(f"{experiment.titles[condition]}, seed {seed}")
        noise = experiment.noise if condition.startswith("noisy") else None
        experiment = experiment.with_recipe(experiment.recipe(condition))
        return StudentTask(experiment, run_name(condition, seed), condition, noise, seed, self.logits, title)

    def _compare_teacher(self, student: TrainedModel, short: Experiment | None = None) -> None:
        """Warn where the teacher is worse than a student on labels, and decide the label weight that `auto` means.

        short: by which the student was trained, where that was a short run.
        """
        comparison = preflight.compare_teacher(short or self.experiment, self.logits, student, short is not None)
        self.warn(comparison.warning())
        recipe = self.experiment.config.student
        if recipe.label_weight == AUTO:
            weight = WEAK_TEACHER_LABEL_WEIGHT if comparison.weak else LABEL_WEIGHT
            self.experiment = self.experiment.with_recipe(replace(recipe, label_weight=weight))
            if comparison.weak:
                teacher_error, student_error = comparison.percentages
                reason = f"the teacher's validation error ({teacher_error}, n = {comparison.n:,}) is not below "
                reason += f"{preflight.GOOD_TEACHER:.0%} of that of a student on labels ({student_error})"
                words = f"label weight: {weight:g} instead of {LABEL_WEIGHT:g}, because {reason}"
                message(self.experiment.on_progress, "plan", words)

    def _pace(self, teacher_network: Classifier, started: float) -> Pace:
        """The pace of the compression. Speeds are measured where time is limited or progress is shown."""
        experiment, search, config = self.experiment, self.search, self.experiment.config
        minutes, several_processes = config.target.minutes, world().size > 1
        if minutes is not None and (several_processes or config.teacher.also):
            what = "a group of processes" if several_processes else "several teachers"
            raise UsageError(f"target.minutes: the time of {what} cannot be planned: leave it out")
        views = expand_views(config.student.views)
        compared = self.comparable and (search is not None or not config.run.baselines)
        to_try = [] if search is None else [network.name for network in search.fitting[: config.target.search]]
        of_the_recipe = tuple(views) == resolve.default_views(experiment.data, config.student.epochs)
        work = Work(
            teacher_epochs=0 if experiment.teacher_is_trained else config.teacher.epochs,
            student_epochs=config.student.epochs,
            students=len(experiment.conditions) * config.run.seeds,
            tries=len(to_try),
            try_epochs=None if search is None else config.target.epochs,
            noise_runs=number_of_trials(experiment),
            noise_epochs=config.choice.epochs,
            comparison_epochs=None if compared else 0,
            views=len(views) if of_the_recipe and not (experiment.live or config.student.every_view) else 0,
            most_epochs=MOST_EPOCHS if config.student.epochs == TrainSettings.epochs else 0,
        )

        def measure() -> Speeds | None:
            plannable = not (several_processes or config.teacher.also)
            timed = plannable and (experiment.on_progress is not None or minutes is not None)
            return measure_speeds(experiment, to_try, teacher_network, CLOCK) if timed else None

        return Pace(experiment.run, work, measure, minutes, experiment.on_progress, CLOCK, started)
