"""Split, Splits and Batch: what they give back, and every way of not being a data set that they refuse."""

from __future__ import annotations

import hashlib
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch

from noisyteacher.data import Batch, Split, Splits
from noisyteacher.errors import DataError, MismatchError, UnknownNameError, UsageError

IMAGES = torch.arange(5 * 1 * 2 * 3, dtype=torch.uint8).reshape(5, 1, 2, 3)
LABELS = torch.tensor([0, 1, 2, 1, 0])
NAMES = ("ant", "bee", "cat")


def make(index: list[int], role: str = "train", **changes: object) -> Split:
    """A split whose labels follow the five images, however the index goes through them."""
    labels = torch.tensor([int(LABELS[at % len(LABELS)]) for at in index], dtype=torch.int64)
    fields = {"images": IMAGES, "labels": labels, "role": role, "name": "tiny", "class_names": NAMES, **changes}
    return Split(index=torch.tensor(index, dtype=torch.int64), **fields)  # type: ignore[arg-type]


def test_rows_go_through_the_index() -> None:
    split = make([4, 0, 2])
    assert (len(split), split.classes, split.input_shape) == (3, 3, (1, 2, 3))
    assert split.images_at(torch.tensor([2, 0]))[:, 0, 0, 0].tolist() == [12, 24]
    assert split.labels_at(torch.tensor([2, 0])).tolist() == [2, 0]
    assert split.labels is not None
    assert split.labels.tolist() == [0, 0, 2]
    assert torch.equal(split.labels, split.labels_at(torch.arange(3)))
    rows = torch.tensor([2, 0])
    part = split.subset(rows)
    assert part.labels is not None
    assert part.labels.tolist() == [2, 0]
    assert torch.equal(part.images_at(torch.arange(2)), split.images_at(rows))


def test_each_row_takes_its_own_view() -> None:
    split = make([1, 2])
    seen = split.images_at(torch.tensor([0, 1]), ("clean", "mirror"), torch.tensor([1, 0]))
    assert seen[:, 0, 0].tolist() == [[8, 7, 6], [12, 13, 14]]
    assert split.images_at(torch.tensor([0]), "mirror")[0, 0, 0].tolist() == [8, 7, 6]
    assert split.images_at(torch.tensor([0]), ("mirror",))[0, 0, 0].tolist() == [8, 7, 6]


def test_views_and_which_must_say_one_thing() -> None:
    split = make([1, 2])
    with pytest.raises(UsageError, match="needs `which`"):
        split.images_at(torch.tensor([0]), ("clean", "mirror"))
    with pytest.raises(UsageError, match="leave it out"):
        split.images_at(torch.tensor([0]), "mirror", torch.tensor([0]))
    with pytest.raises(UnknownNameError, match="unknown view"):
        split.images_at(torch.tensor([0]), "upside-down")


@pytest.mark.parametrize("row", [-1, 3])
def test_a_row_out_of_range_is_refused_not_wrapped(row: int) -> None:
    with pytest.raises(MismatchError, match="it has 3"):
        make([4, 0, 2]).images_at(torch.tensor([row]))
    with pytest.raises(MismatchError, match="it has 3"):
        make([4, 0, 2]).labels_at(torch.tensor([row]))


def test_the_fingerprint_is_sha256_of_shape_and_pixels_in_row_order() -> None:
    split = make([3, 1])
    pixels = IMAGES.numpy()[[3, 1]].tobytes()
    assert split.fingerprint == hashlib.sha256(b"uint8 2x1x2x3\n" + pixels).hexdigest()
    assert make([3, 1], labels=None).fingerprint == split.fingerprint
    assert make([1, 3]).fingerprint != split.fingerprint
    assert make([3, 1], images=IMAGES.reshape(5, 1, 3, 2)).fingerprint != split.fingerprint


def test_subset_and_take_keep_order_and_share_the_pixels() -> None:
    split = make([4, 3, 2, 1])
    part = split.subset(torch.tensor([3, 0]), role="val")
    assert part.index.tolist() == [1, 4]
    assert part.role == "val"
    assert part.images.data_ptr() == IMAGES.data_ptr()
    assert split.take(2).index.tolist() == [4, 3]
    for wrong in (0, 5, -1):
        with pytest.raises(UsageError, match="has 4 rows"):
            split.take(wrong)
    with pytest.raises(DataError, match="empty"):
        split.subset(torch.tensor([], dtype=torch.int64))


def test_unlabelled_splits_have_images_and_no_targets() -> None:
    split = make([0, 1], labels=None)
    assert split.images_at(torch.tensor([1])).shape == (1, 1, 2, 3)
    assert split.labels is None
    with pytest.raises(DataError, match="no labels"):
        split.labels_at(torch.tensor([1]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": IMAGES.float()}, r"float32 \[5, 1, 2, 3\]; expected torch.uint8"),
        ({"images": IMAGES[:, 0]}, r"uint8 \[5, 2, 3\]; expected torch.uint8 \[M, C, H, W\]"),
        ({"images": IMAGES[:0]}, "not empty"),
        ({"labels": LABELS}, "2 rows but 5 labels; expected one label per row"),
        ({"labels": LABELS[:1]}, "2 rows but 1 labels"),
        ({"labels": LABELS.float()}, "labels: torch.float32"),
        ({"labels": LABELS.int()}, "labels: torch.int32"),
        ({"labels": torch.tensor([0, 3])}, "label 3 of row 1 is out of range 0..2"),
        ({"labels": torch.tensor([-1, 2])}, "label -1 of row 0 is out of range"),
        ({"class_names": ("one",)}, "two or more"),
        ({"class_names": ("a", "b", "a")}, "all different"),
        ({"role": "training"}, "none of train, val, test"),
    ],
)
def test_what_is_no_split_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(DataError, match=words):
        make([0, 1], **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(("index", "words"), [([], "empty"), ([0, 5], r"0..5, but there are 5"), ([-1], "-1")])
def test_an_index_must_point_at_images(index: list[int], words: str) -> None:
    with pytest.raises(DataError, match=words):
        make(index)


def test_splits_speak_for_their_parts() -> None:
    splits = Splits("tiny", make([0, 1]), make([2], "val"), make([3], "test"), views=("clean", "mirror"))
    assert (splits.classes, splits.class_names, splits.input_shape) == (3, NAMES, (1, 2, 3))
    assert list(splits.parts) == ["train", "val", "test"]
    assert list(replace(splits, test=None).parts) == ["train", "val"]
    assert repr(splits) == "Splits(tiny, train 2, val 1, test 1, [1, 2, 3], 3 classes)"
    assert repr(splits.val) == "Split(tiny, val, 1 x [1, 2, 3], 3 classes)"
    with pytest.raises(FrozenInstanceError):
        splits.name = "other"  # type: ignore[misc]


def test_an_image_in_two_splits_is_refused() -> None:
    with pytest.raises(DataError, match=r"train and test share 1 image\(s\)"):
        Splits("tiny", make([0, 1, 2]), make([3], "val"), make([2], "test"))


@pytest.mark.parametrize(
    ("val", "words"),
    [
        (make([2], "test"), "has the role 'test'"),
        (make([2], "val", class_names=("ant", "bee", "dog")), "ant, bee, dog"),
        (make([2], "val", images=IMAGES.reshape(5, 1, 3, 2)), r"train images are \[1, 2, 3\], val images \[1, 3, 2\]"),
    ],
)
def test_parts_that_do_not_fit_are_refused(val: Split, words: str) -> None:
    with pytest.raises(DataError, match=words):
        Splits("tiny", make([0]), val)


def test_a_batch_prints_without_pixels() -> None:
    rows = torch.tensor([0, 1])
    batch = Batch(IMAGES[:2], LABELS[:2], rows, ("clean",), torch.zeros(2, dtype=torch.int64), 3, 0, 5)
    assert repr(batch) == "Batch(2 x [1, 2, 3], 1 view(s), step 3)"


def test_images_may_be_memory_mapped(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "images.bin"
    path.write_bytes(IMAGES.numpy().tobytes())
    mapped = torch.from_file(str(path), size=30, dtype=torch.uint8).reshape(5, 1, 2, 3)
    assert make([3, 1], images=mapped).fingerprint == make([3, 1]).fingerprint
    assert np.array_equal(make([3], images=mapped).images_at(torch.tensor([0])).numpy(), IMAGES[3:4].numpy())
