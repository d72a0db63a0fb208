"""Every write of ours, broken at every system call: the old is there or the new, never neither, never a mixture."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import cycle, product
from pathlib import Path
from typing import Any

import pytest
import torch

import noisyteacher as nt
from faults.crashed_disk import OPTIONS, TRACED, lay_out, states_of
from faults.traced_calls import MUTATING, Call, calls, chosen, failing_at, killed_at, leave_out, need_strace, traced
from helpers import student_with
from noisyteacher.errors import NoisyTeacherError, WriteError
from noisyteacher.io.files import read_json, write_json
from noisyteacher.runs import Run, new_run
from noisyteacher.store import LogitStore
from noisyteacher.train.checkpoint import read_checkpoint, write_checkpoint
from noisyteacher.train.state import Progress

Tell = Callable[[str, object], None]
QUICK = 12
"""So many of the system calls are tried where not all faults are asked for (NOISYTEACHER_FAULTS=all)."""


@dataclass(frozen=True)
class Write:
    """One kind of write: how the old is made, how the new is written over it, and what a reader then finds."""

    old: Callable[[Path], object]
    new: Callable[[Path], object]
    read: Callable[[Path], object]
    """Something that tells old from new; raises where neither is there."""


def model(seed: int) -> nt.Classifier:
    return nt.build_model("lenet", classes=10, input_shape=(1, 28, 28), seed=seed)


RUNS: dict[Path, str] = {}
"""What the run in a folder is called, so that the write itself need not look."""


def a_run(folder: Path) -> Run:
    if folder not in RUNS:
        if not any(folder.iterdir()):
            new_run(folder, "train", "lenet", {"seed": 0})
        (RUNS[folder],) = (path.name for path in folder.iterdir())
    return Run.open(folder / RUNS[folder])


def checkpoint(folder: Path, step: int) -> None:
    network = torch.nn.Linear(3, 2)
    torch.nn.init.constant_(network.weight, float(step))
    optimizer = torch.optim.Adam(network.parameters())
    run = a_run(folder).path
    write_checkpoint(student_with(network, optimizer, run, {"seed": 0}, progress=Progress(step=step)))


def restored(folder: Path) -> tuple[int, float]:
    network = torch.nn.Linear(3, 2)
    run = a_run(folder).path
    student = student_with(network, torch.optim.Adam(network.parameters()), run, {"seed": 0})
    read_checkpoint(run, student)
    return student.progress.step, float(network.weight.detach()[0, 0])


WRITES: dict[str, Write] = {
    "json": Write(
        lambda folder: write_json(folder / "a.json", "kind", 1, {"value": "old" * 500}),
        lambda folder: write_json(folder / "a.json", "kind", 1, {"value": "new" * 900}),
        lambda folder: read_json(folder / "a.json", "kind", 1)["value"][:3],
    ),
    "weights": Write(
        lambda folder: nt.save_model(model(1), folder / "w.safetensors", {"epoch": "old"}),
        lambda folder: nt.save_model(model(2), folder / "w.safetensors", {"epoch": "new"}),
        lambda folder: (
            nt.models.model_record(folder / "w.safetensors")["epoch"],
            torch.equal(
                next(nt.load_model(folder / "w.safetensors").parameters()),
                next(
                    model(1 if nt.models.model_record(folder / "w.safetensors")["epoch"] == "old" else 2).parameters()
                ),
            ),
        ),
    ),
    "checkpoint": Write(lambda folder: checkpoint(folder, 1), lambda folder: checkpoint(folder, 2), restored),
    "result": Write(
        lambda folder: a_run(folder).write_result({"error": 1.0}),
        lambda folder: a_run(folder).write_result({"error": 2.0}),
        lambda folder: (a_run(folder).result() or {})["error"],
    ),
}


@pytest.fixture(autouse=True, scope="module")
def _tracing() -> None:
    need_strace()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder; the log of a trace lies beside it."""
    folder = tmp_path / "place"
    folder.mkdir()
    return folder


def with_errors(points: list[Call]) -> Iterator[tuple[Call, str]]:
    """Calls with the errors that they are to fail with: by turns, or, where all faults are tried, each with both."""
    errors = ("ENOSPC", "EIO")
    everything = os.environ.get("NOISYTEACHER_FAULTS") == "all"
    return product(points, errors) if everything else zip(points, cycle(errors), strict=False)


def prepared(write: Write, folder: Path) -> tuple[Any, Any]:
    """What is found of the old and of the new; the old is there afterwards."""
    write.old(folder)
    old = write.read(folder)
    write.new(folder)
    new = write.read(folder)
    assert old != new
    write.old(folder)
    assert write.read(folder) == old
    return old, new


@pytest.mark.parametrize("kind", WRITES)
def test_killed_at_every_system_call(kind: str, folder: Path, record_property: Tell) -> None:
    write, log = WRITES[kind], folder.parent / "log"
    old, new = prepared(write, folder)
    seen: list[object] = []
    in_order: list[object] = []
    for call in chosen(calls(lambda: write.new(folder), log), QUICK):
        write.old(folder)
        outcome = killed_at(lambda: write.new(folder), log, call)
        content = write.read(folder)
        assert content in (old, new), call
        if outcome.code == 0:  # a call of the memory's, say, that was not needed this time
            assert content == new
        else:
            seen.append(content)
            if call.name in MUTATING.split(","):  # those of the memory come where they like
                in_order.append(content)
    record_property("faults: kills at a system call", len(seen))
    assert {old, new} == set(seen)  # early ones leave the old, late ones the new
    assert in_order == [old] * in_order.count(old) + [new] * in_order.count(new)  # and nothing goes back


@pytest.mark.parametrize("kind", WRITES)
def test_whatever_the_disk_lost_the_old_is_there_or_the_new(
    kind: str, folder: Path, tmp_path: Path, record_property: Tell
) -> None:
    """A replay of the write, with everything lost or torn that was not yet flushed to the disk."""
    write, log = WRITES[kind], tmp_path / "log"
    old, new = prepared(write, folder)
    before = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    outcome = traced(lambda: write.new(folder), log, "-e", f"trace={TRACED}", *OPTIONS)
    assert outcome.code == 0
    seen = []
    for number, state in enumerate(states_of(outcome.trace, folder, before)):
        after = tmp_path / f"after{number}"
        lay_out(state, after)
        seen.append(write.read(after))
        assert seen[-1] in (old, new), number
        shutil.rmtree(after)
    record_property("faults: states of a disk after a power cut", len(seen))
    assert seen[0] == old
    assert seen[-1] == new  # what was reported as written is safe


def test_the_replay_finds_a_write_that_is_not_flushed(folder: Path, tmp_path: Path) -> None:
    """The model of the disk would notice the two classical mistakes."""

    def mixture(flush_file: bool) -> set[bytes]:
        def careless() -> None:
            with open(folder / "b.tmp", "wb") as stream:
                stream.write(b"new" * 100)
                if flush_file:
                    stream.flush()
                    os.fsync(stream.fileno())
            os.replace(folder / "b.tmp", folder / "a")

        outcome = traced(careless, tmp_path / "log", "-e", f"trace={TRACED}", *OPTIONS)
        return {state["a"] or b"" for state in states_of(outcome.trace, folder, {"a": b"old"})}

    (folder / "a").write_bytes(b"old")
    assert mixture(flush_file=False) == {b"old", b"", b"new" * 50, b"new" * 100}  # renamed before it was flushed
    (folder / "a").write_bytes(b"old")
    assert mixture(flush_file=True) == {b"old", b"new" * 100}


@pytest.mark.parametrize("kind", WRITES)
def test_a_failing_call_is_an_error_of_ours_and_the_old_stays(kind: str, folder: Path, record_property: Tell) -> None:
    write, log = WRITES[kind], folder.parent / "log"
    old, new = prepared(write, folder)
    points = chosen(calls(lambda: write.new(folder), log, f"openat,{MUTATING}"), QUICK)
    failed = 0
    for call, error in with_errors(points):
        write.old(folder)
        outcome = failing_at(lambda: write.new(folder), log, call, error)
        assert outcome.code in (0, 1), (call, outcome.code)  # never a bare exception
        failed += outcome.code == 1
        assert write.read(folder) in ((new,) if outcome.code == 0 else (old, new)), call
    assert failed
    record_property("faults: ENOSPC or EIO at a system call", failed)


@dataclass
class Extraction:
    """A store of three shards, written in a forked process."""

    teacher: nt.Classifier
    data: nt.Splits

    def __call__(self, path: Path) -> LogitStore:
        return nt.extract(self.teacher, self.data.train, path, rows_per_shard=10, batch_size=10)


@pytest.fixture(scope="module")
def extraction() -> Extraction:
    return Extraction(model(0).eval(), nt.load_data("mnist-5k", limit=30))


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def test_a_store_killed_at_every_system_call_is_finished_to_the_same_bytes(
    extraction: Extraction, folder: Path, record_property: Tell
) -> None:
    whole = contents(extraction(folder / "whole").path)
    log = folder / "log"

    def again() -> None:
        extraction(folder / "store")

    points = [call for call in calls(again, log) if call.name in (*MUTATING.split(","), "openat", "close")]
    shutil.rmtree(folder / "store")
    points = chosen(points, QUICK)
    record_property("faults: kills at a system call", len(points))
    for call in points:
        killed_at(again, log, call)
        with suppress(NoisyTeacherError):  # it is not finished, and says so
            LogitStore.open(folder / "store").verify()
        extraction(folder / "store")
        assert {
            name: data for name, data in contents(folder / "store").items() if not name.endswith(".tmp")
        } == whole, call
        shutil.rmtree(folder / "store")


def test_a_store_on_a_disk_that_fails_says_so_and_is_finished_later(
    extraction: Extraction, folder: Path, record_property: Tell
) -> None:
    whole = contents(extraction(folder / "whole").path)
    log = folder / "log"

    def again() -> None:
        extraction(folder / "store")

    points = calls(again, log, MUTATING)
    shutil.rmtree(folder / "store")
    injected = list(with_errors(chosen(points, QUICK)))
    record_property("faults: ENOSPC or EIO at a system call", len(injected))
    for call, error in injected:
        outcome = failing_at(again, log, call, error)
        assert outcome.code in (0, 1), call
        extraction(folder / "store")
        assert {
            name: data for name, data in contents(folder / "store").items() if not name.endswith(".tmp")
        } == whole, call
        shutil.rmtree(folder / "store")


@contextmanager
def tiny_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of this many bytes, really full when it is full. Skips where none may be mounted."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        reason = f"no tmpfs can be mounted here: {mounted.stderr.strip()}"
        leave_out(reason)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_disk_of_two_megabytes(tmp_path: Path) -> None:
    """A compression that does not fit: an error with advice, what was done is whole, and it goes on elsewhere."""
    data = nt.load_data("mnist-5k", limit=60)
    with tiny_disk(tmp_path / "tiny", "2m") as tiny:
        with pytest.raises(WriteError, match="the disk is full"):
            nt.compress("lenet", "mlp800", data, output_dir=tiny, epochs=1, teacher_training={"epochs": 1})
        (run,) = tiny.iterdir()
        copied = tmp_path / "roomy" / run.name
        shutil.copytree(run, copied)
    result = nt.compress(
        "lenet", "mlp800", data, output_dir=tmp_path / "roomy", epochs=1, teacher_training={"epochs": 1}, run=copied
    )
    fresh = nt.compress("lenet", "mlp800", data, output_dir=tmp_path / "b", epochs=1, teacher_training={"epochs": 1})
    for row, other in zip(result.rows, fresh.rows, strict=True):
        assert row.errors == other.errors


def test_a_call_is_found_by_its_name_and_number(folder: Path) -> None:
    """The instrument itself: killed at its second write, a process has done the first."""

    def three() -> None:
        for name in "abc":
            handle = os.open(folder / name, os.O_CREAT | os.O_WRONLY)
            os.write(handle, b"x")
            os.close(handle)

    log = folder.parent / "log"
    assert calls(three, log, "write") == [Call("write", 1), Call("write", 2), Call("write", 3)]
    for name in "abc":
        (folder / name).unlink()
    assert killed_at(three, log, Call("write", 2)).code == -9
    assert [(folder / name).exists() and (folder / name).stat().st_size for name in "abc"] == [1, 0, False]
    assert failing_at(three, log, Call("write", 3), "ENOSPC").code == 70  # nobody made an error of ours of it
