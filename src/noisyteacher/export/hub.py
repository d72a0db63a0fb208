"""A folder for the Hugging Face hub, weights and config, which `load_model` reads again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from noisyteacher.errors import UsageError
from noisyteacher.export.tracing import INPUT_FORMAT, Runner
from noisyteacher.io.files import write_json
from noisyteacher.models import (
    HUB_WEIGHTS,
    ONNX,
    ZOO,
    Classifier,
    first_origin,
    is_preprocess,
    load_model,
    save_model,
)

CONFIG, KIND, SCHEMA = "config.json", "hub-config", 1
CARD = "README.md"


def way_to_load(architecture: Mapping[str, Any]) -> Literal["name", "import", "module"]:
    """`name` where `load_model(path)` is enough, `import` where it takes `allow_import=True`, and `module` where the
    user must build the network and call `load_weights`.
    """
    try:
        origin = first_origin(architecture)["name"]
    except UsageError:
        return "module"
    if origin.startswith("module:") or not is_preprocess(architecture["preprocess"]):
        return "module"
    return "name" if ":" not in origin or origin.partition(":")[0] in (*ZOO, ONNX) else "import"


def check_rebuildable(model: Classifier) -> None:
    """Raises UsageError when the model cannot be built again from its name, as `load_model` must."""
    if way_to_load(model.architecture) == "module":
        raise UsageError(
            f"hub: {model.name!r} with preprocessing {model.architecture['preprocess']!r} cannot be built again from "
            "its name: build it, or what it was narrowed from, by build_model('pkg.module:factory', ...), or leave hub "
            "out (onnx, pt2 and pte hold the whole network)"
        )


def write_hub(
    model: Classifier, path: Path, class_names: Sequence[str], images: Tensor | None, fit: str = "squash"
) -> None:
    """Write the folder's weights and config; the card is the caller's. fit: how images are brought to their size."""
    config = {
        "library_name": "noisyteacher",
        "model_type": "noisyteacher",
        "architecture": model.architecture,
        "id2label": {str(number): name for number, name in enumerate(class_names)},
        "label2id": {name: number for number, name in enumerate(class_names)},
        "num_labels": len(class_names),
        "input": f"{INPUT_FORMAT} part of the model",
        "fit": fit,
    }
    save_model(model, path / HUB_WEIGHTS)
    write_json(path / CONFIG, KIND, SCHEMA, config)


@contextlib.contextmanager
def run_hub(path: Path, threads: int) -> Iterator[Runner]:
    """Yield a runner of the folder: the model that `load_model` reads, on torch's own threads."""
    yield load_model(path, allow_import=True)  # a factory has just made the model that was written
