"""Run an experiment of the paper as sweeps, and set its numbers beside the paper's."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from noisyteacher import stats
from noisyteacher.config import build_config, describe, put
from noisyteacher.data import load_data
from noisyteacher.data.split import ROLES
from noisyteacher.device import AUTO, PRECISIONS, check_count
from noisyteacher.errors import DataError, UsageError
from noisyteacher.evaluate import predict
from noisyteacher.io.files import Json
from noisyteacher.paper import objectives, regime, relatives
from noisyteacher.paper.experiments import BUDGETS, SAME, Budget, Experiment, Part, experiment, varies_sigma
from noisyteacher.paper.reference import PAPERS_SETTINGS, curve
from noisyteacher.pipeline.pretrained import is_model_path, load_teacher, other_data
from noisyteacher.pipeline.resolve import load_config_data, resolve_auto
from noisyteacher.pipeline.results import Condition, Difference, Estimate, PaperRow, RunResult, Verdict, p_note
from noisyteacher.pipeline.single_step import train_config
from noisyteacher.progress import Watch, stage
from noisyteacher.runs import Run, as_json, is_run, list_runs, new_run
from noisyteacher.sweep import SweepResult, sweep
from noisyteacher.sweep.run import check_workers
from noisyteacher.sweep.spec import Grid, build_spec
from noisyteacher.tables import Table
from noisyteacher.text import flat, plural, sentence, unknown_name

STUDIES: dict[str, Any] = {"regime": regime, "relatives": relatives, "objectives": objectives}
"""Name -> the module of a study of our own: its cells, budgets and `run_cell`."""
STATED = (
    *("data.name", "teacher.name", "student.name", "student.options", "student.preset"),
    *("noise.sigma", "noise.alpha", "noise.target", *PAPERS_SETTINGS),
)
"""Settings that the paper states: its numbers do not belong beside those of other settings."""
OWN_OPTIONS = {"run.seeds": "--seeds", "run.output_dir": "--output-dir"}
"""Settings that are options of an experiment -> the option."""
TRAINED_TEACHER_SETTINGS = ("class_order", "logits_precision", "preprocess", "mean", "std")
"""Settings of a teacher that apply to one that is trained already."""
SECTION54 = {"drawn-sigma": ("noisy", 19.08), "teacher2": ("clean", 22.62), "two-teachers": ("clean", 20.44)}
"""Part -> the kind of condition that a test error (%) of the paper's section 5.4 stands beside, and that error."""


@dataclass(frozen=True, kw_only=True)
class PaperResult(RunResult):
    """An experiment: its rows with the paper's number and ours side by side, the verdicts of its sweeps."""

    def table(self) -> Table:
        """A row per number."""
        rows = []
        for row in self.paper:
            gap, paper = row.against_clean, "" if row.paper is None else f"{row.paper:.2f}"
            p = "" if gap is None or gap.corrected is None else stats.p_words(gap.corrected)
            seeds = "" if row.ours is None else str(row.ours.n)
            rows.append((row.label, paper, str(row.ours or "-"), seeds, "" if gap is None else str(gap), p))
        headers = ("condition", "paper %", "ours % (test)", "seeds", "ours - clean", "p")
        note = p_note(row.against_clean for row in self.paper if row.against_clean is not None)
        return Table(headers, tuple(rows), notes=(*filter(None, (note,)), *self.remarks))

    def tables(self) -> list[Table]:
        """What is printed of it: the table of numbers."""
        return [self.table()]


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
    overrides: Json | None = None,
    command: str | None = None,
    begun: Callable[[Run], None] | None = None,
    watch: Watch | None = None,
) -> PaperResult:
    """Run an experiment (`table1`, ...) or a study (`why`, ...) and keep it in a run folder of kind `paper`.

    budget: `quick`, `standard` or `full`. teacher: a trained one (run folder, weights file or pretrained:NAME) for the
    experiment's first teacher; otherwise it is trained once and kept for the other experiments in the same
    `output_dir`. The same call again resumes or reads the run folder that it left there. parts: only these of the
    experiment (`student3` of table6); sigmas, seeds: instead of the budget's. overrides: dotted settings for every
    sweep; where they change what the paper states, its numbers are left out. jobs, stack, scheduler: as in `sweep`.
    Raises UnknownNameError, UsageError for what has no effect, and whatever `sweep` raises.
    """
    if budget not in BUDGETS:
        raise unknown_name("budget", budget, BUDGETS)
    if seeds is not None:
        check_count("seeds", seeds)
    check_workers(jobs, stack, scheduler)
    if name in STUDIES:
        unused = {
            "teacher": teacher,
            "sigmas": sigmas,
            "scheduler": scheduler,
            "stack": stack > 1,
            "device": device not in (AUTO, "cpu"),
            "extra": not extra,
        }
        if wrong := [option for option, value in unused.items() if value]:
            raise UsageError(f"{', '.join(wrong)}: no effect on {name}: leave it out")
        data = {"root": data_root, "verify": verify, **(overrides or {})}
        return _run_study(name, budget, data, parts, seeds, jobs, output_dir, command, begun, watch)
    chosen = experiment(SAME.get(name, name))
    for key, option in OWN_OPTIONS.items():
        if key in (overrides or {}):
            raise UsageError(f"{key}: no effect on an experiment of the paper: give {option} in its place")
    if sigmas and not varies_sigma(name):
        raise UsageError(f"sigmas: {chosen.name} has sigmas of its own: leave them out")
    size = BUDGETS[budget]
    size = replace(size, sigmas=tuple(sigmas) or size.sigmas, seeds=seeds or size.seeds)
    machine: Json = {"data.root": data_root, "run.device": None if device == AUTO else device}
    machine["data.verify"] = None if verify else False
    available = chosen.parts(size)
    _check_parts(chosen.name, parts, [part.name for part in available])
    selected = [part for part in available if part.name in parts or not parts]
    if not (extra or any(part.base["data"]["name"] == "svhn" for part in selected)):
        raise UsageError(f"extra: no effect on {chosen.name}, which is not on SVHN: leave it out")
    for number, part in enumerate(selected):
        controls = size.seeds * part.control
        machine["run.control_seeds"] = controls if controls > size.seeds + 1 else None  # one more would judge nothing
        machine["data.extra"] = False if not extra and part.base["data"]["name"] == "svhn" else None
        selected[number] = adapted(part, machine, overrides or {})
    if teacher is not None:
        selected = with_teacher(teacher, chosen, selected)
    specs = [build_spec(part.base, part.grids, size.seeds) for part in selected]
    with stage(watch, "checking the settings"):  # before a folder is made or a teacher trained
        for spec in specs:
            spec.check(stack)
    described = {part.name: {"base": part.base, "grids": part.grids} for part in selected}
    content = {"experiment": chosen.name, "budget": size.name, "seeds": size.seeds, "parts": described}
    run = _open_run(output_dir, content, command, begun)
    with run.lock(shared=True):
        results = []
        for part in selected:
            progress = None if watch is None else _prefixed(watch, part.name)
            if is_run(folder := run.path / part.name):  # its settings, with precisions measured then, stay
                base, grids = (Run.open(folder).config[key] for key in ("base", "grids"))
            else:
                base = _train_teachers(part.base, output_dir, progress)
                grids = [_scaled(grid, base) for grid in part.grids] if part.scaled else part.grids
            options: Json = {"jobs": jobs, "stack": stack, "scheduler": scheduler, "progress": progress}
            results.append(sweep(base, grids, seeds=size.seeds, name=part.name, parent=run, **options))
        outcome = _paper_result(run.path, chosen, size, selected, results)
        run.write_result(outcome.describe())
    return outcome


def _run_study(
    name: str,
    budget: str,
    settings: Json,
    parts: Sequence[str],
    seeds: int | None,
    jobs: int,
    output_dir: str | os.PathLike[str],
    command: str | None,
    begun: Callable[[Run], None] | None,
    watch: Watch | None,
) -> PaperResult:
    """A study of STUDIES; settings: of the data, for all parts."""
    study = STUDIES[name]
    names, number, epochs = study.BUDGETS[budget]
    _check_parts(name, parts, study.CELLS)
    if wrong := [key for key in settings if key not in ("root", "verify") and not key.startswith("data.")]:
        raise UsageError(f"{wrong[0]}: {name} takes settings of the data alone (data.name=..., data.root=...)")
    if seeds == 1:
        raise UsageError(f"seeds={seeds}: {name} compares over seeds, so it needs two or more")
    cells = [study.CELLS[part] for part in parts or names]
    cells = [replace(cell, seeds=seeds or number or cell.seeds) for cell in cells]
    if epochs is not None and hasattr(cells[0], "epochs"):
        cells = [replace(cell, epochs=epochs) for cell in cells]
    named = {key.removeprefix("data."): value for key, value in settings.items() if value is not None}
    remarks = list[str]()
    for data_name in dict.fromkeys(cell.data for cell in cells):
        build_config({"data": {"name": data_name, **named}})
        with stage(watch, f"reading the data {named.get('name', data_name)}"):
            remarks += _study_remarks(name, {"name": data_name, **named}, regime.TEACHERS[data_name])
    content: Json = {"experiment": name, "budget": budget, "cells": [asdict(cell) for cell in cells]}
    if other := {key: value for key, value in named.items() if key not in ("root", "verify")}:
        content["data"] = other
        words = ", ".join(f"data.{key} = {value}" for key, value in other.items())
        remarks.append(f"Not the study's own data ({words}): a training subset has at most all rows of these.")
    run = _open_run(output_dir, content, command, begun)
    with run.lock(shared=True):
        records = []
        for cell in cells:
            data = {"name": cell.data, **named}
            workspace = regime.Workspace(run.path / cell.data, data, regime.TEACHERS[cell.data], epochs)
            records.append(study.run_cell(workspace, cell, jobs, watch))
        data_names = dict.fromkeys(named.get("name", cell.data) for cell in cells)
        outcome = _study_result(run.path, budget, study, records, ", ".join(data_names), remarks)
        run.write_result(outcome.describe())
    return outcome


def _study_remarks(study: str, settings: Json, teacher: str) -> list[str]:
    """What a reader must know of these data beside the study's teacher. Raises DataError for splits without labels."""
    splits = load_data(settings["name"], **{key: value for key, value in settings.items() if key != "name"})
    for role in ROLES:
        if role not in splits.parts or splits.parts[role].labels is None:
            raise DataError(
                f"{splits.name}: no labelled {role} split; {study} trains on train, chooses on val and judges on test"
            )
    seen = other_data(teacher, splits, f"the teacher {teacher}")
    return [sentence(seen)] if seen else []


def _study_result(
    path: Path, budget: str, study: Any, records: Sequence[Json], data: str, remarks: Sequence[str]
) -> PaperResult:
    """A row per arm of every cell, a verdict per contrast."""
    rows, verdicts, remarks = list[PaperRow](), list[Verdict](), list(remarks)
    for record in records:
        name = record["cell"]["name"]
        for kind, rates in record.get("left_out", {}).items():
            remarks += [f"{name}: {kind} students diverged at the rate {rate:g}, which is left out." for rate in rates]
        for title, count in record["diverged"].items():
            trained = plural(len(record["seeds"]), "training")
            remarks.append(f"{name}: {title}: {count} of {trained} diverged, so that it is not compared.")
        for title, arm in record["arms"].items():
            gap = (record.get("against_reference") or record["against_clean_no_decay"]).get(title)
            difference = None if gap is None else Difference(**{"reference": "clean, no decay", **gap})
            settings = arm["settings"]
            kind = "noisy" if settings["noise"] else "labels" if settings.get("teacher") == "labels" else "clean"
            ours = Estimate.of(arm["test_error_%"]["last"])
            rows.append(PaperRow(name, f"{name}: {title}", kind, None, ours, difference))
        for question, contrast in record["contrasts"].items():
            difference = Difference(**contrast)
            sentence = f"{name}, {question}: {stats.verdict(difference)}"
            verdicts.append(Verdict(stats.outcome(difference), sentence))
    return PaperResult(
        path=path,
        kind="paper",
        data=data,
        title=study.TITLE,
        budget=budget,
        paper=tuple(rows),
        verdicts=tuple(verdicts),
        remarks=(*study.NOTES, *remarks),
    )


def adapted(part: Part, machine: Json, overrides: Json) -> Part:
    """The part with the settings of the user's machine (None: unchanged) and those that the user overrides."""
    base = copy.deepcopy(part.base)
    stated = flat(describe(build_config(base, unused_noise=True)))
    for key, setting in {**machine, **overrides}.items():
        if setting is not None:
            put(base, key, setting)
    changed = tuple(key for key, setting in overrides.items() if key.startswith(STATED) and stated.get(key) != setting)
    return replace(part, base=base, changed=changed)


def with_teacher(name: str, experiment: Experiment, parts: list[Part]) -> list[Part]:
    """The parts with this trained model in place of the experiment's first teacher. Raises UsageError.

    The paper's numbers stand beside it only where it is the same network.
    """
    if not is_model_path(name):
        raise UsageError(
            f"teacher {name!r}: expected a trained one, by its run folder, its weights file or pretrained:NAME; "
            "without it the paper's is trained"
        )
    first = experiment.parts(BUDGETS["quick"])[0].base["teacher"]["name"]
    replaced = [
        replace(part, base={**part.base, "teacher": {**part.base["teacher"], "name": name}})
        if part.base["teacher"]["name"] == first
        else part
        for part in parts
    ]
    if replaced == parts:
        names = ", ".join(part.name for part in parts)
        raise UsageError(f"teacher {name!r}: it would replace {first}, which is no teacher in {names}")
    if load_teacher(name)[0].name == first:
        return replaced
    return [
        new if new == old else replace(new, changed=(*new.changed, "teacher.name"))
        for new, old in zip(replaced, parts, strict=True)
    ]


def _check_parts(experiment: str, parts: Sequence[str], names: Collection[str]) -> None:
    """Raises UnknownNameError for a part that the experiment does not have."""
    for part in parts:
        if part not in names:
            raise unknown_name(f"part of {experiment}", part, names)


def _open_run(
    output_dir: str | os.PathLike[str], content: Json, command: str | None, begun: Callable[[Run], None] | None
) -> Run:
    """The run folder of an experiment: the newest with this content as its config, or a new one."""
    config = as_json(content, "config")
    run = _find_run(output_dir, "paper", config)
    if run is None:
        run = new_run(output_dir, "paper", f"{content['experiment']}-{content['budget']}", config, command=command)
    if begun is not None:
        begun(run)
    return run


def _find_run(output_dir: str | os.PathLike[str], kind: str, settings: Json) -> Run | None:
    """The newest run of these settings in the folder; of a training on labels, whatever its student and noise are."""
    for run in list_runs(output_dir, 1):
        if run.state == "damaged" or run.info["kind"] != kind:
            continue
        config = run.config
        if kind == "train" and "config" in config:
            unused = {part: settings["config"][part] for part in ("student", "noise", "choice", "target")}
            config = {**config, "config": config["config"] | unused}
        if config == settings:
            return run
    return None


def _train_teachers(base: Json, output_dir: str | os.PathLike[str], watch: Watch | None) -> Json:
    """The settings with teachers replaced by run folders, where each is trained once for all experiments."""
    settings = base["teacher"]
    recipe = {key: setting for key, setting in settings.items() if key not in ("name", "also", "logits_precision")}
    run = {**base.get("run", {}), "output_dir": os.fspath(output_dir)}
    # The teacher sees all images, also where its students see few.
    data = {key: setting for key, setting in base["data"].items() if key != "train_limit"}

    def trained(name: str) -> str:
        if is_model_path(name):
            return name
        parts = {"data": data, "teacher": {**recipe, "name": name}, "student": {"preset": "paper"}, "run": run}
        config = build_config(parts)
        candidates = [resolved := resolve_auto(config)]
        if config.teacher.precision == AUTO:  # measured: another precision may have been the fastest before
            precisions: Sequence[Any] = PRECISIONS
            for precision in precisions:
                teacher = replace(resolved.teacher, precision=precision)
                student = replace(resolved.student, precision=precision)
                candidates.append(replace(resolved, teacher=teacher, student=student))
        for candidate in candidates:
            existing = _find_run(output_dir, "train", as_json({"config": describe(candidate), "seed": 0}, "config"))
            if existing is not None and existing.state == "done":
                return str(existing.path)
            if existing is not None:
                return str(train_config(candidate, run=existing, on_progress=watch).run.path)
        return str(train_config(resolved, on_progress=watch).run.path)

    names = TRAINED_TEACHER_SETTINGS if is_model_path(settings["name"]) else ()
    kept = {key: settings[key] for key in names if key in settings}
    also = {"also": [trained(name) for name in settings["also"]]} if settings.get("also") else {}
    return {**base, "teacher": {**kept, "name": trained(settings["name"]), **also}}


def _scaled(grid: Grid, base: Json) -> Grid:
    """The grid with its sigmas in units of logits: multiplied by the root mean square of the teacher's on validation.

    alpha sigma^2 z^2 is the variance that multiplicative noise brings into the gradient of a logit z; additive noise of
    these sigmas brings in the same on average over the logits, but evenly.
    """
    config = build_config(base, unused_noise=True)
    data = load_config_data(config)
    model, _ = load_teacher(config.teacher.name, data)
    size = float(predict(model, data.val, progress=False).square().mean().sqrt())
    return {**grid, "noise.sigma": [round(size * sigma, 4) for sigma in grid["noise.sigma"]]}


def _prefixed(watch: Watch, name: str) -> Watch:
    return lambda stage, done, total, note: watch(f"{name}: {stage}", done, total, note)


def _paper_result(
    path: Path, experiment: Experiment, budget: Budget, parts: Sequence[Part], sweeps: Sequence[SweepResult]
) -> PaperResult:
    """The result of an experiment from those of its sweeps: a row per number, the paper's and ours."""
    rows: list[PaperRow] = []
    verdicts: list[Verdict] = []
    failed: dict[str, str] = {}
    for part, result in zip(parts, sweeps, strict=True):
        for row in (result.teachers[0], *result.conditions):
            title = f"{part.title}: teacher" if row.kind == "teacher" else row.title
            number, gap = paper_number(part, row), row.against_clean.get("test")
            rows.append(PaperRow(part.name, title, row.kind, number, row.score("test"), gap))
        verdicts += [replace(verdict, sentence=f"{part.title}: {verdict}") for verdict in result.verdicts]
        failed |= {f"{part.name}/{run}": error for run, error in result.failed.items()}
    changed = ", ".join(dict.fromkeys(key for part in parts for key in part.changed))
    remark = f"The paper's numbers are left out: {changed} not as it states."
    return PaperResult(
        path=path,
        kind="paper",
        data=sweeps[0].data,
        title=experiment.title,
        budget=budget.name,
        sweeps=tuple(part.name for part in parts),
        paper=tuple(rows),
        verdicts=tuple(verdicts),
        failed=failed,
        remarks=(*experiment.notes, *([remark] if changed else [])),
    )


def paper_number(part: Part, row: Condition) -> float | None:
    """The paper's test error (%) for a condition of ours, where the paper has one.

    The paper does not say whether noise is drawn per batch or per row, so its number stands beside both.
    """
    settings = row.settings
    if part.changed:
        return None
    if part.curve is None:
        kind, error = SECTION54.get(part.name, ("", None))
        return error if row.kind == kind else None
    paper = curve(part.curve)
    if row.kind == "teacher":
        return paper.teacher_error
    if settings.get("student.loss", "logit_regression") != "logit_regression" or row.kind == "labels":
        return None
    if paper.axis == "dropout":
        dropout = settings.get("student.options.dropout")
        return None if dropout is None else paper.error_at(1 - dropout)
    if row.kind == "clean":
        return paper.clean_error
    return paper.error_at(settings[f"noise.{paper.axis}"]) if settings["noise.target"] == paper.target else None
