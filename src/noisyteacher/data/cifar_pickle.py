"""CIFAR-10's python batches, read without ever running what a pickle says.

The official files are pickles, and a pickle is a program. Here its opcodes are looked through first and everything that
a batch has no use for is refused; then it is read with stand-ins for the few names it may mention. No name is ever
imported, so no code of the file's choosing runs, and nothing is allocated beyond the size of the file.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisyteacher.errors import DataError

ROW = 3 * 32 * 32
MAX_BYTES = 2**26
_WORDS = """
PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES
BINUNICODE SHORT_BINUNICODE EMPTY_DICT EMPTY_LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 SETITEM SETITEMS APPEND APPENDS
BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD
"""
_OPCODES = frozenset(_WORDS.split())
# Containers that a batch has a handful of; thousands, one in the other, are there to exhaust the stack.
_FEW = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "EMPTY_DICT", "REDUCE", "BUILD")
_MOST = 64


def read_batch(data: bytes, what: str, classes: int = 10) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images uint8 `[N, 3, 32, 32]` (read-only) and labels int64 `[N]` of one pickled batch.

    Raises DataError that begins with `what` and names the offending opcode, global or field; nothing is executed.
    """
    if len(data) > MAX_BYTES:
        raise DataError(f"{what}: {len(data)} bytes, more than a CIFAR-10 batch has ({MAX_BYTES} at most)")
    _look_through(data, what)
    try:
        record = _Reader(io.BytesIO(data), encoding="bytes").load()
    except _Refused as error:
        raise DataError(f"{what}: not a CIFAR-10 batch: {error}; nothing of it was run") from error
    except Exception as error:  # a damaged pickle raises whatever its next opcode meets
        raise DataError(f"{what}: truncated or damaged ({type(error).__name__}: {error})") from error
    if not isinstance(record, dict):
        raise DataError(f"{what}: holds a {type(record).__name__}, expected a dict with 'data' and 'labels'")
    fields = {key.decode("latin-1") if isinstance(key, bytes) else key: value for key, value in record.items()}
    images, labels = fields.get("data"), fields.get("labels")
    if not isinstance(images, _Array) or images.values is None or not isinstance(labels, list):
        raise DataError(f"{what}: 'data' must be an array and 'labels' a list; the file holds neither or not both")
    rows = images.values
    if rows.ndim != 2 or rows.shape[1] != ROW or not len(rows) or len(labels) != len(rows):
        raise DataError(f"{what}: data {list(rows.shape)} and {len(labels)} labels; expected [N, {ROW}] and N labels")
    for row, label in enumerate(labels):
        if type(label) is not int or not 0 <= label < classes:
            raise DataError(f"{what}: label {label!r:.40} of row {row} is out of range 0..{classes - 1}")
    return rows.reshape(-1, 3, 32, 32), np.array(labels, dtype=np.int64)


class _Refused(pickle.UnpicklingError):
    """Raised inside the reader where a pickle asks for what a batch never needs."""


def _look_through(data: bytes, what: str) -> None:
    """Refuse opcodes a batch has no use for, nesting, and memo numbers that would make the reader allocate at will."""
    seen: Counter[str] = Counter()
    try:
        for number, (opcode, argument, place) in enumerate(pickletools.genops(data)):
            name = opcode.name
            if name not in _OPCODES:
                raise DataError(f"{what}: not a CIFAR-10 batch: opcode {name} at byte {place}; nothing of it was run")
            if name in _FEW:
                seen[name] += 1
                if seen[name] > _MOST:
                    raise DataError(f"{what}: not a CIFAR-10 batch: more than {_MOST} of opcode {name}")
            if name in ("BINPUT", "LONG_BINPUT") and isinstance(argument, int) and argument > number:
                raise DataError(f"{what}: not a CIFAR-10 batch: memo number {argument} at byte {place}")
    except DataError:
        raise
    except Exception as error:  # pickletools raises ValueError, UnicodeDecodeError, struct.error, ...
        raise DataError(f"{what}: truncated, damaged or not a pickle ({error})") from error


class _Function:
    """A callable that a pickle may call and cannot change."""

    __slots__ = ("_made_by",)

    def __init__(self, made_by: Callable[..., Any]) -> None:
        self._made_by = made_by

    def __call__(self, *arguments: Any) -> Any:
        return self._made_by(*arguments)

    def __setstate__(self, state: object) -> None:
        raise _Refused("it sets the state of a function")


class _Name:
    """Stands for `numpy.ndarray`, which a batch mentions and never calls."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise _Refused("it sets the state of a class")


class _Dtype:
    """Stands for `numpy.dtype("u1")`, the only one there is."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        if not (isinstance(state, tuple) and len(state) >= 2 and state[1] in (b"|", "|")):
            raise _Refused("its dtype is not plain bytes")


class _Array:
    """Stands for an array while it is read; `values` are its bytes once they are there."""

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values: NDArray[np.uint8] | None = None

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise _Refused("its array is not one of numpy's")
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _Dtype) or fortran or not isinstance(raw, bytes) or not isinstance(shape, tuple):
            raise _Refused("its array does not hold plain bytes, row by row")
        if len(shape) != 2 or any(type(length) is not int for length in shape) or shape[0] * shape[1] != len(raw):
            raise _Refused(f"its array of {len(raw)} bytes says it has shape {shape!r:.60}")
        self.values = np.frombuffer(raw, np.uint8).reshape(shape)


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _dtype(code: Any, *_: Any) -> _Dtype:
    if code not in (b"u1", "u1"):
        raise _Refused(f"its array has dtype {code!r:.40}, expected uint8")
    return _Dtype()


def _encode(text: Any, encoding: Any) -> bytes:
    """Bytes as Python 3 writes them with protocol 2: a string and the name of an encoding."""
    if not isinstance(text, str) or encoding not in (b"latin1", "latin1"):
        raise _Refused("it encodes something else than bytes")
    return text.encode("latin-1")


_GLOBALS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Function(_reconstruct),
    ("numpy._core.multiarray", "_reconstruct"): _Function(_reconstruct),
    ("numpy", "ndarray"): _Name(),
    ("numpy", "dtype"): _Function(_dtype),
    ("_codecs", "encode"): _Function(_encode),
}


class _Reader(pickle.Unpickler):
    """An unpickler that imports nothing: a name is one of five stand-ins, or the file is refused."""

    def find_class(self, module: str, name: str, /) -> Any:
        try:
            return _GLOBALS[module, name]
        except KeyError:
            raise _Refused(f"it asks for {module}.{name}") from None
