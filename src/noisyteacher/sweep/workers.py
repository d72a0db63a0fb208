"""Who trains a sweep's cells: this process, several on this machine, or a cluster, by `concurrent.futures` executors.

A cell is a condition with a seed, trained in a child run of its own.
"""

from __future__ import annotations

import json
import os
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from time import monotonic

import torch

from noisyteacher.config import Values, build_config, describe
from noisyteacher.data import Splits
from noisyteacher.errors import DataWarning, NoisyTeacherError, UsageError
from noisyteacher.io.files import read_bytes
from noisyteacher.noise import Noise
from noisyteacher.pipeline import (
    Experiment,
    TrainingSpec,
    load_config_data,
    resolve_auto,
    student_spec,
    train_run,
    train_runs,
)
from noisyteacher.process import cores, end, leave_now, processes
from noisyteacher.runs import Run
from noisyteacher.store import LogitStore
from noisyteacher.sweep.spec import LOSS_SETTINGS, ConditionSpec, fingerprint

PATIENCE_S = 10.0
"""How long an interrupted sweep waits for its workers to save their checkpoints."""
RETRIES = 3
"""How often a cell is submitted again after its worker has died."""
MakeExecutor = Callable[[], Executor]
_TORCH = threading.Lock()
"""torch has one generator per process: cells in several threads of a process are trained one after the other."""


@dataclass(frozen=True)
class Cell:
    """The training of a cell, as values that travel to another process or machine."""

    folder: str
    """The sweep's run folder, on a file system that all workers share."""
    run: str
    """The child run's name."""
    condition: str
    kind: str
    seed: int
    config: Values
    stores: Mapping[str, str]
    """Folder of the teacher's logits by role, relative to the sweep's."""
    threads: int | None

    @property
    def path(self) -> Path:
        """The child run's folder."""
        return Path(self.folder) / self.run

    @property
    def done(self) -> bool:
        """Whether it is trained."""
        return self.path.is_dir() and Run(self.path).state == "done"

    @property
    def progress(self) -> float:
        """The share (0..1) of its epochs that its metrics.jsonl has."""
        file = self.path / "metrics.jsonl"
        if not file.exists():
            return 0.0
        return min(1.0, len(read_bytes(file).splitlines()) / int(self.config["student"]["epochs"]))


ProgressCallback = Callable[[Sequence[Cell], Mapping[str, str]], None]
"""Called with the cells that wait or are being trained, and the failures so far."""


def run_name(condition: ConditionSpec, seed: int) -> str:
    """The name of a cell's child run."""
    return f"{condition.name}-seed{seed}"


def cell_of(condition: ConditionSpec, seed: int, run: Run, stores: Mapping[str, str], threads: int | None) -> Cell:
    """The cell of a condition and a seed in the sweep's run."""
    name, config = run_name(condition, seed), describe(condition.config)
    return Cell(str(run.path.absolute()), name, condition.name, condition.kind, seed, config, dict(stores), threads)


def local(jobs: int) -> MakeExecutor:
    """A function that makes an executor of so many processes on this machine."""
    return partial(processes, jobs, unwinding=True)


def threads_per_job(jobs: int) -> int:
    """The threads of each of so many processes on this machine."""
    return max(1, cores() // jobs)


@contextmanager
def cluster(address: str) -> Iterator[MakeExecutor]:
    """A function that makes executors of the dask scheduler at this address.

    Raises UsageError without the extra `cluster`, NoisyTeacherError when nothing answers there.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise UsageError("--scheduler needs dask: pip install 'noisyteacher[cluster]'") from error
    try:
        client = Client(address, timeout="10s")
    except (OSError, TimeoutError, ValueError) as error:
        raise NoisyTeacherError(f"{address}: no dask scheduler answers there: {error}") from error
    try:
        yield lambda: client.get_executor(pure=False, retries=RETRIES)
    finally:
        client.close()


def train_all(
    cells: Sequence[Cell], make_executor: MakeExecutor | None, on_progress: ProgressCallback, stack: int = 1
) -> dict[str, str]:
    """Train every cell; returns the error, by run name, of those that failed.

    make_executor: None trains them in this process, up to `stack` at once. Where a worker dies, its cells are
    submitted again, each RETRIES times at most; a cell that was being trained at two deaths is then trained alone, so
    that it cannot take others with it. `on_progress` is called about every second, less often if it takes long.
    """
    failures: dict[str, str] = {}
    waiting = list(cells)
    if make_executor is None:
        reported = monotonic()

        def report(step: int, steps: int) -> None:
            nonlocal reported
            if monotonic() >= reported + 1.0:
                on_progress(waiting, failures)
                reported = monotonic()

        for group in stacks(cells, stack):
            on_progress(waiting, failures)
            failures |= train_cells(group, report)
            waiting = [cell for cell in waiting if cell not in group]
    deaths: Counter[str] = Counter()
    while make_executor is not None and waiting:
        batch = [cell for cell in waiting if deaths[cell.run] <= 1] or waiting[:1]
        later = [cell for cell in waiting if cell not in batch]
        waiting = _run_batch(batch, make_executor, on_progress, failures, deaths) + later
    on_progress([], failures)
    return failures


def _run_batch(
    cells: Sequence[Cell],
    make_executor: MakeExecutor,
    on_progress: ProgressCallback,
    failures: dict[str, str],
    deaths: Counter[str],
) -> list[Cell]:
    """Submit the cells to a new executor; returns those whose worker died and that may be tried again."""
    executor = make_executor()
    work = train_in_worker if isinstance(executor, ProcessPoolExecutor) else train_cell
    waiting: dict[Future[str | None], Cell] = {}
    again: list[Cell] = []
    pause = 1.0
    try:
        for cell in cells:
            waiting[executor.submit(work, cell)] = cell
        while waiting:
            for future in wait(waiting, timeout=pause).done:
                cell = waiting.pop(future)
                try:
                    error = future.result()
                except BrokenExecutor:
                    deaths[cell.run] += cell.path.is_dir() and not cell.done  # one that had not begun is not to blame
                    error = f"its process died {deaths[cell.run]} times: is there enough memory? fewer --jobs need less"
                    if cell.done or deaths[cell.run] <= RETRIES:
                        again += [] if cell.done else [cell]
                        continue
                except Exception as failure:  # how a cluster reports a worker that is gone for good
                    error = f"{type(failure).__name__}: {failure}"
                if error is not None:
                    failures[cell.run] = error
            before = monotonic()
            on_progress(list(waiting.values()), failures)
            pause = max(1.0, 20 * (monotonic() - before))
    except BaseException:
        for future in waiting:
            future.cancel()
        if isinstance(executor, ProcessPoolExecutor):  # its workers save a checkpoint
            end(executor, PATIENCE_S)
        else:
            executor.shutdown(wait=False)
        raise
    executor.shutdown(wait=True)
    return again


def train_cell(cell: Cell) -> str | None:
    """Train the cell unless it is done. Returns None, or why it failed (also in the cell's error.txt)."""
    return train_cells([cell]).get(cell.run)


def train_in_worker(cell: Cell) -> str | None:
    """`train_cell` in a process of `process.processes`: on SIGTERM it saves a checkpoint and exits."""
    try:
        return train_cell(cell)
    except SystemExit:
        leave_now()


def train_cells(cells: Sequence[Cell], progress: Callable[[int, int], None] | None = None) -> dict[str, str]:
    """Train cells, several in common steps, unless they are done; returns the error, by run name, of those that failed.

    A cell that another process trains is waited for. A defect in one cell does not end the sweep.
    """
    errors: dict[str, Exception] = {}
    trainings: dict[str, TrainingSpec] = {}
    with _TORCH:
        for cell in cells:
            try:
                trainings[cell.run] = _training(cell)
            except Exception as error:
                errors[cell.run] = error
        try:
            if len(trainings) == 1:
                train_run(*trainings.values())
            elif trainings:
                outcomes = zip(trainings, train_runs(list(trainings.values()), progress), strict=True)
                errors |= {run: outcome for run, outcome in outcomes if isinstance(outcome, Exception)}
        except Exception as error:
            errors |= dict.fromkeys(trainings, error)
    for cell in cells:
        failure = errors.get(cell.run)
        if failure is not None and not isinstance(failure, NoisyTeacherError) and cell.path.is_dir():
            Run(cell.path).write_error(_reason(failure))  # errors of this package are written where they are raised
    return {run: _reason(error) for run, error in errors.items()}


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def stacks(cells: Sequence[Cell], most: int) -> list[list[Cell]]:
    """The cells in groups of up to `most` that differ only in seed, noise and loss."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        config = {name: value for name, value in cell.config.items() if name != "noise"}
        config["student"] = {name: value for name, value in config["student"].items() if name not in LOSS_SETTINGS}
        key = cell.run if most == 1 else fingerprint([config, dict(cell.stores), cell.threads])
        groups.setdefault(key, []).append(cell)
    return [group[first : first + most] for group in groups.values() for first in range(0, len(group), most)]


def _training(cell: Cell) -> TrainingSpec:
    """The cell's training, with the data and logits that cells of this process share."""
    if cell.threads is not None:
        torch.set_num_threads(cell.threads)
    config = build_config(cell.config)
    data = _data(json.dumps(cell.config["data"], sort_keys=True))
    config = resolve_auto(config, data)
    logits = {role: _store(os.path.join(cell.folder, store)) for role, store in cell.stores.items()}
    noise = Noise(**cell.config["noise"]) if cell.kind == "noisy" else None
    experiment = Experiment(
        config=config, data=data, teacher=config.teacher.name, student=config.student.name, run=Run(cell.folder)
    )
    return student_spec(experiment, cell.run, cell.kind, noise, cell.seed, logits, cell.run)


@lru_cache(maxsize=2)
def _data(settings: str) -> Splits:
    """The data of settings in JSON."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # shown when the sweep was started
        return load_config_data(build_config({"data": json.loads(settings)}))


@lru_cache(maxsize=8)
def _store(path: str) -> LogitStore:
    return LogitStore.open(path)
