"""A trained model made ready to leave: its files for other runtimes, and a folder for the hub with its card."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from torch import nn

from noisyteacher.data import Splits
from noisyteacher.errors import NoisyTeacherError, UsageError
from noisyteacher.export import FORMATS, Exported, export_all, refuse_names
from noisyteacher.export.exporting import MAX_DROP
from noisyteacher.export.hub import CARD
from noisyteacher.io.files import write_bytes
from noisyteacher.measure import Costs, measure
from noisyteacher.models import as_classifier
from noisyteacher.pipeline.card import Loader, Story, card, story_of
from noisyteacher.progress import Watch
from noisyteacher.runs import Run

HUB = "hub"


def shipped_name(form: str) -> str:
    """What a format's file is called: `shipped_name("onnx-int8") == "model-int8.onnx"`; `hub` is a folder."""
    if form == HUB:
        return HUB
    kind = FORMATS[form]
    return f"model{'' if kind.precision == 'fp32' else f'-{kind.precision}'}.{kind.kind}"


def ship(
    model: nn.Module,
    data: Splits,
    folder: str | os.PathLike[str],
    formats: Sequence[str],
    run: Run | None = None,
    watch: Watch | None = None,
    *,
    story: Story | None = None,
    licence: str | None = None,
    max_difference: float | None = None,
    max_drop: float = MAX_DROP,
    threads: int | None = None,
    runs: int = 50,
    on_failure: Callable[[str, NoisyTeacherError], None] | None = None,
    caveats: Sequence[str] = (),
) -> list[Exported]:
    """The model in every one of the formats, in their order, in the folder; files that are there are replaced.

    formats: names of `export.FORMATS`; the files are called `model.onnx`, `model-int8.onnx`, `model.pt2`, `model.pte`,
    `model-int8.pte` and `hub`, a folder with weights, config and a model card. run: the run that trained the model; the
    card tells its numbers (`story` where there is no run). licence, caveats (sentences): for the card. The rest as in
    `nt.export`.
    on_failure: told (format, error) of each format that cannot be written, which is left out. Without it this raises
    what `nt.export` raises; then no file of any format has been written.
    """
    if not formats:
        raise UsageError(f"no format was named: choose from {', '.join(FORMATS)}")
    refuse_names(formats)
    place = Path(folder)
    told = story or (story_of(run) if run is not None else None)
    made = export_all(
        model,
        {form: place / shipped_name(form) for form in formats},
        data=data,
        max_difference=max_difference,
        max_drop=max_drop,
        threads=threads,
        runs=runs,
        progress=None if watch is None else lambda done, total, note: watch("export", done, total, note),
        on_failure=on_failure,
    )
    if any(one.format == HUB for one in made):
        text = card_for(model, data, made, told, licence=licence, loader="from_pretrained", caveats=caveats)
        write_bytes(place / HUB / CARD, text.encode())
    return made


def card_for(
    model: nn.Module,
    data: Splits,
    made: Sequence[Exported],
    story: Story | None,
    *,
    loader: Loader,
    licence: str | None = None,
    caveats: Sequence[str] = (),
) -> str:
    """The model card in Markdown, with the model's costs where they can be measured."""
    whole = as_classifier(model, classes=data.classes, input_shape=data.input_shape)
    costs: Costs | None = None
    with suppress(Exception):  # networks are others', and a card without costs is a card all the same
        costs = measure(whole, latency=False, device="cpu")
    return card(whole, data, made, costs, story, licence, loader=loader, caveats=caveats)
