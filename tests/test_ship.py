"""A model handed over: the export command, the files it leaves, and a model card that tells no more than is known."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import noisyteacher as nt
from helpers import Call
from noisyteacher.data import Split, Splits
from noisyteacher.data.builtin import CIFAR_CLASSES
from noisyteacher.export import FORMATS
from noisyteacher.export.card import card
from noisyteacher.io.files import read_json, write_json
from noisyteacher.pipeline.handover import provenance_of, ship
from noisyteacher.runs import Run

SMALL = ("--set", "data.limit=100", "--batch-size", "20")
yaml = pytest.importorskip("yaml", reason="reads the front matter of model cards")


def front_matter(text: str) -> dict[str, Any]:
    assert text.startswith("---\n")
    matter = yaml.safe_load(text[4 : text.index("\n---\n", 4)])
    assert isinstance(matter, dict)
    return matter


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small compression; its folder."""
    data = nt.load_data("mnist-5k", limit=100)
    result = nt.compress(
        "lenet", "mlp800", data, noise=nt.Noise(sigma=0.5, alpha=0.25), epochs=1, baselines=False,
        teacher_training={"epochs": 1}, output_dir=tmp_path_factory.mktemp("runs"),
    )  # fmt: skip
    return result.path


def test_ship_leaves_the_files_and_a_card_from_the_run(compressed: Path, tmp_path: Path) -> None:
    run = Run.open(compressed / "noisy-seed0")
    data, model = nt.load_data("mnist-5k", limit=100), nt.load_model(run.path / "weights.safetensors")
    seen: list[tuple[str, int, int, str]] = []
    files = ship(
        model,
        data,
        tmp_path / "out",
        ["pt2", "hub"],
        provenance_of(run),
        lambda *step: seen.append(step),
        licence="MIT",
    )
    assert [file.path.name for file in files] == ["model.pt2", "hub"]
    assert {str(file.relative_to(tmp_path / "out")) for file in tmp_path.rglob("*") if file.is_file()} == {
        "model.pt2", "model.pt2.export.json", "hub.export.json", "bench.py",
        "hub/README.md", "hub/config.json", "hub/model.safetensors",
    }  # fmt: skip
    assert [step[1:3] for step in seen] == [(number, 5) for number in range(6)]
    text = (tmp_path / "out" / "hub" / "README.md").read_text()
    head = front_matter(text)
    assert (head["license"], head["library_name"], head["datasets"]) == ("MIT", "noisyteacher", ["ylecun/mnist"])
    assert "knowledge-distillation" in head["tags"]
    result = run.result()
    assert result is not None
    for role in ("val", "test"):
        scores = result["scores"][role]
        row = next(line for line in text.splitlines() if line.startswith(f"| {role} |"))
        assert f"| {scores['error']['n']:,} | {scores['error']['value']:.2f} |" in row
        assert f" {scores['agreement']['value']:.2f} |" in row
    assert f"Distilled from lenet (teacher with weights {run.info['parents']['teacher'][:12]}" in text
    assert "sigma 0.5 on the teacher's logits, alpha 0.25, one draw a batch" in text
    assert "1,276,810 parameters" in text
    assert "No licence was stated" not in text


def test_a_card_does_not_say_where_the_teacher_was(compressed: Path, tmp_path: Path) -> None:
    folder = tmp_path / compressed.name
    shutil.copytree(compressed, folder)
    config = read_json(folder / "config.json", "run-config", 1)["config"]
    config["teacher"]["name"] = str(tmp_path / "private" / "big-teacher")
    write_json(folder / "config.json", "run-config", 1, {"config": config})
    words = provenance_of(Run.open(folder / "noisy-seed0")).teacher
    assert words.startswith("big-teacher (teacher with weights ")


def test_the_card_s_lines_run(compressed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, model = nt.load_data("mnist-5k", limit=100), nt.load_model(compressed / "teacher" / "weights.safetensors")
    ship(model, data, tmp_path, ["hub"])
    text = (tmp_path / "hub" / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code is not None
    assert len(code[1].splitlines()) <= 6
    monkeypatch.chdir(tmp_path)
    exec(code[1].replace('"FOLDER"', '"hub"'), {})
    assert "No licence was stated" in text
    assert front_matter(text)["license"] == "unknown"
    assert "How it was trained is not recorded" in text


def test_a_data_set_of_the_same_name_is_not_the_one_on_the_hub() -> None:
    def datasets(name: str, names: Sequence[str], preprocess: str) -> list[str] | None:
        images, rows = torch.zeros(2, 20, 1, 28, 28, dtype=torch.uint8), torch.arange(20)
        known: Any = names  # a list does as well
        train, val = (Split(images[i], rows % 10, rows, r, name, known) for i, r in enumerate(("train", "val")))
        data = Splits(name, train, val, preprocess=preprocess)
        return front_matter(card(nt.build_model("mlp128", data), data, [], None)).get("datasets")

    assert datasets("cifar10", CIFAR_CLASSES, "pixel-mean") == ["uoft-cs/cifar10"]
    assert datasets("cifar10", list(CIFAR_CLASSES), "pixel-mean") == ["uoft-cs/cifar10"]
    assert datasets("cifar10", CIFAR_CLASSES, "standardize") is None
    assert datasets("mnist", tuple("abcdefghij"), "scale") is None


def test_names_cannot_write_into_the_card(tmp_path: Path) -> None:
    """Front matter and Markdown keep their shape whatever a data set or a class is called."""
    images = torch.randint(0, 256, (40, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    names = ("a|b", "---\nlicense: mit\n---", "<script>alert(1)</script>", "[x](http://e.vil)")
    name = 'x"\n---\nlicense: "mit'

    def part(first: int, last: int, role: str) -> Split:
        return Split(images, torch.arange(first, last) % 4, torch.arange(first, last), role, name, names)

    data = Splits(name, part(0, 20, "train"), part(20, 40, "val"), note="# a heading\n| a | row |")
    files = ship(nt.build_model("mlp800", data), data, tmp_path, ["hub"], licence='mit"\nevil: yes')
    text = (tmp_path / "hub" / "README.md").read_text()
    head = front_matter(text)
    assert set(head) == {"license", "library_name", "pipeline_tag", "tags", "metrics"}
    assert head["license"] == 'mit"\nevil: yes'
    assert text.count("\n---\n") == 1
    assert "<script>" not in text
    assert not re.search(r"(?<!\\)\[x", text)
    assert len([line for line in text.splitlines() if line.startswith("# ")]) == 1
    assert json.loads((tmp_path / "hub" / "config.json").read_text())["id2label"]["0"] == "a|b"
    assert files[0].holds


def test_what_a_shipped_teacher_tells() -> None:
    story = provenance_of("pretrained:lenet-mnist")
    card = nt.pretrained()["lenet-mnist"]
    assert (story.scores, story.licence, story.teacher) == (card["scores"], "apache-2.0", "")
    assert story.settings["epochs"] == 20


def test_a_network_of_one_s_own_is_shipped_too(tmp_path: Path) -> None:
    data = nt.load_data("mnist-5k", limit=100)
    (file,) = ship(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), data, tmp_path, ["pt2"])
    assert file.holds
    assert file.n == len(data.val)


# ------------------------------------------------------------------------------------------------ the command line


def test_export_on_the_command_line(call: Call, tmp_path: Path) -> None:
    run = json.loads(call("train", "--model", "mlp800", "--epochs", "1", *SMALL, "--json", "-q")[1])["run"]
    code, out, err = call("export", run, "--format", "pt2,hub", "--runs", "2")
    assert code == 0, err
    folder = tmp_path / "exports" / Path(run).name
    assert (folder / "model.pt2").exists()
    assert f"Folder: exports/{Path(run).name}" in out
    assert "mnist-5k, val, n = 100 images" in out
    assert "Verdict: " in out
    assert "export: 100 %, in " in err
    code, out, err = call("evaluate", str(folder / "hub"), "--set", "data.limit=100", "--data", "mnist-5k", "--json")
    assert code == 0, err
    scores = json.loads((Path(run) / "result.json").read_text())["result"]["scores"]
    assert json.loads(out)["error"] == scores["test"]["error"]
    code, out, err = call("export", run, "--format", "pt2", "--output-dir", "there", "--runs", "1", "--json", "-q")
    assert (code, err) == (0, "")
    summary = json.loads(out)
    assert (summary["folder"], summary["files"][0]["path"]) == ("there", "there/model.pt2")
    assert summary["files"][0]["accuracy"]["n"] == summary["files"][0]["n"] == 100
    weights = f"{run}/weights.safetensors"
    assert call("export", weights, "--format", "pt2", "--runs", "1", "-q")[0] == 0
    assert {path.name for path in (tmp_path / "exports").iterdir()} == {Path(run).name}


def test_a_card_has_no_scores_of_other_images_or_of_other_logits(call: Call) -> None:
    run = json.loads(call("train", "--model", "mlp800", "--epochs", "1", *SMALL, "--json", "-q")[1])["run"]
    words, card = ("--format", "hub", "--runs", "1", "-q"), Path("out/hub/README.md")
    for more, scored, sentence in (
        ((), True, ""),
        (("--set", "data.limit=60"), False, "**Note:** This model was not trained on these data: its val split has"),
        (("--calibrate",), False, "**Note:** The logits are divided by "),
    ):
        code, _, err = call("export", run, *words, *more, "--output-dir", "out")
        assert code == 0, err
        text = card.read_text()
        assert sentence in text
        assert ("| val | 100 |" in text, "\nAccuracy " in text) == (scored, not scored)
        assert run not in text


@pytest.mark.parametrize(("name", "scored"), [("cifar10", True), ("photos", False)])
def test_a_card_says_which_images_a_pretrained_model_saw(call: Call, name: str, scored: bool) -> None:
    images = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    np.savez(f"{name}.npz", x=images, y=np.arange(60) % 10, classes=np.array(CIFAR_CLASSES))
    words = ("--data", f"{name}.npz", "--format", "hub", "--runs", "1", "-q", "--json")
    code, out, err = call("export", "pretrained:nin-cifar10", *words)
    assert code == 0, err
    text = Path("exports/nin-cifar10/hub/README.md").read_text()
    assert "**Note:** It was trained on CIFAR-10 (JPEG q75): every image, test images too, went through JPEG" in text
    assert ("| test | 10,000 | 11.67 |" in text) == scored
    other = "this model was trained on cifar10, and nothing says whether photos has the same images"
    assert (other in json.loads(out)["caveats"]) == (not scored)


def test_an_onnx_file_is_shipped_without_scores(call: Call) -> None:
    pytest.importorskip("onnxscript", reason="needs the extra export")
    pytest.importorskip("onnxruntime")
    data = nt.load_data("mnist-5k", limit=100)
    nt.export(nt.load_model("pretrained:lenet-mnist"), "teacher.onnx", data=data, runs=1)
    words = ("--data", "mnist-5k", "--set", "data.limit=100", "--format", "hub", "--runs", "1", "-q")
    code, _, err = call("export", "teacher.onnx", *words)
    assert code == 0, err
    text = Path("exports/teacher/hub/README.md").read_text()
    assert "How it was trained is not recorded in its files" in text
    assert "\nAccuracy " in text


def test_the_best_weights_of_two_runs_are_exported_to_two_folders(call: Call, compressed: Path) -> None:
    weights = str(compressed / "best" / "model.safetensors")
    words = ("--data", "mnist-5k", "--set", "data.limit=100", "--format", "pt2", "--runs", "1", "-q")
    code, _, err = call("export", weights, *words)
    assert code == 0, err
    assert Path("exports", compressed.name, "model.pt2").exists()


def test_an_export_over_its_tolerance_exits_with_3(call: Call) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra export")
    words = ("--data", "mnist-5k", "--set", "data.limit=100", "--format", "onnx", "--runs", "1", "-q")
    code, out, _ = call("export", "pretrained:lenet-mnist", *words, "--max-difference", "0")
    assert code == 3
    assert "NO" in out
    assert "onnx does not hold: largest logit difference" in out
    assert Path("exports/lenet-mnist/model.onnx").exists()


def test_one_format_of_several_that_fails_is_a_line_and_exit_code_3(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("an exporter's own error")

    monkeypatch.setitem(FORMATS, "onnx", replace(FORMATS["onnx"], write=broken, needs=()))
    words = ("pretrained:lenet-mnist", "--data", "mnist-5k", "--set", "data.limit=100", "--runs", "1", "-q")
    code, out, err = call("export", *words, "--format", "onnx,hub")
    assert code == 3, err
    assert "FAILED" in out
    assert "onnx was not written: onnx: it cannot be written (RuntimeError: an exporter's own error)." in out
    assert Path("exports/lenet-mnist/hub/model.safetensors").exists()
    code, out, _ = call("export", *words, "--format", "onnx,hub", "--json")
    assert (code, list(json.loads(out)["failed"])) == (3, ["onnx"])
    code, out, err = call("export", *words, "--format", "onnx")
    assert (code, out) == (1, "")
    assert "onnx: it cannot be written" in err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("pretrained:lenet-mnist", "--format", "onxx"), 2, "did you mean 'onnx'?"),
        (("pretrained:lenet-mnist", "--format", "pt2,pt2"), 2, "named twice"),
        (("pretrained:lenet-mnist", "--format", ""), 2, "unknown format ''"),
        (("pretrained:lenet-mnist", "--format", "pt2"), 2, "name the data by --data"),
        (("pretrained:lenet-mnist", "--max-drop", "-1"), 2, "max-drop"),
        (("pretrained:lenet-mnist", "--format", "pt2", "--max-drop", "1"), 2, "--max-drop has no effect on pt2"),
        (("pretrained:lenet-mnist", "--format", "pt2", "--licence", "mit"), 2, "--licence has no effect on pt2: leave"),
        (("pretrained:lenet-mnist", "--format", "hub", "--max-difference", "1"), 2, "--max-difference has no effect"),
        (("none.safetensors", "--format", "pt2"), 2, "no run"),
        (("pretrained:lenet-mnist", "--format", "pt2", "--data", "none.npz"), 1, "no such file"),
    ],
)
def test_wrong_questions_to_export(call: Call, tmp_path: Path, words: tuple[str, ...], code: int, message: str) -> None:
    exit_code, out, err = call("export", *words)
    assert message in " ".join(err.split())
    assert (exit_code, out) == (code, "")
    assert list(tmp_path.iterdir()) == []
