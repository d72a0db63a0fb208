"""The time of a compression: what it needs, what fits into its minutes, what was decided, what is told of it."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

import noisyteacher as nt
from noisyteacher.config import build_config
from noisyteacher.errors import FileFormatError
from noisyteacher.pipeline import compress_config, compression, pacing, resume_compress
from noisyteacher.pipeline.budget import FILE, Budget, Speeds, Work, fitted, needed
from noisyteacher.pipeline.pacing import Forecast, in_words
from noisyteacher.pipeline.plan import lasting
from noisyteacher.pipeline.timing import epoch_seconds, training_seconds
from noisyteacher.runs import Run, new_run
from noisyteacher.text import rough_duration

WORK = Work(20, 20, 6, tries=3)
SPEEDS = Speeds(5.0, 7.0, (2.0, 4.0, 1.0), 3.0)


def test_what_the_work_needs_is_added_up_stage_by_stage() -> None:
    stages = needed(WORK, SPEEDS)
    # the student is not known yet: as slow as the slowest of those that are tried
    assert (stages.teacher, stages.logits, stages.search, stages.noise) == (100, 7, (10, 20, 5), 0)
    assert (stages.students, stages.end) == (6 * 20 * 4, 3)
    assert stages.total == 100 + 7 + 35 + 480 + 3
    assert needed(replace(WORK, tries=1), SPEEDS).students == 6 * 20 * 2
    assert needed(replace(WORK, noise_runs=10, noise_epochs=3), SPEEDS).noise == 10 * 3 * 4
    assert needed(replace(WORK, try_epochs=2), SPEEDS).search == (4, 8, 2)


def test_time_enough_changes_nothing() -> None:
    assert fitted(WORK, SPEEDS, needed(WORK, SPEEDS).total) == WORK


def test_fewer_networks_are_tried_where_less_than_half_of_the_epochs_would_be_left() -> None:
    work, speeds = Work(0, 20, 1, tries=3), Speeds(0.0, 0.0, (2.0, 2.0, 2.0))
    assert fitted(work, speeds, 38.0) == replace(work, student_epochs=10)  # 3 tries of 2 epochs, then 10: 32 s
    assert fitted(work, speeds, 28.5) == replace(work, student_epochs=10, tries=2)
    assert fitted(work, speeds, 12.0) == replace(work, student_epochs=5, tries=1)
    assert fitted(work, speeds, 0.0) == replace(work, student_epochs=1, tries=1)


def test_what_fits_is_never_longer_than_the_time_and_grows_with_it() -> None:
    for tries, runs, try_epochs in product((0, 1, 4), (0, 6), (None, 3)):
        work = Work(30, 20, 3, tries, try_epochs, runs)
        speeds = Speeds(3.0, 5.0, (1.0, 0.5, 2.0, 1.5), 2.0)
        least = needed(fitted(work, speeds, 0.0), speeds).total
        before = 0
        for seconds in range(10, 400, 13):
            plan = fitted(work, speeds, seconds)
            assert min(plan.teacher_epochs, plan.student_epochs) >= 1
            assert needed(plan, speeds).total <= max(seconds, least)
            assert plan.student_epochs >= before or plan.tries > 1
            before = plan.student_epochs


def test_a_decision_is_kept_for_whoever_goes_on_with_the_run(tmp_path: Path) -> None:
    run, now = new_run(tmp_path, "compress", "x", {}), [100.0]
    first = Budget.of(run, 5.0, lambda: now[0], started=40.0)
    assert first.left() == 0.95 * 240
    decided = first.decide("begin", WORK, SPEEDS)
    assert decided.teacher_epochs < 20
    now[0] = 7.0  # another machine, whose clock begins anew, ten times as fast
    again = Budget.of(run, 5.0, lambda: now[0], started=5.0)
    fast = Speeds(0.5, 0.7, (0.2, 0.4, 0.1))
    assert again.decide("begin", WORK, fast) == decided
    assert again.speeds("begin") == SPEEDS
    assert again.spent == 62.0
    assert again.decide("search", WORK, fast) == WORK
    assert Budget.of(run, None, lambda: 0.0, 0.0).decide("begin", WORK, SPEEDS) == WORK
    text = (run.path / FILE).read_text()
    (run.path / FILE).write_text(text.replace("begin", "begun"))
    with pytest.raises(FileFormatError, match=r"plan\.json"):
        Budget.of(run, 5.0, lambda: 0.0, 0.0)


def test_the_time_left_is_told_with_every_step() -> None:
    now, notes = [0.0], []
    forecast = Forecast(lambda *told: notes.append(told[-1]), lambda: now[0], (60.0, 30.0, 100.0))
    forecast("[1/3] teacher", 0, 100, "epoch 1")
    now[0] = 2.0
    forecast("[1/3] teacher", 5, 100, "epoch 1")  # too early to say anything of its speed
    now[0] = 12.0
    forecast("[1/3] teacher", 10, 100, "epoch 1")  # a tenth took 12 s: it is twice as slow as was measured
    now[0] = 100.0
    forecast("[3/3] student", 0, 9, "")  # the second was done in an earlier run
    forecast("something else", 0, 9, "as it is")
    assert [note.partition(", about ")[2] for note in notes] == [
        "3 min left in all", "3 min left in all", "4 min left in all", "2 min left in all", "",
    ]  # fmt: skip
    assert notes[-1] == "as it is"
    assert forecast.left("[1/3] teacher", 0.05) == 0.95 * 60 + 130


def test_the_estimate_is_one_line() -> None:
    assert in_words(needed(WORK, SPEEDS)) == (
        "about 10 min: teacher 2 min, logits 7 s, search 35 s, students 8 min, export 3 s"
    )
    assert [rough_duration(one) for one in (0.2, 41, 90, 5399, 5400)] == ["1 s", "40 s", "2 min", "90 min", "1.5 h"]


def test_a_warm_up_shrinks_with_the_epochs() -> None:
    recipe = build_config({"student": {"epochs": 20, "warmup_epochs": 1.0}}).student
    assert [lasting(recipe, epochs).warmup_epochs for epochs in (20, 8, 2, 1)] == [1.0, 1.0, 0.5, 0.25]


def test_an_epoch_is_reckoned_from_a_few_steps() -> None:
    data = nt.load_data("mnist-5k", limit=60)
    recipe = {"batch_size": 20, "views": ("clean",), "every_view": False}
    # the first step sets things up; 60 / 20 steps of 2 s, and 60 / 20 validation batches at a third
    assert epoch_seconds([50.0, 2.0, 9.0, 2.0], data, recipe) == 2 * 3 + 2
    assert epoch_seconds([50.0], data, recipe) == 200
    both = {**recipe, "views": ("clean", "mirror"), "every_view": True}
    assert epoch_seconds([50.0, 2.0], data, both) == 2 * 6 + 2


def test_a_training_is_timed_by_the_clock_that_is_given_and_stops_early() -> None:
    data = nt.load_data("mnist-5k", limit=60)
    ticks: list[float] = []

    def clock() -> float:
        ticks.append(3.0 * len(ticks))
        return ticks[-1]

    recipe = {
        "batch_size": 10, "views": ("clean",), "every_view": False, "epochs": 50, "lr": 1e-3, "optimizer": "adam",
        "augment": "mixup", "patience": 3, "precision": "fp32", "keep": "best",
    }  # fmt: skip
    model = nt.build_model("compact-xs:0.5", data)
    assert training_seconds(model, data, recipe, "cpu", clock) == 3.0 * (6 + 2)
    assert len(ticks) == 3  # two steps: the second took longer than half a second
    assert training_seconds(model, data, {**recipe, "lr": -1.0}, "cpu", clock) is None


SMALL: dict[str, Any] = {
    "data": {"limit": 60}, "teacher": {"name": "mlp800", "epochs": 8},
    "student": {"name": "compact-xs:0.5", "epochs": 4, "batch_size": 30}, "noise": {"sigma": 0.0},
}  # fmt: skip


def test_the_minutes_bind_the_teacher_and_a_named_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that stands still, with epochs that were measured to take 10 s (teacher) and 5 s (student)."""
    monkeypatch.setattr(compression, "CLOCK", lambda: 0.0)
    monkeypatch.setattr(pacing, "measured", lambda *_: Speeds(10.0, 1.0, (5.0,)))
    config = build_config(
        {**SMALL, "target": {"minutes": 1.0}, "run": {"output_dir": str(tmp_path), "baselines": False}}
    )
    lines: list[tuple[str, str]] = []
    begun: list[Run] = []

    class StopError(Exception):
        pass

    def stop(stage: str, done: int, total: int, note: str) -> None:
        lines.append((stage, note))
        if stage.startswith("[2/"):
            raise StopError

    with pytest.raises(StopError):
        compress_config(config, begun=begun.append, watch=stop)
    # 57 s: 80 + 1 + 5 + 20 s do not fit; with 4 of 8, 1 and 2 of 4 epochs 40 + 1 + 5 + 10 = 56 s do
    assert ("plan", "time: about 55 s: teacher 40 s, logits 1 s, students 15 s") in lines
    assert all("left in all" in note for stage, note in lines if stage.startswith("[1/"))
    monkeypatch.setattr(pacing, "measured", lambda *_: Speeds(0.01, 0.01, (0.01,)))  # resumed on a fast machine
    result = resume_compress(begun[0])
    assert (Run.open(result.path / "teacher").result() or {})["training"]["epochs"] == 4
    student = Run.open(result.path / result.rows[-1].runs[0])
    assert student.config["recipe"]["epochs"] == 4  # the time that the students have was not decided before
    assert result.time is not None
    assert result.time["epochs"] == {"teacher": 4, "student": 4}
    assert "the teacher was trained for 4 epochs instead of 8: 1 minute did not allow more" in str(result)
