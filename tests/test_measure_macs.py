"""Multiplications against numbers worked out by hand, for the paper's networks and for single operations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch import library as operators

from noisyteacher.measure import Costs, is_free, measure
from noisyteacher.models import Classifier, as_classifier, build_model
from noisyteacher.models.classifier import Architecture
from noisyteacher.models.preprocess import Scale

# Per layer: output height * width * kernels * (kernel size^2 * input channels), or inputs * outputs.
MULTIPLICATIONS = {
    "lenet": 24 * 24 * 20 * 25 + 8 * 8 * 50 * 25 * 20 + 800 * 500 + 500 * 10,
    "mlp800": 784 * 800 + 800 * 800 + 800 * 10,
    "nin": 32 * 32 * (192 * 75 + 160 * 192 + 96 * 160)
    + 16 * 16 * (192 * 25 * 96 + 192 * 192 + 192 * 192)
    + 8 * 8 * (192 * 9 * 192 + 192 * 192 + 10 * 192),
    "lenet-svhn": 32 * 32 * 32 * 75 + 16 * 16 * 64 * 25 * 32 + 64 * 64 * 1024 + 1024 * 10,
    "lenet-cifar": 32 * 32 * 64 * 75 + 16 * 16 * 128 * 25 * 64 + 128 * 64 * 1024 + 1024 * 10,
    "alexnet-cifar": 32 * 32 * 96 * 75
    + 16 * 16 * 256 * 25 * 96
    + 8 * 8 * 9 * (384 * 256 + 384 * 384 + 256 * 384)
    + 256 * 16 * 2048
    + 2048 * 2048
    + 2048 * 10,
    "student1": 32 * 32 * 64 * 75 + 16 * 16 * 112 * 25 * 64 + 8 * 8 * 128 * 9 * 112 + 128 * 16 * 1024 + 1024 * 10,
    "student2": 32 * 32 * 32 * 75 + 16 * 16 * 32 * 25 * 32 + 8 * 8 * 64 * 9 * 32 + 64 * 16 * 1024 + 1024 * 10,
    "student3": 32 * 32 * 16 * 75 + 16 * 16 * 32 * 25 * 16 + 8 * 8 * 64 * 9 * 32 + 64 * 16 * 1024 + 1024 * 10,
}
IN_MILLIONS = {
    "lenet": 2.29,
    "mlp800": 1.28,
    "nin": 222.49,
    "lenet-svhn": 19.77,
    "lenet-cifar": 65.74,
    "alexnet-cifar": 375.4,
    "student1": 61.16,
    "student2": 11.25,
    "student3": 6.74,
}


class Images(nn.Module):
    """A layer under test between the image [B, C, H, W] and two logits; `view` makes its input from the image."""

    def __init__(self, core: nn.Module, view: Any = None) -> None:
        super().__init__()
        self.core, self.view = core, view

    def forward(self, x: Tensor) -> Tensor:
        out = self.core(x if self.view is None else self.view(x))
        out = out[0] if isinstance(out, tuple) else out
        logits: Tensor = out.flatten(1)[:, :2]
        return logits


class Does(nn.Module):
    """A layer that computes a function."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.function(x)
        return output


def costs(core: nn.Module, shape: tuple[int, int, int], view: Any = None) -> Costs:
    architecture = Architecture(name="test", classes=None, input_shape=list(shape), options={}, preprocess="scale")
    return measure(Classifier(Scale(), Images(core, view), architecture), latency=False)


@pytest.mark.parametrize("name", MULTIPLICATIONS)
def test_multiplications_are_those_of_the_paper(name: str) -> None:
    shape = (1, 28, 28) if name in ("lenet", "mlp800") else (3, 32, 32)
    result = measure(build_model(name, classes=10, input_shape=shape), latency=False)
    assert result.macs == MULTIPLICATIONS[name]
    assert result.macs / 1e6 == pytest.approx(IN_MILLIONS[name], abs=0.0051 if result.macs < 3e8 else 0.051)
    assert result.unsupported == ()
    assert sum(layer.macs for layer in result.layers) == result.macs
    assert sum(layer.parameters for layer in result.layers) == result.parameters


def test_the_paper_s_ratios_of_its_students_come_out() -> None:
    nin = MULTIPLICATIONS["nin"]
    ratios = [nin / MULTIPLICATIONS[f"student{number}"] for number in (1, 2, 3)]
    assert ratios == [pytest.approx(3.66, abs=0.05), pytest.approx(19.91, abs=0.2), pytest.approx(33.28, abs=0.3)]


def test_layers_are_told_apart() -> None:
    model = build_model("lenet", classes=10, input_shape=(1, 28, 28))
    rows = {layer.name: layer for layer in measure(model, latency=False).layers}
    assert list(rows) == ["conv1", "pool1", "relu1", "conv2", "pool2", "relu2", "flatten1", "fc1", "relu3", "fc2"]
    conv = rows["conv2"]
    assert (conv.kind, conv.output_shape, conv.parameters, conv.macs) == ("Conv2d", (50, 8, 8), 25_050, 1_600_000)
    assert (rows["pool2"].output_shape, rows["pool2"].macs) == ((50, 4, 4), 0)
    assert (rows["fc2"].output_shape, rows["fc2"].macs) == ((10,), 5_000)


def test_preprocessing_is_counted_apart() -> None:
    scaled = build_model("lenet-svhn", classes=10, input_shape=(3, 32, 32))
    normed = build_model("lenet-svhn", classes=10, input_shape=(3, 32, 32), preprocess="local-contrast")
    plain_costs, normed_costs = measure(scaled, latency=False), measure(normed, latency=False)
    assert (plain_costs.macs, plain_costs.preprocess_macs) == (normed_costs.macs, 0)
    # The window's part inside the image, the mean and the deviation: 3 planes, two passes of 9 multiplications a pixel.
    assert normed_costs.preprocess_macs == 3 * 2 * 9 * 32 * 32


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (nn.Conv2d(4, 6, 3, bias=False), (4, 8, 8), 6 * 6 * 6 * (9 * 4)),
        (nn.Conv2d(4, 6, 3), (4, 8, 8), 6 * 6 * 6 * (9 * 4)),
        (nn.Conv2d(4, 6, 3, stride=2, padding=1), (4, 8, 8), 4 * 4 * 6 * (9 * 4)),
        (nn.Conv2d(4, 6, 3, groups=2), (4, 8, 8), 6 * 6 * 6 * (9 * 2)),
        (nn.Conv2d(4, 8, 3, groups=4), (4, 8, 8), 6 * 6 * 8 * 9),
        (nn.Conv2d(4, 6, (1, 5), dilation=(1, 1)), (4, 8, 8), 8 * 4 * 6 * (5 * 4)),
        (nn.Conv2d(4, 6, 3, dilation=2), (4, 8, 8), 4 * 4 * 6 * (9 * 4)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2), (4, 5, 5), 5 * 5 * 4 * (9 * 6)),
        (nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), (4, 5, 5), 5 * 5 * 4 * (4 * 3)),
        (nn.Conv2d(4, 6, 3, padding="same", padding_mode="reflect"), (4, 8, 8), 8 * 8 * 6 * (9 * 4)),
        (nn.Linear(8, 5), (4, 8, 8), 4 * 8 * 8 * 5),
        (nn.Linear(8, 5, bias=False), (4, 8, 8), 4 * 8 * 8 * 5),
    ],
    ids=str,
)
def test_convolutions_and_linear_layers_by_hand(layer: nn.Module, shape: tuple[int, int, int], expected: int) -> None:
    result = costs(layer, shape)
    assert (result.macs, result.unsupported) == (expected, ())


def test_convolutions_in_one_and_three_dimensions() -> None:
    line = costs(nn.Conv1d(4, 6, 3), (4, 2, 5), lambda x: x.flatten(2))
    assert line.macs == 8 * 6 * 3 * 4
    cube = costs(nn.Conv3d(1, 2, 3, padding=1), (4, 5, 6), lambda x: x.unsqueeze(1))
    assert cube.macs == 4 * 5 * 6 * 2 * 27
    back = costs(nn.ConvTranspose1d(4, 6, 3), (4, 2, 5), lambda x: x.flatten(2))
    assert back.macs == 10 * 4 * 3 * 6
    assert line.unsupported == cube.unsupported == back.unsupported == ()


# x is [1, 4, 6, 8].
@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x @ torch.ones(8, 3), 4 * 6 * 8 * 3),
        (lambda x: torch.matmul(x, x.transpose(-1, -2)), 4 * 6 * 8 * 6),
        (lambda x: torch.bmm(x[0], x[0].transpose(1, 2))[None], 4 * 6 * 8 * 6),
        (lambda x: torch.baddbmm(torch.ones(1), x[0], x[0].mT)[None], 4 * 6 * 8 * 6),
        (lambda x: torch.addmm(torch.ones(3), x[0, 0], torch.ones(8, 3)).view(1, -1), 6 * 8 * 3),
        (lambda x: torch.einsum("bchw,bcvw->bchv", x, x), 4 * 6 * 8 * 6),
        (lambda x: torch.outer(x[0, 0, 0], x[0, 0, 1])[None], 0),  # elementwise, as torch runs it
    ],
)
def test_matrix_products_by_hand(function: Any, expected: int) -> None:
    result = costs(Does(function), (4, 6, 8))
    assert (result.macs, result.unsupported) == (expected, ())


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("wide", [2, 8])
def test_attention_by_hand(causal: bool, wide: int) -> None:
    """Torch runs it fused where keys and values are equally wide, and as two products where they are not."""

    def attend(x: Tensor) -> Tensor:
        value = x[..., :wide]
        return nn.functional.scaled_dot_product_attention(x, x, value, is_causal=causal)

    result = costs(Does(attend), (4, 6, 8))
    assert (result.macs, result.unsupported) == (4 * 6 * 6 * (8 + wide), ())


def test_multihead_attention_counts_its_four_projections_and_both_products() -> None:
    class SelfAttention(nn.MultiheadAttention):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
            return super().forward(x, x, x, need_weights=False)

    result = costs(SelfAttention(8, 2, batch_first=True), (1, 6, 8), lambda x: x[:, 0])
    assert result.macs == 6 * 8 * 8 * 4 + 6 * 6 * 8 * 2
    assert result.unsupported == ()
    assert sum(layer.parameters for layer in result.layers) == result.parameters == 4 * 64 + 4 * 8


def test_an_encoder_layer_does_not_hide_in_its_fast_path() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    result = costs(layer, (1, 6, 8), lambda x: x[:, 0])
    assert (result.macs, result.unsupported) == (6 * 8 * 8 * 4 + 6 * 6 * 8 * 2 + 2 * 6 * 8 * 16, ())
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_are_counted_or_named(layer: Any) -> None:
    result = costs(layer(8, 5, batch_first=True), (1, 6, 8), lambda x: x[:, 0])
    assert result.macs > 0 or result.unsupported


def test_common_layers_are_free_and_known() -> None:
    core = nn.Sequential(
        nn.BatchNorm2d(4),
        nn.GroupNorm(2, 4),
        nn.InstanceNorm2d(4),
        nn.LayerNorm(8),
        nn.GELU(),
        nn.SiLU(),
        nn.Hardswish(),
        nn.ReLU6(inplace=True),
        nn.LeakyReLU(),
        nn.PReLU(),
        nn.ELU(),
        nn.Softplus(),
        nn.Mish(),
        nn.Softmax(1),
        nn.LogSoftmax(1),
        nn.Dropout(0.5),
        nn.Dropout2d(0.5),
        nn.ZeroPad2d(1),
        nn.ReflectionPad2d(1),
        nn.PixelShuffle(2),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.Upsample(scale_factor=2),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.AvgPool2d(3, 2, ceil_mode=True),
        nn.AdaptiveMaxPool2d(4),
        nn.AdaptiveAvgPool2d((3, 3)),
        nn.LPPool2d(2, 2),
        nn.Flatten(),
        Does(lambda x: torch.cat([x, x.roll(1), x.flip(1), x.cumsum(1)], 1)),
        Does(lambda x: torch.where(x > x.mean(), x, x.std()).clamp(0, 1) + nn.functional.one_hot(x.argmax(1), 1).sum()),
        Does(lambda x: torch.stack(x.chunk(2, 1), 1).permute(0, 2, 1).reshape(1, -1).sort(1).values.topk(2)[0]),
    )
    result = costs(core, (4, 8, 8))
    assert (result.macs, result.unsupported) == (0, ())


def test_an_operation_without_a_formula_is_named_with_its_layer() -> None:
    core = nn.Sequential(nn.Linear(8, 8), Does(lambda x: torch.fft.rfft(x).abs()), nn.Linear(5, 2))
    result = costs(core, (1, 3, 8))
    assert result.unsupported == ("core.1: aten::_fft_r2c",)
    assert result.macs == 3 * 8 * 8 + 3 * 5 * 2  # what could be counted


def test_bilinear_layers_and_distances_are_not_taken_for_free() -> None:
    bilinear = nn.Bilinear(8, 8, 3)
    result = costs(Does(lambda x: bilinear(x, x)), (1, 3, 8))
    assert result.macs > 0 or result.unsupported
    assert costs(Does(lambda x: x[0, 0].mv(torch.ones(8))[None]), (1, 3, 8)).unsupported == ("core: aten::mv",)
    result = costs(Does(lambda x: torch.cdist(x, x + 1)), (1, 3, 8))
    assert result.unsupported == ("core: aten::_cdist_forward",)


def test_custom_operations_are_named() -> None:
    @operators.custom_op("noisyteacher_test::twice", mutates_args=())
    def twice(x: Tensor) -> Tensor:
        return x + x

    assert costs(Does(twice), (1, 2, 2)).unsupported == ("core: noisyteacher_test::twice",)


def test_a_layer_called_twice_costs_twice_and_holds_once() -> None:
    layer = nn.Linear(4, 4)
    result = costs(nn.Sequential(layer, nn.ReLU(), layer), (1, 2, 4))
    assert result.macs == 2 * (2 * 4 * 4)
    assert result.parameters == 20


def test_products_outside_any_layer_belong_to_the_model() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 4))

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) @ self.weight.T

    (row,) = measure(as_classifier(Bare(), input_shape=(1, 2, 2)), latency=False).layers
    assert (row.name, row.macs, row.parameters, row.output_shape) == ("model", 12, 12, (3,))


def test_products_before_between_and_after_layers_belong_to_the_parent() -> None:
    class Parent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.child = nn.Parameter(torch.ones(4, 4)), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.child(self.child(x @ self.weight) @ self.weight) @ self.weight
            return logits

    rows = {layer.name: layer.macs for layer in costs(Parent(), (1, 1, 4)).layers}
    assert rows == {"core": 3 * 16, "core.child": 2 * 16}


@pytest.mark.parametrize(
    "name", ["mm", "convolution", "_fft_r2c", "_cdist_forward", "linalg_qr", "_trilinear", "cholesky_solve"]
)
def test_operations_that_multiply_are_not_free(name: str) -> None:
    packet = getattr(torch.ops.aten, name)
    assert not is_free(packet)
