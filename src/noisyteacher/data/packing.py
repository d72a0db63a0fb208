"""`pack_data`: any images, decoded once in parallel, into a folder that is memory-mapped ever after."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisyteacher.data.hf import dataset_source, is_dataset, is_saved, parquet_files, parquet_source, saved_source
from noisyteacher.data.journal import Journal
from noisyteacher.data.packable import Part, Source, given_classes, npz_source
from noisyteacher.data.packed import HEADER, JOURNAL, KIND, SCHEMA, Packed, image_bytes, is_packed
from noisyteacher.data.repacking import Decoder, repair, side_files
from noisyteacher.data.tree import folder_source
from noisyteacher.errors import DataError, UsageError, WriteError
from noisyteacher.files import (
    append_bytes,
    crc32c,
    make_folder,
    read_range,
    sha256,
    unmade_on_failure,
    write_bytes,
    write_json,
)  # fmt: skip
from noisyteacher.locks import alone
from noisyteacher.pixels import Way, check_fit, rows_of, size_of
from noisyteacher.text import plural, printable, size_bytes
from noisyteacher.workers import in_order

RANGE_BYTES, RANGE_ROWS = 16_000_000, 4096
TASK_ROWS = 16
"""Images that travel to another process at once."""
NAMED = 10
"""How many of the images that cannot be read an error names."""
Tell = Callable[[str, int, int, str], None]


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
    watch: Tell | None = None,
) -> Packed:
    """Decode every image once, bring it to `size`, and keep all of them in the folder `out`; returns what is there.

    source: a folder of `{train,val,test}/CLASS/**/x.jpg`, of `CLASS/**/x.jpg` or of images alone (unlabelled); a `.npz`
        file; a `datasets.Dataset` or a dict of them, a folder that `save_to_disk` wrote or one of parquet files (extra
        `data`).
    size: pixels, or (height, width); without it all images must have one size. fit: `crop` takes the largest centred
        window of that shape and scales it (the shorter side decides), `squash` scales all of the image. grey: one
        channel.
    classes: how many classes, or their names, where nothing is labelled. skip_corrupt: leave images that cannot be read
        out, and list them. follow_links: also read what links point to outside the folder. jobs: processes that decode;
        the bytes are the same whatever it is (a script that asks for more than one needs its `if __name__ ==
        "__main__"`). watch: told of progress.
    An interrupted call is gone on with by the same call; of a finished one the checksums are read again, and what is
    damaged, and no more, is made again. Memory does not grow with the number of images.
    Raises DataError naming images that cannot be read, WriteError when the disk refuses, UsageError.
    """
    shape, target = size_of(size), Path(out)
    check_fit(fit)
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
        raise UsageError(f"jobs={jobs!r}: expected a whole number of processes, at least 1")
    found = _source(source, target, follow_links)
    names = given_classes(classes, found)
    work = _Work(target, found, Way(shape, grey, fit), names, skip_corrupt, watch or (lambda *_: None))
    with unmade_on_failure(target):
        make_folder(target)
        try:
            with alone(target, wait=False), in_order(partial(rows_of, work.way), jobs, TASK_ROWS) as decoder:
                return work.run(decoder)
        except BrokenProcessPool as error:
            raise DataError(
                f"{found.name}: a process that decodes images died, perhaps for want of memory: ask again with fewer "
                "--jobs (in Python jobs=); what was done is kept"
            ) from error


def _source(source: Any, out: Path, follow_links: bool) -> Source:
    """What is to be packed, by its kind."""
    if not isinstance(source, (str, os.PathLike)):
        if is_dataset(source):
            return dataset_source(source)
        raise UsageError(
            f"a {type(source).__name__} cannot be packed: give a folder, a .npz file or a datasets.Dataset"
        )
    path = Path(source).expanduser()
    if os.path.isfile(path) and path.suffix == ".npz":
        return npz_source(path)
    if not os.path.isdir(path):
        raise DataError(f"{path}: no such folder or .npz file")
    if is_packed(path):
        raise UsageError(f"{path}: is packed already: use it as it is")
    real, into = os.path.realpath(path), os.path.realpath(out)
    if into == real or into.startswith(real + os.sep):
        raise UsageError(f"{out}: lies inside the source {path}, of which it would become a part: name another")
    if is_saved(path):
        return saved_source(path)
    return parquet_source(path) if parquet_files(path) else folder_source(path.resolve(), follow_links)


@dataclass
class _Done:
    """What is on the disk of one part."""

    listed: int = 0
    rows: int = 0
    ranges: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[tuple[int, str]] = field(default_factory=list)

    def add(self, line: Mapping[str, Any]) -> None:
        """One more range, as the journal tells of it."""
        self.listed += line["listed"]
        self.rows += line["rows"]
        self.ranges.append({"rows": line["rows"], "crc32c": line["crc32c"]})
        self.left_out += [(row, reason) for row, reason in line["left_out"]]


@dataclass
class _Work:
    """One pack: what is asked, and how far it is."""

    out: Path
    source: Source
    way: Way
    class_names: tuple[str, ...]
    skip_corrupt: bool
    tell: Tell
    shape: tuple[int, int, int] = (0, 0, 0)

    def run(self, decoder: Decoder) -> Packed:
        """Everything that is missing of the pack."""
        self.shape = self._first_shape()
        if not (self.out / HEADER).exists():
            self._room()
        plan = self._plan()
        if (self.out / HEADER).exists():
            packed = Packed.open(self.out, lengths=False)
            if packed.header["plan"] != plan:
                raise UsageError(
                    f"{self.out}: holds another packed data set ({packed.header['name']}, "
                    f"{packed.header['input_shape']}), or the same packed otherwise: remove it, or name another folder"
                )
            (self.out / JOURNAL).unlink(missing_ok=True)
            repair(packed, self.source, decoder, self._range(), self.tell)
            return Packed.open(self.out)
        journal = Journal(self.out / JOURNAL, plan)
        done = {part.role: self._pack(part, journal, decoder) for part in self.source.parts}
        self._judge(done)
        records = [self._finish(part, done[part.role]) for part in self.source.parts]
        write_json(self.out / HEADER, KIND, SCHEMA, self._header(plan, records, done), within=self.out)
        (self.out / JOURNAL).unlink(missing_ok=True)
        return Packed.open(self.out)

    def _plan(self) -> str:
        """The digest of what is asked: how images become rows, and which."""
        parts = []
        for part in self.source.parts:
            names = sha256(json.dumps(name).encode() + b"\n" for name in part.names)
            labels = None if part.labels is None else sha256([part.labels.astype("<i8").tobytes()])
            parts.append([part.role, len(part.names), names, labels])
        asked = [list(self.shape), self.way.grey, self.way.fit, list(self.class_names), parts]
        return sha256([json.dumps(asked, separators=(",", ":")).encode()])

    def _first_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the first image that can be read. Raises DataError when none of the first can."""
        reason = "there is none"
        for item in islice(self.source.parts[0].items(0), 1000):
            found = self.way.row(item)
            if not isinstance(found, str):
                channels, height, width = found.shape
                return channels, height, width
            reason = found
        name = printable(self.source.parts[0].names[0]) if len(self.source.parts[0].names) else self.source.name
        raise DataError(f"{self.source.name}: no image that can be read ({name}: {reason})")

    def _room(self) -> None:
        """Raises WriteError when the disk has no room for what is to come."""
        need = image_bytes(self.shape) * sum(len(part.names) for part in self.source.parts)
        there = sum(file.stat().st_size for file in self.out.glob("*-images.u8"))
        free = shutil.disk_usage(self.out).free + there
        if need > free:
            raise WriteError(f"{self.out}: {size_bytes(need)} are needed, {size_bytes(free)} are free: make room first")

    def _range(self) -> int:
        """How many of the listed images a range takes."""
        return max(1, min(RANGE_ROWS, RANGE_BYTES // image_bytes(self.shape)))

    def _pack(self, part: Part, journal: Journal, decoder: Decoder) -> _Done:
        """Keep what an earlier call has done of the part, then add the rest range by range."""
        done, each = _Done(), image_bytes(self.shape)
        size = self._range()
        images, total = self.out / f"{part.role}-images.u8", len(part.names)
        stage = f"packing {part.role}"
        while done.listed < total and (line := journal.next()) and self._holds(line, part, done, images, size):
            journal.keep()
            done.add(line)
            self.tell(stage, done.listed, total, "kept")
        if done.listed < total:
            journal.cut()
        rows = decoder(part.items(done.listed))
        while done.listed < total:
            listed = min(size, total - done.listed)
            kept: list[NDArray[np.uint8]] = []
            left_out: list[list[Any]] = []
            for row, found in enumerate(islice(rows, listed), done.listed):
                if isinstance(found, str):
                    left_out.append([row, printable(found)])
                    continue
                self._check_shape(found, part, row)
                kept.append(found)
                if row % 64 == 0:
                    self.tell(stage, row, total, f"{len(done.left_out) + len(left_out)} unreadable")
            data = np.stack(kept).tobytes() if kept else b""
            append_bytes(images, data, done.rows * each)
            line = {
                "part": part.role, "first": done.listed, "listed": listed, "rows": len(kept), "crc32c": crc32c(data),
                "stamp": _stamp(part, done.listed, listed), "left_out": left_out,
            }  # fmt: skip
            journal.add(line)
            done.add(line)
            self.tell(stage, done.listed, total, f"{len(done.left_out)} unreadable")
        return done

    def _holds(self, line: dict[str, Any], part: Part, done: _Done, images: Path, size: int) -> bool:
        """Whether a range of an earlier call is still what it should be, on the disk and in the source."""
        listed = min(size, len(part.names) - done.listed)
        if (line.get("part"), line.get("first"), line.get("listed")) != (part.role, done.listed, listed):
            return False
        if line.get("stamp") != _stamp(part, done.listed, listed):
            return False
        each, out = image_bytes(self.shape), line.get("left_out")
        if not isinstance(out, list) or line.get("rows") != listed - len(out) or isinstance(line["rows"], bool):
            return False
        if not all(isinstance(one, list) and list(map(type, one)) == [int, str] for one in out):
            return False
        if any(not done.listed <= row < done.listed + listed for row, _ in out):
            return False
        return bool(crc32c(read_range(images, done.rows * each, line["rows"] * each)) == line.get("crc32c"))

    def _check_shape(self, found: NDArray[np.uint8], part: Part, row: int) -> None:
        if found.shape != self.shape:
            raise DataError(
                f"{printable(part.names[row])}: {found.shape[1]}x{found.shape[2]} (height x width, {found.shape[0]} "
                f"channels), but the first image is {self.shape[1]}x{self.shape[2]} ({self.shape[0]} channels): bring "
                "all to one size by --size 64 (in Python size=64)"
            )

    def _judge(self, done: dict[str, _Done]) -> None:
        """Raises DataError when images could not be read and are not to be skipped, or nothing is left of a part."""
        bad = [(part, row, why) for part in self.source.parts for row, why in done[part.role].left_out]
        if bad and not self.skip_corrupt:
            told = "\n".join(f"  {printable(part.names[row])}: {why}" for part, row, why in bad[:NAMED])
            more = f"\n  and {len(bad) - NAMED:,} more" if len(bad) > NAMED else ""
            raise DataError(
                f"{plural(len(bad), 'image')} of {self.source.name} cannot be read:\n{told}{more}\nmend or remove "
                "them, or leave them out by --skip-corrupt (in Python skip_corrupt=True); what could be read is kept"
            )
        for part in self.source.parts:
            if not done[part.role].rows:
                raise DataError(f"{self.source.name}: no image of {part.role} can be read")

    def _finish(self, part: Part, done: _Done) -> dict[str, Any]:
        """Write a part's labels and names; returns its record."""
        told = {}
        for ending, data in side_files(part, {row for row, _ in done.left_out}).items():
            write_bytes(self.out / f"{part.role}-{ending}", data, within=self.out)
            told[ending] = {"file": f"{part.role}-{ending}", "bytes": len(data), "crc32c": crc32c(data)}
        size = done.rows * image_bytes(self.shape)
        return {
            "role": part.role,
            "rows": done.rows,
            "images": {"file": f"{part.role}-images.u8", "bytes": size, "ranges": done.ranges},
            "labels": told.get("labels.i64"),
            "files": told["files.jsonl"],
        }

    def _header(self, plan: str, records: list[dict[str, Any]], done: dict[str, _Done]) -> dict[str, Any]:
        import PIL

        return {
            "name": printable(self.source.name),
            "input_shape": list(self.shape),
            "class_names": list(self.class_names),
            "parts": records,
            "left_out": [
                {"part": part.role, "file": printable(part.names[row]), "reason": why}
                for part in self.source.parts
                for row, why in done[part.role].left_out
            ],
            "note": self.source.note,
            "source": self.source.kind,
            "fit": self.way.fit,
            "grey": self.way.grey,
            "pillow": PIL.__version__,
            "plan": plan,
        }


def _stamp(part: Part, first: int, listed: int) -> str:
    """What would be another text if one of the rows' images were another one."""
    return sha256(f"{part.stamp(row)}\n".encode("utf-8", "surrogateescape") for row in range(first, first + listed))
