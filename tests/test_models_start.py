"""Weights for other classes as the start of a training, and the package's own trained models by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import noisyteacher as nt
from noisyteacher.config import Teacher, build_config
from noisyteacher.errors import MismatchError, UsageError
from noisyteacher.models import load_foreign, weights_fingerprint
from noisyteacher.pipeline.compression import compress_config
from noisyteacher.pipeline.pretrained import build_network, is_pretrained, load_teacher
from noisyteacher.pipeline.single_step import train_config
from noisyteacher.runs import Run

SIDE = 8


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey images of two classes."""
    draw = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for role, count in (("train", 32), ("val", 20), ("test", 20)):
        arrays |= {
            f"x_{role}": draw.integers(0, 256, (count, SIDE, SIDE), dtype=np.uint8),
            f"y_{role}": np.arange(count) % 2,
        }
    file = tmp_path_factory.mktemp("start") / "grey.npz"
    np.savez(file, **arrays)
    return file


@pytest.fixture(scope="module")
def data(file: Path) -> nt.Splits:
    return nt.load_data(file)


@pytest.fixture(scope="module")
def source() -> nt.Classifier:
    """A network of five classes, with weights that no seed draws."""
    model = nt.build_model("mlp800", classes=5, input_shape=(1, SIDE, SIDE))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.25)
    return model


@pytest.fixture
def weights(source: nt.Classifier, tmp_path: Path) -> str:
    torch.save({"state_dict": source.network.state_dict()}, tmp_path / "five.pth.tar")
    return str(tmp_path / "five.pth.tar")


def test_all_but_the_head_is_loaded(data: nt.Splits, source: nt.Classifier, weights: str, tmp_path: Path) -> None:
    settings = Teacher(name="mlp800", weights=weights)
    started = build_network(settings, "mlp800", data, seed=3).network.state_dict()
    theirs = source.network.state_dict()
    body = [name for name, tensor in started.items() if torch.equal(tensor, theirs[name][: len(tensor)])]
    *names, _weight, bias = started
    assert body == names
    assert len(started[bias]) == 2
    nt.save_model(source, tmp_path / "ours.safetensors")
    ours = Teacher(name="mlp800", weights=str(tmp_path / "ours.safetensors"))
    again = build_network(ours, "mlp800", data, seed=3).network.state_dict()
    assert all(torch.equal(again[name], started[name]) for name in started)


def test_it_is_trained_where_classes_differ_and_stands_for_a_teacher_where_they_agree(
    file: Path, data: nt.Splits, source: nt.Classifier, weights: str, tmp_path: Path
) -> None:
    five = Teacher(name="mlp800", weights=weights)
    assert is_pretrained("mlp800", five)
    assert not is_pretrained("mlp800", five, data)
    torch.save(nt.build_model("mlp800", data, seed=5).network.state_dict(), tmp_path / "two.pth")
    assert is_pretrained("mlp800", Teacher(name="mlp800", weights=str(tmp_path / "two.pth")), data)
    titles: list[str] = []
    config = build_config({
        "data": {"name": str(file)}, "noise": {"sigma": 0.0}, "student": {"name": "mlp800", "epochs": 1},
        "teacher": {"name": "mlp800", "weights": weights, "epochs": 1, "lr": 1e-5},
        "run": {"output_dir": str(tmp_path / "runs"), "baselines": False, "checks": False, "threads": 1},
    })  # fmt: skip
    result = compress_config(config, on_progress=lambda title, *_: titles.append(title))
    child = Run.open(result.path / "teacher")
    assert child.info["kind"] == "train"
    assert any(title.endswith("five.pth.tar with a new head of 2 classes") for title in titles)
    kept = nt.load_model(child.path / "weights.safetensors").network.state_dict()
    body, theirs = next(iter(kept.values())), next(iter(source.network.state_dict().values()))
    assert 0 < float((body - theirs).abs().max()) < 1e-2
    assert child.config["weights"] == weights_fingerprint(build_network(five, "mlp800", data))


def test_train_goes_on_from_it_and_answers_are_refused(
    file: Path, data: nt.Splits, weights: str, tmp_path: Path
) -> None:
    config = build_config({
        "data": {"name": str(file)}, "teacher": {"name": "mlp800", "weights": weights, "epochs": 1},
        "run": {"output_dir": str(tmp_path), "threads": 1},
    })  # fmt: skip
    assert train_config(config).run.state == "done"
    torch.save(nt.build_model("mlp800", data).network.state_dict(), tmp_path / "two.pth")
    config.teacher.weights = str(tmp_path / "two.pth")
    with pytest.raises(UsageError, match="holds a trained network for these classes"):
        train_config(config)
    with pytest.raises(MismatchError, match=r"its head has 5 classes, 'mlp800' here 2: train it"):
        load_teacher("mlp800", data, settings=Teacher(name="mlp800", weights=weights))


def test_only_a_head_may_differ(data: nt.Splits, source: nt.Classifier, tmp_path: Path) -> None:
    state = source.network.state_dict()
    first = next(iter(state))
    torch.save({**state, first: torch.ones(7, *state[first].shape[1:])}, tmp_path / "body.pth")
    model = nt.build_model("mlp800", data)
    before = weights_fingerprint(model)
    with pytest.raises(MismatchError, match=rf"of another shape or dtype: {first}"):
        load_foreign(model, tmp_path / "body.pth", head="")
    assert weights_fingerprint(model) == before


def test_a_model_of_the_package_by_its_name() -> None:
    data = nt.load_data("mnist-5k", limit=50)
    for model in (nt.build_model("pretrained:lenet-mnist"), nt.build_model("pretrained:lenet-mnist", data)):
        assert weights_fingerprint(model) == weights_fingerprint(nt.load_model("pretrained:lenet-mnist"))
        assert model.classes == 10
    assert data.test is not None
    error = nt.evaluate(model, data.test).error
    assert error is not None
    assert error < 10  # %
    with pytest.raises(MismatchError, match="classes 10"):
        nt.build_model("pretrained:lenet-mnist", classes=7)
    with pytest.raises(MismatchError, match=r"input_shape \[1, 28, 28\]"):
        nt.build_model("pretrained:lenet-mnist", input_shape=(3, 32, 32))
    with pytest.raises(UsageError, match="have no effect on 'pretrained:lenet-mnist'"):
        nt.build_model("pretrained:lenet-mnist", dropout=0.5)
    with pytest.raises(nt.NoisyTeacherError, match="nonesuch"):
        nt.build_model("pretrained:nonesuch")
