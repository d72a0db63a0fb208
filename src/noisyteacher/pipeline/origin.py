"""What the files of a trained model say of the data it learned from."""

from __future__ import annotations

import os
from typing import Any

from noisyteacher.data import Splits
from noisyteacher.models import model_record, weights_file
from noisyteacher.pipeline.overlap import seen_before, trained_on
from noisyteacher.pipeline.steps import weights_of
from noisyteacher.runs import BEST, Run, is_run


def data_settings_of(where: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The settings `data` that the run of a trained model was made with, by itself or by the run it lies in.

    `where` is a run folder, a weights file in one, or a compression's folder `best`. None when no run tells: a bare
    file, a call from Python, a sweep over the data themselves. Raises FileFormatError for a damaged run.
    """
    path = weights_file(where)
    folder = path if os.path.isdir(path) else path.parent
    folder = folder.parent if folder.name == BEST else folder
    if not is_run(folder):
        return None
    run = Run.open(folder)
    for one in (run, *(Run(around) for around in reversed(run.around))):
        config = one.config
        if "base" in config:  # a sweep
            over_data = any(key.startswith("data.") for grid in config.get("grids", ()) for key in grid)
            return None if over_data else _table(config["base"])
        if "config" in config:  # a step that was asked for alone
            return _table(config["config"])
        if one.info["kind"] == "compress":
            return None if config.get("call") == "python" else _table(config)
    return None


def _table(settings: Any) -> dict[str, Any] | None:
    found = settings.get("data") if isinstance(settings, dict) else None
    return dict(found) if isinstance(found, dict) else None


def other_data(where: str | os.PathLike[str], data: Splits) -> str | None:
    """A sentence when the model is known to have been trained on other data than these, or on images that these judge
    it by; else None.

    Compared is the validation split, which a training on fewer rows of the same data leaves alone; without one the
    training split.
    """
    file = weights_of(where)
    if file.suffix != ".safetensors" or not file.exists():  # not one of ours, and silent about where it comes from
        return None
    settings = model_record(file).get("training", {}).get("settings", {})
    role = "val" if settings.get("val") else "train"
    theirs, here = settings.get(role), data.parts[role].fingerprint
    overlap = seen_before(trained_on(where), data, str(where))
    if overlap is not None or theirs is None or theirs == here:
        return overlap
    return (
        f"{where} was not trained on these data: its {role} split has the fingerprint {theirs[:12]}, "
        f"{data.name}'s has {here[:12]}"
    )
