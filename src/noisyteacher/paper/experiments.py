"""The paper's experiments as grids: networks, data, alpha and noise as the paper states them, the rest chosen by us.

The paper leaves the learning rate, its schedule and the length of training open. Ours: Adam at 1e-3 falling linearly to
0, batch 64, the weights of the epoch with the lowest validation error; on MNIST 20 epochs for the teacher and 10 for
students; on CIFAR-10 30 and 15 epochs of 90,000 images (each of 45,000 and its mirror image); on SVHN 5 and 3.
xi is drawn per batch, Algorithm 1 read literally, and per row beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypedDict

from noisyteacher.io.files import Json
from noisyteacher.sweep.spec import Grid
from noisyteacher.text import unknown_name

TENTHS = tuple(number / 10 for number in range(1, 11))
DRAWS = ("batch", "row")
STUDENTS = ("student1", "student2", "student3")
SAME = {"fig3": "table6"}
"""Experiments that look at the runs of another experiment: Figure 3 is Table 6 with every sigma."""


@dataclass(frozen=True)
class Budget:
    """How much of an experiment is run."""

    name: str
    seeds: int
    sigmas: tuple[float, ...]
    alphas: tuple[float, ...]
    dropouts: tuple[float, ...]
    sides: tuple[float, ...]
    """Sigmas of the noise on the student's logits beside Tables 1 and 2, which the paper does not have."""
    length: float
    """What every number of epochs is multiplied by."""
    control: int = 1
    """How many times as many seeds the clean student has, where students are cheap: about the root of the number of
    noises."""
    limit: int | None = None
    """At most this many images of each split."""

    def epochs(self, full: int) -> int:
        """The number of epochs in this budget."""
        return max(1, round(full * self.length))


BUDGETS = {
    "quick": Budget("quick", 2, (0.3, 0.9), (0.5, 1.0), (0.2, 0.5), (0.9,), 0.1, limit=1000),
    "standard": Budget(
        "standard", 3, (0.1, 0.3, 0.6, 0.9), (0.1, 0.5, 1.0), (0.1, 0.3, 0.5, 0.7, 0.9), (0.3, 0.9), 0.5, 2
    ),
    "full": Budget("full", 5, TENTHS, TENTHS, TENTHS[:-1], (0.3, 0.9), 1.0, 4),
}
"""`quick` shows in minutes that all of it runs; `standard` is half as long with fewer settings; `full` is all of it."""


@dataclass(frozen=True)
class Part:
    """One sweep of an experiment: settings, grids over them, and the curve of the paper beside them."""

    name: str
    title: str
    base: Json
    grids: tuple[Grid, ...]
    curve: str | None = None
    """The id of the paper's curve (reference.json) that this part repeats."""
    scaled: bool = False
    """Sigmas of additive noise are meant in units of the teacher's logits: multiplied by their root mean square."""
    control: int = 1
    """How many times as many seeds its clean student has as each noise."""
    changed: tuple[str, ...] = ()
    """Settings that the paper states and the user changed: its numbers do not belong beside this part's."""


@dataclass(frozen=True)
class Experiment:
    """A table, figure or section of the paper."""

    name: str
    title: str
    parts: Callable[[Budget], list[Part]]
    notes: tuple[str, ...] = ()


class DataSet(TypedDict):
    """What the paper uses on a data set: networks with their epochs, alpha, how it enlarges the training images."""

    teacher: tuple[str, int]
    student: tuple[str, int]
    alpha: float
    recipe: Json


MIRRORED: Json = {"views": ["clean", "mirror"], "every_view": True}
SETS: dict[str, DataSet] = {
    "mnist": {"teacher": ("lenet", 20), "student": ("mlp800", 10), "alpha": 0.15, "recipe": {}},
    "svhn": {"teacher": ("nin", 5), "student": ("lenet-svhn", 3), "alpha": 0.15, "recipe": {}},
    "cifar10": {"teacher": ("nin", 30), "student": ("lenet-cifar", 15), "alpha": 0.5, "recipe": MIRRORED},
}


def settings(data: str, budget: Budget, *, teacher: str | None = None, student: str | None = None) -> Json:
    """The base settings of an experiment on these data."""
    paper = SETS[data]

    def recipe(network: tuple[str, int], name: str | None) -> Json:
        return {"preset": "paper", "name": name or network[0], "epochs": budget.epochs(network[1]), **paper["recipe"]}

    return {
        "data": {"name": data} if budget.limit is None else {"name": data, "limit": budget.limit},
        "teacher": recipe(paper["teacher"], teacher),
        "student": recipe(paper["student"], student),
        "noise": {"sigma": 0.0, "alpha": paper["alpha"]},
    }


def _sigmas(name: str, title: str, base: Json, budget: Budget, curve: str) -> Part:
    """All sigmas under both readings of xi, with the label-only, the clean and the soft-target student."""
    noises: Grid = {"noise.sigma": list(budget.sigmas), "noise.draw": list(DRAWS)}
    return Part(name, title, base, (noises, {"student.loss": ["soft_targets"]}), curve)


def _table(data: str, curve: str) -> Callable[[Budget], list[Part]]:
    def parts(budget: Budget) -> list[Part]:
        part = _sigmas("sigma", "sigma varied", settings(data, budget), budget, curve)
        if data == "cifar10":  # noise on its students is Figure 2
            return [part]
        side: Grid = {"noise.sigma": list(budget.sides), "noise.target": ["student"]}
        return [replace(part, grids=(*part.grids, side), control=budget.control if data == "mnist" else 1)]

    return parts


def _table4(budget: Budget) -> list[Part]:
    grid: Grid = {"noise.sigma": [0.6], "noise.alpha": list(budget.alphas), "noise.draw": list(DRAWS)}
    return [Part("alpha", "sigma 0.6, alpha varied", settings("cifar10", budget), (grid,), "table4")]


def _table5(budget: Budget) -> list[Part]:
    grid: Grid = {"noise.sigma": [0.0], "student.options.dropout": list(budget.dropouts)}
    return [Part("dropout", "dropout behind the student's FC layer", settings("cifar10", budget), (grid,), "table5")]


def _figure2(budget: Budget) -> list[Part]:
    grid: Grid = {"noise.sigma": list(budget.sigmas), "noise.target": ["student"]}
    return [Part("student", "noise on the student's logits", settings("cifar10", budget), (grid,), "figure2")]


def _section54(budget: Budget) -> list[Part]:
    range_of_sigma: Grid = {"noise.sigma": [[0.01, 1.0]], "noise.draw": list(DRAWS)}
    second = settings("cifar10", budget, teacher="alexnet-cifar")
    both = settings("cifar10", budget)
    both["teacher"]["also"] = ["alexnet-cifar"]
    both["student"]["combine"] = "geometric"
    return [
        Part("drawn-sigma", "sigma drawn from U[0.01, 1] per batch", settings("cifar10", budget), (range_of_sigma,)),
        Part("teacher2", "from Teacher2 alone", second, ({"noise.sigma": [0.0]},)),
        Part("two-teachers", "from both teachers, geometric mean", both, ({"noise.sigma": [0.0]},)),
    ]


def _table6(budget: Budget) -> list[Part]:
    bases = {name: settings("cifar10", budget, student=name) for name in STUDENTS}
    return [_sigmas(name, f"{name} from NIN", base, budget, f"figure3-{name}") for name, base in bases.items()]


def _constant(budget: Budget) -> list[Part]:
    """Student 3 by Adam at a constant rate, and at a falling one, for so long that it overfits."""
    base = settings("cifar10", budget, student="student3")
    base["student"]["epochs"] = budget.epochs(30)
    schedules: Grid = {"student.schedule": ["constant", "linear"], "noise.sigma": list(budget.sigmas)}
    title = "student3, Adam at a constant and at a falling rate, early stopping"
    return [Part("schedule", title, base, (schedules,), "figure3-student3")]


def _why(budget: Budget) -> list[Part]:
    """The explanations of a gain, one by one, where students are cheap: 4,000 digits of MNIST, a teacher of all."""
    base, length = settings("mnist", budget), budget.epochs(12)
    base["data"]["train_limit"] = 4000
    base["student"]["epochs"] = length
    base["noise"]["alpha"] = 0.5
    few: Grid = {"noise.sigma": [0.3, 0.9] if budget.seeds > 2 else [0.9]}
    row: Grid = {**few, "noise.draw": ["row"]}
    both: Grid = {**few, "noise.draw": list(DRAWS)}
    most: Grid = {"noise.sigma": [0.9]}
    variants: tuple[Grid, ...] = (
        {**few, "noise.draw": ["batch", "row", "scalar"]},
        {**both, "noise.schedule": ["linear", "late"]},
        {**both, "noise.until": [0.5]},
        {**row, "noise.distribution": ["uniform", "laplace"]},
        {**row, "noise.frozen": [True]},
        {**both, "noise.target": ["student"]},
        {**row, "noise.alpha": [0.15, 1.0]},
    )
    additive: Grid = {**both, "noise.kind": ["additive"]}
    additive_title = "gradient noise of the same size from elsewhere: additive noise"
    optimizers: tuple[Grid, ...] = (
        {**few, "student.optimizer": ["adam"]},
        {**few, "student.optimizer": ["sgd"], "student.lr": [0.001, 0.003]},
    )
    rates: Grid = {**few, "student.schedule": ["constant", "linear"]}
    stopping: Grid = {**few, "student.schedule": ["constant"], "student.keep": ["best", "last"]}
    lengths: Grid = {**most, "student.epochs": [max(1, length // 4), length, 4 * length]}
    return [
        Part("variants", "a variant that helps", base, variants, control=budget.control),
        Part("matched", additive_title, base, (additive,), scaled=True),
        Part("batch", "gradient noise from smaller batches", base, ({**most, "student.batch_size": [16, 64, 256]},)),
        Part("optimizer", "Adam's reaction against plain gradient descent", base, optimizers),
        Part("rate", "a constant against a falling rate", base, (rates,)),
        Part("stopping", "the last epoch against the best on validation", base, (stopping,)),
        Part("data", "little data against much", base, ({**most, "data.train_limit": [500, 2000, 8000]},)),
        Part("length", "short against long training", base, (lengths,)),
    ]


RATIO = "The paper's 'ratio' is read as the share kept, as its trend has it: dropout here is 1 - ratio."
GEOMETRIC = "The geometric mean of logits of both signs is undefined; ours is in docs/method.md."
CONSTANT = "The paper states Adam, batch 64 and early stopping, but no schedule: a constant rate is the likeliest."
NOT_IN_PAPER = (
    "Not in the paper. MNIST, 4,000 training images (where that is not what varies), a teacher trained on all of them, "
    "alpha 0.5 and 12 epochs (where that is not what varies)."
)
EXPERIMENTS = {
    entry.name: entry
    for entry in (
        Experiment("table1", "Table 1: MNIST, LeNet to 800-800", _table("mnist", "table1")),
        Experiment("table2", "Table 2: SVHN, NIN to the SVHN student", _table("svhn", "table2")),
        Experiment("table3", "Table 3: CIFAR-10, NIN to the CIFAR-10 student", _table("cifar10", "table3")),
        Experiment("table4", "Table 4: CIFAR-10, the share alpha of noisy samples", _table4),
        Experiment("table5", "Table 5: CIFAR-10, dropout in the student instead of noise", _table5, (RATIO,)),
        Experiment("table6", "Table 6: CIFAR-10, NIN to Students 1 to 3", _table6),
        Experiment("fig2", "Figure 2: CIFAR-10, noise on the student's logits", _figure2),
        Experiment("fig3", "Figure 3: CIFAR-10, Students 1 to 3 against sigma", _table6),
        Experiment("section5.4", "Section 5.4: drawn sigma, a second teacher, two teachers", _section54, (GEOMETRIC,)),
        Experiment("constant", "Student 3 in a long training by Adam at a constant rate", _constant, (CONSTANT,)),
        Experiment("why", "Why noise helps or not: explanations one by one", _why, (NOT_IN_PAPER,)),
    )
}


def experiment(name: str) -> Experiment:
    """The experiment of this name. Raises UnknownNameError."""
    if name not in EXPERIMENTS:
        raise unknown_name("experiment of the paper", name, [*EXPERIMENTS, "regime", "relatives", "objectives", "all"])
    return EXPERIMENTS[name]


def varies_sigma(name: str) -> bool:
    """Whether an experiment tries the sigmas of the budget. `varies_sigma("table4") is False`."""
    parts, budget = experiment(SAME.get(name, name)).parts, BUDGETS["quick"]
    return parts(budget) != parts(replace(budget, sigmas=(0.5,)))
