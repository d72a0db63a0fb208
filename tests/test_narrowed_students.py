"""Students narrowed from the teacher, and presets, in every command that trains students."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import noisyteacher as nt
from noisyteacher.config import Student, build_config
from noisyteacher.errors import ConfigError, UsageError
from noisyteacher.models import model_record
from noisyteacher.pipeline import resolve
from noisyteacher.pipeline.compression import compress_config
from noisyteacher.pipeline.preflight import wrong_names
from noisyteacher.pipeline.resolve import fit_options
from noisyteacher.pipeline.single_step import distil_config
from noisyteacher.runs import Run, list_runs
from noisyteacher.sweep import sweep

pytest.importorskip("torch_pruning", reason="needs the extra prune")
LENET = "pretrained:lenet-mnist"
OF_LENET = {"of": {"name": "lenet", "options": {"dropout": 0.0}}}


@pytest.fixture(scope="module")
def data() -> nt.Splits:
    return nt.load_data("mnist-5k", limit=60)


def factory(classes: int, hidden: int = 24) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, hidden), nn.ReLU(), nn.Linear(hidden, classes))


def settings(folder: Path, **parts: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "data": {"limit": 60}, "teacher": {"epochs": 1}, "student": {"name": "shrink:0.5", "epochs": 1},
        "noise": {"sigma": 0.5}, "run": {"output_dir": str(folder), "threads": 1},
    }  # fmt: skip
    return {key: {**values[key], **parts.get(key, {})} for key in values}


def test_a_compression_narrows_the_teacher_it_trains(tmp_path: Path) -> None:
    result = compress_config(build_config(settings(tmp_path)))
    student = nt.load_model(result.path / "noisy-seed0" / "weights.safetensors")
    assert (student.name, student.architecture["options"]) == ("shrink:0.5", OF_LENET)
    conv, linear = student.get_submodule("network.conv2"), student.get_submodule("network.fc2")
    assert [conv.out_channels, linear.out_features] == [25, 10]
    assert result.rows[-1].cost("parameters") == (10 * 25 + 10) + (25 * 250 + 25) + (25 * 16 * 250 + 250) + (
        250 * 10 + 10
    )
    assert "compress-shrink-0.5" in result.path.name
    assert Run.open(result.path / "noisy-seed0").config["recipe"]["lr"] == 0.003  # it has the teacher's weights


def test_a_narrowed_module_keeps_its_name(tmp_path: Path, data: nt.Splits) -> None:
    student = nt.build_model("shrink:0.5", data, teacher=nt.load_model(LENET))
    result = nt.compress(LENET, student, data, epochs=1, baselines=False, output_dir=tmp_path)
    assert [row.model for row in result.conditions] == ["shrink:0.5"]
    assert "-compress-shrink-0.5-from-lenet-mnist-" in result.path.name


def test_from_python_with_a_file_a_module_and_a_model_of_a_factory(tmp_path: Path, data: nt.Splits) -> None:
    named = nt.build_model("lenet", data)
    nt.save_model(named, tmp_path / "t.safetensors")
    from_factory = nt.build_model(f"{__name__}:factory", data, hidden=40)
    nt.save_model(from_factory, tmp_path / "f.safetensors")

    def narrowed(teacher: Any, **more: Any) -> tuple[nt.Result, Path]:
        where = tmp_path / "runs"
        how = {"baselines": False, "epochs": 1, "checks": False, **more}
        result = nt.compress(teacher, "shrink:0.25", data, output_dir=where, **how)
        return result, result.path / "clean-seed0" / "weights.safetensors"

    _, file = narrowed(str(tmp_path / "t.safetensors"))
    assert nt.load_model(file).architecture["options"] == OF_LENET
    for teacher in (from_factory, str(tmp_path / "f.safetensors")):
        _, file = narrowed(teacher, allow_import=True)
        assert nt.load_model(file, allow_import=True).get_submodule("network.1").out_features == 10
    bare = factory(10)
    before = bare.get_parameter("1.weight").clone()
    result, file = narrowed(bare)
    with pytest.raises(UsageError, match="cannot be rebuilt"):
        nt.load_model(file)
    again = nt.compress(
        bare,
        "shrink:0.25",
        data,
        baselines=False,
        epochs=1,
        output_dir=tmp_path / "runs",
        run=result.path,
        checks=False,
    )
    assert again.rows[1].errors == result.rows[1].errors
    assert torch.equal(bare.get_parameter("1.weight"), before)


def test_a_wrong_ratio_or_teacher_starts_nothing(tmp_path: Path) -> None:
    for parts, message in (
        ({"student": {"name": "shrink:2"}}, "0 < RATIO <= 1"),
        ({"student": {"options": {"dropout": 0.5}}}, "have no effect on 'shrink:0.5'"),
        ({"teacher": {"name": "shrink:0.5"}}, "pass teacher="),
    ):
        with pytest.raises(UsageError, match=message):
            compress_config(build_config(settings(tmp_path, **parts)))
        assert list(tmp_path.iterdir()) == []
    wrong = build_config({"student": {"name": "shrink:much"}, "teacher": {"name": "shrink:0.5"}})
    problems = wrong_names(wrong)
    assert len(problems) == 2
    assert "teacher.name: 'shrink:0.5' narrows a teacher and cannot be one" in problems[0]
    assert "student.name: model 'shrink:much': expected shrink:RATIO" in problems[1]
    assert wrong_names(build_config(settings(tmp_path))) == []


def test_a_sweep_over_students_narrowed_and_named(tmp_path: Path) -> None:
    base = settings(tmp_path, noise={"sigma": 0.0}, student={"preset": "modern", "views": ["clean"]})
    result = sweep(base, {"student.name": ["shrink:0.5", "shrink:0.25", "compact-xs"]}, seeds=1)
    assert result.failed == {}
    assert {condition.model: condition.cost("parameters") for condition in result.conditions} == {
        "shrink:0.5": 109_295, "shrink:0.25": 130 + (13 * 125 + 13) + (13 * 2000 + 125) + 1260, "compact-xs": 139_178,
    }  # fmt: skip
    cell = Run.open(result.path / "clean-shrink-0.25-seed0")
    assert cell.config["recipe"]["optimizer"] == "adamw"
    assert "preset" not in cell.config["recipe"]
    with pytest.raises(ConfigError, match=r"student\.preset cannot vary"):
        sweep(base, {"student.preset": ["paper", "modern"]}, seeds=1)


def test_distilled_from_a_store_alone(tmp_path: Path, data: nt.Splits) -> None:
    """The store says what its teacher was; a factory it names is not imported because a file says so."""
    nt.extract(nt.build_model("lenet", data), data.train, tmp_path / "store")
    trained = distil_config(build_config(settings(tmp_path / "runs")), tmp_path / "store")
    assert nt.load_model(trained.run.path / "weights.safetensors").architecture["options"] == OF_LENET
    record = model_record(trained.run.path / "weights.safetensors")
    assert record["training"]["settings"]["lr"] == 0.01  # its weights are random
    nt.extract(nt.build_model(f"{__name__}:factory", data), data.train, tmp_path / "other")
    with pytest.raises(UsageError, match=r"would import and call '.*:factory', which a file names"):
        distil_config(build_config(settings(tmp_path / "none")), tmp_path / "other")
    other = settings(tmp_path / "runs", student={"name": "compact-xs"})
    assert distil_config(build_config(other), tmp_path / "other").result["scores"]
    assert not (tmp_path / "none").exists()


def test_a_preset_of_a_compression_is_resolved_in_its_config(tmp_path: Path, data: nt.Splits) -> None:
    teacher = nt.build_model("mlp800", data)
    result = nt.compress(
        teacher, "shrink:0.1", data, baselines=False, preset="modern", epochs=1, lr=0.002, output_dir=tmp_path,
        checks=False,
    )  # fmt: skip
    student = Run.open(result.path).config["student"]
    assert [student[name] for name in ("preset", "optimizer", "lr", "batch_size")] == ["modern", "adamw", 0.002, 128]
    (child,) = [run for run in list_runs(tmp_path) if run.path.name == "clean-seed0"]
    assert len(child.config["recipe"]["views"]) == 18


@pytest.mark.parametrize(
    ("name", "init", "rate"),
    [("shrink:0.5", "magnitude", 0.003), ("shrink:0.4375", "magnitude", 0.01), ("shrink:0.5", "random", 0.01)],
)
def test_a_student_with_half_of_its_teachers_weights_has_a_lower_rate(
    name: str, init: str, rate: float, data: nt.Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = nt.build_model(name, data, teacher=nt.load_model(LENET), init=init)
    assert fit_options(Student(), student, data)["lr"] == rate
    assert fit_options(Student(lr=0.02), student, data)["lr"] == 0.02
    monkeypatch.setattr(resolve, "LARGER_BATCHES", {50: (128, 0.03)})
    monkeypatch.setattr(resolve, "preferred_optimizer", lambda *_: "muon")
    assert fit_options(Student(), student, data)["batch_size"] == (32 if rate == 0.003 else 128)
