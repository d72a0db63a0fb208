"""The whole way on few images: what it leaves behind, resuming to the same bytes, honest sentences."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import noisyteacher as nt
from helpers import labels_of
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
from noisyteacher.pipeline import Result
from noisyteacher.pipeline.compression import resume_compress
from noisyteacher.pipeline.experiment import Experiment, TrainingSpec, train_run
from noisyteacher.pipeline.single_step import extract_config, train_config
from noisyteacher.runs import Run, list_runs, new_run, remove_run
from noisyteacher.store import LogitStore


@pytest.fixture(scope="module")
def data() -> nt.Splits:

    return nt.load_data("mnist-5k", limit=120)


NOISE = nt.Noise(sigma=0.5, alpha=0.5, draw="row")


def compressed(data: nt.Splits, folder: Path, teacher: str | Path | nn.Module = "lenet", **options: Any) -> Result:
    settings: dict[str, Any] = {"noise": NOISE, "seeds": 2, "epochs": 2, **options}
    if teacher == "lenet":
        settings.setdefault("teacher_training", {"epochs": 2})
    return nt.compress(teacher, "mlp800", data, output_dir=folder, **settings)


def test_the_whole_way(tmp_path: Path, data: nt.Splits) -> None:
    seen: list[str] = []
    result = compressed(data, tmp_path, progress=lambda stage, done, total, note: seen.append(stage))
    assert [row.name for row in result.rows] == ["teacher", "labels", "clean", "noisy"]
    assert len({stage.split("]")[0] for stage in seen if stage.startswith("[")}) == 2 + 3 * 2
    assert (result.n["test"], result.role, result.seeds) == (120, "test", 2)
    top = Run.open(result.path)
    assert top.state == "done"
    assert {child.path.name for child in top.children()} == {
        "teacher", "labels-seed0", "labels-seed1", "clean-seed0", "clean-seed1", "noisy-seed0", "noisy-seed1"
    }  # fmt: skip
    assert all(run.state == "done" for run in list_runs(tmp_path))
    store = LogitStore.open(result.path / result.store)
    teacher = nt.load_model(result.path / "teacher" / "weights.safetensors")
    assert store.verify(teacher, data.train).max_abs_difference < 1e-4
    student = nt.load_model(result.path / "noisy-seed1" / "weights.safetensors")
    scores = nt.evaluate(student, data.test, teacher=teacher)  # type: ignore[arg-type]
    assert scores.error == result.rows[3].errors[1]
    agreement = result.rows[3].score("test", "agreement")
    assert agreement is not None
    assert scores.agreement == agreement.per_seed[1]
    assert Run.open(result.path / "noisy-seed1").info["parents"]["store"] == store.digest
    assert result.rows[0].cost("parameters") == 431_080
    assert result.rows[3].cost("parameters") == 1_276_810
    again = Result.read(result.path, top.result() or {})
    assert str(again) == str(result)
    for part in ("teacher lenet", "student, noisy teacher", "2.96x", "n = 120 images", str(result.verdict)):
        assert part in str(result)


def test_conditions_of_one_seed_start_from_the_same_weights(tmp_path: Path, data: nt.Splits) -> None:
    """At sigma 0 the noisy student is the clean one, bit for bit: the pair differs by the noise and by nothing else."""
    result = compressed(data, tmp_path, noise=nt.Noise(sigma=1e-30, alpha=0.5))  # 0 would train no noisy student
    named = {row.name: row for row in result.rows}
    for seed in range(2):
        clean, noisy = (
            nt.load_model(result.path / f"{name}-seed{seed}" / "weights.safetensors").state_dict()
            for name in ("clean", "noisy")
        )
        assert all(torch.equal(clean[key], noisy[key]) for key in clean)
    assert named["clean"].errors == named["noisy"].errors
    assert "no evidence" in (result.verdict or "")


INTERRUPTED: dict[str, Any] = {"seeds": 1, "batch_size": 12, "epochs": 3}


@pytest.fixture(scope="module")
def whole(data: nt.Splits, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A compression that nothing interrupts."""
    return compressed(data, tmp_path_factory.mktemp("whole"), **INTERRUPTED)


@pytest.mark.parametrize("stop_at", [1, 40, 80])
def test_interrupted_anywhere_and_resumed_gives_the_same_bytes(
    tmp_path: Path, data: nt.Splits, whole: Result, stop_at: int
) -> None:
    class StopError(Exception):
        pass

    calls = 0

    def stop(stage: str, *progress: object) -> None:
        nonlocal calls
        calls += bool(calls) or stage.startswith("[")  # from the first step on, when there is a folder to go on with
        if calls == stop_at:
            raise StopError

    with pytest.raises(StopError):
        compressed(data, tmp_path, progress=stop, **INTERRUPTED)
    (cut,) = list_runs(tmp_path, 1)
    assert cut.state == "unfinished"
    resumed = compressed(data, tmp_path, run=cut.path, **INTERRUPTED)
    assert resumed.path == cut.path
    compared = 0
    for path in sorted(whole.path.rglob("*.safetensors")):
        resumed_file = cut.path / path.relative_to(whole.path)
        assert resumed_file.read_bytes() == path.read_bytes(), path
        compared += 1
    assert compared == 3 + 2 * 4 + 1  # a store per split; best and last of the teacher and three students; best/
    assert (cut.path / whole.store / "store.json").read_bytes() == (
        whole.path / whole.store / "store.json"
    ).read_bytes()
    assert [row.errors for row in resumed.rows] == [row.errors for row in whole.rows]
    assert compressed(data, tmp_path, run=cut.path, **INTERRUPTED).rows[3].errors == resumed.rows[3].errors
    with pytest.raises(MismatchError, match="other settings"):
        compressed(data, tmp_path, run=cut.path, **{**INTERRUPTED, "epochs": 4})
    with pytest.raises(UsageError, match=r"started in Python: call compress\(\.\.\., run="):
        resume_compress(cut)


def test_a_trained_teacher(tmp_path: Path, data: nt.Splits) -> None:
    teacher = nt.build_model("lenet", data)
    nt.fit(teacher, data.train, nt.supervised(), epochs=1)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    nt.save_model(teacher, tmp_path / "t.safetensors")

    def errors(source: nn.Module | str, folder: str) -> tuple[Result, tuple[float, ...]]:
        result = compressed(data, tmp_path / folder, teacher=source, epochs=1, seeds=1, baselines=False)
        return result, result.rows[-1].errors

    result, expected = errors(teacher, "a")
    assert result.rows[0].seconds == ()
    assert "given" in str(result)
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert errors(str(tmp_path / "t.safetensors"), "b")[1] == expected
    assert errors(str(result.path / "teacher"), "c")[1] == expected


def test_a_students_module_of_the_users_own(tmp_path: Path, data: nt.Splits) -> None:
    torch.manual_seed(0)
    head = nn.Linear(784, 10)
    student, before = nn.Sequential(nn.Flatten(), head), head.weight.clone()
    result = nt.compress(
        "lenet", student, data, noise=None, epochs=1, teacher_training={"epochs": 1}, output_dir=tmp_path
    )
    assert [row.name for row in result.rows] == ["teacher", "labels", "clean"]
    assert result.verdict is None
    assert torch.equal(head.weight, before)
    assert result.rows[2].cost("macs") == 7840


def test_a_run_is_gone_on_with_only_by_the_same_modules(tmp_path: Path, data: nt.Splits) -> None:
    """Two modules of one class are two students, and two teachers: weights, shapes and layers tell them apart."""

    def module(seed: int, layer: nn.Module | None = None) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), layer or nn.Identity(), nn.Linear(784, 10))

    def go(student: nn.Module, teacher: nn.Module | str = "lenet", run: Path | None = None) -> Result:
        training = {"epochs": 1} if teacher == "lenet" else None
        return nt.compress(
            teacher, student, data, epochs=1, teacher_training=training, output_dir=tmp_path, run=run, checks=False
        )

    whole = go(module(0))
    config = Run.open(whole.path / "clean-seed0").config
    assert config["module"]["weights"] == weights_fingerprint(module(0))
    assert config["module"]["architecture"]["name"] == "module:torch.nn.modules.container.Sequential"
    assert [row.errors for row in go(module(0), run=whole.path).rows] == [row.errors for row in whole.rows]
    (whole.path / "result.json").unlink()
    for different in (module(1), module(0, nn.ReLU())):
        with pytest.raises(MismatchError, match=r"other settings .*student_module"):
            go(different, run=whole.path)
    other_teacher = go(module(0), teacher=module(2))
    trained: dict[str, Any] = {"teacher_training": {"epochs": 1}, "output_dir": tmp_path, "epochs": 1, "checks": False}
    with pytest.raises(UsageError, match="teacher_training: epochs has no effect on Sequential, which is trained"):
        nt.compress(module(2), module(0), data, **trained)
    with pytest.raises(MismatchError, match=r"other settings .*teacher\.epochs"):  # a run of before that was refused
        nt.compress(module(2), module(0), data, run=other_teacher.path, **trained)
    with pytest.raises(MismatchError, match=r"other settings .*teacher_module"):
        go(module(0), teacher=module(3), run=other_teacher.path)


def test_a_run_that_is_removed_while_it_works_is_not_made_again(tmp_path: Path, data: nt.Splits) -> None:
    def remove(stage: str, done: int, total: int, note: str) -> None:
        if "labels alone" in stage:
            for run in list_runs(tmp_path, 1):
                run.path.rename(tmp_path / ".elsewhere")

    with pytest.raises(WriteError, match="the folder is gone"):
        compressed(data, tmp_path, progress=remove, seeds=1)
    assert [path.name for path in tmp_path.iterdir()] == [".elsewhere"]


def test_a_run_is_not_removed_while_it_works(tmp_path: Path, data: nt.Splits) -> None:
    refused = []

    def remove(stage: str, done: int, total: int, note: str) -> None:
        for run in list_runs(tmp_path):
            with pytest.raises(UsageError, match="a process is working on it"):
                remove_run(run)
            refused.append(stage)

    compressed(data, tmp_path, progress=remove, seeds=1, epochs=1)
    numbered = {stage.split("]")[0] for stage in refused if stage.startswith("[")}
    assert len(numbered) == 5  # teacher, its logits, three students
    remove_run(list_runs(tmp_path, 1)[0])


def test_without_a_test_split_validation_is_reported_and_said(tmp_path: Path, data: nt.Splits) -> None:
    from dataclasses import replace

    result = compressed(replace(data, test=None), tmp_path, seeds=1)
    assert result.role == "val"
    assert "val error %" in str(result)
    verdict = str(result.verdict)
    assert "validation error" in verdict or "no interval" in verdict


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


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, partial(torch.autocast, "cpu")])
def test_contexts_without_training_are_refused_at_once(
    context: Callable[[], AbstractContextManager[Any]], tmp_path: Path, data: nt.Splits
) -> None:
    with context(), pytest.raises(UsageError, match=r"^called .*: leave that context"):
        nt.compress(nt.build_model("lenet", data), "mlp800", data, output_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_network_without_shapes_is_refused_in_words(tmp_path: Path, data: nt.Splits) -> None:
    lazy = nn.Sequential(nn.Flatten(), nn.LazyLinear(10))
    for call in (
        lambda: nt.compress(lazy, "mlp800", data, output_dir=tmp_path),
        lambda: nt.compress("pretrained:lenet-mnist", lazy, data, output_dir=tmp_path),
        lambda: nt.fit(lazy, data.train, nt.supervised(), progress=False),
        lambda: nt.evaluate(lazy, data.val, progress=False),
        lambda: nt.save_model(lazy, tmp_path / "lazy.safetensors"),
    ):
        with pytest.raises(UsageError, match=r"1\.weight has no shape yet .*: run it once on a batch first"):
            call()
    assert list(tmp_path.iterdir()) == []
    assert nt.build_model(lazy, data).classes == 10


def test_a_frozen_teacher_and_a_student_with_a_frozen_layer(tmp_path: Path, data: nt.Splits) -> None:
    student = nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 10))
    student[1].requires_grad_(False)
    teacher = nt.load_model("pretrained:lenet-mnist").requires_grad_(False)
    result = nt.compress(teacher, student, data, epochs=1, baselines=False, output_dir=tmp_path)
    assert [row.cost("macs") for row in result.rows] == [2_293_000, 784 * 16 + 160]
    tensors = load_file(result.path / "clean-seed0" / "weights.safetensors")
    assert torch.equal(tensors["network.1.weight"], student.get_parameter("1.weight"))
    assert not torch.equal(tensors["network.3.weight"], student.get_parameter("3.weight"))


def test_a_failed_run_says_why(tmp_path: Path, data: nt.Splits) -> None:
    with pytest.raises(nt.NoisyTeacherError, match=r"not finite|loss is"):
        compressed(data, tmp_path, lr=1e30, epochs=3)
    top = list_runs(tmp_path, 1)[0]
    assert top.state == "failed"
    assert "TrainingError" in (top.error() or "")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_arithmetic_of_the_stored_answers_is_a_setting(tmp_path: Path, precision: str, data: nt.Splits) -> None:
    nt.save_model(nt.build_model("lenet", data), tmp_path / "teacher.safetensors")
    teacher = {"name": str(tmp_path / "teacher.safetensors"), "logits_precision": precision}
    settings = {"data": {"name": "mnist-5k", "limit": 120}, "run": {"output_dir": str(tmp_path), "checks": False}}
    alone = extract_config(build_config({**settings, "teacher": teacher}))
    assert alone.plan.precision == precision
    recipe = {"name": "lenet", "epochs": 1}
    swept = nt.sweep({**settings, "teacher": teacher, "student": recipe}, {"noise.sigma": [0.0]}, seeds=1)
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
        means: Tensor = self.conv(x).mean((2, 3), keepdim=True)
        return means.squeeze()


@pytest.mark.parametrize("network", [Squeezing, nn.Flatten])
def test_a_training_is_kept_where_its_costs_cannot_be_told(
    tmp_path: Path, data: nt.Splits, network: type[nn.Module]
) -> None:
    layers = network() if network is Squeezing else nn.Sequential(network(), nn.Linear(784, 10))
    run = new_run(tmp_path, "train", "own", {}, seed=0)
    spec = TrainingSpec(
        experiment=Experiment(config=build_config({}), data=data, teacher="lenet", student="own", run=run), run=run,
        model=as_classifier(layers, input_shape=(1, 28, 28)), objective=nt.supervised(),
        fit_options={"epochs": 1, "precision": "fp32"}, with_costs=True,
    )  # fmt: skip
    first, again = train_run(spec), train_run(spec)
    assert spec.run.state == "done"
    assert first.result == again.result
    assert (first.result["costs"] is None) == (network is Squeezing)
    if network is Squeezing:
        (warning,) = first.result["warnings"]
        assert "the costs of the model are unknown" in warning
    else:
        assert first.result["costs"]["macs"] == 7840


def test_threads_are_set_for_a_run_alone(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    settings = {
        "data": {"name": "mnist-5k", "limit": 40}, "teacher": {"name": "lenet", "epochs": 1},
        "run": {"output_dir": str(tmp_path), "threads": before + 1},
    }  # fmt: skip
    trained = train_config(build_config(settings))
    assert trained.result["training"]["threads"] == before + 1
    assert torch.get_num_threads() == before


def test_a_run_is_not_resumed_with_other_labels(tmp_path: Path, data: nt.Splits) -> None:
    """Fingerprints of images leave labels out; what is done would be compared with what is yet to be."""
    options: dict[str, Any] = {"seeds": 1, "baselines": False}
    whole = compressed(data, tmp_path, **options)
    given = compressed(data, tmp_path, whole.path / "teacher", **options)
    assert data.test is not None
    labels = labels_of(data.test)
    labels[0] = (labels[0] + 1) % 10
    changed = replace(data, test=replace(data.test, labels=labels))
    for result, teacher in ((whole, "lenet"), (given, whole.path / "teacher")):
        (result.path / "result.json").unlink()
        with pytest.raises(MismatchError, match="teacher: was done with other labels of the same images"):
            compressed(changed, tmp_path, teacher, **options, run=result.path)
        again = compressed(data, tmp_path, teacher, **options, run=result.path)
        assert again.rows[-1].errors == result.rows[-1].errors


def test_a_run_is_resumed_in_the_precision_that_it_measured(
    tmp_path: Path, data: nt.Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    from noisyteacher import device

    monkeypatch.setattr(device, "_faster_precision", lambda _: "fp32")
    result = compressed(data, tmp_path, seeds=1, baselines=False)
    (result.path / "result.json").unlink()
    monkeypatch.setattr(device, "_faster_precision", lambda _: "bf16")
    again = compressed(data, tmp_path, seeds=1, baselines=False, run=result.path)
    assert again.rows[-1].errors == result.rows[-1].errors


def test_models_may_be_paths_and_nothing_else(tmp_path: Path, data: nt.Splits) -> None:
    first = compressed(data, tmp_path, seeds=1, baselines=False)
    second = compressed(data, tmp_path, first.path / "teacher", seeds=1, baselines=False, epochs=1)
    assert second.rows[0].errors == first.rows[0].errors
    with pytest.raises(UsageError, match=r"student=7: expected a network's name, the path of a trained model"):
        nt.compress("lenet", 7, data, output_dir=tmp_path)  # type: ignore[arg-type]
