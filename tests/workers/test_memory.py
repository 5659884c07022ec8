"""Memory of the host, as the kernel reports it."""

from __future__ import annotations

from pathlib import Path

import psutil

from workers.host import memory


def test_memory_kills_of_this_group_are_at_most_those_of_the_host() -> None:
    counters = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    assert 0 <= memory.kills() <= int(counters["oom_kill"])


def test_memory_is_at_most_that_of_the_host() -> None:
    gibibyte = 2**30
    assert gibibyte // 4 < memory.total_bytes() <= psutil.virtual_memory().total
