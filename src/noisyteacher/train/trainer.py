"""The one training loop: epochs, validation, checkpoints and signals of one or many students; steps are an engine's."""

from __future__ import annotations

import copy
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from noisyteacher.data import Batch, epoch_batches
from noisyteacher.device import PROBE_BATCH, choose_memory_format, precise
from noisyteacher.distributed import broadcast, gather_objects, on_rank_zero
from noisyteacher.errors import FileFormatError, NoisyTeacherError, TrainingError
from noisyteacher.io.files import make_folder
from noisyteacher.io.tensors import read_tensors
from noisyteacher.models import save_model
from noisyteacher.rng import kept_draws
from noisyteacher.runs import METRICS, OTHER_WEIGHTS, WEIGHTS, Run
from noisyteacher.train.checkpoint import Signals, check_identity, drop_checkpoint, read_checkpoint, write_checkpoint
from noisyteacher.train.cuda_graph import GraphEngine, can_replay
from noisyteacher.train.engines import EagerEngine
from noisyteacher.train.history import History, PhaseTimer, Tick
from noisyteacher.train.state import StepReport, Student, TrainingPlan, seed_step, seeds_of
from noisyteacher.train.tracking import Trackers
from noisyteacher.train.validation import reestimate_batch_norms

Outcome = History | NoisyTeacherError
Engine = EagerEngine | GraphEngine
"""Computes steps of students that stand at the same step of the same plan. `lookahead`: steps that may be started
before the first one's numbers are read; `replayed`: whether some step was replayed."""


class Trainer:
    """Trains students that stand at the same step, until each is over; a student that fails ends alone."""

    def __init__(
        self,
        students: Sequence[Student],
        plan: TrainingPlan,
        *,
        checkpoint_every_s: float,
        signals: Signals | None = None,
        on_step: Callable[[Tick], None] | None = None,
        profiler: PhaseTimer | None = None,
        track: Sequence[str] = (),
    ) -> None:
        self.students, self.plan = list(students), plan
        self.checkpoint_every_s, self.signals = checkpoint_every_s, signals or Signals()
        self.on_step, self.profiler = on_step, profiler
        self.mark = (lambda phase: None) if profiler is None else profiler.mark
        self.pending: deque[Callable[[], StepReport]] = deque()
        """Steps that were started and not recorded, the oldest first."""
        self.consistent = True
        """Whether a checkpoint may be written: False while a step, or the end of an epoch, is half done."""
        self.replayed = False
        self.trackers = {
            student: Trackers(track, student.folder, student.identity, len(student.progress.epochs))
            for student in students
            if track and student.folder is not None
        }
        self.last_checkpoint = self.clock = time.monotonic()

    def run(self) -> list[Outcome]:
        """Every student's History, or the error that ended its training."""
        try:
            with self._device_settings():
                while running := [student for student in self.students if not student.is_over(self.plan)]:
                    self._run_until_one_is_over(running)
        except NoisyTeacherError:
            self._close_trackers(failed=True)
            raise
        finally:
            for student in self.students:
                restore_memory_format(student.model)
        self._close_trackers()
        return [student.error or self._finish(student) for student in self.students]

    def _close_trackers(self, failed: bool = False) -> None:
        """Record that every training is over, and whether it failed."""
        for student, trackers in self.trackers.items():
            trackers.close(failed=failed or student.error is not None)

    @contextmanager
    def _device_settings(self) -> Iterator[None]:
        """Inside, fp32 means fp32 on the device, and torch's global generators are restored afterwards."""
        device, cudnn = self.plan.device, torch.backends.cudnn
        on_device = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
        benchmark = cudnn.benchmark
        if device.type == "cuda" and not (cudnn.deterministic or torch.are_deterministic_algorithms_enabled()):
            cudnn.benchmark = True  # kernels are chosen by trying them, once for each shape
        try:
            with kept_draws(device), precise(self.plan.precision, device), on_device:
                yield
        finally:
            cudnn.benchmark = benchmark

    def _run_until_one_is_over(self, students: Sequence[Student]) -> None:
        engine: Engine
        if self.profiler is None and can_replay(students, self.plan):
            engine = GraphEngine(students, self.plan)
        else:
            engine = EagerEngine(students, self.plan, self.mark)
        try:
            while not any(student.is_over(self.plan) for student in students):
                self._epoch(engine, students)
        except NoisyTeacherError:
            raise
        except BaseException:  # interrupted, or raised by the caller's `progress`
            self._checkpoint_on_the_way_out(engine, students)
            raise
        finally:
            engine.release()
            self.replayed |= engine.replayed

    def _epoch(self, engine: Engine, students: Sequence[Student]) -> None:
        """Train one epoch, or what is left of it, validate and record it; stop early if all students have failed."""
        self.clock = time.monotonic()
        if self.profiler is not None:
            self.profiler.start()
        for batches in engine.prepare(self._batches(students)):
            self.mark("data")
            self.consistent = False
            self.pending.append(engine.step(batches))
            self.consistent = True
            self._record_pending(students, keep=engine.lookahead)
            if time.monotonic() - self.last_checkpoint >= self.checkpoint_every_s:
                self._record_pending(students)
                engine.sync_buffers()
                self._checkpoint(students)
            self._handle_signals(students)
            self.mark("checkpoint")
            if all(student.error for student in students):
                break
        self._record_pending(students)
        engine.sync_buffers()
        for student in students:
            if student.error is None:
                try:
                    self._close_epoch(student)
                except NoisyTeacherError as error:
                    student.error = error
        if time.monotonic() - self.last_checkpoint >= self.checkpoint_every_s:
            self._checkpoint(students)
        self.mark("checkpoint")
        self._handle_signals(students)

    def _batches(self, students: Sequence[Student]) -> Iterator[tuple[Batch, ...]]:
        """The batches that the epoch still lacks, at every step one for each seed."""
        plan, progress = self.plan, students[0].progress
        epoch = len(progress.epochs)
        batches_of = partial(
            epoch_batches, plan.split, plan.views, epoch=epoch, first=progress.step - epoch * plan.batches,
            batches=plan.batches, batch_size=plan.settings.batch_size, every_view=plan.settings.every_view,
            total_steps=plan.total_steps, device=plan.device, augment=plan.settings.augment, share=plan.world.share,
            layout=plan.memory_format, sampling=plan.settings.sampling,
        )  # fmt: skip
        seeds, _ = seeds_of(students)
        return zip(*(batches_of(seed=seed) for seed in seeds), strict=True)

    def _record_pending(self, students: Sequence[Student], keep: int = 0) -> None:
        """Record the pending steps but the last `keep`."""
        while len(self.pending) > keep:
            report = self.pending[0]()
            self.consistent = False
            self._record(report, students)
            self.pending.popleft()
            self.consistent = True
            if self.on_step is not None and not all(student.error for student in students):
                epochs = students[0].progress.epochs
                val_error = epochs[-1].get("val/error") if epochs else None
                epoch, total = report.step // self.plan.batches + 1, self.plan.total_steps
                self.on_step(
                    Tick(epoch, self.plan.settings.epochs, report.step + 1, total, report.losses[0], val_error)
                )
            self.mark("logging")
            if self.profiler is not None:
                self.profiler.step_done(report.samples)

    def _record(self, report: StepReport, students: Sequence[Student]) -> None:
        """Add a step's numbers to the sums of every student that has not failed; a student may fail here."""
        now = time.monotonic()
        seconds, self.clock = (now - self.clock) / len(students), now
        for row, student in enumerate(students):
            student.error = student.error or report.errors.get(row)
            if student.error is None:
                try:
                    student.progress.add(report.losses[row], report.metrics[row], report.samples)
                    student.progress.seconds += seconds
                except TrainingError as error:
                    student.error = error

    def _close_epoch(self, student: Student) -> None:
        """End the epoch of a student: means, validation, whether it is the best so far, its line of metrics."""
        plan, progress = self.plan, student.progress
        if self.profiler is not None:
            self.profiler.start()
        line: dict[str, Any] = {"epoch": len(progress.epochs) + 1, "step": progress.step, **progress.means()}
        line["lr"] = plan.learning_rate(progress.step - 1)
        key: list[float] = []
        if student.reestimate_batch_norms:
            seed_step(student.seed, progress.step, plan)  # the estimate's own dropout draws, also after a resume
            reestimate_batch_norms(student.model, plan.split, plan.device, plan.precision, plan.memory_format)
        validation, epoch = plan.validation, line["epoch"]
        if validation is not None:
            numbers, key = on_rank_zero(lambda: validation(student.model, epoch))
            line |= numbers
        line["seconds"] = broadcast(round(progress.seconds, 3))
        self.consistent = False
        if key and (not progress.best_key or key < progress.best_key):
            progress.best_key, progress.best_epoch = key, line["epoch"]
            student.best = copy_weights(student.model)
        progress.sums, progress.missing = {}, {}
        progress.epochs.append(line)
        self.consistent = True
        self.mark("validation")
        if student in self.trackers:
            self.trackers[student].write(line)
        if student.folder is not None:
            Run(student.folder).write_metrics(progress.epochs)

    def _checkpoint(self, students: Sequence[Student]) -> None:
        for student in students:
            if student.folder is not None and student.error is None:
                try:
                    student.optimizer.zero_grad(set_to_none=True)
                    write_checkpoint(student)
                except NoisyTeacherError as error:
                    student.error = error
        self.last_checkpoint = self.clock = time.monotonic()

    def _checkpoint_on_the_way_out(self, engine: Engine, students: Sequence[Student]) -> None:
        """Save what is consistent; a full disk must not hide the cause."""
        with suppress(NoisyTeacherError):
            if self.consistent:
                self.on_step = None
                self._record_pending(students)
                engine.sync_buffers()
                self._checkpoint([student for student in students if student.progress.step])

    def _handle_signals(self, students: Sequence[Student]) -> None:
        """Let a signal received during a step take effect, with several processes after the same step on all."""
        number = self.signals.newest
        if self.plan.world.size > 1:
            number = max(gather_objects(number))
        if number:
            self._record_pending(students)
            self.signals.release(number)

    def _finish(self, student: Student) -> History:
        """Put the kept weights into the model, write both sets to the run folder, and drop the checkpoint."""
        plan, folder = self.plan, student.folder
        last = copy_weights(student.model)
        weights = {"last": last} if plan.validation is None else {"last": last, "best": student.best}
        if folder is not None:
            Run(folder).write_metrics(student.progress.epochs)
        record = {
            "settings": student.identity,
            "best_epoch": student.progress.best_epoch,
            "epochs": len(student.progress.epochs),
        }
        for name in sorted(weights, key=lambda name: name == plan.keep):  # the kept file comes last: it marks the end
            student.model.load_state_dict(weights[name])
            if folder is not None:
                file = WEIGHTS if name == plan.keep else OTHER_WEIGHTS[plan.keep]
                save_model(student.model, folder / file, {"training": record}, within=folder)
        student.model.eval()
        if folder is not None:
            drop_checkpoint(folder)
        return replace(history_of(student, plan, weights), profile=self.profiler, replayed=self.replayed)


def start(student: Student, plan: TrainingPlan, folder: Path | None, resume: bool) -> None:
    """Choose the memory order to train in, and load the checkpoint in the run folder, if any."""
    with kept_draws(plan.device), precise(plan.precision, plan.device):
        plan.memory_format = choose_memory_format(student.model, plan.split.first_images(PROBE_BATCH))
    student.model.to(memory_format=plan.memory_format)  # type: ignore[call-overload]
    if folder is None:
        return
    make_folder(folder)
    if resume:
        read_checkpoint(folder, student)
    if plan.world.leads:
        student.folder = folder


def load_finished(student: Student, plan: TrainingPlan, folder: Path) -> History:
    """The History of a run that has ended: its weights are put into the model, nothing is trained.

    Raises MismatchError for a run with other settings, FileFormatError if its files do not belong together.
    """
    kept, record = read_tensors(folder / WEIGHTS, "model", 1)
    training = record.get("training", {})
    check_identity(folder / WEIGHTS, training.get("settings", {}), student.identity)
    weights = {plan.keep: kept}
    if plan.validation is not None:
        other = next(name for name in OTHER_WEIGHTS if name != plan.keep)
        weights[other] = read_tensors(folder / OTHER_WEIGHTS[plan.keep], "model", 1)[0]
    epochs = Run(folder).metrics()
    if len(epochs) != training.get("epochs") or not all(isinstance(line.get("seconds"), float) for line in epochs):
        raise FileFormatError(
            f"{folder / METRICS}: does not hold the {training.get('epochs')} epochs of the weights beside it: "
            "restore it from a copy, or remove the run and train it again"
        )
    progress = student.progress
    progress.epochs, progress.best_epoch, progress.seconds = epochs, training["best_epoch"], epochs[-1]["seconds"]
    restore_memory_format(student.model)
    student.model.load_state_dict(kept)
    student.model.eval()
    drop_checkpoint(folder)  # a process killed behind the last weights has left it
    return history_of(student, plan, weights)


def history_of(student: Student, plan: TrainingPlan, weights: dict[str, dict[str, Tensor]]) -> History:
    """The History of a training that is over, with its `best` and `last` weights."""
    progress = student.progress
    return History(
        epochs=tuple(progress.epochs),
        best_epoch=progress.best_epoch,
        kept=plan.keep,
        seconds=progress.seconds,
        stopped_early=len(progress.epochs) < plan.settings.epochs,
        best=weights.get("best", {}),
        last=weights["last"],
    )


def restore_memory_format(model: nn.Module) -> None:
    """One memory order for whatever comes after, trained or loaded: equal inputs then give equal bits."""
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def copy_weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the model's state on the CPU, tensors in torch's usual memory order."""
    return {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        if isinstance(value, Tensor)
        else copy.deepcopy(value)
        for name, value in model.state_dict().items()
    }
