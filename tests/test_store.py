"""Logit stores: what goes in comes out by view and row; every damage, gap and mix-up is noticed and named."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from torch import Tensor, nn

from noisyteacher.errors import MismatchError, StoreError, UnknownNameError, UsageError, WriteError
from noisyteacher.io.files import crc32c, write_json
from noisyteacher.store import FINGERPRINTS, LogitStore, Plan, Shard, StoreWriter

PRINTS = {"teacher": "a1" * 32, "data": "b2" * 32, "preprocessing": "c3" * 32, "code": "d4" * 32}
VIEWS = ("clean", "mirror", "crop-y0-x8")
ROWS, CLASSES = 23, 4


def plan(**changes: Any) -> Plan:
    fields: dict[str, Any] = {"rows": ROWS, "classes": CLASSES, "views": VIEWS, "fingerprints": PRINTS}
    return Plan(**{**fields, "rows_per_shard": 5, **changes})


def table(views: int = len(VIEWS), rows: int = ROWS, classes: int = CLASSES) -> Tensor:
    """Logit of view v, row r, class k = 1000 v + r + k / 8 - 7: exact in float32, no two rows alike."""
    v, r, k = np.meshgrid(np.arange(views), np.arange(rows), np.arange(classes), indexing="ij")
    return torch.from_numpy((1000 * v + r + k / 8 - 7).astype(np.float32))


def fill(folder: Path, made: Plan | None = None, values: Tensor | None = None, **options: Any) -> LogitStore:
    made, values = made or plan(), table() if values is None else values
    with StoreWriter(folder, made, {"teacher": "by hand"}, **options) as writer:
        for shard in writer.missing:
            writer.write(shard, values[:, shard.first_row : shard.first_row + shard.rows])
        return writer.finish()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def flip(path: Path, byte: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 1 << bit
    path.write_bytes(bytes(data))


# ------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("memory_bytes", [10**9, 0], ids=["in memory", "mapped"])
def test_a_row_is_found_by_its_number_in_the_split_under_its_own_view(tmp_path: Path, memory_bytes: int) -> None:
    fill(tmp_path / "s")
    store = LogitStore.open(tmp_path / "s", memory_bytes=memory_bytes)
    assert (store.views, store.rows, store.classes, store.dtype) == (VIEWS, ROWS, CLASSES, "float32")
    assert store.fingerprints == PRINTS
    assert store.meta == {"teacher": "by hand"}
    rows, which = torch.tensor([22, 0, 4, 5, 22, 9, 10]), torch.tensor([0, 2, 1, 1, 2, 0, 0])
    assert torch.equal(store.logits(which, rows), table()[which, rows])
    for number, view in enumerate(VIEWS):
        assert torch.equal(store.logits(view, rows), table()[number, rows])
    assert torch.equal(store.logits("mirror", torch.arange(ROWS)), table()[1])
    assert store.logits("clean", torch.zeros(0, dtype=torch.int64)).shape == (0, CLASSES)


@pytest.mark.parametrize("memory_bytes", [10**9, 0])
def test_what_is_returned_is_a_copy(tmp_path: Path, memory_bytes: int) -> None:
    fill(tmp_path / "s")
    store = LogitStore.open(tmp_path / "s", memory_bytes=memory_bytes)
    store.logits("clean", torch.tensor([3])).zero_()
    assert torch.equal(store.logits("clean", torch.tensor([3])), table()[0, 3:4])
    LogitStore.open(tmp_path / "s")


def test_a_batchs_view_table_is_translated_by_name(tmp_path: Path) -> None:
    store = fill(tmp_path / "s")
    batch_views, which, rows = ("mirror", "clean"), torch.tensor([1, 0, 0]), torch.tensor([7, 7, 8])
    found = store.logits(store.view_indices(batch_views)[which], rows)
    assert found[:, 0].tolist() == [0.0, 1000.0, 1001.0]  # clean 7, mirror 7, mirror 8, by the formula of `table`


@pytest.mark.parametrize("rows_per_shard", [1, 5, 22, 23, 24])
def test_the_cut_into_shards_does_not_show(tmp_path: Path, rows_per_shard: int) -> None:
    store = fill(tmp_path / "s", plan(rows_per_shard=rows_per_shard))
    assert len(list((tmp_path / "s").glob("shard-*"))) == -(-ROWS // rows_per_shard)
    for view in range(3):
        assert torch.equal(store.logits(VIEWS[view], torch.arange(ROWS)), table()[view])


def test_any_safetensors_reader_can_read_a_shard(tmp_path: Path) -> None:
    fill(tmp_path / "s")
    found = safetensors.numpy.load_file(tmp_path / "s" / "shard-00001.safetensors")["logits"]
    np.testing.assert_array_equal(found, table()[:, 5:10].numpy())


def test_store_json_says_all_that_a_reader_needs(tmp_path: Path) -> None:
    store = fill(tmp_path / "s")
    data = (tmp_path / "s" / "store.json").read_bytes()
    record = json.loads(data)
    assert list(record) == [
        "checksum", "kind", "schema", "rows", "classes", "views", "fingerprints", "dtype", "precision",
        "rows_per_shard", "plan", "shards", "meta",
    ]  # fmt: skip
    assert (record["kind"], record["schema"]) == ("logit-store", 1)
    assert list(record["fingerprints"]) == ["teacher", "data", "preprocessing", "code"]
    last = (tmp_path / "s" / "shard-00004.safetensors").read_bytes()
    assert record["shards"][4] == {
        "file": "shard-00004.safetensors", "first_row": 20, "rows": 3, "bytes": len(last), "crc32c": crc32c(last)
    }  # fmt: skip
    assert store.digest == hashlib.sha256(data).hexdigest()
    asked = {name: record[name] for name in list(record)[3:10]}
    assert (
        record["plan"] == hashlib.sha256(json.dumps(asked, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    )


def test_equal_logits_give_equal_bytes(tmp_path: Path) -> None:
    fill(tmp_path / "a")
    fill(tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_shards_are_about_32_mb_and_cost_at_most_65536_answers() -> None:
    many = plan(rows=10**6, classes=1000, views=("clean",), rows_per_shard=0)
    assert many.rows_per_shard == 8000  # 32,000,000 / (1000 * 4)
    few = plan(rows=10**6, classes=10, views=("clean", "mirror"), rows_per_shard=0)
    assert few.rows_per_shard == 32768
    assert plan(rows=3, classes=10**8, rows_per_shard=0).rows_per_shard == 1


def test_float16_halves_the_file_and_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    store = fill(tmp_path / "s", plan(dtype="float16"), table() / 1024)
    assert store.dtype == "float16"
    found = store.logits("mirror", torch.arange(ROWS))
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found.numpy(), (table()[1] / 1024).numpy().astype(np.float16).astype(np.float32))
    values = table()
    values[1, 12, 3] = 70_000.0  # float16 ends at 65504
    with pytest.raises(StoreError, match=r"view 'mirror', row 12.*inf.*float32"):
        fill(tmp_path / "t", plan(dtype="float16"), values)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_not_finite_are_refused_with_view_and_row(tmp_path: Path, value: float) -> None:
    values = table()
    values[2, 17, 1] = value
    with pytest.raises(StoreError, match="view 'crop-y0-x8', row 17"):
        fill(tmp_path / "s", values=values)
    assert not (tmp_path / "s" / "store.json").exists()


# ------------------------------------------------------------------------------------------------- asked wrongly


@pytest.mark.parametrize("memory_bytes", [10**9, 0])
def test_rows_and_views_out_of_range_are_refused_not_wrapped(tmp_path: Path, memory_bytes: int) -> None:
    fill(tmp_path / "s")
    store = LogitStore.open(tmp_path / "s", memory_bytes=memory_bytes)
    with pytest.raises(MismatchError, match="no row -1 in this store: it has rows 0 to 22"):
        store.logits("clean", torch.tensor([3, -1]))
    with pytest.raises(MismatchError, match="no row 23"):
        store.logits("clean", torch.tensor([23]))
    with pytest.raises(MismatchError, match="no view 3"):
        store.logits(torch.tensor([3]), torch.tensor([0]))
    with pytest.raises(MismatchError, match="no view -1"):
        store.logits(torch.tensor([-1]), torch.tensor([0]))
    with pytest.raises(MismatchError, match="2 views for 3 rows"):
        store.logits(torch.tensor([0, 1]), torch.tensor([0, 1, 2]))
    with pytest.raises(MismatchError, match="no logits of view 'mirrored', only of clean, mirror"):
        store.logits("mirrored", torch.tensor([0]))
    for wrong in (torch.tensor([0.0]), torch.tensor([[0]]), torch.tensor([True]), [0]):
        with pytest.raises(MismatchError, match="int64"):
            store.logits("clean", wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("field", FINGERPRINTS)
def test_a_store_of_something_else_is_refused_naming_the_field(tmp_path: Path, field: str) -> None:
    store = fill(tmp_path / "s")
    store.check(**PRINTS)
    with pytest.raises(MismatchError, match=rf"made from {field} {PRINTS[field][:12]}, this {field} is 0123456789ab"):
        store.check(**{**PRINTS, field: "0123456789abcdef" * 4})
    with pytest.raises(UnknownNameError, match="did you mean 'teacher'"):
        store.check(techer="x")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 0}, "rows >= 1"),
        ({"classes": True}, "classes >= 1"),
        ({"views": ()}, "one view"),
        ({"views": "clean"}, "one view"),
        ({"views": ("clean", "clean")}, "each view once"),
        ({"fingerprints": {"teacher": "x"}}, "fingerprints teacher, data, preprocessing, code"),
        ({"fingerprints": {**PRINTS, "code": ""}}, "fingerprints"),
        ({"dtype": "float61"}, "did you mean 'float16'"),
        ({"rows_per_shard": -1}, "rows_per_shard"),
    ],
)
def test_a_plan_that_cannot_be_meant_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan(**changes)


# ------------------------------------------------------------------------------------------------- damage


def test_every_flipped_bit_is_noticed_and_its_file_named(tmp_path: Path) -> None:
    fill(tmp_path / "s")
    flips = 0
    for path in sorted((tmp_path / "s").iterdir()):
        whole = path.read_bytes()
        step = 3 if path.name == "store.json" else 7
        for place in [*range(0, len(whole), step), len(whole) - 1]:
            flip(path, place, bit=place % 8)
            with pytest.raises(StoreError, match=path.name):
                LogitStore.open(tmp_path / "s")
            path.write_bytes(whole)
            flips += 1
    assert flips > 700
    LogitStore.open(tmp_path / "s")


def test_damage_to_a_shard_is_told_with_its_rows_and_what_to_do(tmp_path: Path) -> None:
    store = fill(tmp_path / "s")
    path = tmp_path / "s" / "shard-00002.safetensors"
    whole = path.read_bytes()
    flip(path, len(whole) - 2)
    with pytest.raises(StoreError, match=r"shard-00002.safetensors: CRC-32C .* \(rows 10 to 14\).*extract again"):
        store.verify()
    path.write_bytes(whole[:-1])
    for verify in (True, False):
        with pytest.raises(StoreError, match=rf"shard-00002.*{len(whole) - 1} bytes, {len(whole)} expected"):
            LogitStore.open(tmp_path / "s", verify)
    path.unlink()
    for verify in (True, False):
        with pytest.raises(StoreError, match=r"shard-00002.*missing \(rows 10 to 14\)"):
            LogitStore.open(tmp_path / "s", verify)


def test_shards_in_each_others_place_are_noticed_without_checksums(tmp_path: Path) -> None:
    fill(tmp_path / "s")
    first, second = (tmp_path / "s" / f"shard-0000{n}.safetensors" for n in (2, 3))
    one, two = first.read_bytes(), second.read_bytes()
    assert len(one) == len(two)
    first.write_bytes(two)
    second.write_bytes(one)
    with pytest.raises(StoreError, match=r"shard-00002.*another place"):
        LogitStore.open(tmp_path / "s", verify=False)


def test_no_store_and_an_unfinished_one_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nowhere: no logit store here"):
        LogitStore.open(tmp_path / "nowhere")
    with StoreWriter(tmp_path / "s", plan()) as writer:
        writer.write(writer.missing[0], table()[:, :5])
        with pytest.raises(StoreError, match="4 of 5 shards are not written"):
            writer.finish()
    with pytest.raises(StoreError, match=r"no store.json in it.*unfinished.*kept"):
        LogitStore.open(tmp_path / "s")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("rows"), "key is missing or wrong"),
        (lambda r: r.update(rows="23"), "key is missing or wrong"),
        (lambda r: r.update(rows=24), "plan|place|shape|expected|store"),
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
def test_a_well_sealed_store_json_that_is_wrong_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    fill(tmp_path / "s")
    index = tmp_path / "s" / "store.json"
    record = json.loads(index.read_bytes())
    change(record)
    write_json(index, "logit-store", 1, {key: record[key] for key in list(record)[3:]} if "rows" in record else
               {key: value for key, value in record.items() if key not in ("checksum", "kind", "schema")})  # fmt: skip
    with pytest.raises(StoreError, match=message):
        LogitStore.open(tmp_path / "s")


@pytest.mark.parametrize(("kind", "schema", "message"), [("model", 1, "a 'model'"), ("logit-store", 2, "schema 2")])
def test_another_kind_or_schema_is_refused(tmp_path: Path, kind: str, schema: int, message: str) -> None:
    fill(tmp_path / "s")
    write_json(tmp_path / "s" / "store.json", kind, schema, {"rows": 1})
    with pytest.raises(StoreError, match=message):
        LogitStore.open(tmp_path / "s")


# ------------------------------------------------------------------------------------------------- resuming


def test_intact_shards_are_kept_and_all_others_written_anew(tmp_path: Path) -> None:
    fill(tmp_path / "whole")
    with StoreWriter(tmp_path / "s", plan()) as writer:
        for shard in writer.missing[:4]:
            writer.write(shard, table()[:, shard.first_row : shard.first_row + 5])
    flip(tmp_path / "s" / "shard-00001.safetensors", 300)  # damaged
    short = tmp_path / "s" / "shard-00002.safetensors"
    short.write_bytes(short.read_bytes()[:100])  # truncated
    fill(tmp_path / "other", plan(fingerprints={**PRINTS, "teacher": "e5" * 32}))
    os.replace(tmp_path / "other" / "shard-00003.safetensors", tmp_path / "s" / "shard-00003.safetensors")
    (tmp_path / "s" / ".shard-00004.safetensors.abc.tmp").write_bytes(b"half a shard of a killed process")
    with StoreWriter(tmp_path / "s", plan(), {"teacher": "by hand"}) as writer:
        assert [shard.file[6:11] for shard in writer.missing] == ["00001", "00002", "00003", "00004"]
        for shard in writer.missing:
            writer.write(shard, table()[:, shard.first_row : shard.first_row + shard.rows])
        writer.finish()
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


def test_a_finished_store_of_the_same_plan_leaves_nothing_to_do(tmp_path: Path) -> None:
    fill(tmp_path / "s")
    before = contents(tmp_path / "s")
    for same in (plan(), plan(rows_per_shard=0)):  # how it is cut is not what it holds
        with StoreWriter(tmp_path / "s", same, {"teacher": "other words"}) as writer:
            assert writer.missing == ()
            assert torch.equal(writer.finish().logits("mirror", torch.tensor([21])), table()[1, 21:22])
    assert contents(tmp_path / "s") == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"fingerprints": {**PRINTS, "teacher": "9" * 64}}, "made from teacher a1a1a1a1a1a1, this teacher is 999"),
        ({"fingerprints": {**PRINTS, "data": "9" * 64}}, "made from data b2b2"),
        ({"fingerprints": {**PRINTS, "preprocessing": "9" * 64}}, "made from preprocessing c3c3"),
        ({"fingerprints": {**PRINTS, "code": "9" * 64}}, "made from code d4d4"),
        ({"views": ("clean",)}, "views is"),
        ({"views": ("mirror", "clean", "crop-y0-x8")}, "views is"),
        ({"rows": 22}, "rows is 23 in the store, 22 asked for"),
        ({"classes": 5}, "classes is 4"),
        ({"dtype": "float16"}, "dtype is 'float32'"),
        ({"precision": "bf16"}, "precision is 'fp32'"),
    ],
)
def test_a_finished_store_of_another_plan_is_not_touched_unless_told(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    fill(tmp_path / "s")
    before = contents(tmp_path / "s")
    with pytest.raises(MismatchError, match=f"{named}.*overwrite=True"), StoreWriter(tmp_path / "s", plan(**changes)):
        pass
    assert contents(tmp_path / "s") == before


def test_overwriting_leaves_only_the_new_store(tmp_path: Path) -> None:
    fill(tmp_path / "s")
    (tmp_path / "s" / "notes.txt").write_text("mine")
    small = plan(rows=6, views=("clean",))
    with StoreWriter(tmp_path / "s", small, overwrite=True) as writer:
        assert not (tmp_path / "s" / "store.json").exists()  # from the first moment on it is an unfinished one
        for shard in writer.missing:
            writer.write(shard, table(1, 6)[:, shard.first_row : shard.first_row + shard.rows])
        store = writer.finish()
    assert set(contents(tmp_path / "s")) == {
        "notes.txt", "shard-00000.safetensors", "shard-00001.safetensors", "store.json"
    }  # fmt: skip
    assert torch.equal(store.logits("clean", torch.arange(6)), table(1, 6)[0])


def test_leftover_shards_of_an_unfinished_larger_store_are_cleared_away(tmp_path: Path) -> None:
    fill(tmp_path / "s")
    (tmp_path / "s" / "store.json").unlink()
    fill(tmp_path / "s", plan(rows=6), table(3, 6))
    assert set(contents(tmp_path / "s")) == {"shard-00000.safetensors", "shard-00001.safetensors", "store.json"}


def test_a_shard_of_another_shape_is_refused(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "s", plan()) as writer:
        with pytest.raises(MismatchError, match=r"logits \(3, 5, 4\) expected, got \(3, 5, 1\)"):
            writer.write(writer.missing[0], torch.zeros(3, 5, 1))
        with pytest.raises(UsageError, match="JSON"):
            StoreWriter(tmp_path / "t", plan(), {"model": object()})


def test_a_second_writer_waits_for_the_first(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    seen: list[str] = []

    def second() -> None:
        with StoreWriter(tmp_path / "s", plan()) as writer:
            seen.append("second in")
            assert writer.missing == ()

    with StoreWriter(tmp_path / "s", plan()) as writer:
        other = threading.Thread(target=second)
        other.start()
        for shard in writer.missing:
            writer.write(shard, table()[:, shard.first_row : shard.first_row + shard.rows])
        time.sleep(0.05)
        writer.finish()
        seen.append("first done")
    other.join(10)
    assert seen == ["first done", "second in"]


# ------------------------------------------------------------------------------------------------- disks


def test_a_full_disk_is_a_sentence_and_the_shards_before_it_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, replaced, left = tmp_path / "s", os.replace, [2]

    def full(source: Any, target: Any) -> None:
        if left[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] -= 1
        replaced(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(WriteError, match=r"shard-00002.*the disk is full"):
            fill(folder)
    assert sorted(contents(folder)) == ["shard-00000.safetensors", "shard-00001.safetensors"]  # and no temporary file
    with StoreWriter(folder, plan()) as writer:
        assert len(writer.missing) == 3


def test_a_disk_that_does_not_give_back_what_was_written_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced = os.replace

    def failing(source: Any, target: Any) -> None:
        replaced(source, target)
        flip(Path(target), 400)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(StoreError, match=r"shard-00000.*does not read back"):
        fill(tmp_path / "s")


def test_a_file_in_the_way_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("a file")
    with pytest.raises(WriteError, match="in the way"), StoreWriter(tmp_path / "s", plan()):
        pass
    with pytest.raises(StoreError, match="no logit store here"):
        LogitStore.open(tmp_path / "s")


def test_a_finished_store_is_used_from_a_read_only_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "s")

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    for name in ("replace", "unlink", "rename"):
        monkeypatch.setattr(os, name, refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with StoreWriter(tmp_path / "s", plan()) as writer:
        assert writer.finish().rows == ROWS
    with pytest.raises(WriteError, match="cannot be removed"), StoreWriter(tmp_path / "s", plan(), overwrite=True):
        pass


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


def answer(images: Tensor) -> Tensor:
    view, row = images[:, 0, 0, 0].float(), images[:, 0, 1, 1].float()
    return (1000 * view + row)[:, None] + torch.arange(CLASSES) / 8 - 7


class Module(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, images: Tensor) -> Tensor:
        return self.drop(answer(images))


def test_verify_asks_the_model_again(tmp_path: Path) -> None:
    store = fill(tmp_path / "s")
    report = store.verify(answer, Pictures(), sample=10)
    assert (report.shards, report.rows, report.max_abs_difference) == (5, 10, 0.0)
    assert report.per_view == dict.fromkeys(VIEWS, 0.0)
    assert report.bytes == sum(p.stat().st_size for p in (tmp_path / "s").glob("shard-*"))
    module = Module()  # in training, its dropout would say other things
    assert store.verify(module, Pictures(), sample=10**6).rows == ROWS
    assert module.training
    alone = store.verify()
    assert alone.rows == 0
    assert np.isnan(alone.max_abs_difference)


@pytest.mark.parametrize("wrong", [0.002, float("nan")])
def test_verify_names_view_and_row_of_a_wrong_logit(tmp_path: Path, wrong: float) -> None:
    store = fill(tmp_path / "s")

    def other(images: Tensor) -> Tensor:
        logits = answer(images)
        hit = (images[:, 0, 0, 0] == 2) & (images[:, 0, 1, 1] == 13)
        logits[hit, 2] += wrong
        return logits

    with pytest.raises(StoreError, match=r"view 'crop-y0-x8', row 13.*1 of 23 rows"):
        store.verify(other, Pictures())
    if wrong == wrong:
        # 2013.25 + 0.002 is stored to within half of float32's spacing there, 2^-13
        report = store.verify(other, Pictures(), tolerance=0.01)
        assert report.per_view["crop-y0-x8"] == pytest.approx(0.002, abs=2**-13)
        assert report.max_abs_difference == report.per_view["crop-y0-x8"]


def test_verify_refuses_what_does_not_fit(tmp_path: Path) -> None:
    store = fill(tmp_path / "s")
    with pytest.raises(MismatchError, match="23 rows in the store, 22 in the split"):
        store.verify(answer, Pictures(22))
    with pytest.raises(UsageError, match=r"both|neither"):
        store.verify(answer)
    with pytest.raises(UsageError, match="sample"):
        store.verify(answer, Pictures(), sample=0)
    with pytest.raises(MismatchError, match=r"\(23, 4\), got \(23, 1\)"):
        store.verify(lambda images: answer(images)[:, :1], Pictures())


def test_a_writer_alone_knows_no_shard_by_heart() -> None:
    assert plan().shards[-1] == Shard("shard-00004.safetensors", 20, 3)
    assert sum(shard.rows for shard in plan().shards) == ROWS
