"""Processes that work for this one: started afresh, deaf to Ctrl-C, gone when their parent is."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from types import FrameType
from typing import NoReturn

from noisyteacher.process import tune_memory


def processes(jobs: int, *, unwinding: bool = False) -> ProcessPoolExecutor:
    """An executor of so many processes on this machine. They are started afresh (no fork: torch has threads).

    With `unwinding` SIGTERM is a SystemExit in a worker, so that what it does can be saved; its function is then to
    leave by `leave_now`, as the executor would give it the next task. Else it ends the worker at once.
    """
    return ProcessPoolExecutor(
        jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_begin, initargs=(os.getpid(), unwinding)
    )


def leave_now() -> NoReturn:
    """End this process as SIGTERM does."""
    os._exit(128 + signal.SIGTERM)


def end(executor: ProcessPoolExecutor, patience_s: float = 0.0) -> None:
    """End an executor's processes: by SIGTERM, and those that are still there after so many seconds by SIGKILL."""
    running = list((getattr(executor, "_processes", None) or {}).values())
    executor.shutdown(wait=False, cancel_futures=True)
    for process in running:
        process.terminate()
    until = time.monotonic() + patience_s
    for process in running if patience_s else ():
        process.join(max(0.0, until - time.monotonic()))
        if process.is_alive():
            process.kill()


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def leave_with_parent(parent: int) -> None:
    """Ends this process soon after its parent has: a worker must not work on for one that was killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.25)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _begin(parent: int, unwinding: bool) -> None:
    """In a new worker: Ctrl-C is the parent's to handle, and the parent's end is ours."""
    tune_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _unwind if unwinding else signal.SIG_DFL)
    leave_with_parent(parent)


def _unwind(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
