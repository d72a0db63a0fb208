"""The options that commands share, stated once: each flag and the setting it stands for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from noisyteacher.cli.show import say

if TYPE_CHECKING:
    from noisyteacher.runs import Run


def not_empty(value: str | None) -> str | None:
    """An empty name would mean the folder one happens to be in."""
    if value is not None and not value.strip():
        raise typer.BadParameter("is empty: name it, or leave the option out")
    return value


ConfigFile = Annotated[Path | None, typer.Argument(metavar="[CONFIG]", help="A TOML file (see: config init).")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting (see: config explain).")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
DataName = Annotated[
    str | None,
    typer.Option(
        "--data", help="mnist-5k, mnist, cifar10, svhn, an .npz file or a folder of images.", callback=not_empty
    ),
]
DataRoot = Annotated[
    str | None, typer.Option("--data-root", "--data-dir", help="Where the official files lie.", callback=not_empty)
]
TeacherWeights = Annotated[
    str | None,
    typer.Option(
        help="The named teacher's trained weights: a .pt, .pth, .bin or .safetensors file.", callback=not_empty
    ),
]
OutputDir = Annotated[
    str | None, typer.Option("--output-dir", help="Folder for run folders (default: runs).", callback=not_empty)
]
AllowImport = Annotated[
    bool, typer.Option("--allow-import", help="A model's file may name pkg.module:factory: import and call it.")
]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda or auto.")]
Threads = Annotated[int | None, typer.Option("--threads", help="CPU threads.")]
Epochs = Annotated[int | None, typer.Option("--epochs", help="Passes over the training split.")]
BatchSize = Annotated[int | None, typer.Option("--batch-size", help="Samples per update.")]
Lr = Annotated[float | None, typer.Option("--lr", help="Base learning rate.")]
WeightDecay = Annotated[float | None, typer.Option("--weight-decay", help="Weight decay.")]
Optimizer = Annotated[str | None, typer.Option("--optimizer", help="adam, adamw, sgd or muon.")]
Momentum = Annotated[float | None, typer.Option("--momentum", help="Momentum of sgd and muon.")]
Schedule = Annotated[str | None, typer.Option("--schedule", help="constant, linear, cosine or step.")]
Preset = Annotated[
    str | None, typer.Option("--preset", help="paper or modern: how networks are trained; named settings win.")
]
Precision = Annotated[
    str | None, typer.Option("--precision", help="fp32, bf16, or auto (the default): the faster one here.")
]
Patience = Annotated[int | None, typer.Option("--patience", help="Stop after so many epochs without a better one.")]
Views = Annotated[str | None, typer.Option("--views", help="clean, mirror, crop, mirror*crop; comma-separated.")]
Sigma = Annotated[
    str | None, typer.Option("--sigma", help="Standard deviation of the noise, a range such as '[0.01, 1]', or auto.")
]
Alpha = Annotated[
    str | None, typer.Option("--alpha", help="Probability that a sample is perturbed, or auto: chosen on validation.")
]
SigmaAll = Annotated[
    str | None, typer.Option("--sigma", help="Standard deviation of the noise where --grid does not vary it.")
]
AlphaAll = Annotated[
    str | None, typer.Option("--alpha", help="Probability that a sample is perturbed where --grid does not vary it.")
]
Draw = Annotated[str | None, typer.Option("--draw", help="batch, row or scalar.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Names every random stream of the run (default: 0).")]
Profile = Annotated[
    bool, typer.Option("--profile", help="Measure where the time of the steps goes; a table at the end.")
]
Resume = Annotated[str | None, typer.Option("--resume", metavar="RUN", help="Go on with an interrupted run.")]


def settings(
    config: Path | None, overrides: list[str] | None, flags: dict[str, Any], given: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Nested settings from a file (or those given), then the flags that were given, then `--set`."""
    from noisyteacher.config import parse_value, put, read_config

    given = read_config(config, given=given)
    for key, value in flags.items():
        if value is None:
            continue
        if key.endswith(".views"):
            value = [view.strip() for view in value.split(",")]
        elif key in ("noise.sigma", "noise.alpha"):
            value = parse_value(value)
        put(given, key, value)
    return read_config(None, tuple(overrides or ()), given)


def refuse_with_resume(
    config: Path | None, overrides: list[str] | None, flags: dict[str, Any], option: str = "--resume"
) -> None:
    """A run that is there has its own settings: naming others is a contradiction."""
    named = [key for key, value in flags.items() if value is not None]
    if config is not None or overrides or named:
        shown = ", ".join(named) or "CONFIG or --set"
        raise typer.BadParameter(f"{option} takes the run's own settings; leave out {shown}")


def data_of(model: str, data: str | None, overrides: list[str] | None) -> dict[str, Any]:
    """The settings to begin with: the data that the model at this path was trained on, unless others are named.

    Raises AskedWronglyError when neither the command nor the model's run names the data.
    """
    from noisyteacher.errors import AskedWronglyError
    from noisyteacher.pipeline import data_settings_of

    if data is not None or any(one.partition("=")[0].strip() == "data.name" for one in overrides or ()):
        return {}
    found = data_settings_of(model)
    if found is None:
        raise AskedWronglyError(f"{model}: no run says on which data it was trained: name the data by --data")
    return {"data": dict(found)}


def note_other_data(model: str, splits: Any) -> None:
    """One line on stderr when the model is known to have been trained on other data than these."""
    from noisyteacher.pipeline import other_data

    sentence = other_data(model, splits)
    if sentence is not None:
        say(f"note: {sentence}", err=True)


def resumed(which: str, output_dir: str | None) -> Run:
    """The run to go on with. Raises BadParameter when an output folder is named that it does not lie in."""
    from noisyteacher.runs import find_run

    found = find_run(output_dir or "runs", which)
    if output_dir is not None and Path(output_dir).resolve() not in found.path.resolve().parents:
        raise typer.BadParameter(f"--output-dir {output_dir}: {found.path} goes on where it is; leave --output-dir out")
    return found


def model_path(name: str, output_dir: str | None, known: Any = ()) -> str:
    """The path of a trained model: a file, a folder or a library's network as given, or the run of that id.

    Of an id the beginning is enough.

    `known` are names that would have been allowed too, so that a mistyped one gets the better hint.
    """
    from noisyteacher.errors import AskedWronglyError
    from noisyteacher.models import ZOO
    from noisyteacher.pipeline import names_a_file
    from noisyteacher.runs import find_run
    from noisyteacher.text import nearest, unknown_name

    if name.partition(":")[0] in ("pretrained", *ZOO) or (names_a_file(name) and os.path.exists(name)):
        return name
    try:
        return str(find_run(output_dir or "runs", name).path)
    except AskedWronglyError as error:
        if nearest(name, known):
            raise unknown_name("model", name, known) from error
        raise
