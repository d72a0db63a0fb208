"""`compress` killed with SIGKILL again and again, and a sweep's last writes: the end is that of an unbroken run."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

from faults.traced_calls import MUTATING, calls, chosen, killed_at, need_strace
from helpers import Fork, run_command
from noisyteacher.runs import Run, list_runs
from noisyteacher.sweep import resume_sweep, sweep

ALL = os.environ.get("NOISYTEACHER_FAULTS") == "all"
KILLS = 50 if ALL else 3
QUICK = 6
COMMAND = (
    "compress", "--data", "mnist-5k", "--teacher", "lenet", "--student", "mlp800", "--sigma", "0.5", "--epochs", "1",
    "--seeds", "2", "--threads", "1", "--device", "cpu", "-q", "--set", "data.limit=60", "--set", "teacher.epochs=1",
    "--set", "student.batch_size=30",
)  # fmt: skip
TIMES = ("seconds", "latency", "started", "finished", "memory", "_s", "_ms", "throughput")


def kill_later(process: Fork, folder: Path, writes: int, pause: float) -> None:
    """Kill the process so long after this many files of the folder were made or replaced, unless it ends before."""
    seen = before = {path: path.stat().st_ino for path in folder.rglob("*") if path.is_file()}
    count = 0
    while count < writes:
        if process.ended():
            return
        with contextlib.suppress(OSError):  # a file that is gone between two looks
            seen = {path: path.stat().st_ino for path in folder.rglob("*") if path.is_file()}
        count += len(seen.items() - before.items())
        before = seen
        time.sleep(0.001)
    time.sleep(pause)
    process.kill()


def timeless(value: Any) -> Any:
    """A record without what a clock has put there."""
    if isinstance(value, dict):
        kept = {key: entry for key, entry in value.items() if not any(part in key for part in TIMES)}
        return {key: timeless(entry) for key, entry in kept.items()}
    return [timeless(entry) for entry in value] if isinstance(value, list) else value


def finished(run: Run) -> dict[str, Any]:
    """What a finished run holds, byte by byte where no clock is in it."""
    files = sorted(path for path in run.path.rglob("*") if path.is_file())
    files = [path for path in files if "/." not in str(path.relative_to(run.path.parent))]  # of killed writers
    contents: dict[str, Any] = {}
    for path in files:
        name = str(path.relative_to(run.path))
        if path.name == "result.json":
            contents[name] = timeless(json.loads(path.read_bytes())["result"])
        elif path.suffix == ".safetensors" or path.name == "config.json":
            contents[name] = path.read_bytes()
        else:
            contents[name] = None
    return contents


def unlike(actual: Any, expected: Any, name: str = "") -> Iterator[str]:
    """Where two records differ, a line each: a large one is not shown whole when a test fails."""
    if isinstance(actual, dict) and isinstance(expected, dict):
        for key in actual.keys() | expected.keys():
            yield from unlike(actual.get(key, "nothing"), expected.get(key, "nothing"), f"{name}/{key}")
    elif isinstance(actual, bytes) and isinstance(expected, bytes) and name.endswith(".safetensors"):
        if actual != expected:
            both = [safetensors.torch.load(data) for data in (actual, expected)]
            gaps = {key: float((both[0][key].double() - both[1][key].double()).abs().max()) for key in both[0]}
            yield f"{name}: {len(actual)} and {len(expected)} bytes, largest gaps {gaps}"
    elif actual != expected:
        yield f"{name}: {actual!r:.200} and {expected!r:.200}"


@pytest.mark.slow
def test_compress_killed_at_random_ends_as_if_it_had_not_been(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    folder = tmp_path / "runs"  # the same for all, as config.json names it
    assert Fork(lambda: run_command(*COMMAND, "--output-dir", folder), tmp_path / "command").wait() == 0
    expected, dice, kills = finished(list_runs(folder, 1)[0]), random.Random(11), 0
    while kills < KILLS:
        shutil.rmtree(folder)
        while True:
            unfinished = list_runs(folder, 1)
            arguments = (
                ("compress", "--resume", str(unfinished[0].path), "-q")
                if unfinished
                else (*COMMAND, "--output-dir", str(folder))
            )
            process = Fork(partial(run_command, *arguments), tmp_path / "command")
            if kills < KILLS:
                kill_later(process, folder, dice.randrange(1, 15), dice.uniform(0, 0.05))
            code = process.wait()
            kills += code == -signal.SIGKILL
            assert code in (0, -signal.SIGKILL), arguments
            if code == 0:
                break
        (run,) = list_runs(folder, 1)
        assert not list(unlike(finished(run), expected))
    record_property("faults: kill -9 of compress", kills)


BASE: dict[str, Any] = {
    "data": {"limit": 60}, "teacher": {"epochs": 1}, "student": {"epochs": 1, "batch_size": 30}, "run": {"threads": 1}
}  # fmt: skip


@pytest.mark.slow
def test_a_sweep_killed_at_every_system_call_of_its_end(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Its cells are done: what is left is to judge them and to write conditions.json and result.json."""
    need_strace()
    base = {**BASE, "run": {"threads": 1, "output_dir": str(tmp_path / "runs")}}
    run = Run(sweep(base, {"noise.sigma": [0.5]}, seeds=1).path)
    kept = {name: (run.path / name).read_bytes() for name in ("conditions.json", "result.json")}
    cells = {path: path.read_bytes() for path in run.path.glob("*/*.safetensors")}
    result, log = timeless(run.result()), tmp_path / "log"

    def again() -> None:
        resume_sweep(Run.open(run.path))

    def unfinished() -> None:
        for name in kept:
            (run.path / name).unlink(missing_ok=True)

    unfinished()
    points = chosen(calls(again, log, f"openat,{MUTATING}") if ALL else calls(again, log, MUTATING), QUICK)
    killed = 0
    for call in points:
        unfinished()
        killed += killed_at(again, log, call).code == -signal.SIGKILL
        assert Run(run.path).state in ("unfinished", "done"), call
        for name, whole in kept.items():
            there = run.path / name
            if name == "conditions.json" and there.exists():
                assert there.read_bytes() == whole, call  # never a part of it
        assert timeless(resume_sweep(Run.open(run.path)).describe()) == result
        assert (run.path / "conditions.json").read_bytes() == kept["conditions.json"]
    assert killed
    assert {path: path.read_bytes() for path in run.path.glob("*/*.safetensors")} == cells
    record_property("faults: kills at a system call", killed)
