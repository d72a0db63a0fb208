"""The names of other libraries' networks, read from their source files: importing timm takes seconds."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from noisyteacher.errors import UnknownNameError
from noisyteacher.text import nearest

CLOSE = 0.75
"""How alike a library's name must be (difflib's ratio): with over a thousand names, something is always half alike."""
WELL_KNOWN = {
    "timm": (
        "convnext_nano", "convnext_tiny", "deit_small_patch16_224", "deit_tiny_patch16_224", "densenet121",
        "efficientnet_b0", "efficientnet_b1", "ghostnet_100", "mixer_b16_224", "mnasnet_100", "mobilenetv2_100",
        "mobilenetv3_large_100", "mobilenetv3_small_050", "mobilenetv3_small_100", "regnety_002", "resnet18",
        "resnet34", "resnet50", "resnet101", "resnext50_32x4d", "swin_tiny_patch4_window7_224", "vgg11", "vgg16",
        "vit_base_patch16_224", "vit_small_patch16_224", "vit_tiny_patch16_224", "wide_resnet50_2", "xception41",
    ),
    "torchvision": (
        "alexnet", "convnext_small", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s",
        "googlenet", "inception_v3", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small",
        "regnet_y_400mf", "resnet18", "resnet34", "resnet50", "resnet101", "resnext50_32x4d", "shufflenet_v2_x1_0",
        "squeezenet1_1", "swin_t", "vgg11", "vgg16", "vit_b_16", "wide_resnet50_2",
    ),
}  # fmt: skip
"""Library -> its names that are asked for most, for where it is not installed."""
_REGISTERED = re.compile(r"^@register_model\b.*?^def (\w+)\(", re.MULTILINE | re.DOTALL)


@cache
def network_names(library: str) -> frozenset[str]:
    """The networks that an installed timm or torchvision registers; WELL_KNOWN where it is not installed."""
    spec = find_spec(library)
    folders = (spec.submodule_search_locations if spec is not None else None) or ()
    files = [file for folder in folders for file in Path(folder, "models").glob("*.py")]
    names = {name for file in files for name in _REGISTERED.findall(file.read_text("utf-8", errors="replace"))}
    return frozenset(names or WELL_KNOWN[library])


def nearest_networks(name: str, known: Iterable[str]) -> list[str]:
    """The names most like `name`: one of `known`, or `timm:NAME` and `torchvision:NAME` where those are closer.

    `nearest_networks("resnet18", ["lenet"]) == ["timm:resnet18", "torchvision:resnet18"]`; empty where none is close.
    """
    ours = nearest(name, known)
    best, names = (0.0, []) if ours is None else (_likeness(name, ours), [ours])
    for library in WELL_KNOWN:
        for close in get_close_matches(name, network_names(library), n=1, cutoff=CLOSE):
            likeness = _likeness(name, close)
            if likeness > best:
                best, names = likeness, []
            if likeness == best and names != [ours]:
                names.append(f"{library}:{close}")
    return names


def unknown_network(name: str, known: Iterable[str]) -> UnknownNameError:
    """The error for a network's name that is not among `known`: it suggests the nearest and lists what there is."""
    ours = sorted(known)
    close = " or ".join(repr(one) for one in nearest_networks(name, ours))
    hint = f"did you mean {close}? " if close else ""
    libraries = ", ".join(f"{library}:NAME" for library in (*WELL_KNOWN, "hf"))
    return UnknownNameError(f"unknown model {name!r}: {hint}known are {', '.join(ours)}, and {libraries}")


def _likeness(name: str, other: str) -> float:
    return SequenceMatcher(None, other, name).ratio()
