"""Long trainings compared: subsets, the pilot's choice, an interrupted training, the judgement, and its statistics
against published tables and simulated studies.
"""

from __future__ import annotations

import importlib
import json
import math
import tarfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import noisyteacher as nt
from helpers import PATIENCE
from noisyteacher.errors import DataError, TrainingError, UsageError
from noisyteacher.io.files import lock, write_json
from noisyteacher.paper import regime, relatives, run_paper
from noisyteacher.paper.regime import Arm, Cell, Trained, Workspace
from noisyteacher.stats import PairedDifference, crossed_difference, dunnett, dunnett_p, paired_difference, t_quantile

CELL = Cell("mnist", 60, "mlp128", epochs=3, variants=True)
RESULTS = Path(__file__).parents[1] / "docs" / "results"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A few embedded digits and the package's teacher of digits."""
    data = {"name": "mnist-5k", "limit": 200}
    return Workspace(tmp_path_factory.mktemp("regime"), data, "pretrained:lenet-mnist")


def test_a_subset_has_every_class_in_proportion_and_changes_with_the_seed() -> None:
    split = nt.load_data("mnist-5k").train
    rows = regime.draw_subset(split, 100, 0)
    assert len(set(rows.tolist())) == 100
    assert split.labels_at(rows).bincount().tolist() == [10] * 10
    assert torch.equal(rows, regime.draw_subset(split, 100, 0))
    assert len(set(rows.tolist()) & set(regime.draw_subset(split, 100, 1).tolist())) < 20
    assert torch.equal(regime.draw_subset(split, 10**6, 0), torch.arange(len(split)))


def test_as_many_trials_for_noisy_as_for_clean_students_at_the_same_rates() -> None:
    for cell in regime.CELLS.values():
        clean, noisy = regime.trials(cell)
        assert len({arm.name for arm in clean}) == len({arm.name for arm in noisy}) == (12 if cell.rows <= 5000 else 4)
        assert [(arm.lr, arm.weight_decay) for arm in clean] == [(arm.lr, arm.weight_decay) for arm in noisy]


def test_validation_chooses_and_test_errors_play_no_part() -> None:
    clean, noisy = regime.trials(CELL)

    def pilot(best_clean: int, best_noisy: int) -> list[Trained]:
        rows = []
        for arms, best in ((clean, best_clean), (noisy, best_noisy)):
            for number, arm in enumerate(arms):
                val = {"last": 5.0 - (number == best), "best": 4.0 + (number == best)}
                rows.append(Trained(arm, 100, val, {"last": 50.0 * (number == best)}, {}, 0.0, 0.0))
        return rows

    chosen = {arm.title: arm for arm in regime.choose_arms(CELL, pilot(5, 10))}
    assert chosen["clean, decay chosen"] == replace(clean[5], title="clean, decay chosen")
    assert chosen["noisy, decay chosen"] == replace(noisy[10], title="noisy, decay chosen")
    assert chosen["clean, for early stopping"].name == clean[0].name  # by the best epoch, not the last
    assert chosen["clean, no decay"].weight_decay == 0 == chosen["noisy, no decay"].weight_decay
    assert chosen[regime.SAME_RATE] == replace(chosen["noisy, no decay"], title=regime.SAME_RATE, noise=None)
    for title, noise in regime.VARIANTS.items():
        assert chosen[title].noise == noise
        assert chosen[title].lr == chosen["noisy, no decay"].lr


def test_the_best_trials_are_repeated_with_less_and_with_more_weight_decay() -> None:
    clean, noisy = regime.trials(CELL)
    assert (clean[6].weight_decay, noisy[4].weight_decay) == (0.01, 0.0)
    pilot = [
        Trained(arm, 100, {"last": 5.0 - (arm in (clean[6], noisy[4])), "best": 0.0}, {}, {}, 0.0, 0.0)
        for arm in (*clean, *noisy)
    ]
    less, more, least, little = regime.refined_trials(CELL, pilot)
    assert [less, more] == [replace(clean[6], weight_decay=decay) for decay in (0.0045, 0.022)]
    assert [least, little] == [replace(noisy[4], weight_decay=decay) for decay in (0.00018, 0.00089)]
    rows = [*pilot, Trained(more, 100, {"last": 3.0, "best": 0.0}, {}, {}, 0.0, 0.0)]
    chosen = {arm.title: arm for arm in regime.choose_arms(CELL, rows)}
    assert chosen["clean, decay chosen"].weight_decay == 0.022


def test_the_best_trials_of_each_choice_are_repeated_and_their_mean_chooses() -> None:
    clean, noisy = regime.trials(CELL)
    errors = {arm.name: 5.0 - 0.1 * number for number, arm in enumerate((*clean, *noisy))}

    def trained(arm: Arm, seed: int, change: float = 0.0) -> Trained:
        error = errors[arm.name] + change
        return Trained(arm, seed, {"last": error, "best": 10 - error}, {}, {}, 0.0, 0.0)

    pilot = [trained(arm, 100) for arm in (*clean, *noisy)]
    repeated = regime.finalists(pilot)
    last, best, no_decay = clean[:-4:-1], clean[:3], [clean[8], clean[4]]  # the third of these is clean[0]
    assert repeated[: len(repeated) // 2] == [*last, *best, *no_decay]
    assert [arm.noise for arm in repeated] == [None] * 8 + [regime.STRONG] * 8
    lucky = clean[-1].name  # the best on the first seed, worse than the second best on the others
    pilot += [trained(arm, seed, 0.2 * (arm.name == lucky)) for arm in repeated for seed in (101, 102)]
    chosen = {arm.title: arm for arm in regime.choose_arms(CELL, pilot)}
    assert chosen["clean, decay chosen"].name == clean[-2].name
    assert chosen["noisy, decay chosen"].name == noisy[-1].name
    assert chosen["clean, no decay"].name == clean[8].name


def test_an_interrupted_training_ends_as_an_unbroken_one(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    arm = Arm("noisy", 0.03, 0.002, regime.STRONG)
    unbroken = regime.train_arm(workspace, CELL, arm, 0)
    assert regime.train_arm(workspace, CELL, arm, 0) == unbroken  # from its file
    other = replace(workspace, folder=workspace.folder / "again")
    write = write_json
    calls = []

    def stop(path: Path, *content: object) -> None:
        write(path, *content)  # type: ignore[arg-type]
        calls.append(path)
        if len(calls) == 2:  # two of three traces are kept
            raise KeyboardInterrupt

    monkeypatch.setattr(regime, "write_json", stop)
    with pytest.raises(KeyboardInterrupt):
        regime.train_arm(other, CELL, arm, 0)
    assert list((other.folder / CELL.name / "seed0").glob("*/checkpoint"))
    monkeypatch.setattr(regime, "write_json", write)
    resumed = regime.train_arm(other, CELL, arm, 0)
    assert resumed == unbroken
    assert unbroken.curve["step"] == [2.0, 4.0, 6.0]
    assert unbroken.curve["trace_step"] == [2.0, 4.0, 6.0]
    assert unbroken.images == 200
    for weights in ("last", "best"):
        misses = unbroken.misses(weights)
        assert unbroken.test[weights] == pytest.approx(100 * misses.mean())
    assert not list((other.folder / CELL.name / "seed0").glob("*/checkpoint"))


def test_a_student_of_the_pilot_is_not_judged_on_test(workspace: Workspace) -> None:
    trained = regime.train_arm(replace(workspace, epochs=1), CELL, Arm("clean", 0.03), 101)
    assert trained.val.keys() == {"last", "best"}
    assert not trained.test
    assert not trained.wrong
    short = relatives.CELLS["short-logit_regression"]
    record = relatives.train_relative(replace(workspace, epochs=1), short, relatives.Arm("clean"), 0.01, 102)
    assert "val" in record
    assert not {"test", "wrong"} & record.keys()


def test_a_training_that_diverges_is_kept_as_such(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    arm = Arm("clean", 1e9)
    trained = regime.train_arm(workspace, CELL, arm, 5)
    assert (trained.diverged, trained.val) == (True, {})
    monkeypatch.setattr(regime, "fit", None)  # cannot be called
    assert regime.train_arm(workspace, CELL, arm, 5) == trained  # from its file


@pytest.mark.parametrize("module", [regime, relatives], ids=["regime", "relatives"])
def test_a_training_that_another_process_works_on_is_waited_for(
    module: Any, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is then read, not trained. The lock does not lie in the run folder, which is removed at the end."""
    short = replace(workspace, folder=workspace.folder / module.KIND, epochs=2)
    cell = relatives.CELLS["short-logit_regression"]

    def train() -> Any:
        if module is regime:
            return regime.train_arm(short, CELL, Arm("clean", 0.03), 4)
        return relatives.train_relative(short, cell, relatives.Arm("clean"), 0.01, 4)

    trained = train()
    (file,) = short.folder.glob("*/seed4/*.json")
    assert not file.with_suffix("").exists()
    content, wanted = file.read_bytes(), threading.Event()
    file.unlink()

    def announced(folder: Path) -> AbstractContextManager[None]:
        wanted.set()
        return lock(folder)

    with ThreadPoolExecutor(1) as pool:
        with regime.alone(file):
            monkeypatch.setattr(regime, "lock", announced)
            monkeypatch.setattr(module, "fit", None)  # cannot be called
            waiting = pool.submit(train)
            assert wanted.wait(PATIENCE)
            file.write_bytes(content)
        assert waiting.result() == trained


def test_the_clock_counts_the_noise_that_was_drawn() -> None:
    """Two steps of five at full rate with noise on: Q = 2 (rate sigma)^2 alpha / B."""
    arm = Arm("noisy", 0.03, noise={"sigma": 0.5, "alpha": 0.5, "draw": "row", "until": 0.4})
    assert regime.clock_of(arm, 5, 32) == pytest.approx(2 * (0.03 * 0.5) ** 2 * 0.5 / 32)
    assert regime.clock_of(Arm("clean", 0.03), 5, 32) == 0


def test_halving_is_predicted_at_a_rate_that_holds_and_measured_between_two_traces() -> None:
    """Q grows by (0.1 * 0.8)^2 * 0.5 / 32 = 1e-4 a step."""
    arm = Arm("noisy", 0.1, noise={"sigma": 0.8, "alpha": 0.5, "draw": "row"})
    predicted = regime.predicted_halving(CELL, arm)
    assert predicted is not None
    assert predicted == pytest.approx([200, 1000])
    assert regime.predicted_halving(replace(CELL, optimizer="adam"), arm) is None
    assert regime.predicted_halving(replace(CELL, loss="soft_targets", temperature=1.0), arm) is None
    clean = {"trace_step": [10.0, 1000.0], "trace": [8.0, 8.0]}
    assert regime.measured_halving(clean, {"trace": [8.0, 2.0]}) == pytest.approx(100)  # half way to a quarter
    assert regime.measured_halving(clean, {"trace": [8.0, 5.0]}) is None
    assert regime.measured_halving(clean, {"trace": [3.0, 3.0]}) == 10


def student_with_errors(title: str, wrong: np.ndarray, seed: int) -> Trained:
    """A student that misclassifies these test images."""
    bits = np.packbits(wrong).tobytes().hex()
    error = 100 * float(wrong.mean())
    curve = {name: [1.0, 2.0] for name in ("step", "val_error", "clean_loss", "trace_step", "trace")}
    errors = {"last": error, "best": error}
    return Trained(Arm(title, 0.03), seed, errors, errors, {"last": bits, "best": bits}, 0.1, 0.0, curve=curve)


@pytest.mark.parametrize("gain", [0.0, 2.0])
def test_a_planted_gain_is_found_and_no_gain_is_not(gain: float) -> None:
    """800 images, 8 seeds, 10 % error: a gain of two points is found in most of 40 studies, and none in few."""
    draws, detected = np.random.default_rng(0), []
    titles = [*dict.fromkeys(title for pair in regime.CONTRASTS.values() for title in pair[:2]), *regime.VARIANTS]
    for _ in range(40):
        by_title = {}
        hard = draws.normal(0.1, 0.05, 800)
        for title in (*titles, "clean, dropout 0.1"):
            change = -gain / 100 if title.startswith("noisy") else 0.0
            chances = np.clip(hard + change + draws.normal(0, 0.004, (8, 1)), 0, 1)
            wrong = draws.random((8, 800)) < chances
            by_title[title] = [student_with_errors(title, wrong[seed], seed) for seed in range(8)]
        record = regime.judge_cell(CELL, by_title, [], set())
        contrast = record["contrasts"]["each at its best, last weights"]
        detected.append(contrast["high"] < 0)
        assert record["arms"]["clean, no decay"]["mean_%"]["last"] == pytest.approx(10, abs=2)
    assert (np.mean(detected) >= 0.8) if gain else (np.mean(detected) <= 0.1)


def published_trainings() -> list[Path]:
    """The archives of the trainings of cells that regime.json has; others are of cells that have not been judged."""
    judged = {record["cell"]["name"] for record in json.loads((RESULTS / "regime.json").read_text(encoding="utf-8"))}
    archives = sorted((RESULTS / "regime-trainings").glob("*.tar.xz"))
    return [archive for archive in archives if archive.name.removesuffix(".tar.xz") in judged]


@pytest.mark.parametrize("archive", published_trainings(), ids=lambda archive: archive.name)
def test_a_published_cell_follows_from_its_published_trainings(archive: Path, tmp_path: Path) -> None:
    """Errors, differences and intervals, from which test images each student misclassifies.

    An archive may lack students: then what is left follows.
    """
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path, filter="data")
    records = json.loads((RESULTS / "regime.json").read_text(encoding="utf-8"))
    (published,) = (record for record in records if archive.name == f"{record['cell']['name']}.tar.xz")
    cell, by_title = regime.CELLS[published["cell"]["name"]], {}
    for title, content in published["arms"].items():
        arm = Arm(title, **content["settings"])
        if all((tmp_path / cell.name / f"seed{seed}" / f"{arm.name}.json").exists() for seed in published["seeds"]):
            workspace = Workspace(tmp_path, {}, "")
            by_title[title] = [regime.train_arm(workspace, cell, arm, seed) for seed in published["seeds"]]
            for weights, errors in content["test_error_%"].items():
                assert [100 * row.misses(weights).mean() for row in by_title[title]] == pytest.approx(errors)
    answered = []
    for question, (*titles, weights) in regime.CONTRASTS.items():
        if by_title.keys() >= {*titles}:
            misses = [np.stack([row.misses(weights) for row in by_title[title]]) for title in titles]
            difference = regime.difference_record(crossed_difference(*misses))
            assert json.loads(json.dumps(difference)) == pytest.approx(published["contrasts"][question])
            answered.append(question)
    assert {"each at its best, last weights", "each at its best, early stopping"} <= {*answered}
    if by_title.keys() == published["arms"].keys():
        record = json.loads(json.dumps(regime.judge_cell(cell, by_title, [], set())))
        assert record["curves"] == published["curves"]
        for title, content in published["arms"].items():
            assert record["arms"][title]["mean_%"] == pytest.approx(content["mean_%"])
            assert record["arms"][title]["trace"] == pytest.approx(content["trace"])


def run_with(
    diverges: Callable[[Arm, int], bool], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Any], set[tuple[str, float, float]]]:
    """The record of a cell whose students err the less the higher their rate; and kind, rate and decay of the pilot."""
    tried = set()

    def train(workspace: Workspace, cell: Cell, arm: Arm, seed: int) -> Trained:
        if seed == 100:
            tried.add((arm.kind, arm.lr, arm.weight_decay))
        if diverges(arm, seed):
            return Trained(arm, seed, {}, {}, {}, 0.0, 0.0, diverged=True)
        wrong = np.arange(200) < 20 - 100 * arm.lr + 100 * abs(arm.weight_decay - 0.01) + seed % 3
        return replace(student_with_errors(arm.title, wrong, seed), arm=arm)

    monkeypatch.setattr(regime, "train_arm", train)
    monkeypatch.setattr(regime, "run_in_workers", lambda call, tasks, *_: [call(*task) for task in tasks])
    return regime.run_cell(Workspace(folder, {}, ""), replace(CELL, seeds=3), 1, None), tried


def test_a_rate_at_which_a_fresh_seed_diverges_is_left_out_and_the_decay_chosen_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverges(arm: Arm, seed: int) -> bool:
        return arm.noise is not None and arm.lr > 0.1 and seed == 2

    record, tried = run_with(diverges, tmp_path, monkeypatch)
    assert record["left_out"] == {"clean": [], "noisy": [0.12]}
    rates = {title: arm["settings"]["lr"] for title, arm in record["arms"].items()}
    assert rates["clean, decay chosen"] == rates["clean, no decay"] == rates["clean, dropout 0.3"] == 0.12
    assert rates["noisy, decay chosen"] == rates["noisy, no decay"] == rates[regime.SAME_RATE] == 0.06
    assert {rates[title] for title in regime.VARIANTS} == {0.06}
    seeds = [row["seed"] for row in record["pilot"] if row["arm"].startswith("lr0.06-wd0.022-")]
    assert seeds == [100, 101, 102], "the decays around the best are judged by as many seeds as the best"
    for rate in (0.06, 0.12):  # the decays beside the best one were tried at each rate that was the best
        assert {("noisy", rate, 0.0045), ("noisy", rate, 0.022)} < tried


def test_a_rate_is_left_out_for_noisy_students_where_their_clean_control_diverges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, _ = run_with(lambda arm, seed: arm.noise is None and arm.lr > 0.1 and seed == 1, tmp_path, monkeypatch)
    assert record["left_out"] == {"clean": [0.12], "noisy": [0.12]}
    rates = {arm["settings"]["lr"] for arm in record["arms"].values()}
    assert rates == {0.06}


@pytest.mark.parametrize("control", ["sigma 0.9, one xi per batch", "clean, dropout 0.3"])
def test_a_control_that_diverges_changes_no_choice(
    control: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, _ = run_with(lambda arm, seed: arm.title == control and seed == 1, tmp_path, monkeypatch)
    assert record["left_out"] == {"clean": [], "noisy": []}
    assert record["diverged"] == {control: 1}
    assert {arm["settings"]["lr"] for arm in record["arms"].values()} == {0.12}
    compared = {*regime.VARIANTS, *(f"clean, dropout {share:g}" for share in regime.DROPOUTS)} - {control}
    assert record["against_clean_no_decay"].keys() == compared
    assert {test["comparisons"] for test in record["against_clean_no_decay"].values()} == {len(compared)}


def test_a_rate_at_which_the_pilot_diverges_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, tried = run_with(
        lambda arm, _: not arm.noise and arm.lr > 0.1 and arm.weight_decay > 0.02, tmp_path, monkeypatch
    )
    assert record["left_out"] == {"clean": [0.12], "noisy": []}
    assert record["arms"]["clean, decay chosen"]["settings"]["lr"] == 0.06
    assert record["arms"]["noisy, decay chosen"]["settings"]["lr"] == 0.12
    assert not {("clean", 0.12, 0.0045), ("clean", 0.12, 0.022)} & tried
    kept = {row["arm"] for row in record["pilot"] if row["kind"] == "clean"}
    assert len(kept) == 10
    assert not any("lr0.12" in name for name in kept)
    with pytest.raises(
        TrainingError, match=r"students with settings of clean ones diverged at every rate \(0\.03, 0\.06"
    ):
        run_with(lambda arm, _: not arm.noise, tmp_path, monkeypatch)


def test_dunnett_against_published_tables() -> None:
    """Two-sided 5 % points for 1 to 4 treatments (Dunnett 1964, table II)."""
    published = {
        5: (2.57, 3.03, 3.29, 3.48),
        10: (2.23, 2.57, 2.76, 2.89),
        20: (2.09, 2.38, 2.54, 2.65),
        60: (2.00, 2.27, 2.41, 2.51),
    }
    for freedom, points in published.items():
        for treatments, point in enumerate(points, 1):
            assert dunnett_p(point, treatments, freedom) == pytest.approx(0.05, abs=0.001)
    assert dunnett_p(0.0, 3, 8) == pytest.approx(1.0)


def compared(values: np.ndarray) -> list[PairedDifference]:
    """Rows 1 and up against row 0."""
    control, *treatments = values.tolist()
    return dunnett(control, treatments)


def test_dunnett_has_its_size_and_finds_a_planted_gain() -> None:
    """Six treatments, 8 seeds that all share: a false finding in 5 % of studies, and a gain of two sd found."""
    draws = np.random.default_rng(1)
    false, power = [], []
    for _ in range(150):
        values = draws.normal(5, 1, 8) + draws.normal(0, 0.2, (7, 8))
        false.append(any(result.p is not None and result.p < 0.05 for result in compared(values)))
        values[3] -= 0.4
        helped = compared(values)[2]
        power.append(helped.high is not None and helped.high < 0)
    assert 0.01 <= np.mean(false) <= 0.1
    assert np.mean(power) >= 0.8
    single = dunnett([1.0, 2.0, 4.0, 3.0], [[1.5, 2.0, 4.5, 4.0]])[0]
    paired = paired_difference([1.0, 2.0, 4.0, 3.0], [1.5, 2.0, 4.5, 4.0])
    assert single.mean == pytest.approx(paired.mean)
    assert single.p == pytest.approx(paired.p, rel=1e-4)
    assert single.low == pytest.approx(paired.low, rel=1e-3)
    alike = dunnett([1.1, 1.2, 1.3], [[1.2, 1.3, 1.4]])[0]  # a spread of rounding alone is no evidence
    assert (alike.low, alike.p) == (None, None)


def test_an_interval_over_seeds_and_images_covers_both() -> None:
    """Images differ in what the change does to them: an interval over seeds alone would be far too narrow."""
    draws, covered, seeds_alone = np.random.default_rng(2), [], []
    for _ in range(200):
        base, effect = draws.uniform(0.3, 0.7, 300), draws.normal(0, 0.15, 300)
        first = draws.random((5, 300)) < base
        second = draws.random((5, 300)) < np.clip(base + effect, 0, 1)
        result = crossed_difference(first, second)
        covered.append(result.low is not None and result.high is not None and result.low <= 0 <= result.high)
        narrow = paired_difference((100 * first.mean(1)).tolist(), (100 * second.mean(1)).tolist())
        seeds_alone.append(narrow.low is not None and narrow.high is not None and narrow.low <= 0 <= narrow.high)
    assert np.mean(covered) >= 0.92
    assert np.mean(covered) >= np.mean(seeds_alone)
    first, second = np.zeros((5, 300), dtype=bool), np.zeros((5, 300), dtype=bool)
    for seed in range(5):  # every seed gains 9 images and loses 3, others each time: seeds scatter less than images do
        first[seed, 12 * seed : 12 * seed + 9] = second[seed, 12 * seed + 9 : 12 * seed + 12] = True
    lucky, gaps = crossed_difference(first, second), 100 * (second.astype(float) - first)
    error = math.sqrt(gaps.var() / gaps.size)
    assert lucky.mean == pytest.approx(-2)
    assert lucky.high == pytest.approx(-2 + t_quantile(0.975, 4) * error, rel=0.02)
    same = np.zeros((3, 10), dtype=bool)
    assert crossed_difference(same, same).low is None
    with pytest.raises(UsageError, match="two seeds or more"):
        crossed_difference(same[:1], same[:1])


def test_the_tables_of_the_study_correct_p_for_the_number_of_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[1] / "scripts")
    figure = importlib.import_module("regime_figure")
    assert figure.difference({"mean": -0.714, "low": None, "high": None, "p": None}) == "-0.71"
    assert figure.difference({"mean": -0.714, "low": -0.96, "high": -0.46, "p": 0.049}) == "**-0.71 ±0.25**"
    assert figure.difference({"mean": -0.714, "low": -0.96, "high": -0.46, "p": 0.051}) == "-0.71 ±0.25"
    records = [{"contrasts": {"question": {"p": p}}} for p in (0.04, None, 0.01, 0.03, 0.5)]
    holm = [gap["p"] for gap in figure.corrected(records, "question")]
    assert holm == [pytest.approx(0.09), None, pytest.approx(0.04), pytest.approx(0.09), pytest.approx(0.5)]
    assert records[0]["contrasts"]["question"]["p"] == 0.04


def test_what_has_no_effect_on_the_study_is_refused(tmp_path: Path) -> None:
    for options, message in (
        ({"teacher": "pretrained:lenet-mnist"}, "teacher: no effect"),
        ({"sigmas": [0.3]}, "sigmas: no effect"),
        ({"parts": ["mnist-7-mlp128-sgd"]}, "unknown part of regime"),
        ({"overrides": {"student.lr": 0.1}}, "settings of the data alone"),
        ({"seeds": 1}, "needs two or more"),
        ({"device": "cuda", "extra": False}, "device, extra: no effect on regime"),
        ({"jobs": 0}, "jobs=0: expected a whole number >= 1"),
        ({"overrides": {"data.lmit": 100}}, r"data\.lmit: unknown setting; did you mean 'data\.limit'"),
        ({"overrides": {"data.limit": 0}}, r"data\.limit: given 0"),
    ):
        with pytest.raises(UsageError, match=message):
            run_paper("regime", output_dir=tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_data_without_a_labelled_test_split_are_refused(tmp_path: Path) -> None:
    splits = nt.load_data("mnist-5k", limit=40)
    arrays: dict[str, Any] = {}
    for role in ("train", "val"):
        rows = torch.arange(len(splits.parts[role]))
        arrays[f"x_{role}"] = splits.parts[role].images_at(rows).numpy()
        arrays[f"y_{role}"] = splits.parts[role].labels_at(rows).numpy()
    np.savez(tmp_path / "digits.npz", **arrays)
    for name in ("regime", "relatives"):
        with pytest.raises(DataError, match="digits: no labelled test split"):
            run_paper(name, overrides={"data.name": str(tmp_path / "digits.npz")}, output_dir=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_study_on_other_data_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = list[dict[str, Any]]()

    def judged(workspace: Workspace, cell: Cell, jobs: int, watch: object) -> dict[str, Any]:
        errors = {"last": [5.0, 6.0]}
        arms = {"clean, no decay": {"test_error_%": errors, "settings": {"noise": None}}}
        left_out = {"clean": [0.12], "noisy": []}
        records.append({"cell": {"name": cell.name, "epochs": cell.epochs}, "arms": arms, "left_out": left_out})
        counts = {"seeds": [0, 1], "diverged": {"clean, dropout 0.3": 1}}
        return records[-1] | counts | {"contrasts": {}, "against_clean_no_decay": {}}

    monkeypatch.setattr(regime, "run_cell", judged)
    result = run_paper("regime", "quick", overrides={"data.name": "mnist-5k", "data.limit": 200}, output_dir=tmp_path)
    assert result.data == "mnist-5k"
    assert records[0]["cell"]["epochs"] == 3  # those of the budget
    remarks = " ".join(result.remarks)
    for words in (
        "Not the study's own data (data.name = mnist-5k, data.limit = 200)",
        "clean students diverged at the rate 0.12, which is left out",
        "clean, dropout 0.3: 1 of 2 trainings diverged, so that it is not compared",
        "it has seen them, so its errors on them say nothing of new images",
    ):
        assert words in remarks
