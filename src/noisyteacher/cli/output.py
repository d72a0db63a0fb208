"""Output of the command line: results on stdout, progress and errors on stderr, and streams that may be closed or full.

A reader of stdout who leaves ends the program with exit code 0; a full disk is a WriteError.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shlex
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from itertools import chain
from typing import TYPE_CHECKING, Any, TextIO

import typer

from noisyteacher.distributed import launch_command, rank
from noisyteacher.errors import DataWarning, WriteError
from noisyteacher.progress import Watch, display, stage
from noisyteacher.tables import Table
from noisyteacher.text import harmless, printable_lines

if TYPE_CHECKING:
    from noisyteacher.pipeline.results import RunResult
    from noisyteacher.runs import Run

LOG_INTERVAL_S = 30.0
"""Seconds between two progress lines of a stage in a log."""
PIPE_WIDTH = 120
"""Columns of a table that is written to a file or pipe."""


class SafeStream:
    """A standard stream. A failed write to stderr is ignored; one to stdout ends the program."""

    def __init__(self, stream: TextIO | None, is_stdout: bool) -> None:
        self.stream, self.is_stdout = stream or io.StringIO(), is_stdout
        self.error = OSError("it is closed") if stream is None else None
        if isinstance(stream, io.TextIOWrapper):  # a file's name may be of bytes that are no text
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        if not isinstance(text, str):  # click tests so whether a stream takes bytes
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if text:
            self._call("write", text)
        return len(text)

    def flush(self) -> None:
        self._call("flush")

    def _call(self, method: str, *arguments: str) -> None:
        if self.error is None:
            try:
                getattr(self.stream, method)(*arguments)
            except OSError as error:
                self.error = error
                with contextlib.suppress(OSError):  # text in the buffer would fail again at the interpreter's end
                    os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
        if self.error is not None and self.is_stdout:
            if isinstance(self.error, BrokenPipeError):  # `noisyteacher runs ls | head` is no failure
                sys.exit(0)
            reason = self.error.strerror or self.error
            raise WriteError(f"standard output cannot be written ({reason}); files in run folders are complete")


@contextlib.contextmanager
def safe_streams() -> Iterator[None]:
    """Replace stdout and stderr by SafeStreams."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = SafeStream(sys.stdout, True), SafeStream(sys.stderr, False)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


@contextlib.contextmanager
def warnings_as_sentences() -> Iterator[None]:
    """Write warnings about data as sentences, without the line of code they come from."""
    with warnings.catch_warnings():
        default = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *position: Any, **options: Any) -> None:
            if issubclass(category, DataWarning):
                sys.stderr.write(f"warning: {printable_lines(message)}\n")
            else:
                default(message, category, *position, **options)

        warnings.showwarning = show
        yield


def command_line() -> str:
    """The command as it was typed, for run.json."""
    return shlex.join([*launch_command(), *sys.argv[1:]])


def say(text: str, err: bool = False) -> None:
    """Lines on stdout or stderr, not wrapped; control characters are escaped."""
    typer.echo(printable_lines(text), err=err)


def write(text: str, style: str | None = None) -> None:
    """A paragraph on stdout, wrapped to the terminal; control characters are escaped."""
    from rich.console import Console
    from rich.text import Text

    terminal = sys.stdout.isatty()
    console = Console(width=None if terminal else PIPE_WIDTH, highlight=False, soft_wrap=not terminal)
    console.print(Text(printable_lines(text)), style=style)


def print_json(value: Any) -> None:
    """The value as JSON on stdout."""
    sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n")


def print_table(headers: Sequence[str], rows: Sequence[Sequence[Any]], align: str = "") -> None:
    """A table on stdout; `align`: a letter per column, `l` or `r`, by default all `l`."""
    cells = tuple(tuple("" if cell is None else str(cell) for cell in row) for row in rows)
    show_table(Table(tuple(headers), cells, align or "l" * len(headers)))


def show_table(table: Table) -> None:
    """A table on stdout, no wider than the terminal, with its notes beneath."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPE_WIDTH
    rule = "─" if (sys.stdout.encoding or "").lower().startswith("utf") else "-"
    rows = tuple(tuple(map(printable_lines, row)) for row in table.rows)
    table = replace(table, headers=tuple(map(printable_lines, table.headers)), rows=rows)
    sys.stdout.write(table.text(width, rule) + "\n")
    if table.notes:
        write("")
    for note in table.notes:
        write(note, "dim")


WriteRow = Callable[[str, Sequence[tuple[str, float]]], None]
"""Writes a file's most probable classes with their probabilities, highest first."""


@contextlib.contextmanager
def table_of_predictions(top: int) -> Iterator[WriteRow]:
    """Yield the function that collects the rows of a table, which is printed at the end."""
    rows: list[tuple[str, ...]] = []

    def write_row(file: str, classes: Sequence[tuple[str, float]]) -> None:
        (best, probability), *next_best = classes
        rows.append((file, best, f"{probability:.4f}", ", ".join(f"{name} {share:.4f}" for name, share in next_best)))

    yield write_row
    columns = 3 if top == 1 else 4
    print_table(("file", "class", "probability", "next")[:columns], [row[:columns] for row in rows], "llrl"[:columns])


@contextlib.contextmanager
def json_of_predictions(top: int) -> Iterator[WriteRow]:
    """Yield the function that writes objects of a JSON array, one a line."""
    separator = "[\n"

    def write_row(file: str, classes: Sequence[tuple[str, float]]) -> None:
        nonlocal separator
        pairs = [{"class": name, "probability": probability} for name, probability in classes]
        record = {"file": file, **pairs[0]} | ({"top": pairs} if top > 1 else {})
        sys.stdout.write(separator + json.dumps(record, ensure_ascii=False))
        separator = ",\n"

    yield write_row
    sys.stdout.write("[]\n" if separator == "[\n" else "\n]\n")


@contextlib.contextmanager
def csv_of_predictions(top: int) -> Iterator[WriteRow]:
    """Yield the function that writes rows of CSV, with two columns for each class."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    numbers = ["", *(f"_{number}" for number in range(2, top + 1))]
    writer.writerow(["file", *(f"{column}{number}" for number in numbers for column in ("class", "probability"))])

    def write_row(file: str, classes: Sequence[tuple[str, float]]) -> None:
        writer.writerow([harmless(cell) for cell in (file, *chain(*classes))])

    yield write_row


WRITERS = {"table": table_of_predictions, "json": json_of_predictions, "csv": csv_of_predictions}
"""Format of `predict` -> how many classes each row has -> the function that writes a row."""


def print_result(result: RunResult, as_json: bool = False, **more: Any) -> None:
    """A result's tables, then its verdicts, paths and next commands; or all as JSON, with `more`."""
    if as_json:
        print_json({"run": str(result.path), **result.describe(), **more})
        return
    for table in result.tables():
        show_table(table)
        write("")
    for line in result.closing_lines():
        if line.startswith((" ", "Run folder")):
            say(line)  # paths and commands are not wrapped, so that they can be copied
        else:
            write(line, "bold" if line.startswith(("Verdict", "WARNING")) or line.endswith("failed:") else None)


def print_scores(scores: Mapping[str, Any]) -> None:
    """Scores by split, each with n."""
    rows = [
        (split, name, f"{score['value']:.4g}", score["unit"], f"{score['n']:,}")
        for split, by_name in scores.items()
        for name, score in by_name.items()
        if isinstance(score, Mapping)
    ]
    print_table(("split", "score", "value", "unit", "n"), rows, "llrlr")


@contextlib.contextmanager
def progress(quiet: bool = False, delay_s: float = 0.0, heavy: str = "noisyteacher.pipeline") -> Iterator[Watch | None]:
    """Yield the function that shows progress on stderr; None if quiet.

    Imports `heavy`, a module that needs PyTorch, as the first stage. delay_s: in a log, work that takes less is not
    reported.
    """
    if quiet:
        yield None
        return
    if "torch" not in sys.modules:
        with contextlib.closing(display(0.0, LOG_INTERVAL_S)) as loading, stage(loading, "loading PyTorch"):
            import_module(heavy)
    with contextlib.closing(display(delay_s, LOG_INTERVAL_S)) as shows:
        yield shows


class TerminatedError(BaseException):
    """SIGTERM, as an exception that unwinds like the KeyboardInterrupt of SIGINT."""


@contextlib.contextmanager
def resumable(command: str | None, options: Sequence[str] = ()) -> Iterator[Callable[[Run], None]]:
    """Yield the callback for the run that was created; an interruption then prints the command that resumes it.

    `command` takes `--resume`, and the `options` that the run folder does not record; None: the same command line again
    resumes it.
    """
    runs: list[Run] = []
    try:
        yield runs.append
    except (KeyboardInterrupt, TerminatedError):
        if runs and rank() == 0:
            resume = [*launch_command(), command, "--resume", str(runs[0].path), *options] if command else []
            sys.stderr.write(f"resume with: {shlex.join(resume) or command_line()}\n")
        raise
