"""How long the command line and the import take, against an interpreter that does nothing, in turns."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from conftest import Turns

GOAL_SECONDS = {"help": 0.2, "import": 0.1}
SCRIPT = Path(sysconfig.get_path("scripts")) / "noisyteacher"
CASES = {
    "help": [str(SCRIPT), "--help"],
    "import": [sys.executable, "-c", "import noisyteacher"],
}
# The same, and then a look at what was loaded; exit code 3 is ours.
LOADED = {
    "help": "import sys; from noisyteacher.cli import main; sys.argv[:] = ['noisyteacher', '--help']\n"
    "try: main()\n"
    "except SystemExit as end: code = end.code or 0\n"
    "sys.exit(3 if 'torch' in sys.modules else code)",
    "import": "import sys, noisyteacher; sys.exit(3 if 'torch' in sys.modules else 0)",
}


def call(command: list[str]) -> None:
    """Run it to its end; it must succeed."""
    ended = subprocess.run(command, capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr.decode()


@pytest.mark.parametrize("case", CASES)
def test_start(turns: Turns, case: str) -> None:
    call([sys.executable, "-c", LOADED[case]])
    result = turns.measure(
        lambda: call(CASES[case]), lambda: call([sys.executable, "-c", "pass"]), rounds=15, sane=(1, 40)
    )
    turns.tell_ratio(result, "python -c pass", f"{result.work:.3f} s (goal: under {GOAL_SECONDS[case]} s)")
