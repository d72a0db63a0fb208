"""The command line: results on stdout, progress on stderr, exit codes that mean something; torch when it is needed."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType

import typer

from noisyteacher.cli.commands import CONTEXT, Commands
from noisyteacher.cli.show import TerminatedError
from noisyteacher.cli.streams import plain_warnings, safe_streams
from noisyteacher.distributed import processes, rank
from noisyteacher.errors import NoisyTeacherError, UsageError, WriteError
from noisyteacher.process import tune_memory
from noisyteacher.text import lines_shown

app = typer.Typer(
    name="noisyteacher",
    help="Small, fast classifiers by distillation from noisy teachers.\n\nStart with: noisyteacher demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings=CONTEXT,
    cls=Commands,
)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and leave."),
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
            f"{processes()} processes were started for {context.invoked_subcommand}: one training in several processes "
            "is what train and distil do; start this command once (a sweep spreads by --jobs or --scheduler)"
        )


def main() -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 asked wrongly, 130/143 interrupted (resumable)."""
    with contextlib.suppress(ValueError):  # not the main thread: leave signals alone
        signal.signal(signal.SIGTERM, _terminated)
    tune_memory()
    with safe_streams():
        try:
            code = _exit_code()
        except (KeyboardInterrupt, TerminatedError) as stop:  # one more, while the first was being heeded: at once
            os._exit(_interrupted(stop))
        with contextlib.suppress(ValueError):  # what is left to do is leaving: a signal may end that at once
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        sys.exit(code)


def _exit_code() -> int | str | None:
    """What came of the command, once all of its output is written or known to be lost."""
    code: int | str | None
    try:
        try:
            with plain_warnings():
                app(standalone_mode=True)
        except SystemExit as ended:
            code = ended.code
        sys.stdout.flush()
    except SystemExit as ended:
        code = ended.code
    except NoisyTeacherError as error:
        sys.stderr.write(f"{f'process {rank()}: ' if rank() else ''}error: {lines_shown(error)}\n")
        code = error.exit_code
    except OSError as error:  # of a path that nothing else has looked at first
        sys.stderr.write(f"error: {error.filename or 'a file'}: {error.strerror or error}\n")
        code = 1
    except (KeyboardInterrupt, TerminatedError) as stop:
        if rank() == 0:
            sys.stderr.write("interrupted\n")
        code = _interrupted(stop)
    with contextlib.suppress(WriteError, SystemExit):
        sys.stdout.flush()
    sys.stderr.flush()
    return code


def _interrupted(stop: BaseException) -> int:
    """The exit code of what was interrupted."""
    return 143 if isinstance(stop, TerminatedError) else 130


def _terminated(number: int, frame: FrameType | None) -> None:
    raise TerminatedError
