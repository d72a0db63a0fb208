"""Many trainings of one architecture as one: common kernels where each alone would leave a GPU idle."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from noisyteacher.checkpoint import signals_held
from noisyteacher.data import Batch, Split
from noisyteacher.device import AUTO, precise
from noisyteacher.errors import NoisyTeacherError, UsageError
from noisyteacher.files import make_folder
from noisyteacher.progress import counted, reported
from noisyteacher.ranks import place
from noisyteacher.rng import kept_draws
from noisyteacher.train.fitting import found_done, prepared
from noisyteacher.train.loop import Loop
from noisyteacher.train.replayed import Replayed, replayable
from noisyteacher.train.stack import refuse_to_stack
from noisyteacher.train.steps import Outcome, Together


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
    batch_norm: str = "running",
    precision: str = AUTO,
    patience: int | None = None,
    keep: str | None = None,
    device: str = "auto",
    runs: Sequence[str | Path] | None = None,
    resume: bool = False,
    checkpoint_every_s: float = 30.0,
    tensorboard: bool = False,
    progress: bool | Callable[[int, int], None] | None = True,
) -> list[Outcome]:
    """What `fit` does for each model with its objective and seed, in common steps: one outcome per model, in order.

    An outcome is the History that `fit` would return, equal step by step up to rounding, or the error of this package
    that ended this one training; the others go on. The models have one architecture; they differ in their weights,
    seeds and objectives, each of which takes logits `[B, K]` and the batch. Options are those of `fit`, for all alike;
    `runs` are their run folders. `seconds` is each one's share of the common time. `progress` shows on stderr
    how far the training is, as that of `fit` does; False shows nothing, a callable is told (step, steps in all) after
    every step. Worth it on a GPU, where the common steps are replayed as a CUDA graph as
    far as `fit` would replay all of them; on a CPU two processes are faster (docs/performance.md).
    Raises UsageError for models that cannot be trained as one (`train/stack.py`), and in a group of processes.
    """
    if place().size > 1:
        raise UsageError("fit_many trains in one process: several processes are one training (fit)")
    folders: list[Path | None] = [None] * len(models) if runs is None else [Path(one) for one in runs]
    if not len(models) == len(objectives) == len(seeds) == len(folders) or not models:
        raise UsageError(
            f"{len(models)} models, {len(objectives)} objectives, {len(seeds)} seeds and {len(folders)} runs: expected "
            "as many of each, at least one"
        )
    if runs is not None and len({os.path.realpath(one) for one in runs}) < len(models):
        raise UsageError("two of the runs are one folder: give each training its own")
    loops = [
        prepared(
            model, split, objective, val=val, val_teacher=val_teacher, epochs=epochs, batch_size=batch_size,
            optimizer=optimizer, lr=lr, momentum=momentum, weight_decay=weight_decay, schedule=schedule,
            warmup_epochs=warmup_epochs, views=views, every_view=every_view, augment="none", batch_norm=batch_norm,
            precision=precision, patience=patience, keep=keep, seed=seed, device=device, run=folder, resume=resume,
            tensorboard=tensorboard,
        )
        for model, objective, seed, folder in zip(models, objectives, seeds, folders, strict=True)
    ]  # fmt: skip
    refuse_to_stack([loop.model for loop in loops])
    found: dict[int, Outcome] = {}
    with ExitStack() as held:
        title = f"training {len(models)} models"
        tell = held.enter_context(reported(progress, lambda watch: counted(watch, title, "steps")))
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
            group = groups[moment]
            kind = Replayed if replayable([*group.values()]) else Together
            found |= kind(group, checkpoint_every_s, tell).run()
    return [found[number] for number in range(len(models))]
