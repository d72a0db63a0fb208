"""The result of a sweep: every condition paired with its clean student, what validation prefers, verdicts, a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from noisyteacher.io.files import Json
from noisyteacher.pipeline.results import (
    CHOICE_NOTE,
    Condition,
    Family,
    RunResult,
    Trend,
    Verdict,
    differences,
    p_note,
    why_no_interval,
)
from noisyteacher.stats import PairedDifference, allowed, evidence, outcome, p_words, simultaneous, trend
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
        headers = ("condition", "seeds", "val error %", "test error %", self._difference_name, "p")
        rows = []
        for condition in self.conditions:
            errors = [str(condition.score(role) or "-") for role in ("val", "test")]
            row = [condition.title, str(len(condition.seeds)), *errors, "", ""]
            if condition.against_clean:
                split = _compared_on(condition)
                gap = condition.against_clean[split]
                suffix = f" ({split})" if headers[4].startswith("error") else ""
                row[4:] = [f"{gap}{suffix}", "" if gap.corrected is None else p_words(gap.corrected)]
            rows.append(tuple(row))
        return Table(headers, tuple(rows), notes=tuple(self.notes()))

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
        missing = why_no_interval(each.score(role) for each in self.conditions for role in ("val", "test"))
        gaps = [gap for condition in self.conditions for gap in condition.against_clean.values()]
        reference = self._difference_name.split()[-1]
        notes.append(
            f"[ ] = 95 % Student-t interval over seeds{missing}. {self._difference_name}: paired by seed with the "
            f"{reference} student of the same settings. {p_note(gaps)}".strip()
        )
        notes += [CHOICE_NOTE] if any(verdict.fresh for verdict in self.verdicts) else []
        return notes

    def tables(self) -> list[Table]:
        """What is printed of it: the table of conditions."""
        return [self.table()]


def _compared_on(condition: Condition) -> str:
    """The split that its difference to the clean student is reported on: test where there is one."""
    return "test" if "test" in condition.against_clean else "val"


def settings_words(settings: Mapping[str, object]) -> str:
    """Settings on one line. `settings_words({"student.lr": 0.01}) == "student.lr 0.01"`."""
    return ", ".join(
        f"{key} {str(value).lower() if isinstance(value, bool) else value}" for key, value in settings.items()
    )


def analyse(
    conditions: Sequence[Condition], families: Sequence[Family], axes: Sequence[str], seeds: int | None = None
) -> tuple[tuple[Condition, ...], tuple[Family, ...], tuple[Verdict, ...]]:
    """The conditions with their differences to the clean student, the families with what is preferred, the verdicts.

    A pure function of the scores. Sweeps over noise have a verdict per family; others say what validation prefers on
    each data set. seeds: how many all conditions have; further ones are fresh, and the chosen noise is judged on them.
    """
    by_name = {condition.name: condition for condition in conditions}
    judged: list[Family] = []
    verdicts: list[Verdict] = []
    for family in families:
        common = range(seeds) if seeds is not None and len(family.noisy) > 1 else None  # of one noise all seeds count
        by_name |= _compared(family, by_name, common)
        family = replace(_preferred(family, by_name, common), trends=_trends(family, by_name))
        judged.append(family)
        if family.noisy and family.by_validation:
            about = f"{settings_words(family.settings)}: " if len(families) > 1 and family.settings else ""
            for verdict in _verdict(family, by_name, common), *map(_trend_verdict, family.trends):
                verdicts.append(replace(verdict, sentence=about + verdict.sentence))
    if not varies_noise(axes) and not any(condition.kind == "noisy" for condition in conditions):
        verdicts += _preferences(list(by_name.values()))
    return tuple(by_name.values()), tuple(judged), tuple(verdicts)


def _compared(family: Family, by_name: Mapping[str, Condition], common: range | None) -> dict[str, Condition]:
    """The family's members with their differences to its clean student, those of noises for all noises at once."""
    members = {name: by_name[name] for name in filter(None, (family.labels, *family.noisy))}
    gaps = differences([by_name[name] for name in family.noisy], by_name[family.clean], common)
    if family.labels is not None:
        gaps |= differences([by_name[family.labels]], by_name[family.clean], common)
    # Families may share the student on labels: it belongs to the first.
    return {
        name: replace(condition, against_clean=condition.against_clean or gaps.get(name, {}))
        for name, condition in members.items()
    }


def _role(members: Sequence[Condition]) -> str:
    """The split that members are compared on: test, or val where none has test scores."""
    return "test" if any(condition.score("test") for condition in members) else "val"


def _trends(family: Family, by_name: Mapping[str, Condition]) -> tuple[Trend, ...]:
    """How the error depends on sigma^2, for each noise that was tried with two numbers for sigma or more.

    Intervals and p hold for all of the family's trends at once.
    """
    members = [by_name[name] for name in (family.clean, *family.noisy)]
    role = _role(members)
    groups: dict[str, dict[float, Condition]] = {}
    for condition in members[1:]:
        sigma, settings = condition.settings.get("noise.sigma"), dict(condition.settings)
        if condition.errors_by_seed(role) and isinstance(sigma, int | float):
            title = settings_words(settings | {"noise.sigma": ""})
            groups.setdefault(title, {0.0: members[0]})[float(sigma)] = condition
    slopes, about = list[PairedDifference](), list[Json]()
    for noises in groups.values():
        values = {sigma**2: condition.errors_by_seed(role) for sigma, condition in noises.items()}
        if len(values) > 2 and set.intersection(*map(set, values.values())):
            words = [part for part in list(noises.values())[-1].title.split(", ") if not part.startswith("sigma ")]
            slopes.append(trend(values))
            about.append({"title": ", ".join(words), "sigmas": tuple(sorted(noises))})
    return tuple(Trend(**vars(slope), **of) for slope, of in zip(simultaneous(slopes), about, strict=True))


def _trend_verdict(line: Trend) -> Verdict:
    """The trend in one sentence."""
    claims = {"helps": "the error falls with sigma^2", "hurts": "the error rises with sigma^2"}
    claim = claims.get(outcome(line), "no evidence that the error depends on sigma^2")
    noise = ", ".join(filter(None, (line.title, f"sigma {', '.join(f'{sigma:g}' for sigma in line.sigmas)}")))
    return Verdict("", f"{claim} ({noise}): {evidence(line, 'points of error per unit', 'seed')}")


def _preferred(family: Family, by_name: Mapping[str, Condition], common: range | None) -> Family:
    """The family with the members that validation and test prefer."""
    members = [by_name[name] for name in (family.clean, *family.noisy)]
    scored = [condition for condition in members if condition.score("val")]
    if not scored:
        return family
    by_validation = _lowest(_means(scored, "val", common))
    if not all(condition.score("test") for condition in scored):
        return replace(family, by_validation=by_validation)
    test = _means(scored, "test", common)
    by_test = _lowest(test)
    optimism = test[by_validation[0]] - test[by_test[0]]
    return replace(family, by_validation=by_validation, by_test=by_test, optimism_points=optimism)


def _verdict(family: Family, by_name: Mapping[str, Condition], common: range | None) -> Verdict:
    """helps | hurts | no evidence, and why, in one sentence.

    The noise that validation prefers is judged by one paired test on seeds that took no part in the choice. Without two
    of these it is judged on the seeds of the choice, by a difference that holds for all noises of the family at once.
    """
    members = [by_name[name] for name in (family.clean, *family.noisy)]
    role = _role(members)
    scored = [condition for condition in members if condition.score("val")]
    gaps = {condition.name: condition.against_clean[role] for condition in scored if role in condition.against_clean}
    if not gaps:
        return Verdict("no evidence", "no evidence: there is no noisy student to compare with a clean one")
    val = _means(scored, "val", common)
    best_noises = _lowest({name: val[name] for name in gaps})
    condition, gap = by_name[best_noises[0]], gaps[best_noises[0]]
    outcomes = [outcome(gap) for gap in gaps.values()]
    helping, hurting = outcomes.count("helps"), outcomes.count("hurts")
    fresh = [seed for seed in condition.seeds if common is not None and seed not in common]
    clean = by_name[family.clean]
    of_fresh = None
    if len(gaps) > 1 and len(set(fresh) & set(clean.seeds)) > 1:
        of_fresh = gap = differences([condition], clean, fresh, fresh)[condition.name][role]
        choice = ", none of which took part in the choice"
    else:
        choice = ", on which it was chosen too"

    word = outcome(gap)
    if word != "no evidence":
        claim = f"the noise {word}"
    elif helping:
        also = " and others hurt" if hurting else ""
        claim = f"no evidence for the noise that validation prefers, while others help{also}"
    elif hurting:
        claim = "no evidence that any noise helps, while some hurts"
    else:
        claim = "no evidence that the noise helps or hurts"
    basis = evidence(gap, f"points of {SPLIT_NAMES[role]} error against no noise")
    basis += f"{choice if len(gaps) > 1 else ''}{allowed(gap)}"
    prefers = ""
    if len(gaps) > 1:
        level = f"one of {len(best_noises)} that are level and that" if len(best_noises) > 1 else "which"
        prefers = f", {level} validation prefers among {len(gaps)} noises,"
        basis += f"; of all {len(gaps)}, {helping} help and {hurting} hurt"
        bounds = [(gap.low, gap.high) for gap in gaps.values() if gap.low is not None and gap.high is not None]
        if bounds:
            low, high = min(low for low, _ in bounds), max(high for _, high in bounds)
            basis += f", with intervals from {signed(low)} to {signed(high)}"
    if family.clean in (lowest := _lowest(val)):
        prefers_clean = "; validation prefers the clean student to all of them"
        basis += prefers_clean if len(lowest) == 1 else "; on validation the clean student is level with the best"
    shared = _shared_seeds(scored, common)
    expected = set(common) if common else {seed for member in scored for seed in member.seeds}
    if shared != expected:
        basis += f"; {_missing_seeds(shared)}"
    return Verdict(word, f"{claim}: {condition.title}{prefers} gives {basis}", condition.name, of_fresh)


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
    """The distilled condition with the lowest validation error, how it compares with the next and with labels.

    Where others have all seeds, those that failed at some are left out: what is left of them are seeds that went well.
    """
    distilled = {condition.name: condition for condition in members if condition.kind == "clean"}
    expected = set().union(*(condition.seeds for condition in distilled.values()))
    whole = {name: each for name, each in distilled.items() if set(each.seeds) == expected}
    means = _means(list((whole or distilled).values()), "val")
    best = distilled[_lowest(means)[0]]
    among = f"among {len(distilled)} settings validation prefers " if len(distilled) > 1 else ""
    if whole and len(whole) < len(distilled):
        among = f"among the {len(whole)} of {len(distilled)} settings with all seeds validation prefers "
    parts = [f"{among}{best.title}: {means.pop(best.name):.2f} % validation error"]
    if means:
        second = distilled[_lowest(means)[0]]
        gap = differences([best], second).get(best.name, {}).get("val")
        if gap is not None:
            parts.append(evidence(gap, f"points against the next, {second.title}"))
    if (test := best.score("test")) is not None:
        parts.append(f"{test} % test error")
    labels = [error.mean for member in members if member.kind == "labels" and (error := member.score("val"))]
    if labels:
        parts.append(f"labels alone: {min(labels):.2f} % validation error")
    if not whole:
        parts.append(_missing_seeds(_shared_seeds(list(distilled.values()), None)))
    return Verdict("", "; ".join(parts), best.name)


def _means(conditions: Sequence[Condition], role: str, common: range | None = None) -> dict[str, float]:
    """Mean errors that can be compared: over the seeds that all have, or each condition's own if there are none."""
    shared = _shared_seeds(conditions, common)
    means = {}
    for condition in conditions:
        error = condition.score(role)
        assert error is not None
        values = [value for seed, value in zip(condition.seeds, error.per_seed, strict=True) if seed in shared]
        means[condition.name] = fmean(values or error.per_seed)
    return means


def _shared_seeds(conditions: Sequence[Condition], common: range | None) -> set[int]:
    """The seeds that all have, of `common` where some are fresh."""
    shared = set.intersection(*(set(condition.seeds) for condition in conditions))
    return shared if common is None else shared & set(common)


def _missing_seeds(shared: set[int]) -> str:
    """That not all conditions have all seeds, and over which ones they are compared."""
    over = f"the {plural(len(shared), 'seed')} that all have" if shared else "different ones"
    return f"some seeds are missing: validation is compared over {over}"


def _lowest(means: Mapping[str, float]) -> tuple[str, ...]:
    """The names with the lowest mean; several where they are level."""
    return tuple(name for name, mean in means.items() if math.isclose(mean, min(means.values()), rel_tol=1e-9))
