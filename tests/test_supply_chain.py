"""What is installed: locked by hashes, at the stated versions, under licences that allow what this project's allows."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
SECTIONS = ("make demo", "make test", "other extras")
UNLOCKED = ("mlflow", "wandb", "litert")
"""Extras that the lock leaves out: dozens of packages for what tests replace by stand-ins; a conflict with others."""
BUILT_WITH = {"setuptools", "wheel"}
PERMISSIVE = re.compile(
    r"MIT|BSD|Apache|ISC|Python Software Foundation|PSF|MPL-2\.0|Mozilla Public License 2\.0"
    r"|Unlicense|CC0|HPND|Zlib|0BSD"
)
LOOKED_AT = {
    "docutils",  # its GPL part is a mode for Emacs, which is not installed; it builds the documentation
    "atheris",  # its metadata are silent; the licence file in it is Apache-2.0; used by tests
}
COPYLEFT = re.compile(r"GPL|General Public|AGPL|SSPL|EUPL|Commercial|Proprietary", re.IGNORECASE)
ENTRY = re.compile(r"^([a-z0-9-]+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", re.MULTILINE)


def locked(section: str) -> dict[str, str]:
    """Package -> version of a section of the lock; every line of it must belong to a package with hashes."""
    body = (ROOT / "requirements.lock").read_text().partition(f"# {section}\n")[2].partition("\n#")[0].strip()
    packages = {entry[1]: entry[2] for entry in ENTRY.finditer(body)}
    assert ENTRY.sub("", body).strip() == ""
    return packages


def licence(name: str) -> str:
    """What a package says of its licence: the expression, else its classifiers, else the free text's first line."""
    about = metadata.metadata(name)
    classifiers = about.get_all("Classifier") or []
    classified = "; ".join(text.split(" :: ")[-1] for text in classifiers if text.startswith("License"))
    free = next(iter((about.get_all("License") or [""])[0].strip().splitlines()), "")
    return next(iter(about.get_all("License-Expression") or []), "") or classified or free


def test_every_package_is_locked_once() -> None:
    sections = [locked(section) for section in SECTIONS]
    assert [len(section) > 20 for section in sections] == [True, True, True]
    names = [name for section in sections for name in section]
    assert len(names) == len(set(names)) == (ROOT / "requirements.lock").read_text().count("==")


def test_the_locked_versions_are_within_the_ranges_of_pyproject() -> None:
    """pyproject.toml is the one place for ranges, the lock the one for versions."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ranges = {"base": project["dependencies"], **project["optional-dependencies"]}
    unlocked = {name: ranges.pop(name) for name in UNLOCKED}
    versions = {name: version for section in SECTIONS for name, version in locked(section).items()}
    for text in (line for lines in ranges.values() for line in lines):
        requirement = Requirement(text)
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), text
    assert {canonicalize_name(Requirement(text).name) for text in ranges["base"]} <= locked("make demo").keys()
    for name, lines in unlocked.items():
        assert not {canonicalize_name(Requirement(text).name) for text in lines} & versions.keys(), name


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the lock is for Python 3.11")
def test_no_package_takes_freedom_away() -> None:
    packages = (locked("make demo") | locked("make test")).keys() - BUILT_WITH - LOOKED_AT
    licences = {name: licence(name) for name in packages}
    assert {k: text for k, text in licences.items() if not PERMISSIVE.search(text) or COPYLEFT.search(text)} == {}


def test_a_licence_that_takes_freedom_away_would_be_seen() -> None:
    for text in ("GPL-3.0-only", "GNU General Public License v3", "MIT AND AGPL-3.0"):
        assert COPYLEFT.search(text)
    assert not PERMISSIVE.search("see the vendor's terms")
