"""Gathers from a logit store against a plain index into one tensor, in turns."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from conftest import Turns
from noisyteacher import LogitStore
from noisyteacher.data import expand_views
from noisyteacher.store import FINGERPRINTS, Plan, write_store

ROWS, CLASSES, GATHERS = 4096, 10, 100
VIEWS = {1: "clean", 162: "crop,mirror*crop"}
SHARDS = {"memory": 8, "mapped-8": 8, "mapped-128": 128}


def write(folder: Path, plan: Plan, table: Tensor) -> LogitStore:
    return write_store(
        folder, plan, lambda missing: (table[:, part.first_row : part.first_row + part.rows] for part in missing)
    )


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], tuple[Tensor, Path]]:
    """For views and shards: the logits `[V, N, K]` and the folder of the store that holds them."""
    made = {}
    for number, shards in product(VIEWS, sorted(set(SHARDS.values()))):
        views, folder = expand_views(VIEWS[number]), tmp_path_factory.mktemp(f"views-{number}")
        assert len(views) == number
        table = torch.randn(number, ROWS, CLASSES, generator=torch.Generator().manual_seed(number))
        plan = Plan(ROWS, CLASSES, views, dict.fromkeys(FINGERPRINTS, "synthetic"), rows_per_shard=ROWS // shards)
        write(folder, plan, table)
        made[number, shards] = table, folder
    return made


@pytest.mark.parametrize(("rows", "classes"), [(1_000_000, 10), (100_000, 1000)])
def test_gather_of_a_large_store(turns: Turns, tmp_path: Path, rows: int, classes: int) -> None:
    plan = Plan(rows, classes, ("clean",), dict.fromkeys(FINGERPRINTS, "synthetic"))
    table = torch.randn(rows, classes, generator=torch.Generator().manual_seed(0))
    store = write(tmp_path, plan, table[None])
    wanted = torch.randint(rows, (GATHERS, 256), generator=torch.Generator().manual_seed(0))
    view = torch.zeros(256, dtype=torch.int64)
    for row in wanted:
        assert torch.equal(store.logits(view, row), table[row])

    def gather() -> None:
        for row in wanted:
            store.logits(view, row)

    def index() -> None:
        for row in wanted:
            table[row]

    found = turns.measure(gather, index, rounds=11)
    turns.tell_ratio(found, "a plain index", f"{1e6 * found.work / GATHERS:.0f} us a batch of 256")


@pytest.mark.parametrize("batch_size", [64, 128])
@pytest.mark.parametrize("views", VIEWS)
@pytest.mark.parametrize("kept", SHARDS)
def test_gather(
    turns: Turns, stores: dict[tuple[int, int], tuple[Tensor, Path]], kept: str, views: int, batch_size: int
) -> None:
    table, folder = stores[views, SHARDS[kept]]
    store = LogitStore.open(folder) if kept == "memory" else LogitStore.open(folder, memory_bytes=0)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(ROWS, (GATHERS, batch_size), generator=generator)
    which = torch.randint(views, (GATHERS, batch_size), generator=generator)
    wanted = list(zip(which, rows, strict=True))
    for view, row in wanted:
        assert torch.equal(store.logits(view, row), table[view, row])

    def gather() -> None:
        for view, row in wanted:
            store.logits(view, row)

    def index() -> None:
        for view, row in wanted:
            table[view, row]

    found = turns.measure(gather, index, rounds=11, sane=(0.5, 1000))
    rate = GATHERS * batch_size / found.work
    turns.tell_ratio(
        found,
        "a plain index",
        f"{rate / 1e6:.2f} M rows/s, {1e6 * found.work / GATHERS:.0f} us a batch",
        rows_per_second=rate,
    )
