"""Untrusted files, fuzzed: each is read, or refused with an error that names it, and nothing else happens."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from faults import untrusted_data as data
from faults import untrusted_models as models
from faults import untrusted_texts as texts
from faults.confinement import SECONDS, Untrusted, tried
from faults.traced_calls import leave_out

INPUTS = 1500 if os.environ.get("NOISYTEACHER_FAULTS") == "all" else 25
"""Of each kind of file; a fifth of it, and no fewer than 25, where one takes long."""

KINDS: dict[str, Callable[[Path], Untrusted]] = {
    "tensors": models.tensors,
    "weights": models.weights,
    "checkpoint": models.a_checkpoint,
    "safetensors of others": models.foreign_safetensors,
    "torch.save": models.torch_files,
    "onnx": models.onnx_models,
    "CIFAR batches": data.cifar_batches,
    "CIFAR in a tar": data.cifar_archives,
    "npz": data.npz,
    "idx": data.idx,
    "idx in gzip": data.gzipped_idx,
    "mat": data.mat,
    "images": data.images,
    "packed record": data.packed_records,
    "packed images": data.packed_images,
    "sealed JSON": texts.sealed_json,
    "store": texts.stores,
    "shard": texts.shards,
    **{
        f"{file} of a {kind}": texts.runs(kind, file)
        for kind in ("compression", "sweep", "reproduction")
        for file in ("result.json", "config.json", "run.json")
    },
    "metrics": texts.runs("compression", "teacher/metrics.jsonl"),
    "TOML": texts.configs,
    "--set": texts.overrides,
}


@pytest.mark.parametrize("kind", KINDS)
def test_read_or_refused(kind: str, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    untrusted = KINDS[kind](tmp_path)
    counts = tried(untrusted, tmp_path, max(25, INPUTS // 5) if untrusted.slow else INPUTS)
    assert counts["tried"] > counts["read"]
    record_property("faults: inputs fuzzed", counts["tried"])


RUNS = 60_000 if INPUTS > 25 else 500
"""Inputs that atheris makes, each read by seven parsers."""


def test_headers_by_coverage(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """atheris grows its inputs by the branches they reach; a crash, a leak or another exception ends it."""
    if importlib.util.find_spec("atheris") is None:
        leave_out("atheris is not installed (pip install atheris: Linux on x86-64, Python 3.11 to 3.13)")
    seeds = tmp_path / "seeds"
    seeds.mkdir()
    makers = (models.tensors, models.torch_files, data.cifar_batches, data.npz, data.idx, texts.sealed_json)
    for position, make in enumerate(makers):
        for number, whole in enumerate(make(tmp_path).whole):
            if len(whole) < 20_000:
                (seeds / f"{position}-{number}").write_bytes(whole)
    ran = subprocess.run(
        [
            sys.executable, str(Path(__file__).with_name("fuzz_headers.py")), f"-runs={RUNS}", "-seed=1",
            "-max_len=20000", f"-timeout={SECONDS:.0f}", "-rss_limit_mb=3000",
            f"-artifact_prefix={tmp_path}/", str(seeds),
        ],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    match = re.search(r"Done (\d+) (?:runs|in)", ran.stderr)
    assert match, ran.stderr[-3000:]
    record_property("faults: inputs fuzzed", int(match[1]))
