"""From a name to a model: one table of known networks, a user's factory, or a module that exists already."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from noisyteacher.errors import MismatchError, NoisyTeacherError, UsageError
from noisyteacher.models.classifier import Classifier, Reordered, as_classifier
from noisyteacher.models.compact import COMPACT, compact_network, compact_options, without_width
from noisyteacher.models.external import ExternalModel, timm_network, torchvision_network, unknown_network
from noisyteacher.models.huggingface import hf_network
from noisyteacher.models.narrow import SHRINK, narrow_network, origin_of, ratio_of
from noisyteacher.models.paper import PAPER, paper_network, paper_options
from noisyteacher.models.preprocess import CHUNK, Resized, Shape, build_preprocess, preprocess_name
from noisyteacher.rng import seeded

CHUNK_BYTES = 2**24
MODELS: dict[str, Callable[..., nn.Module]] = {
    **{name: partial(paper_network, name) for name in PAPER},
    **{name: partial(compact_network, name) for name in COMPACT},
}
"""Name -> builder(classes, input_shape, **options) of a network that takes preprocessed images."""

ZOO: dict[str, Callable[[str, int, Shape, dict[str, Any]], ExternalModel]] = {
    "timm": timm_network,
    "torchvision": torchvision_network,
    "hf": hf_network,
}
"""Prefix -> builder(name, classes, input_shape, options) of another library's networks: `timm:resnet18`."""

PREFIX = "pretrained:"
"""Before the name of one of the package's trained models."""
OWN = "model"
"""The `preprocess` that means: what the network's pretrained weights were trained on."""
T = TypeVar("T")


def build_model(
    model: str | nn.Module,
    data: Any = None,
    *,
    classes: int | None = None,
    input_shape: Sequence[int] | None = None,
    preprocess: str | nn.Module | None = None,
    seed: int = 0,
    teacher: nn.Module | Mapping[str, Any] | None = None,
    **options: Any,
) -> Classifier:
    """A Classifier: uint8 `[B, C, H, W]` to logits `[B, K]`, its weights drawn from the stream (seed, "init", name).

    `model` is a name of MODELS (of a compact one also `"compact-s:WIDTH"`), `"pretrained:NAME"` (one of the package's,
    with its weights), `"timm:NAME"`, `"torchvision:NAME"` (untrained unless `pretrained=True`), `"hf:NAME"` (a folder
    or a name on the hub, with its weights unless `pretrained=False`), `"pkg.module:factory"` (called with classes= or
    num_classes=, and input_shape=, where it has such parameters), `"shrink:RATIO"` (a narrower, untrained copy of
    `teacher`, a model or its `architecture`), or an nn.Module, which is wrapped with its weights. Classes and
    input_shape come from `data` (Splits) or the arguments. `preprocess` is a name of PREPROCESS (also `NAME@HxW-MODE`,
    resized), a module, or "model": that of a library's pretrained weights. The default is "model" for a network with
    pretrained weights, the data's own for another name or a factory, and x / 255 for a module. Raises UnknownNameError,
    MismatchError when model, data and arguments disagree, DataError when weights cannot be downloaded, UsageError
    otherwise.
    """
    if classes is not None and (isinstance(classes, bool) or not isinstance(classes, int)):
        raise UsageError(f"classes {classes!r}: expected a whole number of two or more")
    count = _agree("classes", classes, getattr(data, "classes", None))
    shape = _agree("input_shape", _check_shape(input_shape), _check_shape(getattr(data, "input_shape", None)))
    narrows = isinstance(model, str) and model.startswith(SHRINK)
    if teacher is not None and not narrows:
        raise UsageError(f"teacher= has no effect on model {model!r:.60}: it is for {SHRINK}RATIO")
    if isinstance(model, nn.Module):
        if options:
            raise UsageError(f"options {sorted(options)} have no effect on a module that is already built")
        front = (
            None if isinstance(model, Classifier) and preprocess is None else _front(preprocess or "scale", data, shape)
        )
        return as_classifier(model, classes=count, input_shape=shape, preprocess=front)
    if not isinstance(model, str):
        raise UsageError(f"a {type(model).__name__} is not a model: pass a name, 'pkg.module:factory' or an nn.Module")
    if model.startswith(PREFIX):
        if options or preprocess is not None:
            raise UsageError(f"options and preprocess= have no effect on {model!r}, which is built and trained")
        from noisyteacher.models.weights import load_model  # which builds what a file describes by this module

        return as_classifier(load_model(model), classes=count, input_shape=shape)
    model, width = without_width(model)
    if width.keys() & options.keys():
        raise UsageError(f"model '{model}:...' states its width, and the option width does too: give one of them")
    options = {**width, **options}
    if ":" not in model and model not in MODELS:
        raise unknown_network(model, MODELS)
    if count is None or shape is None:
        raise UsageError(
            f"model {model!r} needs to know its classes and input_shape: pass data, or both, as in "
            "classes=10, input_shape=(1, 28, 28)"
        )
    if count < 2:
        raise UsageError(f"classes {count}: a classifier needs two or more")
    prefix, _, rest = model.partition(":")
    if prefix in ZOO:
        with seeded(seed, "init", model):
            external = ZOO[prefix](rest, count, shape, options)
        front = _external_front(external, preprocess, data, shape)
        return _named(external.network, f"{prefix}:{external.name or rest}", count, shape, front, external.options)
    if preprocess == OWN:
        raise UsageError(f"preprocess='model' is for networks of {', '.join(ZOO)}, not for {model!r}: name another")
    front = _front(preprocess or getattr(data, "preprocess", None) or "scale", data, shape)
    if narrows:
        ratio = ratio_of(model)
        body, options = _body_to_narrow(model, teacher, count, shape, options)
    with seeded(seed, "init", model):
        if narrows:
            network = narrow_network(body, ratio, shape)
        elif ":" in model:
            return _named(_call_factory(model, count, shape, options), model, count, shape, front, options)
        else:
            network = MODELS[model](count, shape, **options)
    defaults = paper_options(model) if model in PAPER else compact_options() if model in COMPACT else {}
    architecture = {
        "name": model,
        "classes": count,
        "input_shape": list(shape),
        "options": {**defaults, **options},
        "preprocess": preprocess_name(front),
    }
    return Classifier(front, network, architecture)


def training_images(data: Any) -> Iterator[Tensor]:
    """The training images of Splits (or of a split whose role is train) in chunks, uint8 `[n, C, H, W]`.

    Raises UsageError when the split has another role: statistics of test images would leak into the model.
    """
    split = getattr(data, "train", data)
    if getattr(split, "role", "train") != "train":
        raise UsageError(
            f"preprocessing statistics of a split whose role is {split.role!r}: pass the whole data or its train split"
        )
    image_bytes = split.images_at(torch.zeros(1, dtype=torch.int64), "clean").numel()
    rows = max(1, min(CHUNK, CHUNK_BYTES // image_bytes))  # summed in float64, which is eight times as large
    for first in range(0, len(split), rows):
        yield split.images_at(torch.arange(first, min(first + rows, len(split))), "clean")


def _named(
    network: nn.Module, name: str, classes: int, shape: Shape, front: nn.Module, options: dict[str, Any]
) -> Classifier:
    """A library's or a factory's network as a Classifier that can be saved and built again with its options."""
    model = as_classifier(network, classes=classes, input_shape=shape, preprocess=front, name=name)
    try:
        model.architecture["options"] = json.loads(json.dumps(options, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise UsageError(f"an option of model {name!r} cannot be written to a file: {error}") from error
    return model


def _body_to_narrow(
    name: str, teacher: nn.Module | Mapping[str, Any] | None, classes: int, shape: Shape, options: dict[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    """The network that `shrink:RATIO` narrows, and the options that let it be built again without its weights."""
    if options:
        raise UsageError(f"options {sorted(options)} have no effect on {name!r}: it has those of its teacher")
    if teacher is None:
        raise UsageError(
            f"model {name!r} is a narrower copy of a teacher: pass teacher=, or name it as the student of a compression"
        )
    if isinstance(teacher, nn.Module):
        model = as_classifier(teacher, classes=classes, input_shape=shape)
        body = model.network.network if isinstance(model.network, Reordered) else model.network
        return body, {"of": {key: model.architecture[key] for key in ("name", "options")}}
    origin_of(teacher)
    for field, expected in (("classes", classes), ("input_shape", list(shape))):
        if teacher.get(field) not in (None, expected):
            raise MismatchError(f"the teacher has {field} {teacher[field]}, the student {field} {expected}")
    of = {key: teacher[key] for key in ("name", "options")}
    return _untrained(of, classes, shape), {"of": of}


def _untrained(of: Mapping[str, Any], classes: int, shape: Shape) -> nn.Module:
    """The network of an architecture with arbitrary weights, on the meta device where it can be."""
    name, options = str(of["name"]), of["options"]
    if name.startswith("module:"):
        raise UsageError(
            f"the teacher is {name!r}, a user's module, and cannot be built again from its name: pass the module "
            "itself as teacher="
        )
    if name.startswith(SHRINK):
        return narrow_network(_untrained(options["of"], classes, shape), ratio_of(name), shape)
    prefix, _, rest = name.partition(":")
    if prefix in ZOO:
        return ZOO[prefix](rest, classes, shape, {key: options[key] for key in options if key != "pretrained"}).network
    if ":" in name:
        return _call_factory(name, classes, shape, options)
    if name not in MODELS:
        raise unknown_network(name, MODELS)
    with torch.device("meta"):
        return MODELS[name](classes, shape, **options)


def _front(preprocess: str | nn.Module, data: Any, shape: Shape | None) -> nn.Module:
    if isinstance(preprocess, nn.Module):
        return preprocess
    if shape is None and preprocess != "scale":
        raise UsageError(f"preprocessing {preprocess!r} needs to know the image size: pass data or input_shape=")
    return build_preprocess(preprocess, None if data is None else training_images(data), shape or (1, 1, 1))


def _external_front(external: ExternalModel, preprocess: str | nn.Module | None, data: Any, shape: Shape) -> nn.Module:
    """The preprocessing of a library's network; with images resized where the network takes a fixed size."""
    trained_on = external.trained_on
    if preprocess == OWN and trained_on is None:
        raise UsageError("preprocess='model': the library does not say what this network was trained on; name another")
    if trained_on is not None and (preprocess == OWN or (preprocess is None and external.pretrained)):
        front = trained_on.preprocess(shape)
    else:
        front = _front(preprocess or getattr(data, "preprocess", None) or "scale", data, shape)
    size = external.fixed_size
    if size in (None, shape[1:]) or not isinstance(preprocess, (str, type(None))) or isinstance(front, Resized):
        return front
    return Resized(front, size or (), "bicubic" if trained_on is None else trained_on.mode)


def _call_factory(name: str, classes: int, shape: Shape, options: Mapping[str, Any]) -> nn.Module:
    module, _, attribute = name.partition(":")
    try:
        factory = attrgetter(attribute)(importlib.import_module(module))
    except Exception as error:  # a user's module may raise anything when it is imported
        raise UsageError(
            f"model {name!r}: importing {module!r} failed: {type(error).__name__}: {error}; expected "
            "'pkg.module:factory', with pkg on the Python path"
        ) from error
    if not callable(factory):
        raise UsageError(f"model {name!r} is a {type(factory).__name__}, not a function or class to call")
    try:
        parameters: Collection[str] = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        parameters = ()
    offered = {"classes": classes, "num_classes": classes, "input_shape": shape}
    arguments = {key: value for key, value in offered.items() if key in parameters}
    try:
        network = factory(**{**arguments, **options})
    except NoisyTeacherError:
        raise
    except Exception as error:  # the factory is the user's: it may raise anything
        raise UsageError(
            f"model {name!r}: the factory raised {type(error).__name__}: {error} (options {sorted(options)})"
        ) from error
    if not isinstance(network, nn.Module):
        raise UsageError(f"model {name!r} returned a {type(network).__name__}, not an nn.Module")
    return network


def _check_shape(shape: Sequence[int] | None) -> Shape | None:
    if shape is None:
        return None
    sizes = tuple(shape)
    if len(sizes) != 3 or not all(1 <= size < 2**31 and int(size) == size for size in sizes):
        raise UsageError(f"input_shape {sizes}: expected (channels, height, width), three sizes of 1 or more")
    return int(sizes[0]), int(sizes[1]), int(sizes[2])


def _agree(field: str, argument: T | None, of_data: T | None) -> T | None:
    if argument is not None and of_data is not None and argument != of_data:
        raise MismatchError(f"{field} {argument} was given, but the data have {of_data}: leave {field}= out")
    return of_data if argument is None else argument
