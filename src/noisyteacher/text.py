"""Words for people: the nearest known name, counts, bytes, durations. Plain strings in, plain strings out."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from noisyteacher.errors import UnknownNameError

SPLIT_NAMES = {"train": "training", "val": "validation", "test": "test"}
"""A split's role -> what it is called in a sentence."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, or None when none is close. `nearest("lenett", ["lenet", "nin"]) == "lenet"`."""
    found = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return found[0] if found else None


def unknown_name(what: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """The error for a name that is not among `known`: it suggests the nearest one and lists the rest."""
    names = sorted(known)
    close = nearest(name, names)
    hint = f"did you mean {close!r}? " if close else ""
    return UnknownNameError(f"unknown {what} {name!r}: {hint}known are {', '.join(names)}")


def count(value: float) -> str:
    """A count in at most four figures. `count(431080) == "431.1 k"`, `count(222490000) == "222.5 M"`."""
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.4g} {unit}"
    return f"{value:.4g}"


def size_bytes(value: float) -> str:
    """Bytes in decimal units. `size_bytes(1724320) == "1.724 MB"`."""
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(value) >= limit:
            return f"{value / limit:.4g} {unit}"
    return f"{value:.0f} B"


def duration(seconds: float) -> str:
    """Seconds as people say them. `duration(8.25) == "8.2 s"`, `duration(3723) == "1 h 02 min"`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def rough_duration(seconds: float) -> str:
    """Seconds as an estimate says them. `rough_duration(41) == "40 s"`, `rough_duration(340) == "6 min"`."""
    if seconds < 90:
        return f"{max(1, round(seconds)) if seconds < 10 else 5 * round(seconds / 5)} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def few(names: Sequence[str], most: int = 6) -> str:
    """The first names of a list that may be long. `few(["a", "b", "c"], 2) == "a, b, ... (3)"`."""
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[:most])}, ... ({len(names)})"


def signed(value: float) -> str:
    """A difference to two places, with its sign: `+0.50`; `0.00` where none is left."""
    text = f"{value:+.2f}"
    return text if float(text) else text[1:]


def sigma_words(sigma: float | Sequence[float]) -> str:
    """A sigma, or a range of it, as people read it. `sigma_words([0.01, 1]) == "0.01..1"`."""
    return f"{sigma[0]:g}..{sigma[1]:g}" if isinstance(sigma, Sequence) else f"{sigma:g}"


def sentence(words: str) -> str:
    """Words that stood in a sentence as one of their own. `sentence("no limit bound") == "No limit bound."`."""
    return f"{words[:1].upper()}{words[1:]}." if words else ""


def plural(number: int, noun: str) -> str:
    """A number with its noun. `plural(1, "seed") == "1 seed"`, `plural(3, "seed") == "3 seeds"`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def shown(text: object, length: int | None = None) -> str:
    """The text as it can be shown: control, direction and unpaired characters by their numbers, cut to `length`."""
    found = "".join(
        f"\\u{ord(one):04x}"
        if unicodedata.category(one) in ("Cc", "Cs", "Cn", "Co") or unicodedata.bidirectional(one) in _TURNS
        else one
        for one in str(text)
    )
    return found if length is None or len(found) <= length else found[: length - 1].rstrip() + "…"


def lines_shown(text: object) -> str:
    """The text as it can be shown, line by line: its line ends stay."""
    return "\n".join(map(shown, str(text).split("\n")))


def flat(table: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested tables as dotted keys. `flat({"noise": {"sigma": 1}}) == {"noise.sigma": 1}`; an empty table stays one."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict) and value:
            found.update(flat(value, f"{before}{key}."))
        else:
            found[f"{before}{key}"] = value
    return found


def escaped(text: str) -> str:
    """The text as it will show in Markdown, on one line: no markup, no HTML."""
    plain = shown(" ".join(text.split()))
    return _SPECIAL.sub(r"\\\1", html.escape(plain, quote=False))


_TURNS = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})
_SPECIAL = re.compile(r"([\\`*_{}\[\]#|~!])")


def printable(name: object) -> str:
    """A name as it can be shown anywhere: what a terminal cannot print, or would obey, is escaped.

    `printable("a\\nb") == "a\\\\nb"`; a byte that is no UTF-8 becomes `\\udcff`.
    """
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in str(name))
