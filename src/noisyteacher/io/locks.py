"""Locks on folders between processes: exclusive for one writer, shared for those who only need the folder to stay.

A lock is the folder's own (flock): it leaves no file behind, and the system frees it when its process ends, however it
ends. On a file system without such locks nothing is locked; files are still replaced whole.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

from noisyteacher.errors import UsageError, WriteError


@contextlib.contextmanager
def exclusive_lock(folder: Path, wait: bool = True) -> Iterator[None]:
    """Hold the folder's exclusive lock: no other process works in it meanwhile.

    Waits for the processes that hold a lock on it, or, with `wait=False`, raises UsageError. Raises WriteError when
    the folder is missing.
    """
    with _locked(folder, wait, shared=False):
        yield


@contextlib.contextmanager
def shared_lock(*folders: Path) -> Iterator[None]:
    """Hold shared locks on the folders: any number of processes may, and `exclusive_lock` waits for all of them."""
    with contextlib.ExitStack() as stack:
        for folder in folders:
            stack.enter_context(_locked(folder, wait=True, shared=True))
        yield


def missing_folder(folder: Path) -> WriteError:
    """The error for a folder that was removed while it was in use."""
    return WriteError(f"{folder}: the folder is gone, removed or moved while it was worked on: start again")


@contextlib.contextmanager
def _locked(folder: Path, wait: bool, shared: bool) -> Iterator[None]:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise WriteError(f"{folder}: cannot be opened: {error.strerror or error}") from error
    try:
        if fcntl is not None:
            try:
                fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError as error:
                raise UsageError(
                    f"{folder}: a process is working on it: stop that process, or wait for it to end"
                ) from error
            except OSError:  # a file system without locks
                pass
        if not os.path.isdir(folder):
            raise missing_folder(folder)
        yield
    finally:
        os.close(descriptor)
