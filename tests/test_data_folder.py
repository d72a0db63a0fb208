"""Folders of images as people have them: names of splits, no class folders, odd suffixes; loaded and packed alike."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, features
from typer.testing import CliRunner

from noisyteacher.cli import app
from noisyteacher.data import Splits, load_data, pack_data
from noisyteacher.data.split import role_of
from noisyteacher.errors import DataError, DataWarning, UsageError

DICE = np.random.default_rng(0)


def draw(path: Path, count: int = 1, suffix: str = ".png", **options: Any) -> None:
    """So many noisy images 6 x 4 in a folder, named 0, 1, ... with the suffix."""
    path.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        image = Image.fromarray(DICE.integers(0, 256, (4, 6, 3), dtype=np.uint8))
        image.save(path / f"{number}{suffix}", **options)


def both(root: Path, out: Path, **options: Any) -> Splits:
    """The data of a folder, once it is known that a packed copy holds the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        loaded = load_data(root, **options)
        packed = load_data(pack_data(root, out, fit="squash", **options).path)
    assert repr(loaded) == repr(packed)
    assert loaded.note == packed.note
    for mine, theirs in zip(loaded.parts.values(), packed.parts.values(), strict=True):
        assert mine.fingerprint == theirs.fingerprint
        assert (mine.labels is None) == (theirs.labels is None)
        assert mine.labels is None or theirs.labels is None or torch.equal(mine.labels, theirs.labels)
    return loaded


def refused(root: Path, out: Path, words: str, kind: type[Exception] = DataError, **options: Any) -> None:
    for read in (lambda: load_data(root, **options), lambda: pack_data(root, out, **options)):
        with pytest.raises(kind, match=words):
            read()
    assert not out.exists()


@pytest.mark.parametrize(
    "names",
    [
        ("train", "valid", "test"), ("Train", "Val", "Test"), ("training", "validation", "testing"),
        ("TRAINING", "dev", "Testing"),
    ],
)  # fmt: skip
def test_split_folders_by_their_usual_names(names: tuple[str, str, str], tmp_path: Path) -> None:
    root = tmp_path / "set"
    for name, count in zip(names, (4, 2, 3), strict=True):
        for label in ("ant", "bee"):
            draw(root / name / label, count)
    data = both(root, tmp_path / "out")
    assert data.test is not None
    assert [len(data.train), len(data.val), len(data.test)] == [8, 4, 6]
    assert (data.class_names, data.note) == (("ant", "bee"), "")


def test_roles() -> None:
    assert [role_of(name) for name in ("Dev", "TRAINING", "tests", "cat", "")] == ["val", "train", None, None, None]


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (("train/a", "train/b", "val/a", "valid/a"), r"val/, valid/ are 2 folders for one split \(val\): keep one"),
        (
            ("train/a", "train/b", "extra/a"),
            "train/ beside extra/: expected split folders alone",
        ),
        (("cat", "dog", "Test"), "Test/ beside cat/, dog/: .*rename a class that is named like a split"),
        (("train/a", "train/test"), "train: test/ inside a split or class"),
        (("train/train/a", "train/val/a"), "train: train/, val/ inside a split or class"),
        (
            ("cat/train", "cat/test", "dog/train"),
            "cat: test/, train/ inside a split or class",
        ),
        (("val/a", "val/b", "test/a"), r"has test/, val/ but no train folder"),
        (
            ("archive/train/a", "archive/train/b"),
            "set/archive: the only class folder; .*give it as the data set",
        ),
        (("train/a", "train/b", "val/c"), r"val/c: a class that no split before has \(a, b\)"),
    ],
)
def test_mixtures_of_splits_and_classes_are_refused(folders: tuple[str, ...], words: str, tmp_path: Path) -> None:
    for name in folders:
        draw(tmp_path / "set" / name)
    refused(tmp_path / "set", tmp_path / "out", words)


def test_two_spellings_of_one_split_are_refused(tmp_path: Path) -> None:
    for name in ("train", "Training"):
        draw(tmp_path / "set" / name / "a")
        draw(tmp_path / "set" / name / "b")
    refused(tmp_path / "set", tmp_path / "out", r"Training/, train/ are 2 folders for one split \(train\)")


@pytest.mark.parametrize("second", ["test", "Val"])
def test_split_folders_without_class_folders_hold_images_without_labels(second: str, tmp_path: Path) -> None:
    root = tmp_path / "photos"
    draw(root / "train", 10)
    draw(root / second, 3)
    refused(root, tmp_path / "out", "no labels here.*--(set data.)?classes", UsageError)
    data = both(root, tmp_path / "out", classes=4)
    assert data.class_names == ("0", "1", "2", "3")
    assert {role: (len(split), split.labels) for role, split in data.parts.items()} == (
        {"train": (9, None), "val": (1, None), "test": (3, None)} if second == "test" else
        {"train": (10, None), "val": (3, None)}
    )  # fmt: skip
    result = CliRunner().invoke(app, ["data", "check", str(root)])
    assert isinstance(result.exception, UsageError)
    assert "--set data.classes=10" in str(result.exception)
    result = CliRunner().invoke(app, ["data", "check", str(root), "--set", 'data.classes=["cat","dog"]', "--json"])
    summary = json.loads(result.output)
    assert (summary["class_names"], summary["splits"]["train"]["per_class"]) == (["cat", "dog"], None)


def test_images_alone_are_images_without_labels(tmp_path: Path) -> None:
    draw(tmp_path / "photos", 20)
    data = both(tmp_path / "photos", tmp_path / "out", classes=["cat", "dog"])
    assert [(len(split), split.labels) for split in data.parts.values()] == [(16, None), (2, None), (2, None)]
    with pytest.raises(UsageError, match="classes has no effect on 'mnist-5k'"):
        load_data("mnist-5k", classes=10)


def test_a_validation_folder_without_class_folders_beside_a_labelled_one(tmp_path: Path) -> None:
    for label in ("ant", "bee"):
        draw(tmp_path / "set" / "train" / label, 3)
    draw(tmp_path / "set" / "valid", 5)
    data = both(tmp_path / "set", tmp_path / "out")
    assert (len(data.train), len(data.val), data.val.labels) == (6, 5, None)
    assert data.note == "valid/: images without class folders, read as images without labels."


def test_images_deeper_in_a_class_folder_and_empty_split_folders(tmp_path: Path) -> None:
    for label in ("ant", "bee"):
        draw(tmp_path / "set" / "train" / label, 5)
        draw(tmp_path / "set" / "train" / label / "more" / "of", 5)
    (tmp_path / "set" / "val").mkdir()
    data = both(tmp_path / "set", tmp_path / "out")
    assert [len(split) for split in data.parts.values()] == [18, 2]


def test_every_suffix_that_pillow_reads_and_none(tmp_path: Path) -> None:
    """Files are read by what Pillow says of their suffix, those without one by their content; the rest is counted."""
    ant = tmp_path / "set" / "ant"
    kinds = {
        ".jfif": "JPEG",
        ".jpe": "JPEG",
        ".JPG": "JPEG",
        ".PnG": "PNG",
        ".jp2": "JPEG2000",
        ".pnm": "PPM",
        "": "PNG",
    }
    if features.check("avif"):
        kinds[".avif"] = "AVIF"
    for suffix, kind in kinds.items():
        draw(ant, 2, suffix, format=kind)
    draw(tmp_path / "set" / "bee", 6)
    for name in ("a.heic", "b.HEIC", "notes.txt", "LICENSE", "icon.ico"):
        (ant / name).write_bytes(b"no image")
    (tmp_path / "set" / "README.md").write_text("x")
    draw(tmp_path / "set")
    for name in ("Thumbs.db", ".DS_Store", "desktop.ini", "._0.jpg"):
        (ant / name).write_bytes(b"x")
    (tmp_path / "set" / "__MACOSX").mkdir()
    os.mkfifo(ant / "pipe")
    data = both(tmp_path / "set", tmp_path / "out")
    images = 2 * len(kinds) + 6
    assert sum(len(split) for split in data.parts.values()) == images
    assert data.note == (
        f"8 of {images + 8} files are not read as images: 2 without a suffix (ant/LICENSE), 2 .heic "
        "(ant/a.heic), 1 .ico (ant/icon.ico), 1 .txt (ant/notes.txt), 1 .png beside folders (0.png), ... (6)."
    )


def test_what_is_left_out_is_told_by_the_commands(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for label in ("ant", "bee"):
        draw(tmp_path / "set" / label, 10)
    (tmp_path / "set" / "bee" / "a.heic").write_bytes(b"x")
    words = "1 of 21 files are not read as images: 1 .heic (bee/a.heic)."
    with pytest.warns(DataWarning, match=r"1 \.heic"):
        load_data(tmp_path / "set")
    for command in (["check", "set"], ["pack", "set", "out", "--quiet"], ["check", "out"]):
        arguments = [str(tmp_path / word) if word in ("set", "out") else word for word in command]
        result = CliRunner().invoke(app, ["data", *arguments])
        assert (result.exit_code, words in " ".join(result.output.split())) == (0, True), result.output


def test_a_command_says_a_warning_in_a_sentence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from noisyteacher.cli.output import warnings_as_sentences

    messages: list[str] = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, *more, **named: messages.append(str(message)))
    with warnings_as_sentences():
        warnings.simplefilter("always")
        warnings.warn("set: 1 of 21 files\x1b[0m", DataWarning, stacklevel=1)
        warnings.warn("another one", UserWarning, stacklevel=1)
    assert (capfd.readouterr().err, messages) == ("warning: set: 1 of 21 files\\u001b[0m\n", ["another one"])


def test_links_are_followed_once(tmp_path: Path) -> None:
    for label in ("ant", "bee"):
        draw(tmp_path / "elsewhere" / label, 5)
        (tmp_path / "set").mkdir(exist_ok=True)
        (tmp_path / "set" / label).symlink_to(tmp_path / "elsewhere" / label)
    assert len(load_data(tmp_path / "set").train) == 8
    (tmp_path / "set" / "cow").symlink_to(tmp_path / "elsewhere" / "bee")
    with pytest.raises(DataError, match="cow: a link to a folder that an earlier link leads to"):
        load_data(tmp_path / "set")


def test_a_folder_of_parquet_files_is_sent_to_pack(tmp_path: Path) -> None:
    (tmp_path / "hub" / "data").mkdir(parents=True)
    (tmp_path / "hub" / "data" / "train-0.parquet").write_bytes(b"PAR1")
    with pytest.raises(UsageError, match="noisyteacher data pack"):
        load_data(tmp_path / "hub")
