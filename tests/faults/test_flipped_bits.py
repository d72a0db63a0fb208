"""One bit of a file of ours flipped, anywhere: it is noticed, and the file is named."""

from __future__ import annotations

import os
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import noisyteacher as nt
from helpers import student_with
from noisyteacher.errors import FileFormatError, NoisyTeacherError
from noisyteacher.runs import Run, new_run
from noisyteacher.store import LogitStore
from noisyteacher.train.checkpoint import read_checkpoint, write_checkpoint
from noisyteacher.train.state import Progress

FLIPS = 1000 if os.environ.get("NOISYTEACHER_FAULTS") == "all" else 100
"""In each kind of file."""


@dataclass(frozen=True)
class Kept:
    """Files of one kind, and what reads all of them."""

    files: tuple[Path, ...]
    read: Callable[[], object]


def network() -> nt.Classifier:
    return nt.build_model("lenet", classes=10, input_shape=(1, 16, 16)).eval()


def small(classes: int = 3) -> torch.nn.Module:
    return torch.nn.Linear(4, classes)


def a_store(folder: Path) -> Kept:
    data = nt.load_data("mnist-5k", limit=40).train
    teacher = nt.build_model("lenet", classes=10, input_shape=(1, 28, 28)).eval()
    path = nt.extract(teacher, data, folder / "store", rows_per_shard=10).path

    def read() -> None:
        store = LogitStore.open(path)
        store.verify()

    return Kept(tuple(sorted(file for file in path.rglob("*") if file.is_file())), read)


def weights(folder: Path) -> Kept:
    path = folder / "w.safetensors"
    nt.save_model(network(), path, {"epochs": 3})
    return Kept((path,), lambda: nt.load_model(path))


def a_checkpoint(folder: Path) -> Kept:
    run = new_run(folder, "train", "lenet", {"seed": 0})
    model = small()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    write_checkpoint(
        student_with(model, optimizer, run.path, {"seed": 0}, progress=Progress(step=7), best=dict(model.state_dict()))
    )

    def read() -> None:
        fresh = small()
        read_checkpoint(run.path, student_with(fresh, torch.optim.Adam(fresh.parameters()), run.path, {"seed": 0}))

    return Kept((run.path / "checkpoint" / "state.safetensors",), read)


def a_result(folder: Path) -> Kept:
    run = new_run(folder, "train", "lenet", {"seed": 0})
    run.write_result({"error": {"value": 1.25, "unit": "%", "n": 400}})

    def read() -> None:
        opened = Run.open(run.path)
        assert (opened.config, opened.info) is not None
        opened.result()

    return Kept(tuple(run.path / name for name in ("config.json", "run.json", "result.json")), read)


def images(folder: Path) -> Path:
    dice = np.random.default_rng(0)
    for name in ("ant", "bee"):
        for number in range(10):
            path = folder / "pets" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(dice.integers(0, 256, (6, 6, 3), dtype=np.uint8)).save(path)
    return folder / "pets"


def packed(folder: Path) -> Kept:
    path = nt.pack_data(images(folder), folder / "out").path
    return Kept(tuple(sorted(path.iterdir())), lambda: nt.load_data(path))


KINDS = {"store": a_store, "weights": weights, "checkpoint": a_checkpoint, "result": a_result, "packed": packed}
PLACE = r"(bytes|rows) \d+ to \d+"
"""What an error says beside the file's name: the stretch that one checksum covers."""


@pytest.mark.parametrize("kind", KINDS)
def test_every_flip_is_noticed(kind: str, tmp_path: Path, record_property: Callable[..., None]) -> None:
    kept = KINDS[kind](tmp_path)
    kept.read()
    dice = random.Random(f"flips of {kind}")
    whole = {file: file.read_bytes() for file in kept.files}
    places = [(file, size) for file, data in whole.items() if (size := len(data))]
    for _ in range(FLIPS):
        file = dice.choices([file for file, _ in places], [size for _, size in places])[0]
        bit = dice.randrange(8 * len(whole[file]))
        data = bytearray(whole[file])
        data[bit // 8] ^= 1 << bit % 8
        file.write_bytes(data)
        with pytest.raises(NoisyTeacherError) as noticed:
            kept.read()
        assert file.name in str(noticed.value), (bit, str(noticed.value))
        assert re.search(PLACE, str(noticed.value)), (bit, str(noticed.value))
        file.write_bytes(whole[file])
    record_property("faults: flipped bits", FLIPS)
    kept.read()


def test_only_the_damaged_shard_is_made_again(tmp_path: Path) -> None:
    data = nt.load_data("mnist-5k", limit=40).train
    teacher = nt.build_model("lenet", classes=10, input_shape=(1, 28, 28)).eval()
    path = nt.extract(teacher, data, tmp_path / "store", rows_per_shard=10).path
    whole = {file.name: file.read_bytes() for file in path.iterdir()}
    (path / "store.json").unlink()  # as after a crash: the shards are there, the index is not yet
    damaged = bytearray(whole["shard-00002.safetensors"])
    damaged[-3] ^= 4
    (path / "shard-00002.safetensors").write_bytes(damaged)
    progress: list[tuple[int, int]] = []
    nt.extract(teacher, data, path, rows_per_shard=10, progress=lambda done, total: progress.append((done, total)))
    assert {file.name: file.read_bytes() for file in path.iterdir()} == whole
    assert progress == [(40, 40)]  # thirty of forty answers were there


def test_a_damaged_store_is_refused_and_made_again_on_demand(tmp_path: Path) -> None:
    data = nt.load_data("mnist-5k", limit=40).train
    teacher = nt.build_model("lenet", classes=10, input_shape=(1, 28, 28)).eval()
    path = nt.extract(teacher, data, tmp_path / "store").path
    whole = {file.name: file.read_bytes() for file in path.iterdir()}
    (shard,) = path.glob("shard-*")
    shard.write_bytes(whole[shard.name][:-1])
    with pytest.raises(FileFormatError, match=shard.name):
        nt.distil(LogitStore.open(path))
    nt.extract(teacher, data, path, overwrite=True)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == whole
    shutil.rmtree(path)
