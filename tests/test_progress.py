"""What is seen of work that runs: lines on stderr, a live line in a terminal, nothing where nothing is wanted."""

from __future__ import annotations

import inspect
import io
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import noisyteacher as nt
from noisyteacher import progress
from noisyteacher.errors import UsageError
from noisyteacher.progress import Display, counted, counted_if_slow, display, message, stage


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    instance = Clock()
    monkeypatch.setattr(progress, "time", instance)
    return instance


def screen(text: str) -> list[str]:
    """What a terminal shows of the text."""
    lines = []
    for line in text.split("\n"):
        cells: list[str] = []
        for part in line.split("\r"):
            cells[: len(part)] = part
        lines.append("".join(cells).rstrip())
    return lines


def split(n: int = 64, role: str = "train") -> nt.Split:
    images = torch.randint(0, 256, (n, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return nt.Split(images, torch.arange(n) % 2, torch.arange(n), role, "tiny", ("a", "b"))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 2))


def test_a_log_gets_a_line_when_a_stage_begins_every_so_often_and_when_it_ends(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = Display(live=False)
    for step in range(101):
        lines("training", step, 100, f"epoch {step}")
        clock.now += 0.3
    with stage(lines, "measuring costs"):
        clock.now += 50
    message(lines, "warning", "all is lost")
    out, err = capsys.readouterr()
    assert out == ""
    calls = err.splitlines()
    assert calls[0] == "training: 0 %, epoch 0"
    assert calls[1:4] == [
        "training: 34 %, 19.8 s left, epoch 34", "training: 68 %, 9.6 s left, epoch 68",
        "training: 100 %, in 30.0 s, epoch 100",
    ]  # fmt: skip
    assert calls[4:] == ["measuring costs ...", "WARNING: all is lost"]


def test_a_log_of_python_hears_nothing_of_what_takes_under_two_seconds(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    for seconds, expected in ((1.9, 0), (2.4, 2)):
        lines = Display(live=False, delay_s=2.0)
        for step in range(1, 11):
            lines("training", step, 10, "note")
            clock.now += seconds / 9
        assert len(capsys.readouterr().err.splitlines()) == expected


def test_the_time_of_a_resumed_stage_is_estimated_from_its_first_count(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = Display(live=False, every_s=1.0)
    lines("training", 90, 100, "")
    clock.now += 5
    lines("training", 95, 100, "")
    assert capsys.readouterr().err.splitlines()[-1] == "training: 95 %, 5.0 s left"


def test_a_terminal_has_one_line_that_fits_and_keeps_what_took_long(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    live = Display(live=True)
    with stage(live, "reading the data"):
        assert screen(capsys.readouterr().err) == ["reading the data ..."]
        clock.now += 9
    for step in range(5):
        live("[1/2] a teacher with a long name", step, 4, "epoch 1/1 val error 12.34 % loss 0.5")
        clock.now += 1
    live("brief", 0, 5, "")
    live("brief", 5, 5, "")
    message(live, "warning", "the teacher is worse than a student on labels alone")
    live("training", 1, 4, "")
    live.close()
    err = capsys.readouterr().err
    assert all(len(part) <= 40 for part in err.replace("\n", "\r").split("\r"))
    assert screen(err) == [
        "[1/2] a teacher with a long name: 100 %,",
        "  in 4.0 s, epoch 1/1 val error 12.34 %",
        "  loss 0.5",
        "WARNING: the teacher is worse than a",
        "  student on labels alone",
        "",
    ]


def test_a_terminal_and_a_log_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert not display().live
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    assert display().live
    monkeypatch.setenv("TERM", "dumb")
    assert not display().live
    monkeypatch.setattr(sys, "stderr", None)
    display()("training", 1, 5, "nobody sees this")


def test_what_a_terminal_would_obey_is_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    message(Display(live=False), "warning", "a\x1b[2Jb")
    assert "\x1b" not in capsys.readouterr().err


def test_evaluations_are_spoken_of_when_they_take_more_than_a_second(clock: Clock) -> None:
    seen: list[int] = []
    tell = counted_if_slow(lambda _, done, total, note: seen.append(done), "evaluating", "images")
    assert tell is not None
    for done in range(1, 6):
        tell(done, 5)
        clock.now += 0.4
    assert seen == [4, 5]
    assert counted_if_slow(None, "evaluating", "images") is None


def test_what_is_counted_is_said() -> None:
    seen: list[tuple[Any, ...]] = []
    counted(lambda *calls: seen.append(calls), "logits", "answers")(300, 1200)
    assert seen == [("logits", 300, 1200, "300 of 1,200 answers")]


@pytest.mark.parametrize("name", ["fit", "fit_many", "extract", "evaluate", "predict", "compress", "sweep"])
def test_python_shows_progress_unless_told_not_to(name: str) -> None:
    assert inspect.signature(getattr(nt, name)).parameters["progress"].default is True


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stages that a display is told of, as if everything took long enough."""
    stages: list[str] = []

    class Shows:
        def __call__(self, stage: str, done: int, total: int, note: str) -> None:
            stages.append(stage)

        def close(self) -> None:
            stages.append("closed")

    monkeypatch.setattr(progress, "display", lambda *_: Shows())
    return stages


def test_fit_extract_and_evaluate_show_themselves_once(
    stages: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, val = network(), split(role="val")
    nt.fit(model, split(), nt.supervised(), val=val, epochs=2, batch_size=32)
    assert stages == ["preparing the training", *["training"] * 4, "closed"]  # and nothing of the validation inside
    stages.clear()
    nt.extract(model, split(), tmp_path / "a")
    nt.evaluate(model, val)
    assert stages == ["teacher's logits", "closed", "evaluating", "closed"]
    stages.clear()
    nt.fit(model, split(), nt.supervised(), epochs=1, progress=False)
    nt.extract(model, split(), tmp_path / "b", progress=False)
    nt.evaluate(model, val, progress=False)
    ticks: list[int] = []
    nt.fit(model, split(), nt.supervised(), epochs=1, progress=lambda tick: ticks.append(tick.step))
    assert (stages, ticks) == ([], [1])
    with pytest.raises(UsageError, match="progress=3: expected True, False, or a function to call"):
        nt.fit(model, split(), nt.supervised(), epochs=1, progress=3)  # type: ignore[arg-type]
    assert capsys.readouterr() == ("", "")


def test_compress_says_what_it_will_do_and_then_does_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = nt.load_data("mnist-5k", limit=60)
    options: dict[str, Any] = {"epochs": 1, "batch_size": 20, "noise": None}
    options["teacher_training"] = {"epochs": 1, "batch_size": 20}
    nt.compress("compact-xs", "compact-xs", data, output_dir=tmp_path, **options)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    plan = [line for line in lines if line.startswith("plan: ") and "label weight: 0.7" not in line]
    assert plan[0].startswith("plan: time: about ")
    assert plan[1:] == [
        "plan: teacher: compact-xs, trained for 1 epoch on 60 images of mnist-5k",
        "plan: students: 2 conditions (labels alone, distilled) x 1 seed = 2 trainings; 1 epoch each",
    ]
    starts = [next(n for n, line in enumerate(lines) if line.startswith(f"[{stage}/4]")) for stage in (1, 2, 3, 4)]
    assert max(lines.index(line) for line in plan) < starts[0]
    assert starts == sorted(starts)
    assert any(line.startswith("reading the data") for line in lines[: starts[0]])
    assert not any(line.startswith("training:") for line in lines)  # fit inside does not speak for itself
    nt.compress("mlp800", "mlp800", data, output_dir=tmp_path, baselines=False, progress=False, **options)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_sees_a_training_before_its_first_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What comes before it (precision, teacher's answers, optimizer) takes seconds on a busy machine."""

    class StoppedError(Exception):
        pass

    def stop(logits: object, batch: object) -> None:
        raise StoppedError

    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with pytest.raises(StoppedError):
        nt.fit(network(), split(), stop, epochs=1)
    assert "preparing the training ..." in capsys.readouterr().err
