"""What a disk may hold after the power went: every state that a trace of system calls allows, laid out in a folder.

The model is that of POSIX without a helpful file system. What was written to a file is safe once that file was fsynced;
else nothing, half of it or all of it may be there. Creations, renames and removals are safe once their folder was
fsynced; of those after it any first part may be there, for they are kept in order.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

OPTIONS = ("-y", "-xx", "-s", "100000000", "-e", "signal=none")
"""For strace: paths of descriptors, strings in hex and whole."""
TRACED = "openat,write,pwrite64,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,ftruncate"


@dataclass
class File:
    """One inode: what is safe of it, and what was written since."""

    safe: bytes = b""
    written: bytes = b""


@dataclass
class Disk:
    """Files by number, the entries that are safe, and those changed since."""

    files: dict[int, File] = field(default_factory=dict)
    entries: dict[str, int | None] = field(default_factory=dict)
    """Path -> file, or None for a folder."""
    pending: list[tuple[str, str, int | None]] = field(default_factory=list)
    """(put | drop, path, file) not yet safe, in order."""

    def current(self) -> dict[str, int | None]:
        """The entries as a process sees them."""
        return self._with(len(self.pending))

    def _with(self, count: int) -> dict[str, int | None]:
        entries = dict(self.entries)
        for what, path, number in self.pending[:count]:
            if what == "put":
                entries[path] = number
            else:
                entries.pop(path, None)
        return entries

    def states(self) -> Iterator[dict[str, bytes | None]]:
        """Every content of the disk that a crash may leave now."""
        for count in range(len(self.pending) + 1):
            entries = self._with(count)
            loose = sorted({file for file in entries.values() if file is not None and self._is_loose(file)})
            for kept in product((0.0, 0.5, 1.0), repeat=len(loose)):
                shares = dict(zip(loose, kept, strict=True))
                yield {
                    path: None if file is None else self._kept(file, shares.get(file, 1.0))
                    for path, file in entries.items()
                }

    def _is_loose(self, number: int) -> bool:
        return self.files[number].safe != self.files[number].written

    def _kept(self, number: int, share: float) -> bytes:
        file = self.files[number]
        if not self._is_loose(number):
            return file.safe
        return file.safe if share == 0 else file.written[: round(len(file.written) * share)]


def states_of(trace: str, folder: Path, before: dict[str, bytes]) -> Iterator[dict[str, bytes | None]]:
    """Every state that a crash may leave of the folder, from before the first call of the trace to after the last.

    `before` holds the files that were there and safe. Paths are relative to the folder.
    """
    disk = Disk()
    for name, data in before.items():
        disk.files[len(disk.files)] = File(data, data)
        disk.entries[name] = len(disk.files) - 1
        for parent in Path(name).parents:
            disk.entries.setdefault(str(parent), None)
    disk.entries["."] = None
    yield from disk.states()
    for line in trace.splitlines():
        if _apply(disk, line, folder):
            yield from disk.states()


def lay_out(state: dict[str, bytes | None], folder: Path) -> None:
    """Make the folder hold this state."""
    for name in sorted(state):
        data, path = state[name], folder / name
        if data is None:
            path.mkdir(parents=True, exist_ok=True)
        elif path.parent.is_dir():  # a file whose folder was lost cannot be reached
            path.write_bytes(data)


def _apply(disk: Disk, line: str, folder: Path) -> bool:
    """Take one call into account; False where it is none of the folder's, or failed."""
    matched = re.match(r"\d+ +(\w+)\((.*)\) += (-?\d+)", line)
    if matched is None or matched[3].startswith("-"):
        return False
    call, rest = matched[1], matched[2]
    names = [
        bytes(int(digits, 16) for digits in text.split("\\x")[1:])
        for text in re.findall(r'"((?:\\x[0-9a-f]{2})*)"', rest)
    ]
    opened = re.match(r"\d+<((?:\\x[0-9a-f]{2})+|[^>]*)>", rest)
    if call in ("write", "pwrite64", "fsync", "fdatasync", "ftruncate"):
        name = _inside(_plain(opened[1]) if opened else "", folder)
        if name is None:
            return False
        number = disk.current().get(name)
        if call in ("fsync", "fdatasync"):
            if number is None:
                _settle(disk, name)
            else:
                disk.files[number].safe = disk.files[number].written
        elif number is not None and call == "write":
            disk.files[number].written += names[0]
        elif number is not None and call == "ftruncate":
            disk.files[number].written = disk.files[number].written[: int(rest.rsplit(", ", 1)[1])]
        else:
            raise AssertionError(f"not understood: {line[:200]}")
        return True
    places = [_inside(os.fsdecode(name), folder) for name in names]
    if not places or places[0] is None:
        return False
    if call == "openat":
        if "O_CREAT" not in rest and "O_TRUNC" not in rest:
            return False
        existing = disk.current().get(places[0])
        if existing is None:
            disk.files[len(disk.files)] = File()
            disk.pending.append(("put", places[0], len(disk.files) - 1))
        elif "O_TRUNC" in rest:
            disk.files[existing].written = b""
    elif call.startswith("rename"):
        assert places[1] is not None
        moved = disk.current()[places[0]]
        # One step for the file system: before it the old name, after it the new one, never both or neither.
        disk.pending.append(("put", places[1], moved))
        disk.pending.append(("drop", places[0], None))
    elif call.startswith("mkdir"):
        disk.pending.append(("put", places[0], None))
    else:
        disk.pending.append(("drop", places[0], None))
    return True


def _settle(disk: Disk, folder: str) -> None:
    """A folder was fsynced: its entries are safe, those of other folders are not."""
    mine = [entry for entry in disk.pending if str(Path(entry[1]).parent) == folder]
    for what, path, number in mine:
        if what == "put":
            disk.entries[path] = number
        else:
            disk.entries.pop(path, None)
    disk.pending = [entry for entry in disk.pending if entry not in mine]


def _plain(text: str) -> str:
    if text.startswith("\\x"):
        return os.fsdecode(bytes(int(digits, 16) for digits in text.split("\\x")[1:]))
    return text


def _inside(path: str, folder: Path) -> str | None:
    whole = Path(os.path.normpath(path))
    return str(whole.relative_to(folder)) if whole == folder or folder in whole.parents else None
