"""From a name to a model: the package's networks, other libraries', a user's factory, or a module that exists."""

from __future__ import annotations

import copy
import importlib
import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from operator import attrgetter
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from noisyteacher.errors import MismatchError, NoisyTeacherError, UsageError
from noisyteacher.models.classifier import Architecture, Classifier, Options, as_classifier, bare_network, inherit
from noisyteacher.models.external import ZOO, BuiltNetwork, unknown_network
from noisyteacher.models.narrow import CHOICES, SHRINK, Origin, first_origin, narrow_network, ratio_of
from noisyteacher.models.networks import COMPACT, PAPER, compact_network, default_options, paper_network, without_width
from noisyteacher.models.preprocess import Resized, Shape, build_preprocess
from noisyteacher.rng import kept_draws, seeded

EXAMPLES = 256
"""Training images on whose gradients channels are ranked."""
MODELS: dict[str, Callable[..., nn.Module]] = {
    **{name: partial(paper_network, name) for name in PAPER},
    **{name: partial(compact_network, name) for name in COMPACT},
}
"""Name -> builder(classes, input_shape, **options) of a network that takes preprocessed images."""
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
    teacher: nn.Module | Architecture | None = None,
    **options: Any,
) -> Classifier:
    """A Classifier: uint8 `[B, C, H, W]` to logits `[B, K]`, its weights drawn from the stream (seed, "init", name).

    `model` is a name of MODELS (of a compact one also `"compact-s:WIDTH"`), `"pretrained:NAME"` (one of the package's,
    with its weights), `"timm:NAME"`, `"torchvision:NAME"` (untrained unless `pretrained=True`), `"hf:NAME"` (a folder
    or a name on the hub, with its weights unless `pretrained=False`), `"pkg.module:factory"` (called with classes= or
    num_classes=, and input_shape=, where it has such parameters), `"shrink:RATIO"` (a narrower copy of `teacher`, a
    model or its `architecture`; its options are CHOICES), or an nn.Module, which is wrapped with its weights. Classes
    and input_shape come from `data` (Splits) or the arguments. `preprocess` is a name of PREPROCESS (also
    `NAME@HxW-MODE`, resized), a module, or "model": that of a library's pretrained weights. The default is "model" for
    a network with pretrained weights, the teacher's for its narrower copy, the data's own for another name or a
    factory, and x / 255 for a module. Raises UnknownNameError, MismatchError when model, data and arguments disagree,
    DataError when weights cannot be downloaded, UsageError otherwise.
    """
    if classes is not None and (isinstance(classes, bool) or not isinstance(classes, int)):
        raise UsageError(f"classes {classes!r}: expected a whole number of two or more")
    if not isinstance(preprocess, str | nn.Module | None):
        raise UsageError(f"preprocess={preprocess!r:.60}: expected a name, such as 'standardize', or an nn.Module")
    count = _agree("classes", classes, getattr(data, "classes", None))
    shape = _agree("input_shape", _check_shape(input_shape), _check_shape(getattr(data, "input_shape", None)))
    if teacher is not None and not (isinstance(model, str) and model.startswith(SHRINK)):
        raise UsageError(f"teacher= has no effect on model {model!r:.60}: it is for {SHRINK}RATIO")
    if not isinstance(model, str):
        if options:
            raise UsageError(f"options {sorted(options)} have no effect on a module that is already built")
        front = None
        if preprocess is not None or not isinstance(model, Classifier):
            front = _front(preprocess or "scale", data, shape, BuiltNetwork(model))
        return as_classifier(model, classes=count, input_shape=shape, preprocess=front)
    if model.startswith(PREFIX):
        from noisyteacher.models.weights import load_model  # which builds what a file describes by this module

        if options or preprocess is not None:
            raise UsageError(f"options and preprocess= have no effect on {model!r}, which is built and trained")
        return as_classifier(load_model(model), classes=count, input_shape=shape)
    model, width = without_width(model)
    if width.keys() & options.keys():
        raise UsageError(f"model '{model}:...' states its width, and the option width does too: keep one of them")
    options |= width
    if ":" not in model and model not in MODELS:
        raise unknown_network(model, MODELS)
    if count is None or shape is None:
        raise UsageError(f"model {model!r} needs to know its classes and input_shape: pass data, or both")
    if count < 2:
        raise UsageError(f"classes {count}: a classifier needs two or more")
    if model.startswith(SHRINK):
        return _narrower_copy(model, teacher, data, count, shape, preprocess, seed, options)
    with seeded(seed, "init", model):
        built = _build_network(model, count, shape, options)
        front, name = _front(preprocess, data, shape, built), built.name or model
        options = _json_options(name, built.options)
        return as_classifier(
            built.network, classes=count, input_shape=shape, preprocess=front, name=name, options=options,
            probe=":" in model,
        )  # fmt: skip


def _training_split(data: Any, purpose: str) -> Any:
    split = getattr(data, "train", data)
    if getattr(split, "role", "train") != "train":
        raise UsageError(f"{purpose} of a split whose role is {split.role!r}: pass its train split")
    return split


def training_images(data: Any) -> Iterator[Tensor]:
    """The training images of Splits (or of a split whose role is train) in chunks, uint8 `[n, C, H, W]`.

    Raises UsageError when the split has another role: statistics of test images would leak into the model.
    """
    split = _training_split(data, "preprocessing statistics")
    for rows in split.chunks():
        yield split.images_at(rows)


def _build_network(name: str, classes: int, shape: Shape, options: Options) -> BuiltNetwork:
    """A network of MODELS, of another library, or of a user's factory."""
    prefix, _, rest = name.partition(":")
    if prefix in ZOO:
        return ZOO[prefix](rest, classes, shape, options)
    if ":" in name:
        return BuiltNetwork(_call_factory(name, classes, shape, options), options)
    if name not in MODELS:
        raise unknown_network(name, MODELS)
    return BuiltNetwork(MODELS[name](classes, shape, **options), {**default_options(name), **options})


def _json_options(name: str, options: Options) -> Options:
    try:
        return dict(json.loads(json.dumps(options, allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise UsageError(f"an option of model {name!r} cannot be written to a file: {error}") from error


def _narrower_copy(
    name: str,
    teacher: nn.Module | Architecture | None,
    data: Any,
    classes: int,
    shape: Shape,
    preprocess: str | nn.Module | None,
    seed: int,
    options: Options,
) -> Classifier:
    """The model `shrink:RATIO` of a teacher; the seed is that of random weights."""
    ratio = ratio_of(name)
    if unknown := sorted(options.keys() - CHOICES):
        raise UsageError(f"options {unknown} have no effect on {name!r}: it has {', '.join(CHOICES)}")
    for key, value in options.items():
        if value not in CHOICES[key]:
            raise UsageError(f"option {key} {value!r} of {name!r}: expected one of {', '.join(CHOICES[key])}")
    if teacher is None:
        raise UsageError(f"model {name!r} is a narrower copy of a teacher: pass teacher=, or name it as a student")
    if isinstance(teacher, nn.Module):
        source = as_classifier(teacher, classes=classes, input_shape=shape)
        of, built = Origin(name=source.name, options=source.architecture["options"]), BuiltNetwork(bare_network(source))
        front = _front(copy.deepcopy(source.preprocess) if preprocess is None else preprocess, data, shape, built).cpu()
        options = {"init": "magnitude", **options}
    else:
        if options.setdefault("init", "random") != "random":
            raise UsageError(f"{name!r}: the teacher's weights are not at hand: pass the model, or say init='random'")
        of, built = _untrained(teacher, classes, shape)
        front = _front(preprocess, data, shape, built)
    record = Options(of=of)
    first_origin({"name": name, "options": record})
    images = front(_example_images(data, shape, options["init"] == "taylor"))
    with seeded(seed, "init", name):
        narrow = narrow_network(built.network, ratio, images, **options)
    earlier = of["options"].get("attributes", {}) if of["name"].startswith(SHRINK) else {}
    if attributes := {
        module: earlier.get(module, {}) | narrow.attributes.get(module, {}) for module in earlier | narrow.attributes
    }:
        record["attributes"] = attributes
    record = _json_options(name, record)
    model = as_classifier(
        narrow.network, classes=classes, input_shape=shape, preprocess=front, name=name, options=record, probe=False
    )
    if isinstance(teacher, nn.Module) and options["init"] != "random":
        inherit(model, source, narrow.head)
    return model


def _example_images(data: Any, shape: Shape, trained_on: bool) -> Tensor:
    """Two blank images, or EXAMPLES of those that are `trained_on`, at equal distances."""
    if not trained_on:
        return torch.zeros((2, *shape), dtype=torch.uint8)
    if data is None:
        raise UsageError("init='taylor' ranks channels by gradients on training images: pass data")
    split = _training_split(data, "gradients on images")
    rows = torch.linspace(0, len(split) - 1, min(len(split), EXAMPLES)).long()
    images: Tensor = split.images_at(rows, "clean")
    return images


def _untrained(teacher: Architecture, classes: int, shape: Shape) -> tuple[Origin, BuiltNetwork]:
    """What a teacher is built from, and its network with random weights. Raises what its record lacks."""
    first = first_origin(teacher)
    for field, expected in (("classes", classes), ("input_shape", list(shape))):
        if teacher.get(field) not in (None, expected):
            raise MismatchError(f"the teacher has {field} {teacher.get(field)}, the student {field} {expected}")
    if first["name"].startswith("module:"):
        raise UsageError(
            f"the teacher {first['name']!r} cannot be built from its name: pass the module itself as teacher="
        )
    of = Origin(name=teacher["name"], options=teacher["options"])
    pretrained = {"pretrained": False} if first["name"].partition(":")[0] in ZOO else {}
    with kept_draws():
        built = _build_network(first["name"], classes, shape, {**first["options"], **pretrained})
        names, record = [], of
        while record["name"].startswith(SHRINK):
            names.append(record["name"])
            record = record["options"]["of"]
        for name in reversed(names):
            images = torch.zeros((2, shape[0], *(built.fixed_size or shape[1:])))
            built = replace(built, network=narrow_network(built.network, ratio_of(name), images).network)
    return of, built


def _front(preprocess: str | nn.Module | None, data: Any, shape: Shape | None, built: BuiltNetwork) -> nn.Module:
    """The preprocessing; images are resized where the network takes a fixed size."""
    if isinstance(preprocess, nn.Module):
        return preprocess
    own = preprocess == OWN or (preprocess is None and built.pretrained)
    if own and built.trained_on is None:
        if built.pretrained or built.images_unknown:
            reason = built.images_unknown or "the pretrained network's library states no mean and std"
            raise UsageError(
                f"{reason}, so how its images are prepared is not known: name a preprocessing by preprocess= (on the "
                "command line teacher.preprocess or student.preprocess, with mean and std)"
            )
        raise UsageError(f"preprocess='model' is for networks of {', '.join(ZOO)} that state theirs: name another")
    if shape and built.trained_on and own:
        front = built.trained_on.preprocess(shape)
    else:
        name = preprocess or getattr(data, "preprocess", None) or "scale"
        if shape is None and name != "scale":
            raise UsageError(f"preprocessing {name!r} needs to know the image size: pass data or input_shape=")
        front = build_preprocess(name, None if data is None else training_images(data), shape or (1, 1, 1))
    size = built.fixed_size
    if size is None or shape is None or size == shape[1:] or isinstance(front, Resized):
        return front
    return Resized(front, size, built.trained_on.mode if built.trained_on else "bicubic")


def _call_factory(name: str, classes: int, shape: Shape, options: Options) -> nn.Module:
    module, _, attribute = name.partition(":")
    try:
        factory = attrgetter(attribute)(importlib.import_module(module))
    except Exception as error:  # a user's module may raise anything when it is imported
        raise UsageError(f"model {name!r}: importing {module!r} failed: {type(error).__name__}: {error}") from error
    if not callable(factory):
        raise UsageError(f"model {name!r} is a {type(factory).__name__}, not a function or class to call")
    offered = {"classes": classes, "num_classes": classes, "input_shape": shape}
    try:
        parameters = inspect.signature(factory).parameters
        network = factory(**{key: value for key, value in offered.items() if key in parameters} | options)
    except NoisyTeacherError:
        raise
    except Exception as error:  # the factory is the user's: it may raise anything
        raise UsageError(f"model {name!r}: the factory raised {type(error).__name__}: {error}") from error
    if not isinstance(network, nn.Module):
        raise UsageError(f"model {name!r} returned a {type(network).__name__}, not an nn.Module")
    return network


def _check_shape(shape: Sequence[int] | None) -> Shape | None:
    if shape is None:
        return None
    if len(shape) != 3 or not all(1 <= size < 2**31 and int(size) == size for size in shape):
        raise UsageError(f"input_shape {shape}: expected (channels, height, width), three sizes of 1 or more")
    return int(shape[0]), int(shape[1]), int(shape[2])


def _agree(field: str, argument: T | None, of_data: T | None) -> T | None:
    if argument is not None and of_data is not None and argument != of_data:
        raise MismatchError(f"{field} {argument} was given, but the data have {of_data}: leave {field}= out")
    return of_data if argument is None else argument
