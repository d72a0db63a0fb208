"""From an image file to uint8 pixels: one set of rules for every place that decodes, without torch.

Only the formats of _FORMATS are read, whatever a file is called: Pillow knows others that start programs (EPS). The
size an image announces is looked at before a pixel is decoded. Orientation tags are applied; palettes and CMYK become
RGB; transparency is dropped, which leaves the colours as they are stored; an animation gives its first frame; grey
images of more than 8 bits are refused, colours of 16 bits keep the high byte of each channel (docs/formats.md).
"""

from __future__ import annotations

import io
import os
import warnings
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from noisyteacher.errors import DataError, UsageError
from noisyteacher.text import unknown_name

if TYPE_CHECKING:
    from PIL import Image

FITS = ("crop", "squash")
"""How an image is brought to a size: the largest centred window of its shape, scaled; or all of it, scaled."""
MAX_PIXELS = 2**27
_FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "WEBP", "TIFF", "PPM", "AVIF", "JPEG2000")
_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_ORIENTATION = 0x0112
_TURNS = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270",
          7: "TRANSVERSE", 8: "ROTATE_90"}  # fmt: skip


@cache
def _readable_formats() -> tuple[str, ...]:
    """Those of _FORMATS that the installed Pillow has."""
    from PIL import Image

    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@cache
def readable_suffixes() -> frozenset[str]:
    """The suffixes of image files that are read, as the installed Pillow registers them: `.jpg`, `.jfif`, ..."""
    from PIL import Image

    formats = _readable_formats()
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats)


def looks_like_an_image(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as an image of a format that is read; nothing is decoded."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=_readable_formats()):
                return True
    except Exception:  # whatever a file without a suffix is
        return False


def size_of(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """(height, width) of a `size` argument: a side, a pair, or None. Raises UsageError."""
    if size is None:
        return None
    shape = (size, size) if isinstance(size, int) else tuple(size)
    if len(shape) != 2 or min(shape) < 1:
        raise UsageError(f"size {size!r}: expected pixels, or (height, width), each at least 1")
    return shape


def decode(
    source: str | os.PathLike[str] | bytes,
    shape: tuple[int, int] | None = None,
    grey: bool = False,
    fit: str = "squash",
) -> NDArray[np.uint8]:
    """The pixels of an image file, or of its bytes: uint8 `[C, H, W]`, three channels, or one when `grey`.

    `shape` (height, width) scales it, bilinear with antialiasing, as `fit` says. Raises DataError with the reason,
    which does not name the file.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            place = io.BytesIO(source) if isinstance(source, bytes) else source
            with Image.open(place, formats=_readable_formats()) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise DataError(f"{image.width}x{image.height} pixels are more than {MAX_PIXELS}")
                turned = _upright(image)
                return pixels_of(turned if shape is None else _scaled(turned, shape, grey, fit), grey)
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"it announces more than {MAX_PIXELS} pixels") from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and others
        raise DataError(
            f"cannot be decoded ({_reason(error)}): the image is truncated, damaged or of another kind; remove it"
        ) from error


def pixels_of(image: Image.Image, grey: bool = False) -> NDArray[np.uint8]:
    """A Pillow image as uint8 `[C, H, W]`: three channels, or one when `grey`. Raises DataError beyond 8 bits."""
    if image.mode in _DEEP_MODES:
        # Pillow would clip these at 255 without a word.
        raise DataError(f"an image of mode {image.mode!r} has more than 8 bits a channel; convert it to 8 bits first")
    array = np.asarray(image.convert("L" if grey else "RGB"))
    return array[None] if grey else np.ascontiguousarray(array.transpose(2, 0, 1))


def resized(
    pixels: NDArray[np.uint8], shape: tuple[int, int] | None, grey: bool, fit: str = "squash"
) -> NDArray[np.uint8]:
    """Pixels `[C, H, W]` scaled as `decode` scales an image; C stays (1 to 4), or becomes 1 of 3 when `grey`."""
    from PIL import Image

    if grey and len(pixels) not in (1, 3):
        raise DataError(f"{len(pixels)} channels cannot become one grey channel: expected 1 or 3")
    if grey and len(pixels) == 3:
        pixels = pixels_of(Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))), grey)
    if shape is None:
        return pixels
    return np.stack([np.asarray(_scaled(Image.fromarray(channel), shape, True, fit)) for channel in pixels])


@dataclass(frozen=True)
class Unreadable:
    """Something listed as an image that is none, and why."""

    reason: str


Item = str | bytes | NDArray[np.uint8] | Unreadable
"""An image: a file's path, a file's bytes, pixels `[C, H, W]`, or the reason why there is none."""


@dataclass(frozen=True)
class Way:
    """How images become rows of one shape: the arguments of `decode`."""

    shape: tuple[int, int] | None
    grey: bool
    fit: str

    def row(self, item: Item) -> NDArray[np.uint8] | str:
        """The pixels `[C, H, W]`, or why there are none."""
        if isinstance(item, Unreadable):
            return item.reason
        try:
            if isinstance(item, np.ndarray):
                return resized(item, self.shape, self.grey, self.fit)
            return decode(item, self.shape, self.grey, self.fit)
        except DataError as error:
            return str(error)


def rows_of(way: Way, items: list[Item]) -> list[NDArray[np.uint8] | str]:
    """Each image's row; a function of its own, so that it can be called in another process."""
    return [way.row(item) for item in items]


def check_fit(fit: str) -> None:
    """Raises UnknownNameError for a `fit` that is none of FITS."""
    if fit not in FITS:
        raise unknown_name("way to bring images to a size", str(fit), FITS)


def _scaled(image: Image.Image, shape: tuple[int, int], grey: bool, fit: str) -> Image.Image:
    from PIL import Image

    width, height = image.size
    if (height, width) == shape:
        return image
    box = (0.0, 0.0, float(width), float(height))
    if fit == "crop":
        scale = min(height / shape[0], width / shape[1])
        inner, across = shape[0] * scale, shape[1] * scale
        left, top = (width - across) / 2, (height - inner) / 2
        box = (max(0.0, left), max(0.0, top), min(float(width), left + across), min(float(height), top + inner))
    # Palettes and bit masks have nothing to interpolate: colours first.
    coloured = image if image.mode in _DEEP_MODES else image.convert("L" if grey else "RGB")
    return coloured.resize(shape[::-1], Image.Resampling.BILINEAR, box=box)


def _upright(image: Image.Image) -> Image.Image:
    """The image as its orientation tag wants it seen; a tag that cannot be read turns nothing."""
    from PIL import Image

    image.load()
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a damaged tag of a good image
        turn = None
    return image if turn is None else image.transpose(Image.Transpose[turn])


def _reason(error: Exception) -> Any:
    """What Pillow says, without the place it names: a path is told by the caller, an object's address by nobody."""
    from PIL import UnidentifiedImageError

    return "no image that is known" if isinstance(error, UnidentifiedImageError) else error
