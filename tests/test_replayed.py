"""Steps launched before the last one's numbers are read, and replayed: a GPU's graphs are played by `Graph` here."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

import noisyteacher as nt
from helpers import (
    NOISES,
    SETTINGS,
    SHAPE,
    InfiniteSlope,
    blobs,
    difference,
    largest_difference,
    lines,
    network,
    step_by_step,
    table,
)
from noisyteacher.config.schema import TrainSettings
from noisyteacher.errors import TrainingError
from noisyteacher.models import as_classifier
from noisyteacher.objectives import Objective, Supervised
from noisyteacher.rng import generator, kept_draws
from noisyteacher.train import cuda_graph, fitting, trainer
from noisyteacher.train.cuda_graph import CapturedStep, GraphEngine, is_graph_safe
from noisyteacher.train.history import History, Tick
from noisyteacher.train.optim import Muon
from noisyteacher.train.state import Progress


class Graph:
    """What a CUDA graph does: the same arithmetic on the same tensors, while no attribute in Python changes, and the
    modes of layers are those of the moment when it was captured.
    """

    def __init__(self, engine: GraphEngine, step: CapturedStep) -> None:
        self.engine, self.step = engine, step
        self.modes = [(layer, layer.training) for student in engine.students for layer in student.model.modules()]
        saved = [(tensor, tensor.detach().clone()) for tensor in self.state()]
        with kept_draws():
            step.numbers, step.metrics = engine._compute(step)
        self.numbers = step.numbers
        with torch.no_grad():
            for tensor, before in saved:  # a capture computes nothing
                tensor.copy_(before)

    def state(self) -> list[Tensor]:
        tensors = [self.engine.failed_mask]
        for student in self.engine.students:
            slots = (value for slots in student.optimizer.state.values() for value in slots.values())
            tensors += [*student.model.parameters(), *student.model.buffers(), *slots]
        return tensors

    def replay(self) -> None:
        parameters = [parameter for student in self.engine.students for _, parameter in student.parameters]
        grads, modes = (
            [parameter.grad for parameter in parameters],
            [(layer, layer.training) for layer, _ in self.modes],
        )
        for layer, mode in self.modes:
            layer.training = mode
        numbers, _ = self.engine._compute(self.step)
        self.numbers.copy_(numbers)
        for layer, mode in modes:
            layer.training = mode
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """All trainings run on the graph engine; the list has the number of students of every step."""
    counts: list[int] = []

    class Engine(GraphEngine):
        def __init__(self, students: Any, plan: Any) -> None:
            super().__init__(students, plan)
            self.can_capture = True

        def step(self, batches: Any) -> Any:
            counts.append(len(self.students))
            return super().step(batches)

        def _capture(self, step: CapturedStep) -> None:
            step.graph = Graph(self, step)

    monkeypatch.setattr(trainer, "GraphEngine", Engine)
    monkeypatch.setattr(trainer, "can_replay", lambda students, plan: True)
    monkeypatch.setattr(cuda_graph, "EAGER_STEPS", 2)
    return counts


def every_objective() -> list[Objective]:
    clean = [
        nt.supervised(),
        nt.distil(table(), loss="soft_targets", noise=NOISES[1]),
        nt.distil(table(), label_weight=0.3),
        nt.distil(table(), label_weight=0.3, noise=NOISES[6]),
    ]
    return [*clean, *(nt.distil(table(), noise=noise) for noise in NOISES)]


def alone(models: list[Any], objectives: list[Objective], seeds: list[int], **options: Any) -> list[History]:
    """Each by `fit`, step by step, whatever `launched` says."""
    return [
        step_by_step(model, blobs(), objective, seed=seed, **options)
        for model, objective, seed in zip(models, objectives, seeds, strict=True)
    ]


def assert_same_lines(history: History | Exception, expected: History) -> None:
    for line, expected_line in zip(lines(history), lines(expected), strict=True):
        assert line == pytest.approx(expected_line, rel=2e-4, abs=2e-5)


def test_every_kind_of_noise_and_loss_is_learned_as_alone(launched: list[int]) -> None:
    objectives = every_objective() * 2
    seeds = [0] * (len(objectives) // 2) + [1] * (len(objectives) // 2)
    options = {**SETTINGS, "val": blobs(30, "val", seed=1)}
    apart, together = ([network(seed) for seed in seeds] for _ in range(2))
    single = alone(apart, objectives, seeds, **options)
    many = nt.fit_many(together, blobs(), objectives, seeds=seeds, **options)
    assert launched == [len(objectives)] * 9
    for history, expected in zip(many, single, strict=True):
        assert_same_lines(history, expected)
    assert largest_difference(apart, together) < 1e-4


@pytest.mark.parametrize(
    "changed",
    [
        {"optimizer": "sgd", "momentum": 0.5, "weight_decay": 1e-2, "schedule": "cosine", "warmup_epochs": 1.0},
        {"optimizer": "adamw", "weight_decay": 1e-2, "views": ("clean", "mirror"), "every_view": True},
        {"optimizer": "muon", "weight_decay": 1e-2},
        {"augment": "mixup"},
        {"batch_size": 40},  # the last batch of an epoch has 16
    ],
)
def test_under_other_recipes_one_alone_is_what_it_was(launched: list[int], changed: dict[str, Any]) -> None:
    options = {**SETTINGS, **changed}
    dropping = [as_classifier(nn.Sequential(network(0).network, nn.Dropout(0.4)), input_shape=SHAPE) for _ in range(2)]
    dropping[1].load_state_dict(dropping[0].state_dict())
    objective = nt.supervised() if {"every_view", "augment"} & options.keys() else nt.distil(table(), noise=NOISES[1])
    (expected,) = alone(dropping[:1], [objective], [3], **options)
    ticks: list[Tick] = []
    history = nt.fit(dropping[1], blobs(), objective, seed=3, progress=ticks.append, **options)
    assert launched
    assert (history.replayed, expected.replayed) == (True, False)
    assert [tick.step for tick in ticks] == list(range(1, len(ticks) + 1))
    assert len(ticks) == history.epochs[-1]["step"]
    assert_same_lines(history, expected)
    assert difference(*dropping) < 1e-4


def spoilt(seed: int) -> Tensor:
    """Targets with which the loss of a training with this seed is not finite at its third step."""
    targets = table()
    targets[int(torch.randperm(96, generator=generator(seed, "order", 0))[70])] = 3e30
    return targets


def test_one_that_fails_keeps_its_weights_and_stops_nobody(launched: list[int]) -> None:
    models, clean = [network(seed, norm=False) for seed in range(3)], [network(seed, norm=False) for seed in range(3)]
    good = nt.distil(table(), noise=NOISES[1])
    bad = nt.distil(spoilt(1), noise=NOISES[1])
    outcomes = nt.fit_many(models, blobs(), [good, bad, good], seeds=[0, 1, 2], **SETTINGS)
    assert isinstance(outcomes[1], TrainingError)
    assert "the weights were not updated" in str(outcomes[1])
    assert "at step 3 of 9" in str(outcomes[1])
    with pytest.raises(TrainingError) as caught:
        alone([clean[1]], [bad], [1], **SETTINGS)
    assert str(caught.value) == str(outcomes[1])
    assert difference(models[1], clean[1]) < 1e-5
    expected = alone([clean[0], clean[2]], [good, good], [0, 2], **SETTINGS)
    for ours, theirs in zip((outcomes[0], outcomes[2]), expected, strict=True):
        assert isinstance(ours, History)
        assert lines(ours)[-1] == pytest.approx(lines(theirs)[-1], rel=2e-4, abs=2e-5)
    assert set(launched) == {3, 2}  # the failed one leaves at the epoch's end
    launched.clear()
    with pytest.raises(TrainingError, match="at step 9 of 36"):
        nt.fit(network(1, norm=False), blobs(), bad, seed=1, **{**SETTINGS, "batch_size": 8})
    assert len(launched) == 10, "one alone ends when its failure is read"


def test_one_whose_teacher_fails_learns_no_more(launched: list[int]) -> None:
    """Its loss has no gradient from then on, but Adam's momentum would still move it."""
    calls: list[int] = []

    class Failing(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            calls.append(1)
            return torch.full((len(images), 3), float("nan") if len(calls) > 9 else 1.0)

    bad = nt.distil(Failing())
    models, clean = [network(0, norm=False), network(1, norm=False)], network(1, norm=False)
    outcomes = nt.fit_many(models, blobs(), [nt.supervised(), bad], seeds=[0, 1], **SETTINGS)
    assert isinstance(outcomes[0], History)
    assert "logits are NaN" in str(outcomes[1])
    calls.clear()
    with pytest.raises(TrainingError, match="logits are NaN"):
        alone([clean], [bad], [1], **SETTINGS)
    assert difference(clean, network(1, norm=False)) > 0
    assert difference(models[1], clean) < 1e-5


class Root(nn.Module):
    """Its gradient is not finite once all weights have left it alone for this many steps."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(64, 3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = (self.inner(images.flatten(1)) * (images.mean() - images.mean())).sqrt()
        return logits


def test_a_gradient_that_is_not_finite_is_named(launched: list[int]) -> None:
    model = as_classifier(Root(), input_shape=SHAPE)
    before = [value.detach().clone() for value in model.parameters()]
    with pytest.raises(TrainingError, match=r"the gradient of network\.inner\.weight is not finite at step 1"):
        nt.fit(model, blobs(), nt.supervised(), **SETTINGS)
    assert all(map(torch.equal, model.parameters(), before))
    assert launched


def test_a_checkpoint_between_replays_changes_nothing(
    launched: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It drops the gradients that Python sees, a replay brings none back; and two steps at once are told one by one."""
    seconds = itertools.count()
    monkeypatch.setattr(trainer, "time", SimpleNamespace(monotonic=lambda: float(next(seconds))))
    options = {**SETTINGS, "batch_size": 12, "epochs": 2, "seed": 4, "checkpoint_every_s": 7.0}
    objective = nt.distil(table(), noise=NOISES[4])
    (expected,) = alone([network(4)], [objective], [4], **{**SETTINGS, "batch_size": 12, "epochs": 2})
    ticks: list[Tick] = []
    history = nt.fit(network(4), blobs(), objective, run=tmp_path / "run", progress=ticks.append, **options)
    assert_same_lines(history, expected)
    assert [tick.step for tick in ticks] == list(range(1, 17))
    white = blobs()
    white.images[int(torch.randperm(96, generator=generator(4, "order", 0))[75])] = 255
    with pytest.raises(TrainingError, match=r"the gradient of network\.inner\.bias is not finite at step 7"):
        nt.fit(as_classifier(InfiniteSlope(), input_shape=SHAPE), white, objective, run=tmp_path / "late", **options)


@pytest.mark.parametrize("where", ["launch", "reading"])
def test_what_breaks_within_a_step_leaves_no_checkpoint_of_two(
    launched: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    options = {**SETTINGS, "seed": 4}
    objective = nt.distil(table(), noise=NOISES[4])
    whole = network(4)
    nt.fit(whole, blobs(), objective, **options)
    count = itertools.count(1)
    with monkeypatch.context() as patch:
        if where == "launch":
            update = torch.optim.Adam.step

            def broken(self: Any, *arguments: Any) -> Any:
                result = update(self, *arguments)
                if next(count) == 6:
                    raise RuntimeError("out of memory")
                return result

            patch.setattr(torch.optim.Adam, "step", broken)
        else:
            add = Progress.add

            def interrupted(progress: Progress, *arguments: Any) -> None:
                if next(count) == 4:
                    raise KeyboardInterrupt
                add(progress, *arguments)

            patch.setattr(Progress, "add", interrupted)
        with pytest.raises((RuntimeError, KeyboardInterrupt)):
            nt.fit(network(4), blobs(), objective, run=tmp_path / "run", **options)
    again = network(4)
    nt.fit(again, blobs(), objective, run=tmp_path / "run", resume=True, **options)
    assert difference(whole, again) == 0


def test_teachers_of_unlike_numbers_are_picked_from(launched: list[int]) -> None:
    pair = [table(), table().double() * 2]
    objective = nt.distil(pair, combine="pick", noise=NOISES[1])
    apart, replayed = network(0), network(0)
    (expected,) = alone([apart], [objective], [0], **SETTINGS)
    assert_same_lines(nt.fit(replayed, blobs(), objective, **SETTINGS), expected)
    assert difference(apart, replayed) < 1e-4


def test_a_progress_function_may_change_the_mode_of_the_model(launched: list[int]) -> None:
    apart, replayed = network(0), network(0)
    alone([apart], [nt.supervised()], [0], **SETTINGS)

    def evaluating(tick: Tick) -> None:
        replayed.eval()

    nt.fit(replayed, blobs(), nt.supervised(), progress=evaluating, **SETTINGS)
    assert difference(apart, replayed) < 1e-4


def test_an_empty_parameter_is_no_gradient_to_look_at(launched: list[int]) -> None:
    class Empty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.none = nn.Linear(64, 3), nn.Parameter(torch.zeros(0))

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.inner(images.flatten(1)) + self.none.sum()
            return logits

    history = nt.fit(as_classifier(Empty(), input_shape=SHAPE), blobs(), nt.supervised(), **SETTINGS)
    assert len(history.epochs) == 3


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_interrupted_it_goes_on_to_the_same_bits(launched: list[int], tmp_path: Path, stop: int) -> None:
    options = {**SETTINGS, "seed": 4, "val": blobs(30, "val", seed=1)}
    objective = nt.distil(table(), noise=NOISES[4])
    whole, cut = network(4), network(4)
    nt.fit(whole, blobs(), objective, run=tmp_path / "whole", **options)

    def stopping(tick: Tick) -> None:
        if tick.step == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        nt.fit(cut, blobs(), objective, run=tmp_path / "cut", progress=stopping, **options)
    seen: list[int] = []
    again = network(9)
    nt.fit(
        again, blobs(), objective, run=tmp_path / "cut", resume=True, progress=lambda tick: seen.append(tick.step),
        **options,
    )  # fmt: skip
    assert seen[0] in (stop + 1, stop + 2)  # one more was under way, and is not lost
    assert difference(whole, again) == 0


def test_checkpoints_are_of_one_step(launched: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process leaves that is killed without a word, where checkpoints come due while a step is under way."""
    seconds = itertools.count()
    monkeypatch.setattr(trainer, "time", SimpleNamespace(monotonic=lambda: float(next(seconds))))
    options = {**SETTINGS, "checkpoint_every_s": 7.0, "resume": True}
    runs = [tmp_path / str(number) for number in range(2)]
    steps: list[int] = []

    def copied(step: int, of: int) -> None:
        steps.append(step)
        for run in runs:
            shutil.copytree(run, run.with_name(f"{run.name}-{step}"))

    whole = [network(0), network(1)]
    nt.fit_many(whole, blobs(), [nt.supervised()] * 2, seeds=(0, 1), runs=runs, progress=copied, **options)
    assert steps == list(range(1, 10))
    within = [step for step in (1, 2, 4, 5, 7, 8) if (tmp_path / f"0-{step}" / "checkpoint").exists()]
    assert within, "no checkpoint within an epoch"
    for step in within:
        again = [network(2), network(3)]
        cut = [run.with_name(f"{run.name}-{step}") for run in runs]
        nt.fit_many(again, blobs(), [nt.supervised()] * 2, seeds=(0, 1), runs=cut, **options)
        assert largest_difference(whole, again) == 0, step


def test_only_what_does_the_same_at_every_step_is_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counting(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images

    safe = network(0)
    assert is_graph_safe(safe)
    assert not is_graph_safe(nn.Sequential(safe.network, Counting()))
    watched, clipped = network(0), network(0)
    watched.get_submodule("network.0").register_forward_hook(lambda *arguments: None)
    parameter: Any = next(clipped.parameters())
    parameter.register_hook(lambda grad: grad.clamp(-1, 1))
    assert not is_graph_safe(watched)
    assert not is_graph_safe(clipped)
    assert not is_graph_safe(nn.Sequential(nn.BatchNorm2d(3, momentum=None)))
    assert is_graph_safe(nn.Sequential(nn.BatchNorm2d(3)))
    assert nt.distil([table(), safe]).live_networks == (safe,)
    plan = fitting.make_plan(safe, blobs(), TrainSettings(epochs=1, precision="fp32"), None, None, "cpu")
    state, before = torch.get_rng_state(), {name: value.clone() for name, value in safe.state_dict().items()}
    assert not cuda_graph.draws_numbers(safe, plan)
    dropping = as_classifier(nn.Sequential(safe.network, nn.Dropout(0.5)), input_shape=SHAPE)
    assert cuda_graph.draws_numbers(dropping, plan), "several would share one sequence of draws"
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in safe.state_dict().items())
    student = fitting.make_student(safe, nt.supervised(), 0, plan)
    assert not cuda_graph.can_replay([student], plan), "a CPU has no graphs"
    plan.device = torch.device("cuda")
    assert cuda_graph.can_replay([student], plan)

    class Doubled(Supervised):
        def __call__(self, logits: Tensor, batch: Any, cache: Any = None) -> Any:
            loss, metrics = super().__call__(logits, batch, cache)
            return 2 * loss, metrics

    student.objective = Doubled()
    assert not cuda_graph.can_replay([student], plan), "a graph computes `loss`, not what calls it"
    student.objective = nt.supervised()
    watching = register_optimizer_step_post_hook(lambda *arguments: None)
    try:
        assert not cuda_graph.can_replay([student], plan)
    finally:
        watching.remove()
    assert cuda_graph.can_replay([student], plan)
    monkeypatch.setenv("NOISYTEACHER_GRAPHS", "off")
    assert not cuda_graph.can_replay([student], plan)


@pytest.mark.parametrize("shape", [(4, 6), (5,)])
def test_muon_with_its_rate_on_the_device_does_the_same_and_can_be_held(shape: tuple[int, ...]) -> None:
    start = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    ends = []
    for rate in (0.02, torch.tensor(0.02)):
        parameter = nn.Parameter(start.clone())
        rule = Muon([parameter], lr=0.0, momentum=0.9, weight_decay=0.1)
        rule.param_groups[0]["lr"] = rate
        for step in range(3):
            parameter.grad = torch.randn(shape, generator=torch.Generator().manual_seed(step + 1))
            rule.step()
        ends.append(parameter.detach().clone())
    torch.testing.assert_close(*ends, rtol=1e-6, atol=1e-7)
    kept = {name: value.clone() for name, value in rule.state[parameter].items()}
    rule.found_inf = torch.ones(())  # type: ignore[attr-defined]
    parameter.grad = torch.full(shape, float("nan"))
    rule.step()
    assert torch.equal(parameter, ends[1])
    assert all(torch.equal(value, kept[name]) for name, value in rule.state[parameter].items())
