"""`load_data`: one name, path or object in, three splits out."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from noisyteacher.data.builtin import DATASETS, LOADERS, default_root, load_mnist5k
from noisyteacher.data.folders import folder_source
from noisyteacher.data.hf import is_saved, parquet_files
from noisyteacher.data.holdout import partition
from noisyteacher.data.images import Resize
from noisyteacher.data.packed import is_packed, load_packed
from noisyteacher.data.sources import (
    MAX_BYTES,
    check_npz_labels,
    choose_class_names,
    load_object,
    load_source,
    npz_source,
)
from noisyteacher.data.split import Split, Splits
from noisyteacher.errors import DataError, DataWarning, UsageError
from noisyteacher.text import unknown_name

CLASSES_OPTION = '--set data.classes=10 or --set \'data.classes=["cat","dog"]\''


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

    source: `mnist-5k` (embedded), `mnist`, `cifar10`, `svhn` (the official files); a `.npz` file (`sources.npz_source`;
        `x_val` and `x_test` need labels, `x_train` if there is no `x_val`); a folder of classes (`load_folder`), or one
        that `pack_data` wrote, whose images stay on disk; a dataset object, a dict or a tuple of them
        (`sources.load_object`); Splits.
    root: where the official files are, as torchvision lays them out, or are to be put; by default NOISYTEACHER_DATA or
        ~/.cache/noisyteacher. download: fetch what is missing. verify: refuse files that are not the official ones by
        MD5 (False reads them all the same and says so in `.note`), and packed images whose checksum differs (False
        leaves it unread). The first two matter to the official sets alone.
    seed: of the draw that holds validation (and test) rows out where the source has none of its own; it has nothing to
        do with a run's seed, and runs to be compared must share it.
    limit: at most so many rows of each split, each class in proportion; for trying things out. train_limit: the same of
        the training split alone.
    extra: svhn alone; False leaves its 531,131 extra images out. size, grey: folders alone; resize, and one channel.
    classes: folders of images without class folders alone; the number or the names of the classes.
    max_bytes: refuse a file, folder or object that takes more memory (4 GiB by default).
    Raises UnknownNameError with the nearest name, UsageError for an option that has no effect on this source,
    DataError naming the file and what to do. Warns (DataWarning) of files in a folder that are not read as images.
    """
    name = source if isinstance(source, str) and source in DATASETS else None
    path = _path_of(source) if name is None else None
    packed = path is not None and is_packed(path)
    folder = path is not None and not packed and os.path.isdir(path)
    _refuse("size", size is not None and not folder, "a folder of images", source)
    _refuse("grey", grey and not folder, "a folder of images", source)
    _refuse("classes", classes is not None and not folder, "a folder of images without class folders", source)
    _refuse("extra", not extra and name != "svhn", "'svhn'", source)
    fixed = name == "mnist-5k" or isinstance(source, Splits)
    _refuse("seed", seed != 0 and fixed, "sources without a validation split of their own", source)
    for option, value in (("limit", limit), ("train_limit", train_limit)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise UsageError(f"{option}={value!r}: expected a whole number of rows, at least 1, or None for all")
    if name == "mnist-5k":
        splits = load_mnist5k()
    elif name is not None:
        base = Path(root).expanduser() if root is not None else default_root()
        options = {"extra": extra} if name == "svhn" else {}
        splits = LOADERS[name](base, download=download, verify=verify, seed=seed, **options)
    elif path is None:
        splits = source if isinstance(source, Splits) else load_object(source, seed=seed, max_bytes=max_bytes)
    elif packed:
        splits = load_packed(path, seed=seed, verify=verify)
    elif folder:
        splits = load_folder(path, size=size, grey=grey, classes=classes, seed=seed, max_bytes=max_bytes)
    else:
        arrays = npz_source(path, max_bytes)
        check_npz_labels(arrays, path)
        splits = load_source(arrays, arrays.class_names, Resize(), seed=seed, max_bytes=max_bytes)
    if path is not None and splits.note:
        warnings.warn(f"{path}: {splits.note}", DataWarning, stacklevel=2)
    if limit is not None:
        test = None if splits.test is None else _limited(splits.test, limit)
        splits = replace(splits, train=_limited(splits.train, limit), val=_limited(splits.val, limit), test=test)
    return splits if train_limit is None else replace(splits, train=_limited(splits.train, train_limit))


def load_folder(
    path: Path,
    *,
    size: int | tuple[int, int] | None = None,
    grey: bool = False,
    classes: int | Sequence[str] | None = None,
    seed: int = 0,
    max_bytes: int = MAX_BYTES,
) -> Splits:
    """The splits in `PATH/{train,val,test}/CLASS/**/*.png`, or in `PATH/CLASS/**/*.png` cut 80/10/10 stratified.

    Split folders may have other usual names (`folders.SPLIT_FOLDERS`) and any case; a part without class folders is
    unlabelled, and `classes` names the classes, or says how many, where every part is. Without `val` a stratified tenth
    of train is held out; without `test` there is none. Images become RGB, or one grey channel with `grey`; transparency
    is dropped, animations give their first frame, and the orientation tag of a photograph is applied. `size` (pixels,
    or (height, width)) resizes every image to exactly that; it is needed where sizes differ. Links are followed. Files
    that are not images are skipped and counted in the `note` of the result.
    Raises DataError naming the file or folder: splits mixed with classes, an empty class, a class that train lacks, an
    image that cannot be decoded, sizes that differ, more than `max_bytes` once decoded.
    """
    root = Path(os.path.abspath(path))
    if is_saved(root) or parquet_files(root):
        raise UsageError(
            f"{path}: a data set of Hugging Face, which is packed before it is used: noisyteacher data pack {path} "
            "OUT (in Python pack_data), then give OUT"
        )
    resize = Resize.of(size, grey)
    source = folder_source(root, follow_links=True)
    class_names = choose_class_names(source, classes, CLASSES_OPTION)
    # Errors name images by their whole path.
    parts = tuple(replace(part, names=[os.path.join(root, name) for name in part.names]) for part in source.parts)
    return load_source(replace(source, parts=parts), class_names, resize, seed=seed, max_bytes=max_bytes)


def _limited(split: Split, limit: int) -> Split:
    """At most `limit` rows of the split, every class in proportion; the same rows every time."""
    if limit >= len(split):
        return split
    if split.labels is None:
        return split.take(limit)
    return split.subset(partition(split.labels, [limit], 0, "limit", split.role)[0])


def _path_of(source: Any) -> Path | None:
    """The path of a source, or None for an object. Raises UnknownNameError, or DataError when nothing is there."""
    if not isinstance(source, (str, os.PathLike)):
        return None
    if not os.fspath(source).strip():
        raise UsageError("the data set's name is empty: give a name, a .npz file or a folder")
    path = Path(os.fspath(source)).expanduser()
    if os.path.isdir(path) or (os.path.isfile(path) and path.suffix == ".npz"):
        return path
    if os.path.exists(path):
        raise DataError(f"{path}: neither a folder nor a .npz file; see load_data for what can be read")
    if isinstance(source, str) and path.suffix != ".npz" and len(path.parts) == 1:
        raise unknown_name("data set", source, [*DATASETS, "a .npz file", "a folder"])
    raise DataError(f"{path}: no such file or folder")


def _refuse(option: str, useless: bool, purpose: str, source: Any) -> None:
    if useless:
        title = repr(source) if isinstance(source, (str, os.PathLike)) else f"a {type(source).__name__}"
        raise UsageError(f"{option} has no effect on {title}: it is meant for {purpose}; leave it out")
