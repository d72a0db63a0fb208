"""The noise of the paper (Sau & Balasubramanian 2016, Eq. 2 and Algorithm 1) and its variants, as pure functions.

    z' = (1 + xi) * z        for the samples of the batch that are selected, each with probability alpha
    xi ~ N(0, sigma^2 I)     sigma is a STANDARD DEVIATION

A draw takes the mask first, then sigma's place in its range, then unit noise, and scales afterwards. So two conditions
with one generator state share their draws: raising alpha keeps the selected samples and adds some, raising sigma
stretches the same directions, and sigma = 0 or alpha = 0 returns the teacher's logits bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from noisyteacher.errors import ConfigError, MismatchError, TrainingError, UsageError
from noisyteacher.rng import stream
from noisyteacher.text import nearest

DrawKind = Literal["batch", "row", "scalar"]
Kind = Literal["multiplicative", "additive"]
Distribution = Literal["gaussian", "uniform", "laplace"]
Target = Literal["teacher", "student"]
Schedule = Literal["constant", "linear", "cosine", "early", "late"]
CHOICES = {
    "draw": get_args(DrawKind),
    "kind": get_args(Kind),
    "distribution": get_args(Distribution),
    "target": get_args(Target),
    "schedule": get_args(Schedule),
}
NOISE_SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
    "early": lambda done: float(done < 0.5),
    "late": lambda done: float(done >= 0.5),
}
"""Schedule -> what sigma is multiplied by once a share `done` (0..1) of the run's steps is behind."""


@dataclass(frozen=True, kw_only=True)
class Noise:
    """What noise is put on logits. Immutable; wrong values raise ConfigError, all of them in one message.

    >>> Noise(sigma=0.9, alpha=0.5).draw
    'batch'
    """

    sigma: float | tuple[float, float]
    """Standard deviation of each component of xi, >= 0; a (low, high) pair is drawn uniformly for every batch (5.4)."""
    alpha: float
    """Probability that a sample of the batch is perturbed, 0..1. Not a loss weight."""
    draw: DrawKind = "batch"
    """`batch`: one xi of K components per mini-batch (Algorithm 1 read literally); `row`: K components per sample;
    `scalar`: one number per sample."""
    kind: Kind = "multiplicative"
    """`multiplicative`: z' = (1 + xi) z (Eq. 2); `additive`: z' = z + xi, sigma then in units of the logits."""
    distribution: Distribution = "gaussian"
    """Shape of xi; each of the three has standard deviation sigma."""
    target: Target = "teacher"
    """Whose logits are perturbed: the teacher's (section 3.3) or the student's (section 5.2)."""
    frozen: bool = False
    """False: drawn anew at every step. True: one draw per sample, kept for the whole run."""
    schedule: Schedule = "constant"
    """How sigma changes over the run: `constant` (the paper), `linear` or `cosine` from sigma to 0, `early` (sigma in
    the first half, then 0), `late` (0, then sigma in the second half)."""

    def __post_init__(self) -> None:
        problems = [*_sigma_problems(self.sigma), *_alpha_problems(self.alpha)]
        for name, known in CHOICES.items():
            given = getattr(self, name)
            if given not in known:
                close = nearest(str(given), known)
                hint = f"did you mean {close!r}? " if close else ""
                problems.append(f"{name}={given!r}: {hint}known are {', '.join(known)}")
        if not isinstance(self.frozen, bool):
            problems.append(f"frozen={self.frozen!r}: expected True or False")
        elif self.frozen and isinstance(self.sigma, (tuple, list)):
            problems.append("frozen=True with a range of sigma: a range is drawn per batch; give one number")
        if problems:
            raise ConfigError("noise: " + "; ".join(problems))
        if isinstance(self.sigma, list):
            object.__setattr__(self, "sigma", tuple(self.sigma))

    def describe(self) -> dict[str, Any]:
        """Every field as a JSON-able value, for run folders."""
        record = asdict(self)
        record["sigma"] = list(self.sigma) if isinstance(self.sigma, tuple) else self.sigma
        return record


@dataclass(frozen=True)
class Draw:
    """One draw for B samples: who is selected (bool `[B, 1]`) and the scaled noise (float `[B or 1, K or 1]`)."""

    selected: Tensor
    xi: Tensor


Units = tuple[Tensor, Tensor, Tensor]


def draw_noise(noise: Noise, batch: int, classes: int, generator: torch.Generator | None = None) -> Draw:
    """One draw for `batch` samples of `classes` logits, on the generator's device (the CPU without one).

    Always consumes the generator alike for one (batch, classes, draw): mask, sigma's place, unit noise.
    """
    return scaled(_units(noise.draw, noise.distribution, batch, classes, generator), *_constant(noise))


def _units(draw: str, distribution: str, batch: int, classes: int, generator: torch.Generator | None) -> Units:
    """What is drawn whatever sigma and alpha are: who is selected first `[B, 1]`, sigma's place, unit noise."""
    device = generator.device if generator is not None else torch.device("cpu")
    chance = torch.rand(batch, 1, generator=generator, device=device)
    place = torch.rand((), generator=generator, device=device)
    shape = {"batch": (1, classes), "row": (batch, classes), "scalar": (batch, 1)}[draw]
    return chance, place, UNIT_NOISE[distribution](shape, generator, device)


def step_units(
    noise: Noise, seed: int, step: int, size: int, classes: int,
    rows: Tensor | None = None, total_rows: int | None = None,
) -> Units:  # fmt: skip
    """Those of one training step, of the stream (seed, "noise", step), or, frozen, the run's at `rows`.

    Students that differ in sigma, alpha, schedule or side share them.
    """
    if not noise.frozen:
        return _units(noise.draw, noise.distribution, size, classes, stream(seed, "noise", step))
    if rows is None or total_rows is None:
        raise MismatchError("frozen noise belongs to rows: give the batch's row numbers and the number of rows")
    chance, place, unit = frozen_units(noise.draw, noise.distribution, seed, total_rows, classes)
    own = _checked_rows(rows, size, total_rows)
    return chance[own], place, unit if len(unit) == 1 else unit[own]


def strengths(noise: Noise, step: int = 0, total_steps: int | None = None) -> tuple[float, float, float, float]:
    """What `scaled` makes a draw with at a step: sigma's least, its span, the share alpha, the schedule's factor.

    Raises MismatchError for a schedule other than `constant` without the run's length.
    """
    return *_constant(noise), _factor(noise.schedule, step, total_steps)


def _constant(noise: Noise) -> tuple[float, float, float]:
    """Those of them that no schedule changes."""
    low, high = noise.sigma if isinstance(noise.sigma, tuple) else (noise.sigma, noise.sigma)
    return low, high - low, noise.alpha


Number = float | Tensor


def scaled(units: Units, low: Number, span: Number, alpha: Number, factor: Number = 1.0) -> Draw:
    """The draw that these units make at these `strengths`, which may be tensors `[]` of the units' device."""
    chance, place, unit = units
    xi = unit * (low + span * place)
    return Draw(chance < alpha, xi if isinstance(factor, float) and factor == 1 else xi * factor)


def _factor(schedule: str, step: int, total_steps: int | None) -> float:
    if schedule == "constant":
        return 1.0
    if total_steps is None:
        raise MismatchError(f"noise with schedule {schedule!r} needs the length of the run: give total_steps")
    return NOISE_SCHEDULES[schedule](min(1.0, step / total_steps))


def apply_noise(logits: Tensor, draw: Draw, kind: Kind = "multiplicative") -> Tensor:
    """Logits `[B, K]` with the draw put on the selected rows; the other rows, and where xi is 0, bit for bit as given.

    Half-precision logits are perturbed in float32 and rounded once; TrainingError when the result overflows them.
    Source: the paper's Eq. 2 for `multiplicative`.
    """
    selected = draw.selected.to(logits.device)
    half = logits.dtype in (torch.float16, torch.bfloat16)
    wide = logits.float() if half else logits
    xi = draw.xi.to(wide.device, wide.dtype)
    noisy = wide * (1 + xi) if kind == "multiplicative" else wide + xi
    found = torch.where(selected & (xi != 0), noisy.to(logits.dtype), logits)
    if half and not torch.isfinite(found).all():
        raise TrainingError(
            f"the perturbed logits overflow {logits.dtype}: give them as float32 (logits.float()) or lower sigma"
        )
    return found


def perturb(
    logits: Tensor,
    *,
    sigma: float | tuple[float, float],
    alpha: float,
    draw: DrawKind = "batch",
    kind: Kind = "multiplicative",
    distribution: Distribution = "gaussian",
    generator: torch.Generator | None = None,
) -> Tensor:
    """The logits with noise on a random share `alpha` of the rows: `[B, K]` in, `[B, K]` out.

    Draws come from `generator` (torch's global CPU generator without one) and are moved to the logits' device, so a
    CPU generator gives the same noise on every device. Gradients flow through to `logits`.
    Raises ConfigError for impossible settings, MismatchError unless the logits are a tensor `[B, K]`, TrainingError
    when they are not finite or overflow half precision, UsageError for a generator that is none.
    Source: Sau & Balasubramanian 2016, Eq. 2 and Algorithm 1.

    >>> teacher = torch.tensor([[2.0, -1.0], [0.5, 3.0]])
    >>> torch.equal(perturb(teacher, sigma=0.0, alpha=0.5), teacher)
    True
    """
    check_logits(logits)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise UsageError(
            f"generator is a {type(generator).__name__}: expected a torch.Generator (torch.Generator().manual_seed(3))"
        )
    noise = Noise(sigma=sigma, alpha=alpha, draw=draw, kind=kind, distribution=distribution)
    return apply_noise(logits, draw_noise(noise, logits.shape[0], logits.shape[1], generator), kind)


def step_draw(
    noise: Noise,
    *,
    seed: int,
    step: int,
    rows: Tensor | None,
    total_rows: int | None,
    size: int,
    classes: int,
    total_steps: int | None = None,
) -> Draw:
    """The draw of one training step: from the stream (seed, "noise", step), or, frozen, the run's one draw at `rows`.

    `size` is B. `rows` int64 `[B]`, each in 0..total_rows - 1, and `total_rows` are needed for frozen noise only,
    `total_steps` for a schedule; MismatchError without them.
    """
    units = step_units(noise, seed, step, size, classes, rows, total_rows)
    return scaled(units, *strengths(noise, step, total_steps))


@lru_cache(maxsize=8)
def frozen_units(draw: str, distribution: str, seed: int, total_rows: int, classes: int) -> Units:
    """Those of a whole run with frozen noise: a row for every row of the split."""
    return _units(draw, distribution, total_rows, classes, stream(seed, "frozen noise"))


def check_logits(logits: Tensor) -> None:
    """Raises MismatchError unless the logits are float `[B, K]` with K >= 2, TrainingError unless they are finite."""
    if not isinstance(logits, Tensor):
        raise MismatchError(f"logits are a {type(logits).__name__}: expected a torch tensor of floats [B, K], K >= 2")
    if logits.dim() != 2 or logits.shape[1] < 2 or not logits.is_floating_point():
        raise MismatchError(
            f"logits have shape {list(logits.shape)} and type {logits.dtype}: expected floats [B, K], K >= 2"
        )
    if not math.isfinite(float(logits.detach().sum())) and not torch.isfinite(logits).all():  # the sum is quicker
        bad = int((~torch.isfinite(logits)).any(dim=1).nonzero()[0])
        raise TrainingError(
            f"logits are NaN or infinite, first in row {bad} of the batch: check the teacher's weights, its "
            "preprocessing and its precision"
        )


def _checked_rows(rows: Tensor, size: int, total_rows: int) -> Tensor:
    """The row numbers on the CPU. One row for all would be broadcast, a negative one would count from the end."""
    needed = f"frozen noise needs one row number per sample, int64 [{size}]"
    if not isinstance(rows, Tensor):
        raise MismatchError(f"rows are a {type(rows).__name__}: {needed}")
    if rows.dtype != torch.int64 or rows.shape != (size,):
        raise MismatchError(f"rows are {str(rows.dtype).removeprefix('torch.')} {list(rows.shape)}: {needed}")
    found = rows.to("cpu")
    low, high = (int(bound) for bound in found.aminmax()) if size else (0, 0)
    if low < 0 or high >= total_rows:
        raise MismatchError(
            f"rows {low}..{high} were given to frozen noise of {total_rows} rows: expected 0..{total_rows - 1}"
        )
    return found


def _gaussian(shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device) -> Tensor:
    return torch.randn(shape, generator=generator, device=device)


def _uniform(shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Uniform on [-sqrt 3, sqrt 3]: standard deviation 1."""
    return (torch.rand(shape, generator=generator, device=device) * 2 - 1) * math.sqrt(3)


def _laplace(shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Laplace of scale 1/sqrt 2, by the inverse of its distribution function: standard deviation 1."""
    centred = torch.rand(shape, generator=generator, device=device, dtype=torch.float64) - 0.5
    tail = torch.log1p(-2 * centred.abs().clamp(max=0.5 - 2**-54))
    return (-centred.sign() * tail / math.sqrt(2)).float()


UNIT_NOISE: dict[str, Callable[[tuple[int, ...], torch.Generator | None, torch.device], Tensor]] = {
    "gaussian": _gaussian,
    "uniform": _uniform,
    "laplace": _laplace,
}


def is_number(value: object) -> bool:
    """Whether it is a finite int or float; True and False are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _sigma_problems(sigma: object) -> list[str]:
    if isinstance(sigma, (tuple, list)):
        if len(sigma) != 2 or not all(map(is_number, sigma)) or not 0 <= sigma[0] <= sigma[1]:
            return [f"sigma={sigma!r}: a range is (low, high) with 0 <= low <= high"]
        return []
    if not is_number(sigma) or sigma < 0:  # type: ignore[operator]
        return [f"sigma={sigma!r}: a standard deviation is a number >= 0 (or a (low, high) pair)"]
    return []


def _alpha_problems(alpha: object) -> list[str]:
    if not is_number(alpha) or not 0 <= alpha <= 1:  # type: ignore[operator]
        return [f"alpha={alpha!r}: the share of perturbed samples is a number from 0 to 1"]
    return []


FIELDS = tuple(field.name for field in fields(Noise))
