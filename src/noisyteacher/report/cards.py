"""The first screen: verdicts as cards with the few numbers behind each, and a row per run where there are several."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from noisyteacher.report import tables
from noisyteacher.report.costs import cost
from noisyteacher.report.figures import ROLES
from noisyteacher.report.study import HANDED_OVER, Line, Study, Verdict
from noisyteacher.report.tables import Cell, Table
from noisyteacher.stats import LEVEL

WORDS = {
    "helps": "The noise helped",
    "hurts": "The noise hurt",
    "no evidence": "No evidence either way",
    "unfinished": "Not finished",
    "failed": "Failed",
}


@dataclass(frozen=True)
class Fact:
    """A number on a verdict's card."""

    name: str
    value: str
    under: str = ""


@dataclass(frozen=True)
class Card:
    """A verdict as the first screen shows it."""

    word: str
    heading: str
    title: str
    sentence: str
    facts: tuple[Fact, ...] = ()


def cards_of(study: Study, tag: str) -> list[Card]:
    """A card per verdict; `tag` is what the run is called among several, "" for one alone."""
    title = f"{tag}: {study.of_models}" if tag else ""
    verdicts = study.verdicts or (() if study.parts else (_without_verdict(study),))
    cards = []
    for verdict in verdicts:
        heading = _handed_over(verdict) or WORDS.get(
            verdict.word, verdict.word or ("" if verdict.line is None else "Measured")
        )
        if verdict.word == "no evidence":
            heading = _others(study, verdict.line) or heading
        cards.append(Card(verdict.word, heading, title, verdict.whole, tuple(_facts(study, verdict.line))))
    return cards


def _handed_over(verdict: Verdict) -> str:
    """The heading of the card of the student that is handed over; "" for other cards."""
    return f"Handed over: {verdict.line.title}" if verdict.word == HANDED_OVER and verdict.line is not None else ""


def _without_verdict(study: Study) -> Verdict:
    """What is said of a run that claims nothing: its lowest error."""
    students = [line for line in study.lines if line.kind != "teacher"]
    least: dict[tuple[str, int | None], tuple[float, str]] = {}
    for line in students:
        if (error := line.error(study.role)) is not None:
            split = study.split_of(line)
            least[split] = min(least.get(split, (error.mean, line.title)), (error.mean, line.title))
    if not least:
        return Verdict("", "nothing was measured")
    told = [
        f"{error:.2f} %, {title}" + (f" (on {data})" if len(least) > 1 else "")
        for (data, _), (error, title) in least.items()
    ]
    return Verdict("", f"the lowest {ROLES[study.role]} error of students: {'; '.join(told)}")


def _others(study: Study, line: Line | None) -> str:
    """The heading where the noise that was chosen shows nothing, but others of its family do; else ""."""
    noisy = [one for one in study.lines if line is not None and one.family == line.family and one.kind == "noisy"]
    gaps = [one.against_clean for one in noisy if one.against_clean is not None]
    sure = [gap for gap in gaps if gap.p_holm is not None and gap.p_holm < LEVEL]
    if any(gap.mean < 0 for gap in sure):
        return "No evidence for the chosen noise, while others differ"
    return "No evidence that noise helps, while some hurts" if sure else ""


def _facts(study: Study, line: Line | None) -> Iterable[Fact]:
    """The few numbers behind a verdict."""
    role = study.role
    if line is None or (error := line.error(role)) is None:
        return
    teacher, clean = study.teacher_of(line), study.clean_of(line)
    beside = [("teacher", teacher), ("clean student", clean), ("noisy student", line)]
    if line is study.handed_over:
        beside = [("teacher", teacher), ("student", line)]
    named = line is study.handed_over or line.kind == "noisy"
    for name, one in beside:
        found = one.error(role) if one is not None else None
        if one is not None and found is not None and (one is not line or named):
            under = tables.interval(one, role, study.n.get(role))
            yield Fact(f"{name}, {ROLES[role]} error", f"{found.mean:.2f} %", under)
    if not named:
        yield Fact(f"{ROLES[role]} error", f"{error.mean:.2f} %", tables.interval(line, role, study.n.get(role)))
    if line.against_clean is not None:
        gap = line.against_clean
        value, _, bounds = tables.difference_text(gap).partition(" ")
        pairs = f"{gap.n} pair{'s' if gap.n > 1 else ''}"
        yield Fact("noisy \u2212 clean, points", value, f"{bounds}, {pairs}" if bounds else pairs)
    if teacher is not None and teacher is not line:
        ratios = []
        for key, name in (("macs", "MACs"), ("parameters", "parameters"), ("latency_ms", "latency")):
            own, reference = cost(line.costs, key), cost(teacher.costs, key)
            if own is not None and reference:
                ratios.append(f"{own / reference:.2f}× {name}")
        if ratios:
            yield Fact("student / teacher", ratios[0], ", ".join(ratios[1:]))


def overview(studies: Sequence[Study], tags: Sequence[str]) -> Table:
    """A row per run of several: what it is and what came of it."""
    rows = []
    for study, tag in zip(studies, tags, strict=True):
        line = next((one.line for one in study.verdicts if one.line is not None), None)
        cells = []
        clean = next((one for one in study.lines if one.kind == "clean"), None)
        for found in (study.teacher_of(line), clean if line is None else study.clean_of(line)):
            error = found.error(study.role) if found is not None else None
            cells.append(Cell(f"{error.mean:.2f}" if error else tables.NOTHING, number=True))
        error = line.error(study.role) if line is not None else None
        cells.append(Cell(f"{error.mean:.2f}" if error else tables.NOTHING, number=True))
        word = study.verdicts[0].word if study.verdicts else ""
        models = Cell(study.of_models, study.id)
        rows.append((Cell(tag), models, Cell(study.kind), Cell(word or study.state), *cells))
    reference = "clean" if any(study.of_noise for study in studies) else "distilled"
    heads = ("", "models, data", "kind", "outcome", "teacher error %", f"{reference} error %", "this error %")
    return Table(heads, tuple(rows), "This error: of the line that the outcome is about.")


def subtitle(studies: Sequence[Study]) -> str:
    """The line below the heading: kind, seeds, time and id of one run, or how many runs are in which state."""
    if len(studies) == 1:
        study = studies[0]
        seeds = max((len(line.seeds) for line in study.lines), default=0)
        parts = [
            study.kind,
            f"{seeds} seed{'s' if seeds > 1 else ''}" if seeds else "",
            tables.moment(study.started)[:16],
        ]
        return " · ".join([part for part in parts if part] + [study.id])
    states = [study.state for study in studies]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
