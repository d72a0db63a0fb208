"""Run an experiment of the paper as sweeps."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from noisyteacher.config import Config, build_config, completed, describe, put
from noisyteacher.device import AUTO, PRECISIONS
from noisyteacher.errors import ConfigError, UsageError
from noisyteacher.evaluate import predict
from noisyteacher.io.locks import shared_lock
from noisyteacher.paper.experiments import SAME, Budget, Experiment, Part, budget_of, experiment, varies_sigma
from noisyteacher.paper.result import PaperResult, record_of
from noisyteacher.pipeline import Watch, load_config_data, load_teacher, names_a_file, settled, train_config
from noisyteacher.runs import Run, is_run, list_runs, new_run, plain
from noisyteacher.sweep import sweep
from noisyteacher.text import flat, unknown_name

STATED = ("data.name", "teacher.name", "student.name", "student.options", "noise.sigma", "noise.alpha", "noise.kind",
          "noise.distribution", "noise.target", "noise.schedule")  # fmt: skip
"""Settings that the paper states: its numbers do not belong beside others."""


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

    budget: `quick`, `standard` or `full`. teacher: a trained one (run folder, weights file or pretrained:NAME) for the
    experiment's first teacher; otherwise it is trained once and kept for the other experiments in the same
    `output_dir`. The same question asked again goes on with the run folder it left there, or reads it. parts: only
    these of the experiment (`student3` of table6); sigmas, seeds: instead of the budget's. overrides: dotted settings
    for every sweep; where they change what the paper states, its numbers are left out. jobs, stack, scheduler: as in
    `sweep`. Raises UnknownNameError, UsageError for a teacher or sigmas that change nothing, and whatever
    `sweep` raises.
    """
    asked, size = experiment(SAME.get(name, name)), _budget(budget, sigmas, seeds)
    if sigmas and not varies_sigma(name):
        raise UsageError(f"sigmas: {asked.name} has sigmas of its own, whatever is given: leave them out")
    chosen = [
        _with(part, data_root, verify, extra, device, overrides)
        for part in _chosen(asked.parts(size), parts, asked.name)
    ]
    if teacher is not None:
        chosen = _taught_by(teacher, asked, chosen)
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
    with shared_lock(run.path):
        found = []
        for part in chosen:
            tell = None if watch is None else _titled(watch, part.name)
            base, grids = _begun(run, part) or _prepared(part, output_dir, tell)
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
                    progress=tell,
                )
            )
        record = record_of(asked, size, chosen, found)
        run.write_result(record)
    return PaperResult(run.path, plain(record, "result"), tuple(found))


def _begun(run: Run, part: Part) -> tuple[Mapping[str, Any], Sequence[Mapping[str, Sequence[Any]]]] | None:
    """What a part's sweep was begun with, None where it was not: who teaches, and what `auto` came to, stays."""
    folder = run.path / part.name
    if not is_run(folder):
        return None
    config = Run.open(folder).config
    return config["base"], config["grids"]


def _prepared(
    part: Part, output_dir: str | os.PathLike[str], watch: Watch | None
) -> tuple[Mapping[str, Any], Sequence[Mapping[str, Sequence[Any]]]]:
    """The settings and grids of a part's sweep, with its teachers trained."""
    base = _taught(part.base, output_dir, watch)
    return base, [_scaled(grid, base) for grid in part.grids] if part.scaled else part.grids


def _budget(name: str, sigmas: Sequence[float], seeds: int | None) -> Budget:
    """The budget with what is named instead of its own."""
    named: dict[str, Any] = {"sigmas": tuple(sigmas)} if sigmas else {}
    if seeds is not None:
        if seeds < 1:
            raise UsageError(f"seeds={seeds}: expected 1 or more")
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
    device: str,
    overrides: Mapping[str, Any] | None,
) -> Part:
    """The part with what the user's machine brings, where the data lie and the device, and what the user changes."""
    base = copy.deepcopy(dict(part.base))
    place = {"data.root": data_root, "run.device": None if device == "auto" else device}
    if not verify:
        place["data.verify"] = False  # type: ignore[assignment]
    if not extra and base["data"]["name"] == "svhn":
        place["data.extra"] = False  # type: ignore[assignment]
    stated = flat(describe(build_config(base, unused_noise=True)))
    for key, value in {**place, **(overrides or {})}.items():
        if value is not None:
            put(base, key, value)
    given = (overrides or {}).items()
    changed = tuple(key for key, value in given if key.startswith(STATED) and stated.get(key) != value)
    return replace(part, base=base, changed=changed)


def _taught_by(name: str, asked: Experiment, parts: list[Part]) -> list[Part]:
    """The parts with this trained model in place of the experiment's first teacher. Raises UsageError."""
    if not names_a_file(name):
        raise UsageError(
            f"teacher {name!r}: expected a trained one, by its run folder, its weights file or pretrained:NAME; "
            "without it the paper's is trained"
        )
    first = asked.parts(budget_of("quick"))[0].base["teacher"]["name"]
    if all(part.base["teacher"]["name"] != first for part in parts):
        others = ", ".join(one.name for one in parts)
        raise UsageError(f"teacher {name!r}: it would stand for {first}, which does not teach in {others}")
    return [
        replace(part, base={**part.base, "teacher": {**part.base["teacher"], "name": name}})
        if part.base["teacher"]["name"] == first
        else part
        for part in parts
    ]


def _same(output_dir: str | os.PathLike[str], kind: str, settings: Mapping[str, Any]) -> Run | None:
    """The run folder that the same question left here, the newest if there are several."""
    for run in list_runs(output_dir, 1):
        if run.state == "damaged" or run.info["kind"] != kind:
            continue
        config = run.config
        if "config" in config:  # resolved settings, perhaps of an older version
            config = {**config, "config": completed(config["config"])}
            if kind == "train":  # on labels: whatever student and noise are
                config["config"] |= {
                    part: settings["config"][part] for part in ("student", "noise", "choice", "target")
                }
        if config == settings or (kind == "paper" and _resolved(config) == _resolved(settings)):
            return run
    return None


def _resolved(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a paper run with every base spelled out; bases without a preset had the paper's alone."""
    parts = {}
    for name, part in settings.get("parts", {}).items():
        base = dict(part["base"])
        for role in ("teacher", "student"):
            base[role] = {"preset": "paper", **base.get(role, {})}
        try:
            base = describe(build_config(base, unused_noise=True))
        except ConfigError:  # settings that this version does not know: another question
            base = {"unknown": part["base"]}
        parts[name] = {**part, "base": base}
    return {**settings, "parts": parts}


def _taught(base: Mapping[str, Any], output_dir: str | os.PathLike[str], watch: Watch | None) -> dict[str, Any]:
    """The settings with teachers replaced by run folders, where each is trained once for all experiments."""

    def trained(name: str) -> str:
        if names_a_file(name):
            return name
        own = {key: value for key, value in base["teacher"].items() if key not in ("name", "also", "logits_precision")}
        run = {**base.get("run", {}), "output_dir": os.fspath(output_dir)}
        data = {key: value for key, value in base["data"].items() if key != "train_limit"}  # it has seen all there is
        asked = build_config(
            {"data": data, "teacher": {**own, "name": name}, "student": {"preset": "paper"}, "run": run}
        )
        now = settled(asked)
        ways = [now]
        if asked.teacher.precision == AUTO:  # one that was begun where it came to another precision is as good
            ways += [_in(now, other) for other in PRECISIONS if other != now.teacher.precision]
        begun = (
            (one, _same(output_dir, "train", plain({"config": describe(one), "seed": 0}, "config"))) for one in ways
        )
        config, found = next((pair for pair in begun if pair[1] is not None), (now, None))
        if found is None or found.state != "done":
            found = train_config(config, run=found, watch=watch).run
        return str(found.path)

    given = names_a_file(base["teacher"]["name"])
    kept = ("class_order", "logits_precision", "preprocess", "mean", "std") if given else ()
    teacher: dict[str, Any] = {
        "name": trained(base["teacher"]["name"]),
        **{key: base["teacher"][key] for key in kept if key in base["teacher"]},
    }
    if base["teacher"].get("also"):
        teacher["also"] = [trained(one) for one in base["teacher"]["also"]]
    return {**base, "teacher": teacher}


def _in(config: Config, precision: Any) -> Config:
    """The settings of a training in this precision."""
    recipes = {"teacher": config.teacher, "student": config.student}
    changed: dict[str, Any] = {name: replace(one, precision=precision) for name, one in recipes.items()}
    return replace(config, **changed)


def _scaled(grid: Mapping[str, Sequence[Any]], base: Mapping[str, Any]) -> dict[str, Sequence[Any]]:
    """The grid with its sigmas in units of logits: multiplied by the root mean square of the teacher's on validation.

    alpha sigma^2 z^2 is the variance that multiplicative noise brings into the gradient of a logit z; additive noise of
    these sigmas brings in the same on average over the logits, but evenly.
    """
    config = build_config(base, unused_noise=True)
    data = load_config_data(config)
    model, _ = load_teacher(config.teacher.name, data)
    size = float(predict(model, data.val, progress=False).square().mean().sqrt())
    return {**grid, "noise.sigma": [round(size * sigma, 4) for sigma in grid["noise.sigma"]]}


def _titled(watch: Watch, name: str) -> Watch:
    def tell(stage: str, done: int, total: int, note: str) -> None:
        watch(f"{name}: {stage}", done, total, note)

    return tell
