"""`shrink:RATIO`: a narrower copy of a network, with the same layers and names and its most important channels.

torch-pruning's dependency graph (Fang et al. 2023, arXiv 2301.12900) says which channels go together. The channels of
the image and the classes are kept. A file of a narrowed network is read without torch-pruning: its tensors have the
widths.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypedDict, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from noisyteacher.errors import UsageError
from noisyteacher.models.classifier import Options, logits_of
from noisyteacher.models.networks import he_normal

SHRINK = "shrink:"
STEP = 8
"""Large multiples of it stay multiples of it: CPUs compute on this many channels at once."""
DEEPEST = 8
"""How many times in a row a network may be narrowed."""
LEAST = 0.25
"""Where all channels are ranked together, each layer keeps at least this share of `ratio` of its channels."""
CHUNK = 32
"""Images whose gradients are computed at once."""
Init = Literal["magnitude", "taylor", "random"]
"""The weights of the channels with the largest L1 norm, of those whose removal changes the loss most, or new ones."""
Pruning = Literal["uniform", "global"]
"""Every layer keeps the same share of its channels, or all channels are ranked together."""
CHOICES: dict[str, tuple[str, ...]] = {"init": get_args(Init), "pruning": get_args(Pruning)}
"""The options of `shrink:RATIO` and their values."""
ATTRIBUTES = frozenset((
    "num_features", "num_channels", "normalized_shape", "num_parameters", "embedding_dim", "num_heads", "head_dim",
    "attn_dim", "embed_dim", "kdim", "vdim",
))  # fmt: skip
"""Sizes that modules keep as whole numbers, and that a file may state where their tensors do not tell them."""


class Origin(TypedDict):
    """The network that a narrowed one was copied from, as its options record it under "of"."""

    name: str
    options: Options


class Narrowed(NamedTuple):
    """A narrower copy of a network."""

    network: nn.Module
    attributes: dict[str, dict[str, Any]]
    """By a module's name those of ATTRIBUTES that `reshape_network` needs besides the shapes of the tensors."""
    head: str
    """The name of the layer that gives the logits; "" where it is not one."""


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

    Raises UsageError when the record of a narrowed network does not state it, or names more than DEEPEST copies.
    """
    for _ in range(DEEPEST + 1):
        match architecture:
            case {"name": str(name), "options": dict(options)} if name.startswith(SHRINK):
                ratio_of(name)
                architecture = options.get("of")
            case {"name": str(name), "options": dict(options)}:
                return Origin(name=name, options=options)
    raise UsageError(
        f"the record of a narrowed network does not say what it was narrowed from, in {DEEPEST} steps at most"
    )


def narrowed(width: int, ratio: float, multiple: int = 1) -> int:
    """The width times the ratio, rounded to a multiple of `multiple`, at least one of them.

    `narrowed(160, 0.5) == 80`, `narrowed(50, 0.5) == 25`, `narrowed(96, 0.3) == 32`, `narrowed(3, 0.1) == 1`.
    """
    keeps_eights = width % STEP == 0 and width * ratio >= 2 * STEP
    step = math.lcm(STEP if keeps_eights else 1, multiple)
    return min(width, max(step, step * math.floor(width * ratio / step + 0.5)))


def narrow_network(
    network: nn.Module, ratio: float, images: Tensor, init: Init = "magnitude", pruning: Pruning = "uniform"
) -> Narrowed:
    """A copy of the network with every hidden number of channels times the ratio (0 < ratio <= 1), at least 1.

    `images` are preprocessed, `[B, C, H, W]`; `taylor` ranks channels by their gradients on all of them, under the
    cross-entropy with the class that the network itself prefers (Molchanov et al. 2019, arXiv 1906.10771). Multiples of
    8 stay such where 16 or more are left; groups of convolutions and widths of attention heads stay whole. The copy is
    on the CPU and in training mode. Raises UsageError naming the layer at which the copy fails, when there is no hidden
    layer, and without torch-pruning.
    """
    problem = f"{type(network).__name__} cannot be narrowed"
    try:
        import torch_pruning
    except ImportError as error:
        raise UsageError(f"{problem}: that needs torch-pruning: pip install 'noisyteacher[prune]'") from error
    copied, images = copy.deepcopy(network).cpu().eval(), images.cpu()
    for parameter in copied.parameters():
        parameter.requires_grad_(parameter.is_floating_point()).grad = None
    entered = [""]
    hooks = [
        module.register_forward_pre_hook(lambda *_, name=name: entered.append(name))
        for name, module in copied.named_modules()
    ]
    try:
        with torch.enable_grad():
            classes = logits_of(copied(images[:2])).shape[1]
            graph = torch_pruning.DependencyGraph().build_dependency(
                copied, images[:1], forward_fn=lambda model, ready: logits_of(model(ready)) * 1, verbose=False
            )  # times 1: only behind a module there is a node for the output
            for chunk in torch.split(images, CHUNK) if init == "taylor" else ():
                logits = logits_of(copied(chunk))
                F.cross_entropy(logits, logits.argmax(1), reduction="sum").backward()  # type: ignore[no-untyped-call]
        entered.append("")
        kind = torch_pruning.importance
        importance = kind.TaylorImportance() if init == "taylor" else kind.MagnitudeImportance(p=1)
        head = _prune(graph, ratio, importance, pruning == "global")
        with torch.no_grad():
            logits_of(copied(images[:2]))
        if head and len(copied.get_parameter(f"{head}.weight")) != classes:
            head = ""
    except Exception as error:  # the forward is a user's, and the graph raises whatever goes wrong in it
        at = f"at {entered[-1]}, " if entered[-1] else ""
        reason = f"{at}{type(error).__name__}: {error}"
        raise UsageError(f"{problem}: {reason}; name another student, such as compact-s") from error
    for hook in hooks:
        hook.remove()
    shapes = [[parameter.shape for parameter in module.parameters()] for module in (network, copied)]
    if shapes[0] == shapes[1] and ratio < 1:
        raise UsageError(f"{problem}: it has no hidden layer, or none whose channels can be taken away")
    if init == "random":
        _draw_anew(copied, problem)
    copied.zero_grad()
    reshaped = copy.deepcopy(network).to("meta")
    reshape_network(reshaped, copied.state_dict(), {})
    attributes = {
        name: dict(changed)
        for (name, ours), theirs in zip(copied.named_modules(), reshaped.modules(), strict=True)
        if (changed := [size for size in sorted(_sizes(ours).items()) if size not in _sizes(theirs).items()])
    }
    return Narrowed(copied.train(), attributes, head)


def _prune(graph: Any, ratio: float, importance: Any, ranked_together: bool) -> str:
    """Take the least important channels away; the name of the layer that gives the logits, "" if it is not one."""
    names = {module: name for name, module in graph.model.named_modules()}
    attention = {
        module.qkv: module
        for module in names
        if isinstance(getattr(module, "qkv", None), nn.Linear) and isinstance(getattr(module, "num_heads", None), int)
    }
    head, ranked = "", []
    for group in graph.get_all_groups(root_module_types=[_ConvNd, nn.Linear]):
        layers = [dep.target.module for dep, _ in group if graph.is_out_channel_pruning_fn(dep.handler)]
        if any(dep.target.type == graph.ops.OPTYPE.OUTPUT for dep, _ in group):
            weighted = [layer for layer in layers if layer in names and any(True for _ in layer.parameters())]
            head = names[weighted[0]] if len(weighted) == 1 and not getattr(weighted[0], "transposed", False) else ""
            continue
        heads = next((attention[layer] for layer in layers if layer in attention), None)
        if heads is None:
            blocks = math.lcm(*(_blocks(dep.target.module) for dep, _ in group))
        else:  # from the layer behind it, whose inputs are the heads one by one
            blocks = heads.num_heads
            readers = [item for item in group if graph.is_in_channel_pruning_fn(item.dep.handler)]
            dep, indices = [item for item in readers if isinstance(item.dep.target.module, nn.Linear)][-1]
            group = graph.get_pruning_group(dep.target.module, dep.handler, indices)
        scores = importance(group)
        if scores is None or len(scores) % blocks:  # one channel that is broadcast over many
            continue
        scores = scores.nan_to_num()  # of a layer without gradients
        units = torch.arange(len(scores)).view(blocks, -1)  # a head is a row
        if heads is not None:
            parts = [units]
        elif blocks > 1:
            parts = [units.T]
        else:  # behind a concatenation every layer keeps its share
            parts = [units.T[part] for part in _parts(graph, group, len(scores))]
        ranked.append((group, heads, [(part, scores[part].mean(1)) for part in parts]))
    least = torch.cat([score for *_, scored in ranked for _, score in scored]).quantile(1 - ratio) if ranked else 0
    for group, heads, scored in ranked:
        removed: list[int] = []
        for units, score in scored:
            share = max(LEAST * ratio, float((score > least).float().mean())) if ranked_together else ratio
            multiple = 1 if heads is not None else units.shape[1]
            kept = narrowed(len(units) * multiple, share, multiple) // multiple
            removed += units[score.argsort(stable=True)[: len(units) - kept]].flatten().tolist()
        smaller = graph.get_pruning_group(group[0].dep.target.module, group[0].dep.handler, sorted(removed))
        if removed and graph.check_pruning_group(smaller):
            smaller.prune()
            if heads is not None:
                heads.num_heads = kept
                if hasattr(heads, "attn_dim"):
                    heads.attn_dim = kept * units.shape[1]
    return head


def _parts(graph: Any, group: Any, width: int) -> list[list[int]]:
    """The numbers of a group's channels, `width` in all, by the layers that give them."""
    layers: list[set[int]] = [
        set(item.root_idxs)
        for item in group
        if isinstance(item.dep.target.module, (_ConvNd, nn.Linear))
        and graph.is_out_channel_pruning_fn(item.dep.handler)
    ]
    parts: dict[tuple[bool, ...], list[int]] = {}
    for channel in range(width):
        parts.setdefault(tuple(channel in layer for layer in layers), []).append(channel)
    return list(parts.values())


def _blocks(module: object) -> int:
    """The number of equal parts of a layer's channels that must stay equal."""
    if isinstance(module, _ConvNd):
        return 1 if module.groups == module.out_channels else module.groups
    if isinstance(module, nn.GroupNorm):
        return module.num_groups
    return module.num_heads if isinstance(module, nn.MultiheadAttention) else 1


def _draw_anew(network: nn.Module, problem: str) -> None:
    """Draw all weights from torch's generator, He-normal where that is defined, and start batch norms anew."""
    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            continue  # drawn at the end
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()
        elif (tensor := next((key for key, _ in module.named_parameters(recurse=False)), None)) is not None:
            raise UsageError(
                f"{problem} with random weights: at {name}, nothing says how the tensor {tensor!r} of a "
                f"{type(module).__name__} is drawn: leave init out"
            )
    he_normal(network)


def reshape_network(network: nn.Module, tensors: Mapping[str, Tensor], attributes: Any) -> None:
    """Give the network's tensors the shapes of these (its state dict once it is narrowed), and its modules their sizes.

    Tensors are not filled. Raises UsageError unless all sizes are whole numbers from 1 to those of the network.
    """
    modules = dict(network.named_modules())
    for path, module in modules.items():
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            shape = tensors.get(f"{path}.{name}" if path else name, tensor).shape
            if not _is_narrower(list(shape), list(tensor.shape)):
                stated = f"{path}.{name} {tuple(shape)} instead of {tuple(tensor.shape)}"
                raise UsageError(f"a tensor of the narrowed network is wider than in its original: {stated}")
            if shape != tensor.shape:
                empty = tensor.new_empty(shape)
                is_parameter = isinstance(tensor, nn.Parameter)
                setattr(module, name, nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty)
        _adopt_sizes(module)
    for path, sizes in attributes.items() if isinstance(attributes, dict) else [("", attributes)]:
        present = _sizes(modules.get(path))
        for name, value in sizes.items() if isinstance(sizes, dict) else [("", None)]:
            if name not in present or not _is_narrower(value, present[name]):
                raise UsageError(
                    f"the narrowed network states {path}.{name} = {value!r:.40}, expected a size of at most "
                    f"{present.get(name)}"
                )
            setattr(modules[path], name, tuple(value) if isinstance(value, list) else value)


def _sizes(module: nn.Module | None) -> dict[str, Any]:
    """The ATTRIBUTES that a module has: whole numbers or lists of them."""
    stated = {} if module is None else {name: vars(module)[name] for name in ATTRIBUTES & vars(module).keys()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in stated.items()}


def _is_narrower(value: Any, most: Any) -> bool:
    """Whether it is a whole number of 1 or more and at most `most`; of lists, whether each is."""
    if isinstance(value, list) and isinstance(most, list):
        return len(value) == len(most) and all(map(_is_narrower, value, most))
    return type(value) is int and type(most) is int and (1 <= value <= most or value == most)


def _adopt_sizes(module: nn.Module) -> None:
    """Set a layer's numbers of channels to those of its tensors; a depthwise convolution stays depthwise."""
    if isinstance(module, _ConvNd):
        if module.groups == module.in_channels > 1 and not module.transposed:
            module.groups = module.weight.shape[0] // (module.out_channels // module.in_channels)
        channels = list(module.weight.shape[:2])
        channels[1] *= module.groups
        module.out_channels, module.in_channels = reversed(channels) if module.transposed else channels
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _BatchNorm) and module.weight is not None:
        module.num_features = len(module.weight)
    elif isinstance(module, nn.LayerNorm) and module.weight is not None:
        module.normalized_shape = tuple(module.weight.shape)
