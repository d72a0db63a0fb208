"""Which rows are held out: stratified draws that are the same on every machine and with every library version.

Rows are ordered by their splitmix64 numbers, so no library's shuffle is involved (that may change between versions, and
a hold-out that changes silently makes numbers incomparable).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisyteacher.data.split import Split, Splits
from noisyteacher.errors import DataError
from noisyteacher.rng import derive_seed

Content = Mapping[str, tuple[Tensor, Tensor | None]]
"""Role -> images `[N, C, H, W]` and labels `[N]` or None."""


def splitmix64(seed: int, count: int) -> NDArray[np.uint64]:
    """The first `count` numbers of the splitmix64 generator (Steele, Lea & Flood 2014), uint64 `[count]`."""
    state = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed % 2**64)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    numbers: NDArray[np.uint64] = state ^ (state >> np.uint64(31))
    return numbers


def partition(labels: Tensor, sizes: Sequence[int], seed: int, *purpose: str) -> list[Tensor]:
    """Disjoint rows, int64 and ascending: one tensor per size, then one with all the rest.

    Every part has each class in proportion to the labels `[N]`, to within one row; the same arguments give the same.
    Raises DataError unless at least one row remains.
    """
    if min(sizes) < 1 or sum(sizes) >= len(labels):
        raise DataError(f"{len(labels)} images are too few to draw {list(sizes)} of them and leave some for training")
    classes, keys, ranks, counts = _ranked(labels, seed, purpose)
    # The r-th of a class's n rows sits at (r + 1/2) / n on a line all classes share: any stretch of it is stratified.
    order = np.lexsort((keys, (ranks + 0.5) / counts[classes]))
    return [torch.from_numpy(np.sort(rows)) for rows in np.split(order, np.cumsum(sizes))]


def per_class(labels: Tensor, limit: int, seed: int, *purpose: str) -> tuple[Tensor, Tensor]:
    """(chosen, rest), ascending int64 rows: `limit` of each class are chosen, at most a fifth of the class."""
    classes, _, ranks, counts = _ranked(labels, seed, purpose)
    quota = np.minimum(limit, counts // 5)
    chosen = ranks < quota[classes]
    return torch.from_numpy(np.flatnonzero(chosen)), torch.from_numpy(np.flatnonzero(~chosen))


def _ranked(
    labels: Tensor, seed: int, purpose: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]:
    """Labels, keys, each row's rank among the keys of its class, and the rows of every class."""
    classes: NDArray[np.int64] = labels.cpu().numpy()
    keys = splitmix64(derive_seed(seed, "holdout", *purpose), len(classes))
    counts = np.bincount(classes)
    order = np.lexsort((keys, classes))
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    ranks = np.empty(len(classes), dtype=np.int64)
    ranks[order] = np.arange(len(classes)) - starts[classes[order]]
    return classes, keys, ranks, counts


def make_splits(
    name: str, content: Content, class_names: tuple[str, ...], seed: int, share: int = 10, purpose: str = "tenths"
) -> Splits:
    """The Splits of images and labels by role.

    The role `all` is cut 80/10/10; without `val` one of every `share` rows of `train` is held out. Both draws are
    stratified, and the same for the same seed and purpose. Images without labels are drawn as one class.
    """
    splits = {}
    for role, (images, labels) in content.items():
        role = "train" if role == "all" else role
        splits[role] = Split(images, labels, torch.arange(len(images)), role, name, class_names)
    full = splits["train"]
    size = max(1, round(len(full) / share))
    strata = _strata(full)
    # The purpose is not the name of the data: renaming a file or moving a folder must not change its hold-out.
    if "all" in content:
        test, val, train = partition(strata, [size, size], seed, purpose)
        splits = {"train": full.subset(train), "val": full.subset(val, "val"), "test": full.subset(test, "test")}
    elif "val" not in splits:
        val, train = partition(strata, [size], seed, purpose)
        splits |= {"train": full.subset(train), "val": full.subset(val, "val")}
    return Splits(name, splits["train"], splits["val"], splits.get("test"))


def _strata(split: Split) -> Tensor:
    """The labels `[N]`, or one class for all rows where there are none."""
    return torch.zeros(len(split), dtype=torch.int64) if split.labels is None else split.labels


def limited(split: Split, limit: int) -> Split:
    """At most `limit` rows of the split, drawn with every class in proportion; the same rows every time."""
    if limit >= len(split):
        return split
    return split.subset(partition(_strata(split), [limit], 0, "limit", split.role)[0])
