"""DIST, DKD, TTM, standardized logits and loss weights against the papers' formulas, written independently."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import noisyteacher as nt
from helpers import NOISES, SETTINGS, blobs, difference, network, small, table
from noisyteacher import objectives as objectives_module
from noisyteacher import process
from noisyteacher.config import build_config
from noisyteacher.config.schema import LOSS_OPTIONS
from noisyteacher.errors import ConfigError, MismatchError, TrainingError, UsageError
from noisyteacher.io.files import Json
from noisyteacher.losses import dist, dkd, soft_targets, standardized, ttm
from noisyteacher.models import as_classifier, model_record
from noisyteacher.noise import UnitNoise
from noisyteacher.objectives import LOSSES, Distillation
from noisyteacher.paper import objectives as study
from noisyteacher.paper import relatives
from noisyteacher.paper.regime import PILOT_SEEDS, TEACHERS, Workspace
from noisyteacher.pipeline.fairness import regime_of
from noisyteacher.pipeline.preflight import check_no_loss
from noisyteacher.pipeline.resolve import distill_options
from noisyteacher.rng import generator
from noisyteacher.runs import WEIGHTS
from noisyteacher.sweep.spec import expand

NEW = ("dist", "dkd", "ttm")
CROSSED = [(loss, scale) for loss in LOSSES for scale in ("none", "zscore") if (loss, scale) != ("ttm", "zscore")]
OPTIONS: dict[str, dict[str, Any]] = {
    "dist": {"beta": 0.5, "gamma": 2.0},
    "dkd": {"alpha": 0.5, "beta": 2.0},
    "ttm": {"weighted": True},
}


def logits(rows: int = 12, classes: int = 5, seed: int = 0, size: float = 3.0) -> Tensor:
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * size


def targets(rows: int = 12, classes: int = 5) -> Tensor:
    return torch.arange(rows) % classes


def softmax(row: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    powers = np.exp(row - row.max())
    return np.asarray(powers / powers.sum())


def batch(step: int = 0, rows: int = 96, labels: bool = True) -> nt.Batch:
    split, numbers = blobs(rows), torch.arange(rows)
    shown = split.labels if labels else None
    return nt.Batch(split.images, shown, numbers, ("clean",), torch.zeros_like(numbers), step, 0, rows, 9)


def term(loss: str, student: Tensor, teacher: Tensor, target: Tensor | None = None, **options: Any) -> Tensor:
    target = student.argmax(1) if target is None else target
    functions: dict[str, Any] = {"dist": dist, "ttm": ttm, "soft_targets": soft_targets}
    value: Tensor = dkd(student, teacher, target, **options) if loss == "dkd" else functions[loss](
        student, teacher, **options
    )  # fmt: skip
    return value


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dist_is_one_minus_the_correlations_of_rows_and_classes(temperature: float) -> None:
    """By numpy's corrcoef: over the classes of a row, over the rows of a class."""
    student, teacher = logits(), logits(seed=1)
    p, q = (np.stack([softmax(row) for row in part.numpy() / temperature]) for part in (teacher, student))
    rows = np.mean([1 - np.corrcoef(p[i], q[i])[0, 1] for i in range(12)])
    classes = np.mean([1 - np.corrcoef(p[:, k], q[:, k])[0, 1] for k in range(5)])
    expected = temperature**2 * (0.5 * rows + 2 * classes)
    given = dist(student, teacher, temperature=temperature, beta=0.5, gamma=2.0)
    assert float(given) == pytest.approx(expected, rel=1e-5)


def test_dist_ignores_what_correlations_ignore() -> None:
    """The same probabilities mixed with uniform ones correlate perfectly."""
    p = logits().softmax(1)
    assert float(dist((0.7 * p + 0.3 / 5).log(), p.log())) == pytest.approx(0, abs=1e-6)
    assert float(dist((0.7 * p + 0.3 / 5).log(), p.log().roll(1, 0))) > 0.1


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dkd_is_the_two_parts_of_the_divergence(temperature: float) -> None:
    """Zhao et al., Eqs. 3 to 7, in numpy: b = (p_y, 1 - p_y), and the other classes divided by 1 - p_y."""
    student, teacher, y = logits(), logits(seed=1), targets()
    of_target, of_rest, whole = [], [], []
    for row in range(12):
        p, q = (softmax(part[row].numpy() / temperature) for part in (teacher, student))
        label = int(y[row])
        b, c = (np.array([v[label], 1 - v[label]]) for v in (p, q))
        rest, other = (np.delete(v, label) / (1 - v[label]) for v in (p, q))
        of_target.append((b * np.log(b / c)).sum())
        of_rest.append((rest * np.log(rest / other)).sum())
        whole.append((p * np.log(p / q)).sum())
        assert whole[-1] == pytest.approx(of_target[-1] + (1 - p[label]) * of_rest[-1])  # their Eq. 6
    expected = temperature**2 * (0.5 * np.mean(of_target) + 2 * np.mean(of_rest))
    given = dkd(student, teacher, y, temperature=temperature, alpha=0.5, beta=2.0)
    assert float(given) == pytest.approx(expected, rel=1e-5)


def test_dkd_of_two_classes_has_no_second_part() -> None:
    student, teacher, y = logits(classes=2), logits(classes=2, seed=1), targets(classes=2)
    assert float(dkd(student, teacher, y, alpha=0.0)) == 0
    assert float(dkd(student, teacher, y)) == pytest.approx(float(soft_targets(student, teacher, 4.0)), rel=1e-5)


def test_ttm_tempers_the_teacher_alone() -> None:
    """Target p^(1/T) / sum p^(1/T), the student at temperature 1, no T^2; weighted by sum p^(1/T) (Zheng & Yang)."""
    student, teacher, temperature = logits(), logits(seed=1), 5.0
    rows, weights = [], []
    for row in range(12):
        powers = softmax(teacher[row].numpy()) ** (1 / temperature)
        p, q = powers / powers.sum(), softmax(student[row].numpy())
        rows.append((p * np.log(p / q)).sum())
        weights.append(powers.sum())
    assert float(ttm(student, teacher, temperature=temperature)) == pytest.approx(np.mean(rows), rel=1e-5)
    expected = np.mean(np.array(rows) * np.array(weights))
    assert float(ttm(student, teacher, temperature=temperature, weighted=True)) == pytest.approx(expected, rel=1e-5)
    assert float(ttm(student, teacher, temperature=1.0)) == pytest.approx(float(soft_targets(student, teacher, 1.0)))


def test_standardized_rows_have_mean_0_and_variance_1_over_k() -> None:
    """Over K, not K - 1; a positive factor and a shift of a row change nothing."""
    rows = standardized(logits())
    assert rows.mean(1).tolist() == pytest.approx([0.0] * 12, abs=1e-6)
    assert rows.square().mean(1).tolist() == pytest.approx([1.0] * 12, rel=1e-4)
    factors, shifts = torch.rand(12, 1) + 0.5, torch.randn(12, 1)
    assert torch.allclose(standardized(logits() * factors + shifts), rows, atol=1e-4)


@pytest.mark.parametrize("scale", ["none", "zscore"])
@pytest.mark.parametrize("loss", [*NEW, "soft_targets"])
def test_a_student_that_agrees_is_a_minimum(loss: str, scale: str) -> None:
    """The loss is 0 at the teacher's logits (TTM's: at z/T), its gradient too, and it is larger around it."""
    teacher = table().double() if scale == "none" else standardized(table()).double()
    best = teacher / 4 if loss == "ttm" else teacher
    student = best.clone().requires_grad_()
    value = term(loss, student, teacher, targets(96, 3))
    [gradient] = torch.autograd.grad(value, student)
    assert float(value.detach()) == pytest.approx(0, abs=1e-6)
    assert float(gradient.abs().max()) < 1e-6
    for seed in range(5):
        step = torch.randn(96, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 0.3
        assert float(term(loss, best + step, teacher, targets(96, 3))) > 1e-4


EDGES: dict[str, tuple[Tensor, Tensor]] = {
    "all logits equal": (torch.zeros(8, 5), logits(8).float()),
    "a teacher without preference": (logits(8).float(), torch.zeros(8, 5)),
    "both equal": (torch.zeros(8, 5), torch.zeros(8, 5)),
    "a certain class": (logits(8).float() + 200 * torch.eye(5)[targets(8)], logits(8, seed=1).float()),
    "a certain teacher": (logits(8).float(), logits(8, seed=1).float() + 300 * torch.eye(5)[targets(8)]),
    "certain and wrong": (500 * torch.eye(5)[targets(8)], 500 * torch.eye(5)[targets(8).roll(1)]),
    "one row": (logits(1).float(), logits(1, seed=1).float()),
    "two classes": (logits(8, 2).float(), logits(8, 2, seed=1).float()),
    "a class that no row prefers": (logits(8).float() - 90 * torch.eye(5)[2], logits(8, seed=1).float()),
}


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("scale", ["none", "zscore"])
@pytest.mark.parametrize("loss", NEW)
def test_losses_and_gradients_are_finite_at_the_edges(loss: str, scale: str, edge: str) -> None:
    student, teacher = (part.clone() for part in EDGES[edge])
    student.requires_grad_()
    sides = (standardized(student), standardized(teacher)) if scale == "zscore" else (student, teacher)
    for options in ({}, OPTIONS[loss]):
        value = term(loss, *sides, targets(len(student), student.shape[1]), **options)
        [gradient] = torch.autograd.grad(value, student, retain_graph=True)
        assert math.isfinite(float(value.detach()))
        assert float(value.detach()) >= -1e-6
        assert torch.isfinite(gradient).all()
        assert float(gradient.abs().max()) < 1e8


def test_a_certain_target_keeps_its_rest() -> None:
    """Where p_y is 1 in float32, the other classes still have the divergence that they have in float64."""
    student, teacher, y = logits(), logits(seed=1), targets()
    certain = 120 * F.one_hot(y, 5)
    expected = float(dkd(student, teacher, y, alpha=0.0))
    assert float(dkd(student + certain, teacher + certain, y, alpha=0.0)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("loss", NEW)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(loss: str, dtype: torch.dtype) -> None:
    student, teacher = logits().to(dtype), logits(seed=1).to(dtype)
    value = term(loss, student, teacher, targets())
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(float(term(loss, student.double(), teacher.double(), targets())), rel=1e-5)


@pytest.mark.parametrize("loss", NEW)
def test_shapes_and_temperatures_are_refused(loss: str) -> None:
    with pytest.raises(MismatchError, match=r"\[4, 10\].*\[4, 1\]"):
        term(loss, torch.ones(4, 10), torch.ones(4, 1), targets(4))
    with pytest.raises(MismatchError, match="at least one row"):
        term(loss, torch.ones(0, 3), torch.ones(0, 3), targets(0))
    with pytest.raises(UsageError, match="temperature="):
        term(loss, torch.ones(2, 3), torch.zeros(2, 3), targets(2), temperature=0.0)
    with pytest.raises(MismatchError, match=r"\[4\].*\[2\]"):
        dkd(torch.ones(2, 3), torch.zeros(2, 3), targets(4))


@pytest.mark.parametrize("noise", NOISES, ids=str)
@pytest.mark.parametrize(("loss", "scale"), CROSSED)
def test_the_loss_is_the_mean_over_draws_of_the_term_of_noisy_logits(
    loss: str, scale: str, noise: nt.Noise | None
) -> None:
    """Value, gradient and ratio of gradients by autograd, one draw at a time: noise first, then the rows' scale."""
    teacher, student = table(), table().flip(0).requires_grad_()
    if scale == "zscore" and noise is not None and noise.draw == "scalar":
        with pytest.raises(ConfigError, match="one number per row"):
            nt.distil(teacher, noise=noise, loss=loss, scale=scale)
        return
    objective = nt.distil(teacher, noise=noise, loss=loss, scale=scale, loss_options=OPTIONS.get(loss), loss_weight=3.0)
    inputs = objective.inputs(batch(step=1), {})
    value, metrics = objective.loss(student, inputs)
    [gradient] = torch.autograd.grad(value, student)

    def scaled(part: Tensor) -> Tensor:
        deviation = (part - part.mean(1, keepdim=True)).square().mean(1, keepdim=True).add(1e-5).sqrt()
        return (part - part.mean(1, keepdim=True)) / deviation if scale == "zscore" else part

    def of(student: Tensor, teacher: Tensor) -> Tensor:
        if loss == "logit_regression":
            return (scaled(student) - scaled(teacher)).square().sum(1).mean() / 2
        return term(loss, scaled(student), scaled(teacher), batch().labels, **OPTIONS.get(loss, {}))

    if noise is None:
        terms = [of(student, teacher)]
    else:
        unit_noise = UnitNoise(inputs["chance"], inputs["position"], inputs["unit"])
        on_teacher, terms = noise.target == "teacher", []
        for number in range(noise.draws):
            unit = inputs["unit"][number] if noise.draws > 1 else inputs["unit"]
            noisy = nt.perturb(
                teacher if on_teacher else student, sigma=inputs["sigma"], alpha=noise.alpha, kind=noise.kind,
                unit_noise=unit_noise._replace(unit=unit),
            )  # fmt: skip
            terms.append(of(student, noisy) if on_teacher else of(noisy, teacher))
    expected = torch.stack(terms).mean()
    [by_hand] = torch.autograd.grad(expected, student)
    assert float(value.detach()) == pytest.approx(3 * float(expected.detach()), rel=1e-4)
    assert torch.allclose(gradient, 3 * by_hand, atol=1e-5)
    if noise is not None:
        [clean] = torch.autograd.grad(of(student, teacher), student)
        ratio = float((by_hand - clean).norm() / clean.norm())
        assert float(metrics["noise/gradient_ratio"]) == pytest.approx(ratio, rel=1e-3)


@pytest.mark.parametrize(("loss", "scale"), [pair for pair in CROSSED if pair[0] in NEW or pair[1] == "zscore"])
def test_students_with_every_noise_in_one_stack_are_as_alone(loss: str, scale: str) -> None:
    noises = [None, NOISES[1], NOISES[4], NOISES[6], NOISES[9]]
    weights: list[Any] = [1.0, 2.0, "auto", 1.0, "auto"]
    options: dict[str, Any] = {"loss": loss, "scale": scale, "loss_options": OPTIONS.get(loss), "label_weight": 0.2}
    objectives = [
        nt.distil(table(), noise=noise, loss_weight=weight, **options)
        for noise, weight in zip(noises, weights, strict=True)
    ]
    alone, many = [network(seed) for seed in range(5)], [network(seed) for seed in range(5)]
    for seed, (model, objective) in enumerate(zip(alone, objectives, strict=True)):
        nt.fit(model, blobs(), objective, seed=seed, **SETTINGS)
    nt.fit_many(many, blobs(), objectives, seeds=range(5), **SETTINGS)
    assert max(difference(a, b) for a, b in zip(alone, many, strict=True)) < 1e-3


def test_the_target_of_dkd_is_the_label_else_the_teachers_class() -> None:
    """With noise the class stays the label; without labels, and of mixed images, it is the clean teacher's choice."""
    student, teacher = table().flip(0), table()
    strong = nt.Noise(sigma=3.0, alpha=1.0, draw="row", kind="additive")
    for noise in (None, strong):
        objective = nt.distil(teacher, noise=noise, loss="dkd")
        labelled = objective.inputs(batch(), {})
        assert torch.equal(labelled["target"], blobs().labels)  # type: ignore[arg-type]
        assert torch.equal(objective.inputs(batch(labels=False), {})["target"], teacher.argmax(1))
        if noise is None:
            expected = dkd(student, teacher, labelled["target"])
            assert float(objective.loss(student, labelled)[0]) == pytest.approx(float(expected))
    unlabelled = replace(blobs(), labels=None)
    nt.fit(small(), unlabelled, nt.distil(teacher, loss="dkd", noise=strong), **SETTINGS)


def gradient_norm(objective: Distillation, model: nn.Module, weight: float = 1.0) -> float:
    """Of the teacher's term, in the logits of a model in training mode, over all rows."""
    logits = as_classifier(model).train()(blobs().images).detach().requires_grad_()
    loss = objective.scaled_term(logits, table(), *([targets(96, 3)] if objective.needs_target else []))
    return weight * float(torch.autograd.grad(loss, logits)[0].norm())


@pytest.mark.parametrize(("loss", "scale"), CROSSED)
def test_auto_makes_the_initial_gradients_equal(loss: str, scale: str) -> None:
    """To soft targets at T = 4 on raw logits, whatever noise, parameters and temperature; rounded to four digits."""
    model, noise = small(dropout=False), nt.Noise(sigma=0.9, alpha=0.5)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    objective = nt.distil(table(), noise=noise, loss=loss, scale=scale, loss_weight="auto", label_weight=0.4)
    weighed = objective.weighed(model, blobs())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert weighed == objective.weighed(model, blobs())
    assert torch.equal(random, torch.get_rng_state())
    dropping = small()
    random = torch.get_rng_state()
    assert objective.weighed(dropping, blobs()) == objective.weighed(dropping, blobs())
    assert torch.equal(random, torch.get_rng_state())
    assert isinstance(weighed.loss_weight, float)
    reference = gradient_norm(nt.distil(table(), loss="soft_targets"), small(dropout=False))
    assert gradient_norm(weighed, small(dropout=False), weighed.loss_weight) == pytest.approx(reference, rel=1e-3)
    assert weighed.weighed(small(), blobs()) is weighed
    if (loss, scale) == ("soft_targets", "none"):
        assert weighed.loss_weight == 1.0
    else:
        assert weighed.describe()["loss_weight"] == weighed.loss_weight


def test_auto_in_units_of_the_root_mean_square() -> None:
    """Regression on logits over their rms: the gradient in the outputs of the network, which are multiplied by it."""
    model = nt.build_model(small(dropout=False), blobs_splits())
    objective = nt.distil(table(), scale="rms", loss_weight="auto").prepared(blobs(), ("clean",))
    outputs = model.train()(blobs().images).detach()
    weighed = objective.weighed(model, blobs())
    by_hand = (outputs / objective.unit - table() / objective.unit).norm()
    q, p = (outputs / objective.unit / 4).softmax(1), (table() / 4).softmax(1)
    assert weighed.loss_weight == pytest.approx(float(4 * (q - p).norm() / by_hand), rel=1e-3)


def blobs_splits() -> nt.Splits:
    return nt.Splits("blobs", blobs(), blobs(role="val"), blobs(role="test"), preprocess="scale")


def test_a_weight_is_recorded_and_a_resumed_run_has_the_same(tmp_path: Path) -> None:
    objective = nt.distil(table(), loss="dist", loss_weight="auto")
    nt.fit(small(), blobs(), objective, run=tmp_path, **SETTINGS)
    number = objective.weighed(small(), blobs()).loss_weight
    record = model_record(tmp_path / WEIGHTS)["training"]["settings"]["objective"]
    assert record["loss_weight"] == number
    nt.fit(small(), blobs(), objective, run=tmp_path, resume=True, **SETTINGS)
    with pytest.raises(MismatchError, match="loss_weight"):
        nt.fit(small(), blobs(), nt.distil(table(), loss="dist"), run=tmp_path, resume=True, **SETTINGS)
    with pytest.raises(UsageError, match="measured by fit"):
        objective(torch.zeros(96, 3), batch())
    agreeing = nt.distil(torch.zeros(96, 3), loss_weight="auto")
    with pytest.raises(TrainingError, match="no weight makes it"):
        agreeing.weighed(nn.Sequential(nn.Flatten(), nn.LazyLinear(3)).apply(zeroed), blobs())


def zeroed(part: nn.Module) -> None:
    if isinstance(part, nn.LazyLinear):
        part(torch.zeros(1, 64))
        for parameter in part.parameters():
            nn.init.zeros_(parameter)


def test_labels_are_flipped_once_for_each_of_many_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `fit_many` asks for it: at every step for all seeds in turn."""
    drawn: list[object] = []

    def counted(seed: int, *purpose: str | int) -> torch.Generator:
        drawn.append((seed, *purpose))
        return generator(seed, *purpose)

    monkeypatch.setattr(objectives_module, "generator", counted)
    objectives_module._label_flips.cache_clear()
    for step in range(2):
        for seed in range(20):
            nt.supervised(label_noise=0.3).inputs(replace(batch(step), seed=seed), {})
    assert drawn == [(seed, "label noise") for seed in range(20)]


def test_options_are_those_of_the_loss() -> None:
    for loss, kind in LOSSES.items():
        assert set(LOSS_OPTIONS[loss]) == set(nt.distil(table(), loss=loss).constants)
        assert kind is type(nt.distil(table(), loss=loss))
    for loss, options, problem in (
        ("dist", {"alpha": 1.0}, "alpha=1.0: has no effect with loss='dist'"),
        ("soft_targets", {"beta": 1.0}, "no effect"),
        ("dkd", {"beta": -1.0}, "a number of 0 or more"),
        ("dkd", {"beta": True}, "a number of 0 or more"),
        ("dkd", {"beta": math.inf}, "a number of 0 or more"),
        ("ttm", {"weighted": 1.0}, "true or false"),
        ("dkd", {"alpha": 0, "beta": 0.0}, "alpha and beta are 0, so there is no loss"),
        ("dist", {"gamma": 0, "beta": 0}, "gamma and beta are 0, so there is no loss"),
    ):
        with pytest.raises(ConfigError, match=problem):
            nt.distil(table(), loss=loss, loss_options=options)
        name = next(iter(options))
        with pytest.raises(ConfigError, match=rf"student\.loss_options\.{name}: "):
            build_config({"student": {"loss": loss, "loss_options": options}})
    for weight in (0.0, -1.0, math.nan, "off", True):
        with pytest.raises(ConfigError, match="loss_weight="):
            nt.distil(table(), loss_weight=weight)
    nt.distil(table(), loss="dkd", loss_options={"alpha": 0})
    with pytest.raises(ConfigError, match="temperature is an option of its own"):
        nt.distil(table(), loss="dkd", temperature=2.0, loss_options={"temperature": 3.0})
    with pytest.raises(ConfigError, match="setting of its own"):
        build_config({"student": {"loss": "dkd", "loss_options": {"temperature": 2.0}}})
    config = build_config({"student": {"loss": "ttm", "loss_options": {"weighted": True}, "loss_weight": "auto"}})
    assert config.student.loss_options == {"weighted": True}
    sampled = nt.Noise(sigma=1.0, alpha=1.0, draw="row", kind="sampled")
    for loss, scale in (("logit_regression", "none"), ("soft_targets", "zscore")):
        with pytest.raises(ConfigError, match="sampled"):
            nt.distil(table(), noise=sampled, loss=loss, scale=scale)
    nt.distil(table(), noise=sampled, loss="ttm")
    with pytest.raises(ConfigError, match="zscore undoes"):
        nt.distil(table(), loss="ttm", scale="zscore")
    for settings in (
        {"loss": "ttm", "scale": "zscore"},
        {"loss": "dkd", "temperature": 2.0, "loss_options": {"gamma": 1}},
    ):
        with pytest.raises(ConfigError, match=r"student\.(scale|loss_options\.gamma):"):
            build_config({"student": settings})


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A few embedded digits and two epochs."""
    folder = tmp_path_factory.mktemp("objectives")
    return Workspace(folder, {"name": "mnist-5k", "limit": 200}, TEACHERS["mnist"], epochs=2)


CELL = study.CELLS["cosine-objectives"]


def test_every_arm_has_as_many_trials_and_trains(workspace: Workspace) -> None:
    """Each trial is a training of its own: its file, its options, its errors; read when made again."""
    workspace.load()
    trials = study.trials()
    assert {len(tried) for tried in trials.values()} == {24}
    names = [(arm.name, rate) for tried in trials.values() for arm, rate in tried]
    assert len(set(names)) == len(names)
    trained = {title: relatives.train_relative(workspace, CELL, *tried[-1], 0) for title, tried in trials.items()}
    assert len({json.dumps([row["val"], row["test"], row["wrong"]]) for row in trained.values()}) > len(trained) - 3
    for title, row in trained.items():
        assert relatives.train_relative(workspace, CELL, *trials[title][-1], 0) == row
        assert row["arm"]["reference"] == ("" if title.endswith("noise") else "logit regression")
        assert (row["arm"]["noise"] is not None) == title.endswith("noise")


def test_noise_is_compared_within_an_objective_and_objectives_with_regression(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chosen: of the three best on one pilot seed the best on all. DKD is worse by 3, its noise by another 2."""
    draws = np.random.default_rng(0)

    def train(workspace: Workspace, cell: relatives.Cell, arm: relatives.Arm, lr: float, seed: int) -> Json:
        options = {"temperature": 4.0, "label_smoothing": 0.1, **(arm.options or {})}
        val = abs(lr - 0.02) + abs(options["temperature"] - 4.0) + abs(options["label_smoothing"] - 0.1)
        val -= 0.02 * (seed == PILOT_SEEDS[0] and lr == 0.01)  # there a lower rate is the best
        error = 5 + 3 * arm.title.startswith("DKD") + 2 * (arm.title == "DKD, noise") + draws.normal(0, 0.1)
        return {"arm": asdict(arm), "lr": lr, "seed": seed, "diverged": False, "val": val, "test": error,
                "train_error": 0.0}  # fmt: skip

    monkeypatch.setattr(relatives, "train_relative", train)
    monkeypatch.setattr(process, "worker_pool", lambda jobs: ThreadPoolExecutor(jobs))
    record = study.run_cell(workspace, CELL, 1, None)
    for title, arm in record["arms"].items():
        assert arm["settings"]["lr"] == 0.02
        assert (arm["settings"]["options"] or {}).get("temperature", 4.0) == 4.0
        assert len(arm["test_error_%"]["last"]) == 8
        assert (title in record["against_reference"]) == (not title.endswith("noise") and title != "logit regression")
    assert record["seeds"] == list(range(5, 13))
    assert len(record["pilot"]) == (24 + 3 * 2) * len(record["arms"])
    assert record["against_reference"]["DKD"]["mean"] == pytest.approx(3, abs=0.3)
    assert record["against_reference"]["DKD"]["comparisons"] == 6
    assert record["contrasts"]["DKD"]["low"] > 1
    assert record["contrasts"]["DKD"]["comparisons"] == 7
    assert record["contrasts"]["DIST"]["low"] < 0 < record["contrasts"]["DIST"]["high"]


@pytest.mark.parametrize(("loss", "scale"), CROSSED)
def test_a_first_step_is_checked_at_the_goal_of_the_loss(loss: str, scale: str) -> None:
    """At z, for TTM at z/T, nothing is left to learn; at other logits there is."""
    objective = nt.distil(table(), loss=loss, scale=scale, loss_weight="auto", label_weight=0.5)
    assert check_no_loss(objective, batch()).passed
    moved = replace(objective, teacher=nt.distil(table().roll(1, 1)).teacher)
    student = objective.goal(table())
    assert float(replace(moved, loss_weight=1.0)(student, batch())[0]) > 0.1


def test_settings_of_the_loss_reach_the_objective_and_no_student_on_labels() -> None:
    settings = {"loss": "dkd", "loss_options": {"beta": 2.0}, "loss_weight": "auto", "temperature": 3.0}
    base = {"student": {"name": "mlp128", "label_weight": 0.2, **settings}}
    objective = nt.distil(table(), **distill_options(build_config(base)))
    assert objective.constants == {"temperature": 3.0, "alpha": 1.0, "beta": 2.0}
    assert (type(objective), objective.loss_weight, objective.label_weight) == (LOSSES["dkd"], "auto", 0.2)
    conditions, _, _ = expand(base, [{"noise.sigma": [0.9], "student.loss_options.beta": [2.0, 4.0]}])
    kinds = [condition.kind for condition in conditions]
    assert sorted(kinds) == ["clean", "clean", "labels", "noisy", "noisy"]
    assert conditions[kinds.index("labels")].config.student.loss_options == {}
    assert conditions[kinds.index("labels")].config.student.loss_weight == 1.0
    line = {"step": 30, "epoch": 3, "train/loss": 1.0}
    for student, known in (({}, True), ({"loss_weight": 2.0}, False), ({"scale": "zscore"}, False), (settings, False)):
        recipe = build_config({"student": {"loss": "logit_regression", "label_weight": 0.0, **student}}).student
        record = regime_of(recipe, nt.Noise(sigma=0.9, alpha=0.5), 10, 2.0, [line])
        assert (record["unfitted_%"] is not None) == known
    assert nt.distil(table(), scale="zscore").arithmetic != nt.distil(table()).arithmetic


@pytest.mark.parametrize("classes", [2, 5])
def test_dkd_refuses_labels_of_other_classes(classes: int) -> None:
    """Its target is the label, also without a weight of its own."""
    student = as_classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, classes)), input_shape=(1, 8, 8))
    objective = nt.distil(torch.randn(96, classes), loss="dkd")
    with pytest.raises(MismatchError, match="3"):
        nt.fit(student, blobs(), objective, epochs=1, progress=False)
    unlabelled = replace(blobs(), labels=None)
    nt.fit(student, unlabelled, objective, epochs=1, progress=False)
