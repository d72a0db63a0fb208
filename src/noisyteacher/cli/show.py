"""How the command line shows things: tables and JSON on stdout, progress with time left on stderr."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from noisyteacher.launch import rank, starter
from noisyteacher.text import lines_shown

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from noisyteacher.export import Exported
    from noisyteacher.pipeline import Result, Watch
    from noisyteacher.runs import Run

WIDE = 120  # a table that is piped somewhere is not cut to 80 columns


def out() -> Console:
    """The console of results."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else WIDE, highlight=False, soft_wrap=not sys.stdout.isatty())


def command_line() -> str:
    """The command as it was typed, for run.json."""
    return shlex.join([*starter(), *sys.argv[1:]])


def say(words: str, err: bool = False) -> None:
    """Words on stdout, or stderr; what a terminal would obey in them is shown instead."""
    typer.echo(lines_shown(words), err=err)


def write(words: str, style: str | None = None) -> None:
    """A paragraph on stdout, wrapped to the terminal; what a terminal would obey in it is shown instead."""
    from rich.text import Text

    out().print(Text(lines_shown(words)), style=style)


def print_json(value: Any) -> None:
    """The value as JSON on stdout."""
    sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n")


def print_table(headers: Sequence[str], rows: Sequence[Sequence[Any]], right: Sequence[int] = ()) -> None:
    """A table on stdout; the columns whose numbers are in `right` are aligned to the right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for number, header in enumerate(headers):
        # Names and numbers stay whole where a narrow terminal allows it; text wraps first.
        table.add_column(Text(lines_shown(header)), justify="right" if number in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text("" if cell is None else lines_shown(cell)) for cell in row))
    out().print(table)


def print_noted(headers: Sequence[str], rows: Sequence[Sequence[Any]], notes: Sequence[str]) -> None:
    """A table of numbers on stdout with its notes beneath."""

    print_table(headers, rows, right=range(1, len(headers)))
    write("")
    for note in notes:
        write(note, "dim")


def print_result(result: Result, as_json: bool) -> None:
    """A compression's table, notes, verdict and run folders; or all of it as JSON."""
    if as_json:
        print_json({"run": str(result.path), **result.describe()})
        return

    headers, rows = result.table()
    print_table(headers, rows, right=range(1, len(headers)))
    write("")
    headers, rows = result.tried()
    if rows:
        print_table(headers, rows, right=range(1, len(headers) - 1))
        write("")
    for note in result.notes():
        write(note, "bold" if note.startswith("WARNING") else "dim")
    write("")
    write(f"Verdict: {result.verdict}.", "bold")
    write("")
    write(f"Run folder: {result.path}")
    folders = [folder for row in result.rows for folder in row.runs]
    write(f"  in it: {', '.join(folders)}; logits in {result.store}")
    if result.files:
        write(f"\nFiles of {result.path / (result.best or {})['run']}:\n")
        print_exported(result.files)


def print_exported(made: Sequence[Exported]) -> None:
    """The table of exported files beside torch, its notes, and which of them is fastest and smallest."""

    from noisyteacher.export import notes, table, verdict

    headers, rows = table(made)
    print_table(headers, rows, right=range(2, len(headers) - 1))
    write("")
    for note in notes(made):
        write(note, "dim")
    write(f"\nVerdict: {verdict(made)}.")


def print_scores(scores: Mapping[str, Any]) -> None:
    """Scores by split, each with n."""
    rows = []
    for split, found in scores.items():
        for name, value in found.items():
            if isinstance(value, Mapping):
                rows.append((split, name, f"{value['value']:.4g}", value["unit"], f"{value['n']:,}"))
    print_table(("split", "score", "value", "unit", "n"), rows, right=(2, 4))


def print_profile(record: Mapping[str, Any]) -> None:
    """Where the time of a training's steps went."""
    from noisyteacher.pipeline import profile_notes, profile_table

    headers, rows = profile_table(record)
    out().print()
    print_noted(headers, rows, profile_notes(record))


@contextmanager
def progress(quiet: bool = False) -> Iterator[Watch | None]:
    """Yields what the pipeline tells its progress to: a bar with time left in a terminal, else a line per stage."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, Task, TextColumn, TimeRemainingColumn
        from rich.table import Column
        from rich.text import Text

        from noisyteacher.text import duration

        class Left(TimeRemainingColumn):
            """The time left; of a stage that is over, the time taken."""

            def render(self, task: Task) -> Text:
                if task.finished:
                    return Text(f"in {duration(task.finished_time or 0)}")
                return super().render(task) + Text(" left")

        console = Console(stderr=True)

        def whole(width: int) -> Column:
            return Column(min_width=width, no_wrap=True)

        with Progress(
            TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis")),
            *([BarColumn(bar_width=20)] if console.width >= 110 else []),  # a narrow terminal needs the room for words
            TextColumn("{task.percentage:>3.0f}%", table_column=whole(4)),
            Left(table_column=whole(12)),
            TextColumn("{task.fields[note]}", style="dim", table_column=Column(no_wrap=True, overflow="ellipsis")),
            console=console,
            refresh_per_second=4,
        ) as bar:
            yield _Bars(bar)
    else:
        yield _Lines()


class _Bars:
    """One bar per stage of the work."""

    def __init__(self, bar: Progress) -> None:
        self.bar = bar
        self.tasks: dict[str, Any] = {}

    def __call__(self, stage: str, done: int, total: int, note: str) -> None:
        if stage not in self.tasks:
            self.tasks[stage] = self.bar.add_task(stage, total=total, note=note)
        self.bar.update(self.tasks[stage], completed=done, note=note)


class _Lines:
    """A line when a stage begins, every half minute, and when it ends: for logs."""

    def __init__(self) -> None:
        self.begun: dict[str, float] = {}
        self.told = 0.0

    def __call__(self, stage: str, done: int, total: int, note: str) -> None:
        from noisyteacher.text import duration

        now = time.monotonic()
        first = stage not in self.begun
        started = self.begun.setdefault(stage, now)
        if first or done == total or now - self.told >= 30:
            self.told = now
            left = "" if first or done in (0, total) else f", {duration((now - started) / done * (total - done))} left"
            sys.stderr.write(f"{stage}: {100 * done // total} % {note}, {duration(now - started)}{left}\n")
            sys.stderr.flush()


class TerminatedError(BaseException):
    """SIGTERM, as an exception that unwinds like the KeyboardInterrupt of SIGINT."""


@contextmanager
def resumable(command: str | None) -> Iterator[Callable[[Run], None]]:
    """Yields what is told the run once it has begun; an interruption then says how to go on with it.

    `command` takes `--resume`; None stands for one that goes on when it is asked again.
    """
    begun: list[Run] = []
    try:
        yield begun.append
    except (KeyboardInterrupt, TerminatedError):
        if begun:
            again = [*starter(), command, "--resume", str(begun[0].path)] if command else []
            if rank() == 0:
                sys.stderr.write(f"go on with: {shlex.join(again) or command_line()}\n")
        raise
