"""The data sets known by name: `mnist-5k`, which comes with the package, and the official MNIST, CIFAR-10 and SVHN.

Official files lie under a root folder as torchvision lays them out. Their MD5 is compared before anything in them is
parsed; missing ones are fetched.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import pickle
import reprlib
import struct
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from noisyteacher.data.holdout import make_splits, partition, per_class
from noisyteacher.data.split import Split, Splits
from noisyteacher.errors import DataError
from noisyteacher.io.files import StrPath, remove_new_folders_on_error
from noisyteacher.io.pickles import Recorded, Unpickler

EMBEDDED = Path(__file__).parent / "embedded"
DATASETS = ("mnist-5k", "mnist", "cifar10", "svhn")
"""The data sets known by name."""
DIGITS = tuple(map(str, range(10)))
MAX_FILE_BYTES = 2**26
"""Of an MNIST file or a CIFAR batch, unpacked."""

MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
MNIST_FILES = {
    "train-images-idx3-ubyte": ("f68b3c2dcbeaaa9fbdd348bbdeb94873", "6bbc9ace898e44ae57da46a324031adb"),
    "train-labels-idx1-ubyte": ("d53e105ee54ea40749a09fcbcd1e9432", "a25bea736e30d166cdddb491f175f624"),
    "t10k-images-idx3-ubyte": ("9fb629c4189551a2d022fa330f9573f3", "2646ac647ad5339dbf082846283269ea"),
    "t10k-labels-idx1-ubyte": ("ec29112dd5afa0611ce80d1b7f02629c", "27ae3e4e09519cfbb04c329615203637"),
}
"""Name -> MD5 of the gzipped file, MD5 of its content."""

CIFAR_FOLDER = "cifar-10-batches-py"
CIFAR_ARCHIVE = "cifar-10-python.tar.gz"
CIFAR_URL = f"https://www.cs.toronto.edu/~kriz/{CIFAR_ARCHIVE}"
CIFAR_MD5 = "c58f30108f718f92721af3b95e74349a"
CIFAR_BATCHES = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

SVHN_URL = "http://ufldl.stanford.edu/housenumbers/"
SVHN_MD5 = {
    "train": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "extra": "a93ce644f1a588dc4d68dda5feec44a7",
    "test": "eb5a983be6a315427106f1b164d9cef3",
}
SVHN_MOST = 531_131
"""Images of the largest part, extra."""
MAT_MATRIX, MAT_COMPRESSED, MAX_VARIABLES = 14, 15, 8
SVHN_VAL_PER_CLASS = {"train": 400, "extra": 200}


def default_root(root: StrPath | None = None) -> Path:
    """The folder of the official files: `root`, or the variable NOISYTEACHER_DATA, or ~/.cache/noisyteacher."""
    folder = os.environ.get("NOISYTEACHER_DATA") if root is None else root
    return Path(folder).expanduser() if folder else Path.home() / ".cache" / "noisyteacher"


def load_mnist5k() -> Splits:
    """The embedded 5,000 digits of MNIST's training set: 4,000 / 400 / 600, that is 400 / 40 / 60 of each class, fixed.

    All three splits come from MNIST's training set: a teacher trained on all of MNIST has seen this test split.
    """
    with np.load(EMBEDDED / "mnist-5k.npz", allow_pickle=False) as arrays:
        images, labels = torch.from_numpy(arrays["x"]).unsqueeze(1), torch.from_numpy(arrays["y"]).long()
    test, val, train = partition(labels, [600, 400], 0, "mnist-5k")
    full = Split(images, labels, torch.arange(len(images)), "train", "mnist-5k", DIGITS)
    return Splits("mnist-5k", full.subset(train), full.subset(val, "val"), full.subset(test, "test"), "scale")


def load_official(
    name: str, root: Path, *, download: bool = True, verify: bool = True, seed: int = 0, extra: bool = True
) -> Splits:
    """`mnist`, `cifar10` or `svhn` from the official files under the root.

    mnist: 50,000 / 10,000 / 10,000 images `[1, 28, 28]`; validation is a stratified sixth of the official 60,000. The
        paper does no preprocessing: pixels / 255.
    cifar10: 45,000 / 5,000 / 10,000 images `[3, 32, 32]`; validation is a stratified tenth of the 50,000. The paper
        trains on the images and their mirror images, less a per-pixel mean.
    svhn: 598,388 / 6,000 / 26,032 images `[3, 32, 32]`, the paper's split (Sermanet et al. 2012): validation is 400 of
        each class of train and 200 of each class of extra (at most a fifth of a class). Without the `extra` images
        69,257 / 4,000 / 26,032. Needs about 4 GB of memory with extra.
    Raises DataError naming the file: missing and not fetched, another MD5 while `verify`, truncated or damaged.
    """
    files = _official_files(name, root, extra)
    official = [file.obtain(download, verify) for file in files]
    paths = [file.path for file in files]
    if name == "mnist":
        images, labels, test_images, test_labels = (read_idx(path, 3 if "images" in path.name else 1) for path in paths)
        content = {"train": (images[:, None], labels.long()), "test": (test_images[:, None], test_labels.long())}
        splits = make_splits(name, content, DIGITS, seed, share=6, purpose=name)
        splits = replace(splits, preprocess="scale")
    elif name == "cifar10":
        batches = [read_cifar_batch(data, title) for title, data in _cifar_batches(paths)]
        images, labels = map(torch.cat, zip(*batches[:-1], strict=True))
        content = {"train": (images, labels), "test": batches[-1]}
        splits = make_splits(name, content, CIFAR_CLASSES, seed, purpose=name)
        splits = replace(splits, preprocess="pixel-mean", views=("clean", "mirror"))
    else:
        splits = _svhn_splits(paths, seed)
    notes = [] if extra else ["trained without the extra images: not comparable with the paper's SVHN numbers"]
    if not all(official):
        notes.append("the files are not the official ones (their md5 differs): not comparable with published numbers")
    return replace(splits, note="; ".join(notes))


@dataclass(frozen=True)
class OfficialFile:
    """A published file. url: where it is fetched from; empty for a part of an archive."""

    path: Path
    md5: str
    url: str
    hint: str = "use the embedded data set 'mnist-5k'"

    def obtain(self, download: bool = True, verify: bool = True) -> bool:
        """Fetch the file if it is missing; returns whether it is the official one.

        It gets its name once its MD5 matches. Raises DataError naming path, URL and what to do when it cannot be
        fetched, when it is there and cannot be read, and when it has another MD5 and `verify` is set.
        """
        try:
            if download and self.url and not self.path.exists():
                import pooch

                with remove_new_folders_on_error(self.path.parent):
                    pooch.retrieve(self.url, f"md5:{self.md5}", fname=self.path.name, path=self.path.parent)
            with self.path.open("rb") as stream:
                digest = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        except Exception as error:  # requests, urllib3, ssl, sockets, hashes and disks: each has its own family
            reason = f"{type(error).__name__}: {error!s:.99}"
            if os.path.exists(self.path):
                problem = f"cannot be read ({reason}): make it a file that you may read, or name another root"
                raise DataError(f"{self.path}: {problem}") from error
            raise DataError(
                f"{self.path}: missing, and could not be fetched ({reason}; download={download}): fetch "
                f"{self.url or CIFAR_URL} and put it there, name another root, or {self.hint}"
            ) from error
        if digest != self.md5 and verify:
            remedy = "delete it to have it fetched again, or pass --set data.verify=false (in Python verify=False)"
            raise DataError(f"{self.path}: md5 {digest}, the official file has {self.md5}: {remedy}")
        return digest == self.md5


def _official_files(name: str, root: Path, extra: bool = True) -> list[OfficialFile]:
    """The files of a data set in the order in which they are read: where they are, or are to be put."""
    if name == "svhn":
        hint = "use fewer training images by extra=False"
        parts = {part: md5 for part, md5 in SVHN_MD5.items() if extra or part != "extra"}
        names = {f"{part}_32x32.mat": md5 for part, md5 in parts.items()}
        return [OfficialFile(root / file, md5, f"{SVHN_URL}{file}", hint) for file, md5 in names.items()]
    if name == "cifar10":
        folder = root if (root / "data_batch_1").exists() else root / CIFAR_FOLDER
        if (folder / "data_batch_1").exists():
            return [OfficialFile(folder / batch, md5, "") for batch, md5 in CIFAR_BATCHES.items()]
        return [OfficialFile(root / CIFAR_ARCHIVE, CIFAR_MD5, CIFAR_URL)]
    files = []
    for file, (gzipped_md5, md5) in MNIST_FILES.items():
        folder = root if (root / file).exists() or (root / f"{file}.gz").exists() else root / "MNIST" / "raw"
        if (folder / file).exists() and not (folder / f"{file}.gz").exists():
            files.append(OfficialFile(folder / file, md5, f"{MNIST_URL}{file}"))
        else:
            files.append(OfficialFile(folder / f"{file}.gz", gzipped_md5, f"{MNIST_URL}{file}.gz"))
    return files


def datasets_here(root: StrPath | None = None) -> list[dict[str, str]]:
    """For each known name: `name`, `here` (yes, no), `files` (where they are under `root`, or what is missing)."""
    records = [{"name": "mnist-5k", "here": "yes", "files": "comes with the package"}]
    for name in DATASETS[1:]:
        files = _official_files(name, default_root(root))
        folder, missing = files[0].path.parent, ", ".join(file.path.name for file in files if not file.path.exists())
        text = f"missing in {folder}: {missing} (fetched at first use)" if missing else str(folder)
        records.append({"name": name, "here": "no" if missing else "yes", "files": text})
    return records


def read_idx(path: Path, dimensions: int) -> Tensor:
    """The uint8 tensor in an idx file, gzipped if its name ends in `.gz`. Raises DataError naming the file."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: it is truncated or damaged ({error})") from error
    start = 4 + 4 * dimensions
    if len(data) > MAX_FILE_BYTES or len(data) < start or data[:4] != bytes([0, 0, 8, dimensions]):
        raise DataError(f"{path}: not an idx file of bytes in {dimensions} dimension(s) (first bytes {data[:4].hex()})")
    shape = struct.unpack(f">{dimensions}I", data[4:start])
    expected = math.prod(shape)
    if len(data) - start != expected or not expected:
        raise DataError(f"{path}: damaged: shape {list(shape)}, {expected} bytes; {len(data) - start} follow")
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=start).reshape(shape).copy())


def _cifar_batches(paths: list[Path]) -> Iterator[tuple[str, bytes]]:
    """(title for errors, bytes) of the six batches in order, from their files or from the tar file."""
    if len(paths) > 1:
        yield from ((str(path), path.read_bytes()) for path in paths)
        return
    (archive,) = paths
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for name in CIFAR_BATCHES:
                member = tar.getmember(f"{CIFAR_FOLDER}/{name}")
                stream = tar.extractfile(member) if member.isfile() and member.size <= MAX_FILE_BYTES else None
                if stream is None:
                    raise DataError(f"{archive}: {member.name} in it is not a regular file of a batch's size")
                yield f"{archive}: {name}", stream.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error, KeyError, ValueError) as error:
        raise DataError(f"{archive}: truncated, damaged or without the six batches ({error})") from error


def read_cifar_batch(data: bytes, title: str) -> tuple[Tensor, Tensor]:
    """Images uint8 `[N, 3, 32, 32]` and labels int64 `[N]` of a CIFAR-10 python batch; no code in the pickle runs.

    Raises DataError that begins with the title.
    """
    try:
        batch = _BatchUnpickler(data).load()
        array, labels = (batch[key.encode()] if key.encode() in batch else batch[key] for key in ("data", "labels"))
        _, shape, dtype, fortran_order, pixels = array.state
        if dtype.arguments[0] not in (b"u1", "u1") or fortran_order or shape[1:] != (3 * 32 * 32,):
            raise ValueError(f"its array is {_short(dtype.arguments[0])} {_short(shape)}, expected uint8 [N, 3072]")
        images = np.frombuffer(pixels, np.uint8).reshape(shape).reshape(-1, 3, 32, 32)
        if not isinstance(labels, list) or len(labels) != len(images) or not labels:
            raise ValueError(f"{len(images)} images and {len(labels)} labels")
        for row, label in enumerate(labels):
            if type(label) is not int or not 0 <= label < len(CIFAR_CLASSES):
                raise ValueError(f"label {_short(label)} of row {row} is out of range 0..9")
    except Exception as error:  # a pickle can lead to any exception
        raise DataError(f"{title}: not a CIFAR-10 batch, or truncated or damaged: {error!s:.200}") from error
    return torch.from_numpy(images.copy()), torch.tensor(labels)


def _short(value: object) -> str:
    """`repr` of the first parts of what a file holds, cut to 40 characters."""
    return reprlib.repr(value)[:40]


class _BatchUnpickler(Unpickler):
    """Reads the pickle of a uint8 array and a list without importing anything."""

    NAMES: dict[tuple[str, str], Any] = {  # noqa: RUF012 - never changed
        ("numpy.core.multiarray", "_reconstruct"): Recorded,
        ("numpy._core.multiarray", "_reconstruct"): Recorded,
        ("numpy", "ndarray"): Recorded,
        ("numpy", "dtype"): Recorded,
        ("_codecs", "encode"): str.encode,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.NAMES[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}; nothing of it was run") from None


def _svhn_splits(paths: list[Path], seed: int) -> Splits:
    """The splits of train, (extra) and test; label 10 of the files is the digit 0."""
    *train_parts, (test_images, test_labels) = map(_read_mat, paths)
    val_rows, train_rows, start = [], [], 0
    for part, (_, labels) in zip(SVHN_VAL_PER_CLASS, train_parts, strict=False):
        val, train = per_class(labels, SVHN_VAL_PER_CLASS[part], seed, "svhn", part)
        val_rows.append(val + start)
        train_rows.append(train + start)
        start += len(labels)
    images, labels = map(torch.cat, zip(*train_parts, strict=True))
    full = Split(images, labels, torch.arange(start), "train", "svhn", DIGITS)
    test = Split(test_images, test_labels, torch.arange(len(test_images)), "test", "svhn", DIGITS)
    val_split = full.subset(torch.cat(val_rows), "val")
    return Splits("svhn", full.subset(torch.cat(train_rows)), val_split, test, "local-contrast")


def _check_mat_size(path: Path) -> None:
    """Raises ValueError for a MATLAB 5 file with other content than a few variables, or with more images than SVHN."""
    from scipy.io import whosmat

    with path.open("rb") as stream:
        order, end, variables = (">" if stream.read(128)[126:] == b"MI" else "<"), path.stat().st_size, 0
        while (begin := stream.tell()) < end:
            kind, size = struct.unpack(f"{order}II", stream.read(8))
            variables += 1
            if kind not in (MAT_MATRIX, MAT_COMPRESSED) or begin + 8 + size > end or variables > MAX_VARIABLES:
                raise ValueError(f"no variable at byte {begin} of {end}")
            stream.seek(size, os.SEEK_CUR)
    for name, shape, _ in whosmat(os.fspath(path)):
        if math.prod(shape) > 3072 * SVHN_MOST:
            raise ValueError(f"{name} is {list(shape)}: SVHN's largest part has {SVHN_MOST:,} images")


def _read_mat(path: Path) -> tuple[Tensor, Tensor]:
    """Images uint8 `[N, 3, 32, 32]` and labels int64 `[N]` in 0..9 of a .mat file. Raises DataError naming it."""
    from scipy.io import loadmat

    try:
        _check_mat_size(path)
        content = loadmat(os.fspath(path), variable_names=["X", "y"])
        pixels, labels = content["X"], content["y"]
    except Exception as error:  # scipy raises whatever a damaged file leads to
        raise DataError(f"{path}: not a readable .mat file of X and y ({error}): truncated or damaged") from error
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[:3] != (32, 32, 3):
        raise DataError(f"{path}: X is {pixels.dtype} {list(pixels.shape)}; expected uint8 [32, 32, 3, N]")
    if labels.size != pixels.shape[3] or (labels != np.floor(labels)).any():
        raise DataError(f"{path}: y is {labels.dtype} {list(labels.shape)}; expected {pixels.shape[3]} whole numbers")
    digits = labels.reshape(-1).astype(np.int64)
    if not ((digits >= 1) & (digits <= 10)).all():
        raise DataError(f"{path}: labels {digits.min()}..{digits.max()}: expected digits 1..10, 10 meaning 0")
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(3, 2, 0, 1))), torch.from_numpy(digits % 10)
