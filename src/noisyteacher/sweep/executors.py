"""Who trains the cells: this process, several on this machine, or a cluster. All are `concurrent.futures` executors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any

from noisyteacher.errors import NoisyTeacherError, UsageError
from noisyteacher.runs import Run
from noisyteacher.sweep.cells import Cell, in_worker, stacks, train_cell, train_stack
from noisyteacher.workers import cores, end, processes

PATIENCE_S = 10.0
"""How long an interrupted sweep waits for its workers to save what they are at."""
RETRIES = 3
"""How often a cell is given to another worker after its own has died."""
Make = Callable[[], Executor]


def local(jobs: int) -> Make:
    """Makes an executor of so many processes on this machine. They are started afresh (no fork: torch has threads)."""
    return partial(processes, jobs, unwinding=True)


def share_of_threads(jobs: int) -> int:
    """The threads each of so many processes gets of the cores this process may use."""
    return max(1, cores() // jobs)


@contextmanager
def cluster(address: str) -> Iterator[Make]:
    """Makes executors of the dask scheduler at this address; its workers must see the run folder and the data.

    Raises UsageError without the extra `cluster`, NoisyTeacherError when nobody answers there.
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
    cells: Sequence[Cell],
    make: Make | None,
    tell: Callable[[Sequence[Cell], dict[str, str]], None],
    stack: int = 1,
) -> dict[str, str]:
    """Train every cell; returns why, by run name, for those that failed.

    `make` makes an executor (None: this process trains them one after the other, or up to `stack` at once). Where a
    worker dies, its cells are given out again, each RETRIES times at most; one that was there twice when a worker died
    is tried alone, so that it cannot take others with it. `tell(waiting cells, failures)` is called about every second,
    less often where there are so many cells that it takes time.
    """
    failures: dict[str, str] = {}
    if make is None:
        _here(cells, tell, failures, stack)
        tell([], failures)
        return failures
    left, tries = list(cells), dict.fromkeys((cell.run for cell in cells), 0)
    suspects: list[Cell] = []
    while left:
        again = _round(left, make, tell, failures, tries)
        suspects += [cell for cell in again if tries[cell.run] > 1]
        left = [cell for cell in again if tries[cell.run] <= 1]
    for cell in suspects:
        while _round([cell], make, tell, failures, tries):
            pass
    tell([], failures)
    return failures


def _here(
    cells: Sequence[Cell],
    tell: Callable[[Sequence[Cell], dict[str, str]], None],
    failures: dict[str, str],
    most: int,
) -> None:
    """Train the cells in this process."""
    waiting = {cell.run: cell for cell in cells}
    told = monotonic()

    def beat(step: int, steps: int) -> None:
        nonlocal told
        if monotonic() >= told + 1.0:
            tell(list(waiting.values()), failures)
            told = monotonic()

    for some in stacks(cells, most):
        tell(list(waiting.values()), failures)
        if len(some) == 1:
            error = train_cell(some[0])
            failures.update({} if error is None else {some[0].run: error})
        else:
            failures.update(train_stack(some, beat))
        for cell in some:
            del waiting[cell.run]


def _round(
    cells: list[Cell],
    make: Make,
    tell: Callable[[Sequence[Cell], dict[str, str]], None],
    failures: dict[str, str],
    tries: dict[str, int],
) -> list[Cell]:
    """Give the cells to a new executor; returns those whose worker died and that may be tried again."""
    again: list[Cell] = []
    executor = make()
    waiting: dict[Future[Any], Cell] = {}
    ended: SimpleQueue[Future[Any]] = SimpleQueue()
    pause, told = 1.0, monotonic()
    work = in_worker if isinstance(executor, ProcessPoolExecutor) else train_cell
    try:
        for cell in cells:
            future = executor.submit(work, cell)
            waiting[future] = cell
            future.add_done_callback(ended.put)
        while waiting:
            with suppress(Empty):
                future = ended.get(timeout=max(0.0, told + pause - monotonic()))
                again += _settle(waiting.pop(future), future, failures, tries)
            if (now := monotonic()) >= told + pause:
                tell(list(waiting.values()), failures)
                told = monotonic()
                pause = max(1.0, 20 * (told - now))
    except BaseException:
        _stop(executor, waiting)
        raise
    executor.shutdown(wait=True)
    return again


def _settle(cell: Cell, future: Future[Any], failures: dict[str, str], tries: dict[str, int]) -> list[Cell]:
    """Take down how a cell ended; returns it if its worker died and it may be tried again."""
    try:
        error = future.result()
    except BrokenExecutor:
        if cell.path.is_dir() and Run(cell.path).state == "done":
            return []
        tries[cell.run] += cell.path.is_dir()  # one that had not begun is not to blame
        if tries[cell.run] <= RETRIES:
            return [cell]
        error = f"its process died {tries[cell.run]} times: is there enough memory? fewer --jobs need less"
    except Exception as lost:  # what a cluster makes of a worker that is gone for good
        error = f"{type(lost).__name__}: {lost}"
    if error is not None:
        failures[cell.run] = str(error)
    return []


def _stop(executor: Executor, waiting: Iterable[Future[Any]]) -> None:
    """Leave: workers on this machine save what they are at; what others have not saved is trained again later."""
    for future in waiting:
        future.cancel()
    if isinstance(executor, ProcessPoolExecutor):
        end(executor, PATIENCE_S)
    else:
        executor.shutdown(wait=False)
