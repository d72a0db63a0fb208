"""Run folders: made whole or not at all, their state read off their files, listed whatever their condition."""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from noisyteacher.errors import FileFormatError, MismatchError, UsageError, WriteError
from noisyteacher.io.files import write_json
from noisyteacher.pipeline.pretrained import network_name, run_title
from noisyteacher.runs import ABSENT, Run, as_json, diff_runs, find_run, is_run, list_runs, new_run, remove_run

CONFIG = {"student": "mlp800", "noise": {"sigma": 0.9, "alpha": 0.5}, "views": ["clean", "mirror"], "epochs": 20}


def make(folder: Path, name: str = "mlp800", **changes: Any) -> Run:
    return new_run(folder, "distil", name, {**CONFIG, **changes}, {"teacher": "abc"}, 3, ["noisyteacher", "distil"])


def flip(path: Path, byte: int) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 1
    path.write_bytes(bytes(data))


# ------------------------------------------------------------------------------------------------- making and reading


def test_a_new_run_says_what_was_asked_and_where_it_runs(tmp_path: Path) -> None:
    created = make(tmp_path / "runs")
    assert re.fullmatch(r"\d{8}T\d{4}Z-distil-mlp800-[0-9a-f]{6}", created.id)
    assert sorted(path.name for path in created.path.iterdir()) == ["config.json", "run.json"]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [created.id]  # and no draft beside it
    run = Run.open(created.path)
    assert run.config == CONFIG
    info = run.info
    assert list(info) == ["kind", "name", "parents", "seed", "command", "versions", "host", "started"]
    assert (info["kind"], info["parents"], info["seed"]) == ("distil", {"teacher": "abc"}, 3)
    assert info["command"] == ["noisyteacher", "distil"]
    assert info["versions"]["torch"] == version("torch")
    assert info["versions"]["python"] == platform.python_version()
    assert set(info["versions"]) == {"noisyteacher", "torch", "numpy", "python"}
    assert set(info["host"]) == {"cpu", "cores", "threads", "gpu", "platform"}
    assert platform.node() == "" or platform.node() not in json.dumps(info)
    assert run.id.startswith(run.started[:16].replace("-", "").replace(":", ""))
    assert (run.state, run.result(), run.finished, run.error(), run.metrics()) == ("unfinished", None, None, None, [])


def test_the_files_are_sealed_json_of_their_kind(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.write_result({"error": 1.5})
    result = {name: json.loads((run.path / name).read_bytes()) for name in ("config.json", "run.json", "result.json")}
    assert {name: (record["kind"], record["schema"]) for name, record in result.items()} == {
        "config.json": ("run-config", 1), "run.json": ("run", 1), "result.json": ("run-result", 1)
    }  # fmt: skip
    assert list(result["config.json"]) == ["checksum", "kind", "schema", "config"]
    assert list(result["run.json"]) == ["checksum", "kind", "schema", "run"]
    assert list(result["result.json"]) == ["checksum", "kind", "schema", "result", "finished"]
    assert all(record["checksum"].startswith("crc32c=") for record in result.values())


def test_a_config_may_use_the_names_of_the_file_itself(tmp_path: Path) -> None:
    config = {"kind": "gaussian", "schema": 9, "checksum": "crc32c=00000000"}
    assert Run.open(new_run(tmp_path, "train", "x", config).path).config == config


def test_ids_do_not_collide_and_names_become_file_names(tmp_path: Path) -> None:
    ids = {make(tmp_path).id for _ in range(20)}
    assert len(ids) == 20
    odd = new_run(tmp_path, "train", "../../pkg.module:Net (2)/ä", {})
    assert odd.path.parent == tmp_path
    assert re.fullmatch(r"\d{8}T\d{4}Z-train-pkg.module-Net-2-[0-9a-f]{6}", odd.id)
    assert odd.info["name"] == "../../pkg.module:Net (2)/ä"
    assert "-run-" in new_run(tmp_path, "train", "///", {}).id


def test_a_run_is_named_after_student_teacher_and_data_however_long(tmp_path: Path) -> None:
    assert run_title("mlp800", "lenet", "mnist-5k") == "mlp800-from-lenet-mnist-5k"
    assert run_title("timm:resnet18", None, "photos") == "timm-resnet18-photos"
    run = new_run(tmp_path, "compress", "s", {}, title=run_title("s" * 200, "t" * 200, "d" * 200))
    assert re.fullmatch(r"\d{8}T\d{4}Z-compress-s{30}-from-t{30}-d{24}-[0-9a-f]{6}", run.id)
    assert run.info["name"] == "s"
    trained = new_run(tmp_path, "train", "lenet", {"config": {}}, title="lenet-mnist-5k")
    for path in (trained.path, trained.path / "weights.safetensors"):
        assert network_name(str(path)) == "lenet"
    child = run.child("teacher", "train", {"model": "timm:resnet18"})
    assert network_name(str(child.path)) == "resnet18"
    assert network_name("elsewhere/big.safetensors") == "big"
    assert network_name("pretrained:lenet-mnist") == "lenet-mnist"
    assert network_name(nn.Linear(1, 1)) == "Linear"


def test_states_are_read_off_the_files(tmp_path: Path) -> None:
    run = make(tmp_path)
    assert run.state == "unfinished"
    run.write_error("Traceback ...\nTrainingError: the loss is not finite")
    assert (run.state, Run.open(run.path).state) == ("failed", "failed")
    assert run.error() == "Traceback ...\nTrainingError: the loss is not finite\n"
    run.clear_error()
    assert run.state == "unfinished"
    run.clear_error()
    run.write_error("again")
    run.write_result({"val": {"error": 2.5, "n": 600}})
    assert run.state == "done"  # a result outweighs an older failure
    assert run.result() == {"val": {"error": 2.5, "n": 600}}
    assert run.finished is not None
    assert run.finished >= run.started


def test_metrics_are_one_json_object_a_line(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.write_metrics([{"epoch": 1, "train/loss": 0.5}, {"epoch": 2, "train/loss": float("nan")}])
    assert (run.path / "metrics.jsonl").read_text() == (
        '{"epoch": 1, "train/loss": 0.5}\n{"epoch": 2, "train/loss": null}\n'
    )
    assert run.metrics() == [{"epoch": 1, "train/loss": 0.5}, {"epoch": 2, "train/loss": None}]
    (run.path / "metrics.jsonl").write_text('{"epoch": 1}\n{"epo')
    with pytest.raises(FileFormatError, match=r"metrics.jsonl: line 2"):
        run.metrics()


def test_values_become_plain_json_or_are_refused_by_name(tmp_path: Path) -> None:
    @dataclass
    class Noise:
        sigma: tuple[float, float]

    value = {
        "a": (1, 2.5, None, True), "b": Path("x/y"), "c": np.float32(0.5), "d": torch.tensor(3), "e": Noise((0.1, 1.0)),
        "f": np.int64(7),
    }  # fmt: skip
    assert as_json(value, "config") == {
        "a": [1, 2.5, None, True], "b": "x/y", "c": 0.5, "d": 3, "e": {"sigma": [0.1, 1.0]}, "f": 7
    }  # fmt: skip
    for bad, message in (
        ({"x": {"y": [0, object()]}}, "config: .*a object"),
        ({"x": float("nan")}, "config: .*finite"),
        ({"x": torch.zeros(2)}, "config: .*a Tensor"),
        ({"x": np.array(float("inf"))}, "config: .*finite"),
    ):
        with pytest.raises(UsageError, match=message):
            new_run(tmp_path / "runs", "train", "x", bad)
    assert not (tmp_path / "runs").exists()
    run = make(tmp_path)
    run.write_result({"half_width": float("inf"), "n": np.int64(5)})
    assert run.result() == {"half_width": None, "n": 5}


# ------------------------------------------------------------------------------------------------- children


def test_a_child_is_made_once_and_reopened_by_the_same_config(tmp_path: Path) -> None:
    parent = make(tmp_path)
    child = parent.child("sigma-0.9-seed-1", "cell", CONFIG, parents={"store": "ff"}, seed=1)
    assert child.id == f"{parent.id}/sigma-0.9-seed-1"
    child.write_result({"error": 3.0})
    same = {**CONFIG, "views": ("clean", "mirror")}  # a tuple is what JSON gives back as a list
    again = parent.child("sigma-0.9-seed-1", "cell", same, parents={"store": "ff"}, seed=1)
    assert again.state == "done"
    assert again.result() == {"error": 3.0}
    assert again.started == child.started
    assert [run.id for run in parent.children()] == [child.id]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"config": {**CONFIG, "epochs": 21}}, "config.epochs is 20 there, 21 now"),
        ({"config": {**CONFIG, "noise": {"sigma": 0.9}}}, r"config.noise.alpha is 0.5 there, '\(absent\)' now"),
        ({"config": {**CONFIG, "epochs": 20.0}}, "config.epochs"),
        ({"kind": "train"}, "kind is 'cell'"),
        ({"parents": {"store": "ee"}}, "parents.store is 'ff' there, 'ee' now"),
        ({"seed": 2}, "seed is 1 there, 2 now"),
    ],
)
def test_a_child_of_another_config_is_refused_naming_the_key(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    parent = make(tmp_path)
    request: dict[str, Any] = {"kind": "cell", "config": CONFIG, "parents": {"store": "ff"}, "seed": 1}
    parent.child("c", **request)
    with pytest.raises(MismatchError, match=named):
        parent.child("c", **{**request, **change})


def test_a_damaged_child_is_not_taken_for_a_new_one(tmp_path: Path) -> None:
    parent = make(tmp_path)
    child = parent.child("c", "cell", CONFIG)
    flip(child.path / "config.json", 200)
    with pytest.raises(FileFormatError, match=r"c/config.json"):
        parent.child("c", "cell", CONFIG)


@pytest.mark.parametrize("name", ["checkpoint", "events", "run.json", "config.json", "", "..", "a/b", ".hidden", "a b"])
def test_a_child_cannot_take_a_name_that_is_taken(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot name a child run"):
        make(tmp_path).child(name, "cell", {})


def test_a_child_that_another_process_makes_first_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent, renamed = make(tmp_path), Path.rename

    def late(self: Path, target: Any) -> Path:
        monkeypatch.setattr(Path, "rename", renamed)
        parent.child("c", "cell", CONFIG).write_error("the other's")
        return renamed(self, target)

    monkeypatch.setattr(Path, "rename", late)
    assert parent.child("c", "cell", CONFIG).state == "failed"
    assert sorted(path.name for path in parent.path.iterdir()) == ["c", "config.json", "run.json"]
    with pytest.raises(MismatchError, match="epochs"):
        parent.child("c", "cell", {**CONFIG, "epochs": 1})


# ------------------------------------------------------------------------------------------------- disks


def test_a_full_disk_leaves_no_half_made_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced = os.replace

    def full(source: Any, target: Any) -> None:
        if Path(target).name == "run.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        replaced(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(WriteError, match=r"run.json.*disk is full"):
        make(tmp_path)
    assert list(tmp_path.iterdir()) == []
    run = None
    monkeypatch.setattr(os, "replace", replaced)
    run = make(tmp_path)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(WriteError, match=r"result.json.*disk is full"):
        run.write_result({"error": 1.0})
    assert run.state == "unfinished"


def test_a_file_in_the_way_of_the_folder_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(WriteError, match="a parent of it is a file"):
        make(tmp_path / "runs")
    assert list_runs(tmp_path / "runs") == []


# ------------------------------------------------------------------------------------------------- damage


def test_every_flipped_bit_in_a_runs_files_is_noticed(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.write_result({"error": 1.5})
    for name in ("config.json", "run.json", "result.json"):
        path = run.path / name
        whole = path.read_bytes()
        for offset in range(0, len(whole), 5):
            flip(path, offset)
            assert Run(run.path).state == "damaged"
            with pytest.raises(FileFormatError, match=name):
                Run.open(run.path).result()
            path.write_bytes(whole)
    assert Run(run.path).state == "done"


def test_listing_never_fails_and_calls_damage_by_its_name(tmp_path: Path) -> None:
    runs = {name: make(tmp_path, name) for name in ("good", "flipped", "foreign", "empty", "folder", "lost")}
    flip(runs["flipped"].path / "run.json", 100)
    write_json(runs["foreign"].path / "config.json", "model", 1, {"x": 1})
    (runs["lost"].path / "run.json").unlink()
    (runs["folder"].path / "result.json").mkdir()
    write_json(runs["empty"].path / "run.json", "run", 1, {"run": {}})
    (tmp_path / "notes").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")  # another program's
    (tmp_path / ".new-0123").mkdir()
    (tmp_path / "file.txt").write_text("x")
    result = {run.path.name.split("-")[2]: run.state for run in list_runs(tmp_path)}
    assert result == {
        "good": "unfinished", "flipped": "damaged", "foreign": "damaged", "folder": "damaged", "empty": "damaged",
    }  # fmt: skip
    assert not is_run(tmp_path / "model")
    with pytest.raises(FileFormatError, match="model: not a run folder"):
        Run.open(tmp_path / "model")


# ------------------------------------------------------------------------------------------------- finding


def test_runs_are_listed_newest_first_with_their_children(tmp_path: Path) -> None:
    first, second = make(tmp_path, "one"), make(tmp_path, "two")
    inner = first.child("cell", "cell", {})
    innermost = inner.child("part", "part", {})
    assert [run.id for run in list_runs(tmp_path)] == [innermost.id, inner.id, second.id, first.id]
    assert [run.id for run in list_runs(tmp_path, depth=2)] == [inner.id, second.id, first.id]
    assert [run.id for run in list_runs(tmp_path, depth=1)] == [second.id, first.id]
    assert list_runs(tmp_path / "nowhere") == []


def test_a_link_inside_a_run_is_not_followed_by_a_listing(tmp_path: Path) -> None:
    run = make(tmp_path)
    (run.path / "loop").symlink_to(tmp_path, target_is_directory=True)
    (run.path / "self").symlink_to(run.path, target_is_directory=True)
    assert [result.id for result in list_runs(tmp_path, depth=50)] == [run.id]


def test_a_run_is_found_by_path_id_beginning_or_end(tmp_path: Path) -> None:
    first_run, two = make(tmp_path, "alpha"), make(tmp_path, "beta")
    child = two.child("seed-1", "cell", {})
    two.child("seed-10", "cell", {})
    beginning = first_run.id[: first_run.id.index("alpha") + 2]
    for name in (
        first_run.path,
        str(first_run.path) + "/",
        first_run.id,
        beginning,
        first_run.id[-6:],
        first_run.id[-6:-1],
        first_run.id[-6:-2],
    ):
        assert find_run(tmp_path, name).id == first_run.id
    for name in (child.path, child.id, f"{two.id[-6:]}/seed-1"):
        assert find_run(tmp_path, name).id == child.id
    assert find_run(tmp_path, two.id).id == two.id  # its children's ids begin the same, but it is the one meant
    with pytest.raises(UsageError, match="may mean 2 runs"):
        find_run(tmp_path, first_run.id[:9])
    with pytest.raises(UsageError, match="may mean 2 runs"):
        find_run(tmp_path, f"{two.id}/seed")
    too_little = first_run.id[-6:-4]  # of the hash; one in 256 is "20", as every id begins
    with pytest.raises(UsageError, match="may mean" if too_little == "20" else "no run"):
        find_run(tmp_path, too_little)
    with pytest.raises(UsageError, match=f"did you mean '{first_run.id}'"):
        find_run(tmp_path, first_run.id[:-3] + "xyz")
    for nothing in ("", "zzz", "../x", "/", str(tmp_path)):
        with pytest.raises(UsageError, match="no run"):
            find_run(tmp_path, nothing)


def test_two_runs_differ_by_dotted_key(tmp_path: Path) -> None:
    a = make(tmp_path, views=["clean"], weights={"decay": 0.0})
    b = make(tmp_path, noise={"sigma": 0.3, "alpha": 0.5}, draw="row")
    assert diff_runs(a, b) == [
        ("draw", ABSENT, "row"),
        ("noise.sigma", 0.9, 0.3),
        ("views", ["clean"], ["clean", "mirror"]),
        ("weights.decay", 0.0, ABSENT),
    ]
    assert diff_runs(a, a) == []
    settings = {"noise": {"sigma": 0.6}, "student": {"epochs": 3}}
    trained = new_run(tmp_path, "train", "trained", {"config": settings, "seed": 0})
    swept = new_run(tmp_path, "sweep", "swept", {"base": {**settings, "student": {"epochs": 4}}, "seed": 0})
    assert diff_runs(trained, swept) == [("student.epochs", 3, 4)], "settings are compared by name, wherever they lie"


# ------------------------------------------------------------------------------------------------- removing


def test_removing_a_run_spares_what_its_links_lead_to(tmp_path: Path) -> None:
    runs, outside = tmp_path / "runs", tmp_path / "outside"
    outside.mkdir()
    (outside / "dear.txt").write_text("dear")
    run = make(runs)
    run.child("cell", "cell", {})
    (run.path / "link").symlink_to(outside, target_is_directory=True)
    (run.path / "file-link").symlink_to(outside / "dear.txt")
    remove_run(run)
    assert list(runs.iterdir()) == []
    assert (outside / "dear.txt").read_text() == "dear"


def test_what_is_left_of_a_run_that_could_not_be_removed_whole_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make(tmp_path)

    def busy(path: Path) -> None:
        raise OSError(16, "Device or resource busy", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("noisyteacher.runs.shutil.rmtree", busy)
        with pytest.raises(WriteError, match=r"\.removed-"):
            remove_run(run)


def test_a_link_to_a_run_is_not_removed_nor_the_run(tmp_path: Path) -> None:
    run = make(tmp_path / "elsewhere")
    (tmp_path / "runs").mkdir()
    link = tmp_path / "runs" / run.id
    link.symlink_to(run.path, target_is_directory=True)
    assert [result.id for result in list_runs(tmp_path / "runs")] == [run.id]  # it may be looked at through the link
    with pytest.raises(UsageError, match="a link to a folder, not removed"):
        remove_run(Run(link))
    with pytest.raises(UsageError, match="a link to a folder, not removed"):
        remove_run(find_run(tmp_path / "runs", run.id))
    assert run.state == "unfinished"


@pytest.mark.parametrize("content", [None, "{}", "{", "a pipe"])
def test_only_folders_with_a_readable_run_json_are_removed(tmp_path: Path, content: str | None) -> None:
    folder = tmp_path / "20260101T0000Z-photos"
    folder.mkdir()
    (folder / "precious.txt").write_text("precious")
    if content == "a pipe":
        os.mkfifo(folder / "run.json")
    elif content is not None:
        (folder / "run.json").write_text(content)
    for path in (folder, tmp_path / "nowhere"):
        with pytest.raises(UsageError, match="not a run folder, not removed"):
            remove_run(Run(path))
    assert (folder / "precious.txt").read_text() == "precious"


def test_a_run_with_other_damage_is_removed(tmp_path: Path) -> None:
    run = make(tmp_path)
    flip(run.path / "config.json", 50)
    remove_run(run)
    assert not run.path.exists()


def test_a_run_that_is_worked_on_is_not_removed_nor_the_one_around_it(tmp_path: Path) -> None:
    parent = make(tmp_path)
    child, other = parent.child("one", "cell", {}), parent.child("two", "cell", {})
    with child.lock():
        for run in (child, parent, other):
            with pytest.raises(UsageError, match="a process is working on it"):
                remove_run(run)
    assert child.ancestors == [parent.path]
    remove_run(other)
    remove_run(parent)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_was_removed_is_not_made_again_by_a_write(tmp_path: Path) -> None:
    run = make(tmp_path)
    remove_run(Run(run.path))
    for write in (
        lambda: run.write_result({}),
        lambda: run.write_error("x"),
        lambda: run.write_metrics([{"epoch": 1}]),
        lambda: run.child("c", "cell", {}),
    ):
        with pytest.raises(WriteError, match="the folder is gone"):
            write()
    assert list(tmp_path.iterdir()) == []


def test_a_removal_that_is_interrupted_leaves_no_run_to_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(tmp_path)

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        remove_run(run)
    assert list_runs(tmp_path) == []


def test_listing_runs_does_not_wait_for_torch() -> None:
    code = "import sys, noisyteacher.runs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_metrics_that_nest_without_end_are_refused(tmp_path: Path) -> None:
    run = new_run(tmp_path, "train", "a", {})
    (run.path / "metrics.jsonl").write_text('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}\n")
    with pytest.raises(FileFormatError, match=r"metrics\.jsonl: line 1 is not a JSON object: nested too deep"):
        run.metrics()
