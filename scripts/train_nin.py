"""Train NIN for CIFAR-10: python scripts/train_nin.py DATA_ROOT OUT [--device cpu|cuda] [--threads N] [--ship].

Some of the epochs see small images: NIN ends in an average over the whole image, so the weights learnt at 16 and 24
pixels go on at 32. Behind convolutions stands a batch norm while it learns; at the end each is folded into the
convolution before it, so that what comes out is NIN as the paper writes it, with the same answers. Every phase
is a `fit` with a run folder: a stopped script goes on where it was. --ship puts what came out into the package.
A CPU takes the recipe that makes most of an hour, a GPU one of five times as many epochs. (When the weights of the
CPU's recipe were made, convolutions in front of a norm still had a bias, which a norm takes away again.)
"""

from __future__ import annotations

import argparse
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from ship_teacher import put
from torch import nn
from torch.nn.functional import interpolate
from torch.nn.utils.fusion import fuse_conv_bn_weights

from noisyteacher import build_model, evaluate, fit, load_data, save_model
from noisyteacher.data import DATASETS, Split
from noisyteacher.data.views import view_name
from noisyteacher.device import resolve_precision
from noisyteacher.models import Classifier
from noisyteacher.objectives import supervised
from noisyteacher.runs import host, versions

PHASE = ("pixels", "epochs", "lr", "schedule", "warmup_epochs", "crops_shifted_by_pixels")


@dataclass(frozen=True)
class Recipe:
    """How NIN is trained: phases as PHASE names their columns, and what they have in common."""

    phases: tuple[tuple[int, int, float, str, float, int], ...]
    optimizer: str
    weight_decay: float
    dropout: float
    unnormed: tuple[str, ...]
    """Convolutions without a batch norm behind them, beside the last one."""
    batch_size: int = 128


RECIPES = {
    "cpu": Recipe(
        (
            (16, 6, 0.02, "constant", 0.5, 2),
            (24, 6, 0.02, "constant", 0.2, 3),
            (32, 12, 0.02, "linear", 0.2, 4),
        ),
        "muon",
        0.03,
        0.0,
        ("conv1", "conv2"),  # those of the full image: norms there take a quarter of a CPU's step
    ),
    "cuda": Recipe(
        ((24, 15, 0.1, "constant", 1.0, 3), (32, 95, 0.1, "linear", 0.2, 4)),
        "sgd",
        5e-4,
        0.3,
        (),
    ),
}
SEED = 0


def main() -> None:
    """Train, fold, compare, score and write `OUT/nin-cifar10.safetensors` and its card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data_root")
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=tuple(RECIPES))
    parser.add_argument("--name", default="nin-cifar10", help="of the weights")
    parser.add_argument(
        "--precision", default="auto", choices=("auto", "fp32", "bf16"), help="going on: the one begun with"
    )
    parser.add_argument("--unverified", action="store_true", help="a copy of the data that is not the official one")
    parser.add_argument("--note", default="", help="what the card says of the data")
    parser.add_argument("--ship", action="store_true", help="into the package, as pretrained:NAME")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    official: dict[str, Any] = {"root": options.data_root, "verify": not options.unverified}
    data = load_data(options.data, **(official if options.data in DATASETS else {}))
    how = RECIPES[options.device]
    nin = build_model("nin", data=data, seed=SEED, preprocess="standardize", dropout=how.dropout)
    network = normed(nin.network, how.unnormed)
    seconds, lines = 0.0, []
    precision = resolve_precision(options.precision, torch.device(options.device))
    for number, (pixels, epochs, rate, schedule, warmup, shift) in enumerate(how.phases, 1):
        model = Classifier(
            nin.preprocess, network, {**nin.architecture, "input_shape": [3, pixels, pixels], "name": "nin-normed"}
        )
        history = fit(
            model, resized(data.train, pixels), supervised(), val=resized(data.val, pixels), epochs=epochs,
            batch_size=how.batch_size, optimizer=how.optimizer, lr=rate, weight_decay=how.weight_decay,
            schedule=schedule, warmup_epochs=warmup, views=shifted(shift), seed=SEED,
            keep="last" if pixels < 32 else "best", precision=precision, device=options.device,
            run=options.out / f"phase-{number}-{pixels}",
            resume=True, checkpoint_every_s=60,
            progress=lambda tick: tick.step % 100 or print(f"\r{tick.epoch}/{tick.epochs} {tick.loss:.3f}", end=""),
        )  # fmt: skip
        seconds += history.seconds
        lines += [{"pixels": pixels, **line} for line in history.epochs]
        print(f"\n{pixels} px: validation error {history.epochs[-1]['val/error']:.2f} %, {history.seconds:.0f} s")
    network.cpu().eval()
    nin.cpu().eval()
    rows = torch.arange(min(200, len(data.val)))
    images = data.val.images_at(rows)
    with torch.no_grad():
        before = network(nin.preprocess(images))  # its convolutions are those of the plain network, folded next
        folded(network, nin.network)
        gap = float((nin(images) - before).abs().max())
    print(f"folding moved the logits of {len(rows)} images by at most {gap:.2g}")
    scores = {part.role: evaluate(nin, part).describe() for part in (data.val, data.test) if part is not None}
    print(json.dumps(scores, indent=1))
    save_model(nin, options.out / f"{options.name}.safetensors")
    recipe = {
        "phases": [dict(zip(PHASE, phase, strict=True)) for phase in how.phases], "batch_size": how.batch_size,
        "optimizer": how.optimizer, "momentum": 0.9, "weight_decay": how.weight_decay, "dropout": how.dropout,
        "views": "mirror images and shifted crops", "precision": precision, "keep": "best",
        "batch_norm": "while it learned, behind all convolutions but "
        f"{', '.join([*how.unnormed, 'the last'])}, then folded into them",
    }  # fmt: skip
    data_card = {
        "name": options.data,
        "verify": not options.unverified,
        **({"note": options.note} if options.note else {}),
    }
    card = {
        "model": "nin", "data": data_card, "recipe": recipe, "seed": SEED, "scores": scores,
        "training": {"seconds": seconds, "epochs": len(lines), "device": options.device, "threads": options.threads,
                     "fold_gap": gap},
        "versions": versions(), "host": host(), "trained": datetime.now(UTC).isoformat(), "metrics": lines,
    }  # fmt: skip
    (options.out / "training.json").write_text(json.dumps(card, indent=1))
    if options.ship:
        put(options.name, options.out / f"{options.name}.safetensors", card)


def normed(network: nn.Sequential, unnormed: Sequence[str]) -> nn.Sequential:
    """The network with a batch norm behind every convolution but these and the last; a normed one has no bias."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    last = [name for name, layer in network.named_children() if isinstance(layer, nn.Conv2d)][-1]
    for name, layer in network.named_children():
        layers[name] = layer
        if isinstance(layer, nn.Conv2d) and name not in (*unnormed, last):
            layers[name] = conv = nn.Conv2d(
                layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, bias=False
            )
            conv.weight = layer.weight
            layers[name.replace("conv", "norm")] = nn.BatchNorm2d(layer.out_channels)
    return nn.Sequential(layers)


def folded(trained: nn.Sequential, into: nn.Sequential) -> None:
    """Put the trained convolutions, each with its batch norm folded in (evaluation mode), into the plain network."""
    parts = dict(trained.named_children())
    for name, layer in into.named_children():
        if isinstance(layer, nn.Conv2d):
            conv, norm = parts[name], parts.get(name.replace("conv", "norm"))
            weight = conv.weight.detach().clone()
            bias = torch.zeros(len(weight)) if conv.bias is None else conv.bias.detach().clone()
            if norm is not None:
                weight, bias = fuse_conv_bn_weights(
                    weight,
                    bias,
                    norm.running_mean,
                    norm.running_var,
                    norm.eps,
                    norm.weight.detach(),
                    norm.bias.detach(),
                )
            layer.weight, layer.bias = nn.Parameter(weight.contiguous()), nn.Parameter(bias)


def resized(split: Split, pixels: int) -> Split:
    """The split with smaller images, averaged down with antialiasing."""
    if pixels == split.input_shape[1]:
        return split
    images = torch.cat([
        interpolate(part.float(), size=(pixels, pixels), mode="bilinear", antialias=True).round().clamp(0, 255).byte()
        for part in split.images[split.index].split(5000)
    ])  # fmt: skip
    return Split(images, split.labels, torch.arange(len(images)), split.role, split.name, split.class_names)


def shifted(most: int) -> tuple[str, ...]:
    """Crops that move the image by up to so many pixels, mirrored or not."""
    places = range(4 - most, 4 + most + 1)
    return tuple(view_name(mirrored, top, left) for mirrored in (False, True) for top in places for left in places)


if __name__ == "__main__":
    main()
