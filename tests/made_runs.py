"""Run folders made by hand for the tests of reports: the shapes of docs/formats.md with small, real numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from noisyteacher.runs import Run, new_run
from noisyteacher.stats import mean_interval, paired_difference
from noisyteacher.store import Plan, StoreWriter

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
    def one(value: float, unit: str) -> dict[str, Any]:
        return {"value": value, "unit": unit, "n": n}

    return {
        "accuracy": one(100 - error, "%"), "error": one(error, "%"), "nll": one(error / 20, "nats"),
        "ece": one(error / 3, "%"), "agreement": one(90.0, "%"),
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
        "scores": {"val": scores(error + 1), "test": scores(error)},
        "training": {"seconds": 0.3 + 0.01 * seed, "epochs": 3, "best_epoch": 3, "kept": "best"},
    }
    if details:
        one = {"confusion": CONFUSION if len(classes) == 3 else None, "reliability": RELIABILITY}
        result["details"] = {"val": one, "test": one}
    child.write_result(result)
    return child


def logits(run: Run, classes: tuple[str, ...] = DIGITS, rows: int = 40) -> str:
    """A logit store inside the run; returns its digest."""
    fingerprints = dict.fromkeys(("teacher", "data", "preprocessing", "code"), "a" * 64)
    plan = Plan(rows=rows, classes=len(classes), views=("clean",), fingerprints=fingerprints)
    values = torch.randn(1, rows, len(classes), generator=torch.Generator().manual_seed(3)) * 4
    with StoreWriter(run.path / "logits" / "lenet-mnist-train-aaaaaa", plan, {"class_names": list(classes)}) as writer:
        writer.write(plan.shards[0], values)
        return writer.finish().digest


def spread(values: list[float]) -> dict[str, Any]:
    found = mean_interval(values)
    return {"per_seed": values, "mean": found.mean, "low": found.low, "high": found.high, "sd": found.sd, "n": found.n}


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
) -> Run:
    """A compression of lenet into mlp800: noisy errors are `gain` points below the clean ones."""
    noise = {**NOISE, "sigma": sigma}
    config = {"data": {"name": "mnist"}, "noise": noise, "student": {"name": "mlp800"}, "run": {"seeds": seeds}}
    run = new_run(folder, "compress", name, config, command="noisyteacher compress")
    digest = logits(run, classes) if with_store else "b" * 64
    training(run, "teacher", 5.0, classes=classes, details=details, model="lenet")
    errors = {
        "labels": [9.0 + 0.1 * seed for seed in range(seeds)],
        "clean": [8.0 + 0.2 * seed for seed in range(seeds)],
        "noisy": [8.0 - gain + 0.2 * seed + 0.05 * (seed % 2) for seed in range(seeds)],
    }
    rows: list[dict[str, Any]] = [row("teacher", "teacher lenet", [5.0], costs(20_000, 900, 0.9), ["teacher"])]
    for kind, values in errors.items():
        names = [f"{kind}-seed{seed}" for seed in range(seeds)]
        for seed, child in enumerate(names):
            if done or kind != "noisy":
                training(
                    run, child, values[seed], seed, classes=classes, details=details,
                    noise=noise if kind == "noisy" else None, store=None if kind == "labels" else digest,
                )  # fmt: skip
        rows.append(row(kind, f"student, {kind}", values, costs(8_000, 2_700, 0.4), names))
    if done:
        run.write_result(
            {"data": "mnist", "role": "test", "n": 100, "noise": noise,
             "verdict": "noise of sigma 0.5, alpha 0.5 helped here (-1.00 points of test error)",
             "store": "logits/lenet-mnist-train-aaaaaa", "extraction_s": 0.1, "rows": rows}
        )  # fmt: skip
    return run


def row(name: str, title: str, errors: list[float], cost: dict[str, Any], runs: list[str]) -> dict[str, Any]:
    return {
        "name": name, "title": title, "error_%": spread(errors), "agreement_%": [] if name == "teacher" else errors,
        "training_s": [0.3] * len(errors), "costs": cost, "runs": runs,
    }  # fmt: skip


def sweep(
    folder: Path, *, seeds: int = 3, failed: bool = False, parent: Run | None = None, name: str = "mlp800"
) -> Run:
    """A sweep of sigma at alpha 0.15 on MNIST with the paper's networks."""
    config = {"base": {"data": {"name": "mnist"}}, "grids": [{"noise.sigma": [0.1, 0.5, 0.9]}], "seeds": seeds}
    run = parent.child(name, "sweep", config) if parent is not None else new_run(folder, "sweep", name, config)
    digest = logits(run)
    training(run, "teacher", 0.7, model="lenet")
    base = {"clean": 1.0, "sigma0.1": 0.95, "sigma0.5": 0.6, "sigma0.9": 1.3}
    clean = [base["clean"] + 0.02 * seed for seed in range(seeds)]
    conditions = []
    for number, (key, value) in enumerate({"labels": 1.2, **base}.items()):
        values = [value + 0.02 * seed + 0.005 * ((seed + number) % 2) for seed in range(seeds)]
        kind = key if key in ("labels", "clean") else "noisy"
        noise = {**NOISE, "sigma": float(key[5:]), "alpha": 0.15} if kind == "noisy" else None
        for seed in range(seeds):
            training(run, f"{key}-seed{seed}", values[seed], seed, noise=noise, store=digest)
        gap = paired_difference(clean, values)
        told = {"mean": gap.mean, "low": gap.low, "high": gap.high, "p": gap.p, "p_holm": gap.p, "n": gap.n}
        conditions.append(
            {
                "name": key, "label": key.replace("sigma", "sigma "), "kind": kind, "family": "f0",
                "settings": {f"noise.{one}": setting for one, setting in (noise or {}).items()},
                "seeds": list(range(seeds)), "val_error_%": spread([one + 0.1 for one in values]),
                "test_error_%": spread(values), "val_nll_nats": None, "test_nll_nats": spread(values),
                "test_ece_%": None, "test_agreement_%": None, "training_s": [0.3] * seeds,
                "against_clean": None if kind == "clean" else {"reference": "clean", "test_error_%": told},
                "runs": [f"{key}-seed{seed}" for seed in range(seeds)],
            }
        )  # fmt: skip
    chosen = {"condition": "sigma0.5", "test_error_%": 0.6, "val_error_%": 0.7}
    run.write_result(
        {
            "data": "mnist", "n": {"train": 40, "val": 100, "test": 10_000},
            "teacher": {"name": "lenet", "run": "teacher", "test_error_%": 0.7, "val_error_%": 0.8},
            "axes": ["noise.sigma"], "conditions": conditions,
            "families": [
                {"name": "f0", "settings": {}, "clean": "clean", "labels": "labels", "by_validation": chosen,
                 "by_test": chosen, "optimism_points": 0.0,
                 "verdict": {"word": "helps", "sentence": "the noise helps: sigma 0.5 gives -0.40 points"}}
            ],
            "failed": [{"condition": "sigma0.9", "seed": 7, "run": "sigma0.9-seed7", "error": "diverged"}]
            if failed else [],
            "costs": {"teacher": costs(20_000, 900, 0.9), "students": {"mlp800": costs(8_000, 2_700, 0.4)}},
        }
    )  # fmt: skip
    return run


def reproduction(folder: Path) -> Run:
    """A reproduction of Table 1 with one sweep in it."""
    run = new_run(folder, "paper", "table1-quick", {"experiment": "table1", "budget": "quick"})
    sweep(folder, parent=run, name="sigmas")
    ours = {"mean": 0.7, "low": None, "high": None, "sd": None, "n": 1}
    run.write_result(
        {
            "experiment": "table1", "budget": "quick", "data": "mnist", "sweeps": ["sigmas"],
            "rows": [
                {"part": "sigmas", "label": "teacher", "kind": "teacher", "paper_%": 0.68, "ours": ours},
                {"part": "sigmas", "label": "sigma 0.5", "kind": "noisy", "paper_%": 0.87,
                 "ours": spread([0.6, 0.62, 0.64])},
                {"part": "sigmas", "label": "labels alone", "kind": "labels", "paper_%": None, "ours": None},
            ],
            "notes": ["quick: 3 of the paper's ten sigmas"], "verdicts": ["MNIST: the noise helps"],
        }
    )  # fmt: skip
    return run
