"""Metrics of a training in other programs: TensorBoard, MLflow, Weights & Biases. Each is imported when it is named.

Nothing leaves the machine unless the program is set up for that: MLflow writes to `mlflow.db` in the current folder
unless a tracking URI is set, Weights & Biases works offline unless WANDB_MODE or WANDB_API_KEY is in the environment.
"""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from noisyteacher.errors import UsageError
from noisyteacher.runs import EVENTS
from noisyteacher.text import unknown_name

PROJECT = "noisyteacher"
"""The experiment of MLflow and the project of Weights & Biases that runs are recorded in."""


class TensorBoard:
    """Scalars in `RUN/events`; TensorBoard drops what an interrupted file said of epochs that are done again."""

    def __init__(self, run: Path, settings: Mapping[str, Any], done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(run / EVENTS), purge_step=done + 1)

    def write(self, numbers: Mapping[str, float], epoch: int) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, epoch)

    def close(self, failed: bool = False) -> None:
        self.writer.close()


class MLflow:
    """A run of MLflow, called as the run folder; the training is resumed in the same one."""

    def __init__(self, run: Path, settings: Mapping[str, Any], done: int) -> None:
        mlflow = import_module("mlflow")
        self.client = mlflow.MlflowClient()
        experiment = self.client.get_experiment_by_name(PROJECT)
        number = self.client.create_experiment(PROJECT) if experiment is None else experiment.experiment_id
        tag = f"{PROJECT}.run"
        earlier = self.client.search_runs([number], f"tags.`{tag}` = '{_identity(run)}'") if done else []
        if earlier:
            self.id = earlier[0].info.run_id
            return
        self.id = self.client.create_run(number, tags={tag: _identity(run)}, run_name=_title(run)).info.run_id
        for name, value in settings.items():
            self.client.log_param(self.id, name, value)

    def write(self, numbers: Mapping[str, float], epoch: int) -> None:
        for name, value in numbers.items():
            self.client.log_metric(self.id, name.replace("%", "percent"), value, step=epoch)

    def close(self, failed: bool = False) -> None:
        self.client.set_terminated(self.id, "FAILED" if failed else "FINISHED")


class WeightsAndBiases:
    """A run of Weights & Biases, called as the run folder; online, the training is resumed in the same one."""

    def __init__(self, run: Path, settings: Mapping[str, Any], done: int) -> None:
        wandb = import_module("wandb")
        mode = None if {"WANDB_MODE", "WANDB_API_KEY"} & os.environ.keys() else "offline"
        self.run = wandb.init(
            project=PROJECT, name=_title(run), id=_identity(run), config=dict(settings), dir=str(run), mode=mode,
            resume="allow" if done else None, reinit="create_new", settings=wandb.Settings(console="off", silent=True),
        )  # fmt: skip

    def write(self, numbers: Mapping[str, float], epoch: int) -> None:
        self.run.log(dict(numbers), step=epoch)

    def close(self, failed: bool = False) -> None:
        self.run.finish(exit_code=int(failed))


TRACKERS: dict[str, tuple[Callable[[Path, Mapping[str, Any], int], Any], str]] = {
    "tensorboard": (TensorBoard, "track"),
    "mlflow": (MLflow, "mlflow"),
    "wandb": (WeightsAndBiases, "wandb"),
}
"""Name in `run.track` -> its class, made with run folder, settings and epochs done, and the extra that it needs."""


class Trackers:
    """The named trackers of one run folder. One that fails later is dropped with a warning: the training goes on.

    Raises UnknownNameError, and UsageError with the command that installs what is missing.
    """

    def __init__(self, names: Sequence[str], run: Path, settings: Mapping[str, Any], done: int = 0) -> None:
        self.open: dict[str, Any] = {}
        flat = {name: value for name, value in settings.items() if isinstance(value, (bool, int, float, str))}
        for name in dict.fromkeys(names):
            if name not in TRACKERS:
                raise unknown_name("tracker", name, TRACKERS)
            kind, extra = TRACKERS[name]
            try:
                self.open[name] = kind(run, flat, done)
            except ImportError as error:
                raise UsageError(
                    f"{name} is not installed: pip install 'noisyteacher[{extra}]', or leave it out"
                ) from error
            except Exception as error:  # whatever these libraries raise for a server, a file or a login
                raise UsageError(f"{name} cannot record this run: {error}") from error

    def write(self, line: Mapping[str, Any]) -> None:
        """Record one epoch's line of metrics.jsonl."""
        numbers = {
            name: value
            for name, value in line.items()
            if name not in ("epoch", "step") and isinstance(value, (int, float)) and math.isfinite(value)
        }
        for name, tracker in list(self.open.items()):
            try:
                tracker.write(numbers, line["epoch"])
            except Exception as error:  # a server that is gone, a full disk: whatever these libraries raise
                del self.open[name]
                warnings.warn(f"{name} failed and gets no more numbers of this run: {error}", stacklevel=2)

    def close(self, failed: bool = False) -> None:
        """Record that the training is over, or has failed."""
        for name, tracker in self.open.items():
            try:
                tracker.close(failed)
            except Exception as error:
                warnings.warn(f"{name} could not be closed: {error}", stacklevel=2)


def _identity(run: Path) -> str:
    """16 hex digits that say which folder this is."""
    return hashlib.sha256(os.fsencode(run.resolve())).hexdigest()[:16]


def _title(run: Path) -> str:
    """The folder's name, after that of the run it is in."""
    return "/".join(run.resolve().parts[-2:])
