"""What the tests share: the folder of full data sets, where there is one, one CPU thread count for all, and no GPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

# What the tests compare lies on the CPU, and `auto` would be a GPU where there is one: `make test-gpu` asks for it.
WITH_GPU = "NOISYTEACHER_TEST_GPU" in os.environ
if not WITH_GPU:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import torch  # noqa: E402, which GPUs it sees is set above

from helpers import Call  # noqa: E402

# Small tensors on two threads wait for each other more than they compute, all the more beside other processes.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

# Whoever starts the tests in the background may have had SIGINT ignored, and what is ignored stays so in children.
signal.signal(signal.SIGINT, signal.default_int_handler)

BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data" / "unpack.py"


@pytest.fixture(scope="session")
def real_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with MNIST/raw, cifar10_q75.npz, cifar-10-batches-py and svhn_1083.npz; skips where it cannot be had."""
    given = os.environ.get("NOISYTEACHER_TEST_DATA")
    if given:
        return Path(given)
    if not BESIDE.exists():
        pytest.skip("full data sets are not here: set NOISYTEACHER_TEST_DATA to a folder that holds them")
    out = tmp_path_factory.mktemp("real-data")
    subprocess.run([sys.executable, str(BESIDE), str(out)], check=True, capture_output=True)
    return out


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` run where one is asked for and there, and then alone."""
    here = WITH_GPU and torch.cuda.is_available()
    for item in items:
        if (item.get_closest_marker("gpu") is not None) != here:
            item.add_marker(pytest.mark.skip(reason="needs a GPU: make test-gpu" if not here else "is of the CPU"))


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """Runs the command line in this process and an empty folder: (exit code, stdout, stderr)."""
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
