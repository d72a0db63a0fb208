"""From a grid over settings to conditions: every combination once, with what it must be compared to beside it."""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from noisyteacher.config import Config, NoiseSettings, build_config, put
from noisyteacher.errors import ConfigError
from noisyteacher.io.files import sha256
from noisyteacher.text import sigma_words

Grid = Mapping[str, Sequence[Any]]
KINDS = ("labels", "clean", "noisy")
TAUGHT = {"loss": "logit_regression", "temperature": None, "label_weight": 0.0}
"""Settings that a student on labels alone does not look at, each at one value, so that such students are the same."""


@dataclass(frozen=True)
class Condition:
    """One way to train a student; with a seed it is a cell of the sweep."""

    name: str
    """Unique in the sweep, and a part of the run folders' names."""
    label: str
    kind: str
    """`labels`, `clean` (distilled without noise) or `noisy`."""
    family: str
    """Conditions of one family differ in their noise only."""
    settings: Mapping[str, Any]
    """What tells it from the others: dotted key -> value."""
    config: Config


@dataclass(frozen=True)
class Family:
    """Conditions that differ in their noise alone, with the names of their two controls."""

    name: str
    settings: Mapping[str, Any]
    clean: str
    labels: str | None
    """None where `run.baselines` is false."""
    noisy: tuple[str, ...]


def expand(base: Mapping[str, Any], grids: Sequence[Grid]) -> tuple[list[Condition], list[Family], list[str]]:
    """The conditions of the grids over the nested settings `base`, their families, and the keys that vary.

    Every combination of a grid's values is a condition; several grids are put together. A combination is there once:
    sigma = 0 or alpha = 0 is `clean` whatever the rest of the noise says. Every family gets its clean student and,
    unless `run.baselines` is false, its label-only one. Raises ConfigError listing every wrong combination's complaint.
    """
    axes = list(dict.fromkeys(key for grid in grids for key in grid))
    _refuse(axes, grids)
    configs, problems = [], []
    for grid in grids or [{}]:
        for values in itertools.product(*grid.values()):
            nested = copy.deepcopy(dict(base))
            for key, value in zip(grid, values, strict=True):
                put(nested, key, value)
            try:
                config = build_config(nested, unused_noise=_names_sigma(base, grids))
            except ConfigError as error:
                problems += [line.strip() for line in str(error).splitlines()[-8:]]
                continue
            if "auto" in (config.noise.sigma, config.noise.alpha):
                problems.append(
                    "noise.sigma, noise.alpha: a sweep compares numbers: give them, or put them on the grid"
                )
            configs.append(config)
    if problems:
        raise ConfigError("the grid is wrong: " + "; ".join(dict.fromkeys(problems)))
    return _conditions(configs, axes, base_config(base, grids))


def varies_noise(axes: Sequence[str]) -> bool:
    """Whether a setting of the noise is on the grid, even if all its values come to no noise."""
    return any(key.startswith("noise.") for key in axes)


def base_config(base: Mapping[str, Any], grids: Sequence[Grid]) -> Config:
    """The Config of a sweep's base settings, which may describe a noise whose sigma the grids give."""
    return build_config(base, unused_noise=_names_sigma(base, grids))


def _names_sigma(base: Mapping[str, Any], grids: Sequence[Grid]) -> bool:
    """Whether a sigma is named, on some grid or in the base, as it is in the base of every resumed sweep.

    The rest of the noise may then be described although sigma is 0 in some conditions.
    """
    noise = base.get("noise")
    return any("noise.sigma" in grid for grid in grids) or (isinstance(noise, Mapping) and "sigma" in noise)


def _refuse(axes: list[str], grids: Sequence[Grid]) -> None:
    for key in axes:
        if key.split(".")[0] not in ("noise", "student", "teacher", "data") or "." not in key:
            raise ConfigError(
                f"grid: {key!r} cannot vary here: a grid is over noise.*, student.*, teacher.* and data.*"
            )
        if key.endswith(".preset"):
            raise ConfigError(f"grid: {key} cannot vary: put the settings that it decides on the grid, or sweep twice")
    for grid in grids:
        for key, values in grid.items():
            if isinstance(values, str) or not isinstance(values, Sequence) or not values:
                raise ConfigError(f"grid: {key} is {values!r}: give a list of one or more values")


def _conditions(
    configs: list[Config], axes: list[str], base: Config
) -> tuple[list[Condition], list[Family], list[str]]:
    noises = [asdict(config.noise) for config in configs if not config.noise.off]
    varying = [key for key in _DEFAULT if len({fingerprint(noise[key]) for noise in noises}) > 1]
    own = [key for key in axes if not key.startswith("noise.")]
    own = [key for key in own if len({fingerprint(_value(one, key)) for one in configs}) > 1]
    groups: dict[str, list[Config]] = {}
    for config in configs:
        groups.setdefault(
            fingerprint([asdict(config.data), asdict(config.teacher), asdict(config.student)]), []
        ).append(config)
    made = _Conditions()
    distilled = "clean" if noises or varies_noise(axes) else "distilled"
    families: list[Family] = []
    labels: dict[str, str] = {}
    for number, members in enumerate(groups.values()):
        family, first = f"f{number}", replace(members[0], noise=_NONE)
        settings = {key: _value(first, key) for key in own}
        words = _words({key: value for key, value in settings.items() if value != _value(base, key)})
        untaught = replace(first, student=replace(first.student, **TAUGHT))  # type: ignore[arg-type]
        key = fingerprint(asdict(untaught))
        if base.run.baselines and key not in labels:
            seen = {key: value for key, value in settings.items() if key.removeprefix("student.") not in TAUGHT}
            few = _words({key: value for key, value in seen.items() if value != _value(base, key)})
            labels[key] = made.add("labels", family, untaught, seen, ["labels alone", *few])
        clean = made.add("clean", family, first, settings, ["clean", *words], [distilled, *words])
        noisy: dict[str, str] = {}
        for config in members:
            noise = asdict(config.noise)
            if not config.noise.off and fingerprint(noise) not in noisy:
                told = settings | {f"noise.{key}": value for key, value in noise.items()}
                noisy[fingerprint(noise)] = made.add(
                    "noisy", family, config, told, [*_noise_words(noise, varying), *words]
                )
        families.append(Family(family, settings, clean, labels.get(key), tuple(noisy.values())))
    return made.conditions, families, axes


class _Conditions:
    """The conditions so far, each under a name of its own."""

    def __init__(self) -> None:
        self.conditions: list[Condition] = []

    def add(
        self,
        kind: str,
        family: str,
        config: Config,
        settings: dict[str, Any],
        words: list[str],
        label_words: list[str] | None = None,
    ) -> str:
        """Put one in and return its name, made of `words`; its label is of those too, or of `label_words`.

        Name and label get a fingerprint where they are taken.
        """
        label, own = ", ".join(label_words or words), fingerprint([kind, asdict(config)])[:6]
        name = _slug(", ".join(words))
        if any(one.name == name for one in self.conditions):
            name = f"{name}-{own}"
        if any(one.label == label for one in self.conditions):
            label = f"{label} ({own})"
        self.conditions.append(Condition(name, label, kind, family, settings, config))
        return name


_DEFAULT = asdict(NoiseSettings())
_NONE = NoiseSettings(sigma=0.0, alpha=0.0)


def _noise_words(noise: Mapping[str, Any], told: Sequence[str]) -> list[str]:
    words = [f"sigma {sigma_words(noise['sigma'])}"]
    if "alpha" in told:
        words.append(f"alpha {noise['alpha']:g}")
    if "draw" in told:
        words.append(str(noise["draw"]))
    for key in ("kind", "distribution", "schedule"):
        if key in told and noise[key] != _DEFAULT[key]:
            words.append(str(noise[key]))
    if "target" in told and noise["target"] == "student":
        words.append("on the student")
    if "frozen" in told and noise["frozen"]:
        words.append("frozen")
    return words


def _words(settings: Mapping[str, Any]) -> list[str]:
    """Settings in words: text values stand alone, others behind their key's last part; a teacher's behind `teacher`."""
    found = []
    for key, value in settings.items():
        section, last = key.split(".")[0], key.split(".")[-1].replace("_", " ")
        words = value.replace("_", " ") if isinstance(value, str) else f"{last} {_short(value)}"
        found.append(f"teacher {words}" if section == "teacher" else words)
    return found


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}".replace("e+", "e")
    return "+".join(map(_short, value)) if isinstance(value, (list, tuple)) else str(value)


def _value(config: Config, key: str) -> Any:
    found: Any = config
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else getattr(found, part)
    return found


def _slug(label: str) -> str:
    text = re.sub(r"\b(sigma|alpha|lr|epochs|dropout) (?=[\d.])", r"\1", label)
    text = re.sub(r"(?<=\d)e\+(?=\d)", "e", text)  # 1e+30 is not 1e-30
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.")[:80] or "condition"


def fingerprint(value: Any) -> str:
    return sha256([json.dumps(value, sort_keys=True, default=list).encode()])
