"""Settings resolved: what `auto` means on this machine and for these data, the noise, the options of functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Literal, TypeVar, cast

import torch
from torch import nn

from noisyteacher.config import Choice, Config, NoiseSettings, Recipe, TrainSettings, Values, config_error, describe
from noisyteacher.data import Splits, expand_views, load_data
from noisyteacher.device import AUTO, resolve_device, resolve_precision
from noisyteacher.distributed import on_rank_zero
from noisyteacher.errors import MismatchError, UsageError
from noisyteacher.io.files import Json
from noisyteacher.measure import measure
from noisyteacher.models import SHRINK, Classifier
from noisyteacher.models.narrow import ratio_of
from noisyteacher.noise import Noise
from noisyteacher.progress import Watch, stage
from noisyteacher.runs import ABSENT, Run, as_json, compare
from noisyteacher.text import flat
from noisyteacher.train.optim import preferred_optimizer
from noisyteacher.train.state import length_in_epochs

DEFAULT_LIMIT = "4x"
"""The limit on a chosen student's multiplications where nothing limits its costs."""
PAPERS_STUDENT: Mapping[str, str] = {"mnist": "mlp800", "mnist-5k": "mlp800"}
"""Data set -> the student of the paper, which a sweep and `distil` take where none is named."""
BATCH, LR, INHERITED_LR, HALF = 32, 0.01, 0.003, 0.5
"""The batch size and learning rate that `auto` means; the second rate where a student keeps the weights of this share
of its teacher's channels."""
LARGER_BATCHES = {20_000: (128, 0.03), 2_000: (64, 0.02)}
"""From this many training images on, the most first, `auto` means this batch size and rate, with Muon."""
LABEL_WEIGHT, WEAK_TEACHER_LABEL_WEIGHT = 0.3, 0.7
"""The label weight that `auto` means; the second where the teacher is hardly better than a student on labels."""
SHIFTED = ("clean", *(f"crop-y{y}-x{x}" for y in (2, 6) for x in (2, 6)))
"""An image and its shifts by 2 pixels along the diagonals."""
MIRRORED = ("clean", "mirror", *(name for shift in SHIFTED[1:] for name in (shift, f"mirror-{shift}")))
R = TypeVar("R", bound=Recipe)


def refuse_other_settings(run: Run, given: Json, part: str = "") -> None:
    """Raises MismatchError where an interrupted run's record differs from what is given, but for `run.output_dir`.

    A setting that is newer than the record counts as its default. part: the key that settings are under.
    """
    defaults = flat(as_json(describe(Config()), "config"))
    differences = [
        key
        for key, old, new in compare(run.config, given)
        if key != "run.output_dir"  # it may have been moved since
        and not (old is ABSENT and new == defaults.get(key.removeprefix(f"{part}."), ABSENT))
    ]
    if differences:
        problem = f"was started with other settings ({', '.join(differences[:4])})"
        raise MismatchError(f"{run.path}: {problem}: see its config.json, or start a new run")


def resolve_auto(config: Config, data: Splits | None = None, *, decide_label_weight: bool = True) -> Config:
    """The Config with what `auto` means: the precisions on this machine, and with data the views and label weight.

    decide_label_weight False: `auto` stays where there are labels; a compression decides it later, by its teacher's
    errors (`Compression._compare_teacher`).
    A run keeps the result: all its trainings have one precision, and pairs of students differ in the noise alone.
    """
    device = resolve_device(config.run.device)
    teacher, student = _resolve_recipe(config.teacher, device, data), _resolve_recipe(config.student, device, data)
    if teacher.logits_precision == AUTO:
        hurried = config.target.minutes is not None
        teacher = replace(teacher, logits_precision=student.precision if hurried else "fp32")
    if data is not None and student.label_weight == AUTO:
        if unlabelled_roles(data):
            student = replace(student, label_weight=0.0)
        elif decide_label_weight:
            student = replace(student, label_weight=LABEL_WEIGHT)
    return replace(config, teacher=teacher, student=student)


def with_recorded_choices(config: Config, record: Values) -> Config:
    """The Config with what a run has where it says auto: precisions, which are measured once, and batch sizes."""
    parts = {}
    for part in ("teacher", "student"):
        recipe, recorded = getattr(config, part), record.get(part) or {}
        open_settings = ("precision", "batch_size", "logits_precision")
        names = [name for name in open_settings if getattr(recipe, name, "") == AUTO and name in recorded]
        parts[part] = replace(recipe, **{name: recorded[name] for name in names})
    return replace(config, **parts)


def _resolve_recipe(recipe: R, device: torch.device, data: Splits | None) -> R:
    precision = on_rank_zero(lambda: resolve_precision(recipe.precision, device))
    recipe = replace(recipe, precision=cast("Literal['fp32', 'bf16']", precision))
    if data is None:
        return recipe
    if recipe.steps is not None and recipe.batch_size == AUTO:
        recipe = replace(recipe, batch_size=BATCH)
    if recipe.views == [AUTO]:
        views = default_views(data, length_in_epochs(recipe, data.train, ("clean",)))
        recipe = replace(recipe, views=list(views), every_view=recipe.every_view and len(views) > 1)
    epochs = length_in_epochs(recipe, data.train, expand_views(recipe.views))
    recipe = replace(recipe, epochs=epochs, steps=None)
    if problems := [f"{name}: {problem}" for name, problem in TrainSettings.contradictions(recipe)]:
        raise config_error(problems)
    return recipe


def default_views(data: Splits, epochs: int) -> tuple[str, ...]:
    """The views that `auto` means: the image and four shifts of it by 2 pixels, those of colour images mirrored too.

    At most as many as epochs: storing answers for all of them then costs no more than running the teacher during one
    training. A mirrored digit is not a digit, so grey images and SVHN are not mirrored.
    """
    mirrored = data.input_shape[0] == 3 and data.name != "svhn"
    return (MIRRORED if mirrored else SHIFTED)[:epochs]


def unlabelled_roles(data: Splits) -> list[str]:
    """The roles of the splits without labels."""
    return [role for role, split in data.parts.items() if split.labels is None]


def resolve_noise(settings: NoiseSettings, choice: Choice) -> tuple[Noise | None, tuple[Noise, ...]]:
    """The noise that settings name, None where it is off; and the candidates where validation is to choose.

    A noise that is named is the only candidate where its rate or weight decay is chosen.
    """
    if settings.off:
        return None, ()
    if AUTO not in (settings.sigma, settings.alpha):
        noise = Noise(**asdict(settings))
        return noise, (noise,) if choice.over_recipe else ()
    sigmas = choice.sigmas if settings.sigma == AUTO else [settings.sigma]
    alphas = choice.alphas if settings.alpha == AUTO else [settings.alpha]
    candidates = [replace(settings, sigma=sigma, alpha=alpha) for sigma in sigmas for alpha in alphas]
    return None, tuple(dict.fromkeys(Noise(**asdict(candidate)) for candidate in candidates if not candidate.off))


def with_student_to_choose(config: Config) -> Config:
    """The Config of a compression: a student that is not named is chosen, and where nothing limits its costs, among
    networks of at most a quarter of the teacher's multiplications. Where its latency is limited it is exported too.
    """
    student, target, run = config.student, config.target, config.run
    if not student.name and (named := [name for name in ("options", "weights") if getattr(student, name)]):
        words = "no effect where the student is chosen: leave it out, or name the student"
        raise UsageError(f"student.{named[0]}: {words}")
    student = replace(student, name=student.name or AUTO)
    if student.name == AUTO and not target.limits_costs:
        target = replace(target, macs=DEFAULT_LIMIT)
    if target.latency is not None and set(run.export) <= {"hub"}:
        run = replace(run, export=["onnx", *run.export])
    return replace(config, student=student, target=target, run=run)


def with_papers_student(config: Config) -> Config:
    """The Config with the paper's student for these data where none is named; unchanged where the paper has none."""
    name = config.student.name or PAPERS_STUDENT.get(config.data.name, "")
    return replace(config, student=replace(config.student, name=name))


def require_student(config: Config) -> None:
    """Raises UsageError where the student is not named: only a compression chooses one."""
    if config.student.name in ("", AUTO):
        problem = "auto chooses a student by its costs" if config.student.name else "no student is named"
        raise UsageError(f"student.name: {problem}, and only compress chooses one: name the student (--student NAME)")


def with_epochs(recipe: R, epochs: int) -> R:
    """The recipe with this many epochs; if they are fewer than before, a warm-up takes a quarter of them at most, and
    so do epochs with a frozen body that would be all of them.
    """
    warmup = recipe.warmup_epochs if epochs >= recipe.epochs else min(recipe.warmup_epochs, epochs / 4)
    freeze = recipe.freeze_epochs if epochs > recipe.freeze_epochs else epochs / 4
    return replace(recipe, epochs=epochs, warmup_epochs=warmup, freeze_epochs=freeze)


def short_epochs(epochs: int, named: int | None) -> int:
    """Epochs of a short run: as many as are named, else a quarter of the student's, at least one."""
    return named or max(1, round(epochs / 4))


def fit_options(recipe: Recipe, model: nn.Module, data: Splits) -> Values:
    """The options of `fit` in a Recipe; the network decides what `auto` means for batch size, optimizer and rate."""
    options: Values = {name: getattr(recipe, name) for name in TrainSettings.__dataclass_fields__}
    size = BATCH if isinstance(recipe.batch_size, str) else recipe.batch_size
    if recipe.optimizer == AUTO:
        macs = measure(model, data.input_shape, latency=False).macs
        options["optimizer"] = preferred_optimizer(model, macs, size)
        if options["optimizer"] == "muon" and not recipe.decay_biases:
            raise config_error(["decay_biases: false has no effect: optimizer auto is muon for this network"])
    if recipe.lr == AUTO:
        options["lr"] = _learning_rate(model)
        may_grow = (options["lr"], options["optimizer"], recipe.batch_size) == (LR, "muon", AUTO)
        if may_grow:
            larger = (pair for images, pair in LARGER_BATCHES.items() if len(data.train) >= images)
            size, options["lr"] = next(larger, (BATCH, LR))
    return {**options, "batch_size": size, "views": tuple(recipe.views)}


def _learning_rate(model: nn.Module) -> float:
    if not (isinstance(model, Classifier) and model.name.startswith(SHRINK) and model.inherited_head is not None):
        return LR
    return INHERITED_LR if ratio_of(model.name) >= HALF else LR


def distill_options(config: Config) -> Values:
    """The options of `distil` in a Config, without the noise."""
    names = ("loss", "loss_options", "loss_weight", "temperature", "combine", "scale")
    options: Values = {name: getattr(config.student, name) for name in names}
    weight = config.student.label_weight
    return options | {"label_weight": LABEL_WEIGHT if weight == AUTO else weight}


def load_config_data(config: Config, on_progress: Watch | None = None) -> Splits:
    """The data set a Config names."""
    settings = asdict(config.data)
    with stage(on_progress, f"reading the data {config.data.name}"):
        return load_data(settings.pop("name"), **settings)
