"""Store a teacher's raw logits for a split and its views in a logit store."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from noisyteacher.data import Split, check_split, expand_views
from noisyteacher.device import (
    PRECISIONS,
    PROBE_BATCH,
    channels_last,
    check_count,
    inference,
    precision_context,
    resolve_device,
)
from noisyteacher.errors import MismatchError, UsageError
from noisyteacher.io.files import remove_new_folders_on_error, sha256
from noisyteacher.models import as_classifier, code_fingerprint, preprocess_fingerprint, weights_fingerprint
from noisyteacher.progress import counted, reported
from noisyteacher.rng import seeded
from noisyteacher.store import DTYPES, LogitStore, Plan, Shard, StoreMeta, check_finite, unfinished_store, write_store
from noisyteacher.teachers import STEADY, check_steady
from noisyteacher.text import unknown_name

BATCH_SIZES = {"cpu": 128, "cuda": 512}
"""A CPU is fastest when activations stay in its caches, a GPU when it is busy."""
SAMPLE = 8
"""Rows of a store from an earlier call that are compared with the model, under the first view."""


def extract(
    model: nn.Module,
    split: Split,
    path: str | os.PathLike[str],
    *,
    views: str | Sequence[str] = "clean",
    batch_size: int | None = None,
    device: str | torch.device = "auto",
    precision: str = "fp32",
    dtype: str = "float32",
    dropout_seed: int | None = None,
    rows_per_shard: int = 0,
    progress: bool | Callable[[int, int], None] | None = True,
    overwrite: bool = False,
) -> LogitStore:
    """The store of the model's logits for every row of the split under every view, in the folder `path`.

    views: names or families (`"clean,mirror"`, `"crop"`). batch_size: images per forward pass (128 on a CPU, 512 on a
    GPU). precision: of the arithmetic; dtype: on disk. progress: True reports on stderr, a function is called with
    (done, total). dropout_seed: keep dropout on, all else in eval mode, with masks drawn by this seed for every batch
    of images: one stochastic copy of a fickle teacher (Arani, Sarfraz & Zonooz 2021); a student draws from several by
    `distil([copy_0, copy_1, ...], combine="pick-row")`, or `"pick"`. A finished store of the same model, split and
    views is returned as it is; an interrupted one is continued and ends as the same bytes, unless `overwrite`. Of both
    SAMPLE rows are compared with the model's logits, unless there is a dropout_seed.
    Raises UsageError for invalid settings and for a dropout_seed without dropout layers, MismatchError when the model
    does not fit the split, another store is there or the sample differs, StoreError for logits that are not finite or
    change from call to call, WriteError when the disk refuses.
    """
    for what, name, choices in (("precision", precision, PRECISIONS), ("dtype of a logit store", dtype, DTYPES)):
        if name not in choices:
            raise unknown_name(what, name, choices)
    check_split(split)
    names, target = expand_views(views), resolve_device(device)
    size = BATCH_SIZES.get(target.type, 128) if batch_size is None else batch_size
    check_count("batch_size", size)
    check_count("rows_per_shard", rows_per_shard, 0)
    fingerprints = {  # of the model as passed in, which is what a later `check` of the store compares
        "teacher": weights_fingerprint(model),
        "data": split.fingerprint,
        "preprocessing": preprocess_fingerprint(model),
        "code": code_fingerprint(model),
    }
    teacher = as_classifier(model, classes=split.classes, input_shape=split.input_shape)
    dropout = [layer for layer in teacher.modules() if isinstance(layer, _DropoutNd) and layer.p]
    if dropout_seed is not None:
        if type(dropout_seed) is not int or not dropout:
            raise UsageError(
                f"dropout_seed={dropout_seed!r} for a teacher with {len(dropout)} dropout layer(s): expected a whole "
                "number, and a teacher that was trained with dropout; without one leave it out"
            )
        fingerprints["code"] = sha256([f"{fingerprints['code']} dropout {dropout_seed}".encode()])
    plan = Plan(len(split), split.classes, names, fingerprints, dtype, precision, rows_per_shard)  # type: ignore[arg-type]
    meta: StoreMeta = {
        "teacher": dict(teacher.architecture),
        "data": split.name,
        "role": split.role,
        "input_shape": list(split.input_shape),
        "class_names": list(split.class_names),
    }
    if dropout_seed is not None:
        meta["dropout_seed"] = dropout_seed

    def logits_of(rows: Tensor, view: str) -> Tensor:
        masks = nullcontext() if dropout_seed is None else seeded(dropout_seed, "dropout copy", view, int(rows[0]))
        with masks:
            logits: Tensor = teacher(split.images_at(rows, view).to(target)).float().cpu()
        check_finite(logits, view, int(rows[0]))
        return logits

    computed: list[Shard] = []

    def compare(store: LogitStore, rows: Tensor) -> None:
        if dropout_seed is None and len(rows):
            sample = rows[torch.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).long()]
            allowed = STEADY if precision == "bf16" else 1e-3
            with inference(teacher, target):
                _, problem = store.compare(teacher, split, sample, allowed, relative=allowed, views=names[:1])
            if problem:
                raise MismatchError(
                    f"{problem}, although weights and code are those that the store was made from: the model has "
                    "changed in something else, an attribute for instance, or this device computes otherwise: replace "
                    "the store by --overwrite (in Python overwrite=True), or extract into another folder"
                )

    def blocks_of(missing: Sequence[Shard]) -> Generator[Tensor]:
        computed.extend(missing)
        kept = [shard.row_numbers for shard in plan.shards if shard not in missing]
        compare(unfinished_store(path, plan, missing), torch.cat([torch.empty(0, dtype=torch.int64), *kept]))
        total = plan.rows * len(names)
        done = total - sum(shard.rows for shard in missing) * len(names)
        with (
            inference(teacher, target),
            channels_last(teacher, split.first_images(PROBE_BATCH, names[0]).to(target)),
            precision_context(precision, target),
        ):
            if dropout_seed is None:
                check_steady(lambda rows: logits_of(rows, names[0]), missing[0].row_numbers[:size])
            else:
                for layer in dropout:
                    layer.train()
            for shard in missing:
                block = torch.empty(plan.shape(shard), dtype=torch.float32)
                for number, view in enumerate(names):
                    # Batches start anew in every shard, so that a resumed run computes the same ones.
                    for rows in torch.split(shard.row_numbers, size):
                        block[number, rows - shard.first_row] = logits_of(rows, view)
                        done += len(rows)
                        if report is not None:
                            report(done, total)
                yield block

    with (
        reported(progress, lambda watch: counted(watch, "teacher's logits", "answers")) as report,
        remove_new_folders_on_error(Path(path)),
    ):
        store = write_store(path, plan, blocks_of, meta, overwrite=overwrite)
    if not computed:
        compare(store, torch.arange(store.rows))
    return store
