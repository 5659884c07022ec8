"""Leases of a host's devices: all or nothing, to one holder at a time.

A host's ledger is a few keys in Redis, which Lua scripts change one at a time, on Redis's clock. Waiters for the same
devices are served in the order in which they began to wait. One that needs few devices may overtake those ahead that
cannot start yet, until one of them has waited longer than the ageing limit. Lease numbers only grow: an older holder
can neither renew nor release devices that were leased again since.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Literal, cast

from redis import Redis

from mergenet_core.records.record import Record
from mergenet_core.records.workers import Device, DeviceState, WorkerInfo
from mergenet_core.store import keys

AGEING_SECONDS = 300.0
"""A waiter that has waited this long is overtaken no more."""
PATIENCE_SECONDS = 10.0
"""A waiter that has not asked for this long is taken out of the queue."""


class Lease(Record):
    """Devices that one attempt holds, and the number that proves it."""

    ledger: str
    number: int
    devices: tuple[str, ...]
    previous_holders: dict[str, str]
    """Last holder of each device that was never given back: processes of it may still run there."""


class Waiting(Record):
    """Why there is no lease yet."""

    queue_position: int
    """How many waiters for the same devices are ahead."""
    free: int
    usable: int
    """Devices that are not quarantined."""

    def describe(self, wanted: int, known: int) -> str:
        """Why a waiter for `wanted` of a host's `known` devices has to wait."""
        devices = f"{wanted} devices" if wanted > 1 else "a device"
        quarantined = known - self.usable
        aside = f", {quarantined} quarantined (`mergenet workers` shows why)" if quarantined else ""
        return f"needs {devices}, {self.free} of {known} free{aside}, position {self.queue_position + 1} in the queue"


class _Entry(Record):
    """A device's entry in the ledger."""

    holder: str
    number: int
    until: float
    fault: str | None = None


def acquire(
    redis: Redis,
    ledger: str,
    devices: Sequence[str],
    holder: str,
    count: int,
    *,
    lease_seconds: float,
    ageing_seconds: float = AGEING_SECONDS,
    patience_seconds: float = PATIENCE_SECONDS,
) -> Lease | Waiting:
    """Take `count` of a host's devices for a holder, or join the queue; asking again keeps the queue position."""
    limits = (lease_seconds, ageing_seconds, patience_seconds)
    answer = str(_run(redis, ledger, "acquire_devices", holder, count, *limits, *devices))
    found = json.loads(answer)
    if "number" in found:
        return Lease.model_validate({"ledger": ledger, **found})
    return Waiting.model_validate(found)


def leave(redis: Redis, ledger: str, holder: str) -> None:
    """Leave the queue and give back all devices: a lease may have been granted in an answer that never arrived."""
    _run(redis, ledger, "leave_device_queue", holder)


def renew(redis: Redis, lease: Lease, seconds: float) -> bool:
    """Prolong a lease; false when it has run out or another number holds one of its devices."""
    return _change(redis, lease, "renew", seconds)


def release(redis: Redis, lease: Lease) -> bool:
    """Give the devices back; false when the lease no longer holds them."""
    return _change(redis, lease, "release", 0)


def quarantine(redis: Redis, lease: Lease, reason: str) -> bool:
    """Lease the devices to nobody until an operator clears them; false if they have already been leased again."""
    return _change(redis, lease, "quarantine", reason)


def clear(redis: Redis, ledger: str, device: str) -> bool:
    """Make a quarantined device available again; false if it was not quarantined."""
    text = cast("str | None", redis.hget(keys.devices(ledger), device))
    if text is None or _Entry.model_validate_json(text).fault is None:
        return False
    return bool(redis.hdel(keys.devices(ledger), device))


def ledgers(workers: Iterable[WorkerInfo], host: str) -> set[str]:
    """The ledgers of a host, which is given by its name or by that of a ledger."""
    return {worker.ledger for worker in workers if worker.ledger is not None and host in (worker.host, worker.ledger)}


def listing(redis: Redis, workers: Iterable[WorkerInfo]) -> list[DeviceState]:
    """The devices of all live workers' hosts, and who holds them now."""
    seconds, micro = redis.time()
    now = seconds + micro / 1e6
    known: dict[str, dict[str, tuple[str, Device]]] = {}
    for worker in workers:
        for device in worker.devices:
            known.setdefault(worker.ledger or worker.host, {}).setdefault(device.id, (worker.host, device))
    found = []
    for ledger, devices in sorted(known.items()):
        entries = _entries(redis, ledger)
        found += [_state(ledger, *devices[id], entries.get(id), now) for id in sorted(devices, key=_sort_key)]
    return found


def _entries(redis: Redis, ledger: str) -> Mapping[str, _Entry]:
    found = cast("dict[str, str]", redis.hgetall(keys.devices(ledger)))
    return {id: _Entry.model_validate_json(text) for id, text in found.items()}


def _state(ledger: str, host: str, device: Device, entry: _Entry | None, now: float) -> DeviceState:
    if entry is not None and entry.fault is None and entry.until <= now:
        entry = None
    state: Literal["free", "held", "quarantined"] = "free"
    if entry is not None:
        state = "held" if entry.fault is None else "quarantined"
    return DeviceState(
        host=host,
        ledger=ledger,
        **device.model_dump(),
        state=state,
        holder=entry.holder if entry is not None else None,
        reason=entry.fault if entry is not None else None,
    )


def _change(redis: Redis, lease: Lease, action: str, value: float | str) -> bool:
    return _run(redis, lease.ledger, "change_device_lease", lease.number, action, value, *lease.devices) == 1


def _run(redis: Redis, ledger: str, script: str, *arguments: str | float) -> object:
    names = (keys.devices(ledger), keys.device_queue(ledger), keys.device_requests(ledger), keys.DEVICE_LEASE_NUMBER)
    answer: object = redis.register_script(_source(script))(keys=names, args=[str(argument) for argument in arguments])
    return answer


@cache
def _source(script: str) -> str:
    folder = files("mergenet_core.store") / "lua"
    return "".join((folder / f"{name}.lua").read_text() for name in ("prelude", script))


def _sort_key(id: str) -> tuple[int, str]:
    return (int(id), "") if id.isdecimal() else (-1, id)
