"""Which rows are held out: stratified draws that are the same on every machine and with every library version.

Rows are ordered by their splitmix64 numbers, so no library's shuffle is involved (that may change between versions, and
a hold-out that changes silently makes numbers incomparable).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisyteacher.errors import DataError
from noisyteacher.rng import derive

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1


def splitmix64(seed: int, count: int) -> NDArray[np.uint64]:
    """The first `count` numbers of the splitmix64 generator (Steele, Lea & Flood 2014), uint64 `[count]`."""
    state = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN) + np.uint64(seed & _MASK)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = state ^ (state >> np.uint64(31))
    return mixed


def partition(labels: Tensor, sizes: Sequence[int], seed: int, *purpose: str) -> list[Tensor]:
    """Disjoint rows, int64 and ascending: one tensor per size, then one with all the rest.

    Every part has each class in proportion to the labels `[N]`, to within one row; the same arguments give the same.
    Raises DataError unless at least one row is left over.
    """
    if min(sizes) < 1 or sum(sizes) >= len(labels):
        raise DataError(f"{len(labels)} images are too few to draw {list(sizes)} of them and leave some for training")
    classes, keys, ranks, counts = _ranked(labels, seed, purpose)
    # The r-th of a class's n rows sits at (r + 1/2) / n on a line all classes share: any stretch of it is stratified.
    order = np.lexsort((keys, (ranks + 0.5) / counts[classes]))
    cuts = np.split(order, np.cumsum(sizes))
    return [torch.from_numpy(np.sort(cut)) for cut in cuts]


def per_class(labels: Tensor, limit: int, share: float, seed: int, *purpose: str) -> tuple[Tensor, Tensor]:
    """(chosen, rest), ascending int64 rows: `limit` of each class are chosen, at most the `share` of the class."""
    classes, _, ranks, counts = _ranked(labels, seed, purpose)
    quota = np.minimum(limit, np.floor(counts * share).astype(np.int64))
    chosen = ranks < quota[classes]
    return torch.from_numpy(np.flatnonzero(chosen)), torch.from_numpy(np.flatnonzero(~chosen))


def _ranked(
    labels: Tensor, seed: int, purpose: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]:
    """Labels, keys, each row's rank among the keys of its class, and the rows of every class."""
    classes: NDArray[np.int64] = labels.cpu().numpy()
    keys = splitmix64(derive(seed, "holdout", *purpose), len(classes))
    counts = np.bincount(classes)
    order = np.lexsort((keys, classes))
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    ranks = np.empty(len(classes), dtype=np.int64)
    ranks[order] = np.arange(len(classes)) - starts[classes[order]]
    return classes, keys, ranks, counts
