"""`classify` and the command `predict`: new images in, classes and probabilities out."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import noisyteacher as nt
from helpers import Call
from noisyteacher.errors import DataError, MismatchError, UsageError
from noisyteacher.models import as_classifier


class Brightness(nn.Module):
    """Logits [0, 2 m, 4 m], where m is the mean of the left half of the images in 0..1."""

    def __init__(self) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.tensor([0.0, 2.0, 4.0]))

    def forward(self, ready: Tensor) -> Tensor:
        return ready[..., : ready.shape[-1] // 2].mean((1, 2, 3))[:, None] * self.factors


def probabilities(value: int) -> list[float]:
    """Of the three classes for an image whose pixels all have this value."""
    odds = [math.exp(2 * number * value / 255) for number in range(3)]
    return [share / sum(odds) for share in odds]


def model(channels: int = 1) -> nt.Classifier:
    return as_classifier(Brightness(), input_shape=(channels, 4, 4))


def image(path: Path, value: int = 0, shape: tuple[int, int] = (9, 9)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*shape, 3), value, np.uint8)).save(path)
    return path


def test_an_image_that_is_given_twice_is_answered_twice(tmp_path: Path) -> None:
    first, second = image(tmp_path / "a.png", 255), image(tmp_path / "b.png", 0)
    paths = [first, second, first, tmp_path]
    found = list(nt.classify(model(), paths, progress=False))
    assert [prediction.file for prediction in found] == list(map(str, [first, second, first, first, second]))
    assert [prediction.classes for prediction in found] == [("2",), ("0",), ("2",), ("2",), ("0",)]


@pytest.mark.parametrize("threads", [0, 1.5])
def test_threads_that_cannot_be_are_refused_by_name(threads: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"threads={threads}: expected a whole number >= 1"):
        nt.classify(model(), image(tmp_path / "a.png"), threads=threads)


def test_probabilities_of_every_image_in_order(tmp_path: Path) -> None:
    """Five images in batches of two, one that cannot be read among them."""
    values = [0, 255, 100, 30, 200]
    paths = [image(tmp_path / f"{9 - row}.png", value) for row, value in enumerate(values)]
    paths[2].write_text("no image")
    found = list(nt.classify(model(), paths, class_names=["a", "b", "c"], top=9, batch_size=2, progress=False))
    assert [prediction.file for prediction in found] == list(map(str, paths))
    assert found[2].error == "cannot be decoded (not an image of a known format)"
    assert (found[2].classes, found[2].probabilities) == ((), ())
    for value, prediction in zip(values, found, strict=True):
        if not prediction.error:
            expected = dict(zip("abc", probabilities(value), strict=True))
            assert dict(zip(prediction.classes, prediction.probabilities, strict=True)) == pytest.approx(expected)
            assert list(prediction.probabilities) == sorted(prediction.probabilities, reverse=True)
    assert found[1].classes == ("c", "b", "a")


def test_classes_are_numbers_without_names_and_one_by_default(tmp_path: Path) -> None:
    (prediction,) = nt.classify(model(3), image(tmp_path / "a.png", 255), progress=False)
    assert (prediction.file, prediction.classes) == (str(tmp_path / "a.png"), ("2",))
    assert prediction.probabilities == pytest.approx((probabilities(255)[2],))


def test_folders_are_read_at_any_depth(tmp_path: Path) -> None:
    image(tmp_path / "b" / "c" / "1.png")
    image(tmp_path / "a.jpg")
    (tmp_path / "notes.txt").write_text("x")
    found = [prediction.file for prediction in nt.classify(model(), tmp_path, progress=False)]
    assert found == [str(tmp_path / "a.jpg"), str(tmp_path / "b" / "c" / "1.png")]


def test_crop_and_squash(tmp_path: Path) -> None:
    """A wide image: white at its left edge, which a crop of the middle does not see."""
    pixels = np.zeros((8, 16), np.uint8)
    pixels[:, :2] = 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    shares = [
        next(nt.classify(model(), tmp_path / "wide.png", top=1, fit=fit, progress=False)).probabilities[0]
        for fit in ("crop", "squash")
    ]
    assert shares[0] == pytest.approx(1 / 3)
    assert shares[1] > 0.4


def test_the_callers_state_between_two_predictions(tmp_path: Path) -> None:
    """Between two images the model is as it was, gradients are on, and no more than a batch has been computed."""
    paths, done = [image(tmp_path / f"{number}.png") for number in range(4)], list[int]()
    network = model().train()
    predictions = nt.classify(network, paths, batch_size=2, progress=lambda count, total: done.append(count))
    next(predictions)
    assert torch.is_grad_enabled()
    assert network.training
    assert network.network.training
    assert done == []
    list(predictions)
    assert done == [2, 4]


def test_what_is_refused(tmp_path: Path) -> None:
    path = image(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"b\.png: no such file"):
        nt.classify(model(), [path, tmp_path / "b.png"])
    with pytest.raises(MismatchError, match="2 class names for a model of 3 classes"):
        list(nt.classify(model(), path, class_names=["a", "b"], progress=False))
    with pytest.raises(MismatchError, match=r"expected .* with 1 or 3 channels"):
        nt.classify(model(2), path)
    for options in ({"top": 0}, {"batch_size": 0}, {"fit": "stretch"}):
        with pytest.raises(UsageError):
            nt.classify(model(), path, **options)


def test_logits_that_are_not_finite_are_an_error_of_the_image(tmp_path: Path) -> None:
    network = model()
    nn.init.constant_(next(network.parameters()), float("nan"))
    (prediction,) = nt.classify(network, image(tmp_path / "a.png"), progress=False)
    assert (prediction.classes, prediction.error) == ((), "the model's logits are not finite")


# --- the command ----------------------------------------------------------------------------------------------------

NAMES = ("=cat", "dog")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of wide images of two classes."""
    for number in range(20):
        for value, name in ((20, NAMES[0]), (220, NAMES[1])):
            image(tmp_path / "photos" / name / f"{number}.png", value + number, (8, 16))
    return tmp_path / "photos"


@pytest.fixture
def run(call: Call, photos: Path, tmp_path: Path) -> str:
    """The folder of a run that was trained on images packed by cropping."""
    nt.pack_data(photos, tmp_path / "packed", size=8, grey=True)
    code, out, _ = call("train", "--model", "mlp128", "--data", str(tmp_path / "packed"), "--epochs", "1", "-q")
    assert code == 0
    return out.partition("Run folder: ")[2].split()[0]


def test_formats_and_exit_code(run: str, call: Call, tmp_path: Path) -> None:
    photos = tmp_path / "new"
    names = [str(image(photos / f"{number}.png", 80 * number, (8, 16))) for number in range(3)]
    code, out, _ = call("predict", run, str(photos), "--format", "json", "--top", "2", "-q")
    records = json.loads(out)
    assert (code, [record["file"] for record in records]) == (0, names)
    for record in records:
        assert {entry["class"] for entry in record["top"]} == {*NAMES}
        assert sum(entry["probability"] for entry in record["top"]) == pytest.approx(1)
        assert {key: record[key] for key in ("class", "probability")} == record["top"][0]
    (photos / "1.png").write_text("no image")
    code, out, err = call("predict", run, str(photos), "--format", "csv", "-q")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert (code, [row["file"] for row in rows]) == (3, [names[0], names[2]])
    for row, record in zip(rows, (records[0], records[2]), strict=True):
        assert row["class"].removeprefix("'") == record["class"]
        assert row["class"].startswith("'=") or record["class"] == "dog"
        assert float(row["probability"]) == pytest.approx(record["probability"])
    assert "1.png: cannot be decoded" in err
    assert "1 image could not be read" in err
    header, *cells = csv.reader(
        io.StringIO(call("predict", run, str(photos), "--format", "csv", "--top", "99", "-q")[1])
    )
    assert {len(header)} == {len(line) for line in cells} == {1 + 2 * len(NAMES)}
    code, out, _ = call("predict", run, str(photos), "-q")
    assert code == 3
    assert [line.split()[0] for line in out.splitlines()[2:]] == [names[0], names[2]]


def test_a_file_whose_name_is_no_text(run: str, tmp_path: Path) -> None:
    """In JSON its bytes are escaped, so that Python's json reads the name back."""
    path = os.fsencode(tmp_path) + b"/\xff.png"
    image(Path(os.fsdecode(path)), 255)
    command = [sys.executable, "-m", "noisyteacher", "predict", run, os.fsdecode(path), "--format", "json", "-q"]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(command, capture_output=True, env=environment, check=True)
    assert [os.fsencode(entry["file"]) for entry in json.loads(done.stdout.decode("utf-8"))] == [path]


def test_no_image_can_be_read(run: str, call: Call, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no image")
    code, out, _ = call("predict", run, str(tmp_path / "a.png"), "--format", "json", "-q")
    assert (code, json.loads(out)) == (3, [])


def edges(folder: Path) -> tuple[str, str]:
    """An image that is black but for white edges, which a crop does not see, and a black one."""
    pixels = np.zeros((8, 16), np.uint8)
    pixels[:, :2] = pixels[:, 14:] = 255
    Image.fromarray(pixels).save(folder / "edges.png")
    return str(folder / "edges.png"), str(image(folder / "black.png", 0))


def test_images_are_brought_to_size_as_the_data_were(run: str, call: Call, tmp_path: Path) -> None:
    words = ("predict", run, *edges(tmp_path), "--format", "json", "-q")
    cropped, squashed = (json.loads(call(*words, *fit)[1]) for fit in ((), ("--fit", "squash")))
    assert cropped[0]["probability"] == cropped[1]["probability"]
    assert squashed[0]["probability"] != squashed[1]["probability"]


def test_what_python_compressed_crops_as_its_data_were(photos: Path, call: Call, tmp_path: Path) -> None:
    data = nt.load_data(photos, size=8, grey=True, fit="crop")
    options: dict[str, Any] = {"epochs": 1, "teacher_training": {"epochs": 1}, "baselines": False}
    options["export"] = ["onnx", "hub"]
    result = nt.compress("mlp128", "mlp128", data, output_dir=tmp_path / "runs", checks=False, **options)
    shutil.copytree(result.path / "best", tmp_path / "alone")
    for model in (result.path, tmp_path / "alone", result.path / "best" / "hub"):
        rows = json.loads(call("predict", str(model), *edges(tmp_path), "--format", "json", "-q")[1])
        assert rows[0]["probability"] == rows[1]["probability"]
    images = edges(tmp_path)
    script = [sys.executable, str(tmp_path / "alone" / "predict.py")]
    answers = [subprocess.run([*script, name], capture_output=True, text=True, check=True).stdout for name in images]
    assert answers[0] == answers[1]
