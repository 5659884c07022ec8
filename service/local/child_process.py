"""Child processes that never outlive their parent, are started again when they die, and say why when they cannot."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from mergenet_core.errors import Unavailable
from mergenet_core.processes import die_with

INSTANT_SECONDS = 5.0
"""A child that lived shorter than this died at once."""
INSTANT_DEATHS = 4
"""So many in a row, and it is given up."""
TAIL_LINES = 15
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass
class Child:
    """One process that is kept alive; its output goes to `log`."""

    name: str
    command: list[str]
    log: Path
    environment: dict[str, str]
    stdin: bytes = b""
    folder: Path | None = None
    descriptors: tuple[int, ...] = ()
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _started: float = 0.0
    _deaths: int = 0
    _again_at: float | None = None

    @property
    def pid(self) -> int:
        """Its process id; 0 before the first start."""
        return self._process.pid if self._process else 0

    def start(self) -> None:
        """Start it in a session of its own, so that a Ctrl-C in the terminal reaches only us."""
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
        parent = os.getpid()

        def tie() -> None:
            tie_to(parent)

        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=self.environment,
                pass_fds=self.descriptors,
                start_new_session=True,
                preexec_fn=tie,
            )
        self._started = time.monotonic()
        self._again_at = None
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as pipe:
            pipe.write(self.stdin)

    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def keep_alive(self) -> None:
        """Start it again when it has died, a little later each time. Raises: `Unavailable` when that is hopeless."""
        if self.alive():
            return
        moment = time.monotonic()
        if self._again_at is None:
            assert self._process is not None
            self._deaths = self._deaths + 1 if moment - self._started < INSTANT_SECONDS else 0
            if self._deaths >= INSTANT_DEATHS:
                raise Unavailable(
                    f"{self.name} ended {self._deaths} times right after its start "
                    f"(exit {self._process.returncode}); its log {self.log} ends with:\n{self._tail()}"
                )
            self._again_at = moment + 0.2 * 2**self._deaths
        elif moment >= self._again_at:
            self.start()

    def ask_to_end(self) -> None:
        """Send SIGTERM."""
        if self.alive():
            assert self._process is not None
            self._process.send_signal(signal.SIGTERM)

    def _tail(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
        return "\n".join(f"  {line}" for line in lines)


def tie_to(parent: int) -> None:
    """In a new child: get SIGTERM when the parent dies, also when that has happened already. Linux only."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    die_with(parent, signal.SIGTERM)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies, so that none can be lost. Linux only."""
    if hasattr(_libc, "prctl"):
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)


def reap_orphans(known: set[int]) -> None:
    """Bury adopted processes that have ended; `known` ones are left to who started them."""
    with contextlib.suppress(ChildProcessError):
        while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if ended.si_pid in known:
                return  # its own turn comes first
            os.waitpid(ended.si_pid, 0)


def end_all_descendants() -> None:
    """Kill whatever still runs below this process. Adopted orphans come up one level a round, so repeat till none."""
    while pids := _children_of(os.getpid()):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _children_of(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            # the name in parentheses may hold anything; what follows it may not
            fields = entry.read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[1]) == parent:
                found.append(int(entry.parent.name))
    return found
