"""Progress on stderr, for the command line and for Python alike: a live line in a terminal, a few lines in a log."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

from noisyteacher.errors import UsageError
from noisyteacher.text import duration, printable, printable_lines

Watch = Callable[[str, int, int, str], None]
"""Called with (stage, done, total, note). A stage without a count goes from 0 of 1 to 1 of 1. `plan` and `warning` are
not stages: their note is a sentence to show."""
MESSAGES = ("plan", "warning")
REDRAW_S = 0.1
"""Least time between two drawings of the live line."""
BRIEF_S = 1.0
"""Stages shorter than this leave no line behind in a terminal."""
PATIENCE_S = 2.0
"""A call from Python that takes less than this writes nothing to a log."""


class Display:
    """A `Watch` that shows progress on stderr until it is closed.

    In a terminal (`live`) a line is drawn over itself, and a stage of more than a second leaves its last line behind. A
    log gets a line when a stage begins, every `every_s` seconds, and when it ends, but none in the first `delay_s`.
    """

    def __init__(self, live: bool, delay_s: float = 0.0, every_s: float = 10.0) -> None:
        self.live, self.every_s = live, REDRAW_S if live else every_s
        self.show_from = time.monotonic() + (0.0 if live else delay_s)
        self.stages: dict[str, tuple[float, int, float]] = {}  # start, first count, time of the last line
        self.width = 0

    def __call__(self, stage: str, done: int, total: int, note: str) -> None:
        if stage in MESSAGES:
            self._print(printable_lines(f"{stage.upper() if stage == 'warning' else stage}: {note}"))
            return
        now, ended = time.monotonic(), done >= total
        start, first, written = self.stages.pop(stage, (now, done, float("-inf")))  # a resumed one does not begin at 0
        due = now >= self.show_from and (ended or now - written >= self.every_s)
        if not ended:
            self.stages[stage] = start, first, now if due else written
        if not due:
            return
        numbers = " ..." if total <= 1 else f": {100 * done // total} %"
        times = f"in {duration(now - start)}" if ended else ""
        if first < done < total:
            times = f"{duration((now - start) / (done - first) * (total - done))} left"
        line = ", ".join(part for part in (stage + numbers, times, note) if part)
        if not ended and self.live:
            self._draw(line)
        elif ended and (total <= 1 or (self.live and now - start < BRIEF_S)):
            self.close()
        else:
            self._print(line)

    def close(self) -> None:
        """Remove the live line."""
        if self.width:
            self._draw("")
            _write("\r")

    def _draw(self, line: str) -> None:
        line = printable(line, _columns() - 1)
        _write("\r" + line.ljust(self.width))
        self.width = len(line)

    def _print(self, text: str) -> None:
        self.close()
        if self.live:
            text = textwrap.fill(text, _columns(), subsequent_indent="  ", break_long_words=False)
        _write(text + "\n")


def _columns() -> int:
    return max(20, shutil.get_terminal_size((80, 24)).columns)


def _write(text: str) -> None:
    with suppress(OSError, ValueError, AttributeError):  # a closed or missing stream must not end the work
        sys.stderr.write(text)
        sys.stderr.flush()


def display(delay_s: float = 0.0, every_s: float = 10.0) -> Display:
    """A Display that is live where stderr is a terminal."""
    live = sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    return Display(live, delay_s, every_s)


@contextmanager
def reported(
    progress: bool | Callable[..., None] | None,
    adapt: Callable[[Watch], Callable[..., None]] = lambda watch: watch,
    delay_s: float = PATIENCE_S,
) -> Iterator[Any]:
    """Yield the function that reports progress, or None, for an argument `progress` of the public API.

    True: a Display, through `adapt`, which makes the caller's kind of callback of a Watch. Raises UsageError.
    """
    if progress is None or progress is False or callable(progress):
        yield progress or None
        return
    if progress is not True:
        raise UsageError(f"progress={progress!r}: expected True, False, or a function to call")
    with closing(display(delay_s)) as shows:
        yield adapt(shows)


@contextmanager
def stage(watch: Watch | None, title: str) -> Iterator[None]:
    """Report a stage that begins and ends with the block."""
    if watch is not None:
        watch(title, 0, 1, "")
    yield
    if watch is not None:
        watch(title, 1, 1, "")


def message(watch: Watch | None, kind: str, words: str) -> None:
    """Show a sentence at once; `kind` is one of MESSAGES."""
    if watch is not None:
        watch(kind, 1, 1, words)


def counted(watch: Watch, title: str, what: str) -> Callable[[int, int], None]:
    """A callback (done, total) that reports one stage; its note is like `300 of 1,200 answers`."""
    return lambda done, total: watch(title, done, total, f"{done:,} of {total:,} {what}")


def counted_if_slow(watch: Watch | None, title: str, what: str) -> Callable[[int, int], None] | None:
    """The same, silent if the stage ends within a second; None without a watch."""
    if watch is None:
        return None
    start, slow, report = time.monotonic(), False, counted(watch, title, what)

    def callback(done: int, total: int) -> None:
        nonlocal slow
        slow = slow or (done < total and time.monotonic() - start >= BRIEF_S)
        if slow:
            report(done, total)

    return callback
