"""Every write of ours, broken at every system call: the old is there or the new, never neither, never a mixture."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from crashed_disk import OPTIONS, TRACED, lay_out, states_of
from traced_calls import MUTATING, Call, calls, chosen, failing_at, killed_at, leave_out, need_strace, traced

import noisyteacher as nt
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
    found: Callable[[Path], object]
    """Something that tells old from new; raises where neither is there."""


def model(seed: int) -> nt.Classifier:
    return nt.build_model("lenet", classes=10, input_shape=(1, 28, 28), seed=seed)


RUNS: dict[Path, str] = {}
"""What the run in a folder is called, so that the write itself need not look."""


def a_run(folder: Path) -> Run:
    if folder not in RUNS:
        if not any(folder.iterdir()):
            new_run(folder, "train", "lenet", {"seed": 0})
        (RUNS[folder],) = (one.name for one in folder.iterdir())
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
def place(tmp_path: Path) -> Path:
    """An empty folder; the log of a trace lies beside it."""
    folder = tmp_path / "place"
    folder.mkdir()
    return folder


def prepared(write: Write, place: Path) -> tuple[Any, Any]:
    """What is found of the old and of the new; the old is there afterwards."""
    write.old(place)
    old = write.found(place)
    write.new(place)
    new = write.found(place)
    assert old != new
    write.old(place)
    assert write.found(place) == old
    return old, new


@pytest.mark.parametrize("kind", WRITES)
def test_killed_at_every_system_call(kind: str, place: Path, record_property: Tell) -> None:
    write, log = WRITES[kind], place.parent / "log"
    old, new = prepared(write, place)
    seen: list[object] = []
    in_order: list[object] = []
    for call in chosen(calls(lambda: write.new(place), log), QUICK):
        write.old(place)
        outcome = killed_at(lambda: write.new(place), log, call)
        left = write.found(place)
        assert left in (old, new), call
        if outcome.code == 0:  # a call of the memory's, say, that was not needed this time
            assert left == new
        else:
            seen.append(left)
            if call.name in MUTATING.split(","):  # those of the memory come where they like
                in_order.append(left)
    record_property("faults: kills at a system call", len(seen))
    assert {old, new} == set(seen)  # early ones leave the old, late ones the new
    assert in_order == [old] * in_order.count(old) + [new] * in_order.count(new)  # and nothing goes back


@pytest.mark.parametrize("kind", WRITES)
def test_whatever_the_disk_lost_the_old_is_there_or_the_new(
    kind: str, place: Path, tmp_path: Path, record_property: Tell
) -> None:
    """A replay of the write, with everything lost or torn that was not yet flushed to the disk."""
    write, log = WRITES[kind], tmp_path / "log"
    old, new = prepared(write, place)
    before = {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}
    outcome = traced(lambda: write.new(place), log, "-e", f"trace={TRACED}", *OPTIONS)
    assert outcome.code == 0
    seen = []
    for number, state in enumerate(states_of(outcome.trace, place, before)):
        after = tmp_path / f"after{number}"
        lay_out(state, after)
        seen.append(write.found(after))
        assert seen[-1] in (old, new), number
        shutil.rmtree(after)
    record_property("faults: states of a disk after a power cut", len(seen))
    assert seen[0] == old
    assert seen[-1] == new  # what was reported as written is safe


def test_the_replay_finds_a_write_that_is_not_flushed(place: Path, tmp_path: Path) -> None:
    """The model of the disk would notice the two classical mistakes."""

    def mixture(flush_file: bool) -> set[bytes]:
        def careless() -> None:
            with open(place / "b.tmp", "wb") as stream:
                stream.write(b"new" * 100)
                if flush_file:
                    stream.flush()
                    os.fsync(stream.fileno())
            os.replace(place / "b.tmp", place / "a")

        outcome = traced(careless, tmp_path / "log", "-e", f"trace={TRACED}", *OPTIONS)
        return {state["a"] or b"" for state in states_of(outcome.trace, place, {"a": b"old"})}

    (place / "a").write_bytes(b"old")
    assert mixture(flush_file=False) == {b"old", b"", b"new" * 50, b"new" * 100}  # renamed before it was flushed
    (place / "a").write_bytes(b"old")
    assert mixture(flush_file=True) == {b"old", b"new" * 100}


@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
@pytest.mark.parametrize("kind", WRITES)
def test_a_failing_call_is_an_error_of_ours_and_the_old_stays(
    kind: str, error: str, place: Path, record_property: Tell
) -> None:
    write, log = WRITES[kind], place.parent / "log"
    old, new = prepared(write, place)
    found = chosen(calls(lambda: write.new(place), log, f"openat,{MUTATING}"), QUICK)
    failed = 0
    for call in found:
        write.old(place)
        outcome = failing_at(lambda: write.new(place), log, call, error)
        assert outcome.code in (0, 1), (call, outcome.code)  # never a bare exception
        failed += outcome.code == 1
        assert write.found(place) in ((new,) if outcome.code == 0 else (old, new)), call
    assert failed
    record_property(f"faults: {error} at a system call", failed)


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
    return {str(one.relative_to(path)): one.read_bytes() for one in sorted(path.rglob("*")) if one.is_file()}


def test_a_store_killed_at_every_system_call_is_finished_to_the_same_bytes(
    extraction: Extraction, place: Path, record_property: Tell
) -> None:
    whole = contents(extraction(place / "whole").path)
    log = place / "log"

    def again() -> None:
        extraction(place / "store")

    found = [one for one in calls(again, log) if one.name in (*MUTATING.split(","), "openat", "close")]
    shutil.rmtree(place / "store")
    found = chosen(found, QUICK)
    record_property("faults: kills at a system call", len(found))
    for call in found:
        killed_at(again, log, call)
        with suppress(NoisyTeacherError):  # it is not finished, and says so
            LogitStore.open(place / "store").verify()
        extraction(place / "store")
        assert {name: data for name, data in contents(place / "store").items() if not name.endswith(".tmp")} == whole, (
            call
        )
        shutil.rmtree(place / "store")


@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
def test_a_store_on_a_disk_that_fails_says_so_and_is_finished_later(
    extraction: Extraction, place: Path, error: str, record_property: Tell
) -> None:
    whole = contents(extraction(place / "whole").path)
    log = place / "log"

    def again() -> None:
        extraction(place / "store")

    found = calls(again, log, MUTATING)
    shutil.rmtree(place / "store")
    found = chosen(found, QUICK)
    record_property(f"faults: {error} at a system call", len(found))
    for call in found:
        outcome = failing_at(again, log, call, error)
        assert outcome.code in (0, 1), call
        extraction(place / "store")
        assert {name: data for name, data in contents(place / "store").items() if not name.endswith(".tmp")} == whole, (
            call
        )
        shutil.rmtree(place / "store")


@contextmanager
def tiny_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of so many bytes, really full when it is full. Skips where none may be mounted."""
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


def test_a_call_is_found_by_its_name_and_number(place: Path) -> None:
    """The instrument itself: killed at its second write, a process has done the first."""

    def three() -> None:
        for name in "abc":
            handle = os.open(place / name, os.O_CREAT | os.O_WRONLY)
            os.write(handle, b"x")
            os.close(handle)

    log = place.parent / "log"
    assert calls(three, log, "write") == [Call("write", 1), Call("write", 2), Call("write", 3)]
    for name in "abc":
        (place / name).unlink()
    assert killed_at(three, log, Call("write", 2)).code == -9
    assert [(place / name).exists() and (place / name).stat().st_size for name in "abc"] == [1, 0, False]
    assert failing_at(three, log, Call("write", 3), "ENOSPC").code == 70  # nobody made an error of ours of it
