"""What a user gets without naming a recipe: which views, which update rule, how much weight on the labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import noisyteacher as nt
from noisyteacher.config import build_config
from noisyteacher.data import expand_views
from noisyteacher.pipeline import resolve
from noisyteacher.pipeline.resolve import default_views, fit_options, resolve_auto
from noisyteacher.pipeline.single_step import distil_config, extract_config, train_config
from noisyteacher.runs import Run
from noisyteacher.sweep.spec import expand
from noisyteacher.train.optim import preferred_optimizer


def images(folder: Path, channels: int, labels: bool = True) -> str:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for role, rows in (("train", 40), ("val", 20), ("test", 20)):
        arrays[f"x_{role}"] = rng.integers(0, 255, (rows, 12, 12, channels), dtype=np.uint8)
        if labels:
            arrays[f"y_{role}"] = np.arange(rows) % 2
    np.savez(folder / "set.npz", **arrays)
    return str(folder / "set.npz")


def test_colour_images_are_shifted_and_mirrored_grey_ones_shifted(tmp_path: Path) -> None:
    grey, colour = (nt.load_data(images(tmp_path, channels)) for channels in (1, 3))
    shifted = ("clean", "crop-y2-x2", "crop-y2-x6", "crop-y6-x2", "crop-y6-x6")
    assert default_views(grey, 20) == shifted
    both = ("clean", "mirror", *(name for view in shifted[1:] for name in (view, f"mirror-{view}")))
    assert default_views(colour, 20) == both
    assert expand_views(both) == both


def test_there_are_as_many_views_as_epochs_at_most(tmp_path: Path) -> None:
    colour = nt.load_data(images(tmp_path, 3))
    assert default_views(colour, 1) == ("clean",)
    assert default_views(colour, 4) == ("clean", "mirror", "crop-y2-x2", "mirror-crop-y2-x2")
    config = build_config({"data": {"name": images(tmp_path, 3)}, "student": {"epochs": 3}})
    assert len(resolve_auto(config, colour).student.views) == 3


def test_digits_in_colour_are_not_mirrored(tmp_path: Path) -> None:
    colour = nt.load_data(images(tmp_path, 3))
    assert not [view for view in default_views(replace(colour, name="svhn"), 20) if "mirror" in view]


@pytest.mark.parametrize(
    ("network", "shape", "expected"),
    [
        ("compact-xs", (3, 32, 32), "muon"),
        ("nin", (3, 32, 32), "muon"),
        ("mlp800", (1, 28, 28), "adamw"),
    ],
)
def test_muon_where_its_products_are_cheap(network: str, shape: tuple[int, int, int], expected: str) -> None:
    model = nt.build_model(network, input_shape=shape, classes=10)
    macs = nt.measure(model, shape, latency=False).macs
    assert preferred_optimizer(model, macs, batch_size=32) == expected


@pytest.mark.parametrize(
    ("recipe", "least", "batch_size", "lr"),
    [
        ({}, 40, 128, 0.03),
        ({}, 41, 64, 0.02),
        ({}, 82, 32, 0.01),
        ({"lr": 0.02}, 40, 32, 0.02),
        ({"optimizer": "adamw"}, 40, 32, 0.01),
        ({"batch_size": 64}, 40, 64, 0.01),
        ({"steps": 9}, 40, 32, 0.01),
    ],
)
def test_many_images_are_learned_in_large_batches_where_the_trials_behind_it_hold(
    recipe: dict[str, Any], least: int, batch_size: int, lr: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolve, "LARGER_BATCHES", {least: (128, 0.03), least // 2: (64, 0.02)})
    monkeypatch.setattr(resolve, "preferred_optimizer", lambda *_: "muon")  # on larger images
    data = nt.load_data(images(tmp_path, 3))
    config = resolve_auto(build_config({"student": {"name": "compact-xs", **recipe}}), data)
    options = fit_options(config.student, nt.build_model("compact-xs", data), data)
    assert (options["batch_size"], options["lr"]) == (batch_size, lr)


def test_conditions_of_a_sweep_have_one_batch_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "LARGER_BATCHES", {40: (128, 0.03)})
    settings: dict[str, Any] = {"data": {"name": images(tmp_path, 3)}, "student": {"name": "compact-xs"}}
    conditions, *_ = expand(settings, [{"student.lr": ["auto", 0.01]}])
    assert {condition.config.student.batch_size for condition in conditions} == {32}


def test_complex_weights_are_not_for_muon() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2, dtype=torch.complex64))
    assert preferred_optimizer(model, 10**9, batch_size=32) == "adamw"


def test_labels_weigh_in_where_every_split_has_them(tmp_path: Path) -> None:
    config = build_config({"data": {"name": images(tmp_path, 1)}})
    labelled = nt.load_data(config.data.name)
    assert resolve_auto(config, labelled).student.label_weight == 0.3
    bare = replace(labelled, train=replace(labelled.train, labels=None))
    assert resolve_auto(config, bare).student.label_weight == 0.0
    named = build_config({"student": {"label_weight": 0.7}})
    assert resolve_auto(named, labelled).student.label_weight == 0.7
    assert resolve_auto(config).student.label_weight == "auto"


def test_the_steps_one_by_one_agree_on_the_views(tmp_path: Path) -> None:
    """`extract` stores the views that `auto` means, `distil` learns from those that a store has."""
    settings: dict[str, Any] = {
        "data": {"name": images(tmp_path, 1)},
        "teacher": {"name": "compact-xs", "epochs": 1},
        "student": {"name": "compact-xs", "epochs": 3},
        "run": {"output_dir": str(tmp_path / "runs")},
        "noise": {"sigma": 0.0},
    }
    trained = train_config(build_config(settings))
    settings["teacher"] = {"name": str(trained.run.path)}
    every = extract_config(build_config(settings))
    assert every.views == default_views(nt.load_data(settings["data"]["name"]), 3)
    clean = extract_config(build_config({**settings, "student": {"views": ["clean"]}}), str(tmp_path / "clean"))
    for store in (every, clean):
        settings["student"] = {"name": "compact-xs", "epochs": 1}
        run = distil_config(build_config(settings), store.path).run
        student = run.config["config"]["student"]
        assert tuple(student["views"]) == store.views
        assert student["label_weight"] == 0.3


def test_a_compression_without_a_named_recipe_takes_the_standard_one(tmp_path: Path) -> None:
    result = nt.compress(
        "compact-xs", "compact-xs", images(tmp_path, 1), epochs=1, teacher_training={"epochs": 1},
        output_dir=tmp_path / "runs",
    )  # fmt: skip
    for name in ("teacher", "clean-seed0", "labels-seed0"):
        recipe = Run.open(result.path / name).config["recipe"]
        assert recipe["optimizer"] == "adamw"  # images of 12 pixels: few products of the network's own
        assert recipe["batch_norm"] == "reestimate"
        assert recipe["views"] == ["clean"]  # one an epoch


@pytest.mark.slow
def test_the_defaults_make_a_better_student_than_labels_alone(tmp_path: Path) -> None:
    """From a good teacher of 400 digits, where regression on plain logits under Adam is far behind labels."""
    data, teacher = nt.load_data("mnist-5k", limit=400), nt.load_model("pretrained:lenet-mnist")
    result = nt.compress(teacher, "compact-xs", data, output_dir=tmp_path, progress=False)
    errors = {row.name: row.scores["test"]["error"].mean for row in result.rows}
    assert errors["clean"] < errors["labels"] < 10
