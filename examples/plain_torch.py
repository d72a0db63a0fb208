"""A noisy teacher in a plain PyTorch loop, beside a clean one. Try: python examples/plain_torch.py --epochs 5"""

import argparse

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import noisyteacher as nt


def train_student(teacher: nn.Module, loader: DataLoader, epochs: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)  # equal weights and order for both students: they differ in the noise alone
    student = nn.Sequential(nn.Flatten(), nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 10))
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
    for epoch in range(epochs):
        student.train()
        total = 0.0
        for (images,) in loader:
            targets = teacher(images)  # perturbed logits [B, K], no gradient; a new draw at every call
            loss = nt.logit_regression(student(images / 255), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(images)
        print(f"epoch {epoch + 1}: loss {total / len(loader.dataset):.3f}")
    return student


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
        noise = nt.Noise(sigma=sigma, alpha=given.alpha, draw="row")
        student = train_student(nt.NoisyTeacher(teacher, noise, seed=given.seed), loader, given.epochs, given.seed)
        print(f"{name} student (sigma {sigma:g}): test error {nt.evaluate(student, data.test).error}")


if __name__ == "__main__":
    main()
