"""Arrays of numbers in a MATLAB 5 file (.mat), read without believing a length in it.

Source: MathWorks, "MAT-File Format" (level 5). Only what SVHN's files need is understood: real arrays of numbers, as
they are or compressed, little-endian. A general reader that meets a damaged file can take the process with it.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MATRIX, _COMPRESSED, _HEAD = 14, 15, 1024
_CLASSES = {
    6: "double", 7: "single", 8: "int8", 9: "uint8", 10: "int16", 11: "uint16", 12: "int32", 13: "uint32",
    14: "int64", 15: "uint64",
}  # fmt: skip
_DTYPES = {1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"}
_CHUNK = 2**20
_RATIO = 1032
"""No deflate stream grows by more than this."""


@dataclass(frozen=True)
class Variable:
    """One array of a file: what its header says. `kind` is MATLAB's class, `stored` the type of the values."""

    shape: tuple[int, ...]
    kind: str
    stored: np.dtype[Any]
    at: int
    """Where its element begins in the file, behind the tag,"""
    length: int
    """how long that is,"""
    first: int
    """and where in it, once inflated, the values begin."""
    compressed: bool

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return prod(self.shape) * self.stored.itemsize


def mat_variables(path: Path) -> dict[str, Variable]:
    """The arrays of numbers in the file by name; none of their values is read. Raises ValueError, OSError."""
    with _mapped(path) as data:
        return dict(_variables(data))


def read_variable(path: Path, variable: Variable) -> NDArray[Any]:
    """The values of an array that `mat_variables` found, in its shape, column by column as MATLAB has them.

    Raises ValueError where there are fewer than the header says, or the checksum of the compressed data does not hold.
    """
    with _mapped(path) as data:
        end, behind = variable.first + variable.nbytes, variable.at + variable.length
        whole = (
            _inflated(data, variable.at, behind, end)
            if variable.compressed
            else data[variable.at : min(behind, variable.at + end)]
        )
    if len(whole) < end:
        raise ValueError(f"{len(whole)} bytes where {end} should be")
    return np.frombuffer(whole, variable.stored, prod(variable.shape), variable.first).reshape(
        variable.shape, order="F"
    )


def _inflated(data: bytes, first: int, behind: int, length: int) -> bytearray:
    """So many bytes, or a few more, of what is compressed between these places."""
    inflating, whole = zlib.decompressobj(), bytearray()
    try:
        for place in range(first, behind, _CHUNK):
            part = inflating.unconsumed_tail + data[place : min(place + _CHUNK, behind)]
            whole += inflating.decompress(part, max(length - len(whole), 64))
        whole += inflating.decompress(inflating.unconsumed_tail, 64)  # to the end, where the checksum is
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if not inflating.eof:
        raise ValueError("the compressed data have no end")
    return whole


@contextmanager
def _mapped(path: Path) -> Iterator[bytes]:
    """The file's bytes, sliced as bytes are, read as they are asked for."""
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[124:128] != b"\x00\x01IM":
            raise ValueError("no little-endian file of MATLAB 5")
        yield data  # type: ignore[misc]


def _variables(data: bytes) -> Iterator[tuple[str, Variable]]:
    at = 128
    while at < len(data):
        kind, length = _unpack("<II", data, at)
        at += 8
        if at + length > len(data):
            raise ValueError(f"an element of {length} bytes at byte {at} ends behind the file's end")
        if kind == _COMPRESSED:
            try:
                head = zlib.decompressobj().decompress(data[at : at + min(length, 2 * _HEAD)], _HEAD)
            except zlib.error as error:
                raise ValueError(str(error)) from error
            inside, size = _unpack("<II", head, 0)
            if inside == _MATRIX and size <= _RATIO * (length + 8):
                yield from _header(head, 8, Variable((), "", np.dtype("u1"), at, length, 0, True))
        elif kind == _MATRIX:
            yield from _header(
                data[at : at + min(length, _HEAD)], 0, Variable((), "", np.dtype("u1"), at, length, 0, False)
            )
            length += -length % 8
        at += length


def _header(head: bytes, at: int, place: Variable) -> Iterator[tuple[str, Variable]]:
    """(name, variable) of a matrix, if it is one of real numbers."""
    kind, size, at = _tag(head, at)
    (flags,) = _unpack("<I", head, at)
    number = flags & 0xFF
    kind, size, at = _tag(head, at + 8)
    if kind != 5 or not 8 <= size <= 32 or size % 4:
        raise ValueError(f"its dimensions take {size} bytes of type {kind}")
    shape = _unpack(f"<{size // 4}i", head, at)
    kind, size, start = _tag(head, at + size + -size % 8)
    if not 0 < size <= 63 or min(shape) < 0:
        raise ValueError(f"a name of {size} bytes, a shape of {list(shape)}")
    name = head[start : start + size].decode("latin-1")
    at = start + (4 if size <= 4 and _small(head, start - 4) else size + -size % 8)
    if number not in _CLASSES or flags & 0x800:
        return
    kind, size, first = _tag(head, at)
    found = Variable(
        shape, _CLASSES[number], np.dtype(_DTYPES.get(kind, "V1")), place.at, place.length, first, place.compressed
    )
    if kind not in _DTYPES or size != found.nbytes or size > _RATIO * (place.length + 8):
        raise ValueError(f"array {name!r:.80} of shape {list(shape)} has {size} bytes of type {kind}")
    yield name, found


def _tag(head: bytes, at: int) -> tuple[int, int, int]:
    """(type, bytes, where they begin): a tag of eight bytes, or a small one of four before four bytes of data."""
    kind, size = _unpack("<II", head, at)
    if kind >> 16:
        return kind & 0xFFFF, kind >> 16, at + 4
    return kind, size, at + 8


def _small(head: bytes, at: int) -> bool:
    """Whether what lies here is a small tag."""
    return bool(_unpack("<I", head, at)[0] >> 16)


def _unpack(form: str, data: bytes, at: int) -> tuple[int, ...]:
    try:
        return struct.unpack_from(form, data, at)
    except struct.error as error:
        raise ValueError(f"the file ends in the middle of a header ({error})") from error
