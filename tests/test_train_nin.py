"""The script that trains the shipped NIN: through all its phases, its norms folded away, into a package with a card."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

import noisyteacher as nt
from noisyteacher.io.files import sha256
from noisyteacher.io.tensors import read_tensors

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


def test_the_shipped_nin_is_the_trained_one_without_its_norms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    ship_teacher, train_nin = import_module("ship_teacher"), import_module("train_nin")

    dice = np.random.default_rng(0)
    data = tmp_path / "seen.npz"
    np.savez(data, x=dice.integers(0, 256, (80, 32, 32, 3), dtype=np.uint8), y=np.arange(80) % 10)
    phases = ((16, 1, 0.05, "constant", 0.0, 1), (32, 2, 0.05, "cosine", 0.0, 2))
    how = replace(train_nin.RECIPES["cpu"], phases=phases, batch_size=16)
    monkeypatch.setitem(train_nin.RECIPES, "cpu", how)
    monkeypatch.setattr(ship_teacher, "SHIPPED", tmp_path / "shipped")
    threads = torch.get_num_threads()
    words = [str(tmp_path), str(tmp_path / "out"), "--data", str(data), "--threads", "1", "--note", "dice", "--ship"]
    monkeypatch.setattr(sys, "argv", ["train_nin.py", *words])
    try:
        train_nin.main()
    finally:
        torch.set_num_threads(threads)
    weights = tmp_path / "shipped" / "nin-cifar10.safetensors"
    card = json.loads(weights.with_suffix(".json").read_text())
    assert card["sha256"] == sha256([weights.read_bytes()])
    assert (card["name"], card["model"], card["data"]["note"], card["training"]["epochs"]) == (
        "nin-cifar10", "nin", "dice", 3
    )  # fmt: skip
    assert card["training"]["fold_gap"] < 1e-4
    model = nt.load_model(weights)
    assert not [part for part in model.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    splits = nt.load_data(str(data))
    assert nt.evaluate(model, splits.val).error == pytest.approx(card["scores"]["val"]["error"]["value"])
    normed = train_nin.normed(
        nt.build_model("nin", data=splits, preprocess="standardize", dropout=0.0).network, how.unnormed
    )
    trained = nt.Classifier(model.preprocess, normed, model.architecture)
    kept, _ = read_tensors(tmp_path / "out" / "phase-2-32" / "weights.safetensors", "model", 1)
    trained.load_state_dict(kept)
    images = splits.val.images_at(torch.arange(len(splits.val)))
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images), trained.eval()(images), rtol=1e-3, atol=1e-4)
