"""A file's answers beside torch's: how far apart, how often the same class, how fast, call by call in turns."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from noisyteacher import metrics
from noisyteacher.data import Split, Splits
from noisyteacher.errors import ExportError, TrainingError, UsageError
from noisyteacher.export.to_pt2 import Runner
from noisyteacher.measure import Latency, percentile
from noisyteacher.models import Classifier
from noisyteacher.rng import stream
from noisyteacher.stats import Quantity

BATCH = 256
RANDOM_IMAGES = 256


@dataclass(frozen=True)
class Reference:
    """The images a file is asked about, their labels where there are any, and torch's logits for them."""

    name: str
    split: Split | None
    """None: `random` holds the images."""
    random: Tensor | None
    logits: Tensor

    @property
    def labels(self) -> Tensor | None:
        """int64 `[N]`, or None."""
        return None if self.split is None else self.split.labels

    def parts(self) -> Iterator[Tensor]:
        """All images in order, uint8, some at a time."""
        if self.split is None:
            assert self.random is not None
            yield from torch.split(self.random, BATCH)
        else:
            for rows in torch.split(torch.arange(len(self.split)), BATCH):
                yield self.split.images_at(rows)


@dataclass(frozen=True)
class Compared:
    """A file's answers beside torch's; names as in Exported."""

    agreement: Quantity
    accuracy: Quantity | None
    torch_accuracy: Quantity | None
    difference: float

    @property
    def drop(self) -> float:
        """Points of accuracy lost against torch; without labels of agreement."""
        if self.accuracy is None or self.torch_accuracy is None:
            return 100 - self.agreement
        return self.torch_accuracy - self.accuracy


def reference_of(model: Classifier, data: Splits | None) -> Reference:
    """Torch's answers on the whole validation split; without data on seeded random images, which tell no accuracy.

    Raises TrainingError when they are not finite.
    """
    shape = model.input_shape
    assert shape is not None
    if data is None:
        drawn = torch.randint(
            0, 256, (RANDOM_IMAGES, *shape), dtype=torch.uint8, generator=stream(0, "export", "images")
        )
        blank = Reference("random images", None, drawn, torch.empty(0))
    else:
        blank = Reference(f"{data.name}, {data.val.role}", data.val, None, torch.empty(0))
    logits = torch.cat([model(part) for part in blank.parts()]).float()
    if not torch.isfinite(logits).all():
        raise TrainingError(f"{model.name!r}: its logits on {blank.name} are not finite: nothing to export")
    return Reference(blank.name, blank.split, blank.random, logits)


def compare(run: Runner, reference: Reference) -> Compared:
    """The file's answers to all images of the reference, beside torch's.

    Raises ExportError when they are not logits of the same shape, or not finite.
    """
    theirs = torch.cat([run(part) for part in reference.parts()]).float()
    ours, labels = reference.logits, reference.labels
    if theirs.shape != ours.shape or not torch.isfinite(theirs).all():
        what = "" if theirs.shape != ours.shape else " logits that are not all finite"
        raise ExportError(
            f"the file answers {tuple(theirs.shape)}{what}, torch {tuple(ours.shape)} finite logits on "
            f"{reference.name}: it was not kept"
        )
    n = len(ours)

    def accuracy(logits: Tensor) -> Quantity | None:
        return None if labels is None else Quantity(metrics.accuracy(logits, labels), "%", n)

    share = Quantity(metrics.agreement(theirs, ours), "%", n)
    return Compared(share, accuracy(theirs), accuracy(ours), float((theirs - ours).abs().max()))


def calibration_images(data: Splits | Split | None, count: int) -> Tensor:
    """So many training images, drawn from the stream (0, "export", "calibration"), uint8 `[n, C, H, W]`.

    All of them where there are fewer. Raises UsageError without data, and for a split that is not for training:
    what an int8 file is judged on must not have set its ranges.
    """
    if data is None:
        raise UsageError("int8 sets its ranges on training images and no data were given: pass data=")
    split = data if isinstance(data, Split) else data.train
    if split.role != "train":
        raise UsageError(
            f"int8 was to be calibrated on a split whose role is {split.role!r}: only training images may set ranges"
        )
    rows = torch.randperm(len(split), generator=stream(0, "export", "calibration"))[:count]
    return split.images_at(rows.sort().values)


def race(runners: Mapping[str, Runner], images: Tensor, threads: int, runs: int) -> dict[str, Latency]:
    """Wall time of each runner for these images, call by call in turns, so that all meet the same disturbances."""
    times: dict[str, list[float]] = {name: [] for name in runners}
    for turn in range(-max(3, runs // 10), runs):
        for name, run in runners.items():
            start = time.perf_counter_ns()
            run(images)
            if turn >= 0:
                times[name].append((time.perf_counter_ns() - start) / 1e6)
    return {
        name: Latency(percentile(found, 50), percentile(found, 95), len(images), threads, "cpu", runs)
        for name, found in times.items()
    }


@contextlib.contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Inside, torch computes with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
