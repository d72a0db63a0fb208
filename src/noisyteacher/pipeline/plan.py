"""What a compression was asked, with names resolved to things, and what it is called in its folders."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from noisyteacher.config import Recipe
from noisyteacher.data import Splits
from noisyteacher.errors import AskedWronglyError, ConfigError, MismatchError
from noisyteacher.models import Classifier
from noisyteacher.noise import Noise
from noisyteacher.pipeline.steps import Watch, recipe_of
from noisyteacher.runs import Run, is_run, new_run


@dataclass(frozen=True)
class Plan:
    """What `compress` was asked, with names resolved to things; the one argument of the steps below."""

    run: Run
    data: Splits
    teacher: str | nn.Module
    student: str | nn.Module
    noise: Noise | None
    taught: Mapping[str, Any]
    """Options of `distil`: loss, temperature, label_weight."""
    teacher_recipe: Mapping[str, Any]
    recipe: Mapping[str, Any]
    seeds: int
    baselines: bool
    device: str
    tensorboard: bool
    watch: Watch | None


def folder_for(
    given: str | os.PathLike[str] | None,
    output_dir: str | os.PathLike[str],
    name: str,
    settings: dict[str, Any],
    command: str | None,
) -> Run:
    if given is None:
        return new_run(output_dir, "compress", name, settings, command=command)
    path = Path(given)
    if not is_run(path):
        raise AskedWronglyError(f"{path}: not a run folder: leave run= out to start a new one")
    run = Run.open(path)
    if run.config != plain(settings):
        raise MismatchError(f"{path}: was started with other arguments: see its config.json, or start a new run")
    return run


def recipe_from(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `fit` for a recipe. Raises ConfigError naming those that `compress` sets itself or does not know."""
    known = set(Recipe.__dataclass_fields__) - {"name"}
    unknown = sorted(set(options) - known)
    if unknown:
        raise ConfigError(f"{', '.join(unknown)}: no option of a recipe; known are {', '.join(sorted(known))}")
    return {**recipe_of(Recipe()), **options}


def data_record(data: Splits) -> dict[str, Any]:
    return {role: split.fingerprint for role, split in data.parts.items()} | {"name": data.name}


def called(model: str | nn.Module) -> str:
    """The name a model goes by in run and store names."""
    if isinstance(model, Classifier):
        return str(model.architecture["name"]).split(".")[-1].split(":")[-1]
    return type(model).__name__ if isinstance(model, nn.Module) else model.rstrip("/").split("/")[-1]


def plain(value: Any) -> Any:
    """Tuples as lists, as JSON gives them back."""
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, (list, tuple)) else value
