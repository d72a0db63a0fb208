"""The whole way on few images: what it leaves behind, resuming to the same bytes, honest sentences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisyteacher as nt
from noisyteacher.config import build_config
from noisyteacher.errors import (
    ConfigError,
    DataError,
    MismatchError,
    UnknownNameError,
    UsageError,
    WriteError,
)
from noisyteacher.evaluate import predict
from noisyteacher.models import as_classifier, weights_fingerprint
from noisyteacher.pipeline import Result, Row, extract_config, resume_compress
from noisyteacher.pipeline.training import Training, train_run
from noisyteacher.runs import Run, list_runs, new_run, remove_run
from noisyteacher.store import LogitStore


@pytest.fixture(scope="module")
def data() -> nt.Splits:

    return nt.load_data("mnist-5k", limit=120)


NOISE = nt.Noise(sigma=0.5, alpha=0.5, draw="row")


def run(data: nt.Splits, folder: Path, **options: Any) -> Result:
    settings: dict[str, Any] = {"noise": NOISE, "seeds": 2, "epochs": 2, "teacher_training": {"epochs": 2}, **options}
    return nt.compress("lenet", "mlp800", data, output_dir=folder, **settings)


def test_the_whole_way(tmp_path: Path, data: nt.Splits) -> None:
    seen: list[str] = []
    result = run(data, tmp_path, progress=lambda stage, done, total, note: seen.append(stage))
    assert [row.name for row in result.rows] == ["teacher", "labels", "clean", "noisy"]
    assert len({stage for stage in seen if stage.startswith("[")}) == 2 + 3 * 2
    assert (result.n, result.role, result.seeds) == (120, "test", 2)
    top = Run.open(result.path)
    assert top.state == "done"
    assert {child.path.name for child in top.children()} == {
        "teacher", "labels-seed0", "labels-seed1", "clean-seed0", "clean-seed1", "noisy-seed0", "noisy-seed1"
    }  # fmt: skip
    assert all(one.state == "done" for one in list_runs(tmp_path))
    store = LogitStore.open(result.path / result.store)
    teacher = nt.load_model(result.path / "teacher" / "weights.safetensors")
    assert store.verify(teacher, data.train).max_abs_difference < 1e-4
    student = nt.load_model(result.path / "noisy-seed1" / "weights.safetensors")
    scores = nt.evaluate(student, data.test, teacher=teacher)  # type: ignore[arg-type]
    assert scores.error == result.rows[3].errors[1]
    assert scores.agreement == result.rows[3].agreement[1]
    assert Run.open(result.path / "noisy-seed1").info["parents"]["store"] == store.digest
    assert result.rows[0].costs["parameters"] == 431_080
    assert result.rows[3].costs["parameters"] == 1_276_810
    again = Result.read(result.path, top.result() or {})
    assert str(again) == str(result)
    for part in ("teacher lenet", "student, noisy teacher", "2.96x", "n = 120 images", result.verdict):
        assert part in str(result)


def test_conditions_of_one_seed_start_from_the_same_weights(tmp_path: Path, data: nt.Splits) -> None:
    """At sigma 0 the noisy student is the clean one, bit for bit: the pair differs by the noise and by nothing else."""
    result = run(data, tmp_path, noise=nt.Noise(sigma=1e-30, alpha=0.5))  # 0 would train no noisy student
    named = {row.name: row for row in result.rows}
    for seed in range(2):
        clean, noisy = (
            nt.load_model(result.path / f"{name}-seed{seed}" / "weights.safetensors").state_dict()
            for name in ("clean", "noisy")
        )
        assert all(torch.equal(clean[key], noisy[key]) for key in clean)
    assert named["clean"].errors == named["noisy"].errors
    assert "no evidence" in (result.verdict or "")


@pytest.mark.parametrize("stop_at", [1, 5, 40, 80])
def test_interrupted_anywhere_and_resumed_gives_the_same_bytes(tmp_path: Path, data: nt.Splits, stop_at: int) -> None:
    class StopError(Exception):
        pass

    calls = 0

    def stop(stage: str, *told: object) -> None:
        nonlocal calls
        calls += bool(calls) or stage.startswith("[")  # from the first step on, when there is a folder to go on with
        if calls == stop_at:
            raise StopError

    options: dict[str, Any] = {"seeds": 1, "batch_size": 12, "epochs": 3}
    whole = run(data, tmp_path / "whole", **options)
    with pytest.raises(StopError):
        run(data, tmp_path / "cut", progress=stop, **options)
    (cut,) = (one for one in list_runs(tmp_path / "cut", 1))
    assert cut.state == "unfinished"
    resumed = run(data, tmp_path / "cut", run=cut.path, **options)
    assert resumed.path == cut.path
    compared = 0
    for path in sorted(whole.path.rglob("*.safetensors")):
        other = cut.path / path.relative_to(whole.path)
        assert other.read_bytes() == path.read_bytes(), path
        compared += 1
    assert compared == 3 + 2 * 4 + 1  # a store per split; best and last of the teacher and three students; best/
    assert (cut.path / whole.store / "store.json").read_bytes() == (
        whole.path / whole.store / "store.json"
    ).read_bytes()
    assert [row.errors for row in resumed.rows] == [row.errors for row in whole.rows]
    assert run(data, tmp_path / "cut", run=cut.path, **options).rows[3].errors == resumed.rows[3].errors
    with pytest.raises(MismatchError, match="other arguments"):
        run(data, tmp_path / "cut", run=cut.path, **{**options, "epochs": 4})
    with pytest.raises(UsageError, match=r"started in Python: call compress\(\.\.\., run="):
        resume_compress(cut)


def test_a_given_teacher(tmp_path: Path, data: nt.Splits) -> None:
    teacher = nt.build_model("lenet", data)
    nt.fit(teacher, data.train, nt.supervised(), epochs=1)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    module = run(data, tmp_path / "module", seeds=1, baselines=False)
    del module
    result = nt.compress(teacher, "mlp800", data, noise=NOISE, epochs=1, output_dir=tmp_path / "a")
    assert result.rows[0].seconds == ()
    assert "given" in str(result)
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    nt.save_model(teacher, tmp_path / "t.safetensors")
    from_file = nt.compress(
        str(tmp_path / "t.safetensors"), "mlp800", data, noise=NOISE, epochs=1, output_dir=tmp_path / "b"
    )
    from_run = nt.compress(
        str(result.path / "teacher"), "mlp800", data, noise=NOISE, epochs=1, output_dir=tmp_path / "c"
    )
    assert from_file.rows[3].errors == from_run.rows[3].errors == result.rows[3].errors


def test_a_students_module_of_the_users_own(tmp_path: Path, data: nt.Splits) -> None:
    torch.manual_seed(0)
    student = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    before = student[1].weight.clone()
    result = nt.compress(
        "lenet", student, data, noise=None, epochs=1, teacher_training={"epochs": 1}, output_dir=tmp_path
    )
    assert [row.name for row in result.rows] == ["teacher", "labels", "clean"]
    assert result.verdict is None
    assert torch.equal(student[1].weight, before)
    assert result.rows[2].costs["macs"] == 7840


def test_a_run_is_gone_on_with_only_by_the_same_modules(tmp_path: Path, data: nt.Splits) -> None:
    """Two modules of one class are two students, and two teachers: weights, shapes and layers tell them apart."""

    def module(seed: int, layer: nn.Module | None = None) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), layer or nn.Identity(), nn.Linear(784, 10))

    def go(student: nn.Module, teacher: nn.Module | str = "lenet", run: Path | None = None) -> Result:
        return nt.compress(
            teacher, student, data, epochs=1, teacher_training={"epochs": 1}, output_dir=tmp_path, run=run, checks=False
        )

    whole = go(module(0))
    config = Run.open(whole.path / "clean-seed0").config
    assert config["module"]["weights"] == weights_fingerprint(module(0))
    assert config["module"]["architecture"]["name"] == "module:torch.nn.modules.container.Sequential"
    assert [row.errors for row in go(module(0), run=whole.path).rows] == [row.errors for row in whole.rows]
    (whole.path / "result.json").unlink()
    for other in (module(1), module(0, nn.ReLU())):
        with pytest.raises(MismatchError, match=r"other arguments .*student_module"):
            go(other, run=whole.path)
    taught = go(module(0), teacher=module(2))
    with pytest.raises(MismatchError, match=r"other arguments .*teacher_module"):
        go(module(0), teacher=module(3), run=taught.path)


def test_a_run_that_is_removed_while_it_works_is_not_made_again(tmp_path: Path, data: nt.Splits) -> None:
    def remove(stage: str, done: int, total: int, note: str) -> None:
        if "labels alone" in stage:
            for one in list_runs(tmp_path, 1):
                one.path.rename(tmp_path / ".elsewhere")

    with pytest.raises(WriteError, match="the folder is gone"):
        run(data, tmp_path, progress=remove, seeds=1)
    assert [path.name for path in tmp_path.iterdir()] == [".elsewhere"]


def test_a_run_is_not_removed_while_it_works(tmp_path: Path, data: nt.Splits) -> None:
    refused = []

    def remove(stage: str, done: int, total: int, note: str) -> None:
        for one in list_runs(tmp_path):
            with pytest.raises(UsageError, match="a process is working on it"):
                remove_run(one)
            refused.append(stage)

    run(data, tmp_path, progress=remove, seeds=1, epochs=1)
    numbered = {stage for stage in refused if stage.startswith("[")}
    assert len(numbered) == 5  # teacher, its logits, three students
    remove_run(list_runs(tmp_path, 1)[0])


def test_without_a_test_split_validation_is_reported_and_said(tmp_path: Path, data: nt.Splits) -> None:
    from dataclasses import replace

    result = run(replace(data, test=None), tmp_path, seeds=1)
    assert result.role == "val"
    assert "val error %" in str(result)
    assert "validation error" in result.verdict or "no interval" in result.verdict


def test_wrong_questions_start_nothing(tmp_path: Path, data: nt.Splits) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'mlp800'"):
        nt.compress("lenet", "mlp80", data, output_dir=tmp_path / "a")
    with pytest.raises(UnknownNameError, match="did you mean 'lenet'"):
        nt.compress("lenett", "mlp800", data, output_dir=tmp_path / "b")
    with pytest.raises(ConfigError, match=r"student\.epoch: unknown setting; did you mean .student\.epochs"):
        nt.compress("lenet", "mlp800", data, epoch=3, output_dir=tmp_path / "c")
    with pytest.raises(ConfigError, match=r"run\.seeds: given 0"):
        nt.compress("lenet", "mlp800", data, seeds=0, output_dir=tmp_path / "d")
    with pytest.raises(DataError, match="no weights there"):
        nt.compress(str(tmp_path / "nothing.safetensors"), "mlp800", data, output_dir=tmp_path / "e")
    with pytest.raises(UsageError, match="does not say of which network"):
        nt.compress("teacher.pkl", "mlp800", data, output_dir=tmp_path / "f")
    wrong = nt.build_model("lenet", classes=3, input_shape=(1, 28, 28))
    with pytest.raises(MismatchError, match="classes 3"):
        nt.compress(wrong, "mlp800", data, output_dir=tmp_path / "g")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_run_says_why(tmp_path: Path, data: nt.Splits) -> None:
    with pytest.raises(nt.NoisyTeacherError, match=r"not finite|loss is"):
        run(data, tmp_path, lr=1e30, epochs=3)
    top = list_runs(tmp_path, 1)[0]
    assert top.state == "failed"
    assert "TrainingError" in (top.error() or "")


def test_the_table_says_lower_bound_where_operations_were_not_counted() -> None:
    costs = {"parameters": 10, "bytes": 40, "macs": 100, "unsupported": ["model: op"], "latency_ms": None}
    row = Row("teacher", "teacher x", (5.0,), (), (), costs, ("teacher",))
    shown = str(Result(Path("x"), "d", "test", 100, (row,), None, 0.0, "logits/x"))
    assert ">= 100" in shown


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_arithmetic_of_the_stored_answers_is_a_setting(tmp_path: Path, precision: str, data: nt.Splits) -> None:
    nt.save_model(nt.build_model("lenet", data), tmp_path / "teacher.safetensors")
    teacher = {"name": str(tmp_path / "teacher.safetensors"), "logits_precision": precision}
    given = {"data": {"name": "mnist-5k", "limit": 120}, "run": {"output_dir": str(tmp_path), "checks": False}}
    alone = extract_config(build_config({**given, "teacher": teacher}))
    assert alone.plan.precision == precision
    recipe = {"name": "lenet", "epochs": 1}
    swept = nt.sweep({**given, "teacher": teacher, "student": recipe}, {"noise.sigma": [0.0]}, seeds=1)
    stores = [LogitStore.open(path) for path in sorted((swept.path / "logits").iterdir())]
    assert {store.plan.precision for store in stores} == {precision}
    exact = predict(nt.load_model(tmp_path / "teacher.safetensors"), data.train)
    gap = float((alone.logits("clean", torch.arange(len(data.train))) - exact).abs().max())
    assert (gap < 1e-4) == (precision == "fp32")
    assert gap < 0.05 * float(exact.abs().max())


class Squeezing(nn.Module):
    """Answers two images and more."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 10, 5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).mean((2, 3), keepdim=True).squeeze()


@pytest.mark.parametrize("network", [Squeezing, nn.Flatten])
def test_a_training_is_kept_where_its_costs_cannot_be_told(
    tmp_path: Path, data: nt.Splits, network: type[nn.Module]
) -> None:
    layers = network() if network is Squeezing else nn.Sequential(network(), nn.Linear(784, 10))
    asked = Training(
        run=new_run(tmp_path, "train", "own", {}, seed=0), model=as_classifier(layers, input_shape=(1, 28, 28)),
        data=data, objective=nt.supervised(), recipe={"epochs": 1, "precision": "fp32"}, seed=0, priced=True,
    )  # fmt: skip
    first, again = train_run(asked), train_run(asked)
    assert asked.run.state == "done"
    assert first.result == again.result
    assert (first.result["costs"] is None) == (network is Squeezing)
    if network is not Squeezing:
        assert first.result["costs"]["macs"] == 7840
