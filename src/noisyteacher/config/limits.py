"""What a student may cost: limits in numbers or as ratios to the teacher."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from noisyteacher.config.settings import Target
from noisyteacher.errors import ConfigError

LIMITS = ("macs", "bytes", "parameters")
"""The settings of `target` that limit a cost."""
UNITS = {"macs": "multiplications", "bytes": "bytes", "parameters": "parameters"}
"""What the limits of `target` count."""
FEWEST = 100
"""No classifier of images has fewer multiplications, bytes or parameters: a smaller limit was meant as a ratio."""


def limit(given: str | float, teachers: float) -> float:
    """The most that a limit of `target` allows, beside what the teacher has. `limit("4x", 200) == 50`.

    Raises ConfigError for text that is neither a number nor a ratio of 1 or more followed by x.
    """
    if not isinstance(given, str):
        return given
    try:
        number = float(given.strip().removesuffix("x"))
    except ValueError:
        number = math.nan
    ratio = given.strip().endswith("x")
    if not (math.isfinite(number) and (number >= 1 if ratio else number > 0)):
        raise ConfigError(f"given {given!r}; expected a number, or a ratio to the teacher of 1 or more such as '4x'")
    return teachers / number if ratio else number


def wrong_targets(target: Target, student: str, options: bool) -> Iterator[str]:
    """A sentence for each setting of `target` that is wrong for this student: a name, "auto", or "" (not named)."""
    limits = {name: getattr(target, name) for name in LIMITS}
    for name, given in limits.items():
        if given is not None:
            try:
                most = limit(given, 1.0)
            except ConfigError as error:
                yield f"target.{name}: {error}"
                continue
            if not str(given).strip().endswith("x") and most < FEWEST:
                ratio = most if most >= 1 else 1 / most
                yield (
                    f"target.{name}: given {most:g}, fewer {UNITS[name]} than any network has: did you mean "
                    f"'{ratio:g}x', {_share(ratio)} the teacher's?"
                )
    if student == "auto" and options:
        yield "student.options: have no effect where the student is chosen: leave them out, or name the student"
    if student not in ("", "auto") and replace(target, max_drop=None, minutes=None) != Target():
        yield "target: has no effect where student.name is not auto: leave it out, or let the student be chosen"


def _share(ratio: float) -> str:
    """One part in `ratio`, in words. `_share(4) == "a quarter of"`."""
    words: dict[float, str] = {
        1: "as many as",
        2: "half of",
        3: "a third of",
        4: "a quarter of",
        8: "an eighth of",
        10: "a tenth of",
    }
    return words.get(ratio, f"1/{ratio:g} of")
