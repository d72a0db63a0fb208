"""The documentation is true: its links resolve, its references are the code's, and it says what callers need."""

from __future__ import annotations

import ast
import builtins
import importlib.util
import inspect
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from torch import nn

import noisyteacher as nt
from helpers import Fork

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])
LINK = re.compile(r"(?<!`)\[[^\]\n]*\]\(([^)\s]+)\)")


def prose(file: Path) -> str:
    """The page without its code blocks."""
    return re.sub(r"^```.*?^```", "", file.read_text(encoding="utf-8"), flags=re.M | re.S)


def anchors(file: Path) -> set[str]:
    """What a link may name behind `#`, as GitHub and MyST make it of headings."""
    headings = re.findall(r"^#{1,6} +(.+)$", prose(file), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_resolve(page: Path) -> None:
    broken = []
    for target in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """scripts/make_reference.py as a module."""
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "scripts" / "make_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["cli.md", "config.md"])
def test_references_are_up_to_date(name: str, reference: ModuleType) -> None:
    assert set(reference.PAGES) == {"cli.md", "config.md"}
    if tuple(map(int, version("typer").split(".")[:2])) < (0, 29):
        pytest.skip("the pages are made with typer 0.29 and newer")
    assert (DOCS / name).read_text(encoding="utf-8") == reference.PAGES[name](), "run python scripts/make_reference.py"


def test_references_name_what_users_type() -> None:
    """Spot checks with words of our own: the generator might leave things out alike on both sides."""
    cli, config = ((DOCS / name).read_text(encoding="utf-8") for name in ("cli.md", "config.md"))
    for word in ("### noisyteacher logits verify", "`--sigma TEXT`", "`--quiet, -q`", "`--set KEY=VALUE`"):
        assert word in cli
    assert "| `noise.alpha` | number or auto | `0.15` | Probability that a sample is perturbed" in config
    assert cli.count("\n```console\n") == cli.count("| argument or option |")


def test_the_reference_has_every_public_name() -> None:
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    named = re.findall(r"^\.\. auto(?:function|class):: noisyteacher\.(\w+)$", text, re.M)
    assert sorted(named) == sorted(nt.__all__)
    for name in named:
        kind = "class" if inspect.isclass(getattr(nt, name)) else "function"
        assert f".. auto{kind}:: noisyteacher.{name}\n" in text


def public_callables() -> Iterator[tuple[str, Any]]:
    """Every public function, and every method and property that a public class defines itself."""
    for name in sorted(nt.__all__):
        member = getattr(nt, name)
        if not inspect.isclass(member):
            yield name, member
            continue
        for key, value in vars(member).items():
            if isinstance(value, property):
                value = value.fget
            elif isinstance(value, cached_property):
                value = value.func
            elif isinstance(value, classmethod | staticmethod):
                value = value.__func__
            if inspect.isfunction(value) and not key.startswith("_"):
                yield f"{name}.{key}", value


CALLABLES = dict(public_callables())
LOGITS = re.compile(r"\[[A-Z](, ?[A-Z])*\]|`\[\w")


def raised(function: Any) -> set[str]:
    """The names of the errors that the function's own body raises."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    calls = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    names = {call.func.id for call in calls if isinstance(call.func, ast.Name)}
    makers = ("unknown_name", "unknown_network")
    return {"UnknownNameError" if name in makers else name for name in names if name != "StopIteration"}


def test_errors_that_public_docstrings_name_are_public() -> None:
    texts = [inspect.getdoc(CALLABLES[name]) or "" for name in CALLABLES] + [nt.NoisyTeacher.__doc__ or ""]
    named = {name for text in texts for name in re.findall(r"\b[A-Z]\w+Error\b", text)}
    assert named - set(dir(builtins)) <= set(nt.__all__)


@pytest.mark.parametrize("name", CALLABLES)
def test_a_public_docstring_says_what_a_caller_needs(name: str) -> None:
    function = CALLABLES[name]
    text = inspect.getdoc(function) or ""
    first = text.partition("\n")[0]
    assert len(first.split()) >= 3, "no docstring"
    assert first.endswith((".", ":", ",")), "the first line is a sentence"
    annotations = {key: str(value) for key, value in function.__annotations__.items()}
    if any("Tensor" in kind and "dict" not in kind for kind in annotations.values()):
        assert LOGITS.search(text), "tensors without shapes"
    errors = raised(function)
    if errors:
        assert "Raises" in text, f"raises {errors} and does not say so"
    named = set(re.findall(r"\b[A-Z]\w+Error\b", text[text.find("Raises") :] if "Raises" in text else ""))
    missing = {
        error for error in errors if not any(issubclass(_error(error), _error(documented)) for documented in named)
    }
    assert missing == set(), "errors that the docstring does not name"


def _error(name: str) -> type:
    from noisyteacher import errors

    error: type = getattr(errors, name, getattr(builtins, name, Exception))
    return error


@pytest.mark.parametrize("name", [name for name in nt.__all__ if inspect.isclass(getattr(nt, name))])
def test_a_public_class_says_what_it_is(name: str) -> None:
    text = inspect.getdoc(getattr(nt, name)) or ""
    assert len(text.split()) >= 8
    assert text != inspect.getdoc(nn.Module)


def test_the_paper_is_named_where_its_formulas_are() -> None:
    for name in ("perturb", "logit_regression", "distil", "NoisyTeacher"):
        assert "Source: " in inspect.getdoc(getattr(nt, name)), name  # type: ignore[operator]


def test_make_docs_takes_warnings_as_errors() -> None:
    printed = subprocess.run(
        ["make", "--always-make", "--dry-run", "docs"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert re.search(r"sphinx .*--fail-on-warning .*docs build/docs", printed)


@pytest.mark.slow
def test_the_site_builds_and_fetches_nothing(tmp_path: Path) -> None:
    """`make docs` in small: no warning, every page there, and nothing that a browser would load from elsewhere."""
    for needed in ("sphinx", "furo", "myst_parser"):
        pytest.importorskip(needed, reason=f"{needed} is not installed: make docs installs it")
    words = ["-W", "-q", "-b", "html", "-d", str(tmp_path / "trees"), str(DOCS), str(tmp_path / "site")]

    def build() -> None:
        from sphinx.cmd.build import main

        sys.exit(main(words))

    process = Fork(build, tmp_path / "sphinx")
    assert process.wait() == 0, process.err
    site = {
        file.relative_to(tmp_path / "site"): file.read_text(encoding="utf-8")
        for file in (tmp_path / "site").rglob("*.html")
    }
    for page in DOCS.rglob("*.md"):
        assert page.relative_to(DOCS).with_suffix(".html") in site
    for path, text in site.items():
        loaded = re.findall(r"<(?:script|img|iframe)\b[^>]*\bsrc=\"([^\"]+)", text)
        loaded += re.findall(r"<link\b[^>]*\bhref=\"([^\"]+)", text)
        assert [url for url in loaded if re.match(r"(?:https?:)?//", url)] == [], path
    styles = [file.read_text(encoding="utf-8") for file in (tmp_path / "site").rglob("*.css")]
    assert [
        line for text in styles for line in re.findall(r"(?:@import|url\()[^;)]*//[^;)]*", text) if "data:" not in line
    ] == []
    api = site[Path("api.html")]
    for name in nt.__all__:
        assert f'id="noisyteacher.{name}"' in api or f'.{name}"' in api, name
