"""docs/formats.md is true: its readers run on files the package wrote, and what it says of bytes is found in them."""

from __future__ import annotations

import hashlib
import json
import re
import struct
import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

import noisyteacher as nt
from helpers import write_logits
from noisyteacher.data.builtin import EMBEDDED
from noisyteacher.io.files import write_json
from noisyteacher.models import code_fingerprint, preprocess_fingerprint, weights_fingerprint
from noisyteacher.runs import RESERVED
from noisyteacher.store import FINGERPRINTS, Plan

PAGE = Path(__file__).resolve().parents[1] / "docs" / "formats.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def section(heading: str) -> str:
    """The text below the heading that begins like this, up to the next one."""
    below = TEXT.partition(f"\n{heading}")[2]
    assert below, heading
    return re.split(r"^#", below, maxsplit=1, flags=re.MULTILINE)[0]


def reader(name: str) -> Any:
    """The function of this name from the one code block of the page that defines it."""
    (block,) = [block for block in BLOCKS if f"def {name}(" in block]
    namespace: dict[str, Any] = {}
    exec(compile(block, f"{PAGE.name}: {name}", "exec"), namespace)
    return namespace[name]


def flipped(data: bytes, bit: int) -> bytes:
    return data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]


def fake_store(folder: Path, dtype: Literal["float32", "float16"] = "float32") -> torch.Tensor:
    """A store of 2 views x 7 rows x 3 classes in shards of 3, 3 and 1 rows; returns its logits `[2, 7, 3]`."""
    prints: dict[Any, str] = dict.fromkeys(FINGERPRINTS, "0123456789abcdef" * 4)
    plan = Plan(7, 3, ("clean", "mirror"), prints, dtype, "fp32", 3)
    logits = torch.randn(2, 7, 3, generator=torch.Generator().manual_seed(0)) * 5
    write_logits(folder, plan, logits)
    return logits


def test_every_python_block_is_one_of_those_run_here() -> None:
    assert [re.findall(r"^def (\w+)", block, re.MULTILINE) for block in BLOCKS] == [
        ["crc32c", "read_sealed"],
        ["read_store"],
        ["read_packed"],
    ]


def test_the_first_block_needs_the_standard_library_alone() -> None:
    assert set(re.findall(r"^(?:import|from) (\w+)", BLOCKS[0], re.MULTILINE)) == {"json", "struct", "pathlib"}


def test_the_checksum_is_the_published_one() -> None:
    assert f"{reader('crc32c')(b'123456789'):08x}" == "e3069283"


def test_the_seal_of_a_json_file(tmp_path: Path) -> None:
    file = tmp_path / "one.json"
    write_json(file, "run-result", 1, {"note": "crc32c=deadbeef, größer", "value": 1.5})
    read_sealed = reader("read_sealed")
    record = read_sealed(file)
    assert list(record) == ["checksum", "kind", "schema", "note", "value"]
    assert record["note"] == "crc32c=deadbeef, größer"
    whole = file.read_bytes()
    assert whole.startswith(b'{\n "checksum": "crc32c=')
    assert whole.endswith(b"}\n")
    # Every bit, those of the seal included.
    for bit in range(len(whole) * 8):  # about 1,000
        file.write_bytes(flipped(whole, bit))
        with pytest.raises(ValueError):
            read_sealed(file)
    file.write_bytes(whole[:-1])
    with pytest.raises(ValueError):
        read_sealed(file)


def test_the_record_of_a_model_file(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    model = nt.build_model(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)), input_shape=(1, 2, 2))
    nt.save_model(model, file, {"scores": {"error": 1.5}})
    record = reader("read_sealed")(file)
    assert list(record) == ["checksum", "kind", "schema", "architecture", "scores"]
    assert (record["kind"], record["schema"]) == ("model", 1)
    assert list(record["architecture"]) == ["name", "classes", "input_shape", "options", "preprocess"]
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    assert next(iter(header)) == "__metadata__"
    assert list(header["__metadata__"]) == ["noisyteacher"]
    assert {name.split(".")[0] for name in header if name != "__metadata__"} == {"network"}
    file.write_bytes(flipped(data, 8 * len(data) - 1))
    with pytest.raises(ValueError):
        reader("read_sealed")(file)


def test_fingerprints_are_what_the_page_says() -> None:
    linear = torch.nn.Linear(2, 3)
    model = nt.build_model(torch.nn.Sequential(torch.nn.Flatten(), linear), input_shape=(1, 1, 2))
    bias, weight = (tensor.detach().numpy().tobytes() for tensor in (linear.bias, linear.weight))
    expected = b"1.bias\x1ftorch.float32\x1f(3,)\x1f" + bias + b"1.weight\x1ftorch.float32\x1f(3, 2)\x1f" + weight
    assert weights_fingerprint(model) == hashlib.sha256(expected).hexdigest()
    nothing = hashlib.sha256(b"").hexdigest()
    assert preprocess_fingerprint(model) == hashlib.sha256(b"Scale()" + nothing.encode()).hexdigest()
    preprocessings = '["local-contrast", "pixel-mean", "scale", "standardize"]'
    architecture = (
        '{"classes": 3, "input_shape": [1, 1, 2], "name": "module:torch.nn.modules.container.Sequential", '
        '"options": {}, "preprocess": "scale"}'
    )
    code = f"{model}[{architecture}, {preprocessings}]"
    assert code_fingerprint(model) == hashlib.sha256(code.encode()).hexdigest()
    images = torch.arange(12, dtype=torch.uint8).view(3, 1, 2, 2)
    split = nt.Split(images, None, torch.tensor([2, 0]), "train", "toy", ("a", "b"))
    pixels = bytes([8, 9, 10, 11, 0, 1, 2, 3])
    assert split.fingerprint == hashlib.sha256(b"uint8 2x1x2x2\n" + pixels).hexdigest()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_reader_of_a_store(tmp_path: Path, dtype: Literal["float32", "float16"]) -> None:
    logits = fake_store(tmp_path / "store", dtype)
    views, values = reader("read_store")(tmp_path / "store")
    assert views == ["clean", "mirror"]
    assert values.dtype == np.float32
    stored = logits if dtype == "float32" else logits.half().float()
    assert np.array_equal(values, stored.numpy())


def test_the_reader_notices_a_shard_of_another_place_and_a_truncated_one(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    fake_store(folder)
    read_store, (first, second) = reader("read_store"), sorted(folder.glob("shard-*"))[:2]
    whole = second.read_bytes()
    second.write_bytes(first.read_bytes())
    with pytest.raises(ValueError, match="another store"):
        read_store(folder)
    second.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="truncated"):
        read_store(folder)


def test_the_names_that_a_child_run_cannot_have() -> None:
    sentence = TEXT[TEXT.index("and none of") : TEXT.index("A run's id is")]
    assert set(re.findall(r"`([^`]+)`", sentence)) == RESERVED


def test_store_json_and_its_digests(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    fake_store(folder)
    store = reader("read_sealed")(folder / "store.json")
    assert list(store) == re.findall(r"^\| `(\w+)` \|", section("### store.json"), re.MULTILINE)
    keys = ("rows", "classes", "views", "fingerprints", "dtype", "precision", "rows_per_shard")
    plan = json.dumps({key: store[key] for key in keys}, sort_keys=True, separators=(",", ":"))
    assert store["plan"] == hashlib.sha256(plan.encode()).hexdigest()
    assert nt.LogitStore.open(folder).digest == hashlib.sha256((folder / "store.json").read_bytes()).hexdigest()
    for shard in store["shards"]:
        data = (folder / shard["file"]).read_bytes()
        assert list(shard) == ["file", "first_row", "rows", "bytes", "crc32c"]
        assert (shard["bytes"], shard["crc32c"]) == (len(data), f"{reader('crc32c')(data):08x}")
        assert list(reader("read_sealed")(folder / shard["file"]))[2:] == ["schema", "plan", "first_row", "rows"]


def test_the_files_of_a_training(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (24, 1, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels, names = torch.arange(24) % 2, ("a", "b")
    train = nt.Split(images, labels[:16], torch.arange(16), "train", "toy", names)
    val = nt.Split(images, labels[16:], torch.arange(16, 24), "val", "toy", names)
    seen: list[dict[str, Any]] = []

    def look(tick: Any) -> None:
        state = tmp_path / "run" / "checkpoint" / "state.safetensors"
        if state.exists():
            seen.append(reader("read_sealed")(state))

    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    nt.fit(
        model, train, nt.supervised(), val=val, epochs=2, batch_size=4,
        run=tmp_path / "run", checkpoint_every_s=0.0, progress=look,
    )  # fmt: skip
    files = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert files == ["last.safetensors", "metrics.jsonl", "weights.safetensors"]
    training = reader("read_sealed")(tmp_path / "run" / "weights.safetensors")["training"]
    row = next(line for line in TEXT.splitlines() if line.startswith("| `settings` |"))
    assert list(training) == ["settings", "best_epoch", "epochs"]
    assert list(training["settings"]) == list(dict.fromkeys(re.findall(r"`(\w+)`", row)))[1:]
    assert seen
    assert list(seen[-1]["progress"]) == re.findall(r"^\| `(\w+)` \|", section("### Checkpoints"), re.MULTILINE)
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(metrics) == 2
    assert set(metrics[0]) <= set(re.findall(r"`([^`\n]+)`", section("### metrics.jsonl")))


def test_the_results_of_a_sweep(tmp_path: Path) -> None:
    """Every key of a sweep's, a condition's and a training's result stands in the page's tables, and no other."""

    def keys(heading: str) -> set[str]:
        cells = [line.split("|")[1] for line in section(heading).splitlines() if line.startswith("| `")]
        return {key for cell in cells for key in re.findall(r"`([^`]+)`", cell)}

    base = {
        "data": {"limit": 40},
        "teacher": {"epochs": 1},
        "student": {"epochs": 1},
        "run": {"output_dir": str(tmp_path)},
    }
    folder = nt.sweep(base, {"noise.sigma": [0.5]}).path
    record = json.loads((folder / "result.json").read_text())["result"]
    condition = record["conditions"][-1]
    assert set(record) == keys("#### Of a compression, a sweep")
    assert set(condition) == keys("#### Of a condition")
    named = set(re.findall(r"`(\w+)`", section("#### Of a condition")))
    assert set(condition["scores"]["test"]["error"]) <= named
    assert set(condition["against_clean"]["test"]) <= named
    cell = json.loads((folder / condition["runs"][0] / "result.json").read_text())["result"]
    assert set(cell) == keys("#### Of a training") - {"choice", "checks", "costs", "trained_on"}
    beside = json.loads((folder / "conditions.json").read_text())
    assert list(beside) == ["checksum", "kind", "schema", "conditions", "families", "failed"]
    assert {*condition, "seconds"} >= set(beside["conditions"][0])
    assert set(record["families"][0]) <= set(re.findall(r"`(\w+)`", section("#### Of a compression, a sweep")))


def test_the_embedded_data() -> None:
    data = (EMBEDDED / "mnist-5k.npz").read_bytes()
    assert f"{len(data):,} bytes" in TEXT
    assert hashlib.sha256(data).hexdigest() in TEXT
    with zipfile.ZipFile(EMBEDDED / "mnist-5k.npz") as opened:
        kinds = [(member.filename, member.compress_type, member.date_time[:3]) for member in opened.infolist()]
    assert kinds == [(f"{name}.npy", zipfile.ZIP_DEFLATED, (1980, 1, 1)) for name in "xy"]
    with np.load(EMBEDDED / "mnist-5k.npz") as arrays:
        assert (arrays["x"].dtype, arrays["x"].shape) == (np.uint8, (5000, 28, 28))
        assert np.array_equal(arrays["y"], np.arange(5000) % 10)


def test_the_reader_of_packed_data(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 3, 6, 5), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", x_train=images, y_train=np.arange(20) % 3, x_val=images[:4])
    packed = nt.pack_data(tmp_path / "set.npz", tmp_path / "out")
    pixels, labels, names = reader("read_packed")(packed.path, "train")
    assert np.array_equal(pixels, images)
    assert (labels, names[:2]) == ([row % 3 for row in range(20)], ["0", "1"])
    pixels, labels, _ = reader("read_packed")(packed.path, "val")
    assert np.array_equal(pixels, images[:4])
    assert labels is None
    record = reader("read_sealed")(packed.path / "packed.json")
    assert list(record) == [
        "checksum", "kind", "schema", "name", "input_shape", "class_names", "parts", "crc32c", "left_out", "note",
        "source", "fit", "grey", "pillow",
    ]  # fmt: skip
    (train, val) = record["parts"]
    assert list(train) == ["role", "files", "labels"]
    assert val["labels"] is None
    whole = (packed.path / "images.u8").read_bytes()
    assert whole == images.tobytes() + images[:4].tobytes()
    assert record["crc32c"] == f"{reader('crc32c')(whole):08x}"
