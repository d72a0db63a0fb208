"""Teachers that come with the package: trained weights by name, each with a card that says what they are."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from noisyteacher.text import unknown_name

SHIPPED = Path(__file__).with_name("shipped")
PREFIX = "pretrained:"
HUB_WEIGHTS = "model.safetensors"
"""The weights in a folder that was made for the Hugging Face hub."""


def pretrained() -> dict[str, dict[str, Any]]:
    """The cards of all shipped models by name: model, data, recipe, seed, scores with n, versions, SHA-256, licence.

    `pretrained()["lenet-mnist"]["scores"]["test"]["error"]`.
    """
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(SHIPPED.glob("*.json"))}


def weights_file(where: str | os.PathLike[str]) -> Path:
    """The file that is meant: `pretrained:NAME` is one of the package's, a folder made for the Hugging Face hub stands
    for the weights in it, anything else is a path as given.

    Raises UnknownNameError for a name the package does not have.
    """
    text = os.fspath(where)
    if not text.startswith(PREFIX):
        inside = os.path.join(text, HUB_WEIGHTS)
        return Path(inside if os.path.isfile(inside) else text)
    name = text.removeprefix(PREFIX)
    known = [file.stem for file in SHIPPED.glob("*.json")]
    if name not in known:
        raise unknown_name("pretrained model", name, known)
    return SHIPPED / f"{name}.safetensors"
