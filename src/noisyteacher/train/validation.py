"""Validation after an epoch, and batch-norm statistics that are re-estimated for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from noisyteacher import metrics
from noisyteacher.data import Split
from noisyteacher.device import precision_context
from noisyteacher.errors import TrainingError
from noisyteacher.evaluate import answers_of, predict, score
from noisyteacher.losses import soft_targets
from noisyteacher.teachers import as_teacher

ESTIMATE_IMAGES = 1024
"""Training images that batch-norm statistics are estimated from."""
ESTIMATE_BATCH = 128
"""Images per forward pass of the estimate."""


class Validation:
    """Judges a model on one split after every epoch.

    With labels by error (%), or by the mean of the classes' errors (%), then NLL (nats). Without labels by the share
    (%) on which the model chooses the teacher's class, then by the divergence KL(teacher || model) of their softmax
    outputs (nats): the NLL with the teacher's probabilities as labels, less a constant.
    """

    def __init__(
        self, val: Split, teacher: object, classes: int, device: str, precision: str, criterion: str = "error"
    ) -> None:
        """teacher: anything `distil` takes; it runs once, here, and only if the split has no labels."""
        self.val, self.device, self.precision, self.criterion = val, device, precision, criterion
        self.teacher_logits: Tensor | None = None
        self.identity: dict[str, Any] = {}
        """What a resumed run must have in common with the saved one."""
        if val.labels is None:
            self.identity = {"val_teacher": as_teacher(teacher).describe()}
            self.teacher_logits = answers_of(teacher, val, classes, device=device)

    def __call__(self, model: nn.Module, epoch: int) -> tuple[dict[str, float], list[float]]:
        """The numbers of the epoch (from 1) for its line of metrics, and the key that the best epoch has smallest.

        Raises TrainingError when the logits are not finite.
        """
        logits = predict(model, self.val, device=self.device, precision=self.precision, progress=False)
        if not torch.isfinite(logits).all():
            raise TrainingError(f"the logits on validation are not finite after epoch {epoch}: try a lower lr")
        if self.teacher_logits is not None:
            agreement = metrics.agreement(logits, self.teacher_logits)
            divergence = float(soft_targets(logits, self.teacher_logits, 1.0))
            return {"val/agreement": agreement, "val/kl": divergence}, [-agreement, divergence]
        scores = score(logits, self.val)
        assert scores.error is not None
        assert scores.nll is not None
        assert scores.balanced_accuracy is not None
        line = {"val/error": float(scores.error), "val/nll": float(scores.nll)}
        if self.criterion == "balanced_error":
            line["val/balanced_error"] = 100 - float(scores.balanced_accuracy)
        return line, [line[f"val/{self.criterion}"], line["val/nll"]]


def batch_norms_lag(model: nn.Module, steps_per_epoch: int) -> bool:
    """Whether some batch norm's running statistics remember more than half an epoch.

    A running average with momentum m remembers about 1/m steps, one without a momentum all of them. If the weights move
    a lot within that time, as they do in a training of few steps, the statistics belong to weights that are gone, and
    the model answers at chance although its training loss is low. torchvision's MobileNetV3 has m = 0.01: 100 steps.
    """
    return any(
        module.momentum is None or 0 < module.momentum * steps_per_epoch < 2
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    )


def reestimate_batch_norms(
    model: nn.Module, split: Split, device: torch.device, precision: str, memory_format: torch.memory_format
) -> None:
    """Set every batch norm's running mean and variance to their averages over training images, for today's weights.

    Up to ESTIMATE_IMAGES rows, evenly spaced over the split so that a split sorted by class is covered, without
    augmentation; weights, modes and momenta stay as they are.
    """
    rows = torch.linspace(0, len(split) - 1, min(ESTIMATE_IMAGES, len(split))).long()
    batches = [part for part in torch.split(rows, ESTIMATE_BATCH) if len(part) > 1]
    images = (split.images_at(part).to(device=device).contiguous(memory_format=memory_format) for part in batches)
    with precision_context(precision, device):
        update_bn(images, model, device=device)
