"""The page: verdicts first, then what they rest on. One file, no script, no network, every name escaped."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from noisyteacher.pipeline.compression_result import HANDED_OVER, choice_table
from noisyteacher.pipeline.results import CHOICE_NOTE, Condition, Difference, Verdict
from noisyteacher.report import figures, tables
from noisyteacher.report.figures import Figure
from noisyteacher.report.study import Study, heading, tagged, verdict_text
from noisyteacher.tables import Table
from noisyteacher.text import SPLIT_NAMES, plural, printable, sentence

TEMPLATES = Path(__file__).with_name("templates")
HEADINGS = {
    "": "Measured",
    "helps": "The noise helped",
    "hurts": "The noise hurt",
    "no evidence": "No evidence either way",
    "unfinished": "Not finished",
    "failed": "Failed",
}


class Card(NamedTuple):
    """A verdict as the first screen shows it."""

    word: str
    heading: str
    title: str
    sentence: str
    facts: Sequence[tuple[str, str, str]]
    """Numbers with their name and a line below, such as the interval."""


@dataclass(frozen=True)
class Section:
    """A part of the page: sentences, then figures, then tables. `level` 3: of one run among several."""

    title: str
    texts: Sequence[str] = ()
    figures: Sequence[Figure | None] = ()
    tables: Sequence[Table | None] = ()
    level: int = 2

    def __bool__(self) -> bool:
        return any((*self.texts, *self.figures, *self.tables))


def page(studies: Sequence[Study]) -> str:
    """The studies as one HTML page, UTF-8 text; equal studies give equal text."""
    every = [inner for study in studies for inner in study.with_parts()]
    several = len(every) > 1
    tags = tagged(every) if several else [""]
    sections: list[Section] = []
    if several:
        sections.append(Section("Runs", tables=[tables.overview(every, tags)]))
        sections.append(_along(every, tags))
        sections.append(Section("Error against cost", figures=figures.trade_offs(every)))
    for study, tag in zip(every, tags, strict=True):
        parts = list(_parts(study, alone=not several))
        if several:
            sections.append(Section(f"{tag}: {study.models}", [f"{study.kind} {study.run.id}"]))
            parts = [replace(part, level=3) for part in parts]
        sections += parts
    sections.append(Section("Settings that differ" if several else "Settings", tables=[tables.settings(every, tags)]))
    sections.append(Section("Versions and hosts", tables=[tables.origins(every, tags)]))
    numbers = itertools.count()
    page = _environment().get_template("page.html")
    return page.render(
        title=heading(studies),
        subtitle=_subtitle(studies),
        cards=[card for study, tag in zip(every, tags, strict=True) for card in _cards(study, tag)],
        sections=list(filter(None, sections)),
        draw=lambda figure: figure.svg(f"figure {next(numbers)}"),
        style=re.sub(r"/\*.*?\*/\s*", "", (TEMPLATES / "page.css").read_text(encoding="utf-8"), flags=re.DOTALL),
    )


def _environment() -> Environment:
    """What renders the templates: every text is escaped, and its control characters are shown."""
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )


def _subtitle(studies: Sequence[Study]) -> str:
    """The line below the heading: kind, seeds, time and id of one run, or how many runs are in which state."""
    if len(studies) > 1:
        states = [study.state for study in studies]
        return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    study = studies[0]
    seeds = max((len(row.seeds) for row in study.rows), default=0)
    parts = [study.kind, plural(seeds, "seed") if seeds else "", tables.moment(study.run.started)[:16], study.run.id]
    return " · ".join(filter(None, parts))


def _cards(study: Study, tag: str) -> Iterable[Card]:
    """A card per verdict; `tag` is the short name of the run among several, "" for one alone."""
    for verdict in study.verdicts or (() if study.parts else (_lowest_error(study),)):
        about = study.verdict_condition(verdict)
        name = HEADINGS.get(verdict.word, verdict.word)
        if verdict.word == HANDED_OVER and about is not None:
            name = f"Handed over: {about.title}"
        title = f"{tag}: {study.models}" if tag else ""
        yield Card(verdict.word, name, title, verdict_text(verdict), list(_facts(study, about, verdict.fresh)))


def _lowest_error(study: Study) -> Verdict:
    """For a run without a verdict: the lowest error of its students on each data set."""
    lowest: dict[tuple[str, int | None], tuple[float, str]] = {}
    for row in study.result.conditions:
        if (error := row.score(study.role)) is not None:
            best = (error.mean, f"{row.title} (on {study.data_of(row)})")
            lowest[study.split_of(row)] = min(best, lowest.get(study.split_of(row), best))
    words = [f"{error:.2f} %, {title}" for error, title in lowest.values()]
    text = f"the lowest {SPLIT_NAMES[study.role]} error of students: {'; '.join(words)}"
    return Verdict("", text if words else "nothing was measured")


def _facts(study: Study, about: Condition | None, fresh: Difference | None) -> Iterable[tuple[str, str, str]]:
    """The few numbers behind a verdict. fresh: the difference on seeds of its own, instead of the condition's."""
    role, split = study.role, SPLIT_NAMES[study.role]
    if about is None or about.score(role) is None:
        return
    teacher, clean = study.result.teacher_of(about), study.result.clean_of(about)
    compared = [("teacher, ", teacher), ("clean student, ", None if about is study.handed_over else clean)]
    compared = [(name, row) for name, row in compared if row is not about]
    label = "student, " if about is study.handed_over else "noisy student, " if about.kind == "noisy" else ""
    for name, row in (*compared, (label, about)):
        if row is not None and (error := row.score(role)) is not None:
            yield (f"{name}{split} error", f"{error.mean:.2f} %", row.interval_text(role))
    if (gap := fresh or about.against_clean.get(role)) is not None:
        value, bounds = tables.difference_lines(gap)
        pairs = plural(gap.n, "fresh pair" if fresh else "pair")
        yield ("noisy \u2212 clean, points", value, ", ".join(filter(None, (bounds, pairs))))
    if teacher is not None and teacher is not about:
        names = {"macs": "MACs", "parameters": "parameters", "latency_ms": "latency"}
        costs = [(about.cost(key), teacher.cost(key), name) for key, name in names.items()]
        ratios = [f"{cost / reference:.2f}× {name}" for cost, reference, name in costs if cost and reference]
        if ratios:
            yield ("student / teacher", ratios[0], ", ".join(ratios[1:]))


def _parts(study: Study, *, alone: bool) -> Iterable[Section]:
    """What there is to say of one study, in order of interest."""
    result, rows, notes = study.result, study.picks(), list(study.notes)
    notes += [CHOICE_NOTE] if any(verdict.fresh for verdict in study.verdicts) else []
    if study.state != "done" and not study.rows and not study.parts:
        notes.append("No part of this run is done yet.")
    compared: list[Figure | None] = [figures.beside_paper(result.paper), figures.differences(study)]
    results = [tables.beside_paper(study), tables.results(study), tables.failures(study)]
    yield Section("Results", notes, compared, results)
    if alone:
        yield _along([study], [""])
    words = [sentence(text) for text in (result.search or {}).get("summary", ())]
    yield Section("How the student was chosen", words, tables=[tables.searched(study)])
    yield Section("How the noise was chosen", tables=[choice_table(result.choice)])
    distilled = [row for row in rows if row.kind in ("clean", "noisy")]
    noisy = [row for row in rows if row.kind == "noisy"]
    learning = [
        figures.epochs(study, rows, "val/error", "validation error (%)"),
        figures.epochs(study, distilled or rows, "train/loss", "training loss", log=True),
        figures.epochs(study, noisy, "noise/flipped_%", "answers changed by the noise (%)"),
        figures.epochs(study, noisy, "noise/gradient_ratio", "noise in the gradient (ratio)"),
    ]
    yield Section("Learning", figures=learning)
    yield from _answers(study, rows)
    layers = [tables.layers(title, row) for title, row in tables.networks(study)]
    drawn = figures.trade_offs([study]) if alone else []
    yield Section("Costs", [], drawn, [tables.costs(study), *layers])
    handed_over = (result.best, (result.best or {}).get("latency"))
    best = [sentence(record["summary"]) for record in handed_over if record]
    yield Section("What is handed over", best, tables=[tables.exported(study), *tables.latencies(study)])


def _answers(study: Study, rows: Sequence[Condition]) -> Iterable[Section]:
    """Calibration, and confusion of the teacher and of the student that the verdict is about."""
    roles = {role for row in rows for role in study.details.get(row.name, {})}
    if not roles:
        missing = "Calibration and confusion are not shown: the run's results do not have them."
        yield Section("Calibration", [missing] if any(row.scores for row in rows) else [])
        return
    if study.handed_over is not None:
        rows = [study.handed_over if study.is_handed_over(row) else row for row in rows]
    about = [row for verdict in study.verdicts if (row := study.verdict_condition(verdict)) is not None]
    student = about[0] if about else next((row for row in reversed(rows) if row.kind != "teacher"), None)
    pair = [row for row in (study.result.teacher_of(student), student) if row is not None]
    pair = pair[: 1 if len(pair) == 2 and pair[0] is pair[1] else 2]
    role = study.role if study.role in roles else min(roles)
    yield Section("Calibration", figures=[figures.reliability(study, rows, role)])
    matrices = [figures.confusion(study, row, role) for row in pair]
    yield Section("Confusion", [], matrices, [tables.mistakes(study, pair, role), tables.recalls(study, pair, role)])


def _along(studies: Sequence[Study], tags: Sequence[str]) -> Section:
    groups = figures.groups(studies, tags)
    drawn = [
        figures.along(group, axis, role) for axis in ("sigma", "alpha") for role in ("test", "val") for group in groups
    ]
    return Section("Error against sigma and alpha", figures=drawn)
