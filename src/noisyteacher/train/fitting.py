"""The one training loop. It knows nothing of teachers: what is learned comes from an objective (objectives.py)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from noisyteacher.checkpoint import NAME as CHECKPOINT
from noisyteacher.checkpoint import (
    frozen_record,
    labels_fingerprint,
    signals_held,
)
from noisyteacher.data import Batch, Split, expand_views
from noisyteacher.device import AUTO, resolve_device, resolve_precision
from noisyteacher.errors import UsageError
from noisyteacher.files import make_folder
from noisyteacher.history import History, Tick, ticked
from noisyteacher.models import as_classifier
from noisyteacher.objectives import record_of
from noisyteacher.optimizers import RULE, build_optimizer
from noisyteacher.progress import reported
from noisyteacher.ranks import check_same, led, place
from noisyteacher.refusals import check_roles, check_settings, check_val
from noisyteacher.stopwatch import Stopwatch
from noisyteacher.train.loop import WEIGHTS, Loop
from noisyteacher.train.replayed import replay, replayable
from noisyteacher.validation import Validation


def fit(
    model: nn.Module,
    split: Split,
    objective: Callable[[Tensor, Batch], Any],
    *,
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
    augment: str = "none",
    batch_norm: str = "running",
    precision: str = AUTO,
    patience: int | None = None,
    keep: str | None = None,
    seed: int = 0,
    device: str = "auto",
    run: str | Path | None = None,
    resume: bool = False,
    checkpoint_every_s: float = 30.0,
    tensorboard: bool = False,
    profile: bool = False,
    progress: bool | Callable[[Tick], None] | None = True,
) -> History:
    """Train the model in place on the split and return the History; the model ends with the kept weights.

    `objective(logits [B, K], batch)` returns the loss, or (loss, dict of numbers): `supervised()`, `distil(...)`, or
    any callable. The metrics hold each number's mean over the epoch's samples (its root mean square for names ending in
    `_rms`). Every epoch sees each row once under a random view of `views`, or, with `every_view`, once under each
    view (a last batch of a single sample is left out: batch norm cannot learn from it). `augment` changes
    the images at every step: `mixup` or `randaugment`, which need a live teacher. `batch_norm`: `running` statistics as
    the layers average them along the training, or `reestimate`, before each validation over up to 1,024 training
    images, where their average reaches back more than half an epoch (`train/batch_norms.py`). After every epoch `val`
    is evaluated; `keep` says which weights the model ends with, `best` (lowest validation error, then NLL; the default
    with `val`) or `last`. A `val` without labels is judged by the agreement with `val_teacher`.
    `patience` stops after so many epochs without a better one.
    `precision` is of the student's arithmetic: `fp32`, `bf16` (autocast; weights, loss and update stay fp32) or `auto`,
    bf16 where the device's matrix products are at least 1.5 times as fast in it. The settings keep what it came to.
    With `run=FOLDER` the metrics (a JSON line per epoch), both weights and, while unfinished, a checkpoint are kept
    there; `resume=True` goes on from it and ends, on a CPU, with the same bytes as an unbroken run. SIGINT and SIGTERM
    then take effect at the end of a step, after a checkpoint (a second one at once). `progress` shows on stderr how far
    the training is (a live line in a terminal; elsewhere a line every ten seconds, none for a training of under two);
    False shows nothing, a callable is told a Tick after every step. `tensorboard` also writes the metrics as
    TensorBoard events (extra `track`). With `profile` the History tells where the time of the steps went
    (`stopwatch.Stopwatch`); a GPU is waited for after every phase then.
    On a GPU the steps of a network made of torch's and this package's layers are captured once as a CUDA graph and
    replayed (docs/performance.md), and the model may be a step ahead of what `progress` is told;
    `NOISYTEACHER_GRAPHS=off` in the environment, or `profile`, has them done one by one.
    In a group of several processes (torchrun; `torch.distributed` initialised) all of them call fit alike and are one
    training, of the same batches, noise and, up to rounding, losses as one process; only dropout draws differ. The one
    of rank 0 writes.
    On one CPU and thread count the same seed gives the same bits. Two runs with one seed are a pair: same order, same
    views, same dropout, same noise draws.
    Raises UsageError for a split whose role is `test` and for an objective that does not return a loss,
    ConfigError listing every wrong setting, DataError for `val` without labels or teacher, MismatchError when classes
    or shapes differ, TrainingError before the update when the loss or a gradient is not finite.
    """
    loop = prepared(
        model, split, objective, val=val, val_teacher=val_teacher, epochs=epochs, batch_size=batch_size,
        optimizer=optimizer, lr=lr, momentum=momentum, weight_decay=weight_decay, schedule=schedule,
        warmup_epochs=warmup_epochs, views=views, every_view=every_view, augment=augment, batch_norm=batch_norm,
        precision=precision, patience=patience, keep=keep, seed=seed, device=device, run=run, resume=resume,
        tensorboard=tensorboard,
    )  # fmt: skip
    if profile:
        loop.clockwork = Stopwatch(loop.device)
    folder = None if run is None else Path(run)
    ended = None if folder is None else found_done(loop, folder, resume)
    if ended is not None:
        return ended
    steps = replay if not profile and replayable([loop]) else Loop.run
    shows = progress if progress is not True else place().leads
    with reported(shows, lambda watch: ticked(watch, "training")) as tell:
        if folder is None:
            return steps(loop, None, resume, checkpoint_every_s, tensorboard, tell)
        make_folder(folder)
        with signals_held() as loop.signals:
            return steps(loop, folder, resume, checkpoint_every_s, tensorboard, tell)


def prepared(
    model: nn.Module, split: Split, objective: Callable[[Tensor, Batch], Any], *, val: Split | None,
    val_teacher: object, views: str | tuple[str, ...], every_view: bool, augment: str, batch_norm: str, precision: str,
    patience: int | None, keep: str | None, seed: int, device: str, run: str | Path | None, resume: bool,
    tensorboard: bool, **recipe: Any,
) -> Loop:  # fmt: skip
    """The loop of a training, with everything checked that `fit` checks before the first step."""
    check_roles(split, val)
    chosen_views = expand_views(views)
    classifier = as_classifier(model, input_shape=split.input_shape)
    classes = int(classifier.architecture.get("classes") or split.classes)
    check_val(split, val, classes, val_teacher)
    on = resolve_device(device)
    precision = led(lambda: resolve_precision(precision, on))
    judge = None if val is None else Validation(val, val_teacher, classes, str(on), precision)
    settings: dict[str, Any] = {
        **recipe, "views": list(chosen_views), "every_view": every_view, "precision": precision, "patience": patience,
        "keep": keep or ("last" if val is None else "best"), "seed": seed, "train": split.fingerprint,
        "val": None if val is None else val.fingerprint, "labels": labels_fingerprint(split, val),
        "objective": record_of(objective), "architecture": classifier.architecture, **frozen_record(classifier),
        **({} if judge is None else judge.record), **({} if augment == "none" else {"augment": augment}),
        **({} if batch_norm == "running" else {"batch_norm": batch_norm}),
    }  # fmt: skip
    check_settings(settings, classifier, split, val, run, {"resume": resume, "tensorboard": tensorboard})
    rule = build_optimizer(**{name: settings[name] for name in RULE}, parameters=classifier.parameters())
    if hasattr(objective, "check"):
        objective.check(split, chosen_views, classes, **({} if augment == "none" else {"augment": augment}))
    check_same(settings)
    return Loop(classifier.to(on), rule, objective, split, judge, on, settings, chosen_views)


def found_done(loop: Loop, folder: Path, resume: bool) -> History | None:
    """The History of a training that the run folder holds the end of; None where it is to be begun or gone on with.

    Raises UsageError for a folder with a training where none is to be resumed.
    """
    if not (folder / WEIGHTS).exists() and not (folder / CHECKPOINT).exists():
        return None
    if not resume:
        raise UsageError(f"{folder}: holds a training already: resume=True goes on with it, or name another")
    return loop.finished(folder) if (folder / WEIGHTS).exists() else None
