"""An epoch's batches: which rows, in which order, under which views. All of it is a function of (seed, epoch)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from noisyteacher.data.augment import augmented
from noisyteacher.data.split import Batch, Split
from noisyteacher.device import sent
from noisyteacher.rng import stream


def samples_of(split: Split, views: tuple[str, ...], every_view: bool) -> int:
    """The number of samples in an epoch: each row once, or once per view."""
    return len(split) * (len(views) if every_view else 1)


def epoch_batches(
    split: Split,
    views: tuple[str, ...],
    *,
    seed: int,
    epoch: int,
    first: int,
    batches: int,
    batch_size: int,
    every_view: bool,
    total_steps: int,
    device: torch.device,
    augment: str = "none",
    share: Callable[[int], slice] = lambda rows: slice(0, rows),
    layout: torch.memory_format = torch.contiguous_format,
) -> Iterator[Batch]:
    """The batches of epoch `epoch` (from 0) from number `first` on to number `batches - 1`, on the device.

    Every row once under a random view, or, with `every_view`, once under each view; then augmented. `share`: which
    rows of a batch of this many are this process's; `layout`: memory order of the images.
    """
    rows_total, samples = len(split), samples_of(split, views, every_view)
    order = torch.randperm(samples, generator=stream(seed, "order", epoch))
    if every_view:
        which_of = order // rows_total
    else:
        which_of = torch.randint(len(views), (samples,), generator=stream(seed, "view", epoch))
    rows_of = order % rows_total
    labels_of = sent(split.labels_at(rows_of), device) if split.labels is not None else None
    for number in range(first, batches):
        part = slice(number * batch_size, (number + 1) * batch_size)
        rows, which = rows_of[part], which_of[part]
        labels, blend, step = None if labels_of is None else labels_of[part], None, epoch * batches + number
        own, size = share(len(rows)), len(rows)
        if augment == "none":
            rows, which = rows[own], which[own]
            images = sent(split.images_at(rows, views, which), device).to(memory_format=layout)
        else:  # images that are blended in may belong to another process
            images = sent(split.images_at(rows, views, which), device).to(memory_format=layout)
            images, partners = augmented(images, augment, seed, step)
            images, rows, which = images[own], rows[own], which[own]
            if partners is not None and labels is not None:
                blend = labels[partners[0]][own], partners[1][own]
        labels = None if labels is None else labels[own]
        yield Batch(images, labels, rows, views, which, step, seed, rows_total, total_steps, blend, size, own)
