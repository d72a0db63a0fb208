"""Many trainings as one: step by step what each would have been alone, whatever happens to one of them."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import noisyteacher as nt
from helpers import NOISES, SETTINGS, SHAPE, blobs, difference, largest_difference, lines, network, table
from noisyteacher.errors import FileFormatError, TrainingError, UsageError
from noisyteacher.io.tensors import read_tensors
from noisyteacher.models import as_classifier, load_weights
from noisyteacher.train.history import History
from noisyteacher.train.validation import Validation


def every_objective() -> list[Any]:
    """One of every kind: all noises, soft targets, labels alone, labels mixed in, one of the caller's own."""
    return [
        nt.supervised(),
        *(nt.distil(table(), noise=noise) for noise in NOISES),
        nt.distil(table(), loss="soft_targets", noise=NOISES[1]),
        nt.distil(table(), loss="soft_targets", noise=nt.Noise(sigma=0.8, alpha=0.5, kind="sampled", draws=2)),
        nt.distil(table(), noise=nt.Noise(sigma=0.2, alpha=0.7, draw="row", kind="additive", target="input")),
        nt.distil(table(), label_weight=0.3, noise=NOISES[1]),
        lambda logits, batch: (logits.square().mean(), {"own": 2.0}),
    ]


def test_equal_to_one_by_one_with_every_objective_and_two_seeds() -> None:
    objectives = every_objective() * 2
    seeds = [0] * (len(objectives) // 2) + [1] * (len(objectives) // 2)
    alone, many = [network(seed) for seed in seeds], [network(seed) for seed in seeds]
    options = {**SETTINGS, "val": blobs(30, "val", seed=1)}
    single = [
        nt.fit(model, blobs(), objective, seed=seed, **options)
        for model, objective, seed in zip(alone, objectives, seeds, strict=True)
    ]
    together = nt.fit_many(many, blobs(), objectives, seeds=seeds, **options)
    for expected, outcome in zip(single, together, strict=True):
        assert isinstance(outcome, History)
        assert lines(outcome) == lines(expected)
        assert outcome.best_epoch == expected.best_epoch
    moved = largest_difference(alone, [network(seed) for seed in seeds])
    assert largest_difference(alone, many) == 0 < moved


def test_dropout_is_drawn_as_in_a_training_on_its_own() -> None:
    alone, many = ([as_classifier(flat(nn.Dropout(0.5)), input_shape=SHAPE) for _ in range(2)] for _ in range(2))
    for models in (alone, many):
        for model in models:
            nn.init.constant_(model.get_parameter("network.2.weight"), 0.1)
            nn.init.zeros_(model.get_parameter("network.2.bias"))
    for seed, model in enumerate(alone):
        nt.fit(model, blobs(), nt.supervised(), seed=seed, **SETTINGS)
    nt.fit_many(many, blobs(), [nt.supervised()] * 2, seeds=(0, 1), **SETTINGS)
    assert largest_difference(alone, many) == 0 < largest_difference(alone[:1], alone[1:])


@pytest.mark.parametrize(
    "changed",
    [
        {"optimizer": "sgd", "momentum": 0.5, "weight_decay": 1e-2, "schedule": "cosine", "warmup_epochs": 1.0},
        {"optimizer": "adamw", "weight_decay": 1e-2, "views": ("clean", "mirror"), "every_view": True},
        {"optimizer": "muon", "weight_decay": 1e-2},
        {"optimizer": "sgd", "precision": "bf16"},
    ],
)
def test_equal_under_other_recipes(changed: dict[str, Any]) -> None:
    options = {**SETTINGS, **changed}
    alone, many = [network(seed) for seed in range(3)], [network(seed) for seed in range(3)]
    for seed, model in enumerate(alone):
        nt.fit(model, blobs(), nt.supervised(), seed=seed, **options)
    nt.fit_many(many, blobs(), [nt.supervised()] * 3, seeds=range(3), **options)
    assert largest_difference(alone, many) == 0


@pytest.mark.parametrize("name", ["lenet", "mlp800", "student3", "nin", "compact-xs", "compact-s"])
def test_networks_by_name(name: str) -> None:
    grey = name in ("lenet", "mlp800")
    shape = (1, 28, 28) if grey else (3, 32, 32)
    images = torch.randint(0, 256, (16, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = nt.Split(images, torch.arange(16) % 4, torch.arange(16), "train", "noise", tuple("abcd"))
    options: dict[str, Any] = {**SETTINGS, "epochs": 1, "batch_size": 8, "lr": 1e-4, "optimizer": "sgd"}
    many = [nt.build_model(name, data=split, seed=seed) for seed in (0, 1)]
    alone = copy.deepcopy(many)
    for seed, model in enumerate(alone):
        nt.fit(model, split, nt.supervised(), seed=seed, **options)
    nt.fit_many(many, split, [nt.supervised()] * 2, seeds=(0, 1), **options)
    assert largest_difference(alone, many) == 0


class Odd(nn.Module):
    """A parameter of no dimensions, one not learned, one not used, one that is there twice, and a buffer."""

    seen: Tensor

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second, self.last = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 3)
        self.second.weight = self.first.weight
        self.gain, self.idle = nn.Parameter(torch.rand(())), nn.Parameter(torch.rand(3))
        self.fixed = nn.Parameter(torch.rand(64), requires_grad=False)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        self.seen += 1
        logits: Tensor = self.last(self.second(self.first(images.flatten(1)).relu()).relu() * self.gain + self.fixed)
        return logits


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_odd_parameters_and_buffers(optimizer: str, tmp_path: Path) -> None:
    options = {**SETTINGS, "optimizer": optimizer, "resume": True, "checkpoint_every_s": 0.0}
    alone, many, again = [[as_classifier(Odd(seed), input_shape=SHAPE) for seed in range(3)] for _ in range(3)]
    for seed, model in enumerate(alone):
        nt.fit(model, blobs(), nt.supervised(), seed=seed, **SETTINGS | {"optimizer": optimizer})
    runs = [tmp_path / str(seed) for seed in range(3)]

    def stop(step: int, steps: int) -> None:
        if step == 4:
            raise StoppedError

    with pytest.raises(StoppedError):
        nt.fit_many(many, blobs(), [nt.supervised()] * 3, seeds=range(3), runs=runs, progress=stop, **options)
    nt.fit_many(again, blobs(), [nt.supervised()] * 3, seeds=range(3), runs=runs, **options)
    assert largest_difference(alone, again) == 0
    counts = [model.get_buffer("network.seen").item() for model in many]
    assert counts == [5] * 3  # one of as_classifier, four steps


def test_each_model_is_its_own_again() -> None:
    models = [network(0), network(1)]
    nt.fit_many(models, blobs(), [nt.supervised()] * 2, seeds=(0, 1), **SETTINGS)
    for model in models:
        for value in model.state_dict().values():
            assert value.untyped_storage().nbytes() == value.numel() * value.element_size()
    before = copy.deepcopy(models[1].state_dict())
    nt.fit(models[0], blobs(), nt.supervised(), seed=0, **SETTINGS)
    assert all(torch.equal(value, before[name]) for name, value in models[1].state_dict().items())


def test_what_fails_holds_still_its_statistics_too() -> None:
    models = [network(0), network(1)]
    nt.fit_many(models, blobs(), [broken(4), nt.supervised()], seeds=[0, 0], **SETTINGS)
    alone = network(0)
    with pytest.raises(TrainingError):
        nt.fit(alone, blobs(), broken(4), seed=0, **SETTINGS)
    assert difference(alone, models[0]) == 0
    for model in (alone, models[0]):
        assert model.get_buffer("network.1.num_batches_tracked").item() == 5


def broken(at_step: int) -> Any:
    def loss(logits: Tensor, batch: nt.Batch) -> tuple[Tensor, dict[str, float]]:
        return logits.square().mean() * (float("nan") if batch.step >= at_step else 1.0), {}

    return loss


def root(at_step: int) -> Any:
    """A finite loss with a gradient that is not."""

    def loss(logits: Tensor, batch: nt.Batch) -> tuple[Tensor, dict[str, float]]:
        return (logits * (0.0 if batch.step >= at_step else 1.0)).square().sum().sqrt(), {}

    return loss


def test_one_that_fails_does_not_take_the_others_with_it() -> None:
    objectives = [nt.supervised(), broken(4), root(2), nt.distil(table(), noise=NOISES[1])]
    models = [network(seed, norm=False) for seed in range(4)]
    outcomes = nt.fit_many(models, blobs(), objectives, seeds=[0] * 4, **SETTINGS)
    assert [type(outcome) for outcome in outcomes] == [History, TrainingError, TrainingError, History]
    assert "the loss is nan at step 5 of 9" in str(outcomes[1])
    assert "gradient of network." in str(outcomes[2])
    assert "at step 3" in str(outcomes[2])
    for number in (0, 3):
        alone = network(number, norm=False)
        nt.fit(alone, blobs(), objectives[number], seed=0, **SETTINGS)
        assert difference(alone, models[number]) == 0
    for number, epochs in ((1, broken(4)), (2, root(2))):  # neither updated at the step that failed nor after it
        alone = network(number, norm=False)
        with pytest.raises(TrainingError):
            nt.fit(alone, blobs(), epochs, seed=0, **SETTINGS)
        assert difference(alone, models[number]) == 0


def test_each_stops_when_its_own_patience_ends() -> None:
    options = {**SETTINGS, "epochs": 8, "patience": 2, "val": blobs(30, "val", seed=1)}
    alone, many = [network(seed) for seed in range(4)], [network(seed) for seed in range(4)]
    objectives = [
        nt.supervised(),
        nt.distil(table()),
        nt.supervised(),
        nt.distil(-table()),
    ]  # random lessons do not help
    ends = [nt.fit(model, blobs(), objectives[seed], seed=seed, **options) for seed, model in enumerate(alone)]
    histories = nt.fit_many(many, blobs(), objectives, seeds=range(4), **options)
    assert len({len(end.epochs) for end in ends}) > 1
    assert [len(lines(history)) for history in histories] == [len(end.epochs) for end in ends]
    assert largest_difference(alone, many) == 0


class StoppedError(Exception):
    pass


def test_interrupted_it_goes_on_from_its_checkpoints(tmp_path: Path) -> None:
    """Also when one of the checkpoints is older than the others, and one of the trainings was done."""
    options = {**SETTINGS, "resume": True, "checkpoint_every_s": 0.0, "val": blobs(30, "val", seed=1)}
    runs = [tmp_path / str(number) for number in range(4)]
    objectives = [nt.distil(table(), noise=noise) for noise in NOISES[:4]]
    whole = [network(seed) for seed in range(4)]
    fresh = {**SETTINGS, "val": options["val"]}
    ends = [nt.fit(model, blobs(), objectives[row], seed=row, **fresh) for row, model in enumerate(whole)]
    nt.fit_many([network(3)], blobs(), objectives[3:], seeds=[3], runs=runs[3:], **options)

    def stop(at: int) -> Any:
        def tell(step: int, steps: int) -> None:
            assert steps == 9
            if step == at:
                raise StoppedError

        return tell

    with pytest.raises(StoppedError):
        nt.fit_many([network(0)], blobs(), objectives[:1], seeds=[0], runs=runs[:1], progress=stop(2), **options)
    with pytest.raises(StoppedError):
        nt.fit_many([network(1), network(2)], blobs(), objectives[1:3], seeds=[1, 2], runs=runs[1:3], progress=stop(5),
                 **options)  # fmt: skip
    assert all((run / "checkpoint" / "state.safetensors").exists() for run in runs[:3])
    again = [network(seed + 10) for seed in range(4)]  # their weights are those of the checkpoints
    histories = nt.fit_many(again, blobs(), objectives, seeds=range(4), runs=runs, **options)
    for history, expected in zip(histories, ends, strict=True):
        for line, expected_line in zip(lines(history), lines(expected), strict=True):
            assert line == expected_line
    assert largest_difference(whole, again) == 0
    for run in runs:
        assert not (run / "checkpoint").exists()
        assert (run / "weights.safetensors").exists()
    kept = network(5)
    load_weights(kept, runs[2] / "weights.safetensors")
    assert difference(kept, again[2]) == 0


def test_checkpoints_within_an_epoch_are_those_of_that_step(tmp_path: Path) -> None:
    """What a process leaves that is killed without a word."""
    options = {**SETTINGS, "resume": True, "checkpoint_every_s": 0.0}
    runs = [tmp_path / str(number) for number in range(2)]

    def copied(step: int, steps: int) -> None:
        if step == 2:  # of the three of the first epoch
            for run in runs:
                shutil.copytree(run, run.with_name(f"{run.name}-cut"))

    whole = [network(0), network(1)]
    nt.fit_many(whole, blobs(), [nt.supervised()] * 2, seeds=(0, 1), runs=runs, progress=copied, **options)
    again, seen = [network(2), network(3)], list[int]()
    cut = [run.with_name(f"{run.name}-cut") for run in runs]
    nt.fit_many(
        again, blobs(), [nt.supervised()] * 2, seeds=(0, 1), runs=cut, progress=lambda step, steps: seen.append(step),
        **options,
    )  # fmt: skip
    assert seen == [2, 3, 4, 5, 6, 7, 8, 9]  # the checkpoint of a step comes after its progress
    assert largest_difference(whole, again) == 0


def test_the_store_is_asked_once_for_students_of_one_batch(tmp_path: Path) -> None:
    store = nt.extract(network(9), blobs(), tmp_path / "store", device="cpu")
    reads: list[int] = []
    inner = store.logits

    def counted(view: str | Tensor, rows: Tensor) -> Tensor:
        reads.append(1)
        return inner(view, rows)

    store.logits = counted  # type: ignore[method-assign]
    objectives = [nt.distil(store, noise=noise) for noise in NOISES[:6]]
    nt.fit_many(
        [network(0) for _ in objectives], blobs(), objectives, seeds=[0, 0, 0, 1, 1, 1], **{**SETTINGS, "epochs": 1}
    )
    assert len(reads) == 2 * 3  # two orders, three steps


def test_stopped_between_the_ends_of_two_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One has closed its epoch, the other not: both are valid checkpoints, of one step."""
    options = {**SETTINGS, "resume": True, "checkpoint_every_s": 0.0, "val": blobs(30, "val", seed=1)}
    runs, epochs, whole = [tmp_path / "0", tmp_path / "1"], list[int](), [network(2), network(3)]
    nt.fit_many(whole, blobs(), [nt.supervised()] * 2, seeds=(0, 0), **{**options, "resume": False})
    real = Validation.__call__

    def second(self: Validation, model: nn.Module, epoch: int) -> Any:
        epochs.append(epoch)
        if len(epochs) == 4:
            raise KeyboardInterrupt
        return real(self, model, epoch)

    monkeypatch.setattr(Validation, "__call__", second)
    with pytest.raises(KeyboardInterrupt):
        nt.fit_many([network(2), network(3)], blobs(), [nt.supervised()] * 2, seeds=(0, 0), runs=runs, **options)
    monkeypatch.undo()
    saved = [read_tensors(run / "checkpoint" / "state.safetensors", "checkpoint", 1)[1]["progress"] for run in runs]
    assert [(progress["step"], len(progress["epochs"])) for progress in saved] == [(6, 2), (6, 1)]
    again = [network(2), network(3)]
    ends = nt.fit_many(again, blobs(), [nt.supervised()] * 2, seeds=(0, 0), runs=runs, **options)
    assert [len(lines(end)) for end in ends] == [3, 3]
    assert largest_difference(whole, again) == 0


def test_one_damaged_checkpoint_ends_that_training_alone(tmp_path: Path) -> None:
    options = {**SETTINGS, "resume": True, "checkpoint_every_s": 0.0}
    runs = [tmp_path / str(number) for number in range(3)]

    def stop(step: int, steps: int) -> None:
        if step == 4:
            raise StoppedError

    objectives = [nt.supervised()] * 3
    with pytest.raises(StoppedError):
        nt.fit_many(
            [network(n) for n in range(3)], blobs(), objectives, seeds=[0] * 3, runs=runs, progress=stop, **options
        )
    file = runs[1] / "checkpoint" / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    outcomes = nt.fit_many([network(n) for n in range(3)], blobs(), objectives, seeds=[0] * 3, runs=runs, **options)
    assert [type(outcome) for outcome in outcomes] == [History, FileFormatError, History]
    assert str(file) in str(outcomes[1])


def drawing(logits: Tensor, batch: nt.Batch) -> Tensor:
    return (logits - nt.perturb(torch.ones_like(logits), sigma=0.5, alpha=0.5)).square().mean()


def one_loss(logits: Tensor, batch: nt.Batch) -> Tensor:
    return logits.square().mean().reshape(1)


@pytest.mark.parametrize("objective", [drawing, one_loss])
def test_objectives_of_the_callers_own(objective: Any) -> None:
    alone, many = [network(0), network(1)], [network(0), network(1)]
    for seed, model in enumerate(alone):
        nt.fit(model, blobs(), objective, seed=seed, **SETTINGS)
    before = torch.random.get_rng_state()
    nt.fit_many(many, blobs(), [objective] * 2, seeds=(0, 1), **SETTINGS)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert largest_difference(alone, many) == 0


def test_half_precision_tables() -> None:
    objectives = [nt.distil(table().bfloat16(), noise=noise) for noise in NOISES[1:4]]
    alone, many = [network(0) for _ in objectives], [network(0) for _ in objectives]
    for model, objective in zip(alone, objectives, strict=True):
        nt.fit(model, blobs(), objective, seed=0, **SETTINGS)
    nt.fit_many(many, blobs(), objectives, seeds=[0] * 3, **SETTINGS)
    assert largest_difference(alone, many) == 0


def test_a_bad_teacher_is_named_to_every_student() -> None:
    teacher = network(7)
    with torch.no_grad():
        next(teacher.parameters()).fill_(float("nan"))
    objectives = [nt.distil(teacher), nt.distil(teacher, noise=NOISES[1])]
    outcomes = nt.fit_many([network(0), network(1)], blobs(), objectives, seeds=(0, 0), **SETTINGS)
    assert all("check the teacher's weights" in str(outcome) for outcome in outcomes), outcomes


class Wide(nn.Module):
    """Preprocessing that learns."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        return images.float() * self.gain


def flat(*extra: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), *extra, nn.Linear(64, 3))


def frozen(name: str) -> nn.Module:
    module = flat()
    dict(module.named_parameters())[name].requires_grad_(False)
    return module


def around(backbone: nn.Module) -> list[nn.Module]:
    return [nn.Sequential(nn.Flatten(), backbone, nn.Linear(64, 3)) for _ in range(2)]


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([flat(), flat(nn.ReLU(), nn.Linear(64, 64))], "model 1 differs from model 0"),
        ([flat(), frozen("1.weight")], "what is frozen"),
        ([frozen("1.weight"), frozen("1.bias")], "what is frozen"),
        (around(nn.Linear(64, 64)), "share weights, or are one"),
    ],
)
def test_models_that_differ_or_share_weights_are_refused(models: list[nn.Module], message: str) -> None:
    classifiers = [as_classifier(model, input_shape=SHAPE) for model in models]
    with pytest.raises(UsageError, match=message):
        nt.fit_many(classifiers, blobs(), [nt.supervised()] * 2, seeds=(0, 1), **SETTINGS)


def test_unlike_preprocessing_is_refused() -> None:
    classifiers = [as_classifier(flat(), input_shape=SHAPE, preprocess=front) for front in (None, Wide())]
    with pytest.raises(UsageError, match="model 1 differs"):
        nt.fit_many(classifiers, blobs(), [nt.supervised()] * 2, seeds=(0, 1), **SETTINGS)


def test_a_teacher_that_would_change_in_the_training_is_refused() -> None:
    models = [network(seed) for seed in range(2)]
    with pytest.raises(UsageError, match="a teacher shares weights with a model that is trained here"):
        nt.fit_many(models, blobs(), [nt.supervised(), nt.distil([models[0], network(3)])], seeds=(0, 1), **SETTINGS)
    with pytest.raises(UsageError, match="a teacher shares weights"):
        nt.fit(models[0], blobs(), nt.distil(models[0]), seed=0, **SETTINGS)
    body = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 64), nn.BatchNorm1d(64)
    )  # frozen weights, but statistics that a training moves
    for parameter in body.parameters():
        parameter.requires_grad_(False)
    student, teacher = (as_classifier(nn.Sequential(body, nn.Linear(64, 3)), input_shape=SHAPE) for _ in range(2))
    with pytest.raises(UsageError, match="a teacher shares weights"):
        nt.fit(student, blobs(), nt.distil(teacher), seed=0, **SETTINGS)
    nt.fit(models[0], blobs(), nt.distil(copy.deepcopy(models[0])), seed=0, **SETTINGS)


def test_a_frozen_body_may_be_the_teachers_too() -> None:
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 64))
    for parameter in body.parameters():
        parameter.requires_grad_(False)
    student, teacher = (as_classifier(nn.Sequential(body, nn.Linear(64, 3)), input_shape=SHAPE) for _ in range(2))
    assert len(nt.fit(student, blobs(), nt.distil(teacher), seed=0, **SETTINGS).epochs) == SETTINGS["epochs"]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_an_objective_that_runs_another_student_does_not_change_that_one(order: tuple[int, int]) -> None:
    """Its gradient in the other student's weights is not applied, whichever comes first."""
    models, alone = [network(seed) for seed in range(2)], network(0)

    def imitate(logits: Tensor, batch: nt.Batch) -> Tensor:
        return torch.nn.functional.mse_loss(logits, models[0](batch.images))

    objectives: list[Any] = [nt.supervised(), imitate]
    nt.fit_many([models[row] for row in order], blobs(), [objectives[row] for row in order], seeds=[0] * 2, **SETTINGS)
    nt.fit(alone, blobs(), nt.supervised(), seed=0, **SETTINGS)
    for name, value in alone.network.state_dict().items():
        if "running" not in name and "num_batches" not in name:
            assert torch.equal(value, models[0].network.state_dict()[name]), name


def test_models_on_one_memory_are_refused() -> None:
    first, second = network(0), network(1)
    second.load_state_dict(first.state_dict(), assign=True)
    with pytest.raises(UsageError, match="share weights, or are one"):
        nt.fit_many([first, second], blobs(), [nt.supervised()] * 2, seeds=(0, 1), **SETTINGS)


def test_contexts_in_which_nothing_can_be_trained_are_refused(tmp_path: Path) -> None:
    model, split = network(0), blobs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for call in (
            lambda: nt.fit(model, split, nt.supervised(), seed=0, **SETTINGS),
            lambda: nt.fit_many([model], split, [nt.supervised()], seeds=[0], **SETTINGS),
            lambda: nt.evaluate(model, split, progress=False),
            lambda: nt.extract(model, split, tmp_path / "logits", progress=False),
        ):
            with pytest.raises(UsageError, match=r"inside torch\.autocast: leave that context"):
                call()
    with torch.no_grad(), pytest.raises(UsageError, match="where gradients are off"):
        nt.fit(model, split, nt.supervised(), seed=0, **SETTINGS)
    with torch.autocast("cpu", enabled=False):
        nt.fit(model, split, nt.supervised(), seed=0, **SETTINGS)


def test_all_splits_in_place_of_one_and_one_in_place_of_a_list(tmp_path: Path) -> None:
    model, splits = network(0), cast("Any", nt.load_data("mnist-5k", limit=40))
    for call in (
        lambda: nt.fit(model, splits, nt.supervised(), seed=0, **SETTINGS),
        lambda: nt.fit(model, blobs(), nt.supervised(), val=splits, seed=0, **SETTINGS),
        lambda: nt.fit_many([model], splits, [nt.supervised()], seeds=[0], **SETTINGS),
        lambda: nt.evaluate(model, splits, progress=False),
        lambda: nt.extract(model, splits, tmp_path / "logits", progress=False),
    ):
        with pytest.raises(UsageError, match=r"given a Splits; expected a Split: give one of its parts"):
            call()
    for name, wrong in (("models", model), ("objectives", nt.supervised()), ("seeds", 0), ("runs", "ab")):
        content: dict[str, Any] = {"models": [model], "objectives": [nt.supervised()], "seeds": [0], "runs": None}
        content[name] = wrong
        with pytest.raises(UsageError, match=f"{name}: given .*; expected a list"):
            nt.fit_many(content.pop("models"), blobs(), content.pop("objectives"), **content, **SETTINGS)


def test_an_objective_with_a_call_of_its_own_is_called() -> None:
    class Own(type(nt.supervised())):  # type: ignore[misc]
        def __call__(self, logits: Tensor, batch: nt.Batch) -> tuple[Tensor, dict[str, float]]:
            return logits.square().mean(), {"own": 2.0}

    (outcome,) = nt.fit_many([network(0)], blobs(), [Own()], seeds=[0], **SETTINGS)
    assert lines(outcome)[0]["own"] == 2.0


def test_as_many_of_everything() -> None:
    with pytest.raises(UsageError, match="2 models, 1 objectives, 2 seeds"):
        nt.fit_many([network(0), network(1)], blobs(), [nt.supervised()], seeds=(0, 1), **SETTINGS)
    with pytest.raises(UsageError, match="at least one"):
        nt.fit_many([], blobs(), [], seeds=(), **SETTINGS)
    with pytest.raises(UsageError, match="two of the runs are one folder"):
        nt.fit_many(
            [network(0), network(1)], blobs(), [nt.supervised()] * 2, seeds=(0, 1), runs=[".", "./"], **SETTINGS
        )
    twice = network(0)
    with pytest.raises(UsageError, match="share weights, or are one"):
        nt.fit_many([twice, twice], blobs(), [nt.supervised()] * 2, seeds=(0, 1), **SETTINGS)
