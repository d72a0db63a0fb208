"""A table for terminals, Markdown and the report's page: headers, rows of text, notes."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass

from noisyteacher.text import escaped

GAP = 2
NARROWEST = 12
"""Words of text that are longer may be broken where a table does not fit otherwise."""
FIXED_SPACE = "\xa0"
UNIT = re.compile(r"(?<=\d) (?=(?:k|M|G|T|B|kB|MB|GB|TB|s|ms|min|h|%|x)\b|%)")
BEFORE_BRACKET = re.compile(r" (?=[\[(])")


@dataclass(frozen=True)
class Table:
    """Headers and rows of cells. A cell with a line break has a second line, such as an interval or a ratio."""

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    align: str = ""
    """A letter per column, `l` (text) or `r` (numbers); by default one column of text, then numbers."""
    notes: tuple[str, ...] = ()
    """Sentences below the table: n, units, what the intervals are."""
    strong: frozenset[int] = frozenset()
    """Rows in bold, by number; HTML only."""
    bar: int | None = None
    """A column of percentages that HTML draws as bars."""
    folded: str = ""
    """What HTML shows until the table is opened; "" for a table that is always open."""

    @property
    def alignment(self) -> str:
        """A letter per column."""
        return self.align or "l" + "r" * (len(self.headers) - 1)

    def __str__(self) -> str:
        return self.text()

    def text(self, width: int | None = None, rule: str = "-") -> str:
        """The table as lines of text, without its notes.

        width: no line is longer, unless numbers alone are: headers and text wrap at spaces, numbers stay whole.
        """
        columns = list(zip(self.headers, *self.rows, strict=True))
        numeric = [align == "r" for align in self.alignment]
        widths = [max(map(_longest, column)) for column in columns]
        if width is not None:
            widths = _fit(columns, numeric, widths, width - GAP * (len(columns) - 1))
        wrapped = [
            [_wrap(cell, size, is_numeric and row > 0) for row, cell in enumerate(column)]
            for column, size, is_numeric in zip(columns, widths, numeric, strict=True)
        ]
        widths = [max(len(line) for cell in column for line in cell) for column in wrapped]
        blocks: list[list[str]] = []
        for row, cells in enumerate(zip(*wrapped, strict=True)):
            height, lines = max(map(len, cells)), []
            for number in range(height):
                parts = []
                for cell, size, is_numeric in zip(cells, widths, numeric, strict=True):
                    # A short header stands on the rule, a short cell at the top of its row.
                    blank = [""] * (height - len(cell))
                    line = (cell + blank if row else blank + cell)[number]
                    parts.append(line.rjust(size) if is_numeric else line.ljust(size))
                lines.append((" " * GAP).join(parts).rstrip())
            blocks.append(lines)
        ruler = rule * max(len(line) for lines in blocks for line in lines)
        return "\n".join([*blocks[0], ruler, *(line for lines in blocks[1:] for line in lines)])

    def markdown(self) -> str:
        """The table with pipes, its notes below; the second line of a cell follows the first."""
        lines = []
        if self.rows:
            rows = ["| " + " | ".join(map(escaped, row)) + " |" for row in (self.headers, *self.rows)]
            rule = "|" + "|".join("--:" if align == "r" else "---" for align in self.alignment) + "|"
            lines += [rows[0], rule, *rows[1:], ""]
        if self.notes:
            lines += [escaped(" ".join(self.notes)), ""]
        return "\n".join(lines)


def _longest(cell: str) -> int:
    return max(map(len, cell.split("\n")))


def _fit(columns: list[tuple[str, ...]], numeric: list[bool], widths: list[int], room: int) -> list[int]:
    """Widths that add up to `room`, the widest column narrowed first.

    Headers and text may wrap at spaces; where that is not enough, numbers before a bracket, then long words.
    """
    for level in range(3):
        least = [_least(column, is_numeric, level) for column, is_numeric in zip(columns, numeric, strict=True)]
        if sum(least) <= room:
            break
    widths = list(widths)
    while sum(widths) > room and (wide := [number for number, most in enumerate(widths) if most > least[number]]):
        widths[max(wide, key=lambda number: widths[number])] -= 1
    return widths


def _least(column: tuple[str, ...], numeric: bool, level: int) -> int:
    header, *cells = column
    lines = [line for cell in cells for line in cell.split("\n")]
    words = lines if numeric and level < 1 else [word for line in lines for word in _words(line, numeric)]
    longest = max(map(len, words), default=0)
    if level == 2 and not numeric:
        longest = min(longest, NARROWEST)
    return max(longest, *map(len, header.split() or [""]))


def _words(line: str, numeric: bool) -> list[str]:
    """The pieces of a line that are not broken: a number with its unit, an interval, a word."""
    return BEFORE_BRACKET.split(line) if numeric else UNIT.sub(FIXED_SPACE, line).split(" ")


def _wrap(cell: str, width: int, numeric: bool) -> list[str]:
    lines: list[str] = []
    for line in cell.split("\n"):
        words = [word.replace(" ", FIXED_SPACE) for word in _words(line, numeric)]
        # A path that is too long breaks behind a slash.
        words = [word.replace("/", "/ ") if len(word) > width else word for word in words]
        parts = textwrap.wrap(" ".join(words), width, break_on_hyphens=False) or [""]
        lines += [line] if len(line) <= width else [part.replace(FIXED_SPACE, " ") for part in parts]
    return lines
