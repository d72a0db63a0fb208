"""The steps of a training, one after the other: what `fit` starts once everything is checked."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from noisyteacher.allocator import give_back, keep_memory
from noisyteacher.checkpoint import (
    Progress,
    Signals,
    drop_checkpoint,
    read_checkpoint,
    same_settings,
    write_checkpoint,
)
from noisyteacher.data import Batch, Split, epoch_batches, samples_of
from noisyteacher.device import precise, precision_context
from noisyteacher.errors import FileFormatError, NoisyTeacherError, TrainingError
from noisyteacher.events import Events
from noisyteacher.history import History, Tick
from noisyteacher.models import Classifier, save_model
from noisyteacher.modes import TRIED_ON, layout_of, pooling_first, pools_behind_relus
from noisyteacher.objectives import loss_and_numbers
from noisyteacher.ranks import Spread, agree, gather, greatest, led, place
from noisyteacher.refusals import OTHER, refuse_gradients
from noisyteacher.rng import derive, kept_draws, seed_draws
from noisyteacher.runs import Run
from noisyteacher.schedule import rate_factor
from noisyteacher.stopwatch import NoStopwatch, Stopwatch
from noisyteacher.tensorfile import read_tensors
from noisyteacher.train.batch_norms import lagging, reestimate
from noisyteacher.validation import Validation

WEIGHTS = "weights.safetensors"


class Loop:
    """The state of one `fit`, so that its parts can be read one by one."""

    def __init__(
        self, model: Classifier, optimizer: torch.optim.Optimizer, objective: Callable[[Tensor, Batch], Any],
        split: Split, val: Validation | None, device: torch.device, settings: dict[str, Any], views: tuple[str, ...],
    ) -> None:  # fmt: skip
        self.model, self.named = model, list(model.named_parameters())
        self.parts = list(model.modules())
        self.pairs = pools_behind_relus(model.network) if type(model) is Classifier else []
        self.optimizer, self.objective = optimizer, objective
        self.split, self.val, self.device, self.settings, self.views = split, val, device, settings, views
        self.layout, self.progress = torch.contiguous_format, Progress()
        self.best: dict[str, Tensor] = {}
        self.saved = self.clock = 0.0
        self.whole = True  # weights, optimizer and progress belong to one step: a checkpoint may be written
        self.signals = Signals()  # those that came during a step, held where there is a run folder
        self.clockwork: Stopwatch = NoStopwatch(device)
        self.place = place()
        self.spread: Spread | None = None
        self.folder: Path | None = None
        self.events: Events | None = None
        samples = samples_of(split, views, settings["every_view"])
        self.batches = max(1, samples // settings["batch_size"] + (samples % settings["batch_size"] > 1))
        self.total_steps = self.batches * settings["epochs"]
        self.reestimates = settings.get("batch_norm") == "reestimate" and lagging(model, self.batches)

    def begin(self, folder: Path | None, resume: bool, tensorboard: bool) -> None:
        """Take the memory order to train in, and go to where the checkpoint in the run folder stands, if any."""
        keep_memory()
        self.layout = layout_of(self.model, self.split.first_images(TRIED_ON))
        self.model.to(memory_format=self.layout)  # type: ignore[call-overload]
        if folder is not None and resume:
            found = read_checkpoint(folder, self.settings, self.model, self.optimizer)
            self.progress, self.best = found or (self.progress, self.best)
        self.folder = folder if self.place.leads else None  # the leading process writes
        if tensorboard and self.folder is not None:
            self.events = Events(self.folder, len(self.progress.epochs))
        self.saved = time.monotonic()

    def run(
        self, folder: Path | None, resume: bool, checkpoint_every_s: float, tensorboard: bool,
        tell: Callable[[Tick], None] | None,
    ) -> History:  # fmt: skip
        """All epochs from where the checkpoint stands, or from the start."""
        try:
            with kept_draws(self.device), precise(self.settings["precision"], self.device):
                self.begin(folder, resume, tensorboard)
                self.spread = Spread(self.model, self.device) if self.place.size > 1 else None
                while not self.over():
                    self._train_epoch(checkpoint_every_s, tell)
                    self.close_epoch(checkpoint_every_s)
                    self._heed()
        except NoisyTeacherError:
            raise
        except BaseException:  # interrupted, or a `progress` of the caller's that raises: nothing whole is lost
            self.rescue()
            raise
        finally:
            if self.spread is not None:
                self.spread.end()
            self.put_back()
        return self.finish()

    def put_back(self) -> None:
        """One memory order for whatever comes after, trained or loaded: equal inputs then give equal bits."""
        self.model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    def rescue(self) -> None:
        """A checkpoint on the way out, where there is something whole to save; a full disk must not hide the cause."""
        if self.whole and self.progress.step:
            with suppress(NoisyTeacherError):
                self.checkpoint()

    def batches_left(self) -> Iterator[Batch]:
        """The batches the epoch still lacks: none when a checkpoint was written between them and its end."""
        epoch = len(self.progress.epochs)
        return epoch_batches(
            self.split, self.views, seed=self.settings["seed"], epoch=epoch,
            first=self.progress.step - epoch * self.batches, batches=self.batches,
            batch_size=self.settings["batch_size"], every_view=self.settings["every_view"],
            total_steps=self.total_steps, device=self.device, augment=self.settings.get("augment", "none"),
            share=self.place.share, layout=self.layout,
        )  # fmt: skip

    def _train_epoch(self, every_s: float, tell: Callable[[Tick], None] | None) -> None:
        self.clock = time.monotonic()
        self.clockwork.start()
        for batch in self.batches_left():
            self.clockwork.mark("data")
            self.whole = False
            loss = self._step(batch)
            self.step_done()
            if tell is not None:
                tell(self.tick(loss))
            self.clockwork.mark("logging")
            self.clockwork.step_done(len(batch.rows))
            self.checkpoint(every_s)
            self._heed()
            self.clockwork.mark("checkpoint")

    def step_done(self, students: int = 1) -> None:
        """One step more, and its time, or this one's share of the time of so many students."""
        now = time.monotonic()
        self.progress.step += 1
        self.progress.seconds, self.clock = self.progress.seconds + (now - self.clock) / students, now
        self.whole = True

    def _heed(self) -> None:
        """Let a signal take effect that came during a step; in a group on all processes after the same step."""
        if self.place.size == 1:
            self.signals.release()
        elif number := greatest(self.signals.newest, self.device):
            self.signals.release(number)

    def checkpoint(self, every_s: float = 0.0) -> None:
        """Write a checkpoint when the last one is so many seconds old, where there is a run folder."""
        if self.folder is not None and time.monotonic() - self.saved >= every_s:
            self.optimizer.zero_grad(set_to_none=True)
            give_back()
            write_checkpoint(self.folder, self.settings, self.progress, self.model, self.optimizer, self.best)
            self.saved = self.clock = time.monotonic()

    def _step(self, batch: Batch) -> float:
        """One update; returns the loss before it. Raises TrainingError instead of updating on a loss not finite."""
        settings = self.settings
        self.set_rate(self.optimizer, batch.step)
        self.seed_draws(batch.step)
        if not all(part.training for part in self.parts):
            self.model.train()
        with precision_context(settings["precision"], self.device), pooling_first(self.pairs):
            logits = self.model(batch.images) if self.spread is None else self.spread(batch.images, len(batch.rows))
        self.clockwork.mark("forward")
        loss, numbers = loss_and_numbers(self.objective(gather(logits.float(), len(batch.rows)), batch))
        value = float(loss.detach())
        self.refuse_loss(value)
        self.clockwork.mark("noise")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.clockwork.mark("backward")
        refuse_gradients(self.named, batch.step)
        self.clockwork.mark("checks")
        self.optimizer.step()
        self.clockwork.mark("optimizer")
        self.count({"train/loss": value, **numbers}, len(batch.rows))
        return value

    def seed_draws(self, step: int) -> None:
        """Let what the network and the objective draw at this step from torch's own generators be its own."""
        others = (self.place.rank,) if self.place.rank else ()  # a share's dropout is its own
        seed_draws(derive(self.settings["seed"], "dropout", step, *others), self.device)

    def refuse_loss(self, value: float) -> None:
        """Raises TrainingError for a loss of the running step that is not finite."""
        if not math.isfinite(value):
            step = self.progress.step
            raise TrainingError(
                f"the loss is {value} at step {step + 1} of {self.total_steps} (epoch {step // self.batches + 1}); the "
                f"weights were not updated. Try a lower lr (now {self.settings['lr']:g}), a warm-up, or precision "
                "fp32, and check the inputs for NaN"
            )

    def count(self, numbers: dict[str, float], samples: int) -> None:
        """Put the running step's numbers into the epoch's sums."""
        sums = self.progress.sums
        for name, number in numbers.items():
            if not math.isfinite(number):
                raise TrainingError(f"the objective's number {name!r} is {number} at step {self.progress.step + 1}")
            if name.endswith("_rms"):
                number = number**2
            sums[name] = sums.get(name, 0.0) + number * samples
        sums["samples"] = sums.get("samples", 0.0) + samples

    def set_rate(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """The learning rate of this step, for all the optimizer learns."""
        rate = self.rate(step)
        for group in optimizer.param_groups:
            group["lr"] = rate

    def rate(self, step: int) -> float:
        """The learning rate of a step, from 0."""
        settings, warmup = self.settings, round(self.settings["warmup_epochs"] * self.batches)
        return float(settings["lr"] * rate_factor(settings["schedule"], step, self.total_steps, warmup))

    def close_epoch(self, checkpoint_every_s: float) -> None:
        """Close the epoch in memory and in the run folder."""
        self.clockwork.start()
        line = self._end_epoch()
        self.clockwork.mark("validation")
        if self.events is not None:
            self.events.write(line)
        if self.folder is not None:
            Run(self.folder).write_metrics(self.progress.epochs)
        self.checkpoint(checkpoint_every_s)
        self.clockwork.mark("checkpoint")

    def _end_epoch(self) -> dict[str, Any]:
        """Close the epoch: its means, its validation, whether it is the best so far; its line of metrics."""
        state = self.progress
        samples = state.sums["samples"]
        line: dict[str, Any] = {"epoch": len(state.epochs) + 1, "step": state.step}
        means = {name: total / samples for name, total in state.sums.items() if name != "samples"}
        line |= {name: math.sqrt(mean) if name.endswith("_rms") else mean for name, mean in means.items()}
        line["lr"] = self.rate(state.step - 1)
        key: list[float] = []
        if self.reestimates:
            self.seed_draws(state.step)  # the estimate's own dropout draws, also after a resume
            reestimate(self.model, self.split, self.device, self.settings["precision"], self.layout)
        if self.val is not None:
            judge, epoch = self.val, line["epoch"]
            numbers, key = led(lambda: judge(self.model, epoch))
            line |= numbers
        line["seconds"] = agree(round(state.seconds, 3))
        self.whole = False
        if key and (not state.best_key or key < state.best_key):
            state.best_key, state.best_epoch = key, line["epoch"]
            self.best = _copy(self.model)
        state.sums = {}
        state.epochs.append(line)
        self.whole = True
        return line

    def over(self) -> bool:
        """Every epoch is closed, or there was no better one for as long as there is patience."""
        patience, state = self.settings["patience"], self.progress
        done = len(state.epochs)
        return done >= self.settings["epochs"] or (patience is not None and 0 < done >= state.best_epoch + patience)

    def tick(self, loss: float, step: int = 0) -> Tick:
        state, step = self.progress, step or self.progress.step
        newest = state.epochs[-1].get("val/error") if state.epochs else None
        return Tick((step - 1) // self.batches + 1, self.settings["epochs"], step, self.total_steps, loss, newest)

    def finish(self) -> History:
        """The weights that are kept, in the model and in the run folder; the checkpoint is no longer needed."""
        if self.events is not None:
            self.events.close()
        state, folder, last, keep = self.progress, self.folder, _copy(self.model), self.settings["keep"]
        ends = {"last": last, "best": self.best} if self.val is not None else {"last": last}
        if folder is not None:
            Run(folder).write_metrics(state.epochs)
        for name in sorted(ends, key=lambda one: one == keep):  # the kept one last: its file says that the run is over
            self.model.load_state_dict(ends[name])
            if folder is not None:
                file = WEIGHTS if name == keep else OTHER[keep]
                save_model(self.model, folder / file, {"training": self._record()}, within=folder)
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
        epochs = Run(folder).metrics()
        if len(epochs) != training.get("epochs") or not all(isinstance(one.get("seconds"), float) for one in epochs):
            raise FileFormatError(
                f"{folder / 'metrics.jsonl'}: does not tell of the {training.get('epochs')} epochs that the weights "
                "beside it took: restore it from a copy, or remove the run and train it again"
            )
        self.progress.epochs, self.progress.best_epoch = epochs, training["best_epoch"]
        self.progress.seconds = epochs[-1]["seconds"]
        self.put_back()
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
            profile=None if isinstance(self.clockwork, NoStopwatch) else self.clockwork,
        )


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
