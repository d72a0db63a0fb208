"""Metrics of a training in MLflow and Weights & Biases: by stand-ins for their modules, which record the calls."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from torch import Tensor

import noisyteacher as nt
from helpers import SETTINGS, blobs, network
from noisyteacher.config import build_config
from noisyteacher.errors import ConfigError, DataError, TrainingError, UnknownNameError, UsageError
from noisyteacher.train import trainer


class Client:
    """MLflow's client; `runs`: id -> what was recorded of it."""

    def __init__(self, runs: dict[str, Any]) -> None:
        self.runs = runs

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id="7") if self.runs else None

    def create_experiment(self, name: str) -> str:
        return "7"

    def search_runs(self, experiments: list[str], words: str) -> list[Any]:
        same = [key for key, run in self.runs.items() if all(value in words for value in run["tags"].values())]
        return [SimpleNamespace(info=SimpleNamespace(run_id=key)) for key in same]

    def create_run(self, experiment: str, tags: dict[str, str], run_name: str) -> Any:
        key = f"run{len(self.runs)}"
        self.runs[key] = {"tags": tags, "name": run_name, "params": {}, "metrics": {}, "ended": 0}
        return SimpleNamespace(info=SimpleNamespace(run_id=key))

    def log_param(self, key: str, name: str, value: object) -> None:
        self.runs[key]["params"][name] = value

    def log_metric(self, key: str, name: str, value: float, step: int) -> None:
        if "%" in name:
            raise ValueError(f"Invalid value {name!r}: names may only contain alphanumerics, underscores, ...")
        self.runs[key]["metrics"][name, step] = value

    def set_terminated(self, key: str, status: str) -> None:
        self.runs[key]["ended"] += 1
        self.runs[key]["status"] = status


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    runs: dict[str, Any] = {}
    module = ModuleType("mlflow")
    module.MlflowClient = lambda: Client(runs)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.chdir(tmp_path)
    return runs


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    runs: list[Any] = []

    class Run:
        def __init__(self, **options: Any) -> None:
            self.options, self.lines, self.ended = options, list[Any](), 0
            runs.append(self)

        def log(self, numbers: dict[str, float], step: int) -> None:
            self.lines.append((step, numbers))

        def finish(self, exit_code: int) -> None:
            self.ended += 1
            self.exit_code = exit_code

    module = ModuleType("wandb")
    module.init = Run  # type: ignore[attr-defined]
    module.Settings = dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return runs


def train(folder: Path, **options: Any) -> nt.History:
    data = nt.Splits("blobs", blobs(), blobs(30, "val", seed=1))
    noise = nt.distil(nt.build_model("mlp128", data, seed=1), noise=nt.Noise(sigma=0.5, alpha=0.5))
    options = {**SETTINGS, "val": data.val, "run": folder, "progress": False, **options}
    return nt.fit(nt.build_model("mlp128", data), data.train, noise, **options)


def test_mlflow_gets_every_number_of_every_epoch(mlflow: dict[str, Any], tmp_path: Path) -> None:
    history = train(tmp_path / "outer" / "inner", track=["mlflow"])
    (run,) = mlflow.values()
    expected = {
        (name.replace("%", "percent"), line["epoch"]): value
        for line in history.epochs
        for name, value in line.items()
        if name not in ("epoch", "step")
    }
    assert run["metrics"] == expected
    assert ("noise/selected_percent", 1) in expected
    assert (run["name"], run["ended"], run["status"]) == ("outer/inner", 1, "FINISHED")
    assert {"epochs": 3, "lr": 3e-3, "seed": 0}.items() <= run["params"].items()


def test_a_resumed_training_continues_its_run(mlflow: dict[str, Any], tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop(tick: Any) -> None:
        if tick.epoch == 3:
            raise StoppedError

    with pytest.raises(StoppedError):
        train(tmp_path / "a", track=["mlflow"], progress=stop, checkpoint_every_s=0.0)
    train(tmp_path / "b", track=["mlflow"])
    train(tmp_path / "a", track=["mlflow"], resume=True)
    assert [run["name"].split("/")[-1] for run in mlflow.values()] == ["a", "b"]
    for run in mlflow.values():
        assert {step for name, step in run["metrics"] if name == "val/error"} == {1, 2, 3}
        assert run["ended"] == 1


def test_wandb_is_offline_unless_it_is_set_up(wandb: list[Any], tmp_path: Path, monkeypatch: Any) -> None:
    history = train(tmp_path / "a", track=["wandb"])
    assert wandb[0].options["mode"] == "offline"
    assert wandb[0].options["config"]["epochs"] == 3
    assert [step for step, _ in wandb[0].lines] == [1, 2, 3]
    assert wandb[0].lines[1][1]["val/error"] == history.epochs[1]["val/error"]
    assert (wandb[0].ended, wandb[0].exit_code) == (1, 0)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    train(tmp_path / "b", track=["wandb"])
    assert wandb[1].options["mode"] is None
    assert wandb[0].options["id"] != wandb[1].options["id"]


def test_a_tracker_that_fails_ends_no_training(
    wandb: list[Any], mlflow: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise ConnectionError("the server is gone")

    monkeypatch.setattr(Client, "log_metric", broken)
    with pytest.warns(UserWarning, match="mlflow failed and gets no more numbers of this run: the server is gone"):
        history = train(tmp_path / "a", track=["mlflow", "wandb"])
    assert len(history.epochs) == len(wandb[0].lines) == 3
    monkeypatch.setattr(Client, "create_experiment", broken)
    mlflow.clear()
    with pytest.raises(UsageError, match="mlflow cannot record this run: the server is gone"):
        train(tmp_path / "b", track=["mlflow"])


@pytest.mark.parametrize("cause", ["loss", "data"])
def test_a_training_that_fails_is_recorded_as_failed(
    cause: str, mlflow: dict[str, Any], wandb: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both when a student alone fails, and when an error of this package ends all of them."""

    def gone(*arguments: object, **options: object) -> None:
        raise DataError("a file is gone")

    def objective(logits: Tensor, batch: nt.Batch) -> Tensor:
        return logits.sum() * math.nan

    if cause == "data":
        monkeypatch.setattr(trainer, "epoch_batches", gone)
    with pytest.raises(TrainingError if cause == "loss" else DataError):
        nt.fit(network(0), blobs(), objective, run=tmp_path, track=["mlflow", "wandb"], progress=False, **SETTINGS)
    (run,) = mlflow.values()
    assert (run["ended"], run["status"]) == (1, "FAILED")
    assert (wandb[0].ended, wandb[0].exit_code) == (1, 1)


def test_one_tracker_may_be_named_without_a_list(wandb: list[Any], tmp_path: Path) -> None:
    train(tmp_path / "a", track="wandb")
    assert [step for step, _ in wandb[0].lines] == [1, 2, 3]


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_package_that_is_missing_is_named(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=rf"{name} is not installed: pip install 'noisyteacher\[{name}\]'"):
        train(tmp_path / "a", track=[name])


def test_nothing_is_imported_that_is_not_named(tmp_path: Path, monkeypatch: Any) -> None:
    for name in ("mlflow", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)
    assert len(train(tmp_path / "a").epochs) == 3


def test_names_and_options_without_effect(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'wandb'"):
        train(tmp_path / "a", track=["wandbb"])
    with pytest.raises(ConfigError, match="track: no effect without a run folder"):
        nt.fit(
            nt.build_model("mlp128", nt.Splits("b", blobs(), blobs(9, "val"))), blobs(), nt.supervised(), track=["x"]
        )
    with pytest.raises(ConfigError, match=r"run\.track"):
        build_config({"run": {"track": ["comet"]}})


def test_a_compression_passes_it_on(wandb: list[Any], tmp_path: Path) -> None:
    data = nt.load_data("mnist-5k", limit=30)
    training: dict[str, Any] = {"epochs": 1, "teacher_training": {"epochs": 1}}
    nt.compress("lenet", "mlp128", data, track=["wandb"], output_dir=tmp_path, progress=False, **training)
    assert sorted(run.options["name"].split("/")[-1] for run in wandb) == ["clean-seed0", "labels-seed0", "teacher"]
