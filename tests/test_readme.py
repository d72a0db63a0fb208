"""Every block of the README is executed, and what it shows is what comes out (numbers may move, words may not)."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from noisyteacher.cli import build_command

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.M | re.S)
SHORT = {
    # The same command on fewer images: a full run takes minutes and belongs to no test.
    "noisyteacher demo": " --epochs 1 --seeds 2",
    "noisyteacher sweep": " --epochs 1 --set data.limit=300 --set teacher.epochs=1",
}


def commands(block: str) -> Iterator[tuple[str, str]]:
    """The commands of a console block, each with the output shown under it."""
    for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
        command, _, shown = part.partition("\n")
        yield command, shown


BY_LUCK = ("Verdict:", "Noise:", "Best on validation")
"""Starts of lines whose words depend on what came out."""


def words(text: str) -> list[list[str]]:
    """The words of each line, without numbers, rules and what depends on them: units, verdicts, folders."""
    found = []
    for line in text.splitlines():
        start = next((start for start in BY_LUCK if line.startswith(start)), None)
        if start is not None:
            found.append([start])
            continue
        line = re.sub(r"handed over: seed [^\[]*", "", line)  # in the row that validation prefers
        line = re.sub(r"\[no interval\]| \(no interval:[^)]*\)", "", line)  # where the seeds are far apart
        kept = re.findall(r"[A-Za-z][A-Za-z.,:%]+", re.sub(r"\S*\d\S*", " ", line))
        kept = [word for word in kept if word not in ("kB", "MB", "ms", "min")]
        if kept:
            found.append(kept)
    return found


EXACT = {"noisyteacher measure": ("parameters", "weights file", "MACs", "peak memory"), "evaluate": ("Data:",)}
"""Lines whose numbers are the same on every machine, by the command that prints them."""


def exact(command: str, text: str) -> list[str]:
    """The lines of the text that must be equal to the letter, spaces apart."""
    starts = next((lines for part, lines in EXACT.items() if part in command), ())
    return [" ".join(line.split()) for line in text.splitlines() if line.startswith(starts)] if starts else []


def test_all_blocks_are_of_a_kind_that_is_executed() -> None:
    assert {kind for kind, _ in BLOCKS} == {"console", "python", "text", "sh"}  # sh: takes minutes, options are checked


def test_a_block_that_takes_minutes_has_options_that_are_there() -> None:
    (block,) = (block for kind, block in BLOCKS if kind == "sh")
    asked = shlex.split(block.replace("\\\n", " "))
    assert asked[0] == "noisyteacher"
    command = build_command(asked[1])
    known = {flag for one in command.params for flag in one.opts}
    assert {word for word in asked if word.startswith("--")} <= known


def test_python_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All python blocks in one namespace, one after the other; the text block is what they print."""
    monkeypatch.chdir(tmp_path)
    printed, space = io.StringIO(), {"__name__": "readme"}
    with contextlib.redirect_stdout(printed):
        for kind, block in BLOCKS:
            if kind == "python":
                exec(compile(block, "README.md", "exec"), space)
    (shown,) = (block for kind, block in BLOCKS if kind == "text")
    got, expected = printed.getvalue(), shown
    assert words(got) == words(expected)
    numbers = [float(n.replace(",", "")) for n in re.findall(r"\d[\d,]*\.?\d*", got)]
    claimed = [float(n.replace(",", "")) for n in re.findall(r"\d[\d,]*\.?\d*", expected)]
    assert numbers[1] == claimed[1] == 600
    assert numbers[4:7] == claimed[4:7]  # parameters, bytes, MACs: exact
    assert numbers[0] == pytest.approx(claimed[0], abs=2.5)  # error and agreement in %: within what kernels may move
    assert numbers[2] == pytest.approx(claimed[2], abs=2.5)


@pytest.mark.parametrize("target", ["demo", "test"])
def test_make_blocks(target: str) -> None:
    """`make` is dry-run: what it would run is the command the README promises. (`make test` is running right now.)"""
    assert f"$ make {target}\n" in README
    told = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {"demo": "noisyteacher demo", "test": "pytest"}[target] in told
    ci = (ROOT / ".ci" / "run").read_text()
    assert "exec make test" in ci


CONSOLE = [block for kind, block in BLOCKS if kind == "console" and "$ make" not in block]


@pytest.mark.parametrize("number", range(len(CONSOLE)))
def test_console_blocks(number: int, tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for command, shown in commands(CONSOLE[number]):
        short = next((more for start, more in SHORT.items() if start in f"{command} "), "")
        ran = subprocess.run(
            command + short, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stderr
        if shown.strip():
            assert words(ran.stdout) == words(shown), command
            assert exact(command, ran.stdout) == exact(command, shown), command
