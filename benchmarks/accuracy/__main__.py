"""Test error after some minutes of wall clock, beside torchdistill, timm and labels alone: `make bench-accuracy`.

All sides get the same teacher, the same student with the same first weights (per seed), the same images, and the same
minutes, each in a process of its own. Ours is as it comes, without its controls; the learning rate and batch size of
each other side are chosen on validation first, of four pairs, in pilots of one length and seed. Runs that are done are
kept: the same command goes on where it was stopped (Ctrl-C), and prints the table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from noisyteacher.errors import NoisyTeacherError, UsageError
from noisyteacher.process import cores, tune_memory

HERE = Path(__file__).resolve().parent
SCRIPTS = HERE.parents[1] / "scripts"


@dataclass
class Background:
    """The cores that were busy with other processes since this was made."""

    busy: float = field(init=False)
    used: float = field(init=False)
    started: float = field(init=False)

    def __post_init__(self) -> None:
        self.busy, self.used, self.started = self._busy(), self._used(), time.monotonic()

    def cores(self) -> float | None:
        """None where the system does not say."""
        if not Path("/proc/stat").exists():
            return None
        foreign_s = self._busy() - self.busy - (self._used() - self.used)
        return max(0.0, round(foreign_s / (time.monotonic() - self.started), 2))

    @staticmethod
    def _busy() -> float:
        """Seconds of all cores but idle and waiting ones, also those that another virtual machine took."""
        if not (file := Path("/proc/stat")).exists():
            return 0.0
        user, nice, system, _, _, *interrupts = map(int, file.read_text().splitlines()[0].split()[1:9])
        return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")

    @staticmethod
    def _used() -> float:
        """Seconds of this process and those that it started and that have ended."""
        usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def train_in_process(spec: dict[str, Any]) -> dict[str, Any]:
    """The record of a run, trained in a new process. Raises SystemExit if it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": str(spec["threads"]), "MKL_NUM_THREADS": str(spec["threads"])}
    background = Background()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "record.json")
        command = [sys.executable, str(HERE), "--train", json.dumps(spec), "--out", str(out)]
        finished = subprocess.run(command, env=environment, check=False)
        if finished.returncode:
            raise SystemExit(f"{spec['contestant']} failed (exit code {finished.returncode}): its words are above")
        return {**json.loads(out.read_text()), "background_cores": background.cores()}


def train(spec: dict[str, Any]) -> dict[str, Any]:
    """The same in this process."""
    tune_memory()  # as our command line does, for every side
    import torch
    from contestants import CONTESTANTS, run

    import noisyteacher as nt

    torch.set_num_threads(spec["threads"])
    data = nt.load_data(spec["data"], train_limit=spec["train_limit"])
    try:
        return run(
            CONTESTANTS[spec["contestant"]], data, nt.load_model(spec["teacher"]), nt.load_model(spec["start"]),
            minutes=spec["minutes"], options=spec["options"], workers=spec["threads"], seed=spec["seed"],
            pilot=spec["candidate"] is not None,
        )  # fmt: skip
    except UsageError as error:
        if "target.minutes" not in str(error):
            raise
        return {"refused": str(error)}


def first_weights(folder: str, name: str, data: Any, seed: int) -> str:
    """The file of the student's first weights for a seed, written once."""
    import noisyteacher as nt

    file = Path(folder, f"{seed}.safetensors")
    if not file.exists():
        nt.save_model(nt.build_model(name, data, seed=seed), file)
    return str(file)


def versions() -> dict[str, str]:
    """Of ours, torch and the peers. Raises SystemExit where a peer is missing."""
    try:
        return {name: version(name) for name in ("noisyteacher", "torch", "torchvision", "timm", "torchdistill")}
    except PackageNotFoundError as error:
        raise SystemExit(
            f"{error.name} is not installed: start this by `make bench-accuracy`, which does it"
        ) from error


def compare(options: argparse.Namespace) -> None:
    """Do the runs that are missing; print the table; draw the figure beside the file."""
    import torch
    from contestants import CONTESTANTS
    from figure import standalone
    from records import QUIET, Records, comparisons, figure, refusals, schedule, summary, table

    import noisyteacher as nt
    from noisyteacher.device import resolve_precision
    from noisyteacher.models import weights_fingerprint
    from noisyteacher.runs import host

    data, teacher = nt.load_data(options.data, train_limit=options.train_limit), nt.load_model(options.teacher)
    if data.test is None or any(split.labels is None for split in data.parts.values()):
        raise SystemExit(f"{options.data}: expected labelled images in train, val and test")
    torch.set_num_threads(options.threads)
    conditions = {
        "data": Path(options.data).name, "n": {role: len(split) for role, split in data.parts.items()},
        "fingerprints": {role: split.fingerprint for role, split in data.parts.items()},
        "teacher": Path(options.teacher).name, "teacher_weights": weights_fingerprint(teacher),
        "student": options.student, "threads": options.threads, "pilot_minutes": options.pilot_minutes,
        "train_limit": options.train_limit, "cpu": host()["cpu"], "kernels": torch.backends.cpu.get_cpu_capability(),
        "precision": resolve_precision("auto", torch.device("cpu")), "python": platform.python_version(),
        "candidates": {name: list(map(dict, CONTESTANTS[name].candidates)) for name in CONTESTANTS},
        "versions": versions(),
    }  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    records = Records(options.out, conditions)
    counts = {name: len(CONTESTANTS[name].candidates) for name in options.contestants}
    runs = list(schedule(counts, options.minutes, options.seeds, options.pilot_minutes))
    missing = [run for run in runs if records.find(run) is None]
    hours = sum(run.minutes for run in missing) / 60
    print(f"{len(missing)} of {len(runs)} runs to do, {hours:.1f} h of training", flush=True)
    idle = Background()
    time.sleep(2 if missing else 0)
    if missing and (idle.cores() or 0) > QUIET:
        print(f"this machine is NOT QUIET: {idle.cores()} cores are busy with other work", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for number, run in enumerate(missing, 1):
            candidates, candidate = CONTESTANTS[run.contestant].candidates, run.candidate
            if candidates and candidate is None:
                candidate = records.chosen(run.contestant)
            chosen = {} if candidate is None else dict(candidates[candidate])
            record = train_in_process({
                **vars(run), "data": options.data, "train_limit": options.train_limit, "teacher": options.teacher,
                "start": first_weights(folder, options.student, data, run.seed),
                "options": chosen, "threads": options.threads,
            })  # fmt: skip
            records.add(run, {"options": chosen, **record})
            what = f"pilot {chosen}" if run.candidate is not None else f"seed {run.seed}"
            outcome = record.get("refused") or f"{record.get('test_error', record['val_error']):.2f} %"
            print(f"[{number}/{len(missing)}] {run.contestant}, {run.minutes:g} min, {what}: {outcome}", flush=True)
    rows = summary(records)
    print("\n".join([*table(rows), "", *comparisons(rows), *refusals(records)]))
    if not rows:
        return
    drawing = figure(rows, {name: side.title for name, side in CONTESTANTS.items()}, conditions)
    options.out.with_suffix(".svg").write_text(standalone(drawing.svg("accuracy")), encoding="utf-8")
    print(options.out, options.out.with_suffix(".svg"))


def numbers(text: str) -> list[float]:
    """`numbers("2,5") == [2, 5]`."""
    return [float(word) for word in text.split(",")]


def main() -> None:
    """The comparison, or, in a process of its own, a run of it."""
    sys.path.append(str(SCRIPTS))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist-5k", help="a data set by name, an .npz file or a folder of images")
    parser.add_argument(
        "--teacher", default="pretrained:nin-cifar10", help="a run folder, weights file, pretrained:NAME"
    )
    parser.add_argument("--student", default="compact-s", help="a network by name")
    parser.add_argument("--minutes", type=numbers, default=[2.0, 5.0, 15.0], help="2,5,15")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pilot-minutes", type=float, help="length of a pilot (default: the middle of --minutes)")
    names = ["ours", "torchdistill", "timm", "labels"]
    parser.add_argument("--contestants", nargs="+", choices=names, default=names)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--train-limit", type=int, help="at most so many training images")
    parser.add_argument("--out", type=Path, default=HERE.parent / "results" / "accuracy.json")
    parser.add_argument("--train", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.pilot_minutes = options.pilot_minutes or sorted(options.minutes)[len(options.minutes) // 2]
    if options.train:
        options.out.write_text(json.dumps(train(options.train)))
        return
    try:
        compare(options)
    except NoisyTeacherError as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("stopped: the same command goes on with the runs that are missing") from None


if __name__ == "__main__":
    main()
