"""The commands for run folders and config files, and reports on them."""

from __future__ import annotations

import shlex
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from noisyteacher.cli import options as o
from noisyteacher.cli.output import print_json, print_result, print_scores, print_table, progress, say
from noisyteacher.progress import PATIENCE_S, stage

if TYPE_CHECKING:
    from noisyteacher.runs import Run

runs = o.group("runs", "List, show, compare and remove run folders.")
config = o.group("config", "Write, check and explain settings.")
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, its id, or the beginning or end of it.")]
RunNames = Annotated[
    list[str], typer.Argument(metavar="RUN...", help="Runs: folders, ids, or the beginning or end of an id.")
]


@runs.command("ls")
@o.with_options("run.output_dir as_json")
def runs_ls(
    request: o.Request,
    everything: Annotated[bool, typer.Option("--all", help="Also the runs inside runs.")] = False,
) -> None:
    """List the runs, newest first.

    Example: noisyteacher runs ls
    """
    from noisyteacher.runs import list_runs

    rows = [
        {"run": run.id, "state": run.state, "started": run.started[:16], "error_%": _error_of(run)}
        for run in list_runs(request.output_dir, 3 if everything else 1)
    ]
    if request.as_json:
        print_json(rows)
    elif rows:
        print_table(("run", "state", "started (UTC)", "error %"), [list(row.values()) for row in rows], "lllr")
    else:
        say(f"no runs in {request.output_dir}")


def _error_of(run: Run) -> str:
    """The test (else validation) error of a run, or of the best student of a compression; empty where none is known."""
    result = (run.result() if run.state == "done" else None) or {}
    with suppress(KeyError, TypeError, AttributeError):  # a result of another version of this package
        best = (result.get("best") or {}).get("run")
        for condition in result.get("conditions", ()):
            error = condition["scores"].get(result["role"], {}).get("error")
            if error and best in condition["runs"]:
                return f"{error['per_seed'][condition['runs'].index(best)]:.2f}"
        scores = result.get("scores", {})
        errors = [scores[split]["error"]["value"] for split in ("test", "val") if scores.get(split, {}).get("error")]
        if errors:
            return f"{errors[0]:.2f}"
    return ""


@runs.command("show")
@o.with_options("run.output_dir as_json")
def runs_show(request: o.Request, run: RunName) -> None:
    """Show a run's kind, state and result.

    Example: noisyteacher runs show 7f3a9c
    """
    from noisyteacher.runs import find_run

    opened = find_run(request.output_dir, run)
    opened.check()
    result, info = opened.result(), opened.info
    if request.as_json:
        print_json({"run": opened.id, "state": opened.state, "info": info, "config": opened.config, "result": result})
    elif result is not None and info["kind"] in ("compress", "sweep", "paper"):
        from noisyteacher.report.load import READERS

        print_result(READERS[info["kind"]].read(opened.path, result))
    else:
        say(f"{opened.path}: {opened.state}, {info['kind']}, started {info['started']}")
        facts = {**info["parents"], "command": info["command"], "error": opened.error()}
        for name, value in facts.items():
            if value:
                say(f"{name}: {value}")
        if result is not None and "scores" in result:
            print_scores(result["scores"])


@runs.command("diff")
@o.with_options("run.output_dir as_json")
def runs_diff(request: o.Request, first: RunName, second: RunName) -> None:
    """List the settings in which two runs differ.

    Example: noisyteacher runs diff 7f3a9c 91bb02
    """
    from noisyteacher.runs import diff_runs, find_run

    rows = diff_runs(find_run(request.output_dir, first), find_run(request.output_dir, second))
    if request.as_json:
        print_json([{"key": key, "first": old, "second": new} for key, old, new in rows])
    elif rows:
        print_table(("setting", first, second), rows)
    else:
        say("no setting differs")


@runs.command("rm")
@o.with_options("run.output_dir")
def runs_rm(
    request: o.Request,
    names: Annotated[list[str], typer.Argument(metavar="RUN...", help="Runs to remove.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove run folders, with all that is in them.

    Example: noisyteacher runs rm 7f3a9c --yes
    """
    from noisyteacher.runs import find_run, remove_run

    by_path = {run.path.resolve(): run for run in (find_run(request.output_dir, name) for name in names)}
    outermost = [run for path, run in by_path.items() if not any(parent in by_path for parent in path.parents)]
    if not yes:
        try:
            typer.confirm(f"remove {', '.join(str(run.path) for run in outermost)}?", abort=True)
        except typer.Abort:
            say("\nnothing is removed; --yes removes without asking", err=True)
            raise typer.Exit(1) from None
    for run in outermost:
        remove_run(run)
        say(f"removed {run.path}")


@config.command("init")
def config_init(
    path: Annotated[Path, typer.Argument(help="The file to write.")] = Path("compress.toml"),
    preset: Annotated[
        str, typer.Option(help="What the settings begin with: standard, paper, modern or patient.")
    ] = "standard",
) -> None:
    """Write a TOML file with every setting at its default and its meaning beside it.

    Example: noisyteacher config init compress.toml
    """
    from noisyteacher.config import template
    from noisyteacher.errors import UsageError
    from noisyteacher.io.files import write_bytes

    if path.exists():
        raise UsageError(f"{path}: exists already: choose another name, or remove it first")
    write_bytes(path, template(preset).encode())
    say(f"wrote {path}; run it with: noisyteacher compress {shlex.quote(str(path))}")


@config.command("check")
@o.with_options("overrides as_json")
def config_check(request: o.Request, path: Annotated[Path, typer.Argument(help="A TOML file.")]) -> None:
    """Check a file's settings and report every problem at once; --json prints them resolved.

    Example: noisyteacher config check compress.toml --set noise.sigma=0.5
    """
    from noisyteacher.config import describe, flat_grids
    from noisyteacher.errors import ConfigError
    from noisyteacher.pipeline.preflight import wrong_names
    from noisyteacher.sweep import base_config, expand

    settings = replace(request, config=path).settings()
    grids = flat_grids(settings.pop("sweep", None))
    base = base_config(settings, grids)
    configs = [base, *(condition.config for condition in (expand(settings, grids)[0] if grids else ()))]
    if problems := dict.fromkeys(problem for config in configs for problem in wrong_names(config)):
        raise ConfigError("\n".join(problems))
    if request.as_json:
        print_json(describe(base))
    else:
        say(f"{path}: fine")


@config.command("explain")
@o.with_options("as_json")
def config_explain(
    request: o.Request,
    key: Annotated[str, typer.Argument(help="A setting or a part of its name; all without.")] = "",
) -> None:
    """Explain settings: type, default, meaning.

    Example: noisyteacher config explain noise
    """
    from noisyteacher.config import explain
    from noisyteacher.text import unknown_name

    settings = list(explain())
    rows = [row for row in settings if key in row[0]]
    headers = ("setting", "type", "default", "meaning")
    if not rows:
        raise unknown_name("setting", key, [row[0] for row in settings])
    if request.as_json:
        print_json([dict(zip(("key", *headers[1:]), row, strict=True)) for row in rows])
    else:
        print_table(headers, rows)


@o.with_options("run.output_dir quiet")
def report(
    request: o.Request,
    names: RunNames,
    format: Annotated[  # noqa: A002
        str | None, typer.Option("--format", help="html, md, json or csv (default: by the ending of FILE, else html).")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="The file to write; - is stdout.", callback=o.not_empty),
    ] = None,
) -> None:
    """Report on any set of runs: verdicts, figures, costs, settings, in one self-contained HTML page.

    HTML goes to the file report.html unless --output names another; the other formats go to stdout.

    Example: noisyteacher report 7f3a9c --output report.html
    """
    from noisyteacher.errors import UsageError
    from noisyteacher.io.files import write_bytes
    from noisyteacher.text import plural

    ending = "" if output is None else Path(output).suffix.lstrip(".").lower()
    chosen = format or {"": "html", "htm": "html", "markdown": "md"}.get(ending, ending)
    with progress(request.quiet, PATIENCE_S, "noisyteacher.report") as watch:
        from noisyteacher.report import FORMATS, build_report
        from noisyteacher.runs import find_run

        if format is None and chosen not in FORMATS:
            raise UsageError(f"{output}: no report ends in .{ending}: name it --format {', '.join(FORMATS)}")
        with stage(watch, "writing the report"):
            text = build_report(
                [name if Path(name).is_dir() else find_run(request.output_dir, name) for name in names], chosen
            )
    if output == "-" or (output is None and chosen != "html"):
        sys.stdout.write(text)
        return
    target = Path(output or "report.html")
    write_bytes(target, text.encode())
    say(f"wrote {target} ({plural(len(names), 'run')}, {len(text.encode()):,} bytes)")
