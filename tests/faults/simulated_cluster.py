"""A cluster in simulated time whose workers die, stall and wake late; an executor as `sweep(executor=...)` takes it."""

from __future__ import annotations

import heapq
import random
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any

Train = Callable[[Any], object]
ALLOWED_DEATHS = 3
"""How often a task's worker may die before the cluster gives the task up, as dask's default is."""


class WorkersLostError(Exception):
    """What the future of a task holds that the cluster gave up."""


@dataclass
class Faults:
    """What happened, in counts and in simulated seconds."""

    deaths: int = 0
    died_before: int = 0
    died_during: int = 0
    died_after: int = 0
    woke_late: int = 0
    given_up: int = 0
    busy_s: float = 0.0
    useful_s: float = 0.0
    length_s: float = 0.0


@dataclass
class Cluster(Executor):
    """So many workers; a task takes about `task_s`, a worker lives about `life_s` and is replaced after `replaced_s`.

    A task whose worker dies goes to the next free one. It may have died before the task began, in the middle
    (`begin` is called, as a run folder without a result would be left), or with the task done and not yet told. A
    worker that stalls is taken for dead; it wakes later and does its task all the same.
    """

    workers: int
    begin: Train
    seed: int = 0
    task_s: float = 600.0
    life_s: float = 18_000.0
    replaced_s: float = 120.0
    stalls: float = 0.3
    faults: Faults = field(default_factory=Faults)

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self.queue: deque[tuple[Future[Any], Train, Any, int]] = deque()
        self.closed = threading.Event()
        self.changed = threading.Condition()
        self.thread: threading.Thread | None = None

    def submit(self, train: Train, task: Any, /, *_: Any, **__: Any) -> Future[Any]:  # type: ignore[override]
        future: Future[Any] = Future()
        with self.changed:
            self.queue.append((future, train, task, 0))
        if self.thread is None:
            self.thread = threading.Thread(target=self._work, daemon=True)
            self.thread.start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.closed.set()
        if wait and self.thread is not None:
            self.thread.join()

    def _work(self) -> None:
        """Every event in the order of simulated time: a worker that is free takes the next task."""
        free = [(0.0, number) for number in range(self.workers)]
        late: list[tuple[float, int, Train, Any]] = []
        number = self.workers
        while not self.closed.is_set():
            with self.changed:
                entry = self.queue.popleft() if self.queue else None
            if entry is None:
                if self.closed.wait(0.01):
                    break
                continue
            future, train, task, deaths = entry
            now, worker = heapq.heappop(free)
            while late and late[0][0] <= now:
                self._wake(heapq.heappop(late))
            length = self.task_s * self.dice.lognormvariate(-0.125, 0.5)
            death = self.dice.expovariate(1 / self.life_s)
            if death >= length:
                future.set_result(train(task))
                self.faults.useful_s += length
                self.faults.busy_s += length
                end = now + length
                self.faults.length_s = max(self.faults.length_s, end)
                heapq.heappush(free, (end, worker))
                continue
            self.faults.deaths += 1
            self.faults.busy_s += death
            self._die(train, task, share=death / length)
            if self.dice.random() < self.stalls:
                number += 1
                heapq.heappush(late, (now + death + self.dice.expovariate(1 / self.task_s), number, train, task))
            heapq.heappush(free, (now + death + self.replaced_s, worker))
            if deaths == ALLOWED_DEATHS:
                self.faults.given_up += 1
                future.set_exception(WorkersLostError(f"{deaths + 1} workers died on it"))
            else:
                with self.changed:
                    self.queue.appendleft((future, train, task, deaths + 1))
        while late:
            self._wake(heapq.heappop(late))

    def _die(self, train: Train, task: Any, share: float) -> None:
        if share < 0.05:
            self.faults.died_before += 1
        elif share < 0.95:
            self.faults.died_during += 1
            self.begin(task)
        else:
            self.faults.died_after += 1
            train(task)

    def _wake(self, late: tuple[float, int, Train, Any]) -> None:
        self.faults.woke_late += 1
        _, _, train, task = late
        train(task)
