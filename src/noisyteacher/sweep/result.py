"""What a sweep came to: conditions over their seeds, paired with the clean one; what validation chooses; verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from noisyteacher.stats import LEVEL, PairedDifference, holm, mean_interval, paired_difference
from noisyteacher.sweep.grid import Condition, Family
from noisyteacher.text import plural

SCORES = {
    "val_error_%": ("val", "error"),
    "test_error_%": ("test", "error"),
    "val_nll_nats": ("val", "nll"),
    "test_nll_nats": ("test", "nll"),
    "test_ece_%": ("test", "ece"),
    "test_agreement_%": ("test", "agreement"),
}
"""Key of a condition's record -> split and score of its cells' results."""


@dataclass(frozen=True)
class SweepResult:
    """The outcome of a sweep; `record` is what its result.json holds (docs/formats.md)."""

    path: Path
    record: Mapping[str, Any]

    @property
    def conditions(self) -> list[dict[str, Any]]:
        """Every condition with its errors, intervals and paired differences."""
        return list(self.record["conditions"])

    @property
    def families(self) -> list[dict[str, Any]]:
        """Every group of conditions that differ in noise alone: what is chosen, and the verdict."""
        return list(self.record["families"])

    @property
    def failed(self) -> list[dict[str, Any]]:
        """The cells that failed, each with its error."""
        return list(self.record["failed"])

    @property
    def role(self) -> str:
        """The split that is reported on: test, or val where there is no test split."""
        return "test" if self.record["n"].get("test") else "val"

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Headers and rows as text: a line per condition."""
        headers = ("condition", "seeds", "val error %", "test error %", "test - clean", "p", "p (Holm)")
        return headers, [
            (
                one["label"],
                str(len(one["seeds"])),
                spread(one["val_error_%"]),
                spread(one["test_error_%"]),
                *_difference(one["against_clean"], self.role),
            )
            for one in self.conditions
        ]

    def notes(self) -> list[str]:
        """What a reader needs beside the table: n, intervals, the correction, the teacher."""
        n, teacher = self.record["n"], self.record["teacher"]
        sizes = ", ".join(f"{role} n = {count:,}" for role, count in n.items() if count)
        error = teacher[f"{self.role}_error_%"]
        noises = [one["settings"] for one in self.conditions if one["kind"] == "noisy"]
        same = {key: noises[0][key] for key in (noises[0] if noises else ()) if key.startswith("noise.")}
        same = {key: value for key, value in same.items() if all(one[key] == value for one in noises)}
        constant = [f"All noises: {_settings({key[6:]: value for key, value in same.items()})}."] if same else []
        cells = self.record.get("cells")
        partial = [f"{cells['done']} of {cells['all']} cells are done: this is what they say so far."] if cells else []
        return [
            *partial,
            *constant,
            f"{self.record['data']}: {sizes} images. Teacher {teacher['name']}: {error:.2f} % {self.role} error.",
            "[ ] = 95 % Student-t interval over seeds. test - clean: paired by seed with the clean student of the same "
            "settings; p of the paired t-test, then corrected for all noises compared with that student (Holm).",
        ]

    def verdicts(self) -> list[str]:
        """A sentence per family, with its settings in front where there are several."""
        judged = [one for one in self.families if one["verdict"] is not None]
        many = len(judged) > 1
        return [
            (f"{_settings(one['settings'])}: " if many and one["settings"] else "") + one["verdict"]["sentence"]
            for one in judged
        ]

    def __str__(self) -> str:
        headers, rows = self.table()
        widths = [max(len(row[column]) for row in [headers, *rows]) for column in range(len(headers))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                 for row in [headers, *rows]]  # fmt: skip
        return "\n".join([*lines, "", *self.notes(), "", *(f"Verdict: {one}." for one in self.verdicts())])


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
        scores[key] = summary(values) if values and None not in values else None
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
    chosen = min(members, key=lambda name: records[name]["val_error_%"]["mean"])
    record["by_validation"] = _chosen(records[chosen])
    if role == "test_error_%" and all(records[name][role] for name in members):
        luckiest = min(members, key=lambda name: records[name][role]["mean"])
        record["by_test"] = _chosen(records[luckiest])
        record["optimism_points"] = records[chosen][role]["mean"] - records[luckiest][role]["mean"]
    if family.noisy:
        record["verdict"] = _verdict(family, records, chosen, role)
    return record


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
            found[key] = {**_plain(paired_difference(before, after)), "p_holm": None}
    return found


def _verdict(family: Family, records: Mapping[str, Mapping[str, Any]], chosen: str, role: str) -> dict[str, str]:
    """helps | hurts | no evidence, and why, in one sentence.

    The noise that validation prefers to every other noise is the one judged, by its paired test difference, corrected
    for all noises of the family: naming the best of many by luck is what the correction is for.
    """
    noisy = [name for name in family.noisy if records[name]["val_error_%"] and records[name]["against_clean"]]
    if not noisy:
        return {"word": "no evidence", "sentence": "no evidence: there is no noisy student to compare with a clean one"}
    best = min(noisy, key=lambda name: records[name]["val_error_%"]["mean"])
    record, d = records[best], records[best]["against_clean"][role]
    split = "test" if role == "test_error_%" else "validation"
    preferred = f", which validation prefers among {len(noisy)} noises," if len(noisy) > 1 else ""
    what = record["label"] + preferred
    size = f"{d['mean']:+.2f} points of {split} error against no noise"
    if d["p_holm"] is None or d["low"] is None:
        word, basis = "no evidence", f"{size}, {plural(d['n'], 'paired seed')}: no interval"
    else:
        basis = (
            f"{size}, 95 % interval {d['low']:+.2f} to {d['high']:+.2f}, p = {d['p']:.2g}, corrected for "
            f"{plural(len(noisy), 'comparison')} {d['p_holm']:.2g}, {plural(d['n'], 'paired seed')}"
        )
        sure = d["p_holm"] < LEVEL
        word = ("helps" if d["mean"] < 0 else "hurts") if sure else "no evidence"
    helped, hurt = (len(_sure(noisy, records, role, sign)) for sign in (-1, 1))
    others = f"; of all {len(noisy)}, {helped} help and {hurt} hurt after correction" if len(noisy) > 1 else ""
    clean = "" if chosen != family.clean else "; validation prefers no noise to all of them"
    return {"word": word, "sentence": f"{_claim(word, helped, hurt)}: {what} gives {basis}{others}{clean}"}


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


def _chosen(record: Mapping[str, Any]) -> dict[str, Any]:
    means = {key: record[key]["mean"] if record[key] else None for key in ("val_error_%", "test_error_%")}
    return {"condition": record["name"], "label": record["label"], **means}


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Values (one per seed) with mean, sd and Student-t interval, JSON-able."""
    interval = mean_interval(values)
    return {
        "per_seed": list(values), "mean": interval.mean, "sd": interval.sd, "low": interval.low, "high": interval.high,
        "n": interval.n,
    }  # fmt: skip


def spread(found: Mapping[str, Any] | None) -> str:
    """A summary as text: `0.97 [0.91, 1.03]`; the mean alone where there is one seed; a dash where there is nothing."""
    if found is None:
        return "-"
    if found["low"] is None:
        return f"{found['mean']:.2f}"
    return f"{found['mean']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def _difference(against: Mapping[str, Any] | None, role: str) -> tuple[str, str, str]:
    d = None if against is None else against.get(f"{role}_error_%")
    if d is None:
        return "", "", ""
    shown = f"{d['mean']:+.2f}" if d["low"] is None else f"{d['mean']:+.2f} [{d['low']:+.2f}, {d['high']:+.2f}]"
    return shown, "" if d["p"] is None else f"{d['p']:.2g}", "" if d["p_holm"] is None else f"{d['p_holm']:.2g}"


def _plain(difference: PairedDifference) -> dict[str, Any]:
    record = asdict(difference)
    del record["confidence"]
    return record


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key} {str(value).lower() if isinstance(value, bool) else value}" for key, value in settings.items()
    )
