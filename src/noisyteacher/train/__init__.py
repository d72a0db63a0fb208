"""`fit`, the one training loop, and `fit_many`, many trainings in common steps."""

from noisyteacher.train.fitting import fit
from noisyteacher.train.loop import WEIGHTS
from noisyteacher.train.together import fit_many

__all__ = ["WEIGHTS", "fit", "fit_many"]
