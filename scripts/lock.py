"""Write locked/base.txt and locked/dev.txt: every package that `make` installs, with the SHA-256 of its files.

    python scripts/lock.py

The versions are those of constraints.txt; the hashes are those of the wheels that the package index has of a version
for this Python, and of the file that pip chooses here. Of torch only the build for CPUs is taken: the one on the index
brings gigabytes of CUDA.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

from packaging.tags import sys_tags
from packaging.utils import InvalidWheelFilename, parse_wheel_filename
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
INDEX = "https://pypi.org/simple"
BUILD = ["setuptools>=77", "wheel"]
EXTRAS = "dev,track,cluster,zoo,hf,export,docs"
CPU_ONLY = {"torch"}
HEAD = """\
# Written by scripts/lock.py from constraints.txt: what {what} installs, for Python 3.11 on Linux x86-64, CPU.
# pip takes no file whose SHA-256 is not listed here.
"""


def chosen(*wanted: str) -> dict[str, tuple[str, str]]:
    """What pip would install into an empty environment: name -> version and SHA-256 of the file."""
    words = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--dry-run",
        "--ignore-installed",
        "--report",
        "-",
        *wanted,
    ]
    environment = {**os.environ, "PIP_CONSTRAINT": str(ROOT / "constraints.txt")}
    report = subprocess.run(words, check=True, capture_output=True, text=True, env=environment, cwd=ROOT).stdout
    found = {}
    for one in json.loads(report[report.index("{") :])["install"]:
        archive = one["download_info"].get("archive_info")
        if archive is not None:
            found[normal(one["metadata"]["name"])] = one["metadata"]["version"], archive["hashes"]["sha256"]
    return found


def published(name: str, version: str) -> set[str]:
    """SHA-256 of the wheels of this version on the index that this Python could install."""
    asked = urllib.request.Request(f"{INDEX}/{name}/", headers={"Accept": "application/vnd.pypi.simple.v1+json"})
    with urllib.request.urlopen(asked, timeout=60) as answer:
        files: list[dict[str, Any]] = json.load(answer)["files"]
    here, found = set(sys_tags()), set()
    for one in files:
        if one["filename"].endswith(".whl") and not one.get("yanked"):
            try:
                _, other, _, tags = parse_wheel_filename(one["filename"])
            except InvalidWheelFilename:
                continue
            if other == Version(version) and tags & here:
                found.add(one["hashes"]["sha256"])
    return found


def normal(name: str) -> str:
    """The name as the index spells it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def written(packages: dict[str, tuple[str, str]], what: str) -> str:
    """The text of a requirements file with hashes."""
    lines = [HEAD.format(what=what)]
    for name, (version, own) in sorted(packages.items()):
        hashes = {own} if name in CPU_ONLY else {own, *published(name, version.partition("+")[0])}
        lines.append(f"{name}=={version} \\")
        lines += [f"    --hash=sha256:{one} \\" for one in sorted(hashes)]
        lines[-1] = lines[-1].removesuffix(" \\")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write both files."""
    out = ROOT / "locked"
    out.mkdir(exist_ok=True)
    for file, what, wanted in (("base.txt", "`make demo`", "."), ("dev.txt", "`make test`", f".[{EXTRAS}]")):
        packages = chosen(wanted, *BUILD)
        (out / file).write_text(written(packages, what), encoding="utf-8")
        print(f"{out / file}: {len(packages)} packages")


if __name__ == "__main__":
    main()
