"""What is looked at before the first step: each check holds for a sound pair and fails for the mistake it is for."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import noisyteacher as nt
from helpers import part
from noisyteacher.config import build_config
from noisyteacher.data import Batch
from noisyteacher.errors import MismatchError
from noisyteacher.models import Standardize
from noisyteacher.pipeline import class_order, preflight
from noisyteacher.pipeline.compression import compress_config
from noisyteacher.pipeline.single_step import distil_config, train_config
from noisyteacher.runs import list_runs

NAMES = ("dark", "middle", "bright")
LEVELS = (40, 120, 200)


def pixels(count: int, seed: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Images 6 x 6, each of one brightness with a little noise on it; class k is LEVELS[k]."""
    draw = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    noise = draw.integers(-10, 11, (count, 6, 6))
    return (np.array(LEVELS)[labels][:, None, None] + noise).astype(np.uint8), labels


def table(order: tuple[int, ...] = (0, 1, 2)) -> dict[str, Any]:
    """The arrays of an .npz, with classes in this order."""
    arrays: dict[str, Any] = {"classes": np.array([NAMES[number] for number in order])}
    for number, (role, count) in enumerate({"train": 60, "val": 60, "test": 30}.items()):
        images, labels = pixels(count, number)
        arrays |= {f"x_{role}": images, f"y_{role}": np.argsort(order)[labels]}
    return arrays


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checking")
    np.savez(path / "data.npz", **table())
    np.savez(path / "moved.npz", **table((2, 0, 1)))
    return path


@pytest.fixture(scope="module")
def data(folder: Path) -> nt.Splits:
    return nt.load_data(folder / "data.npz")


def linear() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 3))


def teacher(data: nt.Splits, front: nn.Module | str = "scale", *after: nn.Module) -> nt.Classifier:
    """The best linear classifier by hand: logit_k = s (c_k mean - c_k^2 / 2) is largest at the nearest level c_k."""
    network = linear()
    levels = torch.tensor(LEVELS) / 255
    with torch.no_grad():
        part(network, "1").weight.copy_(50 * levels[:, None].expand(3, 36) / 36)
        part(network, "1").bias.copy_(-25 * levels.square())
    return nt.build_model(nn.Sequential(*network, *after), data, preprocess=front)


def compressed(model: nn.Module, data: nt.Splits, folder: Path, **options: Any) -> nt.Result:
    torch.manual_seed(0)
    return nt.compress(model, linear(), data, baselines=False, epochs=1, output_dir=folder, **options)


def test_a_sound_pair(data: nt.Splits, tmp_path: Path) -> None:
    result = compressed(teacher(data), data, tmp_path)
    assert {check["check"]: check["passed"] for check in result.checks} == {
        "teacher frozen": True, "class order": None, "stored answers are the teacher's": True,
        "answers are logits": True, "class assignment": True, "teacher's accuracy": True,
        "no loss where student equals teacher": True, "student's gradient": True,
    }  # fmt: skip
    messages = {check["check"]: check["summary"] for check in result.checks}
    assert messages["teacher's accuracy"] == "100.00 % on validation (n = 60), where 33.33 % would be chance"
    assert "in 2 of 2 weight tensors" in messages["student's gradient"]
    kept = json.loads((result.path / "result.json").read_text())["result"]["checks"]
    assert kept == [dict(check) for check in result.checks]
    assert "Did not hold" not in str(result)


def test_a_wrong_normalisation(data: nt.Splits, tmp_path: Path) -> None:
    wrong = teacher(data, Standardize([5.0], [1.0]))
    with pytest.raises(MismatchError, match=r"1 of 6 checks did not hold.* % on validation \(n = 60\).*wrong normalis"):
        compressed(wrong, data, tmp_path / "refused")
    (run,) = list_runs(tmp_path / "refused", 1)
    assert run.state == "failed"
    assert "wrong normalisation or class order" in (run.error() or "")
    result = compressed(wrong, data, tmp_path / "noted", checks=False)
    assert "Did not hold before the first step (teacher's accuracy)" in str(result)


def test_probabilities_are_not_logits(data: nt.Splits, tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="they are probabilities, and logits are needed"):
        compressed(teacher(data, "scale", nn.Softmax(1)), data, tmp_path)


class Squashed(nn.Module):
    def __init__(self, squash: str) -> None:
        super().__init__()
        self.squash = squash

    def forward(self, logits: Tensor) -> Tensor:
        return logits.sigmoid() if self.squash == "sigmoid" else logits.log_softmax(1)


def test_a_sigmoid_at_the_end_is_refused_and_a_log_softmax_where_logits_matter(data: nt.Splits, tmp_path: Path) -> None:
    """The soft targets of log-probabilities are those of logits; a multiple of either has another softmax."""
    with pytest.raises(MismatchError, match="leave the sigmoid at its end out"):
        compressed(teacher(data, "scale", Squashed("sigmoid")), data, tmp_path)
    network = teacher(data, "scale", Squashed("log"))
    for needy in ({"loss": "logit_regression"}, {"noise": nt.Noise(sigma=0.5, alpha=0.5)}):
        with pytest.raises(MismatchError, match="leave the log-softmax at its end out"):
            compressed(network, data, tmp_path, **needy)
    checks = {check["check"]: check["passed"] for check in compressed(network, data, tmp_path).checks}
    assert checks["answers are logits"] is None


def test_classes_in_another_order(folder: Path, tmp_path: Path) -> None:
    base = {"data": {"name": str(folder / "data.npz")}, "run": {"output_dir": str(tmp_path), "baselines": False}}
    trained = train_config(build_config({**base, "teacher": {"name": "mlp800", "epochs": 2}}))
    assert trained.result["classes"] == list(NAMES)
    base |= {"teacher": {"name": str(trained.run.path)}, "student": {"name": "mlp800", "epochs": 1}}
    result = compress_config(build_config({**base, "noise": {"sigma": 0.0}}))
    assert [check["passed"] for check in result.checks if check["check"] == "class order"] == [True]
    again = distil_config(build_config(base), result.path / result.store)
    assert [check["passed"] for check in again.result["checks"]] == [True, True, True, True]
    moved = build_config({**base, "data": {"name": str(folder / "moved.npz")}})
    with pytest.raises(MismatchError, match="'bright' is class 0 of the data and 2 of the teacher"):
        compress_config(moved)
    with pytest.raises(MismatchError, match="'bright' is class 0 of the data and 2 of the stored teacher"):
        distil_config(moved, result.path / result.store)
    settings = {
        **base,
        "data": {"name": str(folder / "moved.npz")},
        "run": {"output_dir": str(tmp_path), "checks": False},
    }
    noted = distil_config(build_config(settings), result.path / result.store).result["checks"]
    assert noted[0] == {"check": "class order", "passed": False, "summary": noted[0]["summary"]}


@pytest.mark.parametrize(
    ("theirs", "passed"),
    [
        (None, None),
        (["dark", "middle", "bright"], True),
        (["Dark", "MIDDLE", "bright"], True),
        (["dark", "bright", "middle"], False),
        (["middle", "x", "y"], False),
        (["dark", "x", "y"], True),
        (["0", "1", "2"], None),
        (["dark", "middle"], False),
    ],
)
def test_the_order_of_names(theirs: list[str] | None, passed: bool | None) -> None:
    assert class_order.check_class_names(theirs, NAMES, "the teacher").passed is passed


def test_a_teacher_that_is_not_the_one_of_the_answers(data: nt.Splits, tmp_path: Path) -> None:
    model = teacher(data)
    store = nt.extract(model, data.train, tmp_path / "logits")
    assert preflight.check_frozen(model, data.train, store).passed
    assert preflight.check_stored_logits(model, data.train, store).passed
    with torch.no_grad():
        part(model, "network.1").bias += 0.1
    changed = preflight.check_frozen(model, data.train, store)
    assert (changed.passed, "weights have changed" in changed.message) == (False, True)
    stored = preflight.check_stored_logits(model, data.train, store)
    assert (stored.passed, "differ by at most 0.1" in stored.message) == (False, True)


def test_a_teacher_that_wakes_up(data: nt.Splits, tmp_path: Path) -> None:
    class Awake(nn.Dropout):
        def forward(self, x: Tensor) -> Tensor:
            self.training = True
            return x

    model = teacher(data)
    store = nt.extract(model, data.train, tmp_path / "logits")
    part(model, "network").append(Awake())
    assert "stays in training mode" in preflight.check_frozen(model, data.train, store).message


def test_accuracy_against_what_chance_would_give(data: nt.Splits, tmp_path: Path) -> None:
    """One class throughout scores its share and nothing above it, however large that share is."""
    val = data.val
    uneven = val.subset(torch.cat([torch.arange(0, 60, 3), torch.tensor([1, 2])]))
    model = teacher(data)
    store = nt.extract(model, uneven, tmp_path / "good")
    right = preflight.check_accuracy(store, uneven)
    assert right.passed
    assert "100.00 % on validation (n = 22), where 83.06 % would be chance" in right.message
    with torch.no_grad():
        part(model, "network.1").bias[0] += 1000
    store = nt.extract(model, uneven, tmp_path / "constant")
    constant = preflight.check_accuracy(store, uneven)
    assert constant.passed is False
    assert "90.91 % on validation (n = 22), where 90.91 % would be chance" in constant.message


@pytest.mark.parametrize(
    ("right", "wrong", "passed"),
    [
        (8, 0, None),
        (10, 0, True),
        (9, 0, None),
        (4, 4, None),
        (12, 0, True),
        (8, 4, False),
        (40, 10, True),
        (0, 12, False),
    ],
)
def test_few_images_of_two_classes(right: int, wrong: int, passed: bool | None, tmp_path: Path) -> None:
    """All of n right has a p of 2^-n, and three standard deviations mean 0.00135, between 2^-9 and 2^-10."""
    labels = torch.arange(right + wrong) % 2
    answers = torch.where(torch.arange(right + wrong) < right, labels, 1 - labels)
    split = nt.Split(
        answers.to(torch.uint8).reshape(-1, 1, 1, 1), labels, torch.arange(len(labels)), "val", "two", ("0", "1")
    )
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    part(teacher, "1").load_state_dict({"weight": torch.tensor([[-255.0], [255.0]]), "bias": torch.tensor([0.5, -0.5])})
    check = preflight.check_accuracy(nt.extract(teacher, split, tmp_path / "store"), split)
    assert check.passed is passed
    assert f"{100 * right / len(labels):.2f} % on validation (n = {len(labels)})" in check.message


@pytest.mark.parametrize(("answers", "labels"), [([0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 2, 2]), ([0] * 5 + [1], [0] * 6)])
def test_hits_by_chance_over_all_ways_to_deal(answers: list[int], labels: list[int]) -> None:
    hits = [sum(map(int.__eq__, shuffled, labels)) for shuffled in itertools.permutations(answers)]
    mean = sum(hits) / len(hits)
    variance = sum((number - mean) ** 2 for number in hits) / len(hits)
    counts = (torch.bincount(torch.tensor(classes), minlength=3) for classes in (answers, labels))
    assert preflight.hits_by_chance(*counts) == pytest.approx((mean, variance))


def test_students_that_cannot_learn(data: nt.Splits) -> None:
    rows = torch.arange(4)
    batch = Batch(data.train.images_at(rows), None, rows, ("clean",), torch.zeros(4).long(), 0, 0, 60, 1)

    def loss(logits: Tensor) -> Tensor:
        return logits.square().sum()

    student = nt.build_model(linear(), data)
    assert preflight.check_gradient(student, loss, batch).passed
    frozen = preflight.check_gradient(nt.build_model(linear().requires_grad_(False), data), loss, batch)
    assert (frozen.passed, frozen.message) == (False, "the student has no weights to learn")
    flat = preflight.check_gradient(student, lambda logits: 0 * logits.sum(), batch)
    assert flat.passed is False
    assert "in 0 of 2 weight tensors: there is nothing it could learn" in flat.message


def test_checks_leave_no_trace(data: nt.Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A student trained after the checks has the bits of one that was trained without them, and a module that was
    passed in is as it was, its batch norm included.
    """
    files = []
    for name in ("with", "without"):
        torch.manual_seed(0)
        student = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(36), nn.Dropout(0.5), nn.Linear(36, 3))
        result = nt.compress(teacher(data), student, data, baselines=False, epochs=1, output_dir=tmp_path / name)
        files.append((result.path / "clean-seed0" / "weights.safetensors").read_bytes())
        assert int(part(student, "1").num_batches_tracked) == 0
        for check in ("check_first_step", "check_teacher"):
            monkeypatch.setattr(f"noisyteacher.pipeline.preflight.{check}", lambda *args, **options: [])
    assert files[0] == files[1]
