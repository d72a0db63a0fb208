"""Options that commands share: flags for settings, read off the settings' schema, and the models and runs they name."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_type_hints

import typer

from noisyteacher.cli.output import progress, say

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from noisyteacher.config import Config, Values
    from noisyteacher.data import Splits
    from noisyteacher.progress import Watch
    from noisyteacher.runs import Run

Command = TypeVar("Command", bound=Callable[..., None])
Model = Annotated[str, typer.Argument(help="A trained model: a run, its folder, or a weights file.")]


def not_empty(value: str | None) -> str | None:
    """Refuse an empty name: it would mean the current folder."""
    if value is not None and not value.strip():
        raise typer.BadParameter("is empty: name it, or leave the option out")
    return value


COMMON: dict[str, tuple[Any, typer.models.OptionInfo | typer.models.ArgumentInfo]] = {
    "config": (Path | None, typer.Argument(metavar="[CONFIG]", help="A TOML file (see: config init).")),
    "overrides": (
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting (see: config explain)."),
    ),
    "choose_noise": (
        bool,
        typer.Option("--noise", help="Choose sigma on validation, in short runs; 0 is a candidate."),
    ),
    "seed": (int | None, typer.Option("--seed", help="Names every random stream of the run (default: 0).")),
    "allow_import": (
        bool,
        typer.Option("--allow-import", help="Import and call pkg.module:factory of a model's file."),
    ),
    "resume": (str | None, typer.Option("--resume", metavar="RUN", help="Resume an interrupted run.")),
    "jobs": (int, typer.Option("--jobs", "-j", help="Processes on this machine; the cores are shared out.")),
    "stack": (int, typer.Option(help="Instead: students trained at once in this process, for a GPU.")),
    "scheduler": (str | None, typer.Option(help="Instead: a dask scheduler, such as tcp://host:8786.")),
    "as_json": (bool, typer.Option("--json", help="Print the result as JSON.")),
    "quiet": (bool, typer.Option("--quiet", "-q", help="No progress on stderr.")),
}
"""Options that are no settings, by the field of Request."""
DATA = "data.name data.root"
NOISE = "choose_noise noise.sigma noise.alpha noise.draw"
MACHINE = "run.output_dir run.device run.threads"
RECIPE = (
    "student.epochs student.batch_size student.optimizer student.lr student.momentum student.weight_decay "
    "student.schedule student.precision student.preset student.patience student.views"
)


@dataclass(frozen=True)
class Request:
    """The settings that a command line names (a file, flags, `--set`), and other options that commands share."""

    flags: Values = field(default_factory=dict)
    """Value by dotted setting, of the flags that were given."""
    config: Path | None = None
    overrides: Sequence[str] | None = None
    choose_noise: bool | None = None
    """None for commands without `--noise`."""
    seed: int | None = None
    allow_import: bool = False
    resume: str | None = None
    jobs: int = 1
    stack: int = 1
    scheduler: str | None = None
    as_json: bool = False
    quiet: bool = False

    @property
    def output_dir(self) -> str:
        """The folder of run folders."""
        return str(self.flags.get("run.output_dir") or "runs")

    def progress(
        self, delay_s: float = 0.0, heavy: str = "noisyteacher.pipeline"
    ) -> AbstractContextManager[Watch | None]:
        """`output.progress`, silent with `--quiet`."""
        return progress(self.quiet, delay_s, heavy)

    def settings(self, base: Values | None = None) -> Values:
        """Nested settings from the file (or `base`), then the flags, then `--set`.

        `--sigma 0` alone turns off the noise of a file. Raises BadParameter if `--noise` is to choose a named sigma.
        """
        from noisyteacher.config import parse_value, put, read_config

        flags = dict(self.flags)
        for key, value in flags.items():
            if key in ("noise.sigma", "noise.alpha"):
                flags[key] = parse_value(value)
            elif key.endswith((".views", ".export")):
                flags[key] = [word.strip() for word in value.split(",")]
        sigma = flags.get("noise.sigma", "auto")
        if self.choose_noise and sigma != "auto":
            raise typer.BadParameter(f"--noise chooses sigma on validation and --sigma {sigma} names it: leave one out")
        if self.choose_noise:
            flags["noise.sigma"] = "auto"
        elif self.choose_noise is False and sigma == 0 and not flags.keys() & {"noise.alpha", "noise.draw"}:
            del flags["noise.sigma"]
            flags["noise"] = {"sigma": 0.0}
        settings = read_config(self.config, settings=base)
        for key, value in flags.items():
            put(settings, key, value)
        return read_config(None, tuple(self.overrides or ()), settings)

    def with_teacher_preset(self) -> Request:
        """With `--preset` for the teacher too."""
        preset = self.flags.get("student.preset")
        return replace(self, flags=self.flags | {"teacher.preset": preset}) if preset else self

    def refuse_beside(self, option: str, **more: object) -> None:
        """Refuse settings, and the options in `more`, beside an option that names a run: it has settings already."""
        named = [key for key in self.flags if key != "run.output_dir"]
        more |= {
            "noise": self.choose_noise,
            "seed": self.seed is not None,
            "CONFIG or --set": self.config or self.overrides,
        }
        named += [name for name, value in more.items() if value]
        if named:
            raise typer.BadParameter(f"{option} takes the run's own settings; leave out {', '.join(named)}")

    def run(self, name: str) -> Run:
        """The run to resume. Raises BadParameter when an output folder is named that it does not lie in."""
        from noisyteacher.runs import find_run

        run, output_dir = find_run(self.output_dir, name), self.flags.get("run.output_dir")
        if output_dir is not None and Path(output_dir).resolve() not in run.path.resolve().parents:
            raise typer.BadParameter(f"--output-dir {output_dir}: {run.path} resumes in place; leave --output-dir out")
        return run

    def config_for(self, model: str) -> Config:
        """The settings on the data that the model at this path was trained on, unless other data are named.

        Raises UsageError when neither the command nor the model's run names the data.
        """
        from noisyteacher.config import build_config
        from noisyteacher.errors import UsageError
        from noisyteacher.pipeline import data_settings_of

        overridden = any(override.partition("=")[0].strip() == "data.name" for override in self.overrides or ())
        if "data.name" in self.flags or overridden:
            return build_config(self.settings())
        data = data_settings_of(model)
        if data is None:
            raise UsageError(f"{model}: no run says on which data it was trained: name the data by --data")
        return build_config(self.settings({"data": dict(data)}))


def options(names: str, **flags: tuple[str, str]) -> Callable[[Command], Command]:
    """Give a command these options behind its own; their values are in its parameter `request`.

    names: dotted settings and names in COMMON, separated by spaces. flags: option and help of a setting (`part_name`)
    where they are not those of the schema. `with_options` builds the options when the command is called.
    """

    def mark(command: Command) -> Command:
        command.options = names.split(), flags  # type: ignore[attr-defined]
        return command

    return mark


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer takes it, with a parameter for each of its `options`."""
    if not hasattr(command, "options"):
        return command
    names, flags = command.options
    shared = {}
    for name in names:
        kind, option = COMMON[name] if name in COMMON else _flag(name, flags)
        default = {bool: False, int: 1}.get(kind)
        keyword = inspect.Parameter.KEYWORD_ONLY
        shared[name] = inspect.Parameter(
            name.replace(".", "_"), keyword, default=default, annotation=Annotated[kind, option]
        )

    def run(**values: Any) -> None:
        fields = {name: values.pop(parameter.name) for name, parameter in shared.items()}
        flags = {name: value for name in names if (value := fields[name]) is not None and "." in name}
        request = Request(flags, **{name: fields[name] for name in names if "." not in name})
        command(request=request, **values)

    run.__doc__ = command.__doc__
    signature = inspect.signature(command, eval_str=True)
    parameters = [
        *(old.replace(kind=keyword) for old in signature.parameters.values() if old.name != "request"),
        *shared.values(),
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _flag(key: str, flags: Mapping[str, tuple[str, str]]) -> tuple[Any, typer.models.OptionInfo]:
    """Type and option of a setting: a whole number, a number or a switch where it is nothing else, otherwise text."""
    from noisyteacher.config import Config, flag_of

    part, name = key.split(".")
    schema = get_type_hints(Config)[part]
    hint = get_type_hints(schema)[name]
    kinds = set(get_args(hint)) - {NoneType} or {hint}
    kind = kinds.pop() if kinds in ({int}, {float}, {bool}) else str
    flag = flag_of(key)
    option, text = flags.get(key.replace(".", "_"), (flag.name, flag.help))
    spellings = [option, "--data-dir"] if key == "data.root" else [option]
    if kind is bool and getattr(schema(), name):
        spellings = [f"{option}/--no-{option[2:]}"]
    return kind | None, typer.Option(*spellings, help=text, callback=not_empty if kind is str else None)


def note_other_data(model: str, splits: Splits) -> None:
    """One line on stderr when the model was trained on other data than these."""
    from noisyteacher.pipeline import other_data

    if (note := other_data(model, splits)) is not None:
        say(f"note: {note}", err=True)


def model_path(name: str, output_dir: str, networks: Collection[str] = ()) -> str:
    """The path of a trained model: a file, a folder or a library's network as it is, or the run of that id.

    networks: names that would have been allowed too, for the hint to a mistyped one.
    """
    from noisyteacher.errors import UsageError
    from noisyteacher.models import ZOO, nearest_networks, unknown_network
    from noisyteacher.pipeline import is_model_path
    from noisyteacher.runs import find_run

    if name.partition(":")[0] in ("pretrained", *ZOO) or (is_model_path(name) and os.path.exists(name)):
        return name
    try:
        return str(find_run(output_dir, name).path)
    except UsageError as error:
        if networks and nearest_networks(name, networks):
            raise unknown_network(name, networks) from error
        raise
