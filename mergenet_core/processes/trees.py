"""Process trees: what a process has started, and ending all of it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable

import psutil

_POLL_SECONDS = 0.02


def tree(pid: int) -> list[psutil.Process]:
    """Return a process and all its descendants; an empty list when it has ended."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def runs(process: psutil.Process) -> bool:
    """Whether a process still runs. A zombie does not: all it holds is its exit status."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def kill(processes: Iterable[psutil.Process]) -> None:
    """Send SIGKILL to processes; one that has ended already is skipped."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()


def end(processes: Iterable[psutil.Process], seconds: float) -> list[int]:
    """Kill processes and wait until they have ended; return the ids of those that the kernel still holds then."""
    found = list(processes)
    kill(found)
    deadline = time.monotonic() + seconds
    while alive := [process.pid for process in found if runs(process)]:
        if time.monotonic() > deadline:
            return alive
        time.sleep(_POLL_SECONDS)
    return []


def end_descendants() -> None:
    """Kill everything that still runs below this process.

    With `adopt_orphans`, a killed child's own children become this process's, so this repeats until there are none.
    """
    while children := psutil.Process().children():
        for child in children:
            with contextlib.suppress(psutil.Error):
                child.kill()
                child.wait()


def reap_orphans(known: set[int]) -> None:
    """Collect the exit statuses of adopted processes; the `known` ones are left to the code that started them."""
    with contextlib.suppress(ChildProcessError):
        while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if ended.si_pid in known:
                return  # the kernel reports it first until its starter has collected it
            os.waitpid(ended.si_pid, 0)
