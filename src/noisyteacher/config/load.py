"""From a TOML file, `--set` and grids to a checked Config, and back: what each setting means, a file with all of them.

Every problem is a sentence that begins with the setting's key.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from noisyteacher.config.schema import FLAGS, PRESETS, WITH_MOMENTUM, Config, Flag, Settings, Values
from noisyteacher.errors import ConfigError, FileFormatError
from noisyteacher.io.files import read_bytes
from noisyteacher.text import flat, nearest, unknown_name

MAX_LENGTH = 200
"""Characters of a value that a message shows."""
RANGES = ("greater", "less", "finite", "too_short", "string_too")
"""Beginnings of pydantic's types of errors whose message says what is allowed."""
MAX_BYTES = 2**16
"""Bytes of a settings file that are read at most."""
MOST_HINTS = 50
"""Unknown settings for which the nearest name is looked for."""
DEEPEST = 16
LONG_KEY = re.compile(rf"(?:(?:(?<![\w-])[\w-]++|\"[^\"\n]*+\"|'[^'\n]*+')[ \t]*+\.[ \t]*+){{{DEEPEST + 1}}}")
TOO_DEEP = f"nested deeper than {DEEPEST} levels: no setting is"
TYPES = {int: "whole number", float: "number", str: "text", bool: "true | false", type(None): "empty"}
S = TypeVar("S", bound=Settings)


def build_config(settings: Mapping[str, Any], *, unused_noise: bool = False) -> Config:
    """The Config of nested settings, what they do not name taken from their presets.

    unused_noise: accept settings of a noise whose sigma is 0, as the base of a sweep over sigma has them, or the config
    of a run that is resumed. Raises ConfigError with every problem at once, each naming its key.
    """
    if "sweep" in settings:
        raise ConfigError("sweep: a grid of settings; run the file with: noisyteacher sweep")
    filled = dict(settings)
    for part in ("teacher", "student"):
        table = settings.get(part)
        preset = table.get("preset") if isinstance(table, Mapping) else None
        if isinstance(table, Mapping) and isinstance(preset, str) and preset in PRESETS:
            filled[part] = {**_effective_preset(preset, part, table), **table}
    config = validated(Config, filled)
    problems = [f"{name}: {problem}" for name, problem in config.contradictions()]
    if (unused := config.noise.unused()) and not unused_noise:
        problems.append(
            f"{', '.join(f'noise.{name}' for name in unused)}: no effect without noise (noise.sigma is 0): name its "
            'sigma (--sigma 0.3), let validation choose it (--noise, or noise.sigma = "auto"), or leave this out'
        )
    if problems:
        raise config_error(problems)
    return config


def _effective_preset(preset: str, part: str, named: Mapping[str, Any]) -> Values:
    """What a preset decides for a part, without what would have no effect beside the settings that are named."""
    values = dict(PRESETS[preset][part])
    optimizer = named.get("optimizer", values.get("optimizer"))
    unused = {"steps"} if "epochs" in named else set()
    unused |= {"momentum"} if optimizer not in WITH_MOMENTUM else set()
    if optimizer in ("muon", "auto") or named.get("weight_decay", 1) == 0:
        unused.add("decay_biases")
    return {name: value for name, value in values.items() if name not in unused}


def drop_unused(table: Values, part: str, varied: Collection[str]) -> None:
    """Take out of a part's table what its preset decided and what has no effect beside the settings that vary.

    A table that a sweep has recorded names all settings, those of its preset too.
    """
    preset = PRESETS.get(str(table.get("preset")), {}).get(part, {})
    named = {name: table[name] for name in ("optimizer", "weight_decay", *varied) if name in table}
    used = _effective_preset(table["preset"], part, named) if preset else {}
    for name in preset.keys() - used.keys() - {*varied}:
        if name in table and table[name] == preset[name]:
            del table[name]


def validated(kind: type[S], values: Mapping[str, Any], other_problems: Iterable[str] = (), part: str = "") -> S:
    """Settings of this kind with these values, the defaults for the rest.

    Raises one ConfigError that lists every wrong value, `other_problems` among them. `part` is the table that the keys
    are in. Contradictions are not checked.
    """
    problems = list(other_problems)
    try:
        settings: S = type_adapter(kind).validate_python(dict(values))  # type: ignore[arg-type]
    except ValidationError as error:
        wrong = [f"{part}.{sentence}" if part else sentence for sentence in _sentences(kind, error)]
        raise config_error([*wrong, *problems]) from error
    if problems:
        raise config_error(problems)
    return settings


@cache
def type_adapter(kind: Any) -> TypeAdapter[Any]:
    """Pydantic's adapter of a type, made once: making one takes longer than using it."""
    return TypeAdapter(kind)


def config_error(problems: Iterable[str]) -> ConfigError:
    """One error that lists all problems, each once."""
    distinct = list(dict.fromkeys(problems))
    if len(distinct) == 1:
        return ConfigError(distinct[0])
    return ConfigError("\n  ".join([f"{len(distinct)} settings are wrong:", *distinct]))


def short_repr(value: object) -> str:
    """`repr` of a value, cut to MAX_LENGTH characters."""
    text = repr(value)
    return text if len(text) <= MAX_LENGTH else f"{text[:MAX_LENGTH]}..."


def _sentences(kind: type[Settings], error: ValidationError) -> Iterator[str]:
    """`KEY: given VALUE; expected TYPE`, a sentence for each setting that pydantic complains about."""
    types = {key: name for key, name, *_ in explain(kind)}
    types |= {key.partition(".")[0]: "a table of settings" for key in types if "." in key}
    depth = 2 if kind is Config else 1
    details: dict[str, ErrorDetails] = {}
    for detail in error.errors():
        names = [str(name) for name in detail["loc"]]
        key = ".".join(names[:depth])
        key = ".".join(names[: depth + (types.get(key) == "table")])
        if key not in details or detail["type"].startswith(RANGES):
            details[key] = detail
    for number, (key, detail) in enumerate(details.items()):
        value, expected = short_repr(detail["input"]), types.get(key, "a number, true, false or text")
        if detail["type"] == "unexpected_keyword_argument":
            close = nearest(key, types) if number < MOST_HINTS else None
            problem = f"unknown setting; {f'did you mean {close!r}?' if close else 'see: noisyteacher config explain'}"
        elif detail["type"].startswith(RANGES):
            problem = f"given {value}; {detail['msg'][0].lower()}{detail['msg'][1:]}"
        else:
            words = expected.removeprefix("list of ").split(" | ")
            close = nearest(str(detail["input"]), words) if len(words) > 1 else None
            meant = [close] if detail["type"] == "list_type" else close
            problem = f"given {value}; expected {expected}{f'; did you mean {meant!r}?' if close else ''}"
        yield f"{key[:MAX_LENGTH]}: {problem}"


def read_config(path: str | Path | None, overrides: tuple[str, ...] = (), settings: Values | None = None) -> Values:
    """The nested settings of a TOML file with `a.b=c` overrides put in; not yet checked (`build_config` does that).

    Without a file the overrides go into `settings`, or into empty ones. Raises ConfigError naming the file
    and line, or the override, that cannot be read.
    """
    settings = {} if settings is None else settings
    if path is not None:
        try:
            text = read_bytes(path, MAX_BYTES).decode("utf-8-sig")
            if LONG_KEY.search(text):  # tomllib takes minutes for keys of thousands of parts
                raise RecursionError
            settings = tomllib.loads(text)
        except FileFormatError as error:
            raise ConfigError(str(error)) from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: cannot be read: {error}") from error
        except RecursionError as error:
            raise ConfigError(f"{path}: {TOO_DEEP}") from error
        except ValueError as error:  # TOMLDecodeError, or a number of thousands of digits
            raise ConfigError(f"{path}: not TOML: {error}") from error
        _check_depth(settings, str(path))
    for override in overrides:
        key, sign, value = override.partition("=")
        if not sign or not key.strip():
            raise ConfigError(f"--set {short_repr(override)}: expected KEY=VALUE, for example student.epochs=5")
        put(settings, key.strip(), parse_value(value.strip()))
        _check_depth(settings, f"--set {short_repr(key)}")
    return settings


def _check_depth(settings: Values, where: str) -> None:
    """Raises ConfigError for tables or lists nested deeper than any setting is: recursive code could not walk them."""
    level: list[Any] = [settings]
    for _ in range(DEEPEST):
        level = [item for table in level for item in (table.values() if isinstance(table, dict) else table)]
        level = [item for item in level if isinstance(item, (dict, list))]
    if level:
        raise ConfigError(f"{where}: {TOO_DEEP}")


def put(settings: Values, key: str, value: Any) -> None:
    """Set a dotted key in nested settings. `put({}, "noise.sigma", 0.5)` makes `{"noise": {"sigma": 0.5}}`."""
    *path, name = key.split(".")
    for part in path:
        settings = settings.setdefault(part, {})
        if not isinstance(settings, dict):
            raise ConfigError(f"{key}: {part} is a value, not a table")
    settings[name] = value


def parse_value(text: str) -> Any:
    """A TOML value, or the text itself when it is none: `0.5`, `true`, `["a", "b"]`, `mlp800`. Raises ConfigError."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except RecursionError as error:
        raise ConfigError(f"{short_repr(text)}: {TOO_DEEP}") from error
    except ValueError:  # TOMLDecodeError, or a number of thousands of digits
        return text


def parse_grid(arguments: Iterable[str]) -> dict[str, list[Any]]:
    """The grid of `KEY=V1,V2` arguments. `parse_grid(["noise.sigma=0,0.5"]) == {"noise.sigma": [0, 0.5]}`.

    Values are TOML, or text: `student.optimizer=adam,sgd`, `noise.sigma=0.3,[0.01, 1]`. Raises ConfigError.
    """
    grid: dict[str, list[Any]] = {}
    for argument in arguments:
        key, _, text = (part.strip() for part in argument.partition("="))
        if not key or not text:
            raise ConfigError(f"--grid {argument!r}: expected KEY=V1,V2, for example noise.sigma=0.1,0.5")
        if key in grid:
            raise ConfigError(f"--grid {key}: given twice; list all its values behind one '='")
        values = parse_value(f"[{text}]")
        grid[key] = values if isinstance(values, list) else [parse_value(item.strip()) for item in text.split(",")]
    return grid


def flat_grids(table: Any) -> list[dict[str, list[Any]]]:
    """The grids of a config file's [sweep] table, or of several [[sweep]] tables, with dotted keys."""
    tables = table if isinstance(table, list) else [] if table is None else [table]
    if not all(isinstance(grid, dict) for grid in tables):
        raise ConfigError(f"sweep: given {short_repr(table)}, expected a table of lists of values ([sweep] in TOML)")
    return [flat(grid) for grid in tables]


def describe(config: Config) -> Values:
    """The resolved config as nested JSON-able settings; `build_config` makes the same Config of it."""
    return asdict(config)


def explain(kind: type = Config, prefix: str = "") -> Iterator[tuple[str, str, Any, str]]:
    """Every setting as (dotted key, type, default, docstring), in order; values of presets stand in the docstring."""
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        hint, key = hints[field.name], f"{prefix}{field.name}"
        if is_dataclass(hint) and isinstance(hint, type):
            yield from explain(hint, f"{key}.")
        else:
            presets = [f" Preset {name}: {as_toml(value)}." for name, value in preset_values(key).items()]
            yield key, type_name(hint), getattr(kind(), field.name), field_docs(kind)[field.name] + "".join(presets)


def flag_of(key: str) -> Flag:
    """The flag of a setting, by its dotted key: its name and its short help."""
    part, name = key.split(".")
    flag = FLAGS.get(key, Flag())
    return Flag(flag.name or f"--{name.replace('_', '-')}", flag.help or field_docs(get_type_hints(Config)[part])[name])


def preset_values(key: str) -> dict[str, Any]:
    """The values that presets give a setting, by preset; empty where none decides it."""
    part, _, name = key.partition(".")
    return {preset: parts[part][name] for preset, parts in PRESETS.items() if name in parts.get(part, ())}


def type_name(hint: Any) -> str:
    """A type as a person reads it. `type_name(int | None) == "whole number or empty"`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hasattr(hint, "__metadata__"):
        return type_name(hint.__origin__)
    if origin is Literal:
        return " | ".join(arguments)
    if origin is list:
        item = type_name(arguments[0])
        return f"list of {item}" if item == "text" or " | " in item else f"list of {item}s"
    if origin is dict:
        return "table"
    if origin is tuple:
        return f"[{', '.join(map(type_name, arguments))}]"
    return " or ".join(map(type_name, arguments)) if arguments else TYPES[hint]


@cache
def field_docs(kind: type) -> dict[str, str]:
    """The docstring under each field of a settings dataclass; of a field without one, that of the base class."""
    docs: dict[str, str] = {}
    for base in reversed([base for base in kind.__mro__ if is_dataclass(base)]):
        for name, schema in type_adapter(base).json_schema()["properties"].items():
            if "description" in schema:
                docs[name] = " ".join(schema["description"].split())
    return docs


def template(preset: str = "standard") -> str:
    """A TOML file with every setting and its meaning; `build_config` accepts it unchanged.

    Teacher and student have this preset. What presets decide is commented out, at the value it has by this one: named,
    it would win over the preset. Raises UnknownNameError for another preset.
    """
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    lines, tables = ["# noisyteacher compress CONFIG"], set[str]()
    for key, kind, default, doc in explain():
        table, name = key.split(".", 1)
        if table not in tables:
            tables.add(table)
            lines += ["", f"[{table}]"]
        decided = bool(preset_values(key))
        value = preset if name == "preset" else PRESETS[preset].get(table, {}).get(name, default)
        words = f"{kind}; by the preset unless named here" if decided else kind
        lines += [f"# {doc} ({words})", f"{'# ' if decided or value is None else ''}{name} = {as_toml(value)}"]
    return "\n".join(lines) + "\n"


def as_toml(value: Any) -> str:
    """A setting's value as a TOML file has it; `""` for an empty one."""
    return '""' if value is None else json.dumps(value, ensure_ascii=False)
