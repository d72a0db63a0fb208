"""Data set objects: anything with a length whose items are (image, label), read once into one uint8 tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisyteacher.data.arrays import assemble, cut
from noisyteacher.data.npz import MAX_BYTES
from noisyteacher.data.split import ROLES, Split, Splits
from noisyteacher.errors import DataError, UsageError
from noisyteacher.pixels import pixels_of
from noisyteacher.text import size_bytes

_MAX_LABEL = 100_000


def load_object(source: Any, *, seed: int = 0, max_bytes: int = MAX_BYTES) -> Splits:
    """The splits of one map-style dataset (cut 80/10/10), of a dict of `train`, `val`, `test`, or of a tuple of three.

    Items are (image, label), or dicts with `image` or `img` and `label`. An image is a Pillow image (grey ones keep
    one channel), a uint8 array `[H, W]` or `[H, W, C]`, or a tensor `[C, H, W]` of uint8 or of floats in 0..1 (times
    255, rounded). Each item is read once: a random transform is frozen as it fell. Class names come from `.classes`.
    Raises UsageError when it is no such object, DataError naming the item.
    """
    if isinstance(source, tuple):
        if len(source) != 3:
            raise UsageError(f"a tuple of {len(source)}: expected (train, val, test), or a dict with these names")
        source = dict(zip(ROLES, source, strict=True))
    if not isinstance(source, Mapping):
        images, labels = _read(source, "dataset", max_bytes)
        return cut("dataset", images, labels, _names([source], [labels]), seed=seed)
    unknown = [key for key in source if key not in ROLES]
    if unknown or "train" not in source:
        raise UsageError(f"a dict with {list(source)}: expected train and, if there are any, val and test")
    read: dict[str, tuple[Tensor, Tensor]] = {}
    for role, dataset in source.items():
        read[role] = _read(dataset, role, max_bytes)
        max_bytes -= read[role][0].nbytes
    names = _names(list(source.values()), [labels for _, labels in read.values()])
    held = {
        role: Split(images, labels, torch.arange(len(images)), role, "dataset", names)
        for role, (images, labels) in read.items()
        if role != "train"
    }
    return assemble("dataset", *read["train"], names, held.get("val"), held.get("test"), seed=seed)


def _read(dataset: Any, what: str, max_bytes: int) -> tuple[Tensor, Tensor]:
    """Images uint8 `[N, C, H, W]` and labels int64 `[N]` of every item."""
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise UsageError(
            f"{what}: a {type(dataset).__name__} is no data: expected a name, a path, or a dataset with a length and "
            "items (image, label)"
        )
    count = len(dataset)
    if not count:
        raise DataError(f"{what}: the dataset is empty; it needs at least one item")
    into: Tensor | None = None
    labels = torch.empty(count, dtype=torch.int64)
    for row in range(count):
        try:
            item = dataset[row]
        except Exception as error:
            raise DataError(f"{what}: item {row} cannot be read ({type(error).__name__}: {error})") from error
        image, label = _item(item, f"{what}: item {row}")
        pixels = _pixels(image, f"{what}: item {row}")
        if into is None:
            needed = count * pixels.nbytes
            if needed > max_bytes:
                raise DataError(
                    f"{what}: {count} images of {list(pixels.shape)} take {size_bytes(needed)} in memory, more than "
                    f"the {size_bytes(max_bytes)} that are allowed; resize them or pass a larger max_bytes="
                )
            into = torch.empty(count, *pixels.shape, dtype=torch.uint8)
        if pixels.shape != tuple(into.shape[1:]):
            raise DataError(
                f"{what}: item {row} is {list(pixels.shape)}, item 0 is {list(into.shape[1:])} (C, H, W); bring all "
                "images to one size and mode"
            )
        into[row] = torch.from_numpy(pixels.copy())
        labels[row] = label
    assert into is not None
    return into, labels


def _item(item: Any, what: str) -> tuple[Any, int]:
    if isinstance(item, Mapping):
        image = item["image"] if "image" in item else item.get("img")
        label = item.get("label")
    elif isinstance(item, (tuple, list)) and len(item) >= 2:
        image, label = item[0], item[1]
    else:
        raise DataError(f"{what} is a {type(item).__name__}; expected (image, label)")
    if isinstance(label, Tensor) and label.ndim == 0 and not label.dtype.is_floating_point:
        label = label.item()
    if isinstance(label, bool) or not isinstance(label, (int, np.integer)) or not 0 <= label < _MAX_LABEL:
        raise DataError(f"{what}: label {label!r:.60} is no class number; expected an integer 0..K-1")
    return image, int(label)


def _pixels(image: Any, what: str) -> NDArray[np.uint8]:
    """uint8 `[C, H, W]` of whatever kind of image an item holds."""
    if isinstance(image, Tensor):
        return _of_tensor(image, what)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] > 4):
            raise DataError(f"{what}: array {image.dtype} {list(image.shape)}; expected uint8 [H, W] or [H, W, C]")
        return image[None] if image.ndim == 2 else np.ascontiguousarray(image.transpose(2, 0, 1))
    if hasattr(image, "convert") and hasattr(image, "mode"):
        try:
            return pixels_of(image, grey=image.mode in ("1", "L", "LA"))
        except DataError as error:
            raise DataError(f"{what}: {error}") from error
        except OSError as error:
            raise DataError(f"{what}: the image cannot be decoded ({error})") from error
    raise DataError(f"{what}: a {type(image).__name__} is no image; expected a Pillow image, an array or a tensor")


def _of_tensor(image: Tensor, what: str) -> NDArray[np.uint8]:
    plain = image.detach().cpu()
    if plain.ndim == 2:
        plain = plain[None]
    if plain.ndim != 3 or not (plain.dtype == torch.uint8 or plain.dtype.is_floating_point):
        raise DataError(f"{what}: tensor {image.dtype} {list(image.shape)}; expected [C, H, W], uint8 or float in 0..1")
    if plain.dtype != torch.uint8:
        if not bool(((plain >= 0) & (plain <= 1)).all()):
            raise DataError(
                f"{what}: float tensor with values {float(plain.min()):.4g}..{float(plain.max()):.4g}; expected 0..1: "
                "leave normalisation out of the transform, models carry their own"
            )
        plain = (plain.double() * 255).round().to(torch.uint8)
    array: NDArray[np.uint8] = plain.contiguous().numpy()
    return array


def _names(datasets: list[Any], labels: list[Tensor]) -> tuple[str, ...]:
    """The class names of the first dataset that has some (a Subset's lie in what it is a subset of), else numbers."""
    for dataset in datasets:
        inner = dataset
        while not hasattr(inner, "classes") and hasattr(inner, "dataset"):
            inner = inner.dataset
        given = getattr(inner, "classes", None)
        if isinstance(given, (list, tuple)) and given:
            return tuple(map(str, given))
    return tuple(map(str, range(1 + max(int(numbers.max()) for numbers in labels))))
