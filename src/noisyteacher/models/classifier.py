"""A classifier is preprocessing and a network in one module: uint8 images in, logits out."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from noisyteacher.device import full_precision, in_autocast, inference
from noisyteacher.errors import MismatchError, NoisyTeacherError, UsageError
from noisyteacher.models.preprocess import Scale, Shape, preprocess_name
from noisyteacher.rng import kept_draws

Options = dict[str, Any]
"""Keyword arguments of a network's builder; JSON-able where they are recorded."""
USUAL_SIDES = (64, 96, 128, 160, 192, 224, 256, 299, 384)
"""Sizes of square images to advise where a network needs larger ones."""


class Architecture(TypedDict):
    """What a model is built from, as it stands in every file of weights."""

    name: str
    """The name that `build_model` takes, or `module:pkg.Class` for a user's module."""
    classes: int | None
    input_shape: list[int] | None
    """[C, H, W]; it and the classes are None only for a user's module that was wrapped without stating them."""
    options: Options
    preprocess: str


def logits_of(output: Any) -> Tensor:
    """The logits `[B, K]` in a network's output: a tensor, its `.logits`, its "logits", or the first item of a tuple.

    Raises MismatchError when there is no such floating-point tensor.
    """
    logits = output
    if isinstance(output, Mapping):
        logits = output.get("logits")
    elif isinstance(getattr(output, "logits", None), Tensor):
        logits = output.logits
    elif isinstance(output, (tuple, list)) and output:
        logits = output[0]
    if not isinstance(logits, Tensor):
        keys = f" with keys {sorted(map(str, output))}" if isinstance(output, Mapping) else ""
        raise MismatchError(f"the network returned a {type(output).__name__}{keys}: expected logits [B, K]")
    if logits.dim() != 2 or not logits.is_floating_point():
        returned = f"{logits.dtype} {tuple(logits.shape)}"
        raise MismatchError(f"the network returned {returned}: expected floating-point logits [B, K]")
    return logits


class Classifier(nn.Module):
    """Preprocessing and a network, with the architecture that describes both: uint8 images in, logits `[B, K]` out."""

    def __init__(self, preprocess: nn.Module, network: nn.Module, architecture: Architecture) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.network = network
        self.architecture = architecture
        self.inherited_head: str | None = None
        """Of a network with its teacher's weights the layer that gives the logits, "" if it is not one; else None."""

    @property
    def classes(self) -> int | None:
        """K, the number of classes."""
        return self.architecture["classes"]

    @property
    def name(self) -> str:
        """The name it was built by, or `module:pkg.Class`."""
        return self.architecture["name"]

    @property
    def input_shape(self) -> Shape | None:
        """(C, H, W) of the images."""
        shape = self.architecture["input_shape"]
        return None if shape is None else (shape[0], shape[1], shape[2])

    def forward(self, images: Tensor, noise: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """The logits `[B, K]` of images `[B, C, H, W]`; in training with noise on the preprocessed ones.

        Raises MismatchError for images of another shape, and when the network returns other logits.
        """
        if self.input_shape is not None and tuple(images.shape[1:]) != self.input_shape:
            expected = f"[B, {', '.join(map(str, self.input_shape))}]"
            raise MismatchError(f"images of shape {tuple(images.shape)}: {self.name!r} takes {expected}")
        with full_precision(images.device):  # the same normalisation in training as wherever the model is used
            ready = self.preprocess(images) if noise is None else noise(self.preprocess(images))
        logits = logits_of(self.network(ready))
        self.check_logits(logits, images.shape[0])
        return logits

    def check_logits(self, logits: Tensor, images: int) -> None:
        """Raises MismatchError unless they are `[images, classes]`: a single column would broadcast against classes."""
        if logits.shape[0] != images or self.classes not in (None, logits.shape[1]):
            expected = (images, self.classes or "classes")
            raise MismatchError(
                f"{self.name!r} returned logits {tuple(logits.shape)} for {images} images, expected {expected}: one "
                "for each class"
            )


class Head(nn.Linear):
    """A linear layer that computes in fp32 where autocast runs the rest in bf16, `[B, in]` to `[B, out]`.

    Logits rounded to eight bits teach a student worse (docs/performance.md). It prints as the linear layer that it is.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002, as torch names it
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
    classifier = Classifier(model.preprocess, Reordered(network, total_order), model.architecture.copy())
    return classifier.train(model.training)


class Rescaled(nn.Module):
    """A network whose outputs are multiplied by a constant: it learns numbers of size 1 and gives logits of size c."""

    output_scale: Tensor

    def __init__(self, network: nn.Module, output_scale: float | Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("output_scale", torch.as_tensor(output_scale, dtype=torch.float32).clone())

    def forward(self, ready: Tensor) -> Tensor:
        return logits_of(self.network(ready)) * self.output_scale


def rescale(model: Classifier, output_scale: float) -> Classifier:
    """The model itself, its network's outputs multiplied by this constant from now on, instead of by an earlier one."""
    if isinstance(model.network, Rescaled):
        model.network.output_scale.fill_(output_scale)
    else:
        training = model.network.training
        parameter = next(model.network.parameters(), None)
        device = torch.device("cpu") if parameter is None else parameter.device
        model.network = Rescaled(model.network, output_scale).to(device).train(training)
    return model


def learn_in_unit(model: Classifier, unit: float) -> Classifier:
    """The model itself, whose network is to learn logits in this unit: `rescale`, but an inherited head, whose outputs
    are logits already, is divided by the unit first. Raises UsageError where weights are inherited and no head is.
    """
    if model.inherited_head is not None and not isinstance(model.network, Rescaled):
        _change_head(model, partial(torch.mul, other=1 / float(unit)))
    return rescale(model, unit)


def output_restorer(model: Classifier) -> Callable[[], None]:
    """A function that undoes a later `learn_in_unit`: network, scale and head are then those of now."""
    network, scale = model.network, 1.0
    if isinstance(network, Rescaled):
        scale = float(network.output_scale)
    head = dict(network.named_modules()).get(model.inherited_head) if model.inherited_head else None
    values = [] if head is None else [(parameter, parameter.data) for parameter in head.parameters()]

    def restore() -> None:
        model.network = network
        if isinstance(network, Rescaled):
            rescale(model, scale)
        for parameter, value in values:
            parameter.data = value.to(parameter.device)

    return restore


def _change_head(model: Classifier, change: Callable[[Tensor], Tensor]) -> None:
    """Change the tensors of the inherited head, whose first dimension is the classes."""
    if not model.inherited_head:
        raise UsageError(
            f"no single layer of {model.name!r} gives its logits, which cannot be scaled: use init='random'"
        )
    for parameter in model.network.get_submodule(model.inherited_head).parameters():
        parameter.data = change(parameter.data)


def inherit(model: Classifier, teacher: Classifier, head: str) -> None:
    """Put what changes the teacher's outputs into the layer `head` of a model that has the teacher's weights."""
    model.inherited_head, network = head, teacher.network
    changes: list[Callable[[Tensor], Tensor]] = []  # the innermost first
    while isinstance(network, (Reordered, Rescaled)):
        if isinstance(network, Reordered):
            changes.insert(0, partial(torch.index_select, dim=0, index=network.class_order.cpu()))
        else:
            changes.insert(0, partial(torch.mul, other=network.output_scale.cpu()))
        network = network.network
    for change in changes:
        _change_head(model, change)


def bare_network(model: Classifier) -> nn.Module:
    """The network in a Classifier without what changes its outputs."""
    network = model.network
    while isinstance(network, (Reordered, Rescaled)):
        network = network.network
    return network


def with_network(model: Classifier, network: nn.Module) -> Classifier:
    """A copy of the model with this network in place of its `bare_network`."""
    copied = copy.deepcopy(model)
    part: Any = copied
    while isinstance(part.network, (Reordered, Rescaled)):
        part = part.network
    part.network = network
    return copied


def head_parameters(parameters: Mapping[str, Tensor], classes: int | None = None) -> set[str]:
    """The names of the parameters of the last layer, which gives the logits: of the last matrix and its bias.

    parameters: of a network, in order. Raises UsageError where the layer does not give one number for each of the
    `classes`.
    """
    matrices = [name for name, parameter in parameters.items() if parameter.ndim > 1]
    if classes is not None and (not matrices or parameters[matrices[-1]].shape[0] != classes):
        last = f"{matrices[-1]} of {parameters[matrices[-1]].shape[0]} outputs" if matrices else "nothing"
        raise UsageError(
            f"the head is the layer that the network registers last, and that is {last}, not one of {classes} classes: "
            "leave head, freeze_epochs and body_rate out, or register the layer of the logits last"
        )

    def layer_of(name: str) -> str:  # `head` for `head.weight` and for `head.parametrizations.weight.original0`
        return re.sub(r"(^|\.)(parametrizations\..*|[^.]*)$", "", name)

    return {name for name in parameters if matrices and layer_of(name) == layer_of(matrices[-1])}


def as_classifier(
    module: nn.Module,
    *,
    classes: int | None = None,
    input_shape: Sequence[int] | None = None,
    preprocess: nn.Module | None = None,
    name: str | None = None,
    options: Options | None = None,
    probe: bool = True,
) -> Classifier:
    """The module as a Classifier: itself if it is one, else wrapped behind `preprocess` (default: `Scale`, x / 255).

    The module is shared, not copied, and its mode is the Classifier's. With an `input_shape` (C, H, W) and `probe`, it
    runs once, in eval mode, on two blank images, so that its number of classes is known before the first batch. Raises
    MismatchError when that is not `classes`, UsageError for something that is no module, or not in shape yet.
    """
    if not isinstance(module, nn.Module):
        raise UsageError(f"a {type(module).__name__} is not a model: expected an nn.Module that returns logits")
    shape = None if input_shape is None else [int(size) for size in input_shape]
    if isinstance(module, Classifier):
        if preprocess is not None:
            raise UsageError("this model already has its preprocessing: leave preprocess= out")
        stated = module.architecture
        for field, expected, actual in (
            ("classes", classes, module.classes),
            ("input_shape", shape, stated["input_shape"]),
        ):
            if None not in (expected, actual) and expected != actual:
                raise MismatchError(f"the model has {field} {actual}, and {expected} was expected: build one that fits")
        classes, shape = stated["classes"] or classes, stated["input_shape"] or shape
        if (classes, shape) == (stated["classes"], stated["input_shape"]):
            return module
        preprocess, name, options, module = module.preprocess, module.name, stated["options"], module.network
    preprocess = Scale() if preprocess is None else preprocess
    if (parameter := next(module.parameters(), None)) is not None:
        preprocess.to(parameter.device)
    name = name or f"module:{type(module).__module__}.{type(module).__qualname__}"
    architecture = Architecture(
        name=name, classes=classes, input_shape=shape, options=options or {}, preprocess=preprocess_name(preprocess)
    )
    model = Classifier(preprocess, module, architecture)
    for part in (model, *preprocess.modules()):  # without train(), in which the module may do work
        part.training = module.training
    if shape is not None and probe:
        architecture["classes"] = count_classes(model)
    check_shaped(module)
    return model


def check_shaped(module: nn.Module) -> None:
    """Raises UsageError for weights whose shape the first batch decides, as in nn.LazyLinear."""
    unknown = [name for name, tensor in (*module.named_parameters(), *module.named_buffers()) if is_lazy(tensor)]
    if unknown:
        raise UsageError(f"the model's {unknown[0]} has no shape yet (a Lazy module): run it once on a batch first")


def check_trainable(module: nn.Module) -> None:
    """Raises UsageError for weights without values, or whose elements share memory, which cannot be written."""
    check_shaped(module)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_meta:
            raise UsageError(f"the model's {name} is on the meta device, without values: load its weights first")
        if torch._debug_has_internal_overlap(tensor) == 1:
            raise UsageError(f"elements of the model's {name} share memory, as after expand(): keep a copy, by clone()")


def count_classes(model: Classifier) -> int:
    """The number of logits for two blank images, without a trace in the model's mode or the random state."""
    shape = tuple(model.input_shape or ())
    try:
        logits = _blank_logits(model, shape)
    except NoisyTeacherError:
        raise
    except Exception as error:  # the network may be the user's
        side = next((side for side in USUAL_SIDES if side > max(shape[1:], default=side) and _runs_at(model, side)), 0)
        larger = f"it runs on images of {side} pixels: --size {side} (size in Python)"
        dtypes = {str(parameter.dtype) for parameter in model.parameters()} - {"torch.float32"}
        narrow = f"its weights are {', '.join(sorted(dtypes))} and images reach it as float32: call .float() on it"
        advice = narrow if dtypes else larger if side else "check input_shape and preprocess="
        problem = f"{model.name!r} failed on images of shape {shape}: {type(error).__name__}: {error}"
        raise MismatchError(f"{problem}; {advice}") from error
    model.check_logits(logits, 2)
    return int(logits.shape[1])


def _blank_logits(model: Classifier, shape: Sequence[int]) -> Tensor:
    """The logits for two blank images."""
    with inference(model) as device, kept_draws(device):
        blank = torch.zeros((2, *shape), dtype=torch.uint8, device=device)
        return logits_of(model.network(model.preprocess(blank)))


def _runs_at(model: Classifier, side: int) -> bool:
    """Whether the network answers to square images of this many pixels."""
    try:
        _blank_logits(model, (*(model.input_shape or ())[:1], side, side))
    except Exception:
        return False
    return True
