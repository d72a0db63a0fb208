"""Two workers with one cell: the second waits for the first, and takes over when the first is killed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from noisyteacher.runs import Run
from noisyteacher.sweep import sweep
from noisyteacher.sweep.spec import expand
from noisyteacher.sweep.workers import Cell, cell_of, train_cell

EPOCHS = 60


def a_cell(folder: Path) -> Cell:
    """A cell of a sweep whose teacher is there, long enough to be stopped in."""
    base: dict[str, Any] = {
        "data": {"limit": 40}, "teacher": {"epochs": 1},
        "student": {"name": "mlp800", "epochs": 1, "batch_size": 20, "views": ["clean"]},
        "run": {"threads": 1, "output_dir": str(folder)},
    }  # fmt: skip
    run = Run(sweep(base, {"noise.sigma": [0.5]}, seeds=1).path)
    longer = {**base, "student": {**base["student"], "epochs": EPOCHS}}
    (condition,) = [
        condition for condition in expand(longer, [{"noise.sigma": [0.5]}])[0] if condition.kind == "labels"
    ]
    stores = {
        role: f"logits/{path.name}"
        for path in (run.path / "logits").iterdir()
        for role in ("train", "val", "test")
        if f"-{role}-" in path.name
    }
    cell = cell_of(condition, 7, run, stores, 1)
    assert not cell.path.exists()
    return cell


def worker(cell: Cell) -> int:
    """A process that trains the cell; its exit code is 0 when that went well."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        torch.set_num_threads(1)
        code = 0 if train_cell(cell) is None else 1
    finally:
        os._exit(code)


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def until(met: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end
        time.sleep(0.01)


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file with its time: one that was replaced by the same bytes would show."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.mark.slow
def test_a_worker_keeps_its_cell_while_it_runs(tmp_path: Path) -> None:
    """The second worker waits, even for a first that stands still, and trains nothing."""
    cell = a_cell(tmp_path)
    first = worker(cell)
    until(lambda: (cell.path / "metrics.jsonl").exists())
    os.kill(first, signal.SIGSTOP)
    before = contents(cell.path)
    second = worker(cell)
    try:
        time.sleep(4)
        assert os.waitpid(second, os.WNOHANG) == (0, 0)
        assert contents(cell.path) == before
        assert Run(cell.path).state == "unfinished"
    finally:
        os.kill(first, signal.SIGCONT)
    assert ended(first) == 0
    done = contents(cell.path)
    assert ended(second) == 0
    assert contents(cell.path) == done


@pytest.mark.slow
def test_the_cell_of_a_killed_worker_is_free_at_once(tmp_path: Path) -> None:
    cell = a_cell(tmp_path)
    first = worker(cell)
    until(lambda: (cell.path / "metrics.jsonl").exists())
    os.kill(first, signal.SIGKILL)
    assert ended(first) == -signal.SIGKILL
    assert Run(cell.path).state == "unfinished"
    assert ended(worker(cell)) == 0
    assert Run(cell.path).state == "done"
    assert len(Run(cell.path).metrics()) == EPOCHS
