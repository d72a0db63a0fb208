"""The paper's noise beside its relatives and controls: one student each, in a short and in a long training.

A cell is a regime and a loss. On pilot seeds validation chooses each arm's learning rate among the same candidates;
then fresh seeds, each with a fresh subset of the training images, train every arm, judged once on test by the last
weights. Each arm is compared with the arm without its noise, by Dunnett's test.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from noisyteacher.errors import TrainingError
from noisyteacher.extract import extract
from noisyteacher.io.files import Json, write_json
from noisyteacher.models import build_model
from noisyteacher.noise import Noise, perturb, sample_unit_noise
from noisyteacher.objectives import distil, supervised
from noisyteacher.paper.regime import (
    FINALISTS,
    PILOT_SEEDS,
    STRONG,
    Workspace,
    alone,
    build_student,
    difference_record,
    draw_subset,
    errors_of,
    kept,
)
from noisyteacher.process import run_in_workers
from noisyteacher.progress import Watch
from noisyteacher.rng import generator
from noisyteacher.stats import dunnett
from noisyteacher.store import LogitStore
from noisyteacher.train import fit

KIND, SCHEMA = "relatives-training", 1
DATA, ROWS, STUDENT, TEMPERATURE = "mnist", 500, "mlp128", 4.0
TRAINED: dict[str, tuple[Json, Json]] = {
    "own": ({}, {}),
    "dropout": ({"dropout": 0.5}, {}),
    "corrupted": ({}, {"label_noise": 0.4}),
}
"""Teachers that are trained here, beside the pretrained one: options of the network and of `supervised`."""
TEACHER_EPOCHS, COPIES = 4, 10
"""Epochs of these teachers; stored stochastic copies of the one with dropout."""
REGIMES: dict[str, Json] = {
    "short": {"epochs": 40, "batch_size": 64, "optimizer": "adam"},
    "patient": {"epochs": 400, "batch_size": 32, "optimizer": "sgd", "momentum": 0.0, "schedule": "hold"},
    "cosine": {"epochs": 40, "batch_size": 32, "optimizer": "sgd", "momentum": 0.9, "schedule": "cosine"},
}
RATES: dict[str, tuple[float, ...]] = {
    "short-logit_regression": (1e-3, 3e-3, 1e-2, 3e-2),
    "short-soft_targets": (1e-3, 3e-3, 1e-2, 3e-2),
    "patient-logit_regression": (0.015, 0.03, 0.06, 0.12),
    "patient-soft_targets": (0.1, 0.3, 1.0, 3.0),
}
"""Cell -> learning rates that are tried on the pilot seeds."""
PAPER: Json = {**STRONG, "until": 1.0}


@dataclass(frozen=True)
class Arm:
    """How a student learns. teacher: `pretrained`, one of TRAINED, `copies` or `labels`."""

    title: str
    noise: Json | None = None
    teacher: str = "pretrained"
    combine: str = "mean"
    control: str = ""
    """A change of the stored logits: `permuted` rows, or the `mean` target of the paper's noise."""
    label_smoothing: float = 0.0
    reference: str = "clean"
    """The arm that it is compared with; empty: none."""
    options: Json | None = None
    """Options of `distil` or `supervised` instead of the cell's loss in the units of its regime."""

    @property
    def family(self) -> tuple[str, str]:
        """Arms with an equal one are tested together: Dunnett's test pools their residuals, and those of labels,
        of a random teacher and of a mean target are not like the others'."""
        return self.reference, "labels" if self.teacher == "labels" else self.control

    @property
    def name(self) -> str:
        """Title and options as the name of a file."""
        words = f"{self.title} {self.options or ''}".lower()
        return re.sub(r"[^a-z0-9.]+", "-", words).strip("-")


@dataclass(frozen=True)
class Cell:
    """A regime and a loss, or `objectives`: each arm has its own."""

    regime: str
    loss: str
    data: str = DATA
    seeds: int = 8
    rows: int = ROWS
    first_seed: int = 5
    """Of the fresh ones. Seeds 0 to 4 have judged settings that one pilot seed chose: they are not fresh any more."""

    @property
    def name(self) -> str:
        """`patient-soft_targets`."""
        return f"{self.regime}-{self.loss}"


CELLS = {
    cell.name: cell
    for regime in ("short", "patient")
    for cell in (Cell(regime, "logit_regression"), Cell(regime, "soft_targets"))
}
INPUT: Json = {"alpha": 1.0, "draw": "row", "kind": "additive", "target": "input"}
EVERY_LOSS = (
    Arm("clean"),
    Arm("noise, sigma 0.9, alpha 0.5, row", PAPER),
    Arm("noise, mean of 3 draws", {**PAPER, "draws": 3}),
    Arm("TeKAP's mix, sigma 0.1, 3 draws", {"sigma": 0.1, "alpha": 1.0, "draw": "row", "kind": "mix", "draws": 3}),
    Arm("mix, sigma 0.5", {"sigma": 0.5, "alpha": 1.0, "draw": "row", "kind": "mix"}),
    Arm("input noise, sigma 0.1", {"sigma": 0.1, **INPUT}),
    Arm("input noise, sigma 0.3", {"sigma": 0.3, **INPUT}),
    Arm("clean, dropout teacher", teacher="dropout", reference=""),
    Arm("fickle teacher, copy per row", None, "copies", "pick-row", reference="clean, dropout teacher"),
)
ARMS: dict[str, tuple[Arm, ...]] = {
    "logit_regression": (
        *EVERY_LOSS,
        Arm("noise, mean of 10 draws", {**PAPER, "draws": 10}),
        Arm("fickle teacher, copy per batch", None, "copies", "pick", reference="clean, dropout teacher"),
        Arm("clean, own teacher", teacher="own", reference=""),
        Arm("teacher of 40 % wrong labels", teacher="corrupted", reference="clean, own teacher"),
        Arm("permuted teacher", control="permuted"),
        Arm("labels alone", teacher="labels"),
        Arm("labels, smoothed by 0.1", teacher="labels", label_smoothing=0.1),
    ),
    "soft_targets": (
        *EVERY_LOSS,
        Arm("noise, its mean target", control="mean"),
        Arm("temperature noise, sigma 0.3", {"sigma": 0.3, "alpha": 1.0, "draw": "scalar"}),
        Arm("sampled teacher", {"sigma": 1.0, "alpha": 1.0, "draw": "row", "kind": "sampled"}),
        Arm("sampled teacher, 10 draws", {"sigma": 1.0, "alpha": 1.0, "draw": "row", "kind": "sampled", "draws": 10}),
    ),
}
"""Loss -> the arms of its cells."""
BUDGETS: dict[str, tuple[Sequence[str], int | None, int | None]] = {
    "quick": (tuple(CELLS)[:1], 2, 2),
    "standard": (tuple(CELLS), None, None),
    "full": (tuple(CELLS), 10, None),
}
"""Budget -> cells, fresh seeds, and epochs where they are not the regime's."""
TITLE = "The paper's noise beside its relatives and controls"
NOTES = (
    "Not in the paper. MNIST, 500 training images, another subset for every seed; a perceptron of two hidden layers of "
    "128, its last weights. short: 40 epochs of Adam, its rate falling linearly. patient: 400 epochs of SGD, its rate "
    "holding for 60 % of the steps. Logits are divided by their root mean square; soft targets at T = 4 of raw logits. "
    "Every arm's rate was chosen on three pilot seeds by validation. Differences have simultaneous intervals "
    "(Dunnett), labels, a random teacher and the mean target apart: fickle teachers against the same teacher without "
    "dropout, one of wrong labels against one of right ones, the others against clean.",
)


def mean_target(
    logits: Tensor, noise: Noise, temperature: float, *, draws: int = 4000, seed: int = 0
) -> tuple[Tensor, float]:
    """Logits `[N, K]` whose softmax at the temperature is E softmax(z' / T) under the noise, selection included.

    By Monte Carlo over `draws` draws of xi; the second number is the largest standard error of a probability. The
    deterministic control of noise on soft targets: its mean, without its variance.
    """
    total = torch.zeros(logits.shape, dtype=torch.float64)
    squares, generated = total.clone(), generator(seed, "mean target")
    for _ in range(draws):
        unit_noise = sample_unit_noise(noise.draw, noise.distribution, len(logits), logits.shape[1], generated)
        noisy = perturb(
            logits, sigma=noise.sigma, alpha=1.0, kind=noise.kind, temperature=temperature,
            unit_noise=unit_noise._replace(chance=torch.zeros_like(unit_noise.chance)),
        )  # fmt: skip
        p = (noisy / temperature).softmax(1).double()
        total, squares = total + p, squares + p.square()
    mean = total / draws
    error = noise.alpha * ((squares / draws - mean.square()).clamp(min=0) / draws).sqrt().max()
    clean = (logits / temperature).softmax(1)
    return (temperature * (clean + noise.alpha * (mean - clean)).log()).float(), float(error)


def permuted(logits: Tensor, seed: int) -> Tensor:
    """A random teacher: the rows of logits `[N, K]` in another order, drawn by the seed."""
    return logits[torch.randperm(len(logits), generator=generator(seed, "permuted teacher"))]


def prepare_teachers(workspace: Workspace, watch: Watch | None) -> None:
    """Train the teachers of TRAINED and store their logits, and the stochastic copies, in the workspace."""
    splits, _ = workspace.load()
    store = partial(extract, split=splits.train, progress=False)
    for number, (name, (options, labels)) in enumerate(TRAINED.items()):
        if watch is not None:
            watch("teachers", number, len(TRAINED), name)
        model, folder = build_model("lenet", splits, **options), workspace.folder / f"teacher-{name}"
        with alone(folder):
            fit(
                model, splits.train, supervised(**labels), val=splits.val, epochs=workspace.epochs or TEACHER_EPOCHS,
                precision="fp32", device="cpu", run=folder, resume=True, progress=False,
            )  # fmt: skip
        store(model, path=workspace.folder / f"logits-{name}")
        for seed in range(COPIES if name == "dropout" else 0):
            store(model, path=workspace.folder / f"logits-copy{seed}", dropout_seed=seed)


def targets_of(workspace: Workspace, arm: Arm, rows: Tensor, seed: int) -> list[Tensor]:
    """The arm's stored logits `[n, K]` for these rows of the training split, of each of its teachers."""
    folders = [f"copy{number}" for number in range(COPIES)] if arm.teacher == "copies" else [arm.teacher]
    names = ["logits" if name == "pretrained" else f"logits-{name}" for name in folders]
    logits = [LogitStore.open(workspace.folder / name).logits("clean", rows) for name in names]
    if arm.control == "mean":
        return [mean_target(logits[0], Noise(**PAPER), TEMPERATURE, seed=seed)[0]]
    return [permuted(logits[0], seed)] if arm.control == "permuted" else logits


def train_relative(workspace: Workspace, cell: Cell, arm: Arm, lr: float, seed: int) -> Json:
    """The student of this arm, rate and seed, judged: `val` and, unless the seed is one of the pilot, `test` (%) and
    `wrong` (the misclassified test images as bits in hexadecimal), `train_error` (%), `diverged`. Read from its file
    where that is done, else resumed; one that another process works on is waited for.
    """
    file = workspace.folder / cell.name / f"seed{seed}" / f"{arm.name}-lr{lr:g}.json"
    return kept(file, KIND, partial(_train_relative, workspace, cell, arm, lr, seed))


def _train_relative(workspace: Workspace, cell: Cell, arm: Arm, lr: float, seed: int, folder: Path) -> Json:
    """The student, judged; its training is kept in the folder."""
    splits, _ = workspace.load()
    assert splits.test is not None
    rows = draw_subset(splits.train, cell.rows, seed)
    train = splits.train.subset(rows)
    student = build_student(STUDENT, splits, seed, 0.0)
    noise = None if arm.noise is None else Noise(**arm.noise)
    objective: Any
    if arm.teacher == "labels":
        objective = supervised(**({"label_smoothing": arm.label_smoothing} | (arm.options or {})))
    elif arm.options is not None:
        objective = distil(targets_of(workspace, arm, rows, seed)[0], noise=noise, loss_weight="auto", **arm.options)
    else:
        targets = targets_of(workspace, arm, rows, seed)  # the mean target's own size would be another
        sizes = targets_of(workspace, replace(arm, control=""), rows, seed) if arm.control else targets
        unit = float(torch.stack(sizes).square().mean().sqrt())
        source = [logits / unit for logits in targets]
        temperature: Json = {"temperature": TEMPERATURE / unit} if cell.loss == "soft_targets" else {}
        teacher = source if arm.combine != "mean" else source[0]
        objective = distil(teacher, noise=noise, loss=cell.loss, combine=arm.combine, **temperature)
    recipe = REGIMES[cell.regime] | ({"epochs": workspace.epochs} if workspace.epochs else {})
    diverged = False
    try:
        fit(
            student, train, objective, seed=seed, lr=lr, precision="fp32", device="cpu", run=folder, resume=True,
            progress=False, **recipe,
        )  # fmt: skip
    except TrainingError:
        diverged = True
    judged = None if diverged else student
    record: Json = {"arm": asdict(arm), "lr": lr, "seed": seed, "diverged": diverged}
    record |= {name: errors_of(judged, split)[0] for name, split in (("train_error", train), ("val", splits.val))}
    if seed not in PILOT_SEEDS:
        record["test"], record["wrong"] = errors_of(judged, splits.test)
    return record


def run_cell(workspace: Workspace, cell: Cell, jobs: int, watch: Watch | None) -> Json:
    """Teachers, pilot, and judgement of a cell: the record that is also in `CELL.json` of the workspace.

    Trainings that are done are read. An interrupted call, made again, continues.
    """
    prepare_teachers(workspace, watch)
    trials = {arm.title: [(arm, lr) for lr in RATES[cell.name]] for arm in ARMS[cell.loss]}
    record = choose_and_judge(workspace, cell, trials, jobs, watch)
    write_json(workspace.folder / f"{cell.name}.json", "relatives", SCHEMA, record)
    return record


def choose_and_judge(
    workspace: Workspace, cell: Cell, trials: Mapping[str, Sequence[tuple[Arm, float]]], jobs: int, watch: Watch | None
) -> Json:
    """The record of a cell. trials: by title, the arms and rates of which the pilot's validation chooses.

    All are trained with the first pilot seed, the FINALISTS best of each title with all of PILOT_SEEDS; the lowest mean
    error is chosen.
    """

    def train(trials: Mapping[str, Sequence[tuple[Arm, float]]], seeds: Sequence[int], stage: str) -> list[Json]:
        tasks = [(workspace, cell, *trial, seed) for tried in trials.values() for trial in tried for seed in seeds]
        return run_in_workers(train_relative, tasks, jobs, 1, f"{cell.name}, {stage}", watch)

    pilot, errors = list[Json](), dict[tuple[str, float], list[float]]()
    for seeds, stage in ((PILOT_SEEDS[:1], "choosing"), (PILOT_SEEDS[1:], "repeating the best")):
        rows = train(trials, seeds, stage)
        for row in rows:
            errors.setdefault((Arm(**row["arm"]).name, row["lr"]), []).append(row["val"])
        pilot += rows
        ranked = {
            title: sorted(tried, key=lambda trial: fmean(errors[trial[0].name, trial[1]]))
            for title, tried in trials.items()
        }
        trials = {title: tried[:FINALISTS] for title, tried in ranked.items()}
    fresh = range(cell.first_seed, cell.first_seed + cell.seeds)
    trained = train({title: tried[:1] for title, tried in trials.items()}, fresh, "judging")
    return judge_cell(cell, fresh, trained) | {
        "pilot": [
            {"arm": row["arm"]["title"], "lr": row["lr"], "seed": row["seed"], "val_%": row["val"]}
            | ({"options": row["arm"]["options"]} if row["arm"].get("options") else {})
            for row in pilot
        ]
    }


def judge_cell(cell: Cell, seeds: Sequence[int], trained: Sequence[Json]) -> Json:
    """Errors of every arm over the seeds, and its difference to its reference (Dunnett, per family).

    An arm of which a training diverged is counted, and not compared: its errors would widen the others' intervals.
    """
    by_title: dict[str, list[Json]] = {}
    for row in trained:
        by_title.setdefault(row["arm"]["title"], []).append(row)
    counts = {title: sum(row["diverged"] for row in rows) for title, rows in by_title.items()}
    diverged = {title: count for title, count in counts.items() if count}
    by_title = {title: rows for title, rows in by_title.items() if title not in diverged}
    arms: dict[str, Json] = {
        title: {
            "settings": {key: value for key, value in rows[0]["arm"].items() if key != "title"} | {"lr": rows[0]["lr"]},
            "test_error_%": {"last": [row["test"] for row in rows]},
            "mean_%": fmean(row["test"] for row in rows),
            "train_error_%": fmean(row["train_error"] for row in rows),
        }
        for title, rows in by_title.items()
    }
    differences = dict[str, Json]()
    errors = {title: arm["test_error_%"]["last"] for title, arm in arms.items()}
    families = {title: Arm(**rows[0]["arm"]).family for title, rows in by_title.items()}
    for reference, kind in dict.fromkeys(family for family in families.values() if family[0]):
        titles = [title for title in arms if families[title] == (reference, kind) and title != reference]
        if not titles or reference not in errors:
            continue
        tests = dunnett(errors[reference], [errors[title] for title in titles])
        records = ({**difference_record(test), "reference": reference} for test in tests)
        differences |= dict(zip(titles, records, strict=True))
    return {
        "cell": {**asdict(cell), "name": cell.name},
        "seeds": list(seeds),
        "diverged": diverged,
        "arms": arms,
        "contrasts": {},
        "against_reference": differences,
    }
