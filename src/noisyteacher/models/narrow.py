"""`shrink:RATIO`: a narrower, untrained copy of a network, with the same layers, names and connections.

The network is traced, and every convolution and linear layer opens a group of channels. Batch norms, sums and depthwise
convolutions tie their inputs to one group. The groups of the image and of the logits keep their channels, the others
are scaled. A layer or function that is not understood is refused.
"""

from __future__ import annotations

import copy
import inspect
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from noisyteacher.errors import UsageError
from noisyteacher.inference import inference
from noisyteacher.models.paper import he_normal

SHRINK = "shrink:"
STEP = 8
"""Large multiples of it stay multiples of it: CPUs compute on so many channels at once."""
DEEPEST = 8
"""How often a network may be narrowed, one copy from the other."""

Layer = nn.Conv2d | nn.Linear | _BatchNorm
LAYERS = (nn.Conv2d, nn.Linear, _BatchNorm)
"""The layers with channels; subclasses are treated as their base class."""
SAME_MODULES: tuple[type[nn.Module], ...] = (
    nn.Identity, nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d, nn.ZeroPad2d, nn.Upsample, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.SiLU,
    nn.GELU, nn.Mish, nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Softplus,
)  # fmt: skip
"""Modules whose output has the channels of their input."""
SAME_FUNCTIONS: set[Any] = {
    functional.relu, functional.relu6, functional.leaky_relu, functional.elu, functional.silu, functional.gelu,
    functional.mish, functional.hardswish, functional.hardsigmoid, functional.hardtanh, functional.dropout,
    functional.dropout2d, functional.max_pool2d, functional.avg_pool2d, functional.adaptive_avg_pool2d,
    functional.adaptive_max_pool2d, functional.interpolate, functional.sigmoid, functional.tanh, torch.relu,
    torch.sigmoid, torch.tanh, "relu", "relu_", "sigmoid", "sigmoid_", "tanh", "contiguous", "clone",
}  # fmt: skip
"""Functions and, as text, methods of tensors whose output has the channels of their input."""
SUMS: set[Any] = {
    operator.add, operator.iadd, operator.sub, operator.isub, operator.mul, operator.imul, operator.truediv, torch.add,
    torch.sub, torch.mul, "add", "add_", "sub", "sub_", "mul", "mul_",
}  # fmt: skip
"""Sums and products: both sides have the same channels, or one has a single one."""
MEANS: set[Any] = {torch.mean, "mean"}
FLATTENINGS: set[Any] = {torch.flatten, torch.reshape, "flatten", "view", "reshape"}


def ratio_of(name: str) -> float:
    """The ratio in `shrink:RATIO`. `ratio_of("shrink:0.5") == 0.5`. Raises UsageError unless 0 < RATIO <= 1."""
    try:
        ratio = float(name.removeprefix(SHRINK))
    except ValueError:
        ratio = math.nan
    if not 0 < ratio <= 1:
        raise UsageError(f"model {name!r}: expected {SHRINK}RATIO with 0 < RATIO <= 1, such as {SHRINK}0.5")
    return ratio


def original_architecture(architecture: Mapping[str, Any]) -> Mapping[str, Any]:
    """The architecture with which a narrowed network begins; that of any other network is its own.

    Raises UsageError when the record of a narrowed network does not state it.
    """
    original: Any = architecture
    for _ in range(DEEPEST):
        if not isinstance(original, Mapping) or not isinstance(original.get("name"), str):
            break
        if not isinstance(original.get("options"), Mapping):
            break
        if not original["name"].startswith(SHRINK):
            return original
        original = original["options"].get("of")
    raise UsageError("the record of a narrowed network does not say what it was narrowed from")


def origin_of(architecture: Mapping[str, Any]) -> str:
    """The name of the network that is built first: the architecture's own, or for `shrink:RATIO` the original's.

    Raises UsageError when the record of a narrowed network does not state it.
    """
    return str(original_architecture(architecture)["name"])


def narrowed(width: int, ratio: float, multiple: int = 1) -> int:
    """The width times the ratio, rounded to a multiple of `multiple`, at least one of them.

    `narrowed(160, 0.5) == 80`, `narrowed(50, 0.5) == 25`, `narrowed(96, 0.3) == 32`, `narrowed(3, 0.1) == 1`.
    """
    keeps_eights = width % STEP == 0 and width * ratio >= 2 * STEP
    step = math.lcm(STEP if keeps_eights else 1, multiple)
    return min(width, max(step, step * math.floor(width * ratio / step + 0.5)))


def narrow_network(network: nn.Module, ratio: float, input_shape: tuple[int, int, int]) -> nn.Module:
    """A copy of the network with every hidden number of channels times the ratio (0 < ratio <= 1), at least 1.

    Image channels and classes are kept. Multiples of 8 stay such where the result is 16 or more; grouped convolutions
    keep their groups, depthwise ones stay depthwise. Weights are He-normal, batch norms new, all on torch's default
    device. Multiplications fall about with ratio squared. Raises UsageError naming the first layer that is not
    understood, or when there is no hidden layer.
    """
    copied = copy.deepcopy(network).train()
    groups = ChannelGroups(copied, input_shape[0])
    if all(groups.is_fixed(group) for group in range(len(groups.widths))):
        raise UsageError(f"{type(network).__name__} cannot be narrowed: it has no hidden layer")

    def channels(flow: Flow) -> int:
        root = groups.root(flow.group)
        width = groups.widths[root]
        return (width if groups.is_fixed(root) else narrowed(width, ratio, groups.multiples[root])) * flow.times

    for layer, inputs, outputs in groups.layers:
        if isinstance(layer, nn.Conv2d):
            depthwise = layer.groups == layer.in_channels > 1
            layer.in_channels, layer.out_channels = channels(inputs), channels(outputs)
            layer.groups = layer.in_channels if depthwise else layer.groups
            size = (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size)
            _renew(layer, {"weight": size, "bias": (layer.out_channels,)})
        elif isinstance(layer, nn.Linear):
            layer.in_features, layer.out_features = channels(inputs), channels(outputs)
            _renew(layer, {"weight": (layer.out_features, layer.in_features), "bias": (layer.out_features,)})
        else:
            layer.num_features = channels(outputs)
            _renew(layer, dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (layer.num_features,)))
            if layer.num_batches_tracked is not None:
                layer.num_batches_tracked = torch.tensor(0)
            layer.reset_parameters()
    he_normal(copied)
    try:
        with inference(copied) as device:
            copied(torch.zeros((2, *input_shape), device=device))
    except Exception as error:  # a user's forward may state a size as a number, and raise anything
        raise UsageError(
            f"{type(network).__name__} cannot be narrowed: its narrower copy fails on images of shape "
            f"{tuple(input_shape)}: {error}"
        ) from error
    return copied


def _renew(layer: Layer, sizes: Mapping[str, tuple[int, ...]]) -> None:
    """Replace each of these tensors that the layer has by a new one of this size, float32."""
    for name, size in sizes.items():
        old = getattr(layer, name, None)
        if old is not None:
            new = torch.zeros(size)
            setattr(layer, name, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)


@dataclass(frozen=True)
class Flow:
    """A tensor between two layers: it has the channels of a group, each of them `times` over."""

    group: int
    times: int = 1
    """Pixels per channel behind a flattening, kernels per channel behind a depthwise convolution."""
    flat: bool = False


class ChannelGroups:
    """The groups of channels in a network that takes images of so many channels.

    Raises UsageError naming the first layer or function that is not understood.
    """

    def __init__(self, network: nn.Module, channels: int) -> None:
        self.network = network
        self.layers: list[tuple[Layer, Flow, Flow]] = []
        """Every layer once, with its input and its output."""
        self.widths: list[int] = []
        self.multiples: list[int] = []
        """What the width of each group must stay a multiple of (grouped convolutions)."""
        self._parents: list[int] = []
        self._fixed: set[int] = set()
        self._flows: dict[fx.Node, Flow | None] = {}
        self._seen: dict[str, tuple[Flow, Flow]] = {}
        for name, module in network.named_modules():
            tensors = [
                key for key, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
            ]
            if tensors and not isinstance(module, LAYERS):
                raise _not_understood(network, name, f"a {type(module).__name__} with a tensor {tensors[0]!r}")
        self._image = self._open(channels)
        self._fixed.add(self._image.group)
        for node in _trace(network).nodes:
            if node.op == "output":
                flows = [self._flows[source] for source in node.all_input_nodes]
                self._fixed |= {flow.group for flow in flows if flow is not None}
            else:
                self._flows[node] = self._flow(node)

    def root(self, group: int) -> int:
        """The group that stands for all that are tied to this one."""
        while self._parents[group] != group:
            group = self._parents[group]
        return group

    def is_fixed(self, group: int) -> bool:
        """Whether the group is tied to the image or to the logits."""
        return self.root(group) in {self.root(fixed) for fixed in self._fixed}

    def _flow(self, node: fx.Node) -> Flow | None:
        """The output of a node; None for a size and any other number."""
        if node.op == "placeholder":
            return self._image if not self._flows else None
        if node.op == "get_attr":
            raise self._refuse(node, f"the tensor {node.target!r}")
        inputs = [flow for flow in map(self._flows.__getitem__, node.all_input_nodes) if flow is not None]
        if not inputs:
            return None
        if node.op == "call_module":
            module = self.network.get_submodule(str(node.target))
            if isinstance(module, LAYERS):
                return self._layer(node, module, inputs[0])
            if isinstance(module, nn.Flatten) and module.start_dim == 1 and module.end_dim == -1:
                return replace(inputs[0], flat=True)
            if isinstance(module, SAME_MODULES):
                return inputs[0]
            raise self._refuse(node, f"a {type(module).__name__}")
        return self._function(node, inputs)

    def _function(self, node: fx.Node, inputs: list[Flow]) -> Flow | None:
        function, arguments = node.target, node.args[1:]
        if function in SAME_FUNCTIONS:
            return inputs[0]
        if function in SUMS:
            return inputs[0] if len(inputs) == 1 else self._tie(node, inputs[0], inputs[1])
        if function in ("size", "dim") or (function is getattr and arguments[0] in ("shape", "ndim")):
            return None
        if function in MEANS:
            over = node.kwargs.get("dim", arguments[0] if arguments else None)
            over_pixels = isinstance(over, (list, tuple)) and sorted(dim % 4 for dim in over) == [2, 3]
            if over_pixels and not inputs[0].flat:
                keeps = bool(node.kwargs.get("keepdim", arguments[1] if len(arguments) > 1 else False))
                return replace(inputs[0], flat=not keeps)
        if function in FLATTENINGS and _flattens(function, arguments, node.kwargs):
            return replace(inputs[0], flat=True)
        name = function if isinstance(function, str) else getattr(function, "__name__", str(function))
        raise self._refuse(node, f"{name}() with these arguments")

    def _layer(self, node: fx.Node, layer: Layer, inputs: Flow) -> Flow:
        name, width = str(node.target), self.widths[inputs.group]
        if isinstance(layer, nn.Conv2d):
            expected, fits = layer.in_channels, not inputs.flat
        else:
            expected = layer.in_features if isinstance(layer, nn.Linear) else layer.num_features
            fits = inputs.flat or not isinstance(layer, nn.Linear)
            if inputs.flat and expected % width == 0:
                inputs = replace(inputs, times=expected // width)
        if not fits or expected != width * inputs.times:
            raise self._refuse(node, f"a {type(layer).__name__} of {expected} channels behind {width} of them")
        if name in self._seen:  # the same weights again: the same channels
            first_inputs, outputs = self._seen[name]
            self._tie(node, first_inputs, inputs)
            return outputs
        if isinstance(layer, _BatchNorm):
            outputs = inputs
        elif isinstance(layer, nn.Linear):
            outputs = replace(self._open(layer.out_features), flat=True)
        elif layer.groups == 1:
            outputs = self._open(layer.out_channels)
        elif layer.groups == layer.in_channels:
            outputs = replace(inputs, times=inputs.times * (layer.out_channels // layer.in_channels))
        elif inputs.times != 1:
            raise self._refuse(node, f"a convolution of {layer.groups} groups behind a depthwise one")
        else:
            outputs = self._open(layer.out_channels)
            for root in (self.root(inputs.group), outputs.group):
                self.multiples[root] = math.lcm(self.multiples[root], layer.groups)
        self._seen[name] = inputs, outputs
        self.layers.append((layer, inputs, outputs))
        return outputs

    def _open(self, width: int) -> Flow:
        group = len(self.widths)
        self.widths.append(width)
        self.multiples.append(1)
        self._parents.append(group)
        return Flow(group)

    def _tie(self, node: fx.Node, left: Flow, right: Flow) -> Flow:
        """Give both the same channels, unless one side is a map of one channel against all of the other's."""
        widths = [self.widths[flow.group] * flow.times for flow in (left, right)]
        if 1 in widths and widths[0] != widths[1]:
            return left if widths[1] == 1 else right
        if widths[0] != widths[1] or left.times != right.times:
            raise self._refuse(node, f"a sum or product of {widths[0]} and {widths[1]} channels")
        first, second = sorted((self.root(left.group), self.root(right.group)))
        self._parents[second] = first
        self.multiples[first] = math.lcm(self.multiples[first], self.multiples[second])
        return left

    def _refuse(self, node: fx.Node, what: str) -> UsageError:
        stack = node.meta.get("nn_module_stack")
        return _not_understood(self.network, next(reversed(stack)) if stack else str(node.name), what)


class _Tracer(fx.Tracer):
    """Looks into every module but torch's own and LAYERS; `last` is the module it looked at last.

    A test whether a size differs ("are these the channels I take?") is answered with no: the network takes the images
    it is traced for.
    """

    last = ""

    def to_bool(self, obj: fx.Proxy) -> bool:
        """False for a test whether sizes differ; anything else cannot be known."""
        if obj.node.target is operator.ne and all(_is_size(source) for source in obj.node.all_input_nodes):
            return False
        return bool(super().to_bool(obj))

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        self.last = module_qualified_name
        return isinstance(m, LAYERS) or bool(super().is_leaf_module(m, module_qualified_name))


def _trace(network: nn.Module) -> fx.Graph:
    """The graph of the network's forward; arguments beside the images (labels, switches) have their defaults."""
    tracer = _Tracer()
    _, *arguments = inspect.signature(network.forward).parameters.values()
    defaults = {arg.name: arg.default for arg in arguments if arg.default is not inspect.Parameter.empty}
    try:
        return tracer.trace(network, defaults)
    except Exception as error:  # a user's forward may do anything with a symbol instead of a tensor
        raise _not_understood(network, tracer.last, f"a forward that depends on values ({error})") from error


def _is_size(node: fx.Node) -> bool:
    """Whether it is a size of a tensor: x.size(1), x.shape[1]."""
    if node.target is operator.getitem:
        return isinstance(node.args[0], fx.Node) and _is_size(node.args[0])
    return node.target == "size" or (node.target is getattr and node.args[1] == "shape")


def _flattens(function: Any, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> bool:
    """Whether [B, C, H, W] becomes [B, C * H * W], whatever C is: flatten(1), view(B, -1)."""
    if function in (torch.flatten, "flatten"):
        return (*arguments, *named.values()) == (1,)
    sizes = arguments[0] if len(arguments) == 1 and isinstance(arguments[0], (list, tuple)) else arguments
    return not named and len(sizes) == 2 and sizes[1] == -1


def _not_understood(network: nn.Module, name: str, what: str) -> UsageError:
    return UsageError(
        f"{type(network).__name__} cannot be narrowed: at {name or 'its own forward'}, {what} is not understood; "
        "expected convolutions, batch norms, linear layers, poolings, activations and sums; name another student, such "
        "as compact-s"
    )
