"""The engine for GPUs: a step of all students is captured once as a CUDA graph, and replayed from then on.

A small network leaves a GPU waiting for the next of a hundred kernels. A replayed graph launches them all at once, and
models that do not depend on each other run next to each other in it. Every model keeps its own tensors and optimizer.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from noisyteacher.data import Batch, Split
from noisyteacher.device import PROBE_BATCH, full_precision, precision_context
from noisyteacher.errors import NoisyTeacherError
from noisyteacher.models import Classifier, logits_of
from noisyteacher.objectives import Objective
from noisyteacher.rng import kept_draws
from noisyteacher.train.loss_groups import GroupMetrics, LossGroup, group_losses, sum_groups
from noisyteacher.train.state import (
    StepReport,
    Student,
    TrainingPlan,
    gradient_error,
    loss_error,
    seed_step,
    seeds_of,
)

VARIABLE, OFF = "NOISYTEACHER_GRAPHS", ("off", "0", "false", "no")
STREAMS = 8
"""At most this many models run next to each other."""
EAGER_STEPS = 3
"""Steps of one shape before it is captured: libraries choose their kernels and take their memory meanwhile."""
RESIDENT_SHARE = 4
"""All images of a split go to the GPU if they take no more than one part in this many of its free memory."""
T = TypeVar("T")


class GraphEngine:
    """Replays captured steps; the next step is started before the last one's numbers are read.

    A model whose loss or gradient is not finite is not updated from that step on, before the host knows: its optimizer
    reads `found_inf`, as with a gradient scaler.
    """

    lookahead = 1

    def __init__(self, students: Sequence[Student], plan: TrainingPlan) -> None:
        self.students, self.plan, self.device = list(students), plan, plan.device
        _, self.seed_index = seeds_of(students)
        self.preprocess: nn.Module = students[0].model.preprocess
        on_gpu = self.device.type == "cuda"
        new_stream: Any = torch.cuda.Stream
        self.streams = [new_stream(self.device) for _ in range(min(STREAMS, len(students)))] if on_gpu else []
        self.input_stream = new_stream(self.device, priority=-1) if on_gpu else None
        self.capture_stream = new_stream(self.device) if on_gpu else None
        self.can_capture = on_gpu
        self.rate = torch.tensor(plan.settings.lr, dtype=torch.float32, device=self.device)
        self.failed_mask = torch.zeros(len(students), dtype=torch.float32, device=self.device)
        self.failed: set[int] = set()
        self.replayed = False
        """Whether some step was a replay."""
        self.steps: dict[Any, CapturedStep] = {}
        self.pool: Any = None
        self.split = plan.split
        plan.split = _on_gpu_if_it_fits(plan.split, self.device)
        for row, student in enumerate(self.students):
            _make_capturable(student.optimizer, self.rate, self.failed_mask[row])

    def prepare(self, batches: Iterator[tuple[Batch, ...]]) -> Iterator[tuple[Batch, ...]]:
        """The batches, made on a stream of their own so that they do not wait for the running step."""
        if self.input_stream is not None:
            self.input_stream.wait_stream(torch.cuda.current_stream())
        while True:
            with self._on_input_stream():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def _on_input_stream(self) -> AbstractContextManager[object]:
        return nullcontext() if self.input_stream is None else torch.cuda.stream(self.input_stream)

    def step(self, batches: Sequence[Batch]) -> Callable[[], StepReport]:
        """Start a step of all students with one batch per seed; the function that it returns waits for its numbers."""
        per_student = [batches[index] for index in self.seed_index]
        errors: dict[int, NoisyTeacherError] = {}
        objectives: dict[int, Any] = {
            row: student.objective for row, student in enumerate(self.students) if row not in self.failed
        }
        with self._on_input_stream():
            groups = group_losses(objectives, per_student, errors)
        if self.input_stream is not None:
            torch.cuda.current_stream().wait_stream(self.input_stream)
        number = batches[0].step
        seed_step(batches[0].seed, number, self.plan)
        self.rate.fill_(self.plan.learning_rate(number))
        self.failed |= errors.keys()
        for row in self.failed:
            self.failed_mask[row] = 1
        images = [batch.images for batch in batches]
        shape = step_shape(images, groups)
        step = self.steps.get(shape)
        if step is None:
            step = self.steps[shape] = CapturedStep(images, groups, self.device)
        else:
            step.fill(images, groups)
        self._run(step)
        pending = PendingNumbers(step, keep_alive=(batches, groups))
        return lambda: self._report(pending, number, batches[0].whole_size, errors)

    def _run(self, step: CapturedStep) -> None:
        """Replay the step, capture it first if it is time to, or run it operation by operation."""
        if step.graph is None:
            for student in self.students:
                student.model.train()  # a teacher that contains it, or a callback, may have put it in eval mode
            if self.can_capture and step.runs >= EAGER_STEPS and not step.uncapturable:
                self._capture(step)
        if step.graph is not None:
            step.graph.replay()
            self.replayed = True
        else:
            step.numbers, step.metrics = self._compute(step)
            step.runs += 1

    def _capture(self, step: CapturedStep) -> None:
        """Make the step's graph; a step that cannot be captured stays eager."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self.pool, stream=self.capture_stream, capture_error_mode="thread_local"):
                step.numbers, step.metrics = self._compute(step)
        except RuntimeError:
            step.uncapturable = True
            return
        self.pool, step.graph = graph.pool(), graph

    def _compute(self, step: CapturedStep) -> tuple[Tensor, GroupMetrics]:
        """One update of every model that has not failed. Numbers: losses `[M]`, the largest element of every gradient
        `[M * P]`, then the metrics.
        """
        with full_precision(self.device):
            images = [self.preprocess(part) for part in step.images]
        logits = torch.stack(self._for_each(lambda row, s: self._logits(s, images[self.seed_index[row]]))).float()
        loss, metrics = sum_groups(logits, step.groups)
        for student in self.students:
            for _, parameter in student.parameters:
                parameter.grad = None
        loss.sum().backward()  # type: ignore[no-untyped-call]
        learned = [
            [(name, parameter.grad) for name, parameter in student.parameters if parameter.grad is not None]
            for student in self.students
        ]
        step.learned = [name for name, gradient in learned[0] if gradient.numel()]
        gradients: list[Any] = [gradient for row in learned for _, gradient in row if gradient.numel()]
        largest = torch.stack(torch._foreach_norm(gradients, float("inf"))).float().view(len(self.students), -1)
        sound = loss.detach().isfinite() & largest.isfinite().all(1)
        self.failed_mask.copy_(torch.maximum(self.failed_mask, (~sound).float()))
        self._for_each(lambda row, student: student.optimizer.step())
        flat = [value.flatten().float() for _, named in metrics for value in named.values()]
        return torch.cat([loss.detach(), largest.flatten(), *flat]), metrics

    def _logits(self, student: Student, images: Tensor) -> Tensor:
        with precision_context(self.plan.precision, self.device):
            return logits_of(student.model.network(images))

    def _for_each(self, work: Callable[[int, Student], T]) -> list[T]:
        """The results of work for every student, several next to each other."""
        if not self.streams:
            return [work(row, student) for row, student in enumerate(self.students)]
        current, results = torch.cuda.current_stream(), []
        for stream in self.streams:
            stream.wait_stream(current)
        for row, student in enumerate(self.students):
            with torch.cuda.stream(self.streams[row % len(self.streams)]):
                results.append(work(row, student))
        for stream in self.streams:
            current.wait_stream(stream)
        return results

    def _report(
        self, pending: PendingNumbers, step: int, samples: int, errors: dict[int, NoisyTeacherError]
    ) -> StepReport:
        """The numbers of a step as a report; students whose numbers are not finite have failed in it."""
        numbers, count, names = pending.wait(), len(self.students), pending.learned
        flat = iter(numbers[count * (1 + len(names)) :])
        report = StepReport(step, samples, numbers[:count], [{} for _ in self.students], errors)
        for rows, metric_names in pending.metrics:
            for name in metric_names:
                for row in rows:
                    report.metrics[row][name] = next(flat)
        for row in range(count):
            if row in self.failed:
                continue
            sizes = numbers[count + row * len(names) : count + (row + 1) * len(names)]
            unsound = [name for name, size in zip(names, sizes, strict=True) if not math.isfinite(size)]
            if not math.isfinite(numbers[row]):
                report.errors[row] = loss_error(numbers[row], step, self.plan)
            elif unsound:
                report.errors[row] = gradient_error(unsound[0], step)
        self.failed |= report.errors.keys()
        return report

    def sync_buffers(self) -> None:
        """No effect: models and optimizers hold their own state at any time."""

    def release(self) -> None:
        """Give every training its own data and update rule back."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.plan.split = self.split
        for student in self.students:
            _undo_capturable(student.optimizer, self.plan.settings.lr)
            student.optimizer.zero_grad(set_to_none=True)
        self.steps.clear()


class CapturedStep:
    """A step of one shape: static inputs, the graph once there is one, and its outputs."""

    def __init__(self, images: Sequence[Tensor], groups: Sequence[LossGroup], device: torch.device) -> None:
        self.runs, self.device = 0, device
        self.graph: Any = None
        self.uncapturable = False
        self.learned: list[str] = []
        """Names of the parameters that have a gradient, the same for every model."""
        self.numbers: Tensor | None = None
        self.metrics: GroupMetrics = []
        self.images = [torch.empty_like(part) for part in images]
        tensors = distinct_inputs(groups)
        staged = [tensor for tensor in tensors if _is_staged(tensor)]
        self.staging = torch.empty(sum(tensor.numel() for tensor in staged), dtype=torch.float32, device=device)
        """All small inputs from the CPU, copied in one piece."""
        pieces = iter(torch.split(self.staging, [tensor.numel() for tensor in staged]))
        self.inputs = [
            next(pieces).view(tensor.shape) if _is_staged(tensor) else torch.empty_like(tensor, device=device)
            for tensor in tensors
        ]
        static = {id(tensor): buffer for tensor, buffer in zip(tensors, self.inputs, strict=True)}
        self.groups = [
            replace(group, inputs={name: [static[id(v)] for v in values] for name, values in group.inputs.items()})
            for group in groups
        ]
        self.fill(images, groups)

    def fill(self, images: Sequence[Tensor], groups: Sequence[LossGroup]) -> None:
        """Copy new inputs into the static ones, after the last step that reads them."""
        for buffer, part in zip(self.images, images, strict=True):
            buffer.copy_(part)
        staged = []
        for buffer, tensor in zip(self.inputs, distinct_inputs(groups), strict=True):
            if _is_staged(tensor):
                staged.append(tensor.reshape(-1))
            else:
                buffer.copy_(tensor, non_blocking=True)
        if staged:
            pinned = torch.empty_like(self.staging, device="cpu", pin_memory=self.device.type == "cuda")
            self.staging.copy_(torch.cat(staged, out=pinned), non_blocking=True)


class PendingNumbers:
    """The numbers of one step, on their way from the device."""

    def __init__(self, step: CapturedStep, keep_alive: object) -> None:
        """keep_alive: what the step reads, until it is over."""
        assert step.numbers is not None
        self.keep_alive, self.learned = keep_alive, step.learned
        self.metrics = [(students, list(named)) for students, named in step.metrics]
        self.event: Any = None
        if step.numbers.is_cuda:
            self.numbers = torch.empty(step.numbers.shape, dtype=step.numbers.dtype, pin_memory=True)
            self.numbers.copy_(step.numbers, non_blocking=True)
            self.event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.event.record()
        else:
            self.numbers = step.numbers.clone()

    def wait(self) -> list[float]:
        """The numbers, once the step is over."""
        if self.event is not None:
            self.event.synchronize()
        return list(self.numbers.tolist())


def distinct_inputs(groups: Sequence[LossGroup]) -> list[Tensor]:
    """The input tensors of all groups, those that students share once."""
    return list({id(value): value for group in groups for values in group.inputs.values() for value in values}.values())


def step_shape(images: Sequence[Tensor], groups: Sequence[LossGroup]) -> tuple[object, ...]:
    """What two steps must have in common for the same kernels to compute both."""
    index: dict[int, int] = {}
    layout = tuple(
        (
            group.objective.arithmetic,
            tuple(group.students),
            tuple(
                (name, tuple(index.setdefault(id(v), len(index)) for v in values))
                for name, values in group.inputs.items()
            ),
        )
        for group in groups
    )
    tensors = tuple((tuple(tensor.shape), tensor.dtype, tensor.device) for tensor in distinct_inputs(groups))
    return tuple(part.shape for part in images), layout, tensors


def can_replay(students: Sequence[Student], plan: TrainingPlan) -> bool:
    """Whether these trainings can be replayed: on one GPU, where networks and losses run the same kernels at every
    step, several draw no random numbers, no hook watches all optimizers, and unless `NOISYTEACHER_GRAPHS=off` is in the
    environment.
    """
    if (
        plan.device.type != "cuda"
        or plan.world.size > 1
        or plan.settings.has_body
        or os.environ.get(VARIABLE, "").lower() in OFF
    ):
        return False
    if _global_optimizer_pre_hooks or _global_optimizer_post_hooks or not all(map(_is_steady, students)):
        return False
    # Several networks in one graph would draw from one sequence of random numbers, each alone from its own.
    return len(students) == 1 or not any(draws_numbers(student.model, plan) for student in students)


def _is_steady(student: Student) -> bool:
    model: Any = student.model
    return (
        type(model) is Classifier
        and isinstance(student.objective, Objective)
        and type(student.objective).__call__ is Objective.__call__
        and student.objective.input_noise is None
        and is_graph_safe(model)
        and not any(True for _ in model.preprocess.parameters())
        and all(parameter.dtype == torch.float32 for parameter in model.parameters())
    )


def draws_numbers(model: Classifier, plan: TrainingPlan) -> bool:
    """Whether the network draws random numbers in training, such as for dropout."""
    network, device = copy.deepcopy(model.network).train(), plan.device
    state = torch.get_rng_state if device.type == "cpu" else partial(torch.cuda.get_rng_state, device)
    with torch.no_grad(), kept_draws(device):
        before = state()
        network(model.preprocess(plan.split.first_images(PROBE_BATCH).to(device)))
        return not torch.equal(state(), before)


def is_graph_safe(network: nn.Module) -> bool:
    """Whether the network is made of torch's and this package's layers alone, without hooks or replaced methods.

    What such a network does depends on shapes, weights and images, never on counters or draws of Python. A batch norm
    without a momentum counts in Python.
    """
    packages = ("torch.nn.modules.", "noisyteacher.models.")
    if torch.nn.modules.module._has_any_global_hook() or torch.is_anomaly_enabled():  # type: ignore[no-untyped-call]
        return False
    if any(parameter._backward_hooks or parameter._post_accumulate_grad_hooks for parameter in network.parameters()):
        return False
    return all(
        type(module).__module__.startswith(packages)
        and not _is_watched(module)
        and not (isinstance(module, nn.modules.batchnorm._NormBase) and module.momentum is None)
        for module in network.modules()
    )


def _is_watched(layer: nn.Module) -> bool:
    attributes = vars(layer)
    return "forward" in attributes or any(value for name, value in attributes.items() if name.endswith("_hooks"))


def _is_staged(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32


def _make_capturable(optimizer: torch.optim.Optimizer, rate: Tensor, failed: Tensor) -> None:
    """Let the optimizer read its rate, and whether its model has failed, on the device at every step."""
    for group in optimizer.param_groups:
        group["lr"] = rate
        if "capturable" in group:
            group["capturable"] = failed.is_cuda
    for slots in optimizer.state.values():
        if "step" in slots:
            slots["step"] = slots["step"].to(rate.device)
    optimizer.found_inf = failed  # type: ignore[attr-defined]
    optimizer._warned_capturable_if_run_uncaptured = True


def _undo_capturable(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
        if "capturable" in group:
            group["capturable"] = False
    del optimizer.found_inf  # type: ignore[attr-defined]


def _on_gpu_if_it_fits(split: Split, device: torch.device) -> Split:
    """The split with its images on the GPU, if they leave it room."""
    if device.type != "cuda":
        return split
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if split.images.nbytes * RESIDENT_SHARE > torch.cuda.mem_get_info(device)[0] + cached:
        return split
    return replace(split, images=split.images.to(device))
