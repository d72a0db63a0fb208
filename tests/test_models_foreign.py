"""Weights of other programs: wrappers and prefixes taken off, mismatches named; code, bombs and damage refused."""

from __future__ import annotations

import argparse
import datetime
import io
import os
import pickle
import struct
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import noisyteacher as nt
from noisyteacher.errors import FileFormatError, MismatchError
from noisyteacher.models import load_foreign
from noisyteacher.models.torchfile import Inert, read_torch_file

State = dict[str, Tensor]


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 10))


def model() -> nt.Classifier:
    return nt.build_model(network(), classes=10, input_shape=(1, 8, 8))


@pytest.fixture(scope="module")
def state() -> State:
    torch.manual_seed(5)
    source = network()
    source(torch.rand(8, 1, 8, 8))  # batch norm has statistics of its own
    return source.state_dict()


def saved(path: Path, content: Any, **how: Any) -> Path:
    torch.save(content, path, **how)
    return path


def holds(found: nt.Classifier, state: State) -> bool:
    own = found.network.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[name], state[name]) for name in own)


WRAPPED: dict[str, Callable[[State], Any]] = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "lr": 0.1, "best": None},
    "model": lambda state: {"model": state, "optimizer": {"state": {0: {"step": torch.ones(1)}}, "param_groups": [{}]}},
    "inside each other": lambda state: {"model_state": {"state_dict": {f"module.{k}": v for k, v in state.items()}}},
    "data parallel": lambda state: {f"module.{name}": one for name, one in state.items()},
    "compiled": lambda state: {f"_orig_mod.{name}": one for name, one in state.items()},
    "compiled inside": lambda state: {name.replace("0.", "0._orig_mod.", 1): one for name, one in state.items()},
    "lightning": lambda state: {
        "state_dict": {**{f"model.{name}": one for name, one in state.items()}, "loss.weight": torch.ones(3)},
        "callbacks": {},
    },
    "parameters": lambda state: {name: nn.Parameter(one, one.is_floating_point()) for name, one in state.items()},
    "not contiguous": lambda state: {
        name: one.t().contiguous().t() if one.dim() == 2 else one for name, one in state.items()
    },
    "without counters": lambda state: {name: one for name, one in state.items() if "tracked" not in name},
}


@pytest.mark.parametrize("kind", WRAPPED)
@pytest.mark.parametrize("protocol", [2, 4])
def test_the_wrappers_of_training_programs(kind: str, protocol: int, state: State, tmp_path: Path) -> None:
    found = model()
    load_foreign(found, saved(tmp_path / "a.pth", WRAPPED[kind](state), pickle_protocol=protocol))
    expected = {**state, "1.num_batches_tracked": found.network.state_dict()["1.num_batches_tracked"]}
    assert holds(found, expected)


def test_half_precision_and_safetensors(state: State, tmp_path: Path) -> None:
    found = model()
    half = {name: one.half() if one.is_floating_point() else one for name, one in state.items()}
    load_foreign(found, saved(tmp_path / "a.bin", half))
    assert holds(found, {name: one.to(state[name].dtype) for name, one in half.items()})
    safetensors.torch.save_file({f"net.{name}": one for name, one in state.items()}, tmp_path / "a.safetensors")
    load_foreign(found, tmp_path / "a.safetensors")
    assert holds(found, state)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: {k: v for k, v in state.items() if not k.startswith("0.")}, r"missing: 0\.bias, 0\.weight"),
        (lambda state: {**state, "4.weight": torch.ones(1)}, r"unexpected: 4\.weight"),
        (lambda state: {**state, "3.bias": torch.ones(7)}, r"3\.bias \[7\] instead of \[10\]"),
        (lambda state: {f"a.{k}": v for k, v in state.items()} | {f"b.{k}": v for k, v in state.items()}, "'a.', 'b.'"),
        (lambda state: {**state, "3.bias": torch.ones(10, dtype=torch.int64)}, "int64"),
    ],
)
def test_tensors_of_another_network(change: Callable[[State], Any], told: str, state: State, tmp_path: Path) -> None:
    found = model()
    before = {name: one.clone() for name, one in found.network.state_dict().items()}
    with pytest.raises(MismatchError, match=told):
        load_foreign(found, saved(tmp_path / "a.pt", change(state)))
    assert holds(found, before)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"epoch": 3}, "no state dict found in it: it holds a dict with the keys epoch"),
        ([1, 2], "it holds a list"),
        ({"3.bias": torch.full((10,), torch.nan)}, "no|not finite|missing"),
        ({"model": {}, "args": argparse.Namespace(lr=1)}, "it holds a dict with the keys model, args; expected"),
        (network(), r"it holds a torch\.nn\.modules\.container\.Sequential \(a whole module was saved"),
        ({"model": network()}, r"with the keys model \(a whole module was saved, not its state dict\)"),
        (argparse.Namespace(lr=1), r"it holds a argparse\.Namespace"),
        ({"x": torch.zeros(1).expand(10**9)}, "does not lie inside its storage of 1 elements"),
    ],
)
def test_files_that_hold_something_else(content: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises((FileFormatError, MismatchError), match=told):
        load_foreign(model(), saved(tmp_path / "a.pt", content))


def test_values_that_are_not_finite(state: State, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"3\.bias has values that are not finite"):
        load_foreign(model(), saved(tmp_path / "a.pt", {**state, "3.bias": torch.full((10,), torch.inf)}))


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("ending", [".pt", ".pth", ".bin"])
def test_code_in_a_file_is_never_run(protocol: int, ending: str, state: State, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    path = saved(tmp_path / f"a{ending}", {"state_dict": state, "extra": Evil()}, pickle_protocol=protocol)
    found = model()
    load_foreign(found, path)
    assert holds(found, state)
    assert type(read_torch_file(path)["extra"]).name in ("posix.mkdir", "nt.mkdir")
    saved(path, {**state, "3.bias": Evil()}, pickle_protocol=protocol)
    with pytest.raises(MismatchError, match=r"missing: 3\.bias"):
        load_foreign(found, path)
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(FileFormatError, match="as torch wrote before version"):
        load_foreign(model(), path)
    saved(path, Evil(), _use_new_zipfile_serialization=False)
    with pytest.raises(FileFormatError, match="not a file of torch"):
        load_foreign(model(), path)
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Evil()))
    assert (tmp_path / "ran").exists()  # the payload would have worked


class Listed(list[int]):
    """Pickles with items that are appended."""


class Slotted:
    """Pickles by `copyreg.__newobj_ex__`, with a state of its own."""

    def __init__(self, *, lr: float) -> None:
        self.lr = lr

    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, float]]:
        return (), {"lr": self.lr}

    def __new__(cls, *, lr: float) -> Slotted:
        return object.__new__(cls)


def trainer_files(state: State) -> dict[str, Any]:
    """What training programs keep beside the weights, as they write it."""
    optimizer = {"state": {0: {"step": torch.ones(1), "exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
    under_model = {f"model.{name}": one for name, one in state.items()}
    settings = argparse.Namespace(lr=0.1, data=Path("data"), betas=(0.9, 0.999), device=torch.device("cpu"))
    return {
        "timm": {"epoch": 3, "arch": "resnet18", "state_dict": state, "optimizer": optimizer, "version": 2,
                 "args": settings, "metric": np.float64(71.5)},
        "torchvision": {"model": state, "optimizer": optimizer, "lr_scheduler": {"milestones": Counter([30])},
                        "epoch": 3, "args": settings, "scaler": {"scale": 65536.0}},
        "lightning": {"state_dict": under_model, "hyper_parameters": {"root": Path("runs"), "size": np.int64(3)},
                      "callbacks": {"ModelCheckpoint{}": {"best_model_path": Path("a.ckpt"), "best": np.array([1.0])}},
                      "loops": defaultdict(dict, {"fit": {}}), "pytorch-lightning_version": "2.5"},
        "others": {"net": state, "log": Listed([1, 2]), "rule": Slotted(lr=0.1), "when": datetime.date(2020, 1, 1),
                   "seen": {frozenset({1}): {2, 3}}, "how": os.path.join, "complex": torch.ones(2) * 1j,
                   "random": np.random.default_rng(0)},
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["timm", "torchvision", "lightning", "others"])
@pytest.mark.parametrize(("protocol", "name"), [(2, "last.pth.tar"), (4, "MODEL.PTH"), (2, "weights"), (5, "a.pkl")])
def test_files_of_trainers_are_read_whatever_they_are_called(
    kind: str, protocol: int, name: str, state: State, tmp_path: Path
) -> None:
    found, path = model(), saved(tmp_path / name, trainer_files(state)[kind], pickle_protocol=protocol)
    load_foreign(found, path)
    assert holds(found, state)
    read = read_torch_file(path)
    others = [value for value in read.values() if isinstance(value, Inert)]
    assert all(not vars(value) for value in others)
    if kind == "timm":
        assert isinstance(read["args"], Inert)
        assert isinstance(read["metric"], Inert)
        assert read["arch"] == "resnet18"


def test_the_kind_of_a_file_is_decided_by_its_content(state: State, tmp_path: Path) -> None:
    found = model()
    for name in ("weights", "weights.pth", "weights.tar"):
        safetensors.torch.save_file(state, tmp_path / name)
        load_foreign(found, tmp_path / name)
        assert holds(found, state)
    load_foreign(found, saved(tmp_path / "a.safetensors", state))
    (tmp_path / "b.pth").write_bytes(b"no weights at all")
    with pytest.raises(FileFormatError, match=r"b\.pth: neither a file of torch\.save nor one of safetensors"):
        load_foreign(found, tmp_path / "b.pth")


def rezipped(data: bytes, change: Callable[[dict[str, bytes]], None], **how: Any) -> bytes:
    """The archive with its members changed, stored unless said otherwise."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {one.filename: archive.read(one) for one in archive.infolist()}
    change(members)
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", **how) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return made.getvalue()


def test_archives_that_torch_save_would_not_write(state: State, tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", state)
    whole = path.read_bytes()

    def refused(data: bytes, told: str) -> None:
        path.write_bytes(data)
        with pytest.raises(FileFormatError, match=told):
            load_foreign(model(), path)

    refused(rezipped(whole, lambda m: None, compression=zipfile.ZIP_DEFLATED), "is compressed, which torch.save never")
    bomb = rezipped(whole, lambda m: m.update({"a/data/0": bytes(10**7)}), compression=zipfile.ZIP_DEFLATED)
    assert len(bomb) < 10**6
    refused(bomb, "is compressed")
    refused(rezipped(whole, lambda m: m.update({"../../out": b"x"})), "lies outside the archive")
    refused(rezipped(whole, lambda m: m.update({"a/data/0": b"1234"})), "does not match the archive")
    refused(rezipped(whole, lambda m: m.pop("a/data/0")), "does not match the archive")
    refused(rezipped(whole, lambda m: m.pop("a/data.pkl")), "has 0 data.pkl")
    refused(rezipped(whole, lambda m: m.update({"a/code/__torch__/x.py": b""})), "a TorchScript program")
    refused(rezipped(whole, lambda m: m.update({"a/byteorder": b"big"})), "big-endian")
    refused(whole[:-100], "truncated or damaged|not a zip")
    refused(whole[: len(whole) // 2], "truncated or damaged|not a zip")
    refused(b"\x00" + whole, "neither a file of torch.save nor one of safetensors")
    claimed = bytearray(whole)
    entry = whole.rindex(b"PK\x01\x02")
    claimed[entry + 20 : entry + 28] = struct.pack("<II", 2**31, 2**31)
    refused(bytes(claimed), "claim more bytes than the file has")


@pytest.mark.parametrize(
    ("written", "told"),
    [
        (b"\x80\x02" + b"(" * 5 + b"\x96" + struct.pack("<Q", 2**40) + b".", "opcode|truncated"),
        (b"\x80\x02]r" + struct.pack("<I", 2**31) + b".", "memo number 2147483648"),
        (b"\x80\x02)" + b"\x85" * 40_000 + b".", "more than 30000 tuples"),
        (b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.", "it holds a builtins.eval; expected"),
        (b"\x80\x02" + b"".join(b"ca\nb%d\n0" % n for n in range(1001)) + b"N.", "more than 1000 classes"),
        (b"\x80\x02cos\nsystem\n}b.", "damaged"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}b.", "sets the state of a function"),
        (b"\x80\x02cos\nsystem\n.", "it holds a type; expected"),
    ],
)
def test_pickles_made_by_hand(written: bytes, told: str, state: State, tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", state)
    path.write_bytes(rezipped(path.read_bytes(), lambda m: m.update({"a/data.pkl": written})))
    with pytest.raises(FileFormatError, match=told):
        load_foreign(model(), path)
