"""Where the time of a training goes: what the phases add up to, and what the arithmetic is counted as."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

import noisyteacher as nt
from helpers import Call
from noisyteacher.data import Batch, Split
from noisyteacher.device import matmul_peak
from noisyteacher.runs import list_runs
from noisyteacher.train.history import STEP_PHASES, PhaseTimer, profile_table, profiled


def images(rows: int = 96) -> Split:
    pixels = torch.zeros(rows, 1, 8, 8, dtype=torch.uint8)
    return Split(pixels, torch.arange(rows) % 4, torch.arange(rows), "train", "zeros", tuple("abcd"))


def mlp() -> nt.Classifier:
    return nt.build_model("mlp800", classes=4, input_shape=(1, 8, 8), seed=0)


def slow(logits: Tensor, batch: Batch) -> Tensor:
    time.sleep(0.02)
    assert batch.labels is not None
    return torch.nn.functional.cross_entropy(logits, batch.labels)


def test_a_slow_objective_is_seen_in_its_phase() -> None:
    start = time.monotonic()
    history = nt.fit(mlp(), images(), slow, epochs=2, batch_size=32, profile=True)
    elapsed = time.monotonic() - start
    watch = history.profile
    assert watch is not None
    assert (watch.steps, watch.samples) == (5, 160)  # of six, the first is not counted
    assert 0.1 <= watch.seconds["noise"] < elapsed - 0.02  # without the first step
    assert all(watch.seconds[phase] > 0 for phase in STEP_PHASES)
    assert sum(watch.seconds[phase] for phase in STEP_PHASES) <= history.seconds


def test_nothing_is_measured_unasked() -> None:
    assert nt.fit(mlp(), images(), slow, epochs=1, batch_size=32).profile is None


def test_profiling_changes_no_weight() -> None:
    ends = [
        nt.fit(mlp(), images(), nt.supervised(), epochs=2, batch_size=32, profile=profile).last
        for profile in (False, True)
    ]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_the_arithmetic_of_a_step_and_the_table() -> None:
    watch = PhaseTimer(torch.device("cpu"), dict.fromkeys(("forward", "backward"), 2.0), steps=4, samples=120)
    watch.seconds |= {phase: 0.0 for phase in (*STEP_PHASES, "validation", "checkpoint") if phase not in watch.seconds}
    watch.cpu_seconds = 1.0
    profile = profiled(mlp(), watch, {"precision": "fp32"})
    assert profile is not None
    first, rest = 64 * 800, 800 * 800 + 800 * 4
    assert profile["flop_per_step"] == 2 * (2 * first + 3 * rest) * 30  # no gradient of the images
    assert profile["step_ms"] == 1000.0
    assert profile["share_of_peak"] == pytest.approx(profile["flop_per_step"] / profile["peak_flops"])
    assert profile["cores_idle"] == pytest.approx(1 - 1 / (4 * torch.get_num_threads()))
    table = profile_table(profile)
    assert table.headers == ("phase", "ms a step", "share %")
    assert ("forward", "500.00", "50.0") in table.rows
    assert ("a step", "1000.00", "100.0") in table.rows
    assert "4 steps after the first, 30 samples each" in table.notes[0]


def test_a_single_step_has_no_profile() -> None:
    assert profiled(mlp(), PhaseTimer(torch.device("cpu")), {}) is None


def test_the_peak_is_that_of_the_fastest_product(monkeypatch: pytest.MonkeyPatch) -> None:
    took = iter([1.0, 4.0, 4.0, 3.0, 4.0, 4.0])  # the first is not counted
    moments = iter([moment for index, seconds in enumerate(took) for moment in (10.0 * index, 10.0 * index + seconds)])
    monkeypatch.setattr("noisyteacher.device.time.perf_counter", lambda: next(moments))
    assert matmul_peak(torch.device("cpu"), "fp32") == 2 * 2048**3 / 3


def test_the_command_line_prints_and_keeps_it(tmp_path: Path, call: Call) -> None:
    words = "train --model lenet --data mnist-5k --epochs 1 --batch-size 20 --set data.limit=100 --profile --quiet"
    code, out, err = call(*words.split(), "--output-dir", str(tmp_path / "runs"))
    assert code == 0, err
    assert "targets, noise, loss" in out
    assert "matrix-product peak" in out
    (run,) = list_runs(tmp_path / "runs")
    result = run.result()
    assert result is not None
    assert result["profile"]["steps"] == 4  # of five, the first is not counted
