"""What the benchmarks share: comparisons measured in turns, and a summary of their ratios after the run."""

from __future__ import annotations

import math
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

SHORT = {
    "test_extract[lenet-mnist]", "test_gather[memory-1-64]", "test_epoch[mnist-64]", "test_noisy_epoch[mnist-64]",
    "test_start[help]", "test_start[import]",
}  # fmt: skip
LINES = pytest.StashKey[list[str]]()
FLAGS = ("avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")


@dataclass(frozen=True)
class Compared:
    """Seconds of the work and of the reference, and the ratio of the two: medians, and the ratio's quartiles."""

    work: float
    reference: float
    ratio: float
    quartiles: tuple[float, float]
    rounds: int


@dataclass
class Turns:
    """Measures work against a reference in turns: reference, work, reference, ..., work, reference.

    Each round of work is divided by the mean of the references before and after it, so that a machine that becomes
    slower or faster meanwhile moves both. One untimed call of each goes first, unless they are `warm` already.
    """

    benchmark: BenchmarkFixture
    lines: list[str]
    name: str
    short: bool = False
    times: dict[str, list[float]] = field(default_factory=lambda: {"work": [], "reference": []})

    def measure(
        self,
        work: Callable[[], object],
        reference: Callable[[], object],
        *,
        rounds: int,
        warm: bool = False,
        sane: tuple[float, float] = (0, math.inf),
    ) -> Compared:
        """The comparison; pytest-benchmark's table shows the work alone. Its ratio must be `sane`, on any machine."""
        rounds = min(rounds, 3) if self.short else rounds
        if not warm:
            reference()
            work()
        before = self._timed("reference", reference)
        self.benchmark.pedantic(self._timed("work", work), setup=before, rounds=rounds, iterations=1)
        before()
        works, references = self.times["work"], self.times["reference"]
        pairs = zip(works, references, references[1:], strict=False)
        ratios = [2 * seconds / (earlier + later) for seconds, earlier, later in pairs]
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
        result = Compared(
            statistics.median(works), statistics.median(references), statistics.median(ratios), (low, high), len(works)
        )
        assert sane[0] <= result.ratio <= sane[1], f"{self.name}: {result.ratio:.2f} x its reference cannot be"
        self.benchmark.extra_info |= {
            "ratio": result.ratio,
            "ratio_quartiles": [low, high],
            "reference_seconds": result.reference,
            "rounds": result.rounds,
        }
        return result

    def tell(self, line: str, **numbers: float) -> None:
        """A line of the summary, and the numbers in it for the JSON file."""
        self.benchmark.extra_info |= numbers
        self.lines.append(f"{self.name}: {line}")

    def tell_ratio(self, result: Compared, against: str, line: str, **numbers: float) -> None:
        """As `tell`, with the ratio, its quartiles and the number of rounds behind the line."""
        low, high = result.quartiles
        ratio = f"{result.ratio:.2f} x {against} ({low:.2f} to {high:.2f}, n={result.rounds})"
        self.tell(f"{line}; {ratio}" if line else ratio, **numbers)

    def _timed(self, kind: str, call: Callable[[], object]) -> Callable[[], None]:
        def timed() -> None:
            start = time.perf_counter()
            call()
            self.times[kind].append(time.perf_counter() - start)

        return timed


@pytest.fixture
def turns(benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> Turns:
    """The comparison of one benchmark."""
    name = request.node.name.removeprefix("test_")
    return Turns(benchmark, request.config.stash.setdefault(LINES, []), name, request.config.getoption("--short"))


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--short`: a few comparisons in three rounds each, to see that their ratios are sane."""
    parser.addoption("--short", action="store_true", help="a few comparisons, three rounds each")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In the short form only what is in SHORT."""
    if config.getoption("--short"):
        config.hook.pytest_deselected(items=[item for item in items if item.name not in SHORT])
        items[:] = [item for item in items if item.name in SHORT]


def machine() -> dict[str, Any]:
    """Threads, torch and what the processor can do: without these a time means nothing."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    model, flags = re.search(r"model name\s*: (.*)", text), re.search(r"flags\s*: (.*)", text)
    available = set(flags[1].split()) if flags else set()
    return {
        "cpu_model": model[1] if model else "unknown",
        "cpu_flags": [flag for flag in FLAGS if flag in available],
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "torch_kernels": torch.backends.cpu.get_cpu_capability(),
    }


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Puts our facts beside pytest-benchmark's; the host's name is nobody's business."""
    machine_info.pop("node", None)
    machine_info |= machine()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The ratios, one line each."""
    lines = config.stash.get(LINES, [])
    if lines:
        facts = machine()
        terminalreporter.section("ratios: medians of rounds measured in turns (quartiles, rounds)")
        terminalreporter.line(
            f"{facts['cpu_model']}, {' '.join(facts['cpu_flags'])}; torch {facts['torch']}, "
            f"{facts['torch_threads']} thread(s), kernels {facts['torch_kernels']}"
        )
        for line in lines:
            terminalreporter.line(line)
