"""The paper's tables and figures, ours beside theirs."""

from noisyteacher.paper.experiments import BUDGETS, EXPERIMENTS, varies_sigma
from noisyteacher.paper.result import PaperResult
from noisyteacher.paper.run import run_paper

__all__ = ["BUDGETS", "EXPERIMENTS", "PaperResult", "run_paper", "varies_sigma"]
