"""Put the cells of `noisyteacher paper regime` into one JSON and one figure: regime_figure.py OUT_DIR CELL.json ..."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROWS = {
    "val_error": ("step", "validation error, %"),
    "clean_loss": ("step", "training loss without noise"),
    "trace": ("trace_step", "trace of Gauss-Newton"),
}
CONTENT = ("cell", "seeds", "arms", "contrasts", "against_clean_no_decay", "curves", "halving_steps")
COLOURS = {"clean": "#1f6fb2", "noisy": "#c2571a"}


def main(folder: str, *files: str) -> None:
    """Write `regime.json` (numbers to five figures, no pilot trials but the chosen) and `regime.svg`."""
    records = []
    for file in files:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        records.append({key: content[key] for key in CONTENT})
    text = json.dumps(records, indent=1, default=str)
    Path(folder, "regime.json").write_text(_compact(text) + "\n", encoding="utf-8")
    draw(records, Path(folder, "regime.svg"))


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
            axis.grid(alpha=0.3, which="both", linewidth=0.4)
            axis.spines[["top", "right"]].set_visible(False)
            axis.set_title(heading)
            axis.set_xlabel("steps" if row == len(records) - 1 else "")
        axes[row][0].set_ylabel(record["cell"]["name"])
        axes[row][0].legend(frameon=False, fontsize=6)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main(*sys.argv[1:])
