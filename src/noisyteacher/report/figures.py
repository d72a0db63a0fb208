"""The figures of a report, drawn by matplotlib as SVG in the page's colours; equal input gives equal bytes.

A figure is drawn in placeholder colours that become the page's CSS variables, so one drawing reads well on light, dark
and paper.
"""

from __future__ import annotations

import io
import json
import math
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.etree import ElementTree

import numpy as np

from noisyteacher.io.files import Json
from noisyteacher.paper.reference import PAPERS_SETTINGS, Curve, matching_curves
from noisyteacher.pipeline.results import COSTS, Condition, Difference, Estimate, PaperRow
from noisyteacher.report.study import Study, latency_conditions, network
from noisyteacher.runs import by_name
from noisyteacher.text import SPLIT_NAMES, flat, plural, printable, value_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

WIDTH = 360.0
"""Points. A figure is as wide as a phone, so that its text stays readable there; on a desk two stand side by side."""
STYLE = Path(__file__).with_name("templates") / "figure.mplstyle"
SERIES = ("s1", "s2", "s3", "s4", "s5", "s6")
VARIABLES = ("ink", "muted", "grid", "teacher", "labels", "clean", "noisy", "paper", *SERIES)
COLOURS = {name: f"#0a0b{16 + number:02x}" for number, name in enumerate(VARIABLES)}
"""Name -> placeholder. `COLOURS["clean"]` becomes `var(--clean)` in the page."""
MARKERS = ("o", "s", "^", "D", "v", "P")
LEVELS = {"clean": ("clean (no noise)", "-"), "teacher": ("teacher", "--"), "labels": ("labels alone", ":")}
"""Kind -> name and line style of an error that does not depend on the noise."""
KIND_MARKERS = {"teacher": "D", "labels": "^", "clean": "s", "noisy": "o", "model": "v"}
COST_AXES = {
    "macs": "multiplications per image",
    "parameters": "parameters",
    "bytes": "bytes of the weights file",
    "latency_ms": "latency (ms)",
}
MACHINE_SETTINGS = (
    *("run.output_dir", "data.root", "run.device", "run.threads"),
    *("run.tensorboard", "run.track", "run.profile"),
)
"""Settings that say where, not what: runs that differ in them alone are of one kind."""
MIN_ROWS = 10
"""The accuracy of a bin of fewer rows is not drawn."""
MAX_NUMBERED_CLASSES, MAX_NAMED_CLASSES = 12, 24
"""Up to this many classes the cells of a confusion carry numbers, and the axes all names."""


@dataclass(frozen=True)
class Figure:
    """A drawing with its caption. `paint` is called with an empty matplotlib figure; height in points."""

    height: float
    caption: str
    paint: Callable[[Canvas], None]

    def svg(self, name: str) -> str:
        """An `<svg>` element for a page, in which `name` is unique."""
        import matplotlib.style
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure as Canvas

        # The user's own matplotlibrc must not change the bytes.
        salt = {"svg.hashsalt": f"noisyteacher {name}"}
        with matplotlib.style.context([STYLE, salt], after_reset=True), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"Glyph \d+")  # the page's font has it
            canvas = Canvas(figsize=(WIDTH / 72, self.height / 72), dpi=72, layout="constrained")
            FigureCanvasSVG(canvas)
            self.paint(canvas)
            target = io.StringIO()
            metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
            canvas.savefig(target, format="svg", dpi=216, metadata=metadata)
        return _element(target.getvalue(), printable(self.caption))


def _element(text: str, label: str) -> str:
    """matplotlib's file as an element of a page: colours and font are the page's, no prolog, metadata or style."""
    svg, xlink = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
    ElementTree.register_namespace("", svg[1:-1])
    root = ElementTree.fromstring(text)
    for element in list(root):
        if element.tag in (f"{svg}metadata", f"{svg}defs"):
            root.remove(element)
    for element in root.iter():
        if element.tag == f"{svg}g":
            element.attrib.pop("id", None)  # not unique, and nothing refers to it
        if f"{xlink}href" in element.attrib:
            element.set("href", element.attrib.pop(f"{xlink}href"))
        if "style" in element.attrib:  # a presentation attribute cannot hold a variable, a style can
            style = re.sub(r"font: ([\d.]+px)[^;]*", r"font-size: \1", element.attrib["style"])
            for name, placeholder in COLOURS.items():
                style = style.replace(placeholder, f"var(--{name})")
            element.set("style", style)
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib |= {"role": "img", "aria-label": label}
    return re.sub(r">\s+<", "><", ElementTree.tostring(root, encoding="unicode"))


class Group(NamedTuple):
    """Conditions that may differ in their noise alone, and a study they belong to."""

    title: str
    study: Study
    rows: Sequence[Condition]


class Series(NamedTuple):
    """One curve along an axis: conditions with their errors in order of x, and the other settings of their noise."""

    settings: Json
    points: list[tuple[float, Estimate, Condition]]


def groups(studies: Sequence[Study], tags: Sequence[str]) -> list[Group]:
    """The families of sweeps, and compressions whose settings are equal but for the noise.

    tags: what each study is called in the titles; "" for one alone.
    """
    families: list[Group] = []
    compressions: dict[str, tuple[Study, list[str], list[Condition]]] = {}
    for study, tag in zip(studies, tags, strict=True):
        result = study.result
        if study.kind == "compress":
            config = flat(study.run.config)
            same = {name: config[name] for name in config if not name.startswith(("noise.", *MACHINE_SETTINGS))}
            key = json.dumps([result.data, result.n, same], sort_keys=True, default=str)
            _, run_tags, rows = compressions.setdefault(key, (study, [], []))
            run_tags += [tag] if tag else []
            present = [(row.kind, row.settings) for row in rows]
            rows += [row for row in result.conditions if (row.kind, row.settings) not in present]
        for family in result.families:
            words = [f"{key.rpartition('.')[2]} {value_words(value)}" for key, value in family.settings.items()]
            title = (", ".join(words) or family.name) if len(result.families) > 1 else ""
            names = (family.clean, family.labels, *family.noisy)
            members = [row for row in result.conditions if row.name in names]
            families.append(Group(", ".join(filter(None, (f"run {tag}" if tag else "", title))), study, members))
    for study, run_tags, rows in compressions.values():
        title = f"run{'s' if len(run_tags) > 1 else ''} {', '.join(run_tags)}" if run_tags else ""
        families.append(Group(title, study, rows))
    return families


def along(group: Group, axis: str, role: str) -> Figure | None:
    """Error along `sigma` or `alpha`: means with their intervals, the clean student, the teacher, the paper's curve.

    None without a curve, which needs two values of the axis with all else equal.
    """
    study, curves = group.study, _series(group.rows, axis, role)
    if not curves:
        return None
    points = [point for series in curves for point in series.points]
    noisy = [row for _, _, row in points]
    teachers = list({id(row): row for row in map(study.result.teacher_of, noisy) if row is not None}.values())
    controls = [*group.rows, *(teachers if len(teachers) == 1 else [])]
    levels = {row.kind: error for row in reversed(controls) if row.kind in LEVELS and (error := row.score(role))}
    teacher, student = network(teachers), network(noisy[:1]) or network(study.result.conditions)
    data, n, split = study.data_of(noisy[0]), noisy[0].n.get(role), SPLIT_NAMES[role]
    run_settings = flat(by_name(study.run.config))
    paper = _paper_curves(data, teacher, student, axis, curves, run_settings) if role == "test" else []
    other = {"sigma": "noise.alpha", "alpha": "noise.sigma"}[axis]
    varying = [key for key in sorted(curves[0].settings) if len({str(each.settings.get(key)) for each in curves}) > 1]

    def paint(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        for number, series in enumerate(curves):
            colour = COLOURS["noisy" if len(curves) == 1 else SERIES[number % len(SERIES)]]
            # Curves are moved aside a little, so that their intervals do not cover each other.
            shift = 0.012 * (number - (len(curves) - 1) / 2) * (series.points[-1][0] - series.points[0][0])
            x, errors = [point[0] + shift for point in series.points], [point[1] for point in series.points]
            words = ", ".join(f"{key[6:]} {value_words(series.settings.get(key))}" for key in varying)
            marker, label = MARKERS[number % len(MARKERS)], printable(words or "noisy teacher", 34)
            _plot(axes, x, errors, color=colour, marker=marker, label=label, zorder=3)
            chosen = [number for number, point in enumerate(series.points) if study.is_chosen(point[2])]
            _rings(axes, [x[number] for number in chosen], [errors[number].mean for number in chosen])
        for number, curve in enumerate(paper):
            (line,) = axes.plot([0, *curve.x], [curve.clean_error, *curve.errors], ":", label=f"paper, {curve.where}")
            line.set(color=COLOURS["paper"], marker="os^"[number % 3], markerfacecolor="none", markersize=4)
        for kind, (name, dashes) in LEVELS.items():
            if level := levels.get(kind):
                label = f"{name} {level.mean:.2f}"
                axes.axhline(level.mean, color=COLOURS[kind], linewidth=1.2, linestyle=dashes, label=label)
            if kind == "clean" and level and level.low is not None and level.high is not None:
                axes.axhspan(level.low, level.high, color=COLOURS[kind], alpha=0.12, linewidth=0)
            axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))  # fixed: the teacher may lie outside
        x_label = f"{axis} (standard deviation of the noise)" if axis == "sigma" else axis
        _label(canvas, axes, x_label, f"{split} error (%)")

    seeds = [error.n for _, error, _ in points]
    fixed = dict.fromkeys(value_words(series.settings.get(other)) for series in curves)
    caption = (
        f"{split.capitalize()} error against {axis}{group.title and f', {group.title}'}: {student or 'student'} from "
        f"{teacher or 'teacher'}, {data}, {f'n = {n:,} images, ' if n else ''}{_seeds(seeds)}, {other[6:]} "
        f"{' and '.join(fixed)}. "
    )
    if max(seeds) > 1:
        caption += "Bars and band: 95 % Student-t interval over seeds. Ring: chosen by validation error."
    else:
        caption += "One seed: there are no intervals over seeds, so differences between points mean little."
    if paper:
        source = ", read off a figure (within 0.04 points)" if any(curve.digitised for curve in paper) else ""
        caption += f" Paper: single runs without intervals{source}; its value at 0 is logit regression."
    return Figure(250, caption, paint)


def _series(rows: Iterable[Condition], axis: str, role: str) -> list[Series]:
    """A curve per setting of the rest of the noise that has two values of the axis."""
    curves: dict[str, Series] = {}
    for row in rows:
        settings, error = dict(row.settings), row.score(role)
        x = settings.pop(f"noise.{axis}", None)
        if row.kind == "noisy" and error is not None and isinstance(x, (int, float)):
            key = json.dumps(settings, sort_keys=True, default=str)
            curves.setdefault(key, Series(settings, [])).points.append((float(x), error, row))
    for series in curves.values():
        series.points.sort(key=lambda point: point[0])
    return [series for series in curves.values() if series.points[0][0] < series.points[-1][0]]


def _paper_curves(
    data: str, teacher: str | None, student: str | None, axis: str, curves: list[Series], run_settings: Json
) -> list[Curve]:
    """The paper's curves of the same data, networks, loss and fixed setting; each once."""
    matching: dict[str, Curve] = {}
    for settings in (series.settings for series in curves):
        used = PAPERS_SETTINGS | run_settings | settings
        if teacher and student and all(used[key] == value for key, value in PAPERS_SETTINGS.items()):
            noise = {key: settings.get(f"noise.{key}") for key in ("sigma", "alpha")}
            target = settings.get("noise.target", "teacher")
            matches = matching_curves(data, teacher, student, axis, target=target, **noise)
            matching |= {curve.id: curve for curve in matches}
    return list(matching.values())


def differences(study: Study) -> Figure | None:
    """Each condition's error minus the clean student's, with intervals, around zero; None without pairs."""
    role = study.role
    rows = [row for row in reversed(study.result.conditions) if role in row.against_clean]
    gaps = [row.against_clean[role] for row in rows]
    if not rows:
        return None

    def paint(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        axes.axvline(0, color=COLOURS["muted"], linewidth=1)
        for y, (row, gap) in enumerate(zip(rows, gaps, strict=True)):
            _plot(axes, [y], [gap], horizontal=True, color=COLOURS["labels" if row.kind == "labels" else "noisy"])
        chosen = [y for y, row in enumerate(rows) if study.is_chosen(row)]
        _rings(axes, [gaps[y].mean for y in chosen], chosen)
        _name_rows(axes, [row.title for row in rows])
        reference = "clean logit regression" if study.over_noise else "the distilled student"
        axes.set_xlabel(f"difference to {reference} (points)\n← better | worse →")

    interval = "95 % interval over pairs" if any(gap.low is not None for gap in gaps) else "no interval"
    if (count := max(gap.comparisons for gap in gaps)) > 1:
        interval += f", for all noises of one clean student at once (up to {count})"
    caption = (
        f"{SPLIT_NAMES[role].capitalize()} error minus that of the {study.reference} student with the same seed, "
        f"{_comma(study.images(role, reversed(rows)))}{plural(max(gap.n for gap in gaps), 'paired seed')}; lines: "
        f"{interval}. An interval that holds 0 is no evidence either way."
    )
    return Figure(62 + 19 * len(rows), caption, paint)


def beside_paper(rows: Sequence[PaperRow]) -> Figure | None:
    """Our errors with intervals beside the paper's, a row each; None where there is nothing to compare."""
    rows = [row for row in reversed(rows) if row.ours is not None or row.paper is not None]
    if not rows:
        return None
    ours = {y: row.ours for y, row in enumerate(rows) if row.ours is not None}
    paper = {y: row.paper for y, row in enumerate(rows) if row.paper is not None}

    def paint(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        _plot(axes, list(ours), list(ours.values()), horizontal=True, color=COLOURS["noisy"], label="ours")
        (marks,) = axes.plot(list(paper.values()), list(paper), "D", color=COLOURS["paper"], label="paper")
        marks.set_markerfacecolor("none")
        _name_rows(axes, [row.label for row in rows])
        _label(canvas, axes, "test error (%)", "")

    seeds = plural(max((error.n for error in ours.values()), default=0), "seed")
    caption = f"Ours ({seeds}, lines: 95 % Student-t intervals) beside the paper's numbers (single runs)."
    return Figure(60 + 17 * len(rows), caption, paint)


def epochs(study: Study, rows: Sequence[Condition], key: str, what: str, log: bool = False) -> Figure | None:
    """One metric over the epochs: a thin line per seed, the mean over seeds thick; None where no run has it."""
    curves = {row.name: [curve[key] for curve in study.curves.get(row.name, ()) if key in curve] for row in rows}
    rows = [row for row in rows if curves[row.name]]
    if not rows:
        return None

    def paint(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        for number, (row, colour) in enumerate(zip(rows, _colours(rows), strict=True)):
            members, marker = curves[row.name], MARKERS[number % len(MARKERS)]
            for curve in members if len(members) > 1 else ():
                axes.plot(list(curve), list(curve.values()), color=colour, linewidth=0.7, alpha=0.45)
            shared = sorted(set.intersection(*map(set, members)))
            mean = [sum(curve[epoch] for curve in members) / len(members) for epoch in shared]
            (line,) = axes.plot(
                shared, mean, color=colour, linewidth=1.9, marker=marker, label=printable(row.title, 28)
            )
            line.set(markersize=3.5, markevery=max(1, len(mean) // 8))
        if log:
            _log_ticks(axes, "y", "{:g}".format)
        axes.locator_params(axis="x", nbins=7, integer=True)
        _label(canvas, axes, "epoch", what, 1 if max(len(row.title) for row in rows) > 22 else 2)

    seeds = [len(curves[row.name]) for row in rows]
    images = _comma(study.images("val", rows)) if key.startswith("val/") else ""
    caption = f"{what[:1].upper()}{what[1:]} by epoch, {study.models}, {images}thick: mean of {_seeds(seeds)}"
    return Figure(215 + 13 * max(0, len(rows) - 2), f"{caption}{'; thin: each seed' if max(seeds) > 1 else ''}.", paint)


class CostPoint(NamedTuple):
    """One model in the plane of cost and error."""

    row: Condition
    cost: float
    error: Estimate


def trade_offs(studies: Sequence[Study]) -> list[Figure]:
    """A figure per cost for each data set and split of the studies: error against cost, and what nothing else beats.

    Latencies measured under different conditions are in figures of their own.
    """
    planes: dict[tuple[str, str, str, int | None, str], list[CostPoint]] = {}
    for key in COST_AXES:
        for study in studies:
            for row in study.rows:
                cost, error = row.cost(key), row.score(study.role)
                if cost and error is not None:
                    data, n = study.split_of(row)
                    plane = (key, study.role, data, n, latency_conditions(row) if key == "latency_ms" else "")
                    planes.setdefault(plane, []).append(CostPoint(row, cost, error))
    return [_trade_off(*plane, points) for plane, points in planes.items() if len({point.cost for point in points}) > 1]


def _trade_off(key: str, role: str, data: str, n: int | None, measured: str, points: list[CostPoint]) -> Figure:
    points = sorted(points, key=lambda point: (point.cost, point.error.mean))
    front: list[CostPoint] = []
    lowest: dict[tuple[str | None, float], CostPoint] = {}
    for point in points:
        lowest.setdefault((point.row.model, point.cost), point)
        if not front or point.error.mean < front[-1].error.mean:
            front.append(point)
    teachers = [point for point in points if point.row.kind == "teacher"]
    width = points[-1].cost / points[0].cost
    aside = {"labels": width**-0.03, "noisy": width**0.03}  # students of one cost stand beside each other

    def paint(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        for point in teachers if len(teachers) == 1 else ():
            axes.axhline(point.error.mean, color=COLOURS["teacher"], linewidth=0.8, linestyle="--")
            axes.axvline(point.cost, color=COLOURS["teacher"], linewidth=0.8, linestyle="--")
        x = [point.cost * aside.get(point.row.kind, 1.0) for point in front]
        axes.step(x, [point.error.mean for point in front], where="post", color=COLOURS["muted"], linewidth=1)
        for kind, marker in KIND_MARKERS.items():
            members = [point for point in points if point.row.kind == kind]
            x, errors = [point.cost * aside.get(kind, 1.0) for point in members], [point.error for point in members]
            label = "distilled" if kind == "clean" and all(point.row.kind != "noisy" for point in points) else kind
            if members:
                colour = COLOURS["ink" if kind == "model" else kind]
                _plot(axes, x, errors, color=colour, marker=marker, linestyle="none", label=label, zorder=3)
        axes.margins(x=0.15, y=0.15)  # room for the names
        for row, cost, error in lowest.values():
            right = cost > (points[0].cost * points[-1].cost) ** 0.5
            name, offset = printable(row.model or "", 16), (-8 if right else 8, -11)
            text = axes.annotate(name, (cost, error.mean), offset, textcoords="offset points", color=COLOURS["muted"])
            text.set(ha="right" if right else "left", fontsize=8.5)
        _log_ticks(axes, "x", "{:.3g}".format if key == "latency_ms" else COSTS[key][1])
        _label(canvas, axes, COST_AXES[key], f"{SPLIT_NAMES[role]} error (%)", 4)

    caption = (
        f"Error on {data} ({SPLIT_NAMES[role]}{f', n = {n:,} images' if n else ''}) against {COST_AXES[key]}. Lower "
        f"left is better; {'the dashed lines cross at the teacher; ' if len(teachers) == 1 else ''}the steps join what "
        "nothing beats; bars: 95 % Student-t intervals over seeds. Models of equal cost are moved aside a little."
    )
    return Figure(225, f"{caption} Latency: {measured}." if measured else caption, paint)


def reliability(study: Study, rows: Sequence[Condition], role: str) -> Figure | None:
    """Accuracy against confidence in bins, for each condition; None where none has the numbers."""
    bins = {row.name: details[role].bins for row in rows if role in (details := study.details.get(row.name, {}))}
    rows = [row for row in rows if len(bins.get(row.name, ()))]
    if not rows:
        return None

    def paint(canvas: Canvas) -> None:
        axes, below = canvas.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [4, 1]})
        axes.plot([0, 100], [0, 100], "--", color=COLOURS["muted"], linewidth=1)
        for number, (row, colour) in enumerate(zip(rows, _colours(rows), strict=True)):
            marker, ece = MARKERS[number % len(MARKERS)], row.score(role, "ece")
            counts, confidence, accuracy = bins[row.name].T
            full = counts >= MIN_ROWS
            label = printable(row.title, 30) + (f" (ECE {ece.mean:.1f} %)" if ece else "")
            axes.plot(confidence[full], accuracy[full], color=colour, marker=marker, label=label)
            below.plot(confidence, 100 * counts / counts.sum(), color=colour, marker=marker, markersize=3, linewidth=1)
        axes.set_ylim(0, 102)
        below.set(xlabel="confidence (%)", ylabel="rows (%)", xlim=(0, 102), ylim=(0, None))
        _label(canvas, axes, "", "accuracy (%)", 1)

    caption = (
        f"Reliability on {SPLIT_NAMES[role]}, {study.models}, {_comma(study.images(role, rows))}seeds pooled: mean "
        f"accuracy of the answers in each of 15 bins of confidence (those of {MIN_ROWS} rows or more); below the "
        "dashed line it is overconfident. Small panel: share of the rows per bin. ECE: expected calibration error."
    )
    return Figure(290 + 12 * len(rows), caption, paint)


def confusion(study: Study, row: Condition, role: str) -> Figure | None:
    """The confusion of one condition on one split; None where its runs do not have it."""
    details = study.details.get(row.name, {}).get(role)
    if details is None or details.confusion is None:
        return None
    counts, classes, size = details.confusion, details.classes, len(details.confusion)

    def paint(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        share = counts / np.maximum(1, counts.sum(1, keepdims=True))
        image = np.zeros((size, size, 4))  # transparent, so that it reads on light and dark
        image[..., :3] = (0.84, 0.37, 0.0)
        image[np.arange(size), np.arange(size), :3] = (0.13, 0.5, 0.8)
        image[..., 3] = 0.06 + 0.64 * np.sqrt(share)
        axes.imshow(image, interpolation="nearest", aspect="equal")
        for (label, choice), value in np.ndenumerate(100 * share) if size <= MAX_NUMBERED_CLASSES else ():
            text = f"{value:.0f}" if value >= 1 or not value else "<1"
            axes.text(choice, label, text if value else "", ha="center", va="center", fontsize=8.5)
        ticks = list(range(0, size, 1 if size <= MAX_NAMED_CLASSES else math.ceil(size / 12)))
        names = [printable(classes[number], 10) for number in ticks]
        axes.set_xticks(ticks, names, rotation=0 if max(map(len, names)) <= 2 else 90)
        axes.set_yticks(ticks, names)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.grid(visible=False)
        axes.set(xlabel="chosen class", ylabel="label")

    seeds = f" over {details.seeds} seeds" if details.seeds > 1 else ""
    caption = (
        f"Confusion of {row.title} on {SPLIT_NAMES[role]}, {study.data_of(row)}, {study.images(role, [row])}{seeds}: "
        f"{counts.sum() - counts.trace():,} of {counts.sum():,} answers wrong. Numbers: percent of the label's rows; "
        "shade: its square root; blue right, orange wrong."
    )
    return Figure(330, caption, paint)


def _plot(
    axes: Axes, at: Sequence[float], values: Sequence[Estimate | Difference], *, horizontal: bool = False, **style: Any
) -> None:
    """Means with their intervals, where they have any."""
    means = [value.mean for value in values]
    below = [0.0 if value.low is None else max(0.0, value.mean - value.low) for value in values]
    above = [0.0 if value.high is None else max(0.0, value.high - value.mean) for value in values]
    if horizontal:
        axes.errorbar(means, at, xerr=[below, above], elinewidth=2.2, fmt="o", **style)
    else:
        axes.errorbar(at, means, yerr=[below, above], elinewidth=1.1, **style)


def _rings(axes: Axes, x: Sequence[float], y: Sequence[float]) -> None:
    """Rings around what validation prefers."""
    axes.plot(x, y, "o", markersize=11, markerfacecolor="none", color=COLOURS["ink"], zorder=4)


def _label(canvas: Canvas, axes: Axes, x: str, y: str, columns: int = 2) -> None:
    """Names of the axes, and a legend above them, where it hides nothing. Percentages have ticks from 0 to 100."""
    axes.set(xlabel=x, ylabel=y)
    for axis in (axis for axis, name in ((axes.xaxis, x), (axes.yaxis, y)) if name.endswith("(%)")):
        low, high = axis.get_view_interval()
        axis.set_ticks([tick for tick in axis.get_majorticklocs() if max(0, low) <= tick <= min(100, high)])
        axis.set_view_interval(low, min(high, 102), ignore=True)
    canvas.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=columns)


def _colours(rows: Sequence[Condition]) -> list[str]:
    """A colour per condition: that of its kind where no other has the kind, else the next of the series."""
    kinds, following = [row.kind for row in rows], iter(SERIES * len(rows))
    return [COLOURS[kind if kinds.count(kind) == 1 and kind in COLOURS else next(following)] for kind in kinds]


def _name_rows(axes: Axes, titles: Sequence[str]) -> None:
    """A row per title on the y axis, the first at the bottom."""
    axes.set_yticks(range(len(titles)), [printable(title, 28) for title in titles])
    axes.set_ylim(-0.6, len(titles) - 0.4)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)


def _log_ticks(axes: Axes, name: str, text: Callable[[float], str]) -> None:
    """A logarithmic axis with ticks at 1, 2 and 5 times powers of ten, of a wide one at the powers alone."""
    from matplotlib.ticker import LogLocator

    axes.set(**{f"{name}scale": "log"})
    axis = axes.xaxis if name == "x" else axes.yaxis
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0,) if high > 100 * low else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(lambda value, _: text(value))
    axis.set_minor_formatter("")


def _comma(words: str) -> str:
    return f"{words}, " if words else ""


def _seeds(counts: Sequence[int]) -> str:
    """`3 seeds`, `2 to 5 seeds`."""
    low, high = min(counts), max(counts)
    return plural(low, "seed") if low == high else f"{low} to {high} seeds"
