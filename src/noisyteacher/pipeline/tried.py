"""Which networks were looked at for a student and why each was not chosen: one short table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from noisyteacher.pipeline.candidates import SHOWN, Candidate, Search

MOST_ROWS = 12
"""Rows of the table, unless more networks were tried."""
HEADERS = ("student", *(head for head, _ in SHOWN.values()), "validation error %", "outcome")


def outcomes(
    search: Search, errors: Mapping[str, float], chosen: str, planned: Sequence[str], most: int
) -> list[dict[str, Any]]:
    """The rows of the table, JSON-able: those tried by their error, then those within the limits, then the others.

    errors: validation error (%) by name of those that were tried. planned: the names that were to be tried; a network
    among them without an error was left out for lack of time, any other because no more than `most` were to be tried.
    Of the networks over a limit the nearest has a row, the others are one line.
    """
    within = list(search.fitting)
    tried = [candidate for candidate in within if candidate.name in errors]
    tried.sort(key=lambda candidate: (errors[candidate.name], candidate.macs))
    best = next(candidate for candidate in tried if candidate.name == chosen)
    rows = [_row(candidate, errors[candidate.name], _against(candidate, best, errors)) for candidate in tried]
    rest = [candidate for candidate in within if candidate.name not in errors]
    over = sorted((candidate for candidate in search.candidates if candidate.over), key=search.use)
    room = max(1, MOST_ROWS - len(rows) - min(2, len(over)))
    shown = rest if len(rest) <= room else rest[: room - 1]
    for candidate in shown:
        reason = "time" if candidate.name in planned else f"search = {most}"
        rows.append(_row(candidate, None, f"not tried: {reason}"))
    if len(rest) > len(shown):
        rows.append(_summary(len(rest) - len(shown), "not tried"))
    rows += [_row(candidate, None, excess(search, candidate)) for candidate in over[:1]]
    if len(over) > 1:
        rows.append(_summary(len(over) - 1, "over a limit by more"))
    return rows


def excess(search: Search, candidate: Candidate) -> str:
    """By how much a network breaks its limits. `over target.macs by 8 %`, `2.96 times its teacher's bytes`."""
    words = []
    for key in candidate.over:
        ratio = float(getattr(candidate, key)) / search.allowed[key]
        if key in search.limits:
            percent = 100 * (ratio - 1)
            words.append(
                f"over target.{key} by {percent:.1f} %" if percent < 10 else f"over target.{key} by {percent:.0f} %"
            )
        else:
            words.append(f"{ratio:.2f} times its teacher's {SHOWN[key][0]}")
    return ", ".join(words)


def student_table(search: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headers and rows as text of the record of a search; no rows where an older version wrote it."""
    rows = []
    for row in search.get("table", ()):
        costs = ("" if row[key] is None else show(row[key]) for key, (_, show) in SHOWN.items())
        error = row["val_error_%"]
        rows.append((row["student"], *costs, "" if error is None else f"{error:.2f}", row["outcome"]))
    return HEADERS, rows


def _against(candidate: Candidate, best: Candidate, errors: Mapping[str, float]) -> str:
    if candidate is best:
        return "chosen"
    points = errors[candidate.name] - errors[best.name]
    return f"error {points:.2f} points higher" if points > 0 else "same error, more multiplications"


def _row(candidate: Candidate, error: float | None, outcome: str) -> dict[str, Any]:
    costs = {key: int(getattr(candidate, key)) for key in SHOWN}
    return {"student": candidate.name, **costs, "val_error_%": error, "outcome": outcome}


def _summary(number: int, outcome: str) -> dict[str, Any]:
    name = f"{number} other{'' if number == 1 else 's'}"
    return {"student": name, **dict.fromkeys(SHOWN), "val_error_%": None, "outcome": outcome}
