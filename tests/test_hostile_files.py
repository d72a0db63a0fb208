"""What lies where a file should: pipes, devices, links, far too much, and names that a terminal would obey."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from noisyteacher import cli, load_data, pack_data
from noisyteacher.cli.output import print_table, say
from noisyteacher.errors import DataError, FileFormatError
from noisyteacher.io import files
from noisyteacher.runs import Run, list_runs, new_run
from noisyteacher.text import harmless


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
    with pytest.raises(FileFormatError, match="cannot be read"):
        files.read_bytes(path)


@pytest.mark.timeout(20)
def test_a_run_folder_with_a_pipe_in_it_is_listed_as_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = new_run(tmp_path, "train", "x", {})
    (run.path / "run.json").unlink()
    os.mkfifo(run.path / "run.json")
    (listed,) = list_runs(tmp_path)
    assert "damaged" in listed.state
    monkeypatch.setattr("sys.argv", ["noisyteacher", "runs", "ls", "--output-dir", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code in (0, None)
    assert "damaged" in capsys.readouterr().out


def test_records_of_any_size_are_not_read(tmp_path: Path) -> None:
    for name in ("result.json", "error.txt", "metrics.jsonl"):
        with open(tmp_path / name, "wb") as stream:
            stream.truncate(files.MAX_TEXT + 1)
    run = Run(tmp_path)
    for read in (run.result, run.error, run.metrics):
        with pytest.raises(FileFormatError, match=f"at most {files.MAX_TEXT} are read"):
            read()


def test_packing_does_not_write_through_links(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((30, 8, 8), np.uint8), y=np.arange(30) % 3)
    out, victim = tmp_path / "out", tmp_path / "victim"
    out.mkdir()
    victim.write_text("mine")
    for name in ("images.u8", "packed.json"):
        (out / name).symlink_to(tmp_path / "nowhere" if name == "packed.json" else victim)
    packed = pack_data(tmp_path / "x.npz", out)
    assert victim.read_text() == "mine"
    assert not (out / "images.u8").is_symlink()
    assert packed.verify() == 30 * 64
    assert not (tmp_path / "nowhere").exists()


def test_a_path_that_is_no_utf8_is_kept_as_it_is(tmp_path: Path) -> None:
    name = os.fsdecode(b"odd\xff\xfe")
    files.write_json(tmp_path / "a.json", "thing", 1, {"path": name})
    assert files.read_json(tmp_path / "a.json", "thing", 1) == {"path": name}
    run = new_run(tmp_path / name, "train", "x", {"folder": name})
    run.write_error(f"not in {name}")
    assert run.config["folder"] == name
    assert run.error() == "not in odd\\udcff\\udcfe\n"


HOSTILE = "a\x1b[31mred\x07\x9b1m"


def test_nothing_that_a_terminal_would_obey_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    print_table((HOSTILE,), [(HOSTILE,)])
    say(f"first {HOSTILE}\nsecond")
    printed = capsys.readouterr().out
    assert not {"\x1b", "\x07", "\x9b"} & set(printed)
    assert printed.count("\\u001b[31mred") == 3
    assert "\nsecond\n" in printed
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
def test_arrays_to_pack_that_claim_too_much(method: int, tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    for shape in ((1, 40_000, 40_000), (40_000, 1000, 1000)):
        npz_claiming(path, shape, method)
        for read in (lambda: pack_data(path, tmp_path / "out"), lambda: load_data(path)):
            with pytest.raises(DataError, match="bytes, but holds"):
                read()
