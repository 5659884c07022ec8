"""Processes of an attempt: started with a tag that their own children inherit, and found by it.

A supervisor may be killed and leave processes behind; by their tag the next one finds and ends them.
"""

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

TAG = "MERGENET_ATTEMPT"
"""Environment variable with the tag of an attempt's processes."""
BLOCKED = (signal.SIGTERM, signal.SIGUSR1)
"""Signals that `start` blocks in a new process, so that they wait until it has installed its handlers."""
_POLL_SECONDS = 0.02


def attempt_tag(attempt: AttemptRef, worker: str) -> str:
    """The tag of an attempt's processes: `JOB/TRIAL/NUMBER/WORKER`."""
    return f"{attempt}/{worker}"


def tagged(prefix: str) -> list[psutil.Process]:
    """Processes on this host whose tag starts with a prefix: `JOB/TRIAL/` for all attempts, or the tag of one.

    The tag is in the environment. A forked process that executes no new program cannot change what the kernel shows as
    its environment; there a hash of the tag is in the process name.
    """
    name = _process_name(prefix)
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            comm = Path(f"/proc/{process.pid}/comm").read_text().strip()
            if comm.startswith(name) or process.environ().get(TAG, "").startswith(prefix):
                found.append(process)
    return found


class AttemptProcess:
    """A child process that `start` has forked."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.status: int | None = None
        """Exit status, negative for the signal that ended it; None while it runs."""

    def poll(self) -> int | None:
        """Return the exit status if it has ended."""
        if self.status is None and (found := os.waitpid(self.pid, os.WNOHANG))[0]:
            self.status = os.waitstatus_to_exitcode(found[1])
        return self.status

    def wait(self, seconds: float) -> int | None:
        """Wait for at most `seconds`; return the exit status if it has ended."""
        deadline = time.monotonic() + seconds
        while self.poll() is None and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        return self.status

    def send(self, number: signal.Signals) -> None:
        """Send a signal if it runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def tree(self) -> list[psutil.Process]:
        """The process and all its descendants; an empty list when it has ended."""
        return tree(self.pid) if self.poll() is None else []


def start(
    run: Callable[[], None] | None, command: list[str], *, environment: Mapping[str, str], log: Path, fd: int
) -> AttemptProcess:
    """Fork a process that calls `run`, or executes `command` if `run` is None.

    It has a process group of its own, is killed when this process dies, appends its output to `log`, inherits the file
    descriptor `fd`, and begins with the signals `BLOCKED` blocked. When memory runs out, the kernel kills it first.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
    pid = os.fork()
    if pid:
        os.close(output)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        return AttemptProcess(pid)
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
        set_process_name(_process_name(environment[TAG]))
        run()
        status = 0
    finally:
        # an exception, even one from logging on a full disk, must not return into the code that forked
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            os.write(2, traceback.format_exc().encode() if status else b"")
        os._exit(status)


def _process_name(prefix: str) -> str:
    """A name of 15 characters, all that Linux keeps; that of `JOB/TRIAL/` is how those of its attempts begin."""
    trial = prefix[: prefix.index("/", prefix.index("/") + 1) + 1]
    return f"mn{_hash(trial, 6)}" + (_hash(prefix, 7) if prefix != trial else "")


def _hash(text: str, characters: int) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode()[:characters]
