"""The student that a compression hands over: its folder, and that everything which sums up a run speaks of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from torch import nn

import noisyteacher as nt
from helpers import Call
from noisyteacher.cli.compress import _report
from noisyteacher.cli.options import Request
from noisyteacher.errors import UsageError
from noisyteacher.export import FORMATS
from noisyteacher.export.card import predict_script
from noisyteacher.models import model_record
from noisyteacher.pipeline import Result
from noisyteacher.pipeline.compression_result import REPORT, loss_warnings
from noisyteacher.pipeline.handover import provenance_of
from noisyteacher.pipeline.pretrained import data_settings_of, load_teacher, seen_before, trained_on
from noisyteacher.report import build_report
from noisyteacher.report.load import read_study
from noisyteacher.report.page import page
from noisyteacher.runs import Run

LIMIT = 40


@pytest.fixture(scope="module")
def data() -> nt.Splits:
    return nt.load_data("mnist-5k", limit=LIMIT)


@pytest.fixture(scope="module")
def result(data: nt.Splits, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """Two seeds of three conditions; a format that fails among those to be written."""

    def broken(*arguments: object) -> None:
        raise RuntimeError("an exporter's own error")

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FORMATS, "onnx", replace(FORMATS["onnx"], write=broken, needs=()))
        return nt.compress(
            "mlp800", "lenet", data, noise=nt.Noise(sigma=0.5, alpha=0.5), seeds=2, epochs=1,
            teacher_training={"epochs": 1}, export=["onnx", "hub"], output_dir=tmp_path_factory.mktemp("runs"),
        )  # fmt: skip


@pytest.fixture(scope="module")
def html(result: Result) -> str:
    return page([read_study(result.path)])


def best_run(result: Result) -> str:
    assert result.best is not None
    return str(result.best["run"])


def test_the_folder_holds_the_student_that_validation_prefers(result: Result, data: nt.Splits) -> None:
    folder = result.best_student
    assert folder == result.path / "best"
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "hub",
        "hub.export.json",
        "model.safetensors",
    ]
    ours, best = (nt.load_model(path) for path in (folder, result.path / best_run(result) / "weights.safetensors"))
    assert all(torch.equal(value, best.state_dict()[name]) for name, value in ours.state_dict().items())
    means = [row.scores["val"]["error"].mean for row in result.conditions]
    assert result.best is not None
    assert result.best["mean_val_error_%"] == pytest.approx(min(means))
    assert len(set(means)) > 1
    record = model_record(folder / "model.safetensors")
    assert (record["run"], record["data"]["name"]) == (best_run(result), "mnist-5k")
    row, seed = result.handed_over
    assert nt.evaluate(ours, data.test).error == row.errors[seed]  # type: ignore[arg-type]
    assert (row.name, row.runs[seed]) == (result.best["condition"], best_run(result))
    card = (folder / "README.md").read_text()
    assert f"Run: {result.path.name}/{best_run(result)}." in card
    assert 'nt.load_model("FOLDER")' in card
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert code is not None
    exec(code[1].replace('"FOLDER"', repr(str(folder))), {})


def test_a_format_that_fails_costs_no_other(result: Result, html: str) -> None:
    assert [file.name for file in result.files] == ["hub"]
    assert result.failed == {"onnx": "onnx: it cannot be written (RuntimeError: an exporter's own error)"}
    assert not result.holds
    assert Run.open(result.path).state == "done"
    text = str(result)
    assert "FAILED" in text
    assert "WARNING: onnx was not written: onnx: it cannot be written (RuntimeError" in text
    assert "failed" in html


def test_a_compression_whose_files_all_failed_has_a_report(result: Result) -> None:
    with pytest.raises(typer.Exit):
        _report(replace(result, best={**(result.best or {}), "files": []}), Request())
    assert "an exporter&#39;s own error" in (result.path / REPORT).read_text(encoding="utf-8")


def test_the_last_lines(result: Result) -> None:
    lines = str(result).splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("Verdict: "))
    row, seed = result.handed_over
    assert re.fullmatch(
        rf"Verdict: 1\.8x MORE MACs, 3\.0x smaller, [\d.]+x (faster|SLOWER); test error {row.errors[seed]:.2f} % "
        rf"against the teacher's {result.rows[0].errors[0]:.2f} % \(n = {LIMIT}\)\.",
        lines[start].replace("as fast", "1.0x faster"),
    )
    assert lines[start + 1] == f"Noise: {result.verdict}."
    assert "WARNING: the student lenet is LARGER than its teacher: 1.80 times its MACs." in lines[start:]
    folder = result.path / "best"
    rest = "\n".join(lines[start:])
    order = [
        "WARNING",
        f"{folder / 'model.safetensors'} (",
        f"{folder / 'hub'} (",
        f"{folder / 'README.md'} (",
        "Next:",
    ]
    positions = [rest.index(part) for part in order]
    assert positions == sorted(positions)
    assert lines[-1] == f"  nt.load_model({str(folder)!r})  # in Python"
    summary = json.loads(json.dumps(result.summary()))
    assert summary["compression"] in lines[start]
    assert summary["gains"]["bytes"] == pytest.approx(2.96, abs=0.01)
    assert summary["noise"] == result.verdict
    assert summary["paths"]["best"] == str(folder)
    assert [Path(file["path"]).name for file in summary["paths"]["files"]] == ["hub"]


def test_the_table_marks_the_row_that_is_handed_over(result: Result) -> None:
    row, seed = result.handed_over
    marked = [cells[0] for cells in result.table().rows if "handed over" in cells[0]]
    assert marked == [f"{row.title}\nhanded over: seed {seed}, {row.errors[seed]:.2f} %"]


def test_the_report_speaks_of_the_student_that_is_handed_over(result: Result, html: str) -> None:
    study = read_study(result.path)
    row, seed = result.handed_over
    handed = study.handed_over
    assert handed is not None
    assert (handed.title, handed.runs) == (f"{row.title}, seed {seed}", (best_run(result),))
    assert handed.errors == (row.errors[seed],)
    assert study.details[handed.name]["test"].seeds == 1
    assert study.verdict_condition(study.verdicts[0]) is handed
    first = html[html.index('class="card"') : html.index("</article>")]
    assert f"Handed over: {row.title}, seed {seed}" in first
    assert f"{row.errors[seed]:.2f} %" in first
    assert f"Confusion of {row.title}, seed {seed} on test" in html
    assert "Warning: the student lenet is LARGER than its teacher" in html
    text = build_report([result.path], "md")
    assert f"handed over: seed {seed}, {row.errors[seed]:.2f} %" in text
    report = json.loads(build_report([result.path], "json"))["runs"][0]
    assert report["handed_over"]["runs"] == [best_run(result)]


def test_the_folder_and_the_compression_mean_that_student(result: Result, data: nt.Splits) -> None:
    folder = result.path / "best"
    for path in (folder, result.path):
        model, run = load_teacher(path, data)
        assert run is not None
        assert run.path.name == best_run(result)
        assert provenance_of(path).run == f"{result.path.name}/{best_run(result)}"
        assert torch.equal(next(model.parameters()), next(nt.load_model(folder).parameters()))
    assert data_settings_of(folder) is None  # a call from Python: no settings name its data


# ------------------------------------------------------------------------------------------------- the command line


@pytest.mark.usefixtures("unrendered")
def test_the_command_hands_over_files_that_the_next_commands_take(call: Call, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra export")
    pytest.importorskip("onnxscript", reason="needs the extra export")
    words = ("--data", "mnist-5k", "--set", f"data.limit={LIMIT}", "--teacher", "pretrained:lenet-mnist", "--student",
             "mlp800", "--sigma", "0.5", "--epochs", "1", "--seeds", "2", "--set", "run.baselines=false", "--export",
             "onnx", "-q")  # fmt: skip
    code, out, err = call("compress", *words)
    assert code == 0, err
    out_compress = out
    run = Path(next(line for line in out.splitlines() if line.startswith("Run folder: ")).split(": ", 1)[1])
    result = Result.read(run, Run.open(run).result() or {})
    row, seed = result.handed_over
    listed = json.loads(call("runs", "ls", "--json")[1])
    assert [row["error_%"] for row in listed] == [f"{row.errors[seed]:.2f}"]
    assert f"handed over: seed {seed}" in call("runs", "show", str(run))[1]
    assert f"  noisyteacher evaluate {run}/best" in out.splitlines()
    scores = json.loads(call("evaluate", f"{run}/best", "--json")[1])
    assert scores["error"]["value"] == row.errors[seed]
    assert call("measure", f"{run}/best", "--runs", "1")[0] == 0
    code, out, err = call("export", f"{run}/best", "--format", "hub", "--runs", "1", "-q")
    assert code == 0, err
    assert f"exports/{run.name}" in out
    assert f"  {run}/best/bench.py (times the files without noisyteacher)" in out_compress.splitlines()
    script = run / "best" / "predict.py"
    images = nt.load_data("mnist-5k", limit=LIMIT).val.images_at(torch.arange(3))
    np.save(tmp_path / "three.npy", images.permute(0, 2, 3, 1).numpy())
    answer = subprocess.run([sys.executable, script, tmp_path / "three.npy"], capture_output=True, text=True)
    odds = nt.load_model(run / "best")(images).detach().softmax(1)
    assert answer.stderr == ""
    assert answer.stdout.splitlines() == [f"{int(row.argmax())} {float(row.max()):.4f}" for row in odds]
    overlap = "the teacher was trained on mnist, which contains validation and test images of mnist-5k"
    assert f"WARNING: {overlap}" in str(result)
    assert overlap in build_report([run], "md")
    assert f"**Note:** T{overlap[1:]}" in (run / "best" / "README.md").read_text()
    assert (
        overlap.replace("the teacher", "pretrained:lenet-mnist")
        in call("evaluate", "pretrained:lenet-mnist", "--data", "mnist-5k", "--set", f"data.limit={LIMIT}")[2]
    )


def test_the_script_has_class_names_as_literals_and_the_image_shape() -> None:
    text = predict_script(['a"b', "\u202e]; import os"], (3, 8, 6))
    names: dict[str, Any] = {}
    exec("\n".join(line for line in text.splitlines() if line.startswith(("CLASSES", "SHAPE"))), names)
    assert (names["CLASSES"], names["SHAPE"]) == (['a"b', "\u202e]; import os"], (8, 6, 3))
    assert text.isascii()
    compile(text, "predict.py", "exec")


@pytest.mark.parametrize("fit", ["crop", "squash"])
@pytest.mark.parametrize(("size", "deep"), [((31, 17), False), ((16, 40), False), ((16, 40), True)])
def test_the_script_brings_a_picture_to_the_size_as_in_training(
    fit: str, size: tuple[int, int], deep: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 65536, size, np.uint16) if deep else rng.integers(0, 256, (*size, 3), np.uint8)
    for label in ("a", "b"):
        (tmp_path / "set" / "train" / label).mkdir(parents=True)
        for number in range(2):
            Image.fromarray(pixels).save(tmp_path / "set" / "train" / label / f"{number}.png")
    expected = nt.load_data(tmp_path / "set", size=(8, 6), fit=fit).train.images_at(torch.tensor([0]))
    picture = str(tmp_path / "set" / "train" / "a" / "0.png")
    (seen,) = run_script(predict_script(["a", "b"], (3, 8, 6), fit), tmp_path, monkeypatch, picture)
    assert np.array_equal(seen, expected.numpy())


def run_script(script: str, folder: Path, patch: pytest.MonkeyPatch, *files: str, model: str = "model.onnx") -> Any:
    """The arrays of pixels that the script brings its files to, with a runtime to which all classes are alike."""
    seen: list[Any] = []

    class Session:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def run(self, _: None, inputs: dict[str, Any]) -> list[Any]:
            seen.append(inputs["images"])
            return [np.zeros((len(inputs["images"]), 2), np.float32)]

    (folder / model).touch()
    patch.setitem(sys.modules, "onnxruntime", SimpleNamespace(InferenceSession=Session))
    patch.setattr(sys, "argv", ["predict.py", *files])
    exec(compile(script, "predict.py", "exec"), {"__file__": str(folder / "predict.py")})
    return seen


def test_the_script_takes_several_files_and_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script, files = predict_script(["a", "b"], (1, 4, 4)), [str(tmp_path / name) for name in ("x.npy", "y.png")]
    np.save(files[0], np.zeros((2, 4, 4, 1), np.uint8))
    Image.new("L", (9, 9), 200).save(files[1])
    run_script(script, tmp_path, monkeypatch, files[1])
    assert capsys.readouterr().out.splitlines() == ["a 0.5000"]
    shapes = [pixels.shape for pixels in run_script(script, tmp_path, monkeypatch, *files)]
    assert shapes == [(2, 1, 4, 4), (1, 1, 4, 4)]
    assert capsys.readouterr().out.splitlines() == [f"{name}: a 0.5000" for name in (files[0], *files)]


@pytest.mark.parametrize(
    ("files", "model", "message"),
    [
        ([], "model.onnx", r"usage: python predict\.py IMAGE \[IMAGE \.\.\.\]"),
        (["gone.png"], "model.onnx", r"gone\.png: cannot be read \(.*No such file"),
        (["cut.png"], "model.onnx", r"cut\.png: cannot be read \("),
        (["gone.png"], "model.pt2", r"neither model\.onnx nor model-int8\.onnx here"),
    ],
)
def test_the_script_says_what_it_lacks(
    files: list[str], model: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = tmp_path / "cut.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(picture)
    picture.write_bytes(picture.read_bytes()[:1000])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message):
        run_script(predict_script(["a", "b"], (3, 8, 6)), tmp_path, monkeypatch, *files, model=model)


# ---------------------------------------------------------------------------------- costs that are not known, overlaps


def scripted() -> torch.jit.ScriptModule:
    torch.manual_seed(0)
    module = torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)))
    assert isinstance(module, torch.jit.ScriptModule)
    return module


def test_a_teacher_that_cannot_be_measured_has_unknown_costs(data: nt.Splits, tmp_path: Path) -> None:
    result = nt.compress(scripted(), "mlp800", data, epochs=1, baselines=False, checks=False,
                         output_dir=tmp_path)  # fmt: skip
    assert result.rows[0].costs is None
    assert result.summary()["gains"] == dict.fromkeys(("macs", "parameters", "bytes", "latency_ms"))
    assert "costs unknown; test error" in str(result)
    assert any("the costs of the teacher are unknown" in warning for warning in result.warnings)
    assert "Costs unknown; test error" in build_report([result.path], "md")


def test_a_student_that_cannot_be_copied_is_refused_before_anything_is_trained(data: nt.Splits, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the student has a torch\.jit module"):
        nt.compress("lenet", scripted(), data, output_dir=tmp_path)
    with pytest.raises(UsageError, match=r"hub: .* cannot be built again from its name"):
        nt.compress("lenet", nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), data, export=["hub"], output_dir=tmp_path)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 10))
    for formats in (["hub"], "hub"):
        with pytest.raises(UsageError, match=r"hub: 'shrink:0\.5' .* build it, or what it was narrowed from"):
            nt.compress(teacher, "shrink:0.5", data, export=formats, output_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_teacher_that_has_seen_the_images_is_reported(data: nt.Splits, result: Result) -> None:
    mnist = trained_on("pretrained:lenet-mnist")
    assert mnist is not None
    assert mnist["name"] == "mnist"
    overlap = seen_before(mnist, data)
    assert overlap is not None
    assert "mnist, which contains validation and test images of mnist-5k" in overlap
    source = trained_on(result.path / "teacher")
    assert source == {"name": "mnist-5k", "train": data.train.fingerprint}
    assert seen_before(source, data) is None
    assert trained_on(result.path / "best") == source
    start = nt.compress(
        "lenet", "pretrained:lenet-mnist", data, epochs=1, baselines=False, output_dir=result.path.parent
    )
    assert any(warning.startswith("the start of the student was trained on mnist, ") for warning in start.warnings)
    swapped = replace(data, val=replace(data.train, role="val", images=data.train.images.clone()))
    assert "a training set" not in str(seen_before(source, swapped))
    assert "contains validation images of mnist-5k" in str(seen_before({**source, "name": None}, swapped))
    assert seen_before(None, data) is None
    assert seen_before({"name": "mnist-5k", "train": None}, replace(data, name="mnist")) is not None


def test_warnings_of_a_lost_accuracy_and_of_equal_costs(result: Result) -> None:
    assert result.best is not None
    over = replace(result, best={**result.best, "drop": 3.0, "max_drop": 1.0, "holds": False})
    assert "validation lost 3.00 points against the teacher, 1 are allowed" in loss_warnings(over)
    rows = tuple(replace(row, costs=result.rows[0].costs) for row in result.conditions)
    equal = replace(result, conditions=rows)
    assert equal.summary()["compression"].startswith("as many MACs, as large, as fast; ")


@pytest.mark.parametrize(("mode", "value"), [("F", 0.5), ("I", 70000), ("I", 4095)])
def test_the_script_refuses_pictures_whose_values_training_refuses(
    mode: str, value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new(mode, (8, 8), value).save(tmp_path / "picture.tiff")
    with pytest.raises(SystemExit, match="expected grey of 8 bits, or of 16 up to 65535"):
        run_script(predict_script(["a", "b"], (1, 8, 8)), tmp_path, monkeypatch, str(tmp_path / "picture.tiff"))
