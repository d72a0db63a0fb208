"""`fit` and `fit_many`: checks of everything that can be known before the first step, then the trainer."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from noisyteacher.config import config_error, validated
from noisyteacher.config.schema import TrainSettings
from noisyteacher.data import Batch, Split, check_split, expand_views, samples_of
from noisyteacher.device import (
    AUTO,
    PRECISIONS,
    refuse_autocast,
    refuse_no_gradients,
    resolve_device,
    resolve_precision,
)
from noisyteacher.distributed import check_equal, on_rank_zero, world
from noisyteacher.errors import DataError, MismatchError, NoisyTeacherError, UsageError
from noisyteacher.models import (
    Classifier,
    as_classifier,
    check_trainable,
    head_parameters,
    learn_in_unit,
    output_restorer,
)
from noisyteacher.objectives import Distillation, Objective, describe_objective
from noisyteacher.progress import Watch, counted, reported
from noisyteacher.runs import WEIGHTS
from noisyteacher.train.checkpoint import (
    STATE,
    frozen_parameters,
    labels_fingerprint,
    saved_precision,
    signals_deferred,
)
from noisyteacher.train.history import History, PhaseTimer, Tick, ticked
from noisyteacher.train.optim import build_optimizer
from noisyteacher.train.state import Student, TrainingPlan, length_in_epochs
from noisyteacher.train.trainer import Outcome, Trainer, load_finished, restore_memory_format, start
from noisyteacher.train.validation import Validation, batch_norms_lag

ObjectiveFunction = Callable[[Tensor, Batch], Any]


def fit(
    model: nn.Module,
    split: Split,
    objective: ObjectiveFunction,
    *,
    val: Split | None = None,
    val_teacher: object = None,
    epochs: int = 20,
    steps: int | None = None,
    batch_size: int = 64,
    optimizer: str = "adam",
    lr: float = 1e-3,
    momentum: float | None = None,
    weight_decay: float = 0.0,
    decay_biases: bool = True,
    schedule: str = "linear",
    hold: float | None = None,
    warmup_epochs: float = 0.0,
    body_rate: float = 1.0,
    freeze_epochs: float = 0.0,
    views: str | Sequence[str] = "clean",
    every_view: bool = False,
    sampling: str = "all",
    augment: str = "none",
    batch_norm: str = "running",
    precision: str = "auto",
    patience: int | None = None,
    keep: str | None = None,
    criterion: str = "error",
    seed: int = 0,
    device: str = "auto",
    run: str | Path | None = None,
    resume: bool = False,
    checkpoint_every_s: float = 30.0,
    track: str | Sequence[str] = (),
    profile: bool = False,
    progress: bool | Callable[[Tick], None] | None = True,
) -> History:
    """Train the model in place on the split and return the History; the model ends with the kept weights, in eval mode.

    `objective(logits [B, K], batch)` returns the loss, or (loss, dict of numbers): `supervised()`, `distil(...)`, or
    any callable. The metrics hold each number's mean over the epoch's samples (its root mean square for names ending in
    `_rms`). Every epoch shows each row once under a random view of `views`, or, with `every_view`, once under each
    view; with `sampling="balanced"` every class equally often. After every epoch `val` is evaluated; `keep` says which
    weights the model ends with, `best` (lowest validation error, or `criterion`, then NLL; the default with `val`) or
    `last`. A `val` without labels is judged by the agreement with `val_teacher`. The other settings are those of
    `noisyteacher.config.TrainSettings`.

    With `run=FOLDER` the metrics (a JSON line per epoch), both weights and, while unfinished, a checkpoint are kept
    there; `resume=True` continues from it and ends, on a CPU, with the same bytes as an unbroken run. SIGINT and, if
    the program has a handler for it as the command line has, SIGTERM then take effect at the end of a step, after a
    checkpoint (a second one at once). `progress` shows on stderr how far the training is (a live line in a terminal;
    elsewhere a line every ten seconds, none for a training of under two); False shows nothing, a callable receives a
    Tick after every step. `track` names where the metrics also go: "tensorboard", "mlflow", "wandb", or several of
    them. With `profile` the History has the time of every phase (`PhaseTimer`); a GPU is waited for after every phase
    then.

    On a GPU the steps of a network made of torch's and this package's layers are captured once as a CUDA graph and
    replayed, and the model may be a step ahead of what `progress` receives; `NOISYTEACHER_GRAPHS=off` in the
    environment, or `profile`, turns that off. With several processes (torchrun; `torch.distributed` initialised) all of
    them call fit with the same arguments and train one model by DistributedDataParallel, on the same batches and noise
    as one process; batch norms use the statistics of each process's rows, and the process of rank 0 writes.

    On one CPU and thread count the same seed gives the same bits. Two runs with one seed are a pair: same order, same
    views, same dropout, same noise draws.
    Raises UsageError for a split whose role is `test` and for an objective that does not return a loss, ConfigError
    listing every wrong setting, DataError for `val` without labels or teacher, MismatchError when classes or shapes
    differ, TrainingError before the update when the loss or a gradient is not finite.
    """
    check_split(split)
    folder = None if run is None else Path(run)
    settings = _settings(
        [seed], folder, {"resume": resume, "track": bool(track)},
        epochs=epochs, steps=steps, batch_size=batch_size, optimizer=optimizer, lr=lr, momentum=momentum,
        weight_decay=weight_decay, decay_biases=decay_biases, schedule=schedule, hold=hold,
        warmup_epochs=warmup_epochs, body_rate=body_rate, freeze_epochs=freeze_epochs, views=views,
        every_view=every_view, sampling=sampling, augment=augment, batch_norm=batch_norm, precision=precision,
        patience=patience, keep=keep, criterion=criterion,
    )  # fmt: skip
    check_trainable(model)
    with reported(world().leads if progress is True else progress, _started) as tick:
        classifier = as_classifier(model, input_shape=split.input_shape)
        _check_scale([model], [classifier], [objective])
        _check_teachers([classifier], [objective])
        _check_folder(folder, resume)
        settings = _in_precision_of_run(settings, [folder])
        plan = make_plan(classifier, split, settings, val, val_teacher, device)
        with _outputs_restored_on_error([classifier]) as restorers:
            student = make_student(classifier, objective, seed, plan)
            check_equal(student.identity)
            profiler = PhaseTimer(plan.device) if profile else None
            [outcome] = _train([student], plan, [folder], resume, checkpoint_every_s, track, restorers, tick, profiler)
    if isinstance(outcome, NoisyTeacherError):
        raise outcome
    return outcome


def fit_many(
    models: Sequence[nn.Module],
    split: Split,
    objectives: Sequence[ObjectiveFunction],
    *,
    seeds: Sequence[int],
    val: Split | None = None,
    val_teacher: object = None,
    device: str = "auto",
    runs: Sequence[str | Path] | None = None,
    resume: bool = False,
    checkpoint_every_s: float = 30.0,
    track: str | Sequence[str] = (),
    progress: bool | Callable[[int, int], None] | None = True,
    **settings: Any,
) -> list[Outcome]:
    """What `fit` does for each model with its objective and seed, in common steps: one outcome per model, in order.

    An outcome is the History that `fit` would return (on a GPU up to rounding), or the error of this package
    that ended this one training; the others continue. The models have one architecture; they differ in their weights,
    seeds and objectives, each of which takes logits `[B, K]` and the batch. `settings` are those of `fit` (epochs, lr,
    ...), the same for all; `runs` are their run folders. `seconds` is each one's share of the common time. `progress`
    shows how far the training is, as in `fit`; False shows nothing, a callable receives (step, total steps) after every
    step. Worth it on a GPU, where the common steps are replayed as a CUDA graph wherever `fit` would replay them,
    unless the networks draw random numbers (docs/performance.md).
    Raises UsageError for models that share weights or differ in network, preprocessing or in what is frozen, and with
    several processes.
    """
    if world().size > 1:
        raise UsageError(
            "fit_many trains in one process: under torchrun use fit, which trains one model on all processes"
        )
    check_split(split)
    for name, values in (("models", models), ("objectives", objectives), ("seeds", seeds), ("runs", runs)):
        if not isinstance(values, (Sequence, type(None))) or isinstance(values, str):
            raise UsageError(f"{name}: given a {type(values).__name__}; expected a list, with an entry for each model")
    if not models or not len(models) == len(objectives) == len(seeds) == len(models if runs is None else runs):
        raise UsageError(
            f"{len(models)} models, {len(objectives)} objectives, {len(seeds)} seeds and "
            f"{'no' if runs is None else len(runs)} runs: expected as many of each, at least one"
        )
    if runs is not None and len({os.path.realpath(run) for run in runs}) < len(models):
        raise UsageError("two of the runs are one folder: give each training its own")
    folders = [None] * len(models) if runs is None else [Path(run) for run in runs]
    checked = _settings(seeds, folders[0], {"resume": resume, "track": bool(track)}, **settings)
    for model in models:
        check_trainable(model)
    classifiers = [as_classifier(model, input_shape=split.input_shape) for model in models]
    _check_scale(models, classifiers, objectives)
    _check_teachers(classifiers, objectives)
    for run_folder in folders:
        _check_folder(run_folder, resume)
    plan = make_plan(classifiers[0], split, _in_precision_of_run(checked, folders), val, val_teacher, device)
    with _outputs_restored_on_error(classifiers) as restorers:
        students = [
            make_student(classifier, objective, seed, plan)
            for classifier, objective, seed in zip(classifiers, objectives, seeds, strict=True)
        ]
        _check_alike(classifiers)
        with reported(progress, lambda watch: counted(watch, f"training {len(models)} models", "steps")) as report:
            tick = None if report is None else lambda tick: report(tick.step, tick.total_steps)
            return _train(students, plan, folders, resume, checkpoint_every_s, track, restorers, tick)


def _check_alike(models: Sequence[Classifier]) -> None:
    """Raises UsageError unless the models have one architecture and preprocessing, and no weights in common."""
    first = models[0]
    for number, model in enumerate(models):
        if _signature(model) != _signature(first) or not _equal_states(model.preprocess, first.preprocess):
            raise UsageError(
                f"model {number} differs from model 0 in network, options, preprocessing or in what is frozen: only "
                "models of one architecture can be trained together"
            )
    addresses = [_addresses((*model.network.parameters(), *model.network.buffers())) for model in models]
    if len(set().union(*addresses)) < sum(map(len, addresses)):
        raise UsageError("two of the models share weights, or are one: make copies of them by copy.deepcopy")


def _check_teachers(models: Sequence[Classifier], objectives: Sequence[ObjectiveFunction]) -> None:
    """Raises UsageError for a live teacher that shares learned weights or buffers with a model that is trained."""
    changing = set[int]()
    for network in (model.network for model in models):
        learned = (parameter for parameter in network.parameters() if parameter.requires_grad)
        changing |= _addresses((*learned, *network.buffers()))
    teachers = chain.from_iterable(each.live_networks for each in objectives if isinstance(each, Objective))
    if any(changing & _addresses((*teacher.parameters(), *teacher.buffers())) for teacher in teachers):
        raise UsageError(
            "a teacher shares weights with a model that is trained here, so it would change with it: give a copy by "
            "copy.deepcopy, or its stored logits"
        )


def _addresses(tensors: Iterable[Tensor]) -> set[int]:
    """Where the values of the tensors lie in memory."""
    return {tensor.data_ptr() for tensor in tensors if tensor.numel()}


def _signature(model: Classifier) -> tuple[object, ...]:
    """Layers, shapes, and which weights are learned."""
    shapes = {name: value.shape for name, value in model.network.state_dict().items()}
    return model.architecture, str(model.network), shapes, [value.requires_grad for value in model.parameters()]


def _equal_states(first: nn.Module, second: nn.Module) -> bool:
    states = first.state_dict(), second.state_dict()
    return (
        type(first) is type(second)
        and states[0].keys() == states[1].keys()
        and all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    )


def _train(
    students: Sequence[Student],
    plan: TrainingPlan,
    folders: Sequence[Path | None],
    resume: bool,
    checkpoint_every_s: float,
    track: str | Sequence[str],
    restorers: list[Callable[[], None]],
    on_step: Callable[[Tick], None] | None,
    profiler: PhaseTimer | None = None,
) -> list[Outcome]:
    """Every student's outcome, in order: of a run folder that holds the end of its training, or trained.

    restorers: of each student's outputs, called where its run is refused; emptied when the training begins.
    """
    trackers = [track] if isinstance(track, str) else list(track)
    outcomes: dict[int, Outcome] = {}
    groups: dict[tuple[int, int], list[int]] = {}  # students whose checkpoints stand at one step train together
    with ExitStack() as cleanup:
        signals = cleanup.enter_context(nullcontext() if folders[0] is None else signals_deferred())
        for number, (student, folder) in enumerate(zip(students, folders, strict=True)):
            cleanup.callback(restore_memory_format, student.model)
            try:
                finished = load_finished(student, plan, folder) if folder and (folder / WEIGHTS).exists() else None
                if finished is not None:
                    outcomes[number] = finished
                    continue
                start(student, plan, folder, resume)
                groups.setdefault((student.progress.step, len(student.progress.epochs)), []).append(number)
            except NoisyTeacherError as error:
                if not resume:
                    raise
                restorers[number]()
                outcomes[number] = error
        for numbers in (groups[key] for key in sorted(groups)):
            trainer = Trainer(
                [students[number] for number in numbers], plan, checkpoint_every_s=checkpoint_every_s,
                signals=signals, on_step=on_step, profiler=profiler, track=trackers,
            )  # fmt: skip
            restorers.clear()
            outcomes |= dict(zip(numbers, trainer.run(), strict=True))
    return [outcomes[number] for number in range(len(students))]


@contextmanager
def _outputs_restored_on_error(models: Sequence[Classifier]) -> Iterator[list[Callable[[], None]]]:
    """Yields a function for each model that undoes `learn_in_unit`; an error calls all that are still in the list."""
    restorers = [output_restorer(model) for model in models]
    try:
        yield restorers
    except BaseException:
        for restore in restorers:
            restore()
        raise


def _started(watch: Watch) -> Callable[[Tick], None]:
    """The callback for a training's steps; what comes before the first, seconds sometimes, is a stage that begins."""
    watch("preparing the training", 0, 1, "")
    return ticked(watch, "training")


def _check_folder(folder: Path | None, resume: bool) -> None:
    """Raises UsageError for a folder that holds a training which is not to be resumed."""
    if folder is not None and not resume and ((folder / WEIGHTS).exists() or (folder / STATE).exists()):
        raise UsageError(f"{folder}: holds a training already: resume=True continues it, or name another folder")


def _in_precision_of_run(settings: TrainSettings, folders: Sequence[Path | None]) -> TrainSettings:
    """The settings; where they leave the precision open, with that of the training to resume, not one measured anew."""
    saved = [saved_precision(folder) for folder in folders if folder is not None and settings.precision == AUTO]
    precision: Any = next((name for name in PRECISIONS if name in saved), settings.precision)
    return replace(settings, precision=precision)


def make_plan(
    model: Classifier, split: Split, settings: TrainSettings, val: Split | None, val_teacher: object, device_name: str
) -> TrainingPlan:
    """What trainings of this model on the split have in common, with every setting resolved and checked."""
    if val is not None:
        check_split(val, "val")
    _check_roles(split, val)
    classes = model.classes or split.classes
    _check_val(split, val, classes, val_teacher)
    device = resolve_device(device_name)
    refuse_autocast(device)
    refuse_no_gradients()
    precision = on_rank_zero(lambda: resolve_precision(settings.precision, device))
    validation = (
        None if val is None else Validation(val, val_teacher, classes, str(device), precision, settings.criterion)
    )
    problems = _problems(settings, model, split, val)
    settings = replace(settings, epochs=length_in_epochs(settings, split, settings.views), steps=None)
    problems += _problems(settings, model, split, val)
    if problems:
        raise config_error(problems)
    return TrainingPlan(settings, split, validation, tuple(settings.views), device, precision, world())


def make_student(model: Classifier, objective: ObjectiveFunction, seed: int, plan: TrainingPlan) -> Student:
    """A model on the plan's device with its optimizer, its objective checked against the split."""
    settings, split, validation = plan.settings, plan.split, plan.validation
    if isinstance(objective, Objective):
        objective.check(split, plan.views, model.classes or split.classes, settings.augment)
    if isinstance(objective, Distillation):
        objective = objective.prepared(split, plan.views, plan.device)
        if objective.scale == "rms":  # a later refusal undoes it: `_outputs_restored_on_error`
            learn_in_unit(model, objective.unit)
        objective = objective.weighed(model, split, plan.views[0])
    identity: dict[str, Any] = {
        **{name: value for name, value in asdict(settings).items() if name != "steps"},  # which the epochs say
        "views": list(plan.views),
        "precision": plan.precision,
        "keep": plan.keep,
        "seed": seed,
        "train": split.fingerprint,
        "val": None if validation is None else validation.val.fingerprint,
        "labels": labels_fingerprint(split, None if validation is None else validation.val),
        "objective": describe_objective(objective),
        "architecture": model.architecture,
        **frozen_parameters(model),
        **({} if validation is None else validation.identity),
    }
    parameters = dict(model.named_parameters())
    if settings.has_body:
        head_parameters(parameters, model.classes or split.classes)
    optimizer = build_optimizer(settings, parameters)
    reestimates = settings.batch_norm == "reestimate" and batch_norms_lag(model, plan.batches)
    return Student(model.to(plan.device), optimizer, objective, seed, identity, reestimates)


def _settings(seeds: Sequence[int], folder: Path | None, run_options: dict[str, bool], **values: Any) -> TrainSettings:
    """TrainSettings of keyword arguments. Raises one ConfigError that lists everything that is wrong with them, with
    the seeds, and with options that need a run folder.
    """
    problems = [
        f"seed: given {seed!r}; expected a whole number"
        for seed in seeds
        if not isinstance(seed, int) or isinstance(seed, bool)
    ]
    if folder is None:
        problems += [f"{name}: no effect without a run folder" for name, value in run_options.items() if value]
    if "views" in values:
        values["views"] = list(expand_views(values["views"]))
    return validated(TrainSettings, values, problems)


def _problems(settings: TrainSettings, model: Classifier, split: Split, val: Split | None) -> list[str]:
    """What is wrong with the settings for these data and this model, as sentences."""
    problems = [f"{name}: {problem}" for name, problem in settings.contradictions()]
    if val is None and settings.patience is not None:
        problems.append(f"patience: {settings.patience} has no effect without val: give a validation split")
    if val is None and settings.keep == "best":
        problems.append("keep: 'best' has no effect without val: give a validation split")
    if settings.criterion != "error" and (val is None or val.labels is None):
        problems.append(f"criterion: {settings.criterion} has no effect without labels in val: leave it out")
    if settings.sampling == "balanced" and split.labels is None:
        problems.append(f"sampling: balanced needs labels, and {split.name!r} ({split.role}) has none: leave it out")
    if settings.every_view and len(settings.views) == 1:
        problems.append(f"every_view: has no effect with the single view {settings.views[0]!r}: leave it out")
    samples = samples_of(split, settings.views, settings.every_view)
    norms = [name for name, part in model.named_modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    if norms and (samples == 1 or settings.batch_size == 1):
        problems.append(
            f"batch norm cannot learn from batches of a single sample (batch_size={settings.batch_size}, {samples} in "
            f"{split.role}; {norms[0]}): give batches of two or more"
        )
    return problems


def _check_scale(
    models: Sequence[nn.Module], classifiers: Sequence[Classifier], objectives: Sequence[ObjectiveFunction]
) -> None:
    """Raises UsageError for a model that cannot record by what an objective's scale multiplies its outputs, and for
    objectives of several scales.
    """
    scales = {objective.scale for objective in objectives if isinstance(objective, Distillation)}
    if len(scales) > 1:
        raise UsageError(
            f"objectives with the scales {', '.join(sorted(scales))}: students of one scale train together"
        )
    for model, classifier, objective in zip(models, classifiers, objectives, strict=True):
        if isinstance(objective, Distillation) and objective.scale == "rms" and classifier is not model:
            raise UsageError(
                f"scale={objective.scale!r} multiplies the outputs of the model, which a {type(model).__name__} cannot "
                "record: wrap it by nt.build_model(model, data), and train that"
            )


def _check_roles(split: Split, val: Split | None) -> None:
    """Raises UsageError for a test split: what is reported on must not be learned or chosen from."""
    for part, use in ((split, "trained on"), (val, "used to choose")):
        if part is not None and part.role == "test":
            raise UsageError(
                f"a test split of {part.name!r} cannot be {use}: choose on validation, report on test once (evaluate)"
            )


def _check_val(split: Split, val: Split | None, classes: int, teacher: object) -> None:
    """Raises unless `val` can judge a model of this many classes that is trained on the split: DataError with neither
    labels nor a teacher, UsageError for a teacher without effect, MismatchError for other classes or image shapes.
    """
    if teacher is not None and (val is None or val.labels is not None):
        raise UsageError(
            "val_teacher has no effect: it judges a validation split without labels; leave it out (evaluate(...) gives "
            "the agreement with a teacher beside the error)"
        )
    if val is None:
        return
    if val.labels is None and teacher is None:
        raise DataError(
            f"the validation split of {val.name!r} has no labels, by which every epoch is judged: give val_teacher= to "
            "judge by the agreement with it, leave val= out, or give labelled images"
        )
    if val.input_shape != split.input_shape:
        raise MismatchError(f"train images are {list(split.input_shape)}, val images {list(val.input_shape)}")
    for number, (in_train, in_val) in enumerate(zip_longest(split.class_names, val.class_names)):
        if in_train != in_val:
            names = ["missing" if name is None else repr(name) for name in (in_train, in_val)]
            raise MismatchError(
                f"class {number} is {names[0]} in train ({split.classes} classes) and {names[1]} in val "
                f"({val.classes}): both must have the same classes in the same order"
            )
    if classes != val.classes:
        raise MismatchError(f"the model has {classes} classes, val {val.classes}: build the model for these data")
