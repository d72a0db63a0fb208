"""The noise, and the recipes of clean and of noisy students, chosen on validation by equally many trials."""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from noisyteacher.config import Student
from noisyteacher.device import AUTO
from noisyteacher.errors import TrainingError, UsageError
from noisyteacher.io.files import Json
from noisyteacher.noise import Noise
from noisyteacher.pipeline.experiment import (
    Experiment,
    Logits,
    StudentTask,
    first_student,
    recipe_words,
    train_ahead,
    train_student,
)
from noisyteacher.pipeline.resolve import fit_options, with_epochs
from noisyteacher.pipeline.timing import StageTitles
from noisyteacher.text import plural, value_words

PILOT_SEED = 100
"""The first seed of the trials: students that are compared have seeds 0, 1, ..."""
FIRST_DECAY = 1e-3
"""The weight decay that is tried where the student's recipe has none."""


@dataclass(frozen=True)
class NoiseTrial:
    """A noise, None for clean logits, the recipe of the student that learns from it, and its validation errors (%)."""

    noise: Noise | None
    recipe: Student
    tasks: tuple[StudentTask, ...] = ()
    errors: tuple[float, ...] = ()

    @property
    def mean(self) -> float:
        return sum(self.errors) / len(self.errors)

    @property
    def words(self) -> str:
        """`sigma 0.9, alpha 0.5, lr 0.03, weight decay 0.01`."""
        noise = self.noise
        noise_words = "clean" if noise is None else f"sigma {value_words(noise.sigma)}, alpha {noise.alpha:g}"
        return f"{noise_words}, {recipe_words(self.recipe)}"

    def describe(self) -> Json:
        """Noise, rate and weight decay, JSON-able; sigma and alpha are 0 for clean logits."""
        noise = {name: 0.0 if self.noise is None else self.noise.describe()[name] for name in ("sigma", "alpha")}
        return {**noise, "lr": self.recipe.lr, "weight_decay": self.recipe.weight_decay}


def noise_trials(experiment: Experiment) -> list[NoiseTrial]:
    """What validation chooses from, clean students first: as many as noisy ones, or the comparison would be unfair.

    Noisy students try every noise with every learning rate and weight decay; clean ones every rate with as many weight
    decays as there are noises and decays together. Empty where the noise is named and nothing else is to be chosen.
    Raises UsageError where two of them would share a name.
    """
    choice, student, noises = experiment.config.choice, experiment.config.student, experiment.noise_candidates
    decay = student.weight_decay
    decays = sorted({*(choice.weight_decays or ([decay, 5 * decay] if decay else [0.0, FIRST_DECAY]))})

    rates: Sequence[float | Literal["auto"]] = choice.lrs or [student.lr]

    def trials(noise: Noise | None, decays: Sequence[float]) -> list[NoiseTrial]:
        recipes = [
            replace(student, lr=lr, weight_decay=decay, decay_biases=student.decay_biases or not decay)
            for lr in rates
            for decay in decays
        ]
        return [NoiseTrial(noise, recipe) for recipe in recipes]

    noisy = [trial for noise in noises for trial in trials(noise, decays)]
    every = [*trials(None, refined(decays, len(noises) * len(decays))), *noisy] if noises else []
    if len({trial.words for trial in every}) < len(every):  # the name of its run
        raise UsageError(
            "choice: two sigmas, alphas, learning rates or weight decays agree in six digits: leave one out"
        )
    return every


def refined(decays: Sequence[float], count: int) -> list[float]:
    """`count` weight decays: `decays`, ascending, and the geometric mean of the widest gap until there are enough.

    A single decay above 0 is joined by four times its value first. `refined([0.01, 0.04], 3) == [0.01, 0.02, 0.04]`.
    """
    values = list(decays)
    while len(values) < count:
        positive = [decay for decay in values if decay]
        if len(positive) < 2:
            values.append(4 * positive[0] if positive else FIRST_DECAY)
        else:
            low, high = max(pairwise(positive), key=lambda gap: gap[1] / gap[0])
            insort(values, float(f"{math.sqrt(low * high):.3g}"))
    return values


def number_of_trials(experiment: Experiment) -> int:
    """How many trainings the choice takes; 0 where there is nothing to choose."""
    return len(noise_trials(experiment)) * experiment.config.choice.seeds


def choose_noise(experiment: Experiment, logits: Logits, stages: StageTitles, jobs: int = 1) -> tuple[Experiment, Json]:
    """The experiment with the noise and the recipes that validation prefers, and the evidence.

    The earlier of equal trials wins. A noise that was not named is used only if its best trial has a lower mean error
    than the best clean one. The trials have seeds of their own. Test data are not looked at.
    """
    choice, student, val = experiment.config.choice, experiment.config.student, experiment.data.val
    if student.lr == AUTO:  # decided by the network, which is built for it
        options = fit_options(student, first_student(experiment, logits), experiment.data)
        student = replace(student, lr=options["lr"], batch_size=options["batch_size"])
        experiment = experiment.with_recipe(student)
    epochs, seeds = choice.epochs or student.epochs, [PILOT_SEED + number for number in range(choice.seeds)]

    def task(trial: NoiseTrial, seed: int) -> StudentTask:
        short = experiment.with_recipe(with_epochs(trial.recipe, epochs))
        run = f"choice-{trial.words}-seed{seed}".replace(", ", "-").replace(" ", "")
        title = stages.next(f"choosing the noise: {trial.words}, seed {seed}")
        return StudentTask(short, run, "noisy" if trial.noise else "clean", trial.noise, seed, logits, title)

    trials = [replace(trial, tasks=tuple(task(trial, seed) for seed in seeds)) for trial in noise_trials(experiment)]
    train_ahead([task for trial in trials for task in trial.tasks], jobs, "choosing the noise")
    trials = [replace(trial, errors=tuple(map(_val_error, trial.tasks))) for trial in trials]
    clean, noisy = (
        min((trial for trial in trials if bool(trial.noise) is kind), key=lambda trial: trial.mean)
        for kind in (False, True)
    )
    chosen = noisy if experiment.noise is not None or noisy.mean < clean.mean else clean
    scored = "error" if val.labels is not None else "disagreement"
    length = f"{plural(epochs, 'epoch')} each, as long as those compared"
    if epochs < student.epochs:
        length = f"{epochs} of {plural(student.epochs, 'epoch')} each: TRIALS THIS SHORT FAVOUR CLEAN STUDENTS"
    sentences = [
        f"{len(trials)} trials on validation (n = {len(val):,}, {plural(len(seeds), 'seed')} of their own), {length}",
        *(
            f"best {kind}: {trial.words.removeprefix('clean, ')} ({trial.mean:.2f} % {scored})"
            for kind, trial in (("clean", clean), ("noisy", noisy))
        ),
    ]
    if chosen is clean:
        sentences.append("so no noise was chosen")
    record: Json = {
        "by": f"validation {scored}",
        "n": len(val),
        "epochs": epochs,
        "epochs_trained": student.epochs,
        "seeds": seeds,
        "chosen": {name: chosen.describe()[name] for name in ("sigma", "alpha")},
        "clean": clean.describe(),
        "noisy": noisy.describe(),
        "candidates": [
            {
                **trial.describe(),
                "val_error_%": list(trial.errors),
                "mean": trial.mean,
                "runs": [task.run for task in trial.tasks],
            }
            for trial in trials
        ],
        "summary": "; ".join(sentences),
    }
    recipes = {"clean": clean.recipe, "noisy": noisy.recipe}
    return replace(experiment, noise=chosen.noise, noise_candidates=(), recipes=recipes), record


def _val_error(task: StudentTask) -> float:
    """The validation error (%) of a trial; 100 where its training fails, as at too high a rate."""
    try:
        return train_student(task).val_error
    except TrainingError:
        return 100.0
