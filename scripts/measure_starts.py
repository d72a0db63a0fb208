"""Narrower copies that inherit the teacher's weights against copies drawn at random, at several lengths of training.

    python scripts/measure_starts.py DATA OUT.jsonl [--teacher nin] [--seeds 3]
    python scripts/measure_starts.py --table FILE.json

`shrink:0.5` is distilled by the recipe of qat_study.py from 2,000 images, other ones for every seed. At every length,
each start takes the learning rate with the lowest validation error at seed 0; the other seeds are judged on test.
`resnet18` is trained first, on 10,000 images. Trainings that OUT.jsonl holds are not repeated.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from qat_study import LOSS, RECIPE, read_lines

import noisyteacher as nt
from noisyteacher.stats import paired_difference

TEACHERS = {"nin": "pretrained:nin-cifar10", "resnet18": "timm:resnet18"}
EPOCHS, STARTS, RATES, IMAGES = (2, 6, 16), ("random", "magnitude"), (0.1, 0.03, 0.01, 0.003, 0.001), 2000


def trained_teacher(name: str, data: nt.Splits, out: Path) -> nt.Classifier:
    """The shipped NIN, or a ResNet trained here."""
    if name == "nin":
        return nt.load_model(TEACHERS[name])
    weights = out.with_suffix(f".{name}.safetensors")
    if not weights.exists():
        model = nt.build_model(TEACHERS[name], data, seed=0)
        nt.fit(
            model, data.train.take(10_000), nt.supervised(), epochs=15, batch_size=64, optimizer="adamw", lr=2e-3,
            weight_decay=0.05, schedule="cosine", warmup_epochs=1.0, views=["mirror*crop"], progress=False,
        )  # fmt: skip
        nt.save_model(model, weights)
    return nt.load_model(weights)


def trained(
    teacher: nt.Classifier, data: nt.Splits, store: nt.LogitStore, start: str, epochs: int, lr: float, seed: int
) -> nt.Classifier:
    """`shrink:0.5` of the teacher after its training."""
    student = nt.build_model("shrink:0.5", data, seed=seed, teacher=teacher, init=start)
    nt.fit(
        student, data.train, nt.distil(store, **LOSS), epochs=epochs, lr=lr, warmup_epochs=0.5, seed=seed, **RECIPE
    )  # fmt: skip
    return student


def main() -> None:
    """Measure one teacher, a JSON line per training; or print the table of such lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--teacher", choices=TEACHERS, default="nin")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--table", action="store_true", help="print the table of a file of such lines")
    options = parser.parse_args()
    if options.table:
        print(table(read_lines(Path(options.data))))
        return
    if options.out is None:
        parser.error("out: missing; name the file that a line per training is written to")
    whole = nt.load_data(options.data)
    assert whole.test is not None
    teacher = trained_teacher(options.teacher, whole, options.out)
    teacher_error = nt.evaluate(teacher, whole.test.take(5000), progress=False).error
    rows = torch.randperm(len(whole.train), generator=torch.Generator().manual_seed(0))
    keys = ("teacher", "epochs", "start", "lr", "seed")
    done = {tuple(line[name] for name in keys): line for line in read_lines(options.out)}

    for seed in range(1 + options.seeds):
        data = replace(whole, train=whole.train.subset(rows[seed * IMAGES : (seed + 1) * IMAGES]))
        split = whole.test.take(5000) if seed else whole.val
        store = nt.extract(
            teacher, data.train, f"{options.out}.{options.teacher}-{seed}", views=RECIPE["views"], progress=False
        )  # fmt: skip
        for epochs in EPOCHS:
            for start in STARTS:
                pilots = {lr: done.get((options.teacher, epochs, start, lr, 0)) for lr in RATES}
                for lr in RATES if seed == 0 else [best_rate(pilots)]:
                    key = (options.teacher, epochs, start, lr, seed)
                    if key in done:
                        continue
                    student = trained(teacher, data, store, start, epochs, lr, seed)
                    line = dict(zip(keys, key, strict=True)) | {"split": split.role, "n": len(split)}
                    if seed:  # judged on test, as the teacher is
                        line["teacher_error_%"] = teacher_error
                    done[key] = line | {"error_%": nt.evaluate(student, split, progress=False).error}
                    with options.out.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(done[key]) + "\n")


def best_rate(pilots: Mapping[float, Mapping[str, Any] | None]) -> float:
    """The learning rate with the lowest validation error."""
    return min(pilots, key=lambda lr: float((pilots[lr] or {})["error_%"]))


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """A row per teacher and length: mean test errors, and their paired difference with its 95 % interval."""
    rows = ["| teacher | epochs | random | inherited | inherited - random |", "|---|--:|--:|--:|--:|"]
    for teacher, epochs in dict.fromkeys(
        (line["teacher"], line["epochs"]) for line in lines if line["split"] == "test"
    ):
        cell = [line for line in lines if (line["teacher"], line["epochs"]) == (teacher, epochs)]
        errors = {start: judged([line for line in cell if line["start"] == start]) for start in STARTS}
        difference = paired_difference(errors["random"], errors["magnitude"])
        means = " | ".join(f"{sum(values) / len(values):.2f}" for values in errors.values())
        low, high = difference.low, difference.high
        interval = "" if low is None or high is None else f" [{low:+.2f}, {high:+.2f}]"
        rows.append(f"| `{TEACHERS[teacher]}` | {epochs} | {means} | {difference.mean:+.2f}{interval} |")
    return "\n".join(rows)


def judged(lines: Sequence[Mapping[str, Any]]) -> list[float]:
    """Test errors by seed at the rate with the lowest validation error."""
    rate = best_rate({line["lr"]: line for line in lines if line["split"] == "val"})
    chosen = [line for line in lines if line["split"] == "test" and line["lr"] == rate]
    return [line["error_%"] for line in sorted(chosen, key=lambda line: int(line["seed"]))]


if __name__ == "__main__":
    main()
