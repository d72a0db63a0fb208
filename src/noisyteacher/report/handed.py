"""What a compression hands over: which student was chosen, within which limits, and the files written of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from noisyteacher.report.tables import NOTHING, Cell, Table
from noisyteacher.text import count, size_bytes

SHOWN: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "macs": ("MACs", count),
    "bytes": ("bytes", size_bytes),
    "parameters": ("parameters", count),
}


def searched(search: Mapping[str, Any] | None) -> Table | None:
    """A row per network that was looked at: its costs, where they break a limit, its error where it was tried."""
    if not search:
        return None
    limits, errors = search["limits"], {one["name"]: one["val_error_%"] for one in search["tried"]}
    rows = [
        (
            Cell("limit", strong=True),
            *(_number(show(limits[key]) if key in limits else NOTHING) for key, (_, show) in SHOWN.items()),
            _number(NOTHING),
        )
    ]
    for one in search["candidates"]:
        name, error = str(one["name"]), errors.get(one["name"])
        costs = (_number(show(one[key]), "over" if key in one["over"] else "") for key, (_, show) in SHOWN.items())
        chosen = name == search["chosen"]
        tried = _number(NOTHING if error is None else f"{error:.2f}", "chosen" if chosen else "")
        rows.append((Cell(name, strong=chosen), *costs, tried))
    note = f"Validation, n = {search['n']:,} images, after {search['epochs']} epoch(s) with seed {search['seed']}."
    return Table(("", *(head for head, _ in SHOWN.values()), "validation error %"), tuple(rows), note)


def _number(text: str, under: str = "") -> Cell:
    return Cell(text, under, number=True)
