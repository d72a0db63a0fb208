"""The one training loop. It knows nothing of teachers: what is learned comes from an objective (objectives.py)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from noisyteacher.checkpoint import NAME as CHECKPOINT
from noisyteacher.checkpoint import Progress, drop_checkpoint, read_checkpoint, same_settings, write_checkpoint
from noisyteacher.data import Batch, Split, expand_views
from noisyteacher.device import precision_context, resolve_device
from noisyteacher.errors import AskedWronglyError, TrainingError
from noisyteacher.evaluate import predict, score
from noisyteacher.events import Events
from noisyteacher.files import sha256
from noisyteacher.history import History, Tick
from noisyteacher.models import Classifier, as_classifier, save_model
from noisyteacher.optimizers import build_optimizer
from noisyteacher.refusals import OTHER, check_roles, check_settings
from noisyteacher.rng import derive, stream
from noisyteacher.runs import Run
from noisyteacher.schedule import rate_factor
from noisyteacher.tensorfile import read_tensors, tensor_bytes

WEIGHTS = "weights.safetensors"


def fit(
    model: nn.Module,
    split: Split,
    objective: Callable[[Tensor, Batch], Any],
    *,
    val: Split | None = None,
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
    view (a last batch of a single sample is left out: batch norm cannot learn from it). After every epoch `val` is
    evaluated; `keep` says which weights the model ends with, `best` (lowest validation error, then NLL; the default
    with `val`) or `last`. `patience` stops after so many epochs without a better one.
    With `run=FOLDER` the metrics (a JSON line per epoch), both weights and, while unfinished, a checkpoint are kept
    there; `resume=True` goes on from it and ends with the same bytes as an unbroken run. `tensorboard` also writes the
    metrics as TensorBoard events (extra `track`).
    On one CPU and thread count the same seed gives the same bits. Two runs with one seed are a pair: same order, same
    views, same dropout, same noise draws.
    Raises AskedWronglyError for a split whose role is `test`, ConfigError listing every wrong setting, MismatchError
    when classes differ, TrainingError before the update when the loss is not finite.
    """
    check_roles(split, val)
    chosen_views = expand_views(views)
    classifier = as_classifier(model, input_shape=split.input_shape)
    place = resolve_device(device)
    settings: dict[str, Any] = {
        "epochs": epochs, "batch_size": batch_size, "optimizer": optimizer, "lr": lr, "momentum": momentum,
        "weight_decay": weight_decay, "schedule": schedule, "warmup_epochs": warmup_epochs, "views": list(chosen_views),
        "every_view": every_view, "precision": precision, "patience": patience,
        "keep": keep or ("last" if val is None else "best"), "seed": seed, "train": split.fingerprint,
        "val": None if val is None else val.fingerprint, "labels": _labels_fingerprint(split, val),
        "objective": getattr(objective, "record", {}), "architecture": classifier.architecture,
    }  # fmt: skip
    check_settings(settings, val, run, {"resume": resume, "tensorboard": tensorboard})
    rule = build_optimizer(optimizer, classifier.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
    if hasattr(objective, "check"):
        objective.check(split, chosen_views, int(classifier.architecture.get("classes") or split.classes))
    loop = _Loop(classifier.to(place), rule, objective, split, val, place, settings, chosen_views)
    folder = None if run is None else Path(run)
    if folder is not None and ((folder / WEIGHTS).exists() or (folder / CHECKPOINT).exists()):
        if not resume:
            raise AskedWronglyError(f"{folder}: holds a training already: resume=True goes on with it, or name another")
        if (folder / WEIGHTS).exists():
            return loop.finished(folder)
    return loop.run(folder, resume, checkpoint_every_s, tensorboard, progress)


class _Loop:
    """The state of one `fit`, so that its parts can be read one by one."""

    def __init__(
        self,
        model: Classifier,
        optimizer: torch.optim.Optimizer,
        objective: Callable[[Tensor, Batch], Any],
        split: Split,
        val: Split | None,
        device: torch.device,
        settings: dict[str, Any],
        views: tuple[str, ...],
    ) -> None:
        # Convolutions on the CPU run faster on channels-last memory; values and saved bytes are the same.
        self.model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer, self.objective = optimizer, objective
        self.split, self.val, self.device, self.settings, self.views = split, val, device, settings, views
        self.progress = Progress()
        self.best: dict[str, Tensor] = {}
        samples = len(split) * (len(views) if settings["every_view"] else 1)
        self.batches = max(1, samples // settings["batch_size"] + (samples % settings["batch_size"] > 1))
        self.total_steps = self.batches * settings["epochs"]

    def run(
        self,
        folder: Path | None,
        resume: bool,
        checkpoint_every_s: float,
        tensorboard: bool,
        tell: Callable[[Tick], None] | None,
    ) -> History:
        """All epochs from where the checkpoint stands, or from the start."""
        if folder is not None and resume:
            found = read_checkpoint(folder, self.settings, self.model, self.optimizer)
            if found is not None:
                self.progress, self.best = found
        state, saved = self.progress, time.monotonic()
        events = Events(folder, len(state.epochs)) if tensorboard and folder is not None else None
        with torch.random.fork_rng():
            while state.step < self.total_steps and not self._out_of_patience():
                started = time.monotonic()
                for batch in self._epoch_batches(state.step // self.batches, state.step % self.batches):
                    loss = self._step(batch)
                    state.step += 1
                    if tell is not None:
                        tell(self._tick(loss))
                    due = folder is not None and time.monotonic() - saved >= checkpoint_every_s
                    if due and state.step % self.batches:
                        state.seconds += time.monotonic() - started
                        self._save(folder)
                        started = saved = time.monotonic()
                state.seconds += time.monotonic() - started
                line = self._end_epoch()
                if events is not None:
                    events.write(line)
                if folder is not None:
                    Run(folder).write_metrics(state.epochs)
                    if time.monotonic() - saved >= checkpoint_every_s:
                        self._save(folder)
                        saved = time.monotonic()
        if events is not None:
            events.close()
        return self._finish(folder)

    def _save(self, folder: Path | None) -> None:
        assert folder is not None
        write_checkpoint(folder, self.settings, self.progress, self.model, self.optimizer, self.best)

    def _epoch_batches(self, epoch: int, first: int) -> Iterator[Batch]:
        """The epoch's batches from number `first` on: order and views are functions of (seed, epoch) alone."""
        seed, size, rows_total = self.settings["seed"], self.settings["batch_size"], len(self.split)
        samples = rows_total * (len(self.views) if self.settings["every_view"] else 1)
        order = torch.randperm(samples, generator=stream(seed, "order", epoch))
        if self.settings["every_view"]:
            which_of = order // rows_total
        else:
            which_of = torch.randint(len(self.views), (samples,), generator=stream(seed, "view", epoch))
        for number in range(first, self.batches):
            part = slice(number * size, (number + 1) * size)
            rows, which = order[part] % rows_total, which_of[part]
            images = self.split.images_at(rows, self.views, which)
            images = images.to(self.device, memory_format=torch.channels_last)
            labels = self.split.labels_at(rows).to(self.device) if self.split.labels is not None else None
            step = epoch * self.batches + number
            yield Batch(images, labels, rows, self.views, which, step, seed, rows_total, self.total_steps)

    def _step(self, batch: Batch) -> float:
        """One update; returns the loss before it. Raises TrainingError instead of updating on a loss not finite."""
        settings = self.settings
        factor = rate_factor(
            settings["schedule"], batch.step, self.total_steps, round(settings["warmup_epochs"] * self.batches)
        )
        for group in self.optimizer.param_groups:
            group["lr"] = settings["lr"] * factor
        seed = derive(settings["seed"], "dropout", batch.step)
        if self.device.type == "cpu":  # torch.manual_seed also looks for accelerators, which takes 0.2 ms a step
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)
        self.model.train()
        with precision_context(settings["precision"], self.device):
            logits = self.model(batch.images)
        answer = self.objective(logits.float(), batch)
        loss, numbers = answer if isinstance(answer, tuple) else (answer, {})
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss is {value} at step {batch.step + 1} of {self.total_steps} (epoch "
                f"{batch.step // self.batches + 1}); the weights were not updated. Try a lower lr (now "
                f"{settings['lr']:g}), a warm-up, or precision fp32, and check the inputs for NaN"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        for name, number in {"train/loss": value, **numbers}.items():
            if not math.isfinite(number):
                raise TrainingError(f"the objective's number {name!r} is {number} at step {batch.step + 1}")
            if name.endswith("_rms"):
                number = number**2
            self.progress.sums[name] = self.progress.sums.get(name, 0.0) + number * len(batch.rows)
        self.progress.sums["samples"] = self.progress.sums.get("samples", 0.0) + len(batch.rows)
        return value

    def _end_epoch(self) -> dict[str, Any]:
        """Close the epoch: its means, its validation, whether it is the best so far; its line of metrics."""
        state = self.progress
        samples = state.sums.pop("samples")
        line: dict[str, Any] = {"epoch": len(state.epochs) + 1, "step": state.step}
        means = {name: total / samples for name, total in state.sums.items()}
        line |= {name: math.sqrt(mean) if name.endswith("_rms") else mean for name, mean in means.items()}
        state.sums = {}
        line["lr"] = self.optimizer.param_groups[0]["lr"]
        if self.val is not None:
            logits = predict(self.model, self.val, device=str(self.device), precision=self.settings["precision"])
            if not torch.isfinite(logits).all():
                raise TrainingError(
                    f"the logits on validation are not finite after epoch {line['epoch']}: try a lower lr"
                )
            scores = score(logits, self.val)
            assert scores.error is not None
            assert scores.nll is not None
            line |= {"val/error": float(scores.error), "val/nll": float(scores.nll)}
            key = [float(scores.error), float(scores.nll)]
            if not state.best_key or key < state.best_key:
                state.best_key, state.best_epoch = key, line["epoch"]
                self.best = _copy(self.model)
        line["seconds"] = round(state.seconds, 3)
        state.epochs.append(line)
        return line

    def _out_of_patience(self) -> bool:
        patience, state = self.settings["patience"], self.progress
        return patience is not None and len(state.epochs) - state.best_epoch >= patience and bool(state.epochs)

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
                save_model(self.model, folder / file, {"training": self._record()})
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


def _labels_fingerprint(*splits: Split | None) -> str:
    """The labels of both splits, which their images' fingerprints leave out."""
    return sha256(tensor_bytes(split.targets) for split in splits if split is not None and split.labels is not None)


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
