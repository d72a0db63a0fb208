"""Cells of `paper relatives` or `paper objectives` as JSON and Markdown: relatives_table.py OUT_DIR CELL.json ..."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

TUNED = ("temperature", "label_smoothing")


def main(folder: str, *files: str) -> None:
    """Write `relatives.json` or `objectives.json`, an arm per line, and print a Markdown table of every cell."""
    records = [json.loads(Path(file).read_text(encoding="utf-8")) for file in files]
    lines = []
    for record in records:
        within = {f"{title}, noise": gap for title, gap in record["contrasts"].items()}
        arms, gaps = record["arms"], record["against_reference"] | within
        entries = {title: {**arm, "difference": gaps.get(title)} for title, arm in arms.items()}
        text = ",\n".join(f"  {json.dumps(title)}: {json.dumps(entry)}" for title, entry in entries.items())
        cell, seeds = json.dumps(record["cell"]), json.dumps(record["seeds"])
        lines.append(f' {{"cell": {cell}, "seeds": {seeds}, "arms": {{\n{text}\n }}}}')
        print(f"\n{record['cell']['name']}, {len(record['seeds'])} seeds\n\n{table(entries)}")
    name = "objectives" if records[0]["contrasts"] else "relatives"
    Path(folder, f"{name}.json").write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


def table(arms: dict[str, dict[str, Any]]) -> str:
    """A row per arm: rate, mean test error, difference to its reference with its interval and p."""
    rows = ["| arm | settings | test error % | difference to its reference | p |", "|---|---|---|---|---|"]
    for title, arm in arms.items():
        gap, difference, p = arm["difference"], "", ""
        if gap is not None:
            interval = "" if gap["low"] is None else f" [{gap['low']:+.2f}, {gap['high']:+.2f}]"
            difference, p = f"{gap['mean']:+.2f}{interval}", "" if gap["p"] is None else f"{gap['p']:.2g}"
        options = arm["settings"].get("options") or {}
        chosen = {"rate": arm["settings"]["lr"]} | {key: options[key] for key in TUNED if key in options}
        settings = ", ".join(f"{key} {value:g}" for key, value in chosen.items())
        rows.append(f"| {title} | {settings} | {arm['mean_%']:.2f} | {difference} | {p} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
