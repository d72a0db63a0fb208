"""A sweep whose students are trained many at once: what it would have been one by one, whatever happens."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from noisyteacher.errors import UsageError
from noisyteacher.io.tensors import read_tensors
from noisyteacher.runs import Run
from noisyteacher.sweep import cells as cells_module
from noisyteacher.sweep import resume_sweep, sweep
from noisyteacher.sweep.cells import Cell, stacks
from test_sweep import base


def weights(run: Path) -> dict[str, Any]:
    return read_tensors(run / "weights.safetensors", "model", 1)[0]


def assert_same_students(one: Path, other: Path, count: int) -> None:
    runs = sorted(child.name for child in one.glob("*-seed*"))
    assert len(runs) == count
    for run in runs:
        ours, theirs = weights(one / run), weights(other / run)
        assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-4, run
        left, right = [Run.open(where / run).metrics() for where in (one, other)]
        for line, same in zip(left, right, strict=True):
            assert {**line, "seconds": 0} == pytest.approx({**same, "seconds": 0}, rel=1e-3, abs=1e-4), run


def test_a_stacked_sweep_equals_one_by_one(tmp_path: Path) -> None:
    grid = {
        "noise.sigma": [0.5, 1.0],
        "noise.draw": ["batch", "row"],
        "student.loss": ["logit_regression", "soft_targets"],
    }
    told: list[tuple[str, int, int, str]] = []
    student = {**base(tmp_path)["student"], "precision": "fp32"}  # rounding to bf16 tells the two orders of sums apart
    alone = sweep(base(tmp_path / "a", student=student), grid, seeds=2)
    many = sweep(
        base(tmp_path / "b", student=student), grid, seeds=2, stack=15, progress=lambda *words: told.append(words)
    )
    assert_same_students(alone.path, many.path, 22)
    assert [one["name"] for one in many.conditions] == [one["name"] for one in alone.conditions]
    for one, other in zip(many.conditions, alone.conditions, strict=True):
        for part in ("val_error_%", "test_error_%"):
            assert one[part]["per_seed"] == pytest.approx(other[part]["per_seed"], abs=100 / 60 + 1e-6)
    together = [(Run.open(run).result() or {})["training"].get("together") for run in many.path.glob("*-seed*")]
    assert sorted(together) == [7] * 7 + [15] * 15
    assert [note for stage, _, _, note in told if stage == "sweep"][-1] == "22 of 22 cells done"
    assert resume_sweep(Run.open(many.path), stack=15).record == many.record


def test_one_that_fails_is_listed_and_the_others_go_on(tmp_path: Path) -> None:
    result = sweep(base(tmp_path), {"noise.sigma": [0.5, 1e30]}, seeds=2, stack=8)
    assert {one["run"] for one in result.failed} == {"sigma1e30-seed0", "sigma1e30-seed1"}
    assert all(one["error"].startswith("TrainingError: the loss is") for one in result.failed)
    assert Run(result.path / "sigma1e30-seed1").state == "failed"
    assert {one["name"]: one["seeds"] for one in result.conditions}["sigma0.5"] == [0, 1]


def test_networks_with_dropout_say_so_and_go_on_one_by_one(tmp_path: Path) -> None:
    given = base(tmp_path, student={"epochs": 1, "batch_size": 30, "options": {"dropout": 0.5}})
    result = sweep(given, {"noise.sigma": [0.5]}, stack=3)
    assert len(result.failed) == 3
    assert all("draws random numbers (dropout); train such models one by one" in one["error"] for one in result.failed)
    assert not resume_sweep(Run.open(result.path)).failed


def test_a_defect_in_one_cell_is_a_failure_of_that_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = cells_module.its_training

    def broken(plan: Any, run: str, *rest: Any) -> Any:
        if run == "clean-seed0":
            raise RuntimeError("the disk has melted")
        return real(plan, run, *rest)

    monkeypatch.setattr(cells_module, "its_training", broken)
    result = sweep(base(tmp_path), {"noise.sigma": [0.5]}, stack=3)
    assert [(one["run"], one["error"]) for one in result.failed] == [
        ("clean-seed0", "RuntimeError: the disk has melted")
    ]


def cell(run: str, **student: Any) -> Cell:
    config = {"noise": {"sigma": run}, "student": {"name": "mlp800", "loss": "logit_regression", **student}}
    return Cell("/runs", run, run, "noisy", 0, config, {"train": "store"}, None)


def test_which_cells_go_together() -> None:
    cells = [cell("a"), cell("b", lr=0.1), cell("c"), cell("d", loss="soft_targets"), cell("e")]
    assert [[one.run for one in some] for some in stacks(cells, 3)] == [["a", "c", "d"], ["e"], ["b"]]
    assert [[one.run for one in some] for some in stacks(cells, 1)] == [["a"], ["b"], ["c"], ["d"], ["e"]]


def test_wrong_questions(tmp_path: Path) -> None:
    for options, message in (
        ({"stack": 0}, "stack=0"),
        ({"stack": 2, "jobs": 2}, "give one of them"),
        ({"stack": 2, "scheduler": "tcp://127.0.0.1:1"}, "give one of them"),
    ):
        with pytest.raises(UsageError, match=message):
            sweep(base(tmp_path), {"noise.sigma": [0.5]}, **options)
    given = base(tmp_path)
    given["run"]["profile"] = True
    with pytest.raises(UsageError, match=r"run\.profile measures the steps of one student"):
        sweep(given, {"noise.sigma": [0.5]}, stack=2)
    assert not list(tmp_path.iterdir())


def test_a_stopped_sweep_goes_on_from_the_checkpoints_of_all(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "noisyteacher", "sweep", "--quiet"]
    asked = ["--grid", "noise.sigma=0.5,0.9", "--seeds", "2", "--epochs", "3", "--student", "compact-xs",
             "--set", "teacher.epochs=1", "--set", "data.limit=128", "--set", "run.checkpoint_every_s=0",
             "--threads", "1", "--stack", "8"]  # fmt: skip
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    subprocess.run([*words, *asked, "--output-dir", str(whole)], check=True, capture_output=True, timeout=300)
    process = subprocess.Popen([*words, *asked, "--output-dir", str(cut)], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len(list(cut.glob("[!.]*/*/metrics.jsonl"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    (run,) = cut.iterdir()
    left = [child for child in run.glob("*-seed*") if (child / "checkpoint" / "state.safetensors").exists()]
    assert len(left) == 8, told
    subprocess.run([*words, "--resume", str(run), "--stack", "8"], check=True, capture_output=True, timeout=300)
    (other,) = whole.iterdir()
    assert_same_students(run, other, 8)
    assert not list(run.glob("*/checkpoint"))
