"""`export`: a model into a file of another runtime, run there on the validation split before it is kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from noisyteacher.data import Split, Splits, load_data
from noisyteacher.device import check_threads
from noisyteacher.errors import ExportError, NoisyTeacherError, UsageError
from noisyteacher.export.checking import (
    Compared,
    Reference,
    calibration_images,
    compare,
    race,
    reference_of,
    torch_threads,
)
from noisyteacher.export.formats import FORMATS, refuse_format, refuse_names
from noisyteacher.export.outcome import Exported
from noisyteacher.export.to_pt2 import told
from noisyteacher.inference import inference
from noisyteacher.io.files import sha256, write_bytes, write_json
from noisyteacher.measure import Latency
from noisyteacher.models import HUB_WEIGHTS, Classifier, as_classifier, saved_bytes, weights_fingerprint
from noisyteacher.runs.record import host, versions

SIDECAR, KIND, SCHEMA = ".export.json", "export", 1
CALIBRATION = 512
MAX_DIFFERENCE = 1e-4
"""Of the largest absolute logit: some fifty times what rounding in another order comes to (docs/export.md)."""
MAX_DROP = 1.0
"""Points of accuracy that int8 may lose."""
TORCH = "torch"


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    data: Any = None,
    int8: bool = False,
    max_difference: float | None = None,
    max_drop: float | None = None,
    calibration: int | None = None,
    threads: int | None = None,
    runs: int = 50,
) -> Exported:
    """Write the model as ONE file, .onnx, .pt2 or .pte by its suffix, checked by its own runtime; what came of it.

    Uint8 images `[B, C, H, W]` go in and logits `[B, K]` come out, the preprocessing is inside; .onnx and .pt2 take any
    B, .pte takes 1. data: anything `load_data` takes. The file is compared with torch on its whole validation split;
    without data on random images, and then nothing is said of accuracy. int8 (.onnx and .pte) sets its ranges on
    `calibration` training images (512) and needs data. The model itself is as before afterwards.

    The result says whether the file `holds`: in fp32 no logit is further from torch's than `max_difference` (1e-4 of
    the largest logit), in int8 accuracy falls by at most `max_drop` points (1.0; without labels: agreement with torch).
    A file that does not hold is written all the same. Beside it lies NAME.export.json with all numbers.
    Raises UsageError for another suffix, an option without effect or a missing extra, and ExportError when the
    model cannot be written in the format or the runtime cannot run the file: nothing is on the disk then. WriteError.
    """
    target = Path(path)
    kind = target.suffix.lower().removeprefix(".")
    single = sorted({one.kind for one in FORMATS.values()} - {"hub"})
    if kind not in single:
        raise UsageError(f"{target}: the suffix says the format: expected {', '.join('.' + one for one in single)}")
    name = f"{kind}-int8" if int8 else kind
    if name not in FORMATS:
        raise UsageError(f"{target}: int8 is written as .onnx or .pte: leave int8 out, or choose one of these")
    effect = {
        "max_difference": (max_difference, not int8),
        "max_drop": (max_drop, int8),
        "calibration": (calibration, int8),
    }
    for option, (value, used) in effect.items():
        if value is not None and not used:
            raise UsageError(f"{option} has no effect on a file in {'int8' if int8 else 'fp32'}: leave it out")
        if value is not None and not value >= (1 if option == "calibration" else 0):
            raise UsageError(f"{option} {value!r}: it must be {'1 or more' if option == 'calibration' else '>= 0'}")
    (made,) = export_all(
        model,
        {name: target},
        data=data,
        max_difference=max_difference,
        max_drop=MAX_DROP if max_drop is None else max_drop,
        calibration=CALIBRATION if calibration is None else calibration,
        threads=threads,
        runs=runs,
    )
    return made


def export_all(
    model: nn.Module,
    paths: Mapping[str, Path],
    *,
    data: Any = None,
    max_difference: float | None = None,
    max_drop: float = MAX_DROP,
    calibration: int = CALIBRATION,
    threads: int | None = None,
    runs: int = 50,
    progress: Callable[[int, int, str], None] | None = None,
    on_failure: Callable[[str, NoisyTeacherError], None] | None = None,
) -> list[Exported]:
    """The same for several formats of FORMATS, each with its path, in their order; options as in `export`.

    Latencies of all files and of torch are taken in turns. progress: told (steps done, all steps, the next one).
    on_failure: told (format, error) of each that cannot be written or run, which is left out of what comes back;
    without it the error is raised before anything of any format is on the disk.
    """
    splits = _splits(data)
    whole = as_classifier(
        model,
        classes=None if splits is None else splits.classes,
        input_shape=None if splits is None else splits.input_shape,
    )
    if whole.input_shape is None or whole.classes is None:
        raise UsageError(
            "the model does not say which images it takes: pass data, or wrap it by build_model(model, classes=..., "
            "input_shape=...)"
        )
    refuse_names(list(paths))
    if isinstance(runs, bool) or not isinstance(runs, int) or runs < 1:
        raise UsageError(f"runs {runs!r}: it must be a whole number of 1 or more")
    used = torch.get_num_threads() if threads is None else check_threads(threads)
    names = [str(number) for number in range(whole.classes)] if splits is None else splits.class_names
    possible = dict(paths)

    def leave_out(name: str, error: NoisyTeacherError) -> None:
        if on_failure is None:
            raise error
        del possible[name]
        on_failure(name, error)

    for name in paths:
        try:
            refuse_format(name, whole)
        except UsageError as error:
            leave_out(name, error)
    if not possible:
        return []
    int8 = any(FORMATS[name].precision == "int8" for name in possible)
    images = calibration_images(splits, calibration) if int8 else None
    tell = progress or (lambda done, total, note: None)
    steps = 2 * len(possible) + 1
    with ExitStack() as stack:
        stack.enter_context(inference(whole, torch.device("cpu")))
        stack.enter_context(torch_threads(used))
        reference = reference_of(whole, splits)
        files, runners, found = {}, {}, {}
        for number, name in enumerate(list(possible)):
            tell(2 * number, steps, f"writing {name}")
            try:
                files[name] = FORMATS[name].write(whole, names, images)
            except NoisyTeacherError as error:
                leave_out(name, error)
                continue
            except Exception as error:  # the exporters are others', and so are their errors
                leave_out(name, _export_error(name, "it cannot be written", error))
                continue
            tell(2 * number + 1, steps, f"asking {name}")
            try:
                runner = stack.enter_context(FORMATS[name].run(files[name], used))
                found[name] = compare(runner, reference)
                runners[name] = runner
            except NoisyTeacherError as error:
                leave_out(name, error)
            except Exception as error:
                leave_out(name, _export_error(name, "its own runtime cannot run the file", error))
        if not possible:
            return []
        tell(steps - 1, steps, "timing")
        times = race({TORCH: whole, **runners}, next(reference.parts())[:1], used, runs)
    made = [
        _outcome(name, path, files[name], whole, reference, found[name], times, max_difference, max_drop)
        for name, path in possible.items()
    ]
    record = {
        "model": {"architecture": whole.architecture, "weights": weights_fingerprint(whole)},
        "classes": list(names),
        "versions": versions(),
        "host": host(),
    }
    for one in made:
        for inner, content in files[one.name].items():
            write_bytes(one.path / inner if inner else one.path, content)
        ranges = {} if one.precision == "fp32" or images is None else {"calibration_images": len(images)}
        beside = one.path.with_name(one.path.name + SIDECAR)
        write_json(beside, KIND, SCHEMA, {**one.describe(), "path": one.path.name, **ranges, **record})
    tell(steps, steps, "done")
    return made


def _export_error(name: str, what: str, error: Exception) -> ExportError:
    """An error of another library as one of this package, with the first line of what it says."""
    failure = ExportError(f"{name}: {what} ({told(error)})")
    failure.__cause__ = error
    return failure


def _outcome(
    name: str,
    path: Path,
    files: dict[str, bytes],
    model: Classifier,
    reference: Reference,
    found: Compared,
    times: Mapping[str, Latency],
    max_difference: float | None,
    max_drop: float,
) -> Exported:
    form, scale = FORMATS[name], float(reference.logits.abs().max())
    data = files[""] if "" in files else files[HUB_WEIGHTS]
    fp32 = form.precision == "fp32"
    tolerance = max_drop
    if fp32:
        tolerance = 0.0 if form.kind == "hub" else MAX_DIFFERENCE * scale if max_difference is None else max_difference
    # A drop of exactly the tolerance, in points of accuracy, may come out a rounding above it.
    within = found.difference <= tolerance if fp32 else found.drop <= tolerance + 1e-9
    return Exported(
        path=path,
        format=form.kind,
        precision=form.precision,
        bytes=len(data),
        torch_bytes=saved_bytes(model),
        sha256=sha256([data]),
        checked_on=reference.name,
        agreement=found.agreement,
        accuracy=found.accuracy,
        torch_accuracy=found.torch_accuracy,
        drop=found.drop,
        difference=found.difference,
        logit_scale=scale,
        tolerance=tolerance,
        holds=within,
        latency_ms=times[name],
        torch_latency_ms=times[TORCH],
        runtime=f"{form.needs[-1]} {version(form.needs[-1])}" if form.needs else f"torch {torch.__version__}",
    )


def _splits(data: Any) -> Splits | None:
    if data is None:
        return None
    if isinstance(data, Split):
        raise UsageError(
            f"a single split ({data.role}) was given: pass the whole data set, whose train split sets ranges and whose "
            "validation split judges the file"
        )
    return load_data(data)
