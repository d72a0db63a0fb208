"""The layers of docs/architecture.md, held by the code: imports only go down, siblings do not know each other."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "noisyteacher"
LAYERS = [
    {"__main__"},
    {"cli"},
    {"paper"},
    {"sweep", "report"},
    {"pipeline"},
    {"export"},
    {"train", "extract", "measure"},
    {"checkpoint", "events", "history", "optimizers", "refusals", "validation"},
    {"evaluate", "objectives"},
    {"teachers"},
    {"data", "models", "store", "runs"},
    {"tensorfile", "noise", "losses", "metrics", "schedule", "modes", "muon"},
    {"rng", "device", "ranks", "stopwatch"},
    {"allocator", "files", "stats", "config", "references", "pixels", "workers", "launch", "progress"},
    {"locks"},
    {"text", "strictjson"},
    {"errors"},
]
WITHOUT_TORCH = {
    "__main__",
    "cli",
    "references",
    "errors",
    "allocator",
    "files",
    "locks",
    "stats",
    "config",
    "text",
    "pixels",
    "progress",
    "workers",
    "launch",
    "strictjson",
}
PLACE = {name: number for number, names in enumerate(LAYERS) for name in names}


def module_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path) -> list[tuple[int, str]]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, name.name) for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            found += [(node.lineno, f"{base}.{name.name}" if base == "noisyteacher" else base) for name in node.names]
    return found


def violations(path: Path) -> list[str]:
    here = module_of(path)
    found = []
    for line, name in imports(path):
        if name.startswith("noisyteacher."):
            there = name.split(".")[1]
            if there not in PLACE and there == "__version__":
                continue
            if there != here and PLACE[there] <= PLACE[here]:
                found.append(f"{path.name}:{line}: {here} imports {there}, which is not below it")
        elif name.split(".")[0] == "torch" and here in WITHOUT_TORCH:
            found.append(f"{path.name}:{line}: {here} imports torch")
    return found


def sources() -> list[Path]:
    return sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


def test_every_module_has_its_layer() -> None:
    assert {module_of(path) for path in sources()} == set(PLACE)


def test_imports_go_down() -> None:
    assert [line for path in sources() for line in violations(path)] == []


def test_a_violation_would_be_seen(tmp_path: Path) -> None:
    bad = SOURCE / "files.py"
    assert violations(bad) == []
    text = "from noisyteacher.train import fit\nimport torch\nfrom noisyteacher import evaluate\n"
    tree = tmp_path / "files.py"
    tree.write_text(text)
    here = globals()["SOURCE"]
    try:
        globals()["SOURCE"] = tmp_path
        assert len(violations(tree)) == 3
    finally:
        globals()["SOURCE"] = here


def test_only_files_writes() -> None:
    """`files` is the one module that opens a file for writing."""
    writers = []
    for path in sources():
        if module_of(path) == "files":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            name = node.func.attr if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else ""
            if name in ("write_text", "save", "savez", "dump") or (name == "write_bytes" and _of_a_path(node)):
                writers.append(f"{path.name}:{node.lineno}: {name}")  # type: ignore[attr-defined]
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open":
                writers.append(f"{path.name}:{node.lineno}: open")
    # safetensors.torch.save returns bytes, torch.export.save writes into a buffer in memory
    allowed = ("tensorfile.py", "weights.py", "to_pt2.py")
    assert [line for line in writers if not line.startswith(allowed)] == []


def _of_a_path(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
