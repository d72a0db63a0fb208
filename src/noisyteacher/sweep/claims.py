"""Whose a cell is: one worker's, until nothing was heard of that one for so long that another takes the cell over.

A worker that died has let go of its claim, and one that works shows it by the time of a file. One that stood still
(stopped, swapped out, cut off) does neither. When it wakes, it finds the claim another's before each file that it would
replace, and what it has done is dropped.
"""

from __future__ import annotations

import os
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from noisyteacher.errors import NoisyTeacherError, UsageError
from noisyteacher.files import make_folder, write_bytes
from noisyteacher.locks import alone, guarded, try_lock

BEAT_S, PATIENCE_S = 5.0, 60.0
"""How often a worker shows that it works, and after how long without a sign its cell is another's."""
WAIT_S = 0.5


class LostError(NoisyTeacherError):
    """The cell was given to another worker while this one stood still."""


@contextmanager
def claimed(run: Path) -> Iterator[None]:
    """Inside, the run folder is this worker's to write. Waits while another is at work on it.

    LostError comes out of the first write after another took it over. Where the file system knows no locks, nothing is
    claimed: two workers with one cell write the same.
    """
    place = run.parent / f".{run.name}.claim"
    handle = _taken(place, run)
    if handle is None:
        yield
        return
    done = threading.Event()

    def beat() -> None:
        while not done.wait(BEAT_S):
            with suppress(OSError):  # one sign less: the next one may get through
                os.utime(handle)

    def check() -> None:
        if not _is(place, handle):
            raise LostError(f"{run}: was given to another worker while this one stood still: its work is dropped")

    threading.Thread(target=beat, daemon=True).start()
    try:
        with guarded(run, check):
            yield
    finally:
        done.set()
        if _is(place, handle):
            place.unlink(missing_ok=True)
        os.close(handle)


def _taken(place: Path, run: Path) -> int | None:
    """The claim's file, open and locked; None where files cannot be locked."""
    heard, sign = time.monotonic(), -1
    while True:
        if not place.exists():
            make_folder(place.parent, place.parent)
            write_bytes(place, secrets.token_hex(8).encode())
        handle = try_lock(place)
        if handle is None or (handle >= 0 and _is(place, handle)):
            if handle is not None:
                _free(run)
            return handle
        if handle >= 0:  # it was replaced before it was locked
            os.close(handle)
            continue
        try:
            last = place.stat().st_mtime_ns
        except FileNotFoundError:
            continue
        if last != sign:
            heard, sign = time.monotonic(), last
        elif time.monotonic() - heard > PATIENCE_S:
            write_bytes(place, secrets.token_hex(8).encode())  # another file: its lock is not the other's
        time.sleep(WAIT_S)


def _free(run: Path) -> None:
    """A run folder that the worker before us still holds is put away, and the run begun anew."""
    if not run.exists():
        return
    try:
        with alone(run, wait=False):
            return
    except UsageError:
        away = run.with_name(f".stalled-{run.name}-{secrets.token_hex(3)}")
        run.rename(away)
        shutil.rmtree(away, ignore_errors=True)


def _is(place: Path, handle: int) -> bool:
    """Whether the open file is the one that has this name now."""
    try:
        return os.path.samestat(os.stat(place), os.fstat(handle))
    except FileNotFoundError:
        return False
