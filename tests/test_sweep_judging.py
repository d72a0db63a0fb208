"""Grids become conditions, and conditions verdicts: by hand, against scipy, and by simulated noise without effect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats as oracle

from noisyteacher.config import describe, flat_grids, parse_grid, read_config
from noisyteacher.errors import ConfigError
from noisyteacher.pipeline.results import Condition, Family, Verdict, condition_of
from noisyteacher.stats import detectable, mean_interval, outcome, paired_difference, t_quantile
from noisyteacher.sweep import ConditionSpec, analyse, expand

BASE: dict[str, Any] = {"noise": {"sigma": 0.0}, "teacher": {"preset": "paper"}, "student": {"preset": "paper"}}


def names(base: dict[str, Any], *grids: dict[str, list[Any]]) -> list[str]:
    return [condition.title for condition in expand(base, grids)[0]]


def test_every_combination_once_with_its_controls() -> None:
    grid: dict[str, list[Any]] = {
        "noise.sigma": [0, 0.5, 1.0],
        "noise.alpha": [0, 0.15, 0.5],
        "noise.draw": ["batch", "row"],
    }
    conditions, families, axes = expand(BASE, [grid])
    kinds = [condition.kind for condition in conditions]
    assert kinds == ["labels", "clean"] + ["noisy"] * 8  # sigma 0 or alpha 0 is clean, whatever else is said
    assert len({condition.name for condition in conditions}) == len(conditions)
    assert conditions[2].title == "sigma 0.5, alpha 0.15, batch"
    assert (len(families), families[0].clean, families[0].labels) == (1, "clean", "labels-alone")
    assert axes == list(grid)
    assert all(condition.config.noise.sigma == 0 for condition in conditions[:2])


def test_what_does_not_vary_is_not_said() -> None:
    assert names(BASE, {"noise.sigma": [0.3]}) == ["labels alone", "clean", "sigma 0.3"]
    assert names(BASE, {"noise.sigma": [[0.01, 1]], "noise.target": ["student", "teacher"]})[2:] == [
        "sigma 0.01..1, on the student",
        "sigma 0.01..1",
    ]
    assert names(BASE, {"noise.sigma": [0.3], "noise.until": [1.0, 0.3]})[2:] == ["sigma 0.3", "sigma 0.3, until 0.3"]
    assert names({**BASE, "noise": {"sigma": 0.3, "until": 0.3}}, {"noise.draw": ["row"]})[2:] == ["sigma 0.3"]


def test_several_grids_are_put_together() -> None:
    titles = names(BASE, {"noise.sigma": [0.3]}, {"noise.sigma": [0.3, 0.6]}, {"student.loss": ["soft_targets"]})
    assert titles == ["labels alone", "clean", "sigma 0.3", "sigma 0.6", "clean, soft targets"]


def test_settings_of_the_student_make_families() -> None:
    conditions, families, _ = expand(BASE, [{"noise.sigma": [0.5], "student.optimizer": ["adam", "sgd"]}])
    assert [condition.title for condition in conditions] == [
        "labels alone", "clean", "sigma 0.5", "labels alone, sgd", "clean, sgd", "sigma 0.5, sgd"
    ]  # fmt: skip
    assert [family.settings for family in families] == [{"student.optimizer": "adam"}, {"student.optimizer": "sgd"}]
    soft = expand(BASE, [{"noise.sigma": [0.5], "student.loss": ["logit_regression", "soft_targets"]}])
    assert [condition.kind for condition in soft[0]].count(
        "labels"
    ) == 1  # a student on labels alone does not look at the loss
    assert {family.labels for family in soft[1]} == {"labels-alone"}


def test_the_student_on_labels_alone_is_left_out_where_no_baselines_are_wanted() -> None:
    conditions, families, _ = expand({**BASE, "run": {"baselines": False}}, [{"noise.sigma": [0.5]}])
    assert [condition.kind for condition in conditions] == ["clean", "noisy"]
    assert (families[0].clean, families[0].labels) == ("clean", None)


@pytest.mark.parametrize(
    ("grid", "part"),
    [
        ({"noise.sigma": [-1, 0.5], "noise.draw": ["rwo"]}, "noise.sigma: given -1"),
        ({"noise.sigm": [1]}, "did you mean 'noise.sigma'"),
        ({"run.seeds": [1, 2]}, "cannot vary"),
        ({"noise.sigma": []}, "list of one or more"),
        ({"noise.sigma": 0.5}, "list of one or more"),
        ({"noise.sigma": ["auto"]}, "a sweep compares numbers"),
    ],
)
def test_a_wrong_grid_is_told(grid: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError, match="(?s)" + part.replace("(", r"\(")):
        expand(BASE, [grid])


def test_the_sweep_of_the_compact_students_is_the_one_in_the_results() -> None:
    results = Path(__file__).resolve().parents[1] / "docs" / "results"
    settings = read_config(results / "compact.toml")
    conditions, _, _ = expand(settings, flat_grids(settings.pop("sweep")))
    students = json.loads((results / "compact.json").read_text())["students"]
    assert {condition.config.student.name for condition in conditions} == set(students)
    for condition in conditions:
        trained, configured = students[condition.config.student.name]["recipe"], describe(condition.config)["student"]
        recipe = {name: value for name, value in trained["recipe"].items() if name != "precision"}  # auto: bf16 there
        recipe |= {name: trained["objective"][name] for name in ("loss", "label_weight")}
        assert {name: configured[name] for name in recipe} == recipe


def test_grids_from_the_command_line_and_from_toml() -> None:
    assert parse_grid(["noise.sigma=0,0.5,[0.01, 1]", "student.optimizer=adam,sgd"]) == {
        "noise.sigma": [0, 0.5, [0.01, 1]],
        "student.optimizer": ["adam", "sgd"],
    }
    for wrong in (["noise.sigma"], ["=1"], ["noise.sigma="], ["a.b=1", "a.b=2"]):
        with pytest.raises(ConfigError):
            parse_grid(wrong)
    assert flat_grids({"noise": {"sigma": [1]}, "student": {"options": {"dropout": [0.1]}}}) == [
        {"noise.sigma": [1], "student.options.dropout": [0.1]}
    ]
    assert flat_grids([{"noise": {"sigma": [1]}}, {"noise": {"sigma": [2]}}]) == [
        {"noise.sigma": [1]},
        {"noise.sigma": [2]},
    ]
    assert flat_grids(None) == []
    with pytest.raises(ConfigError, match="'noise' cannot vary here"):
        expand({}, flat_grids({"noise": {}}))  # a table left empty is no grid of nothing
    with pytest.raises(ConfigError, match="expected a table"):
        flat_grids(3)


def cells(errors: dict[str, list[tuple[float, float]]]) -> dict[tuple[str, int], Any]:
    """(condition, seed) -> a cell's result, from (val error, test error) per seed."""
    results = {}
    for name, pairs in errors.items():
        for seed, (val, test) in enumerate(pairs):
            scores = {
                role: {
                    name: {"value": number, "n": 100} for name, number in (("error", value), ("nll", 0.1), ("ece", 1.0))
                }
                for role, value in (("val", val), ("test", test))
            }
            results[name, seed] = {"scores": scores, "training": {"best_epoch": 3, "seconds": 1.0}}
    return results


def judged(
    conditions: list[ConditionSpec],
    families: list[Family],
    results: dict[tuple[str, int], Any],
    seeds: int | None = None,
) -> tuple[dict[str, Condition], Family, Verdict]:
    """The conditions by name, the family and its verdict."""
    rows = []
    for condition in conditions:
        done = {seed: results[name, seed] for name, seed in sorted(results) if name == condition.name}
        rows.append(
            condition_of(
                condition.name,
                condition.title,
                condition.kind,
                done,
                [],
                family=condition.family,
                settings=condition.settings,
            )
        )
    analysed, (family,), verdicts = analyse(rows, families, ["noise.sigma"], seeds)
    return {condition.name: condition for condition in analysed}, family, verdicts[0] if verdicts else Verdict("", "")


def study(noisy: int) -> tuple[list[ConditionSpec], list[Family]]:
    grid = {"noise.sigma": [number / 10 for number in range(1, noisy + 1)]}
    conditions, families, _ = expand(BASE, [grid])
    return conditions, families


def test_a_family_is_judged_by_hand() -> None:
    conditions, families = study(2)
    first, second = families[0].noisy
    errors = {
        "labels-alone": [(3.0, 3.2), (3.1, 3.3), (3.2, 3.1)],
        "clean": [(2.0, 2.2), (2.1, 2.3), (2.2, 2.1)],
        first: [(1.5, 1.8), (1.7, 1.7), (1.6, 1.6)],
        second: [(1.9, 1.4), (1.8, 1.6), (1.7, 1.2)],
    }
    by_name, family, verdict = judged(conditions, families, cells(errors))
    gaps = [by_name[name].against_clean["test"] for name in (first, second)]
    table = np.array([[2.2, 2.3, 2.1], [1.8, 1.7, 1.6], [1.4, 1.6, 1.2]])
    rest = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()  # of condition + seed, 2 x 2 df
    error = float(np.sqrt((rest**2).sum() / 4 * 2 / 3))
    both = oracle.multivariate_t(shape=[[1, 0.5], [0.5, 1]], df=4, seed=0)  # two t's that share their control
    for gap, mean in zip(gaps, (-0.5, -0.8), strict=True):
        t = -mean / error
        assert gap.mean == pytest.approx(mean)
        assert gap.p == pytest.approx(1 - both.cdf([t, t], lower_limit=[-t, -t], maxpts=10**6), abs=2e-4)
        assert (gap.n, gap.comparisons) == (3, 2)
    labels = by_name["labels-alone"].against_clean["test"]
    assert labels.mean == pytest.approx(1.0)
    assert (labels.p, labels.comparisons) == (None, 1)  # all three differ by the same amount
    assert by_name["clean"].against_clean == {}
    # Validation prefers sigma 0.1 (1.6 against 1.8), the test set sigma 0.2 (1.4 against 1.7): 0.3 points of optimism.
    assert (family.by_validation, family.by_test) == ((first,), (second,))
    assert family.optimism_points == pytest.approx(0.3)
    assert verdict.word == "helps"
    assert "3 paired seeds" in verdict.sentence
    swapped = cells({**errors, "clean": errors[first], first: errors["clean"]})
    _, family, verdict = judged(conditions, families, swapped)
    assert family.by_validation == ("clean",)
    assert "validation prefers the clean student" in verdict.sentence


def test_a_noise_whose_pairs_differ_alike_is_judged_by_the_residual_of_all() -> None:
    """On its own it would have no interval; pooled over the noises it has."""
    conditions, families = study(2)
    first, second = families[0].noisy
    errors = {
        "clean": [(2.0, 5.0), (2.0, 5.0), (2.0, 5.0)],
        first: [(1.0, 5.5), (1.0, 5.6), (1.0, 5.4)],
        second: [(1.5, 5.5), (1.5, 5.5), (1.5, 5.5)],
    }
    by_name, _, verdict = judged(conditions, families, cells(errors))
    gaps = {name: condition.against_clean["test"] for name, condition in by_name.items() if condition.against_clean}
    assert [gap.mean for gap in gaps.values()] == pytest.approx([0.5, 0.5])
    assert gaps[first].p == pytest.approx(gaps[second].p)
    assert 0 < (gaps[first].p or 0) < 0.01
    assert (verdict.word, families[0].noisy) == ("hurts", (first, second))


# Differences to the clean student of a noise that validation prefers and of another: none, sure harm, sure help.
NONE, HARM, HELP = (0.1, -0.1, 0.0), (1.01, 1.0, 1.02), (-1.01, -1.0, -1.02)


@pytest.mark.parametrize(
    ("preferred", "other", "begins"),
    [
        (NONE, NONE, "no evidence that the noise helps or hurts: "),
        (NONE, HARM, "no evidence that any noise helps, while some hurts: "),
        (NONE, HELP, "no evidence for the noise that validation prefers, while others help: "),
        (HARM, HELP, "the noise hurts: "),
        (HELP, HARM, "the noise helps: "),
    ],
)
def test_a_verdict_begins_with_what_is_sure_of_any_noise(
    preferred: tuple[float, ...], other: tuple[float, ...], begins: str
) -> None:
    conditions, families = study(2)
    first, second = families[0].noisy
    errors = {
        "clean": [(2.0, 5.0)] * 3,
        first: [(1.0, 5.0 + gap) for gap in preferred],
        second: [(1.5, 5.0 + gap) for gap in other],
    }
    _, _, verdict = judged(conditions, families, cells(errors))
    assert verdict.sentence.startswith(begins)


def test_missing_cells_leave_what_can_be_said() -> None:
    conditions, families = study(1)
    (noisy,) = families[0].noisy
    whole = cells(
        {"labels-alone": [(3, 3)] * 3, "clean": [(2, 2), (2.1, 2.2), (2.3, 2.1)], noisy: [(1, 1), (1.2, 1), (2, 2)]}
    )
    del whole[noisy, 1]
    by_name, family, verdict = judged(conditions, families, whole)
    assert by_name[noisy].seeds == (0, 2)
    assert by_name[noisy].against_clean["test"].n == 2
    assert by_name[noisy].against_clean["test"].mean == pytest.approx((1 - 2 + 2 - 2.1) / 2, abs=0.1)
    by_name, family, verdict = judged(conditions, families, {})
    assert (verdict.sentence, family.by_validation) == ("", ())
    assert all(condition.score("test") is None for condition in by_name.values())
    one_seed = {key: value for key, value in whole.items() if key[1] == 0}
    _, _, verdict = judged(conditions, families, one_seed)
    assert verdict.word == "no evidence"
    assert "no interval" in verdict.sentence


@pytest.mark.parametrize(
    ("val", "says"),
    [
        ((2.0, 2.0, 2.5), "; on validation the clean student is level with the best"),
        ((2.0, 2.1, 2.5), "; validation prefers the clean student to all of them"),
        ((2.0, 1.9, 1.9), "one of 2 that are level and that validation prefers among 2 noises, gives"),
        ((2.0, 1.9, 2.5), "which validation prefers among 2 noises, gives"),
    ],
)
def test_what_is_level_is_said_to_be(val: tuple[float, ...], says: str) -> None:
    conditions, families = study(2)
    names = ("clean", *families[0].noisy)
    errors = {
        name: [(mean + 0.1, 3.0), (mean - 0.1, 3.0 + k / 10)]
        for k, (name, mean) in enumerate(zip(names, val, strict=True))
    }
    _, family, verdict = judged(conditions, families, cells(errors))
    assert says in verdict.sentence
    assert ("prefers the clean student" in verdict.sentence) == (val[0] < min(val[1:]))
    level = {name for name, mean in zip(names, val, strict=True) if mean == min(val)}
    assert set(family.by_validation) == level


def test_noises_are_compared_over_the_seeds_that_all_have() -> None:
    """Sigma 0.2 lacks the seed on which every student does well, and is the best on those that are left."""
    conditions, families = study(2)
    first, second = families[0].noisy
    whole = cells(
        {
            "clean": [(40.0, 40.0), (35.0, 35.0), (41.0, 41.0)],
            first: [(38.0, 38.0), (33.0, 33.0), (41.0, 41.0)],
            second: [(37.0, 37.0), (33.0, 33.0), (41.0, 41.0)],
        }
    )
    del whole[second, 1]
    _, family, verdict = judged(conditions, families, whole)
    assert family.by_validation == family.by_test == (second,)
    assert "sigma 0.2, which validation prefers" in verdict.sentence
    assert "validation is compared over the 2 seeds that all have" in verdict.sentence
    assert family.optimism_points == 0
    apart = {key: result for key, result in whole.items() if key not in {(first, 0), (first, 2)}}
    _, _, verdict = judged(conditions, families, apart)
    assert "some seeds are missing: validation is compared over different ones" in verdict.sentence


def test_pairs_that_differ_alike_have_no_interval_and_it_is_said_why() -> None:
    conditions, families = study(1)
    (noisy,) = families[0].noisy
    _, _, verdict = judged(conditions, families, cells({"clean": [(2, 2), (3, 3)], noisy: [(2, 2.5), (3, 3.5)]}))
    assert "2 paired seeds: no interval, as all pairs differ by the same amount" in verdict.sentence
    _, _, verdict = judged(conditions, families, cells({"clean": [(2, 2), (3, 3)], noisy: [(2, 2.499), (3, 2.5)]}))
    assert "gives 0.00 points of test error" in verdict.sentence


def test_simulation_the_intervals_cover_and_the_verdict_is_rarely_wrong() -> None:
    """5 seeds, 10 noises that do nothing: the interval of the mean and of the difference covers in 95 of 100, and a
    verdict other than "no evidence" falls in at most 5 of 100, although the best of ten is the one judged. Naming the
    best on test without correction, as the paper does, is wrong far more often.
    """
    rng = np.random.default_rng(20161031)
    trials, seeds, noises = 300, 5, 10
    conditions, families = study(noises)
    verdicts, naive, covered, covered_difference = 0, 0, 0, 0
    for _ in range(trials):
        common = rng.normal(0, 0.10, (seeds, 1))  # what a seed does to all of its students
        val = 1.0 + common + rng.normal(0, 0.08, (seeds, noises + 2))
        test = val + rng.normal(0, 0.08, (seeds, noises + 2))  # the luck of the weights shows on both splits
        order = ["labels-alone", "clean", *families[0].noisy]
        errors = {name: list(zip(val[:, k], test[:, k], strict=True)) for k, name in enumerate(order)}
        _, _, verdict = judged(conditions, families, cells(errors))
        verdicts += verdict.word != "no evidence"
        best = 2 + int(test[:, 2:].mean(0).argmin())
        naive += float(oracle.ttest_rel(test[:, best], test[:, 1]).pvalue) < 0.05
        interval = mean_interval([float(value) for value in test[:, 1]])
        covered += interval.low is not None and interval.high is not None and interval.low <= 1.0 <= interval.high
        d = paired_difference([float(x) for x in test[:, 1]], [float(x) for x in test[:, 2]])
        covered_difference += d.low is not None and d.high is not None and d.low <= 0 <= d.high
    # 300 trials: three standard errors of a share of 0.05 are 0.038.
    assert abs(covered / trials - 0.95) < 0.038
    assert abs(covered_difference / trials - 0.95) < 0.038
    assert verdicts / trials < 0.05 + 0.038
    assert naive > 1.5 * verdicts


def fresh_study(draws: np.random.Generator, gain: float, seeds: int, controls: int) -> Verdict:
    """The verdict on four noises that change the error by -gain, the chosen noise being judged on fresh seeds."""
    conditions, families = study(4)
    names = ("clean", *families[0].noisy)
    common = draws.normal(0, 0.2, (controls, 1))
    val, test = (2.0 + common + draws.normal(0, 0.1, (controls, 5)) for _ in range(2))
    test = test + 0.5 * (val - common - 2.0)  # the luck of the weights shows on both splits
    test[:, 1:] -= gain
    chosen = 1 + int(val[:seeds, 1:].mean(0).argmin())
    errors = {
        name: list(zip(val[:end, k], test[:end, k], strict=True))
        for k, name in enumerate(names)
        for end in [controls if k in (0, chosen) else seeds]
    }
    return judged(conditions, families, cells(errors), seeds)[2]


def test_the_chosen_noise_is_judged_on_fresh_seeds_with_the_size_and_power_of_one_t_test() -> None:
    draws, seeds, controls = np.random.default_rng(5), 3, 9
    false = [fresh_study(draws, 0.0, seeds, controls).word for _ in range(200)]
    assert abs(np.mean([word != "no evidence" for word in false]) - 0.05) < 4 * 0.016
    assert abs(np.mean([word == "helps" for word in false]) - 0.025) < 4 * 0.011
    spread = np.sqrt(2) * np.hypot(0.1, 0.05)  # of a difference, two independent errors each
    gain = detectable(float(spread) / 6**0.5, 5, t_quantile(0.975, 5))
    true = [fresh_study(draws, gain, seeds, controls).word for _ in range(200)]
    assert abs(np.mean([word == "helps" for word in true]) - 0.8) < 4 * 0.028


def test_luck_on_the_seeds_of_the_choice_does_not_help_on_fresh_ones() -> None:
    conditions, families = study(2)
    first, second = families[0].noisy
    errors = {
        "clean": [(2.0 + k / 10, 2.0 + k / 10) for k in range(5)],
        first: [(1.0, 1.0), (1.1, 1.1), (2.8, 2.81), (2.9, 2.9), (3.0, 3.02)],  # better on the first two alone
        second: [(1.5, 2.0), (1.6, 2.1)],
    }
    by_name, family, verdict = judged(conditions, families, cells(errors), 2)
    assert (family.by_validation, verdict.condition) == ((first,), first)
    assert verdict.word == "hurts"
    assert "none of which took part in the choice" in verdict.sentence
    assert "3 paired seeds" in verdict.sentence
    assert "seeds are missing" not in verdict.sentence
    assert verdict.fresh is not None
    assert (verdict.fresh.n, verdict.fresh.comparisons) == (3, 1)
    assert verdict.fresh.mean == pytest.approx(0.61, abs=0.005)
    gap = by_name[first].against_clean["test"]
    assert (gap.n, gap.comparisons) == (2, 2)  # compared with the other noise over the seeds of both
    assert gap.mean == pytest.approx(-1.0, abs=0.1)
    errors[second] += [(0.1, 2.5), (0.1, 2.2), (0.1, 2.3)]  # fresh seeds have no part in the choice
    _, family, verdict = judged(conditions, families, cells(errors), 2)
    assert (family.by_validation, verdict.condition) == ((first,), first)
    _, _, shared = judged(conditions, families, cells({name: pairs[:2] for name, pairs in errors.items()}), 2)
    assert "on which it was chosen too" in shared.sentence
    assert shared.word != "hurts"


def test_a_verdict_says_what_the_data_allow() -> None:
    conditions, families = study(2)
    first, second = families[0].noisy
    errors = {
        "clean": [(2.0, 5.0), (2.0, 5.2), (2.0, 4.9)],
        first: [(1.0, 5.2), (1.0, 5.2), (1.0, 5.0)],
        second: [(1.5, 5.0), (1.5, 5.4), (1.5, 4.8)],
    }
    by_name, _, verdict = judged(conditions, families, cells(errors))
    gaps = [by_name[name].against_clean["test"] for name in (first, second)]
    low, high = gaps[0].low or 0, gaps[0].high or 0
    assert low < 0 < high
    assert f"a gain of up to {-low:.2f} is still possible" in verdict.sentence
    assert f", {gaps[0].detectable:.2f} would have been detected with 80 % power" in verdict.sentence
    reach = min(gap.low or 0 for gap in gaps), max(gap.high or 0 for gap in gaps)
    assert f"with intervals from {reach[0]:+.2f} to {reach[1]:+.2f}" in verdict.sentence


def test_a_trend_on_sigma_squared_where_three_sigmas_were_run() -> None:
    """Clean counts as sigma 0. Slopes by seed are 2, 3 and 4 points per unit of sigma^2 for rows, 0 for batches."""
    grid: dict[str, list[Any]] = {"noise.sigma": [0.5, 2.0], "noise.draw": ["row", "batch"]}
    more: list[dict[str, list[Any]]] = [{"noise.sigma": [[0.1, 1.0]]}, {"noise.sigma": [0.7], "noise.alpha": [0.5]}]
    conditions, families, _ = expand(BASE, [grid, *more])
    errors = {}
    for condition in conditions:
        sigma, by_row = condition.settings.get("noise.sigma", 0.0), condition.settings.get("noise.draw") == "row"
        squared = by_row * sigma**2 if isinstance(sigma, float) else 0.5
        lines = ((5.0, 2.0), (6.0, 3.0), (9.0, 4.0))
        errors[condition.name] = [(5.0, level + slope * squared) for level, slope in lines]
    _, family, _ = judged(conditions, families, cells(errors))
    trends = {line.title.replace("alpha 0.15, ", ""): line for line in family.trends}
    assert set(trends) == {"row", "batch"}  # the range and the single sigma of another alpha have none
    assert trends["row"].mean == pytest.approx(3.0)
    assert trends["row"].sigmas == (0.0, 0.5, 2.0)
    low = trends["row"].low
    assert low is not None
    assert trends["row"].comparisons == 2, "both trends share the clean students: an interval holds for both at once"
    assert 3.0 - low == pytest.approx(t_quantile(1 - 0.025 / 2, 2) / 3**0.5)


def test_no_trend_is_rarely_taken_for_one() -> None:
    """Of 300 studies with six noises of two sigmas each, and no effect, about one in twenty claims a trend."""
    grid: dict[str, list[Any]] = {"noise.sigma": [0.5, 2.0], "noise.alpha": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]}
    conditions, families, _ = expand(BASE, [grid])
    draws, claims = np.random.default_rng(0), 0
    for _ in range(300):
        errors = {condition.name: [(5.0, draws.normal(5, 0.1)) for _ in range(5)] for condition in conditions}
        _, family, _ = judged(conditions, families, cells(errors))
        assert len(family.trends) == 6
        claims += any(outcome(line) != "no evidence" for line in family.trends)
    assert claims <= 27, "0.05 of 300, and three standard deviations"


def test_what_failed_at_some_seeds_is_not_preferred_for_those_it_survived() -> None:
    """A rate that diverged at two of three seeds, and is lower at the third by 0.1."""
    conditions, families, axes = expand({**BASE, "run": {"baselines": False}}, [{"student.lr": [0.1, 0.2, 0.3]}])
    errors = dict(
        zip((each.name for each in conditions), ([(5.0, 5.0)] * 3, [(5.2, 5.2)] * 3, [(4.9, 4.9)]), strict=True)
    )
    results = cells(errors)

    def preference(results: dict[tuple[str, int], Any]) -> str:
        rows = []
        for each in conditions:
            done = {seed: result for (name, seed), result in results.items() if name == each.name}
            rows.append(condition_of(each.name, each.title, each.kind, done, [], family=each.family))
        (verdict,) = analyse(rows, families, axes)[2]
        return verdict.sentence

    assert preference(results).startswith(
        "among the 2 of 3 settings with all seeds validation prefers distilled, lr 0.1: 5.00 % validation error; "
        "-0.20 points against the next, distilled, lr 0.2"
    )
    none_whole = {
        key: value for key, value in results.items() if key not in ((conditions[0].name, 0), (conditions[1].name, 1))
    }
    assert preference(none_whole).endswith("some seeds are missing: validation is compared over different ones")
