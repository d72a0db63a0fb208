"""Classes that are rare: scores in which each counts the same, balanced sampling, and the epoch that is kept."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisyteacher as nt
from helpers import SETTINGS, Call, blobs, labels_of
from noisyteacher import metrics
from noisyteacher.data import Batch
from noisyteacher.data.split import balanced_rows
from noisyteacher.errors import ConfigError, UsageError
from noisyteacher.pipeline.timing import training_seconds
from noisyteacher.rng import generator
from noisyteacher.stats import binomial_interval
from noisyteacher.train.validation import Validation


def rare(sizes: tuple[int, ...], role: str = "train") -> nt.Split:
    """Blobs with this many rows of each class."""
    split = blobs(len(sizes) * max(sizes), role, len(sizes))
    labels = labels_of(split)
    return split.subset(torch.cat([(labels == label).nonzero().flatten()[:n] for label, n in enumerate(sizes)]))


class Constant(nn.Module):
    """The same logits for every image."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, ready: Tensor) -> Tensor:
        return self.logits.expand(len(ready), -1)


# --- scores ---------------------------------------------------------------------------------------------------------


def test_recall_and_balanced_accuracy_by_hand() -> None:
    """Eight rows of class 0, of which one is taken for 1; two of class 1, of which one is; class 2 has no rows."""
    labels = torch.tensor([0] * 8 + [1] * 2)
    logits = torch.zeros(10, 3)
    logits[range(10), [0] * 7 + [1] * 2 + [2]] = 1.0
    assert metrics.recall(logits, labels)[:2].tolist() == [87.5, 50.0]
    assert math.isnan(metrics.recall(logits, labels)[2])
    assert metrics.balanced_accuracy(logits, labels) == pytest.approx((87.5 + 50) / 2)
    assert metrics.accuracy(logits, labels) == 80.0


def test_balanced_accuracy_of_equally_frequent_classes_is_the_accuracy() -> None:
    draws = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(90, 9, generator=draws), torch.arange(90) % 9
    assert metrics.balanced_accuracy(logits, labels) == pytest.approx(metrics.accuracy(logits, labels))


def test_top5_by_hand() -> None:
    """The labels' ranks are 1 to 6: five of six are among the first five."""
    logits = torch.arange(6.0).flip(0).expand(6, 6)
    assert metrics.top5(logits, torch.arange(6)) == pytest.approx(500 / 6)
    assert metrics.top5(torch.zeros(1, 5), torch.tensor([4])) == 100.0


def test_scores_of_a_split() -> None:
    """A model that says class 0 always: recall 100 % of 12 images, 0 % of 4."""
    scores = nt.evaluate(Constant(1.0, 0.0), rare((12, 4), "test"), progress=False)
    assert scores.error == 25.0
    assert scores.balanced_accuracy == 50.0
    assert scores.balanced_accuracy is not None
    assert (scores.balanced_accuracy.unit, scores.balanced_accuracy.n) == ("%", 16)
    assert scores.recall is not None
    assert scores.recall.tolist() == [100.0, 0.0]
    assert scores.top5 is None
    described = scores.describe()
    assert described["balanced_accuracy"] == {"value": 50.0, "unit": "%", "n": 16}
    assert json.loads(json.dumps(described)) == described
    many = nt.evaluate(Constant(*map(float, range(6))), blobs(12, "test", 6), progress=False)
    assert many.top5 == pytest.approx(500 / 6)


def test_unlabelled_splits_have_no_such_scores() -> None:
    split = replace(blobs(16, "test"), labels=None)
    scores = nt.evaluate(Constant(1.0, 0.0, 0.0), split, teacher=Constant(1.0, 0.0, 0.0), progress=False)
    assert (scores.balanced_accuracy, scores.top5, scores.recall) == (None, None, None)


def test_evaluate_lists_the_recall_of_every_class(call: Call, tmp_path: Path) -> None:
    train = ("train", "--model", "lenet", "--data", "mnist-5k", "--epochs", "1", "--set", "data.limit=60", "-q")
    code, out, _ = call(*train, "--output-dir", str(tmp_path))
    assert code == 0
    run = out.partition("Run folder: ")[2].split()[0]
    code, out, _ = call("evaluate", run, "--json", "-q")
    scores = json.loads(out)
    recall = scores["recall"]
    assert code == 0
    assert list(recall) == list("0123456789")
    assert sum(entry["value"] for entry in recall.values()) / 10 == pytest.approx(scores["balanced_accuracy"]["value"])
    assert sum(entry["n"] for entry in recall.values()) == 60
    for entry in recall.values():
        right = round(entry["value"] * entry["n"] / 100)
        assert (entry["low"], entry["high"]) == binomial_interval(right, entry["n"])
    code, out, _ = call("evaluate", run, "-q")
    table = out.partition("lowest recall first")[2].splitlines()[2:12]
    shares = [float(line.split()[1]) for line in table]
    assert shares == sorted(shares)
    assert sorted(shares) == sorted(round(entry["value"], 2) for entry in recall.values())


# --- balanced sampling ----------------------------------------------------------------------------------------------


def test_every_class_is_drawn_equally_often_and_its_rows_too() -> None:
    """Of 20 draws 5 for each of four classes that occur: all of the 2 rows 2 or 3 times; 5 different ones of the 14."""
    labels = torch.tensor([0] * 14 + [1] * 2 + [3] * 3 + [4] * 1)[torch.randperm(20)]
    rows = balanced_rows(labels, generator(0, "order", 0))
    assert Counter(labels[rows].tolist()) == {0: 5, 1: 5, 3: 5, 4: 5}
    times = Counter(rows.tolist())
    assert {times[row] for row in (labels == 0).nonzero().flatten().tolist()} == {0, 1}
    assert sorted(times[row] for row in (labels == 1).nonzero().flatten().tolist()) == [2, 3]
    assert sorted(times[row] for row in (labels == 3).nonzero().flatten().tolist()) == [1, 2, 2]


def test_what_is_left_over_goes_to_different_classes_and_rows() -> None:
    """Ten rows, three classes: one class has four, and which one changes; so do the rows of the frequent class."""
    labels = torch.tensor([0] * 6 + [1] * 2 + [2] * 2)
    epochs = [balanced_rows(labels, generator(0, "order", epoch)) for epoch in range(30)]
    most = [Counter(labels[rows].tolist()).most_common(1)[0] for rows in epochs]
    assert {count for _, count in most} == {4}
    assert {label for label, _ in most} == {0, 1, 2}
    assert {row for rows in epochs for row in rows.tolist()} == {*range(10)}
    again = balanced_rows(labels, generator(0, "order", 7))
    assert torch.equal(epochs[7], again)


@pytest.mark.parametrize("labelled_by", ["labels", "teacher"])
def test_a_balanced_training_sees_every_class_equally_often(labelled_by: str) -> None:
    """Supervised or from stored logits with noise: what is learned are the logits of the batch's rows."""
    split = rare((40, 8))
    table = torch.randn(48, 2, generator=torch.Generator().manual_seed(0))
    objective = nt.distil(table, noise=nt.Noise(sigma=0.9, alpha=0.5)) if labelled_by == "teacher" else nt.supervised()
    seen: list[Batch] = []

    def watched(logits: Tensor, batch: Batch) -> Any:
        seen.append(batch)
        if labelled_by == "teacher":
            assert torch.equal(objective.inputs(batch, {})["teacher"], table[batch.rows])
        return objective(logits, batch)[0]

    nt.fit(nt.build_model("mlp128", _splits(split)), split, watched, sampling="balanced", progress=False, **SETTINGS)
    epochs = [torch.cat([batch.rows for batch in seen[first : first + 2]]) for first in (0, 2, 4)]
    assert [labels_of(split)[rows].bincount().tolist() for rows in epochs] == [[24, 24]] * 3
    assert not torch.equal(epochs[0].sort().values, epochs[1].sort().values)
    assert len({int(labels_of(split)[batch.rows[:32]].sum()) for batch in seen[::2]} - {16}) > 0, "in turns"
    for batch in seen:
        assert batch.labels is not None
        assert torch.equal(batch.labels, labels_of(split)[batch.rows])


def _splits(split: nt.Split) -> nt.Splits:
    return nt.Splits("blobs", split, replace(blobs(12, "val", split.classes), class_names=split.class_names))


def test_a_rare_class_is_learned_better() -> None:
    """Ten steps on 90 images of one class and 6 of another: the rare class is found by balanced sampling alone."""
    split, test = rare((90, 6)), blobs(60, "test", 2, seed=5)
    options = {**SETTINGS, "epochs": 3, "lr": 1e-3}
    recalls = []
    for sampling in ("all", "balanced"):
        student = nt.build_model("mlp128", _splits(split), seed=0)
        nt.fit(student, split, nt.supervised(), sampling=sampling, progress=False, **options)
        scores = nt.evaluate(student, test, progress=False)
        assert scores.recall is not None
        recalls.append(float(scores.recall[1]))
    assert recalls[1] > recalls[0]


def test_pairs_with_and_without_noise_see_the_same_batches() -> None:
    split, order = rare((20, 4)), list[list[int]]()
    for sigma in (0.0, 0.9):
        objective = nt.distil(torch.ones(24, 2), noise=nt.Noise(sigma=sigma, alpha=0.5))

        def watched(logits: Tensor, batch: Batch, objective: nt.Objective = objective) -> Any:
            order.append(batch.rows.tolist())
            return objective(logits, batch)[0]

        model = nt.build_model("mlp128", _splits(split))
        nt.fit(model, split, watched, sampling="balanced", progress=False, **SETTINGS)
    assert order[: len(order) // 2] == order[len(order) // 2 :]


# --- the epoch that is kept -----------------------------------------------------------------------------------------


def test_the_criterion_decides_which_epoch_is_better() -> None:
    """12 images of class 0 and 4 of class 1: always 0 has 25 % error, 50 % balanced; always 1 has 75 % and 50 %."""
    val = rare((12, 4), "val")

    class Half(nn.Module):
        """Class 1 for all of class 1 and for half of class 0, in order of the rows: 37.5 % error, 25 % balanced."""

        def forward(self, ready: Tensor) -> Tensor:
            wrong = torch.arange(len(ready)) % 2 if len(ready) == 16 else torch.zeros(len(ready))
            wrong[12:] = 1
            return torch.stack([1.0 - wrong, wrong.float()], 1)

    keys, lines = {}, {}
    for criterion in ("error", "balanced_error"):
        judge = Validation(val, None, 2, "cpu", "fp32", criterion)
        lines[criterion], first = judge(Constant(1.0, 0.0), 1)
        second_line, second = judge(Half(), 2)
        keys[criterion] = first[0], second[0]
        assert second_line["val/error"] == 37.5
    assert keys == {"error": (25.0, 37.5), "balanced_error": (50.0, 25.0)}
    assert "val/balanced_error" not in lines["error"]
    assert lines["balanced_error"]["val/balanced_error"] == 50.0


def test_a_training_keeps_the_epoch_of_the_criterion() -> None:
    split, val = rare((90, 6)), rare((30, 6), "val")
    student = nt.build_model("mlp128", _splits(split))
    options = {**SETTINGS, "epochs": 6, "val": val, "criterion": "balanced_error"}
    history = nt.fit(student, split, nt.supervised(), progress=False, **options)
    keys = [(epoch["val/balanced_error"], epoch["val/nll"]) for epoch in history.epochs]
    assert history.best_epoch == 1 + keys.index(min(keys))
    scores = nt.evaluate(student, val, progress=False)
    assert scores.balanced_accuracy == pytest.approx(100 - min(keys)[0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sampling": "balanced", "every_view": True, "views": "clean,mirror"}, "sampling: balanced beside every_view"),
        ({"sampling": "rare"}, "sampling"),
        ({"criterion": "balanced_error"}, "criterion: balanced_error has no effect without labels in val"),
        ({"criterion": "balanced_error", "keep": "last"}, "criterion: balanced_error has no effect with keep 'last'"),
    ],
)
def test_settings_without_effect_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        nt.fit(Constant(0.0, 0.0, 0.0), blobs(), nt.supervised(), progress=False, **options)


def test_balanced_sampling_needs_labels() -> None:
    split = replace(blobs(), labels=None)
    with pytest.raises(ConfigError, match="sampling: balanced needs labels"):
        nt.fit(Constant(0.0, 0.0, 0.0), split, nt.distil(torch.zeros(96, 3)), sampling="balanced", progress=False)


def test_a_resumed_training_has_the_same_sampling(tmp_path: Path) -> None:
    options = {**SETTINGS, "progress": False, "run": tmp_path / "run"}
    nt.fit(nt.build_model("mlp128", _splits(blobs())), blobs(), nt.supervised(), **options)
    student = nt.build_model("mlp128", _splits(blobs()))
    with pytest.raises(UsageError, match="sampling"):
        nt.fit(student, blobs(), nt.supervised(), sampling="balanced", resume=True, **options)


def test_a_training_of_either_setting_can_be_timed() -> None:
    recipe = {
        "batch_size": 10, "views": ("clean",), "every_view": False, "epochs": 9, "lr": 1e-3, "optimizer": "adam",
        "precision": "fp32", "keep": "best", "sampling": "balanced", "criterion": "balanced_error",
    }  # fmt: skip
    data = _splits(blobs())
    assert training_seconds(nt.build_model("mlp128", data), data, recipe, "cpu") is not None
