"""Two workers with one cell: the second waits for the first, and takes over when the first is killed."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from helpers import Fork, wait_until
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
    assert not cell.run.path.exists()
    return cell


def worker(cell: Cell, output: Path) -> Fork:
    """A process that trains the cell."""

    def train() -> None:
        message = train_cell(cell)
        assert message is None, message

    return Fork(train, output)


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file with its time: one that was replaced by the same bytes would show."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.mark.slow
def test_a_worker_keeps_its_cell_while_it_runs(tmp_path: Path) -> None:
    """The second worker waits, even for a first that stands still, and trains nothing."""
    cell = a_cell(tmp_path)
    first = worker(cell, tmp_path / "first")
    wait_until(lambda: first.ended() or (cell.run.path / "metrics.jsonl").exists())
    first.kill(signal.SIGSTOP)
    before = contents(cell.run.path)
    second = worker(cell, tmp_path / "second")
    try:
        time.sleep(4)
        assert not second.ended()
        assert contents(cell.run.path) == before
        assert cell.run.state == "unfinished"
    finally:
        first.kill(signal.SIGCONT)
    assert first.wait() == 0
    done = contents(cell.run.path)
    assert second.wait() == 0
    assert contents(cell.run.path) == done


@pytest.mark.slow
def test_the_cell_of_a_killed_worker_is_free_at_once(tmp_path: Path) -> None:
    cell = a_cell(tmp_path)
    first = worker(cell, tmp_path / "first")
    wait_until(lambda: first.ended() or (cell.run.path / "metrics.jsonl").exists())
    first.kill()
    assert first.wait() == -signal.SIGKILL
    assert cell.run.state == "unfinished"
    assert worker(cell, tmp_path / "second").wait() == 0
    assert cell.run.state == "done"
    assert len(cell.run.metrics()) == EPOCHS
