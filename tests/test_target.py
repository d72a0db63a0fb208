"""A student that is asked for by what it may cost: limits, candidates, the choice on validation, the time it takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import noisyteacher as nt
from noisyteacher.config import build_config, describe, limit
from noisyteacher.errors import AskedWronglyError, ConfigError
from noisyteacher.models.zoo import import_torchvision
from noisyteacher.pipeline import Result, compress_config, distil_config, resume_compress, searching
from noisyteacher.pipeline.best import explain_best
from noisyteacher.pipeline.candidates import Candidate, Search, price_candidates
from noisyteacher.pipeline.plan import Plan
from noisyteacher.pipeline.searching import explain_search
from noisyteacher.runs import Run


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
    with pytest.raises(ConfigError, match="auto needs a limit to keep within"):
        build_config({"student": {"name": "auto"}})
    with pytest.raises(ConfigError, match=r"target: has no effect where student\.name is not auto"):
        build_config({"target": {"macs": "4x"}})
    with pytest.raises(ConfigError, match=r"student\.options: have no effect"):
        build_config({"student": {"name": "auto", "options": {"dropout": 0.5}}, "target": {"macs": 1e6}})
    build_config({"target": {"max_drop": 1.0}})  # a check on a named student has an effect


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
    with pytest.raises(
        AskedWronglyError, match=r"none of 2 networks .* the nearest, 'mlp800', has 1.275 M of 1 k MACs"
    ):
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
    assert search["chosen"] == best["name"]
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
            "student": {"epochs": 1, "batch_size": 60, "lr": 1e-6}, "noise": {"sigma": 0.5},
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
        if stage not in stages:
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
    monkeypatch: pytest.MonkeyPatch,
    minutes: float | None,
    errors: dict[str, float],
    per_epoch: float,
    given: bool = False,
) -> tuple[Plan, dict[str, Any], list[str]]:
    """The outcome of a search whose short runs need so many seconds an epoch and reach these errors."""
    asked_for: list[str] = []

    def run(plan: Plan, run: str, condition: str, noise: Any, seed: int, answers: Any, title: str) -> Told:
        asked_for.append(str(plan.student))
        epochs = plan.config.student.epochs
        return Told(
            {
                "training": {"seconds": per_epoch * epochs, "epochs": epochs},
                "scores": {"val": {"error": {"value": errors[str(plan.student)]}}},
            }
        )

    monkeypatch.setattr(searching, "a_student", run)
    config = build_config(
        {
            "student": {"name": "auto", "epochs": 20},
            "noise": {"sigma": 0.5},
            "target": {"macs": 100, "minutes": minutes} if minutes else {"macs": 100},
            "run": {"seeds": 2},
        }
    )
    found = tuple(candidate(name, 50) for name in errors)
    search = Search({"macs": 100.0}, {"macs": 1000}, found)
    data = nt.load_data("mnist-5k", limit=60)
    plan = Plan(config, data, "lenet", "auto", nt.Noise(sigma=0.5, alpha=0.5), (), {}, None, None, search=search)  # type: ignore[arg-type]

    teacher = Told({"training": {"seconds": 100.0}})
    teacher.run = SimpleNamespace(info={"kind": "given" if given else "train"})  # type: ignore[attr-defined]
    plan, record = searching.choose_student(plan, teacher, {}, (2, 9))  # type: ignore[arg-type]
    return plan, record, asked_for


ERRORS = {"a": 5.0, "b": 4.0, "c": 6.0}


def test_with_time_enough_all_are_tried_and_trained_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    # teacher 100 s, three tries of 5 epochs x 2 s, then 3 conditions x 2 seeds x 20 epochs x 2 s = 240 s: 370 s
    plan, record, asked_for = searched(monkeypatch, 370 / 60, ERRORS, 2.0)
    assert asked_for == ["a", "b", "c"]
    assert (record["chosen"], plan.student, plan.config.student.name) == ("b", "b", "b")
    assert (record["time"]["spent_s"], record["time"]["needed_s"]) == (130.0, 240.0)
    assert plan.config.student.epochs == 20
    assert len(explain_search(record)) == 2
    _, unlimited, _ = searched(monkeypatch, None, ERRORS, 2.0)
    assert unlimited["time"] is None


def test_with_less_time_fewer_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, record, asked_for = searched(monkeypatch, 359 / 60, ERRORS, 2.0)  # the second would end at 110 + 10 + 240
    assert asked_for == ["a"]
    assert (record["chosen"], record["time"]["not_tried"], plan.config.student.epochs) == ("a", 2, 20)
    assert "2 networks could not be tried in 5.98333 minutes" in explain_search(record)


def test_with_still_less_time_the_students_get_fewer_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, record, _ = searched(monkeypatch, 170 / 60, ERRORS, 2.0)  # 60 s left of 240: a quarter of 20 epochs
    assert plan.config.student.epochs == record["time"]["epochs"] == 5
    assert record["time"]["enough"]
    assert "5 epochs instead of 20" in explain_search(record)[-1]


def test_too_little_time_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, record, _ = searched(monkeypatch, 0.5, ERRORS, 2.0)
    assert plan.config.student.epochs == 1
    assert "0.5 minutes are too little: one epoch of every student would take 12.0 s more" in explain_search(record)[-1]


def test_a_teacher_that_was_given_costs_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    _, record, _ = searched(monkeypatch, 60, ERRORS, 2.0, given=True)
    assert record["time"]["spent_s"] == 30.0


def test_what_is_handed_over_is_said() -> None:
    best = {
        "n": 400, "mean_val_error_%": 3.25, "val_error_%": 3.0, "drop": 0.75, "max_drop": 1.0, "holds": True,
        "run": "clean-seed1", "condition": "clean", "by": "validation error",
    }  # fmt: skip
    assert explain_best(best) == (
        "best on validation (n = 400): student, logit regression, 3.25 % error, 0.75 points more than the teacher's, "
        "within the 1 allowed; handed over is clean-seed1 (3.00 %)"
    )


def test_only_a_compression_chooses_a_student(tmp_path: Path) -> None:
    config = asked(tmp_path, {"macs": "2x"})
    with pytest.raises(AskedWronglyError, match=r"student\.name: auto .* name the student"):
        distil_config(config, tmp_path / "store")
    with pytest.raises(AskedWronglyError, match=r"student\.name: auto .* name the student"):
        nt.sweep(describe(config), {"noise.sigma": [0.5]})
