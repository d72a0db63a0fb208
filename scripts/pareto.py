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
from typing import Any

from noisyteacher.cli.show import print_noted, progress
from noisyteacher.config import read_config
from noisyteacher.references import value
from noisyteacher.runs import find_run
from noisyteacher.sweep import SweepResult, resume_sweep, sweep
from noisyteacher.text import count, size_bytes

PAIRS = {"compact-xs": "student3", "compact-s": "student2", "compact-m": "student1"}
"""A compact student and the paper's whose multiplications it stays below."""
STUDENTS = tuple(name for pair in PAIRS.items() for name in reversed(pair))


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing, print the table, write it as JSON where told."""
    asked = _parser().parse_args(arguments)
    if asked.resume and asked.epochs_of:
        raise SystemExit("--epochs-of has no effect with --resume, which goes on as it was begun: leave it out")
    with progress(asked.quiet) as watch:
        if asked.resume:
            result = resume_sweep(find_run(asked.output_dir, asked.resume), jobs=asked.jobs, progress=watch)
        else:
            result = sweep(
                _base(asked), _grids(asked), seeds=asked.seeds, jobs=asked.jobs, name="pareto", progress=watch
            )
    rows = points(result)
    if asked.json:
        print(json.dumps({"run": str(result.path), "n": result.record["n"], "points": rows}, indent=1))
        return
    headers = ("student", "taught by", "error %", "n", "paper %", "difference", "MACs", "params", "bytes", "ms")
    print_noted(headers, [_cells(one) for one in rows], _notes(result))
    print(f"\nRun folder: {result.path}")


def points(result: SweepResult) -> list[dict[str, Any]]:
    """One row per student and way of teaching, by multiplications: error, costs, the paper's best beside it."""
    found = []
    for one in result.conditions:
        error = one[f"{result.role}_error_%"]
        if error is None:
            continue
        name = one["settings"].get("student.name")
        costs = result.record["costs"]["students"]
        own = costs[name] if name else next(iter(costs.values()))
        paper = best_of_paper(name or next(iter(costs)))
        found.append(
            {
                "student": name or next(iter(costs)),
                "condition": one["label"],
                "kind": one["kind"],
                "error_%": error,
                "paper_%": paper,
                "against_paper_points": None if paper is None else error["mean"] - paper,
                **{key: own[key] for key in ("macs", "parameters", "bytes", "latency_ms")},
            }
        )
    return sorted(found, key=lambda one: (one["macs"], one["student"], one["kind"]))


def best_of_paper(name: str) -> float | None:
    """The paper's lowest test error (%) at a student's multiplications: `best_of_paper("compact-xs") == 21.01`."""
    name = PAIRS.get(name, name)
    return value(f"table6-{name}-best").error if name in PAIRS.values() else None


def _cells(one: Mapping[str, Any]) -> tuple[str, ...]:
    error, paper = one["error_%"], one["paper_%"]
    told = {"labels": "labels", "clean": "clean logits", "noisy": "noisy teacher"}[one["kind"]]
    interval = "" if error["low"] is None else f" [{error['low']:.2f}, {error['high']:.2f}]"
    return (
        one["student"],
        told,
        f"{error['mean']:.2f}{interval}",
        str(error["n"]),
        "" if paper is None else f"{paper:.2f}",
        "" if paper is None else f"{one['against_paper_points']:+.2f}",
        count(one["macs"]),
        count(one["parameters"]),
        size_bytes(one["bytes"]),
        f"{one['latency_ms']['median']:.2f}",
    )


def _notes(result: SweepResult) -> list[str]:
    first = next(iter(result.record["costs"]["students"].values()))["latency_ms"]
    return [
        *result.notes()[-2:],
        "paper %: its Table 6 at the same multiplications: one run, the best of ten sigmas on the test set, original "
        "CIFAR-10 images.",
        f"ms: median of {first['runs']} forward passes, batch {first['batch']}, {first['threads']} thread(s), "
        f"{first['device']}.",
    ]


def _grids(asked: argparse.Namespace) -> list[dict[str, list[Any]]]:
    """The students, those with a number of epochs of their own each by itself."""
    own = dict(_name_and_epochs(one) for one in asked.epochs_of)
    if len(own) < len(asked.epochs_of):
        raise SystemExit("--epochs-of: a student is named twice")
    for name in own:
        if name not in asked.students:
            raise SystemExit(f"--epochs-of {name}: not among --students {' '.join(asked.students)}")
    common: dict[str, list[Any]] = {"noise.sigma": [asked.sigma]}
    together = [name for name in asked.students if name not in own]
    grids = [{"student.name": [name], "student.epochs": [epochs], **common} for name, epochs in own.items()]
    return [{"student.name": together, **common}, *grids] if together else grids


def _name_and_epochs(told: str) -> tuple[str, int]:
    name, _, number = told.partition("=")
    if not number.isdecimal() or int(number) < 1:
        raise SystemExit(f"--epochs-of {told}: expected NAME=N, N passes over the training images")
    return name, int(number)


def _base(asked: argparse.Namespace) -> dict[str, Any]:
    data = {"name": asked.data, "root": asked.data_root, "verify": asked.verify, "limit": asked.limit}
    given = {
        "data": {key: value for key, value in data.items() if value is not None},
        "teacher": {"name": asked.teacher},
        "student": {"preset": asked.preset, "epochs": asked.epochs},
        "noise": {"sigma": 0.0, "alpha": asked.alpha},
        "run": {"output_dir": asked.output_dir, "device": asked.device},
    }
    return read_config(None, tuple(asked.set), given)


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
