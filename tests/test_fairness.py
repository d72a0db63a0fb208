"""Whether a comparison asked a fair question of the noise: the clock in closed form, what is left of the targets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import noisyteacher as nt
from noisyteacher.config import build_config
from noisyteacher.config.schema import TrainSettings
from noisyteacher.pipeline import compression, noise_choice
from noisyteacher.pipeline.compression import compress_config
from noisyteacher.pipeline.fairness import FITTED, WINDOW, is_fair, regime_of, regime_words
from noisyteacher.runs import Run
from noisyteacher.train.state import noise_clock

SGD: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "lr": 0.1, "batch_size": 20, "epochs": 10}
NOISE: dict[str, Any] = {"sigma": 0.6, "alpha": 0.5}


@pytest.mark.parametrize(
    ("settings", "noise", "squares"),
    [  # the sum over 10 epochs of 10 steps of the squared factors on rate and sigma, in units of the constant ones
        ({"schedule": "constant"}, {}, 100),
        ({"schedule": "constant"}, {"until": 0.3}, 30),
        ({"schedule": "linear"}, {}, sum((1 - step / 100) ** 2 for step in range(100))),
        ({"schedule": "hold", "hold": 0.5}, {}, 50 + sum((1 - step / 50) ** 2 for step in range(50))),
        ({"schedule": "constant", "momentum": 0.5}, {}, 100 * 2**2),
        ({"schedule": "constant", "momentum": None}, {}, 100 * 10**2),
        ({"schedule": "constant"}, {"sigma": (0.0, 0.6)}, 100 / 3),  # the mean square of a uniform draw
        ({"schedule": "constant"}, {"schedule": "late"}, 50),
        ({"schedule": "constant"}, {"draw": "row", "alpha": 1.0}, 200),
        ({"schedule": "constant"}, {"draws": 4}, 25),  # their mean has a quarter of the variance
    ],
)
def test_the_clock_is_the_sum_of_rate_squared_times_the_noise_of_the_targets(
    settings: dict[str, Any], noise: dict[str, Any], squares: float
) -> None:
    clock = noise_clock(TrainSettings(**{**SGD, **settings}), nt.Noise(**{**NOISE, **noise}), 10, 4.0)
    assert clock == pytest.approx(squares * 0.1**2 * 0.5 * 0.6**2 * 4.0 / 20, rel=1e-9)


@pytest.mark.parametrize("noise", [{"target": "student"}, {"frozen": True}])
def test_no_clock_is_made_up(noise: dict[str, Any]) -> None:
    assert noise_clock(TrainSettings(**SGD), nt.Noise(**NOISE, **noise), 10, 4.0) is None
    assert (
        noise_clock(TrainSettings(**{**SGD, "optimizer": "adam", "momentum": None}), nt.Noise(**NOISE), 10, 4.0) is None
    )


def record_of(student: dict[str, Any], noise: dict[str, Any], lines: list[dict[str, float]]) -> Any:
    """The record of students whose last epochs have these metrics; the teacher's logits have a mean square of 9."""
    config = build_config({"student": {"name": "mlp800", "preset": "paper", **student}, "noise": noise})
    return regime_of(config.student, nt.Noise(**noise), 10, 3.0, lines)


@pytest.mark.parametrize("kind", ["additive", "mix"])
def test_noise_that_is_added_moves_by_its_own_size_not_by_that_of_the_logits(kind: str) -> None:
    sgd = {"optimizer": "sgd", "momentum": 0.0, "lr": 0.1, "label_weight": 0.0}
    line = {"epoch": 4, "step": 40, "train/loss": 1.0}
    multiplied, added = (record_of(sgd, {**NOISE, **more}, [line])["clock"] for more in ({}, {"kind": kind}))
    assert multiplied == pytest.approx(9 * added)


def test_a_student_that_answers_0_leaves_all_of_its_targets() -> None:
    """1/(2B) sum ||0 - z||^2 is K/2 times the mean square of z: 45 for ten classes and a mean square of 9."""
    teacher = torch.randn(400, 10, dtype=torch.float64)
    teacher *= 3 / teacher.square().mean().sqrt()
    loss = float(nt.logit_regression(torch.zeros(400, 10), teacher.float()))
    line = {"epoch": 4, "step": 40, "train/loss": loss}
    assert record_of({}, NOISE, [line])["unfitted_%"] == pytest.approx(100, rel=1e-5)
    in_units = {**line, "train/loss": loss / 9}
    assert record_of({"scale": "rms"}, NOISE, [in_units])["unfitted_%"] == pytest.approx(100, rel=1e-5)
    half = {**line, "train/loss": 0.0}
    assert record_of({}, NOISE, [line, half])["unfitted_%"] == pytest.approx(50, rel=1e-5)
    with_labels = {**line, "train/loss": 7.0, "train/teacher_term": loss, "train/label_term": 1.0}
    assert record_of({"label_weight": 0.5}, NOISE, [with_labels])["unfitted_%"] == pytest.approx(100, rel=1e-5)
    noisy = {**line, "train/loss": 100.0, "train/clean_loss": loss}
    assert record_of({}, NOISE, [noisy])["unfitted_%"] == pytest.approx(100, rel=1e-5)
    assert record_of({}, NOISE, [noisy])["steps"] == 40
    soft = record_of({"loss": "soft_targets"}, NOISE, [line])
    assert (soft["unfitted_%"], soft["clock"], is_fair(soft)) == (None, None, False)
    assert "40 steps" in regime_words(soft)


def test_the_clock_of_a_compression_has_the_units_of_its_loss() -> None:
    line = {"epoch": 10, "step": 100, "train/loss": 0.1}
    sgd = {**SGD, "schedule": "constant"}
    base = 100 * 0.1**2 * 0.5 * 0.6**2 / 20
    for student, noise, factor in (
        ({"scale": "rms"}, {}, 1),
        ({}, {}, 9),
        ({}, {"kind": "additive"}, 1),
        ({"scale": "rms", "label_weight": 0.25}, {}, 0.75**2),
    ):
        record = record_of({**sgd, **student}, {**NOISE, **noise}, [line])
        assert record["clock"] == pytest.approx(base * factor, rel=1e-9)


def test_a_question_is_fair_after_the_fit_and_inside_the_window() -> None:
    fair = {"steps": 1000, "unfitted_%": FITTED / 2, "clock": sum(WINDOW) / 2}
    assert is_fair(fair)
    for change in (
        {"unfitted_%": 2 * FITTED}, {"unfitted_%": None}, {"clock": None}, {"clock": WINDOW[0] / 2},
        {"clock": 2 * WINDOW[1]},
    ):  # fmt: skip
        assert not is_fair({**fair, **change})
        assert regime_words({**fair, **change}) != regime_words(fair)
    assert "1,000 steps" in regime_words(fair)


def test_a_compression_states_its_regime(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "data": {"limit": 60},
        "teacher": {"epochs": 1},
        "student": {"name": "mlp800", "preset": "patient", "steps": 6},
        "noise": {"sigma": 0.9, "alpha": 0.5, "draw": "row"},
        "run": {"output_dir": str(tmp_path)},
    }
    result = compress_config(build_config(settings))
    assert result.regime is not None
    record = result.regime["noisy"]
    last = Run.open(result.path / "clean-seed0").metrics()[-1]
    assert record["steps"] == last["step"] == 6
    assert record["unfitted_%"] == pytest.approx(100 * last["train/loss"] / 5)
    patient = build_config(settings).student
    names = ("optimizer", "momentum", "lr", "batch_size", "schedule", "hold", "warmup_epochs")
    recipe = TrainSettings(epochs=3, **{name: getattr(patient, name) for name in names})
    assert record["clock"] == pytest.approx(noise_clock(recipe, nt.Noise(**settings["noise"]), 2, 1.0))
    assert regime_words(record)[1:] in str(result.verdict)
    assert result.describe()["regime"] == result.regime


def test_the_regime_is_that_of_the_recipe_that_auto_meant(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "data": {"limit": 60},
        "teacher": {"epochs": 1},
        "student": {"name": "mlp128", "epochs": 1, "optimizer": "sgd", "loss": "logit_regression", "label_weight": 0},
        "noise": {"sigma": 0.5, "alpha": 0.5},
        "run": {"output_dir": str(tmp_path), "baselines": False},
    }
    result = compress_config(build_config(settings))
    assert result.regime is not None
    recipe = TrainSettings(epochs=1, optimizer="sgd", lr=0.01, batch_size=32, schedule="cosine", warmup_epochs=0.5)
    assert result.regime["noisy"]["clock"] is not None
    expected = noise_clock(recipe, nt.Noise(sigma=0.5, alpha=0.5), 2, 1.0)
    assert expected is not None
    assert result.regime["noisy"]["clock"] / expected > 1  # by the mean square of the logits


def test_the_clock_is_at_the_rate_of_the_noisy_students(tmp_path: Path) -> None:
    """Clean ones may have another: here validation wants a lower rate under a strong noise."""
    recipe = {
        "optimizer": "sgd",
        "momentum": 0.0,
        "epochs": 3,
        "batch_size": 32,
        "schedule": "constant",
        "warmup_epochs": 0.0,
    }
    student = {"name": "mlp128", "loss": "logit_regression", "label_weight": 0.0, "scale": "rms", "views": ["clean"]}
    settings: dict[str, Any] = {
        "data": {"limit": 200},
        "teacher": {"name": "pretrained:lenet-mnist"},
        "student": {**student, **recipe, "lr": 0.06, "weight_decay": 0.0},
        "noise": {"sigma": 5.0, "alpha": 1.0, "draw": "row"},
        "choice": {"lrs": [0.005, 0.1], "seeds": 1, "controls": False},
        "run": {"output_dir": str(tmp_path), "checks": False},
    }
    result = compress_config(build_config(settings))
    rates = {condition.kind: condition.settings.get("student.lr") for condition in result.conditions}
    assert (rates["clean"], rates["noisy"]) == (0.1, 0.005)
    assert result.regime is not None
    expected = noise_clock(TrainSettings(**{**recipe, "lr": 0.005}), nt.Noise(**settings["noise"]), 7, 1.0)  # type: ignore[arg-type]
    assert result.regime["noisy"]["clock"] == pytest.approx(expected)


def test_the_unit_of_a_regime_is_that_of_what_the_student_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one teacher picked per batch, not of the mean of two."""
    units: list[float] = []

    def seen(recipe: Any, noise: nt.Noise, classes: int, unit: float, lines: Any) -> Any:
        units.append(unit)
        return regime_of(recipe, noise, classes, unit, lines)

    monkeypatch.setattr(compression, "regime_of", seen)
    settings: dict[str, Any] = {
        "data": {"limit": 60},
        "teacher": {"epochs": 1, "also": ["mlp128"]},
        "student": {"name": "mlp128", "epochs": 1},
        "noise": {"sigma": 0.9, "alpha": 0.5},
        "run": {"output_dir": str(tmp_path), "baselines": False},
    }
    for combine in ("mean", "pick"):
        settings["student"]["combine"] = combine
        compress_config(build_config(settings))
    assert units[0] != units[1]


def test_where_no_noise_was_chosen_its_regime_is_stated_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise_choice.NoiseTrial, "mean", property(lambda trial: float(trial.noise is not None)))
    settings: dict[str, Any] = {
        "data": {"limit": 60},
        "teacher": {"epochs": 1},
        "student": {"name": "mlp800", "preset": "patient", "steps": 6},
        "noise": {"sigma": "auto", "alpha": 0.5, "draw": "row"},
        "choice": {"sigmas": [0.5, 0.9], "weight_decays": [0.0]},
        "run": {"output_dir": str(tmp_path)},
    }
    result = compress_config(build_config(settings))
    assert result.noise is None
    assert result.regime is not None
    assert result.regime.keys() == {"clean"}
    named = settings | {"noise": {"sigma": 0.5, "alpha": 0.5, "draw": "row"}, "choice": {}}
    expected = compress_config(build_config(named)).regime
    assert expected is not None
    assert result.regime["clean"]["clock"] == pytest.approx(expected["noisy"]["clock"])  # of equals the first is best
    assert "so no noise was chosen. Not a fair question: after 6 steps" in str(result)


def test_the_clock_of_every_published_gain_is_in_the_window() -> None:
    """Of plain gradient descent on logits, where noise beat the clean student at its rate, without weight decay."""
    records = json.loads((Path(__file__).parents[1] / "docs" / "results" / "regime.json").read_text(encoding="utf-8"))
    clocks = [
        record["arms"]["noisy, no decay"]["clock"]
        for record in records
        if record["cell"]["optimizer"] == "sgd"
        and record["cell"]["loss"] == "logit_regression"
        and record["contrasts"]["without weight decay, at one rate"]["high"] < 0
    ]
    assert len(clocks) >= 4
    assert WINDOW[0] <= min(clocks)
    assert max(clocks) <= WINDOW[1]
