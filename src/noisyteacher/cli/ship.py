"""The command that hands a model over: export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from noisyteacher.cli import options as o
from noisyteacher.cli.show import print_exported, print_json, progress, say


def export(
    model: Annotated[str, typer.Argument(help="A trained model: a run, its folder, or a weights file.")],
    formats: Annotated[
        str, typer.Option("--format", help="onnx, onnx-int8, pt2, pte, pte-int8, hub; comma-separated.")
    ] = "onnx,onnx-int8,pt2",
    data: o.DataName = None,
    data_root: o.DataRoot = None,
    output_dir: Annotated[
        str | None,
        typer.Option("--output-dir", help="Folder for the files (default: exports/MODEL).", callback=o.not_empty),
    ] = None,
    max_drop: Annotated[float, typer.Option(min=0, help="Points of accuracy that int8 may lose.")] = 1.0,
    max_difference: Annotated[
        float | None,
        typer.Option(min=0, help="Largest difference of an fp32 logit (default: 1e-4 of the largest logit)."),
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--licence", "--license", help="For the model card of hub.", callback=o.not_empty)
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Timed calls of each file.")] = 50,
    threads: o.Threads = None,
    overrides: o.Set = None,
    allow_import: o.AllowImport = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Write a model for other runtimes, run each file there on the validation split, and compare it with torch.

    On the data that the model's run was trained on, unless --data names others; int8 is calibrated on its training
    images. Exits with 3 when a file is over its tolerance, or one of several formats cannot be written.

    Example: noisyteacher export runs/20261122T1246Z-distil-mlp800-7f3a9c --format onnx,onnx-int8,hub
    """
    with progress(quiet) as watch:
        from noisyteacher.config import build_config
        from noisyteacher.errors import NoisyTeacherError
        from noisyteacher.export import refuse_formats, refuse_names, verdict
        from noisyteacher.pipeline import load_config_data, load_teacher, seen_before, ship, story_of, trained_on

        chosen = [one.strip() for one in formats.split(",")]
        if len(chosen) == 1:
            refuse_formats(chosen)
        else:
            refuse_names(chosen)
        failed: dict[str, NoisyTeacherError] = {}
        path = o.model_path(model, None)
        flags = {"data.name": data, "data.root": data_root, "run.threads": threads}
        config = build_config(o.settings(None, overrides, flags, o.data_of(path, data, overrides)))
        splits = load_config_data(config, watch)
        found, _ = load_teacher(path, splits, allow_import)
        folder = Path(output_dir) if output_dir is not None else Path("exports") / _called(path)
        overlap = seen_before(trained_on(path), splits, "this model")
        made = ship(
            found,
            splits,
            folder,
            chosen,
            watch=watch,
            story=story_of(path),
            licence=licence,
            max_difference=max_difference,
            max_drop=max_drop,
            runs=runs,
            on_failure=failed.__setitem__,
            caveats=[overlap] if overlap else [],
        )
    if not made:
        raise next(iter(failed.values()))
    reasons = {name: str(error) for name, error in failed.items()}
    o.note_other_data(path, splits)
    if as_json:
        print_json(
            {
                "model": path,
                "folder": str(folder),
                "verdict": verdict(made),
                "files": [one.describe() for one in made],
                "failed": reasons,
            }
        )
    else:
        print_exported(made, reasons)
        say(f"\nFolder: {folder}")
    if failed or not all(one.holds for one in made):
        raise typer.Exit(3)


def _called(path: str) -> str:
    """The folder's name for a model: of a run its id, of a weights file or a shipped model its name."""
    from noisyteacher.runs import BEST, Run, is_run

    place = Path(path)
    if place.name == BEST and is_run(place.parent):
        place = place.parent
    if is_run(place):
        return Run(place).id.replace("/", "-")
    inside = is_run(place.parent) and place.suffix == ".safetensors"
    return Run(place.parent).id.replace("/", "-") if inside else place.name.partition(":")[2] or place.stem


COMMANDS = (export,)
