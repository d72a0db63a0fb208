"""Folders of images: which folder is which split or class, which files are images, which links are followed."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from noisyteacher.data.images import Unreadable, looks_like_an_image, readable_suffixes
from noisyteacher.data.sources import Part, Source
from noisyteacher.errors import DataError
from noisyteacher.text import few, plural, printable

SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""Role -> the names of its folder, in lower case; any case is read."""
MAX_DEPTH = 64
_IGNORED = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "icon\r", "$recycle.bin"}
"""What systems leave in folders, in lower case; like names that begin with a dot, it is ignored silently."""
_SPLIT_WORDS = "train or training, val, valid, validation or dev, test or testing"


def role_of(folder_name: str) -> str | None:
    """The role that a folder of this name has: `role_of("Valid")` is "val", `role_of("cats")` is None."""
    return next((role for role, names in SPLIT_FOLDERS.items() if folder_name.lower() in names), None)


def folder_source(root: Path, follow_links: bool = False) -> Source:
    """`ROOT/{train,val,test}/CLASS/**/x.jpg`, `ROOT/CLASS/**/x.jpg`, or images without class folders: unlabelled.

    Split folders have the names of SPLIT_FOLDERS in any case. Any role may be unlabelled. Classes are those of the
    first labelled role, in alphabetical order. Files that are not images are skipped and counted in the source's note.
    A link to a folder, and one to a file outside of ROOT, is an unreadable image, unless `follow_links`; one to nowhere
    or back to a folder around it always is.
    Raises DataError where the folders are a mixture of splits and classes, and where a part has no image.
    """
    files = _ImageFiles(root, follow_links)
    folders = _split_folders(root, files) or {"all": root}
    classes = {role: _class_folders(folder) for role, folder in folders.items()}
    labelled = next((role for role in folders if classes[role]), None)
    class_names = classes[labelled] if labelled else ()
    if labelled and len(class_names) == 1:
        only = printable(folders[labelled] / class_names[0])
        raise DataError(
            f"{folders[labelled]}: one class folder in it ({printable(class_names[0])}); expected two or more, or "
            f"images alone; if {only} is the data set itself, name that folder"
        )
    for role, names in classes.items():
        extra = [name for name in names if name not in class_names]
        if extra:
            raise DataError(
                f"{folders[role] / extra[0]}: a class that {folders[labelled or role]} does not have "
                f"({few(class_names, 10)})"
            )
    parts = tuple(_part(role, folder, classes[role], class_names, files) for role, folder in folders.items())
    return Source("folder", root.name, parts, class_names, _note(parts, folders, files))


def _split_folders(root: Path, files: _ImageFiles) -> dict[str, Path]:
    """Role -> folder, in the order train, val, test; empty where no folder in the root is named like a split."""
    names = [entry.name for entry in _entries(root) if _is_folder(entry)]
    roles = {name: role for name in names if (role := role_of(name)) is not None}
    if not roles:
        return {}
    rest = [name for name in names if name not in roles]
    if rest:
        raise DataError(
            f"{root}: {_listed(roles)} beside {_listed(rest)}: expected either split folders alone ({_SPLIT_WORDS}) "
            "or class folders alone; move the other folders away, or rename a class that is named like a split"
        )
    folders: dict[str, Path] = {}
    for role in SPLIT_FOLDERS:
        same = [name for name in roles if roles[name] == role]
        if len(same) > 1:
            raise DataError(
                f"{root}: {_listed(same)} are {len(same)} folders for one split ({role}): keep one of them, or put "
                "their images together"
            )
        if same and _entries(root / same[0]):  # an empty folder counts as a missing one
            folders[role] = root / same[0]
    if "train" not in folders:
        raise DataError(
            f"{root}: has {_listed(roles)} but no train folder with images in it; expected train/CLASS/ or images in "
            "train/"
        )
    files.skip_files(root, "beside the split folders")
    return folders


def _class_folders(folder: Path) -> tuple[str, ...]:
    """The names of the class folders; none where the images lie in the folder itself."""
    names = [entry.name for entry in _entries(folder) if _is_folder(entry)]
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{folder}: the class folder {printable(name)} has a name that is not UTF-8: rename it"
            ) from error
    splits = [name for name in names if role_of(name) is not None]
    if splits:
        raise DataError(
            f"{folder}: {_listed(splits)} {'is' if len(splits) == 1 else 'are'} where class folders are expected, "
            "named like a split: put splits above classes (train/cat/), or rename a class of that name"
        )
    return tuple(names)


def _part(role: str, folder: Path, classes: Sequence[str], class_names: Sequence[str], files: _ImageFiles) -> Part:
    """The images of one split; `classes` are its class folders, empty where the images lie in the folder itself."""
    images: dict[str, str | Unreadable] = {}
    labels: list[int] = []
    for name in classes or ("",):
        class_folder = folder / name
        if name:
            _refuse_splits_in_class(class_folder)
        of_class = files.images(class_folder)
        if not of_class:
            rest = [entry.name for entry in _entries(class_folder) if not _is_folder(entry)]
            example = f" ({len(rest)} other file(s), such as {printable(rest[0])})" if rest else ""
            raise DataError(
                f"{printable(class_folder)}: no image in it{example}; expected files ending in "
                f"{', '.join(sorted(readable_suffixes()))}, or images without an ending"
            )
        images |= of_class
        labels += [class_names.index(name) if name else 0] * len(of_class)
    if classes:
        files.skip_files(folder, "beside the class folders")
    return Part(role, list(images), np.array(labels, dtype=np.int64) if classes else None, images.values)


def _refuse_splits_in_class(folder: Path) -> None:
    """Raise DataError where the classes stand above the splits, which would mix training with test images."""
    splits = [entry.name for entry in _entries(folder) if _is_folder(entry) and role_of(entry.name) is not None]
    if splits:
        raise DataError(
            f"{folder}: {_listed(splits)} in a class folder: expected splits above classes, as in train/{folder.name}/"
            "; move them, or rename them if they are not splits"
        )


def _note(parts: Sequence[Part], folders: Mapping[str, Path], files: _ImageFiles) -> str:
    """What a user of the data should know: parts without labels beside a labelled train, and skipped files."""
    sentences = []
    # An unlabelled train beside a labelled val is a transfer set, and needs no note.
    unlabelled = [folders[part.role].name for part in parts if parts[0].labels is not None and part.labels is None]
    if unlabelled:
        sentences.append(f"{_listed(unlabelled)}: images without class folders, read as images without labels.")
    if files.skipped:
        count, kinds = files.skipped.total(), files.skipped.most_common(5)
        words = [
            f"{number:,} {kind} ({'such as ' if number > 1 else ''}{printable(files.examples[kind])})"
            for kind, number in kinds
        ]
        hidden = len(files.skipped) - len(kinds)
        more = f", and {plural(hidden, 'other kind')}" if hidden else ""
        total = count + sum(len(part.names) for part in parts)
        sentences.append(f"{count:,} of {total:,} files are not read as images: {', '.join(words)}{more}.")
    return " ".join(sentences)


class _ImageFiles:
    """Finds the image files under a root, and counts by kind the files that are skipped."""

    def __init__(self, root: Path, follow_links: bool) -> None:
        self.root, self.real_root, self.follow_links = root, os.path.realpath(root), follow_links
        self.skipped: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        """Of every kind the first skipped file."""
        self._linked_folders: set[str] = set()

    def images(self, folder: Path) -> dict[str, str | Unreadable]:
        """Name relative to the root -> path, or why it cannot be read, of all images under the folder.

        Folders and files come in alphabetical order; a link that is not followed is an unreadable image.
        """
        images: dict[str, str | Unreadable] = {}
        around = () if folder == self.root else (self.real_root, os.path.realpath(folder.parent))
        self._add(folder, around, images)
        return images

    def skip_files(self, folder: Path, where: str) -> None:
        """Count the files that lie in a folder where only folders are expected."""
        for entry in _entries(folder):
            if not _is_folder(entry):
                suffix = _suffix(entry.name)
                image = suffix in readable_suffixes()
                self._skip(entry, f"{suffix or 'without a suffix'} {where}" if image else suffix)

    def _add(self, folder: Path, around: tuple[str, ...], images: dict[str, str | Unreadable]) -> None:
        refusal = self._folder_refusal(folder, around)
        if refusal:
            images[os.path.relpath(folder, self.root)] = Unreadable(refusal)
            return
        for entry in _entries(folder):
            if _is_folder(entry):
                self._add(Path(entry.path), (*around, os.path.realpath(folder)), images)
                continue
            suffix = _suffix(entry.name)
            refusal = self._file_refusal(entry)
            if suffix not in readable_suffixes() and (suffix or refusal or not looks_like_an_image(entry.path)):
                self._skip(entry, suffix)
            else:
                images[os.path.relpath(entry.path, self.root)] = Unreadable(refusal) if refusal else entry.path

    def _skip(self, entry: os.DirEntry[str], kind: str) -> None:
        kind = kind or "without a suffix"
        self.skipped[kind] += 1
        self.examples.setdefault(kind, os.path.relpath(entry.path, self.root))

    def _folder_refusal(self, folder: Path, around: tuple[str, ...]) -> str:
        """Why the folder is not entered, or ""; `around` are the real paths of the folders that contain it."""
        real = os.path.realpath(folder)
        if any(path == real or path.startswith(real.rstrip(os.sep) + os.sep) for path in around):
            return "a link to a folder around it: following it would never end"
        if len(around) > MAX_DEPTH:
            return f"nested deeper than {MAX_DEPTH} folders"
        if not os.path.islink(folder) or folder == self.root:
            return ""
        if not self.follow_links:
            return "a link to a folder: --follow-links (in Python follow_links=True) reads it"
        if real in self._linked_folders:  # a few links in each folder could lead to 2^64 paths
            return "a link to a folder that another link has led to already"
        self._linked_folders.add(real)
        return ""

    def _file_refusal(self, entry: os.DirEntry[str]) -> str:
        """Why the file cannot be read, or ""."""
        if entry.is_file(follow_symlinks=False):
            return ""
        try:
            regular = stat.S_ISREG(os.stat(entry.path).st_mode)
        except OSError as error:  # nothing there, or links in a circle
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


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links in a circle
        return False


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"{printable(name)}/" for name in names)
