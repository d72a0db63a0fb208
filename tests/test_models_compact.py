"""The compact students against arithmetic by hand, the paper's students, and what makes them easy to ship."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import noisyteacher as nt
from helpers import part
from noisyteacher.errors import UnknownNameError, UsageError
from noisyteacher.models import COMPACT, Classifier, build_model, load_model, save_model
from noisyteacher.models.networks import Residual

COLOUR = (3, 32, 32)
PAIRS = {"compact-xs": ("student3", 33.3), "compact-s": ("student2", 19.9), "compact-m": ("student1", 3.66)}
"""The paper's student each must beat, and the paper's ratio of NIN's multiplications to that student's."""
NIN_MACS, NIN_PARAMETERS = 222_486_528, 966_986
PARAMETERS = {"compact-xs": 150_000, "compact-s": 300_000, "compact-m": 900_000}


def small(name: str = "compact-xs", **options: Any) -> Classifier:
    return build_model(name, classes=10, input_shape=COLOUR, **options)


def block(inputs: int, outputs: int, side: int, halves: bool = True) -> tuple[int, int]:
    """Parameters and multiplications of a block that ends at side x side, added up as on paper."""
    weights = 9 * inputs * outputs + 9 * outputs * outputs + (inputs * outputs if halves else 0)
    return weights + (6 if halves else 4) * outputs, weights * side * side


def test_costs_are_those_of_the_arithmetic_by_hand() -> None:
    stem = 9 * 3 * 16
    blocks = [block(16, 24, 16), block(24, 48, 8), block(48, 80, 4)]
    costs = nt.measure(small(), latency=False)
    assert costs.parameters == stem + 2 * 16 + sum(weights for weights, _ in blocks) + 80 * 10 + 10 == 139_466
    assert costs.macs == stem * 1024 + sum(macs for _, macs in blocks) + 80 * 10 == 6_353_696
    assert costs.unsupported == ()
    blocks = [block(16, 32, 16), block(32, 48, 8), block(48, 48, 8, halves=False), block(48, 96, 4)]
    costs = nt.measure(small("compact-s"), latency=False)
    assert costs.parameters == stem + 2 * 16 + sum(weights for weights, _ in blocks) + 96 * 10 + 10 == 223_610
    assert costs.macs == stem * 1024 + sum(macs for _, macs in blocks) + 96 * 10 == 11_142_080


@pytest.mark.parametrize("name", COMPACT)
def test_every_member_is_cheaper_than_the_papers_student_in_every_way(name: str) -> None:
    costs = nt.measure(small(name), latency=False)
    student, ratio = PAIRS[name]
    theirs = nt.measure(small(student), latency=False)
    assert costs.macs <= NIN_MACS / ratio
    assert costs.macs < theirs.macs
    assert costs.parameters < min(PARAMETERS[name], NIN_PARAMETERS, theirs.parameters)
    assert costs.bytes < min(nt.measure(small("nin"), latency=False).bytes, theirs.bytes)


@pytest.mark.parametrize(
    "shape", [(1, 28, 28), (3, 8, 8), (1, 8, 9), (2, 33, 31), (3, 64, 64), (3, 96, 128), (3, 224, 224)]
)
def test_answers_for_images_of_any_size(shape: tuple[int, int, int]) -> None:
    for name in COMPACT:
        model = build_model(name, classes=7, input_shape=shape)
        images = torch.randint(0, 256, (2, *shape), dtype=torch.uint8)
        assert model.eval()(images).shape == (2, 7)
        model.train()(images).sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


def test_large_images_are_halved_before_they_cost_much() -> None:
    """A stem of stride 2 for every halving, until the shorter side is below 96 pixels."""
    strides = {
        side: [part(model.network, name)[0].stride[0] for name, _ in model.network.named_children() if "stem" in name]
        for side in (8, 32, 95, 96, 190, 192, 224)
        for model in [build_model("compact-xs", classes=2, input_shape=(3, side, side + 7))]
    }
    assert strides == {8: [1], 32: [1], 95: [1], 96: [2], 190: [2], 192: [2, 2], 224: [2, 2]}
    macs = [nt.measure(build_model("compact-xs", classes=10, input_shape=(3, side, side)), latency=False).macs
            for side in (32, 64, 224)]  # fmt: skip
    assert macs[2] < 5 * macs[0] < 1.3 * macs[1]


@pytest.mark.parametrize("name", COMPACT)
def test_a_block_starts_as_its_shortcut_and_learns_to_be_more(name: str) -> None:
    model = small(name)
    residuals = [module for module in model.modules() if isinstance(module, Residual)]
    assert len(residuals) == sum(blocks for _, blocks in COMPACT[name].stages)
    for module in residuals:
        x = torch.randn(2, part(module, "first.conv").in_channels, 6, 6)
        module.eval()
        torch.testing.assert_close(module(x), module.shortcut(x).relu())
        module.train()(x).square().sum().backward()
        assert part(module, "second.norm").weight.grad.abs().sum() > 0


def test_all_is_dense_convolution_batch_norm_and_relu() -> None:
    """What fuses and what int8 kernels know; a bias in front of a batch norm would be dead weight."""
    allowed = {"Conv2d", "BatchNorm2d", "ReLU", "Identity", "AdaptiveAvgPool2d", "Flatten", "Head"}
    for name in COMPACT:
        leaves = [module for module in small(name).network.modules() if not list(module.children())]
        assert {type(layer).__name__ for layer in leaves} <= allowed
        convolutions = [layer for layer in leaves if isinstance(layer, nn.Conv2d)]
        assert all(layer.groups == 1 and layer.bias is None for layer in convolutions)
        assert len(convolutions) == sum(isinstance(layer, nn.BatchNorm2d) for layer in leaves)


def test_weights_are_he_normal_inside_blocks_too() -> None:
    model = small("compact-m")
    for path, fan_in in (("stage2_2.first.conv", 9 * 112), ("stage3_1.shortcut.conv", 112)):
        weight = part(model, f"network.{path}").weight
        assert weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.02)
        # A normal has 4.55 % beyond two deviations, torch's default uniform none.
        assert (weight.abs() > 2 * weight.std()).float().mean().item() == pytest.approx(0.0455, abs=0.005)
    assert not part(model, "network.fc").bias.any()


def test_a_trained_one_comes_back_with_its_running_statistics(tmp_path: Path) -> None:
    data = nt.load_data("mnist-5k", limit=100)
    model = build_model("compact-xs", data, width=0.5)
    history = nt.fit(model, data.train, nt.supervised(), val=data.val, epochs=2, lr=3e-3, keep="last")
    assert history.epochs[1]["train/loss"] < history.epochs[0]["train/loss"]
    save_model(model, tmp_path / "m.safetensors")
    back = load_model(tmp_path / "m.safetensors")
    images = data.test.images_at(torch.arange(20))  # type: ignore[union-attr]
    assert torch.equal(back(images), model.eval()(images))
    assert back.architecture["options"] == {"width": 0.5}
    assert part(back, "network.stem1.norm").running_var.min() != 1


def test_width_multiplies_the_channels_in_steps_of_eight() -> None:
    assert small().architecture["options"] == {"width": 1.0}
    assert part(small(width=0.5), "network.fc").in_features == 40
    assert part(small(width=2), "network.fc").in_features == 160
    assert part(small(width=0.01), "network.fc").in_features == 8
    for wrong in (0, -1.0, 17, True, "wide"):
        with pytest.raises(UsageError, match="multiplies the channels"):
            small(width=wrong)
    with pytest.raises(UnknownNameError, match="did you mean 'width'"):
        small(widht=2)
    with pytest.raises(UnknownNameError, match="did you mean 'compact-xs'"):
        small("compact-xl")


def test_torch_export_takes_it_with_any_batch() -> None:
    model = small().eval()
    images = torch.randint(0, 256, (4, *COLOUR), dtype=torch.uint8)
    exported = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    other = torch.randint(0, 256, (7, *COLOUR), dtype=torch.uint8)
    torch.testing.assert_close(exported.module()(other), model(other))


def test_a_width_can_stand_in_the_name(tmp_path: Path) -> None:
    named, with_option = small("compact-s:0.75"), small("compact-s", width=0.75)
    assert named.architecture == with_option.architecture
    for ours, theirs in zip(named.parameters(), with_option.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    save_model(named, tmp_path / "m.safetensors")
    assert load_model(tmp_path / "m.safetensors").architecture == {
        "name": "compact-s", "classes": 10, "input_shape": [3, 32, 32], "options": {"width": 0.75},
        "preprocess": "scale",
    }  # fmt: skip
    # channels 16, 24, 40, 72 by hand: 16 * 0.75 = 12 and 48 * 0.75 = 36 go to the even number of eights
    stem, blocks = 9 * 3 * 16, [block(16, 24, 16), block(24, 32, 8), block(32, 32, 8, halves=False), block(32, 72, 4)]
    assert nt.measure(named, latency=False).macs == stem * 1024 + sum(macs for _, macs in blocks) + 72 * 10
    with pytest.raises(UsageError, match=r"'compact-s:wide': expected compact-s:WIDTH, .* such as compact-s:0.75"):
        small("compact-s:wide")
    with pytest.raises(UsageError, match="'mlp128:64': mlp128 has no width to choose"):
        small("mlp128:64")
    with pytest.raises(UsageError, match="multiplies the channels"):
        small("compact-s:0")
    with pytest.raises(UsageError, match="keep one of them"):
        small("compact-s:0.5", width=0.5)
