"""The outcome of a compression as a record and in words."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import made_runs
from helpers import Call
from noisyteacher.errors import FileFormatError
from noisyteacher.pipeline import Result
from noisyteacher.pipeline.results import Estimate
from noisyteacher.report import build_report
from noisyteacher.runs import Run, list_runs


def read(run: Run) -> Result:
    return Result.read(run.path, run.result() or {})


def test_a_result_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    result = read(made_runs.compression(tmp_path))
    assert result.rows[0].costs is not None
    assert result.rows[0].costs.layers[0].output_shape == (4, 8, 8)
    assert [row.kind for row in result.rows] == ["teacher", "labels", "clean", "noisy"]
    assert result.conditions[2].against_clean["test"].mean == pytest.approx(-0.983, abs=0.001)
    warned = replace(result, warnings=("the teacher is worse than a student on labels",))
    assert Result.read(result.path, warned.describe()) == warned


def test_a_result_of_an_earlier_version_is_refused_but_still_listed(tmp_path: Path, call: Call) -> None:
    run = made_runs.compression(tmp_path)
    record = run.result() or {}
    record["best"] = {"run": "clean-seed1"}
    run.write_result({key: value for key, value in record.items() if key != "schema"})
    with pytest.raises(FileFormatError, match=r"result\.json: written by an earlier version .*run it again"):
        read(run)
    with pytest.raises(FileFormatError, match="written by an earlier version"):
        build_report(run)
    assert [(listed.path.name, listed.state) for listed in list_runs(tmp_path, 1)] == [(run.path.name, "done")]
    code, listing, _ = call("runs", "ls", "--output-dir", str(tmp_path))
    error = next(row["scores"]["test"]["error"] for row in record["conditions"] if "clean-seed1" in row["runs"])
    assert (code, run.path.name in listing, f"{error['per_seed'][1]:.2f}" in listing) == (0, True, True)
    run.write_result({"conditions": [{"errors": [15.0]}]})  # of a version that none of this one's names
    assert call("runs", "ls", "--output-dir", str(tmp_path))[0] == 0


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"conditions": 3}, "conditions"),
        ({"n": {"test": "many"}}, "n.test"),
        ({"teachers": [{"name": "teacher"}]}, "teachers.0.title"),
    ],
)
def test_a_result_of_another_shape_is_refused_by_name(tmp_path: Path, change: dict[str, Any], where: str) -> None:
    run = made_runs.compression(tmp_path)
    run.write_result({**(run.result() or {}), **change})
    with pytest.raises(FileFormatError, match=rf"result\.json: not the result of a compress run \({where}"):
        read(run)


def test_the_table_says_lower_bound_where_operations_were_not_counted(tmp_path: Path) -> None:
    result = read(made_runs.compression(tmp_path))
    (teacher,) = result.teachers
    assert teacher.costs is not None
    unknown = replace(teacher, costs=replace(teacher.costs, unsupported=("model: op",)))
    result = replace(result, teachers=(unknown,))
    assert ">= 20 k" in str(result)
    assert result.gains()["macs"] is None
    assert "MACs not comparable" in result.compression_verdict()


def test_an_estimate_needs_a_finite_number_for_each_seed() -> None:
    assert Estimate.of([]) is None
    assert Estimate.of([1.0, None]) is None
    assert Estimate.of([1.0, float("nan")]) is None
    single = Estimate.of([0.5], "nats")
    assert single is not None
    assert (single.mean, single.low, single.n, single.per_seed, single.unit) == (0.5, None, 1, (0.5,), "nats")
    assert str(Estimate.of([1.0, 2.0, 3.0])) == "2.00 [0.00, 4.48]"


def intervals(text: str) -> list[float]:
    """The bounds of all intervals in a text, in square brackets."""
    return [float(bound) for pair in re.findall(r"\[(-?[\d.]+), (-?[\d.]+)\]", text) for bound in pair]


def test_two_seeds_that_disagree_have_no_interval_anywhere(tmp_path: Path) -> None:
    errors = {"labels": [48.0, 68.0], "clean": [1.0, 3.0], "noisy": [2.0, 2.5]}
    result = read(made_runs.compression(tmp_path, seeds=2, errors=errors))
    text = str(result)
    assert "[no interval]" in text
    assert "no interval: it would be wider than 0 to 100 %; run more seeds" in text
    assert intervals(text)
    assert all(0 <= bound <= 100 for bound in intervals(text))
    labels, _, noisy = (row.error for row in result.conditions)
    assert labels is not None
    assert noisy is not None
    assert (labels.low, labels.high, labels.mean) == (None, None, 58.0)
    assert noisy.low == 0.0
    page = build_report([result.path], "md")
    assert "no interval" in page
    assert "58.00" in page
    assert all(-100 <= bound <= 100 for bound in intervals(page.replace("\u2212", "-")))
