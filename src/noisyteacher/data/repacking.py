"""A packed data set of which something is damaged: that alone is made again, and only if it comes out as it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisyteacher.data.packable import Part, Source
from noisyteacher.data.packed import Packed, image_bytes
from noisyteacher.errors import DataError
from noisyteacher.files import append_bytes, crc32c, write_bytes
from noisyteacher.pixels import Item
from noisyteacher.text import printable

Decoder = Callable[[Iterator[Item]], Iterator[NDArray[np.uint8] | str]]


def side_files(part: Part, out: set[int]) -> dict[str, bytes]:
    """By ending, the bytes of the files beside a part's images: names and labels of all rows but those left out."""
    names = [json.dumps(name) for row, name in enumerate(part.names) if row not in out]
    files = {"files.jsonl": "".join(f"{name}\n" for name in names).encode()}
    if part.labels is not None:
        keep = np.ones(len(part.names), dtype=bool)
        keep[list(out)] = False
        files["labels.i64"] = part.labels[keep].astype("<i8").tobytes()
    return files


def repair(
    packed: Packed, source: Source, decoder: Decoder, size: int, tell: Callable[[str, int, int, str], None]
) -> int:
    """Make every damaged range and file again from the source it was packed from; returns how many there were.

    `size` is how many listed images a range takes. Raises DataError where the source gives something else than what
    was packed (nothing is written then), WriteError.
    """
    parts = {part.role: part for part in source.parts}
    damaged = list(packed.damage())
    for number, one in enumerate(damaged):
        tell("mending", number, len(damaged), one.file.name)
        part, record = parts[one.role], packed.part(one.role)
        if one.kind == "images":
            first = one.number * size
            listed = islice(part.items(first), min(size, len(part.names) - first))
            rows = [row for row in decoder(listed) if not isinstance(row, str)]
            data = np.stack(rows).tobytes() if rows else b""
            _same(data, record["images"]["ranges"][one.number]["crc32c"], one.file)
            append_bytes(one.file, data, one.at, keep_behind=True)
        else:
            gone = {left["file"] for left in packed.left_out if left["part"] == one.role}
            out = {row for row, name in enumerate(part.names) if gone and printable(name) in gone}
            data = side_files(part, out)["labels.i64" if one.kind == "labels" else "files.jsonl"]
            _same(data, record[one.kind]["crc32c"], one.file)
            write_bytes(one.file, data, within=packed.path)
    each = image_bytes(packed.input_shape)
    for role in {one.role for one in damaged if one.kind == "images"}:
        images = packed.part(role)["images"]
        append_bytes(packed.path / images["file"], b"", packed.part(role)["rows"] * each)  # and nothing behind them
    return len(damaged)


def _same(data: bytes, expected: Any, file: Path) -> None:
    if crc32c(data) != expected:
        raise DataError(
            f"{file}: is damaged, and its source no longer gives what was packed (checksum {crc32c(data)}, {expected} "
            "then): restore the file from a copy, or pack the images into another folder"
        )
