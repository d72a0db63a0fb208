"""Packed data sets: images decoded once into one memory-mapped array, with a sealed record (docs/formats.md).

A packed folder holds `images.u8`, the pixels of all parts one after the other, and `packed.json`, which describes them
and is written last. Both appear whole: an interrupted pack starts again.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisyteacher.data.folders import folder_source
from noisyteacher.data.hf import dataset_source, is_dataset, is_saved, parquet_files, parquet_source, saved_source
from noisyteacher.data.images import Resize, Unreadable, decode_all
from noisyteacher.data.sources import Source, check_labels, check_shape, choose_class_names, make_splits, npz_source
from noisyteacher.data.split import ROLES, Splits
from noisyteacher.errors import DataError, FileFormatError, UsageError, WriteError
from noisyteacher.io.files import (
    extend_crc32c,
    file_crc32c,
    make_folder,
    read_json,
    remove_new_folders_on_error,
    replace_file,
    write_json,
)
from noisyteacher.io.locks import exclusive_lock
from noisyteacher.text import plural, printable, size_bytes

RECORD, IMAGES, KIND, SCHEMA = "packed.json", "images.u8", "packed-data", 2
OLD_JOURNAL = "packing.jsonl"
"""In the folder of an unfinished pack of schema 1."""
NAMED_IMAGES = 10
"""How many of the unreadable images an error names."""
Watch = Callable[[str, int, int, str], None]


@dataclass(frozen=True)
class PackedPart:
    """The images of one role, `all`, `train`, `val` or `test`.

    files: what each image was called in the source, with characters that cannot be printed escaped. labels: the class
    numbers, or None.
    """

    role: str
    files: list[str]
    labels: list[int] | None


@dataclass(frozen=True)
class PackedRecord:
    """The content of `packed.json`. crc32c: of `images.u8`, as hex; left_out: `part`, `file` and `reason` of each."""

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


@dataclass(frozen=True, repr=False)
class Packed:
    """A packed data set: its folder and its record."""

    path: Path
    record: PackedRecord

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Packed:
        """The packed data set in this folder. Raises DataError naming a missing or damaged file.

        The record and the images' size are checked here, the images' checksum by `verify`.
        """
        from pydantic import TypeAdapter, ValidationError

        folder = Path(path)
        if not (folder / RECORD).exists():
            raise DataError(f"{folder}: an unfinished pack without {RECORD}: run data pack again")
        try:
            record = TypeAdapter(PackedRecord).validate_python(read_json(folder / RECORD, KIND, SCHEMA))
            if min(record.input_shape) < 1:
                raise DataError(f"has images of shape {record.input_shape}")
            roles = [part.role for part in record.parts]
            if roles != ["all"] and ("train" not in roles or sorted({*roles}) != sorted(roles) or {*roles} - {*ROLES}):
                raise DataError(f"has the parts {roles}, expected train with val and test, or all")
            for part in record.parts:
                if part.labels is not None:
                    check_labels(np.array(part.labels), len(part.files), part.role, len(record.class_names))
            packed = cls(folder, record)
            images = folder / IMAGES
            size = images.stat().st_size if images.is_file() else -1
            if size != packed.total_bytes:
                actual = f"has {size:,} bytes" if size >= 0 else "is missing"
                raise DataError(f"{images}: {actual}, {RECORD} says {packed.total_bytes:,}: truncated or replaced")
        except (FileFormatError, DataError, ValidationError, ValueError, OverflowError) as error:
            raise DataError(
                f"{folder / RECORD}: {error!s:.1000}; restore the folder from a copy, or remove it and run data pack "
                "again"
            ) from error
        return packed

    def __repr__(self) -> str:
        """One line: `Packed('pets-64', train 900, val 100, [3, 64, 64], 10 classes)`."""
        sizes = ", ".join(f"{role} {rows}" for role, rows in self.rows.items())
        return f"Packed({str(self.path)!r}, {sizes}, {list(self.input_shape)}, {len(self.class_names)} classes)"

    @property
    def rows(self) -> dict[str, int]:
        """Images by part: `all`, or `train` and, where they are there, `val` and `test`."""
        return {part.role: len(part.files) for part in self.record.parts}

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        return self.record.input_shape

    @property
    def class_names(self) -> tuple[str, ...]:
        """K names in the order of the labels."""
        return self.record.class_names

    @property
    def left_out(self) -> list[dict[str, str]]:
        """The images that could not be read: `part`, `file` and `reason` of each."""
        return self.record.left_out

    @property
    def note(self) -> str:
        """What a user of the data should know, from the source; empty where there is nothing."""
        return self.record.note

    @property
    def total_bytes(self) -> int:
        """Bytes of all images."""
        channels, height, width = self.input_shape
        return sum(self.rows.values()) * channels * height * width

    def files(self, role: str) -> list[str]:
        """What each image of a part was called in the source, with characters that cannot be printed escaped."""
        (part,) = (part for part in self.record.parts if part.role == role)
        return part.files

    def splits(self, *, seed: int = 0) -> Splits:
        """The data set as Splits whose images are memory-mapped, read-only: pages are read when rows are used.

        Without `val` a tenth of train is held out; `all` is cut 80/10/10. `seed` is that draw's.
        Raises DataError if the images cannot be mapped.
        """
        try:
            array = np.memmap(self.path / IMAGES, np.uint8, "r", shape=(sum(self.rows.values()), *self.input_shape))
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path / IMAGES}: cannot be mapped: {error}") from error
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a tensor of a read-only array must not be written to
            images = torch.from_numpy(array)
        content: dict[str, tuple[Tensor, Tensor | None]] = {}
        for part, pixels in zip(self.record.parts, torch.split(images, list(self.rows.values())), strict=True):
            content[part.role] = pixels, None if part.labels is None else torch.tensor(part.labels, dtype=torch.int64)
        return make_splits(self.record.name, content, self.class_names, seed=seed, note=self.note)

    def verify(self) -> int:
        """Read every image and compare the checksum; returns how many bytes there are. Raises DataError."""
        computed = file_crc32c(self.path / IMAGES)
        if computed != self.record.crc32c:
            raise DataError(
                f"{self.path / IMAGES}: bytes 0 to {self.total_bytes - 1} are damaged (checksum {computed}, expected "
                f"{self.record.crc32c}): restore the file from a copy, or remove the folder and run data pack again"
            )
        return self.total_bytes


def is_packed(folder: Path) -> bool:
    """Whether the folder holds a packed data set, finished or not."""
    return any((folder / name).exists() for name in (RECORD, IMAGES, OLD_JOURNAL))


def load_packed(folder: Path, *, seed: int = 0, verify: bool = True) -> Splits:
    """The Splits of a packed folder, memory-mapped; `verify` compares the checksum first. Raises DataError."""
    packed = Packed.open(folder)
    if verify:
        packed.verify()
    return packed.splits(seed=seed)


def pack_data(
    source: Any,
    out: str | os.PathLike[str],
    *,
    size: int | tuple[int, int] | None = None,
    grey: bool = False,
    fit: str = "crop",
    classes: int | Sequence[str] | None = None,
    skip_corrupt: bool = False,
    follow_links: bool = False,
    jobs: int = 1,
    watch: Watch | None = None,
) -> Packed:
    """Decode every image once, bring it to `size`, and write all of them into the folder `out`; returns the result.

    source: a folder of `{train,val,test}/CLASS/**/x.jpg`, of `CLASS/**/x.jpg` or of images alone (unlabelled); a `.npz`
        file; a `datasets.Dataset` or a dict of them, a folder that `save_to_disk` wrote or one of parquet files (extra
        `data`).
    size: pixels, or (height, width); without it all images must have one size. fit: `crop` takes the largest centred
        window of that shape and scales it (the shorter side decides), `squash` scales all of the image. grey: one
        channel.
    classes: how many classes, or their names, where nothing is labelled. skip_corrupt: leave unreadable images out, and
        list them. follow_links: also read what links point to outside the folder. jobs: threads that decode; the bytes
        are the same whatever it is. watch: called with (stage, images done, of how many, note).
    Memory does not grow with the size of the images in a folder.
    Raises DataError naming the images that cannot be read, WriteError when the disk refuses, UsageError, also when
    `out` holds a packed data set already.
    """
    resize, target = Resize.of(size, grey, fit), Path(out)
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
        raise UsageError(f"jobs={jobs!r}: expected a whole number of threads, at least 1")
    content = _source(source, target, follow_links)
    class_names = choose_class_names(content, classes)
    with remove_new_folders_on_error(target):
        make_folder(target)
        with exclusive_lock(target, wait=False):
            if (target / RECORD).exists() or (target / OLD_JOURNAL).exists():
                raise UsageError(f"{target}: holds a packed data set already: remove it, or name another folder")
            for leftover in target.glob(f".{IMAGES}.*.tmp"):  # of a pack that was killed
                leftover.unlink()
            with replace_file(target / IMAGES, within=target) as stream:
                packing = _Packing(target, content, resize, skip_corrupt, watch or (lambda *_: None), stream)
                packing.write(jobs)
            import PIL

            record = PackedRecord(
                name=printable(content.name),
                input_shape=packing.shape,
                class_names=class_names,
                parts=packing.parts,
                crc32c=f"{packing.checksum:08x}",
                left_out=packing.left_out,
                note=content.note,
                source=content.kind,
                fit=fit,
                grey=grey,
                pillow=PIL.__version__,
            )
            write_json(target / RECORD, KIND, SCHEMA, asdict(record), within=target)
    return Packed.open(target)


def _source(source: Any, out: Path, follow_links: bool) -> Source:
    """The source to pack, by its kind."""
    if not isinstance(source, (str, os.PathLike)):
        if is_dataset(source):
            return dataset_source(source)
        raise UsageError(
            f"a {type(source).__name__} cannot be packed: give a folder, a .npz file or a datasets.Dataset"
        )
    path = Path(source).expanduser()
    if os.path.isfile(path) and path.suffix == ".npz":
        return npz_source(path, max_bytes=None)
    if not os.path.isdir(path):
        raise DataError(f"{path}: no such folder or .npz file")
    if is_packed(path):
        raise UsageError(f"{path}: is packed already: use it as it is")
    real, real_out = os.path.realpath(path), os.path.realpath(out)
    if real_out == real or real_out.startswith(real + os.sep):
        raise UsageError(f"{out}: lies inside the source {path}, of which it would become a part: name another")
    if is_saved(path):
        return saved_source(path)
    return parquet_source(path) if parquet_files(path) else folder_source(path.resolve(), follow_links)


class _Packing:
    """Writes the images of a source to a stream, and keeps what the record says about them."""

    def __init__(
        self, out: Path, source: Source, resize: Resize, skip_corrupt: bool, watch: Watch, stream: BinaryIO
    ) -> None:
        self.out, self.source, self.resize, self.stream = out, source, resize, stream
        self.skip_corrupt, self.watch = skip_corrupt, watch
        self.shape = (0, 0, 0)
        self.parts: list[PackedPart] = []
        self.left_out: list[dict[str, str]] = []
        self.checksum = 0

    def write(self, threads: int) -> None:
        """Write all parts. Raises DataError naming the images that cannot be read, WriteError for a full disk."""
        for part in self.source.parts:
            total, stage = len(part.names), f"packing {part.role}"
            kept: list[int] = []
            for row, image in enumerate(decode_all(part.images(), self.resize, threads)):
                if isinstance(image, Unreadable):
                    file = printable(part.names[row])
                    self.left_out.append({"part": part.role, "file": file, "reason": printable(image.reason)})
                else:
                    self._write_image(image, part.names[row])
                    kept.append(row)
                if row % 64 == 0:
                    self.watch(stage, row, total, f"{len(self.left_out)} unreadable")
            self.watch(stage, total, total, f"{len(self.left_out)} unreadable")
            if not kept and total:
                self._refuse_unreadable(f"{self.source.name}: no image of {part.role} can be read")
            labels = None if part.labels is None else part.labels[kept].tolist()
            self.parts.append(PackedPart(part.role, [printable(part.names[row]) for row in kept], labels))
        if self.left_out and not self.skip_corrupt:
            self._refuse_unreadable(f"{plural(len(self.left_out), 'image')} of {self.source.name} cannot be read")

    def _write_image(self, image: NDArray[np.uint8], name: str) -> None:
        if self.shape == (0, 0, 0):
            channels, height, width = image.shape
            self.shape = channels, height, width
            needed = image.nbytes * sum(len(part.names) for part in self.source.parts)
            free = shutil.disk_usage(self.out).free
            if needed > free:
                raise WriteError(
                    f"{self.out}: {size_bytes(needed)} are needed, {size_bytes(free)} are free: make room first"
                )
        check_shape(image, self.shape, name, "--size 64 (in Python size=64)")
        data = image.tobytes()
        self.stream.write(data)
        self.checksum = extend_crc32c(self.checksum, data)

    def _refuse_unreadable(self, problem: str) -> None:
        named = "\n".join(f"  {image['file']}: {image['reason']}" for image in self.left_out[:NAMED_IMAGES])
        hidden = len(self.left_out) - NAMED_IMAGES
        more = f"\n  and {hidden:,} more" if hidden > 0 else ""
        raise DataError(
            f"{problem}:\n{named}{more}\nrepair or remove them, or leave them out by "
            "--skip-corrupt (in Python skip_corrupt=True)"
        )
