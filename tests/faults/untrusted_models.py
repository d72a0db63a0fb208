"""Files of models from untrusted sources: ours, safetensors, torch.save, ONNX."""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import strategies as st

import noisyteacher as nt
from faults.confinement import Untrusted
from faults.mutations import as_text, byte_edits, changed_tree, edited, tree_edits
from helpers import part, student_with
from noisyteacher.io.files import BLANK, SEAL, seal
from noisyteacher.io.tensors import KEY, map_tensors, read_tensors, write_tensors
from noisyteacher.models import load_foreign, load_onnx
from noisyteacher.train.checkpoint import STATE, read_checkpoint, write_checkpoint
from noisyteacher.train.state import Progress

Bytes = st.SearchStrategy[bytes]


def raw(*seeds: bytes) -> Bytes:
    """Seeds with changed bytes, and bytes of no meaning."""
    return st.one_of(with_edits(edited, seeds), with_edits(edited, seeds), st.binary(max_size=200))


def with_edits(make: Callable[[Any, Any], bytes], seeds: Sequence[Any]) -> Bytes:
    """`make(a seed, edits of bytes)`; a failure names the seed's number, not its bytes."""
    return st.builds(lambda number, edits: make(seeds[number], edits), st.integers(0, len(seeds) - 1), byte_edits)


def resealed(data: bytes) -> bytes:
    """The bytes with a checksum that holds, where they have a place for one: what is behind the seal is met."""
    start = data.find(SEAL)
    if start < 0 or start + 15 > len(data):
        return data
    return seal(data[: start + 7] + BLANK + data[start + 15 :])


def sealed_trees(data: bytes) -> Bytes:
    """A sealed JSON file with changed values and keys, the seal made anew."""
    tree = json.loads(data)
    return st.builds(lambda edits: resealed(as_text(changed_tree(tree, edits))), tree_edits)


def taken_apart(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and body of a safetensors file."""
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def put_together(header: bytes, body: bytes) -> bytes:
    return resealed(struct.pack("<Q", len(header)) + header + body)


def headers(data: bytes) -> Bytes:
    """A safetensors file whose names, shapes, dtypes and offsets are changed."""
    header, body = taken_apart(data)
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}

    def build(edits: Any) -> bytes:
        changed = changed_tree(tensors, edits)
        metadata = {"__metadata__": header["__metadata__"]} if "__metadata__" in header else {}
        return put_together(as_text({**metadata, **changed} if isinstance(changed, dict) else changed), body)

    return st.builds(build, tree_edits)


def records(data: bytes) -> Bytes:
    """A file of ours whose record, in the metadata, is changed."""
    header, body = taken_apart(data)
    record = json.loads(header["__metadata__"][KEY])

    def build(edits: Any) -> bytes:
        text = as_text(changed_tree(record, edits)).decode()
        return put_together(json.dumps({**header, "__metadata__": {KEY: text}}).encode(), body)

    return st.builds(build, tree_edits)


def written(write: Callable[[Path], object], folder: Path) -> bytes:
    path = folder / "seed.bin"
    write(path)
    data = path.read_bytes()
    path.unlink()
    return data


def of_ours(data: bytes) -> tuple[Bytes, ...]:
    return (raw(data), st.builds(resealed, raw(data)), headers(data), records(data))


def tensors(folder: Path) -> Untrusted:
    values = {"a": torch.arange(6).reshape(2, 3), "b": torch.ones(4), "empty": torch.empty(0, 3)}
    data = written(lambda path: write_tensors(path, "things", 1, values, {"of": ["x", {"y": 1}]}), folder)

    def read(path: Path) -> None:
        map_tensors(path)
        read_tensors(path, "things", 1)

    return Untrusted("a.safetensors", read, of_ours(data), whole=(data,))


def weights(folder: Path) -> Untrusted:
    pytest.importorskip("torch_pruning", reason="needs the extra prune")
    lenet = nt.build_model("lenet", classes=3, input_shape=(1, 16, 16))
    narrow = nt.build_model("shrink:0.5", classes=3, input_shape=(1, 16, 16), teacher=lenet)
    whole = tuple(written(partial(nt.save_model, model, record={"epochs": 1}), folder) for model in (lenet, narrow))
    return Untrusted(
        "w.safetensors",
        nt.load_model,
        (raw(*whole), *(way for data in whole for way in of_ours(data)[1:])),
        whole=whole,
    )


def network() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(2 * 36, 3))


def model() -> nt.Classifier:
    return nt.build_model(network(), classes=3, input_shape=(1, 8, 8))


def a_checkpoint(folder: Path) -> Untrusted:
    net = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = Progress(1, {"samples": 3.0}, [{"epoch": 1}], 1, [0.5])
    identity = {"seed": 0, "views": ["clean"]}
    write_checkpoint(student_with(net, optimizer, folder, identity, progress=state, best=dict(net.state_dict())))
    data = (folder / STATE).read_bytes()

    def read(path: Path) -> None:
        fresh = torch.nn.Linear(3, 2)
        rule = torch.optim.Adam(fresh.parameters())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", nt.DataWarning)  # of another number of threads
            read_checkpoint(folder, student_with(fresh, rule, folder, identity))

    return Untrusted(str(STATE), read, of_ours(data), whole=(data,))


def foreign_safetensors(folder: Path) -> Untrusted:
    data = safetensors.torch.save(
        {f"module.{name}": tensor for name, tensor in network().state_dict().items()}, {"a": "b"}
    )
    into = model()
    return Untrusted("f.safetensors", lambda path: load_foreign(into, path), (raw(data), headers(data)), whole=(data,))


class Evil:
    """Pickles as a call that makes a folder."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("made-by-a-pickle",)


def rezipped(data: bytes, name: str, content: bytes, **how: Any) -> bytes:
    """The archive with this member replaced, or added."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    members[name] = content
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **how) as archive:
        for member, text in members.items():
            archive.writestr(member, text)
    return buffer.getvalue()


def torch_files(folder: Path) -> Untrusted:
    whole = []
    for wrapped in (
        network().state_dict(),
        {
            "state_dict": {f"m.{k}": v for k, v in network().state_dict().items()},
            "args": argparse.Namespace(lr=0.1, data=Path("data")),
            "metric": np.float64(71.5),
            "random": np.arange(4),
        },
    ):
        buffer = io.BytesIO()
        torch.save(wrapped, buffer)
        whole.append(buffer.getvalue())
    evil = [pickle.dumps({"a": Evil(), "b": [1, (2, "x")]}, protocol=protocol) for protocol in range(6)]
    inner = []
    for data in whole:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            inner.append((data, archive.read("archive/data.pkl")))
    into = model()

    def repickled(pair: tuple[bytes, bytes], edits: Any) -> bytes:
        return rezipped(pair[0], "archive/data.pkl", edited(pair[1], edits))

    def evil_pickle(data: bytes, edits: Any) -> bytes:
        return rezipped(whole[0], "archive/data.pkl", edited(data, edits))

    ways = (
        raw(*whole), with_edits(repickled, inner), with_edits(evil_pickle, evil), raw(*evil),
    )  # fmt: skip
    return Untrusted("a.pt", lambda path: load_foreign(into, path), ways, whole=tuple(whole))


def onnx_models(folder: Path) -> Untrusted:
    import onnx

    helper, kinds = onnx.helper, onnx.TensorProto
    weights = {f"w{name}": tensor.detach().numpy() for name, tensor in network().state_dict().items()}
    nodes = [
        helper.make_node("Conv", ["image", "w0.weight", "w0.bias"], ["a"]),
        helper.make_node("Flatten", ["a"], ["b"]),
        helper.make_node("Gemm", ["b", "w2.weight", "w2.bias"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes, "small", [helper.make_tensor_value_info("image", kinds.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", kinds.FLOAT, ["batch", 3])],
        [onnx.numpy_helper.from_array(values, name) for name, values in weights.items()],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    data = proto.SerializeToString()

    def read(path: Path) -> None:
        classifier = load_onnx(path, classes=3, input_shape=(1, 8, 8))
        part(classifier, "network").costs((1, 8, 8))

    return Untrusted("a.onnx", read, (raw(data),), whole=(data,))
