"""Trainings that one process and a group of two must end alike: `main` runs them all in this process or group."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import noisyteacher as nt
from noisyteacher.data import Split
from noisyteacher.distributed import World, on_rank_zero, process_group
from noisyteacher.errors import MismatchError, NoisyTeacherError

STEPS: dict[str, Any] = {"epochs": 2, "batch_size": 24, "lr": 0.01, "precision": "fp32"}


def squares(rows: int, role: str = "train") -> Split:
    """Images of 8x8 whose class is where they are bright."""
    dice = torch.Generator().manual_seed(len(role))
    labels = torch.randint(3, (rows,), generator=dice)
    images = torch.randint(90, (rows, 1, 8, 8), generator=dice, dtype=torch.uint8)
    for row, label in enumerate(labels.tolist()):
        images[row, :, 2 * label : 2 * label + 3] += 100
    return Split(images, labels, torch.arange(rows), role, "squares", ("a", "b", "c"))


def network(*extra: nn.Module, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        first = nn.Conv2d(1, 6, 3)
        return nn.Sequential(first, *extra, nn.ReLU(), nn.Flatten(), nn.Linear(216, 3))


def answers(split: Split) -> torch.Tensor:
    model = nt.build_model(network(seed=9), split).eval()
    with torch.no_grad():
        logits: torch.Tensor = 4 * model(split.images)
    return logits


def labels(**how: Any) -> tuple[nt.History, nn.Module]:
    model = how.pop("model", None) or network()
    split = squares(how.pop("rows", 101))  # 101 = 4 * 24 + 5: the last batch is uneven
    return nt.fit(model, split, nt.supervised(), val=squares(60, "val"), **{**STEPS, **how}), model


def noisy(**noise: Any) -> tuple[nt.History, nn.Module]:
    model, split = network(), squares(101)
    objective = nt.distil(answers(split), noise=nt.Noise(sigma=0.5, alpha=0.4, **noise))
    return nt.fit(model, split, objective, val=squares(60, "val"), **STEPS), model


def live(augment: str) -> tuple[nt.History, nn.Module]:
    model, split = network(), squares(101)
    objective = nt.distil(network(seed=9), noise=nt.Noise(sigma=0.5, alpha=0.4))
    return nt.fit(model, split, objective, augment=augment, views="clean,mirror", **STEPS), model


def judged_by_several() -> tuple[nt.History, nn.Module]:
    """Validation without labels: judged by the mean of two networks."""
    model, split, val = network(), squares(101), squares(61, "val")
    unlabelled = Split(val.images, None, val.index, val.role, val.name, val.class_names)
    teachers = [network(seed=9), network(seed=8)]
    objective = nt.distil(teachers, noise=nt.Noise(sigma=0.5, alpha=0.4))
    return nt.fit(model, split, objective, val=unlabelled, val_teacher=teachers, **STEPS), model


CASES: dict[str, Callable[[], tuple[nt.History, nn.Module]]] = {
    "labels": labels,
    "noise for every row": lambda: noisy(draw="row"),
    "noise for the batch": lambda: noisy(draw="batch"),
    "noise on the student": lambda: noisy(target="student"),
    "noise on the input": lambda: noisy(target="input", kind="additive", draw="row"),
    "three draws": lambda: noisy(draws=3, draw="row"),
    "live teacher": lambda: live("none"),
    "live teacher, mixup": lambda: live("mixup"),
    "two live teachers, no labels": judged_by_several,
    "a last batch of one": lambda: labels(rows=49),
    "momentum": lambda: labels(optimizer="sgd"),
}
WITH_BATCH_NORM: dict[str, Callable[[], tuple[nt.History, nn.Module]]] = {
    "batch norm": lambda: labels(model=network(nn.BatchNorm2d(6)), optimizer="sgd")
}
"""Every process takes the statistics of its own rows: all end alike, but not as one process does."""


def other_seeds(here: World) -> str:
    """What is said when the processes are not asked for the same training."""
    try:
        labels(seed=here.rank)
    except MismatchError as error:
        return str(error)
    return ""


def failing() -> str:
    """What a process says of an error that only the leading one met."""

    def make() -> None:
        raise NoisyTeacherError("only here")

    try:
        on_rank_zero(make)
    except NoisyTeacherError as error:
        return f"{os.getpid()} {error}"
    return ""


def all_cases(here: World) -> dict[str, Any]:
    """Epochs and final weights of every case; of a group also what it refuses."""
    endings: dict[str, Any] = {}
    for name, run in (CASES | WITH_BATCH_NORM).items():
        history, model = run()
        state = {key: value.double().flatten().tolist() for key, value in model.state_dict().items()}
        unwrapped = all("forward" not in vars(part) for part in model.modules())
        endings[name] = {"epochs": list(history.epochs), "state": state, "given back": unwrapped}
    if here.size > 1:
        endings["other seeds"], endings["failing"] = other_seeds(here), failing()
    return endings


def main(out: Path) -> None:
    with process_group() as here:
        (out / f"{here.size}-{here.rank}.json").write_text(json.dumps(all_cases(here)))
