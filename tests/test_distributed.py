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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import distributed_cases
import noisyteacher as nt
from helpers import Call, Fork, run_command, wait_until
from noisyteacher.config import build_config
from noisyteacher.distributed import World, launch_command, process_group, processes
from noisyteacher.errors import UsageError
from noisyteacher.pipeline.single_step import distil_config
from noisyteacher.runs import Run, list_runs

LIMIT, EPOCHS = 1500, 12  # long enough to be interrupted on a busy machine


def alone_environment() -> dict[str, str]:
    launched = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "OMP_NUM_THREADS")
    return {key: value for key, value in os.environ.items() if key not in launched} | {"OMP_NUM_THREADS": "1"}


def group(action: Callable[[], object], output: Path) -> list[Fork]:
    """Two processes that train together, as torchrun starts them; their output goes to OUTPUT-RANK.out and .err."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
    sizes = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    return [
        Fork(
            action,
            output.with_name(f"{output.name}-{rank}"),
            {**address, **sizes, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]


def join(processes: list[Fork]) -> list[str]:
    """What each process printed; all of them must end with 0."""
    codes = [process.wait() for process in processes]
    assert codes == [0, 0], [process.err for process in processes]
    return [process.out for process in processes]


@pytest.fixture(scope="module")
def endings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What one process, and each of a group of two, ended with."""
    out = tmp_path_factory.mktemp("group")
    join(group(lambda: distributed_cases.main(out), out / "group"))
    distributed_cases.main(out)
    return {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}


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
    data = nt.load_data("mnist-5k", limit=LIMIT)
    return nt.extract(nt.build_model("lenet", data), data.train, tmp_path_factory.mktemp("a") / "store").path


def distil(store: Path, out: Path, *more: object) -> list[object]:
    return [
        "distil", store, "--data", "mnist-5k", "--student", "mlp800", "--sigma", "0.5", "--alpha", "0.5",
        "--batch-size", "100", "--epochs", EPOCHS, "--precision", "fp32", "--output-dir", out,
        "--set", "run.checks=false", "--set", f"data.limit={LIMIT}", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def unbroken(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of two processes that nothing came between."""
    out = tmp_path_factory.mktemp("unbroken")
    processes = group(lambda: run_command(*distil(store, out, "--json")), out / "group")
    printed = join(processes)
    (run,) = list_runs(out)
    words = [[line for line in text.splitlines() if not line.startswith("[Gloo]")] for text in printed]  # torch 2.9
    assert json.loads("\n".join(words[0]))["run"] == str(run.path)
    assert words[1] == []
    assert sum(process.err.count(f"epoch 1/{EPOCHS}") for process in processes) == 1
    return run


def test_the_command_line_in_two_processes(unbroken: Run, store: Path, tmp_path: Path, call: Call) -> None:
    result = unbroken.result()
    assert result is not None
    assert result["training"]["processes"] == 2
    assert call(*map(str, distil(store, tmp_path, "--quiet")))[0] == 0
    (single,) = list_runs(tmp_path)
    for epoch, (alone, two) in enumerate(zip(single.metrics(), unbroken.metrics(), strict=True)):
        growing = 1e-4 if epoch < 4 else 1e-3  # the difference of rounding
        assert two["train/loss"] == pytest.approx(alone["train/loss"], rel=growing)
        assert two["val/error"] == pytest.approx(alone["val/error"], abs=0.5)
    whole = single.result()
    assert whole is not None
    assert "processes" not in whole["training"]


CHECKPOINT = "*/checkpoint/state.safetensors"
OFTEN = ("--set", "run.checkpoint_every_s=0.1")


def same_end(run: Run, unbroken: Run) -> None:
    for name in ("weights.safetensors", "last.safetensors"):
        assert (run.path / name).read_bytes() == (unbroken.path / name).read_bytes()
    assert [{**line, "seconds": 0} for line in run.metrics()] == [{**line, "seconds": 0} for line in unbroken.metrics()]


def train_or_raise(*words: str) -> None:
    """A worker of torchrun's agent, which takes SystemExit for a failure whatever its code."""
    with pytest.raises(SystemExit) as end:
        run_command(*words)
    if end.value.code:
        raise end.value


@pytest.mark.parametrize("victim", [0, 1] if os.environ.get("NOISYTEACHER_FAULTS") == "all" else [1])
def test_torchrun_restarts_after_a_killed_process_and_the_result_is_the_same(
    victim: int, store: Path, unbroken: Run, tmp_path: Path
) -> None:
    """The agent is torchrun's; it forks its workers instead of starting Python."""
    config = LaunchConfig(
        1, 1, 2, run_id="test", rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=2, start_method="fork",
        monitor_interval=0.05,
    )  # fmt: skip
    out = tmp_path / "runs"
    words = tuple(map(str, distil(store, out, *OFTEN)))
    agent = Fork(lambda: elastic_launch(config, train_or_raise)(*words), tmp_path / "agent")
    workers: list[int] = []
    try:
        wait_until(lambda: agent.ended() or list(out.glob(CHECKPOINT)))
        assert not agent.ended(), agent.err
        workers = [int(pid) for pid in Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()]
        assert len(workers) == 2
        os.kill(workers[victim], signal.SIGKILL)
        assert agent.wait() == 0, agent.err[:3000]
        assert agent.err.count("reading the data") == 2
    finally:
        for pid in [agent.pid] * (agent.code is None) + workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    (run,) = list_runs(out)  # the run that was begun is continued
    same_end(run, unbroken)


def test_a_signal_ends_all_after_the_same_step_and_resume_goes_on(store: Path, unbroken: Run, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    processes = group(lambda: run_command(*distil(store, out, *OFTEN)), tmp_path / "group")
    wait_until(lambda: any(process.ended() for process in processes) or list(out.glob(CHECKPOINT)))
    processes[1].kill(signal.SIGTERM)  # rank 1 alone
    assert [process.wait() for process in processes] == [143, 143], [process.err for process in processes]
    (run,) = list_runs(out)
    assert run.state == "unfinished"
    errors = [process.err for process in processes]
    assert [text.count("interrupted\n") for text in errors] == [1, 0]
    assert f"resume with: torchrun --nproc-per-node 2 -m noisyteacher distil --resume {run.path}" in errors[0]
    join(group(lambda: run_command("distil", "--resume", run.path), tmp_path / "resumed"))
    same_end(run, unbroken)


def test_other_commands_are_not_for_a_group() -> None:
    environment = {**alone_environment(), "WORLD_SIZE": "2", "RANK": "1"}
    words = [sys.executable, "-m", "noisyteacher", "compress", "--data", "mnist-5k"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
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
    monkeypatch.setattr(dist, "rendezvous", lambda *_, **__: iter([(dist.HashStore(), 1, 2)]))  # type: ignore[attr-defined]
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
def test_a_process_that_waits_for_others_can_be_ended(number: int, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}

    def listening() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("localhost", port), 1):
            return True
        return False

    words = ("train", "--data", "mnist-5k", "--model", "lenet")
    process = Fork(lambda: run_command(*words), tmp_path / "waiting", environment)
    try:
        wait_until(lambda: process.ended() or listening())  # it listens once it waits for the other
        time.sleep(0.2)
        process.kill(number)
        assert process.wait() in (-number, 128 + number)
    finally:
        if process.code is None:
            process.kill()


def test_a_restart_finds_the_run_of_its_own_store_alone(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    data = nt.load_data("mnist-5k", limit=60)
    store_path = tmp_path / "store"
    run = {"output_dir": str(tmp_path / "runs"), "checks": False}
    student = {"epochs": 1, "name": "mlp800"}
    requested = build_config(
        {"data": {"name": "mnist-5k", "limit": 60}, "student": student, "noise": {"sigma": 0.5}, "run": run}
    )
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
