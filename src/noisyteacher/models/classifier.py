"""A classifier is preprocessing and a network in one module: uint8 images in, logits out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from noisyteacher.device import full_precision, in_autocast
from noisyteacher.errors import MismatchError, UsageError
from noisyteacher.inference import inference
from noisyteacher.models.preprocess import Scale, preprocess_name
from noisyteacher.rng import kept_draws


def logits_of(output: Any) -> Tensor:
    """The logits `[B, K]` in a network's output: a tensor, its `.logits`, its "logits", or the first item of a tuple.

    Raises MismatchError when there are none, or when they are not a floating-point tensor of two dimensions.
    """
    logits = output
    if not isinstance(output, Tensor):
        if isinstance(getattr(output, "logits", None), Tensor):
            logits = output.logits
        elif isinstance(output, Mapping):
            logits = output.get("logits")
        elif isinstance(output, (tuple, list)) and output:
            logits = output[0]
    if not isinstance(logits, Tensor):
        keys = f" with keys {sorted(map(str, output))}" if isinstance(output, Mapping) else ""
        raise MismatchError(
            f"the network returned a {type(output).__name__}{keys}: expected logits [B, K] as a tensor, as a tuple's "
            "first item, as .logits or as ['logits']; wrap it in a module that returns them"
        )
    if logits.dim() != 2 or not logits.is_floating_point():
        raise MismatchError(
            f"the network returned {logits.dtype} of shape {tuple(logits.shape)}: expected floating-point logits "
            "[B, K], one row per image and one column per class"
        )
    return logits


class Classifier(nn.Module):
    """Preprocessing, a network, and the record that describes them; uint8 `[B, C, H, W]` in, logits `[B, K]` out.

    `architecture` is JSON-able: name, classes, input_shape, options, preprocess. Classes and input_shape are None only
    for a user's module that was wrapped without stating them.
    """

    def __init__(self, preprocess: nn.Module, network: nn.Module, architecture: dict[str, Any]) -> None:
        """`build_model` and `as_classifier` write the `architecture`."""
        super().__init__()
        self.preprocess = preprocess
        self.network = network
        self.architecture = architecture

    @property
    def classes(self) -> int | None:
        """K, the number of classes."""
        classes: int | None = self.architecture["classes"]
        return classes

    @property
    def name(self) -> str:
        """The name it was built by, or `module:pkg.Class`."""
        return str(self.architecture["name"])

    @property
    def input_shape(self) -> tuple[int, int, int] | None:
        """(C, H, W) of the images."""
        shape = self.architecture["input_shape"]
        return None if shape is None else (shape[0], shape[1], shape[2])

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
                "classes: expected one row per image and one column per class, since a single column would broadcast "
                "against all classes"
            )
        return logits


class Head(nn.Linear):
    """A linear layer that computes in fp32 where autocast runs the rest in bf16, `[B, in]` to `[B, out]`.

    Logits rounded to eight bits teach a student worse (docs/performance.md), and this layer is small. It prints as the
    linear layer that it is.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002, as torch names it
        """The logits, fp32 inside autocast."""
        device = self.weight.device
        if not in_autocast(device):
            return super().forward(input)
        with full_precision(device):
            return super().forward(input.float())

    def _get_name(self) -> str:
        return "Linear"


class Reordered(nn.Module):
    """A network with its outputs in another order: logit k is the network's output `order[k]`."""

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
    network, total_order = model.network, list(order)
    if isinstance(network, Reordered):
        first_order = network.class_order.tolist()
        network, total_order = network.network, [first_order[output] for output in order]
    classifier = Classifier(model.preprocess, Reordered(network, total_order), dict(model.architecture))
    return classifier.train(model.training)


def as_classifier(
    module: nn.Module,
    *,
    classes: int | None = None,
    input_shape: Sequence[int] | None = None,
    preprocess: nn.Module | None = None,
    name: str | None = None,
) -> Classifier:
    """The module as a Classifier: itself if it is one, else wrapped behind `preprocess` (default: `Scale`, x / 255).

    The module is shared, not copied. With an `input_shape` (C, H, W) it runs once, in eval mode, on two blank images,
    so that its number of classes is known before the first batch. Raises MismatchError when that is not `classes`, and
    UsageError for something that is not a module.
    """
    if not isinstance(module, nn.Module):
        raise UsageError(
            f"a {type(module).__name__} is not a model: pass an nn.Module that returns logits, or a model's name"
        )
    shape = None if input_shape is None else [int(size) for size in input_shape]
    if isinstance(module, Classifier):
        if preprocess is not None:
            raise UsageError("this model already has its preprocessing: leave preprocess= out")
        model_shape = None if module.input_shape is None else list(module.input_shape)
        for field, expected, actual in (("classes", classes, module.classes), ("input_shape", shape, model_shape)):
            if expected is not None and actual is not None and expected != actual:
                raise MismatchError(f"the model has {field} {actual}, and {expected} was expected: build one that fits")
        if (shape is None or model_shape is not None) and (classes is None or module.classes is not None):
            return module
        return as_classifier(
            module.network,
            classes=module.classes or classes,
            input_shape=model_shape or shape,
            preprocess=module.preprocess,
            name=module.name,
        )
    preprocess = Scale() if preprocess is None else preprocess
    architecture: dict[str, Any] = {
        "name": name or f"module:{type(module).__module__}.{type(module).__qualname__}",
        "classes": classes,
        "input_shape": shape,
        "options": {},
        "preprocess": preprocess_name(preprocess),
    }
    model = Classifier(preprocess, module, architecture)
    device = next((parameter.device for parameter in module.parameters()), None)
    if device is not None:
        preprocess.to(device)
    if shape is not None:
        architecture["classes"] = _count_classes(model, classes)
    return model


def _count_classes(model: Classifier, expected: int | None) -> int:
    """The number of logits for two blank images; the model's mode and the random state are restored afterwards."""
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
    if logits.shape[0] != 2 or expected not in (None, logits.shape[1]):
        raise MismatchError(
            f"{model.name!r} returned logits {tuple(logits.shape)} for 2 images, expected (2, {expected or 'classes'}):"
            " one row per image and one column per class"
        )
    return int(logits.shape[1])
