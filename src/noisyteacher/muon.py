"""Muon: gradient descent whose steps have no favourite direction (Jordan et al. 2024, arXiv 2502.16982 for the scale).

The momentum of a weight matrix is replaced by the nearest matrix whose singular values are all about one, so that
directions the gradient rarely shows are learned as fast as the loud ones. Convolutions count as matrices
`[out, in * kernel]`. What has one dimension or none (biases, norms) is updated by Adam. The step is scaled to the size
of Adam's, so one rate serves both.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

QUINTIC = (3.4445, -4.7750, 2.0315)
"""a x + b x^3 + c x^5, which takes every singular value of 0.01 to 1 to about 0.7 to 1.2 in five rounds (Jordan)."""
ROUNDS = 5
ADAM_SIZE = 0.2
"""The root mean square of an element of Adam's step, in units of the rate (Liu et al. 2025, arXiv 2502.16982, 2.2)."""
BETAS, EPS = (0.9, 0.95), 1e-8
TINY = 1e-30


class Muon(torch.optim.Optimizer):
    """Matrices by orthogonalised Nesterov momentum with decoupled weight decay, all else by Adam without decay.

    `stacked`: the first dimension of every parameter numbers networks that are trained side by side, each by itself.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, lr: float, momentum: float, weight_decay: float, stacked: bool
    ) -> None:
        told = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "first": int(stacked)}
        super().__init__(parameters, told)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient; a closure is not called.

        With a rate that is a tensor nothing is asked of the device, so that a CUDA graph may hold the step; where the
        tensor `found_inf` says 1, everything then stays as it is.
        """
        found: Tensor | None = getattr(self, "found_inf", None)
        touched = [] if found is None else self._touched()
        before = [one.clone() for one in touched]
        self._update()
        if found is not None:
            for one, kept in zip(touched, before, strict=True):
                one.copy_(torch.where(found > 0, kept, one))

    def _touched(self) -> list[Tensor]:
        learned = [one for group in self.param_groups for one in group["params"] if one.grad is not None]
        return [*learned, *(slot for one in learned for slot in self.state[one].values())]

    def _update(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.numel():
                    update = self._matrix if parameter.ndim - group["first"] > 1 else self._other
                    update(parameter, self.state[parameter], group)

    def _matrix(self, parameter: Tensor, kept: dict[str, Tensor], group: dict[str, Any]) -> None:
        if not kept:
            kept["momentum"] = torch.zeros_like(parameter)
        beta, rate = group["momentum"], group["lr"]
        kept["momentum"].mul_(beta).add_(parameter.grad)  # type: ignore[arg-type]
        ahead = parameter.grad.add(kept["momentum"], alpha=beta)  # type: ignore[union-attr]
        rows = ahead.flatten(group["first"] + 1)
        size = ADAM_SIZE * max(rows.shape[-2:]) ** 0.5
        parameter.mul_(1 - rate * group["weight_decay"])
        towards = orthogonal(rows).reshape(parameter.shape)
        if isinstance(rate, Tensor):
            parameter.sub_(towards * (rate * size))
        else:
            parameter.add_(towards, alpha=-rate * size)

    def _other(self, parameter: Tensor, kept: dict[str, Tensor], group: dict[str, Any]) -> None:
        if not kept:
            place = group["lr"].device if isinstance(group["lr"], Tensor) else None
            kept |= {"step": torch.zeros((), device=place), "exp_avg": torch.zeros_like(parameter)}
            kept["exp_avg_sq"] = torch.zeros_like(parameter)
        kept["step"] += 1
        rate, (first, second) = group["lr"], BETAS
        count = kept["step"] if isinstance(rate, Tensor) else float(kept["step"])
        kept["exp_avg"].lerp_(parameter.grad, 1 - first)  # type: ignore[arg-type]
        kept["exp_avg_sq"].lerp_(parameter.grad.square(), 1 - second)  # type: ignore[union-attr]
        spread = (kept["exp_avg_sq"] / (1 - second**count)).sqrt_().add_(EPS)
        if isinstance(rate, Tensor):
            parameter.sub_(kept["exp_avg"] / spread * (rate / (1 - first**count)))
        else:
            parameter.addcdiv_(kept["exp_avg"], spread, value=-rate / (1 - first**count))


def orthogonal(matrix: Tensor) -> Tensor:
    """About U V^T of the matrices' singular value decomposition U S V^T: float32 `[..., M, N]` of `[..., M, N]`.

    Singular values come out between about 0.7 and 1.2, those below a hundredth of the norm smaller; zeros stay zeros.
    """
    a, b, c = QUINTIC
    tall = matrix.shape[-2] > matrix.shape[-1]
    x: Tensor = matrix.float().mT if tall else matrix.float()
    x = x / x.abs().amax((-2, -1), keepdim=True).clamp(min=TINY)  # squares of very large numbers are infinite
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=TINY)
    for _ in range(ROUNDS):
        square = x @ x.mT
        x = a * x + (b * square + c * (square @ square)) @ x
    return x.mT if tall else x
