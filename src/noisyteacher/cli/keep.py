"""The commands for what is kept: run folders, config files, logit stores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from noisyteacher.cli import options as o
from noisyteacher.cli.show import print_json, print_result, print_scores, print_table, progress, say
from noisyteacher.progress import PATIENCE_S, stage

runs = typer.Typer(
    name="runs", help="List, show, compare and remove run folders.", no_args_is_help=True, rich_markup_mode=None
)
config = typer.Typer(
    name="config", help="Write, check and explain settings.", no_args_is_help=True, rich_markup_mode=None
)
logits = typer.Typer(name="logits", help="Show and verify logit stores.", no_args_is_help=True, rich_markup_mode=None)

Where = Annotated[str, typer.Option("--output-dir", help="Folder of run folders.", callback=o.not_empty)]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, its id, or the beginning or end of it.")]


@runs.command("ls")
def runs_ls(
    output_dir: Where = "runs",
    everything: Annotated[bool, typer.Option("--all", help="Also the runs inside runs.")] = False,
    as_json: o.Json = False,
) -> None:
    """List the runs, newest first.

    Example: noisyteacher runs ls
    """
    from noisyteacher.runs import list_runs

    found = [
        {"run": run.id, "state": run.state, "started": run.started[:16], "error_%": _error_of(run)}
        for run in list_runs(output_dir, 3 if everything else 1)
    ]
    if as_json:
        print_json(found)
    elif found:
        print_table(("run", "state", "started (UTC)", "error %"), [list(one.values()) for one in found], right=(3,))
    else:
        say(f"no runs in {output_dir}")


@runs.command("show")
def runs_show(run: RunName, output_dir: Where = "runs", as_json: o.Json = False) -> None:
    """Show what a run is and what came of it.

    Example: noisyteacher runs show 7f3a9c
    """
    from noisyteacher.runs import find_run

    found = find_run(output_dir, run)
    found.check()
    result = found.result()
    if as_json:
        print_json(
            {"run": found.id, "state": found.state, "info": found.info, "config": found.config, "result": result}
        )
        return
    if result is not None and "rows" in result:
        from noisyteacher.pipeline import Result

        print_result(Result.read(found.path, result), False)
        return
    if result is not None and found.info["kind"] == "sweep":
        from noisyteacher.cli.many import print_sweep
        from noisyteacher.sweep import SweepResult

        print_sweep(SweepResult(found.path, result), False)
        return
    say(f"{found.path}: {found.state}, {found.info['kind']}, started {found.info['started']}")
    for name, parent in found.info["parents"].items():
        say(f"{name}: {parent}")
    if found.info["command"]:
        say(f"command: {found.info['command']}")
    if found.error():
        say(f"error: {found.error()}")
    if result is not None and "scores" in result:
        print_scores(result["scores"])


@runs.command("diff")
def runs_diff(first: RunName, second: RunName, output_dir: Where = "runs", as_json: o.Json = False) -> None:
    """List the settings in which two runs differ.

    Example: noisyteacher runs diff 7f3a9c 91bb02
    """
    from noisyteacher.runs import diff_runs, find_run

    found = diff_runs(find_run(output_dir, first), find_run(output_dir, second))
    if as_json:
        print_json([{"key": key, "first": a, "second": b} for key, a, b in found])
    elif found:
        print_table(("setting", first, second), found)
    else:
        typer.echo("no setting differs")


@runs.command("rm")
def runs_rm(
    names: Annotated[list[str], typer.Argument(metavar="RUN...", help="Runs to remove.")],
    output_dir: Where = "runs",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove run folders, with all that is in them.

    Example: noisyteacher runs rm 7f3a9c --yes
    """
    from noisyteacher.runs import find_run, remove_run

    named = {run.path.resolve(): run for run in (find_run(output_dir, name) for name in names)}
    found = [run for path, run in named.items() if not any(around in named for around in path.parents)]
    if not yes:
        typer.confirm(f"remove {', '.join(str(run.path) for run in found)}?", abort=True)
    for run in found:
        remove_run(run)
        say(f"removed {run.path}")


@config.command("init")
def config_init(
    path: Annotated[Path, typer.Argument(help="The file to write.")] = Path("compress.toml"),
    preset: Annotated[str, typer.Option(help="standard, paper or modern: what the settings begin with.")] = "standard",
) -> None:
    """Write a TOML file with every setting at its default and its meaning beside it.

    Example: noisyteacher config init compress.toml
    """
    from noisyteacher.config import template
    from noisyteacher.errors import UsageError
    from noisyteacher.io.files import write_bytes

    if path.exists():
        raise UsageError(f"{path}: is there already: choose another name, or remove it first")
    write_bytes(path, template(preset).encode())
    say(f"wrote {path}; run it with: noisyteacher compress {path}")


@config.command("check")
def config_check(
    path: Annotated[Path, typer.Argument(help="A TOML file.")], overrides: o.Set = None, as_json: o.Json = False
) -> None:
    """Check a file's settings and tell every problem at once; --json prints them resolved.

    Example: noisyteacher config check compress.toml --set noise.sigma=0.5
    """
    from noisyteacher.config import describe, flat_grids, read_config
    from noisyteacher.errors import ConfigError
    from noisyteacher.pipeline import wrong_names
    from noisyteacher.sweep import base_config, expand

    given = read_config(path, tuple(overrides or ()))
    grids = flat_grids(given.pop("sweep", None))
    built = base_config(given, grids)
    every = [built, *(one.config for one in (expand(given, grids)[0] if grids else ()))]
    if problems := dict.fromkeys(problem for one in every for problem in wrong_names(one)):
        raise ConfigError("\n".join(problems))
    if as_json:
        print_json(describe(built))
    else:
        say(f"{path}: fine")


@config.command("explain")
def config_explain(
    key: Annotated[str, typer.Argument(help="A setting or a part of its name; all without.")] = "",
    as_json: o.Json = False,
) -> None:
    """Explain settings: type, default, meaning.

    Example: noisyteacher config explain noise
    """
    from noisyteacher.config import explain
    from noisyteacher.text import unknown_name

    every = list(explain())
    found = [one for one in every if key in one[0]]
    if not found:
        raise unknown_name("setting", key, [one[0] for one in every])
    if as_json:
        print_json([dict(zip(("key", "type", "default", "meaning"), one, strict=True)) for one in found])
    else:
        shown = [(name, kind, "" if default is None else default, doc) for name, kind, default, doc in found]
        print_table(("setting", "type", "default", "meaning"), shown)


@logits.command("show")
def logits_show(store: Annotated[str, typer.Argument(help="A store's folder.")], as_json: o.Json = False) -> None:
    """Show what a logit store holds and whose it is.

    Example: noisyteacher logits show runs/logits/lenet-mnist-5k-train-2b7e11
    """
    from noisyteacher.store import LogitStore

    opened = LogitStore.open(store)
    record: dict[str, Any] = {
        "store": str(opened.path),
        "views": list(opened.views),
        "rows": opened.rows,
        "classes": opened.classes,
        "dtype": opened.dtype,
        "shards": len(opened.shards),
        "bytes": sum(shard.bytes for shard in opened.shards),
        "digest": opened.digest,
        "fingerprints": opened.fingerprints,
        **opened.meta,
    }
    if as_json:
        print_json(record)
        return
    flat = {key: value for key, value in record.items() if not isinstance(value, dict)}
    flat |= {f"fingerprint of {key}": value for key, value in opened.fingerprints.items()}
    shown = [(key, ", ".join(map(str, value[:6])) if isinstance(value, list) else value) for key, value in flat.items()]
    print_table(("field", "value"), shown)


@logits.command("verify")
def logits_verify(
    store: Annotated[str, typer.Argument(help="A store's folder.")],
    teacher: Annotated[
        str | None, typer.Option(help="Ask this model (a run or weights file) for a sample again.")
    ] = None,
    data_name: o.DataName = None,
    data_root: o.DataRoot = None,
    sample: Annotated[int, typer.Option(min=1, help="Rows per view to ask again.")] = 256,
    device: o.Device = None,
    output_dir: o.OutputDir = None,
    overrides: o.Set = None,
    allow_import: o.AllowImport = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Read every byte of a store against its checksums; with --teacher also recompute a sample of rows.

    The rows are those of the data that the teacher's run was trained on, unless --data names others.

    Example: noisyteacher logits verify STORE --teacher runs/20261122T1246Z-train-lenet-7f3a9c
    """
    from noisyteacher.config import build_config

    with progress(quiet, delay_s=PATIENCE_S) as watch:
        from noisyteacher.device import resolve_device
        from noisyteacher.pipeline import load_config_data, load_teacher
        from noisyteacher.store import LogitStore

        opened, asked = LogitStore.open(store), {}
        if teacher is None:
            with stage(watch, "reading the store"):
                report = opened.verify()
        else:
            path = o.model_path(teacher, output_dir)
            flags = {"data.name": data_name, "data.root": data_root, "run.device": device}
            config = build_config(o.settings(None, overrides, flags, o.data_of(path, data_name, overrides)))
            place, splits = resolve_device(config.run.device), load_config_data(config, watch)
            model = load_teacher(path, splits, allow_import)[0].to(place)
            opened.check(data=splits.train.fingerprint)
            o.note_other_data(path, splits)
            with stage(watch, "reading the store and asking the teacher again"):
                report = opened.verify(model, splits.train, sample)
            asked = {
                "model": path,
                "data": {"name": splits.name, "split": "train", "fingerprint": splits.train.fingerprint},
            }
    if as_json:
        print_json({**asked, **vars(report)})
        return
    say(f"{opened.path}: {report.shards} shard(s), {report.bytes:,} bytes, all checksums hold")
    if report.rows:
        typer.echo(
            f"{report.rows} rows of {len(opened.views)} view(s) of {splits.name}, train, asked again of {path}: "
            f"largest difference {report.max_abs_difference:.2g}"
        )


def _error_of(run: Any) -> str:
    """The test (else validation) error of a run, of a compression that of the student that is handed over; empty where
    there is none.
    """
    result = run.result() if run.state == "done" else None
    if not result:
        return ""
    if "rows" in result:
        handed_over = (result.get("best") or {}).get("run")
        for row in result["rows"]:
            if handed_over in row["runs"] and "error_%" in row:
                return f"{row['error_%']['per_seed'][row['runs'].index(handed_over)]:.2f}"
        last = result["rows"][-1].get("error_%")
        return f"{last['mean']:.2f}" if last else ""
    for split in ("test", "val"):
        error = result.get("scores", {}).get(split, {}).get("error")
        if error:
            return f"{error['value']:.2f}"
    return ""
