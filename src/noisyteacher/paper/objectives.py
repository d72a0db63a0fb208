"""Objectives that users compare, clean and with the paper's noise, each with settings that validation chose for it.

All start with gradients of equal norm (`loss_weight="auto"`). On a pilot seed each arm has TRIALS trials: rates, each
with each value of its temperature or smoothing, or as many more rates where it has neither; the best are repeated on
two more. Fresh seeds, each with a fresh subset, train the chosen settings. Clean objectives and controls are compared
with logit regression (Dunnett), every objective under the noise with itself without (paired tests, Holm).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from noisyteacher.io.files import Json, write_json
from noisyteacher.paper.regime import Workspace, difference_record
from noisyteacher.paper.relatives import PAPER, SCHEMA, Arm, Cell, choose_and_judge
from noisyteacher.progress import Watch
from noisyteacher.stats import PERCENT, paired_difference, simultaneous

__all__ = ["BUDGETS", "CELLS", "NOTES", "TITLE", "run_cell"]

RATES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
MORE_RATES = (
    *(0.001, 0.0012, 0.0016, 0.002, 0.0025, 0.003, 0.004, 0.005, 0.0065, 0.008, 0.01, 0.012),
    *(0.016, 0.02, 0.025, 0.03, 0.04, 0.05, 0.065, 0.08, 0.12, 0.16, 0.2, 0.3),
)
TRIALS = len(MORE_RATES)
REFERENCE = "logit regression"
LOSSES: dict[str, tuple[Json, tuple[float, ...]]] = {
    REFERENCE: ({"loss": "logit_regression", "scale": "rms"}, ()),
    "soft targets": ({"loss": "soft_targets"}, (2.0, 4.0, 8.0, 16.0)),
    "soft targets, standardized": ({"loss": "soft_targets", "scale": "zscore"}, (0.5, 1.0, 2.0, 4.0)),
    "DIST": ({"loss": "dist"}, (2.0, 4.0, 8.0, 16.0)),
    "DKD": ({"loss": "dkd"}, (2.0, 4.0, 8.0, 16.0)),
    "TTM": ({"loss": "ttm"}, (2.0, 4.0, 8.0, 16.0)),
    "WTTM": ({"loss": "ttm", "loss_options": {"weighted": True}}, (2.0, 4.0, 8.0, 16.0)),
}
"""Objective -> options of `distil`, and the temperatures that are tried."""
CONTROLS = (
    (Arm("labels alone", teacher="labels", reference=REFERENCE, options={}), "", ()),
    (Arm("labels, smoothed", teacher="labels", reference=REFERENCE), "label_smoothing", (0.05, 0.1, 0.2, 0.4)),
    (Arm("random teacher", control="permuted", reference=REFERENCE, options=LOSSES[REFERENCE][0]), "", ()),
)
"""Arm, the option of which values are tried, and these."""
CELLS = {"cosine-objectives": Cell("cosine", "objectives", rows=1000)}
BUDGETS: dict[str, tuple[Sequence[str], int | None, int | None]] = {
    "quick": (tuple(CELLS), 2, 2),
    "standard": (tuple(CELLS), None, None),
    "full": (tuple(CELLS), 10, None),
}
"""Budget -> cells, fresh seeds, and epochs where they are not the regime's."""
TITLE = "Objectives that users compare, clean and with the paper's noise"
NOTES = (
    "Not in the paper. MNIST, 1,000 training images, another subset for every seed; a perceptron of two hidden layers "
    f"of 128, its last weights after 40 epochs of SGD with momentum and a cosine. {TRIALS} trials for every arm on a "
    "pilot seed, the three best on three, chosen by validation; initial gradients of equal norm; noise: sigma 0.9, "
    "alpha 0.5, one xi per row. "
    "Differences of clean objectives and controls are to logit regression (Dunnett).",
)


def trials() -> dict[str, list[tuple[Arm, float]]]:
    """By title, the arms and rates of which validation chooses: TRIALS for each."""
    arms = [
        (Arm(f"{title}{suffix}", noise, reference="" if noise else REFERENCE, options=options), "temperature", values)
        for title, (options, values) in LOSSES.items()
        for suffix, noise in (("", None), (", noise", PAPER))
    ]
    return {
        arm.title: [
            (replace(arm, options={**(arm.options or {}), name: value}), rate) for value in values for rate in RATES
        ]
        or [(arm, rate) for rate in MORE_RATES]
        for arm, name, values in (*arms, *CONTROLS)
    }


def run_cell(workspace: Workspace, cell: Cell, jobs: int, watch: Watch | None) -> Json:
    """Pilot and judgement of the cell: the record that is also in `CELL.json` of the workspace.

    Trainings that are done are read. An interrupted call, made again, continues.
    """
    workspace.load()  # stores the teacher's logits before workers read them
    record = choose_and_judge(workspace, cell, trials(), jobs, watch)
    errors = {title: arm["test_error_%"]["last"] for title, arm in record["arms"].items()}
    titles = [title for title in LOSSES if not record["diverged"].keys() & {title, f"{title}, noise"}]
    pairs = [paired_difference(errors[title], errors[f"{title}, noise"], PERCENT) for title in titles]
    tests = simultaneous(pairs, PERCENT)
    record["contrasts"] = dict(zip(titles, map(difference_record, tests), strict=True))
    write_json(workspace.folder / f"{cell.name}.json", "objectives", SCHEMA, record)
    return record
