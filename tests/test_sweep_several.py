"""Sweeps over several data sets and teachers: whose numbers they are is never mixed up."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from noisyteacher.errors import UsageError
from noisyteacher.measure import measure
from noisyteacher.models import load_model
from noisyteacher.report import build_report
from noisyteacher.runs import Run
from noisyteacher.sweep import SweepResult, partial_result, sweep

RNG = np.random.default_rng(0)


def drawn(folder: Path, name: str, side: int = 8, val: int = 20, test: int = 30) -> str:
    """A file of random images of three classes."""
    sizes = {"train": 60, "val": val, "test": test}
    arrays: dict[str, Any] = {}
    for role, count in sizes.items():
        if count:
            arrays[f"x_{role}"] = RNG.integers(0, 256, (count, side, side), dtype=np.uint8)
            arrays[f"y_{role}"] = np.arange(count) % 3
    np.savez(folder / f"{name}.npz", **arrays)
    return str(folder / f"{name}.npz")


def swept(folder: Path, grid: dict[str, list[Any]], seeds: int = 2, **base: Any) -> SweepResult:
    settings: dict[str, Any] = {
        "data": {"name": "mnist-5k"},
        "teacher": {"name": "mlp800", "epochs": 1},
        "student": {"name": "mlp800", "epochs": 1, "batch_size": 30},
        "noise": {"sigma": 0.0, "alpha": 0.5},
        "run": {"threads": 1, "output_dir": str(folder / "runs"), "baselines": False},
        **base,
    }
    return sweep(settings, grid, seeds=seeds)


def rows(result: SweepResult) -> dict[str, dict[str, str]]:
    lines = csv.DictReader(io.StringIO(build_report(result.path, "csv")))
    return {row["title"]: row for row in lines}


def test_every_condition_has_the_size_of_its_own_data(tmp_path: Path) -> None:
    files = [drawn(tmp_path, "small", test=30), drawn(tmp_path, "large", test=90)]
    result = swept(tmp_path, {"noise.sigma": [0.5], "data.name": files}, seeds=1)
    notes = " ".join(result.notes())
    assert "small: train n = 60, val n = 20, test n = 30 images" in notes
    assert "large: train n = 60, val n = 20, test n = 90 images" in notes
    lines = list(csv.DictReader(io.StringIO(build_report(result.path, "csv"))))
    sizes = {(row["data"], row["n"]) for row in lines}
    assert sizes == {("small", "30"), ("large", "90")}
    for row in lines:
        assert row["interval"] == "wilson"
        wide = float(row["error_high_%"]) - float(row["error_low_%"])
        assert (wide > 25) == (row["data"] == "small"), "Wilson's interval narrows with the images"


def test_networks_for_images_of_different_sizes_have_their_own_costs(tmp_path: Path) -> None:
    files = [drawn(tmp_path, "eight"), drawn(tmp_path, "sixteen", side=16)]
    result = swept(tmp_path, {"noise.sigma": [0.5], "data.name": files}, seeds=1)
    assert (
        len({condition.costs for condition in result.conditions})
        == len({condition.costs for condition in result.teachers})
        == 2
    )
    lines = list(csv.DictReader(io.StringIO(build_report(result.path, "csv"))))
    for row in lines:
        folder = result.path / (row["line"] if row["line_kind"] == "teacher" else f"{row['line']}-seed0")
        measured = measure(load_model(folder / "weights.safetensors"), device="cpu")
        assert (int(row["parameters"]), int(row["macs"])) == (measured.parameters, measured.macs), row["title"]
    assert len({row["parameters"] for row in lines}) == 2


def test_students_narrowed_from_two_teachers_have_their_own_costs(tmp_path: Path) -> None:
    pytest.importorskip("torch_pruning", reason="needs the extra prune")
    grid: dict[str, list[Any]] = {"noise.sigma": [0.5], "teacher.options.width": [0.25, 0.5]}
    student = {"name": "shrink:0.5", "epochs": 1, "batch_size": 30}
    teacher = {"name": "compact-xs", "epochs": 1}
    result = swept(tmp_path, grid, seeds=1, data={"name": drawn(tmp_path, "eight")}, student=student, teacher=teacher)
    for condition in result.conditions:
        measured = measure(load_model(result.path / condition.runs[0] / "weights.safetensors"), device="cpu")
        assert condition.costs is not None
        assert condition.costs.parameters == measured.parameters, condition.title
    assert len({condition.costs.parameters for condition in result.conditions if condition.costs}) == 2


@pytest.mark.parametrize("first", ["tested", "untested"])
def test_a_difference_is_of_the_split_that_it_says(tmp_path: Path, first: str) -> None:
    files = {"tested": drawn(tmp_path, "tested"), "untested": drawn(tmp_path, "untested", test=0)}
    order = [files[first], files[{"tested": "untested", "untested": "tested"}[first]]]
    result = swept(tmp_path, {"noise.sigma": [0.9], "data.name": order})
    table = result.table()
    assert table.headers[4] == "error - clean"
    for condition, line in zip(result.conditions, table.rows, strict=True):
        if condition.kind == "noisy":
            assert f"({condition.role})" in line[4]
            assert condition.against_clean[condition.role].mean == pytest.approx(float(line[4].split()[0]), abs=0.006)
    alone = swept(tmp_path, {"noise.sigma": [0.9]}, data={"name": files[first]})
    assert alone.table().headers[4] == {"tested": "test - clean", "untested": "val - clean"}[first]


def test_teachers_are_told_apart_from_each_other_and_from_students(tmp_path: Path) -> None:
    file = drawn(tmp_path, "one")
    grid: dict[str, list[Any]] = {"noise.sigma": [0.5], "teacher.epochs": [1, 2], "student.epochs": [1, 2]}
    result = swept(tmp_path, grid, seeds=1, data={"name": file})
    labels = [condition.title for condition in result.conditions]
    assert len(set(labels)) == len(labels) == 8
    assert {"clean", "clean, epochs 2", "clean, teacher epochs 2", "clean, teacher epochs 2, epochs 2"} <= set(labels)
    notes = " ".join(result.notes())
    for teacher in result.teachers:
        settings = next(condition.settings for condition in result.conditions if condition.teacher == teacher.name)
        assert f"Teacher mlp800 (epochs {settings['teacher.epochs']}): {teacher.errors[0]:.2f} %" in notes
    assert {"teacher mlp800 (epochs 1)", "teacher mlp800 (epochs 2)"} <= set(rows(result))


def test_sigmas_that_look_alike_have_labels_of_their_own(tmp_path: Path) -> None:
    result = swept(tmp_path, {"noise.sigma": [0.1234567, 0.1234568]}, seeds=1, data={"name": drawn(tmp_path, "one")})
    assert len({condition.title for condition in result.conditions}) == 3


def test_what_is_done_partial_result_names_what_failed_and_every_teacher(tmp_path: Path) -> None:
    files = [drawn(tmp_path, "small", test=30), drawn(tmp_path, "large", test=90)]
    result = swept(tmp_path, {"noise.sigma": [0.5], "data.name": files}, seeds=2)
    run = Run.open(result.path)
    noisy = next(condition for condition in result.conditions if condition.kind == "noisy")
    cell = Run.open(run.path / f"{noisy.name}-seed1")
    (cell.path / "result.json").unlink()
    (run.path / "result.json").unlink()
    cell.write_error("TrainingError: the loss is nan")
    part = partial_result(run)
    assert part.failed == {f"{noisy.name}-seed1": "TrainingError: the loss is nan"}
    assert part.data == "small"
    notes = " ".join(part.notes())
    assert "small: val n = 20, test n = 30 images" in notes
    assert "large: val n = 20, test n = 90 images" in notes


@pytest.mark.parametrize("seeds", [0, -2, 1.5, True])
def test_seeds_that_are_no_number_of_them_are_refused(tmp_path: Path, seeds: Any) -> None:
    with pytest.raises(UsageError, match=r"seeds=.*whole number >= 1"):
        swept(tmp_path, {"noise.sigma": [0.5]}, seeds=seeds)
