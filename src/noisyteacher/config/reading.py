"""From a file, flags and overrides to checked settings: every problem at once, each with its key and a hint."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from noisyteacher.config.limits import wrong_targets
from noisyteacher.config.settings import PRESETS, Choice, Config, NoiseSettings
from noisyteacher.config.validation import config_error, shown, validated
from noisyteacher.errors import ConfigError
from noisyteacher.text import flat

DEEPEST = 16
WHOLE_RECIPE = {
    "name", "options", "epochs", "batch_size", "optimizer", "lr", "weight_decay", "schedule", "warmup_epochs", "views",
    "every_view", "patience", "keep",
}  # fmt: skip
"""Settings that the config of every run has had since the first version, more than a person names."""
TOO_DEEP = f"nested deeper than {DEEPEST} levels: no setting is"


def build_config(given: Mapping[str, Any], *, unused_noise: bool = False) -> Config:
    """The Config of nested settings, what they do not name taken from their presets.

    unused_noise: accept settings of a noise whose sigma is 0, as the base of a sweep over sigma has them, or the config
    of a run that is resumed. Raises ConfigError with every problem at once, each naming its key.
    """
    if "sweep" in given:
        raise ConfigError("sweep: a grid of settings; run the file with: noisyteacher sweep")
    config = validated(Config, _with_presets(given))
    problems = list(_contradictions(config))
    if not unused_noise:
        problems += _without_noise(config.noise)
    if problems:
        raise config_error(problems)
    return config


def _with_presets(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, and those that a preset decides and nobody named; what is no table or preset stays as it is.

    A table that names a whole recipe and no preset was written by a version that knew the paper's alone.
    """
    filled = dict(given)
    for part in ("teacher", "student"):
        table = filled.get(part)
        if not isinstance(table, Mapping):
            continue
        if "preset" not in table and table.keys() >= WHOLE_RECIPE:
            table = {**table, "preset": "paper"}
        preset = table.get("preset")
        if isinstance(preset, str) and preset in PRESETS:
            filled[part] = {**PRESETS[preset][part], **table}
    return filled


def read_config(
    path: str | Path | None, overrides: tuple[str, ...] = (), given: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The nested settings of a TOML file with `a.b=c` overrides put in; not yet checked (`build_config` does that).

    Without a file the overrides go into the settings `given`, or into empty ones.

    Raises ConfigError naming the file and line, or the override, that cannot be read.
    """
    given = given or {}
    if path is not None:
        try:
            given = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
        except RecursionError as error:
            raise ConfigError(f"{path}: {TOO_DEEP}") from error
        except ValueError as error:  # TOMLDecodeError, or a number of thousands of digits
            raise ConfigError(f"{path}: not TOML: {error}") from error
        _refuse_deep(given, str(path))
    for override in overrides:
        key, sign, value = override.partition("=")
        if not sign or not key.strip():
            raise ConfigError(f"--set {shown(override)}: expected KEY=VALUE, for example student.epochs=5")
        put(given, key.strip(), parse_value(value.strip()))
        _refuse_deep(given, f"--set {shown(key)}")
    return given


def _refuse_deep(given: dict[str, Any], where: str) -> None:
    """Raises ConfigError for tables or lists nested deeper than any setting is: what follows could not walk them."""
    level: list[Any] = [given]
    for _ in range(DEEPEST):
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
        level = [one for one in level if isinstance(one, (dict, list))]
        if not level:
            return
    raise ConfigError(f"{where}: {TOO_DEEP}")


def put(given: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in nested settings. `put({}, "noise.sigma", 0.5)` makes `{"noise": {"sigma": 0.5}}`."""
    *path, last = key.split(".")
    for part in path:
        inner = given.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{key}: {part} is a value, not a table")
        given = inner
    given[last] = value


def parse_value(text: str) -> Any:
    """A TOML value, or the text itself when it is none: `0.5`, `true`, `["a", "b"]`, `mlp800`. Raises ConfigError."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except RecursionError as error:
        raise ConfigError(f"{shown(text)}: {TOO_DEEP}") from error
    except ValueError:  # TOMLDecodeError, or a number of thousands of digits
        return text


def parse_grid(given: Iterable[str]) -> dict[str, list[Any]]:
    """The grid of `KEY=V1,V2` arguments. `parse_grid(["noise.sigma=0,0.5"]) == {"noise.sigma": [0, 0.5]}`.

    Values are TOML, or text: `student.optimizer=adam,sgd`, `noise.sigma=0.3,[0.01, 1]`. Raises ConfigError.
    """
    grid: dict[str, list[Any]] = {}
    for argument in given:
        key, sign, text = argument.partition("=")
        if not sign or not key.strip() or not text.strip():
            raise ConfigError(f"--grid {argument!r}: expected KEY=V1,V2, for example noise.sigma=0.1,0.5")
        if key.strip() in grid:
            raise ConfigError(f"--grid {key.strip()}: given twice; list all its values behind one '='")
        values = parse_value(f"[{text}]")
        grid[key.strip()] = (
            values if isinstance(values, list) else [parse_value(one.strip()) for one in text.split(",")]
        )
    return grid


def flat_grids(table: Any) -> list[dict[str, list[Any]]]:
    """The grids of a config file's [sweep] table, or of several [[sweep]] tables, with dotted keys."""
    if table is None:
        return []
    tables = table if isinstance(table, list) else [table]
    if not all(isinstance(one, dict) for one in tables):
        raise ConfigError(
            f"sweep: given {table!r}, expected a table of settings with lists of values ([sweep] in TOML)"
        )
    return [flat(one) for one in tables]


def describe(config: Config) -> dict[str, Any]:
    """The resolved config as nested JSON-able settings; `build_config` makes the same Config of it."""
    return asdict(config)


def completed(kept: Mapping[str, Any]) -> dict[str, Any]:
    """Resolved settings with those that an older version did not have at their defaults; other keys as they are.

    So that a run folder of an older version is gone on with: `completed(old) == completed(new)`.
    """
    known, kept = asdict(Config()), _with_presets(kept)
    return {
        key: {**known[key], **value} if key in known and isinstance(value, Mapping) else value
        for key, value in kept.items()
    }


def _contradictions(config: Config) -> Iterator[str]:
    """Settings that are each possible but refute each other, or have no effect."""
    for part, recipe in (("teacher", config.teacher), ("student", config.student)):
        yield from (f"{part}.{name}: {problem}" for name, problem in recipe.contradictions())
        for name in ("model", "data", "classes", "input_shape", "seed"):
            if name in recipe.options:
                yield f"{part}.options.{name}: comes from the data and the run, not from here: leave it out"
        decided = PRESETS[recipe.preset][part]
        if decided and all(getattr(recipe, name) != value for name, value in decided.items()):
            yield f"{part}.preset: {recipe.preset} has no effect: all that it decides is named otherwise; leave it out"
        if len(recipe.mean) != len(recipe.std):
            yield f"{part}.mean: {len(recipe.mean)} values, {part}.std {len(recipe.std)}: one of each for every channel"
        if recipe.mean and recipe.preprocess.partition("@")[0] not in ("", "standardize"):
            yield f"{part}.mean: has no effect with preprocess {recipe.preprocess!r}: leave it out"
    if config.student.temperature is not None and config.student.loss != "soft_targets":
        yield f"student.temperature: has no effect with loss {config.student.loss!r}: leave it out"
    sigma = config.noise.sigma
    if "auto" not in (sigma, config.noise.alpha) and config.choice != Choice():
        yield (
            "choice: has no effect where neither noise.sigma nor noise.alpha is auto: leave it out, or let the noise "
            'be chosen (--noise, or noise.sigma = "auto")'
        )
    if config.student.combine != "mean" and not config.teacher.also:
        yield f"student.combine: {config.student.combine!r} has no effect with one teacher: leave it out"
    yield from wrong_targets(config.target, config.student.name, bool(config.student.options))
    for name in ("sigmas", "alphas"):
        if not getattr(config.choice, name):
            yield f"choice.{name}: the list is empty; give at least one candidate"
    if isinstance(sigma, tuple) and sigma[0] > sigma[1]:
        yield f"noise.sigma: given {list(sigma)}; a range is [low, high] with low <= high"
    if isinstance(sigma, tuple) and config.noise.frozen:
        yield "noise.frozen: a range of sigma is drawn per batch, frozen noise only once: give one number"
    for key, text in (
        ("data.name", config.data.name),
        ("data.root", config.data.root),
        ("run.output_dir", config.run.output_dir),
    ):
        if text is not None and not text.strip():
            yield f"{key}: is empty; name it, or leave the setting out"
    if config.data.name == "mnist-5k" and config.data.root is not None:
        yield "data.root: has no effect with mnist-5k, which comes with the package: leave it out"


def _without_noise(noise: NoiseSettings) -> Iterator[str]:
    """A sentence when sigma is 0 and other settings of the noise are named; alpha = 0 says "no noise" as well."""
    defaults = NoiseSettings()
    unused = [
        f"noise.{one.name}"
        for one in fields(noise)
        if one.name != "sigma" and getattr(noise, one.name) != getattr(defaults, one.name)
    ]
    if noise.sigma in (0, (0, 0)) and noise.alpha != 0 and unused:
        yield (
            f"{', '.join(unused)}: no effect without noise (noise.sigma is 0): name its sigma (--sigma 0.3), let "
            'compress or distil choose it on validation (--noise, or noise.sigma = "auto"), or leave this out'
        )
