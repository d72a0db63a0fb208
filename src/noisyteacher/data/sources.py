"""`load_data`: one name, path or object in, three splits out."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from noisyteacher.data.arrays import load_npz
from noisyteacher.data.cifar import load_cifar10
from noisyteacher.data.folder import load_folder
from noisyteacher.data.holdout import partition
from noisyteacher.data.mnist import load_mnist
from noisyteacher.data.npz import MAX_BYTES, read_npz
from noisyteacher.data.objects import load_object
from noisyteacher.data.packed import is_packed, load_packed
from noisyteacher.data.split import Split, Splits
from noisyteacher.data.svhn import load_svhn
from noisyteacher.errors import DataError, DataWarning, UsageError
from noisyteacher.text import unknown_name

EMBEDDED = Path(__file__).parent / "embedded"
ROOT_VARIABLE = "NOISYTEACHER_DATA"


def default_root() -> Path:
    """Where data sets lie unless told: the folder in the variable NOISYTEACHER_DATA, or ~/.cache/noisyteacher."""
    given = os.environ.get(ROOT_VARIABLE)
    return Path(given).expanduser() if given else Path.home() / ".cache" / "noisyteacher"


def load_mnist5k() -> Splits:
    """The embedded 5,000 digits of MNIST's training set: 4,000 / 400 / 600, that is 400 / 40 / 60 of each class, fixed.

    All three parts come from MNIST's TRAINING set: a teacher that was trained on all of MNIST has seen this test split.
    """
    arrays = read_npz(EMBEDDED / "mnist-5k.npz", ("x", "y"))
    images = torch.from_numpy(arrays["x"]).unsqueeze(1)
    labels = torch.from_numpy(arrays["y"]).long()
    test, val, train = partition(labels, [600, 400], 0, "mnist-5k")
    whole = Split(images, labels, torch.arange(len(images)), "train", "mnist-5k", tuple(map(str, range(10))))
    return Splits("mnist-5k", whole.subset(train), whole.subset(val, "val"), whole.subset(test, "test"), "scale")


DATASETS: dict[str, Callable[..., Splits]] = {
    "mnist-5k": load_mnist5k,
    "mnist": load_mnist,
    "cifar10": load_cifar10,
    "svhn": load_svhn,
}


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
    grey: bool = False,
    classes: int | Sequence[str] | None = None,
    max_bytes: int = MAX_BYTES,
) -> Splits:
    """The data set as Splits of train, val and, where there is one, test; uint8 `[N, C, H, W]`, labels int64 `[N]`.

    source: `mnist-5k` (embedded), `mnist`, `cifar10`, `svhn` (the official files); a `.npz` file (see `load_npz`); a
        folder of classes (see `load_folder`), or one that `pack_data` made, whose images stay on the disk; a dataset
        object, a dict or a tuple of them (see `load_object`); Splits.
    root: where the official files lie, as torchvision lays them out, or are to be put; NOISYTEACHER_DATA or
        ~/.cache/noisyteacher unless given. download: fetch what is missing. verify: refuse files that are not the
        official ones by md5 (False reads them all the same and says so in `.note`), and packed images whose checksums
        do not hold (False leaves the checksums unread). The first two matter to the official sets alone.
    seed: of the draw that holds validation (and test) rows out where the source has none of its own; it has nothing to
        do with a run's seed, and runs to be compared must share it.
    limit: at most so many rows of each split, each class in proportion; for trying things out. train_limit: the same of
        the training split alone.
    extra: svhn alone; False leaves its 531,131 extra images out. size, grey: folders alone; resize, and one channel.
    classes: folders of images without class folders alone; the number or the names of the classes.
    max_bytes: refuse a file, folder or object that takes more memory (4 GiB unless given).
    Raises UnknownNameError with the nearest name, UsageError for an option that has no effect on this source,
    DataError naming the file and what to do. Warns (DataWarning) of files in a folder that are not read as images.
    """
    named = source if isinstance(source, str) and source in DATASETS else None
    path = _path_of(source) if named is None else None
    packed = path is not None and is_packed(path)
    is_folder = path is not None and not packed and os.path.isdir(path)
    _refuse("size", size is not None and not is_folder, "a folder of images", source)
    _refuse("grey", grey and not is_folder, "a folder of images", source)
    _refuse("classes", classes is not None and not is_folder, "a folder of images without class folders", source)
    _refuse("extra", not extra and named != "svhn", "'svhn'", source)
    fixed = named == "mnist-5k" or isinstance(source, Splits)
    _refuse("seed", seed != 0 and fixed, "sources without a validation split of their own", source)
    for name, value in (("limit", limit), ("train_limit", train_limit)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise UsageError(f"{name}={value!r}: expected a whole number of rows, at least 1, or None for all")
    if named == "mnist-5k":
        splits = load_mnist5k()
    elif named is not None:
        place = Path(root).expanduser() if root is not None else default_root()
        options = {"extra": extra} if named == "svhn" else {}
        splits = DATASETS[named](place, download=download, verify=verify, seed=seed, **options)
    elif packed and path is not None:
        splits = load_packed(path, seed=seed, verify=verify)
    elif is_folder and path is not None:
        splits = load_folder(path, size=size, grey=grey, classes=classes, seed=seed, max_bytes=max_bytes)
    elif path is not None:
        splits = load_npz(path, seed=seed, max_bytes=max_bytes)
    elif isinstance(source, Splits):
        splits = source
    else:
        splits = load_object(source, seed=seed, max_bytes=max_bytes)
    if path is not None and splits.note:
        warnings.warn(f"{path}: {splits.note}", DataWarning, stacklevel=2)
    if limit is not None:
        test = None if splits.test is None else _limited(splits.test, limit)
        splits = replace(splits, train=_limited(splits.train, limit), val=_limited(splits.val, limit), test=test)
    return splits if train_limit is None else replace(splits, train=_limited(splits.train, train_limit))


def _limited(split: Split, limit: int) -> Split:
    """At most `limit` rows of the split, every class in proportion; the same rows every time."""
    if limit >= len(split):
        return split
    if split.labels is None:
        return split.take(limit)
    return split.subset(partition(split.labels, [limit], 0, "limit", split.role)[0])


def _path_of(source: Any) -> Path | None:
    """The path a source means, or None for an object. Raises UnknownNameError, or DataError when nothing is there."""
    if not isinstance(source, (str, os.PathLike)):
        return None
    if not os.fspath(source).strip():
        raise UsageError("the data set's name is empty: name one of those known, a .npz file or a folder")
    path = Path(os.fspath(source)).expanduser()
    if os.path.isdir(path) or (os.path.isfile(path) and path.suffix == ".npz"):
        return path
    if os.path.exists(path):
        raise DataError(f"{path}: neither a folder nor a .npz file; see load_data for what can be read")
    if isinstance(source, str) and path.suffix != ".npz" and len(path.parts) == 1:
        raise unknown_name("data set", source, [*DATASETS, "a .npz file", "a folder"])
    raise DataError(f"{path}: no such file or folder")


def _refuse(option: str, wrong: bool, meant_for: str, source: Any) -> None:
    if wrong:
        shown = repr(source) if isinstance(source, (str, os.PathLike)) else f"a {type(source).__name__}"
        raise UsageError(f"{option} has no effect on {shown}: it is meant for {meant_for}; leave it out")
