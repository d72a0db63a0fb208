"""Write requirements.lock: every package that this project installs, with the SHA-256 of its files.

    python scripts/lock.py [--upgrade]

One section for `make demo`, one for what `make test` needs besides, one for the remaining extras. Versions stay as
the lock has them, within the ranges of pyproject.toml; `--upgrade` takes the newest. Hashes are those of the wheels
that the package index has of a version for this Python, and of the file that pip chooses here. Of torch only the build
for CPUs is taken: the one on the index brings gigabytes of CUDA.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from packaging.tags import sys_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
INDEX = "https://pypi.org/simple"
BUILD = ["setuptools>=77", "wheel"]
TESTED = "dev,track,cluster,zoo,prune,hf,export,docs"
SECTIONS = {"make demo": ".", "make test": f".[{TESTED}]", "other extras": f".[{TESTED},data,mobile]"}
CPU_ONLY = {"torch"}
HEAD = """\
# Written by scripts/lock.py: Python 3.11 on Linux x86-64, CPU. pip takes no file whose SHA-256 is not listed here.
# Other platforms install the same versions without the hashes.
"""


def resolve(requirement: str, constraints: Path | None) -> dict[str, tuple[str, str]]:
    """What pip would install into an empty environment: name -> version and SHA-256 of the file."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-"]
    environment = {**os.environ, **({} if constraints is None else {"PIP_CONSTRAINT": str(constraints)})}
    output = subprocess.run([*command, requirement, *BUILD], check=True, capture_output=True, env=environment, cwd=ROOT)
    text = output.stdout.decode()
    packages = {}
    for package in json.loads(text[text.index("{") :])["install"]:
        archive = package["download_info"].get("archive_info")
        if archive is not None:
            metadata = package["metadata"]
            packages[canonicalize_name(metadata["name"])] = metadata["version"], archive["hashes"]["sha256"]
    return packages


def published(name: str, version: str) -> set[str]:
    """SHA-256 of the wheels of this version on the index that this Python could install."""
    request = urllib.request.Request(f"{INDEX}/{name}/", headers={"Accept": "application/vnd.pypi.simple.v1+json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        files = json.load(answer)["files"]
    hashes, supported = set(), set(sys_tags())
    for file in files:
        if not file["filename"].endswith(".whl") or file.get("yanked"):
            continue
        try:
            _, wheel_version, _, tags = parse_wheel_filename(file["filename"])
        except InvalidWheelFilename:
            continue
        if wheel_version == Version(version) and tags & supported:
            hashes.add(file["hashes"]["sha256"])
    return hashes


def entry(name: str, version: str, sha256: str) -> str:
    """A package's lines in the lock."""
    hashes = {sha256} if name in CPU_ONLY else {sha256, *published(name, version.partition("+")[0])}
    return " \\\n".join([f"{name}=={version}", *(f"    --hash=sha256:{value}" for value in sorted(hashes))])


def main() -> None:
    """Write the lock."""
    with tempfile.TemporaryDirectory() as folder:
        constraints = None
        if LOCK.exists() and "--upgrade" not in sys.argv:
            constraints = Path(folder) / "constraints.txt"
            constraints.write_text("\n".join(re.findall(r"^[\w-]+==[^\s+]+", LOCK.read_text(), re.MULTILINE)))
        text, locked = HEAD, set[str]()
        for title, requirement in SECTIONS.items():
            packages = resolve(requirement, constraints)
            lines = [entry(name, *packages[name]) for name in sorted(packages.keys() - locked)]
            text += "\n".join([f"\n# {title}", *lines, ""])
            locked |= packages.keys()
    LOCK.write_text(text, encoding="utf-8")
    print(f"{LOCK}: {len(locked)} packages")


if __name__ == "__main__":
    main()
