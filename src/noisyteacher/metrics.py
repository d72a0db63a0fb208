"""Scores of finite logits `[N, K]` against labels int64 `[N]`, N >= 1. Percentages are 0..100, NLL is in nats."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

from noisyteacher.errors import MismatchError, TrainingError


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """The share of rows whose largest logit is the label's, in percent. `[N, K]` and `[N]`."""
    return 100 * int((logits.argmax(1) == labels).sum()) / len(labels)


def error(logits: Tensor, labels: Tensor) -> float:
    """The share of rows whose largest logit is not the label's, in percent. `[N, K]` and `[N]`."""
    return 100 * int((logits.argmax(1) != labels).sum()) / len(labels)


def recall(logits: Tensor, labels: Tensor) -> Tensor:
    """The share of a class's rows whose largest logit is the label's, in percent, float64 `[K]`; nan without rows."""
    hits, rows = (part.bincount(minlength=logits.shape[1]) for part in (labels[logits.argmax(1) == labels], labels))
    return 100 * hits.double() / rows


def balanced_accuracy(logits: Tensor, labels: Tensor) -> float:
    """The mean of `recall` over the classes that have rows, in percent: every class counts the same."""
    return float(recall(logits, labels).nanmean())


def top5(logits: Tensor, labels: Tensor) -> float:
    """The share of rows whose label is among the five largest logits, in percent. `[N, K]` with K >= 5 and `[N]`."""
    return 100 * int((logits.topk(5).indices == labels[:, None]).sum()) / len(labels)


def nll(logits: Tensor, labels: Tensor) -> float:
    """Mean of -log softmax(logits)[label] over the rows, in nats. `[N, K]` and `[N]`."""
    return float(F.cross_entropy(logits.double(), labels))


def best_temperature(logits: Tensor, labels: Tensor) -> float:
    """The T in 0.05..20 for which logits / T have the lowest NLL. `[N, K]` and `[N]`. Source: Guo et al. 2017."""
    best = minimize_scalar(lambda log_t: nll(logits / math.exp(log_t), labels), bounds=(math.log(0.05), math.log(20)))
    return math.exp(best.x)


def ece(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error in percent: |accuracy - confidence| over equal-width bins, weighted by their rows.

    Confidence is the largest softmax probability; bin b holds ((b-1)/bins, b/bins]. `[N, K]` and `[N]`.
    Source: Guo et al. 2017, Eq. 3.
    """
    _, confidence, hits = reliability(logits, labels, bins)
    return 100 * float((hits - confidence).abs().sum()) / len(labels)


def reliability(logits: Tensor, labels: Tensor, bins: int = 15) -> tuple[Tensor, Tensor, Tensor]:
    """Per bin of confidence: rows, the sum of their confidences, how many were right. float64 `[bins]` each.

    Confidence is the largest softmax probability; bin b holds ((b-1)/bins, b/bins]. `[N, K]` and `[N]`.
    """
    confidence, classes = logits.double().softmax(1).max(1)
    bin_index = (confidence * bins).ceil().long().clamp(1, bins) - 1
    rows, confidences, hits = (
        torch.zeros(bins, dtype=torch.float64).index_add(0, bin_index, values)
        for values in (torch.ones_like(confidence), confidence, (classes == labels).double())
    )
    return rows, confidences, hits


def confusion(logits: Tensor, labels: Tensor) -> Tensor:
    """How often each class was taken for each: int64 `[K, K]`, row = label, column = largest logit."""
    classes = logits.shape[1]
    return torch.bincount(labels * classes + logits.argmax(1), minlength=classes**2).view(classes, classes)


def agreement(first: Tensor, second: Tensor) -> float:
    """The share of rows where two models choose the same class, in percent. Both `[N, K]`.

    Raises MismatchError unless they are, and TrainingError for logits that are not finite: the largest of NaNs would be
    class 0.
    """
    if first.shape != second.shape or first.dim() != 2 or not len(first):
        raise MismatchError(f"logits {list(first.shape)} and {list(second.shape)}: expected two [N, K] with N >= 1")
    _check_finite(first)
    _check_finite(second)
    return 100 * int((first.argmax(1) == second.argmax(1)).sum()) / len(first)


def _check_finite(logits: Tensor) -> None:
    rows = torch.isfinite(logits).all(1)
    if not rows.all():
        raise TrainingError(f"logits are not finite, first in row {int(rows.logical_not().nonzero()[0])}")
