"""How the command line shows things: tables and JSON on stdout, progress with time left on stderr."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

import typer

from noisyteacher.cli.tables import table_lines
from noisyteacher.distributed import launch_command, rank
from noisyteacher.progress import Watch, display, stage
from noisyteacher.text import lines_shown

if TYPE_CHECKING:
    from rich.console import Console

    from noisyteacher.export import Exported
    from noisyteacher.pipeline import Result
    from noisyteacher.runs import Run

EVERY_S = 30.0  # seconds between two lines of a stage in a log
WIDE = 120  # a table that is piped somewhere is not cut to 80 columns


def out() -> Console:
    """The console of results."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else WIDE, highlight=False, soft_wrap=not sys.stdout.isatty())


def command_line() -> str:
    """The command as it was typed, for run.json."""
    return shlex.join([*launch_command(), *sys.argv[1:]])


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
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDE
    shown = [["" if cell is None else lines_shown(cell) for cell in row] for row in rows]
    rule = "─" if (sys.stdout.encoding or "").lower().startswith("utf") else "-"
    for line in table_lines([lines_shown(header) for header in headers], shown, right, width, rule):
        sys.stdout.write(line + "\n")


def print_noted(headers: Sequence[str], rows: Sequence[Sequence[Any]], notes: Sequence[str]) -> None:
    """A table of numbers on stdout with its notes beneath."""

    print_table(headers, rows, right=range(1, len(headers)))
    write("")
    for note in notes:
        write(note, "dim")


def print_result(result: Result, as_json: bool) -> None:
    """A compression's table, notes and exported files, then what came of it, where it lies, what to run next; or all of
    it as JSON.
    """
    if as_json:
        print_json({"run": str(result.path), **result.describe(), "summary": result.summary()})
        return
    from noisyteacher.pipeline import closing_lines

    headers, rows = result.table()
    print_table(headers, rows, right=range(1, len(headers)))
    write("")
    headers, rows = result.tried()
    if rows:
        print_table(headers, rows, right=range(1, len(headers) - 1))
        write("")
    for note in result.notes():
        write(note, "dim")
    write("")
    if result.files or result.failed:
        print_exported(result.files, result.failed, "Files")
        write("")
    for line in closing_lines(result):
        if line.startswith((" ", "Run folder")):
            say(line)  # paths and commands stay whole, to be copied
        else:
            write(line, "bold" if line.startswith(("Verdict", "WARNING")) else None)


def print_exported(made: Sequence[Exported], failed: Mapping[str, str] | None = None, word: str = "Verdict") -> None:
    """The table of exported files beside torch, its notes, and which of them is fastest and smallest.

    `failed` are the formats that could not be written, each with the reason; `word` stands before the last sentence.
    """

    from noisyteacher.export import notes, table, verdict

    headers, rows = table(made, failed)
    print_table(headers, rows, right=range(2, len(headers) - 1))
    write("")
    for note in notes(made, failed):
        write(note, "dim")
    write(f"\n{word}: {verdict(made)}.")


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
def progress(quiet: bool = False, delay_s: float = 0.0, heavy: str = "noisyteacher.pipeline") -> Iterator[Watch | None]:
    """Yields what is told how far the work is, and shows that on stderr; None where it is to be quiet.

    Says that PyTorch is being loaded before `heavy`, a module that needs it, is imported. delay_s: in a log, nothing
    else is said of what takes less.
    """
    if quiet:
        yield None
        return
    loaded = "torch" in sys.modules
    shows = display(0.0 if not loaded else delay_s, EVERY_S)
    try:
        if not loaded:
            with stage(shows, "loading PyTorch"):
                import_module(heavy)
            shows.close()
            shows = display(delay_s, EVERY_S)
        yield shows
    finally:
        shows.close()


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
            again = [*launch_command(), command, "--resume", str(begun[0].path)] if command else []
            if rank() == 0:
                sys.stderr.write(f"go on with: {shlex.join(again) or command_line()}\n")
        raise
