"""The best student handed over: chosen on validation, compared with its teacher, written as files for elsewhere."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from noisyteacher import bench
from noisyteacher.data import Splits
from noisyteacher.errors import NoisyTeacherError, WriteError
from noisyteacher.evaluate import calibrate, evaluate
from noisyteacher.export import FORMATS, Exported, export_all, fake_quantized
from noisyteacher.export.card import BENCH, PREDICT, Provenance, card, predict_script
from noisyteacher.export.hub import CARD, way_to_load
from noisyteacher.io.files import Json, make_folder, read_json, write_bytes
from noisyteacher.models import (
    HUB_WEIGHTS,
    PREFIX,
    Classifier,
    as_classifier,
    model_record,
    pretrained,
    save_model,
    weights_file,
)
from noisyteacher.pipeline.experiment import (
    Experiment,
    Logits,
    StudentTask,
    TrainedModel,
    data_record,
    measure_costs,
    student_spec,
    train_run,
)
from noisyteacher.pipeline.pretrained import is_model_path, run_of, training_settings
from noisyteacher.progress import Watch, stage
from noisyteacher.runs import BEST, WEIGHTS, Run
from noisyteacher.stats import is_within
from noisyteacher.store import INDEX, KIND, SCHEMA
from noisyteacher.text import SPLIT_NAMES, escaped


def choose_best(
    experiment: Experiment, teacher: TrainedModel, trained: Mapping[str, Sequence[TrainedModel]]
) -> tuple[TrainedModel, Json]:
    """The student to hand over, and why: the condition, then the seed, with the lowest validation error.

    Of equals the first: labels alone, then clean logits, then noise. `drop` is what the condition's mean loses compared
    with the teacher, in points of validation accuracy. Test data are not looked at.
    """
    val, allowed = experiment.data.val, experiment.config.target.max_drop
    means = {name: sum(model.val_error for model in models) / len(models) for name, models in trained.items()}
    condition = min(means, key=lambda name: means[name])
    best = min(trained[condition], key=lambda model: model.val_error)
    mean, run = means[condition], os.path.relpath(best.run.path, experiment.run.path)
    drop = mean - teacher.val_error
    within = allowed is None or is_within(drop, allowed)
    scored = "error" if val.labels is not None else "disagreement"
    limit = "" if allowed is None else f", {'within' if within else 'OVER'} the {allowed:g} allowed"
    return best, {
        "by": f"validation {scored}",
        "n": len(val),
        "condition": condition,
        "run": run,
        "folder": BEST,
        "loads": way_to_load(as_classifier(best.model).architecture),
        "val_error_%": best.val_error,
        "mean_val_error_%": mean,
        "teacher_val_error_%": teacher.val_error,
        "drop": drop,
        "max_drop": allowed,
        "holds": within,
        "summary": (
            f"best on validation (n = {len(val):,}): {experiment.titles[condition]}, {mean:.2f} % {scored}, "
            f"{abs(drop):.2f} points {'more' if drop >= 0 else 'less'} than the teacher's{limit}; handed over is {run} "
            f"({best.val_error:.2f} %)"
        ),
    }


def train_twin(
    experiment: Experiment, best: TrainedModel, condition: str, logits: Logits, title: str
) -> tuple[nn.Module, Json]:
    """The best student's fake-quantized twin, trained on for `qat_epochs` in the child run `qat`, and a record of it.

    By the recipe of its condition, without noise, warm-up and frozen layers, in fp32, at a tenth of the rate.
    """
    recipe, data = experiment.recipe(condition), experiment.data
    before: Json = best.run.config["recipe"]
    recipe = replace(
        recipe,
        epochs=recipe.qat_epochs,
        lr=before["lr"] / 10 if recipe.qat_lr is None else recipe.qat_lr,
        optimizer=before["optimizer"],
        batch_size=before["batch_size"],
        warmup_epochs=0.0,
        freeze_epochs=0.0,
        patience=None,
        precision="fp32",
    )
    experiment = experiment.with_recipe(recipe)
    run = replace(experiment.config.run, trace=False, profile=False)
    experiment = replace(experiment, config=replace(experiment.config, run=run))
    seed = best.run.info["seed"] or 0
    with stage(experiment.on_progress, "tracing the student"):
        twin = fake_quantized(best.model, data)
    trained = train_run(student_spec(StudentTask(experiment, "qat", condition, None, seed, logits, title), twin))
    names = {"fp32": best.val_error, "fake-quantized": trained.val_error}
    record = {"run": trained.run.path.name, "epochs": recipe.epochs, "lr": recipe.lr, "n": len(data.val)}
    return trained.model, record | {"val_error_%": names, "seconds": trained.result["training"]["seconds"]}


def write_best(
    experiment: Experiment,
    best: TrainedModel,
    title: str,
    caveats: Sequence[str] = (),
    twin: nn.Module | None = None,
) -> tuple[list[Json], dict[str, str]]:
    """Write the run's folder `best`: the weights, the exported files, a script that runs the ONNX file where there is
    one, and a model card. Returns the records of the files, and by format why it could not be written.

    `title` is that of the stage, `caveats` are sentences for the card. Raises WriteError when the disk refuses.
    """
    run, data, watch = experiment.run, experiment.data, experiment.on_progress
    folder = run.path / BEST
    make_folder(folder, run.path)
    training = model_record(best.run.path / WEIGHTS).get("training", {})
    record = {"training": training, "data": data_record(data), "run": best.run.path.name}
    save_model(best.model, folder / HUB_WEIGHTS, record, within=run.path)
    formats = experiment.config.run.export
    provenance, files = provenance_of(best.run), list[Exported]()
    failed: dict[str, NoisyTeacherError] = {}
    try:
        if formats:
            options: Json = {"on_failure": failed.__setitem__, "twin": twin}
            files = ship(best.model, data, folder, formats, provenance, watch, title, **options)
    except WriteError:
        raise
    except NoisyTeacherError as error:  # of no format in particular: the students are trained all the same
        failed = dict.fromkeys(formats, error) | failed
    if any(file.format == "onnx" for file in files):
        script = predict_script(data.class_names, data.input_shape, data.fit)
        write_bytes(folder / PREDICT, script.encode(), within=folder)
    _write_card(folder, best.model, data, files, provenance, caveats=caveats)
    records = [file.describe() | {"path": os.path.relpath(file.path, run.path)} for file in files]
    return records, {name: str(error) for name, error in failed.items()}


def ship(
    model: nn.Module,
    data: Splits,
    folder: str | os.PathLike[str],
    formats: Sequence[str],
    provenance: Provenance | None = None,
    on_progress: Watch | None = None,
    title: str = "export",
    *,
    licence: str | None = None,
    caveats: Sequence[str] = (),
    **options: Any,
) -> list[Exported]:
    """The files of the model that were written into the folder, one per format, in order; existing ones are replaced.

    formats: different names of `export.FORMATS`; the files are called `model.onnx`, `model-int8.onnx` and so on, `hub`
    is a folder with weights, config and a model card; `bench.py` beside the files times them. provenance, licence,
    caveats: for the card. options: `twin`, `max_difference`, `max_drop`, `threads`, `runs` as in `nt.export`, and
    `on_failure`, called with (format, error) for each format that cannot be written, which is left out. Without it this
    raises what `nt.export` raises; then no file of any format has been written.
    """
    target, paths = Path(folder), {}
    for name in formats:
        suffix = "" if FORMATS[name].precision == "fp32" else f"-{FORMATS[name].precision}"
        paths[name] = target / ("hub" if name == "hub" else f"model{suffix}.{FORMATS[name].kind}")
    if on_progress is not None:
        options["progress"] = partial(on_progress, title)
    files = export_all(model, paths, data=data, **options)
    if any(file.format != "hub" for file in files):
        write_bytes(target / BENCH, Path(bench.__file__).read_bytes())
    if any(file.format == "hub" for file in files):
        _write_card(target / "hub", model, data, files, provenance, licence=licence, caveats=caveats)
    return files


def _write_card(
    folder: Path,
    model: nn.Module,
    data: Splits,
    files: Sequence[Exported],
    provenance: Provenance | None,
    **options: Any,
) -> None:
    """Write the model card, with the model's costs where they can be measured; options: of `card`."""
    classifier = as_classifier(model, classes=data.classes, input_shape=data.input_shape)
    costs, _ = measure_costs(classifier, data, "cpu", "model", latency=False)
    text = card(classifier, data, files, costs, provenance, **options)
    write_bytes(folder / CARD, text.encode(), within=folder)


def calibrated(model: nn.Module, data: Splits) -> tuple[Classifier, str]:
    """`calibrate` on the validation split, and a sentence with the calibration errors before and after."""
    scaled, temperature = calibrate(model, data.val, device="cpu", progress=False)
    changes = []
    for role, split in data.parts.items():
        if role != "train" and split.labels is not None:
            before, after = (evaluate(m, split, device="cpu", progress=False).ece for m in (model, scaled))
            changes.append(f"{before:.2f} to {after:.2f} % on {SPLIT_NAMES[role]} (n = {len(split):,})")
    return scaled, (
        f"the logits are divided by {temperature:.3g}, the temperature with the lowest NLL on validation: expected "
        f"calibration error {', '.join(changes)}"
    )


def provenance_of(where: str | Path | Run) -> Provenance:
    """What the files of a trained model state: its run, its weights file, or the card of a `pretrained:` model.

    Raises FileFormatError for a damaged file; what is missing is left empty.
    """
    if not isinstance(where, Run) and not is_model_path(str(where)):
        return Provenance({})  # a library's network with its own weights
    path = where.path if isinstance(where, Run) else weights_file(where)
    settings = training_settings(path) or {}
    if isinstance(where, str) and where.startswith(PREFIX):
        entry = pretrained()[where.removeprefix(PREFIX)]
        return Provenance(settings, entry["scores"], entry["training"], licence=entry["licence"].lower())
    run = run_of(path)
    if run is None:
        return Provenance(settings)
    result = run.result() or {}
    scores, training = result.get("scores") or {}, result.get("training") or {}
    return Provenance(settings, scores, training, _teacher_words(run), run=run.id)


def _teacher_words(run: Run) -> str:
    """The teacher of a distilled run: its name where its files are near, and its fingerprint."""
    digest = run.info["parents"].get("teacher")
    if not digest:
        return ""
    weights = f"teacher with weights {str(digest)[:12]}"
    try:
        if run.ancestors:
            name = (Run(run.ancestors[-1]).config.get("teacher") or {}).get("name")
        else:
            name = read_json(Path(run.config["store"]) / INDEX, KIND, SCHEMA)["meta"]["teacher"]["name"]
    except (NoisyTeacherError, KeyError, TypeError):  # moved or removed since: the fingerprint still identifies it
        name = None
    if name is None:
        return f"a {weights}"
    name = Path(name).name if os.path.isabs(name) else name  # an absolute path is private
    return f"{escaped(name)} ({weights})"
