"""What a sweep asks, as one value: its conditions and families, checked before anything is trained."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from noisyteacher.config import Config, describe
from noisyteacher.errors import UsageError
from noisyteacher.pipeline import (
    load_config_data,
    network_name,
    refuse_auto,
    refuse_early,
    run_title,
    settled,
    with_papers_student,
)
from noisyteacher.runs import plain
from noisyteacher.sweep.grid import Condition, Family, Grid, base_config, expand, fingerprint


@dataclass(frozen=True)
class Question:
    """`conditions` with settled configs, the `families` they are judged in, the `axes` that vary; `seeds` of each.

    `base`: the settings that all start from, settled.
    `settings` is the question as the run folder's config.json keeps it; `allow_import` lets a teacher's file name a
    factory to import, as in `load_model`.
    """

    base: Config
    conditions: tuple[Condition, ...]
    families: tuple[Family, ...]
    axes: tuple[str, ...]
    seeds: int
    settings: Mapping[str, Any]
    allow_import: bool = False

    @property
    def title(self) -> str:
        """What its run folder is called: student, teacher and data, or how many of each."""
        configs = [one.config for one in self.conditions]
        return run_title(
            _one_or_number({one.student.name for one in configs}, "students"),
            _one_or_number({network_name(one.teacher.name) for one in configs}, "teachers"),
            _one_or_number({Path(one.data.name).stem for one in configs}, "data sets"),
        )

    def bases(self) -> dict[str, list[Condition]]:
        """The conditions by what they share, data and teacher."""
        found: dict[str, list[Condition]] = {}
        for one in self.conditions:
            # without settings at the values that folders had before there was a choice
            data, teacher = asdict(one.config.data), asdict(one.config.teacher)
            for table, name, value in (
                (teacher, "logits_precision", "fp32"),
                (teacher, "batch_norm", "running"),
                (teacher, "class_order", []),
                (data, "classes", None),
            ):
                if table[name] == value:
                    del table[name]
            found.setdefault(fingerprint([data, teacher])[:6], []).append(one)
        return found

    def taught(self) -> dict[str, list[Condition]]:
        """The conditions by the run folder of the teacher they learn from."""
        bases = self.bases()
        return {"teacher" if len(bases) == 1 else f"teacher-{key}": members for key, members in bases.items()}

    def check(self) -> None:
        """Raises UsageError, or what the data and the networks raise, for what no cell could be trained on."""
        for members in self.bases().values():
            data = load_config_data(members[0].config)
            unlabelled = [role for role, split in data.parts.items() if split.labels is None]
            if unlabelled:
                raise UsageError(
                    f"{data.name!r} has no labels in {', '.join(unlabelled)}: a sweep judges by error; compress needs "
                    "none"
                )
            for one in members:
                if one.config.student.augment != "none":
                    raise UsageError(
                        f"student.augment: {one.config.student.augment!r} needs the teacher at every step, a sweep's "
                        "cells learn from stored answers: use compress, or sweep over student.views"
                    )
                refuse_auto(one.config)
                config = settled(one.config, data)
                refuse_early(config.teacher.name, config.student.name, data, config, self.allow_import)


def _one_or_number(names: Collection[str], noun: str) -> str:
    """The one name there is, or how many there are. `_one_or_number({"nin", "lenet"}, "teachers") == "2 teachers"`."""
    return next(iter(names)) if len(names) == 1 else f"{len(names)} {noun}"


def asked(
    base: Mapping[str, Any], grids: Sequence[Grid] | Grid, seeds: int | None = None, allow_import: bool = False
) -> Question:
    """The question of nested settings and grids over them; seeds: how many, by default base's run.seeds.

    Raises ConfigError or another NoisyTeacherError for settings and grids that mean nothing; data are not looked at.
    """
    grids = [grids] if isinstance(grids, Mapping) else list(grids)
    config = with_papers_student(settled(base_config(base, grids)))
    count = config.run.seeds if seeds is None else seeds
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise UsageError(f"seeds={count!r}: expected a whole number >= 1")
    conditions, families, axes = expand(base, grids)
    return Question(
        config,
        tuple(replace(one, config=with_papers_student(settled(one.config))) for one in conditions),
        tuple(families),
        tuple(axes),
        count,
        plain({"base": describe(config), "grids": [dict(one) for one in grids], "seeds": count}, "config"),
        allow_import,
    )
