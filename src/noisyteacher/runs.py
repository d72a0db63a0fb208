"""Run folders: settings, code versions and machine of a run, and its result (docs/formats.md).

A run's state is read off its files: with `result.json` it is done; with `error.txt`, failed; with neither, unfinished.
A sweep is done although cells of it failed, which its result lists; resuming it trains these again.
There is no index: a folder can be copied or deleted without any other change.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict, cast

from noisyteacher import __version__
from noisyteacher.errors import FileFormatError, MismatchError, UsageError, WriteError
from noisyteacher.io import files
from noisyteacher.io.files import Json, StrPath
from noisyteacher.process import cores
from noisyteacher.text import flat, nearest, plural

SCHEMA = 1
CONFIG, INFO, RESULT, METRICS, ERROR = "config.json", "run.json", "result.json", "metrics.jsonl", "error.txt"
WEIGHTS = "weights.safetensors"
"""The weights that a training kept: the file that it writes last."""
OTHER_WEIGHTS = {"best": "last.safetensors", "last": "best.safetensors"}
"""Which weights a training kept -> the file of those that it did not keep."""
CHECKPOINT, EVENTS, LOGITS, BEST = "checkpoint", "events", "logits", "best"
"""Folders: the state of an unfinished training, TensorBoard's files, stored logits, the student handed over."""
RESERVED = {BEST, CHECKPOINT, EVENTS, LOGITS, CONFIG, INFO, RESULT, METRICS, ERROR, WEIGHTS, *OTHER_WEIGHTS.values()}
"""Names that a child run cannot have."""
TITLE_LENGTH = 92
"""Characters of a title in a folder's name, which then has 136 at most: some file systems allow 143."""
ABSENT = "(absent)"
"""Stands for a missing value in a difference."""
Command = str | Sequence[str] | None


class RunInfo(TypedDict):
    """The content of run.json. host: the machine, without its name; started: ISO 8601 UTC."""

    kind: str
    name: str
    parents: Json
    seed: int | None
    command: str | list[str] | None
    versions: dict[str, str]
    host: dict[str, str | int | None]
    started: str


class Run:
    """One run folder. Files are read on access, so that a damaged run can still be listed."""

    def __init__(self, path: StrPath) -> None:
        self.path = Path(path)

    @classmethod
    def open(cls, path: StrPath) -> Run:
        """The run in this folder. Raises FileFormatError unless it is a run folder with readable config and info."""
        run = cls(path)
        if not is_run(run.path):
            raise FileFormatError(f"{run.path}: not a run folder: no {INFO} in it")
        _ = run.config, run.info
        return run

    @property
    def ancestors(self) -> list[Path]:
        """The folders of the runs that contain this run, the outermost first; none unless it is a child."""
        parent = self.path.absolute().parent
        return [*Run(parent).ancestors, parent] if is_run(parent) else []

    @property
    def id(self) -> str:
        """The folder's name; for a child run the parent's id, a slash, and the child's name."""
        return "/".join(path.name for path in (*self.ancestors, self.path.absolute()))

    @cached_property
    def config(self) -> Json:
        """The resolved config of the run. Raises FileFormatError."""
        return self._read(CONFIG, "run-config", "config")

    @cached_property
    def info(self) -> RunInfo:
        """Kind, name, parents, seed, command, versions, host and start of the run. Raises FileFormatError."""
        info = self._read(INFO, "run", "run")
        if missing := RunInfo.__required_keys__ - info.keys():
            raise FileFormatError(f"{self.path / INFO}: without {', '.join(sorted(missing))}")
        return cast("RunInfo", info)

    @property
    def state(self) -> str:
        """`done`, `failed`, `unfinished`; or `damaged` when one of its files cannot be read."""
        try:
            self.check()
        except FileFormatError:
            return "damaged"
        if os.path.exists(self.path / RESULT):
            return "done"
        return "failed" if os.path.exists(self.path / ERROR) else "unfinished"

    def check(self) -> None:
        """Raises FileFormatError that names the file where the run is damaged."""
        _ = self.config, self.info, self.result()

    @property
    def started(self) -> str:
        """When the run was started, ISO 8601 UTC; empty for a damaged run."""
        try:
            return self.info["started"]
        except FileFormatError:
            return ""

    @property
    def finished(self) -> str | None:
        """When the result was written, ISO 8601 UTC, or None. Raises FileFormatError."""
        file = self.path / RESULT
        return str(files.read_json(file, "run-result", SCHEMA).get("finished")) if os.path.exists(file) else None

    def result(self) -> Json | None:
        """The argument of `write_result`, or None until the run is done. Raises FileFormatError."""
        return self._read(RESULT, "run-result", "result") if os.path.exists(self.path / RESULT) else None

    def _read(self, name: str, kind: str, key: str) -> Json:
        content = files.read_json(self.path / name, kind, SCHEMA).get(key)
        if not isinstance(content, dict):
            raise FileFormatError(f"{self.path / name}: no table {key!r} in it")
        return content

    def write_result(self, result: Json) -> None:
        """Write result.json, the LAST file: the run is done. A number that is not finite becomes null."""
        finished = datetime.now(UTC).isoformat(timespec="microseconds")
        content = {"result": as_json(result, "result", null_for_nan=True), "finished": finished}
        files.write_json(self.path / RESULT, "run-result", SCHEMA, content, self.path)

    def error(self) -> str | None:
        """The text of error.txt, or None."""
        file = self.path / ERROR
        return files.read_bytes(file, files.MAX_TEXT).decode(errors="replace") if os.path.exists(file) else None

    def write_error(self, text: str) -> None:
        """Write error.txt (UTF-8): the run failed, and why."""
        files.write_bytes(self.path / ERROR, (text.rstrip("\n") + "\n").encode(errors="backslashreplace"), self.path)

    def clear_error(self) -> None:
        """Remove error.txt: the run is resumed."""
        files.remove_files(self.path, [self.path / ERROR])

    @contextlib.contextmanager
    def lock(self, *, shared: bool = False, wait: bool = True) -> Iterator[None]:
        """Lock the run's folder (`io.files.lock`), and keep the runs that contain it from being removed.

        Without `shared`, temporary files that a killed process left in the folder of an unfinished run are removed.
        """
        with contextlib.ExitStack() as locks:
            for folder in self.ancestors:
                locks.enter_context(files.lock(folder, shared=True, wait=wait))
            locks.enter_context(files.lock(self.path, shared=shared, wait=wait))
            if not shared and not os.path.exists(self.path / RESULT):
                files.remove_files(self.path, files.temporary_files(self.path))
            yield

    def metrics(self) -> list[Json]:
        """The lines of metrics.jsonl; none without the file. Raises FileFormatError naming file and line."""
        file = self.path / METRICS
        lines: list[Json] = []
        for number, text in enumerate(files.read_bytes(file, files.MAX_TEXT).splitlines() if file.exists() else (), 1):
            try:
                lines.append(dict(files.parse_json(text)))
            except (ValueError, TypeError) as error:
                raise FileFormatError(f"{file}: line {number} is not a JSON object: {error}") from error
        return lines

    def write_metrics(self, lines: Sequence[Json]) -> None:
        """Replace metrics.jsonl by these epochs, one JSON object a line. A number that is not finite becomes null."""
        texts = [json.dumps(line, ensure_ascii=False) + "\n" for line in as_json(lines, "metrics", null_for_nan=True)]
        files.write_bytes(self.path / METRICS, "".join(texts).encode(), self.path)

    def children(self) -> list[Run]:
        """The runs directly inside this one, by name."""
        return [run for run in _runs_in(self.path) if not run.path.is_symlink()]

    def child(self, name: str, kind: str, config: Json, parents: Json | None = None, seed: int | None = None) -> Run:
        """The run of this name inside this one: created, or reopened if its kind, config, parents and seed are equal.

        Raises MismatchError naming what differs, FileFormatError if damaged, UsageError for a reserved name.
        """
        if name != folder_name(name, 120) or name in RESERVED:
            raise UsageError(f"{name!r} cannot name a child run: use letters, digits, '.', '_' and '-', 120 at most")
        files.make_folder(self.path, within=self.path)
        folder = self.path / name
        if not is_run(folder):
            try:
                return _create(folder, kind, name, config, parents, seed, None)
            except WriteError:
                if not is_run(folder):  # else another process was faster
                    raise
        run = Run.open(folder)
        existing = {"config": run.config, **{key: run.info.get(key) for key in ("kind", "parents", "seed")}}
        requested = {"config": config, "kind": kind, "parents": parents or {}, "seed": seed}
        if differences := compare(existing, as_json(requested, "config")):
            text = "; ".join(f"{key} is {old!r} there, {new!r} now" for key, old, new in differences[:4])
            raise MismatchError(f"{folder}: exists with other settings: {text}; remove it or use another name")
        return run


def new_run(
    output_dir: StrPath,
    kind: str,
    name: str,
    config: Json,
    parents: Json | None = None,
    seed: int | None = None,
    command: Command = None,
    title: str | None = None,
) -> Run:
    """A new run folder in `output_dir`, named like 20261122T1246Z-distil-mlp800-7f3a9c (title: by default the name).

    Raises UsageError for a value that JSON cannot hold, WriteError when the disk refuses.
    """
    minute = datetime.now(UTC).strftime("%Y%m%dT%H%MZ")
    middle = folder_name(name, 60) if title is None else folder_name(title, TITLE_LENGTH)
    folder = f"{minute}-{folder_name(kind, 20)}-{middle}-{secrets.token_hex(3)}"
    return _create(Path(output_dir) / folder, kind, name, config, parents, seed, command)


def _create(
    folder: Path, kind: str, name: str, config: Json, parents: Json | None, seed: int | None, command: Command
) -> Run:
    """The run in this folder, which appears with both its files in it or not at all."""
    started = datetime.now(UTC).isoformat(timespec="microseconds")
    origin = {"kind": kind, "name": name, "parents": parents or {}, "seed": seed, "command": command}
    info = as_json({**origin, "versions": versions(), "host": host(), "started": started}, "run")
    config = as_json(config, "config")
    draft = folder.with_name(f".new-{secrets.token_hex(6)}")
    try:
        files.write_json(draft / CONFIG, "run-config", SCHEMA, {"config": config})
        files.write_json(draft / INFO, "run", SCHEMA, {"run": info})
        with files.write_errors(folder):
            draft.rename(folder)
        files.sync_folder(folder.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return Run(folder)


def is_run(path: Path) -> bool:
    """Whether this is a run folder: it has a run.json, readable or not."""
    return os.path.isdir(path) and os.path.lexists(path / INFO)


def folder_name(text: str, length: int) -> str:
    """The text as a folder's name, cut to the length. `folder_name("hf:./net", 20) == "hf-.-net"`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:length].strip("-.") or "run"


def _runs_in(folder: StrPath) -> list[Run]:
    """The runs directly in the folder by name; none where it cannot be read."""
    try:
        return [Run(path) for path in sorted(Path(folder).iterdir()) if path.name[0] != "." and is_run(path)]
    except OSError:
        return []


def list_runs(output_dir: StrPath, depth: int = 3) -> list[Run]:
    """All runs of the folder and the runs inside them, down to `depth` levels, newest first; damaged ones too."""
    level, runs = _runs_in(output_dir), []
    for _ in range(depth):
        runs += level
        level = [child for run in level for child in run.children()]
    return sorted(runs, key=lambda run: (run.started, run.id), reverse=True)


def find_run(output_dir: StrPath, name: StrPath) -> Run:
    """The run with this path or id, or the only one whose id, or hash (three characters or more), starts with it.

    A child is `PARENT/NAME`, where both may be shortened. Raises UsageError when no run or several match.
    """
    text = os.fspath(name).rstrip("/")
    if text and is_run(Path(text)):
        return Run(text)
    parent, _, part = text.rpartition("/")
    runs = {run.path.name: run for run in (find_run(output_dir, parent).children() if parent else _runs_in(output_dir))}
    if part in runs:
        return runs[part]
    matches = [run for run in runs if part and (run.startswith(part) or run.endswith(f"-{part}"))]
    if not matches and len(part) >= 3:
        matches = [run for run in runs if run.rpartition("-")[2].startswith(part)]
    if len(matches) == 1:
        return runs[matches[0]]
    where = parent or Path(output_dir)
    if matches:
        raise UsageError(f"{text!r} may mean {len(matches)} runs of {where}: {', '.join(sorted(matches)[:5])}")
    close = nearest(part, runs)
    hint = f"did you mean {close!r}?" if close else f"list the {plural(len(runs), 'run')} there by noisyteacher runs ls"
    raise UsageError(f"no run {text!r} in {where}: {hint}")


def remove_run(run: Run) -> None:
    """Delete the run's folder with everything in it; targets of links stay.

    Raises UsageError for a link, a folder without a readable run.json, and a run in use; WriteError from the disk.
    """
    path = run.path.absolute()
    if path.is_symlink():
        raise UsageError(f"{path}: a link to a folder, not removed: remove the link, or name the folder itself")
    try:
        _ = Run(path).info
    except FileFormatError as error:
        raise UsageError(f"{path}: not a run folder, not removed ({error}): delete the folder yourself") from error
    trash = path.with_name(f".removed-{path.name}-{secrets.token_hex(3)}")  # an interruption leaves no half run
    with contextlib.ExitStack() as locks:
        for folder in (*run.ancestors, path):
            locks.enter_context(files.lock(folder, wait=False))
        with files.write_errors(path, "removed"):
            path.rename(trash)
        with files.write_errors(trash, "removed"):  # the run is gone from the list, this folder is what is left of it
            shutil.rmtree(trash)
            files.sync_folder(path.parent)


def diff_runs(a: Run, b: Run) -> list[tuple[str, Any, Any]]:
    """Where two runs' settings differ, as `compare` returns it."""
    return compare(by_name(a.config), by_name(b.config))


def compare(a: Json, b: Json) -> list[tuple[str, Any, Any]]:
    """The (dotted key, value in a, value in b) that differ, by key, like ("noise.sigma", 0.6, 0.9); ABSENT for none."""
    first, second = flat(a), flat(b)
    pairs = ((key, first.get(key, ABSENT), second.get(key, ABSENT)) for key in sorted({**first, **second}))
    return [(key, old, new) for key, old, new in pairs if old != new or type(old) is not type(new)]


def by_name(config: Mapping[str, Any]) -> Json:
    """A run's settings at the top level: a training has them under `config`, a sweep under `base`."""
    key = next((key for key in ("config", "base") if isinstance(config.get(key), dict)), None)
    top = {name: value for name, value in config.items() if name != key}
    return top if key is None else {**config[key], **top}


def as_json(value: Any, where: str, null_for_nan: bool = False) -> Any:
    """The value as JSON returns it: tuples as lists, paths as text, dataclasses as tables, scalar tensors as numbers.

    Raises UsageError naming `where` for anything else, and for numbers that are not finite and may not become null.
    """
    try:
        text = json.dumps(value, default=_as_json_type, allow_nan=null_for_nan)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where}: only text, finite numbers, lists and tables can be recorded: {error}") from error
    return json.loads(text, parse_constant=lambda constant: None)


def _as_json_type(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if getattr(value, "ndim", None) == 0:  # a scalar of numpy or torch
        return value.item()
    raise TypeError(f"a {type(value).__name__} is none of these")


def versions() -> dict[str, str]:
    """The versions that can change a number."""
    torch, numpy = (importlib.metadata.version(name) for name in ("torch", "numpy"))
    return {"python": platform.python_version(), "noisyteacher": __version__, "torch": torch, "numpy": numpy}


def host() -> dict[str, str | int | None]:
    """This machine. cores: that this process may use; threads: torch's; gpu: None without one."""
    import torch  # only a new run needs these; listing runs must start fast

    from noisyteacher.bench import processor

    return {
        "cpu": processor(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "platform": platform.platform(),
    }
