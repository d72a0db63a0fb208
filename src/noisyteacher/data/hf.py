"""Hugging Face data sets as sources to pack: objects of `datasets`, folders it saved, folders of parquet files.

Images are taken as they are stored, encoded; no code of a data set runs, and nothing is fetched.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisyteacher.data.folders import role_of
from noisyteacher.data.images import EncodedImage, Unreadable
from noisyteacher.data.sources import Numbers, Part, Source, check_labels, numbered_classes
from noisyteacher.data.split import ROLES
from noisyteacher.errors import DataError, UsageError
from noisyteacher.text import few

_READ_AHEAD = 16
"""Images in memory at once."""


def is_dataset(source: object) -> bool:
    """Whether it is an object of the package `datasets`."""
    return type(source).__module__.split(".")[0] == "datasets"


def is_saved(folder: Path) -> bool:
    """Whether `datasets` saved something in this folder (`save_to_disk`)."""
    return (folder / "dataset_dict.json").exists() or (folder / "state.json").exists()


def parquet_files(folder: Path) -> list[Path]:
    """The parquet files in a folder, or in its `data` folder as the Hub has it."""
    for parent in (folder, folder / "data"):
        paths = sorted(path for path in parent.glob("*.parquet") if path.is_file())
        if paths:
            return paths
    return []


def saved_source(folder: Path) -> Source:
    """A data set that `save_to_disk` wrote. Raises UsageError without the extra, DataError for a damaged one."""
    datasets = _datasets(folder)
    try:
        saved = datasets.load_from_disk(os.fspath(folder))
    except Exception as error:  # arrow, json, and whatever a damaged folder leads to
        raise DataError(f"{folder}: not a data set that `datasets` can load: {error}") from error
    return dataset_source(saved, folder.name)


def dataset_source(source: Any, name: str = "dataset") -> Source:
    """A `datasets.Dataset`, or a dict of them: `train`, `validation` (also `val`, `valid`, `dev`) and `test`."""
    by_role = _by_role(source, name) if isinstance(source, Mapping) else {"all": source}
    parts: list[Part] = []
    class_names: tuple[str, ...] = ()
    for role, dataset in by_role.items():
        title = f"{name}, {role}"
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "features"):
            raise UsageError(f"{title}: a {type(dataset).__name__} cannot be indexed: load it without streaming")
        image, label, names = _columns(dataset.features, title)
        class_names = _same_classes(class_names, names, title)
        labels = None
        if label is not None:
            table = dataset.select_columns([label]).with_format("arrow")[:]
            labels = _labels(table[label].to_numpy(), len(dataset), title)
        parts.append(Part(role, Numbers(len(dataset)), labels, partial(_dataset_images, dataset, image)))
    return Source("datasets", name, tuple(parts), class_names or numbered_classes(parts))


def parquet_source(folder: Path) -> Source:
    """Parquet files with a column of images; `train-*.parquet`, `validation-*`, `test-*`, or all of one kind."""
    datasets = _datasets(folder)
    import pyarrow.parquet as pq

    paths = parquet_files(folder)
    by_name: dict[str, list[Path]] = {}
    for path in paths:
        by_name.setdefault(re.split(r"[-_.]", path.name)[0], []).append(path)
    named = any(role_of(name) for name in by_name)
    parts: list[Part] = []
    class_names: tuple[str, ...] = ()
    for role, files in (_by_role(by_name, str(folder)) if named else {"all": paths}).items():
        schema = _read_parquet(files[0], pq.read_schema)
        image, label, names = _columns(datasets.Features.from_arrow_schema(schema), str(files[0]))
        class_names = _same_classes(class_names, names, str(files[0]))
        rows = sum(_read_parquet(path, pq.read_metadata).num_rows for path in files)
        labels = None
        if label is not None:
            tables = [_read_parquet(path, partial(pq.read_table, columns=[label])) for path in files]
            numbers = np.concatenate([table[label].to_numpy() for table in tables])
            labels = _labels(numbers, rows, f"{folder}, {role}")
        parts.append(Part(role, Numbers(rows), labels, partial(_parquet_images, files, image)))
    return Source("parquet", folder.name, tuple(parts), class_names or numbered_classes(parts))


def _dataset_images(dataset: Any, column: str) -> Iterator[EncodedImage]:
    import datasets

    encoded = dataset.select_columns([column]).cast_column(column, datasets.Image(decode=False)).with_format(None)
    for start in range(0, len(dataset), _READ_AHEAD):
        yield from map(_encoded_image, encoded[start : start + _READ_AHEAD][column])


def _parquet_images(files: list[Path], column: str) -> Iterator[EncodedImage]:
    import pyarrow.parquet as pq

    for path in files:
        batches = _read_parquet(path, pq.ParquetFile).iter_batches(_READ_AHEAD, columns=[column])
        while (batch := _read_parquet(path, lambda _: next(batches, None))) is not None:  # noqa: B023 - called at once
            yield from map(_encoded_image, batch[column].to_pylist())


def _read_parquet(path: Path, read: Callable[[Path], Any]) -> Any:
    try:
        return read(path)
    except (OSError, ValueError, KeyError) as error:  # what pyarrow's errors derive from
        raise DataError(f"{path}: not a readable parquet file: {error}") from error


def _encoded_image(cell: Any) -> EncodedImage:
    """The image of one cell: its bytes, or the local file it names."""
    data, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, Mapping) else (cell, None)
    if isinstance(data, bytes):
        return data
    if isinstance(path, str) and os.path.isfile(path):
        return path
    return Unreadable("no image in this row" if path is None else f"the file it names is not here: {path}")


def _columns(features: Mapping[str, Any], title: str) -> tuple[str, str | None, tuple[str, ...]]:
    """The column of images, the column of labels or None, and the class names where the column has them."""
    kinds = {name: type(feature).__name__ for name, feature in features.items()}
    images = [name for name, kind in kinds.items() if kind == "Image"]
    # Files that were not written by `datasets` have plain columns of bytes.
    images = images or [name for name, feature in features.items() if "binary" in str(getattr(feature, "dtype", ""))]
    if len(images) != 1:
        raise DataError(
            f"{title}: {len(images)} columns of images ({few(images) or 'none'}) among {few(list(features))}; expected "
            "one: remove the others, or cast it with datasets.Image()"
        )
    labels = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    labels = labels or [name for name in ("label", "labels") if name in features]
    if len(labels) > 1:
        raise DataError(f"{title}: several columns of labels ({few(labels)}); expected one: remove the others")
    if not labels:
        return images[0], None, ()
    return images[0], labels[0], tuple(map(str, getattr(features[labels[0]], "names", None) or ()))


def _labels(numbers: NDArray[Any], rows: int, title: str) -> NDArray[np.int64] | None:
    """Class numbers, or None where they are -1 throughout, as in the test splits of competitions."""
    if numbers.dtype.kind in "iu" and len(numbers) and bool((numbers == -1).all()):
        return None
    return check_labels(numbers, rows, f"{title}: the column of labels")


def _same_classes(class_names: tuple[str, ...], names: tuple[str, ...], title: str) -> tuple[str, ...]:
    if class_names and names and class_names != names:
        raise DataError(f"{title}: other classes ({few(names)}) than in the part before ({few(class_names)})")
    return class_names or names


def _by_role(content: Mapping[Any, Any], title: str) -> dict[str, Any]:
    """The values by role, in the order train, val, test, from keys such as `validation`."""
    by_role = {role_of(str(key)): value for key, value in content.items()}
    if None in by_role or "train" not in by_role or len(by_role) < len(content):
        raise UsageError(
            f"{title}: has the parts {few(list(map(str, content)))}; expected train and, if there are any, one of "
            "validation and one of test: leave the others out"
        )
    return {role: by_role[role] for role in ROLES if role in by_role}


def _datasets(folder: Path) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UsageError(f"{folder}: to read it datasets is needed: pip install 'noisyteacher[data]'") from error
    return datasets
