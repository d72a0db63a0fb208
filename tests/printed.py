"""What pages of the documentation show of a command, and what it prints, without what depends on luck or machine."""

from __future__ import annotations

import re
from collections.abc import Iterator

BY_LUCK = ("Verdict:", "Noise:", "Best on validation", "Choice:")
"""Starts of lines whose words depend on what came out."""


def commands(block: str) -> Iterator[tuple[str, str]]:
    """The commands of a console block, each with the output shown under it."""
    for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
        command, _, output = part.partition("\n")
        yield command, output


def words(text: str) -> list[list[str]]:
    """The words of each line, without numbers, rules and what depends on them: units, verdicts, folders."""
    lines = []
    for line in text.splitlines():
        start = next((start for start in BY_LUCK if line.startswith(start)), None)
        if start is not None:
            lines.append([start])
            continue
        line = re.sub(r"handed over: seed [^\[]*", "", line)  # in the row that validation prefers
        line = re.sub(r"best (clean|noisy)$", "", line)  # of the trials that choose the noise
        line = re.sub(r"\[no interval\]| \(no interval:[^)]*\)", "", line)  # where the seeds are far apart
        kept = re.findall(r"[A-Za-z][A-Za-z.,:%]+", re.sub(r"\S*\d\S*", " ", line))
        kept = [word for word in kept if word not in ("kB", "MB", "ms", "min")]
        if kept:
            lines.append(kept)
    return lines


def shows(expected: str, printed: str) -> bool:
    """Whether the words of both are the same; in the expected text one line `...` may stand for lines left out."""
    lines, (head, *tails) = words(printed), [words(part) for part in re.split(r"^\.\.\.$", expected, flags=re.M)]
    if not tails:
        return lines == head
    (tail,) = tails
    return len(lines) > len(head) + len(tail) and lines[: len(head)] == head and lines[-len(tail) :] == tail
