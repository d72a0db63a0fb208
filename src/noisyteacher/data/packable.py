"""What can be packed, seen alike: parts of rows with names, perhaps labels, and images that are read one after another.

Nothing here decodes: a row's image is a path, encoded bytes, or pixels, and goes to another process as it is.
"""

from __future__ import annotations

import os
import stat
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
from noisyteacher.errors import AskedWronglyError, DataError
from noisyteacher.pixels import ENDINGS, Item, Unreadable
from noisyteacher.text import printable

MOST_CLASSES, DEEPEST = 100_000, 64
FOLLOW = "--follow-links (in Python follow_links=True) reads it"


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


def folder_source(root: Path, follow_links: bool = False) -> Source:
    """`ROOT/{train,val,test}/CLASS/**/x.jpg`, `ROOT/CLASS/**/x.jpg`, or images without class folders: unlabelled.

    Any role may be unlabelled. Classes are those of the first labelled role, in alphabetical order. What begins with a
    dot, and files of other kinds than images, are passed over. A link to a folder, and one to a file outside of ROOT,
    is a row that cannot be read, unless `follow_links`; one to nowhere or back to a folder around it always is.
    """
    roles = [role for role in ROLES if os.path.isdir(root / role)]
    if roles and "train" not in roles:
        raise DataError(f"{root}: has {' and '.join(roles)} but no train folder with images in it")
    places = [(role, root / role) for role in roles] or [("all", root)]
    names = next((found for _, place in places if (found := _class_folders(place))), ())
    if len(names) == 1:
        raise DataError(f"{root}: one class folder in it ({names[0]}); expected two or more, or images alone")
    walk = _Walk(root, follow_links)
    return Source("folder", root.name, tuple(_folder_part(role, place, names, walk) for role, place in places), names)


def _class_folders(place: Path) -> tuple[str, ...]:
    """The names of the class folders; none where the images lie in the place itself."""
    found = [entry.name for entry in _entries(place) if _is_folder(entry)]
    for name in found:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{place}: the class folder {printable(name)} has a name that is not UTF-8: rename it"
            ) from error
    return tuple(found)


def _folder_part(role: str, place: Path, names: tuple[str, ...], walk: _Walk) -> Part:
    own = _class_folders(place)
    extra = sorted(set(own) - set(names))
    if extra:
        raise DataError(f"{place / extra[0]}: a class that the first labelled part does not have ({', '.join(names)})")
    files: list[str] = []
    labels: list[int] = []
    for name in own or ("",):
        found = walk.images(place / name)
        if not found:
            raise DataError(f"{printable(place / name)}: no image in it; expected files ending in {', '.join(ENDINGS)}")
        files += found
        labels += [names.index(name) if own else 0] * len(found)
    return Part(
        role,
        files,
        np.array(labels, dtype=np.int64) if own else None,
        lambda first: map(walk.item, files[first:]),
        lambda row: walk.stamp(files[row]),
    )


class _Walk:
    """Image files under a root, as paths relative to it. Links that are not to be followed are listed, not opened."""

    def __init__(self, root: Path, follow_links: bool) -> None:
        self.root, self.follow_links, self.real = root, follow_links, os.path.realpath(root)
        self.refused: dict[str, str] = {}

    def images(self, folder: Path) -> list[str]:
        """All images under the folder, which is the root or lies in it; entry by entry, in alphabetical order."""
        if folder == self.root:
            return self._below(folder, ())
        around = (self.real, os.path.realpath(folder.parent))
        if not self._may_enter(folder, around):
            return [os.path.relpath(folder, self.root)]
        return self._below(folder, around)

    def item(self, name: str) -> Item:
        """The image of this name, as something to decode."""
        return Unreadable(self.refused[name]) if name in self.refused else os.path.join(self.root, name)

    def stamp(self, name: str) -> str:
        """Name, length and time of change."""
        if name in self.refused:
            return f"{name}\0{self.refused[name]}"
        try:
            found = os.stat(os.path.join(self.root, name))
        except OSError:
            return f"{name}\0gone"
        return f"{name}\0{found.st_size}\0{found.st_mtime_ns}"

    def _below(self, folder: Path, around: tuple[str, ...]) -> list[str]:
        found: list[str] = []
        inner = (*around, os.path.realpath(folder))
        for entry in _entries(folder):
            path, name = Path(entry.path), os.path.relpath(entry.path, self.root)
            if _is_folder(entry):
                found += self._below(path, inner) if self._may_enter(path, inner) else [name]
            elif os.path.splitext(entry.name)[1].lower() in ENDINGS:
                if entry.is_symlink():
                    self._look_behind(path, name)
                elif not entry.is_file():  # a pipe would be waited for
                    self.refused[name] = "is no file"
                found.append(name)
        return found

    def _may_enter(self, folder: Path, around: tuple[str, ...]) -> bool:
        """Whether to go into a folder; a linked one that is refused is noted with its reason."""
        name, real = os.path.relpath(folder, self.root), os.path.realpath(folder)
        if any(one == real or one.startswith(real.rstrip(os.sep) + os.sep) for one in around):
            self.refused[name] = "a link to a folder around it: going in would never end"
            return False
        if len(around) > DEEPEST:
            self.refused[name] = f"nested deeper than {DEEPEST} folders"
            return False
        if os.path.islink(folder) and not self.follow_links:  # a few links in each folder could lead to 2^64 paths
            self.refused[name] = f"a link to a folder: {FOLLOW}"
            return False
        return True

    def _look_behind(self, path: Path, name: str) -> None:
        try:
            mode = os.stat(path).st_mode
        except OSError as error:  # nothing there, or links in a circle
            self.refused[name] = f"a link that leads nowhere ({error.strerror or error})"
            return
        if not stat.S_ISREG(mode):
            self.refused[name] = "a link to something that is no file"
            return
        if not self.follow_links and not os.path.realpath(path).startswith(self.real + os.sep):
            self.refused[name] = f"a link that leads out of the folder: {FOLLOW}"


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, in alphabetical order of code points, without what begins with a dot."""
    try:
        with os.scandir(folder) as found:
            return sorted((one for one in found if not one.name.startswith(".")), key=lambda one: one.name)
    except OSError as error:
        raise DataError(f"{printable(folder)}: cannot be read: {error.strerror or error}") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links in a circle
        return False


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


def given_classes(asked: int | Sequence[str] | None, source: Source) -> tuple[str, ...]:
    """The class names: the source's own, or those asked for where nothing in it is labelled.

    Raises AskedWronglyError when both or neither are there.
    """
    if source.class_names:
        if asked is not None:
            raise AskedWronglyError(f"classes={asked!r} has no effect: the source has its own classes; leave it out")
        return source.class_names
    if asked is None:
        raise AskedWronglyError(
            f"{source.name}: no labels here, so nothing says which classes a teacher will tell apart: give their "
            "number or names by --classes 10 or --classes cat,dog (in Python classes=)"
        )
    names = tuple(map(str, range(asked))) if isinstance(asked, int) else tuple(map(str, asked))
    if isinstance(asked, bool) or len(names) < 2 or len(set(names)) < len(names) or len(names) > MOST_CLASSES:
        raise AskedWronglyError(f"classes={asked!r}: expected a number of two or more, or different names")
    return names
