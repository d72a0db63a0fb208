"""Sweeps that run: every cell once, shared teacher, resumed after any end to the same bytes, failures listed."""

from __future__ import annotations

import copy
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import noisyteacher as nt
from helpers import SWEEP_SETTINGS as BASE
from helpers import sweep_settings as base
from noisyteacher.errors import (
    ConfigError,
    DataError,
    MismatchError,
    NoisyTeacherError,
    StoreError,
    UnknownNameError,
    UsageError,
)
from noisyteacher.io.files import write_json
from noisyteacher.pipeline.experiment import StudentTask, student_spec
from noisyteacher.report import build_report
from noisyteacher.runs import Run, list_runs, new_run
from noisyteacher.sweep import SweepResult, partial_result, resume_sweep, sweep
from noisyteacher.sweep import workers as workers_module
from noisyteacher.sweep.spec import build_spec, expand
from noisyteacher.sweep.workers import Cell, local, train_all, train_cell

SIGMA: dict[str, list[Any]] = {"noise.sigma": [0.5]}
GRID: dict[str, list[Any]] = {"noise.sigma": [0, 0.5], "noise.draw": ["batch", "row"]}


def contents(run: Run) -> bytes:
    return (run.path / "conditions.json").read_bytes()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    """A sweep of three conditions with two seeds, trained one by one in this process."""
    return sweep(base(tmp_path_factory.mktemp("finished")), SIGMA, seeds=2)


@pytest.fixture
def copied(finished: SweepResult, tmp_path: Path) -> Run:
    """A copy of the run folder of that sweep."""
    folder = tmp_path / "copied" / finished.path.name
    shutil.copytree(finished.path, folder)
    return Run.open(folder)


def test_a_sweep_and_what_it_leaves(tmp_path: Path) -> None:
    calls: list[tuple[str, int, int, str]] = []
    result = sweep(base(tmp_path), GRID, seeds=2, progress=lambda *words: calls.append(words))
    run = Run.open(result.path)
    assert (run.state, run.info["kind"]) == ("done", "sweep")
    names = {child.path.name for child in run.children()}
    expected = {
        "labels-alone",
        "clean",
        *(f"sigma0.5-{draw}" for draw in ("batch", "row")),
    }
    assert names == {"teacher", *(f"{name}-seed{seed}" for name in expected for seed in (0, 1))}
    assert all(child.state == "done" for child in run.children())
    assert len(list((run.path / "logits").iterdir())) == 3  # one store per split, shared by all cells
    prints = {child.info["parents"].get("store") for child in run.children() if child.info["kind"] == "distil"}
    assert len(prints) == 1
    noisy = {condition.name: condition for condition in result.conditions}["sigma0.5-row"]
    cell = Run.open(run.path / "sigma0.5-row-seed1")
    assert noisy.errors[1] == (cell.result() or {})["scores"]["test"]["error"]["value"]
    assert cell.config["objective"]["noise"]["draw"] == "row"
    assert {"noise/selected_%", "noise/flipped_%", "noise/xi_rms", "noise/gradient_ratio"} <= set(cell.metrics()[0])
    assert [words for words in calls if words[0] == "sweep"][-1][:3] == ("sweep", 800, 800)
    assert result.teachers[0].score("test") is not None
    assert {condition.cost("parameters") for condition in result.conditions} == {1_276_810}
    for part in ("sigma 0.5, batch", "labels alone", "test n = 60", "no evidence", "alpha 0.15"):
        assert part in str(result)
    assert SweepResult.read(run.path, run.result() or {}) == result
    json.dumps(result.describe(), allow_nan=False)


def test_the_chosen_noise_is_trained_on_the_further_seeds_of_the_control(tmp_path: Path) -> None:
    settings = base(tmp_path)
    settings["run"] |= {"control_seeds": 4}
    calls: list[tuple[str, int, int, str]] = []
    result = sweep(settings, GRID, seeds=2, progress=lambda *words: calls.append(words))
    seeds = {condition.name: condition.seeds for condition in result.conditions}
    chosen = next(name for name, numbers in seeds.items() if name.startswith("sigma") and len(numbers) == 4)
    (other,) = {"sigma0.5-batch", "sigma0.5-row"} - {chosen}
    assert seeds == {"labels-alone": (0, 1), "clean": (0, 1, 2, 3), chosen: (0, 1, 2, 3), other: (0, 1)}
    assert result.verdicts[0].condition == chosen
    assert result.families[0].by_validation[0] in ("clean", chosen)
    assert "none of which took part in the choice" in result.verdicts[0].sentence
    assert [words[1:3] for words in calls if words[0] == "sweep"][-1] == (1200, 1200)
    run = Run.open(result.path)
    assert partial_result(run).cells == (12, 12)
    before = contents(run)
    for name in ("result.json", "conditions.json", f"{chosen}-seed3/result.json", "clean-seed1/result.json"):
        (run.path / name).unlink()
    assert contents(Run(resume_sweep(run).path)) == before
    for wrong, grid in ((1, GRID), (3, GRID), (4, {"student.lr": [0.001, 0.002]})):
        settings["run"]["control_seeds"] = wrong
        with pytest.raises(UsageError, match=rf"control_seeds={wrong}: expected"):
            sweep(settings, grid, seeds=2)


@pytest.mark.parametrize(("controls", "fresh", "trainings"), [(2, 0, 8), (4, 2, 12), (5, 3, 14)])
def test_further_seeds_are_of_the_clean_student_and_the_chosen_noise(
    tmp_path: Path, controls: int, fresh: int, trainings: int
) -> None:
    """Labels alone, clean and two noises with two seeds each; a paired test needs two further ones."""
    settings = base(tmp_path)
    settings["run"] |= {"control_seeds": controls}
    spec = build_spec(settings, GRID, seeds=2)
    assert (len(spec.fresh_seeds), spec.trainings) == (fresh, trainings)


@pytest.mark.parametrize(
    ("parts", "keys"),
    [
        ({"run": {"export": ["onnx"]}}, "run.export"),
        (
            {"run": {"export": ["onnx-int8"]}, "student": {"name": "mlp800", "qat_epochs": 1}},
            "student.qat_epochs, run.export",
        ),
        ({"target": {"minutes": 5.0, "max_drop": 1.0}}, "target.max_drop, target.minutes"),
        ({"noise": {"sigma": 0.5}, "choice": {"lrs": [0.1, 0.2]}}, "choice.lrs"),
    ],
)
def test_what_only_a_compression_looks_at_is_refused(tmp_path: Path, parts: dict[str, Any], keys: str) -> None:
    with pytest.raises(UsageError, match=rf"^{re.escape(keys)}: no effect on a sweep"):
        build_spec(base(tmp_path, **parts), SIGMA)


@pytest.mark.usefixtures("unrendered")
def test_a_sweep_without_students_on_labels_alone(tmp_path: Path) -> None:
    settings = base(tmp_path)
    settings["run"] |= {"baselines": False}
    result = sweep(settings, {"noise.sigma": [0.5]}, seeds=2)
    assert [condition.kind for condition in result.conditions] == ["clean", "noisy"]
    assert {child.path.name.partition("-seed")[0] for child in Run.open(result.path).children()} == {
        "teacher", "clean", "sigma0.5"
    }  # fmt: skip
    assert result.families[0].labels is None
    assert "labels alone" not in str(result)
    page = build_report(result.path)
    assert "labels alone" not in page
    assert "against multiplications per image" in page
    clean = sweep(settings, {"student.lr": [0.001, 0.002]})
    assert [condition.kind for condition in clean.conditions] == ["clean", "clean"]
    assert [condition.title for condition in clean.conditions] == ["distilled", "distilled, lr 0.002"]
    verdict = str(clean.verdicts[0])
    errors = [error.mean for condition in clean.conditions if (error := condition.score("val"))]
    best, other = ("distilled", "distilled, lr 0.002")[:: 1 if errors[0] <= errors[1] else -1]
    assert verdict.startswith(f"among 2 settings validation prefers {best}: {min(errors):.2f} % validation error; ")
    gap = f"{min(errors) - max(errors):+.2f} points against the next, {other}, 1 paired seed"
    assert gap.replace("+0.00", "0.00") in verdict
    assert "% test error" in verdict
    page = build_report(clean.path)
    assert f"Among 2 settings validation prefers {best}" in page
    for text in (page.partition("Settings")[0], str(clean)):
        assert "noise" not in text.lower()
        assert "(Holm)" not in text


def test_a_done_cell_is_never_run_again(copied: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(copied)
    for name in ("result.json", "sigma0.5-seed1/result.json"):
        (copied.path / name).unlink()
    leftovers = [copied.path / "sigma0.5-seed1" / name for name in (".weights.safetensors.1a.tmp", "checkpoint/state")]
    for path in leftovers:  # of a process that was killed at the very end
        path.parent.mkdir(exist_ok=True)
        path.touch()
    trained: list[str] = []
    real = student_spec

    def counted(task: StudentTask) -> Any:
        trained.append(task.run)
        return real(task)

    monkeypatch.setattr(workers_module, "student_spec", counted)
    again = resume_sweep(copied)
    assert trained == ["sigma0.5-seed1"]
    assert not any(path.exists() for path in (*leftovers, leftovers[1].parent))
    assert contents(Run(again.path)) == before
    settings = copied.config["base"]
    assert sweep(settings, SIGMA, seeds=2, run=str(copied.path)) == again
    assert resume_sweep(Run.open(copied.path)) == again
    assert trained == ["sigma0.5-seed1"]


def test_the_finished_cells_are_judged_before_the_end(finished: SweepResult, copied: Run) -> None:
    whole = partial_result(copied)
    assert whole.conditions == tuple(replace(condition, costs=None) for condition in finished.conditions)
    assert (whole.families, whole.verdicts) == (finished.families, finished.verdicts)
    for name in ("result.json", "conditions.json", "clean-seed1/result.json"):
        (copied.path / name).unlink()
    part = partial_result(copied)
    assert {condition.name: condition.seeds for condition in part.conditions} == {
        "labels-alone": (0, 1), "clean": (0,), "sigma0.5": (0, 1)
    }  # fmt: skip
    assert part.conditions[2].against_clean["test"].n == 1
    assert "5 of 6 cells are done" in str(part)
    assert not (copied.path / "conditions.json").exists()
    for child in copied.path.glob("*-seed*/result.json"):
        child.unlink()
    with pytest.raises(UsageError, match="no cell of this sweep is done"):
        partial_result(copied)
    with pytest.raises(UsageError, match="not a sweep"):
        partial_result(Run.open(copied.path / "teacher"))


def test_processes_give_the_same_bytes_as_one(finished: SweepResult, tmp_path: Path) -> None:
    two = sweep(base(tmp_path), SIGMA, seeds=2, jobs=2)
    assert contents(Run(two.path)) == contents(Run(finished.path))


def test_the_executor_of_the_docs(finished: SweepResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "scale.md").read_text()
    block = page.split("```python\n")[1].split("```")[0].split("\n\nbase = ")[0]
    handed: list[str] = []

    class Job:
        def __init__(self, train: Any, cell: Cell) -> None:
            handed.append(cell.name)
            self.result = lambda: train(cell)

    class Jobs:
        def __init__(self, folder: str) -> None:
            self.submit = Job

        def update_parameters(self, **options: Any) -> None: ...

    monkeypatch.setitem(sys.modules, "submitit", SimpleNamespace(AutoExecutor=Jobs))
    scope: dict[str, Any] = {}
    exec(block, scope)
    result = sweep(base(tmp_path), SIGMA, seeds=2, executor=lambda: scope["Slurm"](max_workers=2))
    assert sorted(handed) == sorted(run for condition in result.conditions for run in condition.runs)
    assert len(handed) == 6
    assert contents(Run(result.path)) == contents(Run(finished.path))
    with pytest.raises(UsageError, match="use only one"):
        sweep(base(tmp_path), {"noise.sigma": [0.5]}, jobs=2, executor=scope["Slurm"])


def test_workers_that_are_no_processes_of_ours_keep_their_own_number_of_threads(tmp_path: Path) -> None:
    """The cores of the machine that submits say nothing of a cluster's, whose workers are many to a machine."""
    threads: list[int | None] = []

    class Elsewhere(ThreadPoolExecutor):
        def submit(self, work: Any, cell: Cell) -> Any:  # type: ignore[override]
            threads.append(cell.threads)
            return super().submit(work, cell)

    settings = base(tmp_path, run={"output_dir": str(tmp_path), "device": "cpu"})
    sweep(settings, {"noise.sigma": [0.5]}, executor=lambda: Elsewhere(1))
    assert threads == [None] * 3


def test_a_failed_cell_is_listed_and_the_others_go_on(tmp_path: Path) -> None:
    grid: dict[str, list[Any]] = {"noise.sigma": [0.5], "student.lr": [1e-3, 1e30]}
    result = sweep(base(tmp_path), grid)
    assert set(result.failed) == {
        "clean-lr1e30-seed0",
        "labels-alone-lr1e30-seed0",
        "sigma0.5-lr1e30-seed0",
    }
    assert all("not finite" in error or "loss" in error for error in result.failed.values())
    assert Run(result.path / next(iter(result.failed))).state == "failed"
    done = {condition.name: condition.seeds for condition in result.conditions}
    assert done["sigma0.5"] == (0,)
    assert done["sigma0.5-lr1e30"] == ()
    assert len(resume_sweep(Run.open(result.path)).failed) == 3  # tried again, and failed again


@pytest.mark.parametrize("stack", [1, 3])
@pytest.mark.parametrize("kind", [RuntimeError, StoreError])
def test_an_error_in_one_cell_is_a_failure_of_that_cell(
    kind: type[Exception], stack: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = student_spec

    def broken(task: StudentTask) -> Any:
        spec = real(task)
        if task.run == "clean-seed0":
            raise kind("the disk has melted")
        return spec

    monkeypatch.setattr(workers_module, "student_spec", broken)
    result = sweep(base(tmp_path), {"noise.sigma": [0.5]}, stack=stack)
    assert result.failed == {"clean-seed0": f"{kind.__name__}: the disk has melted"}
    assert Run(result.path / "clean-seed0").error() == f"{kind.__name__}: the disk has melted\n"


def test_the_steps_of_a_cell_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0.0, 0.04)
    monkeypatch.setattr(workers_module, "monotonic", lambda: next(clock))
    done: list[int] = []
    watch = lambda stage, count, *_: done.append(count) if stage == "sweep" else None  # noqa: E731
    sweep(base(tmp_path, student={"epochs": 1, "batch_size": 1}), {"noise.sigma": [0.5]}, progress=watch)
    assert done == sorted(done)
    assert any(count % 100 for count in done)


def test_teachers_and_data_may_vary_too(tmp_path: Path) -> None:
    result = sweep(base(tmp_path), {"data.train_limit": [30, 60]})
    assert len(result.teachers) == 2
    assert [condition.kind for condition in result.conditions] == ["labels", "clean"] * 2
    sizes = [Run.open(result.path / teacher.name).config["data"]["train"] for teacher in result.teachers]
    assert len(set(sizes)) == 2
    assert len(list((result.path / "logits").iterdir())) == 6


def test_one_trained_teacher_on_data_that_vary(tmp_path: Path) -> None:
    """The same weights and the same name of the data, other images: other answers."""
    teacher = nt.build_model("lenet", classes=10, input_shape=(1, 28, 28), seed=0)
    nt.save_model(teacher, tmp_path / "teacher.safetensors")
    settings = base(tmp_path / "runs", teacher={"name": str(tmp_path / "teacher.safetensors")})
    settings["run"]["checks"] = False
    result = sweep(settings, {"data.train_limit": [30, 60]})
    rows = {nt.LogitStore.open(store).rows for store in (result.path / "logits").glob("*-train-*")}
    assert rows == {30, 60}
    assert not result.failed
    weights = {path: path.stat().st_mtime_ns for path in result.path.glob("teacher-*/weights.safetensors")}
    (result.path / "result.json").unlink()
    again = resume_sweep(Run.open(result.path))
    assert [row.scores for row in again.teachers] == [row.scores for row in result.teachers]
    assert weights == {path: path.stat().st_mtime_ns for path in weights}, "written and evaluated once"


def test_answers_of_both_precisions_beside_each_other(tmp_path: Path) -> None:
    teacher = nt.build_model("lenet", classes=10, input_shape=(1, 28, 28), seed=0)
    nt.save_model(teacher, tmp_path / "teacher.safetensors")
    settings = base(tmp_path / "runs", teacher={"name": str(tmp_path / "teacher.safetensors")})
    settings["run"]["checks"] = False
    result = sweep(settings, {"teacher.logits_precision": ["fp32", "bf16"]})
    stores = [nt.LogitStore.open(store) for store in (result.path / "logits").glob("*-train-*")]
    assert {store.plan.precision for store in stores} == {"fp32", "bf16"}
    assert not result.failed


def test_a_sweep_inside_another_run_is_resumed(tmp_path: Path) -> None:
    around = new_run(tmp_path, "paper", "parts", {})
    first = sweep(base(tmp_path), GRID, parent=around, name="part")
    before = contents(Run.open(first.path))
    (first.path / "result.json").unlink()
    stages: list[str] = []
    again = sweep(base(tmp_path), GRID, parent=around, name="part", progress=lambda stage, *_: stages.append(stage))
    assert again.path == first.path
    assert contents(Run.open(again.path)) == before
    assert not [stage for stage in stages if "seed" in stage], "no cell is trained again"
    with pytest.raises(MismatchError, match=r"base\.noise\.sigma"):
        sweep(base(tmp_path, noise={"sigma": 0.25}), GRID, parent=around, name="part")


def test_several_teachers_by_their_geometric_mean(tmp_path: Path) -> None:
    settings = base(tmp_path, teacher={"epochs": 1, "also": ["mlp800"]}, student={"epochs": 1, "combine": "geometric"})
    result = sweep(settings, {"noise.sigma": [0.5]})
    record = Run.open(result.path / "sigma0.5-seed0").config["objective"]["teacher"]
    assert (record["combine"], len(record["teachers"])) == ("geometric", 2)
    assert Run.open(result.path / "teacher-2").state == "done"


def test_several_teachers_on_data_that_vary(tmp_path: Path) -> None:
    settings = base(tmp_path, teacher={"epochs": 1, "also": ["mlp800"]})
    result = sweep(settings, {"data.train_limit": [30, 60]})
    assert len(list(result.path.glob("teacher-*-2"))) == len(result.teachers) == 2
    assert not result.failed


def test_ways_to_combine_teachers_have_one_student_on_labels(tmp_path: Path) -> None:
    conditions, *_ = expand(base(tmp_path, teacher={"also": ["mlp800"]}), [{"student.combine": ["mean", "pick"]}])
    assert [condition.kind for condition in conditions] == ["labels", "clean", "clean"]


@pytest.mark.parametrize(
    ("student", "grid"),
    [
        ({}, {"student.epochs": [1, 2]}),
        ({"steps": 20}, {"student.optimizer": ["sgd", "adam"]}),
        ({}, {"student.weight_decay": [0.0, 0.01]}),
    ],
)
def test_a_sweep_with_a_preset_is_expanded_from_its_record_as_it_began(
    student: dict[str, Any], grid: dict[str, list[Any]]
) -> None:
    """What the preset decides and a grid makes unused is named in the record."""
    named = {"student": {"name": "mlp128", "preset": "patient", **student}, "run": {"baselines": False}}
    begun = build_spec(named, [grid])
    recorded = build_spec(**json.loads(json.dumps(begun.settings)))
    assert recorded.settings == begun.settings
    assert [each.config for each in recorded.conditions] == [each.config for each in begun.conditions]


def test_settings_that_came_later_than_a_sweep_count_as_their_defaults(copied: Run, tmp_path: Path) -> None:
    earlier = copy.deepcopy(copied.config)
    del earlier["base"]["run"]["trace"]
    write_json(copied.path / "config.json", "run-config", 1, {"config": earlier})
    assert resume_sweep(Run.open(copied.path)).cells is None
    with pytest.raises(MismatchError, match=r"other settings \(base\.run\.trace\)"):
        sweep({**earlier["base"], "run": {**earlier["base"]["run"], "trace": True}}, SIGMA, seeds=2, run=copied)


def test_the_share_of_a_cell_is_that_of_its_steps_where_these_are_its_length(tmp_path: Path) -> None:
    cell = Cell(str(tmp_path), "a-seed0", "clean", 0, {"student": {"epochs": 20, "steps": 384}}, {}, None)
    cell.run.path.mkdir()
    lines = "".join(f'{{"epoch": {number}, "step": {number}}}\n' for number in range(1, 21))
    (cell.run.path / "metrics.jsonl").write_text(lines)
    assert cell.share_trained == pytest.approx(20 / 384)
    in_epochs = replace(cell, config={"student": {"epochs": 40, "steps": None}})
    assert in_epochs.share_trained == pytest.approx(0.5)


def test_wrong_questions_start_nothing(copied: Run, tmp_path: Path) -> None:
    for settings, grid, error, part in (
        (BASE, {"noise.sigma": [-1]}, ConfigError, "noise.sigma: given -1"),
        ({"student": {"name": "mlp80"}}, {"noise.sigma": [1]}, UnknownNameError, "mlp800"),
        (BASE, {"data.name": ["mnist-5k", "nope.npz"]}, DataError, "nope.npz"),
        ({"noise": {"sigma": "auto"}}, {"student.epochs": [1]}, ConfigError, "a sweep compares numbers"),
    ):
        with pytest.raises(error, match=part):
            sweep({**settings, "run": {"output_dir": str(tmp_path / "runs")}}, grid)
    with pytest.raises(UsageError, match="jobs=0"):
        sweep(base(tmp_path / "runs"), GRID, jobs=0)
    assert not (tmp_path / "runs").exists()
    with pytest.raises(MismatchError, match="other settings"):
        sweep(copied.config["base"], {"noise.sigma": [0.6]}, run=copied)
    with pytest.raises(UsageError, match="not a sweep"):
        resume_sweep(Run.open(copied.path / "teacher"))


def dying(cell: Cell) -> None:
    """A worker that is killed on the first try of the cell, and always on the cell `cursed`."""
    mark = cell.run.path / "tried"
    first = not mark.exists()
    cell.run.path.mkdir(exist_ok=True)
    mark.write_text("x" + (mark.read_text() if not first else ""))
    if first or cell.name == "cursed":
        os.kill(os.getpid(), signal.SIGKILL)


def test_cells_of_a_killed_worker_are_given_out_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "train_cell", dying)
    monkeypatch.setattr(workers_module, "RETRIES", 2)
    cells = [Cell(str(tmp_path), name, "clean", 0, {"student": {"epochs": 1}}, {}, None) for name in ("a", "cursed")]
    failures = train_all(cells, local(1), lambda *_: None)
    assert list(failures) == ["cursed"]
    assert "process died" in failures["cursed"]
    assert len((tmp_path / "a" / "tried").read_text()) <= 3
    assert len((tmp_path / "cursed" / "tried").read_text()) == 3


def killed_if_cursed(cell: Cell) -> None:
    if cell.name == "cursed":
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_cell_that_waited_for_a_killed_worker_is_not_to_blame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if it has a folder already, and even if the worker dies before it has made a folder."""
    monkeypatch.setattr(workers_module, "train_cell", killed_if_cursed)
    monkeypatch.setattr(workers_module, "RETRIES", 1)
    run = new_run(tmp_path, "sweep", "x", {})
    run.child("waiting", "train", {})
    names = ("cursed", "waiting")
    cells = [Cell(str(run.path), name, "clean", 0, {"student": {"epochs": 1}}, {}, None) for name in names]
    assert list(train_all(cells, local(1), lambda *_: None)) == ["cursed"]


COMMAND = [
    sys.executable, "-m", "noisyteacher", "sweep", "--epochs", "1", "--seeds", "2", "--jobs", "2", "-q",
    "--threads", "1", "--set", "data.limit=60", "--set", "teacher.epochs=1", "--set", "student.batch_size=30",
    "--set", "teacher.preset=paper", "--set", "student.preset=paper", "--grid", "noise.sigma=0.5",
]  # fmt: skip
"""The sweep of `finished` with two workers."""
KILLS = int(os.environ.get("NOISYTEACHER_TEST_KILLS", "1"))
"""How often the sweep below is killed; `make test-faults` does it 50 times."""


def finished_in_spite_of_kills(cut: Path, dice: random.Random, kills: int) -> int:
    """The sweep in this folder, killed until it was killed KILLS times in all or is done; how often that is."""
    while kills < KILLS:
        runs = list_runs(cut, 1)
        resume = ["--resume", str(runs[0].path)] if runs else []
        command = [*COMMAND[:4], *resume, "--jobs", "2", "-q"] if resume else [*COMMAND, "--output-dir", str(cut)]
        with open(cut.with_name("stderr"), "wb") as stderr:
            process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=stderr)
        before = len(list(cut.glob("[!.]*/*/result.json")))
        # Let a random part of the work pass, whatever the machine's speed: a cell or two more, and a moment.
        target = before + dice.choice([0, 1, 1, 2])
        while process.poll() is None:
            if len(list(cut.glob("[!.]*/*/result.json"))) >= target and list_runs(cut, 1):
                break
            time.sleep(0.05)
        time.sleep(dice.uniform(0.0, 1.5))
        if process.poll() is not None:
            assert process.returncode == 0, cut.with_name("stderr").read_text()
            return kills
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
    (run,) = list_runs(cut, 1)
    resume_sweep(run)
    return kills


@pytest.mark.slow
def test_an_interrupted_sweep_saves_what_its_workers_are_at(tmp_path: Path) -> None:
    long = [word.replace("student.batch_size=30", "student.batch_size=1") for word in COMMAND]
    long[long.index("--epochs") + 1] = "500"
    command = [*long, "--output-dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            # A folder that is being made begins with a dot.
            while len(list(tmp_path.glob("[!.]*/*seed*/metrics.jsonl"))) < 2:
                assert process.poll() is None
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate()
        finally:
            process.kill()
    assert process.returncode == 143
    assert b" --jobs 2 --quiet" in errors.partition(b"--resume")[2]
    assert len(list(tmp_path.glob("[!.]*/*seed*/checkpoint/state.safetensors"))) == 2


@pytest.mark.slow
def test_killed_at_random_and_restarted_the_results_are_the_same(
    finished: SweepResult, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """The whole process group is killed with SIGKILL, so nothing can be tidied up."""
    dice, kills, number = random.Random(7), 0, 0
    while kills < KILLS:  # a fast machine is done before it was killed so often: then once more from the start
        cut, number = tmp_path / f"cut{number}", number + 1
        kills = finished_in_spite_of_kills(cut, dice, kills)
        (run,) = list_runs(cut, 1)
        assert contents(run) == contents(Run(finished.path))
        for path in sorted(finished.path.rglob("weights.safetensors")):
            assert (run.path / path.relative_to(finished.path)).read_bytes() == path.read_bytes()
    record_property("faults: kill -9 of sweep", kills)


def test_train_cell_says_what_is_wrong_instead_of_raising(tmp_path: Path) -> None:
    cell = Cell(str(tmp_path), "a-seed0", "clean", 0, {"student": {"epochs": 0}}, {}, None)
    assert "student.epochs: given 0" in (train_cell(cell) or "")


@pytest.mark.slow
def test_a_cluster_of_two_workers_one_of_which_is_killed(finished: SweepResult, tmp_path: Path) -> None:
    """Scheduler and workers are processes of their own. The killed worker's cells are run by the other: none lost, none
    doubled, and the results are those of one process.
    """
    distributed = pytest.importorskip("distributed", reason="needs the extra `cluster`")
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
    )
    try:
        killed: list[int] = []

        def watch(stage: str, done: int, total: int, note: str) -> None:
            if stage == "sweep" and not killed and done >= 100:
                victim = next(iter(cluster.workers.values()))
                killed.append(victim.pid)
                os.kill(victim.pid, signal.SIGKILL)

        result = sweep(
            base(tmp_path),
            SIGMA,
            seeds=2,
            scheduler=cluster.scheduler_address,
            progress=watch,
        )
    finally:
        cluster.close()
    assert killed
    assert not result.failed
    assert contents(Run(result.path)) == contents(Run(finished.path))


def test_no_scheduler_there(tmp_path: Path) -> None:
    pytest.importorskip("distributed", reason="needs the extra `cluster`")
    with pytest.raises(NoisyTeacherError, match="no dask scheduler answers"):
        sweep(base(tmp_path), {"noise.sigma": [0.5]}, scheduler="tcp://127.0.0.1:9")
    assert not list(tmp_path.iterdir())


def test_a_scheduler_that_is_gone_ends_the_sweep_in_a_sentence(tmp_path: Path) -> None:
    class Gone(ThreadPoolExecutor):
        def submit(self, *_: object, **__: object) -> Future[Any]:  # as dask's executor answers then
            future: Future[Any] = Future()
            future.cancel()
            future.set_running_or_notify_cancel()
            return future

        def shutdown(self, wait: bool = True) -> None:  # type: ignore[override]
            """Dask's has no further parameter."""

    cells = [
        Cell(str(tmp_path), f"a-seed{seed}", "clean", seed, {"student": {"epochs": 1}}, {}, None) for seed in (0, 1)
    ]
    with pytest.raises(NoisyTeacherError, match=r"the scheduler is gone: .* --resume"):
        train_all(cells, Gone, lambda *_: None)


def test_tls_is_refused_in_a_sentence(tmp_path: Path) -> None:
    pytest.importorskip("distributed", reason="needs the extra `cluster`")
    with pytest.raises(NoisyTeacherError, match="tls:// is not supported, use tcp://"):
        sweep(base(tmp_path), {"noise.sigma": [0.5]}, scheduler="tls://127.0.0.1:9")
