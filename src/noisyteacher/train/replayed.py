"""Trainings in common steps on a GPU, whose steps are replayed (`abreast`)."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from noisyteacher.data import Batch
from noisyteacher.device import precise
from noisyteacher.errors import NoisyTeacherError
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
from noisyteacher.train.steps import Outcome, Together

VARIABLE, OFF = "NOISYTEACHER_GRAPHS", ("off", "0", "false", "no")


class Replayed(Together):
    """The same, with the next step launched before the last one's numbers are read."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.flying: list[Reading] = []
        """The steps that were launched and not read, the oldest first."""
        self.torn = False
        """Something is half done, in a launch or a reading: no checkpoint would be of one step."""
        self.replayed = False
        """A step was a replay."""
        self.losses: dict[int, float] = {}
        """The loss of the first training at every step (from 1) that was not told of yet."""

    def run(self) -> dict[int, Outcome]:
        """Every training's outcome by its number."""
        device = next(iter(self.active.values())).device
        cudnn = torch.backends.cudnn
        before = cudnn.benchmark
        if not (cudnn.deterministic or torch.are_deterministic_algorithms_enabled()):
            cudnn.benchmark = True  # kernels are chosen by trying them, once for each shape
        try:
            with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
                return super().run()
        finally:
            cudnn.benchmark = before

    def _finish(self, number: int, loop: Loop) -> None:
        super()._finish(number, loop)
        found = self.outcomes.get(number)
        if isinstance(found, History):
            self.outcomes[number] = replace(found, replayed=self.replayed)

    def _stack(self, loops: list[Loop]) -> Abreast:
        return Abreast(loops)

    def _batches(self, stack: Abreast) -> Iterator[tuple[Batch, ...]]:
        """They are made on a stream of their own."""
        stack.catch_up()
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
        self.torn = True
        self.flying.append(stack.launch(distinct, asked))
        self.torn = False
        self.replayed |= stack.replayed
        if len(self.flying) > 1:
            self._read(stack)
            for loop in stack.loops:
                loop.whole = False

    def _tell(self, loops: Sequence[Loop]) -> None:
        super()._tell(loops)
        self.losses.clear()

    def _settle(self, stack: Abreast) -> None:
        while self.flying:
            self._read(stack)

    def _rescue(self, stack: Abreast) -> None:
        if not self.torn:
            self._settle(stack)
            super()._rescue(stack)

    def _read(self, stack: Abreast) -> None:
        """Take the numbers of the oldest step into the sums; a training whose numbers are not finite has failed."""
        reading, loops = self.flying[0], stack.loops
        read, names = reading.wait(), reading.learned
        gradients = len(loops) * (1 + len(names))
        numbers = told_by_row(read[gradients:], reading.asked, reading.told)
        sound = all(map(math.isfinite, read[:gradients]))
        step = reading.batches[0].step

        def counted(number: int, loop: Loop) -> None:
            row = self.rows[number]
            if not sound:
                loop.refuse_loss(read[row])
                first = len(loops) + row * len(names)
                for name, largest in zip(names, read[first : first + len(names)], strict=True):
                    if not math.isfinite(largest):
                        raise gradient_error(name, step)
            loop.count({"train/loss": read[row], **numbers[row]}, len(reading.batches[stack.places[row]].rows))

        self.torn = True
        self._each(counted)
        self._step_done(step)
        self.losses[step + 1] = read[0]
        self.flying.pop(0)
        self.torn = False


def replay(
    loop: Loop, folder: Path | None, resume: bool, checkpoint_every_s: float, tensorboard: bool,
    tell: Callable[[Tick], None] | None,
) -> History:  # fmt: skip
    """What `Loop.run` does, by replayed steps."""

    def told(step: int, steps: int) -> None:
        loss = alone.losses.pop(step)
        if tell is not None:
            tell(loop.tick(loss, step))

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


def replayable(loops: Sequence[Loop]) -> bool:
    """Whether the steps of these trainings are replayed: on one GPU, where networks and losses do the same kernels at
    every step, no student is another's teacher and no hook watches all optimizers, and unless
    `NOISYTEACHER_GRAPHS=off` is in the environment.
    """
    if os.environ.get(VARIABLE, "").lower() in OFF or place().size > 1 or not all(map(_steady, loops)):
        return False
    if _global_optimizer_pre_hooks or _global_optimizer_post_hooks:
        return False
    teachers = [one for loop in loops for one in loop.objective.parts.asks]  # type: ignore[attr-defined]
    learned = {id(one) for loop in loops for one in (*loop.model.parameters(), *loop.model.buffers())}
    return not any(id(one) in learned for module in teachers for one in (*module.parameters(), *module.buffers()))


def _steady(loop: Loop) -> bool:
    parts = getattr(loop.objective, "parts", None)
    model: Any = loop.model
    return (
        loop.device.type == "cuda"
        and type(model) is Classifier
        and isinstance(parts, Parts)
        and not parts.half
        and is_plain(model)
        and not any(True for _ in model.preprocess.parameters())
        and all(one.dtype == torch.float32 for one in model.parameters())
    )
