"""What only shows on a GPU: `make test-gpu`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisyteacher as nt
from helpers import NOISES, SETTINGS, SHAPE, InfiniteSlope, blobs, lines, network, step_by_step, table
from noisyteacher.errors import TrainingError
from noisyteacher.models import as_classifier
from noisyteacher.train import cuda_graph
from noisyteacher.train.cuda_graph import CapturedStep, GraphEngine

pytestmark = pytest.mark.gpu
ON_GPU: dict[str, Any] = {**SETTINGS, "device": "cuda"}


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of every capture whether it was one."""
    graphs: list[bool] = []
    capture = GraphEngine._capture

    def counted(self: GraphEngine, step: CapturedStep) -> None:
        capture(self, step)
        graphs.append(step.graph is not None)

    monkeypatch.setattr(GraphEngine, "_capture", counted)
    return graphs


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
    history = nt.fit(models[1], train, objective, **options)  # type: ignore[arg-type]
    assert captured == [True, True][: len(captured)] != []
    assert history.replayed
    for line, reference in zip(lines(history), lines(expected), strict=True):
        assert line["train/loss"] == pytest.approx(reference["train/loss"], rel=5e-3 if precision == "fp32" else 2e-2)
        assert line["noise/flipped_%"] == reference["noise/flipped_%"]


def test_many_take_one_graph(captured: list[bool]) -> None:
    seeds = [number % 2 for number in range(len(NOISES))]
    models, alone = ([network(seed) for seed in seeds] for _ in range(2))
    objectives = [nt.distil(table(), noise=noise) for noise in NOISES]
    many = nt.fit_many(models, blobs(), objectives, seeds=seeds, **ON_GPU)
    assert captured == [True]
    for history, model, objective, seed in zip(many, alone, objectives, seeds, strict=True):
        expected = step_by_step(model, blobs(), objective, seed=seed, **ON_GPU)
        assert lines(history)[-1]["train/loss"] == pytest.approx(lines(expected)[-1]["train/loss"], rel=1e-2)


def test_a_gradient_that_is_not_finite_ends_it_behind_a_checkpoint_too(tmp_path: Path, captured: list[bool]) -> None:
    white = blobs()
    white.images[60] = 255
    options = {**ON_GPU, "batch_size": 8, "checkpoint_every_s": 0.0, "run": tmp_path / "run"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_graph, "is_graph_safe", lambda network: True)
        with pytest.raises(TrainingError, match=r"the gradient of network\.inner\.bias is not finite"):
            nt.fit(
                as_classifier(InfiniteSlope(), input_shape=SHAPE), white, nt.distil(table(), noise=NOISES[1]), **options
            )


def test_what_cannot_be_captured_goes_on_as_it_did(captured: list[bool]) -> None:
    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(64, 3)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.inner(images.flatten(1)) * (1.0 if float(images.mean()) >= 0 else 2.0)
            return logits

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_graph, "is_graph_safe", lambda network: True)
        history = nt.fit(as_classifier(Asking(), input_shape=SHAPE), blobs(), nt.supervised(), **ON_GPU)
    assert captured == [False]
    assert not history.replayed
    assert history.epochs[-1]["train/loss"] < history.epochs[0]["train/loss"]


def test_resumed_it_goes_on(tmp_path: Path) -> None:
    objective = nt.distil(table(), noise=NOISES[4])

    def stopping(tick: Any) -> None:
        if tick.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        nt.fit(network(4), blobs(), objective, run=tmp_path / "run", progress=stopping, **ON_GPU)
    resumed = nt.fit(network(9), blobs(), objective, run=tmp_path / "run", resume=True, **ON_GPU)
    expected = nt.fit(network(4), blobs(), objective, **ON_GPU)
    assert lines(resumed)[-1]["train/loss"] == pytest.approx(lines(expected)[-1]["train/loss"], rel=1e-2)


def test_answers_and_scores_are_those_of_the_cpu(tmp_path: Path) -> None:
    data = nt.load_data("mnist-5k")
    model = nt.load_model("pretrained:lenet-mnist")
    stores = [nt.extract(model, data.val, tmp_path / device, device=device) for device in ("cpu", "cuda")]
    rows = torch.arange(len(data.val))
    cpu, gpu = (store.logits("clean", rows) for store in stores)
    torch.testing.assert_close(cpu, gpu, rtol=1e-3, atol=1e-3)
    errors = [nt.evaluate(model, data.val, device=device).error for device in ("cpu", "cuda")]
    assert errors[0] == errors[1]
