"""Writing a logit store shard by shard, so that an interruption costs one shard and leaves nothing half-true."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from noisyteacher.errors import FileFormatError, MismatchError, StoreError, UsageError, WriteError
from noisyteacher.io.files import crc32c, make_folder, read_bytes, sync_folder, write_json
from noisyteacher.io.locks import exclusive_lock
from noisyteacher.io.tensors import read_tensors, write_tensors
from noisyteacher.store.plan import DTYPES, INDEX, KIND, SCHEMA, SHARD_KIND, Plan, Shard, refuse_non_finite
from noisyteacher.store.reader import LogitStore

SHARDS = "shard-[0-9][0-9][0-9][0-9][0-9]*.safetensors"


class StoreWriter:
    """Writes the shards of one plan into a folder, then store.json. Use as a context: one writer at a time works there.

    Entering it looks at what is there: a finished store of this plan leaves nothing `missing`; shards of this plan
    that are intact are kept; anything else is written anew. `meta`: a JSON-able record for people, not compared.
    """

    def __init__(
        self, path: str | os.PathLike[str], plan: Plan, meta: dict[str, Any] | None = None, *, overwrite: bool = False
    ) -> None:
        self.path, self.plan, self.meta, self.overwrite = Path(path), plan, dict(meta or {}), overwrite
        try:
            json.dumps(self.meta, allow_nan=False)  # not after hours of work, when store.json is written
        except (TypeError, ValueError) as error:
            raise UsageError(f"the store's meta record cannot be written as JSON: {error}") from error
        self._done: dict[str, Shard] = {}
        self._finished = False
        self._locks = contextlib.ExitStack()

    def __enter__(self) -> StoreWriter:
        """Raises MismatchError naming the field when a finished store of another plan is there, unless `overwrite`."""
        make_folder(self.path)
        self._locks.enter_context(exclusive_lock(self.path))
        try:
            self._take_stock()
        except BaseException:
            self._locks.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._locks.close()

    @property
    def missing(self) -> tuple[Shard, ...]:
        """The shards still to be written, in order."""
        return tuple(shard for shard in self.plan.shards if shard.file not in self._done)

    def write(self, shard: Shard, logits: Tensor) -> None:
        """Write one shard of `plan.shards`: logits `[V, n, K]`, converted to the plan's dtype, durably.

        Raises MismatchError for another shape, StoreError naming view and row of a logit that is not finite (in the
        plan's dtype: float16 ends at 65504), WriteError when the disk refuses.
        """
        shape = (len(self.plan.views), shard.rows, self.plan.classes)
        if logits.shape != shape:
            raise MismatchError(f"{shard.file}: logits {shape} expected, got {tuple(logits.shape)}")
        stored = logits.detach().to("cpu", DTYPES[self.plan.dtype])
        for view, answers in zip(self.plan.views, stored, strict=True):
            refuse_non_finite(answers, view, shard.first_row)
        file = self.path / shard.file
        write_tensors(file, SHARD_KIND, SCHEMA, {"logits": stored}, self._record(shard))
        # What store.json will vouch for is what the disk gives back, not what we meant to write.
        if not self._keep(shard):
            raise StoreError(f"{file}: what was written does not read back: the disk is failing, use another one")

    def finish(self, verify: bool = False) -> LogitStore:
        """Write store.json, the last file, and open the store. Raises StoreError while shards are missing.

        `verify` as in `LogitStore.open`; every shard has been read back once already.
        """
        if self.missing:
            raise StoreError(f"{self.path}: {len(self.missing)} of {len(self.plan.shards)} shards are not written yet")
        if not self._finished:
            self._remove(file for file in self.path.glob(SHARDS) if file.name not in self._done)
            shards = [asdict(self._done[shard.file]) for shard in self.plan.shards]
            record = {**asdict(self.plan), "plan": self.plan.digest, "shards": shards, "meta": self.meta}
            write_json(self.path / INDEX, KIND, SCHEMA, record)
            self._finished = True
        return LogitStore.open(self.path, verify)

    def _take_stock(self) -> None:
        index = self.path / INDEX
        if self.overwrite:
            # The index goes first: a store that is being replaced must not pass for a finished one.
            self._remove([index])
            self._remove(self.path.glob(SHARDS))
        elif index.exists():
            found = LogitStore.open(self.path)
            sentence = found.plan.difference(self.plan)
            if sentence is not None:
                raise MismatchError(
                    f"{self.path}: there is a finished store of something else in it: {sentence}; extract into another "
                    "folder, or replace it by --overwrite (in Python overwrite=True)"
                )
            self.plan = found.plan
            self._done, self._finished = {shard.file: shard for shard in found.shards}, True
            return
        # Left by a process that was killed while writing; nobody else writes here now.
        self._remove(self.path.glob(".shard-*.tmp"))
        self._remove(self.path.glob(f".{INDEX}.*.tmp"))
        for shard in self.plan.shards:
            self._keep(shard)

    def _keep(self, shard: Shard) -> bool:
        """Whether the shard is on disk whole, of this plan and in its place; then it is noted as done."""
        file = self.path / shard.file
        if not file.is_file():
            return False
        try:
            tensors, record = read_tensors(file, SHARD_KIND, SCHEMA)
        except FileFormatError:
            return False
        logits = tensors.get("logits")
        shape = (len(self.plan.views), shard.rows, self.plan.classes)
        if record != self._record(shard) or logits is None or logits.shape != shape:
            return False
        data = read_bytes(file)
        self._done[shard.file] = replace(shard, bytes=len(data), crc32c=crc32c(data))
        return True

    def _record(self, shard: Shard) -> dict[str, Any]:
        return {"plan": self.plan.digest, "first_row": shard.first_row, "rows": shard.rows}

    def _remove(self, files: Iterator[Path] | list[Path]) -> None:
        for file in list(files):
            try:
                file.unlink(missing_ok=True)
            except OSError as error:
                raise WriteError(f"{file}: cannot be removed: {error.strerror or error}") from error
        sync_folder(self.path)
