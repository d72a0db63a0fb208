"""A folder for the Hugging Face hub, weights and config, and the way back from it to a model."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from noisyteacher.errors import DataError, FileFormatError, UsageError
from noisyteacher.export.tracing import INPUT_FORMAT, Runner
from noisyteacher.io.files import read_json, write_json
from noisyteacher.models import HUB_WEIGHTS, Classifier, is_preprocess, load_model, model_record, save_model

CONFIG, KIND, SCHEMA = "config.json", "hub-config", 1
CARD = "README.md"


def from_pretrained(folder: str | os.PathLike[str], *, allow_import: bool = False) -> Classifier:
    """The Classifier in a folder that `export` wrote for the hub, on the CPU and in eval mode, with identical weights.

    The folder is on this machine; nothing is downloaded. `allow_import` as in `load_model`. Raises DataError without
    the folder, FileFormatError when a file in it is missing or damaged, or the two do not belong together.
    """
    path = Path(folder)
    if not path.is_dir():
        raise DataError(f"{path}: no such folder: fetch the repository first (hf download NAME --local-dir FOLDER)")
    config = read_json(path / CONFIG, KIND, SCHEMA)
    if config.get("architecture") != model_record(path / HUB_WEIGHTS).get("architecture"):
        raise FileFormatError(f"{path / CONFIG}: describes another model than {HUB_WEIGHTS} beside it holds")
    return load_model(path / HUB_WEIGHTS, allow_import=allow_import)


def check_rebuildable(model: Classifier) -> None:
    """Raises UsageError when the model cannot be built again from its name, as `from_pretrained` must."""
    preprocess = model.architecture["preprocess"]
    if model.name.startswith("module:") or not is_preprocess(preprocess):
        raise UsageError(
            f"hub: {model.name!r} with preprocessing {preprocess!r} cannot be built again from its name: build it by "
            "build_model('pkg.module:factory', ...), or leave hub out (onnx, pt2 and pte hold the whole network)"
        )


def write_hub(model: Classifier, path: Path, class_names: Sequence[str], images: Tensor | None) -> None:
    """Write the folder's weights and config; the card is the caller's."""
    config = {
        "library_name": "noisyteacher",
        "model_type": "noisyteacher",
        "architecture": model.architecture,
        "id2label": {str(number): name for number, name in enumerate(class_names)},
        "label2id": {name: number for number, name in enumerate(class_names)},
        "num_labels": len(class_names),
        "input": f"{INPUT_FORMAT} part of the model",
    }
    save_model(model, path / HUB_WEIGHTS)
    write_json(path / CONFIG, KIND, SCHEMA, config)


@contextlib.contextmanager
def run_hub(path: Path, threads: int) -> Iterator[Runner]:
    """Yield a runner of the folder: the model of `from_pretrained`, on torch's own threads."""
    yield from_pretrained(path, allow_import=True)  # a factory has just made the model that was written
