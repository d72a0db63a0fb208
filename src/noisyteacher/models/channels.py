"""Which channels of a network must stay equal in number: read off its traced graph, layer by layer.

Every convolution and linear layer opens a group of channels; batch norms, sums and depthwise convolutions tie what they
touch to the groups they read. Groups tied to the image or to the answer are kept. What is not understood is refused.
"""

from __future__ import annotations

import inspect
import math
import operator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from noisyteacher.errors import UsageError

LAYERS = (nn.Conv2d, nn.Linear, _BatchNorm)
"""The layers that hold channels; subclasses are taken for what they inherit."""

SAME: tuple[type[nn.Module], ...] = (
    nn.Identity, nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d, nn.ZeroPad2d, nn.Upsample, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.SiLU,
    nn.GELU, nn.Mish, nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Softplus,
)  # fmt: skip
"""Modules whose answer has the channels of what they are given."""
SAME_FUNCTIONS: set[Any] = {
    functional.relu, functional.relu6, functional.leaky_relu, functional.elu, functional.silu, functional.gelu,
    functional.mish, functional.hardswish, functional.hardsigmoid, functional.hardtanh, functional.dropout,
    functional.dropout2d, functional.max_pool2d, functional.avg_pool2d, functional.adaptive_avg_pool2d,
    functional.adaptive_max_pool2d, functional.interpolate, functional.sigmoid, functional.tanh, torch.relu,
    torch.sigmoid, torch.tanh, "relu", "relu_", "sigmoid", "sigmoid_", "tanh", "contiguous", "clone",
}  # fmt: skip
"""Functions and, as text, methods of tensors that do the same."""
JOINED: set[Any] = {
    operator.add, operator.iadd, operator.sub, operator.isub, operator.mul, operator.imul, operator.truediv, torch.add,
    torch.sub, torch.mul, "add", "add_", "sub", "sub_", "mul", "mul_",
}  # fmt: skip
"""Sums and products: both sides have the same channels, or one has a single one."""
MEANS: set[Any] = {torch.mean, "mean"}
FLATTENED: set[Any] = {torch.flatten, torch.reshape, "flatten", "view", "reshape"}


@dataclass(frozen=True)
class Value:
    """What flows between two layers: the channels of a group, each so many times over."""

    group: int
    times: int = 1
    """Channels a group's channel stands for: pixels behind a flattening, kernels of a depthwise convolution."""
    flat: bool = False


@dataclass(frozen=True)
class Use:
    """A layer of the network, what it reads and what it answers."""

    name: str
    layer: nn.Conv2d | nn.Linear | _BatchNorm
    read: Value
    made: Value


@dataclass
class Channels:
    """The groups of a network by number: how many channels each has, and what binds them."""

    uses: list[Use]
    widths: list[int]
    kept: set[int]
    steps: list[int]
    """What the number of channels of each group must stay a multiple of (grouped convolutions)."""
    _same: list[int]

    def root(self, group: int) -> int:
        """The group that stands for all that are tied to this one."""
        while self._same[group] != group:
            group = self._same[group]
        return group


def channels_of(network: nn.Module, channels: int) -> Channels:
    """The groups of a network that takes images of so many channels.

    Raises UsageError naming the first layer or function that is not understood.
    """
    for name, module in network.named_modules():
        own = [one for one, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))]
        if own and not isinstance(module, LAYERS):
            raise _not_understood(network, name, f"a {type(module).__name__} with a tensor {own[0]!r}")
    tracer = _Tracer()
    try:
        graph = tracer.trace(network, _left_out(network))
    except Exception as error:  # whatever a forward of somebody else's does with a symbol instead of a tensor
        raise _not_understood(network, tracer.last, f"a forward that asks its numbers ({error})") from error
    return _Walk(network, channels).over(graph)


def _left_out(network: nn.Module) -> dict[str, Any]:
    """The arguments of its forward beside the images, with their defaults: labels, switches."""
    _, *others = inspect.signature(network.forward).parameters.values()
    return {one.name: one.default for one in others if one.default is not inspect.Parameter.empty}


class _Tracer(fx.Tracer):
    """Looks into every module but torch's own and the layers; `last` is where it looked last.

    A comparison of a size for a difference ("are these the channels I take?") is answered with no: the network takes
    the images it is traced for.
    """

    last = ""

    def to_bool(self, obj: fx.Proxy) -> bool:
        """False for a size that is compared for a difference; anything else cannot be known."""
        sizes = [one for one in obj.node.all_input_nodes if _is_size(one)]
        if obj.node.target is operator.ne and len(sizes) == len(obj.node.all_input_nodes):
            return False
        return bool(super().to_bool(obj))

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        self.last = module_qualified_name
        return isinstance(m, LAYERS) or bool(super().is_leaf_module(m, module_qualified_name))


def _is_size(node: fx.Node) -> bool:
    """Whether it is a size of a tensor: x.size(1), x.shape[1]."""
    if node.target is operator.getitem:
        return isinstance(node.args[0], fx.Node) and _is_size(node.args[0])
    return node.target == "size" or (node.target is getattr and node.args[1] == "shape")


class _Walk:
    def __init__(self, network: nn.Module, channels: int) -> None:
        self.network = network
        self.found = Channels([], [], set(), [], [])
        self.image = self._open(channels)
        self.found.kept.add(self.image.group)
        self.values: dict[fx.Node, Value | None] = {}
        self.of_layer: dict[str, Use] = {}

    def over(self, graph: fx.Graph) -> Channels:
        """All nodes in order; the answer's group is kept."""
        for node in graph.nodes:
            if node.op == "output":
                answers = [self.values[one] for one in node.all_input_nodes]
                self.found.kept |= {one.group for one in answers if one is not None}
            else:
                self.values[node] = self._value(node)
        self.found.kept = {self.found.root(group) for group in self.found.kept}
        return self.found

    def _value(self, node: fx.Node) -> Value | None:
        if node.op == "placeholder":
            return self.image if not self.values else None
        given = [one for one in map(self.values.__getitem__, node.all_input_nodes) if one is not None]
        if node.op == "get_attr":
            raise self._refused(node, f"the tensor {node.target!r}")
        if not given:  # sizes and other plain numbers
            return None
        if node.op == "call_module":
            module = self.network.get_submodule(str(node.target))
            if isinstance(module, LAYERS):
                return self._layer(node, module, given[0])
            if isinstance(module, nn.Flatten) and module.start_dim == 1 and module.end_dim == -1:
                return replace(given[0], flat=True)
            if isinstance(module, SAME):
                return given[0]
            raise self._refused(node, f"a {type(module).__name__}")
        return self._function(node, given)

    def _function(self, node: fx.Node, given: list[Value]) -> Value | None:
        what, rest = node.target, node.args[1:]
        if what in SAME_FUNCTIONS:
            return given[0]
        if what in JOINED:
            return given[0] if len(given) == 1 else self._tie(node, given[0], given[1])
        if what in ("size", "dim") or (what is getattr and rest[0] in ("shape", "ndim")):
            return None
        if what in MEANS:
            over = node.kwargs.get("dim", rest[0] if rest else None)
            pixels = isinstance(over, (list, tuple)) and sorted(one % 4 for one in over) == [2, 3]
            if pixels and not given[0].flat:
                keeps = bool(node.kwargs.get("keepdim", rest[1] if len(rest) > 1 else False))
                return replace(given[0], flat=not keeps)
        if what in FLATTENED and self._flattens(what, rest, node.kwargs):
            return replace(given[0], flat=True)
        name = what if isinstance(what, str) else getattr(what, "__name__", str(what))
        raise self._refused(node, f"{name}() with these arguments")

    @staticmethod
    def _flattens(what: Any, rest: tuple[Any, ...], named: dict[str, Any]) -> bool:
        """Whether [B, C, H, W] becomes [B, C * H * W], whatever C is: flatten(1), view(B, -1)."""
        if what in (torch.flatten, "flatten"):
            return (*rest, *named.values()) == (1,)
        sizes = rest[0] if len(rest) == 1 and isinstance(rest[0], (list, tuple)) else rest
        return not named and len(sizes) == 2 and sizes[1] == -1

    def _layer(self, node: fx.Node, layer: nn.Conv2d | nn.Linear | _BatchNorm, read: Value) -> Value:
        name, width = str(node.target), self.found.widths[read.group]
        if isinstance(layer, nn.Conv2d):
            expected, fits = layer.in_channels, not read.flat and layer.in_channels == width * read.times
        else:
            expected = layer.in_features if isinstance(layer, nn.Linear) else layer.num_features
            if read.flat and expected % width == 0:
                read = replace(read, times=expected // width)
            fits = expected == width * read.times and (read.flat or not isinstance(layer, nn.Linear))
        if not fits:
            raise self._refused(node, f"a {type(layer).__name__} of {expected} channels behind {width} of them")
        before = self.of_layer.get(name)
        if before is not None:  # the same weights again: the same channels
            self._tie(node, before.read, read)
            return before.made
        made = self._made(node, layer, read)
        self.of_layer[name] = use = Use(name, layer, read, made)
        self.found.uses.append(use)
        return made

    def _made(self, node: fx.Node, layer: nn.Conv2d | nn.Linear | _BatchNorm, read: Value) -> Value:
        if isinstance(layer, _BatchNorm):
            return read
        if isinstance(layer, nn.Linear):
            return replace(self._open(layer.out_features), flat=True)
        if layer.groups == 1:
            return self._open(layer.out_channels)
        if layer.groups == layer.in_channels:
            return replace(read, times=read.times * (layer.out_channels // layer.in_channels))
        if read.times != 1:
            raise self._refused(node, f"a convolution of {layer.groups} groups behind a depthwise one")
        made = self._open(layer.out_channels)
        for group in (read.group, made.group):
            root = self.found.root(group)
            self.found.steps[root] = math.lcm(self.found.steps[root], layer.groups)
        return made

    def _open(self, width: int) -> Value:
        group = len(self.found.widths)
        self.found.widths.append(width)
        self.found.steps.append(1)
        self.found._same.append(group)
        return Value(group)

    def _tie(self, node: fx.Node, one: Value, other: Value) -> Value:
        widths = [self.found.widths[value.group] * value.times for value in (one, other)]
        if 1 in widths and widths[0] != widths[1]:  # a map of one channel against all of them
            return one if widths[1] == 1 else other
        if widths[0] != widths[1] or one.times != other.times:
            raise self._refused(node, f"a sum or product of {widths[0]} and {widths[1]} channels")
        first, second = sorted((self.found.root(one.group), self.found.root(other.group)))
        self.found._same[second] = first
        self.found.steps[first] = math.lcm(self.found.steps[first], self.found.steps[second])
        return one

    def _refused(self, node: fx.Node, what: str) -> UsageError:
        inside = node.meta.get("nn_module_stack")
        return _not_understood(self.network, next(reversed(inside)) if inside else str(node.name), what)


def _not_understood(network: nn.Module, name: str, what: str) -> UsageError:
    return UsageError(
        f"{type(network).__name__} cannot be narrowed: at {name or 'its own forward'}, {what} is not understood; known "
        "are convolutions, batch norms, linear layers, poolings, activations and sums; take a network by name instead, "
        "such as compact-s"
    )
