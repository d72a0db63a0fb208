"""Several processes as one training: the same losses and weights as in one, nothing written twice, nothing lost."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist

import distributed_cases
import noisyteacher as nt
from helpers import Call
from noisyteacher.config import build_config
from noisyteacher.distributed import World, launch_command, process_group, processes
from noisyteacher.errors import UsageError
from noisyteacher.pipeline import distil_config
from noisyteacher.runs import Run, list_runs

HERE = Path(__file__).parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def alone_environment() -> dict[str, str]:
    launched = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "OMP_NUM_THREADS")
    return {key: value for key, value in os.environ.items() if key not in launched} | {"OMP_NUM_THREADS": "1"}


def group(*words: object, **how: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TORCHRUN, *map(str, words)], capture_output=True, text=True, timeout=240, env=alone_environment(), **how
    )


@pytest.fixture(scope="module")
def endings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What one process, and each of a group of two, ended with."""
    out = tmp_path_factory.mktemp("group")
    done = group(HERE / "distributed_cases.py", out)
    assert done.returncode == 0, done.stderr
    distributed_cases.main(out)
    return {path.stem: json.loads(path.read_text()) for path in out.iterdir()}


@pytest.mark.parametrize("case", distributed_cases.CASES)
def test_a_group_trains_as_one_process(endings: dict[str, dict[str, Any]], case: str) -> None:
    alone, two = endings["1-0"][case], endings["2-0"][case]
    for line, other in zip(alone["epochs"], two["epochs"], strict=True):
        assert line.keys() == other.keys()
        for key in line.keys() - {"seconds", "noise/gradient_ratio"}:  # the mean of every process's ratio
            assert other[key] == pytest.approx(line[key], rel=2e-4, abs=1e-6), key
    for name, values in alone["state"].items():
        assert two["state"][name] == pytest.approx(values, rel=1e-3, abs=2e-5), name


@pytest.mark.parametrize("case", distributed_cases.CASES | distributed_cases.WITH_BATCH_NORM)
def test_all_processes_end_with_the_same_bits(endings: dict[str, dict[str, Any]], case: str) -> None:
    assert endings["2-0"][case]["state"] == endings["2-1"][case]["state"]
    assert endings["2-0"][case]["epochs"] == endings["2-1"][case]["epochs"]
    assert endings["2-1"][case]["given back"]


def test_a_group_must_be_asked_for_one_training(endings: dict[str, dict[str, Any]]) -> None:
    assert "differ in seed" in endings["2-0"]["other seeds"]
    assert "differ in seed" in endings["2-1"]["other seeds"]


def test_an_error_of_the_leading_process_is_everybodys(endings: dict[str, dict[str, Any]]) -> None:
    ends = {endings[alone]["failing"] for alone in ("2-0", "2-1")}
    assert len(ends) == 2  # two processes
    assert all(end.endswith(" only here") for end in ends)


def test_shares_are_the_batch() -> None:
    for rows in (2, 3, 7, 24):
        shares = [World(rank, 3).share(rows) for rank in range(3)]
        taken = [list(range(rows))[part] for part in shares]
        if rows < 3:
            assert taken == [list(range(rows))] * 3
        else:
            assert [row for part in taken for row in part] == list(range(rows))
            assert max(map(len, taken)) - min(map(len, taken)) <= 1


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = nt.load_data("mnist-5k")
    return nt.extract(nt.build_model("lenet", data), data.train, tmp_path_factory.mktemp("a") / "store").path


def distil(store: Path, out: Path, *more: object, epochs: int = 2) -> list[object]:
    return [
        "-m", "noisyteacher", "distil", store, "--data", "mnist-5k", "--student", "mlp800", "--sigma", "0.5", "--alpha",
        "0.5", "--batch-size", "250", "--epochs", epochs, "--output-dir", out, "--set", "run.checks=false",
        "--precision", "fp32", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def unbroken(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of two processes that nothing came between."""
    out = tmp_path_factory.mktemp("unbroken")
    done = group(*distil(store, out, "--json", epochs=4))
    assert done.returncode == 0, done.stderr
    (run,) = list_runs(out)
    assert json.loads(done.stdout)["run"] == str(run.path)  # said once
    assert done.stderr.count("epoch 1/4") == 1
    return run


def test_the_command_line_in_two_processes(unbroken: Run, store: Path, tmp_path: Path, call: Call) -> None:
    result = unbroken.result()
    assert result is not None
    assert result["training"]["processes"] == 2
    assert call(*map(str, distil(store, tmp_path, "--quiet", epochs=4)[2:]))[0] == 0
    (single,) = list_runs(tmp_path)
    for alone, two in zip(single.metrics(), unbroken.metrics(), strict=True):
        assert two["train/loss"] == pytest.approx(alone["train/loss"], rel=1e-4)
        assert two["val/error"] == pytest.approx(alone["val/error"], abs=0.5)
    whole = single.result()
    assert whole is not None
    assert "processes" not in whole["training"]


def running(words: list[object], out: Path, at_step: str) -> Iterator[tuple[subprocess.Popen[bytes], list[int], Path]]:
    """torchrun at work, once its checkpoint is there, with the numbers of its two workers."""
    errors = out.with_name(f"{out.name}.stderr")  # a pipe would stay open as long as a worker lives
    with errors.open("wb") as stream:
        process = subprocess.Popen(
            [*TORCHRUN, *map(str, words)], stdout=subprocess.DEVNULL, stderr=stream, env=alone_environment()
        )
    workers: list[int] = []
    try:
        deadline = time.monotonic() + 240
        while not list(out.glob(at_step)):
            assert process.poll() is None, errors.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        workers = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        yield process, workers, errors
    finally:
        for pid in [process.pid, *workers]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


CHECKPOINT = "*/checkpoint/state.safetensors"
OFTEN = ("--set", "run.checkpoint_every_s=0.1")


def same_end(run: Run, unbroken: Run) -> None:
    for name in ("weights.safetensors", "last.safetensors"):
        assert (run.path / name).read_bytes() == (unbroken.path / name).read_bytes()
    assert [{**line, "seconds": 0} for line in run.metrics()] == [{**line, "seconds": 0} for line in unbroken.metrics()]


@pytest.mark.parametrize("victim", [0, 1] if os.environ.get("NOISYTEACHER_FAULTS") == "all" else [1])
def test_a_killed_process_is_started_again_and_the_end_is_the_same(
    victim: int, store: Path, unbroken: Run, tmp_path: Path
) -> None:
    words = ["--max-restarts", "2", *distil(store, tmp_path, *OFTEN, epochs=4)]
    for process, workers, errors in running(words, tmp_path, CHECKPOINT):
        assert len(workers) == 2
        ranks = {pid: rank_of(pid) for pid in workers}
        os.kill(next(pid for pid, rank in ranks.items() if rank == victim), signal.SIGKILL)
        assert process.wait(timeout=600) == 0, errors.read_text()[:3000]
    (run,) = list_runs(tmp_path)  # the one that was begun went on
    same_end(run, unbroken)


def rank_of(pid: int) -> int:
    for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
        if entry.startswith(b"RANK="):
            return int(entry[5:])
    raise AssertionError(pid)


def test_a_signal_ends_all_after_the_same_step_and_resume_goes_on(store: Path, unbroken: Run, tmp_path: Path) -> None:
    for process, workers, errors in running(distil(store, tmp_path, *OFTEN, epochs=4), tmp_path, CHECKPOINT):
        os.kill(workers[-1], signal.SIGTERM)  # one of them only
        process.wait(timeout=600)
        stderr_text = errors.read_text()
    (run,) = list_runs(tmp_path)
    assert run.state == "unfinished"
    assert stderr_text.count("interrupted\n") == 1
    again = f"torchrun --nproc-per-node 2 -m noisyteacher distil --resume {run.path}"
    assert f"resume with: {again}" in stderr_text
    assert "exitcode  : 143" in stderr_text.replace("exitcode : 143", "exitcode  : 143")
    done = group("-m", "noisyteacher", "distil", "--resume", run.path)
    assert done.returncode == 0, done.stderr
    same_end(run, unbroken)


def test_other_commands_are_not_for_a_group() -> None:
    environment = {**alone_environment(), "WORLD_SIZE": "2", "RANK": "1"}
    words = [sys.executable, "-m", "noisyteacher", "compress", "--data", "mnist-5k"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("process 1: error: 2 processes were started for compress")


def test_a_rank_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(UsageError, match="RANK=2 in the environment, of 2 processes"), process_group():
        pass
    monkeypatch.setenv("RANK", "1")
    with (
        pytest.raises(UsageError, match="device 'cuda:0': with several processes each takes a GPU"),
        process_group("cuda:0"),
    ):
        pass


def test_the_group_is_made_for_the_device_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with one GPU, two processes that train on the CPU are no group of GPUs."""
    requested: list[str] = []

    def init(backend: str, **_: object) -> None:
        requested.append(backend)
        raise RuntimeError("enough")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(dist, "rendezvous", lambda *_, **__: iter([(dist.HashStore(), 1, 2)]))
    monkeypatch.setattr(dist, "init_process_group", init)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(UsageError, match="the process group could not be initialised: enough"), process_group("cpu"):
        pass
    assert requested == ["gloo"]
    with (
        pytest.raises(UsageError, match="process 1 of this machine has no GPU of its own: there are 1"),
        process_group(),
    ):
        pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_that_waits_for_others_can_be_ended(number: int) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    words = [sys.executable, "-m", "noisyteacher", "train", "--data", "mnist-5k", "--model", "lenet"]
    process = subprocess.Popen(words, env=alone_environment() | group, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while True:  # it listens once it waits for the other
            with contextlib.suppress(OSError), socket.create_connection(("localhost", port), 1):
                break
            assert time.monotonic() < until
            time.sleep(0.1)
        time.sleep(0.5)
        process.send_signal(number)
        assert process.wait(10) in (-number, 128 + number)
    finally:
        process.kill()
        process.wait()


def test_a_restart_finds_the_run_of_its_own_store_alone(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    data = nt.load_data("mnist-5k")
    store_path = tmp_path / "store"
    run = {"output_dir": str(tmp_path / "runs"), "checks": False}
    student = {"epochs": 1, "name": "mlp800"}
    requested = build_config({"data": {"name": "mnist-5k"}, "student": student, "noise": {"sigma": 0.5}, "run": run})
    nt.extract(nt.build_model("lenet", data, seed=1), data.train, store_path)
    first = distil_config(requested, store_path).run
    (tmp_path / "runs" / "0-damaged").mkdir()
    (tmp_path / "runs" / "0-damaged" / "run.json").write_text("{")
    assert distil_config(requested, store_path).run.path == first.path
    nt.extract(nt.build_model("lenet", data, seed=2), data.train, store_path, overwrite=True)
    assert distil_config(requested, store_path).run.path != first.path


def test_what_a_launcher_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert processes() == 4
    assert launch_command() == ["torchrun", "--nproc-per-node", "2", "-m", "noisyteacher"]
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(UsageError, match="WORLD_SIZE='many'"):
        processes()


def test_the_cases_learn(endings: dict[str, dict[str, Any]]) -> None:
    for case, ended in endings["1-0"].items():
        first, last = ended["epochs"][0]["train/loss"], ended["epochs"][-1]["train/loss"]
        assert math.isfinite(last), case
        assert last < first, case
    assert torch.distributed.is_initialized() is False
