"""The trace of a student's Gauss-Newton matrix: what fresh noise on the targets makes small in a long training."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from noisyteacher.data import Split
from noisyteacher.device import inference
from noisyteacher.io.files import Json
from noisyteacher.models import as_classifier
from noisyteacher.objectives import Distillation
from noisyteacher.rng import generator
from noisyteacher.teachers import logits_at

ROWS = 200
"""Training rows over which the trace is a mean."""
EXACT_ELEMENTS = 2_000_000
"""Up to this many elements of one image's Jacobian (classes x parameters) the trace is computed exactly."""
PROBES = 32


@dataclass(frozen=True)
class Trace:
    """Mean over rows of sum_k ||grad g_k||^2, and of sum_k z_k^2 ||grad g_k||^2, in units of what the loss sees.

    weighted: None without a teacher. The standard errors are those of Hutchinson's estimator; 0 where it is exact.
    """

    plain: float
    weighted: float | None
    rows: int
    probes: int = 0
    """Random vectors of Hutchinson's estimator; 0 where the traces are exact."""
    plain_error: float = 0.0
    weighted_error: float = 0.0


def gauss_newton_trace(model: nn.Module, images: Tensor, targets: Tensor | None = None, *, unit: float = 1.0) -> Trace:
    """The trace of J J^T, J the Jacobian of the logits / unit in the learned parameters, in eval mode.

    images: uint8 `[N, C, H, W]`. targets: the teacher's logits `[N, K]` for the weighted trace. Exact for networks with
    a small Jacobian; else Hutchinson's estimator with PROBES random signs per logit. Source: Damian, Ma & Lee 2021
    (label noise drives SGD towards a small trace); Hutchinson 1990.
    """
    classifier = as_classifier(model)
    with inference(classifier) as device, torch.enable_grad():
        learned = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
        images = images.to(device)
        weights = None if targets is None else targets.to(device).float() / unit
        if not learned:
            return Trace(0.0, None if weights is None else 0.0, len(images))
        classes = classifier.classes or classifier(images[:1]).shape[1]
        exact = classes * sum(parameter.numel() for parameter in learned) <= EXACT_ELEMENTS
        if exact:
            squares = _squared_gradients(classifier, images, learned, unit)
            plain = float(squares.sum(1).mean()), 0.0
            weighted = None if weights is None else (float((squares * weights.square()).sum(1).mean()), 0.0)
        else:
            plain = _hutchinson(classifier, images, learned, unit, None)
            weighted = None if weights is None else _hutchinson(classifier, images, learned, unit, weights)
    probes, (weighted_trace, weighted_error) = 0 if exact else PROBES, weighted or (None, 0.0)
    return Trace(plain[0], weighted_trace, len(images), probes, plain[1], weighted_error)


def trace_record(model: nn.Module, split: Split, objective: object, view: str = "clean") -> Json:
    """The Trace of a trained student on ROWS of its training split under a view, as JSON; weighted with a teacher."""
    rows = torch.randperm(len(split), generator=generator(0, "trace"))[:ROWS]
    images = split.images_at(rows, view)
    if not isinstance(objective, Distillation):
        return asdict(gauss_newton_trace(model, images))
    targets = logits_at(objective.teacher, split, rows, view)
    return asdict(gauss_newton_trace(model, images, targets, unit=objective.unit))


def _squared_gradients(model: nn.Module, images: Tensor, learned: list[nn.Parameter], unit: float) -> Tensor:
    """||grad g_k(x_i)||^2, `[N, K]`."""
    squares = []
    for row in range(len(images)):
        logits = model(images[row : row + 1])[0] / unit
        directions = torch.eye(len(logits), device=logits.device)
        gradients = torch.autograd.grad(logits, learned, directions, is_grads_batched=True, allow_unused=True)
        squares.append(sum(part.flatten(1).square().sum(1) for part in gradients if part is not None))
    return torch.stack(squares)  # type: ignore[arg-type]


def _hutchinson(
    model: nn.Module, images: Tensor, learned: list[nn.Parameter], unit: float, weights: Tensor | None
) -> tuple[float, float]:
    """E ||sum_ik v_ik w_ik grad g_k(x_i)||^2 over random signs v is the sum of the squares: cross terms average out."""
    draws = generator(0, "trace probes")
    logits = model(images) / unit
    values = []
    for number in range(PROBES):
        signs = torch.randint(0, 2, logits.shape, generator=draws).to(logits.device).float() * 2 - 1
        direction = signs if weights is None else signs * weights
        gradients = torch.autograd.grad(logits, learned, direction, retain_graph=number < PROBES - 1, allow_unused=True)
        values.append(sum(float(part.square().sum()) for part in gradients if part is not None) / len(images))
    samples = torch.tensor(values, dtype=torch.float64)
    return float(samples.mean()), float(samples.std() / PROBES**0.5)
