"""A noisy teacher in a Lightning module, beside a clean one. Try: python examples/lightning_loop.py --epochs 5"""

import argparse

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import noisyteacher as nt


class Distillation(L.LightningModule):
    def __init__(self, teacher: nn.Module, noise: nt.Noise, seed: int) -> None:
        super().__init__()
        self.student = nn.Sequential(nn.Flatten(), nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 10))
        # A submodule: moved and saved with this one, its step counter too: a resumed run goes on with the same draws.
        self.teacher = nt.NoisyTeacher(teacher, noise, seed=seed)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        (images,) = batch
        loss = nt.logit_regression(self.student(images / 255), self.teacher(images))
        self.log("loss", loss, on_step=False, on_epoch=True, batch_size=len(images))
        return loss

    def on_train_epoch_end(self) -> None:
        print(f"epoch {self.current_epoch + 1}: loss {self.trainer.callback_metrics['loss']:.3f}")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.student.parameters(), lr=1e-3)


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
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    for name, sigma in (("clean", 0.0), ("noisy", given.sigma)):
        L.seed_everything(given.seed)  # equal weights and order for both students: they differ in the noise alone
        model = Distillation(teacher, nt.Noise(sigma=sigma, alpha=given.alpha, draw="row"), given.seed)
        loader = DataLoader(TensorDataset(images), batch_size=64, shuffle=True)
        L.Trainer(max_epochs=given.epochs, enable_progress_bar=False, **quiet).fit(model, loader)
        print(f"{name} student (sigma {sigma:g}): test error {nt.evaluate(model.student, data.test).error}")


if __name__ == "__main__":
    main()
