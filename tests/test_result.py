"""The outcome of a compression as a record and in words."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import made_runs
from noisyteacher.pipeline import Result
from noisyteacher.report import build_report


def test_warnings_are_kept_and_may_be_missing_in_old_results(tmp_path: Path) -> None:
    run = made_runs.compression(tmp_path)
    record = run.result()
    assert record is not None
    assert "warnings" not in record
    old = Result.read(run.path, record)
    assert old.warnings == ()
    warned = replace(old, warnings=("the teacher is worse than a student on labels",))
    again = Result.read(run.path, warned.describe())
    assert again.warnings == ("the teacher is worse than a student on labels",)


def intervals(text: str) -> list[float]:
    """The bounds of all intervals in a text, in square brackets."""
    return [float(bound) for pair in re.findall(r"\[(-?[\d.]+), (-?[\d.]+)\]", text) for bound in pair]


def test_two_seeds_that_disagree_have_no_interval_anywhere(tmp_path: Path) -> None:
    run = made_runs.compression(tmp_path, seeds=2)
    record = run.result()
    assert record is not None
    for row, errors in zip(record["rows"][1:], ([48.0, 68.0], [1.0, 3.0], [2.0, 2.5]), strict=True):
        row["error_%"] = made_runs.spread(errors)
    run.write_result(record)
    result = Result.read(run.path, record)
    text = str(result)
    assert "[no interval]" in text
    assert "no interval: it would be wider than 0 to 100 %; run more seeds" in text
    assert intervals(text)
    assert all(0 <= bound <= 100 for bound in intervals(text))
    spans = [row["error_%"] for row in result.describe()["rows"]]
    assert (spans[1]["low"], spans[1]["high"], spans[1]["mean"]) == (None, None, 58.0)
    assert spans[3]["low"] == 0.0
    page = build_report([run.path], "md")
    assert "no interval" in page
    assert "58.00" in page
    assert all(-100 <= bound <= 100 for bound in intervals(page.replace("\u2212", "-")))
