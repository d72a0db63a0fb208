"""Extraction: the store holds what the teacher says in eval mode of every row and view, whatever happens on the way."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import noisyteacher as nt
from helpers import part
from noisyteacher.data import Split
from noisyteacher.device import channels_last, inference
from noisyteacher.errors import MismatchError, StoreError, UnknownNameError, UsageError, WriteError
from noisyteacher.extract import extract
from noisyteacher.models import (
    Standardize,
    as_classifier,
    code_fingerprint,
    preprocess_fingerprint,
    weights_fingerprint,
)
from noisyteacher.pipeline.preflight import check_stored_logits
from noisyteacher.store import LogitStore

ROWS, SHAPE, CLASSES = 30, (2, 4, 4), 3
NAMES = ("a", "b", "c")


class Counting(nn.Module):
    """A linear teacher that counts the images it is shown; in training, or with `noise`, it says something else."""

    def __init__(self, seed: int = 0, outputs: int = CLASSES) -> None:
        super().__init__()
        self.linear = nn.Linear(32, outputs)
        self.drop = nn.Dropout(0.5)
        self.images_seen = 0
        rng = np.random.default_rng(seed)
        with torch.no_grad():
            self.linear.weight.copy_(torch.from_numpy(rng.normal(size=(outputs, 32)).astype(np.float32)))
            self.linear.bias.copy_(torch.from_numpy(rng.normal(size=outputs).astype(np.float32)))

    def forward(self, images: Tensor) -> Any:
        self.images_seen += len(images)
        return self.linear(self.drop(images.flatten(1)))


def pixels(seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (40, *SHAPE), dtype=np.uint8)


def split(seed: int = 0, rows: int = ROWS, **changes: Any) -> Split:
    """Row r is image 39 - r of 40: a row is not a place in the tensor."""
    fields: dict[str, Any] = {"labels": None, "role": "train", "name": "toy", "class_names": NAMES}
    return Split(images=torch.from_numpy(pixels(seed)), index=torch.arange(39, 39 - rows, -1), **{**fields, **changes})


def by_hand(teacher: Counting, view: str, seed: int = 0) -> np.ndarray[Any, Any]:
    """The teacher's logits [ROWS, CLASSES] in float64 by numpy alone."""
    images = pixels(seed)[::-1][:ROWS].astype(np.float64) / 255
    if view == "mirror":
        images = images[..., ::-1]
    if view == "crop-y0-x4":  # four rows of zeros above, the window at the top: all that is left is padding
        images = np.zeros_like(images)
    weight, bias = (t.detach().numpy().astype(np.float64) for t in (teacher.linear.weight, teacher.linear.bias))
    return images.reshape(ROWS, -1) @ weight.T + bias


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


ALL = torch.arange(ROWS)
VIEWS = ("clean", "mirror", "crop-y0-x4")


# ------------------------------------------------------------------------------------------------- the right values


@pytest.mark.parametrize("rows_per_shard", [0, 7])
def test_the_store_holds_the_teachers_answers_row_by_row_and_view_by_view(tmp_path: Path, rows_per_shard: int) -> None:
    teacher = Counting()
    store = extract(teacher, split(), tmp_path / "s", views=VIEWS, batch_size=4, rows_per_shard=rows_per_shard)
    assert (store.views, store.rows, store.classes) == (VIEWS, ROWS, CLASSES)
    for view in VIEWS:
        np.testing.assert_allclose(store.logits(view, ALL).numpy(), by_hand(teacher, view), rtol=0, atol=1e-5)
    some = torch.tensor([29, 3, 3, 14])
    np.testing.assert_allclose(store.logits("mirror", some).numpy(), by_hand(teacher, "mirror")[some], atol=1e-5)
    for model in (teacher, as_classifier(teacher)):
        assert store.verify(model, split()).max_abs_difference <= 1e-5


def test_views_are_stored_in_the_order_asked_and_families_are_spelled_out(tmp_path: Path) -> None:
    teacher = Counting()
    swapped = extract(teacher, split(), tmp_path / "a", views="mirror,clean")
    assert swapped.views == ("mirror", "clean")
    np.testing.assert_allclose(swapped.logits("clean", ALL).numpy(), by_hand(teacher, "clean"), atol=1e-5)
    crops = extract(teacher, split(rows=2), tmp_path / "b", views="crop")
    assert len(crops.views) == 81
    assert len(set(crops.views)) == 81
    with pytest.raises(UnknownNameError, match="did you mean 'mirror'"):
        extract(teacher, split(), tmp_path / "c", views="miror")


def test_the_batch_size_changes_no_value(tmp_path: Path) -> None:
    stores = [
        extract(Counting(), split(), tmp_path / str(size), views=VIEWS, batch_size=size) for size in (1, 3, 8, 30, 512)
    ]
    for store in stores[1:]:
        for view in VIEWS:
            torch.testing.assert_close(store.logits(view, ALL), stores[0].logits(view, ALL), rtol=0, atol=1e-5)
    with pytest.raises(UsageError, match="batch_size"):
        extract(Counting(), split(), tmp_path / "x", batch_size=0)


@pytest.mark.parametrize("wrap", ["tuple", "mapping", "object"])
def test_logits_may_come_in_a_tuple_a_mapping_or_an_object(tmp_path: Path, wrap: str) -> None:
    class Named(NamedTuple):
        z: Tensor
        logits: Tensor

    class Wrapped(Counting):
        def forward(self, images: Tensor) -> Any:
            logits = super().forward(images)
            extra = torch.zeros(len(images), 99)
            if wrap == "tuple":
                return logits, extra
            return {"logits": logits, "z": extra} if wrap == "mapping" else Named(extra, logits)

    teacher = Wrapped()
    store = extract(teacher, split(), tmp_path / "s")
    np.testing.assert_allclose(store.logits("clean", ALL).numpy(), by_hand(teacher, "clean"), atol=1e-5)


def test_layers_without_shapes_are_to_be_run_first(tmp_path: Path) -> None:
    lazy = nn.Sequential(nn.Flatten(), nn.LazyLinear(CLASSES), nn.LazyBatchNorm1d())
    with pytest.raises(UsageError, match=r"1\.weight has no shape yet.*run it once on a batch first"):
        extract(lazy, split(), tmp_path / "s")
    lazy(torch.zeros(2, *SHAPE))
    assert extract(lazy, split(), tmp_path / "s").rows == ROWS


def test_bf16_arithmetic_is_recorded_and_close(tmp_path: Path) -> None:
    teacher = Counting()
    store = extract(teacher, split(), tmp_path / "s", precision="bf16")
    assert (store.plan.precision, store.dtype) == ("bf16", "float32")
    exact = by_hand(teacher, "clean")
    stored = store.logits("clean", ALL).numpy()
    # 32 products of values rounded to 8 bits: each is off by 2^-8 of itself at most
    np.testing.assert_allclose(stored, exact, rtol=0, atol=32 * 3 * 2**-8)
    assert np.abs(stored - exact).max() > 1e-4  # it was bf16
    with pytest.raises(UnknownNameError, match="precision"):
        extract(teacher, split(), tmp_path / "t", precision="fp61")
    with pytest.raises(UsageError, match="cannot be used here"):
        extract(teacher, split(), tmp_path / "t", device="quantum")
    assert not (tmp_path / "t").exists()


# ----------------------------------------------------------------------------------------------- the teacher as it was


class Mixed(nn.Module):
    """In training, except for a batch norm that its owner has frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.thawed, self.frozen = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
        self.drop, self.head = nn.Dropout(0.9), Counting()
        self.modes: set[tuple[bool, ...]] = set()
        self.train()
        self.frozen.eval()

    def forward(self, images: Tensor) -> Tensor:
        self.modes.add((*(module.training for module in self.modules()), torch.is_grad_enabled()))
        logits: Tensor = self.head(self.drop(self.frozen(self.thawed(images))))
        return logits


def test_the_teacher_is_in_eval_mode_meanwhile_and_every_submodule_as_before_afterwards(tmp_path: Path) -> None:
    teacher = Mixed()
    before = {name: module.training for name, module in teacher.named_modules()}
    assert set(before.values()) == {True, False}
    prints, state = weights_fingerprint(teacher), torch.get_rng_state()
    store = extract(teacher, split(), tmp_path / "s", batch_size=8)
    assert {flag for flags in teacher.modes for flag in flags} == {False}  # no training, no gradients
    assert {name: module.training for name, module in teacher.named_modules()} == before
    assert weights_fingerprint(teacher) == prints  # the batch norm's statistics did not move
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in teacher.parameters())
    # running mean 0 and variance 1: both batch norms divide by sqrt(1 + 1e-5)
    images = pixels()[::-1][:ROWS].astype(np.float64) / 255 / (1 + 1e-5)
    weight = teacher.head.linear.weight.detach().numpy().astype(np.float64)
    expected = images.reshape(ROWS, -1) @ weight.T + teacher.head.linear.bias.detach().numpy()
    np.testing.assert_allclose(store.logits("clean", ALL).numpy(), expected, atol=1e-5)


def test_the_teacher_is_as_before_after_a_failure_too(tmp_path: Path) -> None:
    teacher = Mixed()
    before = [module.training for module in teacher.modules()]

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(teacher, split(), tmp_path / "s", progress=stop)
    assert [module.training for module in teacher.modules()] == before
    assert torch.is_grad_enabled()


def test_a_model_that_does_work_in_its_own_train_gets_to_undo_it() -> None:
    class Merging(nn.Module):
        merged = False

        def train(self, mode: bool = True) -> Merging:
            self.merged = not mode
            return super().train(mode)

    model = Merging().train()
    with inference(model):
        assert model.merged
    assert not model.merged
    model.eval()
    model.merged = False  # its owner's wish: it must not be called when the mode does not change
    with inference(model):
        assert not model.merged


def test_convolutions_are_lent_channels_last_and_given_back_as_they_were() -> None:
    last = torch.channels_last
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 2))
    second = part(model, "1")
    second.weight.data = second.weight.data.contiguous(memory_format=last)
    before = [(parameter.data_ptr(), parameter.stride()) for parameter in model.parameters()]
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with inference(model):
        answers = model(images)
        with channels_last(model, images):
            assert all(
                parameter.is_contiguous(memory_format=last) for parameter in model.parameters() if parameter.dim() == 4
            )
            assert not part(model, "0").weight.is_contiguous()
            torch.testing.assert_close(model(images), answers)
            part(model, "0").weight.add_(1)
            written = part(model, "0").weight.clone()
    assert [(parameter.data_ptr(), parameter.stride()) for parameter in model.parameters()] == before
    assert torch.equal(part(model, "0").weight, written)


class Looking(nn.Conv2d):
    """Remembers how its weight lay."""

    seen: bool | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.weight.is_contiguous(memory_format=torch.channels_last)
        return super().forward(x)


class Viewing(nn.Module):
    """Flattens as many tutorials do, which refuses channels-last memory."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(1, 3, 3), Looking(3, 2, 3), nn.Linear(1152, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.second(self.first(x)).view(-1, 1152))
        return out


def test_teachers_are_asked_channels_last(tmp_path: Path) -> None:
    look = Looking(3, 2, 3)
    network = nn.Sequential(nn.Conv2d(1, 3, 3), look, nn.Flatten(), nn.Linear(1152, 10))
    teacher = as_classifier(network, input_shape=(1, 28, 28))
    data = nt.load_data("mnist-5k", limit=20)
    store = extract(teacher, data.train, tmp_path / "s")
    assert look.seen
    look.seen = None
    assert store.verify(teacher, data.train).max_abs_difference == 0
    assert look.seen
    look.seen = None
    assert check_stored_logits(teacher, data.train, store).passed
    assert look.seen
    look.seen = None
    nt.evaluate(teacher, data.val)
    assert look.seen


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_teachers_that_flatten_by_view_are_asked_as_they_are(tmp_path: Path, precision: str) -> None:
    teacher = as_classifier(Viewing(), input_shape=(1, 28, 28))
    data = nt.load_data("mnist-5k", limit=100)
    store = extract(teacher, data.train, tmp_path / "s", precision=precision)
    assert part(teacher, "network.second").seen is False
    assert store.verify(teacher, data.train).max_abs_difference == 0
    assert check_stored_logits(teacher, data.train, store).passed
    nt.evaluate(teacher, data.val)
    history = nt.fit(teacher, data.train, nt.supervised(), val=data.val, epochs=1, precision=precision)
    assert len(history.epochs) == 1
    assert part(teacher, "network.second").seen is False


def test_images_are_asked_in_batches_that_fit_the_device(tmp_path: Path) -> None:
    batch_sizes: list[int] = []

    class Teacher(Counting):
        def forward(self, images: Tensor) -> Any:
            batch_sizes.append(len(images))
            return super().forward(images)

    images = torch.randint(0, 256, (300, 2, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    many = Split(images, None, torch.arange(300), "train", "many", tuple(map(str, range(CLASSES))))
    extract(Teacher(), many, tmp_path / "s", device="cpu")
    assert max(batch_sizes) == 128


def test_what_a_teacher_caches_meanwhile_still_works_in_training(tmp_path: Path) -> None:
    class Caching(Counting):
        cache: Tensor | None = None

        def forward(self, images: Tensor) -> Any:
            if self.cache is None:
                self.cache = torch.ones(CLASSES)
            return super().forward(images) * self.cache

    teacher = Caching()
    extract(teacher, split(), tmp_path / "s")
    teacher(torch.zeros(2, 32)).sum().backward()
    assert teacher.linear.bias.grad is not None


# ------------------------------------------------------------------------------------------------- interruptions


def test_an_interrupted_extraction_goes_on_and_ends_as_the_same_bytes(tmp_path: Path) -> None:
    options: dict[str, Any] = {"views": VIEWS, "batch_size": 3, "rows_per_shard": 7}
    extract(Counting(), split(), tmp_path / "whole", **options)
    teacher = Counting()

    def stop(done: int, total: int) -> None:
        if done > 50:  # in the third of five shards, each of 7 rows x 3 views
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(teacher, split(), tmp_path / "s", progress=stop, **options)
    assert sorted(contents(tmp_path / "s")) == ["shard-00000.safetensors", "shard-00001.safetensors"]
    with pytest.raises(StoreError, match="unfinished"):
        LogitStore.open(tmp_path / "s")
    kept = {name: (tmp_path / "s" / name).stat().st_mtime_ns for name in contents(tmp_path / "s")}
    teacher.images_seen, reports = 0, []
    extract(teacher, split(), tmp_path / "s", progress=lambda *at: reports.append(at), **options)
    # 2 images to learn the classes, 3 + 1 + 3 to see that it is steady, 16 rows x 3 views; 8 kept rows in one view
    assert teacher.images_seen == 2 + 7 + 48 + 8
    assert reports[0] == (42 + 3, 90)
    assert reports[-1] == (90, 90)
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")
    assert {name: (tmp_path / "s" / name).stat().st_mtime_ns for name in kept} == kept


def test_a_finished_store_is_reused_and_a_sample_of_it_compared(tmp_path: Path) -> None:
    teacher = as_classifier(Counting(), classes=CLASSES, input_shape=SHAPE)
    extract(teacher, split(), tmp_path / "s", rows_per_shard=7, views=VIEWS)
    before = contents(tmp_path / "s")
    part(teacher, "network").images_seen = 0
    store = extract(teacher, split(), tmp_path / "s", batch_size=1, views=VIEWS)
    assert teacher.network.images_seen == 8, "of the first view alone"
    assert store.rows == ROWS
    assert contents(tmp_path / "s") == before
    extract(teacher, split(), tmp_path / "s", rows_per_shard=7, overwrite=True, views=VIEWS)
    assert teacher.network.images_seen == 8 + 7 + 3 + 4 + ROWS * len(VIEWS)  # its half, 4 alone, all rows
    assert contents(tmp_path / "s") == before


class Shifted(Counting):
    """Its module prints and weighs the same whatever its mean is."""

    mean = 0.5

    def forward(self, images: Tensor) -> Any:
        return super().forward(images - self.mean)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_store_of_a_teacher_whose_attribute_has_changed_is_not_returned(tmp_path: Path, precision: str) -> None:
    teacher = Shifted()
    options: dict[str, Any] = {"views": VIEWS, "rows_per_shard": 7, "precision": precision}
    extract(teacher, split(), tmp_path / "s", **options)
    before = contents(tmp_path / "s")
    teacher.mean = 0.4
    words = r"view 'clean', row 0: the model's logits are .* although weights and code .*overwrite=True.*another folder"
    with pytest.raises(MismatchError, match=words):
        extract(teacher, split(), tmp_path / "s", **options)
    assert contents(tmp_path / "s") == before
    extract(teacher, split(), tmp_path / "s", overwrite=True, **options)
    extract(teacher, split(), tmp_path / "s", **options)


def test_shards_of_a_teacher_whose_attribute_has_changed_are_not_mixed_with_new_ones(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done > 20:
            raise KeyboardInterrupt

    teacher = Shifted()
    with pytest.raises(KeyboardInterrupt):
        extract(teacher, split(), tmp_path / "s", rows_per_shard=7, batch_size=7, progress=stop)
    teacher.mean = 0.4
    for _ in range(2):
        with pytest.raises(MismatchError, match="although weights and code"):
            extract(teacher, split(), tmp_path / "s", rows_per_shard=7)
        with pytest.raises(StoreError, match="unfinished"):
            LogitStore.open(tmp_path / "s")


def test_shards_of_another_teacher_are_not_kept(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(Counting(1), split(), tmp_path / "s", rows_per_shard=7, batch_size=7, progress=stop)
    teacher = Counting(2)
    store = extract(teacher, split(), tmp_path / "s", rows_per_shard=7)
    np.testing.assert_allclose(store.logits("clean", ALL).numpy(), by_hand(teacher, "clean"), atol=1e-5)


def test_a_full_disk_stops_it_with_a_sentence_and_costs_one_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced, budget = os.replace, [3]

    def full(source: Any, target: Any) -> None:
        budget[0] -= 1
        if budget[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        replaced(source, target)

    teacher = Mixed()
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(WriteError, match=r"shard-00003.*disk is full"):
            extract(teacher, split(), tmp_path / "s", rows_per_shard=7)
    assert teacher.training
    assert len(contents(tmp_path / "s")) == 3
    teacher.head.images_seen = 0
    extract(teacher, split(), tmp_path / "s", rows_per_shard=7)
    assert teacher.head.images_seen == 2 + 14 + 9 + 8  # classes, steadiness, rows 21 to 29, 8 kept rows
    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", lambda *_: (_ for _ in ()).throw(OSError(errno.EROFS, "Read-only file system")))
        with pytest.raises(WriteError, match="read-only"):
            extract(teacher, split(), tmp_path / "t")


# ------------------------------------------------------------------------------------------------- the wrong store


def test_a_store_of_another_teacher_data_preprocessing_or_network_is_refused_naming_it(tmp_path: Path) -> None:
    def teacher(seed: int = 0, mean: float = 0.5) -> nn.Module:
        front = Standardize(torch.full((2,), mean), torch.full((2,), 0.25))
        return as_classifier(Counting(seed), classes=CLASSES, input_shape=SHAPE, preprocess=front)

    class Renamed(Counting):
        """The same weights in another network."""

    extract(teacher(), split(), tmp_path / "s")
    before = contents(tmp_path / "s")
    with pytest.raises(MismatchError, match=r"made from teacher .*overwrite=True"):
        extract(teacher(seed=1), split(), tmp_path / "s")
    with pytest.raises(MismatchError, match="made from data "):
        extract(teacher(), split(seed=1), tmp_path / "s")
    with pytest.raises(MismatchError, match="made from data "):
        extract(teacher(), split(rows=29), tmp_path / "s")
    with pytest.raises(MismatchError, match="made from data "):  # the same images in another order
        extract(teacher(), split().subset(ALL.flip(0)), tmp_path / "s")
    with pytest.raises(MismatchError, match="made from preprocessing "):
        extract(teacher(mean=0.4), split(), tmp_path / "s")
    with pytest.raises(MismatchError, match="made from views"):
        extract(teacher(), split(), tmp_path / "s", views=VIEWS)
    with pytest.raises(MismatchError, match="made from precision fp32"):
        extract(teacher(), split(), tmp_path / "s", precision="bf16")
    other = as_classifier(Renamed(), classes=CLASSES, input_shape=SHAPE, preprocess=part(teacher(), "preprocess"))
    with pytest.raises(MismatchError, match="made from code "):
        extract(other, split(), tmp_path / "s")
    assert contents(tmp_path / "s") == before
    replaced = extract(teacher(seed=1), split(), tmp_path / "s", overwrite=True)
    replaced.check(teacher=weights_fingerprint(teacher(seed=1)))


@pytest.mark.parametrize("bare", [True, False])
def test_the_fingerprints_are_those_of_the_model_as_it_was_given(tmp_path: Path, bare: bool) -> None:
    teacher: nn.Module = Counting()
    if not bare:
        teacher = as_classifier(teacher, classes=CLASSES, input_shape=SHAPE)
    store = extract(teacher, split(), tmp_path / "s")
    store.check(
        teacher=weights_fingerprint(teacher),
        data=split().fingerprint,
        preprocessing=preprocess_fingerprint(teacher),
        code=code_fingerprint(teacher),
    )
    assert store.meta["data"] == "toy"
    assert store.meta["class_names"] == list(NAMES)


@pytest.mark.parametrize("batch_size", [0, 1.5, "8", True])
def test_a_batch_size_is_a_whole_number(tmp_path: Path, batch_size: Any) -> None:
    with pytest.raises(UsageError, match=f"batch_size={batch_size!r}"):
        extract(Counting(), split(), tmp_path / "s", batch_size=batch_size)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("outputs", [1, 2, 4])
def test_a_teacher_with_other_classes_than_the_data_is_refused(tmp_path: Path, outputs: int) -> None:
    with pytest.raises(MismatchError, match="class"):
        extract(Counting(outputs=outputs), split(), tmp_path / "s")
    assert not (tmp_path / "s").exists()


# ------------------------------------------------------------------------------------------------- bad answers


@pytest.mark.parametrize("row", [0, 11])
def test_logits_that_are_not_finite_stop_it_with_view_and_row(tmp_path: Path, row: int) -> None:
    marked = torch.from_numpy(pixels())[39 - row]

    class Diverged(Counting):
        def forward(self, images: Tensor) -> Any:
            logits = super().forward(images)
            hit = (images == marked / 255).flatten(1).all(1)
            return torch.where(hit[:, None], torch.tensor(float("nan")), logits)

    teacher = Diverged()
    with pytest.raises(StoreError, match=f"view 'clean', row {row}: .*nan.*not finite"):
        extract(teacher, split(), tmp_path / "s", batch_size=4)
    # At once, not when the shard is full: 2 images to learn the classes, then the first batch, or its half, four images
    # alone and three batches.
    assert teacher.images_seen == 2 + (4 if row == 0 else 4 + 2 + 4 + 12)
    assert not (tmp_path / "s" / "store.json").exists()


@pytest.mark.parametrize("trap", ["dropout as a function", "batch norm without running statistics"])
def test_a_teacher_whose_answer_depends_on_the_call_or_the_batch_is_refused(tmp_path: Path, trap: str) -> None:
    class Unsteady(Counting):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(32, track_running_stats=False)

        def forward(self, images: Tensor) -> Any:
            flat = images.flatten(1)
            return self.linear(nn.functional.dropout(flat, 0.5) if trap.startswith("dropout") else self.norm(flat))

    with pytest.raises(MismatchError, match="two calls"):
        extract(Unsteady(), split(), tmp_path / "s")


def test_a_network_that_answers_otherwise_to_a_single_image_is_refused(tmp_path: Path) -> None:
    """Statistics of a large batch hardly differ from those of its half; and it is refused as a live teacher too."""

    class Lone(Counting):
        def forward(self, images: Tensor) -> Any:
            return super().forward(images) + float(len(images) == 1)

    with pytest.raises(MismatchError, match="two calls"):
        extract(Lone(), split(), tmp_path / "s")
    student = nt.build_model(nn.Sequential(nn.Flatten(), nn.Linear(32, CLASSES)), split())
    with pytest.raises(MismatchError, match="two calls"):
        nt.fit(student, split(), nt.distil(Lone()), epochs=1, progress=False)


@pytest.mark.data
def test_real_digits(real_data: Path, tmp_path: Path) -> None:
    data = pytest.importorskip("noisyteacher.data").load_data("mnist", root=real_data, download=False)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    store = extract(teacher, data.val, tmp_path / "s", views="clean,mirror", rows_per_shard=3000)
    rows = torch.tensor([0, 2999, 3000, 9999])
    images = data.val.images_at(rows).numpy()[..., ::-1].reshape(4, 784).astype(np.float64) / 255
    weight, bias = (t.detach().numpy().astype(np.float64) for t in (part(teacher, "1").weight, part(teacher, "1").bias))
    np.testing.assert_allclose(store.logits("mirror", rows).numpy(), images @ weight.T + bias, atol=1e-5)


@pytest.mark.parametrize("how", [{"precision": "bf16"}, {"dtype": "float16"}])
def test_a_store_that_rounds_is_verified_against_its_own_teacher_and_no_other(
    tmp_path: Path, how: dict[str, Any]
) -> None:
    """The teacher is asked in the precision of the store, and what rounding makes is no difference."""
    teacher = as_classifier(Counting())
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(50)  # logits in the hundreds, where 1e-3 is less than either rounding
    store = extract(teacher, split(), tmp_path / "s", **how)
    assert store.verify(teacher, split()).rows == ROWS
    assert check_stored_logits(teacher, split(), store).passed
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter[0] *= 1.1
    with pytest.raises(StoreError, match="away from the stored ones"):
        store.verify(teacher, split())
    assert not check_stored_logits(teacher, split(), store).passed
