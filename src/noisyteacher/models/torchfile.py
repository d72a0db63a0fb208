"""What torch.save wrote, read without running any of it: the tensors and plain values of a file, whatever its name.

Such a file is a zip archive of a pickle and the tensors' bytes, and a pickle is a program. Here the archive must be
plain (members stored as they are, none outside it, no more bytes than the file has), the pickle's opcodes are looked
through first, and it is read with stand-ins for the few names that tensors need. Any other name (a training program's
settings, paths, numpy scalars) becomes an `Inert` value. No name is imported, so no code of the file's choosing runs,
and nothing is allocated beyond the size of the file.
"""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from noisyteacher.errors import FileFormatError
from noisyteacher.files import read_bytes

MOST_MEMBERS, MOST_PICKLED, MOST_TUPLES, MOST_NAMES = 200_000, 2**25, 30_000, 1_000
"""Above all real checkpoints; as many tuples, one in the other, still leave room on the stack."""
ZIP, PICKLE = b"PK\x03\x04", b"\x80"
"""How an archive of torch.save begins, and how a pickle alone."""
_WORDS = """
PROTO FRAME STOP MARK POP POP_MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE
SHORT_BINUNICODE BINBYTES SHORT_BINBYTES EMPTY_DICT EMPTY_LIST EMPTY_TUPLE EMPTY_SET TUPLE TUPLE1 TUPLE2 TUPLE3 SETITEM
SETITEMS APPEND APPENDS ADDITEMS BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD
BINPERSID NEWOBJ NEWOBJ_EX FROZENSET BYTEARRAY8 BINSTRING SHORT_BINSTRING
"""
_OPCODES = frozenset(_WORDS.split())
_STORAGES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
_DTYPES = {str(dtype).removeprefix("torch.") for dtype in _STORAGES.values()}
ADVICE = (
    "where you trust it, load it in torch yourself and save the tensors alone, as .safetensors or by "
    "torch.save(model.state_dict(), FILE)"
)


class _Refused(pickle.UnpicklingError):
    """Raised inside the reader where a pickle asks for what tensors never need."""


class _Fixed:
    """What a pickle may hold and cannot change."""

    def __setstate__(self, state: object) -> None:
        raise _Refused(f"sets the state of a {type(self).__name__.strip('_').lower()}")


@dataclass(frozen=True)
class Stored(_Fixed):
    """A tensor of the file that has not been read yet; `read` gives it."""

    read: Callable[[], Tensor]


class Inert:
    """A value of the file that is no tensor and no plain value: it takes what a pickle does to it and keeps nothing."""

    name = "an object"
    """What the file calls its class or function, as "module.name"."""

    def __new__(cls, *_: Any, **__: Any) -> Inert:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, *_: Any, **__: Any) -> Inert:
        return self

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, value: object) -> None:
        """Nothing is kept."""

    extend = add = append


def is_torch_file(data: bytes) -> bool:
    """Whether a file that begins so is one of torch.save, or a pickle, rather than of safetensors.

    A safetensors file begins with the length of its header, which may look like a pickle, and the header's brace.
    """
    return data.startswith(ZIP) or (data.startswith(PICKLE) and data[5:9] != b"\x00\x00\x00{")


def begins_as_torch_file(path: str | os.PathLike[str]) -> bool:
    """Whether there is such a file, by its first bytes."""
    try:
        with Path(path).open("rb") as file:
            return is_torch_file(file.read(9))
    except (OSError, ValueError):
        return False


def read_torch_file(path: str | os.PathLike[str], data: bytes | None = None) -> Any:
    """What was saved: dicts, lists, numbers and text as they are, tensors as `Stored`, dtypes and devices as text.

    All else is `Inert`. `data` is the file's content where it has been read. Raises FileFormatError naming the file
    when it is missing or damaged, is not such an archive, or is compressed; nothing in it is run.
    """
    data = read_bytes(path) if data is None else data
    members = archive_members(data, path)
    pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise FileFormatError(f"{path}: a zip archive, but not one of torch.save: it has {len(pickles)} data.pkl")
    root = pickles[0].removesuffix("data.pkl")
    if members.get(f"{root}byteorder", b"little") != b"little":
        raise FileFormatError(f"{path}: its tensors are big-endian: save it again on a little-endian machine")
    written = bytes(members[pickles[0]])
    _look_through(written, path)
    try:
        return _Reader(written, members, f"{root}data/").load()
    except _Refused as error:
        raise FileFormatError(f"{path}: {error}, and nothing of it was run: {ADVICE}") from error
    except Exception as error:  # a damaged pickle raises whatever its next opcode meets
        raise FileFormatError(f"{path}: truncated or damaged ({type(error).__name__}: {error})") from error


def archive_members(data: bytes, path: str | os.PathLike[str]) -> dict[str, memoryview]:
    """The members of an archive of torch.save or torch.export.save by name, as parts of the data.

    Raises FileFormatError naming the file unless all are stored uncompressed inside it and claim no more than it has.
    """
    if not data.startswith(ZIP):
        kind = "a pickle without an archive around it, as torch wrote before version 1.6"
        kind = kind if data.startswith(PICKLE) else ""
        raise FileFormatError(f"{path}: not a file of torch.save: {kind or 'no zip archive'}; it is not read: {ADVICE}")
    found: dict[str, memoryview] = {}
    view, total = memoryview(data), 0
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            listed = archive.infolist()
            for one in listed:
                name, size = one.filename, one.file_size
                total += size
                if "/code/__torch__" in name:
                    raise FileFormatError(f"{path}: a TorchScript program, which is code: export it to ONNX, give that")
                if one.compress_type != zipfile.ZIP_STORED or one.compress_size != size or one.flag_bits & 1:
                    raise FileFormatError(f"{path}: its member {name!r:.80} is compressed, which torch.save never does")
                if name.startswith("/") or ".." in name.split("/") or "\\" in name or name in found:
                    raise FileFormatError(
                        f"{path}: its member {name!r:.80} lies outside the archive, or is there twice"
                    )
                if total > len(data) or len(listed) > MOST_MEMBERS:
                    raise FileFormatError(f"{path}: its members claim more bytes than the file has, {len(data)}")
                header = one.header_offset
                lengths = (int.from_bytes(data[header + at : header + at + 2], "little") for at in (26, 28))
                begin = header + 30 + sum(lengths)
                if begin + size > len(data):
                    raise FileFormatError(f"{path}: its member {name!r:.80} ends behind the file's end")
                found[name] = view[begin : begin + size]
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError) as error:
        raise FileFormatError(f"{path}: truncated or damaged ({error})") from error
    return found


def _look_through(written: bytes, path: str | os.PathLike[str]) -> None:
    """Refuse opcodes that tensors have no use for, and what would make the reader allocate or nest at will."""
    if len(written) > MOST_PICKLED:
        raise FileFormatError(f"{path}: {len(written)} bytes beside its tensors, more than {MOST_PICKLED}: {ADVICE}")
    tuples = 0
    try:
        for number, (opcode, argument, place) in enumerate(pickletools.genops(written)):
            name = opcode.name
            if name not in _OPCODES:
                raise FileFormatError(
                    f"{path}: holds more than tensors (opcode {name} at byte {place} of its pickle), and nothing of it "
                    f"was run: {ADVICE}"
                )
            tuples += name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")
            if tuples > MOST_TUPLES:
                raise FileFormatError(f"{path}: more than {MOST_TUPLES} tuples in its pickle: {ADVICE}")
            if name in ("BINPUT", "LONG_BINPUT") and isinstance(argument, int) and argument > number:
                raise FileFormatError(f"{path}: memo number {argument} at byte {place} of its pickle: damaged")
    except FileFormatError:
        raise
    except Exception as error:  # pickletools raises ValueError, UnicodeDecodeError, struct.error, ...
        raise FileFormatError(f"{path}: truncated, damaged or not a pickle ({error})") from error


@dataclass(frozen=True)
class _Function(_Fixed):
    """A callable that a pickle may call."""

    made_by: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        return self.made_by(*arguments)


class _Dict(OrderedDict[Any, Any]):
    """An OrderedDict whose further attributes (a state dict's `_metadata`) are passed over."""

    def __setstate__(self, state: object) -> None:
        pass


@dataclass(frozen=True)
class _Storage(_Fixed):
    dtype: torch.dtype
    data: memoryview


class _Reader(pickle.Unpickler):
    """An unpickler that imports nothing: a name is one of a few stand-ins, or an `Inert` class."""

    def __init__(self, written: bytes, members: dict[str, memoryview], folder: str) -> None:
        super().__init__(io.BytesIO(written), encoding="latin-1")
        self.members, self.folder = members, folder
        self.inert: dict[tuple[str, str], type[Inert]] = {}

    def find_class(self, module: str, name: str, /) -> Any:
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch" and name in _DTYPES:
            return name
        if (module, name) in _GLOBALS:
            return _GLOBALS[module, name]
        if (module, name) not in self.inert:
            if len(self.inert) >= MOST_NAMES:
                raise _Refused(f"names more than {MOST_NAMES} classes and functions")
            self.inert[module, name] = type("Inert", (Inert,), {"name": f"{module}.{name}"[:80]})
        return self.inert[module, name]

    def persistent_load(self, pid: Any, /) -> _Storage | Inert:
        """The storage behind a tensor; its member must have just the bytes that it claims. Inert for unknown dtypes."""
        if isinstance(pid, tuple) and pid[1:] and isinstance(pid[1], type) and issubclass(pid[1], Inert):
            return pid[1]()
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage" or not isinstance(pid[1], torch.dtype):
            raise _Refused(f"a storage in it is described as {pid!r:.80}")
        data = self.members.get(f"{self.folder}{pid[2]}")
        if data is None or type(pid[4]) is not int or pid[4] * pid[1].itemsize != len(data):
            raise _Refused(f"the storage {pid[2]!r:.40} of {pid[4]!r:.40} elements in it does not match the archive")
        return _Storage(pid[1], data)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Stored | Inert:
    if isinstance(storage, Inert):
        return storage
    numbers = [offset, *size, *stride]
    if not isinstance(storage, _Storage) or len(size) != len(stride) or any(type(one) is not int for one in numbers):
        raise _Refused("a tensor in it is not described as torch does")
    held = len(storage.data) // storage.dtype.itemsize
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if min(numbers) < 0 or (prod(size) and (last >= held or prod(size) > held)):
        raise _Refused(f"a tensor of shape {size!r:.80} in it does not lie inside its storage of {held} elements")

    def read() -> Tensor:
        if not prod(size):
            return torch.empty(size, dtype=storage.dtype)
        step = storage.dtype.itemsize
        part = bytearray(storage.data[offset * step : (last + 1) * step])
        return torch.frombuffer(part, dtype=storage.dtype).as_strided(size, stride).contiguous()

    return Stored(read)


def _parameter(data: Any, *_: Any) -> Stored | Inert:
    if not isinstance(data, (Stored, Inert)):
        raise _Refused("a parameter in it is not a tensor")
    return data


_GLOBALS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Dict,
    ("collections", "Counter"): _Function(dict),
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Function(_parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): _Function(_parameter),
    ("torch", "Size"): _Function(tuple),
    ("torch", "device"): _Function(lambda *parts: ":".join(map(str, parts))),
    ("builtins", "set"): _Function(set),
    ("__builtin__", "set"): _Function(set),
}
