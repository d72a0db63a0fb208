"""The table of docs/models.md: python scripts/models_table.py. Costs of every network by name, 10 classes, one thread.

Parameters, bytes and multiplications are the same everywhere. Times are CPU time of the calling thread, so that other
work on the machine counts less, and the networks take turns: the lower quartile over the rounds.
"""

from __future__ import annotations

import sys
import time

import torch

from noisyteacher.device import inference
from noisyteacher.measure import measure
from noisyteacher.models import MODELS, Classifier, build_model

HEAD = "| name | images | MACs | parameters | bytes | ms, batch 1 | images/s, batch 64 |"
GREY = ("lenet", "mlp128", "mlp800")
ROUNDS = {1: 60, 64: 8}
"""Timed calls by batch."""


def shape_of(name: str) -> tuple[int, int, int]:
    """The images of the data set a network is for: MNIST's, or CIFAR-10's and SVHN's."""
    return (1, 28, 28) if name in GREY else (3, 32, 32)


def main() -> None:
    """Prints the table as Markdown, by multiplications."""
    torch.set_num_threads(1)
    models = {name: build_model(name, classes=10, input_shape=shape_of(name)).eval() for name in MODELS}
    costs = {name: measure(model, latency=False) for name, model in models.items()}
    times = {batch: timed(models, batch, rounds) for batch, rounds in ROUNDS.items()}
    print(HEAD)
    print("|---|---|---|---|---|---|---|")
    for name in sorted(models, key=lambda network: costs[network].macs):
        cost, images = costs[name], "x".join(map(str, shape_of(name)))
        print(
            f"| `{name}` | {images} | {cost.macs:,} | {cost.parameters:,} | {cost.bytes:,} | {times[1][name]:.2f} "
            f"| {64e3 / times[64][name]:,.0f} |"
        )


def timed(models: dict[str, Classifier], batch: int, rounds: int) -> dict[str, float]:
    """Milliseconds of one call with so many images, by name."""
    milliseconds: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(-2, rounds):
        for name, model in models.items():
            images = torch.randint(0, 256, (batch, *shape_of(name)), dtype=torch.uint8)
            with inference(model):
                model(images)
                start = time.thread_time_ns()
                model(images)
                if turn >= 0:
                    milliseconds[name].append((time.thread_time_ns() - start) / 1e6)
    return {name: sorted(values)[len(values) // 4] for name, values in milliseconds.items()}


if __name__ == "__main__":
    sys.exit(main())
