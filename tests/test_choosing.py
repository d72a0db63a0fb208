"""sigma and alpha chosen on validation: candidates, the evidence, and the sentence on it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import made_runs
import noisyteacher as nt
from helpers import Call
from noisyteacher.cli import main
from noisyteacher.config import Config, build_config, describe
from noisyteacher.errors import ConfigError, TrainingError, UsageError
from noisyteacher.models import model_record
from noisyteacher.pipeline import Result, noise_choice
from noisyteacher.pipeline.compression import compress_config, resume_compress
from noisyteacher.pipeline.compression_result import judged
from noisyteacher.pipeline.experiment import Experiment, StudentTask, TrainingSpec
from noisyteacher.pipeline.noise_choice import FIRST_DECAY, choose_noise, refined
from noisyteacher.pipeline.resolve import resolve_noise
from noisyteacher.pipeline.single_step import distil_config
from noisyteacher.pipeline.timing import StageTitles
from noisyteacher.report import build_report, read_studies
from noisyteacher.runs import WEIGHTS, Run, list_runs

pytestmark = pytest.mark.usefixtures("unrendered")

SMALL: dict[str, Any] = {
    "data": {"limit": 60},
    "teacher": {"epochs": 1},
    "student": {"name": "mlp800", "epochs": 4, "batch_size": 30},
    "choice": {"sigmas": [0.5, 1.0], "alphas": [0.5, 1.0], "weight_decays": [0.0]},
}


def settings(folder: Path, noise: dict[str, Any], **more: Any) -> Config:
    run = {"output_dir": str(folder), "baselines": False}
    return build_config({**SMALL, "noise": noise, "run": run, **more})


def test_candidates() -> None:
    def candidates(**noise: Any) -> list[tuple[Any, float]]:
        config = build_config({"noise": noise})
        return [(noise.sigma, noise.alpha) for noise in resolve_noise(config.noise, config.choice)[1]]

    assert candidates() == []  # without noise
    assert candidates(sigma="auto") == [(sigma, 0.15) for sigma in (0.3, 0.9)]
    assert candidates(sigma=0.5, alpha="auto") == [(0.5, 0.15), (0.5, 0.5)]
    assert len(candidates(sigma="auto", alpha="auto")) == 4
    assert candidates(sigma=0.5) == []
    named, none = resolve_noise(build_config({"noise": {"sigma": 0.5}}).noise, build_config({}).choice)
    assert (named, none) == (nt.Noise(sigma=0.5, alpha=0.15), ())
    over_recipe = build_config({"noise": {"sigma": 0.5}, "choice": {"lrs": [0.1, 0.2]}})
    assert resolve_noise(over_recipe.noise, over_recipe.choice) == (named, (named,))
    for off in ({}, {"sigma": 0}, {"sigma": [0, 0]}, {"sigma": 0.5, "alpha": 0}):
        assert resolve_noise(build_config({"noise": off}).noise, build_config({}).choice) == (None, ())
    twice = build_config({"noise": {"sigma": "auto"}, "choice": {"sigmas": [0.3, 0.9, 0.3]}})
    assert [noise.sigma for noise in resolve_noise(twice.noise, twice.choice)[1]] == [0.3, 0.9]


@pytest.mark.parametrize("choice", [{"sigmas": [0.3, 0.30000001]}, {"lrs": [0.1, 0.1]}])
def test_trials_that_would_share_a_run_are_refused(choice: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="agree in six digits"):
        chosen(settings(tmp_path, {"sigma": "auto"}, choice=choice))


def made_up(monkeypatch: pytest.MonkeyPatch, error: Callable[[StudentTask], float]) -> list[StudentTask]:
    """Trials without training: their validation errors are those of `error`. Returns the trials, in order."""
    tasks: list[StudentTask] = []

    def train(task: StudentTask) -> SimpleNamespace:
        tasks.append(task)
        return SimpleNamespace(val_error=error(tasks[-1]))

    monkeypatch.setattr(noise_choice, "train_student", train)
    return tasks


def chosen(config: Config) -> tuple[Experiment, dict[str, Any]]:
    """What is chosen for these settings, without a run folder."""
    noise, candidates = resolve_noise(config.noise, config.choice)
    data = nt.load_data("mnist-5k", limit=60)
    experiment = Experiment(
        config=config, data=data, teacher="lenet", student="mlp800", run=Run("nowhere"), noise=noise,
        noise_candidates=candidates,
    )  # fmt: skip
    return choose_noise(experiment, {"train": nt.build_model("lenet", data)}, StageTitles(99))


def test_more_weight_decays_come_between_those_that_are_named() -> None:
    assert refined([0.01, 0.04], 2) == [0.01, 0.04]
    assert refined([0.01, 0.04], 3) == [0.01, 0.02, 0.04]
    assert refined([0.0, 0.01], 4) == [0.0, 0.01, 0.02, 0.04]
    assert refined([0.0], 3) == [0.0, FIRST_DECAY, 4 * FIRST_DECAY]


@pytest.mark.parametrize("decay", [0.0, 0.05])
@pytest.mark.parametrize("choice", [{}, {"lrs": [0.1, 0.2]}, {"weight_decays": [0.1, 0.0, 0.1]}, {"sigmas": [0.9]}])
def test_clean_students_have_as_many_trials_as_long_and_all_the_weight_decays(
    monkeypatch: pytest.MonkeyPatch, choice: dict[str, Any], decay: float
) -> None:
    tasks = made_up(monkeypatch, lambda task: 1.0)
    student = {"name": "mlp800", "epochs": 7, "weight_decay": decay}
    config = build_config({"student": student, "noise": {"sigma": "auto"}, "choice": {"seeds": 2, **choice}})
    _, record = chosen(config)
    trials: dict[bool, list[tuple[Any, float | str, float, int]]] = {True: [], False: []}
    for task in tasks:
        recipe = task.experiment.config.student
        trials[task.noise is None].append((task.noise, recipe.lr, recipe.weight_decay, task.seed))
        assert recipe.epochs == 7
        assert task.seed >= config.run.seeds  # what is compared has seeds of its own
    assert len(trials[True]) == len(trials[False]) == len(set(trials[True])) == len(set(trials[False]))
    assert {trial[1:] for trial in trials[False]} <= {trial[1:] for trial in trials[True]}
    assert decay in {trial[2] for trial in trials[True]} or "weight_decays" in choice
    assert len({task.run for task in tasks}) == len(tasks)
    assert (record["epochs"], record["epochs_trained"]) == (7, 7)


def test_short_trials_are_labelled(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = made_up(monkeypatch, lambda task: 1.0)
    student = {"name": "mlp800", "epochs": 8}
    _, record = chosen(build_config({"student": student, "noise": {"sigma": "auto"}, "choice": {"epochs": 2}}))
    assert {task.experiment.config.student.epochs for task in tasks} == {2}
    assert "2 of 8 epochs each: TRIALS THIS SHORT FAVOUR CLEAN STUDENTS" in record["summary"]


def test_each_kind_gets_the_recipe_with_its_lowest_error(monkeypatch: pytest.MonkeyPatch) -> None:
    errors: dict[tuple[bool, float | str, float], float] = {(False, 0.1, 0.2): 1.0, (True, 0.2, 0.0): 2.0}

    def error(task: StudentTask) -> float:
        recipe = task.experiment.config.student
        return errors.get((task.noise is not None, recipe.lr, recipe.weight_decay), 3.0)

    made_up(monkeypatch, error)
    settings = {"student": {"name": "mlp800"}, "choice": {"lrs": [0.1, 0.2], "weight_decays": [0.0, 0.2]}}
    for noise, wins in (({"sigma": 0.5}, True), ({"sigma": "auto"}, False)):
        experiment, record = chosen(build_config({**settings, "noise": noise}))
        clean, noisy = experiment.recipes["clean"], experiment.recipes["noisy"]
        assert (clean.lr, clean.weight_decay, noisy.lr, noisy.weight_decay) == (0.1, 0.2, 0.2, 0.0)
        assert (record["clean"]["lr"], record["noisy"]["weight_decay"]) == (0.1, 0.0)
        assert (experiment.noise is not None) == wins  # a noise that is named is used, whatever validation says of it
        assert experiment.conditions == ["labels", "clean", *(["noisy"] if wins else [])]


def test_a_trial_that_diverges_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def error(task: StudentTask) -> float:
        if task.experiment.config.student.lr == 0.1:
            raise TrainingError("the loss is nan")
        return 50.0

    made_up(monkeypatch, error)
    experiment, record = chosen(build_config({"noise": {"sigma": 0.5}, "choice": {"lrs": [0.1, 0.2]}}))
    assert experiment.recipes["noisy"].lr == 0.2
    assert max(trial["mean"] for trial in record["candidates"]) == 100.0


def test_compress_chooses_and_shows_why(tmp_path: Path) -> None:
    options = {"sigmas": [0.5, 1.0], "alphas": [0.5], "weight_decays": [0.0, 0.1]}
    config = settings(tmp_path, {"sigma": "auto", "alpha": "auto", "draw": "row"}, choice=options)
    result = compress_config(config)
    choice = result.choice
    assert choice is not None
    trials = choice["candidates"]
    assert [(trial["sigma"], trial["weight_decay"]) for trial in trials] == [
        (0.0, 0.0), (0.0, 0.1), (0.0, 0.2), (0.0, 0.4), (0.5, 0.0), (0.5, 0.1), (1.0, 0.0), (1.0, 0.1)
    ]  # fmt: skip
    assert (choice["epochs"], choice["n"]) == (4, 60)
    best = min(trials, key=lambda trial: trial["mean"])
    assert choice["chosen"] == {"sigma": best["sigma"], "alpha": best["alpha"]}
    for trial in trials:
        for run, error in zip(trial["runs"], trial["val_error_%"], strict=True):
            child = Run.open(result.path / run)
            content = child.result() or {}
            assert content["scores"]["val"]["error"]["value"] == error
            assert content["training"]["epochs"] == 4
            assert child.config["recipe"]["weight_decay"] == trial["weight_decay"]
            if trial["sigma"]:
                expected = nt.Noise(sigma=trial["sigma"], alpha=trial["alpha"], draw="row").describe()
                assert child.config["objective"]["noise"] == expected
    kind = "noisy" if best["sigma"] else "clean"
    student = Run.open(result.path / f"{kind}-seed0")
    assert student.config["recipe"]["weight_decay"] == choice[kind]["weight_decay"] == best["weight_decay"]
    table = result.choice_table()
    assert table is not None
    assert [row[-2] for row in table.rows] == [f"{trial['mean']:.2f}" for trial in trials]
    assert str(Result.read(result.path, Run.open(result.path).result() or {})) == str(result)
    assert str(resume_compress(Run.open(result.path))) == str(result)


def test_processes_train_what_one_process_trains(tmp_path: Path) -> None:
    """And with `choice.controls` clean and noisy students have both recipes, the named and the chosen one."""
    choice = {"lrs": [0.01, 0.001], "weight_decays": [0.0], "controls": True}
    run = {"threads": 1, "seeds": 1}
    noise = {"sigma": 0.9, "alpha": 0.5}
    scores = []
    for jobs in (1, 2):
        here = {**run, "output_dir": str(tmp_path / str(jobs))}
        student = {**SMALL["student"], "epochs": 1, "lr": 0.02, "weight_decay": 0.0, "preset": "paper"}
        config = build_config({**SMALL, "noise": noise, "choice": choice, "run": here, "student": student})
        result = compress_config(config, jobs=jobs)
        assert [row.name for row in result.conditions] == ["labels", "clean", "noisy", "clean-chosen", "noisy-chosen"]
        scores.append([row.errors for row in result.conditions])
        assert result.choice is not None
        for name, kind in (("clean", ""), ("noisy", ""), ("clean-chosen", "clean"), ("noisy-chosen", "noisy")):
            recipe = Run.open(result.path / f"{name}-seed0").config["recipe"]
            assert recipe["lr"] == (result.choice[kind]["lr"] if kind else 0.02)
        references = {row.name: row.against_clean["test"].reference for row in result.conditions if row.against_clean}
        assert references == {"labels": "clean", "noisy": "clean", "noisy-chosen": "clean-chosen"}
        assert [verdict.condition for verdict in result.verdicts] == ["noisy", "noisy-chosen"]
    assert scores[0] == scores[1]


def test_a_verdict_says_whether_the_choice_was_of_the_same_seeds(tmp_path: Path) -> None:
    run = made_runs.compression(tmp_path)
    result = Result.read(run.path, run.result() or {})
    sentences = {}
    for name, seeds in (("fresh", [7, 8]), ("same", [0, 7])):
        record = {"seeds": seeds, "chosen": {}, "summary": ""}
        sentences[name] = judged(replace(result, choice=record)).verdict or ""
    assert "choice and judgement share their seeds" in sentences["same"]
    assert "share" not in sentences["fresh"]


def test_seeds_of_the_control_are_a_setting_of_sweeps(tmp_path: Path) -> None:
    config = settings(tmp_path, {"sigma": "auto", "alpha": "auto"})
    config = replace(config, run=replace(config.run, control_seeds=4))
    with pytest.raises(UsageError, match="control_seeds: has no effect on a compression"):
        compress_config(config)


def test_distil_chooses_too(tmp_path: Path) -> None:
    data = nt.load_data("mnist-5k", limit=60)
    teacher = nt.build_model("lenet", data)
    nt.fit(teacher, data.train, nt.supervised(), val=data.val, epochs=1)
    store = nt.extract(teacher, data.train, tmp_path / "store")
    config = settings(tmp_path, {"sigma": "auto", "alpha": 0.5}, choice={"sigmas": [0.5], "weight_decays": [0.0]})
    trained = distil_config(config, store.path)
    assert len(trained.run.children()) == 2
    chosen = trained.result["choice"]["chosen"]
    best = trained.result["choice"]["noisy" if chosen["sigma"] else "clean"]
    assert Run.open(trained.run.path).metrics()[-1]["epoch"] == 4
    saved = model_record(trained.run.path / WEIGHTS)["training"]["settings"]
    assert saved["weight_decay"] == best["weight_decay"]
    both = settings(
        tmp_path / "both", {"sigma": "auto", "alpha": 0.5},
        choice={"sigmas": [0.5], "lrs": [0.003], "weight_decays": [0.0], "controls": True},
    )  # fmt: skip
    assert distil_config(both, store.path).run.config["config"]["student"]["lr"] != 0.003
    assert chosen["sigma"] in (0.0, 0.5)
    (student,) = read_studies([trained.run])[0].result.conditions
    assert student.kind == ("noisy" if chosen["sigma"] else "clean")
    assert (student.settings["noise.sigma"], student.settings["noise.alpha"]) == (chosen["sigma"], chosen["alpha"])
    assert "How the noise was chosen" in build_report([trained.run], "html")
    (trained.run.path / "result.json").unlink()  # not done: nothing is chosen yet
    assert read_studies([trained.run])[0].result.conditions[0].kind == "model"


@pytest.mark.parametrize("sigma", [0.0, 0.5])
def test_distil_says_which_noise_was_chosen(
    tmp_path: Path, sigma: float, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        noise_choice.NoiseTrial, "mean", property(lambda trial: float((trial.noise is None) == bool(sigma)))
    )
    data = nt.load_data("mnist-5k", limit=60)
    store = nt.extract(nt.build_model("lenet", data), data.train, tmp_path / "store")
    words = ["distil", str(store.path), "--noise", "--data", "mnist-5k", "--student", "lenet", "--epochs", "1", "-q"]
    extra = ["data.limit=60", "choice.sigmas=[0.5]", "choice.weight_decays=[0.0]", "run.checks=false"]
    monkeypatch.setattr(sys, "argv", ["noisyteacher", *words, "--output-dir", str(tmp_path), *(
        word for setting in extra for word in ("--set", setting)
    )])  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        main()
    output = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0, output
    assert ("so no noise was chosen" in output) == (not sigma)


def test_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`nt.compress(noise="auto")` keeps the word in its config; a run without a result is reported as unfinished."""
    made_up(monkeypatch, lambda task: float(task.noise is None))
    data = nt.load_data("mnist-5k", limit=60)
    options: dict[str, Any] = {"epochs": 1, "batch_size": 30, "teacher_training": {"epochs": 1}, "baselines": False}
    result = nt.compress("lenet", "mlp800", data, noise="auto", output_dir=tmp_path, **options)
    assert result.choice is not None
    assert len(result.choice["candidates"]) == 2 * 2 * 2 * 2  # sigmas, alphas, weight decays, clean and noisy
    run = Run.open(result.path)
    assert run.config["noise"] == "auto"
    (run.path / "result.json").unlink()
    assert (run.path / "noisy-seed0").is_dir()
    assert "This run is not finished" in build_report([run], "html")
    with pytest.raises(UsageError, match="'auto'"):
        nt.compress("lenet", "mlp800", data, noise="automatic", output_dir=tmp_path)


def test_without_noise_nothing_is_said_of_it_and_no_second_clean_student_is_trained(tmp_path: Path) -> None:
    run = {"output_dir": str(tmp_path), "baselines": True}
    result = compress_config(settings(tmp_path, {"sigma": 0.5, "alpha": 0.0}, choice={}, run=run))
    assert [row.name for row in result.rows] == ["teacher", "labels", "clean"]
    assert {child.path.name for child in Run.open(result.path).children()} == {"teacher", "labels-seed0", "clean-seed0"}
    assert (result.noise, result.verdict, result.choice) == (None, None, None)
    assert "Noise:" not in str(result)
    words = str(result).lower().replace(str(tmp_path).lower(), "").replace("noisyteacher", "")
    assert "nois" not in words
    page = build_report([result.path], "html")
    assert "The noise" not in page
    assert "No noise" not in page
    assert "Against distilled: points" in page
    assert "student, distilled" in page
    kept = Run.open(result.path).result() or {}
    assert (kept["verdicts"], kept["noise"]) == ([], None)
    assert str(Result.read(result.path, kept)) == str(result)


def test_a_resumed_run_keeps_its_choice(tmp_path: Path) -> None:
    """An old config.json may hold settings of a noise with sigma 0, which a new one may not."""
    choice = {"sigmas": [0.5], "weight_decays": [0.0]}
    result = compress_config(settings(tmp_path, {"sigma": "auto", "alpha": 0.5}, choice=choice))
    (result.path / "result.json").unlink()
    again = resume_compress(Run.open(result.path))
    assert again.choice == result.choice is not None
    run = {"output_dir": str(tmp_path), "baselines": False}
    old = {**SMALL, "noise": {"sigma": 0, "draw": "row"}, "run": run, "choice": {}}
    first = compress_config(build_config(old, unused_noise=True))
    (first.path / "result.json").unlink()
    assert [row.name for row in resume_compress(Run.open(first.path)).rows] == ["teacher", "clean"]


def test_no_noise_unless_it_is_asked_for(tmp_path: Path, call: Call) -> None:
    """From Python and on the command line alike."""
    small: dict[str, Any] = {"epochs": 1, "batch_size": 20, "teacher_training": {"epochs": 1}}
    nt.compress("lenet", "mlp800", nt.load_data("mnist-5k", limit=40), output_dir=tmp_path, **small)
    words = "compress --data mnist-5k --teacher lenet --teacher-epochs 1 --student mlp800 --epochs 1 --batch-size 20"
    assert call(*words.split(), "--set", "data.limit=40", "--output-dir", str(tmp_path))[0] == 0
    runs = [run for run in list_runs(tmp_path) if run.path.parent == tmp_path]
    assert len(runs) == 2
    for run in runs:
        result = Result.read(run.path, run.result() or {})
        assert [row.name for row in result.rows] == ["teacher", "labels", "clean"]
        assert result.choice is None


def test_a_noise_object_that_changes_nothing_is_no_noise(tmp_path: Path) -> None:
    data = nt.load_data("mnist-5k", limit=40)
    options: dict[str, Any] = {"epochs": 1, "batch_size": 20, "teacher_training": {"epochs": 1}}
    result = nt.compress("lenet", "mlp800", data, noise=nt.Noise(sigma=0, alpha=0.5), output_dir=tmp_path, **options)
    assert [row.name for row in result.rows] == ["teacher", "labels", "clean"]


@pytest.mark.parametrize("unused", [{"alpha": 0.5}, {"draw": "row"}, {"frozen": True}, {"alpha": "auto"}])
def test_settings_of_a_noise_that_is_off_are_refused(unused: dict[str, Any]) -> None:
    for off in ({}, {"sigma": 0.0}):
        with pytest.raises(ConfigError, match=r"noise\.\w+: no effect without noise .*--sigma 0\.3.*--noise"):
            build_config({"noise": {**unused, **off}})
    build_config({"noise": {**unused, "sigma": 0.5}})
    build_config({"noise": {**unused, "sigma": "auto"}})
    assert build_config(describe(build_config({}))) == build_config({})


def test_settings_of_a_choice_that_is_not_made_are_refused() -> None:
    with pytest.raises(ConfigError, match="choice: has no effect"):
        build_config({"noise": {"sigma": 0.5}, "choice": {"seeds": 5}})
    with pytest.raises(ConfigError, match=r"choice\.sigmas: given \[\]; list should have at least 1"):
        build_config({"choice": {"sigmas": []}})
    with pytest.raises(ConfigError, match=r"sigma: given 'atuo'; expected number or .* or auto"):
        build_config({"noise": {"sigma": "atuo"}})


def test_distil_with_a_named_sigma_is_a_noisy_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specs: list[TrainingSpec] = []
    monkeypatch.setattr("noisyteacher.pipeline.single_step.train_run", specs.append)
    data = nt.load_data("mnist-5k", limit=60)
    store = nt.extract(nt.build_model("lenet", data), data.train, tmp_path / "store")
    distil_config(settings(tmp_path, {"sigma": 0.9}, choice={}), store.path)
    assert specs[0].experiment.noise == nt.Noise(sigma=0.9, alpha=0.15)
    assert specs[0].experiment.conditions == ["noisy"]


@pytest.mark.parametrize(
    ("noise", "choice", "problem"),
    [
        ({"sigma": "auto", "alpha": 0.5}, {"alphas": [0.1]}, r"choice\.alphas: .* noise\.alpha"),
        ({"sigma": "auto"}, {"alphas": [0.1]}, r"alpha is 0\.15 \(default 0\.15\): .* --alpha auto"),
        ({"sigma": 0.5}, {"sigmas": [0.1], "lrs": [0.1]}, r"choice\.sigmas: .* noise\.sigma"),
        ({"sigma": "auto"}, {"sigmas": [0.0]}, r"choice\.sigmas: .* no noise"),
        ({"sigma": "auto", "alpha": "auto"}, {"alphas": [0.0]}, r"choice\.alphas: .* no noise"),
    ],
)
def test_candidates_without_effect_are_refused(noise: dict[str, Any], choice: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        build_config({"noise": noise, "choice": choice})
