"""CIFAR-10's pickles: official ones read, others refused, and no code of theirs run."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import labels_of
from noisyteacher.data import load_data
from noisyteacher.data.builtin import CIFAR_BATCHES as BATCHES
from noisyteacher.data.builtin import CIFAR_CLASSES as CLASSES
from noisyteacher.data.builtin import CIFAR_FOLDER as FOLDER
from noisyteacher.data.builtin import read_cifar_batch as read_batch
from noisyteacher.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 3072), dtype=np.uint8)
LABELS = [row % 10 for row in range(20)]


def text(value: bytes) -> bytes:
    return b"U" + bytes([len(value)]) + value


def python2_batch(shape: tuple[int, int] = (20, 3072), code: bytes = b"u1") -> bytes:
    """A batch opcode by opcode as Python 2 and numpy 1 wrote them (protocol 2): the official files' own form."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85q\x03" + text(b"b") + b"\x87Rq\x04"
    )
    state = b"(K\x01M" + struct.pack("<H", shape[0]) + b"M" + struct.pack("<H", shape[1]) + b"\x86"
    dtype = (
        b"cnumpy\ndtype\n"
        + text(code)
        + b"K\x00K\x01\x87R(K\x03"
        + text(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    raw = b"\x89T" + struct.pack("<I", PIXELS.nbytes) + PIXELS.tobytes() + b"tb"
    labels = b"](" + b"".join(b"K" + bytes([label]) for label in LABELS) + b"e"
    return b"\x80\x02}(" + text(b"labels") + labels + text(b"data") + array + state + dtype + raw + b"u."


def test_a_batch_as_python_2_wrote_it() -> None:
    images, labels = read_batch(python2_batch(), "batch")
    assert np.array_equal(images, PIXELS.reshape(20, 3, 32, 32))
    assert labels.tolist() == LABELS
    assert labels.dtype == torch.int64


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("names", [("data", "labels"), (b"data", b"labels")])
def test_a_batch_as_python_3_writes_it(protocol: int, names: tuple[Any, Any]) -> None:
    written = pickle.dumps({names[0]: PIXELS, names[1]: LABELS}, protocol=protocol)
    images, labels = read_batch(written, "batch")
    assert np.array_equal(images.reshape(20, -1), PIXELS)
    assert labels.tolist() == LABELS


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "evil", [Call(os.system, "mkdir pwned"), Call(os.mkdir, "pwned"), Call(eval, "__import__('os').mkdir('pwned')")]
)
def test_code_in_a_pickle_never_runs(
    evil: Call, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for content in (evil, {"data": PIXELS, "labels": [evil]}, {evil: 1}):
        with pytest.raises(DataError, match=r"batch: not a CIFAR-10 batch.*it asks for"):
            read_batch(pickle.dumps(content, protocol=protocol), "batch")
    assert not (tmp_path / "pwned").exists()


def test_the_global_asked_for_is_named() -> None:
    with pytest.raises(DataError, match=r"asks for builtins\.eval; nothing of it was run"):
        read_batch(pickle.dumps({"data": Call(eval, "1")}, protocol=2).replace(b"__builtin__", b"builtins"), "batch")


@pytest.mark.parametrize(
    "written",
    [
        b"(S'mkdir pwned'\nios\nsystem\n.",
        b"\x80\x02}\x82\x01.",
        b"\x80\x02}Q.",
        b"\x80\x02cnumpy\ndtype\n}U\x01aK\x01sb.",
        b"\x80\x02c_codecs\nencode\n}U\x01aK\x01sb.",
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aU\x05utf-8\x86R.",
        b"\x80\x02}r\xff\xff\xff\x7f.",
        b"\x80\x02T\xff\xff\xff\x7fabc.",
        b"\x80\x02]q\x00h\x00a.",
        b"\x80\x02}.",
        b"",
        b"hello",
    ],
)
def test_another_pickle_is_refused(written: bytes) -> None:
    with pytest.raises(DataError, match=r"^batch: not a CIFAR-10 batch"):
        read_batch(written, "batch")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"data": PIXELS[:, :3000].copy(), "labels": LABELS}, r"\(20, 3000\), expected uint8"),
        ({"data": PIXELS, "labels": LABELS[:-1]}, "19 labels"),
        ({"data": PIXELS, "labels": [10, *LABELS[1:]]}, "label 10 of row 0 is out of range 0..9"),
        ({"data": PIXELS, "labels": [*LABELS[:-1], -1]}, "label -1 of row 19"),
        ({"data": PIXELS, "labels": [True, *LABELS[1:]]}, "label True of row 0"),
        ({"data": PIXELS, "labels": [None, *LABELS[1:]]}, "label None of row 0"),
        ({"data": PIXELS.astype(np.int16), "labels": LABELS}, "expected uint8"),
        ({"data": np.asfortranarray(PIXELS), "labels": LABELS}, "expected uint8"),
        ({"data": PIXELS[:0], "labels": []}, "0 images"),
        ({"data": LABELS, "labels": LABELS}, "not a CIFAR-10 batch"),
    ],
)
def test_a_batch_that_holds_something_else_is_refused(content: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_batch(pickle.dumps(content, protocol=4), "batch")


def test_shapes_that_lie_are_refused() -> None:
    for lie in (python2_batch((21, 3072)), python2_batch((20, 3000)), python2_batch(code=b"f8")):
        with pytest.raises(DataError, match="not a CIFAR-10 batch"):
            read_batch(lie, "batch")


def test_a_truncated_or_flipped_batch_is_refused_or_read_whole() -> None:
    """Flipped pixels are the md5's business; here nothing else than DataError may come out, whatever the bytes."""
    whole = python2_batch()
    for length in [*range(250), *range(250, len(whole), 6007)]:
        with pytest.raises(DataError):
            read_batch(whole[:length], "batch")
    structure = [position for position in range(len(whole)) if position < 320 or position > len(whole) - 6]
    for position in structure:
        for bit in range(8):
            broken = bytearray(whole)
            broken[position] ^= 1 << bit
            try:
                images, _ = read_batch(bytes(broken), "batch")
            except DataError:
                continue
            assert images.shape == (20, 3, 32, 32)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six small batches in the official layout, 20 images each, every one a shade of its batch's own."""
    (tmp_path / FOLDER).mkdir()
    for number, name in enumerate(BATCHES):
        content = {"data": np.full((20, 3072), number, np.uint8), "labels": LABELS}
        (tmp_path / FOLDER / name).write_bytes(pickle.dumps(content, protocol=2))
    return tmp_path


def test_the_folder_becomes_three_splits(root: Path) -> None:
    data = load_data("cifar10", root=root, verify=False, download=False)
    assert data.test is not None
    assert [len(data.train), len(data.val), len(data.test)] == [90, 10, 20]
    assert labels_of(data.val).bincount().tolist() == [1] * 10
    assert (data.class_names, data.preprocess, data.views) == (CLASSES, "pixel-mean", ("clean", "mirror"))
    assert "not the official ones" in data.note
    assert data.train.images[:, 0, 0, 0].tolist() == [number for number in range(5) for _ in range(20)]
    assert set(data.test.images.flatten().tolist()) == {5}


def test_files_that_are_not_the_official_ones_need_verify_false(root: Path) -> None:
    with pytest.raises(
        DataError, match=r"data_batch_1: md5 [0-9a-f]{32}, the official file has c99cafc1.*verify=False"
    ):
        load_data("cifar10", root=root)


def test_a_missing_batch_is_named(root: Path) -> None:
    (root / FOLDER / "data_batch_4").unlink()
    with pytest.raises(DataError, match="data_batch_4: missing, and"):
        load_data("cifar10", root=root, verify=False)


def test_the_tar_file_is_read_without_unpacking(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("tar")
    archive = other / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as out:
        out.add(root / FOLDER, FOLDER)
    unpacked = load_data("cifar10", root=root, verify=False)
    data = load_data("cifar10", root=other, verify=False)
    assert data.train.fingerprint == unpacked.train.fingerprint
    assert torch.equal(labels_of(data.val), labels_of(unpacked.val))
    assert [entry.name for entry in other.iterdir()] == [archive.name]
    archive.write_bytes(archive.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz: truncated, damaged"):
        load_data("cifar10", root=other, verify=False)


def test_a_tar_file_with_links_for_batches_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as out:
        link = tarfile.TarInfo(f"{FOLDER}/data_batch_1")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        out.addfile(link, io.BytesIO())
    with pytest.raises(DataError, match="not a regular file"):
        load_data("cifar10", root=tmp_path, verify=False)


@pytest.mark.data
def test_the_full_data_set_through_both_doors(real_data: Path) -> None:
    pickled, from_arrays = load_data("cifar10", root=real_data, verify=False), load_data(real_data / "cifar10_q75.npz")
    assert pickled.test is not None
    assert from_arrays.test is not None
    assert [len(split) for split in pickled.parts.values()] == [45000, 5000, 10000]
    assert labels_of(pickled.val).bincount().tolist() == [500] * 10
    assert pickled.test.fingerprint == from_arrays.test.fingerprint
    assert torch.equal(pickled.train.images, from_arrays.train.images)
    assert torch.equal(labels_of(pickled.test), labels_of(from_arrays.test))
