"""The last lines of a compression: what was saved and lost, warnings, where the files lie, what to run next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisyteacher.errors import FileFormatError
from noisyteacher.export.hub import CARD
from noisyteacher.models import HUB_WEIGHTS
from noisyteacher.pipeline.checking import told_of
from noisyteacher.pipeline.predict_script import PREDICT
from noisyteacher.runs import Run
from noisyteacher.text import SPLIT_NAMES, sentence, size_bytes

if TYPE_CHECKING:
    from noisyteacher.pipeline.result import Result, Row

REPORT = "report.html"
_WORDS = {
    "macs": ("fewer MACs", "MORE MACs", "as many MACs"),
    "bytes": ("smaller", "LARGER", "as large"),
    "latency_ms": ("faster", "SLOWER", "as fast"),
}
"""Cost -> words for a student with less of it than the teacher, with more, and with as much."""
_KINDS = {"predict": "runs the ONNX file without noisyteacher", "card": "model card", "report": "report"}


def cost_of(costs: Mapping[str, Any], key: str) -> float | None:
    """One cost of a model (latency: the median); None where it was not measured."""
    value = costs.get(key)
    if key == "latency_ms":
        value = value and value.get("median")
    return None if value is None else float(value)


def gains(teacher: Row, student: Row) -> dict[str, float | None]:
    """Teacher over student for each cost: above 1 the student is cheaper. None where one of them is not known.

    MACs that are only a lower bound are not known.
    """
    found: dict[str, float | None] = {}
    for key in ("macs", "parameters", "bytes", "latency_ms"):
        before, after = cost_of(teacher.costs, key), cost_of(student.costs, key)
        bound = key == "macs" and (teacher.costs.get("unsupported") or student.costs.get("unsupported"))
        found[key] = before / after if before and after and not bound else None
    return found


def compression_verdict(result: Result) -> str:
    """One sentence: how much cheaper than its teacher the student that is handed over is, and what it loses.

    `4.5x fewer MACs, 5.2x smaller, 3.0x faster; test error 4.10 % against the teacher's 3.20 % (n = 600)`.
    """
    row, seed = result.handed_over
    ratios = gains(result.rows[0], row)
    saved = [_ratio(ratio, *_WORDS[key]) for key in _WORDS if (ratio := ratios[key]) is not None]
    if ratios["macs"] is None and ratios["bytes"] is not None:
        saved.append("MACs not comparable")
    split = SPLIT_NAMES[result.role]
    if result.scored == "error":
        lost = f"error {row.errors[seed]:.2f} % against the teacher's {result.rows[0].errors[0]:.2f} %"
    else:
        lost = f"disagreement with the teacher {row.errors[seed]:.2f} %"
    return f"{', '.join(saved) or 'costs unknown'}; {split} {lost} (n = {result.n:,})"


def _ratio(ratio: float, cheaper: str, dearer: str, equal: str) -> str:
    size = f"{max(ratio, 1 / ratio):.1f}"
    return equal if size == "1.0" else f"{size}x {cheaper if ratio > 1 else dearer}"


def warnings_of(result: Result) -> tuple[str, ...]:
    """What a reader must not miss, as the result itself tells it: sentences without their full stop."""
    best = result.best or {}
    found = []
    if best and not best["holds"]:
        found.append(f"validation lost {best['drop']:.2f} points against the teacher, {best['max_drop']:g} are allowed")
    found += [f"{one.name} does not hold: {one.reason}" for one in result.files if not one.holds]
    found += [f"{name} was not written: {reason}" for name, reason in result.failed.items()]
    return (*found, *(told.rstrip(".") for told in told_of(result.checks)))


def paths_of(result: Result) -> dict[str, Any]:
    """Where things lie: `run`, `best` (the student's folder), `weights`, `card`, `predict`, `report`, and `files`.

    `files` has a `path` and `bytes` per exported file. A path is None where there is no such file.
    """
    folder = result.best_student

    def there(path: Path | None) -> str | None:
        return str(path) if path is not None and path.exists() else None

    return {
        "run": str(result.path),
        "best": there(folder),
        "weights": there(folder / HUB_WEIGHTS if folder else None),
        "files": [{"path": str(result.path / one.path), "bytes": one.bytes} for one in result.files],
        "predict": there(folder / PREDICT if folder else None),
        "card": there(folder / CARD if folder else None),
        "report": there(result.path / REPORT),
    }


def next_commands(result: Result) -> list[str]:
    """What to run next with the student that is handed over, as a shell or Python takes it."""
    paths = paths_of(result)
    folder, loads = paths["best"], (result.best or {}).get("loads", "name")
    if folder is None:
        return []
    trusted = loads == "import"
    found = []
    if loads != "module" and not _from_python(result):
        found.append(f"noisyteacher evaluate {shlex.quote(folder)}{' --allow-import' if trusted else ''}")
    elif loads != "module":
        found.append(f"nt.load_model({folder!r}{', allow_import=True' if trusted else ''})  # in Python")
    if paths["predict"] is not None:
        found.append(f"python {shlex.quote(paths['predict'])} IMAGE")
    return found


def _from_python(result: Result) -> bool:
    """Whether the run was started in Python, with data that no command line can name."""
    try:
        return Run(result.path).config.get("call") == "python"
    except FileFormatError:
        return True


def summary(result: Result) -> dict[str, Any]:
    """The last lines as JSON-able fields."""
    return {
        "compression": compression_verdict(result),
        "gains": gains(result.rows[0], result.handed_over[0]),
        "noise": result.verdict,
        "warnings": [sentence(one) for one in result.warnings],
        "paths": paths_of(result),
        "next": next_commands(result),
    }


def closing_lines(result: Result) -> list[str]:
    """The last lines as text: verdicts, warnings, paths with sizes, the next commands."""
    told = summary(result)
    paths = told["paths"]
    lines = [f"Verdict: {told['compression']}."]
    lines += [f"Noise: {told['noise']}."] if told["noise"] else []
    lines += [f"WARNING: {one}." for one in result.warnings]
    lines += ["", f"Run folder: {paths['run']}"]
    listed = [(paths["weights"], _size(paths["weights"]))]
    listed += [(one["path"], size_bytes(one["bytes"])) for one in paths["files"]]
    listed += [(paths[key], what) for key, what in _KINDS.items()]
    lines += [f"  {path} ({what})" for path, what in listed if path]
    lines += ["", "Next:", *(f"  {command}" for command in told["next"])] if told["next"] else []
    return lines


def _size(path: str | None) -> str:
    return "" if path is None else size_bytes(Path(path).stat().st_size)
