"""Other people's libraries made to work without talking: their warnings and their log lines."""

from __future__ import annotations

import contextlib
import logging
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
