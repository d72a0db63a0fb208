"""The optimisers by name, with the fused kernels where they exist."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from noisyteacher.errors import ConfigError
from noisyteacher.muon import ROUNDS, Muon

RULE = ("optimizer", "lr", "momentum", "weight_decay")
"""The settings of `fit` that make an update rule."""


MOST_MUON = 0.5
"""Share of a step's own multiplications up to which Muon's are worth their time."""


def preferred_optimizer(model: nn.Module, macs: int, batch_size: int) -> str:
    """`muon` where its matrix products cost at most half of a training step's own multiplications, else `adamw`.

    A step multiplies about 3 * macs * batch_size times, forward and backward; Muon's orthogonalization of an m x n
    matrix (m <= n) takes ROUNDS * (2 m^2 n + m^3). That is little for convolutions, whose weights are used at every
    pixel, and up to a hundred times the step for wide linear layers. macs: of one image, forward.
    """
    products = 0
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.ndim > 1:
            if parameter.is_complex():
                return "adamw"
            rows, columns = parameter.shape[0], parameter[0].numel()
            short, long = sorted((rows, columns))
            products += ROUNDS * (2 * short**2 * long + short**3)
    return "muon" if products <= MOST_MUON * 3 * macs * batch_size else "adamw"


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
