"""A sweep, and a reproduction of the paper made of sweeps, as studies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from noisyteacher.report.children import Children
from noisyteacher.report.compressed import batch_size, data_of, partial_lines, scores_of
from noisyteacher.report.study import Difference, Estimate, Line, PaperRow, Verdict
from noisyteacher.runs import Run
from noisyteacher.stats import PERCENT, scale_of

SCORES = ("error_%", "nll_nats", "ece_%", "agreement_%")


def read_sweep(run: Run, children: Children, result: Mapping[str, Any] | None) -> dict[str, Any]:
    """The fields of a Study. `result` is None while the run is not done. Raises KeyError and kin for another shape."""
    if result is None:
        lines = partial_lines(children)
        done = next((name for name in children.named if children.named[name].state == "done"), None)
        role = "test" if not lines or any("test_error_%" in line.scores for line in lines) else "val"
        return {
            "data": data_of(children) or "",
            "n": children.counts(done) if done else {},
            "role": role,
            "lines": tuple(lines),
            "teacher": next((line.model for line in lines if line.kind == "teacher"), None),
            "student": next((line.model for line in lines if line.kind != "teacher"), None),
            "classes": children.classes(children.named),
        }
    counts = {str(role): int(n) for role, n in result["n"].items()}
    role = "test" if any(one.get("test_error_%") for one in result["conditions"]) else "val"
    families = {str(one["name"]): one for one in result["families"]}
    teachers = result.get("teachers") or [result["teacher"]]
    costs = result.get("costs") or {}
    students = dict(costs.get("students") or {})
    lines = _teachers(children, result, teachers, costs)
    taught = {str(name): str(one["run"]) for one in teachers for name in one.get("conditions") or ()}
    of_teacher: dict[str, dict[str, Any]] = {line.name: {"data": line.data, "n": line.n} for line in lines}
    lines += [
        replace(
            _line(children, one, families, students, role, taught),
            **of_teacher.get(taught.get(str(one["name"]), ""), {}),
        )
        for one in result["conditions"]
    ]
    named = {line.name: line for line in lines}
    pictured = _pictured(lines, families)
    child = pictured.runs[0] if pictured is not None and pictured.runs else None
    parents = children.info(child).get("parents", {}) if child else {}
    return {
        "data": str(result["data"]),
        "n": counts,
        "role": role,
        "teacher": _only(line.model for line in lines if line.kind == "teacher"),
        "student": _only(line.model for line in lines if line.kind != "teacher"),
        "lines": tuple(lines),
        "verdicts": (
            *(_verdict(one, named, len(families) > 1) for one in families.values() if one.get("verdict")),
            *(
                Verdict("", str(one["sentence"]), named.get(str(one["condition"])))
                for one in result.get("preferred") or ()
            ),
        ),
        "failed": tuple(
            (f"{one['condition']}, seed {one['seed']} ({one['run']})", str(one["error"]))
            for one in result.get("failed", [])
        ),
        "classes": children.classes(children.named),
        "stores": children.stores(),
        "store_digest": parents.get("store"),
        "noise": None if pictured is None else _noise(pictured),
        "noise_seed": pictured.seeds[0] if pictured is not None and pictured.seeds else 0,
        "batch_size": batch_size(children.config(child)) if child else 64,
        "axes": tuple(map(str, result["axes"])),
        "families": {name: (str(one.get("clean")), str(one.get("labels") or "")) for name, one in families.items()},
    }


def read_paper(result: Mapping[str, Any] | None) -> dict[str, Any]:
    """The fields of a Study of a reproduction, without the sweeps inside it."""
    if result is None:
        return {}
    several = len({one.get("part") for one in result["rows"]}) > 1
    rows = [
        PaperRow(
            f"{one['part']}: {one['label']}" if several and one.get("part") else str(one["label"]),
            None if one.get("paper_%") is None else float(one["paper_%"]),
            Estimate.read(one.get("ours"), PERCENT),
        )
        for one in result["rows"]
    ]
    verdicts = [
        Verdict(str(one.get("word", "")), str(one["sentence"])) if isinstance(one, dict) else Verdict("", str(one))
        for one in result.get("verdicts", [])
    ]
    return {"rows": tuple(rows), "verdicts": tuple(verdicts), "notes": tuple(map(str, result.get("notes", [])))}


def _teachers(
    children: Children, result: Mapping[str, Any], records: list[Mapping[str, Any]], costs: Mapping[str, Any]
) -> list[Line]:
    """A line per teacher; those of one network say what tells them apart."""
    spent = costs.get("teachers") or {str(records[0].get("run", "teacher")): costs.get("teacher")}
    lines = [_teacher(children, one, result, spent.get(str(one.get("run", "teacher")))) for one in records]
    models = [line.model for line in lines]
    told = [
        _told_apart(one, result) if models.count(line.model) > 1 else ""
        for line, one in zip(lines, records, strict=True)
    ]
    return [replace(line, title=f"{line.title}{words}") for line, words in zip(lines, told, strict=True)]


def _told_apart(record: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """What the grid says of a teacher and its data, as ` (epochs 3)`; "" where it says nothing."""
    names = record.get("conditions") or ()
    settings: Mapping[str, Any] = next((one["settings"] for one in result["conditions"] if one["name"] in names), {})
    own = {key.split(".")[-1]: value for key, value in settings.items() if key.startswith(("teacher.", "data."))}
    return f" ({', '.join(f'{key} {value}' for key, value in own.items())})" if own else ""


def _teacher(
    children: Children, record: Mapping[str, Any], result: Mapping[str, Any], costs: Mapping[str, Any] | None
) -> Line:
    run = str(record.get("run", "teacher"))
    scores = scores_of(children, [run]) if run in children.named else {}
    for key in ("test_error_%", "val_error_%"):
        if record.get(key) is not None:
            scores[key] = Estimate(float(record[key]), None, None, None, (float(record[key]),))
    spent = (children.result(run).get("training") or {}).get("seconds") if run in children.named else None
    model = (children.model(run) if run in children.named else None) or str(record["name"])
    data, n = record.get("data", result["data"]), record.get("n", result["n"])
    other = (data, n) != (result["data"], result["n"])
    return Line(
        run,
        f"teacher {model}",
        "teacher",
        model=model,
        scores=scores,
        training_s=Estimate.of([spent]),
        costs=costs,
        runs=(run,),
        curves=children.curves([run]),
        details=children.details([run]),
        data=str(data) if other else "",
        n={str(role): int(count) for role, count in n.items()} if other else {},
    )


def _line(
    children: Children,
    one: Mapping[str, Any],
    families: Mapping[str, Mapping[str, Any]],
    students: Mapping[str, Any],
    role: str,
    taught: Mapping[str, str],
) -> Line:
    name, family, names = str(one["name"]), str(one.get("family", "")), [str(run) for run in one["runs"]]
    record = families.get(family, {})
    settings = {**dict(record.get("settings") or {}), **one["settings"]}
    config = children.config(names[0]) if names and names[0] in children.named else {}
    model = config.get("model") or settings.get("student.name")
    options = config.get("options") or {}
    title = ", ".join([str(model), *(f"{key} {value}" for key, value in options.items())])
    spent = one.get("training_s")
    scores = {
        key: estimate
        for split in ("val", "test")
        for score in SCORES
        if (estimate := Estimate.read(one.get(key := f"{split}_{score}"), scale_of(score))) is not None
    }
    return Line(
        name,
        str(one.get("label") or name),
        str(one["kind"]),
        model=None if model is None else str(model),
        family=family,
        settings=settings,
        seeds=tuple(one["seeds"]),
        scores=scores,
        training_s=Estimate.read(spent) if isinstance(spent, dict) else Estimate.of(spent or []),
        costs=students.get(str(one.get("network") or title))
        or (next(iter(students.values())) if len(students) == 1 else None),
        teacher=taught.get(name),
        against_clean=_difference(one.get("against_clean"), role),
        runs=tuple(names),
        curves=children.curves(names),
        details=children.details(names),
        chosen=(record.get("by_validation") or {}).get("condition") == name,
        least_on_test=name in ((least := record.get("by_test") or {}).get("condition"), *least.get("level", ())),
    )


def _difference(record: Mapping[str, Any] | None, role: str) -> Difference | None:
    one = (record or {}).get(f"{role}_error_%")
    if record is None or one is None:
        return None
    return Difference(
        float(one["mean"]), one["low"], one["high"], one.get("p"), one.get("p_holm"), int(one["n"]),
        str(record["reference"]),
    )  # fmt: skip


def _verdict(family: Mapping[str, Any], named: Mapping[str, Line], several: bool) -> Verdict:
    """The family's verdict, about the noise that validation prefers to every other noise."""
    found = family["verdict"]
    members = [line for line in named.values() if line.kind == "noisy" and line.family == str(family["name"])]
    known = [(error.mean, place) for place, line in enumerate(members) if (error := line.error("val")) is not None]
    told = ", ".join(f"{key} = {value}" for key, value in (family.get("settings") or {}).items())
    before = f"{told}: " if several and told else ""
    return Verdict(str(found["word"]), before + str(found["sentence"]), members[min(known)[1]] if known else None)


def _only(names: Iterable[str | None]) -> str | None:
    """The one name there is; None where there are none or several."""
    found = {name for name in names if name}
    return found.pop() if len(found) == 1 else None


def _pictured(lines: list[Line], families: Mapping[str, Mapping[str, Any]]) -> Line | None:
    """The noisy line whose noise is shown: the one chosen by validation, else the first."""
    noisy = [line for line in lines if line.kind == "noisy"]
    return next((line for line in noisy if line.chosen), noisy[0] if noisy else None)


def _noise(line: Line) -> dict[str, Any]:
    return {key.removeprefix("noise."): value for key, value in line.settings.items() if key.startswith("noise.")}
