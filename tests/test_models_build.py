"""From names, factories and modules to classifiers; what a network may return; who must agree with whom."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisyteacher as nt
from helpers import part
from noisyteacher.data import Split
from noisyteacher.errors import MismatchError, UnknownNameError, UsageError
from noisyteacher.models import MODELS, Classifier, as_classifier, build_model, external, logits_of, nearest_networks

SHAPE = (1, 6, 6)


def numbers() -> Split:
    """Five images with the pixels 0 to 179."""
    pixels = torch.arange(5 * 36, dtype=torch.uint8).reshape(5, *SHAPE)
    return Split(pixels, None, torch.arange(5), "train", "numbers", tuple("abcd"))


@dataclass
class Data:
    preprocess: str = "scale"
    classes: int = 4
    input_shape: tuple[int, int, int] = SHAPE
    train: Split = field(default_factory=numbers)


class Answer(nn.Module):
    """A linear network that returns its logits in one of many ways."""

    def __init__(self, how: str = "tensor", outputs: int = 4) -> None:
        super().__init__()
        self.fc = nn.Linear(36, outputs)
        self.how = how

    def forward(self, x: Tensor) -> Any:
        logits = self.fc(x.flatten(1))
        return {
            "tensor": logits,
            "tuple": (logits, x),
            "list": [logits],
            "dict": {"loss": x, "logits": logits},
            "object": SimpleNamespace(logits=logits),
            "flat": logits.flatten(),
            "integers": logits.argmax(1, keepdim=True),
            "nothing": {"scores": logits},
            "none": None,
        }[self.how]


def linear_factory(classes: int, input_shape: tuple[int, int, int], bias: bool = True) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[0] * input_shape[1] * input_shape[2], classes, bias=bias))


def torchvision_like(num_classes: int = 1000, **kwargs: Any) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))


def thousand(**kwargs: Any) -> nn.Module:
    return Answer(outputs=1000)


def not_a_model() -> str:
    return "weights"


@pytest.mark.parametrize("how", ["tensor", "tuple", "list", "dict", "object"])
def test_logits_are_found_in_every_usual_answer(how: str) -> None:
    model = as_classifier(Answer(how), input_shape=SHAPE)
    images = torch.randint(0, 256, (3, *SHAPE), dtype=torch.uint8)
    expected = part(model, "network.fc")(images.float().flatten(1) / 255)
    torch.testing.assert_close(model(images), expected)
    assert model.classes == 4


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("flat", r"expected floating-point logits \[B, K\]"),
        ("integers", "int64"),
        ("nothing", "with keys.*scores"),
        ("none", "NoneType"),
    ],
)
def test_answers_without_logits_are_refused(how: str, message: str) -> None:
    with pytest.raises(MismatchError, match=message):
        logits_of(Answer(how)(torch.zeros(2, *SHAPE)))
    with pytest.raises(MismatchError, match=message):
        as_classifier(Answer(how), input_shape=SHAPE)


def test_a_network_of_one_output_cannot_broadcast_against_four_classes() -> None:
    with pytest.raises(MismatchError, match=r"\(2, 1\) for 2 images, expected \(2, 4\)"):
        build_model(Answer(outputs=1), Data())
    late = as_classifier(Answer(outputs=1), classes=4)
    with pytest.raises(MismatchError, match=r"\(3, 1\) for 3 images, expected \(3, 4\)"):
        late(torch.zeros((3, *SHAPE), dtype=torch.uint8))


def test_images_of_another_shape_are_refused_before_the_network_sees_them() -> None:
    model = build_model("mlp800", classes=4, input_shape=(1, 6, 6))
    with pytest.raises(MismatchError, match=r"\(2, 1, 4, 9\).*takes \[B, 1, 6, 6\]"):
        model(torch.zeros((2, 1, 4, 9), dtype=torch.uint8))  # as many pixels: the network alone would take them


def test_wrapping_shares_the_module_and_leaves_modes_and_random_state_alone() -> None:
    module = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.5), Answer())
    module[1].eval()
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    model = as_classifier(module, input_shape=SHAPE)
    assert model.network is module
    assert [part.training for part in module] == [True, False, True]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert module[0].num_batches_tracked == 0
    assert as_classifier(model) is model


def test_wrapping_a_classifier_checks_that_it_fits() -> None:
    model = build_model("mlp800", classes=4, input_shape=SHAPE)
    assert as_classifier(model, classes=4, input_shape=[1, 6, 6]) is model
    with pytest.raises(MismatchError, match="classes 4, and 10"):
        as_classifier(model, classes=10)
    with pytest.raises(MismatchError, match="input_shape"):
        as_classifier(model, input_shape=(1, 28, 28))
    with pytest.raises(UsageError, match="already has its preprocessing"):
        as_classifier(model, preprocess=nn.Identity())
    late = as_classifier(Answer())
    assert (late.classes, late.input_shape) == (None, None)
    assert as_classifier(late, input_shape=SHAPE).classes == 4
    assert as_classifier(late, classes=4).classes == 4
    with pytest.raises(UsageError, match="a function is not a model"):
        as_classifier(lambda images: images)  # type: ignore[arg-type]


def test_architecture_records_everything_the_model_is_made_of() -> None:
    model = build_model("nin", classes=10, input_shape=(3, 32, 32), preprocess="local-contrast", dropout=0.3)
    assert model.architecture == {
        "name": "nin",
        "classes": 10,
        "input_shape": [3, 32, 32],
        "options": {"dropout": 0.3, "final_relu": False},
        "preprocess": "local-contrast",
    }


def test_one_seed_is_one_initialisation_and_disturbs_nobody() -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first, again = (build_model("mlp800", classes=4, input_shape=SHAPE, seed=5) for _ in range(2))
    other = build_model("mlp800", classes=4, input_shape=SHAPE, seed=6)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(part(first, "network.fc1").weight, part(again, "network.fc1").weight)
    assert not torch.equal(part(first, "network.fc1").weight, part(other, "network.fc1").weight)


def test_data_say_classes_shape_and_preprocessing() -> None:
    data = Data(preprocess="pixel-mean")
    model = build_model("mlp800", data)
    assert (model.classes, model.input_shape) == (4, SHAPE)
    torch.testing.assert_close(model.preprocess.mean, data.train.images.float().mean(0))
    assert build_model("mlp800", data, preprocess="scale").architecture["preprocess"] == "scale"
    assert build_model("mlp800", data, preprocess=nn.Identity()).architecture["preprocess"].startswith("module:")
    # A module of somebody else's was made for another preprocessing than this data set's default.
    assert build_model(Answer(), data).architecture["preprocess"] == "scale"


def test_statistics_are_not_taken_from_test_images() -> None:
    held_out = SimpleNamespace(classes=4, input_shape=SHAPE, preprocess="pixel-mean", role="test")
    with pytest.raises(UsageError, match="role is 'test'"):
        build_model("mlp800", held_out)


def test_data_and_arguments_must_agree() -> None:
    with pytest.raises(MismatchError, match="classes 10 was given, but the data have 4"):
        build_model("mlp800", Data(), classes=10)
    with pytest.raises(MismatchError, match="input_shape"):
        build_model("mlp800", Data(), input_shape=(3, 6, 6))
    assert build_model("mlp800", Data(), classes=4, input_shape=[1, 6, 6]).classes == 4


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'lenet'"):
        build_model("lenett", Data())
    with pytest.raises(UsageError, match="needs to know its classes"):
        build_model("lenet")
    with pytest.raises(UsageError, match="two or more"):
        build_model("lenet", classes=1, input_shape=(1, 28, 28))
    for classes in ("10", 10.5, 10.0, True):
        with pytest.raises(UsageError, match=f"classes {classes!r}: expected a whole number"):
            build_model("lenet", classes=classes, input_shape=(1, 28, 28))  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=f"classes {classes!r}: expected a whole number"):
            build_model(Answer(), Data(), classes=classes)  # type: ignore[arg-type]
    for wrong in ((28, 28), (1, 0, 28), (1, 2.5, 3)):
        with pytest.raises(UsageError, match="channels, height, width"):
            build_model("lenet", classes=10, input_shape=wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no effect"):
        build_model(Answer(), Data(), dropout=0.5)
    with pytest.raises(UsageError, match="already has its preprocessing"):
        build_model(build_model("mlp800", Data()), preprocess="scale")
    for model in ("lenet", Answer()):
        for preprocess in (3, list[str](), {"mean": 0.5}, torch.relu):
            with pytest.raises(UsageError, match=r"preprocess=.*: expected a name, .* or an nn\.Module"):
                build_model(model, Data(), preprocess=preprocess)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="a int is not a model"):
        build_model(3, Data())  # type: ignore[arg-type]
    with pytest.raises(MismatchError, match="failed on images of shape"):
        build_model(Answer(), classes=4, input_shape=(3, 8, 8))


class Sized(nn.Module):
    """Asserts the size of its images, as networks of timm and torchvision do."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != 96:
            raise AssertionError(f"input height {x.shape[-1]} does not match the model's 96")
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def test_a_network_that_asserts_its_size_is_refused_with_the_size_that_it_takes() -> None:
    with pytest.raises(MismatchError, match=r"failed on images .*: AssertionError: input height 32.*--size 96"):
        build_model(Sized(), classes=4, input_shape=(3, 32, 32))
    assert build_model(Sized(), classes=4, input_shape=(3, 96, 96)).classes == 4


@pytest.mark.parametrize("error", [KeyError("stem"), IndexError("no layer 3"), AttributeError("no head"), OSError("x")])
def test_whatever_a_users_network_raises_is_said(error: Exception) -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise error

    words = rf"failed on images of shape \(1, 6, 6\): {type(error).__name__}: {error}"
    with pytest.raises(MismatchError, match=words) as caught:
        build_model(Broken(), classes=3, input_shape=(1, 6, 6))
    assert caught.value.__cause__ is error


def test_a_factory_gets_what_it_names() -> None:
    model = build_model(f"{__name__}:linear_factory", Data(), bias=False)
    assert isinstance(model, Classifier)
    assert model.architecture["options"] == {"bias": False}
    assert part(model, "network.1").bias is None
    again = build_model(f"{__name__}:linear_factory", Data(), bias=False)
    assert torch.equal(part(model, "network.1").weight, part(again, "network.1").weight)
    lazy = build_model(f"{__name__}:torchvision_like", Data())
    assert part(lazy, "network.1").weight.shape == (4, 36)


def test_factories_that_do_not_fit_are_refused() -> None:
    with pytest.raises(MismatchError, match=r"\(2, 1000\)"):
        build_model(f"{__name__}:thousand", Data())
    with pytest.raises(UsageError, match="returned a str"):
        build_model(f"{__name__}:not_a_model", Data())
    with pytest.raises(UsageError, match="the factory raised TypeError"):
        build_model(f"{__name__}:linear_factory", Data(), depth=3)
    with pytest.raises(UsageError, match="cannot be written"):
        build_model(f"{__name__}:torchvision_like", Data(), hook=len)
    with pytest.raises(UsageError, match="No module named 'nowhere'"):
        build_model("nowhere:factory", Data())
    with pytest.raises(UsageError, match="not a function"):
        build_model(f"{__name__}:SHAPE", Data())


def test_a_path_that_does_not_exist_is_said_to_be_none() -> None:
    with pytest.raises(UnknownNameError, match=r"'\./nope': no file or folder of that name"):
        build_model("./nope", classes=3, input_shape=(1, 8, 8))


def test_a_path_that_exists_is_said_to_be_no_network(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="that is a file or folder, and a network's name is expected"):
        build_model(str(tmp_path), classes=3, input_shape=(1, 8, 8))


def test_the_nearest_name_is_looked_for_among_other_libraries_too(monkeypatch: pytest.MonkeyPatch) -> None:
    registered = {"timm": {"resnet18", "vgg11"}, "torchvision": {"resnet18"}}
    monkeypatch.setattr(external, "network_names", lambda library: frozenset(registered[library]))
    resnet18 = ["timm:resnet18", "torchvision:resnet18"]
    assert nearest_networks("resnet18", MODELS) == nearest_networks("resnt18", MODELS) == resnet18
    assert nearest_networks("lenett", MODELS) == ["lenet"]
    assert nearest_networks("nothing like it", MODELS) == []
    with pytest.raises(UnknownNameError, match="did you mean 'timm:resnet18' or 'torchvision:resnet18'"):
        build_model("resnet18", classes=10, input_shape=(3, 32, 32))


def test_names_of_other_libraries_are_read_without_importing_them(monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("timm") is None:
        pytest.skip("needs the extra zoo")
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    external.network_names.cache_clear()
    assert nearest_networks("resnet18", ["lenet"]) == ["timm:resnet18", "torchvision:resnet18"]
    assert "timm" not in sys.modules


def test_a_model_without_weights_and_one_of_another_dtype_are_refused_in_a_sentence(tmp_path: Path) -> None:
    data = nt.load_data("mnist-5k", limit=40)
    empty = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).to("meta")
    calls: list[Callable[[], object]] = [
        lambda: nt.predict(empty, data.val, progress=False),
        lambda: nt.extract(empty, data.train, tmp_path / "s", progress=False),
        lambda: nt.fit(nt.build_model("mlp128", data), data.train, nt.distil(empty), epochs=1, progress=False),
    ]
    for call in calls:
        with pytest.raises(UsageError, match="meta device, without"):
            call()
    with pytest.raises(MismatchError, match=r"weights are torch.float16 and images reach it as float32: call .float"):
        nt.build_model(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).half(), data)
