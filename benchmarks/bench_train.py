"""Distillation steps against a bare torch loop that does the same arithmetic, in turns."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from synthetic import CIFAR, CLASSES, MNIST, synthetic_split
from torch import Tensor, nn

from conftest import Turns
from noisyteacher import (
    Batch,
    Classifier,
    LogitStore,
    Noise,
    Split,
    build_model,
    distil,
    extract,
    fit,
    logit_regression,
)
from noisyteacher.device import precision_context
from noisyteacher.rng import generator
from noisyteacher.train.history import Tick

NOISE = Noise(sigma=0.5, alpha=0.5)


@dataclass(frozen=True)
class Task:
    """A student, what it learns from, how many rounds are worth their time, and the step size."""

    student: Classifier
    split: Split
    store: LogitStore
    rounds: int
    lr: float

    @property
    def table(self) -> Tensor:
        """The store's logits `[N, K]` as one tensor."""
        return self.store.logits("clean", torch.arange(len(self.split)))


@dataclass
class Steps:
    """Losses and moments of the steps of one run."""

    losses: list[float]
    moments: list[float]

    def add(self, loss: float) -> None:
        """One step is over."""
        self.losses.append(loss)
        self.moments.append(time.perf_counter())

    @property
    def milliseconds(self) -> list[float]:
        """Of every step but the first."""
        return [1000 * (b - a) for a, b in zip(self.moments, self.moments[1:], strict=False)]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> dict[str, Task]:
    """The paper's MNIST pair and its NIN with the CIFAR-10 student, on synthetic images."""
    tasks = {}
    for name, teacher, student, shape, rows, rounds, lr in (
        ("mnist", "lenet", "mlp800", MNIST, 2048, 7, 1e-3),
        ("cifar", "nin", "lenet-cifar", CIFAR, 384, 3, 1e-5),
    ):
        if name == "cifar" and pytestconfig.getoption("--short"):
            continue
        split = synthetic_split(rows, shape)
        network = build_model(teacher, classes=CLASSES, input_shape=shape)
        store = extract(network, split, tmp_path_factory.mktemp(name), device="cpu", batch_size=64)
        tasks[name] = Task(build_model(student, classes=CLASSES, input_shape=shape), split, store, rounds, lr)
    return tasks


def package_epoch(task: Task, batch_size: int, noise: Noise | None = None) -> Steps:
    """One epoch of `fit` on the stored logits, from the student's first weights."""
    steps = Steps([], [])

    def progress(tick: Tick) -> None:
        steps.add(tick.loss)

    fit(
        copy.deepcopy(task.student), task.split, distil(task.store, noise=noise), epochs=1, batch_size=batch_size,
        lr=task.lr, schedule="constant", device="cpu",
        precision="fp32", progress=progress,  # the arithmetic of the bare loop, to the bit
    )  # fmt: skip
    return steps


def bare_epoch(task: Task, table: Tensor, batch_size: int, layout: torch.memory_format) -> Steps:
    """The same epoch without the package's loop: tensors, plain indexing, fused Adam."""
    steps, images = Steps([], []), task.split.images
    model: nn.Module = copy.deepcopy(task.student).to(memory_format=layout)
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=task.lr, fused=True)
    order = torch.randperm(len(images), generator=generator(0, "order", 0))
    for rows in order.split(batch_size):
        logits = model(images[rows].to(memory_format=layout))
        loss = (logits - table[rows]).square().sum() / (2 * len(rows))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        steps.add(float(loss.detach()))
    return steps


def assert_learns_from_the_store(task: Task, batch_size: int) -> None:
    """Every loss of an epoch is, bit for bit, that of the stored logits taken out by plain indexing."""
    objective, table, seen = distil(task.store), task.table, []

    def watched(logits: Tensor, batch: Batch) -> Tensor:
        loss, _ = objective(logits, batch)
        assert torch.equal(loss, (logits - table[batch.rows]).square().sum() / (2 * len(batch.rows)))
        seen.append(batch.rows)
        return loss

    few = task.split.take(2 * batch_size)
    fit(copy.deepcopy(task.student), few, watched, epochs=1, batch_size=batch_size, lr=task.lr, device="cpu")
    assert torch.equal(torch.cat(seen).sort().values, torch.arange(2 * batch_size))


def assert_falls(steps: Steps) -> None:
    """The last loss, or the mean of the last quarter, is below the first."""
    quarter = max(1, len(steps.losses) // 4)
    assert statistics.fmean(steps.losses[-quarter:]) < statistics.fmean(steps.losses[:quarter])


CASES = [("mnist", 64), ("mnist", 128), ("cifar", 128)]


@pytest.mark.parametrize(("name", "batch_size"), CASES)
def test_epoch(turns: Turns, tasks: dict[str, Task], name: str, batch_size: int) -> None:
    task = tasks[name]
    assert_learns_from_the_store(task, batch_size)
    table, ours, bare = task.table, [], []
    result = turns.measure(
        lambda: ours.append(package_epoch(task, batch_size)),
        lambda: bare.append(bare_epoch(task, table, batch_size, torch.channels_last)),
        rounds=task.rounds,
        sane=(0.5, 3),
        warm=name == "cifar",
    )
    assert_falls(ours[0])
    assert all(steps.losses == bare[0].losses for steps in (*ours, *bare)), "the two loops do not do the same"
    step, bare_step = (statistics.median(ms for steps in runs for ms in steps.milliseconds) for runs in (ours, bare))
    turns.tell_ratio(
        result,
        "a bare loop",
        f"{step:.1f} ms a step, bare {bare_step:.1f} ({step / bare_step:.2f}); "
        f"an epoch of {len(ours[0].losses)} steps {result.work:.2f} s",
        ms_per_step=step,
        bare_ms_per_step=bare_step,
    )


@pytest.mark.parametrize(("name", "batch_size"), CASES)
def test_noisy_epoch(turns: Turns, tasks: dict[str, Task], name: str, batch_size: int) -> None:
    task, noisy = tasks[name], []
    result = turns.measure(
        lambda: noisy.append(package_epoch(task, batch_size, NOISE)),
        lambda: package_epoch(task, batch_size),
        rounds=task.rounds,
        sane=(0.4, 2.5),
        warm=name == "cifar",
    )
    assert noisy[0].losses != package_epoch(task, batch_size).losses
    assert_falls(noisy[0])
    turns.tell_ratio(result, "a clean epoch", "")


def test_bf16_step(turns: Turns, tasks: dict[str, Task]) -> None:
    """Forward and backward of the CIFAR-10 student for 16 images: where bf16 is slow, a whole batch takes too long."""
    task = tasks["cifar"]
    model = copy.deepcopy(task.student).to(memory_format=torch.channels_last)
    images, targets = task.split.images[:16].to(memory_format=torch.channels_last), task.table[:16]
    losses = {}

    def run(precision: str) -> None:
        with precision_context(precision, torch.device("cpu")):
            logits = model(images)
        loss = logit_regression(logits, targets)
        loss.backward()
        losses[precision] = float(loss.detach())

    result = turns.measure(lambda: run("bf16"), lambda: run("fp32"), rounds=3)
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.1)
    turns.tell_ratio(result, "fp32", "")


def test_memory_order(turns: Turns, tasks: dict[str, Task]) -> None:
    """Both without the package: what channels-last memory, which `fit` chooses, is worth to a convolutional student."""
    task, table = tasks["cifar"], tasks["cifar"].table
    contiguous: list[Steps] = []
    result = turns.measure(
        lambda: contiguous.append(bare_epoch(task, table, 128, torch.contiguous_format)),
        lambda: bare_epoch(task, table, 128, torch.channels_last),
        rounds=task.rounds,
        warm=True,
    )
    assert_falls(contiguous[0])
    turns.tell_ratio(result, "channels-last", "contiguous memory")


@contextmanager
def clocked(spent: dict[str, float], part: str) -> Iterator[None]:
    """Adds the seconds of the block to its part."""
    start = time.perf_counter()
    yield
    spent[part] = spent.get(part, 0.0) + time.perf_counter() - start


@pytest.mark.parametrize(("name", "batch_size"), CASES)
def test_parts_of_a_step(turns: Turns, tasks: dict[str, Task], name: str, batch_size: int) -> None:
    """Where the time of a noisy step goes. The parts are those of `fit`, called one by one."""
    task, spent = tasks[name], {}
    objective = distil(task.store, noise=NOISE)
    model = copy.deepcopy(task.student).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=task.lr, fused=True)
    model.train()
    losses = []

    def epoch() -> None:
        for step, rows in enumerate(torch.arange(len(task.split)).split(batch_size)):
            with clocked(spent, "batch"):
                which = torch.zeros(len(rows), dtype=torch.int64)
                images = task.split.images_at(rows, ("clean",), which).to(memory_format=torch.channels_last)
                labels = task.split.labels_at(rows)
                batch = Batch(images, labels, rows, ("clean",), which, step, 0, len(task.split))
            with clocked(spent, "forward"):
                logits = model(images)
            with clocked(spent, "targets, noise and loss"):
                loss, _ = objective(logits, batch)
            with clocked(spent, "backward"):
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
            with clocked(spent, "optimiser"):
                optimizer.step()
            losses.append(float(loss.detach()))

    turns.benchmark.pedantic(epoch, rounds=3, iterations=1, warmup_rounds=0)
    assert losses[-1] < losses[0]
    shares = {part: 100 * seconds / sum(spent.values()) for part, seconds in spent.items()}
    turns.tell(", ".join(f"{part} {share:.1f} %" for part, share in shares.items()), **shares)
