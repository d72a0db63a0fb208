"""Temperatures fitted on validation: the minimum of the NLL, what they change, and exported files that have them."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import noisyteacher as nt
from helpers import blobs
from noisyteacher import cli, metrics
from noisyteacher.errors import DataError, UsageError
from noisyteacher.models import rescale


def overconfident() -> nt.Classifier:
    """A random linear model with far too large logits."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = nn.Linear(64, 3)
        layer.weight.data *= 8
    return nt.build_model(nn.Sequential(nn.Flatten(), layer), input_shape=(1, 8, 8), classes=3)


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_the_temperature_undoes_a_factor_on_logits_that_labels_were_drawn_from(factor: float) -> None:
    draws = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 5, generator=draws)
    labels = torch.multinomial(logits.softmax(1), 1, generator=draws)[:, 0]
    best = metrics.best_temperature(factor * logits, labels)
    assert best == pytest.approx(factor, rel=0.03)
    at_best = metrics.nll(factor * logits / best, labels)
    assert all(metrics.nll(factor * logits / (best * off), labels) > at_best for off in (0.97, 1.03))


def test_confidences_change_and_classes_do_not(tmp_path: Path) -> None:
    model, val = overconfident(), blobs(300, "val")
    before = nt.predict(model, val, progress=False)
    val = replace(
        val, labels=torch.multinomial((before / 4).softmax(1), 1, generator=torch.Generator().manual_seed(0))[:, 0]
    )
    calibrated, temperature = nt.calibrate(model, val, progress=False)
    after = nt.predict(calibrated, val, progress=False)
    assert temperature > 2
    torch.testing.assert_close(after, before / temperature)
    assert torch.equal(nt.predict(model, val, progress=False), before)  # the model itself is as it was
    assert val.labels is not None
    assert metrics.nll(after, val.labels) < metrics.nll(before, val.labels)
    twice, again = nt.calibrate(rescale(calibrated, 0.5), val, progress=False)  # from whatever scale it has
    torch.testing.assert_close(nt.predict(twice, val, progress=False), after, rtol=1e-3, atol=1e-4)
    assert again == pytest.approx(0.5 * temperature, rel=1e-3)


def test_what_cannot_be_fitted_to_is_refused() -> None:
    with pytest.raises(UsageError, match="report on test"):
        nt.calibrate(overconfident(), blobs(role="test"))
    unlabelled = nt.Split(blobs().images, None, torch.arange(96), "val", "blobs", ("a", "b", "c"))
    with pytest.raises(DataError, match="no labels"):
        nt.calibrate(overconfident(), unlabelled)


def test_an_exported_file_has_the_temperature_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["export", "pretrained:lenet-mnist", "--data", "mnist-5k", "--set", "data.limit=200", "--format", "hub"]
    words += ["--calibrate", "--output-dir", str(tmp_path), "--json", "--quiet"]
    monkeypatch.setattr(sys, "argv", ["noisyteacher", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    record = json.loads(capsys.readouterr().out)
    assert any("lowest NLL on validation" in caveat for caveat in record["caveats"])
    assert "lowest NLL" in (tmp_path / "hub" / "README.md").read_text()
    data = nt.load_data("mnist-5k", limit=200)
    model = nt.load_model("pretrained:lenet-mnist")
    expected, _ = nt.calibrate(model, data.val, progress=False)
    shipped = nt.predict(nt.load_model(tmp_path / "hub"), data.val, progress=False)
    torch.testing.assert_close(shipped, nt.predict(expected, data.val, progress=False), rtol=1e-4, atol=1e-5)


def test_a_student_with_its_teachers_weights_is_calibrated_too() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 3))
    teacher, val = nt.build_model(layers, input_shape=(1, 8, 8), classes=3), blobs(300, "val")
    model = nt.build_model("shrink:0.5", classes=3, input_shape=(1, 8, 8), teacher=teacher)
    before = nt.predict(model, val, progress=False)
    calibrated, temperature = nt.calibrate(model, val, progress=False)
    assert abs(temperature - 1) > 0.1
    torch.testing.assert_close(nt.predict(calibrated, val, progress=False), before / temperature)
