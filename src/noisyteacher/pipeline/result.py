"""What a compression came to: a row per model, costs as ratios to the teacher, one sentence on the noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from noisyteacher.export import Exported
from noisyteacher.export import notes as export_notes
from noisyteacher.export import table as export_table
from noisyteacher.pipeline.choosing import explain_choice
from noisyteacher.pipeline.summary import closing_lines, cost_of, summary, warnings_of
from noisyteacher.pipeline.tried import student_table
from noisyteacher.stats import PERCENT, Interval, binomial_interval, mean_interval, paired_difference, verdict
from noisyteacher.text import count, duration, sentence, sigma_words, size_bytes

HEADERS = ("model", "{role} {scored} %", "parameters", "bytes", "MACs", "latency ms", "training")


@dataclass(frozen=True)
class Row:
    """One line of the table: a model under one condition, over its seeds."""

    name: str
    title: str
    errors: tuple[float, ...]
    """Error (%) on the evaluation split, one per seed; without labels the share that disagrees with the teacher."""
    agreement: tuple[float, ...]
    """Share (%) of the split where the model chooses the teacher's class, one per seed; empty for the teacher."""
    seconds: tuple[float, ...]
    """Training time, one per seed; empty when the model was given."""
    costs: Mapping[str, Any]
    """The fields of `Costs` of the model; empty where they could not be measured."""
    runs: tuple[str, ...]
    """Run folders, one per seed."""

    @property
    def error(self) -> Interval:
        """Mean error over the seeds with its interval, which stays within 0 to 100."""
        return mean_interval(self.errors, scale=PERCENT)


@dataclass(frozen=True)
class Result:
    """The outcome of `compress`: rows in the order teacher, controls, student; `str()` of it is the table."""

    path: Path
    data: str
    role: str
    n: int
    rows: tuple[Row, ...]
    noise: Mapping[str, Any] | None
    extraction_s: float
    store: str
    choice: Mapping[str, Any] | None = None
    """How the noise was chosen on validation, where it was: candidates, their errors, what won."""
    search: Mapping[str, Any] | None = None
    """How the student was chosen within the limits on its costs, where it was."""
    best: Mapping[str, Any] | None = None
    """The student that is handed over, which validation prefers: its run, what it loses against the teacher, the files
    written of it (`files`), and why others were not (`failed`)."""
    checks: tuple[Mapping[str, Any], ...] = ()
    """What was looked at before the first step: `check`, whether it `held` (None: it could not be told), and `told`."""
    scored: str = "error"
    """What `Row.errors` are: `error`, or, where there are no labels, `disagreement` with the teacher."""
    warnings: tuple[str, ...] = ()
    """What a reader must not miss, a sentence each without its full stop."""
    time: Mapping[str, Any] | None = None
    """How the minutes of the run were spent, where it was limited."""

    @property
    def seeds(self) -> int:
        """How many seeds each student was trained with."""
        return len(self.rows[-1].errors)

    @property
    def handed_over(self) -> tuple[Row, int]:
        """The row of the student that is handed over, and which of its seeds; in old results the last row's first."""
        run = (self.best or {}).get("run")
        known = ((row, row.runs.index(run)) for row in self.rows if run in row.runs)
        return next(known, (self.rows[-1], 0))

    @property
    def best_student(self) -> Path | None:
        """The folder of the student that is handed over: weights, exported files, model card.

        `nt.load_model(result.best_student)` gives the model. None in results of versions without such a folder.
        """
        folder = (self.best or {}).get("folder")
        return None if folder is None else self.path / folder

    @property
    def files(self) -> list[Exported]:
        """The files written of the student that is handed over, in `best_student`."""
        return [Exported.read(one) for one in (self.best or {}).get("files", ())]

    @property
    def failed(self) -> Mapping[str, str]:
        """The formats that could not be written, each with the reason."""
        return dict((self.best or {}).get("failed", {}))

    @property
    def holds(self) -> bool:
        """Whether everything that was to be checked holds: the loss of accuracy, and a file in every format."""
        best = self.best or {"holds": True, "files": []}
        return bool(best["holds"] and not self.failed and all(one["holds"] for one in best["files"]))

    @property
    def verdict(self) -> str | None:
        """One sentence on what the noise changed against clean logit regression, pair by pair of seeds.

        None where no noise was wanted; where validation preferred none, why.
        """
        named = {row.name: row for row in self.rows}
        if self.noise is None or "noisy" not in named:
            return None if self.choice is None else explain_choice(self.choice)
        if "clean" not in named:
            return "nothing can be said of the noise: no clean student was trained beside the noisy one"
        difference = paired_difference(named["clean"].errors, named["noisy"].errors, scale=PERCENT)
        unit = f"points of {'test' if self.role == 'test' else 'validation'} {self.scored}"
        return verdict(
            difference, f"noise of sigma {sigma_words(self.noise['sigma'])}, alpha {self.noise['alpha']:g}", unit
        )

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Headers and rows as text; a cell's second line is the ratio student / teacher (below 1: smaller, faster)."""
        teacher = self.rows[0]
        headers = tuple(header.format(role=self.role, scored=self.scored) for header in HEADERS)
        return headers, [self._cells(row, teacher) for row in self.rows]

    def tried(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Headers and rows as text: which networks were looked at for a student and why each lost; no rows without."""
        return student_table(self.search or {})

    def _cells(self, row: Row, teacher: Row) -> tuple[str, ...]:
        def cell(value: float | None, reference: float | None, shown: str) -> str:
            if value is None:
                return "-"
            return shown if row is teacher or not reference else f"{shown}\n{value / reference:.2f}x"

        shown: dict[str, Callable[[float], str]] = {
            "parameters": count,
            "bytes": size_bytes,
            "macs": count,
            "latency_ms": "{:.3f}".format,
        }
        cells = []
        for key, show in shown.items():
            value = cost_of(row.costs, key)
            text = "-" if value is None else show(value)
            if key == "macs" and row.costs.get("unsupported"):
                text = f">= {text}"
            cells.append(cell(value, cost_of(teacher.costs, key), text))
        spent = sum(row.seconds) / len(row.seconds) if row.seconds else None
        reference = teacher.seconds[0] if teacher.seconds else None
        cells.append(cell(spent, reference, "given" if spent is None else duration(spent)) if row.seconds else "given")
        return (row.title + self._mark(row), self._error(row), *cells)

    def _mark(self, row: Row) -> str:
        """A second line for the row with the student that is handed over."""
        chosen, seed = self.handed_over
        if self.best is None or row is not chosen:
            return ""
        return "\nhanded over" + (f": seed {seed}, {row.errors[seed]:.2f} %" if len(row.errors) > 1 else "")

    def _error(self, row: Row) -> str:
        error = row.error
        if error.low is not None and error.high is not None:
            return f"{error.mean:.2f}\n[{error.low:.2f}, {error.high:.2f}]"
        if error.n > 1:
            return f"{error.mean:.2f}\n[no interval]"
        low, high = binomial_interval(round(error.mean * self.n / 100), self.n)
        return f"{error.mean:.2f}\n({low:.2f}, {high:.2f})"

    @property
    def _unsure(self) -> str:
        """What is to be said of intervals that were left out."""
        left_out = any(row.error.n > 1 and row.error.low is None for row in self.rows)
        return " (no interval: it would be wider than 0 to 100 %; run more seeds)" if left_out else ""

    def notes(self) -> list[str]:
        """What a reader needs beside the table: n, what the intervals are, conditions of the latency."""
        latency = self.rows[-1].costs.get("latency_ms")
        found = [
            f"{'Errors' if self.scored == 'error' else 'Disagreement with the teacher'}: {self.data}, {self.role}, "
            f"n = {self.n:,} images; "
            + (f"[ ] = 95 % Student-t interval over {self.seeds} seeds{self._unsure}; " if self.seeds > 1 else "")
            + "( ) = 95 % Wilson interval of one run.",
            "Second lines: ratio to the teacher (below 1: smaller, faster). MACs: multiplications of convolution and "
            "linear layers per image. Bytes: the weights file.",
        ]
        if self.scored != "error":
            found.append("No labels: nothing is said of errors, and there is no student on labels to compare with.")
        if self.time is not None:
            found.append(f"Time: {'; '.join(self.time['told'])}.")
        if self.search is not None:
            found.append(f"Student: {'; '.join(self.search['told'])}.")
        if self.choice is not None and self.noise is not None:
            found.append(f"Noise: {explain_choice(self.choice)}.")
        if self.best is not None:
            found.append(sentence(self.best["told"]))
        if latency:
            found.append(
                f"Latency: median of {latency['runs']} forward passes, batch {latency['batch']}, {latency['threads']} "
                f"thread(s), {latency['device']}. Training: mean over seeds, validation left out; storing the "
                f"teacher's logits took {duration(self.extraction_s)} once."
            )
        return found

    def summary(self) -> dict[str, Any]:
        """The last lines as JSON-able fields: verdicts, `gains` (teacher over student), warnings, paths, `next`."""
        return summary(self)

    def describe(self) -> dict[str, Any]:
        """The JSON-able form, which `Result.read` takes back."""
        return {
            "data": self.data,
            "role": self.role,
            "n": self.n,
            "noise": None if self.noise is None else dict(self.noise),
            "verdict": self.verdict,
            "store": self.store,
            "extraction_s": self.extraction_s,
            "choice": None if self.choice is None else dict(self.choice),
            "search": None if self.search is None else dict(self.search),
            "best": None if self.best is None else dict(self.best),
            "checks": [dict(one) for one in self.checks],
            "warnings": list(self.warnings),
            **({} if self.time is None else {"time": dict(self.time)}),
            **({} if self.scored == "error" else {"scored": self.scored}),
            "rows": [
                {
                    "name": row.name,
                    "title": row.title,
                    f"{self.scored}_%": {"per_seed": list(row.errors), **_interval(row.error)},
                    "agreement_%": list(row.agreement),
                    "training_s": list(row.seconds),
                    "costs": dict(row.costs),
                    "runs": list(row.runs),
                }
                for row in self.rows
            ],
        }

    @classmethod
    def read(cls, path: Path, record: Mapping[str, Any]) -> Result:
        """The Result of a compression's run folder and the content of its result.json."""
        scored = record.get("scored", "error")
        rows = tuple(
            Row(
                one["name"],
                one["title"],
                tuple(one[f"{scored}_%"]["per_seed"]),
                tuple(one["agreement_%"]),
                tuple(one["training_s"]),
                one["costs"],
                tuple(one["runs"]),
            )
            for one in record["rows"]
        )
        known = cls(
            path, record["data"], record["role"], record["n"], rows, record["noise"], record["extraction_s"],
            record["store"], record.get("choice"), record.get("search"), record.get("best"),
            tuple(record.get("checks", ())), scored, tuple(record.get("warnings", ())), record.get("time"),
        )  # fmt: skip
        return known if "warnings" in record else replace(known, warnings=warnings_of(known))

    def __str__(self) -> str:
        headers, rows = self.table()
        tried_headers, tried = self.tried()
        looked_at = [_plain([tried_headers, *tried]), ""] if tried else []
        lines = [_plain([headers, *rows]), "", *looked_at, *self.notes(), ""]
        if self.files or self.failed:
            headers, rows = export_table(self.files, self.failed)
            lines += [_plain([headers, *rows]), "", *export_notes(self.files, self.failed), ""]
        return "\n".join([*lines, *closing_lines(self)])


def _plain(rows: list[tuple[str, ...]]) -> str:
    """Rows of cells as aligned text; a cell may have two lines."""
    widths = [max(len(line) for row in rows for line in row[column].split("\n")) for column in range(len(rows[0]))]
    lines = []
    for number, row in enumerate(rows):
        split = [cell.split("\n") for cell in row]
        for depth in range(max(map(len, split))):
            parts = [cell[depth] if depth < len(cell) else "" for cell in split]
            lines.append("  ".join(part.ljust(width) for part, width in zip(parts, widths, strict=True)).rstrip())
        if number == 0:
            lines.append("  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _interval(interval: Interval) -> dict[str, Any]:
    return {"mean": interval.mean, "low": interval.low, "high": interval.high, "sd": interval.sd, "n": interval.n}
