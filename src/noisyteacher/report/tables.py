"""The tables of a report: results, costs, layers, exported files, settings that differ, versions and hosts."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from noisyteacher import bench
from noisyteacher.export import table as export_table
from noisyteacher.pipeline import Result
from noisyteacher.pipeline.compression_result import SEARCH_COSTS, search_table
from noisyteacher.pipeline.latency import read_record
from noisyteacher.pipeline.results import COSTS, Condition, Difference, Estimate, p_note
from noisyteacher.report.study import Study, latency_conditions
from noisyteacher.runs import BEST, by_name
from noisyteacher.stats import binomial_interval, p_words
from noisyteacher.tables import Table
from noisyteacher.text import SPLIT_NAMES, count, duration, flat, signed, size_bytes

NOTHING = "–"
SAME = 1e-6
"""By how many points equal scores may differ after rounding."""
MOST_CLASSES = 20
"""Classes that a table of recall lists at most."""


def results(study: Study) -> Table | None:
    """A row per condition: error with interval, difference to clean, other scores; without empty columns."""
    role, other = study.role, "val" if study.role == "test" else "test"
    rows = [row for row in study.rows if row.scores]
    if not rows:
        return None
    gaps = [row.against_clean[role] for row in rows if role in row.against_clean]
    several = len({study.data_of(row) for row in rows}) > 1
    columns = {
        "data": [study.data_of(row) if several else NOTHING for row in rows],
        "seeds": [str(len(row.seeds)) for row in rows],
        f"{SPLIT_NAMES[role]} error %": [_error(row, role) for row in rows],
        f"against {study.reference}": [_difference(row.against_clean.get(role)) for row in rows],
        f"{SPLIT_NAMES[other]} error %": [_error(row, other) for row in rows],
        "NLL nats": [_mean(row.score(role, "nll"), 3) for row in rows],
        "balanced accuracy %": [_balanced(row, role) for row in rows],
        "top-5 %": [_mean(row.score(role, "top5"), 2) for row in rows],
        "ECE %": [_mean(row.score(role, "ece"), 2) for row in rows],
        "agreement %": [_mean(row.score(role, "agreement"), 1) for row in rows],
        "training": [duration(sum(row.seconds) / len(row.seconds)) if row.seconds else NOTHING for row in rows],
    }
    columns = {name: cells for name, cells in columns.items() if set(cells) != {NOTHING}}
    images = {name: study.images(name, rows) for name in (role, other)}
    notes = [f"{SPLIT_NAMES[name].capitalize()}: {words}." for name, words in images.items() if words]
    intervals = {row.interval_text(name)[:3] for row in rows for name in (role, other) if row.score(name)}
    if any(text.startswith("[") and text != "[no" for text in intervals):
        notes.append("[ ]: 95 % Student-t interval over seeds.")
    if any(text.startswith("(") for text in intervals):
        notes.append("( ): 95 % Wilson interval of a single run.")
    if "[no" in intervals:
        notes.append("No interval: it would be wider than 0 to 100 %; run more seeds.")
    if gaps:
        notes.append(f"Against {study.reference}: points, paired by seed, below 0 is better. {p_note(gaps)}".strip())
    titles = [f"{row.title}\n{study.marks(row)}".rstrip() for row in rows]
    strong = frozenset(number for number, row in enumerate(rows) if study.is_chosen(row) or study.is_handed_over(row))
    align = "".join("l" if name == "data" else "r" for name in columns)
    cells = tuple(zip(titles, *columns.values(), strict=True))
    return Table(("", *columns), cells, f"l{align}", tuple(notes), strong)


def networks(study: Study) -> list[tuple[str, Condition]]:
    """(title, a condition of it) of every network whose costs are known, teachers first; students with options."""
    distinct: dict[tuple[object, ...], tuple[str, Condition]] = {}
    for row in study.rows:
        options = [f"{key[16:]} {value}" for key, value in row.settings.items() if key.startswith("student.options.")]
        title = ", ".join([row.model or "student", *options])
        title = f"teacher {row.model or ''}".strip() if row.kind == "teacher" else title
        if row.costs is not None:
            distinct.setdefault((title, *map(row.cost, ("macs", "parameters", "bytes"))), (title, row))
    titles = [title for title, _ in distinct.values()]
    return [
        (title if titles.count(title) == 1 else f"{title}, {study.data_of(row)}", row)
        for title, row in distinct.values()
    ]


def costs(study: Study) -> Table | None:
    """A row per network: its costs, and for students the ratio to the teacher; None where nothing was measured."""
    measured = networks(study)
    if not measured:
        return None
    teachers = [(title, row) for title, row in measured if row.kind == "teacher"]
    teacher = teachers[0][1] if teachers else None
    rows = []
    for title, row in measured:
        peak = row.costs.peak_memory_bytes if row.costs is not None else 0
        rows.append((title, *(_cost(row, teacher, name) for name in COSTS), size_bytes(peak) if peak else NOTHING))
    notes = []
    if teachers and len(measured) > 1:
        reference = teachers[0][0] if len(teachers) > 1 else "the teacher"
        notes.append(f"Second lines: ratio to {reference} (below 1: smaller, faster).")
    notes.append("MACs: multiplications of convolutions and matrix products per image, biases not counted.")
    notes.append("Bytes: the weights file.")
    if latency := latency_conditions(measured[0][1]):
        notes.append(f"Latency: {latency}.")
    if missing := sorted({name for _, row in measured if row.costs is not None for name in row.costs.unsupported}):
        notes.append(f"Not counted in MACs: {', '.join(missing)}.")
    return Table(("", *(name for name, _ in COSTS.values()), "peak memory"), tuple(rows), notes=tuple(notes))


def layers(title: str, row: Condition) -> Table | None:
    """Where the network `title` multiplies: its layers with MACs or parameters, and their share of the MACs."""
    active = [layer for layer in (row.costs.layers if row.costs else ()) if layer.macs or layer.parameters]
    total = sum(layer.macs for layer in active)
    rows = []
    for layer in active:
        shape, share = "×".join(map(str, layer.output_shape)) or NOTHING, 100 * layer.macs / (total or 1)
        cells = (shape, count(layer.parameters), count(layer.macs), f"{share:.1f} %")
        rows.append((f"{layer.name}\n{layer.kind}", *cells))
    what = "network " if row.kind == "model" else "" if title.startswith(("teacher", "student")) else "student "
    folded = f"Layers of the {what}{title}"
    note = f"{folded}: {count(total)} MACs per image in {len(active)} layers."
    headers = ("layer", "output", "parameters", "MACs", "share of MACs")
    return Table(headers, tuple(rows), notes=(note,), bar=4, folded=folded) if rows else None


def beside_paper(study: Study) -> Table | None:
    """The paper's numbers and ours, a row each; None where the run reproduces nothing."""
    several = len({row.part for row in study.result.paper}) > 1
    rows = []
    for row in study.result.paper:
        ours = NOTHING if row.ours is None else str(row.ours).replace(" ", "\n", 1)
        label, seeds = f"{row.part}: {row.label}" if several else row.label, str(row.ours.n) if row.ours else ""
        rows.append((label, NOTHING if row.paper is None else f"{row.paper:.2f}", ours, seeds))
    note = "Test errors in percent; ours with 95 % Student-t intervals over seeds, the paper's are single runs."
    return Table(("", "paper %", "ours %", "seeds"), tuple(rows), notes=(note,)) if rows else None


def mistakes(study: Study, conditions: Sequence[Condition], role: str) -> Table | None:
    """The most frequent confusions of conditions of one data set, in percent of the label's rows."""
    shares: dict[str, NDArray[np.float64]] = {}
    pairs: dict[tuple[int, int], None] = {}
    classes: tuple[str, ...] = ()
    for row in conditions:
        details = study.details.get(row.name, {}).get(role)
        if details is None or details.confusion is None:
            continue
        wrong = details.confusion - np.diag(details.confusion.diagonal())
        most = np.argsort(-wrong, axis=None, kind="stable")[:6]
        pairs |= {divmod(int(cell), len(wrong)): None for cell in most if wrong.flat[cell]}
        shares[row.title] = 100 * wrong / np.maximum(1, details.confusion.sum(1, keepdims=True))
        classes = classes or details.classes
    ordered = sorted(pairs, key=lambda pair: -max(share[pair] for share in shares.values()))[:8]
    rows = tuple((classes[a], classes[b], *(f"{share[a, b]:.1f}" for share in shares.values())) for a, b in ordered)
    note = f"The most frequent confusions on {SPLIT_NAMES[role]}, in percent of the label's rows."
    headers = ("label", "taken for", *(f"{title} %" for title in shares))
    return Table(headers, rows, "ll" + "r" * len(shares), (note,)) if rows else None


def recalls(study: Study, conditions: Sequence[Condition], role: str) -> Table | None:
    """Recall by class of conditions of one data set, those with the lowest first; None where it is not known."""
    details = {row.title: study.details.get(row.name, {}).get(role) for row in conditions}
    known = {title: table for title, table in details.items() if table is not None and table.confusion is not None}
    matrices = {title: table.confusion for title, table in known.items() if table.confusion is not None}
    if not matrices:
        return None
    shares = {title: matrix.diagonal() / np.maximum(1, matrix.sum(1)) for title, matrix in matrices.items()}
    first = next(iter(known.values()))
    images = next(iter(matrices.values())).sum(1) // first.seeds
    order = np.argsort(sum(shares.values()) + len(shares) * (images == 0), kind="stable")[:MOST_CLASSES]
    rows = []
    for number in order:
        cells = [first.classes[number], f"{images[number]:,}"]
        for title, matrix in matrices.items():
            low, high = (
                binomial_interval(int(matrix[number, number]), int(n)) if (n := matrix[number].sum()) else (0, 100)
            )
            interval = f"\n({low:.1f}, {high:.1f})" if known[title].seeds == 1 else ""
            cells.append(f"{100 * shares[title][number]:.1f}{interval}" if n else NOTHING)
        rows.append(tuple(cells))
    note = f"Recall on {SPLIT_NAMES[role]}: the share of a class's images that are taken for it; lowest first."
    if any(table.seeds == 1 for table in known.values()):
        note += " ( ): 95 % Wilson interval of a single run."
    headers = ("class", "images", *(f"{title} %" for title in matrices))
    return Table(headers, tuple(rows), "l" + "r" * (1 + len(matrices)), (note,))


def searched(study: Study) -> Table | None:
    """A row per network that was considered for the student, the limits first; None without a search."""
    search, table = study.result.search, search_table(study.result.search)
    if search is None or table is None:
        return None
    limits, names = search["limits"], [name for name in SEARCH_COSTS if name in search["table"][0]]
    words = [SEARCH_COSTS[name][1](limits[name]) if name in limits else NOTHING for name in names]
    rows = (("limit", *words, NOTHING, ""), *table.rows)
    note = f"Validation, n = {search['n']:,} images, after {search['epochs']} epoch(s) with seed {search['seed']}."
    return Table(table.headers, rows, table.align, (note,), frozenset({0, *(number + 1 for number in table.strong)}))


def exported(study: Study) -> Table | None:
    """A row per file that was written of the student, torch first; None without files and failures."""
    result = study.result
    if not (isinstance(result, Result) and (result.files or result.failed)):
        return None
    return export_table(result.files, result.failed)


def latencies(study: Study) -> list[Table]:
    """A table per record of `bench` in the run's folder `best`: what was measured where the student runs."""
    records = map(read_record, sorted((study.run.path / BEST).glob("bench*.json")))
    return [
        Table(bench.HEADERS, tuple(bench.rows(record)), "llrrrr", (f"Latency: {record.conditions}.",))
        for record in records
    ]


def failures(study: Study) -> Table | None:
    """What failed, with the reasons."""
    failed = study.result.failed
    return Table(("part that failed", "why"), tuple(failed.items()), "ll") if failed else None


def settings(studies: Sequence[Study], tags: Sequence[str]) -> Table:
    """Settings in which the runs differ; of one run all settings, folded."""
    configs = [flat(by_name(study.run.config)) for study in studies]
    keys = sorted({key for config in configs for key in config})
    rows = [(key, *(_setting(config[key]) if key in config else NOTHING for config in configs)) for key in keys]
    if len(studies) == 1:
        return Table(("setting", "value"), tuple(rows), "ll", folded=f"All {len(keys)} settings")
    differing = tuple(row for row in rows if len(set(row[1:])) > 1)
    note = f"{len(differing)} of {len(keys)} settings differ; {NOTHING}: the run has no such setting."
    return Table(("setting", *tags), differing, "l" * (1 + len(tags)), (note,))


def origins(studies: Sequence[Study], tags: Sequence[str]) -> Table:
    """When, with which versions, on which machine and by which command each run was made."""
    columns = []
    for study in studies:
        run, info = study.run, study.run.info
        times = {"started (UTC)": moment(run.started), "finished (UTC)": moment(run.finished or "")}
        fields = {"run": run.id, "kind": study.kind, "state": study.state, **times, **info["versions"], **info["host"]}
        columns.append({**fields, "command": study.command})
    names = dict.fromkeys(name for column in columns for name in column if name != "command")
    rows = [(name, *(str(column.get(name) or NOTHING) for column in columns)) for name in (*names, "command")]
    rows = [row for row in rows if set(row[1:]) != {NOTHING}]
    return Table(("", *tags) if len(studies) > 1 else ("", "value"), tuple(rows), "l" * (1 + len(studies)))


def overview(studies: Sequence[Study], tags: Sequence[str]) -> Table:
    """A row per run of several: what it is and what came of it."""
    rows = []
    for study, tag in zip(studies, tags, strict=True):
        about = next((row for verdict in study.verdicts if (row := study.verdict_condition(verdict))), None)
        first_clean = next((row for row in study.rows if row.kind == "clean"), None)
        clean = first_clean if about is None else study.result.clean_of(about)
        compared = (study.result.teacher_of(about), clean, about)
        errors = [_mean(row.score(study.role) if row else None, 2) for row in compared]
        word = study.verdicts[0].word if study.verdicts else ""
        rows.append((tag, f"{study.models}\n{study.run.id}", study.kind, word or study.state, *errors))
    reference = "clean" if any(study.over_noise for study in studies) else "distilled"
    headers = ("", "models, data", "kind", "outcome", "teacher error %", f"{reference} error %", "this error %")
    return Table(headers, tuple(rows), "llllrrr", ("This error: of the model that the outcome is about.",))


def moment(text: str) -> str:
    """An ISO time to the second, without its zone. `moment("2026-11-22T12:46:03.1+00:00") == "2026-11-22 12:46:03"`."""
    return text[:19].replace("T", " ")


def difference_lines(gap: Difference) -> tuple[str, str]:
    """`-0.35` and `[-0.60, -0.10]`, with a proper minus sign."""
    bounds = "" if gap.low is None or gap.high is None else f"[{signed(gap.low)}, {signed(gap.high)}]"
    return signed(gap.mean).replace("-", "\u2212"), bounds.replace("-", "\u2212")


def _setting(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _mean(estimate: Estimate | None, digits: int) -> str:
    return NOTHING if estimate is None else f"{estimate.mean:.{digits}f}"


def _error(row: Condition, role: str) -> str:
    return f"{_mean(row.score(role), 2)}\n{row.interval_text(role) if row.score(role) else ''}".rstrip()


def _balanced(row: Condition, role: str) -> str:
    """The cell of the balanced accuracy; empty where it is the accuracy, as in a split of equally frequent classes."""
    estimate, error = row.score(role, "balanced_accuracy"), row.score(role)
    if estimate is None or error is None or abs(100 - error.mean - estimate.mean) < SAME:
        return NOTHING
    return str(estimate).replace(" ", "\n", 1)


def _difference(gap: Difference | None) -> str:
    """The cell of a difference."""
    if gap is None:
        return NOTHING
    text, bounds = difference_lines(gap)
    words = filter(None, (bounds, "" if gap.corrected is None else f"p {p_words(gap.corrected)}"))
    return f"{text}\n{' '.join(words)}".rstrip()


def _cost(row: Condition, teacher: Condition | None, name: str) -> str:
    value = row.cost(name)
    if value is None:
        return NOTHING
    bound = "≥ " if name == "macs" and row.costs is not None and row.costs.unsupported else ""
    reference = teacher.cost(name) if teacher is not None and teacher is not row else None
    return f"{bound}{COSTS[name][1](value)}" + (f"\n{value / reference:.2f}×" if reference else "")
