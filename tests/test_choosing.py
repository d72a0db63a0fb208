"""sigma and alpha left to validation: candidates, the evidence, and what is said of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import noisyteacher as nt
from noisyteacher.cli import main
from noisyteacher.config import build_config, describe
from noisyteacher.errors import ConfigError, UsageError
from noisyteacher.pipeline import Result, compress_config, distil_config, resume_compress
from noisyteacher.pipeline.choosing import Candidate, explain_choice
from noisyteacher.pipeline.plan import noise_of
from noisyteacher.report import build_report, read_studies
from noisyteacher.runs import Run

SMALL: dict[str, Any] = {
    "data": {"limit": 60},
    "teacher": {"epochs": 1},
    "student": {"name": "mlp800", "epochs": 4, "batch_size": 30},
    "choice": {"sigmas": [0.5, 1.0], "alphas": [0.5, 1.0], "seeds": 2},
}


def settings(folder: Path, noise: dict[str, Any], **more: Any) -> Any:
    given = {**SMALL, "noise": noise, "run": {"output_dir": str(folder), "baselines": False}, **more}
    if "choice" in more and more["choice"] is None:
        del given["choice"]
    return build_config(given)


def test_candidates() -> None:
    def asked(**noise: Any) -> list[tuple[Any, float]]:
        config = build_config({"noise": noise})
        return [(one.sigma, one.alpha) for one in noise_of(config.noise, config.choice)[1]]

    assert asked() == []  # nobody asked for noise
    assert asked(sigma="auto") == [(sigma, 0.15) for sigma in (0.1, 0.3, 0.6, 0.9)]
    assert asked(sigma=0.5, alpha="auto") == [(0.5, 0.15), (0.5, 0.5)]
    assert len(asked(sigma="auto", alpha="auto")) == 8
    assert asked(sigma=0.5) == []
    named, none = noise_of(build_config({"noise": {"sigma": 0.5}}).noise, build_config({}).choice)
    assert (named, none) == (nt.Noise(sigma=0.5, alpha=0.15), ())
    for off in ({}, {"sigma": 0}, {"sigma": [0, 0]}, {"sigma": 0.5, "alpha": 0}):
        assert noise_of(build_config({"noise": off}).noise, build_config({}).choice) == (None, ())


def test_compress_chooses_and_shows_why(tmp_path: Path) -> None:
    result = compress_config(settings(tmp_path, {"sigma": "auto", "alpha": "auto", "draw": "row"}))
    choice = result.choice
    assert choice is not None
    assert [(one["sigma"], one["alpha"]) for one in choice["candidates"]] == [
        (0.0, 0.0), (0.5, 0.5), (0.5, 1.0), (1.0, 0.5), (1.0, 1.0)
    ]  # fmt: skip
    assert (choice["epochs"], choice["seeds"], choice["n"]) == (1, [0, 1], 60)  # a quarter of four epochs
    best = min(choice["candidates"], key=lambda one: one["mean"])
    assert choice["chosen"] == {"sigma": best["sigma"], "alpha": best["alpha"]}
    for one in choice["candidates"]:
        for run, error in zip(one["runs"], one["val_error_%"], strict=True):
            child = Run.open(result.path / run)
            assert (child.result() or {})["scores"]["val"]["error"]["value"] == error
            if one["sigma"]:
                assert child.config["objective"]["noise"] == {
                    **nt.Noise(sigma=one["sigma"], alpha=one["alpha"], draw="row").describe()
                }
    assert f"lowest of {len(choice['candidates'])} candidates" in str(result)
    again = Result.read(result.path, Run.open(result.path).result() or {})
    assert str(again) == str(result)
    assert str(resume_compress(Run.open(result.path))) == str(result)


@pytest.mark.parametrize("errors", [(1.0, 2.0), (2.0, 1.0), (1.0, 1.0)])
def test_the_lowest_validation_error_wins_and_no_noise_wins_a_tie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, errors: tuple[float, float]
) -> None:
    """The short runs' errors are put in by hand: (no noise, sigma 0.5)."""
    import noisyteacher.pipeline.choosing as module

    class Told:
        def __init__(self, value: float) -> None:
            self.result = {"scores": {"val": {"error": {"value": value}}}}

    def fake(plan: Any, run: str, condition: str, noise: Any, *rest: Any) -> Told:
        return Told(errors[noise is not None])

    monkeypatch.setattr(module, "a_student", fake)
    result = compress_config(settings(tmp_path, {"sigma": "auto", "alpha": 0.5}, choice={"sigmas": [0.5]}))
    names = [row.name for row in result.rows]
    if errors[1] < errors[0]:
        assert names == ["teacher", "noisy"]
        assert result.noise is not None
        assert result.noise["sigma"] == 0.5
        assert "sigma 0.5, alpha 0.5 was chosen on validation (n = 60): error 1.00 % against 2.00 %" in str(result)
    else:
        assert names == ["teacher", "clean"]
        assert result.noise is None
        assert result.verdict.startswith("no noise (sigma 0) was chosen on validation")


def test_distil_chooses_too(tmp_path: Path) -> None:
    data = nt.load_data("mnist-5k", limit=60)
    teacher = nt.build_model("lenet", data)
    nt.fit(teacher, data.train, nt.supervised(), val=data.val, epochs=1)
    store = nt.extract(teacher, data.train, tmp_path / "store")
    config = settings(tmp_path, {"sigma": "auto", "alpha": 0.5}, choice={"sigmas": [0.5], "seeds": 1})
    trained = distil_config(config, store.path)
    assert {child.path.name for child in trained.run.children()} == {
        "choice-clean-seed0",
        "choice-sigma0.5-alpha0.5-seed0",
    }
    chosen = trained.result["choice"]["chosen"]
    assert "candidates" in explain_choice(trained.result["choice"])
    assert chosen["sigma"] in (0.0, 0.5)
    (line,) = read_studies([trained.run])[0].lines
    assert line.kind == ("noisy" if chosen["sigma"] else "clean")
    assert (line.settings["noise.sigma"], line.settings["noise.alpha"]) == (chosen["sigma"], chosen["alpha"])
    assert "How the noise was chosen" in build_report([trained.run], "html")
    (trained.run.path / "result.json").unlink()  # not done: nothing is chosen yet
    assert read_studies([trained.run])[0].lines[0].kind == "model"


@pytest.mark.parametrize("sigma", [0.0, 0.5])
def test_distil_says_which_noise_was_chosen(
    tmp_path: Path, sigma: float, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Candidate, "mean", property(lambda self: float((self.noise is None) == bool(sigma))))
    data = nt.load_data("mnist-5k", limit=60)
    store = nt.extract(nt.build_model("lenet", data), data.train, tmp_path / "store")
    words = ["distil", str(store.path), "--noise", "--data", "mnist-5k", "--student", "lenet", "--epochs", "1", "-q"]
    extra = ["data.limit=60", "choice.sigmas=[0.5]", "choice.seeds=1", "run.checks=false"]
    monkeypatch.setattr(sys, "argv", ["noisyteacher", *words, "--output-dir", str(tmp_path), *(
        word for one in extra for word in ("--set", one)
    )])  # fmt: skip
    with pytest.raises(SystemExit) as left:
        main()
    told = " ".join(capsys.readouterr().out.split())
    assert left.value.code == 0, told
    assert f"Noise: {'sigma 0.5, alpha 0.15' if sigma else 'no noise (sigma 0)'} was chosen on validation" in told


def test_a_compression_that_has_not_chosen_yet_is_reported_as_unfinished(tmp_path: Path) -> None:
    """`nt.compress(noise="auto")` keeps the word in its config; with a noisy student begun it has no result yet."""
    data = nt.load_data("mnist-5k", limit=60)
    options: dict[str, Any] = {"epochs": 1, "batch_size": 30, "teacher_training": {"epochs": 1}, "baselines": False}
    result = nt.compress("lenet", "mlp800", data, noise="auto", output_dir=tmp_path, **options)
    run = Run.open(result.path)
    (run.path / "result.json").unlink()
    for name in ("clean-seed0", "noisy-seed0"):
        if (run.path / name).is_dir():
            (run.path / name).rename(run.path / "noisy-seed0")
    page = build_report([run], "html")
    assert "This run is not finished" in page
    assert "The noise is not pictured" in page


@pytest.mark.parametrize("noise", [{}, {"sigma": 0.0}, {"sigma": 0.5, "alpha": 0.0}])
def test_without_noise_nothing_is_said_of_it_and_no_second_clean_student_is_trained(
    tmp_path: Path, noise: dict[str, Any]
) -> None:
    run = {"output_dir": str(tmp_path), "baselines": True}
    result = compress_config(settings(tmp_path, noise, choice=None, run=run))
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
    assert (kept["verdict"], kept["noise"]) == (None, None)
    assert str(Result.read(result.path, kept)) == str(result)


def test_results_of_earlier_versions_without_noise_are_read(tmp_path: Path) -> None:
    """They said in a bold line that no noise was used."""
    result = compress_config(settings(tmp_path, {}, choice=None))
    run = Run.open(result.path)
    run.write_result({**(run.result() or {}), "verdict": "no noise was used"})
    assert "no noise was used" not in build_report([run], "html").lower()


def test_a_run_that_was_begun_when_noise_was_the_default_still_chooses_it(tmp_path: Path) -> None:
    """Its config.json holds the default of its time, sigma "auto"; one with sigma 0 may hold more of the noise."""
    result = compress_config(settings(tmp_path, {"sigma": "auto", "alpha": 0.5}, choice={"sigmas": [0.5], "seeds": 1}))
    (result.path / "result.json").unlink()
    again = resume_compress(Run.open(result.path))
    assert again.choice == result.choice is not None
    config = build_config({**SMALL, "noise": {"sigma": 0, "draw": "row"}, "run": {"output_dir": str(tmp_path)},
                           "choice": {}}, unused_noise=True)  # fmt: skip
    begun = compress_config(config)
    (begun.path / "result.json").unlink()
    assert [row.name for row in resume_compress(Run.open(begun.path)).rows] == ["teacher", "labels", "clean"]


def test_a_noise_object_that_changes_nothing_is_no_noise(tmp_path: Path) -> None:
    data = nt.load_data("mnist-5k", limit=40)
    options: dict[str, Any] = {"epochs": 1, "batch_size": 20, "teacher_training": {"epochs": 1}}
    result = nt.compress("lenet", "mlp800", data, noise=nt.Noise(sigma=0, alpha=0.5), output_dir=tmp_path, **options)
    assert [row.name for row in result.rows] == ["teacher", "labels", "clean"]


def test_from_python(tmp_path: Path) -> None:
    data = nt.load_data("mnist-5k", limit=60)
    options: dict[str, Any] = {"epochs": 1, "batch_size": 30, "teacher_training": {"epochs": 1}, "baselines": False}
    result = nt.compress("lenet", "mlp800", data, noise="auto", output_dir=tmp_path, **options)
    assert result.choice is not None
    assert len(result.choice["candidates"]) == 9
    with pytest.raises(UsageError, match="'auto'"):
        nt.compress("lenet", "mlp800", data, noise="automatic", output_dir=tmp_path)


@pytest.mark.parametrize("unused", [{"alpha": 0.5}, {"draw": "row"}, {"frozen": True}, {"alpha": "auto"}])
def test_settings_of_a_noise_that_nobody_asked_for_are_refused(unused: dict[str, Any]) -> None:
    for off in ({}, {"sigma": 0.0}):
        with pytest.raises(ConfigError, match=r"noise\.\w+: no effect without noise .*--sigma 0\.3.*--noise"):
            build_config({"noise": {**unused, **off}})
    build_config({"noise": {**unused, "sigma": 0.5}})
    build_config({"noise": {**unused, "sigma": "auto"}})
    assert build_config(describe(build_config({}))) == build_config({})


def test_settings_of_a_choice_that_is_not_made_are_refused() -> None:
    with pytest.raises(ConfigError, match="choice: has no effect"):
        build_config({"noise": {"sigma": 0.5}, "choice": {"seeds": 5}})
    with pytest.raises(ConfigError, match=r"choice\.sigmas: the list is empty"):
        build_config({"choice": {"sigmas": []}})
    with pytest.raises(ConfigError, match="expected a number or 'auto'"):
        build_config({"noise": {"sigma": "atuo"}})


def test_candidates_that_came_to_the_same_are_told() -> None:
    tried = [
        {"sigma": sigma, "alpha": 0.5 if sigma else 0.0, "mean": mean}
        for sigma, mean in ((0.0, 2.0), (0.3, 1.5), (0.9, 1.5))
    ]
    choice = {
        "by": "validation error", "n": 60, "epochs": 1, "seeds": [0], "chosen": {"sigma": 0.3, "alpha": 0.5},
        "candidates": tried,
    }  # fmt: skip
    assert explain_choice(choice).endswith(
        "the lowest of 3 candidates after 1 epoch x 1 seed; 1 other came to the same"
    )
    tried[2]["mean"] = 1.6
    assert "same" not in explain_choice(choice)
