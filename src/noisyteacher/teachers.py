"""Teachers: stored logits, a table of logits, a live network, or several of these combined."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from noisyteacher.data import Batch, Split
from noisyteacher.errors import MismatchError, UsageError
from noisyteacher.io.files import sha256
from noisyteacher.io.tensors import tensor_bytes
from noisyteacher.models import as_classifier, logits_of, weights_fingerprint
from noisyteacher.noise import Noise, check_logits, perturb, unit_noise_at
from noisyteacher.rng import derive
from noisyteacher.store import LogitStore
from noisyteacher.text import unknown_name


class Teacher(Protocol):
    """A source of clean logits for batches of a split."""

    @property
    def key(self) -> Hashable:
        """Equal for teachers that give the same logits for a batch."""
        ...

    def logits(self, batch: Batch) -> Tensor:
        """Clean teacher logits `[B, K]` for the batch, without gradient, on whatever device they come from."""
        ...

    def check(self, split: Split, views: tuple[str, ...], classes: int) -> None:
        """Raises MismatchError when this teacher cannot serve the split, the views or the classes."""
        ...

    def describe(self) -> dict[str, Any]:
        """A JSON-able record of what this teacher is."""
        ...


@dataclass(frozen=True)
class StoredTeacher:
    """A logit store as a teacher: exact targets for every stored view, joined by row number."""

    store: LogitStore

    @property
    def key(self) -> Hashable:
        """The store's digest."""
        return "store", self.store.digest

    def logits(self, batch: Batch) -> Tensor:
        """The stored logits of the batch's rows under each row's own view, on the CPU."""
        which = self.store.view_indices(batch.views)[batch.which.cpu()]
        return self.store.logits(which, batch.rows.cpu())

    def check(self, split: Split, views: tuple[str, ...], classes: int) -> None:
        """The store must belong to these images, hold every view and have as many classes as the student."""
        self.store.view_indices(views)
        self.store.check(data=split.fingerprint)
        _same_classes(self.store.classes, classes, f"the store {self.store.path}")

    def describe(self) -> dict[str, Any]:
        """The store's digest: the same wherever the store lies."""
        return {"store": self.store.digest}


@dataclass(frozen=True)
class TableTeacher:
    """A tensor of logits `[N, K]`, row r for row r of the split, as a teacher."""

    table: Tensor

    @property
    def key(self) -> Hashable:
        """Where the table lies in memory."""
        return "table", self.table.data_ptr(), self.table.shape

    def logits(self, batch: Batch) -> Tensor:
        """The table's rows of the batch, on the table's device."""
        return self.table[batch.rows.to(self.table.device)]

    def check(self, split: Split, views: tuple[str, ...], classes: int) -> None:
        """The table must be finite, cover the split's rows, and can serve clean images only."""
        check_logits(self.table)
        if len(self.table) != len(split):
            raise MismatchError(f"a table of {len(self.table)} rows of logits for a split of {len(split)} rows")
        if views != ("clean",):
            raise MismatchError(f"a table of logits serves clean images only, the student trains on {', '.join(views)}")
        _same_classes(self.table.shape[1], classes, "the table of logits")

    def describe(self) -> dict[str, Any]:
        """The table's shape and the SHA-256 of its bytes."""
        return {"table": list(self.table.shape), "sha256": sha256([tensor_bytes(self.table)])}


class LiveTeacher:
    """A network as a teacher: it runs at every step, in eval mode and without gradients."""

    def __init__(self, module: nn.Module) -> None:
        self.module = as_classifier(module)

    @property
    def key(self) -> Hashable:
        """The network itself: its weights may change."""
        return "live", id(self.module)

    def logits(self, batch: Batch) -> Tensor:
        """The network's logits for the batch's images, in eval mode. Raises TrainingError if they are not finite."""
        logits = frozen_forward(self.module, batch.images)
        check_logits(logits)
        return logits

    def check(self, split: Split, views: tuple[str, ...], classes: int) -> None:
        """One image goes through: the network must take its shape and give as many classes as the student."""
        image = split.images_at(torch.zeros(1, dtype=torch.int64))
        device = next((p.device for p in self.module.parameters()), torch.device("cpu"))
        try:
            logits = frozen_forward(self.module, image.to(device))
        except RuntimeError as error:
            kinds = ", ".join(sorted({str(parameter.dtype) for parameter in self.module.parameters()}))
            raise MismatchError(
                f"the teacher failed on an image of shape {split.input_shape}: {error}; images reach it as float32, "
                f"its weights are {kinds or 'none'}: build it for this shape, and call .float() on it"
            ) from error
        _same_classes(logits.shape[1], classes, "the teacher")

    def describe(self) -> dict[str, Any]:
        """The network's architecture and the fingerprint of its weights."""
        return {"live": self.module.architecture, "weights": weights_fingerprint(self.module)}


def frozen_forward(module: nn.Module, images: Tensor) -> Tensor:
    """The module's logits in eval mode and without gradients; the module follows the images' device."""
    if any(part.training for part in module.modules()):
        module.eval()
    first = next(module.parameters(), None)
    if first is not None and first.device != images.device:
        module.to(images.device)
    with torch.no_grad():
        logits: Tensor = module(images)
    return logits.float()


def mean_logits(logits: Tensor, pick: int) -> Tensor:
    """The arithmetic mean over teachers: `[M, B, K]` to `[B, K]`."""
    return logits.mean(0)


def geometric_logits(logits: Tensor, pick: int) -> Tensor:
    """The signed geometric mean over teachers: `[M, B, K]` to `[B, K]`.

    Section 5.4 of the paper averages teachers by the geometric mean of their logits, which is undefined for negative
    ones. Here: where all M logits have one sign, that sign times (prod |z|)^(1/M); where signs differ, 0. That is
    continuous (a factor that crosses zero takes the mean through zero) and equals the paper's for positive logits.
    """
    sign = logits.sign()
    agreed = (sign == sign[0]).all(0)
    size = logits.abs().clamp(min=torch.finfo(logits.dtype).tiny).log().mean(0).exp()
    return torch.where(agreed, sign[0] * size, torch.zeros_like(size))


def picked_logits(logits: Tensor, pick: int) -> Tensor:
    """The logits of one teacher for the whole batch: `[M, B, K]` to `[B, K]`."""
    return logits[pick]


COMBINE: dict[str, Callable[[Tensor, int], Tensor]] = {
    "mean": mean_logits,
    "geometric": geometric_logits,
    "pick": picked_logits,
}


@dataclass(frozen=True)
class SeveralTeachers:
    """Several teachers as one: their `mean`, their `geometric` mean, or one of them `pick`ed for every batch."""

    teachers: tuple[Teacher, ...]
    combine: str = "mean"

    def __post_init__(self) -> None:
        if self.combine not in COMBINE:
            raise unknown_name("way to combine teachers", self.combine, COMBINE)

    @property
    def key(self) -> Hashable:
        """The teachers' keys and how they are combined."""
        return self.combine, *(teacher.key for teacher in self.teachers)

    def logits(self, batch: Batch) -> Tensor:
        """The combined logits; `pick` draws the teacher from the stream (seed, "teacher", step)."""
        if self.combine == "pick":
            pick = derive(batch.seed, "teacher", batch.step) % len(self.teachers)
            return self.teachers[pick].logits(batch)
        logits = [teacher.logits(batch).to(batch.images.device) for teacher in self.teachers]
        return COMBINE[self.combine](torch.stack(logits), 0)

    def check(self, split: Split, views: tuple[str, ...], classes: int) -> None:
        """Every teacher must serve."""
        for teacher in self.teachers:
            teacher.check(split, views, classes)

    def describe(self) -> dict[str, Any]:
        """All teachers and how they are combined."""
        return {"combine": self.combine, "teachers": [teacher.describe() for teacher in self.teachers]}


def live_networks(teacher: Teacher) -> tuple[nn.Module, ...]:
    """The networks of the teacher that run at every step."""
    return tuple(part.module for part in _parts(teacher) if isinstance(part, LiveTeacher))


def refuse_stored(teacher: Teacher, augment: str) -> None:
    """Raises MismatchError for stored logits with images that are augmented at every step: the targets would be those
    of other images.
    """
    if any(isinstance(part, (StoredTeacher, TableTeacher)) for part in _parts(teacher)):
        raise MismatchError(
            f"augment={augment!r} with stored logits: a store would serve targets for images the teacher never saw; "
            "give the teacher itself, which then runs at every step, or train on views such as mirror"
        )


def _parts(teacher: Teacher) -> tuple[Teacher, ...]:
    """The teacher itself, or the teachers it combines, flattened."""
    if not isinstance(teacher, SeveralTeachers):
        return (teacher,)
    return tuple(part for member in teacher.teachers for part in _parts(member))


def as_teacher(source: object, combine: str = "mean") -> Teacher:
    """The teacher of a LogitStore, a folder with one, a tensor `[N, K]`, an nn.Module, or a list of these.

    Raises UsageError for anything else.
    """
    if isinstance(source, LogitStore):
        return StoredTeacher(source)
    if isinstance(source, Tensor):
        return TableTeacher(source.detach())
    if isinstance(source, nn.Module):
        return LiveTeacher(source)
    if isinstance(source, Sequence) and not isinstance(source, str) and source:
        return SeveralTeachers(tuple(as_teacher(teacher) for teacher in source), combine)
    if isinstance(source, str) or hasattr(source, "__fspath__"):
        return StoredTeacher(LogitStore.open(source))
    raise UsageError(
        f"a teacher is a LogitStore (or its folder), a tensor of logits [N, K], an nn.Module, or a list of these; "
        f"given: {type(source).__name__}"
    )


class NoisyTeacher(nn.Module):
    """A module that returns the teacher's logits with noise on them, for any training loop.

    The teacher is put in eval mode and stays there, its parameters stop requiring gradients, and the forward pass runs
    without them. Step n sees the draw of the stream (seed, "noise", n): the counter is a buffer, so a restored state
    dict continues where it stopped. Inputs are whatever the teacher takes; output `[B, K]`.
    `total_rows` is needed for frozen noise, `total_steps` for noise with a schedule.
    Raises UsageError for wrong arguments and for noise meant for the student, MismatchError for frozen noise
    without row numbers of the split, one per image, and for a schedule without `total_steps`.
    Source: Sau & Balasubramanian 2016, section 3.3, Algorithm 1.
    """

    calls: Tensor

    def __init__(
        self,
        teacher: nn.Module,
        noise: Noise,
        *,
        seed: int = 0,
        total_rows: int | None = None,
        total_steps: int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(teacher, nn.Module):
            raise UsageError(f"teacher is a {type(teacher).__name__}: expected an nn.Module (nt.build_model)")
        if not isinstance(noise, Noise):
            raise UsageError(f"noise is a {type(noise).__name__}: expected an nt.Noise")
        if not _whole(seed):
            raise UsageError(f"seed={seed!r}: expected a whole number")
        for name, value in (("total_rows", total_rows), ("total_steps", total_steps)):
            if value is not None and not (_whole(value) and value > 0):
                raise UsageError(f"{name}={value!r}: expected a whole number >= 1, or None")
        if noise.target != "teacher":
            raise UsageError(
                f"NoisyTeacher perturbs the teacher's logits, the noise says target={noise.target!r}: "
                "perturb the student's logits in the loop with nt.perturb"
            )
        self.teacher = teacher.requires_grad_(False)
        self.noise, self.seed, self.total_rows, self.total_steps = noise, seed, total_rows, total_steps
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.eval()

    def train(self, mode: bool = True) -> NoisyTeacher:
        """No effect: the teacher stays in eval mode, because one with dropout on is a different teacher."""
        super().train(False)
        return self

    def forward(self, *inputs: Any, rows: Tensor | None = None, **named: Any) -> Tensor:
        """Perturbed logits `[B, K]`; `rows` int64 `[B]` is needed for frozen noise only."""
        self.teacher.eval()
        with torch.no_grad():
            logits = logits_of(self.teacher(*inputs, **named)).float()
            check_logits(logits)
            noise, step = self.noise, int(self.calls)
            unit_noise = unit_noise_at(
                noise,
                seed=self.seed,
                step=step,
                batch=logits.shape[0],
                classes=logits.shape[1],
                rows=rows,
                total_rows=self.total_rows,
            )
            sigma = noise.sigma_at(step, self.total_steps)
            noisy = perturb(logits, sigma=sigma, alpha=noise.alpha, kind=noise.kind, unit_noise=unit_noise)
            self.calls += 1
            return noisy


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _same_classes(teacher: int, student: int, name: str) -> None:
    if teacher != student:
        raise MismatchError(
            f"{name} has {teacher} class{'es' if teacher != 1 else ''}, the student {student}: both must have the same "
            "classes in the same order"
        )
