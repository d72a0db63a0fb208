"""The formats by name: how each is written and run, which packages that takes."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import Tensor

from noisyteacher.errors import UsageError
from noisyteacher.export.hub import hub_files, hub_runner, refuse_hub
from noisyteacher.export.to_onnx import onnx_bytes, onnx_int8_bytes, onnx_runner
from noisyteacher.export.to_pt2 import Runner, pt2_bytes, pt2_runner
from noisyteacher.export.to_pte import pte_bytes, pte_int8_bytes, pte_runner
from noisyteacher.models import Classifier
from noisyteacher.text import unknown_name

Files = dict[str, bytes]
"""What is to be written, by name: "" is the path that was asked for itself, others lie in it as a folder."""


@dataclass(frozen=True)
class Format:
    """How a format is written, run and called."""

    kind: str
    precision: str
    write: Callable[[Classifier, Sequence[str], Tensor | None], Files]
    """(model, class names, calibration images, which are there for int8)."""
    run: Callable[[Files, int], AbstractContextManager[Runner]]
    """(the same files, threads)."""
    needs: tuple[str, ...] = ()
    """Packages, in the order in which they are looked for; the last is the runtime."""
    extra: str = ""
    """The extra of this package that brings them."""


def _single(
    kind: str,
    precision: str,
    write: Callable[[Classifier, Sequence[str], Tensor | None], bytes],
    run: Callable[[bytes, int], AbstractContextManager[Runner]],
    *needs: str,
    extra: str = "",
) -> Format:
    """A format of one file."""
    return Format(
        kind,
        precision,
        lambda model, names, images: {"": write(model, names, images)},
        lambda files, threads: run(files[""], threads),
        needs,
        extra,
    )


_ONNX = ("onnx", "onnxscript", "onnxruntime")
_MOBILE = ("torchao", "executorch")
FORMATS: dict[str, Format] = {
    "onnx": _single("onnx", "fp32", onnx_bytes, onnx_runner, *_ONNX, extra="export"),
    "onnx-int8": _single("onnx", "int8", onnx_int8_bytes, onnx_runner, *_ONNX, extra="export"),
    "pt2": _single("pt2", "fp32", pt2_bytes, pt2_runner),
    "pte": _single("pte", "fp32", pte_bytes, pte_runner, *_MOBILE, extra="mobile"),
    "pte-int8": _single("pte", "int8", pte_int8_bytes, pte_runner, *_MOBILE, extra="mobile"),
    "hub": Format("hub", "fp32", hub_files, hub_runner),
}
"""Name -> format. `hub` is a folder, every other a single file."""


def refuse_formats(names: Sequence[str], model: Classifier | None = None) -> None:
    """Raises what a wrong list of formats would raise later: a name not known or there twice, a missing extra."""
    refuse_names(names)
    for name in names:
        refuse_format(name, model)


def refuse_names(names: Sequence[str]) -> None:
    """Raises UsageError for a format that is not known, and for one that is named twice."""
    for place, name in enumerate(names):
        if name not in FORMATS:
            raise unknown_name("format", name, FORMATS)
        if name in names[:place]:
            raise UsageError(f"format {name!r} is named twice: name it once")


def refuse_format(name: str, model: Classifier | None = None) -> None:
    """Raises UsageError when a package that the format needs is missing, or it cannot hold this model."""
    form = FORMATS[name]
    missing = [package for package in form.needs if importlib.util.find_spec(package) is None]
    if missing:
        raise UsageError(f"format {name!r} needs {' and '.join(missing)}: pip install 'noisyteacher[{form.extra}]'")
    if name == "hub" and model is not None:
        refuse_hub(model)
