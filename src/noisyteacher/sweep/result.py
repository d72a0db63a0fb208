"""What a sweep came to: conditions over their seeds, paired with the clean one; what validation chooses; verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noisyteacher.sweep.grid import varies_noise
from noisyteacher.text import signed


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
        return "test" if any(one["n"].get("test") for one in self._teachers) else "val"

    @property
    def _teachers(self) -> list[dict[str, Any]]:
        """Every teacher with its data and their sizes."""
        first = {"data": self.record["data"], "n": self.record["n"]}
        return [{**first, **one} for one in self.record.get("teachers") or [self.record["teacher"]]]

    @property
    def _compared(self) -> str:
        """What of conditions is held against their clean students: `test`, `val`, or of some one, of some the other."""
        splits = {split for one in self.conditions if (split := _difference(one["against_clean"])[0])} or {self.role}
        return splits.pop() if len(splits) == 1 else "error"

    @property
    def _of_noise(self) -> bool:
        """Whether the sweep is about noise: some condition is noisy, or a setting of the noise is on the grid."""
        return any(one["kind"] == "noisy" for one in self.conditions) or varies_noise(self.record["axes"])

    @property
    def _reference(self) -> str:
        """What a condition is compared with: the student distilled with the same settings and without noise."""
        return "clean" if self._of_noise else "distilled"

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Headers and rows as text: a line per condition."""
        told = [_difference(one["against_clean"]) for one in self.conditions]
        compared = f"{self._compared} - {self._reference}"
        headers = ("condition", "seeds", "val error %", "test error %", compared, "p", "p (Holm)")
        rows = [
            (
                one["label"],
                str(len(one["seeds"])),
                spread(one["val_error_%"]),
                spread(one["test_error_%"]),
                f"{size} ({split})" if split and split != self._compared else size,
                *rest,
            )
            for one, (split, size, *rest) in zip(self.conditions, told, strict=True)
        ]
        columns = len(headers) - (not self._of_noise)  # only noises are corrected for their number
        return headers[:columns], [row[:columns] for row in rows]

    def notes(self) -> list[str]:
        """What a reader needs beside the table: n, intervals, the correction, the teachers."""
        noises = [one["settings"] for one in self.conditions if one["kind"] == "noisy"]
        same = {key: noises[0][key] for key in (noises[0] if noises else ()) if key.startswith("noise.")}
        same = {key: value for key, value in same.items() if all(one[key] == value for one in noises)}
        constant = [f"All noises: {_settings({key[6:]: value for key, value in same.items()})}."] if same else []
        cells = self.record.get("cells")
        partial = [f"{cells['done']} of {cells['all']} cells are done: this is what they say so far."] if cells else []
        return [
            *partial,
            *constant,
            *self._data_and_teachers(),
            f"[ ] = 95 % Student-t interval over seeds{self._missing}. {self._compared} - {self._reference}: paired by "
            f"seed with the {self._reference} student of the same settings; p of the paired t-test"
            + (", then corrected for all noises compared with that student (Holm)." if self._of_noise else "."),
        ]

    @property
    def _missing(self) -> str:
        """What is to be said of intervals that were left out."""
        errors = [one[key] for one in self.conditions for key in ("val_error_%", "test_error_%") if one[key]]
        left_out = any(one["n"] > 1 and one["low"] is None for one in errors)
        return " (no interval: it would be wider than 0 to 100 %)" if left_out else ""

    def _data_and_teachers(self) -> list[str]:
        """A sentence per data set, with those who teach there."""
        found: dict[str, list[str]] = {}
        several = len(self._teachers) > 1
        for one in self._teachers:
            sizes = ", ".join(f"{role} n = {count:,}" for role, count in one["n"].items() if count)
            role = "test" if one.get("test_error_%") is not None else "val"
            what = self._taught(one) if several else ""
            error = f"Teacher {one['name']}{f' ({what})' if what else ''}: {one[f'{role}_error_%']:.2f} % {role} error."
            found.setdefault(f"{one['data']}: {sizes} images.", []).append(error)
        return [" ".join([data, *teachers]) for data, teachers in found.items()]

    def _taught(self, teacher: Mapping[str, Any]) -> str:
        """What tells this teacher's conditions from those of others."""
        names = teacher.get("conditions") or ()
        settings: Mapping[str, Any] = next((one["settings"] for one in self.conditions if one["name"] in names), {})
        return _settings({key: value for key, value in settings.items() if key.startswith(("teacher.", "data."))})

    def verdicts(self) -> list[str]:
        """A sentence per family, with its settings in front where there are several.

        Without noise: what validation prefers on each data set.
        """
        many = len(self.families) > 1
        preferred = self.record.get("preferred") or []
        named = len({one["data"] for one in preferred}) > 1
        return [f"{one['data']}: {one['sentence']}" if named else one["sentence"] for one in preferred] + [
            (f"{_settings(one['settings'])}: " if many and one["settings"] else "") + one["verdict"]["sentence"]
            for one in self.families
            if one["verdict"] is not None
        ]

    def __str__(self) -> str:
        headers, rows = self.table()
        widths = [max(len(row[column]) for row in [headers, *rows]) for column in range(len(headers))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                 for row in [headers, *rows]]  # fmt: skip
        return "\n".join([*lines, "", *self.notes(), "", *(f"Verdict: {one}." for one in self.verdicts())])


def spread(found: Mapping[str, Any] | None) -> str:
    """A summary as text: `0.97 [0.91, 1.03]`; the mean alone where there is one seed; a dash where there is nothing."""
    if found is None:
        return "-"
    if found["low"] is None:
        return f"{found['mean']:.2f}" + (" [no interval]" if found["n"] > 1 else "")
    return f"{found['mean']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def difference(found: Mapping[str, Any]) -> str:
    """A paired difference as text: `+0.16 [-0.41, +0.73]`; the mean alone where there is no interval."""
    if found["low"] is None:
        return signed(found["mean"])
    return f"{signed(found['mean'])} [{signed(found['low'])}, {signed(found['high'])}]"


def _difference(against: Mapping[str, Any] | None) -> tuple[str, str, str, str]:
    """The split that a difference to the clean student is of (test where there is one), its size, p, and p of Holm."""
    split = next((one for one in ("test", "val") if against and against.get(f"{one}_error_%")), None)
    if against is None or split is None:
        return "", "", "", ""
    d = against[f"{split}_error_%"]
    return (
        split,
        difference(d),
        "" if d["p"] is None else f"{d['p']:.2g}",
        "" if d["p_holm"] is None else f"{d['p_holm']:.2g}",
    )


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key} {str(value).lower() if isinstance(value, bool) else value}" for key, value in settings.items()
    )
