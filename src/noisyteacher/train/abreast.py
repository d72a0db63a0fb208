"""Models side by side on a GPU: a step of all of them is captured once as a CUDA graph, and replayed ever after.

A small network leaves a GPU waiting for the next kernel of a hundred. A replayed graph launches them all at once, and
models that do not need each other run next to each other in it. Every model keeps its own tensors and update rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from noisyteacher.data import Batch, Split
from noisyteacher.device import full_precision, precision_context
from noisyteacher.models import logits_of
from noisyteacher.modes import pooling_first
from noisyteacher.train.kinds import Asked, taught
from noisyteacher.train.loop import Loop
from noisyteacher.train.stack import seeds_of

LANES = 8
"""So many models run next to each other."""
EAGER = 3
"""Steps of one shape before it is captured: libraries choose their kernels and take their memory meanwhile."""
RESIDENT = 4
"""Images go to the GPU as a whole where they take no more than one in so many of its free bytes."""

Made = TypeVar("Made")


class Step:
    """A step of one shape: its inputs, its graph once there is one, and what it leaves to be read."""

    def __init__(self, images: Sequence[Tensor], asked: Sequence[Asked], device: torch.device) -> None:
        self.done, self.device = 0, device
        self.graph: Any = None
        self.refused = False
        """It cannot be captured."""
        self.learned: list[str] = []
        """The parameters that have a gradient, of each model alike."""
        self.read: Tensor | None = None
        self.told: tuple[Tensor, ...] = ()
        self.images = [torch.empty_like(one) for one in images]
        changing = [one.changing for one in asked]
        small = [one for kind in changing for one in kind if _travels(one)]
        self.flat = torch.empty(sum(one.numel() for one in small), device=device)
        """What comes from the CPU, in one piece."""
        parts = iter(
            part.view(one.shape)
            for part, one in zip(torch.split(self.flat, [one.numel() for one in small]), small, strict=True)
        )
        self.kept = [
            [next(parts) if _travels(one) else torch.empty_like(one, device=device) for one in kind]
            for kind in changing
        ]
        """The inputs by kind; `Asked.shape` holds where they come from, so the next step's travel alike."""
        self.asked = [one.as_placed(kept, device) for one, kept in zip(asked, self.kept, strict=True)]
        self.fill(images, asked)

    def fill(self, images: Sequence[Tensor], asked: Sequence[Asked]) -> None:
        """Put what is new into the inputs; the last step that read them comes first on the device."""
        small = []
        for kept, one in zip(self.images, images, strict=True):
            kept.copy_(one)
        for kind, new in zip(self.kept, asked, strict=True):
            for kept, one in zip(kind, new.changing, strict=True):
                if _travels(one):
                    small.append(one.reshape(-1))
                else:
                    kept.copy_(one, non_blocking=True)
        if small:
            staged = torch.empty(self.flat.shape, pin_memory=self.device.type == "cuda")
            self.flat.copy_(torch.cat(small, out=staged), non_blocking=True)


def _travels(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32


class Reading:
    """The numbers of one step, on their way from the device."""

    def __init__(self, step: Step, batches: Sequence[Batch], held: object) -> None:
        assert step.read is not None
        self.batches, self.held = batches, held
        """`held`: what the step reads, to be kept until it is over."""
        self.asked, self.told, self.learned = step.asked, step.told, step.learned
        self.event: Any = None
        if step.read.is_cuda:
            self.numbers = torch.empty(step.read.shape, dtype=step.read.dtype, pin_memory=True)
            self.numbers.copy_(step.read, non_blocking=True)
            self.event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.event.record()
        else:
            self.numbers = step.read.clone()

    def wait(self) -> list[float]:
        """The numbers, once the step is over."""
        if self.event is not None:
            self.event.synchronize()
        return list(self.numbers.tolist())


class Abreast:
    """Trainings that stand at one step, as one: a step is launched, and its numbers are read while the next one runs.

    A model whose loss or gradient is not finite is not updated from that step on, before anybody has read so: its
    optimizer is told by `found_inf`, as by a gradient scaler.
    """

    def __init__(self, loops: Sequence[Loop]) -> None:
        self.loops, self.device = list(loops), loops[0].device
        self.seeds, self.places = seeds_of(loops)
        self.front: nn.Module = loops[0].model.preprocess
        on_gpu = self.device.type == "cuda"
        lanes = min(LANES, len(loops)) if on_gpu else 0
        stream: Any = torch.cuda.Stream
        self.lanes = [stream(self.device) for _ in range(lanes)]
        self.feeding = stream(self.device, priority=-1) if on_gpu else None
        self.capturing = stream(self.device) if on_gpu else None
        self.graphs = on_gpu
        self.rate = torch.tensor(loops[0].settings["lr"], dtype=torch.float32, device=self.device)
        self.dead = torch.zeros(len(loops), device=self.device)
        self.held: set[int] = set()
        self.replayed = False
        """The last step that was launched was a replay."""
        self.steps: dict[Any, Step] = {}
        self.pool: Any = None
        self.splits = [loop.split for loop in loops]
        moved = {id(split): _resident(split, self.device) for split in self.splits}
        for row, loop in enumerate(loops):
            loop.split = moved[id(loop.split)]
            _let_rule(loop.optimizer, self.rate, self.dead[row])

    @contextmanager
    def fed(self) -> Iterator[None]:
        """Inside, what is made for the next step does not wait for the running one."""
        with torch.cuda.stream(self.feeding) if self.feeding is not None else nullcontext():
            yield

    def catch_up(self) -> None:
        """What is made in `fed` from now on sees all that was done before."""
        if self.feeding is not None:
            self.feeding.wait_stream(torch.cuda.current_stream())

    def launch(self, batches: Sequence[Batch], asked: Sequence[Asked]) -> Reading:
        """Start a step of all models with one batch per seed, made inside `fed`; it is over when its numbers are there.

        Several may be started before the first one's numbers are read.
        """
        if self.feeding is not None:
            torch.cuda.current_stream().wait_stream(self.feeding)
        self.rate.fill_(self.loops[0].rate(batches[0].step))
        images = [one.images for one in batches]
        shape = (tuple(one.shape for one in images), tuple(one.shape for one in asked))
        known = self.steps.get(shape)
        if known is None:
            known = self.steps[shape] = Step(images, asked, self.device)
        else:
            known.fill(images, asked)
        if known.graph is None:
            for loop in self.loops:
                loop.model.train()  # a teacher that holds it, or whoever was told of the last step, may have asked it
        if self.graphs and known.graph is None and known.done >= EAGER and not known.refused:
            self._capture(known)
        self.replayed = known.graph is not None
        if self.replayed:
            known.graph.replay()
        else:
            known.read, known.told = self._run(known)
            known.done += 1
        return Reading(known, batches, asked)

    def hold(self, row: int) -> None:
        """Let this model learn no more, from the next step to be launched."""
        if row not in self.held:
            self.held.add(row)
            self.dead[row] = 1

    def _capture(self, step: Step) -> None:
        """Make the step's graph; one that cannot be captured goes on as it did."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self.pool, stream=self.capturing, capture_error_mode="thread_local"):
                step.read, step.told = self._run(step)
        except RuntimeError:
            step.refused = True
            return
        self.pool, step.graph = graph.pool(), graph

    def _run(self, step: Step) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One update of every model that lives; what is to be read: losses `[M]`, the largest element of every
        gradient `[M * P]`, the values worth telling.
        """
        with full_precision(self.device):
            seen = [self.front(one) for one in step.images]
        logits = torch.stack(self._each(lambda row, loop: self._logits(loop, seen[self.places[row]])))
        losses, told = taught(logits.float(), step.asked)
        for loop in self.loops:
            for _, parameter in loop.named:
                parameter.grad = None
        losses.sum().backward()  # type: ignore[no-untyped-call]
        learned = [_learned(loop) for loop in self.loops]
        step.learned = [name for name, _ in learned[0]]
        grads: list[Any] = [parameter.grad for own in learned for _, parameter in own]
        largest = torch.stack(torch._foreach_norm(grads, float("inf"))).float().view(len(self.loops), -1)
        lives = losses.detach().isfinite() & largest.isfinite().all(1)
        self.dead.copy_(torch.maximum(self.dead, (~lives).float()))
        self._each(lambda row, loop: loop.optimizer.step())
        return torch.cat([losses.detach(), largest.flatten(), *(one.flatten() for one in told)]), tuple(told)

    def _logits(self, loop: Loop, seen: Tensor) -> Tensor:
        with precision_context(loop.settings["precision"], self.device), pooling_first(loop.pairs):
            return logits_of(loop.model.network(seen))

    def _each(self, work: Callable[[int, Loop], Made]) -> list[Made]:
        """Do it for every model, several next to each other."""
        if not self.lanes:
            return [work(row, loop) for row, loop in enumerate(self.loops)]
        here, found = torch.cuda.current_stream(), []
        for lane in self.lanes:
            lane.wait_stream(here)
        for row, loop in enumerate(self.loops):
            with torch.cuda.stream(self.lanes[row % len(self.lanes)]):
                found.append(work(row, loop))
        for lane in self.lanes:
            here.wait_stream(lane)
        return found

    def lend(self) -> None:
        """Models and optimizers are whole at any time."""

    def part(self) -> None:
        """Give every training its own data and update rule back."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        for loop, split in zip(self.loops, self.splits, strict=True):
            loop.split = split
            _give_back_rule(loop.optimizer, float(loop.settings["lr"]))
            loop.optimizer.zero_grad(set_to_none=True)
        self.steps.clear()


def _learned(loop: Loop) -> list[tuple[str, nn.Parameter]]:
    """The parameters that the last backward pass had a gradient for, with their names."""
    return [(name, parameter) for name, parameter in loop.named if parameter.grad is not None and parameter.numel()]


def _let_rule(optimizer: torch.optim.Optimizer, rate: Tensor, dead: Tensor) -> None:
    """Let the update rule read its rate, and whether its model lives, on the device at every step."""
    for group in optimizer.param_groups:
        group["lr"] = rate
        if "capturable" in group:
            group["capturable"] = dead.is_cuda
    for slots in optimizer.state.values():
        if "step" in slots:
            slots["step"] = slots["step"].to(rate.device)
    optimizer.found_inf = dead  # type: ignore[attr-defined]
    optimizer._warned_capturable_if_run_uncaptured = True


def _give_back_rule(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
        if "capturable" in group:
            group["capturable"] = False
    del optimizer.found_inf  # type: ignore[attr-defined]


def _resident(split: Split, device: torch.device) -> Split:
    """The split with its images on the GPU, where they leave it room."""
    if device.type != "cuda":
        return split
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if split.images.nbytes * RESIDENT > torch.cuda.mem_get_info(device)[0] + cached:
        return split
    return replace(split, images=split.images.to(device))
