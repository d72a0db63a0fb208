"""How a rate changes over a run, as pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable

from noisyteacher.text import unknown_name

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
    "step": lambda done: 1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01,
}


def rate_factor(kind: str, step: int, total_steps: int, warmup_steps: int = 0) -> float:
    """What the base learning rate is multiplied by at `step` (from 0), a number in (0, 1].

    The first `warmup_steps` rise linearly to 1; after them `constant` stays, `linear` falls to 0, `cosine` falls along
    half a cosine, `step` is divided by 10 at half and at three quarters. The last step is never at 0.
    Raises UnknownNameError for another kind. `rate_factor("linear", 5, 10) == 0.5`.
    """
    if kind not in SCHEDULES:
        raise unknown_name("schedule", kind, SCHEDULES)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return SCHEDULES[kind]((step - warmup_steps) / max(1, total_steps - warmup_steps))
