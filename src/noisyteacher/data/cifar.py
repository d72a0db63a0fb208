"""CIFAR-10: the official python batches, as a folder `cifar-10-batches-py` or still in their tar file, under `root`."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from noisyteacher.data.cifar_pickle import MAX_BYTES, read_batch
from noisyteacher.data.fetch import Official, check, obtain
from noisyteacher.data.holdout import partition
from noisyteacher.data.split import Split, Splits
from noisyteacher.errors import DataError

FOLDER = "cifar-10-batches-py"
MAX_ARCHIVE = 2**28
"""Bytes; the official archive has 186 million once inflated."""
ARCHIVE = Official(
    "cifar-10-python.tar.gz",
    "c58f30108f718f92721af3b95e74349a",
    ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",),
)
BATCHES = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
NOTE = "the files are not the official ones (their md5 differs): not comparable with published CIFAR-10 numbers"


def load_cifar10(root: Path, *, download: bool = True, verify: bool = True, seed: int = 0) -> Splits:
    """CIFAR-10 as 45,000 / 5,000 / 10,000 images `[3, 32, 32]`; validation is a stratified tenth of the 50,000.

    Source: Krizhevsky 2009. The paper trains on the images and their mirror images, less a per-pixel mean; where its
    hold-out comes from is not stated there, 500 of each class here.
    Raises DataError naming the file: missing and not to be had, another md5 while `verify`, truncated, damaged, or a
    pickle that asks for more than an array and a list.
    """
    images: dict[str, list[Tensor]] = {"train": [], "test": []}
    labels: dict[str, list[Tensor]] = {"train": [], "test": []}
    official = True
    for name, what, data, same in _batches(root, download, verify):
        pixels, numbers = read_batch(data, what, len(CLASSES))
        official &= same
        role = "test" if name == "test_batch" else "train"
        images[role].append(torch.from_numpy(pixels.copy()))
        labels[role].append(torch.from_numpy(np.asarray(numbers)))
    made = {}
    for role in images:
        joined, targets = torch.cat(images[role]), torch.cat(labels[role])
        made[role] = Split(joined, targets, torch.arange(len(joined)), role, "cifar10", CLASSES)
    everything = made["train"]
    held, rest = partition(torch.cat(labels["train"]), [max(1, round(len(everything) / 10))], seed, "cifar10")
    return Splits(
        "cifar10",
        everything.subset(rest),
        everything.subset(held, role="val"),
        made["test"],
        preprocess="pixel-mean",
        views=("clean", "mirror"),
        note="" if official else NOTE,
    )


class _Bounded(io.RawIOBase):
    """An inflated archive that may be read no further than CIFAR-10's goes, and no more at once than a batch has."""

    def __init__(self, stream: gzip.GzipFile) -> None:
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        """Raises OSError beyond the bounds."""
        if not 0 <= size <= MAX_BYTES:
            raise OSError(f"asks for {size} bytes at once")
        return self._stream.read(size)

    def seek(self, place: int, whence: int = 0) -> int:
        """Raises OSError beyond the bounds."""
        if whence != 0 or place > MAX_ARCHIVE:
            raise OSError(f"more than {MAX_ARCHIVE} bytes")
        return self._stream.seek(place)

    def tell(self) -> int:
        """Where it is in the inflated archive."""
        return self._stream.tell()


def _batches(root: Path, download: bool, verify: bool) -> Iterator[tuple[str, str, bytes, bool]]:
    """(name, what to call it, bytes, is it the official one) of the six batches in order."""
    folder = next((place for place in (root / FOLDER, root) if (place / "data_batch_1").exists()), None)
    if folder is not None:
        for name, md5 in BATCHES.items():
            path = folder / name
            if not path.exists():
                raise DataError(f"{path}: missing, though other batches are there; unpack {ARCHIVE.urls[0]} again")
            same = check(path, md5, verify)
            if path.stat().st_size > MAX_BYTES:
                raise DataError(f"{path}: {path.stat().st_size} bytes, more than a CIFAR-10 batch has")
            yield name, str(path), path.read_bytes(), same
        return
    archive, same = obtain(ARCHIVE, root, download=download, verify=verify)
    with ExitStack() as stack:
        try:
            plain = stack.enter_context(gzip.open(archive))
            opened = stack.enter_context(tarfile.open(fileobj=_Bounded(plain), mode="r:"))
            for name in BATCHES:
                member = opened.getmember(f"{FOLDER}/{name}")
                stream = opened.extractfile(member) if member.isfile() and member.size <= MAX_BYTES else None
                if stream is None:
                    raise DataError(f"{archive}: {member.name} in it is no plain file of a batch's size")
                yield name, f"{archive}: {name}", stream.read(), same
        except (tarfile.TarError, OSError, EOFError, zlib.error, KeyError) as error:
            raise DataError(f"{archive}: truncated, damaged or without the six batches ({error})") from error
