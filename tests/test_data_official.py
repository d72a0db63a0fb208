"""MNIST and SVHN in their official forms, and the fetching of files that are missing."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import shutil
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch

from helpers import labels_of
from noisyteacher.data import builtin, load_data
from noisyteacher.data.builtin import MNIST_FILES as FILES
from noisyteacher.data.builtin import OfficialFile, read_idx
from noisyteacher.errors import DataError

RNG = np.random.default_rng(0)


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def mnist_root(tmp_path: Path) -> Path:
    """A small MNIST in torchvision's layout: 60 and 20 digits."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in FILES:
        count = 60 if "train" in name else 20
        digits = (np.arange(count) % 10).astype(np.uint8)
        pixels = RNG.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        (raw / f"{name}.gz").write_bytes(gzip.compress(idx(pixels if "images" in name else digits), mtime=0))
    return tmp_path


def test_small_mnist_splits_five_to_one(mnist_root: Path) -> None:
    data = load_data("mnist", root=mnist_root, verify=False, download=False)
    assert data.test is not None
    assert [len(data.train), len(data.val), len(data.test)] == [50, 10, 20]
    assert labels_of(data.val).bincount().tolist() == [1] * 10
    assert (data.input_shape, data.preprocess, data.views) == ((1, 28, 28), "scale", ("clean",))
    assert "not the official ones" in data.note


def test_gzipped_or_not_and_with_or_without_folders(mnist_root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    flat = tmp_path_factory.mktemp("flat")
    for name in FILES:
        (flat / name).write_bytes(gzip.decompress((mnist_root / "MNIST" / "raw" / f"{name}.gz").read_bytes()))
    gzipped, other = (load_data("mnist", root=root, verify=False) for root in (mnist_root, flat))
    assert gzipped.train.fingerprint == other.train.fingerprint
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte: md5 .* the official file has 6bbc9ace"):
        load_data("mnist", root=flat)


def test_other_files_than_the_official_ones_are_refused(mnist_root: Path) -> None:
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: md5 .* the official file has f68b3c2d"):
        load_data("mnist", root=mnist_root)


@pytest.mark.data
def test_official_mnist(real_data: Path) -> None:
    data = load_data("mnist", root=real_data, download=False)
    assert data.test is not None
    assert [len(data.train), len(data.val), len(data.test)] == [50000, 10000, 10000]
    # The counts of the test digits are published with the data set.
    assert labels_of(data.test).bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert data.note == ""
    whole = torch.cat([labels_of(data.train), labels_of(data.val)]).bincount().double()
    assert float((labels_of(data.val).bincount() - whole / 6).abs().max()) <= 1


@pytest.mark.data
def test_official_mnist_with_one_bit_flipped_is_refused(real_data: Path, tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    shutil.copytree(real_data / "MNIST" / "raw", raw)
    labels = raw / "t10k-labels-idx1-ubyte.gz"
    broken = bytearray(labels.read_bytes())
    broken[2000] ^= 4
    labels.chmod(0o644)
    labels.write_bytes(bytes(broken))
    with pytest.raises(DataError, match="t10k-labels"):
        load_data("mnist", root=tmp_path)
    with pytest.raises(DataError, match=r"t10k-labels.*(damaged|truncated)"):
        load_data("mnist", root=tmp_path, verify=False)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not an idx file"),
        (idx(np.zeros((2, 28, 28), np.uint8))[:-1], r"shape \[2, 28, 28\], 1568 bytes; 1567 follow"),
        (idx(np.zeros((2, 28, 28), np.uint8)) + b"x", "1569 follow"),
        (idx(np.zeros((0, 28, 28), np.uint8)), "0 follow"),
        (idx(np.zeros(5, np.uint8)), "not an idx file of bytes in 3 dimension"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "damaged: shape"),
        (b"\0\0\x0d\x03" + bytes(12), "not an idx file of bytes"),
    ],
)
def test_bad_idx_files(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "images"
    path.write_bytes(data)
    with pytest.raises(DataError, match=words):
        read_idx(path, 3)


def test_truncated_and_damaged_gzip(tmp_path: Path) -> None:
    path = tmp_path / "images.gz"
    whole = gzip.compress(idx(RNG.integers(0, 256, (2, 28, 28), dtype=np.uint8)))
    for length in (0, 1, 5, 30, 500, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"images\.gz"):
            read_idx(path, 3)
    path.write_bytes(whole[:10] + b"\xff" * 40)  # a block of a type that deflate does not have
    with pytest.raises(DataError, match=r"images\.gz: cannot be read"):
        read_idx(path, 3)
    for position in range(0, len(whole), 37):
        broken = bytearray(whole)
        broken[position] ^= 16
        path.write_bytes(bytes(broken))
        try:
            assert read_idx(path, 3).shape == (2, 28, 28)  # the name and the date in gzip's header may change
        except DataError:
            continue
        assert position < 10


def test_labels_out_of_range_are_refused(mnist_root: Path) -> None:
    path = mnist_root / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(idx(np.arange(20, dtype=np.uint8))))
    with pytest.raises(DataError, match="label 10 of row 10 is out of range"):
        load_data("mnist", root=mnist_root, verify=False)


def mat(path: Path, count: int, **changes: Any) -> dict[str, Any]:
    """A .mat file in SVHN's form: X [32, 32, 3, N], y [N, 1] with 10 for the digit 0."""
    content = {
        "X": RNG.integers(0, 256, (32, 32, 3, count), dtype=np.uint8),
        "y": (np.arange(count) % 10 + 1).astype(np.uint8)[:, None],
        **changes,
    }
    scipy.io.savemat(path, {key: value for key, value in content.items() if value is not None}, do_compression=True)
    return content


@pytest.fixture
def svhn_root(tmp_path: Path) -> Path:
    for part, count in (("train", 50), ("test", 20), ("extra", 100)):
        mat(tmp_path / f"{part}_32x32.mat", count)
    return tmp_path


def test_svhn_holds_out_of_train_and_of_extra(svhn_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = mat(svhn_root / "extra_32x32.mat", 100)
    monkeypatch.setattr(builtin, "SVHN_VAL_PER_CLASS", {"train": 400, "extra": 1})
    data = load_data("svhn", root=svhn_root, verify=False, download=False)
    assert data.test is not None
    assert [len(data.train), len(data.val), len(data.test)] == [130, 20, 20]
    # A fifth of train's five per class, and one per class of extra: 150 images, train's first.
    assert labels_of(data.val).bincount().tolist() == [2] * 10
    assert int((data.val.index < 50).sum()) == 10
    assert (data.preprocess, data.class_names) == ("local-contrast", tuple("0123456789"))
    for split in (data.train, data.val):  # in every 50 or 100 images the classes take turns
        assert split.labels is not None
        assert labels_of(split).tolist() == [(row + 1) % 10 for row in split.index.tolist()]
    row = 57
    assert np.array_equal(data.train.images[row].numpy(), content["X"][:, :, :, row - 50].transpose(2, 0, 1))


def test_svhn_without_extra_must_be_asked_for(svhn_root: Path) -> None:
    (svhn_root / "extra_32x32.mat").unlink()
    with pytest.raises(DataError, match=r"extra_32x32\.mat: missing.*by extra=False"):
        load_data("svhn", root=svhn_root, verify=False, download=False)
    data = load_data("svhn", root=svhn_root, verify=False, download=False, extra=False)
    assert [len(data.train), len(data.val)] == [40, 10]
    assert "without the extra images" in data.note


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"X": np.zeros((32, 32, 3, 20))}, "X is float64"),
        ({"X": np.zeros((20, 32, 32, 3), np.uint8)}, r"X is uint8 \[20, 32, 32, 3\]"),
        ({"X": None}, "not a readable .mat file of X and y"),
        ({"y": None}, "not a readable .mat file of X and y"),
        ({"y": np.ones((19, 1), np.uint8)}, r"y is uint8 \[19, 1\]; expected 20 whole"),
        ({"y": np.zeros((20, 1), np.uint8)}, "labels 0..0: expected digits"),
        ({"y": np.full((20, 1), 11, np.uint8)}, "labels 11..11: expected"),
        ({"y": np.full((20, 1), 1.5)}, "y is float64"),
    ],
)
def test_bad_mat_files(svhn_root: Path, changes: dict[str, Any], words: str) -> None:
    mat(svhn_root / "test_32x32.mat", 20, **changes)
    with pytest.raises(DataError, match=rf"test_32x32\.mat: .*{words}"):
        load_data("svhn", root=svhn_root, verify=False)


def test_a_mat_file_with_much_behind_its_data_is_refused(svhn_root: Path) -> None:
    path = svhn_root / "test_32x32.mat"
    with path.open("ab") as stream:
        stream.write(bytes(16))
    with pytest.raises(DataError, match=r"test_32x32\.mat: .*no variable at byte"):
        load_data("svhn", root=svhn_root, verify=False)


def test_a_mat_file_of_more_images_than_svhn_is_not_unpacked(svhn_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("noisyteacher.data.builtin.SVHN_MOST", 19)
    monkeypatch.setattr(scipy.io, "loadmat", lambda *_, **__: pytest.fail("it was unpacked"))
    mat(svhn_root / "train_32x32.mat", 20)
    with pytest.raises(DataError, match=r"train_32x32\.mat: .*has 19 images"):
        load_data("svhn", root=svhn_root, verify=False)


def test_truncated_mat_files(svhn_root: Path) -> None:
    path = svhn_root / "train_32x32.mat"
    whole = path.read_bytes()
    for length in (0, 50, 128, 200, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"train_32x32\.mat"):
            load_data("svhn", root=svhn_root, verify=False)


@pytest.mark.data
def test_the_first_1083_of_svhn(real_data: Path, tmp_path: Path) -> None:
    content = np.load(real_data / "svhn_1083.npz")
    labels = np.where(content["y"] == 0, 10, content["y"])
    for part in ("train", "test"):
        mat(tmp_path / f"{part}_32x32.mat", 0, X=content["x"].transpose(1, 2, 3, 0), y=labels.reshape(-1, 1))
    data = load_data("svhn", root=tmp_path, verify=False, extra=False)
    assert data.test is not None
    assert np.array_equal(data.test.images.numpy(), content["x"].transpose(0, 3, 1, 2))
    assert labels_of(data.test).tolist() == (content["y"] % 10).tolist()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A web server on this machine: its address and the folder it serves."""
    folder = tmp_path / "site"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/", folder
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def test_a_missing_file_is_fetched_once(site: tuple[str, Path], tmp_path: Path) -> None:
    address, served = site
    (served / "b").write_bytes(b"hello")
    remote = OfficialFile(tmp_path / "root" / "b", hashlib.md5(b"hello").hexdigest(), f"{address}b")
    assert remote.obtain()
    assert remote.path.read_bytes() == b"hello"
    (served / "b").unlink()
    assert remote.obtain()


def test_a_file_that_arrives_damaged_leaves_nothing(site: tuple[str, Path], tmp_path: Path) -> None:
    address, served = site
    (served / "b").write_bytes(b"hellp")
    remote = OfficialFile(tmp_path / "root" / "b", hashlib.md5(b"hello").hexdigest(), f"{address}b")
    with pytest.raises(DataError, match="could not be fetched"):
        remote.obtain()
    assert not (tmp_path / "root").exists()


def test_a_file_that_is_there_and_cannot_be_read_is_not_called_missing(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match=r"b: cannot be read \(IsADirectoryError: .*another root"):
        OfficialFile(tmp_path / "b", "", "http://127.0.0.1:9/b").obtain()


def test_without_a_network_the_sentence_names_url_target_and_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builtin, "MNIST_URL", "http://127.0.0.1:9/mnist/")
    with pytest.raises(DataError) as caught:
        load_data("mnist", root=tmp_path)
    sentence = str(caught.value)
    assert "http://127.0.0.1:9/mnist/train-images-idx3-ubyte.gz" in sentence
    assert str(tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte.gz") in sentence
    assert "mnist-5k" in sentence
    assert list(tmp_path.iterdir()) == []  # and no empty MNIST/raw


def test_download_false_never_touches_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.socket", None)
    for name in ("mnist", "cifar10", "svhn"):
        with pytest.raises(DataError, match=r"missing, and could not be fetched .*download=False.*fetch http"):
            load_data(name, root=tmp_path, download=False)


def test_the_default_root_is_the_variable_or_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NOISYTEACHER_DATA", str(tmp_path))
    assert builtin.default_root() == tmp_path
    with pytest.raises(DataError, match=str(tmp_path)):
        load_data("mnist", download=False)
    monkeypatch.delenv("NOISYTEACHER_DATA")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert builtin.default_root() == Path("/home/somebody/.cache/noisyteacher")


def test_a_mat_file_that_is_not_the_official_one_is_refused_before_it_is_parsed(
    svhn_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scipy.io, "loadmat", lambda *_, **__: pytest.fail("it was parsed"))
    with pytest.raises(DataError, match=r"train_32x32\.mat: md5 .* the official file has e26dedcc"):
        load_data("svhn", root=svhn_root, download=False)


def test_an_idx_file_that_inflates_without_end(tmp_path: Path) -> None:
    path = tmp_path / "a-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(bytes([0, 0, 8, 3]) + struct.pack(">3I", 100_000, 28, 28) + bytes(78_400_000), 1))
    assert path.stat().st_size < 10**6
    with pytest.raises(DataError, match="not an idx file"):
        read_idx(path, 3)
