"""Networks with their preprocessing in front: build them by name, wrap your own, save them, tell them apart."""

from noisyteacher.models.build import MODELS, build_model
from noisyteacher.models.classifier import Classifier, as_classifier, logits_of
from noisyteacher.models.compact import COMPACT, compact_network
from noisyteacher.models.paper import PAPER, paper_network, paper_options
from noisyteacher.models.preprocess import (
    PREPROCESS,
    LocalContrast,
    PixelMean,
    Scale,
    Standardize,
    build_preprocess,
)
from noisyteacher.models.pretrained import HUB_WEIGHTS, PREFIX, pretrained, weights_file
from noisyteacher.models.shrink import SHRINK, narrowed, origin_of, ratio_of
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

__all__ = [
    "COMPACT",
    "HUB_WEIGHTS",
    "MODELS",
    "PAPER",
    "PREFIX",
    "PREPROCESS",
    "SHRINK",
    "Classifier",
    "LocalContrast",
    "PixelMean",
    "Scale",
    "Standardize",
    "as_classifier",
    "build_model",
    "build_preprocess",
    "code_fingerprint",
    "compact_network",
    "load_model",
    "load_weights",
    "logits_of",
    "model_record",
    "narrowed",
    "origin_of",
    "paper_network",
    "paper_options",
    "preprocess_fingerprint",
    "pretrained",
    "ratio_of",
    "save_model",
    "saved_bytes",
    "weights_file",
    "weights_fingerprint",
]
