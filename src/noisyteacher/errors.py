"""Every error this package raises on purpose: one base class, a sentence that helps, an exit code for the CLI."""

from __future__ import annotations


class NoisyTeacherError(Exception):
    """Base of all errors of this package; the message says what was given, what was expected and what to do next.

    `exit_code` is that of the command line: 2 for a usage error, 1 when the work failed.
    """

    exit_code = 1


class UsageError(NoisyTeacherError, ValueError):
    """Invalid argument, option or name; raised before any work where possible."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name is not one of the known ones; the message names the nearest."""


class ConfigError(UsageError):
    """One or more settings are wrong; the message lists all of them at once."""


class MismatchError(UsageError):
    """Two things that must fit do not: classes, shapes, rows, or a store and its teacher or data."""


class DataError(NoisyTeacherError):
    """A data set is missing, empty, unreadable or out of range; the message names the file or the row."""


class DataWarning(UserWarning):
    """Work goes on, but perhaps not as you expect: the message names what was left out, or what may differ."""


class FileFormatError(NoisyTeacherError):
    """A file is truncated, corrupt, of another kind or of an unknown schema; the message names the file."""


class NoChecksumError(FileFormatError):
    """A file does not hold the checksum of this package's files: it is another program's, or truncated."""


class StoreError(FileFormatError):
    """A logit store is missing, unfinished or damaged."""


class WriteError(NoisyTeacherError):
    """A file could not be written: the disk is full, read-only or gone. Nothing half-written stays behind."""


class TrainingError(NoisyTeacherError):
    """Training cannot go on: the loss is not finite, the logits are not, or there is nothing to learn from."""


class ExportError(NoisyTeacherError):
    """A model cannot be written in a format, or the file that came of it is refused; the message says by whom."""
