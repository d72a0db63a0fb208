"""CSV files of paths and labels, as people and competitions have them; loaded and packed alike."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from noisyteacher.data import Splits, load_data, pack_data
from noisyteacher.data.csv_labels import class_order
from noisyteacher.errors import DataError, DataWarning, UsageError


def write(folder: Path, text: str, images: int = 40, encoding: str = "utf-8") -> Path:
    """A file labels.csv, and images `0.png`, `1.png`, ... beside it whose pixels have the value of their number."""
    folder.mkdir(exist_ok=True)
    for number in range(images):
        Image.fromarray(np.full((4, 6, 3), number, np.uint8)).save(folder / f"{number}.png")
    path = folder / "labels.csv"
    path.write_text(text, encoding=encoding)
    return path


def both(path: Path, out: Path, root: Path | None = None) -> Splits:
    """The data of a file, once it is known that a packed copy holds the same."""
    loaded, packed = load_data(path, root=root), load_data(pack_data(path, out, root=root, fit="squash").path)
    assert repr(loaded) == repr(packed)
    assert [split.fingerprint for split in loaded.parts.values()] == [s.fingerprint for s in packed.parts.values()]
    return loaded


def labels_by_image(data: Splits) -> dict[int, str]:
    """The number of an image, which its pixels say, -> the name of its class."""
    return {
        int(image[0, 0, 0]): data.class_names[label]
        for split in data.parts.values()
        if split.labels is not None
        for image, label in zip(split.first_images(len(split)), split.labels.tolist(), strict=True)
    }


def test_images_get_the_labels_of_their_rows(tmp_path: Path) -> None:
    rows = "".join(f"{number}.png,{'cat' if number % 3 else 'ant'}\n" for number in range(40))
    data = both(write(tmp_path / "set", f"path,label\n{rows}"), tmp_path / "out")
    assert (data.name, data.class_names) == ("labels", ("ant", "cat"))
    assert [len(split) for split in data.parts.values()] == [32, 4, 4]
    assert labels_by_image(data) == {number: "cat" if number % 3 else "ant" for number in range(40)}


@pytest.mark.parametrize(
    ("header", "row", "encoding"),
    [
        ("label,image", "{label},{name}", "utf-8"),
        ("Class Name;File_Name", '"{label}";{name}', "utf-8-sig"),  # a spreadsheet's, with a byte-order mark
        ("category\tfilepath", "{label}\t./{name}", "utf-8"),
    ],
)
def test_headers_in_other_orders_and_words(header: str, row: str, encoding: str, tmp_path: Path) -> None:
    rows = "\n".join(row.format(label="ab"[number % 2], name=f"{number}.png") for number in range(40))
    data = load_data(write(tmp_path, f"{header}\n{rows}\n\n", encoding=encoding))
    assert labels_by_image(data) == {number: "ab"[number % 2] for number in range(40)}


def test_the_column_of_splits_and_a_split_without_labels(tmp_path: Path) -> None:
    splits = ["Train"] * 20 + ["valid"] * 10 + ["TEST"] * 10
    rows = "".join(f"{n}.png,{'' if split == 'TEST' else n % 2},{split}\n" for n, split in enumerate(splits))
    data = both(write(tmp_path / "set", f"file,label,split\n{rows}"), tmp_path / "out")
    assert [len(split) for split in data.parts.values()] == [20, 10, 10]
    assert data.test is not None
    assert data.test.labels is None
    assert labels_by_image(data) == {number: str(number % 2) for number in range(30)}


def test_paths_begin_in_the_root(tmp_path: Path) -> None:
    path = write(tmp_path / "images", "path,label\n" + "".join(f"{n}.png,{n % 2}\n" for n in range(20)))
    elsewhere = path.rename(tmp_path / "elsewhere.csv")
    assert len(labels_by_image(both(elsewhere, tmp_path / "out", tmp_path / "images"))) == 20
    with pytest.raises(DataError, match=r"20 of 20 files are not in .*: 0\.png, 1\.png, 2\.png, \.\.\. .*--data-root"):
        load_data(elsewhere)


def test_classes_are_in_the_order_of_numbers_where_all_are_numbers() -> None:
    assert class_order({"10", "9", "2"}) == ["2", "9", "10"]
    assert class_order({"10.0", "-1", "2.5"}) == ["-1", "2.5", "10.0"]
    assert class_order({"10", "9", "b2"}) == ["10", "9", "b2"]
    assert class_order({"b", "B", "a"}) == ["B", "a", "b"]  # as folders: by code points
    assert class_order({"inf", "nan", "1"}) == ["1", "inf", "nan"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,label\n0.png,a\nx.png,b\n", r"1 of 2 files are not in .*: x\.png; paths"),
        ("path,label\n0.png,a\n1.png,b\n0.png,b\n", r"line 4: 0\.png is listed twice, with 'a' and 'b': keep one"),
        ("path,label,split\n0.png,a,train\n./0.png,a,test\n", r"line 3: .* is listed twice, with 'train' and 'test'"),
        ("path,label,split\n0.png,a,train\n1.png,b,holdout\n", r"line 3: split 'holdout': expected train, val or test"),
        ("path,label\n0.png,a\n1.png,\n2.png,b\n", r"1 of 3 images \(all\) have no label: 1\.png; expected"),
        ("path,label\n,a\n", r"line 2: no path in column 'path'"),
        ("name,breed\n0.png,a\n", r"columns are name, breed; expected one column for the path, called path, image,"),
        ("path,breed\n0.png,a\n", r"columns are path, breed; expected one column for the label, called label,"),
        ("path,image,label\n0.png,0.png,a\n", r"columns are path, image, label; expected one column for the path"),
        ("path,label\n", "no row below the header"),
        ("", "columns are none; expected one column for the path"),
        ("path,label,split\n0.png,a,test\n1.png,b,test\n", "no row has the split train"),
        ("path,label,split\n0.png,a,train\n1.png,b,train\n2.png,c,val\n", r"2\.png: label 'c': a class that no split"),
        ("path,label\n0.png,cat, black\n1.png,dog\n", r"line 2: more cells than columns: put quotes around .* ','"),
        ("path,label\n0.png,1\n1.png,1.0\n2.png,2\n", r"labels '1' and '1\.0' are one number written in two ways"),
        ('path,label\n"0.png,a\n', "not a CSV file in UTF-8"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_file_is_named(text: str, words: str, tmp_path: Path) -> None:
    path = write(tmp_path, text, images=3)
    for read in (lambda: load_data(path), lambda: pack_data(path, tmp_path / "out")):
        with pytest.raises(DataError, match=words):
            read()


def test_an_absolute_path_and_a_relative_one_are_one_file(tmp_path: Path) -> None:
    path = write(tmp_path, f"path,label\n0.png,a\n1.png,b\n{tmp_path}/0.png,b\n", images=2)
    with pytest.raises(DataError, match=r"0\.png and /.*/0\.png are one file: keep one row"):
        load_data(path)


def test_text_of_another_encoding_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "path,label\n0.png,käfer\n", images=1, encoding="latin-1")
    with pytest.raises(DataError, match=r"labels\.csv: not a CSV file in UTF-8"):
        load_data(path)


def test_columns_that_are_not_read_are_named(tmp_path: Path) -> None:
    rows = "".join(f"{n}.png,{n % 2},x\n" for n in range(20))
    with pytest.warns(DataWarning, match="columns that are not read: splt"):
        data = load_data(write(tmp_path, f"path,label,splt\n{rows}"))
    assert data.note == "columns that are not read: splt."


def test_options_of_image_files(tmp_path: Path) -> None:
    labelled = write(tmp_path / "set", "path,label\n" + "".join(f"{n}.png,{n % 2}\n" for n in range(20)))
    assert load_data(labelled, size=8, grey=True).input_shape == (1, 8, 8)
    with pytest.raises(UsageError, match="the source has its own classes"):
        load_data(labelled, classes=3)
    unlabelled = write(tmp_path / "other", "path,label\n" + "".join(f"{n}.png,\n" for n in range(20)))
    assert load_data(unlabelled, classes=3).class_names == ("0", "1", "2")
    with warnings.catch_warnings(), pytest.raises(UsageError, match="no labels here"):
        load_data(unlabelled)


def test_a_suffix_in_upper_case(tmp_path: Path) -> None:
    table = "".join([f"{number}.png,{'ab'[number % 2]}\n" for number in range(20)])
    for number in range(20):
        Image.new("L", (4, 4), number).save(tmp_path / f"{number}.png")
    (tmp_path / "L.CSV").write_text(f"path,label\n{table}")
    assert load_data(tmp_path / "L.CSV", size=3).class_names == ("a", "b")
