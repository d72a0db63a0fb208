"""A student that is asked for by what it may cost: limits, candidates, the choice on validation, the time it takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

import noisyteacher as nt
from noisyteacher.config import build_config, describe, limit
from noisyteacher.errors import ConfigError, UsageError
from noisyteacher.models.external import import_torchvision
from noisyteacher.pipeline import (
    Result,
    candidates,
    compress_config,
    distil_config,
    pacing,
    resume_compress,
    searching,
    student_table,
)
from noisyteacher.pipeline.best import explain_best
from noisyteacher.pipeline.budget import Speeds
from noisyteacher.pipeline.candidates import Candidate, Search, _Pricing, price_candidates
from noisyteacher.pipeline.pacing import Pace
from noisyteacher.pipeline.plan import Networks, Plan, to_choose
from noisyteacher.pipeline.searching import explain_search
from noisyteacher.pipeline.tried import excess, outcomes
from noisyteacher.runs import Run, new_run


def asked(folder: Path, target: dict[str, Any], **student: Any) -> Any:
    return build_config(
        {
            "data": {"limit": 60},
            "teacher": {"name": "mlp800", "epochs": 1},
            "student": {"name": "auto", "epochs": 4, "batch_size": 30, **student},
            "noise": {"sigma": 0.5},
            "target": target,
            "run": {"output_dir": str(folder), "baselines": False},
        }
    )


@pytest.fixture(scope="module")
def data() -> nt.Splits:
    return nt.load_data("mnist-5k", limit=60)


@pytest.mark.parametrize(
    ("given", "most"), [("4x", 50.0), ("1x", 200.0), ("2.5x", 80.0), (30, 30), (" 8x ", 25.0), ("120", 120.0)]
)
def test_a_limit_is_a_number_or_a_ratio_to_the_teacher(given: Any, most: float) -> None:
    assert limit(given, 200) == most


@pytest.mark.parametrize("given", ["x", "0.5x", "-4x", "nanx", "infx", "0", "four", ""])
def test_a_limit_that_is_neither(given: str) -> None:
    with pytest.raises(ConfigError, match=r"target\.macs: given '.*'; expected a number, or a ratio"):
        build_config({"student": {"name": "auto"}, "target": {"macs": given}})


def test_limits_and_names_must_agree() -> None:
    for name in ("", "auto"):  # the student is chosen, and nothing limits it: a quarter of the multiplications
        config = to_choose(build_config({"student": {"name": name}}))
        assert (config.student.name, config.target.macs, config.target.bytes) == ("auto", "4x", None)
    limited = to_choose(build_config({"target": {"bytes": "8x"}}))
    assert (limited.student.name, limited.target.macs, limited.target.bytes) == ("auto", None, "8x")
    assert to_choose(build_config({"student": {"name": "mlp800"}})).target.macs is None
    with pytest.raises(ConfigError, match=r"target: has no effect where student\.name is not auto"):
        build_config({"student": {"name": "mlp800"}, "target": {"macs": "4x"}})
    with pytest.raises(ConfigError, match=r"student\.options: have no effect"):
        build_config({"student": {"name": "auto", "options": {"dropout": 0.5}}, "target": {"macs": 1e6}})
    for target in ({"max_drop": 1.0}, {"minutes": 5.0}):  # these have an effect on a named student too
        build_config({"student": {"name": "mlp800"}, "target": target})


def test_every_candidate_is_priced_and_held_against_the_limits(data: nt.Splits) -> None:
    teacher = nt.build_model("mlp800", data)
    config = build_config(
        {"student": {"name": "auto"}, "target": {"parameters": "2x", "students": ["lenet", "mlp800", "student3"]}}
    )
    search = price_candidates(config, teacher, data)
    assert search.limits == {"parameters": 1_276_810 / 2}
    priced = {one.name: one for one in search.candidates}
    assert (priced["lenet"].parameters, priced["lenet"].macs, priced["lenet"].over) == (431_080, 2_293_000, ())
    assert (priced["mlp800"].parameters, priced["mlp800"].over) == (1_276_810, ("parameters",))
    assert [one.macs for one in search.candidates] == sorted((one.macs for one in search.candidates), reverse=True)
    assert "mlp800" not in [one.name for one in search.fitting]


def test_nothing_named_looks_at_all_that_take_the_images(data: nt.Splits) -> None:
    config = build_config({"student": {"name": "auto"}, "target": {"macs": "1x"}})
    names = {one.name for one in price_candidates(config, nt.build_model("lenet", data), data).candidates}
    assert {"lenet", "mlp800", "compact-xs", "compact-m", "shrink:0.9375"} <= names
    assert len([one for one in names if one.startswith("shrink")]) == 4  # narrower ones would not be tried


def test_an_impossible_target_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none of 2 networks .* the nearest, 'mlp800', has 1.275 M of 1 k MACs"):
        compress_config(asked(tmp_path, {"macs": 1000, "students": ["lenet", "mlp800"]}))
    assert not list(tmp_path.iterdir())  # told before anything is made or trained


def candidate(name: str, macs: int, *over: str) -> Candidate:
    return Candidate(name, macs, 4 * macs, macs, over)


def test_the_largest_of_each_family_comes_first_and_the_bound_is_of_the_next_larger() -> None:
    found = (
        candidate("a-l", 90, "macs"), candidate("a-m", 60), candidate("shrink:0.5", 55, "bytes"), candidate("a-s", 50),
        candidate("lenet", 40), candidate("student3", 35), candidate("a-xs", 30),
    )  # fmt: skip
    search = Search({"macs": 65.0, "bytes": 200.0}, {"macs": 100}, found)
    assert [one.name for one in search.fitting] == ["a-m", "lenet", "a-s", "student3", "a-xs"]
    assert search.bound(found[1]) == ("macs",)
    assert search.bound(found[3]) == ("bytes",)  # 220 of 200 bytes is nearer than 90 of 65 multiplications
    assert Search({"macs": 100.0}, {"macs": 100}, found[1:2]).bound(found[1]) == ()


def test_a_network_whose_name_is_a_path_can_be_tried(tmp_path: Path) -> None:
    """Its run folder must not be refused once the teacher is trained."""
    import_torchvision()
    transformers = pytest.importorskip("transformers", reason="needs the extra hf")
    config = transformers.ViTConfig(
        num_channels=1, image_size=28, patch_size=7, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, num_labels=10,
    )  # fmt: skip
    transformers.AutoModelForImageClassification.from_config(config).save_pretrained(tmp_path / "own")
    name = f"hf:{tmp_path / 'own'}"
    result = compress_config(asked(tmp_path, {"parameters": 1e5, "students": [name], "max_drop": 100.0}))
    assert result.search is not None
    assert result.search["chosen"] == name


def test_validation_chooses_and_the_evidence_is_kept(tmp_path: Path) -> None:
    names = ["mlp800", "lenet", "student3"]
    result = compress_config(asked(tmp_path, {"macs": 3e6, "students": names, "max_drop": 100.0}))
    search = result.search
    assert search is not None
    tried = {one["name"]: one for one in search["tried"]}
    assert list(tried) == ["lenet", "mlp800"]  # student3 has more multiplications than allowed
    for one in tried.values():
        child = Run.open(result.path / one["run"])
        outcome = child.result() or {}
        assert outcome["scores"]["val"]["error"]["value"] == one["val_error_%"]
        assert outcome["training"]["epochs"] == 1  # a quarter of four
    best = min(tried.values(), key=lambda one: one["val_error_%"])
    level = [name for name, trial in tried.items() if trial["val_error_%"] == best["val_error_%"]]
    assert search["chosen"] == level[-1]  # of equals the one with fewer multiplications: mlp800
    assert search["bound"] == ["macs"]
    assert Run.open(result.path / "noisy-seed0").config["model"] == search["chosen"]
    assert f"chosen on validation (n = 60) was {search['chosen']}: error {best['val_error_%']:.2f} %" in str(result)
    assert "the limit that bound was target.macs" in str(result)
    assert result.best is not None
    assert result.best["run"] == "noisy-seed0"
    assert result.holds
    again = Result.read(result.path, Run.open(result.path).result() or {})
    assert str(again) == str(result)


def test_a_drop_over_the_allowed_one_does_not_hold(tmp_path: Path) -> None:
    config = build_config(
        {
            "data": {"limit": 60}, "teacher": {"name": "lenet", "epochs": 6},
            "student": {"name": "mlp800", "epochs": 1, "batch_size": 60, "lr": 1e-6}, "noise": {"sigma": 0.5},
            "target": {"max_drop": 0.5}, "run": {"output_dir": str(tmp_path), "baselines": False},
        }
    )  # fmt: skip
    result = compress_config(config)
    assert result.best is not None
    assert result.best["drop"] == result.best["mean_val_error_%"] - result.best["teacher_val_error_%"]
    assert result.best["drop"] > 0.5
    assert not result.holds
    assert "OVER the 0.5 allowed" in str(result)


@pytest.mark.parametrize("stop_at", [3, 6, 9])
def test_an_interrupted_search_goes_on_to_the_same_student(tmp_path: Path, stop_at: int) -> None:
    class StopError(Exception):
        pass

    stages: list[str] = []

    def stop(stage: str, done: int, total: int, note: str) -> None:
        if stage.startswith("[") and stage not in stages:  # a run folder is there from the first numbered one on
            stages.append(stage)
        if len(stages) == stop_at - 2:
            raise StopError

    target = {"macs": 3e6, "students": ["mlp800", "lenet"], "minutes": 60.0}
    whole = compress_config(asked(tmp_path / "whole", target))
    begun: list[Run] = []
    try:
        resumed = compress_config(asked(tmp_path / "cut", target), begun=begun.append, watch=stop)
    except StopError:
        resumed = resume_compress(begun[0])
    assert resumed.search is not None
    assert whole.search is not None
    assert resumed.search["chosen"] == whole.search["chosen"]
    for path in sorted(whole.path.rglob("weights.safetensors")):
        assert (resumed.path / path.relative_to(whole.path)).read_bytes() == path.read_bytes(), path


@dataclass
class Told:
    """What a short run says of itself."""

    result: dict[str, Any]


def searched(
    monkeypatch: pytest.MonkeyPatch, folder: Path, minutes: float | None, errors: dict[str, float], slower: float = 1.0
) -> tuple[Plan, dict[str, Any], list[str], Pace]:
    """The outcome of a search on a clock that only trainings move.

    An epoch was measured to take 5 s for the teacher and 2 s for a student; the short runs take `slower` times as long.
    3 conditions x 2 seeds x 20 epochs are 240 s, three short runs of 5 epochs 30 s, the teacher's 20 epochs 100 s.
    """
    names: list[str] = []
    now = [0.0]

    def run(plan: Plan, run: str, condition: str, noise: Any, seed: int, answers: Any, title: str) -> Told:
        names.append(str(plan.student))
        epochs = plan.config.student.epochs
        now[0] += 2 * slower * epochs
        return Told(
            {
                "training": {"seconds": 2 * slower * epochs, "epochs": epochs},
                "scores": {"val": {"error": {"value": errors[str(plan.student)]}}},
            }
        )

    monkeypatch.setattr(searching, "a_student", run)
    monkeypatch.setattr(pacing, "measured", lambda *_: Speeds(5.0, 0.0, (2.0,) * len(errors)))
    config = build_config(
        {
            "student": {"name": "auto", "epochs": 20},
            "noise": {"sigma": 0.5},
            "target": {"macs": 100, "minutes": minutes} if minutes else {"macs": 100},
            "run": {"seeds": 2},
        }
    )
    search = Search({"macs": 100.0}, TEACHER, tuple(candidate(name, 50) for name in errors))
    data = nt.load_data("mnist-5k", limit=60)
    plan = Plan(
        config, data, "lenet", "auto", nt.Noise(sigma=0.5, alpha=0.5), (), {}, new_run(folder, "compress", "auto", {}),
        None, search=search,
    )  # fmt: skip
    pace = Pace(plan, Networks(nt.build_model("lenet", data), None), 0.0, lambda: now[0])
    plan = pace.begin()
    now[0] += 5 * plan.config.teacher.epochs
    plan, record = searching.choose_student(plan, {}, (2, 9), pace)
    return plan, record, names, pace


ERRORS = {"a": 5.0, "b": 4.0, "c": 6.0}
TEACHER = {"macs": 1000, "bytes": 4000, "parameters": 1000}


def test_with_time_enough_all_are_tried_and_trained_in_full(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plan, record, names, pace = searched(monkeypatch, tmp_path, 380 / 60 / 0.95, ERRORS)  # 5 % are kept in reserve
    assert names == ["a", "b", "c"]
    assert (record["chosen"], plan.student, plan.config.student.name) == ("b", "b", "b")
    assert (plan.config.teacher.epochs, record["epochs"], plan.config.student.epochs) == (20, 5, 20)
    time = pace.record(plan.config.student, 3)
    assert time is not None
    assert time["told"] == ["the whole run took 2 min 10 s of 6.67 minutes"]
    plan, _, names, pace = searched(monkeypatch, tmp_path, None, ERRORS)
    assert (len(names), plan.config.student.epochs, pace.record(plan.config.student, 3)) == (3, 20, None)


def test_with_less_time_teacher_and_students_get_fewer_epochs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # 285 s to plan with: 14 epochs are 70 + 4 * 2 + 3 * 4 * 2 + 6 * 14 * 2 = 270 s, 15 would be 287 s. The short run on
    # labels is not done here, so that after the teacher 218 s are left for 3 * 4 * 2 + 6 * 16 * 2 = 216 s
    plan, record, names, pace = searched(monkeypatch, tmp_path, 5, ERRORS)
    assert (plan.config.teacher.epochs, record["epochs"], len(names), plan.config.student.epochs) == (14, 4, 3, 16)
    assert pace.record(plan.config.student, 3)["told"][0] == (  # type: ignore[index]
        "the teacher was trained for 14 epochs instead of 20 and the student was trained for 16 epochs instead of 20: "
        "5 minutes did not allow more"
    )


def test_short_runs_that_turn_out_slower_leave_fewer_tries_and_epochs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # the first takes 4 epochs x 6 s: 99 s are spent; half of 15 epochs of 6 students at 6 s (252 s) no longer fit
    plan, record, names, pace = searched(monkeypatch, tmp_path, 5, ERRORS, slower=3.0)
    assert names == ["a"]
    assert plan.config.student.epochs == 5  # 0.95 * 201 s are 5.3 epochs of 36 s
    rows = {row["student"]: row["outcome"] for row in record["table"]}
    assert rows == {"a": "chosen", "b": "not tried: time", "c": "not tried: time"}
    assert "1 network instead of 3 tried, for the same reason" in pace.record(plan.config.student, 1)["told"]  # type: ignore[index]


def test_too_little_time_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plan, _, names, pace = searched(monkeypatch, tmp_path, 0.1, ERRORS)
    assert (plan.config.teacher.epochs, len(names), plan.config.student.epochs) == (1, 1, 1)
    told = pace.record(plan.config.student, 1)["told"]  # type: ignore[index]
    assert told[-1] == "the whole run took 7.0 s, MORE than the 0.1 minutes it was given"


def test_what_is_within_the_noise_is_said() -> None:
    search = Search({"macs": 100.0}, {"macs": 1000}, tuple(candidate(name, 50) for name in "abc"))
    record = {
        "chosen": "a", "n": 400, "epochs": 5, "within": 3, "known": 3, "bound": [],
        "tried": [{"name": name, "val_error_%": error} for name, error in (("a", 4.0), ("b", 5.0), ("c", 8.0))],
    }  # fmt: skip
    # sqrt(2 * 0.04 * 0.96 / 400) is 1.39 points
    assert explain_search(record, search)[1].startswith("b came within one standard error (1.39 points) of it")


def test_what_is_handed_over_is_said() -> None:
    best = {
        "n": 400, "mean_val_error_%": 3.25, "val_error_%": 3.0, "drop": 0.75, "max_drop": 1.0, "holds": True,
        "run": "clean-seed1", "condition": "clean", "by": "validation error",
    }  # fmt: skip
    assert explain_best(best, "student, logit regression") == (
        "best on validation (n = 400): student, logit regression, 3.25 % error, 0.75 points more than the teacher's, "
        "within the 1 allowed; handed over is clean-seed1 (3.00 %)"
    )


def test_only_a_compression_chooses_a_student(tmp_path: Path) -> None:
    config = asked(tmp_path, {"macs": "2x"})
    with pytest.raises(UsageError, match=r"student\.name: auto .* name the student"):
        distil_config(config, tmp_path / "store")
    with pytest.raises(UsageError, match=r"student\.name: auto .* name the student"):
        nt.sweep(describe(config), {"noise.sigma": [0.5]})


class Stub(_Pricing):
    """Prices without building: width and ratio say what a network costs."""

    COSTS: ClassVar = {"compact-xs": 10.0, "compact-s": 20.0, "compact-m": 90.0, "shrink": 100.0}

    def price(self, name: str) -> Candidate:
        kind, _, width = name.partition(":")
        cost = self.COSTS.get(kind, 30.0) * (1.0 if kind == "timm" else float(width or 1) ** 2)
        costs = {"macs": round(1000 * cost), "bytes": round(4000 * cost), "parameters": round(1000 * cost)}
        over = tuple(key for key, most in self.search.allowed.items() if costs[key] > most)
        return Candidate(name, costs["macs"], costs["bytes"], costs["parameters"], over)


def priced(shape: tuple[int, int, int], limits: dict[str, float]) -> Search:
    """The candidates for images of a shape beside a teacher of 100,000 multiplications and parameters."""
    teacher = {"macs": 100_000, "bytes": 400_000, "parameters": 100_000}
    config = build_config({"student": {"name": "auto"}, "target": limits})
    images = SimpleNamespace(input_shape=shape)
    known, notes = Stub(config, None, images, Search(limits, teacher, ())).all_known()  # type: ignore[arg-type]
    return Search(limits, teacher, tuple(known), notes=tuple(notes))


@pytest.mark.parametrize("most", [700.0, 5_000.0, 26_000.0, 99_000.0])
def test_a_compact_network_of_some_width_is_close_below_any_limit(most: float) -> None:
    search = priced((3, 64, 64), {"macs": most})
    largest = {one.design: one for one in reversed(search.fitting) if one.family == "compact"}
    for design, one in largest.items():
        width = float(one.name.partition(":")[2] or 1)
        wider = 1000 * Stub.COSTS[design] * (width + 1 / 32) ** 2
        assert one.macs <= most < wider or width == 4
    assert min(most - one.macs for one in largest.values()) < 0.15 * most
    for design in ("compact-xs", "compact-s", "compact-m"):
        assert design in [one.name for one in search.candidates]  # as it is named, over the limit or not


def test_mobile_networks_are_candidates_where_timm_is_there_and_images_are_large_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def mobile(search: Search) -> set[str]:
        return {one.name for one in search.candidates if one.family == "timm"}

    monkeypatch.setattr(candidates, "find_spec", lambda name: object())
    for side in (32, 224):
        assert mobile(priced((3, side, side), {"macs": 50_000})) == set(candidates.MOBILE)
    small = priced((3, 31, 224), {"macs": 50_000})
    assert mobile(small) == set()
    assert "images below 32 pixels" in small.notes[0]
    monkeypatch.setattr(candidates, "find_spec", lambda name: None)
    without = priced((3, 32, 32), {"macs": 50_000})
    assert mobile(without) == set()
    assert "timm is not installed" in without.notes[0]


def test_the_papers_networks_are_candidates_for_their_own_images_alone() -> None:
    def paper(*shape: int) -> set[str]:
        limits = {"macs": 90_000.0}
        return {one.name for one in priced(shape, limits).candidates if one.family == "paper"}  # type: ignore[arg-type]

    assert paper(1, 28, 28) == {"lenet", "mlp800"}
    assert {"nin", "student3"} <= paper(3, 32, 32)
    assert not paper(3, 32, 32) & {"lenet", "mlp800"}
    assert paper(3, 64, 64) == paper(3, 28, 28) == paper(1, 32, 32) == set()


def test_nothing_larger_than_the_teacher_is_chosen_unless_it_was_named(data: nt.Splits) -> None:
    teacher = nt.build_model("lenet", data)
    search = price_candidates(build_config({"student": {"name": "auto"}, "target": {"macs": "1x"}}), teacher, data)
    mlp800 = next(one for one in search.candidates if one.name == "mlp800")
    assert mlp800.over == ("bytes", "parameters")  # with half of the multiplications
    assert excess(search, mlp800) == "2.96 times its teacher's bytes, 2.96 times its teacher's parameters"
    for one in search.fitting:
        assert all(getattr(one, key) <= search.teacher[key] for key in search.teacher)
    named = {"student": {"name": "auto"}, "target": {"macs": "1x", "students": ["mlp800"]}}
    assert price_candidates(build_config(named), teacher, data).fitting[0].name == "mlp800"


def test_a_larger_student_is_a_warning_before_anything_is_trained(
    tmp_path: Path,
) -> None:
    shown: list[tuple[str, str]] = []

    def watch(stage: str, done: int, total: int, note: str) -> None:
        shown.append((stage, note))

    class StopError(Exception):
        pass

    def stop(run: Run) -> None:
        raise StopError

    sentence = "the student mlp800 is LARGER than its teacher: 2.96 times its bytes, 2.96 times its parameters"
    smaller = {"data": {"limit": 60}, "run": {"output_dir": str(tmp_path), "baselines": False}, "noise": {"sigma": 0.0}}
    short = {"epochs": 1, "batch_size": 60}
    config = build_config({**smaller, "teacher": {"name": "lenet", **short}, "student": {"name": "mlp800", **short}})
    result = compress_config(config, watch=watch)
    first_training = next(number for number, (stage, _) in enumerate(shown) if stage.startswith("["))
    assert ("warning", sentence) in shown[:first_training]
    assert result.warnings[0] == sentence
    assert f"WARNING: {sentence}." in str(result)
    assert Result.read(result.path, Run.open(result.path).result() or {}).warnings == result.warnings
    shown.clear()
    with pytest.raises(StopError):
        compress_config(
            build_config({**smaller, "teacher": {"name": "mlp800"}, "student": {"name": "lenet"}}),
            begun=stop,
            watch=watch,
        )
    assert ("warning", "the student lenet is LARGER than its teacher: 1.80 times its MACs") in shown


def test_what_was_tried_and_why_it_lost_is_one_short_table() -> None:
    networks = [
        candidate("a", 60), candidate("b", 50), candidate("c", 40), candidate("d", 30),
        Candidate("wide", 108, 10, 10, ("macs",)), Candidate("heavy", 90, 4000, 10, ("bytes",)),
        *(candidate(f"x{number}", 5 + number) for number in range(20)),
        *(Candidate(f"y{number}", 400 + number, 10, 10, ("macs",)) for number in range(30)),
    ]  # fmt: skip
    search = Search({"macs": 100.0}, {"macs": 1000, "bytes": 1000, "parameters": 1000}, tuple(networks))
    rows = outcomes(search, {"b": 7.0, "a": 3.9, "c": 3.9}, "c", ["a", "b", "c", "d"], 4)
    assert [(row["student"], row["val_error_%"], row["outcome"]) for row in rows[:4]] == [
        ("c", 3.9, "chosen"),
        ("a", 3.9, "same error, more multiplications"),
        ("b", 7.0, "error 3.10 points higher"),
        ("d", None, "not tried: time"),
    ]
    assert rows[4]["outcome"] == "not tried: search = 4"
    assert [(row["student"], row["outcome"]) for row in rows[-3:]] == [
        ("15 others", "not tried"), ("wide", "over target.macs by 8.0 %"), ("31 others", "over a limit by more"),
    ]  # fmt: skip
    assert len(rows) == 12
    headers, cells = student_table({"table": rows})
    assert headers == ("student", "MACs", "bytes", "parameters", "validation error %", "outcome")
    assert cells[0] == ("c", "40", "160 B", "40", "3.90", "chosen")
    assert cells[-1] == ("31 others", "", "", "", "", "over a limit by more")
    assert student_table({"tried": []})[1] == []  # as an older version has it


def test_little_networks_come_last_and_every_design_before_a_second_of_it() -> None:
    search = Search(
        {"macs": 100.0}, {"macs": 1000},
        tuple(candidate(name, macs) for name, macs in (
            ("timm:lcnet_050", 20), ("compact-m:0.5", 99), ("compact-m:0.4", 95), ("compact-s", 90), ("shrink:0.5", 80),
            ("timm:lcnet_100", 60), ("timm:mobilenetv4_conv_small", 30),
            ("student3", 10),
        )),
    )  # fmt: skip
    assert [one.name for one in search.fitting] == [
        "compact-m:0.5", "shrink:0.5", "timm:lcnet_100", "compact-s", "timm:mobilenetv4_conv_small", "compact-m:0.4",
        "student3", "timm:lcnet_050",
    ]  # fmt: skip
