"""A teacher whose classes stand in another order than the data's: seen in its answers, refused, and put in order."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import noisyteacher as nt
from noisyteacher.config import build_config
from noisyteacher.errors import FileFormatError, MismatchError, UsageError
from noisyteacher.models import Reordered, reordered, weights_fingerprint
from noisyteacher.pipeline import checking, compress_config, distil_config, extract_config, train_config
from noisyteacher.pipeline.class_matching import find_reorder, natural_order

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
    given = {"name": f"{__name__}:Levels", "weights": str(saved(folder, tmp_path)), "preprocess": "scale"}
    config = build_config(settings(folder, tmp_path / "runs", **given))
    with pytest.raises(MismatchError) as told:
        compress_config(config)
    words = (
        "16.67 % of val are right as they stand and 100.00 % in the order that fits (n = 60)", "'10' is class 2",
        "and 7 more", "sorted as text (0, 1, 10, 11, ... (12)), while timm and others sort folders naturally (0, 1, 2,",
    )  # fmt: skip
    assert [word for word in words if word not in str(told.value)] == []
    assert not list((tmp_path / "runs").glob("*/clean-seed0"))
    (option,) = re.findall(r"--set '[^']*'", str(told.value))
    key, _, value = shlex.split(option)[1].partition("=")
    order = [int(name) for name in TEXT]
    assert (key, value) == ("teacher.class_order", str(order).replace(" ", ""))
    with pytest.raises(MismatchError, match=r"class_order=\[0,1,10,11,2,"):
        extract_config(config)
    result = compress_config(build_config(settings(folder, tmp_path / "runs", **given, class_order=order)))
    (check,) = (one for one in result.checks if one["check"] == "class assignment")
    assert (check["held"], result.rows[0].errors) == (True, (0.0,))
    data = nt.load_data(folder, grey=True)
    again = nt.load_model(result.path / "teacher" / "weights.safetensors", allow_import=True)
    assert nt.evaluate(again, data.test).accuracy == 100
    store = nt.LogitStore.open(result.path / result.store)
    assert torch.equal(checking.predictions(store), data.train.labels)
    assert nt.measure(again).macs == nt.measure(Levels(), data.input_shape).macs
    resumed = settings(folder, tmp_path / "runs", name=str(result.path / "teacher"))
    assert compress_config(build_config(resumed), allow_import=True).rows[0].errors == (0.0,)


def test_a_store_of_answers_in_another_order_is_refused(folder: Path, tmp_path: Path) -> None:
    data = nt.load_data(folder, grey=True)
    store = nt.extract(nt.build_model(Levels(), data), data.train, tmp_path / "logits")
    with pytest.raises(
        MismatchError, match=r"store the answers again by extract with --set 'teacher\.class_order=\[0,1,1"
    ):
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
def test_an_order_must_name_every_output_once(order: list[int], folder: Path, tmp_path: Path) -> None:
    given = {
        "name": f"{__name__}:Levels",
        "weights": str(saved(folder, tmp_path)),
        "preprocess": "scale",
        "class_order": order,
    }
    with pytest.raises(MismatchError, match=r"teacher\.class_order: .*each of the model's outputs 0\.\.11 once"):
        compress_config(build_config(settings(folder, tmp_path / "runs", **given)))


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
    assert len({weights_fingerprint(one) for one in (model, moved, twice)}) == 3
    nt.save_model(moved, tmp_path / "moved.safetensors")
    loaded = nt.load_model(tmp_path / "moved.safetensors")
    assert torch.equal(loaded(images), moved(images))
    assert weights_fingerprint(loaded) == weights_fingerprint(moved)
    student = nt.build_model("shrink:0.5", classes=3, input_shape=(1, 4, 4), teacher=moved)
    assert not isinstance(student.network, Reordered)
    moved.network.class_order[0] = 1  # type: ignore[index, operator]
    nt.save_model(moved, tmp_path / "wrong.safetensors")
    with pytest.raises(FileFormatError, match=r"wrong\.safetensors: class order \[1, 0, 1\]"):
        nt.load_model(tmp_path / "wrong.safetensors")


def test_names_that_stand_elsewhere_offer_the_order_too() -> None:
    found = checking.class_order(["b", "c", "a"], ["a", "b", "c"], "the teacher", [1, 2, 0])
    assert "--set 'teacher.class_order=[0,1,2]'" in found.told
    assert (
        "--set 'teacher.class_order=[2,0,1]'" in checking.class_order(["b", "c", "a"], ["a", "b", "c"], "it", []).told
    )
    assert "--set" not in checking.class_order(["b", "c", "a"], ["a", "b", "c"], "a store").told


def test_natural_order() -> None:
    assert natural_order(TEXT) == (0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9)
    assert natural_order(("Zebra", "ant")) == (1, 0)
    assert natural_order(("img2b", "img2", "img10", "x")) == (1, 0, 2, 3)


def answers(order: list[int], accuracy: float, per_class: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Classes that a teacher of this accuracy chooses, whose output order[k] is class k, and the labels."""
    dice = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(order)), per_class)
    guesses = dice.integers(0, len(order), len(labels))
    classes = np.where(dice.random(len(labels)) < accuracy, labels, guesses)
    return torch.tensor(np.array(order)[classes]), torch.tensor(labels)


def test_two_classes_that_are_swapped_are_found() -> None:
    names = [f"class {number:02d}" for number in range(20)]
    order = list(range(20))
    order[3], order[11] = 11, 3
    found = find_reorder(*answers(order, 0.8, 30), names)
    assert found is not None
    assert (list(found.order), found.natural, found.moved) == (order, False, [3, 11])


def test_natural_sorting_is_recognised_in_a_weak_teacher() -> None:
    names = sorted(map(str, range(100)))
    order = list(natural_order(names))
    found = find_reorder(*answers(order, 0.25, 20), names)
    assert found is not None
    assert (list(found.order), found.natural) == (order, True)


@pytest.mark.parametrize(("classes", "per_class"), [(2, 20), (10, 4), (10, 100), (100, 2), (100, 10)])
@pytest.mark.parametrize("accuracy", [0.0, 0.1, 0.3])
def test_weak_teachers_are_no_reordered_ones(classes: int, per_class: int, accuracy: float) -> None:
    names = sorted(map(str, range(classes)))
    found = [find_reorder(*answers(list(range(classes)), accuracy, per_class, seed), names) for seed in range(10)]
    assert found == [None] * 10
