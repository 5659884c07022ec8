"""A training process: through a socket it sends heartbeats, how far it is, and in a gang how it ended.

A socket rather than files: it works when the disk is full, its end shows at once that a process is gone, and it cannot
hold what an older attempt wrote. It has no name in the file system, so nothing of it is left behind.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Mapping
from typing import Literal

from pydantic import JsonValue

from mergenet_core.processes.linux import die_with
from mergenet_core.records.job import Checkpoint
from mergenet_core.records.record import Record
from mergenet_core.training.protocols import Control, Reporter
from workers.outcome import Outcome

ADDRESS = "MERGENET_GANG"
"""Environment variable with the name of the socket of the launcher, or of the supervisor of a single process."""
SILENCE = "MERGENET_SILENCE_SECONDS"
"""Environment variable of the setting `silence_seconds`, which is passed on to the training processes."""
HEARTBEATS_PER_SILENCE = 6
_RELEASE_SECONDS = 10.0
"""How long a process that is done waits for the others to be done: one of them may still need its store."""
_CREDENTIALS = struct.Struct("3i")


class Heartbeat(Record):
    """What a training process sends, every time in full."""

    world_rank: int
    activity: int
    """Grows with everything that the training does; while it stays the same, the training stands still."""
    step: int | None = None
    """The last step that was finished."""
    stepping: bool = False
    """Whether a step is under way, and nothing else."""
    slowest_step_seconds: float = 0.0
    """The longest step so far."""
    cpu_seconds: float = 0.0
    """CPU time that the process has used."""
    outcome: Outcome | None = None
    """How the process ended; sent once."""


class Member:
    """This process, alone or as one of a gang; it is killed when the process that listens to it dies."""

    def __init__(self) -> None:
        self.alone = "RANK" not in os.environ
        """Whether no other process trains with this one."""
        self.world_rank = int(os.environ.get("RANK", "0"))
        self._activity = 0
        self._step: int | None = None
        self._step_began_at: float | None = None
        self._slowest_step_seconds = 0.0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.connect("\0" + os.environ[ADDRESS])
        die_with(peer(self._socket))
        self._send()
        self._leaving = threading.Event()
        threading.Thread(target=self._send_regularly, name="heartbeat", daemon=True).start()

    def active(self, step: int | None = None) -> None:
        """Note that the training did something; with `step`, that it finished one."""
        self._activity += 1
        if step is not None:
            self._step = step
        if step is not None and self._step_began_at is not None:
            self._slowest_step_seconds = max(self._slowest_step_seconds, time.monotonic() - self._step_began_at)
            self._step_began_at = None

    def begin_step(self) -> None:
        """Note that a step begins; it is done once `active` is called with its number."""
        self._activity += 1
        self._step_began_at = time.monotonic()

    def watch(self, reporter: Reporter | None, control: Control) -> tuple[Reporter, Control]:
        """Wrap a trial's reporter and control so that their use counts as activity.

        Without a `reporter` nothing is reported.
        """
        return _WatchedReporter(self, reporter), _WatchedControl(self, control)

    def leave(self, outcome: Outcome) -> None:
        """Send how it ended; unless it failed, wait until the others on this host are done."""
        self._leaving.set()
        with contextlib.suppress(OSError):
            self._send(outcome)
            if outcome.ended != "failed":
                self._socket.settimeout(_RELEASE_SECONDS)
                self._socket.recv(1)

    def _send_regularly(self) -> None:
        pause = float(os.environ[SILENCE]) / HEARTBEATS_PER_SILENCE
        with contextlib.suppress(OSError):
            while not self._leaving.wait(min(1.0, pause)):
                self._send()

    def _send(self, outcome: Outcome | None = None) -> None:
        heartbeat = Heartbeat(
            world_rank=self.world_rank,
            activity=self._activity,
            step=self._step,
            stepping=self._step_began_at is not None,
            slowest_step_seconds=self._slowest_step_seconds,
            cpu_seconds=time.process_time(),
            outcome=outcome,
        )
        self._socket.send(heartbeat.model_dump_json().encode())


def peer(connection: socket.socket) -> int:
    """Return the id of the process at the other end. Raises: `PermissionError` if it is another user's."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    if uid != os.geteuid():
        raise PermissionError(f"process {pid} of user {uid} does not belong to this gang")
    return int(pid)


class _WatchedReporter:
    def __init__(self, member: Member, inner: Reporter | None) -> None:
        self._member, self._inner = member, inner

    def event(self, type: str, message: str, *, level: str = "info", **data: JsonValue) -> None:
        self._member.active()
        if self._inner is not None:
            self._inner.event(type, message, level=level, **data)

    def metric(self, step: int, split: str, values: Mapping[str, float]) -> None:
        self._member.active()
        if self._inner is not None:
            self._inner.metric(step, split, values)

    def begin_step(self) -> None:
        self._member.begin_step()

    def progress(self, step: int, steps: int, *, loss: float, metric: float | None, eta_seconds: float | None) -> None:
        self._member.active(step)
        if self._inner is not None:
            self._inner.progress(step, steps, loss=loss, metric=metric, eta_seconds=eta_seconds)

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        self._member.active()
        if self._inner is not None:
            self._inner.checkpoint(checkpoint)


class _WatchedControl:
    def __init__(self, member: Member, inner: Control) -> None:
        self._member, self._inner = member, inner

    def requested(self) -> Literal["stop", "checkpoint"] | None:
        self._member.active()
        return self._inner.requested()
