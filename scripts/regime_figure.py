"""Add cells of `noisyteacher paper regime` to regime.json, draw and print all: regime_figure.py DIR CELL.json ..."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from noisyteacher.paper.regime import CELLS, SAME_RATE, STRONG
from noisyteacher.stats import LEVEL, holm, mean_interval

ROWS = {
    "val_error": ("step", "validation error, %"),
    "clean_loss": ("step", "training loss without noise"),
    "trace": ("trace_step", "trace of Gauss-Newton"),
}
CONTENT = (
    "cell",
    "seeds",
    "left_out",
    "diverged",
    "arms",
    "contrasts",
    "against_clean_no_decay",
    "curves",
    "halving_steps",
)
COLOURS = {"clean": "#1f6fb2", "noisy": "#c2571a", "gain": "#2a8a4a"}
CLEAN = "clean, no decay"
SHOWN = ("mnist-500-mlp128-sgd", "mnist-500-mlp128-adam", "cifar10-1000-student3-sgd", "mnist-50000-mlp800-sgd")
QUESTIONS = {
    "each at its best, last weights": "chosen rates and decays",
    "each at its best, early stopping": "chosen for early stopping",
    "without weight decay, last weights": "no decay, own rates",
    "without weight decay, at one rate": "no decay, the noisy rate",
    "noise in place of weight decay": "noisy, no decay, minus clean, decay",
}
FOREST = (
    "without weight decay, last weights",
    "each at its best, last weights",
    "each at its best, early stopping",
)
UNTIL = float(STRONG["until"])
"""Share of the steps with noise."""
WIDE = 4
"""Cells side by side in the figure of curves."""


def main(folder: str, *files: str) -> None:
    """Write `regime.json` (of the pilot the validation errors by trial and seed), `regime.svg` and `regime-curves.svg`
    of the cells in DIR/regime.json and in the files; print Markdown tables of all.
    """
    whole = Path(folder, "regime.json")
    known = json.loads(whole.read_text(encoding="utf-8")) if whole.exists() else []
    records = {record["cell"]["name"]: record for record in known}
    for file in files:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        pilot = dict[str, dict[str, list[float]]]()
        for row in content["pilot"]:
            for weights, error in row["val_%"].items():
                pilot.setdefault(row["arm"], {}).setdefault(weights, []).append(error)
        records[content["cell"]["name"]] = {
            **{key: content[key] for key in CONTENT if key in content},  # older ones lack `diverged`
            "pilot_val_%": pilot,
        }
    ordered = [records[name] for name in CELLS if name in records]
    whole.write_text(_compact(json.dumps(ordered, indent=1, default=str)) + "\n", encoding="utf-8")
    plt.rcParams.update({"font.size": 8, "svg.hashsalt": "regime", "svg.fonttype": "none"})
    draw_answer(ordered, Path(folder, "regime.svg"))
    draw_curves(ordered, Path(folder, "regime-curves.svg"))
    print(summary(ordered), noises(ordered), chosen(ordered), sep="\n\n")


def summary(records: list[dict[str, Any]]) -> str:
    """A row per cell: errors in %, noisy minus clean in points, the steps after which the noise halves the trace."""
    heads = [
        "",
        "clean, no decay",
        "clean, chosen",
        "noisy, chosen",
        *QUESTIONS.values(),
        "steps at Q of 0.02 to 0.1",
        "trace halved",
    ]
    rows = [heads, ["---", *["--:"] * (len(heads) - 1)]]
    gaps = [corrected(records, question) for question in QUESTIONS]
    for number, record in enumerate(records):
        low, high = record["halving_steps"]["predicted"] or (None, None)
        measured = record["halving_steps"]["measured"]
        means = [
            record["arms"][title]["mean_%"]["last"] for title in (CLEAN, "clean, decay chosen", "noisy, decay chosen")
        ]
        halved = ["" if low is None else f"{low:,.0f} to {high:,.0f}", f"{measured:,.0f}" if measured else "never"]
        rows.append(
            [
                label(record["cell"]),
                *(f"{mean:.2f}" for mean in means),
                *(difference(gap[number]) for gap in gaps),
                *halved,
            ]
        )
    means = [mean_interval([gap["mean"] for gap in of_question]) for of_question in gaps]
    rows.append(
        [
            f"mean of {len(records)} cells",
            "",
            "",
            "",
            *(difference({**asdict(mean), "p": 1.0}) for mean in means),
            "",
            "",
        ]
    )
    return table(rows)


def noises(records: list[dict[str, Any]]) -> str:
    """A row per noise and dropout, a column per cell that has them: minus clean without decay, and the trace."""
    records = [record for record in records if record["against_clean_no_decay"]]
    if not records:
        return ""
    heads = ["", *(label(record["cell"]) for record in records)]
    rows = [heads, ["---", *["--:"] * len(records)]]
    for title in (CLEAN, SAME_RATE):
        rows.append([title, *(f"({record['arms'][title]['trace']:,.0f})" for record in records)])
    for title in dict.fromkeys(title for record in records for title in record["against_clean_no_decay"]):
        cells = [
            f"{difference(record['against_clean_no_decay'][title])} ({record['arms'][title]['trace']:,.0f})"
            if title in record["arms"]
            else "diverged"
            for record in records
        ]
        rows.append([title, *cells])
    return table(rows)


def chosen(records: list[dict[str, Any]]) -> str:
    """The rate and weight decay of a cell's arms, and the rates that were left out because a training diverged."""
    arms = [CLEAN, "noisy, no decay", "clean, decay chosen", "noisy, decay chosen"]
    rows = [["", *arms, "left out"], ["---", *["--:"] * (len(arms) + 1)]]
    for record in records:
        cells = []
        for settings in (record["arms"][arm]["settings"] for arm in arms):
            decay = settings["weight_decay"]
            cells.append(f"{settings['lr']:g}" + (f", {decay:g}" if decay else ""))
        left_out = [f"{kind} {rate:g}" for kind, rates in record["left_out"].items() for rate in rates]
        rows.append([label(record["cell"]), *cells, ", ".join(left_out)])
    return table(rows)


def table(rows: list[list[str]]) -> str:
    """The rows in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |".replace("|  |", "| |") for row in rows)


def difference(record: dict[str, Any]) -> str:
    """`-0.71 ±0.25`, bold where p (of `corrected`, or simultaneous) is below 0.05; the mean alone without interval."""
    if record["low"] is None or record["high"] is None:
        return f"{record['mean']:+.2f}"
    text = f"{record['mean']:+.2f} ±{(record['high'] - record['low']) / 2:.2f}"
    return f"**{text}**" if record["p"] < LEVEL else text


def corrected(records: list[dict[str, Any]], question: str) -> list[dict[str, Any]]:
    """The cells' differences for a question, their p corrected for the number of cells (Holm)."""
    gaps = [dict(record["contrasts"][question]) for record in records]
    tested = [gap for gap in gaps if gap["p"] is not None]
    for gap, p in zip(tested, holm([gap["p"] for gap in tested]), strict=True):
        gap["p"] = p
    return gaps


def _compact(text: str) -> str:
    """The JSON with lists of numbers on one line each."""
    return re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda match: "[" + re.sub(r"\s+", " ", match[1]) + "]", text)


def label(cell: dict[str, Any]) -> str:
    """`500 digits, mlp128, SGD`: a cell's name in words."""
    images = {"mnist": "digits", "cifar10": "CIFAR-10 images"}[cell["data"]]
    optimizer = {"sgd": "SGD", "adam": "Adam"}[cell["optimizer"]]
    loss = f", soft targets at T = {cell['temperature']:g}" if cell["temperature"] else ""
    return f"{cell['rows']:,} {images}, {cell['student']}, {optimizer}{loss}"


def draw_answer(records: list[dict[str, Any]], path: Path) -> None:
    """Validation error against steps for a few cells; below, noisy minus clean with its interval for every cell."""
    shown = [record for record in records if record["cell"]["name"] in SHOWN] or records[:4]
    kinds = [kind for kind in ("mnist", "cifar10") if any(record["cell"]["data"] == kind for record in records)]
    groups = [[record for record in records if record["cell"]["data"] == kind] for kind in kinds]
    heights = [2.2, *(0.5 + 0.22 * len(group) for group in groups)]
    figure = plt.figure(figsize=(10, sum(heights) + 0.6), layout="constrained")
    bands = figure.subfigures(len(heights), 1, height_ratios=heights)
    for axis, record in zip(bands[0].subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        draw_curve(axis, record, "val_error")
        axis.set_title(label(record["cell"]), fontsize=7)
        axis.set_xlabel("steps")
        lowest = min(min(curve["val_error"]) for curve in record["curves"].values())
        axis.set_ylim(lowest * 0.96, lowest * 1.6)
    bands[0].axes[0].set_ylabel("validation error, %")
    bands[0].axes[0].legend(frameon=False, loc="lower left")
    for band, group in zip(bands[1:], groups, strict=True):
        columns = band.subplots(1, len(FOREST), sharex=True, sharey=True)
        for axis, question in zip(columns, FOREST, strict=True):
            gaps = zip(records, corrected(records, question), strict=True)
            draw_differences(axis, [gap for record, gap in gaps if record in group])
            axis.set_title(QUESTIONS[question] if band is bands[1] else "")
        columns[1].set_xlabel("noisy minus clean, points of test error")
        columns[0].set_yticks(range(len(group)), [label(record["cell"]) for record in group])
        columns[0].set_ylim(len(group) - 0.5, -0.5)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def draw_differences(axis: Axes, differences: list[dict[str, Any]]) -> None:
    """A line per difference: its mean and 95 % interval, coloured where p is below 0.05."""
    axis.axvline(0, color="#888888", linewidth=0.8)
    for row, gap in enumerate(differences):
        colour = "#555555"
        if gap["low"] is not None:
            if gap["p"] < LEVEL:
                colour = COLOURS["noisy"] if gap["mean"] > 0 else COLOURS["gain"]
            axis.plot([gap["low"], gap["high"]], [row, row], color=colour, linewidth=1.2)
        axis.plot(gap["mean"], row, "o", color=colour, markersize=3.5)
    axis.grid(alpha=0.3, axis="x", linewidth=0.4)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)


def draw_curve(axis: Axes, record: dict[str, Any], key: str) -> None:
    """A quantity of the clean and of the noisy student against steps; shaded: Q of 0.02 to 0.1, under noise."""
    low, high = record["halving_steps"]["predicted"] or (None, None)
    if low is not None and low < (steps := UNTIL * record["arms"][CLEAN]["steps"]):
        axis.axvspan(low, min(high, steps), color="#dddddd", linewidth=0)
    for title, curve in record["curves"].items():
        kind = title.split(",")[0]
        marker = "o" if key == "trace" else None
        axis.plot(curve[ROWS[key][0]], curve[key], color=COLOURS[kind], label=kind, marker=marker, markersize=2.5)
    axis.set_xscale("log")
    axis.set_yscale("log")
    if key != "clean_loss":
        axis.yaxis.set_major_formatter("{x:,.0f}")
        axis.yaxis.set_minor_formatter("{x:,.0f}")
    axis.grid(alpha=0.3, which="both", linewidth=0.4)
    axis.spines[["top", "right"]].set_visible(False)


def draw_curves(records: list[dict[str, Any]], path: Path) -> None:
    """Of every cell the validation error, the loss without noise and the trace against steps, one below the other."""
    bands = -(-len(records) // WIDE)
    figure = plt.figure(figsize=(10, 5.2 * bands), layout="constrained")
    for number, band in enumerate(figure.subfigures(bands, 1, squeeze=False).ravel()):
        group = records[number * WIDE : (number + 1) * WIDE]
        axes = band.subplots(len(ROWS), WIDE, sharex="col", squeeze=False)
        for column, record in enumerate(group):
            for row, key in enumerate(ROWS):
                draw_curve(axes[row][column], record, key)
            axes[0][column].set_title(label(record["cell"]), fontsize=7)
            axes[-1][column].set_xlabel("steps")
        for row, (_, heading) in enumerate(ROWS.values()):
            axes[row][0].set_ylabel(heading)
        for axis in axes[:, len(group) :].ravel():
            axis.remove()
        axes[0][0].legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    main(*sys.argv[1:])
