"""The resume state of a training run, everything that is not a function of seed and step, in one sealed file; and
signals that wait for the end of a step.
"""

from __future__ import annotations

import shutil
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from noisyteacher.data import Split
from noisyteacher.errors import DataWarning, FileFormatError, MismatchError
from noisyteacher.io.files import sha256, unwrap
from noisyteacher.io.tensors import read_record, read_tensors, tensor_bytes, write_tensors
from noisyteacher.runs import CHECKPOINT, WEIGHTS
from noisyteacher.train.state import Progress, Student

KIND, SCHEMA = "checkpoint", 1
STATE = Path(CHECKPOINT) / "state.safetensors"
"""In a run folder."""


def write_checkpoint(student: Student) -> None:
    """Write the run's state to `RUN/checkpoint/state.safetensors`, durably: the old state or the new one survives."""
    assert student.folder is not None
    tensors = {f"model/{name}": value for name, value in student.model.state_dict().items()}
    tensors |= {f"best/{name}": value for name, value in student.best.items()}
    for index, slots in student.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{name}": value for name, value in slots.items() if isinstance(value, Tensor)}
    record = {
        "settings": student.identity,
        "progress": vars(student.progress),
        "threads": torch.get_num_threads(),
    }
    write_tensors(student.folder / STATE, KIND, SCHEMA, tensors, record, student.folder)


def read_checkpoint(folder: Path, student: Student) -> None:
    """Put the state that is saved in the run folder back into the student; nothing if there is none.

    Raises FileFormatError for a damaged file, MismatchError naming the settings that differ.
    """
    path = folder / STATE
    if not path.exists():
        return
    tensors, record = read_tensors(path, KIND, SCHEMA)
    saved = record.get("settings")
    if not isinstance(saved, dict):
        raise FileFormatError(f"{path}: no table 'settings' in it")
    check_identity(path, saved, student.identity)
    if (threads := record.get("threads")) not in (None, torch.get_num_threads()):
        warnings.warn(
            f"{folder}: resumed on {torch.get_num_threads()} thread(s), begun on {threads}: the last bits of numbers "
            "may differ from those of an unbroken run",
            DataWarning,
            stacklevel=2,
        )
    optimizer = student.optimizer
    try:
        progress = Progress(**record["progress"])
        slots: dict[int, dict[str, Tensor]] = {}
        learned = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for name, value in _below("optimizer/", tensors).items():
            index, slot = name.split("/", 1)
            slots.setdefault(int(index), {})[slot] = _in_memory_order_of(learned[int(index)], value)
        student.model.load_state_dict(_below("model/", tensors))
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        raise FileFormatError(f"{path}: its settings are this run's, its state is not: {error}") from error
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
    student.progress, student.best = progress, _below("best/", tensors)


def saved_precision(folder: Path) -> str | None:
    """The precision of the training in a run folder; None where it holds none that can be read."""
    with suppress(FileFormatError, KeyError, TypeError):
        if (file := folder / WEIGHTS).exists():
            return str(unwrap(read_record(file), file, "model", 1)["training"]["settings"]["precision"])
        if (file := folder / STATE).exists():
            return str(unwrap(read_record(file), file, KIND, SCHEMA)["settings"]["precision"])
    return None


def check_identity(path: Path, saved: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raises MismatchError naming every setting that differs between a saved run and this one."""
    keys = [key for key in {**saved, **expected} if saved.get(key) != expected.get(key)]
    if keys:
        differences = "; ".join(f"{key}: saved {saved.get(key)!r}, given {expected.get(key)!r}" for key in keys)
        raise MismatchError(
            f"{path}: holds a run with other settings ({differences}): resume with the same or start anew"
        )


def labels_fingerprint(*splits: Split | None) -> str:
    """SHA-256 of the labels of the splits, which their images' fingerprints leave out."""
    return sha256(tensor_bytes(split.labels) for split in splits if split is not None and split.labels is not None)


def frozen_parameters(model: nn.Module) -> dict[str, list[str]]:
    """The names of parameters that are not learned, for the identity of a run; empty if all are."""
    names = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    return {"frozen": names} if names else {}


def drop_checkpoint(run: Path) -> None:
    """Remove the resume state of a finished run."""
    shutil.rmtree(run / CHECKPOINT, ignore_errors=True)


class Signals:
    """Signals that were received and wait for `release`."""

    def __init__(self) -> None:
        self.handlers: dict[int, Callable[..., object]] = {}
        self.waiting: list[int] = []

    @property
    def newest(self) -> int:
        """The number of the signal that waits; 0 if there is none."""
        return self.waiting[-1] if self.waiting else 0

    def hold(self, number: int, frame: object) -> None:
        """Keep a first signal waiting; a second one takes effect at once."""
        self.waiting.append(number)
        if len(self.waiting) > 1:
            self.release()

    def release(self, number: int | None = None) -> None:
        """Call the original handler of the signal that waits, or of `number`, which another process received."""
        number = number or self.newest
        self.waiting.clear()
        if number in self.handlers:
            self.handlers[number](number, None)


@contextmanager
def signals_deferred() -> Iterator[Signals]:
    """Inside, SIGINT and SIGTERM wait until they are released, or until the end, so that a step is finished first.

    A second signal takes effect at once. Signals without a Python handler are left alone, and all of them outside the
    main thread.
    """
    deferred = Signals()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            if callable(handler):
                deferred.handlers[number] = handler
                signal.signal(number, deferred.hold)
    try:
        yield deferred
    finally:
        for signal_number, original in deferred.handlers.items():
            signal.signal(signal_number, original)
        deferred.release()


def _in_memory_order_of(parameter: Tensor, value: Tensor) -> Tensor:
    """The value in the parameter's memory order: a fused update walks both in step, whatever their strides say."""
    return torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
