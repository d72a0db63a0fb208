"""Trainings in common steps on a GPU, whose steps are replayed (`abreast`)."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from noisyteacher.data import Batch
from noisyteacher.device import precise
from noisyteacher.errors import NoisyTeacherError, TrainingError
from noisyteacher.history import History, Tick
from noisyteacher.models import Classifier
from noisyteacher.modes import is_plain
from noisyteacher.objectives import Parts
from noisyteacher.ranks import place
from noisyteacher.refusals import gradient_error
from noisyteacher.rng import kept_draws
from noisyteacher.train.abreast import Abreast, Reading
from noisyteacher.train.kinds import told_by_row
from noisyteacher.train.loop import Loop
from noisyteacher.train.steps import HALF, Outcome, Together

VARIABLE = "NOISYTEACHER_GRAPHS"


class Replayed(Together):
    """The same, with the next step launched before the last one's numbers are read."""

    flying: Reading | None = None
    losses: dict[int, float]
    """The newest loss that was read, by number."""

    def run(self) -> dict[int, Outcome]:
        """Every training's outcome by its number."""
        self.losses = {}
        before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = True  # kernels are chosen by trying them, once for each shape
        try:
            return super().run()
        finally:
            torch.backends.cudnn.benchmark = before

    def _finish(self, number: int, loop: Loop) -> None:
        super()._finish(number, loop)
        found = self.outcomes.get(number)
        if isinstance(found, History):
            self.outcomes[number] = replace(found, replayed=True)

    def _stack(self, loops: list[Loop]) -> Abreast:
        for loop in loops:
            loop.model.train()
        return Abreast(loops)

    def _batches(self, stack: Abreast) -> Iterator[tuple[Batch, ...]]:
        """They are made on a stream of their own."""
        for loop in stack.loops:
            loop.model.train()
        feed = super()._batches(stack)
        while True:
            with stack.fed():
                found = next(feed, None)
            if found is None:
                return
            yield found

    def _step(self, stack: Abreast, distinct: Sequence[Batch]) -> None:
        for loop in stack.loops:
            loop.whole = False
        with stack.fed():
            asked = self._asked(stack, [distinct[place] for place in stack.places])
        for number in self.outcomes.keys() & self.rows.keys():
            stack.hold(self.rows[number])
        stack.loops[0].seed_draws(distinct[0].step)
        launched = stack.launch(distinct, asked)
        before, self.flying = self.flying, launched
        if before is not None:
            self._read(stack, before)
            for loop in stack.loops:
                loop.whole = False

    def _settle(self, stack: Abreast) -> None:
        if self.flying is not None:
            before, self.flying = self.flying, None
            self._read(stack, before)

    def _read(self, stack: Abreast, reading: Reading) -> None:
        """Take the numbers of a step into its trainings' sums; one whose numbers are not finite has failed."""
        read, loops = reading.wait(), stack.loops
        names = [name for name, _ in stack.learned(loops[0])]
        gradients = len(loops) * (1 + len(names))
        numbers = told_by_row(read[gradients:], reading.asked, reading.told)
        sound = all(map(math.isfinite, read[:gradients]))

        def counted(number: int, loop: Loop) -> None:
            row = self.rows[number]
            batch = reading.batches[stack.places[row]]
            if not sound:
                loop.refuse_loss(read[row])
                first = len(loops) + row * len(names)
                for name, largest in zip(names, read[first : first + len(names)], strict=True):
                    if not math.isfinite(largest):
                        raise gradient_error(name, batch.step)
            self.losses[number] = read[row]
            loop.count({"train/loss": read[row], **numbers[row]}, len(batch.rows))

        self._each(counted)
        self._step_done(loops)


def replay(
    loop: Loop, folder: Path | None, resume: bool, checkpoint_every_s: float, tensorboard: bool,
    tell: Callable[[Tick], None] | None,
) -> History:  # fmt: skip
    """What `Loop.run` does, by replayed steps."""

    def told(step: int, steps: int) -> None:
        if tell is not None and 0 in alone.losses:
            tell(loop.tick(alone.losses[0]))

    alone = Replayed({0: loop}, checkpoint_every_s, told)
    try:
        with kept_draws(loop.device), precise(loop.settings["precision"], loop.device):
            loop.begin(folder, resume, tensorboard)
            outcome = alone.run()[0]
    finally:
        loop.put_back()
    if isinstance(outcome, NoisyTeacherError):
        raise outcome
    return outcome


def replayable(loop: Loop) -> bool:
    """Whether its steps are replayed: on one GPU, by layers and a loss that do the same kernels at every step, and
    unless `NOISYTEACHER_GRAPHS=off` is in the environment.
    """
    parts = getattr(loop.objective, "parts", None)
    model: Any = loop.model
    return (
        loop.device.type == "cuda"
        and os.environ.get(VARIABLE) != "off"
        and place().size == 1
        and type(model) is Classifier
        and isinstance(parts, Parts)
        and is_plain(model)
        and not any(True for _ in model.preprocess.parameters())
        and all(one.dtype == torch.float32 for one in model.parameters())
        and not _halved(loop, parts)
    )


def _halved(loop: Loop, parts: Parts) -> bool:
    """Whether the teacher answers in half precision: noise on that looks at its values."""
    try:
        batch = next(loop.batches_left())
        return any(one.dtype in HALF for one in parts.common(batch, {}))
    except (StopIteration, TrainingError):
        return True
