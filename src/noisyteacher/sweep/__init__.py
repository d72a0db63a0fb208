"""Grids of settings: every condition trained with every seed, resumable, on one machine or many, then analysed."""

from noisyteacher.sweep.analysis import SweepResult as SweepResult
from noisyteacher.sweep.analysis import analyse as analyse
from noisyteacher.sweep.run import partial_result as partial_result
from noisyteacher.sweep.run import resume_sweep as resume_sweep
from noisyteacher.sweep.run import sweep as sweep
from noisyteacher.sweep.spec import ConditionSpec as ConditionSpec
from noisyteacher.sweep.spec import base_config as base_config
from noisyteacher.sweep.spec import expand as expand
