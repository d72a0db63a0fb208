"""The floors of docs/architecture.md, held by the code: imports go down or stay on a floor, never in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "noisyteacher"
FLOORS = (
    ("cli", "__main__"),
    ("paper", "report"),
    ("sweep",),
    ("pipeline",),
    ("train", "export", "measure"),
    ("data", "models", "store", "runs", "teachers", "objectives", "evaluate", "classify",
     "data_check", "extract"),
    (
        "noise", "losses", "metrics", "stats", "rng", "device", "distributed", "process", "progress",
        "bench", "config", "io", "tables", "text", "errors",
    ),
)  # fmt: skip
"""From the top. A name is a module or a folder of the package."""
WITHOUT_TORCH = {"__main__", "cli", "config", "errors", "text", "stats", "process", "progress", "tables"}
MAX_DEPTH_OF_A_FOLDER = 4
DEEPER = {"data": 5, "models": 6}
"""Folders that are still deeper than they should be: lower these numbers, never raise them."""


def module_name(path: Path) -> str:
    """`data.split` of src/noisyteacher/data/split.py; a folder's own name of its `__init__`."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py"}


def imports(path: Path, *, deferred: bool = True) -> Iterable[tuple[int, str]]:
    """Line and name of everything that a module imports, unless not wanted also inside functions."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if deferred else tree.body:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for name in node.names:
                inner = f"{node.module}.{name.name}"
                yield node.lineno, inner if inner.removeprefix("noisyteacher.") in MODULES else node.module


def floor_of(module: str) -> int:
    return next(number for number, names in enumerate(FLOORS) if module.split(".")[0] in names)


def violations(module: str, path: Path) -> list[str]:
    """Imports of a module that go up, and of torch where there is to be none."""
    problems = []
    for line, name in imports(path):
        package, _, inner = name.partition(".")
        if package == "noisyteacher" and inner and floor_of(inner) < floor_of(module):
            problems.append(f"{module}:{line} imports {inner} from a higher floor")
        if package == "torch" and module.split(".")[0] in WITHOUT_TORCH:
            problems.append(f"{module}:{line} imports torch")
    return problems


def graph(prefix: str = "") -> dict[str, set[str]]:
    """Module -> the modules of the package that it imports when it is loaded, within a folder if one is named."""
    return {
        module: {
            inner
            for _, name in imports(path, deferred=False)
            if (inner := name.removeprefix("noisyteacher.")) in MODULES and inner != module and inner.startswith(prefix)
        }
        for module, path in MODULES.items()
        if module.startswith(prefix)
    }


def depth(edges: dict[str, set[str]]) -> int:
    """The number of floors of a graph without circles: the length of its longest path."""
    depths: dict[str, int] = {}
    for module in TopologicalSorter(edges).static_order():
        depths[module] = 1 + max((depths[below] for below in edges.get(module, ())), default=0)
    return max(depths.values())


def test_every_module_has_a_floor() -> None:
    assert {module.split(".")[0] for module in MODULES} <= {name for names in FLOORS for name in names}


def test_imports_go_down() -> None:
    assert [line for module, path in MODULES.items() for line in violations(module, path)] == []


def test_no_module_imports_itself_by_way_of_others() -> None:
    tuple(TopologicalSorter(graph()).static_order())


@pytest.mark.parametrize("folder", sorted(path.parent.name for path in SOURCE.glob("*/__init__.py")))
def test_a_folder_has_few_floors(folder: str) -> None:
    height = depth(graph(f"{folder}."))
    assert height <= DEEPER.get(folder, MAX_DEPTH_OF_A_FOLDER)
    assert folder not in DEEPER or height > MAX_DEPTH_OF_A_FOLDER, "no exception is needed any more"


def test_a_violation_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "errors.py"
    path.write_text("from noisyteacher.train import fit\nimport torch\nfrom noisyteacher import evaluate\n")
    assert len(violations("errors", path)) == 3
    with pytest.raises(CycleError):
        tuple(TopologicalSorter({"a": {"b"}, "b": {"a"}}).static_order())
    assert depth({"a": {"b"}, "b": {"c"}, "c": set()}) == 3
