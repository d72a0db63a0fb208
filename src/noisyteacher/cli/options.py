"""Options that commands share: flags for settings, read off the settings' schema, and the models and runs they name."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import typer

from noisyteacher.cli.output import say

if TYPE_CHECKING:
    from noisyteacher.config import Config, Values
    from noisyteacher.data import Splits
    from noisyteacher.progress import Watch
    from noisyteacher.runs import Run

Command = TypeVar("Command", bound=Callable[..., None])
Model = Annotated[str, typer.Argument(help="A trained model: a run, its folder, or a weights file.")]


def group(name: str, about: str) -> typer.Typer:
    """A group of commands, such as `runs ls` and `runs show`."""
    return typer.Typer(name=name, help=about, no_args_is_help=True, rich_markup_mode=None)


def not_empty(value: str | None) -> str | None:
    """Refuse an empty name: it would mean the current folder."""
    if value is not None and not value.strip():
        raise typer.BadParameter("is empty: name it, or leave the option out")
    return value


SHARED: dict[str, tuple[Any, typer.models.OptionInfo | typer.models.ArgumentInfo]] = {
    "config": (Path | None, typer.Argument(metavar="[CONFIG]", help="A TOML file (see: config init).")),
    "overrides": (
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting (see: config explain)."),
    ),
    "auto_noise": (
        bool,
        typer.Option(
            "--noise", help="Let validation choose sigma, and clean and noisy weight decay, in full-length trials."
        ),
    ),
    "pretrained": (
        bool,
        typer.Option("--pretrained", help="Start from the weights that the network's library has (timm:NAME, ...)."),
    ),
    "seed": (int | None, typer.Option("--seed", help="Names every random stream of the run (default: 0).")),
    "allow_import": (
        bool,
        typer.Option("--allow-import", help="Import and call pkg.module:factory of a model's file."),
    ),
    "resume": (str | None, typer.Option("--resume", metavar="RUN", help="Resume an interrupted run.")),
    "jobs": (int, typer.Option("--jobs", "-j", help="Processes on this machine; the cores are shared out.")),
    "stack": (int, typer.Option(help="In place of --jobs: students trained at once in this process, for a GPU.")),
    "scheduler": (str | None, typer.Option(help="In place of --jobs: a dask scheduler, such as tcp://host:8786.")),
    "as_json": (bool, typer.Option("--json", help="Print the result as JSON.")),
    "quiet": (bool, typer.Option("--quiet", "-q", help="No progress on stderr.")),
}
"""Options that are no settings, by the field of Request."""
DATA = "data.name data.root data.size data.fit"
NOISE = "student.loss auto_noise noise.sigma noise.alpha noise.draw"
"""The loss, and the noise on it."""
MACHINE = "run.output_dir run.device run.threads"
RECIPE = (
    "student.epochs student.batch_size student.optimizer student.lr student.momentum student.weight_decay "
    "student.schedule student.precision student.preset student.patience student.views pretrained student.weights "
    "student.head student.freeze_epochs student.body_rate"
)


@dataclass(frozen=True)
class Request:
    """The settings that a command line names (a file, flags, `--set`), and other options that commands share."""

    flags: Values = field(default_factory=dict)
    """Value by dotted setting, of the flags that were given."""
    config: Path | None = None
    overrides: Sequence[str] | None = None
    auto_noise: bool | None = None
    """None for commands without `--noise`."""
    pretrained: bool = False
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

    def settings(self, base: Values | None = None) -> Values:
        """Nested settings from the file (or `base`), then the flags, then `--set`.

        `--sigma 0` without `--alpha` and `--draw` replaces the whole [noise] table of a file by no noise. Raises
        BadParameter if `--noise` is to choose a named sigma.
        """
        from noisyteacher.config import put, read_config

        flags, sigma = dict(self.flags), self.flags.get("noise.sigma", "auto")
        if self.auto_noise and sigma != "auto":
            raise typer.BadParameter(f"--noise chooses sigma on validation and --sigma {sigma} names it: leave one out")
        if self.auto_noise:
            flags["noise.sigma"] = "auto"
        elif self.auto_noise is False and sigma == 0 and not flags.keys() & {"noise.alpha", "noise.draw"}:
            del flags["noise.sigma"]
            flags["noise"] = {"sigma": 0.0}
        settings = read_config(self.config, settings=base)
        if self.pretrained:
            flags["student.options.pretrained"] = True
        for key, value in flags.items():
            put(settings, key, value)
        return read_config(None, tuple(self.overrides or ()), settings)

    def config_reading(self, *read: str, base: Values | None = None) -> Config:
        """The checked settings of a command that reads only these: dotted keys, or whole parts of the settings.

        Raises UsageError for a `--set` of another setting.
        """
        from noisyteacher.config import build_config
        from noisyteacher.errors import UsageError

        config = build_config(self.settings(base))
        for override in self.overrides or ():
            key = override.partition("=")[0].strip()
            if not any(f"{key}.".startswith(f"{name}.") for name in read):
                raise UsageError(f"--set {override}: this command reads only {', '.join(read)}: leave it out")
        return config

    def options_to_resume(self) -> list[str]:
        """The options of this command line that a run folder does not record, as words."""
        words = []
        flags = {"allow_import": "--allow-import", "as_json": "--json"}
        for name in ("jobs", "stack", "scheduler", "allow_import", "as_json", "quiet"):
            if (value := getattr(self, name)) != getattr(Request, name):
                words += [flags.get(name, f"--{name}"), *([] if value is True else [str(value)])]
        return words

    @property
    def named(self) -> list[str]:
        """The dotted keys of flags and `--set`."""
        return [*self.flags, *(setting.partition("=")[0].strip() for setting in self.overrides or ())]

    def with_teacher_preset(self) -> Request:
        """With `--preset` for the teacher too."""
        preset = self.flags.get("student.preset")
        return replace(self, flags=self.flags | {"teacher.preset": preset}) if preset else self

    def refuse_beside(self, option: str, **more: object) -> None:
        """Refuse settings, and the options in `more`, beside an option that names a run: it has settings already."""
        named = [key for key in self.flags if key != "run.output_dir"]
        more |= {
            "noise": self.auto_noise,
            "pretrained": self.pretrained,
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

    def data_for(self, model: str, watch: Watch | None, *read: str) -> tuple[Config, Splits]:
        """The settings, and the data that the model at this path was trained on, unless other data are named.

        read: settings that the command reads beside those of data and teacher. Raises UsageError when neither the
        command nor the model's run names the data, and for a `--set` of another setting.
        """
        from noisyteacher.errors import UsageError
        from noisyteacher.pipeline.pretrained import data_settings_of
        from noisyteacher.pipeline.resolve import load_config_data

        base: Values = {}
        overridden = any(override.partition("=")[0].strip() == "data.name" for override in self.overrides or ())
        if "data.name" not in self.flags and not overridden:
            data = data_settings_of(model)
            if data is None:
                raise UsageError(f"{model}: no run says on which data it was trained: name the data by --data")
            base["data"] = data
        config = self.config_reading("data", "teacher", *read, base=base)
        return config, load_config_data(config, watch)


def with_options(names: str, **words: tuple[str, str]) -> Callable[[Command], Command]:
    """Give a command options after its own, in place of its parameter `request`: a Request with their values.

    names: separated by spaces; with a dot a setting, whose value is in `request.flags`; without a dot a key of SHARED
    and a field of Request. words: flag and help where they are not those of the schema or of SHARED (`part_name` for
    `part.name`). typer gets the command from `build_options`: reading the schema takes 0.3 s, and --help does not.
    """

    def decorate(command: Command) -> Command:
        command.declared = names.split(), words  # type: ignore[attr-defined]
        return command

    return decorate


def build_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer takes it: itself, or with a parameter for each option that `with_options` gave it."""
    if not hasattr(command, "declared"):
        return command
    keyword = inspect.Parameter.KEYWORD_ONLY
    names, words = command.declared
    options: dict[str, inspect.Parameter] = {}
    for name in names:
        key = name.replace(".", "_")
        kind, option = SHARED[name] if name in SHARED else _setting_option(name, words.get(key))
        if name in SHARED and key in words:
            option = typer.Option(words[key][0], metavar="FILE", help=words[key][1])
        default = {bool: False, int: 1}.get(kind)
        options[name] = inspect.Parameter(key, keyword, default=default, annotation=Annotated[kind, option])

    @wraps(command)
    def run(**values: Any) -> None:
        parsed = {name: values.pop(parameter.name) for name, parameter in options.items()}
        flags = {name: value for name, value in parsed.items() if "." in name and value is not None}
        shared = {name: value for name, value in parsed.items() if "." not in name}
        command(request=Request(flags, **shared), **values)

    parameters = dict(inspect.signature(command, eval_str=True).parameters)
    del parameters["request"]
    first = [parameter.replace(kind=keyword) for parameter in parameters.values()]
    run.__signature__ = inspect.Signature([*first, *options.values()])  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in (*first, *options.values())}
    return run


def _setting_option(key: str, words: tuple[str, str] | None) -> tuple[Any, typer.models.OptionInfo]:
    """Type and option of a setting: a whole number, a number or a switch where it is nothing else, otherwise text.

    Text becomes a list where the setting is one, and TOML where it is a number or a word, as noise.sigma is.
    """
    from noisyteacher.config import Config, flag_of, parse_value

    part, name = key.split(".")
    schema = get_type_hints(Config)[part]
    hint = get_type_hints(schema)[name]
    kinds = set(get_args(hint)) - {NoneType} or {hint}
    kind = kinds.pop() if kinds in ({int}, {float}, {bool}) else str
    flag, about = words or flag_of(key)
    spellings = [flag, "--data-dir"] if key == "data.root" else [flag]
    if kind is bool and getattr(schema(), name):
        spellings = [f"{flag}/--no-{flag[2:]}"]

    def parse(value: str | None) -> Any:
        text = not_empty(value)
        if text is not None and get_origin(hint) is list:
            return [word.strip() for word in text.split(",")]
        if text is not None and "," in text and text[0] != "[" and tuple in [get_origin(kind) for kind in kinds]:
            text = f"[{text}]"
        return parse_value(text) if text is not None and kinds & {int, float} and str not in kinds else text

    return kind | None, typer.Option(*spellings, help=about, callback=parse if kind is str else None)


def note_other_data(model: str, splits: Splits) -> None:
    """One line on stderr when the model was trained on other data than these."""
    from noisyteacher.pipeline.pretrained import other_data

    if (note := other_data(model, splits)) is not None:
        say(f"note: {note}", err=True)


def model_path(name: str, output_dir: str, networks: Collection[str] = ()) -> str:
    """The path of a trained model: a file, a folder or a library's network as it is, or the run of that id.

    networks: names that would have been allowed too, for the hint to a mistyped one.
    """
    from noisyteacher.errors import UsageError
    from noisyteacher.models import ZOO, nearest_networks, unknown_network
    from noisyteacher.pipeline.pretrained import is_model_path
    from noisyteacher.runs import find_run

    if name.partition(":")[0] in ("pretrained", *ZOO) or (is_model_path(name) and os.path.exists(name)):
        return name
    try:
        return str(find_run(output_dir, name).path)
    except UsageError as error:
        if networks and nearest_networks(name, networks):
            raise unknown_network(name, networks) from error
        raise
