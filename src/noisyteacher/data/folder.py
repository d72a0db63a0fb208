"""Images in folders, decoded once into one uint8 tensor per split."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from noisyteacher.data.arrays import assemble, cut
from noisyteacher.data.hf import is_saved, parquet_files
from noisyteacher.data.npz import MAX_BYTES
from noisyteacher.data.packable import Part, given_classes
from noisyteacher.data.split import Split, Splits
from noisyteacher.data.tree import folder_source
from noisyteacher.errors import DataError, UsageError
from noisyteacher.pixels import Way, size_of
from noisyteacher.text import printable, size_bytes

CLASSES = '--set data.classes=10 or --set \'data.classes=["cat","dog"]\''


def load_folder(
    folder: Path,
    *,
    size: int | tuple[int, int] | None = None,
    grey: bool = False,
    classes: int | Sequence[str] | None = None,
    seed: int = 0,
    max_bytes: int = MAX_BYTES,
) -> Splits:
    """The splits in `folder/{train,val,test}/CLASS/**/*.png`, or in `folder/CLASS/**/*.png` cut 80/10/10 stratified.

    Split folders may have other usual names (`tree.SPLIT_FOLDERS`) and any case; a part without class folders is
    unlabelled, and `classes` names the classes, or says how many, where every part is. Classes are the sub-folders in
    alphabetical order. Without `val` a stratified tenth of train is held out; without `test` there is none. Images
    become RGB, or one grey channel with `grey`; transparency is dropped, animations give their first frame, and the
    orientation tag of a photograph is applied. `size` (pixels, or (height, width)) resizes every image to exactly that,
    bilinear with antialiasing; it is needed where sizes differ. Links are followed. Files that are not images are left
    out and counted in the `note` of what comes back.
    Raises DataError naming the file or folder: splits mixed with classes, an empty class, a class that train lacks, an
    image that cannot be decoded, sizes that differ, more than `max_bytes` once decoded.
    """
    root = Path(os.path.abspath(folder))
    if is_saved(root) or parquet_files(root):
        raise UsageError(
            f"{folder}: a data set of Hugging Face, which is packed before it is used: noisyteacher data pack {folder} "
            "OUT (in Python pack_data), then give OUT"
        )
    way = Way(size_of(size), grey, "squash")
    source = folder_source(root, follow_links=True)
    names = given_classes(classes, source, CLASSES)
    loaded: dict[str, tuple[Tensor, Tensor | None]] = {}
    for part in source.parts:
        images = _load(root, part, way, max_bytes)
        loaded[part.role] = images, None if part.labels is None else torch.from_numpy(part.labels)
        max_bytes -= images.nbytes
        (height, width), (expected, across) = images.shape[2:], next(iter(loaded.values()))[0].shape[2:]
        if (height, width) != (expected, across):
            raise DataError(
                f"{root} ({part.role}): images are {height}x{width} (height x width), those of train "
                f"{expected}x{across}; bring them to one size by --set data.size=32 (in Python size=32)"
            )
    if "all" in loaded:
        return cut(source.name, *loaded["all"], names, seed=seed, note=source.note)
    held = {
        role: Split(images, labels, torch.arange(len(images)), role, source.name, names)
        for role, (images, labels) in loaded.items()
        if role != "train"
    }
    return assemble(
        source.name, *loaded["train"], names, held.get("val"), held.get("test"), seed=seed, note=source.note
    )


def _load(root: Path, part: Part, way: Way, max_bytes: int) -> Tensor:
    """The images of one part, uint8 `[N, C, H, W]`."""
    into: Tensor | None = None
    for row, (name, item) in enumerate(zip(part.names, part.items(0), strict=True)):
        path = printable(root / name)
        pixels = way.row(item)
        if isinstance(pixels, str):
            raise DataError(f"{path}: {pixels}")
        if into is None:
            needed = len(part.names) * pixels.nbytes
            if needed > max_bytes:
                raise DataError(
                    f"{root}: {len(part.names)} images of {list(pixels.shape)} take {size_bytes(needed)} in memory, "
                    f"more than the {size_bytes(max_bytes)} that are allowed; scale them by --set data.size=32 "
                    "(in Python size=32); in Python a larger max_bytes= allows it"
                )
            into = torch.empty(len(part.names), *pixels.shape, dtype=torch.uint8)
        if pixels.shape != tuple(into.shape[1:]):
            raise DataError(
                f"{path}: {pixels.shape[1]}x{pixels.shape[2]} (height x width), but {printable(root / part.names[0])} "
                f"is {into.shape[2]}x{into.shape[3]}; bring them to one size by --set data.size=32 (in Python size=32)"
            )
        into[row] = torch.from_numpy(pixels.copy())
    assert into is not None  # a part without images is refused where it is listed
    return into
