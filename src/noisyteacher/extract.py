"""Ask a teacher once for all it has to say about a split, and keep the raw answers in a logit store."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from noisyteacher.data import Split, expand_views
from noisyteacher.device import PRECISIONS, precision_context, resolve_device
from noisyteacher.errors import StoreError, UsageError
from noisyteacher.inference import PROBE_BATCH, channels_last, inference
from noisyteacher.io.files import remove_new_folders_on_error
from noisyteacher.models import as_classifier, code_fingerprint, preprocess_fingerprint, weights_fingerprint
from noisyteacher.progress import counted, reported
from noisyteacher.store import LogitStore, Plan, Shard, StoreWriter, refuse_non_finite
from noisyteacher.text import unknown_name

ON_CPU, ON_GPU = 128, 512
"""Images asked at once: a CPU is fastest where activations stay in its caches, a GPU where it is kept busy."""
UNSTEADY = 0.01
"""How far, in units of 1 + max |logit|, two answers to one image may lie apart: bf16 stays below, dropout does not."""


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
    rows_per_shard: int = 0,
    progress: bool | Callable[[int, int], None] | None = True,
    overwrite: bool = False,
) -> LogitStore:
    """The store of the model's logits for every row of the split under every view, in the folder `path`.

    views: names or families (`"clean,mirror"`, `"crop"`). batch_size: images at once (128 on a CPU, 512 on a GPU).
    precision: of the arithmetic, dtype: on disk. The model is in eval mode meanwhile, its convolutions channels-last,
    and as it was afterwards. progress: True shows on stderr how far it is (a live line in a terminal; elsewhere a line
    every ten seconds, none for what takes under two), False shows nothing, a callable is told (answers there, answers
    in all).
    A finished store of the same model, split and views is returned as it is; an interrupted one is gone on with, and
    with the same batch size on the same machine ends as the same bytes. `overwrite` starts from nothing.
    Raises MismatchError when the model does not fit the split or another store is there, naming the field; StoreError
    for logits that are not finite or change from call to call; WriteError when the disk refuses; UnknownNameError and
    UsageError for a precision, a view or a batch size that is none.
    """
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    names, place = expand_views(views), resolve_device(device)
    if batch_size is None:
        batch_size = ON_GPU if place.type == "cuda" else ON_CPU
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise UsageError(f"batch_size={batch_size!r}: expected a whole number >= 1")
    # Of the model as given: whoever checks the store later has that in hand, not our wrapping of it.
    prints = {
        "teacher": weights_fingerprint(model),
        "data": split.fingerprint,
        "preprocessing": preprocess_fingerprint(model),
        "code": code_fingerprint(model),
    }
    teacher = as_classifier(model, classes=split.classes, input_shape=split.input_shape)
    plan = Plan(len(split), split.classes, names, prints, dtype, precision, rows_per_shard)
    meta = {
        "teacher": teacher.architecture,
        "data": split.name,
        "role": split.role,
        "input_shape": list(split.input_shape),
        "class_names": list(split.class_names),
    }
    with (
        reported(progress, lambda watch: counted(watch, "teacher's logits", "answers")) as tell,
        remove_new_folders_on_error(Path(path)),
        StoreWriter(path, plan, meta, overwrite=overwrite) as writer,
    ):
        missing = writer.missing
        if missing:
            with (
                inference(teacher, place),
                channels_last(teacher, split.first_images(PROBE_BATCH, names[0]).to(place)),
                precision_context(precision, place),
            ):
                total = plan.rows * len(names)
                answered = total - sum(shard.rows for shard in missing) * len(names)
                _check_steady(teacher, split, names[0], missing[0], batch_size, place)
                for shard in missing:
                    block = torch.empty(len(names), shard.rows, plan.classes)
                    for number, view in enumerate(names):
                        for rows in _batches(shard, batch_size):
                            logits = _ask(teacher, split, rows, view, place)
                            refuse_non_finite(logits, view, int(rows[0]))
                            block[number, rows - shard.first_row] = logits
                            answered += len(rows)
                            if tell is not None:
                                tell(answered, total)
                    writer.write(shard, block)
        return writer.finish()


def _batches(shard: Shard, batch_size: int) -> Iterator[Tensor]:
    """The shard's rows in batches that start anew with every shard, so that a resumed run computes the same batches."""
    end = shard.first_row + shard.rows
    for first in range(shard.first_row, end, batch_size):
        yield torch.arange(first, min(first + batch_size, end))


def _ask(teacher: nn.Module, split: Split, rows: Tensor, view: str, place: torch.device) -> Tensor:
    logits: Tensor = teacher(split.images_at(rows, view).to(place))
    return logits.float().cpu()


def _check_steady(
    teacher: nn.Module, split: Split, view: str, shard: Shard, batch_size: int, place: torch.device
) -> None:
    """Raises StoreError when an image's logits depend on the call or on the other images of its batch.

    The first batch is asked whole and its first half alone. Dropout called as a function and batch norm without running
    statistics ignore eval mode: stored logits would be one draw of many, or belong to one composition of the batch.
    """
    rows = next(_batches(shard, batch_size))
    half = rows[: max(1, len(rows) // 2)]
    whole = _ask(teacher, split, rows, view, place)[: len(half)]
    refuse_non_finite(whole, view, shard.first_row)
    apart = float((_ask(teacher, split, half, view, place) - whole).abs().max())
    if not apart <= UNSTEADY * (1 + float(whole.abs().max())):
        raise StoreError(
            f"the teacher's logits for the same images differ by {apart:.3g} between two calls, in eval mode: dropout "
            "called as a function, or batch norm without running statistics; make them obey eval() first"
        )
