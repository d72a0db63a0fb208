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
from typing import Any, TypedDict

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from noisyteacher.device import inference
from noisyteacher.errors import UsageError
from noisyteacher.models.classifier import Options
from noisyteacher.models.networks import he_normal
from noisyteacher.models.preprocess import Shape

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
    F.relu, F.relu6, F.leaky_relu, F.elu, F.silu, F.gelu, F.mish, F.hardswish, F.hardsigmoid, F.hardtanh, F.dropout,
    F.dropout2d, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.interpolate, F.sigmoid,
    F.tanh, torch.relu, torch.sigmoid, torch.tanh,
    "relu", "relu_", "sigmoid", "sigmoid_", "tanh", "contiguous", "clone",
}  # fmt: skip
"""Functions and, as text, methods of tensors whose output has the channels of their input."""
SUMS: set[Any] = {
    operator.add, operator.iadd, operator.sub, operator.isub, operator.mul, operator.imul, operator.truediv, torch.add,
    torch.sub, torch.mul, "add", "add_", "sub", "sub_", "mul", "mul_",
}  # fmt: skip
"""Sums and products: both sides have the same channels, or one has a single one."""


class Origin(TypedDict):
    """The network that a narrowed one was copied from, as its options record it under "of"."""

    name: str
    options: Options


def ratio_of(name: str) -> float:
    """The ratio in `shrink:RATIO`. `ratio_of("shrink:0.5") == 0.5`. Raises UsageError unless 0 < RATIO <= 1."""
    try:
        ratio = float(name.removeprefix(SHRINK))
    except ValueError:
        ratio = math.nan
    if not 0 < ratio <= 1:
        raise UsageError(f"model {name!r}: expected {SHRINK}RATIO with 0 < RATIO <= 1, such as {SHRINK}0.5")
    return ratio


def first_origin(architecture: Any) -> Origin:
    """Name and options of the network that is built first: the architecture's own, or what `shrink:RATIO` began with.

    Raises UsageError when the record of a narrowed network does not state it.
    """
    for _ in range(DEEPEST):
        match architecture:
            case {"name": str(name), "options": dict(options)} if name.startswith(SHRINK):
                architecture = options.get("of")
            case {"name": str(name), "options": dict(options)}:
                return Origin(name=name, options=options)
    raise UsageError("the record of a narrowed network does not say what it was narrowed from")


def origin_of(architecture: Mapping[str, object]) -> str:
    """The name in `first_origin`."""
    return first_origin(architecture)["name"]


def narrowed(width: int, ratio: float, multiple: int = 1) -> int:
    """The width times the ratio, rounded to a multiple of `multiple`, at least one of them.

    `narrowed(160, 0.5) == 80`, `narrowed(50, 0.5) == 25`, `narrowed(96, 0.3) == 32`, `narrowed(3, 0.1) == 1`.
    """
    keeps_eights = width % STEP == 0 and width * ratio >= 2 * STEP
    step = math.lcm(STEP if keeps_eights else 1, multiple)
    return min(width, max(step, step * math.floor(width * ratio / step + 0.5)))


def narrow_network(network: nn.Module, ratio: float, input_shape: Shape) -> nn.Module:
    """A copy of the network with every hidden number of channels times the ratio (0 < ratio <= 1), at least 1.

    Image channels and classes are kept. Multiples of 8 stay such where the result is 16 or more; grouped convolutions
    keep their groups, depthwise ones stay depthwise. Weights are He-normal, batch norms new, all on torch's default
    device. Raises UsageError naming the first layer that is not understood, or when there is no hidden layer.
    """
    copied = copy.deepcopy(network).train()
    layers = _ChannelTracing(copied, input_shape[0]).layers
    if all(outputs.group.root().fixed for _, _, outputs in layers):
        raise UsageError(f"{type(network).__name__} cannot be narrowed: it has no hidden layer")
    for layer, inputs, outputs in layers:
        ins, outs = inputs.channels(ratio), outputs.channels(ratio)
        weight: tuple[int, ...] = (outs,)
        if isinstance(layer, nn.Conv2d):
            layer.groups = ins if layer.groups == layer.in_channels > 1 else layer.groups
            layer.in_channels, layer.out_channels = ins, outs
            weight = (outs, ins // layer.groups, *layer.kernel_size)
        elif isinstance(layer, nn.Linear):
            layer.in_features, layer.out_features = ins, outs
            weight = (outs, ins)
        else:
            layer.num_features = outs
        for name, tensor in (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)):
            new = torch.zeros(weight if name == "weight" else outs) if tensor.dim() else torch.tensor(0)
            setattr(layer, name, nn.Parameter(new) if isinstance(tensor, nn.Parameter) else new)
        if isinstance(layer, _BatchNorm):
            layer.reset_parameters()
    he_normal(copied)
    try:
        with inference(copied) as device:
            copied(torch.zeros((2, *input_shape), device=device))
    except Exception as error:  # a user's forward may state a size as a number, and raise anything
        raise UsageError(f"{type(network).__name__} cannot be narrowed: its narrower copy fails: {error}") from error
    return copied


@dataclass
class Group:
    """Channels that are narrowed together."""

    width: int
    fixed: bool = False
    """Tied to the image or to the logits."""
    multiple: int = 1
    """What the narrowed width must stay a multiple of (grouped convolutions)."""
    tied_to: Group | None = None

    def root(self) -> Group:
        """The group that stands for all that are tied to this one; its `multiple` and `fixed` are those of all."""
        return self if self.tied_to is None else self.tied_to.root()


@dataclass(frozen=True)
class Flow:
    """A tensor between two layers: it has the channels of a group, each of them `times` over."""

    group: Group
    times: int = 1
    """Pixels per channel behind a flattening, kernels per channel behind a depthwise convolution."""
    flat: bool = False

    def channels(self, ratio: float) -> int:
        """The number of channels, or of features, once the group is narrowed."""
        root = self.group.root()
        return (root.width if root.fixed else narrowed(root.width, ratio, root.multiple)) * self.times


class _ChannelTracing:
    """Follows the channels through a network, from its image to its logits."""

    def __init__(self, network: nn.Module, channels: int) -> None:
        self.network = network
        self.layers: list[tuple[Layer, Flow, Flow]] = []
        """Every layer once, with its input and its output."""
        self._flows: dict[fx.Node, Flow | None] = {}
        self._seen: dict[str, tuple[Flow, Flow]] = {}
        for name, module in network.named_modules():
            tensors = [*dict(module.named_parameters(recurse=False)), *dict(module.named_buffers(recurse=False))]
            if tensors and not isinstance(module, LAYERS):
                raise _not_understood(network, name, f"a {type(module).__name__} with a tensor {tensors[0]!r}")
        self._image = Flow(Group(channels, fixed=True))
        for node in _trace(network).nodes:
            if node.op != "output":
                self._flows[node] = self._flow(node)
                continue
            for flow in map(self._flows.__getitem__, node.all_input_nodes):
                if flow is not None:
                    flow.group.root().fixed = True

    def _flow(self, node: fx.Node) -> Flow | None:
        """The output of a node; None for a size and any other number."""
        if node.op == "placeholder":
            return self._image if not self._flows else None
        if node.op == "get_attr":
            raise self._refuse(node, f"the tensor {node.target!r}")
        inputs = [flow for flow in map(self._flows.__getitem__, node.all_input_nodes) if flow is not None]
        if not inputs:
            return None
        if node.op != "call_module":
            return self._function(node, inputs)
        module = self.network.get_submodule(str(node.target))
        if isinstance(module, LAYERS):
            return self._layer(node, module, inputs[0])
        if isinstance(module, nn.Flatten) and module.start_dim == 1 and module.end_dim == -1:
            return replace(inputs[0], flat=True)
        if isinstance(module, SAME_MODULES):
            return inputs[0]
        raise self._refuse(node, f"a {type(module).__name__}")

    def _function(self, node: fx.Node, inputs: list[Flow]) -> Flow | None:
        function, arguments, named = node.target, node.args[1:], node.kwargs
        if function in SAME_FUNCTIONS:
            return inputs[0]
        if function in SUMS:
            return inputs[0] if len(inputs) == 1 else self._tie(node, inputs[0], inputs[1])
        if function in ("size", "dim") or (function is getattr and arguments[0] in ("shape", "ndim")):
            return None
        if function in (torch.mean, "mean") and not inputs[0].flat:
            over = named.get("dim", arguments[0] if arguments else None)
            if isinstance(over, (list, tuple)) and sorted(dim % 4 for dim in over) == [2, 3]:
                keeps = named.get("keepdim", arguments[1] if len(arguments) > 1 else False)
                return replace(inputs[0], flat=not keeps)
        if function in (torch.flatten, "flatten") and (*arguments, *named.values()) == (1,):
            return replace(inputs[0], flat=True)
        if function in (torch.reshape, "view", "reshape") and not named:  # to (B, -1)
            sizes: Any = arguments[0] if len(arguments) == 1 and isinstance(arguments[0], (list, tuple)) else arguments
            if len(sizes) == 2 and sizes[1] == -1:
                return replace(inputs[0], flat=True)
        name = function if isinstance(function, str) else getattr(function, "__name__", str(function))
        raise self._refuse(node, f"{name}() with these arguments")

    def _layer(self, node: fx.Node, layer: Layer, inputs: Flow) -> Flow:
        name, width = str(node.target), inputs.group.width
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
            outputs = Flow(Group(layer.out_features), flat=True)
        elif layer.groups == layer.in_channels > 1:
            outputs = replace(inputs, times=inputs.times * (layer.out_channels // layer.in_channels))
        else:
            outputs = Flow(Group(layer.out_channels))
            if layer.groups > 1:
                if inputs.times != 1:
                    raise self._refuse(node, f"a convolution of {layer.groups} groups behind a depthwise one")
                for group in (inputs.group.root(), outputs.group):
                    group.multiple = math.lcm(group.multiple, layer.groups)
        self._seen[name] = inputs, outputs
        self.layers.append((layer, inputs, outputs))
        return outputs

    def _tie(self, node: fx.Node, first: Flow, second: Flow) -> Flow:
        """Give both the same channels, unless one side is a map of one channel against all of the other's."""
        widths = [flow.group.width * flow.times for flow in (first, second)]
        if 1 in widths and widths[0] != widths[1]:
            return first if widths[1] == 1 else second
        if widths[0] != widths[1] or first.times != second.times:
            raise self._refuse(node, f"a sum or product of {widths[0]} and {widths[1]} channels")
        roots = first.group.root(), second.group.root()
        if roots[0] is not roots[1]:
            roots[1].tied_to = roots[0]
            roots[0].multiple = math.lcm(roots[0].multiple, roots[1].multiple)
            roots[0].fixed |= roots[1].fixed
        return first

    def _refuse(self, node: fx.Node, what: str) -> UsageError:
        stack = node.meta.get("nn_module_stack")
        return _not_understood(self.network, next(reversed(stack)) if stack else str(node.name), what)


class _Tracer(fx.Tracer):
    """Looks into every module but torch's own and LAYERS; `last` is the module it looked at last."""

    last = ""

    def to_bool(self, obj: fx.Proxy) -> bool:
        """False for "are these sizes other than I expect?": the network takes the images it is traced for."""
        if obj.node.target is operator.ne and all(map(_is_size, obj.node.all_input_nodes)):
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


def _not_understood(network: nn.Module, name: str, what: str) -> UsageError:
    where = f"{type(network).__name__} cannot be narrowed: at {name or 'its own forward'}"
    return UsageError(f"{where}, {what} is not understood; name another student, such as compact-s")
