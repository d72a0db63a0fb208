"""Many trainings of one architecture as one: common kernels where each alone would leave a GPU idle."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap

from noisyteacher.checkpoint import signals_held
from noisyteacher.data import Batch, Split
from noisyteacher.device import AUTO, precise, precision_context
from noisyteacher.errors import AskedWronglyError, NoisyTeacherError
from noisyteacher.files import make_folder
from noisyteacher.history import History
from noisyteacher.objectives import Parts, loss_and_numbers
from noisyteacher.ranks import place
from noisyteacher.rng import kept_draws
from noisyteacher.train.fitting import found_done, prepared
from noisyteacher.train.loop import Loop
from noisyteacher.train.stack import Stack, refuse_to_stack

Outcome = History | NoisyTeacherError
HALF = (torch.float16, torch.bfloat16)


def fit_many(
    models: Sequence[nn.Module],
    split: Split,
    objectives: Sequence[Callable[[Tensor, Batch], Any]],
    *,
    seeds: Sequence[int],
    val: Split | None = None,
    val_teacher: object = None,
    epochs: int = 20,
    batch_size: int = 64,
    optimizer: str = "adam",
    lr: float = 1e-3,
    momentum: float | None = None,
    weight_decay: float = 0.0,
    schedule: str = "linear",
    warmup_epochs: float = 0.0,
    views: str | tuple[str, ...] = "clean",
    every_view: bool = False,
    precision: str = AUTO,
    patience: int | None = None,
    keep: str | None = None,
    device: str = "auto",
    runs: Sequence[str | Path] | None = None,
    resume: bool = False,
    checkpoint_every_s: float = 30.0,
    tensorboard: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Outcome]:
    """What `fit` does for each model with its objective and seed, in common steps: one outcome per model, in order.

    An outcome is the History that `fit` would return, equal step by step up to rounding, or the error of this package
    that ended this one training; the others go on. The models have one architecture; they differ in their weights,
    seeds and objectives, each of which takes logits `[B, K]` and the batch. Options are those of `fit`, for all alike;
    `runs` are their run folders. `seconds` is each one's share of the common time. `progress` is told the step and the
    steps of all training after every one. Worth it on a GPU that one small student does not fill; on a CPU two
    processes are faster (docs/performance.md).
    Raises AskedWronglyError for models that cannot be trained as one (`train/stack.py`), and in a group of processes.
    """
    if place().size > 1:
        raise AskedWronglyError("fit_many trains in one process: several processes are one training (fit)")
    folders: list[Path | None] = [None] * len(models) if runs is None else [Path(one) for one in runs]
    if not len(models) == len(objectives) == len(seeds) == len(folders) or not models:
        raise AskedWronglyError(
            f"{len(models)} models, {len(objectives)} objectives, {len(seeds)} seeds and {len(folders)} runs: expected "
            "as many of each, at least one"
        )
    if runs is not None and len({os.path.realpath(one) for one in runs}) < len(models):
        raise AskedWronglyError("two of the runs are one folder: give each training its own")
    loops = [
        prepared(
            model, split, objective, val=val, val_teacher=val_teacher, epochs=epochs, batch_size=batch_size,
            optimizer=optimizer, lr=lr, momentum=momentum, weight_decay=weight_decay, schedule=schedule,
            warmup_epochs=warmup_epochs, views=views, every_view=every_view, augment="none", precision=precision,
            patience=patience, keep=keep, seed=seed, device=device, run=folder, resume=resume, tensorboard=tensorboard,
        )
        for model, objective, seed, folder in zip(models, objectives, seeds, folders, strict=True)
    ]  # fmt: skip
    refuse_to_stack([loop.model for loop in loops])
    found: dict[int, Outcome] = {}
    with ExitStack() as held:
        for loop in loops:
            held.callback(loop.put_back)
        held.enter_context(kept_draws(loops[0].device))
        held.enter_context(precise(loops[0].settings["precision"], loops[0].device))
        if runs is not None:
            signals = held.enter_context(signals_held())
            for loop in loops:
                loop.signals = signals
        for number, (loop, folder) in enumerate(zip(loops, folders, strict=True)):
            try:
                ended = None if folder is None else found_done(loop, folder, resume)
                if ended is not None:
                    found[number] = ended
                    continue
                if folder is not None:
                    make_folder(folder)
                loop.begin(folder, resume, tensorboard)
            except NoisyTeacherError as error:
                if not resume:
                    raise
                found[number] = error
        groups: dict[tuple[int, int], dict[int, Loop]] = {}
        for number, loop in enumerate(loops):
            if number not in found:  # those whose checkpoints are of one moment go on together
                moment = (loop.progress.step, len(loop.progress.epochs))
                groups.setdefault(moment, {})[number] = loop
        for moment in sorted(groups):
            found |= Together(groups[moment], checkpoint_every_s, progress).run()
    return [found[number] for number in range(len(models))]


class Together:
    """Trainings that stand at one step, until each has ended."""

    def __init__(
        self, members: dict[int, Loop], checkpoint_every_s: float, progress: Callable[[int, int], None] | None
    ) -> None:
        self.active, self.every_s, self.progress = dict(members), checkpoint_every_s, progress
        self.outcomes: dict[int, Outcome] = {}
        """Of those that have ended; one that fails stays in the stack until the epoch is over, and learns nothing."""

    def run(self) -> dict[int, Outcome]:
        """Every training's outcome by its number."""
        while self.active:
            self._each(self._finish)
            self.active = {number: loop for number, loop in self.active.items() if number not in self.outcomes}
            if self.active:
                self._epochs(Stack(list(self.active.values())))
        return self.outcomes

    def _finish(self, number: int, loop: Loop) -> None:
        if loop.over():
            self.outcomes[number] = loop.finish()

    def _epochs(self, stack: Stack) -> None:
        """Whole epochs, until one of the trainings is over or has failed."""
        try:
            while not self.outcomes.keys() & self.active and not any(loop.over() for loop in stack.loops):
                self._epoch(stack)
        except BaseException:  # interrupted: nothing whole is lost
            stack.lend()
            self._each(lambda number, loop: loop.rescue())
            raise
        finally:
            stack.part()

    def _epoch(self, stack: Stack) -> None:
        loops = stack.loops
        firsts = [loops[stack.places.index(place)] for place in range(len(stack.seeds))]
        self.saved = time.monotonic()
        for loop in loops:
            loop.clock = time.monotonic()
        for found in zip(*(loop.batches_left() for loop in firsts), strict=True):
            self._step(stack, found)
            if time.monotonic() - self.saved >= self.every_s:
                stack.lend()
                self._each(lambda number, loop: loop.checkpoint())
                self.saved = time.monotonic()
            if self.progress is not None:
                self.progress(found[0].step + 1, loops[0].total_steps)
            loops[0].signals.release()
        stack.lend()
        self._each(lambda number, loop: loop.close_epoch(self.every_s))
        loops[0].signals.release()

    def _step(self, stack: Stack, distinct: Sequence[Batch]) -> None:
        """One update of every model that has not failed; the numbers of all come in one transfer."""
        batches = [distinct[place] for place in stack.places]
        loops, first = stack.loops, stack.loops[0]
        for loop in loops:
            loop.whole = False
        with precision_context(first.settings["precision"], first.device):
            logits = stack(distinct)
        losses, numbers, values = self._taught(logits.float(), batches)
        stack.rule.zero_grad(set_to_none=True)
        losses.sum().backward()  # type: ignore[no-untyped-call]
        read = torch.cat([losses.detach(), stack.gradient_sums(), *(told.flatten() for _, told in values)]).tolist()
        at = 2 * len(loops)
        for rows, told in values:
            for row in rows:
                parts: Parts = loops[row].objective.parts  # type: ignore[attr-defined]
                numbers[row] = parts.told(read[at : at + told.shape[1]])
                at += told.shape[1]

        def counted(number: int, loop: Loop) -> None:
            row = loops.index(loop)
            loop.refuse_loss(read[row])
            if not math.isfinite(read[len(loops) + row]):
                stack.refuse_gradients(row, batches[row].step)
            loop.count({"train/loss": read[row], **numbers[row]}, len(batches[row].rows))

        self._each(counted)
        first.set_rate(stack.rule, batches[0].step)
        stack.update([row for row, number in enumerate(self.active) if number in self.outcomes])
        self._each(lambda number, loop: loop.step_done(len(loops)))

    def _taught(
        self, logits: Tensor, batches: list[Batch]
    ) -> tuple[Tensor, dict[int, dict[str, float]], list[tuple[list[int], Tensor]]]:
        """The losses `[M]`, and the numbers worth telling: by row, or of several rows as a tensor `[rows, n]`.

        Objectives of one kind are computed as one.
        """
        losses: dict[int, Tensor] = {}
        shared: dict[Any, Any] = {}
        alone: dict[int, dict[str, float]] = {}
        kinds: dict[Any, dict[int, tuple[Tensor, ...]]] = {}
        values: list[tuple[list[int], Tensor]] = []
        arithmetic: dict[Any, Callable[..., tuple[Tensor, Tensor]]] = {}
        rows = {number: row for row, number in enumerate(self.active)}

        def ask(number: int, loop: Loop) -> None:
            row, parts = rows[number], getattr(loop.objective, "parts", None)
            if isinstance(parts, Parts):
                inputs = parts.inputs(batches[row], shared)
                if not any(one.dtype in HALF for one in inputs):  # noise on those looks at its values
                    kinds.setdefault(parts.kind, {})[row] = inputs
                    arithmetic.setdefault(parts.kind, parts.terms)
                    return
            loop.seed_draws(batches[row].step)
            loss, alone[row] = loss_and_numbers(loop.objective(logits[row], batches[row]))
            losses[row] = loss.reshape(()).to(logits.device)

        self._each(ask)
        for kind, inputs in kinds.items():
            columns = [torch.stack(column).to(logits.device) for column in zip(*inputs.values(), strict=True)]
            asked = logits if len(inputs) == len(logits) else logits[list(inputs)]
            found, told = vmap(arithmetic[kind])(asked, *columns)
            for row, loss in zip(inputs, found.unbind(), strict=True):
                losses[row] = loss
            values.append((list(inputs), told))
        for row in set(range(len(logits))) - losses.keys():  # it has failed: no gradient
            losses[row] = logits[row].sum() * 0
        return torch.stack([losses[row] for row in range(len(logits))]), alone, values

    def _each(self, work: Callable[[int, Loop], object]) -> None:
        """Do it for every training that has not ended; an error of this package ends that one alone."""
        for number, loop in self.active.items():
            if number not in self.outcomes:
                try:
                    work(number, loop)
                except NoisyTeacherError as error:
                    self.outcomes[number] = error
