"""The command line: results on stdout, progress on stderr, exit codes, and torch only for commands that need it."""

from __future__ import annotations

import contextlib
import inspect
import os
import signal
import sys
from collections.abc import Callable
from functools import cache
from types import FrameType
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from noisyteacher.cli import compress, data, models, runs, sweep
from noisyteacher.cli.options import build_options
from noisyteacher.cli.output import TerminatedError, safe_streams, warnings_as_sentences
from noisyteacher.distributed import processes, rank
from noisyteacher.errors import NoisyTeacherError, UsageError
from noisyteacher.process import tune_memory
from noisyteacher.text import printable_lines

FUNCTIONS = (
    *(compress.demo, compress.compress, compress.train, compress.extract, compress.distil),
    *(sweep.sweep, sweep.paper, models.evaluate, models.predict, models.measure, models.bench, models.export),
    runs.report,
)
GROUPS = (runs.runs, runs.config, data.data, data.logits)
COMMANDS: dict[str, Callable[..., None] | typer.Typer] = {
    **{function.__name__: function for function in FUNCTIONS},
    **{str(group.info.name): group for group in GROUPS},
}
CONTEXT = {"help_option_names": ["-h", "--help"]}


@cache
def build_command(name: str) -> Any:
    """The click command or group of this name."""
    source = COMMANDS[name]
    if isinstance(source, typer.Typer):
        for command in source.registered_commands:
            assert command.callback is not None
            command.callback = build_options(command.callback)
        return typer.main.get_group(source)
    single = typer.Typer(add_completion=False, rich_markup_mode=None, context_settings=CONTEXT)
    single.command(name)(build_options(source))
    return typer.main.get_command(single)


class Root(TyperGroup):
    """The commands by name, for the help; only the one that is called is built."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name, source in COMMANDS.items():
            text = source.info.help if isinstance(source, typer.Typer) else inspect.getdoc(source)
            self.commands[name] = TyperCommand(name, help=str(text))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, _, rest = super().resolve_command(ctx, args)
        return name, name and build_command(name), rest


app = typer.Typer(
    name="noisyteacher",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings=CONTEXT,
    cls=Root,
)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context, version: bool = typer.Option(False, "--version", help="Print the version and exit.")
) -> None:
    """Small, fast classifiers by distillation from noisy teachers.

    Start with: noisyteacher demo
    """
    if version:
        from noisyteacher import __version__

        typer.echo(f"noisyteacher {__version__}")
        raise typer.Exit
    if processes() > 1 and context.invoked_subcommand not in ("train", "distil", None):
        raise UsageError(
            f"{processes()} processes were started for {context.invoked_subcommand}: only train and distil run in "
            "several; start this command once (a sweep spreads by --jobs or --scheduler)"
        )


def main() -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 usage error, 130/143 interrupted (resumable)."""
    with contextlib.suppress(ValueError):  # not the main thread: leave signals alone
        signal.signal(signal.SIGTERM, _terminate)
    tune_memory()
    with safe_streams():
        try:
            code = _run()
        except (KeyboardInterrupt, TerminatedError) as interruption:  # a second signal: exit immediately
            os._exit(_signal_code(interruption))
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        sys.exit(code)


def _run() -> int | str | None:
    """The exit code of the command, after all its output is written."""
    try:
        try:
            with warnings_as_sentences():
                app()
        finally:
            sys.stdout.flush()
    except SystemExit as end:
        return end.code
    except NoisyTeacherError as error:
        sys.stderr.write(f"{f'process {_rank()}: ' if _rank() else ''}error: {printable_lines(error)}\n")
        return error.exit_code
    except OSError as error:  # of a path that no other check has covered
        sys.stderr.write(f"error: {error.filename or 'a file'}: {error.strerror or error}\n")
        return 1
    except (KeyboardInterrupt, TerminatedError) as interruption:
        if _rank() == 0:
            sys.stderr.write("interrupted\n")
        return _signal_code(interruption)
    return 0


def _rank() -> int:
    """The rank of this process; 0 where the environment has none that can be read, which is an error of its own."""
    with contextlib.suppress(NoisyTeacherError):
        return rank()
    return 0


def _signal_code(interruption: BaseException) -> int:
    return 143 if isinstance(interruption, TerminatedError) else 130


def _terminate(number: int, frame: FrameType | None) -> None:
    raise TerminatedError
