"""The relatives of the paper's noise against closed forms: several draws, mixed and sampled targets, noisy inputs."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import noisyteacher as nt
from helpers import SETTINGS, blobs, difference, table
from noisyteacher import process
from noisyteacher.config import Values, build_config
from noisyteacher.errors import ConfigError, MismatchError, UsageError
from noisyteacher.io.files import Json
from noisyteacher.models import as_classifier
from noisyteacher.noise import UnitNoise, sample_unit_noise, unit_noise_at
from noisyteacher.objectives import input_noise_of
from noisyteacher.paper import relatives
from noisyteacher.paper.regime import Workspace
from noisyteacher.pipeline.single_step import train_config
from noisyteacher.rng import generator

STRONG = nt.Noise(sigma=0.9, alpha=0.5, draw="row")
TEMPERATURE = 4.0


def logits(rows: int, seed: int = 7) -> Tensor:
    return torch.randn(rows, 10, generator=generator(seed, "logits")) * 5


def batch(step: int = 0, rows: int = 96) -> nt.Batch:
    split, numbers = blobs(rows), torch.arange(rows)
    return nt.Batch(split.images, split.labels, numbers, ("clean",), torch.zeros_like(numbers), step, 0, rows)


def units(draws: int, rows: int, step: int = 0) -> UnitNoise:
    return unit_noise_at(replace(STRONG, draws=draws), seed=0, step=step, batch=rows, classes=10)


def test_several_draws_share_one_selection_and_begin_with_the_single_one() -> None:
    single, several = units(1, 64), units(3, 64)
    assert several.unit.shape == (3, 64, 10)
    assert torch.equal(several.unit[0], single.unit)
    assert torch.equal(several.chance, single.chance)
    noisy = nt.perturb(logits(64), sigma=0.9, alpha=0.5, unit_noise=several)
    touched = (noisy != logits(64)).any(-1)
    assert torch.equal(touched, several.selected(0.5)[:, 0].expand(3, 64))  # not 1 - 0.5^3 of the rows
    frozen = unit_noise_at(
        replace(STRONG, draws=3, frozen=True),
        seed=0, step=5, batch=2, classes=10, rows=torch.tensor([4, 1]), total_rows=9,
    )  # fmt: skip
    assert frozen.unit.shape == (3, 2, 10)


@pytest.mark.parametrize("loss", ["logit_regression", "soft_targets"])
def test_the_term_of_several_draws_is_their_mean(loss: str) -> None:
    """Value and gradient are means over the draws; for squared errors alone the gradient is the mean target's."""
    teacher, student = table(), table().flip(0).requires_grad_()
    noise = nt.Noise(sigma=0.9, alpha=0.7, draw="row", draws=4)
    objective = nt.distil(teacher, noise=noise, loss=loss)
    inputs = objective.inputs(batch(), {})
    value, metrics = objective.loss(student, inputs)
    [gradient] = torch.autograd.grad(value, student)
    drawn = UnitNoise(inputs["chance"], inputs["position"], inputs["unit"])
    targets = [
        nt.perturb(teacher, sigma=0.9, alpha=0.7, unit_noise=drawn._replace(unit=drawn.unit[number]))
        for number in range(4)
    ]
    terms = [objective.term(student, target) for target in targets]
    assert float(value.detach()) == pytest.approx(float(torch.stack(terms).mean().detach()), rel=1e-5)
    expected = torch.stack([torch.autograd.grad(term, student)[0] for term in terms]).mean(0)
    assert torch.allclose(gradient, expected, atol=1e-6)
    [of_mean] = torch.autograd.grad(objective.term(student, torch.stack(targets).mean(0)), student)
    assert torch.allclose(gradient, of_mean, atol=1e-6) == (loss == "logit_regression")
    [clean] = torch.autograd.grad(objective.term(student, teacher), student)
    ratio = float((gradient - clean).norm() / clean.norm())
    assert float(metrics["noise/gradient_ratio"]) == pytest.approx(ratio, rel=1e-4)


def test_noise_on_the_student_takes_several_draws() -> None:
    student = table().requires_grad_()
    noise = nt.Noise(sigma=0.6, alpha=1.0, draw="row", target="student", draws=3)
    objective = nt.distil(table().flip(0), noise=noise)
    inputs = objective.inputs(batch(), {})
    value, metrics = objective.loss(student, inputs)
    factors = 1 + 0.6 * inputs["unit"]
    expected = ((factors * student - table().flip(0)) ** 2).sum() / (2 * 3 * 96)
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    [gradient] = torch.autograd.grad(expected, student)
    clean = (student.detach() - table().flip(0)) / 96
    ratio = float((gradient - clean).norm() / clean.norm())
    assert float(metrics["noise/gradient_ratio"]) == pytest.approx(ratio, rel=1e-4)


@pytest.mark.parametrize("draws", [1, 2, 8])
def test_draws_divide_the_variance_of_the_target(draws: int) -> None:
    """alpha sigma^2 z^2 / M for the mean of M draws of one selection."""
    teacher = logits(400)
    changes = [
        nt.perturb(teacher, sigma=0.9, alpha=0.5, unit_noise=units(draws, 400, step)).view(-1, 400, 10).mean(0)
        - teacher
        for step in range(60)
    ]
    variance = torch.stack([change.square() / teacher.square() for change in changes]).mean()
    assert float(variance) == pytest.approx(0.5 * 0.81 / draws, rel=0.03)


def test_mixed_targets_have_tekaps_moments() -> None:
    """z' = (1 - lambda) z + lambda n: mean (1 - lambda) z, standard deviation lambda."""
    teacher = logits(1).expand(20_000, 10)
    for share in (0.1, 0.5, 1.0):
        noisy = nt.perturb(teacher, sigma=share, alpha=1.0, draw="row", kind="mix", generator=generator(0, "mix"))
        assert torch.allclose(noisy.mean(0), (1 - share) * teacher[0], atol=5 * share / math.sqrt(20_000))
        assert torch.allclose(noisy.std(0), torch.full((10,), share), rtol=0.03)


@pytest.mark.parametrize("draw", ["row", "batch"])
@pytest.mark.parametrize("share", [0.4, 1.0])
def test_sampled_targets_are_unbiased(share: float, draw: str) -> None:
    """E[target] = p and its variance is share^2 p (1 - p): of all unbiased noises the largest at share 1."""
    teacher, rows = logits(1), 400
    p = (teacher / TEMPERATURE).softmax(1)[0]
    targets = torch.cat([
        (nt.perturb(teacher.expand(rows, 10), sigma=share, alpha=1.0, draw=draw, kind="sampled",  # type: ignore[arg-type]
                    temperature=TEMPERATURE, generator=generator(step, "s")) / TEMPERATURE).softmax(1)
        for step in range(50 if draw == "row" else 4000)
    ])  # fmt: skip
    independent = 20_000 if draw == "row" else 4000
    assert torch.allclose(targets.mean(0), p, atol=5 * 0.5 * share / math.sqrt(independent))
    assert torch.allclose(targets.var(0), share**2 * p * (1 - p), atol=0.02)
    if share == 1:
        assert torch.allclose(targets.max(1).values, torch.ones(len(targets)))
        assert float(targets.sort(1).values[:, -2].max()) < 1e-30
    if draw == "batch":  # the rows of a mini-batch share their draw
        assert torch.equal(targets[:rows], targets[:1].expand(rows, 10))


def test_the_expected_gradient_of_sampled_targets_is_the_clean_one() -> None:
    """T (softmax(g / T) - p) / B, as without noise; unselected rows keep their logits bit for bit."""
    teacher, student = table(), table().flip(0).requires_grad_()
    noise = nt.Noise(sigma=1.0, alpha=0.6, draw="row", kind="sampled", draws=50)
    objective = nt.distil(teacher, noise=noise, loss="soft_targets")
    gradients = [torch.autograd.grad(objective.loss(student, objective.inputs(batch(step), {}))[0], student)[0]
                 for step in range(60)]  # fmt: skip
    p, q = (teacher / TEMPERATURE).softmax(1), (student.detach() / TEMPERATURE).softmax(1)
    assert torch.allclose(torch.stack(gradients).mean(0), TEMPERATURE * (q - p) / 96, atol=5 * 2.0 / 96 / 55)
    noisy = nt.perturb(teacher, sigma=1.0, alpha=0.6, draw="row", kind="sampled", generator=generator(0, "u"))
    selected = sample_unit_noise("row", "gaussian", 96, 3, generator(0, "u")).selected(0.6)[:, 0]
    assert torch.equal(noisy[~selected], teacher[~selected])
    assert (noisy[selected] != teacher[selected]).all()


def test_one_factor_per_sample_is_a_random_temperature() -> None:
    """`draw="scalar"` with soft targets is Hinton's target at the temperature T / (1 + xi)."""
    teacher, student = logits(32), logits(32, seed=8)
    unit_noise = sample_unit_noise("scalar", "gaussian", 32, 10, generator(0, "t"))
    noisy = nt.perturb(teacher, sigma=0.3, alpha=1.0, unit_noise=unit_noise)
    temperatures = TEMPERATURE / (1 + unit_noise.xi(0.3))
    target = (teacher / temperatures).softmax(1)
    log_student = (student / TEMPERATURE).log_softmax(1)
    expected = TEMPERATURE**2 * (target * (target.log() - log_student)).sum() / 32
    assert float(nt.soft_targets(student, noisy, TEMPERATURE)) == pytest.approx(float(expected), rel=1e-5)


INPUT = nt.Noise(sigma=0.3, alpha=0.5, draw="row", kind="additive", target="input")


def test_noise_on_the_input_adds_the_weights_to_the_loss() -> None:
    """For g = W x: E ||W (x + sigma n) - z||^2 = ||W x - z||^2 + alpha sigma^2 ||W||^2, x in units of the network."""
    torch.manual_seed(0)
    student = as_classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 3, bias=False)), input_shape=(1, 8, 8))
    objective, images, weights = nt.distil(table(), noise=INPUT), blobs().images, next(student.parameters())
    with torch.no_grad():
        clean = float(objective(student(images), batch())[0])
        values = torch.tensor([
            float(objective(student(images, input_noise_of(objective, batch(step))), batch(step))[0])
            for step in range(800)
        ])  # fmt: skip
    expected = clean + 0.5 * 0.09 * float(weights.detach().square().sum()) / 2
    assert abs(float(values.mean()) - expected) < 4 * float(values.std()) / math.sqrt(800)
    assert expected - clean > 8 * float(values.std()) / math.sqrt(800)
    nothing = input_noise_of(nt.distil(table(), noise=replace(INPUT, sigma=0.0)), batch())
    assert nothing is not None
    assert torch.equal(student(images, nothing), student(images))


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return as_classifier(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 3)), input_shape=(1, 8, 8)
    )


def trained(noise: nt.Noise | None, **options: Any) -> nn.Module:
    model = net()
    loss = "soft_targets" if noise is not None and noise.kind == "sampled" else "logit_regression"
    nt.fit(model, blobs(), nt.distil(table(), noise=noise, loss=loss), **{**SETTINGS, **options})
    return model


def test_without_size_noise_on_the_input_changes_no_bit_of_a_training() -> None:
    clean = trained(None)
    assert difference(clean, trained(replace(INPUT, sigma=0.0))) == 0
    assert difference(clean, trained(replace(INPUT, alpha=0.0))) == 0
    assert difference(clean, trained(INPUT)) > 0.01


def test_a_live_teacher_sees_clean_images() -> None:
    teacher = net(seed=9)
    stored = teacher(blobs().images).detach()
    students = [net(), net()]
    for student, source in zip(students, (teacher, stored), strict=True):
        nt.fit(student, blobs(), nt.distil(source, noise=INPUT), **SETTINGS)
    assert difference(*students) < 1e-4


@pytest.mark.parametrize(
    "noise",
    [
        replace(STRONG, draws=3),
        nt.Noise(sigma=0.3, alpha=1.0, draw="row", kind="mix"),
        nt.Noise(sigma=1.0, alpha=1.0, draw="row", kind="sampled"),
        INPUT,
    ],
)
def test_a_resumed_training_is_bit_identical(noise: nt.Noise, tmp_path: Path) -> None:
    def stop(tick: Any) -> None:
        if tick.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(noise, run=tmp_path, progress=stop)
    assert difference(trained(noise), trained(noise, run=tmp_path, resume=True)) == 0


def test_what_has_no_effect_or_no_meaning_is_refused() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"kind": "mix", "sigma": 1.5}, "a share of the target, at most 1"),
        ({"kind": "sampled", "sigma": (0.5, 1.2)}, "a share of the target, at most 1"),
        ({"kind": "sampled", "draw": "scalar"}, "a number per class"),
        ({"kind": "sampled", "distribution": "laplace"}, "a distribution of its own"),
        ({"kind": "mix", "target": "student"}, "changes a teacher's targets"),
        ({"target": "input", "frozen": True}, "new at every step"),
        ({"target": "input", "draws": 2}, "the student runs once"),
        ({"draws": 0}, "draws: given 0"),
    ]
    for options, message in wrong:
        with pytest.raises(ConfigError, match=message):
            nt.Noise(**{"sigma": 0.5, "alpha": 0.5, **options})
    sampled = nt.Noise(sigma=1.0, alpha=1.0, kind="sampled")
    with pytest.raises(ConfigError, match="sampled draws from soft targets"):
        nt.distil(table(), noise=sampled)
    with pytest.raises(ConfigError, match=r"noise\.kind: sampled draws from soft targets"):
        build_config({"noise": {"sigma": 1.0, "kind": "sampled"}, "student": {"loss": "logit_regression"}})
    for noise in (INPUT, replace(STRONG, draws=2), sampled):
        with pytest.raises(UsageError, match="NoisyTeacher returns one draw"):
            nt.NoisyTeacher(net(), noise)


def test_a_teacher_is_drawn_for_every_row() -> None:
    """Of M tables each row has one: each is as likely, rows and steps differ, and the scale is that of all."""
    tables = [table() + 100 * number for number in range(3)]
    objective = nt.distil(tables, combine="pick-row", scale="rms").prepared(blobs(), ("clean",))
    picks = []
    for step in range(60):
        logits = objective.inputs(batch(step), {})["teacher"] * objective.unit
        picks.append(((logits - table()) / 100).round().long())
        assert (picks[-1] == picks[-1][:, :1]).all()
    counts = torch.stack(picks)[..., 0].flatten().bincount()
    assert torch.allclose(counts / counts.sum(), torch.full((3,), 1 / 3), atol=5 * 0.47 / math.sqrt(60 * 96))
    assert len({tuple(pick[:, 0].tolist()) for pick in picks}) == 60
    assert objective.unit == pytest.approx(math.sqrt(float(torch.stack(tables).square().mean())))


class Dropped(nn.Module):
    """A linear teacher with dropout of half of the pixels, and a batch norm whose statistics must stay."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.drop, self.norm, self.linear = nn.Dropout(p), nn.BatchNorm1d(64), nn.Linear(64, 3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.drop(self.norm(images.flatten(1))))
        return logits


def test_stochastic_copies_have_the_teachers_mean(tmp_path: Path) -> None:
    """Inverted dropout before a linear layer: E z = z in eval mode, Var z = p / (1 - p) sum_j (w_j x_j)^2."""
    teacher, split, rows = Dropped(), blobs(12), torch.arange(12)
    clean = nt.extract(teacher, split, tmp_path / "clean", progress=False).logits("clean", rows)
    copies = torch.stack([
        nt.extract(teacher, split, tmp_path / str(seed), dropout_seed=seed, progress=False).logits("clean", rows)
        for seed in range(200)
    ])  # fmt: skip
    inputs = split.images_at(rows).flatten(1) / 255 / math.sqrt(1 + 1e-5)
    variance = (inputs[:, None] * teacher.linear.weight.detach()).square().sum(-1)
    assert torch.allclose(copies.mean(0), clean, atol=5 * math.sqrt(float(variance.max()) / 200))
    assert float((copies.var(0) / variance).mean()) == pytest.approx(1, abs=0.1)
    assert not teacher.norm.running_mean.any()  # type: ignore[union-attr]
    assert teacher.training  # as before
    assert not torch.equal(copies[0, :6], copies[0, 6:])


def test_a_stochastic_copy_is_seeded_and_is_no_store_of_the_teacher(tmp_path: Path) -> None:
    teacher, split, rows = Dropped(), blobs(12), torch.arange(12)
    state = torch.get_rng_state()
    first = nt.extract(teacher, split, tmp_path / "a", dropout_seed=1, rows_per_shard=5, progress=False)
    assert torch.equal(state, torch.get_rng_state())
    (tmp_path / "a" / "store.json").unlink()
    (tmp_path / "a" / "shard-00001.safetensors").unlink()
    again = nt.extract(teacher, split, tmp_path / "a", dropout_seed=1, rows_per_shard=5, progress=False)
    assert torch.equal(first.logits("clean", rows), again.logits("clean", rows))
    assert again.meta["dropout_seed"] == 1
    for seed in (None, 2):
        with pytest.raises(MismatchError, match="store of something else"):
            nt.extract(teacher, split, tmp_path / "a", dropout_seed=seed, progress=False)
    with pytest.raises(UsageError, match="no second pass repeats"):
        again.verify(teacher, split)
    again.verify()
    with pytest.raises(UsageError, match=r"0 dropout layer\(s\)"):
        nt.extract(Dropped(0.0), split, tmp_path / "b", dropout_seed=0, progress=False)
    with pytest.raises(UsageError, match="expected a whole number"):
        nt.extract(teacher, split, tmp_path / "b", dropout_seed=0.5, progress=False)  # type: ignore[arg-type]
    student = net()
    nt.fit(student, split, nt.distil([first, again], combine="pick-row"), **SETTINGS)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_fixed_share_of_the_labels_is_another_class(share: float) -> None:
    """round(share N) rows; every other class as likely; the same in every epoch; another choice with another seed."""
    rows, classes = 3000, 4
    labels = torch.arange(rows) % classes
    numbers = torch.randperm(rows, generator=generator(0, "order"))

    def learned(seed: int, step: int) -> Tensor:
        """The labels that are learned, from the gradient of the loss at equal logits: its only negative entries."""
        images = torch.zeros(rows, 1, 2, 2, dtype=torch.uint8)
        view_index = torch.zeros_like(numbers)
        drawn = nt.Batch(images, labels[numbers], numbers, ("clean",), view_index, step, seed, rows)
        leaf = torch.zeros(rows, classes, requires_grad=True)
        nt.supervised(label_noise=share)(leaf, drawn)[0].backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        return leaf.grad.argmin(1)[numbers.argsort()]

    seen = learned(0, 0)
    changed = seen != labels
    assert int(changed.sum()) == round(share * rows)
    assert torch.equal(seen, learned(0, 7))
    if share:
        counts = ((seen - labels) % classes)[changed].bincount(minlength=classes)[1:]
        assert torch.allclose(counts / counts.sum(), torch.full((3,), 1 / 3), atol=5 * 0.47 / math.sqrt(share * rows))
        assert not torch.equal(seen, learned(1, 0))


def test_smoothed_labels_by_hand() -> None:
    """-(1 - s) log p_label - s / K sum_k log p_k."""
    student, log_p = table(), table().log_softmax(1)
    labels = blobs().labels
    assert labels is not None
    expected = -(0.9 * log_p[torch.arange(96), labels] + 0.1 * log_p.mean(1)).mean()
    loss, _ = nt.supervised(label_smoothing=0.1)(student, batch())
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    assert nt.supervised().describe() == {"objective": "supervised"}
    assert nt.supervised(label_noise=0.2).describe() == {"objective": "supervised", "label_noise": 0.2}


def test_noise_on_labels_in_one_stack_and_where_it_is_refused() -> None:
    objectives = [
        nt.supervised(label_noise=share, label_smoothing=s) for share, s in ((0.0, 0.0), (0.3, 0.0), (0.3, 0.1))
    ]
    alone, many = [net(seed) for seed in range(3)], [net(seed) for seed in range(3)]
    for model, objective in zip(alone, objectives, strict=True):
        nt.fit(model, blobs(), objective, **SETTINGS)
    nt.fit_many(many, blobs(), objectives, seeds=(0, 0, 0), **SETTINGS)
    assert max(difference(a, b) for a, b in zip(alone, many, strict=True)) < 1e-4
    with pytest.raises(ConfigError, match="would stay clean"):
        nt.fit(net(), blobs(), objectives[1], augment="mixup", **SETTINGS)
    for options in ({"label_noise": 1.5}, {"label_smoothing": -0.1}, {"label_noise": True}):
        with pytest.raises(ConfigError, match="expected a share"):
            nt.supervised(**options)


def test_a_teacher_learns_from_corrupted_labels(tmp_path: Path) -> None:
    """`teacher.label_noise` reaches its training, is recorded, and is refused for a teacher that is trained already."""
    settings: Values = {
        "data": {"limit": 60},
        "teacher": {"name": "mlp800", "preset": "paper", "epochs": 1, "label_noise": 0.5},
        "run": {"output_dir": str(tmp_path), "threads": 1},
    }
    trained_models = [
        train_config(build_config(settings | {"teacher": settings["teacher"] | {"label_noise": share}}))
        for share in (0.0, 0.5)
    ]
    assert difference(*(trained.model for trained in trained_models)) > 1e-3
    with pytest.raises(UsageError, match=r"teacher\.label_noise: has no effect"):
        nt.compress(trained_models[0].model, "mlp800", nt.load_data("mnist-5k", limit=60), output_dir=str(tmp_path),
                    teacher_training={"label_noise": 0.5})  # fmt: skip


def test_the_mean_target_is_that_of_gaussian_quadrature() -> None:
    """One factor per sample: E softmax(z (1 + xi) / T) is an integral over one normal number (Gauss-Hermite)."""
    teacher = logits(6)
    noise = nt.Noise(sigma=0.7, alpha=0.4, draw="scalar")
    target, error = relatives.mean_target(teacher, noise, TEMPERATURE, draws=8000)
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    clean = (teacher.double() / TEMPERATURE).softmax(1)
    mean = torch.zeros_like(clean)
    for node, weight in zip(nodes, weights / weights.sum(), strict=True):
        mean += weight * (teacher.double() * (1 + 0.7 * node) / TEMPERATURE).softmax(1)
    expected = 0.6 * clean + 0.4 * mean
    p = (target.double() / TEMPERATURE).softmax(1)
    assert 1e-4 < error < 3e-3
    assert float((p - expected).abs().max()) < 4 * error
    assert float((p - clean).abs().max()) > 10 * error
    unchanged, none = relatives.mean_target(teacher, replace(noise, sigma=0.0), TEMPERATURE, draws=2)
    assert torch.allclose((unchanged / TEMPERATURE).softmax(1), clean.float(), atol=1e-6)
    assert none == pytest.approx(0, abs=1e-6)


def test_a_permuted_teacher_has_the_same_rows_in_another_order() -> None:
    mixed = relatives.permuted(table(), 1)
    order = (mixed[:, None] == table()).all(2).long().argmax(1)
    assert sorted(order.tolist()) == list(range(96))
    assert (order != torch.arange(96)).float().mean() > 0.9
    assert not torch.equal(mixed, relatives.permuted(table(), 2))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A few embedded digits, two epochs, and the study's teachers."""
    study = Workspace(
        tmp_path_factory.mktemp("relatives"), {"name": "mnist-5k", "limit": 200}, "pretrained:lenet-mnist", epochs=2
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relatives, "COPIES", 2)
        relatives.prepare_teachers(study, None)
    return study


@pytest.mark.parametrize("cell", relatives.CELLS.values(), ids=lambda cell: cell.name)
def test_every_arm_trains_and_is_read_again(
    cell: relatives.Cell, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Titles and files are distinct; references exist; each arm is a training of its own."""
    monkeypatch.setattr(relatives, "COPIES", 2)
    arms, lr = relatives.ARMS[cell.loss], relatives.RATES[cell.name][0]
    assert len({arm.name for arm in arms}) == len(arms)
    assert {arm.reference for arm in arms} <= {"", *(arm.title for arm in arms)}
    trained = [relatives.train_relative(workspace, cell, arm, lr, 0) for arm in arms]
    assert [relatives.train_relative(workspace, cell, arm, lr, 0) for arm in arms] == trained
    for row in trained:
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(row["wrong"]), dtype=np.uint8))
        assert row["test"] == pytest.approx(100 * bits.sum() / 200)
        assert not row["diverged"]


def test_targets_are_those_of_the_arms_teachers(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relatives, "COPIES", 2)
    arms, rows = {arm.title: arm for arm in relatives.ARMS["logit_regression"]}, torch.tensor([5, 1, 9])
    targets = {title: relatives.targets_of(workspace, arm, rows, 0) for title, arm in arms.items()
               if arm.teacher != "labels"}  # fmt: skip
    splits = nt.load_data("mnist-5k", limit=200)
    pretrained = nt.load_model("pretrained:lenet-mnist")(splits.train.images_at(rows)).detach()
    assert torch.allclose(targets["clean"][0], pretrained, atol=1e-4)
    assert [len(targets[title]) for title in ("fickle teacher, copy per row", "clean")] == [2, 1]
    first = [targets[title][0] for title in ("clean", "clean, dropout teacher", "fickle teacher, copy per row",
                                             "clean, own teacher", "teacher of 40 % wrong labels")]  # fmt: skip
    assert not any(torch.allclose(a, b) for number, a in enumerate(first) for b in first[:number])


def test_differences_are_to_each_arms_own_reference() -> None:
    draws = np.random.default_rng(0)
    arms = relatives.ARMS["logit_regression"]
    rows: list[dict[str, Any]] = [
        {"arm": asdict(arm), "lr": 0.03, "seed": seed, "diverged": False, "train_error": 0.0, "val": 5.0,
         "test": 5.0 + 10 * (arm.teacher in ("dropout", "copies")) - (arm.combine == "pick-row") + draws.normal(0, 0.1)}
        for arm in arms for seed in range(5)
    ]  # fmt: skip
    record = relatives.judge_cell(relatives.CELLS["patient-logit_regression"], range(5), rows)
    gaps = record["against_reference"]
    assert gaps["fickle teacher, copy per row"]["high"] < 0 < gaps["fickle teacher, copy per row"]["mean"] + 1.3
    assert gaps["fickle teacher, copy per row"]["reference"] == "clean, dropout teacher"
    assert gaps.keys() == {arm.title for arm in arms if arm.reference and arm.reference != arm.title}
    assert abs(gaps["noise, mean of 3 draws"]["mean"]) < 0.5
    assert (gaps["labels alone"]["comparisons"], gaps["permuted teacher"]["comparisons"]) == (2, 1)
    # A random teacher's students scatter widely: intervals of the others stay as they are.
    wide = [{**row, "test": row["test"] + 20 * (row["arm"]["control"] == "permuted") * row["seed"]} for row in rows]
    scattered = relatives.judge_cell(relatives.CELLS["patient-logit_regression"], range(5), wide)["against_reference"]
    assert scattered["permuted teacher"]["high"] > gaps["permuted teacher"]["high"] + 20
    assert scattered["noise, mean of 3 draws"] == gaps["noise, mean of 3 draws"]


def test_an_arm_that_diverged_is_not_compared() -> None:
    """Nor is what is compared with it; the others are as without it."""
    draws = np.random.default_rng(0)
    arms = relatives.ARMS["logit_regression"]
    rows: list[dict[str, Any]] = [
        {"arm": asdict(arm), "lr": 0.03, "seed": seed, "diverged": False, "train_error": 0.0, "val": 5.0,
         "test": 5.0 + draws.normal(0, 0.1)}
        for arm in arms for seed in range(5)
    ]  # fmt: skip
    cell, gone = relatives.CELLS["patient-logit_regression"], ("mix, sigma 0.5", "clean, own teacher")
    for row in rows:
        if row["arm"]["title"] in gone and row["seed"] == 3:
            row |= {"diverged": True, "test": 90.2}
    record = relatives.judge_cell(cell, range(5), rows)
    assert record["diverged"] == dict.fromkeys(gone, 1)
    assert not record["arms"].keys() & set(gone)
    without = relatives.judge_cell(cell, range(5), [row for row in rows if row["arm"]["title"] not in gone])
    compared = without["against_reference"]
    assert record["against_reference"] == compared
    assert compared.keys().isdisjoint({*gone, "teacher of 40 % wrong labels"})
    assert compared["noise, mean of 3 draws"]["high"] < 1


def test_validation_chooses_the_rate_of_every_arm(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The study's table, with one arm and trainings in this process."""
    cell = relatives.CELLS["patient-logit_regression"]

    def train(workspace: Workspace, cell: relatives.Cell, arm: relatives.Arm, lr: float, seed: int) -> Json:
        val = {("clean", 0.03): 5.0, ("clean", 0.06): 4.0, ("labels alone", 0.12): 1.0}.get((arm.title, lr), 6.0)
        return {"arm": asdict(arm), "lr": lr, "seed": seed, "diverged": False, "val": val, "test": 50 * lr + seed,
                "train_error": 0.0}  # fmt: skip

    monkeypatch.setattr(relatives, "train_relative", train)
    monkeypatch.setattr(relatives, "prepare_teachers", lambda workspace, watch: None)
    monkeypatch.setattr(process, "worker_pool", lambda jobs: ThreadPoolExecutor(jobs))
    record = relatives.run_cell(workspace, replace(cell, seeds=3), 1, None)
    assert record["arms"]["clean"]["settings"]["lr"] == 0.06
    assert record["arms"]["labels alone"]["settings"]["lr"] == 0.12
    assert record["arms"]["clean"]["test_error_%"]["last"] == [8.0, 9.0, 10.0]
