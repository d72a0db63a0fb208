"""Quantization-aware training: a twin computes what its file does, learns, and its file is kept where it is better."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisyteacher as nt
from helpers import Call
from noisyteacher.config import build_config
from noisyteacher.data import Split, Splits
from noisyteacher.errors import ConfigError, ExportError, UsageError
from noisyteacher.export import FORMATS, Exported, table
from noisyteacher.export.quantization import scaled_as
from noisyteacher.models import Rescaled, rescale

MOBILE = importlib.util.find_spec("executorch") is not None and importlib.util.find_spec("torchao") is not None
needs_mobile = pytest.mark.skipif(not MOBILE, reason="needs the extra mobile")
SIDE, CLASSES = 8, ("dark", "light")
FAST: dict[str, Any] = {"optimizer": "adamw", "batch_size": 16, "progress": False}


def stripes(n: int = 96) -> Splits:
    """Grey images of one brightness each and a little texture; the class says whether it is above the middle."""
    generator = torch.Generator().manual_seed(0)
    brightness = torch.linspace(20, 235, n)[torch.randperm(n, generator=generator)]
    texture = torch.randint(-15, 16, (n, 1, SIDE, SIDE), generator=generator)
    images = (brightness.reshape(-1, 1, 1, 1) + texture).clamp(0, 255).to(torch.uint8)
    labels, half, most = (brightness > 127).long(), n // 2, 3 * n // 4

    def part(first: int, last: int, role: str) -> Split:
        return Split(images, labels[first:last], torch.arange(first, last), role, "stripes", CLASSES)

    return Splits("stripes", part(0, half, "train"), part(half, most, "val"), part(most, n, "test"))


class Blocks(nn.Module):
    """A convolution with batch norm, dropout, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.dropout, self.head = nn.Dropout(0.5), nn.Linear(4, 2)

    def forward(self, ready: Tensor) -> Tensor:
        features: Tensor = torch.relu(self.norm(self.conv(ready))).mean((2, 3))
        logits: Tensor = self.head(self.dropout(features))
        return logits


@pytest.fixture(scope="module")
def data() -> Splits:
    return stripes()


@pytest.fixture(scope="module")
def student(data: Splits) -> nt.Classifier:
    torch.manual_seed(0)
    model = nt.build_model(Blocks(), data)
    nt.fit(model, data.train, nt.supervised(), val=data.val, epochs=4, lr=0.02, **FAST)
    return model


def images_of(split: Split) -> Tensor:
    return split.images_at(torch.arange(len(split)))


def states(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def with_outlier(model: nt.Classifier) -> nt.Classifier:
    """A copy without its first channel, which is 0, behind a weight so large that int8 rounds all others to 0."""
    outlier = copy.deepcopy(model)
    network: Any = outlier.network
    with torch.no_grad():
        network.norm.weight[0] = network.norm.bias[0] = 0.0
        network.head.weight[:, 0] = 150.0
    return outlier


# ------------------------------------------------------------------------------------------------ the twin itself


@needs_mobile
def test_ranges_stay_in_eval_mode_and_the_model_is_unchanged(student: nt.Classifier, data: Splits) -> None:
    before = states(student)
    twin = nt.fake_quantized(student, data)
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())
    assert all(parameter.requires_grad for parameter in twin.parameters())
    ranges = states(twin)
    bright = torch.full((4, 1, SIDE, SIDE), 255, dtype=torch.uint8)
    first, again = (twin.eval()(bright) for _ in range(2))
    assert torch.equal(first, again)
    assert all(torch.equal(ranges[name], value) for name, value in twin.state_dict().items())
    twin.train()(bright)  # dropout is off: the same images give the same logits, but the ranges move
    moved = [name for name, value in twin.state_dict().items() if not torch.equal(ranges[name], value)]
    assert any(name.endswith("max_val") for name in moved)


@needs_mobile
def test_a_file_computes_what_the_trained_twin_computes(student: nt.Classifier, data: Splits, tmp_path: Path) -> None:
    """Within two steps of the logits' int8 scale, in either runtime, after training with a scale that is kept apart."""
    scaled = rescale(copy.deepcopy(student), 3.0)
    twin = nt.fake_quantized(scaled, data)
    assert isinstance(twin.network, Rescaled)
    nt.fit(twin, data.train, nt.supervised(), val=data.val, epochs=3, lr=0.01, **FAST)
    rescale(twin, 2.0)  # as a training with the scale rms does: the file has the twin's own
    expected = nt.predict(twin, data.val, progress=False)
    step = float(expected.max() - expected.min()) / 255
    for suffix in ("onnx", "pte"):
        file = nt.export(scaled, tmp_path / f"m.{suffix}", data=data, int8=True, twin=twin, max_drop=100, runs=1)
        assert file.qat
        logits = run(file.path, images_of(data.val))
        assert (logits - expected).abs().max() <= 2 * step + 1e-6, suffix
        assert Exported.read(json.loads(json.dumps(file.describe()))) == file


def test_a_file_gets_the_scale_that_its_twin_has_by_now(student: nt.Classifier, data: Splits) -> None:
    """Of a student without a scale and of one with another, which both stay as they are."""
    logits, twin = nt.predict(student, data.val, progress=False), rescale(copy.deepcopy(student), 3.0)
    for model, scale in ((student, 1.0), (rescale(copy.deepcopy(student), 2.0), 2.0)):
        assert scaled_as(model, student) is scaled_as(model, None) is model
        torch.testing.assert_close(nt.predict(scaled_as(model, twin), data.val, progress=False), 3 * logits)
        torch.testing.assert_close(nt.predict(model, data.val, progress=False), scale * logits)


def run(path: Path, images: Tensor) -> Tensor:
    if path.suffix == ".onnx":
        onnxruntime = pytest.importorskip("onnxruntime")
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(path).load_method("forward")
    assert method is not None
    return torch.cat([method.execute([image])[0].clone() for image in torch.split(images, 1)])


@needs_mobile
def test_training_makes_up_for_weights_that_rounding_lost(student: nt.Classifier, data: Splits, tmp_path: Path) -> None:
    """An outlier weight makes int8 useless; the twin learns around it, and its file is the one that is kept."""
    outlier = with_outlier(student)
    assert float(nt.evaluate(outlier, data.val, progress=False).accuracy or 0) > 85
    twin = nt.fake_quantized(outlier, data)
    nt.fit(
        twin, data.train, nt.supervised(), val=data.val, epochs=10, lr=0.5, body_rate=0.0, **FAST | {"batch_size": 8}
    )
    for suffix in ("onnx", "pte"):
        file = nt.export(outlier, tmp_path / f"m.{suffix}", data=data, int8=True, twin=twin, runs=1)
        assert file.rejected is not None
        assert (file.qat, file.holds) == (True, file.drop <= 1)
        assert file.rejected.drop > 20
        assert file.drop < file.rejected.drop / 3
    rows = table([file]).rows
    assert [row[1] for row in rows] == ["fp32", "int8 QAT", "int8 PTQ"]
    assert [row[-1] for row in rows] == ["", "yes" if file.holds else "NO", "not kept"]


@needs_mobile
def test_a_twin_that_loses_more_is_not_kept(student: nt.Classifier, data: Splits, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    twin = nt.fake_quantized(student, data)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    file = nt.export(student, tmp_path / "m.onnx", data=data, int8=True, twin=twin, runs=1)
    assert file.rejected is not None
    assert (file.qat, file.holds) == (False, True)
    assert file.rejected.drop > 25 > file.drop
    alone = nt.export(student, tmp_path / "alone.onnx", data=data, int8=True, runs=1)
    assert (alone.sha256, alone.qat, alone.rejected) == (file.sha256, False, None)


# ---------------------------------------------------------------------------------------------- refused beforehand


def test_records_without_these_fields_are_read(student: nt.Classifier, data: Splits, tmp_path: Path) -> None:
    file = nt.export(student, tmp_path / "m.pt2", data=data, runs=1)
    record = {name: value for name, value in file.describe().items() if name not in ("qat", "rejected")}
    assert Exported.read(record) == file


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"student": {"qat_epochs": 2}, "run": {"export": ["onnx"]}}, r"student.qat_epochs: 2 has no effect"),
        ({"student": {"qat_lr": 0.1}}, r"student.qat_lr: 0.1 has no effect"),
        ({"student": {"qat_epochs": -1}, "run": {"export": ["pte-int8"]}}, r"student.qat_epochs: "),
    ],
)
def test_settings_without_effect_are_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        build_config(settings)


def test_missing_packages_are_named_before_anything_is_trained(
    data: Splits, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "executorch" else find(name))
    monkeypatch.setitem(FORMATS, "onnx-int8", FORMATS["pt2"])  # which needs no package
    with pytest.raises(
        UsageError, match=r"student\.qat_epochs needs .*executorch: pip install 'noisyteacher\[mobile\]'"
    ):
        nt.compress("mlp800", "mlp800", data, qat_epochs=1, export=["onnx-int8"], output_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


class Moody(nn.Module):
    """A network that looks at the values of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(SIDE * SIDE, 2)

    def forward(self, ready: Tensor) -> Tensor:
        logits: Tensor = self.head(ready.flatten(1))
        return logits if float(ready.detach().mean()) > 0.5 else -logits


@needs_mobile
def test_a_network_that_cannot_be_traced_is_refused_before_anything_is_trained(data: Splits, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"cannot be traced by torch\.export"):
        nt.compress("mlp800", Moody(), data, qat_epochs=1, export=["pte-int8"], output_dir=tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []


@needs_mobile
def test_a_twin_where_it_has_no_effect_is_refused(student: nt.Classifier, data: Splits, tmp_path: Path) -> None:
    twin = nt.fake_quantized(student, data)
    with pytest.raises(UsageError, match="twin has no effect on onnx: leave it out"):
        nt.export(student, tmp_path / "m.onnx", data=data, twin=twin)
    with pytest.raises(UsageError, match=r"given a Blocks; expected nt\.fake_quantized"):
        nt.export(student, tmp_path / "m.onnx", data=data, int8=True, twin=student)


def test_the_flag_without_a_file_in_int8(call: Call) -> None:
    code, out, err = call("compress", "--data", "mnist-5k", "--student", "mlp800", "--qat", "2", "--export", "onnx")
    assert (code, out) == (2, "")
    assert "add onnx-int8 or pte-int8 to run.export (--export)" in " ".join(err.split())


# ------------------------------------------------------------------------------------------------- in a compression


@needs_mobile
def test_a_compression_that_was_interrupted_while_it_trained_the_twin(
    student: nt.Classifier, data: Splits, tmp_path: Path
) -> None:
    """Resumed it writes the bytes of an unbroken one; the record has the errors, and both files are in the table."""
    options: dict[str, Any] = {"qat_epochs": 3, "qat_lr": 0.01, "epochs": 2, "lr": 0.02, "optimizer": "adamw"}
    options |= {"export": ["pte-int8"], "baselines": False, "views": "clean", "checks": False}

    def compress(folder: str, **more: Any) -> nt.Result:
        torch.manual_seed(1)
        return nt.compress(student, with_outlier(student), data, **options, output_dir=tmp_path / folder, **more)

    whole = compress("whole", progress=False)

    def interrupt(stage: str, done: int, total: int, note: str) -> None:
        if "quantization-aware training" in stage and done == total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress("broken", progress=interrupt)
    (folder,) = (tmp_path / "broken").iterdir()
    assert (folder / "qat" / "checkpoint.safetensors").exists() or any((folder / "qat").glob("*checkpoint*"))
    resumed = compress("broken", run=folder, progress=False)
    for path in ("qat/weights.safetensors", "best/model-int8.pte"):
        assert (resumed.path / path).read_bytes() == (whole.path / path).read_bytes(), path
    assert whole.best is not None
    record = whole.best["qat"]
    assert (record["epochs"], record["lr"], record["n"], record["run"]) == (3, 0.01, len(data.val), "qat")
    assert record["val_error_%"].keys() == {"fp32", "fake-quantized"}
    assert "QAT: 3 epochs at lr 0.01; validation error fp32" in str(whole)
    assert [file.rejected is not None for file in whole.files] == [True]
    assert "int8 PTQ" in str(whole)
    assert "int8 QAT" in str(whole)
    assert (
        nt.Result.read(whole.path, json.loads((whole.path / "result.json").read_text())["result"]).files == whole.files
    )
