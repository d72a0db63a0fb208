"""The nine networks against the numbers of the paper and against arithmetic done by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from helpers import part
from noisyteacher.errors import MismatchError, UnknownNameError, UsageError
from noisyteacher.models import PAPER, build_model
from noisyteacher.models.networks import default_options, paper_network

GREY, COLOUR = (1, 28, 28), (3, 32, 32)

# Weights and biases layer by layer, as one adds them up on paper.
PARAMETERS = {
    "lenet": (20 * 25 + 20) + (50 * 20 * 25 + 50) + (800 * 500 + 500) + (500 * 10 + 10),
    "mlp800": (784 * 800 + 800) + (800 * 800 + 800) + (800 * 10 + 10),
    "mlp128": (784 * 128 + 128) + (128 * 128 + 128) + (128 * 10 + 10),
    "nin": 966_986,
    "lenet-svhn": (32 * 75 + 32) + (64 * 32 * 25 + 64) + (64 * 64 * 1024 + 1024) + (1024 * 10 + 10),
    "lenet-cifar": (64 * 75 + 64) + (128 * 64 * 25 + 128) + (128 * 64 * 1024 + 1024) + (1024 * 10 + 10),
    "alexnet-cifar": 16_327_050,
    "student1": 2_421_754,
    "student2": 1_106_410,
    "student3": 1_092_394,
}


def shape_of(name: str) -> tuple[int, int, int]:
    return GREY if name in ("lenet", "mlp800", "mlp128") else COLOUR


def test_the_networks_are_the_nine_of_the_paper_and_a_small_perceptron() -> None:
    assert set(PAPER) == set(PARAMETERS)
    assert PARAMETERS["lenet"] == 431_080
    assert PARAMETERS["mlp800"] == 1_276_810
    assert PARAMETERS["lenet-svhn"] == 4_259_274
    assert PARAMETERS["lenet-cifar"] == 8_609_674


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_those_of_the_paper(name: str) -> None:
    with torch.device("meta"):
        network = paper_network(name, 10, shape_of(name))
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_answers_one_logit_a_class_for_other_shapes_too(name: str) -> None:
    model = build_model(name, classes=7, input_shape=(2, 33, 30)).eval()
    assert model(torch.zeros((2, 2, 33, 30), dtype=torch.uint8)).shape == (2, 7)


def test_pooling_of_nin_rounds_up() -> None:
    """32 -> 16 -> 8: rounding down (15, 7) would give fewer multiplications than the paper states."""
    network, sizes = paper_network("nin", 10, COLOUR).eval(), []
    for name in ("pool1", "pool2"):
        network.get_submodule(name).register_forward_hook(
            lambda module, inputs, output: sizes.append(output.shape[-2:])
        )
    network(torch.zeros((1, *COLOUR)))
    assert sizes == [(16, 16), (8, 8)]


def test_layers_come_in_the_order_of_the_paper() -> None:
    network = paper_network("nin", 10, COLOUR)
    assert [name for name, _ in network.named_children()] == [
        *("conv1", "relu1", "conv2", "relu2", "conv3", "pool1", "relu3", "drop1"),
        *("conv4", "relu4", "conv5", "relu5", "conv6", "relu6", "pool2", "drop2"),
        *("conv7", "relu7", "conv8", "relu8", "conv9", "pool3", "flatten1"),
    ]
    assert isinstance(network.pool1, nn.MaxPool2d)
    assert isinstance(network.pool2, nn.AvgPool2d)


@pytest.mark.parametrize("name", PARAMETERS)
def test_no_relu_after_the_last_layer(name: str) -> None:
    torch.manual_seed(0)
    network = paper_network(name, 10, shape_of(name)).eval()
    assert network(torch.randn((4, *shape_of(name)))).min() < 0


def test_nin_with_its_last_relu_has_no_negative_logit() -> None:
    torch.manual_seed(0)
    network = paper_network("nin", 10, COLOUR, final_relu=True).eval()
    logits = network(torch.randn((4, *COLOUR)))
    assert logits.min() >= 0
    assert logits.max() > 0


def test_dropout_stands_behind_hidden_fully_connected_layers_only() -> None:
    names = [name for name, _ in paper_network("mlp800", 10, GREY, dropout=0.4).named_children()]
    assert names == ["flatten1", "fc1", "relu1", "drop1", "fc2", "relu2", "drop2", "fc3"]
    network = paper_network("lenet-cifar", 10, COLOUR, dropout=0.4)
    drops = [module for module in network if isinstance(module, nn.Dropout)]
    assert [drop.p for drop in drops] == [0.4]
    torch.manual_seed(0)
    share = (part(network, "drop1")(torch.ones(100_000)) == 0).float().mean()
    assert abs(share - 0.4) < 0.01  # the probability to DROP


def test_dropout_replaces_the_half_that_nin_and_alexnet_state() -> None:
    assert default_options("nin")["dropout"] == 0.5
    assert default_options("student1")["dropout"] == 0.0
    for name in ("nin", "alexnet-cifar"):
        with torch.device("meta"):
            usual, other = paper_network(name, 10, COLOUR), paper_network(name, 10, COLOUR, dropout=0.25)
            none = paper_network(name, 10, COLOUR, dropout=0)
        assert [module.p for module in usual if isinstance(module, nn.Dropout)] == [0.5, 0.5]
        assert [module.p for module in other if isinstance(module, nn.Dropout)] == [0.25, 0.25]
        assert not any(isinstance(module, nn.Dropout) for module in none)


def test_dropout_does_not_rename_the_weights() -> None:
    with torch.device("meta"):
        without, dropping = paper_network("mlp800", 10, GREY), paper_network("mlp800", 10, GREY, dropout=0.5)
    assert without.state_dict().keys() == dropping.state_dict().keys()


def test_weights_are_he_normal_and_biases_zero() -> None:
    torch.manual_seed(0)
    network = paper_network("lenet-cifar", 10, COLOUR)
    for layer, fan_in in ((part(network, "conv2"), 64 * 25), (part(network, "fc1"), 128 * 64)):
        weight = layer.weight.detach()
        assert weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.01)
        # A normal has 4.55 % beyond two deviations, a uniform none.
        assert (weight.abs() > 2 * weight.std()).float().mean().item() == pytest.approx(0.0455, abs=0.002)
        assert not layer.bias.any()


def test_wrong_options_are_refused_with_the_nearest_name() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'dropout'"):
        paper_network("lenet", 10, GREY, droput=0.1)
    with pytest.raises(UnknownNameError, match="final_relu"):
        paper_network("lenet", 10, GREY, final_relu=True)
    wrong: Any
    for wrong in (1.0, -0.1, "half", True):
        with pytest.raises(UsageError, match="probability to drop"):
            paper_network("lenet", 10, GREY, dropout=wrong)
    with pytest.raises(UsageError, match="true or false"):
        paper_network("nin", 10, COLOUR, final_relu=1)


@pytest.mark.parametrize("name", ["lenet", "nin", "lenet-svhn", "student3"])
def test_small_images_are_refused_or_answered_never_a_crash(name: str) -> None:
    answered = []
    for size in range(1, 20):
        try:
            network = paper_network(name, 3, (1, size, size + 1))
        except MismatchError:
            continue
        answered.append(size)
        assert network.eval()(torch.zeros(1, 1, size, size + 1)).shape == (1, 3)
    smallest = {"lenet": 13, "nin": 4, "lenet-svhn": 4, "student3": 1}[name]
    assert answered == list(range(smallest, 20))


def test_images_too_small_for_the_layers_are_refused_by_name() -> None:
    with pytest.raises(MismatchError, match=r"too small for model 'lenet'.*C5\(S1P0\)@50"):
        paper_network("lenet", 10, (1, 9, 9))
    assert paper_network("mlp800", 10, (1, 2, 2))(torch.zeros(1, 1, 2, 2)).shape == (1, 10)


@pytest.mark.parametrize("name", ["lenet", "nin", "alexnet-cifar", "student3"])
def test_a_relu_behind_a_max_pooling_gives_the_bits_of_one_before_it(name: str) -> None:
    shape = GREY if name == "lenet" else COLOUR
    torch.manual_seed(0)
    network = paper_network(name, 10, shape).eval()
    layers = list(network)
    poolings = [index for index, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
    assert poolings
    for index in poolings:
        assert isinstance(layers[index + 1], nn.ReLU)
        layers[index], layers[index + 1] = layers[index + 1], layers[index]
    images, results = torch.randn(4, *shape), []
    for model in (network, nn.Sequential(*layers)):
        logits = model(images)
        results.append([logits, *torch.autograd.grad(logits.square().sum(), list(network.parameters()))])
    assert all(torch.equal(before, after) for before, after in zip(*results, strict=True))
