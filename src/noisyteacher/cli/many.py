"""The commands that train many students: sweep and paper."""

from __future__ import annotations

import math
from typing import Annotated, Any

import typer

from noisyteacher.cli import options as o
from noisyteacher.cli.show import command_line, print_json, print_noted, progress, resumable, write
from noisyteacher.errors import UsageError
from noisyteacher.text import flat

Jobs = Annotated[int, typer.Option("--jobs", "-j", help="Processes on this machine; the cores are shared out.")]
Stack = Annotated[
    int,
    typer.Option("--stack", help="Instead: students trained at once in this process, for a GPU."),
]
Scheduler = Annotated[str | None, typer.Option(help="Instead: a dask scheduler, such as tcp://host:8786.")]


@o.training_flags
def sweep(
    *,
    config: o.ConfigFile = None,
    grid: Annotated[
        list[str] | None,
        typer.Option("--grid", metavar="KEY=V1,V2", help="A setting and the values to try; may be repeated."),
    ] = None,
    data: o.DataName = None,
    data_root: o.DataRoot = None,
    teacher: Annotated[str | None, typer.Option(help="A network to train, or a run or file of a trained one.")] = None,
    student: Annotated[str | None, typer.Option(help="The small network.")] = None,
    sigma: o.SigmaAll = None,
    alpha: o.AlphaAll = None,
    draw: o.Draw = None,
    training: o.Training,
    seeds: Annotated[int | None, typer.Option(help="Students per condition, with seeds 0, 1, ...")] = None,
    jobs: Jobs = 1,
    stack: Stack = 1,
    scheduler: Scheduler = None,
    output_dir: o.OutputDir = None,
    device: o.Device = None,
    threads: o.Threads = None,
    overrides: o.Set = None,
    resume: o.Resume = None,
    judge: Annotated[
        str | None, typer.Option("--so-far", metavar="RUN", help="Train nothing: judge what is done of a sweep.")
    ] = None,
    allow_import: o.AllowImport = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Train a grid of students and say, with intervals and paired tests, which setting or which noise helped.

    The grid is given by --grid or by a table [sweep] of CONFIG (several tables [[sweep]] are put together). Exit code 3
    when a cell failed.

    Example: noisyteacher sweep --grid noise.sigma=0.1,0.3,0.6,0.9 --grid noise.draw=batch,row --seeds 3 --jobs 2
    """
    flags: dict[str, Any] = {
        "data.name": data, "data.root": data_root, "teacher.name": teacher, "student.name": student,
        "noise.sigma": sigma, "noise.alpha": alpha, "noise.draw": draw, **o.recipe("student", training),
        "teacher.preset": training["preset"], "run.seeds": seeds, "run.device": device, "run.threads": threads,
    }  # fmt: skip
    if judge is not None:
        o.refuse_with_resume(
            config, [*(overrides or ()), *(grid or ()), *([resume] if resume else ())], flags, "--so-far"
        )
        with progress(quiet):
            from noisyteacher.sweep import so_far

            judged = so_far(o.resumed(judge, output_dir))
        print_sweep(judged, as_json)
        return
    if resume is not None:
        o.refuse_with_resume(config, [*(overrides or ()), *(grid or ())], flags)
        with resumable("sweep") as begun, progress(quiet) as watch:
            from noisyteacher.sweep import resume_sweep

            result = resume_sweep(
                o.resumed(resume, output_dir),
                jobs=jobs,
                stack=stack,
                scheduler=scheduler,
                allow_import=allow_import,
                begun=begun,
                progress=watch,
            )
    else:
        base, grids = _asked(config, grid, overrides, flags | {"run.output_dir": output_dir})
        with resumable("sweep") as begun, progress(quiet) as watch:
            from noisyteacher.sweep import sweep as run_sweep

            result = run_sweep(
                base,
                grids,
                jobs=jobs,
                stack=stack,
                scheduler=scheduler,
                command=command_line(),
                allow_import=allow_import,
                begun=begun,
                progress=watch,
            )
    print_sweep(result, as_json)
    if result.failed:
        raise typer.Exit(3)


def _asked(
    config: Any, grid: list[str] | None, overrides: list[str] | None, flags: dict[str, Any]
) -> tuple[dict[str, Any], list[dict[str, list[Any]]]]:
    """The base settings and the grids of a config file, flags and --grid."""
    from noisyteacher.config import flat_grids, parse_grid
    from noisyteacher.errors import ConfigError

    base = o.settings(config, overrides, flags)
    grids = flat_grids(base.pop("sweep", None))
    named = parse_grid(grid or [])
    if named and grids:
        raise ConfigError(f"--grid and the table [sweep] of {config}: give the grid in one place")
    grids = grids or ([named] if named else [])
    if not grids:
        raise ConfigError(
            "no grid: give --grid KEY=V1,V2 (such as noise.sigma=0.1,0.5,0.9) or a table [sweep] in CONFIG"
        )
    return base, grids


def print_sweep(result: Any, as_json: bool) -> None:
    """A sweep's table, notes, verdicts, failed cells and run folder; or all of it as JSON."""
    if as_json:
        print_json({"run": str(result.path), **result.record})
        return

    headers, rows = result.table()
    print_noted(headers, rows, result.notes())
    write("")
    for verdict in result.verdicts():
        write(f"Verdict: {verdict}.", "bold")
    if result.failed:
        write(f"\n{len(result.failed)} failed:", "bold red")
        for one in result.failed:
            write(f"  {one['run']}: {one['error']}")
    write(f"\nRun folder: {result.path}")


def paper(
    experiment: Annotated[str, typer.Argument(help="table1 ... table6, fig2, fig3, section5.4, why, or all.")],
    budget: Annotated[str, typer.Option(help="quick (minutes), standard, or full.")] = "standard",
    data_root: o.DataRoot = None,
    teacher: Annotated[str | None, typer.Option(help="A run or file of the first teacher, trained elsewhere.")] = None,
    part: Annotated[
        list[str] | None, typer.Option(help="Only this part, such as student3 of table6; repeatable.")
    ] = None,
    sigmas: Annotated[str | None, typer.Option(help="These instead of the budget's, such as 0.3,0.9.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="So many instead of the budget's.")] = None,
    verify: Annotated[bool, typer.Option(help="Compare the official files with their published MD5 sums.")] = True,
    extra: Annotated[bool, typer.Option(help="SVHN: with its 531,131 extra images, as the paper.")] = True,
    jobs: Jobs = 1,
    stack: Stack = 1,
    scheduler: Scheduler = None,
    output_dir: o.OutputDir = None,
    device: o.Device = None,
    overrides: o.Set = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Run an experiment of the paper and print its numbers beside ours; asked again, goes on where it stopped.

    Example: noisyteacher paper table1 --budget quick --data-root data
    """
    from noisyteacher.config import read_config

    with progress(quiet):  # says that it is loading
        from noisyteacher.paper import EXPERIMENTS, run_paper, varies_sigma

    names = list(EXPERIMENTS) if experiment == "all" else [experiment]
    if sigmas is not None and experiment == "all":
        fixed = ", ".join(name for name in names if not varies_sigma(name))
        raise UsageError(f"--sigmas: {fixed} have sigmas of their own: name one of the others instead of all")
    if teacher is not None:
        teacher = o.model_path(teacher, output_dir)
    settings = flat(read_config(None, tuple(overrides or ())))
    results = []
    for name in names:
        with resumable(None) as begun, progress(quiet) as watch:
            result = run_paper(
                name,
                budget,
                data_root=data_root,
                verify=verify,
                extra=extra,
                teacher=teacher,
                parts=part or (),
                sigmas=_numbers(sigmas, "--sigmas"),
                seeds=seeds,
                jobs=jobs,
                stack=stack,
                scheduler=scheduler,
                output_dir=output_dir or "runs",
                device=device or "auto",
                overrides=settings,
                command=command_line(),
                begun=begun,
                watch=watch,
            )
        results.append(result)
        if not as_json:
            print_paper(result)
    if as_json:
        print_json([{"run": str(one.path), **one.record} for one in results])
    if any(one.failed for one in results):
        raise typer.Exit(3)


def _numbers(text: str | None, option: str) -> list[float]:
    """Numbers with commas between them; none where nothing was given."""
    try:
        found = [float(one) for one in text.split(",")] if text is not None else []
    except ValueError as error:
        raise UsageError(f"{option} {text}: expected numbers with commas between them, such as 0.3,0.9") from error
    if not all(0 <= one < math.inf for one in found):
        raise UsageError(f"{option} {text}: expected numbers from 0 on")
    return found


def print_paper(result: Any) -> None:
    """An experiment's table with the paper's numbers, its notes, verdicts and run folder."""

    record = result.record
    write(f"{record['title']} ({record['budget']}, {record['data']})", "bold")
    headers, rows = result.table()
    print_noted(headers, rows, record["notes"])
    for verdict in record["verdicts"]:
        write(f"Verdict: {verdict}.", "bold")
    for one in result.failed:
        write(f"failed: {one['run']}: {one['error']}", "bold red")
    write(f"\nRun folder: {result.path}")


COMMANDS = (sweep, paper)
