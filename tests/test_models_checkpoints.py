"""Weights of other programs: wrappers and prefixes taken off, mismatches named; code, bombs and damage refused."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import struct
import zipfile
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import noisyteacher as nt
from noisyteacher.errors import DataWarning, FileFormatError, MismatchError
from noisyteacher.models import load_foreign

State = dict[str, Tensor]


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 10))


def model() -> nt.Classifier:
    return nt.build_model(network(), classes=10, input_shape=(1, 8, 8))


@pytest.fixture(scope="module")
def state() -> State:
    torch.manual_seed(5)
    source = network()
    source(torch.rand(8, 1, 8, 8))  # batch norm has statistics of its actual
    return source.state_dict()


def saved(path: Path, content: Any, **how: Any) -> Path:
    torch.save(content, path, **how)
    return path


def holds(classifier: nt.Classifier, state: State) -> bool:
    actual = classifier.network.state_dict()
    return actual.keys() == state.keys() and all(torch.equal(actual[name], state[name]) for name in actual)


WRAPPED: dict[str, Callable[[State], Any]] = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "lr": 0.1, "best": None},
    "model": lambda state: {"model": state, "optimizer": {"state": {0: {"step": torch.ones(1)}}, "param_groups": [{}]}},
    "inside each other": lambda state: {"model_state": {"state_dict": {f"module.{k}": v for k, v in state.items()}}},
    "data parallel": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    "compiled": lambda state: {f"_orig_mod.{name}": tensor for name, tensor in state.items()},
    "compiled inside": lambda state: {name.replace("0.", "0._orig_mod.", 1): tensor for name, tensor in state.items()},
    "lightning": lambda state: {
        "state_dict": {**{f"model.{name}": tensor for name, tensor in state.items()}, "loss.weight": torch.ones(3)},
        "callbacks": {},
    },
    "parameters": lambda state: {
        name: nn.Parameter(tensor, tensor.is_floating_point()) for name, tensor in state.items()
    },
    "not contiguous": lambda state: {
        name: tensor.t().contiguous().t() if tensor.dim() == 2 else tensor for name, tensor in state.items()
    },
    "without counters": lambda state: {name: tensor for name, tensor in state.items() if "tracked" not in name},
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_the_wrappers_of_training_programs(kind: str, state: State, tmp_path: Path) -> None:
    classifier = model()
    load_foreign(classifier, saved(tmp_path / "a.pth", WRAPPED[kind](state)))
    expected = {**state, "1.num_batches_tracked": classifier.network.state_dict()["1.num_batches_tracked"]}
    assert holds(classifier, expected)


def test_half_precision_and_safetensors(state: State, tmp_path: Path) -> None:
    classifier = model()
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    load_foreign(classifier, saved(tmp_path / "a.bin", half))
    assert holds(classifier, {name: tensor.to(state[name].dtype) for name, tensor in half.items()})
    safetensors.torch.save_file({f"net.{name}": tensor for name, tensor in state.items()}, tmp_path / "a.safetensors")
    load_foreign(classifier, tmp_path / "a.safetensors")
    assert holds(classifier, state)


def test_that_a_file_holds_averaged_weights_too_is_said(tmp_path: Path) -> None:
    model = nt.build_model("mlp128", classes=3, input_shape=(1, 4, 4))
    state = {name: value.clone() for name, value in model.network.state_dict().items()}
    averaged = {name: value + 1 for name, value in state.items()}
    torch.save({"state_dict_ema": averaged, "state_dict": state}, tmp_path / "a.pth")
    with pytest.warns(DataWarning, match=r"under 'state_dict' are taken; it has 'state_dict_ema' too"):
        load_foreign(model, tmp_path / "a.pth")
    assert all(torch.equal(value, state[name]) for name, value in model.network.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {k: v for k, v in state.items() if not k.startswith("0.")}, r"missing: 0\.bias, 0\.weight"),
        (lambda state: {**state, "4.weight": torch.ones(1)}, r"unexpected: 4\.weight"),
        (lambda state: {**state, "3.bias": torch.ones(7)}, r"3\.bias \S+ \(7,\) instead of \S+ \(10,\)"),
        (lambda state: {f"a.{k}": v for k, v in state.items()} | {f"b.{k}": v for k, v in state.items()}, "'a.', 'b.'"),
        (lambda state: {**state, "3.bias": torch.ones(10, dtype=torch.int64)}, "int64"),
    ],
)
def test_tensors_of_another_network(change: Callable[[State], Any], message: str, state: State, tmp_path: Path) -> None:
    classifier = model()
    before = {name: tensor.clone() for name, tensor in classifier.network.state_dict().items()}
    with pytest.raises(MismatchError, match=message):
        load_foreign(classifier, saved(tmp_path / "a.pt", change(state)))
    assert holds(classifier, before)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3}, "no state dict in it, but a dict with the keys epoch"),
        ([1, 2], "no state dict in it, but a list"),
        ({"model": {}, "args": argparse.Namespace(lr=1)}, "no state dict in it, but a dict with the keys model, args"),
        (network(), r"it needs torch\.nn\.modules\.\S+, a whole module instead of its state dict"),
        ({"model": network()}, "a whole module instead of its state dict"),
        (argparse.Namespace(lr=1), "no state dict in it, but a Namespace"),
        ({"x": torch.zeros(1).expand(10**9)}, r"missing: 0\.bias"),
    ],
)
def test_files_that_hold_something_else(content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises((FileFormatError, MismatchError), match=message):
        load_foreign(model(), saved(tmp_path / "a.pt", content))


@pytest.mark.skipif(find_spec("timm") is None, reason="needs the extra zoo")
def test_weights_for_another_size_name_the_option_that_fits(tmp_path: Path) -> None:
    small, large = (nt.build_model("timm:test_vit", classes=3, input_shape=(3, 64, 64), img_size=n) for n in (64, 32))
    path = saved(tmp_path / "a.pth", large.network.state_dict())
    with pytest.raises(MismatchError, match=r"another size: name it, for example options\.img_size=224"):
        load_foreign(small, path)
    load_foreign(large, path)


def test_auxiliary_heads_that_the_network_lacks_are_left_out(state: State, tmp_path: Path) -> None:
    classifier = model()
    heads = {"aux1.fc2.weight": torch.ones(7, 3), "AuxLogits.fc.bias": torch.ones(7)}
    load_foreign(classifier, saved(tmp_path / "a.pth", {**state, **heads}))
    assert holds(classifier, state)


def test_values_that_are_not_finite(state: State, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"3\.bias has values that are not finite"):
        load_foreign(model(), saved(tmp_path / "a.pt", {**state, "3.bias": torch.full((10,), torch.inf)}))


@pytest.mark.parametrize("ending", [".pt", ".pth", ".bin"])
def test_a_file_that_would_run_code_is_refused(ending: str, state: State, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    path = tmp_path / f"a{ending}"
    classifier = model()
    before = {name: tensor.clone() for name, tensor in classifier.network.state_dict().items()}
    for protocol in (2, 4):
        for content in ({"state_dict": state, "extra": Evil()}, {**state, "3.bias": Evil()}, Evil()):
            for zipped in (True, False):
                torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
                with pytest.raises(FileFormatError, match="without running code" if zipped else "a pickle, "):
                    load_foreign(classifier, path)
    torch.save({"state_dict": state, "extra": Evil()}, path)
    with pytest.raises(FileFormatError, match=r"it needs (posix|nt)\.mkdir"):
        load_foreign(classifier, path)
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(FileFormatError, match="a pickle, "):
        load_foreign(classifier, path)
    assert holds(classifier, before)
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Evil()))
    assert (tmp_path / "ran").exists()  # the payload would have worked


def trainer_files(state: State) -> dict[str, Any]:
    """What training programs keep beside the weights, as they write it."""
    optimizer = {"state": {0: {"step": torch.ones(1), "exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
    under_model = {f"model.{name}": tensor for name, tensor in state.items()}
    settings = argparse.Namespace(lr=0.1, data=Path("data"), betas=(0.9, 0.999), device=torch.device("cpu"))
    return {
        "timm": {"epoch": 3, "arch": "resnet18", "state_dict": state, "optimizer": optimizer, "version": 2,
                 "args": settings, "metric": np.float64(71.5)},
        "torchvision": {"model": state, "optimizer": optimizer, "lr_scheduler": {"milestones": Counter([30])},
                        "epoch": 3, "args": settings, "scaler": {"scale": 65536.0}},
        "lightning": {"state_dict": under_model, "hyper_parameters": {"root": Path("runs"), "size": np.int64(3)},
                      "callbacks": {"ModelCheckpoint{}": {"best_model_path": Path("a.ckpt"), "best": np.array([1.0])}},
                      "pytorch-lightning_version": "2.5"},
        "numpy 1": {"net": state, "log": [1, 2], "seen": {2, 3}, "complex": torch.ones(2) * 1j,
                    "best": np.float32(1.5), "flag": np.bool_(True), "names": np.array(["ant"])},
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["timm", "torchvision", "lightning", "numpy 1"])
@pytest.mark.parametrize("name", ["last.pth.tar", "MODEL.PTH", "weights", "a.pkl"])
def test_files_of_trainers_are_read_whatever_they_are_called(
    kind: str, name: str, state: State, tmp_path: Path
) -> None:
    classifier, path = model(), saved(tmp_path / name, trainer_files(state)[kind])
    if kind == "numpy 1":  # whose pickles have another name for the same functions
        data = path.read_bytes()
        path.write_bytes(
            rezipped(
                data,
                lambda members: members.update(
                    {
                        tensor: text.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
                        for tensor, text in members.items()
                    }
                ),
            )
        )
    load_foreign(classifier, path)
    assert holds(classifier, state)


def test_the_kind_of_a_file_is_decided_by_its_content(state: State, tmp_path: Path) -> None:
    classifier = model()
    for name in ("weights", "weights.pth", "weights.tar"):
        safetensors.torch.save_file(state, tmp_path / name)
        load_foreign(classifier, tmp_path / name)
        assert holds(classifier, state)
    (tmp_path / "b.pth").write_bytes(b"no weights at all")
    with pytest.raises(FileFormatError, match=r"b\.pth: neither an archive of torch\.save"):
        load_foreign(classifier, tmp_path / "b.pth")


def test_a_file_from_before_torch_1_6_is_to_be_saved_again(state: State, tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    with pytest.raises(FileFormatError, match=r"old\.pth: a pickle, as torch\.save wrote it before 1\.6: .*load"):
        load_foreign(model(), path)


def test_what_the_host_lets_torch_load_stays_so(state: State, tmp_path: Path) -> None:
    with torch.serialization.safe_globals([argparse.Namespace, np.dtype]):
        load_foreign(model(), saved(tmp_path / "a.pth", state))
        assert {argparse.Namespace, np.dtype} <= {*torch.serialization.get_safe_globals()}
        assert np.ndarray not in torch.serialization.get_safe_globals()


def rezipped(data: bytes, change: Callable[[dict[str, bytes]], object], **how: Any) -> bytes:
    """The archive with its members changed, stored unless said otherwise."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    change(members)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **how) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def test_damaged_archives_and_bombs(state: State, tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", state)
    data = path.read_bytes()
    bomb = rezipped(data, lambda m: m.update({"a/data/0": bytes(10**8)}), compression=zipfile.ZIP_DEFLATED)
    assert len(bomb) < 10**6
    claimed = bytearray(data)
    entry = data.rindex(b"PK\x01\x02")
    claimed[entry + 20 : entry + 28] = struct.pack("<II", 2**31, 2**31)
    for damaged in (
        rezipped(data, lambda m: None, compression=zipfile.ZIP_DEFLATED),
        bomb,
        rezipped(data, lambda m: m.pop("a/data/0")),
        rezipped(data, lambda m: m.pop("a/data.pkl")),
        rezipped(data, lambda m: m.update({"a/constants.pkl": b"", "a/code/__torch__/x.py": b""})),
        data[:-100],
        data[: len(data) // 2],
        b"\x00" + data,
        bytes(claimed),
    ):
        path.write_bytes(damaged)
        with pytest.raises(FileFormatError, match=r"a\.pt"):
            load_foreign(model(), path)


@pytest.mark.parametrize(
    "written",
    [
        b"\x80\x02" + b"(" * 5 + b"\x96" + struct.pack("<Q", 2**40) + b".",
        b"\x80\x02]r" + struct.pack("<I", 2**31) + b".",
        b"\x80\x02)" + b"\x85" * 40_000 + b".",
        b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.",
        b"\x80\x02cos\nsystem\n}b.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}b.",
        b"\x80\x02cos\nsystem\n.",
        b"\x80\x02cargparse\nNamespace\n)\x81}X\x08\x00\x00\x00__init__cos\nsystem\nsb.",
    ],
)
def test_pickles_made_by_hand(written: bytes, state: State, tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", state)
    path.write_bytes(rezipped(path.read_bytes(), lambda m: m.update({"a/data.pkl": written})))
    with pytest.raises(FileFormatError, match=r"a\.pt"):
        load_foreign(model(), path)
