"""The paper's experiments as grids: networks, data, alpha and noise as the paper states them, the rest settled by us.

The paper leaves the learning rate, its schedule and the length of training open. Ours: Adam at 1e-3 falling linearly to
0, batch 64, the weights of the epoch with the lowest validation error; on MNIST 20 epochs for the teacher and 10 for
students; on CIFAR-10 15 epochs of 100,000 images (each image and its mirror image) for students and 30 for teachers; on
SVHN 3 and 5.
CIFAR-10's validation images are held out of its training images. xi is drawn per batch, Algorithm 1 read literally,
and per row beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from noisyteacher.text import unknown_name

Grid = Mapping[str, Sequence[Any]]
"""Dotted settings with the values to try, as `sweep` takes them."""


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
    limit: int | None
    """At most so many images of each split."""


TENTHS = tuple(number / 10 for number in range(1, 11))
BUDGETS = {
    "quick": Budget("quick", 2, (0.3, 0.9), (0.5, 1.0), (0.2, 0.5), (0.9,), 0.1, 1000),
    "standard": Budget(
        "standard", 3, (0.1, 0.3, 0.6, 0.9), (0.1, 0.5, 1.0), (0.1, 0.3, 0.5, 0.7, 0.9), (0.3, 0.9), 0.5, None
    ),
    "full": Budget("full", 5, TENTHS, TENTHS, TENTHS[:-1], (0.3, 0.9), 1.0, None),
}
"""`quick` shows in minutes that all of it runs; `standard` is half as long with fewer settings; `full` is all of it."""


@dataclass(frozen=True)
class Part:
    """One sweep of an experiment: settings, grids over them, and the curve of the paper beside them."""

    name: str
    title: str
    base: Mapping[str, Any]
    grids: tuple[Grid, ...]
    curve: str | None = None
    """The id of the paper's curve (references.json) that this part repeats."""
    scaled: bool = False
    """Sigmas of additive noise are meant in units of the teacher's logits: multiplied by their root mean square."""
    changed: tuple[str, ...] = ()
    """Settings the paper states that the user changed: its numbers do not belong beside this part's."""


@dataclass(frozen=True)
class Experiment:
    """A table, figure or section of the paper."""

    name: str
    title: str
    parts: Callable[[Budget], list[Part]]
    notes: tuple[str, ...] = ()


DRAWS = ("batch", "row")
SETS: dict[str, dict[str, Any]] = {
    "mnist": {"teacher": ("lenet", 20), "student": ("mlp800", 10), "alpha": 0.15, "recipe": {}},
    "svhn": {"teacher": ("nin", 5), "student": ("lenet-svhn", 3), "alpha": 0.15, "recipe": {}},
    "cifar10": {
        "teacher": ("nin", 30),
        "student": ("lenet-cifar", 15),
        "alpha": 0.5,
        "recipe": {"views": ["clean", "mirror"], "every_view": True},
    },
}
"""Per data set: networks with their epochs, alpha, and how the paper enlarges the training images."""


def settings(data: str, budget: Budget, *, teacher: str | None = None, student: str | None = None) -> dict[str, Any]:
    """The base settings of an experiment on these data."""
    told = SETS[data]
    recipes = {}
    for part, name in (("teacher", teacher), ("student", student)):
        known, epochs = told[part]
        length = max(1, round(epochs * budget.length))
        recipes[part] = {"preset": "paper", "name": name or known, "epochs": length, **told["recipe"]}
    limit = {} if budget.limit is None else {"limit": budget.limit}
    return {"data": {"name": data, **limit}, **recipes, "noise": {"sigma": 0.0, "alpha": told["alpha"]}}


def sigma_part(name: str, title: str, base: Mapping[str, Any], budget: Budget, curve: str) -> Part:
    """All sigmas under both readings of xi, with the label-only, the clean and the soft-target student."""
    grids: tuple[Grid, ...] = (
        {"noise.sigma": list(budget.sigmas), "noise.draw": list(DRAWS)},
        {"student.loss": ["soft_targets"]},
    )
    return Part(name, title, base, grids, curve)


def _table(data: str, curve: str) -> Callable[[Budget], list[Part]]:
    def parts(budget: Budget) -> list[Part]:
        part = sigma_part("sigma", "sigma varied", settings(data, budget), budget, curve)
        if data == "cifar10":  # its noisy students are Figure 2
            return [part]
        side: Grid = {"noise.sigma": list(budget.sides), "noise.target": ["student"]}
        return [replace(part, grids=(*part.grids, side))]

    return parts


def _table4(budget: Budget) -> list[Part]:
    base = settings("cifar10", budget)
    grid: Grid = {"noise.sigma": [0.6], "noise.alpha": list(budget.alphas), "noise.draw": list(DRAWS)}
    return [Part("alpha", "sigma 0.6, alpha varied", base, (grid,), "table4")]


def _figure2(budget: Budget) -> list[Part]:
    grid: Grid = {"noise.sigma": list(budget.sigmas), "noise.target": ["student"]}
    return [Part("student", "noise on the student's logits", settings("cifar10", budget), (grid,), "figure2")]


def _table5(budget: Budget) -> list[Part]:
    grid: Grid = {"noise.sigma": [0.0], "student.options.dropout": list(budget.dropouts)}
    return [Part("dropout", "dropout behind the student's FC layer", settings("cifar10", budget), (grid,), "table5")]


def _section54(budget: Budget) -> list[Part]:
    drawn: Grid = {"noise.sigma": [[0.01, 1.0]], "noise.draw": list(DRAWS)}
    second = settings("cifar10", budget, teacher="alexnet-cifar")
    both = settings("cifar10", budget)
    both["teacher"]["also"] = ["alexnet-cifar"]
    both["student"]["combine"] = "geometric"
    return [
        Part("drawn-sigma", "sigma drawn from U[0.01, 1] per batch", settings("cifar10", budget), (drawn,)),
        Part("teacher2", "from Teacher2 alone", second, ({"noise.sigma": [0.0]},)),
        Part("two-teachers", "from both teachers, geometric mean", both, ({"noise.sigma": [0.0]},)),
    ]


def _students(which: Sequence[str]) -> Callable[[Budget], list[Part]]:
    def parts(budget: Budget) -> list[Part]:
        return [
            sigma_part(name, f"{name} from NIN", settings("cifar10", budget, student=name), budget, f"figure3-{name}")
            for name in which
        ]

    return parts


def _why(budget: Budget) -> list[Part]:
    """The explanations of a gain, one by one, where students are cheap: 4,000 digits of MNIST, a teacher of all."""
    base = settings("mnist", budget)
    base["data"]["train_limit"] = 4000
    length = max(1, round(12 * budget.length))
    base["student"]["epochs"] = length
    base["noise"]["alpha"] = 0.5
    few = [0.3, 0.9] if budget.seeds > 2 else [0.9]
    most = [0.9]

    def part(name: str, title: str, *grids: Grid, scaled: bool = False) -> Part:
        return Part(name, title, base, grids, scaled=scaled)

    return [
        part(
            "variants",
            "a variant that helps",
            {"noise.sigma": few, "noise.draw": ["batch", "row", "scalar"]},
            {"noise.sigma": few, "noise.draw": ["batch", "row"], "noise.schedule": ["linear", "early", "late"]},
            {"noise.sigma": few, "noise.draw": ["row"], "noise.distribution": ["uniform", "laplace"]},
            {"noise.sigma": few, "noise.draw": ["row"], "noise.frozen": [True]},
            {"noise.sigma": few, "noise.draw": ["batch", "row"], "noise.target": ["student"]},
            {"noise.sigma": few, "noise.draw": ["row"], "noise.alpha": [0.15, 1.0]},
        ),
        part(
            "matched",
            "gradient noise of the same size from elsewhere: additive noise",
            {"noise.sigma": few, "noise.draw": list(DRAWS), "noise.kind": ["additive"]},
            scaled=True,
        ),
        part(
            "batch",
            "gradient noise from smaller batches",
            {"noise.sigma": most, "student.batch_size": [16, 64, 256]},
        ),
        part(
            "optimizer",
            "Adam's reaction against plain gradient descent",
            {"noise.sigma": few, "student.optimizer": ["adam"]},
            {"noise.sigma": few, "student.optimizer": ["sgd"], "student.lr": [0.001, 0.003]},
        ),
        part(
            "rate",
            "a constant against a falling rate",
            {"noise.sigma": few, "student.schedule": ["constant", "linear"]},
        ),
        part(
            "stopping",
            "the last epoch against the best on validation",
            {"noise.sigma": few, "student.schedule": ["constant"], "student.keep": ["best", "last"]},
        ),
        part("data", "little data against much", {"noise.sigma": most, "data.train_limit": [500, 2000, 8000]}),
        part(
            "length",
            "short against long training",
            {"noise.sigma": most, "student.epochs": [max(1, length // 4), length, 4 * length]},
        ),
    ]


STUDENTS = ("student1", "student2", "student3")
EXPERIMENTS = {
    one.name: one
    for one in (
        Experiment("table1", "Table 1: MNIST, LeNet to 800-800", _table("mnist", "table1")),
        Experiment("table2", "Table 2: SVHN, NIN to the SVHN student", _table("svhn", "table2")),
        Experiment("table3", "Table 3: CIFAR-10, NIN to the CIFAR-10 student", _table("cifar10", "table3")),
        Experiment("table4", "Table 4: CIFAR-10, the share alpha of noisy samples", _table4),
        Experiment(
            "table5",
            "Table 5: CIFAR-10, dropout in the student instead of noise",
            _table5,
            ("The paper's 'ratio' is read as the share kept, as its trend has it: dropout here is 1 - ratio.",),
        ),
        Experiment("table6", "Table 6: CIFAR-10, NIN to Students 1 to 3", _students(STUDENTS)),
        Experiment("fig2", "Figure 2: CIFAR-10, noise on the student's logits", _figure2),
        Experiment("fig3", "Figure 3: CIFAR-10, Students 1 to 3 against sigma", _students(STUDENTS)),
        Experiment(
            "section5.4",
            "Section 5.4: drawn sigma, a second teacher, two teachers",
            _section54,
            ("The geometric mean of logits of both signs is undefined; ours is in docs/method.md.",),
        ),
        Experiment(
            "why",
            "Why noise helps or not: explanations one by one",
            _why,
            (
                "Not in the paper. MNIST, 4,000 training images (where that is not what varies), a teacher trained on "
                "all of them, alpha 0.5 and 12 epochs (where that is not what varies).",
            ),
        ),
    )
}
SAME = {"fig3": "table6"}
"""Experiments that are another's runs looked at differently: Figure 3 is Table 6 with every sigma."""


def experiment(name: str) -> Experiment:
    """The experiment of this name. Raises UnknownNameError."""
    if name not in EXPERIMENTS:
        raise unknown_name("experiment of the paper", name, [*EXPERIMENTS, "all"])
    return EXPERIMENTS[name]


def budget_of(name: str) -> Budget:
    """The budget of this name. Raises UnknownNameError."""
    if name not in BUDGETS:
        raise unknown_name("budget", name, BUDGETS)
    return BUDGETS[name]


def varies_sigma(name: str) -> bool:
    """Whether the budget's sigmas are those that an experiment tries. `varies_sigma("table4") is False`."""
    parts = experiment(SAME.get(name, name)).parts
    few = budget_of("quick")
    return parts(few) != parts(replace(few, sigmas=(0.5,)))
