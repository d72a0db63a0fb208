"""Progress on stderr, for the command line and for Python alike: a live line in a terminal, a few lines in a log."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import ParamSpec, Protocol

from noisyteacher.errors import UsageError
from noisyteacher.text import duration, lines_shown, shown

P = ParamSpec("P")
Watch = Callable[[str, int, int, str], None]
"""Told of progress: the stage, how much of it is done, how much there is in all, a note for people.

A stage of which nothing is known but that it runs goes from 0 of 1 to 1 of 1. `plan` and `warning` are no stages: their
note is a sentence to be shown.
"""
MESSAGES = ("plan", "warning")
REDRAW_S = 0.1
"""A live line is drawn anew at most this often."""
BRIEF_S = 1.0
"""Stages shorter than this leave no line behind in a terminal."""
PATIENCE_S = 2.0
"""What a call from Python that takes less than this writes to a log: nothing."""


class Display(Protocol):
    """Shows what it is told, and is closed at the end."""

    def __call__(self, stage: str, done: int, total: int, note: str) -> None:
        """As `Watch`."""

    def close(self) -> None:
        """Leave the stream ready for whatever is written next."""


def display(delay_s: float = 0.0, every_s: float = 10.0) -> Display:
    """A live line where stderr is a terminal, else lines for a log: none in the first `delay_s` seconds, then one when
    a stage begins, one every `every_s` seconds and one when a stage ends.
    """
    live = sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    return LiveLine() if live else LogLines(delay_s, every_s)


@contextmanager
def reported(
    progress: bool | Callable[P, None] | None, adapt: Callable[[Watch], Callable[P, None]], delay_s: float = PATIENCE_S
) -> Iterator[Callable[P, None] | None]:
    """Yields what a function calls to report its progress, given its argument `progress`.

    True: a display on stderr, through `adapt`, which makes the function's own kind of callback of a Watch. A callable:
    itself. False or None: None. Raises UsageError for anything else.
    """
    if progress is False or progress is None:
        yield None
    elif progress is not True:
        if not callable(progress):
            raise UsageError(f"progress={progress!r}: expected True, False, or a function to call")
        yield progress
    else:
        shows = display(delay_s)
        try:
            yield adapt(shows)
        finally:
            shows.close()


@contextmanager
def stage(watch: Watch | None, title: str, note: str = "") -> Iterator[None]:
    """Inside, this stage runs; what is known of it is only when it begins and ends."""
    if watch is not None:
        watch(title, 0, 1, note)
    yield
    if watch is not None:
        watch(title, 1, 1, note)


def message(watch: Watch | None, kind: str, words: str) -> None:
    """Show a sentence at once; `kind` is one of MESSAGES."""
    if watch is not None:
        watch(kind, 1, 1, words)


def counted(watch: Watch, title: str, what: str) -> Callable[[int, int], None]:
    """A callback (done, in all) that reports one stage; `what` is counted, as in `300 of 1,200 answers`."""
    return lambda done, total: watch(title, done, total, f"{done:,} of {total:,} {what}")


def counted_if_slow(watch: Watch | None, title: str, what: str) -> Callable[[int, int], None] | None:
    """The same, silent where the stage is over within a second; None where nobody watches."""
    if watch is None:
        return None
    begun, reports, report = time.monotonic(), False, counted(watch, title, what)

    def tell(done: int, total: int) -> None:
        nonlocal reports
        reports = reports or (done < total and time.monotonic() - begun >= BRIEF_S)
        if reports:
            report(done, total)

    return tell


def whole_watch(watch: Watch) -> Watch:
    """The Watch itself: for functions whose callback is one."""
    return watch


class _Clock:
    """When the running stage began, and from how much: a resumed one does not begin at nothing."""

    def __init__(self, done: int) -> None:
        self.begun, self.first = time.monotonic(), done

    def taken(self) -> float:
        """Seconds since the stage began."""
        return time.monotonic() - self.begun

    def left(self, done: int, total: int) -> str:
        """The time left in words; empty while nothing can be said."""
        if done <= self.first or done >= total:
            return ""
        return f"{duration(self.taken() / (done - self.first) * (total - done))} left"


class LiveLine:
    """One line that is drawn over itself; a stage of more than a second leaves its last one behind."""

    def __init__(self) -> None:
        self.clocks: dict[str, _Clock] = {}
        self.drawn_at = float("-inf")
        self.width = 0

    def __call__(self, stage: str, done: int, total: int, note: str) -> None:
        """As `Watch`."""
        if stage in MESSAGES:
            self._clear()
            _write(
                textwrap.fill(_message(stage, note), _columns(), subsequent_indent="  ", break_long_words=False) + "\n"
            )
            return
        ended, first = done >= total, stage not in self.clocks
        if first and ended:
            return  # over before it was seen
        clock = self.clocks.setdefault(stage, _Clock(done))
        if ended:
            del self.clocks[stage]
            self._clear()
            if total > 1 and clock.taken() >= BRIEF_S:
                _write(self._fitted(stage, f"in {duration(clock.taken())}", note) + "\n")
        elif first or time.monotonic() - self.drawn_at >= REDRAW_S:
            self.drawn_at = time.monotonic()
            numbers = "..." if total <= 1 else f"{100 * done // total:3d} %"
            self._draw(self._fitted(f"{stage} {numbers}", clock.left(done, total), note))

    def close(self) -> None:
        """Take the live line away."""
        self._clear()

    def _fitted(self, *parts: str) -> str:
        """The parts that are there on one line that the terminal does not wrap."""
        return shown("  ".join(part for part in parts if part), _columns() - 1)

    def _draw(self, line: str) -> None:
        _write("\r" + line.ljust(self.width))
        self.width = len(line)

    def _clear(self) -> None:
        if self.width:
            _write("\r" + " " * self.width + "\r")
            self.width = 0


class LogLines:
    """Plain lines: when a stage begins, every so many seconds, and when it ends."""

    def __init__(self, delay_s: float, every_s: float) -> None:
        self.delay_s, self.every_s = delay_s, every_s
        self.opened = time.monotonic()
        self.clocks: dict[str, _Clock] = {}
        self.written: dict[str, float] = {}
        """When the newest line of each running stage was written."""

    def __call__(self, stage: str, done: int, total: int, note: str) -> None:
        """As `Watch`."""
        if stage in MESSAGES:
            _write(f"{_message(stage, note)}\n")
            return
        now, ended, first = time.monotonic(), done >= total, stage not in self.clocks
        clock = self.clocks.setdefault(stage, _Clock(done))
        if ended:
            del self.clocks[stage]
        due = first or ended or stage not in self.written or now - self.written[stage] >= self.every_s
        silent_end = ended and total <= 1
        if due and not silent_end and now - self.opened >= self.delay_s:
            self.written[stage] = now
            taken = "" if first else duration(clock.taken())
            words = ", ".join(part for part in (note, taken, clock.left(done, total)) if part)
            numbers = " ..." if total <= 1 else f": {100 * done // total} %"
            _write(f"{stage}{numbers} {words}".rstrip() + "\n")
        if ended:
            self.written.pop(stage, None)

    def close(self) -> None:
        """Every line has its end already."""


def _message(kind: str, words: str) -> str:
    return lines_shown(f"{kind.upper() if kind == 'warning' else kind}: {words}")


def _columns() -> int:
    return max(20, shutil.get_terminal_size((80, 24)).columns)


def _write(text: str) -> None:
    """Progress that nobody can see must not end the work."""
    with suppress(OSError, ValueError, AttributeError):  # a closed stream, or none at all
        sys.stderr.write(text)
        sys.stderr.flush()
