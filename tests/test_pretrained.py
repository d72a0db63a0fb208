"""The teachers that come with the package are what their cards say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import noisyteacher as nt
from noisyteacher.errors import UnknownNameError
from noisyteacher.io.files import sha256
from noisyteacher.models import weights_file
from noisyteacher.paper import regime


@pytest.mark.parametrize("name", nt.pretrained())
def test_every_file_has_its_card(name: str) -> None:
    card = nt.pretrained()[name]
    file = weights_file(f"pretrained:{name}")
    assert sha256([file.read_bytes()]) == card["sha256"]
    model = nt.load_model(f"pretrained:{name}")
    assert model.architecture["name"] == card["model"]
    for key in ("data", "recipe", "seed", "versions", "licence"):
        assert key in card
    for scores in card["scores"].values():
        assert scores["error"]["n"] > 0
    assert "root" not in card["data"]


def test_weights_and_cards_come_in_pairs() -> None:
    folder = weights_file("pretrained:lenet-mnist").parent
    assert {file.stem for file in folder.glob("*.safetensors")} == set(nt.pretrained())
    assert sum(file.stat().st_size for file in folder.iterdir()) < 6_000_000


def test_an_unknown_name_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'lenet-mnist'"):
        nt.load_model("pretrained:lenet-mnits")
    assert weights_file("some/file.safetensors") == Path("some/file.safetensors")


def test_the_error_for_the_nin_of_earlier_versions_names_the_one_that_is_there() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'nin-cifar10'"):
        nt.load_model("pretrained:nin-cifar10-gpu")
    names = {teacher.removeprefix("pretrained:") for teacher in regime.TEACHERS.values()}
    assert names <= set(nt.pretrained())


def test_the_stated_error_is_measured_again(real_data: Path) -> None:
    card = nt.pretrained()["lenet-mnist"]
    data = nt.load_data("mnist", root=real_data)
    assert data.test is not None
    scores = nt.evaluate(nt.load_model("pretrained:lenet-mnist"), data.test)
    assert scores.error is not None
    assert scores.error == pytest.approx(card["scores"]["test"]["error"]["value"], abs=0.011)
    assert scores.error < 0.9


def test_the_stated_error_of_nin_is_near_that_of_some_images(real_data: Path) -> None:
    data = nt.load_data("cifar10", root=real_data, verify=False)
    assert data.test is not None
    every_tenth = data.test.subset(torch.arange(0, 10_000, 10))  # all of them take a minute
    card = nt.pretrained()["nin-cifar10"]
    stated = card["scores"]["test"]["error"]
    assert stated["n"] == 10_000
    assert stated["value"] <= 12
    scores = nt.evaluate(nt.load_model("pretrained:nin-cifar10"), every_tenth)
    assert scores.error is not None
    assert abs(scores.error - stated["value"]) < 3.5  # 3.3 standard errors of 1,000 images


def test_nin_is_the_papers_network() -> None:
    model = nt.load_model("pretrained:nin-cifar10")
    costs = nt.measure(model, latency=False)
    assert (costs.parameters, costs.macs) == (966_986, 222_486_528)
