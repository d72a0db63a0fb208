"""Preprocessing as modules in front of the network: uint8 `[B, C, H, W]` in, float32 `[B, C, H, W]` out.

It is saved, fingerprinted and exported with the network, so a model is deployed with the normalisation it was trained
with. Everything but uint8 images raises MismatchError: a float image may be in any range.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from noisyteacher.errors import MismatchError, UsageError
from noisyteacher.text import unknown_name

Shape = tuple[int, int, int]
MODES = ("nearest", "bilinear", "bicubic")
"""Interpolation modes of `Resized`."""


def unit_range(images: Tensor) -> Tensor:
    """Float32 in [0, 1] from uint8 images `[B, C, H, W]`: x / 255."""
    if images.dtype != torch.uint8 or images.dim() != 4:
        raise MismatchError(
            f"images of {images.dtype} {tuple(images.shape)}: expected raw pixels, uint8 [B, C, H, W]; preprocessing "
            "is part of the model"
        )
    return images.to(torch.float32) / 255.0


class Untouched(nn.Module):
    """uint8 images as they are, for a network that does its own preprocessing."""

    def forward(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8:
            unit_range(images)
        return images


class Scale(nn.Module):
    """x / 255: the MNIST networks of the paper see their pixels like this ("no preprocessing")."""

    def forward(self, images: Tensor) -> Tensor:
        return unit_range(images)


class Standardize(nn.Module):
    """(x / 255 - mean) / std per channel; mean and std are `[C]`, in units of the [0, 1] range."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> None:
        """Raises UsageError when the two differ in length or a deviation is not above zero."""
        super().__init__()
        mean, std = torch.as_tensor(mean, dtype=torch.float32), torch.as_tensor(std, dtype=torch.float32)
        if mean.dim() != 1 or mean.shape != std.shape:
            raise UsageError(f"mean of shape {tuple(mean.shape)}, std of {tuple(std.shape)}: expected [C] for both")
        if not std.is_meta and not bool((std > 0).all()):
            raise UsageError(f"std {std.tolist()}: expected standard deviations above 0")
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def fit(self, images: Iterable[Tensor]) -> None:
        """Set mean and std from training images in chunks; a channel that never varies gets std 1."""
        pixels, (total, squares) = 0, torch.zeros((2, len(self.mean)), dtype=torch.float64)
        for chunk in images:
            values = chunk.to("cpu", torch.float64) / 255.0
            pixels += values[:, 0].numel()
            total += values.sum((0, 2, 3))
            squares += values.square().sum((0, 2, 3))
        mean = total / pixels
        std = (squares / pixels - mean.square()).clamp(min=0).sqrt()
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > 1e-6, std, torch.ones_like(std)))

    def forward(self, images: Tensor) -> Tensor:
        return (unit_range(images) - self.mean.view(1, -1, 1, 1)) / self.std.view(1, -1, 1, 1)

    def extra_repr(self) -> str:
        return f"channels={len(self.mean)}"


class PixelMean(nn.Module):
    """x / 255 - mean / 255 with a mean image `[C, H, W]` in 0..255: the paper's CIFAR-10 preprocessing (section 3)."""

    mean: Tensor

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.to(torch.float32))

    def fit(self, images: Iterable[Tensor]) -> None:
        """Set the mean image from training images in chunks, summed in float64."""
        count, total = 0, torch.zeros(self.mean.shape, dtype=torch.float64)
        for chunk in images:
            count += len(chunk)
            total += chunk.to("cpu", torch.float64).sum(0)
        self.mean.copy_(total / count)

    def forward(self, images: Tensor) -> Tensor:
        return unit_range(images) - self.mean / 255.0

    def extra_repr(self) -> str:
        return f"shape={tuple(self.mean.shape)}"


class LocalContrast(nn.Module):
    """Local contrast normalisation of Jarrett et al. 2009 (section 3.1): subtractive, then divisive.

    v = x - sum_ipq w_pq x_i,j+p,k+q; y = v / max(sigma, mean(sigma)), sigma^2 = sum_ipq w_pq v^2_i,j+p,k+q. The
    Gaussian window w sums to 1 over its pixels and all channels i together. That paper does not state two details:
    here the Gaussian's deviation is window / 4, and at the border w is rescaled to its part inside the image.
    """

    kernel: Tensor
    window, deviation, eps = 9, 9 / 4, 1e-4
    """Pixels of the window and of its Gaussian's deviation; what floors the divisor in flat images."""

    def __init__(self) -> None:
        super().__init__()
        offsets = torch.arange(self.window, dtype=torch.float64) - self.window // 2
        gaussian = torch.exp(-0.5 * (offsets / self.deviation).square())
        self.register_buffer("kernel", (gaussian / gaussian.sum()).to(torch.float32))

    def forward(self, images: Tensor) -> Tensor:
        x = unit_range(images)
        inside = self._blur(torch.ones_like(x[:1, :1]))
        v = x - self._blur(x.mean(1, keepdim=True)) / inside
        sigma = torch.sqrt(self._blur(v.square().mean(1, keepdim=True)) / inside)
        return v / torch.maximum(sigma, sigma.mean((2, 3), keepdim=True)).clamp(min=self.eps)

    def _blur(self, plane: Tensor) -> Tensor:
        rows = F.conv2d(plane, self.kernel.view(1, 1, -1, 1), padding=(self.window // 2, 0))
        return F.conv2d(rows, self.kernel.view(1, 1, 1, -1), padding=(0, self.window // 2))

    def extra_repr(self) -> str:
        return f"window={self.window}, deviation={self.deviation}, eps={self.eps}"


class Resized(nn.Module):
    """Another preprocessing, followed by scaling the whole image to the size (H, W): float32 `[B, C, *size]`."""

    def __init__(self, inner: nn.Module, size: Sequence[int], mode: str = "bicubic") -> None:
        """`mode` is one of MODES. Raises UsageError for another, and for sides outside 1..4096 pixels."""
        super().__init__()
        if mode not in MODES or len(size) != 2 or not all(1 <= side <= 4096 for side in size):
            raise UsageError(f"resizing to {tuple(size)} by {mode!r}: expected two sides of 1..4096 and one of {MODES}")
        self.inner, self.size, self.mode = inner, (int(size[0]), int(size[1])), mode

    def forward(self, images: Tensor) -> Tensor:
        x: Tensor = self.inner(images)
        if self.mode == "nearest":
            return F.interpolate(x, self.size, mode=self.mode)
        shrinks = x.shape[2] > self.size[0] or x.shape[3] > self.size[1]
        return F.interpolate(x, self.size, mode=self.mode, align_corners=False, antialias=shrinks)

    def extra_repr(self) -> str:
        return f"size={self.size}, mode={self.mode}"


PREPROCESS: dict[str, Callable[[Shape], nn.Module]] = {
    "scale": lambda shape: Scale(),
    "standardize": lambda shape: Standardize(torch.zeros(shape[0]), torch.ones(shape[0])),
    "pixel-mean": lambda shape: PixelMean(torch.zeros(shape)),
    "local-contrast": lambda shape: LocalContrast(),
}
"""Name -> builder of a module for images of a shape; statistics start with mean 0 and deviation 1."""
_NAMES = {
    Untouched: "none", Scale: "scale", Standardize: "standardize", PixelMean: "pixel-mean",
    LocalContrast: "local-contrast",
}  # fmt: skip
_RESIZED = re.compile(rf"({'|'.join(PREPROCESS)})@([0-9]{{1,4}})x([0-9]{{1,4}})-({'|'.join(MODES)})")


def blank_preprocess(name: str, input_shape: Shape) -> nn.Module:
    """The named module with mean 0 and deviation 1, for weights to be loaded into. Raises UnknownNameError.

    `NAME@HxW-MODE`, as in `standardize@224x224-bicubic`, is NAME with its images resized.
    """
    if name == "none":
        return Untouched()
    if resized := _RESIZED.fullmatch(name):
        return Resized(PREPROCESS[resized[1]](input_shape), (int(resized[2]), int(resized[3])), resized[4])
    if name not in PREPROCESS:
        raise unknown_name("preprocessing", name, PREPROCESS)
    return PREPROCESS[name](input_shape)


def build_preprocess(name: str, images: Iterable[Tensor] | None, input_shape: Shape) -> nn.Module:
    """The named module with the statistics of the training images; None for modules without statistics.

    images: uint8 `[n, C, H, W]` in chunks. Raises UnknownNameError; UsageError when images are missing.
    """
    module = blank_preprocess(name, input_shape)
    statistics = module.inner if isinstance(module, Resized) else module
    if isinstance(statistics, (Standardize, PixelMean)):
        if images is None:
            raise UsageError(f"preprocessing {name!r} needs training images: pass data=, or 'scale', 'local-contrast'")
        statistics.fit(images)
    return module


def is_preprocess(name: str) -> bool:
    """Whether `blank_preprocess` can build it. `is_preprocess("standardize@64x64-bilinear")` is True."""
    try:
        return blank_preprocess(name, (1, 1, 1)) is not None
    except UsageError:
        return False


def preprocess_name(module: nn.Module) -> str:
    """The name that rebuilds this module, or `module:pkg.Class` for one that only its user can build again."""
    kind = type(module)
    if isinstance(module, Resized):
        name = f"{preprocess_name(module.inner)}@{module.size[0]}x{module.size[1]}-{module.mode}"
        if _RESIZED.fullmatch(name):
            return name
    return _NAMES.get(kind, f"module:{kind.__module__}.{kind.__qualname__}")
