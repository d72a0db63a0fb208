"""Trainings that start from weights: which layer is the head, what is loaded, what is frozen, and at which rates."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisyteacher as nt
from helpers import blobs, part
from noisyteacher import cli
from noisyteacher.config import build_config
from noisyteacher.errors import ConfigError, MismatchError, UsageError
from noisyteacher.models import head_parameters, load_foreign, rescale
from noisyteacher.pipeline.pretrained import build_network
from noisyteacher.train.history import Tick

HEAD = ("network.4.weight", "network.4.bias")


def network(classes: int = 3, seed: int = 0) -> nn.Sequential:
    """A body of a convolution and a linear layer, and a head."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 8), nn.Linear(8, classes))


def classifier(classes: int = 3, seed: int = 0) -> Any:
    return nt.build_model(network(classes, seed), input_shape=(1, 8, 8), classes=classes)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


def train(model: nn.Module, **options: Any) -> nt.History:
    settings = {"epochs": 2, "batch_size": 16, "seed": 3, "progress": False, "schedule": "constant", **options}
    return nt.fit(model, blobs(48), nt.supervised(), **settings)


def test_the_head_is_the_last_layer_with_a_matrix() -> None:
    assert head_parameters(dict(classifier().named_parameters())) == {*HEAD}
    nin = nt.build_model("nin", input_shape=(3, 32, 32), classes=10).network
    head = head_parameters(dict(nin.named_parameters()))
    assert {nin.get_parameter(name).shape[0] for name in head} == {10}
    assert head_parameters(dict(nn.Linear(2, 3).named_parameters())) == {"weight", "bias"}
    assert head_parameters({"a.scale": torch.ones(3)}) == set()
    weighted = nn.Sequential(nn.Linear(3, 4), nn.utils.parametrizations.weight_norm(nn.Linear(4, 2)))
    names = {f"1.parametrizations.weight.original{number}" for number in (0, 1)}
    assert head_parameters(dict(weighted.named_parameters()), 2) == {"1.bias", *names}
    assert head_parameters(dict(weighted[1].named_parameters())) == {name[2:] for name in ("1.bias", *names)}


@pytest.mark.parametrize(("head", "loaded"), [("keep", True), ("new", False), ("", True)])
def test_a_new_head_stays_as_built_and_the_body_comes_from_the_file(tmp_path: Path, head: str, loaded: bool) -> None:
    trained, model = network(seed=1), classifier(seed=2)
    torch.save(trained.state_dict(), tmp_path / "a.pth")
    before = state_of(model.network)
    assert load_foreign(model, tmp_path / "a.pth", head=head) is None
    for name, value in model.network.state_dict().items():
        expected = trained.state_dict()[name] if loaded or not name.startswith("4.") else before[name]
        assert torch.equal(value, expected), name


def test_other_classes_give_a_new_head_but_where_it_is_to_be_kept(tmp_path: Path) -> None:
    torch.save(network(7, seed=1).state_dict(), tmp_path / "a.pth")
    for head in ("new", ""):
        model = classifier(seed=2)
        assert load_foreign(model, tmp_path / "a.pth", head=head) == 7
        for layer, seed in (("0", 1), ("4", 2)):
            assert torch.equal(part(model.network, layer).weight, part(network(seed=seed), layer).weight)
    with pytest.raises(MismatchError, match="7 classes"):
        load_foreign(classifier(), tmp_path / "a.pth", head="keep")


def test_a_head_that_is_not_registered_last_is_refused() -> None:
    """It would be frozen in place of the body."""
    layers = {"head": nn.Linear(32, 3), "flat": nn.Flatten(), "body": nn.Linear(64, 32)}

    class Swapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, layer in layers.items():
                self.add_module(name, layer)

        def forward(self, images: Tensor) -> Any:
            return layers["head"](layers["body"](layers["flat"](images)))

    with pytest.raises(UsageError, match=r"registers last, and that is .*body\.weight of 32 outputs"):
        train(nt.build_model(Swapped(), input_shape=(1, 8, 8), classes=3), body_rate=0.0)


def test_weights_whose_outputs_are_scaled_or_reordered_start_nothing_but_a_body(tmp_path: Path) -> None:
    trained = rescale(classifier(seed=1), 7.0)
    nt.save_model(trained, tmp_path / "a.safetensors")
    for head in ("keep", ""):
        with pytest.raises(MismatchError, match="output_scale changes the outputs"):
            load_foreign(classifier(), tmp_path / "a.safetensors", head=head)
    model = classifier()
    load_foreign(model, tmp_path / "a.safetensors", head="new")
    assert torch.equal(part(model.network, "0").weight, part(network(seed=1), "0").weight)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "muon"])
def test_a_frozen_body_keeps_its_bits_and_the_head_learns(optimizer: str) -> None:
    """Not even weight decay may move it; behind the frozen epochs it learns."""
    model, before = classifier(), state_of(classifier())
    train(model, epochs=2, freeze_epochs=1.5, optimizer=optimizer, weight_decay=0.1, keep="last", patience=None)
    after = state_of(model)
    assert all(not torch.equal(after[name], before[name]) for name in HEAD)
    assert all(not torch.equal(after[name], before[name]) for name in before if name not in HEAD)  # the last steps
    frozen = classifier()
    train(frozen, body_rate=0.0, optimizer=optimizer, weight_decay=0.1)
    for name, value in frozen.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in HEAD), name


def test_the_body_moves_by_its_share_of_a_step() -> None:
    """One step of plain SGD is the rate times the gradient."""
    moves = []
    for rate in (1.0, 0.25):
        model, before = classifier(), state_of(classifier())
        train(model, epochs=1, batch_size=48, optimizer="sgd", momentum=0.0, lr=0.1, body_rate=rate)
        moves.append({name: value - before[name] for name, value in state_of(model).items()})
    for name, move in moves[0].items():
        factor = 1.0 if name in HEAD else 0.25
        torch.testing.assert_close(moves[1][name], factor * move, atol=1e-7, rtol=1e-4)


def test_without_decay_of_biases_and_with_a_body_every_parameter_is_in_one_group() -> None:
    decayed, undecayed = classifier(), classifier()
    common = {"optimizer": "sgd", "momentum": 0.0, "lr": 0.1, "body_rate": 0.5}
    train(decayed, epochs=1, batch_size=48, weight_decay=0.1, decay_biases=False, **common)
    train(undecayed, epochs=1, batch_size=48, **common)
    start = state_of(classifier())
    for name, value in decayed.state_dict().items():
        rate = 0.1 * (1.0 if name in HEAD else 0.5)
        shrunk = 0.1 * rate * start[name] if name.endswith("weight") else torch.zeros(())
        torch.testing.assert_close(value, undecayed.state_dict()[name] - shrunk, atol=1e-6, rtol=1e-4)


def test_a_training_resumed_while_its_body_is_frozen_ends_with_the_same_bits(tmp_path: Path) -> None:
    options: dict[str, Any] = {"freeze_epochs": 1.5, "body_rate": 0.5, "optimizer": "adamw", "weight_decay": 0.1}
    unbroken = classifier()
    train(unbroken, epochs=3, **options)

    def stop(tick: Tick) -> None:
        if tick.step == 4:
            raise KeyboardInterrupt

    broken = classifier()
    with pytest.raises(KeyboardInterrupt):
        train(broken, epochs=3, run=tmp_path / "run", **{**options, "progress": stop})
    resumed = classifier()
    train(resumed, epochs=3, run=tmp_path / "run", resume=True, **options)
    for name, value in unbroken.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    with pytest.raises(MismatchError, match="body_rate"):
        train(classifier(), epochs=3, run=tmp_path / "run", resume=True)


def test_students_of_a_stack_freeze_as_single_ones_do() -> None:
    options: dict[str, Any] = {
        "epochs": 2, "batch_size": 16, "optimizer": "sgd", "lr": 0.05, "schedule": "constant", "freeze_epochs": 1.0,
        "body_rate": 0.5, "progress": False,
    }  # fmt: skip
    stacked = [classifier(seed=seed) for seed in (0, 1)]
    nt.fit_many(stacked, blobs(48), [nt.supervised()] * 2, seeds=[3, 4], **options)
    for model, seed in zip(stacked, (0, 1), strict=True):
        single = classifier(seed=seed)
        nt.fit(single, blobs(48), nt.supervised(), seed=3 + seed, **options)
        for name, value in single.state_dict().items():
            torch.testing.assert_close(model.state_dict()[name], value, atol=2e-4, rtol=0)  # other rates: 1e-3


@pytest.mark.parametrize(
    ("part", "settings", "message"),
    [
        ("student", {"name": "lenet", "head": "new"}, "no effect without weights"),
        ("student", {"name": "shrink:0.5", "weights": "a.pth"}, "no effect on the student shrink:0.5"),
        ("student", {"name": "auto", "weights": "a.pth"}, "no effect on the student auto"),
        ("teacher", {"epochs": 2, "freeze_epochs": 2}, "body_rate = 0 to freeze"),
        ("teacher", {"freeze_epochs": 1, "body_rate": 0}, "no effect with body_rate 0"),
    ],
)
def test_settings_without_effect_are_refused(part: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_config({part: settings})


def test_train_and_compress_start_from_weights_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`train --head keep` trains a finished file further; the student of compress starts from another's body."""

    def exit_code(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["noisyteacher", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0)

    data = nt.load_data("mnist-5k", limit=60)
    file = tmp_path / "mlp.pth"
    torch.save(nt.build_model("mlp800", data, seed=5).network.state_dict(), file)
    common = ["--set", "data.limit=60", "--output-dir", str(tmp_path / "runs"), "--json", "--quiet"]
    words = ["train", "--model", "mlp800", "--weights", str(file), "--epochs", "1", "--body-rate", "0", *common]
    assert exit_code(*words) == 2  # the file is a finished network for these classes
    assert "--head keep" in capsys.readouterr().err
    assert exit_code(*words, "--head", "keep") == 0
    run = Path(json.loads(capsys.readouterr().out)["run"])
    trained = nt.load_model(run / "weights.safetensors").network.state_dict()
    start = torch.load(file)
    moved = {name for name, value in start.items() if not torch.equal(value, trained[name])}
    assert len(moved) == 2  # weight and bias of the head
    words[4] = str(run)  # a run's folder stands for its weights
    assert exit_code(*words, "--head", "keep") == 0
    again = Path(json.loads(capsys.readouterr().out)["run"])
    body = nt.load_model(again / "weights.safetensors").network.state_dict()
    assert all(torch.equal(body[name], trained[name]) for name in start.keys() - moved)
    words = ["compress", "--teacher", "pretrained:lenet-mnist", "--student", "mlp800", "--epochs", "1", *common]
    words += [
        "--student-weights",
        str(file),
        "--student-head",
        "new",
        "--body-rate",
        "0",
        "--set",
        "run.baselines=false",
    ]
    assert exit_code(*words) == 0
    best = Path(json.loads(capsys.readouterr().out)["run"]) / "best"
    student = nt.load_model(best).network.state_dict()
    assert {name for name, value in start.items() if not torch.equal(value, student[name])} == moved


def test_a_kept_head_is_divided_by_the_unit_that_its_outputs_are_multiplied_by(tmp_path: Path) -> None:
    data = nt.load_data("mnist-5k", limit=50)
    trained = nt.build_model("mlp128", data, seed=1)
    torch.save(trained.network.state_dict(), tmp_path / "a.pth")
    recipe = build_config({"student": {"name": "mlp128", "weights": str(tmp_path / "a.pth"), "head": "keep"}}).student
    model = build_network(recipe, "mlp128", data)
    before = nt.predict(model, data.val, progress=False)
    teacher = 7 * torch.randn(len(data.train), data.classes, generator=torch.Generator().manual_seed(0))
    objective = nt.distil(teacher, scale="rms")
    nt.fit(model, data.train, objective, epochs=1, lr=1e-12, progress=False)
    torch.testing.assert_close(nt.predict(model, data.val, progress=False), before, rtol=1e-3, atol=1e-3)


def test_a_new_head_is_drawn_as_torch_draws_a_layer(tmp_path: Path) -> None:
    """timm draws the head of an EfficientNet uniformly up to 1/sqrt(classes), which suits a thousand of them."""
    data = nt.load_data("mnist-5k", limit=30)
    name = "timm:tf_efficientnet_lite0"
    built = nt.build_model(name, data, seed=1)
    torch.save(built.network.state_dict(), tmp_path / "a.pth")
    recipe = build_config({"student": {"name": name, "weights": str(tmp_path / "a.pth"), "head": "new"}}).student
    heads = [build_network(recipe, name, data, seed).network.get_parameter("classifier.weight") for seed in (0, 0, 1)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    bound = built.network.get_parameter("classifier.weight").shape[1] ** -0.5
    assert 0.9 * bound < heads[0].abs().max() <= bound
