"""The training loop: the same bits again, the same bits after a kill, honest roles, an early stop that keeps both."""

from __future__ import annotations

import functools
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisyteacher as nt
from helpers import blobs, labels_of, small
from noisyteacher.errors import (
    ConfigError,
    DataError,
    DataWarning,
    FileFormatError,
    MismatchError,
    TrainingError,
    UsageError,
)
from noisyteacher.io.tensors import read_tensors, write_tensors
from noisyteacher.models import model_record
from noisyteacher.train import fitting, trainer
from noisyteacher.train.engines import check_gradients
from noisyteacher.train.history import Tick


class KilledError(Exception):
    pass


def test_learns_and_reports() -> None:
    model, ticks = small(), list[Tick]()
    history = nt.fit(
        model, blobs(), nt.supervised(), val=blobs(60, "val", seed=1), epochs=12, lr=0.01, progress=ticks.append
    )
    assert len(history.epochs) == 12
    first, last = history.epochs[0], history.epochs[-1]
    assert last["train/loss"] < 0.5 * first["train/loss"]
    assert set(first) == {"epoch", "step", "train/loss", "lr", "val/error", "val/nll", "seconds"}
    best = min(history.epochs, key=lambda line: (line["val/error"], line["val/nll"]))
    assert history.best_epoch == best["epoch"]
    assert history.val_error == best["val/error"]
    assert ticks[-1] == Tick(12, 12, 24, 24, ticks[-1].loss, history.epochs[-2]["val/error"])
    scores = nt.evaluate(model, blobs(60, "val", seed=1))
    assert scores.error == history.val_error
    assert scores.error is not None
    assert scores.error.n == 60


def test_same_seed_same_bits_other_seed_other_bits() -> None:
    first, again, different = (
        nt.fit(small(), blobs(), nt.supervised(), epochs=1, seed=seed).last for seed in (4, 4, 5)
    )
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not all(torch.equal(value, different[name]) for name, value in first.items())


def test_global_randomness_is_left_alone() -> None:
    model = small()
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    nt.fit(model, blobs(), nt.supervised(), epochs=1, seed=3)
    assert torch.equal(torch.rand(3), expected)


def test_noise_cannot_change_the_order() -> None:
    """Two conditions with one seed are a pair: same rows at every step, and at sigma 0 the same weights."""
    split, seen = blobs(), dict[str, list[Tensor]]()
    table = torch.randn(96, 3, generator=torch.Generator().manual_seed(2))

    def watch(name: str, objective: nt.Objective) -> Callable[[Tensor, nt.Batch], Any]:
        def call(logits: Tensor, batch: nt.Batch) -> Any:
            seen.setdefault(name, []).append(batch.rows.clone())
            return objective(logits, batch)

        return call

    weights = {}
    for name, noise in {
        "clean": None,
        "zero": nt.Noise(sigma=0.0, alpha=0.5),
        "noisy": nt.Noise(sigma=0.9, alpha=0.5),
    }.items():
        weights[name] = nt.fit(small(), split, watch(name, nt.distil(table, noise=noise)), epochs=2).last
    for name in ("zero", "noisy"):
        assert all(torch.equal(a, b) for a, b in zip(seen["clean"], seen[name], strict=True))
    assert all(torch.equal(weights["clean"][key], weights["zero"][key]) for key in weights["clean"])
    assert not all(torch.equal(weights["clean"][key], weights["noisy"][key]) for key in weights["clean"])


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "muon"])
def test_killed_at_every_step_and_resumed_gives_the_same_bytes(tmp_path: Path, optimizer: str) -> None:
    options: dict[str, Any] = {
        "val": blobs(30, "val", seed=1), "epochs": 3, "batch_size": 40, "optimizer": optimizer, "lr": 0.01,
        "schedule": "cosine", "views": "clean,mirror", "checkpoint_every_s": 0.0,
    }  # fmt: skip

    def train(folder: Path, resume: bool = False, kill_at: int | None = None) -> nt.History:
        def progress(tick: Tick) -> None:
            if tick.step == kill_at:
                raise KilledError

        teacher = small(dropout=False)
        objective = nt.distil(teacher, noise=nt.Noise(sigma=0.9, alpha=0.5), label_weight=0.1)
        return nt.fit(small(), blobs(), objective, run=folder, resume=resume, progress=progress, **options)

    whole = train(tmp_path / "whole")
    for kill_at in range(1, 9):
        folder = tmp_path / f"killed-{kill_at}"
        with pytest.raises(KilledError):
            train(folder, kill_at=kill_at)
        resumed = train(folder, resume=True)
        for name in ("weights.safetensors", "last.safetensors"):
            assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        assert not (folder / "checkpoint").exists()
        strip = [{key: value for key, value in line.items() if key != "seconds"} for line in resumed.epochs]
        assert strip == [{key: value for key, value in line.items() if key != "seconds"} for line in whole.epochs]
        assert [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] == list(
            resumed.epochs
        )


def test_the_best_weights_of_an_earlier_epoch_outlive_a_kill(tmp_path: Path) -> None:
    """From the second epoch on the objective makes the model worse, so the first epoch stays the best."""

    def objective(logits: Tensor, batch: nt.Batch) -> Tensor:
        loss: Tensor = nt.supervised()(logits, batch)[0]
        return loss if batch.step < 3 else -loss

    def train(folder: Path, resume: bool = False, kill_at: int | None = None) -> nt.History:
        def progress(tick: Tick) -> None:
            if tick.step == kill_at:
                raise KilledError

        return nt.fit(
            small(dropout=False), blobs(), objective, val=blobs(30, "val", seed=1), epochs=3, batch_size=20, lr=0.1,
            run=folder, resume=resume, progress=progress,
        )  # fmt: skip

    assert train(tmp_path / "whole").best_epoch == 1
    with pytest.raises(KilledError):
        train(tmp_path / "killed", kill_at=7)
    assert train(tmp_path / "killed", resume=True).best_epoch == 1
    kept = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("whole", "killed")]
    assert kept[0] == kept[1]


def test_the_earliest_of_equal_epochs_is_the_best() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    history = nt.fit(model, blobs(), lambda logits, batch: logits.sum() * 0, val=blobs(30, "val"), epochs=3)
    assert len({(line["val/error"], line["val/nll"]) for line in history.epochs}) == 1
    assert history.best_epoch == 1


def test_resuming_on_another_number_of_threads_is_said(tmp_path: Path) -> None:
    def stop(tick: Tick) -> None:
        raise KilledError

    state = tmp_path / "checkpoint" / "state.safetensors"
    with pytest.raises(KilledError):
        nt.fit(small(), blobs(), nt.supervised(), epochs=2, run=tmp_path, progress=stop, checkpoint_every_s=0.0)
    tensors, record = read_tensors(state, "checkpoint", 1)
    assert record["threads"] == torch.get_num_threads()
    write_tensors(state, "checkpoint", 1, tensors, {**record, "threads": record["threads"] + 1})
    with pytest.warns(DataWarning, match=r"resumed on \d+ thread.* begun on \d+"):
        nt.fit(small(), blobs(), nt.supervised(), epochs=2, run=tmp_path, resume=True, checkpoint_every_s=0.0)


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = nt.fit(small(), blobs(), nt.supervised(), val=blobs(30, "val"), epochs=3, run=tmp_path)
    steps: list[Tick] = []
    model = small()
    again = nt.fit(
        model,
        blobs(),
        nt.supervised(),
        val=blobs(30, "val"),
        epochs=3,
        run=tmp_path,
        resume=True,
        progress=steps.append,
    )
    assert not steps
    assert again.epochs == first.epochs
    assert all(torch.equal(first.best[name], again.best[name]) for name in first.best)
    assert all(torch.equal(first.last[name], again.last[name]) for name in first.last)
    assert torch.equal(model[0].weight, first.best["network.0.weight"])  # type: ignore[index]
    with pytest.raises(MismatchError, match=r"lr: saved 0\.001, given 0\.01"):
        nt.fit(small(), blobs(), nt.supervised(), val=blobs(30, "val"), epochs=3, lr=0.01, run=tmp_path, resume=True)


def fit_with_checkpoints(folder: Path) -> nt.History:
    """A training of 300 steps with a checkpoint after each, which goes on from what the folder holds."""
    return nt.fit(
        small(), blobs(600), nt.supervised(), val=blobs(30, "val"), epochs=4, batch_size=8, checkpoint_every_s=0.0,
        run=folder, resume=True,
    )  # fmt: skip


@pytest.mark.slow
def test_sigkill_and_resume_gives_the_same_bytes(tmp_path: Path) -> None:
    fit_with_checkpoints(tmp_path / "whole")
    code = "import sys, pathlib, test_train\ntest_train.fit_with_checkpoints(pathlib.Path(sys.argv[1]))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "killed")], env=environment)
    checkpoint = tmp_path / "killed" / "checkpoint" / "state.safetensors"
    while process.poll() is None and not checkpoint.exists():
        time.sleep(0.01)
    time.sleep(0.2)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "the training ended before it was killed"
    fit_with_checkpoints(tmp_path / "killed")
    for name in ("weights.safetensors", "last.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    def stop(tick: Tick) -> None:
        if tick.step == 3:
            raise KilledError

    options: dict[str, Any] = {"epochs": 3, "checkpoint_every_s": 0.0, "run": tmp_path}
    with pytest.raises(KilledError):
        nt.fit(small(), blobs(), nt.supervised(), progress=stop, **options)
    path = tmp_path / "checkpoint" / "state.safetensors"
    good = path.read_bytes()
    for offset in (9, len(good) // 2, len(good) - 1):
        bad = bytearray(good)
        bad[offset] ^= 4
        path.write_bytes(bytes(bad))
        with pytest.raises(FileFormatError, match=r"state\.safetensors"):
            nt.fit(small(), blobs(), nt.supervised(), resume=True, **options)
    path.write_bytes(good[:-7])
    with pytest.raises(FileFormatError, match=r"state\.safetensors"):
        nt.fit(small(), blobs(), nt.supervised(), resume=True, **options)
    path.write_bytes(good)
    tensors, record = read_tensors(path, "checkpoint", 1)
    for changed, message in (
        ((tensors, {"settings": record["settings"]}), "'progress'"),
        ((tensors, {**record, "progress": {"steps": 3}}), "steps"),
        ((tensors, {**record, "settings": None}), "no table 'settings'"),
        (({**tensors, "optimizer/99/exp_avg": torch.zeros(1)}, record), "out of range"),
        (({**tensors, "optimizer/x": torch.zeros(1)}, record), "unpack"),
        (({"model/a": torch.zeros(1)}, record), "state_dict"),
    ):
        write_tensors(path, "checkpoint", 1, *changed)
        with pytest.raises(FileFormatError, match=rf"state\.safetensors: .*{message}"):
            nt.fit(small(), blobs(), nt.supervised(), resume=True, **options)


def test_a_loss_that_is_not_finite_stops_before_the_update() -> None:
    model = small()

    def objective(logits: Tensor, batch: nt.Batch) -> Tensor:
        return logits.sum() * (float("nan") if batch.step == 2 else 1e-3)

    steps: list[dict[str, Tensor]] = []

    def keep(tick: Tick) -> None:
        steps.append({name: value.clone() for name, value in model.named_parameters()})

    with pytest.raises(TrainingError, match=r"loss is nan at step 3 of 4 \(epoch 2\).*lower lr"):
        nt.fit(model, blobs(), objective, epochs=2, progress=keep)
    assert len(steps) == 2
    assert all(torch.equal(value, steps[-1][name]) for name, value in model.named_parameters())


@pytest.mark.parametrize("power", [0.5, 0.25])
def test_a_gradient_that_is_not_finite_stops_before_the_update(power: float) -> None:
    """The root of 0 is 0, and its slope is infinite: the loss says nothing."""
    model = small()

    def objective(logits: Tensor, batch: nt.Batch) -> Tensor:
        root = ((logits * 0).abs() ** power).sum() if batch.step == 2 else 0
        return logits.sum() * 1e-3 + root

    steps: list[dict[str, Tensor]] = []

    def keep(tick: Tick) -> None:
        steps.append({name: value.clone() for name, value in model.named_parameters()})

    with pytest.raises(
        TrainingError, match=r"the gradient of network\.\S+ is not finite at step 3, though the loss is"
    ):
        nt.fit(model, blobs(), objective, epochs=2, progress=keep)
    assert len(steps) == 2
    assert all(torch.equal(value, steps[-1][name]) for name, value in model.named_parameters())


def test_gradients_too_large_to_add_up_are_finite_all_the_same() -> None:
    model = nn.Linear(3, 2)
    for value in model.parameters():
        value.grad = torch.full_like(value, 3e38)
    check_gradients([(name, value.grad) for name, value in model.named_parameters()], 0)
    model.bias.grad = torch.tensor([1.0, torch.nan])
    with pytest.raises(TrainingError, match="the gradient of bias is not finite at step 1"):
        check_gradients([(name, value.grad) for name, value in model.named_parameters()], 0)


def test_models_that_cannot_be_written_to_are_refused() -> None:
    expanded, layer = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), nn.Linear(64, 3, device="meta")
    expanded.register_buffer("shared", torch.zeros(1).expand(5))
    for model, words in (
        (expanded, "shared share memory"),
        (nn.Sequential(nn.Flatten(), layer), "meta device"),
    ):
        with pytest.raises(UsageError, match=words):
            nt.fit(model, blobs(), nt.supervised(), epochs=1)
    with pytest.raises(UsageError, match="tensor without values"):
        nt.save_model(layer, "nowhere.safetensors")


def test_the_test_split_is_refused() -> None:
    for split, val in ((blobs(role="test"), None), (blobs(), blobs(role="test"))):
        with pytest.raises(UsageError, match="report on test once"):
            nt.fit(small(), split, nt.supervised(), val=val, epochs=1)


def test_early_stopping_keeps_best_and_last(tmp_path: Path) -> None:
    """A validation set with shuffled labels gets worse as training goes on, so patience ends the run."""
    val = blobs(30, "val", seed=1)
    wrong = nt.Split(val.images, (labels_of(val) + 1) % 3, val.index, "val", "blobs", val.class_names)
    history = nt.fit(
        small(), blobs(), nt.supervised(), val=wrong, epochs=50, lr=0.02, patience=3, keep="last", run=tmp_path
    )
    assert history.stopped_early
    assert len(history.epochs) == history.best_epoch + 3
    assert not all(torch.equal(history.best[name], history.last[name]) for name in history.last)
    assert (tmp_path / "weights.safetensors").exists()
    assert (tmp_path / "best.safetensors").exists()


def test_wrong_settings_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        nt.fit(
            small(), blobs(), nt.supervised(),
            epochs=0, batch_size=0, schedule="linar", precision="fp8", resume=True, seed=1.5,  # type: ignore[arg-type]
        )  # fmt: skip
    for name in ("epochs", "batch_size", "did you mean 'linear'", "fp8", "resume", "seed"):
        assert name in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        nt.fit(small(), blobs(), nt.supervised(), patience=2, keep="best", every_view=True, batch_size=1)
    for name in ("patience", "keep", "every_view", "batch norm"):
        assert str(caught.value).count(name) == 1
    with pytest.raises(ConfigError, match=r"(?s)momentum: 0\.5 has no effect.*warmup_epochs: 5"):
        nt.fit(small(), blobs(), nt.supervised(), epochs=1, momentum=0.5, warmup_epochs=5)
    frozen = small().requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing can be learned"):
        nt.fit(frozen, blobs(), nt.supervised(), epochs=1)


def test_a_last_batch_of_one_is_left_out() -> None:
    """Batch norm cannot train on one sample: 97 rows by 32 are three batches of 32."""
    sizes: list[int] = []

    def objective(logits: Tensor, batch: nt.Batch) -> Tensor:
        sizes.append(len(batch.rows))
        return logits.square().mean()

    nt.fit(small(), blobs(97), objective, epochs=2, batch_size=32)
    assert sizes == [32] * 6


def test_every_view_shows_each_row_under_each_view() -> None:
    seen: list[tuple[int, int]] = []

    def objective(logits: Tensor, batch: nt.Batch) -> Tensor:
        seen.extend(zip(batch.rows.tolist(), batch.which.tolist(), strict=True))
        expected = blobs().images_at(batch.rows, batch.views, batch.which)
        assert torch.equal(batch.images, expected)
        return logits.square().mean()

    nt.fit(small(), blobs(), objective, epochs=1, batch_size=32, views=("clean", "mirror"), every_view=True)
    assert sorted(seen) == sorted((row, view) for row in range(96) for view in range(2))


def test_modes_during_and_after() -> None:
    """The student is in train mode at every step, also after the first validation."""
    model, modes = small(), []

    def objective(logits: Tensor, batch: nt.Batch) -> Tensor:
        modes.append(all(part.training for part in model.modules()))
        return logits.square().mean()

    nt.fit(model, blobs(), objective, val=blobs(30, "val"), epochs=3)
    assert all(modes)


def test_bf16_learns_and_fp32_weights_stay() -> None:
    model = small()
    history = nt.fit(model, blobs(), nt.supervised(), epochs=10, lr=0.01, precision="bf16")
    assert history.epochs[-1]["train/loss"] < 0.6 * history.epochs[0]["train/loss"]
    assert all(value.dtype == torch.float32 for value in model.parameters())


def test_classes_that_differ_are_refused_before_the_first_step() -> None:
    with pytest.raises(MismatchError, match=r"the model has 3 classes, the data .blobs. have 2"):
        nt.fit(small(), blobs(classes=2), nt.supervised(), epochs=1)


def test_a_folder_with_a_training_is_not_trained_over(tmp_path: Path) -> None:
    nt.fit(small(), blobs(), nt.supervised(), epochs=1, run=tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UsageError, match="holds a training already"):
        nt.fit(small(), blobs(), nt.supervised(), epochs=2, run=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_resuming_with_another_teacher_or_other_labels_is_refused(tmp_path: Path) -> None:
    def table(seed: int) -> Tensor:
        return torch.randn(96, 3, generator=torch.Generator().manual_seed(seed))

    nt.fit(small(), blobs(), nt.distil(table(1)), epochs=1, run=tmp_path / "table")
    with pytest.raises(MismatchError, match="objective"):
        nt.fit(small(), blobs(), nt.distil(table(2)), epochs=1, run=tmp_path / "table", resume=True)
    nt.fit(small(), blobs(), nt.distil(small()), epochs=1, run=tmp_path / "live")
    other = small()
    with torch.no_grad():
        other[0].weight += 1  # type: ignore[index]
    with pytest.raises(MismatchError, match="objective"):
        nt.fit(small(), blobs(), nt.distil(other), epochs=1, run=tmp_path / "live", resume=True)
    nt.fit(small(), blobs(), nt.supervised(), epochs=1, run=tmp_path / "labels")
    split = blobs()
    swapped = nt.Split(split.images, labels_of(split).flip(0), split.index, "train", "blobs", split.class_names)
    with pytest.raises(MismatchError, match="labels"):
        nt.fit(small(), swapped, nt.supervised(), epochs=1, run=tmp_path / "labels", resume=True)


def test_a_number_that_is_not_finite_is_named() -> None:
    def objective(logits: Tensor, batch: nt.Batch) -> tuple[Tensor, dict[str, float]]:
        return logits.square().mean(), {"mine/ratio": float("nan")}

    with pytest.raises(TrainingError, match="mine/ratio"):
        nt.fit(small(), blobs(), objective, epochs=1)


@pytest.mark.parametrize("name", ["epoch", "step", "samples", "train/loss", "lr", "seconds", "val/error", "val/mine"])
def test_a_number_with_a_name_of_the_training_is_refused(name: str) -> None:
    def objective(logits: Tensor, batch: nt.Batch) -> tuple[Tensor, dict[str, float]]:
        return logits.square().mean(), {name: 1.0}

    with pytest.raises(TrainingError, match=f"number '{name}' has the name of .*: rename it"):
        nt.fit(small(), blobs(), objective, epochs=1)


def test_a_trained_model_answers_like_the_one_loaded_from_its_file(tmp_path: Path) -> None:
    """Bit for bit, convolutions included: whether a teacher was just trained or loaded must not change its logits."""
    model = nt.build_model("lenet", classes=3, input_shape=(1, 16, 16))
    images = torch.randint(0, 256, (64, 1, 16, 16), dtype=torch.uint8)
    split = nt.Split(images, torch.arange(64) % 3, torch.arange(64), "train", "x", ("a", "b", "c"))
    nt.fit(model, split, nt.supervised(), epochs=2, run=tmp_path)
    assert torch.equal(nt.predict(model, split), nt.predict(nt.load_model(tmp_path / "weights.safetensors"), split))


@pytest.mark.parametrize("lines", ["", "{}\n{}\n", '{"epoch": 1, "seconds": 0.1}\n', None])
def test_metrics_that_do_not_belong_to_the_weights_are_named(tmp_path: Path, lines: str | None) -> None:
    def fit() -> nt.History:
        return nt.fit(small(), blobs(), nt.supervised(), epochs=2, run=tmp_path, resume=True)

    fit()
    assert len(fit().epochs) == 2
    metrics = tmp_path / "metrics.jsonl"
    metrics.unlink() if lines is None else metrics.write_text(lines)
    with pytest.raises(FileFormatError, match=r"metrics\.jsonl: does not hold the 2 epochs"):
        fit()


def test_tensorboard_events(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    val = blobs(30, "val")
    history = nt.fit(small(), blobs(), nt.supervised(), val=val, epochs=3, run=tmp_path, track="tensorboard")
    events = accumulator.EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    scalars = events.Scalars("val/error")
    assert [scalar.step for scalar in scalars] == [1, 2, 3]
    assert [scalar.value for scalar in scalars] == pytest.approx([line["val/error"] for line in history.epochs])


def unchanged(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def taken(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def unlabelled(split: nt.Split) -> nt.Split:
    return nt.Split(split.images, None, split.index, split.role, split.name, split.class_names)


def renamed(split: nt.Split, names: tuple[str, ...]) -> nt.Split:
    return nt.Split(split.images, split.labels, split.index, split.role, split.name, names)


@pytest.mark.parametrize(
    ("val", "error", "words"),
    [
        (unlabelled(blobs(30, "val")), DataError, r"validation split of 'blobs' has no labels.*val="),
        (blobs(30, "val", classes=2), MismatchError, r"class 2 is 'c' in train.*missing in val"),
        (blobs(30, "val", classes=4), MismatchError, r"class 3 is missing in train.*'d' in val"),
        (renamed(blobs(30, "val"), ("a", "c", "b")), MismatchError, r"class 1 is 'b' in train.*'c' in val"),
        (
            nt.Split(torch.zeros(9, 1, 9, 8, dtype=torch.uint8), torch.arange(9) % 3, torch.arange(9), "val", "x",
                     ("a", "b", "c")),
            MismatchError, r"train images are \[1, 8, 8\], val images \[1, 9, 8\]",
        ),
    ],
)  # fmt: skip
def test_a_wrong_val_is_refused_before_the_first_step(val: nt.Split, error: type[Exception], words: str) -> None:
    model = small()
    before, steps = taken(model), list[Tick]()
    with pytest.raises(error, match=words):
        nt.fit(model, blobs(), nt.supervised(), val=val, epochs=1, progress=steps.append)
    assert not steps
    assert unchanged(model, before)


def test_a_model_of_other_classes_than_val_is_refused_before_the_first_step() -> None:
    with pytest.raises(MismatchError, match="the model has 3 classes, val 2"):
        nt.fit(small(), blobs(classes=2), nt.distil(torch.zeros(96, 3)), val=blobs(30, "val", classes=2), epochs=1)


@pytest.mark.parametrize("several", [False, True])
def test_a_val_teacher_of_other_classes_is_refused_before_the_first_step(several: bool) -> None:
    model, other = small(), nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    teacher = [small(), other] if several else other
    before, steps = taken(model), list[Tick]()
    options: dict[str, Any] = {"val": unlabelled(blobs(30, "val")), "epochs": 1, "progress": steps.append}
    with pytest.raises(MismatchError, match=r"the teacher has 5 class\(es\), the student 3"):
        nt.fit(model, blobs(), nt.supervised(), val_teacher=teacher, **options)
    assert not steps
    assert unchanged(model, before)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("lr", ["1", math.inf, math.nan, 0, -1.0, None, True]),
        ("weight_decay", [math.nan, math.inf, -0.1, "0", None]),
        ("warmup_epochs", [math.inf, math.nan, -1, 3, "1", None]),
        ("seed", [None, 1.5, "0", True]),
        ("epochs", [1.5, True, "2", None]),
        ("batch_size", [1.5, True, None]),
        ("patience", [True, 1.5]),
        ("optimizer", ["adm", 3, None]),
        ("schedule", [3, None, ["linear"]]),
        ("precision", [16]),
    ],
)
def test_a_setting_that_cannot_be_meant_is_refused(name: str, values: list[Any]) -> None:
    for value in values:
        model = small()
        before = taken(model)
        with pytest.raises(ConfigError, match=name):
            nt.fit(model, blobs(), nt.supervised(), val=blobs(30, "val"), **{"epochs": 2, name: value})
        assert unchanged(model, before)


def test_a_momentum_that_cannot_be_meant_is_refused() -> None:
    for momentum in (1.0, -0.1, math.nan, "0.9", True):
        with pytest.raises(ConfigError, match="momentum:"):
            nt.fit(small(), blobs(), nt.supervised(), epochs=1, optimizer="sgd", momentum=momentum)  # type: ignore[arg-type]


def test_batch_norm_does_not_meet_a_single_sample() -> None:
    """It needs a second one to have a variance; a network without it trains on single samples."""
    for split, size in ((blobs(), 1), (blobs().take(1), 64)):
        model = small()
        before = taken(model)
        with pytest.raises(ConfigError, match="batch norm cannot learn from batches of a single sample"):
            nt.fit(model, split, nt.supervised(), epochs=1, batch_size=size)
        assert unchanged(model, before)
        nt.fit(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), split, nt.supervised(), epochs=1, batch_size=size)
    nt.fit(small(), blobs().take(1), nt.supervised(), epochs=1, views="clean,mirror", every_view=True)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda logits: logits.square().mean(1), r"returned a tensor of shape \[64\]: expected one number"),
        (lambda logits: "0.5", "returned a str"),
        (lambda logits: None, "returned a NoneType"),
        (lambda logits: 0.5, "returned a float"),
        (lambda logits: logits.square().mean().detach(), "without a gradient"),
        (lambda logits: (logits.square().mean(), {}, 3), "returned a tuple of 3"),
        (lambda logits: (logits.square().mean(), 3.0), "numbers.*float"),
        (lambda logits: (logits.square().mean(), {"mine": "x"}), "number 'mine' is 'x'"),
        (lambda logits: (logits.square().mean(), {"mine": logits}), "number 'mine'"),
    ],
)
def test_what_an_objective_may_not_return(answer: Any, words: str) -> None:
    model = small()
    before = {name: value.clone() for name, value in model.named_parameters()}
    with pytest.raises(UsageError, match=words):
        nt.fit(model, blobs(), lambda logits, batch: answer(logits), epochs=1)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_an_objective_is_callable() -> None:
    for objective in (None, "supervised", 3):
        model = small()
        before = taken(model)
        with pytest.raises(UsageError, match=f"objective is a {type(objective).__name__}"):
            nt.fit(model, blobs(), objective, epochs=1)  # type: ignore[arg-type]
        assert unchanged(model, before)


def stopped(folder: Path, model: nn.Module, objective: Any) -> None:
    def stop(tick: Tick) -> None:
        if tick.step == 3:
            raise KilledError

    with pytest.raises(KilledError):
        nt.fit(model, blobs(), objective, epochs=3, run=folder, checkpoint_every_s=0.0, progress=stop)


def test_resuming_with_other_parameters_frozen_is_refused(tmp_path: Path) -> None:
    def first_layer_frozen() -> nn.Module:
        model = small()
        model[0].requires_grad_(False)  # type: ignore[index]
        return model

    stopped(tmp_path / "all", small(), nt.supervised())
    with pytest.raises(MismatchError, match=r"frozen: saved None, given \['network\.0\.weight', 'network\.0\.bias'\]"):
        nt.fit(first_layer_frozen(), blobs(), nt.supervised(), epochs=3, run=tmp_path / "all", resume=True)
    stopped(tmp_path / "some", first_layer_frozen(), nt.supervised())
    with pytest.raises(MismatchError, match="frozen"):
        nt.fit(small(), blobs(), nt.supervised(), epochs=3, run=tmp_path / "some", resume=True)
    resumed = nt.fit(first_layer_frozen(), blobs(), nt.supervised(), epochs=3, run=tmp_path / "some", resume=True)
    assert len(resumed.epochs) == 3


def one_loss(logits: Tensor, batch: nt.Batch) -> Tensor:
    return logits.square().mean()


def other_loss(logits: Tensor, batch: nt.Batch) -> Tensor:
    return logits.abs().mean()


class CallableLoss:
    def __call__(self, logits: Tensor, batch: nt.Batch) -> Tensor:
        return logits.square().mean()


def test_resuming_with_another_callable_is_refused(tmp_path: Path) -> None:
    objectives: dict[str, Any] = {
        f"{__name__}.one_loss": one_loss,
        f"{__name__}.other_loss": other_loss,
        f"{__name__}.CallableLoss": CallableLoss(),
        f"functools.partial({__name__}.one_loss)": functools.partial(one_loss),
    }
    for name, objective in objectives.items():
        stopped(tmp_path / name, small(), objective)
        for different in objectives.values():
            if different is objective:
                continue
            with pytest.raises(MismatchError, match=rf"objective: saved {{'callable': '{re.escape(name)}'}}"):
                nt.fit(small(), blobs(), different, epochs=3, run=tmp_path / name, resume=True)
        nt.fit(small(), blobs(), objective, epochs=3, run=tmp_path / name, resume=True)


def test_the_settings_that_a_resumed_training_must_share_are_recorded(tmp_path: Path) -> None:
    """As docs/formats.md lists them."""
    noise = nt.Noise(sigma=0.9, alpha=0.5)
    nt.fit(small(), blobs(), nt.distil(torch.zeros(96, 3), noise=noise), val=blobs(30, "val"), epochs=1, run=tmp_path)
    settings = model_record(tmp_path / "weights.safetensors")["training"]["settings"]
    assert list(settings) == [
        "epochs", "batch_size", "optimizer", "lr", "momentum", "weight_decay", "decay_biases", "schedule", "hold",
        "warmup_epochs", "body_rate", "freeze_epochs", "views", "every_view", "sampling", "augment", "batch_norm",
        "precision", "patience", "keep", "criterion", "seed", "train", "val", "labels", "objective", "architecture",
    ]  # fmt: skip
    assert list(settings["objective"]) == ["objective", "loss", "teacher", "scale", "label_weight", "noise"]
    assert nt.supervised().describe() == {"objective": "supervised"}
    nt.fit(small(), blobs(), nt.supervised(), epochs=1, run=tmp_path / "labels")
    settings = model_record(tmp_path / "labels" / "weights.safetensors")["training"]["settings"]
    assert settings["objective"] == {"objective": "supervised"}


def test_a_root_mean_square_stays_one_over_an_epoch() -> None:
    """Batches of 64 and 32 rows that report 3 and 6: the mean is 4, the root mean square sqrt((2 * 9 + 36) / 3)."""

    def objective(logits: Tensor, batch: nt.Batch) -> tuple[Tensor, dict[str, float]]:
        value = 6.0 if batch.step % 2 else 3.0
        return logits.square().mean(), {"mine/mean": value, "mine/x_rms": value}

    for line in nt.fit(small(), blobs(), objective, epochs=2).epochs:
        assert line["mine/mean"] == pytest.approx(4.0)
        assert line["mine/x_rms"] == pytest.approx(math.sqrt(18))


def test_a_number_reported_in_some_steps_is_a_mean_over_their_samples() -> None:
    def objective(logits: Tensor, batch: nt.Batch) -> tuple[Tensor, dict[str, float]]:
        numbers = {"second": 6.0, "second_rms": 6.0} if batch.step % 2 else {"first": 3.0}
        return logits.square().mean(), numbers

    for line in nt.fit(small(), blobs(), objective, epochs=2).epochs:
        assert (line["first"], line["second"], line["second_rms"]) == pytest.approx((3, 6, 6))


def test_a_schedule_of_noise_runs_over_the_whole_training() -> None:
    """96 rows are 2 steps an epoch, so `until` 0.5 is all of epochs 1 and 2 of 4, and `late` all of 3 and 4."""
    seen: list[int] = []

    def rms(schedule: str) -> list[float]:
        options: dict[str, Any] = {"until": 0.5} if schedule == "until" else {"schedule": schedule}
        noise = nt.Noise(sigma=0.9, alpha=0.5, **options)
        inner = nt.distil(torch.zeros(96, 3) + torch.arange(3.0), noise=noise)

        def objective(logits: Tensor, batch: nt.Batch) -> tuple[Tensor, dict[str, float]]:
            seen.append(batch.total_steps)
            return inner(logits, batch)

        return [line["noise/xi_rms"] for line in nt.fit(small(), blobs(), objective, epochs=4).epochs]

    constant, until, late, linear = (rms(schedule) for schedule in ("constant", "until", "late", "linear"))
    assert min(constant) > 0
    assert until == [*constant[:2], 0.0, 0.0]
    assert late == [0.0, 0.0, *constant[2:]]
    assert all(less < full for less, full in zip(linear, constant, strict=True))
    assert set(seen) == {8}


@pytest.mark.parametrize("stop", [KeyboardInterrupt, KilledError])
def test_stopped_at_every_step_without_a_checkpoint_due_goes_on_from_there(
    tmp_path: Path, stop: type[BaseException]
) -> None:
    """What ends a run between two steps leaves a checkpoint, whenever the last one was; the bytes stay the same."""
    options: dict[str, Any] = {
        "val": blobs(30, "val", seed=1), "epochs": 2, "batch_size": 40, "lr": 0.01, "schedule": "cosine"
    }  # fmt: skip

    def train(folder: Path, resume: bool = False, stop_at: int | None = None) -> tuple[nt.History, list[int]]:
        steps = []

        def progress(tick: Tick) -> None:
            steps.append(tick.step)
            if tick.step == stop_at:
                raise stop

        history = nt.fit(small(), blobs(), nt.supervised(), run=folder, resume=resume, progress=progress, **options)
        return history, steps

    whole, all_steps = train(tmp_path / "whole")
    for stop_at in all_steps:  # 3 and 6 are the last of their epochs: the validation is then still to come
        folder = tmp_path / f"stopped-{stop_at}"
        with pytest.raises(stop):
            train(folder, stop_at=stop_at)
        resumed, steps = train(folder, resume=True)
        assert steps == all_steps[stop_at:]
        for name in ("weights.safetensors", "last.safetensors"):
            assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        strip = [{key: value for key, value in line.items() if key != "seconds"} for line in resumed.epochs]
        assert strip == [{key: value for key, value in line.items() if key != "seconds"} for line in whole.epochs]


class SignalInside(nn.Module):
    """Sends the process a signal in the middle of a forward pass, when batch norm has moved and nothing else has."""

    def __init__(self, number: int, times: int) -> None:
        super().__init__()
        self.number, self.times, self.calls = number, times, 0

    def forward(self, values: Tensor) -> Tensor:
        self.calls += self.training
        if self.training and self.calls == 4:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)
        return values


def signalling(number: int, times: int) -> nn.Module:
    model = small()
    assert isinstance(model, nn.Sequential)
    model[5] = nn.Sequential(nn.ReLU(), SignalInside(number, times))
    return model


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_inside_a_step_takes_effect_after_it_and_the_bytes_stay(tmp_path: Path, number: int) -> None:
    class EndedError(BaseException):
        pass

    def ended(*_: object) -> None:
        raise EndedError

    def train(folder: str, times: int, **more: Any) -> None:
        options = {"epochs": 3, "batch_size": 40, "lr": 0.01, "val": blobs(30, "val", seed=1), **more}
        nt.fit(signalling(number, times), blobs(), nt.supervised(), run=tmp_path / folder, **options)

    train("whole", 0)
    before = signal.signal(number, ended)
    try:
        with pytest.raises(EndedError):
            train("cut", 1)
        assert signal.getsignal(number) is ended
        steps: list[Tick] = []
        train("cut", 0, resume=True, progress=steps.append)
        assert steps[0].step == 5
        for name in ("weights.safetensors", "last.safetensors"):
            assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        with pytest.raises(EndedError):  # a second one does not wait: half a step is not kept
            train("twice", 2)
        assert not (tmp_path / "twice" / "checkpoint").exists()
    finally:
        signal.signal(number, before)


def test_a_finished_run_read_back_has_the_memory_order_of_one_just_trained(tmp_path: Path) -> None:
    """Convolutions in another memory order differ in their last digits: scores and exports would, too."""
    ends = []
    for _ in range(2):
        model = nn.Sequential(small())
        nt.fit(model, blobs(), nt.supervised(), epochs=1, run=tmp_path / "run", resume=True)
        ends.append({name: value.stride() for name, value in model.named_parameters()})
    assert ends[0] == ends[1]
    assert ends[1]["0.1.weight"] == (36, 9, 3, 1)


class Flattening(nn.Module):
    """A linear network of RGB images that flattens by `.view`."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(108, 3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(images.view(len(images), -1))
        return logits


def rgb(rows: int, role: str = "train") -> nt.Split:
    pixels = torch.randint(0, 256, (rows, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(rows))
    return nt.Split(pixels, torch.arange(rows) % 3, torch.arange(rows), role, "rgb", ("a", "b", "c"))


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3))


@pytest.fixture
def channels_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every student is trained in channels-last memory."""
    monkeypatch.setattr(trainer, "choose_memory_format", lambda model, images: torch.channels_last)


@pytest.mark.usefixtures("channels_last")
def test_teachers_and_objectives_may_flatten_images_by_view() -> None:
    def objective(logits: Tensor, batch: nt.Batch) -> Tensor:
        assert batch.labels is not None
        return nn.functional.cross_entropy(logits, batch.labels) + batch.images.view(len(batch.rows), -1).float().std()

    for loss in (nt.distil(Flattening()), objective):
        history = nt.fit(convolutional(), rgb(32), loss, epochs=1, precision="fp32", progress=False)
        assert math.isfinite(history.epochs[0]["train/loss"])


@pytest.mark.usefixtures("channels_last")
def test_no_gradient_stays_behind_and_kept_weights_have_the_usual_memory_order() -> None:
    model = convolutional()
    history = nt.fit(model, rgb(32), nt.supervised(), val=rgb(16, "val"), epochs=2, precision="fp32", progress=False)
    assert all(parameter.grad is None for parameter in model.parameters())
    for weights in (history.best, history.last):
        assert all(value.is_contiguous() for value in weights.values())


def test_state_that_is_no_tensor_is_kept() -> None:
    class Stated(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"calls": 3}

        def set_extra_state(self, state: dict[str, int]) -> None:
            self.state = state

    model = nn.Sequential(nn.Flatten(), Stated(64, 3))
    history = nt.fit(model, blobs(), nt.supervised(), val=blobs(30, "val"), epochs=1, progress=False)
    assert history.last["network.1._extra_state"] == model[1].state == {"calls": 3}


def test_an_imaginary_part_that_is_not_finite_is_noticed() -> None:
    gradient = torch.complex(torch.zeros(3), torch.tensor([0.0, math.nan, 0.0]))
    with pytest.raises(TrainingError, match="the gradient of phase is not finite"):
        check_gradients([("phase", gradient)], 4)
    check_gradients([("phase", torch.zeros(3, dtype=torch.complex64)), ("weight", torch.zeros(2))], 4)


@pytest.mark.parametrize("finished", [False, True])
def test_a_precision_that_is_left_open_stays_that_of_the_run(
    finished: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is measured, and may come out otherwise when the run is resumed."""
    monkeypatch.setattr(fitting, "resolve_precision", lambda name, device: "bf16" if name == "auto" else name)
    if finished:
        nt.fit(small(), blobs(), nt.supervised(), epochs=1, run=tmp_path / "run", progress=False)
    else:
        stopped(tmp_path / "run", small(), nt.supervised())
    monkeypatch.setattr(fitting, "resolve_precision", lambda name, device: "fp32" if name == "auto" else name)
    options: dict[str, Any] = {"run": tmp_path / "run", "resume": True, "progress": False}
    nt.fit(small(), blobs(), nt.supervised(), epochs=1 if finished else 3, **options)
    assert model_record(tmp_path / "run" / "weights.safetensors")["training"]["settings"]["precision"] == "bf16"
