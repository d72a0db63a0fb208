"""Views against a twin in plain numpy: pad, cut, flip, one image at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from noisyteacher.data.views import apply_view, apply_views, expand_views
from noisyteacher.errors import MismatchError, UnknownNameError, UsageError


def twin(image: np.ndarray, name: str) -> np.ndarray:
    """One image [C, H, W] under one view, as the words of the definition say it."""
    words = name.split("-")
    if "mirror" in words:
        image = image[:, :, ::-1]
    if "crop" in words:
        top, left = int(words[-2][1:]), int(words[-1][1:])
        padded = np.pad(image, ((0, 0), (4, 4), (4, 4)))
        image = padded[:, top : top + image.shape[1], left : left + image.shape[2]]
    return image


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(1, 256, (162, 3, 6, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def test_every_view_equals_the_numpy_twin(images: torch.Tensor) -> None:
    views = expand_views("crop,mirror*crop")
    assert len(views) == 162
    chosen = torch.randperm(162, generator=torch.Generator().manual_seed(1))
    seen = apply_views(images, views, chosen)
    expected = np.stack([twin(image, views[view]) for image, view in zip(images.numpy(), chosen.tolist(), strict=True)])
    assert seen.dtype == torch.uint8
    assert np.array_equal(seen.numpy(), expected)


def test_a_hand_made_crop_and_mirror() -> None:
    image = torch.tensor([[[[1, 2], [3, 4]]]], dtype=torch.uint8)
    assert apply_view(image, "mirror").tolist() == [[[[2, 1], [4, 3]]]]
    # One pixel down: the window starts a row lower than the middle, the last row is padding.
    assert apply_view(image, "crop-y5-x4").tolist() == [[[[3, 4], [0, 0]]]]
    assert apply_view(image, "crop-y4-x3").tolist() == [[[[0, 1], [0, 3]]]]
    assert apply_view(image, "mirror-crop-y4-x3").tolist() == [[[[0, 2], [0, 4]]]]
    assert apply_view(image, "crop-y0-x0").tolist() == [[[[0, 0], [0, 0]]]]


def test_the_middle_has_a_canonical_name() -> None:
    assert expand_views("crop-y4-x4") == ("clean",)
    assert expand_views("mirror-crop-y4-x4") == ("mirror",)
    crops, mirrored = expand_views("crop"), expand_views("mirror*crop")
    assert len(crops) == len(mirrored) == 81
    assert crops[40] == "clean"
    assert crops[0] == "crop-y0-x0"
    assert crops[1] == "crop-y0-x1"
    assert mirrored[40] == "mirror"
    assert not set(crops) & set(mirrored)


def test_a_union_keeps_the_order_and_drops_doubles() -> None:
    assert expand_views(["mirror", "clean, mirror", "crop-y0-x8"]) == ("mirror", "clean", "crop-y0-x8")
    assert len(expand_views("clean,crop")) == 81
    assert expand_views("clean,crop")[0] == "clean"


@pytest.mark.parametrize("name", ["crop-y9-x0", "crop-y1", "flip", "mirror-crop-y4-x44", "CLEAN", "crop-y-1-x0"])
def test_an_unknown_view_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(UnknownNameError, match=f"unknown view '{name}'.*mirror"):
        expand_views(name)


def test_the_nearest_name_is_suggested() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'mirror'"):
        expand_views("miror")


def test_nothing_to_apply_is_refused(images: torch.Tensor) -> None:
    with pytest.raises(UsageError, match="no view in"):
        expand_views(" , ")
    with pytest.raises(MismatchError, match="no view to apply"):
        apply_views(images, (), torch.zeros(162, dtype=torch.int64))


def test_which_must_fit_images_and_table(images: torch.Tensor) -> None:
    with pytest.raises(MismatchError, match=r"which \[3\]"):
        apply_views(images, ("clean",), torch.zeros(3, dtype=torch.int64))
    for wrong in (-1, 2):
        with pytest.raises(MismatchError, match="the table has 2 views"):
            apply_views(images, ("clean", "mirror"), torch.full((162,), wrong))


def test_the_given_images_stay_as_they_are(images: torch.Tensor) -> None:
    before = images.clone()
    apply_view(images, "mirror-crop-y0-x0")
    assert torch.equal(images, before)
