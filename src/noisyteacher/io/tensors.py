"""Named tensors in one sealed safetensors file, with a JSON record as its only metadata (docs/formats.md).

Any safetensors reader loads these files. The seal is this package's: safetensors itself detects no flipped bit.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from noisyteacher.errors import FileFormatError
from noisyteacher.io.files import Json, StrPath, check_seal, header, parse_json, read_bytes, seal, unwrap, write_bytes

KEY = "noisyteacher"
Tensors = dict[str, Tensor]


def tensor_bytes(tensor: Tensor) -> bytes:
    """The tensor's values as little-endian bytes in row-major order, whatever its device and strides."""
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def write_tensors(
    path: StrPath, kind: str, schema: int, tensors: Tensors, content: Json, within: Path | None = None
) -> None:
    """Write tensors and a JSON-able record as one sealed safetensors file, durably; equal arguments give equal bytes.

    `within` is a folder that must exist (`make_folder`). Raises WriteError.
    """
    write_bytes(path, sealed_tensors(kind, schema, tensors, content), within)


def sealed_tensors(kind: str, schema: int, tensors: Tensors, content: Json) -> bytes:
    """The bytes of the file that `write_tensors` writes."""
    separate: Tensors = {}
    used: set[int] = set()
    for name, tensor in sorted(tensors.items()):
        tensor = tensor.detach().to("cpu").contiguous()
        memory = tensor.untyped_storage()
        # safetensors refuses tensors that share memory: a view of a larger one, or a second name for one.
        if memory.nbytes() != tensor.nbytes or memory.data_ptr() in used:
            tensor = tensor.clone()
        used.add(tensor.untyped_storage().data_ptr())
        separate[name] = tensor
    record = json.dumps({**header(kind, schema), **content}, allow_nan=False)
    return seal(safetensors.torch.save(separate, {KEY: record}))


def read_tensors(path: StrPath, kind: str, schema: int) -> tuple[Tensors, Json]:
    """The tensors (in memory, on the CPU) and the record of a sealed file.

    Raises FileFormatError naming the file when it is missing, truncated, damaged, or of another kind or schema.
    """
    data = read_bytes(path)
    check_seal(data, path)
    record = unwrap(read_record(path), path, kind, schema)
    with _format_errors(path):
        return safetensors.torch.load(data), record


def map_tensors(path: StrPath) -> Tensors:
    """The tensors of a safetensors file, memory-mapped read-only; the seal is not checked. Raises FileFormatError."""
    with _format_errors(path), safetensors.safe_open(Path(path), framework="pt", device="cpu") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict


def read_record(path: StrPath) -> Any:
    """The whole JSON record in the file's metadata: checksum, kind, schema and content. Raises FileFormatError."""
    with _format_errors(path), safetensors.safe_open(Path(path), framework="pt", device="cpu") as file:
        return parse_json((file.metadata() or {})[KEY])


@contextlib.contextmanager
def _format_errors(path: StrPath) -> Iterator[None]:
    try:
        yield
    except KeyError as error:
        raise FileFormatError(f"{path}: a safetensors file, but not written by noisyteacher: no {error}") from error
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise FileFormatError(f"{path}: not a readable safetensors file: {error}") from error
