"""Figures of errors: against sigma and alpha, differences to the clean student, by epoch, beside the paper's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from noisyteacher.report.drawing import (
    COLOURS,
    MARKERS,
    SERIES,
    colours,
    draw,
    legend,
    plain_numbers,
    whole_numbers,
)
from noisyteacher.report.series import Chart
from noisyteacher.report.study import Curve, Difference, Estimate, Line, PaperRow, Study
from noisyteacher.text import shown, signed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

ROLES = {"test": "test", "val": "validation"}
_LEVEL = {"teacher": "teacher", "labels": "labels alone"}


@dataclass(frozen=True)
class Figure:
    """A drawing with what is said below it and to those who cannot see it."""

    svg: str
    """An `<svg>` element, safe to be put into a page as it is."""
    caption: str


def along(name: str, chart: Chart) -> Figure:
    """Error along sigma or alpha: means with their intervals, the clean student, the teacher, the paper."""
    values = [bound for one in chart.series for _, error, _ in one.points for bound in _bounds(error)]
    values += list(_bounds(chart.clean)) if chart.clean else []
    values += [value for curve in chart.paper for value in (*curve.errors, curve.clean_error)]
    top, bottom = max(values), min(values)
    reach = 0.8 * max(top - bottom, 0.05 * top)
    others = [("teacher", chart.teacher_error, (5, 2)), ("labels", chart.labels, (1, 1.5))]
    level = [(kind, error.mean, dashes) for kind, error, dashes in others if error is not None]
    near = [one for one in level if bottom - reach <= one[1] <= top + reach]
    far = [f"{_LEVEL[one[0]]} {one[1]:.2f} %" for one in level if one not in near]

    def paint(figure: Canvas) -> None:
        axes = figure.add_subplot()
        if chart.clean is not None:
            low, high = chart.clean.low, chart.clean.high
            axes.axhline(chart.clean.mean, color=COLOURS["clean"], linewidth=1.2, label="clean (no noise)")
            if low is not None and high is not None:
                axes.axhspan(low, high, color=COLOURS["clean"], alpha=0.12, linewidth=0)
        for kind, mean, dashes in near:
            axes.axhline(mean, color=COLOURS[kind], linewidth=1.2, linestyle=(0, dashes), label=_LEVEL[kind])
        for number, one in enumerate(chart.series):
            colour = COLOURS["noisy"] if len(chart.series) == 1 else COLOURS[SERIES[number % len(SERIES)]]
            # Curves of one figure are moved aside a little, so that their intervals do not cover each other.
            shift = 0.012 * (number - (len(chart.series) - 1) / 2)
            _curve(axes, one.points, shift, colour, MARKERS[number % len(MARKERS)], one.label or "noisy teacher")
        for number, curve in enumerate(chart.paper):
            axes.plot(
                (0.0, *curve.x),
                (curve.clean_error, *curve.errors),
                color=COLOURS["paper"],
                linestyle=(0, (2, 2)),
                marker="os^"[number % 3],
                markerfacecolor="none",
                markersize=4,
                linewidth=1.1,
                label=f"paper, {curve.where}",
            )
        axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))
        axes.set_xlabel(f"{chart.axis}" + (" (standard deviation of the noise)" if chart.axis == "sigma" else ""))
        axes.set_ylabel(f"{ROLES.get(chart.role, chart.role)} error (%)")
        legend(figure, axes)

    counts = sorted({error.n for one in chart.series for _, error, _ in one.points})
    held = {"sigma": "alpha", "alpha": "sigma"}[chart.axis]
    fixed = sorted({_plain(one.held[f"noise.{held}"]) for one in chart.series if f"noise.{held}" in one.held})
    caption = [
        f"{ROLES.get(chart.role, chart.role).capitalize()} error against {chart.axis}"
        + (f", {chart.title}" if chart.title else "")
        + f": {chart.student or 'student'} from {chart.teacher or 'teacher'}, {chart.data}, "
        + (f"n = {chart.n:,} images, " if chart.n else "")
        + _seeds(counts)
        + (f", {held} {' and '.join(fixed)}." if fixed else ".")
    ]
    caption.append(
        "Bars and band: 95 % Student-t interval over seeds."
        if counts[-1] > 1
        else "One seed: there are no intervals over seeds, so differences between points mean little."
    )
    if any(line.chosen for one in chart.series for _, _, line in one.points):
        caption.append("Ring: chosen by validation error.")
    if far:
        caption.append(f"Outside the figure: {', '.join(far)}.")
    if chart.paper:
        digitised = any(curve.digitised for curve in chart.paper)
        caption.append(
            "Paper: single runs without intervals"
            + (", read off a figure (within 0.04 points)" if digitised else "")
            + "; its value at 0 is logit regression."
        )
    ends = [f"{one.label or 'noisy teacher'} {_at(one.points[0])} to {_at(one.points[-1])}" for one in chart.series]
    alt = f"Line chart of {chart.role} error against {chart.axis}: {'; '.join(ends)}"
    alt += f"; clean {chart.clean.mean:.2f} %" if chart.clean else ""
    return Figure(draw(name, 250, shown(alt), paint), " ".join(caption))


def differences(name: str, study: Study) -> Figure | None:
    """Each line's error minus the clean student's, with intervals, around zero; None where there is nothing paired."""
    role = study.role
    reference = "clean logit regression" if study.of_noise else "the distilled student"
    found = [(line, line.against_clean) for line in study.lines if line.against_clean is not None]
    if not found:
        return None
    rows: list[tuple[Line, Difference]] = [(line, one) for line, one in found if one is not None][::-1]

    def paint(figure: Canvas) -> None:
        axes = figure.add_subplot()
        axes.axvline(0, color=COLOURS["muted"], linewidth=1)
        for place, (line, one) in enumerate(rows):
            colour = COLOURS["labels" if line.kind == "labels" else "noisy"]
            if one.low is not None and one.high is not None:
                axes.plot([one.low, one.high], [place, place], color=colour, linewidth=2.2, solid_capstyle="round")
            axes.plot([one.mean], [place], color=colour, marker="o", markersize=6)
            if line.chosen:
                _ring(axes, one.mean, place)
        axes.set_yticks(range(len(rows)), [shown(line.title, 26) for line, _ in rows])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"difference to {reference} (points)\n← better | worse →")

    count = max(one.n for _, one in rows)
    interval = "95 % Student-t interval over pairs" if any(one.low is not None for _, one in rows) else "no interval"
    n = study.images(role, [line for line, _ in found])
    caption = (
        f"{ROLES.get(role, role).capitalize()} error minus that of the {study.reference} student with the same seed, "
        + (f"{n}, " if n else "")
        + f"{_seeds([count], 'paired seed')}; lines: {interval}. An interval that holds 0 is no evidence either way."
    )
    told = "; ".join(f"{line.title} {signed(one.mean)}" for line, one in rows[::-1][:12])
    alt = f"Differences to the {study.reference} student in points: {shown(told)}"
    return Figure(draw(name, 62 + 19 * len(rows), alt, paint), caption)


def epochs(name: str, study: Study, lines: Sequence[Line], key: str, what: str, log: bool = False) -> Figure | None:
    """One metric over the epochs: a thin line per seed, the mean over seeds thick; None where no run has it."""
    known = [line for line in lines if any(curve.points(key)[0] for curve in line.curves)]
    if not known:
        return None
    kinds = [line.kind for line in known]

    def paint(figure: Canvas) -> None:
        axes = figure.add_subplot()
        for number, (line, colour) in enumerate(zip(known, colours(kinds), strict=True)):
            curves = [curve.points(key) for curve in line.curves]
            for x, y in curves if len(curves) > 1 else ():
                axes.plot(x, y, color=colour, linewidth=0.7, alpha=0.45)
            x, y = _mean(line.curves, key)
            axes.plot(
                x, y, color=colour, linewidth=1.9, marker=MARKERS[number % len(MARKERS)], markersize=3.5,
                markevery=max(1, len(x) // 8), label=shown(line.title, 28),
            )  # fmt: skip
        if log:
            axes.set_yscale("log")
            plain_numbers(axes)
        elif axes.get_ylim()[0] < 0 <= min(value for line in known for value in _mean(line.curves, key)[1]):
            axes.set_ylim(bottom=0)
        axes.set_xlabel("epoch")
        axes.set_ylabel(what)
        whole_numbers(axes)
        legend(figure, axes, 1 if max(len(line.title) for line in known) > 22 else 2)

    counts = sorted({len(line.curves) for line in known})
    n = study.images("val", known) if key.startswith("val/") else ""
    caption = f"{what[:1].upper()}{what[1:]} by epoch, {study.of_models}"
    caption += f", {n}" if n else ""
    caption += f"; thick: mean of {_seeds(counts)}{'; thin: each seed' if counts[-1] > 1 else ''}."
    lasts = [(line, _mean(line.curves, key)[1]) for line in known]
    told = "; ".join(f"{line.title} from {y[0]:.3g} to {y[-1]:.3g}" for line, y in lasts if y)
    alt = shown(f"Line chart of {what} by epoch: {told}")
    return Figure(draw(name, 215 + 13 * max(0, len(known) - 2), alt, paint), shown(caption))


def beside_paper(name: str, rows: Sequence[PaperRow]) -> Figure | None:
    """Our errors with intervals beside the paper's, a row each; None where there is nothing to compare."""
    known = [row for row in rows if row.ours is not None or row.paper is not None][::-1]
    if not known:
        return None

    def paint(figure: Canvas) -> None:
        axes = figure.add_subplot()
        for place, row in enumerate(known):
            if row.ours is not None:
                if row.ours.low is not None and row.ours.high is not None:
                    axes.plot([row.ours.low, row.ours.high], [place, place], color=COLOURS["noisy"], linewidth=2.2)
                axes.plot(
                    row.ours.mean, place, "o", color=COLOURS["noisy"], label="ours" if row is _first(known) else None
                )
            if row.paper is not None:
                axes.plot(
                    row.paper, place, "D", color=COLOURS["paper"], markerfacecolor="none",
                    label="paper" if row is _first(known, paper=True) else None,
                )  # fmt: skip
        axes.set_yticks(range(len(known)), [shown(row.label, 30) for row in known])
        axes.set_ylim(-0.6, len(known) - 0.4)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("test error (%)")
        legend(figure, axes)

    seeds = max((row.ours.n for row in known if row.ours), default=0)
    caption = f"Ours ({_seeds([seeds])}, lines: 95 % Student-t intervals) beside the paper's numbers (single runs)."
    told = [
        f"{row.label}: paper {_maybe(row.paper)}, ours {_maybe(row.ours.mean if row.ours else None)}" for row in rows
    ]
    alt = "Ours beside the paper's test errors in percent: " + "; ".join(told)
    return Figure(draw(name, 60 + 17 * len(known), shown(alt), paint), caption)


def _curve(
    axes: Axes, points: Sequence[tuple[float, Estimate, Line]], shift: float, colour: str, marker: str, label: str
) -> None:
    xs = [x for x, _, _ in points]
    width = (max(xs) - min(xs)) * shift
    places, means = [x + width for x in xs], [error.mean for _, error, _ in points]
    axes.plot(places, means, color=colour, marker=marker, label=shown(label, 34), zorder=3)
    for place, (_, error, line) in zip(places, points, strict=True):
        if error.low is not None and error.high is not None:
            axes.plot([place, place], [error.low, error.high], color=colour, linewidth=1.1, zorder=2)
        if line.chosen:
            _ring(axes, place, error.mean)


def _ring(axes: Axes, x: float, y: float) -> None:
    axes.plot([x], [y], marker="o", markersize=11, markerfacecolor="none", color=COLOURS["ink"], linewidth=0, zorder=4)


def _mean(curves: Sequence[Curve], key: str) -> tuple[list[float], list[float]]:
    """The mean over the seeds, for every epoch that all of them have."""
    found = [dict(zip(*curve.points(key), strict=True)) for curve in curves]
    found = [one for one in found if one]
    shared = sorted(set.intersection(*map(set, found))) if found else []
    return shared, [sum(one[epoch] for one in found) / len(found) for epoch in shared]


def _bounds(error: Estimate) -> tuple[float, ...]:
    return tuple(value for value in (error.mean, error.low, error.high) if value is not None)


def _seeds(counts: Sequence[int], what: str = "seed") -> str:
    low, high = counts[0], counts[-1]
    return f"{low} {what}{'' if low == 1 else 's'}" if low == high else f"{low} to {high} {what}s"


def _at(point: tuple[float, Estimate, Line]) -> str:
    return f"{point[1].mean:.2f} % at {point[0]:g}"


def _maybe(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


def _first(rows: Sequence[PaperRow], paper: bool = False) -> PaperRow | None:
    return next((row for row in rows if (row.paper if paper else row.ours) is not None), None)
