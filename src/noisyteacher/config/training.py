"""`TrainSettings`: how a network is trained. One dataclass for `fit`, `fit_many`, config files and the command line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True)
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, strict=True)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
Finite = Annotated[float, Field(allow_inf_nan=False, strict=True)]
Count = Annotated[int, Field(ge=1, strict=True)]
Momentum = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False, strict=True)]

WITH_MOMENTUM = ("sgd", "muon")


@dataclass(kw_only=True)
class TrainSettings:
    """A training, but for its network, data, objective and files. The defaults are the paper's."""

    __pydantic_config__ = STRICT

    epochs: Count = 20
    """Passes over the training split."""
    batch_size: Count = 64
    """Samples per update."""
    optimizer: Literal["adam", "adamw", "sgd", "muon"] = "adam"
    """Update rule: adam; adamw, which decouples weight decay; sgd with momentum; muon, which orthogonalizes the
    momentum."""
    lr: Positive = 1e-3
    """Base learning rate."""
    momentum: Momentum | None = None
    """Momentum of sgd and muon (default 0.9); refused elsewhere, where it has no effect."""
    weight_decay: NotNegative = 0.0
    """L2 term of the update (decoupled with adamw and muon; with muon only on parameters of two or more dimensions)."""
    schedule: Literal["constant", "linear", "cosine", "step"] = "linear"
    """How the learning rate falls after the warm-up."""
    warmup_epochs: NotNegative = 0.0
    """Epochs over which the learning rate rises linearly to its base."""
    views: list[str] = field(default_factory=lambda: ["clean"])
    """Augmentations: clean, mirror, crop, mirror*crop, or single views; a random one per image and epoch."""
    every_view: bool = False
    """True: an epoch shows every image under every view (the paper's doubling of CIFAR-10 by mirror images)."""
    augment: Literal["none", "mixup", "randaugment"] = "none"
    """None: images come under their views, for which a teacher's logits are stored; mixup or randaugment: images change
    at every step, and the teacher runs live."""
    batch_norm: Literal["running", "reestimate"] = "running"
    """Statistics of batch norms: averaged along the training, or re-estimated before each validation from up to 1,024
    training images, where that average reaches back more than half an epoch."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """fp32, bf16 autocast with fp32 weights, or auto: bf16 where this machine multiplies matrices at least 1.5 times
    as fast in it. A run's config.json records what auto became."""
    patience: Count | None = None
    """Stop after this many epochs without a better validation error; empty: never."""
    keep: Literal["best", "last"] | None = None
    """Which weights are used: of the epoch with the best validation error, or of the last (empty: best if there is a
    validation split)."""

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """Settings that are each possible but have no effect, or contradict each other: (name, what is wrong)."""
        if self.momentum is not None and self.optimizer not in WITH_MOMENTUM:
            yield "momentum", f"{self.momentum} has no effect with optimizer {self.optimizer!r}: leave it out"
        if self.every_view and len(self.views) == 1 and self.views[0] in ("clean", "mirror"):
            yield "every_view", f"has no effect with the one view {self.views[0]!r}: leave it out"
        if self.warmup_epochs > self.epochs:
            yield "warmup_epochs", f"{self.warmup_epochs} of {self.epochs} epochs: the rate would never reach lr"
        if not self.views:
            yield "views", "the list is empty; give at least clean"
