"""Networks with their preprocessing in front: build them by name, wrap your own, save them, tell them apart."""

from noisyteacher.models.build import MODELS, build_model
from noisyteacher.models.classifier import Classifier, as_classifier, logits_of
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
    "HUB_WEIGHTS",
    "MODELS",
    "PAPER",
    "PREFIX",
    "PREPROCESS",
    "Classifier",
    "LocalContrast",
    "PixelMean",
    "Scale",
    "Standardize",
    "as_classifier",
    "build_model",
    "build_preprocess",
    "code_fingerprint",
    "load_model",
    "load_weights",
    "logits_of",
    "model_record",
    "paper_network",
    "paper_options",
    "preprocess_fingerprint",
    "pretrained",
    "save_model",
    "saved_bytes",
    "weights_file",
    "weights_fingerprint",
]
