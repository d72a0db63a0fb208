"""Checks of the order of classes: by their names, and by which outputs a teacher has for labelled images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from noisyteacher.data import Split
from noisyteacher.pipeline.class_matching import MOST_CLASSES, find_reorder, natural_order
from noisyteacher.text import few

SHOWN = 3
REORDER = "put them in order by {setting} (in Python teacher_training=dict(class_order=...))"
REORDER_FURTHER = (
    "only the first teacher is put in order, by {setting}: compress with this one as the first, then name that run's "
    "teacher/ here"
)
REORDER_STORE = "store the answers again by extract with {setting}"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    check: str
    held: bool | None
    """None where it could not be looked at; `told` says why."""
    told: str
    """A sentence with the numbers, and n where there is one."""


def class_order(
    theirs: Sequence[str] | None, ours: Sequence[str], who: str, order: Sequence[int] | None = None
) -> Check:
    """Whether names of classes that both sides know stand at the same places on both.

    order: what `teacher.class_order` says already; None where that setting has no effect.
    """
    name = "class order"
    if theirs is None:
        return Check(name, None, f"nothing says how {who} calls its classes")
    if len(theirs) != len(ours):
        return Check(name, False, f"{who} has {len(theirs)} classes, the data {len(ours)}")
    places = {_word(one): number for number, one in enumerate(theirs)}
    moved = [
        f"{ours[number]!r} is class {number} of the data and {places[_word(one)]} of {who}"
        for number, one in enumerate(ours)
        if places.get(_word(one), number) != number
    ]
    if moved:
        more = "" if len(moved) <= SHOWN else f", and {len(moved) - SHOWN} more"
        outputs = [places[_word(own)] for own in ours if _word(own) in places]
        remedy = ""
        if order is not None and sorted(outputs) == list(range(len(ours))):
            new = [order[output] for output in outputs] if order else outputs
            remedy = f"; {REORDER.format(setting=class_order_setting(new))}"
        return Check(name, False, f"the classes stand in another order: {', '.join(moved[:SHOWN])}{more}{remedy}")
    known = sum(_word(one) in places for one in ours)
    if not known:
        return Check(name, None, f"{who} calls its classes {theirs[0]!r}, ..., the data theirs {ours[0]!r}, ...")
    return Check(name, True, f"{known} of {len(ours)} classes are named alike, each at the same place")


def class_assignment(
    predicted: Tensor, split: Split, who: str, order: Sequence[int] = (), remedy: str = REORDER
) -> Check:
    """Whether no other order of the teacher's outputs fits the labels significantly better (`find_reorder`).

    predicted: int64 `[N]`, the teacher's class for every row. order: what `teacher.class_order` says already. remedy:
    what to do, with `{setting}` where the setting that puts the outputs in order is to stand.
    """
    name = "class assignment"
    if split.labels is None:
        return Check(name, None, f"{split.role} has no labels")
    if split.classes > MOST_CLASSES:
        return Check(name, None, f"more than {MOST_CLASSES:,} classes are not compared one by one")
    better = find_reorder(predicted, split.labels, split.class_names)
    if better is None:
        return Check(name, True, f"no other order of the classes fits {split.role} better (n = {len(split):,})")
    moved = [
        f"{split.class_names[number]!r} is class {number} of the data and output {better.order[number]} of {who}"
        for number in better.moved[:SHOWN]
    ]
    more = "" if len(better.moved) <= SHOWN else f", and {len(better.moved) - SHOWN} more"
    new = better.order if not order else [order[output] for output in better.order]
    return Check(
        name, False,
        f"{who}'s classes stand in another order: {100 * better.as_it_stands / better.n:.2f} % of {split.role} are "
        f"right as they stand and {100 * better.reordered / better.n:.2f} % in the order that fits (n = {better.n:,}); "
        f"{', '.join(moved)}{more}{natural_hint(split.class_names) if better.natural else ''}; "
        f"{remedy.format(setting=class_order_setting(new))}",
    )  # fmt: skip


def class_order_setting(order: Sequence[int]) -> str:
    """The order as an option of the command line, to be pasted."""
    return f"--set 'teacher.class_order=[{','.join(map(str, order))}]'"


def natural_hint(class_names: Sequence[str]) -> str:
    """A clause on natural sorting, where it would sort these classes otherwise; else empty."""
    order = natural_order(class_names)
    if list(order) == list(range(len(class_names))):
        return ""
    natural = sorted(range(len(class_names)), key=order.__getitem__)
    return (
        f"; the data's classes are sorted as text ({few(class_names, 4)}), while timm and others sort folders "
        f"naturally ({few([class_names[number] for number in natural], 4)})"
    )


def _word(name: str) -> str:
    return " ".join(str(name).lower().replace("_", " ").replace("-", " ").split())
