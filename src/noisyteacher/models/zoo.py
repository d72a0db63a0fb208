"""Networks of timm and torchvision by name, made for the data's classes, channels and size."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import library as operators
from torch import nn

from noisyteacher.errors import DataError, MismatchError, UnknownNameError, UsageError
from noisyteacher.models.preprocess import Resized, Shape, Standardize
from noisyteacher.text import nearest

WHOLE = "whole"
"""The option `pretrained` that means: with its own head too, so that it can answer without being trained."""
_SCHEMAS: list[operators.Library] = []
"""Operators that were declared for torchvision; they last as long as this list holds them."""


@dataclass(frozen=True)
class Own:
    """What a network that comes with weights wants to see: statistics per channel in [0, 1], and its image size."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int] | None
    """(H, W) that it was made for; None when it takes any, or is made for the data's."""
    mode: str

    def front(self, shape: Shape) -> nn.Module:
        """The preprocessing for images of this shape; other channels than its own get the mean of its statistics."""
        mean, std = list(self.mean), list(self.std)
        if len(mean) != shape[0]:
            mean, std = ([sum(values) / len(values)] * shape[0] for values in (mean, std))
        plain = Standardize(mean, std)
        return plain if self.size in (None, shape[1:]) else Resized(plain, self.size or (), self.mode)


@dataclass(frozen=True)
class Brought:
    """A network from a library, and what is needed to build it again and to feed it."""

    network: nn.Module
    options: dict[str, Any]
    """JSON-able arguments that build the same network without weights."""
    own: Own | None
    """What its weights were trained on, or would be by custom; None when nothing says so."""
    trained: bool
    """Whether it came with weights."""
    takes: tuple[int, int] | None = None
    """(H, W) of the only images it takes; None when it takes any."""
    name: str | None = None
    """What it is called from then on, without the library's prefix, where that is not the name it was asked by."""


def timm_network(name: str, classes: int, shape: Shape, options: dict[str, Any]) -> Brought:
    """A network of timm, by default untrained; `pretrained=True` fetches its weights and gives them a new head where
    the classes are other ones, `pretrained="whole"` takes them as they are.

    Networks of a fixed input size are built for the data's, pretrained ones for their own (or `img_size`). Raises
    UsageError without timm and for options it does not take, UnknownNameError, DataError when the weights cannot
    be had, MismatchError when they are to be taken whole and have other classes.
    """
    timm = _imported("timm")
    pretrained = wanted(options, name)
    _refuse_options(options, ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"), name)
    if name.split(".")[0] not in timm.list_models():
        raise _unknown("timm", name, timm.list_models())
    try:
        known = timm.get_pretrained_cfg(name)
    except Exception as error:  # an unknown tag; timm's own class for it has moved about
        raise UsageError(f"timm:{name}: {error}; see timm.list_pretrained()") from error
    config = known.to_dict() if known is not None else {}
    plain = {key: value for key, value in options.items() if key != "pretrained"}
    refuse_other_classes(f"timm:{name}", pretrained, config.get("num_classes"), classes)
    size = tuple(config.get("input_size", (3, 224, 224))[1:])
    if config.get("fixed_input_size"):
        plain.setdefault("img_size", list(size if pretrained else shape[1:]))
    arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()}

    def make() -> nn.Module:
        made: nn.Module = timm.create_model(
            name, pretrained=bool(pretrained), num_classes=classes, in_chans=shape[0], **arguments
        )
        return made

    network = fetched(f"timm:{name}", make) if pretrained else built(f"timm:{name}", make, plain)
    takes = sides(plain.get("img_size"))
    made_for = takes or (size if pretrained else None)
    own = own_of(config.get("mean"), config.get("std"), made_for, config.get("interpolation", "bicubic"))
    return Brought(network, plain, own, bool(pretrained), takes)


def torchvision_network(name: str, classes: int, shape: Shape, options: dict[str, Any]) -> Brought:
    """A classifier of torchvision, by default untrained; `pretrained=True` fetches its newest weights.

    The first convolution takes the data's channels (pretrained ones are summed over), the last layer gives their
    classes. Raises as `timm_network`.
    """
    torchvision = _imported("torchvision")
    pretrained = wanted(options, name)
    _refuse_options(options, ("weights", "progress", "num_classes"), name)
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise _unknown("torchvision", name, known)
    plain = {key: value for key, value in options.items() if key != "pretrained"}
    own = Own((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), None, "bilinear")
    if pretrained:
        weights = torchvision.models.get_model_weights(name).DEFAULT
        refuse_other_classes(f"torchvision:{name}", pretrained, len(weights.meta["categories"]), classes)
        preset = weights.transforms()
        own = Own(tuple(preset.mean), tuple(preset.std), (preset.crop_size[0],) * 2, preset.interpolation.value)
        if name.startswith("vit_"):
            plain.setdefault("image_size", preset.crop_size[0])
        if name in ("googlenet", "inception_v3"):  # with these weights, and not without, by torchvision's own default
            plain |= {"aux_logits": False, "transform_input": True}
        network = fetched(f"torchvision:{name}", lambda: torchvision.models.get_model(name, weights=weights, **plain))
        _new_head(network, len(weights.meta["categories"]), classes)
    else:
        if name.startswith("vit_"):
            plain.setdefault("image_size", shape[1])
        if name in ("googlenet", "inception_v3"):
            plain.setdefault("init_weights", True)
            plain.setdefault("aux_logits", False)
        network = built(
            f"torchvision:{name}",
            lambda: torchvision.models.get_model(name, weights=None, num_classes=classes, **plain),
            plain,
        )
    _new_stem(network, shape[0], keep=bool(pretrained))
    takes = sides(plain.get("image_size", own.size)) if name.startswith("vit_") else None
    return Brought(network, plain, own, bool(pretrained), takes)


def own_of(mean: Any, std: Any, size: tuple[int, int] | None, interpolation: str) -> Own | None:
    """What a library's description of a network's images comes to; None when it gives no statistics."""
    if not mean or not std:
        return None
    mode = interpolation if interpolation in ("nearest", "bilinear") else "bicubic"
    return Own(tuple(mean), tuple(std), size, mode)


def sides(size: Any) -> tuple[int, int] | None:
    """(H, W) of a size that may be one number. `sides(32) == (32, 32)`."""
    if size is None:
        return None
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _unknown(library: str, name: str, known: Collection[str]) -> UnknownNameError:
    close = nearest(name, known)
    hint = f"did you mean {library}:{close}? " if close else ""
    return UnknownNameError(
        f"{library}:{name}: no such network; {hint}{library} has {len(known):,} (its list_models())"
    )


def fetched(name: str, make: Callable[[], nn.Module]) -> nn.Module:
    """What `make` gives; whatever hinders it from getting weights becomes a DataError."""
    try:
        return make()
    except Exception as error:  # a hub, a URL, a cache, a disk: each library raises its own kinds
        raise DataError(
            f"{name}: its pretrained weights could not be had ({_first_line(error)}): check the network and the name, "
            "or give a file that you have by teacher.weights"
        ) from error


def built(name: str, make: Callable[[], nn.Module], options: Mapping[str, Any]) -> nn.Module:
    """What `make` gives; the library's own objections become an UsageError."""
    try:
        return make()
    except Exception as error:  # a library's checks of its arguments: TypeError, ValueError, AssertionError and more
        raise UsageError(f"{name} cannot be built with the options {dict(options)}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def wanted(options: Mapping[str, Any], name: str, default: bool | str = False) -> bool | str:
    """The option `pretrained`: False, True or WHOLE. Raises UsageError for anything else."""
    value: bool | str = options.get("pretrained", default)
    if not isinstance(value, bool) and value != WHOLE:
        raise UsageError(f"option pretrained={value!r} of {name}: expected true, false or {WHOLE!r}")
    return value


def refuse_other_classes(name: str, pretrained: bool | str, own: int | None, classes: int) -> None:
    """Raises MismatchError for weights to be taken whole that have other classes than the data."""
    if pretrained == WHOLE and own != classes:
        raise MismatchError(
            f"{name} has {own} classes, the data {classes}: give data with its classes, or say pretrained=true "
            "(teacher.options.pretrained) to give it a new head and train it"
        )


def _refuse_options(options: Mapping[str, Any], refused: tuple[str, ...], name: str) -> None:
    given = [key for key in refused if key in options]
    if given:
        raise UsageError(
            f"option {given[0]} of {name} is not passed on: say pretrained=true for the library's weights, "
            "teacher.weights for a file; classes and channels are the data's"
        )


def _new_head(network: nn.Module, old: int, classes: int) -> None:
    """Replace the last layer of so many outputs by a fresh one; with as many classes it stays."""
    if classes == old:
        return
    for name, part in reversed(list(network.named_modules())):
        if isinstance(part, nn.Linear) and part.out_features == old:
            _put(network, name, nn.Linear(part.in_features, classes, bias=part.bias is not None))
            return
        if isinstance(part, nn.Conv2d) and part.out_channels == old:
            _put(network, name, _like(part, part.in_channels, classes))
            return
    raise UsageError(f"a {type(network).__name__} has no last layer of {old} outputs to replace: build it yourself")


def _new_stem(network: nn.Module, channels: int, keep: bool) -> None:
    """Make the first convolution take so many channels; filters to keep are summed and shared among them."""
    for name, part in network.named_modules():
        if isinstance(part, nn.Conv2d):
            if part.in_channels != channels:
                stem = _like(part, channels, part.out_channels)
                if keep:
                    with torch.no_grad():
                        stem.weight.copy_(part.weight.sum(1, keepdim=True).expand_as(stem.weight) / channels)
                        if part.bias is not None and stem.bias is not None:
                            stem.bias.copy_(part.bias)
                _put(network, name, stem)
            return


def _like(part: nn.Conv2d, inward: int, outward: int) -> nn.Conv2d:
    return nn.Conv2d(
        inward,
        outward,
        part.kernel_size,  # type: ignore[arg-type]
        part.stride,  # type: ignore[arg-type]
        part.padding,  # type: ignore[arg-type]
        part.dilation,  # type: ignore[arg-type]
        bias=part.bias is not None,
    )


def _put(network: nn.Module, name: str, part: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(network.get_submodule(parent), last, part)


def _imported(library: str) -> Any:
    """timm or torchvision, imported. Raises UsageError that names the extra to install."""
    try:
        torchvision = import_torchvision()
        if library == "torchvision":
            return torchvision
        import timm
    except ImportError as error:
        raise UsageError(f"{library} is not installed: pip install 'noisyteacher[zoo]'") from error
    return timm


def import_torchvision() -> Any:
    """torchvision, on a torch without its compiled operators too; raises ImportError when it is not installed.

    A wheel built for CUDA cannot load its operators beside a CPU-only torch, and then fails to describe two of them,
    which no classifier uses. They are declared without an implementation, and the import is tried again.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [one for one in sys.modules if one.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        schemas = operators.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for name in ("nms", "qnms"):
            schemas.define(  # type: ignore[no-untyped-call]
                f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
        _SCHEMAS.append(schemas)
        import torchvision
    return torchvision
