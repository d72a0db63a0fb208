"""`export`: a model as a file of another runtime, run there on the validation split and compared with torch first."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from noisyteacher import bench
from noisyteacher.bench import SIDECAR, load_onnx, load_pt2, load_pte, load_tflite
from noisyteacher.data import Split, load_data
from noisyteacher.device import check_count, check_threads, cpu_threads, inference
from noisyteacher.errors import NoisyTeacherError, TrainingError, UsageError
from noisyteacher.export.hub import check_rebuildable, run_hub, write_hub
from noisyteacher.export.litert import write_tflite
from noisyteacher.export.onnx import write_onnx
from noisyteacher.export.outcome import Comparison, Exported, compare
from noisyteacher.export.quantization import CALIBRATION, FakeQuantized, calibration_images, in_int8, scaled_as
from noisyteacher.export.torch_export import write_pt2, write_pte
from noisyteacher.export.tracing import Runner, export_errors, run_file
from noisyteacher.io.files import read_bytes, sha256, write_bytes, write_json
from noisyteacher.measure import Latency, percentile
from noisyteacher.models import HUB_WEIGHTS, Classifier, as_classifier, bare_network, saved_bytes, weights_fingerprint
from noisyteacher.rng import generator
from noisyteacher.runs import host, versions
from noisyteacher.stats import is_within
from noisyteacher.text import unknown_name

KIND, SCHEMA = "export", 1
MAX_DIFFERENCE = 1e-4
"""Of the largest absolute logit: about fifty times the effect of rounding in another order (docs/export.md)."""
MAX_DROP = 1.0
"""Points of accuracy that int8 may lose."""
BATCH = 256
Writer = Callable[[Classifier, Path, Sequence[str], Tensor | None], None]
"""Called with (model, path, class names, calibration images for int8, None for fp32)."""


@dataclass(frozen=True)
class Format:
    """How a format is written and run, which packages that needs (the last is the runtime), and of which extra."""

    kind: str
    precision: str
    write: Writer
    run: Callable[[Path, int], AbstractContextManager[Runner]]
    """(path, threads)."""
    needs: tuple[str, ...] = ()
    extra: str = ""
    takes_twin: bool = False
    """Whether int8 can be written of a fake-quantized twin: LiteRT would keep its weights in fp32."""


@dataclass(frozen=True)
class Draft:
    """A file that its runtime has run, not yet where it belongs, and whether quantization-aware training made it."""

    path: Path
    run: Runner
    comparison: Comparison
    qat: bool


_ONNX = ("onnx", "onnxscript", "onnxruntime")
_MOBILE = ("torchao", "executorch")
_LITERT = ("litert_torch", "ai_edge_litert")
FORMATS = {
    "onnx": Format("onnx", "fp32", write_onnx, partial(run_file, load_onnx), _ONNX, "export"),
    "onnx-int8": Format("onnx", "int8", write_onnx, partial(run_file, load_onnx), _ONNX, "export", True),
    "pt2": Format("pt2", "fp32", write_pt2, partial(run_file, load_pt2)),
    "pte": Format("pte", "fp32", write_pte, partial(run_file, load_pte), _MOBILE, "mobile"),
    "pte-int8": Format("pte", "int8", write_pte, partial(run_file, load_pte), _MOBILE, "mobile", True),
    "tflite": Format("tflite", "fp32", write_tflite, partial(run_file, load_tflite), _LITERT, "litert"),
    "tflite-int8": Format("tflite", "int8", write_tflite, partial(run_file, load_tflite), _LITERT, "litert"),
    "hub": Format("hub", "fp32", write_hub, run_hub),
}
"""Name -> format. `hub` is a folder, every other a single file."""


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
        check_packages(f"format {name!r}", FORMATS[name].needs, FORMATS[name].extra)
        if name == "hub" and model is not None:
            check_rebuildable(model)


def check_packages(what: str, packages: Sequence[str] = _MOBILE, extra: str = "mobile") -> None:
    """Raises UsageError naming the extra where a package is missing that `what` needs."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise UsageError(f"{what} needs {' and '.join(missing)}: pip install 'noisyteacher[{extra}]'")


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    data: Any = None,
    int8: bool = False,
    twin: nn.Module | None = None,
    max_difference: float | None = None,
    max_drop: float | None = None,
    calibration: int | None = None,
    threads: int | None = None,
    runs: int = 50,
) -> Exported:
    """Write the model as ONE file, .onnx, .pt2, .pte or .tflite by its suffix, run by its own runtime; how it compares.

    Uint8 images `[B, C, H, W]` go in and logits `[B, K]` come out, the preprocessing is inside; .onnx and .pt2 take any
    B, .pte and .tflite take 1. data: what `load_data` takes. The file is compared with torch on its whole validation
    split; without data on random images, and then there is no accuracy. int8 (not .pt2) sets its ranges on
    `calibration` training images (512) and needs data; with a trained `twin` (of `nt.fake_quantized`) a second file is
    made of that, and the file that loses less on validation is kept, of equals the second. Latencies are the median of
    `runs` calls with `threads` threads (torch's number by default). The model itself is unchanged afterwards.

    The result says whether the file `holds`: in fp32 no logit is further from torch's than `max_difference` (1e-4 of
    the largest logit), in int8 accuracy falls by at most `max_drop` points (1.0; without labels: agreement with torch).
    A file that does not hold is written all the same. Beside it lies NAME.export.json with all numbers.
    Raises UsageError for another suffix, an option without effect or a missing extra, and ExportError when the
    model cannot be written in the format or the runtime cannot run the file: then nothing is on the disk. WriteError.
    """
    target = Path(path)
    kind = target.suffix.lower().removeprefix(".")
    files = [f".{name}" for name, form in FORMATS.items() if form.precision == "fp32" and form.kind != "hub"]
    if f".{kind}" not in files:
        raise UsageError(f"{target}: the suffix says the format: expected {', '.join(files)}")
    name = f"{kind}-int8" if int8 else kind
    if name not in FORMATS:
        raise UsageError(f"{target}: int8 is written as .onnx, .pte or .tflite: leave int8 out, or choose one of these")
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
        twin=twin,
        max_difference=max_difference,
        max_drop=max_drop,
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
    twin: nn.Module | None = None,
    max_difference: float | None = None,
    max_drop: float | None = None,
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
    for path in paths.values():
        if path.is_symlink():
            raise UsageError(f"{path}: a link, which is not written through: remove it, or name another folder")
    if on_failure is None:
        check_formats(list(paths), classifier)
    check_count("runs", runs)
    threads = torch.get_num_threads() if threads is None else check_threads(threads)
    class_names = [str(number) for number in range(classifier.classes)] if splits is None else splits.class_names
    int8 = any(FORMATS[name].precision == "int8" for name in paths)
    images = calibration_images(splits, calibration) if int8 else None
    graph = None if twin is None else _twin_graph(twin, paths)
    report, steps = progress or (lambda done, total, note: None), 2 * len(paths) + 1
    runners: dict[str, Runner] = {"torch": classifier}
    drafts: dict[str, list[Draft]] = {}
    """The file to keep, then the one that is not."""
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as running:
        running.enter_context(inference(classifier, torch.device("cpu")))
        split = _random_images(classifier) if splits is None else splits.val
        checked_on = split.name if splits is None else f"{splits.name}, {split.role}"
        torch_logits = _logits(classifier, split)
        if not torch.isfinite(torch_logits).all():
            raise TrainingError(f"{classifier.name!r}: its logits on {checked_on} are not finite: nothing to export")
        of_twin: list[tuple[Classifier, Tensor | None]] = []
        if graph is not None:
            of_twin.append((in_int8(scaled_as(classifier, twin), graph), None))
        for number, name in enumerate(paths):
            form, candidates = FORMATS[name], list[Draft]()
            write: Writer = form.write if name != "hub" or splits is None else partial(write_hub, fit=splits.fit)
            try:
                check_formats([name], classifier)
                of_model = (classifier, images if form.precision == "int8" else None)
                for source, ranges_from in [of_model, *(of_twin if form.takes_twin else [])]:
                    qat = source is not classifier
                    draft = Path(scratch) / f"{name}{'-qat' if qat else ''}.{form.kind}"
                    report(2 * number, steps, f"writing {name}")
                    with export_errors(f"{name}: it cannot be written"):
                        write(source, draft, class_names, ranges_from)
                    report(2 * number + 1, steps, f"running {name}")
                    with export_errors(f"{name}: its own runtime cannot run the file"):
                        runner = running.enter_context(form.run(draft, threads))
                        comparison = compare(_logits(runner, split), torch_logits, split.labels)
                        candidates.append(Draft(draft, runner, comparison, qat))
                drafts[name] = sorted(candidates, key=lambda draft: (draft.comparison.drop, not draft.qat))
                runners[name] = drafts[name][0].run
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
        for name, (kept, *rejected) in drafts.items():
            form, contents = FORMATS[name], read_bytes(_files(kept.path)[0])
            tolerance, holds = _judge(form, kept.comparison, max_difference, max_drop)
            runtime = bench.with_version(form.needs[-1]) if form.needs else f"torch {torch.__version__}"
            file = Exported(
                **vars(kept.comparison),
                qat=kept.qat,
                rejected=rejected[0].comparison if rejected else None,
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
            "model": {**network_record(classifier), "weights": weights_fingerprint(classifier)},
            "classes": list(class_names),
            "versions": versions(),
            "host": host(),
        }
        for (kept, *_), file in zip(drafts.values(), exported, strict=True):
            for part in _files(kept.path):
                write_bytes(file.path if part == kept.path else file.path / part.name, read_bytes(part))
            ranges = {} if file.precision == "fp32" or images is None else {"calibration_images": len(images)}
            sidecar = file.path.with_name(file.path.name + SIDECAR)
            write_json(sidecar, KIND, SCHEMA, {**file.describe(), "path": file.path.name, **ranges, **record})
    report(steps, steps, "done")
    return exported


def network_record(model: Classifier) -> dict[str, Any]:
    """What tells networks apart whatever their weights: `architecture`, and `structure`, a fingerprint of the names and
    shapes of the parameters, since two modules of a user can have one architecture.
    """
    parameters = bare_network(model).named_parameters()
    structure = sha256([f"{name} {tuple(parameter.shape)}\n".encode() for name, parameter in parameters])
    return {"architecture": model.architecture, "structure": structure}


def write_unchecked(
    model: Classifier, name: str, path: Path, class_names: Sequence[str], images: Tensor | None
) -> None:
    """Write the model in a format, to be timed: nothing is compared. Beside it lies what it is, for `bench`.

    images: for the ranges of int8. Raises ExportError.
    """
    form = FORMATS[name]
    with inference(model, torch.device("cpu")), export_errors(f"{name}: it cannot be written"):
        form.write(model, path, class_names, images if form.precision == "int8" else None)
    record = {"format": form.kind, "precision": form.precision, "model": network_record(model)}
    record["sha256"] = sha256([read_bytes(path)])
    write_json(path.with_name(path.name + SIDECAR), "unchecked export", SCHEMA, record)


def _files(draft: Path) -> list[Path]:
    """The file, or the files of the folder with the weights first."""
    return sorted(draft.iterdir(), key=lambda file: file.name != HUB_WEIGHTS) if draft.is_dir() else [draft]


def _judge(form: Format, file: Comparison, max_difference: float | None, max_drop: float | None) -> tuple[float, bool]:
    """The tolerance for a file, and whether the file is within it."""
    if form.precision == "int8":
        most = MAX_DROP if max_drop is None else max_drop
        return most, is_within(file.drop, most)
    tolerance = MAX_DIFFERENCE * file.logit_scale if max_difference is None else max_difference
    tolerance = 0.0 if form.kind == "hub" else tolerance
    return tolerance, file.difference <= tolerance


def _twin_graph(twin: nn.Module, formats: Iterable[str]) -> nn.Module:
    """The graph of a fake-quantized twin. Raises UsageError for another model, and where no format takes it."""
    network = bare_network(twin) if isinstance(twin, Classifier) else twin
    if not isinstance(network, FakeQuantized):
        raise UsageError(f"twin: given a {type(network).__name__}; expected nt.fake_quantized(model, data)")
    if not any(FORMATS[name].takes_twin for name in formats):
        takers = ", ".join(name for name, form in FORMATS.items() if form.takes_twin)
        raise UsageError(f"twin has no effect on {', '.join(formats)}: leave it out, or write one of {takers}")
    return network.graph


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
    """Latency of each runner for these images, call by call in turns, so that all meet the same disturbances."""
    with cpu_threads(threads):
        times = bench.time_in_turns({name: partial(run, images) for name, run in runners.items()}, 0.0, runs)
    calls = {name: [ms for block in rounds for ms in block] for name, rounds in times.items()}
    return {
        name: Latency(percentile(measured, 50), percentile(measured, 95), len(images), threads, "cpu", runs)
        for name, measured in calls.items()
    }
