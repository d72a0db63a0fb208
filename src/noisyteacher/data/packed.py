"""Packed data sets: images decoded once into one memory-mapped array, with a sealed record (docs/formats.md).

A packed folder holds `images.u8`, the pixels of all parts one after the other, and `packed.json`, which describes them
and is written last. Both appear whole: an interrupted pack starts again.
"""

from __future__ import annotations

import os
import shutil
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from noisyteacher.data.holdout import Content, make_splits
from noisyteacher.data.images import TO_ONE_SIZE, Resize, Source, Unreadable, check_shape, decode_all
from noisyteacher.data.split import ROLES, Splits, class_numbers
from noisyteacher.errors import DataError, FileFormatError, UsageError, WriteError
from noisyteacher.io import files
from noisyteacher.progress import Watch
from noisyteacher.text import plural, printable, size_bytes

RECORD, IMAGES, KIND, SCHEMA = "packed.json", "images.u8", "packed-data", 2
MOST_RECORD = 2**30
"""Bytes of `packed.json`, which names every image: about 20 million of them."""


@dataclass(frozen=True)
class PackedPart:
    """The images of one role, `all`, `train`, `val` or `test`: their names in the source, and class numbers or None."""

    role: str
    files: list[str]
    labels: list[int] | None


@dataclass(frozen=True, repr=False)
class Packed:
    """A packed data set: its folder, and the content of its `packed.json`.

    input_shape: (C, H, W) of every image. class_names: K names in the order of the labels. crc32c: of `images.u8`, as
    hex. left_out: `part`, `file` and `reason` of images that could not be read. source, fit, grey, pillow: how it was
    packed.
    """

    path: Path
    name: str
    input_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    parts: list[PackedPart]
    crc32c: str
    left_out: list[dict[str, str]]
    note: str
    source: str
    fit: str
    grey: bool
    pillow: str

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Packed:
        """The packed data set in this folder. Raises DataError naming a missing or damaged file.

        The record and the images' size are checked here, the images' checksum by `verify`.
        """
        from pydantic import TypeAdapter

        folder = Path(path)
        if not (folder / RECORD).exists():
            raise DataError(f"{folder}: an unfinished pack without {RECORD}: run data pack again")
        try:
            content = files.read_json(folder / RECORD, KIND, SCHEMA, MOST_RECORD)
            packed = TypeAdapter(cls).validate_python(content | {"path": folder})
            roles = list(packed.rows)
            if len(roles) < len(packed.parts) or (roles != ["all"] and not {"train"} <= {*roles} <= {*ROLES}):
                raise DataError(f"has the parts {roles}, expected train with val and test, or all")
            for part in packed.parts:
                if part.labels is not None:
                    class_numbers(np.array(part.labels), len(part.files), part.role, len(packed.class_names))
            size = (folder / IMAGES).stat().st_size if (folder / IMAGES).is_file() else 0
            if size != packed.total_bytes or min(packed.input_shape) < 1:
                raise DataError(f"{IMAGES} has {size:,} bytes, expected {packed.total_bytes:,}: truncated or replaced")
        except (FileFormatError, DataError, ValueError) as error:
            raise DataError(f"{folder / RECORD}: {error!s:.1000}; remove the folder and run data pack again") from error
        return packed

    def __repr__(self) -> str:
        """One line: `Packed('pets-64', train 900, val 100, [3, 64, 64], 10 classes)`."""
        sizes = ", ".join(f"{role} {rows}" for role, rows in self.rows.items())
        return f"Packed({str(self.path)!r}, {sizes}, {list(self.input_shape)}, {len(self.class_names)} classes)"

    @property
    def rows(self) -> dict[str, int]:
        """Images by part: `all`, or `train` and, where they are there, `val` and `test`."""
        return {part.role: len(part.files) for part in self.parts}

    @property
    def total_bytes(self) -> int:
        """Bytes of all images."""
        channels, height, width = self.input_shape
        return sum(self.rows.values()) * channels * height * width

    def files(self, role: str) -> list[str]:
        """The names of a part's images in the source, with characters that cannot be printed escaped."""
        return next(part.files for part in self.parts if part.role == role)

    def splits(self, *, seed: int = 0) -> Splits:
        """The data set as Splits whose images are memory-mapped, read-only; `seed` is that of the hold-out."""
        array = np.memmap(self.path / IMAGES, np.uint8, "r", shape=(sum(self.rows.values()), *self.input_shape))
        with warnings.catch_warnings(action="ignore"):  # that a tensor of a read-only array must not be written to
            images = torch.from_numpy(array)
        content: Content = {
            part.role: (pixels, None if part.labels is None else torch.tensor(part.labels, dtype=torch.int64))
            for part, pixels in zip(self.parts, torch.split(images, list(self.rows.values())), strict=True)
        }
        return replace(make_splits(self.name, content, self.class_names, seed), note=self.note, fit=self.fit)

    def verify(self) -> int:
        """Read every image and compare the checksum; returns how many bytes there are. Raises DataError."""
        computed = files.file_crc32c(self.path / IMAGES)
        if computed != self.crc32c:
            damage = f"bytes 0 to {self.total_bytes - 1} are damaged (checksum {computed}, expected {self.crc32c})"
            raise DataError(f"{self.path / IMAGES}: {damage}: remove the folder and run data pack again")
        return self.total_bytes


def is_packed(folder: Path) -> bool:
    """Whether the folder holds a packed data set, finished or not."""
    return (folder / RECORD).exists() or (folder / IMAGES).exists()


def write_packed(
    source: Source, out: Path, resize: Resize, skip_corrupt: bool, jobs: int, watch: Watch | None
) -> Packed:
    """Decode all images of the source in `jobs` threads into the folder `out`. Raises what `pack_data` raises."""
    import PIL

    with files.remove_new_folders_on_error(out):
        files.make_folder(out)
        with files.lock(out, wait=False):
            if (out / RECORD).exists():
                raise UsageError(f"{out}: holds a packed data set already: remove it, or name a new folder")
            killed = [file for name in (IMAGES, RECORD) for file in files.temporary_files(out, name)]
            files.remove_files(out, killed)  # of a pack that was killed
            with files.replace_file(out / IMAGES, within=out) as stream:
                shape, parts, left_out = _write_images(source, stream, out, resize, jobs, watch)
                if left_out and not skip_corrupt:
                    raise _unreadable(f"{plural(len(left_out), 'image')} of {source.name} cannot be read", left_out)
            record = {
                "name": printable(source.name),
                "input_shape": shape,
                "class_names": source.class_names,
                "parts": list(map(asdict, parts)),
                "crc32c": files.file_crc32c(out / IMAGES),
                "left_out": left_out,
                "note": source.note,
                "source": source.kind,
                "fit": resize.fit,
                "grey": resize.grey,
                "pillow": PIL.__version__,
            }
            files.write_json(out / RECORD, KIND, SCHEMA, record, within=out)
    return Packed.open(out)


def _write_images(
    source: Source, stream: BinaryIO, out: Path, resize: Resize, jobs: int, watch: Watch | None
) -> tuple[tuple[int, ...], list[PackedPart], list[dict[str, str]]]:
    """The shape of the images, the parts, and the unreadable images that are left out of them."""
    shape: tuple[int, ...] = ()
    parts: list[PackedPart] = []
    left_out: list[dict[str, str]] = []
    for part in source.parts:
        names, rows = [printable(name) for name in part.names], list[int]()
        title = printable(source.name) if part.role == "all" else part.role
        for row, image in enumerate(decode_all(part.images, resize, jobs)):
            if isinstance(image, Unreadable):
                left_out.append({"part": part.role, "file": names[row], "reason": printable(image.reason)})
            else:
                if not shape:
                    shape, size = image.shape, image.nbytes * sum(len(part.names) for part in source.parts)
                    if size > (free := shutil.disk_usage(out).free):
                        raise WriteError(f"{out}: {size_bytes(size)} are needed, {size_bytes(free)} are free")
                check_shape(image, shape, names[row], TO_ONE_SIZE)
                stream.write(image.tobytes())
                rows.append(row)
            if watch is not None and (row % 64 == 0 or row == len(names) - 1):
                watch(f"packing {title}", row + 1, len(names), f"{len(left_out)} unreadable")
        if not rows:
            raise _unreadable(f"no image of {title} can be read", left_out)
        labels = None if part.labels is None else part.labels[rows].tolist()
        parts.append(PackedPart(part.role, [names[row] for row in rows], labels))
    return shape, parts, left_out


def _unreadable(problem: str, left_out: list[dict[str, str]]) -> DataError:
    lines = [f"  {image['file']}: {image['reason']}" for image in left_out[:10]]
    more = f"and {len(left_out) - 10:,} more; " if len(left_out) > 10 else ""
    remedy = "repair or remove them, or leave them out by --skip-corrupt (in Python skip_corrupt=True)"
    return DataError("\n".join([f"{problem}:", *lines, more + remedy]))
