"""The launchers of a trial on several hosts: started together, polled, and ended together by their driver.

A host that is gone or silent ends all others. Of several outcomes the one that explains most is reported: a fault of
the training comes before the failed collective operations of the hosts that it left alone.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import NoneType
from typing import Protocol, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from mergenet_core.errors import HostsDiffer, MergeNetError, NodeLost, RankLost
from workers.fleet.host_actor import HostInfo, LauncherStatus
from workers.logs import copy_out
from workers.outcome import Outcome

_POLL_SECONDS = 0.5
_START_SECONDS = 120.0
"""How long a host may take to start a Python process; its disk may be cold."""
_LAST_REPORTS_SECONDS = 5.0
"""How long the other hosts may still report what they know when one has failed."""
_END_SECONDS = 10.0
T = TypeVar("T")


class Stopped(Exception):
    """The trial was asked to stop before its launchers ran."""


class RemoteMethod(Protocol):
    """A method of an actor in another process."""

    def remote(self, *arguments: object) -> object:
        """Call it; return Ray's reference to the later result at once."""


class HostActor(Protocol):
    """Ray's handle of a `FleetHost`, which also knows its address."""

    address: RemoteMethod
    prepare: RemoteMethod
    start: RemoteMethod
    poll: RemoteMethod
    send: RemoteMethod
    end: RemoteMethod


@dataclass
class _Host:
    actor: HostActor
    name: str = "?"
    pending: object = None
    """Ray's reference to the result of a `poll` that is not read yet."""
    answered_at: float = field(default_factory=time.monotonic)
    final: LauncherStatus | None = None
    """How its launcher ended."""


class Launchers:
    """One launcher a host. `stop` is called while hosts are prepared; if it returns true, `start` gives up."""

    def __init__(self, actors: Iterable[HostActor], stop: Callable[[], bool]) -> None:
        self._hosts = [_Host(actor) for actor in actors]
        self._stop = stop
        self._fault: Outcome | None = None
        self._fault_at = 0.0

    def start(self, module: str, devices: int) -> str:
        """Start them all and return the hosts' names; none runs unless all hosts answered.

        Raises: `NodeLost`, `HostsDiffer`, `PathRefused` with the host's name, `Stopped`.
        """
        addresses = self._call_all(str, lambda index, actor: actor.address.remote())
        for host, address in zip(self._hosts, addresses, strict=True):
            host.name = address
        infos = self._call_all(HostInfo, lambda index, actor: actor.prepare.remote(addresses[index]))
        for host, info in zip(self._hosts, infos, strict=True):
            host.name = f"{info.name} ({host.name})"
        for host, info in zip(self._hosts[1:], infos[1:], strict=True):
            if info.versions != infos[0].versions:
                raise HostsDiffer(
                    f"{self._hosts[0].name} runs {infos[0].versions}, {host.name} runs {info.versions}; "
                    "install the same image on all hosts of the fleet"
                )
        shared = (module, devices, len(addresses), f"{addresses[0]}:{infos[0].port}")
        self._call_all(NoneType, lambda index, actor: actor.start.remote(*shared, addresses[index]))
        return ", ".join(host.name for host in self._hosts)

    def send(self, number: int) -> None:
        """Send a signal to all of them."""
        for host in self._hosts:
            host.actor.send.remote(number)

    def poll(self, silence_seconds: float) -> Outcome | None:
        """Copy what they print; return the outcome as soon as there is one for all hosts."""
        now = time.monotonic()
        running = [host for host in self._hosts if host.final is None]
        for host in running:
            if host.pending is None:
                host.pending = host.actor.poll.remote(_POLL_SECONDS)
        ready, _ = ray.wait([host.pending for host in running], num_returns=1, timeout=_POLL_SECONDS)
        for host in running:
            if host.pending in ready:
                self._read(host)
            elif now > host.answered_at + silence_seconds:
                self._lose(host, f"did not answer for {silence_seconds:g} s")
        if self._fault is not None and (self._fault.code == NodeLost.code or self._waited_enough()):
            return self._fault
        return self._combined() if all(host.final is not None for host in self._hosts) else None

    def end(self) -> None:
        """Kill what still runs on the hosts that can be reached."""
        ended = [host.actor.end.remote() for host in self._hosts]
        with contextlib.suppress(RayError):
            ray.wait(ended, num_returns=len(ended), timeout=_END_SECONDS)

    def _read(self, host: _Host) -> None:
        try:
            status: LauncherStatus = ray.get(host.pending)
        except RayError as error:
            self._lose(host, f"is lost: {_last_line(error)}")
            return
        host.pending, host.answered_at = None, time.monotonic()
        copy_out(status.output)
        if not status.ended:
            return
        host.final = status
        outcome = status.outcome
        if outcome is None:
            outcome = Outcome.unreported(f"the launcher on {host.name}", status.status, error=RankLost)
        # a host that another one left alone fails too: any other outcome explains more
        if outcome.ended == "failed" and (self._fault is None or self._fault.code == RankLost.code != outcome.code):
            self._fault_at = self._fault_at or time.monotonic()
            self._fault = outcome.model_copy(update={"message": f"on {host.name}: {outcome.message}"})

    def _lose(self, host: _Host, how: str) -> None:
        # an exception of the training that was reported just before explains more
        if self._fault is None or self._fault.code == RankLost.code:
            self._fault = Outcome.of_error(NodeLost(f"host {host.name} {how}"))

    def _waited_enough(self) -> bool:
        return time.monotonic() > self._fault_at + _LAST_REPORTS_SECONDS

    def _combined(self) -> Outcome:
        if self._fault is not None:
            return self._fault
        outcomes = [host.final.outcome for host in self._hosts if host.final and host.final.outcome]
        stopped = [outcome for outcome in outcomes if outcome.ended == "interrupted"]
        return min(stopped or outcomes, key=lambda outcome: outcome.world_rank or 0)

    def _call_all(self, kind: type[T], call: Callable[[int, HostActor], object]) -> list[T]:
        """Make a call on every host and wait for all results, which are of that kind."""
        calls = [call(index, host.actor) for index, host in enumerate(self._hosts)]
        deadline = time.monotonic() + _START_SECONDS
        while len(ray.wait(calls, num_returns=len(calls), timeout=_POLL_SECONDS)[0]) < len(calls):
            if self._stop():
                raise Stopped
            if time.monotonic() > deadline:
                raise NodeLost(f"a host of {len(calls)} did not start a process within {_START_SECONDS:g} s")
        results = []
        for host, pending in zip(self._hosts, calls, strict=True):
            try:
                result = ray.get(pending)
            except RayTaskError as error:
                if isinstance(error.cause, MergeNetError):
                    raise error.cause from None
                raise
            except RayError as error:
                raise NodeLost(f"host {host.name} is lost: {_last_line(error)}") from None
            assert isinstance(result, kind)
            results.append(result)
        return results


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()
