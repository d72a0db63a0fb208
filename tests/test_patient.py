"""The patient recipe: a rate that holds, noise that ends, logits in units of their size, weights alone decayed, and
the trace of the Gauss-Newton matrix.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import noisyteacher as nt
from helpers import blobs, table
from noisyteacher.config import Student, build_config
from noisyteacher.config.schema import TrainSettings
from noisyteacher.errors import ConfigError, MismatchError, TrainingError, UsageError
from noisyteacher.models import load_weights, reordered
from noisyteacher.pipeline.compression import compress_config
from noisyteacher.pipeline.single_step import train_config
from noisyteacher.runs import Run
from noisyteacher.train import curvature
from noisyteacher.train.curvature import gauss_newton_trace
from noisyteacher.train.optim import build_optimizer
from noisyteacher.train.state import rate_factor

OPTIONS: dict[str, Any] = {
    "batch_size": 32, "optimizer": "sgd", "momentum": 0.0, "lr": 0.02, "precision": "fp32", "device": "cpu",
    "progress": False,
}  # fmt: skip


def mlp(hidden: int = 8) -> nt.Classifier:
    """A small network for `blobs`, as `fit` takes it with a scale."""
    torch.manual_seed(1)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.Tanh(), nn.Linear(hidden, 3))
    return nt.build_model(layers, classes=3, input_shape=(1, 8, 8))


@pytest.mark.parametrize(
    ("hold", "expected"),
    [
        (0.6, [1, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]),
        (0.0, [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
        (1.0, [1] * 10),
    ],
)
def test_a_rate_that_holds_falls_linearly_afterwards(hold: float, expected: list[float]) -> None:
    assert [rate_factor("hold", step, 10, 0, hold) for step in range(10)] == pytest.approx(expected)
    assert rate_factor("hold", 0, 14, 4, hold) == 0.25  # the warm-up comes first, the share is of what follows
    assert [rate_factor("hold", step, 14, 4, hold) for step in range(4, 14)] == pytest.approx(expected)
    assert rate_factor("hold", 10**6 - 1, 10**6, 0, hold) > 0


def test_noise_ends_with_the_share_until() -> None:
    noise = nt.Noise(sigma=0.8, alpha=0.5, until=0.5)
    assert [noise.sigma_at(step, 4)[0] for step in range(5)] == [0.8, 0.8, 0.0, 0.0, 0.0]
    assert nt.Noise(sigma=0.8, alpha=0.5).sigma_at(9, None) == (0.8, 0.8)
    falling = nt.Noise(sigma=0.8, alpha=0.5, schedule="linear", until=0.75)
    assert [falling.sigma_at(step, 4)[0] for step in range(4)] == pytest.approx([0.8, 0.6, 0.4, 0.0])
    with pytest.raises(nt.NoisyTeacherError, match=r"until=0.5 needs the length of the run"):
        noise.sigma_at(0, None)
    for until in (0.0, 1.5):
        with pytest.raises(ConfigError, match=r"noise\.until"):
            nt.Noise(sigma=0.8, alpha=0.5, until=until)


def test_resumed_around_the_end_of_the_noise_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """Three steps an epoch, eight epochs: the noise ends after step 12; runs are stopped before, at and after that."""
    noise = nt.Noise(sigma=0.9, alpha=0.5, draw="row", until=0.5)

    def train(folder: Path, stop: int | None, resume: bool = False) -> nt.Classifier:
        def progress(tick: Any) -> None:
            if tick.step == stop:
                raise KeyboardInterrupt

        model = mlp()
        objective = nt.distil(table(), noise=noise, scale="rms")
        options = {**OPTIONS, "epochs": 8, "schedule": "hold", "hold": 0.5, "progress": progress}
        nt.fit(model, blobs(), objective, val=blobs(30, "val"), run=folder, resume=resume, **options)
        return model

    whole = train(tmp_path / "whole", None)
    for stop in (11, 12, 13):
        folder = tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt):
            train(folder, stop)
        resumed = train(folder, None, resume=True)
        assert all(
            torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
        )
        assert (folder / "weights.safetensors").read_bytes() == (tmp_path / "whole/weights.safetensors").read_bytes()


def test_the_loss_without_noise_is_among_the_numbers_of_a_noisy_step() -> None:
    split, logits = blobs(32), torch.randn(32, 3)
    rows = torch.arange(32)
    batch = nt.Batch(split.images_at(rows), None, rows, ("clean",), torch.zeros(32, dtype=torch.int64), 0, 0, 32)
    for target in ("teacher", "student"):
        noise = nt.Noise(sigma=0.9, alpha=1.0, draw="row", target=target)
        loss, numbers = nt.distil(table(32), noise=noise)(logits, batch)
        clean, _ = nt.distil(table(32))(logits, batch)
        assert numbers["train/clean_loss"] == pytest.approx(float(clean))
        assert float(loss) != pytest.approx(float(clean), rel=1e-3)


@pytest.mark.parametrize(("step", "share"), [(4, 100.0), (5, 0.0)])
def test_no_sample_is_selected_where_the_noise_has_ended(step: int, share: float) -> None:
    rows, views = torch.arange(32), torch.zeros(32, dtype=torch.int64)
    batch = nt.Batch(blobs(32).images_at(rows), None, rows, ("clean",), views, step, 0, 32, total_steps=10)
    noise = nt.Noise(sigma=0.9, alpha=1.0, draw="row", until=0.5)
    _, numbers = nt.distil(table(32), noise=noise)(torch.randn(32, 3), batch)
    assert float(numbers["noise/selected_%"]) == share
    assert (float(numbers["noise/xi_rms"]) > 0) == (share > 0)


def test_the_length_in_steps_is_rounded_up_to_epochs() -> None:
    for steps, epochs in ((1, 1), (3, 1), (4, 2), (7, 3)):  # three steps an epoch
        history = nt.fit(mlp(), blobs(), nt.distil(table()), steps=steps, **OPTIONS)
        assert len(history.epochs) == epochs
        assert history.epochs[-1]["step"] == 3 * epochs


def test_weight_decay_leaves_biases_alone_when_told_to() -> None:
    for optimizer, decayed in (("sgd", 0.95), ("adamw", 0.95)):
        layer = nn.Linear(3, 2)
        with torch.no_grad():
            layer.weight.fill_(1.0), layer.bias.fill_(1.0)
        settings = TrainSettings(
            optimizer=optimizer, lr=0.1, weight_decay=0.5, decay_biases=False,  # type: ignore[arg-type]
            momentum=0.0 if optimizer == "sgd" else None,
        )  # fmt: skip
        for parameter in layer.parameters():
            parameter.grad = torch.zeros_like(parameter)
        build_optimizer(settings, dict(layer.named_parameters())).step()
        assert torch.allclose(layer.weight, torch.full((2, 3), decayed))
        assert torch.equal(layer.bias, torch.ones(2))
    with pytest.raises(ConfigError, match="decay_biases"):
        nt.fit(mlp(), blobs(), nt.distil(table()), decay_biases=False, **OPTIONS)


def test_students_trained_together_decay_as_alone() -> None:
    options = {
        **OPTIONS,
        "epochs": 2,
        "optimizer": "adamw",
        "momentum": None,
        "weight_decay": 0.3,
        "decay_biases": False,
    }
    models, alone = [mlp(), mlp()], [mlp(), mlp()]
    objectives = [
        nt.distil(table(), scale="rms"),
        nt.distil(table(), noise=nt.Noise(sigma=0.5, alpha=0.5), scale="rms"),
    ]
    nt.fit_many(models, blobs(), objectives, seeds=[0, 0], **options)
    for model, single, objective in zip(models, alone, objectives, strict=True):
        nt.fit(single, blobs(), objective, **options)
        for value, expected in zip(model.state_dict().values(), single.state_dict().values(), strict=True):
            assert torch.allclose(value, expected, rtol=1e-4, atol=1e-5)


def test_with_a_scale_the_loss_is_in_units_of_the_logits_and_the_student_in_the_teachers(tmp_path: Path) -> None:
    """A student that learns z / rms and is multiplied by rms, to a hand-made copy of it, step by step."""
    logits, split = 20 * table(), blobs()
    rms = math.sqrt(float(logits.double().square().mean()))
    scaled, unscaled = mlp(), mlp()
    history = nt.fit(scaled, split, nt.distil(logits, scale="rms"), epochs=3, **OPTIONS)
    expected = nt.fit(unscaled, split, nt.distil(logits / rms), epochs=3, **OPTIONS)
    for line, reference in zip(history.epochs, expected.epochs, strict=True):
        assert line["train/loss"] == pytest.approx(reference["train/loss"], rel=1e-5)
    images = split.images_at(torch.arange(8))
    outputs = scaled.eval()(images)
    assert torch.allclose(outputs, rms * unscaled.eval()(images), rtol=1e-4)
    nt.save_model(scaled, tmp_path / "student.safetensors")
    untrained = mlp()
    load_weights(untrained, tmp_path / "student.safetensors")
    assert torch.equal(untrained.eval()(images), outputs)


def test_a_scaled_student_of_the_package_is_rebuilt_from_its_file(tmp_path: Path) -> None:
    data = nt.load_data("mnist-5k", limit=64)
    student = nt.build_model("mlp800", data)
    logits = 10 * torch.randn(len(data.train), 10, generator=torch.Generator().manual_seed(0))
    nt.fit(student, data.train, nt.distil(logits, scale="rms"), epochs=1, **OPTIONS)
    images = data.val.images_at(torch.arange(4))
    nt.save_model(student, tmp_path / "student.safetensors")
    loaded = nt.load_model(tmp_path / "student.safetensors")
    assert torch.equal(loaded(images), student.eval()(images))
    assert float(loaded(images).detach().abs().mean()) > 1
    pytest.importorskip("torch_pruning", reason="needs the extra prune")
    narrower = nt.build_model("shrink:0.5", data, teacher=loaded)  # the network in it is what is narrowed
    assert sum(p.numel() for p in narrower.parameters()) < sum(p.numel() for p in student.parameters())


def test_a_scale_that_cannot_be_kept_is_refused() -> None:
    bare = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(UsageError, match=r"scale='rms'.*build_model"):
        nt.fit(bare, blobs(), nt.distil(table(), scale="rms"), epochs=1, **OPTIONS)
    with pytest.raises(UsageError, match="scale 'max'"):
        nt.distil(table(), scale="max")
    with pytest.raises(TrainingError, match="all 0"):
        nt.fit(mlp(), blobs(), nt.distil(torch.zeros(96, 3), scale="rms"), epochs=1, **OPTIONS)


def test_the_trace_is_the_sum_of_squared_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """To a Jacobian by torch.func, plain and weighted by the targets; Hutchinson's within four standard errors."""
    model, images = mlp(5), blobs(12).images_at(torch.arange(12))
    targets, unit = table(12), 2.0
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    jacobian = torch.func.jacrev(lambda values: torch.func.functional_call(model, values, (images,)) / unit)(parameters)
    squares = sum(part.flatten(2).square().sum(2) for part in jacobian.values())
    plain = float(squares.sum(1).mean())
    weighted = float((squares * (targets / unit).square()).sum(1).mean())
    exact = gauss_newton_trace(model, images, targets, unit=unit)
    assert exact.plain == pytest.approx(plain, rel=1e-5)
    assert exact.weighted == pytest.approx(weighted, rel=1e-5)
    assert (exact.probes, exact.plain_error, exact.rows) == (0, 0.0, 12)
    monkeypatch.setattr(curvature, "EXACT_ELEMENTS", 0)
    estimate = gauss_newton_trace(model, images, targets, unit=unit)
    assert estimate.weighted is not None
    assert estimate.probes > 0
    assert 0 < estimate.plain_error < 0.2 * plain
    assert abs(estimate.plain - plain) < 4 * estimate.plain_error
    assert abs(estimate.weighted - weighted) < 4 * estimate.weighted_error
    assert all(not part.requires_grad or part.grad is None for part in model.parameters())


def test_a_compression_by_the_patient_preset_records_its_trace(tmp_path: Path) -> None:
    config = build_config(
        {
            "data": {"name": "mnist-5k", "limit": 100},
            "teacher": {"name": "pretrained:lenet-mnist"},
            "student": {"preset": "patient", "name": "mlp800", "steps": 6, "precision": "fp32"},
            "noise": {"sigma": 0.9, "alpha": 0.5, "draw": "row", "until": 0.5},
            "run": {"trace": True, "output_dir": str(tmp_path), "device": "cpu", "checks": False, "baselines": False},
        }
    )
    result = compress_config(config)
    record = Run(result.path / "noisy-seed0").result()
    assert record is not None
    trace = record["training"]["trace"]
    assert trace["plain"] > 0
    assert trace["weighted"] > 0
    assert record["training"]["epochs"] == 2  # six steps of 32 of 100 rows, a validation after each epoch


def test_a_reordered_and_scaled_student_is_rebuilt_from_its_file(tmp_path: Path) -> None:
    """In either order of the two wrappers."""
    data = nt.load_data("mnist-5k", limit=64)
    images, order = data.val.images_at(torch.arange(4)), [1, 0, *range(2, 10)]
    logits = 10 * torch.randn(len(data.train), 10, generator=torch.Generator().manual_seed(0))
    inside = reordered(nt.build_model("mlp800", data), order)
    outside = nt.build_model("mlp800", data)
    for model in (inside, outside):
        nt.fit(model, data.train, nt.distil(logits, scale="rms"), epochs=1, **OPTIONS)
    for model in (inside, reordered(outside, order)):
        nt.save_model(model, tmp_path / "student.safetensors")
        assert torch.equal(nt.load_model(tmp_path / "student.safetensors")(images), model.eval()(images))


def test_a_fit_that_is_refused_leaves_the_outputs_alone(tmp_path: Path) -> None:
    nt.fit(mlp(), blobs(), nt.distil(table()), run=tmp_path, epochs=1, **OPTIONS)
    infinite = table()
    infinite[3, 1] = math.inf
    images = blobs().images_at(torch.arange(4))
    for teacher, folder in ((table(), tmp_path), (infinite, None), (torch.randn(96, 7), None), (table(32), None)):
        model = mlp().eval()
        before = model(images)
        with pytest.raises(nt.NoisyTeacherError):
            nt.fit(model, blobs(), nt.distil(teacher, scale="rms"), run=folder, epochs=1, **OPTIONS)
        assert torch.equal(model.eval()(images), before)
    models = [mlp(), mlp()]
    objectives = [nt.distil(table(), scale="rms"), nt.distil(table())]
    with pytest.raises(UsageError, match="scales none, rms"):
        nt.fit_many(models, blobs(), objectives, seeds=[0, 1], epochs=1, **OPTIONS)
    assert not any("output_scale" in name for model in models for name, _ in model.named_buffers())


def test_what_is_refused_behind_the_unit_leaves_the_outputs_alone_too(tmp_path: Path) -> None:
    """A run of other settings, an unknown tracker, a frozen network, networks that differ."""
    objective = nt.distil(table(), scale="rms")
    nt.fit(mlp(), blobs(), objective, run=tmp_path / "done", epochs=1, **OPTIONS)
    images, resumed = blobs().images_at(torch.arange(4)), {**OPTIONS, "epochs": 2, "resume": True}
    cases: list[tuple[nt.Classifier, dict[str, Any]]] = [
        (mlp(), {"run": tmp_path / "done", **resumed}),
        (mlp(), {"run": tmp_path / "new", "track": ["wandbb"], **OPTIONS}),
        (mlp().requires_grad_(False), OPTIONS),
    ]
    for model, options in cases:
        before = model.eval()(images)
        with pytest.raises(nt.NoisyTeacherError):
            nt.fit(model, blobs(), objective, **options)
        assert torch.equal(model.eval()(images), before)
    [model] = models = [mlp()]
    before = model.eval()(images)
    [outcome] = nt.fit_many(models, blobs(), [objective], seeds=[0], runs=[tmp_path / "done"], **resumed)
    assert isinstance(outcome, MismatchError)
    assert torch.equal(model.eval()(images), before)
    with pytest.raises(UsageError, match="share weights, or are one"):
        nt.fit_many([model, model], blobs(), [objective, objective], seeds=[0, 1], epochs=1, **OPTIONS)
    assert torch.equal(model.eval()(images), before)


def test_the_unit_is_measured_where_the_student_learns() -> None:
    class Witness:
        devices: ClassVar[set[str]] = set()

        def logits(self, batch: nt.Batch) -> torch.Tensor:
            self.devices.add(batch.images.device.type)
            return torch.full((len(batch.rows), 3), 2.0)

    witness: Any = Witness()
    objective = replace(nt.distil(table(), scale="rms"), teacher=witness)
    assert objective.prepared(blobs(), ("clean",), "meta").unit == 2.0
    assert Witness.devices == {"meta"}


def test_the_unit_of_teachers_that_are_picked_is_that_of_all() -> None:
    tables = [table(), 100 * table()]
    sizes = [float(part.double().square().mean()) for part in tables]
    for teachers in (tables, tables[::-1]):
        prepared = nt.distil(teachers, combine="pick", scale="rms").prepared(blobs(), ("clean",))
        assert prepared.unit == pytest.approx(math.sqrt(sum(sizes) / 2))


def test_what_is_named_beside_the_preset_wins() -> None:
    """And what the preset decides only for its own choice is not blamed on the user."""

    def student(**named: Any) -> Student:
        return build_config({"student": {"preset": "patient", **named}}).student

    assert (student().steps, student().epochs) == (12000, 20)
    assert (student(epochs=3).steps, student(epochs=3).epochs) == (None, 3)
    assert student(weight_decay=0.0).decay_biases
    assert student(optimizer="adamw").momentum is None
    assert student(optimizer="muon").decay_biases
    with pytest.raises(ConfigError, match=r"student\.steps: 9 beside epochs = 3"):
        student(epochs=3, steps=9)
    with pytest.raises(ConfigError, match="steps: 9 beside epochs = 3"):
        nt.fit(mlp(), blobs(), nt.distil(table()), epochs=3, steps=9, **OPTIONS)
    with pytest.raises(ConfigError, match=r"noise\.until.*late"):
        nt.Noise(sigma=0.5, alpha=0.5, schedule="late", until=0.5)


def test_a_trace_of_views_by_family_and_of_a_frozen_network(tmp_path: Path) -> None:
    config = build_config(
        {
            "data": {"name": "mnist-5k", "limit": 60},
            "teacher": {"name": "mlp800", "preset": "paper", "epochs": 1, "views": ["crop"]},
            "run": {"trace": True, "output_dir": str(tmp_path), "device": "cpu"},
        }
    )
    trained = train_config(config)
    assert trained.result["training"]["trace"]["plain"] > 0
    assert trained.result["training"]["trace"]["weighted"] is None
    frozen = mlp().requires_grad_(False)
    assert gauss_newton_trace(frozen, blobs(4).images_at(torch.arange(4))).plain == 0
    with pytest.raises(UsageError, match="for students alone"):
        train_config(build_config({"teacher": {"preset": "patient"}, "data": {"limit": 60}}))
