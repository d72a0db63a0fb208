"""Gathers from a logit store against a plain index into one tensor, in turns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import Turns
from torch import Tensor

from noisyteacher import LogitStore
from noisyteacher.data import expand_views
from noisyteacher.store import FINGERPRINTS, Plan, StoreWriter

ROWS, CLASSES, SHARD_ROWS, GATHERS = 4096, 10, 512, 300
VIEWS = {1: "clean", 162: "crop,mirror*crop"}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Tensor, Path]]:
    """For 1 and 162 views: the logits `[V, N, K]` and the folder of the store that holds them, in eight shards."""
    made = {}
    for number, spec in VIEWS.items():
        views, folder = expand_views(spec), tmp_path_factory.mktemp(f"views-{number}")
        assert len(views) == number
        table = torch.randn(number, ROWS, CLASSES, generator=torch.Generator().manual_seed(number))
        plan = Plan(ROWS, CLASSES, views, dict.fromkeys(FINGERPRINTS, "synthetic"), rows_per_shard=SHARD_ROWS)
        with StoreWriter(folder, plan) as writer:
            for shard in writer.missing:
                writer.write(shard, table[:, shard.first_row : shard.first_row + shard.rows])
            writer.finish()
        made[number] = table, folder
    return made


@pytest.mark.parametrize("batch_size", [64, 128])
@pytest.mark.parametrize("views", VIEWS)
@pytest.mark.parametrize("kept", ["memory", "mapped"])
def test_gather(turns: Turns, stores: dict[int, tuple[Tensor, Path]], kept: str, views: int, batch_size: int) -> None:
    table, folder = stores[views]
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

    found = turns.measure(gather, index, rounds=15)
    rate = GATHERS * batch_size / found.work
    turns.tell_ratio(
        found,
        "a plain index",
        f"{rate / 1e6:.2f} M rows/s, {1e6 * found.work / GATHERS:.0f} us a batch",
        rows_per_second=rate,
    )
