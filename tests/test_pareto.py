"""scripts/pareto.py on few images: every student beside the paper's number, its costs, and resuming."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

import noisyteacher as nt
from noisyteacher.runs import Run, list_runs

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "pareto.py"


def script() -> Any:
    spec = importlib.util.spec_from_file_location("pareto", SCRIPT)
    assert spec is not None and spec.loader is not None  # noqa: PT018
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_papers_best_stands_beside_the_student_of_its_size() -> None:
    best = script().best_of_paper
    assert [best(name) for name in ("compact-xs", "student3")] == [21.01, 21.01]
    assert [best(name) for name in ("compact-s", "student2")] == [19.28, 19.28]
    assert [best(name) for name in ("compact-m", "student1")] == [15.65, 15.65]
    assert best("nin") is None


def test_epochs_of_one_student() -> None:
    pareto = script()
    words = ["t", "--students", "student3", "compact-xs", "--epochs-of"]
    assert pareto._grids(pareto._parser().parse_args([*words, "compact-xs=7"])) == [
        {"student.name": ["student3"], "noise.sigma": [0.0]},
        {"student.name": ["compact-xs"], "student.epochs": [7], "noise.sigma": [0.0]},
    ]
    for wrong in ("compact-m=3", "compact-xs=0", "compact-xs"):
        with pytest.raises(SystemExit, match=wrong.partition("=")[0]):
            pareto._grids(pareto._parser().parse_args([*words, wrong]))


def test_the_table_and_going_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = nt.load_data("mnist-5k", limit=60)
    teacher = nt.build_model("lenet", data)
    nt.save_model(teacher, tmp_path / "teacher.safetensors")
    common = ["--output-dir", str(tmp_path / "runs"), "--quiet"]
    file = str(tmp_path / "teacher.safetensors")
    settings = ["--set", "student.lr=0.002", "--set", "run.checks=false"]  # the teacher is not trained
    words = [file, "--data", "mnist-5k", "--limit", "60", "--epochs", "1", "--seeds", "2",
             "--students", "student3", "compact-xs", *settings, *common]  # fmt: skip
    main = script().main
    main(words)
    table = capsys.readouterr().out
    assert "compact-xs" in table
    assert "21.01" in table
    (run,) = list_runs(tmp_path / "runs", 1)
    (run.path / "result.json").unlink()
    main(["--resume", run.id, "--json", *common])
    output = json.loads(capsys.readouterr().out)
    rows = {(row["student"], row["kind"]): row for row in output["points"]}
    assert set(rows) == {(name, kind) for name in ("student3", "compact-xs") for kind in ("labels", "clean")}
    recipe = Run.open(run.path / "clean-compact-xs-seed0").config["recipe"]
    assert (recipe["optimizer"], recipe["lr"]) == ("adamw", 0.002)
    costs = nt.measure(nt.build_model("compact-xs", data), latency=False)
    row = rows["compact-xs", "clean"]
    assert (row["macs"], row["parameters"], row["bytes"]) == (costs.macs, costs.parameters, costs.bytes)
    assert data.test is not None
    errors = []
    for seed in (0, 1):
        student = nt.load_model(run.path / f"clean-compact-xs-seed{seed}" / "weights.safetensors")
        error = nt.evaluate(student, data.test).error
        assert error is not None
        errors.append(float(error))
    assert row["error_%"]["mean"] == pytest.approx(sum(errors) / 2)
    assert row["against_paper_points"] == pytest.approx(row["error_%"]["mean"] - 21.01)
