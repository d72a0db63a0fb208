"""Folders of runs: list them, find one, compare two, remove one."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from noisyteacher.errors import FileFormatError, UsageError, WriteError
from noisyteacher.io.files import sync_folder
from noisyteacher.io.locks import exclusive_lock
from noisyteacher.runs.record import by_name, compare
from noisyteacher.runs.run import BEST, INFO, Run, is_run, visible_folders
from noisyteacher.text import nearest

HASH = 3
"""So many characters of the hash at the end of a run's id are enough to name it."""
_OURS = (
    r"(config|run|result|conditions|plan|store)\.json|metrics\.jsonl|error\.txt|report\.html|"
    r"(weights|last|best|state|shard-\d{5,})\.safetensors|events\.out\.tfevents\..*"
)
_HANDED_OVER = (
    r"README\.md|predict\.py|config\.json|model\.safetensors|model(-int8)?\.(onnx|pt2|pte)|[A-Za-z0-9.-]+\.export\.json"
)
"""Names of files in a compression's folder `best`, and in `best/hub`; elsewhere they may be anybody's."""
_HALF_WRITTEN = re.compile(r"\.(.+)\.[^.]*\.tmp")


def list_runs(output_dir: str | os.PathLike[str], depth: int = 3) -> list[Run]:
    """All runs of the folder and the runs inside them, down to `depth` levels, newest first; none if it is missing.

    Never fails on a damaged run: it is listed, and its state says so.
    """
    found = list(_walk(Path(output_dir), depth))
    return sorted(found, key=lambda run: (run.started, run.id), reverse=True)


def find_run(output_dir: str | os.PathLike[str], which: str | os.PathLike[str]) -> Run:
    """The run with this path, this id, the only one whose id starts like this, or whose hash does.

    The hash is what follows the last `-` of an id; of it HASH characters or more are needed. A child is `PARENT/NAME`,
    where both may be shortened. Raises UsageError when none or several are meant.
    """
    text = os.fspath(which).rstrip("/")
    if text and is_run(Path(text)):
        return Run(text)
    parent, _, last = text.rpartition("/")
    runs = find_run(output_dir, parent).children() if parent else list(_walk(Path(output_dir), 1))
    names = {run.path.name: run for run in runs}
    if last in names:
        return names[last]
    meant = [name for name in names if last and (name.startswith(last) or name.endswith(f"-{last}"))]
    if not meant and len(last) >= HASH:
        meant = [name for name in names if name.rpartition("-")[2].startswith(last)]
    if len(meant) == 1:
        return names[meant[0]]
    where = f"{parent or Path(output_dir)}"
    if meant:
        raise UsageError(f"{text!r} may mean {len(meant)} runs of {where}: {', '.join(sorted(meant)[:5])}")
    close = nearest(last, names)
    hint = f"did you mean {close!r}?" if close else f"there are {len(names)} runs there"
    raise UsageError(f"no run {text!r} in {where}: {hint}")


def diff_runs(a: Run, b: Run) -> list[tuple[str, Any, Any]]:
    """Where two runs' settings differ: (dotted key, value in a, value in b) by key; ABSENT where there is none."""
    return compare(by_name(a.config), by_name(b.config))


def remove_run(run: Run) -> None:
    """Delete the run's folder with all that is in it; a link in it is removed, what it leads to stays.

    The folder is renamed first, so an interrupted removal leaves no half run behind. A folder whose run.json is gone or
    damaged is removed only where it holds nothing but files of runs. Raises UsageError for something that is not
    a run folder, is a link to one, or is being worked on, itself, a run in it or the run around it; WriteError when the
    disk refuses.
    """
    path = run.path.absolute()
    if path.is_symlink():
        raise UsageError(f"{path}: a link to a folder, not removed: remove the link, or name the folder itself")
    if not is_run(path):
        raise UsageError(f"{path}: not a run folder (no {INFO} in it), not removed")
    try:
        _ = run.info
    except FileFormatError:
        foreign = next(_foreign(path), None)
        if foreign is not None:
            raise UsageError(
                f"{path}: not removed: it has no readable {INFO}, and {foreign} is no file of a run: move what is "
                "yours elsewhere, or remove the folder yourself"
            ) from None
    grave = path.with_name(f".removed-{path.name}-{secrets.token_hex(3)}")
    with ExitStack() as locks:
        for folder in (*run.around, path):
            locks.enter_context(exclusive_lock(folder, wait=False))
        try:
            path.rename(grave)
            shutil.rmtree(grave)
            sync_folder(path.parent)
        except OSError as error:
            raise WriteError(f"{path}: cannot be removed: {error.strerror or error}") from error


def _foreign(folder: Path) -> Iterator[Path]:
    """The files in the folder, at any depth, that no run has written; links are among them."""
    for here, folders, names in os.walk(folder):
        known = _OURS
        if Path(here).relative_to(folder).parts in ((BEST,), (BEST, "hub")):
            known = f"{_OURS}|{_HANDED_OVER}"
        links = [name for name in folders if os.path.islink(os.path.join(here, name))]
        for name in sorted([*names, *links]):
            half_written = _HALF_WRITTEN.fullmatch(name)
            if not any(re.fullmatch(known, whole) for whole in (name, half_written[1] if half_written else name)):
                yield Path(here, name)


def _walk(folder: Path, depth: int) -> Iterator[Run]:
    """The runs in the folder, each followed by those inside it; links inside a run are not followed."""
    for path in visible_folders(folder):
        if is_run(path):
            yield Run(path)
            yield from _inside(Run(path), depth - 1)


def _inside(run: Run, depth: int) -> Iterator[Run]:
    for child in run.children() if depth > 0 else ():
        yield child
        yield from _inside(child, depth - 1)
