"""A teacher's logits on disk: views x rows x classes, checksummed, and tied to the teacher and data they came from.

A store is a folder: `shard-00000.safetensors` and so on, then `store.json`, written last (docs/formats.md). It holds
raw logits, never perturbed and never softened, read by view and ROW OF THE SPLIT, not by position in a batch.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, cast

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from noisyteacher.data import Split
from noisyteacher.device import channels_last, inference, precision_context
from noisyteacher.errors import FileFormatError, MismatchError, StoreError, UsageError
from noisyteacher.io import files
from noisyteacher.io.tensors import map_tensors, read_record, read_tensors, write_tensors
from noisyteacher.models import as_classifier
from noisyteacher.rng import generator
from noisyteacher.text import few, unknown_name

KIND, SHARD_KIND, SCHEMA = "logit-store", "logit-shard", 1
INDEX, SHARD_FILES = "store.json", "shard-[0-9][0-9][0-9][0-9][0-9]*.safetensors"
DTYPES = {"float32": torch.float32, "float16": torch.float16}
SHARD_BYTES, SHARD_ANSWERS = 32_000_000, 65_536
"""Bytes of logits and forward passes per shard, at most: what an interruption can cost."""
ROUNDING = {"fp32": 0.0, "bf16": 2**-6}
"""Precision of the arithmetic -> its largest rounding error, as a share of a row's largest |logit|."""
DISK_ROUNDING = {"float32": 0.0, "float16": 2**-11}
"""Dtype on disk -> its largest rounding error, as the same share."""
FINGERPRINTS = ("teacher", "data", "preprocessing", "code")
NAN = float("nan")
Count = Annotated[int, Field(strict=True, ge=1)]
Name = Annotated[str, Field(min_length=1)]
BlocksOf = Callable[[Sequence["Shard"]], Generator[Tensor, None, None]]


@dataclass(frozen=True)
class Shard:
    """One file of a store: its rows, its length and the CRC-32C of all its bytes."""

    file: str
    first_row: int
    rows: int
    bytes: int = 0
    crc32c: str = ""

    @property
    def row_numbers(self) -> Tensor:
        """int64 `[rows]`."""
        return torch.arange(self.first_row, self.first_row + self.rows)


@dataclass(frozen=True)
class Plan:
    """What a store holds, apart from the logits; shards of equal plans are interchangeable.

    fingerprints: the four of FINGERPRINTS, SHA-256 hex. precision: of the teacher's arithmetic. rows_per_shard: 0
    chooses about 32 MB of logits and at most 65,536 forward passes a shard. Raises ValueError (pydantic's).
    """

    rows: Count
    classes: Count
    views: Annotated[tuple[Name, ...], Field(min_length=1)]
    fingerprints: dict[Literal["teacher", "data", "preprocessing", "code"], Name]
    dtype: Literal["float32", "float16"] = "float32"
    precision: Literal["fp32", "bf16"] = "fp32"
    rows_per_shard: Annotated[int, Field(strict=True, ge=0)] = 0

    def __post_init__(self) -> None:
        if len(self.fingerprints) < len(FINGERPRINTS):
            raise ValueError(f"expected the fingerprints {', '.join(FINGERPRINTS)}")
        if not self.rows_per_shard:
            row_bytes = len(self.views) * self.classes * DTYPES[self.dtype].itemsize
            rows = max(1, min(SHARD_BYTES // row_bytes, SHARD_ANSWERS // len(self.views)))
            object.__setattr__(self, "rows_per_shard", rows)

    @property
    def digest(self) -> str:
        """SHA-256 hex of the plan as JSON with sorted keys and no spaces: every shard carries it."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":"))
        return files.sha256([text.encode()])

    @property
    def shards(self) -> list[Shard]:
        """The shards in order, without length and checksum; all but the last have `rows_per_shard` rows."""
        return [
            Shard(f"shard-{number:05d}.safetensors", first, min(self.rows_per_shard, self.rows - first))
            for number, first in enumerate(range(0, self.rows, self.rows_per_shard))
        ]

    def shape(self, shard: Shard) -> tuple[int, int, int]:
        """The shape `[V, n, K]` of a shard's logits."""
        return len(self.views), shard.rows, self.classes

    def record(self, shard: Shard) -> files.Json:
        """The record in a shard's file."""
        return {"plan": self.digest, "first_row": shard.first_row, "rows": shard.rows}

    def difference(self, **requested: object) -> str | None:
        """A sentence on the first of these fields or fingerprints that differs, or None."""
        fields = dataclasses.asdict(self)
        fields |= fields["fingerprints"]
        for name, value in requested.items():
            if value != fields[name]:
                length = 12 if name in FINGERPRINTS else 200
                return f"made from {name} {str(fields[name])[:length]}, this {name} is {str(value)[:length]}"
        return None


class StoreMeta(TypedDict, total=False):
    """Where a store's logits come from, for people and for a student narrowed from their teacher."""

    teacher: Any
    """The teacher's architecture."""
    data: str
    role: str
    input_shape: list[int]
    class_names: list[str]
    dropout_seed: int
    """Of a stochastic copy: the seed of its dropout masks."""


@dataclasses.dataclass(frozen=True)
class VerifyReport:
    """What `LogitStore.verify` looked at. Differences are absolute, in logits; NaN without a model."""

    shards: int
    bytes: int
    rows: int
    max_abs_difference: float
    per_view: dict[str, float]


class LogitStore:
    """A finished store of raw teacher logits. `open` one; `noisyteacher.extract` writes them."""

    def __init__(self, path: Path, plan: Plan, shards: Sequence[Shard], meta: StoreMeta, digest: str) -> None:
        self.path, self.plan, self.shards, self.meta = path, plan, shards, meta
        self.views, self.rows, self.classes, self.dtype = plan.views, plan.rows, plan.classes, plan.dtype
        self.fingerprints = dict(plan.fingerprints)
        self.digest = digest
        """SHA-256 hex of store.json's bytes: names the whole content, as that file holds every shard's checksum."""
        self._blocks: list[Tensor] = []  # [V, n, K] each: memory-mapped shards, or a single tensor in memory

    @classmethod
    def open(cls, path: files.StrPath, verify: bool = True, *, memory_bytes: int | None = None) -> LogitStore:
        """The store in this folder; `verify` reads every byte and compares the checksums.

        A store of up to `memory_bytes` (default: a 32nd of this machine's memory, at least 256 MB) is read into memory,
        a larger one stays memory-mapped. Raises StoreError naming the file when it is missing, unfinished or damaged.
        """
        folder, index = Path(path), Path(path) / INDEX
        if not os.path.isdir(folder):
            raise StoreError(f"{folder}: no logit store here: extract the teacher's logits into it first")
        if not os.path.exists(index):
            raise StoreError(f"{folder}: no {INDEX} in it, so the store is unfinished: extract again (shards are kept)")
        try:
            content = files.read_json(index, KIND, SCHEMA)
            plan = Plan(**{field.name: content[field.name] for field in dataclasses.fields(Plan)})
            shards = [Shard(**record) for record in content["shards"]]
            # Only files that the plan names are opened: a name in store.json could lead out of the folder.
            names = [dataclasses.replace(shard, bytes=0, crc32c="") for shard in shards]
            if len(shards) != -(-plan.rows // plan.rows_per_shard) or plan.shards != names:
                raise StoreError(
                    f"{index}: its shards are not those of rows 0 to {plan.rows - 1} in order: extract again"
                )
            meta = cast("StoreMeta", dict(content["meta"]))
            store = cls(folder, plan, shards, meta, files.sha256([files.read_bytes(index)]))
            store._blocks = [store._map_shard(shard, verify) for shard in shards]
        except FileFormatError as error:
            raise StoreError(str(error)) from error
        except (KeyError, TypeError, ValueError) as error:
            reason = "; ".join(str(error).splitlines()[:3])
            raise StoreError(f"{index}: a key is missing or wrong ({reason}): extract again") from error
        if memory_bytes is None:
            memory_bytes = max(256_000_000, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 32)
        if sum(block.nbytes for block in store._blocks) <= memory_bytes:
            store._blocks = [torch.cat(store._blocks, dim=1)]
        return store

    def __repr__(self) -> str:
        return f"LogitStore({str(self.path)!r}: {len(self.views)} views x {self.rows} rows x {self.classes} classes)"

    def renamed(self, class_names: Sequence[str]) -> LogitStore:
        """The store with its classes called so, in the order in which they stand."""
        store = copy.copy(self)
        store.meta = {**self.meta, "class_names": list(class_names)}
        return store

    def view_indices(self, views: Sequence[str] | str) -> Tensor:
        """The index in `.views` of each of these views, int64 `[V]`. Raises MismatchError for a missing view."""
        names = [views] if isinstance(views, str) else views
        if missing := [name for name in names if name not in self.views]:
            raise MismatchError(
                f"{self.path}: no logits of view {missing[0]!r}, only of {few(self.views)}: extract that view too, or "
                "train without it"
            )
        return torch.tensor([self.views.index(name) for name in names], dtype=torch.int64)

    def logits(self, view: str | Tensor, rows: Tensor) -> Tensor:
        """The teacher's logits float32 `[B, K]` (CPU, a copy) of rows `[B]`, all under one view or each under its own.

        view: a name, or int64 `[B]` of indices into `.views`. Raises MismatchError for a view or row not in the store.
        """
        rows = self._indices("row", rows, self.rows)
        if isinstance(view, str):
            index = int(self.view_indices(view))
            if len(self._blocks) == 1:
                return self._blocks[0][index][rows].float()
            view_index = torch.full_like(rows, index)
        else:
            view_index = self._indices("view", view, len(self.views))
        if view_index.shape != rows.shape:
            raise MismatchError(f"{len(view_index)} views for {len(rows)} rows: pass one view per row, or one name")
        if len(self._blocks) == 1:
            return self._blocks[0][view_index, rows].float()
        logits = torch.empty(len(rows), self.classes, dtype=torch.float32)
        per_shard = self.plan.rows_per_shard
        shard_of_row = rows // per_shard
        for number in torch.unique(shard_of_row).tolist():
            chosen = shard_of_row == number
            logits[chosen] = self._blocks[number][view_index[chosen], rows[chosen] % per_shard].float()
        return logits

    def _indices(self, what: str, indices: Tensor, limit: int) -> Tensor:
        """The indices on the CPU, in 0..limit - 1: a negative one would count from the end."""
        if not isinstance(indices, Tensor) or indices.dtype != torch.int64 or indices.dim() != 1:
            raise MismatchError(f"{what} indices must be an int64 tensor [B], got {type(indices).__name__}: {indices}")
        low, high = (int(bound) for bound in indices.aminmax()) if len(indices) else (0, 0)
        if low < 0 or high >= limit:
            invalid = low if low < 0 else high
            raise MismatchError(f"{self.path}: no {what} {invalid} in this store: it has {what}s 0 to {limit - 1}")
        return indices.cpu()

    def check(self, **fingerprints: str) -> None:
        """Raises MismatchError naming the first fingerprint (`teacher=`, `data=`, ...) that is not the store's,
        UnknownNameError for another name.
        """
        for name in fingerprints.keys() - FINGERPRINTS:
            raise unknown_name("fingerprint", name, FINGERPRINTS)
        if difference := self.plan.difference(**fingerprints):
            raise MismatchError(f"{self.path}: {difference}: use what the store was made from, or extract again")

    def verify(
        self,
        model: nn.Module | None = None,
        split: Split | None = None,
        sample: int = 256,
        seed: int = 0,
        tolerance: float = 1e-3,
    ) -> VerifyReport:
        """Read all checksums again and compare `sample` rows of every view with the model's logits.

        The model runs where it is, in eval mode and in the store's precision; a bare module is wrapped as by `extract`.
        tolerance: absolute, in logits, on top of the store's rounding. Raises StoreError naming the shard, or the view
        and row whose logits differ by more; MismatchError when the split has other rows; UsageError for a model without
        a split or no rows.
        """
        if (model is None) != (split is None) or sample < 1:
            raise UsageError(f"verify needs both the model and the split, or neither, and sample >= 1, got {sample}")
        if model is not None and "dropout_seed" in self.meta:
            raise UsageError(f"{self.path}: made with dropout on, which no second pass repeats: verify without a model")
        for shard in self.shards:
            self._map_shard(shard, verify=True)
        total, largest = sum(shard.bytes for shard in self.shards), dict.fromkeys(self.views, NAN)
        if model is None or split is None:
            return VerifyReport(len(self.shards), total, 0, NAN, largest)
        if len(split) != self.rows:
            raise MismatchError(f"{self.path}: {self.rows} rows in the store, {len(split)} in the split")
        classifier = as_classifier(model)
        rows = torch.randperm(self.rows, generator=generator(seed, "verify-store"))[:sample].sort().values
        largest, problem = self.compare(classifier, split, rows, tolerance)
        if problem:
            raise StoreError(
                f"{problem}: another model, other data, or another precision than the store's {self.plan.precision}"
            )
        return VerifyReport(len(self.shards), total, len(rows), max(largest.values()), largest)

    def compare(
        self,
        model: nn.Module,
        split: Split,
        rows: Tensor,
        tolerance: float,
        relative: float = 0.0,
        views: Sequence[str] | None = None,
    ) -> tuple[dict[str, float], str]:
        """The largest difference, by view, between the model's logits and the stored ones of these rows `[B]`.

        And a sentence on the first row that differs by more than the store's rounding and the tolerance, or "".
        relative: a further tolerance, as a share of the view's largest logit in size. views: all by default.
        """
        largest = {}
        for view in self.views if views is None else views:
            stored = self.logits(view, rows)
            images = (split.images_at(part, view) for part in torch.split(rows, 64))
            logits = torch.cat([self.recompute(model, chunk) for chunk in images])
            difference = (logits - stored).abs().amax(1)
            allowed = tolerance + relative * stored.abs().max() + self.rounding(stored)
            wrong = (~(difference <= allowed)).nonzero().flatten().tolist()  # "not within": a NaN is never beyond
            largest[view] = float(difference.max())
            for row in wrong[:1]:
                return largest, (
                    f"{self.path}: view {view!r}, row {int(rows[row])}: the model's logits are {difference[row]:.3g} "
                    f"away from the stored ones (tolerance {allowed[row]:.2g}; so are {len(wrong)} of {len(rows)} rows)"
                )
        return largest, ""

    def rounding(self, stored: Tensor) -> Tensor:
        """The largest difference that rounding alone makes between stored and exact logits `[B, K]`, per row: `[B]`."""
        return (ROUNDING[self.plan.precision] + DISK_ROUNDING[self.dtype]) * stored.abs().amax(dim=1)

    def recompute(self, model: nn.Module, images: Tensor) -> Tensor:
        """The model's logits for the images, `[B, K]`, in the precision of the stored ones. Raises MismatchError."""
        with inference(model) as device:
            images = images.to(device)
            with channels_last(model, images), precision_context(self.plan.precision, device):
                logits: Tensor = model(images)
        if logits.shape != (len(images), self.classes):
            raise MismatchError(f"{self.path}: {self.classes} classes; the model returned {tuple(logits.shape)}")
        return logits.float().cpu()

    def _map_shard(self, shard: Shard, verify: bool) -> Tensor:
        """The shard's logits `[V, n, K]`, memory-mapped. Raises StoreError unless the file is the shard, whole."""
        file = self.path / shard.file
        size = file.stat().st_size if file.exists() else None
        if size != shard.bytes:
            problem = "missing" if size is None else f"{size} bytes, {shard.bytes} expected: truncated or damaged"
        elif verify and (checksum := files.crc32c(files.read_bytes(file))) != shard.crc32c:
            problem = f"CRC-32C {checksum}, {shard.crc32c} expected: damaged"
        else:
            record, logits = files.unwrap(read_record(file), file, SHARD_KIND, SCHEMA), map_tensors(file).get("logits")
            expected = (self.plan.record(shard), self.plan.shape(shard), DTYPES[self.dtype])
            if logits is not None and (record, logits.shape, logits.dtype) == expected:
                return logits
            problem = "a shard of another store, or of other rows"
        raise StoreError(
            f"{file}: {problem} (rows {shard.first_row} to {shard.first_row + shard.rows - 1}): restore it from a "
            f"copy, or delete it and {INDEX} and extract again (intact shards are kept)"
        )


def unfinished_store(path: files.StrPath, plan: Plan, missing: Sequence[Shard]) -> LogitStore:
    """A store of which only the rows of shards that are not missing can be read; their files are known to be whole."""
    store = LogitStore(Path(path), plan, plan.shards, {}, "")
    store._blocks = [
        torch.empty(0) if shard in missing else map_tensors(store.path / shard.file)["logits"] for shard in plan.shards
    ]
    return store


def check_finite(logits: Tensor, view: str, first_row: int) -> None:
    """Raises StoreError naming view and row unless all logits `[n, K]`, of rows from `first_row` on, are finite."""
    if not bool(torch.isfinite(logits).all()):
        row = int((~torch.isfinite(logits)).any(dim=1).nonzero()[0])
        raise StoreError(
            f"view {view!r}, row {first_row + row}: the teacher's logits ({logits[row].tolist()[:4]} ...) are not "
            "finite: check the teacher's weights, or extract with precision='fp32' and dtype='float32'"
        )


def write_store(
    path: files.StrPath, plan: Plan, blocks_of: BlocksOf, meta: StoreMeta | None = None, *, overwrite: bool = False
) -> LogitStore:
    """Write the shards of a plan that are missing or damaged, then store.json; one process at a time, others wait.

    blocks_of: takes these shards and yields the logits `[V, n, K]` of each; not called for a finished store. Raises
    MismatchError when a finished store of another plan is there, unless `overwrite`; StoreError for logits that are not
    finite (float16 ends at 65504) or do not read back; WriteError when the disk refuses.
    """
    folder, index = Path(path), Path(path) / INDEX
    files.make_folder(folder)
    with files.lock(folder):
        if overwrite:  # store.json first: a store that is being replaced must not pass for a finished one
            files.remove_files(folder, [index])
            files.remove_files(folder, folder.glob(SHARD_FILES))
        elif index.exists():
            store, requested = LogitStore.open(folder), dataclasses.asdict(plan)
            del requested["rows_per_shard"]
            if difference := store.plan.difference(**requested.pop("fingerprints"), **requested):
                raise MismatchError(
                    f"{folder}: a finished store of something else is in it: {difference}; extract into another "
                    "folder, or replace it by --overwrite (in Python overwrite=True)"
                )
            return store
        files.remove_files(folder, [*files.temporary_files(folder, "shard-"), *files.temporary_files(folder, INDEX)])
        complete = {shard: _read_shard(folder, plan, shard) for shard in plan.shards}
        if missing := [shard for shard, record in complete.items() if record is None]:
            with closing(blocks_of(missing)) as blocks:
                for shard, logits in zip(missing, blocks, strict=True):
                    complete[shard] = _write_shard(folder, plan, shard, logits)
        names = {shard.file for shard in complete}
        files.remove_files(folder, [file for file in folder.glob(SHARD_FILES) if file.name not in names])
        shards = [dataclasses.asdict(shard) for shard in complete.values() if shard is not None]
        content = {**dataclasses.asdict(plan), "plan": plan.digest, "shards": shards, "meta": meta or {}}
        files.write_json(index, KIND, SCHEMA, content)
        return LogitStore.open(folder, verify=False)


def _write_shard(folder: Path, plan: Plan, shard: Shard, logits: Tensor) -> Shard:
    file = folder / shard.file
    if logits.shape != plan.shape(shard):
        raise MismatchError(f"{file}: logits {plan.shape(shard)} expected, got {tuple(logits.shape)}")
    logits = logits.detach().to("cpu", DTYPES[plan.dtype])
    for view, logits_of_view in zip(plan.views, logits, strict=True):
        check_finite(logits_of_view, view, shard.first_row)
    write_tensors(file, SHARD_KIND, SCHEMA, {"logits": logits}, plan.record(shard))
    if (complete := _read_shard(folder, plan, shard)) is None:  # store.json vouches for what the disk returns
        raise StoreError(f"{file}: what was written does not read back: the disk is failing, use another one")
    return complete


def _read_shard(folder: Path, plan: Plan, shard: Shard) -> Shard | None:
    """The shard with its length and checksum, if its file is whole and of this plan."""
    try:
        tensors, record = read_tensors(folder / shard.file, SHARD_KIND, SCHEMA)
    except FileFormatError:
        return None
    if record != plan.record(shard) or tensors["logits"].shape != plan.shape(shard):
        return None
    data = files.read_bytes(folder / shard.file)
    return dataclasses.replace(shard, bytes=len(data), crc32c=files.crc32c(data))
