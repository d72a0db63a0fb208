"""Images in folders named after their classes (an ImageFolder tree), decoded once into one uint8 tensor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisyteacher.data.arrays import assemble, cut
from noisyteacher.data.npz import MAX_BYTES
from noisyteacher.data.split import ROLES, Split, Splits
from noisyteacher.errors import DataError
from noisyteacher.pixels import ENDINGS, decode, size_of
from noisyteacher.text import size_bytes


def load_folder(
    folder: Path,
    *,
    size: int | tuple[int, int] | None = None,
    grey: bool = False,
    seed: int = 0,
    max_bytes: int = MAX_BYTES,
) -> Splits:
    """The splits in `folder/{train,val,test}/CLASS/*.png`, or in `folder/CLASS/*.png` cut 80/10/10 stratified.

    Classes are the sub-folders in alphabetical order. Without `val` a stratified tenth of train is held out; without
    `test` there is none. Images become RGB, or one grey channel with `grey`; transparency is dropped, animations give
    their first frame, and the orientation tag of a photograph is applied. `size` (pixels, or (height, width))
    resizes every image to exactly that, bilinear with antialiasing; it is needed where sizes differ. Names that begin
    with a dot and files of other kinds than images are passed over.
    Raises DataError naming the file or folder: no class, an empty class, a class that train lacks, an image that
    cannot be decoded, sizes that differ, more than `max_bytes` once decoded.
    """
    shape = size_of(size)
    roles = [role for role in ROLES if _subfolders(folder / role)]
    if not roles:
        names = tuple(_subfolders(folder))
        images, labels = _load(folder, names, shape, grey, max_bytes)
        return cut(folder.name, images, labels, names, seed=seed)
    if "train" not in roles:
        raise DataError(f"{folder}: has {' and '.join(roles)} but no train/CLASS/ with images in it")
    names = tuple(_subfolders(folder / "train"))
    loaded: dict[str, tuple[Tensor, Tensor]] = {}
    for role in roles:
        extra = sorted(set(_subfolders(folder / role)) - set(names))
        if extra:
            raise DataError(f"{folder / role / extra[0]}: a class that {folder / 'train'} does not have")
        loaded[role] = _load(folder / role, names, shape, grey, max_bytes)
        max_bytes -= loaded[role][0].nbytes
        (height, width), (expected, across) = loaded[role][0].shape[2:], loaded["train"][0].shape[2:]
        if (height, width) != (expected, across):
            raise DataError(
                f"{folder / role}: images are {height}x{width} (height x width), those of train {expected}x{across}; "
                "bring them to one size by --set data.size=32 (in Python size=32)"
            )
    held = {
        role: Split(images, labels, torch.arange(len(images)), role, folder.name, names)
        for role, (images, labels) in loaded.items()
        if role != "train"
    }
    return assemble(folder.name, *loaded["train"], names, held.get("val"), held.get("test"), seed=seed)


def _load(
    folder: Path, names: tuple[str, ...], shape: tuple[int, int] | None, grey: bool, max_bytes: int
) -> tuple[Tensor, Tensor]:
    """Images uint8 `[N, C, H, W]` and labels int64 `[N]` of one folder of classes."""
    if len(names) < 2:
        raise DataError(f"{folder}: {len(names)} sub-folder(s) in it; expected two or more, one per class")
    files = [(path, label) for label, name in enumerate(names) for path in _images_in(folder / name)]
    into: Tensor | None = None
    for row, (path, _) in enumerate(files):
        pixels = _decode(path, shape, grey)
        if into is None:
            needed = len(files) * pixels.nbytes
            if needed > max_bytes:
                raise DataError(
                    f"{folder}: {len(files)} images of {list(pixels.shape)} take {size_bytes(needed)} in memory, more "
                    f"than the {size_bytes(max_bytes)} that are allowed; scale them by --set data.size=32 (in Python "
                    "size=32); in Python a larger max_bytes= allows it"
                )
            into = torch.empty(len(files), *pixels.shape, dtype=torch.uint8)
        if pixels.shape != tuple(into.shape[1:]):
            raise DataError(
                f"{path}: {pixels.shape[1]}x{pixels.shape[2]} (height x width), but {files[0][0]} is "
                f"{into.shape[2]}x{into.shape[3]}; bring them to one size by --set data.size=32 (in Python size=32)"
            )
        into[row] = torch.from_numpy(pixels.copy())
    if into is None:
        raise DataError(f"{folder}: no images in it")
    return into, torch.tensor([label for _, label in files])


def _decode(path: Path, shape: tuple[int, int] | None, grey: bool) -> NDArray[np.uint8]:
    try:
        return decode(path, shape, grey)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _subfolders(folder: Path) -> list[str]:
    """The names of the sub-folders, sorted; hidden ones are passed over."""
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _images_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    visible = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    found = [path for path in visible if path.suffix.lower() in ENDINGS]
    if not found:
        others = f" ({len(visible)} other file(s), such as {visible[0].name})" if visible else ""
        raise DataError(f"{folder}: no image in it{others}; expected files ending in {', '.join(ENDINGS)}")
    return found
