"""A sweep whose students are trained many at once: what it would have been one by one, whatever happens."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from helpers import sweep_settings as base
from noisyteacher.errors import UsageError
from noisyteacher.io.tensors import read_tensors
from noisyteacher.runs import Run
from noisyteacher.sweep import resume_sweep, sweep
from noisyteacher.sweep.workers import Cell, stacks


def weights(run: Path) -> dict[str, Any]:
    return read_tensors(run / "weights.safetensors", "model", 1)[0]


def assert_same_students(first: Path, second: Path, count: int) -> None:
    runs = sorted(child.name for child in first.glob("*-seed*"))
    assert len(runs) == count
    for run in runs:
        ours, theirs = weights(first / run), weights(second / run)
        assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) == 0, run
        first_lines, second_lines = [Run.open(where / run).metrics() for where in (first, second)]
        for line, same in zip(first_lines, second_lines, strict=True):
            assert {**line, "seconds": 0} == {**same, "seconds": 0}, run


def test_a_stacked_sweep_equals_one_by_one(tmp_path: Path) -> None:
    grid: dict[str, list[Any]] = {
        "noise.sigma": [0.5],
        "noise.draw": ["batch", "row"],
        "student.loss": ["logit_regression", "soft_targets"],
    }
    calls: list[tuple[str, int, int, str]] = []
    student = {**base(tmp_path)["student"], "precision": "fp32"}  # rounding to bf16 tells the two orders of sums apart
    alone = sweep(base(tmp_path / "a", student=student), grid, seeds=2)
    many = sweep(
        base(tmp_path / "b", student=student), grid, seeds=2, stack=10, progress=lambda *words: calls.append(words)
    )
    assert_same_students(alone.path, many.path, 14)
    assert [condition.name for condition in many.conditions] == [condition.name for condition in alone.conditions]
    for condition, other in zip(many.conditions, alone.conditions, strict=True):
        for role in ("val", "test"):
            ours, theirs = condition.score(role), other.score(role)
            assert ours and theirs  # noqa: PT018
            assert ours.per_seed == theirs.per_seed
    together = [(Run.open(run).result() or {})["training"].get("together") for run in many.path.glob("*-seed*")]
    assert sorted(together) == [4] * 4 + [10] * 10
    assert [note for stage, _, _, note in calls if stage == "sweep"][-1] == "14 of 14 cells done"
    assert resume_sweep(Run.open(many.path), stack=10) == many


def test_one_that_fails_is_listed_and_the_others_go_on(tmp_path: Path) -> None:
    result = sweep(base(tmp_path), {"noise.sigma": [0.5, 1e30]}, seeds=2, stack=8)
    assert set(result.failed) == {"sigma1e30-seed0", "sigma1e30-seed1"}
    assert all(error.startswith("TrainingError: the loss is") for error in result.failed.values())
    assert Run(result.path / "sigma1e30-seed1").state == "failed"
    assert {condition.name: condition.seeds for condition in result.conditions}["sigma0.5"] == (0, 1)


def test_networks_with_dropout_are_as_those_trained_one_by_one(tmp_path: Path) -> None:
    settings = base(tmp_path, student={"epochs": 1, "batch_size": 30, "options": {"dropout": 0.5}})
    together, alone = (sweep(settings, {"noise.sigma": [0.5]}, seeds=2, stack=stack) for stack in (8, 1))
    assert [row.errors for row in together.conditions] == [row.errors for row in alone.conditions]
    for name in ("clean-seed0", "sigma0.5-seed1"):
        runs = [Run(result.path / name).result() or {} for result in (together, alone)]
        assert runs[0]["weights"] == runs[1]["weights"]


def cell(run: str, **student: Any) -> Cell:
    config = {"noise": {"sigma": run}, "student": {"name": "mlp800", "loss": "logit_regression", **student}}
    return Cell("/runs", run, "noisy", 0, config, {"train": "store"}, None)


def test_which_cells_go_together() -> None:
    cells = [cell("a"), cell("b", lr=0.1), cell("c"), cell("d", loss="soft_targets"), cell("e")]
    assert [[cell.name for cell in some] for some in stacks(cells, 3)] == [["a", "c", "d"], ["e"], ["b"]]
    assert [[cell.name for cell in some] for some in stacks(cells, 1)] == [["a"], ["b"], ["c"], ["d"], ["e"]]


def test_wrong_questions(tmp_path: Path) -> None:
    for options, message in (
        ({"stack": 0}, "stack=0"),
        ({"stack": 2, "jobs": 2}, "use only one"),
        ({"stack": 2, "scheduler": "tcp://127.0.0.1:1"}, "use only one"),
    ):
        with pytest.raises(UsageError, match=message):
            sweep(base(tmp_path), {"noise.sigma": [0.5]}, **options)
    settings = base(tmp_path)
    settings["run"]["profile"] = True
    with pytest.raises(UsageError, match=r"run\.profile measures the steps of one student"):
        sweep(settings, {"noise.sigma": [0.5]}, stack=2)
    assert not list(tmp_path.iterdir())


def test_a_stopped_sweep_goes_on_from_the_checkpoints_of_all(tmp_path: Path) -> None:
    settings = base(tmp_path / "whole", student={"name": "compact-xs", "epochs": 2, "batch_size": 32})
    settings["data"] = {"limit": 96}
    settings["run"] |= {"checkpoint_every_s": 0}
    grid = {"noise.sigma": [0.5, 0.9]}
    whole = sweep(settings, grid, seeds=1, stack=4)
    code = f"""if 1:
    from noisyteacher.sweep import sweep
    settings = {settings} | {{"run": {settings["run"] | {"output_dir": str(tmp_path / "cut")}}}}
    sweep(settings, {grid}, seeds=1, stack=4)
    """
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as process:
        try:
            while len(list(tmp_path.glob("cut/[!.]*/*/metrics.jsonl"))) < 3 and process.poll() is None:
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate()
        finally:
            process.kill()
    assert "KeyboardInterrupt" in errors
    (run,) = (tmp_path / "cut").iterdir()
    saved = [child for child in run.glob("*-seed*") if (child / "checkpoint" / "state.safetensors").exists()]
    assert len(saved) == 4, errors
    resume_sweep(Run.open(run), stack=4)
    assert_same_students(run, whole.path, 4)
    assert not list(run.glob("*/checkpoint"))
