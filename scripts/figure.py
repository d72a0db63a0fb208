"""Take one figure out of a report page: python scripts/figure.py REPORT.html NUMBER OUT.svg (numbers from 0)."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from noisyteacher.report.figures import STYLE


def main(page: str, number: str, out: str) -> None:
    """Writes the figure as a file of its own."""
    text = Path(page).read_text(encoding="utf-8")
    drawing = re.findall(r"<figure[^>]*>\s*(<svg.*?</svg>)", text, re.DOTALL)[int(number)]
    Path(out).write_text(standalone(drawing), encoding="utf-8")


def standalone(drawing: str) -> str:
    """The `<svg>` element of a page with the page's colours, light and dark, and a ground of its own."""
    light, dark = re.findall(r":root \{.*?\}", STYLE.with_name("page.css").read_text(encoding="utf-8"), re.DOTALL)[:2]
    style = (
        f"<style>{light} @media (prefers-color-scheme: dark) {{ {dark} }} "
        'svg { font-family: system-ui, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif }</style>'
        '<rect width="100%" height="100%" style="fill: var(--page)"/>'
    )
    opened = drawing.index(">") + 1
    width, height = re.search(r'viewBox="0 0 (\d+) (\d+)"', drawing).groups()
    head = drawing[:opened].replace("<svg ", f'<svg width="{2 * int(width)}" height="{2 * int(height)}" ', 1)
    return head + style + drawing[opened:] + "\n"


if __name__ == "__main__":
    main(*sys.argv[1:])
