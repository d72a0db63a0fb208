"""Teachers: stored logits, a table of logits, a live network, or several of these combined."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from noisyteacher.data import Batch, Split
from noisyteacher.device import PROBE_BATCH, inference, precise
from noisyteacher.distributed import world
from noisyteacher.errors import MismatchError, NoisyTeacherError, TrainingError, UsageError
from noisyteacher.io.files import sha256
from noisyteacher.io.tensors import tensor_bytes
from noisyteacher.models import as_classifier, logits_of, weights_fingerprint
from noisyteacher.noise import Noise, check_logits, check_noisy_logits, perturb, unit_noise_at
from noisyteacher.rng import derive_seed, generator
from noisyteacher.store import LogitStore
from noisyteacher.text import moved_classes, same_names, unknown_name

STEADY = 0.01
"""Largest difference between two forward passes of one image, in units of 1 + max |logit|: bf16 stays below it."""
LONE_ROWS = 4
"""Images that are also passed through a network alone."""


@dataclass(frozen=True)
class StoredTeacher:
    """A logit store as a teacher: exact targets for every stored view, joined by row number."""

    store: LogitStore

    @property
    def key(self) -> Hashable:
        """Equal for teachers that give the same logits for a batch."""
        return "store", self.store.digest

    def logits(self, batch: Batch) -> Tensor:
        """Clean teacher logits `[B, K]` for the batch, without gradient, on whatever device they come from."""
        if len(batch.views) == 1:
            return self.store.logits(batch.views[0], batch.rows)
        return self.store.logits(self.store.view_indices(batch.views)[batch.which.cpu()], batch.rows)

    def check(self, split: Split, views: tuple[str, ...], classes: int) -> None:
        """Raises MismatchError when this teacher cannot serve the split, the views or the classes."""
        self.store.view_indices(views)
        self.store.check(data=split.fingerprint)
        _check_classes(self.store.classes, classes, f"the store {self.store.path}")
        ours, stated = list(split.class_names), self.store.meta.get("class_names")
        numbers = list(map(str, range(classes)))  # the names of classes without one
        known = isinstance(stated, list) and numbers not in (stated, ours)
        if known and (moved := moved_classes(same_names(stated or [], ours), ours, "the store")):
            raise MismatchError(
                f"{self.store.path}: its classes are in another order: {moved}: load the data with the classes of "
                "the store, or extract again with --overwrite (in Python overwrite=True)"
            )

    def describe(self) -> dict[str, object]:
        """What this teacher is, for JSON."""
        return {"store": self.store.digest}


@dataclass(frozen=True)
class TableTeacher:
    """A tensor of logits `[N, K]`, row r for row r of the split, as a teacher of clean images."""

    table: Tensor

    @property
    def key(self) -> Hashable:
        return "table", self.table.data_ptr(), self.table.shape, self.table.stride(), self.table.dtype

    def logits(self, batch: Batch) -> Tensor:
        return self.table[batch.rows.to(self.table.device)]

    def check(self, split: Split, views: tuple[str, ...], classes: int) -> None:
        check_logits(self.table)
        if len(self.table) != len(split):
            raise MismatchError(f"a table of {len(self.table)} rows of logits for a split of {len(split)} rows")
        if views != ("clean",):
            raise MismatchError(f"a table of logits serves clean images only, the student trains on {', '.join(views)}")
        _check_classes(self.table.shape[1], classes, "the table of logits")

    def describe(self) -> dict[str, object]:
        return {"table": list(self.table.shape), "sha256": sha256([tensor_bytes(self.table)])}


class LiveTeacher:
    """A network as a teacher: it runs at every step, in eval mode and without gradients."""

    def __init__(self, module: nn.Module) -> None:
        self.module = as_classifier(module)
        self.takes_channels_last = True

    @property
    def key(self) -> Hashable:
        return "live", id(self.module)

    def logits(self, batch: Batch) -> Tensor:
        images = batch.images if self.takes_channels_last else batch.images.contiguous()
        logits = frozen_forward(self.module, images)
        check_logits(logits)
        return logits

    def check(self, split: Split, views: tuple[str, ...], classes: int) -> None:
        images = split.first_images(PROBE_BATCH)
        try:
            with inference(self.module) as device:
                logits = check_steady(lambda rows: self.module(images[rows].to(device)), torch.arange(len(images)))
        except NoisyTeacherError:
            raise
        except Exception as error:  # the network may be the user's
            dtypes = ", ".join(sorted({str(parameter.dtype) for parameter in self.module.parameters()}))
            raise MismatchError(
                f"the teacher failed on an image of shape {split.input_shape}: {type(error).__name__}: {error}; images "
                f"reach it as float32, its weights are {dtypes or 'none'}: build it for this shape, and call .float()"
            ) from error
        _check_classes(logits.shape[1], classes, "the teacher")
        try:
            with inference(self.module) as device:
                self.module(images[:1].to(device, memory_format=torch.channels_last))
        except Exception:  # it flattens by view, as a student that is trained in channels last need not
            self.takes_channels_last = False

    def describe(self) -> dict[str, object]:
        return {"live": self.module.architecture, "weights": weights_fingerprint(self.module)}


def check_steady(logits_of: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """The logits `[B, K]` of the rows. Raises MismatchError when an image's depend on the call or on its batch.

    logits_of: the logits of row numbers int64 `[B]`. The batch is compared with its first half, and with some
    of its rows alone: statistics of a large batch hardly differ from those of half of it.
    """
    whole, count = logits_of(rows), len(rows)
    alone = torch.linspace(0, count - 1, min(count, LONE_ROWS)).long()
    for part in (torch.arange(max(1, count // 2)), *torch.split(alone, 1)):
        difference = float((logits_of(rows[part]) - whole[part]).abs().max())
        if difference > STEADY * (1 + float(whole[part].abs().max())):  # those that are not finite are refused later
            raise MismatchError(
                f"the teacher's logits for the same images differ by {difference:.3g} between two calls, in eval mode: "
                "dropout called as a function, or batch norm without running statistics; make them obey eval() first"
            )
    return whole


def frozen_forward(module: nn.Module, images: Tensor) -> Tensor:
    """The module's logits in eval mode and without gradients; the module follows the images' device."""
    first = next(module.parameters(), None)
    if first is not None and first.device != images.device:
        module.to(images.device)
    in_eval = inference(module) if any(part.training for part in module.modules()) else torch.no_grad()
    with in_eval:
        logits: Tensor = module(images)
    return logits.float()


def _check_classes(teacher: int, student: int, name: str) -> None:
    if teacher != student:
        raise MismatchError(f"{name} has {teacher} class(es), the student {student}: both need the same ones, in order")


def geometric_logits(logits: Tensor) -> Tensor:
    """The signed geometric mean over teachers, `[M, B, K]` to `[B, K]`: 0 where signs differ.

    Section 5.4 of the paper takes the geometric mean, which is undefined for negative logits; this is continuous.
    """
    sign = logits.sign()
    agreed = (sign == sign[0]).all(0)
    size = logits.abs().clamp(min=torch.finfo(logits.dtype).tiny).log().mean(0).exp()
    return torch.where(agreed, sign[0] * size, torch.zeros_like(size))


COMBINE: dict[str, Callable[[Tensor, int | Tensor], Tensor]] = {
    "mean": lambda logits, pick: logits.mean(0),
    "geometric": lambda logits, pick: geometric_logits(logits),
    "pick": lambda logits, pick: logits[pick],
    "pick-row": lambda logits, pick: logits[pick, torch.arange(logits.shape[1], device=logits.device)],
}
"""Name -> function from the logits of M teachers `[M, B, K]`, and the index of one or of one per row `[B]`, to combined
logits `[B, K]`."""


@dataclass(frozen=True)
class SeveralTeachers:
    """Several teachers as one: their `mean` or `geometric` mean, or one drawn per batch (`pick`) or `pick-row`."""

    teachers: tuple[Teacher, ...]
    combine: str = "mean"

    def __post_init__(self) -> None:
        if self.combine not in COMBINE:
            raise unknown_name("way to combine teachers", self.combine, COMBINE)

    @property
    def key(self) -> Hashable:
        return self.combine, *(teacher.key for teacher in self.teachers)

    def logits(self, batch: Batch) -> Tensor:
        if self.combine == "pick":
            pick = derive_seed(batch.seed, "teacher", batch.step) % len(self.teachers)
            return self.teachers[pick].logits(batch)
        logits = torch.stack([teacher.logits(batch).to(batch.images.device) for teacher in self.teachers])
        picks: int | Tensor = 0
        if self.combine == "pick-row":
            draws = generator(batch.seed, "teacher", batch.step)
            picks = torch.randint(len(self.teachers), (batch.whole_size,), generator=draws)[batch.share]
            picks = picks.to(logits.device)
        return COMBINE[self.combine](logits, picks)

    def check(self, split: Split, views: tuple[str, ...], classes: int) -> None:
        for teacher in self.teachers:
            teacher.check(split, views, classes)

    def describe(self) -> dict[str, object]:
        return {"combine": self.combine, "teachers": [teacher.describe() for teacher in self.teachers]}


Teacher = StoredTeacher | TableTeacher | LiveTeacher | SeveralTeachers
"""A source of clean logits for batches of a split; `StoredTeacher` says what all of them have."""


def _members(teacher: Teacher) -> list[Teacher]:
    """The teacher itself, or the teachers it combines, flattened."""
    if not isinstance(teacher, SeveralTeachers):
        return [teacher]
    return [leaf for member in teacher.teachers for leaf in _members(member)]


def logits_at(
    teacher: Teacher, split: Split, rows: Tensor, view: str = "clean", device: str | torch.device = "cpu"
) -> Tensor:
    """The teacher's logits `[B, K]` for rows of the split under a view, as in the first step of a training there."""
    which = torch.zeros(len(rows), dtype=torch.int64)
    images = split.images_at(rows, view).to(device)
    return teacher.logits(Batch(images, None, rows, (view,), which, 0, 0, len(split)))


def logit_rms(teacher: Teacher, split: Split, view: str, device: str | torch.device = "cpu") -> float:
    """The root mean square of the teacher's logits for all rows of the split under this view; live networks run on the
    device. Raises TrainingError for logits that are all 0.
    """
    if isinstance(teacher, SeveralTeachers) and teacher.combine.startswith("pick"):  # each is as likely
        sizes = [logit_rms(member, split, view, device) for member in teacher.teachers]
        return math.sqrt(sum(size**2 for size in sizes) / len(sizes))
    total, count = 0.0, 0
    with precise("fp32", torch.device(device)):
        for rows in torch.split(torch.arange(len(split)), 512):
            logits = logits_at(teacher, split, rows, view, device).cpu()
            total += float(logits.double().square().sum())
            count += logits.numel()
    if not total:
        raise TrainingError("the teacher's logits are all 0: there is no scale to divide them by")
    return math.sqrt(total / count)


def live_networks(teacher: Teacher) -> tuple[nn.Module, ...]:
    """The networks of the teacher that run at every step."""
    return tuple(member.module for member in _members(teacher) if isinstance(member, LiveTeacher))


def check_live(teacher: Teacher, augment: str) -> None:
    """Raises MismatchError for stored logits with images that are augmented at every step: they belong to others."""
    if len(live_networks(teacher)) < len(_members(teacher)):
        raise MismatchError(
            f"augment={augment!r} with stored logits: a store would serve targets for images the teacher never saw; "
            "give the teacher itself, which then runs at every step, or train on views such as mirror"
        )


def as_teacher(source: object, combine: str = "mean") -> Teacher:
    """The teacher of a LogitStore or its folder, a tensor `[N, K]`, an nn.Module, or a list. Raises UsageError."""
    if isinstance(source, str) or hasattr(source, "__fspath__"):
        source = LogitStore.open(source)
    if isinstance(source, LogitStore):
        return StoredTeacher(source)
    if isinstance(source, Tensor):
        return TableTeacher(source.detach())
    if isinstance(source, nn.Module):
        return LiveTeacher(source)
    if isinstance(source, Sequence) and source:
        return SeveralTeachers(tuple(as_teacher(teacher) for teacher in source), combine)
    raise UsageError(
        f"a teacher is a LogitStore (or its folder), a tensor of logits [N, K], an nn.Module, or a list of these; "
        f"given: {type(source).__name__}"
    )


_COUNTING = threading.Lock()
"""Held while a NoisyTeacher takes the number of its call; a lock of its own could not be copied with it."""


class NoisyTeacher(nn.Module):
    """A module that returns the teacher's logits with noise on them, for any training loop.

    The teacher is put in eval mode and stays there, without gradients. Step n sees the draw of the stream (seed,
    "noise", n); the counter is a buffer, so a restored state dict continues where it stopped. In a process group each
    rank above 0 draws from a seed of its own, (seed, "rank", rank), but for frozen noise, which belongs to rows.
    Threads may share it: each call takes the next n. `total_rows` is needed
    for frozen noise, `total_steps` for noise with a schedule. Raises UsageError for wrong arguments, MismatchError for
    frozen noise without row numbers and a schedule without `total_steps`.
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
        lengths = [length for length in (total_rows, total_steps) if length is not None]
        if type(seed) is not int or any(type(length) is not int or length < 1 for length in lengths):
            raise UsageError(f"{seed=}, {total_rows=}, {total_steps=}: expected whole numbers, of rows and steps >= 1")
        if noise.target != "teacher" or noise.draws > 1 or noise.kind == "sampled":
            raise UsageError(
                f"NoisyTeacher returns one draw on the teacher's logits, the noise says target={noise.target!r}, "
                f"draws={noise.draws}, kind={noise.kind!r}: use nt.perturb in the loop, or nt.distil"
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
            noise, rank, (batch, classes) = self.noise, world().rank, logits.shape
            seed = derive_seed(self.seed, "rank", rank) if rank and not noise.frozen else self.seed
            with _COUNTING:
                step = int(self.calls)
                unit_noise = unit_noise_at(
                    noise, seed=seed, step=step, batch=batch, classes=classes, rows=rows, total_rows=self.total_rows
                )
                sigma = noise.sigma_at(step, self.total_steps)
                self.calls = self.calls + 1  # not in place, which inference mode would forbid
            noisy = perturb(logits, sigma=sigma, alpha=noise.alpha, kind=noise.kind, unit_noise=unit_noise)
            check_noisy_logits(noisy)
            return noisy
