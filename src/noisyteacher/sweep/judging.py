"""Cells become conditions over their seeds, paired with the clean one; what validation chooses; verdicts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from noisyteacher.stats import (
    LEVEL,
    PERCENT,
    PairedDifference,
    Scale,
    holm,
    mean_interval,
    missing_interval,
    paired_difference,
    scale_of,
)
from noisyteacher.sweep.grid import Condition, Family, varies_noise
from noisyteacher.sweep.result import spread
from noisyteacher.text import plural, signed

SCORES = {
    "val_error_%": ("val", "error"),
    "test_error_%": ("test", "error"),
    "val_nll_nats": ("val", "nll"),
    "test_nll_nats": ("test", "nll"),
    "test_ece_%": ("test", "ece"),
    "test_agreement_%": ("test", "agreement"),
}
"""Key of a condition's record -> split and score of its cells' results."""


def judge_sweep(
    conditions: Sequence[Condition], families: Sequence[Family], results: Mapping[tuple[str, int], Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The records of all conditions and families from the results of their cells, (condition, seed) -> result.json.

    A function of the results alone: no times, no machine, so that a sweep that was interrupted gives the same bytes.
    """
    records = {one.name: _condition(one, results) for one in conditions}
    found = [_family(one, records) for one in families]
    return list(records.values()), found


def _condition(condition: Condition, results: Mapping[tuple[str, int], Mapping[str, Any]]) -> dict[str, Any]:
    seeds = sorted(seed for name, seed in results if name == condition.name)
    done = [results[condition.name, seed] for seed in seeds]
    scores = {}
    for key, (role, score) in SCORES.items():
        values = [one["scores"].get(role, {}).get(score, {}).get("value") for one in done]
        scores[key] = summary(values, scale_of(key)) if values and None not in values else None
    return {
        "name": condition.name,
        "label": condition.label,
        "kind": condition.kind,
        "family": condition.family,
        "settings": dict(condition.settings),
        "seeds": seeds,
        **scores,
        "best_epoch": [one["training"]["best_epoch"] for one in done],
        "against_clean": None,
        "runs": [f"{condition.name}-seed{seed}" for seed in seeds],
    }


def _family(family: Family, records: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Compare the family's members with its clean student, correct for their number, choose, judge."""
    role = (
        "test_error_%"
        if any(records[name]["test_error_%"] for name in (family.clean, *family.noisy))
        else "val_error_%"
    )
    for name in filter(None, (family.labels, *family.noisy)):
        against = _against(records[name], records[family.clean])
        if against is not None and records[name]["against_clean"] is None:
            records[name]["against_clean"] = against
    for key in ("val_error_%", "test_error_%"):
        found = [(records[name]["against_clean"] or {}).get(key) for name in family.noisy]
        compared = [one for one in found if one is not None]
        # A noise whose pairs all differ alike has no p of its own; it was looked at, so it counts, as one that is not
        # sure.
        ps = [1.0 if one["p"] is None else one["p"] for one in compared]
        for one, p in zip(compared, holm(ps), strict=True):
            one["p_holm"] = None if one["p"] is None else p
    members = [name for name in (family.clean, *family.noisy) if records[name]["val_error_%"]]
    record: dict[str, Any] = {
        "name": family.name, "settings": dict(family.settings), "clean": family.clean, "labels": family.labels,
        "by_validation": None, "by_test": None, "optimism_points": None, "verdict": None,
    }  # fmt: skip
    if not members:
        return record
    val = _means(members, records, "val_error_%")
    chosen, *_ = _least(val)
    record["by_validation"] = _chosen(records, val)
    if role == "test_error_%" and all(records[name][role] for name in members):
        test = _means(members, records, role)
        luckiest, *_ = _least(test)
        record["by_test"] = _chosen(records, test)
        record["optimism_points"] = test[chosen] - test[luckiest]
    if family.noisy:
        record["verdict"] = _verdict(family, records, val, role)
    return record


def preferences(
    judged: Sequence[Mapping[str, Any]], teachers: Sequence[Mapping[str, Any]], axes: Sequence[str]
) -> list[dict[str, str]]:
    """What validation prefers in a sweep without noise, one record for each set of evaluation images.

    judged: records of all conditions; teachers: records that say on which data a condition is. Each record has `data`,
    the `condition` that is preferred and a `sentence`. Empty for a sweep over noise, whose families have verdicts.
    """
    if varies_noise(axes) or any(one["kind"] == "noisy" for one in judged):
        return []
    groups: dict[tuple[str, Any, Any], list[str]] = {}
    for one in teachers:
        split = str(one["data"]), one["n"].get("val"), one["n"].get("test")
        groups.setdefault(split, []).extend(one["conditions"])
    found = []
    for (data, _, _), names in groups.items():
        members = {one["name"]: one for one in judged if one["name"] in names and one["val_error_%"]}
        distilled = [name for name, one in members.items() if one["kind"] == "clean"]
        if distilled:
            best, sentence = _preference(distilled, members)
            found.append({"data": data, "condition": best, "sentence": sentence})
    return found


def _preference(distilled: Sequence[str], members: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    """The distilled condition with the least validation error, and how it compares with the next and with labels."""
    means = _means(distilled, members, "val_error_%")
    best = _least(means)[0]
    among = f"among {len(distilled)} settings validation prefers " if len(distilled) > 1 else ""
    parts = [f"{among}{members[best]['label']}: {means[best]:.2f} % validation error"]
    others = {name: mean for name, mean in means.items() if name != best}
    if others:
        runner_up = _least(others)[0]
        gap = _against(members[best], members[runner_up])
        if gap is not None:
            d = gap["val_error_%"]
            interval = "" if d["low"] is None else f"95 % interval {signed(d['low'])} to {signed(d['high'])}, "
            parts.append(
                f"{signed(d['mean'])} points against the next, {members[runner_up]['label']} ({interval}"
                f"{plural(d['n'], 'paired seed')})"
            )
    if members[best]["test_error_%"]:
        parts.append(f"{spread(members[best]['test_error_%'])} % test error")
    labels = [name for name, one in members.items() if one["kind"] == "labels"]
    if labels:
        least = min(members[name]["val_error_%"]["mean"] for name in labels)
        parts.append(f"labels alone: {least:.2f} % validation error")
    return best, "; ".join(parts)


def _means(names: Sequence[str], records: Mapping[str, Mapping[str, Any]], key: str) -> dict[str, float]:
    """Mean errors that can be held against each other: over the seeds that all have, or each one's own if none is."""
    seeds = _shared(names, records)
    found = {}
    for name in names:
        one = records[name]
        values = [value for seed, value in zip(one["seeds"], one[key]["per_seed"], strict=True) if seed in seeds]
        found[name] = mean_interval(values).mean if values else float(one[key]["mean"])
    return found


def _shared(names: Sequence[str], records: Mapping[str, Mapping[str, Any]]) -> set[int]:
    return set.intersection(*(set(records[name]["seeds"]) for name in names))


def _least(means: Mapping[str, float]) -> list[str]:
    """Who has the least; several where they are level."""
    return [name for name, mean in means.items() if math.isclose(mean, min(means.values()), rel_tol=1e-9)]


def _against(one: Mapping[str, Any], clean: Mapping[str, Any]) -> dict[str, Any] | None:
    """A condition's error minus the clean one's over their common seeds; None without any."""
    common = [seed for seed in one["seeds"] if seed in clean["seeds"]]
    if not common:
        return None
    found: dict[str, Any] = {"reference": clean["name"]}
    for key in ("val_error_%", "test_error_%"):
        if one[key] and clean[key]:
            before, after = (
                [float(of[key]["per_seed"][of["seeds"].index(seed)]) for seed in common] for of in (clean, one)
            )
            found[key] = {**_plain(paired_difference(before, after, scale=PERCENT)), "p_holm": None}
    return found


def _verdict(
    family: Family, records: Mapping[str, Mapping[str, Any]], val: Mapping[str, float], role: str
) -> dict[str, str]:
    """helps | hurts | no evidence, and why, in one sentence; `val`: what validation says of the members.

    The noise that validation prefers to every other noise is the one judged, by its paired test difference, corrected
    for all noises of the family: naming the best of many by luck is what the correction is for.
    """
    noisy = [name for name in family.noisy if name in val and records[name]["against_clean"]]
    if not noisy:
        return {"word": "no evidence", "sentence": "no evidence: there is no noisy student to compare with a clean one"}
    level = _least({name: val[name] for name in noisy})
    record, d = records[level[0]], records[level[0]]["against_clean"][role]
    split = "test" if role == "test_error_%" else "validation"
    size = f"{signed(d['mean'])} points of {split} error against no noise"
    if d["p_holm"] is None or d["low"] is None:
        why = missing_interval(d["n"], d["mean"], d["sd"])
        word, basis = "no evidence", f"{size}, {plural(d['n'], 'paired seed')}: {why}"
    else:
        basis = (
            f"{size}, 95 % interval {signed(d['low'])} to {signed(d['high'])}, p = {d['p']:.2g}, corrected for "
            f"{plural(len(noisy), 'comparison')} {d['p_holm']:.2g}, {plural(d['n'], 'paired seed')}"
        )
        sure = d["p_holm"] < LEVEL
        word = ("helps" if d["mean"] < 0 else "hurts") if sure else "no evidence"
    helped, hurt = (len(_sure(noisy, records, role, sign)) for sign in (-1, 1))
    others = f"; of all {len(noisy)}, {helped} help and {hurt} hurt after correction" if len(noisy) > 1 else ""
    rest = others + _against_none(family.clean, val) + _different_seeds(val, records)
    what = record["label"] + _preferred(level, len(noisy))
    return {"word": word, "sentence": f"{_claim(word, helped, hurt)}: {what} gives {basis}{rest}"}


def _preferred(level: Sequence[str], noises: int) -> str:
    """How the noise that is judged was picked."""
    if noises == 1:
        return ""
    if len(level) == 1:
        return f", which validation prefers among {noises} noises,"
    return f", one of {len(level)} that are level and that validation prefers among {noises} noises,"


def _against_none(clean: str, val: Mapping[str, float]) -> str:
    """What validation says of no noise, where that is not worse than every noise."""
    least = _least(val)
    if clean not in least:
        return ""
    if len(least) == 1:
        return "; validation prefers no noise to all of them"
    return "; on validation no noise is level with the best of them"


def _different_seeds(val: Mapping[str, float], records: Mapping[str, Mapping[str, Any]]) -> str:
    """Where seeds are missing, over which ones validation compares."""
    shared = _shared(list(val), records)
    if all(set(records[name]["seeds"]) == shared for name in val):
        return ""
    if not shared:
        return "; some seeds are missing: validation is compared over different ones"
    return f"; some seeds are missing: validation is compared over the {plural(len(shared), 'seed')} that all have"


def _claim(word: str, helped: int, hurt: int) -> str:
    """What a verdict begins with: of the noise that validation prefers, or of the others where only they are sure."""
    if word != "no evidence":
        return f"the noise {word}"
    if helped:
        also = " and others hurt" if hurt else ""
        return f"no evidence for the noise that validation prefers, while others help{also}"
    if hurt:
        return "no evidence that any noise helps, while some hurts"
    return "no evidence that the noise helps or hurts"


def _sure(names: Sequence[str], records: Mapping[str, Mapping[str, Any]], role: str, sign: int) -> list[str]:
    found = []
    for name in names:
        d = records[name]["against_clean"][role]
        if d["p_holm"] is not None and d["p_holm"] < LEVEL and d["mean"] * sign > 0:
            found.append(name)
    return found


def _chosen(records: Mapping[str, Mapping[str, Any]], means: Mapping[str, float]) -> dict[str, Any]:
    """The one with the least mean, and those that are level with it."""
    name, *level = _least(means)
    record = records[name]
    own = {key: record[key]["mean"] if record[key] else None for key in ("val_error_%", "test_error_%")}
    return {"condition": name, "label": record["label"], **own, "level": level}


def summary(values: Sequence[float], scale: Scale) -> dict[str, Any]:
    """Values (one per seed) with mean, sd and Student-t interval within the scale, JSON-able."""
    interval = mean_interval(values, scale=scale)
    return {
        "per_seed": list(values), "mean": interval.mean, "sd": interval.sd, "low": interval.low, "high": interval.high,
        "n": interval.n,
    }  # fmt: skip


def _plain(difference: PairedDifference) -> dict[str, Any]:
    record = asdict(difference)
    del record["confidence"]
    return record
