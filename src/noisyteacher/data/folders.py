"""Folders of images: which folder is which split or class, which files are images, which links are followed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from noisyteacher.data.images import Part, Source, Unreadable, looks_like_an_image, readable
from noisyteacher.data.split import ROLES, role_of
from noisyteacher.errors import DataError
from noisyteacher.text import few, printable

MAX_DEPTH = 64
_IGNORED = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "icon\r", "$recycle.bin"}
"""What systems leave in folders, in lower case; like names that begin with a dot, it is ignored silently."""


def folder_source(root: Path, follow_links: bool = False) -> Source:
    """`ROOT/{train,val,test}/CLASS/**/x.jpg`, `ROOT/CLASS/**/x.jpg`, or images without class folders: unlabelled.

    Classes are those of the first labelled role, in alphabetical order; any role may be unlabelled. Files that are not
    images are skipped and counted in the source's note. A link to a folder, and one to a file outside of ROOT, is an
    unreadable image, unless `follow_links`; one to nowhere or back to a folder around it always is.
    Raises DataError where the folders are a mixture of splits and classes, and where a part has no image.
    """
    finder = _ImageFinder(root, follow_links)
    folders = _split_folders(root) or {"all": root}
    if "all" not in folders:
        finder.skip_files(root)
    classes = {role: _class_folders(folder) for role, folder in folders.items()}
    class_names = next(filter(None, classes.values()), [])
    parts: list[Part] = []
    notes: list[str] = []
    for role, folder in folders.items():
        if len(class_names) == 1 and classes[role]:
            path = printable(folder / class_names[0])
            raise DataError(f"{path}: the only class folder; expected two or more, or give it as the data set itself")
        images: dict[str, str | Unreadable] = {}
        labels: list[int] = []
        for name in classes[role] or [""]:
            if name and name not in class_names:
                raise DataError(f"{folder / name}: a class that no split before has ({few(class_names, 10)})")
            if name:
                _refuse_splits(folder / name, _folders_in(folder / name))
            images_of_class = finder.images(folder / name)
            images |= images_of_class
            labels += [class_names.index(name) if name else 0] * len(images_of_class)
        if classes[role]:
            finder.skip_files(folder)
        elif parts and parts[0].labels is not None:  # an unlabelled train beside a labelled val is a transfer set
            notes.append(f"{printable(folder.name)}/: images without class folders, read as images without labels.")
        parts.append(Part(role, list(images), torch.tensor(labels) if classes[role] else None, images.values()))
    if finder.skipped:
        by_count = sorted(finder.skipped.items(), key=lambda item: -len(item[1]))
        kinds = [f"{len(names):,} {kind} ({printable(names[0])})" for kind, names in by_count]
        count = sum(len(names) for _, names in by_count)
        total = count + sum(len(part.names) for part in parts)
        notes.append(f"{count:,} of {total:,} files are not read as images: {few(kinds, 5)}.")
    return Source("folder", root.name, tuple(parts), tuple(class_names), " ".join(notes))


def image_files(folder: Path) -> dict[str, str | Unreadable]:
    """Name relative to the folder -> path, or why it cannot be read, of all images in it at any depth, in order."""
    return _ImageFinder(folder, follow_links=True).images(folder)


def _split_folders(root: Path) -> dict[str, Path]:
    """Role -> folder, in the order train, val, test; empty where no folder in the root is named like a split."""
    names = _folders_in(root)
    splits = [name for name in names if role_of(name)]
    if splits and len(splits) < len(names):
        rest = _listed(name for name in names if name not in splits)
        remedy = "expected split folders alone or class folders alone: rename a class that is named like a split"
        raise DataError(f"{root}: {_listed(splits)} beside {rest}: {remedy}")
    folders: dict[str, Path] = {}
    for role in ROLES:
        same = [name for name in splits if role_of(name) == role]
        if len(same) > 1:
            raise DataError(f"{root}: {_listed(same)} are {len(same)} folders for one split ({role}): keep one of them")
        if same and _entries(root / same[0]):  # an empty folder counts as a missing one
            folders[role] = root / same[0]
    if splits and "train" not in folders:
        raise DataError(f"{root}: has {_listed(splits)} but no train folder with images in it; expected train/CLASS/")
    return folders


def _class_folders(folder: Path) -> list[str]:
    """The names of the class folders; none where the images lie in the folder itself."""
    names = _folders_in(folder)
    _refuse_splits(folder, names)
    for name in names:
        if name.encode(errors="ignore").decode() != name:
            raise DataError(f"{folder}: class folder {printable(name)} has a name that is not UTF-8: rename it")
    return names


def _refuse_splits(folder: Path, names: list[str]) -> None:
    splits = [name for name in names if role_of(name)]
    if splits:
        raise DataError(f"{folder}: {_listed(splits)} inside a split or class: put splits above classes, or rename it")


class _ImageFinder:
    """Finds the image files under a root. skipped: kind of file -> names of the files that are not images."""

    def __init__(self, root: Path, follow_links: bool) -> None:
        self.root, self.follow_links, self.real_root = root, follow_links, os.path.realpath(root)
        self.skipped: dict[str, list[str]] = {}
        self.linked_folders: set[str] = set()

    def images(self, folder: Path) -> dict[str, str | Unreadable]:
        """Name relative to the root -> path, or why it cannot be read, of all images under the folder, in order."""
        around = () if folder == self.root else (self.real_root, os.path.realpath(folder.parent))
        images = dict(self._images_in(folder, around))
        if not images:
            files = few([printable(entry.name) for entry in _entries(folder)], 1) or "it is empty"
            suffixes = ", ".join(sorted(readable()[1]))
            raise DataError(f"{printable(folder)}: no image in it ({files}); expected files ending in {suffixes}")
        return images

    def skip_files(self, folder: Path) -> None:
        for entry in _entries(folder):
            if not _is_folder(entry):
                self._skip(entry, f"{_suffix(entry) or 'without a suffix'} beside folders")

    def _skip(self, entry: os.DirEntry[str], kind: str) -> None:
        self.skipped.setdefault(kind, []).append(os.path.relpath(entry.path, self.root))

    def _images_in(self, folder: Path, around: tuple[str, ...]) -> Iterator[tuple[str, str | Unreadable]]:
        """Names and images under the folder; `around` are the real paths of the folders that contain it."""
        refusal = self._folder_refusal(folder, around)
        if refusal:
            yield os.path.relpath(folder, self.root), Unreadable(refusal)
            return
        for entry in _entries(folder):
            if _is_folder(entry):
                yield from self._images_in(Path(entry.path), (*around, os.path.realpath(folder)))
                continue
            suffix, refusal = _suffix(entry), self._file_refusal(entry)
            if suffix in readable()[1] or (not suffix and not refusal and looks_like_an_image(entry.path)):
                yield os.path.relpath(entry.path, self.root), Unreadable(refusal) if refusal else entry.path
            else:
                self._skip(entry, suffix or "without a suffix")

    def _folder_refusal(self, folder: Path, around: tuple[str, ...]) -> str:
        real = os.path.realpath(folder)
        if any(f"{path}{os.sep}".startswith(real.rstrip(os.sep) + os.sep) for path in around):
            return "a link to a folder around it: following it would never end"
        if len(around) > MAX_DEPTH:
            return f"nested deeper than {MAX_DEPTH} folders"
        if not os.path.islink(folder) or folder == self.root:
            return ""
        if not self.follow_links:
            return "a link to a folder: --follow-links (in Python follow_links=True) reads it"
        if real in self.linked_folders:  # a few links in each folder could lead to 2^64 paths
            return "a link to a folder that an earlier link leads to"
        self.linked_folders.add(real)
        return ""

    def _file_refusal(self, entry: os.DirEntry[str]) -> str:
        if entry.is_file(follow_symlinks=False):
            return ""
        try:
            regular = stat.S_ISREG(os.stat(entry.path).st_mode)
        except OSError as error:  # a broken link, or links in a circle
            return f"a link that leads nowhere ({error.strerror or error})"
        if not regular:  # opening a pipe would wait for a writer
            return "is not a regular file"
        if not self.follow_links and not os.path.realpath(entry.path).startswith(self.real_root + os.sep):
            return "a link that leads out of the folder: --follow-links (in Python follow_links=True) reads it"
        return ""


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, in alphabetical order of code points, without hidden and ignored names."""
    try:
        with os.scandir(folder) as entries:
            kept = [entry for entry in entries if not entry.name.startswith(".") and entry.name.lower() not in _IGNORED]
    except OSError as error:
        raise DataError(f"{printable(folder)}: cannot be read: {error.strerror or error}") from error
    return sorted(kept, key=lambda entry: entry.name)


def _folders_in(folder: Path) -> list[str]:
    return [entry.name for entry in _entries(folder) if _is_folder(entry)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links in a circle
        return False


def _suffix(entry: os.DirEntry[str]) -> str:
    return os.path.splitext(entry.name)[1].lower()


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"{printable(name)}/" for name in names)
