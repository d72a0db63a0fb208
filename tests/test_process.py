"""Memory settings of a process: what they do to page faults, and what leaves the C library alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from noisyteacher import process
from noisyteacher.errors import NoisyTeacherError, UsageError

SCRIPT = """
import json, os, resource, sys
from noisyteacher import process
tuned = "tune" in sys.argv and process.tune_memory()
import noisyteacher as nt
import torch
from noisyteacher.data import Split
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
images = torch.randint(0, 256, (96, 3, 32, 32), generator=generator, dtype=torch.uint8)
split = Split(images, torch.arange(96) % 10, torch.arange(96), "train", "noise", tuple("abcdefghij"))
model = nt.build_model("compact-xs", classes=10, input_shape=(3, 32, 32), seed=0)
before, counts = dict(os.environ), []
changed = lambda before: [name for name in os.environ if os.environ[name] != before.get(name)]
history = nt.fit(model, split, nt.supervised(), epochs=9, batch_size=96, precision="fp32")
for _ in range(6):
    torch.ones(64 << 20, dtype=torch.uint8)
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
losses = [line["train/loss"] for line in history.epochs]
print(json.dumps({"tuned": tuned, "pages": os.environ.get(process.LARGE_PAGES), "changed": changed(before),
                  "faults": [after - before for before, after in zip(counts, counts[1:])], "losses": losses}))
"""


def trained(*arguments: str, **environment: str) -> dict[str, Any]:
    """What a process of its own reports: losses of nine steps, then the page faults of blocks of 64 MB, but the first.

    64 MB is more than glibc ever keeps by itself (32 MB on 64 bits, mallopt(3): M_MMAP_THRESHOLD).
    """
    inherited = {
        name: value for name, value in os.environ.items() if name not in (process.VARIABLE, process.LARGE_PAGES)
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


@pytest.fixture(scope="module")
def library() -> dict[str, Any]:
    """The report of a process that does not tune its memory."""
    return trained()


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_a_tuned_process_keeps_its_memory_and_computes_the_same(library: dict[str, Any]) -> None:
    tuned = trained("tune")
    assert (tuned["tuned"], tuned["pages"]) == (True, "1")
    assert tuned["losses"] == library["losses"]
    assert 10 * max(tuned["faults"]) < min(library["faults"])


def test_a_library_changes_nothing(library: dict[str, Any]) -> None:
    assert (library["tuned"], library["pages"]) == (False, None)
    assert set(library["changed"]) <= {"TORCHINDUCTOR_CACHE_DIR"}, "but for what torch's optimizers set"


def test_the_environment_can_turn_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(process.VARIABLE, "system")
    monkeypatch.delenv(process.LARGE_PAGES, raising=False)
    assert not process.tune_memory()
    assert process.LARGE_PAGES not in os.environ


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD"])
def test_the_users_own_settings_win(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(process.LARGE_PAGES, "0")
    monkeypatch.setenv(name, "")
    assert not process.tune_memory()
    assert os.environ[process.LARGE_PAGES] == "0"


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(process.LARGE_PAGES, "0")
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    assert not process.tune_memory()


class Unsendable:
    """What a full /dev/shm makes of a tensor on its way to another process."""

    def __reduce__(self) -> Any:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2>: Success (0)")


def test_a_full_shared_memory_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(NoisyTeacherError, match=r"/dev/shm has no space for the data of 2 processes .*--shm-size"):
        process.run_in_workers(len, [(Unsendable(),)], 2, 1, "training", None)


def test_a_class_inside_a_function_is_an_error_that_says_what_to_do() -> None:
    class Local:
        pass

    with pytest.raises(UsageError, match=r"^jobs=2: .*Local.*: define its class or function in a module.* jobs=1$"):
        process.run_in_workers(len, [(Local(),)], 2, 1, "training", None)
    with pytest.raises(TypeError, match="has no len"):
        process.run_in_workers(len, [(1,)], 2, 1, "training", None)
