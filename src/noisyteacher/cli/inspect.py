"""The commands that look at a model: evaluate and measure."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from noisyteacher.cli import options as o
from noisyteacher.cli.show import print_json, print_scores, print_table, progress, say
from noisyteacher.progress import PATIENCE_S, counted, stage

Model = Annotated[str, typer.Argument(help="A trained model: a run, its folder, or a weights file.")]


def evaluate(
    model: Model,
    data: o.DataName = None,
    data_root: o.DataRoot = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    teacher: Annotated[str | None, typer.Option(help="A second model: how often do the two agree?")] = None,
    output_dir: o.OutputDir = None,
    device: o.Device = None,
    overrides: o.Set = None,
    allow_import: o.AllowImport = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Say how good a model is: error, NLL, calibration, agreement with a teacher, each with n.

    On the data that the model's run was trained on, unless --data names others.

    Example: noisyteacher evaluate runs/20261122T1246Z-distil-mlp800-7f3a9c --split val
    """
    from noisyteacher.config import build_config
    from noisyteacher.errors import DataError
    from noisyteacher.text import unknown_name

    if split not in ("train", "val", "test"):
        raise unknown_name("split", split, ("train", "val", "test"))
    with progress(quiet, delay_s=PATIENCE_S) as watch:
        from noisyteacher.evaluate import evaluate as scores_of
        from noisyteacher.pipeline import load_config_data, load_teacher

        path = o.model_path(model, output_dir)
        flags = {"data.name": data, "data.root": data_root, "run.device": device}
        config = build_config(o.settings(None, overrides, flags, o.data_of(path, data, overrides)))
        splits = load_config_data(config, watch)
        part = splits.parts.get(split)
        if part is None:
            raise DataError(f"{splits.name}: has no {split} split, only {', '.join(splits.parts)}")
        found, _ = load_teacher(path, splits, allow_import, config.teacher)
        second = None if teacher is None else load_teacher(o.model_path(teacher, output_dir), splits, allow_import)[0]
        tell = False if watch is None else counted(watch, f"evaluating on {split}", "images")
        scores = scores_of(found, part, teacher=second, device=config.run.device, progress=tell).describe()
    o.note_other_data(path, splits)
    record = {"name": splits.name, "split": split, "n": len(part), "fingerprint": part.fingerprint}
    if as_json:
        print_json({"model": path, "data": record, **scores})
    else:
        print_scores({split: scores})
        say(f"\nModel: {path}")
        say(f"Data: {splits.name}, {split}, {len(part):,} images, fingerprint {part.fingerprint[:12]}")


def measure(
    model: Annotated[str, typer.Argument(help="A run, a weights file, a network's name or pkg.module:factory.")],
    classes: Annotated[int, typer.Option(help="Classes of a network given by name.")] = 10,
    input_shape: Annotated[str, typer.Option(help="C,H,W of a network given by name.")] = "1,28,28",
    layers: Annotated[bool, typer.Option("--layers", help="A line per layer.")] = False,
    batch: Annotated[int, typer.Option(help="Images per call.")] = 1,
    threads: o.Threads = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "cpu",
    runs: Annotated[int, typer.Option(help="Timed calls.")] = 50,
    output_dir: o.OutputDir = None,
    allow_import: o.AllowImport = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Say what a model costs: parameters, bytes, multiplications, latency, memory.

    Example: noisyteacher measure nin --input-shape 3,32,32 --layers
    """
    from noisyteacher.text import count, size_bytes

    with progress(quiet, delay_s=PATIENCE_S) as watch:
        from noisyteacher.device import check_threads
        from noisyteacher.errors import UsageError
        from noisyteacher.measure import measure as costs_of
        from noisyteacher.models import MODELS, ZOO, Classifier, build_model
        from noisyteacher.pipeline import load_teacher

        if threads is not None:
            check_threads(threads)
        if model in MODELS or model.partition(":")[0] in ZOO or (":" in model and "/" not in model):
            try:
                shape = tuple(int(size) for size in input_shape.split(","))
            except ValueError as error:
                raise UsageError(f"--input-shape {input_shape!r}: expected C,H,W, for example 3,32,32") from error
            built: Classifier = build_model(model, classes=classes, input_shape=shape)
        else:
            built = load_teacher(o.model_path(model, output_dir, MODELS), allow_import=allow_import)[0]
        with stage(watch, "measuring costs"):
            costs = costs_of(built, batch=batch, threads=threads, device=device, runs=runs)
    if as_json:
        print_json({"architecture": built.architecture, **asdict(costs)})
        return
    latency = costs.latency_ms
    assert latency is not None
    condition = f"batch {latency.batch}, {latency.threads} thread(s), {latency.device}, {latency.runs} runs"
    macs = count(costs.macs) if not costs.unsupported else f">= {count(costs.macs)}"
    print_table(
        ("cost", "value", "exactly"),
        [
            ("parameters", count(costs.parameters), f"{costs.parameters:,}"),
            ("weights file", size_bytes(costs.bytes), f"{costs.bytes:,} bytes"),
            ("MACs per image", macs, f"{costs.macs:,} multiplications, biases not counted"),
            ("MACs of preprocessing", count(costs.preprocess_macs), f"{costs.preprocess_macs:,}"),
            ("latency", f"{latency.median:.3f} ms", f"median; p95 {latency.p95:.3f} ms; {condition}"),
            ("peak memory", size_bytes(costs.peak_memory_bytes), f"{costs.peak_memory_bytes:,} bytes, batch {batch}"),
        ],
    )
    for name in costs.unsupported:
        say(f"not counted: {name}")
    if layers:
        typer.echo()
        print_table(
            ("layer", "kind", "output", "parameters", "MACs"),
            [
                (one.name, one.kind, "x".join(map(str, one.output_shape)), f"{one.parameters:,}", f"{one.macs:,}")
                for one in costs.layers
            ],
            right=(3, 4),
        )


COMMANDS = (evaluate, measure)
