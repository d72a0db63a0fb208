"""The rows of a compression's table: what each model answers and costs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import nn

from noisyteacher.measure import measure
from noisyteacher.pipeline.plan import Plan
from noisyteacher.pipeline.result import Row
from noisyteacher.pipeline.steps import lost
from noisyteacher.pipeline.training import Trained
from noisyteacher.runs import Run


def measured(plan: Plan, name: str, model: nn.Module, warnings: list[str]) -> dict[str, Any]:
    """What a model costs; empty, and noted among the warnings, where it cannot be measured."""
    try:
        return asdict(measure(model, plan.data.input_shape, device=plan.config.run.device))
    except Exception as error:  # networks are others': a compiled one may refuse to be looked into
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        warnings.append(f"the costs of the {name} are unknown, as it cannot be measured ({reason})")
        return {}


def row_of(name: str, title: str, found: list[Trained], costs: Mapping[str, Any], role: str, run: Run) -> Row:
    """A model or condition over its seeds as a row; run folders relative to `run`."""
    scores = [one.result["scores"].get(role, {}) for one in found]
    return Row(
        name,
        title,
        tuple(lost(one) for one in scores),
        tuple(float(one["agreement"]["value"]) for one in scores if "agreement" in one and name != "teacher"),
        tuple(float(one.result["training"]["seconds"]) for one in found if one.result["training"]),
        costs,
        tuple(os.path.relpath(one.run.path, run.path) for one in found),
    )
