"""Put a finished `train` run's weights and its card into the package: python scripts/ship_teacher.py RUN NAME.

The card tells what a user must know before believing the weights: data, recipe, seed, measured scores with n, versions.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noisyteacher.io.files import sha256
from noisyteacher.runs import Run

SHIPPED = Path(__file__).resolve().parents[1] / "src" / "noisyteacher" / "models" / "shipped"


def main(folder: str, name: str) -> None:
    """Copies the weights and writes NAME.json beside them."""
    run = Run.open(folder)
    result = run.result()
    if run.info["kind"] != "train" or result is None:
        sys.exit(f"{folder}: not a finished train run")
    config = run.config["config"]
    data = {key: value for key, value in config["data"].items() if key != "root"}
    card = {
        "model": config["teacher"]["name"],
        "data": data,
        "recipe": {key: value for key, value in config["teacher"].items() if key not in ("name", "also")},
        "seed": run.config["seed"],
        "scores": result["scores"],
        "training": result["training"],
        "versions": run.info["versions"],
        "host": run.info["host"],
        "trained": run.info["started"],
    }
    put(name, run.path / "weights.safetensors", card)


def put(name: str, weights: Path, card: Mapping[str, Any]) -> None:
    """The weights into the package, and beside them the card with its name, checksum and licence."""
    target = SHIPPED / f"{name}.safetensors"
    SHIPPED.mkdir(exist_ok=True)
    shutil.copyfile(weights, target)
    whole = {"name": name, **card, "sha256": sha256([target.read_bytes()]), "licence": "Apache-2.0"}
    (SHIPPED / f"{name}.json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    print(f"{target}: {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
