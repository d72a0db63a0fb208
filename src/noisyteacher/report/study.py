"""What a report shows of one run folder, and how it words that."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from noisyteacher.pipeline.compression_result import HANDED_OVER
from noisyteacher.pipeline.results import Condition, RunResult, Verdict
from noisyteacher.runs import Run
from noisyteacher.text import plural, sentence

MAX_CURVES = 6
"""Conditions in one figure of epochs or calibration: more cannot be distinguished."""
Curve = dict[str, dict[float, float]]
"""The epochs of a training: metric -> epoch -> value, without what is missing or not a number."""


@dataclass(frozen=True)
class Details:
    """Confusion and reliability of a condition on one split, counts summed over its seeds."""

    confusion: NDArray[np.int64] | None
    """[K, K]: rows are labels, columns chosen classes."""
    bins: NDArray[np.float64]
    """[B, 3], of every bin that is not empty: rows, mean confidence (%), accuracy (%); [0, 3] without labels."""
    seeds: int
    classes: tuple[str, ...]
    """Names of the classes of the confusion; their numbers where the runs have none."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """One run folder as a report shows it."""

    run: Run
    state: str
    result: RunResult
    verdicts: tuple[Verdict, ...] = ()
    notes: tuple[str, ...] = ()
    """What is missing or unusual, in sentences."""
    curves: Mapping[str, tuple[Curve, ...]]
    """By condition: one per seed."""
    details: Mapping[str, Mapping[str, Details]]
    """By condition, then by role."""
    handed_over: Condition | None = None
    """Of a compression: the student that is handed over, with its one seed; not among the result's conditions."""
    parts: tuple[Study, ...] = ()
    """The sweeps of a reproduction."""

    @property
    def kind(self) -> str:
        """`compress`, `sweep`, `paper`, or the kind of a training on its own: `train`, `distil`, `given`."""
        return str(self.run.info["kind"])

    @property
    def command(self) -> str:
        """The command that started the run; "" where none is recorded."""
        command = self.run.info["command"]
        return " ".join(map(str, command)) if isinstance(command, list) else str(command or "")

    @property
    def rows(self) -> tuple[Condition, ...]:
        """Teachers, then students."""
        return self.result.rows

    @property
    def role(self) -> str:
        """The split that is reported on."""
        return self.result.role

    @property
    def over_noise(self) -> bool:
        """Whether noise is in question: used, put on a grid, chosen from candidates, or still to be chosen."""
        result, noise = self.result, self.run.config.get("noise")
        return bool(
            result.choice
            or any(row.kind == "noisy" for row in result.rows)
            or "auto" in (noise.values() if isinstance(noise, dict) else (noise,))
            or any(axis.startswith("noise.") for axis in result.axes)
        )

    @property
    def reference(self) -> str:
        """What the student without noise is called: `clean`, or `distilled` where no student has noise."""
        return "clean" if self.over_noise else "distilled"

    @property
    def models(self) -> str:
        """Which models on which data: `"mlp800 from lenet, mnist-5k"`."""
        networks = filter(None, (network(self.result.conditions), network(self.result.teachers)))
        data = dict.fromkeys(map(self.data_of, self.rows)) if self.rows else (self.result.data,)
        return ", ".join([" from ".join(networks) or str(self.run.info["name"]), *filter(None, data)])

    def with_parts(self) -> list[Study]:
        """This study and those inside it, in order."""
        return [self, *(inner for part in self.parts for inner in part.with_parts())]

    def picks(self) -> list[Condition]:
        """The conditions that a figure of epochs or calibration shows: all, or teacher and labels, then students.

        Students are ranked by validation error; what was chosen among noises is always there.
        """
        if len(self.rows) <= MAX_CURVES:
            return list(self.rows)
        errors = {row.name: error.mean for row in self.rows if (error := row.error_on("val"))}
        students = [row for row in self.rows if row.kind in ("clean", "noisy") and row.name in errors]
        students.sort(key=lambda row: errors[row.name])
        chosen = [row.name for row in students if self.over_noise and self.is_chosen(row)]
        controls = [row for row in self.rows if row.kind in ("teacher", "labels")]
        controls = controls[: max(0, min(MAX_CURVES // 2, MAX_CURVES - len(chosen)))]
        names = [*chosen, *(row.name for row in students if row.name not in chosen)][: MAX_CURVES - len(controls)]
        return [*controls, *(row for row in students if row.name in names)]

    def data_of(self, condition: Condition) -> str:
        """The name of a condition's data."""
        return condition.data or self.result.data

    def split_of(self, condition: Condition) -> tuple[str, int | None]:
        """(data, images) of the split that a condition's errors are of: only conditions of one split are compared."""
        return self.data_of(condition), condition.n.get(self.role)

    def is_chosen(self, condition: Condition) -> bool:
        """Whether validation prefers it in its family."""
        return any(family.by_validation[:1] == (condition.name,) for family in self.result.families)

    def is_handed_over(self, condition: Condition) -> bool:
        """Whether the student that is handed over is one of its seeds."""
        return self.handed_over is not None and self.handed_over.runs[0] in condition.runs

    def marks(self, condition: Condition) -> str:
        """What distinguishes a condition: handed over, chosen by validation, lowest test error."""
        marks = ["chosen by validation"] if self.is_chosen(condition) else []
        if any(condition.name in family.by_test for family in self.result.families):
            marks.append("lowest test error")
        if self.handed_over is not None and self.is_handed_over(condition):
            errors = self.handed_over.errors if len(condition.errors) > 1 else ()
            seed = f": seed {self.handed_over.seeds[0]}, {errors[0]:.2f} %" if errors else ""
            marks.insert(0, HANDED_OVER + seed)
        return ", ".join(marks)

    def verdict_condition(self, verdict: Verdict) -> Condition | None:
        """The condition that a verdict is about."""
        return self.handed_over if verdict.word == HANDED_OVER else self.result.condition(verdict.condition)

    def images(self, role: str, conditions: Iterable[Condition]) -> str:
        """How many images of one split the conditions are scored on, by data set where they differ; "" if unknown.

        `"n = 400 images"`, `"n = 150 (tiny), 60 (easy) images"`.
        """
        pairs = dict.fromkeys((self.data_of(row), row.n[role]) for row in conditions if row.n.get(role))
        if not pairs:
            return ""
        several = len({n for _, n in pairs}) > 1
        sizes = [f"{n:,} ({data})" if several else f"{n:,}" for data, n in pairs]
        return f"n = {', '.join(sizes if several else sizes[:1])} images"


def verdict_text(verdict: Verdict) -> str:
    """The verdict with its capital and full stop; a name or a setting at its beginning keeps its case."""
    text = verdict.sentence.rstrip(".")
    return sentence(text) if re.match("[a-z]+ ", text) else f"{text}."


def heading(studies: Sequence[Study]) -> str:
    """The title of a report: the models of one run, the name of one with runs in it, or how many runs there are."""
    if len(studies) > 1:
        return plural(len(studies), "run")
    return str(studies[0].run.info["name"]) if studies[0].parts else studies[0].models


def tagged(studies: Sequence[Study]) -> list[str]:
    """A short name per study: A, B, ..., Z, 27, 28, ..."""
    return [chr(65 + number) if number < 26 else str(number + 1) for number in range(len(studies))]


def latency_conditions(row: Condition) -> str:
    """How the latency was measured; "" where it was not."""
    latency = row.costs.latency_ms if row.costs is not None else None
    if latency is None:
        return ""
    threads = plural(latency.threads, "thread")
    return f"median of {latency.runs} forward passes, batch {latency.batch}, {threads}, {latency.device}"


def network(conditions: Iterable[Condition]) -> str | None:
    """The network of all these conditions; None where there are several or none is named."""
    names = {condition.model for condition in conditions if condition.model}
    return names.pop() if len(names) == 1 else None
