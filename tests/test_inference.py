"""A model in eval mode and channels-last format for a while, and as it was afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import noisyteacher as nt
from helpers import part
from noisyteacher.device import channels_last, inference
from noisyteacher.models import as_classifier


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


class Merging(nn.Module):
    """Like LoRA: eval() adds the second layer's weights to the first's, train() takes them out again."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.merged = nn.Linear(16, 3), nn.Linear(16, 3, bias=False), False

    def train(self, mode: bool = True) -> Merging:
        super().train(mode)
        if self.merged == mode:
            self.first.weight.data += (-1 if mode else 1) * self.second.weight.data
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        answers: Tensor = self.first(flat) if self.merged else self.first(flat) + self.second(flat)
        return answers


@pytest.mark.parametrize("mode", [True, False])
def test_a_module_that_works_in_its_own_train_stays_in_its_mode(mode: bool) -> None:
    model, images = Merging().train(mode), torch.rand(4, 1, 4, 4)
    before, weights = model(images), model.first.weight.detach().clone()
    nt.measure(model, (1, 4, 4), latency=False)
    nt.build_model(model, classes=3, input_shape=(1, 4, 4))
    assert (model.merged, model.training) == (not mode, mode)
    assert torch.allclose(model.first.weight, weights)
    assert torch.allclose(model(images), before)
    assert {part.training for part in as_classifier(model).modules()} == {mode}


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
