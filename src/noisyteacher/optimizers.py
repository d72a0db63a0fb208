"""The optimisers by name, with the fused kernels where they exist."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from noisyteacher.errors import ConfigError
from noisyteacher.text import unknown_name

OPTIMIZERS = ("adam", "adamw", "sgd")


def build_optimizer(
    name: str, parameters: Iterable[nn.Parameter], *, lr: float, momentum: float | None, weight_decay: float
) -> torch.optim.Optimizer:
    """The optimiser: `adam` (the paper; weight decay as an L2 term), `adamw` (decoupled decay), `sgd` (momentum, 0.9).

    Raises UnknownNameError, ConfigError for values out of range and for momentum where it has no effect.
    """
    if name not in OPTIMIZERS:
        raise unknown_name("optimizer", name, OPTIMIZERS)
    problems = []
    if not lr > 0:
        problems.append(f"lr={lr}: expected a number above 0")
    if weight_decay < 0:
        problems.append(f"weight_decay={weight_decay}: expected a number >= 0")
    if momentum is not None and name != "sgd":
        problems.append(f"momentum={momentum} has no effect with optimizer={name!r}: leave it out")
    if momentum is not None and not 0 <= momentum < 1:
        problems.append(f"momentum={momentum}: expected 0 <= momentum < 1")
    if problems:
        raise ConfigError("; ".join(problems))
    learned = [parameter for parameter in parameters if parameter.requires_grad]
    if not learned:
        raise ConfigError("the model has no parameter that requires gradients: nothing can be learned")
    fused = all(parameter.is_floating_point() for parameter in learned)
    if name == "sgd":
        return torch.optim.SGD(
            learned, lr=lr, momentum=0.9 if momentum is None else momentum, weight_decay=weight_decay, fused=fused
        )
    kind = torch.optim.Adam if name == "adam" else torch.optim.AdamW
    return kind(learned, lr=lr, weight_decay=weight_decay, fused=fused)
