"""SVHN: the official cropped digits, `{train,test,extra}_32x32.mat`, under `root`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from noisyteacher.data.fetch import Official, obtain
from noisyteacher.data.holdout import per_class
from noisyteacher.data.matfile import Variable, mat_variables, read_variable
from noisyteacher.data.split import Split, Splits
from noisyteacher.errors import DataError

SITE = "http://ufldl.stanford.edu/housenumbers/"
MD5 = {
    "train": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test": "eb5a983be6a315427106f1b164d9cef3",
    "extra": "a93ce644f1a588dc4d68dda5feec44a7",
}
VAL_PER_CLASS = {"train": 400, "extra": 200}
_SHARE = 0.2
_CHUNK = 8192
_MAX_IMAGES = 2_000_000
NOTE = "the files are not the official ones (their md5 differs): not comparable with published SVHN numbers"
NO_EXTRA = "trained without the extra images: not comparable with the paper's SVHN numbers"


def load_svhn(
    root: Path, *, download: bool = True, verify: bool = True, extra: bool = True, seed: int = 0
) -> Splits:  # fmt: skip
    """SVHN as 598,388 / 6,000 / 26,032 images `[3, 32, 32]`: the paper's split (Sermanet et al. 2012).

    Validation is 400 of each class of train and 200 of each class of extra (of a class with fewer than five times as
    many, a fifth); the rest of both is for training. `extra=False` does without the 531,131 extra images: 69,257 /
    4,000 / 26,032. Label 10 of the files is the digit 0. Needs about 4 GB of memory with extra.
    Raises DataError naming the file: missing and not to be had, another md5 while `verify`, truncated or damaged.
    """
    names = tuple(map(str, range(10)))
    paths, official = {}, True
    for part in ("train", "test", *(("extra",) if extra else ())):
        remote = Official(f"{part}_32x32.mat", MD5[part], (f"{SITE}{part}_32x32.mat",))
        try:
            paths[part], same = obtain(remote, root, download=download, verify=verify)
        except DataError as error:
            hint = "; extra=False (fewer training images) does without this file" if part == "extra" else ""
            raise DataError(f"{error}{hint}") from error
        official &= same
    counts = {part: _count(path) for part, path in paths.items()}
    parts = [part for part in ("train", "extra") if part in paths]
    # One tensor for train and extra, filled in place: 1.9 GB that must not be held twice.
    images = torch.empty(sum(counts[part] for part in parts), 3, 32, 32, dtype=torch.uint8)
    labels, held, rest, start = [], [], [], 0
    for part in parts:
        stop = start + counts[part]
        targets = _read(paths[part], images[start:stop])
        chosen, others = per_class(targets, VAL_PER_CLASS[part], _SHARE, seed, "svhn", part)
        labels.append(targets)
        held.append(chosen + start)
        rest.append(others + start)
        start = stop
    whole = Split(images, torch.cat(labels), torch.arange(len(images)), "train", "svhn", names)
    test_images = torch.empty(counts["test"], 3, 32, 32, dtype=torch.uint8)
    test_labels = _read(paths["test"], test_images)
    note = " ".join(sentence for sentence in ("" if official else NOTE + ".", "" if extra else NO_EXTRA) if sentence)
    return Splits(
        "svhn",
        whole.subset(torch.cat(rest)),
        whole.subset(torch.cat(held), "val"),
        Split(test_images, test_labels, torch.arange(len(test_images)), "test", "svhn", names),
        preprocess="local-contrast",
        note=note,
    )


def _count(path: Path) -> int:
    """How many images the file says it has; its variables are looked at before any is read."""
    found = _variables(path)
    images, labels = found.get("X"), found.get("y")
    shape, kind = ((), "missing") if images is None else (images.shape, images.kind)
    if len(shape) != 4 or tuple(shape[:3]) != (32, 32, 3) or kind != "uint8" or not 0 < shape[3] <= _MAX_IMAGES:
        raise DataError(f"{path}: X is {kind} {list(shape)}; expected uint8 [32, 32, 3, N]")
    if labels is None or sorted(labels.shape) != sorted((shape[3], 1)):
        told = "missing" if labels is None else list(labels.shape)
        raise DataError(f"{path}: y is {told}; expected [{shape[3]}, 1]")
    return int(shape[3])


def _variables(path: Path) -> dict[str, Variable]:
    try:
        return mat_variables(path)
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: not a readable .mat file ({error}): it is truncated or damaged") from error


def _read(path: Path, into: Tensor) -> Tensor:
    """Fill `into` `[N, 3, 32, 32]` with the images and give the labels back, int64 `[N]` in 0..9."""
    found = _variables(path)
    try:
        pixels, labels = read_variable(path, found["X"]), read_variable(path, found["y"]).reshape(-1)
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: not a readable .mat file ({error}): it is truncated or damaged") from error
    if pixels.dtype != np.uint8 or pixels.shape != (32, 32, 3, len(into)) or labels.dtype.kind not in "iuf":
        raise DataError(f"{path}: X is {pixels.dtype} {list(pixels.shape)} and y {labels.dtype}: not SVHN's images")
    wrong = np.flatnonzero((labels != np.floor(labels)) | (labels < 1) | (labels > 10))
    if len(wrong) or len(labels) != len(into):
        at = f"label {labels[wrong[0]]} of row {wrong[0]} is out of range" if len(wrong) else f"{len(labels)} labels"
        raise DataError(f"{path}: {at}; expected {len(into)} digits 1..10, 10 meaning 0")
    target = into.numpy()
    for start in range(0, len(into), _CHUNK):
        stop = min(start + _CHUNK, len(into))
        target[start:stop] = pixels[..., start:stop].transpose(3, 2, 0, 1)
    return torch.from_numpy(labels.astype(np.int64) % 10)
