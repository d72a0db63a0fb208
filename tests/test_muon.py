"""Muon against singular values, a plain-Python twin, and torch's own Adam."""

from __future__ import annotations

import copy

import pytest
import torch

from noisyteacher.config.schema import TrainSettings
from noisyteacher.errors import ConfigError
from noisyteacher.train.optim import ADAM_SIZE, Muon, build_optimizer, orthogonal


def quintic(value: float, rounds: int = 5) -> float:
    for _ in range(rounds):
        value = 3.4445 * value - 4.7750 * value**3 + 2.0315 * value**5
    return value


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (9, 9), (2, 5, 12)])
def test_orthogonal_keeps_directions_and_evens_their_sizes(shape: tuple[int, ...]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, sizes, v = torch.linalg.svd(matrix, full_matrices=False)
    turned = u.mT @ orthogonal(matrix) @ v.mT  # in the matrix's own directions
    norm = sizes.square().sum(-1, keepdim=True).sqrt()
    expected = torch.diag_embed((sizes / norm).double().apply_(quintic).float())
    torch.testing.assert_close(turned, expected, rtol=1e-3, atol=1e-4)
    assert 0.6 < float(turned.diagonal(dim1=-2, dim2=-1).min()) <= float(turned.max()) < 1.3


def test_zeros_stay_zeros() -> None:
    assert torch.equal(orthogonal(torch.zeros(3, 7)), torch.zeros(3, 7))


def test_two_steps_of_a_matrix_by_hand() -> None:
    weight = torch.nn.Parameter(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    rule = Muon([weight], lr=0.1, momentum=0.5, weight_decay=0.2)
    here, kept = [1.0, 2.0], [0.0, 0.0]
    for gradient in ([3.0, 4.0], [-1.0, 2.0]):
        weight.grad = torch.diag(torch.tensor(gradient))
        rule.step()
        kept = [0.5 * old + new for old, new in zip(kept, gradient, strict=True)]
        ahead = [new + 0.5 * old for old, new in zip(kept, gradient, strict=True)]
        norm = sum(value**2 for value in ahead) ** 0.5
        steps = [quintic(value / norm) * ADAM_SIZE * 2**0.5 for value in ahead]
        here = [old * (1 - 0.1 * 0.2) - 0.1 * step for old, step in zip(here, steps, strict=True)]
    torch.testing.assert_close(weight.detach(), torch.diag(torch.tensor(here)), rtol=1e-5, atol=1e-6)


def test_a_copy_goes_on_as_the_one_it_was_made_of() -> None:
    rule = Muon([torch.nn.Parameter(torch.eye(3).expand(2, 3, 3).clone())], lr=0.1, momentum=0.5, weight_decay=0.0)
    weights = []
    for optimizer in (rule, copy.deepcopy(rule)):
        (weight,) = optimizer.param_groups[0]["params"]
        weight.grad = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(1))
        optimizer.step()
        weights.append(weight.detach())
    assert torch.equal(*weights)


def test_what_is_no_matrix_goes_by_adam_without_decay() -> None:
    ours, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, 7)) for _ in range(2))
    rule = Muon([ours], lr=0.03, momentum=0.9, weight_decay=0.5)
    adam = torch.optim.Adam([theirs], lr=0.03, betas=(0.9, 0.95))
    for seed in range(5):
        gradient = torch.randn(7, generator=torch.Generator().manual_seed(seed))
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        rule.step()
        adam.step()
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e30])
def test_a_step_has_the_size_of_adams_however_large_the_gradients(scale: float) -> None:
    weight = torch.nn.Parameter(torch.zeros(64, 16, 3, 3))
    rule = Muon([weight], lr=0.01, momentum=0.9, weight_decay=0.0)
    weight.grad = scale * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    rule.step()
    assert float(weight.detach().square().mean().sqrt()) == pytest.approx(0.01 * ADAM_SIZE, rel=0.25)


def test_what_is_empty_stays_and_what_is_complex_is_refused() -> None:
    learned = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((0, 3), (2, 0), (2,))]
    for parameter in learned:
        parameter.grad = torch.ones_like(parameter)
    build_optimizer(TrainSettings(optimizer="muon", lr=0.1), dict(zip("abc", learned, strict=True))).step()
    torch.testing.assert_close(learned[2].detach(), torch.full((2,), -0.1))
    wave = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))
    with pytest.raises(ConfigError, match="complex"):
        build_optimizer(TrainSettings(optimizer="muon", lr=0.1), {"wave": wave})
