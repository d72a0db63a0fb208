"""What accompanies exported files: the model card in Markdown, and a script that runs the ONNX file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from noisyteacher.data import Splits
from noisyteacher.data.builtin import CIFAR_CLASSES, DIGITS
from noisyteacher.export.hub import way_to_load
from noisyteacher.export.outcome import Exported, table
from noisyteacher.measure import Costs
from noisyteacher.models import HUB_WEIGHTS, Classifier
from noisyteacher.stats import binomial_interval
from noisyteacher.text import count, duration, escaped, few, sentence, size_bytes, value_words

PREDICT, BENCH = "predict.py", "bench.py"
ON_THE_HUB = {
    ("mnist", "scale", DIGITS): "ylecun/mnist",
    ("mnist-5k", "scale", DIGITS): "ylecun/mnist",
    ("cifar10", "pixel-mean", CIFAR_CLASSES): "uoft-cs/cifar10",
    ("svhn", "local-contrast", DIGITS): "ufldl-stanford/svhn",
}
"""Name, preprocessing and classes of data sets here (a user's of the same name differ in these) and the name on the
hub, which refuses cards with names that it does not know."""
KEYS = ("epochs", "batch_size", "optimizer", "lr", "schedule", "weight_decay", "momentum", "views", "precision", "seed")
"""Settings of a training that a card lists."""
SCORES = (("accuracy", ".2f"), ("nll", ".4g"), ("ece", ".2f"), ("agreement", ".2f"))
Record = Mapping[str, Any]
FILES = FileSystemLoader(Path(__file__).with_name("templates"))
TEMPLATES = Environment(loader=FILES, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
TEMPLATES.filters.update(size=size_bytes, count=count, duration=duration, sigma=value_words)
TEMPLATES.filters["md"] = lambda value: escaped(str(value))


@dataclass(frozen=True)
class Provenance:
    """Where a model comes from, as far as its files state it."""

    settings: Record = field(default_factory=dict)
    """`training.settings` of its weights file."""
    scores: Record = field(default_factory=dict)
    """By role, as in result.json."""
    training: Record = field(default_factory=dict)
    """Seconds, best epoch, device, threads."""
    teacher: str = ""
    """What it was distilled from, in words."""
    licence: str = ""
    run: str = ""
    """The run's id."""


def card(
    model: Classifier,
    data: Splits,
    files: Sequence[Exported],
    costs: Costs | None,
    provenance: Provenance | None = None,
    licence: str | None = None,
    *,
    caveats: Sequence[str] = (),
) -> str:
    """The card of a model in Markdown: origin, data, recipe, numbers, costs, formats, use, limits.

    `caveats` are sentences on the numbers; `costs` is None where they could not be measured.
    """
    provenance = provenance or Provenance()
    settings = provenance.settings
    return TEMPLATES.get_template("card.md").render(
        model=model,
        data=data,
        files=files,
        costs=costs,
        provenance=provenance,
        table=table(files),
        licence=licence or provenance.licence,
        caveats=[sentence(caveat) for caveat in caveats],
        hub_data=ON_THE_HUB.get((data.name, data.preprocess, tuple(data.class_names))),
        objective=settings.get("objective") or {},
        class_names=few(data.class_names, 1000),
        shape=model.input_shape or data.input_shape,
        recipe=", ".join(f"{key} {_short(settings[key])}" for key in KEYS if settings.get(key) is not None),
        score_rows=[_score_row(role, scores) for role, scores in provenance.scores.items()],
        loads=way_to_load(model.architecture),
        weights=HUB_WEIGHTS,
    )


def _score_row(role: str, scores: Record) -> list[str]:
    n = next((score["n"] for score in scores.values() if isinstance(score, Mapping)), 0)
    error, interval = "-", "-"
    if "error" in scores:
        low, high = binomial_interval(round(scores["error"]["value"] * n / 100), n)
        error, interval = f"{scores['error']['value']:.2f}", f"{low:.2f} to {high:.2f}"
    numbers = [format(scores[name]["value"], digits) if name in scores else "-" for name, digits in SCORES]
    return [role, f"{n:,}", error, interval, *numbers]


def _short(value: object) -> str:
    if isinstance(value, list):
        return "/".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) and math.isfinite(value) else str(value)


def predict_script(class_names: Sequence[str], input_shape: Sequence[int], fit: str = "squash") -> str:
    """A Python script that runs `model.onnx` or `model-int8.onnx` beside it with onnxruntime and numpy.

    `input_shape` is (channels, height, width), `fit` how pictures are brought to it (data.images.FITS). Names are
    written as ASCII literals, whatever is in them.
    """
    channels, height, width = input_shape
    classes = ascii([str(name) for name in class_names])
    return TEMPLATES.get_template("predict.py.jinja").render(classes=classes, shape=(height, width, channels), fit=fit)
