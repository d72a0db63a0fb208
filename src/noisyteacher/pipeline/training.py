"""A model trained in a run folder of its own, or several of one architecture in theirs by common steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from noisyteacher import metrics
from noisyteacher.data import Split, Splits
from noisyteacher.device import resolve_device
from noisyteacher.distributed import on_rank_zero, peer_failure_as_error, world
from noisyteacher.errors import NoisyTeacherError
from noisyteacher.evaluate import judge
from noisyteacher.io.locks import exclusive_lock, shared_lock
from noisyteacher.measure import measure
from noisyteacher.models import load_weights
from noisyteacher.objectives import Objective
from noisyteacher.pipeline.profiling import profiled
from noisyteacher.progress import Watch, counted_if_slow, stage
from noisyteacher.runs import Run, plain
from noisyteacher.train import WEIGHTS, History, fit, fit_many
from noisyteacher.train.history import ticked


@dataclass(frozen=True)
class Trained:
    """A trained model with the run it lies in and what its result.json says."""

    model: nn.Module
    run: Run
    result: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Training:
    """A model to be trained in this run's folder, evaluated on validation and test, its result written last."""

    run: Run
    model: nn.Module
    data: Splits
    objective: Objective
    recipe: Mapping[str, Any]
    """Options of `fit`."""
    seed: int
    device: str = "auto"
    answers: Mapping[str, object] = field(default_factory=dict)
    """By role (`val`, `test`) a teacher to agree with there, by which validation without labels is judged (not at all
    without it)."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Goes into the result as it is."""
    keeping: Mapping[str, Any] = field(default_factory=dict)
    """Options of `fit` that say what it writes beside the weights."""
    priced: bool = False
    """Whether the result says what the model costs: for a run on its own, which nothing else measures."""
    title: str = "training"
    watch: Watch | None = None


def train_run(asked: Training) -> Trained:
    """The model, trained; where the run is done already, as it was.

    A run that was interrupted goes on from its checkpoint; one that another process works on is waited for. In a group
    of processes all of them train it together, the leading one evaluates and writes, and the result is the same on all.
    An error of this package is written to error.txt on its way out.
    """
    leads = world().leads
    with ExitStack() as held:
        if leads:
            _hold(asked.run, held)
        done = _done(asked)
        if done is not None:
            return done
        with errors_kept(asked.run), peer_failure_as_error():
            history = fit(
                asked.model,
                asked.data.train,
                asked.objective,
                **_judging(asked.data.val, asked.answers, asked.recipe),
                seed=asked.seed,
                device=asked.device,
                run=asked.run.path,
                resume=True,
                **asked.keeping,
                progress=False if asked.watch is None or not leads else ticked(asked.watch, asked.title),
            )
            return _ended(asked, history)


def train_runs(
    asked: Sequence[Training], progress: Callable[[int, int], None] | None = None
) -> list[Trained | NoisyTeacherError]:
    """As `train_run` does for each, those that are not done in common steps (`fit_many`): by order, the trained model
    or the error that ended this one, which is in its error.txt too.

    They differ in models' weights, objectives and seeds alone. Raises UsageError where they cannot be trained as
    one.
    """
    found: dict[int, Trained | NoisyTeacherError] = {}
    with ExitStack() as held:
        for number, one in enumerate(asked):
            _hold(one.run, held)
            done = _done(one)
            if done is not None:
                found[number] = done
        left = {number: one for number, one in enumerate(asked) if number not in found}
        for one in left.values():
            one.run.clear_error()
        if left:
            first = next(iter(left.values()))
            outcomes = fit_many(
                [one.model for one in left.values()],
                first.data.train,
                [one.objective for one in left.values()],
                **_judging(first.data.val, first.answers, {k: v for k, v in first.recipe.items() if k != "augment"}),
                seeds=[one.seed for one in left.values()],
                device=first.device,
                runs=[one.run.path for one in left.values()],
                resume=True,
                **{name: value for name, value in first.keeping.items() if name != "profile"},
                progress=progress or False,
            )
            for (number, one), outcome in zip(left.items(), outcomes, strict=True):
                try:
                    with errors_kept(one.run):
                        if isinstance(outcome, NoisyTeacherError):
                            raise outcome
                        found[number] = _ended(one, outcome, len(left))
                except NoisyTeacherError as error:
                    found[number] = error
    return [found[number] for number in range(len(asked))]


def _hold(run: Run, held: ExitStack) -> None:
    """No other process works in this run's folder until `held` ends."""
    held.enter_context(shared_lock(*run.around))
    held.enter_context(exclusive_lock(run.path))


def _done(asked: Training) -> Trained | None:
    """The model as it was trained before, where the run is done."""
    run = asked.run
    whole = on_rank_zero(lambda: run.result() if run.state == "done" else None)
    if whole is None:
        return None
    load_weights(asked.model, run.path / WEIGHTS)
    return Trained(asked.model, run, whole)


def _ended(asked: Training, history: History, together: int = 1) -> Trained:
    """Evaluate the trained model and write the run's result."""
    result = {
        **on_rank_zero(lambda: judged_on(asked.model, asked.data, asked.answers, asked.device, asked.watch)),
        "classes": list(asked.data.class_names),
        "training": {
            "seconds": history.seconds,
            "epochs": len(history.epochs),
            "best_epoch": history.best_epoch,
            "kept": history.kept,
            "stopped_early": history.stopped_early,
            "device": str(resolve_device(asked.device)),
            "threads": torch.get_num_threads(),
            "precision": asked.recipe["precision"],
            **({} if world().size == 1 else {"processes": world().size}),
            **({} if together == 1 else {"together": together}),
            **({"steps": "replayed"} if history.replayed else {}),
        },
        **({} if history.profile is None else {"profile": profiled(asked.model, history.profile, asked.recipe)}),
        **({"costs": on_rank_zero(lambda: _priced(asked))} if asked.priced else {}),
        **asked.extra,
    }
    if world().leads:
        asked.run.write_result(result)
    return Trained(asked.model.to("cpu"), asked.run, result)  # as `_done` has it; a GPU keeps no finished students


def _priced(asked: Training) -> dict[str, Any] | None:
    """What the model costs; None where it cannot be asked for one image, which is no reason to lose a training."""
    try:
        with stage(asked.watch, "measuring costs"):
            costs = measure(asked.model, asked.data.input_shape, device=asked.device)
    except Exception:
        return None
    return dict(plain(asdict(costs), "costs"))


@contextmanager
def errors_kept(run: Run) -> Iterator[None]:
    """Inside, an error of this package is written to the run's error.txt on its way out; an old one is cleared."""
    if not world().leads:
        yield
        return
    run.clear_error()
    try:
        yield
    except NoisyTeacherError as error:
        with suppress(NoisyTeacherError):  # a full disk must not hide what went wrong
            run.write_error(f"{type(error).__name__}: {error}")
        raise


MANY_CLASSES = 100
"""Up to so many classes a result keeps the whole table of confusions."""


def judged_on(
    model: nn.Module, data: Splits, answers: Mapping[str, object], device: str, watch: Watch | None = None
) -> dict[str, Any]:
    """The model's `scores` on validation and test by role, and the `details` behind them, JSON-able."""
    scores, details = {}, {}
    for split in (data.val, data.test):
        if split is not None:
            if split.labels is None and split.role not in answers:
                continue
            tell = counted_if_slow(watch, f"evaluating on {split.role}", "images")
            found, logits = judge(model, split, teacher=answers.get(split.role), device=device, progress=tell)
            scores[split.role] = found.describe()
            if split.labels is not None:
                details[split.role] = _details(logits, split.labels)
    return {"scores": scores, "details": details}


def _judging(val: Split, answers: Mapping[str, object], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `fit` in a recipe, with what judges its epochs."""
    if val.labels is not None:
        return {**recipe, "val": val}
    if val.role in answers:
        return {**recipe, "val": val, "val_teacher": answers[val.role]}
    return {**recipe, "val": None, "keep": "last"}


def _details(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    rows, confidence, hits = metrics.reliability(logits, labels)
    return {
        "confusion": metrics.confusion(logits, labels).tolist() if logits.shape[1] <= MANY_CLASSES else None,
        "reliability": {
            "count": rows.long().tolist(),
            "confidence_%": _shares(confidence, rows),
            "accuracy_%": _shares(hits, rows),
        },
    }


def _shares(part: Tensor, whole: Tensor) -> list[float | None]:
    """Percentages of the whole; None where there is nothing."""
    return [100 * a / b if b else None for a, b in zip(part.tolist(), whole.tolist(), strict=True)]
