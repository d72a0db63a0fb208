"""Shared fixtures: the folder of full data sets, the command line in this process; one thread and no GPU for all."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

# The device `auto` must be the CPU, except for `make test-gpu`.
WITH_GPU = "NOISYTEACHER_TEST_GPU" in os.environ
if not WITH_GPU:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import torch  # noqa: E402, which GPUs it sees is set above

from helpers import Call  # noqa: E402

# With small tensors, several threads mostly wait for each other.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

# A shell starts background jobs with SIGINT ignored, which child processes inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]
BESIDE = ROOT.parent / "shared" / "data" / "unpack.py"


@pytest.fixture(scope="session")
def real_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with MNIST/raw, cifar10_q75.npz, cifar-10-batches-py and svhn_1083.npz; skips where it cannot be had."""
    folder = os.environ.get("NOISYTEACHER_TEST_DATA")
    if folder:
        return Path(folder)
    if not BESIDE.exists():
        pytest.skip("full data sets are not here: set NOISYTEACHER_TEST_DATA to a folder that holds them")
    unpacked = ROOT / "build" / "test-data"  # kept for later runs of the tests
    if not unpacked.exists():
        out = tmp_path_factory.mktemp("real-data")
        subprocess.run([sys.executable, str(BESIDE), str(out)], check=True, capture_output=True)
        unpacked.parent.mkdir(exist_ok=True)
        copy = unpacked.with_name(f"test-data-{os.getpid()}")
        shutil.move(out, copy)
        try:
            copy.rename(unpacked)
        except OSError:  # another process has done the same
            shutil.rmtree(copy)
    return unpacked


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests marked `gpu`, and no others, where NOISYTEACHER_TEST_GPU is set and a GPU is present."""
    here = WITH_GPU and torch.cuda.is_available()
    for item in items:
        if (item.get_closest_marker("gpu") is not None) != here:
            item.add_marker(pytest.mark.skip(reason="needs a GPU: make test-gpu" if not here else "is of the CPU"))


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """Run the command line in this process, in an empty folder: (exit code, stdout, stderr)."""
    from noisyteacher import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NOISYTEACHER_DATA", raising=False)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["noisyteacher", *words])
        before = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as end:
                cli.main()
        finally:
            signal.signal(signal.SIGTERM, before)
        output = capsys.readouterr()
        return int(end.value.code or 0), output.out, output.err

    return run


@pytest.fixture
def unrendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures of reports are painted but not rendered as SVG, which takes most of the time of a page."""
    from matplotlib.figure import Figure as Canvas

    from noisyteacher.report.figures import Figure

    def svg(figure: Figure, name: str) -> str:
        figure.paint(Canvas())
        return "<svg></svg>"

    monkeypatch.setattr(Figure, "svg", svg)
