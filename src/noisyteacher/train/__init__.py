"""`fit`, the one training loop, and `fit_many`, many trainings in common steps."""

from noisyteacher.train.fitting import fit, fit_many
from noisyteacher.train.history import History

__all__ = ["History", "fit", "fit_many"]
