"""The trainings that are compared: each gets teacher, student, images and a time, and returns the trained student.

Every side sees the same uint8 images of the same size; both networks carry their own preprocessing. Schedules of the
peers, written in epochs, run over the share of the time that is spent, so that they end with it. Each side decides
itself what it does in its time: ours also plans, stores the teacher's logits, checks, validates and writes files in it,
the peers neither validate nor write anything. The peers run in the precision and memory format that ours takes, the
teacher included.

torchdistill 1.1.5: the optimizer, schedule, crops and loss of its CIFAR-10 configuration
(configs/sample/cifar10/kd/resnet20_from_densenet_bc_k12_depth100-final_run.yaml), by its DistillationBox.
timm 1.0.31: `timm.task.LogitDistillationTask` with the weight and temperature of its documentation, the defaults of
train.py for all else (the learning rate by its rule, 0.1 for 256 images), by timm's optimizer, scheduler, transforms.
Its crops are made for photographs of ImageNet: images below 64 pixels keep at least 0.67 of their area, not 0.08.
"""

from __future__ import annotations

import copy
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import noisyteacher as nt
from noisyteacher.config import build_config
from noisyteacher.data import Split
from noisyteacher.device import precision_context, resolve_precision
from noisyteacher.models import Classifier
from noisyteacher.models.external import import_torchvision
from noisyteacher.pipeline.resolve import fit_options, resolve_auto
from noisyteacher.pipeline.timing import RESERVE, timed_seconds, training_seconds

SNAPSHOTS = 8
"""A copy of the student's weights is kept at so many equal parts of the time, but the last."""
CPU = torch.device("cpu")


@dataclass
class Clock:
    """The time of a training, which begins when the clock is made."""

    budget_s: float
    now: Callable[[], float] = time.perf_counter
    started: float = field(init=False)

    def __post_init__(self) -> None:
        self.started = self.now()

    @property
    def seconds(self) -> float:
        """Seconds since the beginning."""
        return self.now() - self.started

    @property
    def share(self) -> float:
        """The share of the budget that is spent; 1 and more when the time is up."""
        return self.seconds / self.budget_s


@dataclass
class Snapshots:
    """Copies of the student's weights during its training, to be scored when the clock has stopped.

    A hook takes them in the forward pass. A tool may train copies of the student first, to time them: a new model that
    trains starts the list anew.
    """

    clock: Clock
    points: list[tuple[float, dict[str, Tensor]]] = field(default_factory=list)
    model: nn.Module | None = None
    parts: int = 0

    def watch(self, student: nn.Module) -> None:
        """Take snapshots of the student and of all copies that are made of it."""

        def hook(model: nn.Module, inputs: Any) -> None:  # a function, because a copied model keeps it as it is
            if model.training:
                self._visit(model)

        student.register_forward_pre_hook(hook)

    def _visit(self, model: nn.Module) -> None:
        parts = int(SNAPSHOTS * self.clock.share)
        if model is not self.model:
            self.model, self.parts, self.points = model, parts, []
        elif self.parts < parts < SNAPSHOTS:
            self.parts = parts
            weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
            self.points.append((self.clock.seconds, weights))


@dataclass(frozen=True)
class Task:
    """What a contestant works with. data: without a test split. options: what a pilot chooses for it."""

    data: nt.Splits
    teacher: Classifier
    student: Classifier
    clock: Clock
    options: Mapping[str, Any]
    workers: int
    seed: int


Training = Callable[[Task], tuple[Classifier, dict[str, Any]]]
"""Trains the student of the task; returns the trained model, and what was done in the time (JSON-able)."""


@dataclass(frozen=True)
class Contestant:
    """A training, and the options among which validation chooses in pilots of their own; none: as it comes.

    imports: modules that are loaded before the clock starts.
    """

    title: str
    train: Training
    imports: tuple[str, ...]
    candidates: tuple[Mapping[str, Any], ...] = ()


class Photographs(Dataset[tuple[Tensor, int]]):
    """The split as torchvision's data sets show it: a PIL image at a time, through a transform."""

    def __init__(self, split: Split, transform: Callable[[Image.Image], Tensor]) -> None:
        rows = torch.arange(len(split))
        arrays = split.images_at(rows).permute(0, 2, 3, 1).contiguous()
        self.arrays = (arrays.squeeze(3) if arrays.shape[3] == 1 else arrays).numpy()
        self.labels, self.transform = split.labels_at(rows).tolist(), transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.arrays[row])), self.labels[row]


class InPrecision(nn.Module):
    """A network in channels-last format and in the precision of our own trainings; logits in fp32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.precision = resolve_precision("auto", CPU)

    def forward(self, images: Tensor) -> Tensor:
        with precision_context(self.precision, CPU):
            logits: Tensor = self.network(images.contiguous(memory_format=torch.channels_last))
        return logits.float()


def ours(task: Task) -> tuple[Classifier, dict[str, Any]]:
    """`nt.compress` with its defaults, but no controls, and the minutes that remain, in which it stores logits too."""
    minutes = (task.clock.budget_s - task.clock.seconds) / 60
    with tempfile.TemporaryDirectory() as folder:
        result = nt.compress(
            task.teacher, task.student, task.data, target={"minutes": minutes}, baselines=False, output_dir=folder,
            device="cpu", progress=False,
        )  # fmt: skip
        model = nt.load_model(result.path / "best" / "model.safetensors")
    assert result.time is not None
    done = {"epochs": result.time["epochs"]["student"], "views": result.time["views"]}
    return model, {**done, "extraction_s": result.extraction_s}


def labels_alone(task: Task) -> tuple[Classifier, dict[str, Any]]:
    """`nt.fit` on labels by the default recipe, for as many epochs as fit into the time at the speed measured first."""
    config = build_config({"student": {"name": "compact-s", **task.options}})  # the name is not used
    recipe = resolve_auto(config, task.data).student
    options = fit_options(recipe, task.student, task.data)
    timed_s = timed_seconds(task.clock.budget_s)
    epoch_s = training_seconds(copy.deepcopy(task.student), task.data, options, "cpu", seconds=timed_s)
    assert epoch_s is not None
    seconds = (1 - RESERVE) * (task.clock.budget_s - task.clock.seconds)
    options["epochs"] = max(1, int(seconds / epoch_s))
    options["warmup_epochs"] = min(options["warmup_epochs"], options["epochs"] / 4)
    nt.fit(
        task.student, task.data.train, nt.supervised(), val=task.data.val, seed=task.seed, device="cpu",
        progress=False, **options,
    )  # fmt: skip
    return task.student, {"epochs": options["epochs"]}


def torchdistill(task: Task) -> tuple[Classifier, dict[str, Any]]:
    """torchdistill's DistillationBox by its CIFAR-10 recipe; its 182 epochs are the time."""
    from torch.utils.data import RandomSampler
    from torchdistill.core.distillation import get_distillation_box
    from torchvision import transforms

    height, width = task.data.input_shape[1:]
    transform = transforms.Compose([
        transforms.RandomCrop((height, width), padding=(width // 8, height // 8)), transforms.RandomHorizontalFlip(),
        transforms.PILToTensor(),
    ])  # fmt: skip
    output = {"student_module_path": ".", "student_module_io": "output"}
    output |= {"teacher_module_path": ".", "teacher_module_io": "output"}
    criterion = {"key": "KDLoss", "kwargs": {**output, "temperature": 4.0, "alpha": 0.9, "reduction": "batchmean"}}
    epochs = 182
    settings: dict[str, Any] = {
        "num_epochs": epochs,
        "train_data_loader": {
            "dataset_id": "train", "sampler": {"class_or_func": RandomSampler, "kwargs": {}},
            "kwargs": {"batch_size": task.options["batch_size"], **_worker_options(task)},
        },
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only"},
        "optimizer": {"key": "SGD", "kwargs": {"lr": task.options["lr"], "momentum": 0.9, "weight_decay": 1e-4}},
        "scheduler": {"key": "MultiStepLR", "kwargs": {"milestones": [91, 136], "gamma": 0.1}},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": {"criterion": criterion, "weight": 1}}}},
    }  # fmt: skip
    images = {"train": Photographs(task.data.train, transform)}
    teacher, student = InPrecision(task.teacher), InPrecision(task.student)
    box = get_distillation_box(teacher, student, images, settings, CPU, None, False, 1.0)

    def step(batch: Any) -> None:
        while box.lr_scheduler.last_epoch < int(epochs * task.clock.share):
            box.lr_scheduler.step()
        box.post_forward_process(loss=box.forward_process(*batch))

    return task.student, _until_the_end(task, box.train_data_loader, step, lambda: box.pre_epoch_process(epoch=0))


def timm(task: Task) -> tuple[Classifier, dict[str, Any]]:
    """timm's LogitDistillationTask by the defaults of train.py; its 300 epochs, 5 of warm-up, are the time."""
    from timm.data import create_transform
    from timm.optim import create_optimizer_v2
    from timm.scheduler import CosineLRScheduler
    from timm.task import LogitDistillationTask
    from timm.task.distillation import DistillationTeacher

    least = 0.67 if min(task.data.input_shape[1:]) < 64 else 0.08
    transform = create_transform(
        task.data.input_shape, is_training=True, scale=(least, 1.0), ratio=(3 / 4, 4 / 3), hflip=0.5,
        color_jitter=0.4, interpolation="random", normalize=False,
    )  # fmt: skip
    images = Photographs(task.data.train, transform)
    loader = DataLoader(
        images, batch_size=min(task.options["batch_size"], len(images)), shuffle=True, drop_last=True,
        **_worker_options(task),
    )  # fmt: skip
    channels = task.data.input_shape[0]
    teacher, student = InPrecision(task.teacher), InPrecision(task.student)
    for model in (teacher, student):  # both prepare their images themselves: nothing to convert
        model.pretrained_cfg = {"mean": (0.0,) * channels, "std": (1.0,) * channels}  # type: ignore[assignment]
    distillation = LogitDistillationTask(
        student, DistillationTeacher(teacher), criterion_kwargs={"smoothing": 0.1}, task_loss_weight=0.3,
        temperature=4.0, verbose=False,
    )  # fmt: skip
    optimizer = create_optimizer_v2(student, opt="sgd", lr=task.options["lr"], momentum=0.9, weight_decay=2e-5)
    epochs = 300
    scheduler = CosineLRScheduler(optimizer, t_initial=epochs, warmup_t=5, warmup_lr_init=1e-5)

    def step(batch: Any) -> None:
        scheduler.step(epochs * min(task.clock.share, 1.0))
        optimizer.zero_grad()
        distillation(*batch)["loss"].backward()
        optimizer.step()

    return task.student, _until_the_end(task, loader, step, distillation.train)


def _worker_options(task: Task) -> dict[str, Any]:
    """The DataLoader's worker processes: as many as threads, where the recipes have a GPU and 16."""
    return {"num_workers": task.workers, "persistent_workers": task.workers > 0}


def _until_the_end(
    task: Task, loader: Iterable[Any], step: Callable[[Any], None], begin_epoch: Callable[[], Any]
) -> dict[str, Any]:
    """Call `step` with batch after batch until the time is up; what was done."""
    images = 0
    while True:
        begin_epoch()
        for batch in loader:
            step(batch)
            images += len(batch[0])
            if task.clock.share >= 1:
                return {"epochs": images / len(task.data.train)}


CONTESTANTS: dict[str, Contestant] = {
    "ours": Contestant("noisyteacher", ours, ("noisyteacher.pipeline",)),
    "torchdistill": Contestant(
        "torchdistill",
        torchdistill,
        ("torchdistill.core.distillation", "torchvision.transforms"),
        tuple({"lr": lr, "batch_size": size} for lr, size in ((0.1, 128), (0.3, 128), (0.1, 32), (0.03, 32))),
    ),
    "timm": Contestant(
        "timm",
        timm,
        ("timm.data", "timm.optim", "timm.scheduler", "timm.task.distillation"),
        tuple({"lr": lr, "batch_size": size} for lr, size in ((0.05, 128), (0.15, 128), (0.05, 32), (0.015, 32))),
    ),
    "labels": Contestant(
        "labels alone",
        labels_alone,
        ("noisyteacher.pipeline",),
        tuple({"lr": lr, "batch_size": size} for lr, size in ((0.01, 32), (0.003, 32), (0.03, 32), (0.03, 128))),
    ),
}


def run(
    contestant: Contestant,
    data: nt.Splits,
    teacher: Classifier,
    student: Classifier,
    *,
    minutes: float,
    options: Mapping[str, Any],
    workers: int,
    seed: int,
    pilot: bool,
    now: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Train within the minutes, then score: seconds, errors (%) on validation and, unless it is a pilot, on test.

    seed: also of the order of the training images, because `nt.compress` counts its own seeds from 0.
    `curve` holds (seconds, test error) of the snapshots and of the trained student. Nothing is scored before the clock
    has stopped.
    """
    warnings.filterwarnings("ignore")
    logging.getLogger("torchdistill").setLevel(logging.ERROR)
    torch.manual_seed(seed)
    import_torchvision()  # where it does not fit torch, the peers' own import fails
    for name in contestant.imports:
        import_module(name)
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))
    untrained, unseen = copy.deepcopy(student), replace(data, train=data.train.subset(order), test=None)
    clock = Clock(60 * minutes, now)
    snapshots = Snapshots(clock)
    snapshots.watch(student)
    model, done = contestant.train(Task(unseen, teacher.eval(), student, clock, options, workers, seed))
    record = {**done, "seconds": clock.seconds, "val_error": error(model, data.val)}
    if pilot:
        return record
    curve = []
    for seconds, weights in snapshots.points:
        untrained.load_state_dict(weights)
        curve.append([seconds, error(untrained, data.test)])
    record["test_error"] = error(model, data.test)
    return {**record, "curve": [*curve, [record["seconds"], record["test_error"]]]}


def error(model: nn.Module, split: Split | None) -> float:
    """The error (%) on a split."""
    assert split is not None
    scores = nt.evaluate(model, split, device="cpu", progress=False)
    assert scores.error is not None
    return float(scores.error)
