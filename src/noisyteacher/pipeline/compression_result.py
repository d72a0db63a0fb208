"""The result of a compression: its table and notes, what was saved, verdict and warnings, what to do next."""

from __future__ import annotations

import shlex
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from noisyteacher import stats
from noisyteacher.config import LIMITS
from noisyteacher.errors import FileFormatError
from noisyteacher.export import Exported
from noisyteacher.export import table as export_table
from noisyteacher.export import verdict as export_verdict
from noisyteacher.export.card import BENCH, PREDICT
from noisyteacher.export.hub import CARD
from noisyteacher.io.files import Json
from noisyteacher.models import HUB_WEIGHTS
from noisyteacher.pipeline.fairness import regime_words
from noisyteacher.pipeline.results import COSTS, Condition, Estimate, RunResult, Verdict, differences, why_no_interval
from noisyteacher.runs import Run
from noisyteacher.tables import Table
from noisyteacher.text import SPLIT_NAMES, duration, plural, sentence, size_bytes, value_words

REPORT = "report.html"
HANDED_OVER = "handed over"
RATIO_WORDS = {
    "macs": ("fewer MACs", "MORE MACs", "as many MACs"),
    "bytes": ("smaller", "LARGER", "as large"),
    "latency_ms": ("faster", "SLOWER", "as fast"),
}
"""Cost -> words for a student with less of it than the teacher, with more, and with as much."""
SEARCH_COSTS = {name: COSTS[name] for name in LIMITS} | {"latency": ("latency ms", "≤ {:.3f}".format)}
"""The same as COSTS for the table of networks; of a latency the upper end of its interval."""


@dataclass(frozen=True, kw_only=True)
class Result(RunResult):
    """The outcome of `compress`; `str()` of it is the table. `rows`: the teacher, the controls, the student."""

    @property
    def seeds(self) -> int:
        """How many seeds each student was trained with."""
        return len(self.conditions[-1].errors)

    @property
    def scored(self) -> str:
        """What `errors` of the rows are: `error`, or, without labels, `disagreement` with the teacher."""
        return "disagreement" if any("disagreement" in row.scores.get(self.role, {}) for row in self.rows) else "error"

    @property
    def verdict(self) -> str | None:
        """What the noise changed against the clean student; None where no noise was named.

        Sentences without the last full stop.
        """
        return ". ".join(map(str, self.verdicts)) or None

    @property
    def handed_over(self) -> tuple[Condition, int]:
        """The condition of the student that is handed over, and the number of its seed."""
        run = (self.best or {}).get("run")
        rows = ((row, row.runs.index(run)) for row in self.conditions if run in row.runs)
        return next(rows, (self.conditions[-1], 0))

    @property
    def best_student(self) -> Path | None:
        """The folder of the student that is handed over, for `nt.load_model`: weights, exported files, model card."""
        folder = (self.best or {}).get("folder")
        return None if folder is None else self.path / folder

    @property
    def files(self) -> list[Exported]:
        """The files written of the student that is handed over, in `best_student`."""
        return [Exported.read(record) for record in (self.best or {}).get("files", ())]

    @property
    def latency(self) -> Json | None:
        """The latency of the file that is handed over beside `target.latency`; None where that is not set."""
        return (self.best or {}).get("latency")

    @property
    def holds(self) -> bool:
        """Whether all that was checked holds: the loss of accuracy, the latency, and a file in every format."""
        within = self.best is None or bool(self.best["holds"] and (self.latency or {"met": True})["met"])
        return within and not self.failed and all(file.holds for file in self.files)

    def table(self) -> Table:
        """A row per model; a cell's second line is the ratio student / teacher (below 1: smaller, faster)."""
        headers = ("model", f"{self.role} {self.scored} %", *(name for name, _ in COSTS.values()), "training")
        return Table(headers, tuple(self._cells(row) for row in self.rows), notes=tuple(self.notes()))

    def search_table(self) -> Table | None:
        """Which networks were considered for a student and why each was not chosen; None without a search."""
        return search_table(self.search)

    def choice_table(self) -> Table | None:
        """What validation chose the noise and the recipes from; None where nothing was to be chosen."""
        table = choice_table(self.choice)
        if table is None or self.choice is None:
            return None
        return replace(table, notes=(f"Choice: {self.choice['summary'].partition('; ')[0]}.",))

    def tables(self) -> list[Table]:
        """The models; where there are some, how student and noise were chosen, and the exported files."""
        tables = [self.table(), self.search_table(), self.choice_table()]
        if self.files or self.failed:
            exported = export_table(self.files, self.failed)
            tables.append(replace(exported, notes=(*exported.notes, f"Files: {export_verdict(self.files)}.")))
        return [table for table in tables if table is not None]

    def _cells(self, row: Condition) -> tuple[str, ...]:
        teacher = self.teachers[0]

        def with_ratio(text: str, value: float, reference: float | None) -> str:
            return text if row is teacher or not reference else f"{text}\n{value / reference:.2f}x"

        chosen, seed = self.handed_over
        title = row.title.replace(", lr ", "\nlr ")  # a recipe that was chosen stands below
        if self.best is not None and row is chosen:
            title += f"\n{HANDED_OVER}" + (f": seed {seed}, {row.errors[seed]:.2f} %" if len(row.errors) > 1 else "")
        cells = [title, "-" if row.error is None else f"{row.error.mean:.2f}\n{row.interval_text(self.role)}".strip()]
        for name, (_, written) in COSTS.items():
            value = row.cost(name)
            bound = ">= " if name == "macs" and row.costs is not None and row.costs.unsupported else ""
            cells.append("-" if value is None else with_ratio(bound + written(value), value, teacher.cost(name)))
        if not row.seconds:
            return (*cells, "given")
        mean = sum(row.seconds) / len(row.seconds)
        return (*cells, with_ratio(duration(mean), mean, teacher.seconds[0] if teacher.seconds else None))

    def notes(self) -> list[str]:
        """What a reader needs beside the table: n, what the intervals are, conditions of the latency."""
        what, seeds = "Errors" if self.scored == "error" else "Disagreement with the teacher", ""
        if self.seeds > 1:
            missing = why_no_interval(row.error for row in self.rows)
            seeds = f"[ ] = 95 % Student-t interval over {self.seeds} seeds{missing}; "
        notes = [
            f"{what}: {self.data}, {self.role}, n = {self.n[self.role]:,} images; {seeds}( ) = 95 % Wilson interval of "
            "one run.",
            "Second lines: ratio to the teacher (below 1: smaller, faster). MACs: multiplications of convolution and "
            "linear layers per image. Bytes: the weights file.",
        ]
        if self.scored != "error":
            notes.append("No labels: nothing is said of errors, and there is no student on labels to compare with.")
        records = {"Time": self.time, "Student": self.search}
        for name, record in records.items():
            if record:
                words = [record["summary"]] if isinstance(record["summary"], str) else record["summary"]
                notes.append(f"{name}: {'; '.join(words)}.")
        if self.best is not None:
            notes.append(sentence(self.best["summary"]))
            if qat := self.best.get("qat"):
                errors = ", ".join(f"{name} {error:.2f} %" for name, error in qat["val_error_%"].items())
                recipe = f"{plural(qat['epochs'], 'epoch')} at lr {qat['lr']:g}"
                notes.append(f"QAT: {recipe}; validation {self.scored} {errors} (n = {qat['n']:,}).")
        if self.latency is not None:
            notes.append(sentence(self.latency["summary"]))
        costs = self.conditions[-1].costs
        if costs is not None and (latency := costs.latency_ms) is not None:
            notes.append(
                f"Latency{' in the table' if self.latency else ''}: median of {latency.runs} forward passes, batch "
                f"{latency.batch}, {latency.threads} thread(s), {latency.device}. Training: mean over seeds, "
                f"validation left out; storing the teacher's logits took {duration(self.extraction_s)}."
            )
        return notes

    def gains(self) -> dict[str, float | None]:
        """Teacher over student for each cost, above 1 where the student is cheaper; None where either is not exact."""
        gains: dict[str, float | None] = {}
        pair = self.teachers[0], self.handed_over[0]
        for name in COSTS:
            before, after = (row.cost(name) for row in pair)
            bound = name == "macs" and any(row.costs is not None and row.costs.unsupported for row in pair)
            gains[name] = before / after if before and after and not bound else None
        if self.latency is not None and self.latency["times_as_fast"]:  # of the file itself
            gains["latency_ms"] = self.latency["times_as_fast"][0]
        return gains

    def compression_verdict(self) -> str:
        """One sentence: how much cheaper than its teacher the student that is handed over is, and what it loses.

        `4.5x fewer MACs, 5.2x smaller, 3.0x faster; test error 4.10 % against the teacher's 3.20 % (n = 600)`.
        """
        row, seed = self.handed_over
        gains, words = self.gains(), []
        for name, (cheaper, dearer, equal) in RATIO_WORDS.items():
            if (ratio := gains[name]) is not None:
                size = f"{max(ratio, 1 / ratio):.1f}"
                words.append(equal if size == "1.0" else f"{size}x {cheaper if ratio > 1 else dearer}")
        if gains["macs"] is None and gains["bytes"] is not None:
            words.append("MACs not comparable")
        loss = f"disagreement with the teacher {row.errors[seed]:.2f} %"
        if self.scored == "error":
            loss = f"error {row.errors[seed]:.2f} % against the teacher's {self.teachers[0].errors[0]:.2f} %"
        saved = ", ".join(words) or "costs unknown"
        return f"{saved}; {SPLIT_NAMES[self.role]} {loss} (n = {self.n[self.role]:,})"

    def paths(self) -> Json:
        """Where things are: `run`, `best` (the student's folder), `weights`, `card`, `predict`, `bench`, `report`,
        `files`.

        `files` has a `path` and `bytes` per exported file. A path is None where there is no such file.
        """
        best = self.best_student
        inside = {"best": "", "weights": HUB_WEIGHTS, "predict": PREDICT, "bench": BENCH, "card": CARD}
        paths = {name: None if best is None else best / file for name, file in inside.items()}
        paths["report"] = self.path / REPORT
        files = [{"path": str(self.path / file.path), "bytes": file.bytes} for file in self.files]
        existing = {name: str(path) if path is not None and path.exists() else None for name, path in paths.items()}
        return {"run": str(self.path), **existing, "files": files}

    def next_commands(self) -> list[str]:
        """What to run next with the student that is handed over, as a shell or Python takes it."""
        paths, loads = self.paths(), (self.best or {}).get("loads", "name")
        folder, script = paths["best"], paths["predict"]
        if folder is None:
            return []
        commands = [] if script is None else [f"python {shlex.quote(script)} IMAGE"]
        in_python = True  # with data that no command line can name
        with suppress(FileFormatError):
            in_python = Run(self.path).config.get("call") == "python"
        if loads != "module":
            imports = loads == "import"
            python = f"nt.load_model({folder!r}{', allow_import=True' if imports else ''})  # in Python"
            shell = f"noisyteacher evaluate {shlex.quote(folder)}{' --allow-import' if imports else ''}"
            commands.insert(0, python if in_python else shell)
        return commands

    def summary(self) -> Json:
        """The last lines as JSON-able fields: verdicts, `gains` (teacher over student), warnings, paths, `next`."""
        return {
            "compression": self.compression_verdict(),
            "gains": self.gains(),
            "noise": self.verdict,
            "warnings": [sentence(warning) for warning in self.warnings],
            "paths": self.paths(),
            "next": self.next_commands(),
        }

    def closing_lines(self) -> list[str]:
        """The last lines as text: verdicts, warnings, paths with sizes, the next commands."""
        paths, commands = self.paths(), self.next_commands()
        files = [(file["path"], size_bytes(file["bytes"])) for file in paths["files"]]
        if paths["weights"]:
            files.insert(0, (paths["weights"], size_bytes(Path(paths["weights"]).stat().st_size)))
        files.append((paths["predict"], "runs the ONNX file without noisyteacher"))
        files.append((paths["bench"], "times the files without noisyteacher"))
        files += [(paths["card"], "model card"), (paths["report"], "report")]
        return [
            f"Verdict: {self.compression_verdict()}.",
            *(f"Noise: {verdict}." for verdict in self.verdicts),
            *(f"WARNING: {warning}." for warning in self.warnings),
            "",
            f"Run folder: {self.path}",
            *(f"  {path} ({what})" for path, what in files if path),
            *(["", "Next:", *(f"  {command}" for command in commands)] if commands else []),
        ]


def judged(result: Result) -> Result:
    """The result with differences to the clean student, the verdict on the noise, and warnings."""
    rows, teacher = list(result.conditions), result.teachers[0]
    clean = {row.family: row for row in rows if row.kind == "clean"}
    rows = [
        replace(row, against_clean=differences([row], clean[row.family]).get(row.name, {}))
        if row.kind != "clean" and row.family in clean
        else row
        for row in rows
    ]
    zero = Estimate.of([0.0])
    if result.role not in teacher.scores and zero is not None:  # without labels: it agrees with itself
        teacher = replace(teacher, scores={result.role: {"disagreement": zero}}, n=result.n)
    result = replace(result, teachers=(teacher,), conditions=tuple(rows))
    result = replace(result, verdicts=_verdicts(result))
    return replace(result, warnings=(*result.warnings, *loss_warnings(result)))


def _verdicts(result: Result) -> tuple[Verdict, ...]:
    """The verdict on the noise, one for each recipe under which it was compared; nothing where no noise was named."""
    noisy = [row for row in result.conditions if row.kind == "noisy"]
    if result.noise is None or not noisy:
        if result.choice is None:
            return ()
        clean = result.conditions[-1].name
        return (Verdict("", result.choice["summary"] + _fairness(result, clean), clean),)
    return tuple(_verdict(result, row, several=len(noisy) > 1) for row in noisy)


def _verdict(result: Result, noisy: Condition, several: bool) -> Verdict:
    assert result.noise is not None
    difference = noisy.against_clean.get(result.role)
    if difference is None:
        words = "nothing can be said of the noise: no clean student was trained beside the noisy student"
        return Verdict("no evidence", words, noisy.name)
    usual = {"kind": "multiplicative", "target": "teacher", "draws": 1}
    strength = [f"sigma {value_words(result.noise['sigma'])}", f"alpha {result.noise['alpha']:g}"]
    strength += [f"{key} {setting}" for key in usual if (setting := result.noise.get(key, usual[key])) != usual[key]]
    what = f"noise of {', '.join(strength)}"
    unit = f"points of {SPLIT_NAMES[result.role]} {result.scored}"
    recipe = "each with its chosen recipe" if noisy.family else "with one recipe for both"
    words = (f"{recipe}, " if several else "") + stats.verdict(difference, what, unit)
    if result.choice is not None and set(result.choice["seeds"]) & set(noisy.seeds):
        words += "; choice and judgement share their seeds"
    return Verdict(stats.outcome(difference), words + _fairness(result, noisy.name), noisy.name)


def _fairness(result: Result, condition: str) -> str:
    """A sentence on whether the condition's question was fair, before it a full stop; empty where it is not known."""
    regime = (result.regime or {}).get(condition)
    return f". {sentence(regime_words(regime))[:-1]}" if regime else ""


def loss_warnings(result: Result) -> tuple[str, ...]:
    """What a reader must not miss, as the result itself shows it: sentences without their full stop."""
    best, warnings = result.best, []
    if best is not None and not best["holds"]:
        drop, allowed = f"{best['drop']:.2f} points", f"{best['max_drop']:g}"
        warnings.append(f"validation lost {drop} against the teacher, {allowed} are allowed")
    if result.latency is not None and not result.latency["met"]:
        warnings.append(result.latency["summary"])
    warnings += [f"{file.name} does not hold: {file.reason}" for file in result.files if not file.holds]
    warnings += [f"{name} was not written: {reason}" for name, reason in result.failed.items()]
    for check in result.checks:
        if check["passed"] is False:
            warnings.append(f"Did not hold before the first step ({check['check']}): {check['summary'].rstrip('.')}")
    return tuple(warnings)


def choice_table(choice: Json | None) -> Table | None:
    """A row per trial that validation judged, by the record of the choice; None without one."""
    if not choice:
        return None
    keys = [key for key in ("sigma", "alpha", "lr", "weight_decay") if key in choice["candidates"][0]]
    rows, strong, best = [], set(), [choice.get("clean"), choice.get("noisy") or choice["chosen"]]
    for number, trial in enumerate(choice["candidates"]):
        is_best = {key: trial[key] for key in keys} in best
        strong |= {number} if is_best else set()
        noise = (value_words(trial["sigma"]), f"{trial['alpha']:g}") if trial["sigma"] else ("clean", "")
        recipe = (f"{trial[key]:g}" for key in keys[2:])
        by_seed = ", ".join(f"{error:.2f}" for error in trial["val_error_%"])
        mark = f"best {'noisy' if trial['sigma'] else 'clean'}" if is_best else ""
        rows.append((*noise, *recipe, f"{trial['mean']:.2f}", *([by_seed] if len(choice["seeds"]) > 1 else []), mark))
    seeds = ["by seed"] if len(choice["seeds"]) > 1 else []
    headers = (*(key.replace("_", " ") for key in keys), f"{choice['by']} %", *seeds, "")
    return Table(headers, tuple(rows), "l" + "r" * (len(keys) + len(seeds)) + "l", strong=frozenset(strong))


def search_table(search: Json | None) -> Table | None:
    """A row per network that was considered for a student, by the record of the search; None without a search."""
    if not search or not search["table"]:
        return None
    rows, columns = [], {name: column for name, column in SEARCH_COSTS.items() if name in search["table"][0]}
    for row in search["table"]:
        bounds = {"macs": ">= "} if row.get("lower_bound") else {}
        costs = (
            "" if row[name] is None else bounds.get(name, "") + written(row[name])
            for name, (_, written) in columns.items()
        )
        error = row["val_error_%"]
        rows.append((row["student"], *costs, "" if error is None else f"{error:.2f}", row["outcome"]))
    headers = ("student", *(name for name, _ in columns.values()), "validation error %", "outcome")
    strong = frozenset(number for number, row in enumerate(rows) if row[0] == search["chosen"])
    return Table(headers, tuple(rows), f"l{'r' * (len(columns) + 1)}l", strong=strong)
