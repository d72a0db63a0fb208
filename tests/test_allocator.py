"""Memory kept between steps: what a training does to page faults, and what leaves the C library alone."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from typing import Any

import pytest

from noisyteacher import allocator

SCRIPT = """
import json, os, resource, sys
import noisyteacher as nt
import torch
from noisyteacher import allocator
from noisyteacher.data import Split
torch.set_num_threads(1)
dice = torch.Generator().manual_seed(0)
images = torch.randint(0, 256, (96, 3, 32, 32), generator=dice, dtype=torch.uint8)
split = Split(images, torch.arange(96) % 10, torch.arange(96), "train", "noise", tuple("abcdefghij"))
model = nt.build_model("compact-xs", classes=10, input_shape=(3, 32, 32), seed=0)
counts = []
count = lambda tick: counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
history = nt.fit(model, split, nt.supervised(), epochs=14, batch_size=96, precision="fp32", progress=count)
losses = [line["train/loss"] for line in history.epochs]
print(json.dumps({"done": allocator.keep_memory(), "pages": os.environ.get(allocator.LARGE_PAGES),
                  "faults": [after - before for before, after in zip(counts, counts[1:])], "losses": losses}))
"""


def trained(**environment: str) -> dict[str, Any]:
    """What a training of fourteen steps says in a process of its own, with the page faults of all but the first."""
    own = {name: value for name, value in os.environ.items() if name not in (allocator.VARIABLE, allocator.LARGE_PAGES)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=own | environment, capture_output=True, text=True, check=True, timeout=120
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's switches")
def test_a_training_keeps_its_memory_and_computes_the_same() -> None:
    kept, left = trained(), trained(NOISYTEACHER_ALLOCATOR="system")
    assert (kept["done"], kept["pages"]) == ("kept", "1")
    assert (left["done"], left["pages"]) == ("system", None)
    assert kept["losses"] == left["losses"]
    usual, mended = (statistics.median(each["faults"][4:]) for each in (left, kept))  # the first steps still grow
    assert usual > 300
    assert mended < usual / 10


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD"])
def test_settings_of_the_users_own_win(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "")
    assert allocator.keep_memory.__wrapped__() == "system"


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    assert allocator.keep_memory.__wrapped__() == "system"


def test_a_choice_about_large_pages_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(allocator.LARGE_PAGES, "0")
    allocator.ask_for_large_pages()
    assert os.environ[allocator.LARGE_PAGES] == "0"
