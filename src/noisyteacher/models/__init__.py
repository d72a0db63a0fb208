"""Networks with their preprocessing in front: build them by name, wrap your own, save them, tell them apart."""

from noisyteacher.models.build import MODELS, OWN, ZOO, build_model, training_images
from noisyteacher.models.classifier import Classifier, Reordered, as_classifier, logits_of, reordered
from noisyteacher.models.compact import COMPACT, compact_network, without_width
from noisyteacher.models.foreign import ENDINGS, load_foreign
from noisyteacher.models.frozen import FROZEN, Frozen, is_frozen_file, load_frozen
from noisyteacher.models.hub import class_names_of
from noisyteacher.models.libraries import nearest_networks, unknown_network
from noisyteacher.models.paper import PAPER, paper_network, paper_options
from noisyteacher.models.preprocess import (
    PREPROCESS,
    LocalContrast,
    PixelMean,
    Resized,
    Scale,
    Standardize,
    Untouched,
    blank_preprocess,
    build_preprocess,
    is_preprocess,
)
from noisyteacher.models.pretrained import HUB_WEIGHTS, PREFIX, pretrained, weights_file
from noisyteacher.models.shrink import SHRINK, narrowed, origin_of, ratio_of
from noisyteacher.models.torchfile import begins_as_torch_file
from noisyteacher.models.weights import (
    code_fingerprint,
    load_model,
    load_weights,
    model_record,
    preprocess_fingerprint,
    save_model,
    saved_bytes,
    weights_fingerprint,
)
from noisyteacher.models.zoo import WHOLE

__all__ = [
    "COMPACT",
    "ENDINGS",
    "FROZEN",
    "HUB_WEIGHTS",
    "MODELS",
    "OWN",
    "PAPER",
    "PREFIX",
    "PREPROCESS",
    "SHRINK",
    "WHOLE",
    "ZOO",
    "Classifier",
    "Frozen",
    "LocalContrast",
    "PixelMean",
    "Reordered",
    "Resized",
    "Scale",
    "Standardize",
    "Untouched",
    "as_classifier",
    "begins_as_torch_file",
    "blank_preprocess",
    "build_model",
    "build_preprocess",
    "class_names_of",
    "code_fingerprint",
    "compact_network",
    "is_frozen_file",
    "is_preprocess",
    "load_foreign",
    "load_frozen",
    "load_model",
    "load_weights",
    "logits_of",
    "model_record",
    "narrowed",
    "nearest_networks",
    "origin_of",
    "paper_network",
    "paper_options",
    "preprocess_fingerprint",
    "pretrained",
    "ratio_of",
    "reordered",
    "save_model",
    "saved_bytes",
    "training_images",
    "unknown_network",
    "weights_file",
    "weights_fingerprint",
    "without_width",
]
