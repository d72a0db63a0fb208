"""Extraction against the teacher's bare forward passes over the same images."""

from __future__ import annotations

import math
from itertools import count
from pathlib import Path

import pytest
import torch
from synthetic import CIFAR, CLASSES, MNIST, synthetic_split
from torch import Tensor

from conftest import Turns
from noisyteacher import Classifier, build_model, extract

CASES = {
    "lenet-mnist": ("lenet", MNIST, 12_288, 256, 5),
    "nin-cifar": ("nin", CIFAR, 512, 16, 3),
}


def forward(model: Classifier, images: Tensor, batch_size: int) -> Tensor:
    """The logits of all images, and nothing else: what cannot be saved."""
    with torch.no_grad():
        return torch.cat([model(part) for part in images.split(batch_size)])


@pytest.mark.parametrize("case", CASES)
def test_extract(turns: Turns, tmp_path: Path, case: str) -> None:
    name, shape, rows, batch_size, rounds = CASES[case]
    rows = min(rows, 2048) if turns.short else rows
    split, model = synthetic_split(rows, shape), build_model(name, classes=CLASSES, input_shape=shape).eval()
    model.to(memory_format=torch.channels_last)  # as `extract` does: the bare passes must be as fast
    bare: list[Tensor] = []
    numbers = count()

    def work() -> None:
        extract(model, split, tmp_path / str(next(numbers)), batch_size=batch_size, device="cpu")

    result = turns.measure(
        work, lambda: bare.append(forward(model, split.images, batch_size)), rounds=rounds, sane=(0.5, 3)
    )
    store = extract(model, split, tmp_path / "0", batch_size=batch_size, device="cpu")
    assert torch.equal(store.logits("clean", torch.arange(rows)), bare[0])
    # Before the first batch, that batch and its first half run once more, to see whether the answers are steady.
    answers = rows + batch_size + batch_size // 2
    per_answer = result.ratio * rows / answers
    turns.tell_ratio(
        result,
        "bare forward passes",
        f"{rows / result.work:,.0f} images/s ({rows} in batches of {batch_size}; "
        f"{per_answer:.2f} when the {answers - rows} answers of the steadiness check count too)",
        images_per_second=rows / result.work,
        ratio_per_answer=per_answer,
    )


def test_extract_bf16(turns: Turns, tmp_path: Path) -> None:
    rows, batch_size = 512, 128
    split, model = synthetic_split(rows, MNIST), build_model("lenet", classes=CLASSES, input_shape=MNIST).eval()
    numbers, stores = count(), {}

    def run(precision: str) -> None:
        folder = tmp_path / str(next(numbers))
        stores[precision] = extract(
            model, split, folder, batch_size=batch_size, device="cpu", precision=precision
        ).logits("clean", torch.arange(rows))

    result = turns.measure(lambda: run("bf16"), lambda: run("fp32"), rounds=3)
    apart = float((stores["bf16"] - stores["fp32"]).norm() / stores["fp32"].norm())
    assert 0 < apart < math.ldexp(1, -4), "bf16 keeps eight bits"
    turns.tell_ratio(result, "fp32", f"{rows / result.work:,.0f} images/s", images_per_second=rows / result.work)
