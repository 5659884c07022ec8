"""Notices a training process that hangs, by its heartbeats.

A stopped process sends none. A process that waits for something that never comes still sends them, but they show no
progress. Whether it works or waits is seen from the CPU time it uses: loading or evaluating for long is no fault.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import time

from pydantic import ValidationError

from mergenet_core.settings import Settings
from workers.gang.member import Heartbeat, peer

STEPS = 10
"""A step may take this many times as long as the longest step so far."""
_IDLE_SHARE = 0.05
"""A process that uses a smaller share of a core than this is idle; sending heartbeats and reports needs less."""
_HEARTBEAT_BYTES = 1 << 20


class Watchdog:
    """Listens to the heartbeats of one process, which connects to the socket called `address`.

    Of a launcher of several processes, only silence is a fault: it watches the progress of its processes itself.
    """

    def __init__(self, settings: Settings, *, launcher: bool = False) -> None:
        self.address = f"mergenet-{os.getpid()}-{secrets.token_hex(8)}"
        self.fault: str | None = None
        """Why the process hangs, as a sentence."""
        self._launcher = launcher
        self._silence_seconds, self._stall_seconds = settings.silence_seconds, settings.stall_seconds
        self._connection: socket.socket | None = None
        self._newest = Heartbeat(world_rank=0, activity=-1)
        self._heartbeat_at = self._active_at = self._busy_at = time.monotonic()
        self._busy_cpu_seconds = 0.0
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind("\0" + self.address)
        self._listener.listen(1)
        self._listener.setblocking(False)

    def check(self) -> str | None:
        """Read the heartbeats that have arrived; return why the process hangs, or None if it does not."""
        self._receive()
        if self.fault is None:
            self.fault = self._find_fault(time.monotonic())
        return self.fault

    @property
    def last_step(self) -> int | None:
        """The last step that was finished, as far as is known."""
        return self._newest.step

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()
        if self._connection is not None:
            self._connection.close()

    def _receive(self) -> None:
        with contextlib.suppress(OSError):  # of a socket that does not block: nothing has arrived
            if self._connection is None:
                connection, _ = self._listener.accept()
                peer(connection)  # another user's process is refused
                connection.setblocking(False)
                self._connection = connection
                self._heartbeat_at = time.monotonic()
            while text := self._connection.recv(_HEARTBEAT_BYTES):
                with contextlib.suppress(ValidationError):
                    self._note(Heartbeat.model_validate_json(text), time.monotonic())

    def _note(self, heartbeat: Heartbeat, now: float) -> None:
        self._heartbeat_at = now
        progressed = heartbeat.activity != self._newest.activity
        used = heartbeat.cpu_seconds - self._busy_cpu_seconds
        if progressed:
            self._active_at = now
        if progressed or used > _IDLE_SHARE * (now - self._busy_at):
            self._busy_at, self._busy_cpu_seconds = now, heartbeat.cpu_seconds
        self._newest = heartbeat

    def _find_fault(self, now: float) -> str | None:
        since = "no step was finished" if self._newest.step is None else f"the last was step {self._newest.step}"
        if self._connection is not None and now > self._heartbeat_at + self._silence_seconds:
            who = "the launcher of the training processes" if self._launcher else "the training process"
            return f"{who} sent no heartbeat for {self._silence_seconds:g} s; {since}"
        if self._launcher:
            return None
        idle_limit = busy_limit = self._stall_seconds
        if self._newest.stepping:
            slow = STEPS * self._newest.slowest_step_seconds
            idle_limit, busy_limit = max(self._silence_seconds, slow), max(self._stall_seconds, slow)
            if now > self._active_at + busy_limit:
                return f"a training step did not end within {busy_limit:.0f} s; {since}"
        if now > self._busy_at + idle_limit:
            return f"the training did nothing for {idle_limit:.0f} s; {since}"
        return None
