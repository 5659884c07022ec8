"""A Ray actor on each host of a trial: it starts the launcher there, reports on it, and ends with its driver.

Its methods return within a second, so that one thread is enough: the launcher is killed when the thread that started it
ends, and Ray ends the actor when the driver is gone.
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
from workers.host import capacity
from workers.outcome import OUTCOME_FD, Outcome, receive
from workers.processes import TAG, tagged

_CHUNK_BYTES = 65536
_OUTPUT_BYTES = 1 << 20
_END_SECONDS = 5.0


@dataclass(frozen=True)
class HostInfo:
    """What the driver needs to know about a host before the launchers start."""

    name: str
    port: int
    """A port that was free just now, for the launchers to meet at."""
    versions: dict[str, str]


@dataclass(frozen=True)
class LauncherStatus:
    """What a launcher printed since it was polled last, and how it ended if it has."""

    output: bytes
    ended: bool = False
    status: int | None = None
    """Exit status, negative for the signal that ended it."""
    outcome: Outcome | None = None


class FleetHost:
    """One attempt's processes on this host, whose environment holds its own MERGENET_ settings.

    `tag` is the attempt's; `index` counts the hosts of the attempt.
    """

    def __init__(self, attempt: AttemptRef, tag: str, index: int) -> None:
        self._attempt = attempt
        self._attempt_tag = tag
        # several hosts of a fleet may be one machine, where each must find its own processes alone
        self._tag = f"{tag}/host-{index}/"
        self._child: subprocess.Popen[bytes] | None = None
        self._output = self._outcome = -1

    def prepare(self, address: str) -> HostInfo:
        """End what earlier attempts left here, and check that the job's folder is visible. Raises: `PathRefused`."""
        own = {process.pid for process in tagged(self._attempt_tag)}
        trees.kill(process for process in tagged(f"{self._attempt.trial_path}/") if process.pid not in own)
        folder = Settings().job_folder(self._attempt.job_id)
        if not folder.spec.exists():
            raise PathRefused(
                f"host {socket.gethostname()} does not see {folder.path.absolute()}; "
                "MERGENET_HOME must be storage that all hosts of the fleet share"
            )
        with socket.create_server((address, 0)) as free:
            port = int(free.getsockname()[1])
        return HostInfo(socket.gethostname(), port, capacity.versions())

    def start(self, module: str, devices: int, nodes: int, rendezvous: str, address: str) -> None:
        """Start the launcher on the devices that Ray has assigned to this actor, without Ray's own secrets."""
        reader, writer = os.pipe()
        self._output, output = os.pipe()
        os.set_blocking(self._output, False)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= capacity.environment(Settings()) | {TAG: self._tag, OUTCOME_FD: str(writer)}
        options = {
            "--devices": ",".join(map(str, range(devices))),
            "--nodes": str(nodes),
            "--rendezvous": rendezvous,
            "--address": address,
        }
        arguments = [word for option in options.items() for word in option]
        self._child = subprocess.Popen(
            python_command(module, str(self._attempt), *arguments),
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

    def poll(self, seconds: float) -> LauncherStatus:
        """What the launcher printed, and how it ended if it does within that time."""
        assert self._child is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(seconds)
        status = self._child.poll()
        output = self._read()
        if status is None or len(output) >= _OUTPUT_BYTES:
            return LauncherStatus(output)
        return LauncherStatus(output, ended=True, status=status, outcome=receive(self._outcome))

    def send(self, number: int) -> None:
        """Send the launcher a signal if it runs."""
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(number)

    def end(self) -> None:
        """Kill the launcher with all that it started, and wait until they are gone."""
        running = self._child is not None and self._child.poll() is None
        below = trees.tree(self._child.pid) if self._child is not None and running else []
        trees.end([*below, *tagged(self._tag)], _END_SECONDS)

    def _read(self) -> bytes:
        text = b""
        with contextlib.suppress(BlockingIOError):
            while len(text) < _OUTPUT_BYTES and (chunk := os.read(self._output, _CHUNK_BYTES)):
                text += chunk
        return text
