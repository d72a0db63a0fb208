"""A compression as a study: from its result.json, or, unfinished, from the parts that are done."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from noisyteacher.pipeline import Result, compression_verdict
from noisyteacher.report.children import Children
from noisyteacher.report.study import HANDED_OVER, Difference, Estimate, Line, Verdict
from noisyteacher.runs import Run
from noisyteacher.stats import PERCENT, paired_difference, scale_of
from noisyteacher.text import flat, sentence

SCORES = {"error": "error_%", "nll": "nll_nats", "ece": "ece_%", "agreement": "agreement_%"}
_CELL = re.compile(r"(.+)-seed(\d+)")


def read_compression(run: Run, children: Children, result: Mapping[str, Any] | None) -> dict[str, Any]:
    """The fields of a Study. `result` is None while the run is not done. Raises KeyError and kin for another shape."""
    noise = settled_noise(run.config.get("noise")) if result is None else result["noise"]
    handed: Line | None = None
    notes: tuple[str, ...] = ()
    if result is None:
        lines, names = partial_lines(children), [name for name in children.named if name != "teacher"]
        role, counts = _role(children, lines), {}
        for name in children.named:
            counts = children.counts(name) if children.named[name].state == "done" else {}
            if counts:
                break
        data = data_of(children) or str(_table(run.config, "data").get("name", ""))
        verdicts: tuple[Verdict, ...] = ()
    else:
        role, data = str(result["role"]), str(result["data"])
        lines = [_line(children, row, role, noise) for row in result["rows"]]
        names = [name for line in lines if line.kind != "teacher" for name in line.runs]
        counts = children.counts(names[0]) if names else {}
        counts[role] = int(result["n"])
        lines = [_against(line, lines, role) for line in lines]
        silent = result["noise"] is None and result.get("choice") is None  # older results say so in a sentence
        verdicts = () if silent else (_verdict(str(result["verdict"]), lines),)
        outcome = Result.read(run.path, result)
        lines, handed = _handed_over(children, outcome, result, lines, noise)
        notes = tuple(sentence(f"warning: {one}") for one in outcome.warnings)
        if handed is not None:
            verdicts = (Verdict(HANDED_OVER, compression_verdict(outcome), handed), *verdicts)
    picture = next((name for name in names if name.startswith("noisy")), None)
    parents = children.info(picture).get("parents", {}) if picture else {}
    return {
        "data": data,
        "n": counts,
        "role": role,
        "teacher": next((line.model for line in lines if line.kind == "teacher" and line.model), None),
        "student": next((line.model for line in lines if line.kind != "teacher" and line.model), None),
        "lines": tuple(lines),
        "verdicts": verdicts,
        "classes": children.classes(children.named),
        "stores": children.stores(),
        "store_digest": parents.get("store"),
        "noise": noise if has_noise(noise) else None,
        "batch_size": batch_size(children.config(picture)) if picture else 64,
        "candidates": candidates_of((result or {}).get("choice")),
        "choice": (result or {}).get("choice"),
        "search": (result or {}).get("search"),
        "best": (result or {}).get("best"),
        "handed_over": handed,
        "notes": notes,
    }


def settled_noise(noise: object) -> dict[str, Any] | None:
    """The noise's settings where they are numbers; None without noise, and where it is not chosen yet (`auto`)."""
    if not isinstance(noise, dict) or "auto" in (noise.get("sigma"), noise.get("alpha")):
        return None
    return dict(noise) or None


def has_noise(noise: Mapping[str, Any] | None) -> bool:
    """Whether these settings change anything."""
    if not noise:
        return False
    return noise.get("sigma") not in (0, 0.0, [0, 0]) and noise.get("alpha") not in (0, 0.0)


def noise_settings(noise: Mapping[str, Any] | None) -> dict[str, Any]:
    """The noise's settings with dotted names. `{"sigma": 0.5}` becomes `{"noise.sigma": 0.5}`."""
    return {f"noise.{key}": value for key, value in (noise or {}).items()}


def batch_size(config: Mapping[str, Any]) -> int:
    """The students' batch size, from a child's config."""
    found = _table(config, "recipe").get("batch_size")
    return found if isinstance(found, int) and found > 0 else 64


def scores_of(children: Children, names: list[str]) -> dict[str, Estimate]:
    """Every score of these runs as an estimate over them: `test_error_%`, `val_nll_nats`, ..."""
    found = {}
    for key, called in SCORES.items():
        for role, values in children.scores(names, key).items():
            estimate = Estimate.of(values, scale_of(called))
            if estimate is not None:
                found[f"{role}_{called}"] = estimate
    return found


def partial_lines(children: Children) -> list[Line]:
    """Lines of the parts that are done, for a run that is not: children called NAME-seed0, NAME-seed1, ..."""
    groups: dict[str, list[str]] = {}
    for name, child in children.named.items():
        matched = _CELL.fullmatch(name)
        trial = name.startswith("choice-")  # of a choice of the noise, shorter than the runs it is for
        if child.state == "done" and (matched or name.startswith("teacher")) and not trial:
            groups.setdefault(matched[1] if matched else name, []).append(name)
    done = next((name for name, child in children.named.items() if child.state == "done"), None)
    whole = (data_of(children) or "", children.counts(done) if done else {})
    lines = [_partial(children, name, names, whole) for name, names in sorted(groups.items())]
    taught = [line for line in lines if line.kind != "teacher"]
    words = dict(zip((line.name for line in taught), _families(children, taught), strict=True))
    lines = [replace(line, family=words.get(line.name, "")) for line in lines]
    return sorted(lines, key=lambda line: ("teacher", "labels", "clean", "noisy").index(line.kind))


def _partial(children: Children, name: str, names: list[str], whole: tuple[str, Mapping[str, int]]) -> Line:
    """The line of these runs; `whole`: name and images by role of the study's data, told where a line's are others."""
    spent = [(children.result(one).get("training") or {}).get("seconds") for one in names]
    config = children.config(names[0])
    noise = _table(_table(config, "objective"), "noise")
    kind = _kind(name, config, noise)
    data, counts = str(_table(config, "data").get("name") or ""), children.counts(names[0])
    return Line(
        name,
        name,
        kind,
        model=children.model(names[0]),
        settings=noise_settings(noise) if kind == "noisy" else {},
        data=data if data != whole[0] else "",
        n=counts if counts != whole[1] else {},
        seeds=_seeds(children, names),
        scores=scores_of(children, names),
        training_s=Estimate.of(spent),
        runs=tuple(names),
        curves=children.curves(names),
        details=children.details(names),
    )


def _families(children: Children, lines: list[Line]) -> list[str]:
    """For each line the settings, beside its noise, in which it differs from others, in words."""
    configs = [flat(children.config(line.runs[0])) for line in lines]
    other = ("seed", "objective.objective", "objective.noise", "data.val", "data.test", "data.classes")
    keys = sorted({key for config in configs for key in config if not key.startswith(other)})
    varying = [key for key in keys if len({repr(config[key]) for config in configs if key in config}) > 1]
    return [
        ", ".join(f"{key.rpartition('.')[2]} {str(config[key])[:16]}" for key in varying if key in config)
        for config in configs
    ]


def _kind(name: str, config: Mapping[str, Any], noise: Mapping[str, Any]) -> str:
    """What a child run was for, as its config tells: a teacher has no objective."""
    taught = _table(config, "objective").get("objective")
    if taught is None and name.startswith("teacher"):
        return "teacher"
    if taught == "supervised":
        return "labels"
    return "noisy" if has_noise(noise) else "clean"


def _line(children: Children, row: Mapping[str, Any], role: str, noise: Mapping[str, Any] | None) -> Line:
    names = [str(name) for name in row["runs"]]
    kind = str(row["name"])
    scores = scores_of(children, names)
    for key, values in (("error_%", row.get("error_%", {}).get("per_seed", [])), ("agreement_%", row["agreement_%"])):
        estimate = Estimate.of(values, scale_of(key))
        if estimate is not None:
            scores[f"{role}_{key}"] = estimate
    return Line(
        kind,
        str(row["title"]),
        kind,
        model=children.model(names[0]) if names else None,
        settings=noise_settings(noise) if kind == "noisy" else {},
        seeds=_seeds(children, names),
        scores=scores,
        training_s=Estimate.of(row["training_s"]),
        costs=row["costs"],
        runs=tuple(names),
        curves=children.curves(names),
        details=children.details(names),
    )


def _against(line: Line, lines: list[Line], role: str) -> Line:
    """The line with its difference to clean logit regression, paired by seed."""
    clean = next((one.error(role) for one in lines if one.kind == "clean"), None)
    own = line.error(role)
    if line.kind in ("teacher", "clean") or clean is None or own is None or own.n != clean.n:
        return line
    found = paired_difference(clean.per_seed, own.per_seed, scale=PERCENT)
    return Line(**{**vars(line), "against_clean": Difference.of(found, "clean")})


def _handed_over(
    children: Children, outcome: Result, result: Mapping[str, Any], lines: list[Line], noise: Mapping[str, Any] | None
) -> tuple[list[Line], Line | None]:
    """The lines with that of the student that is handed over marked, and a line of that one run alone.

    None in the place of the latter where the result names no such student.
    """
    if outcome.best is None:
        return lines, None
    row, seed = outcome.handed_over
    number = outcome.rows.index(row)
    record = result["rows"][number]
    alone = {**record, "runs": [row.runs[seed]], "training_s": list(row.seconds[seed : seed + 1])}
    alone["agreement_%"] = list(row.agreement[seed : seed + 1])
    alone |= {"error_%": {"per_seed": [row.errors[seed]]}} if "error_%" in record else {}
    line = _line(children, alone, outcome.role, noise)
    several = len(row.errors) > 1
    title = f"{row.title}, seed {seed}" if several else row.title
    error = f", {row.errors[seed]:.2f} %" if several else ""
    marked = [
        replace(one, handed_over=f"handed over{f': seed {seed}{error}' if several else ''}") if place == number else one
        for place, one in enumerate(lines)
    ]
    return marked, replace(line, title=title)


def _verdict(words: str, lines: list[Line]) -> Verdict:
    noisy = next((line for line in lines if line.kind == "noisy"), None)
    if noisy is None or noisy.against_clean is None:
        return Verdict("", words, noisy or next((line for line in lines if line.kind == "clean"), None))
    return Verdict(noisy.against_clean.word, words, noisy)


def candidates_of(choice: Mapping[str, Any] | None) -> tuple[Line, ...]:
    """What a run chose its noise from, with the validation errors it chose by."""
    found = []
    for one in (choice or {}).get("candidates", []):
        estimate = Estimate.of(one["val_error_%"], PERCENT)
        chosen = (choice or {})["chosen"]
        if estimate is not None:
            found.append(
                Line(
                    f"sigma {one['sigma']}, alpha {one['alpha']}",
                    f"sigma {one['sigma']}, alpha {one['alpha']}",
                    "noisy",
                    settings={"noise.sigma": one["sigma"], "noise.alpha": one["alpha"]},
                    seeds=tuple((choice or {}).get("seeds", ())),
                    scores={"val_error_%": estimate},
                    runs=tuple(map(str, one.get("runs", ()))),
                    chosen=(one["sigma"], one["alpha"]) == (chosen["sigma"], chosen["alpha"]),
                )
            )
    return tuple(found)


def _seeds(children: Children, names: list[str]) -> tuple[int, ...]:
    return tuple(seed for name in names if isinstance(seed := children.info(name).get("seed"), int))


def _role(children: Children, lines: list[Line]) -> str:
    return "test" if any("test_error_%" in line.scores for line in lines) or not lines else "val"


def data_of(children: Children) -> str | None:
    """The name of the data that the parts of a run were trained on; None where none says it."""
    for name in children.named:
        found = _table(children.config(name), "data").get("name")
        if found:
            return str(found)
    return None


def _table(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = record.get(key)
    return found if isinstance(found, dict) else {}
