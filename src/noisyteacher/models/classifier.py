"""A classifier is preprocessing and a network in one module: uint8 images in, logits out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from noisyteacher.device import full_precision
from noisyteacher.errors import MismatchError, UsageError
from noisyteacher.models.preprocess import Scale, preprocess_name
from noisyteacher.modes import inference
from noisyteacher.rng import kept_draws


def logits_of(output: Any) -> Tensor:
    """The logits `[B, K]` in a network's answer: a tensor, its `.logits`, its "logits", or the first of a tuple.

    Raises MismatchError when there are none, or when they are not a floating-point tensor of two dimensions.
    """
    found = output
    if not isinstance(found, Tensor):
        if isinstance(getattr(output, "logits", None), Tensor):
            found = output.logits
        elif isinstance(output, Mapping):
            found = output.get("logits")
        elif isinstance(output, (tuple, list)) and output:
            found = output[0]
    if not isinstance(found, Tensor):
        keys = f" with keys {sorted(map(str, output))}" if isinstance(output, Mapping) else ""
        raise MismatchError(
            f"the network returned a {type(output).__name__}{keys}: expected logits [B, K] as a tensor, as a tuple's "
            "first item, as .logits or as ['logits']; wrap it in a module that returns them"
        )
    if found.dim() != 2 or not found.is_floating_point():
        raise MismatchError(
            f"the network returned {found.dtype} of shape {tuple(found.shape)}: expected floating-point logits [B, K], "
            "one row an image and one column a class"
        )
    return found


class Classifier(nn.Module):
    """Preprocessing, a network, and the record that names them; takes uint8 `[B, C, H, W]`, returns logits `[B, K]`.

    `architecture` is JSON-able: name, classes, input_shape, options, preprocess. Classes and input_shape are None only
    for a module of somebody else's that was wrapped without saying them.
    """

    def __init__(self, preprocess: nn.Module, network: nn.Module, architecture: dict[str, Any]) -> None:
        """`architecture` is kept as given; `build_model` and `as_classifier` write it."""
        super().__init__()
        self.preprocess = preprocess
        self.network = network
        self.architecture = architecture

    @property
    def classes(self) -> int | None:
        """K, the number of classes."""
        found: int | None = self.architecture["classes"]
        return found

    @property
    def name(self) -> str:
        """The name it was built by, or `module:pkg.Class`."""
        return str(self.architecture["name"])

    @property
    def input_shape(self) -> tuple[int, int, int] | None:
        """(C, H, W) of the images."""
        found = self.architecture["input_shape"]
        return None if found is None else (found[0], found[1], found[2])

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[B, K]` of uint8 images `[B, C, H, W]`. Raises MismatchError for another shape."""
        expected = self.input_shape
        if expected is not None and tuple(images.shape[1:]) != expected:
            raise MismatchError(
                f"images of shape {tuple(images.shape)} were given to {self.name!r}, which takes [B, "
                f"{', '.join(map(str, expected))}]: resize them, or build the model for their shape"
            )
        with full_precision(images.device):  # the same normalisation in training as wherever the model is used
            ready = self.preprocess(images)
        logits = logits_of(self.network(ready))
        if logits.shape[0] != images.shape[0] or self.classes not in (None, logits.shape[1]):
            raise MismatchError(
                f"{self.name!r} returned logits {tuple(logits.shape)} for {images.shape[0]} images and {self.classes} "
                "classes: a single column would broadcast against all classes, so this is refused"
            )
        return logits


class Reordered(nn.Module):
    """A network whose outputs are put into another order: logit k is the network's output `order[k]`."""

    class_order: Tensor

    def __init__(self, network: nn.Module, order: Sequence[int] | Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("class_order", torch.as_tensor(order, dtype=torch.int64).clone())

    def forward(self, ready: Tensor) -> Tensor:
        """Logits `[B, K]`."""
        return logits_of(self.network(ready)).index_select(1, self.class_order)


def reordered(model: Classifier, order: Sequence[int]) -> Classifier:
    """A Classifier whose logit k is logit `order[k]` of the model; it shares the model's network and preprocessing.

    Raises MismatchError unless `order` holds every output of the model once.
    """
    if model.classes is not None and sorted(order) != list(range(model.classes)):
        raise MismatchError(
            f"class order {list(order)}: expected each of the model's outputs 0..{model.classes - 1} once"
        )
    network, whole = model.network, list(order)
    if isinstance(network, Reordered):
        before = network.class_order.tolist()
        network, whole = network.network, [before[output] for output in order]
    made = Classifier(model.preprocess, Reordered(network, whole), dict(model.architecture))
    return made.train(model.training)


def as_classifier(
    module: nn.Module,
    *,
    classes: int | None = None,
    input_shape: Sequence[int] | None = None,
    preprocess: nn.Module | None = None,
    name: str | None = None,
) -> Classifier:
    """The module as a Classifier: itself if it is one, else wrapped behind `preprocess` (default: `Scale`, x / 255).

    The module is shared, not copied. With an `input_shape` (C, H, W) it is asked once, in eval mode, for two blank
    images, so that its number of classes is known before the first batch. Raises MismatchError when that is not
    `classes`, and UsageError for something that is not a module.
    """
    if not isinstance(module, nn.Module):
        raise UsageError(
            f"a {type(module).__name__} is not a model: pass an nn.Module that returns logits, or a model's name"
        )
    shape = None if input_shape is None else [int(size) for size in input_shape]
    if isinstance(module, Classifier):
        if preprocess is not None:
            raise UsageError("this model already has its preprocessing: leave preprocess= out")
        own = None if module.input_shape is None else list(module.input_shape)
        for what, given, has in (("classes", classes, module.classes), ("input_shape", shape, own)):
            if given is not None and has is not None and given != has:
                raise MismatchError(f"the model has {what} {has}, and {given} was asked for: build one that fits")
        if (shape is None or own is not None) and (classes is None or module.classes is not None):
            return module
        return as_classifier(
            module.network,
            classes=module.classes or classes,
            input_shape=own or shape,
            preprocess=module.preprocess,
            name=module.name,
        )
    front = Scale() if preprocess is None else preprocess
    kind = f"module:{type(module).__module__}.{type(module).__qualname__}"
    architecture: dict[str, Any] = {
        "name": name or kind,
        "classes": classes,
        "input_shape": shape,
        "options": {},
        "preprocess": preprocess_name(front),
    }
    model = Classifier(front, module, architecture)
    device = next((tensor.device for tensor in module.parameters()), None)
    if device is not None:
        front.to(device)
    if shape is not None:
        architecture["classes"] = _ask_classes(model, classes)
    return model


def _ask_classes(model: Classifier, classes: int | None) -> int:
    """K as the network itself says it for two blank images; modes and random state are as before afterwards."""
    shape = model.input_shape
    assert shape is not None
    try:
        with inference(model) as device, kept_draws(device):
            blank = torch.zeros((2, *shape), dtype=torch.uint8, device=device)
            logits = logits_of(model.network(model.preprocess(blank)))
    except (RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, MismatchError):
            raise
        raise MismatchError(
            f"{model.name!r} failed on images of shape {shape}: {error}; check input_shape, and whether it takes "
            "float32 in [0, 1] (give preprocess= otherwise)"
        ) from error
    if logits.shape[0] != 2 or classes not in (None, logits.shape[1]):
        raise MismatchError(
            f"{model.name!r} returned logits {tuple(logits.shape)} for 2 images, expected (2, {classes or 'classes'}): "
            "it must have one output a class and one row an image"
        )
    return int(logits.shape[1])
