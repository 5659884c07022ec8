"""Processes of an attempt: tied to their parent, found by a mark in their environment, ended as a whole tree."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil

MARK = "MERGENET_ATTEMPT"
"""Environment variable of every process of an attempt; children inherit it even when their parent is gone."""
_PR_SET_PDEATHSIG = 1
_OOM_SCORE = "500"
_libc = ctypes.CDLL(None, use_errno=True)


def mark(job_id: str, trial_id: str, attempt: int, worker: str) -> str:
    """The value of `MARK` for an attempt."""
    return f"{job_id}/{trial_id}/{attempt}/{worker}"


def die_with(parent: int) -> None:
    """Let the kernel kill this process when `parent` dies, or at once when it is dead already."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def start(
    module: str, arguments: Iterable[str], *, environment: Mapping[str, str], log: Path, fd: int
) -> subprocess.Popen[bytes]:
    """Start `python -m module` in a process group of its own, which dies with this process.

    It writes to `log` and inherits the descriptor `fd`. In need of memory the kernel takes it before anything else.
    """
    parent = os.getpid()

    def tie() -> None:
        die_with(parent)
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
            score.write(_OOM_SCORE)

    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=(fd,),
            process_group=0,
            preexec_fn=tie,  # safe here: a work-horse has one thread
        )


def marked(prefix: str) -> list[psutil.Process]:
    """Processes on this host whose mark begins so: `JOB/TRIAL/` for any attempt, or a whole `mark` for one."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK, "").startswith(prefix):
                found.append(process)
    return found


def descendants(child: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """A child of this process and everything it started, as far as it still hangs together."""
    with contextlib.suppress(psutil.Error):
        if child.returncode is None:  # else its id may be someone else's by now
            process = psutil.Process(child.pid)
            return [process, *process.children(recursive=True)]
    return []


def kill(processes: Iterable[psutil.Process]) -> None:
    """Kill at once; who is gone already is no error."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()


def memory_kills() -> int:
    """How often the kernel has killed for lack of memory: in this control group, or where unknown on this host."""
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
