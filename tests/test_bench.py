"""`bench`: files timed in turns by their own runtimes, and the record of it, with and without the package."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import noisyteacher as nt
from helpers import Call
from noisyteacher import bench
from noisyteacher.bench import BenchError, FileLatency, Loaded, median_interval, speed_up, time_in_turns


class Clock:
    """A clock that stands still but for the calls that take time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def taking(self, name: str, seconds: Callable[[float], float]) -> Callable[[], None]:
        """A call that takes `seconds(now)`."""

        def call() -> None:
            self.calls.append(name)
            self.now += seconds(self.now)

        return call


def test_turns_are_interleaved_and_another_begins_each_round() -> None:
    clock = Clock()
    calls = {name: clock.taking(name, lambda _: 0.25) for name in "abc"}
    times = time_in_turns(calls, seconds=1.0, rounds=4, clock=clock)
    blocks = [name for number, name in enumerate(clock.calls) if number % 2 == 0]
    assert clock.calls == [name for name in blocks for _ in range(2)]  # a call that does not count, then one that does
    assert blocks == [*"abc", *"bca", *"cab", *"abc", *"bca"]
    assert times == {name: [[250.0]] * 4 for name in "abc"}


def test_a_turn_lasts_its_share_of_the_seconds() -> None:
    clock = Clock()
    times = time_in_turns({"a": clock.taking("a", lambda _: 0.125)}, seconds=4.0, rounds=4, clock=clock)
    assert [len(block) for block in times["a"]] == [8] * 4


def test_a_first_call_that_is_slow_does_not_count() -> None:
    clock, last = Clock(), [""]

    def cold(name: str) -> Callable[[], None]:
        def call() -> None:
            clock.now += 1.0 if last[0] == name else 50.0
            last[0] = name

        return call

    times = time_in_turns({"a": cold("a"), "b": cold("b")}, seconds=0.0, rounds=3, clock=clock)
    assert times == {"a": [[1000.0]] * 3, "b": [[1000.0]] * 3}


def timing(*round_ms: float) -> FileLatency:
    return FileLatency("f", "", "", *median_interval(round_ms), 0.0, len(round_ms), list(round_ms))


def test_drift_that_meets_all_alike_leaves_the_ratio() -> None:
    clock = Clock()

    def drifting(seconds: float) -> Callable[[], None]:
        return clock.taking("", lambda now: seconds * (1 + now))

    times = time_in_turns({"slow": drifting(0.004), "fast": drifting(0.002)}, 0.5, clock=clock)
    slow, fast = (timing(*(float(np.median(block)) for block in rounds)) for rounds in times.values())
    assert slow.high_ms > 1.4 * slow.low_ms  # the machine got slower
    ratio, low, high = speed_up(fast, slow)
    assert low <= ratio <= high
    assert (low, high) == pytest.approx((2.0, 2.0), rel=0.1)


@pytest.mark.parametrize(("n", "low", "high"), [(6, 1, 6), (8, 1, 8), (9, 2, 8), (20, 6, 15), (4, 1, 4)])
def test_the_interval_of_a_median_is_that_of_order_statistics(n: int, low: int, high: int) -> None:
    """The ranks of the usual tables, such as Conover's: for n = 20 the 6th and the 15th cover 95.9 %."""
    values = np.random.default_rng(0).permutation(n) + 1.0
    assert median_interval(values.tolist()) == ((n + 1) / 2, low, high)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network as ONNX and .pt2, as `nt.export` writes them."""
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("exported")
    model = nt.build_model(nn.Sequential(nn.Flatten(), nn.Linear(48, 5)), classes=5, input_shape=(3, 4, 4))
    for name in ("model.onnx", "model.pt2"):
        nt.export(model, folder / name, runs=1)
    return folder


def test_the_record_of_real_files(folder: Path) -> None:
    import onnxruntime

    threads = torch.get_num_threads()
    record = bench.bench([folder / "model.onnx", folder / "model.pt2"], threads=2, batch=3, seconds=0)
    assert (record.threads, record.batch) == (2, 3)
    assert torch.get_num_threads() == threads
    onnx, pt2 = record.files
    assert onnx.runtime == f"onnxruntime {onnxruntime.__version__}"
    assert pt2.runtime.startswith("torch ")
    assert onnx.sha256 == hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    assert len(onnx.round_ms) == onnx.calls == bench.ROUNDS
    assert 0 < onnx.low_ms <= onnx.median_ms <= onnx.high_ms <= max(onnx.round_ms)
    assert onnx.export is not None
    assert (onnx.export["format"], onnx.export["precision"]) == ("onnx", "fp32")
    assert onnx.export["model"]["architecture"]["input_shape"] == [3, 4, 4]
    assert bench.machine() in record.conditions
    assert "batch 3, 2 thread(s)" in record.conditions


def test_the_threads_reach_the_runtime(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    options: list[Any] = []
    session = onnxruntime.InferenceSession

    def recorded(path: str, used: Any, **more: Any) -> Any:
        options.append(used)
        return session(path, used, **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", recorded)
    bench.bench([folder / "model.onnx"], threads=3, seconds=0)
    assert [(used.intra_op_num_threads, used.inter_op_num_threads) for used in options] == [(3, 1)]


def test_the_file_runs_alone(folder: Path, tmp_path: Path) -> None:
    """As on a device: a copy of the module, in a Python that cannot import the package or torch."""
    (tmp_path / "bench.py").write_bytes(Path(bench.__file__).read_bytes())
    for name in ("torch", "noisyteacher"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('not on this device')\n")
    command = [sys.executable, "bench.py", str(folder / "model.onnx"), "--seconds", "0", "--output", "bench.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "model.onnx  onnxruntime" in done.stdout
    record = json.loads((tmp_path / "bench.json").read_text())
    assert (record["kind"], record["schema"], record["threads"]) == ("latency", 1, 1)
    wrong = subprocess.run([sys.executable, "bench.py", "gone.onnx"], cwd=tmp_path, capture_output=True, text=True)
    assert (wrong.returncode, wrong.stderr) == (1, "error: gone.onnx: there is no such file\n")


def test_the_command(folder: Path, call: Call, tmp_path: Path) -> None:
    files = [str(folder / name) for name in ("model.onnx", "model.pt2")]
    code, out, err = call("bench", *files, "--seconds", "0", "--output", "bench.json")
    assert (code, err) == (0, "")
    assert "times as fast" in out
    assert "latency measured on" in out
    code, out, _ = call("bench", files[0], "--seconds", "0", "--json")
    assert code == 0
    assert json.loads(out).keys() == json.loads((tmp_path / "bench.json").read_text()).keys()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("gone.onnx",), "gone.onnx: there is no such file"),
        (("model.gguf",), "model.gguf: unknown ending of a file, expected one of .onnx"),
        (("broken.onnx",), "broken.onnx: onnxruntime cannot run it"),
        (("broken.onnx", "--runtime", "tvm"), "tvm: unknown runtime, expected one of onnx, executorch, litert, torch"),
        (("model.onnx", "model.onnx"), "model.onnx: named twice"),
        (("model.onnx", "--seconds", "inf"), "threads 1, batch 1, seconds inf: expected"),
        (("no_json.onnx",), "no_json.onnx.export.json: does not say what no_json.onnx is"),
        (
            ("stale.onnx",),
            'stale.onnx.export.json: does not say what stale.onnx is (ValueError("it is another file\'s"))',
        ),
    ],
)
def test_files_that_cannot_be_timed(
    words: tuple[str, ...], message: str, folder: Path, call: Call, tmp_path: Path
) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    (tmp_path / "model.onnx").write_bytes((folder / "model.onnx").read_bytes())
    for name in ("no_json.onnx", "stale.onnx"):
        (tmp_path / name).write_bytes((folder / "model.onnx").read_bytes())
    (tmp_path / "no_json.onnx.export.json").write_text("[1]")
    (tmp_path / "stale.onnx.export.json").write_bytes((folder / "model.pt2.export.json").read_bytes())
    code, _, err = call("bench", "--seconds", "0", *words)
    assert code == 2
    assert message in err


def test_a_file_that_torch_cannot_read_is_an_error_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "a.pt2").write_bytes(b"no program")
    logged: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = logged.append  # type: ignore[method-assign, assignment]
    logging.getLogger("torch.export").addHandler(handler)
    try:
        with pytest.raises(BenchError, match=r"a\.pt2: torch cannot run it") as error:
            bench.bench([tmp_path / "a.pt2"])
        assert error.value.file == str(tmp_path / "a.pt2")
    finally:
        logging.getLogger("torch.export").removeHandler(handler)
    assert not logged


def test_files_of_one_name_are_told_apart_by_their_paths(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model.onnx"
    copy.write_bytes((folder / "model.onnx").read_bytes())
    first, second, third = bench.rows(bench.bench([folder / "model.onnx", copy, folder / "model.pt2"], seconds=0))
    assert (first[0], second[0], third[0]) == (str(folder / "model.onnx"), str(copy), "model.pt2")


@pytest.mark.parametrize("option", [{"threads": 0}, {"batch": -1}, {"seconds": math.nan}])
def test_numbers_that_time_nothing_are_refused(option: dict[str, Any], folder: Path) -> None:
    with pytest.raises(BenchError, match="expected at least 1 thread and 1 image, and a finite time"):
        bench.bench([folder / "model.onnx"], **option)


def test_a_runtime_that_is_missing_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BenchError, match="needs onnxruntime, which is not installed: pip install onnxruntime"):
        bench.bench([folder / "model.onnx"], seconds=0)


def test_a_runtime_may_come_with_a_distribution_of_another_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name != "onnxruntime-gpu":
            raise PackageNotFoundError(name)
        return "1.99"

    monkeypatch.setattr(bench, "version", version)
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: {"onnxruntime": ["onnxruntime-gpu"]})
    (file,) = bench.bench([folder / "model.onnx"], seconds=0).files
    assert file.runtime == "onnxruntime 1.99"
    monkeypatch.setattr(importlib.metadata, "packages_distributions", dict)
    assert bench.with_version("onnxruntime") == "onnxruntime"


@pytest.mark.parametrize(
    ("kind", "sizes", "message"),
    [
        ("FLOAT16", [3, 4, 4], r"takes pixels of the type tensor\(float16\): expected uint8 or float32"),
        ("FLOAT", [3, "height", "width"], r"takes \['batch', 3, 'height', 'width'\]: expected fixed numbers for"),
    ],
)
def test_images_that_cannot_be_made_up_are_described(
    kind: str, sizes: list[int | str], message: str, tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx", reason="needs the extra export")
    pytest.importorskip("onnxruntime")
    helper, element, shape = onnx.helper, getattr(onnx.TensorProto, kind), ["batch", *sizes]
    images, logits = (helper.make_tensor_value_info(name, element, shape) for name in ("images", "logits"))
    graph = helper.make_graph([helper.make_node("Identity", ["images"], ["logits"])], "same", [images], [logits])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "a.onnx")
    with pytest.raises(BenchError, match=message):
        bench.bench([tmp_path / "a.onnx"])


def test_a_file_with_a_fixed_batch_takes_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a runtime that stands in for ExecuTorch, whose files take a single image."""
    batches: list[tuple[int, ...]] = []

    @contextmanager
    def load(path: str, threads: int) -> Iterator[Loaded]:
        yield Loaded(lambda images: batches.append(images.shape), (1, 3, 4, 4))

    monkeypatch.setitem(bench.RUNTIMES, "executorch", (load, "numpy"))
    file = tmp_path / "model.pte"
    file.write_bytes(b"pte")
    bench.bench([file], seconds=0)
    assert set(batches) == {(1, 3, 4, 4)}
    with pytest.raises(BenchError, match=r"takes 1 image\(s\) a call, batch 8 was given: give batch 1"):
        bench.bench([file], batch=8, seconds=0)
