"""What `export` found: a file's logits beside torch's, its size and latency, and these in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from noisyteacher import metrics
from noisyteacher.errors import ExportError
from noisyteacher.measure import Latency
from noisyteacher.stats import Quantity
from noisyteacher.tables import Table
from noisyteacher.text import size_bytes

QAT_NOTE = (
    "PTQ: ranges calibrated on training images; QAT: trained further while rounded to int8. Kept is the one that loses "
    "less here."
)
HEADERS = ("format", "precision", "accuracy %", "agreement %", "logit difference", "size", "latency ms", "holds")


@dataclass(frozen=True)
class Comparison:
    """A file's logits beside torch's, for the same images."""

    agreement: Quantity
    """Share (%) of these images that get the same class as by torch."""
    accuracy: Quantity | None
    """Of the file (%); None without labels."""
    torch_accuracy: Quantity | None
    drop: float
    """Points of accuracy lost against torch, below 0 if the file does better; without labels of agreement."""
    difference: float
    """The largest difference to torch's logits, over all images and classes."""
    logit_scale: float
    """The largest absolute logit of torch, for comparison with `difference`."""


@dataclass(frozen=True, kw_only=True)
class Exported(Comparison):
    """One exported file as its own runtime ran it, beside the model it was made from as torch runs it."""

    path: Path
    format: str
    """`onnx`, `pt2`, `pte`, `tflite` or `hub` (a folder)."""
    precision: str
    """`fp32` or `int8`: of weights and activations of the network; images are uint8 either way."""
    bytes: int
    """The length of the file; of `hub` that of its model.safetensors."""
    torch_bytes: int
    """The length of the file that `save_model` writes of the model, which `bytes` is compared with."""
    sha256: str
    """Of the file whose length is `bytes`."""
    checked_on: str
    """The images that both ran on: "mnist-5k, val", or "random images" without data."""
    tolerance: float
    """fp32: the largest `difference` allowed, in logits. int8: the largest drop of accuracy (without labels: of
    agreement) allowed, in points."""
    holds: bool
    """Whether the file is within the tolerance."""
    latency_ms: Latency
    torch_latency_ms: Latency
    """Both timed in turns, call by call, under the same conditions."""
    runtime: str
    """Name and version of the runtime that ran the file."""
    qat: bool = False
    """Whether weights and ranges were learned by quantization-aware training; else ranges were calibrated alone."""
    rejected: Comparison | None = None
    """The file that was made the other way, where both were, which loses more and was not kept."""

    @property
    def name(self) -> str:
        """The format's name on the command line: `onnx`, `onnx-int8`, `pte-int8`, ..."""
        return self.format if self.precision == "fp32" else f"{self.format}-{self.precision}"

    @property
    def n(self) -> int:
        """The number of images that both ran on."""
        return self.agreement.n

    @property
    def reason(self) -> str:
        """What was compared with the tolerance, in words."""
        if self.precision == "fp32":
            return f"largest logit difference {self.difference:.2g}, allowed {self.tolerance:.2g}"
        what = "agreement" if self.accuracy is None else "accuracy"
        return f"{self.drop:.2f} points of {what} lost, allowed {self.tolerance:.2f} (n = {self.n:,})"

    def describe(self) -> dict[str, object]:
        """All fields for JSON, shares with their unit and n."""
        rejected = None if self.rejected is None else asdict(self.rejected) | _shares(self.rejected)
        named = {"path": str(self.path), "n": self.n, "reason": self.reason, "rejected": rejected}
        return {**asdict(self), **_shares(self), **named}

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Exported:
        """The Exported that `describe` made the record of."""
        values = {field.name: record[field.name] for field in fields(cls) if field.name in record}
        values |= {name: Latency(**values[name]) for name in ("latency_ms", "torch_latency_ms")}
        if (rejected := record.get("rejected")) is not None:
            values["rejected"] = Comparison(**rejected | _quantities(rejected))
        return cls(**values | _quantities(record) | {"path": Path(record["path"])})


def _shares(comparison: Comparison) -> dict[str, object]:
    """The shares of images, with their unit and n."""
    return {name: value.describe() for name, value in vars(comparison).items() if isinstance(value, Quantity)}


def _quantities(record: Mapping[str, Any]) -> dict[str, Quantity | None]:
    """The Quantities that `_shares` made the record's entries of."""
    shares = {name: record[name] for name in ("agreement", "accuracy", "torch_accuracy")}
    return {name: None if share is None else Quantity(**share) for name, share in shares.items()}


def compare(logits: Tensor, torch_logits: Tensor, labels: Tensor | None) -> Comparison:
    """A file's logits beside torch's, `[N, K]` each. Raises ExportError unless they have one shape and are finite."""
    if logits.shape != torch_logits.shape or not torch.isfinite(logits).all():
        raise ExportError(
            f"the file returns logits {tuple(logits.shape)}, torch {tuple(torch_logits.shape)} finite logits: it was "
            "not kept"
        )
    n, agreement = len(logits), metrics.agreement(logits, torch_logits)
    difference, scale = float((logits - torch_logits).abs().max()), float(torch_logits.abs().max())
    if labels is None:
        return Comparison(Quantity(agreement, "%", n), None, None, 100 - agreement, difference, scale)
    accuracy, torch_accuracy = (Quantity(metrics.accuracy(each, labels), "%", n) for each in (logits, torch_logits))
    drop = torch_accuracy - accuracy
    return Comparison(Quantity(agreement, "%", n), accuracy, torch_accuracy, drop, difference, scale)


def table(exported: Sequence[Exported], failed: Mapping[str, str] | None = None) -> Table:
    """A row per file, torch first; ratios are to torch (below 1: smaller, faster).

    failed: format -> why it could not be written; it has a row without numbers.
    """
    rows: list[tuple[str, ...]] = []
    for file in exported[:1]:
        size, latency = size_bytes(file.torch_bytes), f"{file.torch_latency_ms.median:.3f}"
        rows.append(("torch", "fp32", _percent(file.torch_accuracy), "", "", size, latency, ""))
    for file in exported:
        size = f"{size_bytes(file.bytes)} ({file.bytes / file.torch_bytes:.2f}x)"
        median = file.latency_ms.median
        latency = f"{median:.3f} ({median / file.torch_latency_ms.median:.2f}x)"
        ways = (" QAT", " PTQ") if file.qat else (" PTQ", " QAT")
        way = "" if file.rejected is None else ways[0]
        rows.append((file.format, file.precision + way, *_scores(file), size, latency, "yes" if file.holds else "NO"))
        if file.rejected is not None:
            rows.append((file.format, file.precision + ways[1], *_scores(file.rejected), "-", "-", "not kept"))
    for name in failed or ():
        kind, _, precision = name.partition("-")
        rows.append((kind, precision or "fp32", *"-----", "FAILED"))
    return Table(HEADERS, tuple(rows), "llrrrrrl", tuple(notes(exported, failed)))


def _scores(file: Comparison) -> tuple[str, str, str]:
    return _percent(file.accuracy), _percent(file.agreement), f"{file.difference:.2g}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def notes(exported: Sequence[Exported], failed: Mapping[str, str] | None = None) -> list[str]:
    """The notes below the table: n, conditions, runtimes, why a file does not hold or was not written."""
    failures = [f"{name} was not written: {reason}." for name, reason in (failed or {}).items()]
    if not exported:
        return failures
    first, latency = exported[0], exported[0].latency_ms
    what = "Accuracy, agreement with torch" if first.accuracy is not None else "Agreement with torch"
    return [
        f"{what} and largest logit difference to it: {first.checked_on}, n = {first.n:,} images"
        f"; torch's largest logit is {first.logit_scale:.3g}.",
        f"Latency: median of {latency.runs} calls, taken in turns, batch {latency.batch}, {latency.threads} thread(s), "
        f"{latency.device}. Ratios: to torch and its weights file (below 1: smaller, faster).",
        f"Run by: {', '.join(dict.fromkeys(file.runtime for file in exported))}.",
        *([QAT_NOTE] if any(file.rejected for file in exported) else []),
        *(f"{file.name} does not hold: {file.reason}." for file in exported if not file.holds),
        *failures,
    ]


def verdict(exported: Sequence[Exported]) -> str:
    """One sentence: the fastest and the smallest of the files that hold, and where int8 is not faster."""
    good = [file for file in exported if file.holds]
    if not good:
        return "no file holds: deploy none of these"
    # The hub's folder is run by torch: a difference in time to torch is noise.
    fastest = min([file for file in good if file.format != "hub"] or good, key=lambda file: file.latency_ms.median)
    smallest = min(good, key=lambda file: file.bytes)
    latency, torch_latency = fastest.latency_ms.median, fastest.torch_latency_ms.median
    if latency < torch_latency:
        words = f"fastest that holds: {fastest.name} ({latency:.3f} ms, torch {torch_latency:.3f} ms)"
    else:
        words = f"none that holds is faster than torch ({torch_latency:.3f} ms), the fastest is {fastest.name} "
        words += f"({latency:.3f} ms)"
    words += f"; smallest that holds: {smallest.name} ({size_bytes(smallest.bytes)})"
    fp32 = {file.format: file.latency_ms.median for file in exported if file.precision == "fp32"}
    for file in exported:
        latency, fp32_latency = file.latency_ms.median, fp32.get(file.format, float("inf"))
        if file.precision == "int8" and latency >= fp32_latency:
            words += (
                f"; int8 is not faster than fp32 in {file.format} here ({latency:.3f} against {fp32_latency:.3f} ms)"
            )
    return words
