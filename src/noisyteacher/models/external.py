"""Networks of timm and torchvision by name, built for the data's classes, channels and image size."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from noisyteacher.errors import DataError, MismatchError, UnknownNameError, UsageError
from noisyteacher.models.preprocess import Resized, Shape, Standardize
from noisyteacher.text import nearest

WHOLE = "whole"
"""The option `pretrained` that means: with the pretrained head too, so that the network works without training."""
_OPERATORS: list[torch.library.Library] = []
"""Operators that were declared for torchvision; they exist as long as this list holds them."""


@dataclass(frozen=True)
class TrainedOn:
    """The images that pretrained weights were trained on: statistics per channel in [0, 1], and the image size."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int] | None
    """(H, W); None when the network takes any, or is built for the data's."""
    mode: str

    def preprocess(self, shape: Shape) -> nn.Module:
        """The preprocessing for images of this shape; for other channels the statistics are averaged."""
        mean, std = list(self.mean), list(self.std)
        if len(mean) != shape[0]:
            mean, std = ([sum(values) / len(values)] * shape[0] for values in (mean, std))
        standardize = Standardize(mean, std)
        return standardize if self.size in (None, shape[1:]) else Resized(standardize, self.size or (), self.mode)


@dataclass(frozen=True)
class ExternalModel:
    """A network of another library, what builds it again, and which images it takes."""

    network: nn.Module
    options: dict[str, Any]
    """JSON-able arguments that build the same network without weights."""
    trained_on: TrainedOn | None
    """What its weights were trained on, or usually are; None when the library does not say."""
    pretrained: bool
    fixed_size: tuple[int, int] | None = None
    """(H, W) of the only images it takes; None when it takes any."""
    name: str | None = None
    """Its name without the library's prefix, where that is not the name it was built by."""


def timm_network(name: str, classes: int, shape: Shape, options: dict[str, Any]) -> ExternalModel:
    """A network of timm, by default untrained; `pretrained=True` downloads its weights, with a new head for other
    classes, `pretrained="whole"` takes them with their head.

    Networks of a fixed input size are built for the data's, pretrained ones for their own (or `img_size`). Raises
    UsageError without timm and for options it does not take, UnknownNameError, DataError when the weights cannot be
    downloaded, MismatchError when the pretrained head has other classes.
    """
    timm = _import_library("timm")
    pretrained = pretrained_option(options, name)
    _refuse_options(options, ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"), name)
    if name.split(".")[0] not in timm.list_models():
        raise _unknown("timm", name, timm.list_models())
    try:
        config = timm.get_pretrained_cfg(name)
    except Exception as error:  # an unknown tag; timm's class for it differs between versions
        raise UsageError(f"timm:{name}: {error}; see timm.list_pretrained()") from error
    stated = config.to_dict() if config is not None else {}
    arguments = {key: value for key, value in options.items() if key != "pretrained"}
    check_classes(f"timm:{name}", pretrained, stated.get("num_classes"), classes)
    size = tuple(stated.get("input_size", (3, 224, 224))[1:])
    if stated.get("fixed_input_size"):
        arguments.setdefault("img_size", list(size if pretrained else shape[1:]))
    tuples = {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}
    network = create(
        f"timm:{name}",
        lambda: timm.create_model(name, pretrained=bool(pretrained), num_classes=classes, in_chans=shape[0], **tuples),
        arguments,
        bool(pretrained),
    )
    fixed = sides(arguments.get("img_size"))
    made_for = fixed or (size if pretrained else None)
    trained_on = trained_on_of(stated.get("mean"), stated.get("std"), made_for, stated.get("interpolation", "bicubic"))
    return ExternalModel(network, arguments, trained_on, bool(pretrained), fixed)


def torchvision_network(name: str, classes: int, shape: Shape, options: dict[str, Any]) -> ExternalModel:
    """A classifier of torchvision, by default untrained; `pretrained=True` downloads its newest weights.

    The first convolution takes the data's channels (pretrained filters are summed over theirs), the last layer has
    their classes. Raises as `timm_network`.
    """
    models = _import_library("torchvision").models
    pretrained = pretrained_option(options, name)
    _refuse_options(options, ("weights", "progress", "num_classes"), name)
    names = models.list_models(module=models)
    if name not in names:
        raise _unknown("torchvision", name, names)
    arguments = {key: value for key, value in options.items() if key != "pretrained"}
    weights = models.get_model_weights(name).DEFAULT if pretrained else None
    trained_on = TrainedOn((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), None, "bilinear")
    built_classes = classes
    if weights is not None:
        built_classes = len(weights.meta["categories"])
        check_classes(f"torchvision:{name}", pretrained, built_classes, classes)
        preset = weights.transforms()
        size = (preset.crop_size[0], preset.crop_size[0])
        trained_on = TrainedOn(tuple(preset.mean), tuple(preset.std), size, preset.interpolation.value)
    if name.startswith("vit_"):
        arguments.setdefault("image_size", trained_on.size[0] if trained_on.size else shape[1])
    if name in ("googlenet", "inception_v3") and weights is None:
        arguments = {"aux_logits": False, "init_weights": True, **arguments}
    elif name in ("googlenet", "inception_v3"):
        arguments |= {"aux_logits": False, "transform_input": True}
    # torchvision builds the auxiliary heads that it has weights for, and refuses aux_logits=False beside them.
    call = {key: value for key, value in arguments.items() if weights is None or key != "aux_logits"}
    call |= {"weights": weights} if weights is not None else {"weights": None, "num_classes": classes}
    network = create(
        f"torchvision:{name}", lambda: models.get_model(name, **call), arguments, pretrained=bool(pretrained)
    )
    if weights is not None and name == "inception_v3":
        network.aux_logits, network.AuxLogits = False, None  # type: ignore[assignment]
    if built_classes != classes:
        _replace_head(network, built_classes, classes)
    _adapt_stem(network, shape[0], keep_filters=bool(pretrained))
    fixed = sides(arguments.get("image_size", trained_on.size)) if name.startswith("vit_") else None
    return ExternalModel(network, arguments, trained_on, bool(pretrained), fixed)


# ------------------------------------------------------------------------------------- shared with transformers


def create(name: str, make: Callable[[], nn.Module], options: Mapping[str, Any], pretrained: bool) -> nn.Module:
    """The network that `make` returns. Any error becomes a DataError for pretrained weights, else a UsageError."""
    try:
        return make()
    except Exception as error:  # hubs, URLs, caches and checks of arguments: each library raises its own classes
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        if pretrained:
            raise DataError(
                f"{name}: its pretrained weights could not be loaded ({reason}): check the network and the name, or "
                "give a file that you have by teacher.weights"
            ) from error
        raise UsageError(f"{name} cannot be built with the options {dict(options)}: {reason}") from error


def pretrained_option(options: Mapping[str, Any], name: str, default: bool | str = False) -> bool | str:
    """The option `pretrained`: False, True or WHOLE. Raises UsageError for anything else."""
    value: bool | str = options.get("pretrained", default)
    if not isinstance(value, bool) and value != WHOLE:
        raise UsageError(f"option pretrained={value!r} of {name}: expected true, false or {WHOLE!r}")
    return value


def check_classes(name: str, pretrained: bool | str, pretrained_classes: int | None, classes: int) -> None:
    """Raises MismatchError for weights with their head that have other classes than the data."""
    if pretrained == WHOLE and pretrained_classes != classes:
        raise MismatchError(
            f"{name} has {pretrained_classes} classes, the data {classes}: give data with its classes, or say "
            "pretrained=true (teacher.options.pretrained) to give it a new head and train it"
        )


def trained_on_of(mean: Any, std: Any, size: tuple[int, int] | None, interpolation: str) -> TrainedOn | None:
    """TrainedOn from a library's description of a network's images; None when it states no statistics."""
    if not mean or not std:
        return None
    mode = interpolation if interpolation in ("nearest", "bilinear") else "bicubic"
    return TrainedOn(tuple(mean), tuple(std), size, mode)


def sides(size: Any) -> tuple[int, int] | None:
    """(H, W) of a size that may be one number. `sides(32) == (32, 32)`."""
    if size is None:
        return None
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))


def import_torchvision() -> Any:
    """torchvision, also beside a torch without its compiled operators; raises ImportError when it is not installed.

    A torchvision wheel for CUDA cannot load its operators beside a CPU-only torch, and its import then fails at two of
    them that no classifier uses. They are declared without an implementation, and the import is tried again.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        operators = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for name in ("nms", "qnms"):
            operators.define(  # type: ignore[no-untyped-call]
                f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
        _OPERATORS.append(operators)
        import torchvision
    return torchvision


def _import_library(library: str) -> Any:
    """timm or torchvision, imported. Raises UsageError that names the extra to install."""
    try:
        torchvision = import_torchvision()
        if library == "torchvision":
            return torchvision
        import timm
    except ImportError as error:
        raise UsageError(f"{library} is not installed: pip install 'noisyteacher[zoo]'") from error
    return timm


def _refuse_options(options: Mapping[str, Any], refused: tuple[str, ...], name: str) -> None:
    for key in refused:
        if key in options:
            raise UsageError(
                f"option {key} of {name} is not passed on: say pretrained=true for the library's weights, "
                "teacher.weights for a file; classes and channels are the data's"
            )


def _replace_head(network: nn.Module, old: int, classes: int) -> None:
    """Replace the last layer of `old` outputs by a fresh one of `classes` outputs."""
    for name, layer in reversed(list(network.named_modules())):
        if isinstance(layer, nn.Linear) and layer.out_features == old:
            network.set_submodule(name, nn.Linear(layer.in_features, classes, bias=layer.bias is not None))
            return
        if isinstance(layer, nn.Conv2d) and layer.out_channels == old:
            network.set_submodule(name, _conv_like(layer, layer.in_channels, classes))
            return
    raise UsageError(f"a {type(network).__name__} has no last layer of {old} outputs to replace: build it yourself")


def _adapt_stem(network: nn.Module, channels: int, keep_filters: bool) -> None:
    """Make the first convolution take so many channels; kept filters are summed and shared among them."""
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d):
            if layer.in_channels != channels:
                stem = _conv_like(layer, channels, layer.out_channels)
                if keep_filters:
                    with torch.no_grad():
                        stem.weight.copy_(layer.weight.sum(1, keepdim=True).expand_as(stem.weight) / channels)
                        if layer.bias is not None and stem.bias is not None:
                            stem.bias.copy_(layer.bias)
                network.set_submodule(name, stem)
            return


def _conv_like(layer: nn.Conv2d, inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(
        inputs,
        outputs,
        layer.kernel_size,  # type: ignore[arg-type]
        layer.stride,  # type: ignore[arg-type]
        layer.padding,  # type: ignore[arg-type]
        layer.dilation,  # type: ignore[arg-type]
        bias=layer.bias is not None,
    )


# ------------------------------------------------------------------------------------------------ names


_REGISTERED = re.compile(r"^@register_model\b.*?^def (\w+)\(", re.MULTILINE | re.DOTALL)


@cache
def network_names(library: str) -> frozenset[str]:
    """The networks that timm or torchvision registers, read from its source files; empty where it is not installed.

    Importing timm would take seconds.
    """
    spec = find_spec(library)
    folders = (spec.submodule_search_locations if spec is not None else None) or ()
    files = [file for folder in folders for file in Path(folder, "models").glob("*.py")]
    return frozenset(name for file in files for name in _REGISTERED.findall(file.read_text("utf-8", errors="replace")))


def nearest_networks(name: str, known: Collection[str]) -> list[str]:
    """The names most like `name`: one of `known`, or `timm:NAME` and `torchvision:NAME` where those are closer.

    `nearest_networks("resnet18", ["lenet"]) == ["timm:resnet18", "torchvision:resnet18"]`; empty where none is close.
    """
    full_names = {short: [short] for short in known}
    for library in ("timm", "torchvision"):
        for short in network_names(library):
            full_names.setdefault(short, []).append(f"{library}:{short}")
    # Among over a thousand names something is always half alike: a library's must be closer than one of ours.
    close = get_close_matches(name, full_names, n=1, cutoff=0.75) or get_close_matches(name, known, n=1, cutoff=0.5)
    return full_names[close[0]] if close else []


def unknown_network(name: str, known: Collection[str]) -> UnknownNameError:
    """The error for a network's name that is not among `known`: it suggests the nearest and lists all."""
    names = sorted(known)
    close = " or ".join(map(repr, nearest_networks(name, names)))
    hint = f"did you mean {close}? " if close else ""
    return UnknownNameError(
        f"unknown model {name!r}: {hint}known are {', '.join(names)}, and timm:NAME, torchvision:NAME, hf:NAME"
    )


def _unknown(library: str, name: str, names: Collection[str]) -> UnknownNameError:
    close = nearest(name, names)
    hint = f"did you mean {library}:{close}? " if close else ""
    return UnknownNameError(
        f"{library}:{name}: no such network; {hint}{library} has {len(names):,} (its list_models())"
    )
