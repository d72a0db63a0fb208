"""`export`: a model as a file of another runtime, run there on the validation split and compared with torch first."""

from __future__ import annotations

import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from noisyteacher import metrics
from noisyteacher.data import Split, Splits, load_data
from noisyteacher.device import check_threads, cpu_threads, inference
from noisyteacher.errors import ExportError, NoisyTeacherError, TrainingError, UsageError
from noisyteacher.export.hub import check_rebuildable, run_hub, write_hub
from noisyteacher.export.onnx import run_onnx, write_onnx
from noisyteacher.export.torch_export import Runner, export_errors, run_pt2, run_pte, write_pt2, write_pte
from noisyteacher.io.files import read_bytes, sha256, write_bytes, write_json
from noisyteacher.measure import Latency, percentile
from noisyteacher.models import HUB_WEIGHTS, Classifier, as_classifier, saved_bytes, weights_fingerprint
from noisyteacher.rng import generator
from noisyteacher.runs import host, versions
from noisyteacher.stats import Quantity
from noisyteacher.tables import Table
from noisyteacher.text import size_bytes, unknown_name

SIDECAR, KIND, SCHEMA = ".export.json", "export", 1
CALIBRATION = 512
MAX_DIFFERENCE = 1e-4
"""Of the largest absolute logit: about fifty times the effect of rounding in another order (docs/export.md)."""
MAX_DROP = 1.0
"""Points of accuracy that int8 may lose."""
BATCH = 256


@dataclass(frozen=True)
class Format:
    """How a format is written and run, which packages that needs (the last is the runtime), and of which extra."""

    kind: str
    precision: str
    write: Callable[[Classifier, Path, Sequence[str], Tensor | None], None]
    """(model, path, class names, calibration images for int8, None for fp32)."""
    run: Callable[[Path, int], AbstractContextManager[Runner]]
    """(path, threads)."""
    needs: tuple[str, ...] = ()
    extra: str = ""


_ONNX, _MOBILE = ("onnx", "onnxscript", "onnxruntime"), ("torchao", "executorch")
FORMATS = {
    "onnx": Format("onnx", "fp32", write_onnx, run_onnx, _ONNX, "export"),
    "onnx-int8": Format("onnx", "int8", write_onnx, run_onnx, _ONNX, "export"),
    "pt2": Format("pt2", "fp32", write_pt2, run_pt2),
    "pte": Format("pte", "fp32", write_pte, run_pte, _MOBILE, "mobile"),
    "pte-int8": Format("pte", "int8", write_pte, run_pte, _MOBILE, "mobile"),
    "hub": Format("hub", "fp32", write_hub, run_hub),
}
"""Name -> format. `hub` is a folder, every other a single file."""


@dataclass(frozen=True)
class Comparison:
    """A file's logits beside torch's, for the same images."""

    agreement: Quantity
    """Share (%) of these images that get the same class as by torch."""
    accuracy: Quantity | None
    """Of the file (%); None without labels."""
    torch_accuracy: Quantity | None
    drop: float
    """Points of accuracy lost against torch, below 0 if the file does better; without labels of agreement."""
    difference: float
    """The largest difference to torch's logits, over all images and classes."""
    logit_scale: float
    """The largest absolute logit of torch, for comparison with `difference`."""


@dataclass(frozen=True, kw_only=True)
class Exported(Comparison):
    """One exported file as its own runtime ran it, beside the model it was made from as torch runs it."""

    path: Path
    format: str
    """`onnx`, `pt2`, `pte` or `hub` (a folder)."""
    precision: str
    """`fp32` or `int8`: of weights and activations of the network; images are uint8 either way."""
    bytes: int
    """The length of the file; of `hub` that of its model.safetensors."""
    torch_bytes: int
    """The length of the file that `save_model` writes of the model, which `bytes` is compared with."""
    sha256: str
    """Of the file whose length is `bytes`."""
    checked_on: str
    """The images that both ran on: "mnist-5k, val", or "random images" without data."""
    tolerance: float
    """fp32: the largest `difference` allowed, in logits. int8: the largest drop of accuracy (without labels: of
    agreement) allowed, in points."""
    holds: bool
    """Whether the file is within the tolerance."""
    latency_ms: Latency
    torch_latency_ms: Latency
    """Both timed in turns, call by call, under the same conditions."""
    runtime: str
    """Name and version of the runtime that ran the file."""

    @property
    def name(self) -> str:
        """The format's name on the command line: `onnx`, `onnx-int8`, `pte-int8`, ..."""
        return self.format if self.precision == "fp32" else f"{self.format}-{self.precision}"

    @property
    def n(self) -> int:
        """The number of images that both ran on."""
        return self.agreement.n

    @property
    def reason(self) -> str:
        """What was compared with the tolerance, in words."""
        if self.precision == "fp32":
            return f"largest logit difference {self.difference:.2g}, allowed {self.tolerance:.2g}"
        what = "agreement" if self.accuracy is None else "accuracy"
        return f"{self.drop:.2f} points of {what} lost, allowed {self.tolerance:.2f} (n = {self.n:,})"

    def describe(self) -> dict[str, object]:
        """All fields for JSON, shares with their unit and n."""
        shares = {name: value.describe() for name, value in vars(self).items() if isinstance(value, Quantity)}
        return {**asdict(self), **shares, "path": str(self.path), "n": self.n, "reason": self.reason}

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Exported:
        """The Exported that `describe` made the record of."""
        values = {field.name: record[field.name] for field in fields(cls)}
        for name in ("agreement", "accuracy", "torch_accuracy"):
            values[name] = None if values[name] is None else Quantity(**values[name])
        latencies = {name: Latency(**values[name]) for name in ("latency_ms", "torch_latency_ms")}
        return cls(**{**values, **latencies, "path": Path(record["path"])})


def check_format_names(names: Sequence[str]) -> None:
    """Raises UsageError for a format that is not known, and for one that is named twice."""
    for index, name in enumerate(names):
        if name not in FORMATS:
            raise unknown_name("format", name, FORMATS)
        if name in names[:index]:
            raise UsageError(f"format {name!r} is named twice: name it once")


def check_formats(names: Sequence[str], model: Classifier | None = None) -> None:
    """Raises UsageError for wrong names, a missing package, or a format that cannot hold this model."""
    check_format_names(names)
    for name in names:
        missing = [package for package in FORMATS[name].needs if importlib.util.find_spec(package) is None]
        if missing:
            extra = FORMATS[name].extra
            raise UsageError(f"format {name!r} needs {' and '.join(missing)}: pip install 'noisyteacher[{extra}]'")
        if name == "hub" and model is not None:
            check_rebuildable(model)


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
    """Write the model as ONE file, .onnx, .pt2 or .pte by its suffix, checked by its own runtime; how it compares.

    Uint8 images `[B, C, H, W]` go in and logits `[B, K]` come out, the preprocessing is inside; .onnx and .pt2 take any
    B, .pte takes 1. data: anything `load_data` takes. The file is compared with torch on its whole validation split;
    without data on random images, and then there is no accuracy. int8 (.onnx and .pte) sets its ranges on
    `calibration` training images (512) and needs data. Latencies are the median of `runs` calls with `threads` threads
    (torch's number by default). The model itself is unchanged afterwards.

    The result says whether the file `holds`: in fp32 no logit is further from torch's than `max_difference` (1e-4 of
    the largest logit), in int8 accuracy falls by at most `max_drop` points (1.0; without labels: agreement with torch).
    A file that does not hold is written all the same. Beside it lies NAME.export.json with all numbers.
    Raises UsageError for another suffix, an option without effect or a missing extra, and ExportError when the
    model cannot be written in the format or the runtime cannot run the file: then nothing is on the disk. WriteError.
    """
    target = Path(path)
    kind = target.suffix.lower().removeprefix(".")
    if kind not in ("onnx", "pt2", "pte"):
        raise UsageError(f"{target}: the suffix says the format: expected .onnx, .pt2, .pte")
    name = f"{kind}-int8" if int8 else kind
    if name not in FORMATS:
        raise UsageError(f"{target}: int8 is written as .onnx or .pte: leave int8 out, or choose one of these")
    for option, value, has_effect, minimum in (
        ("max_difference", max_difference, not int8, 0),
        ("max_drop", max_drop, int8, 0),
        ("calibration", calibration, int8, 1),
    ):
        if value is not None and not has_effect:
            raise UsageError(f"{option} has no effect on a file in {'int8' if int8 else 'fp32'}: leave it out")
        if value is not None and not value >= minimum:
            raise UsageError(f"{option} {value!r}: it must be >= {minimum}")
    (exported,) = export_all(
        model,
        {name: target},
        data=data,
        max_difference=max_difference,
        max_drop=MAX_DROP if max_drop is None else max_drop,
        calibration=CALIBRATION if calibration is None else calibration,
        threads=threads,
        runs=runs,
    )
    return exported


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

    Latencies of all files and of torch are taken in turns. progress: called with (steps done, all steps, the next one).
    on_failure: called with (format, error) of each format that cannot be written or run, which the result omits;
    without it the error is raised before anything of any format is on the disk.
    """
    if isinstance(data, Split):
        raise UsageError(f"a single split ({data.role}) was given: pass the whole data set, with train and val splits")
    splits = None if data is None else load_data(data)
    classes, input_shape = (None, None) if splits is None else (splits.classes, splits.input_shape)
    classifier = as_classifier(model, classes=classes, input_shape=input_shape)
    if classifier.input_shape is None or classifier.classes is None:
        raise UsageError(
            "the model does not say which images it takes: pass data, or wrap it by build_model(model, classes=..., "
            "input_shape=...)"
        )
    check_format_names(list(paths))
    if on_failure is None:
        check_formats(list(paths), classifier)
    if isinstance(runs, bool) or not isinstance(runs, int) or runs < 1:
        raise UsageError(f"runs {runs!r}: it must be a whole number of 1 or more")
    threads = torch.get_num_threads() if threads is None else check_threads(threads)
    class_names = [str(number) for number in range(classifier.classes)] if splits is None else splits.class_names
    int8 = any(FORMATS[name].precision == "int8" for name in paths)
    images = calibration_images(splits, calibration) if int8 else None
    report, steps = progress or (lambda done, total, note: None), 2 * len(paths) + 1
    runners: dict[str, Runner] = {"torch": classifier}
    drafts: dict[str, tuple[Path, Comparison]] = {}
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        stack.enter_context(inference(classifier, torch.device("cpu")))
        split = _random_images(classifier) if splits is None else splits.val
        checked_on = split.name if splits is None else f"{splits.name}, {split.role}"
        torch_logits = _logits(classifier, split)
        if not torch.isfinite(torch_logits).all():
            raise TrainingError(f"{classifier.name!r}: its logits on {checked_on} are not finite: nothing to export")
        for number, name in enumerate(paths):
            form, draft = FORMATS[name], Path(scratch) / f"{name}.{FORMATS[name].kind}"
            try:
                check_formats([name], classifier)
                report(2 * number, steps, f"writing {name}")
                with export_errors(f"{name}: it cannot be written"):
                    form.write(classifier, draft, class_names, images if form.precision == "int8" else None)
                report(2 * number + 1, steps, f"running {name}")
                with export_errors(f"{name}: its own runtime cannot run the file"):
                    runner = stack.enter_context(form.run(draft, threads))
                    drafts[name] = draft, compare(_logits(runner, split), torch_logits, split.labels)
                    runners[name] = runner
            except NoisyTeacherError as error:
                if on_failure is None:
                    raise
                on_failure(name, error)
        if not drafts:
            return []
        report(steps - 1, steps, "timing")
        image = split.images_at(torch.zeros(1, dtype=torch.int64))
        latencies = time_in_turns(runners, image, threads, runs)
        exported, torch_bytes = [], saved_bytes(classifier)
        for name, (draft, comparison) in drafts.items():
            form, contents = FORMATS[name], read_bytes(_files(draft)[0])
            tolerance, holds = _judge(form, comparison, max_difference, max_drop)
            runtime = f"{form.needs[-1]} {version(form.needs[-1])}" if form.needs else f"torch {torch.__version__}"
            file = Exported(
                **vars(comparison),
                path=paths[name],
                format=form.kind,
                precision=form.precision,
                bytes=len(contents),
                torch_bytes=torch_bytes,
                sha256=sha256([contents]),
                checked_on=checked_on,
                tolerance=tolerance,
                holds=holds,
                latency_ms=latencies[name],
                torch_latency_ms=latencies["torch"],
                runtime=runtime,
            )
            exported.append(file)
        record = {
            "model": {"architecture": classifier.architecture, "weights": weights_fingerprint(classifier)},
            "classes": list(class_names),
            "versions": versions(),
            "host": host(),
        }
        for (draft, _), file in zip(drafts.values(), exported, strict=True):
            for part in _files(draft):
                write_bytes(file.path if part == draft else file.path / part.name, read_bytes(part))
            ranges = {} if file.precision == "fp32" or images is None else {"calibration_images": len(images)}
            sidecar = file.path.with_name(file.path.name + SIDECAR)
            write_json(sidecar, KIND, SCHEMA, {**file.describe(), "path": file.path.name, **ranges, **record})
    report(steps, steps, "done")
    return exported


def _files(draft: Path) -> list[Path]:
    """The file, or the files of the folder with the weights first."""
    return sorted(draft.iterdir(), key=lambda file: file.name != HUB_WEIGHTS) if draft.is_dir() else [draft]


def _judge(form: Format, file: Comparison, max_difference: float | None, max_drop: float) -> tuple[float, bool]:
    """The tolerance for a file, and whether the file is within it."""
    if form.precision == "int8":
        return max_drop, file.drop <= max_drop + 1e-9  # a drop of exactly this may be rounded up
    tolerance = MAX_DIFFERENCE * file.logit_scale if max_difference is None else max_difference
    tolerance = 0.0 if form.kind == "hub" else tolerance
    return tolerance, file.difference <= tolerance


def calibration_images(data: Splits | Split | None, count: int) -> Tensor:
    """`count` training images, drawn by the generator (0, "export", "calibration"), uint8 `[n, C, H, W]`.

    All of them if there are fewer. Raises UsageError without data, and for a split that is not for training: the images
    that an int8 file is judged on must not have set its ranges.
    """
    if data is None:
        raise UsageError("int8 sets its ranges on training images and no data were given: pass data=")
    split = data if isinstance(data, Split) else data.train
    if split.role != "train":
        raise UsageError(f"a split for calibration whose role is {split.role!r}: only training images may set ranges")
    rows = torch.randperm(len(split), generator=generator(0, "export", "calibration"))[:count]
    return split.images_at(rows.sort().values)


def compare(logits: Tensor, torch_logits: Tensor, labels: Tensor | None) -> Comparison:
    """A file's logits beside torch's, `[N, K]` each. Raises ExportError unless they have one shape and are finite."""
    if logits.shape != torch_logits.shape or not torch.isfinite(logits).all():
        raise ExportError(
            f"the file returns logits {tuple(logits.shape)}, torch {tuple(torch_logits.shape)} finite logits: it was "
            "not kept"
        )
    n, agreement = len(logits), metrics.agreement(logits, torch_logits)
    difference, scale = float((logits - torch_logits).abs().max()), float(torch_logits.abs().max())
    if labels is None:
        return Comparison(Quantity(agreement, "%", n), None, None, 100 - agreement, difference, scale)
    accuracy, torch_accuracy = (Quantity(metrics.accuracy(each, labels), "%", n) for each in (logits, torch_logits))
    drop = torch_accuracy - accuracy
    return Comparison(Quantity(agreement, "%", n), accuracy, torch_accuracy, drop, difference, scale)


def _random_images(model: Classifier) -> Split:
    """Seeded random images that the model takes, without labels."""
    assert model.input_shape is not None
    shape, draws = (BATCH, *model.input_shape), generator(0, "export", "images")
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=draws)
    classes = tuple(map(str, range(model.classes or 0)))
    return Split(images, None, torch.arange(BATCH), "val", "random images", classes)


def _logits(run: Runner, split: Split) -> Tensor:
    return torch.cat([run(split.images_at(rows)) for rows in torch.split(torch.arange(len(split)), BATCH)]).float()


def time_in_turns(runners: Mapping[str, Runner], images: Tensor, threads: int, runs: int) -> dict[str, Latency]:
    """Wall time of each runner for these images, call by call in turns, so that all meet the same disturbances."""
    times: dict[str, list[float]] = {name: [] for name in runners}
    with cpu_threads(threads):
        for turn in range(-max(3, runs // 10), runs):
            for name, run in runners.items():
                start = time.perf_counter_ns()
                run(images)
                if turn >= 0:
                    times[name].append((time.perf_counter_ns() - start) / 1e6)
    return {
        name: Latency(percentile(measured, 50), percentile(measured, 95), len(images), threads, "cpu", runs)
        for name, measured in times.items()
    }


HEADERS = ("format", "precision", "accuracy %", "agreement %", "logit difference", "size", "latency ms", "holds")


def table(exported: Sequence[Exported], failed: Mapping[str, str] | None = None) -> Table:
    """A row per file, torch first; ratios are to torch (below 1: smaller, faster).

    failed: format -> why it could not be written; it has a row without numbers.
    """
    rows: list[tuple[str, ...]] = []
    for file in exported[:1]:
        size, latency = size_bytes(file.torch_bytes), f"{file.torch_latency_ms.median:.3f}"
        rows.append(("torch", "fp32", _percent(file.torch_accuracy), "", "", size, latency, ""))
    for file in exported:
        size = f"{size_bytes(file.bytes)} ({file.bytes / file.torch_bytes:.2f}x)"
        median = file.latency_ms.median
        latency = f"{median:.3f} ({median / file.torch_latency_ms.median:.2f}x)"
        scores = (_percent(file.accuracy), _percent(file.agreement), f"{file.difference:.2g}")
        rows.append((file.format, file.precision, *scores, size, latency, "yes" if file.holds else "NO"))
    for name in failed or ():
        kind, _, precision = name.partition("-")
        rows.append((kind, precision or "fp32", *"-----", "FAILED"))
    return Table(HEADERS, tuple(rows), "llrrrrrl", tuple(notes(exported, failed)))


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def notes(exported: Sequence[Exported], failed: Mapping[str, str] | None = None) -> list[str]:
    """The notes below the table: n, conditions, runtimes, why a file does not hold or was not written."""
    failures = [f"{name} was not written: {reason}." for name, reason in (failed or {}).items()]
    if not exported:
        return failures
    first, latency = exported[0], exported[0].latency_ms
    what = "Accuracy, agreement with torch" if first.accuracy is not None else "Agreement with torch"
    return [
        f"{what} and largest logit difference to it: {first.checked_on}, n = {first.n:,} images"
        f"; torch's largest logit is {first.logit_scale:.3g}.",
        f"Latency: median of {latency.runs} calls, taken in turns, batch {latency.batch}, {latency.threads} thread(s), "
        f"{latency.device}. Ratios: to torch and its weights file (below 1: smaller, faster).",
        f"Run by: {', '.join(dict.fromkeys(file.runtime for file in exported))}.",
        *(f"{file.name} does not hold: {file.reason}." for file in exported if not file.holds),
        *failures,
    ]


def verdict(exported: Sequence[Exported]) -> str:
    """One sentence: the fastest and the smallest of the files that hold, and where int8 is not faster."""
    good = [file for file in exported if file.holds]
    if not good:
        return "no file holds: deploy none of these"
    # The hub's folder is run by torch: a difference in time to torch is noise.
    fastest = min([file for file in good if file.format != "hub"] or good, key=lambda file: file.latency_ms.median)
    smallest = min(good, key=lambda file: file.bytes)
    latency, torch_latency = fastest.latency_ms.median, fastest.torch_latency_ms.median
    if latency < torch_latency:
        words = f"fastest that holds: {fastest.name} ({latency:.3f} ms, torch {torch_latency:.3f} ms)"
    else:
        words = f"none that holds is faster than torch ({torch_latency:.3f} ms), the fastest is {fastest.name} "
        words += f"({latency:.3f} ms)"
    words += f"; smallest that holds: {smallest.name} ({size_bytes(smallest.bytes)})"
    fp32 = {file.format: file.latency_ms.median for file in exported if file.precision == "fp32"}
    for file in exported:
        latency, fp32_latency = file.latency_ms.median, fp32.get(file.format, float("inf"))
        if file.precision == "int8" and latency >= fp32_latency:
            words += (
                f"; int8 is not faster than fp32 in {file.format} here ({latency:.3f} against {fp32_latency:.3f} ms)"
            )
    return words
