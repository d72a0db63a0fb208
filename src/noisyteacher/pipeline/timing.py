"""How fast this machine trains and asks networks: a few steps of each, on a copy, before the work begins."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from noisyteacher.data import Batch, Split, Splits, expand_views, samples_of
from noisyteacher.device import resolve_device
from noisyteacher.errors import NoisyTeacherError
from noisyteacher.inference import inference
from noisyteacher.objectives import supervised
from noisyteacher.train import fit
from noisyteacher.train.history import Tick

STEPS, LONG_ENOUGH_S = 6, 0.5
"""A training is timed for so many steps after the first, or until they have taken so long."""
IMAGES = 32
"""Images that a network is asked when its answers are timed."""

Clock = Callable[[], float]


class _EnoughError(Exception):
    """Ends a training that is only timed."""


def training_seconds(
    model: nn.Module, data: Splits, recipe: Mapping[str, Any], device: str, clock: Clock = time.monotonic
) -> float | None:
    """Seconds that an epoch of training this model by these options of `fit` takes, validation included.

    A few steps are done, which change the model: pass a copy. None where it cannot be trained so: the training itself
    will say why.
    """
    options = {key: value for key, value in recipe.items() if key not in ("augment", "patience", "keep")}
    marks = [clock()]

    def mark(tick: Tick) -> None:
        marks.append(clock())
        if len(marks) - 2 >= STEPS or marks[-1] - marks[1] >= LONG_ENOUGH_S:
            raise _EnoughError

    objective = _nothing_learned if data.train.labels is None else supervised()
    try:
        with suppress(_EnoughError):
            fit(model, data.train, objective, **options, keep="last", device=device, progress=mark)
    except NoisyTeacherError:
        return None
    return epoch_seconds([after - before for before, after in pairwise(marks)], data, options)


def epoch_seconds(steps: list[float], data: Splits, recipe: Mapping[str, Any]) -> float:
    """Seconds of an epoch whose first steps took these: the median of those after the first, which sets things up.

    Validation counts as a third of a training step for each batch: it has no backward pass.
    """
    step = median(steps[1:] or steps)
    batch = int(recipe["batch_size"])
    samples = samples_of(data.train, expand_views(recipe["views"]), bool(recipe["every_view"]))
    return step * (max(1.0, samples / batch) + len(data.val) / batch / 3)


def answer_seconds(model: nn.Module, split: Split, device: str, clock: Clock = time.monotonic) -> float:
    """Seconds that this model takes to answer one image of the split, asked many at once."""
    images = split.first_images(min(IMAGES, len(split)))
    with inference(model, resolve_device(device)) as place:
        images = images.to(place)
        model(images[:1])
        begun = clock()
        answers: Tensor = model(images)
        float(answers.sum())  # a GPU has answered once a number is there
        return (clock() - begun) / len(images)


def _nothing_learned(logits: Tensor, batch: Batch) -> Tensor:
    """A loss of as much work as any, for images without labels."""
    return torch.square(logits).mean()
