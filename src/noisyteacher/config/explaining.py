"""What each setting means, read off the settings themselves, and a file with all of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Literal, get_type_hints

from pydantic import TypeAdapter

from noisyteacher.config.settings import PRESETS, Config, governed
from noisyteacher.text import unknown_name


def explain(kind: type = Config, prefix: str = "") -> Iterator[tuple[str, str, Any, str]]:
    """Every setting as (dotted key, type, default, docstring), in order; values of presets stand in the docstring."""
    hints = get_type_hints(kind, include_extras=True)
    for one in fields(kind):
        inner = hints[one.name]
        if is_dataclass(inner) and isinstance(inner, type):
            yield from explain(inner, f"{prefix}{one.name}.")
        else:
            default = getattr(kind(), one.name)
            decided = governed(prefix.removesuffix(".")).get(one.name, [])
            presets = "".join(f" Preset {name}: {as_toml(value)}." for name, value in decided)
            yield f"{prefix}{one.name}", type_name(inner), default, field_docs(kind)[one.name] + presets


def type_name(hint: Any) -> str:
    """A type as a person reads it. `type_name(int | None) == "whole number or empty"`."""
    origin = getattr(hint, "__origin__", None)
    if hasattr(hint, "__metadata__"):
        return type_name(hint.__origin__)
    if origin is Literal:
        return " | ".join(map(str, hint.__args__))
    if origin is list:
        return {"text": "list of text"}.get(inner := type_name(hint.__args__[0]), f"list of {inner}s")
    if origin is dict:
        return "table"
    if origin is tuple:
        return "[low, high]"
    if hasattr(hint, "__args__"):
        return " or ".join(type_name(one) for one in hint.__args__)
    names = {int: "whole number", float: "number", str: "text", bool: "true | false", type(None): "empty"}
    return names.get(hint, str(hint))


@cache
def field_docs(kind: type) -> dict[str, str]:
    """The docstring under each field of a settings dataclass, inherited fields included."""
    docs: dict[str, str] = {}
    for owner in reversed([base for base in kind.__mro__ if is_dataclass(base)]):
        properties = TypeAdapter(owner).json_schema()["properties"]
        docs |= {
            name: " ".join(schema["description"].split())
            for name, schema in properties.items()
            if "description" in schema
        }
    return docs


def template(preset: str = "standard") -> str:
    """A TOML file with every setting and its meaning; `build_config` accepts it unchanged.

    Teacher and student have this preset. What presets decide is commented out, at the value it has by this one: named,
    it would win over the preset. Raises UnknownNameError for another preset.
    """
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    lines, part = ["# noisyteacher compress CONFIG"], ""
    for key, kind, default, doc in explain():
        table, name = key.split(".", 1)
        if table != part:
            part = table
            lines += ["", f"[{table}]"]
        if name == "preset":
            default = preset
        decided = name in governed(table)
        value = PRESETS[preset][table].get(name, default) if decided else default
        words = f"{kind}; by the preset unless named here" if decided else kind
        lines += [f"# {doc} ({words})", f"{'# ' if decided or value is None else ''}{name} = {as_toml(value)}"]
    return "\n".join(lines) + "\n"


def as_toml(value: Any) -> str:
    """A setting's value as a TOML file has it; `""` for an empty one."""
    if value is None:
        return '""'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {as_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value)
