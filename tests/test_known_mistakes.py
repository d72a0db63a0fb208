"""The mistakes of earlier implementations, each a check on ours, and each check seen failing with the mistake put in.

A check is a function that asserts. Every test runs it on the package as it is, then puts the mistake into the package
and expects the assertion to fail: a check that a mistake passes is no check.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import noisyteacher as nt
from helpers import draw_of, perturbed
from noisyteacher import noise as noise_module
from noisyteacher.errors import MismatchError, UsageError
from noisyteacher.models import Classifier
from noisyteacher.noise import UnitNoise
from noisyteacher.rng import generator

ROWS, CLASSES = 48, 4


def split(role: str = "train", rows: int = ROWS) -> nt.Split:
    images = torch.randint(0, 256, (rows, 1, 6, 6), generator=generator(0, "images"), dtype=torch.uint8)
    return nt.Split(images, torch.arange(rows) % CLASSES, torch.arange(rows), role, "toy", tuple("abcd"))


def net(dropout: float = 0.0, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, CLASSES))


def batch_of(rows: Tensor, step: int = 0, views: tuple[str, ...] = ("clean",)) -> nt.Batch:
    view_numbers = torch.zeros(len(rows), dtype=torch.int64)
    return nt.Batch(
        split().images_at(rows, views, view_numbers), split().labels_at(rows), rows, views, view_numbers, step, 0, ROWS
    )


def table() -> Tensor:
    return torch.randn(ROWS, CLASSES, generator=generator(1, "table")) * 4


def loss_of(objective: nt.Objective, logits: Tensor, batch: nt.Batch) -> Tensor:
    return objective(logits, batch)[0]


def mistaken(check: Callable[[], None], *swaps: tuple[Any, str, Any]) -> None:
    """The check holds as things are, and fails with the swaps (object, attribute, mistaken value) in place."""
    check()
    with pytest.MonkeyPatch.context() as patch:
        for owner, name, value in swaps:
            patch.setattr(owner, name, value)
        with pytest.raises(AssertionError):
            check()


def module(name: str) -> Any:
    """The module itself: the package's attribute of that name may be the public function."""
    return importlib.import_module(f"noisyteacher.{name}")


def test_target_is_one_plus_xi_times_z() -> None:
    """Mistake: z * xi, so that unselected samples regress to 0."""

    def check() -> None:
        rows = torch.arange(ROWS)
        objective = nt.distil(table(), noise=nt.Noise(sigma=0.5, alpha=0.5, draw="row"))
        draw = draw_of(nt.Noise(sigma=0.5, alpha=0.5, draw="row"), ROWS, CLASSES, generator(0, "noise", 0))
        student = table().clone().requires_grad_()
        torch.autograd.backward(loss_of(objective, student, batch_of(rows)))
        assert student.grad is not None
        assert torch.equal(student.grad[~draw.selected[:, 0]], torch.zeros_like(student.grad[~draw.selected[:, 0]]))
        expected = -(draw.xi * table())[draw.selected[:, 0]] / ROWS
        assert torch.allclose(student.grad[draw.selected[:, 0]], expected, atol=1e-6)

    def z_times_xi(logits: Tensor, *, sigma: Any, alpha: Any, unit_noise: UnitNoise, **rest: Any) -> Tensor:
        return logits * unit_noise.xi(sigma) * unit_noise.selected(alpha)

    mistaken(check, (module("objectives"), "perturb", z_times_xi))


def test_the_teachers_dropout_is_off() -> None:
    """Mistake: the teacher is asked in train mode, so that its dropout is noise of another kind."""

    def check() -> None:
        teacher = net(dropout=0.5)
        teacher.train()
        seen: list[Tensor] = []
        objective = nt.distil(teacher)
        for step in range(3):
            teacher.train()
            batch = batch_of(torch.arange(8), step)
            silent = torch.zeros(8, CLASSES)
            seen.append(loss_of(objective, silent, batch))
        expected = net(dropout=0.0)
        expected.load_state_dict(teacher.state_dict())
        right = expected.eval()(split().images[:8].float() / 255)
        assert all(torch.allclose(loss, right.square().sum() / 16, rtol=1e-5) for loss in seen)

    def asked_in_train_mode(classifier: nn.Module, images: Tensor) -> Tensor:
        with torch.no_grad():
            return classifier.train()(images)  # type: ignore[no-any-return]

    mistaken(check, (module("teachers"), "frozen_forward", asked_in_train_mode))


def test_xi_is_a_vector() -> None:
    """Mistake: xi is one scalar per sample, so that the argmax never changes sign by sign."""

    def check() -> None:
        for draw in ("batch", "row"):
            noise = nt.Noise(sigma=0.5, alpha=1.0, draw=draw)
            factors = (perturbed(torch.ones(16, CLASSES), noise, generator(0, "v")) - 1)[0]
            assert torch.unique(factors).numel() == CLASSES

    def scalar(distribution: str, shape: tuple[int, ...], generator: Any, device: Any) -> Tensor:
        return torch.randn(shape[0], 1, generator=generator).expand(shape)

    mistaken(check, (noise_module, "_unit", scalar))


def test_alpha_is_a_share_of_the_samples() -> None:
    """Mistake: one coin per batch, so that a whole batch is noisy or clean."""

    def check() -> None:
        noise = nt.Noise(sigma=1.0, alpha=0.5)
        shares = [float(draw_of(noise, 64, CLASSES, generator(s, "a")).selected.float().mean()) for s in range(50)]
        assert all(0.2 < share < 0.8 for share in shares)

    def one_coin(*shape: Any, generator: Any = None, **options: Any) -> Tensor:
        return real_rand((), generator=generator).expand(*shape) if shape else real_rand((), generator=generator)

    real_rand = torch.rand
    mistaken(check, (torch, "rand", one_coin))


def test_sigma_is_not_a_variance() -> None:
    """Mistake: the argument is used as a variance, so that 0.25 gives noise of standard deviation 0.5."""

    def check() -> None:
        noise = nt.Noise(sigma=0.25, alpha=1.0, draw="row")
        noisy = perturbed(torch.ones(4000, CLASSES), noise, generator(0, "sd"))
        assert float(noisy.std()) == pytest.approx(0.25, rel=0.05)

    def root(self: UnitNoise, sigma: Any) -> Tensor:
        xi: Tensor = self.unit * sigma**0.5
        return xi

    mistaken(check, (UnitNoise, "xi", root))


def test_the_loss_is_zero_when_student_and_teacher_agree() -> None:
    """Mistake: mean squared error between log-softmax(student) and softmax(teacher)."""

    def check() -> None:
        rows = torch.arange(16)
        for objective in (nt.distil(table()), nt.distil(table(), loss="soft_targets", temperature=4.0)):
            assert float(loss_of(objective, table()[:16], batch_of(rows))) == pytest.approx(0.0, abs=1e-6)
        by_hand = sum(float((1.0 - value) ** 2) for value in table()[:16].flatten()) / 32
        assert float(loss_of(nt.distil(table()), torch.ones(16, CLASSES), batch_of(rows))) == pytest.approx(by_hand)

    def mixed(student: Tensor, teacher: Tensor) -> Tensor:
        return F.mse_loss(F.log_softmax(student, 1), F.softmax(teacher, 1))

    def mean_over_classes(student: Tensor, teacher: Tensor) -> Tensor:
        return F.mse_loss(student, teacher)

    mistaken(check, (module("objectives"), "logit_regression", mixed))
    mistaken(check, (module("objectives"), "logit_regression", mean_over_classes))


def test_losses_of_later_papers_are_zero_at_their_goal_alone() -> None:
    """Mistakes: DIST's correlation itself minimised; its 0/0 where a class is constant; T^2 on a teacher that alone
    has a temperature; DKD by a mask of -1000 and log of a rounded 1 - p; rows divided by a deviation of nearly 0.
    """
    certain = torch.tensor([[40.0, 0.0, 1.0], [40.0, 3.0, -2.0]])
    others = torch.tensor([[40.0, 2.0, 1.0], [40.0, 0.0, 0.0]])
    targets = torch.zeros(2, dtype=torch.int64)

    def dist_check() -> None:
        near = table()[:16] + 0.1
        near[:, 0] += 0.5
        values = [losses.dist(student, table()[:16]) for student in (table()[:16], near, table()[16:32])]
        assert float(values[0]) == pytest.approx(0, abs=1e-6)
        assert float(values[0]) < float(values[1]) < float(values[2])
        leaf = torch.zeros(4, CLASSES, requires_grad=True)
        value = losses.dist(leaf, table()[:4])
        assert torch.isfinite(torch.autograd.grad(value, leaf)[0]).all()

    def correlation(student: Tensor, teacher: Tensor, sign: float = -1.0) -> Tensor:
        p, q = (part.softmax(1) for part in (teacher, student))
        p, q = p - p.mean(1, keepdim=True), q - q.mean(1, keepdim=True)
        cosines: Tensor = (p * q).sum(1) / (torch.linalg.vector_norm(p, dim=1) * torch.linalg.vector_norm(q, dim=1))
        return (1 + sign * cosines).mean()

    losses = module("losses")
    mistaken(dist_check, (losses, "dist", partial(correlation, sign=1.0)))
    mistaken(dist_check, (losses, "dist", correlation))

    def ttm_check() -> None:
        student = table().clone().requires_grad_()
        [gradient] = torch.autograd.grad(losses.ttm(student, table(), temperature=4.0), student)
        assert torch.allclose(gradient * len(student), table().softmax(1) - (table() / 4).softmax(1), atol=1e-6)

    ttm = losses.ttm
    mistaken(
        ttm_check, (losses, "ttm", lambda student, teacher, temperature: 16 * ttm(student, teacher, temperature=4))
    )
    mistaken(ttm_check, (losses, "ttm", losses.soft_targets))

    def dkd_check() -> None:
        by_hand = F.kl_div(certain[:, 1:].log_softmax(1), others[:, 1:].softmax(1), reduction="batchmean")
        value = losses.dkd(certain, others, targets, temperature=1.0, alpha=0.0, beta=1.0)
        assert float(value) == pytest.approx(float(by_hand), rel=1e-4)
        value = losses.dkd(certain, -others, targets, temperature=1.0, alpha=1.0, beta=0.0)
        assert float(value) == pytest.approx(40 + float(certain[:, 1:].logsumexp(1).neg().mean()), rel=1e-3)

    def rounded(
        student: Tensor, teacher: Tensor, target: Tensor, temperature: float, alpha: float, beta: float
    ) -> Tensor:
        q, p = (part.softmax(1) for part in (student, teacher))
        parts = [torch.stack([part[:, 0], 1 - part[:, 0]], 1) for part in (q, p)]
        of_target = (parts[1] * (parts[1] / parts[0]).log()).sum(1).mean()
        rest = [part[:, 1:] / (1 - part[:, :1]) for part in (q, p)]
        return alpha * of_target + beta * (rest[1] * (rest[1] / rest[0]).log()).sum(1).mean()

    mistaken(dkd_check, (losses, "dkd", rounded))

    def zscore_check() -> None:
        leaf = torch.stack([torch.ones(3), torch.tensor([1.0, -1.0, 0.0])]).requires_grad_()
        rows = losses.standardized(leaf)
        assert rows.square().mean(1).tolist() == pytest.approx([0.0, 1.0], abs=1e-3)
        assert float(torch.autograd.grad(rows[:, 0].sum(), leaf)[0].abs().max()) < 1e3

    def of_sample(logits: Tensor) -> Tensor:
        return (logits - logits.mean(1, keepdim=True)) / (1e-7 + logits.std(1, keepdim=True))

    mistaken(zscore_check, (losses, "standardized", of_sample))
    mistaken(zscore_check, (losses, "standardized", lambda logits: of_sample(logits) * 1.5**0.5))


def test_the_teacher_is_asked_without_gradients() -> None:
    """Mistake: the teacher's graph is kept at every step, and its weights get gradients."""

    def check() -> None:
        teacher, student = net(seed=1), net(seed=2)
        objective = nt.distil(teacher)
        images = split().images[:8].float() / 255
        torch.autograd.backward(loss_of(objective, student(images), batch_of(torch.arange(8))))
        assert all(value.grad is None for value in teacher.parameters())
        assert all(value.grad is not None for value in student.parameters())

    def with_graph(classifier: nn.Module, images: Tensor) -> Tensor:
        return classifier.eval()(images)  # type: ignore[no-any-return]

    mistaken(check, (module("teachers"), "frozen_forward", with_graph))


def test_the_best_epoch_is_never_chosen_on_test() -> None:
    """Mistake: the test split is given as validation, or trained on."""

    def check() -> None:
        refused = 0
        for train, val in ((split(), split("test")), (split("test"), None)):
            try:
                nt.fit(net(), train, nt.supervised(), val=val, epochs=1)
            except UsageError:
                refused += 1
        assert refused == 2

    mistaken(check, (module("train.fitting"), "_check_roles", lambda train, val: None))


def test_the_student_is_in_train_mode_in_every_epoch() -> None:
    """Mistake: validation leaves the student in eval mode, so that its dropout is off from epoch 2 on."""

    def check() -> None:
        student, modes = net(dropout=0.5), []

        def objective(logits: Tensor, batch: nt.Batch) -> Tensor:
            modes.append(student.training)
            return logits.square().mean()

        nt.fit(student, split(), objective, val=split("val"), epochs=3)
        assert modes
        assert all(modes)

    def leaves_eval(classifier: nn.Module, *rest: Any, **named: Any) -> Tensor:
        logits: Tensor = right(classifier, *rest, **named)
        classifier.eval()
        return logits

    right = module("train.validation").predict
    keep = Classifier.train
    mistaken(
        check,
        (module("train.validation"), "predict", leaves_eval),
        (Classifier, "train", lambda self, mode=True: self if mode else keep(self, mode)),
    )


@pytest.mark.parametrize("views", [("clean",), ("clean", "mirror", "crop-y0-x1", "mirror-crop-y8-x3")])
def test_stored_logits_belong_to_the_row_and_the_view(tmp_path: Path, views: tuple[str, ...]) -> None:
    """Mistakes: a cache keyed by position in the batch; one made from one crop and served for others."""
    teacher = nt.build_model(net(seed=3), split())
    store = nt.extract(teacher, split(), tmp_path / "store", views=views, batch_size=7, rows_per_shard=10)

    def check() -> None:
        stored, steps = nt.distil(store), []

        def objective(logits: Tensor, batch: nt.Batch) -> Tensor:
            with torch.no_grad():
                live = teacher(batch.images)
            steps.append(float(stored(live, batch)[0]))
            return logits.square().mean()

        nt.fit(net(), split(), objective, epochs=3, batch_size=16, views=views)
        assert max(steps) < 1e-8

    def by_position(self: Any, batch: nt.Batch) -> Tensor:
        return store.logits("clean", torch.arange(len(batch.rows)))

    def first_view(self: Any, batch: nt.Batch) -> Tensor:
        return store.logits("clean", batch.rows)

    mistaken(check, (module("teachers").StoredTeacher, "logits", by_position))
    if len(views) > 1:
        mistaken(check, (module("teachers").StoredTeacher, "logits", first_view))


def test_a_store_of_other_data_or_another_teacher_is_refused(tmp_path: Path) -> None:
    """Mistake: nobody checks that the cache belongs to this teacher, these data, this preprocessing."""
    teacher = nt.build_model(net(seed=3), split())
    store = nt.extract(teacher, split(), tmp_path / "store")
    shuffled = split().subset(torch.randperm(ROWS, generator=generator(0, "s")))
    second_teacher = nt.build_model(net(seed=4), split())

    def check() -> None:
        refused = 0
        for attempt in (
            lambda: nt.fit(net(), shuffled, nt.distil(store), epochs=1),
            lambda: nt.fit(net(), split(), nt.distil(store), epochs=1, views="mirror"),
            lambda: nt.extract(second_teacher, split(), tmp_path / "store"),
        ):
            try:
                attempt()
            except MismatchError:
                refused += 1
        assert refused == 3

    mistaken(check, (nt.LogitStore, "check", lambda self, **prints: None))


def test_noise_is_not_kept_with_the_logits(tmp_path: Path) -> None:
    """Mistake: the noise is cached too, so that a row sees one draw for ever."""
    teacher = nt.build_model(net(seed=3), split())
    store = nt.extract(teacher, split(), tmp_path / "store")
    with torch.no_grad():
        raw = teacher(split().images)

    def check() -> None:
        assert torch.allclose(store.logits("clean", torch.arange(ROWS)), raw, atol=1e-6)
        objective = nt.distil(store, noise=nt.Noise(sigma=0.9, alpha=1.0, draw="row"))
        rows = torch.arange(ROWS)
        first, second = (loss_of(objective, raw, batch_of(rows, step)) for step in (0, 1))
        assert float(first) != float(second)

    def always_the_same(noise: nt.Noise, *, step: int, **rest: Any) -> UnitNoise:
        return noise_module.unit_noise_at(noise, step=0, **rest)

    mistaken(check, (module("objectives"), "unit_noise_at", always_the_same))
