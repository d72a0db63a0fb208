"""Our epoch against those of KD_Lib, torchdistill and PyTorch's tutorial, in turns: `make bench-peers`."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from epochs import BATCH, PEERS, Task, ours, ready
from torch import Tensor

import noisyteacher as nt
from noisyteacher.data import Split
from noisyteacher.device import resolve_precision
from noisyteacher.runs import host

SHAPES = {
    # teacher, student, image, steps of an epoch, rounds
    "CIFAR": ("nin", "lenet-cifar", (3, 32, 32), 3, 4),
    "MNIST": ("lenet", "mlp800", (1, 28, 28), 96, 5),
}


def a_task(shape: str, folder: Path) -> Task:
    """Images of two gray levels and a bright place that tells the class; fresh weights; the teacher's stored logits."""
    teacher_name, student_name, image, steps, _ = SHAPES[shape]
    dice = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (steps * BATCH,), generator=dice)
    images = torch.randint(0, 120, (len(labels), *image), generator=dice, dtype=torch.uint8)
    for row, label in enumerate(labels.tolist()):
        images[row, :, 2 * label : 2 * label + 6, :] += 100
    split = Split(images, labels, torch.arange(len(labels)), "train", shape, tuple("abcdefghij"))
    mean, deviation = split.images.float().div(255).mean((0, 2, 3)), split.images.float().div(255).std((0, 2, 3))
    front = nt.models.Standardize(mean, deviation)
    teacher = nt.build_model(teacher_name, classes=10, input_shape=image, preprocess=front, seed=1).eval()
    with torch.no_grad():  # logits of an everyday size: fresh weights of a deep network give larger ones
        size = teacher(split.images[:64]).square().mean().sqrt()
        last = [layer for layer in teacher.modules() if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear))][-1]
        last.weight.mul_(3 / size)
    student = nt.build_model(student_name, classes=10, input_shape=image, preprocess=front, seed=2)
    store = nt.extract(teacher, split, folder / shape)
    return Task(teacher, student, split, store, tuple(mean.tolist()), tuple(deviation.tolist()))


def same_targets(task: Task) -> float:
    """The largest difference between a stored logit and the one that a peer's teacher gives; at most 1e-3."""
    from epochs import Photographs

    network, _ = task.networks()
    images = torch.stack([Photographs(task)[row][0] for row in range(32)])
    with torch.no_grad():
        answers: Tensor = network(images)
    gap = float((answers - task.store.logits("clean", torch.arange(32))).abs().max())
    assert gap < 1e-3, gap
    return gap


class Side:
    """One tool in a process of its own, so that none gains or loses by what another does to the process."""

    def __init__(self, name: str, shape: str, folder: Path, threads: int) -> None:
        command = [
            sys.executable,
            str(Path(__file__).parent),
            "--side",
            name,
            shape,
            str(folder),
            "--threads",
            str(threads),
        ]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def epoch(self) -> tuple[float, float]:
        """Seconds and mean loss of the next epoch."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("epoch\n")
        self.process.stdin.flush()
        seconds, loss = json.loads(self.process.stdout.readline())
        return seconds, loss

    def end(self) -> None:
        self.process.communicate(timeout=60)


def take_part(name: str, shape: str, folder: Path) -> None:
    """A side's process: an epoch for each line of standard input, its seconds and loss as a line of standard output."""
    epoch = {"noisyteacher": ours, **PEERS}[name](a_task(shape, folder))
    answers, sys.stdout = sys.stdout, sys.stderr  # what a peer prints is no answer
    for _ in sys.stdin:
        started = time.perf_counter()
        loss = epoch()
        print(json.dumps([time.perf_counter() - started, loss]), file=answers, flush=True)


def compare(shape: str, folder: Path, rounds: int | None, threads: int) -> dict[str, object]:
    """Milliseconds a step of each, in turns, and the ratio of each peer's to ours."""
    _, _, _, steps, usual = SHAPES[shape]
    gap = same_targets(a_task(shape, folder))
    sides = {name: Side(name, shape, folder, threads) for name in ("noisyteacher", *PEERS)}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    losses: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(1 + (rounds or usual)):  # the first is not counted
        for name, side in sides.items():
            took, loss = side.epoch()
            losses[name].append(loss)
            if number:
                seconds[name].append(took)
    for side in sides.values():
        side.end()
    for name, values in losses.items():
        assert values[-1] < values[0], f"{shape}: {name} does not learn: {values}"
    ours_s = seconds["noisyteacher"]
    lines = {}
    for name, values in seconds.items():
        ratios = [peer / mine for peer, mine in zip(values, ours_s, strict=True)]
        lines[name] = {
            "ms_per_step": 1000 * statistics.median(values) / steps,
            "ratio": statistics.median(ratios),
            "ratio_range": [min(ratios), max(ratios)],
            "loss_first": losses[name][0],
            "loss_last": losses[name][-1],
        }
        if name != "noisyteacher":
            mine = 1000 * statistics.median(ours_s) / steps
            words = f"{lines[name]['ms_per_step']:.1f} ms a step of {name}, {mine:.1f} ours"
            spread = f"{min(ratios):.1f} to {max(ratios):.1f}, n={len(ratios)}"
            print(f"{shape}: {words}: {lines[name]['ratio']:.1f} x ({spread})")
    return {"steps": steps, "rounds": len(ours_s), "largest_difference_of_targets": gap, "peers": lines}


def main() -> None:
    """All shapes; the result goes to benchmarks/results/peers.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", nargs=3, metavar=("TOOL", "SHAPE", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "peers.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    ready()
    if options.side:
        name, shape, folder = options.side
        take_part(name, shape, Path(folder))
        return
    with tempfile.TemporaryDirectory() as folder:
        shapes = {shape: compare(shape, Path(folder), options.rounds, options.threads) for shape in SHAPES}
    record = {
        "batch": BATCH, "threads": options.threads, "precision": resolve_precision("auto", torch.device("cpu")),
        "torch": torch.__version__, "python": platform.python_version(), "cpu": host()["cpu"],
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "peers": {"KD_Lib": "0.0.32", "torchdistill": "1.1.5"}, "shapes": shapes,
    }  # fmt: skip
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(options.out)


if __name__ == "__main__":
    sys.exit(main())
