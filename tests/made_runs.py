"""Run folders written by hand for the tests of reports: the layout of docs/formats.md with small, real numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from helpers import write_logits
from noisyteacher.measure import Costs, Latency, LayerCost
from noisyteacher.paper import PaperResult
from noisyteacher.pipeline import Result
from noisyteacher.pipeline.compression_result import judged
from noisyteacher.pipeline.results import Condition, Estimate, Family, PaperRow, Verdict, condition_of
from noisyteacher.runs import Run, new_run
from noisyteacher.store import FINGERPRINTS, Plan
from noisyteacher.sweep import SweepResult, analyse

DIGITS = ("zero", "one", "two")
NOISE = {
    "sigma": 0.5, "alpha": 0.5, "draw": "row", "kind": "multiplicative", "distribution": "gaussian",
    "target": "teacher", "frozen": False, "schedule": "constant",
}  # fmt: skip
CONFUSION = [[30, 3, 1], [2, 31, 1], [4, 0, 28]]
RELIABILITY = {
    "count": [0] * 6 + [12, 10, 11, 10, 12, 13, 10, 11, 11],
    "confidence_%": [None] * 6 + [43.0, 50.0, 56.0, 63.0, 70.0, 77.0, 83.0, 90.0, 98.0],
    "accuracy_%": [None] * 6 + [50.0, 50.0, 63.6, 60.0, 75.0, 76.9, 80.0, 90.9, 100.0],
}


def costs(macs: int, parameters: int, latency: float) -> dict[str, Any]:
    return {
        "parameters": parameters, "bytes": 4 * parameters + 500, "macs": macs, "preprocess_macs": 0,
        "layers": [
            {"name": "conv1", "kind": "Conv2d", "output_shape": [4, 8, 8], "parameters": 40, "macs": macs // 4},
            {"name": "fc", "kind": "Linear", "output_shape": [3], "parameters": parameters - 40,
             "macs": macs - macs // 4},
        ],
        "unsupported": [],
        "latency_ms": {"median": latency, "p95": latency * 1.2, "batch": 1, "threads": 1, "device": "cpu", "runs": 50},
        "peak_memory_bytes": 3 * parameters, "batch": 1,
    }  # fmt: skip


def scores(error: float, n: int = 100) -> dict[str, Any]:
    def entry(value: float, unit: str) -> dict[str, Any]:
        return {"value": value, "unit": unit, "n": n}

    return {
        "accuracy": entry(100 - error, "%"), "error": entry(error, "%"), "nll": entry(error / 20, "nats"),
        "ece": entry(error / 3, "%"), "agreement": entry(90.0, "%"),
    }  # fmt: skip


def training(
    run: Run,
    name: str,
    error: float,
    seed: int = 0,
    *,
    classes: tuple[str, ...] = DIGITS,
    data: str = "mnist",
    noise: dict[str, Any] | None = None,
    store: str | None = None,
    details: bool = True,
    model: str = "mlp800",
    n: int = 100,
) -> Run:
    """A finished child run with epochs, scores and details."""
    settings: dict[str, Any] = {
        "data": {"train": "0" * 64, "name": data, "classes": list(classes)}, "model": model,
        "recipe": {"epochs": 3, "batch_size": 16}, "seed": seed,
    }  # fmt: skip
    if not name.startswith("teacher"):
        settings["objective"] = {"objective": "distil", **({"noise": noise} if noise else {})}
    if name.startswith("labels"):
        settings["objective"] = {"objective": "supervised"}
    parents = {"store": store} if store else {}
    child = run.child(name, "train" if store is None else "distil", settings, parents=parents, seed=seed)
    extra = {"noise/flipped_%": 3.0, "noise/gradient_ratio": 0.4} if noise else {}
    child.write_metrics(
        [
            {"epoch": epoch, "step": 7 * epoch, "train/loss": 9.0 / epoch, "lr": 0.001, "val/error": error + 4 - epoch,
             "val/nll": 0.5, "seconds": 0.1 * epoch, **extra}
            for epoch in (1, 2, 3)
        ]
    )  # fmt: skip
    result: dict[str, Any] = {
        "scores": {"val": scores(error + 1), "test": scores(error, n)},
        "training": {"seconds": 0.3 + 0.01 * seed, "epochs": 3, "best_epoch": 3, "kept": "best"},
    }
    if details:
        entry = {"confusion": CONFUSION if len(classes) == 3 else None, "reliability": RELIABILITY}
        result["details"] = {"val": entry, "test": entry}
    child.write_result(result)
    return child


def logits(run: Run, classes: tuple[str, ...] = DIGITS, rows: int = 40) -> str:
    """A logit store inside the run; returns its digest."""
    fingerprints: dict[Any, str] = dict.fromkeys(FINGERPRINTS, "a" * 64)
    plan = Plan(rows=rows, classes=len(classes), views=("clean",), fingerprints=fingerprints)
    values = torch.randn(1, rows, len(classes), generator=torch.Generator().manual_seed(3)) * 4
    folder = run.path / "logits" / "lenet-mnist-train-aaaaaa"
    return write_logits(folder, plan, values, {"class_names": list(classes)}).digest


def condition(run: Run, name: str, kind: str, runs: list[str], **fields: Any) -> Condition:
    """The condition of these child runs."""
    results = {seed: Run(run.path / child).result() or {} for seed, child in enumerate(runs)}
    return condition_of(name, fields.pop("title", name), kind, results, runs, data="mnist", **fields)


def as_costs(record: dict[str, Any]) -> Costs:
    latency = Latency(**record["latency_ms"])
    return Costs(**{**record, "layers": tuple(LayerCost(**layer) for layer in record["layers"]), "latency_ms": latency})


def compression(
    folder: Path,
    *,
    seeds: int = 3,
    classes: tuple[str, ...] = DIGITS,
    details: bool = True,
    done: bool = True,
    sigma: float = 0.5,
    gain: float = 1.0,
    with_store: bool = True,
    name: str = "mlp800",
    errors: dict[str, list[float]] | None = None,
    choice: dict[str, Any] | None = None,
    title: str = "student, labels",
    with_noise: bool = True,
) -> Run:
    """A compression of lenet into mlp800: noisy errors are `gain` points below the clean ones."""
    noise = {**NOISE, "sigma": sigma}
    config = {"data": {"name": "mnist"}, "noise": noise, "student": {"name": "mlp800"}, "run": {"seeds": seeds}}
    run = new_run(folder, "compress", name, config, command="noisyteacher compress")
    digest = logits(run, classes) if with_store else "b" * 64
    training(run, "teacher", 5.0, classes=classes, details=details, model="lenet")
    errors = errors or {
        "labels": [9.0 + 0.1 * seed for seed in range(seeds)],
        "clean": [8.0 + 0.2 * seed for seed in range(seeds)],
        "noisy": [8.0 - gain + 0.2 * seed + 0.05 * (seed % 2) for seed in range(seeds)],
    }
    errors = errors if with_noise else {kind: values for kind, values in errors.items() if kind != "noisy"}
    students = []
    for kind, values in errors.items():
        names = [f"{kind}-seed{seed}" for seed in range(seeds)]
        if not done and kind == "noisy":
            continue
        for seed, child in enumerate(names):
            training(
                run, child, values[seed], seed, classes=classes, details=details,
                noise=noise if kind == "noisy" else None, store=None if kind == "labels" else digest,
            )  # fmt: skip
        settings = {f"noise.{key}": value for key, value in noise.items()} if kind == "noisy" else {}
        words = title if kind == "labels" else f"student, {kind}"
        more: dict[str, Any] = {"model": "mlp800", "costs": as_costs(costs(8_000, 2_700, 0.4)), "settings": settings}
        students.append(condition(run, kind, kind, names, title=words, **more))
    if done:
        teacher_costs = as_costs(costs(20_000, 900, 0.9))
        teacher = condition(
            run, "teacher", "teacher", ["teacher"], title="teacher lenet", model="lenet", costs=teacher_costs
        )
        result = Result(
            path=run.path, kind="compress", data="mnist", n={"val": 100, "test": 100}, teachers=(teacher,),
            conditions=tuple(students), noise=noise if with_noise else None, choice=choice,
            store="logits/lenet-mnist-train-aaaaaa", extraction_s=0.1,
        )  # fmt: skip
        result = judged(result)
        run.write_result(result.describe())
    return run


def sweep(
    folder: Path,
    *,
    seeds: int = 3,
    failed: bool = False,
    parent: Run | None = None,
    name: str = "mlp800",
    base: dict[str, float] | None = None,
) -> Run:
    """A sweep of sigma at alpha 0.15 on MNIST with the paper's networks, scored on 10,000 test images."""
    config = {"base": {"data": {"name": "mnist"}}, "grids": [{"noise.sigma": [0.1, 0.5, 0.9]}], "seeds": seeds}
    run = parent.child(name, "sweep", config) if parent is not None else new_run(folder, "sweep", name, config)
    digest = logits(run)
    training(run, "teacher", 0.7, model="lenet", n=10_000)
    base = base or {"labels": 1.2, "clean": 1.0, "sigma0.1": 0.95, "sigma0.5": 0.6, "sigma0.9": 1.3}
    conditions = []
    for number, (key, value) in enumerate(base.items()):
        kind = key if key in ("labels", "clean") else "noisy"
        noise = {**NOISE, "sigma": float(key[5:]), "alpha": 0.15} if kind == "noisy" else None
        runs = [f"{key}-seed{seed}" for seed in range(seeds)]
        for seed, child in enumerate(runs):
            error = value + 0.02 * seed + 0.005 * ((seed * number) % 5)
            training(run, child, error, seed, noise=noise, store=digest, n=10_000)
        settings = {f"noise.{setting}": entry for setting, entry in (noise or {}).items()}
        conditions.append(
            condition(
                run, key, kind, runs, title=key.replace("sigma", "sigma "), family="f0", model="mlp800",
                settings=settings, costs=as_costs(costs(8_000, 2_700, 0.4)),
            )
        )  # fmt: skip
    noisy = tuple(entry.name for entry in conditions if entry.kind == "noisy")
    families = [Family("f0", {}, "clean", "labels", noisy)]
    judged, families_judged, verdicts = analyse(conditions, families, ["noise.sigma"])
    teacher = condition(
        run, "teacher", "teacher", ["teacher"], title="teacher lenet", model="lenet",
        costs=as_costs(costs(20_000, 900, 0.9)),
    )  # fmt: skip
    result = SweepResult(
        path=run.path, kind="sweep", data="mnist", n={"train": 40, "val": 100, "test": 10_000}, teachers=(teacher,),
        conditions=judged, families=families_judged, verdicts=verdicts, axes=("noise.sigma",),
        failed={"sigma0.9-seed7": "diverged"} if failed else {},
    )  # fmt: skip
    run.write_result(result.describe())
    return run


def reproduction(folder: Path) -> Run:
    """A reproduction of Table 1 with one sweep in it."""
    run = new_run(folder, "paper", "table1-quick", {"experiment": "table1", "budget": "quick"})
    sweep(folder, parent=run, name="sigmas")
    rows = (
        PaperRow("sigmas", "teacher", "teacher", 0.68, Estimate.of([0.7])),
        PaperRow("sigmas", "sigma 0.5", "noisy", 0.87, Estimate.of([0.6, 0.62, 0.64])),
        PaperRow("sigmas", "labels alone", "labels", None, None),
    )
    result = PaperResult(
        path=run.path, kind="paper", title="Table 1", budget="quick", data="mnist", sweeps=("sigmas",), paper=rows,
        verdicts=(Verdict("", "MNIST: the noise helps"),), remarks=("quick: 3 of the paper's ten sigmas",),
    )  # fmt: skip
    run.write_result(result.describe())
    return run
