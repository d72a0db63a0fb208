"""The most probable classes of new images, from files of any number and size."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from noisyteacher.data.folders import image_files
from noisyteacher.data.images import Resize, Unreadable, decode_all
from noisyteacher.device import check_count, inference, resolve_device
from noisyteacher.errors import DataError, MismatchError
from noisyteacher.evaluate import Progress
from noisyteacher.io.files import StrPath
from noisyteacher.models import Classifier, as_classifier
from noisyteacher.progress import counted, reported


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of an image file and their softmax probabilities in 0..1, highest first.

    error: why there are none; empty where the image could be read.
    """

    file: str
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str = ""


def classify(
    model: nn.Module,
    paths: StrPath | Iterable[StrPath],
    *,
    class_names: Sequence[str] | None = None,
    top: int = 1,
    fit: str = "squash",
    batch_size: int = 64,
    device: str = "auto",
    threads: int = 1,
    progress: Progress = True,
) -> Iterator[Prediction]:
    """A Prediction for every image, in order, as soon as its batch is done; memory does not grow with their number.

    paths: image files, and folders whose images, at any depth, are read. class_names: K names in the order of the
    logits, by default 0, 1, ... top: how many classes of each image. fit: how images are brought to the size that the
    model takes, `squash` or `crop` (see `pack_data`). threads: that decode. progress: as in `evaluate`.
    An image that cannot be read has an `error`. Raises DataError for a path that does not exist, MismatchError for
    names that are not K or a model of other than 1 or 3 channels, UsageError for an option out of range.
    """
    classifier, target = as_classifier(model), resolve_device(device)
    if classifier.input_shape is None or classifier.input_shape[0] not in (1, 3):
        shape = classifier.input_shape
        raise MismatchError(f"a model of images {shape and list(shape)}: expected [C, H, W] with 1 or 3 channels")
    check_count("top", top)
    check_count("batch_size", batch_size)
    check_count("threads", threads)
    channels, height, width = classifier.input_shape
    images = _image_files([paths] if isinstance(paths, (str, os.PathLike)) else paths)
    resize = Resize.of((height, width), channels == 1, fit)
    pixels = zip([path for path, _ in images], decode_all([file for _, file in images], resize, threads), strict=True)

    def predictions() -> Iterator[Prediction]:
        done = 0
        with reported(progress, lambda watch: counted(watch, "predicting", "images")) as report:
            while batch := list(islice(pixels, batch_size)):
                yield from _predictions(batch, classifier, target, class_names, top)
                done += len(batch)
                if report is not None:
                    report(done, len(images))

    return predictions()


def _image_files(paths: Iterable[StrPath]) -> list[tuple[str, str | Unreadable]]:
    """For every image its path as it is reported, and the file or why it cannot be read."""
    images: list[tuple[str, str | Unreadable]] = []
    for name in paths:
        path = os.fspath(name)
        if os.path.isdir(path):
            images += [(os.path.join(path, inside), image) for inside, image in image_files(Path(path)).items()]
        elif not os.path.exists(path):
            raise DataError(f"{path}: no such file or folder")
        else:
            images.append((path, path if os.path.isfile(path) else Unreadable("is not a regular file")))
    return images


def _predictions(
    batch: Sequence[tuple[str, NDArray[np.uint8] | Unreadable]],
    classifier: Classifier,
    device: torch.device,
    class_names: Sequence[str] | None,
    top: int,
) -> Iterator[Prediction]:
    decoded = [pixels for _, pixels in batch if not isinstance(pixels, Unreadable)]
    rows: Iterator[tuple[list[float], list[int]]] = iter(())
    if decoded:
        with inference(classifier, device):
            logits = classifier(torch.from_numpy(np.stack(decoded)).to(device)).double().cpu()
        if class_names is not None and len(class_names) != logits.shape[1]:
            raise MismatchError(f"{len(class_names)} class names for a model of {logits.shape[1]} classes")
        best = logits.softmax(1).topk(min(top, logits.shape[1]))
        rows = zip(best.values.tolist(), best.indices.tolist(), strict=True)
    for path, pixels in batch:
        if isinstance(pixels, Unreadable):
            yield Prediction(path, error=pixels.reason)
            continue
        probabilities, classes = next(rows)
        names = tuple(str(number) if class_names is None else class_names[number] for number in classes)
        error = "" if math.isfinite(probabilities[0]) else "the model's logits are not finite"
        yield Prediction(path, error=error) if error else Prediction(path, names, tuple(probabilities))
