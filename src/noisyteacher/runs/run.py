"""One run folder: made whole, read when asked, its state read off its files."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from noisyteacher.errors import FileFormatError, MismatchError, UsageError, WriteError
from noisyteacher.io.files import (
    MAX_TEXT,
    make_folder,
    parse_json,
    read_bytes,
    read_json,
    sha256,
    sync_folder,
    write_bytes,
    write_json,
)
from noisyteacher.runs.record import compare, host, plain, versions

SCHEMA = 1
CONFIG, INFO, RESULT, METRICS, ERROR = "config.json", "run.json", "result.json", "metrics.jsonl", "error.txt"
BEST = "best"
"""The folder in a compression with the student that is handed over."""
RESERVED = frozenset(
    {
        BEST,
        "checkpoint",
        "events",
        "weights.safetensors",
        "last.safetensors",
        "best.safetensors",
        "logits",
        CONFIG,
        INFO,
        RESULT,
        METRICS,
        ERROR,
    }
)
TITLE = 92
"""Characters of a title in a run folder's name, which then has 136 at most: some file systems allow 143."""
_ID = re.compile(r"\d{8}T\d{4}Z-.+")


class Run:
    """One run folder. Files are read when asked for, so a damaged run can still be listed and removed."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Run:
        """The run in this folder. Raises FileFormatError unless it is a run folder with readable config and info."""
        run = cls(path)
        if not is_run(run.path):
            raise FileFormatError(f"{run.path}: not a run folder: no {INFO} in it")
        _ = run.config, run.info
        return run

    def __repr__(self) -> str:
        return f"Run({self.id}: {self.state})"

    @property
    def id(self) -> str:
        """The folder's name; of a child run the parent's id, a slash, and the child's name."""
        whole = self.path.absolute()
        return f"{Run(whole.parent).id}/{whole.name}" if is_run(whole.parent) else whole.name

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved config the run was made with. Raises FileFormatError."""
        return _section(self.path / CONFIG, "run-config", "config")

    @cached_property
    def info(self) -> dict[str, Any]:
        """Who and where: kind, name, parents, seed, command, versions, host, started. Raises FileFormatError."""
        return _section(self.path / INFO, "run", "run")

    @property
    def state(self) -> str:
        """`done`, `failed`, `unfinished`; or `damaged` when a file that should tell cannot be read."""
        try:
            self.check()
        except FileFormatError:
            return "damaged"
        if os.path.exists(self.path / RESULT):
            return "done"
        return "failed" if os.path.exists(self.path / ERROR) else "unfinished"

    @property
    def around(self) -> list[Path]:
        """The folders of the runs that this run lies in, the outermost first; none unless it is a child."""
        parent = self.path.absolute().parent
        return [*Run(parent).around, parent] if is_run(parent) else []

    def check(self) -> None:
        """Raises FileFormatError that names the file where the run is damaged."""
        _ = self.config, self.info
        self.result()

    @property
    def started(self) -> str:
        """When the run was made, ISO 8601 UTC; of a damaged run when its folder was changed last."""
        try:
            return str(self.info["started"])
        except (FileFormatError, KeyError):
            try:
                return _iso(datetime.fromtimestamp(self.path.stat().st_mtime, UTC))
            except OSError:
                return ""

    @property
    def finished(self) -> str | None:
        """When the result was written, ISO 8601 UTC, or None. Raises FileFormatError."""
        if not os.path.exists(self.path / RESULT):
            return None
        return str(read_json(self.path / RESULT, "run-result", SCHEMA).get("finished"))

    def result(self) -> dict[str, Any] | None:
        """What `write_result` was given, or None while the run is not done. Raises FileFormatError."""
        return _section(self.path / RESULT, "run-result", "result") if os.path.exists(self.path / RESULT) else None

    def write_result(self, result: dict[str, Any]) -> None:
        """Write result.json, the LAST file: the run is done. A number that is not finite becomes null."""
        content = {"result": plain(result, "result", null_for_nan=True), "finished": _iso(datetime.now(UTC))}
        write_json(self.path / RESULT, "run-result", SCHEMA, content, self.path)

    def write_error(self, text: str) -> None:
        """Write error.txt (UTF-8): the run failed, and this is why."""
        write_bytes(self.path / ERROR, (text.rstrip("\n") + "\n").encode(errors="backslashreplace"), self.path)

    def error(self) -> str | None:
        """The text of error.txt, or None."""
        file = self.path / ERROR
        return read_bytes(file, MAX_TEXT).decode(errors="replace") if os.path.exists(file) else None

    def clear_error(self) -> None:
        """Remove error.txt: the run is taken up again."""
        try:
            (self.path / ERROR).unlink(missing_ok=True)
            sync_folder(self.path)
        except OSError as error:
            raise WriteError(f"{self.path / ERROR}: cannot be removed: {error.strerror or error}") from error

    def write_metrics(self, lines: Sequence[dict[str, Any]]) -> None:
        """Replace metrics.jsonl by these epochs, one JSON object a line. A number that is not finite becomes null."""
        texts = [json.dumps(plain(line, "metrics", null_for_nan=True), ensure_ascii=False) + "\n" for line in lines]
        write_bytes(self.path / METRICS, "".join(texts).encode(), self.path)

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; none when there is no such file. Raises FileFormatError naming file and line."""
        file = self.path / METRICS
        if not file.exists():
            return []
        found: list[dict[str, Any]] = []
        for number, line in enumerate(read_bytes(file, MAX_TEXT).splitlines(), 1):
            try:
                found.append(dict(parse_json(line)))
            except (ValueError, TypeError) as error:
                raise FileFormatError(f"{file}: line {number} is not a JSON object: {error}") from error
        return found

    def child(
        self,
        name: str,
        kind: str,
        config: dict[str, Any],
        *,
        parents: dict[str, Any] | None = None,
        seed: int | None = None,
        command: str | Sequence[str] | None = None,
    ) -> Run:
        """The run of this name inside this one: made, or reopened when it is there with equal kind, config, parents and
        seed, so that a sweep can be gone on with. Raises MismatchError naming what differs, FileFormatError if damaged.
        """
        if name != folder_name(name, 120) or name in RESERVED:
            raise UsageError(
                f"{name!r} cannot name a child run: use letters, digits, '.', '_' and '-', 120 at most, and not "
                f"{', '.join(sorted(RESERVED))}"
            )
        folder = self.path / name
        make_folder(folder.parent, self.path)
        asked = _asked(kind, config, parents, seed)
        if not is_run(folder):
            with contextlib.suppress(FileExistsError):  # another process was faster
                return _make(folder, name, asked, command)
        run = Run.open(folder)
        found = {"config": run.config, **{key: run.info.get(key) for key in ("kind", "parents", "seed")}}
        differences = compare(found, asked)
        if differences:
            told = "; ".join(f"{key} is {old!r} there, {new!r} now" for key, old, new in differences[:4])
            raise MismatchError(
                f"{folder}: a run of this name was made otherwise: {told}; remove it or use another name"
            )
        return run

    def children(self) -> list[Run]:
        """The runs directly inside this one, by name."""
        return [Run(folder) for folder in visible_folders(self.path) if is_run(folder) and not folder.is_symlink()]


def new_run(
    output_dir: str | os.PathLike[str],
    kind: str,
    name: str,
    config: dict[str, Any],
    parents: dict[str, Any] | None = None,
    seed: int | None = None,
    command: str | Sequence[str] | None = None,
    title: str | None = None,
) -> Run:
    """A new run folder in `output_dir` with config.json and run.json, named like 20261122T1246Z-distil-mlp800-7f3a9c.

    UTC minute, kind, title (by default the name), six random-looking digits. Raises UsageError naming the key of
    a value that JSON cannot hold, WriteError when the disk refuses.
    """
    asked = _asked(kind, config, parents, seed)
    minute = datetime.now(UTC).strftime("%Y%m%dT%H%MZ")
    while True:
        salt = sha256([json.dumps(asked["config"], sort_keys=True).encode(), secrets.token_bytes(8)])[:6]
        middle = folder_name(name, 60) if title is None else folder_name(title, TITLE)
        folder = Path(output_dir) / f"{minute}-{folder_name(kind, 20)}-{middle}-{salt}"
        try:
            return _make(folder, name, asked, command)
        except FileExistsError:
            continue


def visible_folders(folder: Path) -> list[Path]:
    """The folders in this one by name, without the hidden ones; none where it cannot be read."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.is_dir())
    except OSError:
        return []


def is_run(path: Path) -> bool:
    """Whether this is a run folder: it has a run.json, or the name of one that has lost it.

    A config.json alone says nothing: other programs' model folders have one, and a run folder may be deleted.
    """
    return os.path.isdir(path) and (bool(_ID.fullmatch(path.name)) or os.path.isfile(path / INFO))


def _make(folder: Path, name: str, asked: dict[str, Any], command: str | Sequence[str] | None) -> Run:
    """The run in this folder, which appears with both its files in it or not at all. Raises FileExistsError."""
    make_folder(folder.parent)
    draft = folder.with_name(f".new-{secrets.token_hex(6)}")
    info = {
        "kind": asked["kind"],
        "name": name,
        "parents": asked["parents"],
        "seed": asked["seed"],
        "command": command if command is None or isinstance(command, str) else list(command),
        "versions": versions(),
        "host": host(),
        "started": _iso(datetime.now(UTC)),
    }
    try:
        write_json(draft / CONFIG, "run-config", SCHEMA, {"config": asked["config"]})
        write_json(draft / INFO, "run", SCHEMA, {"run": info})
        draft.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise FileExistsError(folder) from error
        raise WriteError(f"{folder}: cannot be made: {error.strerror or error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return Run(folder)


def _asked(kind: str, config: dict[str, Any], parents: dict[str, Any] | None, seed: int | None) -> dict[str, Any]:
    """What makes a run the one that is meant, as JSON will give it back."""
    return {"config": plain(config, "config"), "kind": kind, "parents": plain(parents or {}, "parents"), "seed": seed}


def _section(file: Path, kind: str, key: str) -> dict[str, Any]:
    content = read_json(file, kind, SCHEMA).get(key)
    if not isinstance(content, dict):
        raise FileFormatError(f"{file}: no table {key!r} in it")
    return content


def folder_name(text: str, length: int) -> str:
    """The text as the name of a folder, or a part of one. `folder_name("hf:./net", 20) == "hf-.-net"`.

    Letters, digits, '.', '_' and '-' stay; it is cut to the length.
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:length].strip("-.") or "run"


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds")
