"""Data sets as two tensors and an index: splits, views, and the sources they are read from."""

from noisyteacher.data.augment import AUGMENTATIONS, check_augment
from noisyteacher.data.batches import epoch_batches, samples_of
from noisyteacher.data.listing import datasets_here
from noisyteacher.data.packed import Packed, is_packed
from noisyteacher.data.packing import pack_data
from noisyteacher.data.sources import DATASETS, default_root, load_data
from noisyteacher.data.split import Batch, Split, Splits
from noisyteacher.data.summary import data_summary
from noisyteacher.data.views import apply_view, apply_views, expand_views

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "Batch",
    "Packed",
    "Split",
    "Splits",
    "apply_view",
    "apply_views",
    "check_augment",
    "data_summary",
    "datasets_here",
    "default_root",
    "epoch_batches",
    "expand_views",
    "is_packed",
    "load_data",
    "pack_data",
    "samples_of",
]
