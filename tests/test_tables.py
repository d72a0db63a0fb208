"""Tables: in a narrow terminal no line is too long and numbers stay whole; Markdown and HTML show text as text."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from noisyteacher.report.page import _environment
from noisyteacher.tables import Table

Example = tuple[tuple[str, ...], Sequence[tuple[str, ...]], Sequence[int]]
"""Headers, rows, and the columns that are aligned right."""
COMPRESS: Example = (
    ("model", "test error %", "parameters", "bytes", "MACs", "latency ms", "training"),
    [
        ("teacher lenet", "0.71\n(0.56, 0.89)", "431.1 k", "1.725 MB", "2.293 M", "0.619", "4 min 45 s"),
        ("student, logit regression", "50.95\n[40.78, 61.16]", "1.277 M\n2.96x", "5.108 MB\n2.96x", "1.275 M\n0.56x",
         "0.312\n0.50x", "2 min 11 s\n0.46x"),
    ],
    range(1, 7),
)  # fmt: skip
SWEEP: Example = (
    ("condition", "seeds", "val error %", "test error %", "test - clean", "p", "p (Holm)"),
    [
        ("labels alone", "3", "4.00 [4.00, 4.00]", "3.17 [2.75, 3.58]", "-0.17 [-0.88, +0.55]", "0.42", ""),
        ("sigma 0.3, batch", "3", "13.50 [2.88, 24.12]", "13.50 [3.09, 23.91]", "+0.17 [-10.25, +10.58]", "0.23",
         "0.25"),
    ],
    range(1, 7),
)  # fmt: skip
EXPORT: Example = (
    ("format", "precision", "accuracy %", "agreement %", "logit difference", "size", "latency ms", "holds"),
    [("onnx", "int8", "47.20", "97.00", "3.3e-07", "2.226 MB (0.26x)", "10.212 (0.26x)", "yes")],
    range(2, 7),
)
MEASURE: Example = (
    ("cost", "value", "exactly"),
    [("latency", "8.515 ms", "median; p95 10.112 ms; batch 1, 1 thread(s), cpu, 50 runs"),
     ("MACs per image", "222.5 M", "222,486,528 multiplications, biases not counted")],
    (),
)  # fmt: skip
RUNS: Example = (
    ("run", "state", "started (UTC)", "error %"),
    [("20261128T1952Z-sweep-mlp800-2e98a5/sigma0.9-row-seed1", "unfinished", "2026-11-28T19:53", "81.50")],
    (3,),
)
TABLES = {"compress": COMPRESS, "sweep": SWEEP, "export": EXPORT, "measure": MEASURE, "runs": RUNS}


def table_lines(
    headers: tuple[str, ...], rows: Sequence[tuple[str, ...]], right: Sequence[int], width: int
) -> list[str]:
    align = "".join("r" if number in right else "l" for number in range(len(headers)))
    return Table(headers, tuple(rows), align).text(width, "─").split("\n")


def words(lines: list[str]) -> list[str]:
    return sorted(word for line in lines for word in line.split() if set(word) != {"─"})


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", TABLES)
def test_tables_fit_and_break_no_word(name: str, width: int) -> None:
    headers, rows, right = TABLES[name]
    lines = table_lines(headers, rows, right, width)
    assert max(map(len, lines)) <= width
    (rule,) = (line for line in lines if set(line) == {"─"})
    assert len(rule) == max(len(line) for line in lines if line is not rule)
    whole = [word for row in (headers, *rows) for cell in row for word in cell.split()]
    if name == "runs" and width == 80:  # an id is longer than what is left: it breaks behind its slash
        whole = [part for word in whole for part in re.split(r"(?<=/)", word)]
    assert words(lines) == sorted(whole)


@pytest.mark.parametrize("name", ["compress", "sweep", "export"])
def test_numbers_stay_in_one_piece(name: str) -> None:
    """A number with its unit and an interval in its brackets stand on one line."""
    headers, rows, right = TABLES[name]
    text = "\n".join(table_lines(headers, rows, right, 80))
    for row in rows:
        for column in right:
            for part in re.split(r"\n| (?=[\[(])", row[column]):
                assert part in text, part


def test_a_wide_terminal_gets_one_line_per_row() -> None:
    headers, rows, right = SWEEP
    lines = table_lines(headers, rows, right, 120)
    assert len(lines) == 2 + len(rows)
    assert lines[1] == "─" * len(lines[1])
    assert lines[3].startswith("sigma 0.3, batch      3  13.50 [2.88, 24.12]")


def test_short_headers_stand_on_the_rule() -> None:
    lines = table_lines(("name", "a long header"), [("x" * 10, "1")], (1,), 20)
    assert lines == ["            a long", "name        header", "─" * 18, "xxxxxxxxxx       1"]


def test_what_cannot_fit_is_cut_where_it_must_be() -> None:
    lines = table_lines(("path",), [("a/b" + "c" * 50,)], (), 30)
    assert max(map(len, lines)) <= 30
    assert "".join(lines[2:]).replace(" ", "") == "a/b" + "c" * 50


def test_markdown_and_html_show_text_as_text() -> None:
    hostile = "<script>alert(1)</script>|x"
    table = Table(("name", "error %"), ((f"{hostile}\nseed 1", "1.00\n[0.50, 1.50]"),), notes=("n = 4.",), bar=1)
    lines = table.markdown().split("\n")
    assert lines[1] == "|---|--:|"
    assert lines[2] == r"| &lt;script&gt;alert(1)&lt;/script&gt;\|x seed 1 | 1.00 \[0.50, 1.50\] |"
    page = _environment().get_template("table.html").render(table=table)
    assert "<script" not in page
    assert "<small>[0.50, 1.50]</small>" in page
    assert 'style="width:1.0%"' in page
    opened: list[str] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: opened.append(tag)  # type: ignore[method-assign]
    parser.handle_endtag = lambda tag: opened.remove(tag)  # type: ignore[method-assign]
    parser.feed(page)
    assert opened == []


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """A script of the folder `scripts` as a module."""
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[1] / "scripts")
    return importlib.import_module


def test_a_table_of_one_seed_has_no_interval(script: Callable[[str], Any]) -> None:
    lines = [
        {"teacher": "nin", "epochs": 2, "start": start, "lr": 0.1, "seed": seed, "split": split, "error_%": error}
        for start, error in (("random", 30.0), ("magnitude", 28.5))
        for seed, split in ((0, "val"), (1, "test"))
    ]
    table = script("measure_starts").table
    assert table(lines).endswith("| `pretrained:nin-cifar10` | 2 | 30.00 | 28.50 | -1.50 |")
    second = [{**line, "seed": 2, "error_%": 29.0} for line in lines if line["seed"] == 1]
    assert re.search(r"\| -0\.75 \[-\d+\.\d\d, \+\d+\.\d\d\] \|$", table([*lines, *second]))


@pytest.mark.parametrize("name", ["measure_starts", "qat_study"])
def test_a_script_without_the_file_to_write_says_so(
    name: str, script: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "cifar10"])
    with pytest.raises(SystemExit) as ended:
        script(name).main()
    assert ended.value.code == 2
    assert "out: missing" in capsys.readouterr().err
