"""Add cells of `noisyteacher paper regime` to regime.json, draw and print all: regime_figure.py DIR CELL.json ..."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from noisyteacher.paper.regime import CELLS

ROWS = {
    "val_error": ("step", "validation error, %"),
    "clean_loss": ("step", "training loss without noise"),
    "trace": ("trace_step", "trace of Gauss-Newton"),
}
CONTENT = ("cell", "seeds", "arms", "contrasts", "against_clean_no_decay", "curves", "halving_steps")
COLOURS = {"clean": "#1f6fb2", "noisy": "#c2571a"}


def main(folder: str, *files: str) -> None:
    """Write `regime.json` (numbers to five figures, no pilot trials but the chosen) and `regime.svg` of the cells in
    DIR/regime.json and in the files; print Markdown tables of all.
    """
    whole = Path(folder, "regime.json")
    known = json.loads(whole.read_text(encoding="utf-8")) if whole.exists() else []
    records = {record["cell"]["name"]: record for record in known}
    for file in files:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        records[content["cell"]["name"]] = {key: content[key] for key in CONTENT}
    ordered = [records[name] for name in CELLS if name in records]
    whole.write_text(_compact(json.dumps(ordered, indent=1, default=str)) + "\n", encoding="utf-8")
    draw(ordered, Path(folder, "regime.svg"))
    print(questions(ordered))
    for record in ordered:
        print(f"\n{record['cell']['name']}\n\n{arms(record)}")


def questions(records: list[dict[str, Any]]) -> str:
    """A row per cell: the contrasts, and the steps after which the trace is halved in theory and in the training."""
    names = list(records[0]["contrasts"])
    rows = [f"| cell | {' | '.join(names)} | trace halved: predicted | measured |", "|---|" + "--:|" * (len(names) + 2)]
    for record in records:
        low, high = record["halving_steps"]["predicted"] or (None, None)
        predicted = "" if low is None else f"{low:,.0f} to {high:,.0f}"
        measured = record["halving_steps"]["measured"]
        cells = [difference(record["contrasts"][name]) for name in names]
        halved = "never" if measured is None else f"{measured:,.0f}"
        rows.append(f"| {record['cell']['name']} | {' | '.join(cells)} | {predicted} | {halved} |")
    return "\n".join(rows)


def arms(record: dict[str, Any]) -> str:
    """A row per arm of a cell."""
    rows = ["| | rate | decay | last weights | best epoch | loss without noise | trace | clock | minus clean |"]
    rows.append("|---|" + "--:|" * 8)
    for title, arm in record["arms"].items():
        settings, mean = arm["settings"], arm["mean_%"]
        gap = record["against_clean_no_decay"].get(title)
        numbers = [f"{settings['lr']:g}", f"{settings['weight_decay']:g}", f"{mean['last']:.2f}", f"{mean['best']:.2f}"]
        numbers += [f"{arm['clean_loss']:.2g}", f"{arm['trace']:,.0f}", f"{arm['clock']:.2f}" if arm["clock"] else ""]
        halved = f", {sum(map(bool, arm['halvings']))} diverged" if any(arm["halvings"]) else ""
        rows.append(f"| {title}{halved} | {' | '.join(numbers)} | {difference(gap) if gap else ''} |")
    return "\n".join(rows)


def difference(record: dict[str, Any]) -> str:
    """`-0.71 [-0.96, -0.46]`, bold where the interval does not hold 0; the mean alone where there is none."""
    if record["low"] is None or record["high"] is None:
        return f"{record['mean']:+.2f}"
    text = f"{record['mean']:+.2f} [{record['low']:+.2f}, {record['high']:+.2f}]"
    return f"**{text}**" if record["low"] * record["high"] > 0 else text


def _compact(text: str) -> str:
    """The JSON with lists of numbers on one line each."""
    return re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda match: "[" + re.sub(r"\s+", " ", match[1]) + "]", text)


def draw(records: list[dict[str, Any]], path: Path) -> None:
    """A row per cell: validation error, loss without noise and trace against steps, clean beside noisy."""
    plt.rcParams.update({"font.size": 8, "svg.hashsalt": "regime", "svg.fonttype": "none"})
    figure, axes = plt.subplots(len(records), len(ROWS), figsize=(9, 2.8 * len(records)), squeeze=False, sharex="row")
    for row, record in enumerate(records):
        for column, (key, (x, heading)) in enumerate(ROWS.items()):
            axis = axes[row][column]
            for title, curve in record["curves"].items():
                marker = "o" if key == "trace" else None
                kind = title.split(",")[0]
                label = f"{kind}, rate {record['arms'][title]['settings']['lr']:g}, no weight decay"
                axis.plot(curve[x], curve[key], color=COLOURS[kind], label=label, marker=marker, markersize=3)
            axis.set_xscale("log")
            axis.set_yscale("log")
            if key != "clean_loss":
                axis.yaxis.set_major_formatter("{x:,.0f}")
                axis.yaxis.set_minor_formatter("{x:,.0f}")
            axis.grid(alpha=0.3, which="both", linewidth=0.4)
            axis.spines[["top", "right"]].set_visible(False)
            axis.set_title(heading)
            axis.set_xlabel("steps" if row == len(records) - 1 else "")
        cell = record["cell"]
        axes[row][0].set_ylabel(f"{cell['data']}, {cell['rows']:,} images, {cell['student']}, {cell['optimizer']}")
        axes[row][0].legend(frameon=False, fontsize=6)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main(*sys.argv[1:])
