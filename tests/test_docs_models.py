"""docs/models.md says of every network what is measured, and of every preset what it does."""

from __future__ import annotations

import re
from pathlib import Path

import noisyteacher as nt
from noisyteacher.config import PRESETS, Config
from noisyteacher.models import COMPACT, MODELS
from noisyteacher.pipeline.resolve import BATCH, INHERITED_LR, LARGER_BATCHES, LR

TEXT = (Path(__file__).resolve().parents[1] / "docs" / "models.md").read_text(encoding="utf-8")
ROW = re.compile(
    r"^\| `([\w-]+)` \| (\d+)x(\d+)x(\d+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| [\d.]+ \| [\d,]+ \|$", re.M
)


def test_the_table_of_costs_is_measured() -> None:
    rows = ROW.findall(TEXT)
    assert {row[0] for row in rows} == set(MODELS)
    for name, *numbers in rows:
        *shape, macs, parameters, size = (int(number.replace(",", "")) for number in numbers)
        costs = nt.measure(nt.build_model(name, classes=10, input_shape=tuple(shape)), latency=False)
        assert (costs.macs, costs.parameters, costs.bytes) == (macs, parameters, size), name
    sizes = [int(row[4].replace(",", "")) for row in rows]
    assert sizes == sorted(sizes)


def test_the_compact_students_are_described() -> None:
    for name, member in COMPACT.items():
        stages = ", ".join(f"{channels} x {blocks}" for channels, blocks in member.stages)
        macs = nt.measure(nt.build_model(name, classes=10, input_shape=(3, 32, 32)), latency=False).macs
        assert f"| `{name}` | {member.stem} | {stages} | 1 / {222_486_528 / macs:.1f} |" in TEXT
    large = nt.measure(nt.build_model("compact-xs", classes=10, input_shape=(3, 224, 224)), latency=False)
    assert f"costs `compact-xs` {large.macs / 1e6:.1f} M multiplications" in " ".join(TEXT.split())


def test_the_presets_are_described() -> None:
    part = TEXT.partition("## Recipes")[2].partition("\n## ")[0]
    rows = {row[0]: row[1:] for row in re.findall(r"^\| `(\w+)` \|" + r" ([^|]*)\|" * 4 + "$", part, re.M)}
    default, paper, modern = Config(), PRESETS["paper"], PRESETS["modern"]
    assert set(rows) == {name for values in (*paper.values(), *modern.values()) for name in values}

    def words(value: object) -> str:
        return value if isinstance(value, str) else f"{value:g}"

    for name in set(rows) - {"views", "loss", "label_weight", "lr", "optimizer", "batch_size"}:
        assert getattr(default.teacher, name) == getattr(default.student, name)
        values = (
            getattr(default.student, name),
            paper["student"][name],
            modern["teacher"][name],
            modern["student"][name],
        )
        assert [cell.strip() for cell in rows[name]] == [words(value) for value in values], name
        assert paper["teacher"][name] == paper["student"][name]
    larger = sorted(LARGER_BATCHES.items())
    rates = f"auto: {LR:g}, in larger batches of auto {' and '.join(f'{lr:g}' for _, (_, lr) in larger)}, "
    rates += f"wide copies {INHERITED_LR:g}"
    assert rows["lr"][0].strip() == f"{rates}; teacher {default.teacher.lr:g}"
    sizes = f"auto: {BATCH}, students {', '.join(f'from {images:,} images on {size}' for images, (size, _) in larger)}"
    assert [cell.strip() for cell in rows["batch_size"]] == [sizes, "64", "128", "128"]
    assert default.teacher.batch_size == BATCH
    for name in ("views", "optimizer", "label_weight", "lr", "batch_size"):
        assert rows[name][0].startswith("auto: ")
        assert getattr(default.student, name) in ("auto", ["auto"])
    assert rows["loss"][0].startswith(default.student.loss)
    assert [rows["loss"][column].strip() for column in (1, 3)] == ["logit_regression"] * 2
