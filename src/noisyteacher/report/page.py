"""The page: verdicts first, then what they rest on. One file, no script, no network, every name escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from noisyteacher.report import tables
from noisyteacher.report.answers import confusion, reliability, shared_role
from noisyteacher.report.cards import cards_of, overview, subtitle
from noisyteacher.report.costs import networks, trade_offs
from noisyteacher.report.figures import Figure, along, beside_paper, differences, epochs
from noisyteacher.report.handed import files, searched, told
from noisyteacher.report.noising import picture
from noisyteacher.report.series import charts, choice_charts
from noisyteacher.report.study import Line, Study
from noisyteacher.report.tables import Cell, Table
from noisyteacher.text import plural, shown

if TYPE_CHECKING:
    from jinja2 import Template

TEMPLATES = Path(__file__).with_name("templates")
MOST = 6
"""Lines in one figure of epochs or calibration: more cannot be told apart."""


@dataclass
class Section:
    """A part of the page. `level` 2, or 3 for the parts of one run among several."""

    title: str
    anchor: str
    level: int = 2
    texts: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    below: list[Table] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.texts or self.tables or self.figures or self.below)


def page(studies: Sequence[Study]) -> str:
    """The studies as one HTML page, UTF-8 text; equal studies give equal text."""
    whole = [one for study in studies for one in study.with_parts()]
    several = len(whole) > 1
    tags = tagged(whole)
    cards = [card for study, tag in zip(whole, tags, strict=True) for card in cards_of(study, tag if several else "")]
    sections: list[Section] = []
    if several:
        sections.append(Section("Runs", "runs", tables=[overview(whole, tags)]))
        sections.append(_along(whole, "along", tags))
        sections.append(_trade_offs(whole, "cost"))
        for number, (study, tag) in enumerate(zip(whole, tags, strict=True)):
            parts = [replace(one, level=3) for one in _parts(study, f"r{number}", alone=False) if one]
            sections += [Section(f"{tag}: {study.of_models}", f"r{number}", texts=[f"{study.kind} {study.id}"]), *parts]
    else:
        sections += _parts(whole[0], "r0", alone=True)
    known = whole if several else whole[:1]
    title = "Settings that differ" if several else "Settings"
    sections.append(Section(title, "settings", tables=[tables.settings(known, tags)]))
    sections.append(Section("Versions and hosts", "origins", tables=[tables.origins(known, tags)]))
    return _template().render(
        title=heading(studies),
        subtitle=subtitle(studies),
        cards=cards,
        sections=[section for section in sections if section],
        style=_style(),
    )


def heading(studies: Sequence[Study]) -> str:
    """What stands above it all: the models of one run, the name of one with runs in it, or how many runs there are."""
    if len(studies) > 1:
        return plural(len(studies), "run")
    return studies[0].name if studies[0].parts else studies[0].of_models


def tagged(studies: Sequence[Study]) -> list[str]:
    """A short name per study: A, B, ..., Z, 27, 28, ..."""
    return [chr(65 + place) if place < 26 else str(place + 1) for place in range(len(studies))]


def picks(study: Study) -> list[Line]:
    """The lines that a figure of epochs or calibration shows: all of them, or of a sweep those that matter."""
    if len(study.lines) <= MOST:
        return list(study.lines)
    controls = [line for line in study.lines if line.kind != "noisy"]
    noisy = [
        (error.mean, line.name, line) for line in study.lines if line.kind == "noisy" and (error := line.error("val"))
    ]
    return [*controls, *(line for _, _, line in sorted(noisy, key=lambda one: one[:2]))][:MOST]


def _parts(study: Study, name: str, *, alone: bool) -> Iterable[Section]:
    """What there is to say of one study, in order of interest."""
    lines = picks(study)
    found = Section("Results", f"{name}-results", texts=list(study.notes))
    found.figures += [one for one in [beside_paper(f"{name}-paper", study.rows)] if one]
    found.tables += [one for one in [tables.beside_table(study), tables.results(study)] if one]
    if study.state != "done" and not study.lines and not study.parts:
        found.texts.append("No part of this run is done yet.")
    found.figures += [one for one in [differences(f"{name}-differences", study)] if one]
    found.below += [_failed(study)] if study.failed else []
    yield found
    if alone:
        yield _along([study], f"{name}-along")
    student = Section("How the student was chosen", f"{name}-search")
    student.texts += told(study.search)
    student.tables += [one for one in [searched(study.search)] if one]
    yield student
    choice = Section("How the noise was chosen", f"{name}-choice")
    choice.tables += [one for one in [tables.candidates(study)] if one]
    choice.figures += [along(f"{name}-choice{place}", one) for place, one in enumerate(choice_charts(study))]
    yield choice
    learning = Section("Learning", f"{name}-learning")
    taught = [line for line in lines if line.kind in ("clean", "noisy")]
    perturbed = [line for line in lines if line.kind == "noisy"]
    asked = [
        (lines, "val/error", "validation error (%)", False),
        (taught or lines, "train/loss", "training loss", True),
        (perturbed, "noise/flipped_%", "answers changed by the noise (%)", False),
        (perturbed, "noise/gradient_ratio", "noise in the gradient (ratio)", False),
    ]
    made = [epochs(f"{name}-epochs{place}", study, *one) for place, one in enumerate(asked)]
    learning.figures += [one for one in made if one]
    yield learning
    yield from _answers(study, lines, name)
    costs = Section("Costs", f"{name}-costs")
    costs.tables += [one for one in [tables.costs(study)] if one]
    costs.figures += trade_offs(f"{name}-cost", [study]) if alone else []
    costs.below += [one for title, line in networks(study) if (one := tables.layers(title, line))]
    yield costs
    handed = Section("What is handed over", f"{name}-handed", texts=told(study.best))
    handed.tables += [one for one in [files(study.best)] if one]
    yield handed
    if study.of_noise:
        drawn = picture(f"{name}-noise", study)
        noise = Section("The noise", f"{name}-noise-shown")
        if isinstance(drawn, Figure):
            noise.figures.append(drawn)
        else:
            noise.texts.append(drawn)
        yield noise


def _answers(study: Study, lines: Sequence[Line], name: str) -> Iterable[Section]:
    """Calibration, and confusion of the teacher and of the student that the verdict is about."""
    calibration, found = Section("Calibration", f"{name}-calibration"), Section("Confusion", f"{name}-confusion")
    if study.handed_over is not None:
        lines = [study.handed_over if line.handed_over else line for line in lines]
    about = [verdict.line for verdict in study.verdicts if verdict.line is not None]
    student = about[0] if about else next((line for line in reversed(lines) if line.kind != "teacher"), None)
    teacher = study.teacher_of(student)
    role = shared_role({role: one for line in lines for role, one in line.details.items()}, study.role)
    if role is None:
        if any(line.scores for line in lines):
            calibration.texts.append("Calibration and confusion are not shown: the run's results do not have them.")
        yield calibration
        return
    one = reliability(f"{name}-reliability", study, lines, role)
    calibration.figures += [one] if one else []
    yield calibration
    pair = _unique(teacher, student)
    for place, line in enumerate(pair):
        drawn = confusion(f"{name}-matrix{place}", study, line, role)
        found.figures += [drawn] if drawn else []
    table = tables.mistakes(study, pair, role)
    found.below += [table] if table else []
    yield found


def _unique(*lines: Line | None) -> list[Line]:
    found: list[Line] = []
    for line in lines:
        if line is not None and not any(line is one for one in found):
            found.append(line)
    return found


def _along(studies: Sequence[Study], name: str, tags: Sequence[str] = ("",)) -> Section:
    found = Section("Error against sigma and alpha", name)
    for axis in ("sigma", "alpha"):
        for role in ("test", "val"):
            for place, chart in enumerate(charts(studies, axis, role, tags)):
                found.figures.append(along(f"{name}-{axis}-{role}{place}", chart))
    return found


def _trade_offs(studies: Sequence[Study], name: str) -> Section:
    """Error against cost of all runs together, a set of figures per data set and split."""
    return Section("Error against cost", name, figures=trade_offs(name, studies))


def _failed(study: Study) -> Table:
    rows = tuple((Cell(what), Cell(why)) for what, why in study.failed)
    return Table(("part that failed", "why"), rows)


@cache
def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: shown(value) if type(value) is str else value,
    )
    return made.get_template("page.html")


@cache
def _style() -> str:
    """The style sheet without its comments."""
    return re.sub(r"/\*.*?\*/\s*", "", (TEMPLATES / "page.css").read_text(encoding="utf-8"), flags=re.DOTALL)
