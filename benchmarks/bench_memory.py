"""The most memory a training holds, beside a bare torch loop's; each runs in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from synthetic import CIFAR, MNIST

from conftest import Turns

CASES = {"lenet-cifar": (CIFAR, 1280), "mlp800": (MNIST, 20_000)}
SHARED = """
import resource, sys
import torch
from synthetic import CLASSES, synthetic_split
import noisyteacher as nt
shape, rows, name, folder = {shape}, {rows}, {name!r}, {folder!r}
split = synthetic_split(rows, shape)
model = nt.build_model(name, classes=CLASSES, input_shape=shape, seed=0)
"""
BARE = """
table = torch.zeros(rows, CLASSES)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
for epoch in range(2):
    for chosen in torch.randperm(rows).split(128):
        logits = model(split.images[chosen])
        loss = (logits - table[chosen]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""
OURS = """
teacher = nt.build_model(name, classes=CLASSES, input_shape=shape, seed=1).eval()
store = nt.LogitStore.open(folder + "/store")
nt.fit(model, split, nt.distil(store, noise=nt.Noise(sigma=0.5, alpha=0.5)), epochs=2, batch_size=128, lr=1e-4,
       run=folder + "/run", checkpoint_every_s=0.5)
"""
STORE = """
teacher = nt.build_model(name, classes=CLASSES, input_shape=shape, seed=1).eval()
nt.extract(teacher, split, folder + "/store")
"""
TELL = "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"


def most_kib(code: str, name: str, folder: Path) -> int:
    """KiB resident at most in a process that runs this code."""
    shape, rows = CASES[name]
    text = SHARED.format(shape=shape, rows=rows, name=name, folder=str(folder)) + code + TELL
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    return int(done.stdout.split()[-1])


@pytest.mark.parametrize("name", CASES)
def test_memory(turns: Turns, tmp_path: Path, name: str) -> None:
    most_kib(STORE, name, tmp_path)
    bare: list[int] = []
    ours: list[int] = []

    def work() -> None:
        folder = tmp_path / f"run{len(ours)}"
        folder.mkdir()
        (folder / "store").symlink_to(tmp_path / "store")
        ours.append(most_kib(OURS, name, folder))

    turns.measure(work, lambda: bare.append(most_kib(BARE, name, tmp_path)), rounds=2, warm=True)
    (channels, height, width), rows = CASES[name]
    data = rows * channels * height * width / 1024
    assert max(ours) <= data + 1.2 * min(bare)
    turns.tell(
        f"at most {max(ours) / 1024:.0f} MiB, {max(ours) / min(bare):.2f} x a bare loop's {min(bare) / 1024:.0f} MiB, "
        f"data {data / 1024:.0f} MiB (n={len(ours)} and {len(bare)})",
        most_bytes=1024 * max(ours),
        bare_bytes=1024 * min(bare),
    )
