"""A teacher that is worse than a student on labels is warned of before anything is distilled, and in the result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import noisyteacher as nt
from noisyteacher.models import model_record
from noisyteacher.pipeline import Result
from noisyteacher.pipeline.resolve import LABEL_WEIGHT, WEAK_TEACHER_LABEL_WEIGHT
from noisyteacher.report import build_report
from noisyteacher.runs import Run
from noisyteacher.stats import discordant_p

pytestmark = pytest.mark.usefixtures("unrendered")

CLASSES = ("dark", "bright")


def part(role: str, n: int = 60) -> nt.Split:
    """Images that are dark or bright, which one epoch is enough to learn."""
    labels = torch.arange(n) % 2
    images = (60 + 130 * labels).to(torch.uint8).reshape(n, 1, 1, 1).repeat(1, 1, 4, 4)
    images += torch.randint(0, 20, images.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(n))
    return nt.Split(images, labels, torch.arange(n), role, "grey", CLASSES)


def splits() -> nt.Splits:
    return nt.Splits("grey", train=part("train", 80), val=part("val"), test=part("test", 40))


def teacher(right: bool) -> nn.Module:
    """A linear network that says bright of bright images, or of dark ones."""
    head = nn.Linear(16, 2)
    slope = 1.0 if right else -1.0
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[-slope], [slope]]).repeat(1, 16))
        head.bias.copy_(torch.tensor([8 * slope, -8 * slope]))
    return nn.Sequential(nn.Flatten(), head)


def student() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 2))


def compressed(folder: Path, right: bool, **options: Any) -> tuple[Result, list[tuple[str, str]]]:
    seen: list[tuple[str, str]] = []
    result = nt.compress(
        teacher(right), student(), options.pop("data", splits()), output_dir=folder, epochs=8, batch_size=16,
        lr=options.pop("lr", 0.1), checks=False, **options,
        progress=lambda stage, done, total, note: seen.append((stage, note)),
    )  # fmt: skip
    return result, seen


def position(seen: list[tuple[str, str]], start: str) -> int:
    return next(number for number, (stage, _) in enumerate(seen) if start in stage)


@pytest.mark.parametrize("baselines", [True, False])
def test_a_worse_teacher_is_warned_of_before_the_first_distilled_student(tmp_path: Path, baselines: bool) -> None:
    result, seen = compressed(tmp_path, right=False, baselines=baselines)
    warning, *checks = result.warnings
    accuracy = "Did not hold before the first step (teacher's accuracy): the teacher's accuracy is 0.00 %"
    assert [check.startswith(accuracy) for check in checks].count(True) == 1
    assert warning.startswith(
        "the teacher has 100.00 % error on validation (n = 60), a student trained on labels alone"
    )
    assert "significantly worse (p = " in warning
    assert ("for 2 epochs" in warning) is not baselines  # a quarter of the eight
    assert seen[position(seen, "warning")] == ("warning", warning)
    assert position(seen, "labels alone") < position(seen, "warning") < position(seen, "distilled")
    assert (result.path / "labels-short").exists() is not baselines
    numbers = {stage.split("]")[0] for stage, _ in seen if stage.startswith("[")}
    assert numbers == {f"[{number}/4" for number in range(1, 5)}
    assert f"WARNING: {warning}." in str(result)
    assert Result.read(result.path, Run.open(result.path).result() or {}).warnings == (warning, *checks)
    for form in ("html", "md") if baselines else ("md",):
        assert "significantly worse" in build_report([result.path], form), form


def test_a_better_teacher_is_not_warned_of(tmp_path: Path) -> None:
    result, seen = compressed(tmp_path, right=True)
    assert result.warnings == ()
    assert "warning" not in {stage for stage, _ in seen}


def test_the_warning_comes_before_the_noise_is_chosen(tmp_path: Path) -> None:
    result, seen = compressed(tmp_path, right=False, noise="auto")
    assert [warning.startswith("the teacher has 100.00 % error") for warning in result.warnings] == [True, False, False]
    assert position(seen, "warning") < min(
        n for n, (stage, _) in enumerate(seen) if "alpha" in stage or "sigma" in stage
    )
    assert [stage for stage, _ in seen].count("warning") == 1


@pytest.mark.parametrize(
    ("right", "baselines", "options", "weight"),
    [
        (False, True, {}, WEAK_TEACHER_LABEL_WEIGHT),
        (False, False, {}, WEAK_TEACHER_LABEL_WEIGHT),
        (True, True, {"lr": 1e-6}, LABEL_WEIGHT),  # a student that has learned little
        (True, False, {"lr": 1e-6}, LABEL_WEIGHT),
        (False, True, {"label_weight": 0.5}, 0.5),
        (True, False, {"lr": 1e-6, "label_weight": 0.5}, 0.5),
    ],
)
def test_labels_weigh_more_beside_a_weak_teacher(
    tmp_path: Path, right: bool, baselines: bool, options: dict[str, Any], weight: float
) -> None:
    result, progress = compressed(tmp_path, right=right, baselines=baselines, **options)
    record = model_record(result.path / "clean-seed0" / "weights.safetensors")
    assert record["training"]["settings"]["objective"]["label_weight"] == weight
    messages = [note for stage, note in progress if stage == "plan" and note.startswith("label weight:")]
    assert len(messages) == (weight == WEAK_TEACHER_LABEL_WEIGHT)


def test_without_labels_there_is_nothing_to_compare_with(tmp_path: Path) -> None:
    data = splits()
    train, val, test = (replace(split, labels=None) for split in data.parts.values())
    bare = nt.Splits("grey", train, val, test)
    result, _ = compressed(tmp_path, right=False, data=bare)
    assert result.warnings == ()
    assert not (result.path / "labels-short").exists()


def test_the_p_value_is_of_mcnemars_exact_test() -> None:
    assert discordant_p(8, 1) == pytest.approx(2 * (1 + 9) / 2**9)
    assert discordant_p(1, 8) == discordant_p(8, 1)
    assert discordant_p(3, 3) == 1
    assert discordant_p(0, 0) == 1
