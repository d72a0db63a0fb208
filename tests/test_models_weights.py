"""Weights on disk: what goes in comes out, every flipped bit is noticed, and fingerprints tell models apart."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from helpers import part
from noisyteacher.data import Split
from noisyteacher.errors import FileFormatError, NoisyTeacherError, UsageError
from noisyteacher.io.tensors import read_tensors, write_tensors
from noisyteacher.models import (
    MODELS,
    Classifier,
    as_classifier,
    build_model,
    code_fingerprint,
    load_model,
    load_weights,
    model_record,
    preprocess_fingerprint,
    rescale,
    save_model,
    saved_bytes,
    weights_fingerprint,
)

SHAPE = (1, 4, 4)


class TwoLayers(nn.Module):
    def __init__(self, hidden: int = 3) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(16, hidden), nn.BatchNorm1d(hidden), nn.Linear(hidden, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.norm(self.first(x.flatten(1))))
        return logits


def two_layers(classes: int, hidden: int = 3) -> nn.Module:
    return TwoLayers(hidden)


def small(**options: Any) -> Classifier:
    return build_model("mlp800", classes=5, input_shape=SHAPE, **options)


def images(count: int = 6, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", sorted(MODELS.keys() - {"alexnet-cifar", "lenet-cifar", "lenet-svhn"}))
def test_a_saved_model_comes_back_from_its_file_alone(name: str, tmp_path: Path) -> None:
    model = build_model(name, classes=6, input_shape=(3, 24, 28), preprocess="local-contrast", seed=2).eval()
    save_model(model, tmp_path / "m.safetensors", {"epochs": 3})
    back = load_model(tmp_path / "m.safetensors")
    assert torch.equal(back(images(2, (3, 24, 28))), model(images(2, (3, 24, 28))))
    assert back.architecture == model.architecture
    assert not any(part.training for part in back.modules())
    assert str(back) == str(model)
    assert all(parameter.requires_grad and parameter.device.type == "cpu" for parameter in back.parameters())
    for fingerprint in (weights_fingerprint, code_fingerprint, preprocess_fingerprint):
        assert fingerprint(back) == fingerprint(model)
    assert model_record(tmp_path / "m.safetensors") == {"architecture": model.architecture, "epochs": 3}


def test_options_and_statistics_come_back(tmp_path: Path) -> None:
    train = images(20)
    for preprocess in ("standardize", "pixel-mean"):
        split = Split(train, None, torch.arange(20), "train", "images", tuple("abcde"))
        data = SimpleNamespace(classes=5, input_shape=SHAPE, preprocess=preprocess, train=split)
        model = build_model("mlp800", data, dropout=0.5).eval()
        save_model(model, tmp_path / "m.safetensors")
        back = load_model(tmp_path / "m.safetensors")
        assert torch.equal(part(back, "preprocess").mean, part(model, "preprocess").mean)
        assert part(back, "preprocess").mean.abs().sum() > 0
        assert part(back, "network.drop2").p == 0.5
        assert torch.equal(back(train), model(train))


def test_training_a_loaded_model_leaves_the_file_alone(tmp_path: Path) -> None:
    save_model(small(), tmp_path / "m.safetensors")
    before = (tmp_path / "m.safetensors").read_bytes()
    back = load_model(tmp_path / "m.safetensors")
    with torch.no_grad():
        for parameter in back.parameters():
            parameter.add_(1.0)
    assert (tmp_path / "m.safetensors").read_bytes() == before


def test_the_file_is_readable_by_any_safetensors_reader(tmp_path: Path) -> None:
    model = small()
    save_model(model, tmp_path / "m.safetensors")
    tensors = safetensors.torch.load_file(tmp_path / "m.safetensors")
    assert tensors.keys() == model.state_dict().keys()
    assert torch.equal(tensors["network.fc1.weight"], part(model, "network.fc1").weight)


def test_saved_bytes_is_the_length_of_the_file(tmp_path: Path) -> None:
    save_model(small(), tmp_path / "m.safetensors")
    assert saved_bytes(small()) == os.path.getsize(tmp_path / "m.safetensors")


def test_every_kind_of_flipped_bit_is_noticed(tmp_path: Path) -> None:
    model = build_model(f"{__name__}:two_layers", classes=5, input_shape=SHAPE)
    save_model(model, tmp_path / "m.safetensors")
    good = (tmp_path / "m.safetensors").read_bytes()
    bad = tmp_path / "bad.safetensors"
    for position in range(0, len(good), 7):
        bad.write_bytes(good[:position] + bytes([good[position] ^ (1 << position % 8)]) + good[position + 1 :])
        with pytest.raises(FileFormatError, match=r"bad\.safetensors"):
            load_weights(model, bad)
    for length in (0, 7, 8, 100, len(good) // 2, len(good) - 1):
        bad.write_bytes(good[:length])
        with pytest.raises(FileFormatError, match=r"bad\.safetensors"):
            load_model(bad)
    with pytest.raises(FileFormatError, match="cannot be read"):
        load_model(tmp_path / "missing.safetensors")
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(FileFormatError, match="cannot be read: a folder, pipe or device"):
        load_model(tmp_path / "pipe.safetensors")


def tampered(path: Path, change: Any) -> Path:
    """The file again, sealed, with its tensors and record changed by somebody."""
    tensors, record = read_tensors(path, "model", 1)
    change(tensors, record)
    write_tensors(path.with_name("other.safetensors"), "model", 1, tensors, record)
    return path.with_name("other.safetensors")


def test_missing_unexpected_and_misshapen_tensors_are_named_apart(tmp_path: Path) -> None:
    model = small()
    save_model(model, tmp_path / "m.safetensors")

    def change(tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        tensors["network.extra"] = tensors.pop("network.fc2.bias")
        tensors["network.fc3.weight"] = tensors["network.fc3.weight"][:, :7]
        tensors["network.fc3.bias"] = tensors["network.fc3.bias"].double()

    before = weights_fingerprint(model)
    for attempt in (load_model, lambda path: load_weights(model, path)):
        with pytest.raises(FileFormatError) as caught:
            attempt(tampered(tmp_path / "m.safetensors", change))
        text = str(caught.value)
        assert "missing: network.fc2.bias;" in text
        assert "unexpected: network.extra;" in text
        assert "network.fc3.weight torch.float32 (5, 7) instead of torch.float32 (5, 800)" in text
        assert "network.fc3.bias torch.float64 (5,) instead of torch.float32 (5,)" in text
    assert weights_fingerprint(model) == before  # all or none


def test_a_file_of_a_scaled_model_that_does_not_fit_leaves_no_scale_behind(tmp_path: Path) -> None:
    scaled, plain = tmp_path / "scaled.safetensors", tmp_path / "plain.safetensors"
    save_model(rescale(build_model("mlp128", classes=5, input_shape=SHAPE), 7.0), scaled)
    save_model(small(seed=1), plain)
    model, twice = small(), rescale(small(), 3.0)
    for refusing in (model, twice):
        before = weights_fingerprint(refusing)
        with pytest.raises(FileFormatError, match="do not fit"):
            load_weights(refusing, scaled)
        assert weights_fingerprint(refusing) == before
    load_weights(model, plain)
    assert weights_fingerprint(model) == weights_fingerprint(small(seed=1))


@pytest.mark.parametrize(
    "change",
    [
        {"name": "resnet"},
        {"classes": 10**15},
        {"classes": -1},
        {"classes": "5"},
        {"input_shape": [1, 10**9, 10**9]},
        {"input_shape": [1, "4", 4]},
        {"options": {"dropout": 7}},
        {"options": {"drop": 0.1}},
        {"options": []},
        {"preprocess": None},
        {"name": None},
    ],
)
def test_a_nonsense_architecture_is_a_sentence_not_a_crash(change: dict[str, Any], tmp_path: Path) -> None:
    save_model(small(), tmp_path / "m.safetensors")
    other = tampered(tmp_path / "m.safetensors", lambda tensors, record: record["architecture"].update(change))
    with pytest.raises(FileFormatError, match=r"other\.safetensors"):
        load_model(other)


@pytest.mark.parametrize("key", ["classes", "input_shape", "options", "preprocess", "name"])
def test_an_architecture_that_lacks_a_field_is_refused(key: str, tmp_path: Path) -> None:
    save_model(small(), tmp_path / "m.safetensors")
    other = tampered(tmp_path / "m.safetensors", lambda tensors, record: record["architecture"].pop(key))
    with pytest.raises(FileFormatError, match=rf"other\.safetensors: the record's architecture lacks a valid '{key}'"):
        load_model(other)


@pytest.mark.parametrize("size", [float("nan"), float("inf"), 2**40, 0, -1, 1.5])
def test_a_size_that_is_none_is_refused(size: float) -> None:
    with pytest.raises(UsageError, match="three sizes of 1 or more"):
        build_model("mlp800", classes=3, input_shape=(1, 4, size))  # type: ignore[arg-type]


def test_a_file_without_architecture_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    save_model(small(), tmp_path / "m.safetensors")
    with pytest.raises(FileFormatError, match="not a model of noisyteacher"):
        load_model(tampered(tmp_path / "m.safetensors", lambda tensors, record: record.clear()))
    write_tensors(tmp_path / "kind.safetensors", "logits", 1, {}, {})
    with pytest.raises(FileFormatError, match="'logits', expected a 'model'"):
        load_model(tmp_path / "kind.safetensors")
    write_tensors(tmp_path / "schema.safetensors", "model", 2, {}, {})
    with pytest.raises(FileFormatError, match="schema 2"):
        load_model(tmp_path / "schema.safetensors")


def test_a_file_cannot_make_us_import_code(tmp_path: Path) -> None:
    model = build_model(f"{__name__}:two_layers", classes=5, input_shape=SHAPE, hidden=4).eval()
    save_model(model, tmp_path / "m.safetensors")
    with pytest.raises(UsageError, match="allow_import=True"):
        load_model(tmp_path / "m.safetensors")
    back = load_model(tmp_path / "m.safetensors", allow_import=True)
    assert torch.equal(back(images()), model(images()))
    assert back.architecture == model.architecture


def test_a_wrapped_module_is_saved_and_filled_but_not_rebuilt(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, other = TwoLayers(), TwoLayers()
    model(torch.randn(8, 16))  # moves the batch norm's statistics
    save_model(model, tmp_path / "m.safetensors")
    with pytest.raises(UsageError, match=r"use noisyteacher\.models\.load_weights\(model, path\)"):
        load_model(tmp_path / "m.safetensors")
    load_weights(other, tmp_path / "m.safetensors")
    model.eval(), other.eval()
    assert torch.equal(as_classifier(other)(images()), as_classifier(model)(images()))
    assert torch.equal(part(other, "norm").running_mean, part(model, "norm").running_mean)


def test_records_may_not_shadow_what_the_file_needs(tmp_path: Path) -> None:
    for name in ("architecture", "kind", "schema", "checksum"):
        with pytest.raises(UsageError, match=name):
            save_model(small(), tmp_path / "m.safetensors", {name: 1})
    assert not list(tmp_path.iterdir())


def test_state_that_is_not_a_tensor_is_refused_by_name(tmp_path: Path) -> None:
    class Odd(TwoLayers):
        def get_extra_state(self) -> dict[str, int]:
            return {"step": 3}

        def set_extra_state(self, state: Any) -> None:
            pass

    with pytest.raises(UsageError, match="_extra_state"):
        save_model(Odd(), tmp_path / "m.safetensors")


def test_tied_weights_and_strided_weights_are_saved_whole(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)
            self.b.weight = self.a.weight
            self.a.bias = nn.Parameter(torch.arange(32.0)[::2])

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.b(self.a(x.flatten(1)))
            return logits

    model, other = Tied(), Tied()
    save_model(model, tmp_path / "m.safetensors")
    load_weights(other, tmp_path / "m.safetensors")
    assert torch.equal(other.b.weight, model.a.weight)
    assert torch.equal(other.a.bias, torch.arange(32.0)[::2])


def test_fingerprints_change_with_what_they_stand_for_and_nothing_else() -> None:
    def prints(model: nn.Module) -> tuple[str, str, str]:
        return weights_fingerprint(model), preprocess_fingerprint(model), code_fingerprint(model)

    base = prints(small())
    assert prints(small()) == base
    assert all(len(text) == 64 and set(text) <= set("0123456789abcdef") for text in base)

    def changed(model: nn.Module) -> list[bool]:
        return [new != old for new, old in zip(prints(model), base, strict=True)]

    assert changed(small(seed=1)) == [True, False, False]
    assert changed(small(dropout=0.5)) == [False, False, True]
    assert changed(small(preprocess="local-contrast")) == [False, True, True]
    nudged = small()
    with torch.no_grad():
        part(nudged, "network.fc3").bias[0] = 1e-30
    assert changed(nudged) == [True, False, False]
    assert changed(small().eval()) == [False, False, False]


def test_a_bare_module_has_the_fingerprints_of_the_classifier_it_becomes() -> None:
    module = TwoLayers()
    for fingerprint in (weights_fingerprint, preprocess_fingerprint, code_fingerprint):
        assert fingerprint(module) == fingerprint(as_classifier(module))


def test_weights_fingerprint_sees_names_shapes_and_dtypes_not_only_bytes() -> None:
    class Holder(nn.Module):
        def __init__(self, name: str, value: Tensor) -> None:
            super().__init__()
            self.register_buffer(name, value)

    values = [
        Holder("a", torch.zeros(2, 3)),
        Holder("b", torch.zeros(2, 3)),
        Holder("a", torch.zeros(3, 2)),
        Holder("a", torch.zeros(2, 3, dtype=torch.int32)),
        Holder("a", torch.zeros(2, 3)[:, :2]),
    ]
    assert len({weights_fingerprint(value) for value in values}) == 5


def test_code_fingerprint_does_not_depend_on_addresses() -> None:
    class Printed(TwoLayers):
        def __init__(self) -> None:
            super().__init__()
            self.activation = object()

        def extra_repr(self) -> str:
            return f"activation={self.activation}"

    first, second = Printed(), Printed()
    assert str(first) != str(second)
    assert code_fingerprint(first) == code_fingerprint(second)


def test_a_header_that_lies_about_its_length_is_refused(tmp_path: Path) -> None:
    header = json.dumps({"__metadata__": {"noisyteacher": "{}"}}).encode()
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", 2**60) + header)
    with pytest.raises(NoisyTeacherError, match=r"m\.safetensors"):
        load_model(tmp_path / "m.safetensors")
