"""Files of data from untrusted sources: CIFAR, MNIST, SVHN, .npz, images, packed folders."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
import torch
from hypothesis import strategies as st
from PIL import Image

from faults.confinement import Untrusted
from faults.mutations import EXTREMES, edited
from faults.untrusted_models import Evil, raw, resealed, rezipped, sealed_trees, with_edits
from noisyteacher.data import Packed, builtin, load_data, pack_data
from noisyteacher.data.builtin import CIFAR_BATCHES as BATCHES
from noisyteacher.data.builtin import CIFAR_FOLDER as FOLDER
from noisyteacher.data.builtin import read_cifar_batch as read_batch
from noisyteacher.data.builtin import read_idx
from noisyteacher.data.images import Resize, Unreadable, decode_all
from noisyteacher.data.packed import RECORD
from noisyteacher.errors import DataError

DICE = np.random.default_rng(0)


def a_batch(protocol: int = 2, rows: int = 10) -> bytes:
    content = {"data": np.full((rows, 3072), 7, np.uint8), "labels": [row % 10 for row in range(rows)]}
    return pickle.dumps(content, protocol=protocol)


def cifar_batches(folder: Path) -> Untrusted:
    whole = tuple(a_batch(protocol, 2) for protocol in (2, 3, 4))
    evil = [
        pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [Evil()]}, protocol) for protocol in range(6)
    ]
    return Untrusted(
        "data_batch_1", lambda path: read_batch(path.read_bytes(), str(path)), (raw(*whole), raw(*evil)), whole=whole
    )


def cifar_archives(folder: Path) -> Untrusted:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as out:
        for name in BATCHES:
            member, data = tarfile.TarInfo(f"{FOLDER}/{name}"), a_batch()
            member.size = len(data)
            out.addfile(member, io.BytesIO(data))
    whole = gzip.compress(archive.getvalue(), 1, mtime=0)
    starts = [
        at for at in range(0, len(archive.getvalue()), 512) if archive.getvalue()[at + 257 : at + 262] == b"ustar"
    ]

    def blocks(number: int, at: int, value: int) -> bytes:
        """One field of one header replaced, its checksum made anew."""
        data, start = bytearray(archive.getvalue()), starts[number % len(starts)]
        field, length = ((0, 100), (124, 12), (156, 1), (157, 100), (257, 8), (345, 155))[at % 6]
        words = (
            b"../../x",
            b"/etc/passwd",
            b"77777777777",
            b"\x80" + bytes(10) + b"\xff",
            b"5",
            b"2",
            b"1",
            b"S",
            b"x",
            b"L",
            b"g",
        )
        data[start + field : start + field + length] = words[value % len(words)][:length].ljust(length, b"\0")
        data[start + 148 : start + 156] = b" " * 8
        data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
        return gzip.compress(bytes(data), 1, mtime=0)

    numbers = st.integers(0, 1000)
    inner = with_edits(lambda data, edits: gzip.compress(edited(data, edits), 1, mtime=0), [archive.getvalue()])
    return Untrusted(
        "cifar-10-python.tar.gz",
        lambda path: load_data("cifar10", root=path.parent, verify=False, download=False),
        (raw(whole), inner, st.builds(blocks, numbers, numbers, numbers)),
        whole=(whole,),
        slow=True,
    )


def npz(folder: Path) -> Untrusted:
    arrays: dict[str, Any] = {
        "x": DICE.integers(0, 256, (40, 5, 6), dtype=np.uint8), "y": np.arange(40) % 4,
        "classes": np.array(["a", "b", "=c", "<d>"]),
    }  # fmt: skip
    whole = []
    for save in (np.savez, np.savez_compressed):
        buffer = io.BytesIO()
        save(buffer, **arrays)
        whole.append(buffer.getvalue())
    members = []
    for name, array in arrays.items():
        buffer = io.BytesIO()
        np.save(buffer, array)
        members.append((f"{name}.npy", buffer.getvalue()))
    pickled = io.BytesIO()
    np.save(pickled, np.array([Evil()], dtype=object), allow_pickle=True)
    members += [("y.npy", pickled.getvalue()), ("classes.npy", pickled.getvalue())]

    def inner(member: tuple[str, bytes], edits: Any) -> bytes:
        return rezipped(whole[0], member[0], edited(member[1], edits), compression=zipfile.ZIP_DEFLATED)

    def claim(number: int, shape: list[int], dtype: str) -> bytes:
        """A header that says whatever it likes."""
        name, data = members[number % 3]
        text = repr({"descr": dtype, "fortran_order": bool(number % 2), "shape": tuple(shape)}).encode()
        text += b" " * (-(len(text) + 11) % 64) + b"\n"
        return rezipped(whole[0], name, b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data[128:])

    sizes = st.lists(st.sampled_from([*EXTREMES, -1, -(2**63), 10**30, 40, 5]), max_size=5)
    kinds = st.sampled_from(["|u1", "<i8", "<f8", "|O", "<U9", "|V0", "|S999999999", "<M8[s]", "x", "<i8,<i8"])
    ways = (raw(*whole), with_edits(inner, members), st.builds(claim, st.integers(0, 8), sizes, kinds))
    return Untrusted("a.npz", load_data, ways, whole=tuple(whole))


def idx(folder: Path) -> Untrusted:
    data = bytes([0, 0, 8, 3]) + struct.pack(">3I", 4, 5, 6) + bytes(range(120))
    return Untrusted("a-idx3", lambda path: read_idx(path, 3), (raw(data),), whole=(data,))


def gzipped_idx(folder: Path) -> Untrusted:
    data = bytes([0, 0, 8, 3]) + struct.pack(">3I", 4, 5, 6) + bytes(range(120))
    inner = with_edits(lambda buffer, edits: gzip.compress(edited(buffer, edits), 1, mtime=0), [data])
    whole = gzip.compress(data, mtime=0)
    return Untrusted("a-idx3.gz", lambda path: read_idx(path, 3), (raw(whole), inner), whole=(whole,))


def mat(folder: Path) -> Untrusted:
    content = {"X": np.zeros((32, 32, 3, 50), np.uint8), "y": (np.arange(50, dtype=np.uint8) % 10 + 1)[:, None]}
    whole = []
    for compressed in (False, True):
        buffer = io.BytesIO()
        scipy.io.savemat(buffer, content, do_compression=compressed)
        whole.append(buffer.getvalue())

    def prepare(folder: Path) -> None:
        (folder / "test_32x32.mat").write_bytes(whole[1])
        builtin.SVHN_MD5 = {part: hashlib.md5(whole[1]).hexdigest() for part in ("train", "test")}

    def read(path: Path) -> None:
        """Files that are not the official ones are refused before scipy parses them."""
        load_data("svhn", root=path.parent, download=False, extra=False)

    return Untrusted("train_32x32.mat", read, (raw(*whole),), prepare, whole=(whole[1],))


def images(folder: Path) -> Untrusted:
    pixels = DICE.integers(0, 256, (9, 7, 3), dtype=np.uint8)
    whole = []
    for kind in ("png", "jpeg", "bmp", "gif", "webp", "tiff", "ppm"):
        for mode in ("RGB", "L") if kind == "webp" else ("RGB", "L", "1"):
            buffer = io.BytesIO()
            Image.fromarray(pixels).convert(mode).save(buffer, kind)
            whole.append(buffer.getvalue())
    png = whole[0]

    def measured(width: int, height: int, depth: int, colour: int) -> bytes:
        """A PNG that announces this, with a checksum that holds."""
        head = b"IHDR" + struct.pack(">IIBBBBB", width % 2**32, height % 2**32, depth, colour, 0, 0, 0)
        return png[:12] + head + struct.pack(">I", zlib.crc32(head)) + png[33:]

    def read(path: Path) -> None:
        (image,) = decode_all([path], Resize())
        if isinstance(image, Unreadable):  # its sentence is told behind the file's name by who calls it
            raise DataError(f"{path}: {image.reason}")

    size = st.sampled_from([*EXTREMES, 7, 9, 20_000])
    small = st.integers(0, 255)
    ways = (raw(*whole), raw(*whole), st.builds(measured, size, size, small, small))
    # The most pixels that are read, in the copies that Pillow and numpy make.
    return Untrusted("a.img", read, ways, whole=tuple(whole), memory=3 * 2**29, slow=True)


def a_pack(folder: Path) -> Path:
    for name in ("ant", "bee"):
        for number in range(5):
            path = folder / "pets" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(DICE.integers(0, 256, (6, 6, 3), dtype=np.uint8)).save(path)
    return pack_data(folder / "pets", folder / "out").path


def _of_packed(folder: Path, name: str, *ways: Any) -> Untrusted:
    out = a_pack(folder)
    data = (out / name).read_bytes()

    def read(path: Path) -> None:
        Packed.open(path.parent).files("all")
        loaded = load_data(path.parent)
        assert all(len(split.images_at(torch.arange(len(split)))) for split in loaded.parts.values())

    return Untrusted(f"out/{name}", read, tuple(way(data) for way in ways), whole=(data,), named=name != RECORD)


def packed_records(folder: Path) -> Untrusted:
    return _of_packed(folder, RECORD, raw, lambda data: st.builds(resealed, raw(data)), sealed_trees)


def packed_images(folder: Path) -> Untrusted:
    return _of_packed(folder, "images.u8", raw)
