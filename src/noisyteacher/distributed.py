"""One training by several processes (torchrun): who this process is, and what the processes share.

Every process takes its rows of each batch, with its rows of the whole batch's noise; DistributedDataParallel averages
the gradients, weighted by the number of rows. torch is imported inside functions: the command line starts without it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

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
        share = self.share(rows)
        return 1.0 if rows < self.size else (share.stop - share.start) * self.size / rows


def world() -> World:
    """This process in torch's process group, or alone."""
    from torch import distributed as dist

    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    return World()


@contextmanager
def process_group(device: str = "auto") -> Iterator[World]:
    """Join the group that the launcher set up, if any: NCCL with GPUs (process LOCAL_RANK takes that GPU), else gloo.

    Raises UsageError if the launcher's variables or the device do not make a group. For the main thread.
    """
    if processes() == 1 or world().size > 1:
        yield world()
        return
    import torch
    from torch import distributed as dist

    local_rank = _variable("LOCAL_RANK", 0)
    gpus = torch.cuda.device_count() if device == "auto" or device.startswith("cuda") else 0
    if rank() >= processes():
        raise UsageError(f"RANK={rank()} in the environment, of {processes()} processes: ranks count from 0")
    if device.startswith("cuda:"):
        raise UsageError(f"device {device!r}: with several processes each takes a GPU of its own: give cuda")
    if gpus and local_rank >= gpus:
        raise UsageError(f"process {local_rank} of this machine has no GPU of its own: there are {gpus}")
    if gpus:
        torch.cuda.set_device(local_rank)
    # C code that waits for other processes runs no handler of Python: let signals end this process at once.
    handlers = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        store, number, size = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
        # torchrun keeps its store when it restarts processes: keys of the dead ones must not be read.
        store = dist.PrefixStore(f"restart-{restarts()}", store)  # type: ignore[attr-defined]
        dist.init_process_group("nccl" if gpus else "gloo", store=store, rank=number, world_size=size)
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"WORLD_SIZE is set, but the process group could not be initialised: {error}") from error
    finally:
        for signal_number, handler in handlers.items():
            signal.signal(signal_number, handler)
    try:
        yield world()
    finally:
        dist.destroy_process_group()


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


def gather_objects(value: T) -> list[T]:
    """The values of all processes, in the order of their ranks."""
    values = [value] * world().size
    if len(values) > 1:
        from torch import distributed as dist

        dist.all_gather_object(values, value)
    return values


def broadcast(value: T) -> T:
    """Rank 0's value on every process."""
    return gather_objects(value)[0]


def on_rank_zero(work: Callable[[], T]) -> T:
    """The result of `work` on rank 0, broadcast to every process; an error of this package is raised on all of them."""
    result: T | NoisyTeacherError | None
    try:
        result = work() if world().leads else None
    except NoisyTeacherError as error:
        result = error
    result = broadcast(result)
    if isinstance(result, NoisyTeacherError):
        raise result
    return result  # type: ignore[return-value]


def check_equal(record: Mapping[str, object]) -> None:
    """Raises MismatchError unless all processes have the same record."""
    for number, other in enumerate(gather_objects(record)):
        keys = sorted(key for key in {*record, *other} if record.get(key) != other.get(key))
        if keys:
            raise MismatchError(
                f"process {world().rank} and process {number} of this training differ in {', '.join(keys)}: start all "
                "of them with the same command on the same data"
            )


def processes() -> int:
    """The number of processes that the launcher started for this command; 1 without a launcher."""
    return _variable("WORLD_SIZE", 1, minimum=1)


def rank() -> int:
    """The rank that the launcher gave this process, from 0."""
    return _variable("RANK", 0)


def restarts() -> int:
    """How often torchrun has restarted this command because a process had died."""
    return _variable("TORCHELASTIC_RESTART_COUNT", 0)


def launch_command() -> list[str]:
    """The words that start this program as it was started: its name, or torchrun with the same number of processes."""
    if processes() == 1:
        return ["noisyteacher"]
    return ["torchrun", "--nproc-per-node", str(_variable("LOCAL_WORLD_SIZE", processes())), "-m", "noisyteacher"]


def _variable(name: str, default: int, minimum: int = 0) -> int:
    text = os.environ.get(name) or str(default)
    if not (text.isascii() and text.isdigit() and int(text) >= minimum):
        raise UsageError(f"{name}={text!r} in the environment: a launcher sets a whole number >= {minimum}; unset it")
    return int(text)
