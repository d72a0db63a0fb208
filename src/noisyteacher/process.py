"""Memory settings of a process. They belong to a program: the command line and its workers call this, a library never.

A convolutional step allocates and frees tensors of tens of megabytes. The C library of Linux (glibc) returns such
blocks to the system at once and gets them again, cleared and page by page, at the next step: for some students that is
a third of the step. A tuned process keeps them, in large pages.
"""

from __future__ import annotations

import os

VARIABLE = "NOISYTEACHER_ALLOCATOR"
"""Set to `system` in the environment, it turns this off."""
LARGE_PAGES = "THP_MEM_ALLOC_ENABLE"
"""torch's switch, read at its first allocation: blocks from 2 MB on are advised to be large pages."""
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # mallopt(3)
_NEVER = 2**31 - 1
_AHEAD = 2**20


def tune_memory() -> bool:
    """Keep freed memory in this process, in large pages; returns whether that was done.

    To be called before torch allocates. Nothing changes if `NOISYTEACHER_ALLOCATOR=system` asks for that, if the
    environment has allocator settings of its own (MALLOC_..., GLIBC_TUNABLES, LD_PRELOAD), or without glibc.
    """
    import ctypes
    import platform

    if os.environ.get(VARIABLE) == "system":
        return False
    os.environ.setdefault(LARGE_PAGES, "1")
    configured = any(name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD") for name in os.environ)
    if configured or platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, _AHEAD))
    done = [library.mallopt(*pair) for pair in settings]
    return all(done)
