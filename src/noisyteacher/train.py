"""The one training loop. It knows nothing of teachers: what is learned comes from an objective (objectives.py)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from noisyteacher.checkpoint import NAME as CHECKPOINT
from noisyteacher.checkpoint import (
    Progress,
    drop_checkpoint,
    frozen_record,
    labels_fingerprint,
    read_checkpoint,
    same_settings,
    signals_held,
    write_checkpoint,
)
from noisyteacher.data import Batch, Split, epoch_batches, expand_views, samples_of
from noisyteacher.device import precision_context, resolve_device
from noisyteacher.errors import AskedWronglyError, NoisyTeacherError, TrainingError
from noisyteacher.events import Events
from noisyteacher.files import make_folder
from noisyteacher.history import History, Tick
from noisyteacher.models import Classifier, as_classifier, save_model
from noisyteacher.objectives import loss_and_numbers, record_of
from noisyteacher.optimizers import build_optimizer
from noisyteacher.refusals import OTHER, check_roles, check_settings, check_val, refuse_gradients
from noisyteacher.rng import derive
from noisyteacher.runs import Run
from noisyteacher.schedule import rate_factor
from noisyteacher.tensorfile import read_tensors
from noisyteacher.validation import Validation

WEIGHTS = "weights.safetensors"


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
    precision: str = "fp32",
    patience: int | None = None,
    keep: str | None = None,
    seed: int = 0,
    device: str = "auto",
    run: str | Path | None = None,
    resume: bool = False,
    checkpoint_every_s: float = 30.0,
    tensorboard: bool = False,
    progress: Callable[[Tick], None] | None = None,
) -> History:
    """Train the model in place on the split and return the History; the model ends with the kept weights.

    `objective(logits [B, K], batch)` returns the loss, or (loss, dict of numbers): `supervised()`, `distil(...)`, or
    any callable. The metrics hold each number's mean over the epoch's samples (its root mean square for names ending in
    `_rms`). Every epoch sees each row once under a random view of `views`, or, with `every_view`, once under each
    view (a last batch of a single sample is left out: batch norm cannot learn from it). `augment` changes
    the images at every step: `mixup` or `randaugment`, which need a live teacher. After every epoch `val` is
    evaluated; `keep` says which weights the model ends with, `best` (lowest validation error, then NLL; the default
    with `val`) or `last`. A `val` without labels is judged by the agreement with `val_teacher`.
    `patience` stops after so many epochs without a better one.
    With `run=FOLDER` the metrics (a JSON line per epoch), both weights and, while unfinished, a checkpoint are kept
    there; `resume=True` goes on from it and ends with the same bytes as an unbroken run. SIGINT and SIGTERM then take
    effect at the end of a step, after a checkpoint (a second one at once). `tensorboard` also writes the metrics as
    TensorBoard events (extra `track`).
    On one CPU and thread count the same seed gives the same bits. Two runs with one seed are a pair: same order, same
    views, same dropout, same noise draws.
    Raises AskedWronglyError for a split whose role is `test` and for an objective that does not return a loss,
    ConfigError listing every wrong setting, DataError for `val` without labels or teacher, MismatchError when classes
    or shapes differ, TrainingError before the update when the loss or a gradient is not finite.
    """
    check_roles(split, val)
    chosen_views = expand_views(views)
    classifier = as_classifier(model, input_shape=split.input_shape)
    classes = int(classifier.architecture.get("classes") or split.classes)
    check_val(split, val, classes, val_teacher)
    place = resolve_device(device)
    judge = None if val is None else Validation(val, val_teacher, classes, str(place), precision)
    settings: dict[str, Any] = {
        "epochs": epochs, "batch_size": batch_size, "optimizer": optimizer, "lr": lr, "momentum": momentum,
        "weight_decay": weight_decay, "schedule": schedule, "warmup_epochs": warmup_epochs, "views": list(chosen_views),
        "every_view": every_view, "precision": precision, "patience": patience,
        "keep": keep or ("last" if val is None else "best"), "seed": seed, "train": split.fingerprint,
        "val": None if val is None else val.fingerprint, "labels": labels_fingerprint(split, val),
        "objective": record_of(objective), "architecture": classifier.architecture, **frozen_record(classifier),
        **({} if judge is None else judge.record), **({} if augment == "none" else {"augment": augment}),
    }  # fmt: skip
    check_settings(settings, classifier, split, val, run, {"resume": resume, "tensorboard": tensorboard})
    rule = build_optimizer(optimizer, classifier.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
    if hasattr(objective, "check"):
        objective.check(split, chosen_views, classes, **({} if augment == "none" else {"augment": augment}))
    loop = _Loop(classifier.to(place), rule, objective, split, judge, place, settings, chosen_views)
    folder = None if run is None else Path(run)
    if folder is not None and ((folder / WEIGHTS).exists() or (folder / CHECKPOINT).exists()):
        if not resume:
            raise AskedWronglyError(f"{folder}: holds a training already: resume=True goes on with it, or name another")
        if (folder / WEIGHTS).exists():
            return loop.finished(folder)
    if folder is None:
        return loop.run(None, resume, checkpoint_every_s, tensorboard, progress)
    make_folder(folder)
    with signals_held() as loop.release:
        return loop.run(folder, resume, checkpoint_every_s, tensorboard, progress)


class _Loop:
    """The state of one `fit`, so that its parts can be read one by one."""

    def __init__(
        self, model: Classifier, optimizer: torch.optim.Optimizer, objective: Callable[[Tensor, Batch], Any],
        split: Split, val: Validation | None, device: torch.device, settings: dict[str, Any], views: tuple[str, ...],
    ) -> None:  # fmt: skip
        # Convolutions on the CPU run faster on channels-last memory; values and saved bytes are the same.
        self.model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer, self.objective = optimizer, objective
        self.split, self.val, self.device, self.settings, self.views = split, val, device, settings, views
        self.progress = Progress()
        self.best: dict[str, Tensor] = {}
        self.saved = self.clock = 0.0
        self.whole = True  # weights, optimizer and progress belong to one step: a checkpoint may be written
        self.release: Callable[[], None] = lambda: None  # lets a signal take effect that came during a step
        samples = samples_of(split, views, settings["every_view"])
        self.batches = max(1, samples // settings["batch_size"] + (samples % settings["batch_size"] > 1))
        self.total_steps = self.batches * settings["epochs"]

    def run(
        self, folder: Path | None, resume: bool, checkpoint_every_s: float, tensorboard: bool,
        tell: Callable[[Tick], None] | None,
    ) -> History:  # fmt: skip
        """All epochs from where the checkpoint stands, or from the start."""
        if folder is not None and resume:
            found = read_checkpoint(folder, self.settings, self.model, self.optimizer)
            if found is not None:
                self.progress, self.best = found
        events = Events(folder, len(self.progress.epochs)) if tensorboard and folder is not None else None
        self.saved = time.monotonic()
        try:
            with torch.random.fork_rng():
                while not self._over():
                    self._train_epoch(folder, checkpoint_every_s, tell)
                    line = self._end_epoch()
                    if events is not None:
                        events.write(line)
                    if folder is not None:
                        Run(folder).write_metrics(self.progress.epochs)
                        self._save(folder, checkpoint_every_s)
                    self.release()
        except NoisyTeacherError:
            raise
        except BaseException:  # interrupted, or a `progress` of the caller's that raises: nothing whole is lost
            if folder is not None and self.whole and self.progress.step:
                with suppress(NoisyTeacherError):  # a full disk must not hide what ended the run
                    self._save(folder)
            raise
        if events is not None:
            events.close()
        return self._finish(folder)

    def _train_epoch(self, folder: Path | None, every_s: float, tell: Callable[[Tick], None] | None) -> None:
        """The steps that the epoch still lacks: none when a checkpoint was written between them and its end."""
        state, epoch, self.clock = self.progress, len(self.progress.epochs), time.monotonic()
        for batch in epoch_batches(
            self.split, self.views, seed=self.settings["seed"], epoch=epoch, first=state.step - epoch * self.batches,
            batches=self.batches, batch_size=self.settings["batch_size"], every_view=self.settings["every_view"],
            total_steps=self.total_steps, device=self.device, augment=self.settings.get("augment", "none"),
        ):  # fmt: skip
            self.whole = False
            loss = self._step(batch)
            state.step += 1
            now = time.monotonic()
            state.seconds, self.clock = state.seconds + now - self.clock, now
            self.whole = True
            if tell is not None:
                tell(self._tick(loss))
            if folder is not None:
                self._save(folder, every_s)
            self.release()

    def _save(self, folder: Path, every_s: float = 0.0) -> None:
        """Write a checkpoint when the last one is so many seconds old."""
        if time.monotonic() - self.saved >= every_s:
            write_checkpoint(folder, self.settings, self.progress, self.model, self.optimizer, self.best)
            self.saved = self.clock = time.monotonic()

    def _step(self, batch: Batch) -> float:
        """One update; returns the loss before it. Raises TrainingError instead of updating on a loss not finite."""
        settings, rate = self.settings, self._rate(batch.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        seed = derive(settings["seed"], "dropout", batch.step)
        if self.device.type == "cpu":  # torch.manual_seed also looks for accelerators, which takes 0.2 ms a step
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)
        self.model.train()
        with precision_context(settings["precision"], self.device):
            logits = self.model(batch.images)
        loss, numbers = loss_and_numbers(self.objective(logits.float(), batch))
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss is {value} at step {batch.step + 1} of {self.total_steps} (epoch "
                f"{batch.step // self.batches + 1}); the weights were not updated. Try a lower lr (now "
                f"{settings['lr']:g}), a warm-up, or precision fp32, and check the inputs for NaN"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        refuse_gradients(self.model, batch.step)
        self.optimizer.step()
        for name, number in {"train/loss": value, **numbers}.items():
            if not math.isfinite(number):
                raise TrainingError(f"the objective's number {name!r} is {number} at step {batch.step + 1}")
            if name.endswith("_rms"):
                number = number**2
            self.progress.sums[name] = self.progress.sums.get(name, 0.0) + number * len(batch.rows)
        self.progress.sums["samples"] = self.progress.sums.get("samples", 0.0) + len(batch.rows)
        return value

    def _rate(self, step: int) -> float:
        settings = self.settings
        warmup = round(settings["warmup_epochs"] * self.batches)
        return float(settings["lr"] * rate_factor(settings["schedule"], step, self.total_steps, warmup))

    def _end_epoch(self) -> dict[str, Any]:
        """Close the epoch: its means, its validation, whether it is the best so far; its line of metrics."""
        state = self.progress
        samples = state.sums["samples"]
        line: dict[str, Any] = {"epoch": len(state.epochs) + 1, "step": state.step}
        means = {name: total / samples for name, total in state.sums.items() if name != "samples"}
        line |= {name: math.sqrt(mean) if name.endswith("_rms") else mean for name, mean in means.items()}
        line["lr"] = self._rate(state.step - 1)
        key: list[float] = []
        if self.val is not None:
            numbers, key = self.val(self.model, line["epoch"])
            line |= numbers
        line["seconds"] = round(state.seconds, 3)
        self.whole = False
        if key and (not state.best_key or key < state.best_key):
            state.best_key, state.best_epoch = key, line["epoch"]
            self.best = _copy(self.model)
        state.sums = {}
        state.epochs.append(line)
        self.whole = True
        return line

    def _over(self) -> bool:
        """Every epoch is closed, or there was no better one for as long as there is patience."""
        patience, state = self.settings["patience"], self.progress
        done = len(state.epochs)
        return done >= self.settings["epochs"] or (patience is not None and 0 < done >= state.best_epoch + patience)

    def _tick(self, loss: float) -> Tick:
        state = self.progress
        newest = state.epochs[-1].get("val/error") if state.epochs else None
        return Tick(
            (state.step - 1) // self.batches + 1, self.settings["epochs"], state.step, self.total_steps, loss, newest
        )

    def _finish(self, folder: Path | None) -> History:
        state, last, keep = self.progress, _copy(self.model), self.settings["keep"]
        ends = {"last": last, "best": self.best} if self.val is not None else {"last": last}
        if folder is not None:
            Run(folder).write_metrics(state.epochs)
        for name in sorted(ends, key=lambda one: one == keep):  # the kept one last: its file says that the run is over
            self.model.load_state_dict(ends[name])
            if folder is not None:
                file = WEIGHTS if name == keep else OTHER[keep]
                save_model(self.model, folder / file, {"training": self._record()}, within=folder)
        # One memory order for whatever comes after, trained just now or loaded: equal inputs then give equal bits.
        self.model.to(memory_format=torch.contiguous_format)
        if folder is not None:
            drop_checkpoint(folder)
        return self._history(ends)

    def _record(self) -> dict[str, Any]:
        state = self.progress
        return {"settings": self.settings, "best_epoch": state.best_epoch, "epochs": len(state.epochs)}

    def finished(self, folder: Path) -> History:
        """The History of a run that ended before: its weights are put into the model, nothing is trained."""
        keep = self.settings["keep"]
        kept, record = read_tensors(folder / WEIGHTS, "model", 1)
        training = record.get("training", {})
        same_settings(folder / WEIGHTS, training.get("settings", {}), self.settings)
        ends = {keep: kept}
        if self.val is not None:
            ends[next(name for name in OTHER if name != keep)] = read_tensors(folder / OTHER[keep], "model", 1)[0]
        self.progress.epochs, self.progress.best_epoch = Run(folder).metrics(), training["best_epoch"]
        self.progress.seconds = self.progress.epochs[-1]["seconds"]
        self.model.load_state_dict(kept)
        return self._history(ends)

    def _history(self, ends: dict[str, dict[str, Tensor]]) -> History:
        state = self.progress
        return History(
            epochs=tuple(state.epochs),
            best_epoch=state.best_epoch,
            kept=self.settings["keep"],
            seconds=state.seconds,
            stopped_early=len(state.epochs) < self.settings["epochs"],
            best=ends.get("best", {}),
            last=ends["last"],
        )


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
