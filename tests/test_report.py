"""Reports: what the page says, that names stay names, that equal runs give equal bytes, and what is refused."""

from __future__ import annotations

import csv
import html
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure as Canvas

import made_runs as folders
from noisyteacher import cli
from noisyteacher.errors import FileFormatError, UnknownNameError, UsageError
from noisyteacher.pipeline.results import Condition, Difference, Family, Verdict
from noisyteacher.report import build_report, read_studies
from noisyteacher.report.figures import (
    COLOURS,
    Figure,
    Series,
    _paper_curves,
    along,
    confusion,
    differences,
    groups,
    trade_offs,
)
from noisyteacher.report.formats import as_csv, as_json, markdown
from noisyteacher.report.page import page as page_of
from noisyteacher.report.study import Details, Study, verdict_text
from noisyteacher.report.tables import recalls, results
from noisyteacher.runs import Run, new_run
from noisyteacher.stats import binomial_interval
from noisyteacher.text import escaped, harmless, printable

HOSTILE = ("<script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "=cmd()|'/C calc'!A0")
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """A page as a reader sees it: elements with their attributes, text without markup; tags must be balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], "elements are left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def compression(folder: Path) -> Run:
    return folders.compression(folder)


@pytest.fixture(scope="module")
def sweep(folder: Path) -> Run:
    return folders.sweep(folder, failed=True)


def curves(runs: Sequence[Run | Study]) -> list[str]:
    """The captions of the figures of test error along sigma."""
    studies = [run if isinstance(run, Study) else read_studies(run)[0] for run in runs]
    drawn = [along(group, "sigma", "test") for group in groups(studies, "ABC"[: len(studies)])]
    return [figure.caption for figure in drawn if figure is not None]


def captions(text: str) -> list[str]:
    matches = re.findall(r"<figcaption>(.*?)</figcaption>", text)
    return [" ".join(html.unescape(re.sub(r"<[^>]*>", "", entry)).split()) for entry in matches]


@pytest.fixture(scope="module")
def compression_page(compression: Run) -> str:
    return build_report(compression.path)


@pytest.fixture(scope="module")
def sweep_page(sweep: Run) -> str:
    return build_report(sweep.path)


@pytest.fixture(scope="module")
def both_page(compression: Run, sweep: Run) -> str:
    return build_report([compression, sweep])


def test_a_compression_says_its_verdict_first_and_shows_all_its_figures(compression_page: str) -> None:
    text = compression_page
    page = Page(text)
    assert page.text.index("The noise helped") < page.text.index("Results")
    assert "Noise of sigma 0.5, alpha 0.5 helped here (-0.98 points of test error, 95 % interval" in page.text
    for number in (
        "7.22 %",
        "[6.71, 7.72]",
        "(2.15, 11.18)",
        "\u22120.98",
        "3 pairs",
        "0.40× MACs",
        "3.00× parameters",
    ):
        assert number in page.text
    descriptions = captions(text)
    assert len(descriptions) == len(page.all("figure")) == len(page.all("svg")) == 12
    for part in ("Test error minus", "Validation error (%) by epoch", "Training loss", "Reliability on test",
                 "Confusion of teacher lenet", "Confusion of student, noisy", "Error on mnist (test"):  # fmt: skip
        assert any(entry.startswith(part) for entry in descriptions), part
    assert all("n = 100" in entry or "seed" in entry for entry in descriptions)
    assert all(entry["role"] == "img" and len(entry["aria-label"] or "") > 20 for entry in page.all("svg"))


def test_the_page_is_whole_and_asks_for_nothing(both_page: str) -> None:
    text = both_page
    page = Page(text)
    (policy,) = (entry["content"] for entry in page.all("meta") if entry.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    assert page.elements.index(("style", {})) > [tag for tag, _ in page.elements].index("meta")
    assert {tag for tag, _ in page.elements} & {
        "script",
        "iframe",
        "object",
        "embed",
        "form",
        "base",
        "foreignobject",
    } == set()
    for _, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href"):
                assert (value or "").startswith(("#", "data:")), value
    assert "url(http" not in text
    assert "@import" not in text
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {(entry.get("href") or "")[1:] for entry in page.all("a") + page.all("use")}
    assert targets <= set(ids)
    assert [colour for colour in COLOURS.values() if colour in text] == []


def test_a_sweep_has_curves_with_intervals_and_the_papers_beside_them(sweep_page: str) -> None:
    descriptions = captions(sweep_page)
    (first,) = (entry for entry in descriptions if entry.startswith("Test error against sigma"))
    assert "mlp800 from lenet, mnist, n = 10,000 images, 3 seeds, alpha 0.15" in first
    assert "95 % Student-t interval" in first
    assert "Paper: single runs" in first
    assert any(entry.startswith("Validation error against sigma") and "Paper" not in entry for entry in descriptions)
    page = Page(sweep_page)
    assert "paper, Table 1" in page.text
    assert "chosen by validation, lowest test error" in page.text
    assert "sigma0.9-seed7 diverged" in page.text
    assert "The noise helps: sigma 0.5, which validation prefers among 3 noises, gives -0.40 points" in page.text


def test_runs_that_differ_in_sigma_alone_make_a_curve(tmp_path: Path) -> None:
    runs = [folders.compression(tmp_path, sigma=sigma, with_store=False) for sigma in (0.2, 0.5, 0.8)]
    (caption,) = curves(runs)
    assert caption.startswith("Test error against sigma, runs A, B, C: mlp800 from lenet, mnist, n = 100 images")
    assert curves(runs[:1]) == []
    other_seeds = folders.compression(tmp_path, sigma=0.9, seeds=2, with_store=False)
    assert curves([runs[0], other_seeds]) == []


def test_several_runs_show_where_they_differ(compression: Run, both_page: str, tmp_path: Path) -> None:
    other = folders.compression(tmp_path, sigma=0.9)
    text = build_report([compression, other], "md")
    assert "1 of 11 settings differ" in text
    assert "| noise.sigma | 0.5 | 0.9 |" in text
    assert "noise.alpha" not in text
    assert "2 runs" in Page(both_page).text
    assert "Settings that differ" in Page(both_page).text
    assert len(read_studies([compression, compression.path])) == 1


def test_hostile_names_are_shown_and_nothing_more(tmp_path: Path) -> None:
    run = folders.compression(tmp_path, classes=HOSTILE, name=HOSTILE[0])
    text = build_report(run)
    page = Page(text)
    assert page.all("script") == page.all("img") == []
    assert "<script>" not in text
    for name in HOSTILE:
        assert name in page.text, name


def test_names_with_control_and_direction_characters(tmp_path: Path) -> None:
    names = ("a\x07b\u202ec", "$\\frac{1}{2}$", "\u4e2d\u6587 \u00e9")
    text = build_report(folders.compression(tmp_path, classes=names))
    assert "\u202e" not in text
    assert "\x07" not in text
    for name in ("a\\u0007b\\u202ec", *names[1:]):
        assert name in Page(text).text
    assert printable("a\nb\ud800") == "a\\u000ab\\ud800"
    assert printable("twelve letters", 8) == "twelve…"


def test_equal_runs_give_equal_bytes(sweep: Run, sweep_page: str) -> None:
    """Here, and in a process with another order of sets in another time zone. Imports do not wait for matplotlib."""
    code = (
        "import sys, json, noisyteacher.cli; from noisyteacher.report import build_report\n"
        "assert 'matplotlib' not in sys.modules\n"
        "print(json.dumps([build_report(sys.argv[1], kind) for kind in ('html', 'md', 'json', 'csv')]))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1", "TZ": "Asia/Tokyo"}
    output = subprocess.run(
        [sys.executable, "-c", code, str(sweep.path)], check=True, capture_output=True, text=True, env=environment
    ).stdout
    assert json.loads(output) == [sweep_page, *(build_report(sweep.path, kind) for kind in ("md", "json", "csv"))]


def test_the_users_matplotlib_settings_change_nothing(tmp_path: Path) -> None:
    import matplotlib

    def paint(figure: object) -> None:
        figure.add_subplot().plot([0, 1], [0, 1], color=COLOURS["clean"])  # type: ignore[attr-defined]

    figure = Figure(200, "a line", paint)
    first = figure.svg("f")
    with matplotlib.rc_context(
        {"font.size": 30, "axes.xmargin": 0.4, "xtick.direction": "in", "lines.dash_capstyle": "round"}
    ):
        assert figure.svg("f") == first
    assert "var(--clean)" in first


@pytest.mark.usefixtures("unrendered")
def test_unfinished_and_failed_runs_are_told(tmp_path: Path) -> None:
    run = folders.compression(tmp_path, done=False)
    page = Page(build_report(run))
    assert "Not finished" in page.text
    assert "7 of the 7 parts begun so far are done" in page.text
    assert "clean" in page.text
    assert "The noise helped" not in page.text
    folders.training(run, "clean-chosen-seed0", 5.43)
    assert [row.kind for row in read_studies([run])[0].rows if row.name == "clean-chosen"] == ["clean"]
    run.write_error("TrainingError: the loss is not finite\nat step 3")
    assert "**This run failed: TrainingError: the loss is not finite at step 3;" in build_report(run, "md")
    empty = new_run(tmp_path, "sweep", "mlp800", {"base": {}, "grids": [], "seeds": 1})
    assert "No part of this run is done yet." in Page(build_report(empty)).text
    assert "unfinished" in build_report([run, empty], "csv")


def test_the_papers_curves_stand_beside_whole_data_alone() -> None:
    noise = {"noise.sigma": 0.3, "noise.alpha": 0.15}
    for limits, ids in (({}, ["table1"]), ({"data.train_limit": 4000}, []), ({"data.limit": 4000}, [])):
        curves = _paper_curves("mnist", "lenet", "mlp800", "sigma", [Series(noise, [])], limits)
        assert [curve.id for curve in curves] == ids


@pytest.mark.usefixtures("unrendered")
def test_old_runs_without_details_say_so(tmp_path: Path) -> None:
    text = build_report(folders.compression(tmp_path, details=False))
    assert "Calibration and confusion are not shown: the run's results do not have them." in Page(text).text
    assert not any("Confusion" in entry for entry in captions(text))


@pytest.mark.usefixtures("unrendered")
def test_a_verdict_on_fresh_seeds_shows_their_difference(tmp_path: Path) -> None:
    (study,) = read_studies([folders.sweep(tmp_path)])
    fresh = Difference(-0.45, -0.61, -0.29, 0.004, 5, reference="clean")
    judged = replace(study, verdicts=(Verdict("helps", "the noise helps", "sigma0.5", fresh),))
    page = Page(page_of([judged]))
    assert "noisy − clean, points −0.45" in page.text
    assert "5 fresh pairs" in page.text
    assert "Differences are over the seeds of the choice" in page.text
    assert "fresh pairs" not in Page(page_of([study])).text


@pytest.mark.usefixtures("unrendered")
def test_one_seed_has_no_interval_and_no_claim(tmp_path: Path) -> None:
    run = folders.sweep(tmp_path, seeds=1)
    text = build_report(run)
    (first,) = (entry for entry in captions(text) if entry.startswith("Test error against sigma"))
    assert "One seed: there are no intervals over seeds" in first
    page = Page(text)
    assert "no interval" in page.text
    assert "Student-t interval over seeds." not in page.text
    assert "95 % Wilson interval of a single run" in page.text


def test_damaged_runs_are_refused_by_name(tmp_path: Path) -> None:
    run = folders.compression(tmp_path)
    data = (run.path / "result.json").read_bytes()
    (run.path / "result.json").write_bytes(data.replace(b"8.2", b"1.2", 1))
    with pytest.raises(FileFormatError, match=r"result\.json.*checksum.*leave this run out of the report"):
        build_report(run)
    run = folders.compression(tmp_path)
    for run in (folders.compression(tmp_path), folders.sweep(tmp_path)):
        run.write_result({**(run.result() or {}), "conditions": 3})
        with pytest.raises(FileFormatError, match=r"result\.json: not the result of a .* run"):
            build_report(run)


def test_damaged_children_are_left_out_with_a_word(tmp_path: Path) -> None:
    run = folders.compression(tmp_path)
    (run.path / "noisy-seed1" / "metrics.jsonl").write_text("{")
    (run.path / "teacher" / "result.json").write_text("{}")
    text = build_report(run, "md")
    assert "metrics.jsonl: line 1 is not a JSON object" in text
    assert "teacher/result.json: no checksum" in text
    assert "Noise of sigma 0.5, alpha 0.5 helped here" in text


def test_names_in_results_lead_nowhere(tmp_path: Path) -> None:
    run = folders.compression(tmp_path)
    result = run.result() or {}
    result["conditions"][0]["runs"] = ["../../etc", "labels-seed1", "labels-seed2"]
    run.write_result(result)
    assert "../../etc: this part of" in build_report(run, "md")


def test_what_is_no_run_is_refused(tmp_path: Path, sweep: Run) -> None:
    with pytest.raises(UsageError, match="nothing to report"):
        build_report([])
    with pytest.raises(UsageError, match="there is no such folder"):
        build_report(tmp_path / "none")
    with pytest.raises(UsageError, match=r"not a run folder: it holds \d+ runs, give those"):
        build_report(sweep.path.parent)
    with pytest.raises(UnknownNameError, match="did you mean 'html'"):
        build_report(sweep, "htm")


@pytest.mark.usefixtures("unrendered")
def test_single_trainings_and_given_teachers(tmp_path: Path, compression: Run) -> None:
    run = new_run(tmp_path, "distil", "mlp800", {"config": {"data": {"name": "mnist"}, "student": {"name": "mlp800"},
                  "noise": folders.NOISE}, "seed": 0, "store": str(tmp_path / "none")}, seed=0)  # fmt: skip
    run.write_metrics([{"epoch": 1, "val/error": 9.0, "train/loss": None}])
    run.write_result({"scores": {"test": folders.scores(7.5)}, "training": {"seconds": 1.0}})
    page = Page(build_report(run))
    assert "mlp800, distilled: test error 7.50 %, 95 % interval (4.11, 15.00), n = 100 images" in page.text
    assert "n = 100 images" in page.text
    page = Page(build_report([run, Run(compression.path / "teacher")]))
    assert "lenet, trained on labels: test error 5.00 %" in page.text


@pytest.mark.usefixtures("unrendered")
def test_trainings_on_their_own_are_set_against_what_they_cost(tmp_path: Path) -> None:
    config = {"config": {"data": {"name": "mnist"}, "noise": {"sigma": 0.0}}, "seed": 0}
    runs = []
    for name, macs in (("student2", 11_250_000), ("student3", 6_740_000)):
        run = new_run(tmp_path, "distil", name, {**config, "model": name}, seed=0)
        run.write_result({"scores": {"test": folders.scores(7.5)}, "costs": folders.costs(macs, 1_100_000, 0.5)})
        runs.append(run)
    text = build_report(runs)
    assert any("against multiplications per image" in entry for entry in captions(text))
    page = Page(text).text
    assert "11.25 M" in page
    assert "ratio to the teacher" not in page  # there is none
    assert sum("against latency" in entry for entry in captions(text)) == 0  # both take 0.5 ms
    assert not any("against" in entry for entry in captions(build_report(runs[0])))


def test_a_network_trained_on_labels_alone_is_not_called_a_noisy_student(tmp_path: Path) -> None:
    runs = []
    for name, macs in (("lenet", 2_293_000), ("mlp800", 1_275_200)):
        run = new_run(
            tmp_path, "train", name, {"config": {"data": {"name": "mnist"}}, "seed": 0, "model": name}, seed=0
        )
        run.write_result({"scores": {"test": folders.scores(7.5)}, "costs": folders.costs(macs, 1_100_000, 0.5)})
        runs.append(run)
    text = build_report(runs)
    (figure,) = (entry for entry in trade_offs(read_studies(runs)) if "multiplications" in entry.caption)
    assert ">model<" in figure.svg("f")
    assert ">noisy<" not in figure.svg("f")
    assert "Layers of the network lenet" in Page(text).text


def test_latencies_of_different_machines_are_in_figures_of_their_own(tmp_path: Path) -> None:
    runs = []
    for number, device in enumerate(("cpu", "cpu", "NVIDIA H100", "NVIDIA H100")):
        run = new_run(tmp_path, "train", "lenet", {"config": {"data": {"name": "mnist"}}, "seed": number}, seed=number)
        costs = folders.costs(1000, 1000, 0.5 + number)
        costs["latency_ms"]["device"] = device
        run.write_result({"scores": {"test": folders.scores(7.5)}, "costs": costs})
        runs.append(run)
    matches = [entry.caption for entry in trade_offs(read_studies(runs)) if "against latency" in entry.caption]
    assert [entry.rpartition(", ")[2] for entry in matches] == ["cpu.", "NVIDIA H100."]
    assert not any("latency" in entry.caption for entry in trade_offs(read_studies(runs[1:3])))


@pytest.mark.usefixtures("unrendered")
def test_a_reproduction_sets_the_papers_numbers_beside_ours(tmp_path: Path) -> None:
    run = folders.reproduction(tmp_path)
    text = build_report(run)
    page = Page(text)
    assert "MNIST: the noise helps." in page.text
    assert "sigma 0.5 0.87 0.62 [0.57, 0.67] 3" in page.text
    assert "quick: 3 of the paper's ten sigmas" in page.text
    assert any("beside the paper's numbers" in entry for entry in captions(text))
    assert any(entry.startswith("Test error against sigma, run B") for entry in captions(text))
    assert json.loads(build_report(run, "json"))["runs"][0]["parts"][0]["kind"] == "sweep"


def test_markdown(compression: Run, tmp_path: Path) -> None:
    text = build_report(compression, "md")
    assert text.startswith("# mlp800 from lenet, mnist\n")
    assert "**Noise of sigma 0.5, alpha 0.5 helped here (-0.98 points of test error, 95 % interval" in text
    assert "| student, noisy | 3 | 7.22 \\[6.71, 7.72\\] |" in text
    assert escaped("a|b <i> `x` *y* [z](u)\n") == "a\\|b &lt;i&gt; \\`x\\` \\*y\\* \\[z\\](u)"
    hostile = build_report(folders.compression(tmp_path, classes=HOSTILE), "md")
    assert "<script" not in hostile
    assert "<img" not in hostile
    for line in hostile.splitlines():
        if line.startswith("| "):
            assert len(re.findall(r"(?<!\\)\|", line)) in {3, 5, 6, 7, 10}, line


def test_csv_is_neither_formula_nor_text_where_it_is_a_number(sweep: Run, tmp_path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(build_report(sweep, "csv"))))
    assert [row["line"] for row in rows] == ["teacher", "labels", "clean", "sigma0.1", "sigma0.5", "sigma0.9"]
    assert float(rows[4]["difference_points"]) == pytest.approx(-0.398, abs=0.005)
    assert rows[4]["difference_points"].startswith("-")
    assert (rows[4]["noise_sigma"], rows[4]["noise_alpha"], rows[4]["noise_draw"]) == ("0.5", "0.15", "row")
    assert (rows[4]["parameters"], rows[4]["latency_ms"], rows[4]["interval"], rows[4]["n"]) == (
        "2700",
        "0.4",
        "t",
        "10000",
    )
    assert rows[0]["interval"] == "wilson"
    for text in ("=1+1", "+1", "-x", "@a", "\tb", "\rc", "  =d", "\n=e"):
        assert harmless(text) == f"'{text}"
    assert (harmless("-1"), harmless("-0.5")) == ("-1", "-0.5")  # classes whose names are numbers
    assert harmless("-1+1") == "'-1+1"
    assert (harmless(-0.5), harmless(-3), harmless("a=b"), harmless(None), harmless(True)) == (
        -0.5,
        -3,
        "a=b",
        "",
        "true",
    )
    run = folders.compression(tmp_path)
    result = run.result() or {}
    result["conditions"][0]["title"] = "=HYPERLINK(1)"
    run.write_result(result)
    assert "'=HYPERLINK(1)" in build_report(run, "csv")


@pytest.mark.usefixtures("unrendered")
def test_the_command(
    sweep: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["noisyteacher", "report", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    monkeypatch.chdir(tmp_path)
    assert call(str(sweep.path), "--format", "csv") == (0, build_report(sweep, "csv"), "")
    code, out, _ = call(sweep.id[-6:], "--output-dir", str(sweep.path.parent), "-o", "some/sweep.md")
    assert (code, out.startswith("wrote some/sweep.md (1 run, ")) == (0, True)
    assert Path("some/sweep.md").read_text(encoding="utf-8") == build_report(sweep, "md")
    assert call(str(sweep.path))[0] == 0
    assert Path("report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert call(str(sweep.path), "-o", "x.pdf") == (
        2, "", "error: x.pdf: no report ends in .pdf: name it --format html, md, json, csv\n"
    )  # fmt: skip
    code, _, err = call("nothing", "--output-dir", str(tmp_path))
    assert (code, "no run 'nothing'" in err) == (2, True)
    code, _, err = call(str(tmp_path))
    assert (code, "not a run folder" in err) == (2, True)


def test_json_holds_every_number(sweep: Run) -> None:
    content = json.loads(build_report(sweep, "json"))
    assert (content["kind"], content["schema"]) == ("report", 2)
    (entry,) = content["runs"]
    verdict, line = entry["verdicts"]
    assert (line["word"], "with sigma^2" in line["sentence"]) == ("", True)
    assert (verdict["word"], verdict["condition"]) == ("helps", "sigma0.5")
    (row,) = (row for row in entry["result"]["conditions"] if row["name"] == "sigma0.5")
    assert row["scores"]["test"]["error"]["per_seed"] == pytest.approx([0.6, 0.635, 0.645])
    assert row["against_clean"]["test"]["reference"] == "clean"
    assert row["costs"]["macs"] == 8000


def test_layers_are_folded(compression_page: str) -> None:
    open_page = re.sub(r"<details>.*?</details>", "", compression_page, flags=re.DOTALL)
    assert compression_page.count("share of MACs") >= 2
    assert "share of MACs" not in open_page
    assert "<summary>Layers of the teacher lenet</summary>" in compression_page


def test_axes_of_percentages_end_at_100(tmp_path: Path) -> None:
    errors = {"labels": [100.0, 99.0, 98.0], "clean": [50.0] * 3, "noisy": [0.0, 0.0, 0.5]}
    (study,) = read_studies(folders.compression(tmp_path, errors=errors))
    for figure in trade_offs([study]):
        canvas = Canvas()
        figure.paint(canvas)
        (axes,) = canvas.axes
        assert axes.get_ylim()[1] <= 102
        assert {0, 100} <= set(axes.get_yticks()) <= set(range(101))


def test_many_classes(tmp_path: Path) -> None:
    names = tuple(f"class {number}" for number in range(40))
    run = folders.compression(tmp_path, classes=names)
    (study,) = read_studies(run)
    counts = np.indices((40, 40)).sum(0) % 2 + 9 * np.eye(40, dtype=np.int64)
    teacher = study.rows[0]
    details = Details(counts, np.empty((0, 3)), 1, names)
    drawn = confusion(replace(study, details={teacher.name: {"test": details}}), teacher, "test")
    assert drawn is not None
    svg = drawn.svg("f")
    assert 'href="data:image/png;base64,' in svg
    assert svg.count("class ") == 2 * 10  # ticks of both axes
    assert "800 of 1,160 answers wrong" in drawn.caption


def test_a_sealed_result_of_another_shape_is_refused_by_name(tmp_path: Path) -> None:
    run = folders.compression(tmp_path)
    result = run.result() or {}
    for row in result["conditions"]:
        row["costs"] = True
    run.write_result(result)
    with pytest.raises(FileFormatError, match=re.escape(run.path.name)):
        build_report(run, "md")


def with_rows(study: Study, *rows: Condition, families: tuple[Family, ...] | None = None) -> Study:
    """The study of these teachers and students."""
    teachers = tuple(row for row in rows if row.kind == "teacher")
    students = tuple(row for row in rows if row.kind != "teacher")
    families = study.result.families if families is None else families
    return replace(study, result=replace(study.result, teachers=teachers, conditions=students, families=families))


def of_two_data_sets(tmp_path: Path) -> Study:
    """A sweep over `data.name` with one seed: its teacher, clean and noisy student on mnist, and the same on easy."""
    (study,) = read_studies(folders.sweep(tmp_path, seeds=1))
    originals = [row for row in study.rows if row.name in ("teacher", "clean", "sigma0.5")]
    originals = [replace(row, teacher="" if row.kind == "teacher" else "teacher") for row in originals]
    easy: dict[str, Any] = {"data": "easy", "n": {"val": 30, "test": 60}, "family": "f1"}
    other = [replace(row, name=f"{row.name}-easy", title=f"{row.title}, easy", **easy) for row in originals]
    other = [replace(row, teacher="" if row.kind == "teacher" else "teacher-easy") for row in other]
    families = (
        Family("f0", {}, "clean", None, ("sigma0.5",), ("sigma0.5",)),
        Family("f1", {}, "clean-easy", None, ("sigma0.5-easy", "sigma0.7-easy")),
    )
    study = with_rows(study, *originals, *other, families=families)
    names = {"details": study.details, "curves": study.curves}
    copied = {
        key: {**value, **{f"{name}-easy": entry for name, entry in value.items()}} for key, value in names.items()
    }
    verdict = Verdict("no evidence", "no evidence on easy", "sigma0.5-easy")
    return replace(study, verdicts=(verdict,), **copied)  # type: ignore[arg-type]


def test_conditions_of_other_data_have_their_own_number_of_images(tmp_path: Path) -> None:
    study = of_two_data_sets(tmp_path)
    rows = {row["line"]: row for row in csv.DictReader(io.StringIO(as_csv([study])))}
    assert {name: (row["data"], row["n"]) for name, row in rows.items()} == {
        "teacher": ("mnist", "10000"), "clean": ("mnist", "10000"), "sigma0.5": ("mnist", "10000"),
        "teacher-easy": ("easy", "60"), "clean-easy": ("easy", "60"), "sigma0.5-easy": ("easy", "60"),
    }  # fmt: skip
    high = 100 * 1.959964**2 / (60 + 1.959964**2)  # Wilson of 0 errors in 60
    assert float(rows["sigma0.5-easy"]["error_high_%"]) == pytest.approx(high, abs=0.001)
    assert float(rows["sigma0.5"]["error_high_%"]) < 0.8  # of 60 in 10,000
    (entry,) = json.loads(as_json([study]))["runs"]
    descriptions = {row["name"]: (row["data"], row["n"]["test"]) for row in entry["result"]["conditions"]}
    assert (descriptions["clean-easy"], descriptions["clean"]) == (("easy", 60), ("mnist", 10000))


@pytest.mark.usefixtures("unrendered")
def test_captions_name_every_data_set_with_its_number_of_images(tmp_path: Path) -> None:
    study = of_two_data_sets(tmp_path)
    text = markdown([study])
    assert text.startswith("# mlp800 from lenet, mnist, easy\n")
    assert "Test: n = 10,000 (mnist), 60 (easy) images. Validation: n = 100 (mnist), 30 (easy) images." in text
    assert "| clean, easy | easy | 1 |" in text
    html_text = page_of([study])
    descriptions = captions(html_text)
    for begin in ("Test error minus", "Reliability on test"):
        (caption,) = (entry for entry in descriptions if entry.startswith(begin))
        assert "n = 10,000 (mnist), 60 (easy) images" in caption
    (caption,) = (entry for entry in descriptions if entry.startswith("Validation error (%) by epoch"))
    assert "n = 100 (mnist), 30 (easy) images" in caption
    assert any("Confusion of teacher lenet, easy on test, easy, n = 60 images" in entry for entry in descriptions)
    assert any("Confusion of sigma 0.5, easy on test, easy, n = 60 images" in entry for entry in descriptions)
    for begin in ("Error on mnist (test, n = 10,000 images)", "Error on easy (test, n = 60 images)"):
        assert sum(entry.startswith(f"{begin} against parameters") for entry in descriptions) == 1
    facts = Page(html_text).text.partition("Results")[0]
    assert "clean student, test error 1.00 % (0.29, 8.86)" in facts  # Wilson of 1 in 60
    assert "noisy student, test error 0.60 % (0.00, 6.02)" in facts  # and of 0
    one_set = with_rows(study, *(replace(row, data="mnist") for row in study.rows))
    assert "Test: n = 10,000 (mnist), 60 (mnist) images." in markdown([one_set])
    assert markdown([with_rows(study, *study.rows[:1], *study.rows[2:4])]).count("Test: n = 10,000 images.") == 1


def test_figures_of_other_data_say_which(tmp_path: Path) -> None:
    study = of_two_data_sets(tmp_path)
    noisy = study.rows[-1]
    more = replace(noisy, name="sigma0.7-easy", settings={**noisy.settings, "noise.sigma": 0.7})
    (caption,) = curves([with_rows(study, *study.rows, more)])
    assert ", f1: mlp800 from lenet, easy, n = 60 images" in caption
    assert "Paper" not in caption
    first, second = study.result.families
    families = (first, replace(second, settings={"student.lr": 0.01}))
    (caption,) = curves([with_rows(study, *study.rows, more, families=families)])
    assert ", lr 0.01: mlp800" in caption, "a family is called by its settings"


@pytest.mark.usefixtures("unrendered")
def test_no_noise_compared_over_several_data_sets(tmp_path: Path) -> None:
    study = replace(of_two_data_sets(tmp_path), verdicts=())
    text = Page(page_of([study])).text
    assert "The lowest test error of students: 0.60 %, sigma 0.5 (on mnist); 0.60 %, sigma 0.5, easy (on easy)." in text


def test_the_test_behind_a_p_is_named(tmp_path: Path) -> None:
    run = folders.sweep(tmp_path)
    note = "hold for all noises of one clean student at once (up to 3; Dunnett); else paired t-test."
    assert note in build_report(run, "md")
    figure = differences(read_studies(run)[0])
    assert figure is not None
    assert "for all noises of one clean student at once (up to 3)." in figure.caption
    text = build_report(folders.compression(tmp_path), "md")
    assert "p of the paired t-test." in text
    assert "Dunnett" not in text


def test_the_papers_curves_stand_beside_no_other_loss_and_no_other_noise(tmp_path: Path) -> None:
    (study,) = read_studies(folders.sweep(tmp_path))
    assert "Paper" in curves([study])[0]
    others = {"noise.until": 0.5, "noise.schedule": "linear", "noise.draws": 3, "student.loss": "soft_targets"}
    for key, value in others.items():
        rows = [replace(row, settings={**row.settings, key: value}) for row in study.rows]
        assert "Paper" not in curves([with_rows(study, *rows)])[0], key
    study.run.config["base"]["student"] = {"loss": "soft_targets"}  # for all of them
    assert "Paper" not in curves([study])[0]


def test_noises_that_differ_in_length_or_draws_differ_in_the_csv(tmp_path: Path) -> None:
    (study,) = read_studies(folders.sweep(tmp_path))
    rows = [replace(row, settings={**row.settings, "noise.until": 0.5, "noise.draws": 3}) for row in study.rows]
    cells = list(csv.DictReader(io.StringIO(as_csv([with_rows(study, *rows)]))))
    assert {(row["noise_until"], row["noise_draws"]) for row in cells} == {("0.5", "3")}


def test_figures_of_many_conditions_show_the_controls_the_best_students_and_what_was_chosen(tmp_path: Path) -> None:
    noises = {"sigma0.1": 0.5, "sigma0.2": 0.6, "sigma0.3": 0.7, "sigma0.4": 1.5, "sigma0.5": 1.6}
    (study,) = read_studies(folders.sweep(tmp_path, base={"labels": 3.0, "clean": 1.0, **noises}))

    def picks(study: Study) -> list[str]:
        return [row.name for row in study.picks()]

    assert picks(study) == ["teacher", "labels", "sigma0.1", "sigma0.2", "sigma0.3", "clean"]
    two = (
        Family("f0", {}, "clean", "labels", ("sigma0.1", "sigma0.2"), ("sigma0.1",)),
        Family("f1", {}, "clean", "labels", ("sigma0.4", "sigma0.5"), ("sigma0.5",)),
    )
    assert picks(with_rows(study, *study.rows, families=two)) == [
        "teacher", "labels", "sigma0.1", "sigma0.2", "sigma0.3", "sigma0.5"
    ]  # fmt: skip
    teacher, labels, *students = study.rows
    more = [replace(labels, name=f"labels{number}") for number in range(7)]
    names = picks(with_rows(study, teacher, *more, *students, families=two))
    assert names == ["teacher", "labels0", "labels1", "sigma0.1", "sigma0.2", "sigma0.5"]


def test_a_result_from_before_dunnetts_test_is_shown_with_its_own_p(tmp_path: Path) -> None:
    run = folders.sweep(tmp_path)
    record = run.result() or {}
    for condition in record["conditions"]:
        for gap in condition["against_clean"].values():
            del gap["comparisons"], gap["detectable"]
            gap["p_holm"] = 0.123 if condition["kind"] == "noisy" else None
    for family in record["families"]:
        del family["trends"]
    (run.path / "result.json").unlink()
    run.write_result(record)
    text = build_report(run, "md")
    assert "p of the paired t-test, for noises after Holm's correction." in text
    assert "Dunnett" not in text
    assert text.count("p 0.12") == 3


@pytest.mark.usefixtures("unrendered")
def test_an_unfinished_sweep_shows_the_cells_that_are_done(tmp_path: Path) -> None:
    run = folders.sweep(tmp_path)
    for name in ("result.json", "clean-seed2/result.json"):
        (run.path / name).unlink()
    (study,) = read_studies(run)
    assert {row.name: (row.kind, len(row.seeds)) for row in study.rows} == {
        "teacher": ("teacher", 1), "labels-alone": ("labels", 0), "clean": ("clean", 2),
        "sigma0.1": ("noisy", 3), "sigma0.5": ("noisy", 3), "sigma0.9": ("noisy", 3),
    }  # fmt: skip
    text = build_report(run)
    assert "Not finished" in Page(text).text
    assert "The noise helps" not in Page(text).text
    (first,) = (entry for entry in captions(text) if entry.startswith("Test error against sigma"))
    assert "mlp800 from lenet, mnist, n = 10,000 images" in first


def cost_rows(study: Study) -> list[str]:
    text = markdown([study])
    table = text[text.index("| MACs |") :].split("\n\n")[0]
    return [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines()[2:]]


@pytest.mark.usefixtures("unrendered")
def test_students_that_differ_in_options_have_a_row_each(tmp_path: Path) -> None:
    (study,) = read_studies(folders.sweep(tmp_path))
    quarter, half = folders.as_costs(folders.costs(4_000, 900, 0.2)), folders.as_costs(folders.costs(8_000, 2_700, 0.4))
    widths = {"clean": 0.25, "sigma0.1": 0.25}
    rows = [study.rows[0]]
    for row in study.rows[1:]:
        width = widths.get(row.name, 0.5)
        settings = {**row.settings, "student.options.width": width}
        rows.append(replace(row, costs=quarter if width == 0.25 else half, settings=settings))
    wide = with_rows(study, *rows)
    assert cost_rows(wide) == ["teacher lenet", "mlp800, width 0.5", "mlp800, width 0.25"]
    text = Page(page_of([wide])).text
    for entry in ("teacher lenet", "student mlp800, width 0.5", "student mlp800, width 0.25"):
        assert text.count(f"Layers of the {entry}: ") == 1
    costs = folders.as_costs(folders.costs(9_000, 2_700, 0.4))
    elsewhere = replace(rows[-1], costs=costs, data="easy", n={"test": 60})
    assert cost_rows(with_rows(study, *rows, elsewhere))[1:] == [
        "mlp800, width 0.5, mnist", "mlp800, width 0.25", "mlp800, width 0.5, easy",
    ]  # fmt: skip


def test_settings_are_compared_by_name_wherever_a_run_keeps_them(tmp_path: Path) -> None:
    config = {"data": {"name": "mnist"}, "student": {"name": "mlp800", "lr": 0.01}, "noise": {"sigma": 0.5}}
    slow = {**config, "student": {"name": "mlp800", "lr": 0.001}}
    runs = [
        new_run(tmp_path, "compress", "mlp800", config),
        new_run(tmp_path, "train", "mlp800", {"config": slow, "seed": 3}, seed=3),
        new_run(tmp_path, "sweep", "mlp800", {"base": config, "grids": [{"noise.sigma": [0.1]}], "seeds": 2}),
    ]
    text = build_report(runs, "md")
    assert "4 of 7 settings differ;" in text
    assert "| student.lr | 0.01 | 0.001 | 0.01 |" in text
    assert "| seed | – | 3 | – |" in text
    assert "data.name" not in text


def test_a_single_training_names_its_classes(tmp_path: Path) -> None:
    details = {"test": {"confusion": folders.CONFUSION, "reliability": folders.RELIABILITY}}
    run = new_run(tmp_path, "train", "lenet", {"config": {"data": {"name": "mnist"}}, "seed": 0}, seed=0)
    run.write_result({"scores": {"test": folders.scores(9.0)}, "details": details, "classes": list(folders.DIGITS)})
    assert "| two | zero | 12.5 |" in build_report(run, "md")


@pytest.mark.usefixtures("unrendered")
def test_the_heading_of_markdown_is_that_of_the_page(tmp_path: Path, compression: Run) -> None:
    run = folders.reproduction(tmp_path)
    assert build_report(run, "md").startswith("# table1-quick\n")
    assert "<h1>table1-quick</h1>" in build_report(run)
    assert build_report([run, compression], "md").startswith("# 2 runs\n")


def test_a_sentence_begins_with_a_capital_but_not_a_name() -> None:
    for sentence, text in (
        ("lenet, trained on labels: test error 7.50 %", "lenet, trained on labels: test error 7.50 %."),
        ("mlp800, distilled: test error 7.50 %", "mlp800, distilled: test error 7.50 %."),
        ("student.lr 0.01: the noise helps", "student.lr 0.01: the noise helps."),
        ("the noise helps.", "The noise helps."),
    ):
        assert verdict_text(Verdict("", sentence)) == text


@pytest.mark.usefixtures("unrendered")
def test_a_difference_that_rounds_to_zero_has_no_sign(tmp_path: Path) -> None:
    (study,) = read_studies(folders.sweep(tmp_path))
    none = {"test": Difference(-0.001, -0.004, 0.004, 0.9, 3, reference="clean", p_holm=0.9)}
    study = with_rows(study, *(replace(row, against_clean=none) for row in study.rows if row.kind == "noisy"))
    assert "0.00 \\[0.00, 0.00\\]" in markdown([study])
    assert "\u22120.00" not in markdown([study])
    text = page_of([study])
    assert "0.00<small>[0.00, 0.00]" in text


def test_a_choice_of_the_noise_is_in_every_format(tmp_path: Path) -> None:
    words = "sigma 0.5, alpha 0.5 was chosen on validation (n = 100)"
    choice = {
        "by": "validation error", "n": 100, "epochs": 2, "seeds": [0, 1], "chosen": {"sigma": 0.5, "alpha": 0.5},
        "candidates": [
            {"sigma": sigma, "alpha": 0.5 if sigma else 0.0, "val_error_%": [error, error], "mean": error,
             "runs": [f"choice-{sigma}-seed{seed}" for seed in (0, 1)]}
            for sigma, error in ((0.0, 9.0), (0.5, 8.0))
        ],
        "summary": words,
    }  # fmt: skip
    run = folders.compression(tmp_path, choice=choice)
    text = build_report(run, "md")
    assert f"The noise: {words}." in text
    assert "| clean |  | 9.00 | 9.00, 9.00 |  |" in text
    assert "| 0.5 | 0.5 | 8.00 | 8.00, 8.00 | best noisy |" in text
    assert json.loads(build_report(run, "json"))["runs"][0]["result"]["choice"] == choice
    none = folders.compression(tmp_path, choice={**choice, "chosen": {"sigma": 0.0, "alpha": 0.0}}, with_noise=False)
    assert build_report(none, "md").count("chosen on validation") == 1


def test_recall_of_each_class_and_the_balanced_accuracy_of_rare_classes(tmp_path: Path) -> None:
    """Class c is found in 1 of 4 images, a in 9 of 10, b in no image; once each, so with intervals."""
    (study,) = read_studies([folders.compression(tmp_path)])
    teacher = next(row for row in study.rows if row.kind == "teacher")
    counts = np.array([[9, 0, 1], [0, 0, 0], [3, 0, 1]])
    details = Details(counts, np.empty((0, 3)), 1, ("a", "b", "c"))
    table = recalls(replace(study, details={teacher.name: {"test": details}}), [teacher], "test")
    assert table is not None
    low, high = binomial_interval(1, 4)
    assert table.rows[0] == ("c", "4", f"25.0\n({low:.1f}, {high:.1f})")
    assert [row[:2] for row in table.rows] == [("c", "4"), ("a", "10"), ("b", "0")]
    pooled = replace(study, details={teacher.name: {"test": replace(details, confusion=2 * counts, seeds=2)}})
    table = recalls(pooled, [teacher], "test")
    assert table is not None
    assert table.rows[0] == ("c", "4", "25.0")
    error = teacher.scores["test"]["error"]
    for balanced, shown in ((100 - error.mean, False), (90 - error.mean, True)):
        scores = {"error": error, "balanced_accuracy": replace(error, mean=balanced, low=None, high=None)}
        row = replace(teacher, scores={"test": scores})
        table = results(replace(study, result=replace(study.result, conditions=(row,))))
        assert table is not None
        assert ("balanced accuracy %" in table.headers) is shown
