"""How a saved network is loaded again: by its name, by importing a factory, or into a module that the user builds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from noisyteacher.errors import UsageError
from noisyteacher.models import ONNX, ZOO, is_preprocess, origin_of

Loading = Literal["name", "import", "module"]


def refuse_scripted(student: object) -> None:
    """Raises UsageError for a student that is, or holds, a torch.jit module: its copies cannot be trained."""
    if isinstance(student, nn.Module) and any(isinstance(part, torch.jit.ScriptModule) for part in student.modules()):
        raise UsageError(
            "the student is, or holds, a torch.jit module, which cannot be copied for every seed and trained: pass the "
            "network as Python builds it"
        )


def way_to_load(architecture: Mapping[str, Any]) -> Loading:
    """`name` where `load_model(path)` does it, `import` where that takes `allow_import=True`, and `module` where the
    user must build the network and call `load_weights`.
    """
    try:
        origin = origin_of(architecture)
    except UsageError:
        return "module"
    if origin.startswith("module:") or not is_preprocess(architecture["preprocess"]):
        return "module"
    library = origin.partition(":")[0]
    trusted = ":" not in origin or library in (*ZOO, ONNX)
    return "name" if trusted else "import"
