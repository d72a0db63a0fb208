"""Print the test files to run for the uncommitted changes: those that changed, and those that import a changed module.

`make check` runs them; without changes, the test of the import graph alone. `make test` runs everything.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Print the paths, separated by spaces."""
    commands = (["git", "diff", "--name-only", "HEAD"], ["git", "ls-files", "--others", "--exclude-standard"])
    outputs = [subprocess.run(words, check=True, capture_output=True, text=True, cwd=ROOT).stdout for words in commands]
    changed = [path for output in outputs for path in output.split()]
    modules = {
        ".".join(Path(path).with_suffix("").parts[1:]).removesuffix(".__init__")
        for path in changed
        if path.startswith("src/") and path.endswith(".py")
    }
    tests = {"tests/test_layers.py"}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        name, text = str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
        if name in changed or any(f"{module} import" in text for module in modules):
            tests.add(name)
    print(*sorted(tests))


if __name__ == "__main__":
    main()
