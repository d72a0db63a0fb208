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
from test_readme import commands, words

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
    found = [
        Block(one["mark"] or "", one["kind"], one["text"].replace("\\\n", " "))
        for one in BLOCK.finditer(page.read_text("utf-8"))
    ]
    opened = len(re.findall(r"^```\w", page.read_text("utf-8"), re.M))
    assert len(found) == opened, "a block that is not understood"
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_is_of_a_kind_that_is_run_or_says_why_not(page: Path) -> None:
    for one in blocks(page):
        assert one.kind in EXPECTED
        assert one.mark == "" or re.match(r"not run: \w.{10,}|file: \S+$|raises$", one.mark), one.mark
        if one.kind == "console" and not one.mark.startswith("not run"):
            assert all(shown.startswith(("noisyteacher ", "export ")) for shown, _ in commands(one.text))


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
            found for word in shlex.split(line) for found in (sorted(glob.glob(word)) if "*" in word else [word])
        ]
        if name == "export":
            variable, _, value = arguments[0].partition("=")
            assert (variable, value) == ("PYTHONPATH", ".")
            return ""
        given = set(arguments)
        more = "" if given & {"--resume", "--so-far"} else SHORT.get(arguments[0], "")
        self.patch.setattr(sys, "argv", ["noisyteacher", *arguments, *more.split()])
        before = signal.getsignal(signal.SIGTERM)
        try:
            with (
                contextlib.redirect_stdout(io.StringIO()) as printed,
                contextlib.redirect_stderr(io.StringIO()) as told,
                pytest.raises(SystemExit) as ended,
            ):
                cli.main()
        finally:
            signal.signal(signal.SIGTERM, before)
        assert not ended.value.code, f"{line}\n{told.getvalue()}"
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
def test_a_page_can_be_followed(page: Path, user: User, tmp_path: Path) -> None:
    found = blocks(page)
    for one, after in zip(found, [*found[1:], Block("", "", "")], strict=True):
        shown = after.text if after.kind == "text" else None
        if one.mark.startswith("not run") or one.kind in ("text", "toml"):
            continue
        if one.mark.startswith("file: "):
            (tmp_path / one.mark.removeprefix("file: ")).write_text(one.text)
        elif one.mark == "raises":
            with pytest.raises(nt.NoisyTeacherError) as raised:
                user.python(one.text)
            assert shown is not None
            assert words(str(raised.value)) == words(shown)
        elif one.kind == "python":
            printed = user.python(one.text)
            assert shown is None or words(printed) == words(shown)
        else:
            for line, output in commands(one.text):
                printed = user.command(line)
                assert not output.strip() or words(printed) == words(output), line
