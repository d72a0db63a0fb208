"""The commands for data sets: which are here, what is in one, and packing images once for all trainings."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from noisyteacher.cli import options as o
from noisyteacher.cli.show import print_json, print_table, progress, say
from noisyteacher.progress import PATIENCE_S, stage

data = typer.Typer(name="data", help="List, check and pack data sets.", no_args_is_help=True, rich_markup_mode=None)
SHOWN = 10
"""How many of the images that were left out a table names."""


@data.command("ls")
def data_ls(data_root: o.DataRoot = None, as_json: o.Json = False) -> None:
    """List the data sets known by name and whether their files are here.

    Example: noisyteacher data ls --data-root ~/data
    """
    from noisyteacher.data import datasets_here

    found = datasets_here(data_root)
    if as_json:
        print_json(found)
    else:
        print_table(("data set", "here", "where or what is missing"), [list(one.values()) for one in found])


@data.command("check")
def data_check(
    name: Annotated[str, typer.Argument(help="A data set's name, an .npz file, a folder of images or a packed one.")],
    data_root: o.DataRoot = None,
    overrides: o.Set = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Read a data set whole and say what is in it; of a packed one the checksum is compared.

    Example: noisyteacher data check mnist-5k
    """
    import warnings
    from pathlib import Path

    from noisyteacher.config import build_config
    from noisyteacher.errors import DataWarning

    flags = {"data.name": name, "data.root": data_root}
    config = build_config(o.settings(None, overrides, flags))
    with progress(quiet, delay_s=PATIENCE_S) as watch:
        from noisyteacher.data import Packed, data_summary, is_packed
        from noisyteacher.pipeline import load_config_data

        packed = Packed.open(config.data.name) if is_packed(Path(config.data.name)) else None
        with stage(watch, f"checking {config.data.name}"):
            verified = None if packed is None else packed.verify()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)  # it is the note, which is printed below
            splits = load_config_data(config, watch)
        with stage(watch, "summing up the images"):
            summary = data_summary(splits)
    if packed is not None:
        summary["packed"] = {"bytes_verified": verified, "left_out": packed.left_out}
    if as_json:
        print_json(summary)
        return
    say(f"{summary['name']}: {summary['classes']} classes, images {summary['input_shape']} (C, H, W)")
    if summary["note"]:
        say(summary["note"])
    if packed is not None:
        say(f"packed: {verified:,} bytes, the checksum holds; {len(packed.left_out):,} image(s) left out")
    rows = []
    for role, found in summary["splits"].items():
        per_class = list((found["per_class"] or {}).values())
        spread = f"{min(per_class)}..{max(per_class)}" if per_class else "no labels"
        mean = " ".join(f"{value:.3f}" for value in found["mean"])
        std = " ".join(f"{value:.3f}" for value in found["std"])
        rows.append((role, f"{found['n']:,}", spread, mean, std, found["fingerprint"][:12]))
    print_table(("split", "n", "per class", "mean", "sd", "fingerprint"), rows, right=(1, 2))


@data.command("pack")
def data_pack(
    source: Annotated[
        str, typer.Argument(help="A folder of images, of parquet files or of a saved data set, or an .npz file.")
    ],
    out: Annotated[str, typer.Argument(help="The folder to make.", callback=o.not_empty)],
    size: Annotated[int | None, typer.Option(min=1, help="Side in pixels; needed where sizes differ.")] = None,
    fit: Annotated[
        str, typer.Option(help="crop: the largest centred square, scaled; squash: the whole image, scaled.")
    ] = "crop",
    grey: Annotated[bool, typer.Option("--grey", help="One channel.")] = False,
    classes: Annotated[
        str | None, typer.Option(help="Number or names (cat,dog) of the classes, where nothing is labelled.")
    ] = None,
    skip_corrupt: Annotated[
        bool, typer.Option("--skip-corrupt", help="Leave out what cannot be read, and list it.")
    ] = False,
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Also read what links to folders and to files outside point to.")
    ] = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="Threads that decode (default: one per core).")] = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Decode images of any number once, into a folder that every training maps into memory.

    The folder is then the data set: --data OUT. It appears whole: after an interruption, packing starts again.

    Example: noisyteacher data pack photos photos-64 --size 64
    """
    from noisyteacher.workers import cores

    named: Any = classes
    if classes is not None:
        named = int(classes) if classes.strip().isdigit() else [one.strip() for one in classes.split(",")]
    with progress(quiet, heavy="noisyteacher.data") as watch:
        from noisyteacher.data import pack_data

        packed = pack_data(
            source, out, size=size, grey=grey, fit=fit, classes=named, skip_corrupt=skip_corrupt,
            follow_links=follow_links, jobs=jobs or cores(), watch=watch,
        )  # fmt: skip
    record = packed.record
    image_bytes = packed.total_bytes // sum(packed.rows.values())
    parts = [
        {
            "part": part.role,
            "images": len(part.files),
            "labelled": part.labels is not None,
            "left_out": sum(image["part"] == part.role for image in record.left_out),
            "bytes": len(part.files) * image_bytes,
        }
        for part in record.parts
    ]
    if as_json:
        keys = ("name", "input_shape", "class_names", "note", "fit", "grey")
        settings = {key: getattr(record, key) for key in keys}
        print_json({"packed": str(packed.path), **settings, "parts": parts, "left_out": record.left_out})
        return
    rows = []
    for part in parts:
        labelled = "yes" if part["labelled"] else "no"
        rows.append((part["part"], f"{part['images']:,}", labelled, f"{part['left_out']:,}", f"{part['bytes']:,}"))
    print_table(("part", "images", "labelled", "left out", "bytes"), rows, right=(1, 3, 4))
    if packed.note:
        say(packed.note)
    for image in packed.left_out[:SHOWN]:
        say(f"left out: {image['file']}: {image['reason']}")
    if len(packed.left_out) > SHOWN:
        say(f"and {len(packed.left_out) - SHOWN:,} more, in {packed.path / 'packed.json'}")
    shape = list(packed.input_shape)
    say(f"\n{packed.path}: {len(packed.class_names)} classes, images {shape} (C, H, W)")
