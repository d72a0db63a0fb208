"""A split of a data set: uint8 images, an index that says which of them are its rows, and a label for every row."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, combinations
from typing import Any

import torch
from torch import Tensor

from noisyteacher.data.views import apply_view, apply_views, expand_views
from noisyteacher.device import sent
from noisyteacher.errors import DataError, MismatchError, UsageError
from noisyteacher.io.files import sha256
from noisyteacher.io.tensors import tensor_bytes
from noisyteacher.text import few

ROLES = ("train", "val", "test")
_CHUNK, _CHUNK_BYTES = 4096, 2**24


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """Rows of a data set with a role. Raises DataError when images, labels and index do not make one.

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
        what = f"{self.name} ({self.role})"
        if self.role not in ROLES:
            raise DataError(f"{self.name}: role {self.role!r} is none of {', '.join(ROLES)}")
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise DataError(
                f"{what}: images are {_describe(self.images)}; expected uint8 [M, C, H, W] with values 0..255"
            )
        if 0 in self.images.shape:
            raise DataError(f"{what}: images have shape {list(self.images.shape)}: there is nothing in them")
        if len(self.class_names) < 2 or len(set(self.class_names)) < len(self.class_names):
            raise DataError(f"{what}: class names {list(self.class_names)}: expected two or more, all different")
        if self.index.dtype != torch.int64 or self.index.ndim != 1:
            raise DataError(f"{what}: index is {_describe(self.index)}; expected int64 [N]")
        if not len(self.index):
            raise DataError(f"{what}: the split is empty; it needs at least one row")
        low, high = int(self.index.min()), int(self.index.max())
        if low < 0 or high >= len(self.images):
            raise DataError(f"{what}: index holds {low}..{high}, but there are {len(self.images)} images")
        if self.labels is not None:
            _check_labels(self.labels, len(self.index), len(self.class_names), what)

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
        """(C, H, W) of one image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def images_at(self, rows: Tensor, views: Sequence[str] | str = "clean", which: Tensor | None = None) -> Tensor:
        """The images of the rows `[B]`, uint8 `[B, C, H, W]`, each under its view.

        views: one name for all rows, or a table of names with `which` `[B]` saying which of them each row takes.
        Raises MismatchError for rows or `which` out of range, UnknownNameError for a view, UsageError for a
        table without `which`, or `which` without a table.
        """
        images = self.images.index_select(0, sent(self._image_rows(rows), self.images.device))
        if isinstance(views, str):
            if which is not None:
                raise UsageError(f"views is the one name {views!r}: `which` says nothing beside it, leave it out")
            return apply_view(images, views)
        if which is None and len(views) != 1:
            raise UsageError(f"a table of {len(views)} views needs `which`, one number per row")
        return apply_view(images, views[0]) if which is None else apply_views(images, views, which)

    def first_images(self, most: int, view: str = "clean") -> Tensor:
        """The images of the first rows, at most so many, under one view: uint8 `[min(most, N), C, H, W]`."""
        return self.images_at(torch.arange(min(most, len(self))), view)

    def labels_at(self, rows: Tensor) -> Tensor:
        """The labels of the rows `[B]`, int64 `[B]`. Raises DataError when the split is unlabelled."""
        if self.labels is None:
            raise DataError(f"{self.name} ({self.role}): the images have no labels; use an objective that needs none")
        self._image_rows(rows)
        return self.labels[rows.to(self.labels.device)]

    @property
    def targets(self) -> Tensor:
        """Deprecated: `labels`, int64 `[N]`. Raises DataError when the split is unlabelled."""
        warnings.warn("Split.targets is deprecated: use Split.labels", DeprecationWarning, stacklevel=2)
        return self.labels_at(torch.arange(len(self)))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (64 hex digits) over the shape `N x C x H x W` and the image bytes in row order; labels stay out."""
        shape = "x".join(map(str, (len(self), *self.input_shape)))
        parts = (tensor_bytes(self.images_at(rows)) for rows in self.chunks())
        return sha256(chain([f"uint8 {shape}\n".encode()], parts))

    def chunks(self) -> Iterator[Tensor]:
        """All rows in order, int64 `[n]`, in pieces whose images take about 16 MB at most (and 4,096 rows)."""
        channels, height, width = self.input_shape
        return iter(
            torch.split(torch.arange(len(self)), max(1, min(_CHUNK, _CHUNK_BYTES // (channels * height * width))))
        )

    def subset(self, rows: Tensor, role: str | None = None) -> Split:
        """The split of these rows `[B]` of this one, in this order. Raises DataError when there are none."""
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
            low, high = (int(bound) for bound in rows.aminmax())
            if not 0 <= low <= high < len(self):
                raise MismatchError(f"{self.name} ({self.role}): rows {low}..{high} requested, it has {len(self)}")
        return self.index[rows.to(self.index.device)]


@dataclass(frozen=True, eq=False, repr=False)
class Splits:
    """A data set: what to train on, what to choose on, what to report on. Raises DataError when they do not fit.

    test: None when there is none. preprocess: the name of the preprocessing that models take for it by default.
    views: the training views the paper uses for it. note: a sentence reports should repeat, or "".
    """

    name: str
    train: Split
    val: Split
    test: Split | None = None
    preprocess: str = "standardize"
    views: tuple[str, ...] = ("clean",)
    note: str = ""

    def __post_init__(self) -> None:
        for role, split in self.parts.items():
            if split.role != role:
                raise DataError(f"{self.name}: the split for {role} has the role {split.role!r}")
            if split.class_names != self.class_names:
                raise DataError(
                    f"{self.name}: train has the classes {few(self.class_names, 5)}, "
                    f"{role} has {few(split.class_names, 5)}"
                )
            if split.input_shape != self.input_shape:
                raise DataError(
                    f"{self.name}: train images are {list(self.input_shape)}, {role} images {list(split.input_shape)}"
                )
        _check_disjoint(self.name, list(self.parts.values()))
        object.__setattr__(self, "views", expand_views(self.views))

    def __repr__(self) -> str:
        """One line: `Splits(mnist-5k, train 4000, val 400, test 600, [1, 28, 28], 10 classes)`."""
        sizes = ", ".join(f"{role} {len(split)}" for role, split in self.parts.items())
        return f"Splits({self.name}, {sizes}, {list(self.input_shape)}, {self.classes} classes)"

    @property
    def parts(self) -> dict[str, Split]:
        """The splits there are, by role: train, val and, where there is one, test."""
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
        """(C, H, W) of one image."""
        return self.train.input_shape


@dataclass(frozen=True, eq=False, repr=False)
class Batch:
    """One batch of a training, as an objective gets it: B images under their views, and their rows and labels.

    images: uint8 `[B, C, H, W]`, the views already applied. labels: int64 `[B]` or None. rows: int64 `[B]`, rows of the
    split, so that a table of logits joins by indexing. views: the table of view names; which: int64 `[B]` into it.
    step: the step of the whole training, from 0. seed: the run's seed. total_rows: the rows N of the split.
    total_steps: the steps of the whole training, 0 outside a training. blend: with mixup, the labels of the blended-in
    images, int64 `[B]`, and the share `[B]` of the image's own label. whole: with several processes, the samples of the
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


def _check_labels(labels: Tensor, rows: int, classes: int, what: str) -> None:
    if labels.dtype != torch.int64 or labels.ndim != 1:
        raise DataError(f"{what}: labels are {_describe(labels)}; expected int64 [N]")
    if len(labels) != rows:
        raise DataError(
            f"{what}: {rows} rows but {len(labels)} labels; there must be one label per row, in the order of the index"
        )
    wrong = ((labels < 0) | (labels >= classes)).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"{what}: label {int(labels[row])} of row {row} is out of range 0..{classes - 1} "
            f"({classes} classes); {len(wrong)} label(s) are"
        )


def _check_disjoint(name: str, splits: list[Split]) -> None:
    """Raise DataError where splits of the same tensor share an image: what is reported on the second is worthless."""
    for first, second in combinations(splits, 2):
        if first.images.data_ptr() == second.images.data_ptr():
            in_first = torch.zeros(len(first.images), dtype=torch.bool)
            in_first[first.index.cpu()] = True
            shared = int(in_first[second.index.cpu()].sum())
            if shared:
                raise DataError(f"{name}: {first.role} and {second.role} share {shared} image(s); draw them apart")


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


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
