"""Memory of this host or container, and how often the kernel has killed a process for want of it."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def total_bytes() -> int:
    """Memory that processes here may use: the host's, or less where a control group limits it."""
    total = int(psutil.virtual_memory().total)
    for path in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # the file holds `max` where there is no limit
            return min(total, int(Path(path).read_text()))
    return total


def kills() -> int:
    """How many processes the kernel has killed for want of memory: in this control group, or on the whole host."""
    for path in (*_group_counters(), Path("/proc/vmstat")):
        with contextlib.suppress(OSError, ValueError):
            for line in path.read_text().splitlines():
                name, _, value = line.partition(" ")
                if name == "oom_kill":
                    return int(value)
    return 0


def _group_counters() -> list[Path]:
    paths = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers == "":
                paths += [Path(f"/sys/fs/cgroup{group}/memory.events"), Path("/sys/fs/cgroup/memory.events")]
            elif controllers == "memory":
                paths += [Path(f"/sys/fs/cgroup/memory{group}/memory.oom_control")]
    return paths
