"""The command line as a user meets it: its surface, exit codes, streams, every step from train to verify."""

from __future__ import annotations

import importlib
import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer import BadParameter

import noisyteacher as nt
from helpers import Call, Fork, run_command, wait_until
from noisyteacher import cli
from noisyteacher import config as config_module
from noisyteacher.cli.options import Request
from noisyteacher.config import NoiseSettings
from noisyteacher.errors import ConfigError, UsageError
from noisyteacher.runs import list_runs, remove_run

pytestmark = pytest.mark.usefixtures("unrendered")

COMMON = {"--help"}
COMMANDS = {
    "demo", "compress", "train", "extract", "distil", "evaluate", "predict", "measure", "bench", "export", "sweep",
    "paper",
    "report",
    "runs ls", "runs show", "runs diff", "runs rm",
    "config init", "config check", "config explain", "data ls", "data check", "data pack",
    "logits show", "logits verify",
}  # fmt: skip
COMPRESS = {
    "--data", "--data-root", "--data-dir", "--size", "--fit", "--teacher", "--student", "--noise", "--sigma", "--alpha",
    "--draw",
    "--loss", "--teacher-epochs", "--teacher-weights", "--student-weights",
    "--student-head", "--jobs", "-j", "--seeds", "--target-macs", "--target-bytes", "--target-parameters",
    "--target-latency", "--latency-record", "--candidates", "--qat",
    "--max-drop", "--search", "--minutes", "--export", "--baselines", "--output-dir", "--device", "--threads", "--set",
    "--allow-import", "--resume", "--json", "--quiet", "-q",
}  # fmt: skip
TRAINING = {
    "--epochs", "--batch-size", "--optimizer", "--lr", "--momentum", "--weight-decay", "--schedule", "--precision",
    "--preset", "--patience", "--views", "--pretrained", "--freeze-epochs", "--body-rate",
}  # fmt: skip
SMALL = ("--set", "data.limit=100", "--batch-size", "20")
NAMED = ("--student", "mlp800")
LENET = "pretrained:lenet-mnist"


@cache
def commands() -> dict[str, Any]:
    """Every command by its full name."""
    by_name: dict[str, Any] = {}
    for name in cli.COMMANDS:
        command = cli.build_command(name)
        inner = getattr(command, "commands", None)
        by_name |= {f"{name} {key}": value for key, value in inner.items()} if inner else {name: command}
    return by_name


def options_of(command: str) -> set[str]:
    """Its options, as they are typed."""
    return {option for parameter in commands()[command].params for option in parameter.opts if option.startswith("-")}


def test_the_surface_is_frozen() -> None:
    """A command or option that is added or removed is a decision, recorded here."""
    assert set(commands()) == COMMANDS
    assert options_of("compress") - COMMON == COMPRESS | TRAINING
    for name in ("compress", "distil", "sweep", "train"):
        assert options_of(name) >= TRAINING, name
    assert options_of("train") - TRAINING == {
        "--model", "--data", "--data-root", "--data-dir", "--size", "--fit",
        "--output-dir", "--device", "--threads", "--profile", "--set",
        "--seed", "--resume", "--json", "--quiet", "-q", "--weights", "--head",
    }  # fmt: skip


def test_a_training_flag_reaches_the_settings_of_every_command(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = {"epochs": 3, "batch_size": 7, "lr": 0.5, "optimizer": "sgd", "momentum": 0.1, "weight_decay": 0.2,
             "schedule": "step", "precision": "fp32", "preset": "modern", "patience": 2,
             "freeze_epochs": 1.5, "body_rate": 0.1}  # fmt: skip
    words = [word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    seen: list[dict[str, Any]] = []

    def build_config(settings: dict[str, Any], **options: Any) -> Any:
        seen.append(settings)
        raise UsageError("stop")

    spec = importlib.import_module("noisyteacher.sweep.spec")  # before the patch, which it would import
    for module in (config_module, spec):
        monkeypatch.setattr(module, "build_config", build_config)
    for command in (["compress"], ["distil", "store"], ["sweep", "--grid", "run.seeds=1"], ["train"]):
        monkeypatch.setattr(sys, "argv", ["noisyteacher", *command, *words, "--views", "clean,mirror", "--pretrained"])
        with pytest.raises(SystemExit):
            cli.main()
        part = "teacher" if command == ["train"] else "student"
        assert {name: seen[-1][part][name] for name in flags} == flags
        assert seen[-1][part]["views"] == ["clean", "mirror"]
        assert seen[-1][part]["options"] == {"pretrained": True}
    assert [settings.get("teacher", {}).get("preset") for settings in seen] == ["modern", None, "modern", "modern"]


def test_noise_is_requested_by_one_flag_or_named_by_another() -> None:
    def noise(auto: bool | None, **flags: Any) -> Any:
        named = {f"noise.{name}": value for name, value in flags.items()}
        return Request(named, auto_noise=auto).settings().get("noise")

    assert noise(True) == noise(False, sigma="auto") == {"sigma": "auto"}
    assert noise(True, sigma="auto", alpha=0.5, draw="row") == {"sigma": "auto", "alpha": 0.5, "draw": "row"}
    assert noise(False, sigma=[0.01, 1]) == {"sigma": [0.01, 1]}
    assert noise(False) is None
    with pytest.raises(BadParameter, match=r"--noise chooses sigma on validation and --sigma 0\.3 names it"):
        noise(True, sigma=0.3)


def test_sigma_0_turns_off_the_noise_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "noise.toml"
    file.write_text('[noise]\nsigma = 0.5\nalpha = 0.5\ndraw = "row"\n')
    request = Request({"noise.sigma": 0}, file, auto_noise=False)
    assert config_module.build_config(request.settings()).noise == NoiseSettings()
    assert replace(request, auto_noise=None).settings()["noise"] == {"sigma": 0, "alpha": 0.5, "draw": "row"}  # sweep
    with pytest.raises(ConfigError, match=r"noise\.alpha, noise\.draw: no effect without noise"):
        config_module.build_config(replace(request, flags=request.flags | {"noise.alpha": 0.5}).settings())


def test_every_help_has_an_example() -> None:
    for name, command in commands().items():
        assert f"Example: noisyteacher {name}" in " ".join((command.help or "").split()), name


def test_help_and_import_do_not_wait_for_torch() -> None:
    code = (
        "import sys; import noisyteacher.cli as c; sys.argv = ['noisyteacher', 'compress', '--help']\n"
        "try: c.main()\nexcept SystemExit: pass\n"
        "sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'scipy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_from_train_to_verify(call: Call, tmp_path: Path) -> None:
    code, out, err = call("train", "--model", "lenet", "--epochs", "2", *SMALL)
    assert code == 0, err
    assert "Run folder: runs/" in out
    assert "epoch 1/2" in err
    assert "epoch" not in out
    (teacher,) = [run for run in list_runs("runs") if "train-lenet" in run.id]
    code, out, err = call("extract", teacher.id, "--views", "clean,mirror", "--json", "-q")
    assert (code, err) == (0, "")
    store = json.loads(out)
    assert (store["views"], store["rows"], store["classes"]) == (2, 100, 10)
    assert (store["data"]["name"], store["model"]) == ("mnist-5k", str(teacher.path))
    code, out, _ = call(
        "distil", store["store"], "--student", "mlp800", "--sigma", "[0.1, 0.5]", "--alpha", "0.5", "--draw", "scalar",
        "--views", "clean,mirror", "--epochs", "2", *SMALL, "--json", "-q",
    )  # fmt: skip
    assert code == 0
    distilled = json.loads(out)
    saved = json.loads((Path(distilled["run"]) / "config.json").read_text())["config"]["config"]["noise"]
    assert (saved["sigma"], saved["alpha"], saved["draw"]) == ([0.1, 0.5], 0.5, "scalar")
    code, out, err = call("evaluate", distilled["run"], "--teacher", teacher.id, "--json")
    assert (code, err) == (0, "")
    scored = json.loads(out)
    assert scored["error"] == distilled["scores"]["test"]["error"]
    assert (scored["model"], scored["data"]["name"], scored["data"]["n"]) == (distilled["run"], "mnist-5k", 100)
    code, table, _ = call("evaluate", distilled["run"], "--teacher", teacher.id)
    assert f"Model: {distilled['run']}\nData: mnist-5k, test, 100 images, fingerprint" in table
    assert f"{distilled['scores']['test']['error']['value']:.4g}" in table
    code, out, _ = call("measure", distilled["run"], "--json", "--runs", "3")
    costs = json.loads(out)
    assert costs["parameters"] == 1_276_810
    assert {key: distilled["costs"][key] for key in ("parameters", "bytes", "macs", "layers")} == {
        key: costs[key] for key in ("parameters", "bytes", "macs", "layers")
    }
    code, out, _ = call("measure", "nin", "--input-shape", "3,32,32", "--layers", "--runs", "1")
    assert code == 0
    assert "966,986" in out
    code, out, _ = call("logits", "verify", store["store"], "--teacher", teacher.id, "--json")
    assert code == 0
    assert (json.loads(out)["rows"], json.loads(out)["data"]["name"]) == (100, "mnist-5k")
    order = "teacher.class_order=[1,0,2,3,4,5,6,7,8,9]"
    code, _, err = call("logits", "verify", store["store"], "--teacher", teacher.id, "--set", order)
    assert code == 1
    assert "another model" in err
    assert "mirror" in call("logits", "show", store["store"])[1]
    assert len(json.loads(call("runs", "ls", "--json")[1])) == 2
    assert f"{distilled['run']}: done, distil, started" in call("runs", "show", distilled["run"])[1]
    assert call("runs", "diff", teacher.id, Path(distilled["run"]).name)[0] == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.StringIO())  # nothing there to answer
        code, _, err = call("runs", "rm", teacher.id)
    assert (code, teacher.path.exists()) == (1, True)
    assert "nothing is removed; --yes removes without asking" in err
    assert call("runs", "rm", teacher.id, "--yes")[0] == 0
    assert not teacher.path.exists()


def test_a_pretrained_model_and_an_onnx_file_of_any_size_are_measured(call: Call) -> None:
    costs = json.loads(call("measure", "pretrained:nin-cifar10", "--json", "--runs", "1")[1])
    assert costs["parameters"] == 966_986
    onnx = pytest.importorskip("onnx", reason="needs the extra export")
    pytest.importorskip("onnxruntime")
    helper, element = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["means"]),
        helper.make_node("Flatten", ["means"], ["logits"]),
    ]
    images = helper.make_tensor_value_info("images", element, ["batch", 3, "height", "width"])
    logits = helper.make_tensor_value_info("logits", element, ["batch", 3])
    graph = helper.make_graph(nodes, "means", [images], [logits])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "means.onnx")
    code, out, err = call("measure", "means.onnx", "--input-shape", "3,16,20", "--json", "--runs", "1")
    assert code == 0, err
    assert json.loads(out)["macs"] == 0
    code, _, err = call("measure", "means.onnx")
    assert (code, "takes images of any size" in err) == (2, True)
    code, _, err = call("measure", "means.onnx", "--input-shape", "3,16,20", "--classes", "3")
    assert (code, "--classes has no effect on means.onnx" in err) == (2, True)


def test_the_last_weights_of_a_run_are_a_file_like_any_other(call: Call) -> None:
    assert call("train", "--model", "lenet", "--epochs", "2", *SMALL)[0] == 0
    (run,) = list_runs("runs")
    nt.save_model(nt.build_model("lenet", classes=10, input_shape=(1, 28, 28), seed=9), run.path / "last.safetensors")
    code, _, err = call("evaluate", str(run.path / "last.safetensors"), *SMALL[:2], "-q")
    assert code == 0, err


def test_weights_of_another_run_are_refused(call: Call) -> None:
    for seed in ("0", "1"):
        assert call("train", "--model", "lenet", "--epochs", "1", "--seed", seed, *SMALL)[0] == 0
    first, second = (run.path for run in list_runs("runs"))
    mine, theirs = first / "weights.safetensors", second / "weights.safetensors"
    assert call("evaluate", str(first), "-q")[0] == 0
    mine.write_bytes(theirs.read_bytes())
    for command in (("evaluate", str(first)), ("export", str(first), "--format", "hub", "--output-dir", "out")):
        code, _, err = call(*command)
        assert code == 1
        assert "not the weights that the run's result is about" in " ".join(err.split())
    code, out, _ = call("report", str(first), str(second), "--format", "md", "--output", "-")
    assert code == 0
    assert out.count("not the weights that the run's result is about") == 1


def test_compress_and_resume_a_done_one(call: Call) -> None:
    code, out, err = call(
        "compress", *NAMED, "--epochs", "1", "--teacher-epochs", "1", "--seeds", "2", *SMALL, "--json", "-q"
    )
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert [row["name"] for row in result["conditions"]] == ["labels", "clean"]
    code, table, _ = call("runs", "show", result["run"])
    assert code == 0
    assert result["verdicts"] == []
    assert "Noise:" not in table
    assert f"{result['conditions'][1]['scores']['test']['error']['mean']:.2f}" in table
    again = json.loads(call("compress", "--resume", result["run"], "--json", "-q")[1])
    assert again["conditions"] == result["conditions"]
    assert call("compress", "--resume", result["run"], "--epochs", "3")[0] == 2


def test_without_a_student_one_is_chosen_or_asked_for(call: Call, npz: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """compress chooses and says so at once; a sweep and distil take the paper's on MNIST, and else want a name."""
    from noisyteacher.pipeline import compression

    def stop(config: object, **options: object) -> None:
        raise UsageError("stop")

    monkeypatch.setattr(compression, "compress_config", stop)
    for words, noted in (((), True), (("--student", "auto"), True), (("--target-bytes", "8x"), False), (NAMED, False)):
        _, _, err = call("compress", "--data", str(npz), *words)
        assert ("a student of at most a quarter of the teacher's multiplications is chosen" in err) == noted
    code, _, err = call("sweep", "--data", str(npz), "--grid", "noise.sigma=0.5", "-q")
    assert code == 2
    assert "student.name: no student is named, and only compress chooses one: name the student (--student NAME)" in err


def test_config_and_data(call: Call, tmp_path: Path) -> None:
    assert call("config", "init", "c.toml")[0] == 0
    assert call("config", "init", "c.toml")[0] == 2
    assert call("config", "check", "c.toml")[1] == "c.toml: fine\n"
    assert (
        json.loads(call("config", "check", "c.toml", "--json", "--set", "noise.sigma=0.3")[1])["noise"]["sigma"] == 0.3
    )
    assert "Probability that a sample" in call("config", "explain", "noise.alpha")[1]
    assert "comes with the package" in call("data", "ls")[1]
    checked = json.loads(call("data", "check", "mnist-5k", "--json")[1])
    assert [checked["splits"][role]["n"] for role in ("train", "val", "test")] == [4000, 400, 600]


def test_options_that_a_run_folder_does_not_record() -> None:
    assert Request({"student.epochs": 2}, seed=3).options_to_resume() == []
    words = Request(jobs=8, allow_import=True, as_json=True, scheduler="tcp://host:8786").options_to_resume()
    assert words == ["--jobs", "8", "--scheduler", "tcp://host:8786", "--allow-import", "--json"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_is_resumed_to_the_same_bytes(tmp_path: Path, call: Call, number: int, code: int) -> None:
    words = ("train", "--model", "lenet", "--epochs", "4", "--seed", "3", "--threads", "1", *SMALL)
    assert call(*words, "--output-dir", "whole", "-q")[0] == 0
    process = Fork(lambda: run_command(*words, "--output-dir", "cut"), tmp_path / "command")
    wait_until(lambda: process.ended() or "epoch 1/4" in process.err, 0.001)
    process.kill(number)
    assert process.wait() == code
    (cut,), (whole,) = list_runs("cut"), list_runs("whole")
    assert f"resume with: noisyteacher train --resume cut/{cut.id}" in process.err
    assert cut.state == "unfinished"
    advice = f"(the run is unfinished): finish it first by noisyteacher train --resume {cut.path}"
    assert advice in " ".join(call("evaluate", str(cut.path))[2].split())
    assert (cut.path / "checkpoint" / "state.safetensors").exists()  # long before the first one would have been due
    assert call("train", "--resume", str(cut.path), "-q")[0] == 0
    for name in ("weights.safetensors", "last.safetensors"):
        assert (cut.path / name).read_bytes() == (whole.path / name).read_bytes()


WRONG = [
    (("compress", "--student", "mlp80"), 2, "unknown model 'mlp80': did you mean 'mlp800'?"),
    (("compress", "--teacher", "lenett"), 2, "did you mean 'lenet'?"),
    (("compress", "--teacher", "resnet18"), 2, "did you mean 'timm:resnet18' or 'torchvision:resnet18'?"),
    (("compress", "--student", "resnet_18"), 2, "did you mean 'timm:resnet18' or 'torchvision:resnet18'?"),
    (("measure", "mobilenetv3_small"), 2, "did you mean 'torchvision:mobilenet_v3_small'?"),
    (("compress", "--target-macs", "4"), 2, "fewer macs than any network has: did you mean '4x'"),
    (("compress", "--target-bytes", "8"), 2, "fewer bytes than any network has: did you mean '8x'"),
    (("compress", "--target-parameters", "0.5"), 2, "fewer parameters than any network has: did you mean '2x'"),
    (("compress", "--noise", "--sigma", "0.3"), 2, "--noise chooses sigma on validation and --sigma 0.3 names it"),
    (("distil", "store", "--noise", "--sigma", "0.3"), 2, "--sigma 0.3 names it: leave one out"),
    (("compress", "--alpha", "0.5"), 2, "noise.alpha: no effect without noise"),
    (("distil", "store", "--draw", "row"), 2, "noise.draw: no effect without noise"),
    (("compress", "--data", "mnist-5"), 2, "unknown data set 'mnist-5': did you mean"),
    (("compress", "--sigma", "-0.5"), 2, "noise.sigma: given -0.5"),
    (("compress", "--alpha", "1.5"), 2, "noise.alpha: given 1.5"),
    (("compress", "--draw", "rows"), 2, "did you mean 'row'?"),
    (("compress", "--set", "student.epoch=3"), 2, "student.epoch: unknown setting; did you mean 'student.epochs'?"),
    (("compress", "--set", "epochs"), 2, "expected KEY=VALUE"),
    (("compress", "--epochs", "0"), 2, "student.epochs: given 0"),
    (("compress", "--views", "miror"), 2, "did you mean 'mirror'?"),
    (("compress", "--device", "gpu7"), 2, "device 'gpu7' cannot be used here"),
    (("compress", "--teacher", "teacher.pt"), 2, "name it, for example --teacher timm:resnet18"),
    (("compress", "--teacher", "teacher.pkl"), 2, "does not say of which network"),
    (("compress", "--teacher", "none.safetensors"), 1, "none.safetensors: no weights there"),
    (("compress", "--device", "meta"), 2, "device 'meta' cannot be used here"),
    (("train", "--device", "meta"), 2, "device 'meta' cannot be used here"),
    (("train", "--threads", "10000000000"), 2, "threads 10000000000: expected 1 to 1024"),
    (("measure", "lenet", "--threads", "10000000000"), 2, "threads 10000000000: expected 1 to 1024"),
    (("train", "--views", "foo"), 2, "unknown view 'foo'"),
    (("train", "--data", ""), 2, "is empty"),
    (("train", "--data-root", " "), 2, "is empty"),
    (("train", "--output-dir", ""), 2, "is empty"),
    (("runs", "ls", "--output-dir", ""), 2, "is empty"),
    (("train", "--data", "n" * 5000), 2, "unknown data set"),
    (("train", "--data", "n" * 5000 + ".npz"), 1, "no such file or folder"),
    (("train", "--output-dir", "n" * 5000, *SMALL), 1, "the name is too long"),
    (("evaluate", "n" * 5000), 2, "no run"),
    (("evaluate", "n" * 5000 + ".safetensors"), 2, "no run"),
    (("logits", "show", "n" * 5000), 1, "no logit store here"),
    (("distil", "n" * 5000), 1, "no logit store here"),
    (("compress", "n" * 5000), 2, "cannot be read"),
    (("runs", "show", "n" * 5000), 2, "no run"),
    (("train", "--set", "x=" + "9" * 5000), 2, "x: unknown setting"),
    (("train", "--set", "student.lr=5"), 2, "--set student.lr=5: this command reads only data, teacher, run.output"),
    (
        ("compress", "--teacher", LENET, "--teacher-epochs", "9"),
        2,
        "teacher.epochs: has no effect on lenet-mnist, which is trained already: leave it out",
    ),
    (
        (
            "sweep",
            "--teacher",
            LENET,
            "--student",
            "mlp128",
            "--set",
            "teacher.lr=0.5",
            "--grid",
            "noise.sigma=1",
        ),
        2,
        "teacher.lr: has no effect on lenet-mnist",
    ),
    (
        ("sweep", "--teacher", LENET, "--student", "mlp128", "--grid", "teacher.epochs=1,9"),
        2,
        "teacher.epochs: has no effect on lenet-mnist",
    ),
    (("train", "--set", "student={lr=3.5}"), 2, "--set student={lr=3.5}: this command reads only data, teacher"),
    (("train", "--set", "noise.sigma=0.3"), 2, "this command reads only data, teacher, run.output_dir"),
    (("train", "--set", "run.seeds=3"), 2, "--set run.seeds=3: this command reads only data, teacher, run.output_dir"),
    (("train", "--set", "run.sedes=3"), 2, "run.sedes: unknown setting"),
    (
        ("sweep", "--teacher", LENET, "--student", "mlp128", "--grid", "student.lr=0.1,0.2", "--lr", "0.5"),
        2,
        "student.lr: has no effect beside a grid that varies it: leave it out",
    ),
    (
        ("evaluate", LENET, "--data", "mnist-5k", "--set", "run.seeds=3"),
        2,
        "--set run.seeds=3: this command reads only data, teacher, run.d",
    ),
    (
        ("export", LENET, "--data", "mnist-5k", "--set", "student.lr=3"),
        2,
        "--set student.lr=3: this command reads only data, teacher, run.t",
    ),
    (
        ("extract", LENET, "--data", "mnist-5k", "--set", "run.seeds=3"),
        2,
        "--set run.seeds=3: this command reads only data, teacher, studen",
    ),
    (("data", "check", "mnist-5k", "--set", "run.seeds=3"), 2, "this command reads only data: leave it out"),
    (
        ("distil", "no-store", "--set", "teacher.lr=5"),
        2,
        "this command reads only data, student, noise, choice, run.output",
    ),
    (("train", "--set", "x=" + "[" * 5000), 2, "nested deeper"),
    (("compress", "--data", "none.npz"), 1, "none.npz: no such file or folder"),
    (("compress", "nothing.toml"), 2, "nothing.toml: cannot be read"),
    (("compress", "--jobs", "0", *SMALL), 2, "jobs=0: expected a whole number >= 1"),
    (("train", "--resume", "7f3a9c"), 2, "no run '7f3a9c' in runs"),
    (("distil", "no-store"), 1, "no-store: no logit store here"),
    (("evaluate", "abc"), 2, "no run 'abc'"),
    (("evaluate", "abc", "--split", "tset"), 2, "did you mean 'test'?"),
    (("measure", "nin", "--input-shape", "32"), 2, "--input-shape '32': expected C,H,W"),
    (("measure", LENET, "--input-shape", "1,28,28"), 2, "--input-shape has no effect on pretrained"),
    (("measure", LENET, "--classes", "10"), 2, "--classes has no effect on pretrained:lenet-mnist"),
    (("logits", "verify", "nowhere"), 1, "nowhere: no logit store here"),
    (("runs", "rm", "nowhere", "--yes"), 2, "no run 'nowhere'"),
    (("config", "explain", "sigmma"), 2, "unknown setting 'sigmma'"),
    (("compres",), 2, "No such command"),
]


@pytest.mark.parametrize(("words", "code", "message"), WRONG, ids=[" ".join(case[0])[:40] for case in WRONG])
def test_wrong_questions_and_failures(
    call: Call, tmp_path: Path, words: tuple[str, ...], code: int, message: str
) -> None:
    """A sentence on stderr, the right exit code, nothing on stdout and no file left behind."""
    exit_code, out, err = call(*words)
    assert message in " ".join(err.split())
    assert (exit_code, out) == (code, "")
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_no_network_and_no_files(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    code, _, err = call("compress", "--data", "mnist", "--data-root", str(tmp_path / "data"))
    assert code == 1
    assert "could not be fetched" in err
    assert "train-images-idx3-ubyte.gz" in err
    assert not (tmp_path / "runs").exists()


def test_damaged_files_are_named(call: Call, tmp_path: Path) -> None:
    assert call("compress", *NAMED, "--epochs", "1", "--teacher-epochs", "1", "--no-baselines", *SMALL, "-q")[0] == 0
    (run,) = list_runs("runs", 1)
    weights = run.path / "teacher" / "weights.safetensors"
    (shard,) = run.path.glob("logits/*-train-*/shard-00000.safetensors")
    for path, words in (
        (weights, ("evaluate", str(weights), "--set", "data.limit=100")),
        (shard, ("logits", "verify", str(shard.parent))),
        (shard, ("distil", str(shard.parent), *SMALL)),
    ):
        good = path.read_bytes()
        for bad in (
            good[:-9],
            good[: len(good) // 2] + bytes([good[len(good) // 2] ^ 16]) + good[len(good) // 2 + 1 :],
        ):
            path.write_bytes(bad)
            code, _, err = call(*words)
            assert code == 1
            assert path.name in err
        path.write_bytes(good)
    code, _, err = call("distil", str(shard.parent), "--set", "data.limit=90")
    assert code == 2
    assert "fingerprint" in err or "data" in err


def test_a_full_disk(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    code, _, err = call("train", "--epochs", "1", *SMALL)
    assert code == 1
    assert "the disk is full" in err
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files == []


def test_a_pickle_is_never_read(call: Call, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "pwned"),)

    torch.save(Evil(), tmp_path / "teacher.pt")
    (tmp_path / "renamed.safetensors").write_bytes((tmp_path / "teacher.pt").read_bytes())
    for name in ("teacher.pt", "renamed.safetensors"):
        code, _, err = call("compress", "--teacher", name)
        assert code in (1, 2)
        assert name in err
    assert not (tmp_path / "pwned").exists()


# ------------------------------------------------------------------------------------------------- which data


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    """A data set of one's own that fits the networks of mnist-5k."""
    generator = np.random.default_rng(0)
    for name in ("mine", "other"):
        images = generator.integers(0, 255, (60, 28, 28), dtype=np.uint8)
        np.savez(tmp_path / f"{name}.npz", x=images, y=np.arange(60) % 10)
    return tmp_path / "mine.npz"


def run_of(out: str) -> str:
    return str(json.loads(out)["run"])


def test_a_model_is_looked_at_on_the_data_it_was_trained_on(call: Call, npz: Path, tmp_path: Path) -> None:
    run = run_of(call("train", "--data", str(npz), "--epochs", "1", "--json", "-q")[1])
    for path in (run, f"{run}/weights.safetensors"):
        code, out, err = call("evaluate", path, "--json")
        assert (code, err) == (0, "")
        scored = json.loads(out)
        assert scored["data"]["name"] == "mine"
        assert (
            scored["error"] == json.loads((Path(run) / "result.json").read_text())["result"]["scores"]["test"]["error"]
        )
    store = json.loads(call("extract", run, "--json", "-q")[1])
    assert (store["data"]["name"], store["rows"]) == ("mine", 48)
    code, out, _ = call("logits", "verify", store["store"], "--teacher", run)
    assert code == 0
    assert f"of mine, train, recomputed with {run}" in out
    code, out, err = call("evaluate", run, "--data", str(tmp_path / "other.npz"), "--json")
    assert (code, json.loads(out)["data"]["name"]) == (0, "other")
    assert err.count("\n") == 1
    assert f"note: {run} was not trained on these data" in err
    assert "was not trained on these data" in call("evaluate", run, "--set", f"data.name={tmp_path / 'other.npz'}")[2]
    assert json.loads(call("evaluate", run, "--set", "data.limit=5", "--json")[1])["data"]["n"] == 5
    (tmp_path / "bare.safetensors").write_bytes((Path(run) / "weights.safetensors").read_bytes())
    for words in (("evaluate",), ("extract",), ("logits", "verify", store["store"], "--teacher")):
        code, out, err = call(*words, "bare.safetensors")
        assert (code, out) == (2, "")
        assert "name the data by --data" in err
    assert call("evaluate", "bare.safetensors", "--data", str(npz))[0] == 0


def test_a_run_inside_a_run_is_looked_at_on_the_data_of_the_outer_one(call: Call, npz: Path) -> None:
    fast = ("--data", str(npz), *NAMED, "--epochs", "1", "--set", "teacher.epochs=1", "--json", "-q")
    run = run_of(call("compress", *fast, "--sigma", "0.5", "--no-baselines")[1])
    swept = run_of(call("sweep", *fast, "--grid", "noise.sigma=0.5")[1])
    for path in (f"{run}/teacher", f"{run}/noisy-seed0", f"{swept}/teacher"):
        code, out, err = call("evaluate", path, "--json")
        assert (code, err) == (0, "")
        assert json.loads(out)["data"]["name"] == "mine"
    assert call("runs", "show", swept)[0] == 0
    python = nt.compress("lenet", "mlp800", str(npz), epochs=1, teacher_training={"epochs": 1}, output_dir="python")
    code, _, err = call("evaluate", str(python.path / "clean-seed0"))
    assert code == 2
    assert "name the data by --data" in err


# ------------------------------------------------------------------------------------------------- factories

FACTORIES = """
from torch import nn

def good(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(784, classes))

def bad(classes):
    raise RuntimeError("no such luck")

def worse(classes):
    {}["key"]
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "factories_here.py").write_text(FACTORIES)
    (tmp_path / "factories_broken.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("factories")
def test_a_model_of_a_factory_is_loaded_where_that_is_allowed(call: Call) -> None:
    run = run_of(call("train", "--model", "factories_here:good", "--epochs", "1", *SMALL, "--json", "-q")[1])
    code, _, err = call("evaluate", run)
    assert code == 2
    assert "pass --allow-import" in err
    allow = "--allow-import"
    assert call("evaluate", run, "--teacher", run, allow)[0] == 0
    assert call("measure", run, "--runs", "1")[0] == 2
    assert call("measure", run, "--runs", "1", allow)[0] == 0
    assert call("extract", run, "-q")[0] == 2
    store = json.loads(call("extract", run, allow, "--json", "-q")[1])["store"]
    assert call("logits", "verify", store, "--teacher", run)[0] == 2
    assert call("logits", "verify", store, "--teacher", run, allow)[0] == 0
    compress = ("compress", "--teacher", run, *NAMED, "--epochs", "1", "--sigma", "0.5", "--no-baselines", *SMALL, "-q")
    assert call(*compress)[0] == 2
    code, out, _ = call(*compress, allow, "--json")
    assert code == 0
    resumed = Path(run_of(out))
    (resumed / "result.json").unlink()
    assert call("compress", "--resume", str(resumed), "-q")[0] == 2
    assert call("compress", "--resume", str(resumed), allow, "-q")[0] == 0


@pytest.mark.usefixtures("factories")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("factories_here:bad", "model 'factories_here:bad': the factory raised RuntimeError: no such luck"),
        ("factories_here:worse", "model 'factories_here:worse': the factory raised KeyError: 'key'"),
        (
            "factories_broken:any",
            "model 'factories_broken:any': importing 'factories_broken' failed: ZeroDivisionError",
        ),
    ],
)
def test_a_factory_that_fails_is_named_with_its_error(call: Call, name: str, message: str) -> None:
    code, _, err = call("train", "--model", name)
    assert code == 2
    assert message in err
    assert not Path("runs").exists()


# ------------------------------------------------------------------------------------------------- resuming, refusing


def test_what_a_resumed_run_is_asked_besides_is_refused(call: Call, tmp_path: Path) -> None:
    run = run_of(call("train", "--epochs", "1", *SMALL, "--json", "-q")[1])
    for words, message in (
        (("train", "--resume", run, "--seed", "5"), "leave out seed"),
        (("train", "--resume", run, "--output-dir", "elsewhere"), "leave --output-dir out"),
        (("compress", "--resume", run, "--pretrained"), "leave out pretrained"),
        (("distil", "--resume", run), "a train run, not a distil run"),
        (("compress", "--resume", run, "--output-dir", "elsewhere"), "leave --output-dir out"),
        (("sweep", "--resume", run, "--output-dir", "elsewhere"), "leave --output-dir out"),
        (("compress", "--resume", run), "not a compression"),
    ):
        code, out, err = call(*words)
        assert (code, out) == (2, ""), words
        assert message in " ".join(err.split())
    assert call("train", "--resume", Path(run).name, "--output-dir", "runs", "-q")[0] == 0
    assert not (tmp_path / "elsewhere").exists()


def test_a_wrong_question_to_distil_leaves_no_run(call: Call, npz: Path) -> None:
    run = run_of(call("train", "--epochs", "1", *SMALL, "--json", "-q")[1])
    store = json.loads(call("extract", run, "--views", "mirror*crop", "--json", "-q")[1])["store"]
    before = [run.id for run in list_runs("runs")]
    for words, message in (
        (("--data", str(npz), *NAMED, "--views", "mirror"), "made from data"),
        ((*SMALL, "--views", "clean"), "no logits of view 'clean', only of"),
    ):
        code, out, err = call("distil", store, *words)
        assert (code, out) == (2, "")
        assert message in err
        assert len(err) < 500
    assert [run.id for run in list_runs("runs")] == before


def test_config_check_knows_the_names(call: Call) -> None:
    for setting, message in (
        ("student.name=nope", "student.name: unknown model 'nope'"),
        ("teacher.name=lenett", "teacher.name: unknown model 'lenett': did you mean 'lenet'?"),
        ("teacher.views=['foo']", "teacher.views: unknown view 'foo'"),
        ("run.device=foo", "run.device: device 'foo' cannot be used here"),
        ("run.threads=99999", "run.threads: threads 99999"),
        ("data.name=nope", "data.name: unknown data set 'nope'"),
        ("student.lr=1e400", "student.lr: given inf"),
    ):
        assert call("config", "init", "c.toml")[0] in (0, 2)
        code, out, err = call("config", "check", "c.toml", "--set", setting)
        assert (code, out) == (2, "")
        assert message in err
    code, _, err = call("config", "check", "c.toml", "--set", "student.name=nope", "--set", "run.device=foo")
    assert "unknown model 'nope'" in err
    assert "device 'foo'" in err
    for fine in ("teacher.name=runs/x", "student.name=pkg.module:factory", "data.name=images/of/mine"):
        assert call("config", "check", "c.toml", "--set", fine)[0] == 0


# ------------------------------------------------------------------------------------------------- kept things


def test_runs_rm_twice_the_same_and_what_lies_inside(call: Call) -> None:
    run = run_of(
        call("compress", *NAMED, "--epochs", "1", "--teacher-epochs", "1", "--no-baselines", *SMALL, "--json", "-q")[1]
    )
    code, out, _ = call("runs", "rm", run, run, f"{run}/teacher", f"{run}/", "--yes")
    assert (code, out) == (0, f"removed {run}\n")
    assert not Path(run).exists()


def test_a_sweep_that_works_is_not_removed(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even between two of its students, when nobody works on any of them."""
    sweeping = importlib.import_module("noisyteacher.sweep.run")
    tried, judged = [], sweeping.analyse

    def judge(*arguments: object) -> object:
        (run,) = list_runs("runs", 1)
        with pytest.raises(UsageError, match="a process is working on it"):
            remove_run(run)
        tried.append(run)
        return judged(*arguments)

    monkeypatch.setattr(sweeping, "analyse", judge)
    fast = ("--epochs", "1", "--set", "teacher.epochs=1", *SMALL[:2], "-q")
    assert call("sweep", *fast, "--grid", "noise.sigma=0.5")[0] == 0
    assert len(tried) == 1
    remove_run(tried[0])


@pytest.mark.parametrize("name", ["run.json", "config.json", "result.json"])
def test_a_damaged_run_is_shown_with_the_file_and_why(call: Call, name: str) -> None:
    run = run_of(call("train", "--epochs", "1", *SMALL, "--json", "-q")[1])
    (Path(run) / name).write_text("damaged")
    for more in ((), ("--json",)):
        code, out, err = call("runs", "show", run, *more)
        assert (code, out) == (1, "")
        assert f"{run}/{name}: no checksum in" in err


def test_an_extraction_that_fails_leaves_no_empty_folder_and_another_store_is_replaced(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(call("train", "--epochs", "1", *SMALL, "--json", "-q")[1])
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["noisyteacher.teachers"], "STEADY", -1.0)
        assert call("extract", run, "--to", "new/store", "-q")[0] == 2
    assert not (tmp_path / "new").exists()
    assert call("extract", run, "--to", "store", "-q")[0] == 0
    code, _, err = call("extract", run, "--to", "store", "--views", "mirror", "-q")
    assert code == 2
    assert "--overwrite" in err
    assert call("extract", run, "--to", "store", "--views", "mirror", "--overwrite", "-q")[0] == 0


# ------------------------------------------------------------------------------------------------- streams


def piped(tmp_path: Path, command: str) -> tuple[int, str]:
    """The exit code and stderr of a shell line in which `nt` is the command line."""
    script = f'nt() {{ "{sys.executable}" -m noisyteacher "$@"; }}; {command}'
    ran = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    return ran.returncode, ran.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("nt runs ls > /dev/full", 1, "standard output cannot be written (No space left on device)"),
        ("nt config explain noise > /dev/full", 1, "standard output cannot be written (No space left on device)"),
        ("nt runs ls >&-", 1, "standard output cannot be written (it is closed)"),
        ("nt config explain noise --json >&-", 1, "standard output cannot be written (it is closed)"),
        ("nt runs ls --json | (exec <&-; sleep 2); exit ${PIPESTATUS[0]}", 0, ""),
        ("nt config explain noise | (exec <&-; sleep 2); exit ${PIPESTATUS[0]}", 0, ""),
        ("nt --help | (exec <&-; sleep 2); exit ${PIPESTATUS[0]}", 0, ""),
        ("nt runs show nothing 2> /dev/full", 2, ""),
        ("nt config explain noise 2>&- > /dev/null", 0, ""),
    ],
)
def test_output_that_nobody_takes(tmp_path: Path, command: str, code: int, message: str) -> None:
    exit_code, err = piped(tmp_path, command)
    assert exit_code == code
    assert message in err
    assert err.count("\n") == (1 if message else 0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_training_whose_output_nobody_takes_is_done_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train() -> None:
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
        run_command("train", "--model", "mlp800", "--epochs", "1", "--set", "data.limit=40", "-q")

    monkeypatch.chdir(tmp_path)
    process = Fork(train, tmp_path / "command")
    assert process.wait() == 1
    assert process.err.count("\n") == 1
    assert [run.state for run in list_runs(tmp_path / "runs")] == ["done"]


def test_a_file_with_a_grid(call: Call, tmp_path: Path) -> None:
    """config check looks at every combination; commands that train one student say what the table is for."""
    file = tmp_path / "grid.toml"
    file.write_text('[noise]\nsigma = 0.0\n[sweep]\nnoise.sigma = [0.3, 0.9]\nstudent.name = ["mlp800", "student3"]\n')
    assert call("config", "check", str(file))[0] == 0
    file.write_text('[noise]\nsigma = 0.0\n[sweep]\nnoise.sigma = [0.3]\nstudent.name = ["mlp800", "student33"]\n')
    code, _, err = call("config", "check", str(file))
    assert code == 2
    assert "student.name: unknown model 'student33': did you mean 'student3'?" in err
    code, _, err = call("compress", str(file))
    assert (code, err) == (2, "error: sweep: a grid of settings; run the file with: noisyteacher sweep\n")
    for words, part in (
        (("sweep",), "no grid: give --grid"),
        (("sweep", str(file), "--grid", "noise.sigma=1"), "give the grid in one place"),
        (("sweep", "--grid", "noise.sigma=1", "--jobs", "0"), "jobs=0"),
        (("sweep", "--sigma", "auto", "--grid", "student.epochs=1,2"), "a sweep compares numbers"),
        (("sweep", "--grid", "noise.draw=batch,row"), "noise.draw: no effect without noise"),
        (("paper", "tabel1"), "did you mean 'table1'"),
        (("paper", "table1", "--budget", "ful"), "did you mean 'full'"),
    ):
        code, _, err = call(*words)
        assert code == 2
        assert part in err
    assert not (tmp_path / "runs").exists()


def test_a_sweep_from_a_file_ends_with_3_when_a_cell_failed(call: Call, tmp_path: Path) -> None:
    file = tmp_path / "grid.toml"
    file.write_text(
        "[data]\nlimit = 60\n[teacher]\nepochs = 1\n[student]\nepochs = 1\n[noise]\nsigma = 0.5\n"
        "[sweep]\nstudent.lr = [0.001, 1e30]\n"
    )
    code, out, err = call("sweep", str(file), "--json", "-q")
    record = json.loads(out)
    assert code == 3, err
    assert set(record["failed"]) == {f"{kind}-lr1e30-seed0" for kind in ("labels-alone", "clean", "sigma0.5")}
    code, out, err = call("sweep", "--resume", record["run"], "-q")
    assert code == 3
    assert "3 failed:" in out


def test_data_are_packed_checked_and_used(call: Call, tmp_path: Path) -> None:
    from PIL import Image

    for name in ("a", "b"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(10):
            pixels = np.random.default_rng(number).integers(0, 256, (9, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pets" / name / f"{number}.png")
    (tmp_path / "pets" / "a" / "bad.jpg").write_bytes(b"x")
    words = ("data", "pack", "pets", "out", "--size", "8", "--jobs", "1")
    code, out, err = call(*words)
    assert (code, out) == (1, "")
    assert "1 image of pets cannot be read" in err
    assert "a/bad.jpg: cannot be decoded" in err
    code, out, err = call(*words, "--skip-corrupt", "-q")
    assert (code, err) == (0, "")
    assert "left out: a/bad.jpg: cannot be decoded" in out
    assert call(*words, "--skip-corrupt", "-q")[0] == 2  # it holds a packed data set already
    code, out, _ = call("data", "pack", "pets", "json", "--size", "8", "--skip-corrupt", "--json", "-q")
    record = json.loads(out)
    assert record["parts"] == [{"part": "all", "images": 20, "labelled": True, "left_out": 1, "bytes": 20 * 192}]
    code, out, _ = call("data", "check", "out")
    assert code == 0
    assert "the checksum holds; 1 image(s) left out" in out
    code, out, err = call("train", "--model", "student1", "--data", "out", "--epochs", "1", "-q", "--json")
    assert code == 0, err
    images = bytearray((tmp_path / "out" / "images.u8").read_bytes())
    images[100] ^= 1
    (tmp_path / "out" / "images.u8").write_bytes(images)
    code, out, err = call("data", "check", "out")
    assert (code, out) == (1, "")
    assert "images.u8: bytes 0 to 3839 are damaged" in err
    assert call("data", "pack", "pets", "other", "--fit", "crops")[0] == 2
    assert call("data", "pack", "nowhere", "other")[0] == 1


def test_an_empty_name_of_an_output_is_refused_before_anything_is_done(call: Call, tmp_path: Path) -> None:
    for words in (
        ("report", "run", "-o", ""),
        ("bench", "model.onnx", "-o", ""),
        ("compress", "--target-latency", "2x", "--candidates", ""),
    ):
        code, _, err = call(*words)
        assert (code, "is empty" in err) == (2, True), words


def test_a_command_to_run_is_quoted(call: Call, tmp_path: Path) -> None:
    code, out, _ = call("config", "init", "a file.toml")
    assert code == 0
    assert "run it with: noisyteacher compress 'a file.toml'" in out


def test_a_rank_that_is_none_hides_no_error(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "noisyteacher", "runs", "show", "nope"]
    ended = subprocess.run(words, env={**os.environ, "RANK": "x"}, cwd=tmp_path, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (
        2,
        "error: no run 'nope' in runs: list the 0 runs there by noisyteacher runs ls\n",
    )
