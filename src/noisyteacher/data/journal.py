"""What is done of an unfinished pack: a sealed line per range, appended when the range is on the disk."""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path
from typing import Any

from noisyteacher.errors import FileFormatError
from noisyteacher.files import BLANK, SEAL, append_bytes, check_seal, read_bytes, seal
from noisyteacher.strictjson import parse_json


class Journal:
    """The lines of an earlier call with the same plan, to be kept one after the other or cut off; then new ones."""

    def __init__(self, path: Path, plan: str) -> None:
        """Reads the file as far as its lines hold; begins it anew where there is none or it is of another plan."""
        self.path = path
        self.saved: deque[tuple[dict[str, Any], int]] = deque()
        self.at = 0
        for line in read_bytes(path).split(b"\n")[:-1] if path.exists() else ():
            try:
                check_seal(line, path)
                self.saved.append((dict(parse_json(line)), len(line) + 1))
            except (FileFormatError, ValueError, TypeError):  # torn when the power went, or not ours
                break
        first = self.next()
        if first is not None and first.get("plan") == plan:
            self.keep()
        else:
            self.saved.clear()
            self.add({"plan": plan})

    def next(self) -> dict[str, Any] | None:
        """The next line of the earlier call; None when there is no more."""
        return self.saved[0][0] if self.saved else None

    def keep(self) -> None:
        """The next line holds."""
        self.at += self.saved.popleft()[1]

    def cut(self) -> None:
        """The lines that were not kept are forgotten; the next one that is added takes their place."""
        self.saved.clear()

    def add(self, record: dict[str, Any]) -> None:
        """One more line, durably. Raises WriteError."""
        line = seal(json.dumps({"checksum": (SEAL + BLANK).decode(), **record}).encode()) + b"\n"
        append_bytes(self.path, line, self.at)
        self.at += len(line)
