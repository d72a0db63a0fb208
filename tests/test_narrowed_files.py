"""Narrower copies of other libraries' networks, rebuilt from their file alone."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import noisyteacher as nt
from noisyteacher.errors import FileFormatError
from noisyteacher.export import FORMATS, export_all
from noisyteacher.io.tensors import read_tensors, write_tensors
from noisyteacher.models import build_model, load_model, save_model, weights_fingerprint

pytest.importorskip("torch_pruning", reason="needs the extra prune")
SHAPE = (3, 32, 32)
HF_CONFIG = {
    "model_type": "resnet", "embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic",
    "num_channels": 3, "id2label": {"0": "a", "1": "b", "2": "c"},
}  # fmt: skip
LIBRARIES = [
    pytest.param("timm", marks=pytest.mark.skipif(find_spec("timm") is None, reason="needs the extra zoo")),
    pytest.param("torchvision", marks=pytest.mark.skipif(find_spec("timm") is None, reason="needs the extra zoo")),
    pytest.param("hf", marks=pytest.mark.skipif(find_spec("transformers") is None, reason="needs the extra hf")),
]


def teacher_of(library: str, folder: Path) -> nt.Classifier:
    """An untrained network of the library."""
    if library == "hf":
        (folder / "config.json").write_text(json.dumps(HF_CONFIG))
        return build_model(f"hf:{folder}", classes=3, input_shape=SHAPE, pretrained=False)
    name = {"timm": "timm:test_resnet", "torchvision": "torchvision:resnet18"}[library]
    return build_model(name, classes=3, input_shape=SHAPE)


def images() -> torch.Tensor:
    return torch.randint(0, 256, (60, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("library", LIBRARIES)
def test_it_is_rebuilt_judged_and_exported_from_its_file_alone(library: str, tmp_path: Path) -> None:
    teacher = teacher_of(library, tmp_path)
    narrow = build_model("shrink:0.25", classes=3, input_shape=SHAPE, teacher=teacher).eval()
    save_model(narrow, tmp_path / "m.safetensors")
    (tmp_path / "config.json").unlink(missing_ok=True)  # the teacher's
    batch = images()
    pairs = [(image, number % 3) for number, image in enumerate(batch)]
    data = nt.load_data({"train": pairs[:20], "val": pairs[20:40], "test": pairs[40:]})
    model = load_model(tmp_path / "m.safetensors")
    assert weights_fingerprint(model) == weights_fingerprint(narrow)
    assert torch.equal(model(batch[:4]), narrow(batch[:4]))
    assert data.test is not None
    error = nt.evaluate(model, data.test).error
    assert error is not None
    assert error.n == 20
    assert 0 < nt.measure(model, latency=False).macs < nt.measure(teacher, latency=False).macs / 4
    names = ("onnx", "pt2", "hub") if library == "timm" else ("pt2", "hub")  # the exporters see the same operations
    formats = [name for name in names if all(find_spec(package) for package in FORMATS[name].needs)]
    files = {name: tmp_path / (name if name == "hub" else f"{name}.{FORMATS[name].kind}") for name in formats}
    exported = export_all(model, files, data=data, max_drop=100.0, runs=2)
    assert {("pt2", "fp32"), ("hub", "fp32")} <= {(file.format, file.precision) for file in exported}
    assert all(file.holds for file in exported)
    assert weights_fingerprint(nt.load_model(tmp_path / "hub")) == weights_fingerprint(narrow)


def rewritten(model: nn.Module, path: Path, of: dict[str, Any]) -> Path:
    """The file of a narrowed network with another record of what was narrowed."""
    save_model(model, path)
    tensors, record = read_tensors(path, "model", 1)
    architecture = {**record["architecture"], "options": {"of": of}}
    write_tensors(path, "model", 1, tensors, {"architecture": architecture})
    return path


@pytest.mark.skipif(find_spec("timm") is None, reason="needs the extra zoo")
@pytest.mark.parametrize(
    ("of", "message"),
    [
        ({"name": "timm:test_resnet", "options": {"pretrained": True}}, r"options \['pretrained'\] do not"),
        ({"name": "hf:somebody/model", "options": {}}, r"options \[\] do not describe a network of hf alone"),
        ({"name": "timm:nonesuch", "options": {}}, "cannot be built: timm:nonesuch: no such network"),
        ({"name": "timm:resnet18", "options": {}}, "is wider than in its original"),
        ({"name": "timm:test_vit", "options": {}}, "do not fit the model"),
        ({"name": "shrink:0.5", "options": {"of": {"name": "hf:x", "options": {}}}}, r"options \[\] do not"),
    ],
    ids=str,
)
def test_a_record_that_would_fetch_or_does_not_fit_is_refused(of: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = build_model("shrink:0.25", classes=3, input_shape=SHAPE, teacher=teacher_of("timm", tmp_path))
    path = rewritten(model, tmp_path / "m.safetensors", of)
    with pytest.raises(FileFormatError, match=message):
        load_model(path)
