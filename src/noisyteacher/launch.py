"""What a launcher such as torchrun tells the processes it starts, read from their environment."""

from __future__ import annotations

import os

from noisyteacher.errors import UsageError


def processes() -> int:
    """How many processes were started for this command; 1 without a launcher."""
    return _number("WORLD_SIZE", 1, least=1)


def rank() -> int:
    """Which of them this is, from 0; the first one speaks and writes for all."""
    return _number("RANK", 0)


def local_rank() -> int:
    """Which of the processes on this machine this is, from 0: its GPU."""
    return _number("LOCAL_RANK", 0)


def restarts() -> int:
    """How often torchrun has started this command again after a process of it had died."""
    return _number("TORCHELASTIC_RESTART_COUNT", 0)


def starter() -> list[str]:
    """The words that start this program as it was started: its name, or torchrun with as many processes."""
    if processes() == 1:
        return ["noisyteacher"]
    return ["torchrun", "--nproc-per-node", str(_number("LOCAL_WORLD_SIZE", processes())), "-m", "noisyteacher"]


def _number(variable: str, default: int, least: int = 0) -> int:
    told = os.environ.get(variable) or str(default)
    if not (told.isascii() and told.isdigit() and int(told) >= least):
        raise UsageError(
            f"{variable}={told!r} in the environment: launchers such as torchrun set it to a whole number of at least "
            f"{least}; unset it"
        )
    return int(told)
