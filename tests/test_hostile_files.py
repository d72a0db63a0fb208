"""What lies where a file should: pipes, devices, links, far too much, and names that a terminal would obey."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from noisyteacher import cli, files, load_data, pack_data
from noisyteacher.cli.show import print_table, say
from noisyteacher.errors import DataError, FileFormatError, WriteError
from noisyteacher.report.plain import harmless
from noisyteacher.runs import Run, list_runs, new_run
from noisyteacher.strictjson import parse_json


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "link to a device"])
@pytest.mark.timeout(20)
def test_what_is_no_file_is_not_read(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path = path if kind != "device" else Path("/dev/zero")
        if kind != "device":
            path.symlink_to("/dev/zero")
    for read in (lambda: files.read_bytes(path), lambda: files.read_range(path, 0, 10)):
        with pytest.raises(FileFormatError, match="not a file"):
            read()


@pytest.mark.timeout(20)
def test_a_run_folder_with_a_pipe_in_it_is_listed_as_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = new_run(tmp_path, "train", "x", {})
    (run.path / "run.json").unlink()
    os.mkfifo(run.path / "run.json")
    (found,) = list_runs(tmp_path)
    assert "damaged" in found.state
    monkeypatch.setattr("sys.argv", ["noisyteacher", "runs", "ls", "--output-dir", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code in (0, None)
    assert "damaged" in capsys.readouterr().out


def test_records_of_any_size_are_not_read(tmp_path: Path) -> None:
    for name in ("result.json", "error.txt", "metrics.jsonl"):
        with open(tmp_path / name, "wb") as stream:
            stream.truncate(files.MOST_TEXT + 1)
    run = Run(tmp_path)
    for read in (run.result, run.error, run.metrics):
        with pytest.raises(FileFormatError, match=f"more than the {files.MOST_TEXT} that are read"):
            read()


def test_packing_does_not_write_through_links(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((30, 8, 8), np.uint8), y=np.arange(30) % 3)
    out, victims = tmp_path / "out", [tmp_path / "victim1", tmp_path / "victim2"]
    out.mkdir()
    for name, victim in zip(("packing.jsonl", "all-images.u8"), victims, strict=True):
        victim.write_text("mine")
        (out / name).symlink_to(victim)
    with pytest.raises((WriteError, DataError, FileFormatError)):
        pack_data(tmp_path / "x.npz", out)
    assert [victim.read_text() for victim in victims] == ["mine", "mine"]


def test_appending_to_a_link_or_a_pipe_is_refused(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "victim")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(WriteError, match="a link is in its place"):
        files.append_bytes(tmp_path / "link", b"yours", 0)
    with pytest.raises(WriteError, match="cannot be written"):
        files.append_bytes(tmp_path / "pipe", b"yours", 0)
    assert (tmp_path / "victim").read_text() == "mine"


def test_what_is_appended_is_on_the_disk_before_it_is_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    sync, write = os.fsync, os.write
    monkeypatch.setattr(os, "write", lambda handle, data: (told.append("write"), write(handle, data))[1])
    monkeypatch.setattr(os, "fsync", lambda handle: (told.append("fsync"), sync(handle))[1])
    files.append_bytes(tmp_path / "a", b"first", 0)
    assert told == ["write", "fsync", "fsync"]  # the file, then the folder that names it
    told.clear()
    files.append_bytes(tmp_path / "a", b"second", 5)
    assert told == ["write", "fsync"]
    assert (tmp_path / "a").read_bytes() == b"firstsecond"


def test_a_path_that_is_no_utf8_is_kept_as_it_is(tmp_path: Path) -> None:
    name = os.fsdecode(b"odd\xff\xfe")
    files.write_json(tmp_path / "a.json", "thing", 1, {"path": name})
    assert files.read_json(tmp_path / "a.json", "thing", 1) == {"path": name}
    run = new_run(tmp_path / name, "train", "x", {"folder": name})
    run.write_error(f"not in {name}")
    assert run.config["folder"] == name
    assert run.error() == "not in odd\\udcff\\udcfe\n"


def test_a_key_that_is_there_twice_is_found_at_once() -> None:
    text = "{" + ", ".join(f'"key{number}": 1' for number in range(100_000)) + ', "key99999": 2}'
    started = time.process_time()
    with pytest.raises(ValueError, match="'key99999' is there twice"):
        parse_json(text)
    assert time.process_time() - started < 10  # the square of 100,000 takes minutes


HOSTILE = "a\x1b[31mred\x07\x9b1m"


def test_nothing_that_a_terminal_would_obey_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    print_table((HOSTILE,), [(HOSTILE,)])
    say(f"first {HOSTILE}\nsecond")
    said = capsys.readouterr().out
    assert not {"\x1b", "\x07", "\x9b"} & set(said)
    assert said.count("\\u001b[31mred") == 3
    assert "\nsecond\n" in said
    assert harmless(HOSTILE) == "a\\u001b[31mred\\u0007\\u009b1m"


def npz_claiming(path: Path, shape: tuple[int, ...], method: int) -> None:
    import io
    import zipfile

    header = io.BytesIO()
    claim: dict[str, Any] = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, claim)
    with zipfile.ZipFile(path, "w", method) as out:
        out.writestr("x.npy", header.getvalue() + bytes(10**6))


@pytest.mark.parametrize("method", [0, 8, 12])
def test_arrays_to_pack_that_claim_too_much(method: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.npz"
    npz_claiming(path, (1, 40_000, 40_000), method)
    with pytest.raises(DataError, match=r"an image of 1\.6 GB is not read"):
        pack_data(path, tmp_path / "out")
    npz_claiming(path, (40_000, 1000, 1000), method)
    with pytest.raises(DataError, match="bytes, and can have"):
        pack_data(path, tmp_path / "out")
    with pytest.raises(DataError):
        load_data(path)
