"""A noisy teacher in a loop built of timm's parts, beside a clean one. Try: python examples/timm_loop.py --epochs 5"""

import argparse

import timm
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, ModelEmaV3, random_seed
from torch.utils.data import DataLoader, TensorDataset

import noisyteacher as nt


def train_student(teacher: nt.NoisyTeacher, loader: DataLoader, epochs: int) -> torch.nn.Module:
    student = timm.create_model("test_efficientnet", in_chans=1, num_classes=10)
    optimizer = create_optimizer_v2(student, opt="adamw", lr=3e-3, weight_decay=0.01)
    plan = {"num_epochs": epochs, "updates_per_epoch": len(loader), "step_on_epochs": False}
    scheduler, epochs = create_scheduler_v2(optimizer, sched="cosine", warmup_epochs=min(1, epochs - 1), **plan)
    average = ModelEmaV3(student, decay=0.99, use_warmup=True)
    for epoch in range(epochs):
        student.train()
        losses = AverageMeter()
        for update, (images,) in enumerate(loader, start=epoch * len(loader) + 1):
            loss = nt.logit_regression(student(images / 255), teacher(images))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average.update(student, step=update)
            scheduler.step_update(num_updates=update)
            losses.update(loss.item(), len(images))
        print(f"epoch {epoch + 1}: loss {losses.avg:.3f}")
    return average.module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--limit", type=int, help="at most so many images of each split")
    parser.add_argument("--sigma", type=float, default=0.5, help="standard deviation of the noise")
    parser.add_argument("--alpha", type=float, default=0.5, help="share of images whose logits are perturbed")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()

    data = nt.load_data("mnist-5k", limit=given.limit)
    teacher = nt.build_model("lenet", data)
    nt.fit(teacher, data.train, nt.supervised(), val=data.val, epochs=given.epochs)
    images = data.train.images_at(torch.arange(len(data.train)))  # uint8 [N, 1, 28, 28]; labels are not needed
    loader = DataLoader(TensorDataset(images), batch_size=64, shuffle=True)
    for name, sigma in (("clean", 0.0), ("noisy", given.sigma)):
        random_seed(given.seed)  # equal weights and order for both students: they differ in the noise alone
        noisy = nt.NoisyTeacher(teacher, nt.Noise(sigma=sigma, alpha=given.alpha, draw="row"), seed=given.seed)
        student = train_student(noisy, loader, given.epochs)
        print(f"{name} student (sigma {sigma:g}): test error {nt.evaluate(student, data.test).error}")


if __name__ == "__main__":
    main()
