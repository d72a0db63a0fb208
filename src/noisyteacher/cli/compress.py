"""The commands that make a student of a teacher: demo and compress; or one step of that: train, extract, distil."""

from __future__ import annotations

import time
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated

import typer

from noisyteacher.cli import options as o
from noisyteacher.cli.output import (
    command_line,
    print_json,
    print_result,
    print_scores,
    progress,
    resumable,
    say,
    show_table,
    write,
)
from noisyteacher.progress import stage

if TYPE_CHECKING:
    from noisyteacher.config import Config, Values
    from noisyteacher.pipeline import Result

OF_SEVERAL = ("seeds", "control_seeds", "baselines", "export")
"""Settings of a run that a training of one network does not read: it has no further seeds and exports nothing."""


@o.with_options("run.output_dir as_json quiet")
def demo(
    request: o.Request,
    seeds: Annotated[int, typer.Option(min=1, help="Students per condition.")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Steps of every student's training.")] = 3000,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=0, help="Processes; 0: as many as there are cores.")] = 0,
) -> None:
    """Compress a teacher of 4,000 embedded digits into a small student that sees 500 of them, in about two minutes.

    The students are trained on labels alone, by the teacher's logits, and by the noisy teacher, long enough for noise
    to help; then again, clean and noisy, each with the rate and the weight decay that validation chooses for it.

    Example: noisyteacher demo
    """
    from noisyteacher.config import build_config
    from noisyteacher.process import cores

    run: Values = {"output_dir": request.output_dir, "threads": 1}  # the networks are too small for more
    teacher: Values = {"teacher": {"preset": "paper", "epochs": 4}, "run": run}
    with progress(request.quiet) as watch:
        from noisyteacher.pipeline.single_step import train_config

        trained = train_config(build_config(teacher), on_progress=watch)
    settings: Values = {
        "data": {"train_limit": 500},
        "teacher": {"name": str(trained.run.path)},
        "student": {
            "preset": "patient",
            "name": "mlp128",
            "steps": steps,
            "lr": 0.06,
            "weight_decay": 0.0,
            "keep": "last",
        },
        "noise": {"sigma": 0.9, "alpha": 0.5, "draw": "row", "until": 0.6},
        "choice": {"lrs": [0.03, 0.06], "weight_decays": [0.0, 0.01], "controls": True},
        "run": {**run, "seeds": seeds},
    }
    result = _compress_settings(settings, replace(request, jobs=jobs or cores()))
    if not request.as_json:
        errors = [f"{fmean(row.errors):.1f} %" for row in result.rows]
        write(
            f"\nIn short: a teacher that saw 4,000 digits misreads {errors[0]} of {result.n['test']} new ones, a small "
            f"student that sees 500 of them {errors[1]} on labels alone, {errors[2]} by the teacher's logits, "
            f"{errors[3]} with noise on these. With the rate and weight decay that validation chose for each it is "
            f"{errors[4]} without noise and {errors[5]} with it: the fair comparison, judged by the "
            "last Noise line above."
        )


@o.with_options(
    f"config {o.DATA} teacher.name teacher.weights teacher.epochs student.name target.macs target.bytes "
    "target.parameters target.latency target.latency_record target.max_drop target.search target.minutes run.export "
    f"student.qat_epochs {o.NOISE} {o.RECIPE} "
    f"run.seeds run.baselines {o.MACHINE} jobs overrides allow_import resume as_json quiet"
)
def compress(
    request: o.Request,
    candidates: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Only write the networks to be timed on a device (see: bench), untrained.",
            callback=o.not_empty,
        ),
    ] = None,
) -> None:
    """Compress a teacher into a student and measure what was saved.

    The students learn from the teacher's logits as they are: in short trainings noise lowered no test error. With
    --sigma they are also trained under noise on the logits, with --noise under one that is chosen on validation, and
    the verdict says what the noise did, and whether the training was long enough for the question to be fair. Without
    --student the student is chosen too, among the networks that keep within the targets (default: --target-macs 4x): 4x
    is at most a quarter of the teacher's, a plain number is at most that many. The folder best in the run folder has
    the student that is best on validation, with its exported files; a run that chose its student or has --export also
    gets a report.html.

    Example: noisyteacher compress --data mnist --teacher lenet --student mlp800 --sigma 0.8 --alpha 0.15 --seeds 3

    Example: noisyteacher compress --teacher pretrained:lenet-mnist --target-macs 4x --max-drop 1 --export onnx

    Example: noisyteacher compress --teacher pretrained:lenet-mnist --target-latency 2x --export onnx-int8
    """
    started = time.monotonic()  # before torch is loaded
    if request.resume is not None:
        request.refuse_beside("--resume", candidates=candidates)
        _compress(None, request, started)
    elif candidates is not None:
        _write_candidates(request, Path(candidates))
    else:
        _compress_settings(request.with_teacher_preset().settings(), request, started)


def _write_candidates(request: o.Request, folder: Path) -> None:
    """Write the candidates of a compression with these settings, and say what to do with them."""
    from noisyteacher.config import build_config

    config = build_config(request.with_teacher_preset().settings())
    with progress(request.quiet) as watch:
        from noisyteacher.pipeline.compression import write_candidates

        files = write_candidates(config, folder, watch, request.allow_import)
    if request.as_json:
        print_json({"folder": str(folder), "files": list(map(str, files))})
        return
    say(f"{folder}: {len(files)} files. Copy the folder to the device and run there, in it:")
    say(f"  python bench.py {' '.join(file.name for file in files)} --output device.json")
    say("Then compress with the same options, --latency-record device.json in place of --candidates.")


def _compress_settings(settings: Values, request: o.Request, started: float | None = None) -> Result:
    """Compress as the settings say, and print the result, which is returned."""
    from noisyteacher.config import build_config

    config = build_config(settings)
    if config.student.name in ("", "auto") and not config.target.limits_costs:
        say(
            "note: no student and no target: a student of at most a quarter of the teacher's multiplications is chosen "
            "(--target-macs 4x); --student NAME takes another",
            err=True,
        )
    return _compress(config, request, started)


def _compress(config: Config | None, request: o.Request, started: float | None) -> Result:
    """Start a compression, or without a config resume the request's, and print the result, which is returned."""
    with resumable("compress", request.options_to_resume()) as begun, progress(request.quiet) as watch:
        from noisyteacher.pipeline.compression import compress_config, resume_compress
        from noisyteacher.pipeline.pretrained import refuse_training_of

        if config is None:
            start = partial(resume_compress, request.run(str(request.resume)))
        else:
            refuse_training_of(config.teacher.name, request.named)
            start = partial(compress_config, config, command=command_line())
        result = start(
            on_run_created=begun,
            on_progress=watch,
            allow_import=request.allow_import,
            jobs=request.jobs,
            started=started,
        )
    _report(result, request)
    return result


def _report(result: Result, request: o.Request) -> None:
    """Print the result, after a report.html where files or a choice are to be shown; exit with 3 if a check fails."""
    if result.search is not None or result.files or result.failed:
        from noisyteacher.errors import NoisyTeacherError
        from noisyteacher.io.files import write_bytes
        from noisyteacher.pipeline.compression_result import REPORT
        from noisyteacher.report import build_report

        try:
            with progress(request.quiet) as watch, stage(watch, "writing the report"):
                page = build_report([result.path], "html").encode()
                write_bytes(result.path / REPORT, page, within=result.path)
        except NoisyTeacherError as error:  # the table is worth more than the page
            say(f"no report: {error}", err=True)
    print_result(result, request.as_json, summary=result.summary())
    if not result.holds:
        raise typer.Exit(3)


@o.with_options(
    f"config teacher.name {o.DATA} {o.RECIPE} {o.MACHINE} run.profile overrides seed resume as_json quiet",
    teacher_name=("--model", "A network's name, or pkg.module:factory."),
    student_weights=("--weights", "Trained weights that the network starts from."),
    student_head=("--head", "Last layer beside weights: keep, or new; default: new where the classes differ."),
)
def train(request: o.Request) -> None:
    """Train a network on labels: a teacher, or a student to compare with.

    Example: noisyteacher train --model lenet --data mnist-5k --epochs 10

    Example: noisyteacher train --model timm:resnet18 --weights body.pth --head new --freeze-epochs 1 --body-rate 0.1
    """
    flags = {key.replace("student.", "teacher."): value for key, value in request.flags.items()}
    if request.pretrained:
        flags["teacher.options.pretrained"] = True
    _train_or_distil("train", replace(request, flags=flags, pretrained=False))


@o.with_options(
    f"config student.name {o.DATA} {o.NOISE} {o.RECIPE} {o.MACHINE} run.profile overrides seed resume as_json quiet",
    config=("--config", "A TOML file (see: config init)."),
)
def distil(
    request: o.Request,
    store: Annotated[str | None, typer.Argument(help="A logit store's folder (see: extract).")] = None,
) -> None:
    """Train a student from stored logits; with --sigma or --noise under noise on them.

    Example: noisyteacher distil runs/logits/lenet-mnist-5k-train-2b7e11 --student mlp800 --sigma 0.8 --alpha 0.15
    """
    if (store is None) == (request.resume is None):
        raise typer.BadParameter("give a store's folder, or --resume RUN")
    _train_or_distil("distil", request, store or "")


def _train_or_distil(kind: str, request: o.Request, store: str = "") -> None:
    """One training run of a kind, new or resumed, and its scores."""
    from noisyteacher.distributed import process_group, rank
    from noisyteacher.text import duration, plural

    with (
        resumable(kind, request.options_to_resume()) as begun,
        progress(request.quiet or rank() > 0) as watch,
    ):
        from noisyteacher.config.schema import RunSettings
        from noisyteacher.pipeline.single_step import distil_config, resume_single, train_config
        from noisyteacher.train.history import profile_table

        if request.resume is not None:
            request.refuse_beside("--resume")
            run = request.run(request.resume)
            device = str(run.config.get("config", {}).get("run", {}).get("device", "auto"))
            start = partial(resume_single, run, kind)
        else:
            trained_by = {"train": ("teacher",), "distil": ("student", "noise", "choice")}[kind]
            of_run = [f"run.{part.name}" for part in fields(RunSettings) if part.name not in OF_SEVERAL]
            config = request.config_reading("data", *trained_by, *of_run)
            device = config.run.device
            create = train_config if kind == "train" else partial(distil_config, store=store)
            start = partial(create, config, seed=request.seed or 0, command=command_line())
        with process_group(device) as group:
            trained = start(on_run_created=begun, on_progress=watch)
    if not group.leads:
        return
    result = trained.result
    if request.as_json:
        print_json({"run": str(trained.run.path), **result})
        return
    print_scores(result["scores"])
    if result.get("choice"):
        say(f"\nNoise: {result['choice']['summary']}.")
    if result.get("profile"):
        say("")
        show_table(profile_table(result["profile"]))
    training = result["training"]
    machine = [training["device"], plural(training["threads"], "thread"), training.get("precision")]
    say(f"\nTrained in {duration(training['seconds'])} on {', '.join(word for word in machine if word)}")
    say(f"Run folder: {trained.run.path}")


@o.with_options(f"teacher.weights {o.DATA} student.views {o.MACHINE} overrides allow_import as_json quiet")
def extract(
    request: o.Request,
    teacher: Annotated[
        str, typer.Argument(help="A trained model: a run, its folder, a weights file, hf:NAME or an .onnx file.")
    ],
    to: Annotated[str | None, typer.Option(help="Folder of the store (default: OUTPUT_DIR/logits/...).")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing store.")] = False,
) -> None:
    """Store a teacher's raw logits for a training split, one for every image and view.

    Of the data that the teacher's run was trained on, unless --data names others.

    Example: noisyteacher extract runs/20261122T1246Z-train-lenet-7f3a9c --views clean,mirror
    """
    with progress(request.quiet) as watch:
        from noisyteacher.pipeline.single_step import extract_config

        path = teacher if "teacher.weights" in request.flags else o.model_path(teacher, request.output_dir)
        named = replace(request, flags=request.flags | {"teacher.name": path})
        config, splits = named.data_for(path, watch, "student.views", "run.checks", *o.MACHINE.split())
        store = extract_config(config, to, watch, data=splits, allow_import=request.allow_import, overwrite=overwrite)
    o.note_other_data(path, splits)
    record: Values = {
        "store": str(store.path),
        "model": path,
        "data": {"name": splits.name, "split": "train", "fingerprint": splits.train.fingerprint},
        "views": len(store.views),
        "rows": store.rows,
        "classes": store.classes,
        "bytes": sum(shard.bytes for shard in store.shards),
        "digest": store.digest,
    }
    if request.as_json:
        print_json(record)
        return
    shape = f"{len(store.views)} view(s) x {store.rows:,} rows x {store.classes} classes"
    say(f"{store.path}: {shape}, {record['bytes']:,} bytes")
    say(f"{path} on {splits.name}, train, fingerprint {splits.train.fingerprint[:12]}")
