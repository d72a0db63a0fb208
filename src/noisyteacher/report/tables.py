"""Tables of a report as cells of text: results, costs, layers, settings that differ, versions and hosts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from noisyteacher.report.answers import class_names, worst
from noisyteacher.report.costs import COSTS, SHOW, conditions, cost, networks
from noisyteacher.report.figures import ROLES
from noisyteacher.report.study import Difference, Estimate, Line, Study
from noisyteacher.runs import by_name
from noisyteacher.text import count, duration, flat, signed, size_bytes

HEADS = {"macs": "MACs", "parameters": "parameters", "bytes": "bytes", "latency_ms": "latency ms"}
NOTHING = "–"


@dataclass(frozen=True)
class Cell:
    """One cell: its text, a second smaller line, and, for shares, a bar of 0 to 100."""

    text: str
    under: str = ""
    number: bool = False
    strong: bool = False
    bar: float | None = None


@dataclass(frozen=True)
class Table:
    """Headers, rows of cells, and what a reader needs to know about them."""

    headers: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""
    folded: str = ""
    """What stands in the page instead of the table until it is opened; "" for a table that is always open."""


def results(study: Study) -> Table | None:
    """A row per line: error with interval, difference to clean, other scores; columns without numbers are left out."""
    role, other = study.role, "val" if study.role == "test" else "test"
    lines = [line for line in study.lines if line.scores]
    gaps = [line.against_clean for line in lines if line.against_clean is not None]
    corrected = any(gap.p_holm is not None for gap in gaps)
    mixed = len({study.data_of(line) for line in lines}) > 1
    columns: dict[str, Any] = {
        "data": lambda line: Cell(study.data_of(line) if mixed else NOTHING),
        "seeds": lambda line: number_cell(str(len(line.seeds))) if line.seeds else Cell(NOTHING, number=True),
        f"{ROLES[role]} error %": lambda line: _error(line, role, study.n.get(role)),
        f"against {study.reference}": lambda line: _difference(line.against_clean, corrected),
        f"{ROLES[other]} error %": lambda line: _error(line, other, study.n.get(other)),
        "NLL nats": lambda line: _mean(line.scores.get(f"{role}_nll_nats"), 3),
        "ECE %": lambda line: _mean(line.scores.get(f"{role}_ece_%"), 2),
        "agreement %": lambda line: _mean(line.scores.get(f"{role}_agreement_%"), 1),
        "training": lambda line: (
            number_cell(duration(line.training_s.mean)) if line.training_s else number_cell(NOTHING)
        ),
    }
    if not lines:
        return None
    made = {name: [make(line) for line in lines] for name, make in columns.items()}
    made = {name: cells for name, cells in made.items() if any(cell.text != NOTHING for cell in cells)}
    rows = tuple(
        (
            Cell(line.title, _marks(line), strong=line.chosen or bool(line.handed_over)),
            *(cells[place] for cells in made.values()),
        )
        for place, line in enumerate(lines)
    )
    notes = [f"{ROLES[name].capitalize()}: {told}." for name in (role, other) if (told := study.images(name, lines))]
    kinds = {span[2] for line in lines for name in (role, other) if (span := line.span(name, study.n.get(name)))}
    notes += ["[ ]: 95 % Student-t interval over seeds."] if "t" in kinds else []
    notes += ["( ): 95 % Wilson interval of a single run."] if "wilson" in kinds else []
    known = [error for line in lines for name in (role, other) if (error := line.error(name)) is not None]
    if any(error.n > 1 and error.low is None for error in known):
        notes.append("No interval: it would be wider than 0 to 100 %; run more seeds.")
    if gaps:
        notes.append(f"Against {study.reference}: points, paired by seed, below 0 is better.")
    if any(gap.p is not None for gap in gaps):
        more = ", for noises after Holm's correction for all noises with the same other settings" if corrected else ""
        notes.append(f"p of the paired t-test{more}{'; raw p: not corrected' if corrected else ''}.")
    return Table(("", *made), rows, " ".join(notes))


def candidates(study: Study) -> Table | None:
    """A row per noise that was tried in short runs, with its validation errors; None where there was no choice."""
    tried = [(line, error) for line in study.candidates if (error := line.error("val")) is not None]
    if not tried:
        return None
    rows = [
        (
            Cell(line.title if line.settings["noise.sigma"] else "no noise", strong=line.chosen),
            number_cell(f"{error.mean:.2f}", "chosen" if line.chosen else ""),
            Cell(", ".join(f"{one:.2f}" for one in error.per_seed)),
        )
        for line, error in tried
    ]
    size = f", n = {study.n['val']:,} images" if "val" in study.n else ""
    note = f"Short runs, judged on validation{size}: the lowest mean is taken, of equals no noise."
    return Table(("", "validation error %", "by seed"), tuple(rows), note)


def costs(study: Study) -> Table | None:
    """A row per network: the four costs, and for students the ratio to the teacher; None where nothing was measured."""
    known = networks(study)
    if not known:
        return None
    teacher = next((line for _, line in known if line.kind == "teacher"), None)
    rows = []
    for title, line in known:
        cells = [_cost(line, teacher, key) for key in COSTS]
        peak = (line.costs or {}).get("peak_memory_bytes")
        rows.append((Cell(title), *cells, number_cell(size_bytes(peak) if peak else NOTHING)))
    several = sum(line.kind == "teacher" for _, line in known) > 1
    notes = f"Second lines: ratio to {known[0][0] if several else 'the teacher'} (below 1: smaller, faster). "
    notes = notes if teacher and len(known) > 1 else ""
    notes += "MACs: multiplications of convolutions and matrix products per image, biases not counted. Bytes: the "
    notes += "weights file."
    told = conditions(known[0][1].costs)
    notes += f" Latency: {told}." if told else ""
    missing = sorted({str(one) for _, line in known for one in (line.costs or {}).get("unsupported") or ()})
    notes += f" Not counted in MACs: {', '.join(missing)}." if missing else ""
    return Table(("", *(HEADS[key] for key in COSTS), "peak memory"), tuple(rows), notes)


def beside_table(study: Study) -> Table | None:
    """The paper's numbers and ours, a row each; None where the run reproduces nothing."""
    if not study.rows:
        return None
    rows = tuple(
        (
            Cell(row.label),
            Cell(NOTHING if row.paper is None else f"{row.paper:.2f}", number=True),
            Cell(
                NOTHING if row.ours is None else f"{row.ours.mean:.2f}",
                "" if row.ours is None or row.ours.low is None else f"[{row.ours.low:.2f}, {row.ours.high:.2f}]",
                number=True,
            ),
            Cell("" if row.ours is None else str(row.ours.n), number=True),
        )
        for row in study.rows
    )
    note = "Test errors in percent; ours with 95 % Student-t intervals over seeds, the paper's are single runs."
    return Table(("", "paper %", "ours %", "seeds"), rows, note)


def layers(title: str, line: Line) -> Table | None:
    """Where the network `title` multiplies: its layers with MACs or parameters, and their share of the MACs."""
    found = [one for one in (line.costs or {}).get("layers") or () if one["macs"] or one["parameters"]]
    if not found:
        return None
    total = sum(one["macs"] for one in found) or 1
    rows = tuple(
        (
            Cell(str(one["name"]), str(one["kind"])),
            number_cell("×".join(map(str, one["output_shape"])) or NOTHING),
            number_cell(count(one["parameters"])),
            number_cell(count(one["macs"])),
            Cell(f"{100 * one['macs'] / total:.1f} %", number=True, bar=round(100 * one["macs"] / total, 2)),
        )
        for one in found
    )
    part = "network " if line.kind == "model" else "" if title.startswith(("teacher", "student")) else "student "
    whole = sum(one["macs"] for one in found)
    caption = f"Layers of the {part}{title}: {count(whole)} MACs per image in {len(found)} layers."
    return Table(("layer", "output", "parameters", "MACs", "share of MACs"), rows, caption)


def mistakes(study: Study, lines: Sequence[Line], role: str) -> Table | None:
    """The most frequent confusions of each of the lines, in percent of the label's rows; of those of one data set."""
    matrices = [(line, line.details[role].confusion) for line in lines if role in line.details]
    known = [(line, matrix) for line, matrix in matrices if matrix]
    known = [(line, matrix) for line, matrix in known if study.data_of(line) == study.data_of(known[0][0])]
    if not known:
        return None
    pairs = dict.fromkeys((label, choice) for _, matrix in known for label, choice, _ in worst(matrix, 6))
    classes = class_names(study, known[0][0], len(known[0][1]))

    def share(matrix: Sequence[Sequence[int]], label: int, choice: int) -> float:
        return 100 * matrix[label][choice] / max(1, sum(matrix[label]))

    ordered = sorted(pairs, key=lambda pair: -max(share(matrix, *pair) for _, matrix in known))[:8]
    if not ordered:
        return None
    rows = tuple(
        _row(
            Cell(classes[label]),
            Cell(classes[choice]),
            *(number_cell(f"{share(m, label, choice):.1f}") for _, m in known),
        )
        for label, choice in ordered
    )
    heads = ("label", "taken for", *(f"{line.title} %" for line, _ in known))
    return Table(heads, rows, f"The most frequent confusions on {ROLES[role]}, in percent of the label's rows.")


def settings(studies: Sequence[Study], tags: Sequence[str]) -> Table:
    """Settings in which the runs differ; of one run all settings, folded."""
    configs = [flat(by_name(study.config)) for study in studies]
    keys = sorted({key for config in configs for key in config})
    if len(studies) == 1:
        every = tuple((Cell(key), Cell(value_text(configs[0][key]))) for key in keys)
        return Table(("setting", "value"), every, folded=f"All {len(keys)} settings")
    texts = {key: [value_text(config[key]) if key in config else NOTHING for config in configs] for key in keys}
    differing = {key: values for key, values in texts.items() if len(set(values)) > 1}
    rows = tuple((Cell(key), *(Cell(value) for value in values)) for key, values in differing.items())
    caption = f"{len(differing)} of {len(keys)} settings differ; {NOTHING}: the run has no such setting."
    return Table(("setting", *tags), rows, caption)


def origins(studies: Sequence[Study], tags: Sequence[str]) -> Table:
    """When, with which versions, on which machine and by which command each run was made."""
    rows: list[tuple[Cell, ...]] = []

    def add(name: str, values: Sequence[object]) -> None:
        if any(value not in (None, "") for value in values):
            rows.append((Cell(name), *(Cell(NOTHING if value in (None, "") else str(value)) for value in values)))

    add("run", [study.id for study in studies])
    add("kind", [study.kind for study in studies])
    add("state", [study.state for study in studies])
    add("started (UTC)", [moment(study.started) for study in studies])
    add("finished (UTC)", [moment(study.finished or "") for study in studies])
    for name in dict.fromkeys(name for study in studies for name in study.versions):
        add(name, [study.versions.get(name) for study in studies])
    for name in dict.fromkeys(name for study in studies for name in study.host):
        add(name, [study.host.get(name) for study in studies])
    add("command", [study.command for study in studies])
    return Table(("", *tags) if len(studies) > 1 else ("", "value"), tuple(rows))


def moment(text: str) -> str:
    """An ISO time to the second, without its zone. `moment("2026-11-22T12:46:03.1+00:00") == "2026-11-22 12:46:03"`."""
    return text[:19].replace("T", " ")


def value_text(value: object) -> str:
    """A setting's value as text: JSON, text without its quotes."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def interval(line: Line, role: str, n: int | None) -> str:
    """`[13.05, 19.47]` over seeds, `(13.05, 19.47)` from the images of a single run, "" where neither is known.

    `no interval` where that over the seeds would be as wide as the scale.
    """
    span = line.span(role, n)
    if span is None:
        error = line.error(role)
        return "no interval" if error is not None and error.n > 1 else ""
    low, high, kind = span
    return f"[{low:.2f}, {high:.2f}]" if kind == "t" else f"({low:.2f}, {high:.2f})"


def difference_text(found: Difference) -> str:
    """`-0.35 [-0.60, -0.10]`, with a proper minus sign."""
    bounds = "" if found.low is None or found.high is None else f" [{signed(found.low)}, {signed(found.high)}]"
    return f"{signed(found.mean)}{bounds}".replace("-", "\u2212")


def _row(*cells: Cell) -> tuple[Cell, ...]:
    return cells


def _marks(line: Line) -> str:
    marks = [line.handed_over] if line.handed_over else []
    marks += ["chosen by validation"] if line.chosen else []
    return ", ".join([*marks, *(["least on test"] if line.least_on_test else [])])


def number_cell(text: str, under: str = "") -> Cell:
    """A cell whose text is a number: aligned to the right."""
    return Cell(text, under, number=True)


def _mean(found: Estimate | None, digits: int) -> Cell:
    return number_cell(NOTHING if found is None else f"{found.mean:.{digits}f}")


def _error(line: Line, role: str, n: int | None) -> Cell:
    found = line.error(role)
    return number_cell(NOTHING) if found is None else number_cell(f"{found.mean:.2f}", interval(line, role, n))


def _difference(found: Difference | None, corrected: bool) -> Cell:
    """The cell of a difference; `corrected`: whether others have a corrected p, from which a raw one must be told."""
    if found is None:
        return number_cell(NOTHING)
    text, _, bounds = difference_text(found).partition(" ")
    p = found.p_holm if found.p_holm is not None else found.p
    raw = "raw " if corrected and found.p_holm is None else ""
    return number_cell(text, bounds + ("" if p is None else f" {raw}p {p:.2g}"))


def _cost(line: Line, teacher: Line | None, key: str) -> Cell:
    value = cost(line.costs, key)
    if value is None:
        return number_cell(NOTHING)
    text = f"{value:.3f}" if key == "latency_ms" else SHOW[key](value)
    if key == "macs" and (line.costs or {}).get("unsupported"):
        text = f"≥ {text}"
    reference = cost(teacher.costs, key) if teacher is not None and teacher is not line else None
    return number_cell(text, f"{value / reference:.2f}×" if reference else "")
