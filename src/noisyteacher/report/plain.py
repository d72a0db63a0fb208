"""The same report without a page: Markdown for people, JSON and CSV for programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from noisyteacher.pipeline import explain_choice
from noisyteacher.report import tables
from noisyteacher.report.costs import COSTS, cost
from noisyteacher.report.page import heading, picks, tagged
from noisyteacher.report.study import Line, Study
from noisyteacher.report.tables import Cell, Table
from noisyteacher.text import escaped, shown

SCHEMA = 1
NOISE = ("sigma", "alpha", "draw", "kind", "distribution", "target", "frozen", "schedule")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def markdown(studies: Sequence[Study]) -> str:
    """The studies as Markdown with pipe tables; names are escaped, so that they show as they are."""
    whole = [one for study in studies for one in study.with_parts()]
    tags = tagged(whole)
    lines = [f"# {escaped(heading(studies))}", ""]
    for study, tag in zip(whole, tags, strict=True):
        if len(whole) > 1:
            lines += [f"## {tag}: {escaped(study.of_models)}", ""]
        lines += [f"{escaped(study.kind)} {escaped(study.id)}, {study.state}", ""]
        for verdict in study.verdicts:
            lines += [f"**{escaped(verdict.whole)}**", ""]
        if study.choice and (how := explain_choice(study.choice)) not in [one.sentence for one in study.verdicts]:
            lines += [escaped(f"The noise: {how}."), ""]
        lines += [line for note in study.notes for line in (escaped(note), "")]
        for table in (
            tables.beside_table(study), tables.results(study), tables.candidates(study), tables.costs(study),
            _failed(study), *_mistakes(study),
        ):  # fmt: skip
            lines += _pipes(table) if table is not None else []
    if len(whole) > 1:
        lines += ["## Settings that differ", "", *_pipes(tables.settings(whole, tags))]
    lines += ["## Versions and hosts", "", *_pipes(tables.origins(whole, tags))]
    return "\n".join(lines).rstrip("\n") + "\n"


def _mistakes(study: Study) -> list[Table | None]:
    """The most frequent confusions, a table per data set."""
    groups: dict[str, list[Line]] = {}
    for line in picks(study):
        groups.setdefault(study.data_of(line), []).append(line)
    return [tables.mistakes(study, lines, study.role) for lines in groups.values()]


def as_json(studies: Sequence[Study]) -> str:
    """The studies as one JSON object: `{"kind": "report", "schema": 1, "runs": [...]}` (docs/formats.md)."""
    content = {"kind": "report", "schema": SCHEMA, "runs": [described(study) for study in studies]}
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def described(study: Study) -> dict[str, Any]:
    """One study as JSON holds it."""
    return {
        "run": study.id,
        "kind": study.kind,
        "state": study.state,
        "data": study.data,
        "n": dict(study.n),
        "role": study.role,
        "teacher": study.teacher,
        "student": study.student,
        "started": study.started,
        "finished": study.finished,
        "command": study.command,
        "versions": dict(study.versions),
        "host": dict(study.host),
        "verdicts": [
            {"word": one.word, "sentence": one.sentence, "line": one.line.name if one.line else None}
            for one in study.verdicts
        ],
        "notes": list(study.notes),
        "failed": [{"part": what, "error": why} for what, why in study.failed],
        "choice": None if study.choice is None else dict(study.choice),
        "handed_over": None if study.handed_over is None else _line(study.handed_over),
        "lines": [_line(line) for line in study.lines],
        "paper": [
            {"label": row.label, "paper_%": row.paper, "ours": row.ours.describe() if row.ours else None}
            for row in study.rows
        ],
        "config": dict(study.config),
        "parts": [described(part) for part in study.parts],
    }


def as_csv(studies: Sequence[Study]) -> str:
    """A row per line of every study (docs/formats.md); text that a spreadsheet would take for a formula is quoted."""
    rows = [
        _row(study, line)
        for study in (one for study in studies for one in study.with_parts())
        for line in study.lines or (None,)
    ]
    target = io.StringIO()
    writer = csv.DictWriter(target, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: harmless(value) for key, value in row.items()} for row in rows)
    return target.getvalue()


def harmless(value: object) -> object:
    """The value as a CSV cell. Text that begins like a formula gets a leading apostrophe; numbers stay numbers."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return value
    text = "".join(one if one in "\t\r\n" else shown(one) for one in str(value))
    if text.startswith(_FORMULA) or text.lstrip().startswith(_FORMULA):
        return f"'{text}"
    return text


def _row(study: Study, line: Line | None) -> dict[str, Any]:
    role = study.role
    data, n = study.split_of(line) if line else (study.data, study.n.get(role))
    row: dict[str, Any] = {"run": study.id, "run_kind": study.kind, "state": study.state, "data": data}
    error = line.error(role) if line else None
    span = line.span(role, n) if line else None
    gap = line.against_clean if line else None
    row |= {
        "line": line.name if line else None,
        "title": line.title if line else None,
        "line_kind": line.kind if line else None,
        "model": line.model if line else None,
        "seeds": len(line.seeds) if line else None,
        "role": role,
        "n": n,
        "error_%": error.mean if error else None,
        "error_low_%": span[0] if span else None,
        "error_high_%": span[1] if span else None,
        "interval": span[2] if span else None,
        "error_per_seed_%": " ".join(f"{one:.6g}" for one in error.per_seed) if error else None,
        "difference_points": gap.mean if gap else None,
        "difference_low_points": gap.low if gap else None,
        "difference_high_points": gap.high if gap else None,
        "p": gap.p if gap else None,
        "p_holm": gap.p_holm if gap else None,
    }
    for key in ("val_error_%", f"{role}_nll_nats", f"{role}_ece_%", f"{role}_agreement_%"):
        found = line.scores.get(key) if line else None
        row[key if key == "val_error_%" else key.partition("_")[2]] = found.mean if found else None
    row |= {f"noise_{key}": _text(line.settings.get(f"noise.{key}")) if line else None for key in NOISE}
    row |= {key: _whole(cost(line.costs, key)) if line else None for key in COSTS}
    row["training_s"] = line.training_s.mean if line and line.training_s else None
    row["chosen"] = line.chosen if line else None
    return row


def _whole(value: float | None) -> float | int | None:
    return int(value) if value is not None and value == int(value) else value


def _text(value: Any) -> Any:
    """A setting as one cell: a range as `low..high`."""
    return "..".join(f"{one:g}" for one in value) if isinstance(value, (list, tuple)) else value


def _line(line: Line) -> dict[str, Any]:
    gap = line.against_clean
    return {
        "name": line.name,
        "title": line.title,
        "kind": line.kind,
        "model": line.model,
        "family": line.family,
        "settings": dict(line.settings),
        **({"data": line.data} if line.data else {}),
        **({"n": dict(line.n)} if line.n else {}),
        "seeds": list(line.seeds),
        "scores": {key: estimate.describe() for key, estimate in line.scores.items()},
        "against_clean": None if gap is None else vars(gap),
        "training_s": None if line.training_s is None else line.training_s.describe(),
        "costs": None if line.costs is None else dict(line.costs),
        "chosen": line.chosen,
        "least_on_test": line.least_on_test,
        "runs": list(line.runs),
    }


def _failed(study: Study) -> Table | None:
    if not study.failed:
        return None
    return Table(("part that failed", "why"), tuple((Cell(what), Cell(why)) for what, why in study.failed))


def _pipes(table: Table) -> list[str]:
    """The table in Markdown, its caption below."""
    if not table.rows:
        return [escaped(table.caption), ""] if table.caption else []
    right = [table.rows[0][place].number for place in range(len(table.headers))]
    lines = [
        "| " + " | ".join(escaped(head) for head in table.headers) + " |",
        "|" + "|".join("--:" if number else "---" for number in right) + "|",
    ]
    for row in table.rows:
        cells = [" ".join(filter(None, (escaped(cell.text), escaped(cell.under)))) for cell in row]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, "", *([escaped(table.caption), ""] if table.caption else [])]
