"""What a compression hands over: which student was chosen, within which limits, and the files written of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from noisyteacher.pipeline import SHOWN, student_table
from noisyteacher.report.tables import NOTHING, Cell, Table, number_cell
from noisyteacher.text import sentence, size_bytes


def told(record: Mapping[str, Any] | None) -> list[str]:
    """What the record of a choice says in words, as sentences."""
    words = (record or {}).get("told") or []
    return [sentence(str(one)) for one in ([words] if isinstance(words, str) else words)]


def searched(search: Mapping[str, Any] | None) -> Table | None:
    """A row per network that was looked at, the limits first: its costs, its error where it was tried, why it lost."""
    headers, found = student_table(search or {})
    if not search or not found:
        return None
    limits = [show(search["limits"][key]) if key in search["limits"] else NOTHING for key, (_, show) in SHOWN.items()]
    rows = [(Cell("limit", strong=True), *map(number_cell, limits), number_cell(NOTHING), Cell(""))]
    for name, *numbers, outcome in found:
        chosen = name == search["chosen"]
        rows.append((Cell(name, strong=chosen), *(number_cell(one or NOTHING) for one in numbers), Cell(outcome)))
    note = f"Validation, n = {search['n']:,} images, after {search['epochs']} epoch(s) with seed {search['seed']}."
    return Table(headers, tuple(rows), note)


def files(best: Mapping[str, Any] | None) -> Table | None:
    """A row per file that was written of the student, torch first: how it answers, its size, its time."""
    written, failed = (best or {}).get("files") or [], (best or {}).get("failed") or {}
    missing = [
        (Cell(str(name)), *(number_cell(NOTHING) for _ in range(4)), Cell("failed", str(reason)))
        for name, reason in failed.items()
    ]
    headers = ("", "accuracy %", "logit difference", "bytes", "latency ms", "holds")
    if not written:
        return Table(headers, tuple(missing)) if missing else None
    first = written[0]
    rows = [
        _file("torch", "fp32", first["torch_accuracy"], None, first["torch_bytes"], first["torch_latency_ms"], first)
    ]
    rows += [
        _file(one["format"], one["precision"], one["accuracy"], one, one["bytes"], one["latency_ms"], first)
        for one in written
    ]
    latency = first["latency_ms"]
    note = f"{first['checked_on']}, n = {first['n']:,} images, every file asked by its own runtime. Latency: median of "
    note += f"{latency['runs']} calls in turns, batch {latency['batch']}, {latency['threads']} thread(s), "
    note += f"{latency['device']}. Second lines: ratio to torch (below 1: smaller, faster)."
    return Table(headers, (*rows, *missing), note)


def _file(
    form: str,
    precision: str,
    accuracy: Mapping[str, Any] | None,
    one: Mapping[str, Any] | None,
    size: int,
    latency: Mapping[str, Any],
    torch: Mapping[str, Any],
) -> tuple[Cell, ...]:
    gap = None if one is None else one["difference"]
    ratio = {"bytes": size / torch["torch_bytes"], "ms": latency["median"] / torch["torch_latency_ms"]["median"]}
    return (
        Cell(form, precision),
        number_cell(NOTHING if accuracy is None else f"{accuracy['value']:.2f}"),
        number_cell(NOTHING if gap is None else f"{gap:.2g}"),
        number_cell(size_bytes(size), "" if one is None else f"{ratio['bytes']:.2f}×"),
        number_cell(f"{latency['median']:.3f}", "" if one is None else f"{ratio['ms']:.2f}×"),
        Cell("" if one is None else "yes" if one["holds"] else "no", "" if one is None else str(one["reason"])),
    )
