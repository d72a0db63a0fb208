"""Data sets as two tensors and an index: splits, views, and the sources they are read from."""

from noisyteacher.data.augment import AUGMENTATIONS, check_augment
from noisyteacher.data.batches import epoch_batches, samples_of
from noisyteacher.data.builtin import DATASETS, datasets_here, default_root
from noisyteacher.data.load import load_data
from noisyteacher.data.packed import Packed, is_packed, pack_data
from noisyteacher.data.split import Batch, Split, Splits, data_summary
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
