"""Run by atheris, which follows coverage: bytes of its making are read by the parsers of headers. One file, no test."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["noisyteacher"]):
    from noisyteacher.data.cifar_pickle import read_batch
    from noisyteacher.data.matfile import mat_variables, read_variable
    from noisyteacher.data.mnist import read_idx
    from noisyteacher.data.npz import read_npz
    from noisyteacher.errors import NoisyTeacherError
    from noisyteacher.models.torchfile import read_torch_file
    from noisyteacher.strictjson import parse_json
    from noisyteacher.tensorfile import map_tensors, read_record

PLACE = Path(tempfile.mkdtemp()) / "a.bin"


def variables(path: Path) -> None:
    for variable in mat_variables(path).values():
        read_variable(path, variable)


PATHS = (
    map_tensors, read_record, read_torch_file, variables, lambda path: read_idx(path, 3),
    lambda path: read_npz(path, ("x", "y")),
)  # fmt: skip


def one(data: bytes) -> None:
    """Every parser on the same bytes: one that another format's bytes are given must refuse them as well."""
    PLACE.write_bytes(data)
    for read in PATHS:
        try:
            read(PLACE)
        except NoisyTeacherError:
            pass
        except ValueError:  # what the innermost parsers promise to their callers
            if read is not variables:
                raise
    with contextlib.suppress(NoisyTeacherError):
        read_batch(data, "batch")
    with contextlib.suppress(ValueError):
        parse_json(data)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
