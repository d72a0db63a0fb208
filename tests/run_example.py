"""Run one program with the noisy teachers in it watched: what went in, what came out, as JSON in a file.

For a process of its own, so that nothing of the frameworks (seeds, handlers, warnings) stays behind in the tests'.
"""

from __future__ import annotations

import json
import runpy
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import noisyteacher as nt
from noisyteacher.models import weights_fingerprint
from noisyteacher.models.external import import_torchvision


def make_torchvision_importable(program: Path) -> None:
    """Import torchvision as the package does, for frameworks that import it themselves (all but PyTorch do)."""
    if any(word in program.read_text(encoding="utf-8") for word in ("lightning", "timm", "transformers")):
        with suppress(ImportError):
            import_torchvision()


def watch(seen: dict[int, dict[str, Any]]) -> None:
    """Let every NoisyTeacher tell what it does, call by call."""
    forward = nt.NoisyTeacher.forward

    def watched(self: nt.NoisyTeacher, *inputs: Any, **named: Any) -> Tensor:
        noisy = forward(self, *inputs, **named)
        with torch.no_grad():
            clean = self.teacher(*inputs)
        about = seen.setdefault(
            id(self), {"teacher": self, "sigma": self.noise.sigma, "calls": 0, "rows": 0, "changed": 0, "steady": True}
        )
        about.setdefault("before", weights_fingerprint(self.teacher))
        about["calls"] += 1
        about["rows"] += len(clean)
        about["changed"] += int((noisy != clean).any(1).sum())
        about["steady"] &= not noisy.requires_grad and not any(part.training for part in self.modules())
        return noisy

    nt.NoisyTeacher.forward = watched  # type: ignore[method-assign]


def run_example(output: Path, program: Path, arguments: list[str]) -> None:
    """Run the program; what was watched goes into the output file."""
    make_torchvision_importable(program)
    seen: dict[int, dict[str, Any]] = {}
    watch(seen)
    sys.argv = [str(program), *arguments]
    runpy.run_path(str(program), run_name="__main__")
    for about in seen.values():
        teacher = about.pop("teacher")
        about["unchanged"] = about.pop("before") == weights_fingerprint(teacher.teacher)
        about["counter"] = int(teacher.calls)
    output.write_text(json.dumps(list(seen.values())))
