"""The resume state of a training run: all that is not a function of seed and step, in one sealed file."""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from noisyteacher.data import Split
from noisyteacher.errors import FileFormatError, MismatchError
from noisyteacher.files import sha256
from noisyteacher.locks import still_ours
from noisyteacher.tensorfile import read_tensors, tensor_bytes, write_tensors

KIND, SCHEMA = "checkpoint", 1
NAME = Path("checkpoint") / "state.safetensors"


@dataclass
class Progress:
    """Where a run stands: the next step, the running epoch's sums, the finished epochs, the best one so far."""

    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    best_key: list[float] = field(default_factory=list)
    seconds: float = 0.0


def write_checkpoint(
    run: Path,
    settings: dict[str, Any],
    progress: Progress,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    best: dict[str, Tensor],
) -> None:
    """Write the run's state to `RUN/checkpoint/state.safetensors`, durably: the old state or the new one survives."""
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"best/{name}": value for name, value in best.items()}
    for index, slots in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{name}": value for name, value in slots.items() if isinstance(value, Tensor)}
    write_tensors(run / NAME, KIND, SCHEMA, tensors, {"settings": settings, "progress": vars(progress)}, run)


def read_checkpoint(
    run: Path, settings: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[Progress, dict[str, Tensor]] | None:
    """Put the saved state back into model and optimizer; the progress and the best weights, or None without a file.

    Raises FileFormatError for a damaged file, MismatchError naming the setting when the run was started otherwise.
    """
    path = run / NAME
    if not path.exists():
        return None
    tensors, record = read_tensors(path, KIND, SCHEMA)
    saved = record.get("settings")
    if not isinstance(saved, dict):
        raise FileFormatError(f"{path}: no table 'settings' in it")
    same_settings(path, saved, settings)
    try:
        progress = Progress(**record["progress"])
        slots: dict[int, dict[str, Tensor]] = {}
        learned = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for name, value in _under("optimizer/", tensors).items():
            index, slot = name.split("/", 1)
            slots.setdefault(int(index), {})[slot] = _laid_out_like(learned[int(index)], value)
        model.load_state_dict(_under("model/", tensors))
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        raise FileFormatError(f"{path}: its settings are this run's, its state is not: {error}") from error
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
    return progress, _under("best/", tensors)


def same_settings(path: Path, saved: dict[str, Any], given: dict[str, Any]) -> None:
    """Raises MismatchError naming every setting that differs between a saved run and the one asked for."""
    saved, given = _without_idle_noise(saved), _without_idle_noise(given)
    keys = [key for key in {**saved, **given} if saved.get(key) != given.get(key)]
    if keys:
        told = "; ".join(f"{key}: saved {saved.get(key)!r}, given {given.get(key)!r}" for key in keys)
        raise MismatchError(f"{path}: holds a run with other settings ({told}): resume with the same or start anew")


def _without_idle_noise(saved: dict[str, Any]) -> dict[str, Any]:
    """The settings without a noise of sigma 0, which earlier versions recorded of a training that had none."""
    objective = saved.get("objective")
    if not isinstance(objective, dict) or (objective.get("noise") or {}).get("sigma") != 0:
        return saved
    return {**saved, "objective": {key: value for key, value in objective.items() if key != "noise"}}


def labels_fingerprint(*splits: Split | None) -> str:
    """The labels of the splits, which their images' fingerprints leave out."""
    return sha256(tensor_bytes(split.labels) for split in splits if split is not None and split.labels is not None)


def frozen_record(model: nn.Module) -> dict[str, list[str]]:
    """The parameters that are not learned, for the settings of a run; nothing where all are."""
    names = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    return {"frozen": names} if names else {}


def drop_checkpoint(run: Path) -> None:
    """Remove the resume state of a finished run."""
    still_ours(run / NAME)
    shutil.rmtree(run / NAME.parent, ignore_errors=True)


class Signals:
    """Signals that came and wait: let them do what they would have done by `release`."""

    def __init__(self) -> None:
        self.before: dict[int, Callable[..., object]] = {}
        self.waiting: list[int] = []

    @property
    def newest(self) -> int:
        """The number of the signal that waits; 0 where none does."""
        return self.waiting[-1] if self.waiting else 0

    def hold(self, number: int, frame: object) -> None:
        """Let this one wait; the second one does not."""
        self.waiting.append(number)
        if len(self.waiting) > 1:
            self.release()

    def release(self, number: int | None = None) -> None:
        """Let the signal that waits take effect; or one of this number, that another process of the group was sent."""
        number = number or self.newest
        self.waiting.clear()
        if number in self.before:
            self.before[number](number, None)


@contextmanager
def signals_held() -> Iterator[Signals]:
    """Inside, SIGINT and SIGTERM wait until they are released, or the end: what is half done is finished.

    They then do what they would have done. A second one does so at once. Signals that would end the process without a
    word of Python are left alone, and so are all of them outside the main thread.
    """
    held = Signals()
    if threading.current_thread() is threading.main_thread():
        for one in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(one)
            if callable(handler):
                held.before[one] = handler
                signal.signal(one, held.hold)
    try:
        yield held
    finally:
        for number, handler in held.before.items():
            signal.signal(number, handler)
        held.release()


def _laid_out_like(parameter: Tensor, value: Tensor) -> Tensor:
    """The value in the parameter's memory order: a fused update walks both in step, whatever their strides say."""
    return torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
