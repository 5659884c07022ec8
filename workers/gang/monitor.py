"""A gang seen from its launcher: what each process says, and what went wrong first.

One dead or hung process ends the gang. Which of several faults counts is decided by their order, for a process that is
lost lets the collectives of all the others fail a moment later.
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
from workers.gang.member import Word, peer
from workers.outcome import Outcome

_WORD_BYTES = 2**20
_LAST_WORDS_SECONDS = 2.0
"""What the others get to say what they know, when one is lost or has failed."""


@dataclass
class Rank:
    """A process of the gang on this host."""

    pid: int
    connection: socket.socket
    beat_at: float
    moved_at: float
    world_rank: int | None = None
    moves: int = -1
    step: int | None = None
    outcome: Outcome | None = None
    gone: bool = False

    def __str__(self) -> str:
        return f"rank {'?' if self.world_rank is None else self.world_rank} (process {self.pid})"


@dataclass(frozen=True)
class Fault:
    """Why the gang must end."""

    outcome: Outcome
    kill_at: float
    """Monotonic time from which on nobody is waited for."""
    lost: Rank | None = None
    """The process that ended without a word."""


class Gang:
    """The processes of one attempt on this host; `address` is where they report."""

    def __init__(self, size: int, *, silence_seconds: float, stall_seconds: float) -> None:
        self.size = size
        self.address = f"mergenet-{os.getpid()}-{secrets.token_hex(8)}"
        self.ranks: list[Rank] = []
        self.faults: list[Fault] = []
        self._silence_seconds, self._stall_seconds = silence_seconds, stall_seconds
        self._begun_at = time.monotonic()
        self._pending: list[signal.Signals] = []
        self._released = False
        self._selector = selectors.DefaultSelector()
        self._door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._door.bind("\0" + self.address)
        self._door.listen(size)
        self._selector.register(self._door, selectors.EVENT_READ)

    @property
    def over(self) -> bool:
        """Whether all have come and gone."""
        return len(self.ranks) >= self.size and all(rank.gone for rank in self.ranks)

    def listen(self, seconds: float) -> bool:
        """Hear what is said within that time, then see who is silent; returns whether anything was said."""
        ready = self._selector.select(seconds)
        for key, _ in ready:
            if key.fileobj is self._door:
                self._admit()
            else:
                self._hear(key.data)
        if not self.faults:
            self._look()
        told = [rank for rank in self.ranks if rank.outcome is not None]
        if len(told) == self.size and not self._released:
            self._released = True
            for rank in told:
                with contextlib.suppress(OSError):
                    rank.connection.send(b".")
        return bool(ready)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to every process, to those that have not come yet as soon as they do."""
        self._pending.append(number)
        for rank in self.ranks:
            _signal(rank, number)

    def count(self, running: set[int]) -> None:
        """Look whether one has ended before it came; all are started before the first can come."""
        coming = running - {rank.pid for rank in self.ranks}
        if self.ranks and len(coming) < self.size - len(self.ranks) and not self.faults:
            self._fault("a process ended before it began; the log may say why", _LAST_WORDS_SECONDS)

    def outcome(self, exits: Mapping[int, int], *, memory_ran_out: bool) -> Outcome | None:
        """How the attempt ended; None where nobody said so and nobody was missed.

        `exits` are exit statuses by world rank, negative for the signal that ended the process.
        """
        own_word = [fault for fault in self.faults if fault.lost or fault.outcome.code != RankLost.code]
        for fault in own_word or self.faults:
            return self._in_words(fault, exits, memory_ran_out=memory_ran_out)
        told = sorted((rank.world_rank or 0, rank.outcome) for rank in self.ranks if rank.outcome is not None)
        return told[0][1].model_copy(update={"world_rank": told[0][0]}) if told else None

    def _in_words(self, fault: Fault, exits: Mapping[int, int], *, memory_ran_out: bool) -> Outcome:
        """The fault's outcome, with how the lost process ended where that is known."""
        if fault.lost is None:
            return fault.outcome
        status = exits.get(fault.lost.world_rank or 0)
        if status == -signal.SIGKILL and memory_ran_out:
            message = f"the system ran out of memory and killed {fault.lost}; take a smaller batch_size or model"
            return Outcome(ended="failed", code="out-of-memory", message=message)
        if status is None:
            return fault.outcome
        how = f"by signal {signal.Signals(-status).name}" if status < 0 else f"with exit status {status}"
        message = f"{fault.lost} ended {how} and left no word; the log may say more"
        return fault.outcome.model_copy(update={"message": message})

    def _admit(self) -> None:
        connection, _ = self._door.accept()
        try:
            pid = peer(connection)
        except PermissionError:
            connection.close()
            return
        moment = time.monotonic()
        rank = Rank(pid, connection, beat_at=moment, moved_at=moment)
        self.ranks.append(rank)
        self._selector.register(connection, selectors.EVENT_READ, rank)
        for number in self._pending:
            _signal(rank, number)

    def _hear(self, rank: Rank) -> None:
        text = b""
        with contextlib.suppress(OSError):
            text = rank.connection.recv(_WORD_BYTES)
        if not text:
            rank.gone = True
            self._selector.unregister(rank.connection)
            if rank.outcome is None:
                self._fault(f"{rank} ended without a word", _LAST_WORDS_SECONDS, lost=rank)
            return
        moment = time.monotonic()
        with contextlib.suppress(ValidationError):
            word = Word.model_validate_json(text)
            rank.beat_at, rank.world_rank, rank.step = moment, word.world_rank, word.step
            if word.moves != rank.moves:
                rank.moves, rank.moved_at = word.moves, moment
            if word.outcome is not None and rank.outcome is None:
                rank.outcome = word.outcome
                if word.outcome.ended == "failed":
                    self.faults.append(Fault(word.outcome, moment + _LAST_WORDS_SECONDS))

    def _look(self) -> None:
        moment = time.monotonic()
        busy = [rank for rank in self.ranks if rank.outcome is None]
        for rank in busy:
            if moment > rank.beat_at + self._silence_seconds:
                self._fault(f"{rank} gave no sign of life for {self._silence_seconds:g} s", 0)
                return
        moved_at = max((rank.moved_at for rank in self.ranks), default=self._begun_at)
        if moment > moved_at + self._stall_seconds and (busy or len(self.ranks) < self.size):
            steps = [rank.step for rank in self.ranks if rank.step is not None]
            where = f"since step {max(steps)}" if steps else "and no step was finished"
            missing = self.size - len(self.ranks)
            absent = f"; {missing} of {self.size} processes never began" if missing else ""
            self._fault(f"the training did not move for {self._stall_seconds:g} s {where}{absent}", 0)

    def _fault(self, message: str, patience_seconds: float, *, lost: Rank | None = None) -> None:
        outcome = Outcome(ended="failed", code=RankLost.code, message=message, retryable=True)
        self.faults.append(Fault(outcome, time.monotonic() + patience_seconds, lost))


def _signal(rank: Rank, number: signal.Signals) -> None:
    # a connection that is open belongs to a process that is there, so its number is not another's by now
    if not rank.gone and rank.outcome is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(rank.pid, number)
