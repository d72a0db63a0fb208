"""What a logit store will hold, settled before the first answer: rows, classes, views, whose logits, which shards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from noisyteacher.errors import StoreError, UsageError
from noisyteacher.io.files import sha256
from noisyteacher.text import unknown_name

KIND, SHARD_KIND, SCHEMA = "logit-store", "logit-shard", 1
INDEX = "store.json"
DTYPES = {"float32": torch.float32, "float16": torch.float16}
SHARD_BYTES = 32_000_000  # of logits in one shard,
SHARD_ANSWERS = 65_536  # and forward passes in one shard: what an interruption can cost at most

ADVICE = {
    "teacher": "pass the teacher the store was made from, or extract the logits of this one",
    "data": "pass the split the store was made from (same images, same order), or extract the logits of this one",
    "preprocessing": "use the preprocessing the store was made with, or extract again",
    "code": "the network is built differently now: extract again",
}
FINGERPRINTS = tuple(ADVICE)


@dataclass(frozen=True)
class Shard:
    """One file of a store: rows `first_row` to `first_row + rows - 1`, its length and the CRC-32C of all its bytes."""

    file: str
    first_row: int
    rows: int
    bytes: int = 0
    crc32c: str = ""


@dataclass(frozen=True)
class Plan:
    """What a store holds, apart from the logits; shards of equal plans are interchangeable.

    views: names, in stored order. fingerprints: the four of FINGERPRINTS, SHA-256 hex. dtype: on disk. precision: of
    the teacher's arithmetic. rows_per_shard: 0 chooses about 32 MB of logits and at most 65,536 answers a shard.
    Raises UsageError naming the field that cannot be meant.
    """

    rows: int
    classes: int
    views: tuple[str, ...]
    fingerprints: Mapping[str, str]
    dtype: str = "float32"
    precision: str = "fp32"
    rows_per_shard: int = 0

    def __post_init__(self) -> None:
        for name in ("rows", "classes"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise UsageError(f"a logit store needs {name} >= 1, got {getattr(self, name)!r}")
        if isinstance(self.views, str) or not self.views or not all(isinstance(v, str) and v for v in self.views):
            raise UsageError(f"a logit store needs the names of one view or more, got {self.views!r}")
        if len(set(self.views)) != len(self.views):
            raise UsageError(f"a logit store holds each view once, got {list(self.views)}")
        words = list(self.fingerprints.values())
        if set(self.fingerprints) != set(FINGERPRINTS) or not all(isinstance(word, str) and word for word in words):
            raise UsageError(
                f"a logit store needs the fingerprints {', '.join(FINGERPRINTS)}, got {dict(self.fingerprints)!r}"
            )
        if self.dtype not in DTYPES:
            raise unknown_name("dtype of a logit store", str(self.dtype), DTYPES)
        if not isinstance(self.precision, str):
            raise UsageError(f"a logit store needs the name of a precision, got {self.precision!r}")
        if type(self.rows_per_shard) is not int or self.rows_per_shard < 0:
            raise UsageError(f"rows_per_shard must be 0 (choose) or more, got {self.rows_per_shard!r}")
        object.__setattr__(self, "views", tuple(self.views))
        object.__setattr__(self, "fingerprints", {name: self.fingerprints[name] for name in FINGERPRINTS})
        if not self.rows_per_shard:
            row_bytes = len(self.views) * self.classes * DTYPES[self.dtype].itemsize
            fitting = min(SHARD_BYTES // row_bytes, SHARD_ANSWERS // len(self.views))
            object.__setattr__(self, "rows_per_shard", max(1, fitting))

    @property
    def digest(self) -> str:
        """SHA-256 hex of the plan as JSON with sorted keys and no spaces: every shard carries it."""
        return sha256([json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()])

    @property
    def shards(self) -> tuple[Shard, ...]:
        """The shards in order, without length and checksum; all but the last have `rows_per_shard` rows."""
        starts = range(0, self.rows, self.rows_per_shard)
        return tuple(
            Shard(f"shard-{number:05d}.safetensors", first, min(self.rows_per_shard, self.rows - first))
            for number, first in enumerate(starts)
        )

    def difference(self, other: Plan) -> str | None:
        """A sentence on the first field in which `other`, the plan asked for, differs; None when all but the cut into
        shards is equal."""
        for name in FINGERPRINTS:
            if self.fingerprints[name] != other.fingerprints[name]:
                return self.mismatch(name, other.fingerprints[name])
        for name in ("rows", "classes", "views", "dtype", "precision"):
            mine, its = getattr(self, name), getattr(other, name)
            if mine != its:
                return f"{name} is {mine!r} in the store, {its!r} asked for"
        return None

    def mismatch(self, name: str, given: str) -> str:
        """The sentence for a fingerprint that is not the store's: both prefixes, and what to do."""
        return f"made from {name} {self.fingerprints[name][:12]}, this {name} is {given[:12]}: {ADVICE[name]}"


def refuse_non_finite(logits: Tensor, view: str, first_row: int) -> None:
    """Raises StoreError naming view and row unless all logits `[n, K]`, of rows from `first_row` on, are finite."""
    if bool(torch.isfinite(logits).all()):
        return
    place = int((~torch.isfinite(logits)).any(dim=1).nonzero()[0])
    values = ", ".join(f"{value:.4g}" for value in logits[place][:4].tolist())
    raise StoreError(
        f"view {view!r}, row {first_row + place}: the teacher's logits ({values}, ...) are not finite, no student can "
        "learn them: check the teacher's weights, or extract with precision='fp32' and dtype='float32'"
    )
