"""Run folders: what was asked, by whose code, on which machine, and what came out (docs/formats.md).

A run's state is read off its files and stored nowhere else: `result.json` is there, it is done; `error.txt`, it failed;
neither, it is unfinished. There is no index: a folder that is copied or deleted needs no other change.
"""

from noisyteacher.runs.folders import diff_runs, find_run, list_runs, remove_run
from noisyteacher.runs.record import ABSENT, by_name, compare, plain
from noisyteacher.runs.run import BEST, Run, folder_name, is_run, new_run

__all__ = [
    "ABSENT",
    "BEST",
    "Run",
    "by_name",
    "compare",
    "diff_runs",
    "find_run",
    "folder_name",
    "is_run",
    "list_runs",
    "new_run",
    "plain",
    "remove_run",
]
