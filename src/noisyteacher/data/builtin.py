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
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisyteacher.data.holdout import partition, per_class
from noisyteacher.data.split import Split, Splits
from noisyteacher.errors import DataError
from noisyteacher.io.files import remove_new_folders_on_error

EMBEDDED = Path(__file__).parent / "embedded"
ROOT_VARIABLE = "NOISYTEACHER_DATA"
DIGITS = tuple(map(str, range(10)))

MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
MNIST_FILES = {
    "train-images-idx3-ubyte": ("f68b3c2dcbeaaa9fbdd348bbdeb94873", "6bbc9ace898e44ae57da46a324031adb"),
    "train-labels-idx1-ubyte": ("d53e105ee54ea40749a09fcbcd1e9432", "a25bea736e30d166cdddb491f175f624"),
    "t10k-images-idx3-ubyte": ("9fb629c4189551a2d022fa330f9573f3", "2646ac647ad5339dbf082846283269ea"),
    "t10k-labels-idx1-ubyte": ("ec29112dd5afa0611ce80d1b7f02629c", "27ae3e4e09519cfbb04c329615203637"),
}
"""Name -> MD5 of the gzipped file, MD5 of its content."""
MAX_IDX_BYTES = 2**26

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
MAX_BATCH_BYTES = 2**26

SVHN_URL = "http://ufldl.stanford.edu/housenumbers/"
SVHN_MD5 = {
    "train": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test": "eb5a983be6a315427106f1b164d9cef3",
    "extra": "a93ce644f1a588dc4d68dda5feec44a7",
}
SVHN_VAL_PER_CLASS = {"train": 400, "extra": 200}
SVHN_NO_EXTRA = "trained without the extra images: not comparable with the paper's SVHN numbers"

UNOFFICIAL = "the files are not the official ones (their md5 differs): not comparable with published {} numbers"


def default_root() -> Path:
    """The folder of the official files: the variable NOISYTEACHER_DATA, or ~/.cache/noisyteacher."""
    folder = os.environ.get(ROOT_VARIABLE)
    return Path(folder).expanduser() if folder else Path.home() / ".cache" / "noisyteacher"


# --- mnist-5k -------------------------------------------------------------------------------------------------------


def load_mnist5k() -> Splits:
    """The embedded 5,000 digits of MNIST's training set: 4,000 / 400 / 600, that is 400 / 40 / 60 of each class, fixed.

    All three splits come from MNIST's training set: a teacher trained on all of MNIST has seen this test split.
    """
    with np.load(EMBEDDED / "mnist-5k.npz", allow_pickle=False) as arrays:
        images, labels = torch.from_numpy(arrays["x"]).unsqueeze(1), torch.from_numpy(arrays["y"]).long()
    test, val, train = partition(labels, [600, 400], 0, "mnist-5k")
    full = Split(images, labels, torch.arange(len(images)), "train", "mnist-5k", DIGITS)
    return Splits("mnist-5k", full.subset(train), full.subset(val, "val"), full.subset(test, "test"), "scale")


# --- MNIST ----------------------------------------------------------------------------------------------------------


def load_mnist(root: Path, *, download: bool = True, verify: bool = True, seed: int = 0) -> Splits:
    """MNIST as 50,000 / 10,000 / 10,000 images `[1, 28, 28]`; validation is a stratified sixth of the official 60,000.

    Source: LeCun, Cortes and Burges; the paper's section on MNIST (no preprocessing: pixels / 255).
    Raises DataError naming the file: missing and not fetched, another MD5 while `verify`, truncated or damaged.
    """
    folder = mnist_folder(root)
    official = True
    tensors: list[Tensor] = []
    for name, (gzipped_md5, md5) in MNIST_FILES.items():
        path = folder / name
        if path.exists() and not (folder / f"{name}.gz").exists():
            matches = check_md5(path, md5, verify)
        else:
            file = OfficialFile(f"{name}.gz", gzipped_md5, f"{MNIST_URL}{name}.gz")
            path, matches = obtain(file, folder, download=download, verify=verify)
        official &= matches
        tensors.append(read_idx(path, 3 if "images" in name else 1))
    images, labels, test_images, test_labels = tensors
    full = Split(images.unsqueeze(1), labels.long(), torch.arange(len(images)), "train", "mnist", DIGITS)
    test_rows = torch.arange(len(test_images))
    test = Split(test_images.unsqueeze(1), test_labels.long(), test_rows, "test", "mnist", DIGITS)
    val_rows, train_rows = partition(labels.long(), [max(1, round(len(labels) / 6))], seed, "mnist")
    note = "" if official else UNOFFICIAL.format("MNIST")
    return Splits("mnist", full.subset(train_rows), full.subset(val_rows, "val"), test, preprocess="scale", note=note)


def mnist_folder(root: Path) -> Path:
    """The folder of the four files, or where they are to be put: torchvision's `MNIST/raw`, or the root itself."""
    folders = (root / "MNIST" / "raw", root)
    return next((folder for folder in folders if not missing_mnist_files(folder)), folders[0])


def missing_mnist_files(folder: Path) -> list[str]:
    """The names of MNIST's files that are not in the folder, gzipped or not."""
    return [name for name in MNIST_FILES if not ((folder / name).exists() or (folder / f"{name}.gz").exists())]


def read_idx(path: Path, dimensions: int) -> Tensor:
    """The uint8 tensor in an idx file, gzipped if its name ends in `.gz`. Raises DataError naming the file."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            data = stream.read(MAX_IDX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: it is truncated or damaged ({error})") from error
    start = 4 + 4 * dimensions
    if len(data) > MAX_IDX_BYTES or len(data) < start or data[:4] != bytes([0, 0, 8, dimensions]):
        raise DataError(f"{path}: not an idx file of bytes in {dimensions} dimension(s) (first bytes {data[:4].hex()})")
    shape = struct.unpack(f">{dimensions}I", data[4:start])
    expected = math.prod(shape)
    if len(data) - start != expected or not expected:
        raise DataError(
            f"{path}: its header says shape {list(shape)}, {expected} bytes; {len(data) - start} follow: "
            "the file is truncated or damaged"
        )
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=start).reshape(shape).copy())


# --- CIFAR-10 -------------------------------------------------------------------------------------------------------


def load_cifar10(root: Path, *, download: bool = True, verify: bool = True, seed: int = 0) -> Splits:
    """CIFAR-10 as 45,000 / 5,000 / 10,000 images `[3, 32, 32]`; validation is a stratified tenth of the 50,000.

    Source: Krizhevsky 2009. The official python batches are read as a folder or still in their tar file. The paper
    trains on the images and their mirror images, less a per-pixel mean; it does not say where its hold-out comes from;
    here it is 500 of each class.
    Raises DataError naming the file: missing and not fetched, another MD5 while `verify`, truncated, damaged, or a
    pickle of anything but an array and a list.
    """
    images: dict[str, list[Tensor]] = {"train": [], "test": []}
    labels: dict[str, list[Tensor]] = {"train": [], "test": []}
    official = True
    for name, description, data, matches in _cifar_batches(root, download, verify):
        pixels, numbers = read_cifar_batch(data, description)
        official &= matches
        role = "test" if name == "test_batch" else "train"
        images[role].append(torch.from_numpy(pixels.copy()))
        labels[role].append(torch.from_numpy(numbers))
    splits = {}
    for role in images:
        pixels_of_role = torch.cat(images[role])
        rows = torch.arange(len(pixels_of_role))
        splits[role] = Split(pixels_of_role, torch.cat(labels[role]), rows, role, "cifar10", CIFAR_CLASSES)
    full = splits["train"]
    val_rows, train_rows = partition(torch.cat(labels["train"]), [max(1, round(len(full) / 10))], seed, "cifar10")
    return Splits(
        "cifar10",
        full.subset(train_rows),
        full.subset(val_rows, "val"),
        splits["test"],
        preprocess="pixel-mean",
        views=("clean", "mirror"),
        note="" if official else UNOFFICIAL.format("CIFAR-10"),
    )


def _cifar_batches(root: Path, download: bool, verify: bool) -> Iterator[tuple[str, str, bytes, bool]]:
    """(name, description for errors, bytes, whether it is the official one) of the six batches in order."""
    folder = next((path for path in (root / CIFAR_FOLDER, root) if (path / "data_batch_1").exists()), None)
    if folder is not None:
        for name, md5 in CIFAR_BATCHES.items():
            path = folder / name
            if not path.exists():
                raise DataError(f"{path}: missing, though other batches are there; unpack {CIFAR_URL} again")
            matches = check_md5(path, md5, verify)
            if path.stat().st_size > MAX_BATCH_BYTES:
                raise DataError(f"{path}: {path.stat().st_size} bytes, more than a CIFAR-10 batch has")
            yield name, str(path), path.read_bytes(), matches
        return
    archive, matches = obtain(OfficialFile(CIFAR_ARCHIVE, CIFAR_MD5, CIFAR_URL), root, download=download, verify=verify)
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for name in CIFAR_BATCHES:
                member = tar.getmember(f"{CIFAR_FOLDER}/{name}")
                stream = tar.extractfile(member) if member.isfile() and member.size <= MAX_BATCH_BYTES else None
                if stream is None:
                    raise DataError(f"{archive}: {member.name} in it is not a regular file of a batch's size")
                yield name, f"{archive}: {name}", stream.read(), matches
    except (tarfile.TarError, OSError, EOFError, zlib.error, KeyError, ValueError) as error:
        raise DataError(f"{archive}: truncated, damaged or without the six batches ({error})") from error


def read_cifar_batch(data: bytes, description: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images uint8 `[N, 3, 32, 32]` and labels int64 `[N]` of a CIFAR-10 python batch; no code in the pickle runs.

    Raises DataError that begins with the description.
    """
    try:
        batch = _BatchUnpickler(BytesIO(data), encoding="bytes").load()
        array, labels = (batch[key.encode()] if key.encode() in batch else batch[key] for key in ("data", "labels"))
        _, shape, dtype, fortran_order, pixels = array.state
        if dtype.arguments[0] not in (b"u1", "u1") or fortran_order or shape[1:] != (3 * 32 * 32,):
            raise ValueError(f"its array is {dtype.arguments[0]!r:.40} {shape!r:.40}, expected uint8 [N, 3072]")
        images = np.frombuffer(pixels, np.uint8).reshape(shape).reshape(-1, 3, 32, 32)
        if not isinstance(labels, list) or len(labels) != len(images) or not labels:
            raise ValueError(f"{len(images)} images and {len(labels)} labels")
    except Exception as error:  # a pickle can lead to any exception
        raise DataError(f"{description}: not a CIFAR-10 batch, or truncated or damaged: {error!s:.200}") from error
    for row, label in enumerate(labels):
        if type(label) is not int or not 0 <= label < len(CIFAR_CLASSES):
            raise DataError(
                f"{description}: label {label!r:.40} of row {row} is out of range 0..{len(CIFAR_CLASSES) - 1}"
            )
    return images, np.array(labels, dtype=np.int64)


class _Recorded:
    """What a name in a batch's pickle becomes: an object that records how it is called and set up, and does nothing."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments, self.state = arguments, ()

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _BatchUnpickler(pickle._Unpickler):
    """Reads the pickle of a uint8 array and a list without importing anything.

    In Python, not C: there a number in the pickle decides how much memory is taken.
    """

    NAMES: dict[tuple[str, str], Any] = {  # noqa: RUF012 - never changed
        ("numpy.core.multiarray", "_reconstruct"): _Recorded,
        ("numpy._core.multiarray", "_reconstruct"): _Recorded,
        ("numpy", "ndarray"): _Recorded,
        ("numpy", "dtype"): _Recorded,
        ("_codecs", "encode"): str.encode,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.NAMES[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}; nothing of it was run") from None


# --- SVHN -----------------------------------------------------------------------------------------------------------


def load_svhn(
    root: Path, *, download: bool = True, verify: bool = True, extra: bool = True, seed: int = 0
) -> Splits:  # fmt: skip
    """SVHN as 598,388 / 6,000 / 26,032 images `[3, 32, 32]`: the paper's split (Sermanet et al. 2012).

    Validation is 400 of each class of train and 200 of each class of extra (a fifth of a class with fewer than five
    times as many); the rest of both is for training. `extra=False` does without the 531,131 extra images: 69,257 /
    4,000 / 26,032. Label 10 of the files is the digit 0. Needs about 4 GB of memory with extra.
    Raises DataError naming the file: missing and not fetched, another MD5 while `verify`, truncated or damaged.
    """
    paths, official = {}, True
    for part in ("train", "test", *(("extra",) if extra else ())):
        name = f"{part}_32x32.mat"
        try:
            file = OfficialFile(name, SVHN_MD5[part], f"{SVHN_URL}{name}")
            paths[part], matches = obtain(file, root, download=download, verify=verify)
        except DataError as error:
            hint = "; extra=False (fewer training images) does without this file" if part == "extra" else ""
            raise DataError(f"{error}{hint}") from error
        official &= matches
    images, labels, val_rows, train_rows, start = [], [], [], [], 0
    for part in [part for part in ("train", "extra") if part in paths]:
        pixels, numbers = _read_svhn(paths[part])
        val, train = per_class(numbers, SVHN_VAL_PER_CLASS[part], 0.2, seed, "svhn", part)
        images.append(pixels)
        labels.append(numbers)
        val_rows.append(val + start)
        train_rows.append(train + start)
        start += len(numbers)
    full = Split(torch.cat(images), torch.cat(labels), torch.arange(start), "train", "svhn", DIGITS)
    test_images, test_labels = _read_svhn(paths["test"])
    notes = ("" if official else UNOFFICIAL.format("SVHN") + ".", "" if extra else SVHN_NO_EXTRA)
    return Splits(
        "svhn",
        full.subset(torch.cat(train_rows)),
        full.subset(torch.cat(val_rows), "val"),
        Split(test_images, test_labels, torch.arange(len(test_images)), "test", "svhn", DIGITS),
        preprocess="local-contrast",
        note=" ".join(filter(None, notes)),
    )


def _read_svhn(path: Path) -> tuple[Tensor, Tensor]:
    """Images uint8 `[N, 3, 32, 32]` and labels int64 `[N]` in 0..9 of a .mat file. Raises DataError naming it."""
    from scipy.io import loadmat

    try:
        content = loadmat(os.fspath(path), variable_names=["X", "y"])
    except Exception as error:  # scipy raises whatever a damaged file leads to
        raise DataError(f"{path}: not a readable .mat file ({error}): it is truncated or damaged") from error
    if "X" not in content or "y" not in content:
        raise DataError(f"{path}: {'X' if 'X' not in content else 'y'} is missing in it")
    pixels, labels = content["X"], content["y"]
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[:3] != (32, 32, 3):
        raise DataError(f"{path}: X is {pixels.dtype} {list(pixels.shape)}; expected uint8 [32, 32, 3, N]")
    if labels.size != pixels.shape[3]:
        raise DataError(f"{path}: y is {labels.dtype} {list(labels.shape)}; expected [{pixels.shape[3]}, 1]")
    labels = labels.reshape(-1)
    wrong = np.flatnonzero((labels != np.floor(labels)) | (labels < 1) | (labels > 10))
    if len(wrong):
        raise DataError(
            f"{path}: label {labels[wrong[0]]} of row {wrong[0]} is out of range; expected digits 1..10, 10 meaning 0"
        )
    images = np.ascontiguousarray(pixels.transpose(3, 2, 0, 1))
    return torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64) % 10)


# --- official files -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OfficialFile:
    """One published file: its name, its MD5 and its address."""

    name: str
    md5: str
    url: str


def check_md5(path: Path, md5: str, verify: bool) -> bool:
    """Whether the file has this MD5. Raises DataError naming the file if not and `verify` is set."""
    try:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    if digest != md5 and verify:
        raise DataError(
            f"{path}: md5 {digest}, the official file has {md5}: it is truncated, damaged or not the official one; "
            "delete it to have it fetched again, or, if you know that it differs, pass --set data.verify=false (in "
            "Python verify=False)"
        )
    return digest == md5


def obtain(file: OfficialFile, folder: Path, *, download: bool = True, verify: bool = True) -> tuple[Path, bool]:
    """(path, whether it is the official one) of the file in the folder, fetched into it first when it is missing.

    A file gets its name once its MD5 matches, so a broken transfer leaves nothing. Raises DataError naming the URL, the
    path and what to do when the file is missing and cannot be fetched.
    """
    path = folder / file.name
    if not path.exists():
        if not download:
            raise DataError(
                f"{path}: missing, and download=False; fetch {file.url} and put it there, or name another root"
            )
        import pooch

        try:
            with remove_new_folders_on_error(folder):
                pooch.retrieve(file.url, known_hash=f"md5:{file.md5}", fname=path.name, path=folder)
        except Exception as error:  # requests, urllib3, ssl, sockets, hashes and disks: each has its own family
            reason = str(error).splitlines()[0][:200] if str(error) else ""
            raise DataError(
                f"{path}: missing, and it could not be fetched from {file.url} ({type(error).__name__}: {reason}). "
                f"Without a network, fetch it elsewhere, put it at {path} and try again, or use the embedded data set "
                "'mnist-5k'"
            ) from error
    return path, check_md5(path, file.md5, verify)


LOADERS: dict[str, Callable[..., Splits]] = {"mnist": load_mnist, "cifar10": load_cifar10, "svhn": load_svhn}
DATASETS = ("mnist-5k", *LOADERS)
"""The data sets known by name."""


def datasets_here(root: str | os.PathLike[str] | None = None) -> list[dict[str, Any]]:
    """A record for each known name: `name`, `here` (yes, no), `files` (where they are, or what is missing).

    Looks for the files under `root` (by default where `load_data` looks); `data check` reads them.
    """
    base = Path(root).expanduser() if root is not None else default_root()
    records = [{"name": "mnist-5k", "here": "yes", "files": "comes with the package"}]
    for name in LOADERS:
        folder, missing = _missing_files(name, base)
        files = f"missing in {folder}: {', '.join(missing)} (fetched at first use)" if missing else str(folder)
        records.append({"name": name, "here": "no" if missing else "yes", "files": files})
    return records


def _missing_files(name: str, root: Path) -> tuple[Path, list[str]]:
    """The data set's folder and the files it lacks."""
    if name == "mnist":
        folder = mnist_folder(root)
        return folder, [f"{file}.gz" for file in missing_mnist_files(folder)]
    if name == "svhn":
        return root, [f"{part}_32x32.mat" for part in SVHN_MD5 if not (root / f"{part}_32x32.mat").exists()]
    folder = root / CIFAR_FOLDER
    if (root / CIFAR_ARCHIVE).exists() or not folder.is_dir():
        return root, [] if (root / CIFAR_ARCHIVE).exists() else [CIFAR_ARCHIVE]
    return folder, [batch for batch in CIFAR_BATCHES if not (folder / batch).exists()]
