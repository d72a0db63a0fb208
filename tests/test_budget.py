"""The time of a compression: the estimate, what fits into its minutes, what was decided, what is shown of it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest

import noisyteacher as nt
from noisyteacher.config import build_config
from noisyteacher.errors import FileFormatError, UsageError
from noisyteacher.pipeline import compression
from noisyteacher.pipeline.compression import SHORT_RUN, compress_config, resume_compress
from noisyteacher.pipeline.resolve import with_epochs
from noisyteacher.pipeline.timing import (
    FILE,
    NO_COMPARISON,
    SLOWER_LATER,
    Pace,
    Speeds,
    Work,
    estimate,
    fit_into,
    total,
    training_seconds,
)
from noisyteacher.runs import Run, new_run
from noisyteacher.store import LogitStore
from noisyteacher.text import duration, rough_duration

WORK = Work(20, 20, 6, tries=3)
SPEEDS = Speeds(5.0, 7.0, (2.0, 4.0, 1.0), 3.0)


def test_what_the_work_needs_is_added_up_stage_by_stage() -> None:
    # a student yet to be chosen is as slow as the slowest of those that are tried
    assert estimate(WORK, SPEEDS) == {
        "teacher": 100, "logits": 7, "student on labels": 0, "search": 10 + 20 + 5, "noise": 0, "students": 6 * 80,
        "export": 3,
    }  # fmt: skip
    assert total(WORK, SPEEDS) == 100 + 7 + 35 + 480 + 3
    assert estimate(replace(WORK, tries=1), SPEEDS)["students"] == 6 * 40
    # the answers for each view; a score for each of 6 students, 3 tries and 2 trials of the noise
    assert total(replace(WORK, views=4), replace(SPEEDS, view=2.5)) == total(WORK, SPEEDS) + 10
    scored = replace(WORK, noise_runs=2, noise_epochs=1)
    assert total(scored, replace(SPEEDS, scoring=2.0)) == total(scored, SPEEDS) + 22
    assert estimate(replace(WORK, noise_runs=10, noise_epochs=3), SPEEDS)["noise"] == 10 * 12
    assert estimate(replace(WORK, try_epochs=2, comparison_epochs=None), SPEEDS)["search"] == 4 + 8 + 2
    assert estimate(replace(WORK, try_epochs=2, comparison_epochs=None), SPEEDS)["student on labels"] == 4


def test_the_trials_of_the_noise_are_shortened_first_where_time_is_short() -> None:
    work, speeds = Work(0, 20, 1, noise_runs=8), Speeds(0.0, 0.0, (1.0,))
    assert estimate(work, speeds)["noise"] == 8 * 20  # as long as the students
    assert fit_into(work, speeds, 180.0) == work
    assert fit_into(work, speeds, 179.0) == replace(work, noise_epochs=5)
    assert fit_into(work, speeds, 30.0) == replace(work, student_epochs=11, noise_epochs=2)


def test_time_enough_changes_nothing() -> None:
    assert fit_into(WORK, SPEEDS, total(WORK, SPEEDS)) == WORK


def test_fewer_networks_are_tried_where_less_than_half_of_the_epochs_would_be_left() -> None:
    work, speeds = Work(0, 20, 1, tries=3), Speeds(0.0, 0.0, (2.0, 2.0, 2.0))
    assert fit_into(work, speeds, 38.0) == replace(work, student_epochs=10)  # 3 tries of 2 epochs, then 10: 32 s
    assert fit_into(work, speeds, 28.5) == replace(work, student_epochs=10, tries=2)
    assert fit_into(work, speeds, 12.0) == replace(work, student_epochs=5, tries=1)
    assert fit_into(work, speeds, 0.0) == replace(work, student_epochs=1, tries=1)


def test_a_named_student_is_compared_with_labels_for_a_tenth_of_the_time_at_most() -> None:
    work, speeds = Work(0, 20, 1, comparison_epochs=None), Speeds(0.0, 0.0, (2.0,), scoring=1.0)

    def comparison(work: Work, seconds: float) -> tuple[float, int]:
        plan = fit_into(work, speeds, seconds)
        assert total(plan, speeds) <= max(seconds, 3.0)  # an epoch of the student, and its score
        return estimate(plan, speeds)["student on labels"], plan.student_epochs

    # 9 and 5 s are left for it: 4 and 2 epochs and a score, not the quarter of 17 or 9 or so
    assert comparison(work, 90) == (9.0, 20)
    assert comparison(work, 50) == (5.0, 20)
    assert comparison(replace(work, most_epochs=200), 50) == (5.0, 22)
    assert comparison(work, 1000) == (5 * 2 + 1, 20)
    assert comparison(work, 30) == (3.0, 13)
    assert comparison(work, 29.9) == (0.0, 14)
    assert comparison(work, 0.0) == (0.0, 1)
    assert fit_into(replace(work, tries=1), speeds, 15.0).labels_epochs == 1  # as long as the try
    tight = Speeds(0.0, 85.0, (9.0,))  # with a comparison of 9 s it is 103 s, without 94 s
    assert total(fit_into(work, tight, 100.0), tight) == 94


def test_what_fits_is_never_longer_than_the_time_and_grows_with_it() -> None:
    for tries, runs, try_epochs in product((0, 1, 4), (0, 6), (None, 3)):
        work = Work(30, 20, 3, tries, try_epochs, runs)
        speeds = Speeds(3.0, 5.0, (1.0, 0.5, 2.0, 1.5), 2.0)
        least = total(fit_into(work, speeds, 0.0), speeds)
        before = 0
        for seconds in range(10, 400, 13):
            plan = fit_into(work, speeds, seconds)
            assert min(plan.teacher_epochs, plan.student_epochs) >= 1
            assert total(plan, speeds) <= max(seconds, least)
            assert plan.student_epochs >= before or plan.tries > 1
            before = plan.student_epochs


def test_views_and_epochs_fit_the_time_and_no_better_pair_does() -> None:
    """For fast and slow teachers and students, against a search through all pairs."""
    for rows, answer_s, step_s, minutes in product((500, 4_000, 45_000), (1e-5, 2e-3, 2e-2), (5e-3, 0.1), (1, 5, 60)):
        work = Work(0, 20, 2, views=10, most_epochs=200)
        speeds = Speeds(0.0, 200 * answer_s, (rows / 64 * step_s,), 1.0, rows * answer_s, 3 * step_s)
        pairs = {
            (views, epochs): total(replace(work, views=views, student_epochs=epochs), speeds)
            for views, epochs in product(range(1, 11), range(1, 201))
            if views == 1 or epochs >= 4 * views or (views, epochs) == (10, 20)
        }
        possible = [pair for pair, seconds in pairs.items() if seconds <= 60 * minutes]
        plan = fit_into(work, speeds, 60 * minutes)
        if possible:
            assert plan.views * plan.student_epochs == max(views * epochs for views, epochs in possible)
            assert (plan.views, plan.student_epochs) in possible
        else:
            assert (plan.views, plan.student_epochs) == (1, 1)


def test_few_epochs_see_clean_images_and_time_to_spare_makes_more_of_them() -> None:
    # a view of 45,000 images takes 90 s, an epoch 20 s
    work, speeds = Work(0, 20, 1, views=10, most_epochs=200), Speeds(0.0, 10.0, (20.0,), view=90.0)
    plans = {seconds: fit_into(work, speeds, seconds) for seconds in (120, 285, 855, 1310, 3000, 9000)}
    assert {seconds: (plan.views, plan.student_epochs) for seconds, plan in plans.items()} == {
        120: (1, 1), 285: (1, 9), 855: (4, 24), 1310: (7, 33), 3000: (10, 104), 9000: (10, 200),
    }  # fmt: skip
    named = replace(work, most_epochs=0)
    assert fit_into(named, speeds, 1310) == named  # as named, although other views and epochs would fit too
    assert fit_into(named, speeds, 9000) == named
    few = replace(named, student_epochs=6, views=6)  # a view for each epoch, as the recipe has them
    assert [(plan.views, plan.student_epochs) for plan in (fit_into(few, speeds, s) for s in (669, 579))] == [
        (5, 6), (5, 5),
    ]  # fmt: skip
    long = replace(work, teacher_epochs=50, student_epochs=1)
    assert fit_into(long, replace(speeds, teacher=1000.0), 0.0).teacher_epochs == 1


def test_only_the_students_get_more_epochs_than_their_recipe() -> None:
    work, speeds = Work(8, 20, 1, tries=2, try_epochs=3, most_epochs=200), Speeds(1.0, 0.0, (1.0, 1.0))
    plan = fit_into(work, speeds, 8 + 2 * 3 + 50)
    assert plan == replace(work, student_epochs=50)


def test_minutes_that_are_too_few_are_refused_with_those_it_takes(tmp_path: Path) -> None:
    run, speeds = new_run(tmp_path, "compress", "x", {}), Speeds(0.0, 4.0, (23.0,), view=60.0)
    work = Work(0, 20, 2, views=10, most_epochs=200)

    def pace(minutes: float) -> Pace:
        return Pace(run, work, lambda: speeds, minutes, None, lambda: 10.0, 0.0)

    # 4 + 60 + 2 x 23 s, a reserve of 5 %, and the 10 s that have passed are 2.097 minutes
    with pytest.raises(
        UsageError, match=r"2\.09 min is too short: .* it takes 3 min \(start 10 s, logits 65 s, students 45 s\)"
    ):
        pace(2.09).begin()
    assert not (run.path / FILE).exists()
    assert (pace(2.1).begin().views, pace(2.1).begin().student_epochs) == (1, 1)
    assert pace(0.1).begin().views == 1  # a resumed run goes on as it was decided


def test_a_decision_is_kept_for_whoever_resumes_the_run(tmp_path: Path) -> None:
    run, now = new_run(tmp_path, "compress", "x", {}), [100.0]

    def pace(minutes: float | None, speeds: Speeds, started: float) -> Pace:
        return Pace(run, WORK, lambda: speeds, minutes, None, lambda: now[0], started)

    first = pace(5.0, SPEEDS, 40.0)
    assert first.remaining() == 0.95 * 240
    decided = first.begin()
    assert decided.teacher_epochs < 20
    now[0] = 7.0  # another machine, whose clock begins anew, ten times as fast
    again = pace(5.0, Speeds(0.5, 0.7, (0.2, 0.4, 0.1)), 5.0)
    assert again.begin() == decided
    assert again.speeds == SPEEDS
    assert again.spent == 62.0
    assert again.again("search", (0.2, 0.4, 0.1)) == replace(WORK, teacher_epochs=0)
    assert pace(None, SPEEDS, 0.0).begin() == WORK
    text = (run.path / FILE).read_text()
    (run.path / FILE).write_text(text.replace("begin", "start"))
    with pytest.raises(FileFormatError, match=r"plan\.json"):
        pace(5.0, SPEEDS, 0.0)


def test_durations_in_words() -> None:
    durations = {0.2: "1 s", 41: "40 s", 90: "2 min", 5399: "90 min", 5400: "1.5 h"}
    assert {seconds: rough_duration(seconds) for seconds in durations} == durations
    exact = {8.25: "8.2 s", 59.94: "59.9 s", 59.97: "1 min 00 s", 3723: "1 h 02 min"}
    assert {seconds: duration(seconds) for seconds in exact} == exact


def test_a_warm_up_shrinks_with_the_epochs() -> None:
    recipe = build_config({"student": {"epochs": 20, "warmup_epochs": 1.0}}).student
    assert [with_epochs(recipe, epochs).warmup_epochs for epochs in (20, 8, 2, 1)] == [1.0, 1.0, 0.5, 0.25]


def test_a_shortened_training_is_not_frozen_all_the_time() -> None:
    recipe = build_config({"student": {"epochs": 20, "freeze_epochs": 2.0}}).student
    assert [with_epochs(recipe, epochs).freeze_epochs for epochs in (30, 8, 3, 2, 1)] == [2.0, 2.0, 2.0, 0.5, 0.25]


def test_a_try_leaves_time_for_the_trials_of_the_noise_and_the_files(tmp_path: Path) -> None:
    # 95 s for a try and half of the student's 8 epochs, of 10 s each; two trials of the noise have an epoch each
    run, longest = new_run(tmp_path, "compress", "x", {}), {}
    for name, noise_runs, end_s in (("neither", 0, 0.0), ("noise", 2, 0.0), ("files", 0, 30.0)):
        measure = partial(Speeds, 0.0, 0.0, (10.0, 10.0), end_s)
        pace = Pace(run, Work(0, 8, 1, 2, noise_runs=noise_runs), measure, 100 / 60, None, lambda: 0.0)
        longest[name] = max(epochs for epochs in range(10) if pace.time_for_try(1, epochs, 10.0))
    assert longest == {"neither": 5, "noise": 3, "files": 2}


@pytest.mark.parametrize(("views", "every_view", "steps"), [(("clean",), False, 6), (("clean", "mirror"), True, 12)])
def test_a_training_is_timed_by_its_clock_and_stops_early(views: tuple[str, ...], every_view: bool, steps: int) -> None:
    data = nt.load_data("mnist-5k", limit=60)
    ticks: list[float] = []

    def clock() -> float:
        ticks.append(3.0 * len(ticks))
        return ticks[-1]

    recipe = {
        "batch_size": 10, "views": views, "every_view": every_view, "epochs": 50, "lr": 1e-3, "optimizer": "adam",
        "augment": "mixup", "patience": 3, "precision": "fp32", "keep": "best",
    }  # fmt: skip
    model = nt.build_model("compact-xs:0.5", data)
    epoch_s = SLOWER_LATER * 3 * (steps + 2)  # 6 validation batches at a third
    assert training_seconds(model, data, recipe, "cpu", clock) == pytest.approx(epoch_s)
    assert len(ticks) == 3  # two steps: the second took longer than half a second
    ticks.clear()
    training_seconds(model, data, recipe, "cpu", clock, 10.0)
    assert len(ticks) == 6  # of 3 s each, of which four are more than 10 s
    assert training_seconds(model, data, {**recipe, "lr": -1.0}, "cpu", clock) is None


def test_the_first_step_sets_things_up_and_does_not_count() -> None:
    data = nt.load_data("mnist-5k", limit=60)
    times = iter([0.0, 50.0, 52.0, 61.0, 63.0])
    recipe = {"batch_size": 20, "views": ("clean",), "every_view": False, "epochs": 2, "lr": 1e-3, "optimizer": "adam"}
    model = nt.build_model("compact-xs:0.5", data)
    # 60 / 20 steps and 60 / 20 validation batches at a third, each of the 2 s of the second step
    epoch_s = training_seconds(model, data, {**recipe, "precision": "fp32"}, "cpu", lambda: next(times))
    assert epoch_s == SLOWER_LATER * 2 * (3 + 1)


SMALL: dict[str, Any] = {
    "data": {"limit": 60}, "teacher": {"name": "mlp800", "epochs": 8},
    "student": {"name": "compact-xs:0.5", "epochs": 4, "batch_size": 30}, "noise": {"sigma": 0.0},
}  # fmt: skip


def test_the_minutes_bind_the_teacher_and_a_named_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that stands still, with epochs that were measured to take 10 s (teacher) and 5 s (student)."""
    monkeypatch.setattr(compression, "CLOCK", lambda: 0.0)
    monkeypatch.setattr(compression, "measure_speeds", lambda *_: Speeds(10.0, 1.0, (5.0,), view=0.5))
    config = build_config(
        {**SMALL, "target": {"minutes": 1.0}, "run": {"output_dir": str(tmp_path), "baselines": False}}
    )
    lines: list[tuple[str, str]] = []
    runs: list[Run] = []

    class StopError(Exception):
        pass

    def stop(stage: str, done: int, total: int, note: str) -> None:
        lines.append((stage, note))
        if stage.startswith("[2/"):
            raise StopError

    with pytest.raises(StopError):
        compress_config(config, on_run_created=runs.append, on_progress=stop)
    # 57 s: 80 + 3 + 5 + 20 s do not fit; with 4 of 8, 1 and 2 of 4 epochs and a view 40 + 1.5 + 5 + 10 = 56.5 s do
    assert ("plan", "time: about 55 s: teacher 40 s, logits 2 s, student on labels 5 s, students 10 s") in lines
    assert any(note.startswith("1 min: students get 2 epochs (recipe: 4) on 2 of 4 views") for _, note in lines)
    monkeypatch.setattr(
        compression, "measure_speeds", lambda *_: Speeds(0.01, 0.01, (0.01,))
    )  # resumed on a fast machine
    result = resume_compress(runs[0])
    assert (Run.open(result.path / "teacher").result() or {})["training"]["epochs"] == 4
    student = Run.open(result.path / result.rows[-1].runs[0])
    assert student.config["recipe"]["epochs"] == 4  # the time that the students have was not decided before
    assert result.time is not None
    assert result.time["epochs"] == {"teacher": 4, "student": 4}
    assert LogitStore.open(result.path / result.store).views == ("clean", "crop-y2-x2")  # as decided before
    assert "1 min allowed 4 of 8 epochs of the teacher, 2 of 4 views" in str(result)


@pytest.mark.parametrize(("epoch_s", "compared"), [(5.0, True), (6.0, False)])
def test_where_an_epoch_takes_more_than_a_tenth_of_the_minutes_nothing_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch_s: float, compared: bool
) -> None:
    monkeypatch.setattr(compression, "CLOCK", lambda: 0.0)
    monkeypatch.setattr(compression, "measure_speeds", lambda *_: Speeds(1.0, 1.0, (epoch_s,), view=0.5))
    settings = {**SMALL, "target": {"minutes": 1.0}, "run": {"output_dir": str(tmp_path), "baselines": False}}
    lines: list[tuple[str, str]] = []
    result = compress_config(build_config(settings), on_progress=lambda stage, *_: lines.append((stage, str(_[-1]))))
    assert (result.path / SHORT_RUN).exists() == compared
    assert any(note == NO_COMPARISON for _, note in lines) == (not compared)
    assert (NO_COMPARISON in str(result)) == (not compared)
    last = "[4/4] " if compared else "[3/3] "
    assert any(stage.startswith(last) for stage, _ in lines)
    student = Run.open(result.path / result.rows[-1].runs[0])
    assert student.config["objective"]["label_weight"] in ((0.3, 0.7) if compared else (0.3,))
