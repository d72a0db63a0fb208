"""Hugging Face data sets as something to pack: objects of `datasets`, folders it saved, folders of parquet files.

Images are taken as they are stored, encoded; nothing of a data set's own code is run, and nothing is fetched.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisyteacher.data.packable import MOST_CLASSES, Numbered, Part, Source
from noisyteacher.errors import DataError, UsageError
from noisyteacher.pixels import Item, Unreadable
from noisyteacher.text import few

ROLES = {"train": "train", "validation": "val", "valid": "val", "val": "val", "dev": "val", "test": "test"}
_AT_ONCE = 16
_FILE = re.compile(rf"({'|'.join(ROLES)})(?:[-_.].*)?\.parquet")


def is_dataset(source: object) -> bool:
    """Whether it is an object of the package `datasets`."""
    return type(source).__module__.split(".")[0] == "datasets"


def is_saved(folder: Path) -> bool:
    """Whether `datasets` saved something in this folder (`save_to_disk`)."""
    return (folder / "dataset_dict.json").exists() or (folder / "state.json").exists()


def parquet_files(folder: Path) -> list[Path]:
    """The parquet files in a folder, or in its `data` folder as the Hub has it."""
    for place in (folder, folder / "data"):
        found = sorted(path for path in place.glob("*.parquet") if path.is_file())
        if found:
            return found
    return []


def saved_source(folder: Path) -> Source:
    """A data set that `save_to_disk` left. Raises UsageError without the extra, DataError for a damaged one."""
    try:
        import datasets
    except ImportError as error:
        raise _needed(folder, "datasets") from error
    try:
        found = datasets.load_from_disk(os.fspath(folder))
    except Exception as error:  # arrow, json, and whatever a damaged folder leads to
        raise DataError(f"{folder}: not a data set that `datasets` can load: {error}") from error
    return dataset_source(found, folder.name)


def dataset_source(source: Any, name: str = "dataset") -> Source:
    """A `datasets.Dataset`, or a dict of them: `train`, `validation` (also `val`, `valid`, `dev`) and `test`."""
    whole = {"all": source}
    if isinstance(source, Mapping):
        whole = _by_role({str(key): one for key, one in source.items()}, name)
    parts: list[Part] = []
    names: tuple[str, ...] = ()
    for role, one in whole.items():
        if not hasattr(one, "__getitem__") or not hasattr(one, "features"):
            raise UsageError(f"{name}: a {type(one).__name__} has no rows to go to: load it without streaming")
        image, label, own = _columns(dict(one.features), f"{name}, {role}")
        names = _same_names(names, own, f"{name}, {role}")
        labels = None
        if label is not None:
            labels = one.select_columns([label]).with_format("arrow")[:][label].to_numpy()
        stamp = partial("{}\0{}".format, getattr(one, "_fingerprint", ""))
        items = partial(_dataset_items, one, image)
        parts.append(Part(role, Numbered(len(one)), _labels(labels, len(one), f"{name}, {role}"), items, stamp))
    return Source("datasets", name, tuple(parts), _all_names(names, parts))


def _dataset_items(one: Any, image: str, first: int) -> Iterator[Item]:
    import datasets

    encoded = one.select_columns([image]).cast_column(image, datasets.Image(decode=False)).with_format(None)
    for start in range(first, len(one), _AT_ONCE):
        for cell in encoded[start : start + _AT_ONCE][image]:
            yield _encoded(cell)


def parquet_source(folder: Path) -> Source:
    """Parquet files with a column of images; `train-*.parquet`, `validation-*`, `test-*`, or all of one kind."""
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise _needed(folder, "pyarrow") from error
    files = parquet_files(folder)
    named = {path: _FILE.fullmatch(path.name) for path in files}
    whole: dict[str, list[Path]] = {"all": files}
    if any(named.values()):
        keyed: dict[str, list[Path]] = {}
        for path, found in named.items():
            keyed.setdefault(found[1] if found else path.name, []).append(path)
        whole = _by_role(keyed, str(folder))
    parts: list[Part] = []
    names: tuple[str, ...] = ()
    for role, paths in whole.items():
        tables = []
        for path in paths:
            try:
                tables.append(pq.ParquetFile(path, memory_map=True))
            except (OSError, ValueError) as error:  # what pyarrow's errors derive from
                raise DataError(f"{path}: not a readable parquet file: {error}") from error
        image, label, own = _columns(_parquet_features(tables[0].schema_arrow), str(paths[0]))
        names = _same_names(names, own, str(paths[0]))
        counts = [table.metadata.num_rows for table in tables]
        labels = None
        if label is not None:
            read = [_checked(path, partial(table.read, [label])) for path, table in zip(paths, tables, strict=True)]
            labels = np.concatenate([table[label].to_numpy() for table in read])
        marks = "\0".join(f"{path.name}\0{path.stat().st_size}\0{path.stat().st_mtime_ns}" for path in paths)
        parts.append(
            Part(
                role,
                Numbered(sum(counts)),
                _labels(labels, sum(counts), f"{folder}, {role}"),
                partial(_parquet_items, paths, image),
                partial("{}\0{}".format, marks),
            )
        )
    return Source("parquet", folder.name, tuple(parts), _all_names(names, parts))


def _parquet_items(paths: list[Path], image: str, first: int) -> Iterator[Item]:
    """Group by group of rows, which is what has to be in memory at once."""
    import pyarrow.parquet as pq

    for path in paths:
        table = pq.ParquetFile(path, memory_map=True)
        starts = [0, *accumulate(table.metadata.row_group(one).num_rows for one in range(table.num_row_groups))]
        for number, start in enumerate(starts[:-1]):
            if first >= starts[number + 1]:
                continue
            found = _checked(path, partial(table.read_row_group, number, [image]))
            for cell in found[image].slice(max(0, first - start)):
                yield _encoded(cell.as_py())
        first = max(0, first - starts[-1])


def _checked(path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _encoded(cell: Any) -> Item:
    """The image of one cell: its bytes, or the local file it names."""
    data, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, Mapping) else (cell, None)
    if isinstance(data, bytes):
        return data
    if isinstance(path, str) and os.path.isfile(path):
        return path
    return Unreadable("no image in this row" if path is None else f"the file it names is not here: {path}")


def _parquet_features(schema: Any) -> dict[str, Any]:
    """The columns as `datasets` describes them in the file, else guessed from their types."""
    try:
        told = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return dict(told)
    except (KeyError, TypeError, ValueError):
        pass
    found: dict[str, Any] = {}
    for field in schema:
        kind = str(field.type)
        if "binary" in kind:
            found[field.name] = {"_type": "Image"}
        elif "int" in kind and field.name in ("label", "labels"):
            found[field.name] = {"_type": "Value", "dtype": kind}
    return found


def _columns(features: Mapping[str, Any], what: str) -> tuple[str, str | None, tuple[str, ...]]:
    """The column of images, the column of labels or None, and the class names where the column knows them."""
    kinds = {
        name: str(one.get("_type")) if isinstance(one, Mapping) else type(one).__name__
        for name, one in features.items()
    }
    images = [name for name, kind in kinds.items() if kind == "Image"]
    if len(images) != 1:
        raise DataError(
            f"{what}: {len(images)} columns of images ({few(images) or 'none'}) among {few(list(features))}; expected "
            "one: remove the others, or cast it with datasets.Image()"
        )
    labels = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    labels = labels or [name for name in ("label", "labels") if name in features]
    if len(labels) > 1:
        raise DataError(f"{what}: several columns of labels ({few(labels)}); expected one: remove the others")
    if not labels:
        return images[0], None, ()
    column = features[labels[0]]
    names = column.get("names") if isinstance(column, Mapping) else getattr(column, "names", None)
    return images[0], labels[0], tuple(map(str, names or ()))


def _labels(found: NDArray[Any] | None, rows: int, what: str) -> NDArray[np.int64] | None:
    """Class numbers, or None where they are missing or -1 throughout, as in the test splits of competitions."""
    if found is None or (found.dtype.kind in "iu" and len(found) and bool((found == -1).all())):
        return None
    if found.dtype.kind not in "iu" or found.shape != (rows,):
        raise DataError(f"{what}: labels are {found.dtype} {list(found.shape)}; expected one integer per image")
    wrong = np.flatnonzero((found < 0) | (found >= MOST_CLASSES))
    if len(wrong):
        raise DataError(
            f"{what}: label {found[wrong[0]]} of row {wrong[0]} is no class number, {len(wrong)} label(s) are not: "
            "label these rows, or remove them"
        )
    return found.astype(np.int64)


def _all_names(names: tuple[str, ...], parts: list[Part]) -> tuple[str, ...]:
    """The class names the column knows, else numbers up to the highest label."""
    if names:
        return names
    highest = max((int(part.labels.max()) for part in parts if part.labels is not None), default=-1)
    return tuple(map(str, range(highest + 1)))


def _same_names(before: tuple[str, ...], own: tuple[str, ...], what: str) -> tuple[str, ...]:
    if before and own and before != own:
        raise DataError(f"{what}: other classes ({few(own)}) than in the part before ({few(before)})")
    return before or own


def _by_role(found: Mapping[str, Any], what: str) -> dict[str, Any]:
    unknown = [key for key in found if key not in ROLES]
    by_role = {ROLES[key]: one for key, one in found.items() if key in ROLES}
    if unknown or "train" not in by_role or len(by_role) < len(found):
        raise UsageError(
            f"{what}: has the parts {few(list(found))}; expected train and, if there are any, one of validation and "
            "one of test: leave the others out"
        )
    return {role: by_role[role] for role in ("train", "val", "test") if role in by_role}


def _needed(folder: Path, package: str) -> UsageError:
    return UsageError(f"{folder}: to read it {package} is needed: pip install 'noisyteacher[data]'")
