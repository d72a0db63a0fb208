"""A finished logit store, opened for reading: gathered by view and ROW OF THE SPLIT, never by position in a batch."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from noisyteacher.device import PRECISIONS, precision_context
from noisyteacher.errors import FileFormatError, MismatchError, StoreError, UsageError
from noisyteacher.inference import channels_last, inference
from noisyteacher.io.files import crc32c, read_bytes, read_json, sha256
from noisyteacher.io.tensors import map_tensors, read_record
from noisyteacher.rng import stream
from noisyteacher.store.plan import DTYPES, FINGERPRINTS, INDEX, KIND, SCHEMA, Plan, Shard
from noisyteacher.text import few, unknown_name

LEAST_MEMORY_BYTES = 256_000_000
ROUNDING = {"fp32": 0.0, "bf16": 2**-6, "float32": 0.0, "float16": 2**-11}
"""By precision of the arithmetic and by type on disk: the largest error, as a share of the largest answer of a row."""
REPAIR = f"restore it from a copy, or delete it and {INDEX} and extract again (intact shards are kept)"


class Rows(Protocol):
    """What `verify` needs of a split: its length, and images `[B, C, H, W]` uint8 of rows under a named view."""

    def __len__(self) -> int: ...

    def images_at(self, rows: Tensor, views: str) -> Tensor: ...


@dataclass(frozen=True)
class VerifyReport:
    """What `LogitStore.verify` looked at. Differences are absolute, in logits; NaN where no model was asked."""

    shards: int
    bytes: int
    rows: int
    max_abs_difference: float
    per_view: dict[str, float]


class LogitStore:
    """A finished store of raw teacher logits. `open` one; `noisyteacher.extract` makes them."""

    def __init__(self, path: Path, plan: Plan, shards: Sequence[Shard], meta: dict[str, Any], digest: str) -> None:
        self.path, self.plan, self.shards, self.meta = path, plan, tuple(shards), meta
        self.digest = digest
        """SHA-256 hex of store.json's bytes: names the whole content, as that file holds every shard's checksum."""
        self._blocks: list[Tensor] = []  # [V, n, K] as stored, memory-mapped
        self._table: Tensor | None = None  # [V * N, K] as stored, of a store small enough

    @classmethod
    def open(cls, path: str | os.PathLike[str], verify: bool = True, *, memory_bytes: int | None = None) -> LogitStore:
        """The store in this folder; `verify` reads every byte and compares the checksums.

        A store of up to `memory_bytes` is held in memory, a larger one stays memory-mapped. By default that is a
        32nd of this machine's memory (each process of a sweep holds its own), and at least 256 MB.
        Raises StoreError that names the file when the store is missing, unfinished or damaged.
        """
        folder = Path(path)
        index = folder / INDEX
        if not os.path.isdir(folder):
            raise StoreError(f"{folder}: no logit store here: extract the teacher's logits into it first")
        if not os.path.exists(index):
            raise StoreError(
                f"{folder}: no {INDEX} in it, so it is an unfinished logit store or none: extract into it again "
                "(shards that are there already are kept)"
            )
        try:
            content, digest = read_json(index, KIND, SCHEMA), sha256([read_bytes(index)])
            plan, shards, meta = _parts(content, index)
            store = cls(folder, plan, shards, meta, digest)
            store._map(verify, _memory_bytes() if memory_bytes is None else memory_bytes)
        except StoreError:
            raise
        except FileFormatError as error:
            raise StoreError(str(error)) from error
        return store

    def __repr__(self) -> str:
        return f"LogitStore({str(self.path)!r}: {len(self.views)} views x {self.rows} rows x {self.classes} classes)"

    @property
    def views(self) -> tuple[str, ...]:
        """The views' names in stored order."""
        return self.plan.views

    @property
    def rows(self) -> int:
        """How many rows the split has."""
        return self.plan.rows

    @property
    def classes(self) -> int:
        """How many logits an answer has."""
        return self.plan.classes

    @property
    def dtype(self) -> str:
        """The type on disk, "float32" or "float16"; `logits` gives float32 either way."""
        return self.plan.dtype

    @property
    def fingerprints(self) -> dict[str, str]:
        """SHA-256 hex of teacher (weights), data (images in row order), preprocessing and code."""
        return dict(self.plan.fingerprints)

    def view_indices(self, views: Sequence[str] | str) -> Tensor:
        """Where each of these views is in `.views`: int64 `[len(views)]`, to turn a batch's view table into ours.

        `store.logits(store.view_indices(batch.views)[batch.which], batch.rows)`. Raises MismatchError.
        """
        names = (views,) if isinstance(views, str) else tuple(views)
        missing = [name for name in names if name not in self.views]
        if missing:
            raise MismatchError(
                f"{self.path}: no logits of view {missing[0]!r}, only of {few(self.views)}: extract that view "
                "too, or train without it"
            )
        return torch.tensor([self.views.index(name) for name in names], dtype=torch.int64)

    def logits(self, view: str | Tensor, rows: Tensor) -> Tensor:
        """The teacher's logits float32 `[B, K]` (CPU, a copy) of rows `[B]`, all under one view or each under its own.

        view: a name, or int64 `[B]` of indices into `.views`. Raises MismatchError for a view or row not in the store.
        """
        rows = self._indices("row", rows, self.rows)
        if isinstance(view, str):
            which = self.view_indices(view).expand(len(rows))
        else:
            which = self._indices("view", view, len(self.views))
        if which.shape != rows.shape:
            raise MismatchError(f"{len(which)} views for {len(rows)} rows: pass one view per row, or one view's name")
        if self._table is not None:
            places = rows if len(self.views) == 1 else which * self.rows + rows
            return self._table.index_select(0, places).float()
        # Rows sorted by shard, so that each shard is asked once and for all of its rows.
        numbers, order = (rows // self.plan.rows_per_shard).sort(stable=True)
        found, counts = torch.unique_consecutive(numbers, return_counts=True)
        parts = []
        for number, places in zip(found.tolist(), torch.split(order, counts.tolist()), strict=True):
            shard = self.shards[number]
            inside = which[places] * shard.rows + rows[places] - shard.first_row
            parts.append(self._blocks[number].view(-1, self.classes).index_select(0, inside))
        out = torch.empty(len(rows), self.classes)
        return out.index_copy_(0, order, torch.cat(parts).float()) if parts else out

    def check(self, **fingerprints: str) -> None:
        """Nothing comes back: each given fingerprint (`teacher=`, `data=`, ...) is the store's own.

        Raises MismatchError naming the first that is not, UnknownNameError for a fingerprint that no store has.
        """
        for name, given in fingerprints.items():
            if name not in FINGERPRINTS:
                raise unknown_name("fingerprint", name, FINGERPRINTS)
            if given != self.plan.fingerprints[name]:
                raise MismatchError(f"{self.path}: {self.plan.mismatch(name, given)}")

    def verify(
        self,
        model: Callable[[Tensor], Tensor] | None = None,
        split: Rows | None = None,
        sample: int = 256,
        seed: int = 0,
        tolerance: float = 1e-3,
    ) -> VerifyReport:
        """A report on the store: all checksums read again, and `sample` rows of every view asked of the model again.

        model: uint8 `[B, C, H, W]` -> logits `[B, K]`; a torch module is asked where it is, in eval mode and in the
        store's precision. tolerance: absolute, in logits; where a store rounds more than fp32 does, beside that.
        Raises StoreError naming the shard, or the view and row whose logits differ by more; MismatchError when the
        split has other rows; UsageError for a model without a split (or the reverse) and for no rows.
        """
        if (model is None) != (split is None):
            raise UsageError("verify needs the model and the split, or neither (then checksums alone)")
        if sample < 1:
            raise UsageError(f"verify needs sample >= 1 rows, got {sample}")
        for shard in self.shards:
            _check_shard(self.path, shard, read=True)
        total, worst = sum(shard.bytes for shard in self.shards), dict.fromkeys(self.views, float("nan"))
        if model is None or split is None:
            return VerifyReport(len(self.shards), total, 0, float("nan"), worst)
        if len(split) != self.rows:
            raise MismatchError(f"{self.path}: {self.rows} rows in the store, {len(split)} in the split")
        rows = torch.randperm(self.rows, generator=stream(seed, "verify-store"))[:sample].sort().values
        for view in self.views:
            batches = torch.tensor_split(rows, -(-len(rows) // 64))
            asked = [self._difference(model, split, view, batch) for batch in batches]
            differences, rounding = (torch.cat(parts) for parts in zip(*asked, strict=True))
            # A NaN is within no tolerance: look for "not within", never for "beyond".
            wrong = (~(differences <= tolerance + rounding)).nonzero().flatten()
            if len(wrong):
                first = int(wrong[0])
                raise StoreError(
                    f"{self.path}: view {view!r}, row {int(rows[first])}: the model's logits are "
                    f"{float(differences[first]):.3g} away from the stored ones (tolerance "
                    f"{tolerance + float(rounding[first]):.2g}; so are "
                    f"{len(wrong)} of {len(rows)} rows): "
                    f"another model, other data, or another precision than the store's {self.plan.precision}"
                )
            worst[view] = float(differences.max())
        return VerifyReport(len(self.shards), total, len(rows), max(worst.values()), worst)

    def rounding(self, stored: Tensor) -> Tensor:
        """How far rounding alone can put these stored answers `[B, K]` from the same teacher's, by row: `[B]`.

        0 for an fp32 store; half a unit in the last place of float16 for one kept in that; for one asked in bf16, whose
        products and sums have 8 bits, a 64th of the largest answer.
        """
        share = ROUNDING.get(self.plan.precision, 0.0) + ROUNDING[self.dtype]
        return share * stored.abs().amax(dim=1)

    def _difference(
        self, model: Callable[[Tensor], Tensor], split: Rows, view: str, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The largest absolute difference of each row `[B]`, and how much of it rounding explains."""
        images = split.images_at(rows, view)
        if isinstance(model, nn.Module):
            precision = self.plan.precision if self.plan.precision in PRECISIONS else "fp32"
            with inference(model) as device:
                images = images.to(device)
                with channels_last(model, images), precision_context(precision, device):
                    answers = model(images)
        else:
            with torch.no_grad():
                answers = model(images)
        expected = (len(rows), self.classes)
        if not isinstance(answers, Tensor) or answers.shape != expected:
            got = tuple(answers.shape) if isinstance(answers, Tensor) else type(answers).__name__
            raise MismatchError(f"{self.path}: the model must answer with logits {expected}, got {got}")
        stored = self.logits(view, rows)
        return (answers.detach().float().cpu() - stored).abs().amax(dim=1), self.rounding(stored)

    def _indices(self, what: str, given: Tensor, limit: int) -> Tensor:
        """The indices on the CPU. A negative one would count from the end without a word: it is refused."""
        if not isinstance(given, Tensor) or given.dtype != torch.int64 or given.dim() != 1:
            got = f"{given.dtype} {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
            raise MismatchError(f"{what} indices must be an int64 tensor [B], got {got}")
        found = given.cpu()
        if len(found):
            low, high = (int(bound) for bound in found.aminmax())
            if low < 0 or high >= limit:
                bad = low if low < 0 else high
                raise MismatchError(f"{self.path}: no {what} {bad} in this store: it has {what}s 0 to {limit - 1}")
        return found

    def _map(self, verify: bool, memory_bytes: int) -> None:
        for shard in self.shards:
            _check_shard(self.path, shard, read=verify)
            file = self.path / shard.file
            record, found = read_record(file), map_tensors(file).get("logits")
            if (record.get("plan"), record.get("first_row")) != (self.plan.digest, shard.first_row):
                raise StoreError(f"{file}: a shard of another store, or of another place in it: {REPAIR}")
            shape = (len(self.views), shard.rows, self.classes)
            if found is None or found.shape != shape or found.dtype != DTYPES[self.dtype]:
                got = "none" if found is None else f"{found.dtype} {tuple(found.shape)}"
                raise StoreError(f"{file}: logits {self.dtype} {shape} expected, got {got}: {REPAIR}")
            self._blocks.append(found)
        if sum(block.nbytes for block in self._blocks) <= memory_bytes:
            self._table = torch.cat(self._blocks, dim=1).view(-1, self.classes)
            self._blocks = []


def _memory_bytes() -> int:
    """The size up to which a store is held in memory."""
    try:
        physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not every system tells
        physical = 0
    return max(LEAST_MEMORY_BYTES, physical // 32)


def _check_shard(folder: Path, shard: Shard, read: bool) -> None:
    """Raises StoreError unless the file is there with its length and, when `read`, its checksum."""
    file = folder / shard.file
    place = f"rows {shard.first_row} to {shard.first_row + shard.rows - 1}"
    if not file.is_file():
        raise StoreError(f"{file}: missing ({place}): {REPAIR}")
    length = file.stat().st_size
    if length != shard.bytes:
        raise StoreError(f"{file}: {length} bytes, {shard.bytes} expected ({place}): truncated or damaged; {REPAIR}")
    if read and (found := crc32c(read_bytes(file))) != shard.crc32c:
        raise StoreError(f"{file}: CRC-32C {found} found, {shard.crc32c} expected ({place}): damaged; {REPAIR}")


def _parts(content: dict[str, Any], index: Path) -> tuple[Plan, list[Shard], dict[str, Any]]:
    names = ("rows", "classes", "views", "fingerprints", "dtype", "precision", "rows_per_shard")
    try:
        plan = Plan(**{name: content[name] for name in names})
        shards, meta = [Shard(**shard) for shard in content["shards"]], dict(content["meta"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(f"{index}: a key is missing or wrong ({error}): extract again") from error
    # The names of the files are ours to say: one that leads out of the folder is never opened.
    plain = [replace(shard, bytes=0, crc32c="") for shard in shards]
    if len(plain) != -(-plan.rows // plan.rows_per_shard) or plain != list(plan.shards):
        raise StoreError(f"{index}: its shards are not those of rows 0 to {plan.rows - 1} in order: extract again")
    return plan, shards, meta
