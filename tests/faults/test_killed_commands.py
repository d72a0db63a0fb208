"""`compress` killed with SIGKILL again and again, and a sweep's last writes: the end is that of an unbroken run."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from traced_calls import MUTATING, calls, chosen, killed_at, need_strace

from noisyteacher.cli import main
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


def started(*arguments: str) -> int:
    """The command line in a fork of this process, which has torch loaded already; its process number."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        os.setsid()
        sys.stdout = io.StringIO()
        sys.argv = ["noisyteacher", *arguments]
        torch.set_num_threads(1)
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
    finally:
        os._exit(code)


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed(child: int, folder: Path, writes: int, pause: float) -> int:
    """How the process ended: by itself, or killed so long after so many files of the folder were made or replaced."""
    seen = before = {path: path.stat().st_ino for path in folder.rglob("*") if path.is_file()}
    made = 0
    while made < writes:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        with contextlib.suppress(OSError):  # a file that is gone between two looks
            seen = {path: path.stat().st_ino for path in folder.rglob("*") if path.is_file()}
        made += len(seen.items() - before.items())
        before = seen
        time.sleep(0.001)
    time.sleep(pause)
    os.kill(child, signal.SIGKILL)
    return ended(child)


def timeless(value: Any) -> Any:
    """A record without what a clock has put there."""
    if isinstance(value, dict):
        kept = {key: one for key, one in value.items() if not any(part in key for part in TIMES)}
        return {key: timeless(one) for key, one in kept.items()}
    return [timeless(one) for one in value] if isinstance(value, list) else value


def left(run: Run) -> dict[str, Any]:
    """What a finished run holds, byte by byte where no clock is in it."""
    files = sorted(path for path in run.path.rglob("*") if path.is_file())
    files = [path for path in files if "/." not in str(path.relative_to(run.path.parent))]  # of killed writers
    found: dict[str, Any] = {}
    for path in files:
        name = str(path.relative_to(run.path))
        if path.name == "result.json":
            found[name] = timeless(json.loads(path.read_bytes())["result"])
        elif path.suffix == ".safetensors" or path.name == "config.json":
            found[name] = path.read_bytes()
        else:
            found[name] = None
    return found


def unlike(found: Any, expected: Any, name: str = "") -> Iterator[str]:
    """Where two records differ, a line each: a large one is not shown whole when a test fails."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in found.keys() | expected.keys():
            yield from unlike(found.get(key, "nothing"), expected.get(key, "nothing"), f"{name}/{key}")
    elif isinstance(found, bytes) and isinstance(expected, bytes) and name.endswith(".safetensors"):
        if found != expected:
            both = [safetensors.torch.load(one) for one in (found, expected)]
            gaps = {key: float((both[0][key].double() - both[1][key].double()).abs().max()) for key in both[0]}
            yield f"{name}: {len(found)} and {len(expected)} bytes, largest gaps {gaps}"
    elif found != expected:
        yield f"{name}: {found!r:.200} and {expected!r:.200}"


@pytest.mark.slow
def test_compress_killed_at_random_ends_as_if_it_had_not_been(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    folder = tmp_path / "runs"  # the same for all, as config.json names it
    assert ended(started(*COMMAND, "--output-dir", str(folder))) == 0
    expected, dice, kills = left(list_runs(folder, 1)[0]), random.Random(11), 0
    while kills < KILLS:
        shutil.rmtree(folder)
        while True:
            found = list_runs(folder, 1)
            asked = (
                ("compress", "--resume", str(found[0].path), "-q") if found else (*COMMAND, "--output-dir", str(folder))
            )
            child = started(*asked)
            code = None if kills == KILLS else killed(child, folder, dice.randrange(1, 15), dice.uniform(0, 0.05))
            code = ended(child) if code is None else code
            kills += code == -signal.SIGKILL
            assert code in (0, -signal.SIGKILL), asked
            if code == 0:
                break
        (run,) = list_runs(folder, 1)
        assert not list(unlike(left(run), expected))
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
    found = chosen(calls(again, log, f"openat,{MUTATING}") if ALL else calls(again, log, MUTATING), QUICK)
    killed = 0
    for call in found:
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
