"""Changes to valid files: bits, bytes and lengths, or, one level higher, the values and keys of a JSON tree.

A change is drawn by hypothesis as a few numbers, so that what fails is shrunk; applying it is a plain function.
"""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

EXTREMES = (0, 1, 0x7F, 0xFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1)
BYTE_KINDS = ("flip", "byte", "insert", "cut", "end", "repeat", "<I", "<Q", ">I", ">H")
DEEP, DIGITS = "@deep@", "@digits@"
"""Stand for what `as_text` writes: 100,000 lists one in the other, a number of 5,000 digits."""
ODDITIES: tuple[Any, ...] = (
    None, True, -1, 0, 0.5, 2**31, 2**63, 10**30, -(10**30), float("nan"), float("inf"), "", "x" * 5000,
    "../../etc/passwd", "/etc/passwd", "\x00", "\ud800", "=1+1", "<script>alert(1)</script>", "os.system", [], {}, [[]],
    [-1, 2**40], ["a", 1], {"a": None}, DEEP, DIGITS,
)  # fmt: skip
TREE_KINDS = ("odd", "odd", "drop", "rename", "swap", "twice")

Edit = tuple[str, int, int]

_place = st.one_of(st.integers(0, 600), st.integers(0, 2**32))
byte_edits = st.lists(st.tuples(st.sampled_from(BYTE_KINDS), _place, st.integers(0, 2**16)), min_size=1, max_size=4)
"""A few changes to bytes; places near the beginning, where headers are, are drawn more often."""
tree_edits = st.lists(
    st.tuples(st.sampled_from(TREE_KINDS), st.integers(0, 2**16), st.integers(0, 2**16)), min_size=1, max_size=3
)
"""A few changes to a JSON tree."""


def edited(data: bytes, edits: Sequence[Edit]) -> bytes:
    """The bytes with every edit applied."""
    changed = bytearray(data)
    for kind, at, number in edits:
        position = at % (len(changed) + 1)
        length = 1 + number % 40
        if kind == "flip" and position < len(changed):
            changed[position] ^= 1 << number % 8
        elif kind == "byte" and position < len(changed):
            changed[position] = number % 256
        elif kind == "insert":
            changed[position:position] = number.to_bytes(4, "little")[: 1 + number % 4] * (1 + number % 3)
        elif kind == "cut":
            del changed[position : position + length]
        elif kind == "end":
            del changed[position:]
        elif kind == "repeat":
            changed[position:position] = changed[position : position + length]
        elif kind[0] in "<>":
            value = EXTREMES[number % len(EXTREMES)] % 2 ** (8 * struct.calcsize(kind))
            changed[position : position + struct.calcsize(kind)] = struct.pack(kind, value)
    return bytes(changed)


def changed_tree(tree: Any, edits: Sequence[Edit]) -> Any:
    """The JSON tree with every edit applied to one of its values or keys; the tree given stays as it is."""
    root = [json.loads(json.dumps(tree))]
    for kind, at, number in edits:
        places = list(_places(root))
        holder, key = places[at % len(places)]
        if kind == "drop" and holder is not root:
            del holder[key]
        elif kind == "rename" and isinstance(holder, dict):
            holder[("x", "", f"{key}x", "__class__")[number % 4]] = holder.pop(key)
        elif kind == "swap":
            other, its = places[number % len(places)]
            holder[key] = json.loads(json.dumps(other[its]))
        elif kind == "twice" and isinstance(holder, list):
            holder.insert(0, json.loads(json.dumps(holder[key]))) if holder is not root else None
        else:
            holder[key] = copy.deepcopy(ODDITIES[number % len(ODDITIES)])
    return root[0]


def as_text(tree: Any) -> bytes:
    """The tree as JSON, with what no Python value stands for put in: depth, digits, and every first key twice."""
    text = json.dumps(tree)
    text = text.replace(f'"{DEEP}"', "[" * 100_000 + "]" * 100_000).replace(f'"{DIGITS}"', "9" * 5000)
    return text.encode()


def _places(holder: Any, depth: int = 0) -> Any:
    """(holder, key) of every value below a list or dict, down to a hundred levels."""
    keys = list(holder) if isinstance(holder, dict) else range(len(holder))
    for key in keys:
        yield holder, key
        if isinstance(holder[key], (dict, list)) and depth < 100:
            yield from _places(holder[key], depth + 1)
