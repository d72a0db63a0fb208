"""Settings checked against their dataclasses by pydantic, with every problem as a sentence that names its key."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from noisyteacher.errors import ConfigError
from noisyteacher.text import nearest

MAX_SHOWN = 200
"""Characters of a value that a message shows."""
T = TypeVar("T")
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = MAX_SHOWN
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 20


def validated(kind: type[T], values: Mapping[str, Any], other_problems: Iterable[str] = ()) -> T:
    """An instance of a settings dataclass with these values.

    Raises one ConfigError with every problem, and with those that were found elsewhere.
    """
    problems = list(other_problems)
    try:
        settings = TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        problems = [*(_sentence(kind, problem) for problem in _most_helpful(error.errors())), *problems]
        raise config_error(problems) from error
    if problems:
        raise config_error(problems)
    return settings


def config_error(problems: Iterable[str]) -> ConfigError:
    """One error that lists all problems, each once."""
    listed = list(dict.fromkeys(problems))
    if len(listed) == 1:
        return ConfigError(listed[0])
    return ConfigError(f"{len(listed)} settings are wrong:\n" + "\n".join(f"  {problem}" for problem in listed))


def shown(value: Any) -> str:
    """A value as a message shows it: `repr`, cut if it is long. `shown("a") == "'a'"`."""
    text = _SHORT.repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _key(problem: Any) -> tuple[str, ...]:
    """The path of the setting, without pydantic's names for the branches of a union."""
    path = [part if len(part) <= MAX_SHOWN else f"{part[:MAX_SHOWN]}..." for part in map(str, problem["loc"])]
    if "options" in path:  # options.NAME.TYPE
        return tuple(path[: path.index("options") + 2])
    branches = ("constrained", "tuple[", "float", "list[", "literal[")
    return tuple(part for part in path if not part.startswith(branches))


def _most_helpful(problems: list[Any]) -> list[Any]:
    """One problem per setting: of the complaints of all branches of a union, the one that helps most."""
    by_key: dict[tuple[str, ...], list[Any]] = {}
    for problem in problems:
        by_key.setdefault(_key(problem), []).append(problem)
    # [0.1] is no number, but above all it lacks its second half: the inner complaint says more
    inner = {key[:-1] for key in by_key}
    return [_merged(key, group) for key, group in by_key.items() if key not in inner]


def _merged(key: tuple[str, ...], problems: list[Any]) -> Any:
    if len(problems) == 1:
        return problems[0]
    if "options" in key:
        return problems[0] | {"msg": "Expected a number, true, false or text", "type": "union"}
    literals = [problem for problem in problems if problem["type"] == "literal_error"]
    if literals and isinstance(literals[0]["input"], str):
        return literals[0] | {"msg": f"Expected a number or {literals[0]['ctx']['expected']}", "type": "union"}
    return next(problem for problem in problems if problem["type"] not in ("tuple_type", "literal_error"))


def _sentence(kind: type, problem: Any) -> str:
    """A pydantic problem as `key: what was given and what was expected`."""
    path = _key(problem)
    key = ".".join(path)
    if problem["type"] == "unexpected_keyword_argument":
        *parents, wrong = path
        names = [field.name for field in fields(_nested(kind, parents))]
        suggestion = nearest(wrong, names)
        hint = f"did you mean {'.'.join([*parents, suggestion])!r}?" if suggestion else f"known are {', '.join(names)}"
        return f"{key}: unknown setting; {hint}"
    if problem["type"] in ("dataclass_type", "dataclass_exact_type"):
        return f"{key}: given {shown(problem['input'])}, expected a table of settings ([{key}] in TOML)"
    message = problem["msg"][0].lower() + problem["msg"][1:]
    expected = problem.get("ctx", {}).get("expected")
    if problem["type"] == "literal_error" and expected:
        suggestion = nearest(str(problem["input"]), expected.replace("'", "").replace(" or ", ", ").split(", "))
        message = f"expected {expected}" + (f"; did you mean {suggestion!r}?" if suggestion else "")
    return f"{key}: given {shown(problem['input'])}; {message}"


def _nested(kind: type, path: list[str]) -> Any:
    for name in path:
        kind = get_type_hints(kind)[name]
    return kind
