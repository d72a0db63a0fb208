"""What a compression was asked, with names resolved to things, and what it is called in its folders."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from noisyteacher.config import LIMITS, Choice, Config, NoiseSettings, Recipe, completed
from noisyteacher.data import Splits, expand_views
from noisyteacher.device import resolve_device, resolve_precision
from noisyteacher.distributed import on_rank_zero
from noisyteacher.errors import FileFormatError, MismatchError, UsageError
from noisyteacher.export import refuse_formats
from noisyteacher.models import (
    ONNX,
    PREFIX,
    ZOO,
    Classifier,
    as_classifier,
    code_fingerprint,
    is_onnx_file,
    preprocess_fingerprint,
    weights_fingerprint,
)
from noisyteacher.noise import Noise
from noisyteacher.pipeline.candidates import Search, price_candidates, size_warning
from noisyteacher.pipeline.given import is_given, names_a_file, network_of
from noisyteacher.pipeline.loading import refuse_scripted
from noisyteacher.pipeline.steps import front_of, in_order, load_teacher, options_of
from noisyteacher.progress import Watch, stage
from noisyteacher.runs import Run, compare, folder_name, is_run, new_run
from noisyteacher.store import LogitStore

AUTO = "auto"
"""The name of a student that is to be chosen."""
DEFAULT_LIMIT = "4x"
"""The limit on a chosen student's multiplications where nothing limits its costs."""
PAPERS_STUDENT: Mapping[str, str] = {"mnist": "mlp800", "mnist-5k": "mlp800"}
"""Data set -> the student of the paper, which a sweep and `distil` take where none is named."""
R = TypeVar("R", bound=Recipe)
SHIFTED = ("clean", *(f"crop-y{top}-x{left}" for top in (2, 6) for left in (2, 6)))
"""An image and its shifts by 2 pixels along the diagonals."""
MIRRORED = ("clean", "mirror", *(name for shift in SHIFTED[1:] for name in (shift, f"mirror-{shift}")))
"""The same, each mirrored too."""
LABEL_WEIGHT = 0.3
WEAK_TEACHER_LABEL_WEIGHT = 0.7
"""What `auto` comes to in a compression whose teacher is hardly better than a student on labels alone."""
"""The weight of the labels that `auto` means."""
Answers = Mapping[str, LogitStore | nn.Module]
"""Where a teacher's answers come from: by role a store; `live` is the teacher itself, where images are augmented. Of a
second teacher `train-2` or `live-2`, and so on."""


@dataclass(frozen=True)
class Plan:
    """What `compress` was asked, with names resolved to things; the one argument of the steps."""

    config: Config
    data: Splits
    teacher: str | nn.Module
    student: str | nn.Module
    noise: Noise | None
    """What the students are taught under; not yet known where there are candidates."""
    candidates: tuple[Noise, ...]
    """The noises to choose from on validation; empty where the noise was named."""
    settings: Mapping[str, Any]
    """What config.json holds: the Config, or for a call from Python the same with fingerprints of its objects."""
    run: Run
    watch: Watch | None
    allow_import: bool = False
    """Whether a teacher's file may name a factory that is imported and called."""
    search: Search | None = None
    """The networks to choose the student from; None where it was named."""
    warnings: tuple[str, ...] = ()
    """Sentences on what somebody should know before anything is trained."""

    @property
    def given(self) -> bool:
        """Whether the teacher is trained already."""
        return not isinstance(self.teacher, str) or is_given(self.teacher, self.config.teacher, self.data)

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of the student's network."""
        return options_of(self.config.student)

    @property
    def live(self) -> bool:
        """Whether the teacher is asked at every step, because images are augmented."""
        return self.config.student.augment != "none"

    @property
    def labelled(self) -> bool:
        """Whether every split has labels."""
        return all(split.labels is not None for split in self.data.parts.values())

    @property
    def taught(self) -> dict[str, Any]:
        """Options of `distil`."""
        return taught_of(self.config)


def taught_of(config: Config) -> dict[str, Any]:
    """The options of `distil` in a Config."""
    names = ["loss", "temperature", "label_weight", *(["combine"] if config.teacher.also else [])]
    options = {name: getattr(config.student, name) for name in names}
    return options | ({"label_weight": LABEL_WEIGHT} if options["label_weight"] == AUTO else {})


def noise_of(settings: NoiseSettings, choice: Choice) -> tuple[Noise | None, tuple[Noise, ...]]:
    """The noise that settings name, None where it is off; and the candidates where validation is to choose."""
    named = asdict(settings)
    if settings.off:
        return None, ()
    if "auto" not in (settings.sigma, settings.alpha):
        return Noise(**named), ()
    sigmas = choice.sigmas if settings.sigma == "auto" else [settings.sigma]
    alphas = choice.alphas if settings.alpha == "auto" else [settings.alpha]
    found = [Noise(**{**named, "sigma": sigma, "alpha": alpha}) for sigma in sigmas for alpha in alphas]
    return None, tuple(one for one in found if one.alpha and one.sigma)


class Networks(NamedTuple):
    """The networks of a compression before anything is trained."""

    teacher: Classifier
    """With its weights where it is given."""
    student: Classifier | None
    """None where it is to be chosen."""


def lasting(recipe: R, epochs: int) -> R:
    """The recipe with so many epochs; a warm-up takes a quarter of them at most where they are fewer than before."""
    warmup = recipe.warmup_epochs if epochs >= recipe.epochs else min(recipe.warmup_epochs, epochs / 4)
    return replace(recipe, epochs=epochs, warmup_epochs=warmup)


def settled(config: Config, data: Splits | None = None, *, label_weight: bool = True) -> Config:
    """The Config with what `auto` comes to: the precisions on this machine, and with data the views and label weight.

    label_weight False: `auto` stays where there are labels, because a compression decides by its teacher's errors.

    That is what a run keeps. All trainings of a run have the precisions, on whatever machine each of them, or the rest
    of the run, is done: pairs of students then differ in the noise alone.
    """
    device = resolve_device(config.run.device)
    teacher, student = _settled(config.teacher, device, data), _settled(config.student, device, data)
    if data is not None and student.label_weight == AUTO:
        labelled = all(split.labels is not None for split in data.parts.values())
        if label_weight or not labelled:
            student = replace(student, label_weight=LABEL_WEIGHT if labelled else 0.0)
    return replace(config, teacher=teacher, student=student)


def _settled(recipe: R, device: torch.device, data: Splits | None) -> R:
    precision: Any = on_rank_zero(lambda: resolve_precision(recipe.precision, device))
    recipe = replace(recipe, precision=precision)
    if data is None or recipe.views != [AUTO]:
        return recipe
    views = default_views(data, recipe.epochs)
    return replace(recipe, views=list(views), every_view=recipe.every_view and len(views) > 1)


def default_views(data: Splits, epochs: int) -> tuple[str, ...]:
    """The views that `auto` means: the image and four shifts of it by 2 pixels, in colour mirrored too, one an epoch.

    There are as many as there are epochs at most: a stored answer for each then costs no more than asking the teacher
    at every step of one training. A mirrored digit is another sign or none, so grey images and the digits of SVHN are
    not mirrored.
    """
    mirrored = data.input_shape[0] == 3 and data.name != "svhn"
    return (MIRRORED if mirrored else SHIFTED)[:epochs]


def refuse_early(
    teacher: str | nn.Module, student: str | nn.Module, data: Splits, config: Config, allow_import: bool = False
) -> Networks:
    """The networks, built; raises what a wrong name would raise later, before a folder is made or a teacher trained."""
    resolve_device(config.run.device)
    refuse_formats(config.run.export)
    for recipe in (config.teacher, config.student):
        expand_views(recipe.views)
    unlabelled = [role for role, split in data.parts.items() if split.labels is None]
    if unlabelled and config.student.label_weight not in (0.0, AUTO):
        raise UsageError(
            f"student.label_weight: {config.student.label_weight} needs labels, and {data.name!r} has none in "
            f"{', '.join(unlabelled)}: leave it out"
        )
    models = []
    for one in (teacher, *config.teacher.also):
        settings = config.teacher if one is teacher else replace(config.teacher, weights="", class_order=[])
        if settings.class_order and isinstance(one, str) and not is_given(one, settings, data):
            raise UsageError(
                f"teacher.class_order: has no effect on {one!r}, which is trained in the data's order: leave it out"
            )
        if "train" in unlabelled and isinstance(one, str) and not is_given(one, settings, data):
            raise UsageError(
                f"teacher {one!r} would have to be trained on labels, and {data.name!r} has none: give a trained one, "
                "as a run, a weights file or (in Python) a module"
            )
        if isinstance(one, str) and is_given(one, settings, data):
            without = ["options"] if settings.options else []
            without += [] if is_onnx_file(one) else [*front_of(settings)]
            if names_a_file(one) and without:
                raise UsageError(f"teacher.{without[0]}: has no effect on {one}, which is built already: leave it out")
            models.append(load_teacher(one, data, allow_import, settings)[0])
        elif settings.weights and not isinstance(one, str):
            raise UsageError("teacher.weights: has no effect on a module that is passed in: leave it out")
        else:
            models.append(in_order(network_of(settings, one, data), settings))
    refuse_scripted(student)
    if student == AUTO:
        return Networks(models[0], None)
    refuse_formats(config.run.export, built := network_of(config.student, student, data, teacher=models[0]))
    return Networks(models[0], built)


def considered(
    networks: Networks, student: str | nn.Module, data: Splits, config: Config, watch: Watch | None = None
) -> tuple[Search | None, tuple[str, ...]]:
    """The networks to choose from where the student is not named, and a warning where a named one is the larger.

    Raises UsageError where no network keeps within the limits.
    """
    if networks.student is None:
        with stage(watch, "pricing candidate networks"):
            return price_candidates(config, networks.teacher, data), ()
    warning = size_warning(called(student), networks.student, networks.teacher, data)
    return None, () if warning is None else (warning,)


def to_choose(config: Config) -> Config:
    """The Config of a compression: where no student is named it is chosen, and where nothing limits its costs, among
    networks of at most a quarter of the teacher's multiplications.
    """
    student, target = config.student, config.target
    if not student.name and student.options:
        raise UsageError(
            "student.options: have no effect where the student is chosen: leave them out, or name the student"
        )
    student = replace(student, name=student.name or AUTO)
    if student.name == AUTO and all(getattr(target, name) is None for name in LIMITS):
        target = replace(target, macs=DEFAULT_LIMIT)
    return replace(config, student=student, target=target)


def with_papers_student(config: Config) -> Config:
    """The Config with the paper's student for these data where none is named; unchanged where the paper has none."""
    name = config.student.name or PAPERS_STUDENT.get(config.data.name, "")
    return replace(config, student=replace(config.student, name=name))


def refuse_auto(config: Config) -> None:
    """Raises UsageError where the student is not named: only a compression chooses one."""
    if config.student.name in ("", AUTO):
        given = "auto chooses a student by its costs" if config.student.name else "no student is named"
        raise UsageError(f"student.name: {given}, and only compress chooses one: name the student (--student NAME)")


def folder_for(
    given: str | os.PathLike[str] | Run | None,
    output_dir: str,
    name: str,
    settings: dict[str, Any],
    command: str | None,
    title: str,
) -> Run:
    """A new run folder, or the given one, once it is a compression with these settings."""
    if given is None:
        return new_run(output_dir, "compress", name, settings, command=command, title=title)
    path = given.path if isinstance(given, Run) else Path(given)
    if not is_run(path):
        raise UsageError(f"{path}: not a run folder: leave run= out to start a new one")
    run = Run.open(path)
    # Where the folder was made says nothing of what is in it: it may have been moved since.
    found = compare(completed(run.config), completed(plain(settings)))
    told = [key for key, _, _ in found if key != "run.output_dir"]
    if told:
        raise MismatchError(
            f"{path}: was started with other arguments ({', '.join(told[:4])}): see its config.json, or start a new run"
        )
    return run


def data_record(data: Splits) -> dict[str, Any]:
    """The data set's name, its classes and the fingerprint of each split, for the config of a child run."""
    prints = {role: split.fingerprint for role, split in data.parts.items()}
    return {"name": data.name, "classes": list(data.class_names), **prints}


def module_record(model: nn.Module) -> dict[str, Any]:
    """What tells a module that was passed in from another one: its architecture, its weights, its printed form."""
    return {
        "architecture": dict(as_classifier(model).architecture),
        "weights": weights_fingerprint(model),
        "preprocessing": preprocess_fingerprint(model),
        "code": code_fingerprint(model),
    }


def called(model: str | nn.Module) -> str:
    """The name a model goes by in run and store names."""
    if isinstance(model, nn.Module) and not isinstance(model, Classifier):
        return type(model).__name__
    name = str(model.architecture["name"]) if isinstance(model, Classifier) else model.rstrip("/")
    library, _, rest = name.partition(":")
    if library in (*ZOO, ONNX) and rest:
        return rest.rstrip("/").split("/")[-1]
    if isinstance(model, Classifier):
        return name.split(".")[-1].split(":")[-1]
    return name.split("/")[-1].removeprefix(PREFIX)


def network_name(model: str | nn.Module) -> str:
    """The network's name, for the name of a run folder: that of a trained one where a run or a file of it is given."""
    if isinstance(model, nn.Module) or model.startswith(PREFIX) or not names_a_file(model):
        return called(model)
    path = Path(model)
    run = Run(path if path.is_dir() else path.parent)
    if not is_run(run.path):
        return path.stem
    try:
        return called(str(run.config.get("model") or run.config.get("given") or run.info["name"]))
    except (FileFormatError, KeyError):
        return called(model)


def run_title(student: str, teacher: str | None, data: str) -> str:
    """What a run folder is called after its kind, as `mlp800-from-lenet-mnist-5k`; without a teacher `lenet-mnist-5k`.

    Every part is cut, so that none is lost where another is long.
    """
    parts = [folder_name(student, 30), *([] if teacher is None else ["from", folder_name(teacher, 30)])]
    return "-".join([*parts, folder_name(data, 24)])


def plain(value: Any) -> Any:
    """Tuples as lists, as JSON gives them back."""
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, (list, tuple)) else value
