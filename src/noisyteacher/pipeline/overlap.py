"""Whether a model was trained on the images that it is judged on, as far as its files tell."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from noisyteacher.data import Splits
from noisyteacher.models import PREFIX, model_record, pretrained
from noisyteacher.pipeline.steps import run_of, weights_of
from noisyteacher.runs import by_name
from noisyteacher.text import SPLIT_NAMES

SHARED: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("mnist", "mnist-5k"): ("val", "test"),
    ("mnist-5k", "mnist"): ("val",),
}
"""(data trained on, data judged on): the splits of the latter that hold training images of the former.

The embedded mnist-5k is a part of MNIST's training set, from which mnist's own validation images are taken, too."""


def trained_on(where: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The data a saved model was trained on: `name`, and `train`, the fingerprint of the split; None where unknown.

    `where` is a run folder, a weights file or `pretrained:NAME`. Raises FileFormatError for a damaged file.
    """
    file = weights_of(where)
    if file.suffix != ".safetensors" or not file.exists():  # a file of another library says nothing of its data
        return None
    record = model_record(file)
    found = {
        "name": (record.get("data") or {}).get("name"),
        "train": record.get("training", {}).get("settings", {}).get("train"),
    }
    text = os.fspath(where)
    run = run_of(where)
    if text.startswith(PREFIX):
        found["name"] = pretrained()[text.removeprefix(PREFIX)]["data"]["name"]
    elif run is not None and run.info["kind"] == "given":
        earlier = (run.result() or {}).get("trained_on") or {}
        found = {key: earlier.get(key) or value for key, value in found.items()}
    elif run is not None:
        data = by_name(run.config).get("data")
        found["name"] = data.get("name") if isinstance(data, dict) else found["name"]
    return found if any(found.values()) else None


def seen_before(source: Mapping[str, Any] | None, data: Splits, who: str = "the teacher") -> str | None:
    """A sentence without its full stop where a model trained on `source` (`trained_on`) has seen images on which it is
    judged here; None where nothing says so.
    """
    if not source:
        return None
    judged = {role: split for role, split in data.parts.items() if role != "train"}
    roles = [role for role in SHARED.get((source.get("name") or "", data.name), ()) if role in judged]
    roles = roles or [role for role, split in judged.items() if split.fingerprint == source.get("train")]
    if not roles:
        return None
    images = f"{' and '.join(SPLIT_NAMES[role] for role in roles)} images of {data.name}"
    origin = source.get("name") or "a training set"
    return (
        f"{who} was trained on {origin}, which contains {images}: it has seen them, so its errors on them say "
        "nothing of new images"
    )
