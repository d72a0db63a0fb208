"""Hold-outs: the generator against published numbers, the draws against counting."""

from __future__ import annotations

import pytest
import torch

from noisyteacher.data import Split
from noisyteacher.data.holdout import limited, partition, per_class, splitmix64
from noisyteacher.errors import DataError


def test_splitmix64_gives_the_published_numbers() -> None:
    # The first five outputs for seed 1234567, as the reference implementation in C prints them.
    assert splitmix64(1234567, 5).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_parts_are_disjoint_whole_and_stratified() -> None:
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)[torch.randperm(100)]
    parts = partition(labels, [10, 20], 0, "a test")
    assert sorted(torch.cat(parts).tolist()) == list(range(100))
    assert [part.tolist() == sorted(part.tolist()) for part in parts] == [True] * 3
    assert [labels[part].bincount(minlength=3).tolist() for part in parts] == [[6, 3, 1], [12, 6, 2], [42, 21, 7]]


def test_every_class_is_within_one_row_of_its_share() -> None:
    labels = torch.arange(997) ** 2 % 13 % 7
    held_out, _ = partition(labels, [101], 5, "uneven")
    share = labels.bincount() * 101 / 997
    assert float((labels[held_out].bincount() - share).abs().max()) <= 1.0


def test_the_draw_depends_on_seed_and_purpose_alone() -> None:
    labels = torch.arange(200) % 4
    first = partition(labels, [20], 0, "x")[0]
    assert torch.equal(first, partition(labels, [20], 0, "x")[0])
    assert not torch.equal(first, partition(labels, [20], 1, "x")[0])
    assert not torch.equal(first, partition(labels, [20], 0, "y")[0])


@pytest.mark.parametrize("sizes", [[10], [5, 5], [0], [11]])
def test_nothing_left_over_is_refused(sizes: list[int]) -> None:
    with pytest.raises(DataError, match="too few"):
        partition(torch.arange(10) % 2, sizes, 0)


def test_per_class_takes_the_number_or_a_fifth() -> None:
    labels = torch.tensor([0] * 50 + [1] * 10 + [3] * 4)
    chosen, rest = per_class(labels, 5, 0, "svhn")
    assert labels[chosen].bincount(minlength=4).tolist() == [5, 2, 0, 0]
    assert sorted([*chosen.tolist(), *rest.tolist()]) == list(range(64))


def test_a_limit_of_rows_without_labels_is_a_draw_too() -> None:
    """Files are often in the order of their classes: the first ones would be of one class."""
    images = torch.zeros((200, 1, 2, 2), dtype=torch.uint8)
    rows = limited(Split(images, None, torch.arange(200), "train", "photos", ("a", "b")), 20).index.tolist()
    assert len(set(rows)) == 20
    assert rows == sorted(rows)
    assert rows[-1] >= 100
    assert rows == limited(Split(images, None, torch.arange(200), "train", "photos", ("a", "b")), 20).index.tolist()
