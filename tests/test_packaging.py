"""What an index would serve: both distributions, built from the checkout, and what their metadata state."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_string
from email.message import Message
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
FOLDERS = (".ci", "benchmarks", "docs", "examples", "scripts", "src", "tests")
FILES = (
    "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "SECURITY.md", "pyproject.toml",
    "requirements.lock", "MANIFEST.in", ".gitignore",
)  # fmt: skip
MADE = shutil.ignore_patterns("__pycache__", "*.pyc", "*.egg-info", ".*_cache")
BUILD = "from setuptools import build_meta; build_meta.build_{}('../dist')"


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout's files, as git would give it."""
    copy = tmp_path_factory.mktemp("packaging") / "checkout"
    for name in FOLDERS:
        shutil.copytree(ROOT / name, copy / name, ignore=MADE)
    shutil.rmtree(copy / "benchmarks" / "results", ignore_errors=True)
    for name in FILES:
        shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture(scope="module")
def sdist(checkout: Path) -> Path:
    copy = checkout.with_name("built")
    shutil.copytree(checkout, copy)
    subprocess.run([sys.executable, "-c", BUILD.format("sdist")], cwd=copy, check=True, capture_output=True)
    (archive,) = (checkout.parent / "dist").glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def wheel(checkout: Path, sdist: Path) -> Path:
    """The wheel, built from the source distribution as pip would."""
    with tarfile.open(sdist) as files:
        files.extractall(checkout.parent, filter="data")
    unpacked = checkout.with_name(sdist.name.removesuffix(".tar.gz"))
    subprocess.run([sys.executable, "-c", BUILD.format("wheel")], cwd=unpacked, check=True, capture_output=True)
    (archive,) = sdist.parent.glob("*.whl")
    return archive


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as files:
        (name,) = (name for name in files.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_string(files.read(name).decode())


def test_the_source_distribution_holds_the_checkout_alone(checkout: Path, sdist: Path) -> None:
    with tarfile.open(sdist) as files:
        names = {member.name.partition("/")[2] for member in files if member.isfile()}
    assert {name for name in names if ".egg-info/" not in name} - {"PKG-INFO", "setup.cfg"} == files_below(checkout)


def test_the_wheel_holds_the_package_alone(checkout: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as files:
        names = {name for name in files.namelist() if ".dist-info/" not in name}
        (entry_points,) = (files.read(name) for name in files.namelist() if name.endswith("entry_points.txt"))
    assert names == files_below(checkout / "src")
    assert b"noisyteacher = noisyteacher.cli:main" in entry_points
    assert wheel.stat().st_size < 7_000_000


def test_the_metadata_are_complete_and_true(metadata: Message) -> None:
    assert metadata["Name"] == PROJECT["project"]["name"] == "noisyteacher"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Author"]
    assert metadata["Summary"] in README.replace("\n", " ")
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload() == README
    urls = [text.split(", ")[1] for text in metadata.get_all("Project-URL", [])]
    assert urls
    assert all(url.startswith("https://") and url in README for url in urls)
    assert not [text for text in metadata.get_all("Classifier", []) if text.startswith("License ::")]


def test_every_file_names_the_same_lowest_python(metadata: Message) -> None:
    lowest = metadata["Requires-Python"].removeprefix(">=")
    assert f"Programming Language :: Python :: {lowest}" in metadata.get_all("Classifier", [])
    tools = PROJECT["tool"]
    assert (tools["mypy"]["python_version"], tools["ruff"]["target-version"]) == (
        lowest,
        f"py{lowest.replace('.', '')}",
    )
    assert f"Python {lowest} or newer" in README


def test_every_extra_that_a_page_or_message_names_exists(metadata: Message) -> None:
    texts = [README, *(path.read_text(encoding="utf-8") for path in (ROOT / "docs").rglob("*.md"))]
    texts += [path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py")]
    extras = {name for text in texts for name in re.findall(r"noisyteacher\[([a-z]+)\]", text)}
    assert {"zoo", "export", "cluster"} <= extras <= set(metadata.get_all("Provides-Extra", []))


def test_no_range_excludes_what_is_newer() -> None:
    """An upper bound would make pip replace packages of an environment that others share."""
    assert [text for text in PROJECT["project"]["dependencies"] if re.search("[<~]|==", text)] == []


def test_the_lowest_versions_are_the_lower_bounds() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "lowest.py")]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    lowest = dict(line.split("==") for line in lines)
    dependencies = dict(text.split(">=") for text in PROJECT["project"]["dependencies"])
    assert dependencies.items() <= lowest.items()
    assert "timm" in lowest
    assert "pytest" not in lowest
