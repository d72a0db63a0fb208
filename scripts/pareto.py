"""Error against multiplications: the paper's Students 1 to 3 and the compact students, from one teacher on CIFAR-10.

python scripts/pareto.py TEACHER --data cifar10 --data-root DIR --seeds 3 --epochs 60 --preset modern

TEACHER is a trained run or weights file. All students get the same recipe, data, seeds and answers of the teacher, one
of each kind on labels alone, by clean logits and, with --sigma, by the noisy teacher. The sweep is kept in a run folder
(`noisyteacher report` draws it); --resume RUN goes on with one that was interrupted. At the end: the test error of
every student, its costs, and the paper's best at the same multiplications.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from noisyteacher.cli.output import progress, show_table
from noisyteacher.config import read_config
from noisyteacher.paper.reference import value
from noisyteacher.pipeline.results import COSTS
from noisyteacher.runs import find_run
from noisyteacher.sweep import SweepResult, resume_sweep, sweep
from noisyteacher.tables import Table
from noisyteacher.text import count, size_bytes

PAIRS = {"compact-xs": "student3", "compact-s": "student2", "compact-m": "student1"}
"""A compact student and the paper's whose multiplications it stays below."""
STUDENTS = tuple(name for pair in PAIRS.items() for name in reversed(pair))


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing and print the table, or its JSON."""
    options = _parser().parse_args(arguments)
    if options.resume and options.epochs_of:
        raise SystemExit("--epochs-of has no effect with --resume, which keeps its settings: leave it out")
    with progress(options.quiet) as watch:
        if options.resume:
            result = resume_sweep(find_run(options.output_dir, options.resume), jobs=options.jobs, progress=watch)
        else:
            result = sweep(
                _base(options), _grids(options), seeds=options.seeds, jobs=options.jobs, name="pareto", progress=watch
            )
    rows = points(result)
    if options.json:
        print(json.dumps({"run": str(result.path), "n": result.n, "points": rows}, indent=1))
        return
    headers = ("student", "trained on", "error %", "n", "paper %", "difference", "MACs", "params", "bytes", "ms")
    cells = tuple(map(_cells, rows))
    show_table(Table(headers, cells, "ll" + "r" * (len(headers) - 2), tuple(_notes(result))))
    print(f"\nRun folder: {result.path}")


def points(result: SweepResult) -> list[dict[str, Any]]:
    """One row per student and condition, by multiplications: error, costs, the paper's best beside it."""
    rows = []
    for condition in result.conditions:
        error, costs = condition.score(result.role), condition.costs
        if error is None or costs is None:
            continue
        paper = best_of_paper(str(condition.model))
        rows.append(
            {
                "student": condition.model,
                "condition": condition.title,
                "kind": condition.kind,
                "error_%": asdict(error),
                "paper_%": paper,
                "against_paper_points": None if paper is None else error.mean - paper,
                **{key: value for key, value in asdict(costs).items() if key in COSTS},
            }
        )
    return sorted(rows, key=lambda row: (row["macs"], row["student"], row["kind"]))


def best_of_paper(name: str) -> float | None:
    """The paper's lowest test error (%) at a student's multiplications: `best_of_paper("compact-xs") == 21.01`."""
    name = PAIRS.get(name, name)
    return value(f"table6-{name}-best").error if name in PAIRS.values() else None


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    error, paper = row["error_%"], row["paper_%"]
    interval = "" if error["low"] is None else f" [{error['low']:.2f}, {error['high']:.2f}]"
    return (
        row["student"],
        {"labels": "labels", "clean": "clean logits", "noisy": "noisy teacher"}[row["kind"]],
        f"{error['mean']:.2f}{interval}",
        str(error["n"]),
        "" if paper is None else f"{paper:.2f}",
        "" if paper is None else f"{row['against_paper_points']:+.2f}",
        count(row["macs"]),
        count(row["parameters"]),
        size_bytes(row["bytes"]),
        f"{row['latency_ms']['median']:.2f}",
    )


def _notes(result: SweepResult) -> list[str]:
    costs = next(condition.costs for condition in result.conditions if condition.costs is not None)
    latency = costs.latency_ms
    assert latency is not None
    return [
        *result.notes()[-2:],
        "paper %: its Table 6 at the same multiplications: one run, the best of ten sigmas on the test set, original "
        "CIFAR-10 images.",
        f"ms: median of {latency.runs} forward passes, batch {latency.batch}, {latency.threads} thread(s), "
        f"{latency.device}.",
    ]


def _grids(options: argparse.Namespace) -> list[dict[str, list[Any]]]:
    """The students, each with a number of epochs for itself in a grid of its own."""
    epochs_of = {}
    for text in options.epochs_of:
        name, _, number = text.partition("=")
        if not number.isdecimal() or int(number) < 1:
            raise SystemExit(f"--epochs-of {text}: expected NAME=N, N passes over the training images")
        if name in epochs_of:
            raise SystemExit("--epochs-of: a student is named twice")
        if name not in options.students:
            raise SystemExit(f"--epochs-of {name}: not among --students {' '.join(options.students)}")
        epochs_of[name] = int(number)
    common: dict[str, list[Any]] = {"noise.sigma": [options.sigma]}
    together = [name for name in options.students if name not in epochs_of]
    grids = [{"student.name": [name], "student.epochs": [epochs], **common} for name, epochs in epochs_of.items()]
    return [{"student.name": together, **common}, *grids] if together else grids


def _base(options: argparse.Namespace) -> dict[str, Any]:
    data = {"name": options.data, "root": options.data_root, "verify": options.verify, "limit": options.limit}
    settings = {
        "data": {key: value for key, value in data.items() if value is not None},
        "teacher": {"name": options.teacher},
        "student": {"preset": options.preset, "epochs": options.epochs},
        "noise": {"sigma": 0.0, "alpha": options.alpha},
        "run": {"output_dir": options.output_dir, "device": options.device},
    }
    return read_config(None, tuple(options.set), settings)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", nargs="?", help="a trained run or weights file (or a network's name: trained first)")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--data-root")
    parser.add_argument("--no-verify", dest="verify", action="store_false", help="data changed on purpose")
    parser.add_argument("--limit", type=int, help="at most so many images of each split")
    parser.add_argument("--students", nargs="+", default=list(STUDENTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument(
        "--epochs-of", nargs="+", default=[], metavar="NAME=N", help="so many epochs for this student instead"
    )
    parser.add_argument("--preset", default="modern")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting: student.lr=0.01")
    parser.add_argument("--sigma", type=float, default=0.0, help="also under noise of this standard deviation")
    parser.add_argument("--alpha", type=float, default=0.5)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output-dir", default="runs")
    parser.add_argument("--resume", metavar="RUN")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quiet", action="store_true")
    return parser


if __name__ == "__main__":
    main()
