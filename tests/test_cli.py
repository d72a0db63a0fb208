"""The command line as a user meets it: its surface, exit codes, streams, every step from train to verify."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import typer.main

from noisyteacher import cli
from noisyteacher.runs import list_runs

COMMON = {"--help"}
COMMANDS = {
    "demo", "compress", "train", "extract", "distil", "evaluate", "measure",
    "runs ls", "runs show", "runs diff", "runs rm",
    "config init", "config check", "config explain", "data ls", "data check", "logits show", "logits verify",
}  # fmt: skip
COMPRESS = {
    "--data", "--data-root", "--data-dir", "--teacher", "--student", "--sigma", "--alpha", "--draw", "--epochs",
    "--teacher-epochs", "--batch-size", "--lr", "--weight-decay", "--precision", "--views", "--seeds", "--baselines",
    "--output-dir", "--device", "--threads", "--set", "--resume", "--json", "--quiet", "-q",
}  # fmt: skip
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """Runs the command line in this process: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NOISYTEACHER_DATA", raising=False)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["noisyteacher", *words])
        before = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as ended:
                cli.main()
        finally:
            signal.signal(signal.SIGTERM, before)
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out, shown.err

    return run


SMALL = ("--set", "data.limit=100", "--batch-size", "20")


def commands() -> dict[str, typer.main.click.Command]:  # type: ignore[name-defined]
    found = {}
    top = typer.main.get_command(cli.app)
    for name, command in top.commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        found |= {f"{name} {one}": two for one, two in inner.items()} if inner else {name: command}
    return found


def test_the_surface_is_frozen() -> None:
    """A command or option that comes or goes is a decision, told here."""
    found = commands()
    assert set(found) == COMMANDS
    options = {flag for one in found["compress"].params for flag in one.opts if flag.startswith("-")}
    assert options - COMMON == COMPRESS


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
    code, out, err = call("extract", teacher.id, "--views", "clean,mirror", "--set", "data.limit=100", "--json", "-q")
    assert (code, err) == (0, "")
    store = json.loads(out)
    assert (store["views"], store["rows"], store["classes"]) == (2, 100, 10)
    code, out, _ = call(
        "distil", store["store"], "--student", "mlp800", "--sigma", "[0.1, 0.5]", "--alpha", "0.5", "--draw", "scalar",
        "--views", "clean,mirror", "--epochs", "2", *SMALL, "--json", "-q",
    )  # fmt: skip
    assert code == 0
    distilled = json.loads(out)
    saved = json.loads((Path(distilled["run"]) / "config.json").read_text())["config"]["config"]["noise"]
    assert (saved["sigma"], saved["alpha"], saved["draw"]) == ([0.1, 0.5], 0.5, "scalar")
    small = ("--set", "data.limit=100")
    code, out, _ = call("evaluate", distilled["run"], "--teacher", teacher.id, *small, "--json")
    assert code == 0
    assert json.loads(out)["error"] == distilled["scores"]["test"]["error"]
    code, table, _ = call("evaluate", distilled["run"], "--teacher", teacher.id, *small)
    assert f"{distilled['scores']['test']['error']['value']:.4g}" in table
    code, out, _ = call("measure", distilled["run"], "--json", "--runs", "3")
    assert json.loads(out)["parameters"] == 1_276_810
    code, out, _ = call("measure", "nin", "--input-shape", "3,32,32", "--layers", "--runs", "1")
    assert code == 0
    assert "966,986" in out
    code, out, _ = call("logits", "verify", store["store"], "--teacher", teacher.id, *small, "--json")
    assert code == 0
    assert json.loads(out)["rows"] == 100
    assert "mirror" in call("logits", "show", store["store"])[1]
    assert len(json.loads(call("runs", "ls", "--json")[1])) == 2
    assert (
        "student" in call("runs", "show", distilled["run"])[1]
        or distilled["run"] in call("runs", "show", distilled["run"])[1]
    )
    assert call("runs", "diff", teacher.id, Path(distilled["run"]).name)[0] == 0
    assert call("runs", "rm", teacher.id, "--yes")[0] == 0
    assert not teacher.path.exists()


def test_compress_and_resume_a_done_one(call: Call) -> None:
    code, out, err = call("compress", "--epochs", "1", "--teacher-epochs", "1", "--seeds", "2", *SMALL, "--json", "-q")
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert [row["name"] for row in result["rows"]] == ["teacher", "labels", "clean", "noisy"]
    code, table, _ = call("runs", "show", result["run"])
    assert code == 0
    assert result["verdict"][:20] in table
    assert f"{result['rows'][3]['error_%']['mean']:.2f}" in table
    again = json.loads(call("compress", "--resume", result["run"], "--json", "-q")[1])
    assert again["rows"] == result["rows"]
    assert call("compress", "--resume", result["run"], "--epochs", "3")[0] == 2


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


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_can_be_resumed(tmp_path: Path, call: Call, number: int, code: int) -> None:
    words = [
        sys.executable,
        "-c",
        "import noisyteacher.cli as c; c.main()",
        "train",
        "--model",
        "mlp800",
        "--epochs",
        "300",
    ]
    with subprocess.Popen(
        [*words, *SMALL], cwd=tmp_path, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as process:
        assert process.stderr is not None
        while "epoch 1/300" not in process.stderr.readline():
            assert process.poll() is None
        time.sleep(0.3)
        process.send_signal(number)
        told = process.stderr.read()
        assert process.wait(60) == code
    (run,) = list_runs(tmp_path / "runs")
    assert f"go on with: noisyteacher train --resume runs/{run.id}" in told
    assert run.state == "unfinished"


WRONG = [
    (("compress", "--student", "mlp80"), 2, "unknown model 'mlp80': did you mean 'mlp800'?"),
    (("compress", "--teacher", "lenett"), 2, "did you mean 'lenet'?"),
    (("compress", "--data", "mnist-5"), 2, "unknown data set 'mnist-5': did you mean"),
    (("compress", "--sigma", "-0.5"), 2, "noise.sigma: given -0.5"),
    (("compress", "--alpha", "1.5"), 2, "noise.alpha: given 1.5"),
    (("compress", "--draw", "rows"), 2, "did you mean 'row'?"),
    (("compress", "--set", "student.epoch=3"), 2, "student.epoch: unknown setting; did you mean 'student.epochs'?"),
    (("compress", "--set", "epochs"), 2, "expected KEY=VALUE"),
    (("compress", "--epochs", "0"), 2, "student.epochs: given 0"),
    (("compress", "--views", "miror"), 2, "did you mean 'mirror'?"),
    (("compress", "--device", "gpu7"), 2, "device 'gpu7' cannot be used here"),
    (("compress", "--teacher", "teacher.pt"), 2, "a pickle may run code"),
    (("compress", "--teacher", "none.safetensors"), 1, "none.safetensors: no weights there"),
    (("compress", "--data", "none.npz"), 1, "none.npz: no such file or folder"),
    (("compress", "nothing.toml"), 2, "nothing.toml: cannot be read"),
    (("train", "--resume", "7f3a9c"), 2, "no run '7f3a9c' in runs"),
    (("distil", "no-store"), 1, "no-store: no logit store here"),
    (("evaluate", "abc"), 2, "no run 'abc'"),
    (("evaluate", "abc", "--split", "tset"), 2, "did you mean 'test'?"),
    (("measure", "nin", "--input-shape", "32"), 2, "input_shape"),
    (("logits", "verify", "nowhere"), 1, "nowhere: no logit store here"),
    (("runs", "rm", "nowhere", "--yes"), 2, "no run 'nowhere'"),
    (("config", "explain", "sigmma"), 2, "unknown setting 'sigmma'"),
    (("compres",), 2, "No such command"),
]


@pytest.mark.parametrize(("words", "code", "message"), WRONG, ids=[" ".join(one[0]) for one in WRONG])
def test_wrong_questions_and_failures(
    call: Call, tmp_path: Path, words: tuple[str, ...], code: int, message: str
) -> None:
    """A sentence on stderr, the right exit code, nothing on stdout and no file left behind."""
    found, out, err = call(*words)
    assert message in " ".join(err.split())
    assert (found, out) == (code, "")
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
    assert call("compress", "--epochs", "1", "--teacher-epochs", "1", "--no-baselines", *SMALL, "-q")[0] == 0
    (run,) = list_runs("runs", 1)
    weights = run.path / "teacher" / "weights.safetensors"
    (shard,) = run.path.glob("logits/*/shard-00000.safetensors")
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
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert left == []


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
