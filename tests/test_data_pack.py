"""Packed data sets: equal to what is loaded directly, whatever is interrupted, broken, hostile or unlabelled."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import noisyteacher as nt
from noisyteacher import files
from noisyteacher.data import Packed, hf, load_data, pack_data, packing
from noisyteacher.data.packable import Part, npz_source
from noisyteacher.errors import DataError, UnknownNameError, UsageError, WriteError
from noisyteacher.pixels import decode
from noisyteacher.text import printable

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
    for one, other in zip(ours.parts.values(), theirs.parts.values(), strict=True):
        assert one.fingerprint == other.fingerprint
        assert torch.equal(one.labels, other.labels)
    assert packed.files("all")[:2] == ["ant/00.jpg", "ant/01.jpg"]
    assert packed.rows == {"all": 20}
    assert packed.verify() == 20 * 3 * 8 * 8 + 20 * 8 + len((tmp_path / "out" / "all-files.jsonl").read_bytes())


def test_roles_stay_apart_and_a_hold_out_is_the_folders(source: Path, tmp_path: Path) -> None:
    root = tmp_path / "split"
    root.mkdir()
    source.rename(root / "train")
    draw(root / "test" / "bee" / "0.png")
    pack_data(root, tmp_path / "out", size=8, fit="squash")
    ours, theirs = load_data(tmp_path / "out", seed=3), load_data(root, size=8, seed=3)
    assert ours.test is not None
    assert [len(ours.train), len(ours.val), ours.test.labels.tolist()] == [18, 2, [1]]
    assert ours.val.index.tolist() == theirs.val.index.tolist()


def test_any_number_of_jobs_gives_the_same_bytes(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source / "ant" / "03.jpg").write_bytes(b"x")
    monkeypatch.setattr(packing, "RANGE_ROWS", 7)
    monkeypatch.setattr(packing, "TASK_ROWS", 3)
    for name, jobs in (("one", 1), ("two", 2)):
        pack_data(source, tmp_path / name, size=8, skip_corrupt=True, jobs=jobs)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    packed = Packed.open(tmp_path / "one")
    assert [one["rows"] for one in packed.header["parts"][0]["images"]["ranges"]] == [6, 7, 6]
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
    assert np.array_equal(decode(data.getvalue(), shape, fit="crop"), middle)
    squashed = np.asarray(image.resize(shape[::-1], Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.array_equal(decode(data.getvalue(), shape, fit="squash"), squashed)


@pytest.mark.parametrize("stop_at", [0, 1, 2])
def test_an_interrupted_pack_goes_on_and_ends_in_the_same_bytes(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    monkeypatch.setattr(packing, "RANGE_ROWS", 6)
    pack_data(source, tmp_path / "whole", size=8)
    real = packing.append_bytes

    def pulled(path: Path, data: bytes, at: int) -> None:
        real(path, data[: len(data) // 2], at)  # the power goes in the middle of a range
        raise KeyboardInterrupt

    calls = iter([real] * stop_at + [pulled])
    monkeypatch.setattr(packing, "append_bytes", lambda *given: next(calls)(*given))
    with pytest.raises(KeyboardInterrupt):
        pack_data(source, tmp_path / "out", size=8)
    with pytest.raises(DataError, match="an unfinished pack"):
        load_data(tmp_path / "out")
    monkeypatch.setattr(packing, "append_bytes", real)
    told: list[tuple[int, str]] = []
    pack_data(source, tmp_path / "out", size=8, watch=lambda _, done, total, note: told.append((done, note)))
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert max([done for done, note in told if note == "kept"], default=0) == 6 * stop_at


def test_ranges_that_no_longer_hold_are_made_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A torn line of the journal, a damaged range, an image that changed meanwhile: what is behind them is redone."""
    monkeypatch.setattr(packing, "RANGE_ROWS", 5)
    out = tmp_path / "out"
    (source / "bee" / "09.jpg").write_bytes(b"x")

    def begun() -> None:
        shutil.rmtree(out, ignore_errors=True)
        with pytest.raises(DataError, match="1 image of pets cannot be read"):
            pack_data(source, out, size=8)

    def kept() -> int:
        told: list[int] = []
        pack_data(
            source, out, size=8, skip_corrupt=True,
            watch=lambda _, done, total, note: told.append(done if note == "kept" else 0),
        )  # fmt: skip
        return max(told, default=0)

    begun()
    assert kept() == 20
    whole = content(out)
    begun()
    journal = out / "packing.jsonl"
    journal.write_bytes(journal.read_bytes()[:-1])
    assert (kept(), content(out)) == (15, whole)
    begun()
    images = bytearray((out / "all-images.u8").read_bytes())
    images[5 * 192 + 7] ^= 1
    (out / "all-images.u8").write_bytes(images)
    assert (kept(), content(out)) == (5, whole)
    begun()
    draw(source / "ant" / "04.jpg")
    assert kept() == 0
    assert content(out) != whole


def test_a_finished_pack_is_reused_and_another_refused(source: Path, tmp_path: Path) -> None:
    pack_data(source, tmp_path / "out", size=8)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert pack_data(source, tmp_path / "out", size=8).rows == {"all": 20}
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    for options in ({"size": 9}, {"size": 8, "fit": "squash"}, {"size": 8, "grey": True}):
        with pytest.raises(UsageError, match="holds another packed data set"):
            pack_data(source, tmp_path / "out", **options)


def test_what_cannot_be_meant(source: Path, tmp_path: Path) -> None:
    for words, options in (
        ("size 0", {"size": 0}),
        ("jobs=0", {"jobs": 0}),
        ("classes=5 has no effect", {"classes": 5, "size": 8}),
    ):
        with pytest.raises(UsageError, match=words):
            pack_data(source, tmp_path / "out", **options)
    with pytest.raises(UnknownNameError, match="did you mean 'crop'"):
        pack_data(source, tmp_path / "out", fit="crops")
    with pytest.raises(UsageError, match="lies inside the source"):
        pack_data(source, source / "packed", size=8)
    with pytest.raises(UsageError, match="a list cannot be packed"):
        pack_data([1], tmp_path / "out")
    with pytest.raises(DataError, match="first image is 12x10"):
        pack_data(source, tmp_path / "out")
    assert not list(tmp_path.glob("out/*-labels*"))
    pack_data(source, tmp_path / "good", size=8)
    with pytest.raises(UsageError, match="is packed already"):
        pack_data(tmp_path / "good", tmp_path / "again")
    with pytest.raises(UsageError, match="size has no effect"):
        load_data(tmp_path / "good", size=8)


def test_a_full_disk_is_told_before_and_leaves_what_is_done(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10})())
        with pytest.raises(WriteError, match=r"3\.84 kB are needed, 10 B are free"):
            pack_data(source, tmp_path / "out", size=8)
    monkeypatch.setattr(packing, "RANGE_ROWS", 10)
    real, written = os.write, []

    def full(handle: int, data: Any) -> int:
        written.append(len(data))
        if len(written) > 3:
            raise OSError(28, "No space left on device")
        return real(handle, data)

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "write", full)
        with pytest.raises(WriteError, match="the disk is full"):
            pack_data(source, tmp_path / "out", size=8)
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
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(ant / "d-deep.png")
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
    with pytest.raises(DataError) as told:
        pack_data(source, tmp_path / "out", size=8)
    words = [
        "12 images of pets cannot be read", "a-empty.jpg: cannot be decoded", "b-cut.jpg: cannot be decoded",
        "c-huge.png: it announces more than 134217728 pixels", "d-deep.png: an image of mode 'I;16' has more than 8",
        "e-script.png: cannot be decoded (no image that is known)", "f-out.jpg: a link that leads out of the folder",
        "g-circle.jpg: a link that leads nowhere", "h-loop: a link to a folder around it", "i-pipe.png: is no file",
        "ant/j\\n\\x1b[31m.png: cannot be decoded", "and 2 more",
        "--skip-corrupt",
    ]  # fmt: skip
    assert [word for word in words if word not in str(told.value)] == []
    packed = pack_data(source, tmp_path / "out", size=8, skip_corrupt=True)
    assert packed.rows == {"all": 22}
    assert [one["file"][4:10] for one in packed.left_out] == [
        "a-empt", "b-cut.", "c-huge", "d-deep", "e-scri", "f-out.", "g-circ", "h-loop", "i-pipe", "j\\n\\x1", "k-bee",
        "n/n/n/",
    ]  # fmt: skip
    assert packed.left_out[-2]["reason"].startswith("a link to a folder: --follow-links")
    assert packed.left_out[-1]["reason"] == "nested deeper than 64 folders"
    assert {"ant/inside.jpg", "ant/n/near.jpg"} < set(packed.files("all"))
    assert pack_data(source, tmp_path / "more", size=8, skip_corrupt=True, follow_links=True).rows == {"all": 33}


def test_a_folder_whose_images_all_fail_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "bad" / name).mkdir(parents=True)
        (tmp_path / "bad" / name / "x.png").write_bytes(b"x")
    with pytest.raises(DataError, match="no image that can be read"):
        pack_data(tmp_path / "bad", tmp_path / "out", size=4, skip_corrupt=True)
    assert not (tmp_path / "out" / "packed.json").exists()


def test_names_that_are_no_text(source: Path, tmp_path: Path) -> None:
    odd = os.fsdecode(b"\xff\xfe.jpg")
    (source / "ant" / "00.jpg").rename(source / "ant" / odd)
    packed = pack_data(source, tmp_path / "out", size=8)
    assert f"ant/{odd}" in packed.files("all")
    assert printable(odd) == "\\udcff\\udcfe.jpg"
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
    shown = decode(tmp_path / "exif.png")
    assert shown.shape == (3, 6, 4)
    assert shown[0, 0].tolist() == [0, 0, 0, 255]
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
    assert decode(tmp_path / "palette.png", grey=True)[0, 0, 0] == round(255 * 0.299)


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
    assert (data.train.labels, data.val.labels.sum(), data.class_names) == (None, 10, ("ant", "bee"))


@pytest.mark.parametrize("last", [False, True])
def test_npz_files_are_packed_as_they_are_loaded(tmp_path: Path, last: bool) -> None:
    images = RNG.integers(0, 256, (40, 3, 10, 8), dtype=np.uint8)
    given = {"x_train": images, "y_train": np.arange(40) % 4, "x_test": images[:8], "y_test": np.arange(8) % 4}
    if last:
        given = {key: one.transpose(0, 2, 3, 1) if key[0] == "x" else one for key, one in given.items()}
    np.savez_compressed(tmp_path / "set.npz", **{key: np.ascontiguousarray(one) for key, one in given.items()})
    pack_data(tmp_path / "set.npz", tmp_path / "out")
    ours, theirs = load_data(tmp_path / "out"), load_data(tmp_path / "set.npz")
    assert repr(ours) == repr(theirs)
    assert [one.fingerprint for one in ours.parts.values()] == [one.fingerprint for one in theirs.parts.values()]
    small = load_data(pack_data(tmp_path / "set.npz", tmp_path / "small", size=5, grey=True).path)
    assert small.input_shape == (1, 5, 5)


def test_a_bad_npz_is_refused_however_it_is_bad(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"

    def refused(words: str, **given: Any) -> None:
        np.savez(path, **given)
        with pytest.raises((DataError, UsageError), match=words):
            pack_data(path, tmp_path / "out")

    images = np.zeros((8, 5, 5), np.uint8)
    refused("no array 'x_train'", x_test=images, y_test=np.zeros(8, int))
    refused("no labels here", x_train=images)
    refused("'y_train' has shape", x_train=images, y_train=np.zeros(7, int))
    refused("give x and y alone", x=images, x_train=images, y=np.zeros(8, int))
    refused("'y_val' has no images", x_train=images, y_train=np.arange(8), y_val=np.zeros(8, int))
    refused("Fortran order", x_train=np.asfortranarray(images), y_train=np.arange(8))
    refused("cannot tell which axis", x_train=np.zeros((8, 3, 5, 3), np.uint8), y_train=np.arange(8))
    refused("is float32", x_train=np.zeros((8, 5, 5), np.float32), y_train=np.arange(8))
    np.savez(path, x_train=images, classes=np.array(["a", "b"]))
    assert load_data(pack_data(path, tmp_path / "fine").path).train.labels is None
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 64, 64)})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("x_train.npy", header.getvalue() + bytes(10**6))
    with pytest.raises(DataError, match="4096000000000 bytes, and can have"):
        pack_data(path, tmp_path / "bomb", classes=2)


def test_hugging_face_data_sets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the extra data")
    pixels = RNG.integers(0, 256, (24, 9, 7, 3), dtype=np.uint8)
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    made = datasets.Dataset.from_dict(
        {"img": [Image.fromarray(one) for one in pixels], "label": [row % 2 for row in range(24)]}, features=features
    )
    both = datasets.DatasetDict(train=made.select(range(16)), validation=made.select([20, 17]), test=made.select([16]))
    both.save_to_disk(tmp_path / "saved")
    (tmp_path / "hub" / "data").mkdir(parents=True)
    for name, one in both.items():
        one.to_parquet(tmp_path / "hub" / "data" / f"{name}-00000-of-00001.parquet", batch_size=5)
    for number, given in enumerate((both, tmp_path / "saved", tmp_path / "hub")):
        data = load_data(pack_data(given, tmp_path / f"out{number}", jobs=1).path)
        assert data.test is not None
        assert data.class_names == ("cat", "dog")
        assert np.array_equal(data.train.images.numpy(), pixels[:16].transpose(0, 3, 1, 2))
        assert np.array_equal(data.val.images.numpy(), pixels[[20, 17]].transpose(0, 3, 1, 2))
        assert (data.train.labels.tolist(), data.val.labels.tolist()) == ([0, 1] * 8, [0, 1])
    plain = made.remove_columns("label")
    assert load_data(pack_data(plain, tmp_path / "plain", classes=3).path).train.labels is None
    with pytest.raises(UsageError, match="has the parts train, more"):
        pack_data(datasets.DatasetDict(train=made, more=made), tmp_path / "other")
    (tmp_path / "hub" / "data" / "train-00000-of-00001.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="not a readable parquet"):
        pack_data(tmp_path / "hub", tmp_path / "other")
    (tmp_path / "saved" / "train" / "state.json").write_text("{")
    with pytest.raises(DataError, match="not a data set that"):
        pack_data(tmp_path / "saved", tmp_path / "other")


# --- a packed folder in use ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    pack_data(tree(folder / "pets"), folder / "out", size=8)
    return folder / "out"


def test_damage_is_named(made: Path, tmp_path: Path) -> None:
    whole = {path.name: path.read_bytes() for path in made.iterdir()}
    folder = tmp_path / "out"

    def damaged(name: str, data: bytes | None) -> Path:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(made, folder)
        (folder / name).unlink() if data is None else (folder / name).write_bytes(data)
        return folder

    for name in ("all-images.u8", "all-labels.i64", "all-files.jsonl", "packed.json"):
        for data in (None, whole[name][:-1], whole[name] + b"x"):
            with pytest.raises(DataError):
                load_data(damaged(name, data))
        flipped = bytearray(whole[name])
        flipped[len(flipped) // 2] ^= 1
        if name == "packed.json":
            with pytest.raises(DataError, match=r"packed\.json: checksum"):
                load_data(damaged(name, bytes(flipped)))
        else:
            with pytest.raises(DataError, match="damaged"):
                Packed.open(damaged(name, bytes(flipped))).verify()
    with pytest.raises(DataError, match=r"all-images\.u8: bytes 0 to 3839, rows 0 to 19, are damaged"):
        Packed.open(damaged("all-images.u8", bytes(len(whole["all-images.u8"])))).verify()


def test_a_header_cannot_name_files_elsewhere(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "out")
    record = json.loads((made / "packed.json").read_bytes())
    content = {key: value for key, value in record.items() if key not in ("checksum", "kind", "schema")}
    for key, value in (("file", "../secret"), ("bytes", 10**12)):
        changed = json.loads(json.dumps(content))
        changed["parts"][0]["images"][key] = value
        files.write_json(tmp_path / "out" / "packed.json", "packed-data", 1, changed)
        with pytest.raises(DataError, match=r"packed\.json"):
            load_data(tmp_path / "out")
    for changed in (
        content | {"parts": content["parts"] * 2},
        content | {"parts": [content["parts"][0] | {"role": "val"}]},
        content | {"class_names": [1, 2]},
        content | {"parts": [content["parts"][0] | {"labels": content["parts"][0]["files"]}]},
        content | {"input_shape": [3, 8]},
        {},
    ):
        files.write_json(tmp_path / "out" / "packed.json", "packed-data", 1, changed)
        with pytest.raises(DataError, match=r"packed\.json"):
            load_data(tmp_path / "out")


@pytest.mark.parametrize("change", [[-5, 25], [True, 19], [30, -10]])
def test_ranges_of_images_that_cannot_be(made: Path, tmp_path: Path, change: list[int]) -> None:
    shutil.copytree(made, tmp_path / "out")
    record = json.loads((made / "packed.json").read_bytes())
    content = {key: value for key, value in record.items() if key not in ("checksum", "kind", "schema")}
    part = content["parts"][0]
    part["images"]["ranges"] = [{"rows": rows, "crc32c": "00000000"} for rows in change]
    part["images"]["ranges"].append({"rows": part["rows"] - sum(change), "crc32c": "00000000"})
    files.write_json(tmp_path / "out" / "packed.json", "packed-data", 1, content)
    with pytest.raises(DataError, match=r"packed\.json"):
        load_data(tmp_path / "out")


def test_training_reads_the_mapped_images(made: Path) -> None:
    data = load_data(made)
    copied = nt.Splits(
        data.name, *[
            nt.Split(one.images.clone(), one.labels, one.index, one.role, one.name, one.class_names)
            for one in data.parts.values()
        ],
    )  # fmt: skip
    ends = []
    for one in (data, copied):
        model = nt.build_model("student1", one, seed=0)
        nt.fit(model, one.train, nt.supervised(), val=one.val, epochs=1, batch_size=4, views="mirror,crop")
        ends.append(model.state_dict())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    """Packing 400 images of 96x96 (11 MB) keeps less than a few ranges' worth of them at once."""
    import tracemalloc

    data = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (96, 96, 3), dtype=np.uint8)).save(data, "jpeg")
    for name in ("a", "b"):
        (tmp_path / "many" / name).mkdir(parents=True)
        for number in range(200):
            (tmp_path / "many" / name / f"{number}.jpg").write_bytes(data.getvalue())
    before, packing.RANGE_BYTES = packing.RANGE_BYTES, 10 * 3 * 96 * 96
    tracemalloc.start()
    try:
        packed = pack_data(tmp_path / "many", tmp_path / "out", size=96)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        packing.RANGE_BYTES = before
    assert packed.total_bytes == 400 * 3 * 96 * 96
    assert peak < packed.total_bytes / 4


def from_row(part: Part, first: int) -> list[bytes]:
    return [one if isinstance(one, bytes) else np.asarray(one).tobytes() for one in part.items(first)]


def test_sources_can_be_entered_at_any_row(tmp_path: Path) -> None:
    """As after an interruption; of several parquet files too, and inside a group of rows."""
    images = RNG.integers(0, 256, (9, 6, 5, 3), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", x=images, y=np.arange(9) % 2)
    sources = [npz_source(tmp_path / "set.npz")]
    datasets = pytest.importorskip("datasets", reason="needs the extra data")
    features = datasets.Features({"image": datasets.Image()})
    made = datasets.Dataset.from_dict({"image": [Image.fromarray(one) for one in images]}, features=features)
    for name, rows in (("a", range(5)), ("b", range(5, 9))):
        made.select(rows).to_parquet(tmp_path / f"{name}.parquet", batch_size=2)
    sources += [hf.parquet_source(tmp_path), hf.dataset_source(made)]
    for source in sources:
        (part,) = source.parts
        whole = from_row(part, 0)
        assert len(set(whole)) == 9
        for first in range(10):
            assert from_row(part, first) == whole[first:]
    assert from_row(sources[1].parts[0], 0) == from_row(sources[2].parts[0], 0)


@pytest.mark.parametrize("key", ["name", "plan", "left_out", "parts", "class_names", "input_shape"])
def test_a_sealed_header_that_lacks_something_is_refused(made: Path, tmp_path: Path, key: str) -> None:
    shutil.copytree(made, tmp_path / "out")
    record = json.loads((made / "packed.json").read_bytes())
    for value in (None, 7):
        content = {name: one for name, one in record.items() if name not in ("checksum", "kind", "schema", key)}
        files.write_json(
            tmp_path / "out" / "packed.json", "packed-data", 1, content | ({} if value is None else {key: value})
        )
        with pytest.raises(DataError, match=r"packed\.json"):
            load_data(tmp_path / "out")


@pytest.mark.parametrize(
    "change",
    [
        {"rows": 10**12}, {"rows": -1}, {"rows": None}, {"rows": 4.0}, {"left_out": [[1]]}, {"left_out": 3},
        {"left_out": [[99, "x"]], "rows": 4}, {"stamp": None}, {"crc32c": None}, {"listed": "5"}, [1], "x",
    ],
)  # fmt: skip
def test_a_sealed_line_of_the_journal_that_cannot_be_is_not_believed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any
) -> None:
    monkeypatch.setattr(packing, "RANGE_ROWS", 5)
    whole = pack_data(source, tmp_path / "whole", size=8).path
    monkeypatch.setattr(packing, "write_json", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        pack_data(source, tmp_path / "out", size=8)
    monkeypatch.undo()
    monkeypatch.setattr(packing, "RANGE_ROWS", 5)
    journal = tmp_path / "out" / "packing.jsonl"
    lines = journal.read_bytes().splitlines()
    record = json.loads(lines[2])
    changed = {**record, **change} if isinstance(change, dict) else ["crc32c=00000000", change]
    text = json.dumps(changed).replace(record["checksum"], "crc32c=00000000")
    journal.write_bytes(b"\n".join([*lines[:2], files.seal(text.encode()), *lines[3:]]) + b"\n")
    told: list[tuple[int, str]] = []
    pack_data(source, tmp_path / "out", size=8, watch=lambda _, done, total, note: told.append((done, note)))
    assert content(tmp_path / "out") == content(whole)
    assert max(done for done, note in told if note == "kept") == 5
