"""MNIST: the four official idx files, gzipped or not, under `root/MNIST/raw` (torchvision's layout) or `root`."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from noisyteacher.data.fetch import Official, check, obtain
from noisyteacher.data.holdout import partition
from noisyteacher.data.split import Split, Splits
from noisyteacher.errors import DataError

MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"
# name: (md5 of the gzipped file, md5 of what is in it)
FILES = {
    "train-images-idx3-ubyte": ("f68b3c2dcbeaaa9fbdd348bbdeb94873", "6bbc9ace898e44ae57da46a324031adb"),
    "train-labels-idx1-ubyte": ("d53e105ee54ea40749a09fcbcd1e9432", "a25bea736e30d166cdddb491f175f624"),
    "t10k-images-idx3-ubyte": ("9fb629c4189551a2d022fa330f9573f3", "2646ac647ad5339dbf082846283269ea"),
    "t10k-labels-idx1-ubyte": ("ec29112dd5afa0611ce80d1b7f02629c", "27ae3e4e09519cfbb04c329615203637"),
}
_MAX_BYTES = 2**26
NOTE = "the files are not the official ones (their md5 differs): not comparable with published numbers"


def load_mnist(root: Path, *, download: bool = True, verify: bool = True, seed: int = 0) -> Splits:
    """MNIST as 50,000 / 10,000 / 10,000 images `[1, 28, 28]`; validation is a stratified sixth of the official 60,000.

    Source: LeCun, Cortes and Burges; the paper's section on MNIST (no preprocessing: pixels / 255).
    Raises DataError naming the file: missing and not to be had, another md5 while `verify`, truncated or damaged.
    """
    folder = folder_of(root)
    official = True
    read: dict[str, Tensor] = {}
    for name, (gzipped, plain) in FILES.items():
        path = folder / name
        if not (folder / f"{name}.gz").exists() and path.exists():
            same = check(path, plain, verify)
        else:
            remote = Official(f"{name}.gz", gzipped, (f"{MIRROR}{name}.gz",))
            path, same = obtain(remote, folder, download=download, verify=verify)
        official &= same
        read[name] = read_idx(path, 3 if "images" in name else 1)
    images, labels, test_images, test_labels = read.values()
    names = tuple(map(str, range(10)))
    everything = Split(images.unsqueeze(1), labels.long(), torch.arange(len(images)), "train", "mnist", names)
    test_rows = torch.arange(len(test_images))
    test = Split(test_images.unsqueeze(1), test_labels.long(), test_rows, "test", "mnist", names)
    held, rest = partition(labels.long(), [max(1, round(len(labels) / 6))], seed, "mnist")
    train, val = everything.subset(rest), everything.subset(held, role="val")
    return Splits("mnist", train, val, test, preprocess="scale", note="" if official else NOTE)


def read_idx(path: Path, dimensions: int) -> Tensor:
    """The uint8 tensor in an idx file, gzipped if its name ends in `.gz`. Raises DataError naming the file."""
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as stream:
                data = stream.read(_MAX_BYTES + 1)
        else:
            with path.open("rb") as plain:
                data = plain.read(_MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: it is truncated or damaged ({error})") from error
    start = 4 + 4 * dimensions
    if len(data) > _MAX_BYTES or len(data) < start or data[:4] != bytes([0, 0, 8, dimensions]):
        raise DataError(f"{path}: not an idx file of bytes in {dimensions} dimension(s) (first bytes {data[:4].hex()})")
    shape = struct.unpack(f">{dimensions}I", data[4:start])
    expected = 1
    for length in shape:
        expected *= length
    if len(data) - start != expected or not expected:
        raise DataError(
            f"{path}: its header says shape {list(shape)}, {expected} bytes; {len(data) - start} follow: "
            "the file is truncated or damaged"
        )
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=start).reshape(shape).copy())


def folder_of(root: Path) -> Path:
    """Where the four files are under the root, or are to be put: torchvision's `MNIST/raw`, or the root itself."""
    return next((place for place in (root / "MNIST" / "raw", root) if _complete(place)), root / "MNIST" / "raw")


def _complete(folder: Path) -> bool:
    return all((folder / name).exists() or (folder / f"{name}.gz").exists() for name in FILES)
