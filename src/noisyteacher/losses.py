"""The losses, as pure functions of student logits and targets. All are means over the batch; all work in fp32."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from noisyteacher.errors import ConfigError, MismatchError


def logit_regression(student: Tensor, teacher: Tensor) -> Tensor:
    """1/(2T) * sum over the T samples of ||g - z||^2, a scalar. Both `[T, K]`.

    Not `F.mse_loss`, which divides by T*K and is smaller by the factor K/2.
    Raises MismatchError unless the shapes are equal (a teacher with one output would broadcast silently) and T >= 1.
    Source: Ba & Caruana 2014; Sau & Balasubramanian 2016, Eq. 1 (and Eq. 3 with perturbed teacher logits).

    >>> import torch
    >>> float(logit_regression(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]])))  # (1 + 4) / 2
    2.5
    """
    check_pair(student, teacher)
    return (student.float() - teacher.float()).square().sum() / (2 * student.shape[0])


def soft_targets(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """T^2 * KL(softmax(z/T) || softmax(g/T)), mean over the batch, a scalar. Both `[B, K]`.

    The factor T^2 keeps the gradient's size when the temperature changes. Zero when the two agree.
    Raises MismatchError unless the shapes are equal and B >= 1, ConfigError unless temperature is finite and above 0.
    Source: Hinton, Vinyals & Dean 2015, section 2.
    """
    check_pair(student, teacher)
    check_temperature(temperature)
    log_student = F.log_softmax(student.float() / temperature, dim=1)
    log_teacher = F.log_softmax(teacher.float() / temperature, dim=1)
    divergence = (log_teacher.exp() * (log_teacher - log_student)).sum() / student.shape[0]
    return divergence * temperature**2


def cross_entropy(student: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """-log softmax(g)[label], mean over the batch, a scalar. Logits `[B, K]`, labels int64 `[B]`, in nats.

    smoothing: the share of each target that is spread evenly over all K classes (Szegedy et al. 2016).
    """
    return F.cross_entropy(student.float(), labels, label_smoothing=smoothing)


def check_temperature(temperature: float) -> None:
    """Raises ConfigError unless the temperature is a finite number above 0."""
    if isinstance(temperature, bool) or not isinstance(temperature, (int, float)) or not 0 < temperature < math.inf:
        raise ConfigError(f"temperature={temperature!r}: expected a finite number above 0")


def check_pair(student: Tensor, teacher: Tensor) -> None:
    """Raises MismatchError unless both are `[B, K]` of one shape with B >= 1."""
    if student.dim() != 2 or student.shape != teacher.shape or not len(student):
        raise MismatchError(
            f"student logits {list(student.shape)}, teacher logits {list(teacher.shape)}: both must be [B, K] with the "
            "same batch of at least one row and the same classes in the same order"
        )
