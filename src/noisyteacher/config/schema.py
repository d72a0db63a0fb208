"""The settings as dataclasses: one per part, a docstring per field, the defaults of every command.

Without torch, so that a wrong setting is reported before anything heavy is loaded.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import ConfigDict, Field, StringConstraints

from noisyteacher.errors import ConfigError

FOLDER = Path(__file__).parent
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, strict=True)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
Finite = Annotated[float, Field(allow_inf_nan=False, strict=True)]
Count = Annotated[int, Field(ge=1, strict=True)]
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Views = Annotated[list[str], Field(min_length=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False, strict=True)]

Draw = Literal["batch", "row", "scalar"]
Kind = Literal["multiplicative", "additive", "mix", "sampled"]
Distribution = Literal["gaussian", "uniform", "laplace"]
NoiseTarget = Literal["teacher", "student", "input"]
SigmaSchedule = Literal["constant", "linear", "cosine", "late"]
Loss = Literal["logit_regression", "soft_targets", "dist", "dkd", "ttm"]
LOSS_OPTIONS: dict[str, tuple[str, ...]] = {
    "logit_regression": (),
    "soft_targets": ("temperature",),
    "dist": ("temperature", "beta", "gamma"),
    "dkd": ("temperature", "alpha", "beta"),
    "ttm": ("temperature", "weighted"),
}
"""Loss -> the numbers that it takes; `weighted` is true or false."""
Scale = Literal["none", "rms", "zscore"]
SCALES = get_args(Scale)
Schedule = Literal["constant", "hold", "linear", "cosine", "step"]
HOLD = 0.6
"""The share of the steps for which the schedule `hold` stays at the base rate where nothing else is said."""
WITH_MOMENTUM = ("sgd", "muon")
MOMENTUM = 0.9
"""That of these where nothing else is said."""
LIMITS = ("macs", "bytes", "parameters")
"""The settings of `target` that limit a cost."""
FEWEST = 100
"""No classifier of images has fewer multiplications, bytes or parameters: a smaller limit was meant as a ratio."""
RESERVED_OPTIONS = {"model", "data", "classes", "input_shape", "seed"}


class Settings:
    """Base of all settings: unknown names are refused, the docstring of a field is its description."""

    __pydantic_config__ = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """Settings that are each possible but contradict each other, or have no effect: (name, what is wrong)."""
        yield from ()


@dataclass(kw_only=True)
class TrainSettings(Settings):
    """A training, but for its network, data, objective and files. The defaults are the paper's."""

    epochs: Count = 20
    """Passes over the training split."""
    steps: Count | None = None
    """Length in updates instead of epochs: as many whole epochs as are needed for this many."""
    batch_size: Count = 64
    """Samples per update."""
    optimizer: Literal["adam", "adamw", "sgd", "muon"] = "adam"
    """Update rule: adam; adamw (decoupled weight decay); sgd with momentum; muon (orthogonalized momentum)."""
    lr: Positive = 1e-3
    """Base learning rate."""
    momentum: BelowOne | None = None
    """Momentum of sgd and muon (default 0.9); refused elsewhere, where it has no effect."""
    weight_decay: NotNegative = 0.0
    """L2 term of the update (decoupled with adamw and muon; with muon only on parameters of two or more dimensions)."""
    decay_biases: bool = True
    """False: no weight decay on biases and the other parameters of fewer than two dimensions."""
    schedule: Schedule = "linear"
    """How the learning rate falls after the warm-up; hold: constant for a share of the steps, then linear to 0."""
    hold: Share | None = None
    """Share of the steps for which schedule hold stays at the base rate (default 0.6); refused elsewhere."""
    warmup_epochs: NotNegative = 0.0
    """Epochs over which the learning rate rises linearly to its base."""
    body_rate: Share = 1.0
    """What the learning rate of all layers but the last is multiplied by: below 1 where they are trained already."""
    freeze_epochs: NotNegative = 0.0
    """First epochs in which the last layer alone learns."""
    views: Views = field(default_factory=lambda: ["clean"])
    """Augmentations: clean, mirror, crop, mirror*crop, or single views; a random one per image and epoch."""
    every_view: bool = False
    """True: an epoch shows every image under every view (the paper's doubling of CIFAR-10 by mirror images)."""
    sampling: Literal["all", "balanced"] = "all"
    """Images of an epoch: all once; or balanced, as many in total with every class equally often, for rare classes."""
    augment: Literal["none", "mixup", "randaugment"] = "none"
    """Images that change at every step, for a teacher that runs live: mixup or randaugment; none: views alone."""
    batch_norm: Literal["running", "reestimate"] = "running"
    """Statistics of batch norms: averaged in training, or, in short epochs, re-estimated before each validation."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """fp32, bf16 (autocast, weights in fp32), or auto: bf16 where its matrix products are 1.5 times as fast here."""
    patience: Count | None = None
    """Stop after this many epochs without a better validation error; empty: never."""
    keep: Literal["best", "last"] | None = None
    """Weights of the epoch with the best validation error, or of the last (empty: best with a validation split)."""
    criterion: Literal["error", "balanced_error"] = "error"
    """What keep and patience call the best epoch: least error, or least mean of the classes' errors."""

    @property
    def has_body(self) -> bool:
        """Whether all layers but the last learn at a rate of their own."""
        return self.body_rate != 1 or self.freeze_epochs > 0

    def contradictions(self) -> Iterator[tuple[str, str]]:
        if self.momentum is not None and self.optimizer not in WITH_MOMENTUM:
            yield "momentum", f"{self.momentum} has no effect with optimizer {self.optimizer!r}: leave it out"
        if self.every_view and len(self.views) == 1 and self.views[0] in ("clean", "mirror"):
            yield "every_view", f"has no effect with the single view {self.views[0]!r}: leave it out"
        if self.sampling == "balanced" and self.every_view:
            yield "sampling", "balanced beside every_view, which shows every image equally often: name one of them"
        if self.criterion != "error" and self.keep == "last" and self.patience is None:
            yield "criterion", f"{self.criterion} has no effect with keep 'last' and no patience: leave it out"
        if self.steps is not None and self.epochs != TrainSettings.epochs:
            yield "steps", f"{self.steps} beside epochs = {self.epochs}: both say how long; name one of them"
        if self.hold is not None and self.schedule != "hold":
            yield "hold", f"{self.hold:g} has no effect with schedule {self.schedule!r}: leave it out"
        if not self.decay_biases and (self.optimizer == "muon" or not self.weight_decay):
            why = "muon, which never decays biases" if self.optimizer == "muon" else "weight_decay 0"
            yield "decay_biases", f"false has no effect with {why}: leave it out"
        if self.warmup_epochs > self.epochs and self.steps is None:
            yield "warmup_epochs", f"{self.warmup_epochs} of {self.epochs} epochs: the rate would never reach lr"
        if self.freeze_epochs and not self.body_rate:
            yield "freeze_epochs", f"{self.freeze_epochs:g} has no effect with body_rate 0: leave it out"
        if self.freeze_epochs >= self.epochs and self.steps is None:
            yield (
                "freeze_epochs",
                f"{self.freeze_epochs:g} of {self.epochs} epochs: say body_rate = 0 to freeze for good",
            )


@dataclass(kw_only=True)
class Data(Settings):
    """Which images."""

    name: Name = "mnist-5k"
    """A data set by name (mnist-5k, mnist, cifar10, svhn), a .npz file, a .csv file of paths and labels, or a folder of
    images by class."""
    root: Name | None = None
    """Where the official files of mnist, cifar10 and svhn are, or are downloaded to (default: the user's cache); or the
    folder that the paths in a .csv file begin in (default: the file's own)."""
    verify: bool = True
    """Compare official files with their published MD5 sums and packed images with their checksums; false: do not."""
    size: Count | tuple[Count, Count] | None = None
    """Side in pixels, or [height, width], that images of a folder are brought to; needed where their sizes differ."""
    fit: Literal["squash", "crop"] = "squash"
    """How images are brought to that size: squash the whole, or crop the largest centred window of that shape first."""
    grey: bool = False
    """Read the images of a folder as one channel."""
    classes: Annotated[int, Field(ge=2, strict=True)] | list[str] | None = None
    """Number or names of the classes, for a folder of images without class folders: as many as the teacher has."""
    extra: bool = True
    """SVHN: train on its 531,131 extra images too, as the paper does."""
    limit: Count | None = None
    """At most this many rows of each split, every class in proportion: for trying things out."""
    train_limit: Count | None = None
    """At most this many rows of the training split alone, every class in proportion: what little data would do."""

    def contradictions(self) -> Iterator[tuple[str, str]]:
        if self.name == "mnist-5k" and self.root is not None:
            yield "root", "has no effect with mnist-5k, which comes with the package: leave it out"
        if self.fit != "squash" and self.size is None:
            yield "fit", f"{self.fit!r} has no effect without a size to bring images to: name data.size (--size)"


@dataclass(kw_only=True)
class Network(Settings):
    """A network and its preprocessing."""

    name: str = ""
    """Which network."""
    options: dict[str, bool | int | Finite | str] = field(default_factory=dict)
    """Arguments of the network, as in options.dropout = 0.5."""
    preset: Literal["standard", "paper", "modern", "patient"] = "standard"
    """Defaults of this part: standard; paper, as published; modern, adamw and many views; patient, a long training at
    a constant rate, where noise acts as a regulariser (docs/models.md)."""
    weights: str = ""
    """A file of trained weights, of torch.save or safetensors: what a student starts from. A teacher's are final where
    the classes fit and head is empty."""
    head: Literal["", "new", "keep"] = ""
    """Last layer of a network that starts from weights: new (drawn at random), keep, or empty: keep where it fits."""
    preprocess: str = ""
    """One of scale, standardize, pixel-mean, local-contrast, with @HxW-bicubic resized; or model (empty: what fits)."""
    mean: list[Finite] = field(default_factory=list)
    """With std: per-channel statistics in 0..1 for standardize, instead of the data's own."""
    std: list[Positive] = field(default_factory=list)
    """See mean."""


@dataclass(kw_only=True)
class Recipe(TrainSettings, Network):
    """A network and how it is trained, by default with the preset `standard`."""

    batch_size: Count | Literal["auto"] = "auto"  # type: ignore[assignment]
    """Samples per update; auto: 32, but for a student that has muon at a rate of auto, and no steps, 64 from 2,000
    training images on and 128 from 20,000. In a sweep 32."""
    optimizer: Literal["auto", "adam", "adamw", "sgd", "muon"] = "auto"  # type: ignore[assignment]
    """Adam, adamw, sgd (with momentum), muon, or auto: muon, but adamw where muon would cost half a step more."""
    lr: Positive | Literal["auto"] = "auto"  # type: ignore[assignment]
    """Base learning rate; auto: 0.01, or 0.02 and 0.03 where a batch size of auto is 64 and 128, or 0.003 for a student
    with the weights of half its teacher's channels or more."""
    weight_decay: NotNegative = 0.05
    schedule: Schedule = "cosine"
    warmup_epochs: NotNegative = 0.5
    views: Views = field(default_factory=lambda: ["auto"])
    """Augmentations: clean, mirror, crop, mirror*crop, single views, or auto: four shifts by 2 pixels, mirrored if in
    colour and not of digits. A random one per image and epoch."""
    batch_norm: Literal["running", "reestimate"] = "reestimate"
    keep: Literal["best", "last"] = "best"
    """Weights of the epoch with the best validation error, or of the last."""

    def contradictions(self) -> Iterator[tuple[str, str]]:
        yield from super().contradictions()
        if self.head and not self.weights:
            yield "head", f"{self.head!r} has no effect without weights: name the file"
        for name in sorted(RESERVED_OPTIONS & self.options.keys()):
            yield f"options.{name}", "comes from the data and the run, not from here: leave it out"
        if len(self.mean) != len(self.std):
            yield "mean", f"{len(self.mean)} values, and {len(self.std)} in std: give one of each for every channel"
        if self.mean and self.preprocess.partition("@")[0] not in ("", "standardize"):
            yield "mean", f"has no effect with preprocess {self.preprocess!r}: leave it out"


@dataclass(kw_only=True)
class Teacher(Recipe):
    """The network that is compressed, and how it is trained when it is not given."""

    name: str = "lenet"
    """A network by name (timm:NAME, hf:NAME, pkg.module:factory, ...), or a run folder, weights file or .onnx."""
    batch_size: Count = 32
    """Samples per update."""
    lr: Positive = 1e-3
    """Base learning rate."""
    logits_precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the stored logits; bf16 rounds them to about three digits. auto: fp32, which suits any machine, and
    with target.minutes what student.precision is."""
    label_noise: Share = 0.0
    """Share of the training labels that are replaced by another class where the teacher is trained."""
    class_order: list[Annotated[int, Field(ge=0, strict=True)]] = field(default_factory=list)
    """Entry k is the trained teacher's output for class k of the data (empty: they have the same order)."""
    also: list[str] = field(default_factory=list)
    """Further teachers, each given or trained like the first; student.combine puts their logits together."""


@dataclass(kw_only=True)
class Student(Recipe):
    """The small network, and how it learns."""

    name: str = ""
    """A network by name (compact-s:0.75: 0.75 of its width), timm:, torchvision: or hf:NAME, pkg.module:factory,
    shrink:RATIO (a narrower teacher), or auto: chosen within target. Empty: auto in compress, else mlp800 on MNIST."""
    loss: Loss = "soft_targets"
    """The paper's regression on logits, Hinton's soft targets, DIST, DKD or TTM (docs/method.md)."""
    scale: Scale = "none"
    """What noise and loss divide all logits by: nothing, or (rms) the root mean square of the teacher's. The student's
    outputs stay in the teacher's units. zscore: the loss sees each row standardized, its outputs have no unit."""
    temperature: Positive | None = None
    """Temperature of the loss (default 4, dist 1); refused with logit_regression, which has none."""
    loss_options: dict[str, bool | NotNegative] = field(default_factory=dict)
    """Further numbers of the loss: beta and gamma of dist, alpha and beta of dkd, weighted (true: WTTM) of ttm."""
    loss_weight: Positive | Literal["auto"] = 1.0
    """Factor on the teacher's term; auto: what makes its initial gradient as large as that of soft targets at T = 4."""
    label_weight: BelowOne | Literal["auto"] = "auto"
    """Weight of the cross-entropy on labels; the rest is the teacher's. auto: 0.3, without labels 0; in compress 0.7 if
    the teacher has more than 75 % of the errors of a student on labels alone, where there is time for one."""
    combine: Literal["mean", "geometric", "pick", "pick-row"] = "mean"
    """How several teachers' logits become one: their mean, geometric mean, or one picked per batch or per row."""
    qat_epochs: Annotated[int, Field(ge=0, strict=True)] = 0
    """Quantization-aware training: epochs for which the best student learns on, rounded to int8 (needs the extra
    `mobile`); its files in int8 are then the better of these and of those by calibration alone. 0: none."""
    qat_lr: Positive | None = None
    """Base learning rate of these epochs (empty: a tenth of lr)."""

    def contradictions(self) -> Iterator[tuple[str, str]]:
        yield from super().contradictions()
        temperature = {} if self.temperature is None else {"temperature": self.temperature}
        if "temperature" in self.loss_options:
            yield "loss_options", "temperature is a setting of its own: name student.temperature"
        for name, problem in wrong_loss_options(self.loss, self.loss_options | temperature):
            yield name if name in temperature else f"loss_options.{name}", problem
        if self.qat_lr is not None and not self.qat_epochs:
            yield "qat_lr", f"{self.qat_lr:g} has no effect without qat_epochs: leave it out"
        if self.name == "auto" and self.options:
            yield "options", "have no effect where the student is chosen: leave them out, or name the student"
        if self.weights and (self.name == "auto" or self.name.startswith("shrink:")):
            yield "weights", f"no effect on the student {self.name}: leave them out, or name the network they belong to"


@dataclass(frozen=True, kw_only=True)
class NoiseSettings(Settings):
    """The noise on logits: z' = (1 + xi) z with xi ~ N(0, sigma^2) for a share alpha of the samples. Off by default."""

    sigma: NotNegative | tuple[NotNegative, NotNegative] | Literal["auto"] = 0.0
    """Standard deviation of xi (0: no noise), a range [low, high] drawn per batch, or auto: chosen on validation."""
    alpha: Share | Literal["auto"] = 0.15
    """Probability that a sample is perturbed, or auto: chosen on validation."""
    draw: Draw = "batch"
    """One xi per mini-batch (the paper's Algorithm 1 read literally), per sample, or one number per sample."""
    kind: Kind = "multiplicative"
    """The paper's factor 1 + xi; xi added; mix: (1 - sigma) z + xi; sampled: a share sigma of the soft targets is a
    class drawn from them."""
    distribution: Distribution = "gaussian"
    """Shape of xi; its standard deviation is sigma in each case."""
    target: NoiseTarget = "teacher"
    """Whose logits are perturbed; or the student's input, behind its preprocessing."""
    draws: Count = 1
    """Independent draws of xi per step; the teacher's term is their mean."""
    frozen: Annotated[bool, Field(strict=True)] = False
    """True: one draw per sample for the whole run instead of a new one at every step."""
    schedule: SigmaSchedule = "constant"
    """How sigma changes over the run: linear or cosine to 0, or late: in the second half only."""
    until: Share = 1.0
    """Share of the steps after which the noise is off."""

    @property
    def off(self) -> bool:
        """Whether nothing is perturbed: sigma or alpha is 0."""
        return self.sigma in (0, (0, 0)) or self.alpha == 0

    def contradictions(self) -> Iterator[tuple[str, str]]:
        if self.schedule == "late" and 0 < self.until <= 0.5:
            yield "until", f"given {self.until:g}; schedule 'late' has no noise before half of the steps: give more"
        if self.until == 0:
            yield "until", "given 0, which is no noise at all: say sigma = 0"
        if isinstance(self.sigma, tuple) and self.sigma[0] > self.sigma[1]:
            yield "sigma", f"given {list(self.sigma)}; a range is [low, high] with low <= high"
        if self.kind in ("mix", "sampled"):
            if self.sigma != "auto" and max(self.sigma if isinstance(self.sigma, tuple) else (self.sigma,)) > 1:
                yield "sigma", f"given {self.sigma}; with kind {self.kind!r} it is a share of the target, at most 1"
            if self.target != "teacher":
                yield "target", f"{self.target!r}: kind {self.kind!r} changes a teacher's targets: leave target out"
        if self.kind == "sampled" and (self.distribution != "gaussian" or self.draw == "scalar"):
            yield "kind", "sampled has a distribution of its own and needs a number per class: leave both out"
        if self.target == "input" and (self.frozen or self.draws > 1):
            yield "target", "input: its noise is new at every step and the student runs once: no frozen, no draws"
        if isinstance(self.sigma, tuple) and self.frozen:
            yield "frozen", "a range of sigma is drawn per batch, frozen noise only once: give one number"

    def unused(self) -> list[str]:
        """The settings that are named and have no effect, because sigma is 0; alpha = 0 says "no noise" as well."""
        if not self.off or self.alpha == 0:
            return []
        return [part.name for part in fields(self) if part.name != "sigma" and getattr(self, part.name) != part.default]


@dataclass(kw_only=True)
class Choice(Settings):
    """How validation chooses the noise where sigma or alpha is auto, and weight decay and rate for clean and noisy
    students alike: noisy ones try every combination, clean ones as many, with more weight decays."""

    sigmas: Annotated[list[NotNegative], Field(min_length=1)] = field(default_factory=lambda: [0.3, 0.9])
    """Candidates for sigma."""
    alphas: Annotated[list[Share], Field(min_length=1)] = field(default_factory=lambda: [0.15, 0.5])
    """Candidates for alpha."""
    lrs: list[Positive] = field(default_factory=list)
    """Candidates for the learning rate (empty: the student's own)."""
    weight_decays: list[NotNegative] = field(default_factory=list)
    """Candidates for the weight decay (empty: the student's own and five times it; 0 and 0.001 where it has none)."""
    epochs: Count | None = None
    """Length of each trial (empty: the student's; shorter trials favour clean students)."""
    seeds: Count = 1
    """Trials per candidate, with seeds 100, 101, ...: not those of the students that are compared."""
    controls: bool = False
    """Also compare clean and noisy students that are trained as named, with one rate and weight decay."""

    @property
    def over_recipe(self) -> bool:
        """Whether rate or weight decay have candidates, so that there is a choice even where the noise is named."""
        return bool(self.lrs or self.weight_decays)


@dataclass(kw_only=True)
class Target(Settings):
    """What the student may cost, for student.name = "auto"; without any limit macs is "4x". It is never larger than its
    teacher unless named in students."""

    macs: str | Positive | None = None
    """At most this many multiplications per image, or "4x": at most a quarter of the teacher's."""
    bytes: str | Positive | None = None
    """At most this many bytes in the weights file, or "8x": at most an eighth of the teacher's."""
    parameters: str | Positive | None = None
    """At most this many parameters, or "8x": at most an eighth of the teacher's."""
    latency: str | Positive | None = None
    """At most this many milliseconds a call, "5ms", or "2x": twice as fast as the teacher or faster; of the first file
    of run.export (default onnx) in its own runtime."""
    latency_threads: Count = 1
    """CPU threads of that runtime."""
    latency_batch: Count = 1
    """Images per call."""
    latency_record: str = ""
    """File that bench wrote where the student will run (empty: this machine); it has threads and batch of its own."""
    max_drop: NotNegative | None = None
    """Points of validation accuracy the student may lose against its teacher; more is exit code 3."""
    students: list[str] = field(default_factory=list)
    """Networks to choose from (empty: compact ones, timm's mobile ones, the paper's, narrower teachers)."""
    search: Count = 4
    """How many of those within the limits are tried, in short runs judged on validation."""
    epochs: Count | None = None
    """Length of each short run (empty: a quarter of the student's epochs)."""
    minutes: Positive | None = None
    """Minutes that the whole run may take, the teacher's training included: fewer views, epochs and tries if it is
    short; if it is long, up to 200 epochs for students, unless student.epochs is not 20."""

    @property
    def limits_costs(self) -> bool:
        """Whether anything limits what the student costs."""
        return any(getattr(self, name) is not None for name in (*LIMITS, "latency"))

    def contradictions(self) -> Iterator[tuple[str, str]]:
        if self.latency is None and self.latency_record:
            yield "latency_record", "has no effect without latency: leave it out, or say latency too"
        for name in ("latency_threads", "latency_batch"):
            if getattr(self, name) != 1 and (self.latency is None or self.latency_record):
                reason = "without latency" if self.latency is None else "beside latency_record, which has its own"
                yield name, f"has no effect {reason}: leave it out"
        try:
            limit("1x" if self.latency is None else self.latency, 1.0, "ms")
        except ConfigError as error:
            yield "latency", str(error)
        for name in LIMITS:
            value = getattr(self, name)
            try:
                most = math.inf if value is None else limit(value, 1.0)
            except ConfigError as error:
                yield name, str(error)
                continue
            if most < FEWEST and not str(value).strip().endswith("x"):
                ratio = max(most, 1 / most)
                yield name, f"given {most:g}, fewer {name} than any network has: did you mean '{ratio:g}x'?"


@dataclass(kw_only=True)
class RunSettings(Settings):
    """How often, where and on what."""

    seeds: Count = 1
    """Students per condition, with seeds 0, 1, ...; intervals need at least 2, claims more."""
    control_seeds: Count | None = None
    """Of a sweep over noise: seeds of each clean student (empty: run.seeds); the noise that validation prefers is then
    trained on the further ones too, and judged on them."""
    baselines: bool = True
    """Also train students on labels alone and by clean logits, as any claim needs; a sweep always does the latter."""
    output_dir: Name = "runs"
    """Folder in which the run's folder is made."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    threads: Count | None = None
    """CPU threads for torch (default: torch's own choice)."""
    export: list[Literal["onnx", "onnx-int8", "pte", "pte-int8", "tflite", "tflite-int8", "pt2", "hub"]] = field(
        default_factory=list
    )
    """Files to write of the student that is best on validation, each checked against torch."""
    checks: bool = True
    """End the run when a check before the first step does not hold; false: note it in the result and go on."""
    tensorboard: bool = False
    """The same as track = ["tensorboard"]."""
    track: list[Literal["tensorboard", "mlflow", "wandb"]] = field(default_factory=list)
    """Also record the metrics of every training there: as events in its run folder (needs the extra `track`), in MLflow
    (local unless a tracking URI is set), in Weights & Biases (offline unless WANDB_MODE or WANDB_API_KEY is set)."""
    trace: bool = False
    """Record the trace of every student's Gauss-Newton matrix, with the weights it keeps: noise makes it small."""
    profile: bool = False
    """Measure where the time of a training's steps goes, and how near they come to the machine's matrix products."""
    checkpoint_every_s: NotNegative = 30.0
    """Seconds between two checkpoints of a training: what a killed run loses at most; 0 writes one at every step."""


@dataclass(kw_only=True)
class Config(Settings):
    """Everything `noisyteacher compress` needs to know."""

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

    def contradictions(self) -> Iterator[tuple[str, str]]:
        for table in fields(self):
            for name, problem in getattr(self, table.name).contradictions():
                yield f"{table.name}.{name}", problem
        for part, recipe in (("teacher", self.teacher), ("student", self.student)):
            decided = PRESETS[recipe.preset][part]
            if decided and all(getattr(recipe, name) != value for name, value in decided.items()):
                yield f"{part}.preset", f"{recipe.preset} has no effect: all that it decides is named; leave it out"
        student, noise = self.student, self.noise
        yield from wrong_pairs(student.loss, student.scale, noise)
        if student.combine != "mean" and not self.teacher.also:
            yield "student.combine", f"{student.combine!r} has no effect with one teacher: leave it out"
        if student.name not in ("", "auto"):
            defaults = vars(Target())
            for name, value in vars(self.target).items():
                if name not in ("max_drop", "minutes") and value != defaults[name]:
                    yield (
                        f"target.{name}",
                        f"{value} has no effect where student.name is not auto: leave one of them out",
                    )
        if student.qat_epochs and not {"onnx-int8", "pte-int8"} & {*self.run.export}:
            yield (
                "student.qat_epochs",
                f"{student.qat_epochs} has no effect without a file in int8: add onnx-int8 or "
                "pte-int8 to run.export (--export), or leave it out",
            )
        chosen = "auto" in (noise.sigma, noise.alpha)
        if not chosen and self.choice != Choice() and (noise.off or not self.choice.over_recipe):
            yield "choice", 'has no effect where the noise is not chosen: leave it out, or set noise.sigma = "auto"'
            return
        for name in ("sigma", "alpha"):
            candidates, default = (getattr(choice, f"{name}s") for choice in (self.choice, Choice()))
            if getattr(noise, name) != "auto" and candidates != default:
                words = (
                    f"has no effect while noise.{name} is {getattr(noise, name)} (default "
                    f"{getattr(NoiseSettings, name)}): leave it out, or let validation choose: --{name} auto"
                )
                yield f"choice.{name}s", words
            elif getattr(noise, name) == "auto" and not any(candidates):
                yield f"choice.{name}s", f"given {candidates}, which are no noise at all: give a candidate above 0"


def wrong_loss_options(loss: str, options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is wrong with the numbers of a loss, its temperature included: (name, problem)."""
    for name, value in options.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf
        if name not in LOSS_OPTIONS[loss]:
            yield name, f"has no effect with loss={loss!r}: leave it out"
        elif name == "weighted" and not isinstance(value, bool):
            yield name, f"given {value!r}; expected true or false"
        elif name not in ("weighted", "temperature") and not is_number:
            yield name, f"given {value!r}; expected a number of 0 or more"
    weights = {name: value for name, value in options.items() if name not in ("weighted", "temperature")}
    if len(weights) == 2 and not any(weights.values()):
        yield next(iter(weights)), f"{' and '.join(weights)} are 0, so there is no loss: give one of them above 0"


def wrong_pairs(loss: str, scale: str, noise: NoiseSettings | None) -> Iterator[tuple[str, str]]:
    """What is wrong with a scale beside a loss, and with a noise beside both: (name, problem)."""
    if loss == "ttm" and scale == "zscore":
        yield "student.scale", "zscore undoes what ttm does, a temperature of the teacher alone: leave one of them out"
    if noise is None or noise.off:
        return
    if noise.kind == "sampled" and ("temperature" not in LOSS_OPTIONS[loss] or scale == "zscore"):
        yield (
            "noise.kind",
            f"sampled draws from soft targets, loss {loss!r} with scale {scale!r} has none: name another",
        )
    if noise.draw == "scalar" and scale == "zscore":
        yield "noise.draw", "zscore takes one number per row out again: name another draw, or another scale"


def limit(value: str | float, teachers: float, unit: str = "") -> float:
    """The most that a limit of `target` allows, of a cost that is `teachers` of the teacher. `limit("4x", 200) == 50`.

    unit: of a number, as in `limit("5ms", 8, "ms") == 5`. Raises ConfigError for text that is neither a number with its
    unit nor a ratio of 1 or more followed by x.
    """
    text = str(value).strip()
    is_ratio = text.endswith("x")
    try:
        number = float(text.removesuffix("x" if is_ratio else unit)) if is_ratio or text.endswith(unit) else math.nan
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and (number >= 1 if is_ratio else number > 0)):
        expected, ratio = ("milliseconds such as '5ms'", "2x") if unit else ("a number", "4x")
        raise ConfigError(
            f"given {text!r}; expected {expected}, or a ratio to the teacher of 1 or more such as '{ratio}'"
        )
    return teachers / number if is_ratio else number


Values = dict[str, Any]
"""Settings by name, as TOML or JSON hold them: numbers, text, lists and tables."""
PRESETS: dict[str, dict[str, Values]] = tomllib.loads((FOLDER / "presets.toml").read_text())
"""Preset -> part -> the settings it has instead of the defaults above, which are those of `standard`."""


class Flag(NamedTuple):
    """How a setting is named and explained on the command line; empty: by `--FIELD`, by its docstring."""

    name: str = ""
    help: str = ""


FLAGS = {key: Flag(**flag) for key, flag in tomllib.loads((FOLDER / "flags.toml").read_text()).items()}
"""Settings whose flags differ from their names, or have shorter words than their docstrings."""
