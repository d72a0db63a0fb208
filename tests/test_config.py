"""Settings as typed code: all problems at once, the nearest name, nothing without effect."""

from __future__ import annotations

import inspect
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

import noisyteacher as nt
from noisyteacher import config
from noisyteacher.config.schema import FLAGS, Flag
from noisyteacher.data import expand_views
from noisyteacher.errors import ConfigError, UnknownNameError


def test_the_template_is_the_default_config() -> None:
    assert config.build_config(tomllib.loads(config.template())) == config.Config()
    assert config.build_config(config.describe(config.Config())) == config.Config()


def test_every_setting_has_a_meaning() -> None:
    explained = list(config.explain())
    assert len(explained) > 40
    assert all((doc and doc[0].isupper()) or doc[:2] in ("bf", "cp", "fp") for _, _, _, doc in explained)
    meaning = "Probability that a sample is perturbed, or auto: chosen on validation."
    assert ("noise.alpha", "number or auto", 0.15, meaning) in explained


def test_all_problems_at_once_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError) as raised:
        config.build_config(
            {
                "noise": {"sigmaa": 1, "alpha": 2, "sigma": -1, "draw": "rows"},
                "studnt": {},
                "student": {"epochs": 0, "lr": "fast"},
                "data": 3,
                "run": {"track": "mlflow"},
            }
        )
    for part in (
        "9 settings are wrong",
        "run.track: given 'mlflow'; expected list of tensorboard | mlflow | wandb; did you mean ['mlflow']?",
        "noise.sigmaa: unknown setting; did you mean 'noise.sigma'?",
        "noise.alpha: given 2",
        "noise.sigma: given -1",
        "did you mean 'row'?",
        "studnt: unknown setting; did you mean 'student'?",
        "student.epochs: given 0",
        "student.lr: given 'fast'",
        "data: given 3; expected a table",
    ):
        assert part in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"student": {"momentum": 0.5}}, "student.momentum: 0.5 has no effect"),
        ({"student": {"loss": "logit_regression", "temperature": 3.0}}, "student.temperature: has no effect"),
        ({"teacher": {"every_view": True, "views": ["clean"]}}, "teacher.every_view: has no effect"),
        ({"data": {"root": "/data"}}, "data.root: has no effect"),
        ({"noise": {"sigma": [0.5, 0.1]}}, "low <= high"),
        ({"noise": {"sigma": [0.1, 0.5], "frozen": True}}, "noise.frozen"),
        ({"student": {"views": []}}, "student.views"),
        ({"student": {"label_weight": "0.5"}}, "student.label_weight: given '0.5'"),
        ({"student": {"label_weight": False}}, "student.label_weight: given False"),
    ],
)
def test_settings_without_effect_are_refused(settings: dict[str, object], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        config.build_config(settings)


def test_files_and_overrides(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text('[noise]\nsigma = 0.3\n[student]\nname = "nin"\n')
    settings = config.read_config(
        path, ("noise.sigma=[0.01, 1]", "student.views=['clean', 'mirror']", "data.name=mnist")
    )
    built = config.build_config(settings)
    assert built.noise.sigma == (0.01, 1.0)
    assert built.student.views == ["clean", "mirror"]
    assert (built.student.name, built.data.name) == ("nin", "mnist")
    path.write_text("[noise\n")
    with pytest.raises(ConfigError, match=r"a\.toml: not TOML"):
        config.read_config(path)
    with pytest.raises(ConfigError, match=r"missing\.toml: cannot be read: No such file"):
        config.read_config(tmp_path / "missing.toml")
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        config.read_config(None, ("epochs",))
    with pytest.raises(ConfigError, match="noise is a value"):
        config.build_config(config.read_config(None, ("noise=3", "noise.sigma=1")))


MODERN = {"batch_size": 128, "optimizer": "adamw", "lr": 0.01, "weight_decay": 0.05, "schedule": "cosine"}


def test_a_preset_fills_in_what_is_not_named() -> None:
    built = config.build_config({"student": {"preset": "modern", "lr": 0.02}, "teacher": {"epochs": 3}})
    assert {name: getattr(built.student, name) for name in MODERN} == {**MODERN, "lr": 0.02}
    assert len(built.student.views) == len(set(built.student.views)) == 18
    assert (built.student.loss, built.student.label_weight, built.student.warmup_epochs) == ("logit_regression", 0, 1)
    assert built.teacher == config.Teacher(epochs=3)
    teacher = config.build_config({"teacher": {"preset": "modern"}}).teacher
    assert (teacher.views, teacher.lr) == (["crop", "mirror*crop"], 0.003)
    standard = config.build_config({"student": {"preset": "standard"}, "teacher": {"preset": "standard"}})
    assert standard == config.Config()
    paper = config.build_config({"student": {"preset": "paper"}}).student
    named = ("optimizer", "lr", "batch_size", "schedule", "weight_decay", "views", "loss", "label_weight", "batch_norm")
    assert [getattr(paper, name) for name in named] == [
        "adam", 1e-3, 64, "linear", 0.0, ["clean"], "logit_regression", 0.0, "running",
    ]  # fmt: skip


def test_a_preset_is_resolved_on_disk() -> None:
    """What config.json holds names every value, and is the same Config when it is read again."""
    settings = {"student": {"preset": "modern", "weight_decay": 0.0}, "teacher": {"preset": "modern"}}
    built = config.build_config(settings)
    record = config.describe(built)
    assert record["student"]["optimizer"] == "adamw"
    assert record["student"]["weight_decay"] == 0.0
    assert config.build_config(record) == built
    assert settings == {"student": {"preset": "modern", "weight_decay": 0.0}, "teacher": {"preset": "modern"}}
    built.student.views.append("crop-y0-x0")  # nobody's copy but its own
    assert len(config.build_config(settings).student.views) == 18


def test_a_preset_that_decides_nothing_is_refused() -> None:
    named = {
        "batch_size": 32, "optimizer": "sgd", "lr": 1.0, "weight_decay": 0.0, "schedule": "step",
        "batch_norm": "reestimate", "loss": "soft_targets", "label_weight": 0.2,
    }  # fmt: skip
    config.build_config({"student": {"preset": "modern", **named, "views": ["clean"]}})
    with pytest.raises(ConfigError, match=r"student\.preset: modern has no effect"):
        config.build_config({"student": {"preset": "modern", **named, "views": ["clean"], "warmup_epochs": 0}})
    with pytest.raises(ConfigError, match=r"student\.preset: given 'modren'.*did you mean 'modern'"):
        config.build_config({"student": {"preset": "modren"}})
    with pytest.raises(ConfigError, match=r"student: given 3"):
        config.build_config({"student": 3})


def test_template_and_explanation_tell_what_presets_decide() -> None:
    """In a written file the preset decides until a line is put in: nothing of its own stands in the way."""
    modern = config.build_config({"student": {"preset": "modern"}, "teacher": {"preset": "modern"}})
    text = config.template("modern")
    assert config.build_config(tomllib.loads(text)) == modern
    assert {"# lr = 0.003", "# lr = 0.01"} <= set(text.splitlines())
    assert config.build_config(tomllib.loads(config.template().replace('"standard"', '"modern"'))) == modern
    named = text.replace("# lr = 0.01", "lr = 0.5")
    assert config.build_config(tomllib.loads(named)).student.lr == 0.5
    explained = {key: (default, doc) for key, _, default, doc in config.explain()}
    assert explained["student.lr"] == (
        "auto",
        "Base learning rate; auto: 0.01, or 0.02 and 0.03 where a batch size of auto is 64 and 128, or 0.003 for a "
        "student with the weights of half its teacher's channels or more. Preset paper: 0.001. Preset modern: 0.01. "
        "Preset patient: 0.03.",
    )
    assert "Preset" not in explained["student.epochs"][1]
    with pytest.raises(UnknownNameError, match="did you mean 'modern'"):
        config.template("modrn")


def test_every_preset_is_of_settings_that_there_are() -> None:
    for name, parts in config.PRESETS.items():
        assert set(parts) == {"teacher", "student"}
        for part, values in parts.items():
            built = getattr(config.build_config({part: {"preset": name}}), part)
            assert {key: getattr(built, key) for key in values} == values
            assert built.views == ["auto"] or expand_views(built.views)


def test_settings_and_fit_have_the_same_defaults() -> None:
    """The typed settings repeat the arguments of fit, without importing torch: they must not drift."""
    network = {"name", "options", "weights", "head", "preprocess", "mean", "std"}
    recipe = {field.name for field in fields(config.Recipe)} - network
    arguments = inspect.signature(nt.fit).parameters
    paper = config.build_config({"teacher": {"preset": "paper"}}).teacher
    for name in recipe - {"keep", "views", "preset"}:  # keep follows val, views are a list in TOML
        assert arguments[name].default == getattr(paper, name), name


@pytest.mark.parametrize(
    "text", ["student.lr=1e400", "noise.sigma=inf", "student.options.dropout=nan", "noise.alpha=nan"]
)
def test_numbers_are_finite(text: str) -> None:
    with pytest.raises(ConfigError, match=f"{text.partition('=')[0]}: given (inf|nan)"):
        config.build_config(config.read_config(None, (text,)))


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b"\xef\xbb\xbf[noise]\nsigma = 0.3\n")
    assert config.read_config(tmp_path / "a.toml") == {"noise": {"sigma": 0.3}}


@pytest.mark.parametrize(
    "text",
    [
        "x=" + "[" * 5000,
        "student.name=" + "[" * 200 + "]" * 200,
        "student.options." + "a." * 3000 + "a=1",
        "x=" + "{a=" * 3000,
    ],
    ids=["open", "closed", "dotted", "tables"],
)
def test_what_is_nested_too_deep_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nested deeper than 16"):
        config.build_config(config.read_config(None, (text,)))
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"a\.toml: nested deeper than 16"):
        config.build_config(config.read_config(tmp_path / "a.toml"))


def test_numbers_of_thousands_of_digits_are_shown_short(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"student\.epochs: given '9{199}") as raised:
        config.build_config(config.read_config(None, ("student.epochs=" + "9" * 5000,)))
    assert len(str(raised.value)) < 500
    (tmp_path / "a.toml").write_text("x = " + "9" * 5000)
    with pytest.raises(ConfigError, match=r"a\.toml: not TOML"):
        config.read_config(tmp_path / "a.toml")


@pytest.mark.parametrize("key", ["data.name", "data.root", "run.output_dir"])
def test_an_empty_name_is_not_the_folder_one_is_in(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}: given ''; string should have at least 1"):
        config.build_config(config.read_config(None, (f"{key}=",)))


def test_every_setting_has_a_flag() -> None:
    keys = [key for key, *_ in config.explain()]
    assert set(FLAGS) <= set(keys)
    assert config.flag_of("data.name").name == "--data"
    assert config.flag_of("student.batch_size") == Flag(
        "--batch-size", "Samples per update, or auto: 32, and 64 or 128 for many images."
    )
    assert config.flag_of("student.momentum") == Flag("--momentum", "Momentum of sgd and muon.")
    assert all(flag.name.startswith("--") and flag.help for flag in map(config.flag_of, keys))
