"""A tree of folders with images as something to read: which folder is which split, which files are images."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from noisyteacher.data.packable import Part, Source
from noisyteacher.errors import DataError
from noisyteacher.pixels import Item, Unreadable, looks_like_an_image, readable_suffixes
from noisyteacher.text import few, plural, printable

SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""Role -> the names of its folder, in lower case; any case is read."""
DEEPEST = 64
FOLLOW = "--follow-links (in Python follow_links=True) reads it"
_DROPPINGS = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "icon\r", "$recycle.bin"}
"""What systems leave in folders, in lower case; like names that begin with a dot, it is passed over in silence."""
_SPLIT_WORDS = "train or training, val, valid, validation or dev, test or testing"
KINDS_SHOWN = 5


def role_of(folder_name: str) -> str | None:
    """The role that a folder of this name has: `role_of("Valid")` is "val", `role_of("cats")` is None."""
    return next((role for role, names in SPLIT_FOLDERS.items() if folder_name.lower() in names), None)


@dataclass
class LeftOut:
    """Files under a root that are not read as images, counted by kind."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    """Of every kind the first file's path."""

    def add(self, kind: str, path: str) -> None:
        """Count a file of this kind, a suffix or a reason."""
        self.counts[kind] += 1
        self.examples.setdefault(kind, path)

    def sentence(self, images: int) -> str:
        """How many files were left out, of which kinds, with an example of each; empty where none was."""
        if not self.counts:
            return ""
        total = sum(self.counts.values())
        kinds = [
            f"{count:,} {kind} ({'such as ' if count > 1 else ''}{printable(self.examples[kind])})"
            for kind, count in self.counts.most_common(KINDS_SHOWN)
        ]
        hidden = len(self.counts) - len(kinds)
        more = f", and {plural(hidden, 'other kind')}" if hidden else ""
        return f"{total:,} of {total + images:,} files are not read as images: {', '.join(kinds)}{more}."


def folder_source(root: Path, follow_links: bool = False) -> Source:
    """`ROOT/{train,val,test}/CLASS/**/x.jpg`, `ROOT/CLASS/**/x.jpg`, or images without class folders: unlabelled.

    Split folders have the names of SPLIT_FOLDERS in any case. Any role may be unlabelled. Classes are those of the
    first labelled role, in alphabetical order. Files that are not images are left out and told in the source's note. A
    link to a folder, and one to a file outside of ROOT, is a row that cannot be read, unless `follow_links`; one to
    nowhere or back to a folder around it always is.
    Raises DataError where the folders are a mixture of splits and classes, and where a part has no image.
    """
    walk = _Walk(root, follow_links)
    places = _split_folders(root, walk) or {"all": root}
    folders = {role: _class_folders(place) for role, place in places.items()}
    labelled = next((role for role in places if folders[role]), None)
    class_names = folders[labelled] if labelled else ()
    if labelled and len(class_names) == 1:
        only = printable(places[labelled] / class_names[0])
        raise DataError(
            f"{places[labelled]}: one class folder in it ({printable(class_names[0])}); expected two or more, or "
            f"images alone; if {only} is the data set itself, name that folder"
        )
    for role, names in folders.items():
        extra = [name for name in names if name not in class_names]
        if labelled and extra:
            raise DataError(
                f"{places[role] / extra[0]}: a class that {places[labelled]} does not have ({few(class_names, 10)})"
            )
    parts = tuple(_folder_part(role, place, folders[role], class_names, walk) for role, place in places.items())
    return Source("folder", root.name, parts, class_names, _note(parts, places, walk.left_out))


def _split_folders(root: Path, walk: _Walk) -> dict[str, Path]:
    """Role -> folder, in the order train, val, test; empty where no folder in the root is named like a split."""
    folders = [entry.name for entry in _entries(root) if _is_folder(entry)]
    named = {name: role for name in folders if (role := role_of(name)) is not None}
    if not named:
        return {}
    others = [name for name in folders if name not in named]
    if others:
        raise DataError(
            f"{root}: {_listed(named)} beside {_listed(others)}: expected either split folders alone ({_SPLIT_WORDS}) "
            "or class folders alone; move the other folders away, or rename a class that is named like a split"
        )
    places: dict[str, Path] = {}
    for role in SPLIT_FOLDERS:
        same = [name for name, its_role in named.items() if its_role == role]
        if len(same) > 1:
            raise DataError(
                f"{root}: {_listed(same)} are {len(same)} folders for one split ({role}): keep one of them, or put "
                "their images together"
            )
        if same and _entries(root / same[0]):  # an empty folder is as good as none
            places[role] = root / same[0]
    if "train" not in places:
        raise DataError(
            f"{root}: has {_listed(named)} but no train folder with images in it; expected train/CLASS/ or images in "
            "train/"
        )
    walk.leave_out(root, "beside the split folders")
    return places


def _class_folders(place: Path) -> tuple[str, ...]:
    """The names of the class folders; none where the images lie in the place itself."""
    names = [entry.name for entry in _entries(place) if _is_folder(entry)]
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{place}: the class folder {printable(name)} has a name that is not UTF-8: rename it"
            ) from error
    splits = [name for name in names if role_of(name) is not None]
    if splits:
        raise DataError(
            f"{place}: {_listed(splits)} {'is' if len(splits) == 1 else 'are'} where class folders are expected, named "
            "like a split: put splits above classes (train/cat/), or rename a class of that name"
        )
    return tuple(names)


def _folder_part(role: str, place: Path, own: Sequence[str], class_names: Sequence[str], walk: _Walk) -> Part:
    """The images of one split; `own` are its class folders, empty where the images lie in the place itself."""
    numbers = {name: number for number, name in enumerate(class_names)}
    files: list[str] = []
    labels: list[int] = []
    for name in own or ("",):
        if name:
            _refuse_splits_in_class(place / name)
        images = walk.images(place / name)
        if not images:
            others = [entry.name for entry in _entries(place / name) if not _is_folder(entry)]
            there = f" ({len(others)} other file(s), such as {printable(others[0])})" if others else ""
            raise DataError(
                f"{printable(place / name)}: no image in it{there}; expected files ending in "
                f"{', '.join(sorted(readable_suffixes()))}, or images without an ending"
            )
        files += images
        labels += [numbers.get(name, 0)] * len(images)
    if own:
        walk.leave_out(place, "beside the class folders")
    return Part(
        role,
        files,
        np.array(labels, dtype=np.int64) if own else None,
        lambda first: map(walk.item, files[first:]),
        lambda row: walk.stamp(files[row]),
    )


def _refuse_splits_in_class(folder: Path) -> None:
    """Raises DataError where the classes stand above the splits, which would mix training with test images."""
    splits = [entry.name for entry in _entries(folder) if _is_folder(entry) and role_of(entry.name) is not None]
    if splits:
        raise DataError(
            f"{folder}: {_listed(splits)} in a class folder: expected splits above classes, as in train/{folder.name}/"
            "; move them, or rename them if they are no splits"
        )


def _note(parts: Sequence[Part], places: Mapping[str, Path], left_out: LeftOut) -> str:
    """What a user of the data should know: parts without labels beside a labelled train, and files left out."""
    labelled = parts[0].labels is not None  # an unlabelled train beside a labelled val is a transfer set
    plain = [places[part.role].name for part in parts if labelled and part.labels is None]
    words = [f"{_listed(plain)}: images without class folders, read as images without labels."] if plain else []
    left = left_out.sentence(sum(len(part.names) for part in parts))
    return " ".join([*words, left] if left else words)


class _Walk:
    """Image files under a root, as paths relative to it. Links that are not to be followed are listed, not opened."""

    def __init__(self, root: Path, follow_links: bool) -> None:
        self.root, self.follow_links, self.real = root, follow_links, os.path.realpath(root)
        self.refused: dict[str, str] = {}
        self.left_out = LeftOut()
        self._suffixes = readable_suffixes()
        self._linked: set[str] = set()

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
            status = os.stat(os.path.join(self.root, name))
        except OSError:
            return f"{name}\0gone"
        return f"{name}\0{status.st_size}\0{status.st_mtime_ns}"

    def leave_out(self, folder: Path, where: str) -> None:
        """Count the files that lie in a folder where only folders are expected."""
        for entry in _entries(folder):
            if not _is_folder(entry):
                suffix = _suffix(entry.name)
                kind = f"{suffix or 'without a suffix'} {where}" if suffix in self._suffixes else _kind(suffix)
                self.left_out.add(kind, os.path.relpath(entry.path, self.root))

    def _below(self, folder: Path, around: tuple[str, ...]) -> list[str]:
        names: list[str] = []
        inner = (*around, os.path.realpath(folder))
        for entry in _entries(folder):
            path, name = Path(entry.path), os.path.relpath(entry.path, self.root)
            if _is_folder(entry):
                names += self._below(path, inner) if self._may_enter(path, inner) else [name]
            elif self._is_image(entry, name):
                names.append(name)
        return names

    def _is_image(self, entry: os.DirEntry[str], name: str) -> bool:
        """Whether a file is listed as an image: by its suffix, or, without one, by its first bytes."""
        suffix = _suffix(entry.name)
        if suffix and suffix not in self._suffixes:
            self.left_out.add(_kind(suffix), name)
            return False
        if entry.is_symlink():
            self._look_behind(Path(entry.path), name)
        elif not entry.is_file():  # a pipe would be waited for
            self.refused[name] = "is no file"
        if suffix or (name not in self.refused and looks_like_an_image(entry.path)):
            return True
        self.refused.pop(name, None)
        self.left_out.add(_kind(suffix), name)
        return False

    def _may_enter(self, folder: Path, around: tuple[str, ...]) -> bool:
        """Whether to go into a folder; a linked one that is refused is noted with its reason."""
        name, real = os.path.relpath(folder, self.root), os.path.realpath(folder)
        if any(one == real or one.startswith(real.rstrip(os.sep) + os.sep) for one in around):
            self.refused[name] = "a link to a folder around it: going in would never end"
            return False
        if len(around) > DEEPEST:
            self.refused[name] = f"nested deeper than {DEEPEST} folders"
            return False
        if not os.path.islink(folder):
            return True
        if not self.follow_links:  # a few links in each folder could lead to 2^64 paths
            self.refused[name] = f"a link to a folder: {FOLLOW}"
        elif real in self._linked:
            self.refused[name] = "a link to a folder that another link has led to already"
        self._linked.add(real)
        return name not in self.refused

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
    """What is in a folder, in alphabetical order of code points, without hidden names and droppings."""
    try:
        with os.scandir(folder) as entries:
            kept = [entry for entry in entries if not _is_dropping(entry.name)]
    except OSError as error:
        raise DataError(f"{printable(folder)}: cannot be read: {error.strerror or error}") from error
    return sorted(kept, key=lambda entry: entry.name)


def _is_dropping(name: str) -> bool:
    return name.startswith(".") or name.lower() in _DROPPINGS


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links in a circle
        return False


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _kind(suffix: str) -> str:
    return suffix or "without a suffix"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"{printable(name)}/" for name in names)
