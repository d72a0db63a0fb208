"""Noise that is chosen, not believed: short runs of every candidate, no noise among them, judged on validation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from noisyteacher.config import Student
from noisyteacher.noise import Noise
from noisyteacher.pipeline.budget import short
from noisyteacher.pipeline.conditions import a_student
from noisyteacher.pipeline.plan import Answers, Plan, lasting
from noisyteacher.pipeline.steps import lost
from noisyteacher.text import plural, sigma_words


@dataclass(frozen=True)
class Candidate:
    """One noise (None: no noise), its validation errors (%; `lost`) in the short runs, one per seed, and those runs."""

    noise: Noise | None
    errors: tuple[float, ...]
    runs: tuple[str, ...]

    @property
    def mean(self) -> float:
        """Mean validation error in %."""
        return sum(self.errors) / len(self.errors)

    def describe(self) -> dict[str, Any]:
        """The JSON-able form."""
        noise = self.noise
        sigma, alpha = (0.0, 0.0) if noise is None else (noise.describe()["sigma"], noise.alpha)
        errors = {"val_error_%": list(self.errors), "mean": self.mean}
        return {"sigma": sigma, "alpha": alpha, **errors, "runs": list(self.runs)}


def planned(plan: Plan) -> int:
    """How many short runs a choice will take; 0 where the noise was named."""
    return (1 + len(plan.candidates)) * plan.config.choice.seeds if plan.candidates else 0


def shortened(student: Student, epochs: int | None) -> Student:
    """The settings of a trial run: so many epochs, by default a quarter of the student's, and no longer a warm-up."""
    return lasting(student, short(student.epochs, epochs))


def choose_noise(plan: Plan, answers: Answers, numbered: tuple[int, int]) -> tuple[Noise | None, dict[str, Any]]:
    """The candidate with the lowest mean validation error after short runs, None for no noise, and the evidence.

    Where candidates are level, no noise wins, then the earlier one. The runs are child runs called `choice-...`;
    test data are not looked at. `numbered`: how many stages of the work lie before, and how many there are in all.
    """
    settings = plan.config.choice
    student = shortened(plan.config.student, settings.epochs)
    epochs, trial = student.epochs, replace(plan, config=replace(plan.config, student=student))
    found, (number, total) = [], numbered
    for noise in (None, *plan.candidates):
        name = "clean" if noise is None else slug(noise)
        errors, runs = [], []
        for seed in range(settings.seeds):
            number += 1
            title = f"[{number}/{total}] choosing the noise: {'none' if noise is None else label(noise)}, seed {seed}"
            run = f"choice-{name}-seed{seed}"
            trained = a_student(trial, run, "clean" if noise is None else "noisy", noise, seed, answers, title)
            errors.append(lost(trained.result["scores"]["val"]))
            runs.append(run)
        found.append(Candidate(noise, tuple(errors), tuple(runs)))
    best = min(found, key=lambda one: one.mean)
    n = len(plan.data.val)
    record = {
        "by": "validation error" if plan.data.val.labels is not None else "validation disagreement",
        "n": n,
        "epochs": epochs,
        "seeds": list(range(settings.seeds)),
        "chosen": {key: best.describe()[key] for key in ("sigma", "alpha")},
        "candidates": [one.describe() for one in found],
    }
    return best.noise, record


def explain_choice(choice: Mapping[str, Any]) -> str:
    """One sentence on what was chosen and on what grounds."""
    chosen = choice["chosen"]
    means = {(one["sigma"], one["alpha"]): one["mean"] for one in map(_hashable, choice["candidates"])}
    key = _hashable(chosen)["sigma"], chosen["alpha"]
    what = (
        f"sigma {sigma_words(chosen['sigma'])}, alpha {chosen['alpha']:g}" if chosen["sigma"] else "no noise (sigma 0)"
    )
    length = f"{plural(choice['epochs'], 'epoch')} x {plural(len(choice['seeds']), 'seed')}"
    level = sum(math.isclose(mean, means[key]) for mean in means.values()) - 1
    others = f"; {level} other{'s' if level > 1 else ''} came to the same" if level else ""
    return (
        f"{what} was chosen on validation (n = {choice['n']:,}): {choice['by'].split()[-1]} {means[key]:.2f} % against "
        f"{means[0.0, 0.0]:.2f} % without noise, the lowest of {len(means)} candidates after {length}{others}"
    )


def label(noise: Noise) -> str:
    """The noise in words. `label(Noise(sigma=0.3, alpha=0.5)) == "sigma 0.3, alpha 0.5"`."""
    return f"sigma {sigma_words(noise.sigma)}, alpha {noise.alpha:g}"


def slug(noise: Noise) -> str:
    """The noise as a part of a run's name. `slug(Noise(sigma=0.3, alpha=0.5)) == "sigma0.3-alpha0.5"`."""
    return label(noise).replace(", ", "-").replace(" ", "")


def _hashable(record: Mapping[str, Any]) -> dict[str, Any]:
    sigma = record["sigma"]
    return {**record, "sigma": tuple(sigma) if isinstance(sigma, list) else sigma}
