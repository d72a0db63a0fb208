"""An epoch of distillation as each peer runs it, from one teacher, on one data set: what bench_peers times.

KD_Lib 0.0.32 asks for torch 1.8.1 and imports models of text; its NoisyTeacher needs neither. It is imported here by
itself, unchanged, on the torch at hand. torchdistill 1.1.5 runs as it is, by its DistillationBox and KDLoss. The
tutorial is PyTorch's "Knowledge Distillation", its loop written anew: the teacher runs in every step without gradients,
soft targets and labels. All three are fed as their examples do it: a DataLoader over images that torchvision's ToTensor
and Normalize make of arrays, one by one, in the main process (a worker would take a core from the arithmetic on a
machine with two). All four update by Adam.
"""

from __future__ import annotations

import copy
import sys
import tempfile
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax, softmax
from torch.utils.data import DataLoader, Dataset, RandomSampler

import noisyteacher as nt
from noisyteacher.data import Split
from noisyteacher.models.external import import_torchvision

Epoch = Callable[[], float]
"""One epoch; returns the mean loss of its steps, in whatever the loss of the peer is."""
BATCH, RATE, TEMPERATURE = 128, 1e-4, 4.0


@dataclass(frozen=True)
class Task:
    """Teacher and student as networks on prepared images, the data, and the mean and deviation that prepare them."""

    teacher: nt.Classifier
    student: nt.Classifier
    split: Split
    store: nt.LogitStore
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def networks(self) -> tuple[nn.Module, nn.Module]:
        """Copies of both networks without their preprocessing."""
        return copy.deepcopy(self.teacher.network).eval(), copy.deepcopy(self.student.network)


class Photographs(Dataset[tuple[Tensor, int]]):
    """The split as torchvision's data sets give it: an image at a time, through PIL, ToTensor and Normalize."""

    def __init__(self, task: Task) -> None:
        from torchvision import transforms

        images = task.split.images_at(torch.arange(len(task.split)))
        self.arrays = images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = task.split.labels.tolist()
        self.prepare = transforms.Compose([
            transforms.ToPILImage(), transforms.ToTensor(), transforms.Normalize(task.mean, task.deviation),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.prepare(self.arrays[row]), self.labels[row]


def ours(task: Task) -> Epoch:
    """`fit` with the defaults that this benchmark shares with the peers, from stored logits."""
    model = copy.deepcopy(task.student)
    objective = nt.distil(task.store, noise=nt.Noise(sigma=0.5, alpha=0.5))

    def epoch() -> float:
        history = nt.fit(
            model, task.split, objective, epochs=1, batch_size=BATCH, optimizer="adam", lr=RATE, schedule="constant",
        )  # fmt: skip
        return float(history.epochs[-1]["train/loss"])

    return epoch


def tutorial(task: Task) -> Epoch:
    """The loop of PyTorch's tutorial on knowledge distillation."""
    teacher, student = task.networks()
    loader = DataLoader(Photographs(task), batch_size=BATCH, shuffle=True)
    optimizer = torch.optim.Adam(student.parameters(), lr=RATE)

    def epoch() -> float:
        student.train()
        total = 0.0
        for images, labels in loader:
            optimizer.zero_grad()
            with torch.no_grad():
                answers = teacher(images)
            logits = student(images)
            target, answer = softmax(answers / TEMPERATURE, 1), log_softmax(logits / TEMPERATURE, 1)
            soft = (target * (target.log() - answer)).sum() / len(answer) * TEMPERATURE**2
            loss = 0.25 * soft + 0.75 * cross_entropy(logits, labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
        return total / len(loader)

    return epoch


def kd_lib(task: Task) -> Epoch:
    """KD_Lib's NoisyTeacher, by its own training loop."""
    for name in ("KD_Lib.KD", "KD_Lib.KD.vision"):  # their __init__ import models of text
        package = ModuleType(name)
        package.__path__ = [str(Path(folder) / name.replace(".", "/")) for folder in sys.path]
        sys.modules[name] = package
    from KD_Lib.KD.vision.noisy.noisy_teacher import NoisyTeacher

    teacher, student = task.networks()
    photographs = Photographs(task)
    loader = DataLoader(photographs, batch_size=BATCH, shuffle=True)
    few = DataLoader(torch.utils.data.Subset(photographs, range(2)), batch_size=2)  # it evaluates after every epoch
    optimizers = [torch.optim.Adam(network.parameters(), lr=RATE) for network in (teacher, student)]
    box = NoisyTeacher(teacher, student, loader, few, *optimizers, alpha=0.5, noise_variance=0.25, temp=TEMPERATURE)
    folder = tempfile.mkdtemp()

    def epoch() -> float:
        student.train()  # it leaves the student in eval mode
        output = StringIO()
        with redirect_stdout(output):
            box.train_student(1, plot_losses=False, save_model=False, save_model_pth=f"{folder}/student.pt")
        return float(output.getvalue().rpartition("Loss: ")[2].partition(",")[0]) / len(loader)

    return epoch


def torchdistill(task: Task) -> Epoch:
    """torchdistill's DistillationBox with its KDLoss."""
    from torchdistill.core.distillation import get_distillation_box

    teacher, student = task.networks()
    module = {"student_module_path": ".", "student_module_io": "output"}
    module |= {"teacher_module_path": ".", "teacher_module_io": "output"}
    loss = {
        "criterion": {"key": "KDLoss", "kwargs": {**module, "temperature": TEMPERATURE, "alpha": 0.75}},
        "weight": 1.0,
    }
    settings: dict[str, Any] = {
        "num_epochs": 1,
        "train_data_loader": {
            "dataset_id": "train", "sampler": {"class_or_func": RandomSampler, "kwargs": {}},
            "kwargs": {"batch_size": BATCH},
        },
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only"},
        "optimizer": {"key": "Adam", "kwargs": {"lr": RATE}},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": loss}}},
    }  # fmt: skip
    box = get_distillation_box(
        teacher, student, {"train": Photographs(task)}, settings, torch.device("cpu"), None, False, 1.0
    )

    def epoch() -> float:
        box.pre_epoch_process(epoch=0)
        total = 0.0
        for images, labels, more in box.train_data_loader:
            loss = box.forward_process(images, labels, more)
            box.post_forward_process(loss=loss)
            total += float(loss.detach())
        return total / len(box.train_data_loader)

    return epoch


PEERS: dict[str, Callable[[Task], Epoch]] = {"KD_Lib": kd_lib, "torchdistill": torchdistill, "tutorial": tutorial}


def ready() -> None:
    """torchvision as this package imports it, and no warnings of the peers."""
    import_torchvision()
    warnings.filterwarnings("ignore")
