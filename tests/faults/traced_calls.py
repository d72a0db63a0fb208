"""Do something in a forked process under strace: count its system calls, kill it at one of them, or let one fail."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

from helpers import PATIENCE, wait_until

MUTATING = (
    "write,pwrite64,writev,fsync,fdatasync,rename,renameat,renameat2,fchmod,chmod,mkdir,mkdirat,unlink,unlinkat,rmdir,"
    "ftruncate"
)
"""The calls that change a disk; with `openat` those of them that create."""
ALL = "all"


@dataclass(frozen=True)
class Outcome:
    """How the process ended: its exit code, or minus the signal that killed it, and the trace where one was asked."""

    code: int
    trace: str


def need_strace() -> None:
    """Skips with a reason where system calls cannot be traced; in CI they must be."""
    reason = ""
    if shutil.which("strace") is None:
        reason = "strace is not installed (apt-get install strace)"
    elif subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, check=False).returncode:
        reason = "strace may not trace here (ptrace is forbidden)"
    if reason:
        leave_out(reason)


def leave_out(reason: str) -> NoReturn:
    """Skips the test with this reason; in CI, which must not leave anything out, it fails."""
    if os.environ.get("CI", "").lower() in ("", "0", "false"):
        pytest.skip(reason)
    pytest.fail(f"{reason}, and CI must not leave this out")


def traced(action: Callable[[], object], log: Path, *options: str) -> Outcome:
    """The action done in a fork of this process, traced from its first system call on; the fork then ends at once.

    Exit code 0: done; 1: it raised a NoisyTeacherError, as it should when a write fails; 70: it raised anything else.
    """
    ready, go = os.pipe()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.close(go)
            os.read(ready, 1)
            action()
            code = 0
        except BaseException as error:
            from noisyteacher.errors import NoisyTeacherError

            code = 1 if isinstance(error, NoisyTeacherError) else 70
            if code == 70:
                traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(ready)
    log.unlink(missing_ok=True)
    tracer = subprocess.Popen(
        ["strace", "-f", "-o", os.fspath(log), *options, "-p", str(child)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert tracer.stderr is not None
        line = tracer.stderr.readline()  # it says so once the process waits for it: nothing is done untraced
        assert "attached" in line, line
        os.write(go, b"!")
        os.close(go)
        code = _waited(child)
        tracer.wait(PATIENCE)
    finally:
        if tracer.poll() is None:
            tracer.kill()
        if tracer.stderr is not None:
            tracer.stderr.close()
    return Outcome(code, log.read_text(errors="replace") if log.exists() else "")


@dataclass(frozen=True)
class Call:
    """One system call of an action: its name, and the how-manieth of that name it is."""

    name: str
    number: int


def calls(action: Callable[[], object], log: Path, kinds: str = ALL) -> list[Call]:
    """The system calls of these kinds that the action makes, in order, without the one it is started by."""
    outcome = traced(action, log, "-e", f"trace={kinds}", "-e", "signal=none")
    assert outcome.code == 0, outcome
    counted: dict[str, int] = {}
    made_calls = []
    for line in outcome.trace.splitlines():
        if matched := re.match(r"\d+ +(\w+)\(", line):
            name = matched[1]
            counted[name] = counted.get(name, 0) + 1
            made_calls.append(Call(name, counted[name]))
    return made_calls[1:] if made_calls and made_calls[0].name == "read" else made_calls


def killed_at(action: Callable[[], object], log: Path, call: Call) -> Outcome:
    """The action, killed (SIGKILL) as it enters this call."""
    return traced(action, log, "-e", f"trace={call.name}", "-e", f"inject={call.name}:signal=KILL:when={call.number}")


def failing_at(action: Callable[[], object], log: Path, call: Call, error: str) -> Outcome:
    """The action, this call of it failing with this errno (ENOSPC, EIO, ...)."""
    return traced(action, log, "-e", f"trace={call.name}", "-e", f"inject={call.name}:error={error}:when={call.number}")


def chosen(points: list[Call], quick: int) -> list[Call]:
    """All of the calls, or, unless all faults are asked for, about `quick` of them, both ends included."""
    if os.environ.get("NOISYTEACHER_FAULTS") == "all" or len(points) <= quick:
        return points
    return [points[round(step * (len(points) - 1) / (quick - 1))] for step in range(quick)]


def _waited(child: int) -> int:
    statuses: list[int] = []

    def ended() -> bool:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            statuses.append(status)
        return bool(pid)

    try:
        wait_until(ended, 0.002)
    finally:
        if not statuses:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(statuses[0])
