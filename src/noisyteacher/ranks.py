"""Several processes that are one training: who is who, what they tell each other, and batch norm over all of them.

The processes of a group do the same steps of the same run. Of every batch each takes its own share of the rows through
the network; the logits are then gathered, so that every process knows the loss of the whole batch and no objective, no
noise and no random stream has to know of the group. Without a group (`torch.distributed` not initialised) everything
here is about one process that leads and is alone.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from noisyteacher.errors import MismatchError, NoisyTeacherError, TrainingError, UsageError
from noisyteacher.launch import local_rank, processes, rank, restarts

PATIENCE = timedelta(minutes=10)
"""How long the processes of a group wait for each other at the start."""
T = TypeVar("T")
Norm = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True)
class Place:
    """This process among those of its group: `rank` of `size`; the one of rank 0 leads, and alone writes files."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def share(self, rows: int) -> slice:
        """The rows of a batch that this process takes; all of them where there are fewer rows than processes."""
        if rows < self.size:
            return slice(0, rows)
        return slice(rows * self.rank // self.size, rows * (self.rank + 1) // self.size)


def place() -> Place:
    """Where this process stands in the group that torch.distributed knows, or alone."""
    if dist.is_available() and dist.is_initialized():
        return Place(dist.get_rank(), dist.get_world_size())
    return Place()


@contextmanager
def joined(device: str = "auto") -> Iterator[Place]:
    """Inside, this process belongs to the group that its launcher set up: NCCL where it trains on GPUs, else gloo.

    Process LOCAL_RANK takes GPU LOCAL_RANK. Without a launcher, or in a group already, nothing changes. Raises
    UsageError where the launcher's variables do not make a group. While the others are waited for, a signal ends
    the process at once: there is nothing to save yet.
    """
    if processes() == 1 or place().size > 1:
        yield place()
        return
    if rank() >= processes():
        raise UsageError(f"RANK={rank()} in the environment, of {processes()} processes: ranks count from 0")
    if device.startswith("cuda:"):
        raise UsageError(f"device {device!r}: in a group every process takes a GPU of its own: give cuda")
    gpus = torch.cuda.device_count() if device == "auto" or device.startswith("cuda") else 0
    local = local_rank()
    if gpus:
        if local >= gpus:
            raise UsageError(f"process {local} of this machine has no GPU of its own: there are {gpus}")
        torch.cuda.set_device(local)
    try:
        with _mortal():
            meeting = dist.rendezvous("env://", timeout=PATIENCE)  # type: ignore[attr-defined]
            store, number, size = next(meeting)
            # torchrun keeps its store when it starts the processes again: what dead ones left there is not to be found.
            store = dist.PrefixStore(f"restart-{restarts()}", store)  # type: ignore[attr-defined]
            dist.init_process_group("nccl" if gpus else "gloo", store=store, rank=number, world_size=size)
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"WORLD_SIZE is set, but no group of processes came about: {error}") from error
    try:
        yield place()
    finally:
        dist.destroy_process_group()


@contextmanager
def _mortal() -> Iterator[None]:
    """Inside, SIGINT and SIGTERM end the process as they do without Python: in C code that waits nothing else would."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {one: signal.signal(one, signal.SIG_DFL) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for one, handler in before.items():
            if handler is not None:  # None: it was set by other code than Python's
                signal.signal(one, handler)


@contextmanager
def told_when_lost() -> Iterator[None]:
    """Raises TrainingError where torch.distributed fails inside, as it does when another process has died."""
    try:
        yield
    except RuntimeError as error:
        if place().size == 1 or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise TrainingError(
            f"process {place().rank} of this training has lost another one ({str(error).splitlines()[0]:.200}); "
            "torchrun with --max-restarts N starts all of them again, and they go on from the last checkpoint"
        ) from error


def agree(value: T) -> T:
    """What the leading process holds, on every process; the others' own values are dropped. Waits for all."""
    if place().size == 1:
        return value
    held = [value]
    dist.broadcast_object_list(held, src=0)
    return held[0]


def led(make: Callable[[], T]) -> T:
    """What the leading process makes, on every process; an error of this package that it meets is raised on all."""
    here = place()
    if here.size == 1:
        return make()
    made: T | None = None
    error: NoisyTeacherError | None = None
    if here.leads:
        try:
            made = make()
        except NoisyTeacherError as met:
            error = met
    made, error = agree((made, error))
    if error is not None:
        raise error
    return made  # type: ignore[return-value]


def greatest(number: int, device: torch.device) -> int:
    """The greatest of the processes' numbers."""
    held = torch.tensor(number, device=device)
    dist.all_reduce(held, dist.ReduceOp.MAX)
    return int(held)


def check_same(record: dict[str, Any]) -> None:
    """Raises MismatchError naming the keys whose values differ between the processes of one training."""
    here = place()
    if here.size == 1:
        return
    held: list[Any] = [None] * here.size
    dist.all_gather_object(held, record)
    for number, other in enumerate(held):
        keys = sorted(key for key in {*record, *other} if record.get(key) != other.get(key))
        if keys:
            raise MismatchError(
                f"process {here.rank} and process {number} of this training differ in {', '.join(keys)}: all must be "
                "started by the same command on the same data"
            )


def gather(own: Tensor, rows: int) -> Tensor:
    """The whole batch's `[rows, K]` of every process's share `[b, K]`, the same on all; differentiable.

    The gradient of a share is multiplied by the number of processes, because DistributedDataParallel divides by it:
    what comes out is the gradient of the loss of the whole batch.
    """
    here = place()
    if here.size == 1 or rows < here.size:
        return own
    gathered: Tensor = _Gather.apply(own, rows, here)  # type: ignore[no-untyped-call]
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, rows: int, here: Place) -> Tensor:
        ctx.here, ctx.rows = here, rows
        shares = [Place(rank, here.size).share(rows) for rank in range(here.size)]
        most = max(part.stop - part.start for part in shares)
        padded = own.new_zeros(most, *own.shape[1:])
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in shares]
        dist.all_gather(parts, padded)
        return torch.cat([part[: one.stop - one.start] for part, one in zip(parts, shares, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0][ctx.here.share(ctx.rows)] * ctx.here.size, None, None


class _Sum(torch.autograd.Function):
    """The sum over the processes; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        total = grads[0].clone()
        dist.all_reduce(total)
        return total


class Spread:
    """A model lent to a group: its shares' forward passes, gradients averaged by DistributedDataParallel.

    Batch norms take their statistics from the whole batch, as they would in one process, until `end`.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.rows = 0
        self.norms = [part for part in model.modules() if isinstance(part, Norm)]
        for norm in self.norms:
            norm.forward = partial(self._normed, norm)  # type: ignore[method-assign]
        ids = [device] if device.type == "cuda" else None
        # Buffers are equal on all processes: nothing but batch norm changes one.
        self.model: nn.Module = DistributedDataParallel(model, device_ids=ids, forward_sync_buffers=False)

    def __call__(self, images: Tensor, rows: int) -> Tensor:
        """The logits of this process's share of a batch of so many rows."""
        self.rows = rows
        logits: Tensor = self.model(images)
        return logits

    def end(self) -> None:
        """Give the model back as it was."""
        for norm in self.norms:
            del norm.forward

    def _normed(self, norm: Norm, x: Tensor) -> Tensor:
        """Batch norm of a share by the whole batch's mean and variance (Ioffe & Szegedy 2015, algorithm 1)."""
        if not norm.training or self.rows < place().size:
            plain: Tensor = type(norm).forward(norm, x)
            return plain
        axes = [axis for axis in range(x.dim()) if axis != 1]
        shape = [1, -1, *[1] * (x.dim() - 2)]
        values = x.float()
        count = _Sum.apply(values.new_tensor(values.numel() / values.shape[1]))  # type: ignore[no-untyped-call]
        mean = _Sum.apply(values.sum(axes)) / count  # type: ignore[no-untyped-call]
        centred = values - mean.view(shape)
        variance = _Sum.apply(centred.square().sum(axes)) / count  # type: ignore[no-untyped-call]
        if norm.track_running_stats and norm.running_mean is not None and norm.running_var is not None:
            with torch.no_grad():
                assert norm.num_batches_tracked is not None
                norm.num_batches_tracked += 1
                rate = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
                norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), rate)
                unbiased = variance * (count / (count - 1))
                norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), rate)
        out = centred * (variance + norm.eps).rsqrt().view(shape)
        if norm.affine:
            out = out * norm.weight.view(shape) + norm.bias.view(shape)
        result: Tensor = out.to(x.dtype)
        return result
