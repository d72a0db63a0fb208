"""Images nobody has to download: ten patterns and a good deal of noise, uint8, the same for every seed-taker."""

from __future__ import annotations

import torch

from noisyteacher import Split

CLASSES = 10
MNIST = (1, 28, 28)
CIFAR = (3, 32, 32)


def synthetic_split(rows: int, shape: tuple[int, int, int]) -> Split:
    """A training split of `rows` images `[C, H, W]`."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randint(256, (CLASSES, *shape), generator=generator)
    labels = torch.randint(CLASSES, (rows,), generator=generator)
    noise = torch.randint(256, (rows, *shape), generator=generator)
    images = ((patterns[labels] + noise) // 2).to(torch.uint8)
    names = tuple(f"pattern {number}" for number in range(CLASSES))
    return Split(images, labels, torch.arange(rows), "train", "synthetic", names)
