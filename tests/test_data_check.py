"""What `data check` says of a data set: class order, rare classes, images that two splits have, damaged files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import noisyteacher as nt
from helpers import Call, blobs
from noisyteacher.data_check import Duplicate, duplicates, image_names, imbalance
from noisyteacher.errors import DataWarning


def image(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """16 training images of ant, 2 of bee, and 4 of test, of which two are training images, one of another class."""
    root = tmp_path / "photos"
    for number in range(16):
        image(root / "train" / "ant" / f"{number:02}.png", number)
    for number in range(2):
        image(root / "train" / "bee" / f"{number}.png", 100 + number)
        image(root / "test" / "ant" / f"new-{number}.png", 200 + number)
    image(root / "test" / "ant" / "seen.png", 3)
    image(root / "test" / "bee" / "other.png", 4)
    return root


def test_duplicates_of_every_kind() -> None:
    """Rows 1 and 5 of train are one image; row 2 of val is row 0 of train, with another label."""
    train, val = blobs(9), blobs(6, "val", seed=1)
    train.images[5], val.images[2] = train.images[1], train.images[0]
    train = replace(train, labels=torch.tensor([0, 1, 2, 0, 1, 1, 0, 1, 2]))
    done: list[int] = []
    pairs = duplicates(nt.Splits("blobs", train, val), lambda count, total: done.append(count))
    assert pairs == [Duplicate(("train", 1), ("train", 5), False), Duplicate(("train", 0), ("val", 2), True)]
    assert done == [9, 15]
    assert duplicates(nt.Splits("blobs", blobs(9), blobs(6, "val", seed=1))) == []


def test_imbalance_by_hand() -> None:
    data = nt.Splits("blobs", replace(blobs(6), labels=torch.tensor([0, 1, 1, 1, 1, 0])), blobs(6, "val", seed=1))
    rare = imbalance(data)
    assert rare == ("c", 0, "b", 4)
    assert rare is not None
    assert rare.ratio == float("inf")
    assert imbalance(replace(data, train=replace(data.train, labels=None))) is None


@pytest.mark.parametrize("packed", [False, True])
def test_the_report_names_files(packed: bool, photos: Path, call: Call, tmp_path: Path) -> None:
    where = str(nt.pack_data(photos, tmp_path / "packed").path) if packed else str(photos)
    code, out, _ = call("data", "check", where, "--json", "-q")
    summary = json.loads(out)
    assert code == 0
    assert summary["class_names"] == ["ant", "bee"]
    pairs = {tuple(pair["images"]): pair["labels_differ"] for pair in summary["duplicates"]}
    expected = {
        ("train/ant/03.png", "test/ant/seen.png"): False,
        ("train/ant/04.png", "test/bee/other.png"): True,
    }
    assert pairs == expected
    assert {pair["splits"][1] for pair in summary["duplicates"]} == {"test"}
    assert summary["imbalance"]["rarest"] == "bee"
    code, out, _ = call("data", "check", where, "-q")
    assert "Class order: 0 ant, 1 bee" in out
    assert "train/ant/03.png = test/ant/seen.png" in out
    assert "1 of these have two labels" in out
    assert "student.sampling=balanced" in out


def test_images_are_cropped_or_squashed_to_a_rectangle_and_without_class_folders_have_no_labels(
    call: Call, tmp_path: Path
) -> None:
    """Images of 4 x 12 whose outer columns are bright: none of these is left where they are cropped."""
    pixels = np.zeros((4, 12, 3), np.uint8)
    pixels[:, [0, 1, 10, 11]] = 240
    for role in ("train", "test"):
        (tmp_path / "flat" / role).mkdir(parents=True)
        for number in range(20):
            Image.fromarray(pixels).save(tmp_path / "flat" / role / f"{number}.png")
    words = ("data", "check", str(tmp_path / "flat"), "--set", "data.classes=2", "--json", "-q")
    for fit in ("squash", "crop"):
        code, out, err = call(*words, "--size", "2,3", "--fit", fit)
        assert code == 0, err
        summary = json.loads(out)
        assert (summary["classes"], summary["input_shape"]) == (2, [3, 2, 3])
        assert summary["splits"]["train"]["per_class"] is None
        assert (summary["splits"]["test"]["mean"] == [0.0] * 3) == (fit == "crop")
    assert call(*words, "--fit", "crop")[0] == 2


def test_a_data_set_by_name_is_no_folder_that_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image(tmp_path / "mnist-5k" / "train" / "a" / "0.png", 0)
    monkeypatch.chdir(tmp_path)
    with pytest.warns(DataWarning, match="is read as the data set of that name"):
        data = nt.load_data("mnist-5k")
    assert image_names(data, "mnist-5k")(("test", 7)) == "row 7 of test"


def test_nothing_is_said_of_a_good_data_set(call: Call) -> None:
    code, out, _ = call("data", "check", "mnist-5k", "-q")
    assert code == 0
    assert "Class order: 0 0, 1 1" in out
    for word in ("Imbalance", "Duplicates", "labels"):
        assert word not in out


def test_all_damaged_files_are_named_at_once(photos: Path, call: Call) -> None:
    for name in ("train/bee/0.png", "test/ant/new-0.png"):
        (photos / name).write_bytes(b"no image")
    code, out, err = call("data", "check", str(photos), "-q")
    assert (code, out) == (1, "")
    assert "2 images cannot be read" in err
    assert "train/bee/0.png: cannot be decoded" in err
    assert "test/ant/new-0.png: cannot be decoded" in err
