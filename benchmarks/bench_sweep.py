"""Sixteen students of a sweep, in common steps and in two processes, against one after the other; on a GPU if there."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from synthetic import CLASSES, MNIST, synthetic_split

from conftest import Turns
from noisyteacher import Classifier, History, LogitStore, Noise, Split, build_model, distil, extract, fit, fit_many
from noisyteacher.device import resolve_precision
from noisyteacher.objectives import Objective

STUDENTS, ROWS, EPOCHS, BATCH = 16, 2048, 4, 128
"""64 steps each: with 16 a quarter of the time went to what is done once, making and copying weights."""
SEEDS = [number % 4 for number in range(STUDENTS)]
NOISES = [Noise(sigma=0.2 * (number // 4), alpha=0.5) for number in range(STUDENTS)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LogitStore:
    """The answers of a fresh LeNet to synthetic digits."""
    teacher = build_model("lenet", classes=CLASSES, input_shape=MNIST)
    return extract(teacher, digits(), tmp_path_factory.mktemp("store") / "logits", batch_size=256)


@cache
def digits() -> Split:
    """The images, once a process."""
    return synthetic_split(ROWS, MNIST)


def student(number: int) -> Classifier:
    """A student with the first weights of its seed."""
    return build_model("mlp800", classes=CLASSES, input_shape=MNIST, seed=SEEDS[number])


def objective(store: LogitStore, number: int) -> Objective:
    """Its noise: four sigmas, four seeds."""
    return distil(store, noise=NOISES[number])


def losses(history: object) -> list[float]:
    """The loss of every epoch."""
    assert isinstance(history, History), history
    return [line["train/loss"] for line in history.epochs]


def train_alone(path: Path, number: int, threads: int | None = None, precision: str = "fp32") -> list[float]:
    """The losses of a student that is trained by itself."""
    if threads is not None:
        torch.set_num_threads(threads)
    store = LogitStore.open(path)
    return losses(
        fit(
            student(number),
            digits(),
            objective(store, number),
            epochs=EPOCHS,
            batch_size=BATCH,
            seed=SEEDS[number],
            precision=precision,
        )
    )


def together(store: LogitStore) -> list[list[float]]:
    """All of them in common steps."""
    numbers = range(STUDENTS)
    histories = fit_many(
        [student(number) for number in numbers], digits(), [objective(store, number) for number in numbers],
        seeds=SEEDS, epochs=EPOCHS, batch_size=BATCH, precision="fp32",
    )  # fmt: skip
    return [losses(history) for history in histories]


@pytest.fixture
def processes() -> Iterator[Executor]:
    """Two workers."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as executor:
        yield executor


def test_students_in_common_steps(turns: Turns, store: LogitStore) -> None:
    alone, many = [], []
    result = turns.measure(
        lambda: many.append(together(store)),
        lambda: alone.append([train_alone(store.path, number) for number in range(STUDENTS)]),
        rounds=3,
        sane=(0.005, 3),
    )
    for ours, theirs in zip(many[0], alone[0], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)
        assert ours[-1] < ours[0]
    turns.tell_ratio(result, "one after the other", f"{1000 * result.work / STUDENTS:.0f} ms a student")


@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_students_in_two_processes(turns: Turns, store: LogitStore, processes: Executor, precision: str) -> None:
    """`--jobs 2`, in fp32 and in what a sweep takes by itself; one after the other always in fp32."""
    threads, many, alone = max(1, torch.get_num_threads() // 2), [], []
    resolved = resolve_precision(precision, torch.device("cpu"))  # once, as a sweep does it

    def spread() -> list[list[float]]:
        futures = [processes.submit(train_alone, store.path, number, threads, resolved) for number in range(STUDENTS)]
        return [future.result() for future in futures]

    result = turns.measure(
        lambda: many.append(spread()),
        lambda: alone.append([train_alone(store.path, number) for number in range(STUDENTS)]),
        rounds=3,
        sane=(0.1, 5),
    )
    near = 1e-3 if resolved == "fp32" else 2e-2
    assert many[0] == [pytest.approx(each, rel=near) for each in alone[0]]
    turns.tell_ratio(
        result, f"one after the other in fp32, here {resolved}", f"{1000 * result.work / STUDENTS:.0f} ms each"
    )
