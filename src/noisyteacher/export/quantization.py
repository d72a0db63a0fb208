"""Networks in int8 by torchao's quantizer for XNNPACK: activations per tensor, weights per output channel.

A fake-quantized twin of a model computes in fp32 with everything rounded as the int8 file rounds it, and can be trained
(quantization-aware training: Jacob et al. 2018, section 3). Preprocessing stays in fp32.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from noisyteacher.data import Splits, load_data
from noisyteacher.errors import UsageError
from noisyteacher.export.tracing import export_errors, trace
from noisyteacher.models import (
    Classifier,
    Rescaled,
    as_classifier,
    bare_network,
    rescale,
    weights_fingerprint,
    with_network,
)
from noisyteacher.rng import generator

CALIBRATION, CALIBRATION_BATCH = 512, 32
WEIGHT_LIMIT = 63
"""The largest weight in steps of its scale: seven bits, which no integer product of onnxruntime saturates."""


class FakeQuantized(nn.Module):
    """A traced network that rounds weights and activations to int8 steps, and learns through them straight-through.

    Ranges follow the batches in training mode and stay in eval mode. Batch norms are folded, dropout is off.
    """

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.graph = graph
        self.eval()

    def forward(self, ready: Tensor) -> Any:
        return self.graph(ready)

    def train(self, mode: bool = True) -> FakeQuantized:
        self.training = mode  # the graph itself has no modes
        for module in fake_quantizers(self.graph):
            module.enable_observer(mode)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> FakeQuantized:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's own
            return FakeQuantized(copy.deepcopy(self.graph, memo)).train(self.training)


def fake_quantizers(graph: nn.Module) -> list[Any]:
    """The modules of a graph that observe a tensor's range and round it."""
    return [module for module in graph.modules() if hasattr(module, "observer_enabled")]


def fake_quantized(model: nn.Module, data: Any) -> Classifier:
    """The fake-quantized twin of a model: for `fit` at a low rate, then for `export(model, ..., twin=twin)`.

    data: anything `load_data` takes; 512 of its training images set the first ranges. The model is not changed. Weights
    have seven bits, so that one twin serves ExecuTorch and onnxruntime. Needs the extra `mobile`.
    Raises ExportError for a model that torch.export cannot trace or torchao cannot quantize.
    """
    splits = load_data(data)
    classifier = as_classifier(model, classes=splits.classes, input_shape=splits.input_shape)
    graph = calibrated(classifier, calibration_images(splits, CALIBRATION), learns=True)
    twin = with_network(classifier, FakeQuantized(graph)).cpu()
    source = {"network": classifier.name, "weights": weights_fingerprint(classifier)}
    twin.architecture |= {"name": "module:fake-quantized", "options": source}  # no file of the model fits it
    return twin


def calibrated(model: Classifier, images: Tensor, *, learns: bool = False) -> nn.Module:
    """The graph of the model's network, its ranges set on uint8 images `[n, C, H, W]`: to be trained, or converted."""
    model = copy.deepcopy(model).cpu().eval()  # folded batch norms change weights, which a graph shares with its model
    with torch.no_grad():
        batches = [model.preprocess(batch) for batch in torch.split(images, CALIBRATION_BATCH)]
    graph = trace(bare_network(model), batches[0], model.name).module()
    with export_errors(f"{model.name!r} cannot be quantized by torchao"), torch.no_grad():
        from executorch.backends.xnnpack.quantizer import xnnpack_quantizer
        from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

        config = xnnpack_quantizer.get_symmetric_quantization_config(is_per_channel=True, is_qat=learns)
        config = _learning(config) if learns else config
        prepared: nn.Module = prepare_pt2e(graph, xnnpack_quantizer.XNNPACKQuantizer().set_global(config))
        for module in fake_quantizers(prepared):
            module.disable_fake_quant()
        for batch in batches:
            prepared(batch)
        for module in fake_quantizers(prepared):
            module.enable_fake_quant()
    return prepared.requires_grad_(learns)  # torchao leaves the biases of folded batch norms constant


def _learning(config: Any) -> Any:
    """The configuration with fake quantizers that compute the scales of the file.

    torch's fused kernel, which the configuration has, is not symmetric for weights of one sign, and its scales are not
    those that `convert_pt2e` takes. The range of weights is today's. That of activations is an average over ten steps:
    over a hundred, as in torchao, it lags in a short training, and what lies outside of it has no gradient.
    """
    from torchao.quantization.pt2e import (
        FakeQuantize,
        MovingAverageMinMaxObserver,
        MovingAveragePerChannelMinMaxObserver,
    )

    per_tensor = FakeQuantize.with_args(observer=MovingAverageMinMaxObserver, averaging_constant=0.1, eps=2**-12)
    activation = replace(config.input_activation, observer_or_fake_quant_ctr=per_tensor)
    weight = replace(
        config.weight,
        quant_min=-WEIGHT_LIMIT,
        quant_max=WEIGHT_LIMIT,
        observer_or_fake_quant_ctr=FakeQuantize.with_args(
            observer=MovingAveragePerChannelMinMaxObserver, averaging_constant=1.0, eps=2**-12
        ),
    )
    return replace(config, input_activation=activation, output_activation=activation, weight=weight)


def scaled_as(model: Classifier, twin: nn.Module | None) -> Classifier:
    """The model, or a copy of it with the output scale that its twin has by now, as after a training with `rms`."""
    if not (isinstance(twin, Classifier) and isinstance(twin.network, Rescaled)):
        return model
    return rescale(copy.deepcopy(model), float(twin.network.output_scale))


def in_int8(model: Classifier, prepared: nn.Module) -> Classifier:
    """A copy of the model that computes in int8, with the weights and ranges of a graph of `calibrated`."""
    with export_errors(f"{model.name!r} cannot be converted by torchao"):
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

        graph = copy.deepcopy(prepared).cpu()
        return with_network(model, convert_pt2e(graph))


def calibration_images(data: Splits | None, count: int) -> Tensor:
    """`count` training images, drawn by the generator (0, "export", "calibration"), uint8 `[n, C, H, W]`.

    All of them if there are fewer. Raises UsageError without data.
    """
    if data is None:
        raise UsageError("int8 sets its ranges on training images and no data were given: pass data=")
    rows = torch.randperm(len(data.train), generator=generator(0, "export", "calibration"))[:count]
    return data.train.images_at(rows.sort().values)
