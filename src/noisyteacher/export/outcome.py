"""What an exported file came to: how it answers beside torch, what it weighs, how long it takes, whether it holds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from noisyteacher.measure import Latency
from noisyteacher.stats import Quantity


@dataclass(frozen=True)
class Exported:
    """One exported file as its own runtime ran it, beside the model it was made from as torch runs it."""

    path: Path
    format: str
    """`onnx`, `pt2`, `pte` or `hub` (a folder)."""
    precision: str
    """`fp32` or `int8`: of weights and activations of the network; images come in as uint8 either way."""
    bytes: int
    """The length of the file; of `hub` that of its model.safetensors."""
    torch_bytes: int
    """The length of the file that `save_model` writes of the model: what `bytes` is compared with."""
    sha256: str
    """Of the file whose length is `bytes`."""
    checked_on: str
    """The images both were asked about: "mnist-5k, val", or "random images" where no data were given."""
    agreement: Quantity
    """Share (%) of these images that are given the same class as by torch."""
    accuracy: Quantity | None
    """Of the file (%); None without labels."""
    torch_accuracy: Quantity | None
    drop: float
    """Points of accuracy lost against torch, below 0 where the file does better; without labels of agreement."""
    difference: float
    """The largest difference to torch's logits, over all images and classes; NaN when logits are not finite."""
    logit_scale: float
    """The largest absolute logit of torch, which `difference` may be seen beside."""
    tolerance: float
    """fp32: the largest `difference` allowed, in logits. int8: the largest drop of accuracy (without labels: of
    agreement) allowed, in points."""
    holds: bool
    latency_ms: Latency
    torch_latency_ms: Latency
    """Both timed in turns, call by call, under the same conditions."""
    runtime: str
    """Name and version of what ran the file."""

    @property
    def name(self) -> str:
        """The format's name on the command line: `onnx`, `onnx-int8`, `pte-int8`, ..."""
        return self.format if self.precision == "fp32" else f"{self.format}-{self.precision}"

    @property
    def n(self) -> int:
        """How many images both were asked about."""
        return self.agreement.n

    @property
    def reason(self) -> str:
        """What was compared with the tolerance, in words."""
        if not math.isfinite(self.difference):
            return "its logits are not finite"
        if self.precision == "fp32":
            return f"largest logit difference {self.difference:.2g}, allowed {self.tolerance:.2g}"
        what = "agreement" if self.accuracy is None else "accuracy"
        return f"{self.drop:.2f} points of {what} lost, allowed {self.tolerance:.2f} (n = {self.n:,})"

    def describe(self) -> dict[str, Any]:
        """The JSON-able form, numbers with their units and n; what is not finite is null."""
        known = {"agreement": self.agreement, "accuracy": self.accuracy, "torch_accuracy": self.torch_accuracy}
        return {
            "path": str(self.path),
            "format": self.format,
            "precision": self.precision,
            "bytes": self.bytes,
            "torch_bytes": self.torch_bytes,
            "sha256": self.sha256,
            "checked_on": self.checked_on,
            "n": self.n,
            **{name: None if one is None else one.describe() for name, one in known.items()},
            "drop": self.drop,
            "difference": self.difference if math.isfinite(self.difference) else None,
            "logit_scale": self.logit_scale,
            "tolerance": self.tolerance,
            "holds": self.holds,
            "reason": self.reason,
            "latency_ms": asdict(self.latency_ms),
            "torch_latency_ms": asdict(self.torch_latency_ms),
            "runtime": self.runtime,
        }

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Exported:
        """The Exported that `describe` told of."""
        known = {one.name: record[one.name] for one in fields(cls)}
        for name in ("agreement", "accuracy", "torch_accuracy"):
            known[name] = None if known[name] is None else Quantity(**known[name])
        for name in ("latency_ms", "torch_latency_ms"):
            known[name] = Latency(**known[name])
        difference = math.nan if known["difference"] is None else known["difference"]
        return cls(**{**known, "path": Path(known["path"]), "difference": difference})
