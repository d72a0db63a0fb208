"""Networks with their preprocessing in front: built by name, wrapped, saved and fingerprinted."""

from noisyteacher.models.build import MODELS, OWN, PREFIX, ZOO, build_model, training_images
from noisyteacher.models.checkpoints import ENDINGS, begins_as_torch_file, load_foreign
from noisyteacher.models.classifier import Classifier, Reordered, as_classifier, logits_of, reordered
from noisyteacher.models.compact import COMPACT, compact_network, without_width
from noisyteacher.models.external import WHOLE, nearest_networks, unknown_network
from noisyteacher.models.huggingface import class_names_of
from noisyteacher.models.narrow import SHRINK, narrowed, origin_of, ratio_of
from noisyteacher.models.onnx_teacher import ONNX, OnnxNetwork, is_onnx_file, load_onnx
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
from noisyteacher.models.weights import (
    HUB_WEIGHTS,
    code_fingerprint,
    load_model,
    load_weights,
    model_record,
    preprocess_fingerprint,
    pretrained,
    save_model,
    saved_bytes,
    weights_file,
    weights_fingerprint,
)

__all__ = [
    "COMPACT",
    "ENDINGS",
    "HUB_WEIGHTS",
    "MODELS",
    "ONNX",
    "OWN",
    "PAPER",
    "PREFIX",
    "PREPROCESS",
    "SHRINK",
    "WHOLE",
    "ZOO",
    "Classifier",
    "LocalContrast",
    "OnnxNetwork",
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
    "is_onnx_file",
    "is_preprocess",
    "load_foreign",
    "load_model",
    "load_onnx",
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
