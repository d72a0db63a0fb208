"""The commands that train many students: sweep and paper."""

from __future__ import annotations

import math
from functools import partial as partial_function
from typing import Annotated

import typer

from noisyteacher.cli import options as o
from noisyteacher.cli.output import command_line, print_json, print_result, progress, resumable, write
from noisyteacher.errors import ConfigError, UsageError
from noisyteacher.text import flat


@o.with_options(
    f"config {o.DATA} teacher.name student.name student.loss noise.sigma noise.alpha noise.draw {o.RECIPE} run.seeds "
    f"run.control_seeds {o.MACHINE} jobs stack scheduler overrides resume allow_import as_json quiet",
    noise_sigma=("--sigma", "Standard deviation of the noise where --grid does not vary it; default 0: no noise."),
    noise_alpha=("--alpha", "Probability that a sample is perturbed where --grid does not vary it."),
)
def sweep(
    request: o.Request,
    grid: Annotated[
        list[str] | None, typer.Option(metavar="KEY=V1,V2", help="A setting and the values to try; may be repeated.")
    ] = None,
    partial: Annotated[
        str | None, typer.Option("--partial", "--so-far", metavar="RUN", help="Analyse the finished cells of a sweep.")
    ] = None,
) -> None:
    """Train a grid of students and say, with intervals and paired tests, which setting or which noise helped.

    The grid is named by --grid or by a table [sweep] of CONFIG (several tables [[sweep]] are put together). Exit code 3
    when a cell failed.

    Example: noisyteacher sweep --grid noise.sigma=0.1,0.3,0.6,0.9 --grid noise.draw=batch,row --seeds 3 --jobs 2
    """
    from noisyteacher.config import flat_grids, parse_grid

    resume = request.resume
    if partial is not None:
        request.refuse_beside("--partial", grid=grid, resume=resume)
        with progress(request.quiet):
            from noisyteacher.sweep import partial_result

            result = partial_result(request.run(partial))
        print_result(result, request.as_json)
        return
    if resume is not None:
        request.refuse_beside("--resume", grid=grid)
    else:
        base = request.with_teacher_preset().settings()
        grids = flat_grids(base.pop("sweep", None))
        if grid and grids:
            raise ConfigError(f"--grid and the table [sweep] of {request.config}: give the grid in one place")
        grids = [parse_grid(grid)] if grid else grids
        if not grids:
            raise ConfigError(
                "no grid: give --grid KEY=V1,V2 (such as noise.sigma=0.1,0.5) or a table [sweep] in CONFIG"
            )
        if overruled := sorted(set.intersection(set(request.named), *map(set, grids))):
            raise UsageError(f"{', '.join(overruled)}: has no effect beside a grid that varies it: leave it out")
    with resumable("sweep", request.options_to_resume()) as begun, progress(request.quiet) as watch:
        from noisyteacher.pipeline.pretrained import refuse_training_of
        from noisyteacher.sweep import resume_sweep
        from noisyteacher.sweep import sweep as run_sweep

        if resume is not None:
            start = partial_function(resume_sweep, request.run(resume))
        else:
            if not any("teacher.name" in each for each in grids):  # some of which may be trained
                refuse_training_of(str(base.get("teacher", {}).get("name", "")), request.named)
            start = partial_function(run_sweep, base, grids, command=command_line())
        result = start(
            jobs=request.jobs,
            stack=request.stack,
            scheduler=request.scheduler,
            allow_import=request.allow_import,
            begun=begun,
            progress=watch,
        )
    print_result(result, request.as_json)
    if result.failed:
        raise typer.Exit(3)


@o.with_options("data.root jobs stack scheduler run.output_dir run.device overrides as_json quiet")
def paper(
    request: o.Request,
    experiment: Annotated[
        str,
        typer.Argument(
            help="table1 ... table6, fig2, fig3, section5.4, constant, why, all; regime, relatives, objectives."
        ),
    ],
    budget: Annotated[str, typer.Option(help="quick (minutes), standard, or full.")] = "standard",
    teacher: Annotated[str | None, typer.Option(help="A run or file of the first teacher, trained elsewhere.")] = None,
    part: Annotated[
        list[str] | None, typer.Option(help="Only this part, such as student3 of table6; repeatable.")
    ] = None,
    sigmas: Annotated[str | None, typer.Option(help="Instead of the budget's, such as 0.3,0.9.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Instead of the budget's.")] = None,
    verify: Annotated[bool, typer.Option(help="Compare the official files with their published MD5 sums.")] = True,
    extra: Annotated[bool, typer.Option(help="SVHN: with its 531,131 extra images, as the paper.")] = True,
) -> None:
    """Run an experiment of the paper and print its numbers beside ours; the same command again resumes it.

    Example: noisyteacher paper table1 --budget quick --data-root data
    """
    with progress(request.quiet):  # says that it is loading
        from noisyteacher.paper import EXPERIMENTS, run_paper, varies_sigma

    names = list(EXPERIMENTS) if experiment == "all" else [experiment]
    if sigmas is not None and experiment == "all":
        fixed = ", ".join(name for name in names if not varies_sigma(name))
        raise UsageError(f"--sigmas: {fixed} have sigmas of their own: name an experiment instead of all")
    if teacher is not None:
        teacher = o.model_path(teacher, request.output_dir)
    results = []
    for name in names:
        with resumable(None) as begun, progress(request.quiet) as watch:
            result = run_paper(
                name,
                budget,
                data_root=request.flags.get("data.root"),
                verify=verify,
                extra=extra or (experiment == "all" and name != "table2"),
                teacher=teacher,
                parts=part or (),
                sigmas=_sigmas(sigmas),
                seeds=seeds,
                jobs=request.jobs,
                stack=request.stack,
                scheduler=request.scheduler,
                output_dir=request.output_dir,
                device=request.flags.get("run.device", "auto"),
                overrides=flat(o.Request(overrides=request.overrides).settings()),
                command=command_line(),
                begun=begun,
                watch=watch,
            )
        results.append(result)
        if not request.as_json:
            write(f"{result.title} ({result.budget}, {result.data})", "bold")
            print_result(result)
    if request.as_json:
        print_json([{"run": str(result.path), **result.describe()} for result in results])
    if any(result.failed for result in results):
        raise typer.Exit(3)


def _sigmas(text: str | None) -> list[float]:
    try:
        sigmas = [float(number) for number in text.split(",")] if text is not None else []
    except ValueError:
        sigmas = [math.nan]
    if not all(0 <= sigma < math.inf for sigma in sigmas):
        raise UsageError(f"--sigmas {text}: expected numbers >= 0 with commas between them, such as 0.3,0.9")
    return sigmas
