"""The paper's tables and figures, ours beside theirs."""

from noisyteacher.paper.experiments import BUDGETS, EXPERIMENTS
from noisyteacher.paper.run import PaperResult, run_paper

__all__ = ["BUDGETS", "EXPERIMENTS", "PaperResult", "run_paper"]
