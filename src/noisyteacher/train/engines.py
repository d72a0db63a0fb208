"""The eager engine: steps of one or many students, operation by operation, on every device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from noisyteacher.data import Batch
from noisyteacher.device import precision_context
from noisyteacher.distributed import World, gather_objects
from noisyteacher.errors import NoisyTeacherError, TrainingError
from noisyteacher.loss_groups import group_losses
from noisyteacher.objectives import Objective, input_noise_of, loss_and_metrics
from noisyteacher.train.optim import build_optimizer, set_rate
from noisyteacher.train.stack import Stack
from noisyteacher.train.state import (
    GroupMetrics,
    StepReport,
    Student,
    TrainingPlan,
    gradient_error,
    loss_error,
    seed_step,
    seeds_of,
    sum_groups,
)

Mark = Callable[[str], None]
"""Called with the name of a phase of the step when it ends."""


def check_gradients(gradients: Sequence[tuple[str, Tensor | None]], step: int) -> None:
    """Raises TrainingError naming a parameter unless all gradients are finite.

    The sum over all of them is checked first, which costs a hundredth of a step; single gradients only if that sum is
    not finite, as that of very large numbers is not either.
    """
    present = [(name, gradient) for name, gradient in gradients if gradient is not None]
    sums = [gradient.sum(dtype=torch.float32).to(present[0][1].device) for _, gradient in present]
    if not sums or math.isfinite(float(torch.stack(sums).sum())):
        return
    for name, gradient in present:
        if not bool(torch.isfinite(gradient).all()):
            raise gradient_error(name, step)


class EagerEngine:
    """Runs a step operation by operation: one model as it is, several of one architecture as a vmapped stack."""

    lookahead, replayed = 0, False

    def __init__(self, students: Sequence[Student], plan: TrainingPlan, mark: Mark = lambda phase: None) -> None:
        self.students, self.plan, self.mark = list(students), plan, mark
        _, self.seed_index = seeds_of(students)
        self.failed: set[int] = set()
        self.stack: Stack | None = None
        self.forward: nn.Module = students[0].model
        self.modules = list(self.forward.modules())
        if len(students) > 1:
            self.stack = Stack(
                [(student.model, student.optimizer) for student in students],
                lambda parameters: build_optimizer(plan.settings, parameters, stacked=True),
            )
        elif plan.world.size > 1:
            ids = [plan.device] if plan.device.type == "cuda" else None
            self.forward = DistributedDataParallel(students[0].model, device_ids=ids)

    def prepare(self, batches: Iterator[tuple[Batch, ...]]) -> Iterator[tuple[Batch, ...]]:
        """The batches as they are."""
        return batches

    def step(self, batches: Sequence[Batch]) -> Callable[[], StepReport]:
        """One update of every student that has not failed."""
        if self.stack is not None:
            report = self._step_of_many(self.stack, [batches[index] for index in self.seed_index], batches)
        else:
            report = self._step_of_one(batches[0])
        return lambda: report

    def _step_of_one(self, batch: Batch) -> StepReport:
        student, plan, world = self.students[0], self.plan, self.plan.world
        report = StepReport(batch.step, batch.whole_size, [math.nan], [{}])
        set_rate(student.optimizer, plan.learning_rate(batch.step), plan.body_factor(batch.step))
        seed_step(batch.seed, batch.step, plan)
        if not all(module.training for module in self.modules):
            student.model.train()
        with precision_context(plan.precision, plan.device):
            logits = self.forward(batch.images, input_noise_of(student.objective, batch))
        self.mark("forward")
        try:
            loss, metrics = loss_and_metrics(student.objective(logits.float(), batch))
            if world.size > 1:
                loss = loss * world.weight(batch.whole_size)
            value = float(loss.detach())
            if world.size > 1:
                value, metrics = average_over_processes(value, metrics, batch.whole_size, world)
            report.losses, report.metrics = [value], [metrics]
            if not math.isfinite(value):
                raise loss_error(value, batch.step, plan)
            self.mark("noise")
            for _, parameter in student.parameters:  # as optimizer.zero_grad does, which takes a tenth of a small step
                parameter.grad = None
            loss.backward()  # type: ignore[no-untyped-call]
            self.mark("backward")
            check_gradients([(name, value.grad) for name, value in student.parameters], batch.step)
            self.mark("checks")
        except NoisyTeacherError as error:
            report.errors[0] = error
            return report
        student.optimizer.step()
        self.mark("optimizer")
        return report

    def _step_of_many(self, stack: Stack, batches: Sequence[Batch], distinct: Sequence[Batch]) -> StepReport:
        """The numbers of all students come in one transfer."""
        plan, step, count = self.plan, batches[0].step, len(self.students)
        report = StepReport(step, batches[0].whole_size, [math.nan] * count, [{} for _ in self.students])
        with precision_context(plan.precision, plan.device):
            noises = [input_noise_of(self.students[row].objective, batch) for row, batch in enumerate(batches)]
            logits = stack(distinct, self.seed_index, noises)
        logits = logits.float()
        losses, metrics = self._losses(logits, batches, report)
        stack.optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()  # type: ignore[no-untyped-call]
        numbers = torch.stack([losses.detach(), stack.gradient_sums()]).tolist()
        report.losses = numbers[0]
        for student, values in read_batched_metrics(metrics).items():
            report.metrics[student] = values
        for student in self._running(report):
            if not math.isfinite(report.losses[student]):
                report.errors[student] = loss_error(report.losses[student], step, plan)
            elif not math.isfinite(numbers[1][student]):
                try:
                    check_gradients(stack.gradients_of(student), step)
                except TrainingError as error:
                    report.errors[student] = error
        self.failed |= report.errors.keys()
        set_rate(stack.optimizer, plan.learning_rate(step), plan.body_factor(step))
        stack.update(self.failed)
        return report

    def _losses(self, logits: Tensor, batches: Sequence[Batch], report: StepReport) -> tuple[Tensor, GroupMetrics]:
        """Losses `[M]`, zero for failed students, and metrics of groups of students."""
        losses: dict[int, Tensor] = {}
        grouped: dict[int, Objective] = {}
        for row in self._running(report):
            objective, batch = self.students[row].objective, batches[row]
            if isinstance(objective, Objective):
                grouped[row] = objective
                continue
            try:
                seed_step(batch.seed, batch.step, self.plan)
                loss, report.metrics[row] = loss_and_metrics(objective(logits[row], batch))
                losses[row] = loss.reshape(()).to(logits.device)
            except NoisyTeacherError as error:
                report.errors[row] = error
        groups = [group.to(logits.device) for group in group_losses(grouped, batches, report.errors)]
        return sum_groups(logits, groups, losses)

    def _running(self, report: StepReport) -> list[int]:
        return [n for n in range(len(self.students)) if n not in self.failed and n not in report.errors]

    def sync_optimizers(self) -> None:
        """Give each optimizer the slots that the stack keeps for its model; with several processes all take the buffers
        of rank 0, as DistributedDataParallel does before each forward pass.
        """
        if self.stack is not None:
            self.stack.sync_optimizers()
        if self.plan.world.size > 1:
            for buffer in self.students[0].model.buffers():
                torch.distributed.broadcast(buffer, 0)

    def release(self) -> None:
        """Give every model and optimizer tensors of its own again, and let go of the process group.

        Its destructor must not be the one that runs when an exception's frames are freed: it waits for a thread of the
        group, which may need the interpreter's lock to free a tensor.
        """
        self.forward = self.students[0].model
        if self.stack is not None:
            self.stack.release()


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


def read_batched_metrics(groups: GroupMetrics) -> dict[int, dict[str, float]]:
    """Metrics by student, of groups of students with metrics `[n]` by name: one transfer from the device."""
    tensors = [value for _, metrics in groups for value in metrics.values()]
    numbers = iter(torch.cat(tensors).tolist()) if tensors else iter(())
    by_student: dict[int, dict[str, float]] = {}
    for students, metrics in groups:
        for name in metrics:
            for student in students:
                by_student.setdefault(student, {})[name] = next(numbers)
    return by_student
