"""From grids over settings to conditions: every combination once, with its controls, checked before any training."""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from noisyteacher.config import Config, NoiseSettings, Values, build_config, describe, drop_unused, put
from noisyteacher.device import AUTO, check_count
from noisyteacher.errors import ConfigError, UsageError
from noisyteacher.io.files import sha256
from noisyteacher.pipeline.compression import build_models
from noisyteacher.pipeline.pretrained import network_name, refuse_training_of, run_title
from noisyteacher.pipeline.resolve import (
    BATCH,
    load_config_data,
    require_student,
    resolve_auto,
    unlabelled_roles,
    with_papers_student,
)
from noisyteacher.pipeline.results import Family
from noisyteacher.runs import as_json
from noisyteacher.text import flat, plural, value_words

Grid = Mapping[str, Sequence[Any]]
"""Dotted settings with the values to try."""
LOSS_SETTINGS: Values = {
    "loss": "logit_regression",
    "loss_options": {},
    "loss_weight": 1.0,
    "temperature": None,
    "label_weight": 0.0,
    "combine": "mean",
}
"""Settings of the loss in which students that are trained in common steps may differ (`workers.stacks`)."""
LABELS_ALONE: Values = {**LOSS_SETTINGS, "scale": "none"}
"""Settings without effect on students trained on labels alone, reset for these so that duplicates merge."""
DEFAULT_NOISE = asdict(NoiseSettings())
COMPRESSION_ONLY = ("student.qat_epochs", "choice.", "target.", "run.export")
"""Beginnings of settings that only a compression looks at."""


@dataclass(frozen=True)
class ConditionSpec:
    """One way to train a student; with a seed it is a cell of the sweep."""

    name: str
    """Unique in the sweep, and a part of the run folders' names."""
    title: str
    kind: str
    """`labels`, `clean` (distilled without noise) or `noisy`."""
    family: str
    """Conditions of one family differ in their noise only."""
    settings: Values
    """What distinguishes it from other conditions, by dotted key."""
    config: Config


@dataclass(frozen=True)
class SweepSpec:
    """A sweep before it is run: conditions with resolved settings, families, the settings that vary, and seeds."""

    base: Config
    conditions: tuple[ConditionSpec, ...]
    families: tuple[Family, ...]
    axes: tuple[str, ...]
    seeds: int
    settings: Values
    """The content of the run folder's config.json."""
    allow_import: bool = False

    @property
    def title(self) -> str:
        """The title of its run folder: student, teacher and data, or how many of each."""
        configs = [condition.config for condition in self.conditions]
        columns = {
            "students": {config.student.name for config in configs},
            "teachers": {network_name(config.teacher.name) for config in configs},
            "data sets": {Path(config.data.name).stem for config in configs},
        }
        return run_title(
            *(min(names) if len(names) == 1 else f"{len(names)} {noun}" for noun, names in columns.items())
        )

    @property
    def control_seeds(self) -> int:
        """How many seeds clean students have."""
        return self.base.run.control_seeds or self.seeds

    @property
    def fresh_seeds(self) -> range:
        """The further seeds, on which the noise that validation prefers in each family is judged: none, two or more."""
        return range(self.seeds, self.control_seeds)

    def seeds_of(self, condition: ConditionSpec) -> range:
        """The seeds that a condition is trained with before a noise is chosen."""
        judged = {family.clean for family in self.families if family.noisy}
        return range(self.control_seeds if condition.name in judged else self.seeds)

    @property
    def trainings(self) -> int:
        """How many trainings there are, those of chosen noises included."""
        chosen = sum(bool(family.noisy) for family in self.families)
        more = chosen * len(self.fresh_seeds)
        return sum(len(self.seeds_of(condition)) for condition in self.conditions) + more

    def by_teacher(self) -> dict[str, list[ConditionSpec]]:
        """The conditions by the run folder of their teacher, one for each setting of data and teacher."""
        groups: dict[str, list[ConditionSpec]] = {}
        for condition in self.conditions:
            key = fingerprint([asdict(condition.config.data), asdict(condition.config.teacher)])[:6]
            groups.setdefault(key, []).append(condition)
        return {"teacher" if len(groups) == 1 else f"teacher-{key}": members for key, members in groups.items()}

    def check(self, stack: int = 1) -> None:
        """Load the data and build the networks of every condition; raises what a cell's training would raise.

        stack: students that are trained at once.
        """
        if stack > 1 and self.base.run.profile:
            raise UsageError("run.profile measures the steps of one student: leave it or stack out")
        for members in self.by_teacher().values():
            data = load_config_data(members[0].config)
            if unlabelled := ", ".join(unlabelled_roles(data)):
                raise UsageError(f"{data.name!r} has no labels in {unlabelled}: a sweep compares errors; use compress")
            for condition in members:
                if condition.config.student.augment != "none":
                    raise UsageError(
                        f"student.augment: {condition.config.student.augment!r} needs the teacher at every step, and a "
                        "sweep trains from stored logits: use compress, or sweep over student.views"
                    )
                require_student(condition.config)
                config = resolve_auto(condition.config, data)
                build_models(config.teacher.name, config.student.name, data, config, self.allow_import)


def build_spec(
    base: Mapping[str, object], grids: Sequence[Grid] | Grid, seeds: int | None = None, allow_import: bool = False
) -> SweepSpec:
    """The sweep of nested settings and grids over them; seeds: how many, by default base's run.seeds.

    Raises ConfigError or UsageError for invalid settings and grids. Does not read the data.
    """
    grids = [grids] if isinstance(grids, Mapping) else list(grids)
    config = with_papers_student(resolve_auto(base_config(base, grids)))
    count = config.run.seeds if seeds is None else seeds
    check_count("seeds", count)
    varied = {key for grid in grids for key in grid}
    if "teacher.name" not in varied:
        refuse_training_of(config.teacher.name, varied)
    conditions, families, axes = expand(base, grids)
    controls = config.run.control_seeds
    judging = any(family.noisy for family in families) and controls != count + 1  # one further seed judges nothing
    if controls is not None and not (controls >= count and judging):
        raise UsageError(
            f"run.control_seeds={controls}: expected a sweep over noise, and the {plural(count, 'seed')} of a noise or "
            f"at least {count + 2}: give more, or leave it out"
        )
    resolved = [replace(spec, config=with_papers_student(resolve_auto(spec.config))) for spec in conditions]
    if any(spec.config.student.name != AUTO for spec in resolved):  # one to be chosen is refused later, by `check`
        _refuse_unused(config)
    settings = as_json({"base": describe(config), "grids": [dict(grid) for grid in grids], "seeds": count}, "config")
    return SweepSpec(config, tuple(resolved), tuple(families), tuple(axes), count, settings, allow_import)


def _refuse_unused(config: Config) -> None:
    """Raises UsageError for settings that only a compression looks at, where they are not the defaults."""
    defaults = flat(describe(Config()))
    named = {key: value for key, value in flat(describe(config)).items() if key.startswith(COMPRESSION_ONLY)}
    if unused := [key for key, value in named.items() if value != defaults[key]]:
        raise UsageError(f"{', '.join(unused)}: no effect on a sweep, only on a compression: leave it out")


def expand(base: Mapping[str, object], grids: Sequence[Grid]) -> tuple[list[ConditionSpec], list[Family], list[str]]:
    """The conditions of the grids over the nested settings `base`, their families, and the keys that vary.

    Every combination of a grid's values is a condition, and several grids are put together; equal conditions occur
    once, and sigma = 0 or alpha = 0 is `clean` whatever the rest of the noise says. Every family gets its clean student
    and, unless `run.baselines` is false, one trained on labels alone. Raises ConfigError that lists all problems.
    """
    axes = list(dict.fromkeys(key for grid in grids for key in grid))
    _check_grids(grids)
    configs, problems = [], []
    for grid in grids or [{}]:
        for values in itertools.product(*grid.values()):
            settings = copy.deepcopy(dict(base))
            for key, value in zip(grid, values, strict=True):
                put(settings, key, value)
            for part, table in settings.items():
                if isinstance(table, dict):
                    drop_unused(table, part, [key.partition(".")[2] for key in grid if key.startswith(f"{part}.")])
            try:
                config = base_config(settings, grids)
            except ConfigError as error:
                problems += [line.strip() for line in str(error).splitlines()[-8:]]
                continue
            if AUTO in (config.noise.sigma, config.noise.alpha):
                problems.append("noise.sigma, noise.alpha: a sweep compares numbers: set them, or put them on the grid")
            configs.append(config)
    if problems:
        raise ConfigError("the grid is wrong: " + "; ".join(dict.fromkeys(problems)))
    conditions, families = _conditions(configs, axes, base_config(base, grids))
    return conditions, families, axes


def _check_grids(grids: Sequence[Grid]) -> None:
    for key, values in ((key, values) for grid in grids for key, values in grid.items()):
        if key.split(".")[0] not in ("noise", "student", "teacher", "data") or "." not in key:
            raise ConfigError(f"grid: {key!r} cannot vary here: a grid is over noise.*, student.*, teacher.*, data.*")
        if key.endswith(".preset"):
            raise ConfigError(f"grid: {key} cannot vary: put the settings that it decides on the grid, or sweep twice")
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise ConfigError(f"grid: {key} is {values!r}: expected a list of one or more values")


def base_config(base: Mapping[str, object], grids: Sequence[Grid]) -> Config:
    """The Config of a sweep's settings, which may describe a noise whose sigma is 0 there and set on a grid."""
    noise = base.get("noise")
    names_sigma = any("noise.sigma" in grid for grid in grids) or (isinstance(noise, Mapping) and "sigma" in noise)
    config = build_config(base, unused_noise=names_sigma)
    if config.student.batch_size == AUTO:  # conditions must not differ in it because their rates or images do
        config = replace(config, student=replace(config.student, batch_size=BATCH))
    return config


def varies_noise(axes: Iterable[str]) -> bool:
    """Whether a setting of the noise is on the grid, even if all its values mean no noise."""
    return any(key.startswith("noise.") for key in axes)


def fingerprint(value: Any) -> str:
    """A digest of a JSON-able value."""
    return sha256([json.dumps(value, sort_keys=True, default=list).encode()])


def _differ(values: Iterable[Any]) -> bool:
    return len({fingerprint(value) for value in values}) > 1


def _conditions(configs: list[Config], axes: list[str], base: Config) -> tuple[list[ConditionSpec], list[Family]]:
    """Conditions and families of the configs: a family per setting of data, teacher and student."""
    noises = [asdict(config.noise) for config in configs if not config.noise.off]
    noise_axes = [key for key in DEFAULT_NOISE if _differ(noise[key] for noise in noises)]
    other_axes = [
        key for key in axes if not key.startswith("noise.") and _differ(_setting(config, key) for config in configs)
    ]
    reference = "clean" if noises or varies_noise(axes) else "distilled"
    groups: dict[str, list[Config]] = {}
    for config in configs:
        key = fingerprint([asdict(config.data), asdict(config.teacher), asdict(config.student)])
        groups.setdefault(key, []).append(config)
    conditions: list[ConditionSpec] = []
    families: list[Family] = []
    labels: dict[str, str] = {}

    def changes(settings: Values) -> list[str]:
        return _words({key: value for key, value in settings.items() if value != _setting(base, key)})

    def add(kind: str, config: Config, settings: Values, words: list[str], title: str = "") -> str:
        """Add a condition and return its name, made of the words; a name or title in use gets a fingerprint."""
        digest = fingerprint([kind, asdict(config)])[:6]
        title, name = title or ", ".join(words), _slug(", ".join(words))
        if any(condition.name == name for condition in conditions):
            name = f"{name}-{digest}"
        if any(condition.title == title for condition in conditions):
            title = f"{title} ({digest})"
        conditions.append(ConditionSpec(name, title, kind, f"f{len(families)}", settings, config))
        return name

    for members in groups.values():
        clean_config = replace(members[0], noise=NoiseSettings(sigma=0.0, alpha=0.0))
        settings = {key: _setting(clean_config, key) for key in other_axes}
        words = changes(settings)
        labels_config = replace(clean_config, student=replace(clean_config.student, **LABELS_ALONE))
        key = fingerprint(asdict(labels_config))
        if base.run.baselines and key not in labels:
            used = {
                name: value for name, value in settings.items() if name.removeprefix("student.") not in LABELS_ALONE
            }
            labels[key] = add("labels", labels_config, used, ["labels alone", *changes(used)])
        clean = add("clean", clean_config, settings, ["clean", *words], ", ".join([reference, *words]))
        noisy: dict[str, str] = {}
        for config in members:
            noise = asdict(config.noise)
            digest = fingerprint(noise)
            if not config.noise.off and digest not in noisy:
                with_noise = settings | {f"noise.{name}": value for name, value in noise.items()}
                noisy[digest] = add("noisy", config, with_noise, [*_noise_words(noise, noise_axes), *words])
        families.append(Family(f"f{len(families)}", settings, clean, labels.get(key), tuple(noisy.values())))
    return conditions, families


def _noise_words(noise: Values, varying: Sequence[str]) -> list[str]:
    words = [f"sigma {value_words(noise['sigma'])}"]
    if "alpha" in varying:
        words.append(f"alpha {noise['alpha']:g}")
    if "draw" in varying:
        words.append(noise["draw"])
    choices = ("kind", "distribution", "schedule")
    words += [noise[key] for key in choices if key in varying and noise[key] != DEFAULT_NOISE[key]]
    if "until" in varying and noise["until"] < 1:
        words.append(f"until {noise['until']:g}")
    if "draws" in varying:
        words.append(f"{noise['draws']} draws")
    if "target" in varying and noise["target"] != "teacher":
        words.append(f"on the {noise['target']}")
    return words + (["frozen"] if "frozen" in varying and noise["frozen"] else [])


def _words(settings: Values) -> list[str]:
    """Settings in words: text values alone, numbers behind the key's last part; a teacher's behind `teacher`."""
    phrases = []
    for key, value in settings.items():
        name = key.split(".")[-1].replace("_", " ")
        phrase = value.replace("_", " ") if isinstance(value, str) else f"{name} {_short(value)}"
        phrases.append(f"teacher {phrase}" if key.startswith("teacher.") else phrase)
    return phrases


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}".replace("e+", "e")
    return "+".join(map(_short, value)) if isinstance(value, (list, tuple)) else str(value)


def _setting(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else getattr(value, part)
    return value


def _slug(title: str) -> str:
    text = re.sub(r"\b(sigma|alpha|lr|epochs|dropout) (?=[\d.])", r"\1", title)
    text = re.sub(r"(?<=\d)e\+(?=\d)", "e", text)  # 1e+30 is not 1e-30
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.")[:80] or "condition"
