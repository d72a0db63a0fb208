"""A teacher whose classes are in another order than the data's: seen in its predictions, refused, and put in order."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import noisyteacher as nt
from helpers import Call, labels_of, part
from noisyteacher.config import build_config
from noisyteacher.errors import FileFormatError, MismatchError, UsageError
from noisyteacher.models import Reordered, reordered, rescale, weights_fingerprint
from noisyteacher.pipeline.class_order import check_class_names, find_reorder, natural_order
from noisyteacher.pipeline.compression import compress_config
from noisyteacher.pipeline.preflight import predictions
from noisyteacher.pipeline.pretrained import class_names_of
from noisyteacher.pipeline.single_step import distil_config, extract_config, train_config

NUMBERS = 12
TEXT = sorted(map(str, range(NUMBERS)))
"""The class folders as they are sorted: 0, 1, 10, 11, 2, ..."""


class Levels(nn.Module):
    """The class whose brightness is nearest, by what the classes' numbers are: output n is class folder n."""

    def __init__(self, num_classes: int = NUMBERS) -> None:
        super().__init__()
        self.levels = nn.Parameter(torch.arange(num_classes) * 20 / 255)

    def forward(self, x: Tensor) -> Tensor:
        return -1000 * (x.mean((1, 2, 3))[:, None] - self.levels).square()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of twelve classes in folders 0, 1, ..., 11; class n has the brightness 20 n."""
    root = tmp_path_factory.mktemp("numbers") / "numbers"
    dice = np.random.default_rng(0)
    for role, count in (("train", 4), ("val", 5), ("test", 1)):
        for number in range(NUMBERS):
            (root / role / str(number)).mkdir(parents=True)
            for image in range(count):
                pixels = np.clip(20 * number + dice.integers(-4, 5, (6, 6)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / role / str(number) / f"{image}.png")
    return root


def settings(folder: Path, out: Path, **teacher: Any) -> dict[str, Any]:
    return {
        "data": {"name": str(folder), "grey": True},
        "teacher": teacher,
        "student": {"name": "mlp800", "epochs": 1},
        "noise": {"sigma": 0.0},
        "run": {"output_dir": str(out), "baselines": False},
    }


def saved(folder: Path, out: Path) -> Path:
    """A file of a network that timm's way of sorting folders would have trained."""
    torch.save(Levels().state_dict(), out / "levels.pt")
    return out / "levels.pt"


def test_another_order_is_refused_and_the_setting_that_is_offered_mends_it(folder: Path, tmp_path: Path) -> None:
    teacher = {"name": f"{__name__}:Levels", "weights": str(saved(folder, tmp_path)), "preprocess": "scale"}
    config = build_config(settings(folder, tmp_path / "runs", **teacher))
    with pytest.raises(MismatchError) as refusal:
        compress_config(config)
    for words in (
        "16.67 % of val are right as they stand and 100.00 % in the order that fits (n = 60)",
        "'10' is class 2 of the data and 10 of the teacher",
        "and 7 more",
    ):
        assert words in str(refusal.value)
    assert not list((tmp_path / "runs").glob("*/clean-seed0"))
    (option,) = re.findall(r"--set '[^']*'", str(refusal.value))
    key, _, value = shlex.split(option)[1].partition("=")
    order = [int(name) for name in TEXT]
    assert (key, value) == ("teacher.class_order", str(order).replace(" ", ""))
    with pytest.raises(MismatchError, match=r"class_order=\[0,1,10,11,2,"):
        extract_config(config)
    result = compress_config(build_config(settings(folder, tmp_path / "runs", **teacher, class_order=order)))
    (check,) = (check for check in result.checks if check["check"] == "class assignment")
    assert (check["passed"], result.rows[0].errors) == (True, (0.0,))
    data = nt.load_data(folder, grey=True)
    again = nt.load_model(result.path / "teacher" / "weights.safetensors", allow_import=True)
    assert data.test is not None
    assert nt.evaluate(again, data.test).accuracy == pytest.approx(100)
    store = nt.LogitStore.open(result.path / result.store)
    assert torch.equal(predictions(store), labels_of(data.train))
    assert nt.measure(again).macs == nt.measure(Levels(), data.input_shape).macs
    resumed = settings(folder, tmp_path / "runs", name=str(result.path / "teacher"))
    assert compress_config(build_config(resumed), allow_import=True).rows[0].errors == (0.0,)


def test_a_store_of_answers_in_another_order_is_refused(folder: Path, tmp_path: Path) -> None:
    data = nt.load_data(folder, grey=True)
    store = nt.extract(nt.build_model(Levels(), data), data.train, tmp_path / "logits")
    with pytest.raises(MismatchError, match=r"--set 'teacher\.class_order=\[0,1,10,"):
        distil_config(build_config(settings(folder, tmp_path / "runs")), store.path)


def test_a_module_is_put_in_order_and_left_as_it_is(folder: Path, tmp_path: Path) -> None:
    data, teacher = nt.load_data(folder, grey=True), Levels()
    options: dict[str, Any] = {"baselines": False, "epochs": 1, "output_dir": tmp_path}
    with pytest.raises(MismatchError, match="another order"):
        nt.compress(teacher, "mlp800", data, **options)
    order = [int(name) for name in TEXT]
    result = nt.compress(teacher, "mlp800", data, teacher_training={"class_order": order}, **options)
    assert result.rows[0].errors == (0.0,)
    assert nt.evaluate(nt.build_model(teacher, data), data.val).accuracy == pytest.approx(100 / 6)


@pytest.mark.parametrize("order", [[0, 1, 2], [0] * NUMBERS, [*range(1, NUMBERS + 1)]])
def test_an_order_must_name_every_output_once(order: list[int], folder: Path) -> None:
    with pytest.raises(MismatchError, match=r"class order .*each of the model's outputs 0\.\.11 once"):
        nt.compress(Levels(), "mlp800", nt.load_data(folder, grey=True), teacher_training={"class_order": order})


def test_an_order_has_no_effect_on_a_teacher_that_is_trained(folder: Path, tmp_path: Path) -> None:
    config = build_config(settings(folder, tmp_path, name="lenet", class_order=list(range(NUMBERS))))
    for run in (compress_config, train_config):
        with pytest.raises(UsageError, match=r"teacher\.class_order: "):
            run(config)


def test_reordered_models(tmp_path: Path) -> None:
    model = nt.build_model("mlp800", classes=3, input_shape=(1, 4, 4)).eval()
    images = torch.randint(0, 256, (5, 1, 4, 4), dtype=torch.uint8)
    logits = model(images)
    moved = reordered(model, [2, 0, 1])
    assert torch.equal(moved(images), logits[:, [2, 0, 1]])
    twice = reordered(moved, [2, 0, 1])
    assert torch.equal(twice(images), logits[:, [1, 2, 0]])
    assert isinstance(twice.network, Reordered)
    assert twice.network.network is model.network
    assert len({weights_fingerprint(network) for network in (model, moved, twice)}) == 3
    nt.save_model(moved, tmp_path / "moved.safetensors")
    loaded = nt.load_model(tmp_path / "moved.safetensors")
    assert torch.equal(loaded(images), moved(images))
    assert weights_fingerprint(loaded) == weights_fingerprint(moved)
    part(moved, "network").class_order[0] = 1
    nt.save_model(moved, tmp_path / "wrong.safetensors")
    with pytest.raises(FileFormatError, match=r"wrong\.safetensors: class order \[1, 0, 1\]"):
        nt.load_model(tmp_path / "wrong.safetensors")


def test_names_follow_the_outputs_through_every_wrapper() -> None:
    """Names from an architecture are those of the bare network: of a reordered, then calibrated one, and once more."""
    model = nt.build_model("mlp128", classes=3, input_shape=(1, 4, 4))
    model.architecture["options"] = {"config": {"id2label": {"0": "ant", "1": "bee", "2": "cat"}}}
    calibrated = rescale(reordered(model, [2, 0, 1]), 0.5)
    assert class_names_of(None, calibrated) == ["cat", "ant", "bee"]
    assert class_names_of(None, reordered(calibrated, [1, 2, 0])) == ["ant", "bee", "cat"]
    assert class_names_of(None, model) == ["ant", "bee", "cat"]


def test_names_in_another_order_offer_the_setting_too() -> None:
    def message(*present: list[int]) -> str:
        return check_class_names(["b", "c", "a"], ["a", "b", "c"], "the teacher", *present).message

    assert "--set 'teacher.class_order=[0,1,2]'" in message([1, 2, 0])
    assert "--set 'teacher.class_order=[2,0,1]'" in message([])
    assert "--set" not in message()


@pytest.mark.parametrize("names", [["A", "B", "a", "b"], ["+", "-", "_"], ["x y", "x-y", "z"]])
def test_names_that_differ_in_case_or_separators_alone_are_compared_exactly(names: list[str]) -> None:
    check = check_class_names(names, names, "the teacher")
    assert (check.passed, check.message) == (
        True,
        f"{len(names)} of {len(names)} classes have the same name and number",
    )
    moved = check_class_names(names[::-1], names, "the teacher", [])
    assert moved.passed is False
    assert f"teacher.class_order=[{','.join(map(str, reversed(range(len(names)))))}]" in moved.message


def test_other_spellings_match_where_they_are_unique() -> None:
    moved = check_class_names(["A_b", "C", "c"], ["a b", "c", "C"], "the teacher").message
    assert moved.endswith(
        "order: 'c' is class 1 of the data and 2 of the teacher, 'C' is class 2 of the data and 1 of the teacher"
    )
    assert check_class_names(["A_b", "C", "c"], ["a b", "d", "C "], "the teacher").message.startswith("1 of 3 classes")
    assert check_class_names(["crane", "crane"], ["crane", "crane"], "the teacher").passed is None


def test_natural_order() -> None:
    assert natural_order(TEXT) == [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]
    assert natural_order(("Zebra", "ant")) == [1, 0]
    assert natural_order(("img2b", "img2", "img10", "x")) == [1, 0, 2, 3]


def answers(order: list[int], accuracy: float, per_class: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Classes that a teacher of this accuracy chooses, whose output order[k] is class k, and the labels."""
    dice = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(order)), per_class)
    guesses = dice.integers(0, len(order), len(labels))
    classes = np.where(dice.random(len(labels)) < accuracy, labels, guesses)
    return torch.tensor(np.array(order)[classes]), torch.tensor(labels)


def test_two_swapped_classes_are_recognised() -> None:
    names = [f"class {number:02d}" for number in range(20)]
    order = list(range(20))
    order[3], order[11] = 11, 3
    assert find_reorder(*answers(order, 0.8, 30), names) == order


def test_natural_sorting_is_recognised_in_a_weak_teacher() -> None:
    names = sorted(map(str, range(100)))
    order = natural_order(names)
    assert find_reorder(*answers(order, 0.25, 20), names) == order


@pytest.mark.parametrize(("classes", "per_class"), [(2, 20), (10, 4), (10, 100), (100, 2), (100, 10)])
@pytest.mark.parametrize("accuracy", [0.0, 0.1, 0.3])
def test_weak_teachers_are_no_reordered_ones(classes: int, per_class: int, accuracy: float) -> None:
    names = sorted(map(str, range(classes)))
    for seed in range(10):
        assert find_reorder(*answers(list(range(classes)), accuracy, per_class, seed), names) is None


def test_names_are_compared_wherever_a_trained_model_meets_data(tmp_path: Path, call: Call) -> None:
    """By a run, its weights file, a copied best: in evaluate, as its teacher, in extract, export and compress."""
    labels = np.arange(60) % 3
    pixels = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    for name, classes in (("ours", ["ant", "bee", "cat"]), ("theirs", ["bee", "cat", "ant"])):
        arrays: dict[str, Any] = {f"x_{role}": pixels for role in ("train", "val", "test")}
        arrays |= {f"y_{role}": labels for role in ("train", "val", "test")}
        np.savez(tmp_path / name, classes=np.array(classes), **arrays)
    data = nt.load_data(tmp_path / "ours.npz")
    options: dict[str, Any] = {"epochs": 1, "teacher_training": {"epochs": 1}, "baselines": False, "checks": False}
    result = nt.compress("mlp128", "mlp128", data, output_dir=tmp_path / "runs", **options)
    alone = shutil.copytree(result.path / "best", tmp_path / "alone")
    other = ("--data", str(tmp_path / "theirs.npz"), "-q")
    weights = str(result.path / "teacher" / "weights.safetensors")
    nt.save_model(nt.build_model("mlp128", data), tmp_path / "nameless.safetensors")
    for command in (
        *(("evaluate", str(model)) for model in (result.path, weights, alone)),
        ("evaluate", str(tmp_path / "nameless.safetensors"), "--teacher", weights),
        ("extract", weights),
        ("export", str(result.path), "--format", "onnx"),
        ("compress", "--teacher", weights, "--student", "mlp128", "--epochs", "1"),
    ):
        code, _, err = call(*command, *other)
        assert (code, "'ant' is class 2 of the data and 0 of" in err) == (2, True), (command, err)
    (tmp_path / "config.json").write_text("{}")  # of another library
    shutil.copy(result.path / "teacher" / "weights.safetensors", tmp_path / "model.safetensors")
    for model in (alone, tmp_path / "model.safetensors"):
        code, _, err = call("evaluate", str(model), "--data", str(tmp_path / "ours.npz"), "-q")
        assert code == 0, err


def test_the_classes_of_further_teachers_are_compared_too(folder: Path, tmp_path: Path) -> None:
    data = nt.load_data(folder, grey=True)
    further = nt.build_model(f"{__name__}:Levels", data, preprocess="scale")
    nt.save_model(further, tmp_path / "further.safetensors")
    order = [int(name) for name in TEXT]
    teacher: dict[str, Any] = {"name": f"{__name__}:Levels", "weights": str(saved(folder, tmp_path))}
    teacher |= {"preprocess": "scale", "class_order": order, "also": [str(tmp_path / "further.safetensors")]}
    chosen = settings(folder, tmp_path / "runs", **teacher)
    chosen["student"]["augment"] = "mixup"  # answers of the teachers are not stored
    with pytest.raises(MismatchError, match=r"teacher 2's classes are in another order: 16\.67 % of val"):
        compress_config(build_config(chosen), allow_import=True)
