"""A packed data set: decoded images as one memory-mapped array per part, with a sealed header (docs/formats.md)."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisyteacher.data.arrays import assemble, cut
from noisyteacher.data.split import Split, Splits
from noisyteacher.errors import DataError, FileFormatError
from noisyteacher.files import crc32c, read_bytes, read_json, read_range
from noisyteacher.strictjson import parse_json

HEADER, KIND, SCHEMA = "packed.json", "packed-data", 1
JOURNAL = "packing.jsonl"
"""What is done of an unfinished pack; gone once the header is there."""
PARTS = ("all", "train", "val", "test")


@dataclass(frozen=True)
class Damage:
    """Something whose checksum does not hold: of which part, `images`, `labels` or `files`, which range, and where."""

    role: str
    kind: str
    number: int
    file: Path
    at: int
    told: str


@dataclass(frozen=True)
class Packed:
    """A finished packed data set: its folder, and what its header says."""

    path: Path
    header: dict[str, Any]

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, lengths: bool = True) -> Packed:
        """The packed data set in this folder. Raises DataError naming the file when it is missing or damaged.

        The header's seal and, with `lengths`, the files' lengths are checked here, the images' checksums by `verify`.
        """
        folder = Path(path)
        if (folder / JOURNAL).exists() and not (folder / HEADER).exists():
            raise DataError(f"{folder}: an unfinished pack: ask data pack again with this folder, it goes on")
        try:
            packed = cls(folder, read_json(folder / HEADER, KIND, SCHEMA))
            packed._check()
            if lengths:
                packed._measure()
        except (FileFormatError, KeyError, TypeError, ValueError) as error:
            told = f"{folder / HEADER}: {error!r}" if not isinstance(error, FileFormatError) else str(error)
            raise DataError(
                f"{told}; restore it from a copy, or pack the images again (a damaged {HEADER} must be removed first)"
            ) from error
        return packed

    def __repr__(self) -> str:
        """One line: `Packed('pets-64', train 900, val 100, [3, 64, 64], 10 classes)`."""
        sizes = ", ".join(f"{role} {rows}" for role, rows in self.rows.items())
        return f"Packed({str(self.path)!r}, {sizes}, {list(self.input_shape)}, {len(self.class_names)} classes)"

    @property
    def rows(self) -> dict[str, int]:
        """Images by part: `all`, or `train` and, where they are there, `val` and `test`."""
        return {part["role"]: part["rows"] for part in self.header["parts"]}

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        channels, height, width = self.header["input_shape"]
        return channels, height, width

    @property
    def class_names(self) -> tuple[str, ...]:
        """K names in the order of the labels."""
        return tuple(self.header["class_names"])

    @property
    def left_out(self) -> list[dict[str, str]]:
        """What could not be read: `part`, `file` and `reason` of each."""
        return list(self.header["left_out"])

    @property
    def note(self) -> str:
        """What a user of the data should know, as the source said it; empty where there is nothing."""
        return str(self.header.get("note", ""))

    @property
    def total_bytes(self) -> int:
        """Bytes of all images."""
        return sum(part["images"]["bytes"] for part in self.header["parts"])

    def splits(self, *, seed: int = 0) -> Splits:
        """The data set as Splits whose images are memory-mapped, read-only: pages are read as rows are used.

        Without `val` a tenth of train is held out; `all` is cut 80/10/10. `seed` is that draw's.
        """
        made = {part["role"]: (self._images(part), self._labels(part)) for part in self.header["parts"]}
        name, names = self.header["name"], self.class_names
        if "all" in made:
            return cut(name, *made["all"], names, seed=seed, note=self.note)
        held = {
            role: Split(images, labels, torch.arange(len(images)), role, name, names)
            for role, (images, labels) in made.items()
            if role != "train"
        }
        return assemble(name, *made["train"], names, held.get("val"), held.get("test"), seed=seed, note=self.note)

    def verify(self) -> int:
        """Read every byte and compare the checksums; returns how many bytes there are.

        Raises DataError naming the file, and of images the bytes and rows, that are damaged.
        """
        first = next(self.damage(), None)
        if first is not None:
            raise DataError(
                f"{first.told}: restore the file from a copy, or ask data pack for the same again, which makes anew "
                "what is damaged"
            )
        records = [part[kind] for part in self.header["parts"] for kind in ("images", "labels", "files")]
        return sum(record["bytes"] for record in records if record is not None)

    def damage(self) -> Iterator[Damage]:
        """Everything whose checksum does not hold, as it is found: ranges of images, files of labels and names."""
        each = image_bytes(self.input_shape)
        for part in self.header["parts"]:
            file, first = self.path / part["images"]["file"], 0
            for number, one in enumerate(part["images"]["ranges"]):
                at, length, rows = first * each, one["rows"] * each, one["rows"]
                found = crc32c(read_range(file, at, length))
                if found != one["crc32c"]:
                    told = (
                        f"{file}: bytes {at} to {at + length - 1}, rows {first} to {first + rows - 1}, are damaged "
                        f"(checksum {found} found, {one['crc32c']} stated)"
                    )
                    yield Damage(part["role"], "images", number, file, at, told)
                first += rows
            for kind in ("labels", "files"):
                if part[kind] is not None:
                    file = self.path / part[kind]["file"]
                    try:
                        self._small(part[kind])
                    except (DataError, FileFormatError) as error:
                        yield Damage(part["role"], kind, 0, file, 0, str(error))

    def part(self, role: str) -> dict[str, Any]:
        """The header's record of a part."""
        (found,) = (part for part in self.header["parts"] if part["role"] == role)
        return dict(found)

    def files(self, role: str) -> list[str]:
        """What each row of a part was called in the source, in the order of the rows. Raises DataError when damaged."""
        record = self.part(role)["files"]
        file = self.path / record["file"]
        try:
            return [str(parse_json(line)) for line in self._small(record).splitlines()]
        except ValueError as error:
            raise DataError(f"{file}: not a line of JSON for every image: {error}") from error

    def _images(self, part: dict[str, Any]) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a tensor of a read-only array must not be written to
            return torch.from_numpy(_map(self.path / part["images"]["file"], (part["rows"], *self.input_shape)))

    def _labels(self, part: dict[str, Any]) -> Tensor | None:
        if part["labels"] is None:
            return None
        found = np.frombuffer(self._small(part["labels"]), dtype="<i8")
        return torch.from_numpy(found.astype(np.int64))

    def _small(self, record: dict[str, Any]) -> bytes:
        """A file's bytes, once its checksum holds."""
        data = read_bytes(self.path / record["file"])
        if crc32c(data) != record["crc32c"]:
            raise DataError(f"{self.path / record['file']}: bytes 0 to {len(data) - 1}: damaged (its checksum differs)")
        return data

    def _check(self) -> None:
        """The header must be whole and not contradict itself."""
        each, roles = image_bytes(self.input_shape), [part["role"] for part in self.header["parts"]]
        for key, kind in (("name", str), ("plan", str), ("left_out", list)):
            if not isinstance(self.header[key], kind):
                raise ValueError(f"its {key!r} is a {type(self.header[key]).__name__}")
        if roles != ["all"] and ("train" not in roles or "all" in roles or len(set(roles)) < len(roles)):
            raise ValueError(f"has the parts {roles}, expected train with val and test, or all")
        if not all(isinstance(name, str) for name in self.class_names):
            raise ValueError("has class names that are no text")
        for part in self.header["parts"]:
            images = part["images"]
            told = {"rows": sum(one["rows"] for one in images["ranges"]), "bytes": each * part["rows"]}
            if part["role"] not in PARTS or told != {"rows": part["rows"], "bytes": images["bytes"]}:
                raise ValueError(f"the record of {part['role']!r} contradicts itself")
            if part["labels"] is not None and part["labels"]["bytes"] != 8 * part["rows"]:
                raise ValueError(f"the labels of {part['role']!r} are not one per image")
            sums = [one["crc32c"] for one in images["ranges"]] + [part["files"]["crc32c"]]
            sums += [] if part["labels"] is None else [part["labels"]["crc32c"]]
            if not all(isinstance(one, str) for one in sums) or any(
                type(one["rows"]) is not int or one["rows"] < 0 for one in images["ranges"]
            ):
                raise ValueError(f"the record of {part['role']!r} has checksums or rows of other types")
            for record in (images, part["labels"], part["files"]):
                if record is not None and os.path.basename(record["file"]) != record["file"]:
                    raise ValueError(f"names the file {record['file']!r}, which is not in the folder")

    def _measure(self) -> None:
        """Raises FileFormatError unless the files are as long as the header says."""
        for part in self.header["parts"]:
            for record in (part["images"], part["labels"], part["files"]):
                if record is None:
                    continue
                file = self.path / record["file"]
                length = os.path.getsize(file) if file.is_file() else -1
                if length != record["bytes"]:
                    there = "is missing" if length < 0 else f"has {length:,} bytes"
                    raise FileFormatError(
                        f"{file}: {there}, the header says {record['bytes']:,}: truncated or replaced"
                    )


def is_packed(folder: Path) -> bool:
    """Whether the folder holds a packed data set, finished or not."""
    return any((folder / name).exists() for name in (HEADER, JOURNAL))


def load_packed(folder: Path, *, seed: int = 0, verify: bool = True) -> Splits:
    """The Splits of a packed folder, memory-mapped; `verify` compares every checksum first. Raises DataError."""
    packed = Packed.open(folder)
    if verify:
        packed.verify()
    return packed.splits(seed=seed)


def image_bytes(shape: tuple[int, int, int]) -> int:
    """The bytes of one image `[C, H, W]`."""
    return shape[0] * shape[1] * shape[2]


def _map(file: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    try:
        return np.memmap(file, dtype=np.uint8, mode="r", shape=shape)
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be mapped: {error}") from error
