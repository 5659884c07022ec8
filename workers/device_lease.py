"""A trial's devices: waited for in the ledger of its host, given back when nothing runs on them any more."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable

from redis.exceptions import RedisError

from mergenet_core.processes import trees
from mergenet_core.records import state_machine
from mergenet_core.records.job import Job
from mergenet_core.records.workers import Device
from mergenet_core.store import device_leases, events
from mergenet_core.store.device_leases import Lease, Waiting
from workers import processes
from workers.attempt import Attempt
from workers.host import capacity

_ASK_SECONDS = 0.2
_REAP_SECONDS = 5.0
"""A killed process is gone within this, unless the kernel itself holds it."""
_log = logging.getLogger("workers.device_lease")


def borrow(mine: Attempt, count: int, stop: Callable[[], bool]) -> Lease | None:
    """Wait until `count` devices of this host are lent; None when the attempt is over, or told to stop, before.

    What an earlier holder left running on them is ended first; a device on which that fails is quarantined.
    """
    known = capacity.devices(mine.settings)
    ledger, said, told, look_at = capacity.ledger_name(known), "", -1, 0.0
    while not mine.over:
        moment = time.monotonic()
        if moment >= look_at:
            look_at = moment + min(1.0, mine.settings.lease_seconds / 5)
            job = mine.look() if mine.renew() else None
            if stop() or (job is not None and job.request in ("cancel", "pause")):
                break
        answer = _ask(mine, ledger, known, count)
        if isinstance(answer, Lease):
            if _swept(mine, answer):
                if said:
                    mine.write(functools.partial(_note, mine=mine, reason=None))
                return answer
            continue
        if answer is not None and (reason := answer.describe(count, len(known))) != said:
            said = reason
            mine.write(functools.partial(_note, mine=mine, reason=reason))
            if answer.queue_position != told:  # not at every device that is lent or comes back
                told = answer.queue_position
                _tell(mine, reason)
        time.sleep(_ASK_SECONDS)
    try:
        device_leases.leave(mine.store.redis, ledger, mine.mark)
    except RedisError as error:
        _log.warning("the line could not be left: %s; the place in it is given up soon", error)
    return None


def visible(lease: Lease | None) -> dict[str, str]:
    """The environment that shows a training process its GPUs alone; nothing for slots on a CPU."""
    found = [device for device in lease.devices if device.startswith("GPU-")] if lease is not None else []
    return {"CUDA_VISIBLE_DEVICES": ",".join(found)} if found else {}


def give_back(mine: Attempt, lease: Lease) -> None:
    """Return the devices; those on which something still runs are lent to nobody until an operator has looked."""
    alive = trees.end(processes.marked(mine.mark), _REAP_SECONDS)
    try:
        if alive:
            device_leases.quarantine(mine.store.redis, lease, _stuck(mine.mark, alive))
        else:
            device_leases.release(mine.store.redis, lease)
    except RedisError as error:
        _log.warning("the devices could not be given back: %s; they come back with the end of the lease", error)


def _ask(mine: Attempt, ledger: str, known: tuple[Device, ...], count: int) -> Lease | Waiting | None:
    try:
        return device_leases.acquire(
            mine.store.redis,
            ledger,
            [device.id for device in known],
            mine.mark,
            count,
            lease_seconds=mine.settings.lease_seconds,
            ageing_seconds=mine.settings.ageing_seconds,
        )
    except RedisError as error:
        _log.warning("no devices can be asked for: %s", error)
        return None


def _swept(mine: Attempt, lease: Lease) -> bool:
    """End what former holders left on the devices; false where it could not be, and then none of them is held."""
    clean = set(lease.devices)
    try:
        for mark in set(lease.previous_holders.values()):
            alive = trees.end(processes.marked(mark), _REAP_SECONDS)
            if alive:
                stuck = tuple(device for device, holder in lease.previous_holders.items() if holder == mark)
                clean -= set(stuck)
                device_leases.quarantine(mine.store.redis, _part(lease, stuck), _stuck(mark, alive))
        if len(clean) < len(lease.devices) and clean:
            device_leases.release(mine.store.redis, _part(lease, tuple(clean)))
    except RedisError as error:
        _log.warning("devices on which something still runs could not be marked: %s", error)
    return len(clean) == len(lease.devices)


def _part(lease: Lease, these: tuple[str, ...]) -> Lease:
    return lease.model_copy(update={"devices": these})


def _stuck(mark: str, alive: list[int]) -> str:
    which = f"process {alive[0]}" if len(alive) == 1 else f"processes {', '.join(map(str, alive))}"
    return f"{which} of {mark} could not be ended"


def _note(job: Job, *, mine: Attempt, reason: str | None) -> Job:
    return state_machine.waits(job, mine.ref, reason)


def _tell(mine: Attempt, reason: str) -> None:
    with contextlib.suppress(RedisError):
        events.add_event(mine.store.redis, mine.ref.job_id, "trial.waiting", reason, attempt=mine.ref)
