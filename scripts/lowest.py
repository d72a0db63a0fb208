"""Print the lowest versions that pyproject.toml allows, as constraints for pip: python scripts/lowest.py."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("dev", "docs")
"""Extras of developers, which no user installs: their newest versions are used."""


def main() -> None:
    """Print a line for every requirement with a lower bound."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    requirements = project["dependencies"] + [text for name in extras if name not in TOOLS for text in extras[name]]
    bounds = (re.match(r"([\w-]+)>=([\d.]+)", text) for text in requirements)
    print(*sorted({f"{bound[1]}=={bound[2]}" for bound in bounds if bound}), sep="\n")


if __name__ == "__main__":
    main()
