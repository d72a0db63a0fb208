"""Packed data sets: equal to what is loaded directly, whatever is interrupted, broken, hostile or unlabelled."""

from __future__ import annotations

import io
import os
import shutil
import struct
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import noisyteacher as nt
from helpers import labels_of
from noisyteacher.data import Packed, images, load_data, pack_data, sources
from noisyteacher.data.images import Resize, decode
from noisyteacher.errors import DataError, UnknownNameError, UsageError, WriteError
from noisyteacher.io import files

RNG = np.random.default_rng(0)


def draw(path: Path, size: tuple[int, int] = (12, 10), **options: Any) -> None:
    """A noisy image; size is (width, height), as Pillow has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path, **options)


def tree(root: Path, per_class: int = 10) -> Path:
    for name in ("ant", "bee"):
        for number in range(per_class):
            draw(root / name / f"{number:02d}.jpg", (10 + number, 12))
    return root


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tree(tmp_path / "pets")


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_packed_images_are_those_of_the_folder(source: Path, tmp_path: Path) -> None:
    packed = pack_data(source, tmp_path / "out", size=8, fit="squash")
    ours, theirs = load_data(tmp_path / "out"), load_data(source, size=8)
    assert repr(ours) == repr(theirs)
    for mine, other in zip(ours.parts.values(), theirs.parts.values(), strict=True):
        assert mine.fingerprint == other.fingerprint
        assert torch.equal(labels_of(mine), labels_of(other))
    assert packed.files("all")[:2] == ["ant/00.jpg", "ant/01.jpg"]
    assert packed.rows == {"all": 20}
    assert packed.verify() == packed.total_bytes == 20 * 3 * 8 * 8
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["images.u8", "packed.json"]


def test_roles_stay_apart_and_a_hold_out_is_the_folders(source: Path, tmp_path: Path) -> None:
    root = tmp_path / "split"
    root.mkdir()
    source.rename(root / "train")
    draw(root / "test" / "bee" / "0.png")
    pack_data(root, tmp_path / "out", size=8, fit="squash")
    ours, theirs = load_data(tmp_path / "out", seed=3), load_data(root, size=8, seed=3)
    assert ours.test is not None
    assert [len(ours.train), len(ours.val), labels_of(ours.test).tolist()] == [18, 2, [1]]
    assert ours.val.index.tolist() == theirs.val.index.tolist()


def test_any_number_of_jobs_gives_the_same_bytes(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source / "ant" / "03.jpg").write_bytes(b"x")
    monkeypatch.setattr(images, "_CHUNK", 3)
    for name, jobs in (("one", 1), ("two", 2)):
        pack_data(source, tmp_path / name, size=8, skip_corrupt=True, jobs=jobs)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    packed = Packed.open(tmp_path / "one")
    names = packed.files("all")
    for split in packed.splits().parts.values():
        assert split.labels is not None
        assert [names[row][:3] for row in split.index.tolist()] == [("ant", "bee")[label] for label in split.labels]


@pytest.mark.parametrize(("size", "shape"), [((30, 10), (5, 5)), ((12, 40), (6, 6)), ((24, 24), (6, 12))])
def test_crop_scales_and_cuts_the_middle_squash_scales_alone(size: tuple[int, int], shape: tuple[int, int]) -> None:
    image = Image.fromarray(RNG.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    data = io.BytesIO()
    image.save(data, "png")
    scale = min(size[0] / shape[1], size[1] / shape[0])
    scaled = np.asarray(image.resize((round(size[0] / scale), round(size[1] / scale)), Image.Resampling.BILINEAR))
    top, left = (scaled.shape[0] - shape[0]) // 2, (scaled.shape[1] - shape[1]) // 2
    middle = scaled[top : top + shape[0], left : left + shape[1]].transpose(2, 0, 1)
    assert np.array_equal(decode(data.getvalue(), Resize(shape, fit="crop")), middle)
    squashed = np.asarray(image.resize(shape[::-1], Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.array_equal(decode(data.getvalue(), Resize(shape)), squashed)


def test_an_interrupted_pack_starts_again(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = content(pack_data(source, tmp_path / "whole", size=8).path)
    real, decoded = images.decode_all, []

    def interrupted(*arguments: Any) -> Any:
        for image in real(*arguments):
            decoded.append(image)
            if len(decoded) == 7:
                raise KeyboardInterrupt
            yield image

    with monkeypatch.context() as patched:
        patched.setattr("noisyteacher.data.packed.decode_all", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pack_data(source, tmp_path / "out", size=8)
        assert not (tmp_path / "out").exists()
        patched.setattr("noisyteacher.io.files.write_json", lambda *_, **__: 1 // 0)
        patched.setattr("noisyteacher.data.packed.decode_all", real)
        with pytest.raises(ZeroDivisionError):  # the images are there, the record is not
            pack_data(source, tmp_path / "out", size=8)
    (tmp_path / "out" / ".images.u8.0123abcd.tmp").write_bytes(b"of a pack that was killed")
    (tmp_path / "out" / ".draft.tmp").write_bytes(b"of somebody else")
    with pytest.raises(DataError, match="an unfinished pack"):
        load_data(tmp_path / "out")
    pack_data(source, tmp_path / "out", size=8)
    assert (tmp_path / "out" / ".draft.tmp").read_bytes() == b"of somebody else"
    (tmp_path / "out" / ".draft.tmp").unlink()
    assert content(tmp_path / "out") == whole


def test_a_packed_folder_is_never_packed_over(source: Path, tmp_path: Path) -> None:
    pack_data(source, tmp_path / "out", size=8)
    before = content(tmp_path / "out")
    for size in (8, 9):
        with pytest.raises(UsageError, match="holds a packed data set already"):
            pack_data(source, tmp_path / "out", size=size)
    assert content(tmp_path / "out") == before


def test_packs_of_the_old_layout_are_to_be_packed_again(source: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    files.write_json(old / "packed.json", "packed-data", 1, {"name": "pets", "parts": []})
    with pytest.raises(DataError, match=r"schema 1, this version of noisyteacher reads 2.*run data pack again"):
        load_data(old)
    with pytest.raises(UsageError, match="holds a packed data set already: remove it"):
        pack_data(source, old, size=8)


def test_what_cannot_be_meant(source: Path, tmp_path: Path) -> None:
    for words, options in (
        ("size 0", {"size": 0}),
        ("jobs=0", {"jobs": 0}),
        ("classes=5 has no effect", {"classes": 5, "size": 8}),
    ):
        with pytest.raises(UsageError, match=words):
            pack_data(source, tmp_path / "out", **options)  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="did you mean 'crop'"):
        pack_data(source, tmp_path / "out", fit="crops")
    with pytest.raises(UsageError, match="lies inside the source"):
        pack_data(source, source / "packed", size=8)
    with pytest.raises(UsageError, match="a list cannot be packed"):
        pack_data([1], tmp_path / "out")
    with pytest.raises(DataError, match="first image is 12x10"):
        pack_data(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    pack_data(source, tmp_path / "good", size=8)
    with pytest.raises(UsageError, match="is packed already"):
        pack_data(tmp_path / "good", tmp_path / "again")
    with pytest.raises(UsageError, match="size has no effect"):
        load_data(tmp_path / "good", size=8)


def test_a_full_disk_is_reported_and_leaves_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10})())
        with pytest.raises(WriteError, match=r"3\.84 kB are needed, 10 B are free"):
            pack_data(source, tmp_path / "out", size=8)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(WriteError, match="the disk is full"):
            pack_data(source, tmp_path / "out", size=8)
    assert not (tmp_path / "out").exists()
    assert pack_data(source, tmp_path / "out", size=8).verify()


# --- what cannot be read ---------------------------------------------------------------------------------------------


def huge(path: Path) -> None:
    """A PNG of some bytes that announces 10^9 pixels."""
    header = struct.pack(">IIBBBBB", 40_000, 25_000, 8, 2, 0, 0, 0)
    chunks = b""
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")):
        chunks += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


def test_what_cannot_be_read_is_named_counted_and_left_out_on_request(source: Path, tmp_path: Path) -> None:
    ant, outside = source / "ant", tmp_path / "outside.jpg"
    draw(outside)
    whole = (ant / "00.jpg").read_bytes()
    (ant / "a-empty.jpg").write_bytes(b"")
    (ant / "b-cut.jpg").write_bytes(whole[: len(whole) // 2])
    huge(ant / "c-huge.png")
    Image.fromarray(np.full((8, 8), 4000, np.uint16)).save(ant / "d-deep.png")
    (ant / "e-script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(x) run\n%%EOF\n")
    (ant / "f-out.jpg").symlink_to(outside)
    (ant / "g-circle.jpg").symlink_to("g-circle.jpg")
    (ant / "h-loop").symlink_to(source, target_is_directory=True)
    os.mkfifo(ant / "i-pipe.png")
    (ant / "j\n\x1b[31m.png").write_bytes(b"x")
    (ant / "inside.jpg").symlink_to("00.jpg")
    (ant / "k-bee").symlink_to(source / "bee", target_is_directory=True)
    deep = ant / "/".join(["n"] * 70)
    draw(deep / "deep.jpg")
    draw(ant / "n" / "near.jpg")
    (ant / "notes.txt").write_text("no image")
    with pytest.raises(DataError) as error:
        pack_data(source, tmp_path / "out", size=8)
    words = [
        "12 images of pets cannot be read",
        "a-empty.jpg: cannot be decoded",
        "b-cut.jpg: cannot be decoded",
        "c-huge.png: it declares more than 134217728 pixels",
        "d-deep.png: a grey image of 16 bits whose largest value is 4000",
        "e-script.png: cannot be decoded (not an image of a known format)",
        "f-out.jpg: a link that leads out of the folder",
        "g-circle.jpg: a link that leads nowhere",
        "h-loop: a link to a folder around it",
        "i-pipe.png: is not a regular file",
        "[31m.png: cannot be decoded",
        "and 2 more",
        "--skip-corrupt",
    ]
    assert [word for word in words if word not in str(error.value)] == []
    packed = pack_data(source, tmp_path / "out", size=8, skip_corrupt=True)
    assert packed.rows == {"all": 22}
    names = ["a-e", "b-c", "c-h", "d-d", "e-s", "f-o", "g-c", "h-l", "i-p", "j", "k-b", "n/n/n/"]
    assert len(packed.left_out) == len(names)
    assert all(image["file"].startswith(f"ant/{name}") for image, name in zip(packed.left_out, names, strict=True))
    assert packed.left_out[-2]["reason"].startswith("a link to a folder: --follow-links")
    assert packed.left_out[-1]["reason"] == "nested deeper than 64 folders"
    assert {"ant/inside.jpg", "ant/n/near.jpg"} < set(packed.files("all"))
    assert pack_data(source, tmp_path / "more", size=8, skip_corrupt=True, follow_links=True).rows == {"all": 33}


def test_a_folder_whose_images_all_fail_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "bad" / name).mkdir(parents=True)
        (tmp_path / "bad" / name / "x.png").write_bytes(b"x")
    stages: list[str] = []
    with pytest.raises(DataError, match="no image of bad can be read"):
        pack_data(
            tmp_path / "bad", tmp_path / "out", size=4, skip_corrupt=True, watch=lambda stage, *_: stages.append(stage)
        )
    assert set(stages) == {"packing bad"}
    assert not (tmp_path / "out" / "packed.json").exists()


def test_names_that_are_no_text(source: Path, tmp_path: Path) -> None:
    odd = os.fsdecode(b"\xff\xfe.jpg")
    (source / "ant" / "00.jpg").rename(source / "ant" / odd)
    packed = pack_data(source, tmp_path / "out", size=8)
    assert "ant/\\udcff\\udcfe.jpg" in packed.files("all")
    os.rename(os.fsencode(source / "ant"), os.fsencode(source) + b"/\xff")
    with pytest.raises(DataError, match=r"class folder \\udcff has a name that is not UTF-8"):
        pack_data(source, tmp_path / "again", size=8)


def test_one_rule_for_each_kind_of_image(tmp_path: Path) -> None:
    """Orientation is applied, palettes and CMYK become RGB, transparency is dropped, the first frame counts."""
    corner = np.zeros((4, 6, 3), np.uint8)
    corner[0, 0] = 255
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned clockwise when it is shown
    Image.fromarray(corner).save(tmp_path / "exif.png", exif=turned)
    upright = decode(tmp_path / "exif.png")
    assert upright.shape == (3, 6, 4)
    assert upright[0, 0].tolist() == [0, 0, 0, 255]
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    red.quantize(4).save(tmp_path / "palette.png")
    red.convert("CMYK").save(tmp_path / "cmyk.tif")
    clear = red.copy()
    clear.putalpha(0)
    clear.save(tmp_path / "clear.png")
    red.save(tmp_path / "film.gif", save_all=True, append_images=[Image.new("RGB", (4, 4), (0, 0, 255))])
    for name in ("palette.png", "cmyk.tif", "clear.png", "film.gif"):
        assert decode(tmp_path / name)[:, 1, 1].tolist() == [255, 0, 0], name
    Image.new("L", (4, 4), 77).save(tmp_path / "grey.png")
    assert decode(tmp_path / "grey.png").shape == (3, 4, 4)
    assert decode(tmp_path / "palette.png", Resize(grey=True))[0, 0, 0] == round(255 * 0.299)


# --- other sources ---------------------------------------------------------------------------------------------------


def test_images_without_labels(tmp_path: Path) -> None:
    for number in range(20):
        draw(tmp_path / "photos" / f"{number:02d}.jpg")
    with pytest.raises(UsageError, match="no labels here"):
        pack_data(tmp_path / "photos", tmp_path / "out", size=8)
    assert not (tmp_path / "out").exists()
    packed = pack_data(tmp_path / "photos", tmp_path / "out", size=8, classes=["cat", "dog", "cow"])
    data = load_data(tmp_path / "out")
    assert (packed.class_names, data.train.labels) == (("cat", "dog", "cow"), None)
    assert [len(split) for split in data.parts.values()] == [16, 2, 2]
    assert load_data(tmp_path / "out", limit=3).train.labels is None
    assert pack_data(tmp_path / "photos", tmp_path / "ten", size=8, classes=10).class_names[-1] == "9"
    for wrong in (1, ["a", "a"], True):
        with pytest.raises(UsageError, match="classes="):
            pack_data(tmp_path / "photos", tmp_path / "other", size=8, classes=wrong)


def test_labels_may_be_missing_from_a_part(source: Path, tmp_path: Path) -> None:
    root = tmp_path / "split"
    source.rename(tmp_path / "val")
    root.mkdir()
    (tmp_path / "val").rename(root / "val")
    for number in range(5):
        draw(root / "train" / f"{number}.png")
    data = load_data(pack_data(root, tmp_path / "out", size=8).path)
    assert (data.train.labels, int(labels_of(data.val).sum()), data.class_names) == (None, 10, ("ant", "bee"))


@pytest.mark.parametrize("last", [False, True])
def test_npz_files_are_packed_as_they_are_loaded(tmp_path: Path, last: bool) -> None:
    images = RNG.integers(0, 256, (40, 3, 10, 8), dtype=np.uint8)
    arrays: dict[str, Any] = {
        "x_train": images,
        "y_train": np.arange(40) % 4,
        "x_test": images[:8],
        "y_test": np.arange(8) % 4,
    }
    if last:
        arrays = {key: array.transpose(0, 2, 3, 1).copy() if key[0] == "x" else array for key, array in arrays.items()}
    np.savez_compressed(tmp_path / "set.npz", **arrays)
    pack_data(tmp_path / "set.npz", tmp_path / "out")
    ours, theirs = load_data(tmp_path / "out"), load_data(tmp_path / "set.npz")
    assert repr(ours) == repr(theirs)
    assert [split.fingerprint for split in ours.parts.values()] == [
        split.fingerprint for split in theirs.parts.values()
    ]
    small = load_data(pack_data(tmp_path / "set.npz", tmp_path / "small", size=5, grey=True).path)
    assert small.input_shape == (1, 5, 5)


def test_a_bad_npz_is_refused_however_it_is_bad(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"

    def refused(words: str, **arrays: Any) -> None:
        np.savez(path, **arrays)
        with pytest.raises((DataError, UsageError), match=words):
            pack_data(path, tmp_path / "out")

    images = np.zeros((8, 5, 5), np.uint8)
    refused("no array 'x_train'", x_test=images, y_test=np.zeros(8, int))
    refused("no labels here", x_train=images)
    refused("'y_train' has shape", x_train=images, y_train=np.zeros(7, int))
    refused("more than x and y", x=images, x_train=images, y=np.zeros(8, int))
    refused("'y_val' has no images", x_train=images, y_train=np.arange(8), y_val=np.zeros(8, int))
    refused("cannot tell which axis", x_train=np.zeros((8, 3, 5, 3), np.uint8), y_train=np.arange(8))
    refused("is float32", x_train=np.zeros((8, 5, 5), np.float32), y_train=np.arange(8))
    np.savez(path, x_train=images, classes=np.array(["a", "b"]))
    assert load_data(pack_data(path, tmp_path / "fine").path).train.labels is None
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 64, 64)})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("x_train.npy", header.getvalue() + bytes(10**6))
    with pytest.raises(DataError, match="4096000000000 bytes, but holds"):
        pack_data(path, tmp_path / "bomb", classes=2)


def test_hugging_face_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the extra data")
    pixels = RNG.integers(0, 256, (24, 9, 7, 3), dtype=np.uint8)
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    whole = datasets.Dataset.from_dict(
        {"img": [Image.fromarray(image) for image in pixels], "label": [row % 2 for row in range(24)]},
        features=features,
    )
    both = datasets.DatasetDict(
        train=whole.select(range(16)), validation=whole.select([20, 17]), test=whole.select([16])
    )
    both.save_to_disk(tmp_path / "saved")
    (tmp_path / "hub" / "data").mkdir(parents=True)
    for name, dataset in both.items():
        dataset.to_parquet(tmp_path / "hub" / "data" / f"{name}-00000-of-00001.parquet", batch_size=5)
    for number, source in enumerate((both, tmp_path / "saved", tmp_path / "hub")):
        data = load_data(pack_data(source, tmp_path / f"out{number}", jobs=1).path)
        assert data.test is not None
        assert data.class_names == ("cat", "dog")
        assert np.array_equal(data.train.images.numpy(), pixels[:16].transpose(0, 3, 1, 2))
        assert np.array_equal(data.val.images.numpy(), pixels[[20, 17]].transpose(0, 3, 1, 2))
        assert (labels_of(data.train).tolist(), labels_of(data.val).tolist()) == ([0, 1] * 8, [0, 1])
    unlabelled = whole.remove_columns("label")
    assert load_data(pack_data(unlabelled, tmp_path / "plain", classes=3).path).train.labels is None
    with pytest.raises(UsageError, match="has the parts train, more"):
        pack_data(datasets.DatasetDict(train=whole, more=whole), tmp_path / "other")
    with monkeypatch.context() as patched:
        patched.setattr(datasets.Dataset, "__getitem__", lambda dataset, rows: Path("/lost").read_bytes())
        with pytest.raises(DataError, match=r"dataset, all: not a data set whose files can be read: .*lost"):
            pack_data(unlabelled, tmp_path / "other", classes=3)
    (tmp_path / "hub" / "data" / "train-00000-of-00001.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="not a readable parquet"):
        pack_data(tmp_path / "hub", tmp_path / "other")
    (tmp_path / "saved" / "train" / "state.json").write_text("{")
    with pytest.raises(DataError, match="not a data set that"):
        pack_data(tmp_path / "saved", tmp_path / "other")


# --- a packed folder in use ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packed_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    pack_data(tree(folder / "pets"), folder / "out", size=8)
    return folder / "out"


def test_damage_is_named(packed_folder: Path, tmp_path: Path) -> None:
    whole = {path.name: path.read_bytes() for path in packed_folder.iterdir()}
    folder = tmp_path / "out"

    def damaged(name: str, data: bytes | None) -> Path:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(packed_folder, folder)
        (folder / name).unlink() if data is None else (folder / name).write_bytes(data)
        return folder

    for name in ("images.u8", "packed.json"):
        for data in (None, whole[name][:-1], whole[name] + b"x"):
            with pytest.raises(DataError):
                load_data(damaged(name, data))
        flipped = bytearray(whole[name])
        flipped[len(flipped) // 2] ^= 1
        with pytest.raises(DataError, match="checksum"):
            load_data(damaged(name, bytes(flipped)))
    with pytest.raises(DataError, match=r"images\.u8: bytes 0 to 3839 are damaged"):
        Packed.open(damaged("images.u8", bytes(len(whole["images.u8"])))).verify()
    assert len(load_data(damaged("images.u8", bytes(len(whole["images.u8"]))), verify=False).train) == 16


def part_with(**changes: Any) -> Any:
    """A change of the record: its one part with other values."""
    return lambda record: {"parts": [{**record["parts"][0], **changes}]}


@pytest.mark.parametrize(
    "change",
    [
        *({key: value} for key in ("name", "parts", "class_names", "input_shape", "left_out") for value in (None, 7)),
        {"class_names": [1, 2]},
        {"input_shape": [3, 8]},
        {"input_shape": [3, -8, -8]},
        {"input_shape": [3, 10**30, 8]},
        {"crc32c": 5},
        {"parts": []},
        lambda record: {"parts": record["parts"] * 2},
        part_with(role="val"),
        part_with(role="../secret"),
        part_with(files=[]),
        part_with(files=None),
        part_with(labels=[0]),
        part_with(labels=[9] * 20),
        part_with(labels=[-1] * 20),
        part_with(labels=[10**30] * 20),
        part_with(labels="zero"),
    ],
)
def test_a_sealed_record_that_cannot_be_is_refused(packed_folder: Path, tmp_path: Path, change: Any) -> None:
    shutil.copytree(packed_folder, tmp_path / "out")
    record = files.read_json(packed_folder / "packed.json", "packed-data", 2)
    changed = record | (change(record) if callable(change) else change)
    files.write_json(tmp_path / "out" / "packed.json", "packed-data", 2, changed)
    with pytest.raises(DataError, match=r"packed\.json"):
        load_data(tmp_path / "out")


def test_a_record_without_a_key_is_refused(packed_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(packed_folder, tmp_path / "out")
    record = files.read_json(packed_folder / "packed.json", "packed-data", 2)
    for key in record:
        rest = {name: value for name, value in record.items() if name != key}
        files.write_json(tmp_path / "out" / "packed.json", "packed-data", 2, rest)
        with pytest.raises(DataError, match=rf"(?s)packed\.json.*{key}"):
            load_data(tmp_path / "out")


def test_training_reads_the_mapped_images(packed_folder: Path) -> None:
    data = load_data(packed_folder)
    copied = replace(data, **{role: replace(split, images=split.images.clone()) for role, split in data.parts.items()})  # type: ignore[arg-type]
    ends = []
    for splits in (data, copied):
        model = nt.build_model("mlp800", splits, seed=0)
        options: dict[str, Any] = {"epochs": 1, "batch_size": 4, "views": "mirror,crop", "precision": "fp32"}
        nt.fit(model, splits.train, nt.supervised(), val=splits.val, **options)
        ends.append(model.state_dict())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    """Packing 400 images of 96x96 (11 MB) keeps a few of them at once."""
    import tracemalloc

    data = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (96, 96, 3), dtype=np.uint8)).save(data, "jpeg")
    for name in ("a", "b"):
        (tmp_path / "many" / name).mkdir(parents=True)
        for number in range(200):
            (tmp_path / "many" / name / f"{number}.jpg").write_bytes(data.getvalue())
    tracemalloc.start()
    try:
        packed = pack_data(tmp_path / "many", tmp_path / "out", size=96)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert packed.total_bytes == 400 * 3 * 96 * 96
    assert peak < packed.total_bytes / 4


def test_several_parquet_files_are_one_part(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the extra data")
    pixels = RNG.integers(0, 256, (9, 6, 5, 3), dtype=np.uint8)
    features = datasets.Features({"image": datasets.Image()})
    dataset = datasets.Dataset.from_dict({"image": [Image.fromarray(image) for image in pixels]}, features=features)
    for name, rows in (("a", range(5)), ("b", range(5, 9))):
        dataset.select(rows).to_parquet(tmp_path / f"{name}.parquet", batch_size=2)
    of_files: list[Any] = list(sources.hugging_face_source(tmp_path).parts[0].images)
    assert of_files == list(sources.hugging_face_source(dataset).parts[0].images)
    assert [decode(data).transpose(1, 2, 0).tolist() for data in of_files] == pixels.tolist()


def test_the_record_of_many_images_is_read_though_it_is_long(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("noisyteacher.io.files.MAX_TEXT", 500)
    packed = pack_data(source, tmp_path / "out", size=8)
    assert (tmp_path / "out" / "packed.json").stat().st_size > 500
    assert packed.rows == {"all": 20}
