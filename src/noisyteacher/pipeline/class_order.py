"""Whether a teacher's classes are in the order of the data's: by their names, and by its predictions.

By predictions: the best one-to-one assignment of outputs to classes is fitted on one half of the images and tested on
the other. It is accepted if, on the images of the classes it moves, it is right significantly more often than the
current order (exact sign test, p < 1e-3), at least twice as often, and on at least half of them. Natural sorting (2
before 10), which other programs use for class folders, is tried first: nothing is fitted, so all images test it, and it
need not be right on half of them, because a barely trained teacher predicts few classes. If accuracy over all images is
less than half of that on the moved classes, wrong normalisation is the likelier cause, and no order is accepted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from scipy.special import bdtr
from torch import Tensor

from noisyteacher.data import Split
from noisyteacher.text import moved_classes, same_names

SIGNIFICANT, SHARE = 1e-3, 0.5
NEARLY = 0.9  # the natural order must be right this often, relative to the order that fits all images best
MOST_CLASSES = 4096  # beyond, the confusion matrix and the assignment take too long
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Check:
    """One check before the first step; `passed` is None where it could not be made."""

    name: str
    passed: bool | None
    message: str

    def describe(self) -> dict[str, str | bool | None]:
        """The JSON-able form."""
        return {"check": self.name, "passed": self.passed, "summary": self.message}


def check_class_names(
    theirs: Sequence[str] | None, ours: Sequence[str], who: str, present: Sequence[int] | None = None
) -> Check:
    """Whether class names that the model and the data share have the same number in both.

    present: the setting `teacher.class_order`; None where it has no effect.
    """
    name = "class order"
    if theirs is None:
        return Check(name, None, f"no class names are recorded for {who}")
    if len(theirs) != len(ours):
        return Check(name, False, f"{who} has {len(theirs)} classes, the data {len(ours)}")
    outputs = same_names(theirs, ours)
    matched = [output for output in outputs if output is not None]
    if moved := moved_classes(outputs, ours, who):
        complete = present is not None and sorted(matched) == list(range(len(ours)))
        remedy = f"; {_remedy(matched, present)}" if complete else ""
        return Check(name, False, f"the classes are in another order: {moved}{remedy}")
    if not matched:
        return Check(name, None, f"{who} calls its classes {theirs[0]!r}, ..., the data theirs {ours[0]!r}, ...")
    return Check(name, True, f"{len(matched)} of {len(ours)} classes have the same name and number")


def check_class_assignment(predicted: Tensor, split: Split, who: str, present: Sequence[int] = ()) -> Check:
    """Whether no other order of the teacher's outputs fits the labels significantly better (`find_reorder`).

    predicted: int64 `[N]`, the teacher's class for every row. present: the setting `teacher.class_order`.
    """
    name, n = "class assignment", len(split)
    if split.labels is None:
        return Check(name, None, f"{split.role} has no labels")
    if split.classes > MOST_CLASSES:
        return Check(name, None, f"more than {MOST_CLASSES:,} classes are not compared")
    predicted, labels = predicted.cpu(), split.labels.cpu()
    order = find_reorder(predicted, labels, split.class_names)
    if order is None:
        return Check(name, True, f"no other order of the classes fits {split.role} better (n = {n:,})")
    hits = [100 * int((predicted == expected).sum()) / n for expected in (labels, labels.new_tensor(order)[labels])]
    message = (
        f"{who}'s classes are in another order: {hits[0]:.2f} % of {split.role} are right as they stand and "
        f"{hits[1]:.2f} % in the order that fits (n = {n:,}); {moved_classes(order, split.class_names, who)}; "
        f"{_remedy(order, present)}"
    )
    return Check(name, False, message)


def _remedy(order: Sequence[int], present: Sequence[int] | None) -> str:
    """The setting that puts outputs in this order, on top of the present one."""
    combined = [present[output] for output in order] if present else order
    setting = f"--set 'teacher.class_order=[{','.join(map(str, combined))}]'"
    who = "a first teacher, or the model of evaluate, is put in order by"
    return f"{who} {setting} (in Python class_order in teacher_training)"


def natural_order(class_names: Sequence[str]) -> list[int]:
    """Entry k is where class k comes in natural sorting, letters in lower case: `("0", "10", "2")` gives [0, 2, 1]."""

    def key(number: int) -> list[tuple[int, int, str]]:
        parts = re.split(r"([0-9]+)", class_names[number].lower())
        return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]

    return list(np.argsort(sorted(range(len(class_names)), key=key)).tolist())


def find_reorder(predicted: Tensor, labels: Tensor, class_names: Sequence[str]) -> list[int] | None:
    """The order of the teacher's outputs (entry k is the output for class k); None where it seems to be the data's.

    predicted, labels: int64 `[N]`, the teacher's class and the true class of every image.
    """
    outputs, truth, classes = predicted.cpu().numpy(), labels.cpu().numpy(), len(class_names)
    everything = np.ones(len(truth), dtype=bool)
    table, same = _confusion(outputs, truth, classes), np.arange(classes)

    def explains(order: Ints) -> bool:
        """Whether, in this order, accuracy over all images is at least half of that on the classes it moves."""
        moved, hits = order != same, table[same, order]
        return bool(moved.any() and 2 * hits.sum() * table[moved].sum() >= hits[moved].sum() * table.sum())

    def is_better(order: Ints, rows: NDArray[np.bool_], level: float, share: float) -> bool:
        """Whether the order is significantly better for the rows of the classes that it moves (exact sign test)."""
        moved = rows & (order[truth] != truth)
        hits, before = ((outputs == expected)[moved].sum() for expected in (order[truth], truth))
        return bool(_convincing(hits, before, moved.sum(), share) and bdtr(before, hits + before, 0.5) < level)

    best, fitted = _fitted(table)
    natural = np.array(natural_order(class_names))
    nearly = table[same, natural].sum() >= NEARLY * table[same, best].sum()
    if nearly and explains(natural) and is_better(natural, everything, SIGNIFICANT, share=0.0):
        return list(natural.tolist())
    if explains(fitted):
        half = np.zeros(len(truth), dtype=bool)
        half[np.argsort(truth, kind="stable")[::2]] = True  # every class is in both halves
        for fit in (half, ~half):  # two tests, so each at half the level
            _, order = _fitted(_confusion(outputs[fit], truth[fit], classes))
            if is_better(order, ~fit, SIGNIFICANT / 2, SHARE):
                return list(fitted.tolist())
    return None


def _confusion(outputs: Ints, truth: Ints, classes: int) -> Ints:
    """Images by true class and chosen output, `[K, K]`."""
    return np.bincount(truth * classes + outputs, minlength=classes * classes).reshape(classes, classes)


def _fitted(table: Ints) -> tuple[Ints, Ints]:
    """The order with the most hits, and the same without its cycles that are not convincing: those of few images."""
    same = np.arange(len(table))
    bonus = np.eye(len(table)) / (2 * len(table))  # of equals, one that moves few classes
    best = np.asarray(linear_sum_assignment(table + bonus, maximize=True)[1], dtype=np.int64)
    _, cycle = connected_components(csr_array((np.ones(len(table)), (same, best))))
    hits, before, n = (np.bincount(cycle, counts) for counts in (table[same, best], table[same, same], table.sum(1)))
    return best, np.where(_convincing(hits, before, n, SHARE)[cycle], best, same)


def _convincing(hits: Any, before: Any, n: Any, share: float) -> Any:
    """Whether an order is right for this share of n images, and twice as often as before; numbers or arrays."""
    return (n > 0) & (hits >= share * n) & (hits >= 2 * before)
