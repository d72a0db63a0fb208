"""Logit stores: logits are read back by view and row; damage, gaps and mix-ups are refused with the file's name."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from torch import Tensor, nn

from helpers import write_logits
from noisyteacher.errors import MismatchError, StoreError, UnknownNameError, UsageError, WriteError
from noisyteacher.io.files import crc32c, write_json
from noisyteacher.store import FINGERPRINTS, LogitStore, Plan, Shard, StoreMeta, write_store

PRINTS = {"teacher": "a1" * 32, "data": "b2" * 32, "preprocessing": "c3" * 32, "code": "d4" * 32}
VIEWS = ("clean", "mirror", "crop-y0-x8")
ROWS, CLASSES = 23, 4
META: StoreMeta = {"teacher": "by hand"}


def plan(**changes: Any) -> Plan:
    fields: dict[str, Any] = {"rows": ROWS, "classes": CLASSES, "views": VIEWS, "fingerprints": PRINTS}
    return Plan(**{**fields, "rows_per_shard": 5, **changes})


def table(views: int = len(VIEWS), rows: int = ROWS, classes: int = CLASSES) -> Tensor:
    """Logit of view v, row r, class k = 1000 v + r + k / 8 - 7: exact in float32, no two rows alike."""
    v, r, k = np.meshgrid(np.arange(views), np.arange(rows), np.arange(classes), indexing="ij")
    return torch.from_numpy((1000 * v + r + k / 8 - 7).astype(np.float32))


def fill(folder: Path, layout: Plan | None = None, logits: Tensor | None = None) -> LogitStore:
    return write_logits(folder, layout or plan(), table() if logits is None else logits, META)


def interrupt(folder: Path, written: int, layout: Plan | None = None) -> list[int]:
    """Write this many shards, then fail; returns the numbers of the shards that were missing."""
    missing: list[int] = []

    def blocks_of(shards: Sequence[Shard]) -> Generator[Tensor]:
        missing.extend(int(shard.file[6:11]) for shard in shards)
        for shard in shards[:written]:
            yield table()[:, shard.first_row : shard.first_row + shard.rows]
        raise InterruptedError

    with pytest.raises((InterruptedError, WriteError)):
        write_store(folder, layout or plan(), blocks_of, META)
    return missing


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def flip(path: Path, byte: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 1 << bit
    path.write_bytes(bytes(data))


# ------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("memory_bytes", [10**9, 0], ids=["in memory", "mapped"])
def test_logits_are_read_by_row_of_the_split_and_view(tmp_path: Path, memory_bytes: int) -> None:
    fill(tmp_path)
    store = LogitStore.open(tmp_path, memory_bytes=memory_bytes)
    assert (store.views, store.rows, store.classes, store.dtype) == (VIEWS, ROWS, CLASSES, "float32")
    assert (store.fingerprints, store.meta) == (PRINTS, META)
    rows, views = torch.tensor([22, 0, 4, 5, 22, 9, 10]), torch.tensor([0, 2, 1, 1, 2, 0, 0])
    assert torch.equal(store.logits(views, rows), table()[views, rows])
    for number, view in enumerate(VIEWS):
        assert torch.equal(store.logits(view, rows), table()[number, rows])
    assert torch.equal(store.logits("mirror", torch.arange(ROWS)), table()[1])
    assert store.logits("clean", torch.zeros(0, dtype=torch.int64)).shape == (0, CLASSES)
    store.logits("clean", torch.tensor([3])).zero_()  # a copy
    assert torch.equal(store.logits("clean", torch.tensor([3])), table()[0, 3:4])
    indices = store.view_indices(("mirror", "clean"))[torch.tensor([1, 0, 0])]
    assert store.logits(indices, torch.tensor([7, 7, 8]))[:, 0].tolist() == [0.0, 1000.0, 1001.0]


@pytest.mark.parametrize("rows_per_shard", [1, 5, 22, 23, 24])
def test_the_division_into_shards_does_not_show(tmp_path: Path, rows_per_shard: int) -> None:
    store = fill(tmp_path, plan(rows_per_shard=rows_per_shard))
    assert len(list(tmp_path.glob("shard-*"))) == -(-ROWS // rows_per_shard)
    for number, view in enumerate(VIEWS):
        assert torch.equal(store.logits(view, torch.arange(ROWS)), table()[number])


def test_any_safetensors_reader_can_read_a_shard(tmp_path: Path) -> None:
    fill(tmp_path)
    logits = safetensors.numpy.load_file(tmp_path / "shard-00001.safetensors")["logits"]
    np.testing.assert_array_equal(logits, table()[:, 5:10].numpy())


def test_store_json_has_the_documented_fields(tmp_path: Path) -> None:
    store = fill(tmp_path)
    data = (tmp_path / "store.json").read_bytes()
    record = json.loads(data)
    assert list(record) == [
        "checksum", "kind", "schema", "rows", "classes", "views", "fingerprints", "dtype", "precision",
        "rows_per_shard", "plan", "shards", "meta",
    ]  # fmt: skip
    assert (record["kind"], record["schema"]) == ("logit-store", 1)
    assert list(record["fingerprints"]) == ["teacher", "data", "preprocessing", "code"]
    last = (tmp_path / "shard-00004.safetensors").read_bytes()
    assert record["shards"][4] == {
        "file": "shard-00004.safetensors", "first_row": 20, "rows": 3, "bytes": len(last), "crc32c": crc32c(last)
    }  # fmt: skip
    assert store.digest == hashlib.sha256(data).hexdigest()
    fields = {name: record[name] for name in list(record)[3:10]}
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    assert record["plan"] == hashlib.sha256(text.encode()).hexdigest()


def test_equal_logits_give_equal_bytes(tmp_path: Path) -> None:
    fill(tmp_path / "a")
    fill(tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_shards_are_about_32_mb_and_cost_at_most_65536_answers() -> None:
    assert plan(rows=10**6, classes=1000, views=("clean",), rows_per_shard=0).rows_per_shard == 8000  # 32 MB / 4 kB
    assert plan(rows=10**6, classes=10, views=("clean", "mirror"), rows_per_shard=0).rows_per_shard == 32768
    assert plan(rows=3, classes=10**8, rows_per_shard=0).rows_per_shard == 1


def test_float16_halves_the_file_and_refuses_larger_logits(tmp_path: Path) -> None:
    store = fill(tmp_path / "s", plan(dtype="float16"), table() / 1024)
    logits = store.logits("mirror", torch.arange(ROWS))
    assert (store.dtype, logits.dtype) == ("float16", torch.float32)
    assert torch.equal(logits, (table()[1] / 1024).half().float())
    values = table()
    values[1, 12, 3] = 70_000.0  # float16 ends at 65504
    with pytest.raises(StoreError, match=r"view 'mirror', row 12.*inf.*float32"):
        fill(tmp_path / "t", plan(dtype="float16"), values)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_not_finite_are_refused_with_view_and_row(tmp_path: Path, value: float) -> None:
    values = table()
    values[2, 17, 1] = value
    with pytest.raises(StoreError, match="view 'crop-y0-x8', row 17"):
        fill(tmp_path, logits=values)
    assert not (tmp_path / "store.json").exists()


# ------------------------------------------------------------------------------------------------- usage errors


@pytest.mark.parametrize("memory_bytes", [10**9, 0])
def test_rows_and_views_out_of_range_are_refused(tmp_path: Path, memory_bytes: int) -> None:
    fill(tmp_path)
    store = LogitStore.open(tmp_path, memory_bytes=memory_bytes)
    for view, rows, message in (
        ("clean", [3, -1], "no row -1 in this store: it has rows 0 to 22"),
        ("clean", [23], "no row 23"),
        (torch.tensor([3]), [0], "no view 3"),
        (torch.tensor([-1]), [0], "no view -1"),
        (torch.tensor([0, 1]), [0, 1, 2], "2 views for 3 rows"),
        ("mirrored", [0], "no logits of view 'mirrored', only of clean, mirror"),
    ):
        with pytest.raises(MismatchError, match=message):
            store.logits(view, torch.tensor(rows))
    for wrong in (torch.tensor([0.0]), torch.tensor([[0]]), torch.tensor([True]), [0]):
        with pytest.raises(MismatchError, match="int64"):
            store.logits("clean", wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("field", FINGERPRINTS)
def test_another_fingerprint_is_refused_by_name(tmp_path: Path, field: str) -> None:
    store = fill(tmp_path)
    store.check(**PRINTS)
    with pytest.raises(MismatchError, match=rf"made from {field} {PRINTS[field][:12]}, this {field} is 0123456789ab"):
        store.check(**{**PRINTS, field: "0123456789abcdef" * 4})
    with pytest.raises(UnknownNameError, match="did you mean 'teacher'"):
        store.check(techer="x")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 0}, "rows"),
        ({"rows": "23"}, "rows"),
        ({"classes": True}, "classes"),
        ({"views": ()}, "views"),
        ({"views": "clean"}, "views"),
        ({"fingerprints": {"teacher": "x"}}, "fingerprints teacher, data, preprocessing, code"),
        ({"fingerprints": {**PRINTS, "more": "x"}}, "fingerprints"),
        ({"fingerprints": {**PRINTS, "code": ""}}, "fingerprints"),
        ({"dtype": "float61"}, "dtype"),
        ({"precision": "fp61"}, "precision"),
        ({"rows_per_shard": -1}, "rows_per_shard"),
    ],
)
def test_invalid_plans_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(**changes)


# ------------------------------------------------------------------------------------------------- damage


def test_flipped_bits_are_reported_with_their_file(tmp_path: Path) -> None:
    fill(tmp_path)
    for path in sorted(tmp_path.iterdir()):
        whole = path.read_bytes()
        for offset in [*range(0, len(whole), 7), len(whole) - 1]:
            flip(path, offset, bit=offset % 8)
            with pytest.raises(StoreError, match=path.name):
                LogitStore.open(tmp_path)
            path.write_bytes(whole)
    LogitStore.open(tmp_path)


def test_damage_to_a_shard_is_reported_with_its_rows_and_what_to_do(tmp_path: Path) -> None:
    store = fill(tmp_path)
    path = tmp_path / "shard-00002.safetensors"
    whole = path.read_bytes()
    flip(path, len(whole) - 2)
    with pytest.raises(StoreError, match=r"shard-00002.safetensors: CRC-32C .* \(rows 10 to 14\).*extract again"):
        store.verify()
    path.write_bytes(whole[:-1])
    for verify in (True, False):
        with pytest.raises(StoreError, match=rf"shard-00002.*{len(whole) - 1} bytes, {len(whole)} expected"):
            LogitStore.open(tmp_path, verify)
    path.unlink()
    for verify in (True, False):
        with pytest.raises(StoreError, match=r"shard-00002.*missing \(rows 10 to 14\)"):
            LogitStore.open(tmp_path, verify)


def test_swapped_shards_are_refused_without_checksums(tmp_path: Path) -> None:
    fill(tmp_path)
    paths = [tmp_path / f"shard-0000{number}.safetensors" for number in (2, 3)]
    first, second = (path.read_bytes() for path in paths)
    assert len(first) == len(second)
    paths[0].write_bytes(second)
    paths[1].write_bytes(first)
    with pytest.raises(StoreError, match=r"shard-00002.*other rows"):
        LogitStore.open(tmp_path, verify=False)


def test_a_missing_and_an_unfinished_store_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nowhere: no logit store here"):
        LogitStore.open(tmp_path / "nowhere")
    assert interrupt(tmp_path / "s", written=1) == [0, 1, 2, 3, 4]
    with pytest.raises(StoreError, match=r"no store.json in it.*unfinished.*kept"):
        LogitStore.open(tmp_path / "s")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("rows"), "key is missing or wrong"),
        (lambda r: r.update(rows="23"), "key is missing or wrong"),
        (lambda r: r.update(rows=24), "plan|shape|expected|store"),
        (lambda r: r.update(rows=10**15, rows_per_shard=1), "not those of rows"),
        (lambda r: r.update(views=[["clean"]]), "key is missing or wrong"),
        (lambda r: r.update(fingerprints=[]), "key is missing or wrong"),
        (lambda r: r.update(shards=[1]), "key is missing or wrong"),
        (lambda r: r.update(meta="x"), "key is missing or wrong"),
        (lambda r: r["shards"].pop(), "not those of rows"),
        (lambda r: r["shards"][0].update(file="../../etc/passwd"), "not those of rows"),
        (lambda r: r["shards"][1].update(first_row=6), "not those of rows"),
        (lambda r: r.update(classes=5), "store|expected"),
        (lambda r: r.update(dtype="float16"), "store|expected"),
        (lambda r: r["fingerprints"].update(teacher="f" * 64), "another store"),
    ],
)
def test_a_sealed_store_json_with_wrong_content_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    fill(tmp_path)
    index = tmp_path / "store.json"
    record = json.loads(index.read_bytes())
    change(record)
    content = {key: value for key, value in record.items() if key not in ("checksum", "kind", "schema")}
    write_json(index, "logit-store", 1, content)
    with pytest.raises(StoreError, match=message):
        LogitStore.open(tmp_path)


@pytest.mark.parametrize(("kind", "schema", "message"), [("model", 1, "a 'model'"), ("logit-store", 2, "schema 2")])
def test_another_kind_or_schema_is_refused(tmp_path: Path, kind: str, schema: int, message: str) -> None:
    fill(tmp_path)
    write_json(tmp_path / "store.json", kind, schema, {"rows": 1})
    with pytest.raises(StoreError, match=message):
        LogitStore.open(tmp_path)


# ------------------------------------------------------------------------------------------------- resuming


def test_intact_shards_are_kept_and_all_others_rewritten(tmp_path: Path) -> None:
    fill(tmp_path / "whole")
    store = tmp_path / "s"
    interrupt(store, written=4)
    flip(store / "shard-00001.safetensors", 300)
    short = store / "shard-00002.safetensors"
    short.write_bytes(short.read_bytes()[:100])
    fill(tmp_path / "other", plan(fingerprints={**PRINTS, "teacher": "e5" * 32}))
    os.replace(tmp_path / "other" / "shard-00003.safetensors", store / "shard-00003.safetensors")
    (store / ".shard-00004.safetensors.abc.tmp").write_bytes(b"half a shard of a killed process")
    assert interrupt(store, written=0) == [1, 2, 3, 4]
    fill(store)
    assert contents(store) == contents(tmp_path / "whole")


def test_a_finished_store_of_the_same_plan_is_returned(tmp_path: Path) -> None:
    fill(tmp_path)
    before = contents(tmp_path)
    for same in (plan(), plan(rows_per_shard=0)):  # the division into shards may differ
        store = write_logits(tmp_path, same, torch.zeros(3, ROWS, CLASSES), {"teacher": "other words"})
        assert torch.equal(store.logits("mirror", torch.tensor([21])), table()[1, 21:22])
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fingerprints": {**PRINTS, "teacher": "9" * 64}}, "made from teacher a1a1a1a1a1a1, this teacher is 999"),
        ({"fingerprints": {**PRINTS, "data": "9" * 64}}, "made from data b2b2"),
        ({"fingerprints": {**PRINTS, "preprocessing": "9" * 64}}, "made from preprocessing c3c3"),
        ({"fingerprints": {**PRINTS, "code": "9" * 64}}, "made from code d4d4"),
        ({"views": ("clean",)}, "made from views"),
        ({"views": ("mirror", "clean", "crop-y0-x8")}, "made from views"),
        ({"rows": 22}, "made from rows 23, this rows is 22"),
        ({"classes": 5}, "made from classes 4"),
        ({"dtype": "float16"}, "made from dtype float32"),
        ({"precision": "bf16"}, "made from precision fp32"),
    ],
)
def test_a_finished_store_of_another_plan_is_not_touched(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    fill(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(MismatchError, match=f"{message}.*overwrite=True"):
        fill(tmp_path, plan(**changes))
    assert contents(tmp_path) == before


def test_overwriting_leaves_the_new_store_alone(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")

    def blocks_of(missing: Sequence[Shard]) -> Generator[Tensor]:
        assert not (tmp_path / "store.json").exists()  # from the first moment on it is an unfinished store
        yield from torch.split(table(1, 6), 5, dim=1)

    store = write_store(tmp_path, plan(rows=6, views=("clean",)), blocks_of, overwrite=True)
    files = {"notes.txt", "shard-00000.safetensors", "shard-00001.safetensors", "store.json"}
    assert {*contents(tmp_path)} == files
    assert torch.equal(store.logits("clean", torch.arange(6)), table(1, 6)[0])


def test_shards_of_an_unfinished_larger_store_are_removed(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "store.json").unlink()
    fill(tmp_path, plan(rows=6), table(3, 6))
    assert {*contents(tmp_path)} == {"shard-00000.safetensors", "shard-00001.safetensors", "store.json"}


def test_a_shard_of_another_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match=r"logits \(3, 5, 4\) expected, got \(3, 5, 1\)"):
        fill(tmp_path, logits=torch.zeros(3, ROWS, 1))


def test_a_second_writer_waits_for_the_first(tmp_path: Path) -> None:
    events: list[str] = []

    def second() -> None:
        write_logits(tmp_path, plan(), torch.zeros(3, ROWS, CLASSES))  # returns the store of the first
        events.append("second")

    thread = threading.Thread(target=second)

    def blocks_of(missing: Sequence[Shard]) -> Generator[Tensor]:
        thread.start()
        yield from torch.split(table(), 5, dim=1)
        time.sleep(0.05)
        events.append("first")

    write_store(tmp_path, plan(), blocks_of)
    thread.join()
    assert events == ["first", "second"]
    assert torch.equal(LogitStore.open(tmp_path).logits("clean", torch.arange(ROWS)), table()[0])


# ------------------------------------------------------------------------------------------------- disks


def test_a_full_disk_is_a_sentence_and_the_shards_before_it_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, budget = os.replace, [2]

    def full(source: Any, target: Any) -> None:
        budget[0] -= 1
        if budget[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(WriteError, match=r"shard-00002.*the disk is full"):
            fill(tmp_path)
    assert sorted(contents(tmp_path)) == ["shard-00000.safetensors", "shard-00001.safetensors"]  # no temporary file
    assert interrupt(tmp_path, written=0) == [2, 3, 4]


def test_a_disk_that_returns_other_bytes_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def failing(source: Any, target: Any) -> None:
        replace(source, target)
        flip(Path(target), 400)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(StoreError, match=r"shard-00000.*does not read back"):
        fill(tmp_path)


def test_a_file_in_the_way_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("a file")
    with pytest.raises(WriteError, match="in the way"):
        fill(tmp_path / "s")
    with pytest.raises(StoreError, match="no logit store here"):
        LogitStore.open(tmp_path / "s")


def test_a_finished_store_is_used_from_a_read_only_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path)

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    for name in ("replace", "unlink", "rename"):
        monkeypatch.setattr(os, name, refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    assert fill(tmp_path).rows == ROWS
    with pytest.raises(WriteError, match="cannot be removed"):
        write_store(tmp_path, plan(), lambda missing: (table() for _ in ()), overwrite=True)


# ------------------------------------------------------------------------------------------------- verify


class Pictures:
    """Row r is an image whose every pixel is r; under view v (by number) the first pixel is v."""

    def __init__(self, rows: int = ROWS) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def images_at(self, rows: Tensor, views: str) -> Tensor:
        images = rows.to(torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2).clone()
        images[:, 0, 0, 0] = VIEWS.index(views)
        return images


class Model(nn.Module):
    """Computes `table` of pixels / 255, but `error` away for view 2 of row 13; its dropout would change the logits in
    train mode.
    """

    def __init__(self, error: float = 0.0) -> None:
        super().__init__()
        self.drop, self.error = nn.Dropout(0.5), error

    def forward(self, images: Tensor) -> Tensor:
        pixels = (255 * images).round()
        view, row = pixels[:, 0, 0, 0], pixels[:, 0, 1, 1]
        logits = (1000 * view + row)[:, None] + torch.arange(CLASSES) / 8 - 7
        logits[(view == 2) & (row == 13), 2] += self.error
        output: Tensor = self.drop(logits)
        return output


def test_verify_compares_with_the_model(tmp_path: Path) -> None:
    store, model = fill(tmp_path), Model()
    report = store.verify(model, Pictures(), sample=10)  # type: ignore[arg-type]
    assert (report.shards, report.rows, report.max_abs_difference) == (5, 10, 0.0)
    assert report.per_view == dict.fromkeys(VIEWS, 0.0)
    assert report.bytes == sum(path.stat().st_size for path in tmp_path.glob("shard-*"))
    assert store.verify(model, Pictures(), sample=10**6).rows == ROWS  # type: ignore[arg-type]
    assert model.training
    checksums = store.verify()
    assert checksums.rows == 0
    assert np.isnan(checksums.max_abs_difference)


@pytest.mark.parametrize("error", [0.002, float("nan")])
def test_verify_names_view_and_row_of_a_wrong_logit(tmp_path: Path, error: float) -> None:
    store, model = fill(tmp_path), Model(error)
    with pytest.raises(StoreError, match=r"view 'crop-y0-x8', row 13.*1 of 23 rows"):
        store.verify(model, Pictures())  # type: ignore[arg-type]
    if error == error:
        # 2013.25 + 0.002 is stored to within half of float32's spacing there, 2^-13
        report = store.verify(model, Pictures(), tolerance=0.01)  # type: ignore[arg-type]
        assert report.per_view["crop-y0-x8"] == pytest.approx(0.002, abs=2**-13)
        assert report.max_abs_difference == report.per_view["crop-y0-x8"]


def test_verify_refuses_what_does_not_fit(tmp_path: Path) -> None:
    store = fill(tmp_path)
    with pytest.raises(MismatchError, match="23 rows in the store, 22 in the split"):
        store.verify(Model(), Pictures(22))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"both|neither"):
        store.verify(Model())
    with pytest.raises(UsageError, match="sample"):
        store.verify(Model(), Pictures(), sample=0)  # type: ignore[arg-type]
    with pytest.raises(MismatchError, match=r"4 classes; the model returned \(23, 1\)"):
        store.verify(nn.Sequential(Model(), nn.AvgPool1d(4)), Pictures())  # type: ignore[arg-type]
