"""The outcome of a compression as a record and in words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import made_runs
from noisyteacher.pipeline import Result


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
