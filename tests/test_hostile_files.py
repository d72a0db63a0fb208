"""What lies where a file should: pipes, devices, links, far too much, and names that a terminal would obey."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from noisyteacher import cli, load_data, pack_data
from noisyteacher.cli.output import print_table, say
from noisyteacher.config import build_config, read_config
from noisyteacher.data.builtin import read_cifar_batch
from noisyteacher.errors import ConfigError, DataError, FileFormatError
from noisyteacher.io import files
from noisyteacher.models.weights import read_state_dict
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


def doubling(last: bytes) -> bytes:
    """A pickle of tuples that hold their predecessor twice, 60 deep, and then `last`; the deepest has number 60."""
    tuples = b"".join(b"h" + bytes([n]) + b"h" + bytes([n]) + b"\x86q" + bytes([n + 1]) for n in range(60))
    return b"\x80\x02)q\x00" + tuples + last + b"."


DOUBLING = {
    "a key": b"}h\x3cK\x01s",
    "an entry": b"}(X\x04\0\0\0datah\x3cX\x06\0\0\0labelsh\x3cu",
    "the whole": b"h\x3c",
    "in a set": b"\x8f(h\x3c\x90",
}


@pytest.mark.parametrize("where", DOUBLING)
@pytest.mark.timeout(20)
def test_tuples_that_double_are_neither_hashed_nor_printed(where: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nested deeper"):
        read_cifar_batch(doubling(DOUBLING[where]), "batch")
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("a/data.pkl", doubling(DOUBLING[where]))
        archive.writestr("a/version", "3\n")
    with pytest.raises(FileFormatError, match="nested deeper"):
        read_state_dict(tmp_path / "a.pth")


@pytest.mark.timeout(20)
def test_lists_that_double_are_not_printed() -> None:
    lists = b"".join(b"]q" + bytes([n + 1]) + b"(h" + bytes([n]) + b"h" + bytes([n]) + b"e" for n in range(60))
    array = b"cnumpy\nndarray\n)R(K\x01h\x3ccnumpy\ndtype\n(h\x3ctR\x89C\0tb"
    pickled = b"\x80\x03)q\0" + lists + b"}(X\x04\0\0\0data" + array + b"X\x06\0\0\0labels]u."
    with pytest.raises(DataError, match="expected uint8"):
        read_cifar_batch(pickled, "batch")


def test_a_result_with_a_number_of_400_digits_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("broken", "whole"):
        run = new_run(tmp_path, "train", name, {})
        run.write_result({"training": {"seconds": 1}})
    files.write_json(run.path / "result.json", "run-result", 1, {"result": {"training": {"seconds": 10**400}}})
    with pytest.raises(FileFormatError, match="401 digits"):
        run.result()
    monkeypatch.setattr("sys.argv", ["noisyteacher", "runs", "ls", "--output-dir", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code in (0, None)
    printed = capsys.readouterr().out
    assert "damaged" in printed
    assert "done" in printed


LARGE_SETTINGS = {
    "parts": "a" + ".a" * 30_000 + " = 1",
    "quoted parts": '"a"' + ' . "a"' * 9_000 + " = 1",
    "header": "[a" + ".a" * 30_000 + "]",
    "bytes": "x = [" + "1," * 40_000 + "]",
    "names": "[student]\n" + "\n".join(f"t{n} = 1" for n in range(6_000)),
}


@pytest.mark.parametrize("kind", LARGE_SETTINGS)
@pytest.mark.timeout(10)
def test_settings_of_any_size_are_refused_soon(kind: str, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(LARGE_SETTINGS[kind])
    with pytest.raises(ConfigError, match=r"nested deeper|at most 65536|6000 settings are wrong"):
        build_config(read_config(tmp_path / "a.toml"))


def npz_claiming(path: Path, shape: tuple[int, ...], method: int) -> None:
    import io

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
