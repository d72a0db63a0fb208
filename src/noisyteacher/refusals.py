"""What `fit` refuses before it starts (splits in the wrong role, settings without effect) and at each update."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import zip_longest
from typing import Any

import torch
from torch import nn

from noisyteacher.data import AUGMENTATIONS, Split
from noisyteacher.device import PRECISIONS
from noisyteacher.errors import ConfigError, DataError, MismatchError, TrainingError, UsageError
from noisyteacher.noise import is_number
from noisyteacher.schedule import SCHEDULES
from noisyteacher.text import unknown_name

OPTIMIZERS = ("adam", "adamw", "sgd", "muon")
BATCH_NORMS = ("running", "reestimate")
"""Where the statistics come from that batch norms answer with."""
OTHER = {"best": "last.safetensors", "last": "best.safetensors"}
"""Which weights may be kept, and the file of those that are not."""


def check_roles(split: Split, val: Split | None) -> None:
    """Raises UsageError for a test split: what is reported on must not be learned or chosen from."""
    for given, use in ((split, "trained on"), (val, "used to choose")):
        if given is not None and given.role == "test":
            raise UsageError(
                f"a test split of {given.name!r} cannot be {use}: choose on validation, report on test once (evaluate)"
            )


def check_val(split: Split, val: Split | None, classes: int, teacher: object = None) -> None:
    """Raises unless `val` can judge a model of so many classes that is trained on the split: DataError with neither
    labels nor a teacher to agree with, UsageError for a teacher that is not needed, MismatchError for other
    classes or images of another shape.
    """
    if teacher is not None and (val is None or val.labels is not None):
        raise UsageError(
            "val_teacher has no effect: it judges a validation split without labels; leave it out (evaluate(...) tells "
            "the agreement with a teacher beside the error)"
        )
    if val is None:
        return
    if val.labels is None and teacher is None:
        raise DataError(
            f"the validation split of {val.name!r} has no labels, by which every epoch is judged: give val_teacher= to "
            "judge by the agreement with it, leave val= out, or give labelled images"
        )
    if val.input_shape != split.input_shape:
        raise MismatchError(f"train images are {list(split.input_shape)}, val images {list(val.input_shape)}")
    for number, (ours, theirs) in enumerate(zip_longest(split.class_names, val.class_names)):
        if ours != theirs:
            told = ["missing" if name is None else repr(name) for name in (ours, theirs)]
            raise MismatchError(
                f"class {number} is {told[0]} in train ({split.classes} classes) and {told[1]} in val ({val.classes}): "
                "both must have the same classes in the same order"
            )
    if classes != val.classes:
        raise MismatchError(f"the model has {classes} classes, val {val.classes}: build the model for these data")


def check_settings(
    settings: dict[str, Any],
    model: nn.Module,
    split: Split,
    val: Split | None,
    run: object,
    needing_run: dict[str, bool],
) -> None:
    """Raises ConfigError with every setting that is out of range, contradicts another or has no effect."""
    problems = [*_rule_problems(settings), *_loop_problems(settings), *_single_sample_problems(settings, model, split)]
    patience = settings["patience"]
    if val is None and patience is not None:
        problems.append(f"patience={patience} has no effect without val: give a validation split")
    if val is None and settings["keep"] == "best":
        problems.append("keep='best' has no effect without val: give a validation split")
    if settings["every_view"] and len(settings["views"]) == 1:
        problems.append(f"every_view=True has no effect with the one view {settings['views'][0]!r}")
    if settings.get("batch_norm", "running") not in BATCH_NORMS:
        problems.append(str(unknown_name("batch_norm", str(settings["batch_norm"]), BATCH_NORMS)))
    if settings.get("augment", "none") not in AUGMENTATIONS:
        problems.append(str(unknown_name("augmentation", str(settings["augment"]), AUGMENTATIONS)))
    if run is None:
        problems += [f"{name}=True has no effect without run=FOLDER" for name, given in needing_run.items() if given]
    if problems:
        raise ConfigError("; ".join(problems))


def _rule_problems(settings: dict[str, Any]) -> list[str]:
    """Of the update rule."""
    problems = []
    name, lr, momentum, decay = (settings[key] for key in ("optimizer", "lr", "momentum", "weight_decay"))
    if name not in OPTIMIZERS:
        problems.append(str(unknown_name("optimizer", str(name), OPTIMIZERS)))
    if not is_number(lr) or not lr > 0:
        problems.append(f"lr={lr!r}: expected a finite number above 0")
    if not is_number(decay) or decay < 0:
        problems.append(f"weight_decay={decay!r}: expected a finite number >= 0")
    if momentum is not None and name not in ("sgd", "muon"):
        problems.append(f"momentum={momentum} has no effect with optimizer={name!r}: leave it out")
    if momentum is not None and not (is_number(momentum) and 0 <= momentum < 1):
        problems.append(f"momentum={momentum!r}: expected 0 <= momentum < 1")
    return problems


def _loop_problems(settings: dict[str, Any]) -> list[str]:
    """Of how long, how and in which arithmetic."""
    problems = []
    whole = {name: _is_whole(settings[name]) for name in ("epochs", "batch_size")}
    for name in whole:
        if not whole[name]:
            problems.append(f"{name}={settings[name]!r}: expected a whole number >= 1")
    for name, known in (("schedule", tuple(SCHEDULES)), ("precision", PRECISIONS)):
        if settings[name] not in known:
            problems.append(str(unknown_name(name, str(settings[name]), known)))
    warmup = settings["warmup_epochs"]
    if not is_number(warmup) or warmup < 0:
        problems.append(f"warmup_epochs={warmup!r}: expected a finite number >= 0")
    elif whole["epochs"] and warmup > settings["epochs"]:
        problems.append(f"warmup_epochs={warmup} of epochs={settings['epochs']}: the rate would never reach lr")
    if settings["keep"] not in tuple(OTHER):
        problems.append(f"keep={settings['keep']!r}: known are best, last")
    if settings["patience"] is not None and not _is_whole(settings["patience"]):
        problems.append(f"patience={settings['patience']!r}: expected a whole number >= 1")
    if not isinstance(settings["seed"], int) or isinstance(settings["seed"], bool):
        problems.append(f"seed={settings['seed']!r}: expected a whole number")
    return problems


def _single_sample_problems(settings: dict[str, Any], model: nn.Module, split: Split) -> list[str]:
    """The loop leaves out a last batch of a single sample; where every batch is one, batch norm has no variance."""
    samples = len(split) * (len(settings["views"]) if settings["every_view"] else 1)
    norms = [name for name, part in model.named_modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    if not norms or (samples > 1 and settings["batch_size"] != 1):
        return []
    return [
        f"batch norm cannot learn from batches of a single sample (batch_size={settings['batch_size']}, {samples} in "
        f"{split.role}; {norms[0]}): give batches of two or more"
    ]


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def refuse_gradients(learned: Iterable[tuple[str, nn.Parameter]], step: int) -> None:
    """Raises TrainingError naming a parameter unless all gradients are finite: a finite loss may have others.

    One sum over all of them tells; it is the only way that costs a hundredth of a step. Each is looked at by itself
    where that sum is not finite, as that of very large numbers is not either.
    """
    named = [(name, one.grad) for name, one in learned if one.grad is not None]
    sums = [grad.sum(dtype=torch.float32).to(named[0][1].device) for _, grad in named]
    if not sums or math.isfinite(float(torch.stack(sums).sum())):
        return
    for name, grad in named:
        if not bool(torch.isfinite(grad).all()):
            raise gradient_error(name, step)


def gradient_error(name: str, step: int) -> TrainingError:
    """What is said of a gradient of this parameter that is not finite."""
    return TrainingError(
        f"the gradient of {name} is not finite at step {step + 1}, though the loss is; the weights were not "
        "updated. Try precision fp32 or a lower lr, and look in the objective and the network for a root, a "
        "logarithm or a division at 0"
    )
