"""`fit`: the one training loop."""

from noisyteacher.train.fitting import fit
from noisyteacher.train.loop import WEIGHTS

__all__ = ["WEIGHTS", "fit"]
