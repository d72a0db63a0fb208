"""JSON that can be read in one way only."""

from __future__ import annotations

import json
import math
from typing import Any


def parse_json(text: bytes | str) -> Any:
    """The value that a JSON text holds. Raises ValueError for what is no JSON, or JSON that can be read in two ways.

    That is: a key that is there twice, a number that is not finite (Python's own reader takes NaN, and 1e999 for
    infinity), and lists nested deeper than can be walked.
    """
    try:
        return json.loads(text, object_pairs_hook=_table, parse_constant=_finite, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"the key {name!r:.80} is there twice")
            seen.add(name)
    return table


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text:.40} is no finite number")
    return number
