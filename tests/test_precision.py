"""The precision that is chosen by what the machine is faster in, and where the choice is kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import noisyteacher as nt
from helpers import blobs, small
from noisyteacher import device
from noisyteacher.config import build_config
from noisyteacher.data import Split
from noisyteacher.pipeline.compression import compress_config
from noisyteacher.pipeline.resolve import resolve_auto
from noisyteacher.runs import Run

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "data": {"name": "mnist-5k", "limit": 60},
    "teacher": {"name": "mlp800", "epochs": 1},
    "student": {"name": "mlp800", "epochs": 1, "batch_size": 32},
    "noise": {"sigma": 0.5},
    "run": {"seeds": 1, "threads": 1, "device": "cpu", "baselines": False},
}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, float]]:
    """A machine whose matrix products run so fast in either precision; how often it was measured is counted."""
    speeds = {"fp32": 1.0, "bf16": 2.0, "measured": 0}

    def peak(_: torch.device, precision: str, size: int) -> float:
        speeds["measured"] += 1
        assert size <= 512, "a slow machine would wait for it"
        return speeds[precision]

    monkeypatch.setattr(device, "matmul_peak", peak)
    device._faster_precision.cache_clear()
    yield speeds
    device._faster_precision.cache_clear()


@pytest.mark.parametrize(("gain", "expected"), [(2.4, "bf16"), (1.5, "bf16"), (1.4, "fp32"), (0.1, "fp32")])
def test_auto_is_what_the_machine_is_faster_in(machine: dict[str, float], gain: float, expected: str) -> None:
    machine["bf16"] = gain
    assert device.resolve_precision("auto", CPU) == expected
    assert device.resolve_precision("auto", CPU) == expected
    assert machine["measured"] == 6  # three times each, not again for the next training
    assert [device.resolve_precision(name, CPU) for name in ("fp32", "bf16", "fp8")] == ["fp32", "bf16", "fp8"]


def test_one_disturbed_measurement_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = iter([2.0, 1.0, 0.3, 1.0, 2.0, 1.0])  # bf16 and fp32 in turns, other work beside the third
    monkeypatch.setattr(device, "matmul_peak", lambda *_: next(speeds))
    device._faster_precision.cache_clear()
    assert device.resolve_precision("auto", CPU) == "bf16"
    device._faster_precision.cache_clear()


def test_a_device_without_bf16_takes_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> float:
        raise RuntimeError("not implemented for 'BFloat16'")

    monkeypatch.setattr(device, "matmul_peak", refused)
    device._faster_precision.cache_clear()
    assert device.resolve_precision("auto", CPU) == "fp32"
    device._faster_precision.cache_clear()


def test_the_measurement_is_real() -> None:
    assert 1e8 < device.matmul_peak(CPU, "fp32", 256) < 1e14
    assert 1e7 < device.matmul_peak(CPU, "bf16", 256) < 1e14


@pytest.mark.parametrize("faster", ["bf16", "fp32"])
def test_fit_takes_it_and_keeps_what_it_took(machine: dict[str, float], faster: str, tmp_path: Path) -> None:
    machine[faster] = 3.0
    ends = {}
    for precision in ("auto", "fp32", "bf16"):
        model = small()
        nt.fit(model, blobs(), nt.supervised(), epochs=2, precision=precision, run=tmp_path / precision)
        ends[precision] = model.state_dict()["0.weight"].clone()
    assert ends["auto"].equal(ends[faster])
    assert not ends["fp32"].equal(ends["bf16"])


def test_a_run_keeps_its_precision_on_another_machine(machine: dict[str, float], tmp_path: Path) -> None:
    """Begun where bf16 is faster, cut off, and gone on with where it is not: the students stay pairs."""
    config = build_config({**SMALL, "run": {**SMALL["run"], "output_dir": str(tmp_path)}})
    assert config.student.precision == config.teacher.precision == "auto"
    begun: list[Run] = []

    class CutError(Exception):
        pass

    def cut(title: str, done: int, _: int, __: str) -> None:
        if "noisy" in title and done:
            raise CutError

    with pytest.raises(CutError):
        compress_config(config, on_run_created=begun.append, on_progress=cut)
    assert [begun[0].config[part]["precision"] for part in ("teacher", "student")] == ["bf16", "bf16"]
    machine["bf16"] = 0.1
    device._faster_precision.cache_clear()
    run = Run(begun[0].path)
    compress_config(build_config(run.config), run=run)
    for child in run.children():
        if child.path.name != "logits":
            result = json.loads((child.path / "result.json").read_text())["result"]
            assert result["training"]["precision"] == "bf16", child.path


def test_a_sweep_settles_it_for_all_its_cells(machine: dict[str, float], tmp_path: Path) -> None:
    base = {**SMALL, "run": {**SMALL["run"], "output_dir": str(tmp_path), "baselines": True}}
    run = Run(nt.sweep(base, {"noise.sigma": [0.5]}, seeds=2).path)
    assert run.config["base"]["student"]["precision"] == "bf16"
    cells = [child for child in run.children() if "seed" in child.path.name]
    assert len(cells) == 6
    assert {cell.config["student"]["precision"] for cell in cells if "student" in cell.config} <= {"bf16"}
    for cell in cells:
        result = cell.result()
        assert result is not None
        assert result["training"]["precision"] == "bf16"


@pytest.mark.parametrize("many", [False, True])
def test_preprocessing_is_the_same_in_a_training_in_bf16(many: bool) -> None:
    """The student must learn under the normalisation under which it will be judged and used."""
    split = colours(16)
    students = [nt.build_model("lenet-svhn", split, seed=seed, preprocess="local-contrast") for seed in range(2)]
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    students[0].preprocess.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    how: dict[str, Any] = {"epochs": 1, "batch_size": 8, "precision": "bf16", "device": "cpu"}
    if many:
        nt.fit_many(students, split, [nt.supervised()] * 2, seeds=[0, 1], **how)
    else:
        nt.fit(students[0], split, nt.supervised(), **how)
    assert len(seen) > 1
    for images, output in list(seen):
        assert output.dtype == torch.float32
        assert torch.equal(output, students[1].preprocess(images))


def test_fp32_on_a_gpu_is_not_tf32() -> None:
    gpu, flags = torch.device("cuda"), torch.backends.cudnn
    before = flags.allow_tf32
    with device.precise("fp32", CPU), device.precise("bf16", gpu):
        assert flags.allow_tf32 == before

    def interrupted() -> None:
        with device.precise("fp32", gpu):
            assert not flags.allow_tf32
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert flags.allow_tf32 == before
    with device.precision_context("fp32", gpu):
        assert not flags.allow_tf32
    assert flags.allow_tf32 == before


def test_work_on_the_cpu_looks_for_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking how many there are, or for their state, starts CUDA: in every worker of a sweep."""
    for name in ("device_count", "get_rng_state", "manual_seed_all", "_lazy_init"):
        monkeypatch.setattr(torch.cuda, name, lambda *_, name=name: pytest.fail(f"torch.cuda.{name} was called"))
    split = colours(16)
    students = [nt.build_model("lenet-svhn", split, seed=seed) for seed in range(2)]
    before = torch.get_rng_state()
    how: dict[str, Any] = {"epochs": 1, "batch_size": 8, "device": "cpu"}
    nt.fit(students[0], split, nt.supervised(), **how)
    nt.fit_many(students, split, [nt.supervised()] * 2, seeds=[0, 1], **how)
    assert torch.equal(torch.get_rng_state(), before)


def colours(count: int) -> Split:
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(count) % 10
    return Split(images, labels, torch.arange(count), "train", "colours", tuple(map(str, range(10))))


@pytest.mark.parametrize("name", ["mlp800", "student3", "compact-xs"])
def test_logits_are_not_rounded_where_all_else_is(name: str) -> None:
    """In bf16 a logit of 17 lies on a grid of 1 / 8; the last layer gets rounded features and rounds no more."""
    torch.manual_seed(0)
    model = nt.build_model(name, classes=10, input_shape=(3, 32, 32))
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    last = list(model.network.modules())[-1]
    assert isinstance(last, torch.nn.Linear)
    seen: list[torch.Tensor] = []
    last.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = model(images)
    assert (seen[0].dtype, logits.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(logits, torch.nn.functional.linear(seen[0].float(), last.weight, last.bias))
    assert bool((logits != logits.bfloat16()).any())
    assert str(last) == str(torch.nn.Linear(last.in_features, 10))


@pytest.mark.parametrize(
    ("minutes", "student", "teacher", "expected"),
    [
        (None, "bf16", "auto", "fp32"),
        (5, "bf16", "auto", "bf16"),
        (5, "fp32", "auto", "fp32"),
        (5, "bf16", "fp32", "fp32"),
        (None, "fp32", "bf16", "bf16"),
    ],
)
def test_logits_are_stored_in_the_precision_of_students_where_time_is_short(
    minutes: float | None, student: str, teacher: str, expected: str
) -> None:
    config = build_config({
        "teacher": {"logits_precision": teacher}, "student": {"precision": student}, "target": {"minutes": minutes},
    })  # fmt: skip
    assert resolve_auto(config).teacher.logits_precision == expected
