"""The paper's experiments: what is run is what the paper states, and its numbers stand beside the right rows."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from helpers import Call
from noisyteacher import device
from noisyteacher.cli import main
from noisyteacher.errors import ConfigError, UnknownNameError, UsageError
from noisyteacher.paper import BUDGETS, EXPERIMENTS, regime, relatives, run_paper
from noisyteacher.paper.experiments import SAME, experiment
from noisyteacher.paper.reference import curve, curves, matching_curves
from noisyteacher.paper.run import _study_result, adapted, paper_number, with_teacher
from noisyteacher.pipeline.results import Condition
from noisyteacher.runs import Run, list_runs
from noisyteacher.sweep import expand

FULL = BUDGETS["full"]
SMALL = {"student.epochs": 1, "student.batch_size": 100, "data.limit": 100, "teacher.epochs": 1}


def conditions(name: str) -> list[tuple[str, list[Any]]]:
    return [(part.name, expand(part.base, part.grids)[0]) for part in experiment(name).parts(FULL)]


def test_every_table_is_what_the_paper_states() -> None:
    """Networks, data, alpha, batch and optimiser of paper.md sections 3 and 5, read off the resolved settings."""
    stated = {
        "table1": ("mnist", "lenet", ["mlp800"], 0.15),
        "table2": ("svhn", "nin", ["lenet-svhn"], 0.15),
        "table3": ("cifar10", "nin", ["lenet-cifar"], 0.5),
        "table6": ("cifar10", "nin", ["student1", "student2", "student3"], 0.5),
        "fig2": ("cifar10", "nin", ["lenet-cifar"], 0.5),
    }
    for name, (data, teacher, students, alpha) in stated.items():
        numbers = conditions(name)
        assert [members[0].config.student.name for _, members in numbers] == students, name
        for _, members in numbers:
            for row in members:
                config = row.config
                assert (config.data.name, config.teacher.name) == (data, teacher)
                assert (config.student.optimizer, config.student.batch_size) == ("adam", 64)
                assert row.kind != "noisy" or config.noise.alpha == alpha
                mirrored = ["clean", "mirror"] if data == "cifar10" else ["clean"]
                assert (config.student.views, config.student.every_view) == (mirrored, data == "cifar10")


def test_the_grids_are_the_papers_and_ours() -> None:
    tenths = {number / 10 for number in range(1, 11)}
    assert all(members for _, members in conditions("why"))
    (_, table1), = conditions("table1")  # fmt: skip
    labels = [row.title for row in table1]
    assert {"labels alone", "clean", "clean, soft targets", "sigma 0.9, on the student, batch"} & set(labels) >= {
        "labels alone", "clean", "clean, soft targets"
    }  # fmt: skip
    for draw in ("batch", "row"):
        on_teacher = [row for row in table1 if row.kind == "noisy" and row.config.noise.target == "teacher"]
        assert {row.config.noise.sigma for row in on_teacher if row.config.noise.draw == draw} == tenths
    assert any(row.config.noise.target == "student" for row in table1)
    (_, figure2), = conditions("fig2")  # fmt: skip
    assert {row.config.noise.sigma for row in figure2 if row.kind == "noisy"} == tenths
    assert {row.config.noise.target for row in figure2 if row.kind == "noisy"} == {"student"}
    (_, table4), = conditions("table4")  # fmt: skip
    assert {row.config.noise.alpha for row in table4 if row.kind == "noisy"} == tenths
    assert {row.config.noise.sigma for row in table4 if row.kind == "noisy"} == {0.6}
    (_, table5), = conditions("table5")  # fmt: skip
    dropouts = {row.config.student.options.get("dropout") for row in table5}
    assert dropouts == {number / 10 for number in range(1, 10)}
    assert not any(row.kind == "noisy" for row in table5)
    section = dict(conditions("section5.4"))
    assert any(row.config.noise.sigma == (0.01, 1.0) for row in section["drawn-sigma"])
    assert {row.config.teacher.name for row in section["teacher2"]} == {"alexnet-cifar"}
    both = section["two-teachers"][1].config
    assert (both.teacher.name, both.teacher.also, both.student.combine) == ("nin", ["alexnet-cifar"], "geometric")


def test_the_papers_numbers_stand_beside_the_right_conditions() -> None:
    (part,) = experiment("table1").parts(FULL)
    numbers = {
        row.title: paper_number(part, Condition(row.name, row.title, row.kind, settings=row.settings))
        for row in expand(part.base, part.grids)[0]
    }
    assert numbers["clean"] == 0.97
    assert numbers["sigma 0.8, batch"] == numbers["sigma 0.8, row"] == 0.86
    assert numbers["sigma 0.1, batch"] == 0.96
    assert numbers["labels alone"] is None
    assert numbers["clean, soft targets"] is None
    assert [value for label, value in numbers.items() if "on the student" in label] == [None, None]
    (part,) = experiment("table5").parts(FULL)
    values = {
        row.settings.get("student.options.dropout"): paper_number(
            part, Condition(row.name, row.title, row.kind, settings=row.settings)
        )
        for row in expand(part.base, part.grids)[0]
        if row.kind == "clean"
    }
    assert (values[0.1], values[0.8]) == (22.18, 25.34)  # the paper's ratio read as the share kept
    alone = Condition("labels", "labels", "labels", settings={"student.options.dropout": 0.1})
    assert paper_number(part, alone) is None, "the paper has no student on labels alone"
    drawn = experiment("section5.4").parts(FULL)[0]
    assert paper_number(drawn, Condition("", "", "noisy")) == 19.08
    assert paper_number(drawn, Condition("", "", "clean")) is None


def test_the_papers_numbers() -> None:
    """Spot checks against the paper's tables, typed again."""
    assert curve("table1").errors == (0.96, 0.93, 0.94, 0.87, 0.87, 0.90, 0.90, 0.86, 0.86, 0.87)
    assert curve("table3").error_at(0.9) == 18.68
    assert curve("table4").errors[4] == curve("table3").errors[5] == 19.15
    assert curve("figure2").digitised
    assert not curve("table5").digitised
    assert min(curve("table2").errors) == 4.45
    for row in curves():
        assert len(row.x) == len(row.errors)
        assert 0 < min(row.errors) < max(row.errors) < 100
    ours = {"data": "mnist", "teacher": "lenet", "student": "mlp800", "axis": "sigma"}
    assert [row.id for row in matching_curves(**ours, alpha=0.15)] == ["table1"]
    assert matching_curves(**ours, alpha=0.5) == []
    assert matching_curves(**{**ours, "data": "mnist-5k"}, alpha=0.15) == []


@pytest.mark.parametrize("name", ["table1", "table3", "table5", "section5.4", "constant", "why"])
def test_every_kind_of_experiment_runs_and_is_read_again(
    tmp_path: Path, name: str, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    """The experiments' own grids, students and views, on a few generated images of the data set's shape."""
    least = replace(BUDGETS["quick"], seeds=1, sigmas=(0.9,), alphas=(1.0,), dropouts=(0.5,), control=3)
    monkeypatch.setitem(BUDGETS, "quick", least)
    parts = {"why": ["matched", "data"], "section5.4": ["drawn-sigma", "two-teachers"]}.get(name, [])
    overrides = {**SMALL, **tiny[experiment(name).name]}
    if name not in ("table1", "why"):
        overrides["teacher.name"] = "lenet-cifar"  # NIN takes long; table 6 runs with it below
    if name == "section5.4":
        overrides["teacher.also"] = ["mlp800"]  # instead of AlexNet
    result = run_paper(name, "quick", output_dir=tmp_path, overrides=overrides, parts=parts)
    assert not result.failed
    assert Run.open(result.path).state == "done"
    table = result.table()
    assert len(table.rows) == len(result.paper) > 2
    assert all(len(row) == len(table.headers) for row in table.rows)
    seeds = {row.kind: row.ours.n for row in result.paper if row.ours is not None and "soft" not in row.label}
    assert seeds["clean"] == (3 if name == "table1" else 1)
    again = run_paper(name, "quick", output_dir=tmp_path, overrides=overrides, parts=parts)
    assert again.path == result.path
    assert again.paper == result.paper
    code, shown, _ = call("runs", "show", str(result.path))
    assert code == 0
    assert shown.splitlines()[0] == table.text(120).splitlines()[0]
    assert f"Run folder: {result.path}" in shown
    assert len([run for run in list_runs(tmp_path, 1) if run.info["kind"] == "paper"]) == 1


def test_an_experiment_goes_on_in_the_precision_it_was_begun_in(
    tmp_path: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`auto` is measured, and may come out otherwise on another day: neither teacher nor students are begun anew."""
    words: dict[str, Any] = {"sigmas": [0.9], "seeds": 1, "output_dir": tmp_path}
    overrides = {**SMALL, **tiny["table1"]}
    monkeypatch.setattr(device, "_faster_precision", lambda device: "fp32")
    begun = run_paper("table1", "quick", overrides=overrides, **words)
    (part,) = Run.open(begun.path).children()
    cells = {child.path.name: child.started for child in part.children()}
    for path in (begun.path / "result.json", part.path / "result.json", part.path / "clean-seed0" / "result.json"):
        path.unlink()
    monkeypatch.setattr(device, "_faster_precision", lambda device: "bf16")
    again = run_paper("table1", "quick", overrides=overrides, **words)
    assert again.path == begun.path
    assert again.paper == begun.paper
    assert {child.path.name: child.started for child in part.children()} == cells
    assert len([run for run in list_runs(tmp_path, 1) if run.info["kind"] == "train"]) == 1
    run_paper("table1", "quick", overrides=overrides, **{**words, "sigmas": [0.5]})
    assert len([run for run in list_runs(tmp_path, 1) if run.info["kind"] == "train"]) == 1, "one teacher for all"


def test_figure_3_is_table_6_with_its_curves() -> None:
    assert SAME == {"fig3": "table6"}
    assert [part.curve for part in experiment("table6").parts(FULL)] == [f"figure3-student{k}" for k in (1, 2, 3)]


def test_a_part_with_sigmas_and_seeds_of_ones_own(tmp_path: Path, tiny: dict[str, Any]) -> None:
    words: dict[str, Any] = {"parts": ["student3"], "sigmas": [0.3], "seeds": 1, "output_dir": tmp_path}
    result = run_paper("table6", "quick", overrides={**SMALL, **tiny["table6"]}, **words)
    assert result.sweeps == ("student3",)
    labels = [row.label for row in result.paper]
    assert [label for label in labels if "sigma" in label] == ["sigma 0.3, batch", "sigma 0.3, row"]
    assert {row.ours.n for row in result.paper if row.ours} == {1}
    assert Run.open(result.path).config["seeds"] == 1
    again = run_paper("table6", "quick", overrides={**SMALL, **tiny["table6"]}, **words)
    assert again.path == result.path


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({"parts": ["studnet3"]}, UnknownNameError, "did you mean 'student3'"),
        ({"seeds": 0}, UsageError, "seeds=0: expected a whole number >= 1"),
        ({"jobs": 0}, UsageError, "jobs=0: expected a whole number >= 1"),
        ({"jobs": 2, "stack": 8}, UsageError, "jobs, stack, .* only one of them"),
        ({"overrides": {"student.epohcs": 2}}, ConfigError, r"student\.epohcs: .*did you mean 'student\.epochs'"),
        ({"overrides": {"run.control_seeds": 1}}, UsageError, r"run\.control_seeds=1: expected"),
        ({"overrides": {"target.minutes": 5.0}}, UsageError, r"target\.minutes: no effect on a sweep"),
        ({"overrides": {"run.seeds": 7}}, UsageError, r"run\.seeds: no effect .* give --seeds"),
        ({"overrides": {"run.output_dir": "x"}}, UsageError, r"run\.output_dir: no effect .* give --output-dir"),
        ({"name": "table1", "extra": False}, UsageError, "extra: no effect on table1"),
        ({"teacher": "nin"}, UsageError, "teacher 'nin': expected a trained one"),
        ({"teacher": "hf:microsoft/resnet-18"}, UsageError, "expected a trained one"),
        ({"name": "table4", "sigmas": [0.3]}, UsageError, "table4 has sigmas of its own"),
        ({"name": "why", "sigmas": [0.3]}, UsageError, "why has sigmas of its own"),
        (
            {"name": "section5.4", "parts": ["teacher2"], "teacher": "a/b.safetensors"},
            UsageError,
            "replace nin, which is no teacher in teacher2",
        ),
    ],
)
def test_a_part_that_is_none(tmp_path: Path, words: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run_paper(**{"name": "table6", "budget": "quick", "output_dir": tmp_path, **words})
    assert not list(tmp_path.iterdir())


def test_what_a_student_cannot_be_is_refused_before_its_teacher_is_trained(
    tmp_path: Path, tiny: dict[str, Any]
) -> None:
    for name, message in (("lenet-cifra", "did you mean 'lenet-cifar'"), ("auto", "only compress chooses one")):
        overrides = {**SMALL, **tiny["table3"], "student.name": name}
        with pytest.raises(UsageError, match=message):
            run_paper("table3", "quick", output_dir=tmp_path, overrides=overrides)
    overrides = {**SMALL, **tiny["table3"], "run.profile": True}
    with pytest.raises(UsageError, match=r"run\.profile measures the steps of one student"):
        run_paper("table3", "quick", output_dir=tmp_path, overrides=overrides, stack=2)
    assert not list(tmp_path.iterdir())


def test_one_further_seed_of_the_control_is_left_out(tmp_path: Path, tiny: dict[str, Any]) -> None:
    """With one seed a noise, `standard` would have two of its clean student: one further, which judges nothing."""
    overrides = {**SMALL, **tiny["table1"]}
    result = run_paper("table1", "standard", output_dir=tmp_path, overrides=overrides, seeds=1, sigmas=[0.9])
    assert {row.ours.n for row in result.paper if row.ours} == {1}


def test_the_rows_of_a_study_are_of_the_kind_of_their_arm(tmp_path: Path) -> None:
    settings = {arm.title: asdict(arm) for arm in relatives.ARMS["logit_regression"]}
    settings["noisy, no decay"] = {"lr": 0.1, "weight_decay": 0.0, "noise": regime.STRONG, "dropout": 0.0}
    arms = {title: {"settings": each, "test_error_%": {"last": [1.0, 2.0]}} for title, each in settings.items()}
    none: dict[str, Any] = {key: {} for key in ("contrasts", "against_reference", "against_clean_no_decay", "diverged")}
    record: dict[str, Any] = {"cell": {"name": "cell", "data": "mnist"}, "arms": arms, **none}
    result = _study_result(tmp_path, "quick", relatives, [record], "mnist", [])
    kinds = {row.label.removeprefix("cell: "): row.kind for row in result.paper}
    assert {kinds[name] for name in ("labels alone", "labels, smoothed by 0.1")} == {"labels"}
    assert {kinds[name] for name in ("noise, mean of 3 draws", "mix, sigma 0.5", "noisy, no decay")} == {"noisy"}
    assert {kinds[name] for name in ("clean", "permuted teacher", "teacher of 40 % wrong labels")} == {"clean"}


def test_a_teacher_of_ones_own_stands_for_the_first_alone() -> None:
    """The paper's numbers stand beside it where it is a network of the same kind."""
    parts, name = experiment("section5.4").parts(FULL), "pretrained:nin-cifar10"
    replaced = with_teacher(name, experiment("section5.4"), parts)
    assert [row.base["teacher"]["name"] for row in replaced] == [name, "alexnet-cifar", name]
    assert {row.changed for row in replaced} == {()}
    of_another = with_teacher("pretrained:lenet-mnist", experiment("section5.4"), parts)
    assert [row.changed for row in of_another] == [("teacher.name",), (), ("teacher.name",)]
    assert replaced[2].base["teacher"]["also"] == ["alexnet-cifar"]
    assert parts[0].base["teacher"]["name"] == "nin", "the experiment itself is as it was"


def test_the_papers_numbers_do_not_stand_beside_other_settings(tmp_path: Path, tiny: dict[str, Any]) -> None:
    """An alpha that is not the paper's, and data that are not, take its numbers away; epochs, which it leaves open, do
    not."""
    (part,) = experiment("table1").parts(FULL)
    for overrides, changed in (
        ({"student.epochs": 3, "noise.draw": "row", "noise.alpha": 0.15}, ()),
        ({"noise.alpha": 0.5}, ("noise.alpha",)),
        ({"student.options": {"dropout": 0.1}, "noise.kind": "additive"}, ("student.options", "noise.kind")),
        ({"student.loss": "soft_targets", "student.label_weight": 0.3}, ("student.loss", "student.label_weight")),
        ({"student.loss": "logit_regression", "student.label_weight": 0, "noise.until": 1}, ()),
        ({"student.scale": "rms", "noise.draws": 3}, ("student.scale", "noise.draws")),
        ({"teacher.also": ["mlp800"], "student.combine": "pick"}, ("teacher.also", "student.combine")),
    ):
        assert adapted(part, {}, overrides).changed == changed
    result = run_paper("table1", "quick", output_dir=tmp_path, seeds=1, sigmas=[0.3],
                       overrides={**SMALL, **tiny["table1"]})  # fmt: skip
    assert {row.paper for row in result.paper} == {None}
    assert result.remarks == ("The paper's numbers are left out: data.limit, data.name not as it states.",)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["all", "--sigmas", "0.3"], "table4, table5, section5.4, why have sigmas of their own"),
        (["table6", "--teacher", "lenet"], "lenet"),
    ],
)
def test_options_that_would_change_nothing(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["noisyteacher", "paper", *words, "--output-dir", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("sigmas", ["0.3;0.9", "-0.1", "inf", "nan", ""])
def test_sigmas_that_are_none(
    sigmas: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["noisyteacher", "paper", "table6", f"--sigmas={sigmas}", "--output-dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "--sigmas" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'table1'"):
        run_paper("tabel1", "quick", output_dir=tmp_path)
    with pytest.raises(UnknownNameError, match="did you mean 'quick'"):
        run_paper("table1", "quik", output_dir=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Per experiment, settings that put a small .npz in the place of its official files."""
    import numpy as np

    folder = tmp_path_factory.mktemp("tiny")
    numbers = {}
    for name, shape in (("grey", (28, 28)), ("colour", (32, 32, 3))):
        rng = np.random.default_rng(0)
        arrays: dict[str, Any] = {}
        for role, count in (("train", 20), ("val", 10), ("test", 10)):
            arrays[f"x_{role}"] = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
            arrays[f"y_{role}"] = np.arange(count) % 10
        np.savez(folder / f"{name}.npz", **arrays)
        numbers[name] = {"data.name": str(folder / f"{name}.npz")}
    return {name: numbers["grey" if name in ("table1", "why") else "colour"] for name in EXPERIMENTS}
