"""Batch norms whose running statistics lag behind a short training are estimated anew before each validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import noisyteacher as nt
from helpers import part
from noisyteacher.errors import ConfigError
from noisyteacher.models import as_classifier
from noisyteacher.train.validation import batch_norms_lag, reestimate_batch_norms

CPU = torch.device("cpu")


def ring(role: str, rows: int = 96, seed: int = 0) -> nt.Split:
    """Three classes that differ in brightness, sorted by class."""
    labels = torch.arange(rows) * 3 // rows
    noise = torch.randint(0, 60, (rows, 1, 6, 6), generator=torch.Generator().manual_seed(seed))
    images = (labels.view(-1, 1, 1, 1) * 80 + noise).to(torch.uint8)
    return nt.Split(
        name="ring", role=role, images=images, labels=labels, index=torch.arange(rows), class_names=("a", "b", "c")
    )


def network(momentum: float | None = 0.01, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8, momentum=momentum), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(128, 16), nn.BatchNorm1d(16, momentum=momentum), nn.Linear(16, 3)
    )


@pytest.mark.parametrize(
    ("momentum", "steps", "expected"),
    [(0.1, 20, False), (0.1, 19, True), (0.01, 199, True), (0.01, 200, False), (None, 1000, True), (0.0, 5, False)],
)
def test_statistics_lag_where_they_reach_back_more_than_half_an_epoch(
    momentum: float | None, steps: int, expected: bool
) -> None:
    assert batch_norms_lag(nn.Sequential(nn.BatchNorm2d(4, momentum=momentum)), steps) is expected


def test_a_model_without_running_statistics_does_not_lag() -> None:
    assert not batch_norms_lag(nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(4, track_running_stats=False)), 1)


def test_a_short_training_with_slow_statistics_learns_only_when_they_are_reestimated() -> None:
    errors = {}
    for batch_norm in ("running", "reestimate"):
        model = network()
        history = nt.fit(
            model, ring("train"), nt.supervised(), val=ring("val", seed=1), epochs=4, batch_size=16, lr=1e-2,
            batch_norm=batch_norm,
        )  # fmt: skip
        errors[batch_norm] = history.epochs[-1]["val/error"]
    assert errors["running"] > 30
    assert errors["reestimate"] < 5


def test_the_statistics_are_those_of_the_training_images() -> None:
    layers, split = network(), ring("train", rows=2048)
    model = as_classifier(layers, input_shape=split.input_shape)
    reestimate_batch_norms(model, split, CPU, "fp32", torch.contiguous_format)
    rows = torch.linspace(0, 2047, 1024).long()
    outputs = part(layers, "0")(model.preprocess(split.images_at(rows)))
    torch.testing.assert_close(part(layers, "1").running_mean, outputs.mean((0, 2, 3)), rtol=1e-4, atol=1e-4)
    assert part(layers, "1").momentum == 0.01


def test_fast_statistics_are_left_as_the_training_averaged_them() -> None:
    states = []
    for batch_norm in ("running", "reestimate"):
        model = network(momentum=0.5)
        nt.fit(model, ring("train"), nt.supervised(), epochs=2, batch_size=16, batch_norm=batch_norm)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_interrupted_at_every_step_and_resumed_gives_the_same_bits(tmp_path: Path) -> None:
    """With dropout, whose draws within the estimate must not depend on where the training was resumed."""
    options: dict[str, Any] = {"epochs": 2, "batch_size": 32, "batch_norm": "reestimate", "seed": 3}
    options["val"] = ring("val", seed=1)
    whole = network(dropout=0.3)
    nt.fit(whole, ring("train"), nt.supervised(), **options)

    class StopError(Exception):
        pass

    for last in range(1, 7):

        def interrupt(tick: object, last: int = last) -> None:
            if getattr(tick, "step", 0) == last:
                raise StopError

        folder = tmp_path / str(last)
        options_kept = {**options, "run": folder, "checkpoint_every_s": 0.0}
        with pytest.raises(StopError):
            nt.fit(network(dropout=0.3), ring("train"), nt.supervised(), progress=interrupt, **options_kept)
        resumed = network(dropout=0.3)
        nt.fit(resumed, ring("train"), nt.supervised(), resume=True, **options_kept)
        for name, value in whole.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[name]), (last, name)


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(ConfigError, match="reestimate"):
        nt.fit(network(), ring("train"), nt.supervised(), epochs=1, batch_norm="reestimated")
