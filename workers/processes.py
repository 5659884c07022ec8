"""Processes of an attempt: tied to their parent, known by a mark that their children inherit, ended as a whole tree."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

from mergenet_core.processes.linux import die_with, set_process_name
from mergenet_core.processes.trees import tree
from mergenet_core.records.attempt import AttemptRef

MARK = "MERGENET_ATTEMPT"
"""Environment variable of the processes of an attempt."""
HELD = (signal.SIGTERM, signal.SIGUSR1)
"""Signals that a new process keeps waiting until it has its handlers (see `start`)."""


def mark(attempt: AttemptRef, worker: str) -> str:
    """The mark of an attempt."""
    return f"{attempt}/{worker}"


def marked(prefix: str) -> list[psutil.Process]:
    """Processes on this host whose mark begins so: `JOB/TRIAL/` for any attempt, or a whole `mark` for one.

    The mark stands in the environment, and, where a process was forked and runs no new program, as hashes in its name.
    """
    name = _name(prefix)
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            comm = Path(f"/proc/{process.pid}/comm").read_text().strip()
            if comm.startswith(name) or process.environ().get(MARK, "").startswith(prefix):
                found.append(process)
    return found


class Child:
    """A child process, until it was waited for."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.status: int | None = None
        """Exit status, negative for the signal that ended it; None while it runs."""

    def poll(self) -> int | None:
        """The exit status, if there is one by now."""
        if self.status is None and (found := os.waitpid(self.pid, os.WNOHANG))[0]:
            self.status = os.waitstatus_to_exitcode(found[1])
        return self.status

    def wait(self, seconds: float) -> int | None:
        """The exit status, if there is one within that time."""
        deadline = time.monotonic() + seconds
        while self.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        return self.status

    def send(self, number: signal.Signals) -> None:
        """Send it a signal if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def tree(self) -> list[psutil.Process]:
        """It and everything it started, as far as that still hangs together."""
        return tree(self.pid) if self.poll() is None else []


def start(
    run: Callable[[], None] | None, command: list[str], *, environment: Mapping[str, str], log: Path, fd: int
) -> Child:
    """Fork a process in a group of its own that dies with this one: call `run` in it, or without one exec `command`.

    It prints to `log`, inherits the descriptor `fd`, and begins with the signals `HELD` blocked, so that none is lost
    before it has its handlers. In need of memory the kernel takes it before anything else.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
    pid = os.fork()
    if pid:
        os.close(output)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        return Child(pid)
    status = 1
    try:
        die_with(parent)
        os.setpgid(0, 0)
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
        os.environ.update(environment)
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("500")
        if run is None:
            os.set_inheritable(fd, True)
            os.execv(command[0], command)
        set_process_name(_name(environment[MARK]))
        run()
        status = 0
    finally:
        # whatever was raised, even by a log on a full disk, must not climb into the code that forked
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            os.write(2, traceback.format_exc().encode() if status else b"")
        os._exit(status)


def copy_out(text: bytes) -> None:
    """Print what another process printed; a full disk must not stop a training, which waits when its pipe is full."""
    with contextlib.suppress(OSError):
        while text:
            text = text[os.write(1, text) :]


def memory_kills() -> int:
    """How often the kernel has killed for lack of memory: in this control group, or where unknown on this host."""
    for path in (*_group_counters(), Path("/proc/vmstat")):
        with contextlib.suppress(OSError, ValueError):
            for line in path.read_text().splitlines():
                name, _, value = line.partition(" ")
                if name == "oom_kill":
                    return int(value)
    return 0


def _name(prefix: str) -> str:
    """A process name of 15 characters, all that Linux keeps; that of `JOB/TRIAL/` is the start of its attempts'."""
    trial = prefix[: prefix.index("/", prefix.index("/") + 1) + 1]
    return f"mn{_hash(trial, 6)}" + (_hash(prefix, 7) if prefix != trial else "")


def _hash(text: str, characters: int) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode()[:characters]


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
