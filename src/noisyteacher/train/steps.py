"""Trainings that stand at one step, in common steps until each has ended."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from noisyteacher.data import Batch
from noisyteacher.device import precision_context
from noisyteacher.errors import NoisyTeacherError
from noisyteacher.history import History
from noisyteacher.objectives import Parts, loss_and_numbers
from noisyteacher.train.kinds import Asked, taught, told_by_row
from noisyteacher.train.loop import Loop
from noisyteacher.train.stack import Stack

Outcome = History | NoisyTeacherError


class Together:
    """Trainings that stand at one step, until each has ended."""

    def __init__(
        self, members: dict[int, Loop], checkpoint_every_s: float, progress: Callable[[int, int], None] | None
    ) -> None:
        self.active, self.every_s, self.progress = dict(members), checkpoint_every_s, progress
        self.outcomes: dict[int, Outcome] = {}
        """Of those that have ended; one that fails stays in the stack until the epoch is over, and learns nothing."""
        self.untold: list[int] = []
        self.rows: dict[int, int] = {}
        """Of the running ones their place in the stack."""

    def run(self) -> dict[int, Outcome]:
        """Every training's outcome by its number."""
        while self.active:
            self._each(self._finish)
            self.active = {number: loop for number, loop in self.active.items() if number not in self.outcomes}
            if self.active:
                self._epochs()
        return self.outcomes

    def _stack(self, loops: list[Loop]) -> Any:
        return Stack(loops)

    def _finish(self, number: int, loop: Loop) -> None:
        if loop.over():
            self.outcomes[number] = loop.finish()

    def _epochs(self) -> None:
        """Whole epochs, until one of the trainings is over or has failed."""
        self.rows = {number: row for row, number in enumerate(self.active)}
        stack = self._stack(list(self.active.values()))
        try:
            while not self.outcomes.keys() & self.active and not any(loop.over() for loop in stack.loops):
                self._epoch(stack)
        except BaseException:  # interrupted: nothing whole is lost
            self._rescue(stack)
            raise
        finally:
            stack.part()

    def _rescue(self, stack: Any) -> None:
        stack.lend()
        self._each(lambda number, loop: loop.rescue())

    def _epoch(self, stack: Any) -> None:
        """One epoch, or what is left of it; it stops where all of them have failed."""
        loops = stack.loops
        self.saved = time.monotonic()
        for loop in loops:
            loop.clock = time.monotonic()
        for found in self._batches(stack):
            self._step(stack, found)
            if time.monotonic() - self.saved >= self.every_s:
                self._settle(stack)
                stack.lend()
                self._each(lambda number, loop: loop.checkpoint())
                self.saved = time.monotonic()
            self._tell(loops)
            loops[0].signals.release()
            if self.active.keys() <= self.outcomes.keys():
                break
        self._settle(stack)
        self._tell(loops)
        stack.lend()
        self._each(lambda number, loop: loop.close_epoch(self.every_s))
        loops[0].signals.release()

    def _batches(self, stack: Any) -> Iterator[tuple[Batch, ...]]:
        """The batches that the epoch still lacks: at every step one for each of the stack's seeds."""
        firsts = [stack.loops[stack.places.index(place)] for place in range(len(stack.seeds))]
        return zip(*(loop.batches_left() for loop in firsts), strict=True)

    def _settle(self, stack: Any) -> None:
        """Afterwards weights and progress belong to one step."""

    def _step(self, stack: Any, distinct: Sequence[Batch]) -> None:
        """One update of every model that has not failed; the numbers of all come in one transfer."""
        batches = [distinct[place] for place in stack.places]
        loops, first = stack.loops, stack.loops[0]
        for loop in loops:
            loop.whole = False
        with precision_context(first.settings["precision"], first.device):
            logits = stack(distinct)
        logits = logits.float()
        asked = [one.placed(logits.device) for one in self._asked(stack, batches)]
        losses, numbers = self._alone(logits, batches, {row for one in asked for row in one.rows})
        together, told = taught(logits, asked, losses)
        stack.rule.zero_grad(set_to_none=True)
        together.sum().backward()  # type: ignore[no-untyped-call]
        read = torch.cat([together.detach(), stack.gradient_sums(), *(one.flatten() for one in told)]).tolist()
        numbers |= told_by_row(read[2 * len(loops) :], asked, told)

        def counted(number: int, loop: Loop) -> None:
            row = self.rows[number]
            loop.refuse_loss(read[row])
            if not math.isfinite(read[len(loops) + row]):
                stack.refuse_gradients(row, batches[row].step)
            loop.count({"train/loss": read[row], **numbers[row]}, len(batches[row].rows))

        self._each(counted)
        first.set_rate(stack.rule, batches[0].step)
        stack.update([row for number, row in self.rows.items() if number in self.outcomes])
        self._step_done(batches[0].step)

    def _step_done(self, step: int) -> None:
        """A step (from 0) is over for all that have not failed."""
        self._each(lambda number, loop: loop.step_done(len(self.rows)))
        if not self.active.keys() <= self.outcomes.keys():
            self.untold.append(step + 1)

    def _tell(self, loops: Sequence[Loop]) -> None:
        """Tell of the steps that are done, and not told of yet."""
        while self.untold:
            step = self.untold.pop(0)
            if self.progress is not None:
                self.progress(step, loops[0].total_steps)

    def _asked(self, stack: Any, batches: Sequence[Batch]) -> list[Asked]:
        """What the objectives take at this step, by kind; those that cannot be computed with others are not in it."""
        kinds: dict[Any, Asked] = {}
        shared: dict[Any, Any] = {}

        def ask(number: int, loop: Loop) -> None:
            row, parts = self.rows[number], getattr(loop.objective, "parts", None)
            if isinstance(parts, Parts) and not parts.half:
                table = parts.common(batches[row], shared)
                kinds.setdefault(parts.kind, Asked(parts)).add(row, table, parts.own(batches[row]))

        self._each(ask)
        return list(kinds.values())

    def _alone(
        self, logits: Tensor, batches: Sequence[Batch], done: Container[int]
    ) -> tuple[dict[int, Tensor], dict[int, dict[str, float]]]:
        """The losses and numbers by row of those whose objective is asked by itself."""
        losses: dict[int, Tensor] = {}
        numbers: dict[int, dict[str, float]] = {}

        def ask(number: int, loop: Loop) -> None:
            row = self.rows[number]
            if row not in done:
                loop.seed_draws(batches[row].step)
                loss, numbers[row] = loss_and_numbers(loop.objective(logits[row], batches[row]))
                losses[row] = loss.reshape(()).to(logits.device)

        self._each(ask)
        return losses, numbers

    def _each(self, work: Callable[[int, Loop], object]) -> None:
        """Do it for every training that has not ended; an error of this package ends that one alone."""
        for number, loop in self.active.items():
            if number not in self.outcomes:
                try:
                    work(number, loop)
                except NoisyTeacherError as error:
                    self.outcomes[number] = error
