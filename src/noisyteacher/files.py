"""The one module that writes durably, and the checksums that notice a flipped bit.

A write goes to a temporary file in the same folder, is flushed to the disk, given the mode the umask asks for, renamed
over the target, and the folder is flushed too: after a crash the old file is there or the new one, never a mixture.

A *sealed* file holds the CRC-32C of itself: the eight hex digits after the first `crc32c=` stand as zeros while the sum
is taken over the whole file, so every bit is covered, those of the sum included. JSON and safetensors files are sealed
alike (docs/formats.md), and stay readable by any JSON or safetensors reader.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c

from noisyteacher.errors import FileFormatError, WriteError
from noisyteacher.locks import gone, still_ours
from noisyteacher.strictjson import parse_json

SEAL = b"crc32c="
BLANK = b"00000000"
MOST_TEXT = 2**30
"""Bytes of a file of text that are read at most."""
_PIECE = 2**20
_NO_LINK, _NO_WAIT = getattr(os, "O_NOFOLLOW", 0), getattr(os, "O_NONBLOCK", 0)


def crc32c(*parts: bytes | memoryview) -> str:
    """The CRC-32C of the parts in a row, as eight lower-case hex digits. `crc32c(b"123456789") == "e3069283"`."""
    found = 0
    for part in parts:
        view = memoryview(part).cast("B")
        for at in range(0, len(view), _PIECE):  # the checksum takes bytes only: a copy, but never one of everything
            found = google_crc32c.extend(found, bytes(view[at : at + _PIECE]))
    return f"{found:08x}"


def sha256(parts: Iterable[bytes | memoryview]) -> str:
    """SHA-256 of the parts one after the other, as hex: the fingerprint of weights, data and code."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def make_folder(folder: Path, within: Path | None = None) -> None:
    """Make the folder and its parents. Raises WriteError with the reason when the disk refuses.

    `within` is a folder that is there already: one that was removed meanwhile is not made again, that is a WriteError.
    """
    if within is not None and not os.path.isdir(within):
        raise gone(within)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _write_error(folder, error) from error


@contextlib.contextmanager
def unmade_on_failure(folder: Path) -> Iterator[None]:
    """Inside, the folder may be made; on a failure it and its parents go again where they are new and still empty."""
    new = [one for one in (folder, *folder.parents) if not os.path.lexists(one)]
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # the first that is not empty, or was not made, ends it
            for one in new:
                one.rmdir()
        raise


def write_bytes(
    path: str | os.PathLike[str], data: bytes | Sequence[bytes | memoryview], within: Path | None = None
) -> None:
    """Replace the file by these bytes, or by their parts, durably and all at once.

    Raises WriteError; then the old file is untouched.

    The folder is made where it is missing, but not `within`, the folder that should be there (`make_folder`).
    """
    target = Path(path)
    make_folder(target.parent, within)
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                for part in (data,) if isinstance(data, bytes) else data:
                    stream.write(part)
                stream.flush()
                os.fchmod(stream.fileno(), 0o666 & ~_umask())
                os.fsync(stream.fileno())
            still_ours(target)
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        sync_folder(target.parent)
    except OSError as error:
        raise _write_error(target, error) from error


def append_bytes(path: str | os.PathLike[str], data: bytes | memoryview, at: int, *, keep_behind: bool = False) -> None:
    """Make the file end with these bytes from byte `at` on, durably; what was there behind is dropped, or kept.

    For files that grow range by range and are believed as far as checksums kept elsewhere say. Raises WriteError; the
    bytes before `at` are then untouched, what lies behind them is not to be used.
    """
    target = Path(path)
    try:
        handle = os.open(target, os.O_RDWR | os.O_CREAT | _NO_LINK | _NO_WAIT, 0o666)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise OSError(errno.EEXIST, "not a file")
            if not keep_behind:
                os.ftruncate(handle, at)
            os.lseek(handle, at, os.SEEK_SET)
            left = memoryview(data)
            while left:
                left = left[os.write(handle, left) :]
            os.fsync(handle)
        finally:
            os.close(handle)
        if at == 0:
            sync_folder(target.parent)
    except OSError as error:
        raise _write_error(target, error) from error


def read_range(path: str | os.PathLike[str], at: int, length: int) -> bytes:
    """So many bytes of the file from byte `at` on; fewer where it ends, none where it is not there."""
    try:
        with _opened(path) as stream:
            stream.seek(at)
            return stream.read(length)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise FileFormatError(f"{path}: cannot be read: {error.strerror or error}") from error


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename in it survives a power cut. Raises WriteError."""
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise _write_error(folder, error) from error


def seal(data: bytes) -> bytes:
    """The same bytes with the blank after the first `crc32c=` replaced by the checksum of the whole."""
    return b"".join(sealed(data))


def sealed(data: bytes) -> tuple[memoryview, bytes, memoryview]:
    """What `seal` returns in three parts, of which the first and the last are views of the data and no copies."""
    place = data.find(SEAL + BLANK)
    if place < 0 or data.find(SEAL) != place:
        raise ValueError("data to seal must hold 'crc32c=00000000' at its first mention of 'crc32c='")
    place += len(SEAL)
    whole = memoryview(data)
    return whole[:place], crc32c(data).encode(), whole[place + len(BLANK) :]


def check_seal(data: bytes, path: str | os.PathLike[str]) -> None:
    """Raises FileFormatError naming the file unless the bytes match the checksum they carry."""
    place = data.find(SEAL) + len(SEAL)
    stated = data[place : place + len(BLANK)]
    if place < len(SEAL) or len(stated) < len(BLANK):
        raise FileFormatError(
            f"{path}: no checksum in it (bytes 0 to {len(data) - 1}): it is truncated, or not written by noisyteacher"
        )
    whole = memoryview(data)
    found = crc32c(whole[:place], BLANK, whole[place + len(BLANK) :]).encode()
    if stated != found:
        raise FileFormatError(
            f"{path}: checksum {found.decode()} found, {stated.decode(errors='replace')} stated: bytes 0 to "
            f"{len(data) - 1}, all of it, are truncated or damaged; restore it from a copy or make it again"
        )


def read_bytes(path: str | os.PathLike[str], most: int | None = None) -> bytes:
    """The file's bytes. Raises FileFormatError that names it when it is missing, no file, unreadable, or too large."""
    try:
        with _opened(path) as stream:
            size = os.fstat(stream.fileno()).st_size
            if most is not None and size > most:
                raise FileFormatError(f"{path}: has {size} bytes, more than the {most} that are read of such a file")
            return stream.read()
    except OSError as error:
        raise FileFormatError(f"{path}: cannot be read: {error.strerror or error}") from error


def _opened(path: str | os.PathLike[str]) -> BinaryIO:
    """The file, open for reading; of a pipe or a device, which may never end, an OSError."""
    handle = os.open(path, os.O_RDONLY | _NO_WAIT)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is a folder, a pipe or a device, not a file")
    return os.fdopen(handle, "rb")


def write_json(
    path: str | os.PathLike[str], kind: str, schema: int, content: dict[str, Any], within: Path | None = None
) -> None:
    """Write a sealed JSON file of one kind and schema number: `{"checksum", "kind", "schema", **content}`."""
    record = {"checksum": (SEAL + BLANK).decode(), "kind": kind, "schema": schema, **content}
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
    # A path may hold bytes that are no UTF-8, which Python keeps as lone surrogates: JSON has an escape for those.
    write_bytes(path, seal(text.encode(errors="backslashreplace") + b"\n"), within)


def read_json(path: str | os.PathLike[str], kind: str, schema: int) -> dict[str, Any]:
    """The content of a sealed JSON file, without its checksum, kind and schema.

    Raises FileFormatError naming the file when it is missing, damaged, of another kind or of another schema.
    """
    data = read_bytes(path, MOST_TEXT)
    check_seal(data, path)
    try:
        record = parse_json(data)
    except ValueError as error:
        raise FileFormatError(f"{path}: not JSON: {error}") from error
    return unwrap(record, path, kind, schema)


def unwrap(record: Any, path: str | os.PathLike[str], kind: str, schema: int) -> dict[str, Any]:
    """The record without its three leading fields, once kind and schema are the expected ones."""
    if not isinstance(record, dict):
        raise FileFormatError(f"{path}: holds a {type(record).__name__}, expected a {kind!r}")
    found_kind, found_schema = record.get("kind"), record.get("schema")
    if found_kind != kind:
        raise FileFormatError(f"{path}: holds a {found_kind!r}, expected a {kind!r}")
    if found_schema != schema:
        raise FileFormatError(f"{path}: {kind} schema {found_schema}, this version of noisyteacher reads {schema}")
    return {key: value for key, value in record.items() if key not in ("checksum", "kind", "schema")}


def _umask() -> int:
    """The process's umask; the only portable way to read it is to set it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _write_error(path: Path, error: OSError) -> WriteError:
    advice = {
        errno.ENOSPC: "the disk is full: free some space or choose another output folder",
        errno.EDQUOT: "the disk quota is used up: free some space or choose another output folder",
        errno.EROFS: "the file system is read-only: choose another output folder",
        errno.EACCES: "permission denied: choose an output folder you may write to",
        errno.EPERM: "permission denied: choose an output folder you may write to",
        errno.ENOTDIR: "a parent of it is a file: choose another output folder",
        errno.EEXIST: "a file of that name is in the way: choose another output folder",
        errno.ELOOP: "a link is in its place: remove it, or choose another output folder",
        errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
    }.get(error.errno or 0, error.strerror or str(error))
    return WriteError(f"{path}: cannot be written: {advice}")
