"""The processes of a gang as their launcher sees them: how far each is, and what went wrong first.

One dead or hung process ends the gang. When a process is lost, the collective operations of all others fail shortly
afterwards, so the order of several faults decides which one is reported.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import selectors
import signal
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from mergenet_core.errors import RankLost
from workers.gang.member import Heartbeat, peer
from workers.outcome import Outcome

_HEARTBEAT_BYTES = 2**20
_LAST_REPORTS_SECONDS = 2.0
"""How long the others may still report what they know when one is lost or has failed."""


@dataclass
class Rank:
    """A process of the gang on this host."""

    pid: int
    connection: socket.socket
    heartbeat_at: float
    active_at: float
    world_rank: int | None = None
    activity: int = -1
    step: int | None = None
    outcome: Outcome | None = None
    gone: bool = False
    """Its end of the connection is closed."""

    def __str__(self) -> str:
        return f"rank {'?' if self.world_rank is None else self.world_rank} (process {self.pid})"

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal if it still trains."""
        # while its end is open the process exists, so its id cannot have been given to another one
        if not self.gone and self.outcome is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


@dataclass(frozen=True)
class Fault:
    """Why the gang must end."""

    outcome: Outcome
    kill_at: float
    """Monotonic time at which the others are killed."""
    lost: Rank | None = None
    """The process that ended without reporting an outcome."""


class Gang:
    """The processes of one attempt on this host; they connect to the socket called `address`."""

    def __init__(self, size: int, *, silence_seconds: float, stall_seconds: float) -> None:
        self.size = size
        self.address = f"mergenet-{os.getpid()}-{secrets.token_hex(8)}"
        self.ranks: list[Rank] = []
        self.faults: list[Fault] = []
        self._silence_seconds, self._stall_seconds = silence_seconds, stall_seconds
        self._began_at = time.monotonic()
        self._signals: list[signal.Signals] = []
        self._released = False
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind("\0" + self.address)
        self._listener.listen(size)
        self._selector.register(self._listener, selectors.EVENT_READ)

    @property
    def over(self) -> bool:
        """Whether all processes have connected and gone."""
        return len(self.ranks) >= self.size and all(rank.gone for rank in self.ranks)

    def receive(self, seconds: float) -> bool:
        """Read what arrives within that time, then look for silent processes; return whether anything arrived."""
        ready = self._selector.select(seconds)
        for key, _ in ready:
            if key.fileobj is self._listener:
                self._admit()
            else:
                self._read(key.data)
        if not self.faults:
            self._check_heartbeats()
        done = [rank for rank in self.ranks if rank.outcome is not None]
        if len(done) == self.size and not self._released:
            self._released = True
            for rank in done:
                with contextlib.suppress(OSError):
                    rank.connection.send(b".")
        return bool(ready)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to every process, to those that have not connected yet as soon as they do."""
        self._signals.append(number)
        for rank in self.ranks:
            rank.signal(number)

    def check_started(self, running: set[int]) -> None:
        """Look for a process that ended before it connected, given the ids of those that run.

        All are started before the first can connect.
        """
        starting = running - {rank.pid for rank in self.ranks}
        if self.ranks and len(starting) < self.size - len(self.ranks) and not self.faults:
            self._add_fault("a process ended before it joined the training; the log may say why", _LAST_REPORTS_SECONDS)

    def outcome(self, exits: Mapping[int, int], *, memory_ran_out: bool) -> Outcome | None:
        """How the attempt ended; None if no process reported it and none was missed.

        `exits` are exit statuses by world rank, negative for the signal that ended the process.
        """
        causes = [fault for fault in self.faults if fault.lost or fault.outcome.code != RankLost.code]
        for fault in causes or self.faults:
            if fault.lost is None:
                return fault.outcome
            status = exits.get(fault.lost.world_rank or 0)
            return Outcome.unreported(str(fault.lost), status, memory_ran_out=memory_ran_out, error=RankLost)
        done = sorted((rank.world_rank or 0, rank.outcome) for rank in self.ranks if rank.outcome is not None)
        return done[0][1].model_copy(update={"world_rank": done[0][0]}) if done else None

    def _admit(self) -> None:
        connection, _ = self._listener.accept()
        try:
            pid = peer(connection)
        except PermissionError:
            connection.close()
            return
        now = time.monotonic()
        rank = Rank(pid, connection, heartbeat_at=now, active_at=now)
        self.ranks.append(rank)
        self._selector.register(connection, selectors.EVENT_READ, rank)
        for number in self._signals:
            rank.signal(number)

    def _read(self, rank: Rank) -> None:
        text = b""
        with contextlib.suppress(OSError):
            text = rank.connection.recv(_HEARTBEAT_BYTES)
        if not text:
            rank.gone = True
            self._selector.unregister(rank.connection)
            if rank.outcome is None:
                outcome = Outcome.unreported(str(rank), None, error=RankLost)
                self.faults.append(Fault(outcome, time.monotonic() + _LAST_REPORTS_SECONDS, rank))
            return
        now = time.monotonic()
        with contextlib.suppress(ValidationError):
            heartbeat = Heartbeat.model_validate_json(text)
            rank.heartbeat_at, rank.world_rank, rank.step = now, heartbeat.world_rank, heartbeat.step
            if heartbeat.activity != rank.activity:
                rank.activity, rank.active_at = heartbeat.activity, now
            if heartbeat.outcome is not None and rank.outcome is None:
                rank.outcome = heartbeat.outcome
                if rank.outcome.ended == "failed":
                    self.faults.append(Fault(rank.outcome, now + _LAST_REPORTS_SECONDS))

    def _check_heartbeats(self) -> None:
        now = time.monotonic()
        training = [rank for rank in self.ranks if rank.outcome is None]
        for rank in training:
            if now > rank.heartbeat_at + self._silence_seconds:
                self._add_fault(f"{rank} sent no heartbeat for {self._silence_seconds:g} s", 0)
                return
        active_at = max((rank.active_at for rank in self.ranks), default=self._began_at)
        if now > active_at + self._stall_seconds and (training or len(self.ranks) < self.size):
            steps = [rank.step for rank in self.ranks if rank.step is not None]
            since = f"since step {max(steps)}" if steps else "and no step was finished"
            missing = self.size - len(self.ranks)
            absent = f"; {missing} of {self.size} processes never joined it" if missing else ""
            self._add_fault(f"the training did nothing for {self._stall_seconds:g} s {since}{absent}", 0)

    def _add_fault(self, message: str, patience_seconds: float) -> None:
        self.faults.append(Fault(Outcome.of_error(RankLost(message)), time.monotonic() + patience_seconds))
