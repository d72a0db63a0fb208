"""Reports: what the page says, that names stay names, that equal runs give equal bytes, and what is refused."""

from __future__ import annotations

import csv
import html
import io
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

import made_runs as made
from noisyteacher import cli, references
from noisyteacher.errors import FileFormatError, UnknownNameError, UsageError
from noisyteacher.report import build_report, read_studies
from noisyteacher.report.answers import confusion
from noisyteacher.report.costs import trade_offs
from noisyteacher.report.drawing import COLOURS, draw
from noisyteacher.report.figures import along
from noisyteacher.report.noising import picture
from noisyteacher.report.page import page as page_of
from noisyteacher.report.plain import as_csv, as_json, harmless, markdown
from noisyteacher.report.series import charts
from noisyteacher.report.study import Details, Difference, Line, Study, Verdict
from noisyteacher.runs import Run, new_run
from noisyteacher.text import escaped, shown

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
    return made.compression(folder)


@pytest.fixture(scope="module")
def sweep(folder: Path) -> Run:
    return made.sweep(folder, failed=True)


def captions(text: str) -> list[str]:
    found = re.findall(r"<figcaption>(.*?)</figcaption>", text)
    return [" ".join(html.unescape(re.sub(r"<[^>]*>", "", one)).split()) for one in found]


@pytest.fixture(scope="module")
def compression_page(compression: Run) -> str:
    return build_report(compression.path)


@pytest.fixture(scope="module")
def both_page(compression: Run, sweep: Run) -> str:
    return build_report([compression, sweep])


def test_a_compression_says_its_verdict_first_and_shows_all_its_figures(compression_page: str) -> None:
    text = compression_page
    page = Page(text)
    assert page.text.index("The noise helped") < page.text.index("Results")
    assert "Noise of sigma 0.5, alpha 0.5 helped here (-1.00 points of test error)." in page.text
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
    told = captions(text)
    assert len(told) == len(page.all("figure")) == len(page.all("svg")) == 13
    for part in ("Test error minus", "Validation error (%) by epoch", "Training loss", "Reliability on test",
                 "Confusion of teacher lenet", "Confusion of student, noisy", "Error on mnist (test, n = 100 images)",
                 "The noise itself"):  # fmt: skip
        assert any(one.startswith(part) for one in told), part
    assert all("n = 100" in one or "seed" in one for one in told)
    assert all(one["role"] == "img" and len(one["aria-label"] or "") > 20 for one in page.all("svg"))
    (noise,) = (one for one in told if one.startswith("The noise itself"))
    assert "sigma 0.5, alpha 0.5, draw row, kind multiplicative" in noise
    assert "of the 16 samples of this batch were perturbed" in noise


def test_the_page_is_whole_and_asks_for_nothing(both_page: str) -> None:
    text = both_page
    page = Page(text)
    (policy,) = (one["content"] for one in page.all("meta") if one.get("http-equiv") == "Content-Security-Policy")
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
    targets = {(one.get("href") or "")[1:] for one in page.all("a") + page.all("use")}
    assert targets <= set(ids)
    assert [colour for colour in COLOURS.values() if colour in text] == []


def test_a_sweep_has_curves_with_intervals_and_the_papers_beside_them(sweep: Run) -> None:
    text = build_report(sweep.path)
    told = captions(text)
    (first,) = (one for one in told if one.startswith("Test error against sigma"))
    assert "mlp800 from lenet, mnist, n = 10,000 images, 3 seeds, alpha 0.15" in first
    assert "95 % Student-t interval" in first
    assert "Paper: single runs" in first
    assert any(one.startswith("Validation error against sigma") and "Paper" not in one for one in told)
    page = Page(text)
    assert "paper, Table 1" in page.text
    assert "chosen by validation, least on test" in page.text
    assert "sigma0.9, seed 7 (sigma0.9-seed7) diverged" in page.text
    assert "the noise helps: sigma 0.5 gives -0.40 points".capitalize() in page.text


def test_runs_that_differ_in_sigma_alone_make_a_curve(tmp_path: Path) -> None:
    runs = [made.compression(tmp_path, sigma=sigma, with_store=False) for sigma in (0.2, 0.5, 0.8)]
    (chart,) = charts(read_studies(runs), "sigma", "test", ["A", "B", "C"])
    assert (chart.title, chart.student, chart.teacher) == ("runs A, B, C", "mlp800", "lenet")
    (series,) = chart.series
    assert [x for x, _, _ in series.points] == [0.2, 0.5, 0.8]
    told = along("f", chart)
    assert told.caption.startswith("Test error against sigma, runs A, B, C: mlp800 from lenet, mnist, n = 100 images")
    assert charts(read_studies(runs[0]), "sigma", "test", [""]) == []
    other = made.compression(tmp_path, sigma=0.9, seeds=2, with_store=False)
    assert len(charts(read_studies([runs[0], other]), "sigma", "test", ["A", "B"])) == 0


def test_several_runs_show_where_they_differ(compression: Run, both_page: str, tmp_path: Path) -> None:
    other = made.compression(tmp_path, sigma=0.9)
    text = build_report([compression, other], "md")
    assert "1 of 11 settings differ" in text
    assert "| noise.sigma | 0.5 | 0.9 |" in text
    assert "noise.alpha" not in text
    assert "2 runs" in Page(both_page).text
    assert "Settings that differ" in Page(both_page).text
    assert len(read_studies([compression, compression.path])) == 1


def test_hostile_names_are_shown_and_nothing_more(tmp_path: Path) -> None:
    run = made.compression(tmp_path, classes=HOSTILE, name=HOSTILE[0])
    text = build_report(run)
    page = Page(text)
    assert page.all("script") == page.all("img") == []
    assert "<script>" not in text
    for name in HOSTILE:
        assert name in page.text, name
    alts = " ".join(one["aria-label"] or "" for one in page.all("svg"))
    assert HOSTILE[0] in alts


def test_names_with_control_and_direction_characters(tmp_path: Path) -> None:
    names = ("a\x07b\u202ec", "$\\frac{1}{2}$", "\u4e2d\u6587 \u00e9")
    text = build_report(made.compression(tmp_path, classes=names))
    assert "\u202e" not in text
    assert "\x07" not in text
    for name in ("a\\u0007b\\u202ec", *names[1:]):
        assert name in Page(text).text
    assert shown("a\nb\ud800") == "a\\u000ab\\ud800"
    assert shown("twelve letters", 8) == "twelve…"


def test_equal_runs_give_equal_bytes(sweep: Run) -> None:
    code = (
        "import sys, hashlib; from noisyteacher.report import build_report\n"
        "made = [build_report(sys.argv[1:], kind) for kind in ('html', 'md', 'json', 'csv')]\n"
        "print([hashlib.sha256(text.encode()).hexdigest() for text in made])"
    )
    call = [sys.executable, "-c", code, str(sweep.path)]
    seen = {
        subprocess.run(
            call, check=True, capture_output=True, text=True, env={"PYTHONHASHSEED": seed, "TZ": zone}
        ).stdout
        for seed, zone in (("1", "UTC"), ("2", "Asia/Tokyo"))
    }
    assert len(seen) == 1


def test_matplotlib_waits_for_a_page() -> None:
    code = (
        "import sys; import noisyteacher.report, noisyteacher.cli\n"
        "sys.exit(any(name in sys.modules for name in ('matplotlib', 'jinja2')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_users_matplotlib_settings_change_nothing(tmp_path: Path) -> None:
    import matplotlib

    def paint(figure: object) -> None:
        figure.add_subplot().plot([0, 1], [0, 1], color=COLOURS["clean"])  # type: ignore[attr-defined]

    first = draw("f", 200, "a line", paint)
    with matplotlib.rc_context(
        {"font.size": 30, "axes.xmargin": 0.4, "xtick.direction": "in", "lines.dash_capstyle": "round"}
    ):
        assert draw("f", 200, "a line", paint) == first
    assert "var(--clean)" in first


def test_unfinished_and_failed_runs_are_told(tmp_path: Path) -> None:
    run = made.compression(tmp_path, done=False)
    page = Page(build_report(run))
    assert "Not finished" in page.text
    assert "7 of the 7 parts begun so far are done" in page.text
    assert "clean" in page.text
    assert "The noise helped" not in page.text
    run.write_error("TrainingError: the loss is not finite\nat step 3")
    assert "**This run failed: TrainingError: the loss is not finite at step 3;" in build_report(run, "md")
    empty = new_run(tmp_path, "sweep", "mlp800", {"base": {}})
    assert "No part of this run is done yet." in Page(build_report(empty)).text
    assert "unfinished" in build_report([run, empty], "csv")


def test_figures_of_an_unfinished_sweep_name_its_data(tmp_path: Path) -> None:
    run = made.sweep(tmp_path)
    (run.path / "result.json").unlink()
    (first,) = (one for one in captions(build_report(run)) if one.startswith("Test error against sigma"))
    assert "mlp800 from lenet, mnist, n = 100 images" in first


def test_old_runs_without_details_say_so(tmp_path: Path) -> None:
    text = build_report(made.compression(tmp_path, details=False))
    assert "Calibration and confusion are not shown: the run's results do not have them." in Page(text).text
    assert not any("Confusion" in one for one in captions(text))


def test_one_seed_has_no_interval_and_no_claim(tmp_path: Path) -> None:
    run = made.sweep(tmp_path, seeds=1)
    text = build_report(run)
    (first,) = (one for one in captions(text) if one.startswith("Test error against sigma"))
    assert "One seed: there are no intervals over seeds" in first
    page = Page(text)
    assert "no interval" in page.text
    assert "Student-t interval over seeds." not in page.text
    assert "95 % Wilson interval of a single run" in page.text


def test_a_store_that_is_gone_or_changed_is_no_error(tmp_path: Path) -> None:
    run = made.compression(tmp_path)
    (shard,) = (run.path / "logits").rglob("shard-*")
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    told = picture("n", read_studies(run)[0])
    assert isinstance(told, str)
    assert "The noise is not pictured" in told
    assert shard.name in told
    run = made.compression(tmp_path)
    shutil.rmtree(run.path / "logits")
    made.logits(run, rows=30)
    told = picture("n", read_studies(run)[0])
    assert isinstance(told, str)
    assert "or have changed since" in told
    told = picture("n", read_studies(made.compression(tmp_path, with_store=False))[0])
    assert isinstance(told, str)
    assert "not there any more" in told


def test_damaged_runs_are_refused_by_name(tmp_path: Path) -> None:
    run = made.compression(tmp_path)
    data = (run.path / "result.json").read_bytes()
    (run.path / "result.json").write_bytes(data.replace(b"8.2", b"1.2", 1))
    with pytest.raises(FileFormatError, match=r"result\.json.*checksum.*leave this run out of the report"):
        build_report(run)
    run = made.compression(tmp_path)
    run.write_result({"rows": []})
    with pytest.raises(FileFormatError, match=r"result\.json: not the result of a compress run"):
        build_report(run)
    run = made.sweep(tmp_path)
    run.write_result({**(run.result() or {}), "conditions": 3})
    with pytest.raises(FileFormatError, match="not the result of a sweep run"):
        build_report(run)


def test_damaged_children_are_left_out_with_a_word(tmp_path: Path) -> None:
    run = made.compression(tmp_path)
    (run.path / "noisy-seed1" / "metrics.jsonl").write_text("{")
    (run.path / "teacher" / "result.json").write_text("{}")
    text = build_report(run, "md")
    assert "metrics.jsonl: line 1 is not a JSON object" in text
    assert "teacher/result.json: no checksum" in text
    assert "Noise of sigma 0.5, alpha 0.5 helped here" in text


def test_names_in_results_lead_nowhere(tmp_path: Path) -> None:
    run = made.compression(tmp_path)
    result = run.result() or {}
    result["rows"][1]["runs"] = ["../../etc", "labels-seed1", "labels-seed2"]
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


def test_single_trainings_and_given_teachers(tmp_path: Path, compression: Run) -> None:
    run = new_run(tmp_path, "distil", "mlp800", {"config": {"data": {"name": "mnist"}, "student": {"name": "mlp800"},
                  "noise": made.NOISE}, "seed": 0, "store": str(tmp_path / "none")}, seed=0)  # fmt: skip
    run.write_metrics([{"epoch": 1, "val/error": 9.0, "train/loss": None}])
    run.write_result({"scores": {"test": made.scores(7.5)}, "training": {"seconds": 1.0}})
    page = Page(build_report(run))
    assert "mlp800, distilled: test error 7.50 % (95 % Wilson interval" in page.text
    assert "n = 100 images" in page.text
    page = Page(build_report([run, Run(compression.path / "teacher")]))
    assert "lenet, trained on labels: test error 5.00 %" in page.text


@pytest.mark.parametrize(
    ("means", "heading"),
    [
        ((0.1, 0.2, 0.3), "No evidence that noise helps, while some hurts"),
        ((0.1, -0.2, 0.3), "No evidence for the chosen noise, while others differ"),
        ((0.1, 0.2, None), "No evidence either way"),
    ],
)
def test_a_heading_says_what_the_noises_that_were_not_chosen_do(
    tmp_path: Path, means: tuple[float | None, ...], heading: str
) -> None:
    run = made.sweep(tmp_path)
    result = run.result() or {}
    result["families"][0]["verdict"] = {"word": "no evidence", "sentence": "no evidence: sigma 0.1"}
    for one in result["conditions"]:
        told = (one["against_clean"] or {}).get("test_error_%")
        if one["kind"] == "noisy":
            place = ("sigma0.1", "sigma0.5", "sigma0.9").index(one["name"])
            told |= {"mean": means[place] or 0.3, "p_holm": 0.04 if place and None not in means else 0.06}
        elif told:
            told["p_holm"] = 0.01  # of labels alone: no noise
    run.write_result(result)
    assert f">{heading}<" in build_report(run)


def test_trainings_on_their_own_are_set_against_what_they_cost(tmp_path: Path) -> None:
    config = {"config": {"data": {"name": "mnist"}, "noise": {"sigma": 0.0}}, "seed": 0}
    runs = []
    for name, macs in (("student2", 11_250_000), ("student3", 6_740_000)):
        run = new_run(tmp_path, "distil", name, {**config, "model": name}, seed=0)
        run.write_result({"scores": {"test": made.scores(7.5)}, "costs": made.costs(macs, 1_100_000, 0.5)})
        runs.append(run)
    text = build_report(runs)
    assert any("against multiplications per image" in one for one in captions(text))
    page = Page(text).text
    assert "11.25 M" in page
    assert "ratio to the teacher" not in page  # there is none
    assert sum("against latency" in one for one in captions(text)) == 0  # both take 0.5 ms
    assert not any("against" in one for one in captions(build_report(runs[0])))


def test_a_network_trained_on_labels_alone_is_not_called_a_noisy_student(tmp_path: Path) -> None:
    runs = []
    for name, macs in (("lenet", 2_293_000), ("mlp800", 1_275_200)):
        run = new_run(
            tmp_path, "train", name, {"config": {"data": {"name": "mnist"}}, "seed": 0, "model": name}, seed=0
        )
        run.write_result({"scores": {"test": made.scores(7.5)}, "costs": made.costs(macs, 1_100_000, 0.5)})
        runs.append(run)
    text = build_report(runs)
    (figure,) = (one for one in trade_offs("x", read_studies(runs)) if "multiplications" in one.caption)
    assert ">model<" in figure.svg
    assert ">noisy<" not in figure.svg
    assert "Layers of the network lenet" in Page(text).text


def test_latencies_of_different_machines_are_in_figures_of_their_own(tmp_path: Path) -> None:
    runs = []
    for number, device in enumerate(("cpu", "cpu", "NVIDIA H100", "NVIDIA H100")):
        run = new_run(tmp_path, "train", "lenet", {"config": {"data": {"name": "mnist"}}, "seed": number}, seed=number)
        costs = made.costs(1000, 1000, 0.5 + number)
        costs["latency_ms"]["device"] = device
        run.write_result({"scores": {"test": made.scores(7.5)}, "costs": costs})
        runs.append(run)
    found = [one.caption for one in trade_offs("x", read_studies(runs)) if "against latency" in one.caption]
    assert [one.rpartition(", ")[2] for one in found] == ["cpu.", "NVIDIA H100."]
    assert not any("latency" in one.caption for one in trade_offs("x", read_studies(runs[1:3])))


def test_a_reproduction_sets_the_papers_numbers_beside_ours(tmp_path: Path) -> None:
    run = made.reproduction(tmp_path)
    text = build_report(run)
    page = Page(text)
    assert "MNIST: the noise helps." in page.text
    assert "sigma 0.5 0.87 0.62 [0.57, 0.67] 3" in page.text
    assert "quick: 3 of the paper's ten sigmas" in page.text
    assert any("beside the paper's numbers" in one for one in captions(text))
    assert any(one.startswith("Test error against sigma, run B") for one in captions(text))
    assert json.loads(build_report(run, "json"))["runs"][0]["parts"][0]["kind"] == "sweep"


def test_markdown(compression: Run, tmp_path: Path) -> None:
    text = build_report(compression, "md")
    assert text.startswith("# mlp800 from lenet, mnist\n")
    assert "**Noise of sigma 0.5, alpha 0.5 helped here (-1.00 points of test error).**" in text
    assert "| student, noisy | 3 | 7.22 \\[6.71, 7.72\\] |" in text
    assert escaped("a|b <i> `x` *y* [z](u)\n") == "a\\|b &lt;i&gt; \\`x\\` \\*y\\* \\[z\\](u)"
    hostile = build_report(made.compression(tmp_path, classes=HOSTILE), "md")
    assert "<script" not in hostile
    assert "<img" not in hostile
    for line in hostile.splitlines():
        if line.startswith("| "):
            assert len(re.findall(r"(?<!\\)\|", line)) in {3, 5, 6, 7, 10}, line


def test_csv_is_neither_formula_nor_text_where_it_is_a_number(sweep: Run, tmp_path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(build_report(sweep, "csv"))))
    assert [row["line"] for row in rows] == ["teacher", "labels", "clean", "sigma0.1", "sigma0.5", "sigma0.9"]
    assert float(rows[4]["difference_points"]) == pytest.approx(-0.395, abs=0.01)
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
    assert (harmless(-0.5), harmless(-3), harmless("a=b"), harmless(None), harmless(True)) == (
        -0.5,
        -3,
        "a=b",
        "",
        "true",
    )
    run = made.compression(tmp_path)
    result = run.result() or {}
    result["rows"][1]["title"] = "=HYPERLINK(1)"
    run.write_result(result)
    assert "'=HYPERLINK(1)" in build_report(run, "csv")


def test_the_command(
    sweep: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["noisyteacher", "report", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out, told.err

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
    assert (content["kind"], content["schema"]) == ("report", 1)
    (one,) = content["runs"]
    assert one["verdicts"] == [
        {"word": "helps", "sentence": "the noise helps: sigma 0.5 gives -0.40 points", "line": "sigma0.5"}
    ]
    (line,) = (line for line in one["lines"] if line["name"] == "sigma0.5")
    assert line["scores"]["test_error_%"]["per_seed"] == pytest.approx([0.605, 0.62, 0.645])
    assert line["against_clean"]["reference"] == "clean"
    assert line["costs"]["macs"] == 8000


def test_the_papers_numbers() -> None:
    """Spot checks against the paper's tables, typed again."""
    assert references.curve("table1").errors == (0.96, 0.93, 0.94, 0.87, 0.87, 0.90, 0.90, 0.86, 0.86, 0.87)
    assert dict(zip(references.curve("table3").x, references.curve("table3").errors, strict=True))[0.9] == 18.68
    assert references.curve("table4").errors[4] == references.curve("table3").errors[5] == 19.15
    assert references.curve("figure2").digitised
    assert not references.curve("table5").digitised
    assert references.value("section5.4-sigma-range").sigma == ((0.01, 1.0),)
    assert references.value("table2-best").error == min(references.curve("table2").errors) == 4.45
    for curve in references.curves():
        assert len(curve.x) == len(curve.errors)
        assert 0 < min(curve.errors) < max(curve.errors) < 100
    ours = {"data": "mnist", "teacher": "lenet", "student": "mlp800", "axis": "sigma"}
    assert [one.id for one in references.matching_curves(**ours, alpha=0.15)] == ["table1"]
    assert references.matching_curves(**ours, alpha=0.5) == []
    assert references.matching_curves(**{**ours, "data": "mnist-5k"}, alpha=0.15) == []
    with pytest.raises(UnknownNameError, match="did you mean 'table1'"):
        references.curve("tabel1")


def test_many_classes(tmp_path: Path) -> None:
    names = tuple(f"class {number}" for number in range(40))
    run = made.compression(tmp_path, classes=names)
    (study,) = read_studies(run)
    counts = tuple(tuple(9 if row == column else (row + column) % 2 for column in range(40)) for row in range(40))
    line = replace(study.lines[0], details={"test": Details(counts, (), 1)})
    drawn = confusion("c", study, line, "test")
    assert drawn is not None
    assert 'href="data:image/png;base64,' in drawn.svg
    assert drawn.svg.count("class ") == 2 * 10 + 2 * 5  # ticks of both axes, and the errors told in words
    assert "800 of 1,160 answers wrong" in drawn.caption
    noise = picture("n", study)
    assert not isinstance(noise, str)
    assert "Of 40 classes the 20 with the largest logits." in noise.caption


def test_a_sealed_result_of_another_shape_is_refused_by_name(tmp_path: Path) -> None:
    run = made.compression(tmp_path)
    result = run.result() or {}
    for row in result["rows"]:
        row["costs"] = True
    run.write_result(result)
    with pytest.raises(FileFormatError, match=re.escape(run.path.name)):
        build_report(run, "md")


def of_two_data_sets(tmp_path: Path) -> Study:
    """A sweep over `data.name` with one seed: its teacher, clean and noisy student on mnist, and the same on easy."""
    (study,) = read_studies(made.sweep(tmp_path, seeds=1))
    own = [line for line in study.lines if line.name in ("teacher", "clean", "sigma0.5")]
    easy = {"data": "easy", "n": {"val": 30, "test": 60}, "family": "f1", "teacher": "teacher-easy", "chosen": False}
    other = [replace(line, name=f"{line.name}-easy", title=f"{line.title}, easy", **easy) for line in own]
    noisy = Verdict("no evidence", "no evidence on easy", other[2])
    own = [replace(line, teacher=None if line.kind == "teacher" else "teacher") for line in own]
    families = {"f0": ("clean", "labels"), "f1": ("clean-easy", "")}
    return replace(study, lines=(*own, *other), verdicts=(noisy,), families=families)


def test_lines_of_other_data_have_their_own_number_of_images(tmp_path: Path) -> None:
    study = of_two_data_sets(tmp_path)
    rows = {row["line"]: row for row in csv.DictReader(io.StringIO(as_csv([study])))}
    assert {name: (row["data"], row["n"]) for name, row in rows.items()} == {
        "teacher": ("mnist", "10000"), "clean": ("mnist", "10000"), "sigma0.5": ("mnist", "10000"),
        "teacher-easy": ("easy", "60"), "clean-easy": ("easy", "60"), "sigma0.5-easy": ("easy", "60"),
    }  # fmt: skip
    high = 100 * 1.959964**2 / (60 + 1.959964**2)  # Wilson of 0 errors in 60
    assert float(rows["sigma0.5-easy"]["error_high_%"]) == pytest.approx(high, abs=0.001)
    assert float(rows["sigma0.5"]["error_high_%"]) < 0.8  # of 60 in 10,000
    (one,) = json.loads(as_json([study]))["runs"]
    told = {line["name"]: (line.get("data"), line.get("n")) for line in one["lines"]}
    assert told["clean-easy"] == ("easy", {"val": 30, "test": 60})
    assert told["clean"] == (None, None)


def test_captions_name_every_data_set_with_its_number_of_images(tmp_path: Path) -> None:
    study = of_two_data_sets(tmp_path)
    text = markdown([study])
    assert text.startswith("# mlp800 from lenet, mnist, easy\n")
    assert "Test: n = 10,000 (mnist), 60 (easy) images. Validation: n = 100 (mnist), 30 (easy) images." in text
    assert "| clean, easy | easy | 1 |" in text
    html_text = page_of([study])
    told = captions(html_text)
    for begin in ("Test error minus", "Reliability on test"):
        (found,) = (one for one in told if one.startswith(begin))
        assert "n = 10,000 (mnist), 60 (easy) images" in found
    (found,) = (one for one in told if one.startswith("Validation error (%) by epoch"))
    assert "n = 100 (mnist), 30 (easy) images" in found
    assert any("Confusion of teacher lenet, easy on test, easy, n = 60 images" in one for one in told)
    assert any("Confusion of sigma 0.5, easy on test, easy, n = 60 images" in one for one in told)
    for begin in ("Error on mnist (test, n = 10,000 images)", "Error on easy (test, n = 60 images)"):
        assert sum(one.startswith(f"{begin} against parameters") for one in told) == 1
    facts = Page(html_text).text.partition("Results")[0]
    assert "clean student, test error 1.00 % (0.29, 8.86)" in facts  # Wilson of 1 in 60
    assert "noisy student, test error 0.60 % (0.00, 6.02)" in facts  # and of 0
    parts = tuple(replace(line, data="mnist" if line.data else "") for line in study.lines)
    assert "Test: n = 60 or 10,000 images." in markdown([replace(study, lines=parts)])
    assert markdown([replace(study, lines=study.lines[:3])]).count("Test: n = 10,000 images.") == 1


def test_figures_of_other_data_say_which(tmp_path: Path) -> None:
    study = of_two_data_sets(tmp_path)
    more = replace(study.lines[5], settings={**study.lines[5].settings, "noise.sigma": 0.7})
    (chart,) = charts([replace(study, lines=(*study.lines, more))], "sigma", "test", [""])
    assert (chart.data, chart.n, chart.title) == ("easy", 60, "f1")
    assert chart.paper == ()
    clean = replace(study.lines[4], settings={"student.lr": 0.01, "noise.sigma": 0.0})
    lines = (*study.lines[:4], clean, study.lines[5], more)
    (chart,) = charts([replace(study, lines=lines)], "sigma", "test", [""])
    assert chart.title == "lr 0.01", "a family is called by its settings"


def test_no_noise_compared_over_several_data_sets(tmp_path: Path) -> None:
    study = replace(of_two_data_sets(tmp_path), verdicts=())
    text = Page(page_of([study])).text
    assert "The lowest test error of students: 0.60 %, sigma 0.5 (on mnist); 0.60 %, sigma 0.5, easy (on easy)." in text


def test_a_raw_p_is_told_from_corrected_ones(tmp_path: Path) -> None:
    run = made.sweep(tmp_path)
    result = run.result() or {}
    for one in result["conditions"]:
        if one["kind"] == "labels":
            one["against_clean"]["test_error_%"]["p_holm"] = None
    run.write_result(result)
    text = build_report(run, "md")
    rows = {line.split(" |")[0]: line for line in text.splitlines()}
    assert " raw p " in rows["| labels"]
    assert " p " in rows["| sigma 0.1"]
    assert " raw p " not in rows["| sigma 0.1"]
    assert (
        "p of the paired t-test, for noises after Holm's correction for all noises with the same other settings; "
        "raw p: not corrected."
    ) in text
    text = build_report(made.compression(tmp_path), "md")
    assert "p of the paired t-test." in text
    assert "raw p" not in text
    assert "Holm" not in text


def unfinished_sweep(tmp_path: Path) -> Run:
    """A sweep over the learning rate and sigma, as it lies there before its result is written."""
    run = new_run(tmp_path, "sweep", "mlp800", {"base": {"data": {"name": "mnist"}}, "grids": [], "seeds": 1})
    made.training(run, "teacher", 0.7, model="lenet")
    for lr, words in ((0.01, "-lr0.01"), (0.001, "")):
        for name in ("labels-alone", "clean", "sigma0.1", "sigma0.5"):
            child = made.training(run, f"{name}{words}-seed0", 1.0, noise=made.NOISE if "sigma" in name else None)
            config = child.config
            config["recipe"]["lr"] = lr
            if "sigma" in name:
                config["objective"]["noise"]["sigma"] = float(name[5:])
            again = run.child(f"{name}{words}-seed0x", child.info["kind"], config, seed=0)
            for file in ("result.json", "metrics.jsonl"):
                shutil.copy(child.path / file, again.path / file)
            shutil.rmtree(child.path)
            again.path.rename(child.path)
    return run


def test_an_unfinished_sweep_knows_its_students_by_what_taught_them(tmp_path: Path) -> None:
    run = unfinished_sweep(tmp_path)
    (study,) = read_studies(run)
    assert {line.name: line.kind for line in study.lines} == {
        "teacher": "teacher",
        "labels-alone": "labels", "labels-alone-lr0.01": "labels",
        "clean": "clean", "clean-lr0.01": "clean",
        "sigma0.1": "noisy", "sigma0.5": "noisy", "sigma0.1-lr0.01": "noisy", "sigma0.5-lr0.01": "noisy",
    }  # fmt: skip
    assert [line.kind for line in study.lines][:3] == ["teacher", "labels", "labels"]
    found = charts([study], "sigma", "test", [""])
    assert [chart.title for chart in found] == ["lr 0.001", "lr 0.01"]
    assert all([x for x, _, _ in chart.series[0].points] == [0.1, 0.5] for chart in found)
    text = build_report(run)
    assert "no noise was used" not in text
    assert "The noise is not pictured: the run is not done." in text


def test_parts_of_an_unfinished_sweep_that_are_of_other_data_say_so(tmp_path: Path) -> None:
    run = unfinished_sweep(tmp_path)
    for name in ("teacher-easy", "sigma0.5-easy-seed0"):
        noise = None if name == "teacher-easy" else made.NOISE
        child = made.training(run, name, 2.0, noise=noise, data="easy", model="lenet")
        child.write_result({"scores": {"test": made.scores(2.0, 60)}, "training": {"seconds": 1.0}})
    lines = {line.name: line for line in read_studies(run)[0].lines}
    assert {name: (line.kind, line.data, line.n) for name, line in lines.items() if line.data or line.n} == {
        "teacher-easy": ("teacher", "easy", {"test": 60}), "sigma0.5-easy": ("noisy", "easy", {"test": 60}),
    }  # fmt: skip


def cost_rows(study: Study) -> list[str]:
    text = markdown([study])
    table = text[text.index("| MACs |") :].split("\n\n")[0]
    return [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines()[2:]]


def test_students_that_differ_in_options_have_a_row_each(tmp_path: Path) -> None:
    (study,) = read_studies(made.sweep(tmp_path))
    quarter, half = made.costs(4_000, 900, 0.2), made.costs(8_000, 2_700, 0.4)
    widths = {"clean": (0.25, quarter), "sigma0.1": (0.25, quarter), "labels": (0.5, half), "sigma0.5": (0.5, half)}
    lines = [study.lines[0]]
    for line in study.lines[1:]:
        width, cost = widths.get(line.name, (0.5, half))
        lines.append(replace(line, costs=cost, settings={**line.settings, "student.options.width": width}))
    wide = replace(study, lines=tuple(lines))
    assert cost_rows(wide) == ["teacher lenet", "mlp800, width 0.5", "mlp800, width 0.25"]
    text = Page(page_of([wide])).text
    for one in ("teacher lenet", "student mlp800, width 0.5", "student mlp800, width 0.25"):
        assert text.count(f"Layers of the {one}: ") == 1
    elsewhere = replace(lines[-1], costs=made.costs(9_000, 2_700, 0.4), data="easy", n={"test": 60})
    assert cost_rows(replace(study, lines=(*lines, elsewhere)))[1:] == [
        "mlp800, width 0.5, mnist", "mlp800, width 0.25", "mlp800, width 0.5, easy",
    ]  # fmt: skip


def test_a_condition_that_failed_has_no_row_among_the_costs(tmp_path: Path) -> None:
    run = made.sweep(tmp_path)
    result = run.result() or {}
    scores = {key: None for key in result["conditions"][0] if key.startswith(("val_", "test_"))}
    for one in result["conditions"]:
        if one["name"] == "labels":
            one |= {**scores, "runs": [], "seeds": [], "against_clean": None, "training_s": []}
    run.write_result(result)
    (study,) = read_studies(run)
    assert cost_rows(study) == ["teacher lenet", "mlp800"]
    lost = tuple(replace(line, model=None) if line.kind == "clean" else line for line in study.lines)
    assert cost_rows(replace(study, lines=lost)) == ["teacher lenet", "mlp800"]
    nameless = tuple(replace(line, model=None) for line in study.lines)
    assert cost_rows(replace(study, lines=nameless)) == ["teacher", "student"]


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
    details = {"test": {"confusion": made.CONFUSION, "reliability": made.RELIABILITY}}
    run = new_run(tmp_path, "train", "lenet", {"config": {"data": {"name": "mnist"}}, "seed": 0}, seed=0)
    run.write_result({"scores": {"test": made.scores(9.0)}, "details": details, "classes": list(made.DIGITS)})
    assert "| two | zero | 12.5 |" in build_report(run, "md")


def test_the_heading_of_markdown_is_that_of_the_page(tmp_path: Path, compression: Run) -> None:
    run = made.reproduction(tmp_path)
    assert build_report(run, "md").startswith("# table1-quick\n")
    assert "<h1>table1-quick</h1>" in build_report(run)
    assert build_report([run, compression], "md").startswith("# 2 runs\n")


def test_a_sentence_begins_with_a_capital_but_not_a_name() -> None:
    lenet = Line("x", "lenet, trained on labels", "model", model="lenet")
    for sentence, line, whole in (
        ("lenet, trained on labels: test error 7.50 %", lenet, "lenet, trained on labels: test error 7.50 %."),
        ("mlp800, distilled: test error 7.50 %", None, "mlp800, distilled: test error 7.50 %."),
        ("student.lr = 0.01: the noise helps", None, "student.lr = 0.01: the noise helps."),
        ("the noise helps.", lenet, "The noise helps."),
    ):
        assert Verdict("", sentence, line).whole == whole


def test_a_difference_that_rounds_to_zero_has_no_sign(tmp_path: Path) -> None:
    (study,) = read_studies(made.sweep(tmp_path))
    none = Difference(-0.001, -0.004, 0.004, 0.9, 0.9, 3, "clean")
    study = replace(
        study, lines=tuple(replace(line, against_clean=none) for line in study.lines if line.kind != "clean")
    )
    assert "0.00 \\[0.00, 0.00\\]" in markdown([study])
    assert "\u22120.00" not in markdown([study])
    text = page_of([study])
    assert "sigma 0.5 0.00" in text
    assert "-0.00" not in "".join(one["aria-label"] or "" for one in Page(text).all("svg"))


def test_a_choice_of_the_noise_is_told_in_every_format_that_can(tmp_path: Path) -> None:
    run = made.compression(tmp_path)
    choice = {
        "by": "validation error", "n": 100, "epochs": 2, "seeds": [0, 1], "chosen": {"sigma": 0.5, "alpha": 0.5},
        "candidates": [
            {"sigma": sigma, "alpha": 0.5 if sigma else 0.0, "val_error_%": [error, error], "mean": error,
             "runs": [f"choice-{sigma}-seed{seed}" for seed in (0, 1)]}
            for sigma, error in ((0.0, 9.0), (0.5, 8.0))
        ],
    }  # fmt: skip
    run.write_result({**(run.result() or {}), "choice": choice})
    text = build_report(run, "md")
    assert (
        "The noise: sigma 0.5, alpha 0.5 was chosen on validation (n = 100): error 8.00 % against 9.00 % without "
        "noise, the lowest of 2 candidates after 2 epochs x 2 seeds."
    ) in text
    assert "| no noise | 9.00 | 9.00, 9.00 |" in text
    assert "| sigma 0.5, alpha 0.5 | 8.00 chosen | 8.00, 8.00 |" in text
    assert json.loads(build_report(run, "json"))["runs"][0]["choice"] == choice
    assert json.loads(build_report(made.compression(tmp_path), "json"))["runs"][0]["choice"] is None
    sentence = (
        "no noise (sigma 0) was chosen on validation (n = 100): error 9.00 % against 9.00 % without noise, the lowest"
    )
    none = {**choice, "chosen": {"sigma": 0.0, "alpha": 0.0}}
    sentence += " of 2 candidates after 2 epochs x 2 seeds"
    run.write_result({**(run.result() or {}), "choice": none, "verdict": sentence})
    assert build_report(run, "md").count("chosen on validation") == 1
