"""`shrink:RATIO`: widths by hand, random weights, files that rebuild without the teacher, and refusals by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import noisyteacher as nt
from helpers import part
from noisyteacher.errors import FileFormatError, MismatchError, UsageError
from noisyteacher.io.tensors import read_tensors, write_tensors
from noisyteacher.models import MODELS, PAPER, Classifier, build_model, load_model, ratio_of, save_model
from noisyteacher.models.classifier import Architecture
from noisyteacher.models.external import import_torchvision
from noisyteacher.models.narrow import narrowed, reshape_network
from noisyteacher.models.preprocess import Scale

pytest.importorskip("torch_pruning", reason="needs the extra prune")
COLOUR = (3, 32, 32)


def half(teacher: Any, ratio: float | str = 0.5, shape: tuple[int, int, int] = COLOUR, **options: Any) -> Classifier:
    return build_model(f"shrink:{ratio}", classes=10, input_shape=shape, teacher=teacher, **options)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_numbers_of_channels_by_hand() -> None:
    assert [narrowed(width, 0.5) for width in (64, 50, 20, 5, 3, 1)] == [32, 25, 10, 3, 2, 1]
    assert [narrowed(96, ratio) for ratio in (1, 0.75, 0.3, 0.2, 0.1, 0.01)] == [96, 72, 32, 16, 10, 1]
    assert [narrowed(width, 0.25) for width in (160, 192, 500, 1024)] == [40, 48, 125, 256]
    assert [narrowed(128, ratio, 32) for ratio in (0.5, 0.3, 0.01)] == [64, 32, 32]
    assert narrowed(12, 0.5, 4) == 8  # the next multiple, half up
    assert ratio_of("shrink:0.25") == 0.25
    for wrong in ("shrink:", "shrink:0", "shrink:1.5", "shrink:half", "shrink:nan", "shrink:-1"):
        with pytest.raises(UsageError, match=r"shrink:RATIO with 0 < RATIO <= 1"):
            ratio_of(wrong)


def test_half_a_lenet_is_lenet_with_half_the_widths() -> None:
    model = half(build_model("lenet", classes=10, input_shape=(1, 28, 28)), shape=(1, 28, 28))
    assert parameters(model) == (10 * 25 + 10) + (25 * 10 * 25 + 25) + (25 * 16 * 250 + 250) + (250 * 10 + 10)
    assert [name for name, _ in model.network.named_children()] == [
        *("conv1", "pool1", "relu1", "conv2", "pool2", "relu2", "flatten1", "fc1", "relu3", "fc2"),
    ]


@pytest.mark.parametrize("name", sorted(PAPER.keys() - {"lenet-cifar", "alexnet-cifar"}))
def test_every_network_of_the_paper_keeps_image_and_classes_and_halves_the_rest(name: str) -> None:
    with torch.device("meta"):
        whole = MODELS[name](10, COLOUR)
    model = half(build_model(name, classes=10, input_shape=COLOUR) if name == "nin" else _record(name))
    kinds = (nn.Conv2d, nn.Linear)
    pairs = [
        (part(before, ""), part(after, ""))
        for before, after in zip(whole.modules(), model.network.modules(), strict=True)
        if isinstance(before, kinds)
    ]
    outs = [tuple(layer.weight.shape[0] for layer in pair) for pair in pairs]
    assert outs[-1] == (10, 10)
    assert all(after == before // 2 for before, after in outs[:-1])
    assert pairs[0][0].weight[0].shape == pairs[0][1].weight[0].shape  # what it reads of the image
    assert model(torch.zeros((2, *COLOUR), dtype=torch.uint8)).shape == (2, 10)


def _record(name: str) -> dict[str, Any]:
    return {"name": name, "options": {}}


@pytest.fixture(scope="module")
def torchvision() -> Any:
    """torchvision, imported as the package does it."""
    try:
        return import_torchvision()
    except ImportError:
        pytest.skip("needs torchvision")


def resnet_parameters(width: int, depths: tuple[int, ...], bottleneck: bool, classes: int) -> int:
    """Parameters of a ResNet (He et al. 2016, table 1) with this width in its first stage, added up layer by layer."""
    total, inputs = 3 * width * 49 + 2 * width, width
    for stage, depth in enumerate(depths):
        inner = width * 2**stage
        outputs = 4 * inner if bottleneck else inner
        for number in range(depth):
            if bottleneck:
                total += inputs * inner + 9 * inner**2 + inner * outputs + 4 * inner + 2 * outputs
            else:
                total += 9 * inputs * inner + 9 * inner**2 + 4 * inner
            if inputs != outputs and number == 0:
                total += inputs * outputs + 2 * outputs
            inputs = outputs
    return total + inputs * classes + classes


@pytest.mark.parametrize(("name", "depths", "published"), [
    ("resnet18", (2, 2, 2, 2), 11_689_512), ("resnet50", (3, 4, 6, 3), 25_557_032),
])  # fmt: skip
def test_resnets_of_torchvision_and_timm(torchvision: Any, name: str, depths: tuple[int, ...], published: int) -> None:
    """Basic blocks and bottlenecks; the formula is held to the published size of the whole network."""
    timm = pytest.importorskip("timm", reason="needs timm")
    deep = name == "resnet50"
    assert resnet_parameters(64, depths, deep, 1000) == published
    for teacher in (
        getattr(torchvision.models, name)(num_classes=10),
        timm.create_model(name, num_classes=10, pretrained=False),
    ):
        model = half(teacher, 0.5, (3, 64, 64))
        assert parameters(model) == resnet_parameters(32, depths, deep, 10)
        assert model(torch.zeros((2, 3, 64, 64), dtype=torch.uint8)).shape == (2, 10)
        assert model.network.state_dict().keys() == teacher.state_dict().keys()
        assert type(model.network) is type(teacher)
        assert model.architecture["options"]["of"]["name"].startswith("module:")


class Mixed(nn.Module):
    """What plain stacks have beyond convolutions: depthwise, grouped, gated, summed, flattened by view, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        self.norm = nn.BatchNorm2d(24)
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False)
        self.point = nn.Conv2d(24, 24, 1)
        self.gate = nn.Conv2d(24, 6, 1)
        self.open = nn.Conv2d(6, 24, 1)
        self.side = nn.Conv2d(24, 36, 3)
        self.grouped = nn.Conv2d(24, 36, 3, groups=4)
        self.twice = nn.Conv2d(36, 36, 3, padding=1)
        self.fc1 = nn.Linear(36 * 4, 50)
        self.norm1 = nn.BatchNorm1d(50)
        self.fc2 = nn.Linear(50, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.stem(x)))
        y = self.point(functional.relu(self.depthwise(x)))
        y = y * torch.sigmoid(self.open(functional.relu(self.gate(y.mean((2, 3), keepdim=True)))))
        x = functional.max_pool2d(x + y, 4)
        x = self.twice(functional.relu(self.twice(functional.relu(self.side(x) + self.grouped(x)))))
        x = functional.adaptive_avg_pool2d(x, 2)
        x = x.view(x.size(0), -1)
        logits: Tensor = self.fc2(functional.relu(self.norm1(self.fc1(x))))
        return logits


def test_depthwise_grouped_gated_and_shared_layers() -> None:
    teacher = Mixed()
    network: Any = half(teacher, 0.5).network
    sizes = {name: tuple(tensor.shape) for name, tensor in network.named_parameters() if name.endswith("weight")}
    assert sizes == {
        "stem.weight": (12, 3, 3, 3), "norm.weight": (12,), "depthwise.weight": (12, 1, 3, 3),
        "point.weight": (12, 12, 1, 1), "gate.weight": (3, 12, 1, 1), "open.weight": (12, 3, 1, 1),
        "side.weight": (20, 12, 3, 3), "grouped.weight": (20, 3, 3, 3),
        "twice.weight": (20, 20, 3, 3),
        "fc1.weight": (25, 80), "norm1.weight": (25,), "fc2.weight": (10, 25),
    }  # fmt: skip
    assert (network.depthwise.groups, network.grouped.groups) == (12, 4)
    assert network.depthwise.bias is None
    assert network.norm.running_mean.shape == (12,)
    assert network.training
    small: Any = half(teacher, 0.01).network
    assert (small.stem.out_channels, small.grouped.out_channels, small.fc1.out_features) == (4, 4, 1)


def test_a_depthwise_layer_with_a_multiplier_stays_one() -> None:
    """Earlier versions narrowed them; a file states no more than the shapes of the tensors."""

    def network(width: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(3, width, 1), nn.Conv2d(width, 2 * width, 3, groups=width), nn.Flatten(), nn.Linear(2 * width, 5)
        )

    whole, expected = network(8), network(4)
    reshape_network(whole, expected.state_dict(), {})
    whole.load_state_dict(expected.state_dict())
    images = torch.randn(2, 3, 3, 3)
    assert torch.equal(whole(images), expected(images))


def test_with_random_weights_nothing_of_the_teacher_is_left_and_it_stays_as_it_was() -> None:
    """The weights come from the seed alone: He-normal, whatever the teacher learned, built by module or by record."""
    torch.manual_seed(0)
    teacher = build_model("nin", classes=10, input_shape=COLOUR).eval()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    state = torch.random.get_rng_state()
    model, same, different = (
        half(*how, init="random", seed=seed) for *how, seed in ((teacher, 0), (_record("nin"), 0), (teacher, 1))
    )
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(3).requires_grad_(False)
    again = half(teacher, init="random")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, same.state_dict()[name])
        assert torch.equal(tensor, again.state_dict()[name])
    assert not torch.equal(part(model, "network.conv2").weight, part(different, "network.conv2").weight)
    assert part(model, "network.conv2").weight.std().item() == pytest.approx((2 / 96) ** 0.5, rel=0.03)
    assert all(parameter.requires_grad for parameter in again.parameters())
    assert not teacher.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(
        torch.equal(tensor, before[name] * 3) for name, tensor in teacher.network.state_dict(prefix="network.").items()
    )


def test_a_file_rebuilds_it_without_the_teacher(tmp_path: Path) -> None:
    model = half(build_model("nin", classes=10, input_shape=COLOUR, dropout=0.25), 0.25).eval()
    save_model(model, tmp_path / "m.safetensors")
    back = load_model(tmp_path / "m.safetensors")
    images = torch.randint(0, 256, (3, *COLOUR), dtype=torch.uint8)
    assert torch.equal(back(images), model(images))
    assert back.architecture == model.architecture
    assert back.architecture["options"] == {"of": {"name": "nin", "options": {"dropout": 0.25, "final_relu": False}}}
    assert part(back, "network.drop1").p == 0.25
    assert not any(tensor.is_meta for tensor in back.state_dict().values())
    twice = half(back, 0.5)
    assert part(twice, "network.conv1").out_channels == 24
    save_model(twice, tmp_path / "twice.safetensors")
    assert torch.equal(load_model(tmp_path / "twice.safetensors")(images), twice.eval()(images))


def linear_factory(classes: int, width: int = 40) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, width), nn.ReLU(), nn.Linear(width, classes))


def test_a_factory_is_imported_again_only_where_that_is_allowed(tmp_path: Path) -> None:
    teacher = build_model(f"{__name__}:linear_factory", classes=10, input_shape=COLOUR, width=60)
    model = half(teacher)
    assert part(model, "network.1").out_features == 30
    save_model(model, tmp_path / "m.safetensors")
    with pytest.raises(UsageError, match=r"importing and calling '.*:linear_factory'"):
        load_model(tmp_path / "m.safetensors")
    again = load_model(tmp_path / "m.safetensors", allow_import=True)
    assert part(again, "network.1").out_features == 30


def test_a_module_is_narrowed_but_not_rebuilt_from_a_file(tmp_path: Path) -> None:
    model = half(linear_factory(10))
    save_model(model, tmp_path / "m.safetensors")
    with pytest.raises(UsageError, match=r"'shrink:0.5'.* of 'module:.*Sequential'.*load_weights"):
        load_model(tmp_path / "m.safetensors")
    other = half(linear_factory(10), seed=3)
    nt.models.load_weights(other, tmp_path / "m.safetensors")
    assert torch.equal(part(other, "network.1").weight, part(model, "network.1").weight)
    with pytest.raises(UsageError, match="pass the module itself as teacher="):
        half(model.architecture)


def _deep(levels: int) -> dict[str, Any]:
    record = _record("lenet")
    for _ in range(levels):
        record = {"name": "shrink:0.5", "options": {"of": record}}
    return record


UNSAID = "does not say what it was narrowed from"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, UNSAID),
        ({"of": None}, UNSAID),
        ({"of": "lenet"}, UNSAID),
        ({"of": {"name": "lenet"}}, UNSAID),
        ({"of": {"name": 3, "options": {}}}, UNSAID),
        ({"of": {"name": "shrink:0.5", "options": {"of": []}}}, UNSAID),
        ({"of": _deep(30)}, UNSAID),
        ({"of": _record("lenet"), "attributes": [1]}, "states"),
        ({"of": _record("lenet"), "attributes": {"conv1": 3}}, "states conv1"),
        ({"of": _record("lenet"), "attributes": {"conv1": {"num_heads": 3}}}, r"states conv1\.num_heads = 3"),
        ({"of": _record("lenet"), "attributes": {"nothing": {"num_heads": 3}}}, r"states nothing\.num_heads = 3"),
        ({"of": {"name": "nonesuch", "options": {}}}, "does not know"),
        ({"of": {"name": "onnx:os.mkdir", "options": {"path": "made-by-a-file"}}}, "cannot be narrowed"),
        ({"of": {"name": "lenet", "options": {"depth": 3}}}, "unknown option"),
        ({"of": {"name": "shrink:2", "options": {"of": _record("lenet")}}}, "0 < RATIO <= 1"),
    ],
    ids=str,
)
def test_a_record_that_makes_no_sense_is_a_file_error(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    save_model(half(_record("lenet")), tmp_path / "m.safetensors")
    tensors, record = read_tensors(tmp_path / "m.safetensors", "model", 1)
    architecture = {**record["architecture"], "options": options}
    write_tensors(tmp_path / "bad.safetensors", "model", 1, tensors, {"architecture": architecture})
    with pytest.raises(FileFormatError, match=rf"bad\.safetensors: .*{message}"):
        load_model(tmp_path / "bad.safetensors")


class With(nn.Module):
    """A convolution, something, and a linear layer."""

    def __init__(self, part: nn.Module | None = None, forward: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.part = part or nn.Identity()
        self.fc = nn.Linear(8, 10)
        self.also = forward or (lambda x: x)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.also(self.part(self.conv(x))).mean((2, 3)))
        return logits


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(1, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Asking(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    "teacher",
    [
        With(nn.GroupNorm(2, 8)),
        With(Scaled()),
        With(nn.Softmax(1)),
        With(Asking()),
        With(nn.ConvTranspose2d(8, 8, 2)),
    ],
)
def test_what_earlier_versions_did_not_understand(teacher: nn.Module) -> None:
    model = build_model("shrink:0.5", classes=10, input_shape=COLOUR, teacher=_unasked(teacher))
    assert part(model, "network.fc").weight.shape == (10, 4)
    whole = With(teacher.part)  # type: ignore[arg-type]
    reshape_network(whole, model.network.state_dict(), model.architecture["options"].get("attributes", {}))
    assert [parameter.shape for parameter in whole.parameters()] == [p.shape for p in model.network.parameters()]


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (With(nn.PixelShuffle(2)), r"at fc, "),
        (With(forward=lambda x: torch.cat([x, x], 1)[:, :8]), r"at fc, .*name another student"),
        (With(forward=lambda x: x.view(-1, 8, 32, 32)), r"at fc, "),
        (nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), r"no hidden layer"),
    ],
)
def test_what_cannot_be_narrowed_is_refused_by_name(teacher: nn.Module, message: str) -> None:
    with pytest.raises(UsageError, match=rf"{type(teacher).__name__} cannot be narrowed: .*{message}"):
        build_model("shrink:0.5", classes=10, input_shape=COLOUR, teacher=_unasked(teacher))


def _unasked(module: nn.Module) -> Classifier:
    """The module as a classifier that was not asked for logits first, so that the refusal is the one of narrowing."""
    architecture = Architecture(name="module:x", classes=10, input_shape=list(COLOUR), options={}, preprocess="scale")
    return Classifier(Scale(), module, architecture)


def test_usage_errors() -> None:
    teacher = build_model("mlp800", classes=10, input_shape=COLOUR)
    with pytest.raises(UsageError, match="a narrower copy of a teacher: pass teacher="):
        build_model("shrink:0.5", classes=10, input_shape=COLOUR)
    with pytest.raises(UsageError, match=r"teacher= has no effect on model 'lenet'"):
        build_model("lenet", classes=10, input_shape=COLOUR, teacher=teacher)
    with pytest.raises(UsageError, match=r"options \['dropout'\] have no effect"):
        build_model("shrink:0.5", classes=10, input_shape=COLOUR, teacher=teacher, dropout=0.5)
    with pytest.raises(UsageError, match=r"option init 'best' .* magnitude, taylor, random"):
        half(teacher, init="best")
    with pytest.raises(UsageError, match=r"init='taylor' .* pass data"):
        half(teacher, init="taylor")
    with pytest.raises(UsageError, match=r"weights are not at hand: .*init='random'"):
        half(teacher.architecture, init="magnitude")
    with pytest.raises(UsageError, match=r"what it was narrowed from, in 8 steps at most"):
        half(_deep(8))
    with pytest.raises(MismatchError, match="classes 10"):
        build_model("shrink:0.5", classes=7, input_shape=COLOUR, teacher=teacher)
    with pytest.raises(MismatchError, match=r"teacher has input_shape \[3, 32, 32\]"):
        build_model("shrink:0.5", classes=10, input_shape=(3, 16, 16), teacher=teacher.architecture)
