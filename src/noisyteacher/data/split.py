"""Splits of a data set (uint8 images, an index of their rows, a label for every row) and the batches of an epoch.

Which rows a batch has, in which order and under which views, is a function of (seed, epoch).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisyteacher.data.augment import augmented
from noisyteacher.data.views import apply_view, apply_views, expand_views
from noisyteacher.device import sent
from noisyteacher.errors import DataError, MismatchError, UsageError
from noisyteacher.io.files import sha256
from noisyteacher.io.tensors import tensor_bytes
from noisyteacher.rng import generator
from noisyteacher.text import few

ROLES = ("train", "val", "test")
SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Name of a split's folder in lower case -> its role; any case is read."""
MAX_CLASSES = 100_000
_CHUNK, _CHUNK_BYTES = 4096, 2**24


def check_split(value: object, name: str = "split") -> None:
    """Raises UsageError unless the value is a Split; for Splits it says to give one of their parts."""
    if not isinstance(value, Split):
        advice = "give one of its parts, such as data.train" if isinstance(value, Splits) else "see nt.load_data"
        raise UsageError(f"{name}: given a {type(value).__name__}; expected a Split: {advice}")


def role_of(folder_name: str) -> str | None:
    """The role that a folder of this name has: `role_of("Valid")` is "val", `role_of("cats")` is None."""
    return SPLIT_FOLDERS.get(folder_name.lower())


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """Rows of a data set with a role. Raises DataError when images, labels and index do not fit together.

    images: uint8 `[M, C, H, W]`, in memory or memory-mapped, shared between the splits that are cut from it: they are
        not in the order of the rows, `images_at` is.
    index: int64 `[N]`; row r of the split is image `index[r]`.
    labels: int64 `[N]` in 0..K-1, the label of every row in order, or None where there are none.
    role: `train`, `val` or `test`. name: the data set's name. class_names: K names, in the order of the labels.
    """

    images: Tensor
    labels: Tensor | None
    index: Tensor
    role: str
    name: str
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        title = f"{self.name} ({self.role})"
        if self.role not in ROLES:
            raise DataError(f"{self.name}: role {self.role!r} is none of {', '.join(ROLES)}")
        for name, tensor, dtype, dims, shape in (
            ("images", self.images, torch.uint8, 4, "[M, C, H, W]"),
            ("index", self.index, torch.int64, 1, "[N]"),
            ("labels", self.labels, torch.int64, 1, "[N]"),
        ):
            if tensor is not None and (tensor.dtype != dtype or tensor.ndim != dims or not tensor.numel()):
                kind = f"{tensor.dtype} {list(tensor.shape)}"
                raise DataError(f"{title}: {name}: {kind}; expected {dtype} {shape}, not empty")
        if len(self.class_names) < 2 or len(set(self.class_names)) < len(self.class_names):
            raise DataError(f"{title}: class names {list(self.class_names)}: expected two or more, all different")
        low, high = map(int, self.index.aminmax())
        if low < 0 or high >= len(self.images):
            raise DataError(f"{title}: index holds {low}..{high}, but there are {len(self.images)} images")
        if self.labels is not None:
            if len(self.labels) != len(self):
                raise DataError(f"{title}: {len(self)} rows but {len(self.labels)} labels; expected one label per row")
            _check_range(self.labels, self.classes, title)

    def __repr__(self) -> str:
        """One line without the pixels: `Split(mnist-5k, train, 4000 x [1, 28, 28], 10 classes)`."""
        classes = f"{self.classes} classes{', unlabelled' if self.labels is None else ''}"
        return f"Split({self.name}, {self.role}, {len(self)} x {list(self.input_shape)}, {classes})"

    def __len__(self) -> int:
        """The number of rows N."""
        return len(self.index)

    @property
    def classes(self) -> int:
        """The number of classes K."""
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def images_at(self, rows: Tensor, views: Sequence[str] | str = "clean", which: Tensor | None = None) -> Tensor:
        """The images of the rows `[B]`, uint8 `[B, C, H, W]`, each under its view.

        views: a name for all rows, or a table of names with `which` `[B]` saying which of them each row takes.
        Raises MismatchError for rows or `which` out of range, UnknownNameError for a view, UsageError.
        """
        images = self.images.index_select(0, sent(self._image_rows(rows), self.images.device))
        if which is not None:
            if isinstance(views, str):
                raise UsageError(f"views is the name {views!r}: `which` has no effect beside it, leave it out")
            return apply_views(images, views, which)
        if not isinstance(views, str) and len(views) != 1:
            raise UsageError(f"a table of {len(views)} views needs `which`, a number for each row")
        return apply_view(images, views if isinstance(views, str) else views[0])

    def first_images(self, most: int, view: str = "clean") -> Tensor:
        """The images of the first rows, at most this many, under a view: uint8 `[min(most, N), C, H, W]`."""
        return self.images_at(torch.arange(min(most, len(self))), view)

    def labels_at(self, rows: Tensor) -> Tensor:
        """The labels of the rows `[B]`, int64 `[B]`. Raises DataError when the split is unlabelled."""
        if self.labels is None:
            raise DataError(f"{self.name} ({self.role}): the images have no labels; use an objective that needs none")
        self._image_rows(rows)
        return self.labels[rows.to(self.labels.device)]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (64 hex digits) over the shape `N x C x H x W` and the image bytes in row order, without labels."""
        shape = "x".join(map(str, (len(self), *self.input_shape)))
        parts = (tensor_bytes(self.images_at(rows)) for rows in self.chunks())
        return sha256(chain([f"uint8 {shape}\n".encode()], parts))

    def chunks(self) -> Iterator[Tensor]:
        """All rows in order, int64 `[n]`, in pieces whose images take about 16 MB at most (and 4,096 rows)."""
        size = max(1, min(_CHUNK, _CHUNK_BYTES // math.prod(self.input_shape)))
        return iter(torch.split(torch.arange(len(self)), size))

    def subset(self, rows: Tensor, role: str | None = None) -> Split:
        """The split of these rows `[B]`, in this order. Raises DataError when there are none."""
        labels = None if self.labels is None else self.labels_at(rows)
        return replace(self, index=self._image_rows(rows), labels=labels, role=role or self.role)

    def take(self, n: int) -> Split:
        """The split of the first n rows. Raises UsageError unless 1 <= n <= N."""
        if not 1 <= n <= len(self):
            raise UsageError(f"{self.name} ({self.role}) has {len(self)} rows: cannot take the first {n}")
        return self.subset(torch.arange(n))

    def _image_rows(self, rows: Tensor) -> Tensor:
        """The images of the rows. Negative rows are refused: they would silently count from the end."""
        if rows.numel():
            low, high = map(int, rows.aminmax())
            if not 0 <= low <= high < len(self):
                raise MismatchError(f"{self.name} ({self.role}): rows {low}..{high} requested, it has {len(self)}")
        return self.index[rows.to(self.index.device)]


@dataclass(frozen=True, eq=False, repr=False)
class Splits:
    """A data set: what to train on, what to choose on, what to report on. Raises DataError when they do not fit.

    test: None when there is none. preprocess: the name of the preprocessing that models use for it by default.
    views: the training views the paper uses for it. note: a sentence reports should repeat, or "". fit: how larger
    images were brought to this size, `squash` or `crop`.
    """

    name: str
    train: Split
    val: Split
    test: Split | None = None
    preprocess: str = "standardize"
    views: tuple[str, ...] = ("clean",)
    note: str = ""
    fit: str = "squash"

    def __post_init__(self) -> None:
        for role, split in self.parts.items():
            if split.role != role:
                raise DataError(f"{self.name}: the split for {role} has the role {split.role!r}")
            if split.class_names != self.class_names:
                classes = f"{few(self.class_names, 5)}, {role} has {few(split.class_names, 5)}"
                raise DataError(f"{self.name}: train has the classes {classes}")
            if split.input_shape != self.input_shape:
                shapes = f"{list(self.input_shape)}, {role} images {list(split.input_shape)}"
                raise DataError(f"{self.name}: train images are {shapes}")
        for first, second in combinations(self.parts.values(), 2):
            if first.images.data_ptr() == second.images.data_ptr():
                in_first = torch.zeros(len(first.images), dtype=torch.bool)
                in_first[first.index.cpu()] = True
                shared = int(in_first[second.index.cpu()].sum())
                if shared:
                    raise DataError(f"{self.name}: {first.role} and {second.role} share {shared} image(s)")
        object.__setattr__(self, "views", expand_views(self.views))

    def __repr__(self) -> str:
        """One line: `Splits(mnist-5k, train 4000, val 400, test 600, [1, 28, 28], 10 classes)`."""
        sizes = ", ".join(f"{role} {len(split)}" for role, split in self.parts.items())
        return f"Splits({self.name}, {sizes}, {list(self.input_shape)}, {self.classes} classes)"

    @property
    def parts(self) -> dict[str, Split]:
        """The splits by role: train, val and, where there is one, test."""
        splits = {"train": self.train, "val": self.val, "test": self.test}
        return {role: split for role, split in splits.items() if split is not None}

    @property
    def classes(self) -> int:
        """The number of classes K."""
        return self.train.classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """K names, in the order of the labels."""
        return self.train.class_names

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return self.train.input_shape


@dataclass(frozen=True, eq=False, repr=False)
class Batch:
    """One batch of a training, as an objective gets it: B images under their views, and their rows and labels.

    images: uint8 `[B, C, H, W]`, the views already applied. labels: int64 `[B]` or None. rows: int64 `[B]`, rows of the
    split, so that a table of logits joins by indexing. views: the table of view names; which: int64 `[B]` into it.
    step: the step of the whole training, from 0. seed: the run's seed. total_rows: the rows N of the split.
    total_steps: the steps of the whole training, 0 outside a training. blend: with mixup, the labels of the blended-in
    images, int64 `[B]`, and the share `[B]` of the image's label. whole: with several processes, the samples of the
    whole batch, of which these are the slice `share`; 0: the batch is whole.
    """

    images: Tensor
    labels: Tensor | None
    rows: Tensor
    views: tuple[str, ...]
    which: Tensor
    step: int
    seed: int
    total_rows: int
    total_steps: int = 0
    blend: tuple[Tensor, Tensor] | None = None
    whole: int = 0
    share: slice = field(default_factory=lambda: slice(None))

    @property
    def whole_size(self) -> int:
        """The samples of the whole batch."""
        return self.whole or len(self.rows)

    def __repr__(self) -> str:
        """One line without the pixels: `Batch(64 x [1, 28, 28], 1 view(s), step 3)`."""
        shape = list(self.images.shape)
        return f"Batch({shape[0]} x {shape[1:]}, {len(self.views)} view(s), step {self.step})"


def samples_of(split: Split, views: Sequence[str], every_view: bool) -> int:
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
    sampling: str = "all",
) -> Iterator[Batch]:
    """The batches of epoch `epoch` (from 0) from number `first` on to number `batches - 1`, on the device.

    Every row once under a random view, or, with `every_view`, once under each view; with the sampling `balanced` rows
    of every class equally often (`balanced_rows`); then augmented. `share`: which rows of a batch of this many are this
    process's.
    """
    rows_total, samples = len(split), samples_of(split, views, every_view)
    draws = generator(seed, "order", epoch)
    order = torch.randperm(samples, generator=draws)
    rows_of, which_of = order % rows_total, order // rows_total
    if sampling == "balanced":
        rows_of = balanced_rows(split.labels_at(torch.arange(rows_total)).cpu(), draws)[order]
    if not every_view:
        which_of = torch.randint(len(views), (samples,), generator=generator(seed, "view", epoch))
    labels_of = sent(split.labels_at(rows_of), device) if split.labels is not None else None
    for number in range(first, batches):
        part, step, blend = slice(number * batch_size, (number + 1) * batch_size), epoch * batches + number, None
        rows, which, labels = rows_of[part], which_of[part], None if labels_of is None else labels_of[part]
        size, local = len(rows), share(len(rows))
        picked = local if augment == "none" else slice(None)  # mixup may blend in an image of another process
        images = sent(split.images_at(rows[picked], views, which[picked]), device).to(memory_format=layout)
        if augment != "none":
            images, partners = augmented(images, augment, seed, step)
            images = images[local]
            if partners is not None and labels is not None:
                blend = labels[partners[0]][local], partners[1][local]
        labels = None if labels is None else labels[local]
        yield Batch(
            images, labels, rows[local], views, which[local], step, seed, rows_total, total_steps, blend, size, local
        )


def balanced_rows(labels: Tensor, draws: torch.Generator) -> Tensor:
    """As many rows as there are labels `[N]`, int64 `[N]`, of which every class that occurs has as many, up to one.

    Of a class with more rows than its share a new random choice; of one with fewer each row equally often, up to one.
    """
    shuffled = torch.randperm(len(labels), generator=draws)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    sizes = labels.bincount()
    starts = sizes.cumsum(0) - sizes
    present = sizes.nonzero().flatten()
    present = present[torch.randperm(len(present), generator=draws)]  # which classes have one more
    places = torch.arange(len(labels))
    classes, rounds = present[places % len(present)], places // len(present)
    return by_class[starts[classes] + rounds % sizes[classes]]


def class_numbers(labels: NDArray[Any], rows: int, title: str, classes: int = MAX_CLASSES) -> Tensor:
    """Labels as int64 `[N]` from integers `[N]` or `[N, 1]`. Raises DataError that begins with the title."""
    if labels.dtype.kind not in "iu":
        names, hint = labels.dtype.kind in "USO", "save y.argmax(1)" if labels.ndim == 2 else "save y.astype('int64')"
        hint = "save the two results of np.unique(y, return_inverse=True) as classes and y" if names else hint
        raise DataError(f"{title} is {labels.dtype}; expected integers, the class numbers from 0: {hint}")
    if labels.shape not in ((rows,), (rows, 1)):
        raise DataError(
            f"{title} has shape {list(labels.shape)}; there are {rows} images, expected [{rows}] "
            "(of one-hot labels: y.argmax(1))"
        )
    numbers = torch.from_numpy(labels.reshape(-1).astype(np.int64))
    _check_range(numbers, classes, title)
    return numbers


def _check_range(labels: Tensor, classes: int, title: str) -> None:
    wrong = ((labels < 0) | (labels >= classes)).nonzero()
    if len(wrong):
        row, limit = int(wrong[0]), classes - 1
        raise DataError(f"{title}: label {int(labels[row])} of row {row} is out of range 0..{limit} ({len(wrong)} are)")


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
        "splits": {role: _split_summary(split) for role, split in splits.parts.items()},
    }


def _split_summary(split: Split) -> dict[str, Any]:
    total = squares = torch.zeros(split.input_shape[0], dtype=torch.int64)
    for rows in split.chunks():
        images = split.images_at(rows).cpu().long()
        # Whole numbers: no rounding before the last division, so equal images give equal digits.
        total, squares = total + images.sum(dim=(0, 2, 3)), squares + (images * images).sum(dim=(0, 2, 3))
    pixels = len(split) * math.prod(split.input_shape[1:])
    mean = total.double() / pixels
    std = (squares.double() / pixels - mean * mean).clamp(min=0).sqrt()
    per_class = None
    if split.labels is not None:
        per_class = dict(zip(split.class_names, split.labels.bincount(minlength=split.classes).tolist(), strict=True))
    statistics = {"mean": (mean / 255).tolist(), "std": (std / 255).tolist()}
    return {"n": len(split), "per_class": per_class, "fingerprint": split.fingerprint, **statistics}
