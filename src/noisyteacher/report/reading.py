"""From run folders to studies: the one place that knows which kind of run is read how."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from noisyteacher.errors import FileFormatError, UsageError
from noisyteacher.report.children import Children, sizes
from noisyteacher.report.compressed import (
    batch_size,
    candidates_of,
    has_noise,
    noise_settings,
    read_compression,
    settled_noise,
)
from noisyteacher.report.study import Curve, Details, Estimate, Line, Study, Verdict
from noisyteacher.report.swept import read_paper, read_sweep
from noisyteacher.runs import Run, is_run, list_runs

SINGLE = {"train": "trained on labels", "distil": "distilled", "given": "trained before"}
Asked = str | os.PathLike[str] | Run


def read_studies(runs: Asked | Iterable[Asked]) -> tuple[Study, ...]:
    """One Study per run folder, in the order given, each folder once.

    An unfinished or failed run is a study that says so. Raises UsageError when there are no runs or a path is no
    run folder, FileFormatError naming the file when one cannot be read.
    """
    given = [runs] if isinstance(runs, (str, os.PathLike, Run)) else list(runs)
    if not given:
        raise UsageError("nothing to report: give one or more run folders, such as runs/20261122T1246Z-...")
    found: dict[Path, Study] = {}
    for one in given:
        path = one.path if isinstance(one, Run) else Path(one)
        if path.resolve() not in found:
            found[path.resolve()] = read_study(path)
    return tuple(found.values())


def read_study(path: Path) -> Study:
    """The Study of one run folder. Raises as `read_studies` does."""
    if not is_run(path):
        inside = list_runs(path, 1) if path.is_dir() else []
        hint = f"it holds {len(inside)} runs, give those: {inside[0].path} ..." if inside else "it has no run.json"
        raise UsageError(f"{path}: not a run folder: {hint if path.exists() else 'there is no such folder'}")
    try:
        run = Run.open(path)
        result = run.result()
        children = Children(run)
        fields = _fields(run, children, result)
    except FileFormatError as error:
        raise FileFormatError(f"{error}; leave this run out of the report, or restore the file from a copy") from error
    state = run.state
    notes = (*fields.pop("notes", ()), *children.notes)
    verdicts = _state_verdicts(run, children, state) or fields.pop("verdicts", ())
    fields.pop("verdicts", None)
    info = run.info
    command = info.get("command")
    return Study(
        path=path,
        id=run.id,
        kind=str(info.get("kind", "run")),
        name=str(info.get("name", path.name)),
        state=state,
        started=run.started,
        finished=run.finished,
        command=" ".join(map(str, command)) if isinstance(command, list) else str(command or ""),
        config=run.config,
        versions=_mapping(info.get("versions")),
        host=_mapping(info.get("host")),
        verdicts=verdicts,
        notes=notes,
        **fields,
    )


def _fields(run: Run, children: Children, result: Mapping[str, Any] | None) -> dict[str, Any]:
    """The fields of the Study that depend on the kind of run. Raises FileFormatError for a result of another shape."""
    kind = run.info.get("kind")
    reader: Callable[[], dict[str, Any]]
    if kind == "compress":
        reader = lambda: read_compression(run, children, result)  # noqa: E731
    elif kind == "sweep":
        reader = lambda: read_sweep(run, children, result)  # noqa: E731
    elif kind == "paper":
        reader = lambda: _paper(run, children, result)  # noqa: E731
    else:
        reader = lambda: _single(run, result)  # noqa: E731
    try:
        return reader()
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        if isinstance(error, FileFormatError):
            raise
        what = f"no {error.args[0]!r}" if isinstance(error, KeyError) and error.args else str(error)
        raise FileFormatError(f"{run.path / 'result.json'}: not the result of a {kind} run ({what})") from error


def _paper(run: Run, children: Children, result: Mapping[str, Any] | None) -> dict[str, Any]:
    fields = read_paper(result)
    names = [str(name) for name in (result or {}).get("sweeps", [])] or sorted(children.named)
    parts = []
    for name in names:
        child = children.named.get(name)
        if child is None:
            children.note(f"{name}: this sweep of {run.id} is not there any more.")
            continue
        try:
            parts.append(read_study(child.path))
        except FileFormatError as error:
            children.note(f"{error}.")
    return {**fields, "parts": tuple(parts), "data": next((part.data for part in parts if part.data), "")}


def _single(run: Run, result: Mapping[str, Any] | None) -> dict[str, Any]:
    """A training, a distillation, or a teacher that was given."""
    whole = _mapping(run.config.get("config")) or run.config
    kind = str(run.info.get("kind"))
    recipe = _mapping(whole.get("student" if kind == "distil" else "teacher")) or _mapping(whole.get("recipe"))
    model = str(whole.get("model") or whole.get("given") or recipe.get("name") or run.info.get("name"))
    choice = _mapping((result or {}).get("choice"))
    asked = _noise(run, whole) if kind == "distil" else {}
    noise = settled_noise({**asked, **_mapping(choice.get("chosen"))})
    waits = bool(asked) and noise is None  # for its choice: with or without noise is not known yet
    scores = _mapping((result or {}).get("scores"))
    seed = run.info.get("seed")
    found = {
        f"{role}_{called}": estimate
        for key, called in (("error", "error_%"), ("nll", "nll_nats"), ("ece", "ece_%"), ("agreement", "agreement_%"))
        for role, values in scores.items()
        if (estimate := Estimate.of([_mapping(_mapping(values).get(key)).get("value")])) is not None
    }
    epochs = run.metrics()
    line = Line(
        run.id,
        f"{model}, {SINGLE.get(kind, kind)}",
        "noisy" if has_noise(noise) else "clean" if kind == "distil" and not waits else "model",
        model=model,
        settings=noise_settings(noise),
        seeds=(seed,) if isinstance(seed, int) else (),
        scores=found,
        training_s=Estimate.of([_mapping((result or {}).get("training")).get("seconds")]),
        costs=_mapping((result or {}).get("costs")) or None,
        runs=(run.id,),
        curves=(Curve(seed if isinstance(seed, int) else None, tuple(epochs)),) if epochs else (),
        details=_details(result),
    )
    counts = sizes(scores)
    role = "test" if "test_error_%" in found or "val_error_%" not in found else "val"
    store = run.config.get("store")
    data = _mapping(whole.get("data"))
    return {
        "data": str(data.get("name", "")),
        "n": counts,
        "role": role,
        "student": model,
        "lines": (line,),
        "verdicts": _measured(line, role, counts.get(role)),
        "classes": tuple(map(str, data.get("classes") or (result or {}).get("classes") or ())),
        "stores": (Path(store),) if isinstance(store, str) else (),
        "store_digest": _mapping(run.info.get("parents")).get("store"),
        "noise": noise if has_noise(noise) else None,
        "candidates": candidates_of(choice or None),
        "choice": choice or None,
        "noise_seed": seed if isinstance(seed, int) else 0,
        "batch_size": recipe.get("batch_size") or batch_size(whole),
    }


def _measured(line: Line, role: str, n: int | None) -> tuple[Verdict, ...]:
    """What one model came to; nothing is claimed of noise."""
    error, span = line.error(role), line.span(role, n)
    if error is None:
        return ()
    split = "test" if role == "test" else "validation"
    interval = f" (95 % Wilson interval {span[0]:.2f} to {span[1]:.2f}, n = {n:,} images)" if span else ""
    return (Verdict("", f"{line.title}: {split} error {error.mean:.2f} %{interval}", line),)


def _state_verdicts(run: Run, children: Children, state: str) -> tuple[Verdict, ...]:
    """Of a run that is not done: that it is not, and what is there."""
    if state == "done":
        return ()
    states = [child.state for child in children.named.values()]
    parts = f"; {states.count('done')} of the {len(states)} parts begun so far are done" if states else ""
    if state == "failed":
        why = " ".join((run.error() or "").split())
        return (Verdict("failed", f"this run failed: {why or 'error.txt is empty'}{parts}"),)
    return (
        Verdict(
            "unfinished",
            f"this run is not finished (started {run.started[:16].replace('T', ' ')} UTC{parts}): "
            "what is shown is what was there when the report was made, and nothing is claimed of it",
        ),
    )


def _details(result: Mapping[str, Any] | None) -> dict[str, Details]:
    from noisyteacher.report.children import summed

    return {role: summed([one]) for role, one in _mapping((result or {}).get("details")).items()}


def _noise(run: Run, whole: Mapping[str, Any]) -> Mapping[str, Any]:
    return _mapping(whole.get("noise")) or _mapping(_mapping(run.config.get("objective")).get("noise"))


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
