"""Losses, metrics and schedules against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import noisyteacher as nt
from noisyteacher import metrics
from noisyteacher.errors import MismatchError, TrainingError, UsageError
from noisyteacher.train.state import rate_factor


def test_logit_regression_by_hand() -> None:
    student = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    teacher = torch.tensor([[0.0, 4.0, 3.0], [1.0, 1.0, 2.0]])
    assert float(nt.logit_regression(student, teacher)) == pytest.approx((1 + 4 + 0 + 1 + 1 + 4) / 4)
    assert float(nt.logit_regression(student, teacher)) == pytest.approx(float(F.mse_loss(student, teacher)) * 3 / 2)


def test_logit_regression_refuses_broadcasting() -> None:
    with pytest.raises(MismatchError, match=r"\[4, 10\].*\[4, 1\]"):
        nt.logit_regression(torch.ones(4, 10), torch.ones(4, 1))
    with pytest.raises(MismatchError):
        nt.logit_regression(torch.ones(10), torch.ones(10))


def test_soft_targets_by_hand() -> None:
    """K = 2: softmax([a, b] / T) is a logistic of the difference; T^2 times the mean of the divergences."""
    student, teacher, temperature = torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([[3.0, 0.0], [2.0, 0.0]]), 3.0
    p = 1 / (1 + math.exp(-1.0))
    divergence = p * math.log(p / 0.5) + (1 - p) * math.log((1 - p) / 0.5)
    expected = temperature**2 * divergence / 2
    assert float(nt.soft_targets(student, teacher, temperature)) == pytest.approx(expected, rel=1e-5)
    assert float(nt.soft_targets(teacher, teacher)) == pytest.approx(0.0, abs=1e-7)
    with pytest.raises(UsageError, match="temperature"):
        nt.soft_targets(student, teacher, 0.0)


def test_soft_targets_keep_the_gradient_size_at_high_temperature() -> None:
    """Hinton et al., Eq. 4: for T large the gradient is (centred g - centred z) / K, whatever T."""
    teacher = torch.tensor([[1.0, -2.0, 1.0]])
    student = torch.tensor([[0.5, 0.5, -1.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(nt.soft_targets(student, teacher, 500.0), student)
    assert torch.allclose(gradient, (student.detach() - teacher) / 3, atol=5e-3)


def test_metrics_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 0.5]])
    labels = torch.tensor([0, 1, 1, 1])
    assert metrics.accuracy(logits, labels) == 75.0
    assert metrics.error(logits, labels) == 25.0
    terms = [math.log1p(math.exp(-2)), math.log1p(math.exp(-1)), math.log1p(math.exp(3)), math.log1p(math.exp(-0.5))]
    assert metrics.nll(logits, labels) == pytest.approx(sum(terms) / 4)
    assert metrics.agreement(logits, torch.tensor([[1.0, 0.0]]).expand(4, 2)) == 50.0
    with pytest.raises(MismatchError):
        metrics.agreement(logits, torch.ones(4, 3))


def test_ece_by_hand() -> None:
    """Two bins: confidences .6 and .7 with one of two right, .9 with one of one right."""
    confidence = torch.tensor([0.6, 0.7, 0.9])
    logits = torch.stack([confidence.log(), (1 - confidence).log()], 1)
    labels = torch.tensor([0, 1, 0])
    expected = 100 * (abs(1 - 0.6 + 0 - 0.7) + abs(1 - 0.9)) / 3
    assert metrics.ece(logits, labels, bins=5) == pytest.approx(expected, rel=1e-4)


def test_schedules() -> None:
    assert [rate_factor("linear", step, 4) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]
    assert rate_factor("constant", 3, 4) == 1.0
    assert rate_factor("cosine", 5, 10) == pytest.approx(0.5)
    assert [rate_factor("step", s, 8) for s in (3, 4, 6)] == [1.0, 0.1, 0.01]
    assert [rate_factor("linear", step, 6, 2) for step in range(6)] == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]


def test_an_empty_batch_has_no_loss() -> None:
    for loss in (nt.logit_regression, nt.soft_targets):
        with pytest.raises(MismatchError, match=r"\[0, 3\].*at least one row"):
            loss(torch.ones(0, 3), torch.ones(0, 3))


@pytest.mark.parametrize("temperature", [math.inf, math.nan, -1.0, "4", None])
def test_a_temperature_is_a_finite_number_above_0(temperature: object) -> None:
    with pytest.raises(UsageError, match="temperature="):
        nt.soft_targets(torch.ones(2, 3), torch.zeros(2, 3), temperature)  # type: ignore[arg-type]


def test_agreement_refuses_what_it_cannot_mean() -> None:
    with pytest.raises(MismatchError, match=r"\[0, 3\].*N >= 1"):
        metrics.agreement(torch.ones(0, 3), torch.ones(0, 3))
    with pytest.raises(MismatchError, match="N >= 1"):
        metrics.agreement(torch.ones(3), torch.ones(3))
    for logits in (torch.full((2, 3), math.nan), torch.tensor([[0.0, 1.0, 2.0], [0.0, math.inf, 0.0]])):
        with pytest.raises(TrainingError, match="not finite"):
            metrics.agreement(torch.ones(2, 3), logits)


def test_reliability_by_hand() -> None:
    """Five bins (0.2 wide): .55 wrong in the third; .7 right and .75 wrong in the fourth; .9 right in the last."""
    confidence = torch.tensor([0.7, 0.9, 0.55, 0.75], dtype=torch.float64)
    logits = torch.stack([confidence.log(), (1 - confidence).log()], 1)
    rows, sums, hits = metrics.reliability(logits, torch.tensor([0, 0, 1, 1]), bins=5)
    assert rows.tolist() == [0, 0, 1, 2, 1]
    assert sums.tolist() == pytest.approx([0, 0, 0.55, 1.45, 0.9])
    assert hits.tolist() == [0, 0, 0, 1, 1]


def test_a_confidence_on_an_edge_belongs_to_the_bin_below() -> None:
    """One half of four bins is the end of the second; certainty is in the last."""
    rows, sums, _ = metrics.reliability(torch.tensor([[0.0, 0.0], [900.0, 0.0]]), torch.tensor([0, 0]), bins=4)
    assert rows.tolist() == [0, 1, 0, 1]
    assert sums.tolist() == [0, 0.5, 0, 1.0]


def test_confusion_by_hand() -> None:
    """Of class 0 two right and one taken for 2; one of class 1 taken for 0; one of class 2 right; none of class 3."""
    chosen = torch.tensor([0, 2, 0, 2, 0])
    logits = F.one_hot(chosen, 4).float()
    counts = metrics.confusion(logits, torch.tensor([0, 0, 1, 2, 0]))
    assert counts.dtype == torch.int64
    assert counts.tolist() == [[2, 0, 1, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
