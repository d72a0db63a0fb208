"""Data from a `.npz` file, and the turning of plain arrays into splits."""

from __future__ import annotations

import lzma
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisyteacher.data.holdout import partition
from noisyteacher.data.split import Split, Splits
from noisyteacher.errors import DataError
from noisyteacher.text import nearest, size_bytes

MAX_BYTES = 4 * 2**30
IMAGES_AND_LABELS = ("x", "y", "x_train", "y_train", "x_val", "y_val", "x_test", "y_test", "classes")
# What zipfile and its decompressors raise for one damaged byte or another.
_DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, RuntimeError, struct.error)
_SHARE = 10
# Not the file's name: renaming a file or moving a folder must not move its hold-out.
_PURPOSE = "tenths"


def load_npz(path: Path, *, seed: int = 0, max_bytes: int = MAX_BYTES) -> Splits:
    """The splits in a `.npz` of `x_train, y_train, x_test, y_test` (optional `x_val, y_val`), or of `x, y` alone.

    Images are uint8 `[N, H, W]`, `[N, H, W, C]` or `[N, C, H, W]`; labels are integers `[N]` or `[N, 1]`; `classes`
    may hold the K class names. Without `x_val` a stratified tenth of the training rows is held out; `x, y` alone are
    cut 80/10/10. `y_train` may be missing (an unlabelled transfer set) when `x_val` is there.
    Raises DataError naming the file and the array: missing, object or wrong dtype, wrong shape, larger than
    `max_bytes` altogether, truncated or damaged, labels out of range.
    """
    arrays = read_npz(path, IMAGES_AND_LABELS, max_bytes)
    names = _class_names(arrays, path)
    if "x" in arrays or "y" in arrays:
        if any(key.startswith(("x_", "y_")) for key in arrays) or "x" not in arrays:
            raise DataError(f"{path}: holds {_listed(arrays)}: give x and y alone, or x_train and the rest")
        images = _images(arrays, "x", path)
        labels = _labels(arrays, "y", len(images), len(names), path)
        return cut(path.stem, images, labels, names, seed=seed)
    if "x_train" not in arrays:
        raise DataError(f"{path}: no array 'x_train' in it (found: {_listed(arrays)}); see load_data for the names")
    train = _images(arrays, "x_train", path)
    labelled = "y_train" in arrays or "x_val" not in arrays
    labels_or_none = _labels(arrays, "y_train", len(train), len(names), path) if labelled else None
    held: dict[str, Split] = {}
    for role in ("val", "test"):
        if f"x_{role}" in arrays:
            images = _images(arrays, f"x_{role}", path)
            labels = _labels(arrays, f"y_{role}", len(images), len(names), path)
            held[role] = Split(images, labels, torch.arange(len(images)), role, path.stem, names)
    return assemble(path.stem, train, labels_or_none, names, held.get("val"), held.get("test"), seed=seed)


def assemble(
    name: str, images: Tensor, labels: Tensor | None, names: tuple[str, ...], val: Split | None, test: Split | None,
    *, seed: int = 0, preprocess: str = "standardize",
) -> Splits:  # fmt: skip
    """Splits of training images `[N, C, H, W]` beside given others; without `val` a stratified tenth is held out."""
    rows = torch.arange(len(images))
    if val is None:
        if labels is None:
            raise DataError(f"{name}: unlabelled training images need a validation split of their own: give one")
        Split(images, labels, rows, "train", name, names)  # its sentences are better than the draw's
        held, rows = partition(labels, [max(1, round(len(labels) / _SHARE))], seed, _PURPOSE)
        val = Split(images, labels, held, "val", name, names)
    train = Split(images, labels, rows, "train", name, names)
    return Splits(name, train, val, test, preprocess=preprocess)


def cut(
    name: str, images: Tensor, labels: Tensor, names: tuple[str, ...], *, seed: int = 0, preprocess: str = "standardize"
) -> Splits:
    """Splits cut 80/10/10 from images `[N, C, H, W]` and labels `[N]`: stratified, the same rows for the same seed."""
    Split(images, labels, torch.arange(len(images)), "train", name, names)
    tenth = max(1, round(len(labels) / _SHARE))
    test, val, train = partition(labels, [tenth, tenth], seed, _PURPOSE)
    parts = {"train": train, "val": val, "test": test}
    made = {role: Split(images, labels, rows, role, name, names) for role, rows in parts.items()}
    return Splits(name, made["train"], made["val"], made["test"], preprocess=preprocess)


def read_npz(path: Path, wanted: tuple[str, ...], max_bytes: int = MAX_BYTES) -> dict[str, NDArray[Any]]:
    """The wanted arrays of a `.npz`, by name; nothing is unpickled, and sizes are checked before anything is inflated.

    Raises DataError naming file and array.
    """
    try:
        with zipfile.ZipFile(path) as opened:
            members = {info.filename.removesuffix(".npy"): info for info in opened.infolist()}
            left, arrays = max_bytes, {}
            for name in members:
                if name not in wanted:
                    close = nearest(name, wanted)
                    raise DataError(
                        f"{path}: unknown array {name!r}" + (f", did you mean {close!r}?" if close else "")
                        + f" Known are {', '.join(wanted)}; write the file again without others"
                    )  # fmt: skip
            for name in (key for key in wanted if key in members):
                arrays[name] = _read_member(opened, members[name], f"{path}: array {name!r}", left)
                left -= arrays[name].nbytes
            return arrays
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except _DAMAGE as error:
        raise DataError(
            f"{path}: not a readable .npz file ({error}): it is truncated, damaged or of another kind"
        ) from error


def _read_member(opened: zipfile.ZipFile, info: zipfile.ZipInfo, what: str, max_bytes: int) -> NDArray[Any]:
    with opened.open(info) as stream:
        try:
            version = np.lib.format.read_magic(stream)
            if version not in ((1, 0), (2, 0), (3, 0)):
                raise ValueError(f"format version {version}")
            # Version 3 differs from 2 in the header's encoding alone, which matters to structured dtypes only.
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(stream)
        except ValueError as error:
            raise DataError(f"{what} is not in numpy's .npy format: {error}") from error
        if dtype.hasobject or dtype.names is not None:
            raise DataError(f"{what} holds Python objects or records ({dtype}), which are not read: save plain numbers")
        count = 1
        for length in shape:
            count *= length
        if min(shape, default=0) < 0 or count * dtype.itemsize > max_bytes:
            raise DataError(
                f"{what} says it has shape {list(shape)} of {dtype}, {size_bytes(count * dtype.itemsize)}: more than "
                f"the {size_bytes(max_bytes)} that are allowed; in Python a larger max_bytes= allows it"
            )
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


def _class_names(arrays: dict[str, NDArray[Any]], path: Path) -> tuple[str, ...]:
    """The names in `classes`, else "0", "1", ... up to the highest label."""
    if "classes" in arrays:
        given = arrays["classes"]
        if given.ndim != 1 or given.dtype.kind not in "US":
            raise DataError(f"{path}: array 'classes' is {given.dtype} {list(given.shape)}; expected K strings")
        return tuple(name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in given)
    highest = [
        int(array.max()) for key, array in arrays.items() if key[0] == "y" and array.dtype.kind in "iu" and array.size
    ]
    if not highest:
        raise DataError(
            f"{path}: no labels in it (found: {_listed(arrays)}); expected y_train and y_test, integers [N]"
        )
    if max(highest) >= 100_000:
        raise DataError(f"{path}: the highest label is {max(highest)}: labels must be class numbers from 0 to K-1")
    return tuple(map(str, range(max(highest) + 1)))


def _images(arrays: dict[str, NDArray[Any]], key: str, path: Path) -> Tensor:
    return channels_first(arrays[key], f"{path}: array {key!r}")


def channels_first(array: NDArray[Any], what: str) -> Tensor:
    """uint8 images as a tensor `[N, C, H, W]` from `[N, H, W]`, `[N, H, W, C]` or `[N, C, H, W]`; C is 1 to 4.

    Raises DataError that begins with `what` for other dtypes and shapes, and where the shape could be read both ways.
    """
    if array.dtype != np.uint8:
        raise DataError(f"{what} is {array.dtype}; expected uint8 with values 0..255: scale and convert before saving")
    if 0 in array.shape or array.ndim not in (3, 4):
        raise DataError(
            f"{what} has shape {list(array.shape)}; expected [N, H, W], [N, H, W, C] or [N, C, H, W], not empty"
        )
    if array.ndim == 3:
        return torch.from_numpy(np.ascontiguousarray(array[:, None]))
    first, last = array.shape[1] <= 4, array.shape[3] <= 4
    if first == last:
        raise DataError(
            f"{what} has shape {list(array.shape)}: cannot tell which axis is the channels (1 to 4 of them); "
            "expected [N, H, W, C] or [N, C, H, W]"
        )
    return torch.from_numpy(np.ascontiguousarray(array if first else array.transpose(0, 3, 1, 2)))


def _labels(arrays: dict[str, NDArray[Any]], key: str, images: int, classes: int, path: Path) -> Tensor:
    if key not in arrays:
        raise DataError(f"{path}: no array {key!r} in it (found: {_listed(arrays)})")
    return class_numbers(arrays[key], images, classes, f"{path}: array {key!r}")


def class_numbers(array: NDArray[Any], images: int, classes: int, what: str) -> Tensor:
    """Labels as int64 `[N]` from integers `[N]` or `[N, 1]`. Raises DataError beginning with `what`, naming the row."""
    if array.dtype.kind not in "iu":
        raise DataError(f"{what} is {array.dtype}; expected integers, the class numbers 0..{classes - 1}")
    if array.shape not in ((images,), (images, 1)):
        raise DataError(f"{what} has shape {list(array.shape)}; there are {images} images, expected [{images}]")
    plain = array.reshape(-1)
    wrong = np.flatnonzero((plain < 0) | (plain >= classes))
    if len(wrong):
        raise DataError(
            f"{what}: label {plain[wrong[0]]} of row {wrong[0]} is out of range 0..{classes - 1}; "
            f"{len(wrong)} label(s) of {images} are"
        )
    return torch.from_numpy(plain.astype(np.int64))


def _listed(arrays: dict[str, NDArray[Any]]) -> str:
    return ", ".join(arrays) or "nothing"
