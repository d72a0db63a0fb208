"""Data sets as two tensors and an index: splits, views, batches, and the sources they are read from."""

from noisyteacher.data.builtin import DATASETS, datasets_here
from noisyteacher.data.packed import Packed, is_packed
from noisyteacher.data.sources import load_data, pack_data
from noisyteacher.data.split import Batch, Split, Splits, check_split, data_summary, epoch_batches, samples_of
from noisyteacher.data.views import expand_views

__all__ = [
    "DATASETS",
    "Batch",
    "Packed",
    "Split",
    "Splits",
    "check_split",
    "data_summary",
    "datasets_here",
    "epoch_batches",
    "expand_views",
    "is_packed",
    "load_data",
    "pack_data",
    "samples_of",
]
