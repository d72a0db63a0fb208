"""Folders of images and data set objects, good and bad."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset, TensorDataset

from helpers import labels_of
from noisyteacher.data import load_data
from noisyteacher.errors import DataError, DataWarning, UsageError

RNG = np.random.default_rng(0)


def paint(path: Path, value: int, size: tuple[int, int] = (6, 4), mode: str = "RGB") -> None:
    """One image of a single value; size is (width, height), as Pillow has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 0, 0)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images of each of three classes, in folders of their names."""
    for label, name in enumerate(("cat", "ant", "bee")):
        for number in range(10):
            paint(tmp_path / "pets" / name / f"{number}.png", 10 * label + number)
    return tmp_path / "pets"


def test_a_folder_of_classes_is_cut_in_three(folder: Path) -> None:
    (folder / ".cache").mkdir()
    (folder / "cat" / ".DS_Store").write_bytes(b"x")
    (folder / "cat" / "notes.txt").write_text("x")
    with pytest.warns(DataWarning, match=r"1 of 31 files are not read as images: 1 \.txt \(cat/notes\.txt\)"):
        data = load_data(folder)
    assert data.test is not None
    assert (data.name, data.class_names, data.input_shape) == ("pets", ("ant", "bee", "cat"), (3, 4, 6))
    assert [labels_of(split).bincount().tolist() for split in data.parts.values()] == [[8, 8, 8], [1, 1, 1], [1, 1, 1]]
    assert data.train.images[:, 0, 0, 0].tolist() == [*range(10, 20), *range(20, 30), *range(10)]
    assert data.train.images[:, 1:].max() == 0


def test_train_val_test_folders_are_taken_as_they_are(folder: Path) -> None:
    root = folder.parent / "split"
    for name in ("a", "b"):
        for number in range(10):
            paint(root / "train" / name / f"{number}.bmp", number)
        paint(root / "test" / name / "0.bmp", 99)
    paint(root / "val" / "b" / "0.bmp", 77)
    data = load_data(str(root))
    assert data.test is not None
    assert [len(data.train), len(data.val), len(data.test)] == [20, 1, 2]
    assert labels_of(data.val).tolist() == [1]
    assert data.val.images[0, 0, 0, 0] == 77
    (root / "val" / "b" / "0.bmp").unlink()
    (root / "val" / "b").rmdir()
    assert [len(split) for split in load_data(root).parts.values()] == [18, 2, 2]
    for name in ("a", "b"):
        (root / "test" / name / "0.bmp").unlink()
        (root / "test" / name).rmdir()
    assert load_data(root).test is None


def test_grey_and_size(folder: Path) -> None:
    paint(folder / "cat" / "big.png", 200, (60, 40))
    with pytest.raises(DataError, match=r"big\.png: 40x60 \(3 channels.*by --size 4 "):
        load_data(folder)
    data = load_data(folder, size=(8, 5), grey=True)
    assert data.input_shape == (1, 8, 5)
    # Pillow's grey of a red r is r * 0.299, rounded.
    assert int(data.train.images.max()) == round(200 * 0.299)
    assert load_data(folder, size=7).input_shape == (3, 7, 7)
    with pytest.raises(UsageError, match="fit has no effect"):
        load_data(folder, fit="crop")
    with pytest.raises(UsageError, match="size 0"):
        load_data(folder, size=0)


@pytest.mark.parametrize("option", [{"root": "elsewhere"}, {"download": False}, {"verify": False}])
def test_options_of_official_files_are_refused_elsewhere(option: dict[str, Any], folder: Path) -> None:
    sources: tuple[Any, ...] = (folder, [], "mnist-5k")
    for source in sources:
        with pytest.raises(UsageError, match=f"{next(iter(option))} has no effect on .*: leave it out"):
            load_data(source, **option)


def test_sizes_that_differ_between_train_and_test_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for number in range(5):
            paint(tmp_path / "train" / name / f"{number}.png", number)
        paint(tmp_path / "test" / name / "0.png", 1, (5, 5))
    with pytest.raises(DataError, match=r"0\.png: 5x5 .*the first image is 4x6 .*by --size 4 "):
        load_data(tmp_path)


@pytest.mark.parametrize("ending", ["png", "jpg", "gif", "webp", "tif"])
def test_a_corrupt_image_is_named(folder: Path, ending: str) -> None:
    bad = folder / "bee" / f"bad.{ending}"
    Image.fromarray(RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(bad)
    whole = bad.read_bytes()
    for content in (b"", b"no image at all", whole[: len(whole) // 3]):
        bad.write_bytes(content)
        with pytest.raises(DataError, match=rf"bad\.{ending}: cannot be decoded"):
            load_data(folder, size=4)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_of_sixteen_bits_the_high_byte_is_kept(tmp_path: Path, ending: str) -> None:
    values, folder = np.linspace(0, 65535, 24).astype(np.uint16).reshape(4, 6), tmp_path / "deep"
    for label in ("ant", "bee"):
        (folder / label).mkdir(parents=True)
        for number in range(10):
            Image.fromarray(values).save(folder / label / f"{number}.{ending}")
    high = torch.from_numpy((values >> 8).astype(np.uint8))
    assert all(torch.equal(image[0], high) for image in load_data(folder, grey=True).train.images)
    assert all(torch.equal(image, high.expand(3, 4, 6)) for image in load_data(folder).train.images)
    small = np.asarray(Image.fromarray(high.numpy()).resize((3, 2), Image.Resampling.BILINEAR))
    assert np.array_equal(load_data(folder, size=(2, 3), grey=True).train.images[0, 0].numpy(), small)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((4, 6), 4095, np.uint16), "whose largest value is 4095: scale it to 65535"),
        (np.full((4, 6), 0.5, np.float32), "of mode 'F' with values from 0.5 to 0.5: convert it to 8 bits"),
        (np.full((4, 6), 70000, np.int32), "of mode 'I' with values from 70000 to 70000: convert it to 8 bits"),
    ],
)
def test_values_that_no_high_byte_stands_for_are_refused(values: Any, message: str, folder: Path) -> None:
    Image.fromarray(values).save(folder / "ant" / "deep.tif")
    for size in (None, 9):
        with pytest.raises(DataError, match=rf"deep\.tif: .*{message}"):
            load_data(folder, size=size)


def test_palettes_and_transparency_become_rgb(tmp_path: Path) -> None:
    for name, mode in (("a", "P"), ("b", "RGBA")):
        for number in range(5):
            path = tmp_path / name / f"{number}.png"
            paint(path, 51)  # a colour of the web palette, so that nothing is rounded
            Image.open(path).convert(mode).save(path)
    assert set(load_data(tmp_path).train.images[:, 0].flatten().tolist()) == {51}


def test_what_is_no_tree_of_classes_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="ant: no labels here"):
        load_data(folder / "ant")
    (folder / "dog").mkdir()
    with pytest.raises(DataError, match="dog: no image in it"):
        load_data(folder)
    (folder / "dog" / "readme.md").write_text("x")
    with pytest.raises(DataError, match=r"no image in it \(readme\.md\)"):
        load_data(folder)
    paint(tmp_path / "two" / "train" / "a" / "0.png", 1)
    paint(tmp_path / "two" / "train" / "b" / "0.png", 1)
    paint(tmp_path / "two" / "val" / "c" / "0.png", 1)
    with pytest.raises(DataError, match="val/c: a class that no split before has"):
        load_data(tmp_path / "two")
    with pytest.raises(DataError, match="max_bytes"):
        load_data(tmp_path / "two" / "train", max_bytes=100)


class Items(list[Any]):
    """A list of (image, label) with class names."""

    classes = ("no", "yes")


PIXELS = RNG.integers(0, 256, (30, 5, 7, 3), dtype=np.uint8)
MAKERS = {
    "pillow": Image.fromarray,
    "array": lambda pixels: pixels,
    "tensor": lambda pixels: torch.from_numpy(pixels.transpose(2, 0, 1).copy()),
    "float": lambda pixels: torch.from_numpy(pixels.transpose(2, 0, 1) / np.float32(255)),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_every_kind_of_image_gives_the_same_pixels(kind: str) -> None:
    data = load_data(Items((MAKERS[kind](pixels), row % 2) for row, pixels in enumerate(PIXELS)))  # type: ignore[no-untyped-call]
    assert data.test is not None
    assert (data.name, data.class_names) == ("dataset", ("no", "yes"))
    assert [len(data.train), len(data.val), len(data.test)] == [24, 3, 3]
    assert np.array_equal(data.train.images.numpy(), PIXELS.transpose(0, 3, 1, 2))
    for split in data.parts.values():
        assert split.labels is not None
        assert labels_of(split).tolist() == [row % 2 for row in split.index.tolist()]


def test_floats_are_rounded_not_cut_off() -> None:
    # 0.999 * 255 is 254.745: the nearest byte is 255.
    data = load_data([(torch.full((1, 5, 5), 0.999), row % 2) for row in range(10)])
    assert set(data.train.images.flatten().tolist()) == {255}


def test_grey_images_keep_one_channel() -> None:
    pillow = [(Image.fromarray(pixels[..., 0]), np.int64(row % 3)) for row, pixels in enumerate(PIXELS)]
    dicts = [{"image": pixels[..., 0], "label": torch.tensor(row % 3)} for row, pixels in enumerate(PIXELS)]
    for items in (pillow, dicts):
        data = load_data(items)
        assert data.input_shape == (1, 5, 7)
        assert data.classes == 3
        assert np.array_equal(data.train.images[:, 0].numpy(), PIXELS[..., 0])


def test_torch_datasets_and_subsets_with_given_splits() -> None:
    whole = TensorDataset(torch.from_numpy(PIXELS.transpose(0, 3, 1, 2).copy()), torch.arange(30) % 2)
    whole.classes = ["x", "y"]  # type: ignore[attr-defined]
    train, val, test = Subset(whole, range(20)), Subset(whole, range(20, 26)), Subset(whole, range(26, 30))
    for source in ((train, val, test), {"train": train, "val": val, "test": test}):
        data = load_data(source)
        assert [len(split) for split in data.parts.values()] == [20, 6, 4]
        assert data.class_names == ("x", "y")
        assert np.array_equal(data.val.images.numpy(), PIXELS[20:26].transpose(0, 3, 1, 2))
    assert [len(split) for split in load_data({"train": train, "test": test}).parts.values()] == [18, 2, 4]


def test_data_sets_of_hugging_face_keep_their_split_and_class_names() -> None:
    class Column(list[Any]):
        features: ClassVar[dict[str, Any]] = {"image": object(), "label": SimpleNamespace(names=["cat", "dog"])}

    rows = Column({"image": pixels, "label": row % 2} for row, pixels in enumerate(PIXELS))
    data = load_data({"train": rows, "validation": rows, "test": rows})
    assert [len(split) for split in data.parts.values()] == [30, 30, 30]
    assert data.class_names == ("cat", "dog")


def test_columns_of_hugging_face_are_found_by_their_types() -> None:
    class Image: ...

    class ClassLabel:
        names: ClassVar[list[str]] = ["cat", "dog"]

    class Rows(list[Any]):
        features: ClassVar[dict[str, Any]] = {"label": object(), "photo": Image(), "kind": ClassLabel()}

    rows = Rows({"label": "x", "photo": pixels, "kind": row % 2} for row, pixels in enumerate(PIXELS))
    data = load_data({"train": rows, "val": rows, "test": rows})
    assert data.class_names == ("cat", "dog")
    assert labels_of(data.train).tolist() == [row % 2 for row in range(30)]


def test_class_names_are_those_of_the_labels_and_the_same_in_every_part() -> None:
    def rows(*names: str) -> Any:
        class Rows(list[Any]):
            features: ClassVar[dict[str, Any]] = {
                "camera": SimpleNamespace(names=["left", "right"]), "label": SimpleNamespace(names=list(names))
            }  # fmt: skip

        return Rows({"image": pixels, "label": row % 2} for row, pixels in enumerate(PIXELS))

    assert load_data(rows("cat", "dog")).class_names == ("cat", "dog")
    with pytest.raises(DataError, match="val: classes dog, cat, but the first part has cat, dog"):
        load_data({"train": rows("cat", "dog"), "val": rows("dog", "cat")})
    assert load_data({"train": Items(GOOD), "val": GOOD}).class_names == ("no", "yes")


GOOD = [(pixels, row % 2) for row, pixels in enumerate(PIXELS)]


def test_random_transforms_are_refused() -> None:
    class Random(Dataset[Any]):
        def __len__(self) -> int:
            return 30

        def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
            return torch.rand(1, 8, 8), row % 3

    with pytest.raises(DataError, match="differs when it is read again"):
        load_data({"train": Random()})


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([], "the dataset is empty"),
        ([*GOOD, (PIXELS[0], -1)], "item 30: label -1 is not a class number"),
        ([*GOOD, (PIXELS[0], 1.0)], "item 30: label 1.0"),
        ([*GOOD, (PIXELS[0], True)], "item 30: label True"),
        ([*GOOD, (PIXELS[0], None)], "item 30: label None"),
        ([*GOOD, (PIXELS[0], "cat")], r"item 30: label 'cat' .*np\.unique\(y, return_inverse=True\)"),
        (
            [*GOOD, (PIXELS[0].transpose(2, 0, 1), 0)],
            r"item 30: array \[3, 5, 7\]; .* \[H, W, C\] .*transpose\(1, 2, 0\)",
        ),
        ([*GOOD, (PIXELS[0][:4], 0)], "item 30: 4x7 .*the first image is 5x7"),
        ([*GOOD, (PIXELS[0].astype(np.float32), 0)], "item 30: ndarray float32"),
        ([*GOOD, (torch.zeros(5, 7, 3, dtype=torch.uint8), 0)], r"item 30: tensor \[5, 7, 3\]; .*permute\(2, 0, 1\)"),
        ([*GOOD, (torch.randn(3, 5, 7), 0)], "item 30: float tensor with values .*expected 0..1"),
        ([*GOOD, (torch.full((3, 5, 7), torch.nan), 0)], "item 30: float tensor with values nan"),
        ([*GOOD, (torch.zeros(3, 5, 7, dtype=torch.int64), 0)], "item 30: Tensor torch.int64"),
        ([*GOOD, ("x.png", 0)], "item 30: a str is not an image"),
        ([*GOOD, PIXELS[0]], "item 30 is a ndarray"),
        ([(PIXELS[0], 0), (PIXELS[1], 1)], "too few"),
        ([(pixels, 0) for pixels in PIXELS], "two or more"),
    ],
)
def test_bad_items_are_named(items: list[Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        load_data(items)


def test_an_item_that_cannot_be_read_is_named() -> None:
    class Torn(list[Any]):
        def __getitem__(self, row: Any) -> Any:
            if row == 7:
                raise KeyError("img_7")
            return super().__getitem__(row)

    with pytest.raises(DataError, match=r"dataset: item 7 cannot be read \(KeyError: 'img_7'\)"):
        load_data(Torn(GOOD))
    with pytest.raises(DataError, match=r"val: item 7 cannot be read"):
        load_data({"train": GOOD, "val": Torn(GOOD)})


def test_labels_beyond_the_class_names_are_refused() -> None:
    with pytest.raises(DataError, match=r"label 2 of row 29 is out of range 0\.\.1"):
        load_data(Items([*GOOD[:29], (PIXELS[29], 2)]))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (3, "unsupported data source: int"),
        (iter(GOOD), "unsupported data source"),
        ((GOOD, GOOD), "a tuple of 2"),
        ({"train": GOOD, "more": GOOD}, "expected train, at most one"),
        ({"test": GOOD}, "expected train, at most one"),
    ],
)
def test_objects_that_are_no_data_are_refused(source: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load_data(source)


def test_a_data_set_that_takes_too_much_memory_is_refused() -> None:
    with pytest.raises(DataError, match="max_bytes"):
        load_data(GOOD, max_bytes=1000)


def test_class_names_are_taken_from_the_dataset_itself_or_through_a_subset() -> None:
    """A wrapper may change labels; a Subset does not. What is no list of names is ignored."""

    class Wrapper(list[Any]):
        dataset = Items(GOOD)

    assert load_data(Wrapper(GOOD)).class_names == ("0", "1")
    assert load_data(Subset(Subset(Items(GOOD), range(30)), range(30))).class_names == ("no", "yes")  # type: ignore[arg-type]
    for classes in (
        {"no": 1, "yes": 0},
        2,
        None,
        "ab",
        [["a"], ["b"]],
        lambda: ["a", "b"],
    ):

        class Other(list[Any]):
            pass

        Other.classes = classes  # type: ignore[attr-defined]
        assert load_data(Other(GOOD)).class_names == ("0", "1"), classes
    for named in (["7", "8"], [7, 8], np.array([7, 8]), np.array(["7", "8"]), (np.str_("7"), np.str_("8"))):
        Other.classes = named  # type: ignore[attr-defined]
        assert load_data(Other(GOOD)).class_names == ("7", "8")
        assert {type(name) for name in load_data(Other(GOOD)).class_names} == {str}


def test_labels_from_one_on_are_refused_and_rare_class_numbers_said() -> None:
    with pytest.raises(
        DataError, match=r"dataset: labels begin at 1: .*: subtract 1, or, if class 0 has no images here"
    ):
        load_data([(pixels, 1 + row % 2) for row, pixels in enumerate(PIXELS)])
    assert load_data(Items((pixels, 1) for pixels in PIXELS)).classes == 2
    with pytest.warns(
        DataWarning, match="dataset: 106 of 108 classes have no image .*: number them from 0 without gaps"
    ):
        data = load_data([(pixels, (100, 107)[row % 2]) for row, pixels in enumerate(PIXELS)])
    assert data.classes == 108
    with pytest.warns(DataWarning, match=r"dataset: 1 of 3 classes have no image \(1\)"):
        load_data([(pixels, (0, 2)[row % 2]) for row, pixels in enumerate(PIXELS)])


def test_items_may_have_their_label_under_labels() -> None:
    class Column(list[Any]):
        features: ClassVar[dict[str, Any]] = {"image": object(), "labels": SimpleNamespace(names=["cat", "dog"])}

    data = load_data(Column({"image": pixels, "labels": row % 2} for row, pixels in enumerate(PIXELS)))
    assert data.class_names == ("cat", "dog")
    assert labels_of(data.train).bincount().tolist() == [12, 12]


def test_sizes_of_other_integers(folder: Path) -> None:
    assert load_data(folder, size=np.int64(7)).input_shape == (3, 7, 7)  # type: ignore[arg-type]
    assert load_data(folder, size=(np.int32(7), 8)).input_shape == (3, 7, 8)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="20000x20000 pixels are more than"):
        load_data(folder, size=20_000)
    for size in (7.0, "7", (7,), (7, 8.5), 0):
        with pytest.raises(UsageError, match=r"size .*expected pixels, or \(height, width\)"):
            load_data(folder, size=size)  # type: ignore[arg-type]


def test_a_folder_with_the_name_of_an_embedded_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for there in ("MNIST/raw", ".cache"):
        (tmp_path / "mnist-5k" / there).mkdir(parents=True)
        assert load_data("mnist-5k").classes == 10
    for name in ("a", "b"):
        for number in range(5):
            paint(tmp_path / "mnist-5k" / name / f"{number}.png", number)
    with pytest.warns(
        DataWarning, match=r"'mnist-5k' is read as the data set of that name: for the folder here say \./mnist-5k"
    ):
        assert load_data("mnist-5k").classes == 10
    (tmp_path / "mnist-5k" / "MNIST" / "raw").rmdir()
    (tmp_path / "mnist-5k" / "MNIST").rmdir()
    assert load_data("./mnist-5k").classes == 2
