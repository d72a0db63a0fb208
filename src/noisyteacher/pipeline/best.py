"""The one student that is handed over: best on validation, held against its teacher, written as files that run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from noisyteacher.errors import NoisyTeacherError, WriteError
from noisyteacher.export import Exported
from noisyteacher.export.hub import CARD
from noisyteacher.io.files import make_folder, write_bytes
from noisyteacher.models import HUB_WEIGHTS, as_classifier, model_record, save_model
from noisyteacher.pipeline.card import story_of
from noisyteacher.pipeline.conditions import titles_of
from noisyteacher.pipeline.loading import way_to_load
from noisyteacher.pipeline.plan import Plan, data_record
from noisyteacher.pipeline.predict_script import PREDICT, predict_script
from noisyteacher.pipeline.shipping import card_for, ship
from noisyteacher.pipeline.steps import lost
from noisyteacher.pipeline.training import Trained
from noisyteacher.progress import Watch
from noisyteacher.runs import BEST
from noisyteacher.train import WEIGHTS


def best_student(
    plan: Plan, teacher: Trained, trained: Mapping[str, Sequence[Trained]]
) -> tuple[Trained, dict[str, Any]]:
    """The student to hand over, and on what grounds: the condition, then the seed, with the lowest validation error.

    Of equals the first: labels alone, then clean logits, then noise. `drop` is what the condition's mean loses against
    the teacher, in points of validation accuracy. Test data are not looked at.
    """
    means = {name: sum(map(_error, found)) / len(found) for name, found in trained.items()}
    condition = min(means, key=lambda name: means[name])
    best = min(trained[condition], key=_error)
    drop = means[condition] - _error(teacher)
    scored = "error" if plan.data.val.labels is not None else "disagreement"
    allowed = plan.config.target.max_drop
    record = {
        "by": f"validation {scored}",
        "n": len(plan.data.val),
        "condition": condition,
        "run": os.path.relpath(best.run.path, plan.run.path),
        "folder": BEST,
        "loads": way_to_load(as_classifier(best.model).architecture),
        "val_error_%": _error(best),
        "mean_val_error_%": means[condition],
        "teacher_val_error_%": _error(teacher),
        "drop": drop,
        "max_drop": allowed,
        "holds": allowed is None or drop <= allowed,
        "files": [],
        "failed": {},
    }
    return best, record | {"told": explain_best(record, titles_of(plan.config.student)[condition])}


def write_best(plan: Plan, best: Trained, title: str, caveats: Sequence[str] = ()) -> dict[str, Any]:
    """What was written into the run's folder `best`: `files`, the outcome of each format that `run.export` names, and
    `failed`, the reason for each that could not be written. Paths are relative to the run.

    The folder holds the weights, the exported files, a script that runs the ONNX file where there is one, and a model
    card. `caveats` are sentences for the card. Raises WriteError when the disk refuses.
    """
    folder = plan.run.path / BEST
    make_folder(folder, plan.run.path)
    training = model_record(best.run.path / WEIGHTS).get("training", {})
    record = {"training": training, "data": data_record(plan.data), "run": best.run.path.name}
    save_model(best.model, folder / HUB_WEIGHTS, record, within=plan.run.path)
    made, failed = _export(plan, best, title)
    if any(one.format == "onnx" for one in made):
        text = predict_script(plan.data.class_names, plan.data.input_shape)
        write_bytes(folder / PREDICT, text.encode(), within=folder)
    card = card_for(best.model, plan.data, made, story_of(best.run), loader="load_model", caveats=caveats)
    write_bytes(folder / CARD, card.encode(), within=folder)
    files = [one.describe() | {"path": os.path.relpath(one.path, plan.run.path)} for one in made]
    return {"files": files, "failed": failed}


def _export(plan: Plan, best: Trained, title: str) -> tuple[list[Exported], dict[str, str]]:
    """The files of the formats that could be written, and why each of the others could not."""
    formats, watch = plan.config.run.export, plan.watch
    if not formats:
        return [], {}
    tell: Watch | None = None
    if watch is not None:

        def tell(stage: str, done: int, total: int, note: str) -> None:
            watch(title, done, total, note)

    failed: dict[str, str] = {}

    def leave_out(name: str, error: NoisyTeacherError) -> None:
        failed[name] = str(error)

    try:
        made = ship(best.model, plan.data, plan.run.path / BEST, formats, best.run, tell, on_failure=leave_out)
    except WriteError:
        raise
    except NoisyTeacherError as error:  # of no format in particular: the students are trained all the same
        return [], {name: failed.get(name, str(error)) for name in formats}
    return made, failed


def explain_best(best: Mapping[str, Any], title: str) -> str:
    """One sentence on which student, under a condition of this title, is handed over and what it loses."""
    more = f"{abs(best['drop']):.2f} points {'more' if best['drop'] >= 0 else 'less'} than the teacher's"
    limit = (
        ""
        if best["max_drop"] is None
        else f", {'within' if best['holds'] else 'OVER'} the {best['max_drop']:g} allowed"
    )
    scored = best["by"].split()[-1]
    return (
        f"best on validation (n = {best['n']:,}): {title}, {best['mean_val_error_%']:.2f} % "
        f"{scored}, {more}{limit}; handed over is {best['run']} ({best['val_error_%']:.2f} %)"
    )


def _error(one: Trained) -> float:
    """The validation error in %; where nothing is labelled the disagreement with the teacher, its own being 0."""
    return lost(one.result["scores"].get("val", {}))
