"""Students of one step whose losses are computed at once, by one vmapped loss."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from noisyteacher.data import Batch
from noisyteacher.errors import NoisyTeacherError
from noisyteacher.objectives import Cache, Metrics, Objective

GroupMetrics = list[tuple[list[int], Metrics]]
"""Groups of students, each with metrics `[n]` by name."""


@dataclass(frozen=True)
class LossGroup:
    """Students whose losses are computed at once, and the inputs of each by name."""

    objective: Objective
    students: list[int]
    inputs: dict[str, list[Tensor]]

    def losses(self, logits: Tensor) -> tuple[Tensor, Metrics]:
        """Losses `[n]` and metrics `[n]` by name of the n students of this group, from logits `[M, B, K]` of all M."""
        if len(self.students) < len(logits):
            logits = logits[torch.tensor(self.students, device=logits.device)]
        shared = {name: all(value is values[0] for value in values) for name, values in self.inputs.items()}
        stacked = {name: values[0] if shared[name] else torch.stack(values) for name, values in self.inputs.items()}
        dims = {name: None if shared[name] else 0 for name in self.inputs}
        losses, metrics = torch.func.vmap(self.objective.loss, in_dims=(0, dims))(logits, stacked)
        return losses, metrics


def group_losses(
    objectives: Mapping[int, Objective], batches: Sequence[Batch], errors: dict[int, NoisyTeacherError]
) -> list[LossGroup]:
    """The objectives' inputs for this step, grouped by what can be computed at once.

    objectives: those of the students to be computed, by their number; batches: one per student; errors: filled with
    those of students whose inputs cannot be had, such as of a teacher whose logits are not finite.
    """
    cache: Cache = {}
    groups: dict[Hashable, LossGroup] = {}
    for student, objective in objectives.items():
        try:
            inputs = objective.inputs(batches[student], cache)
        except NoisyTeacherError as error:
            errors[student] = error
            continue
        shapes = tuple((name, value.shape, value.dtype, value.device) for name, value in inputs.items())
        group = groups.setdefault((objective.arithmetic, shapes), LossGroup(objective, [], {}))
        group.students.append(student)
        for name, value in inputs.items():
            group.inputs.setdefault(name, []).append(value)
    return list(groups.values())


def sum_groups(logits: Tensor, groups: Sequence[LossGroup]) -> tuple[Tensor, GroupMetrics]:
    """Losses `[M]`, those of the groups, zero for students in none; and the groups' metrics.

    A student without a loss has the same kernels as the others.
    """
    losses, metrics = dict[int, Tensor](), GroupMetrics()
    for group in groups:
        values, group_metrics = group.losses(logits)
        losses |= dict(zip(group.students, values.unbind(), strict=True))
        metrics.append((group.students, group_metrics))
    rows = range(len(logits))
    return torch.stack([losses[row] if row in losses else logits[row].sum() * 0 for row in rows]), metrics
