"""`load_data`: a name, path or object in, splits out; `pack_data`: a path or object in, a packed folder out."""

from __future__ import annotations

import math
import os
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy_format
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Subset

from noisyteacher.data.builtin import CIFAR_FOLDER, DATASETS, default_root, load_mnist5k, load_official
from noisyteacher.data.csv_labels import csv_source
from noisyteacher.data.folders import folder_source
from noisyteacher.data.holdout import limited, make_splits
from noisyteacher.data.images import (
    TO_ONE_SIZE,
    Part,
    Resize,
    Source,
    Unreadable,
    decode_all,
    eight_bits,
    pixels_of,
    stack_images,
)
from noisyteacher.data.packed import Packed, is_packed, write_packed
from noisyteacher.data.split import MAX_CLASSES, ROLES, Splits, class_numbers, role_of
from noisyteacher.device import check_count
from noisyteacher.errors import DataError, DataWarning, UsageError
from noisyteacher.progress import Watch
from noisyteacher.text import few, size_bytes, unknown_name

MAX_BYTES = 4 * 2**30
FILES = (".npz", ".csv")
"""Suffixes, in any case, of the files that are data sets."""
LOOKED_AT_TWICE = 8
"""Images of a data set object that are read twice."""
MEDMNIST = {
    f"{role}_{kind}": f"{letter}_{role}" for role in ROLES for kind, letter in (("images", "x"), ("labels", "y"))
}
"""MedMNIST's names of arrays -> ours."""
NPZ_ARRAYS = ("x", "y", "x_train", "y_train", "x_val", "y_val", "x_test", "y_test", "classes")
_READ_AHEAD = 16
"""Images of a Hugging Face data set in memory at once."""


def load_data(
    source: Any,
    *,
    root: str | os.PathLike[str] | None = None,
    download: bool = True,
    verify: bool = True,
    seed: int = 0,
    limit: int | None = None,
    train_limit: int | None = None,
    extra: bool = True,
    size: int | tuple[int, int] | None = None,
    fit: str = "squash",
    grey: bool = False,
    classes: int | Sequence[str] | None = None,
    max_bytes: int = MAX_BYTES,
) -> Splits:
    """The data set as Splits of train, val and, where there is one, test; uint8 `[N, C, H, W]`, labels int64 `[N]`.

    source: `mnist-5k` (embedded), `mnist`, `cifar10`, `svhn` (the official files); a `.npz` file; a `.csv` file of
        paths and labels; a folder of images, or a packed one, whose images stay on disk; a dataset object, a dict or a
        tuple of them; Splits.
    root: of the official files, by default NOISYTEACHER_DATA or ~/.cache/noisyteacher; of the paths in a `.csv` file,
        by default its folder. download: fetch what is missing.
    verify: refuse official files with another MD5 (False says so in `.note`), and packed images with another checksum.
    seed: of the draw that holds rows out where the source has no validation split; runs to be compared must share it.
    limit: at most this many rows of each split, each class in proportion. train_limit: the same of train alone.
    extra: False leaves SVHN's 531,131 extra images out. size (pixels, or (height, width)), fit (`squash` or `crop`),
        grey: resize the images of a folder or `.csv` file, to one channel. classes: the number or the names, where
        these are not labelled.
    max_bytes: refuse a source that takes more memory (4 GiB by default).
    Raises UnknownNameError with the nearest name, UsageError for an option that has no effect on this source,
    DataError naming the file and what to do. Warns (DataWarning) of files in a folder that are not read as images.
    """
    resize, name = Resize.of(size, grey, fit), source if isinstance(source, str) and source in DATASETS else None
    path = None if name or not isinstance(source, (str, os.PathLike)) else _existing_path(source, DATASETS)
    official, packed_folder = name not in (None, "mnist-5k"), path is not None and is_packed(path)
    folder = path is not None and os.path.isdir(path) and not packed_folder
    csv_file = path is not None and _is_csv(path)
    image_files = folder or csv_file
    for option, is_set, has_effect in (
        ("root", root is not None, official or csv_file),
        ("download", not download, official),
        ("verify", not verify, official or packed_folder),
        ("size", size is not None, image_files),
        ("fit", fit != "squash", image_files and size is not None),
        ("grey", grey, image_files),
        ("classes", classes is not None, image_files),
        ("extra", not extra, name == "svhn"),
        ("seed", seed != 0, not (name == "mnist-5k" or isinstance(source, Splits))),
    ):
        if is_set and not has_effect:
            title = repr(source) if isinstance(source, (str, os.PathLike)) else f"a {type(source).__name__}"
            raise UsageError(f"{option} has no effect on {title}: leave it out")
    for option, value in (("limit", limit), ("train_limit", train_limit)):
        if value is not None:
            check_count(option, value)
    if name == "mnist-5k":
        splits = load_mnist5k()
    elif name is not None:
        splits = load_official(name, default_root(root), download=download, verify=verify, seed=seed, extra=extra)
    elif isinstance(source, Splits):
        splits = source
    elif path is not None and packed_folder:
        packed = Packed.open(path)
        if verify:
            packed.verify()
        splits = packed.splits(seed=seed)
    else:
        if path is not None and folder and (is_saved(path) or parquet_files(path)):
            raise UsageError(f"{path}: a data set of Hugging Face: run noisyteacher data pack {path} OUT, then use OUT")
        content = object_source(source, max_bytes) if path is None else path_source(path, True, max_bytes, root)
        if image_files:
            names = choose_class_names(content, classes, "--set data.classes=10 (or a list of names)")
            content = replace(content, class_names=names)
        elif path is not None:
            _check_labelled(content, path)
        splits = _read(content, resize, seed, max_bytes)
    if name is not None and _is_folder_of_folders(name):
        here = f"{name!r} is read as the data set of that name: for the folder here say ./{name}"
        warnings.warn(here, DataWarning, stacklevel=2)
    elif name is None and splits is not source and splits.note:
        warnings.warn(f"{path or splits.name}: {splits.note}", DataWarning, stacklevel=2)
    if limit is not None:
        test = None if splits.test is None else limited(splits.test, limit)
        splits = replace(splits, train=limited(splits.train, limit), val=limited(splits.val, limit), test=test)
    return splits if train_limit is None else replace(splits, train=limited(splits.train, train_limit))


def pack_data(
    source: Any,
    out: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    size: int | tuple[int, int] | None = None,
    grey: bool = False,
    fit: str = "crop",
    classes: int | Sequence[str] | None = None,
    skip_corrupt: bool = False,
    follow_links: bool = False,
    jobs: int = 1,
    watch: Watch | None = None,
) -> Packed:
    """Decode every image once, bring it to `size`, and write all of them into the folder `out`; returns the result.

    source: a folder of images, a `.npz` or `.csv` file, a `datasets.Dataset` or a dict of them, a folder of parquet
        files or one that `save_to_disk` wrote (docs/data.md). Memory does not grow with the size of the images.
    root: of the paths in a `.csv` file, by default its folder.
    size: pixels, or (height, width); without it all images must have one size. fit: `crop` scales the largest centred
        window of that shape, `squash` the whole image. grey: one channel.
    classes: how many classes, or their names, where nothing is labelled. skip_corrupt: leave unreadable images out, and
        list them. follow_links: also read what links point to outside the folder. jobs: threads that decode, with the
        same bytes. watch: called with (stage, images done, of how many, note).
    Raises DataError naming the images that cannot be read, WriteError when the disk refuses, UsageError.
    """
    resize, target = Resize.of(size, grey, fit), Path(out)
    check_count("jobs", jobs)
    if isinstance(source, (str, os.PathLike)):
        path = _existing_path(source)
        if is_packed(path):
            raise UsageError(f"{path}: is packed already: use it as it is")
        if f"{os.path.realpath(target)}{os.sep}".startswith(os.path.realpath(path) + os.sep):
            raise UsageError(f"{out}: lies inside the source {path}: choose a folder outside")
        if root is not None and not _is_csv(path):
            raise UsageError(f"root has no effect on {str(path)!r}: leave it out")
        content = path_source(path, follow_links, None, root)
    elif type(source).__module__.split(".")[0] == "datasets":
        content = hugging_face_source(source)
    else:
        raise UsageError(f"a {type(source).__name__} cannot be packed: give a folder, a file or a datasets.Dataset")
    names = choose_class_names(content, classes, "--classes 10 or --classes cat,dog")
    return write_packed(replace(content, class_names=names), target, resize, skip_corrupt, jobs, watch)


def _is_csv(path: Path) -> bool:
    """Whether the path is that of a `.csv` file."""
    return path.suffix.lower() == ".csv" and path.is_file()


def path_source(
    path: Path, follow_links: bool, max_bytes: int | None, root: str | os.PathLike[str] | None = None
) -> Source:
    """The source in a `.npz` or `.csv` file, a folder that `datasets` saved, one of parquet files, or one of images."""
    if path.is_file():
        base = None if root is None else Path(root).expanduser()
        return csv_source(path, base) if _is_csv(path) else npz_source(path, max_bytes)
    if is_saved(path) or parquet_files(path):
        return hugging_face_source(path)
    return folder_source(Path(os.path.abspath(path)) if follow_links else path.resolve(), follow_links)


def _check_labelled(source: Source, path: Path) -> None:
    """Raises DataError for a `.npz` without labels; those of train may be missing where there are val and classes."""
    has_val = any(part.role == "val" for part in source.parts)
    for part in source.parts:
        if part.labels is None and not (part.role == "train" and has_val and source.class_names):
            array = "y" if part.role == "all" else f"y_{part.role}"
            raise DataError(f"{path}: no array {array!r} in it; expected the labels, integers [N]")


def _existing_path(source: str | os.PathLike[str], names: Sequence[str] = ()) -> Path:
    path = Path(source).expanduser()
    if not os.fspath(source).strip():
        raise UsageError("the data set's name is empty: give a name, a .npz or .csv file or a folder")
    if os.path.isdir(path) or (os.path.isfile(path) and path.suffix.lower() in FILES):
        return path
    if os.path.exists(path):
        raise DataError(f"{path}: neither a folder nor a .npz or .csv file; see load_data for what can be read")
    if names and isinstance(source, str) and path.suffix.lower() not in FILES and len(path.parts) == 1:
        raise unknown_name("data set", source, [*names, "a .npz or .csv file", "a folder"])
    raise DataError(f"{path}: no such file or folder")


def _is_folder_of_folders(name: str) -> bool:
    """Whether a folder of this name is here and has visible folders in it, other than those of official files."""
    if not (os.path.isdir(name) and os.access(name, os.R_OK)):
        return False
    with os.scandir(name) as entries:
        folders = {entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")}
    return bool(folders - {"MNIST", CIFAR_FOLDER})


def choose_class_names(source: Source, classes: int | Sequence[str] | None, option: str) -> tuple[str, ...]:
    """The source's class names, or those of `classes` (set by the `option`) where nothing is labelled."""
    if source.class_names:
        if classes is not None:
            raise UsageError(f"classes={classes!r} has no effect: the source has its own classes; leave it out")
        return source.class_names
    if classes is None:
        raise UsageError(f"{source.name}: no labels here: give the number of classes, or their names, by {option}")
    names = tuple(map(str, range(classes) if isinstance(classes, int) else classes))
    if isinstance(classes, bool) or len(names) < 2 or len(set(names)) < len(names) or len(names) > MAX_CLASSES:
        raise UsageError(f"classes={classes!r}: expected a number of two or more, or different names")
    return names


def _source(kind: str, name: str, parts: list[Part], class_names: tuple[str, ...], title: str, remedy: str) -> Source:
    """The source of these parts; without names, classes are numbered up to the highest label.

    Raises DataError, which begins with the title and ends with the remedy, where these numbers begin at 1.
    """
    used = torch.cat([torch.empty(0, dtype=torch.int64), *(part.labels for part in parts if part.labels is not None)])
    if class_names or not len(used):
        return Source(kind, name, tuple(parts), class_names)
    first, classes = int(used.min()), int(used.max()) + 1
    empty = [str(number) for number in (used.bincount() == 0).nonzero().flatten().tolist()]
    if first == 1:
        raise DataError(f"{title}: labels begin at 1: expected the class numbers from 0: {remedy}")
    gaps = f"{len(empty)} of {classes} classes have no image ({few(empty)}): number them from 0 without gaps, unless "
    gaps += "that is intended"
    return Source(kind, name, tuple(parts), tuple(map(str, range(classes))), gaps if empty else "")


def _same_classes(first: tuple[str, ...], names: tuple[str, ...], title: str) -> tuple[str, ...]:
    """The class names of the first parts, or of a further one where they have none. Raises DataError if they differ."""
    if first and names and first != names:
        raise DataError(f"{title}: classes {few(names)}, but the first part has {few(first)}")
    return first or names


def _read(source: Source, resize: Resize, seed: int, max_bytes: int) -> Splits:
    content: dict[str, tuple[Tensor, Tensor | None]] = {}
    shape: tuple[int, ...] | None = None
    for part in source.parts:
        images = part.images
        if not isinstance(images, np.ndarray):
            title = f"{source.name} ({part.role})"
            images = stack_images(decode_all(images, resize), part.names, title, max_bytes, TO_ONE_SIZE, shape)
            shape = images.shape[1:]
            max_bytes -= images.nbytes
        content[part.role] = torch.from_numpy(images), part.labels
    return replace(make_splits(source.name, content, source.class_names, seed), note=source.note, fit=resize.fit)


# --- .npz -----------------------------------------------------------------------------------------------------------


def npz_source(path: Path, max_bytes: int | None = MAX_BYTES) -> Source:
    """The source in a `.npz` of `x_train, y_train, x_test, y_test` (optional `x_val, y_val`), or of `x, y` alone.

    Images are uint8 `[N, H, W]`, `[N, H, W, C]` or `[N, C, H, W]`; labels are integers `[N]` or `[N, 1]`; `classes`
    may hold the K class names. Any part may be unlabelled. Raises DataError naming the file and the array.
    """
    arrays = read_npz(path, max_bytes)
    class_names: tuple[str, ...] = ()
    if "classes" in arrays:
        array = arrays["classes"]
        if array.ndim != 1 or array.dtype.kind not in "US":
            raise DataError(f"{path}: array 'classes' is {array.dtype} {list(array.shape)}; expected K strings")
        try:
            class_names = tuple(name.decode() if isinstance(name, bytes) else str(name) for name in array)
        except (SystemError, ValueError) as error:  # numpy stores four bytes a letter, and not all of them are one
            raise DataError(f"{path}: array 'classes' has names that are not text ({error})") from error
    parts = []
    for role, suffix in [("all", ""), *((role, f"_{role}") for role in ROLES)]:
        pixels, labels, title = arrays.get(f"x{suffix}"), arrays.get(f"y{suffix}"), f"{path}: array 'y{suffix}'"
        if pixels is None and labels is not None:
            raise DataError(f"{title} has no images beside it: no array 'x{suffix}' (it has {', '.join(arrays)})")
        if pixels is not None:
            pixels = channels_first(pixels, f"{path}: array 'x{suffix}'")
            limit = len(class_names) or MAX_CLASSES
            numbers = None if labels is None else class_numbers(labels, len(pixels), title, limit)
            parts.append(Part(role, list(map(str, range(len(pixels)))), numbers, pixels))
    roles = [part.role for part in parts]
    if roles != ["all"] and roles[:1] != ["train"]:
        raise DataError(f"{path}: no array 'x_train', or more than x and y (it has {', '.join(arrays) or 'nothing'})")
    remedy = "save y - 1, or, if class 0 has no images here, the names of all classes in an array 'classes'"
    return _source("npz", path.stem, parts, class_names, str(path), remedy)


def read_npz(path: Path, max_bytes: int | None = None) -> dict[str, NDArray[Any]]:
    """The arrays of a `.npz` by name; their sizes are checked first, nothing is unpickled. Raises DataError."""
    total = 0
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                name = info.filename.removesuffix(".npy")
                name = MEDMNIST.get(name, name)
                if name not in NPZ_ARRAYS:
                    raise DataError(f"{path}: {unknown_name('array', name, NPZ_ARRAYS)}")
                with archive.open(info) as stream:
                    version = npy_format.read_magic(stream)
                    header = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
                    shape, _, dtype = header(stream)
                    rest = info.file_size - stream.tell()
                if dtype.hasobject or dtype.names is not None:
                    raise DataError(f"{path}: array {name!r} holds Python objects or records, which are not read")
                size = math.prod(shape) * dtype.itemsize
                if size != rest:
                    raise DataError(f"{path}: array {name!r} declares {list(shape)}, {size} bytes, but holds {rest}")
                total += size
                if max_bytes is not None and total > max_bytes:
                    raise DataError(f"{path}: more than {size_bytes(max_bytes)} of arrays: raise max_bytes= in Python")
        with np.load(path, allow_pickle=False) as arrays:
            return {MEDMNIST.get(name, name): arrays[name] for name in arrays.files}
    except DataError:
        raise
    except Exception as error:  # zipfile, its decompressors and numpy raise a dozen kinds for damaged bytes
        raise DataError(f"{path}: not a readable .npz file, truncated or damaged ({error!s:.200})") from error


def channels_first(array: NDArray[Any], title: str) -> NDArray[np.uint8]:
    """uint8 images as `[N, C, H, W]` from `[N, H, W]`, `[N, H, W, C]` or `[N, C, H, W]`; C is 1 to 4."""
    if array.dtype != np.uint8:
        raise DataError(f"{title} is {array.dtype}; expected uint8 with values 0..255: scale and convert before saving")
    if 0 in array.shape or array.ndim not in (3, 4):
        raise DataError(f"{title} has shape {list(array.shape)}; expected [N, H, W] or [N, H, W, C], not empty")
    if array.ndim == 3:
        return np.ascontiguousarray(array[:, None])
    if (array.shape[1] <= 4) == (array.shape[3] <= 4):
        raise DataError(f"{title} has shape {list(array.shape)}: cannot tell which axis is the channels (1 to 4)")
    return np.ascontiguousarray(array.transpose(0, 3, 1, 2) if array.shape[3] <= 4 else array)


# --- dataset objects ------------------------------------------------------------------------------------------------


def object_source(source: Any, max_bytes: int = MAX_BYTES) -> Source:
    """One map-style dataset (to be cut 80/10/10), a dict of `train`, `val`, `test`, or a tuple of the three.

    Items are (image, label), or dicts with `image` or `img` and `label` or `labels`, or the columns of images and of
    labels that a data set of Hugging Face has. An image is a Pillow image (grey
    ones keep one channel), a uint8 array `[H, W]` or `[H, W, C]`, or a tensor `[C, H, W]` of uint8 or of floats in
    0..1. Each item is stored once, so random transforms are refused. Class names, one list for all: those in
    `.classes`, for a Subset of its data set's, or of the column of labels in `.features`. Raises UsageError, DataError.
    """
    if isinstance(source, tuple):
        if len(source) != 3:
            raise UsageError(f"a tuple of {len(source)}: expected (train, val, test), or a dict with these names")
        source = dict(zip(ROLES, source, strict=True))
    source = _by_role(source, "the dict") if isinstance(source, Mapping) else {"all": source}
    parts: list[Part] = []
    class_names: tuple[str, ...] = ()
    for role, dataset in source.items():
        title = "dataset" if role == "all" else role
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            kind = type(dataset).__name__
            raise UsageError(f"{title}: unsupported data source: {kind}; expected a name, a path, or a sized dataset")
        looks = [[*islice(_items(dataset, title, []), LOOKED_AT_TWICE)] for _ in range(2)]
        if any(not np.array_equal(*images) for images in zip(*looks, strict=True)):
            raise DataError(f"{title}: an image differs when it is read again: pass the data without random transforms")
        names, labels = [f"item {row}" for row in range(len(dataset))], list[int]()
        items = _items(dataset, title, labels)
        pixels = stack_images(items, names, title, max_bytes, "resizing them in the dataset")
        max_bytes -= pixels.nbytes
        parts.append(Part(role, names, torch.tensor(labels), pixels))
        while isinstance(dataset, Subset) and not hasattr(dataset, "classes"):
            dataset = dataset.dataset
        named, features = getattr(dataset, "classes", None), getattr(dataset, "features", None)
        if named is None and isinstance(features, Mapping):  # of a data set of Hugging Face
            named = getattr(_first_of(features, _keys(dataset, title)[1]), "names", None)
        named = named.tolist() if isinstance(named, np.ndarray) else named
        listed = isinstance(named, (list, tuple)) and all(isinstance(text, (str, int, np.generic)) for text in named)
        class_names = _same_classes(class_names, tuple(map(str, named or ())) if listed else (), title)
    remedy = "subtract 1, or, if class 0 has no images here, give the names of all classes as its `classes`"
    return _source("objects", "dataset", parts, class_names, "dataset", remedy)


def _keys(dataset: Any, title: str) -> tuple[tuple[str | None, ...], tuple[str | None, ...]]:
    """The keys that the image and the label of an item may have: the columns of these types where there are any."""
    features = getattr(dataset, "features", None)
    if isinstance(features, Mapping) and "Image" in {type(feature).__name__ for feature in features.values()}:
        image, label, _ = _columns(features, title)
        return (image,), (label,)
    return ("image", "img"), ("label", "labels")


def _first_of(record: Mapping[Any, Any], keys: Sequence[str | None]) -> Any:
    """The value of the first of these keys that the record has; None without any."""
    return next((record[key] for key in keys if key in record), None)


def _items(dataset: Any, title: str, labels: list[int]) -> Iterator[NDArray[np.uint8]]:
    """The images of the dataset's items, uint8 `[C, H, W]`; the label of each is appended to `labels`."""
    keys = _keys(dataset, title)
    for row in range(len(dataset)):
        name = f"{title}: item {row}"
        try:
            item = dataset[row]
        except Exception as error:
            raise DataError(f"{name} cannot be read ({type(error).__name__}: {error})") from error
        if isinstance(item, Mapping):
            item = tuple(_first_of(item, names) for names in keys)
        if not isinstance(item, (tuple, list)) or len(item) < 2:
            raise DataError(f"{name} is a {type(item).__name__}; expected (image, label)")
        image, label = item[:2]
        if isinstance(label, Tensor) and label.ndim == 0 and not label.dtype.is_floating_point:
            label = label.item()
        if isinstance(label, bool) or not isinstance(label, (int, np.integer)) or not 0 <= label < MAX_CLASSES:
            hint = ": turn names into numbers by np.unique(y, return_inverse=True)" if isinstance(label, str) else ""
            raise DataError(f"{name}: label {label!r:.60} is not a class number; expected an integer 0..K-1{hint}")
        labels.append(int(label))
        try:
            yield _object_pixels(image)
        except (DataError, OSError) as error:
            raise DataError(f"{name}: {error}") from error


def _object_pixels(image: Any) -> NDArray[np.uint8]:
    """uint8 `[C, H, W]` of any image that an item may have. Raises DataError, OSError for a damaged Pillow image."""
    if hasattr(image, "convert") and hasattr(image, "mode"):
        image = eight_bits(image)
        return pixels_of(image, grey=image.mode in ("1", "L", "LA"))
    if isinstance(image, Tensor):
        pixels = image.detach().cpu()
        if pixels.dtype.is_floating_point:
            if not bool(((pixels >= 0) & (pixels <= 1)).all()):
                values = f"{float(pixels.min()):.4g}..{float(pixels.max()):.4g}"
                raise DataError(f"float tensor with values {values}; expected 0..1, without normalisation")
            pixels = (pixels.double() * 255).round().to(torch.uint8)
        if pixels.ndim == 3 and pixels.shape[0] > 4:
            shape = list(pixels.shape)
            raise DataError(
                f"tensor {shape}; expected [C, H, W] of at most 4 channels (from [H, W, C]: permute(2, 0, 1))"
            )
        array = pixels.numpy() if pixels.ndim == 3 else pixels[None].numpy()
    elif isinstance(image, np.ndarray) and image.ndim == 2:
        array = image[None]
    elif isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] <= 4:
        array = image.transpose(2, 0, 1)
    elif isinstance(image, np.ndarray):
        shape = list(image.shape)
        raise DataError(
            f"array {shape}; expected [H, W], or [H, W, C] of at most 4 channels (from [C, H, W]: transpose(1, 2, 0))"
        )
    else:
        raise DataError(f"a {type(image).__name__} is not an image; expected a Pillow image, an array or a tensor")
    if array.dtype != np.uint8 or array.ndim != 3:
        kind = f"{type(image).__name__} {image.dtype} {list(image.shape)}"
        raise DataError(f"{kind}; expected an array uint8 [H, W] or [H, W, C], or a tensor [C, H, W]")
    return np.ascontiguousarray(array)


# --- Hugging Face ---------------------------------------------------------------------------------------------------


def is_saved(folder: Path) -> bool:
    """Whether `datasets` saved something in this folder (`save_to_disk`)."""
    return (folder / "dataset_dict.json").exists() or (folder / "state.json").exists()


def parquet_files(folder: Path) -> list[Path]:
    """The parquet files in a folder, or in its `data` folder as the Hub has it."""
    return sorted(folder.glob("*.parquet")) or sorted(folder.glob("data/*.parquet"))


def hugging_face_source(source: Any) -> Source:
    """A `datasets.Dataset` or a dict of them, a folder that `save_to_disk` wrote, or a folder of parquet files.

    Parts are `train`, `validation` (also `val`, `valid`, `dev`) and `test`, or all in one. Images are taken as they are
    stored, encoded; no code of a data set runs, and nothing is fetched. Raises UsageError, DataError.
    """
    try:
        import datasets
    except ImportError as error:
        raise UsageError(f"{source}: reading it needs datasets: pip install 'noisyteacher[data]'") from error
    kind, name, content = "datasets", "dataset", source
    if isinstance(source, Path):
        name, kind = source.name, "datasets" if is_saved(source) else "parquet"
        if kind == "datasets":
            try:
                content = datasets.load_from_disk(os.fspath(source))
            except Exception as error:  # arrow, json, and whatever a damaged folder leads to
                raise DataError(f"{source}: not a data set that `datasets` can load: {error}") from error
        else:
            content = {}
            for path in parquet_files(source):
                content.setdefault(re.split(r"[-_.]", path.name)[0], []).append(path)
            if not any(map(role_of, content)):
                content = parquet_files(source)
    by_role = _by_role(content, name) if isinstance(content, Mapping) else {"all": content}
    read = _read_dataset if kind == "datasets" else _read_parquet
    parts: list[Part] = []
    class_names: tuple[str, ...] = ()
    for role, part_content in by_role.items():
        title = f"{name}, {role}"
        rows, numbers, cells, names = read(part_content, title)
        class_names = _same_classes(class_names, names, title)
        if numbers is not None and len(numbers) and bool((numbers == -1).all()):  # test splits of competitions
            numbers = None
        labels = None if numbers is None else class_numbers(numbers, rows, f"{title}: the column of labels")
        parts.append(Part(role, list(map(str, range(rows))), labels, map(_encoded_image, cells)))
    remedy = "subtract 1, or, if class 0 has no images here, cast the column to a ClassLabel with all names"
    return _source(kind, name, parts, class_names, name, remedy)


def _by_role(parts: Mapping[Any, Any], title: str) -> dict[str, Any]:
    """The parts by role, in its order. Raises UsageError without a train part, and for one whose name is no role."""
    by_role = {role: part for role in ROLES for key, part in parts.items() if role_of(str(key)) == role}
    if "train" not in by_role or len(by_role) < len(parts):
        keys = few(list(map(str, parts)))
        raise UsageError(f"{title}: has the parts {keys}; expected train, at most one validation, at most one test")
    return by_role


_Column = tuple[int, NDArray[Any] | None, Iterable[Any], tuple[str, ...]]
"""The number of rows, class numbers or None, the cells of the images, and class names where there are some."""


@contextmanager
def _readable(title: str, kind: str) -> Iterator[None]:
    """Inside, what pyarrow raises for files that it cannot read is a DataError."""
    try:
        yield
    except (OSError, ValueError, KeyError) as error:  # what pyarrow's errors derive from
        raise DataError(f"{title}: not {kind}: {error}") from error


def _read_dataset(dataset: Any, title: str) -> _Column:
    import datasets

    if not all(hasattr(dataset, name) for name in ("__getitem__", "__len__", "features")):
        raise UsageError(f"{title}: a {type(dataset).__name__} cannot be indexed: load it without streaming")
    image, label, names = _columns(dataset.features, title)
    numbers, kind = None, "a data set whose files can be read"

    def cells() -> Iterator[Any]:
        with _readable(title, kind):
            encoded = dataset.select_columns([image]).cast_column(image, datasets.Image(decode=False)).with_format(None)
            for start in range(0, len(dataset), _READ_AHEAD):
                yield from encoded[start : start + _READ_AHEAD][image]

    if label is not None:
        with _readable(title, kind):
            numbers = dataset.select_columns([label]).with_format("arrow")[:][label].to_numpy()
    return len(dataset), numbers, cells(), names


def _read_parquet(paths: list[Path], title: str) -> _Column:
    import datasets
    import pyarrow.parquet as pq

    file = f"a readable parquet file ({few([path.name for path in paths], 3)})"

    def cells() -> Iterator[Any]:
        with _readable(title, file):
            for path in paths:
                for batch in pq.ParquetFile(path).iter_batches(_READ_AHEAD, columns=[image]):
                    yield from batch[image].to_pylist()

    with _readable(title, file):
        image, label, names = _columns(datasets.Features.from_arrow_schema(pq.read_schema(paths[0])), title)
        rows = sum(pq.read_metadata(path).num_rows for path in paths)
        numbers = None
        if label is not None:
            numbers = np.concatenate([pq.read_table(path, columns=[label])[label].to_numpy() for path in paths])
    return rows, numbers, cells(), names


def _encoded_image(cell: Any) -> str | bytes | Unreadable:
    """The image of one cell: its bytes, or the local file it names."""
    data, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, Mapping) else (cell, None)
    if isinstance(data, bytes):
        return data
    if isinstance(path, str) and os.path.isfile(path):
        return path
    return Unreadable("no image in this row" if path is None else f"the file it names is not here: {path}")


def _columns(features: Mapping[str, object], title: str) -> tuple[str, str | None, tuple[str, ...]]:
    """The column of images, the column of labels or None, and the class names where the column has them."""
    kinds = {name: type(feature).__name__ for name, feature in features.items()}
    images = [name for name, kind in kinds.items() if kind == "Image"]
    # Files that were not written by `datasets` have columns of bytes.
    images = images or [name for name, feature in features.items() if "binary" in str(getattr(feature, "dtype", ""))]
    labels = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    labels = labels or [name for name in ("label", "labels") if name in features]
    if len(images) != 1 or len(labels) > 1:
        columns = f"{few(images) or 'none'} of images, {few(labels) or 'none'} of labels, among {few(list(features))}"
        raise DataError(f"{title}: columns: {columns}: expected one of images and at most one of labels")
    if not labels:
        return images[0], None, ()
    return images[0], labels[0], tuple(map(str, getattr(features[labels[0]], "names", None) or ()))
