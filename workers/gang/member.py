"""A process of a gang, seen from inside: it beats, says how far it is, and how it ended, all through one socket.

A socket, not files: it works when the disk is full, its end says at once that a process is gone, and no old attempt's
word can be mistaken for a new one's. It has no name in the file system, so nothing of it is left behind.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Mapping
from typing import Literal

from mergenet_core.processes.linux import die_with
from mergenet_core.records.job import Checkpoint
from mergenet_core.records.record import Record
from mergenet_core.training.protocols import Control, Reporter
from workers.outcome import Outcome

ADDRESS = "MERGENET_GANG"
"""Environment variable with the name of the launcher's socket."""
SILENCE = "MERGENET_SILENCE_SECONDS"
"""Environment variable of the setting `silence_seconds`, which the launcher hands on."""
BEATS_PER_SILENCE = 6
_RELEASE_SECONDS = 10.0
"""A process that is done waits so long at most for the others to be done too: one of them may still need its store."""
_CREDENTIALS = struct.Struct("3i")


class Word(Record):
    """All that a process of a gang says, every time: how far it is and, once, how it ended."""

    world_rank: int
    moves: int
    """Grows with everything that the training does; where it stands still, the training does."""
    step: int | None = None
    outcome: Outcome | None = None


class Member:
    """This process as one of a gang; ends with its launcher."""

    def __init__(self) -> None:
        self.world_rank = int(os.environ["RANK"])
        self._moves = 0
        self._step: int | None = None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.connect("\0" + os.environ[ADDRESS])
        die_with(peer(self._socket))
        self._say()
        self._leaving = threading.Event()
        threading.Thread(target=self._beat, name="beat", daemon=True).start()

    def moved(self, step: int | None = None) -> None:
        """The training did something; with `step`, it finished one."""
        self._moves += 1
        if step is not None:
            self._step = step

    def watch(self, reporter: Reporter | None, control: Control) -> tuple[Reporter, Control]:
        """Both seams of a trial, so that their use is told as movement; without a `reporter`, nothing is reported."""
        return _Reports(self, reporter), _Wishes(self, control)

    def leave(self, outcome: Outcome) -> None:
        """Tell how it ended; unless it failed, stay until the others on this host are done."""
        self._leaving.set()
        with contextlib.suppress(OSError):
            self._say(outcome)
            if outcome.ended != "failed":
                self._socket.settimeout(_RELEASE_SECONDS)
                self._socket.recv(1)

    def _beat(self) -> None:
        pause = float(os.environ[SILENCE]) / BEATS_PER_SILENCE
        with contextlib.suppress(OSError):
            while not self._leaving.wait(min(1.0, pause)):
                self._say()

    def _say(self, outcome: Outcome | None = None) -> None:
        word = Word(world_rank=self.world_rank, moves=self._moves, step=self._step, outcome=outcome)
        self._socket.send(word.model_dump_json().encode())


def peer(connection: socket.socket) -> int:
    """The process at the other end, as the kernel knows it. Raises: `PermissionError` where it is another user's."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    if uid != os.geteuid():
        raise PermissionError(f"process {pid} of user {uid} is none of this gang")
    return int(pid)


class _Reports:
    def __init__(self, member: Member, inner: Reporter | None) -> None:
        self._member, self._inner = member, inner

    def event(self, type: str, message: str, *, level: str = "info", **data: object) -> None:
        self._member.moved()
        if self._inner is not None:
            self._inner.event(type, message, level=level, **data)

    def metric(self, step: int, split: str, values: Mapping[str, float]) -> None:
        self._member.moved()
        if self._inner is not None:
            self._inner.metric(step, split, values)

    def progress(self, step: int, steps: int, *, loss: float, metric: float | None, eta_seconds: float | None) -> None:
        self._member.moved(step)
        if self._inner is not None:
            self._inner.progress(step, steps, loss=loss, metric=metric, eta_seconds=eta_seconds)

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        self._member.moved()
        if self._inner is not None:
            self._inner.checkpoint(checkpoint)


class _Wishes:
    def __init__(self, member: Member, inner: Control) -> None:
        self._member, self._inner = member, inner

    def requested(self) -> Literal["stop", "checkpoint"] | None:
        self._member.moved()
        return self._inner.requested()
