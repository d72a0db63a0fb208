"""The commands for a trained model and its files: evaluate, measure, bench, export."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from noisyteacher.cli import options as o
from noisyteacher.cli.output import WRITERS, print_json, print_scores, print_table, progress, say, show_table, write
from noisyteacher.progress import PATIENCE_S, counted, stage

HARDEST = 20
"""Classes whose recall `evaluate` prints at most."""


@o.with_options(f"{o.DATA} run.output_dir run.device overrides allow_import as_json quiet")
def evaluate(
    request: o.Request,
    model: o.Model,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    teacher: Annotated[str | None, typer.Option(help="A second model: how often do the two agree?")] = None,
) -> None:
    """Say how good a model is: error, NLL, calibration, agreement with a teacher, each with n.

    On the data that the model's run was trained on, unless --data names others.

    Example: noisyteacher evaluate runs/20261122T1246Z-distil-mlp800-7f3a9c --split val
    """
    from noisyteacher.errors import DataError
    from noisyteacher.text import unknown_name

    if split not in ("train", "val", "test"):
        raise unknown_name("split", split, ("train", "val", "test"))
    with progress(request.quiet, PATIENCE_S) as watch:
        from noisyteacher.evaluate import evaluate as score
        from noisyteacher.evaluate import recall_by_class
        from noisyteacher.pipeline.preflight import check_stated_order
        from noisyteacher.pipeline.pretrained import load_teacher

        path = o.model_path(model, request.output_dir)
        config, splits = request.data_for(path, watch, "run.device", "run.output_dir")
        part = splits.parts.get(split)
        if part is None:
            raise DataError(f"{splits.name}: has no {split} split, only {', '.join(splits.parts)}")
        classifier, _ = load_teacher(path, splits, request.allow_import, config.teacher)
        check_stated_order(path, classifier, splits, config.teacher)
        second = None
        if teacher is not None:
            second_path = o.model_path(teacher, request.output_dir)
            second, _ = load_teacher(second_path, splits, request.allow_import)
            check_stated_order(second_path, second, splits, who="the second model")
        report = False if watch is None else counted(watch, f"evaluating on {split}", "images")
        measured = score(classifier, part, teacher=second, device=config.run.device, progress=report)
    scores, recall = measured.describe(), recall_by_class(measured, part)
    o.note_other_data(path, splits)
    if request.as_json:
        record = {"name": splits.name, "split": split, "n": len(part), "fingerprint": part.fingerprint}
        print_json({"model": path, "data": record, **scores, "recall": recall})
        return
    print_scores({split: scores})
    if recall:
        hardest = sorted(recall.items(), key=lambda item: item[1]["value"])[:HARDEST]
        cells = [
            (name, f"{r['value']:.2f}", f"({r['low']:.2f}, {r['high']:.2f})", f"{r['n']:,}") for name, r in hardest
        ]
        say("")
        print_table(("class, lowest recall first", "recall %", "95 % Wilson", "n"), cells, "lrrr")
    say(f"\nModel: {path}")
    say(f"Data: {splits.name}, {split}, {len(part):,} images, fingerprint {part.fingerprint[:12]}")


@o.with_options("run.output_dir run.device allow_import quiet")
def predict(
    request: o.Request,
    model: o.Model,
    paths: Annotated[list[str], typer.Argument(metavar="FILES...", help="Images, and folders of images.")],
    format: Annotated[str, typer.Option("--format", help="table, json or csv.")] = "table",  # noqa: A002
    top: Annotated[int, typer.Option(min=1, help="How many classes of each image.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward pass.")] = 64,
    fit: Annotated[
        str | None,
        typer.Option(help="squash the whole image, or crop the largest window (default: as the model's data were)."),
    ] = None,
) -> None:
    """Say which class each image has, and with what probability.

    Images that cannot be read are named on stderr; the exit code is then 3. json and csv are written batch by batch.

    Example: noisyteacher predict runs/20261122T1246Z-compress-mlp128-7f3a9c/best photos --format csv
    """
    from noisyteacher.process import cores
    from noisyteacher.text import plural, unknown_name

    if format not in WRITERS:
        raise unknown_name("format", format, WRITERS)
    unreadable = 0
    with progress(request.quiet, PATIENCE_S) as watch:
        from noisyteacher.classify import classify
        from noisyteacher.pipeline.pretrained import class_names_of, fit_of, load_teacher

        path = o.model_path(model, request.output_dir)
        classifier, _ = load_teacher(path, allow_import=request.allow_import)
        names = class_names_of(path, classifier)
        if names is None:
            say(f"note: no class names are recorded for {path}: classes are numbered", err=True)
        fit = fit or fit_of(path)
        report = False if watch is None else counted(watch, "predicting", "images")
        options = {"top": top, "fit": fit, "batch_size": batch_size, "device": request.flags.get("run.device", "auto")}
        with WRITERS[format](min(top, classifier.classes or top)) as write_row:
            for image in classify(classifier, paths, class_names=names, threads=cores(), progress=report, **options):
                if image.error:
                    unreadable += 1
                    say(f"{image.file}: {image.error}", err=True)
                else:
                    write_row(image.file, list(zip(image.classes, image.probabilities, strict=True)))
    if unreadable:
        say(f"{plural(unreadable, 'image')} could not be read", err=True)
        raise typer.Exit(3)


@o.with_options("run.threads run.output_dir allow_import as_json quiet")
def measure(
    request: o.Request,
    model: Annotated[str, typer.Argument(help="A run, a weights file, a network's name or pkg.module:factory.")],
    classes: Annotated[int | None, typer.Option(help="Classes of a network given by name (default: 10).")] = None,
    input_shape: Annotated[
        str | None, typer.Option(help="C,H,W of a network given by name (default: 1,28,28), or of an ONNX file.")
    ] = None,
    layers: Annotated[bool, typer.Option("--layers", help="A line per layer.")] = False,
    batch: Annotated[int, typer.Option(help="Images per call.")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "cpu",
    runs: Annotated[int, typer.Option(help="Timed calls.")] = 50,
) -> None:
    """Say what a model costs: parameters, bytes, multiplications, latency, memory.

    Example: noisyteacher measure nin --input-shape 3,32,32 --layers
    """
    from noisyteacher.text import count, size_bytes

    threads = request.flags.get("run.threads")
    with progress(request.quiet, PATIENCE_S) as watch:
        from noisyteacher.device import check_threads
        from noisyteacher.errors import UsageError
        from noisyteacher.measure import measure as measure_costs
        from noisyteacher.models import MODELS, PREFIX, ZOO, build_model, is_onnx_file, load_onnx
        from noisyteacher.pipeline.pretrained import load_teacher

        if threads is not None:
            check_threads(threads)
        shape = None if input_shape is None else _shape(input_shape)
        named = model in MODELS or model.partition(":")[0] in ZOO or (":" in model and "/" not in model)
        if named and not model.startswith(PREFIX):
            count_of_classes = 10 if classes is None else classes
            classifier = build_model(model, classes=count_of_classes, input_shape=shape or (1, 28, 28))
        else:
            path = o.model_path(model, request.output_dir, MODELS)
            of_onnx = is_onnx_file(path)
            for option, value in (("--classes", classes), ("--input-shape", None if of_onnx else shape)):
                if value is not None:
                    raise UsageError(f"{option} has no effect on {model}, which states it: leave it out")
            if of_onnx:
                classifier = load_onnx(path, input_shape=shape)
            else:
                classifier, _ = load_teacher(path, allow_import=request.allow_import)
        with stage(watch, "measuring costs"):
            costs = measure_costs(classifier, batch=batch, threads=threads, device=device, runs=runs)
    if request.as_json:
        print_json({"architecture": classifier.architecture, **asdict(costs)})
        return
    latency = costs.latency_ms
    assert latency is not None
    machine = f"batch {latency.batch}, {latency.threads} thread(s), {latency.device}, {latency.runs} runs"
    at_least = ">= " if costs.unsupported else ""
    print_table(
        ("cost", "value", "exactly"),
        [
            ("parameters", count(costs.parameters), f"{costs.parameters:,}"),
            ("weights file", size_bytes(costs.bytes), f"{costs.bytes:,} bytes"),
            ("MACs per image", at_least + count(costs.macs), f"{costs.macs:,} multiplications, biases not counted"),
            ("MACs of preprocessing", count(costs.preprocess_macs), f"{costs.preprocess_macs:,}"),
            ("latency", f"{latency.median:.3f} ms", f"median; p95 {latency.p95:.3f} ms; {machine}"),
            ("peak memory", size_bytes(costs.peak_memory_bytes), f"{costs.peak_memory_bytes:,} bytes, batch {batch}"),
        ],
    )
    for name in costs.unsupported:
        say(f"not counted: {name}")
    if layers:
        say("")
        rows = [
            (layer.name, layer.kind, "x".join(map(str, layer.output_shape)), f"{layer.parameters:,}", f"{layer.macs:,}")
            for layer in costs.layers
        ]
        print_table(("layer", "kind", "output", "parameters", "MACs"), rows, "lllrr")


def _shape(text: str) -> tuple[int, int, int]:
    """The shape that the text `C,H,W` names. Raises UsageError."""
    from noisyteacher.errors import UsageError

    try:
        channels, height, width = map(int, text.split(","))
    except ValueError as error:
        raise UsageError(f"--input-shape {text!r}: expected C,H,W, for example 3,32,32") from error
    return channels, height, width


@o.with_options("as_json")
def bench(
    request: o.Request,
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="The first is what the others are compared with.")
    ],
    runtime: Annotated[
        str | None, typer.Option(help="onnx, executorch, litert or torch (default: by the file's ending).")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Images per call.")] = 1,
    seconds: Annotated[float, typer.Option(min=0, help="How long each file is called, in seconds.")] = 2.0,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="The JSON file to write.", callback=o.not_empty)
    ] = None,
) -> None:
    """Say how fast exported files are: latency in their own runtime, in turns, with intervals.

    For another machine copy the folder of an export: its bench.py is this command, without noisyteacher. The file that
    --output writes is what compress --latency-record reads, and report where it lies in a run's folder best.

    Example: noisyteacher bench best/model.onnx best/model-int8.onnx --threads 4 --output bench.json
    """
    from noisyteacher import bench as latency
    from noisyteacher.errors import UsageError
    from noisyteacher.io.files import write_bytes

    try:
        record = latency.bench(files, runtime, threads, batch, seconds)
    except latency.BenchError as error:
        raise UsageError(str(error)) from error
    if output is not None:
        write_bytes(Path(output), latency.to_json(record).encode())
    if request.as_json:
        say(latency.to_json(record))
        return
    print_table(latency.HEADERS, latency.rows(record), "llrrrr")
    say(f"\nLatency: {record.conditions}.")


@o.with_options(f"{o.DATA} run.threads overrides allow_import as_json quiet")
def export(
    request: o.Request,
    model: o.Model,
    formats: Annotated[
        str,
        typer.Option(
            "--format", help="onnx, onnx-int8, pte, pte-int8, tflite, tflite-int8, pt2, hub; comma-separated."
        ),
    ] = "onnx,onnx-int8,pt2",
    output_dir: Annotated[
        str | None,
        typer.Option("--output-dir", help="Folder for the files (default: exports/MODEL).", callback=o.not_empty),
    ] = None,
    max_drop: Annotated[
        float | None, typer.Option(min=0, help="Points of accuracy that int8 may lose (default: 1).")
    ] = None,
    max_difference: Annotated[
        float | None,
        typer.Option(min=0, help="Largest difference of an fp32 logit (default: 1e-4 of the largest logit)."),
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--licence", "--license", help="For the model card of hub.", callback=o.not_empty)
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Timed calls of each file.")] = 50,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Divide the logits by a temperature that is fitted on validation.")
    ] = False,
) -> None:
    """Write a model for other runtimes, run each file there on the validation split, and compare it with torch.

    On the data that the model's run was trained on, unless --data names others; int8 is calibrated on its training
    images. Exits with 3 when a file is over its tolerance, or one of several formats cannot be written.

    Example: noisyteacher export runs/20261122T1246Z-distil-mlp800-7f3a9c --format onnx,onnx-int8,hub
    """
    with progress(request.quiet) as watch:
        from noisyteacher.device import cpu_threads
        from noisyteacher.errors import NoisyTeacherError, UsageError
        from noisyteacher.export import FORMATS, check_format_names, check_formats, table, verdict
        from noisyteacher.models import is_onnx_file
        from noisyteacher.pipeline.handover import calibrated, provenance_of, ship
        from noisyteacher.pipeline.preflight import check_stated_order
        from noisyteacher.pipeline.pretrained import data_note, load_teacher, other_data

        names = [name.strip() for name in formats.split(",")]
        (check_formats if len(names) == 1 else check_format_names)(names)
        precisions = {FORMATS[name].precision for name in names if name != "hub"}
        for option, value, has_effect in (
            ("--licence", licence, "hub" in names),
            ("--max-difference", max_difference, "fp32" in precisions),
            ("--max-drop", max_drop, "int8" in precisions),
        ):
            if value is not None and not has_effect:
                raise UsageError(f"{option} has no effect on {', '.join(names)}: leave it out")
        path = o.model_path(model, request.output_dir)
        config, splits = request.data_for(path, watch, "run.threads")
        classifier, _ = load_teacher(path, splits, request.allow_import, config.teacher)
        check_stated_order(path, classifier, splits, config.teacher)
        folder = Path(output_dir) if output_dir is not None else Path("exports") / _export_name(path)
        failed: dict[str, NoisyTeacherError] = {}
        other, provenance = other_data(path, splits, "this model"), provenance_of(path)
        if other or calibrate or is_onnx_file(path):  # the run's scores are of other images, or of other logits
            provenance = replace(provenance, scores={})
        caveats = [words for words in (data_note(path), other) if words]
        with cpu_threads(config.run.threads):
            if calibrate:
                classifier, sentence = calibrated(classifier, splits)
                caveats.append(sentence)
            files = ship(
                classifier,
                splits,
                folder,
                names,
                provenance,
                watch,
                licence=licence,
                max_difference=max_difference,
                max_drop=max_drop,
                runs=runs,
                on_failure=failed.__setitem__,
                caveats=caveats,
            )
    if not files:
        raise next(iter(failed.values()))
    reasons = {name: str(error) for name, error in failed.items()}
    o.note_other_data(path, splits)
    if request.as_json:
        described = [file.describe() for file in files]
        record = {"model": path, "folder": str(folder), "verdict": verdict(files), "files": described}
        print_json(record | {"failed": reasons, "caveats": caveats})
    else:
        show_table(table(files, reasons))
        write(f"\nVerdict: {verdict(files)}.")
        if calibrate:
            say(f"\n{sentence}.")
        say(f"\nFolder: {folder}")
    if failed or not all(file.holds for file in files):
        raise typer.Exit(3)


def _export_name(model: str) -> str:
    """The folder's name for a model: the id of its run, or the name of a weights file or shipped model."""
    from noisyteacher.runs import BEST, Run, is_run

    path = Path(model)
    folder = path.parent if path.is_file() else path
    folder = folder.parent if folder.name == BEST else folder
    return Run(folder).id.replace("/", "-") if is_run(folder) else path.name.partition(":")[2] or path.stem
