"""Networks of timm, torchvision and transformers: built for the data, saved, rebuilt, counted; no code run."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import noisyteacher as nt
from helpers import Call, part
from noisyteacher.errors import DataError, FileFormatError, MismatchError, UnknownNameError, UsageError
from noisyteacher.io.tensors import read_tensors, write_tensors
from noisyteacher.models import (
    ZOO,
    Resized,
    Standardize,
    class_names_of,
    code_fingerprint,
    load_model,
    save_model,
    weights_fingerprint,
)
from noisyteacher.models.external import BuiltNetwork, import_torchvision, timm_network, torchvision_network

if find_spec("timm") is None or find_spec("torchvision") is None:
    pytest.skip("needs the extra zoo", allow_module_level=True)

NETWORKS: list[tuple[str, int, int, dict[str, Any]]] = [
    ("timm:resnet18", 32, 3, {}),
    ("timm:resnet18", 32, 1, {"drop_rate": 0.1}),
    ("timm:mobilenetv3_small_050", 64, 3, {}),
    ("timm:vit_tiny_patch16_224", 32, 3, {"depth": 2}),
    ("timm:convnext_atto", 64, 3, {}),
    ("timm:swin_tiny_patch4_window7_224", 64, 3, {"depths": [1, 1, 1, 1]}),
    ("torchvision:resnet18", 32, 3, {}),
    ("torchvision:mobilenet_v3_small", 64, 1, {}),
]


def images(model: nn.Module, count: int = 3) -> Tensor:
    shape = model.input_shape
    assert isinstance(shape, tuple)
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def same_after_saving(model: nt.Classifier, path: Path) -> nt.Classifier:
    model.eval()
    save_model(model, path)
    again = load_model(path)
    assert torch.equal(again(images(model)), model(images(model)))
    assert again.architecture == model.architecture
    assert (code_fingerprint(again), weights_fingerprint(again)) == (
        code_fingerprint(model),
        weights_fingerprint(model),
    )
    return again


@pytest.mark.parametrize(("name", "side", "channels", "options"), NETWORKS)
def test_a_network_of_a_library(name: str, side: int, channels: int, options: dict[str, Any], tmp_path: Path) -> None:
    model = nt.build_model(name, classes=7, input_shape=(channels, side, side), **options).eval()
    assert model.name == name
    assert model(images(model)).shape == (3, 7)
    same_after_saving(model, tmp_path / "model.safetensors")
    twin = nt.build_model(name, classes=7, input_shape=(channels, side, side), **options)
    assert weights_fingerprint(twin) == weights_fingerprint(model)
    costs = nt.measure(model, runs=1, latency=False)
    assert costs.macs > 0
    assert costs.unsupported == ()


def test_the_published_size_of_resnet18() -> None:
    """torchvision documents 11,689,512 parameters and 1.814 GMACs at 224 x 224 with 1,000 classes."""
    for library in ("timm", "torchvision"):
        model = nt.build_model(f"{library}:resnet18", classes=1000, input_shape=(3, 224, 224))
        assert sum(parameter.numel() for parameter in model.parameters()) == 11_689_512
        assert round(nt.measure(model, latency=False).macs / 1e9, 3) == 1.814


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("timm:resnet81", {}, UnknownNameError, "did you mean timm:resnet"),
        ("torchvision:resnet19", {}, UnknownNameError, "did you mean torchvision:resnet"),
        ("timm:resnet18.nope", {}, UsageError, "nope"),
        ("timm:resnet18", {"width_multiplier": 2}, UsageError, "width_multiplier"),
        ("timm:resnet18", {"pretrained": "yes"}, UsageError, "expected true, false or 'whole'"),
        ("timm:resnet18", {"pretrained": "whole"}, MismatchError, "has 1000 classes, the data 7"),
        ("timm:resnet18", {"checkpoint_path": "/etc/passwd"}, UsageError, "or teacher.weights"),
        ("torchvision:resnet18", {"weights": "DEFAULT"}, UsageError, "say pretrained=true"),
        ("timm:resnet18", {"preprocess": "model@3"}, UnknownNameError, "unknown preprocessing"),
        ("lenet", {"preprocess": "model"}, UsageError, "networks of timm, torchvision, hf"),
    ],
)
def test_what_a_library_does_not_have(name: str, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        nt.build_model(name, classes=7, input_shape=(3, 32, 32), **options)


def test_weights_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DataError, match=r"timm:resnet18: its pretrained weights could not be loaded.*teacher\.weights"):
        nt.build_model("timm:resnet18", classes=7, input_shape=(3, 32, 32), pretrained=True)


def test_weights_that_come_with_torchvision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file where torch keeps what it fetched stands for the real one: a new head, its own normalisation and size."""
    models = import_torchvision().models
    torch.manual_seed(3)
    source = models.squeezenet1_1()
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(source.state_dict(), folder / models.SqueezeNet1_1_Weights.DEFAULT.url.rsplit("/", 1)[1])
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    model = nt.build_model("torchvision:squeezenet1_1", classes=7, input_shape=(1, 40, 40), pretrained=True)
    assert isinstance(model.preprocess, Resized)
    assert model.architecture["preprocess"] == "standardize@224x224-bilinear"
    assert part(model, "preprocess.inner").mean.tolist() == pytest.approx([0.449], abs=1e-3)
    stem = source.features[0]
    grey = torch.rand(2, 1, 30, 30)
    assert torch.allclose(part(model, "network.features.0")(grey), stem(grey.expand(-1, 3, -1, -1)), atol=1e-5)
    assert model(images(model)).shape == (3, 7)
    same_after_saving(model, tmp_path / "model.safetensors")
    whole = nt.build_model("torchvision:squeezenet1_1", classes=1000, input_shape=(3, 224, 224), pretrained="whole")
    assert torch.equal(whole.network.state_dict()["classifier.1.weight"], source.state_dict()["classifier.1.weight"])
    assert whole.architecture["preprocess"] == "standardize"


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_pretrained_networks_with_auxiliary_heads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside their weights torchvision refuses aux_logits=False: it builds the heads, and they are dropped."""
    models = import_torchvision().models
    heads: Any = nn.Module()
    heads.conv, heads.fc, heads.AuxLogits = nn.Conv2d(3, 4, 3), nn.Linear(4, 1000), nn.Identity()
    heads.aux_logits = True

    def get_model(requested: str, weights: Any, **arguments: Any) -> Any:
        assert (requested, arguments) == (name, {"transform_input": True})
        assert len(weights.meta["categories"]) == 1000
        return heads

    monkeypatch.setattr(models, "get_model", get_model)
    built = torchvision_network(name, 7, (3, 299, 299), {"pretrained": True})
    assert built.options == {"aux_logits": False, "transform_input": True}
    assert part(built.network, "fc").out_features == 7
    assert (heads.AuxLogits is None) == (name == "inception_v3")


def test_a_network_of_one_size_has_its_images_scaled(tmp_path: Path) -> None:
    model = nt.build_model("timm:vit_tiny_patch16_224", classes=7, input_shape=(3, 32, 32), img_size=[48, 48], depth=1)
    assert model.architecture["preprocess"] == "scale@48x48-bicubic"
    same_after_saving(model, tmp_path / "model.safetensors")
    model = nt.build_model("timm:vit_tiny_patch16_224", classes=7, input_shape=(3, 32, 32), depth=1, preprocess="model")
    assert model.architecture["preprocess"] == "standardize"
    assert part(model, "preprocess").mean.tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": {"pretrained": True}}, "do not describe"),
        ({"name": "timm:resnet34"}, "do not fit"),
        ({"name": "timm:hf_hub:somebody/resnet18"}, "no such network"),
        ({"options": {"checkpoint_path": "/etc/passwd"}}, "not passed on"),
        ({"name": "hf:somebody/resnet"}, "do not describe"),
        ({"classes": 10**9}, "cannot be built|do not fit"),
    ],
)
def test_a_file_cannot_make_a_library_fetch_or_allocate(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(nt.build_model("timm:mobilenetv3_small_050", classes=7, input_shape=(3, 32, 32)), path)
    tensors, record = read_tensors(path, "model", 1)
    write_tensors(path, "model", 1, tensors, {"architecture": {**record["architecture"], **change}})
    with pytest.raises(FileFormatError, match=message):
        load_model(path)


def test_nothing_is_allocated_before_the_file_is_known_to_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = tmp_path / "model.safetensors", []
    save_model(nt.build_model("timm:mobilenetv3_small_050", classes=7, input_shape=(3, 32, 32)), path)

    def watched(*arguments: Any) -> Any:
        seen.append(str(torch.empty(0).device))
        return timm_network(*arguments)

    monkeypatch.setitem(ZOO, "timm", watched)
    load_model(path)
    tensors, record = read_tensors(path, "model", 1)
    write_tensors(path, "model", 1, tensors, {"architecture": {**record["architecture"], "classes": 8}})
    with pytest.raises(FileFormatError, match="do not fit"):
        load_model(path)
    assert seen == ["meta", "cpu", "meta"]


@pytest.mark.parametrize("name", ["timm:inception_v3", "torchvision:inception_v3"])
def test_a_network_that_needs_larger_images_says_of_which_size(name: str) -> None:
    with pytest.raises(MismatchError, match=r"it runs on images of 96 pixels: --size 96 \(size in Python\)"):
        nt.build_model(name, classes=3, input_shape=(3, 64, 64))
    nt.build_model(name, classes=3, input_shape=(3, 96, 96))


# ------------------------------------------------------------------------------------------------- transformers


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny ResNet and ViT as save_pretrained writes them, with names of classes and an image processor's settings."""
    import_torchvision()
    transformers = pytest.importorskip("transformers", reason="needs the extra hf")
    folder = tmp_path_factory.mktemp("hf")
    names = dict(enumerate(["ant", "bee", "cat"]))
    kinds = {
        "resnet": transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], id2label=names),
        "vit": transformers.ViTConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16,
            patch_size=8, id2label=names,
        ),
    }  # fmt: skip
    transformers.utils.logging.disable_progress_bar()
    for name, config in kinds.items():
        torch.manual_seed(0)
        transformers.AutoModelForImageClassification.from_config(config).save_pretrained(folder / name)
        processor = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.5, 0.5], "size": {"height": 16, "width": 16}}
        (folder / name / "preprocessor_config.json").write_text(json.dumps({**processor, "resample": 2}))
    return {name: folder / name for name in kinds}


@pytest.mark.parametrize(
    ("depth", "words"), [(2_000, "more layers than a file with 1 tensors"), (10**6, "over 524,288")]
)
@pytest.mark.timeout(60)
def test_the_layers_that_a_file_names_are_bounded_by_its_tensors(depth: int, words: str, tmp_path: Path) -> None:
    for name, options in (
        ("timm:vit_tiny_patch16_224", {"depth": depth}),
        ("hf:x", {"config": {"model_type": "vit", "num_hidden_layers": depth}}),
    ):
        architecture = {"classes": 10, "input_shape": [3, 224, 224], "preprocess": "scale"}
        record = {"architecture": {"name": name, "options": options, **architecture}}
        write_tensors(tmp_path / "a.safetensors", "model", 1, {"network.a": torch.zeros(1)}, record)
        with pytest.raises(FileFormatError, match=words):
            nt.load_model(tmp_path / "a.safetensors")


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_a_classifier_of_transformers(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    from transformers import AutoModelForImageClassification

    name = f"hf:{folders[kind]}"
    model = nt.build_model(name, classes=3, input_shape=(3, 16, 16)).eval()
    theirs = AutoModelForImageClassification.from_pretrained(folders[kind]).eval()
    front = Standardize([0.1, 0.2, 0.3], [0.5, 0.5, 0.5])
    with torch.no_grad():
        assert torch.equal(model(images(model)), theirs(front(images(model))).logits)
    assert model.name == f"hf:{kind}"
    assert class_names_of(model.architecture) == ("ant", "bee", "cat")
    assert str(folders[kind]) not in json.dumps(model.architecture)
    same_after_saving(model, tmp_path / "model.safetensors")
    larger = nt.build_model(name, classes=3, input_shape=(3, 20, 20))
    assert larger.architecture["preprocess"] == "standardize@16x16-bilinear"
    costs = nt.measure(model, latency=False)
    assert costs.macs > 0
    assert costs.unsupported == ()


def test_other_classes_and_other_images_for_transformers(folders: dict[str, Path], tmp_path: Path) -> None:
    name = f"hf:{folders['vit']}"
    with pytest.raises(MismatchError, match="has 3 classes, the data 5"):
        nt.build_model(name, classes=5, input_shape=(3, 16, 16))
    further = nt.build_model(name, classes=5, input_shape=(3, 16, 16), pretrained=True)
    kept = nt.build_model(name, classes=3, input_shape=(3, 16, 16))
    body = "vit.embeddings.patch_embeddings.projection.weight"
    assert torch.equal(further.network.state_dict()[body], kept.network.state_dict()[body])
    assert class_names_of(further.architecture) is None
    fresh = nt.build_model(name, classes=5, input_shape=(1, 32, 32), pretrained=False, hidden_dropout_prob=0.5)
    assert fresh.architecture["options"]["config"]["image_size"] == 32
    assert fresh.architecture["options"]["config"]["hidden_dropout_prob"] == 0.5
    same_after_saving(fresh, tmp_path / "model.safetensors")
    with pytest.raises(MismatchError, match="3 channels, the data have 1"):
        nt.build_model(name, classes=3, input_shape=(1, 16, 16))
    with pytest.raises(UsageError, match="has no 'depth'"):
        nt.build_model(name, classes=3, input_shape=(3, 16, 16), depth=3)


def test_code_beside_a_model_of_transformers_is_never_run(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    config = json.loads((folders["vit"] / "config.json").read_text())
    code = {"AutoConfig": "evil.Config", "AutoModelForImageClassification": "evil.Model"}
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "evil", "auto_map": code}))
    with pytest.raises(UsageError, match="code of its own, which is never run"):
        nt.build_model(f"hf:{tmp_path}", classes=3, input_shape=(3, 16, 16))
    kernel = {"auto_map": code, "attn_implementation": "somebody/kernel", "_attn_implementation": "somebody/kernel"}
    (tmp_path / "config.json").write_text(json.dumps({**config, **kernel}))
    for name in ("model.safetensors", "preprocessor_config.json"):
        shutil.copy(folders["vit"] / name, tmp_path)
    model = nt.build_model(f"hf:{tmp_path}", classes=3, input_shape=(3, 16, 16))
    assert not {"auto_map", "attn_implementation"} & model.architecture["options"]["config"].keys()
    assert not (tmp_path / "ran").exists()


def test_a_model_of_transformers_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import_torchvision()
    pytest.importorskip("transformers", reason="needs the extra hf")
    with pytest.raises(DataError, match=r"hf:.*no config\.json there|cannot be loaded"):
        nt.build_model(f"hf:{tmp_path}", classes=3, input_shape=(3, 16, 16))
    with pytest.raises(DataError, match="hf:somebody/nothing: cannot be loaded"):
        nt.build_model("hf:somebody/nothing", classes=3, input_shape=(3, 16, 16), local_files_only=True)
    (tmp_path / "config.json").write_text('{"model_type": "timm_wrapper", "architecture": "resnet18"}')
    with pytest.raises(UsageError, match="name it timm:resnet18"):
        nt.build_model(f"hf:{tmp_path}", classes=3, input_shape=(3, 16, 16))


def test_evaluate_refuses_names_in_another_order_and_takes_the_setting(
    folders: dict[str, Path], tmp_path: Path, call: Call
) -> None:
    """Classes are called bee, cat, ant by the network and ant, bee, cat in the data."""
    config = json.loads((folders["vit"] / "config.json").read_text())
    moved = shutil.copytree(folders["vit"], tmp_path / "moved")
    (moved / "config.json").write_text(json.dumps({**config, "id2label": {"0": "bee", "1": "cat", "2": "ant"}}))
    rng = np.random.default_rng(0)
    names, labels = np.array(["ant", "bee", "cat"]), np.arange(30) % 3
    pixels = rng.integers(0, 256, (30, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x_train=pixels, y_train=labels, x_test=pixels, y_test=labels, classes=names)
    words = ("evaluate", f"hf:{moved}", "--data", str(tmp_path / "a.npz"), "--json", "-q")
    setting = "teacher.class_order=[2,0,1]"
    code, _, err = call(*words)
    assert code == 2
    assert "'ant' is class 0 of the data and 2 of the model" in err
    assert f"the model of evaluate, is put in order by --set '{setting}'" in err
    code, out, err = call(*words, "--set", setting)
    assert code == 0, err
    same = json.loads(call("evaluate", f"hf:{folders['vit']}", *words[2:])[1])
    assert json.loads(out)["nll"] != same["nll"]


def test_options_that_would_leave_weights_of_transformers_at_random_are_refused(folders: dict[str, Path]) -> None:
    name, shape = f"hf:{folders['vit']}", (3, 16, 16)
    with pytest.raises(MismatchError, match=r"its weights do not fit its config with these options, from vit\."):
        nt.build_model(name, classes=3, input_shape=shape, pretrained=True, intermediate_size=48)
    nt.build_model(name, classes=5, input_shape=shape, pretrained=True)


def changed_copy(folder: Path, target: Path, drop: str = "", processor: dict[str, Any] | None = None) -> str:
    """The name of a copy without the tensors whose names begin with `drop`, with this image processor or none."""
    copied = shutil.copytree(folder, target)
    if drop:
        tensors = safetensors.torch.load_file(copied / "model.safetensors")
        kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(drop)}
        assert len(kept) < len(tensors)
        safetensors.torch.save_file(kept, copied / "model.safetensors", {"format": "pt"})
    if processor is None:
        (copied / "preprocessor_config.json").unlink()
    else:
        (copied / "preprocessor_config.json").write_text(json.dumps(processor))
    return f"hf:{copied}"


def test_a_body_of_clip_gets_a_new_head(tmp_path: Path) -> None:
    """Its body is not called as its class says (base_model_prefix is `clip`)."""
    import_torchvision()
    transformers = pytest.importorskip("transformers", reason="needs the extra hf")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision, text = {**sizes, "image_size": 16, "patch_size": 8}, {**sizes, "vocab_size": 20}
    config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=8)
    transformers.CLIPModel(config).save_pretrained(tmp_path / "clip")
    name, shape = f"hf:{tmp_path / 'clip'}", (3, 16, 16)
    with pytest.raises(MismatchError, match=r"lacks 2 of the network's tensors, classifier\.bias first"):
        nt.build_model(name, classes=2, input_shape=shape, preprocess="scale")
    assert nt.build_model(name, classes=3, input_shape=shape, preprocess="scale", pretrained=True).classes == 3


@pytest.mark.parametrize(("kind", "head"), [("vit", "classifier."), ("resnet", "classifier.1.")])
def test_weights_that_a_checkpoint_lacks_are_not_left_at_random(
    kind: str, head: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    shape, settings = (3, 16, 16), json.loads((folders[kind] / "preprocessor_config.json").read_text())
    headless = changed_copy(folders[kind], tmp_path / "headless", head, settings)
    with pytest.raises(MismatchError, match=rf"lacks 2 of the network's tensors, {head}bias first.*pretrained=true"):
        nt.build_model(headless, classes=3, input_shape=shape)
    assert nt.build_model(headless, classes=3, input_shape=shape, pretrained=True).classes == 3
    body = changed_copy(folders[kind], tmp_path / "body", f"{kind}.embe", settings)
    for pretrained, classes in (("whole", 3), (True, 3), (True, 5)):
        with pytest.raises(MismatchError, match=rf"lacks \d+ of the network's tensors, {kind}\.embed"):
            nt.build_model(body, classes=classes, input_shape=shape, pretrained=pretrained)


FLAT = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


@pytest.mark.parametrize(
    ("processor", "reason"),
    [
        (None, "no preprocessor_config.json can be read there"),
        ({**FLAT, "rescale_factor": 1 / 127.5}, "does not scale pixels by 1/255"),
        ({**FLAT, "do_rescale": False}, "does not scale pixels by 1/255"),
        ({**FLAT, "rescale_offset": True}, "has rescale_offset"),
        ({**FLAT, "do_flip_channel_order": True}, "has do_flip_channel_order"),
        ({"size": 16}, "does not state do_normalize, image_mean and image_std"),
        ({**FLAT, "image_std": None}, "does not state do_normalize, image_mean and image_std"),
    ],
)
def test_pretrained_weights_whose_images_are_unknown_need_a_named_preprocessing(
    processor: dict[str, Any] | None, reason: str, folders: dict[str, Path], tmp_path: Path, call: Call
) -> None:
    name, shape = changed_copy(folders["vit"], tmp_path / "copy", processor=processor), (3, 16, 16)
    for options in ({}, {"preprocess": "model"}, {"pretrained": True}):
        with pytest.raises(UsageError, match=rf"{reason}.*preprocess=.*teacher\.preprocess or student\.preprocess"):
            nt.build_model(name, classes=3, input_shape=shape, **options)
    model = nt.build_model(name, classes=3, input_shape=shape, preprocess=Standardize([0.4] * 3, [0.2] * 3))
    assert part(model, "preprocess").mean.tolist() == pytest.approx([0.4] * 3)
    assert nt.build_model(name, classes=3, input_shape=shape, preprocess="scale").architecture["preprocess"] == "scale"
    assert nt.build_model(name, classes=3, input_shape=shape, pretrained=False).architecture["preprocess"] == "scale"
    if processor is None:
        pixels = np.random.default_rng(0).integers(0, 256, (30, 16, 16, 3), dtype=np.uint8)
        np.savez(tmp_path / "a.npz", x=pixels, y=np.arange(30) % 3)
        words = ("evaluate", name, "--data", str(tmp_path / "a.npz"), "-q")
        assert call(*words)[0] == 2
        code, _, err = call(*words, "--set", "teacher.mean=[0.4,0.4,0.4]", "--set", "teacher.std=[0.2,0.2,0.2]")
        assert code == 0, err


@pytest.mark.parametrize(
    ("processor", "mean", "std"),
    [
        ({"image_mean": 0.5, "image_std": 0.5}, 0.5, 0.5),
        ({"do_normalize": False}, 0.0, 1.0),
        ({**FLAT, "include_top": True}, 0.5, 0.25),
        ({**FLAT, "include_top": True, "do_normalize": False}, 0.0, 0.5),
    ],
)
def test_what_an_image_processor_does_to_images(
    processor: dict[str, Any], mean: float, std: float, folders: dict[str, Path], tmp_path: Path
) -> None:
    name = changed_copy(folders["vit"], tmp_path / "copy", processor=processor)
    front: Any = nt.build_model(name, classes=3, input_shape=(3, 16, 16)).preprocess
    assert (front.mean.tolist(), front.std.tolist()) == ([mean] * 3, [std] * 3)


def test_an_image_processor_of_efficientnet_divides_twice(folders: dict[str, Path], tmp_path: Path) -> None:
    """Its own processor prepares the same images to the same numbers."""
    transformers = pytest.importorskip("transformers", reason="needs the extra hf")
    settings = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4], "include_top": True, "do_resize": False}
    name = changed_copy(folders["vit"], tmp_path / "copy", processor=settings)
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    theirs = transformers.EfficientNetImageProcessor(**settings)(list(pixels), return_tensors="pt")["pixel_values"]
    front = nt.build_model(name, classes=3, input_shape=(3, 16, 16)).preprocess
    assert torch.allclose(front(pixels), theirs, atol=1e-4)


def test_a_library_that_states_no_statistics_leaves_them_to_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    built = BuiltNetwork(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), pretrained=True)
    monkeypatch.setitem(ZOO, "timm", lambda *arguments: built)
    with pytest.raises(UsageError, match="library states no mean and std"):
        nt.build_model("timm:x", classes=3, input_shape=(3, 2, 2))
    assert nt.build_model("timm:x", classes=3, input_shape=(3, 2, 2), preprocess="scale").classes == 3
