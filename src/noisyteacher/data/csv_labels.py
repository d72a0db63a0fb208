"""A CSV file of images: a row for each with its path, its label and, if there is such a column, its split."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch

from noisyteacher.data.images import Part, Source
from noisyteacher.data.split import ROLES, role_of
from noisyteacher.errors import DataError
from noisyteacher.text import few, printable

COLUMNS = {
    "path": ("path", "image", "filename", "file", "filepath", "imagepath", "imageid"),
    "label": ("label", "class", "classname", "category"),
    "split": ("split", "subset"),
}
"""What a cell of a row is -> the headers of such a column, in lower case without blanks, `_` and `-`."""
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")


class _Row(NamedTuple):
    role: str
    label: str


def csv_source(path: Path, root: Path | None = None) -> Source:
    """The images that a CSV file lists, with paths relative to `root` or, without it, to the file's folder.

    Without a column of splits the images are to be cut; a split whose labels are all empty is unlabelled. Classes are
    those of the first labelled split, in `class_order`. Raises DataError naming the file and the line or the image.
    """
    folder = path.parent if root is None else root
    rows, note = _read_rows(path)
    missing = [printable(name) for name in rows if not os.path.isfile(folder / name)]
    if missing:
        count = f"{len(missing):,} of {len(rows):,} files are not in {folder}: {few(missing, 3)}"
        remedy = "paths have their suffix and are relative to the CSV's folder, or to --data-root (in Python root=)"
        raise DataError(f"{path}: {count}; {remedy}")
    first: dict[str, str] = {}
    for name in rows:
        if (earlier := first.setdefault(os.path.normpath(folder / name), name)) != name:
            raise DataError(f"{path}: {printable(earlier)} and {printable(name)} are one file: keep one row")
    parts: list[Part] = []
    numbers: dict[str, int] = {}
    for role in ("all", *ROLES):
        labels = {name: row.label for name, row in rows.items() if row.role == role}
        empty = [printable(name) for name, label in labels.items() if not label]
        if empty and len(empty) < len(labels):
            count = f"{len(empty):,} of {len(labels):,} images ({role}) have no label: {few(empty, 3)}"
            raise DataError(f"{path}: {count}; expected a label in every row of a split, or in none")
        if not empty and not numbers:
            numbers = {name: number for number, name in enumerate(class_order(set(labels.values())))}
        for name, label in labels.items():
            if label and label not in numbers:
                classes = f"a class that no split before has ({few(list(map(printable, numbers)), 10)})"
                raise DataError(f"{path}: {printable(name)}: label {printable(label)!r}: {classes}")
        if labels:
            labelled = None if empty else torch.tensor([numbers[label] for label in labels.values()])
            parts.append(Part(role, list(labels), labelled, [os.fspath(folder / name) for name in labels]))
    if not parts or parts[0].role not in ("all", "train"):
        raise DataError(f"{path}: no row {'has the split train' if parts else 'below the header: it lists no image'}")
    return Source("csv", path.stem, tuple(parts), tuple(numbers), note)


def class_order(names: Iterable[str]) -> list[str]:
    """Names of classes in the order of their numbers: alphabetical as for folders, numeric where all are numbers.

    Raises DataError for two spellings of a number, such as 1 and 1.0.
    """
    ordered = sorted(names)
    if not all(map(_NUMBER.fullmatch, ordered)):
        return ordered
    ordered.sort(key=float)
    for first, second in pairwise(ordered):
        if float(first) == float(second):
            raise DataError(f"labels {first!r} and {second!r} are one number written in two ways: write it in one")
    return ordered


def _read_rows(path: Path) -> tuple[dict[str, _Row], str]:
    """Role and label of every path that is listed, in order, and a note on the columns that are not read."""
    rows: dict[str, _Row] = {}
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            delimiter = max(",;\t", key=stream.readline().count)
            stream.seek(0)
            reader = csv.DictReader(stream, delimiter=delimiter, restval="", strict=True)
            columns, note = _columns(path, reader.fieldnames or ())
            for cells in reader:
                name, label = (cells[columns[meaning]].strip() for meaning in ("path", "label"))
                split = cells[columns["split"]].strip() if "split" in columns else None
                line = f"{path}, line {reader.line_num}"
                if any(cells.get(None) or ()):  # an unquoted comma would cut a label short
                    raise DataError(f"{line}: more cells than columns: put quotes around a cell with a {delimiter!r}")
                if not name:
                    raise DataError(f"{line}: no path in column {columns['path']!r}")
                role = "all" if split is None else role_of(split)
                if role is None:
                    raise DataError(f"{line}: split {printable(split)!r}: expected train, val or test")
                row = _Row(role, label)
                if (earlier := rows.setdefault(os.path.normpath(name), row)) != row:
                    first, second = next((a, b) for a, b in zip(earlier, row, strict=True) if a != b)
                    both = f"{printable(first)!r} and {printable(second)!r}"
                    raise DataError(f"{line}: {printable(name)} is listed twice, with {both}: keep one row")
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a CSV file in UTF-8 ({error}): save it as CSV UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    return rows, note


def _columns(path: Path, headers: Iterable[str]) -> tuple[dict[str, str], str]:
    """The header of each meaning that the file has, and a note on the other headers."""
    headers = list(headers)
    meanings: dict[str, str] = {}
    for meaning, spellings in COLUMNS.items():
        matching = [name for name in headers if re.sub(r"[\s_-]", "", name.lower()) in spellings]
        if len(matching) > 1 or (not matching and meaning != "split"):
            expected = f"one column for the {meaning}, called {', '.join(spellings)}"
            present = few(list(map(printable, headers)), 20) or "none"
            raise DataError(f"{path}: the columns are {present}; expected {expected}")
        meanings |= dict.fromkeys(matching, meaning)
    unread = [printable(name) for name in headers if name and name not in meanings]
    columns = {meaning: name for name, meaning in meanings.items()}
    return columns, f"columns that are not read: {few(unread)}." if unread else ""
