"""A folder as the Hugging Face hub wants it, weights and config, and the way back from it to a model."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from noisyteacher.errors import DataError, FileFormatError, UsageError
from noisyteacher.export.to_pt2 import Runner
from noisyteacher.io.files import read_bytes, read_json, write_bytes, write_json
from noisyteacher.models import HUB_WEIGHTS, PREPROCESS, Classifier, load_model, model_record, save_model

CONFIG, KIND, SCHEMA = "config.json", "hub-config", 1
CARD = "README.md"


def from_pretrained(folder: str | os.PathLike[str], *, allow_import: bool = False) -> Classifier:
    """The Classifier of a folder that `export` made for the hub, on the CPU and in eval mode, bit for bit as it was.

    The folder is on this machine; nothing is fetched. `allow_import` as in `load_model`. Raises DataError when there is
    no such folder, FileFormatError when a file in it is missing or damaged, or the two do not belong together.
    """
    place = Path(folder)
    if not os.path.isdir(place):
        raise DataError(
            f"{place}: no such folder: fetch the repository first (hf download NAME --local-dir FOLDER), then give the "
            "folder"
        )
    config = read_json(place / CONFIG, KIND, SCHEMA)
    stated = model_record(place / HUB_WEIGHTS).get("architecture")
    if config.get("architecture") != stated:
        raise FileFormatError(f"{place / CONFIG}: tells of another model than {HUB_WEIGHTS} beside it holds")
    return load_model(place / HUB_WEIGHTS, allow_import=allow_import)


def refuse_hub(model: Classifier) -> None:
    """Raises UsageError when the model cannot be built again from its name, as `from_pretrained` must."""
    if model.name.startswith("module:") or model.architecture["preprocess"] not in PREPROCESS:
        raise UsageError(
            f"hub: {model.name!r} with preprocessing {model.architecture['preprocess']!r} cannot be built again from "
            "its name: build it by build_model('pkg.module:factory', ...), or leave hub out (onnx, pt2 and pte hold "
            "the whole network)"
        )


def hub_files(model: Classifier, class_names: Sequence[str], images: object = None) -> dict[str, bytes]:
    """The bytes of the folder's files by name, without the card."""
    config = {
        "library_name": "noisyteacher",
        "model_type": "noisyteacher",
        "architecture": model.architecture,
        "id2label": {str(number): name for number, name in enumerate(class_names)},
        "label2id": {name: number for number, name in enumerate(class_names)},
        "num_labels": len(class_names),
        "input": "uint8 [batch, channels, height, width], pixels 0..255; preprocessing is part of the model",
    }
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, Path(folder) / HUB_WEIGHTS)
        write_json(Path(folder) / CONFIG, KIND, SCHEMA, config)
        return {name: read_bytes(Path(folder) / name) for name in (HUB_WEIGHTS, CONFIG)}


@contextlib.contextmanager
def hub_runner(files: dict[str, bytes], threads: int) -> Iterator[Runner]:
    """Yields what runs the folder: the model that `from_pretrained` makes of it, on the threads torch is set to.

    A factory is called again: it is the one that made the model that has just been written.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            write_bytes(Path(folder) / name, data)
        model = from_pretrained(folder, allow_import=True)
    yield model
