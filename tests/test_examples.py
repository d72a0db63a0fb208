"""The programs in examples/ run as they are: the loss falls, and the noise reaches the targets it is meant for."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

from helpers import Fork
from run_example import run_example

ROOT = Path(__file__).resolve().parents[1]
NEEDS = {
    "plain_torch": (),
    "lightning_loop": ("lightning",),
    "hf_trainer": ("transformers", "accelerate"),
    "timm_loop": ("timm",),
}
LIMIT, EPOCHS, BATCH, ALPHA = 320, 2, 64, 0.25
LOSS = re.compile(r"epoch \d+: loss ([\d.]+)|'loss': '?([\d.]+)")
LAST = re.compile(r"^(\w+) student \(sigma ([\d.]+)\): test error ([\d.]+) % \(n=(\d+)\)$", re.M)


def test_every_example_is_known_and_short() -> None:
    lines = {file.stem: len(file.read_text().splitlines()) for file in (ROOT / "examples").glob("*.py")}
    assert set(lines) == set(NEEDS)
    assert max(lines.values()) < 60


@pytest.mark.parametrize("name", NEEDS)
def test_an_example(name: str, tmp_path: Path) -> None:
    for needed in NEEDS[name]:
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed")
    watched = tmp_path / "watched.json"
    arguments = ["--epochs", EPOCHS, "--limit", LIMIT, "--sigma", 0.9, "--alpha", ALPHA]
    program = ROOT / "examples" / f"{name}.py"
    process = Fork(
        lambda: run_example(watched, program, list(map(str, arguments))), tmp_path / name, {"HF_HUB_OFFLINE": "1"}
    )
    assert process.wait() == 0, process.err
    printed = process.out

    # What it prints: a falling loss for each student, other losses under noise, and two errors with their n.
    losses = [float(a or b) for a, b in LOSS.findall(printed)]
    assert len(losses) == 2 * EPOCHS
    clean, noisy = losses[:EPOCHS], losses[EPOCHS:]
    assert clean == sorted(clean, reverse=True)
    assert noisy == sorted(noisy, reverse=True)
    assert all(a < b for a, b in zip(clean, noisy, strict=True))  # noise adds alpha sigma^2 |z|^2 / 2 to the loss
    errors = LAST.findall(printed)
    assert [(student, sigma) for student, sigma, _, _ in errors] == [("clean", "0"), ("noisy", "0.9")]
    assert all(0 <= float(error) <= 100 and int(n) == LIMIT for _, _, error, n in errors)

    # What the students were taught: the clean one the teacher's logits, the noisy one others for a share alpha.
    first, second = json.loads(watched.read_text())
    steps = EPOCHS * LIMIT // BATCH
    for about in (first, second):
        assert (about["calls"], about["counter"], about["rows"]) == (steps, steps, EPOCHS * LIMIT)
        assert about["steady"]
        assert about["unchanged"]
    assert (first["sigma"], first["changed"]) == (0.0, 0)
    # Binomial: the standard deviation of the share of 640 rows is 1.7 points, so 4 of them either side.
    assert second["changed"] / second["rows"] == pytest.approx(ALPHA, abs=0.07)
