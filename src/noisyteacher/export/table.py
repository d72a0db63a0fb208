"""What came of an export as a table, its notes, and one sentence: which file is fastest, which is smallest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from noisyteacher.export.formats import FORMATS
from noisyteacher.export.outcome import Exported
from noisyteacher.text import size_bytes

Rows = list[tuple[str, ...]]


Failed = Mapping[str, str]
"""Of a format that could not be written: its name, and why."""


def table(made: Sequence[Exported], failed: Failed | None = None) -> tuple[tuple[str, ...], Rows]:
    """Headers and rows as text, torch first; ratios are to torch (below 1: smaller, faster).

    A format that could not be written has a row without numbers.
    """
    headers = ("format", "precision", "accuracy %", "agreement %", "logit difference", "size", "latency ms", "holds")
    rows: Rows = [
        (
            "torch",
            "fp32",
            _share(first.torch_accuracy),
            "",
            "",
            size_bytes(first.torch_bytes),
            _ms(first.torch_latency_ms.median),
            "",
        )
        for first in made[:1]
    ]
    for one in made:
        rows.append(
            (
                one.format,
                one.precision,
                _share(one.accuracy),
                _share(one.agreement),
                f"{one.difference:.2g}",
                f"{size_bytes(one.bytes)} ({one.bytes / one.torch_bytes:.2f}x)",
                f"{_ms(one.latency_ms.median)} ({one.latency_ms.median / one.torch_latency_ms.median:.2f}x)",
                "yes" if one.holds else "NO",
            )
        )
    for name in failed or ():
        form = FORMATS[name]
        rows.append((form.kind, form.precision, "-", "-", "-", "-", "-", "FAILED"))
    return headers, rows


def notes(made: Sequence[Exported], failed: Failed | None = None) -> list[str]:
    """What a reader needs beside the table: n, conditions, runtimes, why a file does not hold or was not written."""
    failures = [f"{name} was not written: {reason}." for name, reason in (failed or {}).items()]
    if not made:
        return failures
    first, latency = made[0], made[0].latency_ms
    what = "Accuracy, agreement with torch" if first.accuracy is not None else "Agreement with torch"
    found = [
        f"{what} and largest logit difference to it: {first.checked_on}, n = {first.n:,} images"
        f"; torch's largest logit is {first.logit_scale:.3g}.",
        f"Latency: median of {latency.runs} calls, taken in turns, batch {latency.batch}, {latency.threads} thread(s), "
        f"{latency.device}. Ratios: to torch and its weights file (below 1: smaller, faster).",
        f"Run by: {', '.join(dict.fromkeys(one.runtime for one in made))}.",
    ]
    return found + [f"{one.name} does not hold: {one.reason}." for one in made if not one.holds] + failures


def verdict(made: Sequence[Exported]) -> str:
    """One sentence: the fastest and the smallest of the files that hold, and where int8 was no gain in speed."""
    good = [one for one in made if one.holds]
    if not good:
        return "no file holds: deploy none of these"
    # The hub's folder is run by torch: a difference in time to torch is noise.
    others = [one for one in good if one.format != "hub"] or good
    fast = min(others, key=lambda one: one.latency_ms.median)
    small = min(good, key=lambda one: one.bytes)
    took, torch_took = (_ms(one.median) for one in (fast.latency_ms, fast.torch_latency_ms))
    sentence = f"fastest that holds: {fast.name} ({took} ms, torch {torch_took} ms)"
    if fast.latency_ms.median >= fast.torch_latency_ms.median:
        sentence = f"none that holds is faster than torch ({torch_took} ms), the fastest is {fast.name} ({took} ms)"
    sentence += f"; smallest that holds: {small.name} ({size_bytes(small.bytes)})"
    for one in made:
        plain = next((other for other in made if other.format == one.format and other.precision == "fp32"), None)
        if one.precision == "int8" and plain is not None and one.latency_ms.median >= plain.latency_ms.median:
            sentence += (
                f"; int8 is not faster than fp32 in {one.format} here "
                f"({_ms(one.latency_ms.median)} against {_ms(plain.latency_ms.median)} ms)"
            )
    return sentence


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _ms(value: float) -> str:
    return f"{value:.3f}"
