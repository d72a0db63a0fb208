"""The commands that go the whole way: demo and compress."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from noisyteacher.cli import options as o
from noisyteacher.cli.show import command_line, print_result, progress, resumable, say
from noisyteacher.progress import stage

if TYPE_CHECKING:
    from noisyteacher.pipeline import Result

Limit = Annotated[str | None, typer.Option(metavar="4x|N", help="What the student may cost at most.")]


def demo(
    seeds: Annotated[int, typer.Option(min=1, help="Students per condition.")] = 3,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs per student.")] = 12,
    output_dir: o.OutputDir = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Run the whole way on 5,000 embedded digits, in a few minutes.

    Trains the paper's MNIST teacher, stores its logits, trains students on labels, by logit regression and by the noisy
    teacher, and prints what came of it.

    Example: noisyteacher demo
    """
    given = {
        "teacher": {"preset": "paper", "epochs": 8},
        "student": {"preset": "paper", "name": "mlp800", "epochs": epochs},
        "noise": {"sigma": 0.8, "alpha": 0.15},
        "run": {"seeds": seeds, "output_dir": output_dir or "runs"},
    }
    _compress(given, as_json, quiet, False)


@o.training_flags
def compress(
    *,
    config: o.ConfigFile = None,
    data: o.DataName = None,
    data_root: o.DataRoot = None,
    teacher: Annotated[
        str | None,
        typer.Option(help="A network's name (trained first), a run, a weights file, hf:NAME or an .onnx file."),
    ] = None,
    teacher_weights: o.TeacherWeights = None,
    student: Annotated[
        str | None,
        typer.Option(help="A network's name, pkg.module:factory, or auto (the default): chosen within the targets."),
    ] = None,
    target_macs: Limit = None,
    target_bytes: Limit = None,
    target_parameters: Limit = None,
    max_drop: Annotated[
        float | None, typer.Option(help="Points of validation accuracy that may be lost; more is exit code 3.")
    ] = None,
    search: Annotated[int | None, typer.Option(help="Networks tried at most, in short runs on validation.")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Time for the whole run; fewer epochs and tries if short.")
    ] = None,
    export: Annotated[
        str | None, typer.Option(help="Files to write: onnx, onnx-int8, pte, pte-int8, pt2, hub; comma-separated.")
    ] = None,
    noise: o.Noise = False,
    sigma: o.Sigma = None,
    alpha: o.Alpha = None,
    draw: o.Draw = None,
    teacher_epochs: Annotated[int | None, typer.Option(help="Epochs of a teacher that is trained first.")] = None,
    training: o.Training,
    seeds: Annotated[int | None, typer.Option(help="Students per condition; claims need several.")] = None,
    baselines: Annotated[
        bool | None, typer.Option("--baselines/--no-baselines", help="Also train on labels and by clean logits.")
    ] = None,
    output_dir: o.OutputDir = None,
    device: o.Device = None,
    threads: o.Threads = None,
    overrides: o.Set = None,
    allow_import: o.AllowImport = False,
    resume: o.Resume = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Compress a teacher into a student and say what was gained.

    The students learn from the teacher's logits as they are. With --sigma they are also trained under noise on the
    logits, with --noise under one that is chosen on validation, and the verdict says what the noise did. Without
    --student the student is chosen too, among the networks that keep within the targets (--target-macs 4x where none is
    given): 4x is at most a quarter of the teacher's, a plain number is at most that many. The folder best in the run's
    has the student that is best on validation, with its exported files; a run that chose its student or was given
    --export also gets a report.html.

    Example: noisyteacher compress --data mnist --teacher lenet --student mlp800 --sigma 0.8 --alpha 0.15 --seeds 3

    Example: noisyteacher compress --teacher pretrained:lenet-mnist --target-macs 4x --max-drop 1 --export onnx
    """
    flags = {
        "data.name": data,
        "data.root": data_root,
        "teacher.name": teacher,
        "teacher.weights": teacher_weights,
        "teacher.epochs": teacher_epochs,
        "student.name": student,
        "target.macs": target_macs,
        "target.bytes": target_bytes,
        "target.parameters": target_parameters,
        "target.max_drop": max_drop,
        "target.search": search,
        "target.minutes": minutes,
        "run.export": None if export is None else [one.strip() for one in export.split(",")],
        **o.noise_settings(noise, sigma, alpha, draw),
        **o.recipe("student", training),
        "teacher.preset": training["preset"],
        "run.seeds": seeds,
        "run.baselines": baselines,
        "run.output_dir": output_dir,
        "run.device": device,
        "run.threads": threads,
    }
    if resume is None:
        _compress(o.settings(config, overrides, flags), as_json, quiet, allow_import)
        return
    o.refuse_with_resume(config, overrides, {key: value for key, value in flags.items() if key != "run.output_dir"})
    with resumable("compress") as begun, progress(quiet) as watch:
        from noisyteacher.pipeline import resume_compress

        result = resume_compress(o.resumed(resume, output_dir), begun, watch, allow_import)
    _told(result, as_json, quiet)


def _compress(given: dict[str, Any], as_json: bool, quiet: bool, allow_import: bool) -> None:
    from noisyteacher.config import LIMITS, build_config

    built = build_config(given)
    target = built.target
    if built.student.name in ("", "auto") and all(getattr(target, name) is None for name in LIMITS):
        say(
            "note: no student and no target: a student of at most a quarter of the teacher's multiplications is chosen "
            "(--target-macs 4x); --student NAME takes another",
            err=True,
        )
    with resumable("compress") as begun, progress(quiet) as watch:
        from noisyteacher.pipeline import compress_config

        result = compress_config(built, command=command_line(), begun=begun, watch=watch, allow_import=allow_import)
    _told(result, as_json, quiet)


def _told(result: Result, as_json: bool, quiet: bool) -> None:
    """The result as text or JSON, a report where files or a choice are to be shown, exit code 3 if a check fails."""
    best = result.best or {}
    if result.search is not None or best.get("files") or best.get("failed"):
        from noisyteacher.errors import NoisyTeacherError
        from noisyteacher.io.files import write_bytes
        from noisyteacher.pipeline import REPORT
        from noisyteacher.report import build_report

        try:
            with progress(quiet) as watch, stage(watch, "writing the report"):
                page = build_report([result.path], "html").encode()
                write_bytes(result.path / REPORT, page, within=result.path)
        except NoisyTeacherError as error:  # the table is worth more than the page
            say(f"no report: {error}", err=True)
    print_result(result, as_json)
    if not result.holds:
        raise typer.Exit(3)


COMMANDS = (demo, compress)
