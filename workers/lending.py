"""A trial's devices: waited for in the ledger of its host, given back when nothing runs on them any more."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable

from redis.exceptions import RedisError

from mergenet_core.jobs import devices, state
from mergenet_core.jobs.devices import Device, Lease, Waiting
from mergenet_core.jobs.records import Job
from workers import host
from workers.attempt import Attempt

_ASK_SECONDS = 0.2
_ORDINALS = ("first", "second", "third")
_log = logging.getLogger("workers.lending")


def borrow(mine: Attempt, count: int, stop: Callable[[], bool]) -> Lease | None:
    """Wait until `count` devices of this host are lent; None when the attempt is over, or told to stop, before."""
    known = host.devices(mine.settings.cpu_slots or host.cpus())
    name, said, look_at = host.ledger_name(known), "", 0.0
    try:
        while not mine.over:
            moment = time.monotonic()
            if moment >= look_at:
                look_at = moment + min(1.0, mine.settings.lease_seconds / 5)
                job = mine.look() if mine.renew() else None
                if stop() or (job is not None and job.request in ("cancel", "pause")):
                    break
            answer = _ask(mine, name, known, count)
            if isinstance(answer, Lease):
                if said:
                    mine.write(functools.partial(_note, mine=mine, reason=None))
                return answer
            reason = _reason(answer, count, len(known))
            if reason != said:
                said = reason
                mine.write(functools.partial(_note, mine=mine, reason=reason))
            time.sleep(_ASK_SECONDS)
    finally:
        _forget(mine, name)
    return None


def visible(lease: Lease | None) -> dict[str, str]:
    """The environment that shows a training process its GPUs alone; nothing for slots on a CPU."""
    found = [device for device in lease.devices if device.startswith("GPU-")] if lease is not None else []
    return {"CUDA_VISIBLE_DEVICES": ",".join(found)} if found else {}


def give_back(mine: Attempt, lease: Lease, *, ended: bool) -> None:
    """Return the devices; those on which something still runs are lent to nobody until an operator has looked."""
    try:
        if ended:
            devices.release(mine.store.redis, lease)
        else:
            devices.quarantine(mine.store.redis, lease, f"processes of {mine.mark} could not be ended")
    except RedisError as error:
        _log.warning("the devices could not be given back: %s; they come back with the end of the lease", error)


def _ask(mine: Attempt, name: str, known: tuple[Device, ...], count: int) -> Lease | Waiting:
    try:
        return devices.acquire(
            mine.store.redis,
            name,
            [device.id for device in known],
            mine.mark,
            count,
            lease_seconds=mine.settings.lease_seconds,
            ageing_seconds=mine.settings.ageing_seconds,
        )
    except RedisError as error:
        _log.warning("no devices can be asked for: %s", error)
        return Waiting(place=0, free=0)


def _forget(mine: Attempt, name: str) -> None:
    try:
        devices.leave(mine.store.redis, name, mine.mark)
    except RedisError as error:
        _log.warning("still in the line: %s", error)


def _note(job: Job, *, mine: Attempt, reason: str | None) -> Job:
    return state.waits(job, mine.trial_id, mine.number, reason)


def _reason(waiting: Waiting, count: int, known: int) -> str:
    if count > known:
        return f"needs {count} devices, this host has {known}; start a worker on a larger host"
    place = _ORDINALS[waiting.place] if waiting.place < len(_ORDINALS) else f"{waiting.place + 1}th"
    wants = f"{count} devices" if count > 1 else "a device"
    return f"needs {wants}, {waiting.free} of {known} free, {place} in line"
