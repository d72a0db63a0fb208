"""`shrink:RATIO` with the teacher's weights: which channels are kept, what the copy computes, files, and refusals."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import noisyteacher as nt
from helpers import blobs, part
from noisyteacher.config import build_config
from noisyteacher.errors import FileFormatError, UsageError
from noisyteacher.io.tensors import read_tensors, write_tensors
from noisyteacher.models import build_model, load_model, save_model
from noisyteacher.models.classifier import learn_in_unit, output_restorer, reordered, rescale
from noisyteacher.models.external import import_torchvision
from noisyteacher.pipeline.compression import compress_config
from noisyteacher.pipeline.search import price_candidates
from noisyteacher.sweep import sweep

pytest.importorskip("torch_pruning", reason="needs the extra prune")
SMALL = (3, 6, 6)


def copy_of(teacher: Any, ratio: float = 0.5, shape: tuple[int, int, int] = SMALL, **options: Any) -> nt.Classifier:
    return build_model(f"shrink:{ratio}", classes=5, input_shape=shape, teacher=teacher, **options).eval()


def images(shape: Sequence[int] = SMALL, number: int = 4) -> Tensor:
    return torch.randint(0, 256, (number, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def kept_rows(ours: Tensor, theirs: Tensor) -> list[int]:
    """The rows of `theirs` that are those of `ours`, in order."""
    return [next(row for row in range(len(theirs)) if torch.equal(theirs[row], our_row)) for our_row in ours]


def silence(layer: Any, kept: list[int]) -> None:
    """Let a layer give 0 in all channels but these."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter[[row for row in range(len(parameter)) if row not in kept]] = 0


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 5))


def test_the_channels_with_the_largest_norm_are_kept_and_the_others_are_gone() -> None:
    network = two_layers()
    first, last = part(network, "1"), part(network, "3")
    norms = first.weight.abs().sum(1) + last.weight.abs().sum(0)  # of all weights that a channel has
    kept = sorted(norms.argsort(descending=True)[:4].tolist())
    model = copy_of(network, shape=(3, 2, 2))
    assert kept_rows(part(model, "network.1").weight, first.weight) == kept
    assert torch.equal(part(model, "network.1").bias, first.bias[kept])
    assert torch.equal(part(model, "network.3").weight, last.weight[:, kept])
    assert torch.equal(part(model, "network.3").bias, last.bias)
    silence(first, kept)
    batch = images((3, 2, 2))
    assert torch.allclose(model(batch), network(batch / 255), atol=1e-6)


class Branches(nn.Module):
    """Two convolutions side by side, concatenated; a depthwise one behind them; batch norms."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(10)
        self.depthwise = nn.Conv2d(10, 10, 3, groups=10)
        self.mix = nn.Conv2d(10, 12, 1)
        self.fc = nn.Linear(12, 5)
        with torch.no_grad():
            for parameter in self.norm.parameters():
                parameter.uniform_(0.5, 2)
            self.norm.running_mean = torch.rand(10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(torch.cat([self.a(x), self.b(x)], 1)))
        logits: Tensor = self.fc(torch.relu(self.mix(self.depthwise(x))).mean((2, 3)))
        return logits


def test_concatenated_and_depthwise_channels_stay_where_they_belong() -> None:
    teacher = Branches().eval()
    model = copy_of(teacher)
    network: Any = model.network
    first, second = (kept_rows(part(network, name).weight, part(teacher, name).weight) for name in "ab")
    assert (len(first), len(second), network.depthwise.groups) == (3, 2, 5)
    both = [*first, *(6 + row for row in second)]
    assert torch.equal(network.norm.running_mean, teacher.norm.running_mean[both])  # type: ignore[index]
    mixed = kept_rows(network.mix.weight, teacher.mix.weight[:, both])
    assert len(mixed) == 6
    for layer, kept in ((teacher.norm, both), (teacher.depthwise, both), (teacher.mix, mixed)):
        silence(layer, kept)
    batch = images()
    assert torch.allclose(model(batch), teacher(batch / 255), atol=1e-6)


@pytest.fixture(scope="module")
def timm() -> Any:
    """timm, imported as the package does it."""
    try:
        import_torchvision()
    except ImportError:
        pytest.skip("needs the extra zoo")
    return pytest.importorskip("timm", reason="needs the extra zoo")


class Attentive(nn.Module):
    """timm's attention over the rows of a grey image."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attn: Any = attention
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.attn(x.squeeze(1)).mean(1))
        return logits


def test_attention_loses_whole_heads(timm: Any) -> None:
    torch.manual_seed(0)
    teacher = Attentive(timm.layers.Attention(16, num_heads=4, qkv_bias=True)).eval()
    model = copy_of(teacher, shape=(1, 7, 16))
    attn = part(model, "network.attn")
    assert (attn.num_heads, attn.head_dim, attn.qkv.weight.shape) == (2, 4, (24, 16))
    rows = kept_rows(attn.qkv.weight, teacher.attn.qkv.weight)
    channels = rows[:8]
    assert rows == [start + row for start in (0, 16, 32) for row in channels]
    assert {row // 4 for row in channels} == {channels[0] // 4, channels[4] // 4}
    outputs = kept_rows(attn.proj.weight, teacher.attn.proj.weight[:, channels])
    assert len(outputs) == 8
    silence(teacher.attn.proj, outputs)
    with torch.no_grad():
        teacher.attn.proj.weight[:, [row for row in range(16) if row not in channels]] = 0
    batch = images((1, 7, 16))
    assert torch.allclose(model(batch), teacher(batch / 255), atol=1e-6)


def test_gradients_find_a_channel_that_nobody_reads() -> None:
    teacher = two_layers()
    with torch.no_grad():
        part(teacher, "1").weight[3] *= 100
        part(teacher, "3").weight[:, 3] = 0
    data = nt.Split(images((3, 2, 2), 40), None, torch.arange(40), "train", "noise", tuple("abcde"))
    kept = {
        init: kept_rows(
            part(copy_of(teacher, shape=(3, 2, 2), init=init, data=data), "network.1").weight, part(teacher, "1").weight
        )
        for init in ("magnitude", "taylor")
    }
    assert 3 in kept["magnitude"]
    logits = teacher(data.images_at(torch.arange(40), "clean") / 255)
    functional.cross_entropy(logits, logits.argmax(1)).backward()  # type: ignore[no-untyped-call]
    first, last = (part(teacher, name).weight for name in "13")
    importance = (first * first.grad).abs().sum(1) + (last * last.grad).abs().sum(0)
    assert kept["taylor"] == sorted(importance.argsort()[4:].tolist())
    assert 3 not in kept["taylor"]


def test_a_global_ranking_takes_more_where_less_is_missed() -> None:
    teacher = nn.Sequential(nn.Flatten(), *(nn.Linear(*sizes) for sizes in pairwise((12, 10, 10, 5))))
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.fill_(1)
        part(teacher, "2").weight[:4] = 0
        part(teacher, "3").weight[:, :4] = 0
    widths = {
        pruning: [len(part(copy_of(teacher, 0.8, (3, 2, 2), pruning=pruning), f"network.{n}").weight) for n in (1, 2)]
        for pruning in ("uniform", "global")
    }
    assert widths == {"uniform": [8, 8], "global": [10, 6]}


@pytest.mark.parametrize("init", ["magnitude", "taylor", "random"])
def test_teacher_and_random_states_are_as_they_were(init: str) -> None:
    teacher = nt.build_model("lenet", classes=3, input_shape=(1, 16, 16))
    part(teacher, "network.conv1").weight.requires_grad_(False)
    part(teacher, "network.conv2").eval()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    flags = [module.training for module in teacher.modules()]
    states = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    data = nt.Split(images((1, 16, 16), 40), None, torch.arange(40), "train", "noise", tuple("abc"))
    student = build_model("shrink:0.5", data, teacher=teacher, init=init)
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]  # type: ignore[index]
    assert [module.training for module in teacher.modules()] == flags
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    frozen = [name for name, parameter in teacher.named_parameters() if not parameter.requires_grad]
    assert frozen == ["network.conv1.weight"]
    for model in (teacher, student):
        assert all(parameter.grad is None for parameter in model.parameters())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in student.parameters())
    assert all(module.training for module in student.network.modules())


def test_class_order_and_scale_of_the_teacher_are_inherited_with_its_head() -> None:
    teacher = nt.build_model("lenet", classes=5, input_shape=(1, 16, 16)).eval()
    changed = rescale(reordered(teacher, [4, 2, 0, 1, 3]), 3.0)
    batch = images((1, 16, 16))
    student = copy_of(changed, 1.0, (1, 16, 16))
    assert torch.allclose(student(batch), changed(batch), atol=1e-5)
    assert type(student.network) is type(teacher.network)
    before = student(batch)
    assert torch.allclose(learn_in_unit(student, 7.0)(batch), before, atol=1e-5)
    assert torch.allclose(learn_in_unit(student, 14.0)(batch), 2 * before, atol=1e-5)
    fresh = copy_of(changed, 1.0, (1, 16, 16), init="random")
    before = fresh(batch)
    assert torch.allclose(learn_in_unit(fresh, 7.0)(batch), 7 * before, atol=1e-5)


def test_what_a_unit_changes_is_undone_bit_by_bit() -> None:
    teacher = nt.build_model("lenet", classes=5, input_shape=(1, 16, 16)).eval()
    batch = images((1, 16, 16))
    for student in (copy_of(teacher, 1.0, (1, 16, 16)), rescale(copy_of(teacher, 1.0, (1, 16, 16)), 3.0)):
        before, names, restore = student(batch), list(student.state_dict()), output_restorer(student)
        learn_in_unit(student, 7.0)
        restore()
        assert torch.equal(student(batch), before)
        assert list(student.state_dict()) == names


class Maxout(nn.Module):
    """Each logit is the larger of two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(*self.b(torch.relu(self.a(x.flatten(1)))).chunk(2, 1))


def test_logits_that_no_single_layer_gives_are_inherited_unchanged_or_not_at_all() -> None:
    teacher = build_model(Maxout(), classes=5, input_shape=(3, 2, 2))
    assert len(part(copy_of(teacher, shape=(3, 2, 2)), "network.b").weight) == 10
    for changed in (reordered(teacher, [4, 2, 0, 1, 3]), rescale(reordered(teacher, [0, 1, 2, 3, 4]), 2.0)):
        with pytest.raises(UsageError, match=r"no single layer .*init='random'"):
            copy_of(changed, shape=(3, 2, 2))
    with pytest.raises(UsageError, match=r"no single layer .*init='random'"):
        learn_in_unit(copy_of(teacher, shape=(3, 2, 2)), 2.0)


def test_the_preprocessing_is_the_teachers() -> None:
    data = blobs()
    teacher = nt.build_model("mlp800", data, preprocess="standardize").eval()
    student = build_model("shrink:1", data, teacher=teacher).eval()
    batch = data.images_at(torch.arange(4), "clean")
    assert torch.allclose(student(batch), teacher(batch), atol=1e-5)


@pytest.fixture
def vit(timm: Any) -> nt.Classifier:
    """A vision transformer with two heads of 32 channels."""
    return nt.build_model("timm:test_vit", classes=5, input_shape=(3, 32, 32))


def test_a_file_is_read_without_torch_pruning_and_nothing_is_narrowed(
    vit: nt.Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teachers = {"vit": vit, "lenet": nt.build_model("lenet", classes=5, input_shape=(3, 32, 32))}
    batch, outputs = images((3, 32, 32)), {}
    for name, teacher in teachers.items():
        student = copy_of(teacher, shape=(3, 32, 32))
        twice = copy_of(student, shape=(3, 32, 32))
        assert nt.measure(twice, latency=False).macs < nt.measure(student, latency=False).macs
        for number, model in enumerate((student, twice)):
            save_model(model, tmp_path / f"{name}{number}.safetensors")
            outputs[tmp_path / f"{name}{number}.safetensors"] = model(batch)
    assert part(twice, "network.conv1").out_channels == 5
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    for file, expected in outputs.items():
        assert torch.equal(load_model(file)(batch), expected), file
    with pytest.raises(UsageError, match=r"torch-pruning: pip install 'noisyteacher\[prune\]'"):
        copy_of(teachers["lenet"], shape=(3, 32, 32))
    data = nt.load_data("mnist-5k", limit=60)
    config = build_config({"student": {"name": "auto"}, "target": {"macs": "1x"}})
    search = price_candidates(config, nt.build_model("lenet", data), data)
    assert "shrink" not in {candidate.family for candidate in search.candidates}
    assert any("noisyteacher[prune]" in note for note in search.notes)


@pytest.mark.parametrize("value", [5, 0, -1, True, 1.0, "2", None, [1], [1, 1], 10**30], ids=str)
def test_a_size_in_a_file_is_a_number_that_the_network_could_have(
    value: Any, vit: nt.Classifier, tmp_path: Path
) -> None:
    file = tmp_path / "m.safetensors"
    save_model(copy_of(vit, shape=(3, 32, 32)), file)
    tensors, record = read_tensors(file, "model", 1)
    options = record["architecture"]["options"]
    assert options["attributes"]["blocks.0.attn"] == {"attn_dim": 32, "num_heads": 1}
    options["attributes"]["blocks.0.attn"]["num_heads"] = value
    write_tensors(file, "model", 1, tensors, record)
    with pytest.raises(FileFormatError, match=r"states blocks\.0\.attn\.num_heads"):
        load_model(file)


def test_tensors_that_do_not_fit_each_other_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "m.safetensors"
    save_model(copy_of(nt.build_model("lenet", classes=5, input_shape=(3, 32, 32)), shape=(3, 32, 32)), file)
    tensors, record = read_tensors(file, "model", 1)
    for name, shape, message in (
        ("network.conv2.weight", (25, 9, 5, 5), "do not fit each other"),
        ("network.conv2.weight", (25, 21, 5, 5), "wider than in its original"),
        ("network.conv2.weight", (25, 10, 25), "wider than in its original"),
        ("network.fc1.bias", (0,), "wider than in its original"),
        ("network.fc2.weight", (4, 250), "do not fit each other"),
    ):
        changed = {**tensors, name: torch.zeros(shape)}
        write_tensors(file, "model", 1, changed, record)
        with pytest.raises(FileFormatError, match=message):
            load_model(file)


FROZEN = {"preset": "paper", "lr": 1e-12, "epochs": 1, "batch_size": 60}


@pytest.mark.parametrize("scale", ["none", "rms"])
def test_a_compression_starts_with_the_weights_of_the_teacher_it_trains(tmp_path: Path, scale: str) -> None:
    settings = {
        "data": {"limit": 60}, "teacher": {"name": "lenet", "epochs": 1},
        "student": {"name": "shrink:1", "scale": scale, "loss": "logit_regression", **FROZEN},
        "noise": {"sigma": 0.0}, "run": {"output_dir": str(tmp_path), "threads": 1, "baselines": False},
    }  # fmt: skip
    path = compress_config(build_config(settings)).path
    teacher, student = (nt.load_model(path / run / "weights.safetensors") for run in ("teacher", "clean-seed0"))
    batch = images((1, 28, 28))
    assert torch.allclose(student(batch), teacher(batch), atol=1e-5)


@pytest.mark.parametrize("init", ["magnitude", "random"])
def test_a_student_with_weights_that_saw_the_test_images_is_said_to_have_them(tmp_path: Path, init: str) -> None:
    data, options = nt.load_data("mnist-5k", limit=60), {"init": init}
    how: dict[str, Any] = {"baselines": False, "epochs": 1, "output_dir": tmp_path, "options": options}
    result = nt.compress("pretrained:lenet-mnist", "shrink:0.5", data, progress=False, **how)
    (warning,) = [warning for warning in result.warnings if "was trained on mnist" in warning]
    assert ("through its weights the student" in warning) == (init == "magnitude")


def test_a_sweep_starts_every_student_with_the_teachers_weights(tmp_path: Path) -> None:
    base = {
        "data": {"limit": 60}, "teacher": {"name": "lenet", "epochs": 1}, "student": {"name": "shrink:1", **FROZEN},
        "run": {"output_dir": str(tmp_path), "threads": 1},
    }  # fmt: skip
    result = sweep(base, {"student.options": [{}, {"init": "random"}]}, seeds=1)
    assert result.failed == {}
    batch = images((1, 28, 28))
    teacher = nt.load_model(result.path / "teacher" / "weights.safetensors")
    students = [nt.load_model(file) for file in sorted(result.path.glob("clean-*/weights.safetensors"))]
    distances = sorted(float((student(batch) - teacher(batch)).abs().max().detach()) for student in students)
    assert distances[0] < 1e-5
    assert distances[-1] > 0.1


def test_students_with_inherited_weights_train_in_common_steps() -> None:
    data = blobs()
    teacher = nt.build_model("mlp800", data)

    def student() -> nt.Classifier:
        return build_model("shrink:0.5", data, teacher=teacher)

    options: dict[str, Any] = {"epochs": 1, "batch_size": 16, "precision": "fp32", "progress": False}
    logits = torch.randn(len(data), 3, generator=torch.Generator().manual_seed(0))
    together, alone = [student(), student()], student()
    nt.fit_many(together, data, [nt.distil(logits, scale="rms")] * 2, seeds=[0, 1], **options)
    nt.fit(alone, data, nt.distil(logits, scale="rms"), seed=0, **options)
    batch = data.images_at(torch.arange(4), "clean")
    assert torch.allclose(together[0].eval()(batch), alone.eval()(batch), atol=1e-5)
    assert not torch.allclose(together[1].eval()(batch), alone(batch), atol=1e-5)
