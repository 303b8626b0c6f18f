"""Settings of the C library's allocator for a process that trains or generates.

XLA's CPU backend asks for one block of temporary memory per execution and frees it at the end. By default glibc hands such a block back
to the kernel each time, and the page faults of getting it again took a third of a training step.
"""

from __future__ import annotations

import ctypes
import sys

# Parameters of glibc's mallopt, from malloc.h
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
M_ARENA_MAX = -8


def keep_freed_memory() -> None:
    """Let this process reuse freed blocks of any size instead of returning them; with another C library than glibc, do nothing.

    To be called before any thread starts: a thread that already has a heap of its own goes on returning large blocks.
    """
    if not sys.platform.startswith("linux"):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(M_ARENA_MAX, 1)  # only the first heap can hold blocks of any size
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, -1)  # never
