"""The launchers of a trial on several hosts, seen from their driver: started together, heard, and ended together.

A host that is gone or silent ends all others. Whose word counts is decided here: a fault of the training comes before
the failed collectives of the hosts that were only left alone.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from mergenet_core.errors import HostsDiffer, MergeNetError, NodeLost, RankLost
from workers.fleet.host_actor import Facts, Heard
from workers.outcome import Outcome
from workers.processes import copy_out

_LISTEN_SECONDS = 0.5
_START_SECONDS = 120.0
"""What a host gets to start a Python process; its disk may be cold."""
_LAST_WORDS_SECONDS = 5.0
"""What the other hosts get to say what they know, when one has failed."""
_END_SECONDS = 10.0


class Stopped(Exception):
    """The trial was asked to stop before its launchers ran."""


@dataclass
class _Member:
    actor: Any
    name: str = "?"
    asked: Any = None
    heard_at: float = field(default_factory=time.monotonic)
    last: Heard | None = None


class Launchers:
    """One launcher a host. `stop` is asked while hosts are prepared, and says whether to give up."""

    def __init__(self, actors: Iterable[Any], stop: Callable[[], bool]) -> None:
        self._members = [_Member(actor) for actor in actors]
        self._stop = stop
        self._fault: Outcome | None = None
        self._fault_at = 0.0

    def start(self, module: str, devices: int) -> str:
        """Start them all, and say where; none runs unless all hosts answered.

        Raises: `NodeLost`, `HostsDiffer`, `PathRefused` with the host's name, `Stopped`.
        """
        addresses: list[str] = self._each(lambda place, actor: actor.address.remote())
        for member, address in zip(self._members, addresses, strict=True):
            member.name = address
        facts: list[Facts] = self._each(lambda place, actor: actor.prepare.remote(addresses[place]))
        for member, fact in zip(self._members, facts, strict=True):
            member.name = f"{fact.name} ({member.name})"
        for member, fact in zip(self._members[1:], facts[1:], strict=True):
            if fact.versions != facts[0].versions:
                raise HostsDiffer(
                    f"{self._members[0].name} runs {facts[0].versions}, {member.name} runs {fact.versions}; "
                    "install the same image on all hosts of the fleet"
                )
        rendezvous = f"{addresses[0]}:{facts[0].port}"
        self._each(
            lambda place, actor: actor.start.remote(module, devices, len(addresses), rendezvous, addresses[place])
        )
        return ", ".join(member.name for member in self._members)

    def send(self, number: int) -> None:
        """Pass on a signal to all of them."""
        for member in self._members:
            member.actor.send.remote(number)

    def hear(self, silence_seconds: float) -> Outcome | None:
        """Copy what they print; the outcome as soon as there is one for all."""
        moment = time.monotonic()
        running = [member for member in self._members if member.last is None]
        for member in running:
            if member.asked is None:
                member.asked = member.actor.listen.remote(_LISTEN_SECONDS)
        ready, _ = ray.wait([member.asked for member in running], num_returns=1, timeout=_LISTEN_SECONDS)
        for member in running:
            if member.asked in ready:
                self._take(member)
            elif moment > member.heard_at + silence_seconds:
                self._lose(member, f"gave no sign of life for {silence_seconds:g} s")
        if self._fault is not None and (self._fault.code == NodeLost.code or self._late()):
            return self._fault
        return self._together() if all(member.last is not None for member in self._members) else None

    def end(self) -> None:
        """Kill what still runs on the hosts that are left."""
        gone = [member.actor.end.remote() for member in self._members]
        with contextlib.suppress(RayError):
            ray.wait(gone, num_returns=len(gone), timeout=_END_SECONDS)

    def _take(self, member: _Member) -> None:
        try:
            heard: Heard = ray.get(member.asked)
        except RayError as error:
            self._lose(member, f"is lost: {_last_line(error)}")
            return
        member.asked, member.heard_at = None, time.monotonic()
        copy_out(heard.output)
        if not heard.ended:
            return
        member.last = heard
        outcome = heard.outcome
        if outcome is None:
            message = f"the launcher on {member.name} ended with status {heard.status} and left no word"
            outcome = Outcome(ended="failed", code=RankLost.code, message=message, retryable=True)
        # a host that is left alone fails too: its word yields to a better one
        if outcome.ended == "failed" and (self._fault is None or self._fault.code == RankLost.code != outcome.code):
            self._fault_at = self._fault_at or time.monotonic()
            self._fault = outcome.model_copy(update={"message": f"on {member.name}: {outcome.message}"})

    def _lose(self, member: _Member, how: str) -> None:
        # an exception of the training, told a moment before, is the better word
        if self._fault is None or self._fault.code == RankLost.code:
            message = f"host {member.name} {how}"
            self._fault = Outcome(ended="failed", code=NodeLost.code, message=message, retryable=True)

    def _late(self) -> bool:
        return time.monotonic() > self._fault_at + _LAST_WORDS_SECONDS

    def _together(self) -> Outcome:
        if self._fault is not None:
            return self._fault
        told = [member.last.outcome for member in self._members if member.last and member.last.outcome]
        stopped = [outcome for outcome in told if outcome.ended == "interrupted"]
        return min(stopped or told, key=lambda outcome: outcome.world_rank or 0)

    def _each(self, call: Callable[[int, Any], Any]) -> list[Any]:
        """Call them all, and wait for all."""
        calls = [call(place, member.actor) for place, member in enumerate(self._members)]
        deadline = time.monotonic() + _START_SECONDS
        while len(ray.wait(calls, num_returns=len(calls), timeout=_LISTEN_SECONDS)[0]) < len(calls):
            if self._stop():
                raise Stopped
            if time.monotonic() > deadline:
                raise NodeLost(f"a host of {len(calls)} did not start a process within {_START_SECONDS:g} s")
        found = []
        for member, answer in zip(self._members, calls, strict=True):
            try:
                found.append(ray.get(answer))
            except RayTaskError as error:
                if isinstance(error.cause, MergeNetError):
                    raise error.cause from None
                raise
            except RayError as error:
                raise NodeLost(f"host {member.name} is lost: {_last_line(error)}") from None
        return found


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()
