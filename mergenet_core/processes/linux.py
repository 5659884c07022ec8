"""What the Linux kernel does for a process on request (prctl). On other systems these functions do nothing."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 1, 15, 36
_libc = ctypes.CDLL(None, use_errno=True)


def die_with(parent: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Let the kernel send this process a signal when `parent` dies; exit now if `parent` is dead already."""
    if hasattr(_libc, "prctl"):
        _libc.prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:
            os._exit(1)


def terminate_with(parent: int) -> None:
    """In a new child process: unblock all signals, and get SIGTERM when `parent` dies."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    die_with(parent, signal.SIGTERM)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies, so that none is lost."""
    if hasattr(_libc, "prctl"):
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)


def set_process_name(name: str) -> None:
    """Set the name that /proc/PID/comm shows; Linux keeps 15 characters of it."""
    if hasattr(_libc, "prctl"):
        _libc.prctl(_PR_SET_NAME, name.encode())
