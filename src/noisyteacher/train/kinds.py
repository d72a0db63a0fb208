"""The losses of several students in one go: those whose objectives are of one kind are computed as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.func import vmap

from noisyteacher.objectives import Parts


@dataclass
class Asked:
    """What objectives of one kind take at a step."""

    parts: Parts
    rows: list[int] = field(default_factory=list)
    """The students, by their place among all."""
    tables: list[tuple[Tensor, ...]] = field(default_factory=list)
    """The tensors they take of their batches, those they share once."""
    which: list[int] = field(default_factory=list)
    """Of every student its place in `tables`."""
    own: list[tuple[float, ...]] = field(default_factory=list)
    """The numbers that are each one's own."""
    known: dict[tuple[int, ...], int] = field(default_factory=dict)

    def add(self, row: int, table: tuple[Tensor, ...], own: tuple[float, ...]) -> None:
        """One student more."""
        place = self.known.setdefault(tuple(map(id, table)), len(self.tables))
        if place == len(self.tables):
            self.tables.append(table)
        self.rows.append(row)
        self.which.append(place)
        self.own.append(own)

    @property
    def shape(self) -> tuple[object, ...]:
        """What two steps must have in common for the same kernels to do both."""
        tensors = tuple((tuple(one.shape), one.dtype, one.device) for table in self.tables for one in table)
        return self.parts.kind, tuple(self.rows), tuple(self.which), tensors

    @property
    def changing(self) -> list[Tensor]:
        """The tensors that are others at every step."""
        return [*(one for table in self.tables for one in table), torch.tensor(self.own, dtype=torch.float32)]

    def placed(self, device: torch.device) -> Placed:
        """The same on the device."""
        return self.as_placed([one.to(device) for one in self.changing], device)

    def as_placed(self, changing: Sequence[Tensor], device: torch.device) -> Placed:
        """The same with these in the place of `changing`, on the device."""
        width = len(self.tables[0])
        tables = [tuple(changing[at : at + width]) for at in range(0, len(self.tables) * width, width)]
        which, rows = (torch.tensor(one, device=device) for one in (self.which, self.rows))
        return Placed(self.parts, list(self.rows), rows, tables, which, changing[-1])


@dataclass(frozen=True)
class Placed:
    """`Asked` as tensors of the device of the arithmetic."""

    parts: Parts
    rows: list[int]
    places: Tensor
    tables: list[tuple[Tensor, ...]]
    which: Tensor
    own: Tensor

    def losses(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The losses `[rows]` and the values worth telling `[rows, n]`, of the logits `[M, B, K]` of all students."""
        columns = [torch.stack(column)[self.which] for column in zip(*self.tables, strict=True)]
        asked = logits if len(self.rows) == len(logits) else logits.index_select(0, self.places)
        return vmap(self.parts.terms)(asked, *columns, *self.own.unbind(1))


def taught(
    logits: Tensor, asked: Sequence[Placed], alone: dict[int, Tensor] | None = None
) -> tuple[Tensor, list[Tensor]]:
    """The losses `[M]` of the logits `[M, B, K]`, and by kind the values worth telling.

    alone: losses by row that were computed one by one. A student that nobody teaches has a loss without a gradient.
    """
    losses, told = dict(alone or {}), []
    for one in asked:
        found, values = one.losses(logits)
        losses |= dict(zip(one.rows, found.unbind(), strict=True))
        told.append(values)
    for row in set(range(len(logits))) - losses.keys():
        losses[row] = logits[row].sum() * 0
    return torch.stack([losses[row] for row in range(len(logits))]), told


def told_by_row(read: Sequence[float], asked: Sequence[Placed], told: Sequence[Tensor]) -> dict[int, dict[str, float]]:
    """The values by row and name, of `told` read out as one list of numbers."""
    found, at = {}, 0
    for one, values in zip(asked, told, strict=True):
        for row in one.rows:
            found[row] = one.parts.told(list(read[at : at + values.shape[1]]))
            at += values.shape[1]
    return found
