"""What is suspicious in a data set: images that occur twice, rare classes, files that cannot be read."""

from __future__ import annotations

import math
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from noisyteacher.data.builtin import DATASETS
from noisyteacher.data.images import Resize, Source, Unreadable, decode_all
from noisyteacher.data.packed import Packed, is_packed
from noisyteacher.data.sources import is_saved, parquet_files, path_source
from noisyteacher.data.split import Splits
from noisyteacher.io.tensors import tensor_bytes
from noisyteacher.text import printable

Position = tuple[str, int]
"""An image by the role of its split and its row."""


class Duplicate(NamedTuple):
    """An image with the pixels of an earlier one; and whether their labels differ."""

    first: Position
    second: Position
    labels_differ: bool


class Imbalance(NamedTuple):
    """The rarest and the most frequent class of train, with their images, and the ratio of these."""

    rarest: str
    fewest: int
    frequent: str
    most: int

    @property
    def ratio(self) -> float:
        """How many times more images the most frequent class has; infinite if the rarest has none."""
        return self.most / self.fewest if self.fewest else math.inf


def duplicates(splits: Splits, report: Callable[[int, int], None] | None = None) -> list[Duplicate]:
    """Every image whose pixels an earlier one has, of train, val and test in this order, with the first such image.

    Memory grows by a hash of 16 bytes for each image. report: called with (images done, of how many).
    """
    firsts: dict[bytes, Position] = {}
    pairs: list[Duplicate] = []
    done, total = 0, sum(map(len, splits.parts.values()))
    for role, split in splits.parts.items():
        for rows in split.chunks():
            for row, image in zip(rows.tolist(), split.images_at(rows).cpu(), strict=True):
                digest = blake2b(tensor_bytes(image), digest_size=16).digest()
                first = firsts.setdefault(digest, (role, row))
                if first != (role, row):
                    labels, earlier = split.labels, splits.parts[first[0]].labels
                    differ = labels is not None and earlier is not None and bool(labels[row] != earlier[first[1]])
                    pairs.append(Duplicate(first, (role, row), differ))
            done += len(rows)
            if report is not None:
                report(done, total)
    return pairs


def imbalance(splits: Splits) -> Imbalance | None:
    """The rarest and the most frequent class of train; None without labels."""
    if splits.train.labels is None:
        return None
    counts = splits.train.labels.bincount(minlength=splits.classes)
    low, high = int(counts.argmin()), int(counts.argmax())
    return Imbalance(splits.class_names[low], int(counts[low]), splits.class_names[high], int(counts[high]))


def image_names(splits: Splits, source: str | Packed, root: str | None = None) -> Callable[[Position], str]:
    """The function from a position to the image's file in the source; to `row 7 of test` where it has no files."""
    names: dict[str, list[str]] = {}
    if isinstance(source, Packed):
        names = {part.role: part.files for part in source.parts}
    elif (listed := _image_files(source, root)) is not None:
        names = {part.role: list(map(printable, part.names)) for part in listed.parts}

    def name_of(position: Position) -> str:
        role, row = position
        files = names.get(role) or names.get("train") or names.get("all")  # the part that the split was cut from
        return files[int(splits.parts[role].index[row])] if files else f"row {row} of {role}"

    return name_of


def unreadable_files(source: str, root: str | None = None, threads: int = 1) -> list[tuple[str, str]]:
    """Name and reason of every image file that cannot be read; all are decoded, a few at a time."""
    listed = _image_files(source, root)
    return [
        (printable(name), image.reason)
        for part in (() if listed is None else listed.parts)
        for name, image in zip(part.names, decode_all(part.images, Resize(), threads), strict=True)
        if isinstance(image, Unreadable)
    ]


def _image_files(source: str, root: str | None) -> Source | None:
    """The image files of a folder or a CSV file; None for a data set of another kind."""
    if source in DATASETS:
        return None
    path = Path(source).expanduser()
    folder = path.is_dir() and not (is_packed(path) or is_saved(path) or parquet_files(path))
    return path_source(path, True, None, root) if folder or (path.is_file() and path.suffix.lower() == ".csv") else None
