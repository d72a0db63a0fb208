"""Images without labels: students learn, epochs are judged by agreement, and nothing is claimed of errors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import noisyteacher as nt
from noisyteacher.config import build_config
from noisyteacher.errors import DataError, UsageError
from noisyteacher.pipeline.compression import compress_config
from noisyteacher.pipeline.single_step import distil_config, train_config
from noisyteacher.report import build_report
from noisyteacher.runs import Run
from noisyteacher.sweep import sweep

LABELLED = nt.load_data("mnist-5k", limit=60)


def bare(split: nt.Split) -> nt.Split:
    return replace(split, labels=None)


DATA = replace(
    LABELLED, train=bare(LABELLED.train), val=bare(LABELLED.val), test=bare(LABELLED.test)  # type: ignore[arg-type]
)  # fmt: skip
SHORT: dict[str, Any] = {"epochs": 2, "batch_size": 20}


@pytest.fixture(scope="module")
def teacher() -> nt.Classifier:
    model = nt.build_model("mlp800", LABELLED, seed=1)
    nt.fit(model, LABELLED.train, nt.supervised(), epochs=2)
    return model


def test_the_best_epoch_is_the_one_that_agrees_most(teacher: nt.Classifier, tmp_path: Path) -> None:
    model = nt.build_model("mlp800", DATA)
    history = nt.fit(
        model, DATA.train, nt.distil(teacher), val=DATA.val, val_teacher=teacher, epochs=4, lr=3e-3,
        schedule="constant", batch_size=20, run=tmp_path / "run", precision="fp32",
    )  # fmt: skip
    ranks = [(-line["val/agreement"], line["val/kl"]) for line in history.epochs]
    assert history.best_epoch == 1 + ranks.index(min(ranks))
    assert history.val_error is None
    kept = history.epochs[history.best_epoch - 1]
    theirs, ours = nt.predict(teacher, DATA.val), nt.predict(model, DATA.val)
    agreed = int((theirs.argmax(1) == ours.argmax(1)).sum())
    assert kept["val/agreement"] == pytest.approx(100 * agreed / len(ours), rel=1e-12)
    p, q = theirs.double().log_softmax(1), ours.double().log_softmax(1)
    assert kept["val/kl"] == pytest.approx(float((p.exp() * (p - q)).sum(1).mean()), rel=1e-4)
    assert "val/error" not in kept
    again = nt.fit(
        nt.build_model("mlp800", DATA), DATA.train, nt.distil(teacher), val=DATA.val, val_teacher=teacher, epochs=4,
        lr=3e-3, schedule="constant", batch_size=20, run=tmp_path / "run", resume=True, precision="fp32",
    )  # fmt: skip
    assert again.best_epoch == history.best_epoch


def test_a_teacher_for_validation_is_needed_or_refused(teacher: nt.Classifier) -> None:
    student = nt.build_model("mlp800", DATA)
    with pytest.raises(DataError, match="give val_teacher="):
        nt.fit(student, DATA.train, nt.distil(teacher), val=DATA.val)
    for val in (None, LABELLED.val):
        with pytest.raises(UsageError, match="val_teacher has no effect"):
            nt.fit(student, DATA.train, nt.distil(teacher), val=val, val_teacher=teacher)
    with pytest.raises(DataError, match="has no labels"):
        nt.fit(student, DATA.train, nt.supervised())


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize("augment", ["none", "randaugment"])
def test_a_compression_speaks_of_agreement_alone(teacher: nt.Classifier, tmp_path: Path, augment: str) -> None:
    result = nt.compress(
        teacher, "mlp800", DATA, noise=nt.Noise(sigma=0.5, alpha=0.5), seeds=2, output_dir=tmp_path, augment=augment,
        **SHORT,
    )  # fmt: skip
    assert [row.name for row in result.rows] == ["teacher", "clean", "noisy"]
    text, record = str(result), json.loads(json.dumps(result.describe()))
    assert "test disagreement %" in text
    assert "Disagreement with the teacher: mnist-5k, test, n = 60 images" in text
    assert "No labels" in text
    assert "test error" not in text
    assert "points of test disagreement" in str(result.verdict)
    assert record["teachers"][0]["scores"]["test"]["disagreement"]["per_seed"] == [0.0]
    for row in result.rows[1:]:
        agreement = row.score("test", "agreement")
        assert agreement is not None
        assert row.errors == pytest.approx([100 - value for value in agreement.per_seed])
    assert json.loads(json.dumps(nt.Result.read(result.path, record).describe())) == record
    scores = Run(result.path / "noisy-seed0").result()["scores"]  # type: ignore[index]
    assert set(scores["test"]) == {"split", "agreement"}
    for kind in ("html", "md", "json", "csv"):
        assert "mnist-5k" in build_report([result.path], kind)


def test_the_noise_is_chosen_by_agreement(teacher: nt.Classifier, tmp_path: Path) -> None:
    result = nt.compress(teacher, "mlp800", DATA, noise="auto", baselines=False, output_dir=tmp_path, **SHORT)
    assert result.choice is not None
    assert result.choice["by"] == "validation disagreement"
    assert "disagreement" in str(result.verdict) or "disagreement" in " ".join(result.notes())


def packed(tmp_path: Path) -> Path:
    """The digits as an unlabelled packed folder."""
    import numpy as np

    np.savez(tmp_path / "digits.npz", x=LABELLED.train.images_at(torch.arange(60)).numpy()[:, 0])
    return nt.pack_data(tmp_path / "digits.npz", tmp_path / "digits", classes=10).path


def test_from_a_packed_folder_by_config(teacher: nt.Classifier, tmp_path: Path) -> None:
    nt.save_model(teacher, tmp_path / "teacher.safetensors")
    settings: dict[str, dict[str, Any]] = {
        "data": {"name": str(packed(tmp_path))},
        "teacher": {"name": str(tmp_path / "teacher.safetensors")},
        "student": {"name": "mlp800", **SHORT},
        "noise": {"sigma": 0.5, "alpha": 0.5},
        "run": {"output_dir": str(tmp_path / "runs")},
    }
    assert compress_config(build_config(settings)).scored == "disagreement"

    def refused(words: str, **changes: dict[str, Any]) -> None:
        changed = {key: settings.get(key, {}) | value for key, value in changes.items()}
        with pytest.raises(UsageError, match=words):
            compress_config(build_config(settings | changed))

    before = sorted((tmp_path / "runs").iterdir())
    refused("has no labels to train it on", teacher={"name": "lenet"})
    refused("student.label_weight: .* has no labels", student={"label_weight": 0.5})
    with pytest.raises(UsageError, match="a sweep compares errors"):
        sweep(settings, {"noise.sigma": [0.1]})
    with pytest.raises(DataError, match="has no labels"):
        train_config(build_config(settings | {"teacher": {"name": "mlp800"}}))
    assert sorted((tmp_path / "runs").iterdir()) == before
    store = nt.extract(teacher, nt.load_data(tmp_path / "digits").train, tmp_path / "store")
    trained = distil_config(build_config(settings), store.path)
    assert trained.result["scores"] == {}
    assert trained.result["training"]["kept"] == "last"
    with pytest.raises(UsageError, match="patience=3 has no effect"):
        distil_config(build_config(settings | {"student": {"name": "mlp800", "patience": 3}}), store.path)
    with pytest.raises(UsageError, match="the noise cannot be chosen"):
        distil_config(build_config(settings | {"noise": {"sigma": "auto"}}), store.path)
