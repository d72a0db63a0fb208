"""One training by several processes (torchrun): who this process is, and what the processes share.

Every process runs the same steps. Of each batch it takes its own rows through the network, computes their loss with its
rows of the whole batch's noise, and DistributedDataParallel averages the gradients, weighted by the number of rows.
The process of rank 0 validates and writes. torch is imported only where a process group may exist, so that the command
line can read its launcher's variables without it.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from noisyteacher.errors import MismatchError, NoisyTeacherError, TrainingError, UsageError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among those of the training: `rank` of `size`. Rank 0 leads, and it alone writes files."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def share(self, rows: int) -> slice:
        """The rows of a batch that this process takes: all of them if there are fewer rows than processes."""
        if rows < self.size:
            return slice(0, rows)
        return slice(rows * self.rank // self.size, rows * (self.rank + 1) // self.size)

    def weight(self, rows: int) -> float:
        """Factor on the mean loss of this process's rows that makes the average over processes the mean of all rows."""
        if rows < self.size:
            return 1.0
        share = self.share(rows)
        return float((share.stop - share.start) * self.size / rows)


def world() -> World:
    """This process in torch's process group, or alone."""
    from torch import distributed as dist

    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    return World()


@contextmanager
def process_group(device: str = "auto") -> Iterator[World]:
    """Join the group that the launcher set up: NCCL with GPUs (process LOCAL_RANK takes GPU LOCAL_RANK), else gloo.

    Without a launcher, or in a group already, nothing changes. Raises UsageError if the launcher's variables or the
    device do not make a group.
    """
    if processes() == 1 or world().size > 1:
        yield world()
        return
    import torch
    from torch import distributed as dist

    if rank() >= processes():
        raise UsageError(f"RANK={rank()} in the environment, of {processes()} processes: ranks count from 0")
    if device.startswith("cuda:"):
        raise UsageError(f"device {device!r}: with several processes each takes a GPU of its own: give cuda")
    gpus = torch.cuda.device_count() if device == "auto" or device.startswith("cuda") else 0
    local = _variable("LOCAL_RANK", 0)
    if gpus and local >= gpus:
        raise UsageError(f"process {local} of this machine has no GPU of its own: there are {gpus}")
    if gpus:
        torch.cuda.set_device(local)
    try:
        with _default_signals():
            store, number, size = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
            # torchrun keeps its store when it restarts processes: keys of the dead ones must not be found.
            store = dist.PrefixStore(f"restart-{restarts()}", store)  # type: ignore[attr-defined]
            dist.init_process_group("nccl" if gpus else "gloo", store=store, rank=number, world_size=size)
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"WORLD_SIZE is set, but the process group could not be initialised: {error}") from error
    try:
        yield world()
    finally:
        dist.destroy_process_group()


@contextmanager
def _default_signals() -> Iterator[None]:
    """Inside, SIGINT and SIGTERM end the process at once: C code that waits for other processes runs no handler."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None:  # None: not set by Python
                signal.signal(number, handler)


@contextmanager
def peer_failure_as_error() -> Iterator[None]:
    """Raise TrainingError instead of torch's error when another process has died."""
    from torch import distributed as dist

    try:
        yield
    except RuntimeError as error:
        if world().size == 1 or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise TrainingError(
            f"process {world().rank} of this training has lost another one ({str(error).splitlines()[0]:.200}); "
            "torchrun with --max-restarts N starts all of them again, and they continue from the last checkpoint"
        ) from error


def broadcast(value: T) -> T:
    """Rank 0's value on every process."""
    if world().size == 1:
        return value
    from torch import distributed as dist

    values: list[Any] = [value]
    dist.broadcast_object_list(values, src=0)
    result: T = values[0]
    return result


def on_rank_zero(work: Callable[[], T]) -> T:
    """The result of `work` on rank 0, broadcast to every process; an error of this package is raised on all of them."""
    here = world()
    if here.size == 1:
        return work()
    result: T | None = None
    error: NoisyTeacherError | None = None
    if here.leads:
        try:
            result = work()
        except NoisyTeacherError as problem:
            error = problem
    result, error = broadcast((result, error))
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


def gather_objects(value: T) -> list[T]:
    """The values of all processes, in the order of their ranks."""
    here = world()
    if here.size == 1:
        return [value]
    from torch import distributed as dist

    values: list[Any] = [None] * here.size
    dist.all_gather_object(values, value)
    return values


def check_equal(record: dict[str, Any]) -> None:
    """Raises MismatchError unless all processes have the same record."""
    records = gather_objects(record)
    for number, other in enumerate(records):
        keys = sorted(key for key in {*record, *other} if record.get(key) != other.get(key))
        if keys:
            raise MismatchError(
                f"process {world().rank} and process {number} of this training differ in {', '.join(keys)}: start all "
                "of them with the same command on the same data"
            )


def processes() -> int:
    """How many processes the launcher started for this command; 1 without a launcher."""
    return _variable("WORLD_SIZE", 1, minimum=1)


def rank() -> int:
    """The rank that the launcher gave this process, from 0."""
    return _variable("RANK", 0)


def restarts() -> int:
    """How often torchrun has restarted this command after a process of it had died."""
    return _variable("TORCHELASTIC_RESTART_COUNT", 0)


def launch_command() -> list[str]:
    """The words that start this program as it was started: its name, or torchrun with the same number of processes."""
    if processes() == 1:
        return ["noisyteacher"]
    return ["torchrun", "--nproc-per-node", str(_variable("LOCAL_WORLD_SIZE", processes())), "-m", "noisyteacher"]


def _variable(name: str, default: int, minimum: int = 0) -> int:
    text = os.environ.get(name) or str(default)
    if not (text.isascii() and text.isdigit() and int(text) >= minimum):
        raise UsageError(
            f"{name}={text!r} in the environment: launchers such as torchrun set it to a whole number of at least "
            f"{minimum}; unset it"
        )
    return int(text)
