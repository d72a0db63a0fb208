"""Errors of students as fp32, as int8 by calibration, and as int8 after quantization-aware training: a JSON line each.

    python scripts/qat_study.py DATA OUT.jsonl [--limit 1500] [--rows 5000] [--epochs 8] [--qat 2] STUDENT...
    python scripts/qat_study.py --table FILE.json

Every student is distilled from `pretrained:nin-cifar10` on `limit` images, and judged on `rows` of test, the same for
all. `longer` is its control: the fp32 student itself, trained for the epochs and at the rate of the quantization-aware
training, then calibrated. Lines that OUT.jsonl holds are not measured again.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import noisyteacher as nt

TEACHER = "pretrained:nin-cifar10"
RECIPE: dict[str, Any] = {
    "batch_size": 32,
    "optimizer": "muon",
    "weight_decay": 0.05,
    "schedule": "cosine",
    "views": "clean,mirror",
    "batch_norm": "reestimate",
    "progress": False,
}
LOSS: dict[str, Any] = {"loss": "soft_targets", "temperature": 4.0, "label_weight": 0.3}
FILES = {"onnx": "student.onnx", "pte": "student.pte"}
COLUMNS = ("fp32", "longer fp32", "PTQ", "longer PTQ", "QAT")


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The records of a file with one per line; none where there is no file yet."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def int8_errors(
    model: nt.Classifier, data: nt.Splits, twin: nt.Classifier | None = None
) -> dict[str, dict[str, float]]:
    """Test error (%) by format and way of int8."""
    errors: dict[str, dict[str, float]] = {}
    with TemporaryDirectory() as folder:
        for name, file in FILES.items():
            made = nt.export(model, Path(folder, file), data=data, int8=True, twin=twin, max_drop=100, runs=1)
            ways = {"QAT" if made.qat else "PTQ": made.accuracy}
            if made.rejected is not None:
                ways["PTQ" if made.qat else "QAT"] = made.rejected.accuracy
            errors[name] = {way: round(100 - float(accuracy or 0), 4) for way, accuracy in ways.items()}
    return errors


def measure(name: str, seed: int, data: nt.Splits, store: nt.LogitStore, epochs: int, qat: int) -> dict[str, Any]:
    """The errors of one student with one seed. A student with its teacher's weights learns for a quarter as long."""
    inherits = name.startswith("shrink:")
    teacher = nt.load_model(TEACHER) if inherits else None
    student = nt.build_model(name, data, seed=seed, teacher=teacher)
    epochs, rate = (max(1, epochs // 4), 0.003) if inherits else (epochs, 0.01)
    recipe = {**RECIPE, "seed": seed, "val": data.val}
    nt.fit(student, data.train, nt.distil(store, **LOSS), epochs=epochs, lr=rate, warmup_epochs=0.5, **recipe)
    longer, twin = copy.deepcopy(student), nt.fake_quantized(student, data)
    for model in (longer, twin):
        nt.fit(model, data.train, nt.distil(store, **LOSS), epochs=qat, lr=rate / 10, **recipe)
    assert data.test is not None
    judged_on_test = replace(data, val=replace(data.test, role="val"), test=None)
    int8, after = int8_errors(student, judged_on_test, twin), int8_errors(longer, judged_on_test)
    fp32 = {
        key: float(nt.evaluate(model, data.test).error or 0)
        for key, model in (("fp32", student), ("longer fp32", longer))
    }
    errors = {form: {**fp32, **ways, "longer PTQ": after[form]["PTQ"]} for form, ways in int8.items()}
    lengths = {"n": len(data.test), "train": len(data.train), "epochs": epochs, "qat_epochs": qat, "lr": rate}
    return {"student": name, "seed": seed, **lengths, "error_%": errors}


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """A row per student and format: mean errors over the seeds, each with its seeds' errors lost against fp32."""
    rows = ["| student | file | " + " | ".join(COLUMNS) + " | lost by PTQ | lost by QAT |", "|---|---|" + "--:|" * 7]
    for student in dict.fromkeys(line["student"] for line in lines):
        records = [line["error_%"] for line in lines if line["student"] == student]
        for form in FILES:
            errors = {column: [record[form][column] for record in records] for column in COLUMNS}
            means = {column: sum(values) / len(values) for column, values in errors.items()}
            lost = [
                ", ".join(f"{x - y:+.2f}" for x, y in zip(errors[way], errors["fp32"], strict=True))
                for way in ("PTQ", "QAT")
            ]
            rows.append(
                f"| `{student}` | {form} | "
                + " | ".join(f"{means[c]:.2f}" for c in COLUMNS)
                + f" | {' | '.join(lost)} |"
            )
    return "\n".join(rows)


def main() -> None:
    """Measure every student, seed by seed, a line each; or print the table of such lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("out", nargs="?")
    parser.add_argument("students", nargs="*")
    for option, default in (("seeds", 3), ("limit", 1500), ("rows", 5000), ("epochs", 8), ("qat", 2)):
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--table", action="store_true", help="print the table of a file of such lines")
    options = parser.parse_intermixed_args()
    if options.table:
        print(table(read_lines(Path(options.data))))
        return
    if options.out is None:
        parser.error("out: missing; name the file that a line per student is written to")
    data = nt.load_data(options.data, limit=options.rows, train_limit=options.limit)
    data = replace(data, val=nt.load_data(options.data, limit=options.limit // 4).val)
    store = nt.extract(nt.load_model(TEACHER), data.train, Path(options.out + ".logits"), views="clean,mirror")
    out = Path(options.out)
    done = {(line["student"], line["seed"]) for line in read_lines(out)}
    for seed in range(options.seeds):
        for name in options.students:
            if (name, seed) in done:
                continue
            line = json.dumps(measure(name, seed, data, store, options.epochs, options.qat))
            with out.open("a", encoding="utf-8") as file:
                file.write(line + "\n")


if __name__ == "__main__":
    main()
