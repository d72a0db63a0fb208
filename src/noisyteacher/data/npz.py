"""Arrays in a `.npz` file: read whole once their size is known to be allowed, or row by row; never unpickled."""

from __future__ import annotations

import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisyteacher.errors import DataError
from noisyteacher.pixels import MAX_PIXELS
from noisyteacher.text import nearest, size_bytes

MAX_BYTES = 4 * 2**30
_RATIO = 1032
"""No deflate stream grows by more than this."""
# What zipfile and its decompressors raise for one damaged byte or another.
_DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, RuntimeError, struct.error)


def read_npz(
    path: Path, wanted: Sequence[str], max_bytes: int = MAX_BYTES, only: Sequence[str] | None = None
) -> dict[str, NDArray[Any]]:
    """The wanted arrays of a `.npz`, by name; nothing is unpickled, and sizes are checked before anything is inflated.

    `only`: those of the wanted that are read; the others may be there. Raises DataError naming file and array.
    """
    with _opened(path) as opened:
        members = {info.filename.removesuffix(".npy"): info for info in opened.infolist()}
        left, arrays = max_bytes, {}
        for name in members:
            if name not in wanted:
                close = nearest(name, wanted)
                raise DataError(
                    f"{path}: unknown array {name!r}" + (f", did you mean {close!r}?" if close else "")
                    + f" Known are {', '.join(wanted)}; write the file again without others"
                )  # fmt: skip
        for name in (key for key in (wanted if only is None else only) if key in members):
            arrays[name] = _read_member(opened, members[name], path, f"{path}: array {name!r}", left)
            left -= arrays[name].nbytes
        return arrays


def npz_names(path: Path) -> list[str]:
    """The names of the arrays in a `.npz`. Raises DataError."""
    with _opened(path) as opened:
        return [info.filename.removesuffix(".npy") for info in opened.infolist()]


class NpzImages:
    """One array of images in a `.npz`, read row by row: uint8 `[N, H, W]`, `[N, H, W, C]` or `[N, C, H, W]`."""

    def __init__(self, path: Path, key: str) -> None:
        """Reads the header alone. Raises DataError naming file and array for what is no array of images."""
        self.path, self.key, self.what = path, key, f"{path}: array {key!r}"
        with _opened(path) as opened, opened.open(f"{key}.npy") as stream:
            self.shape, fortran, dtype = _header(stream, self.what)
        if dtype != np.uint8:
            raise DataError(
                f"{self.what} is {dtype}; expected uint8 with values 0..255: scale and convert before saving"
            )
        if len(self.shape) not in (3, 4) or min(self.shape) < 1:
            raise DataError(
                f"{self.what} has shape {list(self.shape)}; expected [N, H, W], [N, H, W, C] or [N, C, H, W], not empty"
            )
        each = int(np.prod(self.shape[1:], dtype=object))
        if each > MAX_PIXELS * 4:
            raise DataError(f"{self.what} has shape {list(self.shape)}: an image of {size_bytes(each)} is not read")
        _check_size(opened.getinfo(f"{key}.npy"), path, self.shape, dtype, self.what)
        if fortran:
            raise DataError(f"{self.what} is in Fortran order: save it again with numpy.ascontiguousarray")
        self.channels_last = channels_last(self.shape, self.what)

    def __len__(self) -> int:
        return self.shape[0]

    def rows(self, first: int) -> Iterator[NDArray[np.uint8]]:
        """Every image from row `first` on as uint8 `[C, H, W]`. Raises DataError where the file is damaged."""
        each = int(np.prod(self.shape[1:], dtype=object))
        with _opened(self.path) as opened, opened.open(f"{self.key}.npy") as stream:
            _header(stream, self.what)
            for row in range(len(self)):
                data = stream.read(each)
                if len(data) < each:
                    raise DataError(f"{self.what} ends in row {row} of {len(self)}: the file is truncated or damaged")
                if row >= first:
                    image = np.frombuffer(data, np.uint8).reshape(self.shape[1:])
                    plain = (
                        image[None] if image.ndim == 2 else image.transpose(2, 0, 1) if self.channels_last else image
                    )
                    yield np.ascontiguousarray(plain)
            # Only reading to the very end makes zipfile compare the checksum.
            if stream.read(1):
                raise DataError(f"{self.what} goes on after the rows its header announces: the file is damaged")


def channels_last(shape: Sequence[int], what: str) -> bool:
    """Whether images of this shape are `[N, H, W, C]`. Raises DataError where they could be `[N, C, H, W]` as well."""
    if len(shape) == 3:
        return False
    first, last = shape[1] <= 4, shape[3] <= 4
    if first == last:
        raise DataError(
            f"{what} has shape {list(shape)}: cannot tell which axis is the channels (1 to 4 of them); "
            "expected [N, H, W, C] or [N, C, H, W]"
        )
    return last


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The file as an archive; inside, damage of every kind becomes a DataError that names it."""
    try:
        with zipfile.ZipFile(path) as opened:
            yield opened
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except KeyError as error:
        raise DataError(f"{path}: {error}") from error
    except _DAMAGE as error:
        raise DataError(
            f"{path}: not a readable .npz file ({error}): it is truncated, damaged or of another kind"
        ) from error


def _header(stream: Any, what: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in Fortran order, and dtype of the .npy member that the stream begins with."""
    try:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0), (3, 0)):
            raise ValueError(f"format version {version}")
        # Version 3 differs from 2 in the header's encoding alone, which matters to structured dtypes only.
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
    except Exception as error:  # numpy tokenizes and evaluates the header: ValueError, TokenError, RecursionError, ...
        raise DataError(f"{what} is not in numpy's .npy format: {error}") from error
    if dtype.hasobject or dtype.names is not None:
        raise DataError(f"{what} holds Python objects or records ({dtype}), which are not read: save plain numbers")
    return shape, fortran, dtype


def _check_size(info: zipfile.ZipInfo, path: Path, shape: Sequence[int], dtype: np.dtype[Any], what: str) -> None:
    """Raises DataError where a member says more than its compressed bytes can hold."""
    growth = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: _RATIO}.get(info.compress_type, 0)
    there = min(info.file_size, growth * min(info.compress_size, path.stat().st_size))
    said = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if said > there:
        raise DataError(
            f"{what} says it has shape {list(shape)} of {dtype}, {said} bytes, and can have "
            f"{there} at most: the file is truncated or damaged, or compressed as numpy does not"
        )


def _read_member(opened: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path, what: str, max_bytes: int) -> NDArray[Any]:
    with opened.open(info) as stream:
        shape, fortran, dtype = _header(stream, what)
        count = 1
        for length in shape:
            count *= length
        if min(shape, default=0) < 0 or count * dtype.itemsize > max_bytes:
            raise DataError(
                f"{what} says it has shape {list(shape)} of {dtype}, {size_bytes(count * dtype.itemsize)}: more than "
                f"the {size_bytes(max_bytes)} that are allowed; in Python a larger max_bytes= allows it"
            )
        _check_size(info, path, shape, dtype, what)
        if not count * dtype.itemsize:
            raise DataError(f"{what} has shape {list(shape)} of {dtype}: it is empty")
        array = np.empty(count, dtype=dtype)
        place, view = 0, array.view(np.uint8).data
        while place < len(view):
            part = stream.read(min(2**24, len(view) - place))
            if not part:
                raise DataError(f"{what} ends after {place} of {len(view)} bytes: the file is truncated or damaged")
            view[place : place + len(part)] = part
            place += len(part)
        # Only reading to the very end makes zipfile compare the checksum.
        if stream.read(1):
            raise DataError(f"{what} goes on after the {len(view)} bytes its header announces: the file is damaged")
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)
