"""The commands that do single steps of the work: train, extract, distil."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from noisyteacher.cli import options as o
from noisyteacher.cli.show import command_line, print_json, print_profile, print_scores, progress, resumable, say
from noisyteacher.distributed import processes, rank
from noisyteacher.progress import Watch

if TYPE_CHECKING:
    from noisyteacher.config import Config
    from noisyteacher.pipeline import Trained
    from noisyteacher.runs import Run


@o.training_flags
def train(
    *,
    config: o.ConfigFile = None,
    model: Annotated[str | None, typer.Option("--model", help="A network's name, or pkg.module:factory.")] = None,
    data: o.DataName = None,
    data_root: o.DataRoot = None,
    training: o.Training,
    seed: o.Seed = None,
    output_dir: o.OutputDir = None,
    device: o.Device = None,
    threads: o.Threads = None,
    profile: o.Profile = False,
    overrides: o.Set = None,
    resume: o.Resume = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Train a network on labels: a teacher, or a student to compare with.

    Example: noisyteacher train --model lenet --data mnist-5k --epochs 10
    """
    flags = {
        "teacher.name": model,
        **o.recipe("teacher", training),
        "run.profile": profile or None,
        **_place(data, data_root, output_dir, device, threads),
    }
    _single("train", config, overrides, flags, seed, resume, output_dir, as_json, quiet)


def extract(
    teacher: Annotated[
        str, typer.Argument(help="A trained model: a run, its folder, a weights file, hf:NAME or an .onnx file.")
    ],
    teacher_weights: o.TeacherWeights = None,
    data: o.DataName = None,
    data_root: o.DataRoot = None,
    views: o.Views = None,
    to: Annotated[
        str | None, typer.Option("--to", help="Folder of the store (default: OUTPUT_DIR/logits/...).")
    ] = None,
    output_dir: o.OutputDir = None,
    device: o.Device = None,
    threads: o.Threads = None,
    overrides: o.Set = None,
    allow_import: o.AllowImport = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the store that is there.")] = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Store a teacher's raw logits for a training split, one for every image and view.

    Of the data that the teacher's run was trained on, unless --data names others.

    Example: noisyteacher extract runs/20261122T1246Z-train-lenet-7f3a9c --views clean,mirror
    """
    with progress(quiet) as watch:
        from noisyteacher.config import build_config
        from noisyteacher.pipeline import extract_config, load_config_data

        path = o.model_path(teacher, output_dir) if teacher_weights is None else teacher
        flags = {
            "teacher.name": path,
            "teacher.weights": teacher_weights,
            "student.views": views,
            **_place(data, data_root, output_dir, device, threads),
        }
        built = build_config(o.settings(None, overrides, flags, o.data_of(path, data, overrides)))
        splits = load_config_data(built, watch)
        store = extract_config(built, to, watch, data=splits, allow_import=allow_import, overwrite=overwrite)
    o.note_other_data(path, splits)
    record = {
        "store": str(store.path),
        "model": path,
        "data": {"name": splits.name, "split": "train", "fingerprint": splits.train.fingerprint},
        "views": len(store.views),
        "rows": store.rows,
        "classes": store.classes,
        "bytes": sum(shard.bytes for shard in store.shards),
        "digest": store.digest,
    }
    if as_json:
        print_json(record)
    else:
        typer.echo(
            f"{store.path}: {len(store.views)} view(s) x {store.rows:,} rows x {store.classes} classes, "
            f"{record['bytes']:,} bytes"
        )
        say(f"{path} on {splits.name}, train, fingerprint {splits.train.fingerprint[:12]}")


@o.training_flags
def distil(
    *,
    store: Annotated[
        str | None, typer.Argument(help="A logit store's folder (see: extract).", show_default=False)
    ] = None,
    config: Annotated[
        str | None, typer.Option("--config", metavar="FILE", help="A TOML file (see: config init).")
    ] = None,
    student: Annotated[str | None, typer.Option(help="A network's name, or pkg.module:factory.")] = None,
    data: o.DataName = None,
    data_root: o.DataRoot = None,
    noise: o.Noise = False,
    sigma: o.Sigma = None,
    alpha: o.Alpha = None,
    draw: o.Draw = None,
    training: o.Training,
    seed: o.Seed = None,
    output_dir: o.OutputDir = None,
    device: o.Device = None,
    threads: o.Threads = None,
    profile: o.Profile = False,
    overrides: o.Set = None,
    resume: o.Resume = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Train a student from stored logits; with --sigma or --noise under noise on them.

    Example: noisyteacher distil runs/logits/lenet-mnist-5k-train-2b7e11 --student mlp800 --sigma 0.8 --alpha 0.15
    """
    from pathlib import Path

    if (store is None) == (resume is None):
        raise typer.BadParameter("give a store's folder, or --resume RUN")
    flags = {
        "student.name": student,
        **o.noise_settings(noise, sigma, alpha, draw),
        **o.recipe("student", training),
        "run.profile": profile or None,
        **_place(data, data_root, output_dir, device, threads),
    }
    file = None if config is None else Path(config)
    _single("distil", file, overrides, flags, seed, resume, output_dir, as_json, quiet, store)


def _single(
    kind: str,
    config: Any,
    overrides: list[str] | None,
    flags: dict[str, Any],
    seed: int | None,
    resume: str | None,
    output_dir: str | None,
    as_json: bool,
    quiet: bool,
    store: str | None = None,
) -> None:
    """One training run of a kind, new or resumed, and its scores."""
    from noisyteacher.text import duration, plural

    with resumable(kind) as begun, progress(quiet or (processes() > 1 and rank() > 0)) as watch:
        from noisyteacher.distributed import process_group
        from noisyteacher.pipeline import explain_choice

        how = _asked(kind, config, overrides, flags, seed, resume, output_dir)
        with process_group(how.device) as here:
            trained = _trained(kind, how, seed, begun, watch, store)
    if not here.leads:
        return
    if as_json:
        print_json({"run": str(trained.run.path), **trained.result})
    else:
        print_scores(trained.result["scores"])
        if trained.result.get("choice"):
            say(f"\nNoise: {explain_choice(trained.result['choice'])}.")
        if trained.result.get("profile"):
            print_profile(trained.result["profile"])
        told = trained.result["training"]
        words = [told["device"], plural(told["threads"], "thread"), told.get("precision")]  # older runs do not say all
        where = ", ".join(word for word in (*words, f"memory {told['memory']}" if "memory" in told else None) if word)
        say(f"\nTrained in {duration(told['seconds'])} on {where}")
        say(f"Run folder: {trained.run.path}")


class _Asked(NamedTuple):
    """What is to be trained: new settings or a run to go on with, and where."""

    config: Config | None
    run: Run | None
    device: str


def _asked(
    kind: str,
    config: Any,
    overrides: list[str] | None,
    flags: dict[str, Any],
    seed: int | None,
    resume: str | None,
    output_dir: str | None,
) -> _Asked:
    from noisyteacher.config import build_config

    if resume is None:
        built = build_config(o.settings(config, overrides, flags))
        return _Asked(built, None, built.run.device)
    named = {key: value for key, value in flags.items() if key != "run.output_dir"} | {"seed": seed}
    o.refuse_with_resume(config, overrides, named)
    found = o.resumed(resume, output_dir)
    kept = found.config.get("config", {}).get("run", {})
    return _Asked(None, found, str(kept.get("device", "auto")))


def _trained(
    kind: str,
    asked: _Asked,
    seed: int | None,
    begun: Callable[[Run], None],
    watch: Watch | None,
    store: str | None,
) -> Trained:
    from noisyteacher.pipeline import distil_config, resume_single, train_config

    if asked.run is not None:
        return resume_single(asked.run, kind, begun, watch)
    assert asked.config is not None
    how: dict[str, Any] = {"seed": seed or 0, "command": command_line(), "begun": begun, "watch": watch}
    return train_config(asked.config, **how) if kind == "train" else distil_config(asked.config, store or "", **how)


def _place(
    data: str | None, data_root: str | None, output_dir: str | None, device: str | None, threads: int | None
) -> dict[str, Any]:
    return {
        "data.name": data,
        "data.root": data_root,
        "run.output_dir": output_dir,
        "run.device": device,
        "run.threads": threads,
    }


COMMANDS = (train, extract, distil)
