"""Narrower copies that inherit the teacher's weights against random ones, at several lengths of training.

python scripts/measure_starts.py --data FILE --work WORK [--teacher nin] [--seeds 3]

Each condition is one call of `nt.compress` with the default recipe, as a user would make it, on 2,000 training images;
finished ones are read. For every length each kind of start takes the learning rate, the default or a third of it, with
the lower validation error at seed 0; the other seeds judge it on test. `resnet18` is trained first, on all images.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import noisyteacher as nt
from noisyteacher.pipeline import Result
from noisyteacher.runs import Run
from noisyteacher.stats import paired_difference

TEACHERS = {"nin": "pretrained:nin-cifar10", "resnet18": "timm:resnet18"}
EPOCHS, STARTS, RATES, IMAGES = (2, 6, 16), ("random", "magnitude"), (0.01, 0.003), 2000
"""0.01 is the default's."""


def trained_teacher(name: str, file: str, work: Path) -> str:
    """What `compress` takes as the teacher: the shipped NIN, or the weights of a ResNet that is trained here."""
    weights = work / f"{name}.safetensors"
    if name != "nin" and not weights.exists():
        data = nt.load_data(file)
        model = nt.build_model(TEACHERS[name], data, seed=0)
        nt.fit(
            model, data.train, nt.supervised(), val=data.val, epochs=20, batch_size=64, optimizer="adamw", lr=2e-3,
            weight_decay=0.05, schedule="cosine", views=["mirror*crop"], run=work / name, resume=True,
        )  # fmt: skip
        nt.save_model(model, weights)
    return TEACHERS[name] if name == "nin" else str(weights)


def compressed(teacher: str, data: nt.Splits, work: Path, start: str, epochs: int, lr: float, seeds: int) -> Result:
    """The result of one call."""
    outputs = work / f"{start}-{epochs}-{lr:g}-{seeds}"
    started = sorted(outputs.glob("*-compress-*")) if outputs.exists() else []
    if started and (done := Run.open(started[-1]).result()) is not None:
        return Result.read(started[-1], done)
    return nt.compress(
        teacher, "shrink:0.5", data, seeds=seeds, epochs=epochs, lr=lr, baselines=False, checks=False,
        output_dir=outputs, run=started[-1] if started else None, options={"init": start},
    )  # fmt: skip


def main() -> None:
    """Measure one teacher; a JSON line per length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--teacher", choices=TEACHERS, default="nin")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    teacher = trained_teacher(options.teacher, options.data, options.work)
    data, work = nt.load_data(options.data, train_limit=IMAGES), options.work / f"{options.teacher}-students"
    for epochs in EPOCHS:
        errors, rates = {}, {}
        for start in STARTS:
            pilots = {lr: val_error(compressed(teacher, data, work, start, epochs, lr, 1)) for lr in RATES}
            rates[start] = min(RATES, key=lambda lr: pilots[lr])
            result = compressed(teacher, data, work, start, epochs, rates[start], 1 + options.seeds)
            errors[start] = list(result.conditions[-1].errors[1:])
        difference = paired_difference(errors["random"], errors["magnitude"])
        record = {"teacher": options.teacher, "epochs": epochs, "rates": rates, "errors": errors, "n": result.n["test"]}
        record["difference"] = {key: getattr(difference, key) for key in ("mean", "low", "high", "p", "n")}
        print(json.dumps(record), flush=True)


def val_error(result: Result) -> float:
    """The validation error (%) of the only student."""
    (run,) = result.conditions[-1].runs
    record = Run.open(result.path / run).result()
    return float(record["scores"]["val"]["error"]["value"])


if __name__ == "__main__":
    main()
