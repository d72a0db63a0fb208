"""Records and settings from untrusted sources: JSON, run folders, logit stores, TOML."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

import noisyteacher as nt
from faults.confinement import Untrusted
from faults.mutations import ODDITIES
from faults.untrusted_models import Bytes, headers, raw, records, resealed, sealed_trees
from noisyteacher.config import build_config, read_config, template
from noisyteacher.errors import ConfigError
from noisyteacher.io.files import read_json, write_json
from noisyteacher.report import build_report
from noisyteacher.runs import Run, diff_runs, list_runs
from noisyteacher.store import LogitStore


def _json(data: bytes) -> tuple[Bytes, ...]:
    return raw(data), st.builds(resealed, raw(data)), sealed_trees(data)


def sealed_json(folder: Path) -> Untrusted:
    path = folder / "a.json"
    write_json(path, "things", 1, {"a": [1, 2.5, None, {"b": "c"}], "deep": {"er": {"est": True}}})
    data = path.read_bytes()
    return Untrusted("a.json", lambda path: read_json(path, "things", 1), _json(data), whole=(data,))


def stores(folder: Path) -> Untrusted:
    data = _store(folder)
    return Untrusted("store/store.json", lambda path: _opened(path.parent), _json(data["store.json"]), named=False)


def shards(folder: Path) -> Untrusted:
    name = "shard-00001.safetensors"
    data = _store(folder)[name]
    # A store vouches for the bytes of its shards; without its word they are looked at by themselves.
    ways = (raw(data), st.builds(resealed, raw(data)), headers(data), records(data))

    def read(path: Path) -> None:
        LogitStore.open(path.parent, verify=False).verify()

    return Untrusted(f"store/{name}", read, ways, whole=(data,))


def _store(folder: Path) -> dict[str, bytes]:
    data = nt.load_data("mnist-5k", limit=30).train
    teacher = nt.build_model("mlp800", classes=10, input_shape=(1, 28, 28)).eval()
    store = nt.extract(teacher, data, folder / "store", rows_per_shard=10).path
    return {file.name: file.read_bytes() for file in store.iterdir()}


def _opened(path: Path) -> None:
    LogitStore.open(path).logits("clean", torch.arange(3))


def runs(kind: str, file: str) -> Any:
    """A run folder of this kind with this one of its files changed, read by itself, listed, and reported on."""

    def prepare(folder: Path) -> Untrusted:
        import made_runs

        run = getattr(made_runs, kind)(folder)
        data = (run.path / file).read_bytes()

        def read(path: Path) -> None:
            for listed in list_runs(folder):
                assert listed.state in ("done", "failed", "unfinished", "damaged")
                assert isinstance(listed.started, str)
            opened = Run.open(run.path)
            opened.check()
            Run(path.parent).metrics()
            diff_runs(opened, opened)
            for form in ("md", "csv", "json"):
                build_report(opened, form)

        ways = _json(data) if file.endswith(".json") else (raw(data),)
        return Untrusted(str((run.path / file).relative_to(folder)), read, ways, whole=(data,), named=False, slow=True)

    return prepare


def configs(folder: Path) -> Untrusted:
    whole = (
        template().encode(),
        b'[student]\nname = "auto"\nviews = ["clean", "mirror"]\n[noise]\nsigma = [0.1, 0.5]\nalpha = "auto"\n'
        b'[target]\nmacs = "4x"\n[run]\nseeds = 3\n',
    )

    def odd(table: str, key: str, value: Any) -> bytes:
        text = "[" * 5000 if value == "@deep@" else json.dumps(value) if not isinstance(value, dict) else "{ a = 1 }"
        return f"[{table}]\n{key} = {text}\n".encode("utf-8", "surrogatepass")

    names = sorted({key for part in build_config({}).__dict__.values() for key in vars(part)})
    tables = st.sampled_from(
        ["data", "teacher", "student", "noise", "choice", "target", "run", "sweep", "x.y", "a" * 3000]
    )
    ways = (raw(*whole), st.builds(odd, tables, st.sampled_from(names), st.sampled_from(ODDITIES)))
    return Untrusted("a.toml", lambda path: build_config(read_config(path)), ways, whole=whole, named=False)


def overrides(folder: Path) -> Untrusted:
    """Given on a command line: `--set KEY=VALUE`, kept in a file here as the other inputs are."""
    seeds = [b"student.epochs=5", b"noise.sigma=[0.1, 0.5]", b'data.name="a"', b"student.options={a=1, b=[1,{c=2}]}"]

    def read(path: Path) -> None:
        text = path.read_bytes().decode("utf-8", "surrogateescape")
        with contextlib.suppress(ConfigError):
            from noisyteacher.config import parse_grid

            parse_grid([text])
        build_config(read_config(None, (text,)))

    keys = st.sampled_from(["noise.sigma", "student.views", "teacher.options.x", "a", "data"])
    words = st.builds(lambda key, value: f"{key}={value}".encode("utf-8", "surrogatepass"), keys, st.text(max_size=30))
    return Untrusted("set.txt", read, (raw(*seeds), words), whole=tuple(seeds[:2]), named=False)
