"""Which lines make a curve: error along sigma or alpha with everything else held, and the paper's curve beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from noisyteacher import references
from noisyteacher.report.study import Estimate, Line, Study
from noisyteacher.text import flat

PLACES = ("run.output_dir", "data.root", "run.device", "run.threads", "run.tensorboard", "run.profile")
"""Settings that say where, not what: runs that differ in them alone are of one kind."""


@dataclass(frozen=True)
class Series:
    """One curve: the mean error with its interval at every x."""

    label: str
    points: tuple[tuple[float, Estimate, Line], ...]
    """(x, error, line), in order of x."""
    held: Mapping[str, Any]
    """The other settings of the noise."""


@dataclass(frozen=True)
class Chart:
    """Curves that belong into one figure, with what they are compared with."""

    axis: str
    """`sigma` or `alpha`."""
    role: str
    data: str
    n: int | None
    teacher: str | None
    student: str | None
    series: tuple[Series, ...]
    clean: Estimate | None
    labels: Estimate | None
    teacher_error: Estimate | None
    paper: tuple[references.Curve, ...]
    title: str


def charts(studies: Sequence[Study], axis: str, role: str, tags: Sequence[str]) -> list[Chart]:
    """The figures of error along `axis` (`sigma` or `alpha`): a figure per group of lines that differ in noise alone.

    tags: what each study is called in the titles; "" for one alone.
    A group is a family of a sweep, or compressions with equal settings but for the noise. A curve needs two values of
    the axis. The paper's curves are beside those of the same data, networks and held setting.
    """
    found = []
    for name, study, lines in _groups(studies, tags):
        noisy = [line for line in lines if line.kind == "noisy" and line.error(role) is not None]
        series = _series(noisy, axis, role)
        if not series:
            continue
        student = next((line.model for line in noisy if line.model), study.student)
        whose = {line.teacher for line in noisy}
        teachers = [line for line in study.lines if line.kind == "teacher" and (whose == {None} or line.name in whose)]
        teacher = (teachers[0].model if len(teachers) == 1 else None) or study.teacher
        found.append(
            Chart(
                axis,
                role,
                study.data_of(noisy[0]),
                noisy[0].images(role, study.n.get(role)),
                teacher,
                student,
                tuple(series),
                _of(lines, "clean", role),
                _of(lines, "labels", role),
                teachers[0].error(role) if len(teachers) == 1 else None,
                _paper(study, teacher, student, axis, series) if role == "test" else (),
                name,
            )
        )
    return found


def choice_charts(study: Study) -> list[Chart]:
    """The figures of what a compression chose its noise from, by validation error along sigma or alpha."""
    found = []
    for axis in ("sigma", "alpha"):
        without = [line for line in study.candidates if scalar(line.settings, "sigma") == 0]
        series = _series([line for line in study.candidates if line not in without], axis, "val")
        if series:
            found.append(
                Chart(
                    axis, "val", study.data, study.n.get("val"), study.teacher, study.student, tuple(series),
                    without[0].error("val") if without else None, None, None, (), "choice of the noise",
                )
            )  # fmt: skip
    return found


def scalar(settings: Mapping[str, Any], axis: str) -> float | None:
    """The value of `noise.AXIS` when it is one number; None for a range."""
    value = settings.get(f"noise.{axis}")
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _series(lines: Sequence[Line], axis: str, role: str) -> list[Series]:
    groups: dict[str, list[tuple[float, Estimate, Line]]] = {}
    held: dict[str, dict[str, Any]] = {}
    for line in lines:
        x, error = scalar(line.settings, axis), line.error(role)
        if x is None or error is None:
            continue
        others = {key: value for key, value in line.settings.items() if key != f"noise.{axis}"}
        key = json.dumps(others, sort_keys=True, default=str)
        groups.setdefault(key, []).append((x, error, line))
        held[key] = others
    kept = {key: points for key, points in groups.items() if len({x for x, _, _ in points}) > 1}
    varying = {
        name
        for name in {name for key in kept for name in held[key]}
        if len({json.dumps(held[key].get(name), default=str) for key in kept}) > 1
    }
    return [
        Series(
            ", ".join(f"{name.removeprefix('noise.')} {_value(held[key].get(name))}" for name in sorted(varying)),
            tuple(sorted(points, key=lambda point: point[0])),
            held[key],
        )
        for key, points in kept.items()
    ]


def _words(study: Study, family: str) -> str:
    """What a sweep's family has in common, as its clean student's settings; its name where that has none."""
    name = study.families.get(family, ("", ""))[0]
    settings = next((line.settings for line in study.lines if line.name == name), {})
    told = [f"{key.rpartition('.')[2]} {_value(value)}" for key, value in settings.items() if key[:6] != "noise."]
    return ", ".join(told) or family


def _groups(studies: Sequence[Study], tags: Sequence[str]) -> list[tuple[str, Study, list[Line]]]:
    """(title, a study they are of, lines) of every set of lines that may differ in noise alone."""
    found: list[tuple[str, Study, list[Line]]] = []
    compressions: dict[str, tuple[Study, list[Line], list[str]]] = {}
    for study, tag in zip(studies, tags, strict=True):
        if study.kind != "compress":
            families = list(dict.fromkeys(line.family for line in study.lines if line.family))
            for family in families or [""]:
                own = study.families.get(family, ("", ""))
                lines = [line for line in study.lines if line.family == family or line.name in own]
                words = [f"run {tag}"] if tag else []
                words += [_words(study, family)] if len(families) > 1 else []
                found.append((", ".join(words), study, lines))
            continue
        same = {key: value for key, value in flat(study.config).items() if key not in PLACES and key[:6] != "noise."}
        key = json.dumps([study.data, study.n.get(study.role), same], sort_keys=True, default=str)
        _, lines, names = compressions.setdefault(key, (study, [], []))
        names += [tag] if tag else []
        known = [(line.kind, line.settings) for line in lines]
        lines += [line for line in study.lines if (line.kind, line.settings) not in known]
    for study, lines, names in compressions.values():
        found.append((f"run{'s' if len(names) > 1 else ''} {', '.join(names)}" if names else "", study, lines))
    return found


def _of(lines: Sequence[Line], kind: str, role: str) -> Estimate | None:
    return next((line.error(role) for line in lines if line.kind == kind), None)


def _paper(
    study: Study, teacher: str | None, student: str | None, axis: str, series: Sequence[Series]
) -> tuple[references.Curve, ...]:
    """The paper's curves of the same data, networks and held setting; each once."""
    found: dict[str, references.Curve] = {}
    for one in series:
        plain = {"noise.kind": "multiplicative", "noise.distribution": "gaussian", "noise.frozen": False}
        if any(one.held.get(key, value) != value for key, value in plain.items()):
            continue
        for curve in references.matching_curves(
            data=study.data_of(one.points[0][2]),
            teacher=str(teacher),
            student=str(student),
            axis=axis,
            sigma=scalar(one.held, "sigma"),
            alpha=scalar(one.held, "alpha"),
            target=str(one.held.get("noise.target", "teacher")),
        ):
            found[curve.id] = curve
    return tuple(found.values())


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "..".join(map(_value, value))
    return f"{value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)
