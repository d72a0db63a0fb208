"""Views: named deterministic augmentations, finite in number, so that every view can have exact teacher logits.

A view is `clean`, `mirror` (left and right exchanged), `crop-yA-xB` (four zero pixels added on every side, then a
window of the image's size cut A pixels from the top and B from the left, both in 0..8) or `mirror-crop-yA-xB` (the same
crop of the mirrored image). The window in the middle changes nothing: `crop-y4-x4` is `clean`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import product

import torch
from torch import Tensor
from torch.nn.functional import pad

from noisyteacher.device import sent
from noisyteacher.errors import MismatchError, UsageError
from noisyteacher.text import unknown_name

PAD = 4
OFFSETS = 2 * PAD + 1
_PATTERN = re.compile(r"(mirror-)?crop-y([0-8])-x([0-8])")
_SPECS = ("clean", "mirror", "crop", "mirror*crop", "crop-yA-xB", "mirror-crop-yA-xB (A and B in 0..8)")


def view_name(mirrored: bool, top: int, left: int) -> str:
    """The canonical name: `view_name(False, 4, 4) == "clean"`, `view_name(True, 0, 8) == "mirror-crop-y0-x8"`."""
    if top == left == PAD:
        return "mirror" if mirrored else "clean"
    return f"{'mirror-' if mirrored else ''}crop-y{top}-x{left}"


def parse_view(name: str) -> tuple[bool, int, int]:
    """(mirrored, top, left) of one view; top and left in 0..8, 4 being the middle. Raises UnknownNameError."""
    if name in ("clean", "mirror"):
        return name == "mirror", PAD, PAD
    match = _PATTERN.fullmatch(name)
    if match is None:
        raise unknown_name("view", name, _SPECS)
    return match[1] is not None, int(match[2]), int(match[3])


def expand_views(spec: str | Sequence[str]) -> tuple[str, ...]:
    """The canonical view names of a spec, in order, each once.

    A spec is a view, a family (`crop` or `mirror*crop`: 81 views, row by row), several of them separated by commas, or
    a sequence of these. Raises UnknownNameError with the nearest name, UsageError for an empty spec.
    """
    words = ",".join([spec] if isinstance(spec, str) else spec).split(",")
    names: list[str] = []
    for word in filter(None, map(str.strip, words)):
        if word in ("crop", "mirror*crop"):
            names += [view_name(word != "crop", top, left) for top, left in product(range(OFFSETS), repeat=2)]
        else:
            names.append(view_name(*parse_view(word)))
    if not names:
        raise UsageError(f"no view in {spec!r}: name at least one, such as 'clean'")
    return tuple(dict.fromkeys(names))


@lru_cache(maxsize=256)
def _table(views: tuple[str, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Mirrored [V] bool, top [V] and left [V] int64 of the named views."""
    mirrored, top, left = zip(*map(parse_view, views), strict=True)
    return torch.tensor(mirrored), torch.tensor(top), torch.tensor(left)


def apply_views(images: Tensor, views: Sequence[str], which: Tensor) -> Tensor:
    """Each image under its view: images `[B, C, H, W]`, `views` a table of names, `which` `[B]` int64 into it.

    The result has the shape, dtype and device of the images; it takes one gather, whatever the number of views.
    Raises UnknownNameError for a name, MismatchError when `which` does not match the images or the table.
    """
    if images.ndim != 4 or which.shape != images.shape[:1]:
        raise MismatchError(f"images {list(images.shape)}, which {list(which.shape)}: expected [B, C, H, W] and [B]")
    if not views:
        raise MismatchError("no view to apply: give a table with at least one name, such as ('clean',)")
    if which.numel():
        low, high = map(int, which.aminmax())
        if not 0 <= low <= high < len(views):
            raise MismatchError(f"which holds {low}..{high}, the table has {len(views)} views")
    if all(view == "clean" for view in views):
        return images
    mirrored, top, left = (column.to(which.device)[which] for column in _table(tuple(views)))
    if bool(mirrored.any()):
        images = torch.where(sent(mirrored, images.device)[:, None, None, None], images.flip(-1), images)
    if bool(((top == PAD) & (left == PAD)).all()):
        return images
    top, left = sent(top, images.device), sent(left, images.device)
    height, width = images.shape[-2:]
    # All 81 windows of every image as one strided view [B, C, 9, 9, H, W]: nothing is copied before the gather.
    windows = pad(images, (PAD, PAD, PAD, PAD)).unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(len(images), device=images.device), :, top, left]


def apply_view(images: Tensor, name: str) -> Tensor:
    """All images `[B, C, H, W]` under one view; same shape and dtype. Raises UnknownNameError."""
    return apply_views(images, (name,), torch.zeros(len(images), dtype=torch.int64, device=images.device))
