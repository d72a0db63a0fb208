"""Readers of untrusted files, run in a process with limits on memory and time that may do nothing but read."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import HypothesisWarning

from helpers import SLOWNESS
from noisyteacher.errors import NoisyTeacherError

MEMORY = 256 * 2**20
"""Bytes of memory that reading one file may add to what the process holds."""
ADDRESSES = 2**30
"""Bytes of address space that it may ask for: memory that is taken and never touched."""
SECONDS = 5 * SLOWNESS
"""Of processor time for one file."""
FORBIDDEN = (
    "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "os.remove", "os.rename", "os.rmdir",
    "os.symlink", "os.link", "os.chmod", "os.mkdir", "subprocess.Popen", "socket.connect", "pickle.find_class",
    "shutil.rmtree",
)  # fmt: skip
"""What no reader does, as CPython's audit events call it; nor does one open a file for writing."""


@dataclass(frozen=True)
class Untrusted:
    """A kind of file: what is fuzzed, and what reads it."""

    name: str
    """The name of the file, in a folder that `prepare` has filled."""
    read: Callable[[Path], object]
    ways: tuple[st.SearchStrategy[bytes], ...]
    """How inputs are generated."""
    prepare: Callable[[Path], object] = lambda folder: None
    whole: tuple[bytes, ...] = ()
    """Valid ones."""
    named: bool = True
    """Whether an error has to name the file."""
    writes: bool = False
    """Whether the reader also writes, as a resumed run does."""
    memory: int = MEMORY
    slow: bool = False
    """Whether one input takes tens of milliseconds: fewer are tried."""


@dataclass(frozen=True)
class Input:
    """The bytes of a file; its repr is their number alone."""

    data: bytes

    def __repr__(self) -> str:
        return f"{len(self.data)} bytes"


class SlowError(BaseException):
    """Not an Exception: no reader catches it."""


class _Watch:
    def __init__(self, writes: bool) -> None:
        self.on, self.writes = False, writes
        self.seen: list[str] = []
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        opened = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (opened or event in FORBIDDEN) and not self.writes:
            self.seen.append(f"{event} {arguments!r:.200}")


@cache
def warm_up() -> None:
    """Let hypothesis read the constants of all modules in this process, once; else every fork would do so."""

    @settings(max_examples=20, database=None, deadline=None, derandomize=True, phases=(Phase.generate,))
    @given(st.lists(st.tuples(st.integers(), st.binary(), st.text(), st.floats()), min_size=20, max_size=20))
    def draw(values: object) -> None:
        pass

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HypothesisWarning)
        draw()


def tried(kind: Untrusted, folder: Path, count: int) -> dict[str, int]:
    """{"tried": inputs, "read": those that were read as if nothing were wrong}, all within bounds.

    Raises AssertionError with what was found. The process that reads is a fork of this one: one that dies is found too.
    """
    warm_up()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        report: dict[str, Any] = {"error": "the process ended without an answer"}
        try:
            os.close(reader)
            report = _all(kind, folder, count)
        except BaseException:
            lines = (line[:300] for line in traceback.format_exc().splitlines())
            report = {"error": "\n".join(lines)[-20_000:]}
        finally:
            os.write(writer, json.dumps(report).encode()[:60_000])
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        answer = stream.read()
    _, status = os.waitpid(child, 0)
    last = folder / kind.name
    assert answer, f"a reader ended its process ({os.waitstatus_to_exitcode(status)}); the last input is {last}"
    report = json.loads(answer)
    assert "error" not in report, report["error"]
    return dict(report)


def _all(kind: Untrusted, folder: Path, count: int) -> dict[str, int]:
    counts = {"tried": 0, "read": 0}
    path = folder / kind.name
    kind.prepare(folder)
    for data in kind.whole:
        path.write_bytes(data)
        kind.read(path)
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + ADDRESSES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    base = _peak()
    watch = _Watch(kind.writes)

    def slow(*_: object) -> None:
        raise SlowError(f"more than {SECONDS:g} s of processor time")

    signal.signal(signal.SIGPROF, slow)

    @settings(
        max_examples=count, database=None, deadline=None, derandomize=True,
        suppress_health_check=list(HealthCheck), phases=(Phase.generate, Phase.shrink),
    )  # fmt: skip
    @given(st.one_of(*kind.ways).map(Input))
    def check(example: Input) -> None:
        path.write_bytes(example.data)
        counts["tried"] += 1
        watch.seen.clear()
        refused: NoisyTeacherError | None = None
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        watch.on = True
        try:
            kind.read(path)
            counts["read"] += 1
        except NoisyTeacherError as error:
            refused = error
        finally:
            watch.on = False
            signal.setitimer(signal.ITIMER_PROF, 0)
        if refused is not None:
            assert not kind.named or path.name in str(refused), f"the file is not named: {refused}"
            assert len(str(refused)) < 20_000, f"an error of {len(str(refused))} letters"
            assert not _for_memory(refused), "asked for more memory than there is"
        assert not watch.seen, watch.seen
        grown = _peak() - base
        assert grown <= kind.memory, f"{grown / 2**20:.0f} MiB of memory"

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HypothesisWarning)  # of the length of its output
        check()
    return counts


def _for_memory(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is that of memory that was not to be had."""
    return error is not None and (isinstance(error, MemoryError) or _for_memory(error.__cause__))


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()
