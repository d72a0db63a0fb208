"""What a data set holds, in numbers: for `data ls`, `data check` and the reports."""

from __future__ import annotations

from typing import Any

import torch

from noisyteacher.data.split import Split, Splits


def data_summary(splits: Splits) -> dict[str, Any]:
    """A JSON-able record of the splits.

    `name, classes, class_names, input_shape [C, H, W], preprocess, views, note`, and under `splits` for every role:
    `n`, `per_class` (rows of each class, or None when unlabelled), `fingerprint` (64 hex digits), `mean` and `std`
    (per channel, of pixels / 255, over all rows; population standard deviation).
    """
    return {
        "name": splits.name,
        "classes": splits.classes,
        "class_names": list(splits.class_names),
        "input_shape": list(splits.input_shape),
        "preprocess": splits.preprocess,
        "views": list(splits.views),
        "note": splits.note,
        "splits": {role: _of_split(split) for role, split in splits.parts.items()},
    }


def _of_split(split: Split) -> dict[str, Any]:
    channels, height, width = split.input_shape
    total, squares = torch.zeros(channels, dtype=torch.int64), torch.zeros(channels, dtype=torch.int64)
    for rows in split.chunks():
        images = split.images_at(rows).cpu().long()
        # Whole numbers: no rounding before the last division, so equal images give equal digits.
        total += images.sum(dim=(0, 2, 3))
        squares += (images * images).sum(dim=(0, 2, 3))
    pixels = len(split) * height * width
    mean = total.double() / pixels
    variance = (squares.double() / pixels - mean * mean).clamp(min=0)
    per_class = None
    if split.labels is not None:
        counts = split.labels.bincount(minlength=split.classes).tolist()
        per_class = dict(zip(split.class_names, counts, strict=True))
    return {
        "n": len(split),
        "per_class": per_class,
        "fingerprint": split.fingerprint,
        "mean": (mean / 255).tolist(),
        "std": (variance.sqrt() / 255).tolist(),
    }
