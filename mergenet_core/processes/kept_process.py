"""A child process that is started again when it ends, until that is hopeless."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from mergenet_core.errors import Unavailable
from mergenet_core.processes.linux import terminate_with

EARLY_SECONDS = 5.0
"""A child that ran for less than this ended early."""
EARLY_ENDS = 4
"""After this many early ends in a row the child is given up."""
FIRST_PAUSE_SECONDS = 0.2
"""Pause before a restart; twice as long after each early end in a row."""
TAIL_LINES = 15


@dataclass
class KeptProcess:
    """One child process that is kept running. It gets SIGTERM when its parent dies."""

    name: str
    command: list[str]
    environment: dict[str, str]
    log: Path | None = None
    """File that its output is appended to; without one it shares its parent's output."""
    stdin: bytes = b""
    folder: Path | None = None
    """Working directory, created if it is missing; without one it is the parent's."""
    descriptors: tuple[int, ...] = ()
    """Open file descriptors that it inherits."""
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _started_at: float = 0.0
    _early_ends: int = 0
    _restart_at: float | None = None

    @property
    def pid(self) -> int:
        """Its process id; 0 before the first start."""
        return self._process.pid if self._process else 0

    @property
    def status(self) -> int | None:
        """Exit status of its last run, negative for the signal that ended it; None while it runs."""
        return self._process.poll() if self._process else None

    def start(self) -> None:
        """Start it in a session of its own, so that Ctrl-C in the terminal reaches the parent alone."""
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
        parent = os.getpid()
        with contextlib.nullcontext() if self.log is None else self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output if output is None else subprocess.STDOUT,
                cwd=self.folder,
                env=self.environment,
                pass_fds=self.descriptors,
                start_new_session=True,
                preexec_fn=lambda: terminate_with(parent),
            )
        self._started_at = time.monotonic()
        self._restart_at = None
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as pipe:
            pipe.write(self.stdin)

    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def keep_alive(self) -> None:
        """Start it again once it has ended and the pause is over.

        Raises: `Unavailable` with the end of its log when it has ended early too often.
        """
        if self.alive():
            return
        now = time.monotonic()
        if self._restart_at is None:
            self._early_ends = self._early_ends + 1 if now - self._started_at < EARLY_SECONDS else 0
            if self._early_ends >= EARLY_ENDS:
                raise Unavailable(
                    f"{self.name} ended {self._early_ends} times right after its start "
                    f"(exit {self.status}){self._last_lines()}"
                )
            self._restart_at = now + FIRST_PAUSE_SECONDS * 2**self._early_ends
        elif now >= self._restart_at:
            self.start()

    def ask_to_end(self) -> None:
        """Send SIGTERM if it runs."""
        if self.alive():
            assert self._process is not None
            self._process.send_signal(signal.SIGTERM)

    def _last_lines(self) -> str:
        if self.log is None:
            return "; its output above says why"
        lines = self.log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
        return "\n".join([f"; its log {self.log} ends with:", *(f"  {line}" for line in lines)])
