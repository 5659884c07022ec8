"""How this process keeps host memory from one step to the next."""

from __future__ import annotations

import contextlib
import ctypes

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
"""glibc's names for what `mallopt` sets."""


def keep_memory(*, sharded: bool) -> None:
    """Fix the C library's thresholds, where it is glibc, which else raises them by itself.

    Whole on every process: what blocks below 32 MB free is kept, up to 128 MB, so that the next step touches no page
    that the system must clear first. Sharded: what is gathered for a moment goes back to the system at once, or as much
    again as the model would stay.
    """
    with contextlib.suppress(AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        if sharded:
            mallopt(_MMAP_THRESHOLD, 1 << 20)
        else:
            mallopt(_MMAP_THRESHOLD, 32 << 20)
            mallopt(_TRIM_THRESHOLD, 128 << 20)
