"""Data from a `.npz` file, and the turning of plain arrays into splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisyteacher.data.holdout import partition
from noisyteacher.data.npz import MAX_BYTES, channels_last, read_npz
from noisyteacher.data.split import Split, Splits
from noisyteacher.errors import DataError

IMAGES_AND_LABELS = ("x", "y", "x_train", "y_train", "x_val", "y_val", "x_test", "y_test", "classes")
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
    names = class_names(arrays, path)
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
    *, seed: int = 0, preprocess: str = "standardize", note: str = "",
) -> Splits:  # fmt: skip
    """Splits of training images `[N, C, H, W]` beside given others; without `val` a stratified tenth is held out.

    Images without labels are drawn as one class.
    """
    train = Split(images, labels, torch.arange(len(images)), "train", name, names)
    if val is None:
        held, rows = partition(_strata(images, labels), [max(1, round(len(images) / _SHARE))], seed, _PURPOSE)
        train, val = train.subset(rows), train.subset(held, "val")
    return Splits(name, train, val, test, preprocess=preprocess, note=note)


def cut(
    name: str, images: Tensor, labels: Tensor | None, names: tuple[str, ...], *, seed: int = 0,
    preprocess: str = "standardize", note: str = "",
) -> Splits:  # fmt: skip
    """Splits cut 80/10/10 from images `[N, C, H, W]` and labels `[N]`: stratified, the same rows for the same seed.

    Images without labels are drawn as one class.
    """
    whole = Split(images, labels, torch.arange(len(images)), "train", name, names)
    tenth = max(1, round(len(images) / _SHARE))
    test, val, train = partition(_strata(images, labels), [tenth, tenth], seed, _PURPOSE)
    parts = (whole.subset(train), whole.subset(val, "val"), whole.subset(test, "test"))
    return Splits(name, *parts, preprocess=preprocess, note=note)


def _strata(images: Tensor, labels: Tensor | None) -> Tensor:
    return torch.zeros(len(images), dtype=torch.int64) if labels is None else labels


def class_names(arrays: dict[str, NDArray[Any]], path: Path) -> tuple[str, ...]:
    """The names in `classes`, else "0", "1", ... up to the highest label. Raises DataError where neither is there."""
    if "classes" in arrays:
        given = arrays["classes"]
        if given.ndim != 1 or given.dtype.kind not in "US":
            raise DataError(f"{path}: array 'classes' is {given.dtype} {list(given.shape)}; expected K strings")
        try:
            return tuple(name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in given)
        except (SystemError, ValueError) as error:  # numpy keeps four bytes a letter, and not all of them are one
            raise DataError(f"{path}: array 'classes' has names that are no text ({error})") from error
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
    last = channels_last(array.shape, what)
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2) if last else array))


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
