"""Tables that fit the terminal: headers and text wrap at spaces, numbers stay whole, the rule ends with the rows."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Collection, Sequence

GAPS = (3, 2)
"""Spaces between columns that need no narrowing."""
STEPS = ((0, 2), (1, 2), (2, 2), (2, 1), (3, 2))
"""What else is tried in turn, as (what may be narrowed, spaces between columns)."""
NARROWEST = 12
"""Below this many characters long words, such as paths, are not broken."""
HARD = "\xa0"
"""Stands for a space at which no line breaks."""
_UNIT = re.compile(r"(?<=\d) (?=(?:k|M|G|T|B|kB|MB|GB|TB|s|ms|min|h|%|x)\b|%)")
_BEFORE_BRACKET = re.compile(r" (?=[\[(])")
_SLASH = re.compile(r"(?<=/)")
_JOINT = re.compile(r"(?<=[/\-_.,=])")


def table_lines(
    headers: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int], width: int, rule: str = "─"
) -> list[str]:
    """The lines of a table: headers, a rule, rows; cells may have several lines.

    right: the columns of numbers, aligned to the right. No line is longer than `width` unless the numbers alone are.
    """
    table = [list(headers), *map(list, rows)]
    columns = [[row[number] for row in table] for number in range(len(headers))]
    gap, widths = _widths(columns, set(right), width)
    wrapped = [
        [_wrapped(cell, widths[number], number in right and place > 0) for place, cell in enumerate(column)]
        for number, column in enumerate(columns)
    ]
    widths = [max(len(line) for cell in column for line in cell) for column in wrapped]
    lines: list[str] = []
    for place in range(len(table)):
        cells = [column[place] for column in wrapped]
        height = max(map(len, cells))
        if place == 0:  # a short header stands on the rule
            cells = [[""] * (height - len(cell)) + cell for cell in cells]
        for depth in range(height):
            parts = [cell[depth] if depth < len(cell) else "" for cell in cells]
            lines.append(
                (" " * gap)
                .join(
                    part.rjust(wide) if number in right else part.ljust(wide)
                    for number, (part, wide) in enumerate(zip(parts, widths, strict=True))
                )
                .rstrip()
            )
        if place == 0:
            above = len(lines)
    lines.insert(above, rule * max(map(len, lines)))
    return lines


def _widths(columns: Sequence[Sequence[str]], right: set[int], width: int) -> tuple[int, list[int]]:
    """The gap between columns and the width of each: as they are where that fits, else narrowed, the widest first.

    What may be narrowed grows step by step: headers at spaces, text at spaces, numbers before a bracket, then at any
    space together with long words of text.
    """
    natural = [max(_longest(cell) for cell in column) for column in columns]
    for gap in GAPS:
        if sum(natural) + gap * (len(columns) - 1) <= width:
            return gap, natural
    for step, gap in STEPS:
        room = width - gap * (len(columns) - 1)
        least = [_least(column, number in right, step) for number, column in enumerate(columns)]
        if sum(least) <= room:
            break
    widths = list(natural)
    while sum(widths) > room:
        spare = [number for number in range(len(widths)) if widths[number] > least[number]]
        if not spare:
            break
        widths[max(spare, key=lambda number: widths[number])] -= 1
    return gap, widths


def _least(column: Sequence[str], numbers: bool, step: int) -> int:
    """The least width of a column at this step of narrowing."""
    header = max(map(len, column[0].split()), default=0)
    if numbers:
        kept = [_longest(cell) for cell in column[1:]] if step < 2 else []
        broken = [len(part) for cell in column[1:] for line in cell.split("\n") for part in _parts(line, step)]
        return max([header, *(kept or broken)], default=0)
    if step < 1:
        return max([header, *(_longest(cell) for cell in column[1:])])
    longest = max(
        (len(word) for cell in column[1:] for word in _hard(cell).split(" ") for word in word.split("\n")), default=0
    )
    return max(header, longest if step < 3 else min(longest, NARROWEST))


def _parts(line: str, step: int) -> list[str]:
    return _BEFORE_BRACKET.split(line) if step < 3 else line.split()


def _longest(cell: str) -> int:
    return max(map(len, cell.split("\n")))


def _hard(text: str) -> str:
    """The text with its units tied to their numbers."""
    return _UNIT.sub(HARD, text)


def _wrapped(cell: str, width: int, number: bool) -> list[str]:
    """The lines of a cell that is to be so wide; a number first breaks before its bracket."""
    lines: list[str] = []
    for line in cell.split("\n"):
        if len(line) <= width:
            lines.append(line)
            continue
        pieces = _BEFORE_BRACKET.split(line) if number else [line]
        for piece in pieces:
            words = _joints(_hard(piece), width)
            lines += [one.replace(HARD, " ") for one in textwrap.wrap(words, width, break_on_hyphens=False)] or [""]
    return lines


def _joints(text: str, width: int) -> str:
    """The text with spaces in words that are too long for the width: behind a slash where that is enough, else behind
    any sign that joins.
    """
    words = []
    for word in text.split(" "):
        pieces = [word]
        if len(word) > width:
            pieces = _SLASH.split(word)
            pieces = pieces if max(map(len, pieces)) <= width else _JOINT.split(word)
        line = ""
        for piece in pieces:
            if line and len(line) + len(piece) > width:
                words.append(line)
                line = ""
            line += piece
        words.append(line)
    return " ".join(words)
