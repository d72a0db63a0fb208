"""The model card: what a stranger must know before using the weights, in Markdown with the front matter of the hub."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from noisyteacher.data import Splits
from noisyteacher.errors import NoisyTeacherError
from noisyteacher.export import Exported, notes, table
from noisyteacher.io.files import read_json
from noisyteacher.measure import Costs
from noisyteacher.models import HUB_WEIGHTS, PREFIX, Classifier, model_record, pretrained, weights_file
from noisyteacher.pipeline.loading import way_to_load
from noisyteacher.pipeline.steps import run_of, weights_of
from noisyteacher.runs import Run
from noisyteacher.stats import binomial_interval
from noisyteacher.store.plan import INDEX, KIND, SCHEMA
from noisyteacher.text import count, duration, escaped, few, sentence, sigma_words, size_bytes

ON_THE_HUB = {
    "mnist": "ylecun/mnist",
    "mnist-5k": "ylecun/mnist",
    "cifar10": "uoft-cs/cifar10",
    "svhn": "ufldl-stanford/svhn",
}
"""Names of data sets here and on the hub, which refuses cards with names that it does not know."""
RECIPE = (
    "epochs",
    "batch_size",
    "optimizer",
    "lr",
    "schedule",
    "weight_decay",
    "momentum",
    "views",
    "precision",
    "seed",
)


@dataclass(frozen=True)
class Story:
    """What is known of how a model came to be; empty where nothing is."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """`training.settings` of its weights file."""
    scores: Mapping[str, Any] = field(default_factory=dict)
    """By role, as in result.json."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Seconds, best epoch, device, threads."""
    teacher: str = ""
    """What it was distilled from, in words."""
    licence: str = ""
    run: str = ""
    """The run's id."""


def story_of(where: str | Path | Run) -> Story:
    """What the files of a trained model tell: its run, its weights file, or the card of a `pretrained:` one.

    Raises FileFormatError for a damaged file; what is merely not there is left empty.
    """
    path = where.path if isinstance(where, Run) else weights_file(where)
    settings = model_record(weights_of(path)).get("training", {}).get("settings", {})
    if isinstance(where, str) and where.startswith(PREFIX):
        known = pretrained()[where.removeprefix(PREFIX)]
        return Story(settings, known["scores"], known["training"], licence=known["licence"].lower())
    run = run_of(path)
    if run is None:
        return Story(settings)
    result = run.result() or {}
    return Story(settings, result.get("scores") or {}, result.get("training") or {}, _teacher(run), run=run.id)


Loader = Literal["from_pretrained", "load_model"]
"""What loads the folder that a card lies in: that of the hub, or a compression's `best`."""


def card(
    model: Classifier,
    data: Splits,
    made: Sequence[Exported],
    costs: Costs | None,
    story: Story | None = None,
    licence: str | None = None,
    *,
    loader: Loader = "from_pretrained",
    caveats: Sequence[str] = (),
) -> str:
    """The card of a model in Markdown: origin, data, recipe, numbers, costs, formats, use, limits.

    `caveats` are sentences on the numbers; `costs` is None where they could not be measured.
    """
    story = story or Story()
    stated = licence or story.licence
    body = [
        *_front_matter(data, story, stated),
        f"# {escaped(model.name)} for {escaped(data.name)}",
        "",
        *_origin(data, story, 20 if loader == "from_pretrained" else 1000),
        *_numbers(made, story),
        *(line for caveat in caveats for line in (f"**Note:** {escaped(sentence(caveat))}", "")),
        *_costs(costs, made, story),
        *_files(made),
        *_use(model, loader),
        *_limits(data, story, stated),
    ]
    return "\n".join(body) + "\n"


def _front_matter(data: Splits, story: Story, licence: str) -> Iterator[str]:
    """YAML; every value is written as JSON, which YAML reads alike whatever is in it."""
    yield "---"
    yield f"license: {json.dumps(licence or 'unknown')}"
    yield "library_name: noisyteacher"
    yield "pipeline_tag: image-classification"
    tags = ["image-classification", "pytorch", *(["knowledge-distillation"] if _distilled(story) else [])]
    yield f"tags: {json.dumps(tags)}"
    if data.name in ON_THE_HUB:
        yield f"datasets: {json.dumps([ON_THE_HUB[data.name]])}"
    yield 'metrics: ["accuracy"]'
    yield "---"
    yield ""


def _origin(data: Splits, story: Story, most: int) -> Iterator[str]:
    shape = " x ".join(map(str, data.input_shape))
    yield f"An image classifier: uint8 images of {shape} (channels, height, width; pixels 0 to 255) to logits of"
    yield f"{data.classes} classes: {escaped(few(data.class_names, most))}. Its preprocessing is part of it."
    yield ""
    yield "## Where it comes from"
    yield ""
    objective = story.settings.get("objective") or {}
    if _distilled(story):
        loss = escaped(str(objective.get("loss")).replace("_", " "))
        yield f"- Distilled from {story.teacher or 'a teacher'} by {loss}"
        noise = objective.get("noise")
        yield f"  {_noise(noise)}." if noise else "  on clean logits."
    elif objective.get("objective") == "supervised":
        yield "- Trained on labels alone."
    else:
        yield "- How it was trained is not recorded in its files."
    sizes = ", ".join(f"{role} {len(split):,}" for role, split in data.parts.items())
    yield f"- Data: {escaped(data.name)} ({sizes} images; validation split {data.val.fingerprint[:12]})."
    if data.note:
        yield f"- {escaped(data.note)}"
    recipe = [f"{key} {_plain(story.settings[key])}" for key in RECIPE if story.settings.get(key) is not None]
    if recipe:
        yield f"- Recipe: {escaped(', '.join(recipe))}."
    if story.run:
        yield f"- Run: {escaped(story.run)}."
    yield ""


def _numbers(made: Sequence[Exported], story: Story) -> Iterator[str]:
    yield "## Numbers"
    yield ""
    if story.scores:
        yield "| split | n | error % | 95 % interval | accuracy % | NLL, nats | ECE % | agreement with the teacher % |"
        yield "|---|--:|--:|--:|--:|--:|--:|--:|"
        for role, scores in story.scores.items():
            yield _score_row(role, scores)
        yield ""
        yield "Epochs and noise are chosen on validation; test is looked at once, when the weights are fixed. Intervals"
        yield "are Wilson's, of one run from its n images."
    elif made and made[0].torch_accuracy is not None:
        first = made[0]
        yield f"Accuracy {first.torch_accuracy:.2f} % on {escaped(first.checked_on)}, n = {first.n:,} images."
    else:
        yield "No labelled images were given: nothing is claimed of its accuracy."
    yield ""


def _score_row(role: str, scores: Mapping[str, Any]) -> str:
    def value(name: str, shown: str = ".2f") -> str:
        return format(scores[name]["value"], shown) if name in scores else "-"

    error = scores.get("error")
    span, n = "-", next((one["n"] for one in scores.values() if isinstance(one, Mapping)), 0)
    if error:
        low, high = binomial_interval(round(error["value"] * n / 100), n)
        span = f"{low:.2f} to {high:.2f}"
    cells = (
        role, f"{n:,}", value("error"), span, value("accuracy"), value("nll", ".4g"), value("ece"), value("agreement"),
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _costs(costs: Costs | None, made: Sequence[Exported], story: Story) -> Iterator[str]:
    yield "## Costs"
    yield ""
    if costs is None:
        yield "- Parameters and MACs could not be measured."
    else:
        bound = "at least " if costs.unsupported else ""
        yield f"- {costs.parameters:,} parameters; {size_bytes(costs.bytes)} of weights."
        yield f"- MACs per image: {bound}{count(costs.macs)} (convolutions and matrix products, biases not counted)."
    if made:
        took = made[0].torch_latency_ms
        conditions = f"median of {took.runs}, batch {took.batch}, {took.threads} thread(s), {took.device}"
        yield f"- {took.median:.3f} ms a call in torch ({conditions})."
    if story.training.get("seconds"):
        where = f"{story.training.get('device', '')}, {story.training.get('threads', '?')} thread(s)"
        yield f"- Training took {duration(float(story.training['seconds']))} ({escaped(where)})."
    yield ""


def _files(made: Sequence[Exported]) -> Iterator[str]:
    """The table of all formats, each as its own runtime ran it; nothing where there are none."""
    if not made:
        return
    headers, rows = table(made)
    yield "## Formats it was written in"
    yield ""
    yield f"| {' | '.join(headers)} |"
    yield "|---|---|" + "--:|" * (len(headers) - 3) + "---|"
    yield from (f"| {' | '.join(row)} |" for row in rows)
    yield ""
    yield from (escaped(note) for note in notes(made))
    yield ""


def _use(model: Classifier, loader: Loader) -> Iterator[str]:
    shape = model.input_shape
    loads = way_to_load(model.architecture)
    trusted = ", allow_import=True" if loads == "import" else ""
    yield "## How to run it"
    yield ""
    yield "```python"
    yield "import torch"
    yield "import noisyteacher as nt"
    yield ""
    if loads == "module":
        yield "from noisyteacher.models import load_weights"
        yield "model = nt.build_model(YOUR_NETWORK, DATA)  # the module and the data it was trained with"
        yield f'load_weights(model, "FOLDER/{HUB_WEIGHTS}")  # this folder'
    else:
        yield f'model = nt.{loader}("FOLDER"{trusted})  # this folder'
    yield f"images = torch.zeros((1, {', '.join(map(str, shape or ()))}), dtype=torch.uint8)  # your pixels, 0 to 255"
    order = "config.json" if loader == "from_pretrained" else "the classes above"
    yield f"print(model(images).argmax(1))  # class numbers, in the order of {order}"
    yield "```"
    yield ""


def _limits(data: Splits, story: Story, licence: str) -> Iterator[str]:
    yield "## Limits"
    yield ""
    yield f"- Its numbers hold for images like those of {escaped(data.name)}; nothing is known of others, of shifts in"
    yield "  lighting or camera, or of images that show none of the classes: it names one of them all the same."
    yield "- One training run with one seed; another seed may differ by more than the interval above."
    yield "- Confidences are as calibrated as ECE says, and no better."
    if not licence:
        yield "- No licence was stated for these weights: set `license` at the top before you publish them."


def _distilled(story: Story) -> bool:
    return (story.settings.get("objective") or {}).get("objective") == "distil"


def _noise(noise: Mapping[str, Any]) -> str:
    return escaped(
        f"under {noise.get('kind')} {noise.get('distribution')} noise of sigma {sigma_words(noise['sigma'])} on the "
        f"{noise.get('target')}'s logits, alpha {noise.get('alpha')}, one draw a {noise.get('draw')}"
    )


def _teacher(run: Run) -> str:
    """The teacher of a distilled run in words: name and error where its files are near, else its fingerprint alone."""
    digest = run.info["parents"].get("teacher")
    if not digest:
        return ""
    words = f"a teacher with weights {str(digest)[:12]}"
    try:
        if run.around:
            whole = Run(run.around[-1])
            named = whole.config.get("teacher")
            scores = (Run(whole.path / "teacher").result() or {}).get("scores") or {}
            error = next((scores[role]["error"] for role in ("test", "val") if "error" in scores.get(role, {})), None)
            told = "" if error is None else f", error {error['value']:.2f} % (n = {error['n']:,})"
            return f"{escaped(str(named['name']))} ({words[2:]}{told})" if named else words + told
        store = read_json(Path(run.config["store"]) / INDEX, KIND, SCHEMA)
        return f"{escaped(str(store['meta']['teacher']['name']))} ({words[2:]})"
    except (NoisyTeacherError, KeyError, TypeError):  # moved or removed since: the fingerprint still names it
        return words


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return "/".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) and math.isfinite(value) else str(value)
