"""The command that reports on run folders."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from noisyteacher.cli import options as o
from noisyteacher.cli.show import progress, say
from noisyteacher.progress import PATIENCE_S, stage

RunNames = Annotated[
    list[str], typer.Argument(metavar="RUN...", help="Runs: folders, ids, or the beginning or end of an id.")
]


def report(
    names: RunNames,
    format: Annotated[  # noqa: A002
        str | None, typer.Option("--format", help="html, md, json or csv (default: by the ending of FILE, else html).")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="The file to write; - is stdout.")
    ] = None,
    output_dir: Annotated[str, typer.Option("--output-dir", help="Folder of run folders.")] = "runs",
    quiet: o.Quiet = False,
) -> None:
    """Report on any set of runs: verdicts, figures, costs, settings, in one self-contained HTML page.

    HTML goes to the file report.html unless --output names another; the other formats go to stdout.

    Example: noisyteacher report 7f3a9c --output report.html
    """
    from noisyteacher.errors import UsageError
    from noisyteacher.io.files import write_bytes

    ending = output.suffix.lstrip(".").lower() if output is not None else ""
    chosen = format or {"": "html", "htm": "html", "markdown": "md"}.get(ending, ending)
    with progress(quiet, delay_s=PATIENCE_S, heavy="noisyteacher.report") as watch:
        from noisyteacher.report import FORMATS, build_report
        from noisyteacher.runs import find_run

        if format is None and chosen not in FORMATS:
            raise UsageError(f"{output}: no report ends in .{ending}: name it --format {', '.join(FORMATS)}")
        with stage(watch, "writing the report"):
            text = build_report([name if Path(name).is_dir() else find_run(output_dir, name) for name in names], chosen)
    if str(output) == "-" or (output is None and chosen != "html"):
        sys.stdout.write(text)
        return
    target = output or Path("report.html")
    write_bytes(target, text.encode())
    say(f"wrote {target} ({len(names)} run{'s' if len(names) > 1 else ''}, {len(text.encode()):,} bytes)")


COMMANDS = (report,)
