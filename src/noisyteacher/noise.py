"""The noise of the paper (Sau & Balasubramanian 2016, Eq. 2 and Algorithm 1) and its variants, as pure functions.

    z' = (1 + xi) * z        for the samples of the batch that are selected, each with probability alpha
    xi ~ N(0, sigma^2 I)     sigma is a STANDARD DEVIATION

`perturb` is the only function that puts noise on logits. It works in two steps: unit noise is drawn first
(`UnitNoise`), and scaled by sigma and alpha afterwards. Two conditions with the same generator state therefore share
their draws: a larger alpha keeps the selected samples and adds some, a larger sigma stretches the same directions, and
sigma = 0 or alpha = 0 returns the teacher's logits bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor

from noisyteacher.config import NoiseSettings, config_error, validated
from noisyteacher.config.schema import Distribution, Draw, Kind
from noisyteacher.errors import ConfigError, MismatchError, TrainingError, UsageError
from noisyteacher.rng import generator as seeded_generator

SIGMA_SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "late": lambda progress: float(progress >= 0.5),
}
"""Schedule -> factor on sigma after a share `progress` (0..1) of the run's steps."""
TABLES = 128
"""Tables of frozen noise, and of flipped labels, that are kept: `fit_many` reads one for each seed at every step.
One of noise by row takes 4 * rows * classes * draws bytes."""
Sigma = float | tuple[float, float] | Tensor
"""A standard deviation, a (low, high) range, or either as a tensor (`[]` or `[2]`)."""


@dataclass(frozen=True, kw_only=True)
class Noise(NoiseSettings):
    """Which noise is put on logits. Immutable; invalid values raise one ConfigError that lists all of them.

    >>> Noise(sigma=0.9, alpha=0.5).draw
    'batch'
    """

    sigma: float | tuple[float, float] = field()
    """Standard deviation of each component of xi, >= 0; a (low, high) pair is drawn uniformly for every batch (5.4)."""
    alpha: float = field()
    """Probability that a sample of the batch is perturbed, 0..1. Not a loss weight."""

    def __post_init__(self) -> None:
        for name in ("sigma", "alpha"):
            if isinstance(value := vars(self)[name], Real) and not isinstance(value, (int, float)):
                vars(self)[name] = float(value)  # a number of numpy
        # pydantic would detach tensors from their graph and reorder sets.
        wrong = [
            f"noise.{name}: given a {type(vars(self)[name]).__name__}; expected a number"
            for name in ("sigma", "alpha")
            if not isinstance(vars(self)[name], (int, float, str, list, tuple))
        ]
        if wrong:
            raise config_error(wrong)
        settings = validated(NoiseSettings, vars(self), part="noise")
        problems = [*settings.contradictions()]
        problems += [
            (name, "given 'auto'; expected a number") for name in ("sigma", "alpha") if vars(self)[name] == "auto"
        ]
        if problems:
            raise config_error(f"noise.{name}: {problem}" for name, problem in problems)
        vars(self).update(vars(settings))  # a list as a range, an int as a float

    def describe(self) -> dict[str, object]:
        """Every field as a JSON-able value, for run folders."""
        record = {**asdict(self), "sigma": list(self.sigma) if isinstance(self.sigma, tuple) else self.sigma}
        if self.draws == 1:  # runs that are older than this field can be resumed
            del record["draws"]
        return record

    def sigma_at(self, step: int, total_steps: int | None) -> tuple[float, float]:
        """The range (low, high) of sigma at a step (from 0), after the schedule's factor; low == high without a range.

        The noise is off from the share `until` of the steps on. Raises MismatchError where sigma changes over the run
        and the run's length is missing.
        """
        low, high = self.sigma if isinstance(self.sigma, tuple) else (self.sigma, self.sigma)
        if self.schedule == "constant" and self.until == 1:
            return low, high
        if total_steps is None:
            setting = f"schedule {self.schedule!r}" if self.until == 1 else f"until={self.until:g}"
            raise MismatchError(f"noise with {setting} needs the length of the run: give total_steps")
        progress = min(1.0, step / total_steps)
        is_on = self.until == 1 or progress < self.until
        factor = SIGMA_SCHEDULES[self.schedule](progress) if is_on else 0.0
        return low * factor, high * factor


class UnitNoise(NamedTuple):
    """Draws for B samples that do not depend on sigma or alpha; conditions that share them form a pair.

    chance `[B, 1]`: uniform on 0..1, compared with alpha. position `[]`: uniform on 0..1, where in its range (low,
    high) this batch's sigma lies.
    unit `[B or 1, K or 1]`, noise of standard deviation 1; of several draws `[M, B or 1, K or 1]`.
    """

    chance: Tensor
    position: Tensor
    unit: Tensor

    def selected(self, alpha: float | Tensor) -> Tensor:
        """Which samples are perturbed, bool `[B, 1]`."""
        return self.chance < alpha

    def deviation(self, sigma: Sigma) -> Tensor:
        """This batch's standard deviation, `[]`."""
        low, high = sigma if isinstance(sigma, tuple) or (isinstance(sigma, Tensor) and sigma.dim()) else (sigma, sigma)
        return low + (high - low) * self.position

    def xi(self, sigma: Sigma) -> Tensor:
        """The scaled noise, of the shape of `unit`."""
        return self.unit * self.deviation(sigma)

    def rows(self, rows: Tensor | slice) -> UnitNoise:
        """The draws of some of the samples; unit noise that the whole batch shares stays as it is."""
        return UnitNoise(
            self.chance[rows], self.position, self.unit if self.unit.shape[-2] == 1 else self.unit[..., rows, :]
        )


def sample_unit_noise(
    draw: str, distribution: str, batch: int, classes: int, generator: torch.Generator | None = None, draws: int = 1
) -> UnitNoise:
    """Unit noise for `batch` samples of `classes` logits, on the generator's device (the CPU without one).

    The order of the draws is fixed: selection, position in the sigma range, unit noise, of which the first of several
    draws is that of a single one.
    """
    device = generator.device if generator is not None else torch.device("cpu")
    chance = torch.rand(batch, 1, generator=generator, device=device, dtype=torch.float32)
    position = torch.rand((), generator=generator, device=device, dtype=torch.float32)
    shape = {"batch": (1, classes), "row": (batch, classes), "scalar": (batch, 1)}[draw]
    units = [_unit(distribution, shape, generator, device) for _ in range(draws)]
    return UnitNoise(chance, position, units[0] if draws == 1 else torch.stack(units))


def _unit(distribution: str, shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Noise of standard deviation 1."""
    if distribution == "gaussian":
        return torch.randn(shape, generator=generator, device=device, dtype=torch.float32)
    if distribution == "uniform":
        return (torch.rand(shape, generator=generator, device=device, dtype=torch.float32) * 2 - 1) * math.sqrt(3)
    # Laplace, by the inverse of its distribution function
    centred = torch.rand(shape, generator=generator, device=device, dtype=torch.float64) - 0.5
    tail = torch.log1p(-2 * centred.abs().clamp(max=0.5 - 2**-54))
    return (-centred.sign() * tail / math.sqrt(2)).float()


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
    """Unit noise for the `batch` samples of one step, from generator (seed, "noise", step).

    Frozen noise is the run's draw (seed, "frozen noise") at `rows`: int64 `[batch]`, each in 0..total_rows - 1.
    Raises MismatchError for frozen noise without valid rows.
    """
    if not noise.frozen:
        draws = seeded_generator(seed, "noise", step)
        return sample_unit_noise(noise.draw, noise.distribution, batch, classes, draws, noise.draws)
    if rows is None or total_rows is None:
        raise MismatchError("frozen noise belongs to rows: give the batch's row numbers and the number of rows")
    if not isinstance(rows, Tensor) or rows.dtype != torch.int64 or rows.shape != (batch,):  # [1] would broadcast
        kind = f"{rows.dtype} {list(rows.shape)}" if isinstance(rows, Tensor) else f"a {type(rows).__name__}"
        raise MismatchError(f"rows are {kind}: frozen noise needs one row number per sample, int64 [{batch}]")
    rows = rows.to("cpu")
    if batch and (rows.min() < 0 or rows.max() >= total_rows):
        raise MismatchError(f"rows {int(rows.min())}..{int(rows.max())}: frozen noise has rows 0..{total_rows - 1}")
    return _frozen_unit_noise(noise.draw, noise.distribution, seed, total_rows, classes, noise.draws).rows(rows)


@lru_cache(maxsize=TABLES)
def _frozen_unit_noise(draw: str, distribution: str, seed: int, total_rows: int, classes: int, draws: int) -> UnitNoise:
    return sample_unit_noise(draw, distribution, total_rows, classes, seeded_generator(seed, "frozen noise"), draws)


def perturb(
    logits: Tensor,
    *,
    sigma: Sigma,
    alpha: float | Tensor,
    draw: Draw = "batch",
    kind: Kind = "multiplicative",
    distribution: Distribution = "gaussian",
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    unit_noise: UnitNoise | None = None,
) -> Tensor:
    """The logits with noise on a random share `alpha` of the rows: `[B, K]` in, `[B, K]` out.

    Draws come from `generator` (torch's global CPU generator without one) and are moved to the logits' device, so a
    CPU generator gives the same noise on every device. Gradients flow through to `logits`. Rows that are not selected,
    and all rows at sigma 0, are returned bit for bit. Half-precision logits are perturbed in float32 and rounded once.
    `kind="mix"` is TeKAP's (1 - sigma) z + xi; with `"sampled"` softmax(z' / temperature) is (1 - sigma) p + sigma * a
    class drawn from p = softmax(z / temperature), as one-hot: at sigma 1 a sampled teacher.
    With `unit_noise` (of M draws: `[M, B, K]` out) nothing is drawn and nothing is checked, and `draw`, `distribution`
    and `generator` are ignored: this is what training steps use, with sigma and alpha as tensors where many students
    are trained together.
    Raises ConfigError for impossible settings, MismatchError unless the logits are a tensor `[B, K]`, TrainingError
    when they or the result are not finite, UsageError for a generator of another type. Under torch.vmap (with
    `randomness="different"`), torch.compile and torch.export, and on the meta device, values are not checked.
    Source: Sau & Balasubramanian 2016, Eq. 2 and Algorithm 1; TeKAP (ICLR 2025); sampled: Kaplun et al. 2022.

    >>> teacher = torch.tensor([[2.0, -1.0], [0.5, 3.0]])
    >>> torch.equal(perturb(teacher, sigma=0.0, alpha=0.5), teacher)
    True
    """
    drawn_here = unit_noise is None
    if unit_noise is None:
        check_logits(logits)
        if generator is not None and not isinstance(generator, torch.Generator):
            raise UsageError(f"generator is a {type(generator).__name__}: expected a torch.Generator")
        sigma, alpha = _checked_size(sigma, alpha, draw, kind, distribution)
        if not 0 < temperature < math.inf:
            raise ConfigError(f"temperature={temperature!r}: expected a finite number above 0")
        if temperature != 1 and kind != "sampled":
            raise ConfigError(f"temperature={temperature!r}: has no effect on noise of kind {kind!r}: leave it out")
        unit_noise = sample_unit_noise(draw, distribution, logits.shape[0], logits.shape[1], generator)
    scaled = unit_noise.selected(alpha), unit_noise.deviation(sigma), unit_noise.xi(sigma)
    selected, deviation, xi = (part.to(logits.device) for part in scaled)
    half = logits.dtype in (torch.float16, torch.bfloat16)
    wide = logits.float() if half else logits
    xi = xi.to(wide.dtype)
    if kind == "multiplicative":
        noisy = wide * (1 + xi)
    elif kind == "sampled":
        noisy = _with_sampled_class(wide, unit_noise.unit.to(wide.device), deviation, temperature)
    else:
        noisy = (wide * (1 - deviation) if kind == "mix" else wide) + xi
    result = torch.where(selected & (deviation != 0), noisy.to(logits.dtype), logits)
    if half or drawn_here:
        check_noisy_logits(result)
    return result


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _checked_size(
    sigma: float | tuple[float, float], alpha: float, draw: Draw, kind: Kind, distribution: Distribution
) -> tuple[float | tuple[float, float], float]:
    """Sigma and alpha as numbers. Raises ConfigError for impossible settings."""
    noise = Noise(sigma=sigma, alpha=alpha, draw=draw, kind=kind, distribution=distribution)
    return noise.sigma, noise.alpha


def check_noisy_logits(logits: Tensor) -> None:
    """Raises TrainingError when logits that were finite no longer are, now that they are perturbed."""
    if _has_values(logits) and not torch.isfinite(logits).all():
        raise TrainingError(f"perturbed logits overflow {logits.dtype}: give them in a wider type, or lower sigma")


def _has_values(tensor: Tensor) -> bool:
    """Whether the tensor's values can be read: not while it is traced, mapped over or without memory."""
    return not (tensor.is_meta or torch.compiler.is_compiling() or torch._C._functorch.is_batchedtensor(tensor))


def _with_sampled_class(logits: Tensor, unit: Tensor, share: Tensor, temperature: float) -> Tensor:
    """Logits whose softmax at this temperature is (1 - share) p + share * one-hot of a class drawn from p.

    The class is drawn by the largest of logits / temperature + Gumbel noise, which standard Gaussian noise becomes by
    -log(-log Phi(unit)), Phi = 1 - erfc(unit / sqrt 2) / 2.
    """
    scaled = logits / temperature
    exponential = -torch.log1p(-0.5 * torch.erfc(unit / math.sqrt(2)))
    classes = (scaled - exponential.log()).argmax(-1, keepdim=True)
    one_hot = torch.zeros_like(scaled.expand(classes.shape[:-1] + scaled.shape[-1:])).scatter(-1, classes, 1.0)
    target = scaled.softmax(-1) * (1 - share) + one_hot * share
    return temperature * target.clamp(min=torch.finfo(target.dtype).tiny).log()


def check_logits(logits: Tensor) -> None:
    """Raises MismatchError unless the logits are float `[B, K]` with K >= 2, TrainingError unless they are finite."""
    if not isinstance(logits, Tensor):
        raise MismatchError(f"logits are a {type(logits).__name__}: expected a torch tensor of floats [B, K], K >= 2")
    if logits.is_nested or logits.layout != torch.strided or logits.dtype.itemsize < 2:
        kind = "nested" if logits.is_nested else f"{logits.dtype} {logits.layout}"
        raise MismatchError(f"logits are a {kind} tensor: give a dense one of floats of 16 bits or more (.to_dense())")
    if logits.dim() != 2 or logits.shape[1] < 2 or not logits.is_floating_point():
        raise MismatchError(f"logits are {logits.dtype} {list(logits.shape)}: expected floats [B, K], K >= 2")
    if not _has_values(logits):
        return
    if not math.isfinite(float(logits.detach().sum())) and not torch.isfinite(logits).all():  # the sum is faster
        row = int((~torch.isfinite(logits)).any(dim=1).nonzero()[0])
        raise TrainingError(
            f"logits are NaN or infinite, first in row {row} of the batch: check the teacher's weights, its "
            "preprocessing and its precision"
        )
