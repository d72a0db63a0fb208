"""sigma and alpha chosen on validation: candidates, the evidence, and the sentence on it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import made_runs
import noisyteacher as nt
from noisyteacher.cli import main
from noisyteacher.config import Config, build_config, describe
from noisyteacher.errors import ConfigError, UsageError
from noisyteacher.pipeline import Result, TrainingSpec, compress_config, distil_config, resume_compress
from noisyteacher.pipeline.compression_result import judged
from noisyteacher.pipeline.resolve import resolve_noise
from noisyteacher.pipeline.search import SearchTrial
from noisyteacher.report import build_report, read_studies
from noisyteacher.runs import Run

pytestmark = pytest.mark.usefixtures("unrendered")

SMALL: dict[str, Any] = {
    "data": {"limit": 60},
    "teacher": {"epochs": 1},
    "student": {"name": "mlp800", "epochs": 4, "batch_size": 30},
    "choice": {"sigmas": [0.5, 1.0], "alphas": [0.5, 1.0], "seeds": 2},
}


def settings(folder: Path, noise: dict[str, Any], **more: Any) -> Config:
    run = {"output_dir": str(folder), "baselines": False}
    return build_config({**SMALL, "noise": noise, "run": run, **more})


def test_candidates() -> None:
    def candidates(**noise: Any) -> list[tuple[Any, float]]:
        config = build_config({"noise": noise})
        return [(noise.sigma, noise.alpha) for noise in resolve_noise(config.noise, config.choice)[1]]

    assert candidates() == []  # without noise
    assert candidates(sigma="auto") == [(sigma, 0.15) for sigma in (0.1, 0.3, 0.6, 0.9)]
    assert candidates(sigma=0.5, alpha="auto") == [(0.5, 0.15), (0.5, 0.5)]
    assert len(candidates(sigma="auto", alpha="auto")) == 8
    assert candidates(sigma=0.5) == []
    named, none = resolve_noise(build_config({"noise": {"sigma": 0.5}}).noise, build_config({}).choice)
    assert (named, none) == (nt.Noise(sigma=0.5, alpha=0.15), ())
    for off in ({}, {"sigma": 0}, {"sigma": [0, 0]}, {"sigma": 0.5, "alpha": 0}):
        assert resolve_noise(build_config({"noise": off}).noise, build_config({}).choice) == (None, ())


def test_compress_chooses_and_shows_why(tmp_path: Path) -> None:
    result = compress_config(settings(tmp_path, {"sigma": "auto", "alpha": "auto", "draw": "row"}))
    choice = result.choice
    assert choice is not None
    candidates = choice["candidates"]
    assert [(noise["sigma"], noise["alpha"]) for noise in candidates] == [
        (0.0, 0.0), (0.5, 0.5), (0.5, 1.0), (1.0, 0.5), (1.0, 1.0)
    ]  # fmt: skip
    assert (choice["epochs"], choice["seeds"], choice["n"]) == (1, [1, 2], 60)  # a quarter of four epochs
    best = min(candidates, key=lambda noise: noise["mean"])
    assert choice["chosen"] == {"sigma": best["sigma"], "alpha": best["alpha"]}
    for noise in candidates:
        for run, error in zip(noise["runs"], noise["val_error_%"], strict=True):
            child = Run.open(result.path / run)
            assert (child.result() or {})["scores"]["val"]["error"]["value"] == error
            if noise["sigma"]:
                expected = nt.Noise(sigma=noise["sigma"], alpha=noise["alpha"], draw="row").describe()
                assert child.config["objective"]["noise"] == expected
    assert f"lowest of {len(candidates)} candidates" in str(result)
    assert str(Result.read(result.path, Run.open(result.path).result() or {})) == str(result)
    assert str(resume_compress(Run.open(result.path))) == str(result)


@pytest.mark.parametrize("errors", [(1.0, 2.0), (2.0, 1.0), (1.0, 1.0)])
def test_the_lowest_validation_error_wins_and_no_noise_wins_a_tie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, errors: tuple[float, float]
) -> None:
    """The short runs' errors are put in by hand: (no noise, sigma 0.5)."""

    def trial(experiment: Any, logits: Any, runs: Any, stages: Any, noise: Any, first_seed: int) -> SearchTrial:
        return SearchTrial(tuple(runs), (errors[noise is not None],), 1.0, 1)

    monkeypatch.setattr("noisyteacher.pipeline.search.run_trial", trial)
    result = compress_config(settings(tmp_path, {"sigma": "auto", "alpha": 0.5}, choice={"sigmas": [0.5]}))
    names = [row.name for row in result.rows]
    if errors[1] < errors[0]:
        assert names == ["teacher", "noisy"]
        assert result.noise is not None
        assert result.noise["sigma"] == 0.5
        assert "sigma 0.5, alpha 0.5 was chosen on validation (n = 60): error 1.00 % against 2.00 %" in str(result)
        assert result.choice is not None
        assert not set(result.choice["seeds"]) & set(result.conditions[-1].seeds)  # judged on others
    else:
        assert names == ["teacher", "clean"]
        assert result.noise is None
        assert (result.verdict or "").startswith("no noise (sigma 0) was chosen on validation")


def test_a_verdict_says_whether_the_choice_was_of_the_same_seeds(tmp_path: Path) -> None:
    run = made_runs.compression(tmp_path)
    result = Result.read(run.path, run.result() or {})
    sentences = {}
    for name, seeds in (("fresh", [7, 8]), ("same", [0, 7])):
        record = {"seeds": seeds, "chosen": {}, "summary": ""}
        sentences[name] = judged(replace(result, choice=record)).verdict or ""
    assert "choice and judgement share their seeds" in sentences["same"]
    assert "share" not in sentences["fresh"]
    assert sentences["fresh"] != (judged(result).verdict or "")


def test_seeds_of_the_control_are_a_setting_of_sweeps(tmp_path: Path) -> None:
    config = settings(tmp_path, {"sigma": "auto", "alpha": 0.5})
    config = replace(config, run=replace(config.run, control_seeds=4))
    with pytest.raises(UsageError, match="control_seeds: has no effect on a compression"):
        compress_config(config)


def test_distil_chooses_too(tmp_path: Path) -> None:
    data = nt.load_data("mnist-5k", limit=60)
    teacher = nt.build_model("lenet", data)
    nt.fit(teacher, data.train, nt.supervised(), val=data.val, epochs=1)
    store = nt.extract(teacher, data.train, tmp_path / "store")
    config = settings(tmp_path, {"sigma": "auto", "alpha": 0.5}, choice={"sigmas": [0.5], "seeds": 1})
    trained = distil_config(config, store.path)
    assert {child.path.name for child in trained.run.children()} == {
        "choice-clean-seed1",
        "choice-sigma0.5-alpha0.5-seed1",
    }
    chosen = trained.result["choice"]["chosen"]
    assert "lowest of 2 candidates" in trained.result["choice"]["summary"]
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
    monkeypatch.setattr(SearchTrial, "mean", property(lambda self: float(("clean" in self.runs[0]) == bool(sigma))))
    data = nt.load_data("mnist-5k", limit=60)
    store = nt.extract(nt.build_model("lenet", data), data.train, tmp_path / "store")
    words = ["distil", str(store.path), "--noise", "--data", "mnist-5k", "--student", "lenet", "--epochs", "1", "-q"]
    extra = ["data.limit=60", "choice.sigmas=[0.5]", "choice.seeds=1", "run.checks=false"]
    monkeypatch.setattr(sys, "argv", ["noisyteacher", *words, "--output-dir", str(tmp_path), *(
        word for setting in extra for word in ("--set", setting)
    )])  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        main()
    output = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0, output
    assert f"Noise: {'sigma 0.5, alpha 0.15' if sigma else 'no noise (sigma 0)'} was chosen on validation" in output


def test_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`nt.compress(noise="auto")` keeps the word in its config; a run without a result is reported as unfinished."""

    def trial(experiment: Any, logits: Any, runs: Any, stages: Any, noise: Any, first_seed: int) -> SearchTrial:
        return SearchTrial(tuple(runs), (float(noise is None),), 1.0, 1)

    monkeypatch.setattr("noisyteacher.pipeline.search.run_trial", trial)
    data = nt.load_data("mnist-5k", limit=60)
    options: dict[str, Any] = {"epochs": 1, "batch_size": 30, "teacher_training": {"epochs": 1}, "baselines": False}
    result = nt.compress("lenet", "mlp800", data, noise="auto", output_dir=tmp_path, **options)
    assert result.choice is not None
    assert len(result.choice["candidates"]) == 9
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
    choice = {"sigmas": [0.5], "seeds": 1}
    result = compress_config(settings(tmp_path, {"sigma": "auto", "alpha": 0.5}, choice=choice))
    (result.path / "result.json").unlink()
    again = resume_compress(Run.open(result.path))
    assert again.choice == result.choice is not None
    run = {"output_dir": str(tmp_path), "baselines": False}
    old = {**SMALL, "noise": {"sigma": 0, "draw": "row"}, "run": run, "choice": {}}
    first = compress_config(build_config(old, unused_noise=True))
    (first.path / "result.json").unlink()
    assert [row.name for row in resume_compress(Run.open(first.path)).rows] == ["teacher", "clean"]


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
