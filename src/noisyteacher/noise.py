"""The noise of the paper (Sau & Balasubramanian 2016, Eq. 2 and Algorithm 1) and its variants, as pure functions.

    z' = (1 + xi) * z        for the samples of the batch that are selected, each with probability alpha
    xi ~ N(0, sigma^2 I)     sigma is a STANDARD DEVIATION

`perturb` is the one place where noise meets logits. It works in two steps: unit noise is drawn first (`UnitNoise`), and
scaled by sigma and alpha afterwards. Two conditions with the same generator state therefore share their draws: a larger
alpha keeps the selected samples and adds some, a larger sigma stretches the same directions, and sigma = 0 or alpha = 0
returns the teacher's logits bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple, get_args

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
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
    "early": lambda done: float(done < 0.5),
    "late": lambda done: float(done >= 0.5),
}
"""Schedule -> factor on sigma after a share `done` (0..1) of the run's steps."""
Sigma = float | tuple[float, float] | Tensor
"""A standard deviation, a (low, high) range, or either as a tensor (`[]` or `[2]`)."""


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Which noise is put on logits. Immutable; invalid values raise one ConfigError that lists all of them.

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
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                suggestion = nearest(str(value), choices)
                hint = f"did you mean {suggestion!r}? " if suggestion else ""
                problems.append(f"{name}={value!r}: {hint}known are {', '.join(choices)}")
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

    def sigma_at(self, step: int, total_steps: int | None) -> tuple[float, float]:
        """The range (low, high) of sigma at a step (from 0), after the schedule's factor; low == high without a range.

        Raises MismatchError for a schedule other than `constant` without the run's length.
        """
        low, high = self.sigma if isinstance(self.sigma, tuple) else (self.sigma, self.sigma)
        if self.schedule == "constant":
            return low, high
        if total_steps is None:
            raise MismatchError(f"noise with schedule {self.schedule!r} needs the length of the run: give total_steps")
        factor = SCHEDULES[self.schedule](min(1.0, step / total_steps))
        return low * factor, high * factor


class UnitNoise(NamedTuple):
    """Draws for B samples that do not depend on sigma or alpha; conditions that share them form a pair.

    chance `[B, 1]` uniform on 0..1, compared with alpha; position `[]`, uniform on 0..1, of sigma within its range;
    unit `[B or 1, K or 1]`, noise of standard deviation 1.
    """

    chance: Tensor
    position: Tensor
    unit: Tensor

    def selected(self, alpha: float | Tensor) -> Tensor:
        """Which samples are perturbed, bool `[B, 1]`."""
        return self.chance < alpha

    def xi(self, sigma: Sigma) -> Tensor:
        """The scaled noise, `[B or 1, K or 1]`."""
        low, high = sigma if isinstance(sigma, tuple) or (isinstance(sigma, Tensor) and sigma.dim()) else (sigma, sigma)
        return self.unit * (low + (high - low) * self.position)

    def rows(self, rows: Tensor | slice) -> UnitNoise:
        """The draws of some of the samples; noise that is one for the whole batch stays as it is."""
        return UnitNoise(self.chance[rows], self.position, self.unit if len(self.unit) == 1 else self.unit[rows])


def sample_unit_noise(
    draw: str, distribution: str, batch: int, classes: int, generator: torch.Generator | None = None
) -> UnitNoise:
    """Unit noise for `batch` samples of `classes` logits, on the generator's device (the CPU without one).

    The order of the draws is fixed: selection, position in the sigma range, unit noise.
    """
    device = generator.device if generator is not None else torch.device("cpu")
    chance = torch.rand(batch, 1, generator=generator, device=device)
    position = torch.rand((), generator=generator, device=device)
    shape = {"batch": (1, classes), "row": (batch, classes), "scalar": (batch, 1)}[draw]
    return UnitNoise(chance, position, UNIT_DISTRIBUTIONS[distribution](shape, generator, device))


def unit_noise_at(
    noise: Noise,
    *,
    seed: int,
    step: int,
    batch: int,
    classes: int,
    rows: Tensor | None = None,
    total_rows: int | None = None,
) -> UnitNoise:
    """Unit noise for the `batch` samples of one step, from stream (seed, "noise", step).

    Frozen noise is the run's draw (seed, "frozen noise") at `rows`: int64 `[batch]`, each in 0..total_rows - 1.
    Raises MismatchError for frozen noise without valid rows.
    """
    if not noise.frozen:
        return sample_unit_noise(noise.draw, noise.distribution, batch, classes, stream(seed, "noise", step))
    if rows is None or total_rows is None:
        raise MismatchError("frozen noise belongs to rows: give the batch's row numbers and the number of rows")
    return _frozen_unit_noise(noise.draw, noise.distribution, seed, total_rows, classes).rows(
        _checked_rows(rows, batch, total_rows)
    )


@lru_cache(maxsize=8)
def _frozen_unit_noise(draw: str, distribution: str, seed: int, total_rows: int, classes: int) -> UnitNoise:
    return sample_unit_noise(draw, distribution, total_rows, classes, stream(seed, "frozen noise"))


def perturb(
    logits: Tensor,
    *,
    sigma: Sigma,
    alpha: float | Tensor,
    draw: DrawKind = "batch",
    kind: Kind = "multiplicative",
    distribution: Distribution = "gaussian",
    generator: torch.Generator | None = None,
    unit_noise: UnitNoise | None = None,
) -> Tensor:
    """The logits with noise on a random share `alpha` of the rows: `[B, K]` in, `[B, K]` out.

    Draws come from `generator` (torch's global CPU generator without one) and are moved to the logits' device, so a
    CPU generator gives the same noise on every device. Gradients flow through to `logits`. Rows that are not selected,
    and all rows at sigma 0, are returned bit for bit. Half-precision logits are perturbed in float32 and rounded once.
    With `unit_noise` nothing is drawn and nothing is checked: this is what training steps use, with sigma and alpha as
    tensors where many students are trained together.
    Raises ConfigError for impossible settings, MismatchError unless the logits are a tensor `[B, K]`, TrainingError
    when they are not finite or overflow half precision, UsageError for a generator of another type.
    Source: Sau & Balasubramanian 2016, Eq. 2 and Algorithm 1.

    >>> teacher = torch.tensor([[2.0, -1.0], [0.5, 3.0]])
    >>> torch.equal(perturb(teacher, sigma=0.0, alpha=0.5), teacher)
    True
    """
    if unit_noise is None:
        check_logits(logits)
        if generator is not None and not isinstance(generator, torch.Generator):
            raise UsageError(
                f"generator is a {type(generator).__name__}: expected a torch.Generator "
                "(torch.Generator().manual_seed(3))"
            )
        Noise(sigma=sigma, alpha=alpha, draw=draw, kind=kind, distribution=distribution)  # type: ignore[arg-type]
        sigma = tuple(sigma) if isinstance(sigma, list) else sigma
        unit_noise = sample_unit_noise(draw, distribution, logits.shape[0], logits.shape[1], generator)
    selected, xi = unit_noise.selected(alpha).to(logits.device), unit_noise.xi(sigma).to(logits.device)
    half = logits.dtype in (torch.float16, torch.bfloat16)
    wide = logits.float() if half else logits
    xi = xi.to(wide.dtype)
    noisy = wide * (1 + xi) if kind == "multiplicative" else wide + xi
    result = torch.where(selected & (xi != 0), noisy.to(logits.dtype), logits)
    if half and not torch.isfinite(result).all():
        raise TrainingError(
            f"the perturbed logits overflow {logits.dtype}: give them as float32 (logits.float()) or lower sigma"
        )
    return result


def check_logits(logits: Tensor) -> None:
    """Raises MismatchError unless the logits are float `[B, K]` with K >= 2, TrainingError unless they are finite."""
    if not isinstance(logits, Tensor):
        raise MismatchError(f"logits are a {type(logits).__name__}: expected a torch tensor of floats [B, K], K >= 2")
    if logits.dim() != 2 or logits.shape[1] < 2 or not logits.is_floating_point():
        raise MismatchError(
            f"logits have shape {list(logits.shape)} and type {logits.dtype}: expected floats [B, K], K >= 2"
        )
    if not math.isfinite(float(logits.detach().sum())) and not torch.isfinite(logits).all():  # the sum is faster
        row = int((~torch.isfinite(logits)).any(dim=1).nonzero()[0])
        raise TrainingError(
            f"logits are NaN or infinite, first in row {row} of the batch: check the teacher's weights, its "
            "preprocessing and its precision"
        )


def _checked_rows(rows: Tensor, batch: int, total_rows: int) -> Tensor:
    """The row numbers on the CPU. A single row would broadcast, a negative one would count from the end."""
    expected = f"frozen noise needs one row number per sample, int64 [{batch}]"
    if not isinstance(rows, Tensor):
        raise MismatchError(f"rows are a {type(rows).__name__}: {expected}")
    if rows.dtype != torch.int64 or rows.shape != (batch,):
        raise MismatchError(f"rows are {str(rows.dtype).removeprefix('torch.')} {list(rows.shape)}: {expected}")
    rows = rows.to("cpu")
    low, high = (int(bound) for bound in rows.aminmax()) if batch else (0, 0)
    if low < 0 or high >= total_rows:
        raise MismatchError(
            f"rows {low}..{high} were given to frozen noise of {total_rows} rows: expected 0..{total_rows - 1}"
        )
    return rows


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


UNIT_DISTRIBUTIONS: dict[str, Callable[[tuple[int, ...], torch.Generator | None, torch.device], Tensor]] = {
    "gaussian": _gaussian,
    "uniform": _uniform,
    "laplace": _laplace,
}


def is_number(value: object) -> bool:
    """Whether the value is a finite int or float; bools do not count."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _sigma_problems(sigma: object) -> Sequence[str]:
    if isinstance(sigma, (tuple, list)):
        if len(sigma) != 2 or not all(map(is_number, sigma)) or not 0 <= sigma[0] <= sigma[1]:
            return [f"sigma={sigma!r}: a range is (low, high) with 0 <= low <= high"]
        return []
    if not is_number(sigma) or sigma < 0:  # type: ignore[operator]
        return [f"sigma={sigma!r}: a standard deviation is a number >= 0 (or a (low, high) pair)"]
    return []


def _alpha_problems(alpha: object) -> Sequence[str]:
    if not is_number(alpha) or not 0 <= alpha <= 1:  # type: ignore[operator]
        return [f"alpha={alpha!r}: the share of perturbed samples is a number from 0 to 1"]
    return []
