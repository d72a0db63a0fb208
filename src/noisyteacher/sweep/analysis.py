"""The result of a sweep: every condition paired with its clean student, what validation prefers, verdicts, a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from noisyteacher.pipeline import Condition, Difference, Family, RunResult, Verdict, differences
from noisyteacher.stats import LEVEL, holm, mean_interval, missing_interval
from noisyteacher.sweep.spec import varies_noise
from noisyteacher.tables import Table
from noisyteacher.text import SPLIT_NAMES, plural, signed


@dataclass(frozen=True, kw_only=True)
class SweepResult(RunResult):
    """The outcome of a sweep: conditions paired with their clean student, families, verdicts, failed cells by run."""

    @property
    def over_noise(self) -> bool:
        """Whether the sweep is about noise: some condition is noisy, or a setting of the noise is on the grid."""
        return any(condition.kind == "noisy" for condition in self.conditions) or varies_noise(self.axes)

    @property
    def _difference_name(self) -> str:
        """`test - clean`: the split, `error` where it differs, and the student that conditions are compared with."""
        splits = {_compared_on(condition) for condition in self.conditions if condition.against_clean} or {self.role}
        split = splits.pop() if len(splits) == 1 else "error"
        return f"{split} - {'clean' if self.over_noise else 'distilled'}"

    def table(self) -> Table:
        """A row per condition."""
        headers = ["condition", "seeds", "val error %", "test error %", self._difference_name, "p"]
        headers += ["p (Holm)"] if self.over_noise else []  # only noises are corrected for their number
        rows = []
        for condition in self.conditions:
            errors = [str(condition.score(role) or "-") for role in ("val", "test")]
            row = [condition.title, str(len(condition.seeds)), *errors, "", "", ""]
            if condition.against_clean:
                split = _compared_on(condition)
                gap = condition.against_clean[split]
                suffix = f" ({split})" if headers[4].startswith("error") else ""
                row[4:] = [f"{gap}{suffix}", *("" if p is None else f"{p:.2g}" for p in (gap.p, gap.p_holm))]
            rows.append(tuple(row[: len(headers)]))
        return Table(tuple(headers), tuple(rows), notes=tuple(self.notes()))

    def notes(self) -> list[str]:
        """Sentences below the table: n, intervals, the correction, the teachers."""
        notes = []
        if self.cells is not None:
            notes.append(f"{self.cells[0]} of {self.cells[1]} cells are done: this is a partial result.")
        noises = [condition.settings for condition in self.conditions if condition.kind == "noisy"]
        common = {
            key.removeprefix("noise."): value
            for key, value in (noises[0] if noises else {}).items()
            if key.startswith("noise.") and all(settings[key] == value for settings in noises)
        }
        notes += [f"All noises: {settings_words(common)}."] if common else []
        by_data: dict[str, list[str]] = {}
        for teacher in self.teachers:
            sizes = ", ".join(f"{role} n = {n:,}" for role, n in teacher.n.items() if n)
            result = "no error known" if teacher.error is None else f"{teacher.error.mean:.2f} % {teacher.role} error"
            line = f"{teacher.title[:1].upper()}{teacher.title[1:]}: {result}."
            by_data.setdefault(f"{teacher.data}: {sizes} images.", []).append(line)
        notes += [" ".join([data, *lines]) for data, lines in by_data.items()]
        errors = [
            error for condition in self.conditions for role in ("val", "test") if (error := condition.score(role))
        ]
        too_wide = any(error.n > 1 and error.low is None for error in errors)
        missing = " (no interval: it would be wider than 0 to 100 %)" if too_wide else ""
        correction = ", then corrected for all noises compared with that student (Holm)" if self.over_noise else ""
        reference = self._difference_name.split()[-1]
        notes.append(
            f"[ ] = 95 % Student-t interval over seeds{missing}. {self._difference_name}: paired by seed with the "
            f"{reference} student of the same settings; p of the paired t-test{correction}."
        )
        return notes

    def __str__(self) -> str:
        verdicts = (f"Verdict: {verdict}." for verdict in self.verdicts)
        table = self.table()
        return "\n".join([table.text(), "", *table.notes, "", *verdicts])


def _compared_on(condition: Condition) -> str:
    """The split that its difference to the clean student is reported on: test where there is one."""
    return "test" if "test" in condition.against_clean else "val"


def settings_words(settings: Mapping[str, object]) -> str:
    """Settings on one line. `settings_words({"student.lr": 0.01}) == "student.lr 0.01"`."""
    return ", ".join(
        f"{key} {str(value).lower() if isinstance(value, bool) else value}" for key, value in settings.items()
    )


def analyse(
    conditions: Sequence[Condition], families: Sequence[Family], axes: Sequence[str]
) -> tuple[tuple[Condition, ...], tuple[Family, ...], tuple[Verdict, ...]]:
    """The conditions with their differences to the clean student, the families with what is preferred, the verdicts.

    A pure function of the scores. Sweeps over noise have a verdict per family; others say what validation prefers on
    each data set.
    """
    by_name = {condition.name: condition for condition in conditions}
    judged: list[Family] = []
    verdicts: list[Verdict] = []
    for family in families:
        by_name |= _compared(family, by_name)
        family = _preferred(family, by_name)
        judged.append(family)
        if family.noisy and family.by_validation:
            verdict = _verdict(family, by_name)
            about = f"{settings_words(family.settings)}: " if len(families) > 1 and family.settings else ""
            verdicts.append(replace(verdict, sentence=about + verdict.sentence))
    if not varies_noise(axes) and not any(condition.kind == "noisy" for condition in conditions):
        verdicts += _preferences(list(by_name.values()))
    return tuple(by_name.values()), tuple(judged), tuple(verdicts)


def _compared(family: Family, by_name: Mapping[str, Condition]) -> dict[str, Condition]:
    """The family's members with their differences to its clean student; those of noises corrected for their number."""
    members = {}
    for name in filter(None, (family.labels, *family.noisy)):
        condition = by_name[name]
        if not condition.against_clean:  # families may share the student on labels: it belongs to the first
            condition = replace(condition, against_clean=differences(condition, by_name[family.clean]))
        members[name] = condition
    for role in ("val", "test"):
        gaps = {name: gap for name in family.noisy if (gap := members[name].against_clean.get(role)) is not None}
        # A noise whose pairs all differ alike has no p, but it was tested: it counts in the correction.
        corrected = holm([1.0 if gap.p is None else gap.p for gap in gaps.values()])
        for (name, gap), p in zip(gaps.items(), corrected, strict=True):
            gap = replace(gap, p_holm=None if gap.p is None else p)
            members[name] = replace(members[name], against_clean=members[name].against_clean | {role: gap})
    return members


def _preferred(family: Family, by_name: Mapping[str, Condition]) -> Family:
    """The family with the members that validation and test prefer."""
    members = [by_name[name] for name in (family.clean, *family.noisy)]
    scored = [condition for condition in members if condition.score("val")]
    if not scored:
        return family
    by_validation = _lowest(_means(scored, "val"))
    if not all(condition.score("test") for condition in scored):
        return replace(family, by_validation=by_validation)
    test = _means(scored, "test")
    by_test = _lowest(test)
    optimism = test[by_validation[0]] - test[by_test[0]]
    return replace(family, by_validation=by_validation, by_test=by_test, optimism_points=optimism)


def _verdict(family: Family, by_name: Mapping[str, Condition]) -> Verdict:
    """helps | hurts | no evidence, and why, in one sentence.

    The noise that validation prefers is judged by its paired test difference, corrected for all noises of the family:
    choosing the best of many by luck is what the correction is for.
    """
    members = [by_name[name] for name in (family.clean, *family.noisy)]
    role = "test" if any(condition.score("test") for condition in members) else "val"
    scored = [condition for condition in members if condition.score("val")]
    val = _means(scored, "val")
    gaps = {
        name: by_name[name].against_clean[role] for name in family.noisy if name in val and by_name[name].against_clean
    }
    if not gaps:
        return Verdict("no evidence", "no evidence: there is no noisy student to compare with a clean one")
    best_noises = _lowest({name: val[name] for name in gaps})
    condition, gap = by_name[best_noises[0]], gaps[best_noises[0]]
    helping, hurting = (sum(_significant(gap) and gap.mean * sign > 0 for gap in gaps.values()) for sign in (-1, 1))

    size = f"{signed(gap.mean)} points of {SPLIT_NAMES[role]} error against no noise"
    pairs = plural(gap.n, "paired seed")
    if gap.p_holm is None or gap.low is None or gap.high is None:
        basis = f"{size}, {pairs}: {missing_interval(gap.n, gap.mean, gap.sd)}"
    else:
        basis = (
            f"{size}, 95 % interval {signed(gap.low)} to {signed(gap.high)}, p = {gap.p:.2g}, corrected for "
            f"{plural(len(gaps), 'comparison')} {gap.p_holm:.2g}, {pairs}"
        )
    word = "no evidence"
    if _significant(gap):
        word = "helps" if gap.mean < 0 else "hurts"
        claim = f"the noise {word}"
    elif helping:
        also = " and others hurt" if hurting else ""
        claim = f"no evidence for the noise that validation prefers, while others help{also}"
    elif hurting:
        claim = "no evidence that any noise helps, while some hurts"
    else:
        claim = "no evidence that the noise helps or hurts"
    choice = ""
    if len(gaps) > 1:
        level = f"one of {len(best_noises)} that are level and that" if len(best_noises) > 1 else "which"
        choice = f", {level} validation prefers among {len(gaps)} noises,"
        basis += f"; of all {len(gaps)}, {helping} help and {hurting} hurt after correction"
    if family.clean in (lowest := _lowest(val)):
        prefers = "; validation prefers no noise to all of them"
        basis += prefers if len(lowest) == 1 else "; on validation no noise is level with the best of them"
    shared = _shared_seeds(scored)
    if any(set(member.seeds) != shared for member in scored):
        over = f"the {plural(len(shared), 'seed')} that all have" if shared else "different ones"
        basis += f"; some seeds are missing: validation is compared over {over}"
    return Verdict(word, f"{claim}: {condition.title}{choice} gives {basis}", condition.name)


def _significant(gap: Difference) -> bool:
    return gap.p_holm is not None and gap.p_holm < LEVEL


def _preferences(conditions: Sequence[Condition]) -> list[Verdict]:
    """What validation prefers in a sweep without noise, one for each set of evaluation images."""
    groups: dict[tuple[str, int | None, int | None], list[Condition]] = {}
    for condition in conditions:
        if condition.score("val"):
            images = condition.data, condition.n.get("val"), condition.n.get("test")
            groups.setdefault(images, []).append(condition)
    groups = {images: members for images, members in groups.items() if any(m.kind == "clean" for m in members)}
    several = len({data for data, _, _ in groups}) > 1
    verdicts = []
    for (data, _, _), members in groups.items():
        verdict = _preference(members)
        verdicts.append(replace(verdict, sentence=f"{data}: {verdict.sentence}") if several else verdict)
    return verdicts


def _preference(members: Sequence[Condition]) -> Verdict:
    """The distilled condition with the lowest validation error, how it compares with the next and with labels."""
    distilled = {condition.name: condition for condition in members if condition.kind == "clean"}
    means = _means(list(distilled.values()), "val")
    best = distilled[_lowest(means)[0]]
    among = f"among {len(distilled)} settings validation prefers " if len(distilled) > 1 else ""
    parts = [f"{among}{best.title}: {means.pop(best.name):.2f} % validation error"]
    if means:
        second = distilled[_lowest(means)[0]]
        gap = differences(best, second).get("val")
        if gap is not None:
            interval, pairs = "", plural(gap.n, "paired seed")
            if gap.low is not None and gap.high is not None:
                interval = f"95 % interval {signed(gap.low)} to {signed(gap.high)}, "
            parts.append(f"{signed(gap.mean)} points against the next, {second.title} ({interval}{pairs})")
    if (test := best.score("test")) is not None:
        parts.append(f"{test} % test error")
    labels = [error.mean for member in members if member.kind == "labels" and (error := member.score("val"))]
    if labels:
        parts.append(f"labels alone: {min(labels):.2f} % validation error")
    return Verdict("", "; ".join(parts), best.name)


def _means(conditions: Sequence[Condition], role: str) -> dict[str, float]:
    """Mean errors that can be compared: over the seeds that all have, or each condition's own if there are none."""
    shared = _shared_seeds(conditions)
    means = {}
    for condition in conditions:
        error = condition.score(role)
        assert error is not None
        values = [value for seed, value in zip(condition.seeds, error.per_seed, strict=True) if seed in shared]
        means[condition.name] = mean_interval(values or error.per_seed).mean
    return means


def _shared_seeds(conditions: Sequence[Condition]) -> set[int]:
    return set.intersection(*(set(condition.seeds) for condition in conditions))


def _lowest(means: Mapping[str, float]) -> tuple[str, ...]:
    """The names with the lowest mean; several where they are level."""
    return tuple(name for name, mean in means.items() if math.isclose(mean, min(means.values()), rel_tol=1e-9))
