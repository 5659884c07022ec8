"""How this process keeps host memory from one step to the next."""

from __future__ import annotations

import contextlib
import ctypes

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
"""glibc's parameters of `mallopt`."""


def keep_memory(*, sharded: bool) -> None:
    """Fix the thresholds of glibc's allocator, which otherwise raises them by itself; other C libraries are left alone.

    If every process holds the whole model, it keeps freed blocks below 32 MB, up to 128 MB in all: the next step then
    needs no new pages, which the system would have to clear first. If the model is sharded, memory for gathered weights
    goes back to the system at once; otherwise a process would keep as much again as the whole model.
    """
    with contextlib.suppress(AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        if sharded:
            mallopt(_MMAP_THRESHOLD, 1 << 20)
        else:
            mallopt(_MMAP_THRESHOLD, 32 << 20)
            mallopt(_TRIM_THRESHOLD, 128 << 20)
