"""Latency as a limit: exported networks timed in turns with their teacher, on this machine or on a device (`bench`)."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import ValidationError

from noisyteacher import bench
from noisyteacher.bench import BenchError, FileLatency, LatencyRecord, median_interval, speed_up
from noisyteacher.config import Config, limit, type_adapter
from noisyteacher.data import Splits
from noisyteacher.errors import ExportError, FileFormatError, NoisyTeacherError, UsageError
from noisyteacher.export import FORMATS, calibration_images, network_record, write_unchecked
from noisyteacher.io.files import MAX_TEXT, Json, StrPath, parse_json, read_bytes, read_json, unwrap, write_json
from noisyteacher.models import Classifier
from noisyteacher.runs import Run, as_json, folder_name

FILE, KIND, SCHEMA = "latency.json", "compression-latency", 1
TEACHER = "teacher"
CALIBRATION = 32
"""Images that set the ranges of an untrained int8 file: its latency does not depend on them."""


def timed_format(config: Config) -> str:
    """The format whose latency is limited: the first in `run.export` that is a file of its own runtime."""
    return next(name for name in config.run.export if name != "hub")


def is_relative(config: Config) -> bool:
    """Whether the latency is limited by a ratio to the teacher's."""
    return str(config.target.latency).strip().endswith("x")


def write_networks(
    networks: Mapping[str, Classifier], folder: Path, config: Config, data: Splits
) -> tuple[dict[str, Path], dict[str, str]]:
    """Write networks as they are in the timed format; by name their files, and why others could not be written.

    Raises ExportError for a teacher that cannot, where the limit is relative to it.
    """
    name, files, failed = timed_format(config), dict[str, Path](), dict[str, str]()
    images = calibration_images(data, CALIBRATION) if FORMATS[name].precision == "int8" else None
    for title, network in networks.items():
        path = folder / f"{folder_name(title, 120)}.{FORMATS[name].kind}"
        try:
            write_unchecked(network, name, path, data.class_names, images)
        except NoisyTeacherError as error:
            failed[title] = str(error)
            if title == TEACHER and is_relative(config):
                given = f"target.latency {config.target.latency} is relative to the teacher"
                raise ExportError(f"{given}, which cannot be timed ({error}): give milliseconds, as '5ms'") from error
        else:
            files[title] = path
    return files, failed


def read_record(path: StrPath) -> LatencyRecord:
    """The record that `bench` wrote. Raises FileFormatError."""
    try:
        content = unwrap(parse_json(read_bytes(path, MAX_TEXT)), path, bench.KIND, bench.SCHEMA)
        record: LatencyRecord = type_adapter(LatencyRecord).validate_python(content)
    except ValueError as error:
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError(f"{path}: not a record of noisyteacher bench: {str(error)[:200]}") from error
    if len({len(file.round_ms) for file in record.files}) != 1 or not all(map(_consistent, record.files)):
        raise FileFormatError(
            f"{path}: not a record of noisyteacher bench: every file needs as many times above 0, with their median "
            "and interval, and the export that bench wrote: run bench again"
        )
    return record


def _consistent(file: FileLatency) -> bool:
    """Whether the file's times are such, its median and interval theirs, and its export names a model."""
    summary = (file.median_ms, file.low_ms, file.high_ms)
    return (
        bool(file.round_ms)
        and all(0 < ms < math.inf for ms in file.round_ms)
        and all(map(math.isclose, summary, median_interval(file.round_ms)))
        and isinstance((file.export or {}).get("model", {}), dict)
    )


@dataclass(frozen=True)
class Timing:
    """A network's file, timed in the same rounds as the teacher's, which a record of a device may lack."""

    record: LatencyRecord
    file: FileLatency
    teacher: FileLatency | None
    limit: str | float

    @property
    def most_ms(self) -> float:
        """The most milliseconds that target.latency allows, given this teacher's median."""
        return limit(self.limit, 0.0 if self.teacher is None else self.teacher.median_ms, "ms")

    @property
    def share(self) -> tuple[float, float, float]:
        """Latency as a share of the most that is allowed, round by round: the median with its 95 % interval."""
        teachers = self.file.round_ms if self.teacher is None else self.teacher.round_ms
        return median_interval(
            [ms / limit(self.limit, other, "ms") for ms, other in zip(self.file.round_ms, teachers, strict=True)]
        )

    def describe(self) -> Json:
        """The latency of the student that is handed over, and whether it is within the limit, JSON-able."""
        file, record, (share, low, high) = self.file, self.record, self.share
        faster = None if self.teacher is None else speed_up(file, self.teacher)
        words = f"latency of {os.path.basename(file.file)}: {file.median_ms:.3f} ms "
        words += f"[{file.low_ms:.3f}, {file.high_ms:.3f}]"
        if self.teacher is not None and faster is not None:
            words += f", {faster[0]:.2f} times [{faster[1]:.2f}, {faster[2]:.2f}] as fast as the teacher's"
            words += f" ({self.teacher.median_ms:.3f} ms)"
        words += f": target.latency {self.limit} is {'met' if share <= 1 else 'NOT met'}"
        words += ", but the interval includes the limit" if low <= 1 < high else ""
        return {
            "met": share <= 1,
            "limit": self.limit,
            "file": os.path.basename(file.file),
            "latency_ms": [file.median_ms, file.low_ms, file.high_ms],
            "teacher_ms": None if self.teacher is None else self.teacher.median_ms,
            "times_as_fast": faster,
            **{name: getattr(record, name) for name in ("machine", "threads", "batch", "time")},
            "runtime": file.runtime,
            "summary": f"{words} ({file.runtime}, {record.conditions})",
        }


class Timings:
    """The timings of a compression, kept in its run folder, so that a resumed run measures none of them again."""

    def __init__(self, config: Config, data: Splits, teacher: Classifier, run: Run) -> None:
        """Raises UsageError for a record of a device that lacks the teacher where the limit is relative to it."""
        self.config, self.data, self.teacher, self.run = config, data, teacher, run
        self.device = config.target.latency_record
        self.records: list[LatencyRecord] = []
        self.missing: dict[str, str] = {}
        """Networks that have no timing, and why."""
        path = run.path / FILE
        if path.exists():
            try:
                records = read_json(path, KIND, SCHEMA)["records"]
                self.records = type_adapter(list[LatencyRecord]).validate_python(records)
            except (ValidationError, KeyError) as error:
                raise FileFormatError(f"{path}: not the timings of a compression: {error}") from error
        elif self.device:
            self._keep(read_record(self.device))
            if self._entry(self.records[0], teacher) is None and is_relative(config):
                raise UsageError(
                    f"{self.device}: has no timing of the teacher {teacher.name!r} as {timed_format(config)}, which "
                    f"target.latency {config.target.latency} is relative to: time all files that --candidates writes, "
                    "the teacher's too, each with its .export.json beside it"
                )

    def find(self, network: Classifier, sha256: str = "") -> Timing | None:
        """The first timing of this network, or of this file of it; None without one."""
        assert self.config.target.latency is not None
        for record in self.records:
            if (file := self._entry(record, network, sha256)) is not None:
                return Timing(record, file, self._entry(record, self.teacher), self.config.target.latency)
        return None

    def measure(self, networks: Mapping[str, Classifier]) -> None:
        """Export the networks as they are, and time them here in turns with the teacher.

        What cannot be exported, or run by its runtime, is in `missing`. Raises UsageError where the teacher's file
        cannot be run, or the runtime is not installed.
        """
        with tempfile.TemporaryDirectory() as scratch:
            files, failed = write_networks({TEACHER: self.teacher, **networks}, Path(scratch), self.config, self.data)
            self.missing |= {name: reason for name, reason in failed.items() if name != TEACHER}
            candidates = {path: name for name, path in files.items() if name != TEACHER}
            if candidates:
                self._time(list(files.values()), candidates)

    def of_file(self, sha256: str, path: Path, network: Classifier) -> Timing | None:
        """The timing of a trained network's file, measured now if it was not; with a device's record, its network's."""
        if self.device:
            return self.find(network)
        if self.find(network, sha256) is None:
            with tempfile.TemporaryDirectory() as scratch:
                files, _ = write_networks({TEACHER: self.teacher}, Path(scratch), self.config, self.data)
                self._time([*files.values(), path], {})
        return self.find(network, sha256)

    def _time(self, paths: list[Path], candidates: dict[Path, str]) -> None:
        """Time the files in turns. A candidate, named by its file, that its runtime cannot run goes into `missing`."""
        target = self.config.target
        try:
            record = bench.bench(paths, threads=target.latency_threads, batch=target.latency_batch)
        except BenchError as error:
            refused = Path(error.file)
            if refused not in candidates:
                raise UsageError(f"target.latency: {error}") from error
            self.missing[candidates.pop(refused)] = str(error)
            if candidates:
                self._time([path for path in paths if path != refused], candidates)
        else:
            self._keep(record)

    def _keep(self, record: LatencyRecord) -> None:
        self.records.append(record)
        content = {"records": [asdict(kept) for kept in self.records]}
        write_json(self.run.path / FILE, KIND, SCHEMA, content, self.run.path)

    def _entry(self, record: LatencyRecord, network: Classifier, sha256: str = "") -> FileLatency | None:
        """The first timing of this network, or of this file of it, in the timed format."""
        form, known = FORMATS[timed_format(self.config)], as_json(network_record(network), "network")
        export = {"format": form.kind, "precision": form.precision}
        for file in record.files:
            stated = file.export or {}
            model = {"structure": known["structure"], **stated.get("model", {})}  # earlier files do not state it
            same_network = known.items() <= model.items()
            if same_network and export.items() <= stated.items() and sha256 in ("", file.sha256):
                return file
        return None
