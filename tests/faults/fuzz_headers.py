"""Run by atheris, which follows coverage: bytes of its making are read by the parsers of headers. One file, no test."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["noisyteacher"]):
    from noisyteacher.data.builtin import read_cifar_batch, read_idx
    from noisyteacher.data.sources import read_npz
    from noisyteacher.errors import NoisyTeacherError
    from noisyteacher.io.files import parse_json
    from noisyteacher.io.tensors import map_tensors, read_record
    from noisyteacher.models.weights import read_state_dict

FILE = Path(tempfile.mkdtemp()) / "a.bin"
READERS: tuple[Callable[[Path], object], ...] = (
    map_tensors, read_record, read_state_dict, read_npz, lambda path: read_idx(path, 3)
)  # fmt: skip


def read_all(data: bytes) -> None:
    """Every parser on the same bytes: one that another format's bytes are given must refuse them as well."""
    FILE.write_bytes(data)
    for read in READERS:
        with contextlib.suppress(NoisyTeacherError):
            read(FILE)
    with contextlib.suppress(NoisyTeacherError):
        read_cifar_batch(data, "batch")
    with contextlib.suppress(ValueError):
        parse_json(data)


if __name__ == "__main__":
    atheris.Setup(sys.argv, read_all)
    atheris.Fuzz()
