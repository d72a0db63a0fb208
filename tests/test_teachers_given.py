"""Trained teachers: which names mean a file or a library, weights beside a name, an ONNX file through the whole way."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import noisyteacher as nt
from helpers import Call
from noisyteacher.config import Teacher, build_config
from noisyteacher.errors import ConfigError, FileFormatError, MismatchError, UsageError
from noisyteacher.evaluate import judge
from noisyteacher.models import save_model, weights_fingerprint
from noisyteacher.pipeline.pretrained import (
    display_name,
    fit_of,
    is_model_path,
    is_pretrained,
    load_teacher,
    teachers_of,
)
from noisyteacher.runs import Run, new_run


def arrays(channels: int) -> dict[str, Any]:
    """Bright and dark images, 8 x 8."""
    draw = np.random.default_rng(0)
    splits: dict[str, Any] = {}
    for role, count in (("train", 48), ("val", 40), ("test", 40)):
        labels = np.arange(count) % 2
        shape = (count, 8, 8, channels)[: 3 + (channels > 1)]
        light = (60 + 120 * labels).reshape(count, *[1] * (len(shape) - 1))
        splits |= {f"x_{role}": (light + draw.integers(-20, 21, shape)).astype(np.uint8), f"y_{role}": labels}
    return splits


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teachers")
    np.savez(path / "grey.npz", **arrays(1))
    np.savez(path / "colour.npz", **arrays(3))
    data = nt.load_data(path / "grey.npz")
    model = nt.build_model("mlp800", data)
    nt.fit(model, data.train, nt.supervised(), epochs=2, lr=1e-4)
    save_model(model, path / "ours.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.network.state_dict().items()}}, path / "theirs.pth")
    return path


@pytest.mark.parametrize(
    ("name", "settings", "trained"),
    [
        ("lenet", {}, False),
        ("runs/x", {}, True),
        ("a.safetensors", {}, True),
        ("a.onnx", {}, True),
        ("pretrained:lenet-mnist", {}, True),
        ("lenet", {"weights": "a.pth"}, True),
        ("timm:resnet18", {}, False),
        ("timm:resnet18", {"options": {"pretrained": True}}, False),
        ("timm:resnet18", {"options": {"pretrained": "whole"}}, True),
        ("timm:resnet18", {"weights": "a.pth"}, True),
        ("hf:somebody/model", {}, True),
        ("hf:./folder", {}, True),
        ("hf:somebody/model", {"options": {"pretrained": True}}, False),
        ("hf:somebody/model", {"options": {"pretrained": False}}, False),
        ("pkg.module:factory", {}, False),
    ],
)
def test_which_names_mean_a_trained_teacher(name: str, settings: dict[str, Any], trained: bool) -> None:
    assert is_pretrained(name, Teacher(name=name, **settings)) is trained


def test_names_of_files(tmp_path: Path) -> None:
    assert not is_model_path("hf:somebody/model")
    torch.save({"a": torch.ones(1)}, tmp_path / "last")
    for name in (
        "a.pt",
        "b/c.pth",
        "pytorch_model.bin",
        "a.ckpt",
        "last.pth.tar",
        "A.PTH",
        "a.pkl",
        f"{tmp_path}/last",
    ):
        with pytest.raises(UsageError, match=r"name it, for example --teacher timm:resnet18.*--teacher-weights"):
            is_model_path(name)
    names = {
        "timm:resnet18.a1_in1k": "resnet18.a1_in1k", "hf:somebody/model": "model", "hf:./folder/": "folder",
        "dir/teacher.onnx": "teacher.onnx", "pkg.module:factory": "pkg.module:factory", "runs/r1": "r1",
    }  # fmt: skip
    assert {name: display_name(name) for name in names} == names


def test_the_name_of_a_network_wins_over_a_folder_without_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lenet").mkdir()
    Path("nin").write_text("notes")
    names = ("lenet", "lenet/", "./lenet", "mlp800", "nin")
    assert [is_model_path(name) for name in names] == [False, True, True, False, False]
    save_model(nt.build_model("mlp128", classes=2, input_shape=(1, 8, 8)), "lenet/weights.safetensors")
    new_run(Path("runs"), "train", "x", {}).path.rename("mlp800")
    assert [is_model_path(name) for name in ("lenet", "mlp800")] == [True, True]


def test_options_of_a_training_beside_a_trained_teacher_are_refused(folder: Path, tmp_path: Path) -> None:
    data, ours = nt.load_data(folder / "grey.npz"), str(folder / "ours.safetensors")
    for teacher, options, name in (
        (nt.load_model(ours), {"epochs": 3}, "mlp800"),
        (ours, {"preset": "modern"}, "ours.safetensors"),
        ("mlp800", {"weights": ours, "lr": 0.1}, "mlp800"),
    ):
        wrong = f"teacher_training: {list(options)[-1]} has no effect on {name}, which is trained already: leave it out"
        with pytest.raises(UsageError, match=f"^{wrong}$"):
            nt.compress(teacher, "mlp128", data, teacher_training=options, output_dir=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    result = nt.compress(
        ours, "mlp128", data, epochs=1, teacher_training={"also": ["mlp128"], "epochs": 1}, baselines=False,
        output_dir=tmp_path, checks=False,
    )  # fmt: skip
    assert Run.open(result.path / "teacher-2").info["kind"] == "train"


def test_weights_beside_a_name(folder: Path, tmp_path: Path) -> None:
    data = replace(nt.load_data(folder / "grey.npz"), fit="crop")
    ours = nt.load_model(folder / "ours.safetensors")
    for file in ("ours.safetensors", "theirs.pth"):
        model, run = load_teacher("mlp800", data, settings=Teacher(name="mlp800", weights=str(folder / file)))
        assert run is None
        assert weights_fingerprint(model) == weights_fingerprint(ours)
    result = nt.compress(
        "mlp800", "mlp800", data, epochs=1, baselines=False, output_dir=tmp_path,
        teacher_training={"weights": str(folder / "theirs.pth")},
    )  # fmt: skip
    child = Run.open(result.path / "teacher")
    assert (child.info["kind"], fit_of(child.path)) == ("given", "crop")
    kept = nt.load_model(child.path / "weights.safetensors")
    assert weights_fingerprint(kept) == weights_fingerprint(ours)
    torch.save(torch.nn.Linear(3, 2).state_dict(), tmp_path / "other.pth")
    with pytest.raises(MismatchError, match=r"other\.pth: its tensors are not those of 'mlp800' with 2 classes"):
        load_teacher("mlp800", data, settings=Teacher(name="mlp800", weights=str(tmp_path / "other.pth")))
    both = Teacher(name=str(folder / "ours.safetensors"), weights=str(folder / "theirs.pth"))
    with pytest.raises(UsageError, match="which has its own"):
        nt.compress(both.name, "mlp800", data, output_dir=tmp_path, teacher_training={"weights": both.weights})
    import safetensors.torch

    safetensors.torch.save_file(ours.network.state_dict(), tmp_path / "bare.safetensors")
    with pytest.raises(FileFormatError, match=r"need their network named too: --teacher NAME --teacher-weights"):
        load_teacher(tmp_path / "bare.safetensors", data)


@pytest.mark.skipif(find_spec("timm") is None, reason="needs the extra zoo")
def test_weights_beside_a_network_of_timm(folder: Path, tmp_path: Path) -> None:
    """What timm says of a network's images stands before foreign weights, unless settings say otherwise."""
    data = nt.load_data(folder / "colour.npz")
    name = "timm:resnet18"
    options: dict[str, Any] = {"drop_rate": 0.1}
    source = nt.build_model(name, data, seed=7, **options)
    torch.save({"model": source.network.state_dict()}, tmp_path / "a.pth")
    settings = Teacher(name=name, options=options, weights=str(tmp_path / "a.pth"))
    model, _ = load_teacher(name, data, settings=settings)
    assert weights_fingerprint(model) == weights_fingerprint(source)
    assert model.get_buffer("preprocess.mean").tolist() == pytest.approx([0.485, 0.456, 0.406])
    settings.preprocess, settings.mean, settings.std = "standardize@16x16-bilinear", [0.1, 0.2, 0.3], [1.0, 1.0, 2.0]
    model, _ = load_teacher(name, data, settings=settings)
    assert model.architecture["preprocess"] == "standardize@16x16-bilinear"
    assert model.get_buffer("preprocess.inner.std").tolist() == [1.0, 1.0, 2.0]
    settings.mean = settings.std = [0.5]
    with pytest.raises(UsageError, match="a value for each of the 3 channels"):
        load_teacher(name, data, settings=settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mean": [0.5]}, r"teacher\.mean: 1 values, and 0 in std"),
        ({"mean": [0.5], "std": [1.0], "preprocess": "scale"}, "no effect with preprocess 'scale'"),
        ({"mean": [0.5], "std": [0.0]}, r"teacher\.std"),
    ],
)
def test_statistics_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_config({"teacher": settings})


def onnx_teacher(path: Path) -> None:
    """Bright or dark, by hand: logits (-s, s) with s the mean brightness over the middle."""
    onnx = pytest.importorskip("onnx", reason="needs the extra export")
    pytest.importorskip("onnxruntime", reason="needs the extra export")
    weights = np.stack([np.full(64, -20 / 64), np.full(64, 20 / 64)]).astype(np.float32)
    bias = np.array([20 * 120 / 255, -20 * 120 / 255], dtype=np.float32)
    helper, kinds = onnx.helper, onnx.TensorProto
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w", "b"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes, "bright",
        [helper.make_tensor_value_info("image", kinds.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", kinds.FLOAT, ["n", 2])],
        [onnx.numpy_helper.from_array(weights, "w"), onnx.numpy_helper.from_array(bias, "b")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def test_an_onnx_file_through_the_whole_way(folder: Path, tmp_path: Path, call: Call) -> None:
    file, data = tmp_path / "bright.onnx", str(folder / "grey.npz")
    onnx_teacher(file)
    words = [
        "compress", "--data", data, "--teacher", str(file), "--student", "mlp800", "--sigma", "0", "--epochs", "1",
        "--no-baselines", "--output-dir", str(tmp_path / "runs"), "--json", "--quiet",
    ]  # fmt: skip
    code, out, _ = call(*words)
    assert code == 0
    result = json.loads(out)
    teacher = result["teachers"][0]
    assert teacher["scores"]["test"]["error"]["per_seed"] == [0.0]
    assert (teacher["costs"]["macs"], teacher["costs"]["parameters"]) == (128, 130)
    assert [check["check"] for check in result["checks"] if check["passed"] is not True] == ["class order"]
    (run,) = (tmp_path / "runs").iterdir()
    assert nt.load_model(run / "teacher" / "weights.safetensors").name == "onnx:bright"
    code, out, _ = call("evaluate", str(file), "--data", data, "--json")
    assert (code, json.loads(out)["error"]["value"]) == (0, 0.0)
    code, out, _ = call("measure", str(run / "teacher"), "--threads", "1", "--runs", "2", "--json")
    assert (code, json.loads(out)["macs"]) == (0, 128)
    code, _, err = call(*words, "--set", "teacher.options.width=2")
    assert code == 2
    assert "teacher.options: has no effect on" in err


def test_weights_on_the_command_line(folder: Path, tmp_path: Path, call: Call) -> None:
    data, weights = str(folder / "grey.npz"), str(folder / "theirs.pth")
    code, out, err = call(
        "extract", "mlp800", "--teacher-weights", weights, "--data", data, "--output-dir", str(tmp_path), "--json"
    )
    assert (code, json.loads(out)["rows"]) == (0, 48), err
    code, _, err = call("train", "--model", "hf:somebody/model", "--data", data)
    assert code == 2
    assert "to train it further say teacher.options.pretrained=true" in err


class Witness(nn.Module):
    """A linear teacher that counts how often it, or a copy of it, is shown an image."""

    times = 0

    def __init__(self, image: torch.Tensor) -> None:
        super().__init__()
        self.linear = nn.Linear(image.numel(), 2)
        self.image = image.flatten() / 255

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        Witness.times += int(torch.isclose(images.flatten(1), self.image).all(1).sum())
        logits: torch.Tensor = self.linear(images.flatten(1))
        return logits


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_trained_teacher_is_scored_by_the_answers_that_are_stored(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """A store shows it an image twice, the second time to see whether the answer repeats, and no row but the samples
    again when it is reused.
    """
    data = nt.load_data(folder / "grey.npz")
    assert data.test is not None
    teacher = Witness(data.test.images_at(torch.tensor([38])))
    monkeypatch.setattr(Witness, "times", 0)
    options: dict[str, Any] = {"baselines": False, "checks": False, "epochs": 1, "views": "clean"}
    result = nt.compress(
        teacher, "mlp128", data, teacher_training={"logits_precision": precision}, output_dir=tmp_path, **options
    )
    assert Witness.times == 2
    logits = nt.extract(teacher, data.test, tmp_path / "answers", precision=precision, progress=False)
    scores, _ = judge(logits, data.test)
    assert result.rows[0].errors == pytest.approx([float(scores.error or 0)])


def test_the_weights_of_a_named_teacher_may_be_those_of_a_run(folder: Path, tmp_path: Path) -> None:
    data = nt.load_data(folder / "grey.npz")
    trained = nt.build_model("mlp800", data)
    nt.fit(trained, data.train, nt.supervised(), epochs=1, run=tmp_path / "run", progress=False)
    model, _ = load_teacher("mlp800", data, settings=Teacher(name="mlp800", weights=str(tmp_path / "run")))
    assert weights_fingerprint(model) == weights_fingerprint(trained)


def test_settings_of_the_first_teacher_have_no_effect_on_a_trained_further_one(folder: Path) -> None:
    settings = {"name": "lenet", "options": {"dropout": 0.5}, "label_noise": 0.2, "also": ["mlp800"]}
    config = build_config({"teacher": settings, "student": {"name": "mlp800"}, "noise": {"sigma": 0.0}})
    assert [teacher.label_noise for _, teacher in teachers_of("lenet", config)] == [0.2, 0.2]
    config = replace(config, teacher=replace(config.teacher, also=[str(folder / "ours.safetensors")]))
    (_, first), (_, further) = teachers_of("lenet", config)
    assert (first.options, first.label_noise) == ({"dropout": 0.5}, 0.2)
    assert (further.options, further.label_noise) == ({}, 0.0)
