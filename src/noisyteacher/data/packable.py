"""What can be packed, seen alike: parts of rows with names, perhaps labels, and images that are read one after another.

Nothing here decodes: a row's image is a path, encoded bytes, or pixels, and goes to another process as it is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisyteacher.data.arrays import IMAGES_AND_LABELS, class_names, class_numbers
from noisyteacher.data.npz import NpzImages, npz_names, read_npz
from noisyteacher.data.split import ROLES
from noisyteacher.errors import DataError, UsageError
from noisyteacher.pixels import Item

MOST_CLASSES = 100_000


@dataclass(frozen=True)
class Part:
    """The rows of one role, in their order. `all` is a role too: rows that are cut into splits when they are loaded."""

    role: str
    names: Sequence[str]
    """What each row is called: a file's path inside the source, or its number."""
    labels: NDArray[np.int64] | None
    """Class numbers int64 `[N]`; None where there are none."""
    items: Callable[[int], Iterator[Item]]
    """The images from this row on."""
    stamp: Callable[[int], str]
    """What would be another text if the row's image were another one, as far as can be told without reading it."""


@dataclass(frozen=True)
class Source:
    """Everything that is to be packed. `kind` is `folder`, `npz`, `datasets` or `parquet`."""

    kind: str
    name: str
    parts: tuple[Part, ...]
    class_names: tuple[str, ...]
    """Empty where nothing is labelled."""
    note: str = ""
    """What a user of the data should know: files that were left out, parts without labels."""


def npz_source(path: Path) -> Source:
    """The parts of a `.npz` as `load_npz` knows them; its images are read as a stream, never all at once.

    Any part may be unlabelled. Raises DataError naming file and array.
    """
    small = [key for key in IMAGES_AND_LABELS if not key.startswith("x")]
    arrays, found = read_npz(path, IMAGES_AND_LABELS, only=small), npz_names(path)
    alone = "x" in found
    if alone and any(key.startswith(("x_", "y_")) for key in found):
        raise DataError(f"{path}: holds {', '.join(found)}: give x and y alone, or x_train and the rest")
    if not alone and "x_train" not in found:
        raise DataError(f"{path}: no array 'x_train' in it (found: {', '.join(found) or 'nothing'})")
    names = class_names(arrays, path) if arrays else ()
    at = os.stat(path)
    parts = []
    for role, ending in [("all", "")] if alone else [(role, f"_{role}") for role in ROLES]:
        labels, what = arrays.get(f"y{ending}"), f"{path}: array 'y{ending}'"
        if f"x{ending}" not in found:
            if labels is not None:
                raise DataError(f"{what} has no images beside it: no array 'x{ending}' (found: {', '.join(found)})")
            continue
        images = NpzImages(path, f"x{ending}")
        numbers = None if labels is None else class_numbers(labels, len(images), len(names), what).numpy()
        stamp = partial("{}\0{}\0{}".format, at.st_size, at.st_mtime_ns)
        parts.append(Part(role, Numbered(len(images)), numbers, images.rows, stamp))
    return Source("npz", path.stem, tuple(parts), names)


class Numbered(Sequence[str]):
    """Rows that are called by their number."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: Any) -> Any:
        """The name of the row, or a list of names for a slice."""
        return [str(one) for one in range(self._count)[row]] if isinstance(row, slice) else str(range(self._count)[row])


def given_classes(
    asked: int | Sequence[str] | None, source: Source, option: str = "--classes 10 or --classes cat,dog"
) -> tuple[str, ...]:
    """The class names: the source's own, or those asked for where nothing in it is labelled.

    Raises UsageError when both or neither are there; it names the `option` that gives them.
    """
    if source.class_names:
        if asked is not None:
            raise UsageError(f"classes={asked!r} has no effect: the source has its own classes; leave it out")
        return source.class_names
    if asked is None:
        raise UsageError(
            f"{source.name}: no labels here, so nothing says which classes a teacher will tell apart: give their "
            f"number or names by {option} (in Python classes=)"
        )
    names = tuple(map(str, range(asked))) if isinstance(asked, int) else tuple(map(str, asked))
    if isinstance(asked, bool) or len(names) < 2 or len(set(names)) < len(names) or len(names) > MOST_CLASSES:
        raise UsageError(f"classes={asked!r}: expected a number of two or more, or different names")
    return names
