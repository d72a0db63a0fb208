"""Augmentations that need the teacher live: what they do, that (seed, step) names their draws, who refuses them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

import noisyteacher as nt
from noisyteacher.config import build_config
from noisyteacher.data import epoch_batches
from noisyteacher.data.augment import MAGNITUDE, OPERATIONS, augmented, mixed
from noisyteacher.data.views import apply_view
from noisyteacher.errors import ConfigError, MismatchError
from noisyteacher.objectives import label_inputs, label_term
from noisyteacher.pipeline.compression import compress_config
from noisyteacher.pipeline.single_step import distil_config

IMAGES = torch.randint(0, 256, (12, 3, 10, 14), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def apply_to_all(name: str, images: Tensor, sign: float = 1.0) -> Tensor:
    """One operation on every image."""
    augmented_images = OPERATIONS[name](images.float(), torch.full((len(images),), sign))
    return augmented_images.round().clamp(0, 255).to(torch.uint8)


def pillow(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def test_a_draw_is_a_function_of_seed_and_step() -> None:
    for name in ("mixup", "randaugment"):
        first = augmented(IMAGES, name, 0, 5)[0]
        torch.manual_seed(9)  # the global generator has no say
        assert torch.equal(augmented(IMAGES, name, 0, 5)[0], first)
        assert not torch.equal(augmented(IMAGES, name, 0, 6)[0], first)
        assert not torch.equal(augmented(IMAGES, name, 1, 5)[0], first)
        assert (first.dtype, first.shape) == (torch.uint8, IMAGES.shape)


def test_mixup_blends_by_hand() -> None:
    images = torch.tensor([[[[100, 0]]], [[[200, 50]]]], dtype=torch.uint8)
    augmented_images = mixed(images, torch.tensor([1, 0]), torch.tensor([0.25, 1.0]))
    assert augmented_images.flatten().tolist() == [175, 38, 200, 50]  # 37.5 is rounded to even
    whole, blend = augmented(IMAGES, "mixup", 0, 0)
    assert blend is not None
    partner, share = blend
    assert sorted(partner.tolist()) == list(range(12))
    assert 0 <= float(share.min()) < 0.3 < 0.7 < float(share.max()) <= 1
    assert torch.equal(whole[3], mixed(IMAGES, partner, share)[3])


def test_operations_are_pillows() -> None:
    """The ones that Pillow has too, at the same strength; its own roundings aside."""
    factor = 1 + 0.9 * MAGNITUDE
    oracles: dict[str, Any] = {
        "autocontrast": ImageOps.autocontrast,
        "equalize": ImageOps.equalize,
        "solarize": lambda image: ImageOps.solarize(image, 179),
        "posterize": lambda image: ImageOps.posterize(image, 7),
        "brightness": lambda image: ImageEnhance.Brightness(image).enhance(factor),
        "contrast": lambda image: ImageEnhance.Contrast(image).enhance(factor),
        "color": lambda image: ImageEnhance.Color(image).enhance(factor),
        "sharpness": lambda image: ImageEnhance.Sharpness(image).enhance(factor),
    }
    assert set(OPERATIONS) - set(oracles) == {
        "identity", "rotate", "shear-x", "shear-y", "translate-x", "translate-y"
    }  # fmt: skip
    smooth = torch.nn.functional.interpolate(IMAGES.float(), scale_factor=16, mode="bilinear").round().to(torch.uint8)
    for name, oracle in oracles.items():
        ours = apply_to_all(name, smooth)
        for image, result in zip(smooth, ours, strict=True):
            theirs = torch.from_numpy(np.asarray(oracle(pillow(image))).copy()).permute(2, 0, 1)
            assert (result.int() - theirs.int()).abs().float().mean() < 1.0, name


def test_geometry_by_hand() -> None:
    dot = torch.full((1, 1, 21, 41), 128, dtype=torch.uint8)
    dot[0, 0, 10, 30] = 255  # ten to the right of the middle

    def brightest(name: str, sign: float) -> tuple[int, int]:
        position = int(apply_to_all(name, dot, sign).flatten().argmax())
        return position // 41 - 10, position % 41 - 20

    assert brightest("identity", 1) == (0, 10)
    assert brightest("translate-y", 1)[0] == -round(0.45 * 0.3 * 21)
    assert brightest("translate-x", 1)[1] == 10 - round(0.45 * 0.3 * 41)
    assert brightest("translate-x", -1)[1] == 10 + round(0.45 * 0.3 * 41)
    assert brightest("shear-x", 1) == (0, 10)
    assert abs(brightest("shear-y", 1)[0]) == round(0.3 * 0.3 * 10)
    row, column = brightest("rotate", 1)  # nine degrees
    assert (abs(row), column) == (round(10 * np.sin(np.pi / 20)), 10)
    assert brightest("rotate", -1)[0] == -row
    grey = torch.full((2, 3, 9, 9), 128, dtype=torch.uint8)
    for name in ("rotate", "shear-x", "translate-x"):
        assert set(apply_to_all(name, grey).flatten().tolist()) == {128}, name


def test_constant_images_survive_everything() -> None:
    for name in OPERATIONS:
        for value in (0, 255):
            assert apply_to_all(name, torch.full((2, 3, 8, 8), value, dtype=torch.uint8)).shape == (2, 3, 8, 8)
    assert set(apply_to_all("equalize", torch.full((1, 1, 8, 8), 7, dtype=torch.uint8)).flatten().tolist()) == {7}
    assert set(apply_to_all("autocontrast", torch.full((1, 1, 8, 8), 7, dtype=torch.uint8)).flatten().tolist()) == {7}


DATA = nt.load_data("mnist-5k", limit=40)


def test_batches_are_augmented_after_their_views() -> None:
    def batches(augment: str, first: int = 0) -> list[nt.Batch]:
        return list(
            epoch_batches(
                DATA.train, ("mirror",), seed=0, epoch=1, first=first, batches=4, batch_size=10, every_view=False,
                total_steps=8, device=torch.device("cpu"), augment=augment,
            )
        )  # fmt: skip

    clean, blended = batches("none"), batches("mixup")
    assert clean[2].blend is None
    assert torch.equal(clean[2].images, apply_view(DATA.train.images_at(clean[2].rows), "mirror"))
    assert blended[2].blend is not None
    assert torch.equal(blended[2].rows, clean[2].rows)
    images, partners = augmented(clean[2].images, "mixup", 0, blended[2].step)
    assert torch.equal(blended[2].images, images)
    assert partners is not None
    assert clean[2].labels is not None
    assert torch.equal(blended[2].blend[0], clean[2].labels[partners[0]])
    assert torch.equal(blended[2].blend[1], partners[1])
    assert torch.equal(batches("mixup", 2)[0].images, blended[2].images)  # as after a resume


def test_labels_are_blended_with_the_images() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    batch = nt.Batch(
        IMAGES[:2], torch.tensor([0, 1]), torch.arange(2), ("clean",), torch.zeros(2, dtype=torch.int64), 0, 0, 2, 1,
        (torch.tensor([1, 1]), torch.tensor([0.25, 0.5])),
    )  # fmt: skip
    nll = -torch.log_softmax(logits, 1)
    expected = (0.25 * nll[0, 0] + 0.75 * nll[0, 1] + nll[1, 1]) / 2
    assert torch.allclose(label_term(logits, label_inputs(batch)), expected)


@pytest.fixture(scope="module")
def teacher() -> nt.Classifier:
    model = nt.build_model("mlp800", DATA, seed=1)
    nt.fit(model, DATA.train, nt.supervised(), epochs=1)
    return model


def test_the_teacher_sees_the_images_that_the_student_sees(teacher: nt.Classifier) -> None:
    seen: list[Tensor] = []
    inner = nt.distil(teacher, noise=nt.Noise(sigma=0.5, alpha=0.5))

    def watched(logits: Tensor, batch: nt.Batch) -> Any:
        seen.append(batch.images)
        assert torch.equal(
            teacher(batch.images), nt.predict(teacher, nt.Split(batch.images, None, torch.arange(len(batch.images)),
                                                                "train", "x", DATA.class_names))
        )  # fmt: skip
        return inner(logits, batch)

    student = nt.build_model("mlp800", DATA)
    nt.fit(student, DATA.train, watched, epochs=1, batch_size=20, augment="randaugment")
    assert len(seen) == 2
    assert not any(bool((DATA.train.images == image).flatten(1).all(1).any()) for image in seen[0][:1])


def test_stored_answers_are_refused(teacher: nt.Classifier, tmp_path: Path) -> None:
    store = nt.extract(teacher, DATA.train, tmp_path / "store")
    table = nt.predict(teacher, DATA.train)
    for source in (store, table, [teacher, store]):
        with pytest.raises(MismatchError, match="targets for images the teacher never saw"):
            nt.fit(nt.build_model("mlp800", DATA), DATA.train, nt.distil(source), augment="mixup")
    with pytest.raises(ConfigError, match=r"augment: given 'mixups'.*did you mean 'mixup'"):
        nt.fit(nt.build_model("mlp800", DATA), DATA.train, nt.supervised(), augment="mixups")
    config = build_config({"data": {"limit": 40}, "student": {"augment": "mixup"}, "noise": {"sigma": 0, "alpha": 0}})
    with pytest.raises(MismatchError, match="never saw"):
        distil_config(config, tmp_path / "store")


def test_an_interrupted_training_ends_in_the_same_bytes(teacher: nt.Classifier, tmp_path: Path) -> None:
    def train(folder: Path, stop: int | None = None, **options: Any) -> dict[str, Tensor]:
        def watch(tick: Any) -> None:
            if tick.step == stop:
                raise KeyboardInterrupt

        model = nt.build_model("mlp800", DATA)
        noisy = nt.distil(teacher, noise=nt.Noise(sigma=0.5, alpha=0.5))
        nt.fit(
            model, DATA.train, noisy, val=DATA.val, epochs=2, batch_size=10, augment="mixup", run=folder,
            progress=watch, **options,
        )  # fmt: skip
        return model.state_dict()

    whole = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", stop=6)
    resumed = train(tmp_path / "cut", resume=True)
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
    with pytest.raises(MismatchError, match="augment"):
        nt.fit(
            nt.build_model("mlp800", DATA), DATA.train, nt.distil(teacher), val=DATA.val, epochs=2, batch_size=10,
            augment="randaugment", run=tmp_path / "cut", resume=True,
        )  # fmt: skip


def test_a_compression_asks_live_and_stores_only_what_it_compares(teacher: nt.Classifier, tmp_path: Path) -> None:
    nt.save_model(teacher, tmp_path / "teacher.safetensors")
    config = build_config(
        {
            "data": {"limit": 40},
            "teacher": {"name": str(tmp_path / "teacher.safetensors")},
            "student": {"name": "mlp800", "augment": "mixup", "epochs": 1, "batch_size": 20},
            "noise": {"sigma": 0.5, "alpha": 0.5},
            "run": {"output_dir": str(tmp_path / "runs")},
        }
    )
    result = compress_config(config)
    stores = sorted(path.name for path in (result.path / "logits").iterdir())
    assert [name.split("-")[-2] for name in stores] == ["test", "val"]
    assert [row.name for row in result.rows] == ["teacher", "labels", "clean", "noisy"]
    assert nt.Result.read(result.path, result.describe()).describe() == result.describe()
