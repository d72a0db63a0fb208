"""A worker that stands still loses its cell to another, and drops what it has done when it wakes."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from noisyteacher.checkpoint import NAME as CHECKPOINT
from noisyteacher.checkpoint import drop_checkpoint
from noisyteacher.runs import Run
from noisyteacher.sweep import claims, sweep
from noisyteacher.sweep.cells import Cell, cell_of, train_cell
from noisyteacher.sweep.grid import expand

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
    (condition,) = [one for one in expand(longer, [{"noise.sigma": [0.5]}])[0] if one.kind == "labels"]
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
        claims.BEAT_S, claims.PATIENCE_S, claims.WAIT_S = 0.05, 1.0, 0.05
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
def test_a_stalled_worker_that_wakes_late_discards_its_result(tmp_path: Path) -> None:
    cell = a_cell(tmp_path)
    first = worker(cell)
    until(
        lambda: (
            (cell.path / "metrics.jsonl").exists() and len((cell.path / "metrics.jsonl").read_bytes().splitlines()) > 2
        )
    )
    os.kill(first, signal.SIGSTOP)
    try:
        assert Run(cell.path).state == "unfinished"
        assert ended(worker(cell)) == 0  # takes the cell over, though the first still holds the folder's lock
        done = contents(cell.path)
        assert Run(cell.path).state == "done"
    finally:
        os.kill(first, signal.SIGCONT)
    assert ended(first) == 0  # it found the cell done
    assert contents(cell.path) == done
    assert len(Run(cell.path).metrics()) == EPOCHS
    assert not [path for path in Path(cell.folder).iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_a_worker_that_is_at_work_keeps_its_cell(tmp_path: Path) -> None:
    """The second waits for as long as the first gives signs, and trains nothing."""
    cell = a_cell(tmp_path)
    first = worker(cell)
    until(lambda: (cell.path / "metrics.jsonl").exists())
    second = worker(cell)
    assert ended(first) == 0
    done = contents(cell.path)
    assert ended(second) == 0
    assert contents(cell.path) == done


def test_a_sign_that_fails_does_not_cost_a_worker_its_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "BEAT_S", 0.02)
    signs: list[object] = []

    def failing(handle: int) -> None:
        signs.append(handle)
        if len(signs) == 1:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(claims.os, "utime", failing)
    (tmp_path / "a-seed0").mkdir()
    with claims.claimed(tmp_path / "a-seed0"):
        until(lambda: len(signs) > 3, 10)


def test_what_is_removed_after_the_claim_was_lost_stays(tmp_path: Path) -> None:
    run = tmp_path / "a-seed0"
    (run / CHECKPOINT.parent).mkdir(parents=True)
    (run / CHECKPOINT).write_text("its successor's")
    (run / "error.txt").write_text("its successor's")
    for remove in (lambda: drop_checkpoint(run), Run(run).clear_error):

        def stalled(remove: Any = remove) -> None:
            with claims.claimed(run):
                (tmp_path / ".a-seed0.claim").unlink()
                remove()

        with pytest.raises(claims.LostError, match="was given to another worker"):
            stalled()
    assert (run / CHECKPOINT).read_text() == (run / "error.txt").read_text() == "its successor's"
    drop_checkpoint(run)
    assert not (run / CHECKPOINT).exists()


def test_a_write_after_the_claim_was_lost_leaves_the_file(tmp_path: Path) -> None:
    run = tmp_path / "a-seed0"
    run.mkdir()
    Run(run).write_error("before")

    def stalled() -> None:
        with claims.claimed(run):
            (tmp_path / ".a-seed0.claim").unlink()
            Run(run).write_error("after")

    with pytest.raises(claims.LostError, match="was given to another worker"):
        stalled()
    assert Run(run).error() == "before\n"
    assert [path.name for path in run.iterdir()] == ["error.txt"]
    with claims.claimed(run):
        Run(run).write_error("after")
    assert Run(run).error() == "after\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a-seed0"]
