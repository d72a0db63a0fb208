"""Grids over the pipeline: every condition with every seed, resumable, on one machine or many, judged at the end."""

from noisyteacher.sweep.grid import Condition, Family, base_config, expand
from noisyteacher.sweep.judging import judge_sweep, summary
from noisyteacher.sweep.partway import so_far
from noisyteacher.sweep.result import SweepResult, difference, spread
from noisyteacher.sweep.run import resume_sweep, sweep

__all__ = [
    "Condition",
    "Family",
    "SweepResult",
    "base_config",
    "difference",
    "expand",
    "judge_sweep",
    "resume_sweep",
    "so_far",
    "spread",
    "summary",
    "sweep",
]
