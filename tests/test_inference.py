"""A model in eval mode and channels-last format for a while, and as it was afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from helpers import part
from noisyteacher.device import channels_last, inference


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten())


def test_modes_gradients_and_weights_are_restored() -> None:
    model = network()
    model[1].eval()
    weight = part(model, "0").weight
    images = torch.rand(4, 3, 8, 8)

    def fail() -> None:
        with inference(model) as device, channels_last(model, images):
            assert device.type == "cpu"
            assert not any(module.training for module in model.modules())
            assert not torch.is_grad_enabled()
            assert part(model, "0").weight is weight
            assert weight.is_contiguous(memory_format=torch.channels_last)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [module.training for module in model] == [True, False, True, True]
    assert torch.is_grad_enabled()
    assert weight.is_contiguous()


def test_a_change_of_the_weights_inside_is_kept() -> None:
    model = network()
    with channels_last(model, torch.rand(2, 3, 8, 8)), torch.no_grad():
        part(model, "0").weight.fill_(2.0)
    assert bool((part(model, "0").weight == 2.0).all())


def test_a_model_that_fails_in_channels_last_format_is_left_alone() -> None:
    class Viewed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.conv(x)
            return out.view(len(out), -1)

    model = Viewed()
    with inference(model), channels_last(model, torch.rand(2, 3, 8, 8)):
        assert model.conv.weight.is_contiguous()
