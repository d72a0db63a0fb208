"""A profile as a record and as a table: phases of a step, and how near it comes to the machine's matrix products."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from noisyteacher.device import matmul_peak
from noisyteacher.measure import measure
from noisyteacher.train.history import OTHER_PHASES, STEP_PHASES, PhaseTimer

WORDS = {
    "data": "making the batch",
    "forward": "forward",
    "noise": "targets, noise, loss",
    "backward": "backward",
    "checks": "gradients finite?",
    "optimizer": "optimizer",
    "logging": "metrics, progress",
    "validation": "validation",
    "checkpoint": "checkpoints",
}


def profiled(model: nn.Module, watch: PhaseTimer, recipe: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record of a profile; None when fewer than two steps were trained, as the first is not counted.

    `phases` are seconds; `flop_per_step` counts the multiplications and additions of the network forward, and backward
    for weights and for inputs, where the first layer's input needs none; `peak_flops` is the machine's matrix product,
    measured now in the training's precision; `cores_idle` is the share of the threads' time in which they did not work
    (CPU only).
    """
    if not watch.steps:
        return None
    layers = [layer.macs for layer in measure(model, latency=False).layers if layer.macs]
    flop = 2 * (3 * sum(layers) - (layers[0] if layers else 0)) * watch.samples / watch.steps
    seconds = sum(watch.seconds[phase] for phase in STEP_PHASES)
    peak = matmul_peak(watch.device, recipe.get("precision", "fp32"))
    threads = torch.get_num_threads()
    return {
        "steps": watch.steps,
        "samples": watch.samples,
        "phases": dict(watch.seconds),
        "step_ms": 1000 * seconds / watch.steps,
        "flop_per_step": flop,
        "peak_flops": peak,
        "share_of_peak": flop * watch.steps / seconds / peak,
        "threads": threads,
        "cores_idle": None if watch.device.type != "cpu" else max(0.0, 1 - watch.cpu_seconds / (seconds * threads)),
    }


def profile_table(record: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headers and rows: each phase with its milliseconds a step and its share; what lies between steps has no share."""
    phases, steps = record["phases"], record["steps"]
    whole = sum(phases[name] for name in STEP_PHASES)
    rows: list[tuple[str, ...]] = [
        (WORDS[name], f"{1000 * phases[name] / steps:.2f}", f"{100 * phases[name] / whole:.1f}") for name in STEP_PHASES
    ]
    rows.append(("a step", f"{record['step_ms']:.2f}", "100.0"))
    rows += [(WORDS[name], f"{1000 * phases[name] / steps:.2f}", "") for name in OTHER_PHASES]
    return ("phase", "ms a step", "share %"), rows


def profile_notes(record: Mapping[str, Any]) -> tuple[str, ...]:
    """What the table rests on, and how near the step comes to the machine's matrix products."""
    idle = record["cores_idle"]
    return (
        f"{record['steps']:,} steps after the first, {record['samples'] / record['steps']:.0f} samples each, "
        f"{record['threads']} thread(s){'' if idle is None else f', idle {100 * idle:.0f} % of the time'}.",
        f"A step's products, {record['flop_per_step'] / 1e9:.3g} GFLOP, run at {100 * record['share_of_peak']:.0f} % "
        f"of this machine's matrix-product peak, {record['peak_flops'] / 1e9:.0f} GFLOP/s, measured afterwards.",
    )
