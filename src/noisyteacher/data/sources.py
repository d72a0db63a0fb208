"""What data is read from: sources of images and labels by role, and the one way from a source to splits in memory.

`npz_source`, `object_source`, `folders.folder_source` and those of `hf` describe what there is as a `Source`;
`load_source` reads it into memory, `packed.pack_data` into a packed folder.
"""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisyteacher.data.holdout import partition
from noisyteacher.data.images import EncodedImage, Resize, Unreadable, decode_all, pixels_of
from noisyteacher.data.split import ROLES, Split, Splits
from noisyteacher.errors import DataError, UsageError
from noisyteacher.text import nearest, printable, size_bytes

MAX_BYTES = 4 * 2**30
MAX_CLASSES = 100_000
NPZ_ARRAYS = ("x", "y", "x_train", "y_train", "x_val", "y_val", "x_test", "y_test", "classes")
_DEFLATE_RATIO = 1032
"""No deflate stream grows by more than this."""


@dataclass(frozen=True)
class Part:
    """The images of one role, in order. The role `all` stands for images that are cut into splits when they are loaded.

    names: what each image is called: a file's path inside the source, or its number.
    labels: class numbers int64 `[N]`; None where there are none.
    images: called without arguments, iterates over the N images.
    pixels: all images at once, uint8 `[N, C, H, W]`, where the source has them in memory.
    """

    role: str
    names: Sequence[str]
    labels: NDArray[np.int64] | None
    images: Callable[[], Iterable[EncodedImage]]
    pixels: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Source:
    """A data set to be loaded or packed.

    kind: `folder`, `npz`, `objects`, `datasets` or `parquet`. class_names: empty where nothing is labelled. note: what
    a user of the data should know: files that were skipped, parts without labels.
    """

    kind: str
    name: str
    parts: tuple[Part, ...]
    class_names: tuple[str, ...]
    note: str = ""


# --- into memory ----------------------------------------------------------------------------------------------------


def load_source(
    source: Source, class_names: tuple[str, ...], resize: Resize, *, seed: int = 0, max_bytes: int = MAX_BYTES
) -> Splits:
    """The source's splits in memory. Raises DataError naming the image that cannot be read or differs in shape."""
    content: dict[str, tuple[Tensor, Tensor | None]] = {}
    shape: tuple[int, ...] | None = None
    for part in source.parts:
        if part.pixels is not None:
            images = torch.from_numpy(part.pixels)
        else:
            decoded = decode_all(part.images(), resize)
            remedy = "--set data.size=32 (in Python size=32)"
            images = stack_images(decoded, part.names, f"{source.name} ({part.role})", shape, max_bytes, remedy)
            shape = tuple(images.shape[1:])
        max_bytes -= images.nbytes
        content[part.role] = images, None if part.labels is None else torch.from_numpy(part.labels)
    return make_splits(source.name, content, class_names, seed=seed, note=source.note)


def make_splits(
    name: str,
    content: Mapping[str, tuple[Tensor, Tensor | None]],
    class_names: tuple[str, ...],
    *,
    seed: int = 0,
    note: str = "",
) -> Splits:
    """The Splits of images `[N, C, H, W]` and labels `[N]` (or None) by role.

    `all` alone is cut 80/10/10; without `val` a tenth of `train` is held out. Both draws are stratified and the same
    for the same seed. Images without labels are drawn as one class.
    """
    splits = {}
    for role, (images, labels) in content.items():
        role = "train" if role == "all" else role
        splits[role] = Split(images, labels, torch.arange(len(images)), role, name, class_names)
    full = splits["train"]
    tenth = max(1, round(len(full) / 10))
    strata = torch.zeros(len(full), dtype=torch.int64) if full.labels is None else full.labels
    # The purpose is not the name of the data: renaming a file or moving a folder must not change its hold-out.
    if "all" in content:
        test, val, train = partition(strata, [tenth, tenth], seed, "tenths")
        splits = {"train": full.subset(train), "val": full.subset(val, "val"), "test": full.subset(test, "test")}
    elif "val" not in splits:
        val, train = partition(strata, [tenth], seed, "tenths")
        splits |= {"train": full.subset(train), "val": full.subset(val, "val")}
    return Splits(name, splits["train"], splits["val"], splits.get("test"), note=note)


def stack_images(
    images: Iterable[NDArray[np.uint8] | Unreadable],
    names: Sequence[str],
    title: str,
    shape: tuple[int, ...] | None,
    max_bytes: int,
    remedy: str,
) -> Tensor:
    """The images, one for each name, as one tensor uint8 `[N, C, H, W]`.

    shape: (C, H, W) that all must have; None leaves it to the first image. remedy: how images are brought to one size.
    Raises DataError naming the image that is unreadable or of another shape, or when all take more than `max_bytes`.
    """
    stacked: NDArray[np.uint8] | None = None
    for row, image in enumerate(images):
        if isinstance(image, Unreadable):
            raise DataError(f"{printable(names[row])}: {image.reason}")
        if stacked is None:
            needed = len(names) * image.nbytes
            if needed > max_bytes:
                raise DataError(
                    f"{title}: {len(names)} images of {list(image.shape)} take {size_bytes(needed)} in memory, more "
                    f"than the {size_bytes(max_bytes)} that are allowed; make them smaller by {remedy}, or allow more "
                    "by max_bytes= in Python"
                )
            shape = shape or image.shape
            stacked = np.empty((len(names), *shape), np.uint8)
        assert shape is not None
        check_shape(image, shape, names[row], remedy)
        stacked[row] = image
    if stacked is None:
        raise DataError(f"{title}: the dataset is empty; it needs at least one image")
    return torch.from_numpy(stacked)


def check_shape(image: NDArray[np.uint8], shape: tuple[int, ...], name: str, remedy: str) -> None:
    """Raise DataError naming the image unless it has the shape (C, H, W) of the first."""
    if image.shape != shape:
        channels, height, width = image.shape
        raise DataError(
            f"{printable(name)}: {height}x{width} (height x width, {channels} channels), but the first image is "
            f"{shape[1]}x{shape[2]} ({shape[0]} channels); bring them to one size by {remedy}"
        )


def choose_class_names(
    source: Source, classes: int | Sequence[str] | None, option: str = "--classes 10 or --classes cat,dog"
) -> tuple[str, ...]:
    """The source's class names, or those of the `classes` argument where nothing in the source is labelled.

    Raises UsageError when both or neither are there; it names the `option` that sets them.
    """
    if source.class_names:
        if classes is not None:
            raise UsageError(f"classes={classes!r} has no effect: the source has its own classes; leave it out")
        return source.class_names
    if classes is None:
        raise UsageError(
            f"{source.name}: no labels here, so nothing says which classes a teacher will tell apart: give their "
            f"number or names by {option} (in Python classes=)"
        )
    names = tuple(map(str, range(classes))) if isinstance(classes, int) else tuple(map(str, classes))
    if isinstance(classes, bool) or len(names) < 2 or len(set(names)) < len(names) or len(names) > MAX_CLASSES:
        raise UsageError(f"classes={classes!r}: expected a number of two or more, or different names")
    return names


def check_labels(labels: NDArray[Any], rows: int, description: str, classes: int | None = None) -> NDArray[np.int64]:
    """Labels as int64 `[N]` from integers `[N]` or `[N, 1]`. Raises DataError that begins with the description."""
    limit = MAX_CLASSES if classes is None else classes
    if labels.dtype.kind not in "iu":
        raise DataError(f"{description} is {labels.dtype}; expected integers, the class numbers from 0")
    if labels.shape not in ((rows,), (rows, 1)):
        raise DataError(f"{description} has shape {list(labels.shape)}; there are {rows} images, expected [{rows}]")
    flat = labels.reshape(-1)
    wrong = np.flatnonzero((flat < 0) | (flat >= limit))
    if len(wrong):
        raise DataError(
            f"{description}: label {flat[wrong[0]]} of row {wrong[0]} is out of range 0..{limit - 1}; "
            f"{len(wrong)} label(s) of {rows} are"
        )
    return flat.astype(np.int64)


def numbered_classes(parts: Iterable[Part]) -> tuple[str, ...]:
    """Class names "0", "1", ... up to the highest label; none where nothing is labelled."""
    highest = max((int(part.labels.max()) for part in parts if part.labels is not None), default=-1)
    return tuple(map(str, range(highest + 1)))


# --- .npz -----------------------------------------------------------------------------------------------------------


def npz_source(path: Path, max_bytes: int | None = MAX_BYTES) -> Source:
    """The source in a `.npz` of `x_train, y_train, x_test, y_test` (optional `x_val, y_val`), or of `x, y` alone.

    Images are uint8 `[N, H, W]`, `[N, H, W, C]` or `[N, C, H, W]`; labels are integers `[N]` or `[N, 1]`; `classes`
    may hold the K class names. Any part may be unlabelled.
    Raises DataError naming the file and the array: unknown, missing, of the wrong dtype or shape, larger than
    `max_bytes` altogether, truncated or damaged, labels out of range.
    """
    arrays = read_npz(path, NPZ_ARRAYS, max_bytes)
    names = ", ".join(arrays) or "nothing"
    alone = "x" in arrays or "y" in arrays
    if alone and (any(key.startswith(("x_", "y_")) for key in arrays) or "x" not in arrays):
        raise DataError(f"{path}: holds {names}: expected x and y alone, or x_train and the rest")
    if not alone and "x_train" not in arrays:
        raise DataError(f"{path}: no array 'x_train' in it (it has {names}); see load_data for the names")
    class_names = _npz_class_names(arrays["classes"], path) if "classes" in arrays else ()
    parts = []
    for role, suffix in [("all", "")] if alone else [(role, f"_{role}") for role in ROLES]:
        labels, description = arrays.get(f"y{suffix}"), f"{path}: array 'y{suffix}'"
        if f"x{suffix}" not in arrays:
            if labels is not None:
                raise DataError(f"{description} has no images beside it: no array 'x{suffix}' (it has {names})")
            continue
        pixels = channels_first(arrays[f"x{suffix}"], f"{path}: array 'x{suffix}'")
        numbers = None
        if labels is not None:
            numbers = check_labels(labels, len(pixels), description, len(class_names) or None)
        parts.append(Part(role, Numbers(len(pixels)), numbers, pixels.__iter__, pixels))
    return Source("npz", path.stem, tuple(parts), class_names or numbered_classes(parts))


def check_npz_labels(source: Source, path: Path) -> None:
    """Raise DataError unless every part is labelled, or only train is not and there is a val (a transfer set)."""
    has_val = any(part.role == "val" for part in source.parts)
    for part in source.parts:
        if part.labels is None and not (part.role == "train" and has_val and source.class_names):
            array = "y" if part.role == "all" else f"y_{part.role}"
            raise DataError(f"{path}: no array {array!r} in it; expected the labels, integers [N]")


def read_npz(path: Path, names: Sequence[str], max_bytes: int | None = None) -> dict[str, NDArray[Any]]:
    """The arrays of a `.npz` by name, in the order of `names`; nothing is unpickled.

    The sizes that its members declare are checked before anything is decompressed. Raises DataError naming file and
    array.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            total = 0
            for name, info in members.items():
                if name not in names:
                    close = nearest(name, names)
                    hint = f", did you mean {close!r}?" if close else "."
                    raise DataError(
                        f"{path}: unknown array {name!r}{hint} Known are {', '.join(names)}; write the file again "
                        "without others"
                    )
                total += _declared_bytes(archive, info, f"{path}: array {name!r}")
                if max_bytes is not None and total > max_bytes:
                    raise DataError(
                        f"{path}: its arrays take {size_bytes(total)}, more than the {size_bytes(max_bytes)} that are "
                        "allowed; in Python a larger max_bytes= allows it"
                    )
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names if name in members}
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except Exception as error:  # zipfile, its decompressors and numpy raise a dozen kinds for damaged bytes
        raise DataError(
            f"{path}: not a readable .npz file ({error!s:.200}): it is truncated, damaged or of another kind"
        ) from error


def _declared_bytes(archive: zipfile.ZipFile, info: zipfile.ZipInfo, description: str) -> int:
    """The bytes that a .npy member takes by its header. Raises DataError where that is more than it can hold."""
    with archive.open(info) as stream:
        try:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(stream)
            length = info.file_size - stream.tell()
        except (zipfile.BadZipFile, zlib.error):
            raise
        except Exception as error:  # numpy tokenizes and evaluates the header: ValueError, TokenError, ...
            raise DataError(f"{description} is not in numpy's .npy format: {error!s:.200}") from error
    if dtype.hasobject or dtype.names is not None:
        raise DataError(f"{description} holds Python objects or records ({dtype}), which are not read")
    declared = math.prod(shape) * dtype.itemsize
    archive_bytes = os.fstat(archive.fp.fileno()).st_size  # type: ignore[union-attr]
    possible = min(length, _DEFLATE_RATIO * min(info.compress_size, archive_bytes))
    if min(shape, default=0) < 0 or declared != length or declared > possible:
        raise DataError(
            f"{description} declares shape {list(shape)} of {dtype}, {declared} bytes, but holds {possible}: the file "
            "is truncated or damaged, or compressed in a way that numpy does not use"
        )
    return int(declared)


def _npz_class_names(array: NDArray[Any], path: Path) -> tuple[str, ...]:
    if array.ndim != 1 or array.dtype.kind not in "US":
        raise DataError(f"{path}: array 'classes' is {array.dtype} {list(array.shape)}; expected K strings")
    try:
        return tuple(name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in array)
    except (SystemError, ValueError) as error:  # numpy stores four bytes a letter, and not all of them are one
        raise DataError(f"{path}: array 'classes' has names that are not text ({error})") from error


def channels_first(array: NDArray[Any], description: str) -> NDArray[np.uint8]:
    """uint8 images as `[N, C, H, W]` from `[N, H, W]`, `[N, H, W, C]` or `[N, C, H, W]`; C is 1 to 4.

    Raises DataError that begins with the description for other dtypes and shapes, and where the shape is ambiguous.
    """
    if array.dtype != np.uint8:
        raise DataError(
            f"{description} is {array.dtype}; expected uint8 with values 0..255: scale and convert before saving"
        )
    if 0 in array.shape or array.ndim not in (3, 4):
        raise DataError(
            f"{description} has shape {list(array.shape)}; expected [N, H, W], [N, H, W, C] or [N, C, H, W], not empty"
        )
    if array.ndim == 3:
        return np.ascontiguousarray(array[:, None])
    first, last = array.shape[1] <= 4, array.shape[3] <= 4
    if first == last:
        raise DataError(
            f"{description} has shape {list(array.shape)}: cannot tell which axis is the channels (1 to 4 of them); "
            "expected [N, H, W, C] or [N, C, H, W]"
        )
    return np.ascontiguousarray(array.transpose(0, 3, 1, 2) if last else array)


class Numbers(Sequence[str]):
    """Names of images that are known by their number: `Numbers(3)[2] == "2"`."""

    def __init__(self, count: int, prefix: str = "") -> None:
        self._rows, self._prefix = range(count), prefix

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: Any) -> Any:
        """The name of the row, or a list of names for a slice."""
        if isinstance(row, slice):
            return [f"{self._prefix}{number}" for number in self._rows[row]]
        return f"{self._prefix}{self._rows[row]}"


# --- dataset objects ------------------------------------------------------------------------------------------------


def load_object(source: Any, *, seed: int = 0, max_bytes: int = MAX_BYTES) -> Splits:
    """The splits of one map-style dataset (cut 80/10/10), of a dict of `train`, `val`, `test`, or of a tuple of three.

    Items are (image, label), or dicts with `image` or `img` and `label`. An image is a Pillow image (grey ones keep
    one channel), a uint8 array `[H, W]` or `[H, W, C]`, or a tensor `[C, H, W]` of uint8 or of floats in 0..1 (times
    255, rounded). Each item is read once: a random transform is frozen as it fell. Class names come from `.classes`.
    Raises UsageError for an unsupported object, DataError naming the item.
    """
    if isinstance(source, tuple):
        if len(source) != 3:
            raise UsageError(f"a tuple of {len(source)}: expected (train, val, test), or a dict with these names")
        source = dict(zip(ROLES, source, strict=True))
    if isinstance(source, Mapping) and ("train" not in source or any(key not in ROLES for key in source)):
        raise UsageError(f"a dict with {list(source)}: expected train and, if there are any, val and test")
    datasets = dict(source) if isinstance(source, Mapping) else {"all": source}
    content: dict[str, tuple[Tensor, Tensor | None]] = {}
    highest, shape = 0, None
    for role, dataset in datasets.items():
        title = "dataset" if role == "all" else role
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise UsageError(
                f"{title}: unsupported data source: {type(dataset).__name__}; expected a name, a path, or a dataset "
                "with a length and items (image, label)"
            )
        labels: list[int] = []
        names = Numbers(len(dataset), f"{title}: item ")
        remedy = "resizing them in the dataset"
        images = stack_images(_object_images(dataset, title, labels), names, title, shape, max_bytes, remedy)
        max_bytes, shape = max_bytes - images.nbytes, tuple(images.shape[1:])
        highest = max(highest, *labels)
        content[role] = images, torch.tensor(labels)
    class_names = _object_classes(datasets.values()) or tuple(map(str, range(highest + 1)))
    return make_splits("dataset", content, class_names, seed=seed)


def _object_images(dataset: Any, title: str, labels: list[int]) -> Iterator[NDArray[np.uint8]]:
    """The images of the dataset's items; the label of each is appended to `labels`."""
    for row in range(len(dataset)):
        description = f"{title}: item {row}"
        try:
            item = dataset[row]
        except Exception as error:
            raise DataError(f"{description} cannot be read ({type(error).__name__}: {error})") from error
        image, label = _image_and_label(item, description)
        labels.append(label)
        yield _object_pixels(image, description)


def _image_and_label(item: Any, description: str) -> tuple[Any, int]:
    if isinstance(item, Mapping):
        image, label = item["image"] if "image" in item else item.get("img"), item.get("label")
    elif isinstance(item, (tuple, list)) and len(item) >= 2:
        image, label = item[0], item[1]
    else:
        raise DataError(f"{description} is a {type(item).__name__}; expected (image, label)")
    if isinstance(label, Tensor) and label.ndim == 0 and not label.dtype.is_floating_point:
        label = label.item()
    if isinstance(label, bool) or not isinstance(label, (int, np.integer)) or not 0 <= label < MAX_CLASSES:
        raise DataError(f"{description}: label {label!r:.60} is not a class number; expected an integer 0..K-1")
    return image, int(label)


def _object_pixels(image: Any, description: str) -> NDArray[np.uint8]:
    """uint8 `[C, H, W]` of any image that an item may have."""
    if isinstance(image, Tensor):
        return _tensor_pixels(image, description)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] > 4):
            raise DataError(
                f"{description}: array {image.dtype} {list(image.shape)}; expected uint8 [H, W] or [H, W, C]"
            )
        return image[None] if image.ndim == 2 else np.ascontiguousarray(image.transpose(2, 0, 1))
    if hasattr(image, "convert") and hasattr(image, "mode"):
        try:
            return pixels_of(image, grey=image.mode in ("1", "L", "LA"))
        except (DataError, OSError) as error:
            raise DataError(f"{description}: the image cannot be decoded: {error}") from error
    raise DataError(
        f"{description}: a {type(image).__name__} is not an image; expected a Pillow image, an array or a tensor"
    )


def _tensor_pixels(image: Tensor, description: str) -> NDArray[np.uint8]:
    pixels = image.detach().cpu()
    if pixels.ndim == 2:
        pixels = pixels[None]
    if pixels.ndim != 3 or not (pixels.dtype == torch.uint8 or pixels.dtype.is_floating_point):
        raise DataError(
            f"{description}: tensor {image.dtype} {list(image.shape)}; expected [C, H, W], uint8 or float in 0..1"
        )
    if pixels.dtype != torch.uint8:
        if not bool(((pixels >= 0) & (pixels <= 1)).all()):
            raise DataError(
                f"{description}: float tensor with values {float(pixels.min()):.4g}..{float(pixels.max()):.4g}; "
                "expected 0..1: leave normalisation out of the transform, models have their own"
            )
        pixels = (pixels.double() * 255).round().to(torch.uint8)
    array: NDArray[np.uint8] = pixels.contiguous().numpy()
    return array


def _object_classes(datasets: Iterable[Any]) -> tuple[str, ...]:
    """The class names of the first dataset that has some; a Subset's are those of what it is a subset of."""
    for dataset in datasets:
        while not hasattr(dataset, "classes") and hasattr(dataset, "dataset"):
            dataset = dataset.dataset
        classes = getattr(dataset, "classes", None)
        if isinstance(classes, (list, tuple)) and classes:
            return tuple(map(str, classes))
    return ()
