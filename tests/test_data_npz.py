"""The embedded data set, `.npz` files good and bad, names, options, limits and the summary."""

from __future__ import annotations

import ast
import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import labels_of
from noisyteacher import data
from noisyteacher.data import Split, data_summary, load_data
from noisyteacher.data.sources import channels_first
from noisyteacher.data.split import class_numbers
from noisyteacher.errors import DataError, UnknownNameError, UsageError

RNG = np.random.default_rng(0)


def arrays(n: int = 40, **changes: Any) -> dict[str, Any]:
    defaults = {
        "x_train": RNG.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8),
        "y_train": np.arange(n) % 4,
        "x_test": RNG.integers(0, 256, (8, 8, 8, 3), dtype=np.uint8),
        "y_test": np.arange(8) % 4,
    }
    return {key: value for key, value in {**defaults, **changes}.items() if value is not None}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "set.npz"


def test_mnist_5k_is_there_balanced_and_always_the_same() -> None:
    data = load_data("mnist-5k")
    assert (data.name, data.classes, data.input_shape) == ("mnist-5k", 10, (1, 28, 28))
    assert (data.preprocess, data.views, data.note) == ("scale", ("clean",), "")
    assert {role: labels_of(split).bincount().tolist() for role, split in data.parts.items()} == {
        "train": [400] * 10,
        "val": [40] * 10,
        "test": [60] * 10,
    }
    # Pinned: runs made with different versions of this package must speak of the same rows.
    assert data.train.fingerprint == "03b421c5e4058e5e2b1424c4772cb5e4ed3adbdb255a9e925403e805a9bc4621"
    assert data.val.fingerprint == "2c9a7e522d750b42547c00a9a093a0aa5a621bae6d2acd834730cdee1098db0d"
    assert data.test is not None
    assert data.test.fingerprint == "2d0e285752293416b526861679001e290308afb0f5785bdbaab451774a21ed96"


def test_mnist_5k_are_digits_of_mnist_with_their_labels(real_data: Path) -> None:
    """Each embedded digit is one of the 60,000 official training images, under the official label."""
    official, small = load_data("mnist", root=real_data), load_data("mnist-5k")

    def pairs(split: Split) -> list[tuple[bytes, int]]:
        images, labels = split.images_at(torch.arange(len(split))), split.labels_at(torch.arange(len(split)))
        return [(image.numpy().tobytes(), int(label)) for image, label in zip(images, labels, strict=True)]

    label_of = dict(pairs(official.train) + pairs(official.val))
    assert [label_of.get(image) == label for split in small.parts.values() for image, label in pairs(split)] == [
        True
    ] * 5000


def test_npz_with_a_test_split_holds_a_tenth_out(path: Path) -> None:
    content = arrays(classes=np.array(["a", "b", "c", "d"]))
    np.savez(path, **content)
    data = load_data(path)
    assert (data.name, data.class_names, data.input_shape) == ("set", ("a", "b", "c", "d"), (3, 8, 8))
    assert data.test is not None
    assert [len(data.train), len(data.val), len(data.test)] == [36, 4, 8]
    assert labels_of(data.val).tolist().count(0) == 1
    row = int(data.train.index[5])
    assert np.array_equal(
        data.train.images_at(torch.tensor([5]))[0].numpy(), content["x_train"][row].transpose(2, 0, 1)
    )
    assert labels_of(data.train)[5] == content["y_train"][row]
    assert load_data(str(path), seed=1).val.index.tolist() != data.val.index.tolist()
    renamed = path.rename(path.with_name("renamed.npz"))
    assert load_data(renamed).val.index.tolist() == data.val.index.tolist()


def test_npz_with_its_own_validation_split_is_taken_as_given(path: Path) -> None:
    content = arrays()
    np.savez_compressed(path, x_val=content["x_test"][::-1], y_val=content["y_test"][::-1, None], **content)
    data = load_data(path)
    assert len(data.train) == 40
    assert labels_of(data.val).tolist() == content["y_test"][::-1].tolist()
    assert np.array_equal(data.val.images[0].numpy(), content["x_test"][7].transpose(2, 0, 1))


def test_npz_of_x_and_y_is_cut_in_three(path: Path) -> None:
    np.savez(path, x=RNG.integers(0, 256, (100, 5, 7), dtype=np.uint8), y=(np.arange(100) % 5).astype(np.uint8))
    data = load_data(path)
    assert data.test is not None
    assert [len(data.train), len(data.val), len(data.test)] == [80, 10, 10]
    assert data.input_shape == (1, 5, 7)
    assert labels_of(data.test).bincount().tolist() == [2] * 5


def test_npz_without_training_labels_needs_a_validation_split(path: Path) -> None:
    content = arrays(y_train=None)
    np.savez(path, **content)
    with pytest.raises(DataError, match="no array 'y_train'"):
        load_data(path)
    np.savez(path, x_val=content["x_test"], y_val=content["y_test"], **content)
    assert load_data(path).train.labels is None


def test_fortran_order_reads_as_the_same_numbers(path: Path) -> None:
    content = arrays()
    np.savez(path, **{**content, "x_train": np.asfortranarray(content["x_train"])})
    assert np.array_equal(load_data(path).train.images.numpy(), content["x_train"].transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x_train": None}, "no array 'x_train'"),
        ({"y_test": None}, "no array 'y_test'"),
        ({"x_train": np.zeros((40, 8, 8, 3), np.float32)}, "'x_train' is float32; expected uint8"),
        ({"x_train": np.zeros((40, 8), np.uint8)}, r"shape \[40, 8\]"),
        ({"x_train": np.zeros((40, 3, 8, 3), np.uint8)}, "cannot tell which axis"),
        ({"x_train": np.zeros((40, 8, 8, 8), np.uint8)}, "cannot tell which axis"),
        ({"x_train": np.zeros((0, 8, 8), np.uint8)}, "not empty"),
        ({"y_train": np.arange(40) % 4 / 1.0}, "'y_train' is float64; expected integers"),
        ({"y_train": np.arange(39) % 4}, r"there are 40 images, expected \[40\]"),
        ({"y_train": np.arange(40) % 4 - 1}, "label -1 of row 0 is out of range"),
        ({"y_test": np.array([0, 1, 2, 3, 0, 9, 2, 3]), "classes": np.array(list("abcd"))}, "label 9 of row 5"),
        ({"y_train": np.arange(40) * 10**6}, "out of range 0..99999"),
        ({"classes": np.array([1, 2])}, "expected K strings"),
        ({"y_train": np.array([{"a": 1}] * 40, dtype=object)}, "holds Python objects"),
        ({"y_trian": np.arange(40)}, "unknown array 'y_trian': did you mean 'y_train'"),
        ({"x_test": np.zeros((8, 9, 9, 3), np.uint8)}, r"train images are \[3, 8, 8\], test images \[3, 9, 9\]"),
    ],
)
def test_a_bad_npz_is_refused_by_name(path: Path, changes: dict[str, Any], words: str) -> None:
    np.savez(path, **arrays(**changes))
    with pytest.raises(DataError, match=words):
        load_data(path)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("pwned",)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.arange(30) % 3 + 1.0, r"float64.*astype"),
        (np.where(np.arange(30) % 3, np.nan, 1), r"float64.*astype"),
        (np.eye(3)[np.arange(30) % 3], r"float64.*argmax\(1\)"),
        (np.eye(3, dtype=np.int64)[np.arange(30) % 3], r"\[30, 3\].*argmax\(1\)"),
        (np.array(["cat", "dog", "owl"])[np.arange(30) % 3], r"np\.unique\(y, return_inverse=True\)"),
        (np.arange(30) % 3 + 1, r"labels begin at 1: .*save y - 1"),
    ],
)
def test_labels_of_another_form_are_explained(labels: Any, words: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((30, 8, 8), np.uint8), y=labels)
    with pytest.raises(DataError, match=words):
        load_data(tmp_path / "a.npz")


def test_an_npz_with_the_names_of_medmnist(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {}
    for number, (role, rows) in enumerate({"train": 30, "val": 9, "test": 6}.items()):
        arrays[f"{role}_images"] = np.random.default_rng(number).integers(0, 256, (rows, 8, 8), np.uint8)
        arrays[f"{role}_labels"] = (np.arange(rows) % 3)[:, None]
    np.savez(tmp_path / "a.npz", **arrays)
    for role, split in load_data(tmp_path / "a.npz").parts.items():
        assert torch.equal(split.images_at(torch.arange(len(split)))[:, 0], torch.from_numpy(arrays[f"{role}_images"]))
        assert labels_of(split).tolist() == arrays[f"{role}_labels"][:, 0].tolist()


def test_pickled_objects_in_an_npz_are_never_loaded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    np.savez(path, **arrays(y_train=np.array([Evil()] * 40, dtype=object)))
    with pytest.raises(DataError, match="holds Python objects"):
        load_data(path)
    assert not Path("pwned").exists()


def test_a_bomb_is_refused_before_anything_is_inflated(path: Path) -> None:
    header = io.BytesIO()
    shape = {"descr": "|u1", "fortran_order": False, "shape": (10**6, 1000, 1000)}
    np.lib.format.write_array_header_1_0(header, shape)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("x_train.npy", header.getvalue() + bytes(10**6))
    with pytest.raises(DataError, match="bytes, but holds"):
        load_data(path)
    np.savez(path, **arrays())
    with pytest.raises(DataError, match="max_bytes"):
        load_data(path, max_bytes=1000)


@pytest.mark.parametrize("shape", [(50, 8, 8), (30, 8, 8)])
def test_a_header_that_lies_about_the_length_is_refused(path: Path, shape: tuple[int, ...]) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("x.npy", header.getvalue() + bytes(40 * 64))
    with pytest.raises(DataError, match=r"(3200|1920) bytes, but holds"):
        load_data(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_no_memory_is_taken_for_what_cannot_be_there(path: Path, method: int, monkeypatch: pytest.MonkeyPatch) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (2**31, 1, 1)})
    with zipfile.ZipFile(path, "w", method) as out:
        out.writestr("x.npy", header.getvalue() + bytes(1000))
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(DataError, match="2147483648 bytes, but holds"):
        load_data(path)


def test_class_names_that_are_no_text_are_refused(path: Path) -> None:
    names = np.array([2**31, 98, 99, 100], dtype=np.uint32).view("<U1")
    np.savez(path, x=np.zeros((8, 5, 6), np.uint8), y=np.arange(8) % 4, classes=names)
    with pytest.raises(DataError, match="'classes' has names that are not text"):
        load_data(path)


def test_a_truncated_npz_is_refused_wherever_it_ends(path: Path) -> None:
    np.savez_compressed(path, **arrays(12))
    whole = path.read_bytes()
    for length in range(0, len(whole), 211):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"set\.npz"):
            load_data(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_flipped_bit_is_noticed_or_harmless(path: Path, save: Any) -> None:
    save(path, **arrays(12))
    whole, clean = path.read_bytes(), load_data(path)
    noticed = 0
    for bit in range(0, 8 * len(whole), 97):
        broken = bytearray(whole)
        broken[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(broken))
        try:
            data = load_data(path)
        except DataError:
            noticed += 1
        else:  # dates, modes and the like in the zip's own records
            assert data.train.fingerprint == clean.train.fingerprint
            assert torch.equal(labels_of(data.train), labels_of(clean.train))
    assert noticed > 8 * len(whole) / 97 / 2


def test_channels_are_found_or_asked_for() -> None:
    pixels = np.arange(2 * 5 * 6 * 3, dtype=np.uint8).reshape(2, 5, 6, 3)
    assert channels_first(pixels, "x").tolist() == pixels.transpose(0, 3, 1, 2).tolist()
    assert channels_first(pixels.transpose(0, 3, 1, 2), "x").tolist() == pixels.transpose(0, 3, 1, 2).tolist()
    assert channels_first(pixels[..., 0], "x").shape == (2, 1, 5, 6)


def test_unknown_names_and_missing_paths(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown data set 'cifar-10': did you mean 'cifar10'"):
        load_data("cifar-10")
    with pytest.raises(DataError, match=r"nowhere\.npz: no such file"):
        load_data(tmp_path / "nowhere.npz")
    with pytest.raises(DataError, match="no such file or folder"):
        load_data(str(tmp_path / "nowhere"))
    (tmp_path / "set.tar").write_text("1,2")
    with pytest.raises(DataError, match=r"neither a folder nor a \.npz"):
        load_data(tmp_path / "set.tar")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 8}, "size has no effect on 'mnist-5k'"),
        ({"grey": True}, "grey has no effect"),
        ({"extra": False}, "extra has no effect"),
        ({"seed": 1}, "seed has no effect"),
        ({"limit": 0}, "limit=0"),
        ({"limit": 1.5}, "limit=1.5"),
        ({"limit": "50"}, "limit='50'"),
        ({"limit": True}, "limit=True"),
        ({"train_limit": 1.5}, "train_limit=1.5"),
    ],
)
def test_an_option_without_effect_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load_data("mnist-5k", **options)


def test_limit_keeps_classes_in_proportion_and_rows_apart() -> None:
    data = load_data("mnist-5k", limit=50)
    assert data.test is not None
    assert [labels_of(split).bincount().tolist() for split in data.parts.values()] == [[5] * 10] * 3
    assert load_data("mnist-5k", limit=50).train.fingerprint == data.train.fingerprint
    assert len(load_data("mnist-5k", limit=500).val) == 400


def test_splits_pass_through() -> None:
    data = load_data("mnist-5k")
    assert load_data(data) is data


def test_the_summary_counts_what_numpy_counts(path: Path) -> None:
    content = arrays()
    np.savez(path, **content)
    summary = data_summary(load_data(path))
    json.dumps(summary)
    test = summary["splits"]["test"]
    assert (summary["name"], summary["classes"], summary["input_shape"]) == ("set", 4, [3, 8, 8])
    assert test["n"] == 8
    assert test["per_class"] == {"0": 2, "1": 2, "2": 2, "3": 2}
    assert test["mean"] == pytest.approx((content["x_test"] / 255).mean(axis=(0, 1, 2)), rel=1e-12)
    assert test["std"] == pytest.approx((content["x_test"] / 255).std(axis=(0, 1, 2)), rel=1e-12)


def test_importing_stays_light() -> None:
    """What only some data needs is imported where it is used."""
    for path in Path(data.__file__).parent.glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not {name.split(".")[0] for name in names} & {"pooch", "scipy", "PIL", "datasets", "pyarrow"}


@pytest.mark.parametrize(
    "text", [b"{'descr': (((", b"{'descr': '|u1', 'fortran_order': False, 'shape': (1,", b"(" * 5000]
)
def test_a_header_that_is_no_python_is_refused(path: Path, text: bytes) -> None:
    header = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", header)
    with pytest.raises(DataError, match=r"set\.npz: not a readable \.npz file"):
        load_data(path)


def test_a_suffix_in_upper_case(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((30, 8, 8), np.uint8), y=np.arange(30) % 2)
    upper = (tmp_path / "a.npz").rename(tmp_path / "A.NPZ")
    assert load_data(upper).classes == 2


def test_names_as_python_objects_in_a_column_of_labels_are_explained() -> None:
    """As a column of text has them in `datasets`; astype('int64') cannot read them."""
    with pytest.raises(DataError, match=r"labels is object; .*np\.unique\(y, return_inverse=True\)"):
        class_numbers(np.array(["cat", "dog"], dtype=object), 2, "the column of labels")
