"""Latency as a limit on the student: measured here or read from a device's record, by the file that is handed over."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import noisyteacher as nt
from helpers import Call
from noisyteacher import bench
from noisyteacher.bench import FileLatency, LatencyRecord, median_interval
from noisyteacher.config import Config, build_config, limit
from noisyteacher.errors import ConfigError, ExportError, FileFormatError, UsageError
from noisyteacher.export import network_record
from noisyteacher.io.files import write_json
from noisyteacher.pipeline import Result
from noisyteacher.pipeline import latency as latency_module
from noisyteacher.pipeline.compression import compress_config, resume_compress
from noisyteacher.pipeline.compression_result import search_table
from noisyteacher.pipeline.latency import FILE, Timing, Timings, read_record
from noisyteacher.pipeline.resolve import with_student_to_choose
from noisyteacher.pipeline.search import Candidate, StudentSearch, all_candidates, within_latency
from noisyteacher.report import build_report
from noisyteacher.runs import SCHEMA, Run, new_run

SHAPE = (3, 4, 4)
Bench = Callable[[dict[str, float]], list[list[str]]]


@pytest.mark.parametrize(("setting", "most"), [("2x", 4.0), ("5ms", 5.0), (" 1.5 ms ", 1.5), ("1x", 8.0)])
def test_a_limit_is_milliseconds_or_a_ratio_to_the_teacher(setting: str, most: float) -> None:
    assert limit(setting, 8.0, "ms") == most


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ({"latency": 5}, r"target\.latency: given '5.*'; expected milliseconds such as '5ms', or a ratio"),
        ({"latency": ""}, r"target\.latency: given ''; expected milliseconds"),
        ({"latency": "5"}, r"target\.latency: given '5'; expected milliseconds"),
        ({"latency": "5s"}, r"target\.latency: given '5s'; expected milliseconds"),
        ({"latency": "0.5x"}, r"target\.latency: given '0\.5x'"),
        ({"latency": "0ms"}, r"target\.latency: given '0ms'; expected milliseconds"),
        ({"latency": "2xms"}, r"target\.latency: given '2xms'; expected milliseconds"),
        ({"latency": "1e400ms"}, r"target\.latency: given '1e400ms'; expected milliseconds"),
        ({"latency_record": "phone.json"}, r"target\.latency_record: has no effect without latency"),
        ({"latency_threads": 2}, r"target\.latency_threads: has no effect without latency"),
        (
            {"latency": "2x", "latency_batch": 2, "latency_record": "r"},
            r"latency_batch: has no effect beside latency_rec",
        ),
    ],
)
def test_settings_that_are_refused(target: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        build_config({"student": {"name": "auto"}, "target": target})


@pytest.mark.parametrize(
    ("export", "written"),
    [([], ["onnx"]), (["hub"], ["onnx", "hub"]), (["onnx-int8"], ["onnx-int8"]), (["pte", "onnx"], ["pte", "onnx"])],
)
def test_the_file_that_is_timed_is_handed_over(export: list[str], written: list[str]) -> None:
    config = with_student_to_choose(build_config({"target": {"latency": "2x"}, "run": {"export": export}}))
    assert config.run.export == written
    assert config.target.macs is None  # a limit on the latency is a limit
    assert latency_module.timed_format(config) == written[0]


def file_latency(network: str, round_ms: Sequence[float], **export: Any) -> FileLatency:
    median, low, high = median_interval(round_ms)
    stated = {"format": "onnx", "precision": "fp32", "model": {"architecture": {"name": network}}} | export
    return FileLatency(
        f"a/{network}.onnx", network, "onnxruntime 1.0", median, low, high, high, 1, list(round_ms), stated
    )


def record_of(*files: FileLatency) -> LatencyRecord:
    return LatencyRecord("a phone, 8 cores, Linux 5", 4, 1, list(files), "2026-01-01T00:00:00Z")


DRIFT = [1 + 0.1 * number for number in range(20)]
"""A machine that gets slower, by the same factor for all."""


@pytest.mark.parametrize(
    ("limit", "times", "met", "words"),
    [
        (
            "2x",
            [4 * drift for drift in DRIFT],
            True,
            "2.50 times [2.50, 2.50] as fast as the teacher's (19.500 ms): tar",
        ),
        ("2x", [6 * drift for drift in DRIFT], False, "target.latency 2x is NOT met ("),
        (
            "2x",
            [(4 + number / 10) * drift for number, drift in enumerate(DRIFT)],
            True,
            "is met, but the interval incl",
        ),
        ("8ms", [7.0] * 20, True, "latency of s.onnx: 7.000 ms [7.000, 7.000]"),
        (
            "8ms",
            [9.0] * 20,
            False,
            "target.latency 8ms is NOT met (onnxruntime 1.0, median of 20 rounds in turns, batch 1,",
        ),
    ],
)
def test_a_limit_is_met_by_the_median_and_the_interval_is_reported(
    limit: str, times: list[float], met: bool, words: str
) -> None:
    student, teacher = file_latency("s", times), file_latency("t", [10 * drift for drift in DRIFT])
    described = Timing(record_of(teacher, student), student, teacher, limit).describe()
    assert described["met"] == met
    assert words in described["summary"]
    assert "4 thread(s); latency measured on: a phone, 8 cores, Linux 5" in described["summary"]


def network_of(width: int) -> nt.Classifier:
    layers = nn.Sequential(nn.Flatten(), nn.Linear(48, width), nn.Linear(width, 3))
    return nt.build_model(layers, classes=3, input_shape=SHAPE)


class Nets:
    """Networks by name: `a-4` has the width 4, which is in its architecture."""

    def __call__(self, name: str) -> nt.Classifier:
        network = network_of(int(name.rpartition("-")[2]))
        network.architecture["name"] = name
        return network


@pytest.fixture
def benched(monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Files are stubs, and their latency that of their network, by name; returns which were timed together."""

    def install(latencies: dict[str, float]) -> list[list[str]]:
        together: list[list[str]] = []

        def write(model: nt.Classifier, form: str, path: Path, names: object, images: object) -> None:
            export = {"format": "onnx", "precision": "fp32", "model": {"architecture": model.architecture}}
            path.write_text(json.dumps(export))

        def run(paths: Sequence[Path], threads: int, batch: int) -> LatencyRecord:
            exports = [json.loads(Path(path).read_text()) for path in paths]
            names = [export["model"]["architecture"]["name"] for export in exports]
            together.append(names)
            files = [
                file_latency(name, [latencies[name]] * 20, **export)
                for name, export in zip(names, exports, strict=True)
            ]
            return LatencyRecord("this machine", threads, batch, files, "now")

        monkeypatch.setattr(latency_module, "write_unchecked", write)
        monkeypatch.setattr(bench, "bench", run)
        return together

    return install


def config_of(**target: Any) -> Config:
    return with_student_to_choose(build_config({"target": {"latency": "2x", "search": 2} | target}))


def candidates(*names: str, over: str = "") -> tuple[Candidate, ...]:
    """Networks whose costs are their width."""
    sizes = [int(name.rpartition("-")[2]) for name in names]
    return tuple(
        Candidate(name, size, size, size, ("macs",) if name == over else ())
        for name, size in zip(names, sizes, strict=True)
    )


def timings_of(config: Config, folder: Path, teacher: str = "t-99") -> Timings:
    splits: Any = type("Splits", (), {"class_names": ("0", "1", "2")})()
    run = Run.open(folder / "run") if (folder / "run").exists() else None
    if run is None:
        made = new_run(folder, "compress", "run", {})
        made.path.rename(folder / "run")
        run = Run.open(folder / "run")
    return Timings(config, splits, Nets()(teacher), run)


COSTS = {"macs": 99, "bytes": 99, "parameters": 99}


def test_the_largest_within_the_latency_are_tried_and_the_others_are_not_timed(benched: Bench, tmp_path: Path) -> None:
    """Both limits hold: a-80 is over its multiplications, a-60 and b-50 are too slow; a-40 is level with the limit."""
    together = benched({"t-99": 10.0, "a-80": 1.0, "a-60": 6.0, "b-50": 5.5, "a-40": 5.0, "b-30": 2.0, "a-20": 1.0})
    search = StudentSearch(
        {"macs": 70.0}, COSTS, candidates("a-80", "a-60", "b-50", "a-40", "b-30", "a-20", over="a-80")
    )
    found = within_latency(search, timings_of(config_of(), tmp_path), Nets())
    assert together == [["t-99", "a-60", "b-50"], ["t-99", "a-40", "b-30"]]
    assert [candidate.name for candidate in found.fitting[:2]] == ["a-40", "b-30"]
    by_name = {candidate.name: candidate for candidate in found.candidates}
    assert by_name["a-60"].over == ("latency",)
    assert found.excess(by_name["a-60"]) == "1.20 times target.latency"
    assert (by_name["a-40"].latency, by_name["a-20"].latency, by_name["a-80"].latency) == (5.0, None, None)
    assert found.limits == {"macs": 70.0, "latency": 5.0}
    assert found.notes == ("1 network not to be tried were not timed",)
    assert found.binding(by_name["a-40"]) == ("latency",)


def test_a_network_whose_interval_is_partly_over_is_left_out(benched: Bench, tmp_path: Path, monkeypatch: Any) -> None:
    benched({})
    times = {"t-99": [10.0] * 20, "a-40": [4.0] * 14 + [6.0] * 6, "a-30": [4.0] * 15 + [6.0] * 5}

    def run(paths: Sequence[Path], threads: int, batch: int) -> LatencyRecord:
        exports = [json.loads(path.read_text()) for path in paths]
        names = [export["model"]["architecture"]["name"] for export in exports]
        return record_of(
            *(file_latency(name, times[name], **export) for name, export in zip(names, exports, strict=True))
        )

    monkeypatch.setattr(bench, "bench", run)
    found = within_latency(
        StudentSearch({}, COSTS, candidates("a-40", "a-30")), timings_of(config_of(), tmp_path), Nets()
    )
    assert [candidate.name for candidate in found.fitting] == ["a-30"]


def test_none_within_the_latency_is_refused_with_the_nearest(benched: Bench, tmp_path: Path) -> None:
    benched({"t-99": 10.0, "a-60": 8.0, "a-40": 7.5})
    search = StudentSearch({}, COSTS, candidates("a-60", "a-40"))
    with pytest.raises(UsageError, match=r"none of 2 networks .* nearest, 'a-40', has 1\.50 times target\.latency"):
        within_latency(search, timings_of(config_of(), tmp_path), Nets())


def test_a_teacher_that_cannot_be_exported_is_no_measure_of_others(
    benched: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = benched({"a-60": 6.0, "a-40": 4.0})
    write = vars(latency_module)["write_unchecked"]

    def refuse(model: nt.Classifier, *more: Any) -> None:
        if model.name in ("t-99", "b-50"):
            raise ExportError(f"{model.name} cannot be traced")
        write(model, *more)

    monkeypatch.setattr(latency_module, "write_unchecked", refuse)
    search = StudentSearch({}, COSTS, candidates("a-60", "b-50", "a-40"))
    with pytest.raises(
        ExportError, match=r"2x is relative to the teacher, which cannot be timed \(t-99 cannot be traced"
    ):
        within_latency(search, timings_of(config_of(), tmp_path), Nets())
    found = within_latency(search, timings_of(config_of(latency="5ms"), tmp_path), Nets())
    assert [candidate.name for candidate in found.fitting] == ["a-40"]
    assert found.notes == ("without a timing, and left out: b-50 (b-50 cannot be traced)",)
    assert together == [["a-60"], ["a-40"]]


def test_a_network_that_the_runtime_cannot_run_is_left_out(
    benched: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    benched({"t-99": 10.0, "a-60": 6.0, "a-40": 4.0})
    run, broken = vars(bench)["bench"], {"b-50"}

    def refuse(paths: Sequence[Path], threads: int, batch: int) -> LatencyRecord:
        for path in paths:
            if (name := json.loads(path.read_text())["model"]["architecture"]["name"]) in broken:
                raise bench.BenchError(f"{name} has no kernel", str(path))
        result: LatencyRecord = run(paths, threads, batch)
        return result

    monkeypatch.setattr(bench, "bench", refuse)
    search = StudentSearch({}, COSTS, candidates("a-60", "b-50", "a-40"))
    found = within_latency(search, timings_of(config_of(), tmp_path), Nets())
    assert [candidate.name for candidate in found.fitting] == ["a-40"]
    assert found.notes == ("without a timing, and left out: b-50 (b-50 has no kernel)",)
    broken.add("t-99")
    with pytest.raises(UsageError, match=r"target\.latency: t-99 has no kernel"):
        timings_of(config_of(), tmp_path / "other").measure({"a-60": Nets()("a-60")})


def test_a_resumed_run_reads_its_timings(benched: Bench, tmp_path: Path) -> None:
    search = StudentSearch({}, COSTS, candidates("a-60", "a-40", "a-20"))
    latencies = {"t-99": 10.0, "a-60": 6.0, "a-40": 4.0, "a-20": 2.0}
    assert len(benched(latencies)) == 0
    first = within_latency(search, timings_of(config_of(), tmp_path), Nets())
    together = benched(dict.fromkeys(latencies, 1.0))  # on another machine now
    timings = timings_of(config_of(), tmp_path)
    assert within_latency(search, timings, Nets()) == first
    known = timings.records[0].files[1]
    assert timings.of_file(known.sha256, tmp_path / "gone.onnx", Nets()("a-60")) is not None
    assert together == []


def test_the_final_file_is_timed_once(benched: Bench, tmp_path: Path) -> None:
    together = benched({"t-99": 10.0, "a-40": 5.5})
    file = tmp_path / "model.onnx"
    export = {"format": "onnx", "precision": "fp32", "model": {"architecture": Nets()("a-40").architecture}}
    file.write_text(json.dumps(export))
    for _ in range(2):
        timing = timings_of(config_of(), tmp_path).of_file("a-40", file, Nets()("a-40"))
        assert timing is not None
        assert not timing.describe()["met"]
    assert together == [["t-99", "a-40"]]


def test_a_student_that_is_built_as_its_teacher_is_has_a_timing_of_its_own(
    benched: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    benched({})

    def run(paths: Sequence[Path], threads: int, batch: int) -> LatencyRecord:
        times = zip(paths, (10.0, 4.0), strict=True)
        return record_of(*(replace(device_file("t-99", ms), sha256=Path(path).name) for path, ms in times))

    monkeypatch.setattr(bench, "bench", run)
    timing = timings_of(config_of(), tmp_path).of_file("model.onnx", tmp_path / "model.onnx", Nets()("t-99"))
    assert timing is not None
    assert timing.teacher is not None
    assert (timing.file.median_ms, timing.teacher.median_ms) == (4.0, 10.0)


def written(path: Path, record: LatencyRecord) -> str:
    path.write_text(bench.to_json(record))
    return str(path)


def device_file(name: str, ms: float, **export: Any) -> FileLatency:
    return file_latency(name, [ms] * 20, model={"architecture": dict(Nets()(name).architecture)}, **export)


def test_a_device_s_record_decides_in_place_of_this_machine(benched: Bench, tmp_path: Path) -> None:
    """a-60, slow here, is fast there; a-40 was not timed there, and a-20 in int8 alone."""
    together = benched({})
    files = [device_file("t-99", 10.0), device_file("a-60", 3.0), device_file("a-20", 1.0, precision="int8")]
    path = written(tmp_path / "phone.json", record_of(*files))
    config = config_of(latency_record=path, search=4)
    search = StudentSearch({}, COSTS, candidates("a-60", "a-40", "a-20"))
    found = within_latency(search, timings_of(config, tmp_path), Nets())
    assert [candidate.name for candidate in found.candidates] == ["a-60"]
    assert found.notes == (f"without a timing, and left out: a-40, a-20 (not in {path})",)
    Path(path).unlink()  # the run keeps it
    timing = timings_of(config, tmp_path).of_file("of the trained file", tmp_path / "best.onnx", Nets()("a-60"))
    assert timing is not None
    assert "measured on: a phone" in timing.describe()["summary"]
    assert together == []


def test_a_record_without_the_teacher_serves_no_ratio(tmp_path: Path) -> None:
    path = written(tmp_path / "phone.json", record_of(device_file("a-60", 3.0)))
    with pytest.raises(UsageError, match=r"has no timing of the teacher 't-99' as onnx, which target\.latency 2x"):
        timings_of(config_of(latency_record=path), tmp_path)


def test_a_module_of_the_same_class_is_another_network(tmp_path: Path) -> None:
    """All modules of a class have one architecture; a record of earlier versions says nothing of their shapes."""
    known, other = network_of(60), network_of(40)
    assert known.architecture == other.architecture
    for model, found in ((network_record(known), None), ({"architecture": dict(known.architecture)}, 3.0)):
        file = file_latency("a-60", [3.0] * 20, model=model)
        path = written(tmp_path / "phone.json", record_of(file, device_file("t-99", 10.0)))
        timings = timings_of(config_of(latency_record=path), tmp_path)
        timing = timings.find(other)
        assert (None if timing is None else timing.file.median_ms) == found
        assert timings.find(known) is not None
        shutil.rmtree(tmp_path / "run")


def test_milliseconds_need_no_teacher_in_the_record(tmp_path: Path) -> None:
    path = written(tmp_path / "phone.json", record_of(device_file("a-60", 3.0), device_file("a-40", 2.5)))
    timings = timings_of(config_of(latency_record=path, latency="2.9ms"), tmp_path)
    found = within_latency(StudentSearch({}, COSTS, candidates("a-60", "a-40")), timings, Nets())
    assert [candidate.name for candidate in found.fitting] == ["a-40"]
    timing = timings.find(Nets()("a-40"))
    assert timing is not None
    assert "teacher" not in timing.describe()["summary"]


def test_a_record_of_other_networks_leaves_no_candidate(tmp_path: Path) -> None:
    path = written(tmp_path / "phone.json", record_of(device_file("t-99", 10.0), device_file("c-60", 3.0)))
    timings = timings_of(config_of(latency_record=path), tmp_path)
    with pytest.raises(UsageError, match=r"no candidate has a latency .*a-60, a-40 \(not in "):
        within_latency(StudentSearch({}, COSTS, candidates("a-60", "a-40")), timings, Nets())


@pytest.mark.parametrize(
    "damage",
    [
        lambda record: record | {"kind": "export"},
        lambda record: record | {"schema": 9},
        lambda record: record | {"files": []},
        lambda record: record | {"files": [record["files"][0] | {"round_ms": []}]},
        lambda record: record | {"files": [record["files"][0] | {"round_ms": [0.0]}]},
        lambda record: record | {"files": [*record["files"], record["files"][0] | {"round_ms": [1.0]}]},
        lambda record: record | {"files": [record["files"][0] | {"round_ms": [1.0, math.inf]}]},
        lambda record: record | {"files": [record["files"][0] | {"median_ms": 0.5}]},
        lambda record: record | {"files": [record["files"][0] | {"export": {"model": None}}]},
        lambda record: record | {"files": [*record["files"], record["files"][0] | {"round_ms": []}]},
        lambda record: record | {"threads": "many"},
        lambda record: [record],
    ],
)
def test_a_damaged_record(damage: Callable[[Any], Any], tmp_path: Path) -> None:
    path = tmp_path / "phone.json"
    record = json.loads(bench.to_json(record_of(file_latency("s", [1.0, 2.0]))))
    path.write_text(json.dumps(record))
    assert read_record(path).files[0].round_ms == [1.0, 2.0]
    for text in (json.dumps(damage(record)), "{"):
        path.write_text(text)
        with pytest.raises(FileFormatError, match=re.escape(str(path))):
            read_record(path)


def test_a_missing_runtime_is_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else found(name))
    config = build_config({"target": {"latency": "2x"}, "data": {"limit": 60}, "run": {"output_dir": str(tmp_path)}})
    with pytest.raises(UsageError, match=r"format 'onnx' needs onnxruntime: pip install 'noisyteacher\[export\]'"):
        compress_config(config)
    assert not list(tmp_path.iterdir())


def test_a_missing_record_is_refused_before_a_folder_is_made(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    target = {"latency": "5ms", "latency_record": str(tmp_path / "gone.json"), "students": ["mlp128"]}
    run = {"output_dir": str(tmp_path / "runs")}
    with pytest.raises(FileFormatError, match=r"gone\.json: cannot be read"):
        compress_config(build_config({"target": target, "data": {"limit": 60}, "run": run}))
    assert not (tmp_path / "runs").exists()


def test_candidates_are_not_written_of_a_run_that_is_resumed(call: Call) -> None:
    code, _, err = call("compress", "--resume", "run", "--candidates", "folder")
    assert code == 2
    assert "--resume takes the run's own settings; leave out candidates" in " ".join(err.split())


def test_with_a_latency_much_narrower_networks_are_candidates_too() -> None:
    def price(name: str) -> Candidate:
        size = int(6400 * float(name.partition(":")[2] or 1))
        return Candidate(name, size, size, size, ("macs",) if size > 6400 else ())

    known, more = (
        {candidate.name for candidate in all_candidates(price, (1, 28, 28), narrower)[0]} for narrower in (False, True)
    )
    assert {name for name in more - known if name.startswith("compact-s")} == {"compact-s:0.25"}
    assert {name for name in more - known if name.startswith("shrink")} == {"shrink:0.1875"}


@pytest.mark.slow
def test_from_the_candidates_to_a_device_and_back(call: Call, tmp_path: Path) -> None:
    """The whole way on the command line, with real files and a real runtime; the device is this machine."""
    pytest.importorskip("onnxruntime")
    options = ["compress", "--teacher", "lenet", "--teacher-epochs", "1", "--epochs", "1", "--no-baselines", "-q"]
    options += ["--set", "data.limit=60", "--set", "target.students=['mlp128', 'mlp800']"]
    code, out, _ = call(*options, "--target-latency", "1x", "--candidates", "candidates")
    assert code == 0
    assert "python bench.py teacher.onnx mlp800.onnx mlp128.onnx --output device.json" in out
    code, _, err = call(*options, "--target-latency", "2x", "--candidates", "candidates")
    assert (code, "candidates: is not an empty folder, and nothing in it is overwritten" in err) == (2, True)
    files = [str(tmp_path / "candidates" / f"{name}.onnx") for name in ("teacher", "mlp800", "mlp128")]
    record = bench.bench(files, threads=2, seconds=0)
    order = {"teacher": 4.0, "mlp800": 8.0, "mlp128": 1.0}  # whatever this machine says, there mlp800 is slow
    timed = [file_latency("", [ms] * 20) for ms in order.values()]
    files_there = [
        FileLatency(
            **{**vars(file), **{name: getattr(other, name) for name in ("round_ms", "median_ms", "low_ms", "high_ms")}}
        )
        for file, other in zip(record.files, timed, strict=True)
    ]
    written(tmp_path / "device.json", LatencyRecord("a phone", 2, 1, files_there, "now"))
    refused = call(*options, "--target-latency", "2x", "--latency-record", "device.json", "--candidates", "more")
    assert refused[0] == 2
    assert "candidates: they are for a student to be chosen by a latency that is yet to be measured" in refused[2]
    code, out, err = call(*options, "--target-latency", "2x", "--latency-record", "device.json")
    assert (code, err) == (0, "")
    (path,) = (tmp_path / "runs").glob("*-compress-*")
    result = Result.read(path, Run.open(path).result() or {})
    assert result.search is not None
    assert result.search["chosen"] == "mlp128"
    assert result.holds
    assert result.latency is not None
    assert "4.00 times [4.00, 4.00] as fast as the teacher's (4.000 ms): target.latency 2x is met" in out
    assert "latency measured on: a phone" in out
    assert "4.0x faster" in out
    table = search_table(result.search)
    assert table is not None
    assert table.rows[0][table.headers.index("latency ms")] == "≤ 1.000"
    assert (path / "best" / "model.onnx").exists()  # what was timed is handed over, although nothing said --export
    (path / "best" / "bench.json").write_text(bench.to_json(record))
    page = build_report([path], "html")
    assert "latency measured on: a phone" in page
    assert f"latency measured on: {record.machine}" in page
    assert call("compress", "--resume", str(path), "-q")[0] == 0


@pytest.mark.slow
def test_a_limit_that_the_handed_over_file_misses_is_exit_code_3(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search's timings hold, those of the trained file do not; a resumed run reads both, and says the same."""
    pytest.importorskip("onnxruntime")
    measured: list[list[str]] = []

    def run(paths: Sequence[Path], threads: int, batch: int) -> LatencyRecord:
        real = timer(paths, threads=threads, batch=batch, seconds=0)
        measured.append([Path(path).name for path in paths])
        ms = [4.0, 1.0 if len(measured) == 1 else 3.0]
        files = [
            FileLatency(**{**vars(file), "round_ms": [value] * 20}) for file, value in zip(real.files, ms, strict=True)
        ]
        return LatencyRecord("here", threads, batch, files, "now")

    timer = bench.bench
    monkeypatch.setattr(bench, "bench", run)
    options = ["--teacher", "lenet", "--teacher-epochs", "1", "--epochs", "1", "--no-baselines", "-q"]
    options += ["--set", "data.limit=60", "--set", "target.students=['mlp128']", "--target-latency", "2x"]
    code, out, _ = call("compress", *options, "--set", "target.latency_threads=2")
    assert code == 3
    assert measured == [["teacher.onnx", "mlp128.onnx"], ["teacher.onnx", "model.onnx"]]
    assert "WARNING: latency of model.onnx" in out
    assert "target.latency 2x is NOT met" in out
    assert "2 thread(s); latency measured on: here" in out
    (path,) = (tmp_path / "runs").glob("*-compress-*")
    (path / "result.json").unlink()
    config = Run.open(path).config
    del config["target"][
        "latency_batch"
    ]  # as if that setting had come after the run, which may be resumed all the same
    write_json(path / "config.json", "run-config", SCHEMA, {"config": config})
    resumed = resume_compress(Run.open(path))
    assert resumed.latency is not None
    assert not resumed.holds
    assert len(measured) == 2
    assert (path / FILE).exists()
