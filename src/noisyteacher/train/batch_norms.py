"""Running statistics of batch norms, estimated anew for the weights at hand instead of carried along the training."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from noisyteacher.data import Split
from noisyteacher.device import precision_context

IMAGES = 1024
"""Training images that the statistics are estimated from."""
BATCH = 128
"""Images per forward pass of the estimate."""


def lagging(model: nn.Module, steps_per_epoch: int) -> bool:
    """Whether some batch norm's running statistics remember more than half an epoch.

    A running average with momentum m remembers about 1/m steps, one without a momentum all of them. If the weights move
    a lot within that time, as they do in a training of few steps, the statistics belong to weights that are no longer
    there, and the model answers at chance although its training loss is low. torchvision's MobileNetV3 has m = 0.01,
    which is 100 steps.
    """
    return any(
        module.momentum is None or 0 < module.momentum * steps_per_epoch < 2
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    )


def reestimate(
    model: nn.Module, split: Split, device: torch.device, precision: str, layout: torch.memory_format
) -> None:
    """Set every batch norm's running mean and variance to their averages over training images, for today's weights.

    Up to IMAGES rows, evenly spaced over the split so that a split sorted by class is covered, without augmentation;
    weights, modes and momenta stay as they are.
    """
    rows = torch.linspace(0, len(split) - 1, min(IMAGES, len(split))).long()
    batches = [part for part in torch.split(rows, BATCH) if len(part) > 1]
    images = (split.images_at(part).to(device=device).contiguous(memory_format=layout) for part in batches)
    with precision_context(precision, device):
        update_bn(images, model, device=device)
