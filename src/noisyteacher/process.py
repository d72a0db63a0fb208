"""Worker processes, and the memory settings and cores of this process. Imported before torch, which it does without."""

from __future__ import annotations

import concurrent.futures
import os
import pickle
import re
import signal
import threading
import time
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any, NoReturn

from noisyteacher.errors import NoisyTeacherError, UsageError
from noisyteacher.progress import Watch
from noisyteacher.text import plural

VARIABLE = "NOISYTEACHER_ALLOCATOR"
"""Set to `system` in the environment, it turns `tune_memory` off."""
LARGE_PAGES = "THP_MEM_ALLOC_ENABLE"
"""torch's switch, read at its first allocation: blocks from 2 MB on are advised to be large pages."""
MALLOC_OPTIONS = ((-4, 0), (-1, 2**31 - 1), (-2, 2**20))
"""mallopt(3): M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD."""


def tune_memory() -> bool:
    """Keep freed memory in this process, in large pages; returns whether that was done. For programs, not libraries.

    glibc returns large blocks to the system at once and gets them again page by page, up to a third of a training step.
    Nothing changes with allocator settings in the environment (VARIABLE, MALLOC_..., LD_PRELOAD) or without glibc.
    """
    import ctypes
    import platform

    if os.environ.get(VARIABLE) == "system":
        return False
    os.environ.setdefault(LARGE_PAGES, "1")
    configured = any(name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD") for name in os.environ)
    if configured or platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    done = [library.mallopt(*option) for option in MALLOC_OPTIONS]
    return all(done)


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class WorkerTerminated(SystemExit):
    """SIGTERM in a worker of `worker_pool(unwinding=True)`."""


def worker_pool(jobs: int, *, unwinding: bool = False) -> concurrent.futures.ProcessPoolExecutor:
    """An executor of `jobs` spawned processes, which ignore SIGINT and exit with their parent.

    With `unwinding`, SIGTERM raises WorkerTerminated in a worker, so that its function can save its work; the function
    must then call `exit_terminated`, or the executor gives it the next task. Without, SIGTERM ends the worker at once.
    """
    import multiprocessing

    spawn = multiprocessing.get_context("spawn")  # torch has threads: no fork
    return concurrent.futures.ProcessPoolExecutor(
        jobs, mp_context=spawn, initializer=_begin, initargs=(os.getpid(), unwinding)
    )


def _begin(parent: int, unwinding: bool) -> None:
    tune_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _unwind if unwinding else signal.SIG_DFL)
    threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()


def _exit_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.25)
    os._exit(1)


def _unwind(number: int, frame: FrameType | None) -> NoReturn:
    raise WorkerTerminated(128 + number)


def exit_terminated() -> NoReturn:
    """End this process at once, with the exit code of SIGTERM."""
    os._exit(128 + signal.SIGTERM)


def end(executor: concurrent.futures.ProcessPoolExecutor, patience_s: float = 0.0) -> None:
    """Send SIGTERM to an executor's processes, and SIGKILL to those that still run after `patience_s` seconds."""
    workers = list((getattr(executor, "_processes", None) or {}).values())
    executor.shutdown(wait=False, cancel_futures=True)
    for process in workers:
        process.terminate()
    deadline = time.monotonic() + patience_s
    for process in workers if patience_s else ():
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()


def run_in_workers(
    train: Callable[..., Any],
    tasks: Iterable[tuple[Any, ...]],
    jobs: int,
    threads: int,
    title: str,
    watch: Watch | None,
) -> list[Any]:
    """What `train(*task)` returns for each task, in their order, from `jobs` processes of this many threads each.

    Raises NoisyTeacherError when a process dies, UsageError for a task that cannot be sent to one.
    """
    pool = worker_pool(jobs)
    try:
        futures = [pool.submit(_with_threads, threads, train, task) for task in tasks]
        for done, future in enumerate(concurrent.futures.as_completed(futures), 1):
            future.result()
            if watch is not None:
                watch(title, done, len(futures), f"{done} of {plural(len(futures), 'training')}")
        return [future.result() for future in futures]
    except concurrent.futures.BrokenExecutor as error:
        raise NoisyTeacherError(
            "a process that trained students died: use fewer jobs if memory is short. A script must start them "
            "under `if __name__ == '__main__':`, with networks of its own in a module that can be imported"
        ) from error
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        if not re.search("pickle|local object", str(error)):
            raise
        raise UsageError(
            f"jobs={jobs}: a network or an option cannot be sent to another process ({error}): define its class or "
            "function in a module, outside other functions, or say jobs=1"
        ) from error
    except RuntimeError as error:
        if "shared memory" not in str(error) and "/torch_" not in str(error):
            raise
        raise NoisyTeacherError(
            f"/dev/shm has no space for the data of {jobs} processes ({error}): use one job, or give a container more "
            "(docker run --shm-size)"
        ) from error
    finally:
        end(pool)  # an interruption must not wait for what is queued


def _with_threads(threads: int, train: Callable[..., Any], task: tuple[Any, ...]) -> Any:
    from noisyteacher.device import cpu_threads

    with cpu_threads(threads):
        return train(*task)
