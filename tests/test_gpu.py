"""What only shows on a GPU: `make test-gpu`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisyteacher as nt
from helpers import NOISES, SETTINGS, SHAPE, blobs, lines, network, table
from noisyteacher.errors import TrainingError
from noisyteacher.models import as_classifier
from noisyteacher.train import cuda_graph
from noisyteacher.train.cuda_graph import CapturedStep, GraphEngine
from test_replayed import Late, step_by_step

pytestmark = pytest.mark.gpu
ON_GPU: dict[str, Any] = {**SETTINGS, "device": "cuda"}


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of every capture whether it was one."""
    found: list[bool] = []
    capture = GraphEngine._capture

    def counted(self: GraphEngine, step: CapturedStep) -> None:
        capture(self, step)
        found.append(step.graph is not None)

    monkeypatch.setattr(GraphEngine, "_capture", counted)
    return found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "muon"])
def test_a_replayed_training_is_the_one_step_by_step(optimizer: str, precision: str, captured: list[bool]) -> None:
    """Rounding apart, which differs between kernels and grows; with dropout, whose draws a graph replays by seed."""
    data = nt.load_data("mnist-5k")
    train, val = data.train.take(1000), data.val.take(300)
    targets = torch.randn(1000, 10, generator=torch.Generator().manual_seed(0)) * 3
    objective = nt.distil(targets, noise=nt.Noise(sigma=0.5, alpha=0.5))
    options = {"val": val, "epochs": 3, "precision": precision, "optimizer": optimizer, "device": "cuda"}
    models = [nt.build_model("lenet", data=data, seed=0, dropout=0.3) for _ in range(2)]
    expected = step_by_step(models[0], train, objective, **options)
    assert not captured
    found = nt.fit(models[1], train, objective, **options)  # type: ignore[arg-type]
    assert captured == [True, True][: len(captured)] != []
    assert found.replayed
    for one, other in zip(lines(found), lines(expected), strict=True):
        assert one["train/loss"] == pytest.approx(other["train/loss"], rel=5e-3 if precision == "fp32" else 2e-2)
        assert one["noise/flipped_%"] == other["noise/flipped_%"]


def test_many_take_one_graph(captured: list[bool]) -> None:
    seeds = [number % 2 for number in range(len(NOISES))]
    models, alone = ([network(seed) for seed in seeds] for _ in range(2))
    taught = [nt.distil(table(), noise=noise) for noise in NOISES]
    many = nt.fit_many(models, blobs(), taught, seeds=seeds, **ON_GPU)
    assert captured == [True]
    for found, model, objective, seed in zip(many, alone, taught, seeds, strict=True):
        expected = step_by_step(model, blobs(), objective, seed=seed, **ON_GPU)
        assert lines(found)[-1]["train/loss"] == pytest.approx(lines(expected)[-1]["train/loss"], rel=1e-2)


def test_a_gradient_that_is_not_finite_ends_it_behind_a_checkpoint_too(tmp_path: Path, captured: list[bool]) -> None:
    white = blobs()
    white.images[60] = 255
    options = {**ON_GPU, "batch_size": 8, "checkpoint_every_s": 0.0, "run": tmp_path / "run"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_graph, "is_graph_safe", lambda network: True)
        with pytest.raises(TrainingError, match=r"the gradient of network\.inner\.bias is not finite"):
            nt.fit(as_classifier(Late(), input_shape=SHAPE), white, nt.distil(table(), noise=NOISES[1]), **options)


def test_what_cannot_be_captured_goes_on_as_it_did(captured: list[bool]) -> None:
    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(64, 3)

        def forward(self, images: Tensor) -> Tensor:
            return self.inner(images.flatten(1)) * (1.0 if float(images.mean()) >= 0 else 2.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_graph, "is_graph_safe", lambda network: True)
        found = nt.fit(as_classifier(Asking(), input_shape=SHAPE), blobs(), nt.supervised(), **ON_GPU)
    assert captured == [False]
    assert not found.replayed
    assert found.epochs[-1]["train/loss"] < found.epochs[0]["train/loss"]


def test_resumed_it_goes_on(tmp_path: Path) -> None:
    objective = nt.distil(table(), noise=NOISES[4])

    def stopping(tick: Any) -> None:
        if tick.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        nt.fit(network(4), blobs(), objective, run=tmp_path / "run", progress=stopping, **ON_GPU)
    found = nt.fit(network(9), blobs(), objective, run=tmp_path / "run", resume=True, **ON_GPU)
    expected = nt.fit(network(4), blobs(), objective, **ON_GPU)
    assert lines(found)[-1]["train/loss"] == pytest.approx(lines(expected)[-1]["train/loss"], rel=1e-2)


def test_answers_and_scores_are_those_of_the_cpu(tmp_path: Path) -> None:
    data = nt.load_data("mnist-5k")
    model = nt.load_model("pretrained:lenet-mnist")
    stores = [nt.extract(model, data.val, tmp_path / place, device=place) for place in ("cpu", "cuda")]
    rows = torch.arange(len(data.val))
    one, other = (store.logits("clean", rows) for store in stores)
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    errors = [nt.evaluate(model, data.val, device=place).error for place in ("cpu", "cuda")]
    assert errors[0] == errors[1]
