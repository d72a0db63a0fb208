"""How the C library keeps memory between the steps of a training, and how to leave that alone.

A convolutional step allocates and frees tensors of tens of megabytes. The C library of Linux (glibc) gives such blocks
back to the system at once and gets them again, cleared and page by page, at the next step: for some students that is a
third of the step. Here they are kept, and asked for in large pages, by the C library's and torch's own switches.
"""

from __future__ import annotations

import functools
import os

VARIABLE = "NOISYTEACHER_ALLOCATOR"
LARGE_PAGES = "THP_MEM_ALLOC_ENABLE"
"""torch's switch: blocks from 2 MB on are aligned to large pages and advised to be such (c10, CPU allocator)."""
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # mallopt(3)
_NEVER = 2**31 - 1
_AHEAD = 2**20


def ask_for_large_pages() -> None:
    """Set torch's switch for large pages, unless it is set; torch reads it at its first allocation, so before that."""
    if os.environ.get(VARIABLE) != "system":
        os.environ.setdefault(LARGE_PAGES, "1")


@functools.cache
def keep_memory() -> str:
    """Let the C library keep what is freed, from now on and in this whole process; returns what was done.

    `kept`: blocks of every size come from the heap, which does not shrink. `system`: nothing was changed, because
    `NOISYTEACHER_ALLOCATOR=system` asks for that, because the environment has settings of its own (MALLOC_...,
    GLIBC_TUNABLES, LD_PRELOAD), or because the C library is another one. What was once needed stays with the process
    until it ends.
    """
    import ctypes  # these two would make `import noisyteacher` slower
    import platform

    own = [name for name in os.environ if name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD")]
    if os.environ.get(VARIABLE) == "system" or own or platform.libc_ver()[0] != "glibc":
        return "system"
    library = ctypes.CDLL(None)
    done = [library.mallopt(*pair) for pair in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, _AHEAD))]
    return "kept" if all(done) else "system"


def give_back() -> None:
    """What is kept and free now goes back to the system: before something large that is no step of a training."""
    if keep_memory() == "kept":
        import ctypes

        ctypes.CDLL(None).malloc_trim(0)
