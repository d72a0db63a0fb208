"""Text for people: the nearest known name, counts, bytes, durations, and text that is safe to print."""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from noisyteacher.errors import UnknownNameError

SPLIT_NAMES = {"train": "training", "val": "validation", "test": "test"}
"""A split's role -> its name in a sentence."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_NEGATIVE = re.compile(r"-[0-9]+(\.[0-9]+)?")
_DIRECTION_MARKS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]#|~!])")


def nearest(name: str, names: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The name most like `name`, or None when none is close. `nearest("lenett", ["lenet", "nin"]) == "lenet"`."""
    names = list(names)
    spelt_alike = [known for known in names if known.lower() == name.lower()]
    return next(iter(spelt_alike or get_close_matches(name, names, n=1, cutoff=cutoff)), None)


def unknown_name(what: str, name: str, names: Iterable[str]) -> UnknownNameError:
    """The error for a name that is not among `names`: it suggests the nearest of them and lists all."""
    names = sorted(names)
    close = nearest(name, names)
    hint = f"did you mean {close!r}? " if close else ""
    return UnknownNameError(f"unknown {what} {name!r}: {hint}known are {', '.join(names)}")


def count(value: float) -> str:
    """A count in at most four figures. `count(431080) == "431.1 k"`, `count(222490000) == "222.5 M"`."""
    for limit, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= limit:
            return f"{value / limit:.4g}{unit}"
    return f"{value:.4g}"


def size_bytes(value: float) -> str:
    """Bytes in decimal units. `size_bytes(1724320) == "1.724 MB"`."""
    return f"{value:.0f} B" if abs(value) < 1000 else f"{count(value)}B"


def duration(seconds: float) -> str:
    """Seconds in words. `duration(8.25) == "8.2 s"`, `duration(3723) == "1 h 02 min"`."""
    minutes, rest = divmod(round(seconds), 60)
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def rough_duration(seconds: float) -> str:
    """Seconds as an estimate in words. `rough_duration(41) == "40 s"`, `rough_duration(340) == "6 min"`."""
    if seconds < 90:
        return f"{max(1, round(seconds)) if seconds < 10 else 5 * round(seconds / 5)} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def few(names: Sequence[str], most: int = 6) -> str:
    """The first names of a list that may be long. `few(["a", "b", "c"], 2) == "a, b, ... (3)"`."""
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[:most])}, ... ({len(names)})"


def same_names(theirs: Sequence[str], ours: Sequence[str]) -> list[int | None]:
    """For each of our names the number of theirs; None without.

    The same name, or else the only one on both sides that differs in case, spaces, `_` and `-` alone.
    """

    def spelling(name: str) -> str:
        return " ".join(re.split(r"[\s_-]+", name.lower())).strip()

    numbers: list[int | None] = [None] * len(ours)
    for form in (spelling, str):  # where both find one, the same name has the last word
        counts, our_counts = Counter(map(form, theirs)), Counter(map(form, ours))
        by_form = {form(name): number for number, name in enumerate(theirs)}
        for number, name in enumerate(map(form, ours)):
            if counts[name] == our_counts[name] == 1:
                numbers[number] = by_form[name]
    return numbers


def moved_classes(outputs: Sequence[int | None], class_names: Sequence[str], who: str) -> str:
    """`'10' is class 2 of the data and 10 of the teacher, ...` for the classes with the output of another."""
    moved = [
        f"{class_names[number]!r} is class {number} of the data and {output} of {who}"
        for number, output in enumerate(outputs)
        if output not in (None, number)
    ]
    return ", ".join(moved[:3]) + (f", and {len(moved) - 3} more" if len(moved) > 3 else "")


def signed(value: float) -> str:
    """A difference to two decimals with its sign: `+0.50`; `0.00` when it rounds to zero."""
    text = f"{value:+.2f}"
    return text if float(text) else text[1:]


def value_words(value: object) -> str:
    """A setting in words, a range as `low..high`. `value_words([0.01, 1]) == "0.01..1"`."""
    if isinstance(value, (list, tuple)):
        return "..".join(map(value_words, value))
    return f"{value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


def sentence(words: str) -> str:
    """The words with a capital and a full stop. `sentence("no limit was binding") == "No limit was binding."`."""
    return f"{words[:1].upper()}{words[1:]}." if words else ""


def plural(number: int, noun: str) -> str:
    """A number with its noun. `plural(1, "seed") == "1 seed"`, `plural(3, "seed") == "3 seeds"`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def printable(text: object, length: int | None = None) -> str:
    """The text with control, direction and unpaired characters escaped as `\\u000a`, cut to `length`."""
    safe = "".join(
        f"\\u{ord(char):04x}"
        if char in _DIRECTION_MARKS or unicodedata.category(char) in ("Cc", "Cs", "Cn", "Co")
        else char
        for char in str(text)
    )
    return safe if length is None or len(safe) <= length else safe[: length - 1].rstrip() + "…"


def printable_lines(text: object) -> str:
    """Like `printable`, line by line: line ends stay."""
    return "\n".join(map(printable, str(text).split("\n")))


def harmless(value: object) -> object:
    """The value as a CSV cell. Text that begins like a formula gets a leading apostrophe; numbers, `-1` too, stay."""
    if value is None or isinstance(value, bool):
        return "" if value is None else str(value).lower()
    if isinstance(value, (int, float)):
        return value
    text = "".join(character if character in "\t\r\n" else printable(character) for character in str(value))
    if _NEGATIVE.fullmatch(text):
        return text
    return f"'{text}" if text.startswith(_FORMULA) or text.lstrip().startswith(_FORMULA) else text


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted keys. `flat({"noise": {"sigma": 1}}) == {"noise.sigma": 1}`; an empty table stays."""
    entries: dict[str, Any] = {}
    for key, value in table.items():
        nested = isinstance(value, dict) and value
        entries |= flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return entries


def escaped(text: str) -> str:
    """The text on one line for Markdown: no markup, no HTML."""
    return _MARKDOWN.sub(r"\\\1", html.escape(printable(" ".join(text.split())), quote=False))
