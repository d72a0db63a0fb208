"""Print at the end which kinds of faults the tests of this folder injected, and how many of each."""

from __future__ import annotations

from collections import Counter

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    tried: Counter[str] = Counter()
    for report in terminalreporter.stats.get("passed", []):
        for what, number in getattr(report, "user_properties", []):
            if what.startswith("faults: "):
                tried[what.removeprefix("faults: ")] += int(number)
            elif what == "summary":
                terminalreporter.write_line(str(number))
    if tried:
        summary = ", ".join(f"{number:,} {what}" for what, number in sorted(tried.items()))
        terminalreporter.write_line(f"Faults injected, all survived: {summary}")
