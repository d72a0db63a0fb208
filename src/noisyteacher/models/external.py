"""Networks of timm, torchvision and transformers by name, built for the data's classes, channels and image size.

Code that comes with a network is never run.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Set
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import library as torch_library
from torch import nn

from noisyteacher.errors import DataError, MismatchError, UnknownNameError, UsageError
from noisyteacher.models.classifier import Architecture, Options
from noisyteacher.models.preprocess import MODES, Resized, Shape, Standardize
from noisyteacher.text import nearest

WHOLE = "whole"
"""The option `pretrained` that means: with the pretrained head too, so that the network works without training."""
Size = tuple[int, int]
"""(H, W) in pixels."""
RESAMPLE = {0: "nearest", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers in an image processor's `resample`."""
DROPPED = (
    "architectures", "attn_implementation", "auto_map", "dtype", "experts_implementation", "name_or_path",
    "quantization_config", "torch_dtype", "trust_remote_code", "transformers_version", "use_kernels",
    "use_pretrained_backbone", "custom_pipelines",
)  # fmt: skip
"""Keys of a config that could download or run something, or do not describe the network."""
NOT_BUILT = {True: ": its pretrained weights could not be loaded (or use teacher.weights)", False: " cannot be built"}
_OPERATORS: list[torch_library.Library] = []
"""Operators that were declared for torchvision; they exist as long as this list holds them."""


@dataclass(frozen=True)
class ImageStatistics:
    """The images that weights were trained on: statistics per channel in [0, 1], and how images are resized."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: Size | None
    mode: str

    def preprocess(self, shape: Shape) -> nn.Module:
        """The preprocessing for images of this shape; for other channels the statistics are averaged."""
        mean, std = list(self.mean), list(self.std)
        if len(mean) != shape[0]:
            mean, std = ([sum(values) / len(values)] * shape[0] for values in (mean, std))
        standardize = Standardize(mean, std)
        return standardize if self.size in (None, shape[1:]) else Resized(standardize, self.size or (), self.mode)


@dataclass(frozen=True)
class BuiltNetwork:
    """A network, the JSON-able options that build it again without weights, and the images it takes."""

    network: nn.Module
    options: Options = field(default_factory=dict)
    trained_on: ImageStatistics | None = None
    """Where the library states it, also for untrained networks."""
    pretrained: bool = False
    fixed_size: Size | None = None
    """The size of the only images it takes."""
    name: str | None = None
    """The name to record, where that is not the name it was built by."""
    images_unknown: str = ""
    """Why `trained_on` is None, where a library might have stated it."""


def timm_network(name: str, classes: int, shape: Shape, options: Options) -> BuiltNetwork:
    """A network of timm, by default untrained; `pretrained=True` downloads its weights, with a new head for other
    classes, `pretrained="whole"` takes them with their head.

    Networks of a fixed input size are built for the data's, pretrained ones for their own (or `img_size`). Raises
    UsageError, UnknownNameError, DataError when weights cannot be downloaded, MismatchError for a head that differs.
    """
    timm = _import("timm")
    refused = {"checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}
    pretrained, arguments = _split_options(f"timm:{name}", options, refused)
    _check_name("timm", name.split(".")[0], timm.list_models())
    with _library_errors(f"timm:{name} is not in timm.list_pretrained()"):
        config = timm.get_pretrained_cfg(name)
    stated = config.to_dict() if config is not None else {}
    _check_classes(f"timm:{name}", pretrained, stated.get("num_classes"), classes)
    size = tuple(stated.get("input_size", (3, 224, 224))[1:])
    if stated.get("fixed_input_size"):
        arguments.setdefault("img_size", list(size if pretrained else shape[1:]))
    tuples = {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}
    with _library_errors(f"timm:{name}{NOT_BUILT[bool(pretrained)]}", pretrained):
        network = timm.create_model(name, pretrained=bool(pretrained), num_classes=classes, in_chans=shape[0], **tuples)
    fixed = _sides(arguments.get("img_size"))
    trained_size = fixed or (size if pretrained else None)
    statistics = _statistics(stated.get("mean"), stated.get("std"), trained_size, stated.get("interpolation"))
    return BuiltNetwork(network, arguments, statistics, bool(pretrained), fixed)


def torchvision_network(name: str, classes: int, shape: Shape, options: Options) -> BuiltNetwork:
    """A classifier of torchvision, with options and errors as in `timm_network`.

    The first convolution takes the data's channels; pretrained filters are summed and shared among them.
    """
    models = _import("torchvision").models
    pretrained, arguments = _split_options(f"torchvision:{name}", options, {"weights", "progress", "num_classes"})
    _check_name("torchvision", name, models.list_models(module=models))
    weights = models.get_model_weights(name).DEFAULT if pretrained else None
    statistics = ImageStatistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), None, "bilinear")
    built_classes = classes
    if weights is not None:
        built_classes = len(weights.meta["categories"])
        _check_classes(f"torchvision:{name}", pretrained, built_classes, classes)
        preset = weights.transforms()
        size = (preset.crop_size[0], preset.crop_size[0])
        statistics = ImageStatistics(tuple(preset.mean), tuple(preset.std), size, preset.interpolation.value)
    if name.startswith("vit_"):
        arguments.setdefault("image_size", statistics.size[0] if statistics.size else shape[1])
    if name in ("googlenet", "inception_v3"):
        arguments |= {"aux_logits": False} | ({"transform_input": True} if weights else {"init_weights": True})
    call = {**arguments, "weights": weights} if weights else {**arguments, "weights": None, "num_classes": classes}
    if weights is not None:  # then torchvision builds the auxiliary heads, and refuses aux_logits=False
        call.pop("aux_logits", None)
    with _library_errors(f"torchvision:{name}{NOT_BUILT[bool(pretrained)]}", pretrained):
        network = models.get_model(name, **call)
    if weights is not None and name == "inception_v3":
        network.aux_logits, network.AuxLogits = False, None
    if built_classes != classes:
        _replace_head(network, built_classes, classes)
    _adapt_stem(network, shape[0], keep_filters=bool(pretrained))
    fixed = _sides(arguments.get("image_size", statistics.size)) if name.startswith("vit_") else None
    return BuiltNetwork(network, arguments, statistics, bool(pretrained), fixed)


def hf_network(name: str, classes: int, shape: Shape, options: Options) -> BuiltNetwork:
    """An image classifier of transformers: `name` is a folder that `save_pretrained` wrote, or a name on the hub.

    It comes with its weights and head and must have as many classes as the data (`pretrained="whole"`);
    `pretrained=True` gives it a new head for other classes, `pretrained=False` builds it untrained, for the data's
    image size. `revision` and `local_files_only` are passed on; any other option replaces a value of its config.
    `config={...}` is a whole config, and then nothing is looked up. Raises as `timm_network`.
    """
    transformers = _import("transformers")
    pretrained, changes = _split_options(f"hf:{name}", options, set(), WHOLE)
    stated = changes.pop("config", None)
    lookup: Options = {key: changes.pop(key) for key in ("revision", "local_files_only") if key in changes}
    config, pretrained = stated, pretrained if stated is None else False
    if stated is None:
        with _library_errors(f"hf:{name}: cannot be loaded", True):
            config, _ = transformers.PretrainedConfig.get_config_dict(name, **lookup)
        if not config:
            raise DataError(f"hf:{name}: no config.json there: expected a folder of save_pretrained or a hub name")
    fields = _check_config(config, name)
    if unknown := sorted(changes.keys() - fields.keys()):
        raise UsageError(f"hf:{name}: its config has no {unknown[0]!r}; it has {', '.join(sorted(fields))}")
    fields |= changes
    labels, channels = fields.get("id2label"), fields.get("num_channels", 3)
    config_classes = len(labels) if isinstance(labels, dict) and labels else int(fields.get("num_labels", 2))
    if config_classes != classes:
        _check_classes(f"hf:{name}", pretrained, config_classes, classes)
        fields.pop("num_labels", None)
        fields["id2label"] = {str(number): f"LABEL_{number}" for number in range(classes)}
        fields["label2id"] = {f"LABEL_{number}": number for number in range(classes)}
    if channels != shape[0]:
        if pretrained or "num_channels" not in fields:
            raise MismatchError(f"hf:{name} takes {channels} channels, the data have {shape[0]}: say pretrained=false")
        fields["num_channels"] = shape[0]
    if not pretrained and stated is None and "image_size" in fields:
        fields["image_size"] = shape[1] if shape[1] == shape[2] else [shape[1], shape[2]]
    with _library_errors(f"hf:{name}: its config cannot be used"):
        config = transformers.AutoConfig.for_model(**fields)
    auto = transformers.AutoModelForImageClassification
    safe = {"config": config, "trust_remote_code": False}
    report: dict[str, Any] = {"mismatched_keys": (), "missing_keys": ()}
    with _quiet(transformers.utils.logging), _library_errors(f"hf:{name}{NOT_BUILT[bool(pretrained)]}", pretrained):
        if pretrained:
            safe |= {"use_safetensors": True, "ignore_mismatched_sizes": pretrained is True}
            network, report = auto.from_pretrained(name, output_loading_info=True, **safe, **lookup)
        else:
            network = auto.from_config(**safe)
    missing = [key for key in sorted(report["missing_keys"]) if not key.endswith("num_batches_tracked")]
    body = next((part for part in (network.base_model_prefix, "vision_model") if hasattr(network, part)), "")
    if pretrained is True and body:  # outside the body lies the head, which may be new
        missing = [key for key in missing if key.startswith(f"{body}.")]
    if missing:
        what = f"its checkpoint lacks {len(missing)} of the network's tensors, {missing[0]} first"
        advice = "pretrained=false to train it from the start"
        advice = advice if pretrained is True else f"pretrained=true if the head alone is missing, {advice}"
        raise MismatchError(f"hf:{name}: {what}, and they would be random: take a whole checkpoint, or say {advice}")
    for key, saved, built in sorted(report["mismatched_keys"]):
        is_new_head = config_classes != classes and (saved[0], built[0]) == (config_classes, classes)
        if not is_new_head or saved[1:] != built[1:]:
            what = f"its weights do not fit its config with these options, from {key} on"
            raise MismatchError(f"hf:{name}: {what}: leave the options out, or say pretrained=false")
    size = _sides(fields.get("image_size"))
    statistics, unknown_why = (None, "") if stated is not None else _processor_statistics(name, lookup, size)
    recorded = f"hf:{os.path.basename(os.path.normpath(name))}" if os.path.isdir(name) else None
    why = f"hf:{name}: {unknown_why}" if unknown_why else ""
    return BuiltNetwork(network.float(), {"config": fields}, statistics, bool(pretrained), size, recorded, why)


Builder = Callable[[str, int, Shape, Options], BuiltNetwork]
ZOO: dict[str, Builder] = {"timm": timm_network, "torchvision": torchvision_network, "hf": hf_network}
"""Prefix -> builder(name, classes, input_shape, options) of a library's networks: `timm:resnet18`."""


def class_names_of(architecture: Architecture) -> tuple[str, ...] | None:
    """The names of the classes in an architecture's config; None without, and for LABEL_0, LABEL_1, ..."""
    config = architecture["options"].get("config", {})
    labels = config.get("id2label") if isinstance(config, dict) else None
    names = [str(labels.get(str(number), "")) for number in range(len(labels))] if isinstance(labels, dict) else []
    return None if all(name in ("", f"LABEL_{number}") for number, name in enumerate(names)) else tuple(names)


def import_torchvision() -> Any:
    """torchvision; raises ImportError when it is not installed.

    A torchvision wheel for CUDA cannot load its operators beside a CPU-only torch, and its import then fails at two of
    them that no classifier uses: they are declared without an implementation.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        operators = torch_library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for name in ("nms", "qnms"):
            signature = f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            operators.define(signature)  # type: ignore[no-untyped-call]
        _OPERATORS.append(operators)
        import torchvision
    return torchvision


def _import(library: str) -> Any:
    """The library, imported. Raises UsageError that names the extra to install."""
    extra = "hf" if library == "transformers" else "zoo"
    with contextlib.suppress(ImportError):
        import_torchvision()  # timm and transformers look for it, and must not find it half imported
    try:
        return __import__(library)
    except ImportError as error:
        raise UsageError(f"{library} is not installed: pip install 'noisyteacher[{extra}]'") from error


@contextlib.contextmanager
def _library_errors(problem: str, loads: bool | str = False) -> Iterator[None]:
    """Raise DataError (where it loads something) or UsageError for any error inside: libraries raise what they like."""
    try:
        yield
    except Exception as error:
        message = f"{problem}: {' '.join(str(error).split())[:300] or type(error).__name__}"
        raise (DataError if loads else UsageError)(message) from error


def _split_options(
    name: str, options: Options, refused: Set[str], default: bool | str = False
) -> tuple[bool | str, Options]:
    """The option `pretrained` (False, True or WHOLE), and the others."""
    pretrained: bool | str = options.get("pretrained", default)
    if not isinstance(pretrained, bool) and pretrained != WHOLE:
        raise UsageError(f"option pretrained={pretrained!r} of {name}: expected true, false or {WHOLE!r}")
    if unsafe := sorted(refused & options.keys()):
        raise UsageError(f"option {unsafe[0]} of {name} is not passed on: say pretrained=true, or teacher.weights")
    return pretrained, {key: value for key, value in options.items() if key != "pretrained"}


def _check_name(library: str, name: str, names: Collection[str]) -> None:
    if name not in names:
        close = nearest(name, names)
        hint = f"did you mean {library}:{close}? " if close else ""
        raise UnknownNameError(f"{library}:{name}: no such network; {hint}see {library}'s list_models()")


def _check_classes(name: str, pretrained: bool | str, pretrained_classes: int | None, classes: int) -> None:
    if pretrained == WHOLE and pretrained_classes != classes:
        problem = f"{name} has {pretrained_classes} classes, the data {classes}"
        raise MismatchError(f"{problem}: pretrained=true (teacher.options.pretrained) trains a new head")


def _statistics(mean: Any, std: Any, size: Size | None, interpolation: Any) -> ImageStatistics | None:
    if not mean or not std:
        return None
    return ImageStatistics(tuple(mean), tuple(std), size, interpolation if interpolation in MODES else "bicubic")


def _sides(size: Any) -> Size | None:
    """(H, W) of a size that may be one number."""
    if size is None:
        return None
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _replace_head(network: nn.Module, old: int, classes: int) -> None:
    """Replace the last layer of `old` outputs by a fresh one of `classes` outputs."""
    for name, layer in reversed(list(network.named_modules())):
        if isinstance(layer, nn.Linear) and layer.out_features == old:
            head: nn.Module = nn.Linear(layer.in_features, classes, bias=layer.bias is not None)
            return network.set_submodule(name, head)
        if isinstance(layer, nn.Conv2d) and layer.out_channels == old:
            return network.set_submodule(name, _conv_like(layer, layer.in_channels, classes))
    raise UsageError(f"a {type(network).__name__} has no last layer of {old} outputs to replace: build it yourself")


def _adapt_stem(network: nn.Module, channels: int, keep_filters: bool) -> None:
    """Make the first convolution take this many channels; kept filters are summed and shared among them."""
    name, layer = next((name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d))
    if layer.in_channels == channels:
        return
    stem = _conv_like(layer, channels, layer.out_channels)
    if keep_filters:
        weight = layer.weight.detach().sum(1, keepdim=True).expand_as(stem.weight) / channels
        stem.load_state_dict({**layer.state_dict(), "weight": weight})
    network.set_submodule(name, stem)


def _conv_like(layer: nn.Conv2d, inputs: int, outputs: int) -> nn.Conv2d:
    sizes: Any = {name: getattr(layer, name) for name in ("kernel_size", "stride", "padding", "dilation")}
    return nn.Conv2d(inputs, outputs, bias=layer.bias is not None, **sizes)


def _check_config(config: Any, name: str) -> Options:
    """A config without what could download or run something. Raises UsageError for a network that needs code."""
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise UsageError(f"hf:{name}: its config has no model_type: it is not a model of transformers")
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as CLASSIFIERS

    kind = config["model_type"]
    if kind == "timm_wrapper":
        raise UsageError(f"hf:{name}: a network of timm: name it timm:{config.get('architecture', 'NAME')}")
    if kind not in CLASSIFIERS:
        code = " (it needs code of its own, which is never run)" if "auto_map" in config else ""
        raise UsageError(f"hf:{name}: {kind!r} is not an image classifier of transformers{code}")

    def keep(pairs: list[tuple[str, Any]]) -> Options:
        return {key: value for key, value in pairs if not key.startswith("_") and key not in DROPPED}

    with _library_errors(f"hf:{name}: its config cannot be written as JSON"):
        fields: Options = json.loads(json.dumps(config, allow_nan=False), object_pairs_hook=keep)
    return fields


def _processor_statistics(name: str, lookup: Options, size: Size | None) -> tuple[ImageStatistics | None, str]:
    """What the image processor beside the model says of its images, read as data; or None, and why it is not known."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        processor, _ = ImageProcessingMixin.get_image_processor_dict(name, **lookup)
    except Exception as error:  # none beside the model, or the hub cannot be reached
        reason = " ".join(str(error).split(". ")[0].split())[:200] or type(error).__name__
        return None, f"no preprocessor_config.json can be read there ({reason})"
    mean, std = (
        [value] * 3 if isinstance(value, (int, float)) else value
        for value in (processor.get("image_mean"), processor.get("image_std"))
    )
    factor, rescales = processor.get("rescale_factor", 1 / 255), processor.get("do_rescale", True)
    if not rescales or not isinstance(factor, float) or abs(factor - 1 / 255) > 1e-6:
        return None, "its image processor does not scale pixels by 1/255"
    for setting in ("do_flip_channel_order", "rescale_offset"):
        if processor.get(setting):
            return None, f"its image processor has {setting}, which no preprocessing here does"
    normalizes = processor.get("do_normalize", True)
    again = processor.get("include_top")  # of EfficientNet: then divided by the deviation once more, about 0
    if normalizes is None or ((normalizes or again) and not (mean and std)):
        return None, "its image processor does not state do_normalize, image_mean and image_std"
    if not normalizes:
        mean, std = [0.0] * 3, std if again else [1.0] * 3
    elif again:
        std = [float(deviation) ** 2 for deviation in std or ()]
    stated = processor.get("crop_size") if processor.get("do_center_crop") else processor.get("size")
    if isinstance(stated, dict):
        stated = [stated["height"], stated["width"]] if "height" in stated else stated.get("shortest_edge")
    return _statistics(mean, std, size or _sides(stated), RESAMPLE.get(processor.get("resample", 2))), ""


@contextlib.contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Inside, transformers shows no progress bars and no notes; afterwards as before."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


_REGISTERED = re.compile(r"^@register_model\b.*?^def (\w+)\(", re.MULTILINE | re.DOTALL)


@cache
def network_names(library: str) -> frozenset[str]:
    """The networks that timm or torchvision registers, read from its source files: importing timm takes seconds."""
    folders = getattr(find_spec(library), "submodule_search_locations", ())
    files = [file for folder in folders for file in Path(folder, "models").glob("*.py")]
    return frozenset(name for file in files for name in _REGISTERED.findall(file.read_text("utf-8", errors="replace")))


def nearest_networks(name: str, names: Collection[str]) -> list[str]:
    """The names most like it, of other libraries too: `nearest_networks("resnet18", []) == ["timm:resnet18", ...]`."""
    full_names = {short: [short] for short in names}
    for library in ("timm", "torchvision"):
        for short in network_names(library):
            full_names.setdefault(short, []).append(f"{library}:{short}")
    # Among over a thousand names something is always half alike: a library's must be closer than one of ours.
    close = nearest(name, full_names, cutoff=0.75) or nearest(name, names)
    return full_names[close] if close else []


def unknown_network(name: str, names: Collection[str]) -> UnknownNameError:
    """The error for a network's name that is not among `names`: it suggests the nearest and lists all."""
    close = " or ".join(map(repr, nearest_networks(name, sorted(names))))
    hint = f"did you mean {close}? " if close else ""
    if os.path.exists(name):
        hint = "that is a file or folder, and a network's name is expected; start from its weights by weights=: "
    elif os.sep in name:
        hint = f"no file or folder of that name is there, and it is no network's: {hint}"
    return UnknownNameError(
        f"unknown model {name!r}: {hint}expected {', '.join(sorted(names))}, or timm:NAME, torchvision:NAME, hf:NAME"
    )
