"""The options that commands share, stated once: each flag and the setting it stands for."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

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
        help="The named teacher's weights: a file of torch.save (.pt, .pth, .pth.tar, .ckpt, .bin) or safetensors.",
        callback=not_empty,
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
Views = Annotated[str | None, typer.Option("--views", help="clean, mirror, crop, mirror*crop; comma-separated.")]
Noise = Annotated[
    bool,
    typer.Option("--noise", help="Choose the noise's sigma on validation, in short runs; no noise is a candidate."),
]
Sigma = Annotated[
    str | None,
    typer.Option(
        "--sigma",
        help="Standard deviation of the noise, a range such as '[0.01, 1]', or auto (--noise); default 0: no noise.",
    ),
]
Alpha = Annotated[
    str | None, typer.Option("--alpha", help="Probability that a sample is perturbed, or auto: chosen on validation.")
]
SigmaAll = Annotated[
    str | None,
    typer.Option("--sigma", help="Standard deviation of the noise where --grid does not vary it; default 0: no noise."),
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


class Flag(NamedTuple):
    """A flag of a training: the field of `config.Recipe` that it sets, its type and its help."""

    name: str
    kind: type
    help: str


TRAINING = (
    Flag("epochs", int, "Passes over the training split."),
    Flag("batch_size", int, "Samples per update."),
    Flag("optimizer", str, "auto, adam, adamw, sgd or muon."),
    Flag("lr", float, "Base learning rate."),
    Flag("momentum", float, "Momentum of sgd and muon."),
    Flag("weight_decay", float, "Weight decay."),
    Flag("schedule", str, "constant, linear, cosine or step."),
    Flag("precision", str, "fp32, bf16, or auto (the default): the faster one here."),
    Flag("preset", str, "standard (the default), paper or modern: how networks are trained; named settings win."),
    Flag("patience", int, "Stop after so many epochs without a better one."),
    Flag("views", str, "auto, clean, mirror, crop, mirror*crop; comma-separated."),
)
"""The flags of every command that trains: `train` sets the teacher's recipe by them, the others the student's."""
Training = dict[str, Any]
"""What `training_flags` gives a command: the value of each flag by the name of its setting, None where not given."""


def training_flags(command: Callable[..., None]) -> Callable[..., None]:
    """The command with a flag for every line of TRAINING in the place of its parameter `training`."""
    signature = inspect.signature(command, eval_str=True)
    flags = [
        inspect.Parameter(
            flag.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[flag.kind | None, typer.Option(f"--{flag.name.replace('_', '-')}", help=flag.help)],
        )
        for flag in TRAINING
    ]
    parameters = [
        new.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for old in signature.parameters.values()
        for new in (flags if old.name == "training" else [old])
    ]

    @functools.wraps(command)
    def flagged(**values: Any) -> None:
        training = {flag.name: values.pop(flag.name) for flag in TRAINING}
        command(training=training, **values)

    flagged.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    flagged.__annotations__ = {one.name: one.annotation for one in parameters}
    return flagged


def recipe(part: str, training: Training) -> dict[str, Any]:
    """The settings of `teacher` or `student` that training flags stand for."""
    return {f"{part}.{name}": value for name, value in training.items()}


def noise_settings(choose: bool, sigma: str | None, alpha: str | None, draw: str | None) -> dict[str, Any]:
    """The settings that `--noise` (choose), `--sigma`, `--alpha` and `--draw` stand for.

    `--sigma 0` alone turns the noise off, whatever CONFIG says of it. Raises BadParameter where `--noise` is to choose
    a sigma that `--sigma` names.
    """
    if choose and sigma not in (None, "auto"):
        raise typer.BadParameter(f"--noise chooses sigma on validation and --sigma {sigma} names it: leave one out")
    if alpha is None and draw is None and _is_zero(sigma):
        return {"noise": {"sigma": 0.0}}
    return {"noise.sigma": "auto" if choose else sigma, "noise.alpha": alpha, "noise.draw": draw}


def _is_zero(text: str | None) -> bool:
    try:
        return text is not None and float(text) == 0
    except ValueError:
        return False


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

    Raises UsageError when neither the command nor the model's run names the data.
    """
    from noisyteacher.errors import UsageError
    from noisyteacher.pipeline import data_settings_of

    if data is not None or any(one.partition("=")[0].strip() == "data.name" for one in overrides or ()):
        return {}
    found = data_settings_of(model)
    if found is None:
        raise UsageError(f"{model}: no run says on which data it was trained: name the data by --data")
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
    from noisyteacher.errors import UsageError
    from noisyteacher.models import ZOO, nearest_networks, unknown_network
    from noisyteacher.pipeline import names_a_file
    from noisyteacher.runs import find_run

    if name.partition(":")[0] in ("pretrained", *ZOO) or (names_a_file(name) and os.path.exists(name)):
        return name
    try:
        return str(find_run(output_dir or "runs", name).path)
    except UsageError as error:
        if known and nearest_networks(name, known):
            raise unknown_network(name, known) from error
        raise
