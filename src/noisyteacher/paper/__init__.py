"""The paper's tables and figures, ours beside them."""

from noisyteacher.paper.experiments import BUDGETS, EXPERIMENTS, varies_sigma
from noisyteacher.paper.run import PaperResult, run_paper

__all__ = ["BUDGETS", "EXPERIMENTS", "PaperResult", "run_paper", "varies_sigma"]
