"""Who trains a sweep's cells: this process, several on this machine, or a cluster, by `concurrent.futures` executors.

A cell is a condition with a seed, trained in a child run of its own.
"""

from __future__ import annotations

import json
import math
import os
import threading
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from time import monotonic

import torch
from torch import nn

from noisyteacher.config import Values, build_config, describe
from noisyteacher.data import Splits
from noisyteacher.errors import DataWarning, NoisyTeacherError, UsageError
from noisyteacher.io.files import read_bytes
from noisyteacher.models import SHRINK, load_model
from noisyteacher.noise import Noise
from noisyteacher.pipeline.experiment import Experiment, StudentTask, TrainingSpec, student_spec, train_run, train_runs
from noisyteacher.pipeline.resolve import load_config_data, resolve_auto
from noisyteacher.pipeline.results import run_name
from noisyteacher.process import WorkerTerminated, end, exit_terminated, worker_pool
from noisyteacher.runs import METRICS, WEIGHTS, Run
from noisyteacher.store import LogitStore
from noisyteacher.sweep.spec import LOSS_SETTINGS, ConditionSpec, fingerprint

PATIENCE_S = 10.0
"""How long an interrupted sweep waits for its workers to save their checkpoints."""
TEACHER = "teacher"
"""Its role among the folders of a cell."""
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
    name: str
    """The child run's name."""
    kind: str
    """That of its condition."""
    seed: int
    config: Values
    stores: Mapping[str, str]
    """Folder of the teacher's logits by role, relative to the sweep's; `teacher` is the run of the teacher itself."""
    threads: int | None

    @property
    def run(self) -> Run:
        """The child run, whose folder may not exist yet."""
        return Run(Path(self.folder) / self.name)

    @property
    def done(self) -> bool:
        """Whether it is trained."""
        return self.run.path.is_dir() and self.run.state == "done"

    @property
    def share_trained(self) -> float:
        """The share (0..1) of its epochs, or of its steps, that are recorded in the run folder."""
        file, student = self.run.path / METRICS, self.config["student"]
        lines = read_bytes(file).splitlines() if file.exists() else []
        if not lines:
            return 0.0
        if student.get("steps") is None:
            return min(1.0, len(lines) / int(student["epochs"]))
        return min(1.0, float(json.loads(lines[-1])["step"]) / int(student["steps"]))


OnProgress = Callable[[Sequence[Cell], float, Mapping[str, str]], None]
"""Called with the cells that are not finished, the sum of the shares (0..1) of them that are trained, and failures."""


def cell_of(condition: ConditionSpec, seed: int, run: Run, stores: Mapping[str, str], threads: int | None) -> Cell:
    """The cell of a condition and a seed in the sweep's run."""
    folder, config = str(run.path.absolute()), describe(condition.config)
    return Cell(folder, run_name(condition.name, seed), condition.kind, seed, config, dict(stores), threads)


def local(jobs: int) -> MakeExecutor:
    """A function that makes an executor of this many processes on this machine."""
    return partial(worker_pool, jobs, unwinding=True)


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
    except (OSError, TimeoutError, TypeError, ValueError) as error:
        hint = "; tls:// is not supported, use tcp:// in a trusted network" if address.startswith("tls") else ""
        raise NoisyTeacherError(f"{address}: no dask scheduler answers there: {error}{hint}") from error
    try:
        yield lambda: client.get_executor(pure=False, retries=RETRIES)
    finally:
        client.close()


def train_all(
    cells: Sequence[Cell], make_executor: MakeExecutor | None, on_progress: OnProgress, stack: int = 1
) -> dict[str, str]:
    """Train every cell; returns the error, by the cell's name, of those that failed.

    make_executor: None trains them in this process, up to `stack` in common steps. `on_progress` is called about every
    second, less often if it takes long. Where a process of a local pool dies, its cells are submitted again, each
    RETRIES times at most; a cell that was being trained at two deaths is then trained alone, so that it cannot take
    others with it. Other executors see to their dead workers themselves.
    """
    unfinished = {cell.name: cell for cell in cells}
    failures: dict[str, str] = {}
    last_report = -math.inf

    def report(share: float | None = None) -> None:
        nonlocal last_report
        if (begin := monotonic()) >= last_report:
            waiting = list(unfinished.values())
            on_progress(waiting, sum(cell.share_trained for cell in waiting) if share is None else share, failures)
            last_report = monotonic() + max(1.0, 20 * (monotonic() - begin))

    def report_step(size: int, step: int, steps: int) -> None:
        report(size * step / steps)

    def finish(cell: Cell, error: str | None) -> None:
        del unfinished[cell.name]
        if error is not None:
            failures[cell.name] = error
            _record_failure(cell.run, error)

    if make_executor is None:
        for group in stacks(cells, stack):
            report(0.0)
            errors = train_cells(group, partial(report_step, len(group)))
            for cell in group:
                finish(cell, errors.get(cell.name))
    deaths: Counter[str] = Counter()
    while make_executor is not None and unfinished:
        cells = list(unfinished.values())
        batch = [cell for cell in cells if deaths[cell.name] <= 1] or cells[:1]
        _train_batch(batch, make_executor, deaths, finish, report)
    on_progress([], 0.0, failures)
    return failures


def _train_batch(
    cells: Sequence[Cell],
    make_executor: MakeExecutor,
    deaths: Counter[str],
    finish: Callable[[Cell, str | None], None],
    report: Callable[[], None],
) -> None:
    """Train the cells in a new executor, until all are finished or a process of a local pool has died.

    `deaths` counts how often a process died while a cell was with a pool, which has no more cells than processes.
    """
    executor = make_executor()
    local_pool = executor if isinstance(executor, ProcessPoolExecutor) else None
    limit = len(cells) if local_pool is None else getattr(local_pool, "_max_workers", 1)
    return_when = ALL_COMPLETED if local_pool is None else FIRST_COMPLETED  # of thousands, many are done in a second
    queue = deque(cells)
    running: dict[Future[str | None], Cell] = {}
    try:
        while queue or running:
            while queue and len(running) < limit:
                try:
                    future = executor.submit(train_cell, queue[0])
                except BrokenExecutor:
                    queue.clear()
                    break
                running[future] = queue.popleft()
            for future in wait(running, timeout=1.0, return_when=return_when).done:
                cell = running.pop(future)
                try:
                    finish(cell, future.result())
                except BrokenExecutor:
                    queue.clear()  # it takes no more
                    deaths[cell.name] += 1
                    if cell.done:
                        finish(cell, None)
                    elif deaths[cell.name] > RETRIES:
                        finish(
                            cell, f"its process died {deaths[cell.name]} times: is there enough memory? Use fewer jobs"
                        )
                except CancelledError as error:
                    raise NoisyTeacherError(
                        "the scheduler is gone: start it again, and continue the sweep with --resume"
                    ) from error
                except Exception as error:  # how a cluster reports a worker that is gone for good
                    finish(cell, _reason(error))
            report()
    except BaseException:
        if local_pool is not None:
            end(local_pool, PATIENCE_S)  # its workers save a checkpoint
        else:
            for future in running:
                future.cancel()
            executor.shutdown(wait=False)
        raise
    executor.shutdown(wait=True)


def train_cell(cell: Cell) -> str | None:
    """Train the cell in this worker unless it is done: None, or why it failed.

    A worker of a local pool that receives SIGTERM saves a checkpoint and exits.
    """
    try:
        return train_cells([cell]).get(cell.name)
    except WorkerTerminated:
        exit_terminated()


def train_cells(cells: Sequence[Cell], on_step: Callable[[int, int], None] | None = None) -> dict[str, str]:
    """Train cells, several in common steps, unless they are done; returns the error, by name, of those that failed.

    A cell that another process trains is waited for. A defect in one cell does not end the sweep.
    """
    errors: dict[str, Exception] = {}
    trainings: dict[str, TrainingSpec] = {}
    with _TORCH:
        for cell in cells:
            try:
                trainings[cell.name] = _training(cell)
            except Exception as error:
                errors[cell.name] = error
        try:
            specs = list(trainings.values())
            if len(specs) == 1:
                train_run(specs[0], on_step)
            elif specs:
                outcomes = zip(trainings, train_runs(specs, on_step), strict=True)
                errors |= {name: outcome for name, outcome in outcomes if isinstance(outcome, Exception)}
        except Exception as error:
            errors |= dict.fromkeys(trainings, error)
    return {name: _reason(error) for name, error in errors.items()}


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _record_failure(run: Run, reason: str) -> None:
    """Write the error.txt of a failed cell that has a run folder, unless another process works on it or it is done."""
    with suppress(NoisyTeacherError), run.lock(wait=False):
        if run.state in ("unfinished", "failed"):
            run.write_error(reason)


def stacks(cells: Sequence[Cell], most: int) -> list[list[Cell]]:
    """The cells in groups of up to `most` that differ only in seed, noise and loss."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        config = {name: value for name, value in cell.config.items() if name != "noise"}
        config["student"] = {name: value for name, value in config["student"].items() if name not in LOSS_SETTINGS}
        key = cell.name if most == 1 else fingerprint([config, dict(cell.stores), cell.threads])
        groups.setdefault(key, []).append(cell)
    return [group[first : first + most] for group in groups.values() for first in range(0, len(group), most)]


def _training(cell: Cell) -> TrainingSpec:
    """The cell's training, with the data and logits that cells of this process share."""
    if cell.threads is not None:
        torch.set_num_threads(cell.threads)
    config = build_config(cell.config)
    data = _data(json.dumps(cell.config["data"], sort_keys=True))
    config = resolve_auto(config, data)
    folders = {role: os.path.join(cell.folder, store) for role, store in cell.stores.items()}
    logits: dict[str, LogitStore | nn.Module] = {
        role: _store(folder) for role, folder in folders.items() if role != TEACHER
    }
    if config.student.name.startswith(SHRINK):
        logits[TEACHER] = _teacher(folders[TEACHER])
    noise = Noise(**cell.config["noise"]) if cell.kind == "noisy" else None
    experiment = Experiment(
        config=config, data=data, teacher=config.teacher.name, student=config.student.name, run=Run(cell.folder)
    )
    return student_spec(StudentTask(experiment, cell.name, cell.kind, noise, cell.seed, logits, cell.name))


@lru_cache(maxsize=2)
def _data(settings: str) -> Splits:
    """The data of settings in JSON."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # shown when the sweep was started
        return load_config_data(build_config({"data": json.loads(settings)}))


@lru_cache(maxsize=2)
def _teacher(folder: str) -> nn.Module:
    """The trained teacher; what its file may import, the sweep has imported."""
    return load_model(os.path.join(folder, WEIGHTS), allow_import=True)


_store = lru_cache(maxsize=8)(LogitStore.open)
