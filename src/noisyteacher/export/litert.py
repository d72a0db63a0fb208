"""LiteRT files (.tflite): phones and small boards. A file takes a single image per call.

int8 is a static quantization: activations per tensor, weights per output channel, logits in float32. Ranges are the
smallest and largest values over the calibration images; the quantizer's own moving average over images clips.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from noisyteacher.export.tracing import export_errors
from noisyteacher.models import Classifier


def write_tflite(model: Classifier, path: Path, class_names: Sequence[str], images: Tensor | None) -> None:
    """Write a .tflite file in fp32, or in int8, calibrated on `images`. Raises ExportError."""
    assert model.input_shape is not None
    example = (torch.zeros((1, *model.input_shape), dtype=torch.uint8),)
    with export_errors(f"{model.name!r} cannot be converted by litert-torch"), _silent():
        import litert_torch

        litert_torch.convert(model, example).export(str(path))
    if images is not None:
        with export_errors(f"{model.name!r} cannot be quantized by ai-edge-quantizer"), _silent():
            path.write_bytes(_quantized(path, images))


def _quantized(path: Path, images: Tensor) -> bytes:
    """The .tflite file in int8, calibrated on uint8 `[n, C, H, W]`."""
    from ai_edge_quantizer.calibrator import Calibrator
    from ai_edge_quantizer.quantizer import Quantizer
    from ai_edge_quantizer.recipe import static_wi8_ai8
    from ai_edge_quantizer.recipe_manager import RecipeManager
    from ai_edge_quantizer.utils.qsv_utils import min_max_update

    (everything,) = static_wi8_ai8()
    recipe = [everything, {**everything, "operation": "OUTPUT", "algorithm_key": "no_quantize", "op_config": {}}]
    manager, calibrator = RecipeManager(), Calibrator(str(path), num_threads=1, qsv_update_func=min_max_update)
    manager.load_quantization_recipe(recipe)
    ((signature, tensors),) = calibrator.get_signature_list().items()
    samples = ({tensors["inputs"][0]: image.numpy()} for image in torch.split(images, 1))
    calibrator.calibrate({signature: list(samples)}, manager)
    return bytes(Quantizer(str(path), recipe).quantize(calibrator.get_model_qsvs()).quantized_model)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep the converters' progress off the terminal."""
    sink = io.StringIO()
    with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
