"""Run an experiment of the paper as sweeps, and set what came out beside the paper's numbers."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from noisyteacher.config import build_config, completed, describe, put
from noisyteacher.errors import AskedWronglyError
from noisyteacher.evaluate import predict
from noisyteacher.locks import at_work
from noisyteacher.paper.experiments import SAME, Budget, Experiment, Part, budget_of, experiment
from noisyteacher.pipeline import Watch, load_config_data, load_teacher, names_a_file, settled, train_config
from noisyteacher.references import Curve, curve, values
from noisyteacher.runs import Run, list_runs, new_run, plain
from noisyteacher.sweep import SweepResult, spread, sweep
from noisyteacher.text import unknown_name

SECTION54 = {
    "drawn-sigma": "section5.4-sigma-range",
    "teacher2": "section5.4-from-teacher2",
    "two-teachers": "section5.4-from-both",
}
SECTION54_KIND = {"drawn-sigma": "noisy", "teacher2": "clean", "two-teachers": "clean"}
"""The numbers of section 5.4 (references.json) by part, and the kind of condition each stands beside."""


@dataclass(frozen=True)
class PaperResult:
    """An experiment's sweeps, and its rows with the paper's number and ours side by side."""

    path: Path
    record: Mapping[str, Any]
    sweeps: tuple[SweepResult, ...]

    @property
    def failed(self) -> list[dict[str, Any]]:
        """The cells that failed, of all sweeps."""
        return [one for result in self.sweeps for one in result.failed]

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Headers and rows as text: a line per number."""
        headers = ("condition", "paper %", "ours % (test)", "seeds", "ours - clean", "p (Holm)")
        rows: list[tuple[str, ...]] = []
        for one in self.record["rows"]:
            d = one["against_clean"]
            shown = "" if d is None else f"{d['mean']:+.2f}"
            if d is not None and d["low"] is not None:
                shown += f" [{d['low']:+.2f}, {d['high']:+.2f}]"
            p = "" if d is None or d["p_holm"] is None else f"{d['p_holm']:.2g}"
            paper = "" if one["paper_%"] is None else f"{one['paper_%']:.2f}"
            seeds = "" if one["ours"] is None else str(one["ours"]["n"])
            rows.append((one["label"], paper, spread(one["ours"]), seeds, shown, p))
        return headers, rows


def run_paper(
    name: str,
    budget: str = "standard",
    *,
    data_root: str | None = None,
    verify: bool = True,
    extra: bool = True,
    teacher: str | None = None,
    parts: Sequence[str] = (),
    sigmas: Sequence[float] = (),
    seeds: int | None = None,
    jobs: int = 1,
    stack: int = 1,
    scheduler: str | None = None,
    output_dir: str | os.PathLike[str] = "runs",
    device: str = "auto",
    overrides: Mapping[str, Any] | None = None,
    command: str | None = None,
    begun: Callable[[Run], None] | None = None,
    watch: Watch | None = None,
) -> PaperResult:
    """Run `table1` ... `table6`, `fig2`, `fig3` or `section5.4` and keep it in a run folder of kind `paper`.

    budget: `quick`, `standard` or `full`. teacher: a trained one (run folder or weights file) for the experiments'
    first teacher; otherwise it is trained once and kept for the other experiments in the same `output_dir`. The same
    question asked again goes on with the run folder it left there, or reads it. parts: only these of the experiment
    (`student3` of table6); sigmas, seeds: instead of the budget's. overrides: dotted settings for every
    sweep. jobs, stack, scheduler: as in `sweep`. Raises UnknownNameError and whatever `sweep` raises.
    """
    asked, size = experiment(SAME.get(name, name)), _budget(budget, sigmas, seeds)
    chosen = [
        _with(part, data_root, verify, extra, teacher, device, overrides)
        for part in _chosen(asked.parts(size), parts, asked.name)
    ]
    settings = plain(
        {
            "experiment": asked.name,
            "budget": size.name,
            "seeds": size.seeds,
            "parts": {one.name: {"base": one.base, "grids": one.grids} for one in chosen},
        },
        "config",
    )
    run = _same(output_dir, "paper", settings) or new_run(
        output_dir, "paper", f"{asked.name}-{size.name}", settings, command=command
    )
    if begun is not None:
        begun(run)
    with at_work(run.path):
        found = []
        for part in chosen:
            tell = None if watch is None else _titled(watch, part.name)
            base = _taught(part.base, output_dir, tell)
            grids = [_scaled(grid, base) for grid in part.grids] if part.scaled else part.grids
            found.append(
                sweep(
                    base,
                    grids,
                    seeds=size.seeds,
                    jobs=jobs,
                    stack=stack,
                    scheduler=scheduler,
                    name=part.name,
                    parent=run,
                    watch=tell,
                )
            )
        record = _record(asked, size, chosen, found)
        run.write_result(record)
    return PaperResult(run.path, plain(record, "result"), tuple(found))


def _budget(name: str, sigmas: Sequence[float], seeds: int | None) -> Budget:
    """The budget with what is named instead of its own."""
    named: dict[str, Any] = {"sigmas": tuple(sigmas)} if sigmas else {}
    if seeds is not None:
        if seeds < 1:
            raise AskedWronglyError(f"seeds={seeds}: expected 1 or more")
        named["seeds"] = seeds
    return replace(budget_of(name), **named)


def _chosen(parts: list[Part], names: Sequence[str], experiment: str) -> list[Part]:
    """The parts of these names, all where none is named."""
    known = [one.name for one in parts]
    for name in names:
        if name not in known:
            raise unknown_name(f"part of {experiment}", name, known)
    return [one for one in parts if not names or one.name in names]


def _with(
    part: Part,
    data_root: str | None,
    verify: bool,
    extra: bool,
    teacher: str | None,
    device: str,
    overrides: Mapping[str, Any] | None,
) -> Part:
    """The part with what the user's machine brings: where the data lie, a trained teacher, the device."""
    base = copy.deepcopy(dict(part.base))
    place = {"data.root": data_root, "run.device": None if device == "auto" else device}
    if not verify:
        place["data.verify"] = False  # type: ignore[assignment]
    if not extra and base["data"]["name"] == "svhn":
        place["data.extra"] = False  # type: ignore[assignment]
    for key, value in {**place, **(overrides or {})}.items():
        if value is not None:
            put(base, key, value)
    if teacher is not None and names_a_file(teacher):
        base["teacher"] = {**base["teacher"], "name": teacher}
    return replace(part, base=base)


def _same(output_dir: str | os.PathLike[str], kind: str, settings: Mapping[str, Any]) -> Run | None:
    """The run folder that the same question left here, the newest if there are several."""
    for run in list_runs(output_dir, 1):
        if run.state == "damaged" or run.info["kind"] != kind:
            continue
        config = run.config
        if "config" in config:  # resolved settings, perhaps of an older version
            config = {**config, "config": completed(config["config"])}
        if config == settings:
            return run
    return None


def _taught(base: Mapping[str, Any], output_dir: str | os.PathLike[str], watch: Watch | None) -> dict[str, Any]:
    """The settings with teachers replaced by run folders, where each is trained once for all experiments."""

    def trained(name: str) -> str:
        if names_a_file(name):
            return name
        own = {key: value for key, value in base["teacher"].items() if key not in ("name", "also")}
        run = {**base.get("run", {}), "output_dir": os.fspath(output_dir)}
        data = {key: value for key, value in base["data"].items() if key != "train_limit"}  # it has seen all there is
        config = settled(build_config({"data": data, "teacher": {**own, "name": name}, "run": run}))
        found = _same(output_dir, "train", plain({"config": describe(config), "seed": 0}, "config"))
        if found is None or found.state != "done":
            found = train_config(config, run=found, watch=watch).run
        return str(found.path)

    teacher: dict[str, Any] = {"name": trained(base["teacher"]["name"])}
    if base["teacher"].get("also"):
        teacher["also"] = [trained(one) for one in base["teacher"]["also"]]
    return {**base, "teacher": teacher}


def _scaled(grid: Mapping[str, Sequence[Any]], base: Mapping[str, Any]) -> dict[str, Sequence[Any]]:
    """The grid with its sigmas in units of logits: multiplied by the root mean square of the teacher's on validation.

    alpha sigma^2 z^2 is the variance that multiplicative noise brings into the gradient of a logit z; additive noise of
    these sigmas brings in the same on average over the logits, but evenly.
    """
    config = build_config(base)
    data = load_config_data(config)
    model, _ = load_teacher(config.teacher.name, data)
    size = float(predict(model, data.val).square().mean().sqrt())
    return {**grid, "noise.sigma": [round(size * sigma, 4) for sigma in grid["noise.sigma"]]}


def _titled(watch: Watch, name: str) -> Watch:
    def tell(stage: str, done: int, total: int, note: str) -> None:
        watch(f"{name}: {stage}", done, total, note)

    return tell


def _record(asked: Experiment, size: Budget, parts: list[Part], found: list[SweepResult]) -> dict[str, Any]:
    rows, verdicts = [], []
    for part, result in zip(parts, found, strict=True):
        told = None if part.curve is None else curve(part.curve)
        error = result.record["teacher"].get("test_error_%")
        rows.append(
            {
                "part": part.name,
                "label": f"{part.title}: teacher",
                "kind": "teacher",
                "paper_%": None if told is None else told.teacher_error,
                "ours": None if error is None else {"mean": error, "low": None, "high": None, "sd": None, "n": 1},
                "against_clean": None,
            }
        )
        for one in result.conditions:
            against = one["against_clean"]
            rows.append(
                {
                    "part": part.name,
                    "label": one["label"],
                    "kind": one["kind"],
                    "paper_%": _paper(part, told, one),
                    "ours": one["test_error_%"],
                    "against_clean": None if against is None else against.get("test_error_%"),
                }
            )
        verdicts += [f"{part.title}: {sentence}" for sentence in result.verdicts()]
    return {
        "experiment": asked.name,
        "title": asked.title,
        "budget": size.name,
        "data": found[0].record["data"],
        "sweeps": [part.name for part in parts],
        "rows": rows,
        "verdicts": verdicts,
        "notes": list(asked.notes),
    }


def _paper(part: Part, told: Curve | None, one: Mapping[str, Any]) -> float | None:
    """The paper's test error for a condition of ours, where the paper has one. Row draws have none of their own: the
    paper does not say which reading it means, so its number stands beside both.
    """
    settings = one["settings"]
    if told is None:
        known = {value.id: value.error for value in values()}
        return known[SECTION54[part.name]] if one["kind"] == SECTION54_KIND.get(part.name) else None
    if settings.get("student.loss", "logit_regression") != "logit_regression":
        return None
    if told.axis == "dropout":
        dropped = settings.get("student.options.dropout")
        place = None if dropped is None else 1 - dropped
    elif one["kind"] == "clean":
        return told.clean_error
    elif one["kind"] == "labels" or settings["noise.target"] != told.target:
        return None
    else:
        place = settings[f"noise.{told.axis}"]
    known_points = dict(zip(told.x, told.errors, strict=True))
    return next((error for x, error in known_points.items() if place is not None and abs(x - place) < 1e-9), None)
