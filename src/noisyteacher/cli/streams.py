"""Standard output and standard error that may be closed, full, or read by somebody who leaves."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any, TextIO

from noisyteacher.errors import DataWarning, WriteError
from noisyteacher.text import lines_shown


class _Stream:
    """The stream it stands for, but for what happens when a write fails."""

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream
        self.failure: str | None = None if stream is not None else "it is closed"
        self.reader_left = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def isatty(self) -> bool:
        return self.stream is not None and self.stream.isatty()

    def write(self, text: str) -> int:
        if not isinstance(text, str):  # how others find out whether a stream takes bytes
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if text:
            self._do("write", text)
        return len(text)

    def flush(self) -> None:
        self._do("flush")

    def _do(self, what: str, *given: str) -> None:
        if self.stream is not None and self.failure is None:
            try:
                getattr(self.stream, what)(*given)
            except OSError as error:
                self.failure, self.reader_left = error.strerror or str(error), isinstance(error, BrokenPipeError)
                # What is still in the buffer would fail again at the interpreter's end.
                with contextlib.suppress(OSError):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
        if self.failure is not None:
            self.failed(self.failure)

    def failed(self, reason: str) -> None:
        """Progress and errors that nobody can see must not end the work."""


class _Results(_Stream):
    """Standard output: what was asked for."""

    def failed(self, reason: str) -> None:
        if self.reader_left:  # `noisyteacher runs ls | head`: nothing is wrong
            sys.exit(0)
        raise WriteError(f"standard output cannot be written ({reason}): what went into a run folder is there")


@contextlib.contextmanager
def safe_streams() -> Iterator[None]:
    """Inside, a reader who leaves ends the program with exit code 0, and a full disk is a WriteError, a sentence."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Results(sys.stdout), _Stream(sys.stderr)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Inside, a warning about the data is a sentence on stderr, without the place in the code it comes from."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, DataWarning):
                sys.stderr.write(f"warning: {lines_shown(message)}\n")
            else:
                usual(message, category, *where, **more)

        warnings.showwarning = show
        yield
