"""Bytes, latency with its conditions, memory by hand, ratios; and a model that is as before afterwards."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from noisyteacher.errors import MismatchError, UsageError
from noisyteacher.measure import measure, percentile
from noisyteacher.models import Classifier, as_classifier, build_model, save_model


def model() -> Classifier:
    return build_model("mlp800", classes=4, input_shape=(1, 4, 4))


def test_bytes_are_those_of_the_file(tmp_path: Path) -> None:
    classifier = build_model("mlp800", classes=4, input_shape=(1, 4, 4), preprocess="local-contrast")
    save_model(classifier, tmp_path / "m.safetensors")
    result = measure(classifier, latency=False)
    assert result.bytes == os.path.getsize(tmp_path / "m.safetensors")
    assert result.bytes > 4 * result.parameters


def test_latency_travels_with_its_conditions() -> None:
    before = torch.get_num_threads()
    result = measure(model(), batch=3, threads=before + 1, runs=7).latency_ms
    assert result is not None
    assert (result.batch, result.threads, result.device, result.runs) == (3, before + 1, "cpu", 7)
    assert 0 < result.median <= result.p95
    assert torch.get_num_threads() == before
    assert measure(model(), latency=False).latency_ms is None


def test_latency_is_in_milliseconds_per_call() -> None:
    class Sleeps(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            assert not torch.is_grad_enabled()
            Sleeps.calls += 1
            time.sleep(0.004)
            return x.flatten(1)

    result = measure(Sleeps(), (1, 2, 2), batch=8, runs=5).latency_ms
    assert result is not None
    assert 4 <= result.median < 12
    assert Sleeps.calls >= 5 + 3 + 1


def test_percentiles_are_real_values_by_nearest_rank() -> None:
    values = [float(value) for value in range(20, 0, -1)]
    assert percentile(values, 50) == 10
    assert percentile(values, 95) == 19
    assert percentile([3.0], 95) == percentile([3.0], 50) == 3.0
    assert percentile([1.0, 2.0, 9.0], 50) == 2.0


@pytest.mark.parametrize("batch", [1, 5])
def test_peak_memory_of_a_hand_made_net(batch: int) -> None:
    """Bytes alive at once, by hand: a chain of three layers needs the two largest neighbours, never all of them."""

    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide = nn.Linear(16, 1000, bias=False)
            self.narrow = nn.Linear(1000, 10, bias=False)
            self.register_buffer("table", torch.zeros(7))

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(1)
            x = self.wide(x)  # [B, 1000]
            x = x + 1  # [B, 1000], the first still alive
            x = x + 1  # the first is gone
            x = self.narrow(x)
            return x.repeat(1, 2)

    weights = 4 * (16 * 1000 + 1000 * 10 + 7)
    images, scaled = batch * 16, 4 * batch * 16
    result = measure(Chain(), (1, 4, 4), batch=batch, latency=False)
    # While the second wide tensor is made: the images, and two wide ones; the caller's scaled images live on as well.
    assert result.peak_memory_bytes == weights + images + scaled + 2 * 4 * batch * 1000
    assert result.batch == batch


def test_views_and_in_place_results_take_no_memory_of_their_own() -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(1).view(-1, 2, 50).transpose(1, 2).reshape(-1, 2, 50)[:, 0]  # transposing back copies once
            return x.relu_().add_(1).mul_(2)[:, :3]

    result = measure(InPlace(), (1, 10, 10), latency=False)
    assert result.peak_memory_bytes == 100 + 4 * 100 + 4 * 100


def test_tied_weights_are_held_and_counted_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.b(self.a(x.flatten(1)))
            return logits

    result = measure(Tied(), (1, 8, 8), latency=False)
    assert result.parameters == 64 * 64
    assert sum(layer.parameters for layer in result.layers) == 64 * 64
    assert result.macs == 2 * 64 * 64
    assert result.peak_memory_bytes < 4 * 64 * 64 + 64 + 4 * 4 * 64


def test_the_model_is_as_before_afterwards() -> None:
    torch.manual_seed(0)
    core = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 3))
    core[0].eval()
    state = {name: tensor.clone() for name, tensor in core.state_dict().items()}
    random = torch.random.get_rng_state()
    first = measure(core, (1, 4, 4), runs=2)
    assert [part.training for part in core] == [False, True, True, True]
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(torch.equal(tensor, state[name]) for name, tensor in core.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in core.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in core.parameters())
    again = measure(core, (1, 4, 4), runs=2)
    assert dataclasses.replace(again, latency_ms=None) == dataclasses.replace(first, latency_ms=None)


def test_hooks_and_modes_are_put_back_when_the_model_fails() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            self.fc(x.flatten(1))
            raise RuntimeError("no")

    broken = as_classifier(Fails())
    broken.architecture["input_shape"] = [1, 2, 2]
    with pytest.raises(RuntimeError, match="no"):
        measure(broken)
    assert broken.training
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in broken.modules())
    assert torch.backends.mkldnn.enabled


def test_a_training_step_after_measuring_still_works() -> None:
    class Caches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)
            self.table: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            if self.table is None:
                self.table = torch.ones(1, 4)
            logits: Tensor = self.fc(x.flatten(1) * self.table)
            return logits

    module = Caches()
    measure(module, (1, 2, 2), runs=1)
    module(torch.ones(3, 1, 2, 2)).sum().backward()
    assert module.fc.weight.grad is not None


@pytest.mark.parametrize("frozen", ["network.0", ""])
def test_frozen_weights_cost_what_others_do(frozen: str) -> None:
    classifier = as_classifier(nn.Sequential(nn.Linear(4, 8), nn.Flatten(), nn.Linear(32, 3)), input_shape=(1, 4, 4))
    before = measure(classifier, latency=False, batch=3)
    classifier.get_submodule(frozen).requires_grad_(False)
    flags = [parameter.requires_grad for parameter in classifier.parameters()]
    assert measure(classifier, latency=False, batch=3) == before
    assert [parameter.requires_grad for parameter in classifier.parameters()] == flags


def test_costs_are_json_when_asked() -> None:
    text = json.dumps(dataclasses.asdict(measure(model(), runs=1)))
    assert json.loads(text)["macs"] == 16 * 800 + 800 * 800 + 800 * 4


@pytest.mark.parametrize("setting", [{"batch": 0}, {"runs": 0}, {"threads": 0}, {"batch": 1.5}, {"runs": True}])
def test_impossible_settings_are_refused_by_name(setting: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(setting))):
        measure(model(), **setting)


def test_devices_and_shapes_that_cannot_be_are_refused() -> None:
    with pytest.raises(UsageError, match="device 'abacus'"):
        measure(model(), device="abacus")
    with pytest.raises(UsageError, match="pass input_shape"):
        measure(nn.Flatten())
    for shape in (28, (28, 28), (1, 0, 28), (1, 2.5, 28), "1,4,4"):
        with pytest.raises(UsageError, match=r"input_shape .*channels, height, width"):
            measure(model(), shape)  # type: ignore[arg-type]
    with pytest.raises(MismatchError, match="input_shape"):
        measure(model(), (3, 4, 4))
    assert measure(model(), (1, 4, 4), device="cpu", latency=False).parameters > 0
