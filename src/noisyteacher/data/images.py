"""Images from files, bytes or arrays as uint8 pixels: the same rules wherever an image is decoded.

Only the formats of FORMATS are read, whatever a file is called: Pillow knows others that start programs (EPS). The size
that an image declares is checked before a pixel is decoded. Orientation tags are applied; palettes and CMYK become RGB;
transparency is dropped, which leaves the colours as they are stored; an animation gives its first frame; of 16 bits the
high byte is kept (docs/formats.md).
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from operator import index
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from noisyteacher.errors import DataError, UsageError
from noisyteacher.text import printable, size_bytes, unknown_name

if TYPE_CHECKING:
    from PIL import Image

FITS = ("crop", "squash")
"""How an image is brought to a size: the largest centred window of that shape, scaled; or the whole image, scaled."""
MAX_PIXELS = 2**27
USUAL_SIDE = 224
"""Pixels of the images that most networks of libraries were trained on: the size advised for larger ones."""
TO_ONE_SIZE = "--size {0} (in Python size={0})"
"""What brings images of a folder or file to one size; {0} is the side."""
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "WEBP", "TIFF", "PPM", "AVIF", "JPEG2000")
_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_CHUNK = 64
"""Images per thread that are decoded before the next are read."""


@dataclass(frozen=True)
class Unreadable:
    """Something listed as an image that cannot be read, and why."""

    reason: str


EncodedImage = str | os.PathLike[str] | bytes | NDArray[np.uint8]
"""An image to decode: a file's path, a file's bytes, or pixels `[C, H, W]`."""


@dataclass(frozen=True)
class Part:
    """The images of one role, in order. The role `all` stands for images that are cut into splits when they are loaded.

    names: of each image, a file's path inside the source, or its number. labels: int64 `[N]` or None.
    images: iterates over the N images once; an array uint8 `[N, C, H, W]` where the source has them in memory.
    """

    role: str
    names: Sequence[str]
    labels: Tensor | None
    images: Iterable[EncodedImage | Unreadable]


@dataclass(frozen=True)
class Source:
    """A data set to be loaded or packed.

    class_names: empty where nothing is labelled. note: what a user should know, such as files that were skipped.
    """

    kind: str
    name: str
    parts: tuple[Part, ...]
    class_names: tuple[str, ...]
    note: str = ""


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
        try:
            height, width = map(index, size if isinstance(size, Sequence) else (size, size))
        except (TypeError, ValueError):
            height = width = 0
        if min(height, width) < 1:
            raise UsageError(f"size {size!r}: expected pixels, or (height, width), whole numbers of at least 1")
        if height * width > MAX_PIXELS:
            raise UsageError(f"size {size!r}: {height}x{width} pixels are more than {MAX_PIXELS}: give a smaller one")
        return cls((height, width), grey, fit)


@cache
def readable() -> tuple[tuple[str, ...], frozenset[str]]:
    """The FORMATS that the installed Pillow reads, and the suffixes it registers for them: `.jpg`, `.jfif`, ..."""
    from PIL import Image

    suffixes = Image.registered_extensions()
    formats = tuple(name for name in FORMATS if name in Image.OPEN)
    return formats, frozenset(suffix for suffix, name in suffixes.items() if name in formats)


def looks_like_an_image(path: str | os.PathLike[str]) -> bool:
    """Whether a file starts like an image of a format that is read; nothing is decoded."""
    from PIL import Image

    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=readable()[0]):
            return True
    except Exception:  # Pillow raises whatever a file of another kind leads to
        return False


def decode_all(
    images: Iterable[EncodedImage | Unreadable], resize: Resize, threads: int = 1
) -> Iterator[NDArray[np.uint8] | Unreadable]:
    """The pixels of each image in order, uint8 `[C, H, W]`, or why there are none; few images are read ahead."""

    def decoded(image: EncodedImage | Unreadable) -> NDArray[np.uint8] | Unreadable:
        try:
            return image if isinstance(image, Unreadable) else decode(image, resize)
        except DataError as error:
            return Unreadable(str(error))

    remaining = iter(images)
    with ThreadPoolExecutor(threads) as pool:
        while chunk := list(islice(remaining, 1 if threads == 1 else _CHUNK * threads)):
            with warnings.catch_warnings(action="ignore"):  # in this thread alone: it changes state of the process
                pixels = list(map(decoded, chunk) if threads == 1 else pool.map(decoded, chunk))
            yield from pixels


def pixels_of(image: Image.Image, grey: bool = False) -> NDArray[np.uint8]:
    """A Pillow image of `eight_bits` as uint8 `[C, H, W]`: three channels, or one if `grey`."""
    array = np.asarray(image.convert("L" if grey else "RGB"))
    return array[None] if grey else np.ascontiguousarray(array.transpose(2, 0, 1))


def eight_bits(image: Image.Image) -> Image.Image:
    """The image; of a grey one of 16 bits the high byte, as Pillow keeps of colours (grey it would clip at 255).

    Raises DataError for floating point, for values beyond 16 bits, and for those that hardly reach the high byte.
    """
    from PIL import Image

    if image.mode not in _DEEP_MODES:
        return image
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode == "F" or low < 0 or high >= 1 << 16:
        raise DataError(f"an image of mode {image.mode!r} with values from {low} to {high}: convert it to 8 bits first")
    if 0 < high < 1 << 12:
        raise DataError(
            f"a grey image of 16 bits whose largest value is {high}: scale it to 65535, or to 8 bits, first"
        )
    return Image.fromarray((values >> 8).astype(np.uint8))


def check_shape(image: NDArray[np.uint8], shape: tuple[int, ...], name: str, remedy: str) -> None:
    """Raise DataError naming the image unless it has the shape (C, H, W) of the first."""
    if image.shape != shape:
        sizes = [f"{height}x{width} ({channels} channels)" for channels, height, width in (image.shape, shape)]
        remedy = remedy.format(min(USUAL_SIDE, *image.shape[1:], *shape[1:]))
        raise DataError(
            f"{printable(name)}: {sizes[0]}, but the first image is {sizes[1]}: bring them to one by {remedy}"
        )


def stack_images(
    images: Iterable[NDArray[np.uint8] | Unreadable],
    names: Sequence[str],
    title: str,
    max_bytes: int,
    remedy: str,
    shape: tuple[int, ...] | None = None,
) -> NDArray[np.uint8]:
    """The images, one for each name, as an array uint8 `[N, C, H, W]`; `remedy` says how to bring them to one size.

    shape: (C, H, W) that all must have; by default that of the first.
    Raises DataError naming the image that is unreadable or of another shape, or when all take more than `max_bytes`.
    """
    stacked = np.empty(0, np.uint8)
    for row, image in enumerate(images):
        name = f"{title}: {names[row]}"
        if isinstance(image, Unreadable):
            raise DataError(f"{printable(name)}: {image.reason}")
        if row == 0:
            size = len(names) * image.nbytes
            if size > max_bytes:
                raise DataError(
                    f"{title}: {len(names)} images of {list(image.shape)} take {size_bytes(size)} of memory, more than "
                    f"{size_bytes(max_bytes)}; make them smaller by {remedy.format(USUAL_SIDE)}, or raise "
                    "max_bytes= in Python"
                )
            stacked = np.empty((len(names), *(shape or image.shape)), np.uint8)
        check_shape(image, stacked.shape[1:], name, remedy)
        stacked[row] = image
    if not len(stacked):
        raise DataError(f"{title}: the dataset is empty; it needs at least one image")
    return stacked


def decode(image: EncodedImage, resize: Resize = Resize()) -> NDArray[np.uint8]:
    """The pixels of an image, uint8 `[C, H, W]`. Raises DataError with the reason, which does not name the file."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    if isinstance(image, np.ndarray):
        return _resized(image, resize)
    try:
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image, formats=readable()[0]) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise DataError(f"{opened.width}x{opened.height} pixels are more than {MAX_PIXELS}")
            opened.load()
            with contextlib.suppress(Exception):  # a damaged tag of a good image turns nothing
                ImageOps.exif_transpose(opened, in_place=True)
            return pixels_of(_scaled(eight_bits(opened), resize), resize.grey)
    except DataError:
        raise
    except MemoryError as error:
        raise DataError("there is not enough memory for its pixels: give a smaller size") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"it declares more than {MAX_PIXELS} pixels") from error
    except UnidentifiedImageError as error:  # Pillow's message would name the file, or an object's address
        raise DataError("cannot be decoded (not an image of a known format)") from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and others
        raise DataError(f"cannot be decoded ({error}): the image is truncated or damaged") from error


def _resized(pixels: NDArray[np.uint8], resize: Resize) -> NDArray[np.uint8]:
    """Pixels `[C, H, W]` scaled as an image of a file is; C stays (1 to 4), or 3 becomes 1 if `resize.grey`."""
    from PIL import Image

    if resize.grey and len(pixels) not in (1, 3):
        raise DataError(f"{len(pixels)} channels cannot become one grey channel: expected 1 or 3")
    if resize.grey and len(pixels) == 3:
        pixels = pixels_of(Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))), grey=True)
    if resize.shape is None:
        return pixels
    by_channel = replace(resize, grey=True)
    return np.stack([np.asarray(_scaled(Image.fromarray(channel), by_channel)) for channel in pixels])


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
    return image.convert("L" if resize.grey else "RGB").resize(resize.shape[::-1], Image.Resampling.BILINEAR, box=box)
