"""The settings of a compression as typed code: one dataclass per part, a docstring per field.

No torch here, so that a wrong setting is told before anything heavy is loaded. The defaults below are the one place
where a command's defaults stand; the functions further down take plain arguments.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from noisyteacher.config.training import (
    STRICT,
    Count,
    Finite,
    NotNegative,
    Positive,
    Share,
    TrainSettings,
)


@dataclass(kw_only=True)
class Data:
    """Which images."""

    __pydantic_config__ = STRICT

    name: str = "mnist-5k"
    """A data set by name (mnist-5k, mnist, cifar10, svhn), an .npz file, or a folder of images by class."""
    root: str | None = None
    """Where the official files of mnist, cifar10 and svhn lie or are downloaded to (default: the user's cache)."""
    verify: bool = True
    """Compare official files with their published MD5 sums and packed images with their checksums; false: do not."""
    size: Count | None = None
    """Side in pixels to which the images of a folder are scaled; needed where their sizes differ."""
    grey: bool = False
    """Read the images of a folder as one channel."""
    classes: Annotated[int, Field(ge=2)] | list[str] | None = None
    """Number or names of the classes, for a folder of images without class folders: as many as the teacher knows."""
    extra: bool = True
    """SVHN: train on its 531,131 extra images too, as the paper does."""
    limit: Count | None = None
    """At most so many rows of each split, every class in proportion: for trying things out."""
    train_limit: Count | None = None
    """At most so many rows of the training split alone, every class in proportion: what little data would do."""


@dataclass(kw_only=True)
class Network:
    """A network and its preprocessing."""

    __pydantic_config__ = STRICT

    name: str = ""
    """Which network."""
    options: dict[str, bool | int | Finite | str] = field(default_factory=dict)
    """Arguments of the network, as in options.dropout = 0.5."""
    preset: Literal["standard", "paper", "modern"] = "standard"
    """Where the settings of this part that are not named come from: standard, what did best in the trials of
    docs/models.md; paper, Sau & Balasubramanian's; modern, adamw and many views with the paper's loss."""
    preprocess: str = ""
    """One of scale, standardize, pixel-mean, local-contrast, with @HxW-bicubic resized; or model (empty: what fits)."""
    mean: list[Finite] = field(default_factory=list)
    """With std: per-channel statistics in 0..1 for standardize, instead of the data's own."""
    std: list[Positive] = field(default_factory=list)
    """See mean."""


@dataclass(kw_only=True)
class Recipe(TrainSettings, Network):
    """A network and how it is trained, by default with the preset `standard`."""

    __pydantic_config__ = STRICT

    batch_size: Count = 32
    """Samples per update."""
    optimizer: Literal["auto", "adam", "adamw", "sgd", "muon"] = "auto"  # type: ignore[assignment]
    """Update rule: adam; adamw, which decouples weight decay; sgd with momentum; muon, which orthogonalizes the
    momentum; auto: muon, but adamw where muon's products would cost more than half of a step's own, as they do in wide
    linear layers."""
    lr: Positive = 1e-2
    """Base learning rate."""
    weight_decay: NotNegative = 0.05
    """L2 term of the update (decoupled with adamw and muon; with muon only on parameters of two or more dimensions)."""
    schedule: Literal["constant", "linear", "cosine", "step"] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup_epochs: NotNegative = 0.5
    """Epochs over which the learning rate rises linearly to its base."""
    views: list[str] = field(default_factory=lambda: ["auto"])
    """Augmentations: clean, mirror, crop, mirror*crop, or single views; a random one per image and epoch. auto: the
    image and four shifts of it by 2 pixels, mirrored too if the images have colours and are not of digits."""
    batch_norm: Literal["running", "reestimate"] = "reestimate"
    """Statistics of batch norms: averaged along the training, or re-estimated before each validation from up to 1,024
    training images, where that average reaches back more than half an epoch."""
    keep: Literal["best", "last"] = "best"
    """Which weights are used: of the epoch with the best validation error, or of the last."""


@dataclass(kw_only=True)
class Teacher(Recipe):
    """The network that is compressed, and how it is trained when it is not given."""

    name: str = "lenet"
    """A network by name (timm:NAME, hf:NAME, pkg.module:factory, ...), or a run folder, weights file or .onnx."""
    lr: Positive = 1e-3
    """Base learning rate."""
    weights: str = ""
    """A file with the named network's weights, of torch.save or safetensors. Of one for other classes all but the head
    is loaded, and the teacher is trained."""
    logits_precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the forward passes whose logits are stored; bf16 rounds them to about three digits and is faster
    where the machine is. There is no auto: a store must not depend on the machine that made it."""
    class_order: list[Annotated[int, Field(ge=0)]] = field(default_factory=list)
    """For a trained teacher whose classes stand in another order: entry k is the teacher's output for class k of the
    data (empty: they stand in the data's order)."""
    also: list[str] = field(default_factory=list)
    """Further teachers, each given or trained like the first; student.combine puts their logits together."""


@dataclass(kw_only=True)
class Student(Recipe):
    """The small network, and how it learns."""

    name: str = ""
    """A network by name (compact-s:0.75 is one at 0.75 of its width), timm:NAME, torchvision:NAME, hf:NAME,
    pkg.module:factory, shrink:RATIO (a narrower copy of the teacher), or auto: chosen on validation among those that
    keep within target. Empty: auto in compress, the paper's mlp800 in distil and sweep on MNIST."""
    loss: Literal["logit_regression", "soft_targets"] = "soft_targets"
    """The paper's regression on logits, or Hinton's soft targets."""
    temperature: Positive | None = None
    """Temperature of soft_targets (default 4); without effect, and refused, elsewhere."""
    label_weight: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] | Literal["auto"] = "auto"
    """Weight of the cross-entropy on labels; the rest goes to the teacher's term. auto: 0.3, without labels 0; in
    compress 0.7 if the teacher has more than 75 % of the errors of a student on labels alone."""
    combine: Literal["mean", "geometric", "pick"] = "mean"
    """How several teachers' logits become one: their mean, their geometric mean, or one picked per batch."""


@dataclass(kw_only=True)
class NoiseSettings:
    """The noise on logits: z' = (1 + xi) z with xi ~ N(0, sigma^2) for a share alpha of the samples. Off by default."""

    __pydantic_config__ = STRICT

    sigma: NotNegative | tuple[NotNegative, NotNegative] | Literal["auto"] = 0.0
    """Standard deviation of xi (0: no noise), a range [low, high] drawn per batch, or auto: chosen on validation, 0
    included."""
    alpha: Share | Literal["auto"] = 0.15
    """Probability that a sample is perturbed, or auto: chosen on validation."""
    draw: Literal["batch", "row", "scalar"] = "batch"
    """One xi per mini-batch (the paper's Algorithm 1 read literally), per sample, or one number per sample."""
    kind: Literal["multiplicative", "additive"] = "multiplicative"
    """The paper's factor 1 + xi, or xi added to the logits."""
    distribution: Literal["gaussian", "uniform", "laplace"] = "gaussian"
    """Shape of xi; its standard deviation is sigma in each case."""
    target: Literal["teacher", "student"] = "teacher"
    """Whose logits are perturbed."""
    frozen: bool = False
    """True: one draw per sample for the whole run instead of a new one at every step."""
    schedule: Literal["constant", "linear", "cosine", "early", "late"] = "constant"
    """How sigma changes over the run: linear or cosine to 0, early or late: in one half only."""

    @property
    def off(self) -> bool:
        """Whether nothing is perturbed: sigma or alpha is 0."""
        return self.sigma in (0, (0, 0)) or self.alpha == 0


@dataclass(kw_only=True)
class Choice:
    """How sigma and alpha are chosen where they are auto: short runs of every candidate, judged on validation."""

    __pydantic_config__ = STRICT

    sigmas: list[NotNegative] = field(default_factory=lambda: [0.1, 0.3, 0.6, 0.9])
    """Candidates for sigma; no noise (sigma 0) is always one more."""
    alphas: list[Share] = field(default_factory=lambda: [0.15, 0.5])
    """Candidates for alpha."""
    epochs: Count | None = None
    """Length of each short run (empty: a quarter of the student's epochs)."""
    seeds: Count = 2
    """Short runs per candidate."""


@dataclass(kw_only=True)
class Target:
    """What the student may cost, for student.name = "auto": it is chosen on validation among those that keep within,
    and never larger than its teacher unless named in students. Without any limit macs is "4x"."""

    __pydantic_config__ = STRICT

    macs: str | Positive | None = None
    """At most so many multiplications per image, or "4x": at most a quarter of the teacher's."""
    bytes: str | Positive | None = None
    """At most so many bytes in the weights file, or "8x": at most an eighth of the teacher's."""
    parameters: str | Positive | None = None
    """At most so many parameters, or "8x": at most an eighth of the teacher's."""
    max_drop: NotNegative | None = None
    """Points of validation accuracy the student may lose against its teacher; more is told, and ends in exit code 3."""
    students: list[str] = field(default_factory=list)
    """Networks to choose from (empty: the compact ones at any width, timm's mobile ones, the paper's for images of
    their size, and narrower copies of the teacher)."""
    search: Count = 4
    """How many of those within the limits are tried, in short runs judged on validation."""
    epochs: Count | None = None
    """Length of each short run (empty: a quarter of the student's epochs)."""
    minutes: Positive | None = None
    """Minutes that the whole run may take, the teacher's training included; fewer epochs and tries if it is short."""


@dataclass(kw_only=True)
class RunSettings:
    """How often, where and on what."""

    __pydantic_config__ = STRICT

    seeds: Count = 1
    """Students per condition, with seeds 0, 1, ...; intervals need at least 2, claims more."""
    baselines: bool = True
    """Also train the same students on labels alone and by clean logit regression: without them no claim can be made.

    A sweep trains the clean ones in any case."""
    output_dir: str = "runs"
    """Folder in which the run's folder is made."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    threads: Count | None = None
    """CPU threads for torch (default: torch's own choice)."""
    export: list[Literal["onnx", "onnx-int8", "pte", "pte-int8", "pt2", "hub"]] = field(default_factory=list)
    """Files to write of the student that is best on validation, each checked against torch."""
    checks: bool = True
    """End the run when a check before the first step does not hold; false: note it in the result and go on."""
    tensorboard: bool = False
    """Also write the metrics as TensorBoard events into every run folder (needs the extra `track`)."""
    profile: bool = False
    """Measure where the time of a training's steps goes, and how near they come to the machine's matrix products."""
    checkpoint_every_s: NotNegative = 30.0
    """Seconds between two checkpoints of a training: what a killed run loses at most; 0 writes one at every step."""


@dataclass(kw_only=True)
class Config:
    """Everything `noisyteacher compress` needs to know."""

    __pydantic_config__ = STRICT

    data: Data = field(default_factory=Data)
    """Which images."""
    teacher: Teacher = field(default_factory=Teacher)
    """The network that is compressed."""
    student: Student = field(default_factory=Student)
    """The small network."""
    noise: NoiseSettings = field(default_factory=NoiseSettings)
    """The noise on the logits."""
    choice: Choice = field(default_factory=Choice)
    """How sigma and alpha are chosen where they are auto."""
    target: Target = field(default_factory=Target)
    """What the student may cost where it is chosen."""
    run: RunSettings = field(default_factory=RunSettings)
    """How often, where and on what."""


_PAPER: dict[str, Any] = {
    "batch_size": 64,
    "optimizer": "adam",
    "lr": 1e-3,
    "weight_decay": 0.0,
    "schedule": "linear",
    "warmup_epochs": 0.0,
    "views": ["clean"],
    "batch_norm": "running",
}
_REGRESSION: dict[str, Any] = {"loss": "logit_regression", "label_weight": 0.0}
_MODERN: dict[str, Any] = {
    "batch_size": 128,
    "optimizer": "adamw",
    "weight_decay": 0.05,
    "schedule": "cosine",
    "warmup_epochs": 1.0,
    "batch_norm": "running",
}
_SHIFTS = [f"crop-y{top}-x{left}" for top in (1, 4, 7) for left in (1, 4, 7) if (top, left) != (4, 4)]
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "standard": {"teacher": {}, "student": {}},
    "paper": {"teacher": _PAPER, "student": {**_PAPER, **_REGRESSION}},
    "modern": {
        "teacher": {**_MODERN, "lr": 3e-3, "views": ["crop", "mirror*crop"]},
        "student": {
            **_MODERN,
            **_REGRESSION,
            "lr": 1e-2,
            "views": ["clean", "mirror", *_SHIFTS, *(f"mirror-{shift}" for shift in _SHIFTS)],
        },
    },
}
"""Preset -> part -> the settings it has instead of the defaults above, which are those of `standard`.

In `modern` a student sees 18 of the 162 views a teacher sees (shifts by 3 pixels, mirrored or not): each costs a stored
answer of the teacher for every image. The trials behind the presets are in docs/models.md.
"""


def governed(part: str) -> dict[str, list[tuple[str, Any]]]:
    """The settings of `teacher` or `student` that a preset decides: name -> (preset, its value) of each that does."""
    found: dict[str, list[tuple[str, Any]]] = {}
    for preset, parts in PRESETS.items():
        for name, value in parts.get(part, {}).items():
            found.setdefault(name, []).append((preset, value))
    return found
