"""Durable writes, and checksums that detect a flipped bit. Every file this package writes is written here.

A write goes to a temporary file in the same folder, is flushed to disk and renamed over the target; then the folder is
flushed too. After a crash the old file is there or the new one, never a mixture.

A *sealed* file contains its own CRC-32C: the eight hex digits after the first `crc32c=`, which count as zeros while the
checksum is computed over the whole file. Sealed JSON and safetensors files stay readable by any JSON or safetensors
reader (docs/formats.md).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import secrets
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c

from noisyteacher.errors import FileFormatError, WriteError
from noisyteacher.io.locks import missing_folder

SEAL = b"crc32c="
BLANK = b"00000000"
MAX_TEXT = 2**30
"""Bytes of a text file that are read at most."""
_CHUNK = 2**20


def crc32c(*parts: bytes | memoryview) -> str:
    """The CRC-32C of the parts in order, as eight lower-case hex digits. `crc32c(b"123456789") == "e3069283"`."""
    value = 0
    for part in parts:
        view = memoryview(part).cast("B")
        for start in range(0, len(view), _CHUNK):  # google_crc32c takes bytes only: copy piece by piece
            value = extend_crc32c(value, bytes(view[start : start + _CHUNK]))
    return f"{value:08x}"


def extend_crc32c(value: int, data: bytes) -> int:
    """The CRC-32C of bytes whose checksum is `value` (0: none) followed by these."""
    return int(google_crc32c.extend(value, data))


def file_crc32c(path: str | os.PathLike[str]) -> str:
    """The CRC-32C of a file's bytes, read piece by piece, as hex. Raises FileFormatError."""
    value = 0
    try:
        with open(path, "rb") as stream:
            while data := stream.read(_CHUNK):
                value = extend_crc32c(value, data)
    except OSError as error:
        raise FileFormatError(f"{path}: cannot be read: {error.strerror or error}") from error
    return f"{value:08x}"


def sha256(parts: Iterable[bytes | memoryview]) -> str:
    """SHA-256 of the parts in order, as hex: the fingerprint of weights, data and code."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def make_folder(folder: Path, within: Path | None = None) -> None:
    """Create the folder and its parents. Raises WriteError with the reason when that fails.

    `within` is a folder that must exist already; it is not created again when somebody has removed it.
    """
    if within is not None and not os.path.isdir(within):
        raise missing_folder(within)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _write_error(folder, error) from error


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
def replace_file(path: str | os.PathLike[str], within: Path | None = None) -> Iterator[BinaryIO]:
    """Yield a stream for the file's new content, which replaces the file, durably, when the block ends.

    When the block fails the old file stays as it was. The parent folder is created if missing (`within`: see
    `make_folder`). Raises WriteError.
    """
    target = Path(path)
    make_folder(target.parent, within)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        sync_folder(target.parent)
    except OSError as error:
        raise _write_error(target, error) from error


def write_bytes(
    path: str | os.PathLike[str], data: bytes | Sequence[bytes | memoryview], within: Path | None = None
) -> None:
    """Replace the file by these bytes, or by these parts in order, durably (`replace_file`). Raises WriteError."""
    with replace_file(path, within) as stream:
        for part in (data,) if isinstance(data, bytes) else data:
            stream.write(part)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a rename in it survives a power cut. Raises WriteError."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _write_error(folder, error) from error


def seal(data: bytes) -> bytes:
    """The bytes with the blank after the first `crc32c=` replaced by the checksum of all of them."""
    return b"".join(sealed(data))


def sealed(data: bytes) -> tuple[memoryview, bytes, memoryview]:
    """What `seal` returns, in three parts of which the first and last are views, not copies."""
    start = data.find(SEAL + BLANK)
    if start < 0 or data.find(SEAL) != start:
        raise ValueError("data to seal must contain 'crc32c=00000000' at its first mention of 'crc32c='")
    start += len(SEAL)
    view = memoryview(data)
    return view[:start], crc32c(data).encode(), view[start + len(BLANK) :]


def check_seal(data: bytes, path: str | os.PathLike[str]) -> None:
    """Raise FileFormatError naming the file unless the bytes match the checksum they carry."""
    start = data.find(SEAL) + len(SEAL)
    stated = data[start : start + len(BLANK)]
    if start < len(SEAL) or len(stated) < len(BLANK):
        raise FileFormatError(
            f"{path}: no checksum in bytes 0 to {len(data) - 1}: truncated, or not written by noisyteacher"
        )
    view = memoryview(data)
    computed = crc32c(view[:start], BLANK, view[start + len(BLANK) :]).encode()
    if stated != computed:
        raise FileFormatError(
            f"{path}: checksum {computed.decode()}, expected {stated.decode(errors='replace')}: bytes 0 to "
            f"{len(data) - 1} are truncated or damaged; restore the file from a copy or create it again"
        )


def read_bytes(path: str | os.PathLike[str], most: int | None = None) -> bytes:
    """The file's bytes. Raises FileFormatError naming it when it is missing, unreadable, no regular file, or larger
    than `most`.
    """
    try:
        # O_NONBLOCK: opening a pipe must not wait for a writer.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise FileFormatError(f"{path}: cannot be read: a folder, pipe or device, not a file")
            if most is not None and status.st_size > most:
                raise FileFormatError(f"{path}: has {status.st_size} bytes; at most {most} are read of such a file")
            return stream.read()
    except OSError as error:
        raise FileFormatError(f"{path}: cannot be read: {error.strerror or error}") from error


def parse_json(text: bytes | str) -> Any:
    """The value of a JSON text. Raises ValueError for anything else, including NaN and numbers that overflow."""
    try:
        return json.loads(text, parse_constant=_finite, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def write_json(
    path: str | os.PathLike[str], kind: str, schema: int, content: dict[str, Any], within: Path | None = None
) -> None:
    """Write a sealed JSON file of one kind and schema number: `{"checksum", "kind", "schema", **content}`."""
    record = {"checksum": (SEAL + BLANK).decode(), "kind": kind, "schema": schema, **content}
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
    # A path may hold bytes that are not UTF-8; Python keeps them as lone surrogates, which JSON can escape.
    write_bytes(path, seal(text.encode(errors="backslashreplace") + b"\n"), within)


def read_json(path: str | os.PathLike[str], kind: str, schema: int) -> dict[str, Any]:
    """The content of a sealed JSON file, without its checksum, kind and schema.

    Raises FileFormatError naming the file when it is missing, damaged, or of another kind or schema.
    """
    data = read_bytes(path, MAX_TEXT)
    check_seal(data, path)
    try:
        record = parse_json(data)
    except ValueError as error:
        raise FileFormatError(f"{path}: not JSON: {error}") from error
    return unwrap(record, path, kind, schema)


def unwrap(record: Any, path: str | os.PathLike[str], kind: str, schema: int) -> dict[str, Any]:
    """The record without its three leading fields. Raises FileFormatError unless kind and schema are the expected."""
    if not isinstance(record, dict):
        raise FileFormatError(f"{path}: holds a {type(record).__name__}, expected a {kind!r}")
    if record.get("kind") != kind:
        raise FileFormatError(f"{path}: holds a {record.get('kind')!r}, expected a {kind!r}")
    if record.get("schema") != schema:
        raise FileFormatError(
            f"{path}: {kind} schema {record.get('schema')}, this version of noisyteacher reads {schema}"
        )
    return {key: value for key, value in record.items() if key not in ("checksum", "kind", "schema")}


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text:.40} is no finite number")
    return number


def _write_error(path: Path, error: OSError) -> WriteError:
    advice = {
        errno.ENOSPC: "the disk is full: free some space or choose another output folder",
        errno.EDQUOT: "the disk quota is used up: free some space or choose another output folder",
        errno.EROFS: "the file system is read-only: choose another output folder",
        errno.EACCES: "permission denied: choose an output folder you may write to",
        errno.EPERM: "permission denied: choose an output folder you may write to",
        errno.ENOTDIR: "a parent of it is a file: choose another output folder",
        errno.EEXIST: "a file of that name is in the way: choose another output folder",
        errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
    }.get(error.errno or 0, error.strerror or str(error))
    return WriteError(f"{path}: cannot be written: {advice}")
