"""How an epoch is judged on validation: by the labels, or, where there are none, by the agreement with a teacher."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from noisyteacher import metrics
from noisyteacher.data import Split
from noisyteacher.errors import TrainingError
from noisyteacher.evaluate import answers_of, predict, score
from noisyteacher.losses import soft_targets
from noisyteacher.teachers import as_teacher


class Validation:
    """Judges a model on one split after every epoch.

    With labels by error (%), then NLL (nats). Without them by the share (%) on which the model chooses the teacher's
    class, then by the divergence KL(teacher || model) of their softmax outputs (nats): the NLL that has the teacher's
    probabilities for labels, less a constant.
    """

    def __init__(self, val: Split, teacher: object, classes: int, device: str, precision: str) -> None:
        """`teacher`: anything `distil` takes; asked once, here, and only where the split has no labels."""
        self.val, self.device, self.precision = val, device, precision
        self.answers: Tensor | None = None
        self.record: dict[str, Any] = {}
        """What a resumed run must have in common with the saved one."""
        if val.labels is None:
            self.record = {"val_teacher": as_teacher(teacher).describe()}
            self.answers = answers_of(teacher, val, classes, device=device)

    def __call__(self, model: nn.Module, epoch: int) -> tuple[dict[str, float], list[float]]:
        """The numbers of the epoch (from 1) for its line of metrics, and what is to be least in the best one.

        Raises TrainingError when the logits are not finite.
        """
        logits = predict(model, self.val, device=self.device, precision=self.precision, progress=False)
        if not torch.isfinite(logits).all():
            raise TrainingError(f"the logits on validation are not finite after epoch {epoch}: try a lower lr")
        if self.answers is not None:
            agreement = metrics.agreement(logits, self.answers)
            divergence = float(soft_targets(logits, self.answers, 1.0))
            return {"val/agreement": agreement, "val/kl": divergence}, [-agreement, divergence]
        scores = score(logits, self.val)
        assert scores.error is not None
        assert scores.nll is not None
        return {"val/error": float(scores.error), "val/nll": float(scores.nll)}, [
            float(scores.error), float(scores.nll),
        ]  # fmt: skip
