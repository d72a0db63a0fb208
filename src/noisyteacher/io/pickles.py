"""Pickles read without running or importing anything: what stands for an object records its arguments and state."""

from __future__ import annotations

import pickle
from io import BytesIO
from typing import Any


class Recorded(dict[Any, Any]):
    """What a name in a pickle becomes: an object that records its arguments and state, and does nothing."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__()
        self.arguments, self.state = arguments, ()

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Unpickler(pickle._Unpickler):
    """Reads a pickle without importing anything. Raises UnpicklingError for tuples nested deeper than `MOST_NESTED`.

    In Python, not C: there a number in the pickle decides how much memory is taken. A tuple that holds its predecessor
    twice, and so on 60 times, takes a few hundred bytes in a file, and longer than anybody waits to hash or to print.
    """

    MOST_NESTED = 8
    stack: list[Any]
    dispatch = dict(pickle._Unpickler.dispatch)  # noqa: RUF012 - never changed

    def __init__(self, data: bytes) -> None:
        super().__init__(BytesIO(data), encoding="bytes")
        self.depths: dict[int, tuple[int, object]] = {}
        """By a tuple's id its depth, and the tuple itself: an id stays its own while that is alive."""

    def find_class(self, module: str, name: str) -> Any:
        return Recorded

    def persistent_load(self, pid: Any) -> None:
        """Tensors' bytes are elsewhere."""

    def measure(self) -> None:
        """Record the depth of the tuple on top of the stack."""
        depth = 1 + max((self.depths.get(id(item), (0, None))[0] for item in self.stack[-1]), default=0)
        if depth > self.MOST_NESTED:
            raise pickle.UnpicklingError(f"tuples in it are nested deeper than {self.MOST_NESTED} levels")
        self.depths[id(self.stack[-1])] = depth, self.stack[-1]


def _measured(load: Any) -> Any:
    def load_and_measure(self: Unpickler) -> None:
        load(self)
        self.measure()

    return load_and_measure


for _opcode in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3):
    Unpickler.dispatch[_opcode[0]] = _measured(Unpickler.dispatch[_opcode[0]])
