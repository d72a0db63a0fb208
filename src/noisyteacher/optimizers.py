"""The optimisers by name, with the fused kernels where they exist."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from noisyteacher.errors import ConfigError
from noisyteacher.muon import Muon

RULE = ("optimizer", "lr", "momentum", "weight_decay")
"""The settings of `fit` that make an update rule."""


def build_optimizer(
    optimizer: str,
    parameters: Iterable[nn.Parameter],
    *,
    lr: float,
    momentum: float | None,
    weight_decay: float,
    stacked: bool = False,
) -> torch.optim.Optimizer:
    """The optimiser: `adam` (the paper; weight decay as an L2 term), `adamw` (decoupled decay), `sgd` (momentum, 0.9),
    `muon` (momentum, 0.9, made orthogonal; decoupled decay). `stacked`: the first dimension numbers networks.

    The values are those that `refusals.check_settings` let pass. Raises ConfigError when nothing is to be
    learned, or muon is to learn complex numbers.
    """
    learned = [parameter for parameter in parameters if parameter.requires_grad]
    if not learned:
        raise ConfigError("the model has no parameter that requires gradients: nothing can be learned")
    beta = 0.9 if momentum is None else momentum
    if optimizer == "muon":
        if any(parameter.is_complex() for parameter in learned):
            raise ConfigError("optimizer 'muon' knows real numbers alone, and a parameter is complex: give adam")
        return Muon(learned, lr=lr, momentum=beta, weight_decay=weight_decay, stacked=stacked)
    fused = all(parameter.is_floating_point() for parameter in learned)
    if optimizer == "sgd":
        return torch.optim.SGD(learned, lr=lr, momentum=beta, weight_decay=weight_decay, fused=fused)
    kind = torch.optim.Adam if optimizer == "adam" else torch.optim.AdamW
    return kind(learned, lr=lr, weight_decay=weight_decay, fused=fused)
