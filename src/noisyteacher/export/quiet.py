"""Other people's libraries made to work without talking: their warnings, their log lines, their writes to stderr."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator

TALKERS = ("torch", "torchao", "executorch", "onnxscript", "onnx_ir")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, deprecations are not warned of, and log lines below an error reach only handlers that somebody has set.

    Deprecations are what exporters warn of when they call each other; they are not the caller's to mend. A handler on
    the root logger keeps `logging.warning` from setting one up for the whole process.
    """
    nowhere, root = logging.NullHandler(), logging.getLogger()
    loggers = [logging.getLogger(name) for name in TALKERS]
    levels = [logger.level for logger in loggers]
    root.addHandler(nowhere)
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        root.removeHandler(nowhere)


@contextlib.contextmanager
def native_quiet() -> Iterator[None]:
    """Inside, what compiled code writes to the process's standard error is lost, for the short time of a start-up."""
    try:
        kept = os.dup(2)
    except OSError:  # it is closed: nothing to keep quiet
        yield
        return
    try:
        with tempfile.TemporaryFile() as hole:
            os.dup2(hole.fileno(), 2)
            try:
                yield
            finally:
                os.dup2(kept, 2)
    finally:
        os.close(kept)
