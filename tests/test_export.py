"""Exported files are what they claim: run by hand in their own runtimes, on disk only when they can be run."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import noisyteacher as nt
from helpers import labels_of, part
from noisyteacher import bench
from noisyteacher.data import Split, Splits
from noisyteacher.errors import (
    ExportError,
    FileFormatError,
    NoisyTeacherError,
    TrainingError,
    UsageError,
)
from noisyteacher.export import FORMATS, Exported, check_formats, export_all, table, verdict
from noisyteacher.export.outcome import compare, notes
from noisyteacher.export.quantization import calibration_images
from noisyteacher.io.files import check_seal
from noisyteacher.measure import Latency
from noisyteacher.models import MODELS, PREPROCESS
from noisyteacher.stats import Quantity

onnx = pytest.importorskip("onnx", reason="needs the extra export")
ort = pytest.importorskip("onnxruntime", reason="needs the extra export")
SAME_LAYERS = {"compact-s", "compact-m", "lenet-svhn", "student1", "student2"}
"""Networks that have the layers of others in other widths."""
NAMES = {"onnx": "m.onnx", "onnx-int8": "m-int8.onnx", "pt2": "m.pt2", "hub": "hub"}


def splits(shape: tuple[int, int, int], n: int = 60, seed: int = 0) -> Splits:
    """Smooth random images, four classes; two thirds to train on."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((n, shape[0], 7, 7), generator=generator)
    images = (nn.functional.interpolate(coarse, size=shape[1:], mode="bilinear") * 255).to(torch.uint8)
    labels, names = torch.arange(n) % 4, ("a", "b", "c", "d")
    cut = 2 * n // 3

    def part(first: int, last: int, role: str) -> Split:
        return Split(images, labels[first:last], torch.arange(first, last), role, "smooth", names)

    return Splits("smooth", part(0, cut, "train"), part(cut, n - 5, "val"), part(n - 5, n, "test"))


class Residual(nn.Module):
    """Convolutions with batch norms, a skip connection, a global average: what real networks are files of."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.inner = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8))
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x)
        return {"logits": self.head(self.pool(torch.relu(x + self.inner(x))).flatten(1))}


@pytest.fixture(scope="module")
def data() -> Splits:
    return nt.load_data("mnist-5k")


@pytest.fixture(scope="module")
def lenet() -> nt.Classifier:
    return nt.load_model("pretrained:lenet-mnist")


@pytest.fixture(scope="module")
def files(lenet: nt.Classifier, data: Splits, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    """The shipped teacher in every format that needs no more than the extra export."""
    folder = tmp_path_factory.mktemp("files")
    result = export_all(lenet, {name: folder / file for name, file in NAMES.items()}, data=data, runs=3)
    return dict(zip(NAMES, result, strict=True))


def images_of(split: Split) -> np.ndarray[Any, Any]:
    return split.images_at(torch.arange(len(split))).numpy()


def run_onnx(path: Path, images: np.ndarray[Any, Any]) -> Tensor:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images})[0])


def test_reported_numbers_are_those_of_the_file(files: dict[str, Exported], lenet: nt.Classifier, data: Splits) -> None:
    """Numbers of the outcome against the file on the disk, run here without this package's runners."""
    images, labels = images_of(data.val), labels_of(data.val)
    ours = nt.predict(lenet, data.val)
    theirs = {
        "onnx": run_onnx(files["onnx"].path, images),
        "onnx-int8": run_onnx(files["onnx-int8"].path, images),
        "pt2": torch.export.load(files["pt2"].path).module()(torch.from_numpy(images)),
        "hub": nt.predict(nt.load_model(files["hub"].path), data.val),
    }
    for name, logits in theirs.items():
        exported = files[name]
        assert (exported.n, exported.checked_on, exported.holds) == (400, "mnist-5k, val", True), name
        assert exported.accuracy == pytest.approx(100 * (logits.argmax(1) == labels).float().mean().item())
        assert exported.torch_accuracy == pytest.approx(100 * (ours.argmax(1) == labels).float().mean().item())
        assert exported.agreement == pytest.approx(100 * (logits.argmax(1) == ours.argmax(1)).float().mean().item())
        assert exported.difference == pytest.approx((logits - ours).abs().max().item(), rel=1e-3, abs=2e-5)
        assert exported.logit_scale == pytest.approx(ours.abs().max().item())
        file = exported.path / "model.safetensors" if name == "hub" else exported.path
        assert (exported.bytes, exported.sha256) == (file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest())
        assert (exported.latency_ms.batch, exported.latency_ms.runs, exported.latency_ms.device) == (1, 3, "cpu")
    assert files["pt2"].difference == files["hub"].difference == 0
    assert files["onnx"].difference <= files["onnx"].tolerance == pytest.approx(1e-4 * files["onnx"].logit_scale)
    assert files["onnx-int8"].difference > 0.01
    assert files["onnx-int8"].bytes < 0.3 * files["onnx-int8"].torch_bytes


def test_the_record_beside_a_file(files: dict[str, Exported]) -> None:
    for name, exported in files.items():
        beside = exported.path.with_name(f"{exported.path.name}.export.json")
        check_seal(beside.read_bytes(), beside)
        record = json.loads(beside.read_text())
        assert (record["kind"], record["schema"], record["path"]) == ("export", 1, exported.path.name)
        assert (record["sha256"], record["n"], record["holds"]) == (exported.sha256, 400, True)
        assert record["accuracy"] == {"value": float(exported.accuracy or 0), "unit": "%", "n": 400}
        assert record.get("calibration_images") == (512 if name == "onnx-int8" else None)
        assert record["model"]["architecture"]["name"] == "lenet"
        assert record["runtime"].split()[0] == {"pt2": "torch", "hub": "torch"}.get(name, "onnxruntime")
        assert {"cpu", "cores"} <= record["host"].keys()


@pytest.mark.parametrize("name", ["onnx", "onnx-int8"])
def test_an_onnx_file_stands_alone(name: str, files: dict[str, Exported], lenet: nt.Classifier, data: Splits) -> None:
    """One file, checked, uint8 in, a batch of any size, class names inside, nothing of this machine inside."""
    path = files[name].path
    proto = onnx.load(path, load_external_data=False)
    onnx.checker.check_model(proto, full_check=True)
    assert all(exported.data_location == onnx.TensorProto.DEFAULT for exported in proto.graph.initializer)
    (images_input,), (output,) = proto.graph.input, proto.graph.output
    assert (images_input.name, output.name) == ("images", "logits")
    assert images_input.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [dim.dim_param or dim.dim_value for dim in images_input.type.tensor_type.shape.dim] == ["batch", 1, 28, 28]
    assert [dim.dim_param or dim.dim_value for dim in output.type.tensor_type.shape.dim] == ["batch", 10]
    properties = {entry.key: entry.value for entry in proto.metadata_props}
    assert json.loads(properties["noisyteacher.classes"]) == [str(digit) for digit in range(10)]
    for trace in (b"classifier.py", b"site-packages", str(Path(nt.__file__).parent).encode()):
        assert trace not in path.read_bytes()
    images = images_of(data.val)
    reference = nt.predict(lenet, data.val)
    for batch in (1, 3):
        answers = run_onnx(path, images[:batch])
        assert answers.shape == (batch, 10)
        limit = 1e-4 if name == "onnx" else 1.0
        assert (answers - reference[:batch]).abs().max() < limit


def test_int8_is_int8_in_the_network_alone(tmp_path: Path) -> None:
    """Every weight of convolutions is stored in 8 bits, one scale a channel; local contrast's own stay in fp32."""
    small = splits((3, 14, 14))
    model = nt.build_model(Residual(), small, preprocess="local-contrast")
    for _ in range(3):  # batch norms with statistics of their own
        model.train()(small.train.images_at(torch.arange(40)))
    flags = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    exported = nt.export(model, tmp_path / "r.onnx", data=small, int8=True, max_drop=100, calibration=30, runs=1)
    assert flags == [module.training for module in model.modules()]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    proto = onnx.load(exported.path)
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    producer = {output: node for node in proto.graph.node for output in node.output}
    kinds = []
    for node in proto.graph.node:
        if node.op_type == "Conv":
            source = producer.get(node.input[1])
            weight = stored[source.input[0] if source is not None else node.input[1]]
            kinds.append((weight.data_type, tuple(weight.dims)))
            if source is not None:
                assert source.op_type == "DequantizeLinear"
                assert list(stored[source.input[1]].dims) == [8]
                assert np.abs(onnx.numpy_helper.to_array(weight).astype(int)).max() <= 64
    int8, fp32 = onnx.TensorProto.INT8, onnx.TensorProto.FLOAT
    assert [shape for kind, shape in kinds if kind == int8] == [(8, 3, 3, 3), (8, 8, 3, 3)]
    assert {shape for kind, shape in kinds if kind == fp32} == {(1, 1, 9, 1), (1, 1, 1, 9)}
    assert not any(node.op_type == "BatchNormalization" for node in proto.graph.node)


def test_ranges_are_set_on_training_images_alone(tmp_path: Path) -> None:
    """Other validation and test images give the same int8 file; other training images another."""
    first = splits((1, 12, 12))
    model = nt.build_model(nn.Sequential(nn.Flatten(), nn.Linear(144, 8), nn.ReLU(), nn.Linear(8, 4)), first)

    def with_images(images: Tensor) -> Splits:
        train, val, test = (replace(split, images=images) for split in first.parts.values())
        return Splits("smooth", train, val, test)

    def digest(data: Splits, name: str) -> str:
        return nt.export(model, tmp_path / name, data=data, int8=True, max_drop=100, runs=1).sha256

    changed, darker = first.train.images.clone(), first.train.images.clone()
    changed[40:] = 255 - changed[40:]
    darker[:40] //= 3
    same = digest(first, "a.onnx")
    assert digest(with_images(changed), "b.onnx") == same
    assert digest(with_images(darker), "c.onnx") != same


def test_calibration_images_are_drawn_from_training_rows() -> None:
    small = splits((1, 8, 8))
    result = calibration_images(small, 10)
    train = {image.numpy().tobytes() for image in small.train.images_at(torch.arange(len(small.train)))}
    assert {image.numpy().tobytes() for image in result} <= train
    assert len(result) == 10
    assert torch.equal(result, calibration_images(small, 10))
    assert len(calibration_images(small, 1000)) == len(small.train) == 40


@pytest.mark.parametrize("name", sorted(set(MODELS) - SAME_LAYERS))
def test_every_network_of_the_paper_is_traced_for_any_batch(name: str, tmp_path: Path) -> None:
    """Ceil-mode pooling and averages over whole images among them; each network with another preprocessing."""
    shape = (1, 28, 28) if name in ("lenet", "mlp800") else (3, 32, 32)
    small = splits(shape, 24)
    front = list(PREPROCESS)[list(MODELS).index(name) % len(PREPROCESS)]
    model = nt.build_model(name, small, preprocess=front, seed=1)
    exported = nt.export(model, tmp_path / "m.pt2", data=small, runs=1)
    assert (exported.difference, exported.holds) == (0, True)
    program = torch.export.load(exported.path).module()
    for batch in (1, 3):
        images = small.train.images_at(torch.arange(batch))
        with torch.no_grad():
            assert torch.equal(program(images), model.eval()(images))


@pytest.mark.parametrize("front", PREPROCESS)
def test_every_preprocessing_is_in_the_onnx_file(front: str, tmp_path: Path) -> None:
    """Images of a size that poolings in ceil mode do not divide; nin among the networks."""
    small = splits((3, 17, 19), 24)
    layers = (nn.Conv2d(3, 4, 3), nn.MaxPool2d(3, 2, ceil_mode=True), nn.AvgPool2d(3, 2, ceil_mode=True))
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = nt.build_model("nin" if front == "pixel-mean" else network, small, preprocess=front, seed=1)
    exported = nt.export(model, tmp_path / "m.onnx", data=small, runs=1)
    images = small.train.images_at(torch.arange(3))
    with torch.no_grad():
        expected = model.eval()(images)
    assert exported.holds
    for batch in (1, 3):
        assert (
            run_onnx(exported.path, images[:batch].numpy()) - expected[:batch]
        ).abs().max() < 1e-4 * exported.logit_scale


def exported_residual(path: Path, int8: bool) -> tuple[nt.Exported, Tensor, Tensor]:
    """A network with batch norms, which holds in the file and is unchanged by it; images, and its logits for them."""
    small = splits((3, 14, 14))
    model = nt.build_model(Residual(), small, preprocess="local-contrast", seed=0)
    for _ in range(3):
        model.train()(small.train.images_at(torch.arange(40)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    limits: dict[str, Any] = {"int8": True, "max_drop": 30} if int8 else {}
    exported = nt.export(model, path, data=small, runs=2, **limits)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert exported.holds
    images = small.val.images_at(torch.arange(len(small.val)))
    with torch.no_grad():
        return exported, images, model.eval()(images)


@pytest.mark.slow
@pytest.mark.parametrize("int8", [False, True])
def test_a_pte_file_runs_in_executorch(int8: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("executorch", reason="needs the extra mobile")
    exported, images, ours = exported_residual(tmp_path / "m.pte", int8)
    assert exported.runtime.startswith("executorch 1.")
    assert capfd.readouterr() == ("", "")
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(exported.path).load_method("forward")
    assert method is not None
    theirs = torch.cat([method.execute([image])[0].clone() for image in torch.split(images, 1)])
    assert (theirs - ours).abs().max().item() == pytest.approx(exported.difference, rel=1e-3, abs=1e-6)
    assert (exported.difference > 1e-4) == int8


@pytest.mark.slow
@pytest.mark.parametrize("int8", [False, True])
def test_a_tflite_file_runs_in_litert(int8: bool, tmp_path: Path) -> None:
    interpreter = pytest.importorskip("ai_edge_litert.interpreter", reason="needs the extra litert")
    pytest.importorskip("litert_torch", reason="needs the extra litert")
    exported, images, ours = exported_residual(tmp_path / "m.tflite", int8)
    assert exported.runtime.startswith("ai_edge_litert 2.")
    run = interpreter.Interpreter(str(exported.path)).get_signature_runner()
    ((name, image_details),) = run.get_input_details().items()
    assert (image_details["dtype"], tuple(image_details["shape"])) == (np.uint8, (1, 3, 14, 14))
    theirs = np.concatenate([next(iter(run(**{name: image[None]}).values())) for image in images.numpy()])
    assert (torch.from_numpy(theirs) - ours).abs().max().item() == pytest.approx(
        exported.difference, rel=1e-3, abs=1e-6
    )
    assert (exported.difference > 1e-4) == int8


def test_the_runtime_may_come_with_a_distribution_of_another_name(
    tiny: tuple[nt.Classifier, Splits], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "with_version", lambda package: f"{package} of another distribution")
    exported = nt.export(tiny[0], tmp_path / "m.onnx", data=tiny[1], runs=1)
    assert exported.runtime == "onnxruntime of another distribution"


@pytest.fixture
def tiny() -> tuple[nt.Classifier, Splits]:
    small = splits((1, 8, 8))
    return nt.build_model(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), small), small


def faulty(monkeypatch: pytest.MonkeyPatch, run: Callable[[Tensor], Tensor]) -> None:
    """The runtime of .pt2 answers as `run` does."""

    @contextmanager
    def opened(path: Path, threads: int) -> Iterator[Callable[[Tensor], Tensor]]:
        yield run

    monkeypatch.setitem(FORMATS, "pt2", replace(FORMATS["pt2"], run=opened))


def test_a_file_over_its_tolerance_is_reported_and_kept(
    tiny: tuple[nt.Classifier, Splits], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, small = tiny
    faulty(monkeypatch, lambda images: model(images) + 0.25)
    exported = nt.export(model, tmp_path / "m.pt2", data=small, runs=1)
    assert not exported.holds
    assert exported.difference == pytest.approx(0.25, abs=1e-5)
    assert exported.path.exists()
    assert json.loads((tmp_path / "m.pt2.export.json").read_text())["holds"] is False
    assert "m.pt2" not in verdict([exported])
    assert "no file holds" in verdict([exported])
    assert any("does not hold: largest logit difference 0.25, allowed" in note for note in notes([exported]))
    assert nt.export(model, tmp_path / "m.pt2", data=small, runs=1, max_difference=0.3).holds
    assert not nt.export(model, tmp_path / "m.pt2", data=small, runs=1, max_difference=0.2).holds


def test_logits_that_are_none_are_refused(
    tiny: tuple[nt.Classifier, Splits], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, small = tiny
    wrong: list[Callable[[Tensor], Tensor]] = [
        lambda images: model(images) * float("nan"),
        lambda images: model(images) * float("inf"),
        lambda images: model(images)[:, :1],
    ]
    for run in wrong:
        faulty(monkeypatch, run)
        with pytest.raises(ExportError, match=r"the file returns logits \(15, [14]\).*torch \(15, 4\) finite logits"):
            nt.export(model, tmp_path / "m.pt2", data=small, runs=1, max_difference=float("inf"))
    with torch.no_grad():
        part(model, "network.1").bias[2] = float("nan")
    with pytest.raises(TrainingError, match="not finite: nothing to export"):
        nt.export(model, tmp_path / "n.pt2", data=small)
    assert list(tmp_path.iterdir()) == []


def test_int8_is_judged_by_accuracy_and_without_labels_by_agreement(tiny: tuple[nt.Classifier, Splits]) -> None:
    """15 images; torch is right on 10, the file on 9, and they agree on 13."""
    _, small = tiny
    labels = labels_of(small.val)
    right = nn.functional.one_hot(labels, 4).float()
    wrong = nn.functional.one_hot((labels + 1) % 4, 4).float()
    n = len(labels)
    assert n == 15
    ours, theirs = right.clone(), right.clone()
    ours[:5], theirs[:6] = wrong[:5], wrong[:6]
    theirs[0] = nn.functional.one_hot((labels[:1] + 2) % 4, 4).float()
    result = compare(theirs, ours, labels)
    assert result.torch_accuracy == pytest.approx(100 * 10 / 15)
    assert result.accuracy == pytest.approx(100 * 9 / 15)
    assert result.agreement == pytest.approx(100 * 13 / 15)
    assert result.drop == pytest.approx(100 / 15)
    assert (result.difference, result.agreement.n) == (1.0, 15)
    blind = compare(theirs, ours, None)
    assert (blind.accuracy, blind.torch_accuracy) == (None, None)
    assert blind.drop == pytest.approx(100 * 2 / 15)


def test_nothing_is_written_that_its_runtime_refuses(
    tiny: tuple[nt.Classifier, Splits], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, small = tiny
    old = tmp_path / "m.pt2"
    old.write_bytes(b"the one before")

    def refused(images: Tensor) -> Tensor:
        raise RuntimeError("no such kernel\nand much more")

    faulty(monkeypatch, refused)
    with pytest.raises(ExportError, match=r"pt2: its own runtime cannot run the file \(RuntimeError: no such kernel\)"):
        nt.export(model, old, data=small)
    assert old.read_bytes() == b"the one before"
    assert [file.name for file in tmp_path.iterdir()] == ["m.pt2"]


def test_a_format_that_fails_leaves_the_others_where_failures_are_taken(
    tiny: tuple[nt.Classifier, Splits], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, small = tiny

    def broken(*arguments: object) -> None:
        raise RuntimeError("an exporter's own error\nand much more")

    def refused(images: Tensor) -> Tensor:
        raise RuntimeError("no such kernel")

    monkeypatch.setitem(FORMATS, "onnx", replace(FORMATS["onnx"], write=broken, needs=()))
    monkeypatch.setitem(FORMATS, "pte", replace(FORMATS["pte"], needs=("nowhere",)))
    paths = {name: tmp_path / name for name in ("hub", "onnx", "pte", "pt2")}
    failed: dict[str, NoisyTeacherError] = {}
    files = export_all(model, paths, data=small, runs=1, on_failure=failed.__setitem__)
    assert [exported.name for exported in files] == ["pt2"]
    assert paths["pt2"].exists()
    assert list(failed) == ["hub", "onnx", "pte"]
    assert str(failed["onnx"]) == "onnx: it cannot be written (RuntimeError: an exporter's own error)"
    assert "needs nowhere" in str(failed["pte"])
    assert "cannot be built again" in str(failed["hub"])
    reasons = {name: str(error) for name, error in failed.items()}
    headers, rows = table(files, reasons).headers, table(files, reasons).rows
    assert [(row[0], row[-1]) for row in rows] == [
        ("torch", ""), ("pt2", "yes"), ("hub", "FAILED"), ("onnx", "FAILED"), ("pte", "FAILED")
    ]  # fmt: skip
    assert {len(row) for row in rows} == {len(headers)}
    assert f"onnx was not written: {failed['onnx']}." in notes(files, reasons)
    faulty(monkeypatch, refused)
    failed.clear()
    assert export_all(model, {"pt2": tmp_path / "again"}, data=small, runs=1, on_failure=failed.__setitem__) == []
    assert "its own runtime cannot run the file" in str(failed["pt2"])
    assert [row[0] for row in table([], {"pt2": "no"}).rows] == ["pt2"]
    assert verdict([]) == "no file holds: deploy none of these"


def test_a_network_that_cannot_be_traced_is_named_with_the_reason(tmp_path: Path) -> None:
    class Moody(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :4] if x.sum() > 1 else x.flatten(1)[:, 4:8]

    small = splits((1, 8, 8))
    with pytest.raises(ExportError, match=r"'module:.*Moody' cannot be traced by torch.export"):
        nt.export(nt.build_model(Moody(), small), tmp_path / "m.onnx", data=small)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(
    tiny: tuple[nt.Classifier, Splits], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NoisyTeacherError, match="the disk is full"):
        nt.export(tiny[0], tmp_path / "m.pt2", data=tiny[1], runs=1)
    assert list(tmp_path.iterdir()) == []


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("m.gguf", {}, "expected .onnx, .pt2, .pte, .tflite"),
    ("hub", {}, "the suffix says the format"),
    ("m.pt2", {"int8": True}, "int8 is written as .onnx, .pte or .tflite"),
    ("m.onnx", {"max_drop": 1.0}, "max_drop has no effect on a file in fp32"),
    ("m.onnx", {"calibration": 10}, "calibration has no effect"),
    ("m.onnx", {"int8": True, "max_difference": 0.1}, "max_difference has no effect on a file in int8"),
    ("m.onnx", {"max_difference": -0.1}, "max_difference -0.1: it must be >= 0"),
    ("m.onnx", {"max_difference": float("nan")}, "max_difference nan: it must be >= 0"),
    ("m.onnx", {"int8": True, "calibration": 0}, "calibration 0: it must be >= 1"),
    ("m.onnx", {"int8": True, "data": None}, "no data were given: pass data="),
    ("m.pt2", {"threads": 0}, "threads 0"),
    ("m.pt2", {"runs": 0}, "runs=0: expected a whole number >= 1"),
]


@pytest.mark.parametrize(("path", "options", "text"), WRONG)
def test_wrong_questions(
    tiny: tuple[nt.Classifier, Splits], tmp_path: Path, path: str, options: dict[str, Any], text: str
) -> None:
    with pytest.raises(UsageError, match=text):
        nt.export(tiny[0], tmp_path / path, **{"data": tiny[1], **options})
    assert list(tmp_path.iterdir()) == []


def test_more_wrong_questions(tiny: tuple[nt.Classifier, Splits], tmp_path: Path) -> None:
    model, small = tiny
    for split in small.parts.values():
        with pytest.raises(UsageError, match=f"a single split \\({split.role}\\) was given"):
            nt.export(model, tmp_path / "m.onnx", data=split, int8=True)
    with pytest.raises(UsageError, match="does not say which images it takes"):
        nt.export(nn.Flatten(), tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="did you mean 'onnx-int8'"):
        check_formats(["onnx-int"])
    with pytest.raises(UsageError, match="named twice"):
        check_formats(["pt2", "pt2"])
    narrowed = nt.build_model("mlp800", classes=4, input_shape=(1, 8, 8))
    narrowed.architecture |= {"name": "shrink:0.5", "options": {"of": {"name": "module:my.Net", "options": {}}}}
    for network in (model, narrowed):
        with pytest.raises(UsageError, match="cannot be built again from its name"):
            check_formats(["hub"], network)
        with pytest.raises(UsageError, match="cannot be built again from its name"):
            export_all(network, {"hub": tmp_path / "hub"}, data=small)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("missing", "name", "extra"),
    [("onnxscript", "onnx", "export"), ("executorch", "pte", "mobile"), ("ai_edge_litert", "tflite", "litert")],
)
def test_a_missing_extra_is_named(
    tiny: tuple[nt.Classifier, Splits],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    missing: str,
    name: str,
    extra: str,
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda exported: None if exported == missing else real(exported))
    with pytest.raises(UsageError, match=f"{missing}.*pip install 'noisyteacher\\[{extra}\\]'"):
        nt.export(tiny[0], tmp_path / f"m.{name}", data=tiny[1])


def test_without_data_nothing_is_said_of_accuracy(tiny: tuple[nt.Classifier, Splits], tmp_path: Path) -> None:
    exported = nt.export(tiny[0], tmp_path / "m.pt2", runs=1)
    assert (exported.accuracy, exported.torch_accuracy, exported.checked_on, exported.n) == (
        None,
        None,
        "random images",
        256,
    )
    assert exported.holds
    assert json.loads((tmp_path / "m.pt2.export.json").read_text())["accuracy"] is None
    assert not any("Accuracy" in note for note in notes([exported]))


def test_threads_are_put_back(tiny: tuple[nt.Classifier, Splits], tmp_path: Path) -> None:
    before = torch.get_num_threads()
    exported = nt.export(tiny[0], tmp_path / "m.pt2", data=tiny[1], threads=2, runs=1)
    assert (exported.latency_ms.threads, torch.get_num_threads()) == (2, before)


def test_the_hub_folder_gives_back_the_model(files: dict[str, Exported], lenet: nt.Classifier, data: Splits) -> None:
    folder = files["hub"].path
    expected = nt.predict(lenet, data.val)
    result = nt.load_model(folder)
    assert torch.equal(nt.predict(result, data.val), expected)
    assert not result.training
    config = json.loads((folder / "config.json").read_text())
    assert config["id2label"]["7"] == "7"
    assert (config["num_labels"], config["architecture"]["name"]) == (10, "lenet")


def test_a_link_in_the_place_of_a_hub_folder_is_not_written_through(lenet: nt.Classifier, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "config.json").write_text("mine")
    (tmp_path / "hub").symlink_to(victim)
    with pytest.raises(UsageError, match="a link, which is not written through"):
        export_all(lenet, {"hub": tmp_path / "hub"})
    assert [file.name for file in victim.iterdir()] == ["config.json"]
    assert (victim / "config.json").read_text() == "mine"


def test_a_hub_folder_without_its_weights(files: dict[str, Exported], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((files["hub"].path / "config.json").read_bytes())
    with pytest.raises(
        FileFormatError, match=r"cannot be read: a folder without model\.safetensors; fetch a repository"
    ):
        nt.load_model(tmp_path)


def test_a_hub_folder_imports_nothing_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hub_factory.py").write_text(
        "from torch import nn\ndef make(classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    small = splits((1, 8, 8))
    model = nt.build_model("hub_factory:make", small)
    (exported,) = export_all(model, {"hub": tmp_path / "hub"}, data=small, runs=1)
    assert exported.holds
    with pytest.raises(UsageError, match="allow_import=True"):
        nt.load_model(exported.path)
    assert torch.equal(
        nt.predict(nt.load_model(exported.path, allow_import=True), small.val), nt.predict(model, small.val)
    )


def outcome(name: str, ms: float, size: int, holds: bool = True, torch_ms: float = 1.0) -> Exported:
    kind, _, precision = name.partition("-")

    def took(value: float) -> Latency:
        return Latency(value, value, 1, 1, "cpu", 50)

    share = Quantity(97.5, "%", 400)
    return Exported(
        path=Path(name), format=kind, precision=precision or "fp32", bytes=size, torch_bytes=1000, sha256="",
        checked_on="d, val", agreement=share, accuracy=share, torch_accuracy=share, drop=0.0, difference=1e-6,
        logit_scale=10.0, tolerance=1.0, holds=holds, latency_ms=took(ms), torch_latency_ms=took(torch_ms),
        runtime="r 1",
    )  # fmt: skip


def test_the_winner_is_the_one_that_was_measured() -> None:
    both = [outcome("onnx", 0.5, 1000), outcome("onnx-int8", 0.7, 300)]
    text = verdict(both)
    assert text.startswith(
        "fastest that holds: onnx (0.500 ms, torch 1.000 ms); smallest that holds: onnx-int8 (300 B)"
    )
    assert "int8 is not faster than fp32 in onnx here (0.700 against 0.500 ms)" in text
    text = verdict([outcome("onnx", 0.5, 1000), outcome("onnx-int8", 0.4, 300, holds=False)])
    assert "fastest that holds: onnx (" in text
    assert "smallest that holds: onnx (" in text
    text = verdict([outcome("onnx", 1.5, 1000), outcome("hub", 0.9, 1000)])
    assert text.startswith("none that holds is faster than torch (1.000 ms), the fastest is onnx (1.500 ms)")
    headers, rows = table(both).headers, table(both).rows
    assert [row[:2] for row in rows] == [("torch", "fp32"), ("onnx", "fp32"), ("onnx", "int8")]
    assert rows[2][headers.index("size")] == "300 B (0.30x)"
    assert rows[2][headers.index("latency ms")] == "0.700 (0.70x)"


def test_a_hub_folder_of_a_model_that_scales_its_images(tmp_path: Path) -> None:
    model = nt.build_model("compact-xs", classes=3, input_shape=(3, 20, 20), preprocess="scale@16x16-bilinear")
    (exported,) = export_all(model, {"hub": tmp_path / "hub"}, runs=1)
    again = nt.load_model(exported.path)
    images = torch.randint(0, 256, (2, 3, 20, 20), dtype=torch.uint8)
    assert torch.equal(again(images), model.eval()(images))
