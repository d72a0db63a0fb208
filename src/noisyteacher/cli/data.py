"""The commands for data sets and for stored logits of them."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from noisyteacher.cli import options as o
from noisyteacher.cli.output import print_json, print_table, progress, say
from noisyteacher.progress import PATIENCE_S, counted, stage
from noisyteacher.text import few, plural

if TYPE_CHECKING:
    from noisyteacher.config import Values

data = o.group("data", "List, check and pack data sets.")
logits = o.group("logits", "Show and verify logit stores.")
Store = Annotated[str, typer.Argument(help="A store's folder.")]
LISTED = 10
"""The most images, or classes, that are named."""
RARE = 3.0
"""A class with this many times fewer training images than the largest is worth a sentence."""


@data.command("ls")
@o.with_options("data.root as_json")
def data_ls(request: o.Request) -> None:
    """List the data sets with a name and whether their files are here.

    Example: noisyteacher data ls --data-root ~/data
    """
    from noisyteacher.data import datasets_here

    rows = datasets_here(request.flags.get("data.root"))
    if request.as_json:
        print_json(rows)
    else:
        print_table(("data set", "here", "where or what is missing"), [list(row.values()) for row in rows])


@data.command("check")
@o.with_options("data.root data.size data.fit overrides as_json quiet")
def data_check(
    request: o.Request,
    name: Annotated[str, typer.Argument(help="A data set's name, a .npz or .csv file, or a folder.")],
) -> None:
    """Read all of a data set: classes in their order, rare ones, images that two splits have, files that are damaged.

    A packed data set is compared with its checksum. Files that cannot be read are exit code 1.

    Example: noisyteacher data check mnist-5k
    """
    from noisyteacher.errors import DataError, DataWarning
    from noisyteacher.process import cores

    config = request.config_reading("data", base={"data": {"name": name}})
    with progress(request.quiet, PATIENCE_S) as watch:
        from noisyteacher.data import Packed, data_summary, is_packed
        from noisyteacher.data_check import duplicates, image_names, imbalance, unreadable_files
        from noisyteacher.pipeline.resolve import load_config_data

        packed = Packed.open(config.data.name) if is_packed(Path(config.data.name)) else None
        with stage(watch, f"checking {config.data.name}"):
            verified = None if packed is None else packed.verify()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)  # it is the note, which is printed below
            try:
                splits = load_config_data(config, watch)
            except DataError as error:
                with stage(watch, "looking for all files that cannot be read"):
                    damaged = (
                        [] if packed is not None else unreadable_files(config.data.name, config.data.root, cores())
                    )
                if len(damaged) < 2:
                    raise
                lines = [f"{file}: {reason}" for file, reason in damaged[:LISTED]]
                more = f"\nand {len(damaged) - LISTED:,} more" if len(damaged) > LISTED else ""
                listed = "\n".join(lines)
                raise DataError(f"{len(damaged):,} images cannot be read:\n{listed}{more}") from error
        with stage(watch, "summing up the images"):
            summary = data_summary(splits)
        pairs = duplicates(splits, None if watch is None else counted(watch, "looking for duplicates", "images"))
        name_of = image_names(splits, packed or config.data.name, config.data.root) if pairs else str
    rare = imbalance(splits)
    summary["imbalance"] = None if rare is None else rare._asdict()
    summary["duplicates"] = [
        {"splits": [pair.first[0], pair.second[0]], "images": [name_of(pair.first), name_of(pair.second)]}
        | {"labels_differ": pair.labels_differ}
        for pair in pairs
    ]
    if packed is not None:
        summary["packed"] = {"bytes_verified": verified, "left_out": packed.left_out}
    if request.as_json:
        print_json(summary)
        return
    say(f"{summary['name']}: {summary['classes']} classes, images {summary['input_shape']} (C, H, W)")
    if summary["note"]:
        say(summary["note"])
    if packed is not None:
        say(f"packed: {verified:,} bytes, the checksum holds; {len(packed.left_out):,} image(s) left out")
    rows = []
    for role, split in summary["splits"].items():
        sizes = list((split["per_class"] or {}).values())
        per_class = f"{min(sizes)}..{max(sizes)}" if sizes else "no labels"
        mean, std = (" ".join(f"{value:.3f}" for value in split[key]) for key in ("mean", "std"))
        rows.append((role, f"{split['n']:,}", per_class, mean, std, split["fingerprint"][:12]))
    print_table(("split", "n", "per class", "mean", "sd", "fingerprint"), rows, "lrrlll")
    say("")
    numbered = [f"{number} {label}" for number, label in enumerate(splits.class_names)]
    say(f"Class order: {few(numbered, LISTED)}")
    if rare is not None and rare.ratio > RARE:
        advice = "balanced accuracy and recall (evaluate), and try --set student.sampling=balanced"
        counts = f"{rare.most:,} training images of {rare.frequent}, {rare.fewest:,} of {rare.rarest}"
        say(f"Imbalance: {counts}{f': read {advice}' if rare.fewest else ', which no student can learn'}")
    kinds = Counter((pair.first[0], pair.second[0]) for pair in pairs)
    for (first, second), count in kinds.items():
        pair = next(pair for pair in pairs if (pair.first[0], pair.second[0]) == (first, second))
        where = f"twice in {first}" if first == second else f"in {first} and in {second}: errors there are too low"
        say(f"Duplicates: {plural(count, 'image')} {where} ({name_of(pair.first)} = {name_of(pair.second)}, ...)")
    if differ := sum(pair.labels_differ for pair in pairs):
        say(f"Labels: {differ:,} of these have two labels")


@data.command("pack")
@o.with_options("data.root data.size as_json quiet")
def data_pack(
    request: o.Request,
    source: Annotated[
        str, typer.Argument(help="A folder of images, of parquet files or of a saved data set, or a .npz or .csv file.")
    ],
    out: Annotated[str, typer.Argument(help="The folder to make.", callback=o.not_empty)],
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
) -> None:
    """Decode images of any number once, into a folder that every training maps into memory.

    The folder is then the data set: --data OUT. It appears whole: after an interruption, packing starts again.

    Example: noisyteacher data pack photos photos-64 --size 64
    """
    from noisyteacher.process import cores

    labels: int | list[str] | None = None
    if classes is not None:
        labels = int(classes) if classes.strip().isdecimal() else [name.strip() for name in classes.split(",")]
    with progress(request.quiet, heavy="noisyteacher.data") as watch:
        from noisyteacher.data import pack_data

        packed = pack_data(
            source,
            out,
            root=request.flags.get("data.root"),
            size=request.flags.get("data.size"),
            grey=grey,
            fit=fit,
            classes=labels,
            skip_corrupt=skip_corrupt,
            follow_links=follow_links,
            jobs=jobs or cores(),
            watch=watch,
        )
    image_bytes = packed.total_bytes // sum(packed.rows.values())
    parts = [
        {
            "part": part.role,
            "images": len(part.files),
            "labelled": part.labels is not None,
            "left_out": sum(image["part"] == part.role for image in packed.left_out),
            "bytes": len(part.files) * image_bytes,
        }
        for part in packed.parts
    ]
    if request.as_json:
        keys = ("name", "input_shape", "class_names", "note", "fit", "grey")
        settings = {key: getattr(packed, key) for key in keys}
        print_json({"packed": str(packed.path), **settings, "parts": parts, "left_out": packed.left_out})
        return
    rows = []
    for part in parts:
        labelled = "yes" if part["labelled"] else "no"
        rows.append((part["part"], f"{part['images']:,}", labelled, f"{part['left_out']:,}", f"{part['bytes']:,}"))
    print_table(("part", "images", "labelled", "left out", "bytes"), rows, "lrlrr")
    if packed.note:
        say(packed.note)
    for image in packed.left_out[:LISTED]:
        say(f"left out: {image['file']}: {image['reason']}")
    if len(packed.left_out) > LISTED:
        say(f"and {len(packed.left_out) - LISTED:,} more, in {packed.path / 'packed.json'}")
    say(f"\n{packed.path}: {len(packed.class_names)} classes, images {list(packed.input_shape)} (C, H, W)")


@logits.command("show")
@o.with_options("as_json")
def logits_show(request: o.Request, store: Store) -> None:
    """Show the contents of a logit store and the teacher and data it belongs to.

    Example: noisyteacher logits show runs/logits/lenet-mnist-5k-train-2b7e11
    """
    from noisyteacher.store import LogitStore

    opened = LogitStore.open(store)
    record: Values = {
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
    if request.as_json:
        print_json(record)
        return
    rows = {key: value for key, value in record.items() if not isinstance(value, dict)}
    rows |= {f"fingerprint of {key}": value for key, value in opened.fingerprints.items()}
    lists = {key: ", ".join(map(str, value[:6])) for key, value in rows.items() if isinstance(value, list)}
    print_table(("field", "value"), list((rows | lists).items()))


@logits.command("verify")
@o.with_options(f"{o.DATA} run.device run.output_dir overrides allow_import as_json quiet")
def logits_verify(
    request: o.Request,
    store: Store,
    teacher: Annotated[str | None, typer.Option(help="A run or weights file: recompute a sample with it.")] = None,
    sample: Annotated[int, typer.Option(min=1, help="Rows per view to recompute.")] = 256,
) -> None:
    """Read every byte of a store against its checksums; with --teacher also recompute a sample of rows.

    The rows are those of the data that the teacher's run was trained on, unless --data names others.

    Example: noisyteacher logits verify STORE --teacher runs/20261122T1246Z-train-lenet-7f3a9c
    """
    record: Values = {}
    with progress(request.quiet, PATIENCE_S) as watch:
        from noisyteacher.device import resolve_device
        from noisyteacher.pipeline.pretrained import load_teacher
        from noisyteacher.store import LogitStore

        opened = LogitStore.open(store)
        if teacher is None:
            with stage(watch, "reading the store"):
                report = opened.verify()
        else:
            path = o.model_path(teacher, request.output_dir)
            config, splits = request.data_for(path, watch, "run.device", "run.output_dir")
            model, _ = load_teacher(path, splits, request.allow_import, config.teacher)
            model = model.to(resolve_device(config.run.device))
            opened.check(data=splits.train.fingerprint)
            o.note_other_data(path, splits)
            with stage(watch, "reading the store and recomputing a sample"):
                report = opened.verify(model, splits.train, sample)
            record = {
                "model": path,
                "data": {"name": splits.name, "split": "train", "fingerprint": splits.train.fingerprint},
            }
    if request.as_json:
        fields = ("shards", "bytes", "rows", "max_abs_difference", "per_view")
        print_json(record | {name: getattr(report, name) for name in fields})
        return
    say(f"{opened.path}: {report.shards} shard(s), {report.bytes:,} bytes, all checksums hold")
    if report.rows:
        say(
            f"{report.rows} rows of {len(opened.views)} view(s) of {splits.name}, train, recomputed with {path}: "
            f"largest difference {report.max_abs_difference:.2g}"
        )
