"""The eager engine: steps of students, operation by operation, on every device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from noisyteacher.data import Batch
from noisyteacher.device import precision_context
from noisyteacher.distributed import World, gather_objects
from noisyteacher.errors import NoisyTeacherError
from noisyteacher.objectives import Cache, Objective, input_noise_of, loss_and_metrics
from noisyteacher.train.optim import set_rate
from noisyteacher.train.state import (
    StepReport,
    Student,
    TrainingPlan,
    gradient_error,
    loss_error,
    seed_step,
    seeds_of,
)

Mark = Callable[[str], None]
"""Called with the name of a phase of the step when it ends."""


def check_gradients(gradients: Sequence[tuple[str, Tensor | None]], step: int) -> None:
    """Raises TrainingError naming a parameter unless all gradients are finite.

    The sum over all of them is checked first, which costs a hundredth of a step; single gradients only if that sum is
    not finite, as that of very large numbers is not either.
    """
    present = [(name, gradient) for name, gradient in gradients if gradient is not None]
    parts = [torch.view_as_real(gradient) if gradient.is_complex() else gradient for _, gradient in present]
    sums = [part.sum(dtype=torch.float32).to(parts[0].device) for part in parts]
    if not sums or math.isfinite(float(torch.stack(sums).sum())):
        return
    for name, gradient in present:
        if not bool(torch.isfinite(gradient).all()):
            raise gradient_error(name, step)


class EagerEngine:
    """Runs a step operation by operation, one student after the other."""

    lookahead, replayed = 0, False

    def __init__(self, students: Sequence[Student], plan: TrainingPlan, mark: Mark = lambda phase: None) -> None:
        self.students, self.plan, self.mark = list(students), plan, mark
        _, self.seed_index = seeds_of(students)
        self.forwards: list[nn.Module] = [student.model for student in students]
        self.modules = [list(model.modules()) for model in self.forwards]
        if plan.world.size > 1:
            ids = [plan.device] if plan.device.type == "cuda" else None
            self.forwards = [DistributedDataParallel(students[0].model, device_ids=ids)]

    def prepare(self, batches: Iterator[tuple[Batch, ...]]) -> Iterator[tuple[Batch, ...]]:
        """The batches as they are."""
        return batches

    def step(self, batches: Sequence[Batch]) -> Callable[[], StepReport]:
        """One update of every student that has not failed."""
        count, cache, plan = len(self.students), Cache(), self.plan
        report = StepReport(batches[0].step, batches[0].whole_size, [math.nan] * count, [{} for _ in range(count)])
        running = [number for number, student in enumerate(self.students) if student.error is None]
        for number in running:
            try:
                self._backward(number, batches[self.seed_index[number]], cache, report)
            except NoisyTeacherError as error:
                report.errors[number] = error
                continue
            optimizer = self.students[number].optimizer
            set_rate(optimizer, plan.learning_rate(report.step), plan.body_factor(report.step))
            optimizer.step()
            self.mark("optimizer")
        return lambda: report

    def _backward(self, number: int, batch: Batch, cache: Cache, report: StepReport) -> None:
        """Compute a student's gradients; its numbers go into the report. Raises what makes it fail."""
        student, plan, world = self.students[number], self.plan, self.plan.world
        seed_step(batch.seed, batch.step, plan)
        if not all(module.training for module in self.modules[number]):
            student.model.train()
        with precision_context(plan.precision, plan.device):
            logits = self.forwards[number](batch.images, input_noise_of(student.objective, batch)).float()
        self.mark("forward")
        objective = student.objective
        if isinstance(objective, Objective) and type(objective).__call__ is Objective.__call__:
            result = objective(logits, batch, cache)
        else:
            result = objective(logits, replace(batch, images=batch.images.contiguous()))
        loss, metrics = loss_and_metrics(result)
        if world.size > 1:
            loss = loss * world.weight(batch.whole_size)
        value = float(loss.detach())
        if world.size > 1:
            value, metrics = average_over_processes(value, metrics, batch.whole_size, world)
        report.losses[number], report.metrics[number] = value, metrics
        if not math.isfinite(value):
            raise loss_error(value, batch.step, plan)
        self.mark("noise")
        for _, parameter in student.parameters:  # as optimizer.zero_grad does, which takes a tenth of a small step
            parameter.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        self.mark("backward")
        check_gradients([(name, value.grad) for name, value in student.parameters], batch.step)
        self.mark("checks")

    def sync_buffers(self) -> None:
        """With several processes all take the buffers of rank 0, as DistributedDataParallel does before each forward
        pass.
        """
        if self.plan.world.size > 1:
            for buffer in self.students[0].model.buffers():
                torch.distributed.broadcast(buffer, 0)

    def release(self) -> None:
        """Let go of the gradients and the process group.

        The group's destructor must not be the one that runs when an exception's frames are freed: it waits for a
        thread of the group, which may need the interpreter's lock to free a tensor.
        """
        self.forwards = []
        for student in self.students:
            student.optimizer.zero_grad(set_to_none=True)


def average_over_processes(
    value: float, metrics: dict[str, float], rows: int, world: World
) -> tuple[float, dict[str, float]]:
    """The loss (already weighted) and the metrics of the whole batch, from those of every process's rows."""
    gathered = gather_objects((value, world.weight(rows), metrics))
    means = {}
    for name in metrics:
        power = 2 if name.endswith("_rms") else 1
        means[name] = (sum(w * numbers[name] ** power for _, w, numbers in gathered) / world.size) ** (1 / power)
    return sum(loss for loss, _, _ in gathered) / world.size, means
