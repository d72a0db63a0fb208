"""Write docs/cli.md and docs/config.md from the code they describe: python scripts/make_reference.py [--check]

With --check nothing is written; the exit code is 1 when a page differs from what would be.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

from noisyteacher.cli import COMMANDS, build_command
from noisyteacher.config import explain
from noisyteacher.config.load import as_toml
from noisyteacher.config.schema import Config

DOCS = Path(__file__).resolve().parents[1] / "docs"
MADE = "<!-- Made by scripts/make_reference.py from the code. Edit the code, then run the script. -->"
CODES = """\
| code | meaning |
|---|---|
| 0 | done |
| 1 | failed: the message on stderr says what, and what to do |
| 2 | usage error: nothing was started, or stored files do not fit; the message says which |
| 3 | done, but a check did not hold, such as a cell of a sweep that failed |
| 130, 143 | interrupted by SIGINT or SIGTERM; `--resume` goes on |
"""


def cell(text: str) -> str:
    """The text as one cell of a Markdown table, its words kept from being read as markup."""
    return re.sub(r"([|<>*_\[\]])", r"\\\1", " ".join(text.split()))


def code(text: str) -> str:
    """The text as code in a cell of a Markdown table."""
    return f"`{text}`".replace("|", "\\|")


def name_of(parameter: Any) -> str:
    """How an argument or an option is written on the command line."""
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name.upper())
    flags = " / ".join(filter(None, (", ".join(parameter.opts), ", ".join(parameter.secondary_opts))))
    if parameter.is_flag or parameter.is_bool_flag:
        return flags
    kinds = {int: "N", float: "X", Path: "PATH"}
    return f"{flags} {parameter.metavar or kinds.get(parameter.type_descriptor.annotation, 'TEXT')}"


def default_of(parameter: Any) -> str:
    """The default as it would be typed; empty where there is none, or where the settings have it."""
    if parameter.required:
        return "needed"
    if parameter.default in (None, False, ()) or callable(parameter.default):
        return ""
    return code("on" if parameter.default is True else str(parameter.default))


def commands() -> Iterator[tuple[str, Any]]:
    """Every command and group with its full name, a group before its commands."""
    for name in COMMANDS:
        command = build_command(name)
        yield f"noisyteacher {name}", command
        for key, inner in getattr(command, "commands", {}).items():
            yield f"noisyteacher {name} {key}", inner


def command_section(name: str, command: Any) -> list[str]:
    """A command's heading, what it does, an example, and its arguments and options."""
    if hasattr(command, "commands"):
        return [f"## {name}", "", command.help.strip(), ""]
    text, *examples = command.help.strip().split("Example: ")
    lines = [f"{'###' if name.count(' ') > 1 else '##'} {name}", ""]
    lines += [cell(part) + "\n" for part in text.strip().split("\n\n")]
    if examples:
        lines += ["```console", *(f"$ {' '.join(example.split())}" for example in examples), "```", ""]
    lines += ["| argument or option | meaning | default |", "|---|---|---|"]
    for parameter in command.params:
        if not parameter.hidden:
            lines.append(f"| {code(name_of(parameter))} | {cell(parameter.help or '')} | {default_of(parameter)} |")
    return [*lines, ""]


def cli_page() -> str:
    """docs/cli.md."""
    lines = ["# Command line", "", MADE, ""]
    lines += ["Results go to stdout, progress to stderr; `--json` prints results for machines. An option without a"]
    lines += ["default takes it from the [settings](config.md). `--help` says the same as this page.", "", CODES]
    for name, command in commands():
        lines += command_section(name, command)
    return "\n".join(lines).rstrip() + "\n"


def config_page() -> str:
    """docs/config.md."""
    lines = ["# Settings", "", MADE, ""]
    lines += [
        "Every setting of `compress`, `train`, `distil` and `sweep`. They are in a TOML file (`noisyteacher config",
        "init` writes one with all of them), or are given as `--set KEY=VALUE`, or as a flag of the",
        "[command line](cli.md). The file comes first, then flags, then `--set`. Wrong settings are reported together;",
        "one without effect is refused. `train` takes its recipe from `teacher`, `distil` from `student`.",
        "",
    ]
    about = {name: " ".join((kind.__doc__ or "").split()) for name, kind in get_type_hints(Config).items()}
    part = ""
    for key, kind, default, meaning in explain():
        if key.split(".")[0] != part:
            part = key.split(".")[0]
            lines += [
                "",
                f"## {part}",
                "",
                cell(about[part]),
                "",
                "| setting | type | default | meaning |",
                "|---|---|---|---|",
            ]
        value = "" if default is None else code(as_toml(default))
        lines.append(f"| {code(key)} | {cell(kind)} | {value} | {cell(meaning)} |")
    return "\n".join(lines) + "\n"


PAGES = {"cli.md": cli_page, "config.md": config_page}


def main() -> int:
    """Write the pages, or only compare them."""
    stale = []
    for name, page in PAGES.items():
        file = DOCS / name
        text = page()
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            stale.append(name)
            if "--check" not in sys.argv:
                file.write_text(text, encoding="utf-8")
    checked = "differs from the code: run python scripts/make_reference.py"
    print("\n".join(f"docs/{name} {checked if '--check' in sys.argv else 'written'}" for name in stale) or "up to date")
    return int(bool(stale) and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
