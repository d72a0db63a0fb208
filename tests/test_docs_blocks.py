"""Every block of the tutorial, the how-tos and the questions is run, on fewer images and for fewer epochs.

A comment in front of a block says what is done with it: `<!-- not run: REASON -->`, `<!-- file: NAME -->` (it is
written to that file), `<!-- raises -->` (it ends in an error of ours, with the message that the next block shows).
A text block behind a python block is what that prints. A page is one user: one folder, one Python.
"""

from __future__ import annotations

import contextlib
import glob
import io
import re
import shlex
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import noisyteacher as nt
from noisyteacher import cli
from printed import commands, shows, words

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [DOCS / "tutorial.md", DOCS / "faq.md", *sorted((DOCS / "howto").glob("*.md"))]
BLOCK = re.compile(r"^(?:<!-- (?P<mark>.+?) -->\n)?```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.M | re.S)
SHORT = {
    # What a command is given beside what the page shows, so that a page takes seconds.
    "train": "--epochs 1 --set data.limit=200",
    "distil": "--epochs 1 --set data.limit=200",
    "extract": "--set data.limit=200",
    "compress": "--epochs 1 --seeds 2 --teacher-epochs 1 --set data.limit=100",
    "sweep": "--epochs 1 --seeds 1 --jobs 1 --set teacher.epochs=1 --set data.limit=100",
}
FEWER = {
    r'load_data\("mnist-5k"\)': 'load_data("mnist-5k", limit=200)',
    r"range\(8\)": "range(1)",
    r'("name": "mnist-5k")': r'\1, "limit": 100',
}
EXPECTED = {"console", "python", "text", "toml"}


@dataclass
class Block:
    """One fenced block of a page, and the comment in front of it."""

    mark: str
    kind: str
    text: str


def blocks(page: Path) -> list[Block]:
    parsed = [
        Block(match["mark"] or "", match["kind"], match["text"].replace("\\\n", " "))
        for match in BLOCK.finditer(page.read_text("utf-8"))
    ]
    opened = len(re.findall(r"^```\w", page.read_text("utf-8"), re.M))
    assert len(parsed) == opened, "a block that is not understood"
    return parsed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_is_of_a_kind_that_is_run_or_says_why_not(page: Path) -> None:
    for block in blocks(page):
        assert block.kind in EXPECTED
        assert block.mark == "" or re.match(r"not run: \w.{10,}|file: \S+$|raises$", block.mark), block.mark
        if block.kind == "console" and not block.mark.startswith("not run"):
            assert all(line.startswith(("noisyteacher ", "export ")) for line, _ in commands(block.text))


@dataclass
class User:
    """Who follows a page: a folder to be in, a Python that is kept open, a command line."""

    patch: pytest.MonkeyPatch
    space: dict[str, Any] = field(default_factory=lambda: {"__name__": "page"})

    def python(self, text: str) -> str:
        """What the block prints."""
        for pattern, fewer in FEWER.items():
            text = re.sub(pattern, fewer, text)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(text, "page", "exec"), self.space)
        return printed.getvalue()

    def command(self, line: str) -> str:
        """What the command prints, run in this process; it must end with code 0."""
        name, *arguments = [
            argument for word in shlex.split(line) for argument in (sorted(glob.glob(word)) if "*" in word else [word])
        ]
        if name == "export":
            variable, _, value = arguments[0].partition("=")
            assert (variable, value) == ("PYTHONPATH", ".")
            return ""
        typed = set(arguments)
        more = "" if typed & {"--resume", "--so-far"} else SHORT.get(arguments[0], "")
        if re.search(r"--teacher (pretrained:|runs/|\S+\.(onnx|safetensors))", line):  # one that is trained already
            more = re.sub(r"--teacher-epochs 1|--set teacher.epochs=1", "", more)
        if arguments[0] == "compress" and more and not re.search(r"--student|--target|--search|\.toml", line):
            more += " --student mlp800"  # none is chosen, which would measure dozens of networks
        self.patch.setattr(sys, "argv", ["noisyteacher", *arguments, *more.split()])
        before = signal.getsignal(signal.SIGTERM)
        try:
            with (
                contextlib.redirect_stdout(io.StringIO()) as printed,
                contextlib.redirect_stderr(io.StringIO()) as errors,
                pytest.raises(SystemExit) as ended,
            ):
                cli.main()
        finally:
            signal.signal(signal.SIGTERM, before)
        assert not ended.value.code, f"{line}\n{errors.getvalue()}"
        return printed.getvalue()


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[User]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("NOISYTEACHER_DATA", raising=False)
    before = set(sys.modules)
    yield User(monkeypatch)
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_can_be_followed(page: Path, user: User, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if page.stem != "read-report":
        request.getfixturevalue("unrendered")
    parsed = blocks(page)
    for block, after in zip(parsed, [*parsed[1:], Block("", "", "")], strict=True):
        expected = after.text if after.kind == "text" else None
        if block.mark.startswith("not run") or block.kind in ("text", "toml"):
            continue
        if block.mark.startswith("file: "):
            (tmp_path / block.mark.removeprefix("file: ")).write_text(block.text)
        elif block.mark == "raises":
            with pytest.raises(nt.NoisyTeacherError) as raised:
                user.python(block.text)
            assert expected is not None
            assert words(str(raised.value)) == words(expected)
        elif block.kind == "python":
            printed = user.python(block.text)
            assert expected is None or shows(expected, printed)
        else:
            for line, output in commands(block.text):
                printed = user.command(line)
                assert not output.strip() or words(printed) == words(output), line
