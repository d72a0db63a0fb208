"""Latency of exported files by the runtime that runs them: python bench.py model.onnx [FILE ...] --output bench.json

Files are timed in turns, and each is compared with the first. Needs numpy and the runtime of the files (onnxruntime for
.onnx, executorch for .pte, ai-edge-litert for .tflite, torch for .pt2), not noisyteacher: copy this file to the device
with the files, and with the FILE.export.json beside each, by which `noisyteacher compress --latency-record` knows the
networks.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import logging
import math
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

KIND, SCHEMA, SIDECAR = "latency", 1, ".export.json"
ROUNDS, SECONDS = 20, 2.0
"""How often every file has its turn, and how long it is called in all."""
SUFFIXES = {".onnx": "onnx", ".ort": "onnx", ".pte": "executorch", ".tflite": "litert", ".pt2": "torch"}
TYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}


class BenchError(ValueError):
    """What was given cannot be timed; `file` is the path where the reason is one file alone."""

    def __init__(self, message: str, file: str = "") -> None:
        super().__init__(message)
        self.file = file


class Loaded(NamedTuple):
    """A file that its runtime has loaded: images `[B, C, H, W]` to logits `[B, K]`, the shape and type of its images.

    Of the shape, B is a number where the file takes no other.
    """

    run: Callable[[Any], Any]
    shape: Sequence[Any]
    type: str = "uint8"


@contextlib.contextmanager
def load_onnx(path: str | os.PathLike[str], threads: int) -> Iterator[Loaded]:
    """Yield the file loaded by onnxruntime, on the CPU with this many threads; all else is onnxruntime's default."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    images = session.get_inputs()[0]
    kind = TYPES.get(images.type, images.type)
    yield Loaded(lambda batch: session.run(None, {images.name: batch})[0], images.shape, kind)


@contextlib.contextmanager
def load_pte(path: str | os.PathLike[str], threads: int) -> Iterator[Loaded]:
    """Yield the file loaded by ExecuTorch, with this many threads in XNNPACK."""
    import torch

    with contextlib.redirect_stderr(io.StringIO()):  # the runtime reports on the CPU
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime

        threads_before = portable_lib._threadpool_get_thread_count()
        portable_lib._unsafe_reset_threadpool(threads)
    try:
        method = Runtime.get().load_program(Path(path)).load_method("forward")
        if method is None:
            raise BenchError(f"{path}: ExecuTorch finds no method 'forward' in it: export the model again")
        shape = method.metadata.input_tensor_meta(0).sizes()
        yield Loaded(lambda images: method.execute([torch.from_numpy(images)])[0].numpy(), shape)
    finally:
        with contextlib.redirect_stderr(io.StringIO()):
            portable_lib._unsafe_reset_threadpool(threads_before)


@contextlib.contextmanager
def load_tflite(path: str | os.PathLike[str], threads: int) -> Iterator[Loaded]:
    """Yield the file loaded by LiteRT, with this many threads."""
    from ai_edge_litert.interpreter import Interpreter

    run = Interpreter(os.fspath(path), num_threads=threads).get_signature_runner()
    ((name, images),) = run.get_input_details().items()
    (logits_name,) = run.get_output_details()
    kind = images["dtype"].__name__
    yield Loaded(lambda batch: run(**{name: batch})[logits_name], [int(size) for size in images["shape"]], kind)


@contextlib.contextmanager
def load_pt2(path: str | os.PathLike[str], threads: int) -> Iterator[Loaded]:
    """Yield the file loaded by torch.export.load, with this many of torch's threads."""
    import torch

    logger, threads_before = logging.getLogger("torch.export"), torch.get_num_threads()
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # it logs the traceback of an error that it then raises
    try:
        program = torch.export.load(os.fspath(path))
    finally:
        logger.setLevel(level)
    run, example = program.module(), program.example_inputs[0][0]
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            shape, kind = ("batch", *example.shape[1:]), str(example.dtype).partition(".")[2]
            yield Loaded(lambda images: run(torch.from_numpy(images)).float().numpy(), shape, kind)
    finally:
        torch.set_num_threads(threads_before)


RUNTIMES: dict[str, tuple[Callable[..., contextlib.AbstractContextManager[Loaded]], str]] = {
    "onnx": (load_onnx, "onnxruntime"),
    "executorch": (load_pte, "executorch"),
    "litert": (load_tflite, "ai_edge_litert"),
    "torch": (load_pt2, "torch"),
}
"""Name -> how it loads a file (path, threads), and its package."""


@dataclass(frozen=True)
class FileLatency:
    """Milliseconds of a call with a batch of images: the median of the rounds' medians with its 95 % interval, and the
    95th percentile of all calls.
    """

    file: str
    sha256: str
    runtime: str
    median_ms: float
    low_ms: float
    high_ms: float
    p95_ms: float
    calls: int
    round_ms: list[float]
    """The median of each round."""
    export: dict[str, Any] | None = None
    """Format, precision and architecture, as FILE.export.json beside the file says; None without it."""


@dataclass(frozen=True)
class LatencyRecord:
    """Files that were timed in turns on one machine under the same conditions."""

    machine: str
    threads: int
    batch: int
    files: list[FileLatency]
    time: str
    """When, UTC."""

    @property
    def conditions(self) -> str:
        """`median of 20 rounds in turns, batch 1, 1 thread(s); measured on: AMD EPYC, 2 cores, Linux 6.1`."""
        turns = f"median of {len(self.files[0].round_ms)} rounds in turns, batch {self.batch}, {self.threads} thread(s)"
        return f"{turns}; latency measured on: {self.machine}"


def bench(
    files: Sequence[str | os.PathLike[str]],
    runtime: str | None = None,
    threads: int = 1,
    batch: int = 1,
    seconds: float = SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> LatencyRecord:
    """Time these files in turns with random images; `seconds` each, and at least ROUNDS calls.

    runtime: a name of RUNTIMES, by default by the ending of each file. Raises BenchError.
    """
    if threads < 1 or batch < 1 or not 0 <= seconds < math.inf:
        conditions = f"threads {threads}, batch {batch}, seconds {seconds:g}"
        raise BenchError(f"{conditions}: expected at least 1 thread and 1 image, and a finite time of 0 or more")
    calls: dict[str, Callable[[], Any]] = {}
    names: dict[str, str] = {}
    exports: dict[str, tuple[str, dict[str, Any] | None]] = {}
    with contextlib.ExitStack() as stack:
        for path in map(str, files):
            name = runtime or SUFFIXES.get(Path(path).suffix.lower(), "")
            if name not in RUNTIMES:
                what, choices = ("runtime", RUNTIMES) if runtime else ("ending of a file", SUFFIXES)
                raise BenchError(f"{runtime or path}: unknown {what}, expected one of {', '.join(choices)}")
            if path in calls or not os.path.isfile(path):
                raise BenchError(f"{path}: {'named twice' if path in calls else 'there is no such file'}")
            load, package = RUNTIMES[name]
            try:
                exports[path] = _export(path)
                calls[path] = _call(path, stack.enter_context(load(path, threads)), batch)
                calls[path]()
            except ImportError as error:
                raise BenchError(f"{path}: needs {package}, which is not installed: pip install {package}") from error
            except BenchError as error:
                error.file = path
                raise
            except Exception as error:  # whatever a runtime raises for a file it cannot read or run
                reason = (str(error) or repr(error)).splitlines()[0][:200]
                raise BenchError(f"{path}: {package} cannot run it ({reason})", path) from error
            names[path] = with_version(package)
        times = time_in_turns(calls, seconds, clock=clock)
    return LatencyRecord(
        machine=machine(),
        threads=threads,
        batch=batch,
        files=[_file_latency(path, names[path], rounds, *exports[path]) for path, rounds in times.items()],
        time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )


def _call(path: str, loaded: Loaded, batch: int) -> Callable[[], Any]:
    fixed, *sizes = loaded.shape
    if isinstance(fixed, int) and fixed != batch:
        raise BenchError(f"{path}: takes {fixed} image(s) a call, batch {batch} was given: give batch {fixed}")
    if loaded.type.startswith("tensor("):  # one of onnxruntime's that is not among TYPES
        raise BenchError(f"{path}: takes pixels of the type {loaded.type}: expected uint8 or float32")
    if not all(isinstance(size, int) for size in sizes):
        raise BenchError(
            f"{path}: takes {list(loaded.shape)}: expected fixed numbers for channels, height and width, as in "
            "['batch', 3, 32, 32]: export it for images of one size"
        )
    images = np.random.default_rng(0).integers(0, 256, (batch, *sizes), np.uint8).astype(loaded.type)
    return lambda: loaded.run(images)


def with_version(package: str) -> str:
    """The package's name and version, whatever distribution it came with: `onnxruntime 1.32.0`."""
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:  # onnxruntime-gpu, ai-edge-litert-nightly
        from importlib.metadata import packages_distributions  # Python 3.10

        return " ".join([package, *map(version, packages_distributions().get(package, [])[:1])])


def _export(path: str) -> tuple[str, dict[str, Any] | None]:
    """The file's SHA-256, and what its FILE.export.json says, if there is one."""
    digest, sidecar = hashlib.sha256(Path(path).read_bytes()).hexdigest(), Path(path + SIDECAR)
    if not sidecar.is_file():
        return digest, None
    try:
        beside = json.loads(sidecar.read_text(encoding="utf-8"))
        export = {name: beside[name] for name in ("format", "precision", "model")}
        if beside["sha256"] != digest:
            raise ValueError("it is another file's")
    except (ValueError, KeyError, TypeError) as error:
        raise BenchError(
            f"{sidecar}: does not say what {path} is ({error!r}): copy both again, or delete it"
        ) from error
    return digest, export


def _file_latency(
    path: str, runtime: str, rounds: Sequence[Sequence[float]], digest: str, export: dict[str, Any] | None
) -> FileLatency:
    times, medians = [ms for block in rounds for ms in block], [float(np.median(block)) for block in rounds]
    p95 = float(np.percentile(times, 95))
    return FileLatency(path, digest, runtime, *median_interval(medians), p95, len(times), medians, export)


def time_in_turns(
    calls: Mapping[str, Callable[[], Any]],
    seconds: float = SECONDS,
    rounds: int = ROUNDS,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[list[float]]]:
    """Milliseconds of the calls by name and round, after a warm-up round; each round starts with another name.

    In its turn each is called once without being timed, to get over what ran before it, then at least once, and for its
    share of the seconds.
    """
    names = list(calls)
    times: dict[str, list[list[float]]] = {name: [] for name in names}
    for number in range(rounds + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            call = calls[name]
            block: list[float] = []
            call()
            began = clock()
            while not block or clock() - began < seconds / rounds:
                start = clock()
                call()
                block.append(1e3 * (clock() - start))
            if number:
                times[name].append(block)
    return times


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The median with its 95 % interval, of order statistics (binomial): for 20 values the 6th and the 15th.

    With fewer than six, the interval is the range and covers less.
    """
    ordered, n, rank, tail = sorted(values), len(values), 0, 2.0 ** -len(values)
    while tail <= 0.025:
        rank += 1
        tail += math.comb(n, rank) / 2**n
    rank = max(rank, 1)
    return float(np.median(ordered)), ordered[rank - 1], ordered[n - rank]


def speed_up(file: FileLatency, reference: FileLatency) -> tuple[float, float, float]:
    """How many times as fast as the reference: the median of the ratios within each round, with its 95 % interval."""
    return median_interval([slow / fast for slow, fast in zip(reference.round_ms, file.round_ms)])  # noqa: B905


def machine() -> str:
    """This machine's processor, cores that this process may use, and system."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{processor()}, {cores} cores, {platform.system()} {platform.release()}"


def processor() -> str:
    """The name of this machine's processor, as far as the system has one."""
    info = Path("/proc/cpuinfo").read_text(errors="replace") if os.path.exists("/proc/cpuinfo") else ""
    names = re.findall(r"(?:model name|Hardware|Model)\s*:\s*(.+)", info)
    return names[0] if names else platform.processor() or platform.machine()


def to_json(record: LatencyRecord) -> str:
    """The record as a JSON file holds it."""
    return json.dumps({"kind": KIND, "schema": SCHEMA, **asdict(record)}, indent=1)


HEADERS = ("file", "runtime", "latency ms", "95 % interval", "p95 ms", "times as fast")


def rows(record: LatencyRecord) -> list[tuple[str, ...]]:
    """A row of HEADERS per file; the first file is what the others are compared with."""
    first, *_ = record.files
    short = [os.path.basename(file.file) for file in record.files]
    table: list[tuple[str, ...]] = []
    for file in record.files:
        ratio = "" if file is first else "{:.2f} [{:.2f}, {:.2f}]".format(*speed_up(file, first))
        interval = f"[{file.low_ms:.3f}, {file.high_ms:.3f}]"
        name = os.path.basename(file.file)
        name = file.file if short.count(name) > 1 else name
        table.append((name, file.runtime, f"{file.median_ms:.3f}", interval, f"{file.p95_ms:.3f}", ratio))
    return table


def main() -> None:
    """The command line of this file on its own."""
    parser = argparse.ArgumentParser(description="Latency of exported files, timed in turns.")
    parser.add_argument("files", nargs="+", metavar="FILE", help="the first is what the others are compared with")
    parser.add_argument("--runtime", choices=RUNTIMES, help="default: by the ending of each file")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1, help="images per call")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="that each file is called")
    parser.add_argument("--output", help="the JSON file to write")
    options = parser.parse_args()
    try:
        record = bench(options.files, options.runtime, options.threads, options.batch, options.seconds)
    except BenchError as error:
        sys.exit(f"error: {error}")
    table = (HEADERS, *rows(record))
    widths = [max(map(len, column)) for column in zip(*table)]  # noqa: B905
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in table]  # noqa: B905
    sys.stdout.write("\n".join([*lines, "", record.conditions, ""]))
    if options.output:
        try:
            Path(options.output).write_text(to_json(record))
        except OSError as error:
            sys.exit(f"error: {options.output}: cannot be written ({error.strerror})")


if __name__ == "__main__":
    main()
