"""Durable writes, seals and locks: the old file or the new file, and every flipped bit noticed."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from noisyteacher.errors import DataWarning, FileFormatError, UsageError, WriteError
from noisyteacher.io import files, tensors


def test_crc32c_of_the_published_check_value() -> None:
    """RFC 3720: the CRC-32C of the nine ASCII digits."""
    assert files.crc32c(b"123456789") == files.crc32c(b"1234", b"", b"56789") == "e3069283"


def assert_every_flip_is_noticed(path: Path) -> None:
    data = path.read_bytes()
    for position in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[position // 8] ^= 1 << position % 8
        with pytest.raises(FileFormatError, match=path.name):
            files.check_seal(bytes(damaged), path)
    for cut in (0, 5, 20, len(data) - 1):
        with pytest.raises(FileFormatError):
            files.check_seal(data[:cut], path)


def test_every_flipped_bit_of_a_json_file_is_noticed(tmp_path: Path) -> None:
    path, content = tmp_path / "a.json", {"name": "crc32c=trap", "values": [1, 2.5, None]}
    files.write_json(path, "thing", 3, content)
    assert files.read_json(path, "thing", 3) == content
    assert json.loads(path.read_bytes())["schema"] == 3
    assert_every_flip_is_noticed(path)


def test_every_flipped_bit_of_a_tensor_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    values = {"b": torch.randn(2, 3), "a": torch.arange(4), "c": torch.tensor(True), "e": torch.empty(0, 3)}
    tensors.write_tensors(path, "thing", 1, values, {"note": "x"})
    loaded, record = tensors.read_tensors(path, "thing", 1)
    assert record == {"note": "x"}
    assert all(torch.equal(loaded[name], values[name]) for name in values)
    assert_every_flip_is_noticed(path)
    tensors.write_tensors(tmp_path / "b.safetensors", "thing", 1, dict(reversed(values.items())), {"note": "x"})
    assert (tmp_path / "b.safetensors").read_bytes() == path.read_bytes()


def test_kind_and_schema_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, "thing", 1, {})
    with pytest.raises(FileFormatError, match=r"holds a 'thing', expected a 'store'"):
        files.read_json(path, "store", 1)
    with pytest.raises(FileFormatError, match=r"schema 1, this version of noisyteacher reads 2"):
        files.read_json(path, "thing", 2)
    with pytest.raises(FileFormatError, match=r"nothing\.json: cannot be read: No such file"):
        files.read_json(tmp_path / "nothing.json", "thing", 1)


@pytest.mark.parametrize(
    ("code", "words"),
    [(errno.ENOSPC, "disk is full"), (errno.EROFS, "read-only"), (errno.EIO, "Input/output error")],
)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_refusing_disk_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, words: str
) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, "thing", 1, {"old": True})

    def refuse(*args: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(WriteError, match=rf"a\.json: cannot be written: .*{words}"):
            files.write_json(path, "thing", 1, {"old": False})
    assert files.read_json(path, "thing", 1) == {"old": True}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_mode_follows_the_umask_and_writes_are_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders: list[bool] = []
    fsync = os.fsync

    def record(handle: int) -> None:
        folders.append(stat.S_ISDIR(os.fstat(handle).st_mode))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", record)
    before = os.umask(0o027)
    try:
        files.write_bytes(tmp_path / "a", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
    assert folders == [False, True]


def test_a_file_in_the_way_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"")
    with pytest.raises(WriteError, match="a file"):
        files.write_bytes(tmp_path / "f" / "x", b"")


def test_a_removed_folder_is_not_created_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    writes: tuple[Callable[[], object], ...] = (
        lambda: files.write_bytes(folder / "a", b"", folder),
        lambda: files.write_json(folder / "inner" / "a.json", "thing", 1, {}, folder),
        lambda: tensors.write_tensors(folder / "a.safetensors", "thing", 1, {}, {}, folder),
    )
    for write in writes:
        with pytest.raises(WriteError, match="run: the folder is gone"):
            write()
    assert list(tmp_path.iterdir()) == []
    folder.mkdir()
    files.write_bytes(folder / "inner" / "a", b"x", folder)
    assert (folder / "inner" / "a").read_bytes() == b"x"


def refused(folder: Path) -> bool:
    try:
        with files.lock(folder, wait=False):
            return False
    except UsageError as error:
        return "working on it" in str(error)


def test_locks(tmp_path: Path) -> None:
    with files.lock(tmp_path, shared=True), files.lock(tmp_path, shared=True):
        assert refused(tmp_path)
    with files.lock(tmp_path, wait=False):
        assert refused(tmp_path)
    assert not refused(tmp_path)
    with pytest.raises(WriteError, match="nowhere: cannot be opened"), files.lock(tmp_path / "nowhere"):
        pass


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.warns(DataWarning, match="No locks available"), files.lock(tmp_path):
        files.write_bytes(tmp_path / "a", b"x")
    assert (tmp_path / "a").exists()


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    ready, signal_ready = os.pipe()
    child = os.fork()
    if not child:
        with files.lock(tmp_path):
            os.write(signal_ready, b"x")
            time.sleep(60)
        os._exit(0)
    os.read(ready, 1)
    assert refused(tmp_path)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert not refused(tmp_path)


def fail_in(folder: Path, new: Path) -> None:
    with files.remove_new_folders_on_error(folder):
        if new.suffix:
            files.write_bytes(new, b"")
        else:
            files.make_folder(new)
        raise KeyError


def test_new_folders_of_a_failed_block_are_removed(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    for folder in (tmp_path / "a" / "b" / "c", tmp_path / "old"):
        with pytest.raises(KeyError):
            fail_in(folder, folder)
        assert [path.name for path in tmp_path.rglob("*")] == ["old"]
    with pytest.raises(KeyError):
        fail_in(tmp_path / "a" / "b", tmp_path / "a" / "x.txt")
    assert (tmp_path / "a" / "x.txt").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": NaN}', "not JSON compliant"),
        ('{"a": -Infinity}', "not JSON compliant"),
        ('{"a": 1e999}', "not JSON compliant"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deep"),
        ('{"a": ' + "9" * 5000 + "}", "limit"),
    ],
)
def test_numbers_that_are_not_finite_and_deep_nesting_are_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        files.parse_json(text)
    record = b'{"checksum": "crc32c=00000000", "kind": "k", "schema": 1, "x": ' + text.encode() + b"}"
    (tmp_path / "a.json").write_bytes(files.seal(record))
    with pytest.raises(FileFormatError, match=rf"a\.json: not JSON: .*{message}"):
        files.read_json(tmp_path / "a.json", "k", 1)


def test_a_stream_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    files.write_bytes(tmp_path / "a", b"old")
    with pytest.raises(ZeroDivisionError), files.replace_file(tmp_path / "a") as stream:
        stream.write(b"half of the new" * (1 // 0))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"
