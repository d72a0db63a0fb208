"""Official files: found under a root, compared with their md5, fetched where they are missing."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from noisyteacher.errors import DataError
from noisyteacher.files import unmade_on_failure

_CHUNK = 2**20


@dataclass(frozen=True)
class Official:
    """One published file: its name, its md5 and where it can be had (mirrors are tried in order)."""

    file: str
    md5: str
    urls: tuple[str, ...] = ()


def md5_of(path: Path) -> str:
    """The file's md5 as 32 hex digits. Raises DataError naming the file when it cannot be read."""
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with path.open("rb") as stream:
            while part := stream.read(_CHUNK):
                digest.update(part)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


def check(path: Path, md5: str, verify: bool) -> bool:
    """Whether the file is the official one, by its md5. Raises DataError naming the file if not and `verify` is set."""
    found = md5_of(path)
    if found != md5 and verify:
        raise DataError(
            f"{path}: md5 {found}, the official file has {md5}: it is truncated, damaged or not the official one; "
            "delete it to have it fetched again, or, if you know that it differs, pass --set data.verify=false (in "
            "Python verify=False)"
        )
    return found == md5


def obtain(official: Official, folder: Path, *, download: bool = True, verify: bool = True) -> tuple[Path, bool]:
    """(path, is it the official one) of the file in the folder, fetched into it first when it is missing.

    Raises DataError naming URL, target path and what to do when it is missing and cannot be fetched.
    """
    path = folder / official.file
    if not path.exists():
        if not download:
            raise DataError(
                f"{path}: missing, and download=False; fetch {official.urls[0]} and put it there, or name another root"
            )
        _fetch(official, path)
    return path, check(path, official.md5, verify)


def _fetch(official: Official, path: Path) -> None:
    """Fetch the file whole and compare its md5 before it gets its name, so that a broken transfer leaves nothing."""
    import pooch

    reasons = []
    with unmade_on_failure(path.parent):
        for url in official.urls:
            try:
                pooch.retrieve(url, known_hash=f"md5:{official.md5}", fname=path.name, path=path.parent)
                return
            except Exception as error:  # requests, urllib3, ssl, sockets, hashes and disks: each has its own family
                reasons.append(f"{url}: {_first_line(error)}")
        raise DataError(
            f"{path}: missing, and it could not be fetched ({'; '.join(reasons)}). Without a network, fetch "
            f"{official.urls[0]} elsewhere, put it at {path} and try again, or use the embedded data set 'mnist-5k'"
        )


def _first_line(error: Exception) -> str:
    text = str(error).splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
