"""Whether a teacher's outputs stand for the data's classes in another order: told from its answers to labelled images.

The best one-to-one assignment of outputs to classes is found on one half of the images and judged on the other, where
it was not fitted. It counts as another order only if three things hold there, on the classes that it moves:

- it is right more often than the order as it stands, by an exact sign test over the images on which the two differ,
  with p < 1e-3;
- it is right for at least half of the images, unless it is natural sorting (an untrained teacher answers with few
  classes, and no one-to-one assignment is right that often);
- it is right at least twice as often as the order as it stands (two classes that a weak teacher takes for each other).

And with it the teacher must be right for all images together at least half as often as for those of the moved classes:
where it is not, as with a wrong normalisation, the order is not what is wrong.

Each cycle of the assignment must meet the last two of the three on the half it is fitted on, or it is left out: where a
class has few images the assignment moves it by accident. The order of natural sorting (2 before 10), in which other
programs sort class folders, is tried before any fitted one: nothing is fitted, so all images judge it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

SIGNIFICANT, SHARE = 1e-3, 0.5
NEARLY = 0.9
"""The natural order must be right this often, relative to the order that fits all images best."""
MOST_CLASSES = 4096
"""The table of confusions and the assignment take too much beyond."""
Order = NDArray[np.int64]


@dataclass(frozen=True)
class Reorder:
    """An order of a teacher's outputs that fits the labels significantly better than the one they have."""

    order: tuple[int, ...]
    """Entry k is the output that stands for class k of the data."""
    natural: bool
    """Whether it is the order of natural sorting of the data's class names."""
    as_it_stands: int
    """Images that are right in the order the outputs have."""
    reordered: int
    """Images that are right in this order."""
    n: int
    """Images with labels."""

    @property
    def moved(self) -> list[int]:
        """The classes that stand elsewhere."""
        return [number for number, output in enumerate(self.order) if number != output]


def natural_order(class_names: Sequence[str]) -> tuple[int, ...]:
    """Entry k is where class k comes in natural sorting, letters in lower case: `("0", "10", "2")` gives (0, 2, 1)."""

    def key(number: int) -> list[tuple[int, int, str]]:
        parts = re.split(r"([0-9]+)", class_names[number].lower())
        return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]

    ranked = sorted(range(len(class_names)), key=key)
    places = {number: place for place, number in enumerate(ranked)}
    return tuple(places[number] for number in range(len(class_names)))


def find_reorder(predicted: Tensor, labels: Tensor, class_names: Sequence[str]) -> Reorder | None:
    """The order in which the teacher's outputs stand, or None where nothing speaks for another than the data's.

    predicted, labels: int64 `[N]`, the teacher's class and the true class of every image.
    """
    chosen, truth = predicted.cpu().numpy(), labels.cpu().numpy()
    classes, rows = len(class_names), np.arange(len(truth))
    table = _confusion(chosen, truth, classes)
    fitted = _fitted(table)
    natural = np.array(natural_order(class_names))
    same = np.arange(classes)
    fits = _hits(table, natural) >= NEARLY * _hits(table, _best(table)) and _explains(natural, table)
    if (natural != same).any() and fits and _is_better(natural, chosen, truth, rows, share=0.0):
        return _reorder(natural, table, natural=True)
    if (fitted == same).all() or not _explains(fitted, table):
        return None
    halves = _halves(truth)
    for fit, judge in (halves, halves[::-1]):  # two tests, so each at half the level
        order = _fitted(_confusion(chosen[fit], truth[fit], classes))
        if _is_better(order, chosen, truth, judge, SIGNIFICANT / 2):
            return _reorder(fitted, table, natural=False)
    return None


def _reorder(order: Order, table: NDArray[np.int64], natural: bool) -> Reorder:
    return Reorder(tuple(order.tolist()), natural, int(np.trace(table)), _hits(table, order), int(table.sum()))


def _confusion(chosen: Order, truth: Order, classes: int) -> NDArray[np.int64]:
    """Images by true class and chosen output, `[K, K]`."""
    return np.bincount(truth * classes + chosen, minlength=classes * classes).reshape(classes, classes)


def _hits(table: NDArray[np.int64], order: Order) -> int:
    return int(table[np.arange(len(order)), order].sum())


def _best(table: NDArray[np.int64]) -> Order:
    """The order with the most hits; of several with as many one that moves few classes."""
    from scipy.optimize import linear_sum_assignment

    # For staying there is half a hit, over all classes together: it decides ties and nothing else.
    _, outputs = linear_sum_assignment(table + np.eye(len(table)) / (2 * len(table)), maximize=True)
    return np.asarray(outputs, dtype=np.int64)


def _fitted(table: NDArray[np.int64]) -> Order:
    """The best order, without those of its cycles that are right for few of their images."""
    best = _best(table)
    order = np.arange(len(table))
    seen: set[int] = set()
    for start in range(len(table)):
        cycle, number = [], start
        while number not in seen:
            seen.add(number)
            cycle.append(number)
            number = int(best[number])
        there = np.array(cycle, dtype=np.int64)
        if _convincing(table[there, best[there]].sum(), table[there, there].sum(), table[there].sum(), SHARE):
            order[there] = best[there]
    return order


def _convincing(reordered: int, as_it_stands: int, n: int, share: float) -> bool:
    """Whether an order is right for this share of n images, and twice as often as the one that stands."""
    return bool(n and reordered >= share * n and reordered >= 2 * as_it_stands)


def _explains(order: Order, table: NDArray[np.int64]) -> bool:
    """Whether the order makes the teacher right for all images at least half as often as for the classes it moves."""
    moved = np.flatnonzero(order != np.arange(len(order)))
    hits, n = int(table[moved, order[moved]].sum()), int(table[moved].sum())
    return 2 * _hits(table, order) * n >= hits * int(table.sum())


def _is_better(
    order: Order, chosen: Order, truth: Order, rows: Order, level: float = SIGNIFICANT, share: float = SHARE
) -> bool:
    """Whether the order is significantly better on these rows, on the classes that it moves."""
    moved = rows[order[truth[rows]] != truth[rows]]
    reordered, as_it_stands = chosen[moved] == order[truth[moved]], chosen[moved] == truth[moved]
    if not _convincing(reordered.sum(), as_it_stands.sum(), len(moved), share):
        return False
    return _sign_test(int(reordered.sum()), int(as_it_stands.sum())) < level


def _sign_test(better: int, worse: int) -> float:
    """The probability of so many or more `better` among all, if better and worse were equally likely."""
    from scipy.special import bdtr

    return float(bdtr(worse, better + worse, 0.5))


def _halves(truth: Order) -> tuple[Order, Order]:
    """Two halves of the rows, every class in both by turns."""
    ranked = np.argsort(truth, kind="stable")
    first = np.zeros(len(truth), dtype=bool)
    first[ranked[::2]] = True
    return np.flatnonzero(first), np.flatnonzero(~first)
