"""Which of the data sets known by name lie here, told without reading them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from noisyteacher.data import cifar, mnist, svhn
from noisyteacher.data.sources import DATASETS, default_root


def datasets_here(root: str | os.PathLike[str] | None = None) -> list[dict[str, Any]]:
    """A record for each known name: `name`, `here` (yes, no), `files` (where they are, or what is missing).

    Looks for the files under `root` (by default where `load_data` looks); whether they are whole, `data check` tells.
    """
    place = Path(root).expanduser() if root is not None else default_root()
    return [_record(name, place) for name in DATASETS]


def _record(name: str, root: Path) -> dict[str, Any]:
    if name == "mnist-5k":
        return {"name": name, "here": "yes", "files": "comes with the package"}
    folder, missing = _missing(name, root)
    told = f"missing in {folder}: {', '.join(missing)} (fetched at first use)" if missing else str(folder)
    return {"name": name, "here": "no" if missing else "yes", "files": told}


def _missing(name: str, root: Path) -> tuple[Path, list[str]]:
    """The data set's folder and the files it lacks."""
    if name == "mnist":
        folder = mnist.folder_of(root)
        return folder, [
            f"{one}.gz" for one in mnist.FILES if not ((folder / one).exists() or (folder / f"{one}.gz").exists())
        ]
    if name == "cifar10":
        if (root / cifar.ARCHIVE.file).exists():
            return root, []
        folder = root / cifar.FOLDER
        missing = [one for one in cifar.BATCHES if not (folder / one).exists()]
        return (folder, missing) if folder.is_dir() else (root, [cifar.ARCHIVE.file])
    return root, [f"{part}_32x32.mat" for part in svhn.MD5 if not (root / f"{part}_32x32.mat").exists()]
