"""What only shows on a GPU: `make test-gpu`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import noisyteacher as nt
from noisyteacher.train import abreast, fitting
from test_train import blobs
from test_train_many import NOISES, SETTINGS, lines, network, table

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "muon"])
def test_a_replayed_training_is_the_one_step_by_step(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding apart, which differs between kernels and grows; with dropout, whose draws a graph replays by seed."""
    captured: list[int] = []
    capture = abreast.Abreast._capture

    def counted(self: abreast.Abreast, step: abreast.Step) -> None:
        captured.append(1)
        capture(self, step)

    monkeypatch.setattr(abreast.Abreast, "_capture", counted)
    data = nt.load_data("mnist-5k")
    train, val = data.train.take(1000), data.val.take(300)
    targets = torch.randn(1000, 10, generator=torch.Generator().manual_seed(0)) * 3
    found = []
    for replayed in (False, True):
        with monkeypatch.context() as patch:
            if not replayed:
                patch.setattr(fitting, "replayable", lambda loops: False)
            model = nt.build_model("lenet", data=data, seed=0, dropout=0.3)
            objective = nt.distil(targets, noise=nt.Noise(sigma=0.5, alpha=0.5))
            options = {"epochs": 3, "precision": "fp32", "optimizer": optimizer, "device": "cuda"}
            found.append(nt.fit(model, train, objective, val=val, **options))  # type: ignore[arg-type]
        assert bool(captured) == replayed
    for one, other in zip(*map(lines, found), strict=True):
        assert one["train/loss"] == pytest.approx(other["train/loss"], rel=5e-3)
        assert one["noise/flipped_%"] == other["noise/flipped_%"]


def test_answers_and_scores_are_those_of_the_cpu(tmp_path: Path) -> None:
    data = nt.load_data("mnist-5k")
    model = nt.load_model("pretrained:lenet-mnist")
    stores = [nt.extract(model, data.val, tmp_path / place, device=place) for place in ("cpu", "cuda")]
    rows = torch.arange(len(data.val))
    one, other = (store.logits("clean", rows) for store in stores)
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    errors = [nt.evaluate(model, data.val, device=place).error for place in ("cpu", "cuda")]
    assert errors[0] == errors[1]


def test_many_take_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    models = [network(seed % 2) for seed in range(len(NOISES))]
    taught = [nt.distil(table(), noise=noise) for noise in NOISES]
    seeds = [seed % 2 for seed in range(len(NOISES))]
    many = nt.fit_many(models, blobs(), taught, seeds=seeds, **{**SETTINGS, "device": "cuda"})
    alone = [
        nt.fit(network(seed), blobs(), objective, seed=seed, **{**SETTINGS, "device": "cuda"})
        for seed, objective in zip(seeds, taught, strict=True)
    ]
    for one, other in zip(many, alone, strict=True):
        assert lines(one)[-1]["train/loss"] == pytest.approx(lines(other)[-1]["train/loss"], rel=1e-2)
