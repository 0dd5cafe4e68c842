"""The C library's allocator on a CPU: large arrays that are freed stay with the process for the next step.

glibc asks Linux for every array above 32 MiB and gives it back as soon as it is freed. Before Linux hands the same
memory out again it clears it, page by page. On two CPU cores that was a third of the time of an evaluation, with 256
images of CIFAR-10 at once, and a twentieth of that of training. A process holds on to its peak instead.
"""

from __future__ import annotations

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """From now on this process keeps what it frees; whether that could be arranged.

    Not where the user has set glibc's allocator by environment variables, nor where there is no glibc.
    """
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, LARGEST_INT))
