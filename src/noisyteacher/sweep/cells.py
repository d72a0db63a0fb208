"""One cell of a sweep: a condition with a seed, trained in a child run of its own by whatever process is at hand."""

from __future__ import annotations

import json
import os
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from noisyteacher.config import build_config, describe
from noisyteacher.data import Splits
from noisyteacher.errors import DataWarning, NoisyTeacherError
from noisyteacher.io.files import read_bytes
from noisyteacher.models import model_record
from noisyteacher.noise import Noise
from noisyteacher.pipeline import Plan, Training, its_training, load_config_data, settled, train_run, train_runs
from noisyteacher.runs import Run
from noisyteacher.store import LogitStore
from noisyteacher.sweep.grid import TAUGHT, Condition, fingerprint
from noisyteacher.workers import leave_now


@dataclass(frozen=True)
class Cell:
    """What a worker needs to know, as plain values that travel to another process or machine."""

    folder: str
    """The sweep's run folder, on a file system that all workers share."""
    run: str
    """The child run's name."""
    condition: str
    kind: str
    seed: int
    config: Mapping[str, Any]
    stores: Mapping[str, str]
    """Folder of the teacher's answers by role, relative to the sweep's."""
    threads: int | None

    @property
    def path(self) -> Path:
        """The child run's folder."""
        return Path(self.folder) / self.run


def cell_of(condition: Condition, seed: int, run: Run, stores: Mapping[str, str], threads: int | None) -> Cell:
    """The cell of a condition and a seed in this sweep."""
    return Cell(
        str(run.path.absolute()),
        f"{condition.name}-seed{seed}",
        condition.name,
        condition.kind,
        seed,
        describe(condition.config),
        dict(stores),
        threads,
    )


_ONE = threading.Lock()
"""torch has one generator a process: two cells in threads of one would take draws from each other."""


def train_cell(cell: Cell) -> str | None:
    """Train the cell, or find it done. Returns None, or why it failed (also in the cell's error.txt)."""
    with _ONE:
        return _train_cell(cell)


def in_worker(cell: Cell) -> str | None:
    """`train_cell` in a process of `workers.processes`: told to end, it saves what there is and leaves."""
    try:
        return train_cell(cell)
    except SystemExit:
        leave_now()


def train_stack(cells: Sequence[Cell], progress: Callable[[int, int], None] | None = None) -> dict[str, str]:
    """Train these cells in common steps, or find them done; returns why, by run name, for those that failed."""
    with _ONE:
        errors = _train_together(cells, progress)
        return {cell.run: _failed(cell, error) for cell in cells if (error := errors.get(cell.run)) is not None}


def stacks(cells: Sequence[Cell], most: int) -> list[list[Cell]]:
    """The cells in groups of up to `most` that differ in seed, noise and what the loss is made of alone."""
    if most == 1:
        return [[cell] for cell in cells]
    groups: dict[str, list[list[Cell]]] = {}
    for cell in cells:
        config = {name: value for name, value in cell.config.items() if name != "noise"}
        student = {name: value for name, value in config["student"].items() if name not in TAUGHT}
        found = groups.setdefault(fingerprint([{**config, "student": student}, dict(cell.stores), cell.threads]), [[]])
        if len(found[-1]) == most:
            found.append([])
        found[-1].append(cell)
    return [stack for found in groups.values() for stack in found]


def _train_cell(cell: Cell) -> str | None:
    try:
        train_run(_training(cell))  # waits for a process that is training this cell, then finds it done
    except Exception as error:  # a defect or a lost machine must not take the other cells with it
        return _failed(cell, error)
    return None


def _train_together(cells: Sequence[Cell], progress: Callable[[int, int], None] | None) -> dict[str, Exception | None]:
    """What went wrong with each of the cells, by run name."""
    errors: dict[str, Exception | None] = {}
    trainings: dict[str, Training] = {}
    for cell in cells:
        try:
            trainings[cell.run] = _training(cell)
        except Exception as error:
            errors[cell.run] = error
    try:
        outcomes = train_runs(list(trainings.values()), progress) if trainings else []
    except Exception as error:  # of all of them: they cannot be trained together, or a defect
        return {cell.run: errors.get(cell.run, error) for cell in cells}
    for run, outcome in zip(trainings, outcomes, strict=True):
        errors[run] = outcome if isinstance(outcome, NoisyTeacherError) else None
    return errors


def _failed(cell: Cell, error: Exception) -> str:
    """Why the cell failed; an error of this package has been kept in its error.txt where it is of that run."""
    told = f"{type(error).__name__}: {error}"
    if not isinstance(error, NoisyTeacherError) and cell.path.is_dir():
        Run(cell.path).write_error(told)
    return told


def _training(cell: Cell) -> Training:
    """The cell's training, with the data and the teacher's answers that cells of this process share."""
    if cell.threads is not None:
        torch.set_num_threads(cell.threads)
    asked = build_config(cell.config)
    data = _data(json.dumps(cell.config["data"], sort_keys=True))
    config = settled(asked, data)
    answers = {role: _store(os.path.join(cell.folder, place)) for role, place in cell.stores.items()}
    noise = Noise(**cell.config["noise"]) if cell.kind == "noisy" else None
    plan = Plan(config, data, config.teacher.name, config.student.name, noise, (), cell.config, Run(cell.folder), None)
    return its_training(plan, cell.run, cell.kind, noise, cell.seed, answers, cell.run)


def progress_of(cell: Cell) -> float:
    """The share (0..1) of a cell's epochs that its metrics.jsonl tells of."""
    file = cell.path / "metrics.jsonl"
    if not file.exists():
        return 0.0
    return min(1.0, len(read_bytes(file).splitlines()) / int(cell.config["student"]["epochs"]))


def network_name(run: Run) -> str:
    """The name of the network in a training's folder, whatever path led there."""
    return str(model_record(run.path / "weights.safetensors")["architecture"]["name"])


def teacher_record(
    run: Run, result: Mapping[str, Any], members: Sequence[Condition], data: str, n: Mapping[str, int]
) -> dict[str, Any]:
    """What a sweep's result says of a teacher: its network, its run, who learns from it on what data, its errors."""
    errors = {f"{role}_error_%": scores["error"]["value"] for role, scores in result["scores"].items()}
    conditions = [one.name for one in members]
    return {
        "name": network_name(run), "run": run.path.name, "conditions": conditions, "data": data, "n": dict(n), **errors,
    }  # fmt: skip


@lru_cache(maxsize=2)
def _data(settings: str) -> Splits:
    """The data of settings, given as JSON."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # who began the sweep has seen it
        return load_config_data(build_config({"data": json.loads(settings)}))


@lru_cache(maxsize=8)
def _store(path: str) -> LogitStore:
    return LogitStore.open(path)
