"""A sweep of thousands of cells on a cluster that loses workers all the time: nothing lost, nothing done twice."""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import noisyteacher as nt
from faults.simulated_cluster import Cluster
from noisyteacher.runs import Run
from noisyteacher.sweep import workers
from noisyteacher.sweep.workers import Cell

WHOLE = os.environ.get("NOISYTEACHER_FAULTS") == "all"
SEEDS, SIGMAS, WORKERS = (5, 1000, 100) if WHOLE else (3, 20, 10)
BASE = {
    "data": {"name": "mnist-5k", "limit": 60},
    "teacher": {"name": "student3", "epochs": 1},
    "student": {"name": "student3", "epochs": 1},
    "run": {"device": "cpu", "threads": 1, "checks": False},
}


class Bench:
    """What stands in for a cell's training: the folder, the lock and the result are real, the numbers are drawn."""

    def __init__(self) -> None:
        self.trained: Counter[str] = Counter()
        self.weights: Path | None = None
        self.lock = threading.Lock()

    def begin(self, cell: Cell) -> Run:
        kind = "train" if cell.kind == "labels" else "distil"
        return Run(cell.folder).child(cell.name, kind, {"cell": cell.name}, seed=cell.seed)

    def train(self, cell: Cell) -> str | None:
        run = self.begin(cell)
        with run.lock():
            if run.state == "done":
                return None
            with self.lock:
                self.trained[cell.name] += 1
            error = 3 + random.Random(cell.name).random()
            scores = {
                role: {
                    "split": role,
                    **{
                        name: {"value": value, "unit": unit, "n": 60}
                        for name, value, unit in (("error", error, "%"), ("nll", 0.1, "nats"), ("ece", 1.0, "%"))
                    },
                }
                for role in ("val", "test")
            }
            if cell.name in ("labels-alone-seed0", "clean-seed0"):
                assert self.weights is not None
                shutil.copyfile(self.weights, run.path / "weights.safetensors")
            run.write_result({"scores": scores, "training": {"seconds": 1.0, "best_epoch": 1, "epochs": 1}})
        return None


def test_workers_die_all_the_time_and_nothing_is_lost_or_done_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[..., None]
) -> None:
    bench = Bench()
    monkeypatch.setattr(workers, "train_cell", bench.train)
    model = nt.build_model("student3", nt.load_data("mnist-5k"))
    bench.weights = tmp_path / "weights.safetensors"
    nt.save_model(model, bench.weights)
    clusters: list[Cluster] = []

    def cluster() -> Cluster:
        clusters.append(Cluster(WORKERS, bench.begin, seed=len(clusters)))
        return clusters[-1]

    grid: dict[str, list[Any]] = {
        "noise.sigma": [round(0.001 * (1 + step), 4) for step in range(SIGMAS)], "noise.draw": ["batch", "row"],
    }  # fmt: skip
    base = {**BASE, "run": {**BASE["run"], "output_dir": str(tmp_path)}}
    started = time.perf_counter()
    result = nt.sweep(base, grid, seeds=SEEDS, executor=cluster)
    seconds = time.perf_counter() - started
    conditions = 2 + 2 * SIGMAS
    runs = [
        Run(result.path / f"{condition.name}-seed{seed}") for condition in result.conditions for seed in range(SEEDS)
    ]
    assert len(result.conditions) == conditions
    given_up = sum(pool.faults.given_up for pool in clusters)
    assert len(result.failed) == given_up
    assert sum(run.state == "done" for run in runs) == len(runs) - given_up
    assert set(bench.trained.values()) == {1}  # nothing twice, however often it was given out
    faults = clusters[0].faults
    assert faults.deaths > 0
    assert faults.woke_late > 0
    if given_up:  # what the cluster gave up is asked for again
        again = nt.sweep(base, grid, seeds=SEEDS, executor=cluster, run=Run(result.path))
        assert again.failed == {}
        assert set(bench.trained.values()) == {1}
    assert len(bench.trained) == conditions * SEEDS
    ideal = faults.useful_s / WORKERS
    record_property(
        "summary",
        f"{len(runs):,} runs on {WORKERS} simulated workers: {faults.deaths:,} deaths ({faults.died_before} before, "
        f"{faults.died_during} during, {faults.died_after} after the work), {faults.woke_late} woke late, "
        f"{faults.given_up} given up; {faults.length_s / 3600:.2f} h, {ideal / 3600:.2f} h without any fault; "
        f"{seconds:.0f} s of real time",
    )
    record_property("faults: dead workers of a simulated cluster", faults.deaths)
    assert workers.train_cell == bench.train
