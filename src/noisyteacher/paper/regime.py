"""Where the noise helps: clean and noisy students after long trainings, each with settings chosen for it.

A cell is a data set, the size of its training subset, a student, an optimizer and a loss. On a pilot seed clean and
noisy students have the same number of trials; the best are repeated with two more pilot seeds, the best of these also
with less and with more weight decay, and the lowest mean validation error chooses. Then fresh seeds, each with a fresh
subset, train the chosen settings and their controls; each student is judged once on test, with its last weights and
with those of its best epoch on validation (early stopping). A rate at which a training of clean students diverges, be
it of the pilot or of a fresh seed, is left out for clean students, and they are chosen anew among the other rates;
noisy students likewise, and with them the clean one at their rate. Another noise or dropout that diverges is not
compared.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from noisyteacher.config.schema import HOLD, Loss, TrainSettings
from noisyteacher.data import Split, Splits, load_data
from noisyteacher.errors import TrainingError
from noisyteacher.evaluate import predict
from noisyteacher.extract import extract
from noisyteacher.io.files import Json, lock, make_folder, read_json, write_json
from noisyteacher.models import Classifier, build_model, load_model
from noisyteacher.noise import Noise
from noisyteacher.objectives import distil
from noisyteacher.pipeline.noise_choice import PILOT_SEED
from noisyteacher.process import run_in_workers
from noisyteacher.progress import Watch
from noisyteacher.rng import generator, seeded
from noisyteacher.stats import PairedDifference, crossed_difference, dunnett
from noisyteacher.store import LogitStore
from noisyteacher.train import fit
from noisyteacher.train.curvature import ROWS, gauss_newton_trace
from noisyteacher.train.history import Tick
from noisyteacher.train.state import noise_clock

KIND, SCHEMA = "regime-training", 2
WATCHED = 2000
"""At most this many validation images are evaluated after an epoch; settings are chosen on all of them."""
TRACES = 8
"""How often in a training the trace is computed, at epochs that are evenly spaced in their logarithm."""
TEACHERS = {"mnist": "pretrained:lenet-mnist", "cifar10": "pretrained:nin-cifar10"}
TUNING = {
    "sgd": ((0.03, 0.06, 0.12), (0.0, 2e-3, 1e-2, 3e-2)),
    "sgd-soft": ((0.3, 0.6, 1.2), (0.0, 2e-4, 1e-3, 3e-3)),
    "sgd-student3": ((0.002, 0.004, 0.008), (0.0, 1e-2, 3e-2, 0.1)),
    "adam": ((3e-4, 1e-3, 3e-3), (0.0, 0.05, 0.2, 0.6)),
}
"""Optimizer, with the loss or student that needs other rates -> learning rates and weight decays that are tried, each
with each. Decay is decoupled and not on biases: a step multiplies weights by 1 - rate * decay."""
BETWEEN = 5**0.5
"""The best weight decay is also divided and multiplied by this: half way, in logarithms, to one that was tried."""
FINALISTS, PILOT_SEEDS = 3, range(PILOT_SEED, PILOT_SEED + 3)
"""So many of the best trials of the first pilot seed, for each of CHOICES, are repeated with all of them."""
CHOICES = {"decay chosen": ("last", True), "for early stopping": ("best", True), "no decay": ("last", False)}
"""What is chosen, for clean and for noisy students -> by which weights' error, and whether with weight decay."""
HALVING = (0.02, 0.1)
"""Q = 1/B sum of rate^2 alpha sigma^2 mean(z^2) at which fresh noise halved the trace in trials with perceptrons."""
GENTLE = {"sigma": 0.3, "alpha": 1.0, "draw": "row", "until": 0.6}
STRONG = {"sigma": 0.9, "alpha": 0.5, "draw": "row", "until": 0.6}
VARIANTS: dict[str, Json] = {
    "sigma 0.3, alpha 1": GENTLE,
    "sigma 0.9, alpha 0.5": STRONG,
    "sigma 0.9, alpha 1": {**STRONG, "alpha": 1.0},
    "sigma 0.9, to the end": {**STRONG, "until": 1.0},
    "sigma 0.9, one xi per batch": {**STRONG, "draw": "batch"},
    "additive of equal size": {**STRONG, "kind": "additive"},
}
"""Noises that are judged beside the chosen one, at its rate and without weight decay.
Logits have a mean square of 1, so that additive noise of the same sigma has the same variance on average."""
DROPOUTS = (0.1, 0.3)
KINDS = ("clean", "noisy")
SAME_RATE = "clean, no decay, at the noisy rate"


@dataclass(frozen=True)
class Cell:
    """A comparison of clean and noisy students."""

    data: str
    rows: int
    student: str
    optimizer: str = "sgd"
    loss: Loss = "logit_regression"
    temperature: float | None = None
    epochs: int = 300
    batch: int = 32
    seeds: int = 8
    variants: bool = False
    """Whether all noises and dropouts are judged, not only the chosen settings."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the training, for clean and noisy students alike; students are judged in fp32."""

    @property
    def tuning(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Learning rates and weight decays to try; two of each where one training takes a quarter of an hour."""
        kind = "soft" if self.loss == "soft_targets" else self.student
        rates, decays = TUNING.get(f"{self.optimizer}-{kind}", TUNING[self.optimizer])
        return (rates, decays) if self.rows <= 5000 else (rates[1:], decays[:2])

    @property
    def name(self) -> str:
        """`mnist-1000-mlp128-sgd`; a loss other than logit regression is named at the end."""
        loss = "" if self.loss == "logit_regression" else f"-soft{self.temperature:g}"
        return f"{self.data}-{self.rows}-{self.student}-{self.optimizer}{loss}"


@dataclass(frozen=True)
class Arm:
    """How a student of a cell is trained."""

    title: str
    lr: float
    weight_decay: float = 0.0
    noise: Json | None = None
    dropout: float = 0.0

    @property
    def kind(self) -> str:
        """`clean` or `noisy`: whose rate it has."""
        return "noisy" if self.noise or self.title == SAME_RATE else "clean"

    @property
    def is_control(self) -> bool:
        """Whether it is judged at a rate that was chosen for another: if it diverges, that rate stays."""
        return self.title in VARIANTS or self.dropout > 0

    @property
    def name(self) -> str:
        """The settings as the name of a file."""
        words = [f"lr{self.lr:g}", f"wd{self.weight_decay:g}", *([f"drop{self.dropout:g}"] if self.dropout else [])]
        return "-".join([*words, *(f"{key}{value}" for key, value in (self.noise or {}).items())])


OPTIMIZERS = ("sgd", "adam")
FEW_ROWS = tuple(product((500, 1000), OPTIMIZERS))
CELLS = {
    cell.name: cell
    for cell in (
        *(Cell("mnist", rows, "mlp128", optimizer, epochs=400, variants=True) for rows, optimizer in FEW_ROWS),
        *(Cell("mnist", 1000, "mlp128", "sgd", "soft_targets", t, 400, variants=True) for t in (1.0, 4.0)),
        *(Cell("mnist", rows, "mlp800", optimizer, epochs=400) for rows, optimizer in FEW_ROWS),
        *(Cell("mnist", 5000, *pair, batch=64) for pair in product(("mlp128", "mlp800"), OPTIMIZERS)),
        *(Cell("cifar10", 1000, "student3", optimizer, precision="bf16") for optimizer in OPTIMIZERS),
        *(Cell("cifar10", 5000, "student3", optimizer, batch=64, precision="bf16") for optimizer in OPTIMIZERS),
        Cell("mnist", 50_000, "mlp800", epochs=100, batch=128, seeds=3),
        Cell("cifar10", 45_000, "student3", "adam", epochs=60, batch=128, seeds=3, precision="bf16"),
    )
}
SMALL = ("mnist-1000-mlp128-sgd", "mnist-500-mlp128-sgd", "mnist-1000-mlp128-adam", "mnist-1000-mlp800-sgd")
BUDGETS: dict[str, tuple[Sequence[str], int | None, int | None]] = {
    "quick": (SMALL[:1], 2, 3),
    "standard": (SMALL, None, None),
    "full": (tuple(CELLS), None, None),
}
"""Budget -> cells, fresh seeds and epochs where they are not the cell's."""
TITLE = "Where the noise helps: clean and noisy students after long trainings"
NOTES = (
    "Not in the paper. Logits in units of their root mean square, a rate that holds for 60 % of the steps "
    "and then falls linearly to 0. Settings were chosen on pilot seeds by validation, with as many trials for noisy "
    "as for clean students; every seed has a training subset of its own. Errors are those of the last weights. "
    "Differences to 'clean, no decay' have simultaneous intervals (Dunnett).",
)


@dataclass(frozen=True)
class Workspace:
    """Where the trainings of a study read and write: what a worker process needs to know."""

    folder: Path
    data: Json
    """Settings of the data, as in the part `data` of a Config."""
    teacher: str
    epochs: int | None = None
    """Instead of the cell's, to try things out."""

    def load(self) -> tuple[Splits, LogitStore]:
        """The data, and the teacher's logits for all training images."""
        return _load(json.dumps(self.data, sort_keys=True), self.teacher, self.folder)


@dataclass(frozen=True)
class Trained:
    """A student's errors (%) on validation and test, with its last weights and with those of its best epoch.

    One that diverged has none, one of the pilot none on test.
    """

    arm: Arm
    seed: int
    val: dict[str, float]
    test: dict[str, float]
    wrong: dict[str, str]
    """Which test images are misclassified, as bits in hexadecimal, by weights."""
    clean_loss: float
    """The loss on the training images without noise, with the last weights."""
    clock: float
    """Q = 1/B sum of rate^2 alpha sigma^2 mean(z^2) over the steps."""
    images: int | None = None
    """Test images; None: as many as there are bits."""
    curve: dict[str, list[float]] = field(default_factory=dict)
    """By epoch `step`, `val_error` and `clean_loss` (of the steps); at a few epochs `trace_step` and `trace`."""
    diverged: bool = False

    def misses(self, weights: str) -> NDArray[np.bool_]:
        """Which test images are misclassified, bool `[N]`."""
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(self.wrong[weights]), dtype=np.uint8))
        return bits[: self.images].astype(bool)


def build_student(name: str, data: Splits, seed: int, dropout: float) -> Classifier:
    """A student: a network of the package, but `mlp128` with weights drawn layer by layer.

    `build_model("mlp128")` draws others: with these the results in docs/results can be repeated.
    """
    if name != "mlp128":
        return build_model(name, data, seed=seed, dropout=dropout)
    width = math.prod(data.input_shape)
    layers: list[nn.Module] = [nn.Flatten()]
    with seeded(seed, "init", name):
        for outputs in (128, 128, data.classes):
            linear = nn.Linear(width, outputs)
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.ReLU(), nn.Dropout(dropout)]
            width = outputs
    return build_model(nn.Sequential(*layers[:-2]), data, preprocess=data.preprocess)


def draw_subset(split: Split, rows: int, seed: int) -> Tensor:
    """Row numbers of a subset with every class in proportion, another for every seed; at most all rows."""
    if rows >= len(split):
        return torch.arange(len(split))
    order = torch.randperm(len(split), generator=generator(seed, "subset"))
    labels, ranks = split.labels_at(order), torch.empty(len(order), dtype=torch.float64)
    for number in range(split.classes):  # a row's rank in its class, as a share of the class
        of_class = labels == number
        ranks[of_class] = torch.linspace(0, 1, int(of_class.sum()), dtype=torch.float64)
    return order[torch.argsort(ranks, stable=True)[:rows]].sort().values


@cache
def _load(data: str, teacher: str, folder: Path) -> tuple[Splits, LogitStore]:
    settings = json.loads(data)
    splits = load_data(settings.pop("name"), **settings)
    store = extract(load_model(teacher), splits.train, folder / "logits", progress=False)
    return splits, store


def errors_of(student: nn.Module | None, split: Split) -> tuple[float, str]:
    """A student's error (%) on the split, and the misclassified images as bits in hexadecimal.

    None: a student whose training diverged, which answers with the first class.
    """
    misses = split.labels_at(torch.arange(len(split)))
    if student is not None:
        misses = predict(student, split, progress=False, device="cpu").argmax(1) - misses
    return 100 * int(misses.count_nonzero()) / len(split), np.packbits(misses.numpy() != 0).tobytes().hex()


def recipe_of(cell: Cell, arm: Arm, epochs: int) -> Json:
    """The options of `fit`."""
    decay = {"weight_decay": arm.weight_decay, "decay_biases": False} if arm.weight_decay else {}
    optimizer = "adamw" if cell.optimizer == "adam" else cell.optimizer  # the same without decay
    momentum = {"momentum": 0.0} if optimizer == "sgd" else {}
    return {
        "epochs": epochs, "batch_size": cell.batch, "optimizer": optimizer, "lr": arm.lr, "schedule": "hold",
        "hold": HOLD, "keep": "last", "precision": cell.precision, "device": "cpu", **decay, **momentum,
    }  # fmt: skip


def clock_of(arm: Arm, steps: int, batch: int) -> float:
    """Q of a training of this many steps, for logits whose mean square is 1."""
    if arm.noise is None:
        return 0.0
    recipe = TrainSettings(
        epochs=1, batch_size=batch, lr=arm.lr, schedule="hold", hold=HOLD, optimizer="sgd", momentum=0
    )
    return noise_clock(recipe, Noise(**arm.noise), steps, 1.0) or 0.0


def predicted_halving(cell: Cell, arm: Arm) -> list[float] | None:
    """Between how many steps the noise should halve the trace, at a rate that holds: Q = HALVING.

    None for Adam and for soft targets. Source: Damian, Ma & Lee 2021, for the form of Q; its two values are measured.
    """
    if arm.noise is None or cell.optimizer != "sgd" or cell.loss != "logit_regression":
        return None
    return [clock / clock_of(arm, 1, cell.batch) for clock in HALVING]


def measured_halving(clean: Mapping[str, list[float]], noisy: Mapping[str, list[float]]) -> float | None:
    """The steps after which the noisy student's trace is half of the clean one's, from two curves of equal steps.

    Interpolated between the logarithms of steps and traces; None where that is never so.
    """
    steps, ratio = np.log(clean["trace_step"]), np.log(noisy["trace"]) - np.log(clean["trace"])
    for number, log_ratio in enumerate(ratio):
        if log_ratio <= math.log(0.5):
            if not number:
                return clean["trace_step"][0]
            share = (ratio[number - 1] - math.log(0.5)) / (ratio[number - 1] - log_ratio)
            return float(np.exp(steps[number - 1] + share * (steps[number] - steps[number - 1])))
    return None


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Inside, no other process works on what becomes of this path; one that does is waited for.

    The lock is that of an empty folder beside it, which stays: a run folder is removed when its training is done.
    """
    folder = path.with_name(f"{path.name}.lock")
    make_folder(folder)
    with lock(folder):
        yield


def kept(file: Path, kind: str, train: Callable[[Path], Json]) -> Json:
    """The record of a training: read from its file, or what `train(folder)` returns, which is then kept there.

    The folder, beside the file, holds the training until it is done. One that another process works on is waited for.
    """
    if not file.exists():
        with alone(file):
            if not file.exists():
                folder = file.with_suffix("")
                write_json(file, kind, SCHEMA, {"trained": train(folder)})
                shutil.rmtree(folder, ignore_errors=True)
    return dict(read_json(file, kind, SCHEMA)["trained"])


def train_arm(workspace: Workspace, cell: Cell, arm: Arm, seed: int) -> Trained:
    """The student of this arm and seed, judged; read from its file where that is done, resumed from its checkpoint.

    One that another process works on is waited for.
    """
    file = workspace.folder / cell.name / f"seed{seed}" / f"{arm.name}.json"
    record = kept(file, KIND, lambda folder: asdict(_train_arm(workspace, cell, arm, seed, folder)))
    return Trained(**{**record, "arm": Arm(**record["arm"])})


def _train_arm(workspace: Workspace, cell: Cell, arm: Arm, seed: int, folder: Path) -> Trained:
    """The student, judged; its training is kept in the folder."""
    splits, store = workspace.load()
    assert splits.test is not None
    rows = draw_subset(splits.train, cell.rows, seed)
    train, logits = splits.train.subset(rows), store.logits("clean", rows)
    student = build_student(cell.student, splits, seed, arm.dropout)
    noise = None if arm.noise is None else Noise(**arm.noise)
    objective = distil(logits, noise=noise, loss=cell.loss, temperature=cell.temperature, scale="rms")
    clean = replace(objective, noise=None).prepared(train, ("clean",))
    epochs = workspace.epochs or cell.epochs
    trace_file, traces = folder / "traces.json", dict[str, float]()
    if trace_file.exists():
        traces = read_json(trace_file, KIND, SCHEMA)["traces"]
    traced = train.images_at(torch.randperm(len(train), generator=generator(0, "trace"))[:ROWS])
    marks = {round(epochs ** (number / (TRACES - 1))) for number in range(TRACES)}

    def on_step(tick: Tick) -> None:
        epoch, within = divmod(tick.step, tick.total_steps // tick.epochs)
        if not within and epoch in marks:
            traces[str(tick.step)] = gauss_newton_trace(student, traced, unit=clean.unit).plain
            write_json(trace_file, KIND, SCHEMA, {"traces": traces})

    recipe, watched = recipe_of(cell, arm, epochs), splits.val.take(min(WATCHED, len(splits.val)))
    try:
        history = fit(
            student, train, objective, val=watched, seed=seed, run=folder, resume=True, progress=on_step, **recipe
        )
    except TrainingError:
        return Trained(arm, seed, {}, {}, {}, 0.0, 0.0, diverged=True)
    val, test, wrong = dict[str, float](), dict[str, float](), dict[str, str]()
    for weights, state in (("best", history.best), ("last", history.last)):
        student.load_state_dict(state)
        val[weights], _ = errors_of(student, splits.val)
        if seed not in PILOT_SEEDS:
            test[weights], wrong[weights] = errors_of(student, splits.test)
    last = predict(student, train, progress=False, device="cpu")
    loss, _ = clean.loss(last, {"teacher": logits / clean.unit})
    curve: dict[str, list[float]] = {"trace_step": [float(step) for step in traces], "trace": list(traces.values())}
    for name, key in (("step", "step"), ("val_error", "val/error")):
        curve[name] = [line[key] for line in history.epochs]
    curve["clean_loss"] = [line.get("train/clean_loss", line["train/loss"]) for line in history.epochs]
    curve = {key: [float(f"{number:.5g}") for number in column] for key, column in curve.items()}
    clock = clock_of(arm, history.epochs[-1]["step"], cell.batch)
    return Trained(arm, seed, val, test, wrong, float(loss), clock, len(splits.test), curve)


def trials(cell: Cell) -> tuple[list[Arm], list[Arm]]:
    """The pilot's first trials, clean and noisy: every rate with every weight decay, the noise being STRONG."""
    rates, decays = cell.tuning
    pairs = [(rate, decay) for rate in rates for decay in decays]
    return [Arm("clean", *pair) for pair in pairs], [Arm("noisy", *pair, STRONG) for pair in pairs]


def best_trials(pilot: Sequence[Trained], kind: str, weights: str = "last", decay: bool = True) -> list[Arm]:
    """The arms of a kind by their mean validation error, lowest first: those with the most seeds of the pilot.

    decay: False takes those without weight decay alone.
    """
    arms, errors = dict[str, Arm](), dict[str, list[float]]()
    for row in pilot:
        if row.arm.title == kind and (decay or not row.arm.weight_decay):
            arms[row.arm.name] = row.arm
            errors.setdefault(row.arm.name, []).append(row.val[weights])
    most = max(map(len, errors.values()))
    names = [name for name, values in errors.items() if len(values) == most]
    return [arms[name] for name in sorted(names, key=lambda name: fmean(errors[name]))]


def refined_trials(cell: Cell, pilot: Sequence[Trained]) -> list[Arm]:
    """Two more trials of clean and two of noisy students: the best ones so far, with less and with more weight decay.

    Noise may do what a little more weight decay does: without these a gain could be that of a decay between two trials.
    """
    arms = []
    for best in (best_trials(pilot, kind)[0] for kind in KINDS):
        decay = best.weight_decay or cell.tuning[1][1] / BETWEEN**2
        arms += [replace(best, weight_decay=float(f"{decay * factor:.2g}")) for factor in (1 / BETWEEN, BETWEEN)]
    return arms


def finalists(pilot: Sequence[Trained]) -> list[Arm]:
    """The best trials for each choice, each once."""
    ranked = [best_trials(pilot, kind, *choice)[:FINALISTS] for kind in KINDS for choice in CHOICES.values()]
    return list({arm.name: arm for arms in ranked for arm in arms}.values())


def choose_arms(cell: Cell, pilot: Sequence[Trained]) -> list[Arm]:
    """What fresh seeds train: the best clean and noisy arms on validation, for each choice; then controls."""
    arms = [
        replace(best_trials(pilot, kind, *how)[0], title=f"{kind}, {choice}")
        for choice, how in CHOICES.items()
        for kind in KINDS
    ]
    clean, noisy = arms[-2:]
    arms.append(replace(noisy, title=SAME_RATE, noise=None))
    if not cell.variants:
        return arms
    arms += [replace(noisy, title=title, noise=noise) for title, noise in VARIANTS.items()]
    return [*arms, *(replace(clean, title=f"clean, dropout {share:g}", dropout=share) for share in DROPOUTS)]


class UnstableRatesError(Exception):
    """Some trainings diverged."""

    def __init__(self, rates: set[tuple[str, float]]) -> None:
        self.rates = rates
        """The kinds of arms and the rates at which they did."""


def run_cell(workspace: Workspace, cell: Cell, jobs: int, watch: Watch | None) -> Json:
    """Pilot, choice and judgement of a cell: the record that is also in `CELL.json` of the workspace.

    Trainings that are done are read. An interrupted call, made again, continues. Raises TrainingError where clean or
    noisy students diverge at every rate.
    """

    def train(arms: Sequence[Arm], seeds: Sequence[int], stage: str) -> list[list[Trained]]:
        """Of each arm the students of all seeds."""
        distinct = {(arm.name, seed): arm for arm in arms for seed in seeds}  # a control may be what was chosen
        calls = [(workspace, cell, arm, seed) for (_, seed), arm in distinct.items()]
        results = run_in_workers(train_arm, calls, jobs, 1, f"{cell.name}, {stage}", watch)
        by_key = dict(zip(distinct, results, strict=True))
        rows = [[by_key[arm.name, seed] for seed in seeds] for arm in arms]
        diverged = [arm for arm, of_arm in zip(arms, rows, strict=True) if any(row.diverged for row in of_arm)]
        if unstable := {(arm.kind, arm.lr) for arm in diverged if not arm.is_control}:
            raise UnstableRatesError(unstable)
        return rows

    def pilot_of(arms: Sequence[Arm], seeds: Sequence[int], stage: str) -> list[Trained]:
        return [row for of_arm in train(arms, seeds, stage) for row in of_arm]

    left_out = set[tuple[str, float]]()
    while True:
        clean, noisy = ([arm for arm in of_kind if (arm.kind, arm.lr) not in left_out] for of_kind in trials(cell))
        if not clean or not noisy:
            rates = ", ".join(f"{rate:g}" for rate in cell.tuning[0])
            raise TrainingError(
                f"{cell.name}: students with settings of {'noisy' if clean else 'clean'} ones diverged at every rate "
                f"({rates}); the study needs one at which none does"
            )
        try:
            pilot = pilot_of([*clean, *noisy], PILOT_SEEDS[:1], "choosing")
            pilot += pilot_of(finalists(pilot), PILOT_SEEDS[1:], "repeating the best")
            pilot += pilot_of(refined_trials(cell, pilot), PILOT_SEEDS, "choosing the weight decay")
            arms = choose_arms(cell, pilot)
            rows = train(arms, range(cell.seeds), "judging")
            break
        except UnstableRatesError as unstable:
            left_out |= unstable.rates
    by_title = {arm.title: of_arm for arm, of_arm in zip(arms, rows, strict=True)}
    record = judge_cell(cell, by_title, pilot, left_out)
    write_json(workspace.folder / f"{cell.name}.json", "regime", SCHEMA, record)
    return record


CONTRASTS = {
    "each at its best, last weights": ("clean, decay chosen", "noisy, decay chosen", "last"),
    "each at its best, early stopping": ("clean, for early stopping", "noisy, for early stopping", "best"),
    "without weight decay, last weights": ("clean, no decay", "noisy, no decay", "last"),
    "without weight decay, at one rate": (SAME_RATE, "noisy, no decay", "last"),
    "noise in place of weight decay": ("clean, decay chosen", "noisy, no decay", "last"),
}
"""Question -> the arm that is the reference, the other, and which weights are judged."""


def judge_cell(
    cell: Cell, by_title: Mapping[str, Sequence[Trained]], pilot: Sequence[Trained], left_out: Set[tuple[str, float]]
) -> Json:
    """Errors of every arm, the contrasts over seeds x images, and all noises against clean by Dunnett's test.

    left_out: the kinds of arms and the rates at which a training of them diverged. Controls that diverged are counted.
    """
    seeds = [row.seed for row in next(iter(by_title.values()))]
    diverged = {title: sum(row.diverged for row in rows) for title, rows in by_title.items()}
    by_title = {title: rows for title, rows in by_title.items() if not diverged[title]}
    arms = {}
    for title, rows in by_title.items():
        errors = {weights: [row.test[weights] for row in rows] for weights in ("last", "best")}
        arms[title] = {
            "settings": {key: setting for key, setting in asdict(rows[0].arm).items() if key != "title"},
            "test_error_%": errors,
            "mean_%": {weights: fmean(values) for weights, values in errors.items()},
            "clean_loss": fmean([row.clean_loss for row in rows]),
            "trace": fmean([row.curve["trace"][-1] for row in rows]),
            "clock": fmean([row.clock for row in rows]),
            "steps": rows[0].curve["step"][-1],
        }
    contrasts = {}
    for question, (reference, other, weights) in CONTRASTS.items():
        tables = [np.stack([row.misses(weights) for row in by_title[title]]) for title in (reference, other)]
        contrasts[question] = difference_record(crossed_difference(*tables))
    control = [row.test["last"] for row in by_title["clean, no decay"]]
    compared = {title: rows for title, rows in by_title.items() if title in VARIANTS or "dropout" in title}
    tests = dunnett(control, [[row.test["last"] for row in rows] for rows in compared.values()]) if compared else []
    noisy = by_title["noisy, no decay"][0].arm
    curves = {title: _mean_curve(by_title[title]) for title in (SAME_RATE, "noisy, no decay")}
    return {
        "cell": {**asdict(cell), "name": cell.name},
        "seeds": seeds,
        "left_out": {kind: sorted(rate for of_kind, rate in left_out if of_kind == kind) for kind in KINDS},
        "diverged": {title: count for title, count in diverged.items() if count},
        "arms": arms,
        "contrasts": contrasts,
        "against_clean_no_decay": {title: difference_record(test) for title, test in zip(compared, tests, strict=True)},
        "curves": curves,
        "halving_steps": {"predicted": predicted_halving(cell, noisy), "measured": measured_halving(*curves.values())},
        "pilot": [
            {
                "arm": row.arm.name,
                "kind": row.arm.title,
                "seed": row.seed,
                "val_%": row.val,
                "clean_loss": row.clean_loss,
            }
            for row in pilot
        ],
    }


def difference_record(difference: PairedDifference) -> Json:
    """A difference as the record of a cell has it."""
    return {key: getattr(difference, key) for key in ("mean", "low", "high", "p", "n", "comparisons", "detectable")}


def _mean_curve(rows: Sequence[Trained]) -> dict[str, list[float]]:
    """The mean of the curves over seeds, at about fifty epochs that are evenly spaced in their logarithm."""
    columns = {key: np.mean([row.curve[key] for row in rows], axis=0) for key in ("step", "val_error", "clean_loss")}
    traces = [dict(zip(row.curve["trace_step"], row.curve["trace"], strict=True)) for row in rows]
    steps = [step for step in traces[0] if all(step in trace for trace in traces)]
    epochs = len(columns["step"])
    picks = sorted({min(epochs - 1, round(epochs ** (number / 49)) - 1) for number in range(50)})
    curve = {key: [float(column[pick]) for pick in picks] for key, column in columns.items()}
    curve |= {"trace_step": steps, "trace": [fmean([trace[step] for trace in traces]) for step in steps]}
    return {key: [float(f"{number:.5g}") for number in column] for key, column in curve.items()}
