"""A noisy teacher in the Trainer of transformers, beside a clean one. Try: python examples/hf_trainer.py --epochs 5"""

import argparse
import tempfile

from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments, set_seed

import noisyteacher as nt


class DistillationTrainer(Trainer):
    loss_is_scaled_for_ga = False  # a mean over the batch: the Trainer divides it when it accumulates gradients

    def __init__(self, teacher: nt.NoisyTeacher, **others: object) -> None:
        super().__init__(**others)
        self.teacher = teacher.to(self.args.device)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if not model.training:  # evaluation: the labels, no noise, and no draw used up
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        outputs = model(pixel_values=inputs["pixel_values"])
        loss = nt.logit_regression(outputs.logits, self.teacher(inputs["pixel_values"]))
        return (loss, outputs) if return_outputs else loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--limit", type=int, help="at most so many images of each split")
    parser.add_argument("--sigma", type=float, default=0.5, help="standard deviation of the noise")
    parser.add_argument("--alpha", type=float, default=0.5, help="share of images whose logits are perturbed")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()

    data = nt.load_data("mnist-5k", limit=given.limit)
    teacher = nt.build_model("lenet", data).network  # what stands behind its preprocessing: takes pixel_values too
    nt.fit(teacher, data.train, nt.supervised(), val=data.val, epochs=given.epochs)
    pairs = {"train": zip(data.train.images[data.train.index] / 255, data.train.labels, strict=True)}
    pairs["eval"] = zip(data.val.images[data.val.index] / 255, data.val.labels, strict=True)
    sets = {f"{role}_dataset": [{"pixel_values": x, "labels": y} for x, y in rows] for role, rows in pairs.items()}
    small = {"num_channels": 1, "embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"}
    with tempfile.TemporaryDirectory() as folder:
        how = {"learning_rate": 3e-3, "per_device_train_batch_size": 64, "num_train_epochs": given.epochs}
        when = {"logging_strategy": "epoch", "eval_strategy": "epoch", "save_strategy": "no", "report_to": "none"}
        for name, sigma in (("clean", 0.0), ("noisy", given.sigma)):
            set_seed(given.seed)  # equal weights and order for both students: they differ in the noise alone
            student = ResNetForImageClassification(ResNetConfig(**small, num_labels=data.classes))
            noisy = nt.NoisyTeacher(teacher, nt.Noise(sigma=sigma, alpha=given.alpha, draw="row"), seed=given.seed)
            arguments = TrainingArguments(folder, seed=given.seed, **how, **when)
            DistillationTrainer(noisy, model=student, args=arguments, **sets).train()
            print(f"{name} student (sigma {sigma:g}): test error {nt.evaluate(student, data.test).error}")


if __name__ == "__main__":
    main()
