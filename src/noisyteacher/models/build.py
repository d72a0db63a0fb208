"""From a name to a model: one table of known networks, a factory of yours, or a module you already have."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from operator import attrgetter
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from noisyteacher.errors import AskedWronglyError, MismatchError, NoisyTeacherError
from noisyteacher.models.classifier import Classifier, as_classifier
from noisyteacher.models.paper import PAPER, paper_network, paper_options
from noisyteacher.models.preprocess import CHUNK, Shape, build_preprocess, preprocess_name
from noisyteacher.rng import seeded
from noisyteacher.text import unknown_name

CHUNK_BYTES = 2**24
MODELS: dict[str, Callable[..., nn.Module]] = {name: partial(paper_network, name) for name in PAPER}
"""Name -> builder(classes, input_shape, **options) of a network that takes preprocessed images."""

OUTSIDE = ("timm", "torchvision", "hf")
T = TypeVar("T")


def build_model(
    model: str | nn.Module,
    data: Any = None,
    *,
    classes: int | None = None,
    input_shape: Sequence[int] | None = None,
    preprocess: str | nn.Module | None = None,
    seed: int = 0,
    **options: Any,
) -> Classifier:
    """A Classifier: uint8 `[B, C, H, W]` to logits `[B, K]`, its weights drawn from the stream (seed, "init", name).

    `model` is a name of MODELS, `"pkg.module:factory"` (called with classes= or num_classes=, and input_shape=, where
    it names them), or an nn.Module, which is wrapped and not drawn anew. Classes and input_shape come from `data`
    (Splits) or are given. `preprocess` is a name of PREPROCESS or a module; by default the data's own for a name or
    factory, and x / 255 for a module. Raises UnknownNameError, MismatchError when model, data and arguments disagree,
    AskedWronglyError else.
    """
    if classes is not None and (isinstance(classes, bool) or not isinstance(classes, int)):
        raise AskedWronglyError(f"classes {classes!r}: expected a whole number of two or more")
    count = _agreed("classes", classes, getattr(data, "classes", None))
    shape = _agreed("input_shape", _shape(input_shape), _shape(getattr(data, "input_shape", None)))
    if isinstance(model, nn.Module):
        if options:
            raise AskedWronglyError(f"options {sorted(options)} have no effect on a module that is already built")
        if isinstance(model, Classifier):
            if preprocess is not None:
                raise AskedWronglyError("this model already has its preprocessing: leave preprocess= out")
            return as_classifier(model, classes=count, input_shape=shape)
        front = _front("scale" if preprocess is None else preprocess, data, shape)
        return as_classifier(model, classes=count, input_shape=shape, preprocess=front)
    if not isinstance(model, str):
        raise AskedWronglyError(
            f"a {type(model).__name__} is not a model: pass a name, 'pkg.module:factory' or an nn.Module"
        )
    if ":" not in model and model not in MODELS:
        raise unknown_name("model", model, MODELS)
    if count is None or shape is None:
        raise AskedWronglyError(
            f"model {model!r} needs to know its classes and input_shape: pass data, or both, as in "
            "classes=10, input_shape=(1, 28, 28)"
        )
    if count < 2:
        raise AskedWronglyError(f"classes {count}: a classifier needs two or more")
    front = _front(preprocess or getattr(data, "preprocess", None) or "scale", data, shape)
    with seeded(seed, "init", model):
        if ":" in model:
            network = _call_factory(model, count, shape, options)
            wrapped = as_classifier(network, classes=count, input_shape=shape, preprocess=front, name=model)
            wrapped.architecture["options"] = _plain(options, model)
            return wrapped
        network = MODELS[model](count, shape, **options)
    return Classifier(front, network, architecture_of(model, count, shape, options, preprocess_name(front)))


def architecture_of(name: str, classes: int, shape: Shape, options: dict[str, Any], preprocess: str) -> dict[str, Any]:
    """The JSON-able record of a named model, every option written out with its default."""
    return {
        "name": name,
        "classes": classes,
        "input_shape": list(shape),
        "options": {**paper_options(name), **options} if name in PAPER else dict(options),
        "preprocess": preprocess,
    }


def training_images(data: Any) -> Iterator[Tensor]:
    """The training images of Splits (or of a split whose role is train) in chunks, uint8 `[n, C, H, W]`.

    Raises AskedWronglyError when the split holds other images: statistics of test images would leak into the model.
    """
    split = getattr(data, "train", data)
    if getattr(split, "role", "train") != "train":
        raise AskedWronglyError(
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
        raise AskedWronglyError(f"preprocessing {preprocess!r} needs to know the images: pass data or input_shape=")
    return build_preprocess(preprocess, None if data is None else training_images(data), shape or (1, 1, 1))


def _call_factory(name: str, classes: int, shape: Shape, options: dict[str, Any]) -> nn.Module:
    place, _, attribute = name.partition(":")
    if place in OUTSIDE:
        raise AskedWronglyError(
            f"model {name!r}: the prefix {place + ':'!r} is not supported in this version; build the network yourself "
            "and pass the nn.Module, or write a function that returns it and pass 'pkg.module:function'"
        )
    try:
        factory = attrgetter(attribute)(importlib.import_module(place))
    except (ImportError, AttributeError, ValueError) as error:
        raise AskedWronglyError(
            f"model {name!r}: {error}; it must read 'pkg.module:factory', with pkg on the Python path"
        ) from error
    except Exception as error:  # whatever a module of the user's does when it is imported
        raise AskedWronglyError(f"model {name!r}: importing {place!r} failed: {_told(error)}") from error
    if not callable(factory):
        raise AskedWronglyError(f"model {name!r} is a {type(factory).__name__}, not a function or class to call")
    offered = {"classes": classes, "num_classes": classes, "input_shape": shape}
    try:
        named = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        named = {}  # type: ignore[assignment]
    arguments = {key: value for key, value in offered.items() if key in named}
    try:
        network = factory(**{**arguments, **options})
    except TypeError as error:
        raise AskedWronglyError(
            f"model {name!r} could not be called with options {sorted(options)}: {error}"
        ) from error
    except NoisyTeacherError:
        raise
    except Exception as error:  # the factory is the user's: it may raise anything
        raise AskedWronglyError(f"model {name!r}: the factory raised {_told(error)}") from error
    if not isinstance(network, nn.Module):
        raise AskedWronglyError(f"model {name!r} returned a {type(network).__name__}, not an nn.Module")
    return network


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _plain(options: dict[str, Any], name: str) -> dict[str, Any]:
    """The options as JSON holds them, so that the model can be saved and built again."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(options, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise AskedWronglyError(f"an option of model {name!r} cannot be written to a file: {error}") from error
    return plain


def _shape(given: Sequence[int] | None) -> Shape | None:
    if given is None:
        return None
    sizes = tuple(given)
    if len(sizes) != 3 or any(int(size) != size or size < 1 for size in sizes):
        raise AskedWronglyError(f"input_shape {sizes}: it is (channels, height, width), three sizes of 1 or more")
    return int(sizes[0]), int(sizes[1]), int(sizes[2])


def _agreed(what: str, given: T | None, of_data: T | None) -> T | None:
    if given is not None and of_data is not None and given != of_data:
        raise MismatchError(f"{what} {given} was given, but the data have {of_data}: leave {what}= out")
    return of_data if given is None else given
