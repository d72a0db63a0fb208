"""Shared by several test modules: small splits and networks, noise as a training draws it, comparisons, forks."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import noisyteacher as nt
from noisyteacher.models import Classifier, as_classifier
from noisyteacher.noise import UnitNoise, sample_unit_noise
from noisyteacher.store import Plan, Shard, StoreMeta, write_store
from noisyteacher.train import History, trainer
from noisyteacher.train.state import Student

Call = Callable[..., tuple[int, str, str]]
"""The fixture `call`: words of a command line to exit code, stdout, stderr."""
SHAPE = (1, 8, 8)
SETTINGS: dict[str, Any] = {"epochs": 3, "batch_size": 32, "precision": "fp32", "device": "cpu", "lr": 3e-3}
NOISES: list[nt.Noise | None] = [
    None,
    nt.Noise(sigma=0.5, alpha=0.5),
    nt.Noise(sigma=0.9, alpha=0.3),
    nt.Noise(sigma=(0.1, 0.8), alpha=0.7),
    nt.Noise(sigma=0.5, alpha=0.5, draw="row"),
    nt.Noise(sigma=0.5, alpha=0.5, draw="scalar", distribution="uniform"),
    nt.Noise(sigma=0.5, alpha=0.5, target="student"),
    nt.Noise(sigma=0.5, alpha=0.5, kind="additive", schedule="cosine"),
    nt.Noise(sigma=0.5, alpha=0.5, frozen=True, draw="row", distribution="laplace"),
    nt.Noise(sigma=0.5, alpha=0.5, draw="row", draws=3),
    nt.Noise(sigma=0.3, alpha=0.5, draw="row", kind="mix", draws=2),
]
"""A noise of every kind."""


def blobs(rows: int = 96, role: str = "train", classes: int = 3, seed: int = 0) -> nt.Split:
    """Images whose brightest quarter is the class: learnable in a few steps."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % classes
    images = torch.randint(0, 120, (rows, 1, 8, 8), generator=generator, dtype=torch.uint8)
    for row, label in enumerate(labels.tolist()):
        images[row, 0, 2 * label : 2 * label + 2] += 100
    names = tuple("abcdefgh"[:classes])
    return nt.Split(images, labels, torch.arange(rows), role, "blobs", names)


def labels_of(split: nt.Split) -> Tensor:
    """The labels of all rows of a labelled split."""
    return split.labels_at(torch.arange(len(split)))


def table(rows: int = 96) -> Tensor:
    """Teacher logits for `blobs`, drawn at random."""
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(8)) * 3


def small(dropout: bool = True) -> nn.Module:
    """A network for `blobs` with convolutions, batch norm and dropout."""
    torch.manual_seed(5)
    drop = nn.Dropout(0.3 if dropout else 0.0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 3, padding=1), nn.Flatten(), nn.Linear(72, 16), nn.BatchNorm1d(16),
        nn.ReLU(), drop, nn.Linear(16, 3),
    )  # fmt: skip


def network(seed: int, norm: bool = True) -> Classifier:
    """A convolutional network for `blobs`. No bias before a norm: its gradient would be rounding alone, which Adam
    scales up like any other.
    """
    torch.manual_seed(seed)
    layers = [
        nn.Conv2d(1, 4, 3, bias=not norm),
        *([nn.BatchNorm2d(4)] if norm else []),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
    ]
    layers.insert(-2, nn.Conv2d(4, 4, 3, padding=1))  # of several channels: its kernels can lie in two orders
    return as_classifier(nn.Sequential(*layers, nn.Linear(36, 3)), input_shape=SHAPE)


SLOWNESS = float(os.environ.get("NOISYTEACHER_TEST_SLOWNESS", "1"))
"""Multiplies every time limit of the tests, for slow machines."""
PATIENCE = 240 * SLOWNESS
"""Seconds that a test waits for another process."""


def wait_until(condition: Callable[[], object], pause: float = 0.01) -> None:
    """Wait until the condition holds; AssertionError when the patience is over."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(pause)


class Fork:
    """An action in a fork of this process, which has torch loaded already, so that nothing is imported again.

    output: a path without a suffix; `.out` and `.err` beside it take stdout and stderr of the fork. environment: added
    to its variables. It exits with 70 when the action raises anything but SystemExit, and 0 when it returns.
    """

    def __init__(self, action: Callable[[], object], output: Path, environment: dict[str, str] | None = None) -> None:
        self.output = output
        self.code: int | None = None
        for suffix in ("out", "err"):
            Path(f"{output}.{suffix}").touch()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(action, environment or {})

    def _run(self, action: Callable[[], object], environment: dict[str, str]) -> None:
        code = 70
        try:
            for number, suffix in ((1, "out"), (2, "err")):
                os.dup2(os.open(f"{self.output}.{suffix}", os.O_WRONLY), number)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, closefd=False) for number in (1, 2))
            faulthandler.register(signal.SIGUSR1, file=2)
            os.environ.update(environment)
            warnings.resetwarnings()
            torch.set_num_threads(1)
            action()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError):
                    stream.flush()
            os._exit(code)

    @property
    def out(self) -> str:
        """What it has printed so far."""
        return Path(f"{self.output}.out").read_text()

    @property
    def err(self) -> str:
        """What it has written to stderr so far."""
        return Path(f"{self.output}.err").read_text()

    def ended(self) -> bool:
        """Whether it has ended; `code` is then its exit code, or minus the signal that ended it."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is not None

    def wait(self) -> int:
        """Its exit code, once it has ended; when the patience is over it is killed, and the error has its stacks."""
        try:
            wait_until(self.ended, 0.002)
        except AssertionError as error:
            self.kill(signal.SIGUSR1)
            time.sleep(1)
            raise AssertionError(f"{error}: {self.err}") from error
        finally:
            if self.code is None:
                self.kill(signal.SIGKILL)
                os.waitpid(self.pid, 0)
        assert self.code is not None
        return self.code

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)


def run_command(*words: object) -> None:
    """Run the command line in this process, which it ends with SystemExit: for forks."""
    from noisyteacher import cli

    sys.argv = ["noisyteacher", *map(str, words)]
    cli.main()


def part(model: nn.Module, path: str) -> Any:
    """The submodule at this path, `network.fc1`; without a type, as the attributes of a layer depend on its class."""
    return model.get_submodule(path)


def difference(first: nn.Module, second: nn.Module) -> float:
    """The largest difference between two models' tensors."""
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)


def lines(history: object) -> list[dict[str, Any]]:
    """The metrics of a History without times."""
    assert isinstance(history, History), history
    return [{name: value for name, value in line.items() if name != "seconds"} for line in history.epochs]


def step_by_step(model: Any, *arguments: Any, **options: Any) -> History:
    """The history of a training without replayed steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "can_replay", lambda students, plan: False)
        return nt.fit(model, *arguments, **options)


class InfiniteSlope(nn.Module):
    """A root whose slope becomes infinite when a batch holds a white image; the loss stays finite."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(64, 3)

    def forward(self, images: Tensor) -> Tensor:
        white = (images.amin(dim=(1, 2, 3)) > 0.99).any()
        root = (self.inner.bias * torch.where(white, 0.0, 1.0)).abs().sqrt()
        logits: Tensor = self.inner(images.flatten(1)) + root
        return logits


class Draw(NamedTuple):
    """Selected samples, bool `[B, 1]`, and scaled noise `[B or 1, K or 1]`."""

    selected: Tensor
    xi: Tensor


def draw_of(noise: nt.Noise, batch: int, classes: int, generator: torch.Generator) -> Draw:
    """What `perturb` draws for this noise and this generator."""
    return scale(noise, sample_unit_noise(noise.draw, noise.distribution, batch, classes, generator))


def scale(noise: nt.Noise, unit_noise: UnitNoise) -> Draw:
    """Unit noise at this noise's sigma and alpha."""
    return Draw(unit_noise.selected(noise.alpha), unit_noise.xi(noise.sigma))


def perturbed(logits: Tensor, noise: nt.Noise, generator: torch.Generator) -> Tensor:
    """The logits under this noise, drawn from this generator."""
    return nt.perturb(
        logits, sigma=noise.sigma, alpha=noise.alpha, draw=noise.draw, kind=noise.kind,
        distribution=noise.distribution, generator=generator,
    )  # fmt: skip


def student_with(
    model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path, identity: dict[str, Any], **state: Any
) -> Student:
    """A student in the middle of a training, to be saved to or restored from this run folder."""
    return Student(model, optimizer, nt.supervised(), 0, identity, folder=folder, **state)  # type: ignore[arg-type]


def write_logits(folder: Path, plan: Plan, logits: Tensor, meta: StoreMeta | None = None) -> nt.LogitStore:
    """A store of these logits `[V, N, K]`."""

    def blocks_of(missing: Sequence[Shard]) -> Generator[Tensor]:
        for shard in missing:
            yield logits[:, shard.first_row : shard.first_row + shard.rows]

    return write_store(folder, plan, blocks_of, meta)


SWEEP_SETTINGS: dict[str, Any] = {
    "data": {"limit": 60},
    "teacher": {"epochs": 1, "preset": "paper"},
    "student": {"epochs": 1, "batch_size": 30, "preset": "paper"},
    "noise": {"sigma": 0.0},
    "run": {"threads": 1},
}
"""Base settings of a sweep that takes seconds."""


def sweep_settings(folder: Path, **parts: Any) -> dict[str, Any]:
    """SWEEP_SETTINGS with run folders in this folder."""
    return {**SWEEP_SETTINGS, "run": {**SWEEP_SETTINGS["run"], "output_dir": str(folder)}, **parts}


def largest_difference(first: Iterable[nn.Module], second: Iterable[nn.Module]) -> float:
    """The largest difference between the tensors of two lists of models, pair by pair."""
    return max(difference(a, b) for a, b in zip(first, second, strict=True))
