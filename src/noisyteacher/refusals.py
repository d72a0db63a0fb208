"""What `fit` refuses before it starts: splits in the wrong role, settings out of range or without effect."""

from __future__ import annotations

from typing import Any

from noisyteacher.data import Split
from noisyteacher.device import PRECISIONS
from noisyteacher.errors import AskedWronglyError, ConfigError
from noisyteacher.schedule import SCHEDULES
from noisyteacher.text import unknown_name

OTHER = {"best": "last.safetensors", "last": "best.safetensors"}
"""Which weights may be kept, and the file of those that are not."""


def check_roles(split: Split, val: Split | None) -> None:
    """Raises AskedWronglyError for a test split: what is reported on must not be learned or chosen from."""
    for given, use in ((split, "trained on"), (val, "used to choose")):
        if given is not None and given.role == "test":
            raise AskedWronglyError(
                f"a test split of {given.name!r} cannot be {use}: choose on validation, report on test once (evaluate)"
            )


def check_settings(settings: dict[str, Any], val: Split | None, run: object, needing_run: dict[str, bool]) -> None:
    """Raises ConfigError with every setting that is out of range, contradicts another or has no effect."""
    problems = []
    for name in ("epochs", "batch_size"):
        if not isinstance(settings[name], int) or settings[name] < 1:
            problems.append(f"{name}={settings[name]!r}: expected a whole number >= 1")
    if settings["schedule"] not in SCHEDULES:
        problems.append(str(unknown_name("schedule", settings["schedule"], SCHEDULES)))
    if settings["precision"] not in PRECISIONS:
        problems.append(str(unknown_name("precision", settings["precision"], PRECISIONS)))
    if not settings["warmup_epochs"] >= 0:
        problems.append(f"warmup_epochs={settings['warmup_epochs']}: expected a number >= 0")
    if settings["keep"] not in OTHER:
        problems.append(f"keep={settings['keep']!r}: known are best, last")
    patience = settings["patience"]
    if patience is not None and (not isinstance(patience, int) or patience < 1):
        problems.append(f"patience={patience!r}: expected a whole number >= 1")
    if val is None and patience is not None:
        problems.append(f"patience={patience} has no effect without val: give a validation split")
    if val is None and settings["keep"] == "best":
        problems.append("keep='best' has no effect without val: give a validation split")
    if settings["every_view"] and len(settings["views"]) == 1:
        problems.append(f"every_view=True has no effect with the one view {settings['views'][0]!r}")
    if run is None:
        problems += [f"{name}=True has no effect without run=FOLDER" for name, given in needing_run.items() if given]
    if problems:
        raise ConfigError("; ".join(problems))
