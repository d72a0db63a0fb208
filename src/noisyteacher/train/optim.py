"""Optimizers by name, Muon among them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from noisyteacher.config.schema import MOMENTUM, TrainSettings
from noisyteacher.errors import ConfigError
from noisyteacher.models import head_parameters

MUON_SHARE = 0.5
"""Share of a step's own multiplications up to which `auto` takes Muon."""


def preferred_optimizer(model: nn.Module, macs: int, batch_size: int) -> str:
    """`muon` if its matrix products cost at most half of a training step's own multiplications, else `adamw`.

    A step multiplies about 3 * macs * batch_size times, forward and backward; Muon's orthogonalization of an m x n
    matrix (m <= n) takes at most about ROUNDS * (2 m^2 n + m^3). That is little for convolutions, whose weights serve
    every pixel, and up to a hundred times the step for wide linear layers. macs: of one image, forward.
    """
    products = 0
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.ndim > 1:
            if parameter.is_complex():
                return "adamw"
            short, long = sorted((parameter.shape[0], parameter[0].numel()))
            products += ROUNDS * (2 * short**2 * long + short**3)
    return "muon" if products <= MUON_SHARE * 3 * macs * batch_size else "adamw"


def build_optimizer(settings: TrainSettings, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of the settings: `adam` (the paper; weight decay as an L2 term), `adamw` (decoupled decay), `sgd`
    (momentum 0.9 unless set; its L2 term is a decoupled decay without momentum), `muon` (momentum 0.9 unless set;
    decoupled decay).

    Where the layers before the last have a rate of their own, their groups are marked as `body`. Raises ConfigError if
    no parameter requires gradients, or muon gets complex numbers.
    """
    learned = [parameter for parameter in parameters.values() if parameter.requires_grad]
    if not learned:
        raise ConfigError("the model has no parameter that requires gradients: nothing can be learned")
    rule: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    momentum = MOMENTUM if settings.momentum is None else settings.momentum
    head = head_parameters(parameters) if settings.has_body else {*parameters}
    groups = _groups(learned, {id(parameters[name]) for name in head}, settings.decay_biases)
    if settings.optimizer == "muon":
        if any(parameter.is_complex() for parameter in learned):
            raise ConfigError("optimizer 'muon' works on real numbers only, and a parameter is complex: give adam")
        return Muon(groups, momentum=momentum, **rule)
    rule["fused"] = all(parameter.is_floating_point() for parameter in learned)
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=momentum, **rule)
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, **rule)


def _groups(learned: list[nn.Parameter], head: set[int], decay_biases: bool) -> list[dict[str, Any]]:
    """Parameters by how they learn: `body` groups have a rate of their own, biases may be without weight decay."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in learned:
        key = id(parameter) not in head, decay_biases or parameter.ndim > 1
        groups.setdefault(key, []).append(parameter)
    return [
        {"params": members, "body": body, **({} if decays else {"weight_decay": 0.0})}
        for (body, decays), members in sorted(groups.items(), key=lambda group: (group[0][0], not group[0][1]))
    ]


def set_rate(optimizer: torch.optim.Optimizer, rate: float, body: float = 1.0) -> None:
    """Set the learning rate; groups marked as `body` get `body` times as much."""
    for group in optimizer.param_groups:
        group["lr"] = rate * body if group["body"] else rate


QUINTIC = (3.4445, -4.7750, 2.0315)
"""a x + b x^3 + c x^5 takes every singular value of 0.01 to 1 to about 0.7 to 1.2 in five rounds (Jordan 2024)."""
ROUNDS = 5
WIDE = 2
"""Of matrices with more columns than this many times their rows, the Gram matrices go through the rounds (up to 2.7
times faster for 3x3 convolutions, two threads)."""
ADAM_SIZE = 0.2
"""Root mean square of an element of Adam's step, in units of the rate (Liu et al. 2025, arXiv 2502.16982, 2.2)."""
BETAS, EPS = (0.9, 0.95), 1e-8
TINY = 1e-30


class Muon(torch.optim.Optimizer):
    """Orthogonalized Nesterov momentum with decoupled weight decay for matrices, Adam without decay for all else.

    The momentum of a weight matrix is replaced by the nearest matrix whose singular values are all about one, so that
    rare directions of the gradient are learned as fast as common ones (Jordan et al. 2024). Kernels of convolutions
    count as matrices `[out, in * kernel]`. Steps have the size of Adam's, so one rate serves both.

    torch.optim.Muon is not used: it takes 2-D parameters only, orthogonalizes in bfloat16 (10 to 17 times slower than
    float32 for matrices of 96 x 864 to 192 x 1728 on a CPU without bfloat16 units, one thread, best of 20), reads the
    rate on the host, which a CUDA graph cannot, and knows no `found_inf`.
    """

    def __init__(self, parameters: Iterable[Any], *, lr: float, momentum: float, weight_decay: float) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; a closure is not called.

        With a tensor as learning rate nothing waits for the device, so that a CUDA graph may hold the step; if the
        tensor `found_inf` is 1, nothing changes.
        """
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        tensors = [] if found_inf is None else self._updated_tensors()
        saved = [tensor.clone() for tensor in tensors]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.numel():
                    update = self._update_matrix if parameter.ndim > 1 else self._update_other
                    update(parameter, self.state[parameter], group)
        if found_inf is not None:
            for tensor, before in zip(tensors, saved, strict=True):
                tensor.copy_(torch.where(found_inf > 0, before, tensor))

    def _updated_tensors(self) -> list[Tensor]:
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        return [*parameters, *(slot for parameter in parameters for slot in self.state[parameter].values())]

    def _update_matrix(self, parameter: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        gradient, beta, rate = parameter.grad, group["momentum"], group["lr"]
        assert gradient is not None
        state["momentum"].mul_(beta).add_(gradient)
        nesterov = gradient.add(state["momentum"], alpha=beta)
        matrix = nesterov.flatten(1)
        size = ADAM_SIZE * max(matrix.shape[-2:]) ** 0.5
        parameter.mul_(1 - rate * group["weight_decay"])
        direction = orthogonal(matrix).reshape(parameter.shape)
        if isinstance(rate, Tensor):
            parameter.sub_(direction * (rate * size))
        else:
            parameter.add_(direction, alpha=-rate * size)

    def _update_other(self, parameter: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        gradient, rate, (beta1, beta2) = parameter.grad, group["lr"], BETAS
        assert gradient is not None
        on_device = isinstance(rate, Tensor)
        if not state:
            state["step"] = torch.zeros((), device=rate.device if on_device else None)
            state |= {"exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
        state["step"] += 1
        count = state["step"] if on_device else float(state["step"])
        state["exp_avg"].lerp_(gradient, 1 - beta1)
        state["exp_avg_sq"].lerp_(gradient.square(), 1 - beta2)
        root = (state["exp_avg_sq"] / (1 - beta2**count)).sqrt_().add_(EPS)
        if on_device:
            parameter.sub_(state["exp_avg"] / root * (rate / (1 - beta1**count)))
        else:
            parameter.addcdiv_(state["exp_avg"], root, value=-rate / (1 - beta1**count))


def orthogonal(matrix: Tensor) -> Tensor:
    """About U V^T of the matrices' singular value decomposition U S V^T: float32 `[..., M, N]` of `[..., M, N]`.

    Singular values come out between about 0.7 and 1.2, those below a hundredth of the norm smaller; zeros stay zeros.
    """
    a, b, c = QUINTIC
    tall = matrix.shape[-2] > matrix.shape[-1]
    x: Tensor = matrix.float().mT if tall else matrix.float()
    x = x / x.abs().amax((-2, -1), keepdim=True).clamp(min=TINY)  # squares of very large numbers are infinite
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=TINY)
    gram, product = x @ x.mT, None
    wide = x.shape[-1] > WIDE * x.shape[-2]
    for number in range(1, ROUNDS + 1):
        factor = (b * gram).add_(gram @ gram, alpha=c)
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        if wide:  # the factors commute: x, which is larger than they are, is multiplied once at the end
            product = factor if product is None else product @ factor
        else:
            x = factor @ x
        if number < ROUNDS:
            gram = factor @ gram @ factor if wide else x @ x.mT
    x = x if product is None else product @ x
    return x.mT if tall else x
