"""Models as settings name them: built with their preprocessing, or trained before and found in a file or a library."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from noisyteacher.config import Recipe, Teacher
from noisyteacher.data import Splits
from noisyteacher.errors import FileFormatError, UsageError
from noisyteacher.models import (
    ENDINGS,
    OWN,
    PREFIX,
    SHRINK,
    WHOLE,
    ZOO,
    Classifier,
    Reordered,
    Resized,
    Standardize,
    begins_as_torch_file,
    blank_preprocess,
    build_model,
    build_preprocess,
    class_names_of,
    is_onnx_file,
    load_foreign,
    load_onnx,
    load_weights,
    model_record,
    training_images,
)
from noisyteacher.runs import Run


def network_of(
    settings: Recipe,
    model: str | nn.Module,
    data: Splits,
    seed: int = 0,
    teacher: nn.Module | Mapping[str, Any] | None = None,
) -> Classifier:
    """The network that settings describe, not trained: `build_model` with their options and preprocessing.

    `shrink:RATIO` is a narrower copy of `teacher`, a model or the architecture of one; others do without. Where they
    name a file of weights for other classes, all but its head is the file's (`starts_from_weights`).
    """
    if isinstance(model, str) and isinstance(settings, Teacher) and settings.weights:
        started = _before_weights(model, data, settings, seed)
        load_foreign(started, settings.weights, new_head=True)
        return started
    options: dict[str, Any] = dict(settings.options)
    if isinstance(model, str) and model.startswith(SHRINK):
        options["teacher"] = teacher
    return build_model(model, data, preprocess=preprocess_of(settings, data), seed=seed, **options)


def preprocess_of(settings: Recipe, data: Splits) -> str | nn.Module | None:
    """The `preprocess` of `build_model` that settings mean: None: its default; a module where they give statistics."""
    if not settings.mean:
        return settings.preprocess or None
    front = blank_preprocess(settings.preprocess or "standardize", data.input_shape)
    inner = front.inner if isinstance(front, Resized) else front
    if not isinstance(inner, Standardize) or len(settings.mean) != len(inner.mean):
        raise UsageError(
            f"preprocess {settings.preprocess!r} with mean of {len(settings.mean)} values: mean and std belong to "
            f"standardize, a value for each of the {data.input_shape[0]} channels of {data.name}"
        )
    with torch.no_grad():
        inner.mean.copy_(torch.tensor(settings.mean))
        inner.std.copy_(torch.tensor(settings.std))
    return front


def names_a_file(name: str) -> bool:
    """Whether a model's name means a trained one that lies somewhere: a path, what looks like one, `pretrained:NAME`.

    `names_a_file("lenet")` and `names_a_file("hf:microsoft/resnet-18")` are False. Raises UsageError for a file
    that holds weights and no architecture.
    """
    if name.endswith(".pt2"):
        raise UsageError(f"{name}: a torch.export program cannot be a teacher: export the model to ONNX and give that")
    if name.lower().endswith(ENDINGS) or (not is_onnx_file(name) and begins_as_torch_file(name)):
        raise UsageError(
            f"{name}: such a file has weights and does not say of which network: name that, for example --teacher "
            "timm:resnet18, and the file beside it by --teacher-weights (teacher.weights)"
        )
    if name.partition(":")[0] in ZOO:
        return False
    looks = name.endswith(".safetensors") or is_onnx_file(name)
    return name.startswith(PREFIX) or looks or os.sep in name or os.path.isdir(name)


def is_given(name: str, settings: Teacher | None = None, data: Splits | None = None) -> bool:
    """Whether a teacher's name, with its settings, means one that is trained already.

    So does a file, a network with a file of weights, and one that comes with its own and is not to be trained further:
    `hf:NAME` without the option `pretrained`, and any other with `pretrained = "whole"`. With `data`, a file of weights
    for other classes does not: it is where a training starts.
    """
    if names_a_file(name):
        return True
    if settings is not None and settings.weights:
        return data is None or not starts_from_weights(name, data, settings)
    wanted = {} if settings is None else settings.options
    return name.partition(":")[0] in ZOO and wanted.get("pretrained", WHOLE if name.startswith("hf:") else "") == WHOLE


def starts_from_weights(name: str, data: Splits, settings: Teacher) -> bool:
    """Whether the file of weights that settings name is for other classes: a new head is then trained on its body."""
    if not settings.weights:
        return False
    return load_foreign(_before_weights(name, data, settings), settings.weights, new_head=True) is not None


def _before_weights(name: str, data: Splits, settings: Teacher, seed: int = 0) -> Classifier:
    """The network that a file of weights is for, untrained, behind what its library says of its images."""
    prefix, front = name.partition(":")[0], preprocess_of(settings, data)
    options: dict[str, Any] = dict(settings.options)
    if prefix in ZOO:
        if options.get("pretrained"):
            raise UsageError("teacher.options.pretrained: has no effect beside teacher.weights: leave one out")
        options["pretrained"] = False
        front = front or (OWN if prefix != "hf" else None)
    return build_model(name, data, preprocess=front, seed=seed, **options)


def load_named(name: str, data: Splits, settings: Teacher) -> Classifier:
    """A given teacher that is named by its network: with the weights of a file, or those it comes with.

    Before a network of timm or torchvision stands what its library says of its images, unless settings name another
    preprocessing. Raises MismatchError when the file's tensors are not the network's, and as `build_model`.
    """
    if not settings.weights:
        options: dict[str, Any] = {"pretrained": WHOLE, **settings.options}
        return build_model(name, data, preprocess=preprocess_of(settings, data), **options).eval()
    model = _before_weights(name, data, settings)
    (load_weights if _is_ours(settings.weights) else load_foreign)(model, settings.weights)
    return model.eval()


def load_onnx_for(path: str, data: Splits | None, settings: Teacher | None) -> Classifier:
    """A teacher that is an ONNX model, for these data where there are any."""
    front: nn.Module | None = None
    if data is not None and settings is not None and (settings.preprocess or settings.mean):
        named = preprocess_of(settings, data)
        if named == OWN:
            raise UsageError(f"teacher.preprocess: {path} does not say what it was trained on: name another")
        front = build_preprocess(named, training_images(data), data.input_shape) if isinstance(named, str) else named
    shape = None if data is None else data.input_shape
    classes = None if data is None else data.classes
    return load_onnx(path, classes=classes, input_shape=shape, preprocess=front).eval()


def class_names_taught(model: Classifier, run: Run | None, order: Sequence[int] = ()) -> tuple[str, ...] | None:
    """The names of a given model's classes in its own order, as its run or its config states them; None without.

    `order` is one that its outputs were put in after that run.
    """
    if run is not None:
        stated: Any = (run.result() or {}).get("classes")
        config: Mapping[str, Any] = run.config
        if stated is None and isinstance(config.get("data"), dict):
            stated = config["data"].get("classes")
        names = tuple(map(str, stated)) if isinstance(stated, list) else None
    else:
        names = class_names_of(model.architecture)
        order = model.network.class_order.tolist() if isinstance(model.network, Reordered) else ()
    return names if names is None or len(names) != len(order) else tuple(names[output] for output in order)


def _is_ours(path: str) -> bool:
    try:
        return not begins_as_torch_file(path) and bool(model_record(path))
    except FileFormatError:
        return False
