"""Where targets come from: several teachers, live and stored ones, the noisy teacher for other people's loops."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisyteacher as nt
from helpers import draw_of, perturbed
from noisyteacher.distributed import World
from noisyteacher.errors import (
    ConfigError,
    DataError,
    MismatchError,
    TrainingError,
    UnknownNameError,
    UsageError,
)
from noisyteacher.evaluate import judge
from noisyteacher.rng import derive_seed, generator
from noisyteacher.teachers import as_teacher, geometric_logits

ROWS, CLASSES = 24, 3


def split(rows: int = ROWS, labels: bool = True) -> nt.Split:
    images = torch.randint(0, 256, (rows, 1, 4, 4), generator=generator(0, "images"), dtype=torch.uint8)
    return nt.Split(
        images, torch.arange(rows) % CLASSES if labels else None, torch.arange(rows), "train", "toy", tuple("abc")
    )


def batch(step: int = 0, seed: int = 0) -> nt.Batch:
    rows = torch.arange(ROWS)
    numbers = torch.zeros(ROWS, dtype=torch.int64)
    return nt.Batch(split().images, split().labels, rows, ("clean",), numbers, step, seed, ROWS)


def table(seed: int) -> Tensor:
    return torch.randn(ROWS, CLASSES, generator=generator(seed, "table")) * 3


def net(classes: int = CLASSES) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, classes))


def test_geometric_mean_by_hand() -> None:
    """Positive logits as in the paper; two negative ones keep their sign; opposite signs and zeros give 0."""
    logits = torch.tensor([[[4.0, -2.0, 3.0, 0.0]], [[9.0, -8.0, -3.0, 5.0]]])
    assert torch.allclose(geometric_logits(logits), torch.tensor([[6.0, -4.0, 0.0, 0.0]]), atol=1e-6)
    assert torch.allclose(geometric_logits(logits[:1].repeat(3, 1, 1)), logits[0], atol=1e-5)


def test_geometric_mean_is_continuous_where_a_sign_changes() -> None:
    near = [float(geometric_logits(torch.tensor([[[x]], [[4.0]]]))) for x in (-1e-10, 0.0, 1e-10)]
    assert max(abs(value) for value in near) < 1e-4


def test_several_teachers() -> None:
    tables = [table(1), table(2), table(3)]
    assert torch.allclose(as_teacher(tables).logits(batch()), torch.stack(tables).mean(0))
    assert torch.allclose(as_teacher(tables, "geometric").logits(batch()), geometric_logits(torch.stack(tables)))
    picks = []
    for step in range(60):
        result = as_teacher(tables, "pick").logits(batch(step))
        picks.append(next(i for i, logits_of_one in enumerate(tables) if torch.equal(logits_of_one, result)))
        assert picks[-1] == derive_seed(0, "teacher", step) % 3
    assert set(picks) == {0, 1, 2}
    with pytest.raises(UnknownNameError, match="did you mean 'geometric'"):
        nt.distil(tables, combine="geometrc")
    with pytest.raises(ConfigError, match="no effect with one teacher"):
        nt.distil(tables[0], combine="pick")


def test_only_a_pick_by_row_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    tables, drawn = [table(1), table(2)], list[object]()

    def counted(seed: int, *purpose: str | int) -> torch.Generator:
        drawn.append((seed, *purpose))
        return generator(seed, *purpose)

    monkeypatch.setattr("noisyteacher.teachers.generator", counted)
    for combine in ("mean", "geometric", "pick"):
        as_teacher(tables, combine).logits(batch(step=4))
    assert not drawn
    as_teacher(tables, "pick-row").logits(batch(step=4))
    assert drawn == [(0, "teacher", 4)]


def test_views_of_one_memory_are_teachers_of_their_own() -> None:
    memory = torch.arange(9.0).view(3, 3)
    keys = {as_teacher(view).key for view in (memory, memory.T, memory[:2], memory.view(torch.int32))}
    assert len(keys) == 4
    assert as_teacher(memory).key == as_teacher(memory.view(3, 3)).key


def test_live_and_stored_teachers_agree(tmp_path: Path) -> None:
    teacher = nt.build_model(net(), split())
    store = nt.extract(teacher, split(), tmp_path / "s", views="clean,mirror")
    rows = torch.arange(ROWS)
    numbers = torch.arange(ROWS) % 2
    views = ("mirror", "clean")  # not the store's order: joined by name
    images = split().images_at(rows, views, numbers)
    mixed = nt.Batch(images, None, rows, views, numbers, 0, 0, ROWS)
    for source in (store, str(tmp_path / "s")):
        assert torch.allclose(as_teacher(source).logits(mixed), as_teacher(teacher).logits(mixed), atol=1e-6)


@pytest.mark.parametrize(
    ("stored", "ours", "moved"),
    [
        ("abc", "bca", "'b' is class 0 of the data and 1 of the store, 'c' is class 1 of the data and 2 of the "),
        ("abc", "axb", "'b' is class 2 of the data and 1 of the store"),
        ("abc", "axc", ""),
        (["A b", "c", "d"], ["c", "a-b", "d"], "'c' is class 0"),
        (["a b", "a-b", "d"], ["a b", "a-b", "d"], ""),
        ("012", "120", ""),
        ("120", "012", ""),
        ("021", "102", "'1' is class 0 of the data and 2 of the store"),
        ("abc", "xyz", ""),
    ],
)
def test_a_store_whose_classes_stand_in_another_order_is_refused(
    stored: Sequence[str], ours: Sequence[str], moved: str, tmp_path: Path
) -> None:
    store = nt.extract(net(), replace(split(), class_names=tuple(stored)), tmp_path / "s")
    renamed = replace(split(), class_names=tuple(ours))
    refused = pytest.raises(MismatchError, match=f"{moved}.*: load the data with the classes of the store")
    with refused if moved else nullcontext():
        nt.fit(net(), renamed, nt.distil(store), epochs=1)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (torch.ones(ROWS - 1, CLASSES), r"23 rows of logits for a split of 24"),
        (torch.ones(ROWS, 1), r"\[24, 1\]"),
        (torch.ones(ROWS, 5), r"has 5 class\(es\), the student 3"),
        (net(1), r"has 1 class\(es\), the student 3|returned logits"),
        (net(7), r"has 7 class\(es\), the student 3"),
        ([torch.ones(ROWS, CLASSES), torch.ones(ROWS, 4)], r"has 4 class\(es\), the student 3"),
    ],
)
def test_teachers_that_do_not_fit_are_refused_before_the_first_step(source: object, message: str) -> None:
    student = net()
    before = [value.clone() for value in student.parameters()]
    with pytest.raises(MismatchError, match=message):
        nt.fit(student, split(), nt.distil(source), epochs=1)
    assert all(torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True))


def test_logits_that_are_not_finite_are_refused() -> None:
    bad = table(1)
    bad[7, 1] = float("nan")
    with pytest.raises(TrainingError, match="row 7"):
        nt.fit(net(), split(), nt.distil(bad), epochs=1)


def test_settings_of_distil() -> None:
    with pytest.raises(ConfigError, match=r"temperature=4\.0: has no effect"):
        nt.distil(table(1), temperature=4.0)
    with pytest.raises(ConfigError, match=r"label_weight=1\.0"):
        nt.distil(table(1), label_weight=1.0)
    with pytest.raises(UnknownNameError, match="did you mean 'soft_targets'"):
        nt.distil(table(1), loss="soft_target")
    with pytest.raises(UsageError, match="given: int"):
        nt.distil(3)
    with pytest.raises(UsageError, match="noise is an"):
        nt.distil(table(1), noise=0.5)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no labels"):
        nt.fit(net(), split(labels=False), nt.distil(table(1), label_weight=0.5), epochs=1)
    with pytest.raises(DataError, match="no labels"):
        nt.fit(net(), split(labels=False), nt.supervised(), epochs=1)


def test_the_label_term_is_of_the_students_own_logits() -> None:
    """Noise on the student perturbs what is compared with the teacher, not what is compared with the labels."""
    student = table(2)
    noise = nt.Noise(sigma=0.9, alpha=1.0, draw="row", target="student")
    _, numbers = nt.distil(table(1), label_weight=0.25, noise=noise)(student.clone().requires_grad_(), batch())
    label_loss = nn.functional.cross_entropy(student, batch().labels)  # type: ignore[arg-type]
    assert numbers["train/label_term"] == pytest.approx(float(label_loss))
    assert numbers["noise/selected_%"] == 100


def test_label_weight_by_hand() -> None:
    student = table(2).requires_grad_()
    teacher_term = float(nt.logit_regression(student.detach(), table(1)))
    label_term = float(nn.functional.cross_entropy(student.detach(), batch().labels))  # type: ignore[arg-type]
    loss, numbers = nt.distil(table(1), label_weight=0.25)(student, batch())
    assert float(loss.detach()) == pytest.approx(0.75 * teacher_term + 0.25 * label_term)
    assert numbers == pytest.approx({"train/teacher_term": teacher_term, "train/label_term": label_term})


def test_noise_on_the_students_side() -> None:
    noise = nt.Noise(sigma=0.5, alpha=0.5, draw="row", target="student")
    student = table(2)
    loss, numbers = nt.distil(table(1), noise=noise)(student, batch(step=4, seed=9))
    draw = draw_of(noise, ROWS, CLASSES, generator(9, "noise", 4))
    noisy = perturbed(student, noise, generator(9, "noise", 4))
    assert float(loss) == pytest.approx(float(nt.logit_regression(noisy, table(1))))
    assert numbers["noise/selected_%"] == pytest.approx(100 * float(draw.selected.float().mean()))
    flipped = (noisy.argmax(1) != student.argmax(1)).float().mean()
    assert numbers["noise/flipped_%"] == pytest.approx(100 * float(flipped))


def test_unlabelled_images_are_enough_to_distil() -> None:
    history = nt.fit(net(), split(labels=False), nt.distil(table(1)), epochs=3, lr=0.05)
    assert history.epochs[-1]["train/loss"] < history.epochs[0]["train/loss"]


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Flatten(), nn.Linear(16, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, CLASSES)
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"logits": self.body(images)}


def test_noisy_teacher_in_a_foreign_loop() -> None:
    noise = nt.Noise(sigma=0.9, alpha=0.5, draw="row")
    images = torch.rand(ROWS, 1, 4, 4)
    inner = Dropping()
    clean = inner.eval()(images)["logits"].detach()
    noisy = nt.NoisyTeacher(inner, noise, seed=3)
    noisy.train()
    assert not any(part.training for part in noisy.modules())
    first, second = noisy(images), noisy(images)
    for step, result in enumerate((first, second)):
        assert torch.equal(result, perturbed(clean, noise, generator(3, "noise", step)))
    assert not first.requires_grad
    assert not any(value.requires_grad for value in noisy.parameters())
    again = nt.NoisyTeacher(Dropping(), noise, seed=3)
    again.load_state_dict(noisy.state_dict())
    assert torch.equal(again(images), noisy(images))


def test_noisy_teacher_refuses() -> None:
    with pytest.raises(UsageError, match="target='student'"):
        nt.NoisyTeacher(net(), nt.Noise(sigma=0.5, alpha=0.5, target="student"))
    frozen = nt.NoisyTeacher(net(), nt.Noise(sigma=0.5, alpha=0.5, frozen=True), total_rows=ROWS)
    with pytest.raises(MismatchError, match="row numbers"):
        frozen(torch.rand(2, 1, 4, 4))
    kept = frozen(torch.rand(2, 1, 4, 4), rows=torch.tensor([3, 5]))
    assert kept.shape == (2, CLASSES)


def test_ranks_of_a_group_draw_other_noise_but_for_frozen_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh, frozen = nt.Noise(sigma=0.9, alpha=1.0, draw="row"), nt.Noise(sigma=0.9, alpha=1.0, draw="row", frozen=True)
    images, rows = torch.rand(8, 1, 4, 4), torch.arange(8)
    results = []
    for rank in (0, 1, 1):
        monkeypatch.setattr("noisyteacher.teachers.world", partial(World, rank, 2))
        noisy = nt.NoisyTeacher(net(), fresh, seed=3)(images)
        results.append((noisy, nt.NoisyTeacher(net(), frozen, seed=3, total_rows=8)(images, rows=rows)))
    assert not torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[1][0], results[2][0])
    assert torch.equal(results[0][1], results[1][1])


def test_a_noisy_teacher_may_be_shared_by_threads() -> None:
    noisy = nt.NoisyTeacher(nn.Identity(), nt.Noise(sigma=0.5, alpha=1.0), seed=0)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(noisy, [torch.ones(1, 4)] * 800))
    finally:
        sys.setswitchinterval(interval)
    assert len({tuple(answer[0].tolist()) for answer in answers}) == 800
    assert int(noisy.calls) == 800


def test_a_noisy_teacher_made_in_inference_mode_works_outside() -> None:
    with torch.inference_mode():
        noisy = nt.NoisyTeacher(net(), nt.Noise(sigma=0.5, alpha=1.0))
        noisy(torch.rand(2, 1, 4, 4))
    student = net().requires_grad_()
    loss = nt.logit_regression(student(torch.rand(2, 1, 4, 4)), noisy(torch.rand(2, 1, 4, 4)))
    torch.autograd.backward(loss)
    assert int(noisy.calls) == 2


def test_a_noisy_teacher_refuses_noise_that_overflows() -> None:
    with pytest.raises(TrainingError, match="overflow"):
        nt.NoisyTeacher(net(), nt.Noise(sigma=1e38, alpha=1.0, draw="row"))(torch.rand(64, 1, 4, 4) * 1e3)


def test_evaluate_by_hand() -> None:
    """A model that always answers class 0: a third is right, and it agrees with a teacher that says 0 half the time."""

    class Always(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.tensor([5.0, 0.0, 0.0]).expand(len(images), 3)

    half = torch.zeros(ROWS, CLASSES)
    half[: ROWS // 2, 0] = 1.0
    half[ROWS // 2 :, 1] = 1.0
    scores = nt.evaluate(Always(), split(), teacher=half)
    assert (scores.accuracy, scores.error, scores.agreement) == pytest.approx((100 / 3, 200 / 3, 50.0))
    assert scores.describe()["error"] == {"value": pytest.approx(200 / 3), "unit": "%", "n": ROWS}
    unlabelled = nt.evaluate(Always(), split(labels=False), teacher=half)
    assert unlabelled.error is None
    assert unlabelled.agreement == 50.0
    with pytest.raises(DataError, match="no labels"):
        nt.evaluate(Always(), split(labels=False))


def test_evaluate_leaves_modes_as_they_were() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    model.train()
    model[2].eval()
    nt.evaluate(model, split())
    assert [part.training for part in model] == [True, True, False, True]


def test_fit_leaves_the_modes_of_its_teacher_and_a_student_that_is_ready_to_answer(tmp_path: Path) -> None:
    """Also where a finished run is loaded."""
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(784, 10), nn.Dropout(), nn.Dropout())
    teacher[2].eval()
    data = nt.load_data("mnist-5k", limit=40)
    for _ in range(2):
        student = nt.build_model("mlp128", data).train()
        nt.fit(student, data.train, nt.distil(teacher), epochs=1, run=tmp_path / "r", resume=True, progress=False)
        assert not any(part.training for part in student.modules())
    assert [part.training for part in teacher] == [True, True, False, True]


@pytest.mark.parametrize("default", [torch.float64, torch.float16])
def test_another_default_dtype_changes_no_bit(default: torch.dtype, tmp_path: Path) -> None:
    data, logits = nt.load_data("mnist-5k", limit=40), []
    try:
        for dtype in (torch.float32, default):
            torch.set_default_dtype(dtype)
            student = nt.build_model("mlp128", data)
            store = nt.extract(student, data.train, tmp_path / str(dtype), rows_per_shard=30, progress=False)
            nt.fit(
                student, data.train, nt.distil(store, noise=nt.Noise(sigma=0.5, alpha=0.5)), epochs=1, progress=False
            )
            assert torch.get_default_dtype() == dtype
            logits.append(nt.predict(student, data.val, progress=False))
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(*logits)


def test_evaluate_refuses_logits_that_are_not_finite() -> None:
    model = net()
    with torch.no_grad():
        model[1].weight[0, 0] = float("inf")  # type: ignore[index]
    with pytest.raises(TrainingError, match="not finite"):
        nt.evaluate(model, split())


def test_evaluate_leaves_the_modes_of_its_teachers_as_they_were() -> None:
    for teachers in ([net()], [net(), net()]):
        for teacher in teachers:
            teacher.train()
        nt.evaluate(net(), split(), teacher=teachers if len(teachers) > 1 else teachers[0])
        assert all(part.training for teacher in teachers for part in teacher.modules())


def test_networks_that_are_judged_as_one_see_batches_of_the_size_that_was_named() -> None:
    sizes: list[int] = []
    teachers = [net(), net()]
    teachers[1].register_forward_hook(lambda module, images, logits: sizes.append(len(logits)))
    judge(teachers, split(), batch_size=10, device="cpu")
    assert sizes[-3:] == [10, 10, 4]


@pytest.mark.parametrize("size", [0, -1, "64", 2.0, True])
def test_a_batch_size_is_a_whole_number(size: Any) -> None:
    functions: tuple[Any, ...] = (nt.predict, nt.evaluate)
    for ask in functions:
        with pytest.raises(UsageError, match=f"batch_size={size!r}: expected a whole number >= 1"):
            ask(net(), split(), batch_size=size)
    with pytest.raises(UsageError, match="batch_size="):
        judge(table(1), split(), batch_size=size)


@pytest.mark.parametrize("outputs", [1, 5])
def test_evaluate_refuses_a_model_of_other_classes(outputs: int) -> None:
    with pytest.raises(MismatchError, match=rf"{outputs} class(es)?.*'toy'.*have 3"):
        nt.evaluate(net(outputs), split())
    with pytest.raises(MismatchError, match=rf"{outputs} class(es)?.*'toy'.*have 3"):
        nt.evaluate(net(outputs), split(), teacher=net(outputs))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"label_weight": "1"}, "label_weight='1'"),
        ({"label_weight": float("nan")}, "label_weight=nan"),
        ({"label_weight": True}, "label_weight=True"),
        ({"label_weight": None}, "label_weight=None"),
        ({"loss_weight": None}, "loss_weight=None"),
        ({"loss": "soft_targets", "temperature": "4"}, "temperature='4'"),
        ({"loss": "soft_targets", "temperature": float("inf")}, "temperature=inf"),
        ({"loss": "soft_targets", "temperature": True}, "temperature=True"),
    ],
)
def test_numbers_of_distil_are_numbers(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        nt.distil(table(1), **options)  # type: ignore[arg-type]


def test_labels_of_other_classes_are_not_mixed_in() -> None:
    wide = torch.zeros(ROWS, 5)
    nt.fit(net(5), split(), nt.distil(wide), epochs=1)
    with pytest.raises(MismatchError, match="the model has 5 classes, the data 'toy' have 3"):
        nt.fit(net(5), split(), nt.distil(wide, label_weight=0.5), epochs=1)


def test_a_live_teacher_of_another_precision_is_refused_before_the_first_step() -> None:
    with pytest.raises(MismatchError, match=r"the teacher failed.*float32.*torch\.float64.*\.float\(\)"):
        nt.fit(net(), split(), nt.distil(net().double()), epochs=1)
    with pytest.raises(MismatchError, match=r"the teacher failed on an image of shape \(1, 4, 4\)"):
        nt.fit(net(), split(), nt.distil(nn.Sequential(nn.Flatten(), nn.Linear(9, 3))), epochs=1)


class Refusing(nn.Module):
    """Raises an error at every image."""

    def __init__(self, error: type[Exception]) -> None:
        super().__init__()
        self.error = error

    def forward(self, images: Tensor) -> Tensor:
        raise self.error("images of 224 pixels")


@pytest.mark.parametrize("error", [AssertionError, RuntimeError, TypeError, ValueError, KeyError])
def test_a_live_teacher_of_other_images_is_refused_whatever_it_raises(error: type[Exception]) -> None:
    words = rf"the teacher failed on an image of shape \(1, 4, 4\): {error.__name__}: .*images of 224 pixels"
    with pytest.raises(MismatchError, match=words):
        nt.fit(net(), split(), nt.distil(Refusing(error)), epochs=1)


def test_noisy_teacher_takes_a_module_a_noise_and_whole_numbers() -> None:
    noise = nt.Noise(sigma=0.5, alpha=0.5)
    with pytest.raises(UsageError, match=r"teacher is a str.*nn\.Module"):
        nt.NoisyTeacher("lenet", noise)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"noise is a dict.*nt\.Noise"):
        nt.NoisyTeacher(net(), {"sigma": 0.5, "alpha": 0.5})  # type: ignore[arg-type]
    for option in ({"seed": None}, {"seed": 1.5}, {"total_rows": 0}, {"total_rows": 2.0}, {"total_steps": 0}):
        with pytest.raises(UsageError, match=next(iter(option))):
            nt.NoisyTeacher(net(), noise, **option)


@pytest.mark.parametrize("rows", [[3], [0, 1, 2, 3, 4, -1], [0, 1, 2, 3, 4, ROWS]])
def test_noisy_teacher_wants_one_row_of_the_split_per_image(rows: list[int]) -> None:
    noise = nt.Noise(sigma=0.5, alpha=1.0, draw="row", frozen=True)
    noisy = nt.NoisyTeacher(net(), noise, total_rows=ROWS)
    with pytest.raises(MismatchError, match="frozen noise"):
        noisy(torch.rand(6, 1, 4, 4), rows=torch.tensor(rows))
    assert int(noisy.calls) == 0


def test_noisy_teacher_follows_a_schedule() -> None:
    noise = nt.Noise(sigma=0.9, alpha=0.5, draw="row", schedule="linear")
    images = torch.rand(ROWS, 1, 4, 4)
    teacher = net()
    clean = teacher(images).detach()
    noisy = nt.NoisyTeacher(teacher, noise, seed=3, total_steps=4)
    for step, sigma in enumerate((0.9, 0.675, 0.45, 0.225, 0.0)):
        expected = perturbed(clean, nt.Noise(sigma=sigma, alpha=0.5, draw="row"), generator(3, "noise", step))
        assert torch.allclose(noisy(images), expected, atol=1e-6)
    with pytest.raises(MismatchError, match="give total_steps"):
        nt.NoisyTeacher(net(), noise)(images)


@pytest.mark.parametrize("kind", ["multiplicative", "additive"])
@pytest.mark.parametrize("target", ["teacher", "student"])
@pytest.mark.parametrize("loss", ["logit_regression", "soft_targets"])
def test_what_the_noise_does_by_autograd(loss: str, target: str, kind: str) -> None:
    """The gradient of the teacher's term with and without noise, by autograd of the formulas of docs/method.md."""
    temperature, student, teacher = 3.0, table(2), table(1)
    noise = nt.Noise(sigma=2.0, alpha=0.5, draw="row", target=target, kind=kind)  # type: ignore[arg-type]
    options = {"temperature": temperature} if loss == "soft_targets" else {}
    objective = nt.distil(teacher, noise=noise, loss=loss, label_weight=0.25, **options)  # type: ignore[arg-type]
    _, numbers = objective(student.clone().requires_grad_(), batch(step=6, seed=9))

    draw = draw_of(noise, ROWS, CLASSES, generator(9, "noise", 6))
    mask = draw.selected.float()

    def gradient(mask: Tensor) -> Tensor:
        leaf = student.clone().requires_grad_()
        shift = mask * draw.xi
        g, z = leaf, teacher
        if target == "teacher":
            z = z * (1 + shift) if kind == "multiplicative" else z + shift
        else:
            g = g * (1 + shift) if kind == "multiplicative" else g + shift
        if loss == "logit_regression":
            value = ((g - z) ** 2).sum() / (2 * ROWS)
        else:
            p, q = (z / temperature).softmax(1), (g / temperature).softmax(1)
            value = temperature**2 * (p * (p / q).log()).sum() / ROWS
        return torch.autograd.grad(value, leaf)[0]

    clean, noisy = gradient(torch.zeros_like(mask)), gradient(mask)
    moved = (teacher if target == "teacher" else student) * 1.0
    after = moved * (1 + mask * draw.xi) if kind == "multiplicative" else moved + mask * draw.xi
    assert {name: value for name, value in numbers.items() if name.startswith("noise/")} == pytest.approx(
        {
            "noise/selected_%": 100 * float(mask.mean()),
            "noise/flipped_%": 100 * float((after.argmax(1) != moved.argmax(1)).float().mean()),
            "noise/xi_rms": math.sqrt(float((draw.xi**2).mean())),
            "noise/gradient_ratio": float((noisy - clean).norm() / clean.norm()),
        },
        rel=1e-4,
    )
    assert 0 < numbers["noise/flipped_%"] < 100


def test_without_a_gradient_there_is_no_ratio() -> None:
    """A student at its teacher's logits has no clean gradient to compare with: the ratio is 0, not infinite."""
    noise = nt.Noise(sigma=0.8, alpha=0.5)
    _, numbers = nt.distil(table(1), noise=noise)(table(1), batch())
    assert numbers["noise/gradient_ratio"] == 0.0
    _, numbers = nt.distil(table(1), noise=nt.Noise(sigma=0.0, alpha=0.5))(table(2), batch())
    assert [numbers[f"noise/{name}"] for name in ("gradient_ratio", "xi_rms", "flipped_%")] == [0.0, 0.0, 0.0]
