"""A fleet's host, seen from itself: an actor that starts the launcher there, hears it, and ends with its driver.

Its methods return at once or within a moment, so that one thread is enough: the launcher dies with the thread that
started it, and Ray ends the actor when the driver is gone.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from dataclasses import dataclass

from mergenet_core.errors import PathRefused
from mergenet_core.processes import trees
from mergenet_core.processes.command import python_command
from mergenet_core.records.attempt import AttemptRef
from mergenet_core.settings import Settings
from workers import processes
from workers.host import capacity
from workers.outcome import Outcome, receive
from workers.trial import OUTCOME_FD

_CHUNK_BYTES = 65536
_HEARD_BYTES = 1 << 20
_END_SECONDS = 5.0


@dataclass(frozen=True)
class Facts:
    """What the driver must know of a host before the gang starts."""

    name: str
    port: int
    """A port that was free a moment ago, for the launchers to meet at."""
    versions: dict[str, str]


@dataclass(frozen=True)
class Heard:
    """What a launcher did since it was asked last."""

    output: bytes
    ended: bool = False
    status: int | None = None
    """Exit status, negative for the signal that ended it."""
    outcome: Outcome | None = None


class FleetHost:
    """The part of one attempt that runs on this host; the host's own environment holds its MERGENET_ settings."""

    def __init__(self, attempt: AttemptRef, mark: str, place: int) -> None:
        self._attempt = attempt
        self._attempt_mark = mark
        # hosts of a fleet may be one machine, and each is to find its own processes alone
        self._mark = f"{mark}/host-{place}/"
        self._child: subprocess.Popen[bytes] | None = None
        self._output = self._outcome = -1

    def prepare(self, address: str) -> Facts:
        """End what an earlier attempt left here, and see whether the job's folder is. Raises: `PathRefused`."""
        earlier = processes.marked(f"{self._attempt.trial_path}/")
        own = {process.pid for process in processes.marked(self._attempt_mark)}
        trees.kill(process for process in earlier if process.pid not in own)
        folder = Settings().job_folder(self._attempt.job_id)
        if not folder.spec.exists():
            raise PathRefused(
                f"host {socket.gethostname()} does not see {folder.path.absolute()}; "
                "MERGENET_HOME must be storage that all hosts of the fleet share"
            )
        with socket.create_server((address, 0)) as free:
            port = int(free.getsockname()[1])
        return Facts(socket.gethostname(), port, capacity.versions())

    def start(self, module: str, devices: int, nodes: int, rendezvous: str, address: str) -> None:
        """Start the launcher, with the devices that Ray lends this actor and without Ray's own secrets."""
        reader, writer = os.pipe()
        self._output, output = os.pipe()
        os.set_blocking(self._output, False)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= capacity.environment(Settings()) | {processes.MARK: self._mark, OUTCOME_FD: str(writer)}
        options = {
            "--devices": ",".join(map(str, range(devices))),
            "--nodes": str(nodes),
            "--rendezvous": rendezvous,
            "--address": address,
        }
        words = [word for option in options.items() for word in option]
        self._child = subprocess.Popen(
            python_command(module, str(self._attempt), *words),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(writer,),
            process_group=0,
        )
        self._outcome = reader
        os.close(writer)
        os.close(output)

    def listen(self, seconds: float) -> Heard:
        """What the launcher printed, and how it ended if it has by then."""
        assert self._child is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(seconds)
        status = self._child.poll()
        output = self._read()
        if status is None or len(output) >= _HEARD_BYTES:
            return Heard(output)
        return Heard(output, ended=True, status=status, outcome=receive(self._outcome))

    def send(self, number: int) -> None:
        """Pass on a signal."""
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(number)

    def end(self) -> None:
        """Kill the launcher with all that it started, and stay until they are gone."""
        running = self._child is not None and self._child.poll() is None
        below = trees.tree(self._child.pid) if self._child is not None and running else []
        trees.end([*below, *processes.marked(self._mark)], _END_SECONDS)

    def _read(self) -> bytes:
        text = b""
        with contextlib.suppress(BlockingIOError):
            while len(text) < _HEARD_BYTES and (part := os.read(self._output, _CHUNK_BYTES)):
                text += part
        return text
