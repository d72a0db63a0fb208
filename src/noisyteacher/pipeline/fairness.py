"""Whether a comparison asked a fair question of the noise: its length, whether the student had fitted, the clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from noisyteacher.config import Student
from noisyteacher.io.files import Json
from noisyteacher.noise import Noise
from noisyteacher.train.state import noise_clock

FITTED = 2.0
"""A student has fitted its targets where this share (%) of their mean square is left, or less. With 2.4 % left the
noise was seen to hurt, with 1.1 % to help."""
WINDOW = (0.00466, 0.5)
"""Clocks of the noise at which gains were seen: the lowest in docs/results, the highest in trials with perceptrons."""


def regime_of(recipe: Student, noise: Noise, classes: int, unit: float, lines: Sequence[Mapping[str, Any]]) -> Json:
    """`steps`; `unfitted_%`, the share of its clean targets' mean square not yet fitted; `clock`, the noise's Q.

    unit: root mean square of the teacher's logits. lines: each seed's metrics of the last epoch, of clean students or,
    without these, of noisy ones. `unfitted_%` is None but for logit regression, `clock` but for plain gradient descent
    on it under fresh noise on the teacher (docs/method.md).
    """
    record: Json = {"steps": int(lines[0]["step"]), "unfitted_%": None, "clock": None}
    if recipe.loss != "logit_regression" or recipe.scale == "zscore" or recipe.loss_weight != 1:
        return record
    mean_square = 1.0 if recipe.scale == "rms" else unit**2
    keys = ("train/clean_loss", "train/teacher_term", "train/loss")
    loss = fmean(next(line[key] for key in keys if key in line) for line in lines)
    record["unfitted_%"] = 100 * loss / (classes / 2 * mean_square)
    weight = recipe.label_weight if isinstance(recipe.label_weight, float) else 0.0
    batches = lines[0]["step"] // lines[0]["epoch"]
    clock = noise_clock(recipe, noise, batches, mean_square if noise.kind == "multiplicative" else 1.0)
    record["clock"] = None if clock is None else clock * (1 - weight) ** 2
    return record


def is_fair(record: Json) -> bool:
    """Whether the noise could help as far as is known: the student had fitted, and the clock is in the window."""
    unfitted, clock = record["unfitted_%"], record["clock"]
    return unfitted is not None and unfitted <= FITTED and clock is not None and WINDOW[0] <= clock <= WINDOW[1]


def regime_words(record: Json) -> str:
    """A sentence on whether the question was a fair one, without its full stop."""
    steps, unfitted, clock = f"{record['steps']:,} steps", record["unfitted_%"], record["clock"]
    if unfitted is None:
        return f"{steps}; when noise can help is known for logit regression only: long after the fit (--preset patient)"
    fitted = "fitted" if unfitted <= FITTED else "NOT fitted"
    words = f"after {steps} the student had {fitted} its clean targets ({unfitted:.2g} % of their mean square left)"
    if clock is None:
        return f"{words}; noise can help after the fit in plain gradient descent (--preset patient)"
    words += f"; clock Q {clock:.2g}, gains were seen at {WINDOW[0]:g} to {WINDOW[1]:g}"
    if is_fair(record):
        return f"a fair question: {words}"
    advice = "train longer" if unfitted > FITTED or clock < WINDOW[0] else "lower the rate"
    return f"not a fair question: {words}; {advice} (--preset patient)"
