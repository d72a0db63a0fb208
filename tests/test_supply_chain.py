"""What is installed: locked by hashes, at the stated versions, under licences that allow what this project's allows."""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ("base", "dev")
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


def locked(name: str) -> dict[str, str]:
    """Package -> version of a lock file; every line of it must belong to a package with hashes."""
    text = (ROOT / "locked" / f"{name}.txt").read_text()
    body = "\n".join(line for line in text.splitlines() if not line.startswith("#")).strip()
    found = {entry[1]: entry[2] for entry in ENTRY.finditer(body)}
    assert ENTRY.sub("", body).strip() == ""
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def licence(name: str) -> str:
    """What a package says of its licence: the expression, else its classifiers, else the free text's first line."""
    about = metadata.metadata(name)
    classified = [one.split(" :: ")[-1] for one in about.get_all("Classifier") or [] if one.startswith("License")]
    free = (about.get("License") or "").strip().splitlines()
    return about.get("License-Expression") or "; ".join(classified) or (free[0] if free else "")


@pytest.mark.parametrize("name", LOCKS)
def test_locked_versions_are_those_tested_with(name: str) -> None:
    pinned = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"
    )
    pinned = {normal(one): version.strip() for one, version in pinned.items()}
    found = locked(name)
    assert len(found) > 30
    wrong = {one: v for one, v in found.items() if v.partition("+")[0] != pinned.get(one) and one not in BUILT_WITH}
    assert wrong == {}


BUILT_WITH = {"setuptools", "wheel"}


def test_what_make_demo_installs_is_part_of_what_make_test_does() -> None:
    base, dev = locked("base"), locked("dev")
    assert base.items() <= dev.items()


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="locked/ is for Python 3.11")
def test_no_package_takes_freedom_away() -> None:
    found = {name: licence(name) for name in locked("dev") if name not in BUILT_WITH | LOOKED_AT}
    assert {name: said for name, said in found.items() if not PERMISSIVE.search(said) or COPYLEFT.search(said)} == {}


def test_a_licence_that_takes_freedom_away_would_be_seen() -> None:
    for said in ("GPL-3.0-only", "GNU General Public License v3", "MIT AND AGPL-3.0"):
        assert COPYLEFT.search(said)
    assert not PERMISSIVE.search("see the vendor's terms")
