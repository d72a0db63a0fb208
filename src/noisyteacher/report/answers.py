"""Figures of a model's answers on one split: calibration and confusion."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from noisyteacher.report.drawing import COLOURS, MARKERS, colours, draw, legend
from noisyteacher.report.figures import ROLES, Figure
from noisyteacher.report.study import Details, Line, Study
from noisyteacher.text import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

LEAST = 10
"""A bin of fewer rows says nothing of accuracy; it is not drawn."""
WORDS = 12
"""Up to so many classes the cells of a confusion carry their numbers and the axes all names."""


def reliability(name: str, study: Study, lines: Sequence[Line], role: str) -> Figure | None:
    """Accuracy against confidence in bins, for each line; None where no line has the numbers."""
    known = [line for line in lines if role in line.details and line.details[role].bins]
    if not known:
        return None
    kinds = [line.kind for line in known]

    def paint(figure: Canvas) -> None:
        axes, below = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [4, 1]})
        axes.plot([0, 100], [0, 100], color=COLOURS["muted"], linewidth=1, linestyle=(0, (4, 3)))
        for number, (line, colour) in enumerate(zip(known, colours(kinds), strict=True)):
            details = line.details[role]
            total = sum(count for count, _, _ in details.bins)
            full = [one for one in details.bins if one[0] >= LEAST]
            x, y = [one[1] for one in full], [one[2] for one in full]
            axes.plot(x, y, color=colour, marker=MARKERS[number % len(MARKERS)], label=_with_ece(line, role))
            shares = [100 * count / total for count, _, _ in details.bins]
            below.plot(
                [one[1] for one in details.bins],
                shares,
                color=colour,
                marker=MARKERS[number % len(MARKERS)],
                markersize=3,
                linewidth=1,
            )
        axes.set_ylabel("accuracy (%)")
        axes.set_ylim(0, 102)
        below.set_ylabel("rows (%)")
        below.set_ylim(bottom=0)
        below.set_xlabel("confidence (%)")
        below.set_xlim(0, 102)
        legend(figure, axes, 1)

    n = study.images(role, known)
    caption = (
        f"Reliability on {ROLES.get(role, role)}, {study.of_models}"
        + (f", {n}" if n else "")
        + f": mean accuracy of the answers in each of 15 bins of confidence (those of {LEAST} rows or more), seeds "
        "pooled; on the broken line confidence is deserved, below it the model is too sure. Small panel: share of the "
        "rows in each bin. "
        "ECE: expected calibration error."
    )
    told = "; ".join(_with_ece(line, role) for line in known)
    return Figure(draw(name, 290 + 12 * len(known), f"Reliability diagram: {told}", paint), shown(caption))


def confusion(name: str, study: Study, line: Line, role: str) -> Figure | None:
    """Which class is taken for which, rows in percent of the label; None where the run has no counts."""
    details = line.details.get(role)
    if details is None or not details.confusion:
        return None
    matrix = details.confusion
    size = len(matrix)
    classes = class_names(study, line, size)
    totals = [max(1, sum(row)) for row in matrix]

    def paint(figure: Canvas) -> None:
        axes = figure.add_subplot()
        axes.grid(visible=False)
        axes.set_xlim(-0.5, size - 0.5)
        axes.set_ylim(size - 0.5, -0.5)
        axes.set_aspect("equal")
        _cells(axes, matrix, totals)
        ticks = range(size) if size <= 2 * WORDS else range(0, size, math.ceil(size / 12))
        names = [shown(classes[place], 10) for place in ticks]
        upright = max(map(len, names)) <= 2
        axes.set_xticks(list(ticks), names, rotation=0 if upright else 90)
        axes.set_yticks(list(ticks), names)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_xlabel("chosen class")
        axes.set_ylabel("label")

    n = study.images(role, [line])
    wrong = sum(sum(row) - row[place] for place, row in enumerate(matrix))
    over = f" over {details.seeds} seeds" if details.seeds > 1 else ""
    caption = (
        f"Confusion of {line.title} on {ROLES.get(role, role)}, {study.data_of(line)}"
        + (f", {n}" if n else "")
        + f"{over}: {wrong:,} of {sum(map(sum, matrix)):,} answers wrong. "
        + (
            "Cells: percent of the label's rows; blue right, orange wrong (the square root of the share)."
            if size <= WORDS
            else "Shade: the square root of the share of the label's rows; blue right, orange wrong."
        )
    )
    told = "; ".join(f"{classes[label]} taken for {classes[choice]} {count}" for label, choice, count in worst(matrix))
    alt = f"Confusion matrix of {line.title}, {size} classes; most frequent errors: {told or 'none'}"
    return Figure(draw(name, 330, shown(alt), paint), shown(caption))


def worst(matrix: Sequence[Sequence[int]], most: int = 5) -> list[tuple[int, int, int]]:
    """(label, chosen class, count) of the most frequent errors, largest first."""
    found = [
        (label, choice, count)
        for label, row in enumerate(matrix)
        for choice, count in enumerate(row)
        if label != choice and count
    ]
    return sorted(found, key=lambda one: (-one[2], one[0], one[1]))[:most]


def class_names(study: Study, line: Line, size: int) -> tuple[str, ...]:
    """The names of the classes that a line tells apart, their numbers where the run does not tell them."""
    own = next((one.classes for one in line.details.values() if one.classes), () if line.data else study.classes)
    return own if len(own) == size else tuple(map(str, range(size)))


def _cells(axes: Axes, matrix: Sequence[Sequence[int]], totals: Sequence[int]) -> None:
    size = len(matrix)
    if size > 2 * WORDS:
        _pixels(axes, matrix, totals)
        return
    from matplotlib.patches import Rectangle

    for label, row in enumerate(matrix):
        for choice, count in enumerate(row):
            share = count / totals[label]
            colour = COLOURS["clean" if label == choice else "noisy"]
            shade = (0.45 if label == choice else 0.85) * math.sqrt(share)
            box = Rectangle(
                (choice - 0.47, label - 0.47), 0.94, 0.94, facecolor=colour if count else COLOURS["grid"],
                alpha=shade if count else 0.35, linewidth=0,
            )  # fmt: skip
            axes.add_patch(box)
            if count and size <= WORDS:
                text = f"{100 * share:.0f}" if share >= 0.01 else "<1"
                axes.text(choice, label, text, ha="center", va="center", fontsize=8.5)


def _pixels(axes: Axes, matrix: Sequence[Sequence[int]], totals: Sequence[int]) -> None:
    """Many classes as one picture: a transparent one, so that it reads on light and dark."""
    import numpy as np

    shares = np.sqrt(np.array(matrix, dtype=np.float64) / np.array(totals, dtype=np.float64)[:, None])
    image = np.zeros((*shares.shape, 4))
    image[..., :3] = (0.84, 0.37, 0.0)
    image[..., 3] = 0.06 + 0.94 * shares
    diagonal = np.arange(len(matrix))
    image[diagonal, diagonal, :3] = (0.13, 0.5, 0.8)
    axes.imshow(image, interpolation="nearest", aspect="equal")


def _with_ece(line: Line, role: str) -> str:
    ece = line.scores.get(f"{role}_ece_%")
    return shown(line.title, 30) + (f" (ECE {ece.mean:.1f} %)" if ece else "")


def shared_role(details: Mapping[str, Details], wanted: str) -> str | None:
    """The split to show: the wanted one where it is known, else any."""
    return wanted if wanted in details else next(iter(details), None)
