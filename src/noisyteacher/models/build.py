"""From a name to a model: one table of known networks, a factory of yours, or a module you already have."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from noisyteacher.errors import MismatchError, NoisyTeacherError, UsageError
from noisyteacher.models.classifier import Classifier, Reordered, as_classifier
from noisyteacher.models.compact import COMPACT, compact_network, compact_options, without_width
from noisyteacher.models.hub import hf_network
from noisyteacher.models.libraries import unknown_network
from noisyteacher.models.paper import PAPER, paper_network, paper_options
from noisyteacher.models.preprocess import CHUNK, Resized, Shape, build_preprocess, preprocess_name
from noisyteacher.models.pretrained import PREFIX
from noisyteacher.models.shrink import SHRINK, origin_of, ratio_of, shrunk
from noisyteacher.models.zoo import Brought, timm_network, torchvision_network
from noisyteacher.rng import seeded

CHUNK_BYTES = 2**24
MODELS: dict[str, Callable[..., nn.Module]] = {
    **{name: partial(paper_network, name) for name in PAPER},
    **{name: partial(compact_network, name) for name in COMPACT},
}
"""Name -> builder(classes, input_shape, **options) of a network that takes preprocessed images."""

ZOO: dict[str, Callable[[str, int, Shape, dict[str, Any]], Brought]] = {
    "timm": timm_network,
    "torchvision": torchvision_network,
    "hf": hf_network,
}
"""Prefix -> builder(name, classes, input_shape, options) of another library's networks: `timm:resnet18`."""

OWN = "model"
"""The `preprocess` that means: what the network's own weights were trained on."""
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
    with its weights), `"timm:NAME"`, `"torchvision:NAME"` (untrained unless `pretrained=True`) or `"hf:NAME"` (a folder
    or a name on the hub, with its weights unless `pretrained=False`), `"pkg.module:factory"` (called with classes= or
    num_classes=, and input_shape=, where it names them), `"shrink:RATIO"` (a narrower copy of `teacher`, a model or its
    `architecture`, with weights of its own), or an nn.Module, which is wrapped and not drawn anew. Classes and
    input_shape come from `data` (Splits) or are given. `preprocess` is a name of PREPROCESS (also `NAME@HxW-MODE`,
    resized), a module, or "model": that of a library's own weights. By default it is that for a network that comes with
    weights, the data's own for another name or a factory, and x / 255 for a module. Raises UnknownNameError,
    MismatchError when model, data and arguments disagree, DataError when weights cannot be had,
    UsageError else.
    """
    if classes is not None and (isinstance(classes, bool) or not isinstance(classes, int)):
        raise UsageError(f"classes {classes!r}: expected a whole number of two or more")
    count = _agreed("classes", classes, getattr(data, "classes", None))
    shape = _agreed("input_shape", _shape(input_shape), _shape(getattr(data, "input_shape", None)))
    narrows = isinstance(model, str) and model.startswith(SHRINK)
    if teacher is not None and not narrows:
        raise UsageError(f"teacher= has no effect on model {model!r:.60}: it is for {SHRINK}RATIO")
    if isinstance(model, nn.Module):
        if options:
            raise UsageError(f"options {sorted(options)} have no effect on a module that is already built")
        if isinstance(model, Classifier):
            if preprocess is not None:
                raise UsageError("this model already has its preprocessing: leave preprocess= out")
            return as_classifier(model, classes=count, input_shape=shape)
        front = _front("scale" if preprocess is None else preprocess, data, shape)
        return as_classifier(model, classes=count, input_shape=shape, preprocess=front)
    if not isinstance(model, str):
        raise UsageError(f"a {type(model).__name__} is not a model: pass a name, 'pkg.module:factory' or an nn.Module")
    if model.startswith(PREFIX):
        if options or preprocess is not None:
            raise UsageError(f"options and preprocess= have no effect on {model!r}, which is built and trained")
        from noisyteacher.models.weights import load_model  # which builds what a file describes by this module

        return as_classifier(load_model(model), classes=count, input_shape=shape)
    model, stated = without_width(model)
    if stated.keys() & options.keys():
        raise UsageError(f"model '{model}:...' states its width, and the option width does too: give one of them")
    options = {**stated, **options}
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
            brought = ZOO[prefix](rest, count, shape, options)
        front = _zoo_front(brought, preprocess, data, shape)
        wrapped = as_classifier(
            brought.network, classes=count, input_shape=shape, preprocess=front, name=f"{prefix}:{brought.name or rest}"
        )
        wrapped.architecture["options"] = _plain(brought.options, model)
        return wrapped
    if preprocess == OWN:
        raise UsageError(f"preprocess='model' is for networks of {', '.join(ZOO)}, which state theirs: not {model}")
    front = _front(preprocess or getattr(data, "preprocess", None) or "scale", data, shape)
    if narrows:
        ratio = ratio_of(model)
        body, options = _narrowed(model, teacher, count, shape, options)
    with seeded(seed, "init", model):
        if narrows:
            network = shrunk(body, ratio, shape)
        elif ":" in model:
            network = _call_factory(model, count, shape, options)
            wrapped = as_classifier(network, classes=count, input_shape=shape, preprocess=front, name=model)
            wrapped.architecture["options"] = _plain(options, model)
            return wrapped
        else:
            network = MODELS[model](count, shape, **options)
    return Classifier(front, network, architecture_of(model, count, shape, options, preprocess_name(front)))


def architecture_of(name: str, classes: int, shape: Shape, options: dict[str, Any], preprocess: str) -> dict[str, Any]:
    """The JSON-able record of a named model, every option written out with its default."""
    known = paper_options(name) if name in PAPER else compact_options() if name in COMPACT else {}
    return {
        "name": name,
        "classes": classes,
        "input_shape": list(shape),
        "options": {**known, **options},
        "preprocess": preprocess,
    }


def _narrowed(
    name: str, teacher: nn.Module | Mapping[str, Any] | None, classes: int, shape: Shape, options: dict[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    """The network that `shrink:RATIO` narrows, and the options that let it be built again without its weights."""
    if options:
        raise UsageError(f"options {sorted(options)} have no effect on {name!r}: it has those of its teacher")
    if teacher is None:
        raise UsageError(
            f"model {name!r} is a narrower copy of a teacher and none was given: pass teacher=, or name it as the "
            "student of a compression"
        )
    if isinstance(teacher, nn.Module):
        whole = as_classifier(teacher, classes=classes, input_shape=shape)
        body = whole.network.network if isinstance(whole.network, Reordered) else whole.network
        return body, {"of": {key: whole.architecture[key] for key in ("name", "options")}}
    origin_of(teacher)
    for what, asked in (("classes", classes), ("input_shape", list(shape))):
        if teacher.get(what) not in (None, asked):
            raise MismatchError(f"the teacher has {what} {teacher[what]}, the student is asked for {what} {asked}")
    of = {key: teacher[key] for key in ("name", "options")}
    return _untrained(of, classes, shape), {"of": of}


def _untrained(of: Mapping[str, Any], classes: int, shape: Shape) -> nn.Module:
    """The network of an architecture, its weights whatever they are: on the meta device where nothing forbids it."""
    name, options = str(of["name"]), of["options"]
    if name.startswith("module:"):
        raise UsageError(
            f"the teacher is {name!r}, a module that was passed in: it cannot be built again from its name; pass the "
            "module itself as teacher="
        )
    if name.startswith(SHRINK):
        return shrunk(_untrained(options["of"], classes, shape), ratio_of(name), shape)
    prefix, _, rest = name.partition(":")
    if prefix in ZOO:
        return ZOO[prefix](rest, classes, shape, {key: options[key] for key in options if key != "pretrained"}).network
    if ":" in name:
        return _call_factory(name, classes, shape, options)
    if name not in MODELS:
        raise unknown_network(name, MODELS)
    with torch.device("meta"):
        return MODELS[name](classes, shape, **options)


def training_images(data: Any) -> Iterator[Tensor]:
    """The training images of Splits (or of a split whose role is train) in chunks, uint8 `[n, C, H, W]`.

    Raises UsageError when the split holds other images: statistics of test images would leak into the model.
    """
    split = getattr(data, "train", data)
    if getattr(split, "role", "train") != "train":
        raise UsageError(
            f"preprocessing statistics were asked from a split whose role is {split.role!r}: pass the whole data or "
            "its train split"
        )
    each = split.images_at(torch.zeros(1, dtype=torch.int64), "clean").numel()
    rows = max(1, min(CHUNK, CHUNK_BYTES // each))  # summed in float64, which is eight times as large
    for first in range(0, len(split), rows):
        yield split.images_at(torch.arange(first, min(first + rows, len(split))), "clean")


def _front(preprocess: str | nn.Module, data: Any, shape: Shape | None) -> nn.Module:
    if isinstance(preprocess, nn.Module):
        return preprocess
    if shape is None and preprocess != "scale":
        raise UsageError(f"preprocessing {preprocess!r} needs to know the images: pass data or input_shape=")
    return build_preprocess(preprocess, None if data is None else training_images(data), shape or (1, 1, 1))


def _zoo_front(brought: Brought, preprocess: str | nn.Module | None, data: Any, shape: Shape) -> nn.Module:
    """What stands in front of a library's network; scaled to the size it takes, where it takes but one."""
    own = brought.own
    if preprocess == OWN and own is None:
        raise UsageError("preprocess='model': nothing says what this network was trained on; name a preprocessing")
    if own is not None and (preprocess == OWN or (preprocess is None and brought.trained)):
        front = own.front(shape)
    else:
        front = _front(preprocess or getattr(data, "preprocess", None) or "scale", data, shape)
    if brought.takes in (None, shape[1:]) or not isinstance(preprocess, (str, type(None))) or type(front) is Resized:
        return front
    return Resized(front, brought.takes or (), "bicubic" if own is None else own.mode)


def _call_factory(name: str, classes: int, shape: Shape, options: dict[str, Any]) -> nn.Module:
    place, _, attribute = name.partition(":")
    try:
        factory = attrgetter(attribute)(importlib.import_module(place))
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"model {name!r}: {error}; it must read 'pkg.module:factory', with pkg on the Python path"
        ) from error
    except Exception as error:  # whatever a module of the user's does when it is imported
        raise UsageError(f"model {name!r}: importing {place!r} failed: {_told(error)}") from error
    if not callable(factory):
        raise UsageError(f"model {name!r} is a {type(factory).__name__}, not a function or class to call")
    offered = {"classes": classes, "num_classes": classes, "input_shape": shape}
    try:
        named = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        named = {}  # type: ignore[assignment]
    arguments = {key: value for key, value in offered.items() if key in named}
    try:
        network = factory(**{**arguments, **options})
    except TypeError as error:
        raise UsageError(f"model {name!r} could not be called with options {sorted(options)}: {error}") from error
    except NoisyTeacherError:
        raise
    except Exception as error:  # the factory is the user's: it may raise anything
        raise UsageError(f"model {name!r}: the factory raised {_told(error)}") from error
    if not isinstance(network, nn.Module):
        raise UsageError(f"model {name!r} returned a {type(network).__name__}, not an nn.Module")
    return network


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _plain(options: dict[str, Any], name: str) -> dict[str, Any]:
    """The options as JSON holds them, so that the model can be saved and built again."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(options, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise UsageError(f"an option of model {name!r} cannot be written to a file: {error}") from error
    return plain


def _shape(given: Sequence[int] | None) -> Shape | None:
    if given is None:
        return None
    sizes = tuple(given)
    if len(sizes) != 3 or not all(1 <= size < 2**31 and int(size) == size for size in sizes):
        raise UsageError(f"input_shape {sizes}: it is (channels, height, width), three sizes of 1 or more")
    return int(sizes[0]), int(sizes[1]), int(sizes[2])


def _agreed(what: str, given: T | None, of_data: T | None) -> T | None:
    if given is not None and of_data is not None and given != of_data:
        raise MismatchError(f"{what} {given} was given, but the data have {of_data}: leave {what}= out")
    return of_data if given is None else given
