"""Every block of the README is executed, and what it shows is what comes out (numbers may move, words may not)."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from helpers import Call
from noisyteacher.cli import build_command
from printed import commands, shows, words

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.M | re.S)
SHORT = {
    # The same command with fewer epochs and students: a full run takes minutes and belongs to no test.
    "noisyteacher demo": " --steps 10 --seeds 2 --jobs 1",
}


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
    for line in map(shlex.split, block.replace("\\\n", " ").splitlines()):
        assert line[0] == "noisyteacher"
        command = build_command(line[1])
        options = {flag for parameter in command.params for flag in parameter.opts}
        assert {word for word in line if word.startswith("--")} <= options


def test_python_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All python blocks in one namespace, one after the other; the text block is what they print."""
    monkeypatch.chdir(tmp_path)
    printed, space = io.StringIO(), {"__name__": "readme"}
    with contextlib.redirect_stdout(printed):
        for kind, block in BLOCKS:
            if kind == "python":
                exec(compile(block, "README.md", "exec"), space)
    (expected,) = (block for kind, block in BLOCKS if kind == "text")
    got = printed.getvalue()
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
    recipe = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {"demo": "noisyteacher demo", "test": "pytest"}[target] in recipe
    ci = (ROOT / ".ci" / "run").read_text()
    assert "exec make test" in ci


CONSOLE = [block for kind, block in BLOCKS if kind == "console" and "$ noisyteacher" in block]


def test_the_first_block_installs_the_package() -> None:
    assert README.count("```", 0, README.index("$ pip install noisyteacher ")) == 1


@pytest.mark.parametrize("number", range(len(CONSOLE)))
def test_console_blocks(number: int, call: Call) -> None:
    for command, expected in commands(CONSOLE[number]):
        short = next((more for start, more in SHORT.items() if start in f"{command} "), "")
        program, *arguments = shlex.split(command + short)
        assert program == "noisyteacher"
        code, output, errors = call(*arguments)
        assert code == 0, errors
        if expected.strip():
            assert shows(expected, output), (command, output)
            assert exact(command, output) == exact(command, expected), command
