"""Augmentations without a finite list of views: drawn at every step, so no store can have the teacher's logits.

Both work on whole batches of uint8 images. Every draw comes from the stream (seed, "augment", step), on the CPU.

`mixup` blends every image with a partner from its batch, `u * a + (1 - u) * b`, with u from 0..1 for each image (Zhang
et al. 2018; uniform u as in Beyer et al. 2022, who distil on such inputs).

`randaugment` applies two operations to every image, each drawn from the fourteen of Cubuk et al. 2020 at magnitude 9 of
30 (their setting for ImageNet); signs are drawn. Pixels from outside the image are mid-grey.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from noisyteacher.rng import generator

OPERATIONS_EACH, MAGNITUDE = 2, 9 / 30
FILL = 128.0


def augmented(images: Tensor, augment: str, seed: int, step: int) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """The augmented batch `[B, C, H, W]` uint8 of this step; with mixup also partners and shares, as for `mixed`."""
    draws = generator(seed, "augment", step)
    if augment == "randaugment":
        return randaugment(images, draws), None
    partner = torch.randperm(len(images), generator=draws).to(images.device)
    share = torch.rand(len(images), generator=draws, dtype=torch.float32).to(images.device)
    return mixed(images, partner, share), (partner, share)


def mixed(images: Tensor, partner: Tensor, share: Tensor) -> Tensor:
    """`share * image + (1 - share) * image of partner`, in uint8; partner (rows of the batch) and share `[B]`."""
    pixels, weight = images.float(), share.view(-1, 1, 1, 1)
    return (weight * pixels + (1 - weight) * pixels[partner]).round().to(torch.uint8)


def randaugment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Two random operations on every image of a batch uint8 `[B, C, H, W]`, all images of one operation at once."""
    pixels = images.float()
    for _ in range(OPERATIONS_EACH):
        chosen = torch.randint(len(OPERATIONS), (len(images),), generator=generator)
        sign = torch.randint(2, (len(images),), generator=generator).to(images.device).float() * 2 - 1
        for number, operation in enumerate(OPERATIONS.values()):
            rows = (chosen == number).nonzero().flatten().to(images.device)
            if len(rows):
                # Whole numbers after every operation, as where images are stored between them.
                pixels[rows] = operation(pixels[rows], sign[rows]).round().clamp(0, 255)
    return pixels.to(torch.uint8)


def _geometric(kind: str, most: float) -> Callable[[Tensor, Tensor], Tensor]:
    def operation(images: Tensor, sign: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        amount = sign * most * MAGNITUDE
        matrix = torch.eye(2, 3, device=images.device, dtype=torch.float32).repeat(len(images), 1, 1)
        if kind == "rotate":  # degrees; in units of half the height and width the grid is no square
            angle = amount * math.pi / 180
            matrix[:, 0, 0] = matrix[:, 1, 1] = angle.cos()
            matrix[:, 0, 1], matrix[:, 1, 0] = -angle.sin() * height / width, angle.sin() * width / height
        elif kind == "shear-x":
            matrix[:, 0, 1] = amount * height / width
        elif kind == "shear-y":
            matrix[:, 1, 0] = amount * width / height
        else:  # a share of the side, which is 2 long in the grid
            matrix[:, 0 if kind == "translate-x" else 1, 2] = 2 * amount
        grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
        return F.grid_sample(images - FILL, grid, mode="bilinear", align_corners=False) + FILL

    return operation


def _blended(base_of: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Interpolation between a base and the image, or extrapolation: factor 1 +- 0.9 * magnitude, 1 being the image."""

    def operation(images: Tensor, sign: Tensor) -> Tensor:
        base = base_of(images)
        return base + (1 + sign * 0.9 * MAGNITUDE).view(-1, 1, 1, 1) * (images - base)

    return operation


def _grey(images: Tensor) -> Tensor:
    """Luminance (ITU-R 601) in every channel; of other than three channels their mean."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True).expand_as(images)
    weights = images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True).expand_as(images)


def _smooth(images: Tensor) -> Tensor:
    """A 3x3 blur with 5 in the middle and 1 around, over 13; the border stays."""
    smooth = images.clone()
    if min(images.shape[-2:]) > 2:
        kernel = images.new_tensor([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
        channels = images.shape[1]
        smooth[..., 1:-1, 1:-1] = F.conv2d(images, kernel.expand(channels, 1, 3, 3), groups=channels)
    return smooth


def _autocontrast(images: Tensor, sign: Tensor) -> Tensor:
    """Every channel stretched to 0..255; a channel of one value stays."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    return torch.where(high > low, (images - low) * 255 / (high - low).clamp(min=1), images)


def _equalize(images: Tensor, sign: Tensor) -> Tensor:
    """Every channel's histogram made flat: a value becomes the share of pixels below it, in 0..255."""
    size, channels, height, width = images.shape
    values = images.long().view(size * channels, height * width)
    bins = values + 256 * torch.arange(size * channels, device=images.device).unsqueeze(1)
    counts = torch.bincount(bins.flatten(), minlength=256 * size * channels).view(-1, 256)
    below = counts.cumsum(1) - counts
    last = counts.gather(1, values.amax(1, keepdim=True))
    table = torch.where(last < height * width, below * 255 / (height * width - last).clamp(min=1), values[:, :1])
    equalized: Tensor = table.gather(1, values).view(images.shape).float()
    return equalized


def _posterize(images: Tensor, sign: Tensor) -> Tensor:
    """The lowest bits set to zero: round(4 * magnitude) of them."""
    step: int = 2 ** round(4 * MAGNITUDE)
    return torch.floor(images / step) * step


def _solarize(images: Tensor, sign: Tensor) -> Tensor:
    """Values from 255 * (1 - magnitude) on are inverted."""
    return torch.where(images >= 255 * (1 - MAGNITUDE), 255 - images, images)


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "identity": lambda images, sign: images,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "rotate": _geometric("rotate", 30.0),
    "solarize": _solarize,
    "color": _blended(_grey),
    "posterize": _posterize,
    "contrast": _blended(lambda images: _grey(images).mean((1, 2, 3), keepdim=True).expand_as(images)),
    "brightness": _blended(torch.zeros_like),
    "sharpness": _blended(_smooth),
    "shear-x": _geometric("shear-x", 0.3),
    "shear-y": _geometric("shear-y", 0.3),
    "translate-x": _geometric("translate-x", 0.45),
    "translate-y": _geometric("translate-y", 0.45),
}
"""Name -> function of float images `[n, C, H, W]` in 0..255 and signs `[n]`."""
