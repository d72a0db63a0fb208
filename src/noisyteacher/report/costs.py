"""Figures of what models cost: error against multiplications, parameters, bytes and latency, the teacher marked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from noisyteacher.report.drawing import COLOURS, draw, legend
from noisyteacher.report.figures import ROLES, Figure
from noisyteacher.report.study import Line, Study
from noisyteacher.text import count, shown, size_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

COSTS = ("macs", "parameters", "bytes", "latency_ms")
NAMES = {
    "macs": "multiplications per image",
    "parameters": "parameters",
    "bytes": "bytes of the weights file",
    "latency_ms": "latency (ms)",
}
SHOW: dict[str, Callable[[float], str]] = {
    "macs": count,
    "parameters": count,
    "bytes": size_bytes,
    "latency_ms": "{:.3g}".format,
}
MARKS = {
    "teacher": ("teacher", "D"),
    "labels": ("labels", "^"),
    "clean": ("clean", "s"),
    "noisy": ("noisy", "o"),
    "model": ("ink", "v"),
}


Split = tuple[str, str, int | None]
"""Role, name of the data, number of images."""


@dataclass(frozen=True)
class Point:
    """One model in the plane of cost and error."""

    line: Line
    cost: float
    error: float
    low: float | None
    high: float | None


def cost(costs: Mapping[str, Any] | None, key: str) -> float | None:
    """One of the four costs (latency: the median), or None where it was not measured."""
    if not costs:
        return None
    value = costs.get(key)
    if key == "latency_ms":
        value = value.get("median") if isinstance(value, dict) else None
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def conditions(costs: Mapping[str, Any] | None) -> str:
    """Under which conditions the latency was taken; "" where it was not."""
    latency = (costs or {}).get("latency_ms")
    if not isinstance(latency, dict):
        return ""
    return (
        f"median of {latency['runs']} forward passes, batch {latency['batch']}, {latency['threads']} thread"
        f"{'' if latency['threads'] == 1 else 's'}, {latency['device']}"
    )


def networks(study: Study) -> list[tuple[str, Line]]:
    """(title, a line of it) of every network whose costs are known, teachers first; students with their options.

    A line that does not tell its network stands for one only where it was scored and no other has its costs.
    """
    known: dict[tuple[Any, ...], tuple[str, Line]] = {}
    measured = [line for line in study.lines if line.costs]
    for line in sorted(measured, key=lambda line: (not line.model, line.kind != "teacher")):
        shared = any(line.costs == one.costs for _, one in known.values())
        if line.model or (line.scores and not shared):
            title = _network(line)
            known.setdefault((title, *(cost(line.costs, key) for key in COSTS[:3])), (title, line))
    found = sorted(known.values(), key=lambda one: one[1].kind != "teacher")
    titles = [title for title, _ in found]
    return [(title if titles.count(title) == 1 else _told_apart(study, title, line), line) for title, line in found]


def _network(line: Line) -> str:
    """`teacher lenet`, or a student's name with those of its options that tell it from others."""
    if line.kind == "teacher":
        return f"teacher {line.model or ''}".strip()
    before = "student.options."
    options = {key.removeprefix(before): value for key, value in line.settings.items() if key.startswith(before)}
    return ", ".join([line.model or "student", *(f"{key} {value}" for key, value in options.items())])


def _told_apart(study: Study, title: str, line: Line) -> str:
    """The title of a network that costs something else than another of that title: on other data, or so titled."""
    if line.kind == "teacher" and line.title != title:
        return line.title
    return f"{title}, {study.data_of(line)}"


def trade_offs(name: str, studies: Sequence[Study]) -> list[Figure]:
    """A figure per cost for each data set and split of the studies: error against cost, and what nothing else beats.

    Latencies taken under different conditions are in figures of their own.
    """
    splits: dict[Split, list[Line]] = {}
    for study in studies:
        for line in study.lines:
            splits.setdefault((study.role, *study.split_of(line)), []).append(line)
    found: list[Figure] = []
    for split, lines in splits.items():
        for key in COSTS:
            groups: dict[str, list[Point]] = {}
            for line in lines:
                value, error = cost(line.costs, key), line.error(split[0])
                if value is not None and value > 0 and error is not None:
                    group = conditions(line.costs) if key == "latency_ms" else ""
                    groups.setdefault(group, []).append(Point(line, value, error.mean, error.low, error.high))
            for points in groups.values():
                if len({point.cost for point in points}) > 1:
                    found.append(_figure(f"{name}-{key}{len(found)}", key, points, split))
    return found


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats in both cost and error, by cost."""
    found: list[Point] = []
    for point in sorted(points, key=lambda one: (one.cost, one.error)):
        if not found or point.error < found[-1].error:
            found.append(point)
    return found


def _figure(name: str, key: str, points: list[Point], split: Split) -> Figure:
    role, data, n = split
    best = front(points)
    teachers = [point for point in points if point.line.kind == "teacher"]
    names = {} if any(_kind(point) == "noisy" for point in points) else {"clean": "distilled"}

    def paint(figure: Canvas) -> None:
        axes = figure.add_subplot()
        axes.set_xscale("log")
        if len(teachers) == 1:
            axes.axhline(teachers[0].error, color=COLOURS["teacher"], linewidth=0.8, linestyle=(0, (5, 3)))
            axes.axvline(teachers[0].cost, color=COLOURS["teacher"], linewidth=0.8, linestyle=(0, (5, 3)))
        beside = _beside(points)
        if len(best) > 1:
            x, y = [one.cost * beside[_kind(one)] for one in best], [one.error for one in best]
            axes.step(x, y, where="post", color=COLOURS["muted"], linewidth=1)
        told: set[str] = set()
        for point in points:
            kind = _kind(point)
            colour, marker = MARKS[kind]
            place = point.cost * beside[kind]
            if point.low is not None and point.high is not None:
                axes.plot([place, place], [point.low, point.high], color=COLOURS[colour], linewidth=1)
            axes.plot(
                place, point.error, marker, color=COLOURS[colour], markersize=7 if kind == "teacher" else 5,
                label=None if kind in told else names.get(kind, kind), zorder=3,
            )  # fmt: skip
            told.add(kind)
        low, high = axes.get_ylim()
        axes.set_ylim(max(0.0, low - 0.1 * (high - low)), high)  # room for the names
        axes.margins(x=0.15)
        _named(axes, points)
        _decades(axes, key)
        axes.set_xlabel(NAMES[key])
        axes.set_ylabel(f"{ROLES.get(role, role)} error (%)")
        legend(figure, axes, 4)

    caption = (
        f"Error on {data} ({ROLES.get(role, role)}"
        + (f", n = {n:,} images" if n else "")
        + f") against {NAMES[key]}. Left and down is better; "
        + ("the broken lines cross at the teacher; " if len(teachers) == 1 else "")
        + ("the steps join what nothing beats; " if len(best) > 1 else "")
        + "bars: 95 % Student-t intervals over seeds. Models of equal cost are moved aside a little."
    )
    if key == "latency_ms":
        caption += f" Latency: {conditions(points[-1].line.costs)}."
    told = "; ".join(f"{one.line.title} {SHOW[key](one.cost)}, {one.error:.2f} %" for one in points[:12])
    return Figure(draw(name, 225, shown(f"Scatter plot of error against {NAMES[key]}: {told}"), paint), shown(caption))


def _kind(point: Point) -> str:
    return point.line.kind if point.line.kind in MARKS else "noisy"


def _beside(points: Sequence[Point]) -> dict[str, float]:
    """A factor per kind, so that students of one cost stand beside each other on the logarithmic axis."""
    costs = [point.cost for point in points]
    step = (max(costs) / min(costs)) ** 0.03
    return {"teacher": 1.0, "labels": 1 / step, "clean": 1.0, "noisy": step, "model": 1.0}


def _named(axes: Any, points: Sequence[Point]) -> None:
    """The networks' names at the lowest of the points of each."""
    lowest: dict[tuple[str, float], Point] = {}
    for point in points:
        key = (point.line.model or "", point.cost)
        if point.line.model and (key not in lowest or point.error < lowest[key].error):
            lowest[key] = point
    costs = [point.cost for point in points]
    middle = (max(costs) * min(costs)) ** 0.5
    for (model, value), point in lowest.items():
        right = value > middle
        axes.annotate(
            shown(model, 16), (value, point.error), textcoords="offset points", xytext=(-8 if right else 8, -11),
            ha="right" if right else "left", fontsize=8.5, color=COLOURS["muted"],
        )  # fmt: skip


def _decades(axes: Any, key: str) -> None:
    """Ticks at 1, 2 and 5 times powers of ten, as people write them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 50 else (1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: SHOW[key](value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
