"""What a compression works on, and its steps: the teacher, its stored logits, a network trained in a run folder."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from noisyteacher import metrics, models
from noisyteacher.config import Config, Recipe, Student
from noisyteacher.data import Split, Splits, expand_views
from noisyteacher.device import resolve_device
from noisyteacher.distributed import on_rank_zero, peer_failure_as_error, world
from noisyteacher.errors import MismatchError, NoisyTeacherError, UsageError
from noisyteacher.evaluate import judge
from noisyteacher.extract import extract
from noisyteacher.io.files import Json, make_folder, sha256
from noisyteacher.measure import Costs, measure
from noisyteacher.noise import Noise
from noisyteacher.objectives import Distillation, Objective, distil, supervised
from noisyteacher.pipeline import pretrained
from noisyteacher.pipeline.pretrained import build_network, display_name
from noisyteacher.pipeline.resolve import distill_options, fit_options
from noisyteacher.process import cores, run_in_workers
from noisyteacher.progress import Watch, counted, counted_if_slow, message, stage
from noisyteacher.runs import LOGITS, WEIGHTS, Run, as_json
from noisyteacher.store import LogitStore
from noisyteacher.train import History, fit, fit_many
from noisyteacher.train.checkpoint import labels_fingerprint
from noisyteacher.train.curvature import trace_record
from noisyteacher.train.history import profiled, ticked

MANY_CLASSES = 100
"""A result keeps the whole confusion matrix for up to this many classes."""
Logits = Mapping[str, LogitStore | nn.Module]
"""Where a teacher's logits come from: `train`, `val`, `test` are stores; `live` is the teacher itself, where images are
augmented. `train-2` or `live-2`, and so on: further teachers. `teacher`: the first network, for students narrowed from
it."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What a compression, a training or a distillation works on: resolved settings, data, models, its run folder."""

    config: Config
    data: Splits
    teacher: str | nn.Module
    student: str | nn.Module
    run: Run
    on_progress: Watch | None = None
    allow_import: bool = False
    """Whether a teacher's file may name a factory that is imported and called."""
    noise: Noise | None = None
    noise_candidates: tuple[Noise, ...] = ()
    """The noises to choose from on validation; empty where there is nothing to choose."""
    recipes: Mapping[str, Student] = field(default_factory=dict)
    """The recipes of clean and of noisy students by `clean` and `noisy`, where validation has chosen them."""

    @property
    def teacher_is_trained(self) -> bool:
        """Whether the teacher is trained already."""
        name = self.teacher
        return not isinstance(name, str) or pretrained.is_pretrained(name, self.config.teacher, self.data)

    @property
    def inherits(self) -> bool:
        """Whether the student starts with weights of its teacher."""
        name, options = self.student, self.config.student.options
        return isinstance(name, str) and name.startswith(models.SHRINK) and options.get("init") != "random"

    @property
    def live(self) -> bool:
        """Whether the teacher runs at every step, because images are augmented."""
        return self.config.student.augment != "none"

    @property
    def source(self) -> str:
        """The role of the logits that students learn from: `live`, or those of the split `train`."""
        return "live" if self.live else "train"

    @property
    def controls(self) -> list[str]:
        """The conditions that noise is compared with: labels alone, where there are labels, and clean logits."""
        if not self.config.run.baselines:
            return []
        return ["clean"] if self.data.train.labels is None else ["labels", "clean"]

    @property
    def conditions(self) -> list[str]:
        """All conditions; where the noise is still to be chosen, as if one had been.

        With `choice.controls`, clean and noisy students have the recipe that is named; those with the one that
        validation has chosen are `clean-chosen` and `noisy-chosen`.
        """
        distilled = "clean" if self.noise is None and not self.noise_candidates else "noisy"
        names = list(dict.fromkeys([*self.controls, distilled]))
        twice = self.config.choice.controls and (self.noise_candidates or self.recipes)
        return [*names, *(f"{name}-chosen" for name in names if twice and name != "labels")]

    def recipe(self, condition: str) -> Student:
        """The recipe that students of this condition are trained by."""
        kind, _, chosen = condition.partition("-")
        named = self.config.choice.controls and not chosen
        return self.config.student if named else self.recipes.get(kind, self.config.student)

    @property
    def titles(self) -> dict[str, str]:
        """The title of each condition, with rate and weight decay where these were chosen."""
        papers_loss = (self.config.student.loss, self.config.student.label_weight) == ("logit_regression", 0)
        clean = "student, logit regression" if papers_loss else "student, distilled"
        kinds = {"labels": "student, labels alone", "clean": clean, "noisy": "student, noisy teacher"}
        titles = {name: kinds[name.partition("-")[0]] for name in [*kinds, *self.conditions]}
        for name in titles:
            recipe = self.recipe(name)
            if recipe is not self.config.student:
                titles[name] += f", {recipe_words(recipe)}"
            elif name not in kinds:
                titles[name] += ", recipe chosen"
        return titles

    def with_student(self, name: str, recipe: Student) -> Experiment:
        """The experiment with the student of this name, trained by this recipe."""
        return replace(self.with_recipe(replace(recipe, name=name)), student=name)

    def with_recipe(self, recipe: Student) -> Experiment:
        """The experiment with its student trained by this recipe."""
        return replace(self, config=replace(self.config, student=recipe))


@dataclass(frozen=True)
class TrainedModel:
    """A trained model with its run and the content of its result.json."""

    model: nn.Module
    run: Run
    result: Json

    @property
    def val_error(self) -> float:
        """The validation error (%), or, without labels, the share (%) that disagrees with the teacher: its own is 0."""
        scores = self.result["scores"].get("val", {})
        if "error" in scores:
            return float(scores["error"]["value"])
        return 100 - float(scores["agreement"]["value"]) if scores else 0.0


@dataclass(frozen=True)
class TrainingSpec:
    """A model to be trained in this run's folder, evaluated on validation and test, its result written last."""

    experiment: Experiment
    run: Run
    model: nn.Module
    objective: Objective
    fit_options: Json
    seed: int = 0
    title: str = "training"
    teachers: Mapping[str, object] = field(default_factory=dict)
    """By role (`val`, `test`) a teacher to agree with there; validation without labels is judged by it."""
    extra: Json = field(default_factory=dict)
    """Goes into the result as it is."""
    with_costs: bool = False
    """Whether the result has what the model costs: for a run on its own, which nothing else measures."""

    def options(self) -> Json:
        """The options that `fit` and `fit_many` share."""
        config, val = self.experiment.config.run, self.experiment.data.val
        options = {**self.fit_options, "val": val, "device": config.device, "resume": True}
        trackers = [*(["tensorboard"] if config.tensorboard else []), *config.track]
        options |= {"track": trackers, "checkpoint_every_s": config.checkpoint_every_s}
        if val.labels is not None:
            return options
        if val.role in self.teachers:
            return options | {"val_teacher": self.teachers[val.role]}
        return options | {"val": None, "keep": "last"}


def train_run(spec: TrainingSpec, on_step: Callable[[int, int], None] | None = None) -> TrainedModel:
    """The trained model; where the run is done already, as it was.

    An interrupted run continues from its checkpoint; one that another process works on is waited for. In a group of
    processes all of them train it together, the leading one evaluates and writes, and the result is the same on all.
    `on_step` is called with (step, all steps), instead of the experiment's callback.
    An error of this package is written to error.txt and raised.
    """
    leads, train = world().leads, spec.experiment.data.train
    with spec.run.lock() if leads else nullcontext():
        if (done := _load_if_done(spec)) is not None:
            return done
        watch = spec.experiment.on_progress if leads else None
        options = spec.options() | {"profile": spec.experiment.config.run.profile, "seed": spec.seed}
        options |= {"run": spec.run.path, "progress": False if watch is None else ticked(watch, spec.title)}
        if on_step is not None:
            options["progress"] = lambda tick: on_step(tick.step, tick.total_steps)
        with errors_recorded(spec.run), peer_failure_as_error():
            return _evaluated(spec, fit(spec.model, train, spec.objective, **options))


def train_runs(
    specs: Sequence[TrainingSpec], on_step: Callable[[int, int], None] | None = None
) -> list[TrainedModel | NoisyTeacherError]:
    """Train all that are not done in common steps (`fit_many`): in order, the trained model or the error of this
    package that ended its training, which is in its error.txt too.

    They differ in models' weights, objectives and seeds alone; where they cannot be trained together, each has that
    error. `on_step` is called with (step, all steps).
    """
    with ExitStack() as locks:
        for spec in specs:
            locks.enter_context(spec.run.lock())
        outcomes: list[TrainedModel | NoisyTeacherError | None] = [_load_if_done(spec) for spec in specs]
        todo = {number: spec for number, spec in enumerate(specs) if outcomes[number] is None}
        for spec in todo.values():
            spec.run.clear_error()
        for (number, spec), history in zip(todo.items(), _fit_together(list(todo.values()), on_step), strict=True):
            try:
                outcomes[number] = history if isinstance(history, Exception) else _evaluated(spec, history, len(todo))
            except NoisyTeacherError as error:
                outcomes[number] = error
            if isinstance(outcome := outcomes[number], NoisyTeacherError):
                _record_error(spec.run, outcome)
    return [outcome for outcome in outcomes if outcome is not None]


def _fit_together(
    specs: Sequence[TrainingSpec], on_step: Callable[[int, int], None] | None
) -> list[History | NoisyTeacherError]:
    """What `fit_many` returns for these trainings; where it refuses them, its error for each."""
    if not specs:
        return []
    options = specs[0].options() | {"seeds": [spec.seed for spec in specs], "progress": on_step or False}
    options["runs"] = [spec.run.path for spec in specs]
    models, objectives = [spec.model for spec in specs], [spec.objective for spec in specs]
    try:
        return fit_many(models, specs[0].experiment.data.train, objectives, **options)
    except NoisyTeacherError as error:
        return [error] * len(specs)


@contextmanager
def errors_recorded(run: Run) -> Iterator[None]:
    """Write an error of this package also to the run's error.txt; clear an old error first."""
    if not world().leads:
        yield
        return
    run.clear_error()
    try:
        yield
    except NoisyTeacherError as error:
        _record_error(run, error)
        raise


def _record_error(run: Run, error: NoisyTeacherError) -> None:
    with suppress(NoisyTeacherError):  # a full disk must not hide what went wrong
        run.write_error(f"{type(error).__name__}: {error}")


def _load_if_done(spec: TrainingSpec) -> TrainedModel | None:
    """The trained model of a run that has its result, else None."""
    result = on_rank_zero(lambda: spec.run.result() if spec.run.state == "done" else None)
    if result is None:
        return None
    _check_labels(spec.run, result, spec.experiment.data)
    models.load_weights(spec.model, spec.run.path / WEIGHTS)
    pretrained.check_weights(spec.run, spec.run.path / WEIGHTS, spec.model)
    return TrainedModel(spec.model, spec.run, result)


def _check_labels(run: Run, result: Json, data: Splits) -> None:
    """Raises MismatchError where a finished run is of other labels than these; earlier versions recorded none."""
    if result.get("labels") not in (None, labels_fingerprint(*data.parts.values())):
        raise MismatchError(f"{run.path}: was done with other labels of the same images: start a new run")


def _evaluated(spec: TrainingSpec, history: History, together: int = 1) -> TrainedModel:
    """Evaluate the trained model and write the run's result; `together`: models that were trained in common steps."""
    experiment, model, size = spec.experiment, spec.model, world().size
    device = experiment.config.run.device
    training = {
        "seconds": history.seconds,
        "epochs": len(history.epochs),
        "best_epoch": history.best_epoch,
        "kept": history.kept,
        "stopped_early": history.stopped_early,
        "device": str(resolve_device(device)),
        "threads": torch.get_num_threads(),
        "precision": spec.fit_options["precision"],
        **({"processes": size} if size > 1 else {}),
        **({"together": together} if together > 1 else {}),
        **({"steps": "replayed"} if history.replayed else {}),
    }
    if experiment.config.run.trace:
        views = expand_views(spec.fit_options["views"])
        objective = spec.objective
        if isinstance(objective, Distillation):
            objective = objective.prepared(experiment.data.train, views)
        training["trace"] = on_rank_zero(lambda: trace_record(model, experiment.data.train, objective, views[0]))
    scores = on_rank_zero(lambda: scores_and_details(experiment, model, spec.teachers))
    result: Json = {**scores, **_described(experiment.data), "training": training}
    result |= {
        "weights": models.weights_fingerprint(model),
        "labels": labels_fingerprint(*experiment.data.parts.values()),
    }
    if history.profile is not None:
        result["profile"] = profiled(model, history.profile, spec.fit_options)
    if spec.with_costs:
        with stage(experiment.on_progress, "measuring costs"):
            costs, warning = on_rank_zero(lambda: measure_costs(model, experiment.data, device, "model"))
        result["costs"] = as_json(costs, "costs")
        if warning is not None:
            message(experiment.on_progress, "warning", warning)
            result["warnings"] = [warning]
    result |= spec.extra
    if world().leads:
        spec.run.write_result(result)
    return TrainedModel(model.to("cpu"), spec.run, result)  # a GPU keeps no finished students


def measure_costs(
    model: nn.Module, data: Splits, device: str, name: str, latency: bool = True
) -> tuple[Costs | None, str | None]:
    """What a model costs; or None and why it cannot be measured: some networks refuse single images or tracing."""
    try:
        return measure(model, data.input_shape, device=device, latency=latency), None
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        return None, f"the costs of the {name} are unknown, as it cannot be measured ({reason})"


def scores_and_details(
    experiment: Experiment,
    model: nn.Module,
    teachers: Mapping[str, object],
    answers: Mapping[str, object] | None = None,
) -> Json:
    """The model's `scores` on validation and test by role, and the `details` behind them, JSON-able.

    A split without labels is left out unless there is a teacher to agree with. answers: stores of the model's logits by
    role, so that it need not be run.
    """
    scores, details = {}, {}
    for role, split in experiment.data.parts.items():
        if role == "train" or (split.labels is None and role not in teachers):
            continue
        progress = counted_if_slow(experiment.on_progress, f"evaluating on {role}", "images")
        device, teacher = experiment.config.run.device, teachers.get(role)
        source = (answers or {}).get(role, model)
        measured, logits = judge(source, split, teacher=teacher, device=device, progress=progress)
        scores[role] = measured.describe()
        if split.labels is not None:
            details[role] = _details(logits, split.labels)
    return {"scores": scores, "details": details}


def _details(logits: Tensor, labels: Tensor) -> Json:
    count, confidence, hits = metrics.reliability(logits, labels)
    reliability: Json = {"count": count.long().tolist()}
    for name, sums in (("confidence_%", confidence), ("accuracy_%", hits)):
        pairs = zip(sums.tolist(), reliability["count"], strict=True)
        reliability[name] = [100 * total / n if n else None for total, n in pairs]
    confusion = metrics.confusion(logits, labels).tolist() if logits.shape[1] <= MANY_CLASSES else None
    return {"confusion": confusion, "reliability": reliability}


def data_record(data: Splits) -> Json:
    """The data set's name, its classes, how images were brought to their size, the fingerprint of each split."""
    fingerprints = {role: split.fingerprint for role, split in data.parts.items()}
    return {"name": data.name, **_described(data), **fingerprints}


def _described(data: Splits) -> Json:
    """What somebody needs to use a model of these data."""
    return {"classes": list(data.class_names), "fit": data.fit}


def module_record(model: nn.Module) -> Json:
    """What identifies a module that was passed in: its architecture, its weights, its printed form."""
    return {
        "architecture": dict(models.as_classifier(model).architecture),
        "weights": models.weights_fingerprint(model),
        "preprocessing": models.preprocess_fingerprint(model),
        "code": models.code_fingerprint(model),
    }


def _network_record(model: str, network: Recipe, options: Json, data: Splits, seed: int) -> Json:
    """The settings of a child run that trains this network."""
    preprocessing = {name: value for name in ("preprocess", "mean", "std") if (value := getattr(network, name))}
    inherited = {"init": "magnitude"} if model.startswith(models.SHRINK) else {}
    record = {"data": data_record(data), "model": model, "options": inherited | dict(network.options)}
    return {**record, "recipe": as_json(options, "recipe"), "seed": seed, **preprocessing}


def prepare_teacher(experiment: Experiment, title: str, name: str = "teacher") -> TrainedModel:
    """The teacher: the module, loaded from its file, or trained; kept in the child run `name`."""
    teacher, data, settings = experiment.teacher, experiment.data, experiment.config.teacher
    source: Run | None = None
    if settings.label_noise and experiment.teacher_is_trained:
        raise UsageError(f"teacher.label_noise: has no effect on {display_name(teacher)}, which is trained already")
    if isinstance(teacher, nn.Module):
        model = pretrained.in_order(models.build_model(teacher, data), settings)
    elif experiment.teacher_is_trained:
        model, source = pretrained.load_teacher(teacher, data, experiment.allow_import, settings)
    else:
        return _train_teacher(experiment, teacher, title, name)
    record = {"data": data_record(data), "given": display_name(teacher), "weights": models.weights_fingerprint(model)}
    run = experiment.run.child(name, "given", record, parents=None if source is None else {"run": source.id})
    with stage(experiment.on_progress, title), run.lock():
        if run.state != "done":
            from_file = isinstance(teacher, str) and pretrained.is_model_path(teacher)
            with errors_recorded(run):
                models.save_model(model, run.path / WEIGHTS, within=run.path)
                roles = sorted(experiment.data.parts.keys() - {"train"}, reverse=True)
                answers = {role: _stored(experiment, model, role, title) for role in roles}  # for its scores
                path = None if isinstance(teacher, nn.Module) else teacher
                result = scores_and_details(experiment, model, {}, answers) | {
                    "classes": pretrained.class_names_of(path, model, settings.class_order),
                    "training": None if source is None else (source.result() or {}).get("training"),
                    "trained_on": pretrained.trained_on(str(teacher)) if from_file else None,
                    "labels": labels_fingerprint(*data.parts.values()),
                }
                run.write_result(result)
        result = run.result() or {}
        _check_labels(run, result, data)
    return TrainedModel(model, run, result)


def _train_teacher(experiment: Experiment, teacher: str, title: str, name: str) -> TrainedModel:
    data, settings = experiment.data, experiment.config.teacher
    model = build_network(settings, teacher, data)
    options = fit_options(settings, model, data)
    record = _network_record(teacher, settings, options, data, 0)
    if settings.weights:
        record["weights"] = models.weights_fingerprint(model)
        head = "its head" if settings.head == "keep" else f"a new head of {data.classes} classes"
        title = f"{title}: {os.path.basename(settings.weights)} with {head}"
    objective = supervised(label_noise=settings.label_noise)
    if settings.label_noise:
        record["objective"] = objective.describe()
    run = experiment.run.child(name, "train", record, seed=0)
    return train_run(TrainingSpec(experiment, run, model, objective, options, 0, title))


def extract_logits(experiment: Experiment, teacher: nn.Module, title: str) -> dict[str, LogitStore | nn.Module]:
    """The teacher's stored logits by role, in the run's folder `logits`.

    For the views the students train on, and of clean images for the splits on which they are compared with it. Where
    students see augmented images no store can serve: `live` is then the teacher itself, in place of `train`.
    """
    logits: dict[str, LogitStore | nn.Module] = {"teacher": teacher, **({"live": teacher} if experiment.live else {})}
    for role in experiment.data.parts:
        if role != "train" or not experiment.live:
            logits[role] = _stored(experiment, teacher, role, title)
    return logits


def _stored(experiment: Experiment, teacher: nn.Module, role: str, title: str) -> LogitStore:
    """The store of the teacher's logits for the split of this role; read where it is complete."""
    config, watch, folder = experiment.config, experiment.on_progress, experiment.run.path
    precision, split = config.teacher.logits_precision, experiment.data.parts[role]
    with experiment.run.lock(shared=True):
        make_folder(folder / LOGITS, folder)
        path = folder / LOGITS / store_name(display_name(experiment.teacher), split, teacher, precision)
        progress = False if watch is None else counted(watch, f"{title} ({role})", "answers")
        views, device = expand_views(config.student.views) if role == "train" else "clean", config.run.device
        return extract(teacher, split, path, views=views, precision=precision, progress=progress, device=device)


def extract_more_teachers(
    experiment: Experiment, title: str, name: str = "teacher"
) -> tuple[dict[str, LogitStore | nn.Module], list[tuple[TrainedModel, LogitStore]]]:
    """The logits of `teacher.also` for the training split, called train-2, train-3, ..., and these teachers, each with
    its logits for validation.

    Live teachers are called live-2, live-3, ... Their child runs are NAME-2, NAME-3, ... Empty with one teacher.
    """
    logits: dict[str, LogitStore | nn.Module] = {}
    teachers = []
    _, *more = pretrained.teachers_of(experiment.teacher, experiment.config)
    for number, (teacher, settings) in enumerate(more, 2):
        further = replace(experiment, teacher=teacher, config=replace(experiment.config, teacher=settings))
        trained = prepare_teacher(further, f"{title} {number}", f"{name}-{number}")
        further = replace(further, data=replace(experiment.data, test=None))
        stored = extract_logits(further, trained.model, f"{title} {number}'s logits")
        logits[f"{experiment.source}-{number}"], val = stored[experiment.source], stored["val"]
        assert isinstance(val, LogitStore)
        teachers.append((trained, val))
    return logits, teachers


def store_name(teacher: str, split: Split, model: nn.Module, precision: str = "fp32") -> str:
    """The name of a store's folder, by the weights and the images: `lenet-mnist-5k-train-2b7e11`; `-bf16` behind it
    where the logits were computed in that.
    """
    digest = sha256((models.weights_fingerprint(model).encode(), split.fingerprint.encode()))
    return f"{teacher}-{split.name}-{split.role}-{digest[:6]}" + ("" if precision == "fp32" else f"-{precision}")


def distillation_source(experiment: Experiment, logits: Logits) -> object:
    """The teacher argument of `distil`: a store or a network, or a list of them where there are several teachers."""
    sources = [source for role, source in logits.items() if role.partition("-")[0] == experiment.source]
    return sources if len(sources) > 1 else logits[experiment.source]


def first_student(experiment: Experiment, logits: Logits, seed: int = 0) -> models.Classifier:
    """The student before training, with the weights of this seed; narrowed from a store alone, with random ones."""
    source = logits[experiment.source]
    teacher: Any = logits.get("teacher", source)
    if isinstance(teacher, LogitStore):
        teacher = teacher.meta.get("teacher", {})
    student = copy.deepcopy(experiment.student)
    return build_network(experiment.config.student, student, experiment.data, seed, teacher)


class StudentTask(NamedTuple):
    """One student with one seed, as values that travel to another process."""

    experiment: Experiment
    run: str
    """Name of the child run."""
    condition: str
    """`labels`: trained on labels alone; else distilled."""
    noise: Noise | None
    seed: int
    logits: Logits
    title: str


def student_spec(task: StudentTask, twin: models.Classifier | None = None) -> TrainingSpec:
    """How the student of this task is trained; a fake-quantized `twin` learns on in its place."""
    experiment, run, condition, noise, seed, logits, title = task
    config, data = experiment.config, experiment.data
    source = logits[experiment.source]
    if isinstance(source, LogitStore):
        parents = {"teacher": source.fingerprints["teacher"]}
    else:
        parents = {"teacher": models.weights_fingerprint(source)}
    kind = "train"
    objective: Objective = supervised()
    if condition != "labels":
        kind = "distil"
        parents |= {"store": source.digest} if isinstance(source, LogitStore) else {}
        objective = distil(distillation_source(experiment, logits), noise=noise, **distill_options(config))
    model = first_student(experiment, logits, seed) if twin is None else twin
    options = fit_options(config.student, model, data)
    record = _network_record(display_name(experiment.student), config.student, options, data, seed)
    record["objective"] = objective.describe()
    if twin is not None:
        record |= twin.architecture["options"]
    elif isinstance(experiment.student, nn.Module):
        record["module"] = module_record(experiment.student)
    elif config.student.weights:
        record["weights"] = models.weights_fingerprint(model)
    child = on_rank_zero(lambda: experiment.run.child(run, kind, record, parents=parents, seed=seed))
    teachers = {role: source for role, source in logits.items() if role in ("val", "test") and role in data.parts}
    return TrainingSpec(experiment, child, model, objective, options, seed, title, teachers)


def train_student(task: StudentTask) -> TrainedModel:
    """The student of this task, trained."""
    return train_run(student_spec(task))


def train_ahead(tasks: Sequence[StudentTask], jobs: int, title: str) -> None:
    """Train students in `jobs` processes, so that `train_student` finds them done; it tries again those that fail.

    Does nothing with a single job, and where a teacher runs live.
    """
    if jobs < 2 or len(tasks) < 2 or tasks[0].experiment.live:
        return
    watch, threads = tasks[0].experiment.on_progress, tasks[0].experiment.config.run.threads or max(1, cores() // jobs)
    silent = [(task._replace(experiment=replace(task.experiment, on_progress=None)),) for task in tasks]
    run_in_workers(_train_quietly, silent, jobs, threads, title, watch)


def _train_quietly(task: StudentTask) -> None:
    with suppress(NoisyTeacherError):
        train_student(task)


def recipe_words(recipe: Student) -> str:
    """`lr 0.06, weight decay 0.01`."""
    rate = recipe.lr if isinstance(recipe.lr, str) else f"{recipe.lr:g}"
    return f"lr {rate}, weight decay {recipe.weight_decay:g}"
