"""Named tensors in one sealed safetensors file, with a JSON record in its metadata.

Any safetensors reader loads these files. This module also checks the seal (safetensors itself detects no flipped bit),
the kind and the schema. The record is the only metadata key, so equal content gives equal bytes (docs/formats.md).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from noisyteacher.errors import FileFormatError
from noisyteacher.io.files import BLANK, SEAL, check_seal, parse_json, read_bytes, sealed, unwrap, write_bytes

KEY = "noisyteacher"


def tensor_bytes(tensor: Tensor) -> bytes:
    """The tensor's values as little-endian bytes in row-major order, whatever its device and strides."""
    contiguous = tensor.detach().to("cpu").contiguous()
    return contiguous.reshape(-1).view(torch.uint8).numpy().tobytes() if contiguous.numel() else b""


def write_tensors(
    path: str | os.PathLike[str],
    kind: str,
    schema: int,
    tensors: dict[str, Tensor],
    content: dict[str, Any],
    within: Path | None = None,
) -> None:
    """Write tensors and a JSON-able record as one sealed safetensors file, durably and whole.

    Equal arguments give equal bytes. `within` is a folder that must exist (`files.make_folder`). Raises WriteError.
    """
    record = {"checksum": (SEAL + BLANK).decode(), "kind": kind, "schema": schema, **content}
    separate: dict[str, Tensor] = {}
    used: set[int] = set()
    for name, tensor in sorted(tensors.items()):
        tensor = tensor.detach().to("cpu").contiguous()
        memory = tensor.untyped_storage()
        # safetensors refuses tensors that share memory: a view of a larger one, or a second name for one.
        if memory.nbytes() != tensor.nbytes or memory.data_ptr() in used:
            tensor = tensor.clone()
        used.add(tensor.untyped_storage().data_ptr())
        separate[name] = tensor
    data = safetensors.torch.save(separate, {KEY: json.dumps(record, allow_nan=False)})
    separate.clear()  # frees the copies before the slow write
    write_bytes(path, sealed(data), within)


def read_tensors(path: str | os.PathLike[str], kind: str, schema: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors (in memory, on the CPU) and the record of a sealed file.

    Raises FileFormatError naming the file when it is missing, truncated, damaged, or of another kind or schema.
    """
    data = read_bytes(path)
    check_seal(data, path)
    record = read_record(path)
    try:
        tensors = safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise FileFormatError(f"{path}: not a safetensors file: {error}") from error
    return tensors, unwrap(record, path, kind, schema)


def map_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a safetensors file, memory-mapped read-only: pages are read when rows are used.

    Checks the header's shapes against the file's length, not the seal: call `verify` for that.
    Raises FileFormatError naming the file.
    """
    try:
        with safetensors.safe_open(Path(path), framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (safetensors.SafetensorError, OSError) as error:
        raise FileFormatError(f"{path}: not a readable safetensors file: {error}") from error


def read_record(path: str | os.PathLike[str]) -> Any:
    """The whole JSON record in the file's metadata: checksum, kind, schema and content."""
    try:
        with safetensors.safe_open(Path(path), framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise FileFormatError(f"{path}: not a readable safetensors file: {error}") from error
    if KEY not in metadata:
        raise FileFormatError(f"{path}: a safetensors file, but not written by noisyteacher: no {KEY!r} in its header")
    try:
        return parse_json(metadata[KEY])
    except ValueError as error:
        raise FileFormatError(f"{path}: the record in its header is not JSON: {error}") from error


def verify(path: str | os.PathLike[str]) -> None:
    """Raise FileFormatError naming the file unless every byte of it matches its seal."""
    check_seal(read_bytes(path), path)
