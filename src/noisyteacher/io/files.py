"""Durable writes, checksums, and locks on folders. Every file this package writes is written here.

A write goes to a temporary file in the same folder, is flushed to disk and renamed over the target; then the folder is
flushed too. A *sealed* file contains its CRC-32C: the eight hex digits after the first `crc32c=`, which count as zeros
in the checksum (docs/formats.md). A lock is the folder's own (flock): it leaves no file and ends with its process.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import secrets
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c

from noisyteacher.errors import DataWarning, FileFormatError, NoChecksumError, UsageError, WriteError

Json = dict[str, Any]
"""A JSON object whose keys belong to the caller: a record, a config, a result, the metrics of an epoch."""
StrPath = str | os.PathLike[str]
SEAL, BLANK = b"crc32c=", b"00000000"
MAX_TEXT = 2**25
"""Bytes of a text file that are read at most."""
REASONS = {
    errno.ENOSPC: "the disk is full: free some space or choose another output folder",
    errno.EROFS: "the file system is read-only: choose another output folder",
    errno.EEXIST: "a file of that name is in the way: choose another output folder",
    errno.ENOTDIR: "a parent of it is a file: choose another output folder",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
}
extend_crc32c: Callable[[int, bytes], int] = google_crc32c.extend
"""The CRC-32C of bytes whose checksum is the number (0: none) followed by these bytes."""


def crc32c(*parts: bytes) -> str:
    """The CRC-32C of the parts in order, as eight lower-case hex digits. `crc32c(b"123456789") == "e3069283"`."""
    value = 0
    for part in parts:
        value = extend_crc32c(value, part)
    return f"{value:08x}"


def file_crc32c(path: StrPath) -> str:
    """The CRC-32C of a file's bytes, read piece by piece, as hex. Raises FileFormatError."""
    value = 0
    with _read_errors(path), open(path, "rb") as stream:
        while data := stream.read(2**20):
            value = extend_crc32c(value, data)
    return f"{value:08x}"


def sha256(parts: Iterable[bytes | memoryview]) -> str:
    """SHA-256 of the parts in order, as hex: the fingerprint of weights, data and code."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


@contextlib.contextmanager
def write_errors(path: Path, action: str = "written") -> Iterator[None]:
    """Raise an OSError of the block as WriteError that names the path and the reason."""
    try:
        yield
    except OSError as error:
        reason = REASONS.get(error.errno or 0, error.strerror or str(error))
        raise WriteError(f"{path}: cannot be {action}: {reason}") from error


@contextlib.contextmanager
def _read_errors(path: StrPath) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FileFormatError(f"{path}: cannot be read: {error.strerror or error}") from error


def make_folder(folder: Path, within: Path | None = None) -> None:
    """Create the folder and its parents, but not again `within`, when somebody has removed it. Raises WriteError."""
    if within is not None and not os.path.isdir(within):
        raise WriteError(f"{within}: the folder is gone, removed or moved while in use: start again")
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def remove_new_folders_on_error(folder: Path) -> Iterator[None]:
    """When the block fails, remove the folder and those of its parents that it created, as far as they are empty."""
    new = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # stops at the first that is not empty or was never created
            for path in new:
                path.rmdir()
        raise


@contextlib.contextmanager
def replace_file(path: StrPath, within: Path | None = None) -> Iterator[BinaryIO]:
    """Yield a stream for the file's new content, which replaces the file, durably, when the block ends.

    When the block fails the old file stays. The folder is created if missing (`make_folder`). Raises WriteError.
    """
    target = Path(path)
    make_folder(target.parent, within)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    with write_errors(target):
        try:
            with open(temporary, "xb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    sync_folder(target.parent)


def write_bytes(path: StrPath, data: bytes, within: Path | None = None) -> None:
    """Replace the file by these bytes, durably (`replace_file`). Raises WriteError."""
    with replace_file(path, within) as stream:
        stream.write(data)


def temporary_files(folder: Path, name: str = "") -> list[Path]:
    """What `replace_file` was writing in the folder to files whose names begin so, or a killed process left of it."""
    return list(folder.glob(f".{name}*.tmp"))


def remove_files(folder: Path, files: Iterable[Path]) -> None:
    """Remove these files of the folder as far as they exist, durably. Raises WriteError."""
    for file in files:
        with write_errors(file, "removed"):
            file.unlink(missing_ok=True)
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a rename in it survives a power cut. Raises WriteError."""
    with write_errors(folder):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def seal(data: bytes) -> bytes:
    """The bytes with the blank after the first `crc32c=` replaced by the checksum of all of them."""
    start = data.index(SEAL + BLANK) + len(SEAL)
    return b"".join((data[:start], crc32c(data).encode(), memoryview(data)[start + len(BLANK) :]))


def check_seal(data: bytes, path: StrPath) -> None:
    """Raise FileFormatError naming the file unless the bytes match the checksum they carry."""
    start = data.find(SEAL) + len(SEAL)
    end = start + len(BLANK)
    span = f"bytes 0 to {len(data)}"
    if start < len(SEAL) or end > len(data):
        raise NoChecksumError(f"{path}: no checksum in {span}: truncated, or not a file of noisyteacher")
    if data[start:end] != crc32c(data[:start], BLANK, data[end:]).encode():
        raise FileFormatError(f"{path}: {span} do not match their checksum: truncated or damaged; restore a copy")


def read_bytes(path: StrPath, most: int | None = None) -> bytes:
    """The file's bytes. Raises FileFormatError when it cannot be read, is no regular file, or is over `most` bytes."""
    # O_NONBLOCK: opening a pipe must not wait for a writer.
    nonblocking = lambda name, flags: os.open(name, flags | os.O_NONBLOCK)  # noqa: E731
    with _read_errors(path), open(path, "rb", opener=nonblocking) as stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise FileFormatError(f"{path}: cannot be read: a folder, pipe or device, not a file")
        if most is not None and status.st_size > most:
            raise FileFormatError(f"{path}: has {status.st_size} bytes; at most {most} are read of such a file")
        return stream.read()


def parse_json(text: bytes | str) -> Any:
    """The value of a JSON text. Raises ValueError for anything else, including NaN and numbers that overflow."""
    try:
        value = json.loads(text, parse_int=_integer)
        json.dumps(value, allow_nan=False)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    return value


def _integer(digits: str) -> int:
    if math.isinf(float(digits)):
        raise ValueError(f"a number of {len(digits)} digits is over the limit")
    return int(digits)


def header(kind: str, schema: int) -> Json:
    """The three fields that begin every sealed record."""
    return {"checksum": (SEAL + BLANK).decode(), "kind": kind, "schema": schema}


def write_json(path: StrPath, kind: str, schema: int, content: Json, within: Path | None = None) -> None:
    """Write a sealed JSON file of one kind and schema number: `{"checksum", "kind", "schema", **content}`."""
    text = json.dumps({**header(kind, schema), **content}, indent=1, ensure_ascii=False, allow_nan=False)
    # A path may hold bytes that are not UTF-8; Python keeps them as lone surrogates, which JSON can escape.
    write_bytes(path, seal(text.encode(errors="backslashreplace") + b"\n"), within)


def read_json(path: StrPath, kind: str, schema: int, most: int | None = None) -> Json:
    """The content of a sealed JSON file of at most this many bytes (by default MAX_TEXT), without its `header`.

    Raises FileFormatError naming the file when it is missing, larger, damaged, or of another kind or schema.
    """
    data = read_bytes(path, most or MAX_TEXT)
    check_seal(data, path)
    try:
        record = parse_json(data)
    except ValueError as error:
        raise FileFormatError(f"{path}: not JSON: {error}") from error
    return unwrap(record, path, kind, schema)


def unwrap(record: object, path: StrPath, kind: str, schema: int) -> Json:
    """The record without its `header`. Raises FileFormatError unless kind and schema are the expected."""
    fields = record if isinstance(record, dict) else {"kind": type(record).__name__}
    if fields.get("kind") != kind:
        raise FileFormatError(f"{path}: holds a {fields.get('kind')!r}, expected a {kind!r}")
    if fields.get("schema") != schema:
        raise FileFormatError(
            f"{path}: {kind} schema {fields.get('schema')}, this version of noisyteacher reads {schema}"
        )
    return {key: value for key, value in fields.items() if key not in header(kind, schema)}


@contextlib.contextmanager
def lock(folder: Path, *, shared: bool = False, wait: bool = True) -> Iterator[None]:
    """Lock the folder: for this process alone, or `shared` with any number of processes that lock it so too.

    Waits for other processes, or, with `wait=False`, raises UsageError. Raises WriteError for a missing folder. Warns
    (DataWarning) on a file system without locks, where nothing keeps two processes out of one folder.
    """
    with write_errors(folder, "opened"):
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise UsageError(f"{folder}: a process is working on it: stop that process, or wait for it") from error
        except OSError as error:
            warnings.warn(
                f"folders cannot be locked on this file system ({error.strerror}): let only one process work on a run",
                DataWarning,
                stacklevel=2,
            )
        make_folder(folder, within=folder)  # it may have been removed meanwhile
        yield
    finally:
        os.close(descriptor)
