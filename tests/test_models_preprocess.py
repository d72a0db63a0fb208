"""Preprocessing against plain numpy, loops and hand numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from helpers import part
from noisyteacher.errors import MismatchError, UnknownNameError, UsageError
from noisyteacher.models import Standardize, build_preprocess
from noisyteacher.models.preprocess import PREPROCESS, LocalContrast, Scale, preprocess_name


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def contrast_by_loops(image: np.ndarray, window: int = 9) -> np.ndarray:
    """Jarrett et al. 2009 for one image [C, H, W] in [0, 1], pixel by pixel, from the published formula."""
    channels, height, width = image.shape
    half, deviation = window // 2, window / 4

    def weighted(values: np.ndarray, y: int, x: int) -> float:
        total = weights = 0.0
        for p in range(-half, half + 1):
            for q in range(-half, half + 1):
                if 0 <= y + p < height and 0 <= x + q < width:
                    w = math.exp(-(p * p + q * q) / (2 * deviation * deviation))
                    for c in range(channels):
                        total += w * values[c, y + p, x + q]
                        weights += w
        return total / weights

    v = np.empty_like(image)
    for y in range(height):
        for x in range(width):
            v[:, y, x] = image[:, y, x] - weighted(image, y, x)
    sigma = np.array([[math.sqrt(weighted(v * v, y, x)) for x in range(width)] for y in range(height)])
    contrast: np.ndarray[Any, Any] = v / np.maximum(sigma, sigma.mean())
    return contrast


@pytest.mark.parametrize("shape", [(1, 7, 11), (3, 12, 10)])
def test_local_contrast_is_the_published_formula(shape: tuple[int, int, int]) -> None:
    batch = images(2, *shape)
    batch[1] //= 8  # a dark image: the divisor is its own mean, not the batch's
    assert repr(LocalContrast()) == "LocalContrast(window=9, deviation=2.25, eps=0.0001)"  # in stores' fingerprints
    results = LocalContrast()(batch).numpy()
    for image, ours in zip(batch, results, strict=True):
        np.testing.assert_allclose(ours, contrast_by_loops(image.numpy().astype(np.float64) / 255), atol=2e-5)


def test_local_contrast_of_a_flat_image_is_zero_up_to_the_border() -> None:
    assert LocalContrast()(torch.full((1, 3, 16, 16), 200, dtype=torch.uint8)).abs().max() < 0.01


def test_local_contrast_does_not_see_brightness_or_contrast() -> None:
    dark = images(1, 3, 16, 16) // 4
    bright = dark * 3 + 60
    torch.testing.assert_close(LocalContrast()(bright), LocalContrast()(dark), atol=1e-4, rtol=1e-3)


def test_scale_maps_0_to_0_and_255_to_1() -> None:
    out = Scale()(torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3))
    assert out.dtype == torch.float32
    assert out.flatten().tolist() == [0.0, pytest.approx(0.2), 1.0]


def test_standardize_by_hand() -> None:
    module = Standardize([0.2, 0.5], [0.1, 0.25])
    out = module(torch.tensor([51, 255], dtype=torch.uint8).view(1, 2, 1, 1))
    assert out.flatten().tolist() == [pytest.approx(0.0, abs=1e-6), pytest.approx(2.0)]


def test_statistics_come_from_the_training_images_in_any_chunking() -> None:
    train = images(9000, 2, 3, 4)
    as_numpy = train.numpy().astype(np.float64) / 255
    for chunks in ([train], [train[:100], train[100:8000], train[8000:]]):
        module = build_preprocess("standardize", chunks, (2, 3, 4))
        np.testing.assert_allclose(part(module, "").mean.numpy(), as_numpy.mean((0, 2, 3)), rtol=1e-6)
        np.testing.assert_allclose(part(module, "").std.numpy(), as_numpy.std((0, 2, 3)), rtol=1e-6)
        module = build_preprocess("pixel-mean", chunks, (2, 3, 4))
        np.testing.assert_allclose(part(module, "").mean.numpy(), as_numpy.mean(0) * 255, rtol=1e-6)
        np.testing.assert_allclose(module(train).numpy().mean(0), 0, atol=1e-6)


def test_a_channel_that_never_varies_becomes_zero_not_infinite() -> None:
    train = images(50, 2, 4, 4)
    train[:, 1] = 17
    out = build_preprocess("standardize", [train], (2, 4, 4))(train)
    assert out[:, 1].abs().max() < 1e-6
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("name", sorted(PREPROCESS))
def test_every_preprocessing_takes_uint8_images_only(name: str) -> None:
    train = images(8, 3, 10, 10)
    module = build_preprocess(name, [train], (3, 10, 10))
    out = module(train)
    assert out.dtype == torch.float32
    assert out.shape == train.shape
    assert preprocess_name(module) == name
    assert not list(module.parameters())
    for wrong in (train.float() / 255, train[0], train.long()):
        with pytest.raises(MismatchError, match="uint8"):
            module(wrong)


@pytest.mark.parametrize("name", sorted(PREPROCESS))
def test_every_preprocessing_can_be_exported_with_any_batch(name: str) -> None:
    train = images(8, 3, 10, 10)
    module = build_preprocess(name, [train], (3, 10, 10))
    program = torch.export.export(module, (train[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.testing.assert_close(program.module()(train), module(train))


def test_missing_and_wrong_statistics_are_refused() -> None:
    with pytest.raises(UsageError, match="needs training images"):
        build_preprocess("pixel-mean", None, (1, 4, 4))
    with pytest.raises(UnknownNameError, match="did you mean 'pixel-mean'"):
        build_preprocess("pixelmean", None, (1, 4, 4))
    with pytest.raises(UsageError, match="above 0"):
        Standardize([0.5], [0.0])
    with pytest.raises(UsageError, match=r"\[C\]"):
        Standardize([0.5], [0.1, 0.2])


def test_a_module_that_no_name_rebuilds_says_so() -> None:
    assert preprocess_name(torch.nn.Identity()) == "module:torch.nn.modules.linear.Identity"
