"""How this process keeps host memory from one step to the next."""

from __future__ import annotations

import contextlib
import ctypes

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
"""glibc's names for what `mallopt` sets."""
_WHOLE_BLOCK_BYTES = 32 << 20
"""A block from this size on, such as a gathered layer, goes back to the system when it is freed."""
_KEPT_BYTES = 128 << 20
"""What smaller blocks free is kept up to here: the next step then touches no page that the system must clear first."""


def keep_memory() -> None:
    """Fix the C library's thresholds, where it is glibc: it would raise the first by itself, and keep what is gathered."""
    with contextlib.suppress(AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _WHOLE_BLOCK_BYTES)
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
