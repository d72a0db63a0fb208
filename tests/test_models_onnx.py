"""Networks that are ONNX files: the logits of the network they were exported from, and hostile files refused."""

from __future__ import annotations

import copy
import pickle
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import noisyteacher as nt
from noisyteacher.errors import FileFormatError, MismatchError, UsageError
from noisyteacher.io.tensors import read_tensors, write_tensors
from noisyteacher.models import load_model, load_onnx, save_model, weights_fingerprint
from noisyteacher.pipeline.pretrained import load_teacher

onnx = pytest.importorskip("onnx", reason="needs the extra export")
pytest.importorskip("onnxruntime", reason="needs the extra export")

SHAPE = (3, 8, 8)
MACS = 4 * 64 * 27 + 4 * 64 * 10
"""Of the network below: 4 filters of 3 x 3 x 3 at 64 places, then 256 times 10."""
WEIGHTS = 4 * 27 + 4 + 2560 + 10


class Small(nn.Module):
    def __init__(self, pixels: bool = False) -> None:
        super().__init__()
        self.pixels = pixels
        torch.manual_seed(2)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.body(x.float() / 255 if self.pixels else x)
        return answer


def graph(batch: int | str = "batch", pixels: bool = False, last: bool = False) -> Any:
    """The network above as an ONNX model, written by hand."""
    net = Small().body
    weights = {f"w{name}": tensor.detach().numpy() for name, tensor in net.state_dict().items()}
    helper, kinds = onnx.helper, onnx.TensorProto
    nodes, image = [], "image"
    if pixels:
        weights["scale"] = np.array(1 / 255, dtype=np.float32)
        nodes += [
            helper.make_node("Cast", ["image"], ["float"], to=kinds.FLOAT),
            helper.make_node("Mul", ["float", "scale"], ["scaled"]),
        ]
        image = "scaled"
    if last:
        nodes.append(helper.make_node("Transpose", [image], ["turned"], perm=[0, 3, 1, 2]))
        image = "turned"
    nodes += [
        helper.make_node("Conv", [image, "w0.weight", "w0.bias"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Flatten", ["b"], ["c"]),
        helper.make_node("Gemm", ["c", "w3.weight", "w3.bias"], ["answer"], transB=1),
    ]
    sizes = [batch, 8, 8, 3] if last else [batch, 3, 8, 8]
    graph_proto = helper.make_graph(
        nodes, "small",
        [helper.make_tensor_value_info("image", kinds.UINT8 if pixels else kinds.FLOAT, sizes)],
        [helper.make_tensor_value_info("answer", kinds.FLOAT, [batch, 10])],
        [onnx.numpy_helper.from_array(values, name) for name, values in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph_proto, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


FILES: dict[str, Callable[[Path], Any]] = {
    "dynamic.onnx": lambda path: onnx.save(graph(), path),
    "fixed.onnx": lambda path: onnx.save(graph(batch=4), path),
    "pixels.onnx": lambda path: onnx.save(graph(pixels=True), path),
    "last.onnx": lambda path: onnx.save(graph(last=True), path),
    "beside.onnx": lambda path: onnx.save(
        graph(), path, save_as_external_data=True, location="beside.data", size_threshold=0
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    for name, write in FILES.items():
        write(folder / name)
    return folder


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randint(0, 256, (7, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", FILES)
def test_a_file_answers_as_its_network(name: str, folder: Path, images: Tensor, tmp_path: Path) -> None:
    model = load_onnx(folder / name, classes=10, input_shape=SHAPE).eval()
    expected = Small(pixels=True)(images).detach()
    assert torch.allclose(model(images), expected, atol=1e-5)
    assert torch.allclose(model(images[:1]), expected[:1], atol=1e-5)
    assert not list(model.parameters())
    assert model.name == f"{name.split('.')[1]}:{name.split('.')[0]}"
    save_model(model, tmp_path / "model.safetensors")
    again = load_model(tmp_path / "model.safetensors")
    assert torch.equal(again(images), model(images))
    assert torch.equal(load_model(folder / name)(images), model(images))
    assert weights_fingerprint(again) == weights_fingerprint(model)
    assert torch.equal(copy.deepcopy(model)(images), model(images))
    costs = nt.measure(model, runs=1)
    assert (costs.macs, costs.unsupported) == (MACS, ())
    assert WEIGHTS <= costs.parameters <= WEIGHTS + 1  # and the 1/255 of those that take pixels


def test_images_of_another_size_are_scaled(folder: Path, images: Tensor) -> None:
    model = load_onnx(folder / "fixed.onnx", input_shape=(3, 16, 16))
    assert model.architecture["preprocess"] == "scale@8x8-bilinear"
    assert model(images.repeat_interleave(2, 2).repeat_interleave(2, 3)).shape == (7, 10)
    assert load_onnx(folder / "fixed.onnx").input_shape == SHAPE
    preprocess = nt.build_model(nn.Identity(), preprocess="scale").preprocess
    with pytest.raises(UsageError, match="its preprocessing is inside"):
        load_onnx(folder / "pixels.onnx", input_shape=SHAPE, preprocess=preprocess)


def test_a_program_of_torch_export_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pt2").write_bytes(b"PK")
    with pytest.raises(UsageError, match="export the model to ONNX"):
        load_teacher(str(tmp_path / "a.pt2"))


def outside(model: Any, location: str, **more: str) -> Any:
    """The model with its first weights said to lie in another file."""
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return model


def inside_a_node(model: Any) -> Any:
    """The model with a constant in a node that lies outside the folder."""
    tensor = onnx.TensorProto(data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/hostname"
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["k"], value=tensor))
    return model


def other_operator(model: Any) -> Any:
    model.graph.node[1].domain = "evil.ops"
    model.opset_import.append(onnx.helper.make_opsetid("evil.ops", 1))
    return model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: outside(model, "/etc/hostname"), "its tensors cannot be read|cannot run"),
        (lambda model: outside(model, "../secret.bin"), "its tensors cannot be read|cannot run"),
        (lambda model: outside(model, "link.bin"), "its tensors cannot be read|cannot run"),
        (lambda model: outside(model, "a\\..\\b"), "its tensors cannot be read|cannot run"),
        (lambda model: outside(model, ""), "its tensors cannot be read|cannot run"),
        (lambda model: outside(model, "none.bin"), "its tensors cannot be read|cannot run"),
        (lambda model: outside(model, "short.bin", offset="4", length="432"), "its tensors cannot be read|cannot run"),
        (lambda model: outside(model, "short.bin", offset="-4"), "its tensors cannot be read|cannot run"),
        (lambda model: outside(model, "short.bin", length="many"), "its tensors cannot be read|cannot run"),
        (inside_a_node, "its tensors cannot be read|cannot run"),
        (other_operator, "onnxruntime cannot run"),
        (lambda model: outside(model, "short.bin"), "onnxruntime cannot run"),
    ],
)
def test_hostile_models(change: Callable[[Any], Any], message: str, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(4 * 108))
    (inner / "link.bin").symlink_to(tmp_path / "secret.bin")
    (inner / "short.bin").write_bytes(bytes(8))
    (inner / "a.onnx").write_bytes(change(graph()).SerializeToString())
    with pytest.raises(FileFormatError, match=message):
        load_onnx(inner / "a.onnx", input_shape=SHAPE)


def endless() -> Any:
    """A graph whose loop of 2^62 turns comes before the answer."""
    helper, types = onnx.helper, onnx.TensorProto
    turn = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["again"]), helper.make_node("Sin", ["x"], ["y"])],
        "turn",
        [
            helper.make_tensor_value_info("i", types.INT64, []),
            helper.make_tensor_value_info("go", types.BOOL, []),
            helper.make_tensor_value_info("x", types.FLOAT, None),
        ],
        [helper.make_tensor_value_info("again", types.BOOL, []), helper.make_tensor_value_info("y", types.FLOAT, None)],
    )
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("Loop", ["turns", "go", "flat"], ["last"], body=turn),
        helper.make_node("Gemm", ["last", "w"], ["logits"]),
    ]
    constants = [
        helper.make_tensor("turns", types.INT64, [], [2**62]),
        helper.make_tensor("go", types.BOOL, [], [True]),
        helper.make_tensor("w", types.FLOAT, [16, 3], [0.1] * 48),
    ]
    images = helper.make_tensor_value_info("images", types.FLOAT, ["B", 1, 4, 4])
    logits = helper.make_tensor_value_info("logits", types.FLOAT, ["B", 3])
    return helper.make_model(
        helper.make_graph(nodes, "endless", [images], [logits], constants),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )


def test_a_graph_that_takes_32_gb_is_refused_before_they_are_taken(tmp_path: Path) -> None:
    """A tensor of 2^33 floats; onnxruntime itself refuses Expand and Tile of this size, but not a constant."""
    helper, types = onnx.helper, onnx.TensorProto
    nodes = [
        helper.make_node("ConstantOfShape", ["size"], ["huge"]),
        helper.make_node("ReduceMax", ["huge"], ["zero"], keepdims=0),
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("Add", ["flat", "zero"], ["logits"]),
    ]
    images = helper.make_tensor_value_info("images", types.FLOAT, ["B", 3, 1, 1])
    logits = helper.make_tensor_value_info("logits", types.FLOAT, ["B", 3])
    size = helper.make_tensor("size", types.INT64, [1], [2**33])
    model = helper.make_model(
        helper.make_graph(nodes, "huge", [images], [logits], [size]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    (tmp_path / "huge.onnx").write_bytes(model.SerializeToString())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(MismatchError, match=r"takes more than .* of memory"):
        load_onnx(tmp_path / "huge.onnx", input_shape=(3, 1, 1))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # in KiB: 1 GiB


@pytest.mark.timeout(30)
def test_a_graph_that_never_ends_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("noisyteacher.models.onnx_teacher.FIRST_ANSWER_S", 0.2)
    (tmp_path / "endless.onnx").write_bytes(endless().SerializeToString())
    with pytest.raises(MismatchError, match="no answer within"):
        load_onnx(tmp_path / "endless.onnx", input_shape=(1, 4, 4))


def test_damaged_and_unfit_models(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "dynamic.onnx").read_bytes()
    for number, data in enumerate((b"", b"not a model", whole[: len(whole) // 2], whole[:-20])):
        (tmp_path / f"{number}.onnx").write_bytes(data)
        with pytest.raises(FileFormatError, match=rf"{number}\.onnx"):
            load_onnx(tmp_path / f"{number}.onnx", input_shape=SHAPE)
    with pytest.raises(MismatchError, match=r"expected \(2, 7\)"):
        load_onnx(folder / "dynamic.onnx", classes=7, input_shape=SHAPE)
    with pytest.raises(MismatchError, match="failed on images"):
        load_onnx(folder / "dynamic.onnx", input_shape=(1, 8, 8))
    two = graph()
    two.graph.input.append(onnx.helper.make_tensor_value_info("more", 1, [1]))
    (tmp_path / "two.onnx").write_bytes(two.SerializeToString())
    with pytest.raises(FileFormatError, match="expected images alone"):
        load_onnx(tmp_path / "two.onnx", input_shape=SHAPE)


def test_a_model_inside_our_own_file_is_looked_through_too(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(load_onnx(folder / "dynamic.onnx", input_shape=SHAPE), path)
    tensors, record = read_tensors(path, "model", 1)
    for data, message in (
        (outside(graph(), "/etc/hostname").SerializeToString(), "refers to other files"),
        (pickle.dumps({}), "not an ONNX model"),
    ):
        tensors["network.file"] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        write_tensors(path, "model", 1, tensors, record)
        with pytest.raises(FileFormatError, match=message):
            load_model(path)
    write_tensors(path, "model", 1, {}, record)
    with pytest.raises(FileFormatError, match=r"file of the network .* is missing"):
        load_model(path)
