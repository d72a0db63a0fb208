"""The commands by name, each built when it is asked for: typer needs some milliseconds for the options of each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from noisyteacher.cli import data, keep, many, report, ship, whole, work
from noisyteacher.cli import inspect as looking

FUNCTIONS = (*whole.COMMANDS, *work.COMMANDS, *many.COMMANDS, *looking.COMMANDS, *ship.COMMANDS, *report.COMMANDS)
GROUPS = (keep.runs, keep.config, data.data, keep.logits)
SOURCES: dict[str, Callable[..., Any] | typer.Typer] = {
    **{function.__name__: function for function in FUNCTIONS},
    **{str(group.info.name): group for group in GROUPS},
}
CONTEXT = {"help_option_names": ["-h", "--help"]}


class Commands(TyperGroup):
    """The root of the command line. A list of all commands needs their docstrings only."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = _Built()

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The list of commands in the help, from lines that stand for them."""
        whole, self.commands = self.commands, {name: _line(name, source) for name, source in SOURCES.items()}
        try:
            super().format_commands(ctx, formatter)
        finally:
            self.commands = whole


class _Built(MutableMapping[str, Any]):
    """Name -> command, made at the first question for it."""

    def __init__(self) -> None:
        self.made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self.made:
            self.made[name] = _command(SOURCES[name])
        return self.made[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self.made[name] = command

    def __delitem__(self, name: str) -> None:
        del self.made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(SOURCES)

    def __len__(self) -> int:
        return len(SOURCES)


def _command(source: Callable[..., Any] | typer.Typer) -> Any:
    if isinstance(source, typer.Typer):
        return typer.main.get_group(source)
    alone = typer.Typer(add_completion=False, rich_markup_mode=None, context_settings=CONTEXT)
    alone.command(source.__name__)(source)
    return typer.main.get_command(alone)


def _line(name: str, source: Callable[..., Any] | typer.Typer) -> TyperCommand:
    told = source.info.help if isinstance(source, typer.Typer) else inspect.getdoc(source)
    return TyperCommand(name, help=str(told))
