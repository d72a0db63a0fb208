"""From an image file to uint8 pixels: the same rules wherever an image is decoded.

Only the formats of FORMATS are read, whatever a file is called: Pillow knows others that start programs (EPS). The size
that an image declares is checked before a pixel is decoded. Orientation tags are applied; palettes and CMYK become RGB;
transparency is dropped, which leaves the colours as they are stored; an animation gives its first frame; grey images of
more than 8 bits are refused, colours of 16 bits keep the high byte of each channel (docs/formats.md).
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from noisyteacher.errors import DataError, UsageError
from noisyteacher.text import unknown_name

if TYPE_CHECKING:
    from PIL import Image

FITS = ("crop", "squash")
"""How an image is brought to a size: the largest centred window of that shape, scaled; or the whole image, scaled."""
MAX_PIXELS = 2**27
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "WEBP", "TIFF", "PPM", "AVIF", "JPEG2000")
_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
"""Value of the EXIF orientation tag -> Pillow's name of the transposition that undoes it."""
_CHUNK = 64
"""Images per thread that are decoded before the next are read."""


@dataclass(frozen=True)
class Unreadable:
    """Something listed as an image that cannot be read, and why."""

    reason: str


EncodedImage = str | bytes | NDArray[np.uint8] | Unreadable
"""An image to decode: a file's path, a file's bytes, pixels `[C, H, W]`, or the reason why there is none."""


@dataclass(frozen=True)
class Resize:
    """How images of any kind become pixels of one kind.

    shape: (height, width) that every image is scaled to, bilinear with antialiasing; None leaves it as it is.
    grey: one channel instead of three. fit: one of FITS.
    """

    shape: tuple[int, int] | None = None
    grey: bool = False
    fit: str = "squash"

    @classmethod
    def of(cls, size: int | tuple[int, int] | None, grey: bool = False, fit: str = "squash") -> Resize:
        """The options for a `size` argument: a side in pixels, (height, width) or None. Raises UsageError."""
        if fit not in FITS:
            raise unknown_name("way to bring images to a size", str(fit), FITS)
        if size is None:
            return cls(None, grey, fit)
        shape = (size, size) if isinstance(size, int) else tuple(size)
        if len(shape) != 2 or min(shape) < 1:
            raise UsageError(f"size {size!r}: expected pixels, or (height, width), each at least 1")
        return cls(shape, grey, fit)


@cache
def _readable_formats() -> tuple[str, ...]:
    """The FORMATS that the installed Pillow reads."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@cache
def readable_suffixes() -> frozenset[str]:
    """The suffixes of image files that are read, as the installed Pillow registers them: `.jpg`, `.jfif`, ..."""
    from PIL import Image

    formats = _readable_formats()
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats)


def looks_like_an_image(path: str | os.PathLike[str]) -> bool:
    """Whether a file starts like an image of a format that is read; nothing is decoded."""
    from PIL import Image

    try:
        with _pillow_warnings_off(), Image.open(path, formats=_readable_formats()):
            return True
    except Exception:  # Pillow raises whatever a file of another kind leads to
        return False


def decode_all(
    images: Iterable[EncodedImage], resize: Resize, threads: int = 1
) -> Iterator[NDArray[np.uint8] | Unreadable]:
    """The pixels of each image in order, uint8 `[C, H, W]`, or why there are none.

    A bounded number of images is read ahead, whatever the number of threads (Pillow decodes in parallel).
    """
    remaining = iter(images)
    with ThreadPoolExecutor(threads) as pool:
        while chunk := list(islice(remaining, 1 if threads == 1 else _CHUNK * threads)):
            with _pillow_warnings_off():  # in this thread alone: it changes state of the process
                tasks = [(image, resize) for image in chunk]
                decoded = list(map(_decoded, tasks) if threads == 1 else pool.map(_decoded, tasks))
            yield from decoded


def decode(source: str | os.PathLike[str] | bytes, resize: Resize = Resize()) -> NDArray[np.uint8]:
    """The pixels of an image file, or of its bytes: uint8 `[C, H, W]`, three channels, or one if `resize.grey`.

    Raises DataError with the reason, which does not name the file.
    """
    with _pillow_warnings_off():
        return _decode(source, resize)


def pixels_of(image: Image.Image, grey: bool = False) -> NDArray[np.uint8]:
    """A Pillow image as uint8 `[C, H, W]`: three channels, or one if `grey`. Raises DataError beyond 8 bits."""
    if image.mode in _DEEP_MODES:  # Pillow would clip these at 255 silently
        raise DataError(f"an image of mode {image.mode!r} has more than 8 bits a channel; convert it to 8 bits first")
    array = np.asarray(image.convert("L" if grey else "RGB"))
    return array[None] if grey else np.ascontiguousarray(array.transpose(2, 0, 1))


def _decoded(task: tuple[EncodedImage, Resize]) -> NDArray[np.uint8] | Unreadable:
    image, resize = task
    if isinstance(image, Unreadable):
        return image
    try:
        return _resized(image, resize) if isinstance(image, np.ndarray) else _decode(image, resize)
    except DataError as error:
        return Unreadable(str(error))


def _decode(source: str | os.PathLike[str] | bytes, resize: Resize) -> NDArray[np.uint8]:
    from PIL import Image, UnidentifiedImageError

    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        with Image.open(file, formats=_readable_formats()) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{image.width}x{image.height} pixels are more than {MAX_PIXELS}")
            return pixels_of(_scaled(_upright(image), resize), resize.grey)
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"it declares more than {MAX_PIXELS} pixels") from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and others
        # Pillow's own message for an unknown format would name the file, or an object's address.
        reason = "not an image of a known format" if isinstance(error, UnidentifiedImageError) else error
        raise DataError(
            f"cannot be decoded ({reason}): the image is truncated, damaged or of another kind; remove it"
        ) from error


def _resized(pixels: NDArray[np.uint8], resize: Resize) -> NDArray[np.uint8]:
    """Pixels `[C, H, W]` scaled as `decode` scales an image; C stays (1 to 4), or 3 becomes 1 if `resize.grey`."""
    from PIL import Image

    if resize.grey and len(pixels) not in (1, 3):
        raise DataError(f"{len(pixels)} channels cannot become one grey channel: expected 1 or 3")
    if resize.grey and len(pixels) == 3:
        pixels = pixels_of(Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))), grey=True)
    if resize.shape is None:
        return pixels
    one_channel = Resize(resize.shape, True, resize.fit)
    return np.stack([np.asarray(_scaled(Image.fromarray(channel), one_channel)) for channel in pixels])


def _scaled(image: Image.Image, resize: Resize) -> Image.Image:
    from PIL import Image

    width, height = image.size
    if resize.shape is None or (height, width) == resize.shape:
        return image
    box = (0.0, 0.0, float(width), float(height))
    if resize.fit == "crop":
        scale = min(height / resize.shape[0], width / resize.shape[1])
        crop_height, crop_width = resize.shape[0] * scale, resize.shape[1] * scale
        left, top = (width - crop_width) / 2, (height - crop_height) / 2
        box = max(0.0, left), max(0.0, top), min(float(width), left + crop_width), min(float(height), top + crop_height)
    # Palettes and bit masks cannot be interpolated: convert them to colours first.
    coloured = image if image.mode in _DEEP_MODES else image.convert("L" if resize.grey else "RGB")
    return coloured.resize(resize.shape[::-1], Image.Resampling.BILINEAR, box=box)


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its orientation tag says; a tag that cannot be read turns nothing."""
    from PIL import ExifTags, Image

    image.load()
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a damaged tag of a good image
        turn = None
    return image if turn is None else image.transpose(Image.Transpose[turn])


@contextmanager
def _pillow_warnings_off() -> Iterator[None]:
    """Silence Pillow's warnings on damaged metadata and large images: what matters becomes an error here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
