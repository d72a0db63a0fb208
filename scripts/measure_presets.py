"""Default recipe against labels alone: the table of docs/models.md.

python scripts/measure_presets.py --data-root DIR --work WORK [--case NAME ...] [--preset standard] [--seeds 3]

Each case is one call of `nt.compress` in the folder WORK/CASE-PRESET, as a user would make it, without naming a recipe.
A finished case is read, an interrupted one is resumed. Photo folders are made of CIFAR-10 images, enlarged to 64 x 64;
their teacher is the shipped NIN behind a resize, except where the case says otherwise. Students of mnist-5k, whose
test split has 600 digits, are also tested on MNIST's official 10,000. A JSON line per case, and with --json FILE all.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import noisyteacher as nt
from noisyteacher.pipeline import Result
from noisyteacher.runs import Run
from noisyteacher.stats import paired_difference


@dataclass(frozen=True)
class Case:
    """One data set, teacher and student, and how long the student is trained."""

    data: str
    teacher: str
    student: str
    epochs: int
    options: dict[str, Any] = field(default_factory=dict)
    teacher_training: dict[str, Any] = field(default_factory=dict)


LENET = {"preset": "paper", "epochs": 8}
CASES = {
    "mnist5k-xs-4": Case("mnist-5k", "lenet", "compact-xs", 4, teacher_training=LENET),
    "mnist5k-full-xs-4": Case("mnist-5k", "pretrained:lenet-mnist", "compact-xs", 4),
    "mnist5k-full-s-12": Case("mnist-5k", "pretrained:lenet-mnist", "compact-s", 12),
    "mnist1k-narrow-12": Case("mnist", "pretrained:lenet-mnist", "shrink:0.5", 12, {"train_limit": 1000}),
    "cifar4k-xs-4": Case("cifar10", "pretrained:nin-cifar10", "compact-xs", 4, {"train_limit": 4000}),
    "cifar4k-narrow-4": Case("cifar10", "pretrained:nin-cifar10", "shrink:0.25", 4, {"train_limit": 4000}),
    "cifar4k-s-12": Case("cifar10", "pretrained:nin-cifar10", "compact-s", 12, {"train_limit": 4000}),
    "cifar45k-xs-4": Case("cifar10", "pretrained:nin-cifar10", "compact-xs", 4),
    "photos-mobile-4": Case("photos", "nin", "timm:mobilenetv3_small_050", 4),
    "skewed-xs-12": Case("skewed", "nin", "compact-xs", 12),
    "skewed-weak-teacher-4": Case("skewed", "compact-s", "compact-xs", 4, teacher_training={"epochs": 4}),
}
PER_CLASS = {"photos": [250] * 10, "skewed": [round(600 * 0.1 ** (k / 9)) for k in range(10)]}
"""Training images per class; validation has a fifth of them, the test split 200 of each."""


def photo_folder(folder: Path, counts: list[int], root: str, seed: int) -> Path:
    """A folder of JPEG files, train/val/test by class, from CIFAR-10's training and test images."""
    if (folder.parent / f"{folder.name}.done").exists():
        return folder
    official = nt.load_data("cifar10", root=root, verify=False)
    rng = np.random.default_rng(seed)
    names = official.class_names
    pools = {"train": official.train, "val": official.val, "test": official.test}
    for role, split in pools.items():
        labels = split.labels.numpy()
        for k, count in enumerate(counts):
            images = {"train": count, "val": max(10, count // 5), "test": 200}[role]
            rows = rng.permutation(np.flatnonzero(labels == k))[:images]
            (folder / role / names[k]).mkdir(parents=True, exist_ok=True)
            for row, image in zip(rows, split.images_at(torch.from_numpy(rows)), strict=True):
                picture = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((64, 64), Image.Resampling.BICUBIC)
                picture.save(folder / role / names[k] / f"{row:05d}.jpg", quality=92)
    (folder.parent / f"{folder.name}.done").touch()
    return folder


def nin_at_64(data: nt.Splits) -> torch.nn.Module:
    """The shipped NIN for images of 64 x 64, which it sees at 32 x 32."""
    shipped = nt.load_model("pretrained:nin-cifar10")
    model = nt.build_model("nin", data, preprocess=f"{shipped.architecture['preprocess']}@32x32-bicubic")
    model.network.load_state_dict(shipped.network.state_dict())
    model.preprocess.inner.load_state_dict(shipped.preprocess.state_dict())
    return model


def run_case(name: str, case: Case, preset: str, seeds: int, root: str, work: Path) -> Result:
    """The result of one case, trained, resumed or read."""
    if case.data in PER_CLASS:
        data = nt.load_data(str(photo_folder(work / case.data, PER_CLASS[case.data], root, seed=7)))
    elif case.data == "mnist-5k":
        data = nt.load_data(case.data)
    else:
        data = nt.load_data(case.data, root=root, verify=False, **case.options)
    teacher: Any = nin_at_64(data) if case.teacher == "nin" else case.teacher
    outputs = work / f"{name}-{preset}"
    started = sorted(outputs.glob("*-compress-*")) if outputs.exists() else []
    done = Run.open(started[-1]).result() if started else None
    if done is not None:
        return Result.read(started[-1], done)
    recipe = {"options": {"init": "random"}} if case.student.startswith("shrink:") else {}
    return nt.compress(
        teacher, case.student, data, seeds=seeds, epochs=case.epochs, preset=preset,
        teacher_training=case.teacher_training, precision="fp32", output_dir=outputs,
        run=started[-1] if started else None, **recipe,
    )  # fmt: skip


def official_errors(result: Result, root: str) -> dict[str, list[float]]:
    """Errors (%) on MNIST's official test set by condition, one per seed."""
    test = nt.load_data("mnist", root=root, verify=False).test
    assert test is not None
    return {
        row.name: [
            float(nt.evaluate(nt.load_model(result.path / run / "weights.safetensors"), test, progress=False).error)
            for run in row.runs
        ]
        for row in result.rows
        if row.name != "teacher"
    }


def record_of(name: str, case: Case, preset: str, result: Result, root: str) -> dict[str, Any]:
    """Errors (%) on test and validation by condition, one per seed, and the paired difference on test."""
    rows = {row.name: row for row in result.rows}
    scores = {
        condition: [Run.open(result.path / run).result()["scores"]["val"]["error"]["value"] for run in row.runs]
        for condition, row in rows.items()
    }
    difference = paired_difference(rows["labels"].errors, rows["clean"].errors)
    official = {}
    if case.data == "mnist-5k":
        errors = official_errors(result, root)
        official = {
            "official": errors,
            "official_difference": vars(paired_difference(errors["labels"], errors["clean"])),
        }
    return {
        "case": name, "preset": preset, "data": case.data, "student": case.student, "epochs": case.epochs,
        "n": result.n[result.role], "val": scores,
        "test": {condition: list(row.errors) for condition, row in rows.items()},
        "difference": {"mean": difference.mean, "low": difference.low, "high": difference.high, "p": difference.p},
        **official,
    }  # fmt: skip


def main() -> None:
    """Run the cases that are asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--case", action="append", choices=CASES)
    parser.add_argument("--preset", action="append")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    records = []
    for preset in options.preset or ["standard"]:
        for name in options.case or CASES:
            result = run_case(name, CASES[name], preset, options.seeds, options.data_root, options.work)
            records.append(record_of(name, CASES[name], preset, result, options.data_root))
            print(json.dumps(records[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
