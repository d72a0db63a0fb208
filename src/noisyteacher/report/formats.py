"""A report as HTML, as Markdown for people, as JSON and CSV for programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict

from noisyteacher.io.files import Json
from noisyteacher.pipeline.compression_result import choice_table
from noisyteacher.pipeline.results import COSTS, Condition
from noisyteacher.report import tables
from noisyteacher.report.page import page
from noisyteacher.report.study import Study, heading, tagged, verdict_text
from noisyteacher.text import escaped, harmless, value_words

SCHEMA = 2
NOISE = ("sigma", "alpha", "draw", "kind", "distribution", "target", "frozen", "schedule", "until", "draws")


def markdown(studies: Sequence[Study]) -> str:
    """The studies as Markdown with pipe tables; names are escaped, so that they show as they are."""
    every = [inner for study in studies for inner in study.with_parts()]
    tags = tagged(every)
    blocks = [f"# {escaped(heading(studies))}\n"]
    for study, tag in zip(every, tags, strict=True):
        blocks += [f"## {tag}: {escaped(study.models)}\n"] if len(every) > 1 else []
        blocks.append(f"{escaped(study.kind)} {escaped(study.run.id)}, {study.state}\n")
        blocks += [f"**{escaped(verdict_text(verdict))}**\n" for verdict in study.verdicts]
        choice = study.result.choice
        if choice and choice["summary"] not in [verdict.sentence for verdict in study.verdicts]:
            blocks.append(escaped(f"The noise: {choice['summary']}.") + "\n")
        blocks += [f"{escaped(note)}\n" for note in study.notes]
        rows_by_data: dict[str, list[Condition]] = {}
        for row in study.picks():
            rows_by_data.setdefault(study.data_of(row), []).append(row)
        parts = [tables.beside_paper(study), tables.results(study), choice_table(choice)]
        parts += [tables.costs(study), tables.failures(study)]
        for rows in rows_by_data.values():
            parts += [tables.mistakes(study, rows, study.role), tables.recalls(study, rows, study.role)]
        blocks += [table.markdown() for table in parts if table is not None]
    if len(every) > 1:
        blocks += ["## Settings that differ\n", tables.settings(every, tags).markdown()]
    blocks += ["## Versions and hosts\n", tables.origins(every, tags).markdown()]
    return "\n".join(blocks).rstrip("\n") + "\n"


def as_json(studies: Sequence[Study]) -> str:
    """The studies as one JSON object: `{"kind": "report", "schema": 2, "runs": [...]}` (docs/formats.md)."""
    content = {"kind": "report", "schema": SCHEMA, "runs": [_record(study) for study in studies]}
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _record(study: Study) -> Json:
    run = study.run
    return {
        "run": run.id,
        **{key: run.info[key] for key in ("kind", "started", "versions", "host")},
        "state": study.state,
        "finished": run.finished,
        "command": study.command,
        "config": run.config,
        "notes": study.notes,
        "verdicts": [asdict(verdict) for verdict in study.verdicts],
        "handed_over": None if study.handed_over is None else asdict(study.handed_over),
        "result": study.result.describe(),
        "parts": [_record(part) for part in study.parts],
    }


def as_csv(studies: Sequence[Study]) -> str:
    """A row per condition of every study (docs/formats.md); text that looks like a formula is quoted."""
    every = [inner for study in studies for inner in study.with_parts()]
    rows = [_row(study, row) for study in every for row in study.rows or (Condition("", "", ""),)]
    target = io.StringIO()
    writer = csv.DictWriter(target, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: harmless(value) for key, value in row.items()} for row in rows)
    return target.getvalue()


def _row(study: Study, row: Condition) -> Json:
    """The cells of a condition; one without a name stands for a run that has none yet."""
    role, (data, n) = study.role, study.split_of(row)
    low, high, interval = row.span(role) or (None, None, None)
    scores = {"error_%": row.score(role), "val_error_%": row.score("val"), "nll_nats": row.score(role, "nll")}
    scores |= {f"{name}_%": row.score(role, name) for name in ("ece", "agreement", "balanced_accuracy", "top5")}
    means = {name: None if estimate is None else estimate.mean for name, estimate in scores.items()}
    error, gap = scores["error_%"], row.against_clean.get(role)
    costs = {name: row.cost(name) for name in COSTS}
    noise = {name: row.settings.get(f"noise.{name}") for name in NOISE}
    return {
        "run": study.run.id,
        "run_kind": study.kind,
        "state": study.state,
        "data": data,
        "line": row.name,
        "title": row.title,
        "line_kind": row.kind,
        "model": row.model,
        "seeds": len(row.seeds) if row.name else None,
        "role": role,
        "n": n,
        "error_%": means.pop("error_%"),
        "error_low_%": low,
        "error_high_%": high,
        "interval": interval,
        "error_per_seed_%": " ".join(f"{value:.6g}" for value in error.per_seed) if error else None,
        "difference_points": gap and gap.mean,
        "difference_low_points": gap and gap.low,
        "difference_high_points": gap and gap.high,
        "p": gap and gap.corrected,
        "comparisons": gap and gap.comparisons,
        **means,
        **{f"noise_{name}": value_words(value) if isinstance(value, list) else value for name, value in noise.items()},
        **{name: int(cost) if cost is not None and cost == int(cost) else cost for name, cost in costs.items()},
        "training_s": sum(row.seconds) / len(row.seconds) if row.seconds else None,
        "chosen": study.is_chosen(row) if row.name else None,
    }


RENDERERS = {"html": page, "md": markdown, "json": as_json, "csv": as_csv}
