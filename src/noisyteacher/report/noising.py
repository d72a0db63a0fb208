"""The noise as a picture: a few stored logits before and after the run's own noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from noisyteacher.errors import NoisyTeacherError
from noisyteacher.report.drawing import COLOURS, draw, legend, whole_numbers
from noisyteacher.report.figures import Figure
from noisyteacher.report.study import Study
from noisyteacher.text import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas
    from torch import Tensor

    from noisyteacher.noise import Noise
    from noisyteacher.store import LogitStore

MOST = 20
"""Logits of so many classes are shown of a sample."""
SAMPLES = 4


def picture(name: str, study: Study) -> Figure | str:
    """The logits of a few training samples before and after the run's own noise; else a sentence on why not."""
    if not study.noise:
        return f"The noise is not pictured: {'no noise was used' if study.state == 'done' else 'the run is not done'}."
    try:
        store = _store(study)
        from noisyteacher.noise import Noise

        settings = {key: value for key, value in study.noise.items() if key in Noise.__dataclass_fields__}
        noise = Noise(**settings)
        found = _perturbed(study, noise, store)
    except (NoisyTeacherError, TypeError, OSError) as error:
        return f"The noise is not pictured: {error}."
    rows, before, after, selected, step = found

    def paint(figure: Canvas) -> None:
        grid = figure.subplots(2, 2, sharey=True)
        for place, axes in enumerate(grid.flat):
            if place < len(rows):
                _sample(axes, before[place], after[place], rows[place], place == 0)
        for axes in grid[:, 0]:
            axes.set_ylabel("logit")
        for axes in grid[1]:
            axes.set_xlabel("class" if len(before[0]) <= MOST else "class, by its logit")
        legend(figure, grid[0][0])

    data = store.meta.get("data") or study.data
    share = f"{selected} of the {step} samples of this batch were perturbed"
    told = ", ".join(f"{key} {_value(value)}" for key, value in settings.items())
    caption = (
        f"The noise itself: logits of {len(rows)} training samples of {data} before and after one draw of the "
        f"run's noise ({told}; seed {study.noise_seed}). {share}"
        + ("; the last shown is one that was not" if _unselected(before, after) else "")
        + ("; at the full strength of its schedule" if settings.get("schedule", "constant") != "constant" else "")
        + "."
        + (
            " The run perturbed the student's logits; the teacher's stand in for them here."
            if settings.get("target") == "student"
            else ""
        )
        + (f" Of {store.classes} classes the {MOST} with the largest logits." if store.classes > MOST else "")
    )
    alt = f"Logits of {len(rows)} samples before and after noise of {told}; {share}"
    return Figure(draw(name, 300, shown(alt), paint), shown(caption))


def _store(study: Study) -> LogitStore:
    """The store that the student learned from. Raises StoreError or UsageError with the reason."""
    from noisyteacher.errors import StoreError
    from noisyteacher.store import LogitStore

    for path in study.stores:
        if study.store_digest is None:
            break
        opened = LogitStore.open(path)
        if opened.digest == study.store_digest:
            return opened
    if study.store_digest is None:
        raise StoreError("no run under noise in it names the logits it learned from")
    raise StoreError("the teacher's stored logits are not there any more, or have changed since")


def _perturbed(
    study: Study, noise: Noise, store: LogitStore
) -> tuple[list[int], list[list[float]], list[list[float]], int, int]:
    """Rows, logits before and after, how many of the batch were selected, and the batch's size.

    The draw is that of the run's first step (seed, "noise", 0), applied to the first rows of the store: the run itself
    shuffled its rows.
    """
    import torch

    from noisyteacher.noise import perturb, sample_unit_noise
    from noisyteacher.rng import stream

    batch = min(study.batch_size, store.rows)
    logits = store.logits(store.views[0], torch.arange(batch))
    unit_noise = sample_unit_noise(
        noise.draw, noise.distribution, batch, store.classes, stream(study.noise_seed, "noise", 0)
    )
    noisy = perturb(logits, sigma=noise.sigma, alpha=noise.alpha, kind=noise.kind, unit_noise=unit_noise)
    chosen = unit_noise.selected(noise.alpha).squeeze(1)
    yes, no = chosen.nonzero().flatten().tolist(), (~chosen).nonzero().flatten().tolist()
    rows = (yes[: SAMPLES - 1] + no[:1] if no else yes[:SAMPLES]) if yes else no[:SAMPLES]
    before, after = [], []
    for row in rows:
        order = _order(logits[row])
        before.append(logits[row][order].tolist())
        after.append(noisy[row][order].tolist())
    return rows, before, after, len(yes), batch


def _order(logits: Tensor) -> Tensor:
    """Which classes are shown: all in order, or of many the largest logits first."""
    import torch

    if len(logits) <= MOST:
        return torch.arange(len(logits))
    return logits.argsort(descending=True, stable=True)[:MOST]


def _sample(axes: Axes, before: Sequence[float], after: Sequence[float], row: int, named: bool) -> None:
    places = range(len(before))
    axes.axhline(0, color=COLOURS["muted"], linewidth=0.8)
    for place, old, new in zip(places, before, after, strict=True):
        axes.plot([place, place], [old, new], color=COLOURS["noisy"], linewidth=1)
    axes.plot(places, before, "o", color=COLOURS["teacher"], markersize=4.5, markerfacecolor="none",
              label="teacher" if named else None)  # fmt: skip
    axes.plot(places, after, "o", color=COLOURS["noisy"], markersize=3.2, label="after noise" if named else None)
    changed = list(before) != list(after)
    axes.set_title(f"row {row}" + ("" if changed else ", not selected"), loc="left", color=COLOURS["muted"])
    axes.grid(visible=False, axis="x")
    whole_numbers(axes)


def _unselected(before: Sequence[Sequence[float]], after: Sequence[Sequence[float]]) -> bool:
    return len(before) > 1 and list(before[-1]) == list(after[-1]) and list(before[0]) != list(after[0])


def _value(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return "..".join(map(_value, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
