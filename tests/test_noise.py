"""The noise against closed forms: who is selected, how far the noise reaches, what two conditions share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import noisyteacher as nt
from helpers import Draw, draw_of, perturbed, scale
from noisyteacher import noise as noise_module
from noisyteacher.config import schema
from noisyteacher.errors import ConfigError, MismatchError, TrainingError, UsageError
from noisyteacher.noise import UnitNoise, sample_unit_noise, unit_noise_at
from noisyteacher.rng import generator


def clean(rows: int = 64, classes: int = 10) -> torch.Tensor:
    return torch.randn(rows, classes, generator=generator(7, "logits")) * 5


def noise_at(noise: nt.Noise, step: int, rows: torch.Tensor | None, total_steps: int | None = None) -> Draw:
    """The noise of a step for these rows of a split of five."""
    batch = 3 if rows is None else len(rows)
    unit_noise = unit_noise_at(noise, seed=1, step=step, rows=rows, total_rows=5, batch=batch, classes=4)
    return Draw(unit_noise.selected(noise.alpha), unit_noise.xi(noise.sigma_at(step, total_steps)))


@pytest.mark.parametrize(
    ("kind", "expected"), [("multiplicative", [[3.0, 0.0], [3.0, -1.0]]), ("additive", [[2.5, 3.0], [3.0, -1.0]])]
)
def test_eq_2_by_hand(kind: str, expected: list[list[float]]) -> None:
    unit_noise = UnitNoise(torch.tensor([[0.1], [0.6]]), torch.tensor(0.0), torch.tensor([[1.0, -2.0]]))
    logits = torch.tensor([[2.0, 4.0], [3.0, -1.0]])
    noisy = nt.perturb(logits, sigma=0.5, alpha=0.5, kind=kind, unit_noise=unit_noise)  # type: ignore[arg-type]
    assert torch.equal(noisy, torch.tensor(expected))


@pytest.mark.parametrize("kind", get_args(schema.Kind))
@pytest.mark.parametrize("draw", ["batch", "row"])
@pytest.mark.parametrize(("sigma", "alpha"), [(0.0, 1.0), (0.9, 0.0)])
def test_no_noise_is_bit_identical(draw: str, kind: str, sigma: float, alpha: float) -> None:
    logits = clean()
    logits[0, 0] = -0.0
    noisy = nt.perturb(logits, sigma=sigma, alpha=alpha, draw=draw, kind=kind, generator=generator(0, "n"))  # type: ignore[arg-type]
    assert torch.equal(noisy.view(torch.int32), logits.view(torch.int32))


@pytest.mark.parametrize("distribution", get_args(schema.Distribution))
@pytest.mark.parametrize("draw", ["row", "scalar"])
def test_sigma_is_a_standard_deviation(draw: str, distribution: str) -> None:
    noise = nt.Noise(sigma=0.7, alpha=1.0, draw=draw, distribution=distribution)  # type: ignore[arg-type]
    xi = draw_of(noise, 40_000, 10, generator(0, "sd")).xi
    bound = 5 / math.sqrt(xi.numel())
    assert abs(float(xi.mean())) < 0.7 * bound
    assert abs(float(xi.std()) / 0.7 - 1) < 2 * bound


@pytest.mark.parametrize(("distribution", "kurtosis"), [("gaussian", 3.0), ("uniform", 1.8), ("laplace", 6.0)])
def test_the_distributions_differ_in_their_fourth_moment(distribution: str, kurtosis: float) -> None:
    noise = nt.Noise(sigma=1.0, alpha=1.0, draw="row", distribution=distribution)  # type: ignore[arg-type]
    xi = draw_of(noise, 100_000, 10, generator(0, "k")).xi
    assert float(xi.double().pow(4).mean()) == pytest.approx(kurtosis, rel=0.05)


def test_alpha_selects_samples_independently() -> None:
    """Over many batches the number selected is binomial: its mean T alpha, its variance T alpha (1 - alpha)."""
    noise = nt.Noise(sigma=1.0, alpha=0.3)
    counts = torch.tensor([float(draw_of(noise, 64, 10, generator(s, "m")).selected.sum()) for s in range(3000)])
    assert float(counts.mean()) == pytest.approx(64 * 0.3, rel=0.02)
    assert float(counts.var()) == pytest.approx(64 * 0.3 * 0.7, rel=0.15)


@pytest.mark.parametrize(("draw", "rows", "columns"), [("batch", 1, 10), ("row", 64, 10), ("scalar", 64, 1)])
def test_the_readings_of_xi(draw: str, rows: int, columns: int) -> None:
    noisy = nt.perturb(torch.ones(64, 10), sigma=0.5, alpha=1.0, draw=draw, generator=generator(0, "x"))  # type: ignore[arg-type]
    assert torch.equal(noisy, noisy[:rows, :columns].expand(64, 10))
    assert len(set(noisy.flatten().tolist())) == rows * columns


def test_conditions_share_their_draws() -> None:
    """More alpha keeps the selected samples; more sigma stretches the same directions."""
    few, many = (draw_of(nt.Noise(sigma=0.5, alpha=a), 64, 10, generator(3, "s")) for a in (0.2, 0.7))
    assert bool((few.selected <= many.selected).all())
    assert int(few.selected.sum()) < int(many.selected.sum())
    assert torch.equal(few.xi, many.xi)
    wide = draw_of(nt.Noise(sigma=1.0, alpha=0.2), 64, 10, generator(3, "s"))
    assert torch.equal(wide.xi, 2 * few.xi)


def test_a_range_of_sigma_is_drawn_uniformly_per_batch() -> None:
    """Relative to the draw at sigma 1 the scale is one number per batch, uniform on the range."""
    scales = []
    for step in range(2000):
        wide = draw_of(nt.Noise(sigma=(0.01, 1.0), alpha=1.0), 8, 10, generator(step, "r")).xi
        unit = draw_of(nt.Noise(sigma=1.0, alpha=1.0), 8, 10, generator(step, "r")).xi
        ratio = wide / unit
        assert torch.allclose(ratio, ratio[0, 0].expand_as(ratio), rtol=1e-4)
        scales.append(float(ratio[0, 0]))
    assert 0.01 <= min(scales) <= max(scales) <= 1.0
    assert np.mean(scales) == pytest.approx(0.505, abs=0.03)
    assert np.std(scales) == pytest.approx(0.99 / math.sqrt(12), rel=0.05)


def test_expected_loss_is_the_clean_loss_plus_a_constant() -> None:
    """E L(z') = L(z) + alpha sigma^2 / 2T * sum ||z||^2: the second term does not depend on the student."""
    teacher, student = clean(16), torch.randn(16, 10, generator=generator(1, "student"))
    noise = nt.Noise(sigma=0.6, alpha=0.4, draw="row")
    losses = [float(nt.logit_regression(student, perturbed(teacher, noise, generator(s, "e")))) for s in range(4000)]
    expected = float(nt.logit_regression(student, teacher)) + 0.4 * 0.36 / 32 * float(teacher.square().sum())
    assert abs(np.mean(losses) - expected) < 4 * np.std(losses) / math.sqrt(len(losses))


def test_noise_on_the_student_regularises() -> None:
    """E ||(1 + xi) g - z||^2 = ||g - z||^2 + alpha sigma^2 ||g||^2, and the gradient flows through the factor."""
    teacher = clean(16)
    student = torch.randn(16, 10, generator=generator(1, "student"), requires_grad=True)
    noise = nt.Noise(sigma=0.6, alpha=0.4, draw="row")
    total = torch.zeros(())
    for s in range(4000):
        total = total + nt.logit_regression(perturbed(student, noise, generator(s, "g")), teacher)
    torch.autograd.backward(total / 4000)
    assert student.grad is not None
    expected = ((student - teacher) + 0.4 * 0.36 * student).detach() / 16
    assert torch.allclose(student.grad, expected, atol=0.08)


def test_fresh_and_frozen() -> None:
    rows = torch.tensor([3, 1, 2])
    fresh = nt.Noise(sigma=1.0, alpha=1.0, draw="row")
    assert not torch.equal(noise_at(fresh, 0, rows).xi, noise_at(fresh, 1, rows).xi)
    assert torch.equal(noise_at(fresh, 1, rows).xi, noise_at(fresh, 1, rows).xi)
    frozen = replace(fresh, frozen=True, alpha=0.5)
    first, later = noise_at(frozen, 0, rows), noise_at(frozen, 9, rows.flip(0))
    assert torch.equal(first.xi.flip(0), later.xi)
    assert torch.equal(first.selected.flip(0), later.selected)
    with pytest.raises(MismatchError, match="row numbers"):
        noise_at(frozen, 0, None)


@given(
    sigma=st.floats(0, 3), alpha=st.floats(0, 1), rows=st.integers(1, 9), classes=st.integers(2, 6), seed=st.integers(0)
)
@settings(max_examples=60, deadline=None)
def test_unselected_rows_are_untouched(sigma: float, alpha: float, rows: int, classes: int, seed: int) -> None:
    logits = clean(rows, classes)
    noise = nt.Noise(sigma=sigma, alpha=alpha, draw="row")
    draw = draw_of(noise, rows, classes, generator(seed, "u"))
    noisy = perturbed(logits, noise, generator(seed, "u"))
    selected = draw.selected[:, 0]
    assert torch.equal(noisy[~selected], logits[~selected])
    assert torch.allclose(noisy[selected], (logits * (1 + draw.xi))[selected])


def test_all_wrong_settings_are_reported_together() -> None:
    with pytest.raises(ConfigError) as raised:
        nt.Noise(sigma=-0.5, alpha=1.5, draw="rows", kind="add")  # type: ignore[arg-type]
    for part in ("noise.sigma: given -0.5", "noise.alpha: given 1.5", "did you mean 'row'?", "noise.kind: given 'add'"):
        assert part in str(raised.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *[({"sigma": s}, "sigma") for s in ((0.5, 0.1), (1.0,), math.nan, math.inf, "0.5", True, (-1.0, 1.0), "auto")],
        *[({"alpha": alpha}, "alpha") for alpha in (-0.1, math.nan, "auto", True)],
        *[({"sigma": s}, "sigma: given a") for s in (torch.tensor(0.5), torch.tensor([0.1, 0.5]), {0.9, 0.1}, None)],
        ({"alpha": torch.tensor(0.5)}, "alpha: given a Tensor"),
        *[({"frozen": frozen}, f"frozen: given {frozen!r}; expected true") for frozen in ("no", 1, None)],
        ({"sigma": (0.1, 0.5), "frozen": True}, "a range of sigma is drawn per batch"),
        ({"schedule": "linaer"}, "did you mean 'linear'"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        nt.Noise(**{"sigma": 0.5, "alpha": 0.5, **options})  # type: ignore[arg-type]


BROKEN = torch.tensor([[0.0, 1.0], [math.inf, -math.inf]])


@pytest.mark.parametrize(
    ("logits", "error", "message"),
    [
        (torch.ones(4, 1), MismatchError, r"\[4, 1\]"),
        (torch.ones(4, 3, dtype=torch.int64), MismatchError, "int64"),
        ([[1.0, 2.0]], MismatchError, "logits are a list"),
        (np.ones((4, 3), np.float32), MismatchError, "logits are a ndarray"),
        (BROKEN, TrainingError, "first in row 1"),
        *[(torch.tensor([[0.0, 0.0], [0.0, bad]]), TrainingError, "row 1") for bad in (math.nan, math.inf, -math.inf)],
    ],
)
def test_bad_logits_are_refused(logits: torch.Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        nt.perturb(logits, sigma=0.0, alpha=0.5)


def test_finite_logits_whose_sum_is_infinite_are_accepted() -> None:
    largest = torch.full((3, 4), 3e38)
    assert torch.equal(nt.perturb(largest, sigma=0.0, alpha=0.5), largest)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (torch.tensor([3]), r"int64 \[1\].*int64 \[6\]"),
        (torch.tensor([[0, 1, 2, 3, 4, 5]]), r"int64 \[1, 6\]"),
        (torch.arange(6.0), r"float32 \[6\]"),
        ([0, 1, 2, 3, 4, 5], "rows are a list"),
        (torch.tensor([0, 1, 2, 3, 4, -1]), r"rows -1\.\.4.*0\.\.7"),
        (torch.tensor([0, 1, 2, 3, 4, 8]), r"rows 0\.\.8.*0\.\.7"),
    ],
)
def test_frozen_noise_takes_one_row_of_the_split_per_sample(rows: torch.Tensor, words: str) -> None:
    """One row for six images would be broadcast, a negative one would count from the end."""
    frozen = nt.Noise(sigma=1.0, alpha=1.0, draw="row", frozen=True)
    with pytest.raises(MismatchError, match=words):
        unit_noise_at(frozen, seed=0, step=0, rows=rows, total_rows=8, batch=6, classes=4)


def test_a_generator_and_a_noise_are_what_they_must_be() -> None:
    with pytest.raises(UsageError, match=r"generator is a int.*torch\.Generator"):
        nt.perturb(clean(), sigma=0.5, alpha=0.5, generator=3)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"noise=0\.5: expected an nt\.Noise"):
        nt.compress("lenet", "mlp800", "mnist-5k", noise=0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["multiplicative", "additive"])
def test_half_precision_is_rounded_once(kind: str, dtype: torch.dtype) -> None:
    """The result is the exact one rounded to the type: 1 + xi alone would already lose most of a small xi."""
    logits = clean().to(dtype)
    noise = nt.Noise(sigma=0.003, alpha=0.5, draw="row", kind=kind)  # type: ignore[arg-type]
    draw = draw_of(noise, 64, 10, generator(0, "half"))
    wide, xi = logits.double(), draw.xi.double()
    exact = torch.where(draw.selected, wide * (1 + xi) if kind == "multiplicative" else wide + xi, wide)
    noisy = perturbed(logits, noise, generator(0, "half"))
    assert noisy.dtype == dtype
    assert float((noisy != exact.to(dtype)).float().mean()) < 0.005  # rounding by way of fp32 rarely differs
    assert torch.equal(noisy[~draw.selected[:, 0]], logits[~draw.selected[:, 0]])


def test_half_precision_that_overflows_is_refused() -> None:
    logits = torch.full((8, 4), 60_000.0, dtype=torch.float16)
    with pytest.raises(TrainingError, match=r"overflow.*float16"):
        nt.perturb(logits, sigma=1.0, alpha=1.0, draw="row", generator=generator(0, "h"))
    assert torch.equal(nt.perturb(logits, sigma=1.0, alpha=0.0), logits)


def test_float32_that_overflows_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"overflow.*float32"):
        nt.perturb(clean(), sigma=1e38, alpha=1.0, draw="row", generator=generator(0, "o"))


@pytest.mark.parametrize("distribution", get_args(schema.Distribution))
def test_draws_do_not_depend_on_the_default_dtype(distribution: schema.Distribution) -> None:
    logits, results = clean(), []
    try:
        for dtype in (torch.float32, torch.float64):
            torch.set_default_dtype(dtype)
            draws = generator(3, "dtype")
            noisy = nt.perturb(logits, sigma=0.5, alpha=0.5, draw="row", distribution=distribution, generator=draws)
            results.append(noisy)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(*results)


UNFIT: dict[str, Callable[[], torch.Tensor]] = {
    "sparse": lambda: clean().to_sparse(),
    "nested": lambda: torch.nested.nested_tensor([clean()[0], clean()[1]], layout=torch.jagged),
    "float8": lambda: clean().to(torch.float8_e4m3fn),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_tensors_that_cannot_be_perturbed_are_refused(kind: str) -> None:
    with pytest.raises(MismatchError, match=f"{kind}.*dense"):
        nt.perturb(UNFIT[kind](), sigma=0.5, alpha=0.5)


def test_torch_may_map_compile_and_export_it() -> None:
    class Noisy(torch.nn.Module):
        def forward(self, logits: torch.Tensor) -> torch.Tensor:
            return nt.perturb(logits, sigma=0.5, alpha=1.0, draw="row")

    logits = clean(48).view(3, 16, 10)
    mapped = torch.vmap(Noisy(), randomness="different")(logits)
    compiled = torch.compile(Noisy(), fullgraph=True, backend="eager")
    exported = torch.export.export(Noisy(), (logits[0],)).module()
    for noisy in (mapped[0], compiled(logits[0]), exported(logits[0])):
        assert noisy.shape == (16, 10)
        factors = noisy / logits[0] - 1
        assert 0.3 < float(factors.std()) < 0.7
    assert not torch.equal(mapped[0] / logits[0], mapped[1] / logits[1])
    assert nt.perturb(logits[0].to("meta"), sigma=0.5, alpha=0.5).is_meta


def test_frozen_noise_is_drawn_once_for_each_of_many_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `fit_many` asks for it: at every step for all seeds in turn."""
    draws: list[int] = []

    def counted(draw: str, distribution: str, rows: int, *more: Any) -> UnitNoise:
        draws.append(rows)
        return sample_unit_noise(draw, distribution, rows, *more)

    monkeypatch.setattr(noise_module, "sample_unit_noise", counted)
    noise_module._frozen_unit_noise.cache_clear()
    frozen, rows = nt.Noise(sigma=0.5, alpha=0.5, draw="row", frozen=True), torch.arange(3)
    for step in range(2):
        for seed in range(20):
            unit_noise_at(frozen, seed=seed, step=step, batch=3, classes=4, rows=rows, total_rows=5)
    assert draws == [5] * 20


SCALES = {
    "constant": [1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
    "linear": [1.0, 0.75, 0.5, 0.25, 0.0, 0.0],
    "cosine": [1.0, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4, 0.0, 0.0],
    "late": [0.0, 0.0, 1.0, 1.0, 1.0, 1.0],
}
"""Schedule -> what sigma is multiplied by at steps 0 to 5 of 4: the last two are past the end."""


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", get_args(schema.SigmaSchedule))
def test_a_schedule_scales_sigma_and_nothing_else(name: str, frozen: bool) -> None:
    """Every schedule sees the draws of constant noise: same rows, same directions, another length."""
    rows = torch.tensor([4, 0, 2])
    constant = nt.Noise(sigma=0.8, alpha=0.5, draw="row", frozen=frozen)
    scheduled = replace(constant, schedule=name)  # type: ignore[arg-type]
    for step, factor in enumerate(SCALES[name]):
        expected, draw = noise_at(constant, step, rows), noise_at(scheduled, step, rows, 4)
        assert torch.equal(draw.selected, expected.selected)
        assert torch.allclose(draw.xi, factor * expected.xi, rtol=1e-6, atol=1e-7)
        assert bool(expected.xi.all())
    assert torch.equal(draw_of(constant, 6, 4, generator(0, "c")).xi, draw_of(scheduled, 6, 4, generator(0, "c")).xi)
    if name != "constant":
        with pytest.raises(MismatchError, match=f"schedule '{name}' needs the length of the run"):
            scheduled.sigma_at(3, None)


def test_constant_noise_needs_no_length_and_keeps_its_bits() -> None:
    noise = nt.Noise(sigma=0.8, alpha=0.5)
    unit_noise = unit_noise_at(noise, seed=0, step=3, batch=6, classes=4)
    for total_steps in (None, 7):
        sigma = noise.sigma_at(3, total_steps)
        for value in (sigma, torch.tensor(sigma)):  # as training steps pass it
            assert torch.equal(unit_noise.xi(value).view(torch.int32), (unit_noise.unit * 0.8).view(torch.int32))
    assert torch.equal(unit_noise.selected(torch.tensor(0.5)), unit_noise.chance < 0.5)
    assert scale(noise, unit_noise).xi.shape == (1, 4)


def test_a_noise_is_described_in_json() -> None:
    noise = nt.Noise(sigma=[0.1, 1], alpha=1)  # type: ignore[arg-type]
    assert (noise.sigma, noise.describe()["sigma"], noise.describe()["draw"]) == ((0.1, 1.0), [0.1, 1.0], "batch")
    assert nt.Noise(**noise.describe()) == noise  # type: ignore[arg-type]


def test_numbers_of_numpy_are_numbers_and_a_temperature_without_effect_is_refused() -> None:
    noise = nt.Noise(sigma=np.float32(0.5), alpha=np.float16(1))  # type: ignore[arg-type]
    assert (noise.sigma, noise.alpha) == (0.5, 1.0)
    with pytest.raises(ConfigError, match=r"temperature=7\.0: has no effect on noise of kind 'multiplicative'"):
        nt.perturb(torch.randn(4, 10), sigma=0.5, alpha=0.5, temperature=7.0)
