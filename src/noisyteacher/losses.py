"""The losses, as pure functions of student logits and targets. All are means over the batch; all work in fp32."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from noisyteacher.errors import ConfigError, MismatchError


def logit_regression(student: Tensor, teacher: Tensor) -> Tensor:
    """1/(2B) * sum over the B samples of ||g - z||^2, a scalar. Both `[B, K]`.

    Not `F.mse_loss`, which divides by B*K and is smaller by the factor K/2.
    Raises MismatchError unless the shapes are equal (a teacher with one output would broadcast silently) and B >= 1.
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
    check_pair(student, teacher, temperature)
    log_student = F.log_softmax(student.float() / temperature, dim=1)
    log_teacher = F.log_softmax(teacher.float() / temperature, dim=1)
    divergence = (log_teacher.exp() * (log_teacher - log_student)).sum() / student.shape[0]
    return divergence * temperature**2


def dist(
    student: Tensor, teacher: Tensor, *, temperature: float = 1.0, beta: float = 1.0, gamma: float = 1.0
) -> Tensor:
    """T^2 (beta * mean over rows of 1 - rho + gamma * mean over classes of 1 - rho), a scalar. Both `[B, K]`.

    rho is Pearson's correlation of student's and teacher's softmax(. / T): of a row over its classes, of a class over
    the rows of the batch. 1 - rho is half the squared distance of unit vectors; a vector shorter than 1e-6 around its
    mean (a single row, a class that no row prefers) has no direction, counts as 0, and has a finite gradient.
    Raises as `soft_targets`. Source: Huang et al., NeurIPS 2022 (DIST), section 3, the factor T^2 as in their code.
    """
    check_pair(student, teacher, temperature)

    def directions(logits: Tensor, dim: int) -> Tensor:
        p = (logits.float() / temperature).softmax(1)
        return F.normalize(p - p.mean(dim, keepdim=True), dim=dim, eps=1e-6)

    rows, classes = ((directions(teacher, dim) - directions(student, dim)).square().sum(dim).mean() for dim in (1, 0))
    return (beta * rows + gamma * classes) * temperature**2 / 2


def dkd(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    *,
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Tensor:
    """T^2 (alpha * KL of (p_y, 1 - p_y) + beta * KL over the other classes), mean over the batch, a scalar.

    Logits `[B, K]`, target y int64 `[B]`, p = softmax(. / T); the other classes' probabilities are divided by 1 - p_y,
    so that KL(teacher || student) is the first term plus (1 - p_y of the teacher) times the second. For K = 2 the
    second is 0. Computed from the log-odds of y, which neither overflow nor lose 1 - p_y where p_y is nearly 1.
    Raises as `soft_targets`, and MismatchError for a target of another shape.
    Source: Zhao et al., CVPR 2022 (DKD), Eqs. 6 and 7, without their warm-up of the weight.
    """
    check_pair(student, teacher, temperature)
    if target.shape != student.shape[:1]:
        raise MismatchError(f"targets {list(target.shape)}: expected one class per row, [{student.shape[0]}]")
    is_target = target[:, None] == torch.arange(student.shape[1], device=target.device)

    def split(logits: Tensor) -> tuple[Tensor, Tensor]:
        """Log-odds of the target `[B]`, log-probabilities of the other classes among themselves (0 at the target)."""
        scaled = logits.float() / temperature
        non_target = scaled.masked_fill(is_target, -math.inf)
        odds = scaled.masked_fill(~is_target, 0.0).sum(1) - non_target.logsumexp(1)
        return odds, non_target.log_softmax(1).masked_fill(is_target, 0.0)

    (odds, rest), (teacher_odds, teacher_rest) = split(student), split(teacher)
    of_rest = (teacher_rest.exp() * (teacher_rest - rest)).sum(1)
    of_target = sum(
        (sign * teacher_odds).sigmoid() * (F.logsigmoid(sign * teacher_odds) - F.logsigmoid(sign * odds))
        for sign in (1, -1)
    )
    return (alpha * of_target + beta * of_rest).mean() * temperature**2


def ttm(student: Tensor, teacher: Tensor, *, temperature: float = 4.0, weighted: bool = False) -> Tensor:
    """KL(softmax(z/T) || softmax(g)), mean over the batch, a scalar; T is the teacher's alone. Both `[B, K]`.

    Its minimum, 0, is at g = z/T, up to a constant of each row. weighted: every row counts sum_k p_k^(1/T) times, with
    p = softmax(z): more, the less certain the teacher is. Raises as `soft_targets`.
    Source: Zheng & Yang, ICLR 2024 (TTM, weighted: WTTM), whose gamma is 1/T; they tune it (0.1 in their example).
    """
    check_pair(student, teacher, temperature)
    log_teacher = F.log_softmax(teacher.float() / temperature, dim=1)
    rows = (log_teacher.exp() * (log_teacher - F.log_softmax(student.float(), dim=1))).sum(1)
    if weighted:
        rows = rows * (F.log_softmax(teacher.float(), dim=1) / temperature).exp().sum(1)
    return rows.mean()


def standardized(logits: Tensor) -> Tensor:
    """Each row of logits `[B, K]` minus its mean, divided by its standard deviation (over K, not K - 1).

    1e-5 is added to the variance, so that a row of equal logits becomes 0 and its gradient stays finite.
    Source: Sun et al., CVPR 2024 (logit standardisation).
    """
    return F.layer_norm(logits.float(), logits.shape[-1:])


def check_temperature(temperature: float) -> None:
    """Raises ConfigError unless the temperature is a finite number above 0."""
    if isinstance(temperature, bool) or not isinstance(temperature, (int, float)) or not 0 < temperature < math.inf:
        raise ConfigError(f"temperature={temperature!r}: expected a finite number above 0")


def check_pair(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> None:
    """Raises MismatchError unless both are `[B, K]` of one shape with B >= 1, ConfigError for a wrong temperature."""
    if student.dim() != 2 or student.shape != teacher.shape or not len(student):
        raise MismatchError(
            f"student logits {list(student.shape)}, teacher logits {list(teacher.shape)}: both must be [B, K] with the "
            "same batch of at least one row and the same classes in the same order"
        )
    check_temperature(temperature)
