"""Whose a folder is at this moment: locks between processes, and what is asked before a file in it is replaced."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # not a POSIX system: writers do not wait for each other there
    fcntl = None  # type: ignore[assignment]

from noisyteacher.errors import UsageError, WriteError

_GUARDS: list[tuple[Path, Callable[[], None]]] = []


def still_ours(path: Path) -> None:
    """Raises what the guards (`guarded`) of the folders around this path say: before it is replaced or removed."""
    for folder, check in list(_GUARDS):
        if folder in path.absolute().parents:
            check()


@contextlib.contextmanager
def alone(folder: Path, wait: bool = True) -> Iterator[None]:
    """Inside, no other process works in this folder; waits for one that does, or, with `wait=False`, refuses.

    The lock is the folder's own (flock), so it leaves no file and ends with the process. Where the file system knows
    no such lock we go on without: files are replaced all at once, and two workers with one task write the same.
    Raises UsageError when it does not wait and should, WriteError when the folder is not there.
    """
    with _locked(folder, wait, shared=False):
        yield


@contextlib.contextmanager
def at_work(*folders: Path) -> Iterator[None]:
    """Inside, something is being done in folders inside these: `alone` waits for it, others at work do not mind."""
    with contextlib.ExitStack() as held:
        for folder in folders:
            held.enter_context(_locked(folder, wait=True, shared=True))
        yield


@contextlib.contextmanager
def guarded(folder: Path, check: Callable[[], None]) -> Iterator[None]:
    """Inside, `check()` comes before any file in the folder is replaced; what it raises leaves the old one there."""
    guard = (folder.absolute(), check)
    _GUARDS.append(guard)
    try:
        yield
    finally:
        _GUARDS.remove(guard)


def try_lock(path: Path) -> int | None:
    """The file, open and locked until it is closed; -1: another has it; None: files cannot be locked here."""
    if fcntl is None:
        return None
    try:
        handle = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return -1
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        return -1 if isinstance(error, BlockingIOError) else None
    return handle


def gone(folder: Path) -> WriteError:
    """The error for a folder that is no longer there."""
    return WriteError(f"{folder}: the folder is gone, removed or moved while it was worked on: start anew")


@contextlib.contextmanager
def _locked(folder: Path, wait: bool, shared: bool) -> Iterator[None]:
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise WriteError(f"{folder}: cannot be opened: {error.strerror or error}") from error
    try:
        if fcntl is not None:
            how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
            try:
                fcntl.flock(handle, how)
            except BlockingIOError as error:
                raise UsageError(
                    f"{folder}: a process is working on it: stop that process, or wait for its end"
                ) from error
            except OSError:  # a file system without locks
                pass
        if not os.path.isdir(folder):
            raise gone(folder)
        yield
    finally:
        os.close(handle)
